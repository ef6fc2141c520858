"""OME-Zarr of RI, both versions; metadata judged before zarr sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers_acquisition import VOXEL_UM, load, ri_volume

from wbcd.acquisition import ReadDefaults, identify, read
from wbcd.errors import BadField, CorruptContent, Forbidden, Incomplete, MissingField, NotARegularFile, TooLarge, UnknownFormat
from wbcd.records import SourceFormat
from wbcd.simulation.files import write_ome_zarr_ri


def image(folder: Path, version: str = "0.5", **options: Any) -> Path:
    return write_ome_zarr_ri(folder / "a.zarr", options.pop("ri", ri_volume()), VOXEL_UM, version=version, **options)


def rewrite(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("encoding", ["float32", "uint16"])
def test_ri_comes_back(tmp_path, version, encoding):
    truth = ri_volume((70, 40, 44))
    ticket, (tomogram,) = load(image(tmp_path, version, ri=truth, encoding=encoding, medium_ri=1.34))
    np.testing.assert_allclose(tomogram.ri, truth, atol=1e-6)
    assert tomogram.ri.dtype == np.float32
    assert (tomogram.voxel_um, tomogram.medium_ri) == (VOXEL_UM, 1.34)
    assert (ticket.format, ticket.time_points, ticket.pixel_size_um) == (SourceFormat.OME_ZARR, 1, 0.1)


def test_medium_falls_back_to_the_default(tmp_path):
    _, (tomogram,) = load(image(tmp_path, medium_ri=None), defaults=ReadDefaults(medium_ri=1.342))
    assert tomogram.medium_ri == 1.342


@pytest.mark.parametrize(("axes", "leading"), [("tzyx", (3,)), ("tczyx", (3, 1)), ("czyx", (1,))])
def test_time_axis_gives_a_series_and_units_are_converted(tmp_path, axes, leading):
    truth = np.stack([ri_volume(seed=seed) for seed in range(leading[0])])
    axis = {"t": "time", "c": "channel"}
    scale = [1.0] * len(leading) + [200.0, 100.0, 100.0]
    ome = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [
                    {"name": n, "type": axis.get(n, "space")} | ({"unit": "nanometer"} if n in "zyx" else {}) for n in axes
                ],
                "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
            }
        ],
    }
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", attributes={"ome": ome})
    shape = (*leading, *truth.shape[1:])
    array = group.create_array(
        "s0", shape=shape, chunks=(1,) * len(leading) + (12, 20, 20), dtype="f4", shards=(1,) * len(leading) + (12, 40, 60)
    )
    array[...] = truth.reshape(shape)
    ticket, series = read(identify(tmp_path / "a.zarr"))
    assert ticket.time_points == series.count == leading[0]
    for index, tomogram in enumerate(series):
        assert tomogram.voxel_um == pytest.approx(VOXEL_UM)
        assert tomogram.time_index == index
        np.testing.assert_array_equal(tomogram.ri, truth[index])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_missing_chunk_is_not_read_as_fill(tmp_path, version):
    path = image(tmp_path, version, ri=ri_volume((70, 40, 44)))
    (path / "0" / ("c/1/0/0" if version == "0.5" else "1.0.0")).unlink()
    with pytest.raises(Incomplete, match="1 of 2 chunks"):
        load(path)


@pytest.mark.parametrize("cut", [0, 7])
def test_damaged_chunk(tmp_path, cut):
    path = image(tmp_path)
    chunk = path / "0" / "c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:cut] if cut else b"")
    with pytest.raises(CorruptContent, match=r"a\.zarr"):
        load(path)


def test_folder_without_metadata(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(Incomplete, match="empty"):
        load(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "x").write_text("1")
    with pytest.raises(UnknownFormat, match=r"zarr\.json"):
        load(tmp_path / "a.zarr")


def test_file_called_zarr(tmp_path):
    (tmp_path / "a.zarr").write_text("1")
    with pytest.raises(NotARegularFile, match="directory"):
        load(tmp_path / "a.zarr")


def _ome(data):
    return data["attributes"]["ome"]["multiscales"][0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda d: d["attributes"].pop("ome"), MissingField, "multiscales"),
        (lambda d: d["attributes"]["ome"].update(multiscales=[]), BadField, "empty"),
        (lambda d: d["attributes"]["ome"].update(multiscales="x"), BadField, "wrong type"),
        (lambda d: _ome(d)["axes"].reverse(), BadField, "xyz"),
        (lambda d: _ome(d)["axes"][0].pop("unit"), MissingField, "unit"),
        (lambda d: _ome(d)["axes"][0].update(unit="parsec"), BadField, "parsec"),
        (lambda d: _ome(d)["datasets"][0]["coordinateTransformations"].clear(), MissingField, "voxel size is unknown"),
        (lambda d: _ome(d)["datasets"][0]["coordinateTransformations"][0].update(scale=[200, 100, 100]), BadField, "200 um"),
        (lambda d: _ome(d)["datasets"][0]["coordinateTransformations"][0].update(scale=[0.2, 0.1]), BadField, "3 numbers"),
        (lambda d: _ome(d)["datasets"][0].update(path="../other.zarr/0"), Forbidden, "leaves the folder"),
        (lambda d: _ome(d)["datasets"][0].update(path="/etc"), Forbidden, "leaves the folder"),
        (lambda d: _ome(d)["datasets"][0].update(path="gone"), Incomplete, "gone"),
        (lambda d: d["attributes"]["wbcd"].update(medium_ri=13370), BadField, "13370; allowed is 1 to 1.8"),
        (lambda d: d["attributes"]["wbcd"].update(medium_ri="water"), BadField, "water"),
    ],
)
def test_bad_group_metadata(tmp_path, change, error, words):
    path = image(tmp_path)
    rewrite(path / "zarr.json", change)
    with pytest.raises(error, match=words):
        load(path)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda d: d.update(shape=[2**30, 2**20, 2**20]), TooLarge, "limit is 805306368"),
        (lambda d: d.update(shape=[12, 40]), BadField, "axes"),
        (lambda d: d.update(shape=[12, 40, -1]), BadField, "positive"),
        (lambda d: d.update(data_type="int32"), BadField, "'int32'; allowed are float32"),
        (lambda d: d.update(codecs=[{"name": "numcodecs.pickle"}]), Forbidden, "numcodecs.pickle"),
        (
            lambda d: d.update(codecs=[{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "evil"}]}}]),
            Forbidden,
            "evil",
        ),
        (lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[1, 1]), BadField, "chunk_shape"),
        (lambda d: d["chunk_key_encoding"].update(configuration={"separator": "/../"}), BadField, "separator"),
    ],
)
def test_bad_array_metadata(tmp_path, change, error, words):
    path = image(tmp_path)
    rewrite(path / "0" / "zarr.json", change)
    with pytest.raises(error, match=words):
        load(path)


def test_object_codec_of_zarr_2_is_refused(tmp_path):
    path = image(tmp_path, "0.4")
    rewrite(path / "0" / ".zarray", lambda d: d.update(filters=[{"id": "pickle"}]))
    with pytest.raises(Forbidden, match="pickle"):
        load(path)
    rewrite(path / "0" / ".zarray", lambda d: d.update(filters=None, dtype="|O"))
    with pytest.raises(BadField, match=r"\|O"):
        load(path)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "[1]", '{"attributes": 3}'])
def test_metadata_that_is_no_object(tmp_path, text):
    path = image(tmp_path)
    (path / "zarr.json").write_text(text)
    with pytest.raises((CorruptContent, BadField), match=r"a\.zarr"):
        load(path)


def test_oversized_metadata(tmp_path):
    path = image(tmp_path)
    (path / "zarr.json").write_text(" " * (5 * 2**20))
    with pytest.raises(TooLarge, match="limit"):
        load(path)


@pytest.mark.parametrize("whole", [False, True])
def test_links_swapped_in_after_identification_are_not_followed(tmp_path, whole):
    path = image(tmp_path)
    ticket = identify(path)
    _, series = read(ticket)
    outside = tmp_path / "outside"
    if whole:
        (path / "0").rename(outside)
        (path / "0").symlink_to(outside)
    else:
        (path / "0/c/0/0/0").rename(outside)
        (path / "0/c/0/0/0").symlink_to(outside)
    with pytest.raises(NotARegularFile, match=r"symbolic link"):
        list(series)


def test_zero_planes_and_wrong_scale(tmp_path):
    truth = ri_volume()
    truth[4] = 0
    with pytest.raises(CorruptContent, match="plane z = 4"):
        load(image(tmp_path, ri=truth))
    with pytest.raises(BadField, match=r"100\.0%"):
        load(image(tmp_path, ri=ri_volume() * 1e4))


def test_changed_since_identified(tmp_path):
    path = image(tmp_path)
    ticket = identify(path)
    (path / "more").write_text("1")
    with pytest.raises(Incomplete, match="changed"):
        read(ticket)
