"""Connections to PostgreSQL that do not wait for ever: a limit on the client's side for each statement, and for connecting.

A server that has hung (its back end stopped, its disk does not return) still answers the kernel's keepalives, and its own
``statement_timeout`` hangs with it. So the waiting side has a limit of its own: after it the connection is closed and an
OperationalError without SQLSTATE is raised, as for a lost one. psycopg is imported here on the first use only.
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from wbcd.errors import StoreError

CONNECT_S: Final = 5
"""Longest wait for a connection, the server's greeting included (libpq's ``connect_timeout``: whole seconds)."""

ANSWER_S: Final = 30.0
"""Longest wait of the writer for one answer; above its ``lock_timeout``, so that a lock is told as a lock."""

READER_ANSWER_S: Final = 10.0
"""The same for a reading verb: `wbcd status` must end."""


def connect(dsn: str, *, answer_s: float | None, **libpq: Any) -> Any:
    """A psycopg connection whose every answer comes within ``answer_s`` (None: no limit, for migrations), or which is closed.

    Raises :class:`StoreError` without psycopg, psycopg's OperationalError when there is no server.
    """
    connection = _limited().connect(dsn, **{"connect_timeout": CONNECT_S, **libpq})
    connection.answer_s = answer_s
    for loader in _bounded_times():
        connection.adapters.register_loader("timestamptz", loader)
    return connection


def within(
    waiting: Generator[Any, Any, Any],
    limit_s: float,
    late: Callable[[], BaseException],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Any, Any, Any]:
    """The same waiting, ended by ``late()`` once nothing has come for ``limit_s``.

    It is asked only when nothing is ready: after a process was itself stopped for an hour, an answer that lies there is taken.
    """
    deadline = clock() + limit_s
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and clock() > deadline:
                raise late()
            wanted = waiting.send(ready)
    except StopIteration as end:
        return end.value


@functools.cache
def _limited() -> Any:
    try:
        psycopg = importlib.import_module("psycopg")
    except ModuleNotFoundError as error:
        raise StoreError(
            "PostgreSQL needs the psycopg driver.", action="Install it with: pip install 'wbcd[postgres]'."
        ) from error

    class NoAnswer(psycopg.OperationalError):  # type: ignore[name-defined, misc]
        """The limit of a wait is over."""

    class Connection(psycopg.Connection):  # type: ignore[name-defined, misc]
        """Every wait of a psycopg connection goes through :meth:`wait`."""

        answer_s: float | None = None

        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
            limit_s = self.answer_s
            if limit_s is None:
                return super().wait(gen, *args, **options)
            late = functools.partial(NoAnswer, f"the server has not answered for {limit_s:g} s; the connection is given up")
            try:
                return super().wait(within(gen, limit_s, late), *args, **options)
            except NoAnswer:
                self.pgconn.finish()  # in the middle of an answer it is of no use; a rollback would wait again
                raise

    return Connection


@functools.cache
def _bounded_times() -> tuple[Any, ...]:
    """Loaders for which a time beyond Python's years (infinity, 44 BC: a person's INSERT may hold it) is the last or the first.

    As psycopg has it, one such row would end every reading of its table.
    """
    psycopg = importlib.import_module("psycopg")
    times = importlib.import_module("psycopg.types.datetime")
    last, first = (dt.datetime.max.replace(tzinfo=dt.UTC), dt.datetime.min.replace(tzinfo=dt.UTC))

    class Text(times.TimestamptzLoader):  # type: ignore[name-defined, misc]
        def load(self, data: Any) -> Any:
            try:
                return super().load(data)
            except psycopg.DataError:
                said = bytes(data)
                return first if said.startswith(b"-") or said.endswith(b"BC") else last

    class Binary(times.TimestamptzBinaryLoader):  # type: ignore[name-defined, misc]
        def load(self, data: Any) -> Any:
            try:
                return super().load(data)
            except psycopg.DataError:
                return first if int.from_bytes(bytes(data), "big", signed=True) < 0 else last

    return Text, Binary
