"""`wbcd dataset`, `wbcd train`, `wbcd evaluate`, `wbcd model compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wbcd.cli.common import (
    AGAIN,
    ANEW,
    EXAMPLES,
    FiniteRange,
    Verbs,
    command_line,
    goes_on,
    input_options,
    installed_options,
    new_input_options,
    quiet_console,
    to_json,
)
from wbcd.cli.printing import say, warn

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.records import Shape3, Triple
    from wbcd.training.simulated import OpticsPath

SPLITS = ["train", "validation", "test", "test_donor", "all"]
SCHEMES = ["both", "cell", "donor"]
SPLIT_BY = "cell (the paper's), donor (whole donors), or both: donors held out first, the rest by cell."


@click.command(epilog=EXAMPLES["train"])
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--preset", type=click.Choice(["modern", "paper"]), default="modern", show_default=True)
@click.option(
    "--task",
    type=click.Choice(["four", "two"]),
    default="four",
    show_default=True,
    help="The set's classes, or their lineages.",
)
@click.option("--split-by", type=click.Choice(SCHEMES), default="both", show_default=True, help=SPLIT_BY)
@click.option("--width", type=click.IntRange(2), default=16, show_default=True, help="Channels of the stem; the paper's is 64.")
@click.option("--patience", type=click.IntRange(0), help="Stop after so many epochs without progress.  [default: the preset's]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@input_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="bf16 on CUDA only.",
)
@click.option(
    "--start", help="A model whose weights to begin with (a bundle, or `reference`); its box and pitch are taken over."
)
@click.option(
    "--learning-rate",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    help="The highest.  [default: the preset's; a tenth of it with --start]",
)
@click.option("--keep-features", is_flag=True, help="With --start: only the classifier learns, all before it stays.")
@click.option("--tensorboard", is_flag=True, help="Write OUT/tensorboard beside OUT/log.csv.")
@click.option("--name", default="wbcd", show_default=True, help="Name of the bundle.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
@goes_on(AGAIN)
def train(
    training_set: Path,
    out: Path,
    epochs: int,
    preset: str,
    task: str,
    split_by: str,
    width: int,
    patience: int | None,
    seed: int,
    shape: Shape3 | None,
    pitch: Triple | None,
    device: str,
    precision: str,
    start: str | None,
    learning_rate: float | None,
    keep_features: bool,
    tensorboard: bool,
    name: str,
    as_json: bool,
) -> None:
    """Train a classifier on TRAINING_SET and write OUT/bundle; an interrupted training goes on where it stopped."""
    from wbcd.training.fit import train as fit
    from wbcd.training.judge import part_sentence
    from wbcd.training.live import training_progress

    with training_progress(epochs, quiet_console(stderr=True)) as (on_epoch, on_step):
        report = fit(
            training_set,
            out,
            preset=preset,
            width=width,
            epochs=epochs,
            seed=seed,
            device=device,
            on_epoch=on_epoch,
            on_step=on_step,
            name=name,
            task=task,
            split_by=split_by,
            patience=patience,
            precision=precision,
            board=tensorboard,
            shape=shape,
            voxel_um=pitch,
            start=start,
            learning_rate=learning_rate,
            keep_features=keep_features,
            notes={"command": command_line()},
        )
    if as_json:
        facts = {"bundle": report.bundle, "model_id": report.model_id, "evaluations": report.evaluations}
        click.echo(to_json({**facts, "warnings": list(report.warnings)}))
        return
    say(f"{report.model_id} in {report.bundle}")
    for evaluation in report.evaluations.values():
        say(evaluation.sentence())
        for row in evaluation.parts:
            say(part_sentence(row))
    for warning in report.warnings:
        warn(warning)


@click.command(epilog=EXAMPLES["evaluate"])
@click.argument("bundle")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--also", multiple=True, help="Another seed of the same model; repeat for more: mean and SD are given.")
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--split-by", type=click.Choice(SCHEMES), help=f"{SPLIT_BY}  [default: as the model was trained]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.md, report.json and the plots.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="The whole report as one JSON object.")
@goes_on(ANEW)
def evaluate(
    bundle: str,
    training_set: Path,
    also: tuple[str, ...],
    split: str,
    split_by: str | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure BUNDLE (a folder, or `reference`) on the held-out cells of TRAINING_SET."""
    from wbcd.classification.bundle import resolve
    from wbcd.training.judge import counted_sentence, judge_models, part_sentence

    models = [resolve(name) for name in (bundle, *also)]
    judged = judge_models(models, training_set, split=split, split_by=split_by, device=device, out=out)
    if as_json:
        click.echo(to_json(judged.facts))
        return
    first = judged.evaluations[0]
    say(first.sentence())
    for row, label in zip(first.confusion, first.classes, strict=True):
        say(f"  {label:>12}  {'  '.join(f'{count:5d}' for count in row)}")
    if len(models) > 1:
        mean = judged.facts["summary"]["accuracy"]
        say(f"over {len(models)} models: {mean['mean']:.1%}, SD {100 * mean['sd']:.2f} points")
    if first.corrected is not None:
        say(first.corrected.sentence())
    say(counted_sentence(judged.facts))
    for row in judged.facts["parts"]:
        say(part_sentence(row))
    for warning in judged.facts["warnings"]:
        warn(warning)
    if out is not None:
        say(f"report in {out / 'report.md'}")


