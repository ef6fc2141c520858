"""`wbcd db`: the schema, its roles, and backups."""

from __future__ import annotations

import getpass
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wbcd.cli.common import EXAMPLES, Verbs, goes_on, installed_options, site_options, to_json
from wbcd.cli.printing import say
from wbcd.config import redact

if TYPE_CHECKING:
    from wbcd.config import Config


@click.group(cls=Verbs, epilog=EXAMPLES["db"])
def db() -> None:
    """Make, upgrade and back up the database."""


@db.command(epilog=EXAMPLES["db"])
@site_options
def upgrade(config: Config) -> None:
    """Make the schema, or bring it to this version's."""
    from wbcd.store import current_revision
    from wbcd.store import upgrade as migrate

    url = config.database_url()
    before = current_revision(url)
    after = migrate(url)
    say(f"{redact(url)}: {before or 'empty'} -> {after}" if before != after else f"{redact(url)}: {after}, up to date")


@db.command(epilog=EXAMPLES["db"])
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@installed_options
def current(config: Config, as_json: bool) -> None:
    """The schema's revision."""
    from wbcd.store import current_revision

    revision = current_revision(config.database_url())
    click.echo(to_json({"revision": revision}) if as_json else revision or "empty")


@db.command(epilog=EXAMPLES["db"])
def roles() -> None:
    """Print the SQL that makes the PostgreSQL roles and grants each only what it needs."""
    from wbcd.store.roles import roles_sql

    click.echo(roles_sql(), nl=False)


@db.command(epilog=EXAMPLES["db"])
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--run", "really", is_flag=True, help="PostgreSQL: run pg_dump; without this its command is only printed.")
@installed_options
@goes_on("No backup was made; the same command begins anew.")
def backup(config: Config, destination: Path, really: bool) -> None:
    """Copy the database to DESTINATION (a new file, or a folder) while the daemon runs, and check the copy.

    SQLite: the online backup, then integrity_check of the copy. PostgreSQL: pg_dump in its custom format.
    """
    from wbcd.store.backup import backup_postgres, backup_sqlite, dump_command
    from wbcd.store.urls import parse_url

    target = parse_url(config.database_url())
    path = _file_in(destination, suffix=".db" if target.kind == "sqlite" else ".dump")
    if target.kind == "postgresql" and not really:
        click.echo(shlex.join(dump_command(target, path)))
        return
    made = backup_sqlite(target, path) if target.kind == "sqlite" else backup_postgres(target, path, env=os.environ)
    say(f"{made.path}: {made.size_bytes / 2**20:.1f} MiB, checked")


@db.command(epilog=EXAMPLES["db"])
@click.argument("backup_file", metavar="BACKUP", type=click.Path(path_type=Path))
@site_options
def restore(config: Config, backup_file: Path) -> None:
    """Put BACKUP, a file of `wbcd db backup`, in the place of the database. Stop the daemon first.

    SQLite: the backup is checked, brought to this version's schema and put in place in one step; the database that was there
    is kept under a dated name; the journal of the restored one says who restored what. Refused while wbcd has it open.
    PostgreSQL: the commands are printed, to be run as the owner.
    """
    from wbcd.store.restore import restore_command, restore_sqlite
    from wbcd.store.urls import parse_url

    target = parse_url(config.database_url())
    if target.kind == "postgresql":
        click.echo(shlex.join(restore_command(target, backup_file)))
        click.echo(shlex.join(["wbcd", "db", "upgrade", "--db", target.display]))
        click.echo("Stop the daemon first, then run these as the owner; the first does all of it or nothing.", err=True)
        return
    done = restore_sqlite(target, backup_file, by=getpass.getuser())
    kept = f"; what was there is kept as {done.kept}" if done.kept is not None else ""
    click.echo(f"{done.path}: restored from {done.backup}, {done.outcomes} outcomes, schema {done.revision_before}{kept}")


def _file_in(destination: Path, *, suffix: str) -> Path:
    if not destination.is_dir():
        return destination
    return destination / time.strftime(f"wbcd-%Y%m%dT%H%M%SZ{suffix}", time.gmtime())
