"""The accurate mode: the potential that explains the measured fields through the multi-slice model.

Minimised is the weighted misfit of the complex phases, ln(w_simulated/w_measured), over the frames that are not held out, in
the metric of the fast inversion (its density compensation), plus total variation, under V >= 0, by FISTA from the fast
mode's potential with the model's true gradient. The logarithm of the ratio needs no unwrapping: the two are close.

Frames held out of the fit judge it: where the refined potential does not explain them better than the fast one, the fast
one stays and the report says so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from wbcd.recipe import Recipe
from wbcd.reconstruction.multislice import MultiSlice
from wbcd.reconstruction.operator import EwaldOperator
from wbcd.reconstruction.spectrum import RytovStack, Window, fold, good_size, level_outside, refocus, shadow, tilt
from wbcd.reconstruction.variation import TotalVariation
from wbcd.records import FieldStack, Refinement

MARGIN_UM = 1.0
"""Slices this far above and below the object belong to the fit."""

REACH = 4.2
"""Period of the light in radii of the object: a tilted wave that leaves it must not meet it again."""

BAND = 0.95
DARK = 0.1
"""Where the simulated amplitude is below this the logarithm has no usable slope."""

RATIO_LIMIT = 20.0


@dataclass(frozen=True, slots=True)
class _Frames:
    """Some frames of an acquisition: what simulates them, what was measured, and how their misfit is weighed.

    ``measured``, ``mask``: [frame, y, x] on the fine grid; ``rows``, ``columns``, ``k_z``,
    ``weight``: frame, index in the flattened spectrum, axial wave number and weight of each sample; ``starts``: where
    each frame's samples begin, with the end; ``norm``: weighted power of the measured samples.
    """

    model: MultiSlice
    measured: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    k_z: Tensor
    weight: Tensor
    starts: tuple[int, ...]
    norm: float


class Refiner:
    """One object's refinement: made once, asked for misfit and gradient at any potential."""

    def __init__(
        self, fields: FieldStack, window: Window, stack: RytovStack, operator: EwaldOperator, start: Tensor, recipe: Recipe
    ) -> None:
        self._operator = operator
        self._window = window
        self._dz = operator.voxel_um[0]
        self._low, self._high, self._level = _occupied(start, operator.voxel_um[0])
        self._size, self._coarse = _grid(window, stack.pixel_um, fields)
        held = list(operator.held_out)
        self.fit = self._frames(fields, stack, [i for i in range(operator.frames) if i not in held])
        self.held = self._frames(fields, stack, held) if held else self.fit
        self._variation = TotalVariation(operator.voxel_um, recipe.reconstruction.refinement_tv * self._level)

    def _frames(self, fields: FieldStack, stack: RytovStack, chosen: list[int]) -> _Frames:
        pixel, device = stack.pixel_um, self._operator.device
        k_in = stack.k_in_rad_um[chosen]
        w = refocus(torch.from_numpy(fields.w[chosen]).to(device), k_in, pixel, stack.optics, stack.focus_um)
        caps = self._operator.caps
        picked = [torch.nonzero(caps.frame == i).flatten() for i in chosen]
        samples = torch.cat(picked)
        counts = torch.tensor([len(part) for part in picked], device=device)
        columns = caps.column[samples]
        power = self._operator.samples(stack.psi)[samples].abs().square()
        # Held-out samples have no weight in the fit; among themselves they count alike.
        carried = self._modelled(columns, pixel)
        weight = carried * (caps.weight[samples] if chosen[0] not in self._operator.held_out else 1.0)
        return _Frames(
            model=MultiSlice(k_in, stack.optics, self._size, self._coarse, pixel, self._dz, device),
            measured=_window_of(w, stack.centre_px, self._size),
            mask=shadow((self._size, self._size), self._window.radius_um, tilt(k_in, stack.optics), pixel, device),
            rows=torch.repeat_interleave(torch.arange(len(chosen), device=device), counts),
            columns=columns,
            k_z=caps.k_z[samples],
            weight=weight,
            starts=(0, *counts.cumsum(0).tolist()),
            norm=float((weight * power).sum()),
        )

    def _modelled(self, columns: Tensor, pixel_um: float) -> Tensor:
        """1 for lateral frequencies that the coarse grid carries, else 0."""
        _, ny, nx = self._operator.shape
        limit = BAND * math.pi / (pixel_um * self._size / self._coarse)
        ky = 2 * math.pi * torch.fft.fftfreq(ny, pixel_um, device=columns.device)[columns // nx]
        kx = 2 * math.pi * torch.fft.fftfreq(nx, pixel_um, device=columns.device)[columns % nx]
        carried: Tensor = ((ky.abs() < limit) & (kx.abs() < limit)).float()
        return carried

    @property
    def _scale(self) -> float:
        """What makes the gradient that of the fast inversion where the two models agree."""
        return 1 / (2 * math.prod(self._operator.shape))

    def _lowest_um(self) -> float:
        return (self._low - self._operator.shape[0] // 2) * self._dz

    def misfit(self, potential: Tensor, frames: _Frames) -> float:
        """Relative misfit |psi_simulated - psi_measured|/|psi_measured| in the weighted norm."""
        slices = frames.model.coarsen(potential[self._low : self._high])
        total = 0.0
        for block in frames.model.blocks:
            simulated = frames.model.fields(slices, self._lowest_um(), slice(block, block + 1))
            power = self._weighted(_difference(simulated, frames.measured[frames.model.frames_of(block)]), frames, block)
            total += float(power)
        return math.sqrt(total / max(frames.norm, 1e-20))

    def gradient(self, potential: Tensor) -> tuple[float, Tensor]:
        """Half the weighted squared misfit of the fitted frames (scaled as the fast inversion), and its gradient [z, y, x]."""
        frames = self.fit
        part = potential[self._low : self._high]
        slices = frames.model.coarsen(part)
        coarse = torch.zeros_like(slices)
        total = 0.0
        for block in frames.model.blocks:
            simulated, back = frames.model.with_gradient(slices, self._lowest_um(), block)
            difference = _difference(simulated, frames.measured[frames.model.frames_of(block)]).requires_grad_(True)
            power = self._weighted(difference, frames, block)
            (slope,) = torch.autograd.grad(0.5 * self._scale * power, difference)
            # d ln(w/w_measured) = dw/w
            onto = torch.where(simulated.abs() < DARK, 0, slope / simulated.conj())
            coarse += back(onto)
            total += 0.5 * self._scale * float(power.detach())
        gradient = torch.zeros_like(potential)
        gradient[self._low : self._high] = frames.model.coarsen_adjoint(coarse, part)
        return total, gradient

    def _weighted(self, difference: Tensor, frames: _Frames, block: int) -> Tensor:
        """Weighted power of the samples of one block's difference of complex phases [frame, y, x]."""
        chosen = frames.model.frames_of(block)
        low, high = frames.starts[chosen.start], frames.starts[chosen.stop]
        mask = frames.mask[chosen]
        phase = level_outside(difference, mask) * mask
        folded = fold(phase, (self._size // 2, self._size // 2), self._operator.shape[1:])
        spectrum = torch.fft.fft2(torch.fft.ifftshift(folded, dim=(-2, -1))).flatten(1)
        picked = spectrum[frames.rows[low:high] - chosen.start, frames.columns[low:high]] * (
            2 * frames.k_z[low:high] / self._dz
        )
        power: Tensor = (frames.weight[low:high] * picked.abs().square()).sum()
        return power

    def minimise(self, start: Tensor, iterations: int) -> Tensor:
        """FISTA with restart; a step that makes the misfit worse is taken back and halved."""
        x = momentum = start
        t, step = 1.0, 1.0 / self._operator.lipschitz
        best = math.inf
        for _ in range(iterations):
            value, gradient = self.gradient(momentum)
            if value > 1.5 * best:
                momentum, t, step = x, 1.0, 0.5 * step
                continue
            best = min(best, value)
            candidate = self._variation(momentum - step * gradient, step).clamp_min_(0)
            candidate[: self._low], candidate[self._high :] = start[: self._low], start[self._high :]
            if float(((momentum - candidate) * (candidate - x)).sum()) > 0:
                t = 1.0
            t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum = candidate + ((t - 1) / t_next) * (candidate - x)
            x, t = candidate, t_next
        return x


def refine(
    fields: FieldStack, window: Window, stack: RytovStack, operator: EwaldOperator, potential: Tensor, recipe: Recipe
) -> tuple[Tensor, Refinement]:
    """The potential [z, y, x] (1/um^2) that explains the fields through the multi-slice model, or ``potential`` where the
    held-out frames say that it explains them better, and how that was judged."""
    started = time.perf_counter()
    refiner = Refiner(fields, window, stack, operator, potential, recipe)
    before = refiner.misfit(potential, refiner.held)
    iterations = recipe.reconstruction.refinement_iterations
    refined = refiner.minimise(potential, iterations)
    after = refiner.misfit(refined, refiner.held)
    kept = after < before  # a NaN is not less
    report = Refinement(kept, before, after, iterations, time.perf_counter() - started)
    return (refined if kept else potential), report


def held_out(frames: int, every: int) -> list[int]:
    """Tilted frames that judge the fit: every ``every``-th, none where fewer than two rounds would be left to fit."""
    return list(range(every // 2, frames, every)) if every > 0 and frames >= 3 * every else []


def _difference(simulated: Tensor, measured: Tensor) -> Tensor:
    """ln(simulated/measured), the phase in (-pi, pi]."""
    ratio = simulated.detach() / measured
    return torch.complex(ratio.abs().clamp(1 / RATIO_LIMIT, RATIO_LIMIT).log(), ratio.angle())


def _occupied(potential: Tensor, dz_um: float) -> tuple[int, int, float]:
    """First and last slice (exclusive) of the object with its margin, and its potential, from the smoothed volume."""
    smooth = torch.nn.functional.avg_pool3d(potential[None, None], (3, 7, 7), 1, (1, 3, 3))[0, 0]
    profile = smooth.amax((1, 2))
    level = float(profile.max())
    inside = torch.nonzero(profile > 0.15 * level).flatten()
    margin = math.ceil(MARGIN_UM / dz_um)
    if not len(inside):
        return 0, len(potential), level
    return max(0, int(inside[0]) - margin), min(len(potential), int(inside[-1]) + 1 + margin), level


def _grid(window: Window, pixel_um: float, fields: FieldStack) -> tuple[int, int]:
    """Samples of the fine and of the coarse grid (4 : 3) over the period of the light."""
    wanted = min(REACH * window.radius_um + 3.0, max(fields.w.shape[-2:]) * fields.pixel_um)
    quarter = good_size(math.ceil(wanted / pixel_um / 4))
    return 4 * quarter, 3 * quarter


def _window_of(w: Tensor, centre_px: tuple[float, float], size: int) -> Tensor:
    """[frame, size, size] about the centre; 1 where the field of view ends."""
    out = torch.ones((len(w), size, size), dtype=w.dtype, device=w.device)
    target, source = [slice(None)], [slice(None)]
    for centre, n in zip(centre_px, w.shape[-2:], strict=True):
        corner = int(centre) - size // 2
        low, high = max(0, corner), min(n, corner + size)
        source.append(slice(low, high))
        target.append(slice(low - corner, high - corner))
    out[tuple(target)] = w[tuple(source)]
    return out
