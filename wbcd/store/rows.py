"""What the store gives back, and the cleaning of what goes in."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from wbcd.records import Acquisition, Measured, MeasuredCell, Morphology, Outcome, Prediction, Rejected, SetAside
from wbcd.store.schema import MORPHOLOGY_COLUMNS

UNCLASSIFIED: Final = "unclassified"
"""The flag of a prediction, and the label under which its cell is counted."""

NO_REASON: Final = "unspecified"


@dataclass(frozen=True, slots=True)
class StoredCell:
    """One row of ``cell`` with its prediction. A value that was not finite is NaN in ``morphology``.

    ``label`` and what follows it are None or empty when the cell was not classified; ``counted_as`` is the label of the
    differential count. ``thumbnail_png`` is None unless it was asked for.
    """

    cell_id: int
    content_id: str
    sample: str
    path: str
    recipe_id: str
    model_id: str
    number: int
    time_index: int
    centre_um: tuple[float, float, float]
    accepted: bool
    reason: str | None
    checks: list[dict[str, Any]]
    morphology: Morphology
    label: str | None
    probability: float | None
    probabilities: Mapping[str, float]
    flags: tuple[str, ...]
    counted_as: str | None
    tomogram_path: str | None
    thumbnail_png: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """One row of ``run`` with its cells. ``outcome``: measured, rejected or set_aside; ``reason`` is None when measured.

    ``companions``: name and digest of the files it was read with; ``conditions``: the site's limits that set it aside; None
    in rows of before they were kept.
    """

    content_id: str
    path: str
    sample: str
    recipe_id: str
    model_id: str
    outcome: str
    reason: str | None
    message: str | None
    checks: list[dict[str, Any]]
    tries: int
    seconds: float | None
    finished_at: dt.datetime
    run_id: int = 0
    companions: Mapping[str, str | None] | None = None
    conditions: Mapping[str, Any] | None = None
    cells: tuple[StoredCell, ...] = ()


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """One row of the view ``current_run``: the result that was asked for last of the acquisition ``content_id``."""

    content_id: str
    path: str
    sample: str
    recipe_id: str
    model_id: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An acquisition that was begun ``tries`` times and has no outcome since."""

    content_id: str
    path: str
    tries: int
    begun_at: dt.datetime


@dataclass(frozen=True, slots=True)
class SourceFile:
    """What a path held at the last look. ``state``: "" in rows of before it was kept; ``companions``: name -> digest."""

    path: str
    size_bytes: int
    mtime_ns: int
    state: str
    content_id: str
    companions: Mapping[str, str | None]

    def is_as(self, size_bytes: int, mtime_ns: int, state: str) -> bool:
        """True when the path looks as it did then."""
        return (self.size_bytes, self.mtime_ns) == (size_bytes, mtime_ns) and self.state in ("", state)


@dataclass(frozen=True, slots=True)
class SetAsideRow:
    """An outcome that is not final. ``conditions``: the site's limits that judged it; None in rows of before they were kept."""

    run_id: int
    content_id: str
    path: str
    reason: str
    conditions: Mapping[str, Any] | None
    finished_at: dt.datetime


@dataclass(frozen=True, slots=True)
class SampleLabel:
    """One row of ``sample_label``: the cells of ``sample`` are ``label``, ``purity`` (0..1] of them, or None if unknown."""

    label_id: int
    sample: str
    label: str
    purity: float | None
    labelled_by: str
    note: str | None
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class CellLabel:
    """One row of ``cell_label``. ``source``: "review" (a person read this cell) or "sample" (the whole sample is so)."""

    cell_id: int
    label: str
    source: str
    purity: float | None


@dataclass(frozen=True, slots=True)
class Health:
    """Answer of :meth:`Ledger.check`: what answered, and what a person should know."""

    database: str
    server: str
    revision: str
    free_bytes: int | None
    warnings: tuple[str, ...] = ()


# --- cleaning: nothing that a file says may make a row impossible to write ------------------------


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_LOOKS_CLEANED = re.compile(r"\\(?:x00|ud[89a-f][0-9a-f]{2})")


def clean_text(text: str) -> str:
    r"""UTF-8 without NUL: PostgreSQL refuses NUL, and a file name may hold bytes that are no UTF-8.

    One to one, for samples and paths are keys: NUL becomes ``\x00``, a lone surrogate ``\udNNN`` (U+DCNN: the byte NN of a
    file name), and a text that has such a sequence of its own gets its backslashes doubled. All other texts stay as they are.
    """
    if _UNSTORABLE.search(text) is None and _LOOKS_CLEANED.search(text) is None:
        return text
    doubled = text.replace("\\", "\\\\")
    return _UNSTORABLE.sub(lambda found: "\\x00" if found[0] == "\0" else f"\\u{ord(found[0]):04x}", doubled)


def raw_text(stored: str) -> str:
    """The text that :func:`clean_text` gave ``stored`` for: a path is opened by its own bytes."""
    if _LOOKS_CLEANED.search(stored) is None:
        return stored

    def meant(found: re.Match[str]) -> str:
        if found[0] == "\\\\":
            return "\\"
        return "\0" if found[0] == "\\x00" else chr(int(found[1], 16))

    return re.sub(r"\\\\|\\x00|\\u(d[0-9a-f]{3})", meant, stored)


def clean_optional(text: str | None) -> str | None:
    """:func:`clean_text`, None passes."""
    return None if text is None else clean_text(text)


def clean_number(value: float | None) -> float | None:
    """A plain float; None for what is not finite."""
    if value is None:
        return None
    plain = float(value)
    return plain if math.isfinite(plain) else None


