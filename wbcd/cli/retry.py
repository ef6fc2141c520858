"""`wbcd retry` and `wbcd sample move`: by hand, and in the journal."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, EXIT_DATA, Verbs, installed_options, meant_sample, to_json
from wbcd.cli.printing import say
from wbcd.errors import NotStored

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.store import Ledger


@click.command(epilog=EXAMPLES["retry"])
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--reason", "reasons", multiple=True, help="Only what was set aside for this reason, as `wbcd status` names it.")
@click.option("--sample", help="Only files of this sample.")
@click.option("--rejected", is_flag=True, help="What was rejected too, not only what was set aside.")
@click.option("--by", help="Who asks.  [default: the login]")
@click.option("--dry-run", is_flag=True, help="Say which files, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@installed_options
def retry(
    config: Config,
    paths: tuple[Path, ...],
    reasons: tuple[str, ...],
    sample: str | None,
    rejected: bool,
    by: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask that files which were set aside are processed again: those named, of one reason or sample, or all.

    The daemon takes them up within a rescan; without one, `wbcd process PATH` does. Until then the old outcome stands, and
    the journal keeps it when another takes its place. What is measured is never opened here: see `wbcd reprocess`.

    Exit status: 0; 65 when nothing that was set aside is meant; 69 database away; 78 wrong configuration.
    """
    from wbcd.store import Ledger

    sample = meant_sample(config.database_url(), sample)
    with Ledger.open(config.database_url(), create=False, host=config.host) as ledger:
        found = ledger.set_aside(
            reasons=reasons or None,
            ended=("set_aside", "rejected") if rejected else ("set_aside",),
            sample=sample,
            paths=[str(path.absolute()) for path in paths] or None,
        )
        files = sorted({row.path for row in found})
        opened = (
            set()
            if dry_run
            else ledger.reopen([row.run_id for row in found], "asked for by hand", by=(by or "").strip() or getpass.getuser())
        )
        left = sorted({row.path for row in found if row.run_id not in opened}) if not dry_run else []
    if as_json:
        click.echo(to_json({"files": files, "opened": len(opened), "left_alone": left, "dry_run": dry_run}))
    else:
        _say(files, left, dry_run)
    if not files:
        raise SystemExit(EXIT_DATA)


def _say(files: list[str], left: list[str], dry_run: bool) -> None:
    for path in files:
        say(f"{'would be processed again' if dry_run else 'left alone' if path in left else 'to be processed again'}: {path}")
    if not files:
        say("wbcd: nothing that was set aside is meant; `wbcd status` names what was, and why.", err=True)
    elif left:
        say("Left alone: asked for already, or a person has read one of its cells.", err=True)
    elif not dry_run:
        say("The daemon takes them up at its next look; without one, name them to `wbcd process`.", err=True)


@click.group(cls=Verbs, epilog=EXAMPLES["sample move"])
def sample() -> None:
    """Which sample an acquisition belongs to."""


@sample.command(epilog=EXAMPLES["sample move"])
@click.argument("what", nargs=-1)
@click.option("--from", "source", help="Every acquisition of this sample.")
@click.option("--to", "target", required=True, help="The sample they belong to.")
@click.option("--by", help="Who says so.  [default: the login]")
@click.option("--note", help="Why.")
@click.option("--dry-run", is_flag=True, help="Say which, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@installed_options
def move(
    config: Config,
    what: tuple[str, ...],
    source: str | None,
    target: str,
    by: str | None,
    note: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Assign acquisitions to another sample: WHAT is files, or content ids. Their counts move with them.

    Nothing else moves an acquisition: a file that is given again under another sample stays where it was counted. Each move is
    in the journal, with who, when, from where and why.

    Exit status: 0; 2 wrong usage; 65 no such acquisition or sample; 69 database away; 78 wrong configuration.
    """
    from wbcd.store import Ledger

    if not target.strip():
        raise click.UsageError("--to is empty; name the sample they belong to")
    if bool(what) == bool(source):
        raise click.UsageError("name files or content ids, or give --from SAMPLE")
    source = meant_sample(config.database_url(), source)
    with Ledger.open(config.database_url(), create=False, host=config.host) as ledger:
        chosen = _chosen(ledger, what, source)
        moved = (
            0 if dry_run else ledger.move_sample(list(chosen), target, by=(by or "").strip() or getpass.getuser(), note=note)
        )
    if as_json:
        click.echo(to_json({"acquisitions": chosen, "to": target, "moved": moved, "dry_run": dry_run}))
        return
    for path in chosen.values():
        say(f"{'would move' if dry_run else 'moved'} to '{target}': {path}")
    if not dry_run:
        say(f"{moved} of {len(chosen)} acquisitions moved to '{target}'.")


def _chosen(ledger: Ledger, what: tuple[str, ...], source: str | None) -> dict[str, str]:
    """Content id -> path of the acquisitions meant. Raises `NotStored` for a name that means none."""
    known = ledger.acquisitions(sample=source)
    if source is not None:
        if not known:
            raise NotStored(f"There is no sample '{source}'.", action="Name a sample of `wbcd counts`.")
        return known
    chosen: dict[str, str] = {}
    for name in what:
        path = str(Path(name).absolute())
        file = ledger.remembered(name)
        here = [] if file is None or file.content_id not in known else [file.content_id]
        meant = [name] if name in known else here or [content_id for content_id, one in known.items() if one == path]
        if not meant:
            raise NotStored(f"{name} is no file or content id that was processed.", action="Name one of `wbcd cells --json`.")
        if len(meant) > 1:
            raise NotStored(
                f"{name} is the path of {len(meant)} acquisitions.", action=f"Give a content id: {', '.join(meant)}."
            )
        chosen[meant[0]] = known[meant[0]]
    return chosen
