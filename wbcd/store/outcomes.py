"""The statements behind the ledger's writing verbs that concern outcomes, each within the transaction of its caller.

A stored outcome stands. It is replaced only after it was opened again (``run.reopened_at``), in one transaction with the new
one, and the journal keeps what it was; the database itself refuses anything else (:func:`wbcd.store.views.result_guards`).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, and_, case, delete, exists, func, literal, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from wbcd import __version__
from wbcd.errors import NotStored, SameAcquisition
from wbcd.records import Acquisition, Measured, MeasuredCell, Outcome, SetAside, SourceFormat
from wbcd.store import chain, queries, rows, schema

REOPENED: Final = "outcome_reopened"
REPLACED: Final = "outcome_replaced"
KEPT: Final = "outcome_kept"
SAMPLE_CONFLICT: Final = "sample_conflict"
SAMPLE_MOVED: Final = "sample_moved"
WORKS_BY: Final = "works_by"

_VENDOR_EXPORT: Final = re.compile(r"(.+)_HT3D_[^_/]+\.tiff?", re.IGNORECASE)
"""The vendor's export of a TCF: ``NAME_HT3D_0.00.TIFF`` beside ``NAME.TCF``."""


@dataclass(frozen=True, slots=True)
class Key:
    """Under what an outcome is stored, when, and which limits of the site judged it."""

    recipe_id: str
    model_id: str
    now: dt.datetime
    conditions: Any = None


# --- small parts ----------------------------------------------------------------------------------------


def insert(connection: Connection, table: Table) -> Any:
    """INSERT that knows ON CONFLICT, in the connection's dialect."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert, unless a row of that key is there."""
    connection.execute(insert(connection, table).values(row).on_conflict_do_nothing())


def event_row(
    at: dt.datetime, kind: str, message: str, details: Mapping[str, Any], *, code: str | None = None
) -> dict[str, Any]:
    """A row of ``event``, cleaned."""
    return {
        "at": at,
        "kind": rows.clean_text(kind),
        "code": rows.clean_optional(code),
        "message": rows.clean_text(message),
        "details": rows.clean_json(details),
    }


def journal(connection: Connection, at: dt.datetime, kind: str, message: str, **details: Any) -> None:
    """Append to the journal within the caller's transaction."""
    chain.append(connection, schema.event, event_row(at, kind, message, details))


def end_tries(connection: Connection, content_id: str) -> None:
    """It is in hand no longer."""
    table = schema.acquisition
    open_now = (table.c.tries > 0) | table.c.waits_for.is_not(None)
    connection.execute(update(table).where(table.c.content_id == content_id, open_now).values(tries=0, waits_for=None))


def sample_key(connection: Connection, name: str, now: dt.datetime) -> int:
    """The key of a sample, made when it is new."""
    clean = rows.clean_text(name)
    query = select(schema.sample.c.id).where(schema.sample.c.name == clean)
    found = connection.execute(query).scalar()
    if found is None:
        insert_new(connection, schema.sample, {"name": clean, "first_seen_at": now})
        found = connection.execute(query).scalar_one()
    return int(found)


# --- begin ----------------------------------------------------------------------------------------------


def count_try(connection: Connection, acquisition: Acquisition, token: str, now: dt.datetime, hand: Mapping[str, Any]) -> int:
    """Count a try; ``hand``: columns that say in whose hand it is. A path that still holds what was counted stays named."""
    table = schema.acquisition
    row = rows.acquisition_row(acquisition) | {
        "sample_id": sample_key(connection, acquisition.sample_id, now),
        "tries": 0,
        "first_seen_at": now,
    }
    insert_new(connection, table, row)
    ours = table.c.content_id == acquisition.content_id
    values = {"tries": table.c.tries + 1, "try_token": token, "begun_at": now, **hand}
    if not _path_stands(connection, acquisition.content_id):
        values["path"] = row["path"]
    connection.execute(update(table).where(ours, table.c.try_token.is_distinct_from(token)).values(values))
    return int(connection.execute(select(table.c.tries).where(ours)).scalar_one())


