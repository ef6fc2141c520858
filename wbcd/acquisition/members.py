"""The named members of an OME-Zarr, in a folder or packed into one zip file: the same limits and the same refusals for both.

A zip file is examined here and not by ``zipfile``, which reads a directory of any length into memory, believes the central
directory where the local headers say otherwise, and unpacks without a limit. What is refused: members that are encrypted,
links, doubled, overlapping or named outside the folder, methods other than stored and deflate, parts on other disks. Every
member that is read is checked against its CRC-32.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from wbcd.acquisition.candidate import folder_files, open_beneath, read_whole
from wbcd.acquisition.source import Source
from wbcd.errors import CorruptContent, Forbidden, Incomplete, NotReadable, TooLarge, UnknownFormat

MAX_ZIP_MEMBERS = 200_000
MAX_NAME_BYTES = 1024
MAX_DIRECTORY_BYTES = 64 * 2**20
_END, _END_SIZE, _LONGEST_END = b"PK\5\6", 22, 22 + 65_535
_END64, _LOCATOR64, _LOCATOR64_SIZE = b"PK\6\6", b"PK\6\7", 20
_CENTRAL, _CENTRAL_SIZE = b"PK\1\2", 46
_LOCAL, _LOCAL_SIZE = b"PK\3\4", 30
_STORED, _DEFLATED = 0, 8
_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES encryption"}
_ENCRYPTED, _LATER_SIZES, _STRONG, _MASKED = 1 << 0, 1 << 3, 1 << 6, 1 << 13
_NO_32, _NO_16 = 0xFFFFFFFF, 0xFFFF
_BLOCK = 1 << 20
_PACK_AGAIN = "Pack the folder again, without links."


class Members(Protocol):
    """Files by their relative names. ``checked``: a changed byte of a member does not go unseen."""

    checked: bool

    @property
    def names(self) -> set[str]:
        """Of all files."""

    def size(self, name: str) -> int:
        """Bytes of one file, unpacked; raises FileNotFoundError."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole file; raises FileNotFoundError, TooLarge above ``limit``, CorruptContent, NotReadable."""

    def part(self, name: str, begin: int, end: int, limit: int) -> bytes:
        """Bytes ``begin`` to ``end`` of a file that as a whole has at most ``limit``."""


@contextmanager
def members_of(source: Source) -> Iterator[Members]:
    """The members of a ``.zarr`` folder or zip file; raises what opening and listing them raise."""
    with source.opened() as handle:
        yield FolderMembers(handle, source.path) if source.is_folder else ZipMembers(handle, source.path)


class FolderMembers:
    """Files of the open folder; every name is opened component by component without following a link."""

    checked = False

    def __init__(self, folder: int, path: Path) -> None:
        self._folder = folder
        self._path = path

    @property
    def names(self) -> set[str]:
        return set(folder_files(self._path, self._folder))

    def size(self, name: str) -> int:
        with open_beneath(self._folder, name, label=self._path) as handle:
            return os.fstat(handle).st_size

    def read(self, name: str, limit: int) -> bytes:
        with open_beneath(self._folder, name, label=self._path) as handle:
            return read_whole(handle, limit, self._path / name)

    def part(self, name: str, begin: int, end: int, limit: int) -> bytes:
        with open_beneath(self._folder, name, label=self._path) as handle:
            if (size := os.fstat(handle).st_size) > limit:
                raise TooLarge(f"{self._path / name} holds {size} bytes; a chunk of this array has at most {limit}.")
            return _read(handle, begin, min(end, size) - begin)


def _read(handle: int, begin: int, count: int) -> bytes:
    parts = []
    while count > 0 and (part := os.pread(handle, min(count, 1 << 30), begin)):
        parts.append(part)
        begin, count = begin + len(part), count - len(part)
    return b"".join(parts)


# --- zip -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


