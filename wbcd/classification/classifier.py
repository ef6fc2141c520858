"""Batches of cells through a bundle's network, on whatever device there is.

Memory that does not suffice halves the batch, and the halved size is kept; a device that answers nothing more raises
DeviceLost, for the process to be replaced. One prediction comes back for each cell, in order, always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.classification.backends import EagerBackend, make_backend, tempered
from wbcd.classification.bundle import Bundle
from wbcd.classification.medium import medium_ri, noise_ri
from wbcd.classification.network import Output
from wbcd.classification.preparation import delta_from
from wbcd.errors import BadValue, DeviceError, DeviceLost, OutOfDeviceMemory
from wbcd.recipe import ALGORITHMS
from wbcd.records import Cell, Prediction

ALGORITHM_VERSION = ALGORITHMS["classification"]
"""Of probabilities and flags (classifier, network, backends, conformal, unknown); the weights are the model's.
History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

UNCLASSIFIED = "unclassified"
"""Flag of a cell that is counted under no class: its highest probability is below the recipe's ``min_probability``, or
another flag says why."""
OUTSIDE_TRAINING_RANGE = "outside_training_range"
"""Flag of a cell smaller, larger, thinner or denser than all that the model was trained on."""

OUTSIDE_INSTRUMENT_RANGE = "outside_instrument_range"
"""Flag of a cell from an instrument (aperture, wavelength, pitch, noise) unlike those of the training."""
UNKNOWN_CELL = "unknown_cell"
"""Flag of a cell whose features lie far from those of every class."""
MAY_BE = "may_be:"
"""Prefix of a flag that names a further class of the prediction set; the cell keeps its label and is counted under it."""

LOST = (
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "device is lost",
    "uncorrectable",
    "misaligned",
)
"""What a CUDA error says when its context is poisoned: every later call would fail too."""