def _path_stands(connection: Connection, content_id: str) -> bool:
    """True when the path that the acquisition names still holds this content, and an outcome names it."""
    acquisition, file, run = schema.acquisition.c, schema.source_file.c, schema.run.c
    query = (
        select(acquisition.id)
        .join(schema.source_file, and_(file.path == acquisition.path, file.content_id == acquisition.content_id))
        .join(schema.run, run.acquisition_id == acquisition.id)
        .where(acquisition.content_id == content_id)
        .limit(1)
    )
    return connection.execute(query).first() is not None


# --- commit ---------------------------------------------------------------------------------------------


def same_acquisition(connection: Connection, outcome: Outcome, key: Key) -> Outcome | None:
    """The outcome in place of one whose acquisition is counted already in another format, by the instrument's own id.

    Only for what would be counted; None when it is the first. Of two that come at once the one that is stored second is told.
    """
    ticket = outcome.acquisition
    if not isinstance(outcome, Measured) or ticket.format is None:
        return None
    first = _counted_twin(connection, ticket, key)
    if first is None:
        return None
    message = (
        f"{ticket.path.name} is the same acquisition in another format, by {first.by}: {first.path} "
        f"(content {first.content_id}) is counted already."
    )
    return SetAside(ticket, SameAcquisition(message), outcome.seconds)


@dataclass(frozen=True, slots=True)
class _Twin:
    path: str
    content_id: str
    by: str


def _counted_twin(connection: Connection, ticket: Acquisition, key: Key) -> _Twin | None:
    """What is counted already of the same acquisition: by the instrument's own id, or by the vendor's names of its exports."""
    named = ticket.acquisition_id if _is_own_id(ticket.format, ticket.acquisition_id, ticket.path) else None
    stem = _vendor_stem(ticket.path)
    if connection.dialect.name == "postgresql":  # two that come at once: one after the other
        for lock in sorted({str(named), str(stem)}):
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:id))"), {"id": rows.clean_text(lock)})
    table, run = schema.acquisition, schema.run
    other = run.alias("other")
    here = and_(other.c.acquisition_id == table.c.id, other.c.recipe_id == key.recipe_id, other.c.model_id == key.model_id)
    folder = rows.clean_text(str(ticket.path.absolute().parent))
    beside = table.c.path.startswith(f"{folder}/", autoescape=True)
    meant = [beside] if stem is not None else []
    if named is not None:
        meant.append(table.c.instrument_acquisition_id == rows.clean_text(named))
    if not meant:
        return None
    query = (
        select(table.c.path, table.c.content_id, table.c.format, table.c.instrument_acquisition_id, table.c.instrument_id)
        .join(run, run.c.acquisition_id == table.c.id)
        .where(or_(*meant), table.c.content_id != ticket.content_id, table.c.format.is_not(None))
        .where(table.c.format != str(ticket.format), run.c.outcome == "measured")
        # Counted under this recipe and model, or not looked at under them yet: of two one always counts.
        .where(or_(and_(run.c.recipe_id == key.recipe_id, run.c.model_id == key.model_id), ~exists().where(here)))
        .order_by(run.c.id)
    )
    for row in connection.execute(query):
        path = Path(rows.raw_text(row.path))
        if stem is not None and path.parent == ticket.path.absolute().parent and _vendor_stem(path) == stem:
            return _Twin(row.path, row.content_id, "its name beside that of the vendor's file")
        own = named is not None and row.instrument_acquisition_id == rows.clean_text(named)
        # One instrument is called otherwise in each format; side by side the same id is the same acquisition all the same.
        same = row.instrument_id == rows.clean_optional(ticket.instrument_id)
        alike = same or None in (row.instrument_id, ticket.instrument_id) or path.parent == ticket.path.absolute().parent
        if own and alike and _is_own_id(row.format, rows.raw_text(row.instrument_acquisition_id), path):
            return _Twin(row.path, row.content_id, f"the instrument's id {ticket.acquisition_id!r}")
    return None


