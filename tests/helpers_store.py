"""Ledgers for the tests of the store: on either database, with the recipe and the model registered."""

from __future__ import annotations

import itertools
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

RECIPE = Recipe()
RECIPE_ID = RECIPE.recipe_id
MODEL_ID = "model@1"
KEY = (RECIPE_ID, MODEL_ID)
_numbers = itertools.count(1)


def opened(url: str, **options: Any) -> Ledger:
    ledger = Ledger.open(url, **options)
    ledger.register(RECIPE, MODEL_ID, {"simulated": True, "classes": ["b_lymphocyte", "monocyte"]})
    return ledger


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: a quarter of a second less a test."""
    path = tmp_path_factory.mktemp("template") / "wbcd.db"
    Ledger.open(str(path)).close()
    return path


@pytest.fixture(scope="session")
def postgres_copies(postgres_server: Server) -> Iterator[Callable[[], str]]:
    """Makes copies of a migrated database."""
    template = f"wbcd_template_{os.getpid()}"
    made = [template]

    def run(statement: str) -> None:
        with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
            connection.execute(statement)

    def copy() -> str:
        made.append(f"wbcd_copy_{os.getpid()}_{next(_numbers)}")
        run(f"CREATE DATABASE {made[-1]} TEMPLATE {template} STRATEGY FILE_COPY")
        return postgres_server.url(made[-1])

    run(f"CREATE DATABASE {template}")
    Ledger.open(postgres_server.url(template)).close()
    yield copy
    if os.environ.get("WBCD_TEST_POSTGRES_URL"):  # our own server takes its databases with it
        for name in made:
            run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated, empty database of each kind in turn."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_copies")())
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
