"""`wbcd status` and `wbcd counts`: reading verbs, quick, and safe beside a running daemon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import EXAMPLES, RESEARCH_ONLY, quiet_console, site_options, to_json
from wbcd.config import redact
from wbcd.errors import StoreError

if TYPE_CHECKING:
    from wbcd.config import Config


@click.command(epilog=EXAMPLES["status"])
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--prometheus", is_flag=True, help="The database's figures as Prometheus text, once.")
@click.option("--watch", is_flag=True, help="Show it again every second until interrupted.")
@click.option("--all", "every", is_flag=True, help="Rows of every recipe and model; totals are of current results.")
@site_options
def status(config: Config, as_json: bool, prometheus: bool, watch: bool, every: bool) -> None:
    """What the daemon does, and the counts so far."""
    if prometheus and (as_json or watch):
        raise click.UsageError("--prometheus goes with neither --json nor --watch")
    if prometheus:
        _show_prometheus(config)
        return
    if not watch:
        (_show_json if as_json else _show)(config, every)
        return
    try:
        _watch(config, as_json=as_json, every=every)
    except KeyboardInterrupt:
        return


@click.command(epilog=EXAMPLES["counts"])
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@click.option("--sample", help="Only this sample.")
@click.option("--all", "every", is_flag=True, help="Every recipe and model, each by itself, not only the current results.")
@site_options
def counts(config: Config, as_json: bool, sample: str | None, every: bool) -> None:
    """The differential count with Wilson 95 % confidence limits, per sample, model and recipe.

    Of each acquisition the current result is counted: that of the recipe and the model which were asked for last.
    """
    from wbcd.report.counts import count_other_results, mixed_samples, read_differential

    url = config.database_url()
    found = read_differential(url, sample, every=every)
    rows = [row.as_dict() for row in found]
    if as_json:
        click.echo(to_json(rows))
    elif not rows:
        click.echo("No cells are counted yet.")
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
        console.print(counts_table(chosen, f"model {model}, recipe {recipe}"))


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
    from wbcd.daemon.state import read_state
    from wbcd.report.counts import mixed_samples, read_status

    state = read_state(config.output.dir)
    found: dict[str, Any] = {"daemon": {"state": state.state, "reason": state.reason, **_told(state.details)}}
    try:
        status = read_status(config.database_url(), every=every)
        mixed = [] if every else mixed_samples(status.counts)
        found["store"] = {**status.as_dict(), "all_results": every, "mixed_samples": mixed}
    except StoreError as error:  # the daemon's own word on why it waits must be shown all the more
        found["store"] = {"database": redact(config.database.url), "error": error.sentence()}
    return found


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
        "since_start",
        "channels",
    )
    return {name: details[name] for name in wanted if name in details} if details else {}


def _show_json(config: Config, every: bool) -> None:
    click.echo(to_json(collect(config, every=every)))


def _show_prometheus(config: Config) -> None:
    """For node_exporter's textfile collector. A database that cannot be read is an exit status, not a page of zeros."""
    from wbcd.report.counts import read_status
    from wbcd.report.metrics import prometheus_text

    click.echo(prometheus_text(read_status(config.database_url())), nl=False)


def _show(config: Config, every: bool) -> None:
    click.echo("\n".join(lines(collect(config, every=every))))


def lines(found: dict[str, Any]) -> list[str]:
    """The status as plain lines."""
    daemon, store = found["daemon"], found["store"]
    out = [f"daemon     {daemon['state']}" + (f": {daemon['reason']}" if daemon["reason"] else "")]
    if "waiting" in daemon:
        out.append(f"folder     {daemon.get('watch_dir')}: {daemon['waiting']} waiting, {daemon.get('in_hand', 0)} in hand")
    if daemon.get("also_watched_by"):
        out.append(f"warning    the folder is watched by another daemon too: {', '.join(daemon['also_watched_by'])}")
    out.append(f"database   {store['database']}" + (f": {store['error']}" if "error" in store else ""))
    return out if "error" in store else out + _store_lines(store)


def _store_lines(store: dict[str, Any]) -> list[str]:
    from wbcd.cli.printing import counts_line

    out = [f"outcomes   {store['measured']} measured, {store['rejected']} rejected, {store['set_aside']} set aside"]
    out.append(
        f"cells      {store['cells']} counted, {store['cells_refused']} refused; {store['per_minute']:.1f} outcomes a minute"
    )
    out += [f"           {row['n']} {row['outcome'].replace('_', ' ')}: {row['reason']}" for row in store["rejections"]]
    left_out = 0 if store["all_results"] else store["other_results"]
    others = other_lines(left_out, store["mixed_samples"], "wbcd status --all")
    out += [f"           {line}" for line in others]
    if store["changed_after_count"]:
        out.append(f"warning    {store['changed_after_count']} files were changed after they had been counted")
    if store["note"]:
        out.append(f"note       {store['note']}")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in store["counts"]:
        groups.setdefault((row["sample"], row["model"], row["recipe"]), []).append(row)
    for (sample, model, recipe), rows in groups.items():
        out += [f"sample     {sample} (model {model}, recipe {recipe})", f"           {counts_line(rows)}"]
    if store["simulated_model"]:
        out.append("the model was trained and measured on simulated cells; " + RESEARCH_ONLY.lower())
    return out


def _watch(config: Config, *, as_json: bool, every: bool) -> None:
    console = quiet_console()
    if as_json or not console.is_terminal:
        while True:
            (_show_json if as_json else _show)(config, every)
            time.sleep(1.0)
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(lines(collect(config, every=every)))), refresh=True)
            time.sleep(1.0)