def _is_own_id(form: str | None, acquisition_id: str | None, path: Path) -> bool:
    """True for an id that the instrument gave; elsewhere the file's name stands in for one, which says nothing.

    wbcd's own format demands it; of the others an id that is the beginning of the name is the name's.
    """
    if not acquisition_id:
        return False
    return form == SourceFormat.HOLOGRAMS or not path.name.startswith(acquisition_id)


def _vendor_stem(path: Path) -> str | None:
    """``NAME`` of ``NAME.TCF`` and of ``NAME_HT3D_0.00.TIFF``, in small letters; None for another kind of name."""
    export = _VENDOR_EXPORT.fullmatch(path.name)
    if export is not None:
        return export[1].lower()
    return path.stem.lower() if path.suffix.lower() == ".tcf" else None


def store(connection: Connection, outcome: Outcome, key: Key) -> Outcome | None:
    """Insert the outcome, or put it in the place of one that was opened again; None when another stands."""
    content_id = outcome.acquisition.content_id
    _lock_acquisition(connection, content_id)
    run = schema.run
    query = queries.runs(content_id, key.recipe_id, key.model_id).add_columns(run.c.reopened_at)
    before = connection.execute(query).mappings().first()
    if before is not None and before["reopened_at"] is None:
        end_tries(connection, content_id)  # counted before: by a try whose acknowledgement was lost, or by another daemon
        return outcome if before["finished_at"] == key.now else None  # this very call, whose answer was lost
    if before is not None and (why := _stays(connection, before, outcome)) is not None:
        _keep(connection, before, outcome, key.now, why)
        return None
    alone = before is not None and _is_alone(connection, int(before["run_id"]), content_id)
    acquisition_key, tries = _close_acquisition(connection, outcome, key.now, may_change=alone)
    row = rows.run_row(outcome) | {
        "acquisition_id": acquisition_key,
        "recipe_id": key.recipe_id,
        "model_id": key.model_id,
        "tries": tries,
        "finished_at": key.now,
        "asked_at": key.now,
        "wbcd_version": __version__,
        "conditions": key.conditions if isinstance(outcome, SetAside) else None,
        "companions_changed_at": None,
        "reopened_at": None,
    }
    run_id = _insert_run(connection, row) if before is None else _replace_run(connection, before, row, key.now)
    if run_id is None:
        return None  # by another daemon, between the question above and now
    for cell in rows.cells_of(outcome):
        _store_cell(connection, run_id, cell)
    if before is None and rows.cells_of(outcome):  # of one try every volume that was kept has its row now
        table = schema.acquisition
        settled = update(table).where(table.c.id == acquisition_key, table.c.volumes_tries <= 1)
        connection.execute(settled.values(volumes_root=None, volumes_tries=0))
    return outcome


def _stays(connection: Connection, before: Mapping[Any, Any], outcome: Outcome) -> str | None:
    """Why an outcome that was opened again stays all the same; None when the new one takes its place."""
    if isinstance(outcome, SetAside) and before["outcome"] != "set_aside":
        return "its file could not be processed again"
    if _is_read(connection, int(before["run_id"])):
        return "a person has read one of its cells"
    return None


def _is_read(connection: Connection, run_id: int) -> bool:
    cell, review = schema.cell.c, schema.review
    query = select(review.c.id).join(schema.cell, cell.id == review.c.cell_id).where(cell.run_id == run_id).limit(1)
    return connection.execute(query).first() is not None


def _keep(connection: Connection, before: Mapping[Any, Any], outcome: Outcome, now: dt.datetime, why: str) -> None:
    """It is open no longer, and the journal says that it was tried."""
    connection.execute(update(schema.run).where(schema.run.c.id == before["run_id"]).values(reopened_at=None))
    end_tries(connection, outcome.acquisition.content_id)
    said = outcome.error.sentence() if isinstance(outcome, SetAside) else f"it would be {outcome.kind} now"
    message = f"{before['path']}: {before['outcome']} stays, for {why}: {said}"
    journal(connection, now, KEPT, message, content_id=before["content_id"], run=int(before["run_id"]))


def _lock_acquisition(connection: Connection, content_id: str) -> Any:
    """A content's row, or None; no other daemon changes it until this transaction ends."""
    table = schema.acquisition
    return connection.execute(select(table).where(table.c.content_id == content_id).with_for_update()).first()


