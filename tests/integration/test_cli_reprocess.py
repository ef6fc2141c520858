"""`wbcd reprocess`: what is stored already, once more under another recipe."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_mie import Rig, Sphere, fields, holograms
from helpers_phantoms import OPTICS
from helpers_spheres import cheap_settings, tiny_bundle, write_run

from wbcd import recipe as recipes
from wbcd.cli import cli
from wbcd.recipe import ALGORITHMS
from wbcd.records import HologramStack
from wbcd.simulation.files import write_acquisition


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


class Site:
    """A configuration file, a folder of acquisitions, and the verbs on them."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder = folder
        self.settings = cheap_settings(folder, bundle)
        write_run(folder / "incoming", 3)
        self.files = sorted((folder / "incoming").iterdir())

    def __call__(self, *words: str, **recipe: Any) -> list[dict[str, Any]]:
        values = self.settings | {f"recipe.morphology.{name}": value for name, value in recipe.items()}
        config = self.folder / "wbcd.toml"
        config.write_text("\n".join(f"{key} = {_toml(value)}" for key, value in values.items()))
        result = CliRunner().invoke(cli, [*words, "--config", str(config), "--json"])
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.folder / "wbcd.db")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(str(value) if isinstance(value, Path) else value)


@pytest.fixture
def site(tmp_path: Path, bundle: Path) -> Site:
    made = Site(tmp_path, bundle)
    assert [item["outcome"] for item in made("process", str(tmp_path / "incoming"))] == ["measured"] * 3
    return made


def test_the_same_recipe_changes_nothing(site: Site) -> None:
    again = site("reprocess")
    assert [item["duplicate_of"] for item in again] == [item["path"] for item in again]
    assert site.rows("SELECT COUNT(*) FROM run") == [(3,)]


def test_another_recipe_makes_rows_beside_the_old_ones(site: Site) -> None:
    again = site("reprocess", threshold_ri=1.345)
    assert len(again) == 3
    volumes = site.rows("SELECT run.recipe_id, SUM(volume_fl) FROM cell JOIN run ON run.id = run_id GROUP BY 1 ORDER BY 2")
    assert len(volumes) == 2
    assert volumes[1][1] > volumes[0][1]  # a lower threshold
    assert [item["cells"][0]["volume_fl"] for item in again] == pytest.approx(
        [row[0] for row in site.rows("SELECT volume_fl FROM cell ORDER BY id")[3:]]
    )


def test_a_file_that_is_gone_or_changed_is_named_and_left_alone(site: Site) -> None:
    site.files[0].unlink()
    with site.files[1].open("ab") as file:
        file.write(b"\0")
    gone, changed, done = site("reprocess", threshold_ri=1.345)
    assert gone["outcome"] is None
    assert site.files[0].name in gone["message"]
    assert "content changed" in changed["message"]
    assert done["outcome"] == "measured"
    assert site.rows("SELECT COUNT(*) FROM run") == [(4,)]


def test_the_accurate_mode_for_what_is_stored(tmp_path: Path, bundle: Path) -> None:
    """Another recipe's row, from the multi-slice model: the same cell, with another volume, and a check that it was kept."""
    site = Site(tmp_path, bundle)
    site.settings["recipe.reconstruction.refinement_iterations"] = 2
    shutil.rmtree(tmp_path / "incoming")
    (tmp_path / "incoming").mkdir()
    rig, rng = Rig(size=384, frames=17), np.random.default_rng(5)
    w = fields(Sphere((2.6,), (1.37,)), rig)
    stack = HologramStack(holograms(w, rig, rng), holograms(np.ones_like(w), rig, rng), None, 0, OPTICS)
    ticket = {"acquisition_id": "A-1", "acquired_at": "2024-05-06T07:08:09+02:00", "sample_id": "s", "instrument_id": "rig"}
    write_acquisition(tmp_path / "incoming" / "one.h5", stack, **ticket)
    (first,) = site("process", str(tmp_path / "incoming"))
    assert first["outcome"] == "measured", first
    (again,) = site("reprocess", "--accurate")
    assert again["outcome"] == "measured", again
    runs = site.rows(
        "SELECT json_extract(parameters, '$.reconstruction.mode'), MAX(volume_fl), run.checks "
        "FROM run JOIN recipe ON recipe.id = recipe_id JOIN cell ON cell.run_id = run.id GROUP BY run.id ORDER BY run.id"
    )
    assert [mode for mode, *_ in runs] == ["fast", "accurate"]
    (_, fast, before), (_, accurate, after) = runs
    assert fast != accurate == pytest.approx(fast, rel=0.15)
    assert "not_refined" not in before
    assert '"not_refined"' in after


def test_a_dry_run_and_a_sample_that_is_not_there_do_nothing(site: Site) -> None:
    planned = site("reprocess", "--dry-run", threshold_ri=1.345)
    assert [item["outcome"] for item in planned] == [None] * 3
    assert [item["message"] for item in planned] == [f"{os.fspath(path)} would be processed" for path in site.files]
    with pytest.raises(AssertionError, match="There is no sample 'nobody'"):
        site("reprocess", "--sample", "nobody")
    assert site.rows("SELECT COUNT(*) FROM run") == [(3,)]


