"""`wbcd reprocess`: acquisitions that have an outcome already, once more with another recipe; the old rows stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import EXAMPLES, demand_sample, goes_on, meant_sample, site_options, to_json, with_setting
from wbcd.cli.printing import say
from wbcd.cli.progress import Bar

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.daemon.stages import Stages
    from wbcd.store import CurrentRun, Ledger

OUTCOMES = ("measured", "rejected", "set_aside")


@click.command(epilog=EXAMPLES["reprocess"])
@click.option("--accurate", is_flag=True, help="Reconstruct with the multi-slice model (tens of seconds a cell).")
@click.option("--sample", "samples", multiple=True, help="Only this sample; may be given again.")
@click.option(
    "--outcome",
    type=click.Choice(OUTCOMES),
    show_default="measured; with --outdated measured and rejected",
    help="Only what ends so by its current result.",
)
@click.option("--outdated", is_flag=True, help="Only what an older algorithm made: name it, and do nothing.")
@click.option("--apply", "really", is_flag=True, help="With --outdated: process what it names.")
@click.option("--dry-run", is_flag=True, help="Say of each file what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line and acquisition.")
@click.option("--keep-tomograms", is_flag=True, help="Keep each cell's RI volume as OME-Zarr in the output folder.")
@site_options
@goes_on("What has its line is stored; the same command goes on with the rest.")
def reprocess(
    config: Config,
    accurate: bool,
    samples: tuple[str, ...],
    outcome: str | None,
    outdated: bool,
    really: bool,
    dry_run: bool,
    as_json: bool,
    keep_tomograms: bool,
) -> None:
    """Process stored acquisitions again, as the configuration now says.

    Their source files are read once more: one that is gone, or whose content is not what was counted, is named and left
    alone. What has an outcome under the recipe and the model asked for is not processed again, so that a broken-off run
    goes on; that outcome becomes the current one, which is counted.

    Each recipe names the versions of the algorithms that computed. --outdated takes the files whose current result is of older
    versions than those of this wbcd: it names them first; with --apply it processes them.

    Exit status: 0; 2 wrong usage; 65 for a sample that is not stored; 78 wrong configuration.
    """
    if really and not outdated:
        raise click.UsageError("--apply is for --outdated; without it reprocess does what it says")
    if really and dry_run:
        raise click.UsageError("--apply and --dry-run exclude one another")
    if accurate:
        refined = dataclasses.replace(config.recipe.reconstruction, mode="accurate")
        config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, reconstruction=refined))
    config = with_setting(config, "output", keep_tomograms=keep_tomograms or None)
    from wbcd.daemon.places import demand_apart

    demand_apart(config)
    samples = tuple(meant_sample(config.database_url(), sample) or sample for sample in samples)
    for sample in samples:
        demand_sample(config.database_url(), sample)
    only_named = dry_run or (outdated and not really)
    wanted = Wanted(samples, outcome, outdated)
    named = 0
    for made in _made(config, wanted, only_named, show=not as_json):
        click.echo(to_json(made)) if as_json else say(_line(made))
        named += 1
    if outdated and not as_json:
        _close(named, only_named)


def _close(named: int, only_named: bool) -> None:
    if not named:
        say("wbcd: no current result was made by an older algorithm.", err=True)
    elif only_named:
        say(f"wbcd: {named} named, nothing done; the same command with --apply processes them again.", err=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Which acquisitions: of these samples (none: of all), whose current result ends so, and of older algorithms only."""

    samples: tuple[str, ...] = ()
    outcome: str | None = None
    outdated: bool = False


def _made(config: Config, wanted: Wanted, dry_run: bool, *, show: bool) -> Iterator[dict[str, Any]]:
    """An object for each acquisition, committed before it is given; those that cannot be processed first."""
    from wbcd.cli.outcomes import object_of
    from wbcd.daemon.assembly import make_stages, open_ledger
    from wbcd.daemon.logs import configure_logging
    from wbcd.daemon.once import ProcessOnce
    from wbcd.store.outdated import old_recipes

    configure_logging(config.service)
    stages = make_stages(config)
    with closing(stages), open_ledger(config, stages) as ledger:
        todo: list[Path] = []
        old = old_recipes(ledger) if wanted.outdated else None
        for run in chosen(ledger, wanted, old):
            path, content_id = Path(run.path), run.content_id
            why = "" if old is None else f": {old[run.recipe_id].sentence(config.recipe)}"
            more = {} if old is None else {"older_algorithms": dict(old[run.recipe_id].older)}
            problem = _problem(path, content_id, stages.identify)
            if problem:
                yield {"path": str(path), "outcome": None, "message": problem, **more}
            elif dry_run:
                message = _plan(ledger, path, content_id, config.recipe.recipe_id, stages) + why
                yield {"path": str(path), "outcome": None, "message": message, **more}
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


def chosen(ledger: Ledger, wanted: Wanted, old: Container[str] | None = None) -> list[CurrentRun]:
    """The current result of each acquisition that is wanted, each once, in the order of the store.

    ``old``: ids of the recipes that count as outdated; without an outcome named, what was set aside is not among these.
    """
    ended = wanted.outcome or (None if old is not None else "measured")
    return [
        run
        for run in ledger.current(ended)
        if (not wanted.samples or run.sample in wanted.samples)
        and (old is None or (run.recipe_id in old and (wanted.outcome is not None or run.outcome != "set_aside")))
    ]


def _plan(ledger: Ledger, path: Path, content_id: str, recipe_id: str, stages: Stages) -> str:
    """What a run would do, by the question that it asks itself."""
    from wbcd.records import differ

    model_id = stages.model_id
    stored = ledger.known(content_id, recipe_id, model_id)
    if stored is None:
        return f"{path} would be processed"
    file = ledger.remembered(path)
    now = dict(stages.companions(path, () if file is None else tuple(file.companions)))
    if stored.outcome != "set_aside" and differ(stored.companions, now):
        changed = sorted(name for name in now if differ(stored.companions, {name: now[name]}))
        return f"{path} would be processed, and its outcome replaced: {', '.join(changed)} came or changed after it was made"
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
