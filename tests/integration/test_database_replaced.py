"""The SQLite file is replaced, moved or removed under an open ledger, in each way that people do it; rows go back in time."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from helpers_store import KEY
from helpers_store import opened as opened_patiently

from wbcd.errors import DatabaseReplaced, DatabaseUnavailable, SchemaMismatch
from wbcd.store import Ledger
from wbcd.store.backup import backup_sqlite
from wbcd.store.engine import Retry
from wbcd.store.urls import parse_url
from wbcd.testing import make_acquisition, make_cell, make_measured

COUNTED_BEFORE, COUNTED_AFTER = ("a", "b"), ("c", "d")


def opened(url: str) -> Ledger:
    """Says at once what it meets."""
    return opened_patiently(url, retry=Retry(0.0))


def contents(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        query = "SELECT content_id FROM acquisition JOIN run ON run.acquisition_id = acquisition.id"
        return {row[0] for row in connection.execute(query)}


def ids(*names: str) -> set[str]:
    return {make_acquisition(name).content_id for name in names}


def renamed(database: Path, backup: Path) -> None:
    """As `mv`, or `rsync`."""
    shutil.copy(backup, database.with_suffix(".new"))
    database.with_suffix(".new").rename(database)


def removed_and_copied(database: Path, backup: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    shutil.copy(backup, database)


def copied_over(database: Path, backup: Path) -> None:
    """`cp` keeps the inode, then the old log is removed: as the documentation once said, without stopping the daemon."""
    with backup.open("rb") as source, database.open("r+b") as target:
        target.truncate(0)
        shutil.copyfileobj(source, target)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink()


def folder_moved(database: Path, backup: Path) -> None:
    database.parent.rename(database.parent.with_name("elsewhere"))
    database.parent.mkdir()
    shutil.copy(backup, database)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    (tmp_path / "db").mkdir()
    return tmp_path / "db" / "wbcd.db"


def commit(ledger: Ledger, *names: str) -> None:
    for name in names:
        ledger.begin(make_acquisition(name))
        ledger.commit(make_measured(name, make_cell()), *KEY)


@pytest.mark.parametrize("replace", [renamed, removed_and_copied, copied_over, folder_moved], ids=lambda way: way.__name__)
def test_another_file_in_its_place(tmp_path: Path, database: Path, replace: Callable[[Path, Path], None]) -> None:
    backup = tmp_path / "backup.db"
    with opened(str(database)) as ledger:
        commit(ledger, *COUNTED_BEFORE)
        backup_sqlite(parse_url(str(database)), backup)
        commit(ledger, *COUNTED_AFTER)
        replace(database, backup)
        with pytest.raises(DatabaseReplaced, match=r"wbcd\.db: while it was open, (another file|its -(wal|shm) file was)"):
            commit(ledger, "e")
        assert ledger.openings == 1
        assert ledger.known(make_acquisition("c").content_id, *KEY) is None  # no longer so, and not said to be
        assert ledger.openings == 2
        assert ledger.known(make_acquisition("a").content_id, *KEY) is not None
        commit(ledger, "c", "e")
        assert contents(database) == ids("a", "b", "c", "e")
    assert contents(database) == ids("a", "b", "c", "e")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT code FROM event WHERE kind = 'database_replaced'").fetchall() == [("store.replaced",)]


def test_closing_does_not_write_the_old_log_over_what_was_restored(tmp_path: Path, database: Path) -> None:
    """SQLite's last connection writes its log back at its close; here the log belongs to the file before."""
    backup = tmp_path / "backup.db"
    ledger = opened(str(database))
    commit(ledger, *COUNTED_BEFORE)
    backup_sqlite(parse_url(str(database)), backup)
    commit(ledger, *COUNTED_AFTER)
    copied_over(database, backup)
    ledger.close()
    assert database.read_bytes() == backup.read_bytes()
    assert not Path(f"{database}-wal").exists()


def test_an_orderly_close_leaves_one_file(database: Path) -> None:
    with opened(str(database)) as ledger:
        commit(ledger, "a")
        assert Path(f"{database}-wal").exists()
    assert not Path(f"{database}-wal").exists()
    assert contents(database) == ids("a")


def test_a_file_that_was_removed_is_waited_for_and_not_made(tmp_path: Path, database: Path) -> None:
    with opened(str(database)) as ledger:
        commit(ledger, *COUNTED_BEFORE)
        moved = tmp_path / "moved.db"
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        database.rename(moved)
        with pytest.raises(DatabaseReplaced, match="the file was removed"):
            ledger.ping()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match="removed while it was open; it is waited for"):
                commit(ledger, "c")
        assert not database.exists()
        moved.rename(database)
        for suffix in ("-wal", "-shm"):
            Path(f"{database}{suffix}").unlink(missing_ok=True)
        commit(ledger, "c")
        assert contents(database) == ids("a", "b", "c")


def empty(path: Path) -> None:
    path.touch()


