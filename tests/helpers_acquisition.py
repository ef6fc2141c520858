"""Small files of each format, and ways to spoil them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wbcd.acquisition import identify, read
from wbcd.records import HologramStack, Optics, RiSeries, Tomogram
from wbcd.simulation.files import write_acquisition, write_tcf

OPTICS = Optics(wavelength_um=0.532, objective_na=1.2, medium_ri=1.337, pixel_size_um=0.0625)
VOXEL_UM = (0.2, 0.1, 0.1)


def holograms(angles: int = 4, size: int = 64, *, reference: bool = False, dtype: Any = np.uint8) -> HologramStack:
    rng = np.random.default_rng(7)
    frames = rng.integers(1, 250, (angles, size, size)).astype(dtype)
    other = rng.integers(1, 250, (angles, size, size)).astype(dtype) if reference else None
    return HologramStack(frames, other, None, 0, OPTICS)


def wbcd_file(path: Path, stack: HologramStack | None = None, **options: Any) -> Path:
    ticket = {
        "acquisition_id": "A-1",
        "acquired_at": "2024-05-06T07:08:09+02:00",
        "sample_id": "donor 3",
        "instrument_id": "rig",
    }
    return write_acquisition(path, stack or holograms(), **{**ticket, **options})


def ri_volume(shape: tuple[int, int, int] = (12, 40, 44), seed: int = 1) -> np.ndarray:
    """RI on the vendor's grid of 1e-4, so that uint16 keeps it exactly."""
    rng = np.random.default_rng(seed)
    return (rng.integers(13300, 14200, shape) / 1e4).astype(np.float32)


def tcf_file(path: Path, volumes: list[np.ndarray] | None = None, **options: Any) -> Path:
    return write_tcf(path, volumes or [ri_volume()], **{"voxel_um": VOXEL_UM, **options})


def edit(path: Path, change: Callable[[h5py.File], object]) -> Path:
    """Change a file as its own writer might have: without the seal that an afterthought would break."""
    with h5py.File(path, "r+") as file:
        file.attrs.pop("seal", None)
        change(file)
    return path


def load(path: Path, **options: Any) -> Any:
    """identify + read, volumes and all."""
    ticket, payload = read(identify(path), **options)
    return (ticket, list(payload)) if isinstance(payload, RiSeries) else (ticket, payload)


def volumes(path: Path) -> list[Tomogram]:
    return load(path)[1]


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Ask until true or the time is over; the asking itself does the waiting."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
    return False
