"""The six parameters against closed forms, and against a measured HL60 leukocyte."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from helpers_morphology import MEDIUM, SYMMETRIC, as_tomogram, ellipsoid, grid, prolate_area, soft, sphere

from wbcd.morphology import find_cells, measure
from wbcd.morphology.measure import core_ri, sphericity
from wbcd.recipe import Recipe
from wbcd.records import Cell, Morphology, Tomogram

RECIPE = Recipe()


def only(tomogram: Tomogram) -> tuple[Cell, Morphology]:
    (cell,) = find_cells(tomogram, RECIPE)
    return cell, measure(cell, RECIPE)


@pytest.mark.parametrize("blur_um", [0.0, 0.05, 0.08, 0.15, 0.25])
@pytest.mark.parametrize("diameter_um", [4.0, 7.5, 10.0, 14.0])
def test_sphere_within_one_percent(diameter_um: float, blur_um: float) -> None:
    occupancy = sphere(diameter_um, offset_um=(0.07, -0.03, 0.02), blur_um=blur_um)
    cell, got = only(as_tomogram(occupancy))
    radius = diameter_um / 2
    assert got.volume_fl == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.005)
    assert got.surface_area_um2 == pytest.approx(4 * math.pi * radius**2, rel=0.01)
    assert got.sphericity == pytest.approx(1.0, abs=0.008)
    assert got.volume_half_contrast_fl == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.005)
    assert cell.lobes == 1
    assert not cell.touches_border


def test_masses_and_means_of_a_sharp_sphere() -> None:
    _, got = only(as_tomogram(sphere(8.0, blur_um=0.0), inside=1.37))
    volume = 4 / 3 * math.pi * 4.0**3
    # 0.2 mL/g: a departure of 0.033 is 16.5 g/dL.
    assert got.protein_density_g_dl == pytest.approx(16.5, rel=1e-4)
    assert got.dry_mass_pg == pytest.approx(0.165 * volume, rel=0.005)
    assert got.dry_mass_half_contrast_pg == pytest.approx(0.165 * volume, rel=0.005)
    assert got.dry_mass_total_pg == pytest.approx(0.165 * volume, rel=0.005)
    assert got.mean_ri == pytest.approx(1.37, abs=1e-6)
    assert got.max_ri == pytest.approx(1.37, abs=1e-6)


@pytest.mark.parametrize("blur_um", [0.1, 0.3])
def test_half_contrast_and_total_mass_do_not_move_with_the_blur(blur_um: float) -> None:
    """The threshold is far below half contrast here, so its volume grows with the blur; the sturdy ones stay."""
    z, y, x = grid((100, 150, 150))
    # A ball convolved with a Gaussian keeps its integral; near its surface it is an erf edge (radius >> blur).
    _, got = only(as_tomogram(soft(3.75 - np.sqrt(z * z + y * y + x * x), blur_um), inside=1.40))
    volume = 4 / 3 * math.pi * 3.75**3
    assert got.volume_half_contrast_fl == pytest.approx(volume, rel=0.005)
    # An erf edge on a ball adds 4 pi R sigma^2 to the integral: exact for this phantom.
    assert got.dry_mass_total_pg == pytest.approx(0.315 * (volume + 4 * math.pi * 3.75 * blur_um**2), rel=0.006)
    assert got.volume_fl > volume * 1.005


def test_spheroid_area_and_sphericity() -> None:
    a, c = 3.0, 5.0
    _, got = only(as_tomogram(ellipsoid((a, a, c), blur_um=0.1)))
    area, volume = prolate_area(a, c), 4 / 3 * math.pi * a * a * c
    assert got.surface_area_um2 == pytest.approx(area, rel=0.01)
    assert got.volume_fl == pytest.approx(volume, rel=0.01)
    assert got.sphericity == pytest.approx(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area, abs=0.008)


def test_density_volume_and_mass_belong_together() -> None:
    _, got = only(as_tomogram(ellipsoid((3.5, 4.0, 5.0)), inside=1.375))
    assert got.dry_mass_pg == pytest.approx(got.volume_fl * got.protein_density_g_dl / 100, rel=1e-6)
    assert got.protein_density_g_dl == pytest.approx((got.mean_ri - MEDIUM) / 0.2 * 100, rel=1e-6)
    assert got.sphericity == pytest.approx(sphericity(got.volume_fl, got.surface_area_um2), rel=1e-12)


def test_noise_and_medium_offset_do_not_turn_into_total_mass() -> None:
    clean = as_tomogram(sphere(8.0), inside=1.37)
    noise = np.random.default_rng(3).normal(0.001, 0.002, clean.ri.shape).astype(np.float32)
    _, without = only(clean)
    _, with_noise = only(dataclasses.replace(clean, ri=clean.ri + noise))
    assert with_noise.dry_mass_total_pg == pytest.approx(without.dry_mass_total_pg, rel=0.01)


def test_core_ignores_nucleoli_and_the_edge() -> None:
    occupancy = sphere(8.0, blur_um=0.3) + 0.5 * sphere(2.0, blur_um=0.1)
    ri = (MEDIUM + 0.03 * occupancy).astype(np.float32)
    assert core_ri(ri, ri > 1.35, (0.2, 0.1, 0.1)) == pytest.approx(1.367, abs=2e-4)


def test_an_empty_mask_has_no_numbers_but_does_not_fail() -> None:
    shape = (10, 12, 12)
    empty = Cell(1, np.full(shape, MEDIUM, np.float32), np.zeros(shape, bool), (0.2, 0.1, 0.1), MEDIUM, (0.0, 0.0, 0.0))
    got = measure(empty, RECIPE)
    assert got.volume_fl == 0.0
    assert got.dry_mass_pg == got.dry_mass_total_pg == got.surface_area_um2 == 0.0
    assert math.isnan(got.mean_ri)
    assert math.isnan(got.sphericity)


def test_a_measured_hl60_leukocyte(shared_data: Path) -> None:
    """Reference: the same file's voxels above 1.35 counted at its own pitch, 1,214 fL and 116.8 pg."""
    with np.load(shared_data / "hl60" / "hl60_ri.npz") as data:
        pitch = float(data["voxel_um"])
        tomogram = Tomogram(data["ri"].astype(np.float32), (pitch, pitch, pitch), medium_ri=1.335)
    cell, got = only(tomogram)
    assert got.volume_fl == pytest.approx(1214.0, rel=0.01)
    assert got.dry_mass_pg == pytest.approx(116.8, rel=0.01)
    assert got.max_ri == pytest.approx(float(tomogram.ri.max()), abs=2e-4)
    assert not cell.touches_border
    assert cell.lobes == 1
    assert cell.solidity > 0.95
    # All of the file's departure, holes and dim rim included, lies within the support; its halo is negative beyond.
    assert got.dry_mass_total_pg > got.dry_mass_pg


