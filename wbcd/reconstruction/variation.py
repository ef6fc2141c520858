"""Isotropic total variation as a proximal step."""

from __future__ import annotations

import torch
from torch import Tensor

from wbcd.records import Triple


class TotalVariation:
    """Proximal step of isotropic TV (Chambolle 2004), a few dual steps warm-started from the last outer iteration."""

    STEPS = 2

    def __init__(self, voxel_um: Triple, weight: float) -> None:
        self._weight = weight
        dz, _, dx = voxel_um
        self._z_scale = dx / dz
        self._dual: Tensor | None = None

    def __call__(self, x: Tensor, step: float) -> Tensor:
        """The volume [z, y, x] after the proximal step of this length."""
        limit = self._weight * step
        if limit <= 0:
            return x
        dual = self._dual if self._dual is not None else x.new_zeros((3, *x.shape))
        for _ in range(self.STEPS):
            dual = self._gradient(x + self._divergence(dual)).div_(12).add_(dual)
            dual.div_(dual.norm(dim=0, keepdim=True).div_(limit).clamp_min_(1.0))
        self._dual = dual
        return x + self._divergence(dual)

    def _gradient(self, x: Tensor) -> Tensor:
        out = x.new_zeros((3, *x.shape))
        out[0, :-1] = self._z_scale * torch.diff(x, dim=0)
        out[1, :, :-1] = torch.diff(x, dim=1)
        out[2, :, :, :-1] = torch.diff(x, dim=2)
        return out

    def _divergence(self, p: Tensor) -> Tensor:
        out = torch.zeros_like(p[0])
        out[:-1] += self._z_scale * p[0, :-1]
        out[1:] -= self._z_scale * p[0, :-1]
        out[:, :-1] += p[1, :, :-1]
        out[:, 1:] -= p[1, :, :-1]
        out[:, :, :-1] += p[2, :, :, :-1]
        out[:, :, 1:] -= p[2, :, :, :-1]
        return out
