"""Least privilege on PostgreSQL: who may do what, and the SQL that makes it so.

    wbcd_owner      owns the schema and migrates it (`wbcd db upgrade`); no daemon logs in with it
    wbcd_daemon     stores outcomes and keeps its own books; a result is replaced only where its outcome was opened again
    wbcd_reader     reads the views, nothing else
    wbcd_reviewer   reads the views, adds reviews and labels of samples; sees no other person's
    wbcd_auditor    reads everything: `wbcd verify`, `wbcd status`, exports, pg_dump

People and further daemons get a login of their own in one of these roles:
CREATE ROLE alice LOGIN PASSWORD '...' IN ROLE wbcd_reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, text

from wbcd.store.views import VIEWS

OWNER: Final = "wbcd_owner"
ROLES: Final[Mapping[str, str]] = {
    OWNER: "LOGIN",
    "wbcd_daemon": "LOGIN",
    "wbcd_reader": "NOLOGIN",
    "wbcd_reviewer": "NOLOGIN",
    "wbcd_auditor": "NOLOGIN",
}

_NUMBERED: Final = ("sample", "acquisition", "run", "cell", "prediction", "event", "review", "sample_label")
"""Tables whose ids come from a sequence."""

_SEQUENCES: Final = tuple(f"{name}_id_seq" for name in _NUMBERED)
_VIEWS: Final = tuple(VIEWS)
_TABLES: Final = (*_NUMBERED, "recipe", "model", "source_file", "audit_head", "alembic_version")

GRANTS: Final[Mapping[str, Sequence[tuple[str, tuple[str, ...]]]]] = {
    "wbcd_daemon": (
        ("SELECT", (*_VIEWS, *_TABLES)),
        ("INSERT", ("sample", "recipe", "model", "acquisition", "run", "cell", "prediction", "event", "source_file")),
        # Of run: opening an outcome again, and replacing it then; the database refuses both verbs for one that stands
        # (wbcd.store.views.result_guards), so the daemon's rights over results end where its outcome was not opened again.
        ("UPDATE", ("acquisition", "source_file", "run")),
        # A note of which path holds which content, no result: no row refers to it. What leaves the folder must leave the table
        # (Ledger.gone), else it stands in the view `backlog` as waiting for ever.
        ("DELETE", ("source_file", "acquisition", "run", "cell", "prediction")),
    ),
    "wbcd_reader": (("SELECT", _VIEWS),),
    "wbcd_reviewer": (
        ("SELECT", (*_VIEWS, "alembic_version")),
        ("SELECT (id, name)", ("sample",)),  # to find the sample that is labelled
        # `wbcd label` is a person's word, as `wbcd review` is, on all cells of a sorted sample; both append-only and chained.
        ("INSERT", ("review", "sample_label")),
    ),
    "wbcd_auditor": (("SELECT", (*_VIEWS, *_TABLES, *_SEQUENCES)),),  # pg_dump reads the sequences too
}


def roles_sql() -> str:
    """Everything for ``psql -f`` as a superuser, in the database of wbcd; running it again changes nothing."""
    return "\n".join((_HEAD, *_create(), "", *_schema_rights(), "", _GRANTS_HEAD, *_if_made(), _FOOT)) + "\n"


def grant_known(connection: Connection) -> list[str]:
    """Grant the roles that exist what they need, as the schema's owner after a migration; gives their names.

    Nothing on SQLite, nor for a role that was not made: without roles, whoever owns the schema does everything.
    """
    if connection.dialect.name != "postgresql":
        return []
    if connection.execute(text("SELECT to_regclass('audit_head') IS NULL")).scalar():  # an early revision
        return []
    found = connection.execute(text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'wbcd%'")).scalars().all()
    known = [role for role in GRANTS if role in found]
    for role in known:
        for statement in grants_of(role):
            connection.exec_driver_sql(statement)
    return known


def grants_of(role: str) -> Iterator[str]:
    """The statements for one role: first nothing is allowed, then what :data:`GRANTS` names."""
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}"
    yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {role}"
    for right, relations in GRANTS[role]:
        yield f"GRANT {right} ON {', '.join(relations)} TO {role}"
        if right == "INSERT":
            numbered = [f"{name}_id_seq" for name in relations if name in _NUMBERED]
            yield f"GRANT USAGE ON SEQUENCE {', '.join(numbered)} TO {role}"


_HEAD: Final = """\
-- Least privilege on PostgreSQL. Written by `wbcd db roles`; run it as a superuser in the database of wbcd:
--   wbcd db roles | psql -d wbcd
-- then give the two that log in their passwords (\\password wbcd_owner, \\password wbcd_daemon) and, as the owner,
--   wbcd db upgrade --db postgresql://wbcd_owner@localhost/wbcd
-- which makes the tables and grants the rest. Running either again changes nothing.
"""

_GRANTS_HEAD: Final = """\
-- Only when the tables are there already; `wbcd db upgrade` does the same after every migration.
DO $$
BEGIN
  IF to_regclass('public.audit_head') IS NOT NULL THEN"""

_FOOT: Final = """\
  END IF;
END
$$;"""


def _create() -> Iterator[str]:
    yield "DO $$\nBEGIN"
    for role, login in ROLES.items():
        yield f"  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} {login}; END IF;"
    yield "END\n$$;"


def _schema_rights() -> Iterator[str]:
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
    yield f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER};"
    yield f"GRANT USAGE ON SCHEMA public TO {', '.join(role for role in ROLES if role != OWNER)};"


def _if_made() -> Iterator[str]:
    for role in GRANTS:
        yield from (f"    {statement};" for statement in grants_of(role))
