"""Random exact phantoms (spheres with and without a nucleus, off-centre) and what a reconstruction is judged by.

Truth is that of the sphere; nothing of wbcd's models is between the scattering and the holograms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from helpers_mie import Rig, Sphere, fields, holograms
from numpy.typing import NDArray

from wbcd.records import HologramStack, Optics, Tomogram

MEDIUM_RI = 1.337
OPTICS = Optics(0.532, 1.2, MEDIUM_RI, 0.0625)
ALPHA_ML_G = 0.2
FIT_SEED = 20261122
"""The constants of wbcd.morphology.uncertainty were fitted to this set; what is reported comes from another."""

CORE_SHARE = 0.75
"""The mean RI is judged within this share of the radius, about the found centre: the blur of the edge stays out."""


@dataclass(frozen=True)
class Phantom:
    """One sphere of the random set, with the exposure of its holograms and the seed of their noise."""

    sphere: Sphere
    electrons: float
    seed: int

    def stack(self, rig: Rig | None = None) -> HologramStack:
        """Holograms of the sphere and of the empty medium: shot noise, 8 bits, drifting phase, a carrier off the bins."""
        rng = np.random.default_rng(self.seed)
        carrier = (5.03 + 0.1 * rng.uniform(-1, 1), 4.96 + 0.1 * rng.uniform(-1, 1))
        rig = rig or Rig(electrons=self.electrons, carrier_cycles_um=carrier, phase0=rng.uniform(0, 6))
        w = fields(self.sphere, rig)
        return HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)


def random_phantom(number: int, seed: int = FIT_SEED) -> Phantom:
    """Phantom ``number`` of the set of ``seed``: each is drawn from its own stream, so that a part of the set is the same.

    Diameter 5-14 um, RI 1.355-1.385; every second one with a core of 0.4-0.7 of the radius whose RI departs by
    -0.008..+0.015; centre within 3 um of the middle along each axis; 10,000 and 2,000 electrons in turn.
    """
    rng = np.random.default_rng((seed, number))
    radius = rng.uniform(2.5, 7.0)
    ri = rng.uniform(1.355, 1.385)
    core, departure = rng.uniform(0.4, 0.7), rng.uniform(-0.008, 0.015)
    x, y, z = (float(v) for v in rng.uniform(-3, 3, 3))
    electrons = (10_000.0, 2_000.0)[(number // 2) % 2]
    if number % 2:
        return Phantom(Sphere((core * radius, radius), (ri + departure, ri), (x, y, z)), electrons, number)
    return Phantom(Sphere((radius,), (ri,), (x, y, z)), electrons, number)


@dataclass(frozen=True)
class Errors:
    """Errors of one reconstruction against the sphere: of the mean RI in % of the contrast, of the half-contrast volume
    and of the masked dry mass in %; axial over lateral extent; offset of the found centre along z in um."""

    ri: float
    volume: float
    mass: float
    elongation: float
    z_um: float
    volume_threshold: float
    mass_threshold: float


def _distance2(tomogram: Tomogram, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    z, y, x = (
        np.arange(n) * pitch + origin - c
        for n, pitch, origin, c in zip(tomogram.ri.shape, tomogram.voxel_um, tomogram.origin_um, centre, strict=True)
    )
    squared: NDArray[np.float64] = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2
    return squared


def core_truth(sphere: Sphere) -> float:
    """Mean contrast of the sphere within CORE_SHARE of its radius."""
    radius = CORE_SHARE * sphere.radii_um[-1]
    total = inner = 0.0
    for shell, ri in zip(sphere.radii_um, sphere.ri, strict=True):
        outer = min(shell, radius)
        total += (outer**3 - inner**3) * (ri - MEDIUM_RI)
        inner = outer
    return total / radius**3


def judge(tomogram: Tomogram, sphere: Sphere) -> Errors:
    """Errors of a tomogram that holds the sphere alone, at the true half-contrast level of its shell."""
    contrast = tomogram.ri.astype(np.float64) - MEDIUM_RI
    inside = contrast > 0.5 * (sphere.ri[-1] - MEDIUM_RI)
    positions = np.argwhere(inside) * tomogram.voxel_um + tomogram.origin_um
    centre = positions.mean(0)
    voxel = float(np.prod(tomogram.voxel_um))
    core = contrast[_distance2(tomogram, centre) < (CORE_SHARE * sphere.radii_um[-1]) ** 2].mean()
    spread = positions.std(0)
    above = tomogram.ri > 1.35

    def percent(found: float, truth: float) -> float:
        return 100 * (found / truth - 1)

    mass = sphere.mass_pg(MEDIUM_RI, ALPHA_ML_G)
    return Errors(
        ri=percent(core, core_truth(sphere)),
        volume=percent(inside.sum() * voxel, sphere.volume_fl),
        mass=percent(contrast[inside].sum() * voxel / ALPHA_ML_G, mass),
        elongation=float(spread[0] / np.sqrt(spread[1] * spread[2])),
        z_um=float(centre[0] - sphere.centre_um[2]),
        volume_threshold=percent(above.sum() * voxel, sphere.volume_fl),
        mass_threshold=percent(contrast[above].sum() * voxel / ALPHA_ML_G, mass),
    )
