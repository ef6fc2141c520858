"""The accurate mode: the potential that explains the measured fields through the multi-slice model.

Minimised is the weighted misfit of the complex phases, ln(w_simulated/w_measured), over the frames that are not held out, in
the metric of the fast inversion (its density compensation), plus total variation, under V >= 0, by proximal quasi-Newton
steps from the fast mode's potential: the model's true gradient, and the fast inversion's normal operator as curvature. The
logarithm of the ratio needs no unwrapping: the two are close.

Frames held out of the fit judge it: where the refined potential does not explain them better than the fast one, the fast
one stays and the report says so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from wbcd.errors import ReconstructionError
from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.reconstruction.multislice import MultiSlice
from wbcd.reconstruction.operator import EwaldOperator
from wbcd.reconstruction.spectrum import RytovStack, Window, fold, good_size, level_outside, refocus, shadow, tilt
from wbcd.reconstruction.variation import TotalVariation
from wbcd.records import FieldStack, Refinement, Triple

ALGORITHM_VERSION = ALGORITHMS["refinement"]
"""Of the accurate mode (refinement, multislice). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

OCCUPIED = 0.15
MARGIN_UM = 1.0
"""What this far around the object, smoothed and above this share of its potential, belongs to the fit."""

REACH = 4.2
"""Period of the light in radii of the object: a tilted wave that leaves it must not meet it again."""

BAND = 0.95
DARK = 0.1
"""Where the simulated amplitude is below this the logarithm has no usable slope."""

RATIO_LIMIT = 20.0
COARSEST = 0.255
"""Pitch of the coarse grid in wavelengths at most: tilted light scattered by 20 rad/um must not fold back into the pupil."""
RINGING_PX = 4

THICKER = (2, 3)
"""Slices of the model for slices of the volume: 0.3 um instead of 0.2 um costs a thousandth of the scattered field."""

INNER_STEPS = 12
"""Of the quadratic model between two gradients of the multi-slice model: one costs a fiftieth of such a gradient."""

