"""Scattering of a scalar plane wave by a homogeneous sphere, exactly: what a calibration bead must look like.

Partial waves with the field and its normal derivative continuous at the surface (Morse & Ingard 1968, section 8.2; the scalar
limit of Mie 1908). Against vector Mie theory the forward amplitude of a bead in water differs by some 0.3 %.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import BadValue


def partial_waves(radius_um: float, ri: float, wavelength_um: float, medium_ri: float) -> NDArray[np.complex128]:
    """R_l, complex [l]: the scattered wave is sum_l i^l (2l+1) R_l h_l(kr) P_l(cos). |1 + 2 R_l| = 1 without absorption.

    R_l = -(k j_l' - g j_l)/(k h_l' - g h_l) at the surface, g = q j_l'(qa)/j_l(qa), q the wave number inside. Raises BadValue
    for a size parameter outside 0.01 to 500.
    """
    from scipy.special import spherical_jn, spherical_yn

    k0 = 2 * math.pi / wavelength_um
    x = k0 * medium_ri * radius_um
    if not 0.01 <= x <= 500:
        raise BadValue(f"bead radius is {radius_um} um: its size parameter {x:.3g} must lie between 0.01 and 500.")
    order = np.arange(int(x + 4.3 * x ** (1 / 3) + 12))
    inside = k0 * ri * radius_um
    # (derivative times radius) on both sides, so that only ratios of refractive indices remain
    g = inside * spherical_jn(order, inside, True) / spherical_jn(order, inside)
    j, y = spherical_jn(order, x), spherical_yn(order, x)
    numerator = x * spherical_jn(order, x, True) - g * j
    outgoing = numerator + 1j * (x * spherical_yn(order, x, True) - g * y)
    return np.asarray(-numerator / outgoing, np.complex128)


class FarField:
    """sum_l (2l+1) R_l P_l(cos gamma), tabulated over the scattering angle gamma."""

    def __init__(self, radius_um: float, ri: float, wavelength_um: float, medium_ri: float) -> None:
        from scipy.interpolate import CubicSpline

        waves = partial_waves(radius_um, ri, wavelength_um, medium_ri)
        gamma = np.linspace(0, math.pi, max(2001, 40 * len(waves)))
        series = np.polynomial.legendre.legval(np.cos(gamma), (2 * np.arange(len(waves)) + 1) * waves)
        self._spline = CubicSpline(gamma, series)

    def __call__(self, cosine: NDArray[np.float64]) -> NDArray[np.complex128]:
        """At the cosine of the angle between the incident and the scattered direction."""
        values: NDArray[np.complex128] = self._spline(np.arccos(np.clip(cosine, -1.0, 1.0)))
        return values
