import errno
import sqlite3
from pathlib import Path

import pytest

from wbcd.errors import DatabaseUnavailable, NoSpace, SchemaMismatch, StoreError
from wbcd.store.failures import foreign_errors, translate
from wbcd.store.urls import parse_url

POSTGRES = parse_url("postgresql://u:secret@h/d")


class OperationalError(Exception):
    """As psycopg's: known by its name and its state, for the driver is not imported by the mapping."""

    def __init__(self, state: str | None) -> None:
        super().__init__("server closed the connection\n\tunexpectedly")
        self.sqlstate = state


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", NoSpace),
        ("08006", DatabaseUnavailable),
        ("57P01", DatabaseUnavailable),
        ("57P03", DatabaseUnavailable),
        ("40001", DatabaseUnavailable),
        ("40P01", DatabaseUnavailable),
        ("53300", DatabaseUnavailable),
        (None, DatabaseUnavailable),
        ("42P01", SchemaMismatch),
        ("23505", StoreError),
    ],
)
def test_postgres_states(state: str | None, kind: type[StoreError]) -> None:
    error = translate(OperationalError(state), POSTGRES)
    assert type(error) is kind
    assert "secret" not in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EFBIG, NoSpace), (errno.EIO, DatabaseUnavailable)],
)
def test_file_system_errors(number: int, kind: type[StoreError]) -> None:
    assert type(translate(OSError(number, "said the kernel"), POSTGRES)) is kind


def test_sqlite_full_is_no_space(tmp_path: Path) -> None:
    target = parse_url(tmp_path / "full.db")
    connection = sqlite3.connect(tmp_path / "full.db", isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(NoSpace, match="full") as caught, foreign_errors(target):
        connection.execute("INSERT INTO t VALUES (zeroblob(1000000))")
    connection.close()
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


def test_sqlite_busy_is_unavailable(tmp_path: Path) -> None:
    one = sqlite3.connect(tmp_path / "busy.db", isolation_level=None)
    two = sqlite3.connect(tmp_path / "busy.db", isolation_level=None, timeout=0)
    one.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="locked"), foreign_errors(parse_url(tmp_path / "busy.db")):
        two.execute("BEGIN IMMEDIATE")
    one.close()
    two.close()


def test_a_text_file_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is not a database, but it is long enough to be looked at as one. " * 20)
    connection = sqlite3.connect(tmp_path / "x.db")
    with pytest.raises(StoreError, match="not a database"), foreign_errors(parse_url(tmp_path / "x.db")):
        connection.execute("SELECT 1 FROM sqlite_master")
    connection.close()


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), foreign_errors(POSTGRES):
        raise ZeroDivisionError