CURVATURE = 1.8
"""Times the curvature of the fast inversion, which the multi-slice model's exceeds: with 1.2 a 10 um sphere's steps overshoot
and come back, with 1.8 they do not."""


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
        self._box, self._level = _occupied(start, operator.voxel_um)
        self._low, self._high = self._box[0].start, self._box[0].stop
        self._slices = (self._high - self._low) * THICKER[0] // THICKER[1]
        self._size, self._coarse = _grid(window, stack.pixel_um, fields)
        held = list(operator.held_out)
        fitted = [i for i in range(operator.frames) if i not in held]
        self.fit = self._frames(fields, stack, fitted)
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
            model=MultiSlice(
                k_in, stack.optics, self._size, self._coarse, pixel, self._dz * THICKER[1] / THICKER[0], device, self._reach()
            ),
            measured=_window_of(w, stack.centre_px, self._size),
            mask=shadow((self._size, self._size), self._window.radius_um, tilt(k_in, stack.optics), pixel, device),
            rows=torch.repeat_interleave(torch.arange(len(chosen), device=device), counts),
            columns=columns,
            k_z=caps.k_z[samples],
            weight=weight,
            starts=(0, *counts.cumsum(0).tolist()),
            norm=float((weight * power).sum()),
        )

    def _reach(self) -> tuple[int, int]:
        """How far from the middle, in y and x, the object's box goes; some pixels more for its tails, and for what the
        coarse grid rings."""
        y, x = (
            max(side.stop - n // 2, n // 2 - side.start) + RINGING_PX
            for side, n in zip(self._box[1:], self._operator.shape[1:], strict=True)
        )
        return y, x

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
        return float((self._low - self._operator.shape[0] // 2) * self._dz)

    def misfit(self, potential: Tensor, frames: _Frames) -> float:
        """Relative misfit |psi_simulated - psi_measured|/|psi_measured| in the weighted norm."""
        slices = self._coarsened(potential, frames)
        total = 0.0
        for block in frames.model.blocks:
            simulated = frames.model.fields(slices, self._lowest_um(), slice(block, block + 1))
            difference = _difference(simulated, frames.measured[frames.model.frames_of(block)])
            total += float(self._weighted(difference, frames, block))
        return math.sqrt(total / max(frames.norm, 1e-20))

    def gradient(self, potential: Tensor) -> tuple[float, Tensor]:
        """Half the weighted squared misfit of the fitted frames (scaled as the fast inversion), and its gradient [z, y, x]."""
        frames = self.fit
        slices = self._coarsened(potential, frames)
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
        part = gradient[self._low : self._high]
        part += frames.model.coarsen_adjoint(_axial(coarse, len(part)), part)
        return total, gradient

    def _coarsened(self, potential: Tensor, frames: _Frames) -> Tensor:
        """The slices of the model's grid: thicker, and on the coarse lateral grid."""
        part = frames.model.coarsen(potential[self._low : self._high])
        thick: Tensor = _axial(part, self._slices) * (self._slices / len(part))
        return thick

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

    def minimise(self, start: Tensor, iterations: int) -> tuple[Tensor, float]:
        """Proximal quasi-Newton steps: the multi-slice model's gradient, the fast inversion's normal operator as curvature.

        A step that makes the misfit worse is taken back, and the next ones are half as long. Of all potentials on the way the
        one that the held-out frames prefer is returned, with its misfit there. Equations: Lee, Sun & Saunders 2014; each step
        is solved by FISTA with restart.
        """
        x, best, curvature = start, start, CURVATURE
        lowest = math.inf
        preferred, least = start, self.misfit(start, self.held)
        for _ in range(iterations):
            value, gradient = self.gradient(x)
            if value > lowest:
                x, curvature = best, 2 * curvature
                continue
            best, lowest = x, value
            x = self._step(x, gradient, curvature)
            judged = self.misfit(x, self.held)
            if judged < least:
                preferred, least = x, judged
        return preferred, least

    def _step(self, x: Tensor, gradient: Tensor, curvature: float) -> Tensor:
        """argmin_u <g, u - x> + curvature/2 <u - x, N (u - x)> + TV(u), u >= 0, in the object's box."""
        inside = self._box
        step = 1 / (curvature * self._operator.lipschitz)
        origin, slope = x[inside].clone(), gradient[inside]
        away = torch.zeros_like(x)
        u = momentum = origin
        t = 1.0
        for _ in range(INNER_STEPS):
            away[inside] = momentum - origin
            bent = self._operator.normal(away)[inside].mul_(curvature).add_(slope)
            candidate = self._variation(torch.sub(momentum, bent, alpha=step), step).clamp_min_(0)
            if float(((momentum - candidate) * (candidate - u)).sum()) > 0:
                t = 1.0
            t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum = torch.lerp(u, candidate, 1 + (t - 1) / t_next)
            u, t = candidate, t_next
        out = x.clone()
        out[inside] = u
        return out


def refine(
    fields: FieldStack,
    window: Window,
    stack: RytovStack,
    operator: EwaldOperator,
    fast: Tensor,
    start: Tensor,
    recipe: Recipe,
) -> tuple[Tensor, Refinement]:
    """The potential [z, y, x] (1/um^2) that explains the fields through the multi-slice model, sought from ``start``, or
    ``fast`` where the held-out frames say that it explains them better, and how that was judged."""
    started = time.perf_counter()
    refiner = Refiner(fields, window, stack, operator, start, recipe)
    before = refiner.misfit(fast, refiner.held)
    iterations = recipe.reconstruction.refinement_iterations
    refined, after = refiner.minimise(start, iterations)
    kept = after < before  # a NaN is not less
    report = Refinement(kept, before, after, iterations, time.perf_counter() - started)
    return (refined if kept else fast), report


def held_out(frames: int, every: int) -> list[int]:
    """Tilted frames that judge the fit: every ``every``-th; none of fewer than ``every``, which are all needed."""
    return list(range(every // 2, frames, every)) if 0 < every <= frames else []


def _difference(simulated: Tensor, measured: Tensor) -> Tensor:
    """ln(simulated/measured), the phase in (-pi, pi]."""
    ratio = simulated.detach() / measured
    return torch.complex(ratio.abs().clamp(1 / RATIO_LIMIT, RATIO_LIMIT).log(), ratio.angle())


def smoothed(potential: Tensor) -> Tensor:
    """Mean over 3 slices and 7 x 7 pixels of a volume [z, y, x]: objects stand out, noise does not."""
    out: Tensor = torch.nn.functional.avg_pool3d(potential[None, None], (3, 7, 7), 1, (1, 3, 3))[0, 0]
    return out


def _occupied(potential: Tensor, voxel_um: Triple) -> tuple[tuple[slice, slice, slice], float]:
    """The object's box (z, y, x) with its margin, a whole number of the model's slices high, and the object's potential."""
    smooth = smoothed(potential)
    level = float(smooth.max())
    ends = []
    for axis, (n, pitch) in enumerate(zip(potential.shape, voxel_um, strict=True)):
        inside = torch.nonzero(smooth.amax([i for i in range(3) if i != axis]) > OCCUPIED * level).flatten()
        margin = math.ceil(MARGIN_UM / pitch)
        low, high = (max(0, int(inside[0]) - margin), min(n, int(inside[-1]) + 1 + margin)) if len(inside) else (0, n)
        ends.append((low, high))
    low, high = ends[0]
    high += -(high - low) % THICKER[1]
    ends[0] = (low, high if high <= len(potential) else high - THICKER[1])
    z, y, x = (slice(*end) for end in ends)
    return (z, y, x), level


def _axial(slices: Tensor, n: int) -> Tensor:
    """Slices [m, y, x] as n over the same height, by their unnormalised axial spectrum without its Nyquist planes."""
    half = (min(len(slices), n) - 1) // 2 + 1
    spectrum = torch.fft.rfft(slices, dim=0)
    kept = spectrum.new_zeros((n // 2 + 1, *slices.shape[1:]))
    kept[:half] = spectrum[:half]
    out: Tensor = torch.fft.irfft(kept, n=n, dim=0)
    return out


def _grid(window: Window, pixel_um: float, fields: FieldStack) -> tuple[int, int]:
    """Samples of the fine and of the coarse grid over the period of the light; 4 : 3 where the coarse one still carries it.

    Raises ReconstructionError where the recipe's pitch is too coarse for the light itself.
    """
    limit = COARSEST * fields.optics.wavelength_um
    if pixel_um > limit:
        raise ReconstructionError(
            f"recipe.reconstruction.voxel_um: {pixel_um:g} um across; the accurate mode needs {limit:.3g} um at most "
            f"({COARSEST} wavelengths) to carry the light.",
            action='Set a finer pitch, or recipe.reconstruction.mode = "fast".',
        )
    wanted = min(REACH * window.radius_um + 3.0, max(fields.w.shape[-2:]) * fields.pixel_um)
    quarter = good_size(math.ceil(wanted / pixel_um / 4))
    return 4 * quarter, (3 if 4 / 3 * pixel_um <= limit else 4) * quarter


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
