"""`wbcd verify` and `wbcd retention` as a person meets them: what is named, what is changed, with which exit status."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from wbcd.cli import cli
from wbcd.recipe import Recipe
from wbcd.records import Cell, Prediction
from wbcd.store import Ledger
from wbcd.store.volumes import write_tomogram
from wbcd.testing import make_cell, make_measured


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A database with the shipped model's results, one counted file and its kept tomogram."""
    from wbcd.acquisition.candidate import identify
    from wbcd.classification import load_bundle

    bundle, recipe = load_bundle("reference"), Recipe()
    source = tmp_path / "a.h5"
    source.write_bytes(b"bytes of an acquisition")
    ri = np.full((20, 30, 30), 1.34, dtype=np.float32)
    cell = Cell(1, ri, ri > 1.35, (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))
    with Ledger.open(str(tmp_path / "wbcd.db")) as ledger:
        ledger.register(recipe, bundle.model_id, bundle.card)
        outcome = make_measured("a")
        ticket = identify(source)
        acquisition = dataclasses.replace(outcome.acquisition, content_id=ticket.content_id, path=source)
        image = write_tomogram(tmp_path / "output", cell, acquisition=acquisition, recipe_id=recipe.recipe_id)
        label = bundle.classes[0]
        known = make_cell(None)
        predicted = dataclasses.replace(
            known, prediction=Prediction(bundle.model_id, label, 0.9, {label: 0.9}), tomogram_path=str(image)
        )
        ledger.sighted(source, ticket.size_bytes, ticket.mtime_ns, ticket.content_id)
        ledger.commit(
            dataclasses.replace(outcome, acquisition=acquisition, cells=(predicted,)), recipe.recipe_id, bundle.model_id
        )
        ledger.review(1, "R", "monocyte")
        ledger.event("started", "x")
    return tmp_path


def wbcd(place: Path, *arguments: str) -> Result:
    where = ("--db", f"sqlite:///{place / 'wbcd.db'}", "--output-dir", str(place / "output"))
    return CliRunner().invoke(cli, [*arguments, *where])


def tamper(place: Path, *statements: str) -> None:
    connection = sqlite3.connect(place / "wbcd.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_everything_holds(place: Path) -> None:
    done = wbcd(place, "verify", "--tomograms", "--sources")
    assert (done.exit_code, done.output) == (
        0,
        "everything holds (2 rows of the chains, 1 tomograms, 1 counted files)\n",
    )


def test_what_does_not_hold_is_named_and_is_status_1(place: Path) -> None:
    tamper(
        place,
        "DROP TRIGGER review_append_only_update",
        "UPDATE review SET label = 'b_lymphocyte'",
        "UPDATE recipe SET parameters = json_set(parameters, '$.morphology.threshold_ri', 1.2)",
        "UPDATE model SET card = json_set(card, '$.wbcd.temperature', 99.0)",
    )
    (place / "a.h5").write_bytes(b"other bytes")
    (chunk,) = (place / "output").glob("*/*/0/c/0/0/0")
    chunk.write_bytes(b"\0" + chunk.read_bytes()[1:])
    done = wbcd(place, "verify", "--tomograms", "--sources", "--json")
    assert done.exit_code == 1
    said = json.loads(done.output)
    assert said["holds"] is False
    assert [item["check"] for item in said["findings"]] == ["chain", "recipe", "model", "tomogram", "source"]
    lines = wbcd(place, "verify", "--tomograms", "--sources").output.splitlines()
    assert lines[0] == "chain: review 1 was changed: its hash is not that of its values"
    assert lines[-1].startswith("5 things do not hold (")
    assert wbcd(place, "verify").output.splitlines()[-1].startswith("3 things")


def test_anchors_are_written_when_all_holds_and_find_a_rewritten_chain(place: Path) -> None:
    anchors = place / "anchors.json"
    assert wbcd(place, "verify", "--anchors", str(anchors)).exit_code == 0
    before = anchors.read_text()
    tamper(
        place,
        "DROP TRIGGER review_append_only_delete",
        "DELETE FROM review",
        f"UPDATE audit_head SET last_id = 0, row_hash = '{'0' * 64}' WHERE name = 'review'",
    )
    assert wbcd(place, "verify").exit_code == 0  # nothing inside the database tells
    done = wbcd(place, "verify", "--anchors", str(anchors))
    assert done.exit_code == 1
    assert done.output.startswith("chain: review 1 was noted as the end of the chain and is not there")
    assert anchors.read_text() == before


def test_a_wrong_anchor_file_is_said(place: Path) -> None:
    (place / "anchors.json").write_text("[1]")
    done = wbcd(place, "verify", "--anchors", str(place / "anchors.json"))
    assert done.exit_code == 78
    assert "is no file of anchors" in done.output


def test_retention_shows_first_and_does_when_told(place: Path) -> None:
    (image,) = (place / "output").glob("*/*.ome.zarr")
    os.utime(image, (1.7e9, 1.7e9))
    assert wbcd(place, "retention").exit_code == 2
    shown = wbcd(place, "retention", "--max-age-days", "90")
    assert shown.output.splitlines()[0].startswith(f"would remove {image} (")
    assert "--apply removes them" in shown.output
    assert image.is_dir()
    assert json.loads(wbcd(place, "retention", "--max-age-days", "90", "--json").output)["removed"] == 0
    assert image.is_dir()
    done = wbcd(place, "retention", "--max-age-days", "90", "--apply")
    assert done.output.splitlines()[0].startswith(f"removed {image} (")
    assert not image.exists()
    assert wbcd(place, "verify", "--tomograms").exit_code == 0
