"""`wbcd simulate`: acquisitions of simulated cells, as an instrument would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from wbcd.cli.common import AGAIN, EXAMPLES, RESEARCH_ONLY, FiniteRange, goes_on
from wbcd.cli.printing import say


@click.command(epilog=EXAMPLES["simulate"])
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cells", type=click.IntRange(1), default=20, show_default=True, help="Cells, one an acquisition.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--rate", type=FiniteRange(0, min_open=True), help="Acquisitions a second; as fast as it goes by default.")
@click.option("--format", "form", type=click.Choice(["hologram", "tcf", "tiff", "mat"]), default="hologram", show_default=True)
@click.option("--defects", type=FiniteRange(0, 1), default=0.0, show_default=True, help="Fraction of bad acquisitions.")
@click.option("--sample", default="simulated", show_default=True, help="Sample name in the files.")
@click.option(
    "--truth",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What was simulated, as JSON lines; by default OUT.truth.jsonl.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@goes_on(AGAIN)
def simulate(
    out: Path,
    cells: int,
    seed: int,
    rate: float | None,
    form: str,
    defects: float,
    sample: str,
    truth: Path | None,
    quiet: bool,
) -> None:
    """Write acquisitions of simulated cells into OUT.

    `hologram`: raw off-axis holograms through a multi-slice model; `tiff`, `mat`: the same in rigs' own layouts (TIFF pairs
    with notes, MATLAB v7.3 sessions); `tcf`: RI volumes through fast optics.
    """
    if truth is not None and truth.absolute().parent == out.absolute():
        raise click.UsageError(f"--truth {truth} lies in the folder OUT, which only the instrument writes; put it elsewhere")
    from rich.console import Console
    from rich.progress import Progress

    from wbcd.simulation.microscope import simulate as run

    kind = cast(Literal["hologram", "tcf", "tiff", "mat"], form)  # click has checked it

    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("simulating", total=cells)
        count = 0
        for _ in run(out, cells=cells, seed=seed, rate=rate, format=kind, defects=defects, sample=sample, truth=truth):
            count += 1
            bar.advance(task)
    say(f"{count} acquisitions in {out}. Simulated. {RESEARCH_ONLY}", err=True)
