"""What a finished model needs to know what it does not know, fitted on a training set after the training.

    report = calibrate("training/bundle", "cells.zarr", "training/calibrated")

Temperature and prediction sets come from cells that the network was not trained on, the class means and the covariance of
its features from those that it was, the threshold of the distance again from the others. All that is stored is numbers: the
weights stay what they were, the model's id does not (its flags are others).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import Bundle, InstrumentRange, ModelCard, fit_conformal, fit_gauge, load_bundle, save_bundle
from wbcd.classification.backends import Backend, make_backend, tempered
from wbcd.classification.classifier import choose_device
from wbcd.classification.conformal import Conformal, Method
from wbcd.classification.network import Output
from wbcd.classification.unknown import Gauge
from wbcd.training import dataset as sets
from wbcd.training.calibration import fit_temperature

BATCH = 16
HELD_OUT = ("test", "test_donor")


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """Of one split: share of cells within the gauge, coverage and mean size of the prediction sets, coverage by class."""

    cells: int
    accepted: float
    coverage: float
    mean_set_size: float
    coverage_by_class: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """``bundle``: the folder made; ``figures`` by held-out split."""

    bundle: Path
    model_id: str
    temperature: float
    gauge_threshold: float
    conformal_thresholds: tuple[float, ...]
    figures: Mapping[str, SplitFigures]


def calibrate(
    bundle_path: str | Path,
    dataset_path: str | Path,
    out: str | Path,
    *,
    acceptance: float = 0.99,
    coverage: float = 0.9,
    method: Method = "lac",
    held_out_path: str | Path | None = None,
    instrument: InstrumentRange | None = None,
    device: str = "auto",
    backend: str = "eager",
) -> CalibrationReport:
    """Write ``out``: the bundle with temperature, gauge and prediction sets fitted on the "train" and "validation" splits.

    ``held_out_path``: a set of other donors, all of whose cells take the validation cells' place. The weights that a training
    keeps are those that did best on the validation cells, so thresholds from these promise a little too much (measured:
    88.8 % where 90 % is stated); cells of other donors keep the promise. ``instrument``: the ranges of the instruments behind
    the set, None to keep what the card says. Raises BundleInvalid when a set was not prepared for the model, BadValue
    where its cells are too few for what is asked.
    """
    bundle, data = load_bundle(bundle_path), sets.load(Path(dataset_path))
    sets.check_matches(data, bundle.classes, bundle.input, bundle.path)
    engine = make_backend(bundle, backend, choose_device(device))
    others = data if held_out_path is None else sets.load(Path(held_out_path))
    sets.check_matches(others, bundle.classes, bundle.input, bundle.path)
    train, watched = data.indices("train"), others.indices("validation" if held_out_path is None else sets.ALL)
    of_train, of_watched = outputs_of(engine, data.ri_delta, train), outputs_of(engine, others.ri_delta, watched)
    model, gauge = know_limits(
        bundle.model,
        (of_train.early.numpy(), data.label[train]),
        (of_watched.early.numpy(), of_watched.logits.numpy(), others.label[watched]),
        acceptance=acceptance,
        coverage=coverage,
        method=method,
    )
    if instrument is not None:
        model = replace(model, instrument=instrument)
    figures = {split: _figures(bundle, model, gauge, engine, data, split) for split in HELD_OUT if data.has(split)}
    facts = {split: asdict(row) for split, row in figures.items()}
    model = replace(model, measured={**model.measured, "knowing": facts})
    made = save_bundle(Path(out), bundle.network.cpu(), model, gauge)
    limits = model.conformal.thresholds if model.conformal else ()
    return CalibrationReport(made.path, made.model_id, model.temperature, gauge.threshold, limits, figures)


def know_limits(
    model: ModelCard,
    train: tuple[NDArray[np.float32], NDArray[np.integer[Any]]],
    held_out: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.integer[Any]]],
    *,
    acceptance: float = 0.99,
    coverage: float = 0.9,
    method: Method = "lac",
) -> tuple[ModelCard, Gauge]:
    """Card with temperature and prediction sets, and the gauge for :func:`save_bundle`: what a trainer calls at its end.

    ``train``: early features (:class:`wbcd.classification.network.Output`) and labels of the cells trained on.
    ``held_out``: early features, logits and labels of others.
    """
    features, logits, labels = held_out
    gauge = fit_gauge(*train, features, acceptance=acceptance)
    temperature = fit_temperature(logits, labels)
    probabilities = tempered(torch.from_numpy(logits), temperature)
    conformal = fit_conformal(probabilities, labels, coverage=coverage, method=method)
    return replace(model, temperature=temperature, conformal=conformal), gauge


def outputs_of(backend: Backend, deltas: NDArray[np.floating[Any]], cells: NDArray[np.intp]) -> Output:
    """Logits and features of some cells of a set."""
    parts = [
        backend.outputs(torch.from_numpy(deltas[cells[i : i + BATCH]].astype(np.float32))) for i in range(0, len(cells), BATCH)
    ]
    return Output(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))


def set_figures(
    conformal: Conformal, probabilities: NDArray[np.float64], labels: NDArray[np.integer[Any]], classes: tuple[str, ...]
) -> tuple[float, float, dict[str, float]]:
    """Coverage, mean size, and coverage by class of prediction sets."""
    member = conformal.sets(probabilities)
    held = member[np.arange(len(labels)), labels]
    by_class = {name: float(held[labels == k].mean()) for k, name in enumerate(classes) if (labels == k).any()}
    return float(held.mean()), float(member.sum(axis=1).mean()), by_class


def _figures(
    bundle: Bundle, model: ModelCard, gauge: Gauge, backend: Backend, data: sets.TrainingSet, split: str
) -> SplitFigures:
    cells = data.indices(split)
    found = outputs_of(backend, data.ri_delta, cells)
    accepted = float((gauge.distance(found.early.numpy()) <= gauge.threshold).mean())
    probabilities = tempered(found.logits, model.temperature)
    assured = model.conformal or Conformal("lac", 0.0, (0.0,) * len(bundle.classes))
    return SplitFigures(len(cells), accepted, *set_figures(assured, probabilities, data.label[cells], bundle.classes))
