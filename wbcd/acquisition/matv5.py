"""MATLAB files of versions 5 to 7.2 (``save -v6``, ``save -v7``; v7 is MATLAB's default): elements one behind another.

The layout is that of "MAT-File Format" (MathWorks, R2024a, chapter 1). An element of v7 is a zlib stream. It is unpacked here,
plane by plane and no further than its header says, which is held against the limit first: a few bytes cannot become
gigabytes. Only plain numbers, texts and cells of plain arrays are read; objects, functions and structures never are.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.names import known_text
from wbcd.errors import CorruptContent, Forbidden, InputError, MissingField, NotReadable, TooLarge, Truncated

HEAD_BYTES = 128
MAX_ELEMENTS = 10_000
MAX_DIMENSIONS = 32
MAX_NAME_BYTES = 256
MAX_TEXT_BYTES = 4096
MAX_REST_BYTES = 64 * 1024
"""Of a stream behind what its header announces; a pad of seven bytes is usual."""
_BLOCK = 1 << 16
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1", 17: "u2"}
"""Types of elements that hold numbers or characters: UTF-8 and UTF-16 text are the last two."""
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_CLASSES = {
    1: "a cell array",
    2: "a structure",
    3: "an object",
    4: "a text",
    5: "a sparse array",
    16: "a function",
    17: "an object",
}
_CELL, _CHAR = 1, 4
_COMPLEX = 0x08


def is_v5(handle: int) -> bool:
    """True for an open file that begins as those versions do."""
    head = os.pread(handle, HEAD_BYTES, 0)
    return head.startswith(b"MATLAB 5.0") and head[126:] in (b"IM", b"MI")


# --- streams ---------------------------------------------------------------------------------------


class _Stored:
    """Bytes ``at`` to ``end`` of the file, in order."""

    def __init__(self, handle: int, at: int, end: int, where: str) -> None:
        self._handle, self._at, self._end, self._where = handle, at, end, where

    def read(self, size: int) -> bytes:
        """Exactly so many bytes; raises Truncated."""
        if size > self._end - self._at:
            raise Truncated(f"{self._where} ends {size - (self._end - self._at)} bytes before its header says.")
        parts = []
        while size:
            part = os.pread(self._handle, size, self._at)
            if not part:
                raise Truncated(f"{self._where} ends at byte {self._at} of the file.")
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)

    def some(self) -> bytes:
        """The next block, empty at the end."""
        return self.read(min(_BLOCK, self._end - self._at))

    def finish(self) -> None:
        """Nothing is checked: such a file has no checksum."""

    def abandon(self) -> None:
        """Nor if less is read."""


class _Inflated:
    """The same of a zlib stream; what is not asked for is not unpacked."""

    def __init__(self, stored: _Stored, where: str) -> None:
        self._stored, self._where = stored, where
        self._unpacker = zlib.decompressobj()
        self._waiting = b""
        self._wanted = True

    def read(self, size: int) -> bytes:
        """Exactly so many bytes; raises Truncated or CorruptContent."""
        out = bytearray()
        while len(out) < size:
            part = self._unpack(size - len(out))
            if not part:
                raise CorruptContent(f"{self._where} unpacks to {size - len(out)} bytes less than its header says.")
            out += part
        return bytes(out)

    def _unpack(self, most: int) -> bytes:
        """Up to ``most`` bytes; none at the end of the stream."""
        while not self._unpacker.eof:
            self._waiting = self._waiting or self._stored.some()
            packed = self._waiting
            try:
                part = self._unpacker.decompress(packed, most)
            except zlib.error as error:
                raise CorruptContent(f"{self._where} does not unpack ({error}).") from error
            self._waiting = self._unpacker.unconsumed_tail
            if part:
                return part
            if not packed and not self._unpacker.eof:
                raise Truncated(f"{self._where} is cut off.")
        return b""

    def abandon(self) -> None:
        """:meth:`finish` has nothing to do."""
        self._wanted = False

    def finish(self) -> None:
        """To the end of the stream, where its checksum is; raises CorruptContent where more follows than a pad."""
        if not self._wanted:
            return
        rest = 0
        while part := self._unpack(MAX_REST_BYTES):
            rest += len(part)
            if rest > MAX_REST_BYTES:
                raise CorruptContent(f"{self._where} unpacks to more than its header says.")


Stream = _Stored | _Inflated


# --- arrays ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matrix:
    """The header of one array, its values next in the stream. ``shape`` is MATLAB's; the first index runs fastest."""

    kind: int
    complex: bool
    shape: tuple[int, ...]
    name: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_cell(self) -> bool:
        """True for a cell array: as many arrays follow."""
        return self.kind == _CELL

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers in MATLAB; they may be stored in a smaller one. Raises KeyError where it holds none."""
        return np.dtype(_NUMERIC[self.kind])

    def says(self) -> str:
        """What it is, for a message."""
        if self.kind in _NUMERIC:
            return f"{'complex ' if self.complex else ''}{np.dtype(_NUMERIC[self.kind])} {self.shape}"
        return f"{_CLASSES.get(self.kind, 'of an unknown class')} {self.shape}"


@dataclass(frozen=True, slots=True)
class _Element:
    at: int
    size: int
    packed: bool


class MatFile:
    """The variables of an open file by name; ``max_bytes``: the most that one array may unpack to."""

    def __init__(self, handle: int, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._handle = handle
        self._order = "<" if os.pread(handle, HEAD_BYTES, 0)[126:] == b"IM" else ">"
        self._variables = self._listed(os.fstat(handle).st_size)

    @property
    def names(self) -> list[str]:
        """Of all variables, in the file's order."""
        return list(self._variables)

    def where(self, name: str) -> str:
        """For messages: the file and the variable."""
        return f"{self.path}: `{name}`"

    def has(self, name: str) -> bool:
        """True where there is such a variable."""
        return name in self._variables

    def matrix(self, name: str) -> Matrix:
        """Its header; raises MissingField."""
        if name not in self._variables:
            raise MissingField(
                f"{self.where(name)} is absent.", action="Save it into the file: it is a variable of the session."
            )
        return self._variables[name][1]

    @contextmanager
    def values(self, name: str) -> Iterator[tuple[Matrix, Values]]:
        """The header and the values behind it, which are held against the stream's checksum once they are read."""
        self.matrix(name)
        stream = self._stream(self._variables[name][0], self.where(name))
        values = Values(stream, self._order, self.where(name), self.max_bytes)
        with self._translated():
            yield values.head(), values
            stream.finish()

    # --- the file --------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except MemoryError as error:
            raise TooLarge(f"{self.path} needs more memory than the reader may use.") from error
        except OSError as error:
            raise NotReadable(f"{self.path} cannot be read: {error.strerror}.") from error

    def _listed(self, size: int) -> dict[str, tuple[_Element, Matrix]]:
        """Where each variable lies; of a packed one only the first block is unpacked."""
        found: dict[str, tuple[_Element, Matrix]] = {}
        at, count = HEAD_BYTES, 0
        with self._translated():
            while at < size:
                count += 1
                if count > MAX_ELEMENTS:
                    raise TooLarge(f"{self.path} holds more than {MAX_ELEMENTS} variables.", action="")
                where = f"{self.path}: the variable at byte {at}"
                kind, length = struct.unpack(f"{self._order}II", _Stored(self._handle, at, size, where).read(8))
                if at + 8 + length > size:
                    raise Truncated(f"{where} ends at byte {at + 8 + length}; the file holds {size}.")
                if kind not in (_MATRIX, _COMPRESSED):
                    raise CorruptContent(f"{where} is of type {kind}; allowed are arrays (14) and packed ones (15).")
                element = _Element(at, length, kind == _COMPRESSED)
                head = Values(self._stream(element, where), self._order, where, self.max_bytes).head()
                found.setdefault(head.name, (element, head))
                at += 8 + length
        return found

    def _stream(self, element: _Element, where: str) -> Stream:
        begin = element.at + (8 if element.packed else 0)
        stored = _Stored(self._handle, begin, element.at + 8 + element.size, where)
        return _Inflated(stored, where) if element.packed else stored


