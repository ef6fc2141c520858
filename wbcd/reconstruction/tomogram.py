"""From fields to refractive-index tomograms: the Rytov spectra of each object, inverted under constraints.

The fast mode solves the weighted least-squares problem of :mod:`wbcd.reconstruction.operator` by FISTA with non-negativity;
each step costs one padded transform pair. Gerchberg-Papoulis is the same iteration without the momentum and with the
spectrum rounded to grid points. The accurate mode goes on from there with :mod:`wbcd.reconstruction.refinement`.

Equations: Beck & Teboulle 2009 (FISTA).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.reconstruction.operator import EwaldOperator
from wbcd.reconstruction.refinement import held_out, refine, smoothed
from wbcd.reconstruction.spectrum import RytovStack, Window, locate, rytov, wave_numbers
from wbcd.reconstruction.variation import TotalVariation
from wbcd.records import FieldStack, InversionReport, Optics, Shape3, Tomogram, Triple

ALGORITHM_VERSION = ALGORITHMS["inversion"]
"""Of the fast mode (tomogram, spectrum, operator, variation). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

DOWNSTREAM_UM = 0.2
"""How far above its true height Rytov's approximation puts an object that lies in the plane of focus (0.15 to 0.3 um)."""

OBJECT_SHARE = 0.3
MIN_OBJECT_FL = 10.0
OFF_FOCUS_UM = 0.3
"""What in a volume is an object of its own: above this share of the greatest potential, and so large; and how far from the
plane of focus it may lie. A single object's focus is found as well as that."""

ACCURATE_START = 3
"""Times the fast mode's iterations before the accurate mode begins: what is linear converges cheaper here than there."""


def invert(rhs: Tensor, operator: EwaldOperator, recipe: Recipe, *, times: int = 1) -> Tensor:
    """Scattering potential (in 1/um^2, real [z, y, x]) that minimises the weighted misfit, by FISTA with restart.

    ``times`` the recipe's iterations. Non-negativity by projection; ``tv_weight`` adds isotropic total variation by
    warm-started dual steps.
    """
    settings = recipe.reconstruction
    step = 1.0 / operator.lipschitz
    x = torch.zeros_like(rhs)
    momentum = x
    t = 1.0
    total_variation = TotalVariation(operator.voxel_um, settings.tv_weight)
    for _ in range(times * settings.iterations):
        candidate = operator.normal(momentum).sub_(rhs).mul_(-step).add_(momentum)
        candidate = total_variation(candidate, step)
        if settings.non_negative:
            candidate.clamp_min_(0)
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = torch.lerp(x, candidate, 1 + (t - 1) / t_next)
        x, t = candidate, t_next
    return x


def potential_to_ri(potential: Tensor, optics: Optics) -> Tensor:
    """n = sqrt(n_m^2 + V/k0^2)."""
    k0, _ = wave_numbers(optics)
    return (optics.medium_ri**2 + potential / k0**2).clamp_min(0).sqrt()


def rytov_to_ri(potential: Tensor, optics: Optics) -> Tensor:
    """n = n_m + V/(2 n_m k0^2), for a potential that the Rytov approximation gave.

    Rytov's phase of a slab is V dz/2k, the true one [sqrt(k^2 + V) - k] dz: what is linear in the data is n - n_m, not V. By
    the root above, RI would be low by a further (n - n_m)/(2 n_m), 1.2 % of a contrast of 0.033.
    """
    k0, _ = wave_numbers(optics)
    return optics.medium_ri + potential / (2 * optics.medium_ri * k0**2)


def ri_to_potential(ri: Tensor, optics: Optics) -> Tensor:
    """V = k0^2 (n^2 - n_m^2)."""
    k0, _ = wave_numbers(optics)
    return k0**2 * (ri.square() - optics.medium_ri**2)


def reconstruct(fields: FieldStack, recipe: Recipe, *, device: str = "cpu") -> list[Tomogram]:
    """RI tomograms of a field of view, one for each window that holds objects; [] when there is none."""
    return [_reconstruct_window(window, fields, recipe, device) for window in locate(fields, recipe)]


