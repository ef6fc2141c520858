"""Simulated objects of no class: their size and RI are the literature's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wbcd.errors import BadValue
from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.records import Tomogram
from wbcd.simulation.fast import half_resolution
from wbcd.simulation.unknown import KINDS, draw, render, tomogram_of

VOXEL_UM = (0.1, 0.1, 0.1)
VOLUME_FL = {  # mean, largest departure of the mean of 12
    "neutrophil": (299, 35),
    "eosinophil": (330, 45),
    "erythroblast": (250, 60),
    "red_cell": (94, 25),
    "debris": (46, 22),
}
DENSITY_G_DL = {
    "neutrophil": (15, 17.5),
    "eosinophil": (16, 19),
    "erythroblast": (20, 30),
    "red_cell": (28, 38),
    "debris": (9, 25),
}


@pytest.mark.parametrize("kind", list(VOLUME_FL))
def test_size_and_density_are_those_of_the_literature(kind: str) -> None:
    volumes, densities = [], []
    for seed in range(12):
        delta = render(draw(kind, np.random.default_rng(seed)), (0.2, 0.2, 0.2), (80, 80, 80))
        mass = float(delta.sum(dtype=np.float64)) * 0.008 / 0.2
        volume = float((delta > 0.5 * np.median(delta[delta > 0.01])).sum()) * 0.008
        volumes.append(volume)
        densities.append(100 * mass / volume)
    mean, off = VOLUME_FL[kind]
    assert np.mean(volumes) == pytest.approx(mean, abs=off)
    low, high = DENSITY_G_DL[kind]
    assert 0.88 * low < np.mean(densities) < 1.12 * high


def test_a_bead_is_a_sphere_of_glass() -> None:
    stranger = draw("bead", np.random.default_rng(2))
    delta = render(stranger, VOXEL_UM, (100, 100, 100))
    wanted = 4 / 3 * math.pi * stranger.radius_um**3
    assert float((delta > stranger.delta_ri / 2).sum()) * 1e-3 == pytest.approx(wanted, rel=0.01)
    assert 1.43 <= 1.337 + float(delta.max()) <= 1.47


def test_a_red_cell_is_thin_in_the_middle() -> None:
    # Evans and Fung 1972: 0.81 um at the centre, 2.6 um at the thickest, on the 7.82 um disc.
    stranger = draw("red_cell", np.random.default_rng(0))
    delta = render(stranger, (0.05, 0.05, 0.05), (220, 220, 220))
    inside = delta > stranger.delta_ri / 2
    along = [inside[110, 110, 110] and sum(
        bool(inside[tuple(np.round(110 + s * 0.5 * stranger.frame[0]).astype(int))]) for s in range(-60, 61)
    ) * 0.025]  # fmt: skip
    scale = 2 * stranger.radius_um / 7.82
    assert along[0] == pytest.approx(0.81 * scale, abs=0.12)


def test_it_follows_from_its_seed() -> None:
    a, b = (render(draw("neutrophil", np.random.default_rng(4)), (0.4, 0.4, 0.4), (40, 40, 40)) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_in_its_tomogram(kind: str) -> None:
    tomogram = tomogram_of(kind, np.random.default_rng(1), half_resolution())
    assert isinstance(tomogram, Tomogram)
    found = find_cells(tomogram, Recipe())
    assert found
    assert all(math.isfinite(measure(cell, Recipe()).volume_fl) for cell in found)


def test_another_kind_is_refused() -> None:
    with pytest.raises(BadValue, match="unicorn"):
        draw("unicorn", np.random.default_rng(0))
