"""Small, cheap acquisitions for tests of the whole: spheres as TCF files, and a bundle whose network is tiny."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEDIUM = 1.337
VOXEL_UM = (0.4, 0.4, 0.4)
SIZE = 32
CLASSES = ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte")


def sphere(radius_um: float, ri: float = 1.37, *, size: int = SIZE, centre_um: float = 0.0) -> NDArray[np.float32]:
    """RI of a homogeneous sphere, [z, y, x], its surface smoothed over a voxel."""
    axis = (np.arange(size) - (size - 1) / 2) * VOXEL_UM[0]
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + (axis[None, None, :] - centre_um) ** 2)
    inside = np.clip((radius_um - distance) / VOXEL_UM[0] + 0.5, 0, 1)
    return (MEDIUM + (ri - MEDIUM) * inside).astype(np.float32)


def write_run(folder: Path, count: int) -> None:
    """``count`` TCF acquisitions: most hold one sphere each, every tenth is empty, truncated, or has a cell too small."""
    from wbcd.simulation.files import write_tcf

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        kind = {3: "empty", 6: "truncated", 9: "small"}.get(number % 10, "cell")
        radius = {"empty": 0.0, "small": 1.55}.get(kind, 3.0 + 0.02 * number)
        path = write_tcf(folder / f"{number:03d}.TCF", [sphere(radius)], voxel_um=VOXEL_UM, title=f"cell-{number}")
        if kind == "truncated":
            os.truncate(path, path.stat().st_size - 2000 - number)
        stamp = time.time_ns() - (1000 - number) * 1_000_000_000
        os.utime(path, ns=(stamp, stamp))


def tiny_bundle(folder: Path) -> Path:
    """A bundle with an untrained network of a few thousand weights: its labels mean nothing, but are always the same."""
    import torch

    from wbcd.classification import FishNet3d, InputSpec, ModelCard, save_bundle

    torch.manual_seed(0)
    card = ModelCard(name="tiny", classes=CLASSES, width=2, input=InputSpec((16, 16, 16), (1.0, 1.0, 1.0)))
    save_bundle(folder, FishNet3d(len(CLASSES), 2), card)
    return folder


def cheap_settings(folder: Path, bundle: Path, **changes: Any) -> dict[str, Any]:
    """Overrides of the configuration: small crops, short waits, everything in ``folder``."""
    return {
        "watch.dir": folder / "incoming",
        "watch.quiet_s": 0.0,
        "watch.rescan_s": 0.2,
        "watch.mode": "polling",
        "database.url": f"sqlite:///{folder / 'wbcd.db'}",
        "output.dir": folder / "output",
        "classification.model": bundle,
        "classification.device": "cpu",
        "classification.max_latency_s": 0.01,
        "limits.isolate": False,
        "service.heartbeat_s": 0.1,
        "recipe.morphology.crop_shape": [32, 32, 32],
        "recipe.morphology.crop_voxel_um": [0.4, 0.4, 0.4],
        **changes,
    }
