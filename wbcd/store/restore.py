"""Put a backup in the place of an SQLite database: checked and finished beside it, then in one step; the old one is kept.

Refused while any wbcd process has the database open (:class:`wbcd.store.standing.UseLock`). The backup itself is only read.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wbcd.errors import SchemaMismatch, StoreError
from wbcd.store.backup import copy_sound, force
from wbcd.store.engine import WriterLock
from wbcd.store.failures import foreign_errors
from wbcd.store.ledger import Ledger
from wbcd.store.migrate import upgrade
from wbcd.store.schema import SCHEMA_REVISION
from wbcd.store.standing import BESIDE, UseLock
from wbcd.store.urls import Target

RESTORED: Final = "database_restored"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done. ``kept``: the database that was there before, or None."""

    path: Path
    backup: Path
    kept: Path | None
    revision_before: str
    outcomes: int


def restore_sqlite(target: Target, backup: Path, *, by: str) -> Restored:
    """Check ``backup``, bring a copy of it to this version's schema, journal the restoring in it, and put it into its place.

    ``by``: who asked. Raises :class:`StoreError` when a process has the database open, or the backup is damaged or not wbcd's;
    :class:`SchemaMismatch` when it is a newer wbcd's. Whenever it raises, the database is as it was.
    """
    path = target.path
    if path is None:
        raise StoreError("A database in memory cannot be restored.", action="Name a database file.")
    if not backup.is_file():
        raise StoreError(f"{backup}: there is no such file.", action="Name a file made by `wbcd db backup`.")
    in_use, writers = UseLock(target), WriterLock(target)
    with foreign_errors(target):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        try:
            in_use.alone()
            with writers.held():
                return _restore(path, backup, by)
        finally:
            writers.close()
            in_use.close()


def restore_command(target: Target, backup: Path) -> list[str]:
    """The ``pg_restore`` of a dump over a PostgreSQL database, all of it or nothing; as the owner. Never with a password."""
    whole = ("--clean", "--if-exists", "--single-transaction", "--exit-on-error", "--no-password")
    return ["pg_restore", *whole, f"--dbname={target.display}", str(backup)]


def _restore(path: Path, backup: Path, by: str) -> Restored:
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.absolute().parent))
    part = folder / "wbcd.db"
    try:
        copy_sound(backup, part)
        before = _revision(part, backup)
        url = f"sqlite:///{part}"
        upgrade(url)
        digest = hashlib.blake2b(backup.read_bytes(), digest_size=20).hexdigest()
        with Ledger.open(url, create=False) as ledger:
            ledger.event(RESTORED, f"Restored from {backup} by {by}.", backup=str(backup), digest=digest, by=by)
        outcomes = _outcomes(part)
        _as_before(part, path)
        force(part, os.O_RDWR)
        kept = _keep(path)
        part.replace(path)
        force(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Restored(path, backup, kept, before, outcomes)


def _revision(part: Path, backup: Path) -> str:
    with closing(sqlite3.connect(part)) as connection:
        made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if made else None
    if row is None:
        raise StoreError(f"{backup}: holds no wbcd schema.", action="Name a file made by `wbcd db backup`.")
    if row[0] > SCHEMA_REVISION:
        raise SchemaMismatch(
            f"{backup}: has schema revision {row[0]}; this wbcd knows {SCHEMA_REVISION} at the most.",
            action="Install the newer wbcd, then restore.",
        )
    return str(row[0])


def _outcomes(part: Path) -> int:
    with closing(sqlite3.connect(part)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM run").fetchone()[0])


def _as_before(part: Path, path: Path) -> None:
    """Owner and rights of the database that was there, or else of its folder: root restores for the user of the service."""
    there = path.exists()
    found = (path if there else path.absolute().parent).stat()
    part.chmod((found.st_mode & 0o777) if there else 0o640)
    if os.geteuid() == 0:
        os.chown(part, found.st_uid, found.st_gid)


def _keep(path: Path) -> Path | None:
    """Give the database that is there a second, dated name, with its log; so it is never absent under its own."""
    if not path.exists():
        for suffix in BESIDE:
            Path(f"{path}{suffix}").unlink(missing_ok=True)  # of a file that went: SQLite would write it over the new one
        return None
    kept = path.with_name(f"{path.name}.before-restore-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%fZ}")
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1.0)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # closing then removes the log; damage may refuse it
    os.link(path, kept)
    log = Path(f"{path}-wal")
    if log.exists():
        log.rename(f"{kept}-wal")
    Path(f"{path}-shm").unlink(missing_ok=True)
    return kept
