"""What a model has seen: the same simulated cells made again elsewhere are the same cells, whatever the last bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_classification import toy_bundle
from helpers_training import toy_set

from wbcd.classification import Bundle, load_bundle, save_bundle
from wbcd.errors import BadValue
from wbcd.training import dataset as sets
from wbcd.training import seen
from wbcd.training.unknown import calibrate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> sets.TrainingSet:
    found = sets.load(toy_set(tmp_path_factory.mktemp("set") / "toy.zarr"))
    return replace(found, card={**found.card, "optics": "o", "phantoms": "p"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def trained_on(bundle: Bundle, data: sets.TrainingSet, **changed: Any) -> Bundle:
    facts = seen.facts(data, "both")
    facts["data"] = {**facts["data"], **changed}
    return replace(bundle, model=replace(bundle.model, training=facts))


def again(data: sets.TrainingSet, **card: Any) -> sets.TrainingSet:
    """The same set with another hash, as another processor makes it."""
    return replace(data, card={**data.card, "data_hash": "f" * 40, **card})


def test_the_same_content_is_the_same_set(bundle: Bundle, data: sets.TrainingSet) -> None:
    assert seen.same_set(trained_on(bundle, data, seed=77), data)


def test_cells_made_again_elsewhere_are_those_of_the_training(bundle: Bundle, data: sets.TrainingSet) -> None:
    model = trained_on(bundle, data)
    assert seen.same_set(model, again(data))
    cells = data.indices("train")
    assert seen.cells_of(model, again(data), cells) == len(cells)


@pytest.mark.parametrize("key", ["seed", "donors", "phantoms", "optics", "path", "recipe_id"])
def test_what_the_cells_follow_from_has_to_be_the_same(bundle: Bundle, data: sets.TrainingSet, key: str) -> None:
    assert not seen.same_set(trained_on(bundle, data, **{key: "another"}), again(data))
    assert not seen.same_set(trained_on(bundle, data), again(data, **{key: "another"}))


def test_other_people_of_the_same_seed_are_another_set(bundle: Bundle, data: sets.TrainingSet) -> None:
    assert "first_donor" not in data.card
    assert not seen.same_set(trained_on(bundle, data), again(data, first_donor=1000))
    assert not seen.same_set(trained_on(bundle, again(data, first_donor=1000)), data)
    assert seen.same_set(trained_on(bundle, again(data, first_donor=0)), again(data, data_hash="e" * 40))


def test_measured_cells_are_known_by_their_content_alone(bundle: Bundle, data: sets.TrainingSet) -> None:
    model = trained_on(bundle, data)
    assert not seen.same_set(model, again(data, simulated=False))
    assert not seen.same_set(replace(model, model=replace(model.model, simulated=False)), again(data))


def test_a_model_of_whose_training_nothing_is_known_has_seen_nothing(bundle: Bundle, data: sets.TrainingSet) -> None:
    assert not seen.same_set(replace(bundle, model=replace(bundle.model, training={})), data)


def test_limits_are_not_written_over_another_model(bundle: Bundle, data: sets.TrainingSet, tmp_path: Path) -> None:
    network = copy.deepcopy(bundle.network)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    other = save_bundle(tmp_path / "other", network, bundle.model)
    before = other.model_id
    with pytest.raises(BadValue, match=f"holds {before} already"):
        calibrate(bundle.path, data.path, other.path, acceptance=0.8, coverage=0.6)
    assert load_bundle(other.path).model_id == before


def test_limits_may_be_fitted_anew_in_the_same_place(bundle: Bundle, data: sets.TrainingSet, tmp_path: Path) -> None:
    for acceptance in (0.8, 0.7):
        report = calibrate(bundle.path, data.path, tmp_path / "out", acceptance=acceptance, coverage=0.6)
    unknown = load_bundle(report.bundle).model.unknown
    assert unknown is not None
    assert unknown.acceptance == 0.7
    assert load_bundle(report.bundle).model.measured["limits_from"]["data_hash"] == sets.load(data.path).data_hash


@pytest.mark.parametrize("path", ["fast", "exact", "ideal"])
def test_more_cells_of_one_seed_show_the_same_phantoms(bundle: Bundle, data: sets.TrainingSet, path: str) -> None:
    """Class by class cell 7 of 500 is cell 7 of 1,000: of which of them a model has seen is not known, and that is said."""
    model = trained_on(bundle, again(data, path="fast"), cells=500)
    larger = again(data, data_hash="e" * 40, path=path)
    assert seen.shares_sets(model, larger)
    cells = larger.indices("test")
    assert any("hold cells or phantoms in common" in text for text in seen.warnings(model, larger, cells, "test", "both"))
    for changed in ({"seed": 99}, {"first_donor": 500}, {"phantoms": "others"}):
        assert not seen.shares_sets(model, again(larger, data_hash="d" * 40, **changed))


def test_those_who_taught_the_model_it_began_with_hold_nothing_out(
    bundle: Bundle, data: sets.TrainingSet, tmp_path: Path
) -> None:
    """They are in no set that is given: the card alone knows of them."""
    others = toy_set(tmp_path / "others.zarr", first_donor=100)
    taught = replace(bundle.model, training={"donors_seen": ["simulated-100", "simulated-3"]})
    begun = save_bundle(tmp_path / "begun", bundle.network, taught)
    with pytest.raises(BadValue, match="has seen 1 of its donors"):
        calibrate(begun.path, data.path, tmp_path / "out", held_out_path=others)
    assert not (tmp_path / "out").exists()
