"""From a cell's crop to the network's input: one function for training and for use, so that they cannot differ.

Order: the cell's own medium RI, estimated from the voxels around it, is subtracted; the pitch is changed (whole factors by
averaging, which also lowers the noise before anything is clipped; the rest by trilinear interpolation); the centre is cut out
or padded with medium; then normalised, (n - n_m) * scale clipped at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wbcd.classification.medium import EXACT_RI, medium_ri
from wbcd.recipe import ALGORITHMS
from wbcd.records import Cell, Shape3, Triple

ALGORITHM_VERSION = ALGORITHMS["preparation"]
"""Of the network's input (preparation, medium). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

WHOLE = 0.02
"""A pitch ratio within 2 % of a whole number counts as whole when the averaging factor is chosen."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a network expects: ``shape`` voxels and ``voxel_um``, both (z, y, x); ``scale`` and clip of n - n_m."""

    shape: Shape3 = (40, 64, 64)
    voxel_um: Triple = (0.4, 0.2, 0.2)
    scale: float = 9.0

    @property
    def extent_um(self) -> Triple:
        """Side lengths of the input box (z, y, x)."""
        z, y, x = (n * d for n, d in zip(self.shape, self.voxel_um, strict=True))
        return z, y, x


def delta_ri(cell: Cell, spec: InputSpec) -> NDArray[np.float32]:
    """n - n_m of a cell at the network's pitch and shape, float32 [z, y, x]; not yet scaled or clipped.

    n_m is what the tomogram shows around the cell (:func:`wbcd.classification.medium.medium_ri`), not what the file states.
    """
    return delta_from(cell, spec, medium_ri(cell))


def delta_from(cell: Cell, spec: InputSpec, medium: float) -> NDArray[np.float32]:
    """As :func:`delta_ri` with a medium RI known already.

    Voxels at exactly the stated medium were never measured (padding, removed neighbours): they stay medium.
    """
    delta = torch.from_numpy(np.ascontiguousarray(cell.ri, dtype=np.float32) - np.float32(cell.medium_ri))
    shift = medium - cell.medium_ri
    if shift:
        delta = torch.where(delta.abs() <= EXACT_RI, 0.0, delta - shift)
    delta = torch.nan_to_num(delta, nan=0.0, posinf=0.0, neginf=0.0)
    coarse = resample(delta, cell.voxel_um, spec.voxel_um)
    out: NDArray[np.float32] = fit_centre(coarse, spec.shape).contiguous().numpy()
    return out


def normalise(delta: Tensor, spec: InputSpec) -> Tensor:
    """max(0, (n - n_m) * scale), float32."""
    return (delta.float() * spec.scale).clamp_min_(0)


def resample(volume: Tensor, voxel_um: Triple, target_um: Triple) -> Tensor:
    """[z, y, x] at ``voxel_um`` -> [z', y', x'] at ``target_um``; the centre of the box stays the centre."""
    factors = [max(1, math.floor(t / v + WHOLE)) for v, t in zip(voxel_um, target_um, strict=True)]
    whole = [n // f * f for n, f in zip(volume.shape, factors, strict=True)]
    pooled = F.avg_pool3d(fit_centre(volume, (whole[0], whole[1], whole[2]))[None, None], factors, ceil_mode=False)
    pitch = [v * f for v, f in zip(voxel_um, factors, strict=True)]
    if all(math.isclose(p, t, rel_tol=1e-6) for p, t in zip(pitch, target_um, strict=True)):
        return pooled[0, 0]
    return _interpolate(pooled, pitch, target_um)


def _interpolate(pooled: Tensor, pitch: list[float], target_um: Triple) -> Tensor:
    # affine_grid's coordinates run from -1 to 1 over the voxel faces of the source (align_corners=False).
    source = pooled.shape[2:]
    size = [max(1, round(n * p / t)) for n, p, t in zip(source, pitch, target_um, strict=True)]
    stretch = [m * t / (n * p) for m, t, n, p in zip(size, target_um, source, pitch, strict=True)]
    theta = torch.zeros((1, 3, 4))
    for row, axis in enumerate((2, 1, 0)):
        theta[0, row, row] = stretch[axis]
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    return F.grid_sample(pooled, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, 0]


def fit_centre(volume: Tensor, shape: Shape3) -> Tensor:
    """Cut out the centre of [z, y, x], or pad it with zeros (medium), to ``shape``; voxel n // 2 stays the middle one."""
    for axis, wanted in enumerate(shape):
        size = volume.shape[axis]
        before = wanted // 2 - size // 2
        if size > wanted:
            volume = volume.narrow(axis, -before, wanted)
        elif size < wanted:
            pads = [0] * 6
            pads[2 * (2 - axis)], pads[2 * (2 - axis) + 1] = before, wanted - size - before
            volume = F.pad(volume, pads)
    return volume
