"""An exact judge: scalar Mie scattering of layered spheres and the off-axis holograms of it.

Nothing here comes from wbcd's own models. Partial waves with continuity of the field and of its normal derivative
(shared with acoustics of equal densities); the field in the focal plane through its angular spectrum, never sampled on the
sphere. Checked in ``test_mie_judge.py`` by unitarity and against miepython's extinction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import spherical_jn, spherical_yn


@dataclass(frozen=True)
class Sphere:
    """Concentric shells from the core outwards; lengths in um; centre (x, y, z) from the middle of the focal plane."""

    radii_um: tuple[float, ...]
    ri: tuple[float, ...]
    centre_um: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def volume_fl(self) -> float:
        return 4 / 3 * np.pi * self.radii_um[-1] ** 3

    def mass_pg(self, medium_ri: float, alpha: float = 0.2) -> float:
        inner = 0.0
        total = 0.0
        for radius, ri in zip(self.radii_um, self.ri, strict=True):
            total += 4 / 3 * np.pi * (radius**3 - inner**3) * (ri - medium_ri) / alpha
            inner = radius
        return total

    def mean_ri(self, medium_ri: float) -> float:
        return medium_ri + 0.2 * self.mass_pg(medium_ri) / self.volume_fl


@dataclass(frozen=True)
class Rig:
    """The instrument of SCIENCE.md."""

    wavelength_um: float = 0.532
    objective_na: float = 1.2
    medium_ri: float = 1.337
    pixel_um: float = 0.0625
    size: int = 512
    illumination_na: float = 1.05
    frames: int = 49
    carrier_cycles_um: tuple[float, float] = (5.03, 4.96)
    electrons: float | None = 10_000.0
    bits: int = 8
    drift_rad: float = 0.3
    phase0: float = 0.2
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def k0(self) -> float:
        return 2 * np.pi / self.wavelength_um

    @property
    def k(self) -> float:
        return self.k0 * self.medium_ri

    def k_in(self) -> NDArray[np.float64]:
        """[frame, 2]: normal first, then the circle."""
        angle = self.phase0 + 2 * np.pi * np.arange(self.frames - 1) / (self.frames - 1)
        ring = self.k0 * self.illumination_na * np.stack([np.cos(angle), np.sin(angle)], 1)
        return np.concatenate([np.zeros((1, 2)), ring])


def partial_waves(sphere: Sphere, k0: float, medium_ri: float) -> NDArray[np.complex128]:
    """R_l of the scattered wave sum_l i^l (2l+1) R_l h_l(kr) P_l(cos)."""
    k = k0 * medium_ri
    x = k * sphere.radii_um[-1]
    order = np.arange(int(x + 4.3 * x ** (1 / 3) + 12))
    q = k0 * sphere.ri[0]
    a = sphere.radii_um[0]
    g = q * spherical_jn(order, q * a, True) / spherical_jn(order, q * a)
    for radius, ri, inner in zip(sphere.radii_um[1:], sphere.ri[1:], sphere.radii_um[:-1], strict=True):
        q = k0 * ri
        j, y = spherical_jn(order, q * inner), spherical_yn(order, q * inner)
        dj, dy = q * spherical_jn(order, q * inner, True), q * spherical_yn(order, q * inner, True)
        # u = j + c y in the shell with u'/u = g at its inner face
        c = (g * j - dj) / (dy - g * y)
        jo, yo = spherical_jn(order, q * radius), spherical_yn(order, q * radius)
        djo, dyo = q * spherical_jn(order, q * radius, True), q * spherical_yn(order, q * radius, True)
        g = (djo + c * dyo) / (jo + c * yo)
    j, y = spherical_jn(order, x), spherical_yn(order, x)
    dj, dy = k * spherical_jn(order, x, True), k * spherical_yn(order, x, True)
    numerator = dj - g * j
    return -numerator / (numerator + 1j * (dy - g * y))


def far_amplitude(sphere: Sphere, k0: float, medium_ri: float) -> CubicSpline:
    """sum (2l+1) R_l P_l(cos gamma) as a spline in gamma."""
    r = partial_waves(sphere, k0, medium_ri)
    gamma = np.linspace(0, np.pi, 6001)
    series = np.polynomial.legendre.legval(np.cos(gamma), (2 * np.arange(len(r)) + 1) * r)
    return CubicSpline(gamma, series)


def fields(sphere: Sphere, rig: Rig, k_in: NDArray[np.float64] | None = None, oversize: int = 2) -> NDArray[np.complex128]:
    """w = u / u_in [frame, y, x] in the focal plane at the camera's pitch, cut by the objective's pupil.

    ``oversize``: the box of the angular spectrum in units of the field of view, so that the wrap lies outside.
    """
    k_in = rig.k_in() if k_in is None else k_in
    n = rig.size * oversize
    kk = 2 * np.pi * np.fft.fftfreq(n, rig.pixel_um)
    far = far_amplitude(sphere, rig.k0, rig.medium_ri)
    x0, y0, z0 = sphere.centre_um
    half = (n - rig.size) // 2
    out = np.empty((len(k_in), rig.size, rig.size), np.complex128)
    for i, (px, py) in enumerate(k_in):
        kx, ky = kk[None, :] + px, kk[:, None] + py
        kt2 = kx**2 + ky**2
        inside = kt2 <= (rig.objective_na * rig.k0) ** 2
        kz = np.sqrt(np.maximum(rig.k**2 - kt2, 1e-6))
        pz = np.sqrt(rig.k**2 - px**2 - py**2)
        iy, ix = np.nonzero(inside)
        gamma = np.arccos(np.clip((kx[0, ix] * px + ky[iy, 0] * py + kz[iy, ix] * pz) / rig.k**2, -1, 1))
        spectrum = np.zeros((n, n), np.complex128)
        # the middle of the array is the origin
        centre = n // 2 * rig.pixel_um
        phase = kk[ix] * (x0 + centre) + kk[iy] * (y0 + centre) + (kz[iy, ix] - pz) * z0
        spectrum[iy, ix] = 2 * np.pi / (rig.k * kz[iy, ix]) * far(gamma) * np.exp(-1j * phase)
        w = 1 + np.fft.ifft2(spectrum) / rig.pixel_um**2
        out[i] = w[half : half + rig.size, half : half + rig.size]
    return out


def holograms(
    w: NDArray[np.complexfloating], rig: Rig, rng: np.random.Generator, *, drift: float | None = None
) -> NDArray[np.unsignedinteger]:
    """Camera frames |u + r|^2 with shot noise, full well ``rig.electrons`` at the type's top."""
    axis = (np.arange(rig.size)) * rig.pixel_um
    fx, fy = rig.carrier_cycles_um
    top = 2**rig.bits - 1
    frames = np.empty(w.shape, np.uint8 if rig.bits <= 8 else np.uint16)
    drift = rig.drift_rad if drift is None else drift
    for i, (px, py) in enumerate(rig.k_in()[: len(w)]):
        phase = (px + 2 * np.pi * fx) * axis[None, :] + (py + 2 * np.pi * fy) * axis[:, None]
        jitter = drift * rng.standard_normal()
        intensity = np.abs(w[i] * np.exp(1j * (phase + jitter)) + 1) ** 2 / 4 * 0.75
        if rig.electrons is not None:
            intensity = rng.poisson(intensity * rig.electrons) / rig.electrons
        frames[i] = np.clip(np.round(intensity * top), 0, top)
    return frames
