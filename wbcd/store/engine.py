"""Connections of the writer: durable settings on both databases, and one writing process at a time on SQLite.

SQLite 3.7.0 to 3.51.2 can damage a database when two connections write and reset the log at the same moment; a lock
file beside the database, held for the length of each transaction, keeps a second wbcd process out without ending it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from wbcd.errors import DatabaseUnavailable
from wbcd.store import answers
from wbcd.store.urls import Target

BUSY_TIMEOUT_S: Final = 15.0
"""How long a transaction waits for another writer before it is given up."""

JOURNAL_LIMIT_BYTES: Final = 64 * 2**20
"""The write-ahead log is cut back to this after a checkpoint; without it, it keeps its largest size for ever."""

READ_ONLY: Final = {"wbcd_read": True}

_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a committed row survives a power cut, not only kill -9
    f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
    f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
)

_LIBPQ: Final = {
    "application_name": "wbcd",
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms: a server that has vanished is noticed, not waited for
}


def make_engine(target: Target, *, answer_s: float | None = None) -> Engine:
    """One connection to the target, set up to be durable. Nothing is opened yet.

    ``answer_s``: longest wait for one answer of PostgreSQL; None for migrations, which take as long as they take.
    """
    return _sqlite_engine(target) if target.kind == "sqlite" else _postgres_engine(target, answer_s)


def abandon(engine: Engine) -> None:
    """Close an SQLite engine whose file is not at its path any more, and touch nothing that lies there now.

    A last connection that closes writes its log into the file and removes the log by name. SQLite itself refrains where the
    file has moved; where another was copied over its bytes it would write the old log over them. It refrains as long as another
    connection is open, so the one that reads goes last; that one has no right to write.
    """
    keeper = _KEEPERS.pop(engine, None)
    last = keeper.taken() if keeper is not None else None  # so that closing the writer does not close it first
    engine.dispose()
    if last is not None:
        last.close()


class _Keeper:
    """A second connection of an SQLite engine, which may only read, open as long as the writer's."""

    def __init__(self, path: Path) -> None:
        self._uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        self._connection: sqlite3.Connection | None = None

    def open(self, *_: object) -> None:
        self._connection = sqlite3.connect(self._uri, uri=True, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
        self._connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # takes its lock, and no snapshot

    def close(self, *_: object) -> None:
        connection = self.taken()
        if connection is not None:
            connection.close()

    def taken(self) -> sqlite3.Connection | None:
        connection, self._connection = self._connection, None
        return connection


_KEEPERS: Final[weakref.WeakKeyDictionary[Engine, _Keeper]] = weakref.WeakKeyDictionary()


class WriterLock:
    """Keeps other wbcd processes out of an SQLite file during a transaction; nothing for other targets."""

    def __init__(self, target: Target, *, timeout_s: float = BUSY_TIMEOUT_S, poll_s: float = 0.01) -> None:
        self._path = None if target.path is None else Path(f"{target.path}.lock")
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._handle: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises :class:`DatabaseUnavailable` when another process does not let go in time."""
        if self._path is None:
            yield
            return
        handle = self._open(self._path)
        self._take(handle, self._path)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file; it stays, for removing it would race with another process."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self, path: Path) -> int:
        if self._handle is None:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self._handle

    def _take(self, handle: int, path: Path) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not _flock_now(handle):
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"{path}: another wbcd process has been writing for {self._timeout_s:g} s.")
            time.sleep(self._poll_s)


def _flock_now(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def to_json(value: Any) -> str:
    """One line, sorted keys; a number that is not finite is an error here (the rows have been cleaned before)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sqlite_engine(target: Target) -> Engine:
    # The ledger serialises its callers, so the connection may be used from whichever thread holds the lock.
    engine = create_engine(
        target.sqlalchemy_url,
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
        json_serializer=to_json,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    if target.path is not None:
        keeper = _KEEPERS[engine] = _Keeper(target.path)
        event.listen(engine, "connect", keeper.open)
        event.listen(engine, "close", keeper.close)  # before the writer's, which then writes its log into the file
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin on its own: see _begin_sqlite
    for pragma in _PRAGMAS:
        connection.execute(pragma).fetchall()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns from reading to writing fails at once when another writes, whatever busy_timeout says.
    reading = connection.get_execution_options().get("wbcd_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _postgres_engine(target: Target, answer_s: float | None) -> Engine:
    dsn = target.dsn or ""
    engine = create_engine(
        target.sqlalchemy_url,
        pool_size=1,
        max_overflow=0,
        pool_pre_ping=True,
        creator=lambda: answers.connect(dsn, answer_s=answer_s, **_LIBPQ),
        json_serializer=to_json,
    )
    event.listen(engine, "connect", _prepare_postgres)
    return engine


def _prepare_postgres(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit = 'on'")  # a server-wide "off" would break the promise of durability
        cursor.execute("SET lock_timeout = '20s'")  # below ANSWER_S: a lock is told as a lock
        cursor.execute("SET TIME ZONE 'UTC'")
    connection.commit()


class Retry:
    """Tries work again while the database does not answer: 0.05, 0.1, 0.2 ... 2 s apart, for ``patience_s`` in all."""

    FIRST_S: Final = 0.05
    LONGEST_S: Final = 2.0

    def __init__(
        self,
        patience_s: float,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience_s = patience_s
        self._sleep = sleep
        self._clock = clock

    def delays(self) -> Iterator[float]:
        """The waits between tries, ending when the next would outlast the patience."""
        deadline = self._clock() + self._patience_s
        delay = self.FIRST_S
        while self._clock() + delay <= deadline:
            yield delay
            delay = min(2 * delay, self.LONGEST_S)

    def wait(self, delay_s: float) -> None:
        """Sleep, by the injected clock."""
        self._sleep(delay_s)
