"""`wbcd model calibrate | bench | export | import`, as a person would, on a toy model and set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers_classification import SPEC, toy_bundle
from helpers_training import toy_set

from wbcd.classification import Bundle, InstrumentRange, load_bundle, save_bundle
from wbcd.classification.backends import probe
from wbcd.classification.bench import Cells, bench_inputs, smaller_inputs
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.simulation.unknown import KINDS
from wbcd.training import dataset as sets
from wbcd.training import seen
from wbcd.training.judge import judge_models
from wbcd.training.strangers import _alike, _unseen, meet_strangers
from wbcd.training.unknown import calibrate


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_set(tmp_path_factory.mktemp("set") / "toy.zarr")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_set(tmp_path_factory.mktemp("others") / "toy.zarr", first_donor=100)


def wbcd(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["model", *map(str, words)], catch_exceptions=False)


def test_calibrate_writes_a_bundle_that_knows_its_limits(bundle: Bundle, cells: Path, others: Path, tmp_path: Path) -> None:
    done = wbcd("calibrate", bundle.path, cells, tmp_path / "out", "--held-out", others, "--objective-na", 1.1, 1.3, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    made = load_bundle(tmp_path / "out")
    assert made.model_id == report["model_id"] != bundle.model_id
    assert (made.path / "model.safetensors").read_bytes() == (bundle.path / "model.safetensors").read_bytes()
    assert made.gauge is not None
    assert made.gauge.cells == 144
    assert made.model.instrument is not None
    assert made.model.instrument.objective_na == (1.1, 1.3)
    assert made.model.conformal is not None
    assert set(report["figures"]) == {"test", "test_donor"}
    for row in report["figures"].values():
        assert row["accepted"] >= 0.9
        assert row["coverage"] >= 0.75
        assert 1 <= row["mean_set_size"] <= 2
    assert made.model.measured["knowing"]["test"]["cells"] == report["figures"]["test"]["cells"]


def test_a_set_that_shares_donors_holds_nothing_out(bundle: Bundle, cells: Path, tmp_path: Path) -> None:
    for shared in (cells, toy_set(tmp_path / "same people.zarr", seed=9)):
        with pytest.raises(BadValue, match="6 of its donors are in"):
            calibrate(bundle.path, cells, tmp_path / "out", held_out_path=shared)
    assert not (tmp_path / "out").exists()


def test_only_the_set_that_a_model_was_trained_on_gives_its_distances(bundle: Bundle, cells: Path, tmp_path: Path) -> None:
    trained = replace(bundle.model, training={"data_hash": "another"})
    other = save_bundle(tmp_path / "bundle", bundle.network, trained)
    with pytest.raises(BadValue, match="was trained on another"):
        calibrate(other.path, cells, tmp_path / "out")


def test_thresholds_and_figures_follow_the_split_the_model_was_trained_by(bundle: Bundle, cells: Path, tmp_path: Path) -> None:
    data = sets.load(cells)
    training = {"data_hash": data.data_hash, "split_by": "donor"}
    by_donor = save_bundle(tmp_path / "bundle", bundle.network, replace(bundle.model, training=training))
    report = calibrate(by_donor.path, cells, tmp_path / "out", acceptance=0.8, coverage=0.6)
    assert {split: row.cells for split, row in report.figures.items()} == {"test": len(data.indices("test", "donor"))}
    made = load_bundle(report.bundle)
    assert made.gauge is not None
    assert made.gauge.cells == len(data.indices("validation", "donor"))
    # The card's figures are those of the new temperature, on the same cells.
    judged = judge_models([made.path], cells, device="cpu").facts
    assert made.model.measured["test"]["expected_calibration_error"] == pytest.approx(
        judged["calibration"]["ece_after"], abs=1e-6
    )
    known, _ = meet_strangers(report.bundle, cells, cells=1, kinds=["bead"], device="cpu")
    assert known.cells == len(data.indices("test", "donor"))


def test_ranges_of_one_instrument_and_reversed_ones(bundle: Bundle, cells: Path, others: Path, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"objective_na is 1\.3 to 1\.1"):
        calibrate(
            bundle.path, cells, tmp_path / "out", held_out_path=others, instrument=InstrumentRange(objective_na=(1.3, 1.1))
        )
    assert not (tmp_path / "out").exists()
    one = InstrumentRange(objective_na=(1.2, 1.2))
    made = load_bundle(calibrate(bundle.path, cells, tmp_path / "out", held_out_path=others, instrument=one).bundle)
    assert made.model.instrument is not None
    assert made.model.instrument.objective_na == (1.2, 1.2)
    # What was not given stays what it was known to be: a pitch alone would else lift the limits of all the others.
    assert made.model.instrument.wavelength_um == pytest.approx((0.532 * 0.975, 0.532 * 1.025))
    again = calibrate(
        made.path, cells, tmp_path / "again", held_out_path=others, instrument=InstrumentRange(pitch_um=(0.05, 0.21))
    )
    assert load_bundle(again.bundle).model.instrument == replace(made.model.instrument, pitch_um=(0.05, 0.21))


def test_what_the_set_says_of_its_instruments_is_taken(bundle: Bundle, cells: Path, others: Path, tmp_path: Path) -> None:
    made = load_bundle(calibrate(bundle.path, cells, tmp_path / "out", held_out_path=others).bundle)
    assert made.model.instrument is not None
    assert made.model.instrument.objective_na == pytest.approx((1.2 * 0.96, 1.2 * 1.04))
    assert made.model.instrument.noise_ri is None


def test_strangers_are_held_against_the_known_cells(bundle: Bundle, cells: Path, others: Path, tmp_path: Path) -> None:
    """The toy model knows small balls: whole cells' worth of silica lies far from them."""
    with pytest.raises(BadValue, match="no distance"):
        meet_strangers(bundle.path, cells)
    calibrate(bundle.path, cells, tmp_path / "out", held_out_path=others)
    with pytest.raises(BadValue, match="unicorn"):
        meet_strangers(tmp_path / "out", cells, kinds=["unicorn"])
    known, bead = meet_strangers(tmp_path / "out", cells, cells=4, kinds=["bead"], device="cpu")
    assert (known.kind, bead.kind, bead.cells) == ("known cells", "bead", 4)
    assert known.far < 0.1
    assert known.auroc is None
    assert bead.auroc is not None
    assert bead.auroc > 0.95
    assert bead.far == bead.unclassified == 1
    table = wbcd("strangers", tmp_path / "out", cells, "--cells", 1).output.splitlines()
    assert [row.split()[0] for row in table[2:]] == list(KINDS)


