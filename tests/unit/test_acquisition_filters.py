"""TCF packed by LZ4, Zstandard and Blosc: read as they are, within the same limits, and by no library but the named one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from h5py import h5pl, h5z
from helpers_acquisition import edit, ri_volume, tcf_file, volumes

from wbcd.acquisition import filters, identify
from wbcd.acquisition.isolate import IsolatedReader
from wbcd.errors import CorruptContent, Forbidden, InputError, TooLarge
from wbcd.records import RiSeries

RI = ri_volume((12, 40, 44))
PLACE = "Data/3D/000000"
WAYS: dict[str, dict[str, Any]] = {
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4 in blocks": dict(hdf5plugin.LZ4(nbytes=1024)),
    "zstd": dict(hdf5plugin.Zstd()),
    "zstd, shuffled, checked": {**hdf5plugin.Zstd(clevel=10), "shuffle": True, "fletcher32": True},
    **{f"blosc {name}": dict(hdf5plugin.Blosc(cname=name)) for name in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")},
    "blosc bits": dict(hdf5plugin.Blosc(shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
}


def packed(path: Path, chunks: Any = (4, 40, 44), values: Any = None, **way: Any) -> Path:
    def change(file: h5py.File) -> None:
        stored = file[PLACE][()] if values is None else values
        del file[PLACE]
        file.create_dataset(PLACE, data=stored, chunks=chunks, **way)

    return edit(tcf_file(path, [RI]), change)


@pytest.fixture
def reader(tmp_path: Path) -> Any:
    with IsolatedReader(root=tmp_path) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_a_packed_file_holds_the_same_values(tmp_path: Path, reader: IsolatedReader, way: str) -> None:
    path = packed(tmp_path / "a.TCF", **WAYS[way])
    np.testing.assert_allclose(volumes(path)[0].ri, RI, atol=1e-6)
    series = reader.read(identify(path))[1]
    assert isinstance(series, RiSeries)
    np.testing.assert_allclose(next(iter(series)).ri, RI, atol=1e-6)


def test_what_does_not_shrink_is_stored_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(13000, 14000, RI.shape).astype(np.uint16)
    for way in WAYS.values():
        np.testing.assert_allclose(volumes(packed(tmp_path / "a.TCF", values=noise, **way))[0].ri, noise / 1e4, atol=1e-6)


def test_no_folder_of_plugins_is_ever_searched(tmp_path: Path) -> None:
    """Whatever the environment says, only the three filters of the installed package are there."""
    code = (
        "from wbcd.acquisition import filters; from h5py import h5pl, h5z; import hdf5plugin;"
        "print(sorted(filters.load()), h5pl.size(), [c for c in hdf5plugin.FILTERS.values() if h5z.filter_avail(c)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path)},
    )
    assert done.stdout.strip() == "[32001, 32004, 32015] 0 [32001, 32004, 32015]"


def test_other_filters_are_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "b.h5", "w") as file:  # h5py refuses to write with a filter that is not registered
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4, 40, 44))
        plan.set_filter(32008, h5z.FLAG_OPTIONAL, (0, 4, 2, 0, 2))
        space = h5py.h5s.create_simple(RI.shape)
        h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_UINT16, space, plan).write_direct_chunk((0, 0, 0), b"x" * 99)

    def change(file: h5py.File) -> None:
        del file[PLACE]
        with h5py.File(tmp_path / "b.h5") as other:
            other.copy("a", file["Data/3D"], "000000")

    with pytest.raises(Forbidden, match=r"uses filter 32008 .*; allowed are deflate, .* Blosc, LZ4, Zstandard"):
        volumes(edit(tcf_file(tmp_path / "a.TCF", [RI]), change))


def test_without_the_package_the_advice_says_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "a.TCF", **WAYS["lz4"])
    monkeypatch.setattr(filters, "load", frozenset)
    with pytest.raises(Forbidden, match="packed by LZ4, which is not installed") as caught:
        volumes(path)
    assert "wbcd[filters]" in caught.value.advice
    assert "h5repack" in caught.value.advice


# --- what a chunk says of itself ---------------------------------------------------------------------


def rewritten(path: Path, change: Any) -> Path:
    """The first chunk's packed bytes changed."""
    with h5py.File(path, "r+") as file:
        data = file[PLACE]
        mask, raw = data.id.read_direct_chunk((0, 0, 0))
        data.id.write_direct_chunk((0, 0, 0), bytes(change(bytearray(raw))), filter_mask=mask)
    return path


