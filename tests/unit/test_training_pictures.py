"""Pictures at normal incidence: against thin-object optics, and the two ways against one another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wbcd.classification import InputSpec
from wbcd.classification.preparation import delta_ri
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.simulation.cells import sample_phantom
from wbcd.simulation.fast import half_resolution
from wbcd.simulation.optics import INSTRUMENT
from wbcd.training.pictures import maximum, of_field, projected

SPEC = InputSpec()


def blob(sigma_um: float = 1.5, height: float = 0.01) -> np.ndarray:
    """A smooth weak object in the middle of the box: n - n_m."""
    axes = [(np.arange(n) - n // 2) * d for n, d in zip(SPEC.shape, SPEC.voxel_um, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (height * np.exp(-(z**2 + y**2 + x**2) / (2 * sigma_um**2))).astype(np.float32)


def test_the_phase_of_a_weak_object_is_the_optical_path_along_the_light() -> None:
    delta = blob()
    found = projected(delta, SPEC, INSTRUMENT)
    k0 = 2 * math.pi / INSTRUMENT.wavelength_um
    path = delta.sum(axis=0) * SPEC.voxel_um[0] * k0
    # Diffraction within the object and the term dn^2/(2 n_m) of the potential: some thousandths of the peak.
    np.testing.assert_allclose(found.phase, path, atol=0.02 * float(path.max()))
    np.testing.assert_allclose(found.amplitude, 1, atol=0.02)
    assert found.phase.sum() == pytest.approx((path * (1 + delta.max() / 5)).sum(), rel=0.005)


def test_a_field_is_moved_to_the_cells_centre_exactly() -> None:
    """A Gaussian phase off the middle by a fraction of a pixel comes to stand in it."""
    y, x = ((np.arange(n) - n // 2) * 0.2 for n in (75, 75))
    psi = (1j * np.exp(-((y[:, None] - 0.33) ** 2 + (x + 0.57) ** 2) / 2)).astype(np.complex64)
    found = of_field(psi, (0.2, 0.2), (0.33, -0.57), SPEC)
    y, x = ((np.arange(64) - 32) * 0.2 for _ in range(2))
    expected = np.exp(-(y[:, None] ** 2 + x**2) / 2)
    np.testing.assert_allclose(found.phase, expected, atol=2e-3)
    np.testing.assert_allclose(found.amplitude, 1, atol=1e-4)


def test_both_ways_show_the_same_cell() -> None:
    """The normally lit frame of a simulated measurement, and the projection of what was reconstructed from all frames."""
    torch.set_num_threads(1)
    optics = half_resolution()
    phantom = sample_phantom("monocyte", np.random.default_rng(1))
    tomogram, psi = optics.phantom_and_phase(phantom, np.random.default_rng(2))
    assert np.array_equal(tomogram.ri, optics.phantom(phantom, np.random.default_rng(2)).ri)
    cell = max(find_cells(tomogram, Recipe()), key=lambda c: int(c.mask.sum()))
    seen = of_field(psi, (optics.voxel_um[1], optics.voxel_um[2]), (cell.centre_um[1], cell.centre_um[2]), SPEC)
    made = projected(delta_ri(cell, SPEC), SPEC, INSTRUMENT)
    assert np.corrcoef(seen.phase.ravel(), made.phase.ravel())[0, 1] > 0.99
    assert np.corrcoef(seen.amplitude.ravel(), made.amplitude.ravel())[0, 1] > 0.9
    assert seen.phase.max() == pytest.approx(made.phase.max(), rel=0.05)


def test_the_maximum_is_along_the_light() -> None:
    delta = blob()
    np.testing.assert_array_equal(maximum(delta), delta.max(axis=0))
    assert maximum(np.stack([delta, 2 * delta])).shape == (2, 64, 64)
