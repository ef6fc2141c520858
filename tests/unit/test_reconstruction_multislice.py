"""The multi-slice model's algebra: its gradient against differences, its resampling against its adjoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wbcd.reconstruction.multislice import FRAMES_AT_ONCE, MultiSlice
from wbcd.reconstruction.refinement import held_out
from wbcd.records import Optics

OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)


def illumination(frames: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(frames - 1) / (frames - 1) + 0.1
    ring = 2 * np.pi / 0.532 * 1.05 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([np.zeros((1, 2)), ring])


@pytest.fixture(scope="module")
def model() -> MultiSlice:
    return MultiSlice(illumination(FRAMES_AT_ONCE + 3), OPTICS, 48, 36, 0.1, 0.2)


def test_the_gradient_is_the_derivative(model: MultiSlice) -> None:
    torch.manual_seed(1)
    potential, direction = 5 * torch.rand(8, 36, 36), torch.randn(8, 36, 36)
    for block in model.blocks:
        simulated, back = model.with_gradient(potential, -0.8, block)
        weight = torch.randn_like(simulated)

        def value(at: torch.Tensor, block: int = block, weight: torch.Tensor = weight) -> float:
            return float((model.fields(at, -0.8, slice(block, block + 1)) * weight.conj()).real.double().sum())

        difference = (value(potential + 0.02 * direction) - value(potential - 0.02 * direction)) / 0.04
        assert float((back(weight) * direction).sum()) == pytest.approx(difference, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("shape", [(5, 40, 44), (5, 60, 48)])
def test_resampling_and_its_adjoint(model: MultiSlice, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    fine, coarse = torch.randn(shape), torch.randn(5, 36, 36)
    there = float((model.coarsen(fine) * coarse).sum())
    assert there == pytest.approx(float((fine * model.coarsen_adjoint(coarse, fine)).sum()), rel=1e-4)


def test_a_smooth_slice_keeps_its_values_on_the_coarse_grid(model: MultiSlice) -> None:
    x = (np.arange(48) - 24) * 0.1
    blob = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.5**2))
    coarse = (np.arange(36) - 18) * (4.8 / 36)
    expected = np.exp(-(coarse[:, None] ** 2 + coarse[None, :] ** 2) / (2 * 0.5**2))
    np.testing.assert_allclose(model.coarsen(torch.from_numpy(blob)[None].float())[0], expected, atol=1e-4)


def test_empty_slices_leave_the_light_alone(model: MultiSlice) -> None:
    np.testing.assert_allclose(model.fields(torch.zeros(6, 36, 36), -0.6), 1.0, atol=1e-5)


def test_a_slab_delays_each_wave_by_its_own_axial_wave_number(model: MultiSlice) -> None:
    """Exact for a slab without its reflections: the phase is (sqrt(k_z0^2 + V) - k_z0) times its thickness."""
    potential = 139.5 * (1.37**2 - 1.337**2)
    w = model.fields(torch.full((10, 36, 36), potential), -1.0).numpy()
    k = 2 * math.pi / 0.532 * 1.337
    for frame, k_in in enumerate(illumination(FRAMES_AT_ONCE + 3)):
        k_z0 = math.sqrt(k**2 - (k_in**2).sum())
        expected = (math.sqrt(k_z0**2 + potential) - k_z0) * 2.0
        np.testing.assert_allclose(np.angle(w[frame]), math.remainder(expected, 2 * math.pi), atol=2e-3)


def test_the_held_out_frames_leave_enough_to_fit() -> None:
    assert held_out(49, 8) == [4, 12, 20, 28, 36, 44]
    assert held_out(9, 8) == [4]
    assert held_out(7, 8) == []
    assert held_out(49, 0) == []
