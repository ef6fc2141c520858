"""The only SQL writer: one connection, one transaction an acquisition, on SQLite and PostgreSQL alike.

    with Ledger.open("sqlite:///wbcd.db") as ledger:
        ledger.register(recipe, model_id, card)
        tries = ledger.begin(acquisition)                    # counted on disk before any work
        ledger.commit(outcome, recipe_id, model_id)          # all of it or nothing; a second time changes nothing

Same bytes, same recipe, same model: one row, whatever happens. The database guards it (unique constraints), so two
daemons on one PostgreSQL cannot break it either. A lost connection is tried again with growing waits; every write may
therefore run twice, and is written so that the second time changes nothing. Calls from several threads are serialised.
"""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy import Connection, Engine, Table, select, text, union, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from wbcd import __version__
from wbcd.errors import DatabaseReplaced, DatabaseUnavailable, NoSpace, SchemaMismatch, StoreError
from wbcd.recipe import Recipe
from wbcd.records import NAME, NAME_RULE, Acquisition, MeasuredCell, Outcome
from wbcd.store import chain, queries, rows, schema, standing
from wbcd.store.answers import ANSWER_S
from wbcd.store.engine import READ_ONLY, Retry, WriterLock, abandon, make_engine
from wbcd.store.failures import NEEDED_BYTES, driver_error, foreign_errors, free_bytes, translate
from wbcd.store.rows import CellLabel, Health, SampleLabel, StoredCell, StoredOutcome, Unfinished
from wbcd.store.standing import FileWatch, UseLock, Witness
from wbcd.store.urls import Target, parse_url

T = TypeVar("T")

PATIENCE_S: Final = 20.0
"""How long a lost PostgreSQL is tried again before :class:`DatabaseUnavailable` reaches the daemon."""

PAGE_ROWS: Final = 256
"""Rows fetched at a time when everything is read: flat memory, and the lock is free in between."""

_WAL_RESET_DEFECT: Final = ((3, 7, 0), (3, 51, 3))
_OLDEST_POSTGRES: Final = 150000

CHANGED_AFTER_COUNT: Final = "changed_after_count"
REPLACED: Final = "database_replaced"

MAX_ID: Final = 2**63 - 1


def utc_now() -> dt.datetime:
    """Wall time, for labels only."""
    return dt.datetime.now(dt.UTC)


