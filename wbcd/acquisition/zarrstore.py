"""A zarr store over the members of one open folder or zip file: it follows no link and never leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from wbcd.acquisition.members import Members

METADATA = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})


class PlainStore(LocalStore):
    """Read-only; every key is a name among ``members``.

    ``judged``: the metadata that were examined, by key. No other metadata exist for zarr, so that none can be swapped in.
    ``max_bytes``: no file of chunks may hold more; it could unpack to far more than the array.
    """

    def __init__(self, root: Path, members: Members, judged: Mapping[str, bytes], max_bytes: int) -> None:
        super().__init__(root, read_only=True)
        self._members = members
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
        if key.rpartition("/")[2] in METADATA:
            return key in self._judged
        try:
            return self._members.size(key) >= 0
        except (FileNotFoundError, IsADirectoryError):
            return False

    def _bytes(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        if key.rpartition("/")[2] in METADATA:
            known = self._judged.get(key)
            return None if known is None else known[slice(*_span(byte_range, len(known)))]
        try:
            size = self._members.size(key)
            begin, end = _span(byte_range, size)
            return self._members.part(key, begin, end, self._max_bytes)
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
