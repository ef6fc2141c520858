"""The scattering model against exact Mie theory, and what it does at the camera's edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_mie import Rig, Sphere
from helpers_mie import fields as mie_fields
from numpy.typing import NDArray

from wbcd.errors import BadValue
from wbcd.simulation.cells import axes
from wbcd.simulation.optics import INSTRUMENT, fields, illumination, record, scatter

VOXEL = (0.1, 0.1, 0.1)


def sphere(radius: float, ri: float, core: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Anti-aliased by eight-fold supersampling along each axis's third."""
    n = 2 * int(np.ceil((radius + 0.4) / VOXEL[0]))
    z, y, x = axes(VOXEL, (n, n, n))
    out = torch.zeros((n, n, n))
    steps = [-0.0333, 0.0, 0.0333]
    for a in steps:
        for b in steps:
            for c in steps:
                r = ((z + a) ** 2 + (y + b) ** 2 + (x + c) ** 2).sqrt()
                out += (r < radius) * (ri - 1.337)
                if core is not None:
                    out += (r < core[0]) * (core[1] - ri)
    return (1.337 + out / 27).numpy().astype(np.float32)


def misfit(w: NDArray[np.complex64], exact: NDArray[np.complex128], at: tuple[int, int] = (256, 256)) -> NDArray[np.float64]:
    """Relative error of the total field in 14 x 14 um around the object, one value a frame."""
    near = (slice(None), slice(at[0] - 112, at[0] + 112), slice(at[1] - 112, at[1] + 112))
    return np.linalg.norm((w - exact)[near], axis=(1, 2)) / np.linalg.norm(exact[near], axis=(1, 2))


@pytest.mark.parametrize(
    ("radius", "ri", "core"),
    [(3.75, 1.370, None), (2.5, 1.39, None), (3.6, 1.372, (2.6, 1.366))],
    ids=["cell", "dense", "nucleus"],
)
def test_it_agrees_with_exact_mie(radius: float, ri: float, core: tuple[float, float] | None) -> None:
    k_in = illumination(frames=4, start_rad=0.3)
    judge = Sphere((radius,), (ri,)) if core is None else Sphere((core[0], radius), (core[1], ri))
    w = fields(sphere(radius, ri, core), VOXEL, INSTRUMENT, k_in).numpy()
    error = misfit(w, mie_fields(judge, Rig(), k_in, oversize=3))
    # Plain beam propagation: 1.9 % and 4.7 %; multi-layer Born: 0.4 % and 1.0 % (its box unbounded).
    strong = (ri - 1.337) / 0.033
    assert error[0] < 0.006 * strong
    assert error[1:].max() < 0.021 * strong


def test_place_and_height_agree_with_exact_mie() -> None:
    k_in = illumination(frames=4, start_rad=0.3)
    centre = (1.6, -2.02, 1.33)
    w = fields(sphere(3.0, 1.37), VOXEL, INSTRUMENT, k_in, centre_um=centre).numpy()
    exact = mie_fields(Sphere((3.0,), (1.37,), (centre[2], centre[1], centre[0])), Rig(), k_in, oversize=3)
    error = misfit(w, exact, at=(256 - 32, 256 + 21))
    assert error[0] < 0.012
    assert error[1:].max() < 0.025


def test_empty_medium_scatters_nothing() -> None:
    w = fields(np.full((20, 20, 20), 1.337, np.float32), VOXEL, INSTRUMENT, illumination(frames=3))
    assert float((w - 1).abs().max()) < 1e-6


def test_an_object_that_moves_is_each_frame_where_it_is() -> None:
    k_in = illumination(frames=3)
    scattered = scatter(sphere(1.5, 1.37), VOXEL, INSTRUMENT, k_in)
    path = np.array([[0.0, 0.0, 0.0], [0.2, 0.5, -0.3], [0.0, 1.1, 0.4]])
    moving = torch.ones((3, 512, 512), dtype=torch.complex64)
    record(scattered, moving, path)
    for i, place in enumerate(path):
        still = torch.ones_like(moving)
        record(scattered, still, tuple(place))
        assert torch.equal(moving[i], still[i])


def test_a_whole_pixel_shift_shifts_the_picture() -> None:
    scattered = scatter(sphere(1.5, 1.37), VOXEL, INSTRUMENT, illumination(frames=2))
    here, there = (torch.ones((2, 512, 512), dtype=torch.complex64) for _ in range(2))
    record(scattered, here)
    record(scattered, there, (0.0, 16 * 0.0625, -32 * 0.0625))
    assert torch.allclose(torch.roll(here, (16, -32), (1, 2)), there, atol=1e-4)


def test_an_object_over_the_edge_is_cut_and_does_not_come_back_on_the_other_side() -> None:
    w = fields(sphere(1.5, 1.37), VOXEL, INSTRUMENT, illumination(frames=2), centre_um=(0.0, 16.0, 0.0))
    assert float((w[0, -20:] - 1).abs().max()) > 0.3
    assert float((w[:, :100] - 1).abs().max()) < 1e-6


def test_a_pitch_that_cannot_carry_the_light_is_refused() -> None:
    with pytest.raises(BadValue, match=r"pitch_um is 0.25; propagating waves need less than 0.199 um"):
        scatter(sphere(1.5, 1.37), VOXEL, INSTRUMENT, illumination(frames=2), pitch_um=0.25)