def _is_alone(connection: Connection, run_id: int, content_id: str) -> bool:
    """True when no other outcome hangs on what the acquisition says of itself."""
    run, acquisition = schema.run, schema.acquisition
    query = select(run.c.id).join(acquisition, acquisition.c.id == run.c.acquisition_id)
    others = query.where(acquisition.c.content_id == content_id, run.c.id != run_id).limit(1)
    return connection.execute(others).first() is None


def _close_acquisition(connection: Connection, outcome: Outcome, now: dt.datetime, *, may_change: bool) -> tuple[int, int]:
    """Write down what reading has added to the ticket, and end its tries. Gives its key and the tries it took.

    What an outcome stands on never changes: once the file was read, its sample stays (another is told to the journal), and so
    do its optics (``may_change``: but for those of the only outcome there was, which is replaced now). A ticket that was not
    read (no format) knows nothing of either.
    """
    table, ticket = schema.acquisition, outcome.acquisition
    found = _lock_acquisition(connection, ticket.content_id)
    ended = {"tries": 0, "waits_for": None}
    values = rows.acquisition_row(ticket)
    if found is None:
        new = values | ended | {"sample_id": sample_key(connection, ticket.sample_id, now), "first_seen_at": now}
        statement = insert(connection, table).values(new)
        statement = statement.on_conflict_do_update(index_elements=["content_id"], set_={"tries": 0})
        return int(connection.execute(statement.returning(table.c.id)).scalar_one()), 0
    read_before = found.format is not None and _has_outcome(connection, int(found.id))
    stands = read_before and not may_change
    if ticket.format is not None and not stands:
        del values["path"]  # as begun: another copy may be the one that is named
        ended |= values
    if ticket.format is not None and not read_before:
        ended["sample_id"] = sample_key(connection, ticket.sample_id, now)
    elif ticket.format is not None:
        _tell_conflict(connection, ticket, int(found.sample_id), now)
    connection.execute(update(table).where(table.c.id == found.id).values(ended))
    return int(found.id), int(found.tries)


def _tell_conflict(connection: Connection, ticket: Acquisition, sample_id: int, now: dt.datetime) -> None:
    name = connection.execute(select(schema.sample.c.name).where(schema.sample.c.id == sample_id)).scalar_one()
    stated = rows.clean_text(ticket.sample_id)
    if name == stated:
        return
    journal(
        connection,
        now,
        SAMPLE_CONFLICT,
        f"{ticket.path} was given as sample {stated!r}; it is counted under {name!r} and stays there. "
        "`wbcd sample move` assigns it to another.",
        content_id=ticket.content_id,
        path=str(ticket.path),
        sample=name,
        stated=stated,
    )


def _has_outcome(connection: Connection, acquisition_id: int) -> bool:
    run = schema.run.c
    return connection.execute(select(run.id).where(run.acquisition_id == acquisition_id).limit(1)).first() is not None


def _insert_run(connection: Connection, row: Mapping[str, Any]) -> int | None:
    run = schema.run
    key = [run.c.acquisition_id, run.c.recipe_id, run.c.model_id]
    new = insert(connection, run).values(row).on_conflict_do_nothing(index_elements=key).returning(run.c.id)
    run_id = connection.execute(new).scalar()
    return None if run_id is None else int(run_id)


def _replace_run(connection: Connection, before: Mapping[Any, Any], row: Mapping[str, Any], now: dt.datetime) -> int:
    """The new outcome in the old one's place; the journal keeps the old one with its cells' figures."""
    run_id = int(before["run_id"])
    _journal_replaced(connection, before, run_id, now, f"replaced by {row['outcome']}")
    _remove_cells(connection, run_id)
    connection.execute(update(schema.run).where(schema.run.c.id == run_id).values(dict(row)))
    return run_id


