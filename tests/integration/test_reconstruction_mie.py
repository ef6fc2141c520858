"""Holograms of spheres from the exact judge -> RI: the figures that the main job promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_mie import Rig, Sphere, fields, holograms
from numpy.typing import NDArray

from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import measure_fringes, measure_illumination, reconstruct, retrieve_fields
from wbcd.records import HologramStack, Optics, Tomogram

OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)
SPHERE = Sphere((3.75,), (1.370,), (1.0, -0.5, 1.5))


@pytest.fixture(scope="module")
def stack() -> HologramStack:
    rig = Rig()
    rng = np.random.default_rng(20260101)
    w = fields(SPHERE, rig)
    return HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)


@pytest.fixture(scope="module")
def tomogram(stack: HologramStack) -> Tomogram:
    (found,) = reconstruct(retrieve_fields(stack, Recipe()), Recipe())
    return found


def distance(tomogram: Tomogram, centre: tuple[float, float, float]) -> NDArray[np.float64]:
    z, y, x = (
        np.arange(n) * pitch + origin - c
        for n, pitch, origin, c in zip(tomogram.ri.shape, tomogram.voxel_um, tomogram.origin_um, centre, strict=True)
    )
    return np.sqrt(z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2)


def test_illumination_is_measured_to_a_twentieth_of_a_bin(stack: HologramStack) -> None:
    assert stack.reference is not None
    _, k_in = measure_illumination(stack.reference, OPTICS, 0)
    bin_rad_um = 2 * np.pi / (512 * 0.0625)
    assert np.sqrt(np.mean((k_in - Rig().k_in()) ** 2)) < 0.05 * bin_rad_um


def test_fringe_report_of_good_frames(stack: HologramStack) -> None:
    report = measure_fringes(stack)
    assert report.contrast.min() > 0.4
    assert report.sideband_snr.min() > 100
    assert report.saturated_fraction.max() < 1e-3
    np.testing.assert_allclose(np.array(report.carrier_rad_um) / (2 * np.pi), (5.03, 4.96), atol=0.01)


def test_the_promised_figures_on_an_exact_sphere(tomogram: Tomogram) -> None:
    contrast = tomogram.ri - 1.337
    # The centre of the found sphere: Rytov moves it 0.3 um along the beam (a sphere is a lens), laterally not at all.
    inside = contrast > 0.0165
    positions = np.argwhere(inside) * tomogram.voxel_um + tomogram.origin_um
    centre = positions.mean(0)
    np.testing.assert_allclose(centre[1:], (15.5, 17.0), atol=0.05)
    assert abs(centre[0] - 1.5) < 0.4
    voxel = np.prod(tomogram.voxel_um)
    core = contrast[distance(tomogram, tuple(centre)) < 2.5].mean()
    volume = inside.sum() * voxel
    mass = contrast[inside].sum() * voxel / 0.2
    spread = positions.std(0)
    assert core == pytest.approx(0.033, rel=0.01)
    assert volume == pytest.approx(SPHERE.volume_fl, rel=0.08)
    assert mass == pytest.approx(SPHERE.mass_pg(1.337), rel=0.03)
    assert 0.96 < spread[0] / np.sqrt(spread[1] * spread[2]) < 1.04


def test_the_report_says_how_it_went(tomogram: Tomogram) -> None:
    assert tomogram.report is not None
    assert tomogram.report.focus_um == pytest.approx(1.5, abs=0.3)
    assert tomogram.report.residue_count == 0
    assert tomogram.report.residual < 0.1
    assert tomogram.report.frame_shift_um.max() < 0.1


def test_two_cells_at_different_heights_are_each_brought_into_focus() -> None:
    """One focus between the two would make one 11 % too large and the other 12 % too small."""
    rig, rng = Rig(frames=25), np.random.default_rng(3)
    pair = [Sphere((2.6,), (1.37,), (side * 6.0, 0.0, side * 1.5)) for side in (-1, 1)]
    w = sum((fields(sphere, rig) - 1 for sphere in pair), start=np.ones(1))
    both = HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)
    (found,) = reconstruct(retrieve_fields(both, Recipe()), Recipe())
    cells = sorted(find_cells(found, Recipe()), key=lambda cell: cell.centre_um[2])
    assert len(cells) == 2
    for cell, sphere in zip(cells, pair, strict=True):
        assert cell.centre_um[0] == pytest.approx(sphere.centre_um[2], abs=0.4)
        measured = measure(cell, Recipe())
        assert measured.volume_half_contrast_fl == pytest.approx(sphere.volume_fl, rel=0.03)
        assert measured.dry_mass_half_contrast_pg == pytest.approx(sphere.mass_pg(1.337), rel=0.03)


def test_a_small_cell_beside_a_large_one_is_whole() -> None:
    """Their centre of mass lies in the large one: a window about it would cut the small one, which was then not counted."""
    rig, rng = Rig(frames=25), np.random.default_rng(4)
    pair = [Sphere((4.8,), (1.37,), (-2.5, 0.0, 0.0)), Sphere((2.6,), (1.37,), (5.9, 0.5, 0.0))]
    # Oblique light passes through both: their fields multiply.
    w = np.prod([fields(sphere, rig) for sphere in pair], axis=0)
    both = HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)
    (found,) = reconstruct(retrieve_fields(both, Recipe()), Recipe())
    cells = sorted(find_cells(found, Recipe()), key=lambda cell: cell.centre_um[2])
    assert [cell.touches_border for cell in cells] == [False, False]
    for cell, sphere in zip(cells, pair, strict=True):
        assert measure(cell, Recipe()).volume_half_contrast_fl == pytest.approx(sphere.volume_fl, rel=0.03)


def test_without_a_reference_the_background_is_fitted(stack: HologramStack, tomogram: Tomogram) -> None:
    (found,) = reconstruct(retrieve_fields(replace(stack, reference=None), Recipe()), Recipe())
    here, there = (found.ri - 1.337).sum(), (tomogram.ri - 1.337).sum()
    assert here == pytest.approx(there, rel=0.05)


def test_the_other_sideband_gives_the_same_cell(stack: HologramStack, tomogram: Tomogram) -> None:
    # A transposed reference arm: fringes mirrored, so that the search finds the conjugate order.
    assert stack.reference is not None
    mirrored = replace(stack, holograms=stack.holograms[:, :, ::-1], reference=stack.reference[:, :, ::-1])
    (found,) = reconstruct(retrieve_fields(mirrored, Recipe()), Recipe())
    assert (found.ri - 1.337).sum() == pytest.approx((tomogram.ri - 1.337).sum(), rel=0.02)


def test_lost_frames_are_dropped_and_named(stack: HologramStack) -> None:
    frames = stack.holograms.copy()
    frames[[7, 30]] = 0
    found = retrieve_fields(replace(stack, holograms=frames), Recipe())
    assert len(found.w) == 47
    assert not {7, 30} & set(found.kept.tolist())


def test_a_lost_normal_frame_is_replaced_by_the_centre_of_the_illumination(stack: HologramStack) -> None:
    """The carrier then comes from the circle that the other frames' peaks lie on: within a hundredth of NA / lambda."""
    whole = retrieve_fields(stack, Recipe())
    frames = stack.holograms.copy()
    frames[0] = 0
    found = retrieve_fields(replace(stack, holograms=frames), Recipe())
    assert 0 not in found.kept.tolist()
    assert len(found.w) == len(whole.w) - 1
    largest = 2 * np.pi * stack.optics.objective_na / stack.optics.wavelength_um
    others = whole.k_in_rad_um[np.isin(whole.kept, found.kept)]
    assert np.abs(found.k_in_rad_um - others).max() < 0.01 * largest


def test_an_empty_field_gives_no_tomogram(stack: HologramStack) -> None:
    assert stack.reference is not None
    empty = replace(stack, holograms=stack.reference)
    assert reconstruct(retrieve_fields(empty, Recipe()), Recipe()) == []