def put(at: int, value: bytes) -> Any:
    def change(raw: bytearray) -> bytearray:
        raw[at : at + len(value)] = value
        return raw

    return change


BOMBS = {
    "lz4": put(0, (2**40).to_bytes(8, "big")),
    "lz4 in blocks": put(0, (4 * 40 * 44 * 2 + 1).to_bytes(8, "big")),
    "blosc lz4": put(4, (2**31 - 1).to_bytes(4, "little")),
    "blosc zstd": put(4, bytes(4)),
    "zstd": lambda raw: bytes.fromhex("28b52ffd") + b"\xe0" + (2**40).to_bytes(8, "little") + raw[7:],
}


@pytest.mark.parametrize("way", BOMBS)
def test_a_chunk_that_says_it_is_larger_is_never_unpacked(tmp_path: Path, reader: IsolatedReader, way: str) -> None:
    path = rewritten(packed(tmp_path / "a.TCF", **WAYS[way]), BOMBS[way])
    with pytest.raises(CorruptContent, match="1 are larger than their data"):
        volumes(path)
    with pytest.raises(CorruptContent, match="1 are larger than their data"):
        reader.read(identify(path))
    assert reader.restarts == 0


@pytest.mark.parametrize("head", ["", "28b52ffd", "28b52ffd00", "28b52ffd0058", "00000000000000000000"])
def test_a_frame_that_does_not_say_its_size_is_not_unpacked(tmp_path: Path, head: str) -> None:
    assert filters.unpacked_size(filters.ZSTD, bytes.fromhex(head)) is None
    path = rewritten(packed(tmp_path / "a.TCF", **WAYS["zstd"]), lambda raw: bytes.fromhex(head).ljust(len(raw), b"\0"))
    with pytest.raises(CorruptContent):
        volumes(path)


@pytest.mark.parametrize(
    ("head", "size"), [("2037", 0x37), ("600036", 0x3700), ("a000370000", 0x3700), ("e00037000000000000", 0x3700)]
)
def test_the_sizes_of_frames(head: str, size: int) -> None:
    assert filters.unpacked_size(filters.ZSTD, bytes.fromhex("28b52ffd" + head).ljust(18, b"\0")) == size


@pytest.mark.parametrize("way", ["lz4", "zstd", "blosc zstd", "blosc lz4"])
def test_damaged_chunks_end_in_an_error_or_in_values(tmp_path: Path, reader: IsolatedReader, way: str) -> None:
    """Whatever the bytes, the reader lives or is replaced; nothing else happens."""
    smooth = (13300 + np.arange(RI.size) // 7 % 90).astype(np.uint16).reshape(RI.shape)
    whole = packed(tmp_path / "a.TCF", values=smooth, **WAYS[way]).read_bytes()
    rng = np.random.default_rng(1)
    found = 0
    for case in range(25):
        path = tmp_path / f"{case}.TCF"
        path.write_bytes(whole)

        def spoil(raw: bytearray) -> bytearray:
            for at in rng.integers(12, len(raw), 3):
                raw[at] = rng.integers(256)
            return raw

        rewritten(path, spoil)
        try:
            list(reader.read(identify(path))[1])
        except InputError:
            found += 1
    assert found > 5


def test_the_limit_is_on_what_is_unpacked(tmp_path: Path) -> None:
    values = np.full((64, 512, 512), 13370, np.uint16)

    def larger(file: h5py.File) -> None:
        del file[PLACE]
        file.create_dataset(PLACE, data=values, chunks=(64, 512, 512), **hdf5plugin.Zstd())
        for axis, size in zip("ZYX", values.shape, strict=True):
            file["Data/3D"].attrs[f"Size{axis}"] = np.array([size])

    path = edit(tcf_file(tmp_path / "a.TCF", [RI]), larger)
    assert path.stat().st_size < 1_000_000
    from wbcd.acquisition import ReadDefaults, read

    with pytest.raises(TooLarge):
        read(identify(path), defaults=ReadDefaults(max_logical_bytes=10_000_000))
    assert h5pl.size() == 0
