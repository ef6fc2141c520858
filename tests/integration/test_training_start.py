"""A training that begins with another model's weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers_training import altered_set, four_set, toy_set

from wbcd.classification import Bundle, fit_gauge, load_bundle, save_bundle
from wbcd.cli import cli
from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import seen, train
from wbcd.training.fit import GENTLY, PRESETS, Training

LAST = "classifier.6."


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return four_set(tmp_path_factory.mktemp("set") / "four.zarr")


@pytest.fixture(scope="module")
def first(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("first")
    return load_bundle(train(store, folder, width=4, epochs=4, device="cpu", name="first", split_by="cell").bundle)


def run(data: sets.TrainingSet, out: Path, start: Bundle | None, width: int = 4) -> Training:
    return Training(data, out, PRESETS["modern"], epochs=1, width=width, device="cpu", start=start)


def test_it_begins_where_the_other_ended(store: Path, first: Bundle, tmp_path: Path) -> None:
    begun = run(sets.load(store), tmp_path / "a", first).network.state_dict()
    for name, weight in first.network.state_dict().items():
        assert torch.equal(begun[name], weight), name


def test_for_other_classes_the_last_layer_is_a_new_one(store: Path, first: Bundle, tmp_path: Path) -> None:
    two = sets.load(store).as_lineages()
    begun, fresh = (run(two, tmp_path / n, start).network.state_dict() for n, start in (("a", first), ("b", None)))
    for name, weight in first.network.state_dict().items():
        wanted = fresh[name] if name.startswith(LAST) else weight
        assert torch.equal(begun[name], wanted), name
    assert begun[LAST + "weight"].shape[0] == 2


def test_another_width_is_refused(store: Path, first: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="its width is 4"):
        run(sets.load(store), tmp_path / "a", first, width=5)


def test_one_epoch_of_it_is_worth_more_than_one_from_nothing(store: Path, first: Bundle, tmp_path: Path) -> None:
    loss = {
        name: train(store, tmp_path / name, width=4, epochs=1, device="cpu", split_by="cell", start=start)
        .history[0]
        .validation_loss
        for name, start in (("begun", first.path), ("fresh", None))
    }
    assert loss["begun"] < loss["fresh"] - 0.1


def test_a_folder_of_another_beginning_is_refused(store: Path, first: Bundle, tmp_path: Path) -> None:
    run(sets.load(store), tmp_path / "a", None).fit()
    with pytest.raises(BadValue, match="start"):
        run(sets.load(store), tmp_path / "a", first).fit()


def test_the_card_names_it_and_what_it_had_seen(store: Path, first: Bundle, tmp_path: Path) -> None:
    """First split by cell, then with whole donors held out: of those none is unseen, now or when it is judged later."""
    out = tmp_path / "next"
    words = ["train", str(store), str(out), "--start", str(first.path), "--width", "4", "--epochs", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "was trained on, or chosen by" in result.output
    bundle = load_bundle(out / "bundle")
    training = bundle.model.training
    assert training["start"]["model_id"] == first.model_id
    assert training["start"]["data_hash"] == first.model.training["data_hash"]
    assert training["start"]["split_by"] == "cell"
    assert training["start"]["seed"] == first.model.training["seed"]
    assert training["start"]["training_seconds"] == first.model.training["training_seconds"] > 0
    assert training["learning_rate"] == pytest.approx(GENTLY * PRESETS["modern"].learning_rate)
    assert set(first.model.training["donors_seen"]) <= set(training["donors_seen"])
    told = json.loads((out / "report.json").read_text())["warnings"]
    for split in ("validation", "test", "test_donor"):
        assert any(f"of {split!r}" in text for text in told), split
    data = sets.load(store)
    cells = data.indices("test", "both")
    by_cell = np.isin(cells, np.concatenate([data.indices(s, "cell") for s in ("train", "validation")]))
    assert 0 < by_cell.sum() < len(cells)
    assert seen.cells_of(bundle, data, cells) == by_cell.sum()
    judged = CliRunner().invoke(cli, ["evaluate", str(bundle.path), str(store), "--device", "cpu"])
    assert f"chosen by, {by_cell.sum()} of the {len(cells)} judged cells" in judged.output
    # And so does whoever begins with that one.
    last = load_bundle(train(store, tmp_path / "last", width=4, epochs=1, device="cpu", start=bundle.path).bundle)
    assert last.model.training["start"]["start"]["model_id"] == first.model_id
    assert seen.cells_of(last, data, cells) == by_cell.sum()


def test_by_the_same_split_nothing_held_out_was_seen(store: Path, first: Bundle, tmp_path: Path) -> None:
    report = train(store, tmp_path / "a", width=4, epochs=1, device="cpu", start=first.path, split_by="cell")
    assert [text for text in report.warnings if "with whose weights" in text and "'test'" in text] == []


def test_a_box_that_the_set_does_not_hold_names_the_model(store: Path, first: Bundle, tmp_path: Path) -> None:
    z, y, x = first.input.shape
    larger = replace(first.model, input=replace(first.input, shape=(z + 2, y, x)))
    wide = save_bundle(tmp_path / "wide", first.network, larger, first.gauge)
    with pytest.raises(BadValue, match=r"wide \(--start\).*cannot be made"):
        train(store, tmp_path / "a", width=4, epochs=1, device="cpu", start=wide.path)


def test_cells_of_other_people_are_unseen(first: Bundle, tmp_path: Path) -> None:
    others = toy_set(tmp_path / "others.zarr", 60, seed=5, first_donor=100)
    report = train(others, tmp_path / "run", width=4, epochs=1, device="cpu", start=first.path)
    assert not any("has seen" in text for text in report.warnings)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_learning_rate_out_of_bounds_is_refused(store: Path, tmp_path: Path, rate: float) -> None:
    with pytest.raises(BadValue, match="learning_rate"):
        train(store, tmp_path / "a", width=4, epochs=1, device="cpu", learning_rate=rate)


def test_kept_features_are_kept_and_the_classifier_learns(store: Path, first: Bundle, tmp_path: Path) -> None:
    """To the last bit, running averages too: what lies far from the first model's cells lies as far from these."""
    words = ["train", str(store), str(tmp_path), "--start", str(first.path), "--keep-features", "--task", "two", "--width", "4"]
    result = CliRunner().invoke(cli, [*words, "--epochs", "2", "--device", "cpu", "--split-by", "cell"])
    assert result.exit_code == 0, result.output
    kept = load_bundle(tmp_path / "bundle")
    assert kept.classes == sets.LINEAGES
    assert kept.model.training["keep_features"] is True
    assert kept.model.training["parameters"] == sum(p.numel() for p in kept.network.parameters())
    before, after = first.network.state_dict(), kept.network.state_dict()
    for name, weight in before.items():
        if not name.startswith("classifier."):
            assert torch.equal(after[name], weight), name
    learnt = [n for n in before if n.startswith("classifier.") and n.endswith("weight") and not n.startswith(LAST)]
    assert learnt
    assert not any(torch.equal(after[name], before[name]) for name in learnt)
    cells = torch.from_numpy(sets.load(store).ri_delta[:8].astype(np.float32))[:, None]
    early = [bundle.network.eval().both(cells).early for bundle in (first, kept)]
    assert torch.equal(*early)


