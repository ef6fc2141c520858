"""The hash chain of the append-only tables: each row carries the hash of the row before it and its own.

    row_hash = SHA-256 of the canonical text, in hex
    canonical text = JSON array ["review", "<id>", "<previous_hash>", column, column, ...] of texts and nulls

The columns are those of :data:`CHAINED`, in that order: text as it is, whole numbers in digits, a double as the 16 digits of
its IEEE 754 bytes, a time as ISO 8601 with microseconds and Z, JSON as the database shows it as text. The JSON array is
written with ", " between items and without escapes for what is not ASCII: so PostgreSQL writes ``jsonb`` and Python
``json.dumps(..., ensure_ascii=False)``, byte for byte. On PostgreSQL a trigger computes it, so that a row inserted by hand is
chained like any other; SQLite has no SHA-256, so there the ledger computes it, and a trigger refuses a row that does not
follow the last one. SHA-256 because both have it (docs/decisions/0028).

The table ``audit_head`` holds the last id and hash of each chain: without it, rows cut off the end would not be missed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, select, text

from wbcd.store import schema
from wbcd.store.views import UTC_TEXT

Kind = Literal["text", "number", "double", "time", "json"]

CHAINED: Final[Mapping[str, Mapping[str, Kind]]] = {
    "event": {"at": "time", "kind": "text", "code": "text", "message": "text", "details": "json"},
    "review": {"cell_id": "number", "reviewer": "text", "label": "text", "note": "text", "at": "time"},
    "sample_label": {
        "sample_id": "number",
        "label": "text",
        "purity": "double",
        "labelled_by": "text",
        "note": "text",
        "at": "time",
    },
}
"""Table -> column -> how its value is written in the canonical text."""

GENESIS: Final = "0" * 64
"""The previous hash of a first row."""

PAGE_ROWS: Final = 1000

RECENT_ROWS: Final = 100
"""A row whose acknowledgement was lost is looked for among so many at the end: others write meanwhile, but not more."""

_AS_TEXT: Final[Mapping[str, Mapping[Kind, str]]] = {
    "sqlite": {
        "text": "{0}",
        "number": "CAST({0} AS TEXT)",
        "double": "{0}",  # SQLite's text of a double is shortened; Python writes its bytes
        "time": "{0}",
        "json": "CAST({0} AS TEXT)",
    },
    "postgresql": {
        "text": "{0}",
        "number": "CAST({0} AS TEXT)",
        "double": "{0}",
        "time": "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        "json": "CAST({0} AS TEXT)",
    },
}


@dataclass(frozen=True, slots=True)
class Link:
    """One row of a chain as it is stored. ``values`` in the order of :data:`CHAINED`, as texts."""

    table: str
    row_id: int
    values: tuple[str | None, ...]
    previous_hash: str | None
    row_hash: str | None

    def expected_hash(self) -> str:
        """What ``row_hash`` must be for these values and this predecessor."""
        return row_hash(self.table, self.row_id, self.previous_hash, self.values)


@dataclass(frozen=True, slots=True)
class Head:
    """The last row that a chain has had, by ``audit_head``; id 0 and :data:`GENESIS` of an empty one."""

    table: str
    last_id: int
    row_hash: str


def canonical_text(table: str, row_id: int, previous_hash: str | None, values: Sequence[str | None]) -> str:
    """The text that is hashed."""
    return json.dumps([table, str(row_id), previous_hash, *values], ensure_ascii=False)


def row_hash(table: str, row_id: int, previous_hash: str | None, values: Sequence[str | None]) -> str:
    """SHA-256 of the canonical text in UTF-8, 64 hex digits."""
    said = canonical_text(table, row_id, previous_hash, values)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def value_text(value: Any, kind: Kind) -> str | None:
    """A value, as Python holds it or as :func:`links` reads it, in its canonical form."""
    if value is None or isinstance(value, str):
        return value
    if kind == "double":
        return struct.pack(">d", float(value)).hex()
    if kind == "time":
        return str(value.strftime(UTC_TEXT))
    if kind == "json":
        from wbcd.store.engine import to_json

        return to_json(value)
    return str(value)


def append(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Add a row to the end of its chain, in the transaction of ``connection``, which on SQLite holds the write lock already."""
    if connection.dialect.name == "postgresql":  # the trigger chains it, whoever inserts
        connection.execute(table.insert().inline(), dict(row))  # without RETURNING, which a reviewer may not
        return
    head = read_head(connection, table.name)
    row_id = head.last_id + 1
    values = tuple(value_text(row.get(column), kind) for column, kind in CHAINED[table.name].items())
    links_to = {"previous_hash": head.row_hash, "row_hash": row_hash(table.name, row_id, head.row_hash, values)}
    connection.execute(table.insert(), {**row, "id": row_id, **links_to})


def holds(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Is this very row, to the microsecond, among the last of its chain? False for a role that may not read the table."""
    if connection.dialect.name == "postgresql":
        readable = text("SELECT has_table_privilege(:table, 'SELECT') AND has_table_privilege('audit_head', 'SELECT')")
        if not connection.execute(readable, {"table": table.name}).scalar():
            return False
    plain = [name for name, kind in CHAINED[table.name].items() if kind != "json"]
    same = [table.c[name].is_not_distinct_from(row.get(name)) for name in plain]
    recent = table.c.id > read_head(connection, table.name).last_id - RECENT_ROWS
    return connection.execute(select(table.c.id).where(recent, *same).limit(1)).first() is not None


def read_head(connection: Connection, table: str) -> Head:
    """The recorded end of a chain; an absent record reads as an empty chain's, which verification then finds wrong."""
    query = select(schema.audit_head.c.last_id, schema.audit_head.c.row_hash).where(schema.audit_head.c.name == table)
    found = connection.execute(query).first()
    return Head(table, 0, GENESIS) if found is None else Head(table, int(found.last_id), str(found.row_hash))


def links(connection: Connection, table: str, *, after: int = 0, limit: int = PAGE_ROWS) -> Iterator[Link]:
    """Rows of a chain by id, at most ``limit`` of them."""
    kinds = CHAINED[table]
    shown = _AS_TEXT[connection.dialect.name]
    columns = ", ".join(shown[kind].format(f'"{column}"') for column, kind in kinds.items())
    query = f"SELECT id, previous_hash, row_hash, {columns} FROM {table} WHERE id > :after ORDER BY id LIMIT :limit"
    for row_id, previous_hash, own_hash, *values in connection.execute(text(query), {"after": after, "limit": limit}):
        texts = tuple(value_text(value, kind) for value, kind in zip(values, kinds.values(), strict=True))
        yield Link(table, int(row_id), texts, previous_hash, own_hash)
