"""Fitting the fish network to a training set.

Two presets. "paper": Adam 0.004 (momentum 0.9), batch 8, cross entropy, He initialisation, translation, crop, elastic
deformation and noise; its "learning rate decay = 0.9999" is read as a factor a *step* (a factor an epoch would have left the
rate at 98 % after the 159 epochs of the paper, so nobody would have set it). "modern": AdamW, one cycle, label smoothing,
rotations and flips in the plane only (along the axis the instrument's transfer function is not what it is across it).

fp32 on a CPU: bf16 weight gradients of Conv3d are not always finite there; on CUDA bf16 autocast. The weights kept are those
of the epoch with the lowest validation loss; probabilities are then calibrated on the validation cells and measured on the
held-out ones.

    report = train("cells.zarr", "training/", epochs=12)
    report.bundle                          # folder for [classification] model

On CUDA an update is one graph (:mod:`wbcd.training.graphed`). On a CPU a training that was killed at any moment goes on to the
same weights, to the last bit, with the same number of threads; on CUDA the kernels add in no fixed order.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wbcd.classification import Bundle, Classifier, Envelope, FishNet3d, ModelCard, load_bundle, save_bundle
from wbcd.classification.backends import whole_float32
from wbcd.classification.bundle import check_names, write_file
from wbcd.classification.classifier import choose_device
from wbcd.classification.network import Output, parameter_count
from wbcd.classification.preparation import normalise
from wbcd.classification.unknown import Gauge, least_cells
from wbcd.errors import BadValue, DeviceError
from wbcd.records import Shape3, Triple
from wbcd.training import checkpoint, seen
from wbcd.training import dataset as sets
from wbcd.training.augmentation import PAPER, Augmentation, augment
from wbcd.training.calibration import cross_entropy, fit_temperature
from wbcd.training.evaluation import HELD_OUT, Evaluation, answers_of, counted_of, judge_cells
from wbcd.training.graphed import GraphedUpdate
from wbcd.training.splits import missing_classes, warnings_of
from wbcd.training.tensorboard import open_board
from wbcd.training.unknown import ACCEPTANCE, instrument_of, know_limits


@dataclass(frozen=True, slots=True)
class Preset:
    """How to fit. ``decay``: of the learning rate a step, or None for one cycle over all epochs; ``patience``: epochs
    without a better validation loss before stopping, 0 for never (a cycle cut short has not annealed); ``views``: mirror
    views that the finished network takes."""

    optimizer: str
    learning_rate: float
    batch: int
    decay: float | None
    weight_decay: float
    label_smoothing: float
    patience: int
    views: int = 4
    augmentation: Augmentation = field(default_factory=Augmentation)


PRESETS: Mapping[str, Preset] = {
    "paper": Preset("adam", 0.004, 8, 0.9999, 0.0, 0.0, 12, views=1, augmentation=PAPER),
    "modern": Preset("adamw", 0.004, 16, None, 0.02, 0.05, 0),
}

TASKS = ("four", "two")
"""The classes as the set has them, or their lineages."""
PRECISIONS = ("auto", "float32", "bfloat16")

NORM_CELLS = 1024
"""Cells from which the normalisations' means and variances are taken anew before each validation: running averages lag
behind weights that move fast, so far that the validation loss of a short training says nothing. With 256, a channel that is
silent in most cells had a variance of nearly 0, and a cell in which it spoke a loss of hundreds."""

WARM_UP = 0.3
"""Share of a cycle in which the learning rate rises; it starts at a 25th and ends at a 10,000th of the highest."""

GENTLY = 0.1
"""Of the learning rate where the weights are another model's: at the whole rate its first epoch undoes them."""

CHECKPOINT_S = 120.0
"""Within an epoch: a killed training loses no more than this. A checkpoint of the default network is 17 MB."""

LOOK_S = 0.5
"""Between two looks at an accelerator's sums for the progress line."""

LOOKED_AT, LOOKED_AT_ON_CUDA = 16, 64
"""Cells at once where nothing is learnt; an accelerator would wait for the launches of small batches. Of large boxes and wide
networks it takes fewer, down to a batch of the training, whose gradients fit as well."""
LOOKED_AT_NUMBERS = 64 * 40 * 64 * 64 * 16
"""Voxels times width that an accelerator takes at once."""

