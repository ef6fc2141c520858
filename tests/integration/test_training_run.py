"""A whole training on toy balls: it learns, resumes to the same weights, survives killed workers."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_classification import CLASSES, SPEC, toy_bundle, toy_cell
from helpers_training import FOUR, TOY_CELLS, any_ball, dying_source, toy_set
from safetensors.torch import load_file

from wbcd.classification import OUTSIDE_INSTRUMENT_RANGE, UNCLASSIFIED, Classifier, InputSpec, load_bundle
from wbcd.classification.preparation import delta_ri
from wbcd.errors import BadValue, BundleInvalid, StageFailed
from wbcd.morphology import measure
from wbcd.recipe import Recipe
from wbcd.records import Cell
from wbcd.training import dataset as sets
from wbcd.training import evaluate, evaluate_baselines, make_dataset, train
from wbcd.training.fit import Epoch, Step, TrainingReport
from wbcd.training.live import dataset_progress, training_progress
from wbcd.training.simulated import OpticsPath, Seen, draw_of, simulate_cell

EPOCHS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_set(tmp_path_factory.mktemp("set") / "toy.zarr")


@pytest.fixture(scope="module")
def report(store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingReport:
    return train(store, tmp_path_factory.mktemp("run"), width=4, epochs=EPOCHS, device="cpu", name="balls")


def test_it_learns_the_two_sizes(report: TrainingReport, store: Path) -> None:
    assert report.evaluations["test"].accuracy >= 0.8
    assert report.evaluations["test_donor"].accuracy >= 0.8
    assert report.history[-1].train_loss < report.history[0].train_loss
    # The means of the two: what lies beyond all that it has seen depends on the last bit of the training.
    small, large = Classifier(load_bundle(report.bundle), "cpu").predict([toy_cell(2.2), toy_cell(3.4)])
    assert (small.label, large.label) == CLASSES
    again = evaluate(report.bundle, store, "test", device="cpu")
    assert again == report.evaluations["test"]
    assert again.model_id == report.model_id


def test_the_card_tells_how_it_was_measured(report: TrainingReport, store: Path) -> None:
    section = load_bundle(report.bundle).card["wbcd"]
    assert section["measured"]["test"]["accuracy"] == report.evaluations["test"].accuracy
    assert section["training"]["data_hash"] == sets.load(store).data_hash
    assert section["training"]["preset"] == "modern"
    assert section["simulated"] is True
    assert section["temperature"] == report.temperature


def test_the_run_leaves_a_log_and_a_report(report: TrainingReport) -> None:
    folder = report.bundle.parent
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [int(r["epoch"]) for r in rows] == list(range(1, EPOCHS + 1))
    assert json.loads((folder / "report.json").read_text())["model_id"] == report.model_id
    assert len(list(folder.glob("checkpoint-*.safetensors"))) == 1


def test_a_trained_model_refuses_the_cells_of_another_instrument(report: TrainingReport) -> None:
    """What its set's card states of the instrument, a little wider; no score sees another aperture."""
    bundle = load_bundle(report.bundle)
    assert bundle.model.instrument is not None
    assert bundle.model.instrument.objective_na == pytest.approx((1.2 * 0.96, 1.2 * 1.04))
    assert bundle.model.instrument.wavelength_um == pytest.approx((0.532 * 0.975, 0.532 * 1.025))
    usual, other = (replace(toy_cell(2.2), objective_na=na, wavelength_um=0.532) for na in (1.2, 0.9))
    one, two = Classifier(bundle, "cpu").predict([usual, other])
    assert OUTSIDE_INSTRUMENT_RANGE not in one.flags
    assert {OUTSIDE_INSTRUMENT_RANGE, UNCLASSIFIED} <= set(two.flags)


class Stop(Exception):
    pass


def stop_at(epoch: int) -> object:
    def stop(row: Epoch) -> None:
        if row.epoch == epoch:
            raise Stop

    return stop


