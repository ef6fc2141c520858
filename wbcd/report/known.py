"""Which samples are stored, and which models learnt from simulated cells: what a verb asks before it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wbcd.errors import NotPermitted
from wbcd.report.counts import _reading

_SAMPLES: Final = " UNION ".join(
    f"SELECT sample FROM {view}" for view in ("differential_count", "rejection_count", "cell_rejection_count")
)


def stored_samples(url: str | Path) -> list[str]:
    """Names of the samples that have an outcome. Raises as :func:`wbcd.report.counts.read_status`."""
    with _reading(url) as database:
        return sorted(str(row["sample"]) for row in database.rows(_SAMPLES))


def simulated_models(url: str | Path) -> frozenset[str] | None:
    """Ids of the models that were trained on simulated cells; None where this login may not read it. Raises likewise."""
    try:
        with _reading(url) as database:
            return frozenset(
                str(row["model"]) for row in database.rows("SELECT model, simulated FROM known_model") if row["simulated"]
            )
    except NotPermitted:
        return None
