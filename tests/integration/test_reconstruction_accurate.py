"""The multi-slice model against exact scattering, and what the accurate mode makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_mie import Rig, Sphere, fields
from helpers_phantoms import OPTICS, judge

from wbcd.errors import ReconstructionError
from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import reconstruct, refinement
from wbcd.reconstruction.multislice import MultiSlice
from wbcd.records import FieldStack, FringeReport, Tomogram

RADIUS, RI = 2.6, 1.370
SPHERE = Sphere((RADIUS,), (RI,), (0.4, -0.3, 0.6))
FRAMES = 25


def band_limited_sphere(
    radius: float, ri: float, shape: tuple[int, int, int], voxel: tuple[float, float, float]
) -> torch.Tensor:
    """The potential of a sphere by its analytic Fourier transform, its middle at n // 2 of each axis."""
    axes = [2 * np.pi * np.fft.fftfreq(n, pitch) for n, pitch in zip(shape, voxel, strict=True)]
    kz, ky, kx = np.meshgrid(*axes, indexing="ij", sparse=True)
    x = np.maximum(radius * np.sqrt(kz**2 + ky**2 + kx**2), 1e-3)
    transform = 4 * np.pi * radius**3 * (np.sin(x) - x * np.cos(x)) / x**3
    transform = transform * np.exp(-1j * sum(k * (n // 2) * p for k, n, p in zip((kz, ky, kx), shape, voxel, strict=True)))
    volume = np.fft.ifftn(transform).real / np.prod(voxel)
    return torch.from_numpy(volume * (2 * np.pi / 0.532) ** 2 * (ri**2 - 1.337**2)).float()


@pytest.mark.parametrize("dz", [0.2, 0.3])
@pytest.mark.parametrize(("radius", "ri"), [(3.75, 1.370), (5.0, 1.357)])
def test_the_model_against_exact_scattering(radius: float, ri: float, dz: float) -> None:
    """Relative error of the scattered field within the pupil: 0.4 % at normal and 1.0 % at tilted incidence at most."""
    rig = Rig(pixel_um=0.1, size=320)
    chosen = rig.k_in()[[0, 1, 7]]
    exact = fields(Sphere((radius,), (ri,)), rig, chosen, oversize=1)
    model = MultiSlice(chosen, OPTICS, 320, 240, 0.1, dz)
    slices = 2 * int(np.ceil((radius + 0.8) / dz))
    potential = band_limited_sphere(radius, ri, (slices, 320, 320), (dz, 0.1, 0.1))
    found = model.fields(model.coarsen(potential), -(slices // 2) * dz).numpy()
    error = np.linalg.norm(found - exact, axis=(1, 2)) / np.linalg.norm(exact - 1, axis=(1, 2))
    assert error[0] < 0.004
    assert error[1:].max() < 0.010


@pytest.fixture(scope="module")
def stack() -> FieldStack:
    """Exact fields of one sphere on the output grid, without noise."""
    rig = Rig(pixel_um=0.1, size=320, frames=FRAMES)
    quiet = np.ones(FRAMES)
    report = FringeReport((31.6, 31.2), quiet, 100 * quiet, 0 * quiet, 128 * quiet, np.zeros(FRAMES, bool))
    return FieldStack(
        w=fields(SPHERE, rig, oversize=1).astype(np.complex64),
        k_in_rad_um=rig.k_in(),
        pixel_um=0.1,
        normal_frame=0,
        optics=OPTICS,
        fringes=report,
        kept=np.arange(FRAMES),
        background_rms_rad=0 * quiet,
    )


def accurate(iterations: int) -> Recipe:
    recipe = Recipe()
    return replace(recipe, reconstruction=replace(recipe.reconstruction, mode="accurate", refinement_iterations=iterations))


@pytest.fixture(scope="module")
def fast(stack: FieldStack) -> Tomogram:
    (found,) = reconstruct(stack, Recipe())
    return found


def test_the_accurate_mode_takes_the_bias_out_of_the_volume(stack: FieldStack, fast: Tomogram) -> None:
    (found,) = reconstruct(stack, accurate(5))
    assert found.report is not None
    assert found.report.refinement is not None
    assert found.report.refinement.kept
    assert found.report.refinement.misfit_after < 0.6 * found.report.refinement.misfit_before
    before, after = judge(fast, SPHERE), judge(found, SPHERE)
    assert before.volume > 3.5
    assert abs(after.volume) < 1.5
    assert abs(after.ri) < 1.5
    assert abs(after.z_um) < 0.3 * abs(before.z_um)


def test_the_fast_modes_numbers_on_an_exact_sphere(fast: Tomogram) -> None:
    """Its surface lies 2 % outside; the volume in the table does not, and the RI of the inside is right to 1.5 %."""
    (cell,) = find_cells(fast, Recipe())
    found = measure(cell, Recipe())
    assert found.volume_half_contrast_fl == pytest.approx(SPHERE.volume_fl, rel=0.02)
    assert found.dry_mass_half_contrast_pg == pytest.approx(SPHERE.mass_pg(1.337), rel=0.03)
    assert abs(judge(fast, SPHERE).ri) < 1.5


def test_what_the_held_out_frames_do_not_like_is_not_kept(
    stack: FieldStack, fast: Tomogram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        refinement.Refiner, "minimise", lambda self, start, iterations: (start * 1.3, self.misfit(start * 1.3, self.held))
    )
    (found,) = reconstruct(stack, accurate(1))
    assert found.report is not None
    assert found.report.refinement is not None
    assert not found.report.refinement.kept
    np.testing.assert_array_equal(found.ri, fast.ri)


def test_a_pitch_that_cannot_carry_the_light_is_refused(stack: FieldStack) -> None:
    recipe = accurate(1)
    coarse = replace(stack, w=stack.w[:, ::2, ::2], pixel_um=0.2)
    coarser = replace(recipe, reconstruction=replace(recipe.reconstruction, voxel_um=(0.4, 0.2, 0.2), shape=(50, 75, 75)))
    with pytest.raises(ReconstructionError, match=r"voxel_um: 0.2 um across; the accurate mode needs 0.136 um"):
        reconstruct(coarse, coarser)
