"""Tables for a person, of rows as :meth:`wbcd.report.counts.CountRow.as_dict` gives them. rich is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def counts_table(rows: Sequence[Row], title: str) -> Any:
    """A rich table: sample, label, n, percent and its 95 % limits."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("sample")
    table.add_column("class")
    for name in ("cells", "%", "95 % limits"):
        table.add_column(name, justify="right")
    for row in rows:
        values = [row["sample"], row["label"], str(row["n"]), f"{100 * row['fraction']:.1f}", limits(row)]
        table.add_row(*values)
    return table


def limits(row: Row) -> str:
    """``12.3 - 45.6``, percent."""
    return f"{100 * row['ci_low']:.1f} - {100 * row['ci_high']:.1f}"


def counts_line(rows: Sequence[Row]) -> str:
    """One line: ``monocyte 12 (30 %, 18.1-45.4)  ...``."""
    if not rows:
        return "no cells yet"
    return "  ".join(
        f"{row['label']} {row['n']} ({100 * row['fraction']:.0f} %, {limits(row).replace(' ', '')})" for row in rows
    )
