"""`wbcd verify`: does what is stored still hold, and what exactly does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import EXAMPLES, goes_on, installed_options, quiet_console, to_json
from wbcd.cli.printing import say
from wbcd.errors import BadValue, InputError

if TYPE_CHECKING:
    from wbcd.config import Config
    from wbcd.store.chain import Head
    from wbcd.store.ledger import Ledger
    from wbcd.store.verification import Finding

Step = Callable[[int], object]


@click.command(epilog=EXAMPLES["verify"])
@click.option("--tomograms", is_flag=True, help="Also read every kept tomogram and compare its checksums (slow).")
@click.option("--sources", is_flag=True, help="Also read the files that were counted and still there, and compare (slow).")
@click.option(
    "--anchors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the ends of the chains, kept elsewhere: compared when it is there, written when all holds.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@installed_options
@goes_on("Nothing was changed; the same command begins anew.")
def verify(config: Config, tomograms: bool, sources: bool, anchors: Path | None, as_json: bool) -> None:
    """Check the hash chains, the recipes, the models and, when asked, the tomograms and the counted files.

    Exit status: 0 when everything holds, 1 when something does not; each is named.
    """
    from wbcd.store import Ledger

    noted = _read_anchors(anchors)
    with Ledger.open(config.database_url(), create=False, host=config.host) as ledger, _Bar(shown=not as_json) as bar:
        found = list(_findings(ledger, config, noted, bar, tomograms=tomograms, sources=sources))
        ends = _ends(ledger)
    _report(found, ends, bar.counts, as_json=as_json)
    if anchors is not None and not found:
        _write_anchors(anchors, ends)
    sys.exit(1 if found else 0)


def _findings(
    ledger: Ledger, config: Config, noted: Mapping[str, Head], bar: _Bar, *, tomograms: bool, sources: bool
) -> Iterator[Finding]:
    from wbcd.store import verification
    from wbcd.store.chain import CHAINED

    step = bar.task("rows of the chains", verification.chain_rows(ledger))
    for table in CHAINED:
        yield from verification.check_chain(ledger, table, anchor=noted.get(table), step=step)
        yield from verification.check_beyond(ledger, table)
    yield from verification.check_recipes(ledger)
    yield from verification.check_models(ledger, _card_digest)
    yield from verification.check_predictions(ledger)
    if tomograms:
        step = bar.task("tomograms", verification.tomogram_count(ledger))
        yield from verification.check_tomograms(ledger, config.output.dir, step=step)
    if sources:
        step = bar.task("counted files", verification.source_count(ledger))
        yield from verification.check_sources(ledger, lambda path: _content_id(path, config.limits.max_file_bytes), step=step)


def _card_digest(card: Mapping[str, Any]) -> str | None:
    from wbcd.classification.bundle import digest_of_card

    return digest_of_card(card)


def _content_id(path: Path, max_bytes: int) -> str | None:
    """None for a file that is no longer there or cannot be read: only what can be read can be said to have changed."""
    from wbcd.acquisition.candidate import identify

    try:
        return identify(path, max_bytes=max_bytes).content_id
    except InputError:
        return None


def _ends(ledger: Ledger) -> dict[str, Head]:
    from wbcd.store import verification

    return verification.heads(ledger)


def _report(found: list[Finding], ends: Mapping[str, Head], counts: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        chains = {table: {"last_id": head.last_id, "row_hash": head.row_hash} for table, head in ends.items()}
        click.echo(to_json({"holds": not found, "findings": found, "looked_at": dict(counts), "chains": chains}))
        return
    for item in found:
        say(f"{item.check}: {item.place} {item.message}")
    looked = ", ".join(f"{n} {what}" for what, n in counts.items())
    say(f"{f'{len(found)} things do not hold' if found else 'everything holds'} ({looked})")


def _read_anchors(path: Path | None) -> dict[str, Head]:
    from wbcd.store.chain import Head

    if path is None or not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {table: Head(table, int(item["last_id"]), str(item["row_hash"])) for table, item in data.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadValue(
            f"--anchors {path} is no file of anchors: {error}.", action="Name the file that an earlier run wrote."
        ) from error


def _write_anchors(path: Path, ends: Mapping[str, Head]) -> None:
    data = {table: {"last_id": head.last_id, "row_hash": head.row_hash} for table, head in ends.items()}
    try:
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadValue(f"--anchors {path} cannot be written: {error.strerror}.") from error


class _Bar:
    """Progress on standard error where that is a terminal; counts what was looked at either way."""

    def __init__(self, *, shown: bool) -> None:
        from rich.progress import Progress

        console = quiet_console(stderr=True)
        self._bar = Progress(console=console, disable=not (shown and console.is_terminal), transient=True)
        self.counts: dict[str, int] = {}

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def task(self, what: str, total: int) -> Step:
        """A new bar; gives the function that moves it."""
        task = self._bar.add_task(what, total=total)
        self.counts[what] = 0

        def step(n: int) -> None:
            self.counts[what] += n
            self._bar.advance(task, n)

        return step
