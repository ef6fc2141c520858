"""Pictures: small, legible, with the right pixels in the right place."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from helpers_morphology import as_tomogram, ellipsoid, rough, sphere
from PIL import Image

from wbcd.errors import StoreError
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.records import Cell
from wbcd.report import figures
from wbcd.report.figures import VALUES, representative_cells, thumbnail_png, typical_rows

RECIPE = Recipe()


@pytest.fixture(scope="module")
def cell() -> Cell:
    tomogram = as_tomogram(rough(9.5, 0.1, 1, waves=(4, 10)), inside=1.375)
    tomogram.ri[:] += np.abs(np.random.default_rng(1).normal(0, 5e-4, tomogram.ri.shape)).astype(np.float32)
    return find_cells(tomogram, RECIPE)[0]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def row(label: str, thumbnail: bytes | None, **values: float) -> dict[str, object]:
    typical = {"volume_fl": 263.0, "surface_area_um2": 232.0, "sphericity": 0.854, "dry_mass_pg": 41.2}
    more = {"protein_density_g_dl": 15.67, "mean_ri": 1.368, "probability": 0.93}
    return {"label": label, "thumbnail_png": thumbnail, "sample": "donor-1", "number": 1, **typical, **more, **values}


def test_thumbnail_is_a_small_palette_png(cell: Cell) -> None:
    png = thumbnail_png(cell)
    image = opened(png)
    assert image.format == "PNG"
    assert image.mode == "P"
    assert len(png) < 30_000
    assert max(image.size) < 320


def test_projections_lie_where_they_belong() -> None:
    """An ellipsoid long in y: tall in xy, as tall in yz (to the right), not in xz (below); z at the same scale."""
    (long_in_y,) = find_cells(as_tomogram(ellipsoid((2.0, 6.0, 3.0)), inside=1.39), RECIPE)
    index = np.asarray(opened(thumbnail_png(long_in_y)))
    gap = index.shape[0] - 150 - 150
    panels = {"xy": index[:150, :150], "yz": index[:150, 150 + gap :], "xz": index[150 + gap :, :150]}
    # Levels of the first half of the palette are RI; 1.36 is level 49 of 128.
    extents = {}
    for name, panel in panels.items():
        bright = (panel > 49) & (panel < 128)
        rows, columns = np.nonzero(bright.any(axis=1))[0], np.nonzero(bright.any(axis=0))[0]
        extents[name] = (0.1 * (rows[-1] - rows[0] + 1), 0.1 * (columns[-1] - columns[0] + 1))
    assert extents["xy"] == pytest.approx((12.0, 6.0), abs=0.4)
    assert extents["yz"] == pytest.approx((12.0, 4.0), abs=0.4)
    assert extents["xz"] == pytest.approx((4.0, 6.0), abs=0.4)


def test_scale_bar_is_five_micrometres(cell: Cell) -> None:
    index = np.asarray(opened(thumbnail_png(cell)))[:150, :150]
    longest = max(int((line == 255).sum()) for line in index)
    assert longest == 50


def test_window_is_the_same_for_all_cells_and_clips() -> None:
    shape = (20, 30, 30)
    levels = []
    for value in (1.30, 1.335, 1.3678, 1.40, 1.50, math.nan):
        cell = Cell(1, np.full(shape, value, np.float32), np.zeros(shape, bool), (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))
        levels.append(int(np.asarray(opened(thumbnail_png(cell)))[29, 0]))
    assert levels == [0, 0, 64, 127, 127, 0]


def test_the_typical_cell_is_the_one_nearest_to_the_medians() -> None:
    rows = [row("T", b"x", volume_fl=v, dry_mass_pg=v / 6, number=n) for n, v in enumerate((150.0, 255.0, 262.0, 270.0, 900.0))]
    (typical,) = typical_rows(rows)
    assert typical.row["number"] == 2
    assert typical.count == 5
    assert typical.medians["volume_fl"] == 262.0


def test_rows_that_cannot_be_shown_are_passed_over() -> None:
    rows = [
        row("T", None),
        row("T", b"x", mean_ri=math.nan),
        row("", b"x"),
        {"label": "T"},
        {**row("T", b"x"), "counted_as": "unclassified"},
        {**row("T", b"x"), "volume_fl": None},
    ]
    assert typical_rows(rows) == []


def test_representative_cells_writes_one_card_a_class(cell: Cell, tmp_path: Path) -> None:
    png = thumbnail_png(cell)
    rows = [
        row(label, png, volume_fl=200.0 + n) for n in range(3) for label in ("B cell", "T cell", "Monocyte", "Myelocyte", "Odd")
    ]
    path = representative_cells(rows, tmp_path / "new" / "cells.png", simulated=True)
    image = opened(path.read_bytes())
    four, five = 1680, image.size
    assert five[0] == four  # at most four in a row; the fifth begins another
    one = opened(representative_cells(rows[:1], tmp_path / "one.png").read_bytes())
    assert five[1] > 1.7 * one.size[1]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cells.png"]  # nothing temporary is left


def test_simulated_cells_are_called_so(cell: Cell, tmp_path: Path) -> None:
    rows = [row("B cell", thumbnail_png(cell))]
    plain = opened(representative_cells(rows, tmp_path / "a.png").read_bytes())
    marked = opened(representative_cells(rows, tmp_path / "b.png", simulated=True).read_bytes())
    changed = np.argwhere(np.asarray(plain) != np.asarray(marked))
    assert changed[:, 0].max() < 60  # in the head of the sheet, nowhere else


def test_no_cells_yet_is_a_picture_too(tmp_path: Path) -> None:
    assert opened(representative_cells([], tmp_path / "none.png").read_bytes()).size[0] > 400


def test_an_unwritable_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        representative_cells([], tmp_path / "file" / "cells.png")


def test_every_value_has_a_name_and_the_lettering_is_in_the_font() -> None:
    assert len(VALUES) == 6
    assert all((title + unit).isascii() for _, title, unit, _ in VALUES)


def test_a_cell_of_another_crop_is_drawn_too() -> None:
    body = as_tomogram(sphere(4.0, shape=(40, 64, 96)))
    small = Cell(1, body.ri, body.ri > 1.35, (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))
    assert opened(thumbnail_png(small)).size == (96 + 2 + 80, 64 + 2 + 80)


def test_a_card_names_the_cell_by_its_id_where_it_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(figures.ImageDraw.ImageDraw, "text", lambda self, at, words, *a, **k: drawn.append(words))
    png = figures._png(figures.Image.new("L", (8, 8)))
    figures.representative_cells([row("T", png, number=3, cell_id=1204)], tmp_path / "known.png")
    assert "the only cell, sample donor-1, cell id 1204" in drawn
    figures.representative_cells([row("T", png, number=3)], tmp_path / "unknown.png")
    assert "the only cell, sample donor-1, cell 3 of its file" in drawn