def _journal_replaced(connection: Connection, before: Mapping[Any, Any], run_id: int, now: dt.datetime, how: str) -> None:
    figures = [
        {name: row[name] for name in ("number", "accepted", "counted_as", "probability", "tomogram_path", *FIGURES)}
        for row in connection.execute(queries.cells_of_run(run_id)).mappings()
    ]
    reason = before["reason"] or ""
    journal(
        connection,
        now,
        REPLACED,
        f"{before['path']}: {before['outcome']}{reason and f' ({reason})'} was {how}.",
        content_id=before["content_id"],
        recipe=before["recipe_id"],
        model=before["model_id"],
        sample=before["sample"],
        outcome=before["outcome"],
        reason=before["reason"],
        said=before["message"],
        finished_at=before["finished_at"].isoformat(),
        cells=figures,
    )


FIGURES: Final = schema.MORPHOLOGY_COLUMNS


def _remove_cells(connection: Connection, run_id: int) -> None:
    cell, prediction = schema.cell, schema.prediction
    theirs = select(cell.c.id).where(cell.c.run_id == run_id)
    connection.execute(delete(prediction).where(prediction.c.cell_id.in_(theirs)))
    connection.execute(delete(cell).where(cell.c.run_id == run_id))


def _store_cell(connection: Connection, run_id: int, cell: MeasuredCell) -> None:
    values = rows.cell_row(cell) | {"run_id": run_id}
    cell_id = connection.execute(schema.cell.insert().values(values).returning(schema.cell.c.id)).scalar_one()
    if cell.prediction is not None:
        connection.execute(schema.prediction.insert().values(rows.prediction_row(cell.prediction) | {"cell_id": cell_id}))


# --- what is current ------------------------------------------------------------------------------------


def ask(connection: Connection, recipe_id: str, model_id: str, now: dt.datetime, *, content_id: str) -> None:
    """One outcome is asked for again; nothing is written where it is the current one already."""
    run, acquisition = schema.run.c, schema.acquisition.c
    query = (
        select(run.id, run.recipe_id, run.model_id)
        .join(schema.acquisition, acquisition.id == run.acquisition_id)
        .where(acquisition.content_id == content_id)
        .order_by(run.asked_at.desc(), run.id.desc())
    )
    for place, one in enumerate(connection.execute(query)):
        if (one.recipe_id, one.model_id) == (recipe_id, model_id) and place > 0:
            connection.execute(update(schema.run).where(run.id == one.id).values(asked_at=now))


def ask_for_all(connection: Connection, recipe_id: str, model_id: str, now: dt.datetime, host: str) -> bool:
    """Every outcome of this recipe and model of this machine's files, when the journal says that it worked by others before."""
    event, run, acquisition, file = schema.event.c, schema.run, schema.acquisition.c, schema.source_file.c
    query = select(event.details).where(event.kind == WORKS_BY).order_by(event.id.desc()).limit(100)
    theirs = [details for details in connection.execute(query).scalars() if details.get("host", "") == host]
    works = {"recipe": recipe_id, "model": model_id, "host": host}
    if theirs and theirs[0] == works:
        return False
    journal(connection, now, WORKS_BY, f"The daemon works by recipe {recipe_id} and model {model_id}.", **works)
    if not theirs:
        return False
    here = select(acquisition.id).join(schema.source_file, file.content_id == acquisition.content_id)
    ours = here.where(file.host.in_(("", host)))
    changed = update(run).where(run.c.recipe_id == recipe_id, run.c.model_id == model_id, run.c.acquisition_id.in_(ours))
    return connection.execute(changed.values(asked_at=now)).rowcount > 0


# --- opened again ---------------------------------------------------------------------------------------


def reopen(
    connection: Connection,
    run_ids: Sequence[int],
    now: dt.datetime,
    why: str,
    by: str | None = None,
    ended: Sequence[str] = ("set_aside", "rejected"),
) -> set[int]:
    """Let outcomes that ended so be made again, but those of which a person has read a cell; gives the ids of those opened."""
    run, cell, review = schema.run, schema.cell, schema.review
    read = exists(select(review.c.id).join(cell, cell.c.id == review.c.cell_id).where(cell.c.run_id == run.c.id))
    opened: set[int] = set()
    for start in range(0, len(run_ids), 500):
        some = list(run_ids[start : start + 500])
        which = update(run).where(run.c.id.in_(some), run.c.outcome.in_(ended), run.c.reopened_at.is_(None), ~read)
        which = which.values(reopened_at=now)
        opened.update(connection.execute(which.returning(run.c.id)).scalars())
    if opened:
        shown = sorted(opened)[:200]
        who = {} if by is None else {"by": by}
        journal(connection, now, REOPENED, f"{len(opened)} outcomes were opened again: {why}.", runs=shown, **who)
    return opened


