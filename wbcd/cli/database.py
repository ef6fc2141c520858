"""`wbcd db`: the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, site_options, to_json
from wbcd.config import redact

if TYPE_CHECKING:
    from wbcd.config import Config


@click.group(epilog=EXAMPLES["db"])
def db() -> None:
    """Make or upgrade the database."""


@db.command(epilog=EXAMPLES["db"])
@site_options
def upgrade(config: Config) -> None:
    """Make the schema, or bring it to this version's."""
    from wbcd.store import current_revision
    from wbcd.store import upgrade as migrate

    url = config.database_url()
    before = current_revision(url)
    after = migrate(url)
    click.echo(f"{redact(url)}: {before or 'empty'} -> {after}" if before != after else f"{redact(url)}: {after}, up to date")


@db.command(epilog=EXAMPLES["db"])
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@site_options
def current(config: Config, as_json: bool) -> None:
    """The schema's revision."""
    from wbcd.store import current_revision

    revision = current_revision(config.database_url())
    click.echo(to_json({"revision": revision}) if as_json else revision or "empty")
