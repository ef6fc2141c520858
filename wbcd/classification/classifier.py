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

from wbcd.classification.bundle import Bundle
from wbcd.classification.network import Output
from wbcd.classification.preparation import delta_ri, normalise
from wbcd.errors import BadValue, DeviceError, DeviceLost, OutOfDeviceMemory
from wbcd.records import Cell, Prediction

UNCLASSIFIED = "unclassified"
"""Flag of a cell that is counted under no class: its highest probability is below the recipe's ``min_probability``, or
another flag says why."""
OUTSIDE_TRAINING_RANGE = "outside_training_range"
"""Flag of a cell smaller, larger, thinner or denser than all that the model was trained on."""

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
    pooled features of the second downsampling block on each prediction. Raises BadValue on a device that is not there.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        max_batch: int = 16,
        *,
        min_probability: float = 0.0,
        keep_features: bool = True,
    ) -> None:
        if max_batch < 1:
            raise BadValue(f"[classification] max_batch is {max_batch}; it must be at least 1.")
        self.bundle = bundle
        self.device = choose_device(device)
        self.batch_size = max_batch
        self.min_probability = min_probability
        self.keep_features = keep_features
        # bf16 Conv3d on a CPU is slower and, in training, not even finite; on CUDA only what the bundle's evaluation proved.
        self.dtype = torch.bfloat16 if self.device.type == "cuda" and bundle.model.bfloat16 else torch.float32
        self.network = bundle.network.to(self.device)

    def warm_up(self) -> None:
        """One pass on an empty input: kernels are chosen and memory taken before the service says it is ready."""
        self._guarded(torch.zeros((1, *self.bundle.input.shape)))

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """One prediction a cell, in order. Raises OutOfDeviceMemory when a single cell does not fit, DeviceLost."""
        out: list[Prediction] = []
        while len(out) < len(cells):
            batch = cells[len(out) : len(out) + self.batch_size]
            deltas = np.stack([delta_ri(cell, self.bundle.input) for cell in batch])
            probabilities, features = self.probabilities(torch.from_numpy(deltas))
            out += [self._prediction(c, p, f) for c, p, f in zip(batch, probabilities, features, strict=True)]
        if len(out) != len(cells):
            raise DeviceError(f"{len(out)} predictions came back for {len(cells)} cells.", action="Report this.")
        return out

    def probabilities(self, deltas: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Of n - n_m at the bundle's pitch, float [n, z, y, x]: probabilities [n, classes] and features [n, f]."""
        parts: list[Output] = []
        done = 0
        while done < len(deltas):
            part = self._attempt(deltas[done : done + self.batch_size])
            if part is None:
                self._halve()
            else:
                parts.append(part)
                done += len(part.logits)
        logits = torch.cat([p.logits for p in parts]).double()
        probabilities = torch.softmax(logits / self.bundle.model.temperature, dim=1)
        if not bool(torch.isfinite(probabilities).all()):
            raise DeviceError("the network gave probabilities that are not finite.")
        return probabilities.numpy(), torch.cat([p.features for p in parts]).numpy()

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
            return self._forward(deltas)
        except RuntimeError as error:
            raise _named(error, len(deltas), self.device) from error

    def _forward(self, deltas: Tensor) -> Output:
        with torch.inference_mode():
            x = normalise(deltas.to(self.device), self.bundle.input)[:, None]
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                logits, features = self.network.both(x)
            return Output(logits.float().cpu(), features.float().cpu())

    def _halve(self) -> None:
        self.batch_size = max(1, self.batch_size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _flags(self, cell: Cell, probability: float) -> tuple[str, ...]:
        """Why a label is not to be counted, with "unclassified" last; () for one that is."""
        known = self.bundle.model.envelope is None or self.bundle.model.envelope.holds(*_size_and_contrast(cell))
        reasons = () if known else (OUTSIDE_TRAINING_RANGE,)
        unsure = probability < self.min_probability
        return (*reasons, UNCLASSIFIED) if reasons or unsure else ()

    def _prediction(self, cell: Cell, probabilities: NDArray[np.float64], features: NDArray[np.float32]) -> Prediction:
        best = int(probabilities.argmax())
        classes = self.bundle.classes
        return Prediction(
            model_id=self.bundle.model_id,
            label=classes[best],
            probability=float(probabilities[best]),
            probabilities={c: float(p) for c, p in zip(classes, probabilities, strict=True)},
            flags=self._flags(cell, float(probabilities[best])),
            features=features.copy() if self.keep_features else None,
        )


def _size_and_contrast(cell: Cell) -> tuple[float, float]:
    """Volume in fL and mean n - n_m over the mask; (0, 0) for an empty mask."""
    inside = cell.ri[cell.mask]
    if not inside.size:
        return 0.0, 0.0
    return float(inside.size * math.prod(cell.voxel_um)), float(inside.mean(dtype=np.float64) - cell.medium_ri)


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA when it answers, else the CPU. Raises BadValue on a name torch does not know or a device not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadValue(f"[classification] device is {name!r}; it must be auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise BadValue(f"[classification] device is {name!r}; it must be auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadValue(f"[classification] device is {name!r}; this machine has {torch.cuda.device_count()} CUDA devices.")
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
