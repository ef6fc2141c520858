"""`wbcd status` and `wbcd counts`: reading verbs, quick, and safe beside a running daemon."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from wbcd.cli.common import (
    EXAMPLES,
    EXIT_IO,
    EXIT_NOPERM,
    RESEARCH_ONLY,
    demand_sample,
    installed_options,
    meant_sample,
    quiet_console,
    to_json,
)
from wbcd.cli.printing import SIMULATED_MODEL, say
from wbcd.config import redact
from wbcd.errors import StoreError
from wbcd.names import in_column, shown

if TYPE_CHECKING:
    from wbcd.config import Config

LABEL: Final = 11
"""Columns of the word that a line begins with; what goes on below a line begins there too."""


HEALTHY: Final = ("starting", "running", "stopping")
"""States in which the daemon does its work, by `wbcd status --check`; one that is paused waits for somebody or something."""


@click.command(epilog=EXAMPLES["status"])
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--prometheus", is_flag=True, help="The database's figures as Prometheus text, once.")
@click.option("--watch", is_flag=True, help="Show it again every second until interrupted.")
@click.option("--all", "every", is_flag=True, help="Rows of every recipe and model; totals are of current results.")
@click.option("--check", is_flag=True, help="Only the daemon, from its state file: exit status 0 while it works, else 1.")
@installed_options
def status(config: Config, as_json: bool, prometheus: bool, watch: bool, every: bool, check: bool) -> None:
    """What the daemon does, and the counts so far, the running sample first.

    Exit status: 0; 77 when the daemon's state may not be read, 74 when it cannot be; with --check 1 unless the daemon works.
    """
    if check:
        if prometheus or watch:
            raise click.UsageError("--check goes with neither --prometheus nor --watch")
        _check(config, as_json=as_json)
    if prometheus and (as_json or watch):
        raise click.UsageError("--prometheus goes with neither --json nor --watch")
    if prometheus:
        _show_prometheus(config)
        return
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(config, as_json=as_json, every=every)
        return
    found = collect(config, every=every)
    _print(found, as_json=as_json)
    if found["daemon"]["state"] == "unreadable":
        sys.exit(EXIT_NOPERM if found["daemon"]["permitted"] is False else EXIT_IO)


@click.command(epilog=EXAMPLES["counts"])
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@click.option("--sample", help="Only this sample.")
@click.option("--all", "every", is_flag=True, help="Every recipe and model, each by itself, not only the current results.")
@installed_options
def counts(config: Config, as_json: bool, sample: str | None, every: bool) -> None:
    """The differential count with Wilson 95 % confidence limits, per sample, model and recipe.

    Of each acquisition the current result is counted: that of the recipe and the model which were asked for last.

    Exit status: 0; 65 for a sample that is not stored; 69 when the database is away.
    """
    from wbcd.report.counts import count_other_results, mixed_samples, read_differential
    from wbcd.report.known import simulated_models

    url = config.database_url()
    sample = meant_sample(url, sample)
    found = read_differential(url, sample, every=every)
    if sample is not None and not found:
        demand_sample(url, sample)
    simulated = simulated_models(url) or frozenset()
    rows = [{**row.as_dict(), "simulated_model": row.model in simulated} for row in found]
    if as_json:
        click.echo(to_json(rows))
    elif not rows:
        say("No cells are counted yet." if sample is None else f"No cell of sample {sample} is counted yet.")
    else:
        _print_counts(rows)
    if not as_json and not every:
        for line in other_lines(count_other_results(url, sample), mixed_samples(found), "wbcd counts --all"):
            click.echo(line)


def _print_counts(rows: list[dict[str, Any]]) -> None:
    from wbcd.cli.printing import counts_table

    console = quiet_console()
    for model, recipe in dict.fromkeys((row["model"], row["recipe"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["recipe"]) == (model, recipe)]
        learnt = f"; {SIMULATED_MODEL}" if chosen[0]["simulated_model"] else ""
        console.print(counts_table(chosen, f"model {model}, recipe {recipe}{learnt}"))


def other_lines(results: int, mixed: list[str], verb: str) -> list[str]:
    """What the shown counts leave out, and which of them are each of a part of a sample."""
    out = [f"{results} results of other recipes or models are not counted here: {verb}"] if results else []
    return out + [
        f"sample {name} is counted in parts, by the recipe and model of each file; `wbcd reprocess` brings them together"
        for name in mixed
    ]


def collect(config: Config, *, every: bool = False) -> dict[str, Any]:
    """``daemon`` (its state file) and ``store`` (the database, or why it cannot be read) as one JSON-ready object.

    ``every``: the rows of every recipe and model, not only of current results.
    """
    from wbcd.report.counts import mixed_samples, read_status

    found: dict[str, Any] = {"daemon": _daemon(config)}
    try:
        status = read_status(config.database_url(), every=every)
        mixed = [] if every else mixed_samples(status.counts)
        found["store"] = {**status.as_dict(), "all_results": every, "mixed_samples": mixed}
    except StoreError as error:  # the daemon's own word on why it waits must be shown all the more
        found["store"] = {"database": redact(config.database.url), "error": error.sentence()}
    return found


def _check(config: Config, *, as_json: bool) -> None:
    """For a health check: it asks no database, for that may be what does not answer."""
    daemon = _daemon(config)
    shown = f"{daemon['state']}" + (f": {daemon['reason']}" if daemon["reason"] else "")
    click.echo(to_json({"daemon": daemon}) if as_json else shown)
    sys.exit(0 if daemon["state"] in HEALTHY else 1)


def _daemon(config: Config) -> dict[str, Any]:
    from wbcd.daemon.state import read_state

    state = read_state(config.output.dir)
    return {"state": state.state, "reason": state.reason, **_told(state.details)}


def _told(details: dict[str, Any] | None) -> dict[str, Any]:
    wanted = (
        "pid",
        "host",
        "version",
        "watch_dir",
        "also_watched_by",
        "recipe",
        "waiting",
        "in_hand",
        "ignored_files",
        "unreadable_folders",
        "awaiting",
        "awaiting_examples",
        "since_start",
        "channels",
        "permitted",
    )
    return {name: details[name] for name in wanted if name in details} if details else {}


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(found))
        return
    console = quiet_console()
    shown_lines = lines(found)
    if console.is_terminal:
        shown_lines = fitted(shown_lines, console.width, max(console.height - 1, 4))
    for line in shown_lines:
        click.echo(line)


def _show_prometheus(config: Config) -> None:
    """For node_exporter's textfile collector. A database that cannot be read is an exit status, not a page of zeros."""
    from wbcd.report.counts import read_status
    from wbcd.report.metrics import prometheus_text

    # color=True: click would else strike out of a name what a terminal takes for a colour.
    click.echo(prometheus_text(read_status(config.database_url())), nl=False, color=True)


