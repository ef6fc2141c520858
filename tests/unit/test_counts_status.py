"""What `wbcd status` shows: right, from one snapshot, at once, and without a way to change anything."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_store import KEY, MODEL_ID, RECIPE_ID, opened

from wbcd.errors import DatabaseUnavailable, SchemaMismatch, StoreError, Truncated
from wbcd.records import SetAside
from wbcd.report import counts
from wbcd.report.counts import read_differential, read_status
from wbcd.store import Ledger
from wbcd.testing import FakeClock, make_acquisition, make_cell, make_measured, make_rejected


def fill(ledger: Ledger, clock: FakeClock) -> None:
    for number in range(6):
        outcome = make_measured(f"m{number}", make_cell("monocyte" if number else "b_lymphocyte"))
        ledger.begin(outcome.acquisition)
        clock.advance(60)
        ledger.commit(outcome, *KEY)
    ledger.commit(make_rejected("r1"), *KEY)
    ledger.commit(make_rejected("r2"), *KEY)
    ledger.commit(make_rejected("r3", reason="frame_residual"), *KEY)
    ledger.commit(SetAside(make_acquisition("t"), Truncated("t.h5 ends early.")), *KEY)
    ledger.sighted("/watch/waiting.h5", 1, 1, "waiting")
    ledger.sighted("/watch/copy-of-waiting.h5", 1, 1, "waiting")
    ledger.begin(make_acquisition("begun"))
    for _ in range(2):
        ledger.begin(make_acquisition("retried"))


def test_status(any_url: str) -> None:
    clock = FakeClock()
    with opened(any_url, now=clock.now) as ledger:
        fill(ledger, clock)
    clock.advance(60)
    status = read_status(any_url, now=clock.now())
    assert (status.measured, status.rejected, status.set_aside, status.outcomes) == (6, 3, 1, 10)
    assert (status.cells, status.cells_refused) == (6, 0)
    assert [(row.state, row.n, row.max_tries) for row in status.backlog] == [
        ("waiting", 1, 0),
        ("begun", 1, 1),
        ("retried", 1, 2),
        ("companion", 0, 0),
    ]
    assert status.open == 3
    assert {row.oldest for row in status.backlog if row.n} == {clock.now() - dt.timedelta(minutes=1)}
    assert [(row.outcome, row.reason, row.n) for row in status.rejections] == [
        ("rejected", "fringe_contrast", 2),
        ("rejected", "frame_residual", 1),
        ("set_aside", "input.truncated", 1),
    ]
    assert [(row.label, row.n) for row in status.counts] == [("b_lymphocyte", 1), ("monocyte", 5)]
    assert [(row.label, row.n) for row in status.lineages] == [("lymphoid", 1), ("myeloid", 5)]
    assert (status.recipe, status.model, status.simulated_model) == (RECIPE_ID, MODEL_ID, True)
    assert status.last_outcome_at == clock.now() - dt.timedelta(minutes=1)
    assert status.window_outcomes == 10
    assert status.per_minute == pytest.approx(10 / 6)
    assert status.note is None


def test_status_is_json(any_url: str) -> None:
    clock = FakeClock()
    with opened(any_url, now=clock.now) as ledger:
        fill(ledger, clock)
    data = json.loads(json.dumps(read_status(any_url, now=clock.now()).as_dict(), allow_nan=False))
    assert data["counts"][1]["label"] == "monocyte"
    assert data["last_outcome_at"] == "2026-01-01T00:06:00.000+00:00"
    assert data["outcomes"] == 10
    assert data["backlog"][2] == {"state": "retried", "n": 1, "oldest": "2026-01-01T00:06:00.000+00:00", "max_tries": 2}


def test_an_empty_database_is_a_status_too(any_url: str) -> None:
    status = read_status(any_url)
    assert (status.outcomes, status.open, status.counts, status.per_minute) == (0, 0, (), 0.0)
    assert (status.recipe, status.simulated_model, status.last_outcome_at) == (None, None, None)
    assert read_differential(any_url) == []


def test_old_outcomes_are_no_throughput(any_url: str) -> None:
    clock = FakeClock()
    with opened(any_url, now=clock.now) as ledger:
        ledger.commit(make_measured("old"), *KEY)
        clock.advance(3600)
        ledger.commit(make_measured("new"), *KEY)
    assert read_status(any_url, now=clock.now()).window_outcomes == 1


def test_a_pause_is_shown_until_it_ends(any_ledger: Ledger, any_url: str) -> None:
    any_ledger.event("intake_paused", "intake paused: the output disk is full", code="store.no_space")
    assert read_status(any_url).note == "intake paused: the output disk is full"
    any_ledger.event("intake_resumed", "intake resumed")
    assert read_status(any_url).note is None


def test_a_full_disk_is_shown_though_nothing_could_be_written(
    sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "free_bytes", lambda target: 2 * 2**20)
    assert "2.0 MiB are free" in (read_status(tmp_path / "wbcd.db").note or "")


def test_the_reader_can_change_nothing(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    statement = "INSERT INTO sample (name, first_seen_at) VALUES ('x', '')"
    with pytest.raises(DatabaseUnavailable, match="readonly"), counts._reading(tmp_path / "wbcd.db") as database:
        database.rows(statement)


def test_a_snapshot_does_not_move_while_the_writer_goes_on(any_ledger: Ledger, any_url: str) -> None:
    with counts._reading(any_url) as database:
        before = database.rows("SELECT COUNT(*) AS n FROM run")
        any_ledger.commit(make_measured("a"), *KEY)
        assert database.rows("SELECT COUNT(*) AS n FROM run") == before
    assert read_status(any_url).measured == 1


def test_no_database_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="no database yet") as caught:
        read_status(tmp_path / "absent.db")
    assert "wbcd run" in caught.value.sentence()
    assert not (tmp_path / "absent.db").exists()


def test_no_server_is_said_so_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        read_status(f"postgresql://u:secret@/d?host={tmp_path}")
    assert "secret" not in caught.value.sentence()


def test_another_file_is_said_so(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    with pytest.raises(SchemaMismatch):
        read_status(tmp_path / "empty.db")
    (tmp_path / "text.db").write_text("no database at all, but long enough to be taken for one " * 20)
    with pytest.raises(StoreError, match="not a database"):
        read_status(tmp_path / "text.db")


def test_reading_loads_nothing_heavy(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    program = (
        "import sys; from wbcd.report.counts import read_status; "
        f"read_status({str(tmp_path / 'wbcd.db')!r}); import wbcd.report.metrics; "
        "print(sorted({'sqlalchemy', 'numpy', 'alembic', 'psycopg', 'torch', 'zarr', 'scipy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