def test_strangers_are_held_against_cells_that_came_their_way(
    bundle: Bundle, cells: Path, others: Path, tmp_path: Path
) -> None:
    out = calibrate(bundle.path, cells, tmp_path / "out", held_out_path=others).bundle
    known, debris = meet_strangers(out, cells, cells=1, kinds=["debris"], path="exact", device="cpu")
    assert debris.cells == 1
    data = sets.load(cells)
    held_out = data.indices("test_donor")
    half = int(np.median(held_out))
    parts = [{"path": "fast", "seed": 0, "cells": half}, {"path": "exact", "seed": 1, "cells": len(data.label) - half}]
    joined = replace(data, card={**data.card, "joined": parts})
    assert _alike(joined, held_out, "fast").tolist() == [i for i in held_out if i < half]
    assert _alike(joined, held_out, "exact").tolist() == [i for i in held_out if i >= half]
    with pytest.raises(BadValue, match="came by exact, as the strangers do"):
        _alike(replace(data, card={**data.card, "path": "fast"}), held_out, "exact")
    assert known.cells == len(held_out)


def test_of_people_the_model_never_met_all_cells_are_known_ones(bundle: Bundle, cells: Path, others: Path) -> None:
    own, other = sets.load(cells), sets.load(others)
    fitted = np.concatenate([own.indices(split) for split in ("train", "validation")])
    met = replace(bundle, model=replace(bundle.model, training={"donors_seen": sorted(seen.donors(own, fitted))}))
    assert len(_unseen(met, other)[0]) == len(other.label)
    assert set(_unseen(met, own)[0]) == set(own.indices("test_donor"))
    assert set(_unseen(bundle, other)[0]) == set(other.indices("test_donor"))


def test_whose_donors_gave_the_limits_are_no_strangers_to_them(
    bundle: Bundle, cells: Path, others: Path, tmp_path: Path
) -> None:
    """Also in another set of theirs: the card keeps who they are."""
    made = load_bundle(calibrate(bundle.path, cells, tmp_path / "out", held_out_path=others).bundle)
    same = toy_set(tmp_path / "same people.zarr", seed=9, first_donor=100)
    for theirs in (others, same):
        facts = judge_models([made.path], theirs, split="all", device="cpu").facts
        assert any("gave" in text and "temperature and thresholds" in text for text in facts["warnings"]), facts["warnings"]
        assert facts["calibration"]["fitted_on"] == "144 cells of 6 other donors"
        with pytest.raises(BadValue, match="are of donors who gave its thresholds"):
            _unseen(made, sets.load(theirs))
    assert not any("gave" in text for text in judge_models([made.path], cells, device="cpu").facts["warnings"])
    mixed = sets.load(toy_set(tmp_path / "mixed.zarr", seed=3, first_donor=103))
    every = mixed.indices(sets.ALL)
    gave = seen.gave_limits(made, mixed, every)
    assert set(mixed.donor[gave].tolist()) == {103, 104, 105}
    assert set(mixed.donor[_unseen(trained_elsewhere(made), mixed)[0]].tolist()) == {106, 107, 108}


