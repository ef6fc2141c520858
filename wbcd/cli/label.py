"""`wbcd label` and `wbcd review`: what is known of a sample, and what a person saw in a cell."""

from __future__ import annotations

import difflib
import getpass
from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, FiniteRange, site_options, to_json

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.store import SampleLabel


@click.command(epilog=EXAMPLES["label"])
@click.option("--sample", help="Name of the sample, as its files give it.")
@click.option("--as", "label_", metavar="CLASS", help="What its cells are, e.g. monocyte.")
@click.option("--purity", type=FiniteRange(0, 1, min_open=True), help="Share of the cells that the label holds for.")
@click.option("--by", help="Who says so.  [default: the user name]")
@click.option("--note", help="How it is known: sorting kit, control stain.")
@click.option("--list", "show", is_flag=True, help="Show the labels of all samples, or of --sample, oldest first.")
@click.option("--json", "as_json", is_flag=True, help="The labels as a JSON list.")
@site_options
def label(
    config: Config,
    sample: str | None,
    label_: str | None,
    purity: float | None,
    by: str | None,
    note: str | None,
    show: bool,
    as_json: bool,
) -> None:
    """Say what all cells of a sorted sample are. Labels are never changed: the newest holds, reviews of cells win over it."""
    from wbcd.store import Ledger

    listing = show or as_json
    if not listing and (not sample or not label_):
        raise click.UsageError("give --sample and --as, or --list")
    with Ledger.open(config.database_url(), create=False) as ledger:
        if sample and label_:
            used = ledger.classes_named()
            ledger.label_sample(sample, label_, purity=purity, by=by or getpass.getuser(), note=note)
            _warn_of_misspelling(label_, used, "label it")
            if not listing:
                pure = "" if purity is None else f", {purity:.1%} of them"
                click.echo(f"sample {sample}: its cells are {label_}{pure}")
        if listing:
            _list(ledger.sample_labels(sample), as_json=as_json)


def _warn_of_misspelling(label_: str, used: set[str], again: str) -> None:
    if label_ not in used and (near := difflib.get_close_matches(label_, used, 1, cutoff=0.8)):
        click.echo(f"warning: nothing was {label_!r} before; if {near[0]!r} is meant, {again} again.", err=True)


def _list(found: list[SampleLabel], *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(found))
        return
    for row in found:
        pure = "" if row.purity is None else f" ({row.purity:.1%} pure)"
        click.echo(f"{row.at:%Y-%m-%d %H:%M}  {row.sample}: {row.label}{pure}, by {row.labelled_by}")


@click.command(epilog=EXAMPLES["review"])
@click.argument("cell", type=int)
@click.option("--as", "label_", metavar="CLASS", required=True, help="What the cell is.")
@click.option("--by", help="Who looked.  [default: the user name]")
@click.option("--note", help="What was seen.")
@site_options
def review(config: Config, cell: int, label_: str, by: str | None, note: str | None) -> None:
    """Record what a person saw in CELL (its id in the database). Reviews are never changed: the newest holds."""
    from wbcd.store import Ledger

    with Ledger.open(config.database_url(), create=False) as ledger:
        used = ledger.classes_named()
        ledger.review(cell, by or getpass.getuser(), label_, note)
        _warn_of_misspelling(label_, used, "review it")
    click.echo(f"cell {cell}: {label_}")