def test_symmetric_phantom_puts_the_threshold_at_half_contrast() -> None:
    assert pytest.approx(0.5 * (MEDIUM + SYMMETRIC)) == RECIPE.morphology.threshold_ri


def test_the_fast_modes_widening_is_taken_off_the_half_contrast_volume_alone() -> None:
    """0.58 of the contrast in every radius; the volume by the recipe's threshold is what the tomogram shows."""
    cell, read = only(as_tomogram(sphere(6.0)))
    fast = measure(dataclasses.replace(cell, mode="fast"), RECIPE)
    edge = float(np.median(cell.ri[cell.mask])) - cell.medium_ri
    assert fast.volume_half_contrast_fl == pytest.approx(read.volume_half_contrast_fl / (1 + 0.58 * edge) ** 3, rel=2e-3)
    assert fast.volume_fl == read.volume_fl
    assert fast.dry_mass_half_contrast_pg == read.dry_mass_half_contrast_pg


def test_uncertainties_come_from_the_held_out_frames_alone() -> None:
    cell, read = only(as_tomogram(sphere(6.0)))
    assert np.isnan([read.mean_ri_uncertainty, read.volume_uncertainty_fl, read.dry_mass_uncertainty_pg]).all()
    calm, torn = (
        measure(dataclasses.replace(cell, mode="fast", held_out_residual=residual), RECIPE) for residual in (0.05, 0.3)
    )
    assert 0.005 * calm.volume_half_contrast_fl < calm.volume_uncertainty_fl < 0.02 * calm.volume_half_contrast_fl
    assert torn.volume_uncertainty_fl > 1.2 * calm.volume_uncertainty_fl
    assert torn.dry_mass_uncertainty_pg > calm.dry_mass_uncertainty_pg
    assert torn.mean_ri_uncertainty > calm.mean_ri_uncertainty
    refined = measure(dataclasses.replace(cell, mode="accurate", held_out_residual=0.03), RECIPE)
    assert 0.001 * refined.volume_half_contrast_fl < refined.volume_uncertainty_fl < 0.7 * calm.volume_uncertainty_fl