def trained_elsewhere(bundle: Bundle) -> Bundle:
    """It has seen people who are in no set here."""
    return replace(bundle, model=replace(bundle.model, training={"donors_seen": ["simulated-7"]}))


def test_too_few_validation_cells_promise_nothing(bundle: Bundle, cells: Path, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="needs 99"):
        calibrate(bundle.path, cells, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = calibrate(bundle.path, cells, tmp_path / "out", acceptance=0.8, coverage=0.6, method="aps")
    assert report.figures["test"].cells > 0


def test_bench_prints_each_backend_and_what_changes(bundle: Bundle, cells: Path) -> None:
    done = wbcd("bench", bundle.path, "--data", cells, "--cells", 6, "--batch", 2, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    # The first rows are the backends on the model's own input; the rest are smaller or coarser inputs, some of the same shape.
    own = rows[:3]
    assert [row["backend"] for row in own] == ["eager", "onnxruntime", "openvino"]
    assert all(row["shape"] == list(SPEC.shape) for row in own)
    assert all(row["largest_change"] < 1e-3 and row["ms_a_cell"] > 0 and row["labels_changed"] == 0 for row in own)
    assert len({row["accuracy"] for row in own}) == 1
    assert len(rows) == 3 + len(smaller_inputs(SPEC))
    table = wbcd("bench", bundle.path, "--batch", 1, "--no-inputs").output.splitlines()
    assert len(table) == 2 + 3
    assert "ms a cell" in table[1]


def test_a_crop_that_cuts_nothing_off_changes_nothing_and_a_small_one_does(bundle: Bundle) -> None:
    cells = Cells(probe(bundle, 4))
    same, tiny = bench_inputs(bundle, cells, [SPEC, replace(SPEC, shape=(8, 8, 8))], batch=1)
    assert same.largest_change < 1e-6
    assert tiny.largest_change > 1e-3
    assert np.isnan(same.accuracy)


def test_smaller_inputs_lie_within_the_models_box() -> None:
    for spec in smaller_inputs(SPEC):
        assert all(a <= b + 1e-9 for a, b in zip(spec.extent_um, SPEC.extent_um, strict=True))


@pytest.mark.parametrize("kind", ["onnx", "bioimageio"])
def test_export_prints_the_digest_that_import_asks_for(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    done = wbcd("export", bundle.path, tmp_path / "out", "--format", kind)
    assert done.exit_code == 0, done.output
    digest = done.output.split()[0]
    back = wbcd("import", tmp_path / "out", tmp_path / "back", "--digest", digest)
    assert back.exit_code == 0, back.output
    assert load_bundle(tmp_path / "back").model_id == bundle.model_id
    assert wbcd("import", tmp_path / "out", tmp_path / "back").exit_code == 2
    refused = wbcd("import", tmp_path / "out", tmp_path / "other", "--digest", "0" * 64)
    assert refused.exit_code == 78
    assert "SHA-256" in refused.output
    assert torch.equal(load_bundle(tmp_path / "back").network.stem[0].weight, bundle.network.stem[0].weight)


def test_known_cells_that_may_have_been_seen_are_warned_of(bundle: Bundle, cells: Path, others: Path, tmp_path: Path) -> None:
    made = load_bundle(calibrate(bundle.path, cells, tmp_path / "out", held_out_path=others).bundle)
    data = sets.load(cells)
    every = sorted(seen.donors(data, data.indices(sets.ALL)))
    met = save_bundle(tmp_path / "met", made.network, replace(made.model, training={"donors_seen": every}), made.gauge)
    done = wbcd("strangers", met.path, cells, "--cells", 1)
    assert f"{met.model_id} has seen" in done.stderr
    told: list[str] = []
    meet_strangers(met.path, cells, cells=1, kinds=["bead"], device="cpu", on_warning=told.append)
    assert len(told) == 1
    assert "warning" not in wbcd("strangers", made.path, cells, "--cells", 1).stderr


def test_cells_that_trained_the_model_are_no_known_ones(bundle: Bundle, cells: Path) -> None:
    """A split by cell left them in what another split holds out."""
    data = sets.load(cells)
    lesson = {**seen.facts(data, "cell"), "split_by": "cell"}
    lesson["start"] = {**seen.facts(data, "donor"), "simulated": True}
    model = replace(bundle, model=replace(bundle.model, training=lesson))
    unseen, split = _unseen(model, data)
    assert split == "test"
    by_donor = np.concatenate([data.indices(s, "donor") for s in ("train", "validation")])
    assert set(unseen) == set(data.indices("test", "cell")) - set(by_donor)
