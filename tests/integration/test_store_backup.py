"""Backups of both databases beside a writer, and their restoring: the counts and the chains are those of the original."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from helpers_postgres import Server, programs_folder
from helpers_store import KEY, opened

from wbcd.cli import cli
from wbcd.errors import NoSpace, StoreError
from wbcd.report.counts import read_differential, read_status
from wbcd.store import Ledger, backup, verification
from wbcd.store.chain import CHAINED
from wbcd.store.urls import parse_url
from wbcd.testing import make_cell, make_measured


def fill(ledger: Ledger, first: int = 0, count: int = 20) -> None:
    for number in range(first, first + count):
        ledger.commit(make_measured(f"{number}", make_cell(), make_cell("monocyte", number=2)), *KEY)
        ledger.event("note", f"event {number}")
    ledger.review(1, "R", "monocyte")
    ledger.label_sample("S1", "monocyte", purity=0.9, by="R")


def sound(url: str) -> list[object]:
    with Ledger.open(url, create=False) as ledger:
        ledger.check(deep=True)
        return [finding for table in CHAINED for finding in verification.check_chain(ledger, table)]


def test_a_copy_beside_a_writer_is_whole_and_restores(tmp_path: Path) -> None:
    """The writer never stops; the copy is a state that it had: as many runs as cells / 2, and every chain whole."""
    source, copy = tmp_path / "wbcd.db", tmp_path / "backup" / "monday.db"
    copy.parent.mkdir()
    stop = threading.Event()

    def write() -> None:
        with opened(str(source)) as writer:
            number = 1000
            while not stop.is_set():
                fill(writer, number, 5)
                number += 5

    with opened(str(source)) as ledger:
        fill(ledger)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = backup.backup_sqlite(parse_url(str(source)), copy)
    finally:
        stop.set()
        writer.join()
    assert made.size_bytes == copy.stat().st_size > 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [path.name for path in copy.parent.iterdir()] == ["monday.db"]  # no log, no temporary
    restored = tmp_path / "restored.db"
    restored.write_bytes(copy.read_bytes())
    assert sound(str(restored)) == []
    status = read_status(str(restored))
    assert status.measured >= 20
    assert status.cells == 2 * status.measured
    with opened(str(restored)) as ledger:  # the restored database is a database: work goes on in it
        fill(ledger, 5000, 1)
    assert sound(str(restored)) == []


def test_a_damaged_database_gives_no_backup(tmp_path: Path) -> None:
    source = tmp_path / "wbcd.db"
    with opened(str(source)) as ledger:
        fill(ledger, count=60)
    raw = bytearray(source.read_bytes())
    for page in range(10, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    source.write_bytes(raw)
    with pytest.raises(StoreError, match=r"not sound|malformed"):
        backup.backup_sqlite(parse_url(str(source)), tmp_path / "copy.db")
    assert list(tmp_path.glob("*copy*")) == []


def test_what_cannot_be_backed_up(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database"):
        backup.backup_sqlite(parse_url(str(tmp_path / "absent.db")), tmp_path / "copy.db")
    Ledger.open(str(tmp_path / "wbcd.db")).close()
    (tmp_path / "copy.db").write_text("mine")
    with pytest.raises(StoreError, match="does not replace"):
        backup.backup_sqlite(parse_url(str(tmp_path / "wbcd.db")), tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "mine"
    with pytest.raises(StoreError, match="No such file"):
        backup.backup_sqlite(parse_url(str(tmp_path / "wbcd.db")), tmp_path / "absent" / "copy.db")


def test_a_full_disk_leaves_no_half_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger.open(str(tmp_path / "wbcd.db")).close()

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace):
        backup.backup_sqlite(parse_url(str(tmp_path / "wbcd.db")), tmp_path / "copy.db")
    assert list(tmp_path.glob("*copy*")) == []


def test_the_command_makes_a_named_copy_in_a_folder(tmp_path: Path) -> None:
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        fill(ledger)
    (tmp_path / "backups").mkdir()
    arguments = ["db", "backup", str(tmp_path / "backups"), "--db", f"sqlite:///{tmp_path / 'wbcd.db'}"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    (made,) = (tmp_path / "backups").iterdir()
    assert made.suffix == ".db"
    connection = sqlite3.connect(made)
    assert connection.execute("SELECT COUNT(*) FROM run").fetchone() == (20,)
    connection.close()


def test_postgresql_is_dumped_and_restored(
    tmp_path: Path, postgres_url: str, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(postgres_url) as ledger:
        fill(ledger)
    monkeypatch.setenv("PATH", f"{programs_folder()}:{os.environ['PATH']}")
    arguments = ["db", "backup", str(tmp_path / "monday.dump"), "--db", postgres_url]
    said = CliRunner().invoke(cli, arguments)
    assert said.output.startswith("pg_dump --format=custom --no-password ")
    assert not (tmp_path / "monday.dump").exists()
    done = CliRunner().invoke(cli, [*arguments, "--run"])
    assert done.exit_code == 0, done.output
    name = f"wbcd_restored_{os.getpid()}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            url = postgres_server.url(name)
            restore = ["pg_restore", "--no-owner", "--exit-on-error", f"--dbname={url}", str(tmp_path / "monday.dump")]
            subprocess.run(restore, check=True, capture_output=True)
            assert sound(url) == []
            assert read_differential(url) == read_differential(postgres_url)
            with opened(url) as ledger:  # sequences, triggers and chains go on
                fill(ledger, 5000, 1)
            assert sound(url) == []
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_dump_that_fails_leaves_nothing(tmp_path: Path, postgres_url: str) -> None:
    target = parse_url(postgres_url.replace("/wbcd_test", "/absent_test"))
    program = str(programs_folder() / "pg_dump")
    with pytest.raises(StoreError, match="does not exist"):
        backup.backup_postgres(target, tmp_path / "x.dump", env=os.environ, program=program)
    with pytest.raises(StoreError, match="not installed"):
        backup.backup_postgres(target, tmp_path / "x.dump", env={}, program=str(tmp_path / "absent"))
    assert list(tmp_path.iterdir()) == []


def test_the_password_is_not_on_the_command_line(tmp_path: Path) -> None:
    target = parse_url("postgresql://wbcd:s3cret@db.example/wbcd?sslmode=verify-full&sslrootcert=/etc/ca.pem")
    command = " ".join(backup.dump_command(target, tmp_path / "x.dump"))
    assert "s3cret" not in command
    assert "sslmode=verify-full&sslrootcert=/etc/ca.pem" in command