def test_kept_features_need_a_model_that_has_them(store: Path, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="whose features to keep"):
        train(store, tmp_path / "a", width=4, epochs=1, device="cpu", keep_features=True)


def test_a_folder_where_all_learns_is_refused_to_one_that_keeps(store: Path, first: Bundle, tmp_path: Path) -> None:
    train(store, tmp_path / "a", width=4, epochs=1, device="cpu", start=first.path)
    with pytest.raises(BadValue, match="keep_features"):
        train(store, tmp_path / "a", width=4, epochs=1, device="cpu", start=first.path, keep_features=True)


def test_one_that_was_killed_goes_on_to_the_same_classifier(store: Path, first: Bundle, tmp_path: Path) -> None:
    data = sets.load(store)

    def begun(out: Path) -> Training:
        return Training(data, out, PRESETS["modern"], epochs=2, width=4, device="cpu", start=first, keep_features=True)

    whole = begun(tmp_path / "whole")
    whole.fit()
    killed = begun(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        killed.fit(on_epoch=_interrupt)
    again = begun(tmp_path / "killed")
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(whole.best.values(), again.best.values(), strict=True))


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def with_gauge(first: Bundle, out: Path, data: sets.TrainingSet) -> Bundle:
    """The first model, its distances set on all cells."""
    cells = torch.from_numpy(data.ri_delta.astype(np.float32))[:, None]
    with torch.inference_mode():
        early = first.network.eval().both(cells).early.numpy()
    return save_bundle(out, first.network, first.model, fit_gauge(early, data.label, early, acceptance=0.9))


