"""Exact spheres beside the edge of the field of view: whole ones keep their volume, cut ones are told."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_mie import Rig, Sphere, fields, holograms

from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import reconstruct, retrieve_fields
from wbcd.records import Cell, HologramStack, Optics

OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)
HALF_UM, RADIUS_UM = 16.0, 4.5
VOLUME_FL = 4 / 3 * np.pi * RADIUS_UM**3


def cells_at(x_um: float, y_um: float) -> list[Cell]:
    rig, rng = Rig(), np.random.default_rng(8)
    w = fields(Sphere((RADIUS_UM,), (1.368,), (x_um, y_um, 0.0)), rig)
    stack = HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)
    return [cell for found in reconstruct(retrieve_fields(stack, Recipe()), Recipe()) for cell in find_cells(found, Recipe())]


@pytest.mark.parametrize("gap_um", [2.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_whole_sphere_near_the_edge_keeps_its_volume(gap_um: float) -> None:
    """Its oblique shadows are wider than itself and the camera sees the middle of them only: a few per cent at most."""
    (cell,) = cells_at(HALF_UM - RADIUS_UM - gap_um, -2.0)
    assert not cell.touches_border
    assert measure(cell, Recipe()).volume_half_contrast_fl == pytest.approx(VOLUME_FL, rel=0.04)


@pytest.mark.parametrize("inside", [0.3, 0.9, *(pytest.param(share, marks=pytest.mark.slow) for share in (-0.2, 0.7))])
def test_nothing_of_a_cut_sphere_is_taken_for_a_whole_cell(inside: float) -> None:
    """``inside``: how far its centre lies within the field, in radii."""
    assert all(cell.touches_border for cell in cells_at(HALF_UM - inside * RADIUS_UM, 1.0))