def retire_unread(connection: Connection, content_id: str, now: dt.datetime, host: str, path: str) -> None:
    """Remove the outcome of a ticket without bytes, whose file could be read in the end."""
    run, acquisition, file = schema.run, schema.acquisition, schema.source_file
    for before in connection.execute(queries.runs(content_id)).mappings().all():
        run_id = int(before["run_id"])
        connection.execute(update(run).where(run.c.id == run_id).values(reopened_at=now))
        _journal_replaced(connection, before, run_id, now, "taken back: the file can be read now")
        connection.execute(delete(run).where(run.c.id == run_id))
    here = and_(file.c.host.in_(("", host)), file.c.path == path, file.c.content_id == content_id)
    connection.execute(delete(file).where(here))
    connection.execute(delete(acquisition).where(acquisition.c.content_id == content_id))


def move_sample(
    connection: Connection, content_ids: Sequence[str], to: str, now: dt.datetime, by: str, note: str | None
) -> int:
    """Assign acquisitions to a sample, each move in the journal. Raises `NotStored` for a content that is not there."""
    table, sample = schema.acquisition, schema.sample
    target, moved = sample_key(connection, to, now), 0
    for content_id in content_ids:
        found = _lock_acquisition(connection, content_id)
        if found is None:
            raise NotStored(
                f"There is no acquisition {content_id!r}.", action="Name a file or a content id that was processed."
            )
        if found.sample_id == target:
            continue
        name = connection.execute(select(sample.c.name).where(sample.c.id == found.sample_id)).scalar_one()
        connection.execute(update(table).where(table.c.id == found.id).values(sample_id=target))
        message = f"{found.path} was moved from sample {name!r} to {rows.clean_text(to)!r} by {by}."
        details = {"content_id": content_id, "from": name, "to": to, "by": by, "note": note}
        chain.append(connection, schema.event, event_row(now, SAMPLE_MOVED, message, details))
        moved += 1
    return moved


# --- volumes --------------------------------------------------------------------------------------------


BETWEEN_ROOTS: Final = "\n"
"""Between the output folders of a content, if several daemons kept volumes of it."""


def with_root(column: Any, place: str) -> ColumnElement[str]:
    """The column's output folders and this one."""
    padded = BETWEEN_ROOTS + func.coalesce(column, "") + BETWEEN_ROOTS
    there = func.replace(padded, f"{BETWEEN_ROOTS}{place}{BETWEEN_ROOTS}", "") != padded
    return case((column.is_(None), literal(place)), (there, column), else_=column + f"{BETWEEN_ROOTS}{place}")


def discard_volumes(connection: Connection, content_id: str, place: str, remove: Callable[[Sequence[str]], object]) -> None:
    """``remove`` is told every volume that a row of any recipe and model names, within the transaction that excludes others."""
    found = _lock_acquisition(connection, content_id)
    if found is not None and found.tries > 0:
        return
    run, cell, acquisition = schema.run.c, schema.cell.c, schema.acquisition
    query = (
        select(cell.tomogram_path)
        .join(schema.run, run.id == cell.run_id)
        .join(acquisition, acquisition.c.id == run.acquisition_id)
        .where(acquisition.c.content_id == content_id, cell.tomogram_path.is_not(None))
    )
    remove(list(connection.execute(query).scalars()))
    if found is not None and found.volumes_root is not None:
        left = [root for root in found.volumes_root.split(BETWEEN_ROOTS) if root != place]
        values = {"volumes_root": BETWEEN_ROOTS.join(left) or None, "volumes_tries": found.volumes_tries if left else 0}
        connection.execute(update(acquisition).where(acquisition.c.id == found.id).values(values))
