"""A zarr store over one open folder that follows no link and never leaves it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from wbcd.acquisition.candidate import open_beneath
from wbcd.errors import TooLarge

METADATA = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})


class PlainStore(LocalStore):
    """Read-only; every key is opened component by component below the descriptor ``folder``.

    ``judged``: the metadata that were examined, by key. No other metadata exist for zarr, so that none can be swapped in.
    ``max_bytes``: no file of chunks may hold more; it could unpack to far more than the array.
    """

    def __init__(self, root: Path, folder: int, judged: Mapping[str, bytes], max_bytes: int) -> None:
        super().__init__(root, read_only=True)
        self._folder = folder
        self._judged = judged
        self._max_bytes = max_bytes

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of a key or None when it is absent, as the store interface demands."""
        data = self._bytes(key, byte_range)
        if data is None:
            return None
        if prototype is None:
            from zarr.core.buffer import default_buffer_prototype

            prototype = default_buffer_prototype()
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, Any]]
    ) -> list[Buffer | None]:
        """One :meth:`get` for each key and range."""
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        """True when a regular file lies at the key."""
        return self._bytes(key, RangeByteRequest(0, 0)) is not None

    def _bytes(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        if key.rpartition("/")[2] in METADATA:
            known = self._judged.get(key)
            return None if known is None else known[slice(*_span(byte_range, len(known)))]
        try:
            with open_beneath(self._folder, key, label=self.root) as handle:
                size = os.fstat(handle).st_size
                if size > self._max_bytes:
                    raise TooLarge(
                        f"{self.root / key} holds {size} bytes; a chunk of this array has at most {self._max_bytes}."
                    )
                begin, end = _span(byte_range, size)
                return _read(handle, begin, end - begin)
        except (FileNotFoundError, IsADirectoryError):
            return None


def _span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    if isinstance(byte_range, RangeByteRequest):
        return min(byte_range.start, size), min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return min(byte_range.offset, size), size
    if isinstance(byte_range, SuffixByteRequest):
        return max(0, size - byte_range.suffix), size
    return 0, size


def _read(handle: int, begin: int, count: int) -> bytes:
    parts = []
    while count > 0 and (part := os.pread(handle, count, begin)):
        parts.append(part)
        begin, count = begin + len(part), count - len(part)
    return b"".join(parts)