class ZipMembers:
    """Files of an open zip file: stored or deflated. A single folder at its top (``NAME.zarr/...``) is taken for its root."""

    checked = True

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self._path = path
        self._size = os.fstat(handle).st_size
        self._verified: set[str] = set()
        self._last: tuple[str, bytes] = ("", b"")
        try:
            self._members = _without_top(self._listed())
        except OSError as error:
            raise NotReadable(f"{path} cannot be read: {error.strerror}.") from error
        except (struct.error, IndexError) as error:
            self._damaged(f"its directory makes no sense ({error})")

    @property
    def names(self) -> set[str]:
        return set(self._members)

    def size(self, name: str) -> int:
        return self._member(name).size

    def read(self, name: str, limit: int) -> bytes:
        member = self._member(name)
        if member.size > limit or member.packed > limit + limit // 100 + 65_536:
            raise TooLarge(f"{self._path / name} holds {max(member.size, member.packed)} bytes; the limit is {limit}.")
        raw = self._bytes(self._begin(name, member), member.packed)
        plain = raw if member.method == _STORED else self._inflated(name, raw, member.size)
        if len(plain) != member.size or zlib.crc32(plain) != member.crc:
            self._damaged(f"its member {name!r} does not agree with its checksum")
        return plain

    def part(self, name: str, begin: int, end: int, limit: int) -> bytes:
        member = self._member(name)
        if member.size > limit:
            raise TooLarge(f"{self._path / name} holds {member.size} bytes; a chunk of this array has at most {limit}.")
        end = min(end, member.size)
        if begin <= 0 and end >= member.size:
            return self.read(name, limit)
        if member.method == _STORED:
            self._verify(name, member)
            return self._bytes(self._begin(name, member) + begin, max(0, end - begin))
        if self._last[0] != name:  # parts of one shard follow one another: it is inflated once
            self._last = (name, self.read(name, limit))
        return self._last[1][begin:end]

    def _member(self, name: str) -> _Member:
        try:
            return self._members[name]
        except KeyError as error:
            raise FileNotFoundError(name) from error

    def _damaged(self, what: str) -> NoReturn:
        raise CorruptContent(f"{self._path} is damaged: {what}.")

    def _bytes(self, begin: int, count: int) -> bytes:
        try:
            found = _read(self._handle, begin, count)
        except OSError as error:
            raise NotReadable(f"{self._path} cannot be read: {error.strerror}.") from error
        if len(found) < count:
            self._damaged(f"it ends within bytes {begin} to {begin + count}")
        return found

    def _begin(self, name: str, member: _Member) -> int:
        """Where the member's bytes begin; its own header must say what the directory says."""
        fields = struct.unpack("<4s5H3I2H", self._bytes(member.header, _LOCAL_SIZE))
        signature, _, flags, method, _, _, crc, packed, size, name_length, extra = fields
        own = self._bytes(member.header + _LOCAL_SIZE, name_length)
        agrees = signature == _LOCAL and method == member.method and own == member.raw_name
        if not flags & _LATER_SIZES:
            agrees = agrees and crc == member.crc and packed in (member.packed, _NO_32) and size in (member.size, _NO_32)
        if not agrees or flags & _ENCRYPTED:
            self._damaged(f"the header of its member {name!r} says other than its directory")
        return member.header + _LOCAL_SIZE + int(name_length) + int(extra)

    def _inflated(self, name: str, raw: bytes, size: int) -> bytes:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            plain = unpacker.decompress(raw, size + 1)  # one more: what is longer than it says is seen, and goes no further
        except zlib.error as error:
            self._damaged(f"its member {name!r} does not inflate ({error})")
        if not unpacker.eof:
            self._damaged(f"its member {name!r} unpacks to other than the {size} bytes it declares")
        return plain

    def _verify(self, name: str, member: _Member) -> None:
        """The checksum of a stored member of which only parts are wanted: once, block by block."""
        if name in self._verified:
            return
        begin, crc = self._begin(name, member), 0
        for at in range(0, member.size, _BLOCK):
            crc = zlib.crc32(self._bytes(begin + at, min(_BLOCK, member.size - at)), crc)
        if crc != member.crc:
            self._damaged(f"its member {name!r} does not agree with its checksum")
        self._verified.add(name)

    # --- the directory ---------------------------------------------------------------------------

    def _listed(self) -> dict[str, _Member]:
        count, length, begin = self._directory()
        if count > MAX_ZIP_MEMBERS:
            raise TooLarge(
                f"{self._path} holds {count} members; the limit is {MAX_ZIP_MEMBERS}.", action="Write it with larger chunks."
            )
        if length > MAX_DIRECTORY_BYTES:
            raise TooLarge(f"{self._path} has a directory of {length} bytes; the limit is {MAX_DIRECTORY_BYTES}.", action="")
        if count * _CENTRAL_SIZE > length:
            self._damaged(f"its directory of {length} bytes cannot name {count} members")
        raw = self._bytes(begin, length)
        found: dict[str, _Member] = {}
        spans: list[tuple[int, int]] = []
        at = 0
        for _ in range(count):
            member, at, mode = self._entry(raw, at)
            spans.append((member.header, member.header + _LOCAL_SIZE + len(member.raw_name) + member.packed))
            name = self._name(member)
            if name is None:
                continue
            if stat.S_ISLNK(mode):
                raise Forbidden(f"{self._path}: its member {name!r} is a symbolic link.", action=_PACK_AGAIN)
            if name in found:
                raise Forbidden(f"{self._path} holds {name!r} twice: which is meant?", action=_PACK_AGAIN)
            found[name] = member
        spans.sort()
        for (_, end), (following, _) in zip(spans, [*spans[1:], (begin, 0)], strict=False):
            if end > following:
                raise Forbidden(f"{self._path}: its members overlap at byte {following}.", action=_PACK_AGAIN)
        return found

    def _directory(self) -> tuple[int, int, int]:
        """Number of members, length and beginning of the central directory; Incomplete where there is none yet."""
        if self._size == 0 or not self._bytes(0, min(4, self._size)).strip(b"\0"):
            raise Incomplete(f"{self._path} ({self._size} bytes) begins with nothing but zeros: nothing was written yet.")
        if self._bytes(0, min(4, self._size)) not in (_LOCAL, _END):
            raise UnknownFormat(f"{self._path} does not begin as a zip file does.")
        tail_at = max(0, self._size - _LONGEST_END)
        tail = self._bytes(tail_at, self._size - tail_at)
        place = tail.rfind(_END)
        while place >= 0 and place + _END_SIZE + int.from_bytes(tail[place + 20 : place + 22], "little") != len(tail):
            place = tail.rfind(_END, 0, place)
        if place < 0:
            raise Incomplete(
                f"{self._path} has no directory of its members at its end: its writer is not done, or the copy was cut off."
            )
        disk, first, here, count, length, begin, _ = struct.unpack("<4H2IH", tail[place + 4 : place + _END_SIZE])
        at = tail_at + place
        wide = at >= _LOCATOR64_SIZE and self._bytes(at - _LOCATOR64_SIZE, 4) == _LOCATOR64
        if wide or _NO_16 in (count, here, disk, first) or _NO_32 in (length, begin):
            disk, first, here, count, length, begin, at = self._directory64(at)
        if disk or first or here != count:
            raise Forbidden(f"{self._path} is one of several parts.", action="Pack the folder into one file.")
        if begin + length != at:
            self._damaged(f"its directory ends at byte {begin + length}, and {at} is where its end is noted")
        return count, length, begin

    def _directory64(self, end: int) -> tuple[int, int, int, int, int, int, int]:
        if end < _LOCATOR64_SIZE:
            self._damaged("it is too short for what it declares")
        signature, disk, at, disks = struct.unpack("<4sIQI", self._bytes(end - _LOCATOR64_SIZE, _LOCATOR64_SIZE))
        if signature != _LOCATOR64 or disk or disks > 1 or at + 56 > end:
            self._damaged("its zip64 locator makes no sense")
        fields = struct.unpack("<4sQ2H2I4Q", self._bytes(at, 56))
        signature, length, _, _, disk, first, here, count, size, begin = fields
        if signature != _END64 or at + 12 + length != end - _LOCATOR64_SIZE:
            self._damaged("its zip64 record makes no sense")
        return disk, first, here, count, size, begin, at

    def _entry(self, raw: bytes, at: int) -> tuple[_Member, int, int]:
        """One entry of the directory, where the next begins, and its mode on the system that packed it."""
        fields = struct.unpack_from("<4s6H3I5H2I", raw, at)
        (
            signature,
            made,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            size,
            name_length,
            extra_length,
            comment,
            disk,
            _,
            mode,
            header,
        ) = fields
        if signature != _CENTRAL:
            self._damaged(f"its directory has no entry at byte {at}")
        name_at = at + _CENTRAL_SIZE
        name = raw[name_at : name_at + name_length]
        extra = raw[name_at + name_length : name_at + name_length + extra_length]
        size, packed, header, disk = _wide(extra, size, packed, header, disk)
        following = name_at + name_length + extra_length + comment
        if len(name) != name_length or following > len(raw) or name_length > MAX_NAME_BYTES:
            self._damaged(f"a name in its directory is {name_length} bytes long")
        shown = name[:100].decode("utf-8", "replace")
        if flags & (_ENCRYPTED | _STRONG | _MASKED):
            raise Forbidden(f"{self._path}: its member {shown!r} is encrypted.", action="Pack the folder without a password.")
        if method not in (_STORED, _DEFLATED):
            raise Forbidden(
                f"{self._path}: its member {shown!r} is packed by method {method} ({_METHODS.get(method, 'unknown')}); allowed"
                " are stored and deflate.",
                action="Pack the folder again, stored: its chunks are compressed already.",
            )
        if disk or (method == _STORED and packed != size):
            self._damaged(f"the entry of its member {shown!r} contradicts itself")
        unix = mode >> 16 if made >> 8 == 3 else 0
        return _Member(name, flags, method, crc, packed, size, header), following, unix

    def _name(self, member: _Member) -> str | None:
        """The relative name; None for folders and for what macOS and Windows leave beside; Forbidden where it leads outside."""
        name = member.raw_name.decode("utf-8", "surrogateescape")
        parts = name.removesuffix("/").split("/")
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
            raise Forbidden(f"{self._path}: its member {name[:100]!r} lies outside its folder.", action=_PACK_AGAIN)
        if name.endswith("/"):
            return None
        return None if parts[0] == "__MACOSX" or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini") else name


def _wide(extra: bytes, size: int, packed: int, header: int, disk: int) -> tuple[int, int, int, int]:
    """The 64-bit values of the extra field 1 in place of those that do not fit into 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            values = extra[at : at + length]
            place = 0
            found = []
            for value, none, code in (
                (size, _NO_32, "<Q"),
                (packed, _NO_32, "<Q"),
                (header, _NO_32, "<Q"),
                (disk, _NO_16, "<I"),
            ):
                if value == none:
                    (value,) = struct.unpack_from(code, values, place)
                    place += struct.calcsize(code)
                found.append(int(value))
            return found[0], found[1], found[2], found[3]
        at += length
    return size, packed, header, disk


def _without_top(found: dict[str, _Member]) -> dict[str, _Member]:
    """``NAME.zarr/zarr.json`` -> ``zarr.json`` where all members lie in one folder: packed with the folder's own name."""
    if not found or any(name in found for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray")):
        return found
    tops = {name.partition("/")[0] for name in found}
    if len(tops) != 1 or not all("/" in name for name in found):
        return found
    return {name.partition("/")[2]: member for name, member in found.items()}
