"""Toy cells and bundles for the tests of classification and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import Bundle, FishNet3d, InputSpec, ModelCard, save_bundle
from wbcd.records import Cell

CLASSES = ("small", "large")
SPEC = InputSpec((12, 16, 16), (0.8, 0.8, 0.8))


def ball(
    radius_um: float, delta: float, shape: tuple[int, int, int], voxel_um: tuple[float, float, float]
) -> NDArray[np.float32]:
    """RI excess of a ball in the middle."""
    z, y, x = np.meshgrid(*(((np.arange(n) - (n - 1) / 2) * d) for n, d in zip(shape, voxel_um, strict=True)), indexing="ij")
    return np.where(z**2 + y**2 + x**2 < radius_um**2, delta, 0).astype(np.float32)


def toy_cell(radius_um: float = 3.0, delta: float = 0.03, medium: float = 1.337, number: int = 1) -> Cell:
    """A ball at (0.4, 0.4, 0.4) um in 24 x 32 x 32 voxels."""
    excess = ball(radius_um, delta, (24, 32, 32), (0.4, 0.4, 0.4))
    return Cell(number, excess + np.float32(medium), excess > 0, (0.4, 0.4, 0.4), medium, (0.0, 0.0, 0.0))


def toy_bundle(folder: Path, width: int = 4, name: str = "toy", seed: int = 0, views: int = 1) -> Bundle:
    """An untrained network whose last layer is not small, so that its answers differ from cell to cell."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FishNet3d(len(CLASSES), width, views)
        torch.nn.init.normal_(next(network.classifier[-1].parameters()), std=3.0)
    return save_bundle(folder, network, ModelCard(name=name, classes=CLASSES, width=width, views=views, input=SPEC))
