"""Copies of the database while the daemon writes: whole, checked, and under their name only when they are.

SQLite has an online backup (https://www.sqlite.org/backup.html): in one read transaction it copies a consistent state, and in
WAL mode it keeps no writer waiting. PostgreSQL has ``pg_dump``.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from wbcd.errors import StoreError
from wbcd.store.failures import foreign_errors, from_os_error
from wbcd.store.urls import Target

BUSY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished copy."""

    path: Path
    size_bytes: int


def backup_sqlite(target: Target, destination: Path) -> Backup:
    """Copy an SQLite database beside its writer, check the copy for damage, force it to disk, and only then name it.

    An existing file is not replaced. Raises :class:`StoreError` and, where the disk is full, :class:`NoSpace`.
    """
    if target.path is None:
        raise StoreError("A database in memory has no backup.", action="Name a database file.")
    if not target.path.is_file():
        raise StoreError(f"{target.path}: there is no database.", action="Correct --db.")
    with _named_when_whole(destination) as part, foreign_errors(target):
        copy_sound(target.path, part)
    return Backup(destination, destination.stat().st_size)


def dump_command(target: Target, destination: Path, *, program: str = "pg_dump") -> list[str]:
    """The ``pg_dump`` of a PostgreSQL database: custom format, restored by ``pg_restore``. Never with a password in it."""
    return [program, "--format=custom", "--no-password", f"--file={destination}", f"--dbname={target.display}"]


def backup_postgres(target: Target, destination: Path, *, env: Mapping[str, str], program: str = "pg_dump") -> Backup:
    """Run ``pg_dump`` and let ``pg_restore`` read the contents of what it wrote. Raises :class:`StoreError`."""
    password = None if target.dsn is None else urlsplit(target.dsn).password
    environment = dict(env) | (
        {"PGPASSWORD": unquote(password)} if password else {}
    )  # not on the command line: `ps` shows that
    with _named_when_whole(destination) as part:
        _run(dump_command(target, part, program=program), environment)
        _run([str(Path(program).with_name("pg_restore")) if "/" in program else "pg_restore", "--list", str(part)], environment)
    return Backup(destination, destination.stat().st_size)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)


def copy_sound(source_path: Path, part: Path) -> None:
    """SQLite's online backup into ``part``, without a log beside it. Raises :class:`StoreError` when it is not sound."""
    with closing(_read_only(source_path)) as source, closing(sqlite3.connect(part)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, without a log beside it
        _demand_sound(copy, part)


def _demand_sound(copy: sqlite3.Connection, part: Path) -> None:
    found = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(10)")]
    found += [f"row {row[1]} of {row[0]} points to a missing {row[2]}" for row in copy.execute("PRAGMA foreign_key_check")]
    if found != ["ok"]:
        raise StoreError(
            f"{part}: the copy is not sound: {found[0]}.",
            action="The database is damaged, or the disk of the copy is: keep earlier backups, and run `wbcd doctor`.",
        )


@contextmanager
def _named_when_whole(destination: Path) -> Iterator[Path]:
    """A temporary file beside ``destination``, forced to disk and renamed when the block ends well, else removed."""
    if destination.exists():
        raise StoreError(f"{destination} exists; a backup does not replace it.", action="Name another file.")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent)
    except OSError as error:
        raise from_os_error(error, str(destination)) from error
    part = Path(name)
    os.close(handle)
    try:
        yield part
        _publish(part, destination)
    except OSError as error:
        raise from_os_error(error, str(destination)) from error
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, destination: Path) -> None:
    force(part, os.O_RDWR)
    part.rename(destination)
    force(destination.parent, os.O_RDONLY | os.O_DIRECTORY)


def force(place: Path, flags: int) -> None:
    """Force a file or a folder to disk."""
    handle = os.open(place, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise StoreError(f"{command[0]} is not installed here.", action="Install the PostgreSQL client programs.") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise StoreError(
            f"{command[0]}: {said}.", action="Correct what it says; its version must not be older than the server's."
        )
