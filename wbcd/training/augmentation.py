"""What a cell may undergo and stay of its class, on the device, a whole batch at once.

Translation (what leaves the box is lost), a random crop of the box, in-plane rotation by any angle, in-plane flips, elastic
deformation, a little zoom, Gaussian noise, and an offset and scale of the RI as a wrong medium value or calibration gives. One
resampling does all the geometry. Size and density tell the classes apart, so zoom and scale stay at what calibration errors
are. Along the axis nothing is turned over: the instrument sees otherwise along z than across it.

Interpolation blurs what is as fine as the grid, and a network that sees only blurred cells does worse on sharp ones (measured,
docs/benchmarks.md). So a share of each batch is moved without it: whole voxels, quarter turns, flips.

A picture is a volume of one plane: nothing moves along an axis of one voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Strengths: ``translation_um`` greatest, each axis; ``elastic_um`` rms displacement, ``elastic_pitch_um`` between knots;
    ``zoom`` rms relative; ``noise_ri`` greatest sigma; ``offset_ri`` rms; ``scale`` rms relative; ``crop_um``: greatest depth
    cut from each face of the box; ``flip``: mirror y and x, each in half of the cells; ``resampled``: share of a batch that is
    interpolated, the others are moved by whole voxels and quarter turns.
    """

    translation_um: float = 0.4
    rotate: bool = True
    elastic_um: float = 0.1
    elastic_pitch_um: float = 3.0
    zoom: float = 0.01
    noise_ri: float = 6e-4
    offset_ri: float = 2e-4
    scale: float = 0.005
    crop_um: float = 0.0
    flip: bool = True
    resampled: float = 0.25


PAPER = Augmentation(
    translation_um=0.8, rotate=False, zoom=0.0, offset_ri=0.0, scale=0.0, crop_um=0.8, flip=False, resampled=1.0
)
"""The paper's: translation, crop, elastic deformation and Gaussian noise; it gives no strengths."""


def augment(deltas: Tensor, voxel_um: tuple[float, float, float], strength: Augmentation, generator: torch.Generator) -> Tensor:
    """n - n_m [n, z, y, x] -> the same shape and unit; ``generator`` lives on the same device and decides everything."""
    # The order of a batch is random: its first cells are as good as any.
    count = round(strength.resampled * len(deltas))
    moved = torch.cat(
        [
            _move(deltas[:count].float(), voxel_um, strength, generator),
            _turn(deltas[count:].float(), voxel_um, strength, generator),
        ]
    )
    if strength.crop_um > 0:
        moved = _crop(moved, voxel_um, strength.crop_um, generator)
    sigma = strength.noise_ri * _uniform(generator, deltas, (len(deltas), 1, 1, 1))
    moved += sigma * torch.randn(moved.shape, generator=generator, device=moved.device)
    scale = 1 + strength.scale * _normal(generator, deltas, (len(deltas), 1, 1, 1))
    offset = strength.offset_ri * _normal(generator, deltas, (len(deltas), 1, 1, 1))
    return moved.mul_(scale).add_(offset)


