"""Tables for a person. rich is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def counts_table(rows: Sequence[Any], title: str) -> Any:
    """A rich table of :class:`wbcd.report.counts.CountRow`: label, n, percent and its 95 % limits."""
    from rich.table import Table

    samples = {row.sample for row in rows}
    table = Table(title=title, title_justify="left")
    if len(samples) > 1:
        table.add_column("sample")
    for name, justify in (("class", "left"), ("cells", "right"), ("%", "right"), ("95 % limits", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        values = [row.label, str(row.n), f"{100 * row.fraction:.1f}", limits(row)]
        table.add_row(*([row.sample, *values] if len(samples) > 1 else values))
    return table


def limits(row: Any) -> str:
    """``12.3 - 45.6``."""
    return f"{100 * row.ci_low:.1f} - {100 * row.ci_high:.1f}"


def counts_line(rows: Sequence[Any]) -> str:
    """One line: ``B 12 (30.0 %, 18.1-45.4)  T ...``."""
    if not rows:
        return "no cells yet"
    return "  ".join(f"{row.label} {row.n} ({100 * row.fraction:.0f} %, {limits(row).replace(' ', '')})" for row in rows)
