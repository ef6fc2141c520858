"""`wbcd db upgrade` killed (-9) between its statements, on both databases: the old schema with every row, or the new."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_store import KEY, opened
from sqlalchemy import text

from wbcd.store import Ledger, current_revision, downgrade, upgrade
from wbcd.store.schema import SCHEMA_REVISION
from wbcd.testing import make_cell, make_measured

FIRST = "0001"
SCRIPT = """
import os, signal, sys
from sqlalchemy import Engine, event
left = int(sys.argv[2])

@event.listens_for(Engine, "before_cursor_execute")
def count(connection, cursor, statement, parameters, context, executemany):
    global left
    if statement.startswith(("SELECT", "PRAGMA", "BEGIN", "SHOW", "SET")):
        return
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

sys.argv = ["wbcd", "db", "upgrade", "--db", sys.argv[1]]
from wbcd.cli import cli
cli()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Three outcomes in a database of the first revision."""
    url = f"sqlite:///{tmp_path / 'old.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
    with opened(url) as ledger:
        for name in "abc":
            ledger.commit(make_measured(name, make_cell()), *KEY)
        ledger.event("note", "before")
    downgrade(url, FIRST)
    return url


def killed_at(url: str, statement: int) -> bool:
    """True when it was killed; False when it had fewer statements and ended well."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, url, str(statement)], capture_output=True, text=True, check=False)
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    return done.returncode != 0


def test_killed_between_its_statements(old_url: str) -> None:
    """Early, in the middle, near the end: each time nothing has happened, and the next one does all of it."""
    statements = 1
    kills = 0
    while killed_at(old_url, statements):
        kills += 1
        assert current_revision(old_url) == FIRST
        statements = statements * 3 + 1
    assert kills >= 3
    assert current_revision(old_url) == SCHEMA_REVISION
    assert upgrade(old_url) == SCHEMA_REVISION
    with Ledger.open(old_url) as ledger:
        ledger.check(deep=True)
        assert len(list(ledger.outcomes())) == 3
        assert len(list(ledger.cells())) == 3
        assert ledger.read(lambda connection: connection.execute(text("SELECT COUNT(*) FROM event")).scalar()) == 1
