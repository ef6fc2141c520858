"""`wbcd paper`: the paper's experiments, one command each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import AGAIN, EXAMPLES, goes_on, input_options, quiet_console, to_json
from wbcd.cli.printing import say
from wbcd.names import shown

if TYPE_CHECKING:
    from wbcd.records import Shape3, Triple


class Shares(click.ParamType[Any]):
    """Numbers above 0 and at most 1, ascending."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Each once."""
        if isinstance(value, tuple):
            return value
        try:
            shares = tuple(sorted({float(part) for part in str(value).split(",")}))
        except ValueError:
            shares = ()
        if not shares or not all(0 < share <= 1 for share in shares):
            self.fail(f"{value!r} is not a list of shares above 0 and at most 1, as 0.1,0.5,1.", param, ctx)
        return shares


@click.command(epilog=EXAMPLES["paper"])
@click.argument("figure", type=click.Choice(["fig2", "fig3", "fig4", "figS2", "oracle", "all"]))
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="A training set (wbcd dataset).  [default: 2400 simulated cells, made in OUT/cells.zarr; 320 with --quick]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for tables, plots and figures.json.")
@click.option(
    "--ideal", type=click.Path(exists=True, path_type=Path), help="For oracle: the same phantoms, made with --path ideal."
)
@click.option("--quick", is_flag=True, help="Small networks, few epochs: a look at the pages, not at the figures.")
@click.option("--preset", type=click.Choice(["modern", "paper"]), default="modern", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Networks of each kind: mean and SD.")
@click.option("--epochs", type=click.IntRange(1), help="Of a network on all training cells.  [default: 20]")
@click.option("--width", type=click.IntRange(2), help="Channels of the stem.  [default: 16]")
@click.option(
    "--shares", type=Shares(), metavar="S,S,...", help="Of the training cells, for figS2.  [default: 0.05,0.1,0.25,0.5,1]"
)
@input_options
@click.option("--umap/--no-umap", default=True, show_default=True, help="Draw the features of figure 3 in two dimensions.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
@goes_on(AGAIN)
def paper(
    figure: str,
    data: Path | None,
    out: Path,
    ideal: Path | None,
    quick: bool,
    preset: str,
    seeds: int,
    epochs: int | None,
    width: int | None,
    shares: tuple[float, ...] | None,
    shape: Shape3 | None,
    pitch: Triple | None,
    umap: bool,
    device: str,
    as_json: bool,
) -> None:
    """Make FIGURE of the paper from one's own set; an interrupted run goes on where it stopped.

    On simulated cells the ordering of the methods is partly a property of the phantoms, and no evidence for the paper.
    """
    from wbcd.training.paper import FIGURES, FULL, ORACLE, QUICK, run_experiments

    if ideal and figure not in ("oracle", "all"):
        raise click.UsageError("--ideal goes with oracle or all.")
    size = QUICK if quick else FULL
    size = replace(size, seeds=seeds, epochs=epochs or size.epochs, width=width or size.width, shares=shares or size.shares)
    # Nobody knows what could be known of measured cells: with all, the oracle is asked only where its set is given.
    chosen = (*FIGURES, *([ORACLE] if ideal else ())) if figure == "all" else (figure,)
    facts = run_experiments(
        chosen,
        data or _own_set(out / "cells.zarr", quick),
        out,
        size=size,
        preset=preset,
        device=device,
        umap=umap,
        shape=shape,
        voxel_um=pitch,
        ideal=ideal,
        say=lambda text: say(text, err=True),
    )
    click.echo(to_json(facts) if as_json else shown(f"{', '.join(chosen)} in {out / 'paper.md'}"))


def _own_set(path: Path, quick: bool) -> Path:
    """A set of simulated cells in ``path``, made where it is not there yet or not whole."""
    from wbcd.training.live import dataset_progress
    from wbcd.training.make import make_dataset

    cells, donors = (320, 8) if quick else (2400, 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    with dataset_progress(cells, quiet_console(stderr=True)) as on_part:
        make_dataset(path, cells, donors=donors, seed=1, on_part=on_part)
    return path
