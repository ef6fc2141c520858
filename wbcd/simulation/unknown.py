"""Objects that no model is trained on: what a sample also holds, to measure whether a classifier knows that it does not know.

Each kind has the size, the refractive index and the inside that the literature gives it; where none is cited the value is an
assumption, chosen so that size and mean RI overlap with the known classes and cannot give the answer away alone.

    neutrophil    299 +- 32 fL (Ting-Beall et al. 1993); nucleus 21 % of the volume (Schmid-Schoenbein et al. 1980), two to five
                  lobes on a thread; fine granules; density assumed between monocyte and myelocyte
    eosinophil    a tenth larger (assumed); nucleus 18 % (Schmid-Schoenbein et al. 1980), two lobes; about 200 dense granules
                  of 0.5-0.8 um
    erythroblast  polychromatic to orthochromatic: 150-350 fL, round condensed nucleus, haemoglobin at 20-30 g/dL (assumed)
    red_cell      the biconcave disc of Evans and Fung 1972 (7.82 +- 0.58 um across), haemoglobin at 33 +- 1.5 g/dL
    debris        irregular fragments and apoptotic bodies of 12-80 fL, 9-25 g/dL (assumed)
    bead          silica microspheres of 3-8 um, RI 1.43-1.46 (fused silica 1.461 at 0.532 um: Malitson 1965; colloidal less)
    doublet       two known cells grown together (:func:`wbcd.simulation.cells.sample_phantom`)

RI follows from density by n = n_m + alpha C, alpha = 0.2 mL/g.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import BadValue
from wbcd.records import Shape3, Tomogram, Triple
from wbcd.simulation.cells import RI_INCREMENT_ML_G, sample_phantom
from wbcd.simulation.fast import RYTOV_DILUTION, RYTOV_WIDENING, FastOptics
from wbcd.simulation.microscope import RENDER_UM, Specimen, rendered

KINDS = ("neutrophil", "eosinophil", "erythroblast", "red_cell", "debris", "bead", "doublet")

WAVES = 12
"""Plane waves on the unit sphere whose sum makes an outline uneven."""
DISC_UM = (0.81, 7.83, -4.39)
"""Evans and Fung 1972: thickness (1 - x^2)^(1/2) (c0 + c1 x^2 + c2 x^4) of a disc at x = distance over its radius."""
DISC_DIAMETER_UM = 7.82
"""That of the disc to which the thickness belongs; a larger or smaller one is scaled as a whole."""

OUTLINE_REACH = 1.6
"""Within this many radii lies the whole of an uneven, stretched outline."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ball:
    """A sphere inside the outline: centre (z, y, x) and radius in um; ``density`` relative to the cytoplasm."""

    centre_um: Triple
    radius_um: float
    density: float


@dataclass(frozen=True, slots=True)
class Stranger:
    """One object: ``delta_ri`` is its mean n - n_m; ``radius_um`` bounds it; ``balls``: nucleus and granules.

    ``waves`` [WAVES, 5]: wave vector (3), phase and amplitude of the outline's unevenness. ``frame``: rotation [3, 3], rows
    are unit vectors (z, y, x). ``disc``: the outline is a biconcave disc, not a ball.
    """

    kind: str
    radius_um: float
    delta_ri: float
    frame: NDArray[np.float64]
    waves: NDArray[np.float64]
    stretch: float = 1.0
    disc: bool = False
    balls: tuple[Ball, ...] = ()


def draw(kind: str, rng: np.random.Generator) -> Stranger:
    """One object of ``kind``, any of :data:`KINDS` but the doublet. Raises BadValue for another."""
    makers = {
        "neutrophil": _neutrophil,
        "eosinophil": _eosinophil,
        "erythroblast": _erythroblast,
        "red_cell": _red_cell,
        "debris": _debris,
        "bead": _bead,
    }
    if kind not in makers:
        raise BadValue(f"Unknown-cell kind {kind!r} cannot be drawn; it must be one of {', '.join(makers)}.")
    return makers[kind](rng)


