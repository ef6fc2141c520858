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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy import Connection, Engine, Table, Text, and_, cast, func, or_, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from wbcd import __version__
from wbcd.errors import (
    DatabaseReplaced,
    DatabaseUnavailable,
    NoSpace,
    NotStored,
    SchemaMismatch,
    StoreError,
    UnknownClass,
)
from wbcd.recipe import Recipe
from wbcd.records import NAME, NAME_RULE, Acquisition, MeasuredCell, Outcome
from wbcd.store import chain, outcomes, queries, rows, schema, sources, standing
from wbcd.store.answers import ANSWER_S
from wbcd.store.engine import READ_ONLY, Retry, WriterLock, abandon, make_engine
from wbcd.store.failures import NEEDED_BYTES, driver_error, foreign_errors, free_bytes, translate
from wbcd.store.modelcard import learnt_simulated
from wbcd.store.rows import (
    CellLabel,
    CurrentRun,
    Health,
    SampleLabel,
    SetAsideRow,
    SourceFile,
    StoredCell,
    StoredOutcome,
    Unfinished,
)
from wbcd.store.standing import FileWatch, UseLock, Witness
from wbcd.store.urls import Target, parse_url

T = TypeVar("T")

PATIENCE_S: Final = 20.0
"""How long a lost PostgreSQL is tried again before :class:`DatabaseUnavailable` reaches the daemon."""

PAGE_ROWS: Final = 256
"""Rows fetched at a time when everything is read: flat memory, and the lock is free in between."""

_WAL_RESET_DEFECT: Final = ((3, 7, 0), (3, 51, 3))
_OLDEST_POSTGRES: Final = 150000

REPLACED: Final = "database_replaced"

MAX_ID: Final = 2**63 - 1


def utc_now() -> dt.datetime:
    """Wall time, for labels only."""
    return dt.datetime.now(dt.UTC)


