"""Foreign database errors become ours, in one place, with the cause kept. Standard library only.

disk full (SQLITE_FULL, PostgreSQL class 53100, ENOSPC, EDQUOT, EFBIG)       -> NoSpace
no answer (busy, locked, cannot open, I/O error, PostgreSQL classes 08, 57P) -> DatabaseUnavailable
serialisation failure, deadlock (40001, 40P01), too many connections (53300) -> DatabaseUnavailable
a table or column is absent                                                  -> SchemaMismatch
a role without the right (42501) or a refused password (28)                  -> NotPermitted, which says where rights come from
anything else (damage, a broken constraint)                                  -> StoreError
"""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wbcd.errors import DatabaseUnavailable, NoSpace, NotPermitted, SchemaMismatch, StoreError, no_room
from wbcd.store.urls import Target

MIN_FREE_BYTES = 4 * 2**20
"""Below this an input/output error of SQLite is read as a full disk: the write-ahead log could not grow."""

NEEDED_BYTES = 16 * 2**20
"""Below this the health check says NoSpace: room for the write-ahead log and some hundred outcomes."""

_SQLITE_SILENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM")
_SQLITE_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_PG_SILENT = ("08", "57P", "40001", "40P01", "53300", "55P03", "25006")
_PG_NO_RIGHT = ("42501", "28")
_PG_MISSING = ("42P01", "42703", "3F000")


def translate(error: BaseException, target: Target) -> StoreError:
    """Our error for a driver's, a file system's or a pool's. The caller raises it ``from`` the original."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, sqlite3.Error):
        return _from_sqlite(error, target)
    if isinstance(error, OSError):
        return from_os_error(error, target.display)
    return _from_postgres(error, target)


def from_os_error(error: OSError, place: str) -> StoreError:
    """Our error for a failed write to ``place``."""
    if no_room(error):
        return NoSpace(f"{place}: the disk is full ({error.strerror}).")
    return DatabaseUnavailable(f"{place}: {error.strerror or error}.")


@contextmanager
def foreign_errors(target: Target) -> Iterator[None]:
    """Map whatever a driver, or SQLAlchemy around it, raises inside. Our own errors pass unchanged."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise translate(error, target) from error
    except Exception as error:
        # SQLAlchemy and psycopg are not imported here (readers do without them), so their errors are known by their package.
        if not _is_foreign(error):
            raise
        raise translate(_driver_error(error), target) from error


def free_bytes(target: Target) -> int | None:
    """Space left to an unprivileged writer on the disk of an SQLite file; None where there is no file."""
    if target.path is None:
        return None
    try:
        room = os.statvfs(target.path.absolute().parent)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize


def _is_foreign(error: BaseException) -> bool:
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(packages & {"sqlalchemy", "psycopg", "alembic"})


def _driver_error(error: BaseException) -> BaseException:
    original = getattr(error, "orig", None)
    return original if isinstance(original, BaseException) else error


def _from_sqlite(error: sqlite3.Error, target: Target) -> StoreError:
    name = getattr(error, "sqlite_errorname", None) or ""
    text = f"{target.display}: {error}."
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _is_full(target)):
        return NoSpace(f"{target.display}: the disk of the database is full ({error}).")
    if name.startswith(_SQLITE_SILENT):
        return DatabaseUnavailable(text)
    if "no such table" in str(error) or "no such column" in str(error):
        return SchemaMismatch(text)
    if name.startswith(_SQLITE_DAMAGED):
        return StoreError(text, action="The file is no sound SQLite database: restore the last backup (docs/operations.md).")
    return StoreError(text)


def _is_full(target: Target) -> bool:
    free = free_bytes(target)
    return (free is not None and free < MIN_FREE_BYTES) or _at_its_limit(target)


def _at_its_limit(target: Target) -> bool:
    """True when the process may not write files longer than these are soon (``ulimit -f``): SQLite says only I/O error."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY or target.path is None:
        return False
    lengths = [path.stat().st_size for path in (target.path, Path(f"{target.path}-wal")) if path.exists()]
    return max(lengths, default=0) + MIN_FREE_BYTES > limit


def _from_postgres(error: BaseException, target: Target) -> StoreError:
    state = getattr(error, "sqlstate", None)
    text = f"{target.display}: {' '.join(str(error).split())}."
    if state == "53100":
        return NoSpace(f"{target.display}: the disk of the server is full ({' '.join(str(error).split())}).")
    if state in _PG_MISSING:
        return SchemaMismatch(text)
    if state is not None and state.startswith(_PG_NO_RIGHT):
        return NotPermitted(
            text, action="Log in as the role that may (docs/how-to/use-postgresql.md); `wbcd db roles` shows the grants."
        )
    if state is None and _is_connection_error(error):
        return DatabaseUnavailable(text)
    if state is not None and state.startswith(_PG_SILENT):
        return DatabaseUnavailable(text)
    return StoreError(text)


def _is_connection_error(error: BaseException) -> bool:
    """psycopg raises OperationalError without a state when the socket is gone; the pool raises TimeoutError."""
    return {kind.__name__ for kind in type(error).__mro__} & {"OperationalError", "TimeoutError"} != set()
