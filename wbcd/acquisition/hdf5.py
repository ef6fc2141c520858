"""HDF5 from strangers: opened and walked so that no byte outside the file is read and no limit is passed unseen.

HDF5 follows external links, external storage (returning the bytes of any file) and virtual data sets silently, loads filter
plugins from disk, and a file of 1,400 bytes can declare 4 PB. So every path is walked component by component over hard links
only, every data set is examined before it is read, and everything the library raises leaves here as an InputError.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5s, h5t, h5z
from numpy.typing import DTypeLike, NDArray

from wbcd.acquisition import filters
from wbcd.acquisition.candidate import open_regular
from wbcd.acquisition.limits import SCALE, VALUES, within
from wbcd.acquisition.names import known_text, text_of
from wbcd.errors import (
    BadField,
    CorruptContent,
    Forbidden,
    Incomplete,
    InputError,
    MissingField,
    NotReadable,
    TooLarge,
    Truncated,
    UnknownFormat,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_ATTRIBUTE_BYTES = 64 * 1024
MAX_CHUNKS = 1_000_000
FILTERS = {h5z.FILTER_DEFLATE: "deflate", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32", 32000: "lzf"}
_PACKING = (h5z.FILTER_DEFLATE, 32000, *filters.NAMES)
_FLETCHER_BYTES = 4
MAX_FILTER_OVERHEAD = 1024
"""Bytes that filters may add to incompressible data, beside one in a hundred."""
_HEAD_BYTES = 64
_MATLAB, _MATLAB_BLOCK = b"MATLAB", 512
_HEAP_SIGNATURE = b"GCOL"
_ATTRIBUTE_CLASSES = (h5t.INTEGER, h5t.FLOAT, h5t.STRING, h5t.ENUM)
_BUSY = (errno.EAGAIN, errno.EACCES)
# What h5py raises when the structure of a file makes no sense; anything else is a fault of ours and must show as one.
_LIBRARY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, OverflowError, SystemError, EOFError)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what h5py raises while a file is read into an InputError that names the file, the cause kept."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise TooLarge(f"{path} needs more memory than the reader may use.") from error
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN):
            raise NotReadable(f"{path} cannot be read: {error.strerror}.") from error
        raise CorruptContent(f"{path} is damaged: {_first_line(error)}.") from error
    except _LIBRARY_ERRORS as error:
        raise CorruptContent(f"{path} is damaged: {_first_line(error)}.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip("'\"").splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def open_hdf5(
    path: Path, *, dir_fd: int | None = None, label: Path | None = None
) -> Iterator[tuple[h5py.File, os.stat_result]]:
    """Open a regular HDF5 file read-only; yields it with the state of exactly the bytes that are read.

    The descriptor is opened first (no link followed, no FIFO awaited) and HDF5 is given that descriptor, so a name swapped in
    between changes nothing. Raises NotReadable, NotARegularFile, UnknownFormat, Truncated, Incomplete, CorruptContent.
    """
    shown = label or path
    with open_regular(path, dir_fd=dir_fd, label=shown) as handle, hdf5_of(handle, shown) as opened:
        yield opened


@contextmanager
def hdf5_of(handle: int, shown: Path) -> Iterator[tuple[h5py.File, os.stat_result]]:
    """As :func:`open_hdf5`, for the open descriptor ``handle``; ``shown`` names the file in messages."""
    with translated(shown):
        state = os.fstat(handle)
        _examine_head(os.pread(handle, _HEAD_BYTES, _user_block(handle, shown)), state.st_size, shown)
        _refuse_endless_heaps(handle, state.st_size, shown)
        file = _open_locked(f"/proc/self/fd/{handle}", shown)
        try:
            yield file, state
        finally:
            file.close()


def _user_block(handle: int, path: Path) -> int:
    """Bytes before the HDF5 signature: MATLAB v7.3 puts a text of 512 bytes there. Raises UnknownFormat for older ones."""
    head = os.pread(handle, len(_MATLAB) + 4, 0)
    if not head.startswith(_MATLAB):
        return 0
    if head[len(_MATLAB) :] != b" 7.3":
        version = known_text(head[len(_MATLAB) :]).strip()
        raise UnknownFormat(f"{path} is a MATLAB file of version {version}; only 7.3 is HDF5.", action="Save it with -v7.3.")
    return _MATLAB_BLOCK


def _examine_head(head: bytes, size: int, path: Path) -> None:
    if not head.strip(b"\0"):
        raise Incomplete(f"{path} ({size} bytes) begins with nothing but zeros: nothing was written yet.")
    if not head.startswith(SIGNATURE):
        if SIGNATURE.startswith(head):
            raise Truncated(f"{path} holds {size} bytes, less than an HDF5 signature.")
        raise UnknownFormat(f"{path} does not begin with the HDF5 signature (found {head[:8]!r}).")
    end = declared_end(head)
    if size < _HEAD_BYTES or (end is not None and size < end):
        raise Truncated(f"{path} holds {size} bytes; its header says {end if end is not None else 'more'}.")


def declared_end(head: bytes) -> int | None:
    """End-of-file address in an HDF5 superblock (format specification III, section II.A), or None if not understood."""
    version = head[8] if len(head) > 8 else 255
    if version in (0, 1):
        width, at = head[13], (24 if version == 0 else 28)
        at += 2 * width  # after the base address and the free-space address
    elif version in (2, 3):
        width = head[9]
        at = 12 + 2 * width  # after the base address and the superblock extension
    else:
        return None
    field = head[at : at + width]
    return int.from_bytes(field, "little") if width in (4, 8) and len(field) == width else None


def _refuse_endless_heaps(handle: int, size: int, path: Path) -> None:
    """Refuse a file whose global heaps (where texts lie) HDF5 would never finish reading.

    A free-space entry of 0 bytes, which a zeroed tail leaves, keeps libhdf5 2.0 in H5HG__cache_heap_deserialize for ever; no
    error comes and no signal handler runs. The isolated reader's time limit would end it, minutes later.
    """
    if size == 0:
        return
    with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_HEAP_SIGNATURE)
        while at >= 0:
            if is_endless_heap(data, at):
                raise CorruptContent(f"{path} is damaged: the heap of its texts at byte {at} is blank; it must be filled.")
            at = data.find(_HEAP_SIGNATURE, at + len(_HEAP_SIGNATURE))


def is_endless_heap(data: bytes | mmap.mmap, at: int) -> bool:
    """True where the global heap collection at byte ``at`` has a free-space entry of 0 bytes (HDF5 file format, III.E).

    What only looks like a heap (pixels may spell its signature) is none: version, reserved bytes and length must fit.
    """
    if data[at + 4 : at + 8] != b"\x01\0\0\0":
        return False
    end = at + int.from_bytes(data[at + 8 : at + 16], "little")
    if end > len(data):
        return False
    cursor = at + 16
    while cursor + 16 <= end:
        index = int.from_bytes(data[cursor : cursor + 2], "little")
        length = int.from_bytes(data[cursor + 8 : cursor + 16], "little")
        if index == 0 and length == 0:
            return True
        cursor += length if index == 0 else 16 + -(-length // 8) * 8
    return False


def _open_locked(name: str, path: Path) -> h5py.File:
    # No chunk cache: every chunk is read once, and a tiled file with thousands of data sets would hold one cache for each.
    try:
        return h5py.File(name, "r", locking="best-effort", rdcc_nbytes=0)
    except OSError as error:
        said = str(error)
        if ("lock" in said and (error.errno in _BUSY or "errno = 11" in said)) or "already open for write" in said:
            raise Incomplete(f"{path} is held by its writer.") from error
        if "lock" in said:  # a share without locks: the semantic end of the format has to do
            return h5py.File(name, "r", locking=False, rdcc_nbytes=0)
        if "truncated file" in said:
            raise Truncated(f"{path} is cut off: {_first_line(error)}.") from error
        raise


# --- walking -------------------------------------------------------------------------------------


class Node:
    """A group of an open file, with the path for messages; the only way down is over hard links.

    ``advice``: what to do about a field that is absent or wrong, by what kind of file it is; the errors' own by default.
    """

    def __init__(self, group: h5py.Group | h5py.Dataset, path: Path, max_bytes: int, advice: str | None = None) -> None:
        self.group = group
        self.path = path
        self.max_bytes = max_bytes
        self.advice = advice

    def advised(self, advice: str) -> Node:
        """The same with this advice."""
        return Node(self.group, self.path, self.max_bytes, advice)

    def where(self, name: str) -> str:
        """For messages: the file and the name within it."""
        inner = f"{self.group.name}/{name}".strip("/")
        return f"{self.path}: `{inner or '/'}`"

    def names(self, limit: int = 100_000) -> list[str]:
        """Names of the direct children; raises TooLarge above ``limit``."""
        if not isinstance(self.group, h5py.Group):
            return []
        if len(self.group) > limit:
            raise TooLarge(f"{self.where('')} holds {len(self.group)} entries; the limit is {limit}.", action="")
        return list(self.group)

    def has(self, name: str) -> bool:
        """True when a child of that name exists, whatever kind of link leads to it."""
        return isinstance(self.group, h5py.Group) and self.group.id.links.exists(name.encode())

    def child(self, name: str) -> Node:
        """Step to a child (``a/b/c`` steps thrice). Raises MissingField, or Forbidden at a soft or external link."""
        node = self
        for part in name.split("/"):
            node = node._step(part)
        return node

    def _step(self, name: str) -> Node:
        if not self.has(name):
            raise MissingField(f"{self.where(name)} is absent.", action=self.advice)
        kind = self.group.id.links.get_info(name.encode()).type
        if kind != h5l.TYPE_HARD:
            word = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}.get(kind, "a user-defined link")
            raise Forbidden(f"{self.where(name)} is {word}; only hard links are followed.")
        found = self.group[name]
        if not isinstance(found, h5py.Group | h5py.Dataset):
            raise BadField(f"{self.where(name)} is neither a group nor a data set.", action=self.advice)
        return Node(found, self.path, self.max_bytes, self.advice)

    @property
    def is_group(self) -> bool:
        """True for a group, False for a data set."""
        return isinstance(self.group, h5py.Group)

    def demand_hard_links(self) -> None:
        """Raise Forbidden at the first child that is not a hard link."""
        for name in self.names():
            self._step(name)

    # --- attributes ------------------------------------------------------------------------------

    def attribute(self, name: str) -> Any:
        """Value of an attribute as a Python scalar; a 1-element array counts as its element, bytes as text.

        Texts by :func:`wbcd.acquisition.names.known_text`, without the NULs and spaces that pad them. None when absent.
        Raises BadField for references, compounds, arrays and oversized values.
        """
        item = self.stated(name)
        return text_of(_bytes_of(item), where=f"attribute {self.where(name)}") if isinstance(item, str) else item

    def stated(self, name: str) -> Any:
        """As :meth:`attribute`, a text as the file's own bytes by ``os.fsdecode``'s rule: for file names and digests, not for
        people and databases."""
        attributes = self.group.attrs
        if name not in attributes:
            return None
        held = attributes.get_id(name)
        if held.get_type().get_class() not in _ATTRIBUTE_CLASSES or held.get_space().get_simple_extent_type() == h5s.NULL:
            raise BadField(f"attribute {self.where(name)} is neither a number nor a text.", action=self.advice)
        if held.get_storage_size() > MAX_ATTRIBUTE_BYTES:
            size = held.get_storage_size()
            raise TooLarge(f"attribute {self.where(name)} holds {size} bytes; the limit is {MAX_ATTRIBUTE_BYTES}.", action="")
        value = np.asarray(attributes[name])
        if value.size != 1:
            raise BadField(f"attribute {self.where(name)} has {value.size} values; one is expected.", action=self.advice)
        item = value.reshape(-1)[0]
        item = _whole_text(held) or item.item() if isinstance(item, np.generic) else item
        if isinstance(item, str):  # of variable length: h5py has decoded it by the same rule
            item = _bytes_of(item)
        return item.rstrip(b"\0 ").decode("utf-8", "surrogateescape") if isinstance(item, bytes) else item

    def text(self, name: str) -> str | None:
        """Text of an attribute, or None when absent; raises BadField when it is a number."""
        value = self.attribute(name)
        if value is not None and not isinstance(value, str):
            raise BadField(f"attribute {self.where(name)} is {value!r}; a text is expected.", action=self.advice)
        return value

    def number(self, name: str) -> float | None:
        """Number of an attribute, or None when absent; raises BadField for a text or a truth value."""
        value = self.attribute(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadField(f"attribute {self.where(name)} is {value!r}; a number is expected.", action=self.advice)
        return None if value is None else float(value)

    def required_text(self, name: str) -> str:
        """Text of an attribute; raises MissingField when absent or empty."""
        value = self.text(name)
        if not value:
            raise MissingField(f"attribute {self.where(name)} is absent or empty.", action=self.advice)
        return value

    def required_number(self, name: str, bounds: tuple[float, float], unit: str = "", hint: str = "") -> float:
        """Number of an attribute within ``bounds``; raises MissingField or BadField."""
        value = self.number(name)
        if value is None:
            raise MissingField(f"attribute {self.where(name)} is absent.", action=self.advice)
        return within(value, bounds, where=f"attribute {self.where(name)}", unit=unit, hint=hint, action=self.advice)

    def required_count(self, name: str, bounds: tuple[int, int]) -> int:
        """Whole number of an attribute within ``bounds``; raises MissingField or BadField."""
        value = self.required_number(name, bounds)
        if value != int(value):
            raise BadField(f"attribute {self.where(name)} is {value!r}; a whole number is expected.", action=self.advice)
        return int(value)

    # --- data sets -------------------------------------------------------------------------------

    def array(self, *, dtypes: tuple[DTypeLike, ...], ndim: int, limits: str) -> h5py.Dataset:
        """The examined data set, not yet read. ``limits`` says in words what is allowed, for the message.

        Raises Forbidden (external storage, virtual, unknown filter), TooLarge, BadField, Incomplete (chunks missing).
        """
        data = self.group
        here = self.where("")
        if not isinstance(data, h5py.Dataset):
            raise BadField(f"{here} is a group; a data set is expected.", action=self.advice)
        demand_plain_storage(data, here)
        if data.dtype.hasobject or data.dtype.newbyteorder("=") not in [np.dtype(kind) for kind in dtypes]:
            raise BadField(f"{here} has type {data.dtype}; allowed is {limits}.", action=self.advice)
        if data.ndim != ndim or 0 in data.shape:
            raise BadField(f"{here} has shape {data.shape}; allowed is {limits}.", action=self.advice)
        _demand_bounded(data, here, self.max_bytes)
        _demand_written(data, here)
        return data


def _whole_text(held: h5a.AttrID) -> bytes | None:
    """All bytes of a NUL-terminated text that is one of 16-bit characters: HDF5 ends it at its first ASCII letter, and "Anna"
    and "Anton" would be one. None for others: what C left in a buffer behind two letters or more and a NUL is no text."""
    form = held.get_type()
    if form.get_class() != h5t.STRING or form.is_variable_str() or form.get_strpad() != h5t.STR_NULLTERM:
        return None
    stored = np.empty(held.shape, f"S{form.get_size()}")
    held.read(stored, mtype=form)
    raw = stored.tobytes().rstrip(b"\0")
    head, _, rest = raw.partition(b"\0")
    if not rest:
        return None
    if len(head) > 1:
        with suppress(UnicodeDecodeError):
            head.decode()
            return None
    raw += bytes(len(raw) % 2)
    with suppress(UnicodeDecodeError):
        if any(raw.decode(way).lstrip("\ufeff").isprintable() for way in ("utf-16-le", "utf-16-be")):
            return raw
    return None


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def demand_plain_storage(data: h5py.Dataset, here: str) -> None:
    """Raise Forbidden where values lie outside the file or are packed by a filter that is not on the list."""
    plan = data.id.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL:
        raise Forbidden(f"{here} is a virtual data set: its values lie in other files.")
    if plan.get_layout() != h5d.COMPACT and plan.get_external_count() > 0:
        raise Forbidden(f"{here} uses external storage: its values lie in other files.")
    if plan.get_layout() != h5d.CHUNKED:
        return
    for index in range(plan.get_nfilters()):
        code, _, _, name = plan.get_filter(index)
        if code in filters.NAMES and code not in filters.load():
            raise Forbidden(f"{here} is packed by {filters.NAMES[code]}, which is not installed.", action=filters.ADVICE)
        if code not in FILTERS and code not in filters.NAMES:
            allowed = ", ".join((*FILTERS.values(), *filters.NAMES.values()))
            raise Forbidden(f"{here} uses filter {code} ({known_text(name)}); allowed are {allowed}.")


def _demand_bounded(data: h5py.Dataset, here: str, max_bytes: int) -> None:
    logical = math.prod(data.shape) * data.dtype.itemsize
    if logical > max_bytes:
        raise TooLarge(f"{here} declares {logical} bytes; the limit is {max_bytes}.")
    if data.chunks is not None:
        chunk = math.prod(data.chunks) * data.dtype.itemsize
        if chunk > max_bytes:
            raise TooLarge(f"{here} has chunks of {chunk} bytes; the limit is {max_bytes}.")
        if chunk_count(data.shape, data.chunks) > MAX_CHUNKS:
            found = chunk_count(data.shape, data.chunks)
            raise TooLarge(f"{here} has {found} chunks; the limit is {MAX_CHUNKS}.", action="")


def _skippable(data: h5py.Dataset) -> int:
    """Filter mask of the compressors: a writer leaves them out where a chunk does not shrink, and its size then shows it."""
    plan = data.id.get_create_plist()
    return sum(1 << index for index in range(plan.get_nfilters()) if plan.get_filter(index)[0] in _PACKING)


def chunk_count(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """Number of chunks that cover ``shape``."""
    return math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


def _demand_written(data: h5py.Dataset, here: str) -> None:
    """Unwritten parts would be read as zeros without a word."""
    if data.chunks is not None:
        _demand_sound_chunks(data, here)
    elif data.id.get_space_status() != h5d.SPACE_STATUS_ALLOCATED:
        raise Incomplete(f"{here} was declared and never written.")


def _demand_sound_chunks(data: h5py.Dataset, here: str) -> None:
    """Every chunk in its own place of the array and of the file, no filter skipped, none larger than it can be.

    A checksum covers a chunk's bytes, not the index that says which chunk they are: one flipped bit there shows a chunk twice,
    at another place, or unfiltered. The size bounds what a deflate bomb can unpack to (1,032 times its bytes).
    """
    expected = chunk_count(data.shape, data.chunks)
    packed = _skippable(data)
    says = _declared_sizes(data, here)
    plain = math.prod(data.chunks) * data.dtype.itemsize
    unpacked = (plain, plain + _FLETCHER_BYTES)
    places: set[tuple[int, ...]] = set()
    extents: list[tuple[int, int]] = []
    most = plain * 1.01 + MAX_FILTER_OVERHEAD
    skipped = over = 0

    def note(chunk: Any) -> None:
        nonlocal skipped, over
        skipped += bool(chunk.filter_mask & ~packed or (chunk.filter_mask and chunk.size not in unpacked))
        over += chunk.size > most or says(chunk) not in unpacked
        if all(
            at % step == 0 and at < size for at, step, size in zip(chunk.chunk_offset, data.chunks, data.shape, strict=True)
        ):
            places.add(tuple(chunk.chunk_offset))
            extents.append((chunk.byte_offset, chunk.size))

    data.id.chunk_iter(note)
    if len(places) < expected:
        raise Incomplete(f"{here} holds {len(places)} of {expected} chunks.")
    extents.sort()
    shared = sum(begin + size > following for (begin, size), (following, _) in pairwise(extents))
    if shared or skipped or over or len(extents) > expected:
        raise CorruptContent(
            f"{here} has a damaged chunk index: {shared} chunks overlap, {skipped} skip their filters, {over} are larger than"
            f" their data, {len(extents) - expected} are double; allowed are 0."
        )


def _declared_sizes(data: h5py.Dataset, here: str) -> Callable[[Any], int | None]:
    """What a chunk of the data set unpacks to by its own word; its plain size where no filter goes by that word.

    Raises Forbidden for a file with a user block: places are then counted from its end.
    """
    plan = data.id.get_create_plist()
    codes = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    plain: int = math.prod(data.chunks) * data.dtype.itemsize
    used = [(index, code) for index, code in enumerate(codes) if code in filters.NAMES]
    if not used:
        return lambda _: plain
    if len(used) > 1 or data.file.userblock_size:
        names = ", ".join(filters.NAMES[code] for _, code in used)
        raise Forbidden(f"{here} is packed by {names}; allowed is one of them, in a file without a user block.")
    (index, code), handle = used[0], int(data.file.id.get_vfd_handle())

    def says(chunk: Any) -> int | None:
        if chunk.filter_mask & 1 << index:
            return plain
        return filters.unpacked_size(code, os.pread(handle, filters.HEAD_BYTES, chunk.byte_offset))

    return says


# --- protection ----------------------------------------------------------------------------------


def header_is_checked(node: h5py.Group | h5py.Dataset) -> bool:
    """True when the node's attributes, shape and type are covered by a checksum (object header version 2, HDF5 1.8 on)."""
    return bool(h5o.get_info(node.id).hdr.version >= 2)


