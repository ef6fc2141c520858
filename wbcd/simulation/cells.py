"""Phantoms of the four leukocyte classes, drawn from the published populations.

Ryu et al. 2021, section 2.1, gives mean and SD of volume, surface area, sphericity, dry mass, density and mean RI; volume
and surface area are read exchanged (docs: only so do sphericity and dry mass follow). A phantom is its parameters; its
geometry follows from its seed, so the same phantom renders at any pitch.

Shape: a star-shaped surface r = r0 exp(h), h a sum of spherical harmonics with a 1/f-like power spectrum, its amplitude
solved so that the sphericity is the drawn one. Inside: a class-specific nucleus of *lower* density than the cytoplasm
(0.86-0.92: Schuermann 2016, Steelman 2017), nucleoli, granules, vacuoles, lipid droplets (RI 1.42). The dry mass is the
drawn one exactly, at every pitch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import sph_harm_y
from skimage.measure import marching_cubes, mesh_surface_area
from torch import Tensor

from wbcd.errors import BadValue
from wbcd.records import Shape3, Triple

CLASSES = ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte")
OTHER_KINDS = ("debris", "doublet", "empty")
KINDS = CLASSES + OTHER_KINDS

RI_INCREMENT_ML_G = 0.2
"""alpha in n = n_m + alpha C; 1 mL/g = 1 um^3/pg."""
LIPID_RI = 1.42
NUCLEOLUS, GRANULE, VACUOLE = 1.18, 1.35, 0.62
"""Density relative to the cytoplasm."""
INCLUSIONS: Mapping[float, str] = {NUCLEOLUS: "nucleoli", GRANULE: "granules", VACUOLE: "vacuoles"}
TRUNCATION_SD = 2.8
MAX_DEGREE = 18
MAX_AMPLITUDE = 0.35
"""Of a surface's roughness, as a share of the radius: beyond it, it would fold."""
_THETAS, _PHIS = 129, 256


@dataclass(frozen=True, slots=True)
class Population:
    """One class as published (mean, SD): volume in fL, surface in um2, dry mass in pg, density in g/dL."""

    volume_fl: tuple[float, float]
    surface_um2: tuple[float, float]
    sphericity: tuple[float, float]
    dry_mass_pg: tuple[float, float]
    density_g_dl: tuple[float, float]

    def correlations(self) -> tuple[float, float]:
        """(volume, density) and (volume, sphericity) correlations that make the SD of mass and of surface follow.

        First order in relative deviations: mass = V C, surface ~ V^(2/3) / sphericity.
        """
        v, s, p, m, c = (sd / mean for mean, sd in (
            self.volume_fl, self.surface_um2, self.sphericity, self.dry_mass_pg, self.density_g_dl
        ))  # fmt: skip
        with_density = (m**2 - v**2 - c**2) / (2 * v * c)
        with_sphericity = ((2 / 3 * v) ** 2 + p**2 - s**2) / (2 * (2 / 3 * v) * p)
        return float(np.clip(with_density, -0.9, 0.9)), float(np.clip(with_sphericity, -0.9, 0.9))


POPULATIONS: Mapping[str, Population] = {
    "b_lymphocyte": Population((169.39, 49.21), (185.05, 34.86), (0.794, 0.026), (26.44, 8.13), (15.58, 1.05)),
    "t_lymphocyte": Population((263.35, 48.84), (232.31, 30.35), (0.854, 0.022), (41.19, 7.88), (15.67, 0.83)),
    "monocyte": Population((498.29, 80.60), (422.79, 61.31), (0.725, 0.076), (75.38, 14.01), (15.15, 1.55)),
    "myelocyte": Population((536.59, 91.01), (404.19, 53.10), (0.792, 0.057), (91.80, 17.51), (17.09, 1.26)),
}

DRAWN: Mapping[str, Population] = {
    "b_lymphocyte": Population((150.6, 43.1), (172.9, 32.1), (0.785, 0.028), (26.43, 7.94), (17.56, 1.24)),
    "t_lymphocyte": Population((236.9, 42.3), (216.3, 28.3), (0.855, 0.023), (40.94, 7.66), (17.34, 0.94)),
    "monocyte": Population((456.0, 71.8), (398.6, 58.7), (0.725, 0.081), (75.67, 13.58), (16.67, 1.86)),
    "myelocyte": Population((479.9, 76.9), (374.5, 49.0), (0.794, 0.061), (90.71, 17.23), (18.90, 1.52)),
}
"""What phantoms are drawn from, so that what is *measured* above RI 1.35 has the published means and spreads: optics and
reconstruction widen a cell and thin its protein. Found by tests/benchmarks/fit_populations.py."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What a class looks like inside; ranges are drawn uniformly.

    ``nucleus_fraction`` of the cell's volume; ``nucleus_density`` relative to the cytoplasm; ``eccentricity``: offset of
    the nucleus over the room it has; ``elongation``: log axial ratio of the cell; counts of inclusions; ``texture``: relative
    rms of cytoplasm and of nucleoplasm (chromatin clumps); ``spectrum``: exponent p of the surface's amplitude ~ l^-p.
    """

    nucleus: str
    nucleus_fraction: tuple[float, float]
    nucleus_density: tuple[float, float]
    eccentricity: tuple[float, float]
    nucleus_elongation: tuple[float, float]
    nucleoli: tuple[int, int]
    granules: tuple[int, int]
    vacuoles: tuple[int, int]
    lipids: tuple[int, int]
    elongation: tuple[float, float]
    texture: tuple[float, float]
    spectrum: float


