"""What goes wrong at a microscope: ten defects, each with a strength, put into otherwise good acquisitions.

Most act on one step of the simulation: the object (``replaces``), its place, its path during the scan, the field, the
exposure, or the finished frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.errors import BadValue
from wbcd.records import Triple


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect; ``strength`` in its own unit (see :data:`DEFECTS`)."""

    name: str
    strength: float

    @property
    def replaces(self) -> str | None:
        """The kind of object that stands in for the cell, if the defect is one."""
        return self.name if self.name in ("debris", "doublet", "empty") else None

    @property
    def visibility(self) -> float:
        """Factor on the fringes' visibility."""
        return self.strength if self.name == "low_contrast" else 1.0

    @property
    def gain(self) -> float:
        """Factor on the light."""
        return self.strength if self.name == "saturation" else 1.0

    def place(self, place: Triple, half_um: float, radius_um: float, rng: np.random.Generator) -> Triple:
        """Where the object lies instead: beyond focus, or across the edge of the field of view, ``half_um`` from its middle."""
        if self.name == "defocus":
            return (self.strength, place[1], place[2])
        if self.name == "border":
            edge = (half_um - self.strength * radius_um) * float(rng.choice([-1, 1]))
            return (place[0], edge, place[2]) if rng.random() < 0.5 else (place[0], place[1], edge)
        return place

    def path(self, frames: int, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """Displacement (z, y, x) in um of each frame, or None: a straight walk with some wavering, in the focal plane."""
        if self.name != "motion":
            return None
        angle = rng.uniform(0, 2 * math.pi)
        along = np.linspace(-0.5, 0.5, frames) * self.strength
        waver = np.cumsum(rng.standard_normal(frames)) * self.strength * 0.03
        return np.stack([np.zeros(frames), along * math.sin(angle) + waver, along * math.cos(angle)], 1)

    def disturb(self, w: Tensor, pixel_um: float, rng: np.random.Generator) -> None:
        """Add parasitic light to the fields ``w`` [frame, y, x], in place: a stray plane wave and rings, of this amplitude."""
        if self.name != "coherent_noise":
            return
        stray = _stray(w.shape[-2:], pixel_um, rng) * self.strength
        for i, phase in enumerate(rng.normal(0, 0.5, len(w))):
            w[i] += stray * complex(np.exp(1j * phase))

    def spoil(self, frames: NDArray[np.unsignedinteger[Any]], rng: np.random.Generator) -> None:
        """Lose frames, in place: blank, or the frame before once more. ``strength``: share of the frames."""
        if self.name not in ("lost_frames", "repeated_frames"):
            return
        count = max(1, round(self.strength * len(frames)))
        for i in sorted(rng.choice(np.arange(2, len(frames)), count, replace=False)):
            frames[i] = 0 if self.name == "lost_frames" else frames[i - 1]


def _stray(shape: torch.Size, pixel_um: float, rng: np.random.Generator) -> Tensor:
    """Rms-1 parasitic field [y, x]: a plane wave of 0.3-1 cycles/um and the rings of a speck."""
    y, x = (np.arange(n) * pixel_um for n in shape)
    angle, frequency = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0)
    plane = np.exp(2j * math.pi * frequency * (math.sin(angle) * y[:, None] + math.cos(angle) * x[None, :]))
    cy, cx = (rng.uniform(0.2, 0.8) * n * pixel_um for n in shape)
    r2 = (y[:, None] - cy) ** 2 + (x[None, :] - cx) ** 2
    rings = np.exp(1j * r2 / rng.uniform(2.0, 6.0))
    mixed = plane + 0.7 * rings * np.exp(-r2 / 200)
    return torch.from_numpy((mixed / np.sqrt(np.mean(np.abs(mixed) ** 2))).astype(np.complex64))


def _whole(rng: np.random.Generator) -> float:  # noqa: ARG001 - the signature of a draw
    return 1.0


DEFECTS: Mapping[str, Callable[[np.random.Generator], float]] = {
    "motion": lambda rng: rng.uniform(0.5, 2.0),
    "coherent_noise": lambda rng: rng.uniform(0.45, 0.8),
    "low_contrast": lambda rng: rng.uniform(0.03, 0.11),
    "saturation": lambda rng: rng.uniform(2.0, 3.0),
    "border": lambda rng: rng.uniform(-0.2, 0.6),
    "empty": _whole,
    "debris": _whole,
    "doublet": _whole,
    "defocus": lambda rng: rng.uniform(8.5, 11.0) * rng.choice([-1, 1]),
    "lost_frames": lambda rng: rng.uniform(0.13, 0.4),
    "repeated_frames": lambda rng: rng.uniform(0.2, 0.4),
}
"""Name -> draw of the strength: motion in um over the scan; coherent noise as amplitude of the stray light; low contrast as a
factor on the visibility; saturation as a factor on the light; border as the distance of the centre inside the edge over the
radius; defocus in um; lost and repeated frames as a share."""

_TCF_DEFECTS = ("border", "empty", "debris", "doublet")


def draw_defect(name: str, rng: np.random.Generator) -> Defect:
    """A defect of the given kind with a random strength; raises BadValue for an unknown name."""
    if name not in DEFECTS:
        raise BadValue(f"Defect {name!r} is unknown; it must be one of {', '.join(DEFECTS)}.")
    return Defect(name, float(DEFECTS[name](rng)))


def planned_defect(fraction: float, index: int, format: str = "hologram") -> str | None:
    """The defect of file ``index``: a share ``fraction`` of all files, evenly spread, the kinds in turn.

    It depends on the index alone, not on the run's length. Volumes (``tcf``) know only the defects of the object.
    """
    before = math.floor(index * fraction + 1e-9)
    if math.floor((index + 1) * fraction + 1e-9) == before:
        return None
    names = _TCF_DEFECTS if format == "tcf" else tuple(DEFECTS)
    return names[before % len(names)]
