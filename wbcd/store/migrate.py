"""Schema revisions, through alembic. The scripts lie in ``alembic/`` of a checkout and in the installed package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from alembic import command
from wbcd.errors import SchemaMismatch
from wbcd.store.answers import READER_ANSWER_S
from wbcd.store.engine import WriterLock, make_engine
from wbcd.store.failures import foreign_errors
from wbcd.store.roles import grant_known
from wbcd.store.schema import SCHEMA_REVISION
from wbcd.store.standing import UseLock
from wbcd.store.urls import parse_url

_HERE: Final = Path(__file__).resolve().parent
_PLACES: Final = (_HERE / "migrations", _HERE.parents[1] / "alembic")

_POSTGRES_LOCK: Final = 0x77626364  # "wbcd": two daemons that start together migrate one after the other


def script_folder() -> Path:
    """Where the migration scripts are. Raises :class:`SchemaMismatch` when the installation lacks them."""
    for place in _PLACES:
        if (place / "env.py").is_file():
            return place
    raise SchemaMismatch(
        f"The migration scripts are in neither {_PLACES[0]} nor {_PLACES[1]}.",
        action="Install wbcd again: its wheel carries them.",
    )


def upgrade(url: str, revision: str = "head") -> str:
    """Bring the database at ``url`` to ``revision``, making it if it is not there. Gives the revision it now has."""
    return _migrate(url, revision, up=True)


def downgrade(url: str, revision: str) -> str:
    """Take the database back to ``revision`` ("base" removes everything). Data of the later revisions is lost."""
    return _migrate(url, revision, up=False)


def current_revision(url: str) -> str | None:
    """The revision that the database at ``url`` has; None when it is empty. Raises StoreError when it does not answer."""
    target = parse_url(url)
    if target.path is not None and not target.path.exists():
        return None
    engine = make_engine(target, answer_s=READER_ANSWER_S)
    try:
        with foreign_errors(target), engine.connect() as connection:
            return revision_of(connection)
    finally:
        engine.dispose()


def revision_of(connection: Connection) -> str | None:
    """The revision that an open database has; None when it is empty."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def upgrade_connection(connection: Connection, revision: str = "head") -> None:
    """Run the missing migrations inside the transaction that ``connection`` is in; :func:`serialise` first."""
    command.upgrade(_config(connection), revision)


def serialise(connection: Connection) -> None:
    """Wait for another daemon that makes or changes the schema, until this transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})


def validate(connection: Connection, place: str) -> None:
    """Raise :class:`SchemaMismatch` unless the database has exactly the revision that this wbcd writes to."""
    found = revision_of(connection)
    if found == SCHEMA_REVISION:
        return
    if found is None:
        raise SchemaMismatch(f"{place}: holds no wbcd schema; revision {SCHEMA_REVISION} is needed.")
    raise SchemaMismatch(
        f"{place}: has schema revision {found}; this wbcd needs {SCHEMA_REVISION}.",
        action="Run `wbcd db upgrade` (on PostgreSQL as the schema's owner) if the database is older; install the newer wbcd "
        "if it is not.",
    )


def demand_rights(connection: Connection, place: str) -> None:
    """Raise :class:`SchemaMismatch` when this PostgreSQL role may not make a schema: the daemon's own role should not."""
    if connection.dialect.name != "postgresql":
        return
    query = text("SELECT current_user, COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE)")
    role, may_create = connection.execute(query).one()
    if not may_create:
        raise SchemaMismatch(
            f"{place}: holds no wbcd schema, and the role {role!r} may not make one.",
            action="Run `wbcd db upgrade` once as the owner (docs/how-to/use-postgresql.md).",
        )


def _migrate(url: str, revision: str, *, up: bool) -> str:
    target = parse_url(url)
    engine, lock, in_use = make_engine(target), WriterLock(target), UseLock(target)
    try:
        in_use.share()
        with foreign_errors(target), lock.held(), engine.begin() as connection:
            serialise(connection)
            (command.upgrade if up else command.downgrade)(_config(connection), revision)
            if up:
                grant_known(connection)
            return revision_of(connection) or "base"
    finally:
        engine.dispose()
        lock.close()
        in_use.close()


def _config(connection: Connection) -> Config:
    config = Config(stdout=io.StringIO())  # alembic must not write on the terminal of the caller
    config.set_main_option("script_location", str(script_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
