"""`wbcd status` and `wbcd counts`: reading verbs, quick, and safe beside a running daemon."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from wbcd.cli.common import EXAMPLES, RESEARCH_ONLY, quiet_console, site_options, to_json
from wbcd.config import redact
from wbcd.errors import StoreError

if TYPE_CHECKING:
    from wbcd.config import Config


HEALTHY: Final = ("starting", "running", "stopping")
"""States in which the daemon does its work, by `wbcd status --check`; one that is paused waits for somebody or something."""


@click.command(epilog=EXAMPLES["status"])
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--prometheus", is_flag=True, help="The database's figures as Prometheus text, once.")
@click.option("--watch", is_flag=True, help="Show it again every second until interrupted.")
@click.option("--check", is_flag=True, help="Only the daemon, from its state file: exit status 0 while it works, else 1.")
@site_options
def status(config: Config, as_json: bool, prometheus: bool, watch: bool, check: bool) -> None:
    """What the daemon does, and the counts so far."""
    if check:
        if prometheus or watch:
            raise click.UsageError("--check goes with neither --prometheus nor --watch")
        _check(config, as_json=as_json)
    if prometheus and (as_json or watch):
        raise click.UsageError("--prometheus goes with neither --json nor --watch")
    show = _show_prometheus if prometheus else _show_json if as_json else _show
    if not watch:
        show(config)
        return
    try:
        _watch(config, as_json=as_json)
    except KeyboardInterrupt:
        return


@click.command(epilog=EXAMPLES["counts"])
@click.option("--json", "as_json", is_flag=True, help="A JSON list of rows.")
@click.option("--sample", help="Only this sample.")
@site_options
def counts(config: Config, as_json: bool, sample: str | None) -> None:
    """The differential count with Wilson 95 % confidence limits, per sample, model and recipe."""
    from wbcd.report.counts import read_differential

    rows = [row.as_dict() for row in read_differential(config.database_url(), sample)]
    if as_json:
        click.echo(to_json(rows))
    elif not rows:
        click.echo("No cells are counted yet.")
    else:
        _print_counts(rows)


def _print_counts(rows: list[dict[str, Any]]) -> None:
    from wbcd.cli.printing import counts_table

    console = quiet_console()
    for model, recipe in dict.fromkeys((row["model"], row["recipe"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["recipe"]) == (model, recipe)]
        console.print(counts_table(chosen, f"model {model}, recipe {recipe}"))


def collect(config: Config) -> dict[str, Any]:
    """``daemon`` (its state file) and ``store`` (the database, or why it cannot be read) as one JSON-ready object."""
    from wbcd.report.counts import read_status

    found: dict[str, Any] = {"daemon": _daemon(config)}
    try:
        found["store"] = read_status(config.database_url()).as_dict()
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
    wanted = ("pid", "version", "watch_dir", "recipe", "waiting", "in_hand", "since_start", "channels")
    return {name: details[name] for name in wanted if name in details} if details else {}


def _show_json(config: Config) -> None:
    click.echo(to_json(collect(config)))


def _show_prometheus(config: Config) -> None:
    """For node_exporter's textfile collector. A database that cannot be read is an exit status, not a page of zeros."""
    from wbcd.report.counts import read_status
    from wbcd.report.metrics import prometheus_text

    click.echo(prometheus_text(read_status(config.database_url())), nl=False)


def _show(config: Config) -> None:
    click.echo("\n".join(lines(collect(config))))


def lines(found: dict[str, Any]) -> list[str]:
    """The status as plain lines."""
    daemon, store = found["daemon"], found["store"]
    out = [f"daemon     {daemon['state']}" + (f": {daemon['reason']}" if daemon["reason"] else "")]
    if "waiting" in daemon:
        out.append(f"folder     {daemon.get('watch_dir')}: {daemon['waiting']} waiting, {daemon.get('in_hand', 0)} in hand")
    out.append(f"database   {store['database']}" + (f": {store['error']}" if "error" in store else ""))
    return out if "error" in store else out + _store_lines(store)


def _store_lines(store: dict[str, Any]) -> list[str]:
    from wbcd.cli.printing import counts_line

    out = [f"outcomes   {store['measured']} measured, {store['rejected']} rejected, {store['set_aside']} set aside"]
    out.append(
        f"cells      {store['cells']} counted, {store['cells_refused']} refused; {store['per_minute']:.1f} outcomes a minute"
    )
    out += [f"           {row['n']} {row['outcome'].replace('_', ' ')}: {row['reason']}" for row in store["rejections"]]
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


def _watch(config: Config, *, as_json: bool) -> None:
    console = quiet_console()
    if as_json or not console.is_terminal:
        while True:
            (_show_json if as_json else _show)(config)
            time.sleep(1.0)
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(lines(collect(config)))), refresh=True)
            time.sleep(1.0)
