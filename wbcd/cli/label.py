"""`wbcd label` and `wbcd review`: what is known of a sample, and what a person saw in a cell."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, FiniteRange, demand_sample, installed_options, meant_sample, nearest, to_json
from wbcd.cli.printing import say
from wbcd.errors import NotStored, UnknownClass
from wbcd.records import NAME

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.store import SampleLabel


_new_class = click.option("--new-class", is_flag=True, help="CLASS is one that the model does not have.")


@click.command(epilog=EXAMPLES["label"])
@click.option("--sample", help="Name of the sample, as its files give it.")
@click.option("--as", "label_", metavar="CLASS", help="What its cells are, e.g. monocyte.")
@click.option("--purity", type=FiniteRange(0, 1, min_open=True), help="Share of the cells that the label holds for.")
@_new_class
@click.option("--by", help="Who says so.  [default: the user name]")
@click.option("--note", help="How it is known: sorting kit, control stain.")
@click.option("--list", "show", is_flag=True, help="Show the labels of all samples, or of --sample, oldest first.")
@click.option("--json", "as_json", is_flag=True, help="The labels as a JSON list.")
@installed_options
def label(
    config: Config,
    sample: str | None,
    label_: str | None,
    purity: float | None,
    new_class: bool,
    by: str | None,
    note: str | None,
    show: bool,
    as_json: bool,
) -> None:
    """Say what all cells of a sorted sample are. Labels are never changed: the newest holds, reviews of cells win over it.

    Exit status: 0; 65 for a sample that is not stored, or a class that no model has; 77 without the right; 69 database away.
    """
    from wbcd.store import Ledger

    listing = show or as_json
    if not listing and (not sample or not label_):
        raise click.UsageError("give --sample and --as, or --list")
    url = config.database_url()
    sample = meant_sample(url, sample)
    with Ledger.open(url, create=False) as ledger:
        if sample and label_:
            _demand_class(label_, ledger.classes_named(), new=new_class)
            try:
                ledger.label_sample(sample, label_, purity=purity, by=by or getpass.getuser(), note=note)
            except NotStored:
                demand_sample(url, sample)  # which names the nearest
                raise
            if not listing:
                pure = "" if purity is None else f", {purity:.1%} of them"
                say(f"sample {sample}: its cells are {label_}{pure}")
        if listing:
            found = ledger.sample_labels(sample)
            if sample and not found:
                demand_sample(url, sample)
            _list(found, as_json=as_json)


def _demand_class(name: str, known: set[str], *, new: bool) -> None:
    """Raises UnknownClass for a class that no model tells apart and nobody has named before, unless it is a ``new`` one.

    A misspelt one would be a class of its own in every count, and is never taken back.
    """
    if new or name in known or not NAME.fullmatch(name):  # what no class can be called, the ledger refuses with advice
        return
    near = nearest(name, known)
    what = f"Did you mean {near!r}?" if near else f"Known: {', '.join(sorted(known))}." if known else "None is known yet."
    raise UnknownClass(f"No model here has the class {name!r}. {what}")


def _list(found: list[SampleLabel], *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(found))
        return
    for row in found:
        pure = "" if row.purity is None else f" ({row.purity:.1%} pure)"
        say(f"{row.at:%Y-%m-%d %H:%M}  {row.sample}: {row.label}{pure}, by {row.labelled_by}")


@click.command(epilog=EXAMPLES["review"])
@click.argument("cell", type=int)
@click.option("--as", "label_", metavar="CLASS", required=True, help="What the cell is.")
@_new_class
@click.option("--by", help="Who looked.  [default: the user name]")
@click.option("--note", help="What was seen.")
@installed_options
def review(config: Config, cell: int, label_: str, new_class: bool, by: str | None, note: str | None) -> None:
    """Record what a person saw in CELL (its id in the database). Reviews are never changed: the newest holds.

    Exit status: 0; 65 for a cell that is not stored, or a class that no model has; 77 without the right; 69 database away.
    """
    from wbcd.store import Ledger

    with Ledger.open(config.database_url(), create=False) as ledger:
        _demand_class(label_, ledger.classes_named(), new=new_class)
        ledger.review(cell, by or getpass.getuser(), label_, note)
    say(f"cell {cell}: {label_}")
