"""The running differential and the state of the line, read from the database while the daemon writes it.

SQLite is read with the standard library alone, opened ``mode=ro``: `wbcd status` must answer at once, and a reader must
never be able to change what was counted. PostgreSQL is read in one read-only transaction. The figures come from the
views of :mod:`wbcd.store.views`, so that SQL, this module and the command line agree by construction.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from wbcd.errors import DatabaseUnavailable, NotPermitted
from wbcd.records import LINEAGE, LINEAGES
from wbcd.store import answers
from wbcd.store.failures import NEEDED_BYTES, foreign_errors, free_bytes
from wbcd.store.urls import Target, parse_url
from wbcd.store.views import UTC_TEXT, Z_95

WINDOW_MIN: Final = 10.0
"""The throughput is that of the last ten minutes."""

UNCLASSIFIED: Final = "unclassified"

_BY_LINEAGE: Final[Mapping[str, tuple[str, ...]]] = {
    lineage: tuple(label for label, theirs in LINEAGE.items() if theirs == lineage) for lineage in LINEAGES
}

_OPEN_STATES: Final = ("waiting", "begun", "retried", "companion")
_STREAMED_ROWS: Final = 2000
_PAUSED, _RESUMED = "intake_paused", "intake_resumed"


@dataclass(frozen=True, slots=True)
class CountRow:
    """One row of ``differential_count``: n of total cells, with Wilson's 95 % limits of the fraction."""

    sample: str
    model: str
    recipe: str
    label: str
    n: int
    total: int
    fraction: float
    ci_low: float
    ci_high: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class RejectionRow:
    """Acquisitions that ended without a count: rejected or set aside, by reason."""

    sample: str
    model: str
    recipe: str
    outcome: str
    reason: str
    n: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class CellRejectionRow:
    """Cells that were found and measured but not counted, by reason."""

    sample: str
    model: str
    recipe: str
    reason: str
    n: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class BacklogRow:
    """Work without an outcome. ``waiting``: hashed, never begun; ``begun``: once; ``retried``: more than once;
    ``companion``: it waits for a file that belongs to it."""

    state: str
    n: int
    oldest: dt.datetime | None
    max_tries: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "oldest": _iso(self.oldest)}


@dataclass(frozen=True, slots=True)
class Status:
    """Where the line stands, at one moment. Totals are over current results (the view ``current_run``): an acquisition once.

    ``other_results``: outcomes of other recipes or models, which are in no total; ``counts``, ``lineages``, ``rejections`` and
    ``cell_rejections`` have them too where they were asked for.
    ``recipe``, ``model`` and ``sample`` are those of the last outcome;
    ``simulated_model``: that model was trained on simulated cells. ``per_minute``: outcomes a minute over the last
    ``window_min``. ``note``: why intake is paused, or None.
    """

    database: str
    read_at: dt.datetime
    measured: int
    rejected: int
    set_aside: int
    other_results: int
    cells: int
    cells_refused: int
    unclassified: int
    backlog: tuple[BacklogRow, ...]
    rejections: tuple[RejectionRow, ...]
    cell_rejections: tuple[CellRejectionRow, ...]
    counts: tuple[CountRow, ...]
    lineages: tuple[CountRow, ...]
    recipe: str | None
    model: str | None
    sample: str | None
    simulated_model: bool | None
    last_outcome_at: dt.datetime | None
    window_min: float
    window_outcomes: int
    per_minute: float
    changed_after_count: int
    companions_changed: tuple[str, ...]
    sample_conflicts: int
    note: str | None

    @property
    def outcomes(self) -> int:
        """Acquisitions that have reached an outcome."""
        return self.measured + self.rejected + self.set_aside

    @property
    def open(self) -> int:
        """Acquisitions without an outcome."""
        return sum(row.n for row in self.backlog)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; times in ISO 8601, UTC."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {**plain, "outcomes": self.outcomes, "open": self.open}


def read_differential(url: str | Path, sample: str | None = None, *, every: bool = False) -> list[CountRow]:
    """The differential of one sample or of all, a row a label, in the order of :data:`wbcd.records.LINEAGE`, unclassified last.

    Of current results, so that no cell is in two rows; with ``every`` of every recipe and model, each by itself.
    Raises :class:`DatabaseUnavailable` (no such database, no answer) and :class:`SchemaMismatch`.
    """
    with _reading(url) as database:
        return _differential(database, sample, every=every)


