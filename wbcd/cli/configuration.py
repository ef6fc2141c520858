"""`wbcd config`: what holds, and from where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wbcd.cli.common import EXAMPLES, Verbs, installed_options, to_json
from wbcd.cli.printing import say

if TYPE_CHECKING:
    from wbcd.config import Config


@click.group(cls=Verbs, epilog=EXAMPLES["config"])
def config() -> None:
    """Show or check the configuration."""


@config.command(epilog=EXAMPLES["config"])
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@installed_options
def show(config: Config, as_json: bool) -> None:
    """Every setting as it holds now; passwords are not shown."""
    data = config.as_dict()
    data["recipe_id"] = config.recipe.recipe_id
    if as_json:
        click.echo(to_json(data))
        return
    versions = data["recipe"].pop("algorithms")  # nobody's to set, and what is printed can be loaded
    told = f"# The recipe's algorithms, which are not set: {', '.join(f'{stage} {n}' for stage, n in versions.items())}"
    click.echo("\n".join([*toml_lines(data), "", told]))


@config.command(epilog=EXAMPLES["config"])
@installed_options
def check(config: Config) -> None:
    """Check the configuration; status 78 and a sentence when it is wrong."""
    from wbcd.daemon.places import demand_apart

    config.database_url()
    demand_apart(config)
    if config.watch.dir is not None and not Path(config.watch.dir).is_dir():
        say(f"note: watch.dir {config.watch.dir} is not there now", err=True)
    click.echo(f"good; recipe {config.recipe.recipe_id}")


def toml_lines(data: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as TOML; what is not set is a comment."""
    lines: list[str] = []
    for name, value in data.items():
        if not isinstance(value, dict):
            lines.append(f"# {name} is not set" if value is None else f"{name} = {to_json(value)}")
    for name, value in data.items():
        if isinstance(value, dict):
            lines += ["", f"[{prefix}{name}]", *toml_lines(value, f"{prefix}{name}.")]
    return [line for line in lines if not line.startswith("recipe_id")] if not prefix else lines