def test_an_interrupted_training_ends_with_the_same_weights(report: TrainingReport, store: Path, tmp_path: Path) -> None:
    arguments = {"width": 4, "epochs": EPOCHS, "device": "cpu", "name": "balls"}
    for epoch in (1, 3):
        with pytest.raises(Stop):
            train(store, tmp_path, on_epoch=stop_at(epoch), **arguments)  # type: ignore[arg-type]
    resumed = train(store, tmp_path, **arguments)  # type: ignore[arg-type]
    assert resumed.model_id == report.model_id
    one, two = (load_file(r.bundle / "model.safetensors") for r in (report, resumed))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0)
    assert [h.train_loss for h in resumed.history] == [h.train_loss for h in report.history]


def test_a_folder_of_another_training_is_kept(report: TrainingReport, store: Path) -> None:
    with pytest.raises(BadValue, match="seed"):
        train(store, report.bundle.parent, width=4, epochs=EPOCHS, seed=9, device="cpu")


def test_the_paper_preset_runs(store: Path, tmp_path: Path) -> None:
    result = train(store, tmp_path, preset="paper", width=2, epochs=1, device="cpu")
    assert result.history[0].learning_rate == pytest.approx(0.004, rel=0.01)
    assert load_bundle(result.bundle).card["wbcd"]["training"]["batch"] == 8


