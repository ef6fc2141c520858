"""LZ4, Zstandard and Blosc in HDF5: people repack whole archives of TCF so. The filters are hdf5plugin's, an optional package.

HDF5 would look for them in the folders of ``HDF5_PLUGIN_PATH`` and run what lies there. That is closed; the libraries of the
installed package are loaded before the isolated reader gives its rights away, and only these three stay registered. What a
packed chunk says that it unpacks to is held against the chunk's size before the filter sees it: it takes its own word for it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Final

from h5py import h5pl, h5z

BLOSC, LZ4, ZSTD = 32001, 32004, 32015
NAMES: Final = {BLOSC: "Blosc", LZ4: "LZ4", ZSTD: "Zstandard"}
HEAD_BYTES = 18
ADVICE = "Install wbcd[filters] (hdf5plugin), or repack the file: h5repack -f SHUF -f GZIP=4 IN OUT."


@cache
def load() -> frozenset[int]:
    """Codes of the filters that are there from now on; none without hdf5plugin."""
    while h5pl.size():
        h5pl.remove(0)
    try:
        import hdf5plugin
    except ImportError:
        return frozenset()
    for code in set(hdf5plugin.FILTERS.values()) - set(NAMES):
        with suppress(RuntimeError, ValueError):
            h5z.unregister_filter(code)
    return frozenset(code for code in NAMES if h5z.filter_avail(code))


def unpacked_size(code: int, head: bytes) -> int | None:
    """Bytes that a chunk with these first :data:`HEAD_BYTES` bytes says it unpacks to; None where it does not say."""
    if code == LZ4:  # the HDF5 filter's own frame
        return int.from_bytes(head[:8], "big") if len(head) >= 12 else None
    if code == BLOSC:  # Blosc 1 chunk header
        return int.from_bytes(head[4:8], "little") if len(head) >= 16 else None
    return _zstandard_size(head) if code == ZSTD else None


def _zstandard_size(head: bytes) -> int | None:
    """Frame_Content_Size (RFC 8878, section 3.1.1.1)."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        return None
    descriptor = head[4]
    single, kind = bool(descriptor & 0x20), descriptor >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[kind]
    field = head[at : at + width]
    if not width or len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)
