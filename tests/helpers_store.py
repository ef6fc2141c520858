"""Ledgers for the tests of the store: on either database, with the recipe and the model registered."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from helpers_postgres import Server

from wbcd.recipe import Recipe
from wbcd.store import Ledger
from wbcd.store.chain import CHAINED, GENESIS
from wbcd.store.schema import SCHEMA_REVISION, metadata

RECIPE = Recipe()
RECIPE_ID = RECIPE.recipe_id
MODEL_ID = "model@1"
KEY = (RECIPE_ID, MODEL_ID)
CARD = {"version": "0", "wbcd": {"simulated": True, "classes": ["b_lymphocyte", "monocyte"]}}
"""As a bundle's metadata.json: what wbcd says of the model is one level down."""


def opened(url: str, **options: Any) -> Ledger:
    ledger = Ledger.open(url, **options)
    ledger.register(RECIPE, MODEL_ID, CARD)
    return ledger


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: a quarter of a second less a test."""
    path = tmp_path_factory.mktemp("template") / "wbcd.db"
    Ledger.open(str(path)).close()
    return path


@pytest.fixture(scope="session")
def postgres_cleaned(postgres_server: Server) -> Iterator[Callable[[], str]]:
    """Empties one migrated database and gives its URL: a fresh database costs half a second and a thousand files."""
    name = f"wbcd_cleaned_{os.getpid()}"
    url = postgres_server.url(name)

    def run(url: str, *statements: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def clean() -> str:
        run(
            url,
            "SET session_replication_role = replica",  # past the triggers that keep events append-only
            f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY CASCADE",
            *(f"INSERT INTO audit_head VALUES ('{table}', 0, '{GENESIS}')" for table in CHAINED),
            f"UPDATE alembic_version SET version_num = '{SCHEMA_REVISION}'",
        )
        return url

    run(postgres_server.url(), f"CREATE DATABASE {name}")
    Ledger.open(url).close()
    yield clean
    run(postgres_server.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty database of each kind in turn."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_cleaned")())
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "wbcd.db")
    return f"sqlite:///{tmp_path / 'wbcd.db'}"


@pytest.fixture
def any_ledger(any_url: str) -> Iterator[Ledger]:
    with opened(any_url) as ledger:
        yield ledger


@pytest.fixture
def sqlite_ledger(tmp_path: Path, sqlite_template: Path) -> Iterator[Ledger]:
    """On ``tmp_path / "wbcd.db"``."""
    shutil.copy(sqlite_template, tmp_path / "wbcd.db")
    with opened(str(tmp_path / "wbcd.db")) as ledger:
        yield ledger