def lines(found: dict[str, Any]) -> list[str]:
    """The status as plain lines, what matters first, so that a small window can be filled from the top."""
    daemon, store = found["daemon"], found["store"]
    out = [f"daemon     {daemon['state']}" + (f": {daemon['reason']}" if daemon["reason"] else "")]
    if "waiting" in daemon:
        out.append(f"folder     {daemon.get('watch_dir')}: {daemon['waiting']} waiting, {daemon.get('in_hand', 0)} in hand")
    if daemon.get("also_watched_by"):
        out.append(f"warning    the folder is watched by another daemon too: {', '.join(daemon['also_watched_by'])}")
    out += [f"waits      {message}" for message in (daemon.get("awaiting_examples") or {}).values()]
    out += _passed_over(daemon)
    out.append(f"database   {store['database']}" + (f": {store['error']}" if "error" in store else ""))
    out = [shown(line) for line in out]
    return out if "error" in store else out + _store_lines(store)


def _passed_over(daemon: dict[str, Any]) -> list[str]:
    """What of the folder is not looked at."""
    from wbcd.acquisition.ignored import sentence

    out = []
    if (ignored := daemon.get("ignored_files")) and ignored["count"]:
        out.append(f"           {sentence(ignored['count'], ignored['examples'])}")
    if folders := daemon.get("unreadable_folders"):
        out.append(f"warning    cannot be listed: {', '.join(folders)}")
    return out


