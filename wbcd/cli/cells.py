"""`wbcd cells`: cells one by one, with the id that `wbcd review` wants, for a person, a spreadsheet or a program."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wbcd.cli.common import EXAMPLES, RESEARCH_ONLY, installed_options, meant_sample, to_json
from wbcd.errors import NotStored, not_written
from wbcd.names import in_column

if TYPE_CHECKING:
    from wbcd.config import Config

Row = dict[str, Any]

PICTURES_AT_ONCE: Final = 100

WIDTHS: Final = {"id": 7, "sample": 13, "class": 14, "p": 5, "volume": 7, "mass": 6, "mean RI": 9, "review": 13}
"""Of the columns of the table, 80 together with the two spaces between texts; numbers stand to the right."""


@click.command(epilog=EXAMPLES["cells"])
@click.option("--sample", help="Only this sample.")
@click.option("--label", metavar="CLASS", help="Only what is counted as this class; unclassified is one.")
@click.option("--uncertain", is_flag=True, help="Only what the model would not name or that may be another class, worst first.")
@click.option(
    "--order",
    type=click.Choice(["oldest", "newest", "doubtful"]),
    help="doubtful: unclassified cells, then the smallest probability.  [default: oldest; doubtful with --uncertain]",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many cells.")
@click.option("--refused", is_flag=True, help="Refused cells too, and those of rejected files.")
@click.option("--time-points", is_flag=True, help="Of a time lapse every time point, not only the first.")
@click.option("--all", "every", is_flag=True, help="Results of every recipe and model, not only the current ones.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line and cell, with everything that is known of it.")
@click.option("--csv", "as_csv", is_flag=True, help="The same as CSV, with a heading.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Folder for a picture of each, cell-ID.png.")
@installed_options
def cells(
    config: Config,
    sample: str | None,
    label: str | None,
    uncertain: bool,
    order: str | None,
    limit: int | None,
    refused: bool,
    time_points: bool,
    every: bool,
    as_json: bool,
    as_csv: bool,
    pictures: Path | None,
) -> None:
    """The cells that are counted, one a line, each with the id that `wbcd review` wants.

    p is the model's probability of its label. Uncertainties, flags, file and recipe are in --json and --csv; units are in the
    names of their columns.

    Exit status: 0; 65 for a sample or a class that is not stored; 69 when the database is away.
    """
    from wbcd.report.cells import COLUMNS, read_cells

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    url = config.database_url()
    sample = meant_sample(url, sample)
    chosen: Any = order or ("doubtful" if uncertain else "oldest")
    asked = read_cells(
        url,
        sample=sample,
        label=label,
        uncertain=uncertain,
        refused=refused,
        later=time_points,
        every=every,
        order=chosen,
        limit=limit,
    )
    with closing(asked) as found:
        first = next(found, None)
        rows: Iterable[Row] = found if first is None else itertools.chain([first], found)
        if first is None:
            _demand_known(url, sample, label)
        if pictures is not None:
            rows = _with_pictures(url, rows, pictures)
        if as_json:
            _write(to_json(row) for row in rows)
        elif as_csv:
            _write_csv(rows, COLUMNS)
        elif first is None:
            click.echo("No such cell is counted yet." if sample or label or uncertain else "No cells are counted yet.")
        else:
            _write(_table(rows))


def _demand_known(url: str, sample: str | None, label: str | None) -> None:
    """No cell was found: raises NotStored where the sample or the class is none that is known, and names the nearest."""
    from wbcd.report.cells import known_labels, known_samples

    if sample is not None:
        _demand("sample", sample, known_samples(url))
    if label is not None:
        _demand("class", label, known_labels(url))


def _demand(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise NotStored(f"There is no {what} '{name}'.", action=f"Did you mean '{near[0]}'?" if near else None)


# --- for a person -----------------------------------------------------------------------------------


def _table(rows: Iterable[Row]) -> Iterator[str]:
    """Heading, a line a cell, and at the end how many. Names that are too long are shortened in the middle."""
    yield _columns("cell id", "sample", "class", "p", "volume", "mass", "mean RI", "review")
    yield _columns("", "", "", "", "fL", "pg", "", "")
    count, simulated = 0, False
    for row in rows:
        count, simulated = count + 1, simulated or row["simulated_model"]
        yield _line(row)
    yield f"{count} cell{'' if count == 1 else 's'}"
    if simulated:
        yield f"model trained on simulated cells. {RESEARCH_ONLY}"


def _line(row: Row) -> str:
    name = row["counted_as"] or row["reason"] or "-"
    p, mean_ri = _number(row["probability"], 2), _number(row["mean_ri"], 4)
    volume, mass = _number(row["volume_fl"], 1), _number(row["dry_mass_pg"], 1)
    return _columns(str(row["cell_id"]), row["sample"], name, p, volume, mass, mean_ri, row["review"] or "")


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _columns(cell_id: str, sample: str, label: str, p: str, volume: str, mass: str, mean_ri: str, review: str) -> str:
    names = "  ".join((cell_id.rjust(WIDTHS["id"]), _fitted(sample, WIDTHS["sample"]), _fitted(label, WIDTHS["class"])))
    shown = {"p": p, "volume": volume, "mass": mass, "mean RI": mean_ri}
    numbers = "".join(text.rjust(WIDTHS[name]) for name, text in shown.items())
    return f"{names}{numbers}  {_fitted(review, WIDTHS['review'])}".rstrip()


def _fitted(name: str, width: int) -> str:
    """The name in so many columns; of a long one the beginning and the end, for names of one series differ there."""
    text = in_column(name)
    if len(text) > width:
        end = (width - 3) // 2
        text = f"{text[: width - 3 - end]}...{text[-end:]}"
    return text.ljust(width)


# --- for a program ----------------------------------------------------------------------------------


def _write(lines: Iterable[str]) -> None:
    out = sys.stdout
    for line in lines:
        out.write(f"{line}\n")  # not click.echo, which flushes each of a million lines
    out.flush()


def _write_csv(rows: Iterable[Row], columns: tuple[str, ...]) -> None:
    out = sys.stdout
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_plain(row[name]) for name in columns])
    out.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, list) else value


# --- pictures ---------------------------------------------------------------------------------------


def _with_pictures(url: str, rows: Iterable[Row], folder: Path) -> Iterator[Row]:
    """The rows, each given on when its picture is written."""
    from wbcd.report.cells import pictures
    from wbcd.report.figures import labelled_picture

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(f"The folder {folder}", error) from error
    pending = iter(rows)
    while some := list(itertools.islice(pending, PICTURES_AT_ONCE)):
        found = pictures(url, [row["cell_id"] for row in some])
        for row in some:
            if png := found.get(row["cell_id"]):
                said = row["counted_as"] or row["reason"] or ""
                labelled_picture(
                    png, folder / f"cell-{row['cell_id']}.png", cell_id=row["cell_id"], sample=row["sample"], said=said
                )
            yield row
