"""`wbcd db restore`, by the verb: what it puts in place, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers_store import KEY, opened

from wbcd.cli import cli
from wbcd.store.backup import backup_sqlite
from wbcd.store.urls import parse_url
from wbcd.store.verification import check_chain
from wbcd.testing import make_acquisition, make_cell, make_measured


def restore(backup: Path, database: str | Path) -> Result:
    url = database if "://" in str(database) else f"sqlite:///{database}"
    return CliRunner().invoke(cli, ["db", "restore", str(backup), "--db", str(url)])


def contents(path: Path) -> set[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {
            row[0]
            for row in connection.execute("SELECT content_id FROM acquisition JOIN run ON acquisition_id = acquisition.id")
        }


def ids(*names: str) -> set[str]:
    return {make_acquisition(name).content_id for name in names}


@pytest.fixture
def made(tmp_path: Path, sqlite_template: Path) -> tuple[Path, Path]:
    """A database with a, b and c, and its backup with a alone."""
    database, backup = tmp_path / "wbcd.db", tmp_path / "backup.db"
    shutil.copy(sqlite_template, database)
    with opened(str(database)) as ledger:
        ledger.commit(make_measured("a", make_cell()), *KEY)
        backup_sqlite(parse_url(str(database)), backup)
        ledger.commit(make_measured("b", make_cell()), *KEY)
        ledger.commit(make_measured("c", make_cell()), *KEY)
    return database, backup


def kept_of(database: Path) -> list[Path]:
    return sorted(path for path in database.parent.glob(f"{database.name}.before-restore-*") if path.suffix != "-wal")


def test_the_backup_takes_its_place_and_the_old_one_is_kept(made: tuple[Path, Path]) -> None:
    database, backup = made
    database.chmod(0o640)
    before = backup.read_bytes()
    done = restore(backup, database)
    assert done.exit_code == 0, done.output
    assert "1 outcomes" in done.output
    assert contents(database) == ids("a")
    assert [contents(path) for path in kept_of(database)] == [ids("a", "b", "c")]
    assert backup.read_bytes() == before
    assert database.stat().st_mode & 0o777 == 0o640
    assert list(database.parent.glob(".wbcd.db.*")) == []
    with closing(sqlite3.connect(database)) as connection:
        ((message, details),) = connection.execute(
            "SELECT message, details FROM event WHERE kind = 'database_restored'"
        ).fetchall()
    assert str(backup) in message
    assert "digest" in details
    with opened(str(database)) as ledger:
        assert list(check_chain(ledger, "event")) == []
        ledger.commit(make_measured("d", make_cell()), *KEY)


def test_where_there_is_no_database(made: tuple[Path, Path]) -> None:
    _, backup = made
    fresh = backup.parent / "new" / "wbcd.db"
    assert restore(backup, fresh).exit_code == 0
    assert contents(fresh) == ids("a")


def test_the_log_of_a_killed_writer_goes_with_its_database(made: tuple[Path, Path]) -> None:
    """Beside the restored file it would be written over it."""
    database, backup = made
    script = (
        "import os, signal, sys\nsys.path[:0] = sys.argv[2:]\nfrom helpers_store import KEY, opened\n"
        "from wbcd.testing import make_cell, make_measured\n"
        "opened(sys.argv[1]).commit(make_measured('late', make_cell()), *KEY)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(database), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert Path(f"{database}-wal").stat().st_size > 0
    assert restore(backup, database).exit_code == 0
    assert contents(database) == ids("a")
    assert [contents(path) for path in kept_of(database)] == [ids("a", "b", "c", "late")]


def test_refused_while_it_is_open(made: tuple[Path, Path]) -> None:
    database, backup = made
    with opened(str(database)):
        done = restore(backup, database)
        assert done.exit_code == 69
        assert "a wbcd process has it open" in done.stderr
    assert contents(database) == ids("a", "b", "c")
    assert kept_of(database) == []
    assert restore(backup, database).exit_code == 0


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(3 * 4096))


def truncated(path: Path) -> None:
    os.truncate(path, 10_000)


def no_database(path: Path) -> None:
    path.write_text("a text " * 1000)


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def absent(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [damaged, truncated, no_database, foreign, newer, absent], ids=lambda spoil: spoil.__name__)
def test_what_is_no_sound_backup_is_refused_and_nothing_changes(made: tuple[Path, Path], spoil: object) -> None:
    database, backup = made
    spoil(backup)  # type: ignore[operator]
    before = {path.name: path.read_bytes() for path in database.parent.iterdir()}
    done = restore(backup, database)
    assert done.exit_code == (78 if spoil is newer else 69), done.output
    assert "Traceback" not in done.output
    after = {path.name: path.read_bytes() for path in database.parent.iterdir() if not path.name.endswith((".open", ".lock"))}
    assert after == {name: data for name, data in before.items() if not name.endswith((".open", ".lock"))}
    assert contents(database) == ids("a", "b", "c")


def test_postgresql_is_told_how() -> None:
    done = restore(Path("/backup/monday.dump"), "postgresql://carol:secret@localhost/wbcd")
    assert done.exit_code == 0
    assert "pg_restore --clean --if-exists --single-transaction" in done.stdout
    assert "secret" not in done.output