def _reconstruct_window(window: Window, fields: FieldStack, recipe: Recipe, device: str) -> Tomogram:
    started = time.perf_counter()
    stack = rytov(fields, window, recipe, device=device)
    nz = recipe.reconstruction.shape[0]
    dz = recipe.reconstruction.voxel_um[0]
    shape = (nz, stack.psi.shape[-2], stack.psi.shape[-1])
    voxel = (dz, stack.pixel_um, stack.pixel_um)
    held = tuple(held_out(len(stack.k_in_rad_um), recipe.reconstruction.hold_out_every))
    operator = _operator(
        np.ascontiguousarray(stack.k_in_rad_um, np.float64).tobytes(), stack.optics, shape, voxel, device, held
    )
    samples = operator.samples(stack.psi)
    image = operator.right_hand_side(samples)
    potential = invert(image, operator, recipe)
    misfit, overall = _misfit(operator, samples, potential)
    if window.objects > 1 and recipe.reconstruction.refocus:
        potential = _each_in_focus(
            potential, stack, operator, lambda focus: rytov(fields, window, recipe, device=device, focus_um=focus), recipe
        )
    ri = rytov_to_ri(potential, stack.optics)
    refinement = None
    if recipe.reconstruction.mode == "accurate":
        start = rytov_to_ri(invert(image, operator, recipe, times=ACCURATE_START), stack.optics)
        fast, start = (ri_to_potential(n, stack.optics) for n in (ri, start))
        refined, refinement = refine(fields, window, stack, operator, fast, start, recipe)
        ri = potential_to_ri(refined, stack.optics) if refinement.kept else ri
    report = InversionReport(
        focus_um=stack.focus_um,
        residue_count=stack.residue_count,
        frame_residual=misfit,
        residual=overall,
        held_out_residual=float(np.sqrt(np.mean(misfit[list(held)] ** 2))) if held else math.nan,
        frame_shift_um=stack.frame_shift_um,
        iterations=recipe.reconstruction.iterations,
        seconds=time.perf_counter() - started,
        cut_by_field=bool(window.cut),
        refinement=refinement,
    )
    cy, cx = stack.centre_px
    pixel = stack.pixel_um
    ny, nx = fields.w.shape[-2:]
    return Tomogram(
        ri=ri.float().cpu().numpy(),
        voxel_um=voxel,
        medium_ri=stack.optics.medium_ri,
        origin_um=(stack.focus_um - nz // 2 * dz, (cy - shape[1] // 2) * pixel, (cx - shape[2] // 2) * pixel),
        wavelength_um=stack.optics.wavelength_um,
        objective_na=stack.optics.objective_na,
        report=report,
        field_of_view_um=(0.0, ny * pixel, 0.0, nx * pixel),
        cut_um=tuple((y0 * pixel, y1 * pixel, x0 * pixel, x1 * pixel) for y0, y1, x0, x1 in window.cut),
    )


def _each_in_focus(
    potential: Tensor, stack: RytovStack, operator: EwaldOperator, refocused: Callable[[float], RytovStack], recipe: Recipe
) -> Tensor:
    """The potential with each of several objects as it is when the plane of focus lies in it.

    Rytov's phase is best where the object is sharp: a cell of 5 um half a micrometre off focus is wrong by 4 % of its volume,
    and objects of one window need not lie at one height. Each takes the columns that are nearest to it.
    """
    dz = operator.voxel_um[0]
    objects = _objects(potential, operator.voxel_um)
    if len(objects) < 2:
        return potential
    heights = [height - DOWNSTREAM_UM for height, _, _ in objects]
    steps = [round(height / dz) if abs(height) > OFF_FOCUS_UM else 0 for height in heights]
    ny, nx = potential.shape[1:]
    y = torch.arange(ny, device=potential.device)[:, None]
    x = torch.arange(nx, device=potential.device)[None, :]
    nearest = torch.stack([(y - cy).square() + (x - cx).square() for _, cy, cx in objects]).argmin(0)
    out = potential.clone()
    for step in sorted(set(steps) - {0}):
        moved = refocused(stack.focus_um + step * dz)
        found = invert(operator.right_hand_side(operator.samples(moved.psi)), operator, recipe)
        # Whole voxels: where a refocusing range was reached the step is shorter than asked for.
        shift = [round((moved.focus_um - stack.focus_um) / dz)]
        shift += [round(a - b) for a, b in zip(moved.centre_px, stack.centre_px, strict=True)]
        found = found.roll(shift, (0, 1, 2))
        mine = torch.isin(nearest, torch.tensor([i for i, s in enumerate(steps) if s == step], device=out.device))
        out = torch.where(mine, found, out)
    return out


def _objects(potential: Tensor, voxel_um: Triple) -> list[tuple[float, float, float]]:
    """Height over the middle slice (um) and place (y, x in pixels) of each object that is large enough to be a cell."""
    smooth = smoothed(potential).cpu().numpy()
    labels, count = ndimage.label(smooth > OBJECT_SHARE * smooth.max())
    if count < 2:
        return []
    numbers = np.arange(1, count + 1)
    volumes = ndimage.sum_labels(np.ones_like(smooth), labels, numbers) * math.prod(voxel_um)
    centres = ndimage.center_of_mass(smooth, labels, numbers[volumes >= MIN_OBJECT_FL])
    return [((z - len(smooth) // 2) * voxel_um[0], y, x) for z, y, x in centres]


def _misfit(operator: EwaldOperator, samples: Tensor, potential: Tensor) -> tuple[NDArray[np.float64], float]:
    """Relative misfit |A x - y|/|y| of each frame [frame] and of all together, from every fourth sample (900 a frame)."""
    chosen = torch.arange(0, len(samples), 4, device=samples.device)
    measured = samples[chosen]
    difference = (operator.predict(potential, chosen) - measured).abs().square()
    power = measured.abs().square()
    frame = operator.caps.frame[chosen]
    zero = torch.zeros(operator.frames, device=samples.device)
    wrong = zero.index_add(0, frame, difference)
    norm = zero.index_add(0, frame, power).clamp_min(1e-20)
    each: NDArray[np.float64] = (wrong / norm).sqrt().double().cpu().numpy()
    return each, float((wrong.sum() / norm.sum()).sqrt())


@lru_cache(maxsize=2)
def _operator(
    k_in: bytes, optics: Optics, shape: Shape3, voxel_um: Triple, device: str, held: tuple[int, ...]
) -> EwaldOperator:
    """The operator of a session's geometry: its illumination comes from the shared reference, so it recurs exactly."""
    return EwaldOperator(np.frombuffer(k_in, np.float64).reshape(-1, 2), optics, shape, voxel_um, device, held)
