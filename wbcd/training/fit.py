"""Fitting the fish network to a training set.

Two presets: "paper" (Adam 0.004, decay 0.9999 a step, batch 8, cross entropy) and "modern" (AdamW, one cycle, label smoothing).
fp32 throughout: bf16 weight gradients of Conv3d on a CPU are not always finite. The weights kept are those of the epoch with
the lowest validation loss; probabilities are then calibrated on the validation cells and measured on the held-out ones.

    report = train("cells.zarr", "training/", epochs=12)
    report.bundle                          # folder for [classification] model
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wbcd.classification import Classifier, Envelope, FishNet3d, ModelCard, save_bundle
from wbcd.classification.bundle import write_file
from wbcd.classification.classifier import choose_device
from wbcd.classification.network import parameter_count
from wbcd.classification.preparation import normalise
from wbcd.errors import BadValue, DeviceError
from wbcd.recipe import Recipe
from wbcd.training import checkpoint
from wbcd.training import dataset as sets
from wbcd.training.augmentation import Augmentation, augment
from wbcd.training.calibration import cross_entropy, fit_temperature
from wbcd.training.evaluation import Evaluation, judge, probabilities_of


@dataclass(frozen=True, slots=True)
class Preset:
    """How to fit. ``decay``: of the learning rate a step, or None for one cycle over all epochs; ``patience``: epochs
    without a better validation loss before stopping, 0 for never (a cycle cut short has not annealed)."""

    optimizer: str
    learning_rate: float
    batch: int
    decay: float | None
    weight_decay: float
    label_smoothing: float
    patience: int


PRESETS: Mapping[str, Preset] = {
    "paper": Preset("adam", 0.004, 8, 0.9999, 0.0, 0.0, 12),
    "modern": Preset("adamw", 0.004, 16, None, 0.02, 0.05, 0),
}

NORM_BATCHES = 16
"""Batches from which the normalisations' means and variances are taken anew before each validation: running averages lag
behind weights that move fast, so far that the validation loss of a short training says nothing."""

WARM_UP = 0.3
"""Share of a cycle in which the learning rate rises; it starts at a 25th and ends at a 10,000th of the highest."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of the log. Losses in nats; ``seconds`` of this epoch."""

    epoch: int
    epochs: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """``bundle``: the folder made. ``evaluations`` by split: "test", and "test_donor" where donors were held out."""

    bundle: Path
    model_id: str
    history: tuple[Epoch, ...]
    best_epoch: int
    temperature: float
    evaluations: Mapping[str, Evaluation]
    parameters: int
    seconds: float


OnEpoch = Callable[[Epoch], None]


def train(
    dataset_path: str | Path,
    out_dir: str | Path,
    *,
    preset: str = "modern",
    width: int = 16,
    epochs: int = 12,
    seed: int = 0,
    device: str = "auto",
    on_epoch: OnEpoch | None = None,
    name: str = "wbcd",
    augmentation: Augmentation | None = None,
    notes: Mapping[str, Any] | None = None,
) -> TrainingReport:
    """Train, calibrate, measure, and write ``out_dir/bundle``; a run that was interrupted goes on from its last epoch.

    ``name``: of the bundle. ``notes``: further facts for the card's training section (commands, duration).
    Raises BadValue on an unusable argument or a folder of another training.
    """
    began = time.monotonic()
    if preset not in PRESETS:
        raise BadValue(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}.")
    if epochs < 1 or width < 2:
        raise BadValue(f"epochs is {epochs} and width is {width}; at least 1 and 2.")
    data, out = sets.load(Path(dataset_path)), Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(data, out, PRESETS[preset], epochs, seed, choose_device(device), augmentation or Augmentation(), width)
    run.fit(on_epoch)
    model = ModelCard(name=name, classes=data.classes, width=width, input=data.input)
    return _conclude(run, model, {"preset": preset, **asdict(PRESETS[preset]), **(notes or {})}, began)


