"""`wbcd dataset`, `wbcd train`, `wbcd evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wbcd.cli.common import EXAMPLES, quiet_console, to_json


@click.command(epilog=EXAMPLES["train"])
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--preset", type=click.Choice(["modern", "paper"]), default="modern", show_default=True)
@click.option("--width", type=click.IntRange(2), default=16, show_default=True, help="Channels of the stem; the paper's is 64.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--name", default="wbcd", show_default=True, help="Name of the bundle.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def train(
    training_set: Path, out: Path, epochs: int, preset: str, width: int, seed: int, device: str, name: str, as_json: bool
) -> None:
    """Train a classifier on TRAINING_SET and write OUT/bundle; an interrupted training goes on where it stopped."""
    from wbcd.training.fit import train as fit
    from wbcd.training.live import training_progress

    with training_progress(epochs, quiet_console(stderr=True)) as on_epoch:
        report = fit(
            training_set, out, preset=preset, width=width, epochs=epochs, seed=seed, device=device, on_epoch=on_epoch, name=name
        )
    if as_json:
        click.echo(to_json({"bundle": report.bundle, "model_id": report.model_id, "evaluations": report.evaluations}))
        return
    click.echo(f"{report.model_id} in {report.bundle}")
    for evaluation in report.evaluations.values():
        click.echo(evaluation.sentence())


@click.command(epilog=EXAMPLES["evaluate"])
@click.argument("bundle")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--split", type=click.Choice(["train", "validation", "test", "test_donor"]), default="test", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="The evaluation as one JSON object.")
def evaluate(bundle: str, training_set: Path, split: str, device: str, as_json: bool) -> None:
    """Measure BUNDLE (a folder, or `reference`) on the held-out cells of TRAINING_SET."""
    from wbcd.classification.bundle import resolve
    from wbcd.training.evaluation import evaluate as measure

    result = measure(resolve(bundle), training_set, split, device=device)
    if as_json:
        click.echo(to_json(result.as_json()))
        return
    click.echo(result.sentence())
    for row, label in zip(result.confusion, result.classes, strict=True):
        click.echo(f"  {label:>12}  {'  '.join(f'{count:5d}' for count in row)}")


@click.group(epilog=EXAMPLES["dataset"])
def dataset() -> None:
    """Make training sets."""


@dataset.command(epilog=EXAMPLES["dataset"])
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--cells", type=click.IntRange(1), default=2400, show_default=True, help="Cells, the classes in equal numbers.")
@click.option(
    "--donors", type=click.IntRange(1), default=20, show_default=True, help="Simulated donors, each with its own means."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option(
    "--path", type=click.Choice(["fast", "exact"]), default="fast", show_default=True, help="fast optics, or holograms."
)
def make(out: Path, cells: int, donors: int, seed: int, workers: int, path: str) -> None:
    """Make a training set of simulated cells in OUT (Zarr); an interrupted one goes on where it stopped."""
    from wbcd.training.live import dataset_progress
    from wbcd.training.make import make_dataset

    optics: Literal["fast", "exact"] = "exact" if path == "exact" else "fast"
    with dataset_progress(cells, quiet_console(stderr=True)) as on_part:
        digest = make_dataset(out, cells, donors=donors, seed=seed, workers=workers, path=optics, on_part=on_part)
    click.echo(f"{out}: {cells} simulated cells, data hash {digest}")
