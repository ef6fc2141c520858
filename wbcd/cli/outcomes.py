"""Outcomes as the JSON objects of `wbcd process --json`, and as one line for a person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wbcd.records import MeasuredCell, Outcome
    from wbcd.store import StoredCell, StoredOutcome

SIX = ("volume_fl", "surface_area_um2", "sphericity", "dry_mass_pg", "protein_density_g_dl", "mean_ri")


def object_of(result: Outcome | StoredOutcome, path: Path, output: Path) -> dict[str, Any]:
    """Of what processing one path gave: a fresh outcome, or the stored one of the same content."""
    from wbcd.store import StoredOutcome

    return stored_object(result, path, output) if isinstance(result, StoredOutcome) else outcome_object(result, path)


def outcome_object(outcome: Outcome, path: Path) -> dict[str, Any]:
    """Of a fresh outcome. ``cells`` are those that count; ``refused_cells`` failed their own verdict, with the reason."""
    made: dict[str, Any] = {"path": str(path), "outcome": outcome.kind, "reason": None, "message": None, "cells": []}
    if outcome.kind == "set_aside":
        return made | {"reason": outcome.error.code, "message": outcome.error.sentence()}
    if outcome.kind == "rejected":
        made |= {"reason": outcome.reason, "message": outcome.message}
    else:
        made["cells"] = [_cell(cell) for cell in outcome.cells if cell.verdict.accepted]
    refused = [_refused(cell) for cell in outcome.cells if not cell.verdict.accepted]
    return made | ({"refused_cells": refused} if refused else {})


def stored_object(stored: StoredOutcome, path: Path, output: Path) -> dict[str, Any]:
    """Of an outcome that the database holds already: the same object, with ``duplicate_of`` (the path counted first).

    ``output``: the output folder as it lies now, in which its tomograms are sought first.
    """
    counted = stored.outcome == "measured"
    return {
        "path": str(path),
        "outcome": stored.outcome,
        "reason": stored.reason,
        "message": stored.message,
        "cells": [_stored_cell(cell, output) for cell in stored.cells if cell.accepted and counted],
        "duplicate_of": stored.path,
    }


def _cell(cell: MeasuredCell) -> dict[str, Any]:
    prediction = cell.prediction
    return {
        "number": cell.number,
        **{name: getattr(cell.morphology, name) for name in SIX},
        "label": prediction.label if prediction else None,
        "probability": prediction.probability if prediction else None,
        "flags": list(prediction.flags) if prediction else [],
        "tomogram": cell.tomogram_path,
    }


def _refused(cell: MeasuredCell) -> dict[str, Any]:
    failed = cell.verdict.failed
    return {
        "number": cell.number,
        "reason": failed.code if failed else None,
        "message": failed.sentence() if failed else None,
        "volume_fl": cell.morphology.volume_fl,
    }


def _stored_cell(cell: StoredCell, output: Path) -> dict[str, Any]:
    from wbcd.store.verification import locate

    return {
        "number": cell.number,
        **{name: getattr(cell.morphology, name) for name in SIX},
        "label": cell.label,
        "probability": cell.probability,
        "flags": list(cell.flags),
        "tomogram": str(locate(output.absolute(), cell.tomogram_path)) if cell.tomogram_path else None,
    }


def outcome_line(made: dict[str, Any]) -> str:
    """One line for a person."""
    head = f"{made['path']}: {made['outcome'].replace('_', ' ')}"
    if made["outcome"] == "measured":
        cells = ", ".join(
            f"{cell['label']} {cell['probability']:.2f} ({cell['volume_fl']:.0f} fL, {cell['dry_mass_pg']:.1f} pg)"
            for cell in made["cells"]
        )
        head = f"{head}: {cells}"
    else:
        head = f"{head} ({made['reason']}): {made['message']}"
    return f"{head} [already stored, from {made['duplicate_of']}]" if "duplicate_of" in made else head
