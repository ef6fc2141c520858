"""Two-dimensional phase unwrapping, batched, each frame by the cheapest way that is right for it.

A frame without jumps needs nothing. One with jumps but without residues has the same unwrapped phase along every path, so
its jumps are counted along one (Itoh 1982). One with residues is unwrapped by least squares and made congruent: Ghiglia &
Romero 1994 (unweighted, Neumann boundary, by a cosine transform), Pritt 1996 (congruence).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TWO_PI = 2.0 * math.pi


def wrap(phase: Tensor) -> Tensor:
    """Phase into (-pi, pi]."""
    return phase - TWO_PI * torch.round(phase / TWO_PI)


class Turns(NamedTuple):
    """Whole turns between neighbours of a wrapped phase, int8: ``across`` [..., y, x-1], ``down`` [..., y-1, x]."""

    across: Tensor
    down: Tensor


def turns(phase: Tensor) -> Turns:
    """Where neighbours of a wrapped phase [..., y, x] differ by more than half a turn: -1, 0 or 1."""
    steps = torch.diff(phase, dim=-1), torch.diff(phase, dim=-2)
    return Turns(*((step > math.pi).to(torch.int8) - (step < -math.pi).to(torch.int8) for step in steps))


def residues(found: Turns) -> Tensor:
    """Charge of each 2 x 2 loop, int8 [..., y-1, x-1]: -1, 0 or 1. The steps of a loop add up to 0, so its turns tell."""
    across, down = found
    return across[..., 1:, :] + down[..., :-1] - across[..., :-1, :] - down[..., 1:]


def unwrap(phase: Tensor, found: Turns | None = None) -> Tensor:
    """Continuous phase [frame, y, x] congruent with the wrapped one; its background is near 0.

    Frames without jumps are returned as they are. ``found``: their :func:`turns`, where they were asked before.
    """
    found = found or turns(phase)
    wrapped = found.across.flatten(-2).any(-1) | found.down.flatten(-2).any(-1)
    if not bool(wrapped.any()):
        return phase
    needs = torch.nonzero(wrapped)[:, 0]
    consistent = ~residues(Turns(found.across[needs], found.down[needs])).flatten(-2).any(-1)
    out = phase.clone()
    if len(chosen := needs[consistent]):
        out[chosen] = _counted(phase[chosen], Turns(found.across[chosen], found.down[chosen]))
    if len(chosen := needs[~consistent]):
        out[chosen] = _congruent(phase[chosen])
    return out


def _counted(phase: Tensor, found: Turns) -> Tensor:
    """Jumps counted down the first column and along each row; whole numbers, so nothing accumulates but them."""
    whole = torch.zeros(phase.shape, dtype=torch.int8, device=phase.device)
    whole[..., 1:] = -found.across
    whole[..., 1:, 0] = -found.down[..., 0]
    whole[..., :, 0] = whole[..., :, 0].cumsum(-1)
    exact = phase + TWO_PI * whole.cumsum(-1, dtype=phase.dtype)
    return exact - TWO_PI * torch.round(_border_median(exact) / TWO_PI)


def _congruent(phase: Tensor) -> Tensor:
    smooth = _least_squares(phase)
    # The least-squares surface has a free constant: take the one under which most pixels agree with the wrapped phase.
    offset = torch.angle(torch.exp(1j * (phase - smooth)).mean((-2, -1), keepdim=True))
    smooth = smooth + offset
    exact = phase + TWO_PI * torch.round((smooth - phase) / TWO_PI)
    return exact - TWO_PI * torch.round(_border_median(exact) / TWO_PI)


def _border_median(phase: Tensor) -> Tensor:
    edge = torch.cat([phase[..., :3, :].flatten(-2), phase[..., -3:, :].flatten(-2)], -1)
    return edge.median(-1).values[..., None, None]


def _least_squares(phase: Tensor) -> Tensor:
    rho = torch.zeros_like(phase)
    dx, dy = wrap(torch.diff(phase, dim=-1)), wrap(torch.diff(phase, dim=-2))
    rho[..., :, :-1] += dx
    rho[..., :, 1:] -= dx
    rho[..., :-1, :] += dy
    rho[..., 1:, :] -= dy
    ny, nx = phase.shape[-2:]
    cy = torch.cos(math.pi * torch.arange(ny, device=phase.device) / ny)
    cx = torch.cos(math.pi * torch.arange(nx, device=phase.device) / nx)
    eigen = 2 * cy[:, None] + 2 * cx[None, :] - 4
    eigen[0, 0] = 1.0
    spectrum = _dct(_dct(rho).transpose(-1, -2)).transpose(-1, -2) / eigen
    spectrum[..., 0, 0] = 0.0
    return _idct(_idct(spectrum).transpose(-1, -2)).transpose(-1, -2)


def _dct(x: Tensor) -> Tensor:
    """DCT-II along the last axis by one complex FFT of the same length (Makhoul 1980)."""
    n = x.shape[-1]
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    spectrum: Tensor = torch.fft.fft(v) * _twiddle(n, x)
    return spectrum.real


def _idct(spectrum: Tensor) -> Tensor:
    """Inverse of :func:`_dct`."""
    n = spectrum.shape[-1]
    mirrored = torch.cat([torch.zeros_like(spectrum[..., :1]), spectrum[..., 1:].flip(-1)], -1)
    v = torch.fft.ifft(torch.complex(spectrum, -mirrored) * _twiddle(n, spectrum).conj()).real
    x = torch.empty_like(spectrum)
    x[..., ::2] = v[..., : (n + 1) // 2]
    x[..., 1::2] = v[..., (n + 1) // 2 :].flip(-1)
    return x


def _twiddle(n: int, like: Tensor) -> Tensor:
    angle = -math.pi * torch.arange(n, device=like.device, dtype=like.dtype) / (2 * n)
    return torch.polar(torch.ones_like(angle), angle)
