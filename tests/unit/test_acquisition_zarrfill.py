"""Chunks that were not written: the fill value where the rest of the image agrees, a writer that is not done elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers_acquisition import load
from helpers_ri import MEDIUM, SHAPE, cell_volume, leaving_out, x10000, zarr_image

from wbcd.acquisition.zarrfill import fill_of, why_incomplete
from wbcd.errors import CorruptContent, Incomplete

CHUNKS = {"chunks": (12, 28, 30)}
GRID = (4, 4, 4)


def chunks_of(path: Path) -> list[Path]:
    return sorted(file for file in (path / "0").rglob("*") if file.is_file() and not file.name.endswith((".json", ".zarray")))


def incomplete(path: Path, words: str) -> None:
    with pytest.raises(Incomplete, match=words) as caught:
        load(path)
    assert "write_empty_chunks=True" in caught.value.advice


# --- read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", [np.float32, np.uint16])
def test_chunks_of_the_medium_stand_for_it(tmp_path, version, kind):
    truth = cell_volume() if kind is np.float32 else x10000(cell_volume())
    fill = float(np.float32(MEDIUM)) if kind is np.float32 else 13370
    truth[truth < fill] = fill
    path = zarr_image(tmp_path / "a.zarr", truth, version=version, **CHUNKS, **leaving_out(fill))
    assert 0 < len(chunks_of(path)) < 64
    _, (tomogram,) = load(path)
    expected = truth if kind is np.float32 else (truth / np.float32(1e4)).astype(np.float32)
    np.testing.assert_array_equal(tomogram.ri, expected)
    assert tomogram.fill is None


def test_a_cell_at_the_bottom_of_a_constant_field(tmp_path):
    """The last chunks are the absent ones, as a broken-off writer leaves them; the constant border says otherwise."""
    truth = cell_volume(centre=(12, 56, 60))
    truth[24:] = np.float32(MEDIUM)
    path = zarr_image(tmp_path / "a.zarr", truth, chunks=(24, 112, 120), **leaving_out(float(np.float32(MEDIUM))))
    assert len(chunks_of(path)) == 1
    _, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.ri, truth)


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_what_lies_outside_the_field_is_no_ri(tmp_path, fill):
    truth = cell_volume() + np.random.default_rng(0).normal(0, 2e-4, SHAPE).astype(np.float32)
    outside = np.zeros(SHAPE, bool)
    outside[:, :28, :30] = outside[:, 84:, 90:] = True  # two corners of a stitched field
    path = zarr_image(tmp_path / "a.zarr", np.where(outside, np.float32(fill), truth), **CHUNKS, **leaving_out(fill))
    assert len(chunks_of(path)) == 64 - 8
    _, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.fill, outside)
    assert (tomogram.ri[outside] == np.float32(tomogram.medium_ri)).all()
    np.testing.assert_array_equal(tomogram.ri[~outside], truth[~outside])


def test_nan_in_written_chunks_is_outside_where_nan_is_the_fill_value(tmp_path):
    truth = cell_volume()
    truth[:, :10] = np.nan
    path = zarr_image(tmp_path / "a.zarr", truth, **CHUNKS, fill_value=np.nan)
    _, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.fill, np.isnan(truth))
    with pytest.raises(CorruptContent, match="not finite"):
        load(zarr_image(tmp_path / "b.zarr", truth, **CHUNKS, fill_value=0.0))


def test_chunks_that_a_shard_leaves_out(tmp_path):
    truth = cell_volume()
    options = {**leaving_out(float(np.float32(MEDIUM))), "shards": (48, 56, 60), **CHUNKS}
    path = zarr_image(tmp_path / "a.zarr", truth, **options)
    _, (tomogram,) = load(path)
    np.testing.assert_array_equal(tomogram.ri, truth)


@pytest.mark.parametrize("chunks", [(1, 12, 28, 30), (2, 12, 28, 30), (2, 5, 112, 17), (3, 48, 112, 120)])
def test_a_series_whose_volumes_leave_out_different_chunks(tmp_path, chunks):
    series = np.stack([cell_volume(), cell_volume(centre=(14, 32, 34)), cell_volume()])
    path = zarr_image(tmp_path / "a.zarr", series, chunks=chunks, **leaving_out(float(np.float32(MEDIUM))))
    _, volumes = load(path)
    np.testing.assert_array_equal(np.stack([v.ri for v in volumes]), series)


# --- a writer that is not done ---------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0.0, np.nan, float(np.float32(MEDIUM))])
@pytest.mark.parametrize("written", [1, 15, 31, 40, 63])
def test_a_writer_at_work_is_told_at_every_stage(tmp_path, fill, written):
    """Measured values are never constant: whichever chunks are not there yet, they are not the fill value."""
    noisy = cell_volume() + np.random.default_rng(1).normal(0, 2e-4, SHAPE).astype(np.float32)
    path = zarr_image(tmp_path / "a.zarr", noisy, **CHUNKS, fill_value=fill)
    everything = chunks_of(path)
    order = sorted(everything, key=lambda file: [int(part) for part in file.relative_to(path / "0" / "c").parts])
    for file in order[written:]:
        file.unlink()
    incomplete(path, r"is absent|cannot be the fill value")


@pytest.mark.parametrize("fill", [0.0, float(np.float32(MEDIUM))])
@pytest.mark.parametrize("seed", range(4))
def test_a_parallel_writer_at_work_is_told_too(tmp_path, fill, seed):
    noisy = cell_volume() + np.random.default_rng(seed).normal(0, 2e-4, SHAPE).astype(np.float32)
    path = zarr_image(tmp_path / "a.zarr", noisy, **CHUNKS, fill_value=fill)
    everything = chunks_of(path)
    for index in np.random.default_rng(seed).permutation(len(everything))[: 5 + 12 * seed]:
        everything[index].unlink()
    incomplete(path, r"is absent|cannot be the fill value")


def test_an_object_that_is_cut_off_at_a_gap(tmp_path):
    """A constant field, and one chunk of the cell is not there: a volume 12 % too small if it were taken for the medium."""
    path = zarr_image(tmp_path / "a.zarr", cell_volume(), **CHUNKS, **leaving_out(float(np.float32(MEDIUM))))
    (path / "0" / "c" / "1" / "1" / "1").unlink()
    incomplete(path, r"an object of .* um\^2 is cut off")


def test_a_written_chunk_of_nothing_but_fill_says_that_none_is_left_out(tmp_path):
    options = {**leaving_out(float(np.float32(MEDIUM))), "config": {"write_empty_chunks": True}}
    path = zarr_image(tmp_path / "a.zarr", cell_volume(), **CHUNKS, **options)
    (path / "0" / "c" / "3" / "3" / "3").unlink()
    incomplete(path, "other chunks are written that hold nothing but the fill value")


@pytest.mark.parametrize("fill", [-1.0, 1.0, 3.0, np.inf])
def test_a_fill_value_that_is_no_ri_stands_for_nothing(tmp_path, fill):
    path = zarr_image(tmp_path / "a.zarr", cell_volume(), **CHUNKS, fill_value=fill)
    (path / "0" / "c" / "0" / "0" / "0").unlink()
    incomplete(path, "holds 63 of 64 chunks; '0/0/0' is absent: its fill value is no RI")


def test_a_time_point_of_which_nothing_is_written(tmp_path):
    series = np.stack([cell_volume(), cell_volume()])
    path = zarr_image(tmp_path / "a.zarr", series, chunks=(1, 12, 28, 30), **leaving_out(float(np.float32(MEDIUM))))
    shutil.rmtree(path / "0" / "c" / "1")
    incomplete(path, "nothing of the volume is written")


# --- the rules alone -------------------------------------------------------------------------------


def gaps(*absent: tuple[int | slice, ...]) -> np.ndarray:
    grid = np.zeros(GRID, bool)
    for place in absent:
        grid[place] = True
    return grid


EVERY = slice(None)


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        (gaps(), ""),
        (gaps((EVERY, 0, 0)), ""),
        (gaps((EVERY, 3, EVERY)), ""),
        (gaps((EVERY, 0, 0), (EVERY, 1, 0), (EVERY, 1, 1)), ""),
        (gaps((EVERY, 1, 1)), "within the field"),
        (gaps((EVERY, 0, 0), (EVERY, 2, 2)), "within the field"),
        (gaps((0, 0, 0)), "all planes"),
        (gaps((3, EVERY, EVERY)), "the last ones"),
        (gaps((3, 3, 3)), "the last ones"),
        (gaps((EVERY, EVERY, EVERY)), "nothing of the volume"),
    ],
)
def test_gaps_that_can_lie_outside_the_field(absent, words):
    assert words in why_incomplete(absent, 0.0)
    assert bool(words) == bool(why_incomplete(absent, 0.0))


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1.337, np.float32, (float(np.float32(1.337)), False)),
        (13370, np.uint16, (float(np.float32(13370) / np.float32(1e4)), False)),
        (0, np.float32, (0.0, False)),
        (None, np.float32, (0.0, False)),
        ("NaN", np.float64, (0.0, True)),
        ("0x3fab22d1", np.float32, (float(np.float32(1.337)), False)),
        ("0x7fc00000", np.float32, (0.0, True)),
        ("Infinity", np.float32, (None, False)),
        (1.0, np.float32, (None, False)),
        (13370, np.float32, (None, False)),
        (10**400, np.float32, (None, False)),
        (True, np.float32, (None, False)),
        ("AAAA", np.float32, (None, False)),
        ({}, np.float32, (None, False)),
    ],
)
def test_declared_fill_values(value, kind, expected):
    assert fill_of(value, np.dtype(kind), 1e4) == expected


def test_zarr_itself_leaves_such_chunks_out(tmp_path):
    """The premise of all this: by default zarr-python writes no chunk of nothing but the fill value."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = group.create_array("0", shape=SHAPE, dtype="f4", fill_value=float(np.float32(MEDIUM)), **CHUNKS)
    array[...] = cell_volume()
    assert len(chunks_of(tmp_path / "a.zarr")) < 64
    assert array.metadata.fill_value == np.float32(MEDIUM)