class Ledger:
    """Open one with :meth:`open`. Every method raises :class:`wbcd.errors.StoreError` or one of its kinds, nothing else."""

    def __init__(self, target: Target, *, now: Callable[[], dt.datetime] = utc_now, retry: Retry | None = None) -> None:
        self._target = target
        self._now = now
        patience_s = PATIENCE_S if target.kind == "postgresql" else 0.0  # SQLite has waited its busy timeout already
        self._retry = retry if retry is not None else Retry(patience_s)
        self._engine: Engine | None = make_engine(target, answer_s=ANSWER_S)
        self._files = WriterLock(target)
        self._in_use = UseLock(target)
        self._watch = None if target.path is None else FileWatch(target.path)
        self._register: Callable[[Connection], None] | None = None
        self._witness: Witness | None = None
        self._threads = threading.RLock()
        self.openings = 1
        """How often a database was found in this place: one more each time that another has taken the place of the last."""
        self.asked_since_s: float | None = None
        """When the question that is not answered yet was put, by the monotonic clock; None when there is none."""

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        create: bool = True,
        now: Callable[[], dt.datetime] = utc_now,
        retry: Retry | None = None,
    ) -> Ledger:
        """Connect, make the schema in an empty database when ``create``, and refuse any other revision than ours.

        Raises :class:`SchemaMismatch`, :class:`DatabaseUnavailable`, :class:`NoSpace`.
        """
        target = parse_url(url)
        if target.path is not None:
            _prepare_folder(target.path, create=create, target=target)
        ledger = cls(target, now=now, retry=retry)
        try:
            ledger._in_use.share()
            ledger._write(lambda connection: _open_schema(connection, target.display, create=create))
        except BaseException:
            ledger.close()
            raise
        return ledger

    # --- writing --------------------------------------------------------------------------------------

    def register(self, recipe: Recipe, model_id: str, model_card: Mapping[str, Any]) -> None:
        """Make the recipe and the model known, before any outcome names them. Again: changes nothing."""
        recipe_row = {
            "id": recipe.recipe_id,
            "parameters": rows.clean_json(recipe.as_dict()),
            "wbcd_version": __version__,
            "registered_at": self._now(),
        }
        model_row = {
            "id": model_id,
            "card": rows.clean_json(model_card),
            "simulated": bool(model_card.get("simulated", False)),
            "registered_at": self._now(),
        }

        def work(connection: Connection) -> None:
            _insert_new(connection, schema.recipe, recipe_row)
            _insert_new(connection, schema.model, model_row)

        self._write(work)
        self._register, self._witness = work, Witness(recipe.recipe_id, model_id)

    def begin(self, acquisition: Acquisition) -> int:
        """Count a try, on disk before this returns. Gives the tries since the last outcome, this one included: 1, 2, ..."""
        token, now = uuid.uuid4().hex, self._now()
        return self._write(lambda connection: _count_try(connection, acquisition, token, now))

    def commit(self, outcome: Outcome, recipe_id: str, model_id: str) -> None:
        """Store an outcome with its cells and predictions in one transaction.

        The first outcome of an acquisition under a recipe and a model stands; a later one changes nothing.
        Raises :class:`StoreError` when recipe or model was not registered, or a prediction is another model's.
        """
        for cell in rows.cells_of(outcome):
            _refuse_other_model(cell, model_id)
        now = self._now()
        self._write(lambda connection: _store_outcome(connection, outcome, recipe_id, model_id, now))

    def sighted(self, path: Path | str, size: int, mtime_ns: int, content_id: str) -> None:
        """Remember what a file holds, so that a restart need not read it again.

        A file whose earlier content has an outcome already, and whose content is now another, gives an event
        ``changed_after_count``: the count stands, but someone rewrote what was counted.
        """
        row = {
            "path": rows.clean_text(str(path)),
            "size_bytes": int(size),
            "mtime_ns": int(mtime_ns),
            "content_id": content_id,
            "seen_at": self._now(),
        }
        self._write(lambda connection: _remember_file(connection, row))

    def gone(self, path: Path | str) -> None:
        """Forget a file that has left the folder; what was counted from it stays, what was only begun is no longer open."""
        name = rows.clean_text(str(path))
        self._write(lambda connection: _forget_file(connection, name))

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Append to the journal. ``fields``: ``code`` has its own column, the rest goes into ``details``."""
        code = fields.pop("code", None)
        row = _event_row(self._now(), kind, message, fields, code=None if code is None else str(code))
        self._append(schema.event, lambda _: row)

    def review(self, cell_id: int, reviewer: str, label: str, note: str | None = None) -> None:
        """Append a person's reading of one cell. Raises :class:`StoreError` for no such cell or a name no class can have."""
        unknown = StoreError(f"There is no cell {cell_id}.", action="Give the id of a row of the table `cell`.")
        if not 0 <= cell_id <= MAX_ID:  # which no column holds
            raise unknown
        row = {
            "cell_id": cell_id,
            "reviewer": rows.clean_text(reviewer),
            "label": _class_name(label),
            "note": rows.clean_optional(note),
            "at": self._now(),
        }
        try:
            self._append(schema.review, lambda _: row)
        except StoreError as error:
            # The one rule of the table; it is not asked before, for a reviewer may add to it and read no other.
            if isinstance(error.__cause__, IntegrityError):
                raise unknown from error
            raise

    def label_sample(self, name: str, label: str, *, purity: float | None = None, by: str, note: str | None = None) -> None:
        """Append what is known of a whole sample: its cells are ``label``, but for a fraction 1 - ``purity`` of them.

        The newest label holds, and a review of a single cell goes before it (the view ``cell_label``).
        Raises :class:`StoreError` when no acquisition of that sample has been seen, ``purity`` is not in (0, 1], or
        ``label`` is a name that no class can have.
        """
        if purity is not None and not 0.0 < purity <= 1.0:  # not a number fails too
            raise StoreError(f"The purity of sample {name!r} is {purity}.", action="Give a fraction above 0 and at most 1.")
        row = {
            "label": _class_name(label),
            "purity": purity,
            "labelled_by": rows.clean_text(by),
            "note": rows.clean_optional(note),
            "at": self._now(),
        }
        self._append(schema.sample_label, lambda connection: {"sample_id": _known_sample(connection, name), **row})

    def end_pause(self, message: str) -> None:
        """Journal ``intake_resumed`` when the last word on intake was a pause: the daemon that paused may have ended in it."""
        now = self._now()
        kinds = ("intake_paused", "intake_resumed")

        def work(connection: Connection) -> None:
            events = schema.event
            last = select(events.c.kind).where(events.c.kind.in_(kinds)).order_by(events.c.id.desc()).limit(1)
            if connection.execute(last).scalar() == kinds[0]:
                chain.append(connection, events, _event_row(now, kinds[1], message, {}))

        self._write(work)

    # --- reading --------------------------------------------------------------------------------------

    def known(self, content_id: str, recipe_id: str, model_id: str) -> StoredOutcome | None:
        """The outcome under this key, with its cells (without pictures), or None."""

        def work(connection: Connection) -> StoredOutcome | None:
            row = connection.execute(queries.runs(content_id, recipe_id, model_id)).mappings().first()
            return None if row is None else _with_cells(connection, row)

        return self._read(work)

    def recall(self, path: Path | str, size: int, mtime_ns: int) -> str | None:
        """The content id of a file that was :meth:`sighted` with this size and time, or None when it must be read."""
        file = schema.source_file.c
        query = select(file.content_id).where(
            file.path == rows.clean_text(str(path)), file.size_bytes == int(size), file.mtime_ns == int(mtime_ns)
        )
        return self._read(lambda connection: connection.execute(query).scalar())

    def counted(self, paths: Sequence[Path], recipe_id: str, model_id: str) -> dict[Path, tuple[int, int]]:
        """Those of ``paths`` whose content, as it was last sighted there, has its outcome; with that size and mtime (ns).

        One question for a thousand files, where :meth:`recall` and :meth:`known` would be two for each.
        """
        names = {rows.clean_text(str(path)): path for path in paths}
        query = queries.counted_files(list(names), recipe_id, model_id)
        return self._read(lambda connection: {names[row[0]]: (row[1], row[2]) for row in connection.execute(query)})

    def unfinished(self) -> list[Unfinished]:
        """Acquisitions begun without an outcome since, oldest first: a restart takes them up."""
        acquisition = schema.acquisition.c
        query = (
            select(acquisition.content_id, acquisition.path, acquisition.tries, acquisition.begun_at)
            .where(acquisition.tries > 0)
            .order_by(acquisition.begun_at, acquisition.id)
        )
        return self._read(lambda connection: [Unfinished(*row) for row in connection.execute(query)])

    def outcomes(self, recipe_id: str | None = None, model_id: str | None = None) -> Iterator[StoredOutcome]:
        """Every outcome with its cells, in the order in which they were stored; flat memory."""
        query = queries.runs(recipe_id=recipe_id, model_id=model_id)

        def page(after: int) -> list[tuple[int, StoredOutcome]]:
            return self._read(
                lambda connection: [
                    (row["run_id"], _with_cells(connection, row))
                    for row in connection.execute(query.where(schema.run.c.id > after).limit(PAGE_ROWS)).mappings().all()
                ]
            )

        return _pages(page)

    def cells(
        self,
        *,
        sample: str | None = None,
        recipe_id: str | None = None,
        model_id: str | None = None,
        accepted: bool | None = True,
        with_thumbnails: bool = False,
    ) -> Iterator[StoredCell]:
        """Cells in the order in which they were stored; ``accepted`` None gives the refused ones as well. Flat memory."""
        query = queries.cells(with_thumbnails=with_thumbnails)
        wanted: list[tuple[Any, Any]] = [
            (schema.sample.c.name, sample),
            (schema.run.c.recipe_id, recipe_id),
            (schema.run.c.model_id, model_id),
            (schema.cell.c.accepted, accepted),
        ]
        query = query.where(*(column == value for column, value in wanted if value is not None))

        def page(after: int) -> list[tuple[int, StoredCell]]:
            limited = query.where(schema.cell.c.id > after).limit(PAGE_ROWS)
            return self._read(
                lambda connection: [(row["cell_id"], rows.stored_cell(row)) for row in connection.execute(limited).mappings()]
            )

        return _pages(page)

    def sample_labels(self, sample: str | None = None) -> list[SampleLabel]:
        """Every label ever given to one sample or to all, oldest first; the newest of a sample holds."""
        table, name = schema.sample_label.c, schema.sample.c.name
        query = (
            select(table.id, name, table.label, table.purity, table.labelled_by, table.note, table.at)
            .join(schema.sample, schema.sample.c.id == table.sample_id)
            .order_by(table.id)
        )
        query = query if sample is None else query.where(name == rows.clean_text(sample))
        return self._read(lambda connection: [SampleLabel(*row) for row in connection.execute(query)])

    def classes_named(self) -> set[str]:
        """Every class that a sample's label or a review has named so far, and those of the models that were at work."""
        query = union(*(select(t.c.label) for t in (schema.sample_label, schema.review)))
        cards = select(schema.model.c.card)

        def ask(connection: Connection) -> set[str]:
            sections = (card.get("wbcd") for card in connection.scalars(cards))
            of_models = {str(c) for section in sections if isinstance(section, dict) for c in section.get("classes") or ()}
            return set(connection.scalars(query)) | of_models

        return self._read(ask)

    def cell_labels(self, sample: str | None = None) -> dict[int, CellLabel]:
        """The label that holds of each accepted cell that has one, by cell id, of one sample or of all (one dictionary)."""
        query = queries.cell_labels(None if sample is None else rows.clean_text(sample))
        return self._read(lambda connection: {row[0]: CellLabel(*row) for row in connection.execute(query)})

    def check(self, *, deep: bool = False) -> Health:
        """Ask the database for a sign of life; ``deep`` reads all of an SQLite file for damage (seconds to minutes).

        Raises :class:`NoSpace` when its disk has under 16 MiB left, :class:`SchemaMismatch`, :class:`DatabaseUnavailable`.
        """
        free = free_bytes(self._target)
        if free is not None and free < NEEDED_BYTES:
            raise NoSpace(
                f"{self._target.display}: {free / 2**20:.1f} MiB are free on the disk of the database; "
                f"{NEEDED_BYTES // 2**20} MiB are needed."
            )
        revision, server, warnings = self._read(lambda connection: _examine(connection, self._target, deep=deep))
        return Health(self._target.display, server, revision, free, warnings)

    def ping(self) -> None:
        """Does it answer, and is it still the database that was opened? Raises as any other question would."""
        witness = self._witness
        if witness is None:
            self._read(lambda connection: connection.execute(text("SELECT 1")).scalar())
        elif self._read(witness.missing) is not None:
            self._write(lambda _: None)  # which puts in what is missing

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run statements that only read, in one transaction; after a lost connection ``work`` runs again."""
        return self._read(work)

    # --- life -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection. On SQLite this writes the log back into the file."""
        with self._threads:
            if self._engine is not None:
                moved = self._watch is not None and self._watch.problem() is not None
                (abandon if moved else Engine.dispose)(self._engine)
            self._files.close()
            self._in_use.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, table: Table, row_of: Callable[[Connection], Mapping[str, Any]]) -> None:
        """Add one row to a chain; when the acknowledgement of a first try was lost, look whether it is there already."""
        tried = False

        def work(connection: Connection) -> None:
            nonlocal tried
            row = row_of(connection)
            if not (tried and chain.holds(connection, table, row)):
                chain.append(connection, table, row)
            tried = True

        self._write(work)

    def _write(self, work: Callable[[Connection], T]) -> T:
        return self._persist(lambda: self._transaction(work))

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._persist(lambda: self._transaction(work, reading=True))

    def _transaction(self, work: Callable[[Connection], T], *, reading: bool = False) -> T:
        try:
            with foreign_errors(self._target):
                engine = self._standing()
                if reading:
                    with engine.connect().execution_options(**READ_ONLY) as connection, connection.begin():
                        result = work(connection)
                else:
                    result = self._written(engine, work)
                self._refuse_replaced()  # while it was at work: then what was written is nowhere, and what was read is not so
                return result
        except SchemaMismatch as error:
            if self._witness is None or error.__cause__ is None:
                raise
            # The tables were there when this daemon began: a backup is being restored.
            raise DatabaseUnavailable(error.message, action=standing.TABLES_AWAITED) from error

    def _written(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        with self._files.held():
            self._refuse_replaced()
            with engine.begin() as connection:
                missing = None if self._witness is None else self._witness.missing(connection)
                if missing is not None:
                    self._renew(connection, missing)
                result = work(connection)
            self.openings += missing is not None
            return result

    def _standing(self) -> Engine:
        """The engine on what lies at the path now. Raises :class:`DatabaseReplaced` once for each file that went."""
        if self._engine is None:
            self._open_again()
        self._refuse_replaced()
        if self._engine is None:  # for the type checker: it was opened just now
            raise DatabaseUnavailable(f"{self._target.display}: is not open.")
        return self._engine

    def _refuse_replaced(self) -> None:
        problem = None if self._watch is None else self._watch.problem()
        if problem is None or self._engine is None:
            return
        engine, self._engine = self._engine, None
        abandon(engine)
        self._files.close()
        self._in_use.close()  # so that a restore may put a file into its place
        raise DatabaseReplaced(f"{self._target.display}: while it was open, {problem}.")

    def _open_again(self) -> None:
        """Open what lies at the path instead of the file that went. Nothing is made: an empty one would hide the loss."""
        path = self._target.path
        if path is None or not path.exists():
            raise DatabaseUnavailable(
                f"{self._target.display}: the file was removed while it was open; it is waited for.",
                action="Put it back, or restore a backup (`wbcd db restore`); to begin an empty one, start wbcd anew.",
            )
        self._in_use.share()
        before = self._watch
        watch, engine = FileWatch(path), make_engine(self._target, answer_s=ANSWER_S)
        try:
            with self._files.held():
                if before is not None:
                    before.set_log_aside()
                with engine.begin() as connection:
                    _demand_usable(connection, self._target)
                    self._renew(connection, "another file lay in its place")
        except BaseException as error:
            (Engine.dispose if watch.problem() is None else abandon)(engine)
            self._files.close()
            self._in_use.close()
            found = translate(driver_error(error), self._target) if isinstance(error, SQLAlchemyError) else error
            if type(found) is StoreError:  # damage: it may be half copied yet
                raise DatabaseUnavailable(found.message, action=f"It is looked at again. {found.advice}") from error
            raise
        self._engine, self._watch = engine, watch
        self.openings += 1

    def _renew(self, connection: Connection, what: str) -> None:
        """Make known again, in a database that has taken the place of another, what outcomes will refer to."""
        if self._register is None or self._witness is None:
            return
        self._register(connection)
        self._witness.begin_anew()
        message = f"This database has taken the place of the one written to: {what}. The folder is looked through again."
        chain.append(connection, schema.event, _event_row(self._now(), REPLACED, message, {}, code=DatabaseReplaced.code))

    def _persist(self, attempt: Callable[[], T]) -> T:
        with self._threads:
            self.asked_since_s = time.monotonic()
            try:
                for delay in self._retry.delays():
                    try:
                        return attempt()
                    except DatabaseReplaced:
                        raise  # to be told at once
                    except DatabaseUnavailable:
                        self._retry.wait(delay)
                return attempt()
            finally:
                self.asked_since_s = None


# --- opening ------------------------------------------------------------------------------------------


def _prepare_folder(path: Path, *, create: bool, target: Target) -> None:
    if create:
        with foreign_errors(target):
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise DatabaseUnavailable(f"{path}: there is no database.", action="Start `wbcd run` first, or correct --db.")


def _demand_usable(connection: Connection, target: Target) -> None:
    """Before a file that has taken another's place is written to: whole, and of this version's schema.

    What a person can mend beside the running daemon is waited for: an older or an absent schema, damage.
    """
    from wbcd.store import migrate

    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise DatabaseUnavailable(f"{target.display}: {found}.", action="Restore a sound backup: `wbcd db restore`.")
    revision = migrate.revision_of(connection)
    if revision is None or revision < schema.SCHEMA_REVISION:
        raise DatabaseUnavailable(
            f"{target.display}: has schema revision {revision or 'none'}; {schema.SCHEMA_REVISION} is needed.",
            action="Run `wbcd db upgrade`; it is waited for.",
        )
    migrate.validate(connection, target.display)


def _open_schema(connection: Connection, place: str, *, create: bool) -> None:
    from wbcd.store import migrate  # alembic takes a third of a second, and only this needs it

    if create and migrate.revision_of(connection) is None:
        migrate.serialise(connection)
        if migrate.revision_of(connection) is None:
            migrate.demand_rights(connection, place)
            _refuse_foreign(connection, place)
            migrate.upgrade_connection(connection)
    migrate.validate(connection, place)


def _refuse_foreign(connection: Connection, place: str) -> None:
    from sqlalchemy import inspect

    taken = sorted(set(inspect(connection).get_table_names()) & set(schema.metadata.tables))
    if taken:
        raise SchemaMismatch(
            f"{place}: holds table {taken[0]!r} but no wbcd revision: another program's database.",
            action="Give wbcd a database of its own.",
        )


# --- one verb per intention -----------------------------------------------------------------------------


def _insert(connection: Connection, table: Table) -> Any:
    """INSERT that knows ON CONFLICT, in the connection's dialect."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _insert_new(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    connection.execute(_insert(connection, table).values(row).on_conflict_do_nothing())


def _sample_key(connection: Connection, name: str, now: dt.datetime) -> int:
    clean = rows.clean_text(name)
    query = select(schema.sample.c.id).where(schema.sample.c.name == clean)
    found = connection.execute(query).scalar()
    if found is None:
        _insert_new(connection, schema.sample, {"name": clean, "first_seen_at": now})
        found = connection.execute(query).scalar_one()
    return int(found)


def _count_try(connection: Connection, acquisition: Acquisition, token: str, now: dt.datetime) -> int:
    table = schema.acquisition
    row = rows.acquisition_row(acquisition) | {
        "sample_id": _sample_key(connection, acquisition.sample_id, now),
        "tries": 0,
        "first_seen_at": now,
    }
    _insert_new(connection, table, row)
    ours = table.c.content_id == acquisition.content_id
    connection.execute(
        update(table)
        .where(ours, table.c.try_token.is_distinct_from(token))
        .values(tries=table.c.tries + 1, try_token=token, begun_at=now, path=row["path"])
    )
    return int(connection.execute(select(table.c.tries).where(ours)).scalar_one())


def _lock_acquisition(connection: Connection, content_id: str) -> Any:
    """Key and tries of a content, or None; no other daemon changes them until this transaction ends."""
    table = schema.acquisition
    return connection.execute(
        select(table.c.id, table.c.tries).where(table.c.content_id == content_id).with_for_update()
    ).first()


def _close_acquisition(connection: Connection, acquisition: Acquisition, now: dt.datetime) -> tuple[int, int]:
    """Write down what reading has added to the ticket, and end its tries. Gives its key and the tries it took.

    A ticket that was not read (no format) knows nothing of the sample or the optics: what an earlier reading found stands.
    """
    table = schema.acquisition
    found = _lock_acquisition(connection, acquisition.content_id)
    if found is not None and acquisition.format is None:
        connection.execute(update(table).where(table.c.id == found.id).values(tries=0))
        return int(found.id), int(found.tries)
    values = rows.acquisition_row(acquisition) | {"sample_id": _sample_key(connection, acquisition.sample_id, now)}
    if found is None:
        new = _insert(connection, table).values(values | {"tries": 0, "first_seen_at": now})
        new = new.on_conflict_do_update(index_elements=["content_id"], set_={"path": new.excluded.path})
        return int(connection.execute(new.returning(table.c.id)).scalar_one()), 0
    connection.execute(update(table).where(table.c.id == found.id).values(values | {"tries": 0}))
    return int(found.id), int(found.tries)


def _store_outcome(connection: Connection, outcome: Outcome, recipe_id: str, model_id: str, now: dt.datetime) -> None:
    content_id = outcome.acquisition.content_id
    _lock_acquisition(connection, content_id)
    if connection.execute(queries.runs(content_id, recipe_id, model_id)).first() is not None:
        _end_tries(connection, content_id)  # counted before: by a try whose acknowledgement was lost, or by another daemon
        return
    acquisition_key, tries = _close_acquisition(connection, outcome.acquisition, now)
    row = rows.run_row(outcome) | {
        "acquisition_id": acquisition_key,
        "recipe_id": recipe_id,
        "model_id": model_id,
        "tries": tries,
        "finished_at": now,
    }
    run = schema.run
    key = [run.c.acquisition_id, run.c.recipe_id, run.c.model_id]
    new = _insert(connection, run).values(row).on_conflict_do_nothing(index_elements=key).returning(run.c.id)
    run_id = connection.execute(new).scalar()
    if run_id is None:
        return  # by another daemon, between the question above and now
    for cell in rows.cells_of(outcome):
        _store_cell(connection, int(run_id), cell)


def _end_tries(connection: Connection, content_id: str) -> None:
    table = schema.acquisition
    connection.execute(update(table).where(table.c.content_id == content_id, table.c.tries > 0).values(tries=0))


def _store_cell(connection: Connection, run_id: int, cell: MeasuredCell) -> None:
    values = rows.cell_row(cell) | {"run_id": run_id}
    cell_id = connection.execute(schema.cell.insert().values(values).returning(schema.cell.c.id)).scalar_one()
    if cell.prediction is not None:
        connection.execute(schema.prediction.insert().values(rows.prediction_row(cell.prediction) | {"cell_id": cell_id}))


def _refuse_other_model(cell: MeasuredCell, model_id: str) -> None:
    if cell.prediction is not None and cell.prediction.model_id != model_id:
        raise StoreError(
            f"Cell {cell.number} carries a prediction of model {cell.prediction.model_id!r} in an outcome of {model_id!r}.",
            action="This is a defect of wbcd: report it with the log line that shows it.",
        )


def _remember_file(connection: Connection, row: Mapping[str, Any]) -> None:
    table = schema.source_file
    before = connection.execute(select(table.c.content_id).where(table.c.path == row["path"])).scalar()
    if before is not None and before != row["content_id"] and _has_outcome(connection, before):
        _journal_change(connection, row, before)
    new = _insert(connection, table).values(row)
    changed = {name: new.excluded[name] for name in row if name != "path"}
    connection.execute(new.on_conflict_do_update(index_elements=[table.c.path], set_=changed))
    if before is not None and before != row["content_id"]:
        _close_abandoned(connection, before)


def _forget_file(connection: Connection, path: str) -> None:
    table = schema.source_file
    content_id = connection.execute(table.delete().where(table.c.path == path).returning(table.c.content_id)).scalar()
    if content_id is not None:
        _close_abandoned(connection, content_id)


def _close_abandoned(connection: Connection, content_id: str) -> None:
    """Content that no file holds any more can never reach its outcome: it must not stand in the backlog for ever."""
    held = select(schema.source_file.c.path).where(schema.source_file.c.content_id == content_id).limit(1)
    if connection.execute(held).first() is None:
        _end_tries(connection, content_id)


def _has_outcome(connection: Connection, content_id: str) -> bool:
    run, acquisition = schema.run, schema.acquisition
    query = select(run.c.id).join(acquisition, acquisition.c.id == run.c.acquisition_id)
    return connection.execute(query.where(acquisition.c.content_id == content_id).limit(1)).first() is not None


def _journal_change(connection: Connection, row: Mapping[str, Any], before: str) -> None:
    message = f"{row['path']} was rewritten after it had been counted; the count of its earlier content stands."
    details = {"path": row["path"], "content_id": row["content_id"], "counted_content_id": before}
    values = _event_row(row["seen_at"], CHANGED_AFTER_COUNT, message, details, code="input.changed_after_count")
    chain.append(connection, schema.event, values)


def _event_row(
    at: dt.datetime, kind: str, message: str, details: Mapping[str, Any], *, code: str | None = None
) -> dict[str, Any]:
    return {
        "at": at,
        "kind": rows.clean_text(kind),
        "code": rows.clean_optional(code),
        "message": rows.clean_text(message),
        "details": rows.clean_json(details),
    }


def _class_name(label: str) -> str:
    """A label that no class can have would cost a training whose cells it names."""
    if NAME.fullmatch(label):
        return label
    better = re.sub(r"[^A-Za-z0-9._-]+", "_", label).strip("._-")[:64]
    better = better if NAME.fullmatch(better) else "monocyte"
    raise StoreError(f"The label is {label!r}; it must be {NAME_RULE}.", action=f"Call it {better!r}, for example.")


def _known_sample(connection: Connection, name: str) -> int:
    query = select(schema.sample.c.id).where(schema.sample.c.name == rows.clean_text(name))
    sample_id = connection.execute(query).scalar()
    if sample_id is None:
        raise StoreError(f"There is no sample {name!r}.", action="Name a sample of `wbcd counts`; its files name it.")
    return int(sample_id)


def _with_cells(connection: Connection, row: Any) -> StoredOutcome:
    cells = connection.execute(queries.cells_of_run(row["run_id"])).mappings()
    return rows.stored_outcome(row, tuple(rows.stored_cell(cell) for cell in cells))


def _pages(page: Callable[[int], list[tuple[int, T]]]) -> Iterator[T]:
    after = 0
    while found := page(after):
        yield from (item for _, item in found)
        after = found[-1][0]


# --- health -------------------------------------------------------------------------------------------


def _examine(connection: Connection, target: Target, *, deep: bool) -> tuple[str, str, tuple[str, ...]]:
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision != schema.SCHEMA_REVISION:
        raise SchemaMismatch(f"{target.display}: has schema revision {revision}; this wbcd needs {schema.SCHEMA_REVISION}.")
    if connection.dialect.name == "postgresql":
        return revision, *_examine_postgres(connection)
    if deep:
        _refuse_damage(connection, target)
    return revision, f"SQLite {sqlite3.sqlite_version}", _sqlite_warnings(sqlite3.sqlite_version_info)


def _examine_postgres(connection: Connection) -> tuple[str, tuple[str, ...]]:
    name = connection.execute(text("SHOW server_version")).scalar()
    number = int(connection.execute(text("SHOW server_version_num")).scalar() or 0)
    old = number < _OLDEST_POSTGRES
    return f"PostgreSQL {name}", ((f"PostgreSQL {name} is older than 15, the oldest that is tested.",) if old else ())


def _refuse_damage(connection: Connection, target: Target) -> None:
    found = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check(10)")]
    found += [
        f"row {row[1]} of {row[0]} points to a missing {row[2]}"
        for row in connection.exec_driver_sql("PRAGMA foreign_key_check")
    ]
    if found != ["ok"]:
        raise StoreError(f"{target.display}: {found[0]}.", action="Stop wbcd and restore the last backup.")


def _sqlite_warnings(version: tuple[int, ...]) -> tuple[str, ...]:
    first, fixed = _WAL_RESET_DEFECT
    if first <= version < fixed:
        shown = ".".join(str(part) for part in version)
        return (f"SQLite {shown} can damage a database that two programs write at once; keep to one writer (fixed in 3.51.3).",)
    return ()