def read_status(url: str | Path, *, now: dt.datetime | None = None, every: bool = False) -> Status:
    """Everything that `wbcd status` shows, from one snapshot; ``every``: the rows of every recipe and model, see Status.

    Raises as :func:`read_differential`.
    """
    read_at = dt.datetime.now(dt.UTC) if now is None else now
    with _reading(url) as database:
        return _status(database, read_at, every=every)


def count_other_results(url: str | Path, sample: str | None = None) -> int:
    """Outcomes, of one sample or of all, that are not current: of other recipes or models. Raises likewise."""
    with _reading(url) as database:
        return _other_results(database, sample)


def mixed_samples(counts: Iterable[CountRow]) -> list[str]:
    """Samples whose current results are of several recipes or models: their fractions are each of a part of the sample."""
    keys: dict[str, set[tuple[str, str]]] = {}
    for row in counts:
        keys.setdefault(row.sample, set()).add((row.model, row.recipe))
    return [sample for sample, theirs in keys.items() if len(theirs) > 1]


def lineage_counts(counts: Iterable[CountRow]) -> list[CountRow]:
    """Lymphoid and myeloid sums of each sample, model and recipe, with limits of their own (not sums of limits)."""
    groups: dict[tuple[str, str, str], list[CountRow]] = {}
    for row in counts:
        groups.setdefault((row.sample, row.model, row.recipe), []).append(row)
    return [
        _summed(rows, lineage, labels)
        for rows in groups.values()
        for lineage, labels in _BY_LINEAGE.items()
        if any(row.label in labels for row in rows)
    ]


def wilson_limits(n: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % limits of n/total (J. Am. Stat. Assoc. 22:209, 1927); (0, 1) when nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    half = Z_95 * math.sqrt(n * (total - n) / total + Z_95**2 / 4)
    centre, scale = n + Z_95**2 / 2, total + Z_95**2
    return (0.0 if n == 0 else (centre - half) / scale), (1.0 if n == total else (centre + half) / scale)


# --- one database or the other ----------------------------------------------------------------------


class _Database(Protocol):
    """A read-only connection in one snapshot; ``?`` marks a parameter on both databases."""

    target: Target

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]: ...
    def stream(self, query: str, *parameters: object) -> Iterator[dict[str, Any]]: ...
    def time(self, moment: dt.datetime) -> object: ...


class _Sqlite:
    def __init__(self, target: Target, connection: sqlite3.Connection) -> None:
        self.target = target
        self._connection = connection

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        return list(self.stream(query, *parameters))

    def stream(self, query: str, *parameters: object) -> Iterator[dict[str, Any]]:
        return (dict(row) for row in self._connection.execute(query, parameters))

    def time(self, moment: dt.datetime) -> object:
        return moment.astimezone(dt.UTC).strftime(UTC_TEXT)


