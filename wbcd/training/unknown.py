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
from wbcd.classification.bench import bfloat16_is_equal
from wbcd.classification.bundle import keep_others
from wbcd.classification.classifier import choose_device
from wbcd.classification.conformal import Conformal, Method
from wbcd.classification.network import Output
from wbcd.classification.unknown import Gauge
from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import seen
from wbcd.training.calibration import fit_temperature
from wbcd.training.evaluation import HELD_OUT, counted_of, judge_cells, scheme_of

BATCH = 16
ACCEPTANCE = 0.99
"""Share of known cells that the distance lets pass."""
WIDER: Mapping[str, float] = {"objective_na": 0.04, "wavelength_um": 0.025, "pitch_um": 0.1, "noise_ri": 0.5}
"""Share by which the instruments of a set may be departed from, either way, where nobody states the ranges."""
NO_LEAST = ("pitch_um", "noise_ri")
"""A finer pitch is averaged to the network's, and less noise hides nothing: these are accepted down to 0."""


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
    """``bundle``: the folder made; ``figures`` by held-out split. ``cells`` gave the limits, ``mistakes`` of them with a wrong
    label."""

    bundle: Path
    model_id: str
    cells: int
    mistakes: int
    temperature: float
    gauge_threshold: float
    conformal_thresholds: tuple[float, ...]
    figures: Mapping[str, SplitFigures]
    simulated: bool


def calibrate(
    bundle_path: str | Path,
    dataset_path: str | Path,
    out: str | Path,
    *,
    acceptance: float = ACCEPTANCE,
    coverage: float = 0.9,
    method: Method = "lac",
    held_out_path: str | Path | None = None,
    instrument: InstrumentRange | None = None,
    device: str = "auto",
    backend: str = "eager",
    notes: Mapping[str, Any] | None = None,
) -> CalibrationReport:
    """Write ``out``: the bundle with temperature, gauge and prediction sets fitted on the "train" and "validation" splits.

    ``held_out_path``: a set of other donors, all of whose cells take the validation cells' place. The weights that a training
    keeps are those that did best on the validation cells, so thresholds from these promise a little too much; cells of other
    donors keep the promise. ``instrument``: the ranges of instruments to accept; what it leaves out is as the model says, or
    else as the set's card says, a little wider. ``notes``: further facts for the card (the command). The card's figures are
    measured anew; on a CUDA device bf16 is tried too, and used from then on where it changes no probability.

    Raises BundleInvalid when a set was not prepared for the model, BadValue where it is not the one that the model was trained
    on, where a held-out donor is in it, where its cells are too few for what is asked, or where ``out`` holds another model.
    """
    if instrument is not None:
        instrument.check()
    bundle, data = load_bundle(bundle_path), sets.load(Path(dataset_path))
    keep_others(Path(out), bundle)
    data = sets.check_matches(data, bundle.classes, bundle.input, bundle.path)
    _check_own(bundle, data)
    scheme = scheme_of(bundle)
    others = data
    if held_out_path is not None:
        others = sets.check_matches(sets.load(Path(held_out_path)), bundle.classes, bundle.input, bundle.path)
        _check_others(bundle, data, others)
    train = data.indices("train", scheme)
    watched = data.indices("validation", scheme) if others is data else others.indices(sets.ALL)
    engine = make_backend(bundle, backend, choose_device(device))
    of_train, of_watched = outputs_of(engine, data.ri_delta, train), outputs_of(engine, others.ri_delta, watched)
    model, gauge = know_limits(
        bundle.model,
        (of_train.early.numpy(), data.groups(train)),
        (of_watched.early.numpy(), of_watched.logits.numpy(), others.label[watched]),
        acceptance=acceptance,
        coverage=coverage,
        method=method,
    )
    mistakes = int((of_watched.logits.numpy().argmax(1) != others.label[watched]).sum())
    model = replace(model, instrument=_over(instrument, model.instrument, instrument_of(data)))
    if engine.device.type == "cuda":
        deltas = torch.from_numpy(others.ri_delta[watched].astype(np.float32))
        model = replace(model, bfloat16=bfloat16_is_equal(bundle, deltas, engine.device))
    figures, measured = {}, dict(model.measured)
    for split in HELD_OUT:
        if data.has(split, scheme):
            cells = data.indices(split, scheme)
            found = outputs_of(engine, data.ri_delta, cells)
            figures[split] = _figures(model, gauge, found, data.label[cells])
            # Another temperature: what the card said of calibration holds no longer.
            probabilities = tempered(found.logits, model.temperature)
            counted = counted_of(gauge, model, data, cells, found.early.numpy())
            judged = judge_cells(probabilities, data, cells, split, bundle.model_id, scheme=scheme, counted=counted)
            measured[split] = judged.card_row()
    measured["knowing"] = {split: asdict(row) for split, row in figures.items()}
    measured["limits_from"] = {
        "cells": len(watched),
        "donors": len(np.unique(others.donor[watched])),
        "mistakes": mistakes,
        **({} if others is data else seen.of_limits(others)),
        "data_hash": others.data_hash,
        **(notes or {}),
    }
    model = replace(model, measured=measured)
    made = save_bundle(Path(out), bundle.network.cpu(), model, gauge)
    limits = model.conformal.thresholds if model.conformal else ()
    return CalibrationReport(
        bundle=made.path,
        model_id=made.model_id,
        cells=len(watched),
        mistakes=mistakes,
        temperature=model.temperature,
        gauge_threshold=gauge.threshold,
        conformal_thresholds=limits,
        figures=figures,
        simulated=data.simulated,
    )


