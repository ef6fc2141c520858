"""Toy training sets: balls of two sizes, made in milliseconds. Module-level, so that a spawned worker finds them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import zarr
from helpers_classification import CLASSES, SPEC, toy_cell
from numpy.typing import NDArray

from wbcd.records import Cell
from wbcd.training import dataset as sets
from wbcd.training import make_dataset

TOY_CELLS = 144

Change: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]


def toy_source(kind: str, donor: int, draw: np.random.SeedSequence) -> Cell | None:
    """Small or large balls; every fifth draw or so finds nothing."""
    rng = np.random.default_rng(draw)
    if rng.random() < 0.2:
        return None
    mean = {"small": 2.2, "large": 3.4}[kind]
    cell = toy_cell(mean + 0.25 * rng.standard_normal(), delta=0.03 + 0.001 * (donor % 3))
    ri = cell.ri + np.float32(2e-4) * rng.standard_normal(cell.ri.shape, dtype=np.float32)
    return Cell(1, ri, cell.mask, cell.voxel_um, cell.medium_ri, cell.centre_um)


def dying_source(kind: str, donor: int, draw: np.random.SeedSequence) -> Cell | None:
    """Kills its process, as the kernel does when memory ends; works again when the file ``alive`` is there."""
    import signal

    if not Path(os.environ["WBCD_TEST_ALIVE"]).exists() and draw.spawn_key[1] >= 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return toy_source(kind, donor, draw)


def toy_set(path: Path, cells: int = TOY_CELLS, workers: int = 1, seed: int = 0, donors: int = 6, first_donor: int = 0) -> Path:
    """A complete toy set."""
    make_dataset(
        path,
        cells,
        donors=donors,
        seed=seed,
        workers=workers,
        spec=SPEC,
        classes=CLASSES,
        source=toy_source,
        first_donor=first_donor,
    )
    return path


def endless_source(kind: str, donor: int, draw: np.random.SeedSequence) -> Cell | None:
    """Leaves its process id and never ends."""
    import threading

    (Path(os.environ["WBCD_TEST_PIDS"]) / str(os.getpid())).touch()
    threading.Event().wait()
    return toy_source(kind, donor, draw)


def any_ball(kind: str, donor: int, draw: np.random.SeedSequence) -> Cell | None:
    """A ball, whatever its class is called."""
    return toy_source("small", donor, draw)


FOUR = ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte")


def four_source(kind: str, donor: int, draw: np.random.SeedSequence) -> Cell | None:
    """Balls that go by the names of the four classes."""
    rng = np.random.default_rng(draw)
    cell = toy_cell(2.0 + 0.6 * FOUR.index(kind) + 0.1 * rng.standard_normal(), delta=0.03 + 0.001 * (donor % 3))
    ri = cell.ri + np.float32(2e-4) * rng.standard_normal(cell.ri.shape, dtype=np.float32)
    return Cell(1, ri, cell.mask, cell.voxel_um, cell.medium_ri, cell.centre_um)


def four_set(path: Path, cells: int = 160, seed: int = 0) -> Path:
    """A complete toy set of four classes and six donors."""
    make_dataset(path, cells, donors=6, seed=seed, workers=1, spec=SPEC, classes=FOUR, source=four_source)
    return path


def altered_set(
    path: Path, out: Path, *, card: Mapping[str, object] | None = None, arrays: Mapping[str, Change] | None = None
) -> Path:
    """The set again in ``out``, its splits as they are, but for some of its attributes and of its arrays' values."""
    shutil.copytree(path, out)
    group = zarr.open_group(out, mode="r+", zarr_format=3)
    group.attrs.update({**group.attrs, **(card or {})})
    for name, change in (arrays or {}).items():
        old = np.asarray(group[name][:])  # type: ignore[index]  # a group may hold groups; these are arrays
        group[name][:] = change(old).astype(old.dtype)  # type: ignore[index]  # as above
    if arrays:
        sets.finish(out, sets.splits_of(path))
    return out


def simulated_set(folder: Path, cells: int, *, donors: int, seed: int) -> sets.TrainingSet:
    """Simulated cells through the fast optics, or the larger set that WBCD_TEST_SET names."""
    path = Path(os.environ.get("WBCD_TEST_SET", folder / "cells.zarr"))
    if not path.exists():
        make_dataset(path, cells, donors=donors, seed=seed, workers=2)
    return sets.load(path)


def blind_source(kind: str, donor: int, draw: np.random.SeedSequence) -> object:
    """A cell as it is simulated for its label, but for the phantom: that is one of any class."""
    from wbcd.training import simulated

    honest = simulated.sample_phantom
    simulated.sample_phantom = lambda _, rng: honest(FOUR[int(rng.integers(4))], rng)
    try:
        return simulated.simulate_cell(kind, donor, draw)
    finally:
        simulated.sample_phantom = honest