def _turn(deltas: Tensor, voxel_um: tuple[float, float, float], strength: Augmentation, generator: torch.Generator) -> Tensor:
    """By whole voxels, flips and, where the box is square, quarter turns: no value is changed; beyond the box is medium."""
    count, (nz, ny, nx) = len(deltas), deltas.shape[1:]
    if strength.rotate and ny == nx and voxel_um[1] == voxel_um[2]:
        across = _uniform(generator, deltas, (count, 1, 1, 1)) < 0.5
        deltas = torch.where(across, deltas.transpose(2, 3), deltas)
    flips = _uniform(generator, deltas, (count, 2)) < (0.5 if strength.flip else 0.0)
    z, in_z = _places(deltas, nz, voxel_um[0], strength, generator)
    y, in_y = _places(deltas, ny, voxel_um[1], strength, generator)
    x, in_x = _places(deltas, nx, voxel_um[2], strength, generator)
    y, x = torch.where(flips[:, :1], ny - 1 - y, y), torch.where(flips[:, 1:], nx - 1 - x, x)
    cell = torch.arange(count, device=deltas.device)[:, None, None, None]
    moved = deltas[cell, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
    return moved * (in_z[:, :, None, None] & in_y[:, None, :, None] & in_x[:, None, None, :])


def _places(
    deltas: Tensor, voxels: int, pitch_um: float, strength: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where each voxel of an axis comes from [n, voxels], and whether it lies in the box; an axis of one voxel stays."""
    most = int(strength.translation_um / pitch_um + 1e-6) if voxels > 1 else 0
    shift = torch.floor(_uniform(generator, deltas, (len(deltas), 1)) * (2 * most + 1)).long() - most
    place = torch.arange(voxels, device=deltas.device) - shift
    return place.clamp(0, voxels - 1), (place >= 0) & (place < voxels)


def _move(deltas: Tensor, voxel_um: tuple[float, float, float], strength: Augmentation, generator: torch.Generator) -> Tensor:
    extent = [n * d for n, d in zip(deltas.shape[1:], voxel_um, strict=True)]
    theta = _affine(deltas, extent, strength, generator)
    # Where to look, at coarse knots first: interpolation between them is exact for the affine part, and a third of the time.
    knots = _knots(deltas, extent, strength)
    places = torch.einsum("nij,zyxj->nizyx", theta, _coordinates(deltas, knots))
    if strength.elastic_um > 0:
        places = places + _elastic(deltas, extent, knots, strength, generator)
    grid = F.interpolate(places, size=deltas.shape[1:], mode="trilinear", align_corners=True).movedim(1, -1)
    # Zeros outside: beyond the box is medium.
    return F.grid_sample(deltas[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def _affine(deltas: Tensor, extent: list[float], strength: Augmentation, generator: torch.Generator) -> Tensor:
    """[n, 3, 4] in grid_sample's coordinates (x, y, z from -1 to 1): rotation about z in um, flips, zoom, translation."""
    count = len(deltas)
    angle = 2 * math.pi * _uniform(generator, deltas, (count,)) * float(strength.rotate)
    zoom = 1 + strength.zoom * _normal(generator, deltas, (count,))
    flips = torch.where(_uniform(generator, deltas, (count, 2)) < (0.5 if strength.flip else 0.0), -1.0, 1.0)
    several = _constant(tuple(float(n > 1) for n in deltas.shape[:0:-1]), deltas.device)
    shift = (2 * _uniform(generator, deltas, (count, 3)) - 1) * strength.translation_um * several
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    ez, ey, ex = extent
    theta = torch.zeros((count, 3, 4), device=deltas.device)
    theta[:, 0, 0], theta[:, 0, 1] = cos * flips[:, 0], -sin * flips[:, 1] * (ey / ex)
    theta[:, 1, 0], theta[:, 1, 1] = sin * flips[:, 0] * (ex / ey), cos * flips[:, 1]
    theta[:, 2, 2] = zoom
    theta[:, :, 3] = shift * _constant((2 / ex, 2 / ey, 2 / ez), deltas.device)
    return theta


def _knots(deltas: Tensor, extent: list[float], strength: Augmentation) -> list[int]:
    """How many along (z, y, x)."""
    pitch = strength.elastic_pitch_um if strength.elastic_um > 0 else math.inf
    return [max(3, round(e / pitch)) if n > 1 else 1 for e, n in zip(extent, deltas.shape[1:], strict=True)]


def _coordinates(deltas: Tensor, knots: list[int]) -> Tensor:
    """(x, y, z, 1) of the knots [kz, ky, kx, 4] in grid_sample's coordinates; the outer ones are the outer voxels' centres."""
    axes = [
        torch.linspace(-1 + 1 / n, 1 - 1 / n, k, device=deltas.device) for n, k in zip(deltas.shape[1:], knots, strict=True)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z, torch.ones_like(x)], dim=-1)


def _elastic(
    deltas: Tensor, extent: list[float], knots: list[int], strength: Augmentation, generator: torch.Generator
) -> Tensor:
    """White displacements (x, y, z) of the knots [n, 3, kz, ky, kx]: smooth once they are interpolated."""
    noise = torch.randn((len(deltas), 3, *knots), generator=generator, device=deltas.device) * strength.elastic_um
    sizes = deltas.shape[1:]
    unit = _constant(tuple(2 / e * (n > 1) for e, n in zip(extent[::-1], sizes[::-1], strict=True)), deltas.device)
    return noise * unit[None, :, None, None, None]


def _crop(deltas: Tensor, voxel_um: tuple[float, float, float], depth_um: float, generator: torch.Generator) -> Tensor:
    """Medium beyond a box whose faces lie up to ``depth_um`` inside."""
    for axis, (n, d) in enumerate(zip(deltas.shape[1:], voxel_um, strict=True), start=1):
        if n == 1:
            continue
        depth = depth_um * _uniform(generator, deltas, (2, len(deltas), 1))
        place = (torch.arange(n, device=deltas.device) + 0.5) * d
        inside = (place >= depth[0]) & (place <= n * d - depth[1])
        deltas = deltas * inside.reshape(len(deltas), *(n if a == axis else 1 for a in (1, 2, 3)))
    return deltas


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept: an accelerator waits out each copy from the host."""
    return torch.tensor(values, device=device)


def _uniform(generator: torch.Generator, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _normal(generator: torch.Generator, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device)
