"""Runs the migrations on the connection that ``wbcd.store.migrate`` hands over, inside its transaction."""

from __future__ import annotations

import os

from alembic import context
from wbcd.store.engine import make_engine
from wbcd.store.schema import metadata
from wbcd.store.urls import parse_url


def run(connection: object) -> None:
    """All missing steps, in the transaction of the caller: on both databases it is all of them or none."""
    context.configure(connection=connection, target_metadata=metadata, compare_type=True, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:  # the alembic command of a developer
    with make_engine(parse_url(os.environ.get("WBCD_DATABASE_URL", "sqlite:///wbcd.db"))).begin() as opened:
        run(opened)