def _store_lines(store: dict[str, Any]) -> list[str]:
    out = [f"outcomes   {store['measured']} measured, {store['rejected']} rejected, {store['set_aside']} set aside"]
    out.append(
        f"cells      {store['cells']} counted, {store['cells_refused']} refused; {store['per_minute']:.1f} outcomes a minute"
    )
    if changed := store["companions_changed"]:
        named = ", ".join(changed[:3]) + (f", ... {len(changed) - 3} more" if len(changed) > 3 else "")
        out.append(f"warning    companions changed after the count of {named}; `wbcd reprocess` replaces it")
    if store["sample_conflicts"]:
        out.append(
            f"warning    {store['sample_conflicts']} times a file was given under another sample than it is counted in; "
            "`wbcd sample move` assigns it"
        )
    left_out = 0 if store["all_results"] else store["other_results"]
    others = other_lines(left_out, store["mixed_samples"], "wbcd status --all")
    out += [f"           {line}" for line in others]
    if store["changed_after_count"]:
        out.append(f"warning    {store['changed_after_count']} files were changed after they had been counted")
    if store["note"]:
        out.append(f"note       {store['note']}")
    if store["model"] is not None:
        out.append(f"model      {store['model']}, recipe {store['recipe']}")
    if store["simulated_model"]:
        out.append(f"           {SIMULATED_MODEL}. {RESEARCH_ONLY}")
    running, others = _by_sample(store)
    refused = [
        f"{'' if place else 'refused':<10} {row['n']} {row['outcome'].replace('_', ' ')}: {row['reason']}"
        for place, row in enumerate(store["rejections"])
    ]
    return [*map(shown, out), *running, *map(shown, refused), *others]


def _by_sample(store: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The lines of the running sample, and those of the others; their names are shown already."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in store["counts"]:
        groups.setdefault((row["sample"], row["model"], row["recipe"]), []).append(row)
    last = (store["sample"], store["model"], store["recipe"])
    others = [line for key, rows in groups.items() if key != last for line in _sample_lines(key, rows, last)]
    return (_sample_lines(last, groups[last], last) if last in groups else []), others


def _sample_lines(key: tuple[str, str, str], rows: list[dict[str, Any]], last: tuple[str, str, str]) -> list[str]:
    """The name, and a line for each class."""
    from wbcd.cli.printing import limits

    sample, model, recipe = key
    about = "running" if key == last else "" if key[1:] == last[1:] else f"model {model}, recipe {recipe}"
    wide = max(len(row["label"]) for row in rows)
    return [
        shown(f"sample     {sample}") + (f" ({shown(about)})" if about else ""),
        *(
            f"  {in_column(row['label']):{wide}}  {row['n']:6d}  {100 * row['fraction']:5.1f} %  ({limits(row)})"
            for row in rows
        ),
    ]


def fitted(lines: Sequence[str], width: int, height: int) -> list[str]:
    """The lines folded to a window of so many columns, and so many of them as it has rows; the last says how many more."""
    folded = [_folded(line, width) for line in lines]
    if sum(map(len, folded)) <= height:
        return [row for rows in folded for row in rows]
    out: list[str] = []
    kept = 0
    for rows in folded:
        if len(out) + len(rows) >= height:
            break
        out += rows
        kept += 1
    return [*out, _folded(f"... {len(lines) - kept} more lines; `wbcd counts` shows every sample", width)[0]]


def _folded(line: str, width: int) -> list[str]:
    """A line in rows of at most ``width`` columns, the second and later ones indented; letters of two columns count so."""
    from rich.cells import cell_len, chop_cells

    if cell_len(line) <= width or width <= LABEL + 8:
        return chop_cells(line, max(width, 2)) or [line]
    head = chop_cells(line, width)[0]
    rest = line[len(head) :]
    # At a space where there is one in the second half of the row; a path has none, and is cut where the row ends.
    if (at := head.rfind(" ", LABEL + 1)) >= width // 2:
        head, rest = line[:at], line[at + 1 :]
    return [head, *_folded(" " * LABEL + rest, width)]


def _watch(config: Config, *, as_json: bool, every: bool) -> None:
    console = quiet_console()
    if as_json or not console.is_terminal:
        while True:
            _print(collect(config, every=every), as_json=as_json)
            time.sleep(1.0)
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = fitted(lines(collect(config, every=every)), console.width, max(console.height - 1, 4))
            live.update(Text("\n".join(rows), no_wrap=True, overflow="crop"), refresh=True)
            time.sleep(1.0)
