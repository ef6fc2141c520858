"""`wbcd reprocess`: acquisitions that have an outcome already, once more with another recipe; the old rows stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import EXAMPLES, demand_sample, goes_on, site_options, to_json, with_setting
from wbcd.cli.printing import say
from wbcd.cli.progress import Bar

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.store import Ledger

OUTCOMES = ("measured", "rejected", "set_aside")


@click.command(epilog=EXAMPLES["reprocess"])
@click.option("--accurate", is_flag=True, help="Reconstruct with the multi-slice model (tens of seconds a cell).")
@click.option("--sample", "samples", multiple=True, help="Only this sample; may be given again.")
@click.option(
    "--outcome",
    type=click.Choice(OUTCOMES),
    default="measured",
    show_default=True,
    help="Only what ends so by its current result.",
)
@click.option("--dry-run", is_flag=True, help="Say of each file what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line and acquisition.")
@click.option("--keep-tomograms", is_flag=True, help="Keep each cell's RI volume as OME-Zarr in the output folder.")
@site_options
@goes_on("What has its line is stored; the same command goes on with the rest.")
def reprocess(
    config: Config,
    accurate: bool,
    samples: tuple[str, ...],
    outcome: str,
    dry_run: bool,
    as_json: bool,
    keep_tomograms: bool,
) -> None:
    """Process stored acquisitions again, as the configuration now says.

    Their source files are read once more: one that is gone, or whose content is not what was counted, is named and left
    alone. What has an outcome under the recipe and the model asked for is not processed again, so that a broken-off run
    goes on; that outcome becomes the current one, which is counted.

    Exit status: 0; 2 wrong usage; 65 for a sample that is not stored; 78 wrong configuration.
    """
    if accurate:
        refined = dataclasses.replace(config.recipe.reconstruction, mode="accurate")
        config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, reconstruction=refined))
    config = with_setting(config, "output", keep_tomograms=keep_tomograms or None)
    from wbcd.daemon.places import demand_apart

    demand_apart(config)
    for sample in samples:
        demand_sample(config.database_url(), sample)
    for made in _made(config, samples, outcome, dry_run, show=not as_json):
        click.echo(to_json(made)) if as_json else say(_line(made))


def _made(config: Config, samples: tuple[str, ...], outcome: str, dry_run: bool, *, show: bool) -> Iterator[dict[str, Any]]:
    """An object for each acquisition, committed before it is given; those that cannot be processed first."""
    from wbcd.cli.outcomes import object_of
    from wbcd.daemon.assembly import make_stages, open_ledger
    from wbcd.daemon.logs import configure_logging
    from wbcd.daemon.once import ProcessOnce

    configure_logging(config.service)
    stages = make_stages(config)
    with closing(stages), open_ledger(config, stages) as ledger:
        todo: list[Path] = []
        for path, content_id in chosen(ledger, samples, outcome):
            problem = _problem(path, content_id, stages.identify)
            if problem:
                yield {"path": str(path), "outcome": None, "message": problem}
            elif dry_run:
                message = _plan(ledger, path, content_id, config.recipe.recipe_id, stages.model_id)
                yield {"path": str(path), "outcome": None, "message": message}
            else:
                todo.append(path)
        once = ProcessOnce(config, stages, ledger, replace_changed=True)
        with Bar("reprocessing", len(todo), shown=show) as bar:
            configure_logging(config.service)  # again: beside a bar standard error is another, which keeps the lines apart
            for path in todo:
                result = once(path)
                with bar.aside():
                    yield object_of(result, path, config.output.dir)
                bar.advance()


def chosen(ledger: Ledger, samples: tuple[str, ...], outcome: str) -> list[tuple[Path, str]]:
    """Path and content id of each acquisition whose current result is ``outcome``, each once, in the order of the store."""
    return [(Path(run.path), run.content_id) for run in ledger.current(outcome) if not samples or run.sample in samples]


def _plan(ledger: Ledger, path: Path, content_id: str, recipe_id: str, model_id: str) -> str:
    """What a run would do, by the question that it asks itself."""
    stored = ledger.known(content_id, recipe_id, model_id)
    if stored is None:
        return f"{path} would be processed"
    held = f"{path} would be left as it is: it has its outcome under this recipe and model ({stored.outcome.replace('_', ' ')})"
    (current,) = ledger.current(content_id=content_id)
    return held if (current.recipe_id, current.model_id) == (recipe_id, model_id) else f"{held}, which would be the current one"


def _problem(path: Path, content_id: str, identify: Any) -> str | None:
    """Why a stored acquisition cannot be processed again; None when it can."""
    from wbcd.errors import InputError

    try:
        now = identify(path)
    except (InputError, OSError) as error:
        return f"{path}: {error.sentence() if isinstance(error, InputError) else error.strerror}"
    if now.content_id != content_id:
        return f"{path} no longer holds what was counted (its content changed); process it as a new file if it should count."
    return None


def _line(made: dict[str, Any]) -> str:
    from wbcd.cli.outcomes import outcome_line

    return str(made["message"]) if made["outcome"] is None else outcome_line(made)
