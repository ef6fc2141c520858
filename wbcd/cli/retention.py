"""`wbcd retention`: remove old tomograms; shows what it would do unless told to do it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, FiniteRange, goes_on, installed_options, to_json
from wbcd.cli.printing import say

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.store.retention import Plan

DAY_S = 86400.0
GIB = 2**30


@click.command(epilog=EXAMPLES["retention"])
@click.option("--max-age-days", type=FiniteRange(0, 36_500, min_open=True), help="Remove tomograms older than this.")
@click.option("--max-gib", type=FiniteRange(0, 1_000_000_000), help="Remove the oldest until the rest is not larger than this.")
@click.option("--apply", "really", is_flag=True, help="Do it; without this nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@installed_options
@goes_on("What is removed is in the journal; the same command goes on with the rest.")
def retention(config: Config, max_age_days: float | None, max_gib: float | None, really: bool, as_json: bool) -> None:
    """Remove kept tomograms by age and by total size. Rows, counts and pictures stay; the journal says what went.

    Without --apply it only shows what would go.
    """
    from wbcd.store import Ledger
    from wbcd.store import retention as store

    if max_age_days is None and max_gib is None:
        raise click.UsageError("say --max-age-days or --max-gib, or both")
    root = config.output.dir
    with Ledger.open(config.database_url(), create=False) as ledger:
        plan = store.plan(
            ledger,
            root,
            now_s=time.time(),
            max_age_s=None if max_age_days is None else max_age_days * DAY_S,
            max_bytes=None if max_gib is None else int(max_gib * GIB),
        )
        removed = len(list(store.apply(ledger, root, plan, why=_why(max_age_days, max_gib)))) if really else 0
    if as_json:
        click.echo(to_json(_as_dict(plan, removed, really=really)))
        return
    for image in plan.removed:
        say(f"{'removed' if really else 'would remove'} {image.path} ({image.size_bytes / 2**20:.1f} MiB)")
    _summary(plan, removed, really=really)


def _why(max_age_days: float | None, max_gib: float | None) -> str:
    parts = [] if max_age_days is None else [f"older than {max_age_days:g} days"]
    return " or ".join(parts + ([] if max_gib is None else [f"the oldest beyond {max_gib:g} GiB"]))


def _as_dict(plan: Plan, removed: int, *, really: bool) -> dict[str, object]:
    return {
        "applied": really,
        "chosen": [str(image.path) for image in plan.removed],
        "chosen_bytes": plan.removed_bytes,
        "removed": removed,
        "kept": plan.kept,
        "kept_bytes": plan.kept_bytes,
        "named_by_no_row": plan.unnamed,
    }


def _summary(plan: Plan, removed: int, *, really: bool) -> None:
    size = plan.removed_bytes / GIB
    head = f"{removed} tomograms removed" if really else f"{len(plan.removed)} tomograms would go; --apply removes them"
    say(f"{head} ({size:.2f} GiB); {plan.kept} stay ({plan.kept_bytes / GIB:.2f} GiB)")
    if plan.unnamed:
        say(f"{plan.unnamed} tomograms are named by no row and were left alone; `wbcd verify --tomograms` names them")
