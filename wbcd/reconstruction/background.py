"""The smooth background of complex fields, fitted where no object is, and divided out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def remove_background(w: Tensor, *, polynomial: bool) -> tuple[Tensor, Tensor]:
    """Divide each frame by the smooth background outside its object.

    The background is a plane (a second-order polynomial when there was no reference) in phase and the median in amplitude,
    fitted on a coarse grid to the pixels that are near the background's own phase, in rounds that shrink to them. Returns
    the fields [frame, y, x] and the phase rms [frame] of the background that is left, in rad.
    """
    step = max(1, min(w.shape[-2:]) // 80)
    coarse = w[:, ::step, ::step].contiguous()
    order = 2 if polynomial else 1
    terms = _polynomial_terms(coarse.shape[-2:], order, w.device)
    flat = terms.flatten(1)
    total = coarse.new_zeros((len(w), len(terms)), dtype=torch.float32)
    gain = coarse.new_ones(len(w), dtype=torch.float32)
    for limit in (1.5, 0.6, 0.3, 0.2):
        away = _away_from_object(coarse, limit).flatten(1)
        values = coarse.flatten(1)
        unit = torch.where(away, values / values.abs().clamp_min(1e-6), torch.zeros_like(values))
        offset = torch.angle(unit.sum(1))
        residual = torch.angle(values * torch.polar(torch.ones_like(offset), -offset)[:, None])
        weight = (away & (residual.abs() < limit)).float()
        coefficients = _weighted_fit(flat, residual, weight)
        coefficients[:, 0] += offset
        amplitude = _weighted_median(values.abs(), weight)
        coarse = _divide_surface(coarse, coefficients, terms, amplitude)
        total, gain = total + coefficients, gain * amplitude
    away = _away_from_object(coarse, 0.2)
    phase = torch.angle(coarse)
    rms = ((phase.square() * away).flatten(1).sum(1) / away.flatten(1).float().sum(1).clamp_min(1)).sqrt()
    stop = [((n - 1) / step) / ((n - 1) // step) for n in w.shape[-2:]]
    if polynomial:
        return _divide_surface(w, total, _polynomial_terms(w.shape[-2:], order, w.device, stop), gain), rms
    rows, columns = _plane(w.shape[-2:], total, stop)
    return (w * (rows / gain[:, None])[:, :, None]).mul_(columns[:, None, :]), rms


def _divide_surface(w: Tensor, coefficients: Tensor, terms: Tensor, amplitude: Tensor) -> Tensor:
    surface = torch.einsum("ft,tyx->fyx", coefficients, terms)
    return w * torch.polar((1 / amplitude)[:, None, None].expand_as(surface), -surface)


def _plane(shape: tuple[int, ...], coefficients: Tensor, stop: Sequence[float]) -> tuple[Tensor, Tensor]:
    """exp(-i (c_0 + c_y y + c_x x)) as a product of two lines, [frame, y] and [frame, x]: no sine for each pixel."""
    lines = [torch.linspace(0, end, n, device=coefficients.device) - 0.5 for n, end in zip(shape, stop, strict=True)]
    c0, cy, cx = coefficients.T[:, :, None]
    phases = c0 + cy * lines[0], cx * lines[1]
    rows, columns = (torch.polar(torch.ones_like(phase), -phase) for phase in phases)
    return rows, columns


def _away_from_object(w: Tensor, limit: float) -> Tensor:
    """True [frame, y, x] outside the (smoothed, dilated) regions where the phase departs from the frame's mode.

    ``w`` is the coarse grid, about 80 pixels across.
    """
    unit = w / w.abs().clamp_min(1e-6)
    mode = unit.mean((-2, -1), keepdim=True)
    mode = mode / mode.abs().clamp_min(1e-6)
    departure = (unit * mode.conj() - 1).abs()[:, None]
    smooth = torch.nn.functional.avg_pool2d(departure, 3, stride=1, padding=1, count_include_pad=False)
    marked = (smooth > limit).float()
    for size, padding in (((9, 1), (4, 0)), ((1, 9), (0, 4))):  # one side after the other: the same, at a quarter of the cost
        marked = torch.nn.functional.max_pool2d(marked, size, stride=1, padding=padding)
    outside = marked[:, 0] < 0.5
    # An object that fills the frame leaves no background: fall back to the edge.
    empty = outside.flatten(1).float().mean(1) < 0.02
    if bool(empty.any()):
        edge = torch.zeros_like(outside[0])
        edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = True, True, True, True
        outside[empty] = edge
    return outside


def _polynomial_terms(shape: tuple[int, ...], order: int, device: torch.device, stop: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """Monomials x^i y^j [term, y, x] over 0..``stop`` on each axis; the constant is term 0."""
    ny, nx = shape
    y = torch.linspace(0, stop[0], ny, device=device)[:, None].expand(ny, nx) - 0.5
    x = torch.linspace(0, stop[1], nx, device=device)[None, :].expand(ny, nx) - 0.5
    return torch.stack([x**i * y**j for i in range(order + 1) for j in range(order + 1 - i)])


def _weighted_fit(terms: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    """Least squares per frame: terms [t, p], values and weight [f, p] -> coefficients [f, t]."""
    normal = torch.einsum("tp,fp,sp->fts", terms.double(), weight.double(), terms.double())
    right = torch.einsum("tp,fp,fp->ft", terms.double(), weight.double(), values.double())
    ridge = 1e-6 * torch.eye(len(terms), device=terms.device, dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(normal + ridge * weight.shape[1], right)
    return solution.float()


def _weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    marked = torch.where(weight > 0, values, torch.full_like(values, float("nan")))
    return torch.nan_to_num(marked.nanmedian(1).values, nan=1.0).clamp_min(1e-6)