class Classifier:
    """``device``: "auto" (CUDA when there is one), "cpu", "cuda", "cuda:1". ``max_batch`` cells at once.

    ``min_probability``: of the recipe; below it a prediction is flagged "unclassified". ``keep_features``: put the
    pooled features of the second downsampling block on each prediction. ``backend``: of
    :data:`wbcd.classification.backends.BACKENDS`, or "auto" to measure which is fastest. Raises BadValue on a device or backend
    that is not there.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        max_batch: int = 16,
        *,
        min_probability: float = 0.0,
        keep_features: bool = True,
        backend: str = "eager",
    ) -> None:
        if max_batch < 1:
            raise BadValue(f"[classification] max_batch is {max_batch}; it must be at least 1.")
        self.bundle = bundle
        self.device = choose_device(device)
        self.batch_size = max_batch
        self.min_probability = min_probability
        self.keep_features = keep_features
        self.backend = EagerBackend(bundle, self.device) if backend == "eager" else make_backend(bundle, backend, self.device)

    def warm_up(self) -> None:
        """One pass on an empty input: kernels are chosen and memory taken before the service says it is ready."""
        self._guarded(torch.zeros((1, *self.bundle.input.shape)))

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """One prediction a cell, in order. Raises OutOfDeviceMemory when a single cell does not fit, DeviceLost."""
        out: list[Prediction] = []
        while len(out) < len(cells):
            batch = cells[len(out) : len(out) + self.batch_size]
            media = [medium_ri(cell) for cell in batch]
            found = self.outputs_of_cells(batch, media)
            probabilities = self.probabilities_of(found)
            flags = self._flags(batch, media, probabilities, found.early.numpy())
            rows = zip(probabilities, found.features.numpy(), flags, strict=True)
            out += [self._prediction(*of_cell) for of_cell in rows]
        if len(out) != len(cells):
            raise DeviceError(f"{len(out)} predictions came back for {len(cells)} cells.", action="Report this.")
        return out

    def probabilities(self, deltas: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Of n - n_m at the bundle's pitch, float [n, z, y, x]: probabilities [n, classes] and features [n, f]."""
        found = self.outputs(deltas)
        return self.probabilities_of(found), found.features.numpy()

    def outputs_of_cells(self, cells: Sequence[Cell], media: Sequence[float] | None = None) -> Output:
        """Logits and pooled features of cells; ``media``: the RI around each, estimated when not given."""
        media = [medium_ri(cell) for cell in cells] if media is None else media
        deltas = np.stack([delta_from(cell, self.bundle.input, m) for cell, m in zip(cells, media, strict=True)])
        return self.outputs(torch.from_numpy(deltas))

    def outputs(self, deltas: Tensor) -> Output:
        """Of n - n_m at the bundle's pitch, float [n, z, y, x]: logits and pooled features, batch by batch."""
        parts: list[Output] = []
        done = 0
        while done < len(deltas):
            part = self._attempt(deltas[done : done + self.batch_size])
            if part is None:
                self._halve()
            else:
                parts.append(part)
                done += len(part.logits)
        return Output(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))

    def probabilities_of(self, found: Output) -> NDArray[np.float64]:
        """[n, classes]. Raises DeviceError where one is not finite."""
        probabilities = tempered(found.logits, self.bundle.model.temperature)
        if not np.isfinite(probabilities).all():
            raise DeviceError("the network gave probabilities that are not finite.")
        return probabilities

    def _attempt(self, deltas: Tensor) -> Output | None:
        """None when the memory did not suffice: the caller recovers outside the except block, whose traceback pins tensors."""
        try:
            return self._guarded(deltas)
        except OutOfDeviceMemory:
            if len(deltas) == 1:
                raise
            return None

    def _guarded(self, deltas: Tensor) -> Output:
        try:
            return self.backend.outputs(deltas)
        except RuntimeError as error:
            raise _named(error, len(deltas), self.device) from error

    def _halve(self) -> None:
        self.batch_size = max(1, self.batch_size // 2)
        self.backend.shrink()

    def _flags(
        self, cells: Sequence[Cell], media: Sequence[float], probabilities: NDArray[np.float64], early: NDArray[np.float32]
    ) -> list[tuple[str, ...]]:
        """Of each cell: why its label is not to be counted, with "unclassified" last; or which further classes it may be."""
        gauge, conformal = self.bundle.gauge, self.bundle.model.conformal
        far = gauge.distance(early) > gauge.threshold if gauge else np.zeros(len(cells), dtype=bool)
        member = conformal.sets(probabilities) if conformal else np.zeros(probabilities.shape, dtype=bool)
        out = []
        for cell, medium, p, unknown, inside in zip(cells, media, probabilities, far, member, strict=True):
            reasons = self._outside(cell, medium) + ((UNKNOWN_CELL,) if unknown else ())
            if reasons or float(p.max()) < self.min_probability:
                out.append((*reasons, UNCLASSIFIED))
                continue
            best = int(p.argmax())
            out.append(tuple(MAY_BE + c for i, c in enumerate(self.bundle.classes) if inside[i] and i != best))
        return out

    def _outside(self, cell: Cell, medium: float) -> tuple[str, ...]:
        """What the training's envelope and instruments say against a cell."""
        model = self.bundle.model
        reasons: tuple[str, ...] = ()
        if model.envelope is not None and not model.envelope.holds(*_size_and_contrast(cell, medium)):
            reasons += (OUTSIDE_TRAINING_RANGE,)
        if model.instrument is not None and model.instrument.departures(
            objective_na=cell.objective_na,
            wavelength_um=cell.wavelength_um,
            pitch_um=cell.pitch_um,
            noise_ri=None if model.instrument.noise_ri is None else noise_ri(cell, medium),
        ):
            reasons += (OUTSIDE_INSTRUMENT_RANGE,)
        return reasons

    def _prediction(
        self, probabilities: NDArray[np.float64], features: NDArray[np.float32], flags: tuple[str, ...]
    ) -> Prediction:
        best = int(probabilities.argmax())
        classes = self.bundle.classes
        return Prediction(
            model_id=self.bundle.model_id,
            label=classes[best],
            probability=float(probabilities[best]),
            probabilities={c: float(p) for c, p in zip(classes, probabilities, strict=True)},
            flags=flags,
            features=features.copy() if self.keep_features else None,
        )


def _size_and_contrast(cell: Cell, medium: float) -> tuple[float, float]:
    """Volume in fL and mean n - n_m over the mask, n_m as the tomogram shows it; (0, 0) for an empty mask."""
    inside = cell.ri[cell.mask]
    if not inside.size:
        return 0.0, 0.0
    return float(inside.size * math.prod(cell.voxel_um)), float(inside.mean(dtype=np.float64) - medium)


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA when it answers, else the CPU. Raises BadValue on a name torch does not know or a device not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device: torch.device | None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadValue(f"device ([classification] device, or --device) is {name!r}; it must be auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BadValue(f"device ([classification] device, or --device) is {name!r}; this machine has {count} CUDA devices.")
    return device


def _named(error: RuntimeError, cells: int, device: torch.device) -> DeviceError:
    """torch's error as one of ours: the caller's rule differs between too little memory, a dead device and the rest."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    # The CPU's allocator has no class of its own.
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return OutOfDeviceMemory(f"{cells} cells do not fit into the memory of {device}: {text}.")
    if any(word in str(error).lower() for word in LOST):
        return DeviceLost(f"{device} was lost: {text}.")
    return DeviceError(f"{device} failed on a batch of {cells} cells: {text}.")
