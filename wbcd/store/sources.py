"""The statements about source files: what each path held when it was last looked at, within the transaction of the caller.

A file's key is the machine and the path: two instruments may well write to ``D:\\data\\0001.h5``. Rows of before machines were
told apart have no machine; whoever looks at such a path first takes the row over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, or_, select, update

from wbcd.records import differ
from wbcd.store import chain, schema
from wbcd.store.outcomes import end_tries, event_row, insert, journal, reopen

CHANGED_AFTER_COUNT: Final = "changed_after_count"
COMPANIONS_CHANGED: Final = "companions_changed"


def remember(connection: Connection, row: Mapping[str, Any]) -> None:
    """Write down what a path holds; tell what has changed since it was counted."""
    table = schema.source_file
    before = _before(connection, row["host"], row["path"])
    changed = before is not None and before.content_id != row["content_id"]
    # Bytes that cannot be read now are no other bytes.
    if changed and not row["content_id"].startswith("unread-") and _has_outcome(connection, before.content_id):
        _journal_change(connection, row, before.content_id)
    if row["host"]:
        connection.execute(delete(table).where(table.c.host == "", table.c.path == row["path"]))
    new = insert(connection, table).values(dict(row))
    others = {name: new.excluded[name] for name in row if name not in ("host", "path")}
    connection.execute(new.on_conflict_do_update(index_elements=[table.c.host, table.c.path], set_=others))
    if changed:
        close_abandoned(connection, row["host"], before.content_id)
    if row["companions"]:
        _judge_companions(connection, row, None if before is None else before.companions)


def forget(connection: Connection, host: str, path: str) -> None:
    """The file is gone; content that lies nowhere else is in hand no longer."""
    table = schema.source_file
    mine = and_(table.c.host.in_(("", host)), table.c.path == path)
    for content_id in connection.execute(delete(table).where(mine).returning(table.c.content_id)).scalars().all():
        close_abandoned(connection, host, content_id)


def close_abandoned(connection: Connection, host: str, content_id: str) -> None:
    """Content that no file holds any more can never reach its outcome: it must not stand in the backlog for ever.

    What another machine has begun is that machine's to close.
    """
    held = select(schema.source_file.c.path).where(schema.source_file.c.content_id == content_id).limit(1)
    acquisition = schema.acquisition.c
    ours = select(acquisition.id).where(
        acquisition.content_id == content_id, or_(acquisition.begun_host.is_(None), acquisition.begun_host == host)
    )
    if connection.execute(held).first() is None and connection.execute(ours).first() is not None:
        end_tries(connection, content_id)


def _before(connection: Connection, host: str, path: str) -> Any:
    """The machine's own row; on PostgreSQL a row of no machine says nothing of a change, for it may be another's."""
    table = schema.source_file.c
    query = select(table.content_id, table.companions).where(table.host == host, table.path == path)
    return connection.execute(query).first()


def _has_outcome(connection: Connection, content_id: str) -> bool:
    run, acquisition = schema.run, schema.acquisition
    query = select(run.c.id).join(acquisition, acquisition.c.id == run.c.acquisition_id)
    return connection.execute(query.where(acquisition.c.content_id == content_id).limit(1)).first() is not None


def _journal_change(connection: Connection, row: Mapping[str, Any], before: str) -> None:
    message = f"{row['path']} was rewritten after it had been counted; the count of its earlier content stands."
    details = {"path": row["path"], "content_id": row["content_id"], "counted_content_id": before, "host": row["host"]}
    values = event_row(row["seen_at"], CHANGED_AFTER_COUNT, message, details, code="input.changed_after_count")
    chain.append(connection, schema.event, values)


def _judge_companions(connection: Connection, row: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    """Companions that differ from those an outcome was made with: nothing counted is opened again, what counts is flagged."""
    run, acquisition = schema.run.c, schema.acquisition.c
    query = (
        select(run.id, run.outcome, run.companions, acquisition.path, acquisition.id.label("acquisition_id"))
        .join(schema.acquisition, acquisition.id == run.acquisition_id)
        .where(acquisition.content_id == row["content_id"], run.reopened_at.is_(None))
    )
    now = row["companions"]
    found = [one for one in connection.execute(query) if differ(one.companions, now)]
    again = [one.id for one in found if one.outcome != "measured"]
    if again:
        reopen(connection, again, row["seen_at"], f"{row['path']}: its companions came or changed")
    counted = [one for one in found if one.outcome == "measured" and one.companions is not None and one.path == row["path"]]
    marked = update(schema.run).where(run.id.in_([one.id for one in counted]), run.companions_changed_at.is_(None))
    if counted:
        connection.execute(marked.values(companions_changed_at=row["seen_at"]))
    if counted and before != now:
        names = sorted({name for one in counted for name in now if differ(one.companions, {name: now[name]})})
        journal(
            connection,
            row["seen_at"],
            COMPANIONS_CHANGED,
            f"{row['path']}: {', '.join(names)} changed after it had been counted; the count stands until "
            "`wbcd reprocess` replaces it.",
            path=row["path"],
            content_id=row["content_id"],
            companions=names,
        )