@click.command(epilog=EXAMPLES["model compare"])
@click.argument("first")
@click.argument("second")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), default="test", show_default=True)
@click.option("--split-by", type=click.Choice(SCHEMES), help=f"{SPLIT_BY}  [default: as the models were trained]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@goes_on(ANEW)
def compare(first: str, second: str, training_set: Path, split: str, split_by: str | None, device: str, as_json: bool) -> None:
    """Put two models beside one another on the same cells: McNemar's exact test, and the difference with its limits."""
    from wbcd.classification.bundle import resolve
    from wbcd.training.judge import compare_models

    found, what, warnings = compare_models(
        resolve(first), resolve(second), training_set, split=split, split_by=split_by, device=device
    )
    if as_json:
        click.echo(to_json({"classes": what, **to_plain(found), "warnings": warnings}))
        return
    say(f"{what}: {found.sentence()}")
    for warning in warnings:
        warn(warning)


def to_plain(found: object) -> dict[str, object]:
    """The fields of a dataclass."""
    import dataclasses

    return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}  # type: ignore[arg-type]  # always one


@click.group(cls=Verbs, epilog=EXAMPLES["dataset"])
def dataset() -> None:
    """Make training sets, and show what they hold."""


@dataset.command(epilog=EXAMPLES["dataset"])
@click.argument("folder", metavar="[PATH]", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), help="The set to make, where PATH does not name it.")
@click.option("--cells", type=click.IntRange(1), default=2400, show_default=True, help="Cells, the classes in equal numbers.")
@click.option(
    "--donors", type=click.IntRange(1), default=20, show_default=True, help="Simulated donors, each with its own means."
)
@click.option(
    "--first-donor",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Number of the first; other numbers, other people.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option(
    "--path",
    type=click.Choice(["fast", "exact", "ideal"]),
    default="fast",
    show_default=True,
    help="fast optics, holograms, or the phantoms themselves.",
)
@new_input_options
@goes_on(AGAIN)
def make(
    folder: Path | None,
    out: Path | None,
    cells: int,
    donors: int,
    first_donor: int,
    seed: int,
    workers: int,
    path: OpticsPath,
    shape: Shape3 | None,
    pitch: Triple | None,
) -> None:
    """Make a training set of simulated cells in PATH (Zarr); an interrupted one goes on where it stopped."""
    from wbcd.training.dataset import input_spec
    from wbcd.training.live import dataset_progress
    from wbcd.training.make import make_dataset

    if folder is not None and out is not None:
        raise click.UsageError("The set to make is named twice; leave out PATH or --out.")
    out = folder or out
    if out is None:
        raise click.UsageError("No set to make; name it: wbcd dataset make PATH.")
    with dataset_progress(cells, quiet_console(stderr=True)) as on_part:
        digest = make_dataset(
            out,
            cells,
            donors=donors,
            first_donor=first_donor,
            seed=seed,
            workers=workers,
            path=path,
            spec=input_spec(shape, pitch),
            on_part=on_part,
        )
    say(f"{out}: {cells} simulated cells, data hash {digest}")
    _warn(out)


@dataset.command("from-db", epilog=EXAMPLES["dataset"])
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The set to make (Zarr).")
@click.option(
    "--label-by",
    type=click.Choice(["sample", "review"]),
    default="sample",
    show_default=True,
    help="sample: a person's review of a cell wins over its sample's label; review: reviewed cells alone.",
)
@click.option("--classes", help="Only these labels, in this order: a,b,c.")
@click.option("--donors", type=click.Path(exists=True, path_type=Path), help="CSV with the columns sample and donor.")
@click.option("--recipe", help="Recipe id, instead of each file's current one.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the splits.")
@click.option("--measured/--simulated", default=None, help="What the cells are.  [default: as their files say]")
@new_input_options
@installed_options
@goes_on(AGAIN)
def from_db(
    config: Config,
    out: Path,
    label_by: str,
    classes: str | None,
    donors: Path | None,
    recipe: str | None,
    seed: int,
    measured: bool | None,
    shape: Shape3 | None,
    pitch: Triple | None,
) -> None:
    """Make a training set of the accepted cells whose tomograms were kept; each sample is a donor, but for --donors."""
    from wbcd.training.dataset import input_spec
    from wbcd.training.fromdb import dataset_from_db, read_donors
    from wbcd.training.live import dataset_progress

    with dataset_progress(None, quiet_console(stderr=True), "reading tomograms") as on_part:
        digest, chosen = dataset_from_db(
            config.database_url(),
            out,
            label_by="review" if label_by == "review" else "sample",
            classes=tuple(c.strip() for c in classes.split(",")) if classes else None,
            donors=read_donors(donors) if donors else None,
            recipe_id=recipe,
            spec=input_spec(shape, pitch) if shape or pitch else None,
            seed=seed,
            simulated=None if measured is None else not measured,
            on_part=on_part,
            root=config.output.dir,
        )
    say(f"{out}: {len(chosen.sources)} cells of {len(chosen.donors)} donors, data hash {digest}")
    for why, count in chosen.left_out.items():
        say(f"  left out: {count} {why}", err=True)
    _warn(out)


def _warn(path: Path) -> None:
    from wbcd.training.card import stored_warnings

    for warning in stored_warnings(path):
        warn(warning)


@dataset.command(epilog=EXAMPLES["dataset"])
@click.argument("training_sets", metavar="SETS...", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The set to make (Zarr).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the splits.")
@click.option(
    "--keep-splits", is_flag=True, help="Leave the first set's cells, and its donors, in the splits that they are in."
)
@goes_on(AGAIN)
def join(training_sets: tuple[Path, ...], out: Path, seed: int, keep_splits: bool) -> None:
    """Make one training set of several of the same kind; a donor in two of them is one donor. It goes on where it stopped."""
    from wbcd.training.join import join as join_sets
    from wbcd.training.live import dataset_progress

    with dataset_progress(None, quiet_console(stderr=True), "joining") as on_part:
        digest = join_sets(training_sets, out, seed=seed, keep_splits=keep_splits, on_part=on_part)
    say(f"{out}: {len(training_sets)} sets, data hash {digest}")
    _warn(out)


@dataset.command(epilog=EXAMPLES["dataset"])
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The data card as one JSON object.")
def show(training_set: Path, as_json: bool) -> None:
    """The data card of TRAINING_SET: where it comes from, its hash, its splits, and what it cannot show."""
    from wbcd.training import card
    from wbcd.training import dataset as sets

    found = card.data_card(sets.read_attributes(training_set), sets.load(training_set))
    click.echo(to_json(found) if as_json else card.page(training_set.name, found), nl=as_json)  # its names are escaped