def test_too_few_cells_of_ones_own_leave_the_other_models_distances(store: Path, first: Bundle, tmp_path: Path) -> None:
    data = sets.load(store)
    start = with_gauge(first, tmp_path / "start", data)
    for task in ("four", "two"):
        report = train(
            store,
            tmp_path / task,
            width=4,
            epochs=1,
            device="cpu",
            start=start.path,
            keep_features=True,
            task=task,
            split_by="cell",
        )
        kept = load_bundle(report.bundle)
        assert kept.gauge is not None
        assert start.gauge is not None
        assert kept.gauge.threshold == start.gauge.threshold
        assert np.array_equal(kept.gauge.means, start.gauge.means)
        assert any(f"they are told as by {start.model_id}" in text for text in report.warnings)
    # Learning on moves the features, and a class that the other never saw would be a stranger to the last cell.
    moved = train(store, tmp_path / "moved", width=4, epochs=1, device="cpu", start=start.path, split_by="cell")
    assert load_bundle(moved.bundle).gauge is None
    renamed = replace(start.model, classes=("a", "b", "c", "d"))
    other = save_bundle(tmp_path / "other", start.network, renamed, start.gauge)
    new = train(store, tmp_path / "new", width=4, epochs=1, device="cpu", start=other.path, keep_features=True, split_by="cell")
    assert load_bundle(new.bundle).gauge is None
    assert any("every cell gets a label" in text for text in new.warnings)


def test_measured_cells_do_not_wash_a_simulated_beginning_away(store: Path, first: Bundle, tmp_path: Path) -> None:
    measured = altered_set(store, tmp_path / "measured.zarr", card={"simulated": False})
    bundle = load_bundle(
        train(measured, tmp_path / "a", width=4, epochs=1, device="cpu", start=first.path, keep_features=True).bundle
    )
    assert not bundle.model.simulated
    readme = (bundle.path / "README.md").read_text()
    assert "measured on **measured** cells. But the features that it keeps were learnt on **simulated** cells." in readme
    assert "before, on simulated tomograms" in bundle.card["description"]
    plain = load_bundle(train(measured, tmp_path / "b", width=4, epochs=1, device="cpu").bundle)
    assert "**simulated**" not in (plain.path / "README.md").read_text()
    assert "simulated" not in plain.card["description"]


def test_the_set_itself_is_no_folder_for_its_training(store: Path) -> None:
    with pytest.raises(BadValue, match="is the training set itself"):
        train(store, store, width=4, epochs=1, device="cpu")
    assert not (store / "checkpoint.json").exists()


def test_a_lineage_that_no_cell_is_of_is_not_learnt(store: Path, tmp_path: Path) -> None:
    classes = ["b_lymphocyte", "t_lymphocyte"]
    lymphoid = altered_set(
        store, tmp_path / "lymphoid.zarr", card={"classes": classes}, arrays={"label": lambda label: label % 2}
    )
    with pytest.raises(BadValue, match="no cell of myeloid is in training"):
        train(lymphoid, tmp_path / "a", width=4, epochs=1, device="cpu", task="two")
