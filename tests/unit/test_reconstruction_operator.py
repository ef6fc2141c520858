"""The Ewald operator: adjoint pair, Toeplitz normal operator, and a band-limited object recovered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_mie import Rig

from wbcd.recipe import Recipe, ReconstructionRecipe
from wbcd.reconstruction import EwaldOperator, invert, potential_to_ri, ri_to_potential
from wbcd.records import Optics

OPTICS = Optics(0.532, 1.2, 1.337, 0.0625)


@pytest.fixture(scope="module")
def operator() -> EwaldOperator:
    return EwaldOperator(Rig(frames=13).k_in(), OPTICS, (24, 40, 40), (0.4, 0.2, 0.2))


def volume(seed: int) -> torch.Tensor:
    return torch.randn((24, 40, 40), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 40, 40), (33, 45, 36)])
def test_prediction_is_the_fourier_sum_along_z(shape: tuple[int, int, int]) -> None:
    """Against the sum itself, for even and odd sizes: every sample, the half plane's and the mirrored ones."""
    nz, ny, nx = shape
    operator = EwaldOperator(Rig(frames=5).k_in(), OPTICS, shape, (0.4, 0.2, 0.2))
    volume = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    columns = torch.fft.fft2(torch.fft.ifftshift(volume, dim=(-2, -1))).reshape(nz, ny * nx)
    heights = torch.arange(nz, dtype=torch.float64) - nz // 2
    waves = torch.exp(-1j * heights[:, None] * operator.caps.kz_step.double())
    exact = (waves * columns[:, operator.caps.column]).sum(0)
    found = operator.predict(volume.float())
    assert float((found - exact).abs().max() / exact.abs().max()) < 2e-5
    chosen = torch.tensor([3, len(exact) - 1, 500])
    torch.testing.assert_close(operator.predict(volume.float(), chosen), found[chosen])


def test_right_hand_side_is_the_adjoint_of_prediction(operator: EwaldOperator) -> None:
    every = torch.arange(len(operator.caps.column))
    x, z = volume(1), volume(2)
    weight = operator.caps.weight / (2 * operator.shape[0])
    predicted = operator.predict(x, every)
    # <A x, W A z> = <x, A^H W A z>, up to the lateral transform's norm.
    left = (predicted.conj() * weight * operator.predict(z, every)).real.sum() / (40 * 40)
    right = (x * operator.right_hand_side(operator.predict(z, every))).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-3)


def test_normal_operator_equals_project_and_back_project(operator: EwaldOperator) -> None:
    every = torch.arange(len(operator.caps.column))
    x = volume(3)
    direct = operator.right_hand_side(operator.predict(x, every))
    assert torch.linalg.vector_norm(operator.normal(x) - direct) < 2e-4 * torch.linalg.vector_norm(direct)


def test_ideal_data_give_the_object_back() -> None:
    # A ball inside the box, projected by explicit summation, not by the operator's own FFTs.
    shape, voxel = (48, 48, 48), (0.25, 0.25, 0.25)
    operator = EwaldOperator(Rig(frames=49).k_in(), OPTICS, shape, voxel)
    z, y, x = (np.indices(shape) - 24) * 0.25
    ball = torch.from_numpy((np.hypot(np.hypot(z, y), x) < 3.0).astype(np.float32))
    samples = operator.predict(ball, torch.arange(len(operator.caps.column)))
    recipe = Recipe(reconstruction=ReconstructionRecipe(iterations=40))
    found = invert(operator.right_hand_side(samples), operator, recipe)
    core = torch.from_numpy(np.hypot(np.hypot(z, y), x) < 2.0)
    assert float(found[core].mean()) == pytest.approx(1.0, abs=0.02)
    assert float((found > 0.5).sum()) == pytest.approx(float(ball.sum()), rel=0.04)


def test_potential_and_index_are_inverse() -> None:
    ri = torch.tensor([1.337, 1.36, 1.45])
    np.testing.assert_allclose(potential_to_ri(ri_to_potential(ri, OPTICS), OPTICS).numpy(), ri.numpy(), rtol=1e-6)