def tomogram_of(kind: str, rng: np.random.Generator, fast: FastOptics) -> Tomogram:
    """One object of ``kind`` (of :data:`KINDS`) through fast optics, as the instrument would show it."""
    if kind == "doublet":
        return fast.phantom(sample_phantom("doublet", rng), rng)
    stranger = draw(kind, rng)
    # As FastOptics.phantom does it: rendered finer than the grid, wider and paler by what Rytov does to real fields.
    widening = RYTOV_WIDENING * stranger.delta_ri
    factor = max(1, round(fast.voxel_um[2] / 0.1))
    dz, dy, dx = (v / factor / (1 + widening) for v in fast.voxel_um)
    nz, ny, nx = (n * factor for n in fast.shape)
    delta = render(stranger, (dz, dy, dx), (nz, ny, nx))
    ri = np.float32(fast.optics.medium_ri) + delta * np.float32(1 - RYTOV_DILUTION * widening)
    return fast.tomogram(ri.astype(np.float32), rng)


def specimen_of(kind: str, rng: np.random.Generator, medium_ri: float, centre_um: Triple) -> Specimen:
    """One object of ``kind`` (of :data:`KINDS`) for the simulated microscope, its middle at ``centre_um`` (z, y, x)."""
    if kind == "doublet":
        return rendered(sample_phantom("doublet", rng, medium_ri=medium_ri), centre_um)
    stranger = draw(kind, rng)
    nz, ny, nx = (2 * math.ceil(OUTLINE_REACH * stranger.radius_um / d) for d in RENDER_UM)
    ri = np.float32(medium_ri) + render(stranger, RENDER_UM, (nz, ny, nx))
    return Specimen(ri.astype(np.float32), RENDER_UM, centre_um)


