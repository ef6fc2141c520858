"""The versions of the algorithms in the recipe's id; results of older ones: counted, named, kept apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from helpers_store import CARD, MODEL_ID, RECIPE, opened

from wbcd import recipe as recipes
from wbcd.cli import cli
from wbcd.errors import CorruptContent
from wbcd.recipe import ALGORITHMS, Recipe, differing_parameters, older_algorithms
from wbcd.records import SetAside
from wbcd.report.counts import mixed_samples, read_differential
from wbcd.store import Ledger
from wbcd.store.outdated import count_outdated, old_recipes
from wbcd.store.verification import check_recipes, recipe_hash
from wbcd.testing import FakeClock, make_acquisition, make_cell, make_measured, make_rejected


def without_versions(recipe: Recipe) -> dict[str, Any]:
    """As a recipe was stored before versions were counted."""
    return {name: value for name, value in recipe.as_dict().items() if name != "algorithms"}


class Before(Recipe):
    """A recipe of a wbcd that counted no versions."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        return without_versions(RECIPE)


# --- the recipe -------------------------------------------------------------------------------------------


def test_the_versions_are_in_the_canonical_json_and_in_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_id = RECIPE.recipe_id
    assert json.loads(RECIPE.canonical_json())["algorithms"] == dict(ALGORITHMS)
    ids = {recipe_id, recipe_hash(without_versions(RECIPE))}
    for stage, version in ALGORITHMS.items():
        monkeypatch.setattr(recipes, "ALGORITHMS", {**ALGORITHMS, stage: version + 1})
        ids.add(RECIPE.recipe_id)
    assert len(ids) == len(ALGORITHMS) + 2


def test_the_stages_that_make_numbers_each_have_a_whole_number_from_one() -> None:
    assert {"reading", "fields", "inversion", "refinement", "quality", "cells", "measuring", "preparation"} <= set(ALGORITHMS)
    assert all(type(version) is int and version >= 1 for version in ALGORITHMS.values())


def test_a_stored_recipe_of_any_age_is_read_and_computes_by_todays_algorithms() -> None:
    changed = replace(RECIPE, morphology=replace(RECIPE.morphology, threshold_ri=1.345))
    stored = json.loads(changed.canonical_json())
    old = without_versions(changed)
    aged = {**stored, "algorithms": {"cells": 0, "gone": 3}}
    for parameters in (stored, old, aged):
        assert Recipe.from_dict(parameters) == changed
        assert Recipe.from_dict(parameters).recipe_id == recipe_hash(stored)
    assert len({recipe_hash(parameters) for parameters in (stored, old, aged)}) == 3


def test_what_is_older(monkeypatch: pytest.MonkeyPatch) -> None:
    today = {"reading": 2, "cells": 3}
    monkeypatch.setattr(recipes, "ALGORITHMS", today)
    assert older_algorithms({"algorithms": today}) == {}
    assert older_algorithms({"algorithms": {"reading": 2, "cells": 1}}) == {"cells": 1}
    assert older_algorithms({"algorithms": {"cells": 3}}) == {"reading": None}
    assert older_algorithms({"morphology": {}}) == {"reading": None, "cells": None}
    assert older_algorithms({"algorithms": {"reading": 9, "cells": 9, "later": 1}}) == {}  # of a later wbcd
    assert older_algorithms({"algorithms": {"reading": "2", "cells": None}}) == {"reading": None, "cells": None}
    assert older_algorithms({"algorithms": "all"}) == {"reading": None, "cells": None}


def test_parameters_that_differ_are_named() -> None:
    accurate = replace(RECIPE, reconstruction=replace(RECIPE.reconstruction, mode="accurate", shape=(90, 150, 150)))
    stored = json.loads(accurate.canonical_json())
    assert differing_parameters(stored, accurate) == []
    assert differing_parameters(stored, RECIPE) == ["reconstruction.mode", "reconstruction.shape"]
    assert differing_parameters({"reconstruction": {"mode": "accurate"}}, RECIPE) == ["reconstruction.mode"]


# --- the store --------------------------------------------------------------------------------------------


@pytest.fixture
def upgraded(any_url: str) -> str:
    """Files that a wbcd before versions counted (measured, rejected, set aside), one that today's has counted since."""
    clock = FakeClock()
    old = Before()
    with opened(any_url, now=clock.now) as ledger:
        ledger.register(old, MODEL_ID, CARD)
        for outcome in (
            make_measured("a", make_cell("monocyte")),
            make_measured("b", make_cell("monocyte")),
            make_rejected("c"),
            SetAside(make_acquisition("d"), CorruptContent("damaged")),
        ):
            clock.advance(1)
            ledger.commit(outcome, old.recipe_id, MODEL_ID)
        clock.advance(1)
        ledger.commit(make_measured("b", make_cell("monocyte")), RECIPE.recipe_id, MODEL_ID)
        ledger.commit(make_measured("e", make_cell("monocyte")), RECIPE.recipe_id, MODEL_ID)
    return any_url


