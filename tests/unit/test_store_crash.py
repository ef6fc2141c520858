"""kill -9 between any two statements of a transaction: the row is there whole or not at all, and the database is sound."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from helpers_store import KEY, opened

from wbcd.store import Ledger
from wbcd.testing import make_acquisition, make_cell, make_measured

BEFORE = 3

CHILD = """
import os, signal, sys
from sqlalchemy import event
from helpers_store import KEY, opened
from wbcd.testing import make_cell, make_measured

url, step, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ledger = opened(url)
outcome = make_measured("victim", make_cell(), make_cell("monocyte", number=2, thumbnail_png=bytes(300_000)))
ledger.begin(outcome.acquisition)
statements = 0

def die(*_):
    global statements
    statements += 1
    if statements == step:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(ledger._engine, f"{when}_cursor_execute", die)
ledger.commit(outcome, *KEY)
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_child(path: Path, step: int, when: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    died = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(step), when], env=environment, check=False, capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.mark.parametrize(("step", "when"), [(1, "after"), (5, "after"), (8, "after"), (99, "before")])
def test_killed_between_statements(tmp_path: Path, step: int, when: str) -> None:
    path = tmp_path / "wbcd.db"
    with opened(str(path)) as ledger:
        for number in range(BEFORE):
            ledger.commit(make_measured(f"{number}"), *KEY)
    run_child(path, step, when)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert reader.execute("PRAGMA foreign_key_check").fetchall() == []
    acknowledged = step == 99
    with Ledger.open(str(path)) as ledger:
        ledger.check(deep=True)
        stored = ledger.known(make_acquisition("victim").content_id, *KEY)
        assert (stored is not None) == acknowledged
        if not acknowledged:
            assert [open_one.tries for open_one in ledger.unfinished()] == [1]
            assert ledger.begin(make_acquisition("victim")) == 2
        ledger.commit(make_measured("victim", make_cell(), make_cell("monocyte", number=2)), *KEY)
        assert [len(outcome.cells) for outcome in ledger.outcomes()] == [1] * BEFORE + [2]