class Ledger:
    """Open one with :meth:`open`. Every method raises :class:`wbcd.errors.StoreError` or one of its kinds, nothing else."""

    def __init__(
        self, target: Target, *, host: str = "", now: Callable[[], dt.datetime] = utc_now, retry: Retry | None = None
    ) -> None:
        self._target = target
        self._host = rows.clean_text(host) if target.kind == "postgresql" else ""  # an SQLite file is one machine's
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
        host: str = "",
        now: Callable[[], dt.datetime] = utc_now,
        retry: Retry | None = None,
    ) -> Ledger:
        """Connect, make the schema in an empty database when ``create``, and refuse any other revision than ours.

        ``host``: the machine whose paths are meant, where several share a PostgreSQL.

        Raises :class:`SchemaMismatch`, :class:`DatabaseUnavailable`, :class:`NoSpace`.
        """
        target = parse_url(url)
        if target.path is not None:
            _prepare_folder(target.path, create=create, target=target)
        ledger = cls(target, host=host, now=now, retry=retry)
        try:
            ledger._in_use.share()
            ledger._write(lambda connection: _open_schema(connection, target.display, create=create))
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def host(self) -> str:
        """The machine whose files are meant; empty on SQLite."""
        return self._host

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
            "simulated": learnt_simulated(model_card),
            "registered_at": self._now(),
        }

        def work(connection: Connection) -> None:
            outcomes.insert_new(connection, schema.recipe, recipe_row)
            outcomes.insert_new(connection, schema.model, model_row)

        self._write(work)
        self._register, self._witness = work, Witness(recipe.recipe_id, model_id)

    def begin(self, acquisition: Acquisition, *, volumes_root: Path | None = None) -> int:
        """Count a try, on disk before this returns. Gives the tries since the last outcome, this one included: 1, 2, ...

        ``volumes_root``: the output folder into which volumes of it will be kept, before a row can name them.
        """
        token, now = uuid.uuid4().hex, self._now()
        hand: dict[str, Any] = {"begun_host": self._host, "waits_for": None}
        if volumes_root is not None:
            place = rows.clean_text(str(volumes_root.absolute()))
            hand["volumes_root"] = outcomes.with_root(schema.acquisition.c.volumes_root, place)
            hand["volumes_tries"] = schema.acquisition.c.volumes_tries + 1
        return self._write(lambda connection: outcomes.count_try(connection, acquisition, token, now, hand))

    def wait_for(self, content_id: str, sentence: str) -> None:
        """It is in hand no longer: it waits for a file that belongs to it, which says so in the view ``backlog``."""
        values = {"tries": 0, "waits_for": rows.clean_text(sentence)}
        table = schema.acquisition
        self._write(lambda connection: connection.execute(update(table).where(table.c.content_id == content_id).values(values)))

    def commit(
        self,
        outcome: Outcome,
        recipe_id: str,
        model_id: str,
        *,
        conditions: Mapping[str, Any] | None = None,
        once_per_acquisition: bool = False,
        check: Callable[[], None] = lambda: None,
        at: dt.datetime | None = None,
    ) -> Outcome | None:
        """Store an outcome with its cells and predictions in one transaction; gives what was stored.

        The first outcome of an acquisition under a recipe and a model stands: a later one changes nothing and gives None,
        unless the first was opened again (:meth:`reopen`): then it is replaced, and the journal keeps what it was.
        ``conditions``: the site's limits that judged what is set aside. ``once_per_acquisition``: an acquisition whose
        instrument's own id is counted already, of another file, is set aside instead. ``check`` is called within the
        transaction and may raise: then nothing is stored. ``at``: its label of time, the same in each repetition of one call
        whose answer was lost.
        Raises :class:`StoreError` when recipe or model was not registered, or a prediction is another model's.
        """
        for cell in rows.cells_of(outcome):
            _refuse_other_model(cell, model_id)
        key = outcomes.Key(recipe_id, model_id, at or self._now(), None if conditions is None else rows.clean_json(conditions))

        def work(connection: Connection) -> Outcome | None:
            check()
            first = outcomes.same_acquisition(connection, outcome, key) if once_per_acquisition else None
            return outcomes.store(connection, outcome if first is None else first, key)

        return self._write(work)

    def ask(self, content_id: str, recipe_id: str, model_id: str) -> None:
        """A stored outcome is asked for again: of its acquisition it is the current one from now on."""
        now = self._now()
        self._write(lambda connection: outcomes.ask(connection, recipe_id, model_id, now, content_id=content_id))

    def ask_for_all(self, recipe_id: str, model_id: str) -> bool:
        """A daemon works by this recipe and model from now on.

        True where it worked by others before, and outcomes of these, which were there already, are the current ones again.
        """
        now = self._now()
        return self._write(lambda connection: outcomes.ask_for_all(connection, recipe_id, model_id, now, self._host))

    def reopen(
        self,
        run_ids: Sequence[int],
        why: str,
        *,
        by: str | None = None,
        ended: Sequence[str] = ("set_aside", "rejected"),
    ) -> set[int]:
        """Let outcomes be made again: each stands until another takes its place. Gives the ids of those that were opened.

        Left alone is one of which a person has read a cell: the reading needs its row. And one that did not end as ``ended``
        says: it may have been made again since it was chosen.
        """
        now = self._now()
        return self._write(lambda connection: outcomes.reopen(connection, run_ids, now, why, by, ended))

    def move_sample(self, content_ids: Sequence[str], to: str, *, by: str, note: str | None = None) -> int:
        """Assign acquisitions to another sample; the journal says from which. Gives how many were moved."""
        now = self._now()
        return self._write(lambda connection: outcomes.move_sample(connection, content_ids, to, now, by, note))

    def sighted(
        self,
        path: Path | str,
        size: int,
        mtime_ns: int,
        content_id: str,
        *,
        state: str = "",
        companions: Sequence[tuple[str, str | None]] = (),
    ) -> None:
        """Remember what a file holds, so that a restart need not read it again.

        A file whose earlier content has an outcome already, and whose content is now another, gives an event
        ``changed_after_count``: the count stands, but someone rewrote what was counted. Companions that are not those it
        was judged with open it again where nothing was counted, and give an event ``companions_changed`` where it was.
        """
        row = {
            "host": self._host,
            "path": _path_text(path),
            "size_bytes": int(size),
            "mtime_ns": int(mtime_ns),
            "state": state,
            "content_id": content_id,
            "companions": rows.clean_json(dict(companions)),
            "seen_at": self._now(),
        }
        self._write(lambda connection: sources.remember(connection, row))

    def note_states(self, states: Mapping[Path, str]) -> None:
        """Complete rows of before a file's state was kept: they look as they did, and from now on are held to it."""
        file = schema.source_file.c
        work = [(_path_text(path), state) for path, state in states.items()]

        def write(connection: Connection) -> None:
            for path, state in work:
                which = update(schema.source_file).where(file.path == path, file.state == "", file.host.in_(("", self._host)))
                connection.execute(which.values(state=state))

        self._write(write)

    def gone(self, path: Path | str) -> None:
        """Forget a file that has left the folder; what was counted from it stays, what was only begun is no longer open."""
        name = _path_text(path)
        self._write(lambda connection: sources.forget(connection, self._host, name))

    def retire_unread(self, content_id: str, path: Path | str) -> None:
        """The bytes of a file that had none can be read: the outcome that stood in for them goes, and the journal says so."""
        now, name = self._now(), _path_text(path)
        self._write(lambda connection: outcomes.retire_unread(connection, content_id, now, self._host, name))
        if self._witness is not None:  # the newest row of all may be the one that went
            self._witness.begin_anew()

    def discard_volumes(self, content_id: str, root: Path, remove: Callable[[Sequence[str]], object]) -> None:
        """Call ``remove``, which works in ``root``, with every path that a row names for this content.

        No row can come to name another meanwhile. Nothing happens while the content is in hand: what it keeps is not named yet.
        """
        place = rows.clean_text(str(root.absolute()))
        self._write(lambda connection: outcomes.discard_volumes(connection, content_id, place, remove))

    def volumes_to_settle(self, root: Path, content_id: str | None = None) -> list[str]:
        """Contents, or the one that is meant, of which ``root`` may hold volumes that no row names."""
        place = rows.clean_text(str(root.absolute()))
        acquisition = schema.acquisition.c
        query = select(acquisition.content_id, acquisition.volumes_root).where(
            acquisition.volumes_root.is_not(None), acquisition.tries == 0
        )
        if content_id is not None:
            query = query.where(acquisition.content_id == content_id)
        found = self._read(lambda connection: connection.execute(query).all())
        return [row.content_id for row in found if place in row.volumes_root.split(outcomes.BETWEEN_ROOTS)]

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Append to the journal. ``fields``: ``code`` has its own column, the rest goes into ``details``."""
        code = fields.pop("code", None)
        row = outcomes.event_row(self._now(), kind, message, fields, code=None if code is None else str(code))
        self._append(schema.event, lambda _: row)

    def review(self, cell_id: int, reviewer: str, label: str, note: str | None = None) -> None:
        """Append a person's reading of one cell. Raises :class:`StoreError` for no such cell or a name no class can have."""
        unknown = NotStored(f"There is no cell {cell_id}.", action="Give the id of a row of the table `cell`.")
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
                chain.append(connection, events, outcomes.event_row(now, kinds[1], message, {}))

        self._write(work)

    # --- reading --------------------------------------------------------------------------------------

    def known(self, content_id: str, recipe_id: str, model_id: str) -> StoredOutcome | None:
        """The outcome under this key, with its cells (without pictures); None where there is none or it was opened again."""

        def work(connection: Connection) -> StoredOutcome | None:
            query = queries.runs(content_id, recipe_id, model_id).where(schema.run.c.reopened_at.is_(None))
            row = connection.execute(query).mappings().first()
            return None if row is None else _with_cells(connection, row)

        return self._read(work)

    def remembered(self, path: Path | str) -> SourceFile | None:
        """What a path held when it was last :meth:`sighted`, or None."""
        query = queries.files(self._host).where(schema.source_file.c.path == _path_text(path))
        return self._read(lambda connection: _source_files(connection.execute(query)).get(_path_text(path)))

    def counted(self, paths: Sequence[Path], recipe_id: str, model_id: str) -> dict[Path, SourceFile]:
        """Those of ``paths`` whose content, as it was last sighted there, has its outcome.

        One question for a thousand files, where :meth:`remembered` and :meth:`known` would be two for each.
        """
        names = {_path_text(path): path for path in paths}
        query = queries.counted_files(self._host, list(names), recipe_id, model_id)
        found = self._read(lambda connection: _source_files(connection.execute(query)))
        return {names[name]: file for name, file in found.items()}

    def counted_sample(self, recipe_id: str, model_id: str, most: int) -> list[Path]:
        """At most so many files of this machine that are counted, chosen at random: to be hashed again."""
        run, acquisition, file = schema.run.c, schema.acquisition.c, schema.source_file.c
        query = (
            select(file.path)
            .join(schema.acquisition, acquisition.content_id == file.content_id)
            .join(schema.run, run.acquisition_id == acquisition.id)
            .where(file.host.in_(("", self._host)), run.recipe_id == recipe_id, run.model_id == model_id)
            .where(run.outcome == "measured")
            .order_by(func.random())
            .limit(most)
        )
        return self._read(lambda connection: _paths(connection.execute(query).scalars()))

    def last_event_at(self, kind: str) -> dt.datetime | None:
        """When the journal last heard of this kind."""
        query = select(func.max(schema.event.c.at)).where(schema.event.c.kind == kind)
        return self._read(lambda connection: connection.execute(query).scalar())

    def first_outcome_at(self) -> dt.datetime | None:
        """When the first outcome was stored."""
        return self._read(lambda connection: connection.execute(select(func.min(schema.run.c.finished_at))).scalar())

    def reopened(self, recipe_id: str, model_id: str) -> list[Path]:
        """Files of this machine whose outcome was opened again."""
        run, acquisition, file = schema.run.c, schema.acquisition.c, schema.source_file.c
        query = (
            select(file.path)
            .join(schema.acquisition, acquisition.content_id == file.content_id)
            .join(schema.run, run.acquisition_id == acquisition.id)
            .where(run.reopened_at.is_not(None), run.recipe_id == recipe_id, run.model_id == model_id)
            .where(file.host.in_(("", self._host)))
            .distinct()
        )
        return self._read(lambda connection: _paths(connection.execute(query).scalars()))

    def set_aside(
        self,
        recipe_id: str | None = None,
        model_id: str | None = None,
        *,
        reasons: Sequence[str] | None = None,
        ended: Sequence[str] = ("set_aside",),
        sample: str | None = None,
        paths: Sequence[str] | None = None,
    ) -> list[SetAsideRow]:
        """Outcomes of this machine's files that another try may change, oldest first.

        ``paths``: files, or folders whose files are meant. ``reasons``: their codes.
        """
        run, acquisition, file = schema.run.c, schema.acquisition.c, schema.source_file.c
        query = (
            select(run.id, acquisition.content_id, file.path, run.reason, run.conditions, run.finished_at)
            .join(schema.acquisition, acquisition.id == run.acquisition_id)
            .join(schema.source_file, file.content_id == acquisition.content_id)
            .join(schema.sample, schema.sample.c.id == acquisition.sample_id)
            .where(run.outcome.in_(ended), file.host.in_(("", self._host)))
            .order_by(run.id)
        )
        wanted = ((run.recipe_id, recipe_id), (run.model_id, model_id), (schema.sample.c.name, _clean(sample)))
        query = query.where(*(column == value for column, value in wanted if value is not None))
        if reasons is not None:
            query = query.where(run.reason.in_(reasons))
        found = self._read(
            lambda connection: [
                SetAsideRow(row[0], row[1], rows.raw_text(row[2]), *row[3:]) for row in connection.execute(query)
            ]
        )
        return [row for row in found if paths is None or any(_is_within(row.path, path) for path in paths)]

    def acquisitions(self, sample: str | None = None) -> dict[str, str]:
        """Content id -> path of every acquisition, or of those of one sample."""
        table = schema.acquisition.c
        query = (
            select(table.content_id, table.path).join(schema.sample, schema.sample.c.id == table.sample_id).order_by(table.id)
        )
        if sample is not None:
            query = query.where(schema.sample.c.name == rows.clean_text(sample))
        return self._read(lambda connection: {row[0]: row[1] for row in connection.execute(query)})

    def companion_names(self) -> set[str]:
        """Paths of the files that samples of this machine name as their own inside, which no rule of names tells."""
        file = schema.source_file.c
        query = queries.files(self._host).where(_names_others, func.lower(file.path).like("%.h%5"))

        def work(connection: Connection) -> set[str]:
            found = _source_files(connection.execute(query)).values()
            return {str(Path(rows.raw_text(one.path)).parent / name) for one in found for name in one.companions}

        return self._read(work)

    def dependents(self, companion: Path) -> list[Path]:
        """Files of this machine in the folder of ``companion`` that are known to name it."""
        file = schema.source_file.c
        folder = _path_text(companion.parent)
        query = queries.files(self._host).where(_names_others, file.path.startswith(folder, autoescape=True))

        def work(connection: Connection) -> list[Path]:
            found = [one for one in _source_files(connection.execute(query)).values() if companion.name in one.companions]
            return [path for path in _paths(one.path for one in found) if path.parent == companion.parent]

        return self._read(work)

    def unfinished(self) -> list[Unfinished]:
        """Acquisitions that this machine has begun without an outcome since, oldest first: a restart takes them up."""
        acquisition = schema.acquisition.c
        query = (
            select(acquisition.content_id, acquisition.path, acquisition.tries, acquisition.begun_at)
            .where(acquisition.tries > 0, or_(acquisition.begun_host.is_(None), acquisition.begun_host == self._host))
            .order_by(acquisition.begun_at, acquisition.id)
        )

        def work(connection: Connection) -> list[Unfinished]:
            return [Unfinished(row[0], rows.raw_text(row[1]), row[2], row[3]) for row in connection.execute(query)]

        return self._read(work)

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

    def current(self, outcome: str | None = None, *, content_id: str | None = None) -> Iterator[CurrentRun]:
        """The current result of each acquisition (the view ``current_run``), in the order of the store; flat memory.

        ``outcome``, ``content_id``: only of these.
        """
        query = queries.current_runs(outcome, content_id)

        def page(after: int) -> list[tuple[int, CurrentRun]]:
            limited = query.where(schema.run.c.id > after).limit(PAGE_ROWS)
            return self._read(lambda connection: [(row.run_id, CurrentRun(*row[1:])) for row in connection.execute(limited)])

        return _pages(page)

    def cells(
        self,
        *,
        sample: str | None = None,
        recipe_id: str | None = None,
        model_id: str | None = None,
        accepted: bool | None = True,
        outcome: str | None = None,
        current: bool = False,
        with_thumbnails: bool = False,
    ) -> Iterator[StoredCell]:
        """Cells in the order in which they were stored; ``accepted`` None gives the refused ones as well. Flat memory.

        ``outcome``: only those of acquisitions that ended so. ``current``: only those of current results, one for each cell of
        an acquisition (and time point).
        """
        query = queries.cells(with_thumbnails=with_thumbnails)
        wanted: list[tuple[Any, Any]] = [
            (schema.sample.c.name, sample),
            (schema.run.c.recipe_id, recipe_id),
            (schema.run.c.model_id, model_id),
            (schema.cell.c.accepted, accepted),
            (schema.run.c.outcome, outcome),
        ]
        query = query.where(*(column == value for column, value in wanted if value is not None))
        query = query.where(queries.is_current()) if current else query

        def page(after: int) -> list[tuple[int, StoredCell]]:
            limited = query.where(schema.cell.c.id > after).limit(PAGE_ROWS)
            return self._read(
                lambda connection: [(row["cell_id"], rows.stored_cell(row)) for row in connection.execute(limited).mappings()]
            )

        return _pages(page)

    def sample_labels(self, sample: str | None = None) -> list[SampleLabel]:
        """Every label ever given to one sample or to all, oldest first; the newest of a sample holds."""
        query = queries.sample_labels(None if sample is None else rows.clean_text(sample))
        return self._read(lambda connection: [SampleLabel(*row) for row in connection.execute(query)])

    def classes_named(self) -> set[str]:
        """Every class that a sample's label or a review has named so far, and those of the models that were at work."""
        return self._read(lambda connection: set(connection.scalars(queries.classes())))

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
        chain.append(
            connection, schema.event, outcomes.event_row(self._now(), REPLACED, message, {}, code=DatabaseReplaced.code)
        )

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


