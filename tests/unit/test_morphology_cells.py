"""Finding cells: how many, where, cut by what, of how many bodies; and what damaged voxels do (nothing)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from helpers_morphology import MEDIUM, PITCH, as_tomogram, ellipsoid, grid, rough, soft, sphere
from scipy import ndimage

from wbcd.morphology import find_cells, measure
from wbcd.morphology.resample import axis_weights, resample_window
from wbcd.morphology.shape import EVERY_NEIGHBOUR, fill_holes
from wbcd.recipe import Recipe
from wbcd.records import Tomogram, Triple

RECIPE = Recipe()


def spheres(*bodies: tuple[Triple, float], shape: tuple[int, int, int] = (100, 150, 150), pitch: Triple = PITCH) -> np.ndarray:
    """Occupancy of several spheres ((z, y, x) um from the middle, diameter), blurred and joined."""
    return np.maximum.reduce([sphere(d, offset_um=at, shape=shape, pitch=pitch) for at, d in bodies])


def test_an_empty_field_has_no_cells() -> None:
    assert find_cells(as_tomogram(np.zeros((20, 30, 30))), RECIPE) == []


def test_small_objects_are_dropped_by_volume() -> None:
    # 2.5 um: 8.2 fL, below the recipe's 10; 3 um: 14.1 fL, above.
    given = spheres(((0, -4, 0), 2.5), ((0, 4, 0), 3.0))
    (cell,) = find_cells(as_tomogram(given), RECIPE)
    assert cell.mask.sum() * 0.002 == pytest.approx(14.1, rel=0.03)


def test_cells_come_in_reading_order_at_their_places() -> None:
    shape = (100, 300, 300)
    given = spheres(((0.0, 6.0, -8.0), 6.0), ((1.0, -7.0, 5.0), 7.0), ((0.0, 6.0, 7.0), 8.0), shape=shape)
    cells = find_cells(as_tomogram(given, origin_um=(1.0, 2.0, 3.0)), RECIPE, first_number=5)
    assert [cell.number for cell in cells] == [5, 6, 7]
    # The middle voxel lies at (50, 150, 150) pitches, plus the origin.
    expected = [(12.0, 10.0, 23.0), (11.0, 23.0, 10.0), (11.0, 23.0, 25.0)]
    for cell, at in zip(cells, expected, strict=True):
        assert cell.centre_um == pytest.approx(at, abs=0.06)
        assert cell.ri.shape == cell.mask.shape == RECIPE.morphology.crop_shape
        assert ndimage.center_of_mass(cell.mask) == pytest.approx((50, 75, 75), abs=0.6)


def test_neighbours_are_replaced_by_the_medium_with_their_skirts() -> None:
    alone = as_tomogram(sphere(6.0, offset_um=(0, -3.5, 0)))
    both = as_tomogram(spheres(((0, -3.5, 0), 6.0), ((0, 3.5, 0), 6.0)))
    (expected,), cells = find_cells(alone, RECIPE), find_cells(both, RECIPE)
    assert len(cells) == 2
    np.testing.assert_array_equal(cells[0].mask, expected.mask)
    assert np.abs(cells[0].ri - expected.ri).max() < 1e-3  # 4 % of the contrast, where the two skirts meet
    assert measure(cells[0], RECIPE).dry_mass_total_pg == pytest.approx(measure(expected, RECIPE).dry_mass_total_pg, rel=2e-3)


def test_a_vacuole_belongs_to_the_cell_and_a_large_pale_region_does_not() -> None:
    outer = sphere(9.0)
    vacuole = np.clip(outer - sphere(2.0), 0, 1)
    pale = np.clip(outer - 0.9 * sphere(4.5), 0, 1)
    volumes = [measure(find_cells(as_tomogram(each), RECIPE)[0], RECIPE) for each in (outer, vacuole, pale)]
    assert volumes[1].volume_fl == pytest.approx(volumes[0].volume_fl, rel=1e-3)
    assert volumes[1].dry_mass_pg < volumes[0].dry_mass_pg
    assert volumes[2].volume_fl < volumes[0].volume_fl - 40
    # The surface is the outer one in every case.
    assert [v.surface_area_um2 for v in volumes] == pytest.approx([volumes[0].surface_area_um2] * 3, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_cell_cut_by_the_volume_touches_the_border(axis: int, side: int) -> None:
    offset = [0.0, 0.0, 0.0]
    offset[axis] = side * (10.0 if axis == 0 else 7.5)
    (cell,) = find_cells(as_tomogram(sphere(6.0, offset_um=(offset[0], offset[1], offset[2]))), RECIPE)
    assert cell.touches_border


def test_the_field_of_view_cuts_before_the_volume_does() -> None:
    given = as_tomogram(sphere(6.0), origin_um=(0.0, 10.0, 20.0))  # the cell spans y 14.5-20.5 and x 24.5-30.5
    whole = dataclasses.replace(given, field_of_view_um=(0.0, 32.0, 0.0, 32.0))
    cut_y = dataclasses.replace(given, field_of_view_um=(0.0, 20.0, 0.0, 32.0))
    cut_x = dataclasses.replace(given, field_of_view_um=(0.0, 32.0, 25.0, 57.0))
    touching = [find_cells(each, RECIPE)[0].touches_border for each in (whole, cut_y, cut_x)]
    assert touching == [False, True, True]


@pytest.mark.parametrize(("from_voxel", "touches"), [(75, True), (104, True), (110, False)])
def test_what_was_not_measured_cuts_as_the_edge_does(from_voxel: int, touches: bool) -> None:
    """The fill of a stitched field from a column on: through the cell, along its side, beyond it."""
    whole = as_tomogram(sphere(6.0))  # x from 45 to 105
    fill = np.zeros(whole.ri.shape, np.bool_)
    fill[:, :, from_voxel:] = True
    ri = np.where(fill, np.float32(MEDIUM), whole.ri)
    (cell,) = find_cells(dataclasses.replace(whole, ri=ri, fill=fill), RECIPE)
    assert cell.touches_border is touches
    single = np.zeros_like(fill)
    single[50, 75, 75] = True
    (cell,) = find_cells(dataclasses.replace(whole, fill=single), RECIPE)
    assert not cell.touches_border, "one voxel that was not measured cuts nothing off"


def test_a_splinter_of_a_cut_object_is_cut() -> None:
    given = as_tomogram(sphere(6.0), origin_um=(0.0, 10.0, 20.0), field_of_view_um=(0.0, 64.0, 0.0, 64.0))
    over, beside = (0.0, 15.0, 22.0, 40.0), (0.0, 14.0, 22.0, 40.0)
    touching = [find_cells(dataclasses.replace(given, cut_um=(box,)), RECIPE)[0].touches_border for box in (over, beside)]
    assert touching == [True, False]


@pytest.mark.parametrize(("gap", "lobes"), [(0.1, [2, 2]), (0.8, [1, 1])])
def test_cells_that_all_but_touch_count_as_lobes_of_one_another(gap: float, lobes: list[int]) -> None:
    first, second = (sphere(5.0, offset_um=(0.0, 0.0, side * (5.0 + gap) / 2), shape=(100, 150, 200)) for side in (-1, 1))
    cells = find_cells(as_tomogram(np.maximum(first, second)), RECIPE)
    assert [cell.lobes for cell in cells] == lobes


def test_a_cell_larger_than_the_crop_is_flagged() -> None:
    (cell,) = find_cells(as_tomogram(ellipsoid((4.0, 9.0, 4.0), shape=(100, 220, 150))), RECIPE)
    assert cell.touches_border


def test_an_off_centre_tail_is_kept_in_the_crop_when_it_fits() -> None:
    z, y, x = grid((100, 260, 150))
    body = sphere(6.0, offset_um=(0, -5, 0), shape=(100, 260, 150))
    tail = soft(0.6 - np.sqrt(z * z + x * x) + 0 * y, 0.1) * (y > -4) * (y < 5.5)
    (cell,) = find_cells(as_tomogram(np.maximum(body, tail)), RECIPE)
    assert not cell.touches_border


@pytest.mark.parametrize("radius_um", [2.5, 3.5, 4.5])
@pytest.mark.parametrize("apart", [1.4, 1.6, 1.9])
def test_two_cells_grown_together_are_two_lobes(radius_um: float, apart: float) -> None:
    half = radius_um * apart / 2
    given = spheres(((0, -half * 0.8, -half * 0.6), 2 * radius_um), ((0, half * 0.8, half * 0.6), 2 * radius_um))
    assert [cell.lobes for cell in find_cells(as_tomogram(given), RECIPE)] == [2]


def test_a_small_cell_on_a_large_one_is_two_lobes_and_a_platelet_is_not() -> None:
    small = spheres(((0, -1.5, 0), 8.0), ((0, 3.9, 0), 5.0))
    platelet = spheres(((0, -1.5, 0), 8.0), ((0, 3.1, 0), 2.4))
    assert [find_cells(as_tomogram(each), RECIPE)[0].lobes for each in (small, platelet)] == [2, 1]


@pytest.mark.parametrize("semi_axes", [(3.0, 3.0, 6.0), (2.5, 4.0, 6.5), (4.0, 4.0, 4.0), (2.0, 6.0, 6.0)])
def test_an_oval_is_one_body(semi_axes: Triple) -> None:
    (cell,) = find_cells(as_tomogram(ellipsoid(semi_axes)), RECIPE)
    assert cell.lobes == 1
    assert cell.solidity > 0.97


@pytest.mark.parametrize(
    ("waves", "amplitude"), [((2, 7), 0.1), ((2, 7), 0.2), ((5, 14), 0.1), ((5, 14), 0.15), ((8, 20), 0.1)]
)
def test_a_rough_monocyte_is_one_body_and_accepted(waves: tuple[float, float], amplitude: float) -> None:
    # From an uneven outline to fine ruffles: sphericities of 0.93 down to 0.69; the published monocyte's is 0.725 +- 0.076.
    cell = max(find_cells(as_tomogram(rough(9.5, amplitude, 1, waves=waves)), RECIPE), key=lambda c: int(c.mask.sum()))
    assert cell.lobes == 1
    assert cell.solidity > RECIPE.quality.min_solidity
    assert 0.65 < measure(cell, RECIPE).sphericity < 0.95


def test_touching_cells_are_less_solid() -> None:
    (cell,) = find_cells(as_tomogram(spheres(((0, -2.9, 0), 6.0), ((0, 2.9, 0), 6.0))), RECIPE)
    # Two touching spheres fill 0.8 of their hull, the cylinder with rounded ends: (8/3) / (4/3 + 2).
    assert cell.solidity == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -6.9e37, 1e30])
def test_damaged_voxels_are_counted_and_never_propagate(bad: float) -> None:
    clean = as_tomogram(sphere(8.0), inside=1.37)
    damaged = dataclasses.replace(clean, ri=clean.ri.copy())
    damaged.ri[50, 75, 70:74] = bad  # inside the cell
    damaged.ri[5, 5, 5] = bad  # far away: no concern of the cell's
    (cell,) = find_cells(damaged, RECIPE)
    assert cell.non_physical_voxels == 4
    assert np.isfinite(cell.ri).all()
    assert cell.ri.max() < 1.38
    got, expected = (measure(find_cells(each, RECIPE)[0], RECIPE) for each in (damaged, clean))
    assert got.volume_fl == expected.volume_fl
    assert got.dry_mass_pg == pytest.approx(expected.dry_mass_pg, rel=1e-3)
    assert got.surface_area_um2 == pytest.approx(expected.surface_area_um2, rel=1e-6)


@pytest.mark.parametrize("pitch", [(0.19, 0.09, 0.09), (0.839, 0.196, 0.196), (0.1, 0.05, 0.05), (0.139, 0.139, 0.139)])
def test_other_pitches_give_the_same_cell(pitch: Triple) -> None:
    shape = tuple(math.ceil(span / p) for span, p in zip((16.0, 12.0, 12.0), pitch, strict=True))
    given = as_tomogram(sphere(8.0, blur_um=0.35, shape=(shape[0], shape[1], shape[2]), pitch=pitch), pitch=pitch)
    (cell,) = find_cells(given, RECIPE)
    got = measure(cell, RECIPE)
    assert cell.voxel_um == PITCH
    assert got.volume_fl == pytest.approx(4 / 3 * math.pi * 64, rel=0.015)
    assert got.surface_area_um2 == pytest.approx(4 * math.pi * 16, rel=0.015)
    assert got.sphericity == pytest.approx(1.0, abs=0.01)


def test_equal_pitch_copies_voxels_unchanged() -> None:
    given = as_tomogram(sphere(8.0, offset_um=(0.3, -0.24, 0.11)))
    given.ri[:] += np.random.default_rng(0).normal(0, 1e-4, given.ri.shape).astype(np.float32)
    (cell,) = find_cells(given, RECIPE)
    z, y, x = (round(c / p) for c, p in zip(cell.centre_um, PITCH, strict=True))
    part = given.ri[z - 20 : z + 20, y - 40 : y + 40, x - 40 : x + 40]
    np.testing.assert_allclose(cell.ri[30:70, 35:115, 35:115], part, atol=3e-7)


def test_downsampling_does_not_alias() -> None:
    stripes = np.zeros((8, 8, 400), np.float32)
    stripes[:, :, ::2] = 1.0  # the finest pattern there is; at twice the pitch nothing of it may be left
    result = resample_window(stripes, (0.2, 0.1, 0.05), (4.0, 4.0, 200.0), (4, 4, 100), PITCH)
    np.testing.assert_allclose(result, 0.5, atol=0.02)


def test_resampling_is_exact_for_parabolas() -> None:
    positions = np.linspace(3.2, 16.7, 11)
    weights = axis_weights(20, positions, 0.7)
    np.testing.assert_allclose(weights @ np.arange(20.0) ** 2, positions**2, rtol=1e-5)


def test_fill_holes_agrees_with_scipy() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(20, 30, 30)), 1.2) > -0.1
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    assert not fill_holes(np.zeros((3, 3, 3), bool)).any()
    assert fill_holes(np.ones((3, 3, 3), bool)).all()


def test_diagonal_neighbours_are_one_object() -> None:
    corner = np.zeros((4, 4, 4), bool)
    corner[:2, :2, :2] = corner[2:, 2:, 2:] = True
    assert ndimage.label(corner, EVERY_NEIGHBOUR)[1] == 1


def test_input_is_left_untouched() -> None:
    given = as_tomogram(spheres(((0, -3.5, 0), 6.0), ((0, 3.5, 0), 6.0)))
    given.ri[50, 40, 75] = np.nan
    before = given.ri.copy()
    find_cells(given, RECIPE)
    np.testing.assert_array_equal(given.ri, before)


def test_medium_is_the_tomograms_own_and_the_threshold_absolute() -> None:
    given = Tomogram((1.335 + 0.03 * sphere(8.0, blur_um=0.0)).astype(np.float32), PITCH, medium_ri=1.335)
    (cell,) = find_cells(given, RECIPE)
    assert cell.medium_ri == 1.335
    assert cell.ri[0, 0, 0] == pytest.approx(1.335)
    assert measure(cell, RECIPE).protein_density_g_dl == pytest.approx(15.0, rel=1e-4)
    assert MEDIUM != 1.335