def know_limits(
    model: ModelCard,
    train: tuple[NDArray[np.float32], NDArray[np.integer[Any]]],
    held_out: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.integer[Any]]],
    *,
    acceptance: float = ACCEPTANCE,
    coverage: float = 0.9,
    method: Method = "lac",
) -> tuple[ModelCard, Gauge]:
    """Card with temperature and prediction sets, and the gauge for :func:`save_bundle`: what a trainer calls at its end.

    ``train``: early features (:class:`wbcd.classification.network.Output`) of the cells trained on, and of which group of alike
    cells each is (:meth:`wbcd.training.dataset.TrainingSet.groups`).
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


def _figures(model: ModelCard, gauge: Gauge, found: Output, labels: NDArray[np.integer[Any]]) -> SplitFigures:
    accepted = float((gauge.distance(found.early.numpy()) <= gauge.threshold).mean())
    probabilities = tempered(found.logits, model.temperature)
    assured = model.conformal or Conformal("lac", 0.0, (0.0,) * len(model.classes))
    return SplitFigures(len(labels), accepted, *set_figures(assured, probabilities, labels, model.classes))


def _check_own(bundle: Bundle, data: sets.TrainingSet) -> None:
    """Its training cells give the distances: others would call its own cells strangers."""
    own = bundle.model.training.get("data_hash")
    if own is not None and not seen.same_set(bundle, data):
        raise BadValue(
            f"{data.path}: its data hash is {data.data_hash}; {bundle.model_id} was trained on {own}.",
            action="Give the set that the model was trained on, and others with --held-out.",
        )


def _check_others(bundle: Bundle, data: sets.TrainingSet, others: sets.TrainingSet) -> None:
    every = others.indices(sets.ALL)
    action = "Leave --held-out out, or give cells of other donors (of simulated ones: --first-donor)."
    if known := seen.donors_of(bundle, others, every):
        raise BadValue(
            f"{others.path}: {bundle.model_id}, or a model that it began with, has seen {len(known)} of its donors; a held-out"
            " set has others.",
            action=action,
        )
    if shared := seen.donors(data, data.indices(sets.ALL)) & seen.donors(others, every):
        raise BadValue(
            f"{others.path}: {len(shared)} of its donors are in {data.path} too; a held-out set has other donors.",
            action=action,
        )


def _over(*ranges: InstrumentRange | None) -> InstrumentRange | None:
    """Of each quantity the first range that one of them states."""
    stated: dict[str, tuple[float, float]] = {}
    for found in filter(None, reversed(ranges)):
        stated |= {name: limits for name, limits in asdict(found).items() if limits is not None}
    return InstrumentRange(**stated) if stated else None


def instrument_of(data: sets.TrainingSet) -> InstrumentRange | None:
    """What the set's card says of its instruments, as much wider as instruments of one type differ; None where nothing."""
    stated = {name: tuple(limits) for name, limits in data.card.get("instrument", {}).items() if name in WIDER}
    if sets.NOISE in data.card:
        stated[sets.NOISE] = tuple(data.card[sets.NOISE])
    if not stated:
        return None
    ranges = {
        name: (0.0 if name in NO_LEAST else low * (1 - WIDER[name]), high * (1 + WIDER[name]))
        for name, (low, high) in stated.items()
    }
    found = InstrumentRange(**ranges)
    found.check()
    return found