class Values:
    """What follows in one variable's stream, taken in order."""

    def __init__(self, stream: Stream, order: str, where: str, max_bytes: int) -> None:
        self._stream = stream
        self._order = order
        self._where = where
        self._max_bytes = max_bytes
        self._short = b""
        self._pad = 0

    def head(self) -> Matrix:
        """The header of the array that comes next; raises CorruptContent where none does."""
        kind, _ = self._tag()
        if kind != _MATRIX:
            raise CorruptContent(f"{self._where} holds an element of type {kind} where an array belongs.")
        self._pad = 0
        flags = self._few("u4", 2)
        sizes = self._few("i4", MAX_DIMENSIONS)
        name = known_text(self._few("u1", MAX_NAME_BYTES).tobytes())
        if len(flags) < 1 or len(sizes) < 2 or (sizes < 0).any():
            raise CorruptContent(f"{self._where} has the sizes {sizes.tolist()[:4]}; allowed are two or more, none below 0.")
        return Matrix(int(flags[0]) & 0xFF, bool(int(flags[0]) >> 8 & _COMPLEX), tuple(int(size) for size in sizes), name)

    def numbers(self, head: Matrix) -> np.dtype[Any]:
        """The type in which the numbers of ``head`` are stored next (MATLAB packs whole doubles into bytes).

        Raises Forbidden for what holds no plain numbers, TooLarge by its size, CorruptContent where the lengths disagree.
        """
        if head.kind not in _NUMERIC or head.complex:
            raise Forbidden(
                f"{self._where} is {head.says()}; allowed are real numbers.", action="Save it as an array of real numbers."
            )
        kind, length = self._tag()
        if kind not in _STORED:
            raise CorruptContent(f"{self._where} stores its numbers as type {kind}, which is none of numbers.")
        stored = np.dtype(_STORED[kind]).newbyteorder("<" if self._order == "<" else ">")
        declared = head.size * max(stored.itemsize, np.dtype(_NUMERIC[head.kind]).itemsize)
        if declared > self._max_bytes:
            raise TooLarge(f"{self._where} declares {declared} bytes; the limit is {self._max_bytes}.")
        if length != head.size * stored.itemsize:
            raise CorruptContent(f"{self._where} stores {length} bytes; its shape {head.shape} of {stored} demands others.")
        return stored

    def take(self, stored: np.dtype[Any], count: int) -> NDArray[Any]:
        """The next ``count`` numbers, in native byte order."""
        raw = self._read(count * stored.itemsize)
        return np.frombuffer(raw, stored).astype(stored.newbyteorder("="), copy=False)

    def end(self) -> None:
        """Go over the bytes that fill the element up: the next one begins at a multiple of eight."""
        self._read(self._pad)
        self._pad = 0

    def rest(self) -> None:
        """Want no more of this variable: what follows is not unpacked, and its checksum not asked for."""
        self._stream.abandon()

    def text(self, head: Matrix) -> str | None:
        """A row of characters; None where it is none, is too long, or is no Unicode."""
        if head.kind != _CHAR or not 0 < head.size <= MAX_TEXT_BYTES:
            return None
        kind, length = self._tag()
        if kind not in _STORED or length > 4 * MAX_TEXT_BYTES:
            return None
        raw = self._read(length)
        way = ("utf-16-le" if self._order == "<" else "utf-16-be") if _STORED[kind] == "u2" else "utf-8"
        try:
            return raw.decode(way).strip("\0 ") or None
        except UnicodeDecodeError:
            return None

    def _tag(self) -> tuple[int, int]:
        """Type and length of the next element. One of up to four bytes lies in its own tag."""
        raw = self._read(8)
        kind, length = struct.unpack(f"{self._order}II", raw)
        if not kind >> 16:
            self._pad = -length % 8
            return kind, length
        kind, length = kind & 0xFFFF, kind >> 16
        if length > 4:
            raise CorruptContent(f"{self._where} has an element of {length} bytes in its tag; four have room there.")
        self._short, self._pad = raw[4:], 4 - length
        return kind, length

    def _few(self, kind: str, most: int) -> NDArray[Any]:
        """A short element of whole numbers, pad and all; raises CorruptContent where it is longer or of other widths."""
        code, length = self._tag()
        wanted = np.dtype(kind)
        if (
            np.dtype(_STORED.get(code, "V1")).itemsize != wanted.itemsize
            or length > most * wanted.itemsize
            or length % wanted.itemsize
        ):
            raise CorruptContent(
                f"{self._where} has {length} bytes of type {code} in its header; allowed are {most} of {kind}."
            )
        found = self.take(wanted.newbyteorder("<" if self._order == "<" else ">"), length // wanted.itemsize)
        self.end()
        return found

    def _read(self, size: int) -> bytes:
        short, self._short = self._short[:size], self._short[size:]
        return short + self._stream.read(size - len(short))
