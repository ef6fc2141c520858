"""A measured HL60 leukocyte that was rotated: 140 complex fields through wbcd's field handling, unwrapping and mass.

What a projection weighs cannot depend on the direction it is seen from, nor differ from what the tomogram weighs. The cell was
turned, not the light, so the tomogram is made here, by Fourier diffraction (Mueller et al. 2015) and non-negativity.

The volume that comes with the sample (filtered backpropagation) is *not* the yardstick: its filter is zero at K = 0, so it
has no mass of its own; see ``test_backpropagation_loses_the_mean``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction.background import remove_background
from wbcd.reconstruction.unwrap import unwrap, wrap
from wbcd.records import Tomogram

WAVELENGTH_UM, MEDIUM_RI, PIXEL_UM, ALPHA = 0.647, 1.335, 0.139, 0.2
K0 = 2 * np.pi / WAVELENGTH_UM
RECIPE = Recipe()
# 1.35 is meant for a medium of 1.337; this cell's rim is fainter.
LOW = replace(RECIPE, morphology=replace(RECIPE.morphology, threshold_ri=1.340, support_margin_um=1.5))


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Angles [frame] in rad and complex fields [frame, y, x]; the phase goes in wrapped, as a camera would give it."""
    angles = np.loadtxt(shared_data / "hl60" / "angles.txt")
    with h5py.File(shared_data / "hl60" / "series.h5") as file:
        parts = [(file[f"qpi_{i}/amplitude/raw"][:], file[f"qpi_{i}/phase/raw"][:]) for i in range(len(angles))]
    return angles, np.array([amplitude * np.exp(1j * phase) for amplitude, phase in parts])


@pytest.fixture(scope="module")
def levelled(recorded: tuple[NDArray[np.float64], NDArray[np.complex128]]) -> torch.Tensor:
    w, rms = remove_background(torch.from_numpy(recorded[1].astype(np.complex64)), polynomial=False)
    assert float(rms.max()) < 0.05
    return w


def masses(phase: NDArray[np.floating]) -> NDArray[np.floating]:
    """Dry mass in pg of each projection [frame, y, x]: lambda/(2 pi alpha) times the integral of the phase (Barer 1952)."""
    return phase.sum((1, 2)) * PIXEL_UM**2 * WAVELENGTH_UM / (2 * np.pi * ALPHA)


def test_140_projected_dry_masses_agree_within_3_percent(levelled: torch.Tensor) -> None:
    found = masses(unwrap(torch.angle(levelled)).numpy())
    assert len(found) == 140
    assert (found.max() - found.min()) / found.mean() < 0.03
    assert found.std() / found.mean() < 0.005


def test_levelling_each_projection_is_what_it_takes(
    recorded: tuple[NDArray[np.float64], NDArray[np.complex128]], levelled: torch.Tensor
) -> None:
    """A hundredth of a radian over the field weighs a percent: without the plane fit the spread is nearly twice as wide."""
    raw = masses(unwrap(torch.angle(torch.from_numpy(recorded[1]))).numpy())
    found = masses(unwrap(torch.angle(levelled)).numpy())
    assert np.ptp(raw) / raw.mean() > 1.5 * np.ptp(found) / found.mean()


def test_unwrapping_survives_twice_and_thrice_the_phase(levelled: torch.Tensor) -> None:
    """A cell two and three times as dense: the phase wraps, and comes back whole."""
    phase = unwrap(torch.angle(levelled[::20]))
    for factor in (2.0, 3.0):
        back = unwrap(wrap(factor * phase))
        assert float((back - factor * phase).abs().max()) < 1e-3
        assert float(back.max()) > factor * 2.5


# --- the tomogram ------------------------------------------------------------------------------------


