"""Cells one by one, each with the id that `wbcd review` wants: from the view ``cell_result``, as a stream.

SQLite is read with the standard library alone, as in :mod:`wbcd.report.counts`. A million cells pass in flat memory: rows come
in the order of an index where they can, and are sorted by the database where they cannot.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from wbcd.report.counts import UNCLASSIFIED, _reading

Order: TypeAlias = Literal["oldest", "newest", "doubtful"]

COLUMNS: Final = (
    "cell_id",
    "sample",
    "file",
    "content_id",
    "instrument_id",
    "acquired_at",
    "outcome",
    "number",
    "time_index",
    "accepted",
    "reason",
    "counted_as",
    "label",
    "probability",
    "flags",
    "volume_fl",
    "surface_area_um2",
    "sphericity",
    "dry_mass_pg",
    "protein_density_g_dl",
    "mean_ri",
    "volume_uncertainty_fl",
    "dry_mass_uncertainty_pg",
    "mean_ri_uncertainty",
    "review",
    "reviewer",
    "reviewed_at",
    "recipe",
    "model",
    "simulated_model",
    "wbcd_version",
    "finished_at",
    "is_current",
    "tomogram_path",
)
"""Of the view ``cell_result``, in its order; units are in the names."""

_TRUTHS: Final = ("accepted", "simulated_model", "is_current")
_TIMES: Final = ("reviewed_at", "finished_at")

_ORDERS: Final[dict[Order, str]] = {
    "oldest": "cell_id",
    "newest": "cell_id DESC",
    # What the model would not name comes first, then the smallest probability; a cell that no model saw last.
    "doubtful": "CASE WHEN counted_as IS NULL THEN 2 WHEN counted_as = 'unclassified' THEN 0 ELSE 1 END, probability, cell_id",
}

_UNCERTAIN: Final = f"(counted_as = '{UNCLASSIFIED}' OR CAST(flags AS TEXT) <> '[]')"
"""The model refused to name it, or named it and said that it may be another class."""


def read_cells(
    url: str | Path,
    *,
    sample: str | None = None,
    label: str | None = None,
    uncertain: bool = False,
    refused: bool = False,
    later: bool = False,
    every: bool = False,
    order: Order = "oldest",
    limit: int | None = None,
) -> Generator[dict[str, Any], None, None]:
    """The cells that count, a dictionary of :data:`COLUMNS` each; the database is open until the last, or until it is closed.

    ``label``: only what is counted as this class ("unclassified" is one). ``uncertain``: only what the model would not name, or
    with another class in its prediction set. ``refused``: refused cells and those of rejected acquisitions too.
    ``later``: later time points too. ``every``: results of other recipes and models than the current ones too. ``flags`` is a
    list, times are ISO 8601 in UTC. Raises :class:`DatabaseUnavailable` and :class:`SchemaMismatch`.
    """
    wanted: list[tuple[str, Sequence[object]]] = []
    if sample is not None:
        wanted.append(("sample = ?", (sample,)))
    if label is not None:
        wanted.append(("counted_as = ?", (label,)))
    if uncertain:
        wanted.append((_UNCERTAIN, ()))
    if not refused:
        wanted.append(("accepted AND outcome = 'measured'", ()))
    if not later:
        wanted.append(("time_index = 0", ()))
    if not every:
        wanted.append(("is_current", ()))
    where = f" WHERE {' AND '.join(condition for condition, _ in wanted)}" if wanted else ""
    query = f"SELECT {', '.join(COLUMNS)} FROM cell_result{where} ORDER BY {_ORDERS[order]}"
    if limit is not None:
        query += f" LIMIT {int(limit)}"
    parameters = [value for _, values in wanted for value in values]
    with _reading(url) as database:
        yield from map(_plain, database.stream(query, *parameters))


def known_samples(url: str | Path) -> list[str]:
    """Samples that have an outcome, in alphabetical order."""
    return _names(url, "SELECT DISTINCT sample AS name FROM run_result")


def known_labels(url: str | Path) -> list[str]:
    """What cells can be counted as: the classes of the models that were at work, those that cells have, and "unclassified"."""
    query = "SELECT label AS name FROM known_class WHERE source = 'model' UNION SELECT DISTINCT label FROM differential_count"
    return sorted({*_names(url, query), UNCLASSIFIED})


def pictures(url: str | Path, cell_ids: Sequence[int]) -> dict[int, bytes]:
    """The stored PNG of each of some cells that has one, by cell id (the view ``cell_picture``)."""
    marks = ", ".join("?" for _ in cell_ids)
    query = f"SELECT cell_id, thumbnail_png FROM cell_picture WHERE cell_id IN ({marks}) AND thumbnail_png IS NOT NULL"
    with _reading(url) as database:
        return {int(row["cell_id"]): bytes(row["thumbnail_png"]) for row in database.rows(query, *cell_ids)}


def _names(url: str | Path, query: str) -> list[str]:
    with _reading(url) as database:
        return sorted(str(row["name"]) for row in database.rows(query))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    for name in _TRUTHS:
        row[name] = bool(row[name])
    for name in _TIMES:
        row[name] = _iso(row[name])
    flags = row["flags"]
    row["flags"] = (json.loads(flags) if isinstance(flags, str) else flags) if flags and flags != "[]" else []
    return row


def _iso(moment: Any) -> str | None:
    """As :meth:`Status.as_dict` writes a time; SQLite's text of fixed width is only cut, for there are a million of them."""
    if moment is None or isinstance(moment, str):
        return None if moment is None else f"{moment[:23]}+00:00"
    return str(moment.astimezone(dt.UTC).isoformat(timespec="milliseconds"))
