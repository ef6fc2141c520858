"""The figures of :class:`wbcd.report.counts.Status` as Prometheus text (exposition format 0.0.4).

`wbcd status --prometheus` prints it, for node_exporter's textfile collector; there is no server here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from wbcd import __version__
from wbcd.report.counts import CountRow, Status

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: tuple[tuple[Labels, float], ...]


def prometheus_text(status: Status) -> str:
    """All metrics, one family after the other; ends with a newline as the format demands."""
    return "".join(_family_text(family) for family in _families(status))


def _families(status: Status) -> Iterable[_Family]:
    yield _one("wbcd_info", "gauge", "Version, and the recipe and model of the last outcome.", 1, _info(status))
    if status.model is not None:
        text = "1 when that model was trained on simulated cells."
        yield _one("wbcd_model_simulated", "gauge", text, float(bool(status.simulated_model)), {"model": status.model})
    outcomes = {"measured": status.measured, "rejected": status.rejected, "set_aside": status.set_aside}
    # Gauges: when an acquisition is processed again its current result moves from one outcome to another.
    yield _by("wbcd_acquisitions", "gauge", "Acquisitions by the outcome of their current result.", "outcome", outcomes)
    others = float(status.other_results)
    yield _one("wbcd_other_results", "gauge", "Outcomes of other recipes or models, in no other figure here.", others)
    verdicts = {"accepted": status.cells, "refused": status.cells_refused}
    yield _by("wbcd_cells", "gauge", "Cells of current results by the verdict on them.", "verdict", verdicts)
    yield _rejections(status)
    backlog = {row.state: row.n for row in status.backlog}
    yield _by("wbcd_backlog_acquisitions", "gauge", "Acquisitions without an outcome.", "state", backlog)
    yield _by("wbcd_backlog_oldest_seconds", "gauge", "Age of the oldest of them.", "state", _ages(status))
    yield from _differential(status.counts)
    yield _one("wbcd_outcomes_per_minute", "gauge", "Throughput over the last minutes.", status.per_minute)
    yield _one("wbcd_changed_after_count_total", "counter", "Files rewritten after being counted.", status.changed_after_count)
    yield _one("wbcd_intake_paused", "gauge", "1 while no new work is taken.", float(status.note is not None))
    if status.last_outcome_at is not None:
        at = status.last_outcome_at.timestamp()
        yield _one("wbcd_last_outcome_timestamp_seconds", "gauge", "Unix time of the last outcome.", at)


def _info(status: Status) -> Labels:
    return {"version": __version__, "recipe": status.recipe or "", "model": status.model or ""}


def _ages(status: Status) -> dict[str, float]:
    return {row.state: _age_s(status.read_at, row.oldest) for row in status.backlog}


def _age_s(now: dt.datetime, then: dt.datetime | None) -> float:
    return 0.0 if then is None else max(0.0, (now - then).total_seconds())


def _rejections(status: Status) -> _Family:
    samples = tuple(
        ({"sample": r.sample, "model": r.model, "recipe": r.recipe, "outcome": r.outcome, "reason": r.reason}, float(r.n))
        for r in status.rejections
    )
    return _Family("wbcd_rejections", "gauge", "Acquisitions that gave no count, by reason.", samples)


def _differential(counts: Iterable[CountRow]) -> Iterable[_Family]:
    named = [({"sample": r.sample, "model": r.model, "recipe": r.recipe, "label": r.label}, r) for r in counts]
    yield _Family(
        "wbcd_differential_cells", "gauge", "Counted cells by label.", tuple((labels, float(r.n)) for labels, r in named)
    )
    for field, text in (
        ("fraction", "Fraction of the counted cells."),
        ("ci_low", "Lower 95 % limit (Wilson) of the fraction."),
        ("ci_high", "Upper 95 % limit (Wilson) of the fraction."),
    ):
        yield _Family(f"wbcd_differential_{field}", "gauge", text, tuple((labels, getattr(r, field)) for labels, r in named))


def _one(name: str, kind: Literal["counter", "gauge"], text: str, value: float, labels: Labels | None = None) -> _Family:
    return _Family(name, kind, text, ((labels or {}, value),))


def _by(name: str, kind: Literal["counter", "gauge"], text: str, label: str, values: Mapping[str, float]) -> _Family:
    return _Family(name, kind, text, tuple(({label: key}, float(value)) for key, value in values.items()))


def _family_text(family: _Family) -> str:
    head = f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
    return head + "".join(f"{family.name}{_label_text(labels)} {value!r}\n" for labels, value in family.samples)


def _label_text(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