RESIDENT_SHARE = 0.5
"""Of the accelerator's free memory that the set itself may take; else each batch is copied there."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of the log. Losses in nats; ``seconds`` of this epoch; the training accuracy is of augmented cells."""

    epoch: int
    epochs: int
    learning_rate: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    train_accuracy: float = float("nan")


@dataclass(frozen=True, slots=True)
class Step:
    """Where an epoch stands: ``step`` of ``steps`` done; loss and accuracy are means over this epoch so far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """``bundle``: the folder made. ``evaluations`` by split: "test", and "test_donor" where donors were held out.

    ``warnings``: sentences on what these figures cannot mean.
    """

    bundle: Path
    model_id: str
    history: tuple[Epoch, ...]
    best_epoch: int
    temperature: float
    evaluations: Mapping[str, Evaluation]
    parameters: int
    seconds: float
    warnings: tuple[str, ...] = ()


OnEpoch = Callable[[Epoch], None]
OnStep = Callable[[Step], None]


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
    on_step: OnStep | None = None,
    name: str = "wbcd",
    augmentation: Augmentation | None = None,
    notes: Mapping[str, Any] | None = None,
    task: str = "four",
    split_by: str = "both",
    patience: int | None = None,
    precision: str = "auto",
    board: bool = False,
    shape: Shape3 | None = None,
    voxel_um: Triple | None = None,
    start: str | Path | None = None,
    learning_rate: float | None = None,
    keep_features: bool = False,
) -> TrainingReport:
    """Train, calibrate, measure, and write ``out_dir/bundle``; a run that was interrupted goes on from its last checkpoint.

    ``name``: of the bundle. ``notes``: further facts for the card's training section (the command). ``task``: "four" (the
    set's classes) or "two" (lymphoid and myeloid). ``split_by``: a scheme of :mod:`wbcd.training.splits`. ``patience``: epochs
    without progress before stopping, instead of the preset's. ``precision``: "auto" is bf16 autocast on CUDA and fp32 on a
    CPU. ``board``: write TensorBoard events too. ``shape``, ``voxel_um``: a smaller box, a coarser pitch than the set's.
    ``start``: a bundle whose weights to begin with; box and pitch are then its own where they are not given, and the learning
    rate a tenth. ``learning_rate``: the highest, instead of the preset's. ``keep_features``: of ``start`` only the classifier
    learns, so that unknown cells are told by that model's features. Raises BadValue on an unusable argument or a folder of
    another training, UnknownModel and BundleInvalid where ``start`` is no model.
    """
    began = time.monotonic()
    if task not in TASKS:
        raise BadValue(f"task is {task!r}; it must be one of {', '.join(TASKS)}.")
    if preset not in PRESETS:
        raise BadValue(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}.")
    if keep_features and start is None:
        raise BadValue("keep_features, but no model whose features to keep.", action="Give it with --start.")
    recipe = _changed(PRESETS[preset], augmentation, patience)
    beginning = None if start is None else load_bundle(start)
    if beginning is not None:
        _check_start(beginning, width)
        shape, voxel_um = shape or beginning.input.shape, voxel_um or beginning.input.voxel_um
        recipe = replace(recipe, learning_rate=recipe.learning_rate * GENTLY)
    if learning_rate is not None:
        if not 0 < learning_rate < 1:
            raise BadValue(f"learning_rate is {learning_rate}; above 0 and below 1.")
        recipe = replace(recipe, learning_rate=learning_rate)
    data, out = sets.load(Path(dataset_path)), Path(out_dir)
    try:
        data = data.at(data.spec(shape, voxel_um))
    except BadValue as error:
        if beginning is None:
            raise
        raise BadValue(f"{beginning.path} (--start): {error}", action="Give --shape and --pitch that the set holds.") from error
    if beginning is not None and data.input.scale != beginning.input.scale:
        raise BadValue(
            f"{beginning.path} (--start): its input.scale is {beginning.input.scale:g}; that of {data.path} is"
            f" {data.input.scale:g}.",
            action="Make the set for this model, or leave --start out.",
        )
    data = data.as_lineages() if task == "two" else data
    check_names(name, data.classes)
    if (data.path / "zarr.json").exists() and out.resolve() == data.path.resolve():
        raise BadValue(f"{out}: is the training set itself.", action="Choose a folder of its own for the training.")
    run = Training(
        data,
        out,
        recipe,
        epochs=epochs,
        width=width,
        seed=seed,
        device=device,
        split_by=split_by,
        precision=precision,
        start=beginning,
        keep_features=keep_features,
    )
    run.fit(on_epoch, on_step, board=board)
    model = ModelCard(name=name, classes=data.classes, width=width, views=recipe.views, input=data.input)
    facts = {"preset": preset, "task": task, "split_by": split_by, **_flat(recipe), **(notes or {})}
    return _conclude(run, model, facts, began)


def _changed(preset: Preset, augmentation: Augmentation | None, patience: int | None) -> Preset:
    if patience is not None and patience < 0:
        raise BadValue(f"patience is {patience}; at least 0 (0: never stop early).")
    preset = preset if augmentation is None else replace(preset, augmentation=augmentation)
    return preset if patience is None else replace(preset, patience=patience)


def _flat(preset: Preset) -> dict[str, Any]:
    return {name: getattr(preset, name) for name in preset.__dataclass_fields__ if name != "augmentation"} | {
        "augmentation": asdict(preset.augmentation)
    }


class Training:
    """One training of one set in memory: network, optimizer, progress and the best weights, kept in the folder ``out``.

    ``share``: of the training cells that are used, taken class by class (learning curves). ``start``: whose weights to begin
    with instead of random ones; where the classes are others, its last layer is left out. ``keep_features``: all before the
    classifier stays as it is, running averages too.
    """

    def __init__(
        self,
        data: sets.TrainingSet,
        out: Path,
        preset: Preset,
        *,
        epochs: int,
        width: int = 16,
        seed: int = 0,
        device: str = "auto",
        split_by: str = "both",
        precision: str = "auto",
        share: float = 1.0,
        start: Bundle | None = None,
        keep_features: bool = False,
    ) -> None:
        if epochs < 1 or width < 2 or not 0 < share <= 1:
            raise BadValue(f"epochs is {epochs}, width {width} and share {share}; at least 1 and 2, and above 0 up to 1.")
        self.data, self.out, self.preset, self.epochs, self.seed = data, out, preset, epochs, seed
        self.device = choose_device(device)
        self.precision = _precision(precision, self.device)
        self.split_by, self.share = split_by, share
        self.cells, self.watched = self._cells("train"), data.indices("validation", split_by)
        if len(self.cells) < 2:
            raise BadValue(f"{data.path}: {len(self.cells)} cells to train on; at least 2.", action="Make a larger set.")
        if lost := np.setdiff1d(np.arange(len(data.classes)), data.label[self.cells]).tolist():
            raise BadValue(
                f"{data.path}: no cell of {', '.join(data.classes[k] for k in lost)} is in training (by {split_by}).",
                action="Give cells of it, of further donors or by another --split-by, or make the set without it (--classes).",
            )
        out.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = FishNet3d(len(data.classes), width)
        self.start = start
        if start is not None:
            _begin_with(self.network, start, data.classes)
        # Channels last: a quarter less time a cell on a CPU. torch's stubs do not know the keyword.
        cast(Any, self.network).to(self.device, memory_format=torch.channels_last_3d)
        self.keep_features = keep_features
        self._learning: torch.nn.Module = self.network.classifier if keep_features else self.network
        self.network.requires_grad_(False)
        self._learning.requires_grad_(True)
        self.optimizer = _optimizer(self._learning, preset, self.device)
        self._graphed: GraphedUpdate | None = None
        self._looked_at = LOOKED_AT
        if self.device.type == "cuda":
            most = LOOKED_AT_NUMBERS // (math.prod(data.input.shape) * width)
            self._looked_at = max(preset.batch, min(LOOKED_AT_ON_CUDA, most))
        self.best: dict[str, Tensor] = {}
        self.progress = checkpoint.Progress(self._identity(width))
        self._deltas = _resident(torch.from_numpy(data.ri_delta), self.device)
        self._labels = torch.from_numpy(data.label).to(self._deltas.device)

    def fit(self, on_epoch: OnEpoch | None = None, on_step: OnStep | None = None, *, board: bool = False) -> None:
        """All epochs that are still to do; the network is then the best one."""
        found = checkpoint.resume(self.out, self.progress.identity, self.network, self.optimizer)
        if found is not None:
            self.progress, self.best = found
        # After resuming: a graph keeps the moments and the rates that were there when it was recorded.
        self._graphed = GraphedUpdate() if self.device.type == "cuda" else None
        with open_board(self.out / "tensorboard" if board else None, self.progress.epoch) as write:
            while self.progress.epoch < self.epochs and not self._exhausted():
                row = self._epoch(on_step)
                write(asdict(row))
                if on_epoch is not None:
                    on_epoch(row)
        self._graphed = None  # and the memory of its activations
        self.network.load_state_dict(self.best)
        # Not before: an epoch's validation would take four times as long.
        self.network.views = self.preset.views

    def logits(self, cells: NDArray[np.intp]) -> NDArray[np.float32]:
        """Of cells as they are, not augmented, [n, classes]."""
        return self.outputs(cells).logits.numpy()

    def features(self, cells: NDArray[np.intp]) -> NDArray[np.float32]:
        """Pooled after the second downsampling block, [n, 33 width]."""
        return self.outputs(cells).features.numpy()

    def outputs(self, cells: NDArray[np.intp]) -> Output:
        """All that the network says of cells as they are, float32 on the CPU."""
        self.network.eval()
        parts = []
        for batch in self._asked(cells):
            with torch.inference_mode(), whole_float32(self.device):
                found = self.network.both(self._input(self._taken(batch)))
            parts.append([part.float().cpu() for part in found])
        return Output(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))

    def _cells(self, split: str) -> NDArray[np.intp]:
        cells = self.data.indices(split, self.split_by)
        if self.share == 1:
            return cells
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(7,)))
        kept = []
        for kind in np.unique(self.data.label[cells]):
            order = rng.permutation(cells[self.data.label[cells] == kind])
            kept.append(order[: max(1, round(self.share * len(order)))])
        return np.sort(np.concatenate(kept))

    def _asked(self, cells: NDArray[np.intp]) -> tuple[Tensor, ...]:
        """Cells to be looked at and not learnt from, in batches."""
        return _split(torch.from_numpy(cells).to(self._deltas.device), self._looked_at)

    def _taken(self, cells: Tensor) -> Tensor:
        return self._deltas[cells].to(self.device)

    def _epoch(self, on_step: OnStep | None) -> Epoch:
        began = time.monotonic() - self.progress.spent_s
        number = self.progress.epoch
        loss, accuracy = self._pass(number, began, on_step)
        self._settle_norms(np.concatenate(self._order(number))[:NORM_CELLS])
        logits, labels = self.logits(self.watched), self.data.label[self.watched]
        watched, right = cross_entropy(logits, labels), float((logits.argmax(1) == labels).mean())
        if watched < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_epoch = watched, number + 1
            self.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        rate = float(self.optimizer.param_groups[0]["lr"])
        row = Epoch(number + 1, self.epochs, rate, loss, watched, right, time.monotonic() - began, accuracy)
        self.progress.epoch, self.progress.step, self.progress.spent_s = row.epoch, 0, 0.0
        self.progress.loss_sum = self.progress.right = 0.0
        self.progress.history.append(asdict(row))
        self._save()
        write_file(self.out / "log.csv", _log(self.progress.history))
        return row

    def _save(self) -> None:
        checkpoint.save(self.out, self.progress, self.network.state_dict(), self.best, self.optimizer)

    def _order(self, number: int) -> list[NDArray[np.intp]]:
        order = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(2, number))).permutation(self.cells)
        return _batches(order, self.preset.batch)

    def _pass(self, number: int, began: float, on_step: OnStep | None) -> tuple[float, float]:
        """What is left of one pass over the training cells; mean loss and accuracy. Every step draws from its own seed."""
        batches, progress = self._order(number), self.progress
        cells = np.cumsum([len(b) for b in batches])
        saved = looked = time.monotonic()
        self._learn()
        # Sums stay on the device: reading them would make an accelerator wait at every step.
        sums = torch.tensor([progress.loss_sum, progress.right], dtype=torch.float64, device=self.device)
        # All at once: an accelerator waits out each copy from the host.
        drawn = _split(torch.from_numpy(np.concatenate(batches)).to(self._deltas.device), [len(b) for b in batches])
        for step in range(progress.step, len(batches)):
            self._set_rate(number * len(batches) + step, self.epochs * len(batches))
            generator = torch.Generator(self.device).manual_seed(_step_seed(self.seed, number, step))
            sums += self._step(drawn[step], generator)
            due = time.monotonic() - saved > CHECKPOINT_S and step + 1 < len(batches)
            look = on_step is not None and (self.device.type == "cpu" or time.monotonic() - looked > LOOK_S)
            if look or due:
                loss, right = _finite(sums)
                looked = time.monotonic()
                if look and on_step is not None:
                    done = int(cells[step])
                    on_step(Step(number + 1, self.epochs, step + 1, len(batches), loss / done, right / done))
            if due:
                progress.step, progress.loss_sum, progress.right = step + 1, loss, right
                progress.spent_s = time.monotonic() - began
                self._save()
                saved = time.monotonic()
        loss, right = _finite(sums)
        return loss / int(cells[-1]), right / int(cells[-1])

    def _learn(self) -> None:
        """What learns in training mode, the rest as it answers."""
        self.network.eval()
        self._learning.train()

    def _settle_norms(self, cells: NDArray[np.intp]) -> None:
        """Statistics of the batch normalisations over cells as they are, not augmented, for the weights as they are now."""
        norms = [m for m in self._learning.modules() if isinstance(m, torch.nn.BatchNorm3d)]
        usual = [m.momentum for m in norms]
        for norm in norms:
            norm.reset_running_stats()
            # None: the plain mean over batches.
            norm.momentum = None
        self._learn()
        with torch.no_grad(), whole_float32(self.device):
            for batch in self._asked(cells):
                if len(batch) > 1:  # the statistics of a single cell are its own
                    self.network(self._input(self._taken(batch)))
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum

    def _input(self, deltas: Tensor) -> Tensor:
        spec = self.data.input
        scaled = deltas.float() * spec.scale if self.data.signed else normalise(deltas, spec)
        return scaled[:, None].contiguous(memory_format=torch.channels_last_3d)

    def _step(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """One update from cells of the set, moved; [sum of the losses, cells that were right]."""
        moved = augment(self._taken(cells), self.data.input.voxel_um, self.preset.augmentation, generator)
        labels = self._labels[cells].to(self.device)
        if self._graphed is None or len(cells) != self.preset.batch:
            return self._update(moved, labels)
        return self._graphed(self._update, moved, labels)

    def _update(self, deltas: Tensor, labels: Tensor) -> Tensor:
        with whole_float32(self.device):
            return self._updated(deltas, labels)

    def _updated(self, deltas: Tensor, labels: Tensor) -> Tensor:
        # No cache of cast weights: a graph would keep the first ones for ever.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False):
            logits = self.network(self._input(deltas))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.preset.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([loss.detach().double() * len(labels), right.double()])

    def _set_rate(self, step: int, steps: int) -> None:
        rate = learning_rate(self.preset, step, steps)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _exhausted(self) -> bool:
        patience = self.preset.patience
        return patience > 0 and self.progress.epoch - self.progress.best_epoch >= patience

    def _identity(self, width: int) -> dict[str, Any]:
        parts = {
            "data_hash": self.data.data_hash,
            "classes": list(self.data.classes),
            "preset": asdict(self.preset),
            "epochs": self.epochs,
            "seed": self.seed,
            "width": width,
            "split_by": self.split_by,
            "precision": self.precision,
            "share": self.share,
            "signed": self.data.signed,
            "input": sets.spec_to_card(self.data.input),
            **({"start": self.start.model_id} if self.start is not None else {}),
            **({"keep_features": True} if self.keep_features else {}),
        }
        # Named even where there are none: a folder begun with a model is no folder of another preset.
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()
        return {"start": None, "keep_features": None, **parts, "digest": digest}


def _check_start(start: Bundle, width: int) -> None:
    """Raises BadValue where the widths differ: no weight of one would fit the other."""
    if start.model.width != width:
        raise BadValue(
            f"{start.path}: its width is {start.model.width}; the network to train has {width}.",
            action=f"Give --width {start.model.width}, or leave --start out.",
        )


def _begin_with(network: FishNet3d, start: Bundle, classes: tuple[str, ...]) -> None:
    _check_start(start, network.width)
    weights = dict(start.network.state_dict())
    if start.classes != classes:
        last = list(network.classifier.state_dict())[-1].split(".")[0]
        weights = {k: v for k, v in weights.items() if not k.startswith(f"classifier.{last}.")}
    network.load_state_dict(weights, strict=start.classes == classes)


def _precision(name: str, device: torch.device) -> str:
    if name not in PRECISIONS:
        raise BadValue(f"precision is {name!r}; it must be one of {', '.join(PRECISIONS)}.")
    if name == "bfloat16" and device.type != "cuda":
        raise BadValue(
            f"precision is bfloat16 on {device}; it must be float32 there: bf16 weight gradients of Conv3d are not always"
            " finite on a CPU.",
            action="Leave --precision out.",
        )
    return ("bfloat16" if device.type == "cuda" else "float32") if name == "auto" else name


def _resident(deltas: Tensor, device: torch.device) -> Tensor:
    """On the accelerator where it fits, so that no step waits for a copy."""
    if device.type != "cuda":
        return deltas
    free, _ = torch.cuda.mem_get_info(device)
    return deltas.to(device) if deltas.nbytes < RESIDENT_SHARE * free else deltas.pin_memory()


def _step_seed(seed: int, epoch: int, step: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(8, epoch, step)).generate_state(1, np.uint64)[0] >> 1)


def _finite(sums: Tensor) -> tuple[float, float]:
    loss, right = (float(v) for v in sums)
    if not math.isfinite(loss):
        raise DeviceError("the training loss is not finite.", action="Lower the learning rate, or check the training set.")
    return loss, right


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


def _optimizer(network: torch.nn.Module, preset: Preset, device: torch.device) -> torch.optim.Optimizer:
    # Scales, shifts and biases are not decayed: their size is no complexity.
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    decay = preset.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    graphed = device.type == "cuda"
    # A graph reads the rate from the device; as a number it would be the one of the recording.
    rates = [torch.tensor(preset.learning_rate, device=device) if graphed else preset.learning_rate for _ in groups]
    parts: list[dict[str, Any]] = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    if preset.optimizer == "adam":
        return torch.optim.Adam([{**parts[0], "params": list(network.parameters())}], fused=True, capturable=graphed)
    return torch.optim.AdamW(parts, betas=(0.9, 0.99), fused=True, capturable=graphed)


def _split(x: Tensor, sizes: int | list[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(x, sizes)
    return parts


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
    """Ranges of the training cells ([n, 6] in the order of ``dataset.SIX``), widened by a tenth of the bound on either side."""
    (v0, v1), (c0, c1) = ((float(v.min()) * 0.9, float(v.max()) * 1.1) for v in sets.volume_and_contrast(morphology))
    return Envelope((round(v0, 1), round(v1, 1)), (round(c0, 5), round(c1, 5)))


def _conclude(run: Training, model: ModelCard, training: dict[str, Any], began: float) -> TrainingReport:
    simulated = run.data.simulated
    warnings = warnings_of(run.data.label, run.data.donor, run.data.classes)
    warnings += missing_classes(run.data.label, {run.split_by: run.data.split(run.split_by)}, run.data.classes)
    warnings += [] if run.start is None else seen.before(run.start, run.data, run.split_by)
    training = {
        **training,
        "epochs": run.epochs,
        "best_epoch": run.progress.best_epoch,
        "seed": run.seed,
        "train_cells": len(run.cells),
        "validation_cells": len(run.watched),
        **seen.facts(run.data, run.split_by, run.start),
        **({"keep_features": True} if run.keep_features else {}),
        "parameters": parameter_count(run.network),
        "precision": run.precision,
        "device": run.device.type,
        "training_seconds": round(sum(row["seconds"] for row in run.progress.history), 1),
        **({"warnings": warnings} if warnings else {}),
    }
    envelope = training_envelope(run.data.morphology[run.cells])
    model = replace(model, simulated=simulated, training=training, envelope=envelope, instrument=instrument_of(run.data))
    model, gauge = _knowing(run, model)
    if len(run.watched) < least_cells(ACCEPTANCE):
        what = "every cell gets a label" if gauge is None or run.start is None else f"they are told as by {run.start.model_id}"
        warnings.append(
            f"{len(run.watched)} validation cells are too few to tell unknown cells by: {what}. Train on a larger set, or run"
            " `wbcd model calibrate --held-out`."
        )
        model = replace(model, training={**training, "warnings": warnings})
    bundle = save_bundle(run.out / "bundle", run.network, model, gauge)
    evaluations = _measure(bundle, run)
    facts = {split: e.card_row() for split, e in evaluations.items()}
    # The measured figures are no part of the digest: the model id stays what was measured.
    bundle = save_bundle(run.out / "bundle", run.network, replace(model, measured=facts), gauge)
    report = TrainingReport(
        bundle=bundle.path,
        model_id=bundle.model_id,
        history=tuple(_epoch_of(row) for row in run.progress.history),
        best_epoch=run.progress.best_epoch,
        temperature=model.temperature,
        evaluations=evaluations,
        parameters=parameter_count(run.network),
        seconds=time.monotonic() - began,
        warnings=tuple(warnings),
    )
    text = {"model_id": report.model_id, "evaluations": {k: e.as_json() for k, e in evaluations.items()}}
    text["warnings"] = warnings
    write_file(run.out / "report.json", json.dumps(text, indent=1).encode())
    return report


def _knowing(run: Training, model: ModelCard) -> tuple[ModelCard, Gauge | None]:
    """Card with temperature, prediction sets and the gauge of unknown cells, from the validation cells.

    The temperature alone where these are too few, and the gauge of the model whose features were kept, if it knows the classes.
    """
    watched, labels = run.outputs(run.watched), run.data.label[run.watched]
    if len(labels) < least_cells(ACCEPTANCE):
        return replace(model, temperature=fit_temperature(watched.logits.numpy(), labels)), _kept_gauge(run)
    return know_limits(
        model,
        (run.outputs(run.cells).early.numpy(), run.data.groups(run.cells)),
        (watched.early.numpy(), watched.logits.numpy(), labels),
        acceptance=ACCEPTANCE,
    )


def _kept_gauge(run: Training) -> Gauge | None:
    """A class that the other model does not know would be far from all that it does: none of its cells would be counted."""
    if run.start is None or not run.keep_features:
        return None
    known = set(run.start.classes) | {sets.LINEAGE[c] for c in run.start.classes if c in sets.LINEAGE}
    return run.start.gauge if known.issuperset(run.data.classes) else None


def _epoch_of(row: Mapping[str, float]) -> Epoch:
    numbers = {k: v for k, v in row.items() if k not in ("epoch", "epochs")}
    return Epoch(int(row["epoch"]), int(row["epochs"]), **numbers)


def _measure(bundle: Bundle, run: Training) -> dict[str, Evaluation]:
    classifier, data, scheme = Classifier(bundle, str(run.device)), run.data, run.split_by
    out: dict[str, Evaluation] = {}
    for split in HELD_OUT:
        if data.has(split, scheme):
            cells = data.indices(split, scheme)
            probabilities, early = answers_of(classifier, data.ri_delta, cells)
            counted = counted_of(bundle.gauge, bundle.model, data, cells, early)
            out[split] = judge_cells(probabilities, data, cells, split, bundle.model_id, scheme=scheme, counted=counted)
    return out