def rotated(
    angles: NDArray[np.float64], psi: NDArray[np.complex128], pitch_um: float, n: int, steps: int
) -> NDArray[np.float64]:
    """RI [y, x, z] of an object turned about y: caps laid onto an n-cubed grid, then ``steps`` of Gerchberg-Papoulis."""
    k = K0 * MEDIUM_RI
    axis = 2 * np.pi * np.fft.fftfreq(n, pitch_um)
    step = axis[1]
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    iy, ix = np.nonzero(kx**2 + ky**2 < (0.9 * k) ** 2)
    kz = np.sqrt(k**2 - ky[iy, ix] ** 2 - kx[iy, ix] ** 2)
    low = n // 2 - psi.shape[1] // 2
    centre = (low + (psi.shape[1] - 1) / 2) * pitch_um
    data, hits = np.zeros((n, n, n), complex), np.zeros((n, n, n))
    for angle, frame in zip(angles, psi, strict=True):
        padded = np.zeros((n, n), complex)
        padded[low : low + len(frame), low : low + len(frame)] = frame
        spectrum = np.fft.fft2(padded)[iy, ix] * pitch_um**2 * np.exp(1j * (ky + kx)[iy, ix] * centre)
        turned_x = kx[iy, ix] * np.cos(angle) - (kz - k) * np.sin(angle)
        turned_z = kx[iy, ix] * np.sin(angle) + (kz - k) * np.cos(angle)
        jx, jz = (np.rint(turned / step).astype(int) for turned in (turned_x, turned_z))
        inside = (np.abs(jx) < n // 2) & (np.abs(jz) < n // 2)
        at = iy[inside], jx[inside] % n, jz[inside] % n
        np.add.at(data, at, (-2j * kz * spectrum)[inside])
        np.add.at(hits, at, 1)
    data, hits = data + np.conj(mirrored(data)), hits + mirrored(hits)
    known = hits > 0
    to_centre = np.exp(-1j * (axis[:, None, None] + axis[None, :, None] + axis[None, None, :]) * (n // 2) * pitch_um)
    measured = (data[known] / hits[known]) * to_centre[known] / pitch_um**3
    spectrum = np.zeros((n, n, n), complex)
    spectrum[known] = measured
    for _ in range(steps):
        spectrum = np.fft.fftn(np.maximum(np.fft.ifftn(spectrum).real, 0))
        spectrum[known] = measured
    potential = np.fft.ifftn(spectrum).real
    return np.sqrt(np.maximum(MEDIUM_RI**2 + potential / K0**2, 1.0))


def mirrored(grid: NDArray) -> NDArray:
    return np.roll(grid[::-1, ::-1, ::-1], 1, (0, 1, 2))


def test_the_projections_weigh_what_the_tomogram_weighs(
    recorded: tuple[NDArray[np.float64], NDArray[np.complex128]], levelled: torch.Tensor
) -> None:
    angles, _ = recorded
    phase = unwrap(torch.angle(levelled))
    psi = torch.complex(levelled.abs().log(), phase).numpy().reshape(140, 70, 2, 70, 2).mean((2, 4))
    pitch = 2 * PIXEL_UM
    ri = rotated(angles, psi, pitch, 100, 15)
    (cell,) = find_cells(Tomogram(ri.astype(np.float32), (pitch,) * 3, MEDIUM_RI), LOW)
    tomogram = measure(cell, LOW).dry_mass_total_pg
    projected = masses(phase.numpy())
    assert abs(tomogram / projected.mean() - 1) < 0.03
    assert np.abs(projected / tomogram - 1).max() < 0.03


def test_backpropagation_loses_the_mean(shared_data: Path, levelled: torch.Tensor) -> None:
    """Why the sample's own volume is no yardstick: around the cell it lies below the medium, by more the farther out."""
    with np.load(shared_data / "hl60" / "hl60_ri.npz") as data:
        ri = data["ri"].astype(np.float64) - MEDIUM_RI
    grid = np.indices(ri.shape) - 69.5
    radius = np.sqrt((grid**2).sum(0)) * PIXEL_UM
    near, far = (ri[(radius > low) & (radius < low + 1)].mean() for low in (9.0, 11.0))
    assert far < near < -2e-4
    total = ri.sum() * PIXEL_UM**3 / ALPHA
    assert total < 0.8 * masses(unwrap(torch.angle(levelled)).numpy()).mean()