@pytest.mark.parametrize("bad", [{"preset": "none"}, {"epochs": 0}, {"width": 1}, {"device": "abacus"}])
def test_senseless_arguments_are_refused(store: Path, tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(BadValue):
        train(store, tmp_path, **{"width": 4, "epochs": 1, "device": "cpu", **bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "name", "told"),
    [
        (("T cell", "monocyte"), "ours", "the set's class is 'T cell'"),
        (("monocyte",), "ours", r"has 1 classes \(monocyte\)"),
        (("small", "large"), "my model", "name is 'my model'"),
    ],
)
def test_what_no_bundle_could_hold_is_refused_before_the_first_epoch(
    tmp_path: Path, classes: tuple[str, ...], name: str, told: str
) -> None:
    cells = tmp_path / "cells.zarr"
    make_dataset(cells, 64, donors=6, workers=1, spec=SPEC, classes=classes, source=any_ball)
    with pytest.raises(BadValue, match=told):
        train(cells, tmp_path / "out", width=4, epochs=1, device="cpu", name=name)
    assert not (tmp_path / "out").exists()


def test_a_set_for_another_input_is_refused(store: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from wbcd.classification import FishNet3d, ModelCard, save_bundle

    other = ModelCard("other", CLASSES, width=4, input=replace(SPEC, shape=(99, 8, 8)))
    save_bundle(tmp_path / "other", FishNet3d(2, 4), other)
    with pytest.raises(BundleInvalid, match="other"):
        evaluate(tmp_path / "other", store)


def test_an_untrained_network_is_near_chance(store: Path, tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy")
    got = evaluate(bundle.path, store, "train", device="cpu")
    assert got.ci_low <= got.accuracy <= got.ci_high
    assert sum(map(sum, got.confusion)) == got.n


def test_baselines_on_six_parameters(store: Path) -> None:
    found = evaluate_baselines(store)
    assert {"lda", "svm", "knn"} <= set(found)
    assert all(e.accuracy > 0.8 for e in found.values())


def test_killed_workers_stop_the_run_and_it_goes_on(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real processes; one is killed by SIGKILL half-way. The resumed set is the one made in a single process."""
    alive = tmp_path / "alive"
    monkeypatch.setenv("WBCD_TEST_ALIVE", str(alive))
    path = tmp_path / "killed.zarr"
    arguments = {"donors": 6, "workers": 2, "spec": SPEC, "classes": CLASSES, "source": dying_source}
    with pytest.raises(StageFailed, match="worker"):
        make_dataset(path, TOY_CELLS, **arguments)  # type: ignore[arg-type]
    assert sets.missing_parts(path)
    alive.touch()
    with dataset_progress(TOY_CELLS) as on_part:
        digest = make_dataset(path, TOY_CELLS, on_part=on_part, **arguments)  # type: ignore[arg-type]
    assert digest == sets.load(store).data_hash


def test_progress_draws_a_line_an_epoch() -> None:
    import io

    from rich.console import Console

    shown = []
    for epochs in (1, 2):
        text = io.StringIO()
        with training_progress(epochs, Console(file=text, width=120)) as (on_epoch, on_step):
            on_step(Step(1, epochs, 3, 4, 1.2, 0.25))
            on_epoch(Epoch(1, epochs, 1e-3, 1.0, 0.9, 0.5, 2.0))
        shown.append(text.getvalue())
    assert all("accuracy 50.0%" in text for text in shown)
    # After the last epoch what follows takes minutes, and is named.
    assert "calibrating and measuring" in shown[0]
    assert "loss 1.200  accuracy 25.0%" in shown[1]


def test_simulated_cells_go_through_optics_and_follow_from_their_seed(tmp_path: Path) -> None:
    one, two = (make_dataset(tmp_path / name, 2, donors=2, seed=3, workers=1) for name in ("one.zarr", "two.zarr"))
    assert one == two
    data = sets.load(tmp_path / "one.zarr")
    assert data.input == InputSpec()
    assert data.card["path"] == "fast"
    # 30 to 3,000 fL are the plausible limits of the recipe; the medium's noise must not fill the box.
    assert bool(((data.morphology[:, 0] > 30) & (data.morphology[:, 0] < 3000)).all())
    assert abs(float(data.ri_delta[:, 0].astype(float).mean())) < 1e-3
    assert float(data.ri_delta.max()) > 0.02


@pytest.mark.slow
def test_fast_optics_agree_with_holograms_on_what_the_network_sees() -> None:
    """The same phantoms by both paths: the mean of each of the six, every cell's volume, and the network's input."""
    # Not from two sets: where one path cuts a cell, its set has another draw under that number.
    fast, exact = ([simulated(i, path) for i in range(16)] for path in ("fast", "exact"))
    pairs = [(a, b) for a, b in zip(fast, exact, strict=True) if a is not None and b is not None]
    assert len(pairs) >= 14
    one, two = (np.array([sets.six_of(measure(cell, Recipe())) for cell in side]) for side in zip(*pairs, strict=True))
    assert two[:, 0] == pytest.approx(one[:, 0], rel=0.05)
    ratio = dict(zip(sets.SIX, (two / one).mean(axis=0), strict=True))
    # On voxels of 0.1 um the surface is rougher than on those of 0.2: docs/benchmarks.md has both populations.
    bars = {
        "volume_fl": 0.015,
        "surface_area_um2": 0.035,
        "sphericity": 0.03,
        "dry_mass_pg": 0.01,
        "protein_density_g_dl": 0.015,
    }
    for name, bar in bars.items():
        assert ratio[name] == pytest.approx(1, abs=bar), name
    assert ratio["mean_ri"] == pytest.approx(1, abs=5e-4)
    inputs = ([np.asarray(delta_ri(cell, InputSpec()), dtype=float).ravel() for cell in pair] for pair in pairs)
    alike = [float(np.corrcoef(*pair)[0, 1]) for pair in inputs]
    # The two paths put a cell elsewhere between the voxels, which those of 0.2 um see.
    assert np.mean(alike) > 0.95, alike
    assert min(alike) > 0.9, alike


def simulated(number: int, path: OpticsPath) -> Cell | None:
    found = simulate_cell(FOUR[number % 4], number % 3, draw_of(5, number, 0, 0), path=path)
    return found.cell if isinstance(found, Seen) else found


RUN = """
import sys
sys.path.insert(0, {tests!r})
from helpers_training import endless_source
from helpers_classification import CLASSES, SPEC
from wbcd.training import dataset, make_dataset
if __name__ == "__main__":
    make_dataset({out!r}, 4 * dataset.PART, donors=2, workers=2, spec=SPEC, classes=CLASSES, source=endless_source)
"""


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 on the run itself: its workers, in the middle of an endless cell, must not stay behind."""
    out, pids = tmp_path / "set.zarr", tmp_path / "pids"
    pids.mkdir()
    script = tmp_path / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parents[1]), out=str(out)))
    with subprocess.Popen([sys.executable, str(script)], env={**os.environ, "WBCD_TEST_PIDS": str(pids)}) as run:
        try:
            wait_until(lambda: len(list(pids.iterdir())) == 2)
        finally:
            run.kill()
    workers = [int(p.name) for p in pids.iterdir()]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def wait_until(condition: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Poll; fails after ``limit_s``."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not so within {limit_s} s")
        threading.Event().wait(0.05)