ANATOMY: Mapping[str, Anatomy] = {
    "b_lymphocyte": Anatomy(
        nucleus="oval", nucleus_fraction=(0.52, 0.66), nucleus_density=(0.88, 0.92), eccentricity=(0.3, 0.8),
        nucleus_elongation=(0.04, 0.16), nucleoli=(0, 1), granules=(0, 6), vacuoles=(0, 1), lipids=(0, 1),
        elongation=(0.02, 0.12), texture=(0.03, 0.07), spectrum=0.3,
    ),
    "t_lymphocyte": Anatomy(
        nucleus="oval", nucleus_fraction=(0.54, 0.68), nucleus_density=(0.88, 0.92), eccentricity=(0.0, 0.4),
        nucleus_elongation=(0.0, 0.07), nucleoli=(0, 1), granules=(0, 8), vacuoles=(0, 1), lipids=(0, 1),
        elongation=(0.0, 0.08), texture=(0.03, 0.06), spectrum=0.5,
    ),
    "monocyte": Anatomy(
        nucleus="horseshoe", nucleus_fraction=(0.24, 0.36), nucleus_density=(0.86, 0.90), eccentricity=(0.2, 0.6),
        nucleus_elongation=(0.0, 0.0), nucleoli=(0, 2), granules=(15, 50), vacuoles=(2, 9), lipids=(0, 4),
        elongation=(0.05, 0.2), texture=(0.05, 0.03), spectrum=0.2,
    ),
    "myelocyte": Anatomy(
        nucleus="oval", nucleus_fraction=(0.34, 0.48), nucleus_density=(0.86, 0.90), eccentricity=(0.7, 1.0),
        nucleus_elongation=(0.15, 0.30), nucleoli=(1, 3), granules=(60, 140), vacuoles=(0, 2), lipids=(0, 3),
        elongation=(0.02, 0.15), texture=(0.05, 0.04), spectrum=0.4,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phantom:
    """The parameters of one simulated object; geometry follows from ``seed``.

    ``granularity``: factor on the strength of the texture (a donor's). ``parts`` holds (phantom, offset z/y/x in
    um) of compound objects. ``radius_um`` bounds the object from its centre.
    """

    kind: str
    seed: int
    volume_fl: float = 0.0
    density_g_dl: float = 0.0
    sphericity: float = 1.0
    medium_ri: float = 1.337
    parts: tuple[tuple[Phantom, Triple], ...] = ()
    granularity: float = 1.0

    @property
    def dry_mass_pg(self) -> float:
        """Volume times density: 1 g/dL = 0.01 pg/fL."""
        return self.volume_fl * self.density_g_dl / 100

    @property
    def radius_um(self) -> float:
        """Greatest distance of the surface from the centre."""
        if self.parts:
            return max(part.radius_um + math.hypot(*offset) for part, offset in self.parts)
        return geometry(self).surface.greatest_um if self.volume_fl else 0.0


@dataclass(frozen=True, slots=True)
class Truth:
    """The ideal object, measured on its own noise-free volume above RI ``threshold_ri``; surface by a mesh."""

    kind: str
    volume_fl: float
    surface_area_um2: float
    sphericity: float
    dry_mass_pg: float
    protein_density_g_dl: float
    mean_ri: float
    max_ri: float
    dry_mass_total_pg: float
    threshold_ri: float = 1.35


# --- drawing ---------------------------------------------------------------------------------------


def sample_phantom(kind: str, rng: np.random.Generator, *, medium_ri: float = 1.337) -> Phantom:
    """Draw one object of ``kind`` (one of :data:`KINDS`); raises BadValue for any other."""
    seed = int(rng.integers(2**62))
    if kind in POPULATIONS:
        volume, density, sphericity = _draw(DRAWN[kind], rng)
        return Phantom(kind, seed, volume, density, sphericity, medium_ri)
    if kind == "debris":
        return Phantom(kind, seed, rng.uniform(1.0, 7.0), rng.uniform(7.5, 14.0), rng.uniform(0.75, 0.95), medium_ri)
    if kind == "doublet":
        return _doublet(seed, rng, medium_ri)
    if kind == "empty":
        return Phantom(kind, seed, medium_ri=medium_ri)
    raise BadValue(f"Simulated object {kind!r} is unknown; it must be one of {', '.join(KINDS)}.")


def _draw(population: Population, rng: np.random.Generator) -> tuple[float, float, float]:
    """Volume, density, sphericity: jointly normal, drawn again beyond 2.8 SD (within the limits of a star-shaped body)."""
    with_density, with_sphericity = population.correlations()
    covariance = np.array([[1, with_density, with_sphericity], [with_density, 1, 0], [with_sphericity, 0, 1]])
    factor = np.linalg.cholesky(covariance)
    rows = (population.volume_fl, population.density_g_dl, population.sphericity)
    while True:
        deviates = factor @ rng.standard_normal(3)
        volume, density, sphericity = (mean + sd * d for (mean, sd), d in zip(rows, deviates, strict=True))
        if np.abs(deviates).max() < TRUNCATION_SD and 0.56 < sphericity < 0.94:
            return float(volume), float(density), float(sphericity)


def _doublet(seed: int, rng: np.random.Generator, medium_ri: float) -> Phantom:
    """Two cells of any classes grown together, the axis near the focal plane."""
    kinds = [CLASSES[i] for i in rng.integers(len(CLASSES), size=2)]
    pair = [sample_phantom(kind, rng, medium_ri=medium_ri) for kind in kinds]
    radii = [(3 * p.volume_fl / (4 * math.pi)) ** (1 / 3) for p in pair]
    distance = 0.97 * sum(radii)
    angle, lift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3)
    axis = (math.sin(lift), math.cos(lift) * math.sin(angle), math.cos(lift) * math.cos(angle))
    share = radii[1] / sum(radii)
    first, second = (tuple(distance * w * a for a in axis) for w in (-share, 1 - share))
    volume = sum(p.volume_fl for p in pair)
    density = 100 * sum(p.dry_mass_pg for p in pair) / volume
    parts = ((pair[0], (first[0], first[1], first[2])), (pair[1], (second[0], second[1], second[2])))
    return Phantom("doublet", seed, volume, density, 1.0, medium_ri, parts)


# --- geometry --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Surface:
    """A star-shaped surface about ``centre_um``: tables [theta, phi + 1] of the radius in um and of 1/sqrt(1 + |grad h|^2)."""

    radius: Tensor
    steepness: Tensor
    centre_um: Triple

    @property
    def greatest_um(self) -> float:
        """Greatest radius."""
        return float(self.radius.max())

    def depth(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Distance inside the surface (um; negative outside), first order, of broadcast coordinates."""
        dz, dy, dx = (axis - c for axis, c in zip((z, y, x), self.centre_um, strict=True))
        across = dx.square() + dy.square()
        distance = (across + dz.square()).sqrt()
        theta = torch.atan2(across.sqrt().expand_as(distance), dz.expand_as(distance))
        phi = torch.atan2(dy, dx).expand_as(distance)
        table = torch.stack([self.radius, self.steepness])[None]
        grid = torch.stack([_grid(phi.remainder(2 * math.pi) / (2 * math.pi)), _grid(theta / math.pi)], -1)
        found = torch.nn.functional.grid_sample(
            table, grid.reshape(1, -1, 1, 2), mode="bilinear", padding_mode="border", align_corners=True
        )
        radius, steepness = found[0, :, :, 0].reshape(2, *distance.shape)
        depth: Tensor = (radius - distance) * steepness
        return depth


def _grid(fraction: Tensor) -> Tensor:
    """0..1 to the -1..1 of grid_sample with aligned corners."""
    return 2 * fraction - 1


@dataclass(frozen=True, slots=True)
class Arc:
    """A bent sausage (a monocyte's nucleus): an arc of a circle, thickened by ``tube_um``. ``frame``: rotation [3, 3]."""

    frame: NDArray[np.float64]
    centre_um: Triple
    bend_um: float
    half_angle: float
    tube_um: float

    def depth(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Distance inside, um."""
        dz, dy, dx = (axis - c for axis, c in zip((z, y, x), self.centre_um, strict=True))
        u, v, w = (float(r[0]) * dx + float(r[1]) * dy + float(r[2]) * dz for r in self.frame)
        angle = torch.atan2(v, u).clamp(-self.half_angle, self.half_angle)
        du, dv = u - self.bend_um * torch.cos(angle), v - self.bend_um * torch.sin(angle)
        return self.tube_um - (du.square() + dv.square() + w.square()).sqrt()


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A small sphere: centre (z, y, x) and radius in um; ``density`` relative to the cytoplasm, or ``ri`` as an absolute."""

    centre_um: Triple
    radius_um: float
    density: float = 1.0
    ri: float | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a phantom's seed says: outline, nucleus, inclusions and the texture's lattice."""

    surface: Surface
    nucleus: Surface | Arc | None
    nucleus_density: float
    inclusions: tuple[Inclusion, ...]
    texture: tuple[float, float]
    lattice: Tensor


@lru_cache(maxsize=64)
def geometry(phantom: Phantom) -> Geometry:
    """The geometry of a simple phantom (not of a compound or empty one)."""
    rng = np.random.default_rng(phantom.seed)
    anatomy = ANATOMY.get(phantom.kind)
    elongation = rng.uniform(*anatomy.elongation) if anatomy else 0.0
    spectrum = anatomy.spectrum if anatomy else 1.0
    outline = _surface(rng, phantom.volume_fl, phantom.sphericity, elongation, spectrum)
    lattice = torch.from_numpy(rng.standard_normal((2, _LATTICE, _LATTICE, _LATTICE)).astype(np.float32))
    if anatomy is None:
        return Geometry(outline, None, 1.0, (), (0.0, 0.0), lattice)
    nucleus = _nucleus(rng, phantom, anatomy)
    inclusions = _inclusions(rng, phantom, anatomy, nucleus)
    texture = (anatomy.texture[0] * phantom.granularity, anatomy.texture[1] * phantom.granularity)
    return Geometry(outline, nucleus, rng.uniform(*anatomy.nucleus_density), inclusions, texture, lattice)


@lru_cache(maxsize=1)
def _legendre() -> NDArray[np.float64]:
    """Associated Legendre functions [degree, order, theta] of unit rms over the sphere, for 2 <= degree <= MAX_DEGREE."""
    theta = np.linspace(0, np.pi, _THETAS)
    tables = np.zeros((MAX_DEGREE + 1, MAX_DEGREE + 1, _THETAS))
    for degree in range(2, MAX_DEGREE + 1):
        for order in range(degree + 1):
            scale = math.sqrt(4 * math.pi) * (1.0 if order == 0 else math.sqrt(2))
            tables[degree, order] = scale * sph_harm_y(degree, order, theta, 0.0).real
    return tables


@lru_cache(maxsize=1)
def _weight() -> NDArray[np.float64]:
    """Solid angle of each node [theta, phi]."""
    theta = np.linspace(0, np.pi, _THETAS)[:, None]
    return np.repeat(np.sin(theta) * (np.pi / (_THETAS - 1)) * (2 * np.pi / _PHIS), _PHIS, axis=1)


def _roughness(rng: np.random.Generator, spectrum: float, max_degree: int) -> NDArray[np.float64]:
    """Random field [theta, phi] of unit rms: real spherical harmonics of degrees 3 and up, amplitude ~ l^-spectrum."""
    degree = np.arange(MAX_DEGREE + 1.0)
    amplitude = np.zeros_like(degree)
    used = (degree >= 3) & (degree <= max_degree)
    amplitude[used] = degree[used] ** -spectrum / np.sqrt(2 * degree[used] + 1)
    cosine, sine = rng.standard_normal((2, MAX_DEGREE + 1, MAX_DEGREE + 1)) * amplitude[None, :, None]
    phase = np.arange(MAX_DEGREE + 1)[:, None] * np.linspace(0, 2 * np.pi, _PHIS, endpoint=False)[None, :]
    even = np.einsum("lm,lmt->tm", cosine, _legendre()) @ np.cos(phase)
    odd = np.einsum("lm,lmt->tm", sine, _legendre()) @ np.sin(phase)
    rough: NDArray[np.float64] = even + odd
    return rough / math.sqrt(float((rough**2 * _weight()).sum()) / (4 * math.pi))


def _surface(
    rng: np.random.Generator, volume_fl: float, sphericity: float, elongation: float, spectrum: float,
    centre_um: Triple = (0.0, 0.0, 0.0), max_degree: int = MAX_DEGREE,
) -> Surface:  # fmt: skip
    """A rough, slightly elongated body of the given volume and sphericity, in random orientation.

    h = elongation along a random axis + a g, g ~ l^-p; ``a`` is the root of the surface integral's sphericity.
    """
    weight = _weight()
    rough = 2 * np.tanh(_roughness(rng, spectrum, max_degree) / 2)  # rare far-reaching spikes are no part of a cell's outline
    axis = _rotation(rng)[0]
    stretch = elongation * (1.5 * _cosine(axis) ** 2 - 0.5)
    h = stretch + _amplitude(stretch, rough, weight, sphericity) * rough
    scale = (3 * volume_fl / float((np.exp(3 * h) * weight).sum())) ** (1 / 3)
    steepness = 1 / np.sqrt(1 + _slope2(h))
    return Surface(_table(scale * np.exp(h)), _table(steepness), centre_um)


def _amplitude(
    stretch: NDArray[np.float64], rough: NDArray[np.float64], weight: NDArray[np.float64], sphericity: float
) -> float:
    """Share of ``rough`` that makes the body as little spherical as asked; at the ends where it cannot be."""

    def surplus(amplitude: float) -> float:
        return _sphericity(stretch + amplitude * rough, weight) - sphericity

    if surplus(0.0) <= 0:
        return 0.0
    return float(brentq(surplus, 0.0, MAX_AMPLITUDE, xtol=1e-6)) if surplus(MAX_AMPLITUDE) < 0 else MAX_AMPLITUDE


def _cosine(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    theta = np.linspace(0, np.pi, _THETAS)[:, None]
    phi = np.linspace(0, 2 * np.pi, _PHIS, endpoint=False)[None, :]
    east, north, up = (float(a) for a in axis)
    cosine: NDArray[np.float64] = np.sin(theta) * (np.cos(phi) * east + np.sin(phi) * north) + np.cos(theta) * up
    return cosine


def _slope2(h: NDArray[np.float64]) -> NDArray[np.float64]:
    """|grad h|^2 on the unit sphere, central differences."""
    theta = np.linspace(0, np.pi, _THETAS)[:, None]
    along = np.gradient(h, np.pi / (_THETAS - 1), axis=0)
    around = (np.roll(h, -1, 1) - np.roll(h, 1, 1)) / (2 * 2 * np.pi / _PHIS)
    around = around / np.maximum(np.sin(theta), 0.5 * np.pi / (_THETAS - 1))
    around[[0, -1]] = 0.0
    return along**2 + around**2


def _sphericity(h: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """pi^(1/3) (6 V)^(2/3) / S of r = exp(h): V = int r^3/3, S = int r^2 sqrt(1 + |grad h|^2)."""
    volume = float((np.exp(3 * h) * weight).sum()) / 3
    area = float((np.exp(2 * h) * np.sqrt(1 + _slope2(h)) * weight).sum())
    return float(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area)


def _table(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.concatenate([values, values[:, :1]], 1).astype(np.float32))


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniformly random rotation [3, 3]; rows are unit vectors (x, y, z)."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    turned: NDArray[np.float64] = q * np.sign(np.diag(r))
    return turned


def _nucleus(rng: np.random.Generator, phantom: Phantom, anatomy: Anatomy) -> Surface | Arc:
    volume = phantom.volume_fl * rng.uniform(*anatomy.nucleus_fraction)
    cell = _equal_radius(phantom.volume_fl)
    direction = _rotation(rng)[0]
    shift = rng.uniform(*anatomy.eccentricity)
    if anatomy.nucleus == "horseshoe":
        return _horseshoe(rng, volume, cell, direction, shift)
    room = max(cell - _equal_radius(volume) - 0.25, 0.0)
    centre = (direction * shift * room)[::-1]
    stretch = rng.uniform(*anatomy.nucleus_elongation)
    smooth = 0.985 - 0.25 * stretch**2 - rng.uniform(0.0, 0.015)
    return _surface(rng, volume, smooth, stretch, 1.5, (float(centre[0]), float(centre[1]), float(centre[2])), max_degree=7)


def _horseshoe(rng: np.random.Generator, volume: float, cell: float, direction: NDArray[np.float64], shift: float) -> Arc:
    """Bent sausage of the given volume: 2 half_angle bend pi tube^2 + 4/3 pi tube^3."""
    bend = cell * rng.uniform(0.38, 0.46)
    half_angle = math.radians(rng.uniform(75, 125))
    tube = 1.0
    for _ in range(12):
        tube -= (2 * half_angle * bend * math.pi * tube**2 + 4 / 3 * math.pi * tube**3 - volume) / (
            4 * half_angle * bend * math.pi * tube + 4 * math.pi * tube**2
        )
    room = max(cell - bend - tube, 0.0)
    centre = (direction * shift * room)[::-1]
    return Arc(_rotation(rng), (float(centre[0]), float(centre[1]), float(centre[2])), bend, half_angle, tube)


def _equal_radius(volume_fl: float) -> float:
    return float((3 * volume_fl / (4 * math.pi)) ** (1 / 3))


def _inclusions(rng: np.random.Generator, phantom: Phantom, anatomy: Anatomy, nucleus: Surface | Arc) -> tuple[Inclusion, ...]:
    cell = _equal_radius(phantom.volume_fl)
    made: list[Inclusion] = []

    def add(
        count: tuple[int, int], radius: tuple[float, float], inside: bool, reach: float, share: float = 1.0, **kind: Any
    ) -> None:
        number = round(share * int(rng.integers(count[0], count[1] + 1)))
        sizes = rng.uniform(*radius, number)
        for size, place in zip(sizes, _places(rng, nucleus, cell * reach - sizes, sizes, inside), strict=True):
            if place is not None:
                made.append(Inclusion(place, float(size), **kind))

    add(anatomy.nucleoli, (0.45, 0.8), True, 1.0, density=NUCLEOLUS)
    add(anatomy.granules, (0.18, 0.32), False, 0.9, density=GRANULE)
    add(anatomy.vacuoles, (0.25, 0.6), False, 0.85, density=VACUOLE)
    add(anatomy.lipids, (0.2, 0.38), False, 0.85, ri=LIPID_RI)
    return tuple(made)


def _places(
    rng: np.random.Generator, nucleus: Surface | Arc, reach: NDArray[np.float64], size: NDArray[np.float64], inside: bool
) -> list[Triple | None]:
    """A random place for each sphere, in the nucleus or outside it; None where forty tries find no room."""
    points = rng.uniform(-1, 1, (len(size), TRIES, 3)) * np.maximum(reach, 0)[:, None, None]
    z, y, x = (torch.from_numpy(points[..., axis].astype(np.float32)) for axis in range(3))
    depth = nucleus.depth(z, y, x).numpy()
    room = depth > size[:, None] + 0.1 if inside else depth < -size[:, None]
    room &= np.linalg.norm(points, axis=-1) <= reach[:, None]
    first = room.argmax(axis=1)
    places = [(float(p[0]), float(p[1]), float(p[2])) for p in points[np.arange(len(size)), first]]
    return [place if fits else None for place, fits in zip(places, np.asarray(room.any(axis=1)), strict=True)]


def parameters_of(phantom: Phantom) -> dict[str, float]:
    """Everything that was drawn for a single cell, as numbers: what a perfect instrument and a perfect reader could know.

    Volumes in fL, lengths in um, angles in rad, density in g/dL; a nucleus that is not bent has angle and bend 0.
    """
    parts = geometry(phantom)
    nucleus, volume, angle, bend, longest, aside = parts.nucleus, 0.0, 0.0, 0.0, 1.0, 0.0
    if isinstance(nucleus, Arc):
        angle, bend = nucleus.half_angle, nucleus.bend_um
        volume = 2 * angle * bend * math.pi * nucleus.tube_um**2 + 4 / 3 * math.pi * nucleus.tube_um**3
    elif nucleus is not None:
        radius = nucleus.radius.numpy()[:, :-1].astype(np.float64)
        volume = float((radius**3 * _weight()).sum()) / 3
        longest = float(radius.max() / radius.min())
    if nucleus is not None:
        aside = math.hypot(*nucleus.centre_um)
    numbers = dict.fromkeys(("nucleoli", "granules", "vacuoles", "lipids"), 0)
    for inclusion in parts.inclusions:
        numbers["lipids" if inclusion.ri is not None else INCLUSIONS[inclusion.density]] += 1
    return {
        "volume_fl": phantom.volume_fl,
        "density_g_dl": phantom.density_g_dl,
        "sphericity": phantom.sphericity,
        "dry_mass_pg": phantom.dry_mass_pg,
        "radius_um": phantom.radius_um,
        "nucleus_fl": volume,
        "nucleus_share": volume / phantom.volume_fl,
        "nucleus_density": parts.nucleus_density,
        "nucleus_aside_um": aside,
        "nucleus_long": longest,
        "nucleus_bend_um": bend,
        "nucleus_half_angle": angle,
        **numbers,
    }


@lru_cache(maxsize=1)
def phantoms_digest() -> str:
    """BLAKE2b-128 of what phantoms are: the tables they are drawn from, and some of them as they come out (to 4 digits)."""
    said: dict[str, Any] = {
        "drawn": {kind: asdict(population) for kind, population in DRAWN.items()},
        "anatomy": {kind: asdict(anatomy) for kind, anatomy in ANATOMY.items()},
        "constants": [RI_INCREMENT_ML_G, LIPID_RI, TRUNCATION_SD, MAX_DEGREE, MAX_AMPLITUDE, _LATTICE_UM],
        "cells": [],
    }
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        phantom = sample_phantom(kind, rng)
        voxel = (0.4, 0.4, 0.4)
        ri = render(phantom, voxel, canonical_shape(phantom, voxel)).astype(np.float64) - phantom.medium_ri
        numbers = [*parameters_of(phantom).values(), 1e3 * ri.mean(), 1e3 * ri.std(), 1e3 * ri.max()]
        said["cells"].append([f"{number:.3e}" for number in numbers])
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


# --- rendering -------------------------------------------------------------------------------------

TRIES = 40
_LATTICE = 28
_LATTICE_UM = 0.75


def axes(voxel_um: Triple, shape: Shape3, offset_um: Triple = (0.0, 0.0, 0.0)) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (z, y, x) of the voxel centres from the object's centre; index n // 2 is the middle of the volume."""
    z, y, x = ((torch.arange(n) - n // 2) * d - c for n, d, c in zip(shape, voxel_um, offset_um, strict=True))
    return z.float()[:, None, None], y.float()[None, :, None], x.float()[None, None, :]


def render(phantom: Phantom, voxel_um: Triple, shape: Shape3, *, offset_um: Triple = (0.0, 0.0, 0.0)) -> NDArray[np.float32]:
    """RI float32 [z, y, x] of the object, edges smooth over one voxel; its centre lies ``offset_um`` off the middle voxel."""
    excess = np.zeros(shape, np.float32)
    for part, shift in phantom.parts or ((phantom, (0.0, 0.0, 0.0)),):
        if part.volume_fl > 0:
            place = (offset_um[0] + shift[0], offset_um[1] + shift[1], offset_um[2] + shift[2])
            _render_one(part, voxel_um, place, excess)
    excess += np.float32(phantom.medium_ri)
    return excess


def _render_one(phantom: Phantom, voxel_um: Triple, offset_um: Triple, excess: NDArray[np.float32]) -> None:
    """Lay one cell's RI excess over the volume; where two overlap the denser stays."""
    shape: Shape3 = (excess.shape[0], excess.shape[1], excess.shape[2])
    reach = geometry(phantom).surface.greatest_um + 0.3
    box = _box(voxel_um, shape, offset_um, reach)
    if any(b.stop <= b.start for b in box):
        return
    z, y, x = axes(voxel_um, shape, offset_um)
    z, y, x = z[box[0]], y[:, box[1]], x[:, :, box[2]]
    # A cell cut by the volume's edge would have its mass squeezed into the part that shows.
    whole = all(b.start > 0 and b.stop < n for b, n in zip(box, shape, strict=True))
    cell = _excess(phantom, voxel_um, z, y, x, whole=whole).numpy()
    np.maximum(excess[box], cell, out=excess[box])


def _box(voxel_um: Triple, shape: Shape3, offset_um: Triple, reach: float) -> tuple[slice, slice, slice]:
    low = [max(0, math.floor((c - reach) / d) + n // 2) for c, d, n in zip(offset_um, voxel_um, shape, strict=True)]
    high = [min(n, math.ceil((c + reach) / d) + n // 2 + 1) for c, d, n in zip(offset_um, voxel_um, shape, strict=True)]
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def _excess(phantom: Phantom, voxel_um: Triple, z: Tensor, y: Tensor, x: Tensor, *, whole: bool) -> Tensor:
    """n - n_m [z, y, x] = alpha C, with the drawn dry mass."""
    parts = geometry(phantom)
    edge = max(voxel_um)
    depth = parts.surface.depth(z, y, x)
    inside = _cover(depth, edge)
    density = torch.ones_like(inside)
    lipid = torch.zeros_like(inside)
    if parts.nucleus is not None:
        in_nucleus = torch.minimum(_cover(parts.nucleus.depth(z, y, x), edge), _cover(depth - 0.35, edge))
        textures = _texture(parts.lattice, z, y, x)
        cytoplasm = 1 + parts.texture[0] * textures[0]
        nucleoplasm = parts.nucleus_density * (1 + parts.texture[1] * textures[1])
        density = cytoplasm + in_nucleus * (nucleoplasm - cytoplasm)
        _include(parts.inclusions, density, lipid, (z, y, x), edge)
    protein = density * inside * (1 - lipid)
    fat = lipid * inside * ((LIPID_RI - phantom.medium_ri) / RI_INCREMENT_ML_G)
    # Density in pg/fL; the drawn mass is met exactly on the grid at hand.
    voxel = voxel_um[0] * voxel_um[1] * voxel_um[2]
    if whole:
        scale = (phantom.dry_mass_pg / voxel - float(fat.sum())) / max(float(protein.sum()), 1e-9)
    else:
        scale = phantom.density_g_dl / 100
    return (protein * max(scale, 0.0) + fat) * RI_INCREMENT_ML_G


def _cover(depth: Tensor, edge: float) -> Tensor:
    """Share of a voxel inside a surface at ``depth``: linear over one voxel."""
    return (depth / edge + 0.5).clamp_(0, 1)


def _texture(lattice: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Two smooth random fields [2, z, y, x] of unit rms, by cubic B-splines on a lattice of 0.75 um: the same at any pitch."""
    wz, wy, wx = (_spline(axis.flatten()) for axis in (z, y, x))
    field = torch.einsum("cijk,xk->cijx", lattice, wx)
    field = torch.einsum("cijx,yj->ciyx", field, wy)
    return torch.einsum("ciyx,zi->czyx", field, wz) / 0.33


def _spline(axis: Tensor) -> Tensor:
    """Cubic B-spline weights [points, lattice]; their rms over all phases in three dimensions is 0.33."""
    t = (axis[:, None] / _LATTICE_UM - (torch.arange(_LATTICE) - _LATTICE / 2)).abs()
    near = 2 / 3 - t**2 + t**3 / 2
    far = (2 - t).clamp_min(0) ** 3 / 6
    return torch.where(t < 1, near, far)


def _include(
    inclusions: tuple[Inclusion, ...], density: Tensor, lipid: Tensor, grid: tuple[Tensor, Tensor, Tensor], edge: float
) -> None:
    """Lay spheres into the density (relative) and lipid (share) maps, in place."""
    flat = [axis.flatten().numpy() for axis in grid]
    for sphere in inclusions:
        reach = sphere.radius_um + edge
        box = tuple(
            slice(int(np.searchsorted(axis, c - reach)), int(np.searchsorted(axis, c + reach)))
            for axis, c in zip(flat, sphere.centre_um, strict=True)
        )
        near = [torch.from_numpy(axis[b] - c) for axis, b, c in zip(flat, box, sphere.centre_um, strict=True)]
        distance = (near[0][:, None, None] ** 2 + near[1][None, :, None] ** 2 + near[2][None, None, :] ** 2).sqrt()
        cover = _cover(sphere.radius_um - distance, edge)
        if sphere.ri is None:
            density[box] += cover * (sphere.density - 1)
        else:
            lipid[box] = torch.maximum(lipid[box], cover)


# --- truth -----------------------------------------------------------------------------------------


def canonical_shape(phantom: Phantom, voxel_um: Triple, margin_um: float = 0.5) -> Shape3:
    """Smallest even shape that holds the object about its centre with a margin."""
    parts = phantom.parts or ((phantom, (0.0, 0.0, 0.0)),)
    reach = [max(part.radius_um + abs(offset[axis]) for part, offset in parts) + margin_um for axis in range(3)]
    z, y, x = (2 * math.ceil(r / d) + 2 for r, d in zip(reach, voxel_um, strict=True))
    return z, y, x


def measure_truth(
    phantom: Phantom, ri: NDArray[np.float32] | None = None, voxel_um: Triple = (0.1, 0.1, 0.1), threshold_ri: float = 1.35
) -> Truth:
    """The six parameters of the ideal volume (rendered when not given), by a mesh at ``threshold_ri``."""
    volume = ri if ri is not None else render(phantom, voxel_um, canonical_shape(phantom, voxel_um))
    voxel = math.prod(voxel_um)
    excess = volume - np.float32(phantom.medium_ri)
    total = float(excess.sum(dtype=np.float64)) * voxel / RI_INCREMENT_ML_G
    mask = volume > threshold_ri
    count = int(mask.sum())
    if not count:
        return Truth(phantom.kind, 0.0, 0.0, 0.0, 0.0, 0.0, phantom.medium_ri, float(volume.max()), total, threshold_ri)
    vertices, faces, _, _ = marching_cubes(volume, threshold_ri, spacing=voxel_um)  # type: ignore[no-untyped-call]
    area = float(mesh_surface_area(vertices, faces))  # type: ignore[no-untyped-call]
    enclosed = count * voxel
    mass = float(excess[mask].sum(dtype=np.float64)) * voxel / RI_INCREMENT_ML_G
    return Truth(
        kind=phantom.kind,
        volume_fl=enclosed,
        surface_area_um2=area,
        sphericity=float(math.pi ** (1 / 3) * (6 * enclosed) ** (2 / 3) / area),
        dry_mass_pg=mass,
        protein_density_g_dl=100 * mass / enclosed,
        mean_ri=phantom.medium_ri + RI_INCREMENT_ML_G * mass / enclosed,
        max_ri=float(volume.max()),
        dry_mass_total_pg=total,
        threshold_ri=threshold_ri,
    )
