"""Foreign database errors become ours, in one place, with the cause kept. Standard library only.

disk full (SQLITE_FULL, ENOSPC, EDQUOT, EFBIG, PostgreSQL "room")       -> NoSpace
no answer (busy, locked, cannot open, I/O error, PostgreSQL "waits")    -> DatabaseUnavailable
a role without the right (PostgreSQL "rights")                          -> NoRight
a table or column is absent (PostgreSQL "schema")                       -> SchemaMismatch
anything else (damage, a refused password, a broken constraint)         -> StoreError

PostgreSQL's codes are in one table, :mod:`wbcd.store.sqlstates`.
"""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wbcd.errors import DatabaseUnavailable, NoRight, NoSpace, SchemaMismatch, StoreError, no_room
from wbcd.store.sqlstates import disposition
from wbcd.store.urls import Target

MIN_FREE_BYTES = 4 * 2**20
"""Below this an input/output error of SQLite is read as a full disk: the write-ahead log could not grow."""

NEEDED_BYTES = 16 * 2**20
"""Below this the health check says NoSpace: room for the write-ahead log and some hundred outcomes."""

_SQLITE_SILENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM")
_SQLITE_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_RIGHTS_HELP = "Log in as the role that may (docs/how-to/use-postgresql.md); `wbcd db roles` shows the grants."
_DAMAGE_HELP = "Restore the last sound backup: `wbcd db restore` (docs/how-to/back-up-and-restore.md)."


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
        raise translate(driver_error(error), target) from error


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


def driver_error(error: BaseException) -> BaseException:
    """What the driver raised, out of SQLAlchemy's wrapping."""
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
        return StoreError(text, action=f"The file is no sound SQLite database. {_DAMAGE_HELP}")
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
    said = " ".join(str(error).split())
    if state is None:
        # So too what a server says to a connection that it refuses: libpq passes on the text alone, without its code.
        return (DatabaseUnavailable if _is_connection_error(error) else StoreError)(f"{target.display}: {said}.")
    text = f"{target.display}: {said} (SQLSTATE {state})."
    match disposition(state):
        case "room":
            return NoSpace(f"{target.display}: the disk of the server is full ({said}).")
        case "waits":
            return DatabaseUnavailable(text)
        case "rights":
            return NoRight(text, action=_RIGHTS_HELP)
        case "schema":
            return SchemaMismatch(text)
        case "tells":
            return StoreError(text, action=_RIGHTS_HELP if state.startswith("28") else _DAMAGE_HELP)
    return StoreError(text)


def _is_connection_error(error: BaseException) -> bool:
    """psycopg raises OperationalError without a state when the socket is gone; the pool raises TimeoutError."""
    return {kind.__name__ for kind in type(error).__mro__} & {"OperationalError", "TimeoutError"} != set()
