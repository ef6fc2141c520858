"""Donors and sessions of the simulated sets: what differs from one to the next, and by how much."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.simulation.cells import RI_INCREMENT_ML_G, Phantom, sample_phantom
from wbcd.simulation.fast import half_resolution
from wbcd.training.simulated import (
    DONOR_DENSITY,
    DONOR_GRANULARITY,
    DONOR_VOLUME,
    MEDIUM_SD,
    of_donor,
    phantom_of,
    simulate_cell,
)


def test_donors_differ_by_the_stated_spreads() -> None:
    plain = Phantom("monocyte", 1, 500.0, 15.0, 0.75)
    donors = [of_donor(plain, donor) for donor in range(600)]
    volume, density, granularity = (
        np.log([getattr(d, name) / getattr(plain, name) for d in donors])
        for name in ("volume_fl", "density_g_dl", "granularity")
    )
    medium = 100 * MEDIUM_SD / RI_INCREMENT_ML_G / plain.density_g_dl
    for values, sd in (
        (volume, DONOR_VOLUME),
        (density, math.hypot(DONOR_DENSITY, medium)),
        (granularity, DONOR_GRANULARITY),
    ):
        assert abs(values.mean()) < 4 * sd / math.sqrt(600)
        assert values.std() == pytest.approx(sd, rel=0.12)
    assert abs(np.corrcoef(volume, density)[0, 1]) < 0.15


def test_a_session_has_its_own_ring_and_light() -> None:
    first, again, other, designed = (half_resolution(session=s) for s in (1, 1, 2, None))
    assert first == again
    assert first != other
    assert designed == half_resolution()
    assert first.illumination_start_rad != other.illumination_start_rad
    for one in (first, other):
        assert one.illumination_na == pytest.approx(designed.illumination_na, rel=0.03)
        assert one.electrons == pytest.approx(designed.electrons, rel=1.0)
        assert one.voxel_um == designed.voxel_um


def test_a_cell_of_a_set_can_be_drawn_again() -> None:
    """The phantom that a cell's index names is the one that went through the optics."""
    kind, donor, seed, index = "t_lymphocyte", 3, 11, 5
    again = phantom_of(kind, donor, seed, index)
    draw = np.random.SeedSequence(seed, spawn_key=(0, index, 0))
    assert again == of_donor(sample_phantom(kind, np.random.default_rng(draw)), donor)
    seen = simulate_cell(kind, donor, draw, path="ideal")
    assert seen is not None
    volume = seen.mask.sum() * math.prod(seen.voxel_um)  # type: ignore[union-attr]
    # Half-covered voxels of 0.4 um at the surface lie above RI 1.35 or not.
    assert volume == pytest.approx(again.volume_fl, rel=0.05)


def test_ideal_optics_show_the_phantom_where_it_is() -> None:
    optics, phantom = half_resolution(), sample_phantom("b_lymphocyte", np.random.default_rng(3))
    whole = optics.ideal(phantom)
    place = (0.4, -0.3, 0.2)
    (cell,), (moved,) = (find_cells(found, Recipe()) for found in (whole, optics.ideal(phantom, offset_um=place)))
    assert np.subtract(moved.centre_um, cell.centre_um) == pytest.approx(place, abs=0.02)
    excess = float((whole.ri.astype(np.float64) - whole.medium_ri).sum()) * math.prod(whole.voxel_um)
    assert excess / RI_INCREMENT_ML_G == pytest.approx(phantom.dry_mass_pg, rel=1e-3)
