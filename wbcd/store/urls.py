"""Database URLs: ``sqlite:///file``, ``postgresql://user@host/name``, or a bare path (SQLite). Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from wbcd.errors import StoreError

MEMORY = ":memory:"
_POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True, slots=True)
class Target:
    """A database to open. ``path`` is None for PostgreSQL and for SQLite in memory; ``dsn`` is for libpq."""

    kind: Literal["sqlite", "postgresql"]
    path: Path | None = None
    dsn: str | None = None

    @property
    def in_memory(self) -> bool:
        """SQLite that vanishes when it is closed."""
        return self.kind == "sqlite" and self.path is None

    @property
    def sqlalchemy_url(self) -> str:
        """The form that SQLAlchemy takes; PostgreSQL through psycopg 3."""
        if self.dsn is not None:
            return "postgresql+psycopg" + self.dsn[len("postgresql") :]
        return f"sqlite:///{self.path if self.path is not None else MEMORY}"

    @property
    def display(self) -> str:
        """For messages: never with a password."""
        if self.dsn is not None:
            return _without_password(self.dsn)
        return str(self.path) if self.path is not None else "sqlite in memory"


def parse_url(url: str | Path) -> Target:
    """Read a URL or a path. Raises :class:`StoreError` for another kind of database."""
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _sqlite(text)
    if scheme == "sqlite":
        return _sqlite(unquote(rest.removeprefix("/").partition("?")[0]) or MEMORY)
    if scheme in _POSTGRES_SCHEMES:
        return Target("postgresql", dsn=f"postgresql://{rest}")
    raise StoreError(
        f"The database URL begins with {scheme!r}; only sqlite and postgresql are known.",
        action="Write sqlite:///FILE (four slashes for an absolute path) or postgresql://USER@HOST/NAME.",
    )


def _sqlite(text: str) -> Target:
    return Target("sqlite", path=None if text == MEMORY else Path(text))


def _without_password(dsn: str) -> str:
    parts = urlsplit(dsn)
    user, at, host = parts.netloc.rpartition("@")
    query = [(key, value) for key, value in parse_qsl(parts.query) if key not in ("password", "sslpassword")]
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}", query=urlencode(query, safe="/")))