class _Postgres:
    def __init__(self, target: Target, connection: Any) -> None:
        self.target = target
        self._connection = connection

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        cursor = self._connection.execute(query.replace("?", "%s"), parameters)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def stream(self, query: str, *parameters: object) -> Iterator[dict[str, Any]]:
        # A cursor on the server: the driver would else fetch everything before it gives the first row.
        with self._connection.cursor(name="wbcd_stream") as cursor:
            cursor.itersize = _STREAMED_ROWS
            cursor.execute(query.replace("?", "%s"), parameters)
            names = [column.name for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    def time(self, moment: dt.datetime) -> object:
        return moment


@contextmanager
def _reading(url: str | Path) -> Iterator[_Database]:
    target = parse_url(url)
    with foreign_errors(target):
        if target.dsn is not None:
            with _open_postgres(target) as connection:
                yield _Postgres(target, connection)
            return
        with closing(_open_sqlite(target)) as connection:
            yield _Sqlite(target, connection)


def _open_sqlite(target: Target) -> sqlite3.Connection:
    if target.path is None or not target.path.exists():
        raise DatabaseUnavailable(
            f"{target.display}: there is no database yet.", action="Start `wbcd run` or `wbcd process`, or correct --db."
        )
    if not os.access(target.path, os.R_OK, effective_ids=True):
        raise NotPermitted(f"{target.display}: the database may not be read by this user.")
    connection = _connect_sqlite(target.path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.OperationalError:
        connection.close()
        # In a folder where one may not write, the shared memory of the log cannot be made; without a log none is needed.
        if Path(f"{target.path}-wal").exists():
            raise
        connection = _connect_sqlite(target.path, "mode=ro&immutable=1")
    connection.execute("BEGIN")
    return connection


def _connect_sqlite(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{options}", uri=True, timeout=2.0, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


@contextmanager
def _open_postgres(target: Target) -> Iterator[Any]:
    # psycopg is an extra, and slow to import: only who reads PostgreSQL pays.
    with answers.connect(target.dsn or "", answer_s=answers.READER_ANSWER_S, application_name="wbcd-read") as connection:
        connection.read_only = True
        connection.isolation_level = importlib.import_module("psycopg").IsolationLevel.REPEATABLE_READ
        yield connection


# --- the figures ------------------------------------------------------------------------------------


def _differential(database: _Database, sample: str | None, *, every: bool) -> list[CountRow]:
    view = "differential_count" if every else "current_count"
    where, parameters = ("", ()) if sample is None else (" WHERE sample = ?", (sample,))
    columns = ", ".join(field.name for field in dataclasses.fields(CountRow))
    found = [CountRow(**row) for row in database.rows(f"SELECT {columns} FROM {view}{where}", *parameters)]
    return sorted(found, key=_reading_order)


def _reading_order(row: CountRow) -> tuple[object, ...]:
    known = list(LINEAGE)
    place = known.index(row.label) if row.label in known else len(known) + (row.label == UNCLASSIFIED)
    return row.sample, row.model, row.recipe, place, row.label


def _summed(rows: Sequence[CountRow], lineage: str, labels: tuple[str, ...]) -> CountRow:
    n, total = sum(row.n for row in rows if row.label in labels), rows[0].total
    low, high = wilson_limits(n, total)
    return dataclasses.replace(rows[0], label=lineage, n=n, fraction=n / total, ci_low=low, ci_high=high)


def _status(database: _Database, read_at: dt.datetime, *, every: bool) -> Status:
    current = _differential(database, None, every=False)
    counts = _differential(database, None, every=True) if every else current
    outcomes = {row["outcome"]: row["n"] for row in database.rows(_OUTCOMES)}
    cells = database.rows(_CELLS)
    refused = [CellRejectionRow(r["sample"], r["model"], r["recipe"], r["reason"], r["n"]) for r in cells if not r["accepted"]]
    last = _first(database, _LAST_RUN)
    window_outcomes, per_minute = _throughput(database, read_at)
    return Status(
        database=database.target.display,
        read_at=read_at,
        measured=outcomes.get("measured", 0),
        rejected=outcomes.get("rejected", 0),
        set_aside=outcomes.get("set_aside", 0),
        other_results=_other_results(database, None),
        cells=sum(row["n"] for row in cells if row["accepted"]),
        cells_refused=sum(row.n for row in refused),
        unclassified=sum(row.n for row in current if row.label == UNCLASSIFIED),
        backlog=_backlog(database),
        rejections=tuple(RejectionRow(**row) for row in database.rows(_EVERY_REJECTION if every else _REJECTIONS)),
        cell_rejections=tuple([CellRejectionRow(**row) for row in database.rows(_EVERY_CELL_REJECTION)] if every else refused),
        counts=tuple(counts),
        lineages=tuple(lineage_counts(counts)),
        recipe=last.get("recipe"),
        model=last.get("model"),
        sample=last.get("sample"),
        simulated_model=bool(last["simulated_model"]) if last else None,
        last_outcome_at=_moment(last.get("finished_at")),
        window_min=WINDOW_MIN,
        window_outcomes=window_outcomes,
        per_minute=per_minute,
        changed_after_count=_first(database, _CHANGED)["n"],
        companions_changed=tuple(str(row["file"]) for row in database.rows(_COMPANIONS)),
        sample_conflicts=_first(database, _CONFLICTS)["n"],
        note=_note(database),
    )


# Views alone, no table: a login in wbcd_reader may read nothing else.
_OUTCOMES: Final = "SELECT outcome, COUNT(*) AS n FROM current_run GROUP BY outcome"
_LAST_RUN: Final = (
    "SELECT recipe, model, sample, finished_at, simulated_model FROM run_result ORDER BY finished_at DESC, run_id DESC LIMIT 1"
)
_OTHERS: Final = "SELECT COUNT(*) AS n FROM run_result WHERE NOT is_current"
_ORDER: Final = "ORDER BY n DESC, reason, sample, model, recipe"
_REJECTIONS: Final = (
    "SELECT sample, model, recipe, outcome, reason, COUNT(*) AS n FROM run_result WHERE outcome <> 'measured' AND is_current "
    f"GROUP BY sample, model, recipe, outcome, reason {_ORDER}"
)
_EVERY_REJECTION: Final = f"SELECT sample, model, recipe, outcome, reason, n FROM rejection_count {_ORDER}"
_CELLS: Final = f"SELECT sample, model, recipe, accepted, reason, n FROM current_cell_count {_ORDER}"
_EVERY_CELL_REJECTION: Final = f"SELECT sample, model, recipe, reason, n FROM cell_rejection_count {_ORDER}"
_WINDOW: Final = "SELECT COUNT(*) AS n, MIN(finished_at) AS first FROM run_result WHERE finished_at > ?"
_COMPANIONS: Final = "SELECT file FROM run_result WHERE companions_changed_at IS NOT NULL ORDER BY run_id DESC LIMIT 100"
_CONFLICTS: Final = "SELECT COUNT(*) AS n FROM journal WHERE kind = 'sample_conflict'"
_CHANGED: Final = "SELECT COUNT(*) AS n FROM journal WHERE kind = 'changed_after_count'"
_LAST_PAUSE: Final = "SELECT kind, message FROM journal WHERE kind IN (?, ?) ORDER BY event_id DESC LIMIT 1"


def _other_results(database: _Database, sample: str | None) -> int:
    if sample is None:
        return int(_first(database, _OTHERS)["n"])
    return int(_first(database, f"{_OTHERS} AND sample = ?", sample)["n"])


def _first(database: _Database, query: str, *parameters: object) -> dict[str, Any]:
    return next(iter(database.rows(query, *parameters)), {})


def _backlog(database: _Database) -> tuple[BacklogRow, ...]:
    found = {row["state"]: row for row in database.rows("SELECT state, n, oldest, max_tries FROM backlog")}
    return tuple(
        BacklogRow(state, found[state]["n"], _moment(found[state]["oldest"]), found[state]["max_tries"])
        for state in _OPEN_STATES
    )


def _throughput(database: _Database, read_at: dt.datetime) -> tuple[int, float]:
    """Outcomes in the window, and how many a minute since the first of them (at least one minute)."""
    row = _first(database, _WINDOW, database.time(read_at - dt.timedelta(minutes=WINDOW_MIN)))
    first = _moment(row["first"])
    if first is None:
        return 0, 0.0
    minutes = min(WINDOW_MIN, max(1.0, (read_at - first).total_seconds() / 60))
    return row["n"], row["n"] / minutes


def _note(database: _Database) -> str | None:
    free = free_bytes(database.target)
    if free is not None and free < NEEDED_BYTES:
        return f"intake paused: {free / 2**20:.1f} MiB are free on the disk of {database.target.display}"
    last = _first(database, _LAST_PAUSE, _PAUSED, _RESUMED)
    return str(last["message"]) if last.get("kind") == _PAUSED else None


def _moment(value: object) -> dt.datetime | None:
    if value is None or isinstance(value, dt.datetime):
        return None if value is None else value.astimezone(dt.UTC)
    return dt.datetime.strptime(str(value), UTC_TEXT).replace(tzinfo=dt.UTC)


def _iso(value: dt.datetime | None) -> str | None:
    return None if value is None else value.astimezone(dt.UTC).isoformat(timespec="milliseconds")


def _plain(value: object) -> object:
    if isinstance(value, dt.datetime):
        return _iso(value)
    return [row if isinstance(row, str) else row.as_dict() for row in value] if isinstance(value, tuple) else value
