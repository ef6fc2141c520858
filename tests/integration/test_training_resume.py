"""A training killed by SIGKILL at any moment goes on to the same weights, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_training import four_set, toy_set
from safetensors.torch import load_file, save_file

from wbcd.classification import load_bundle
from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import fit, train

RUN = """
import sys, torch
torch.set_num_threads(1)
from wbcd.training import fit, train
fit.CHECKPOINT_S = 0.0
if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], width=2, epochs=3, device="cpu")
"""


def wait_until(condition: Callable[[], bool], limit_s: float = 240.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not so within {limit_s} s")
        threading.Event().wait(0.01)


def at(folder: Path) -> tuple[int, int]:
    """(epoch, step) of the last checkpoint."""
    try:
        found = json.loads((folder / "checkpoint.json").read_text())
    except FileNotFoundError:
        return (0, 0)
    return int(found["epoch"]), int(found["step"])


def same_weights(one: Path, two: Path) -> None:
    first, second = (load_file(folder / "bundle" / "model.safetensors") for folder in (one, two))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def test_sigkill_in_mid_epoch_and_after_it(tmp_path: Path) -> None:
    """Two kills of a real process, the second in another epoch; then to the end, in this process."""
    store = toy_set(tmp_path / "toy.zarr")
    torch.set_num_threads(1)
    whole = train(store, tmp_path / "whole", width=2, epochs=3, device="cpu")
    script, folder = tmp_path / "run.py", tmp_path / "killed"
    script.write_text(RUN)
    for wanted in ((0, 2), (1, 3)):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen([sys.executable, str(script), str(store), str(folder)], env=environment) as process:
            wait_until(lambda wanted=wanted: at(folder) >= wanted or process.poll() is not None)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert wanted <= at(folder) < (3, 0)
    resumed = train(store, folder, width=2, epochs=3, device="cpu")
    assert resumed.model_id == whole.model_id
    same_weights(tmp_path / "whole", folder)
    assert [h.train_loss for h in resumed.history] == [h.train_loss for h in whole.history]
    assert [h.train_accuracy for h in resumed.history] == [h.train_accuracy for h in whole.history]


def test_it_stops_where_the_validation_loss_stands_still_and_a_resume_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that do not move: the first epoch is the best, and two more are waited for."""
    store = toy_set(tmp_path / "toy.zarr", cells=24)
    monkeypatch.setattr(fit, "PRESETS", {"modern": dataclasses.replace(fit.PRESETS["modern"], learning_rate=0.0)})
    for _ in range(2):
        report = train(store, tmp_path / "run", width=2, epochs=9, device="cpu", patience=2)
        assert [row.epoch for row in report.history] == [1, 2, 3]
        assert report.best_epoch == 1
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("damage", ["torn", "gone", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    store, folder = toy_set(tmp_path / "toy.zarr", cells=24), tmp_path / "run"
    train(store, folder, width=2, epochs=1, device="cpu")
    (state,) = folder.glob("checkpoint-*.safetensors")
    if damage == "torn":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "gone":
        state.unlink()
    else:
        save_file({"network.stem.0.weight": torch.zeros(1)}, state)
    with pytest.raises(BadValue, match=rf"{state.name}: not this training's state.*") as caught:
        train(store, folder, width=2, epochs=1, device="cpu")
    assert "train anew" in caught.value.sentence()


def test_two_classes_by_a_network_of_their_own(tmp_path: Path) -> None:
    store = four_set(tmp_path / "four.zarr", cells=96)
    report = train(store, tmp_path / "two", width=2, epochs=1, device="cpu", task="two", split_by="donor", board=True)
    assert load_bundle(report.bundle).classes == ("lymphoid", "myeloid")
    training = load_bundle(report.bundle).card["wbcd"]["training"]
    assert (training["task"], training["split_by"]) == ("two", "donor")
    assert set(report.evaluations) == {"test"}
    assert list((tmp_path / "two" / "tensorboard").glob("events.*"))
    four = sets.load(store)
    two = four.as_lineages()
    train_cells = two.indices("train", "donor")
    # A lineage is several types: the distance that tells strangers is from these.
    np.testing.assert_array_equal(two.groups(train_cells), four.label[train_cells])
    np.testing.assert_array_equal(four.groups(train_cells), four.label[train_cells])
    only = train_cells[four.label[train_cells] != 1]
    assert np.unique(two.groups(only)).tolist() == [0, 1, 2]
    for scheme in sets.SCHEMES:
        assert (two.split(scheme) == four.split(scheme)).all()


def test_a_confounded_set_is_warned_of_in_the_report_and_on_the_card(tmp_path: Path) -> None:
    from helpers_classification import CLASSES, SPEC
    from helpers_training import toy_source

    from wbcd.training import make_dataset

    store = tmp_path / "c.zarr"
    make_dataset(store, 96, donors=1, workers=1, spec=SPEC, classes=CLASSES, source=toy_source)
    report = train(store, tmp_path / "run", width=2, epochs=1, device="cpu")
    assert "one donor" in report.warnings[0]
    assert "one donor" in (report.bundle / "README.md").read_text()


@pytest.mark.parametrize("bad", [{"task": "three"}, {"split_by": "moon"}, {"precision": "bfloat16"}, {"patience": -1}])
def test_senseless_arguments_are_refused_before_any_work(tmp_path: Path, bad: dict[str, object]) -> None:
    store = toy_set(tmp_path / "toy.zarr", cells=24)
    with pytest.raises(BadValue):
        train(store, tmp_path / "run", **{"width": 2, "epochs": 1, "device": "cpu", **bad})  # type: ignore[arg-type]