def values_are_checked(data: h5py.Dataset) -> bool:
    """True when the data set's values are covered by a checksum: Fletcher-32, Adler-32 (deflate), or the header's own."""
    plan = data.id.get_create_plist()
    if plan.get_layout() == h5d.COMPACT:
        return header_is_checked(data)
    codes = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    if h5z.FILTER_FLETCHER32 in codes:
        return True
    masks: set[int] = set()
    if h5z.FILTER_DEFLATE in codes:
        data.id.chunk_iter(lambda chunk: masks.add(chunk.filter_mask))
    return masks == {0}


def unchecked_parts(scale: Iterable[h5py.Group | h5py.Dataset], values: Sequence[h5py.Dataset]) -> tuple[str, ...]:
    """What has no checksum: "scale" where a header of either list has none, "values" where a data set's values have none."""
    parts = {SCALE: all(map(header_is_checked, (*scale, *values))), VALUES: all(map(values_are_checked, values))}
    return tuple(part for part, checked in parts.items() if not checked)


def read_array(data: h5py.Dataset, region: tuple[slice, ...], path: Path) -> NDArray[Any]:
    """Read a region, in native byte order; a failed chunk checksum or decompression raises CorruptContent."""
    with translated(path):
        part: NDArray[Any] = data[region]
        return np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("="))