def clean_json(value: Any) -> Any:
    """JSON-ready, by the same rules, at any depth; what JSON does not know becomes its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean_json(item) for item in value]
    return _clean_scalar(value)


def _clean_scalar(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value  # a numpy scalar
    if isinstance(plain, float):
        return clean_number(plain)
    return plain if isinstance(plain, bool | int) else clean_text(str(plain))


# --- records to rows --------------------------------------------------------------------------------


def acquisition_row(acquisition: Acquisition) -> dict[str, Any]:
    """Columns of ``acquisition`` that the ticket knows (not its sample's key)."""
    return {
        "content_id": acquisition.content_id,
        "path": clean_text(str(acquisition.path.absolute())),
        "size_bytes": int(acquisition.size_bytes),
        "mtime_ns": int(acquisition.mtime_ns),
        "format": None if acquisition.format is None else str(acquisition.format.value),
        "instrument_acquisition_id": clean_optional(acquisition.acquisition_id),
        "acquired_at": clean_optional(acquisition.acquired_at),
        "instrument_id": clean_optional(acquisition.instrument_id),
        "medium_ri": clean_number(acquisition.medium_ri),
        "wavelength_um": clean_number(acquisition.wavelength_um),
        "objective_na": clean_number(acquisition.objective_na),
        "pixel_size_um": clean_number(acquisition.pixel_size_um),
        "time_points": int(acquisition.time_points),
    }


def run_row(outcome: Outcome) -> dict[str, Any]:
    """Columns of ``run`` that the outcome knows."""
    row: dict[str, Any] = {
        "outcome": outcome.kind,
        "seconds": clean_number(outcome.seconds),
        "companions": clean_json(dict(outcome.acquisition.companions)),
    }
    if isinstance(outcome, SetAside):
        return row | {
            "reason": clean_text(outcome.error.code),
            "message": clean_text(outcome.error.sentence()),
            "checks": [],
        }
    row["checks"] = clean_json(outcome.verdict.as_json())
    if isinstance(outcome, Rejected):
        return row | {"reason": clean_text(outcome.reason) or NO_REASON, "message": clean_text(outcome.message)}
    return row | {"reason": None, "message": None}


def cells_of(outcome: Outcome) -> tuple[MeasuredCell, ...]:
    """Counted or not; none when the acquisition was set aside."""
    return outcome.cells if isinstance(outcome, Measured | Rejected) else ()


def cell_row(cell: MeasuredCell) -> dict[str, Any]:
    """Columns of ``cell`` (not the run's key)."""
    failed = cell.verdict.failed
    z_um, y_um, x_um = cell.centre_um
    return {
        "number": int(cell.number),
        "time_index": int(cell.time_index),
        "centre_z_um": clean_number(z_um),
        "centre_y_um": clean_number(y_um),
        "centre_x_um": clean_number(x_um),
        **{name: clean_number(value) for name, value in dataclasses.asdict(cell.morphology).items()},
        "accepted": failed is None,
        "reason": None if failed is None else clean_text(failed.code),
        "checks": clean_json(cell.verdict.as_json()),
        "tomogram_path": clean_optional(cell.tomogram_path),
        "thumbnail_png": cell.thumbnail_png,
    }


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """Columns of ``prediction`` (not the cell's key). A probability that is no number makes the cell unclassified."""
    probability = clean_number(prediction.probability)
    unknown = UNCLASSIFIED in prediction.flags or probability is None
    return {
        "model_id": prediction.model_id,
        "label": clean_text(prediction.label),
        "probability": min(1.0, max(0.0, probability or 0.0)),  # softmax may give 1 + 1e-7
        "probabilities": clean_json(prediction.probabilities),
        "flags": clean_json(list(prediction.flags)),
        "counted_as": UNCLASSIFIED if unknown else clean_text(prediction.label),
    }


# --- rows to records --------------------------------------------------------------------------------


def stored_cell(row: Mapping[Any, Any]) -> StoredCell:
    """From the columns that :func:`wbcd.store.queries.cells` selects."""
    morphology = Morphology(**{name: _nan(row[name]) for name in MORPHOLOGY_COLUMNS})
    return StoredCell(
        cell_id=row["cell_id"],
        content_id=row["content_id"],
        sample=row["sample"],
        path=row["path"],
        recipe_id=row["recipe_id"],
        model_id=row["model_id"],
        number=row["number"],
        time_index=row["time_index"],
        centre_um=(_nan(row["centre_z_um"]), _nan(row["centre_y_um"]), _nan(row["centre_x_um"])),
        accepted=row["accepted"],
        reason=row["reason"],
        checks=row["checks"],
        morphology=morphology,
        label=row["label"],
        probability=row["probability"],
        probabilities=row["probabilities"] or {},
        flags=tuple(row["flags"] or ()),
        counted_as=row["counted_as"],
        tomogram_path=row["tomogram_path"],
        thumbnail_png=row.get("thumbnail_png"),
    )


def stored_outcome(row: Mapping[Any, Any], cells: tuple[StoredCell, ...]) -> StoredOutcome:
    """From the columns that :func:`wbcd.store.queries.runs` selects."""
    names = [field.name for field in dataclasses.fields(StoredOutcome) if field.name != "cells"]
    values = {name: row[name] for name in names}
    values["path"] = raw_text(row["path"])
    if row["companions"] is not None:
        values["companions"] = {raw_text(name): digest for name, digest in row["companions"].items()}
    return StoredOutcome(**values, cells=cells)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