def half_copied(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\x01" * 5000)


def of_an_older_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001')")


@pytest.mark.parametrize("make", [empty, half_copied, of_an_older_schema], ids=lambda make: make.__name__)
def test_what_cannot_be_used_yet_is_waited_for(tmp_path: Path, database: Path, make: Callable[[Path], None]) -> None:
    backup = tmp_path / "backup.db"
    with opened(str(database)) as ledger:
        commit(ledger, *COUNTED_BEFORE)
        backup_sqlite(parse_url(str(database)), backup)
        database.unlink()
        make(database)
        with pytest.raises(DatabaseReplaced):
            ledger.ping()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable) as caught:
                ledger.ping()
            assert type(caught.value) is DatabaseUnavailable
        assert ledger.openings == 1
        removed_and_copied(database, backup)
        commit(ledger, "c")
    assert contents(database) == ids("a", "b", "c")


def test_a_file_of_a_newer_schema_ends_it(database: Path, tmp_path: Path) -> None:
    with opened(str(database)) as ledger:
        backup_sqlite(parse_url(str(database)), tmp_path / "newer.db")
        with closing(sqlite3.connect(tmp_path / "newer.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        renamed(database, tmp_path / "newer.db")
        with pytest.raises(DatabaseReplaced):
            ledger.ping()
        with pytest.raises(SchemaMismatch, match="9999"):
            ledger.ping()


def test_a_schema_that_is_upgraded_while_it_runs_ends_it(any_url: str) -> None:
    """An older program before a newer schema: not a row more."""
    with opened(any_url) as ledger:
        commit(ledger, "a")
        execute(any_url, "UPDATE alembic_version SET version_num = '9999'")
        for ask in (ledger.ping, lambda: commit(ledger, "b")):
            with pytest.raises(SchemaMismatch, match="9999"):
                ask()
        execute(any_url, "UPDATE alembic_version SET version_num = '0001'")
        with pytest.raises(DatabaseUnavailable, match="0001"):
            ledger.ping()
    with pytest.raises(SchemaMismatch, match="0001"):
        Ledger.open(any_url)


def execute(url: str, *statements: str) -> None:
    target = parse_url(url)
    if target.path is None:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
        return
    with closing(sqlite3.connect(target.path)) as lite, lite:
        for statement in statements:
            lite.execute(statement)


def tables_made_again(url: str) -> None:
    """As `pg_restore --clean` of a dump with as many outcomes."""
    execute(url, "ALTER TABLE run RENAME TO run_before", "CREATE TABLE run (LIKE run_before INCLUDING ALL)")
    execute(url, "INSERT INTO run SELECT * FROM run_before", "ALTER TABLE cell DROP CONSTRAINT fk_cell_run_id")


def newest_lost(url: str) -> None:
    """A standby that had not the last of it was made the primary."""
    execute(
        url,
        "SET session_replication_role = replica; DELETE FROM prediction; DELETE FROM cell; "
        "DELETE FROM run WHERE id = (SELECT MAX(id) FROM run)",
    )


def model_lost(url: str) -> None:
    execute(url, "SET session_replication_role = replica; TRUNCATE model CASCADE")


@pytest.mark.parametrize("change", [tables_made_again, newest_lost, model_lost], ids=lambda change: change.__name__)
def test_postgresql_goes_back_in_time(postgres_url: str, change: Callable[[str], None]) -> None:
    with opened(postgres_url) as ledger:
        commit(ledger, "a", "b")
        ledger.ping()
        assert ledger.openings == 1
        change(postgres_url)
        ledger.ping()
        assert ledger.openings == 2
        ledger.ping()
        assert ledger.openings == 2
        commit(ledger, "b", "c")
        assert {one.content_id for one in ledger.outcomes()} >= ids("b", "c")


def test_tables_that_are_away_for_a_restore_are_waited_for(postgres_url: str) -> None:
    with opened(postgres_url) as ledger:
        commit(ledger, "a")
        execute(postgres_url, "ALTER TABLE run RENAME TO run_away")
        with pytest.raises(DatabaseUnavailable, match=r"run.*does not exist") as caught:
            commit(ledger, "b")
        assert "restored" in caught.value.advice
        execute(postgres_url, "ALTER TABLE run_away RENAME TO run")
        commit(ledger, "b")
        assert ledger.openings == 1


def test_two_that_write_in_turn_do_not_disturb_each_other(any_url: str) -> None:
    """Neither takes the other's rows, logs or closing for a replacement."""
    with opened(any_url) as one:
        for number in range(6):
            with opened(any_url) as two:
                commit(two, f"two {number}")
            commit(one, f"one {number}")
        one.ping()
        assert one.openings == 1


def test_any_question_of_an_absent_answer_is_timed(any_url: str) -> None:
    with opened(any_url) as ledger:
        seen: list[Any] = []
        ledger.read(lambda _: seen.append(ledger.asked_since_s))
        assert seen[0] is not None
        assert ledger.asked_since_s is None
