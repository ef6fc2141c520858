"""`wbcd reprocess`: what is stored already, once more under another recipe."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers_spheres import cheap_settings, tiny_bundle, write_run

from wbcd.cli import cli


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


def test_a_dry_run_and_a_sample_that_is_not_there_do_nothing(site: Site) -> None:
    planned = site("reprocess", "--dry-run", threshold_ri=1.345)
    assert [item["outcome"] for item in planned] == [None] * 3
    assert all(os.fspath(path) in item["message"] for path, item in zip(site.files, planned, strict=True))
    assert site("reprocess", "--sample", "nobody") == []
    assert site.rows("SELECT COUNT(*) FROM run") == [(3,)]
