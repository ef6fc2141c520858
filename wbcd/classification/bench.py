"""How fast each backend is, what a smaller input costs, and by how much probabilities change: measured, never assumed.

Every row is held against torch eager at the bundle's own input, on the cells that are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.classification.backends import (
    PROBABILITY_TOLERANCE,
    Backend,
    CudaBackend,
    EagerBackend,
    available,
    make_backend,
    seconds_a_batch,
)
from wbcd.classification.bundle import Bundle
from wbcd.classification.preparation import InputSpec, fit_centre, resample
from wbcd.records import Shape3, Triple

CHUNK = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. ``shape`` voxels and ``voxel_um`` (z, y, x) of the input; milliseconds a cell at ``batch`` cells;
    ``largest_change`` of any probability against eager at the bundle's input, ``labels_changed`` as a share, and accuracy, NaN
    without labels."""

    backend: str
    shape: Shape3
    voxel_um: Triple
    batch: int
    ms_a_cell: float
    largest_change: float
    labels_changed: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Cells:
    """What is measured on: n - n_m float [n, z, y, x] at the bundle's input, and labels [n] or None."""

    deltas: Tensor
    labels: NDArray[np.integer] | None = None
    simulated: bool = False


def bench_backends(
    bundle: Bundle, cells: Cells, *, device: torch.device, batches: Sequence[int] = (1, 8), names: Sequence[str] = ()
) -> Iterator[Row]:
    """Each backend of ``names`` (those available) at each batch size."""
    wanted = _probabilities(EagerBackend(bundle, device), cells.deltas)
    for name in names or available(device):
        backend = make_backend(bundle, name, device)
        found = _probabilities(backend, cells.deltas)
        for batch in batches:
            yield _row(backend, batch, cells, found, wanted)


def bench_inputs(
    bundle: Bundle, cells: Cells, inputs: Sequence[InputSpec], *, backend: str = "eager", batch: int = 8
) -> Iterator[Row]:
    """The same weights on smaller or coarser inputs: every crop cut from the middle, every pitch made from the bundle's."""
    device = torch.device("cpu")
    wanted = _probabilities(EagerBackend(bundle, device), cells.deltas)
    for spec in inputs:
        other = with_input(bundle, spec)
        made = torch.stack([fit_centre(resample(d, bundle.input.voxel_um, spec.voxel_um), spec.shape) for d in cells.deltas])
        engine = make_backend(other, backend, device)
        yield _row(engine, batch, replace(cells, deltas=made), _probabilities(engine, made), wanted)


def bfloat16_is_equal(bundle: Bundle, deltas: Tensor, device: torch.device) -> bool:
    """Whether bf16 on a CUDA ``device`` moves no probability of these cells [n, z, y, x] by more than the tolerance."""
    wanted = _probabilities(EagerBackend(replace(bundle, model=replace(bundle.model, bfloat16=False)), device), deltas)
    found = _probabilities(CudaBackend(replace(bundle, model=replace(bundle.model, bfloat16=True)), device), deltas)
    return bool(np.abs(found - wanted).max() <= PROBABILITY_TOLERANCE)


def with_input(bundle: Bundle, spec: InputSpec) -> Bundle:
    """The bundle with another input; for measuring only, since its weights were trained on the first."""
    return replace(bundle, path=Path(), model=replace(bundle.model, input=spec))


def smaller_inputs(spec: InputSpec) -> list[InputSpec]:
    """Crops to 90, 80, 70 and 60 % of each side, and the whole at an isotropic pitch of the coarsest axis."""
    out = []
    for share in (0.9, 0.8, 0.7, 0.6):
        z, y, x = (max(8, 2 * round(n * share / 2)) for n in spec.shape)
        out.append(replace(spec, shape=(z, y, x)))
    coarse = max(spec.voxel_um)
    z, y, x = (round(extent / coarse) for extent in spec.extent_um)
    isotropic = replace(spec, shape=(z, y, x), voxel_um=(coarse, coarse, coarse))
    return out if isotropic == spec else [*out, isotropic]


def _probabilities(backend: Backend, deltas: Tensor) -> NDArray[np.float64]:
    return np.concatenate([backend.probabilities(deltas[i : i + CHUNK]) for i in range(0, len(deltas), CHUNK)])


def _row(backend: Backend, batch: int, cells: Cells, found: NDArray[np.float64], wanted: NDArray[np.float64]) -> Row:
    spec = backend.bundle.input
    # Few cells are given round and round, so that a batch is always full.
    timed = cells.deltas[torch.arange(batch) % len(cells.deltas)]
    labels = found.argmax(axis=1)
    return Row(
        backend=backend.name,
        shape=spec.shape,
        voxel_um=spec.voxel_um,
        batch=batch,
        ms_a_cell=1e3 * seconds_a_batch(backend, timed) / batch,
        largest_change=float(np.abs(found - wanted).max()),
        labels_changed=float((labels != wanted.argmax(axis=1)).mean()),
        accuracy=float((labels == cells.labels).mean()) if cells.labels is not None else float("nan"),
    )
