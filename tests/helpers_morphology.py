"""Phantoms with known geometry for the tests of morphology: radial functions rendered at the crop's pitch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from wbcd.records import Tomogram, Triple

PITCH: Triple = (0.2, 0.1, 0.1)
MEDIUM = 1.337
CELL = 1.37
#: Blur that makes half-contrast and threshold coincide is none; so spheres are rendered with CELL such that 1.35 is half.
SYMMETRIC = 1.363


def grid(shape: tuple[int, int, int], pitch: Triple = PITCH) -> list[NDArray[np.float64]]:
    """Open coordinates (z, y, x) in um, zero at the middle voxel (shape // 2)."""
    return [
        ((np.arange(n) - n // 2) * p).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, p) in enumerate(zip(shape, pitch, strict=True))
    ]


def soft(depth: NDArray[np.float64], blur_um: float) -> NDArray[np.float64]:
    """Occupancy 0..1 from depth below the surface in um: a step, or an erf edge of ``blur_um`` (sigma)."""
    return (depth > 0).astype(float) if blur_um == 0 else 0.5 * (1 + erf(depth / (math.sqrt(2) * blur_um)))


def sphere(
    diameter_um: float,
    *,
    offset_um: Triple = (0.0, 0.0, 0.0),
    blur_um: float = 0.15,
    shape: tuple[int, int, int] = (100, 150, 150),
    pitch: Triple = PITCH,
) -> NDArray[np.float64]:
    """Occupancy of a sphere."""
    z, y, x = (axis - o for axis, o in zip(grid(shape, pitch), offset_um, strict=True))
    return soft(diameter_um / 2 - np.sqrt(z * z + y * y + x * x), blur_um)


def ellipsoid(
    semi_axes_um: Triple, *, blur_um: float = 0.15, shape: tuple[int, int, int] = (100, 150, 150)
) -> NDArray[np.float64]:
    """Occupancy of an ellipsoid; the edge is blurred in proportion along each axis."""
    z, y, x = grid(shape)
    a, b, c = semi_axes_um
    radius = np.sqrt((z / a) ** 2 + (y / b) ** 2 + (x / c) ** 2)
    return soft((1 - radius) * min(semi_axes_um), blur_um)


def rough(
    diameter_um: float,
    amplitude: float,
    seed: int,
    *,
    waves: tuple[float, float] = (2, 7),
    shape: tuple[int, int, int] = (100, 150, 150),
) -> NDArray[np.float64]:
    """Occupancy of a sphere whose radius varies with the direction by ``amplitude`` (relative rms): a monocyte's ruffles.

    ``waves``: range of the ruffles' wave numbers, in radians of angle.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.broadcast_arrays(*grid(shape))
    r = np.sqrt(z * z + y * y + x * x) + 1e-9
    near = r < diameter_um
    unit = np.stack([axis[near] / r[near] for axis in (z, y, x)])
    bump = np.zeros(unit.shape[1])
    for _ in range(30):
        k = rng.normal(size=3)
        k *= rng.uniform(*waves) / np.linalg.norm(k)
        bump += np.cos(k @ unit + rng.uniform(0, 2 * math.pi))
    radius = np.zeros(shape)
    radius[near] = diameter_um / 2 * (1 + math.sqrt(2 / 30) * amplitude * bump)
    return soft(radius - r, 0.12)


def as_tomogram(
    occupancy: NDArray[np.float64], *, inside: float = SYMMETRIC, medium: float = MEDIUM, pitch: Triple = PITCH, **more: object
) -> Tomogram:
    """Tomogram of RI ``medium`` .. ``inside``."""
    return Tomogram((medium + (inside - medium) * occupancy).astype(np.float32), pitch, medium, **more)  # type: ignore[arg-type]


def prolate_area(a: float, c: float) -> float:
    """Area of a spheroid of semi-axes a, a, c with c > a (closed form)."""
    e = math.sqrt(1 - (a / c) ** 2)
    return 2 * math.pi * a * a * (1 + c / (a * e) * math.asin(e))


Render = Callable[..., NDArray[np.float64]]
