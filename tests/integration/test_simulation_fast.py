"""The fast optics path against the hologram path, on the same phantoms (simulated)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_mie import Rig, holograms

from wbcd.classification import InputSpec
from wbcd.classification.preparation import delta_ri
from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import reconstruct, retrieve_fields
from wbcd.records import HologramStack, Optics
from wbcd.simulation.cells import CLASSES, render, sample_phantom
from wbcd.simulation.fast import half_resolution
from wbcd.simulation.optics import fields

RECIPE = Recipe()
OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)


@pytest.mark.parametrize(("kind", "seed"), [("b_lymphocyte", 3), ("myelocyte", 4)])
def test_fast_optics_agree_with_the_hologram_path(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    phantom = sample_phantom(kind, rng)
    rig = Rig()
    w = fields(render(phantom, (0.1, 0.1, 0.1), (160, 160, 160)), (0.1, 0.1, 0.1), OPTICS, rig.k_in()).numpy()
    stack = HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)
    (tomogram,) = reconstruct(retrieve_fields(stack, RECIPE), RECIPE)
    (exact,) = find_cells(tomogram, RECIPE)
    (fast,) = find_cells(half_resolution().phantom(phantom, rng), RECIPE)
    images = [delta_ri(cell, InputSpec()).ravel() for cell in (exact, fast)]
    assert np.corrcoef(*images)[0, 1] > 0.96
    numbers = [measure(cell, RECIPE) for cell in (exact, fast)]
    assert numbers[1].volume_fl == pytest.approx(numbers[0].volume_fl, rel=0.06)
    assert numbers[1].dry_mass_pg == pytest.approx(numbers[0].dry_mass_pg, rel=0.03)
    # Of one cell; the mean over many is held closer in test_training_run.py.
    assert numbers[1].sphericity == pytest.approx(numbers[0].sphericity, abs=0.045)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_texture_survives_the_optics(kind: str) -> None:
    """What the texture adds to a cell, by the phantoms themselves and through optics and inversion, against the noise."""
    fast = half_resolution()
    phantom = sample_phantom(kind, np.random.default_rng(0))
    plain = replace(phantom, granularity=0.0)
    drawn, bare = (fast.ideal(p).ri.astype(np.float64) for p in (phantom, plain))
    seen, seen_bare = (fast.phantom(p, np.random.default_rng(5)).ri.astype(np.float64) for p in (phantom, plain))
    again = fast.phantom(phantom, np.random.default_rng(6)).ri.astype(np.float64)
    inside = bare - phantom.medium_ri > 0.6 * np.percentile(bare - phantom.medium_ri, 99.5)
    added, shown, noise = (drawn - bare)[inside], (seen - seen_bare)[inside], (seen - again)[inside] / np.sqrt(2)
    assert np.corrcoef(added, shown)[0, 1] > 0.9
    assert shown.std() == pytest.approx(added.std(), rel=0.1)
    assert shown.std() > 4 * noise.std()