def test_old_and_new_rows_both_hold(upgraded: str) -> None:
    with Ledger.open(upgraded) as ledger:
        assert list(check_recipes(ledger)) == []
        assert len(list(ledger.outcomes())) == 6


def test_what_older_algorithms_made_is_counted_of_current_results_alone(upgraded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(upgraded) as ledger:
        (old,) = old_recipes(ledger).values()
        assert old.recipe_id == Before().recipe_id
        assert old.sentence(RECIPE) == "made before algorithms had versions"
        assert count_outdated(ledger) == (2, 4)  # a and c; b was made again, of d nothing was computed
        monkeypatch.setattr(recipes, "ALGORITHMS", {**ALGORITHMS, "cells": ALGORITHMS["cells"] + 1})
        assert count_outdated(ledger) == (4, 4)
        other = replace(RECIPE, morphology=replace(RECIPE.morphology, threshold_ri=1.345))
        told = {one.sentence(other) for one in old_recipes(ledger).values()}
        assert told == {
            "made before algorithms had versions, and with another morphology.threshold_ri",
            f"made by older algorithms (cells {ALGORITHMS['cells']}), and with another morphology.threshold_ri",
        }


def test_counts_keep_recipes_of_other_algorithms_apart(upgraded: str) -> None:
    rows = read_differential(upgraded)
    assert {row.recipe: row.n for row in rows} == {Before().recipe_id: 1, RECIPE.recipe_id: 2}
    assert mixed_samples(rows)


def test_doctor_tells_how_many(upgraded: str) -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json", "--db", upgraded])
    (found,) = [item for item in json.loads(result.stdout) if item["what"] == "algorithms"]
    assert found["verdict"] == "note"
    assert found["message"] == "2 of 4 current results were made by older algorithms than those of this wbcd"
    assert "wbcd reprocess --outdated" in found["do"]


def test_doctor_says_that_there_are_none(any_url: str) -> None:
    with opened(any_url) as ledger:
        ledger.commit(make_measured("a", make_cell("monocyte")), RECIPE.recipe_id, MODEL_ID)
    result = CliRunner().invoke(cli, ["doctor", "--json", "--db", any_url])
    (found,) = [item for item in json.loads(result.stdout) if item["what"] == "algorithms"]
    assert (found["verdict"], found["message"]) == ("good", "no current result of 1 was made by an older one")


def test_what_is_outdated_is_named_by_the_verb(upgraded: str) -> None:
    """The files are not there: each is named with what it would be, and nothing is done."""
    result = CliRunner().invoke(cli, ["reprocess", "--outdated", "--json", "--db", upgraded])
    assert result.exit_code == 0, result.output
    named = [json.loads(line)["path"] for line in result.stdout.splitlines()]
    assert named == [str(make_acquisition(name).path) for name in ("a", "c")]
    aside = CliRunner().invoke(cli, ["reprocess", "--outdated", "--outcome", "set_aside", "--json", "--db", upgraded])
    assert [json.loads(line)["path"] for line in aside.stdout.splitlines()] == [str(make_acquisition("d").path)]


# --- the configuration that is shown ----------------------------------------------------------------------


def test_config_show_tells_the_versions_and_what_it_prints_can_be_loaded(tmp_path: Any) -> None:
    shown = json.loads(CliRunner().invoke(cli, ["config", "show", "--json"]).stdout)
    assert shown["recipe"]["algorithms"] == dict(ALGORITHMS)
    text = CliRunner().invoke(cli, ["config", "show"]).stdout
    assert f"reading {ALGORITHMS['reading']}, axis {ALGORITHMS['axis']}" in text
    path = tmp_path / "wbcd.toml"
    path.write_text(text)
    checked = CliRunner().invoke(cli, ["config", "check", "--config", str(path)])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("words", [("--apply",), ("--outdated", "--apply", "--dry-run")])
def test_apply_is_for_outdated_alone(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, ["reprocess", *words]).exit_code == 2


def test_a_version_in_the_configuration_is_refused_with_78(tmp_path: Any) -> None:
    path = tmp_path / "wbcd.toml"
    path.write_text("[recipe.algorithms]\ncells = 9\n")
    result = CliRunner().invoke(cli, ["config", "check", "--config", str(path)])
    assert result.exit_code == 78
    assert "cannot be set" in str(result.output)
