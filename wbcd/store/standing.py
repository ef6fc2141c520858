"""Is the database that was opened still the one that lies there? Asked around each transaction of a writer.

An SQLite connection keeps to the file that it opened: where that is replaced, moved or removed (a backup copied over it while
the daemon runs), everything is written into a file without a name, and nothing says so. So device and inode of the file, and of
its log and shared memory, are held against their paths. A PostgreSQL keeps its connection or loses it; so a daemon asks the
rows too: the newest outcome, the recipe and the model must still be there, in the same table.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select, text

from wbcd.errors import DatabaseUnavailable, SchemaMismatch
from wbcd.store import schema
from wbcd.store.failures import from_os_error
from wbcd.store.urls import Target

BESIDE: Final = ("-wal", "-shm")
"""What SQLite keeps beside an open database in WAL mode; nobody may take it away while a connection lives."""

USE_SUFFIX: Final = ".open"

TABLES_AWAITED: Final = (
    "Is a backup being restored? The schema is waited for; when that is over, run `wbcd db upgrade` if it is still older."
)

Identity = tuple[int, int]


def identity_of(path: Path) -> Identity | None:
    """Device and inode behind a path; None where there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class FileWatch:
    """One open SQLite file against its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = identity_of(path)
        self._beside: dict[str, Identity] = {}

    def problem(self) -> str | None:
        """What has happened to the file since it was opened, as a clause; None when it lies there as it did."""
        now = identity_of(self._path)
        if self._file is None:  # SQLite makes the file at the first use of a connection
            self._file = now
        if now != self._file:
            return "the file was removed" if now is None else "another file was put in its place"
        for suffix in BESIDE:
            there = identity_of(Path(f"{self._path}{suffix}"))
            known = self._beside.get(suffix)
            if known is None and there is not None:
                self._beside[suffix] = there
            elif there != known:
                return f"its {suffix} file was {'removed' if there is None else 'replaced'}"
        return None

    def set_log_aside(self) -> None:
        """Take the log of the file that went away from beside the one that came: SQLite would write it over that."""
        if identity_of(self._path) == self._file:
            return  # it was put back
        for suffix in BESIDE:
            beside = Path(f"{self._path}{suffix}")
            if identity_of(beside) is not None and identity_of(beside) == self._beside.get(suffix):
                beside.rename(f"{beside}.replaced-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%fZ}")


class UseLock:
    """Says, as long as it is held, that a wbcd process has the SQLite database open; :command:`wbcd db restore` needs it alone.

    A lock of the kernel on a file beside the database: it goes with the process, however that ends.
    """

    def __init__(self, target: Target) -> None:
        self._path = None if target.path is None else Path(f"{target.path}{USE_SUFFIX}")
        self._handle: int | None = None

    def share(self) -> None:
        """Raises :class:`DatabaseUnavailable` while a restore is at work."""
        self._take(fcntl.LOCK_SH, "a backup is being restored into it")

    def alone(self) -> None:
        """Raises :class:`DatabaseUnavailable` while a process has the database open."""
        self._take(fcntl.LOCK_EX, "a wbcd process has it open")

    def close(self) -> None:
        """Let go; the file stays, for removing it would race with another process."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _take(self, kind: int, taken: str) -> None:
        if self._path is None or self._handle is not None:
            return
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise from_os_error(error, str(self._path)) from error
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            database = str(self._path).removesuffix(USE_SUFFIX)
            raise DatabaseUnavailable(f"{database}: {taken}.", action="Stop the daemon first, or wait.") from error
        self._handle = handle


@dataclass(frozen=True, slots=True)
class _Newest:
    run_id: int
    content_id: str
    finished_at: dt.datetime
    relation: int
    event_id: int
    event_hash: str


class Witness:
    """What a daemon knows to be in the database: its recipe, its model, and no fewer outcomes than it has seen there."""

    def __init__(self, recipe_id: str, model_id: str) -> None:
        self._recipe_id = recipe_id
        self._model_id = model_id
        self._newest: _Newest | None = None

    def missing(self, connection: Connection) -> str | None:
        """What is no longer there, as a clause; None when all is. Raises :class:`SchemaMismatch` for a newer schema."""
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if revision is None or revision < schema.SCHEMA_REVISION:
            place = f"The database has schema revision {revision or 'none'}; {schema.SCHEMA_REVISION} is needed."
            raise DatabaseUnavailable(place, action=TABLES_AWAITED)
        if revision != schema.SCHEMA_REVISION:
            raise SchemaMismatch(
                f"The database has schema revision {revision}; this wbcd needs {schema.SCHEMA_REVISION}.",
                action="It was changed while the daemon ran: start the wbcd of that revision.",
            )
        newest, before = _newest(connection), self._newest
        if before is not None and not _follows(newest, before) and not _was_replaced(connection, before):
            return f"the outcome of {before.finished_at:%Y-%m-%d %H:%M:%S} UTC, the newest that was known, is not in it"
        for table, key in ((schema.recipe, self._recipe_id), (schema.model, self._model_id)):
            if connection.execute(select(table.c.id).where(table.c.id == key)).first() is None:
                return f"the {table.name} {key} is not in it"
        self._newest = newest
        return None

    def begin_anew(self) -> None:
        """Take the database as it is now for the truth."""
        self._newest = None


def _newest(connection: Connection) -> _Newest | None:
    run, acquisition = schema.run.c, schema.acquisition.c
    query = select(run.id, acquisition.content_id, run.finished_at).join(
        schema.acquisition, acquisition.id == run.acquisition_id
    )
    row = connection.execute(query.order_by(run.id.desc()).limit(1)).first()
    if row is None:
        return None
    relation = 0
    if connection.dialect.name == "postgresql":  # a table that was dropped and made again has another number
        relation = int(connection.execute(text("SELECT CAST(CAST('run' AS regclass) AS oid)")).scalar_one())
    head = connection.execute(text("SELECT last_id, row_hash FROM audit_head WHERE name = 'event'")).one()
    return _Newest(int(row.id), row.content_id, row.finished_at, relation, int(head.last_id), str(head.row_hash))


def _follows(newest: _Newest | None, before: _Newest) -> bool:
    if newest is None or newest.relation != before.relation or newest.run_id < before.run_id:
        return False
    # Not by its time: an outcome that was opened again is replaced in its own row.
    return newest.run_id > before.run_id or newest.content_id == before.content_id


def _was_replaced(connection: Connection, before: _Newest) -> bool:
    """True when the journal, which goes on from where it was known, says that outcomes were replaced or taken back since."""
    query = text("SELECT row_hash FROM event WHERE id = :id")
    known = connection.execute(query, {"id": before.event_id}).scalar() if before.event_id else before.event_hash
    later = text("SELECT 1 FROM event WHERE id > :id AND kind = 'outcome_replaced' LIMIT 1")
    return known == before.event_hash and connection.execute(later, {"id": before.event_id}).first() is not None
