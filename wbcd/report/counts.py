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
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from wbcd.errors import DatabaseUnavailable
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

_OPEN_STATES: Final = ("waiting", "begun", "retried")
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
    """Work without an outcome. ``waiting``: hashed, never begun; ``begun``: once; ``retried``: more than once."""

    state: str
    n: int
    oldest: dt.datetime | None
    max_tries: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "oldest": _iso(self.oldest)}


@dataclass(frozen=True, slots=True)
class Status:
    """Where the line stands, at one moment. Counts of runs are over all recipes and models.

    ``recipe`` and ``model`` are those of the last outcome. ``per_minute``: outcomes a minute over the last
    ``window_min``. ``note``: why intake is paused, or None.
    """

    database: str
    read_at: dt.datetime
    measured: int
    rejected: int
    set_aside: int
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
    simulated_model: bool | None
    last_outcome_at: dt.datetime | None
    window_min: float
    window_outcomes: int
    per_minute: float
    changed_after_count: int
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


def read_differential(url: str | Path, sample: str | None = None) -> list[CountRow]:
    """The differential of one sample or of all, a row a label, in the order of :data:`wbcd.records.LINEAGE`, unclassified last.

    Raises :class:`DatabaseUnavailable` (no such database, no answer) and :class:`SchemaMismatch`.
    """
    with _reading(url) as database:
        return _differential(database, sample)


def read_status(url: str | Path, *, now: dt.datetime | None = None) -> Status:
    """Everything that `wbcd status` shows, from one snapshot. Raises as :func:`read_differential`."""
    read_at = dt.datetime.now(dt.UTC) if now is None else now
    with _reading(url) as database:
        return _status(database, read_at)


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
    def time(self, moment: dt.datetime) -> object: ...


class _Sqlite:
    def __init__(self, target: Target, connection: sqlite3.Connection) -> None:
        self.target = target
        self._connection = connection

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(query, parameters)]

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


def _differential(database: _Database, sample: str | None) -> list[CountRow]:
    where, parameters = ("", ()) if sample is None else (" WHERE sample = ?", (sample,))
    columns = ", ".join(field.name for field in dataclasses.fields(CountRow))
    found = [CountRow(**row) for row in database.rows(f"SELECT {columns} FROM differential_count{where}", *parameters)]
    return sorted(found, key=_reading_order)


def _reading_order(row: CountRow) -> tuple[object, ...]:
    known = list(LINEAGE)
    place = known.index(row.label) if row.label in known else len(known) + (row.label == UNCLASSIFIED)
    return row.sample, row.model, row.recipe, place, row.label


def _summed(rows: Sequence[CountRow], lineage: str, labels: tuple[str, ...]) -> CountRow:
    n, total = sum(row.n for row in rows if row.label in labels), rows[0].total
    low, high = wilson_limits(n, total)
    return dataclasses.replace(rows[0], label=lineage, n=n, fraction=n / total, ci_low=low, ci_high=high)


def _status(database: _Database, read_at: dt.datetime) -> Status:
    counts = _differential(database, None)
    outcomes = {row["outcome"]: row["n"] for row in database.rows("SELECT outcome, COUNT(*) AS n FROM run GROUP BY outcome")}
    cells = {bool(row["accepted"]): row["n"] for row in database.rows(_CELLS)}
    last = _first(database, _LAST_RUN)
    window_outcomes, per_minute = _throughput(database, read_at)
    return Status(
        database=database.target.display,
        read_at=read_at,
        measured=outcomes.get("measured", 0),
        rejected=outcomes.get("rejected", 0),
        set_aside=outcomes.get("set_aside", 0),
        cells=cells.get(True, 0),
        cells_refused=cells.get(False, 0),
        unclassified=sum(row.n for row in counts if row.label == UNCLASSIFIED),
        backlog=_backlog(database),
        rejections=tuple(RejectionRow(**row) for row in database.rows(_REJECTIONS)),
        cell_rejections=tuple(CellRejectionRow(**row) for row in database.rows(_CELL_REJECTIONS)),
        counts=tuple(counts),
        lineages=tuple(lineage_counts(counts)),
        recipe=last.get("recipe_id"),
        model=last.get("model_id"),
        simulated_model=bool(last["simulated"]) if last else None,
        last_outcome_at=_moment(last.get("finished_at")),
        window_min=WINDOW_MIN,
        window_outcomes=window_outcomes,
        per_minute=per_minute,
        changed_after_count=_first(database, _CHANGED)["n"],
        note=_note(database),
    )


_CELLS: Final = "SELECT accepted, COUNT(*) AS n FROM cell WHERE time_index = 0 GROUP BY accepted"
_LAST_RUN: Final = (
    "SELECT run.recipe_id, run.model_id, run.finished_at, model.simulated FROM run JOIN model ON model.id = run.model_id "
    "ORDER BY run.finished_at DESC, run.id DESC LIMIT 1"
)
_REJECTIONS: Final = (
    "SELECT sample, model, recipe, outcome, reason, n FROM rejection_count ORDER BY n DESC, reason, sample, model, recipe"
)
_CELL_REJECTIONS: Final = (
    "SELECT sample, model, recipe, reason, n FROM cell_rejection_count ORDER BY n DESC, reason, sample, model, recipe"
)
_WINDOW: Final = "SELECT COUNT(*) AS n, MIN(finished_at) AS first FROM run WHERE finished_at > ?"
_CHANGED: Final = "SELECT COUNT(*) AS n FROM event WHERE kind = 'changed_after_count'"
_LAST_PAUSE: Final = "SELECT kind, message FROM event WHERE kind IN (?, ?) ORDER BY id DESC LIMIT 1"


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
    return [row.as_dict() for row in value] if isinstance(value, tuple) else value
