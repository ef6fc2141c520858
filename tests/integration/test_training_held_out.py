"""What is held out changes nothing: sets that differ in the held-out cells alone give the same weights and the same limits.

A leak need not be large to be one, so the comparison is to the last bit: labels of the held-out cells are turned to another
class, their volumes made into noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_training import Change, altered_set, four_set

from wbcd.classification import Bundle, load_bundle, save_bundle
from wbcd.training import dataset as sets
from wbcd.training import train
from wbcd.training.baselines import classical
from wbcd.training.evaluation import HELD_OUT
from wbcd.training.paper import QUICK
from wbcd.training.paper.experiments import _Run
from wbcd.training.unknown import calibrate

LOOSE = 0.8
"""An acceptance that a toy set's dozen of validation cells can promise."""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_set(tmp_path_factory.mktemp("honest") / "four.zarr")


@pytest.fixture(scope="module")
def poisoned(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poison(honest, tmp_path_factory.mktemp("poisoned") / "four.zarr", HELD_OUT)


def poison(path: Path, out: Path, splits: Sequence[str], *, labels_alone: bool = False) -> Path:
    """The same set, but for the cells of these splits."""
    cells = np.isin(sets.splits_of(path)["both"], [sets.SPLITS.index(name) for name in splits])
    rng = np.random.default_rng(0)
    changed: dict[str, Change] = {"label": lambda old: (old + cells) % 4}
    if not labels_alone:
        changed["ri_delta"] = lambda old: np.where(cells[:, None, None, None], rng.uniform(0, 0.2, old.shape), old)
        changed["morphology"] = lambda old: np.where(cells[:, None], rng.uniform(1, 1000, old.shape), old)
    assert cells.any()
    altered_set(path, out, arrays=changed)
    assert sets.load(out).data_hash != sets.load(path).data_hash
    return out


def limits_of(bundle: Bundle) -> dict[str, object]:
    """All that a training decides, the weights' file and the gauge's whole."""
    files = {name: (bundle.path / name).read_bytes() for name in ("model.safetensors", "unknown.safetensors")}
    model = bundle.model
    return {
        **files,
        **{name: getattr(model, name) for name in ("temperature", "conformal", "envelope", "instrument", "unknown")},
    }


def test_a_training_learns_nothing_from_held_out_cells(
    honest: Path, poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither weights nor running averages, temperature, prediction sets, distances, ranges."""
    monkeypatch.setattr("wbcd.training.fit.ACCEPTANCE", LOOSE)
    made = [
        load_bundle(train(s, tmp_path / n, width=4, epochs=2, device="cpu").bundle) for s, n in ((honest, "a"), (poisoned, "b"))
    ]
    assert limits_of(made[0]) == limits_of(made[1])
    assert made[0].model.measured["test"] != made[1].model.measured["test"]


def test_the_validation_cells_choose_an_epoch_and_change_no_weight(honest: Path, tmp_path: Path) -> None:
    watched = poison(honest, tmp_path / "watched.zarr", ("validation",))
    made = [train(s, tmp_path / n, width=4, epochs=1, device="cpu").bundle for s, n in ((honest, "a"), (watched, "b"))]
    assert len({(path / "model.safetensors").read_bytes() for path in made}) == 1


def test_limits_come_from_those_who_should_give_them(honest: Path, poisoned: Path, tmp_path: Path) -> None:
    """The classes' means and spread from the training cells, thresholds from the validation cells, nothing from the rest."""
    bundle = train(honest, tmp_path / "run", width=4, epochs=1, device="cpu").bundle
    forgetful = forget(bundle, tmp_path / "forgetful")
    watched = poison(honest, tmp_path / "watched.zarr", ("validation",))
    usual, of_poisoned, of_watched = (
        load_bundle(calibrate(forgetful, s, tmp_path / f"out{n}", acceptance=LOOSE, device="cpu").bundle)
        for n, s in enumerate((honest, poisoned, watched))
    )
    assert limits_of(usual) == limits_of(of_poisoned)
    assert usual.gauge is not None
    assert of_watched.gauge is not None
    assert np.array_equal(usual.gauge.means, of_watched.gauge.means)
    assert np.array_equal(usual.gauge.whitening, of_watched.gauge.whitening)
    assert usual.gauge.threshold != of_watched.gauge.threshold
    assert usual.model.temperature != of_watched.model.temperature


def forget(bundle: Path, out: Path) -> Path:
    """A bundle that does not say what set it is of: another must be taken for its own."""
    loaded = load_bundle(bundle)
    return save_bundle(out, loaded.network, replace(loaded.model, training={})).path


def test_the_papers_classifiers_and_temperatures_know_no_label_that_they_are_judged_by(honest: Path, tmp_path: Path) -> None:
    mislabelled = poison(honest, tmp_path / "mislabelled.zarr", HELD_OUT, labels_alone=True)
    predicted, probabilities = [], []
    for path in (honest, mislabelled):
        data = sets.load(path)
        found = classical(data, HELD_OUT)
        predicted.append([np.asarray(row[split].confusion).sum(0).tolist() for row in found.values() for split in HELD_OUT])
        run = _Run(data, tmp_path / path.stem, QUICK, "cpu", "modern", False, lambda _: None)
        (network,) = run.networks("3d-four", data)
        probabilities.append(torch.from_numpy(run.probabilities(network, data, "test")))
    assert predicted[0] == predicted[1]
    assert torch.equal(*probabilities)
