"""A calibration bead seen through a lens with known aberrations: exact Mie fields, pupil phases written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import helpers_mie as mie
import numpy as np
from numpy.typing import NDArray

from wbcd.records import HologramStack, Optics

Pupil = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Phase in rad at (x, y) in units of the pupil's radius."""

BEAD = mie.Sphere((2.5,), (1.400,), (0.7, -0.4, 0.6))
RIG = mie.Rig(frames=13)


def astigmatism(rad: float) -> Pupil:
    """sqrt(6) rho^2 cos 2 theta (Noll 6)."""
    return lambda x, y: rad * np.sqrt(6) * (x**2 - y**2)


def coma(rad: float) -> Pupil:
    """sqrt(8) (3 rho^3 - 2 rho) cos theta (Noll 8)."""
    return lambda x, y: rad * np.sqrt(8) * (3 * (x**2 + y**2) - 2) * x


def spherical(rad: float) -> Pupil:
    """sqrt(5) (6 rho^4 - 6 rho^2 + 1) (Noll 11)."""
    return lambda x, y: rad * np.sqrt(5) * (6 * (x**2 + y**2) ** 2 - 6 * (x**2 + y**2) + 1)


def light(pupil: Pupil | None = None, sphere: mie.Sphere = BEAD, rig: mie.Rig = RIG) -> NDArray[np.complex128]:
    """w = u/u_in [frame, y, x] as :func:`helpers_mie.fields`, each wave having passed the pupil with its phase."""
    k_in = rig.k_in()
    n = rig.size * 2
    kk = 2 * np.pi * np.fft.fftfreq(n, rig.pixel_um)
    far = mie.far_amplitude(sphere, rig.k0, rig.medium_ri)
    x0, y0, z0 = sphere.centre_um
    half, centre, rim = (n - rig.size) // 2, n // 2 * rig.pixel_um, rig.objective_na * rig.k0
    phase = pupil or (lambda x, y: np.zeros_like(x))
    out = np.empty((len(k_in), rig.size, rig.size), np.complex128)
    for i, (px, py) in enumerate(k_in):
        kx, ky = kk[None, :] + px, kk[:, None] + py
        iy, ix = np.nonzero(kx**2 + ky**2 <= rim**2)
        tx, ty = kx[0, ix], ky[iy, 0]
        kz = np.sqrt(np.maximum(rig.k**2 - tx**2 - ty**2, 1e-6))
        pz = np.sqrt(rig.k**2 - px**2 - py**2)
        gamma = np.arccos(np.clip((tx * px + ty * py + kz * pz) / rig.k**2, -1, 1))
        turned = phase(tx / rim, ty / rim) - phase(np.array([px / rim]), np.array([py / rim]))
        turned -= kk[ix] * (x0 + centre) + kk[iy] * (y0 + centre) + (kz - pz) * z0
        spectrum = np.zeros((n, n), np.complex128)
        spectrum[iy, ix] = 2 * np.pi / (rig.k * kz) * far(gamma) * np.exp(1j * turned)
        out[i] = (1 + np.fft.ifft2(spectrum) / rig.pixel_um**2)[half : half + rig.size, half : half + rig.size]
    return out


def stack(
    w: NDArray[np.complex128], *, stated_pixel_um: float | None = None, rig: mie.Rig = RIG, seed: int = 3
) -> HologramStack:
    """Holograms and reference; ``stated_pixel_um``: what the file says of the pixels, rightly or not."""
    rng = np.random.default_rng(seed)
    optics = Optics(rig.wavelength_um, rig.objective_na, rig.medium_ri, stated_pixel_um or rig.pixel_um)
    return HologramStack(mie.holograms(w, rig, rng), mie.holograms(np.ones_like(w), rig, rng), None, 0, optics)
