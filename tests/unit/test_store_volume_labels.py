"""What a viewer needs of a kept tomogram: a window that shows the cell, its mask as a label image, its name and its date."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from wbcd.acquisition import ReadDefaults, identify, read
from wbcd.records import Cell, Prediction
from wbcd.store.volumes import display_window, image_problems, read_cell_mask, read_tomogram, write_tomogram
from wbcd.testing import make_acquisition

MEDIUM, CYTOPLASM, NUCLEUS, GRANULE = 1.337, 1.36, 1.38, 1.42
VOXEL_UM = (0.2, 0.1, 0.1)
MONOCYTE = Prediction("tiny@1", "monocyte", 0.93, {"monocyte": 0.93, "myelocyte": 0.07})


def a_cell(number: int = 1, shape: tuple[int, int, int] = (31, 60, 63), noise_ri: float = 5e-4) -> Cell:
    """A sphere of cytoplasm with a nucleus and one bright granule in noise; sizes that no factor divides."""
    rng = np.random.default_rng(number)
    z, y, x = (np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape))
    r_um = np.sqrt(((z - 15) * 0.2) ** 2 + ((y - 30) * 0.1) ** 2 + ((x - 31) * 0.1) ** 2)
    ri = np.where(r_um < 2.2, CYTOPLASM, MEDIUM) + np.where(r_um < 1.2, NUCLEUS - CYTOPLASM, 0)
    ri = np.where(r_um < 0.25, GRANULE, ri) + rng.normal(0, noise_ri, shape)
    return Cell(number, ri.astype(np.float32), r_um < 2.2, VOXEL_UM, MEDIUM, (3.0, 15.0, 16.0))


def written(root: Path, cell: Cell | None = None, **options: Any) -> Path:
    return write_tomogram(root, cell or a_cell(), acquisition=make_acquisition("a"), recipe_id="r1", **options)


def attributes(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]
    return found


def window_of(path: Path) -> dict[str, float]:
    (channel,) = attributes(path)["ome"]["omero"]["channels"]
    window: dict[str, float] = channel["window"]
    return window


# --- the window -------------------------------------------------------------------------------------------


def test_the_window_covers_the_cell_and_neither_overexposes_nor_wastes_it(tmp_path: Path) -> None:
    cell = a_cell()
    window = window_of(written(tmp_path, cell))
    inside = cell.ri[cell.mask]
    assert window["end"] == pytest.approx(np.percentile(inside, 99.9))
    assert window["start"] == pytest.approx(np.percentile(cell.ri, 1), abs=2e-4) == pytest.approx(MEDIUM, abs=2e-3)
    assert window["start"] <= np.percentile(inside, 1)
    assert np.mean(inside > window["end"]) < 0.002  # white without structure
    grey = (CYTOPLASM - window["start"]) / (window["end"] - window["start"])
    assert 0.2 < grey < 0.6  # neither black as the medium nor white as the granule
    assert window["min"] <= window["start"] < window["end"] <= window["max"]


def test_fill_far_below_the_medium_does_not_wash_the_cell_out() -> None:
    cell = a_cell()
    cell.ri[:, :10] = 0.0
    low, high = display_window(cell)
    assert low == pytest.approx(MEDIUM - 0.01)
    assert high > NUCLEUS


def test_the_fixed_window_is_a_choice(tmp_path: Path) -> None:
    window = window_of(written(tmp_path, window="fixed"))
    assert (window["start"], window["end"]) == (1.33, 1.42)


@pytest.mark.parametrize("value", [np.nan, 1.4])
def test_a_cell_that_has_no_range_has_the_fixed_window(value: float) -> None:
    cell = a_cell()
    cell.ri[...] = value
    assert display_window(cell) == (1.33, 1.42)


def test_voxels_without_a_value_do_not_spoil_the_window() -> None:
    cell = a_cell()
    whole = display_window(cell)
    cell.ri[15, 30, 31] = np.nan
    cell.ri[15, 30, 32] = np.inf
    assert display_window(cell) == pytest.approx(whole, abs=1e-3)


def test_without_a_mask_the_window_is_that_of_all_voxels() -> None:
    cell = a_cell()
    cell.mask[...] = False
    assert display_window(cell) == pytest.approx(np.percentile(cell.ri, (1, 99.9)), abs=2e-4)


def test_an_object_outside_the_usual_range_widens_the_slider(tmp_path: Path) -> None:
    cell = a_cell()
    cell.ri[...] += 0.2
    window = window_of(written(tmp_path, cell))
    assert window["max"] >= window["end"] > 1.5


# --- the mask ---------------------------------------------------------------------------------------------


def test_the_mask_comes_back_exactly(tmp_path: Path) -> None:
    cell = a_cell()
    np.testing.assert_array_equal(read_cell_mask(written(tmp_path, cell)), cell.mask)


@pytest.mark.parametrize(("number", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
def test_the_label_is_the_cells_number_at_every_level(tmp_path: Path, number: int, dtype: str) -> None:
    path = written(tmp_path, a_cell(number))
    for level in ("0", "1", "2"):
        values = zarr.open_array(str(path / "labels" / "cell" / level), mode="r")[...]
        assert (values.dtype, set(np.unique(values))) == (np.dtype(dtype), {0, number})


def test_every_level_of_the_mask_lies_on_that_of_the_image_and_keeps_the_volume(tmp_path: Path) -> None:
    cell = a_cell()
    path = written(tmp_path, cell)
    image, mask = (attributes(place)["ome"]["multiscales"][0] for place in (path, path / "labels" / "cell"))
    assert image["datasets"] == mask["datasets"]
    assert image["axes"] == mask["axes"]
    truth_fl = cell.mask.sum() * np.prod(VOXEL_UM)
    for dataset in mask["datasets"]:
        values = zarr.open_array(str(path / "labels" / "cell" / dataset["path"]), mode="r")[...]
        ri = zarr.open_array(str(path / dataset["path"]), mode="r")[...]
        assert values.shape == ri.shape
        voxel_fl = np.prod(dataset["coordinateTransformations"][0]["scale"])
        assert (values > 0).sum() * voxel_fl == pytest.approx(truth_fl, rel=0.03)


def test_it_is_ome_zarr_by_the_judgement_of_others(tmp_path: Path) -> None:
    path = written(tmp_path, prediction=MONOCYTE)
    image = Image.from_zarr(zarr.open_group(str(path), mode="r"))
    assert [dataset.path for dataset in image.attributes.ome.multiscales[0].datasets] == ["0", "1", "2"]
    labels = Labels.from_zarr(zarr.open_group(str(path / "labels"), mode="r"))
    assert labels.attributes.ome.labels == ["cell"]
    label = ImageLabel.from_zarr(zarr.open_group(str(path / "labels" / "cell"), mode="r"))
    (properties,) = label.attributes.ome.image_label.properties
    assert (properties.label_value, properties.label, properties.probability) == (1, "monocyte", 0.93)
    assert label.attributes.ome.image_label.source.image == "../../"


def test_our_own_reader_takes_it_as_any_other_image(tmp_path: Path) -> None:
    cell = a_cell()
    ticket, series = read(identify(written(tmp_path, cell)), defaults=ReadDefaults(accept_own_tomograms=True))
    (tomogram,) = series
    np.testing.assert_array_equal(tomogram.ri, cell.ri)
    assert (tomogram.voxel_um, tomogram.medium_ri, ticket.time_points) == (VOXEL_UM, pytest.approx(MEDIUM), 1)


@pytest.mark.parametrize("level", ["0", "1", "2"])
def test_a_damaged_mask_is_found_and_the_image_written_again(tmp_path: Path, level: str) -> None:
    path = written(tmp_path)
    (path / "labels" / "cell" / level / "c" / "0" / "0" / "0").unlink()
    assert image_problems(path) == [f"labels/cell/{level}/c/0/0/0 is missing"]
    (path / "manifest.json").unlink()
    (problem,) = image_problems(path)
    assert "0 of its 1 chunks" in problem
    assert written(tmp_path) == path
    assert image_problems(path) == []


def test_an_image_of_a_version_without_masks_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path)
    shutil.rmtree(path / "labels")
    (path / "manifest.json").unlink()
    assert image_problems(path) == []
    assert read_cell_mask(path) is None
    assert written(tmp_path) == path  # and is not made anew
    assert not (path / "labels").exists()


# --- what it was called, and when -------------------------------------------------------------------------


def test_label_probability_identity_and_date_are_in_our_namespace(tmp_path: Path) -> None:
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    path = written(tmp_path, a_cell(7), prediction=MONOCYTE)
    acquisition = make_acquisition("a")
    _, ours = read_tomogram(path)
    assert (ours["label"], ours["probability"], ours["model_id"]) == ("monocyte", 0.93, "tiny@1")
    assert ours["cell_id"] == f"{acquisition.content_id}-7"
    assert before <= dt.datetime.fromisoformat(ours["written_at"]) <= dt.datetime.now(dt.UTC)
    assert ours["acquired_at"] == acquisition.acquired_at
    assert attributes(path / "labels" / "cell")["wbcd"] == ours  # the mask alone says whose it is


def test_a_cell_that_was_not_classified_has_no_label(tmp_path: Path) -> None:
    path = written(tmp_path)
    _, ours = read_tomogram(path)
    assert (ours["label"], ours["probability"], ours["model_id"]) == (None, None, None)
    (properties,) = attributes(path / "labels" / "cell")["ome"]["image-label"]["properties"]
    assert properties == {"label-value": 1, "cell_id": ours["cell_id"]}