class _Run:
    """State of one training: network, optimizer, progress and the best weights."""

    def __init__(
        self,
        data: sets.TrainingSet,
        out: Path,
        preset: Preset,
        epochs: int,
        seed: int,
        device: torch.device,
        augmentation: Augmentation,
        width: int,
    ) -> None:
        self.data, self.out, self.preset, self.epochs, self.seed = data, out, preset, epochs, seed
        self.device, self.augmentation = device, augmentation
        self.cells, self.watched = data.indices("train"), data.indices("validation")
        if len(self.cells) < 2:
            raise BadValue(f"{data.path}: {len(self.cells)} cells to train on; at least 2.", action="Make a larger set.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = FishNet3d(len(data.classes), width)
        # Channels last: a quarter less time a cell on a CPU. torch's stubs do not know the keyword.
        cast(Any, self.network).to(device, memory_format=torch.channels_last_3d)
        self.optimizer = _optimizer(self.network, preset)
        self.best: dict[str, Tensor] = {}
        self.progress = checkpoint.Progress(self._identity(width))

    def fit(self, on_epoch: OnEpoch | None) -> None:
        """All epochs that are still to do."""
        found = checkpoint.resume(self.out, self.progress.identity, self.network, self.optimizer)
        if found is not None:
            self.progress, self.best = found
        while self.progress.epoch < self.epochs and not self._exhausted():
            row = self._epoch()
            if on_epoch is not None:
                on_epoch(row)

    def _epoch(self) -> Epoch:
        began = time.monotonic()
        number = self.progress.epoch
        loss = self._pass(number)
        logits = self.logits(self.watched)
        labels = self.data.label[self.watched]
        watched = cross_entropy(logits, labels)
        accuracy = float((logits.argmax(1) == labels).mean())
        rate = float(self.optimizer.param_groups[0]["lr"])
        row = Epoch(number + 1, self.epochs, rate, loss, watched, accuracy, time.monotonic() - began)
        self._keep(row)
        return row

    def _keep(self, row: Epoch) -> None:
        if row.validation_loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_epoch = row.validation_loss, row.epoch
            self.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        self.progress.epoch = row.epoch
        self.progress.history.append(asdict(row))
        checkpoint.save(self.out, self.progress, self.network.state_dict(), self.best, self.optimizer)
        write_file(self.out / "log.csv", _log(self.progress.history))

    def _pass(self, number: int) -> float:
        """One pass over the training cells; mean loss. Generators are seeded by (seed, epoch)."""
        order = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2, number))).permutation(self.cells)
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + number)
        batches = _batches(order, self.preset.batch)
        self.network.train()
        total = 0.0
        for step, cells in enumerate(batches):
            self._set_rate((number * len(batches) + step), self.epochs * len(batches))
            total += self._step(cells, generator) * len(cells)
        self._settle_norms(batches[:NORM_BATCHES])
        return total / sum(map(len, batches))

    def _settle_norms(self, batches: list[NDArray[np.intp]]) -> None:
        """Statistics of the batch normalisations over cells as they are, not augmented, for the weights as they are now."""
        norms = [m for m in self.network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        usual = [m.momentum for m in norms]
        for norm in norms:
            norm.reset_running_stats()
            # None: the plain mean over batches.
            norm.momentum = None
        with torch.no_grad():
            for cells in batches:
                self.network(self._input(torch.from_numpy(self.data.ri_delta[cells]).to(self.device)))
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum

    def _input(self, deltas: Tensor) -> Tensor:
        return normalise(deltas, self.data.input)[:, None].contiguous(memory_format=torch.channels_last_3d)

    def _step(self, cells: NDArray[np.intp], generator: torch.Generator) -> float:
        deltas = torch.from_numpy(self.data.ri_delta[cells]).to(self.device)
        labels = torch.from_numpy(self.data.label[cells]).to(self.device)
        x = self._input(augment(deltas, self.data.input.voxel_um, self.augmentation, generator))
        loss = F.cross_entropy(self.network(x), labels, label_smoothing=self.preset.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DeviceError("the training loss is not finite.", action="Lower the learning rate, or check the training set.")
        return value

    def _set_rate(self, step: int, steps: int) -> None:
        rate = learning_rate(self.preset, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def logits(self, cells: NDArray[np.intp]) -> NDArray[np.float32]:
        """Of cells as they are, not augmented, [n, classes]."""
        self.network.eval()
        out = []
        with torch.inference_mode():
            for batch in (cells[i : i + 16] for i in range(0, len(cells), 16)):
                x = self._input(torch.from_numpy(self.data.ri_delta[batch]).to(self.device))
                out.append(self.network(x).float().cpu().numpy())
        return np.concatenate(out)

    def take_best(self) -> None:
        """Go back to the epoch with the lowest validation loss."""
        self.network.load_state_dict(self.best)

    def _exhausted(self) -> bool:
        patience = self.preset.patience
        return patience > 0 and self.progress.epoch - self.progress.best_epoch >= patience

    def _identity(self, width: int) -> dict[str, Any]:
        parts = {
            "data_hash": self.data.data_hash,
            "preset": asdict(self.preset),
            "epochs": self.epochs,
            "seed": self.seed,
            "width": width,
            "augmentation": asdict(self.augmentation),
        }
        return {**parts, "digest": hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()}


def learning_rate(preset: Preset, step: int, steps: int) -> float:
    """At a step counted from 0 of ``steps``: exponential decay, or one cosine cycle up and down (Smith 2018)."""
    if preset.decay is not None:
        return preset.learning_rate * preset.decay**step
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return _cosine(preset.learning_rate / 25, preset.learning_rate, step / rise)
    return _cosine(preset.learning_rate, preset.learning_rate / 1e4, (step - rise) / max(1.0, steps - rise))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _optimizer(network: torch.nn.Module, preset: Preset) -> torch.optim.Optimizer:
    if preset.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), preset.learning_rate)
    # Scales, shifts and biases are not decayed: their size is no complexity.
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": preset.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, preset.learning_rate, betas=(0.9, 0.99))


def _batches(order: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """The short last batch is kept, but for a single cell: its batch statistics would be its own."""
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return parts[:-1] if len(parts[-1]) == 1 else parts


def _log(history: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def training_envelope(morphology: NDArray[np.float32]) -> Envelope:
    """Ranges of the training cells ([n, 6] in the order of ``dataset.SIX``), widened by a tenth of the bound on either side.

    The mean contrast comes from the protein density, which does not depend on the medium: n - n_m = alpha C.
    """
    increment = Recipe().morphology.ri_increment_ml_g
    volume = morphology[:, sets.SIX.index("volume_fl")].astype(np.float64)
    contrast = morphology[:, sets.SIX.index("protein_density_g_dl")].astype(np.float64) * increment / 100
    (v0, v1), (c0, c1) = ((float(v.min()) * 0.9, float(v.max()) * 1.1) for v in (volume, contrast))
    return Envelope((round(v0, 1), round(v1, 1)), (round(c0, 5), round(c1, 5)))


def _conclude(run: _Run, model: ModelCard, training: dict[str, Any], began: float) -> TrainingReport:
    run.take_best()
    temperature = fit_temperature(run.logits(run.watched), run.data.label[run.watched])
    simulated = bool(run.data.card.get("simulated", True))
    training = {
        **training,
        "epochs": run.epochs,
        "best_epoch": run.progress.best_epoch,
        "seed": run.seed,
        "train_cells": len(run.cells),
        "validation_cells": len(run.watched),
        "data_hash": run.data.data_hash,
        "data": {k: v for k, v in run.data.card.items() if k in ("cells", "donors", "seed", "path", "recipe_id")},
        "parameters": parameter_count(run.network),
        "precision": "float32",
    }
    envelope = training_envelope(run.data.morphology[run.cells])
    model = replace(model, temperature=temperature, simulated=simulated, training=training, envelope=envelope)
    bundle = save_bundle(run.out / "bundle", run.network, model)
    evaluations = _measure(Classifier(bundle, str(run.device)), run.data, simulated, bundle.model_id)
    facts = {split: _card_row(e) for split, e in evaluations.items()}
    # The measured figures are no part of the digest: the model id stays what was measured.
    bundle = save_bundle(run.out / "bundle", run.network, replace(model, measured=facts))
    report = TrainingReport(
        bundle=bundle.path,
        model_id=bundle.model_id,
        history=tuple(_epoch_of(row) for row in run.progress.history),
        best_epoch=run.progress.best_epoch,
        temperature=temperature,
        evaluations=evaluations,
        parameters=parameter_count(run.network),
        seconds=time.monotonic() - began,
    )
    text = {"model_id": report.model_id, "evaluations": {k: e.as_json() for k, e in evaluations.items()}}
    write_file(run.out / "report.json", json.dumps(text, indent=1).encode())
    return report


def _epoch_of(row: Mapping[str, float]) -> Epoch:
    numbers = {k: v for k, v in row.items() if k not in ("epoch", "epochs")}
    return Epoch(int(row["epoch"]), int(row["epochs"]), **numbers)


def _measure(classifier: Classifier, data: sets.TrainingSet, simulated: bool, model_id: str) -> dict[str, Evaluation]:
    held = sets.split_of(data.label, data.donor, int(data.card["seed"]))
    out: dict[str, Evaluation] = {}
    for split in ("test", "test_donor"):
        cells = np.flatnonzero(held == sets.SPLITS.index(split))
        if len(cells):
            probabilities = probabilities_of(classifier, data.ri_delta, cells)
            out[split] = judge(
                probabilities, data.label[cells], data.donor[cells], data.classes, split, simulated=simulated, model_id=model_id
            )
    return out


def _card_row(evaluation: Evaluation) -> dict[str, Any]:
    """What the card states of a split."""
    keys = ("n", "accuracy", "ci_low", "ci_high", "balanced_accuracy", "expected_calibration_error")
    row: dict[str, Any] = {key: getattr(evaluation, key) for key in keys}
    recall = {k: v for k, v in evaluation.recall.items() if math.isfinite(v)}
    return {**row, "recall": recall, "confusion_true_by_predicted": [list(r) for r in evaluation.confusion]}