def _refuse_other_model(cell: MeasuredCell, model_id: str) -> None:
    if cell.prediction is not None and cell.prediction.model_id != model_id:
        raise StoreError(
            f"Cell {cell.number} carries a prediction of model {cell.prediction.model_id!r} in an outcome of {model_id!r}.",
            action="This is a defect of wbcd: report it with the log line that shows it.",
        )


def _class_name(label: str) -> str:
    """A label that no class can have would cost a training whose cells it names."""
    if NAME.fullmatch(label):
        return label
    better = re.sub(r"[^A-Za-z0-9._-]+", "_", label).strip("._-")[:64]
    better = better if NAME.fullmatch(better) else "monocyte"
    raise UnknownClass(f"The label is {label!r}; it must be {NAME_RULE}.", action=f"Call it {better!r}, for example.")


def _known_sample(connection: Connection, name: str) -> int:
    query = select(schema.sample.c.id).where(schema.sample.c.name == rows.clean_text(name))
    sample_id = connection.execute(query).scalar()
    if sample_id is None:
        raise NotStored(f"There is no sample '{name}'.", action="Name a sample of `wbcd counts`; its files name it.")
    return int(sample_id)


def _path_text(path: Path | str) -> str:
    """The key of a file: absolute, so that one name in two folders is two files."""
    return rows.clean_text(str(Path(path).absolute()))


def _clean(name: str | None) -> str | None:
    return None if name is None else rows.clean_text(name)


def _is_within(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


_names_others = and_(
    schema.source_file.c.companions.is_not(None), cast(schema.source_file.c.companions, Text).not_in(("{}", "null"))
)


def _raw_names(companions: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Their names as they are on disk."""
    return {rows.raw_text(name): digest for name, digest in (companions or {}).items()}


def _paths(found: Iterable[str]) -> list[Path]:
    return [Path(rows.raw_text(path)) for path in found]


def _source_files(found: Iterable[Any]) -> dict[str, SourceFile]:
    files = (SourceFile(row[0], row[1], row[2], row[3], row[4], _raw_names(row[5])) for row in found)
    return {file.path: file for file in files}


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
