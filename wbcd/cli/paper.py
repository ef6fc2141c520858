"""`wbcd paper`: the paper's experiments, one command each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from wbcd.cli.common import EXAMPLES, to_json


@click.command(epilog=EXAMPLES["paper"])
@click.argument("figure", type=click.Choice(["fig2", "fig3", "fig4", "figS2", "all"]))
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="A training set (wbcd dataset).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for tables, plots and figures.json.")
@click.option("--quick", is_flag=True, help="Small networks, few epochs: a look at the pages, not at the figures.")
@click.option("--preset", type=click.Choice(["modern", "paper"]), default="modern", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Networks of each kind: mean and SD.")
@click.option("--epochs", type=click.IntRange(1), help="Of a network on all training cells.  [default: 20]")
@click.option("--width", type=click.IntRange(2), help="Channels of the stem.  [default: 16]")
@click.option("--umap/--no-umap", default=True, show_default=True, help="Draw the features of figure 3 in two dimensions.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="The figures as one JSON object.")
def paper(
    figure: str,
    data: Path,
    out: Path,
    quick: bool,
    preset: str,
    seeds: int,
    epochs: int | None,
    width: int | None,
    umap: bool,
    device: str,
    as_json: bool,
) -> None:
    """Make FIGURE of the paper from one's own set; an interrupted run goes on where it stopped.

    On simulated cells the ordering of the methods is partly a property of the phantoms, and no evidence for the paper.
    """
    from wbcd.training.paper import FIGURES, FULL, QUICK, run_experiments

    size = QUICK if quick else FULL
    size = replace(size, seeds=seeds, epochs=epochs or size.epochs, width=width or size.width)
    chosen = FIGURES if figure == "all" else (figure,)
    facts = run_experiments(
        chosen, data, out, size=size, preset=preset, device=device, umap=umap, say=lambda text: click.echo(text, err=True)
    )
    click.echo(to_json(facts) if as_json else f"{', '.join(chosen)} in {out / 'paper.md'}")