def render(stranger: Stranger, voxel_um: Triple, shape: Shape3) -> Array:
    """n - n_m float32 [z, y, x], edges smooth over one voxel; the centre lies on voxel n // 2. Its mean is ``delta_ri``."""
    delta = np.zeros(shape, np.float32)
    reach = [min(n // 2, math.ceil((OUTLINE_REACH * stranger.radius_um) / d)) for n, d in zip(shape, voxel_um, strict=True)]
    box = tuple(slice(n // 2 - r, n // 2 + r) for n, r in zip(shape, reach, strict=True))
    z, y, x = np.meshgrid(
        *(np.arange(-r, r, dtype=np.float32) * np.float32(d) for r, d in zip(reach, voxel_um, strict=True)), indexing="ij"
    )
    edge = max(voxel_um)
    inside = _cover(_disc_depth(stranger, z, y, x) if stranger.disc else _ball_depth(stranger, z, y, x), edge)
    density = np.ones_like(inside)
    for ball in stranger.balls:
        _lay(ball, density, (z, y, x), voxel_um, edge)
    filled = inside * density
    mean = float(filled.sum(dtype=np.float64)) / float(inside.sum(dtype=np.float64))
    delta[box] = filled * np.float32(stranger.delta_ri / mean)
    return delta


# --- outlines --------------------------------------------------------------------------------------


def _cover(depth: Array, edge: float) -> Array:
    cover: Array = np.clip(depth / np.float32(edge) + np.float32(0.5), 0, 1)
    return cover


def _ball_depth(stranger: Stranger, z: Array, y: Array, x: Array) -> Array:
    """Distance inside an uneven ellipsoid of revolution, um, first order."""
    u, v, w = (a * z + b * y + c * x for a, b, c in stranger.frame.astype(np.float32))
    stretch = np.float32(stranger.stretch)
    distance = np.sqrt((u / stretch) ** 2 + (v**2 + w**2) * stretch) + np.float32(1e-6)
    height = np.zeros_like(distance)
    for kz, ky, kx, phase, amplitude in stranger.waves.astype(np.float32):
        height += amplitude * np.cos((kz * u + ky * v + kx * w) / distance + phase)
    depth: Array = np.float32(stranger.radius_um) * np.exp(height) - distance
    return depth


def _disc_depth(stranger: Stranger, z: Array, y: Array, x: Array) -> Array:
    """Distance inside a biconcave disc along its own axis, um."""
    u, v, w = (a * z + b * y + c * x for a, b, c in stranger.frame.astype(np.float32))
    scale = 2 * stranger.radius_um / DISC_DIAMETER_UM
    square = np.minimum((v**2 + w**2) / np.float32(stranger.radius_um**2), 1)
    c0, c1, c2 = DISC_UM
    half = np.float32(scale / 2) * np.sqrt(1 - square) * (c0 + c1 * square + c2 * square**2)
    depth: Array = (half - np.abs(u)).astype(np.float32)
    return depth


def _lay(ball: Ball, density: Array, grid: tuple[Array, Array, Array], voxel_um: Triple, edge: float) -> None:
    """Set the density inside a sphere, in place, in the box around it."""
    first = [float(axis.flat[0]) for axis in grid]
    box = tuple(
        slice(max(0, math.floor((c - ball.radius_um - edge - low) / d)), math.ceil((c + ball.radius_um + edge - low) / d) + 1)
        for c, low, d in zip(ball.centre_um, first, voxel_um, strict=True)
    )
    square = sum((axis[box] - np.float32(c)) ** 2 for axis, c in zip(grid, ball.centre_um, strict=True))
    cover = _cover(np.float32(ball.radius_um) - np.sqrt(square), edge)
    density[box] += cover * (np.float32(ball.density) - density[box])


# --- kinds -----------------------------------------------------------------------------------------


def _neutrophil(rng: np.random.Generator) -> Stranger:
    radius = _radius(float(np.clip(rng.normal(299.0, 32.0), 210, 400)))
    nucleus = _lobes(rng, radius, 0.21, int(rng.choice((2, 3, 4, 5), p=(0.2, 0.45, 0.25, 0.1))))
    granules = _scatter(rng, radius, int(rng.integers(60, 140)), (0.12, 0.22), 1.3, nucleus)
    return Stranger("neutrophil", radius, _delta(rng.uniform(15.0, 17.5)), _rotation(rng), _waves(rng, 0.02), _oval(rng),
                    balls=(*granules, *nucleus))  # fmt: skip


def _eosinophil(rng: np.random.Generator) -> Stranger:
    radius = _radius(float(np.clip(rng.normal(330.0, 40.0), 220, 450)))
    nucleus = _lobes(rng, radius, 0.18, 2)
    granules = _scatter(rng, radius, int(rng.integers(160, 240)), (0.25, 0.4), 1.5, nucleus)
    return Stranger("eosinophil", radius, _delta(rng.uniform(16.0, 19.0)), _rotation(rng), _waves(rng, 0.02), _oval(rng),
                    balls=(*granules, *nucleus))  # fmt: skip


def _erythroblast(rng: np.random.Generator) -> Stranger:
    volume = rng.uniform(150.0, 350.0)
    radius = _radius(volume)
    size = _radius(volume * rng.uniform(0.2, 0.4))
    centre = _direction(rng) * (radius - size) * rng.uniform(0.2, 0.9)
    nucleus = Ball((float(centre[0]), float(centre[1]), float(centre[2])), size, rng.uniform(0.75, 0.95))
    return Stranger("erythroblast", radius, _delta(rng.uniform(20.0, 30.0)), _rotation(rng), _waves(rng, 0.015), _oval(rng),
                    balls=(nucleus,))  # fmt: skip


def _red_cell(rng: np.random.Generator) -> Stranger:
    radius = float(np.clip(rng.normal(DISC_DIAMETER_UM, 0.58), 6.4, 9.4)) / 2
    # Most lie flat on the glass, tilted a little; the frame's first row is the disc's axis.
    lift, turn = abs(rng.normal(0.0, 0.3)), rng.uniform(0, 2 * math.pi)
    axis = np.array([math.cos(lift), math.sin(lift) * math.sin(turn), math.sin(lift) * math.cos(turn)])
    return Stranger("red_cell", radius, _delta(float(rng.normal(33.0, 1.5))), _frame_about(axis), np.zeros((0, 5)), disc=True)


def _debris(rng: np.random.Generator) -> Stranger:
    radius = _radius(rng.uniform(12.0, 80.0))
    return Stranger("debris", radius, _delta(rng.uniform(9.0, 25.0)), _rotation(rng), _waves(rng, 0.12), rng.uniform(0.8, 1.4))


def _bead(rng: np.random.Generator) -> Stranger:
    return Stranger("bead", rng.uniform(1.5, 4.0), rng.uniform(1.43, 1.46) - 1.337, np.eye(3), np.zeros((0, 5)))


def _lobes(rng: np.random.Generator, radius: float, fraction: float, count: int) -> list[Ball]:
    """``count`` lobes on an arc, joined by threads, that fill ``fraction`` of the cell."""
    size = radius * (fraction / count) ** (1 / 3)
    frame = _rotation(rng)
    # A little apart along an arc of 0.5 radii; many lobes close to a ring.
    ring = min(0.55 * radius, radius - size - 0.3)
    step = min(2.15 * size / ring, 2 * math.pi / count)
    places = [ring * (math.cos(i * step) * frame[0] + math.sin(i * step) * frame[1]) for i in range(count)]
    density = rng.uniform(0.86, 0.92)
    made = [Ball((float(p[0]), float(p[1]), float(p[2])), size * rng.uniform(0.92, 1.08), density) for p in places]
    for a, b in itertools.pairwise(places):
        made += [_bead_on(a + t * (b - a), density) for t in np.linspace(0.2, 0.8, 5)]
    return made


def _bead_on(place: NDArray[np.float64], density: float) -> Ball:
    return Ball((float(place[0]), float(place[1]), float(place[2])), 0.25, density)


def _scatter(
    rng: np.random.Generator, radius: float, count: int, size_um: tuple[float, float], density: float, keep_out: list[Ball]
) -> list[Ball]:
    """Granules anywhere in the cytoplasm; one that finds no room in forty tries is left out."""
    centres = np.array([ball.centre_um for ball in keep_out])
    radii = np.array([ball.radius_um for ball in keep_out])
    made: list[Ball] = []
    for _ in range(count):
        size = rng.uniform(*size_um)
        for _ in range(40):
            place = _direction(rng) * (0.92 * radius - size) * rng.uniform() ** (1 / 3)
            if bool((np.linalg.norm(centres - place, axis=1) > radii + size).all()):
                made.append(Ball((float(place[0]), float(place[1]), float(place[2])), size, density))
                break
    return made


def _delta(density_g_dl: float) -> float:
    return RI_INCREMENT_ML_G * density_g_dl / 100


def _radius(volume_fl: float) -> float:
    return float((3 * volume_fl / (4 * math.pi)) ** (1 / 3))


def _oval(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.95, 1.12))


def _waves(rng: np.random.Generator, rms: float) -> NDArray[np.float64]:
    """Of rms height ``rms`` (relative), wave numbers 2 to 7 about the sphere."""
    directions = rng.standard_normal((WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    phase = rng.uniform(0, 2 * math.pi, WAVES)
    vectors = directions * rng.uniform(2, 7, (WAVES, 1))
    return np.column_stack([vectors, phase, np.full(WAVES, rms * math.sqrt(2 / WAVES))])


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.standard_normal(3)
    unit: NDArray[np.float64] = vector / np.linalg.norm(vector)
    return unit


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    turned: NDArray[np.float64] = q * np.sign(np.diag(r))
    return turned


def _frame_about(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows: ``axis`` and two unit vectors across it."""
    helper = np.eye(3)[int(np.abs(axis).argmin())]
    across = np.cross(axis, helper)
    across /= np.linalg.norm(across)
    return np.stack([axis, across, np.cross(axis, across)])
