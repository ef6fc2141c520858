"""Lines and tables for a person. Every name goes through :mod:`wbcd.names` here; rich is imported where it draws.

Rows are as :meth:`wbcd.report.counts.CountRow.as_dict` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from wbcd.names import in_column, shown

Row = dict[str, Any]

SIMULATED_MODEL = "model trained on simulated cells"


def say(text: str, *, err: bool = False) -> None:
    """One line for a person, on standard output or standard error, whatever the names in it are made of."""
    click.echo(shown(text), err=err)


def warn(text: str) -> None:
    """A warning, on standard error."""
    say(f"warning: {text}", err=True)


def counts_table(rows: Sequence[Row], title: str) -> Any:
    """A rich table: sample, label, n, percent and its 95 % limits. Nothing in it is cropped: a long name goes on below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(shown(title)), title_justify="left")
    table.add_column("sample", overflow="fold")
    table.add_column("class", overflow="fold")
    for name in ("cells", "%", "95 % limits"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        values = (in_column(row["sample"]), in_column(row["label"]), str(row["n"]), f"{100 * row['fraction']:.1f}", limits(row))
        table.add_row(*map(Text, values))
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