def test_a_dry_run_promises_what_the_run_does(site: Site) -> None:
    """What has its outcome under the recipe asked for is not processed; a broken-off run goes on with the others."""
    (same, *_) = site("reprocess", "--dry-run")
    assert same["message"].endswith("would be left as it is: it has its outcome under this recipe and model (measured)")
    moved = site.files[0].rename(site.folder / "away.h5")
    site("reprocess", threshold_ri=1.345)  # as far as it got: two of three
    moved.rename(site.files[0])
    planned = {item["path"]: item["message"] for item in site("reprocess", "--dry-run", threshold_ri=1.345)}
    assert [path for path, message in planned.items() if message.endswith("would be processed")] == [str(site.files[0])]
    before = {row[0] for row in site.rows("SELECT id FROM run")}
    done = {item["path"]: "duplicate_of" in item for item in site("reprocess", threshold_ri=1.345)}
    assert done == {path: "would be left as it is" in message for path, message in planned.items()}
    assert len(site.rows("SELECT id FROM run")) == len(before) + 1
    back = site("reprocess", "--dry-run")
    assert all(item["message"].endswith("(measured), which would be the current one") for item in back)
    assert site.rows("SELECT COUNT(*), COUNT(DISTINCT recipe) FROM current_run") == [(3, 1)]


def test_what_ends_otherwise_by_its_current_result_is_not_chosen(site: Site) -> None:
    """`--outcome` speaks of the result that holds, not of one that another recipe replaced."""
    site.settings["recipe.quality.min_volume_fl"] = 2000.0
    assert [item["outcome"] for item in site("reprocess")] == ["rejected"] * 3
    del site.settings["recipe.quality.min_volume_fl"]
    assert site("reprocess", "--dry-run") == []
    again = site("reprocess", "--dry-run", "--outcome", "rejected")
    assert len(again) == 3
    site("reprocess", "--outcome", "rejected", threshold_ri=1.345)
    assert site.rows("SELECT outcome, COUNT(*) FROM current_run GROUP BY outcome") == [("measured", 3)]


def test_what_an_older_algorithm_made_is_named_first_and_processed_when_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that changed how cells are found, between two runs of the same folder."""
    assert site("reprocess", "--outdated") == []
    monkeypatch.setattr(recipes, "ALGORITHMS", {**ALGORITHMS, "cells": ALGORITHMS["cells"] + 1})
    before = site.rows("SELECT id, recipe_id, finished_at FROM run ORDER BY id")
    named = site("reprocess", "--outdated")
    why = f"made by older algorithms (cells {ALGORITHMS['cells']})"
    assert [item["message"] for item in named] == [f"{path} would be processed: {why}" for path in site.files]
    assert [item["older_algorithms"] for item in named] == [{"cells": ALGORITHMS["cells"]}] * 3
    assert site("reprocess", "--outdated", "--dry-run") == named
    assert site.rows("SELECT id, recipe_id, finished_at FROM run ORDER BY id") == before
    (other, *_) = site("reprocess", "--outdated", threshold_ri=1.345)
    assert other["message"].endswith(f"{why}, and with another morphology.threshold_ri")

    away = site.files[0].rename(site.folder / "away.h5")
    gone, *done = site("reprocess", "--outdated", "--apply")
    assert (gone["path"], gone["outcome"]) == (str(site.files[0]), None)
    assert [(item["path"], item["outcome"]) for item in done] == [(str(path), "measured") for path in site.files[1:]]
    away.rename(site.files[0])
    (left,) = site("reprocess", "--outdated", "--apply")
    assert (left["path"], left["outcome"]) == (str(site.files[0]), "measured")
    assert site("reprocess", "--outdated", "--apply") == []
    assert site.rows("SELECT id, recipe_id, finished_at FROM run ORDER BY id")[:3] == before  # old rows stay
    assert site.rows("SELECT COUNT(*), COUNT(DISTINCT recipe) FROM current_run") == [(3, 1)]
    assert site.rows(
        "SELECT json_extract(parameters, '$.algorithms.cells'), COUNT(*) FROM run JOIN recipe ON recipe.id = recipe_id"
        " GROUP BY 1"
    ) == [
        (ALGORITHMS["cells"], 3),
        (ALGORITHMS["cells"] + 1, 3),
    ]


def test_sentences_for_a_person_end_with_what_to_do_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["reprocess", "--outdated", "--config", str(site.folder / "wbcd.toml")]
    none = CliRunner().invoke(cli, words)
    assert (none.exit_code, none.stdout) == (0, "")
    assert "wbcd: no current result was made by an older algorithm." in none.stderr
    monkeypatch.setattr(recipes, "ALGORITHMS", {**ALGORITHMS, "cells": ALGORITHMS["cells"] + 1})
    some = CliRunner().invoke(cli, words)
    assert len(some.stdout.splitlines()) == 3
    assert "wbcd: 3 named, nothing done; the same command with --apply processes them again." in some.stderr


def test_the_same_folder_is_counted_anew_under_newer_algorithms(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon after an upgrade: what is there is processed again beside the old rows, once."""
    monkeypatch.setattr(recipes, "ALGORITHMS", {**ALGORITHMS, "measuring": ALGORITHMS["measuring"] + 1})
    again = site("process", str(site.folder / "incoming"))
    assert ["duplicate_of" in item for item in again] == [False] * 3
    assert site.rows("SELECT COUNT(*), COUNT(DISTINCT recipe_id) FROM run") == [(6, 2)]
    once_more = site("process", str(site.folder / "incoming"))
    assert ["duplicate_of" in item for item in once_more] == [True] * 3
