"""Up and down on both databases with data in them; the migrated schema is the one that the code writes to."""

from __future__ import annotations

import math
import re
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from helpers_store import KEY, opened
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from wbcd.errors import SchemaMismatch
from wbcd.report.counts import read_differential, read_status
from wbcd.store import Ledger, chain, current_revision, downgrade, migrate, schema, upgrade
from wbcd.store.chain import CHAINED, GENESIS
from wbcd.store.outdated import count_outdated
from wbcd.store.urls import parse_url
from wbcd.store.verification import check_recipes
from wbcd.store.views import VIEWS, append_only_triggers, chain_triggers, result_guards, views
from wbcd.testing import make_measured

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any schema."""
    return f"sqlite:///{tmp_path / 'new.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


def looking(url: str, look: Any) -> Any:
    engine = create_engine(parse_url(url).sqlalchemy_url)
    try:
        with engine.connect() as connection:
            return look(connection)
    finally:
        engine.dispose()


def names(connection: Connection) -> set[str]:
    inspector = inspect(connection)
    return set(inspector.get_table_names()) | set(inspector.get_view_names())


def guards(dialect: str) -> list[str]:
    chains = [statement for table, columns in CHAINED.items() for statement in chain_triggers(dialect, table, columns)]
    return append_only_triggers(dialect) + chains + result_guards(dialect)


def plain(statement: str) -> str:
    return re.sub(r"\s+", " ", statement).strip()


def test_the_head_is_what_the_code_writes_to() -> None:
    assert ScriptDirectory(str(migrate.script_folder())).get_current_head() == schema.SCHEMA_REVISION


def test_up_and_down_and_up_with_data(empty_url: str) -> None:
    assert current_revision(empty_url) is None
    assert upgrade(empty_url) == schema.SCHEMA_REVISION
    with opened(empty_url) as ledger:
        ledger.commit(make_measured("a"), *KEY)
        ledger.event("started", "x")
        (cell,) = ledger.cells()
        ledger.review(cell.cell_id, "R", "monocyte")
    assert upgrade(empty_url) == schema.SCHEMA_REVISION  # again: nothing happens
    assert [row.n for row in read_differential(empty_url)] == [1]
    assert downgrade(empty_url, "base") == "base"
    assert looking(empty_url, names) == {"alembic_version"}
    assert current_revision(empty_url) is None
    assert upgrade(empty_url) == schema.SCHEMA_REVISION
    with opened(empty_url) as ledger:
        ledger.commit(make_measured("a"), *KEY)
    assert [row.n for row in read_differential(empty_url)] == [1]


FIRST = (
    "INSERT INTO sample (id, name, first_seen_at) VALUES (1, 'S1', '2026-01-01T00:00:00.000000Z')",
    """INSERT INTO recipe VALUES ('r', '{{"a": 1}}', '0', '2026-01-01T00:00:00.000000Z')""",
    "INSERT INTO model VALUES ('m', '{{}}', TRUE, '2026-01-01T00:00:00.000000Z')",
    "INSERT INTO acquisition (id, content_id, sample_id, path, size_bytes, mtime_ns, time_points, tries, first_seen_at) "
    "VALUES (1, 'c', 1, '/a.h5', 1, 1, 1, 0, '2026-01-01T00:00:00.000000Z')",
    "INSERT INTO run (id, acquisition_id, recipe_id, model_id, outcome, checks, tries, finished_at) "
    "VALUES (1, 1, 'r', 'm', 'measured', '[]', 1, '2026-01-01T00:00:00.000000Z')",
    "INSERT INTO cell (id, run_id, number, time_index, volume_fl, accepted, checks, thumbnail_png) "
    "VALUES (1, 1, 1, 0, 169.39, TRUE, '[]', {picture}), (2, 1, 2, 0, 200.5, TRUE, '[]', {picture})",
    "INSERT INTO prediction (cell_id, model_id, label, probability, probabilities, flags, counted_as) "
    "VALUES (1, 'm', 'monocyte', 0.5, '{{}}', '[]', 'monocyte')",
    "INSERT INTO review (id, cell_id, reviewer, label, note, at) VALUES "
    "(1, 1, 'R', 'monocyte', NULL, '2026-01-01T00:00:00.123456Z'), (7, 1, 'Ü \"x\" \\ /', 'b', 'two\nlines\t\x01',"
    " '2026-01-02T00:00:00.000000Z')",
    "INSERT INTO event (id, at, kind, code, message, details) VALUES "
    """(1, '2026-01-01T00:00:00.000000Z', 'started', NULL, 'x', '{{"b":2.5,"a":[null,"é"]}}'),"""
    """(3, '2026-01-01T00:00:00.000001Z', 'stopped', 'c', 'y', '{{}}')""",
)


def fill_first(url: str) -> None:
    """Rows of revision 0001, written by SQL as the wbcd of that day did; the ids have gaps, as PostgreSQL leaves them."""
    engine = create_engine(parse_url(url).sqlalchemy_url)
    picture = "X'89504e47'" if engine.dialect.name == "sqlite" else r"'\x89504e47'::bytea"
    with engine.begin() as connection:
        for statement in FIRST:
            connection.exec_driver_sql(statement.format(picture=picture))
        if engine.dialect.name == "postgresql":  # the sequences go on behind what was inserted with its id
            for table in ("sample", "acquisition", "run", "cell", "review", "event"):
                connection.exec_driver_sql(f"SELECT setval('{table}_id_seq', (SELECT MAX(id) FROM {table}))")
    engine.dispose()


def test_rows_of_the_first_revision_are_chained_and_their_pictures_stay(empty_url: str) -> None:
    assert upgrade(empty_url, "0001") == "0001"
    fill_first(empty_url)
    assert upgrade(empty_url) == schema.SCHEMA_REVISION
    with opened(empty_url) as ledger:
        ledger.event("started", "after the migration", number=0.1)
        ledger.review(2, "S", "t_lymphocyte")
        ledger.label_sample("S1", "monocyte", purity=0.95, by="R")
        assert [cell.thumbnail_png for cell in ledger.cells(with_thumbnails=True)] == [b"\x89PNG"] * 2
        assert [cell.morphology.volume_fl for cell in ledger.cells()] == [169.39, 200.5]
        assert all(math.isnan(cell.morphology.mean_ri_uncertainty) for cell in ledger.cells())
        assert {key: label.label for key, label in ledger.cell_labels().items()} == {1: "b", 2: "t_lymphocyte"}
    chains = looking(empty_url, lambda connection: {table: list(chain.links(connection, table)) for table in CHAINED})
    assert [link.row_id for link in chains["review"]] == [1, 7, 8]
    assert [link.row_id for link in chains["event"]] == [1, 3, 4]
    for links in chains.values():
        assert [link.previous_hash for link in links] == [GENESIS, *(link.row_hash for link in links)][: len(links)]
        assert [link.row_hash for link in links] == [link.expected_hash() for link in links]


def test_down_to_the_first_revision_keeps_its_rows(empty_url: str) -> None:
    upgrade(empty_url, "0001")
    fill_first(empty_url)

    def everything(connection: Connection) -> dict[str, list[Any]]:
        tables = ("sample", "acquisition", "run", "cell", "prediction", "review", "event")
        return {
            table: [dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY id")).mappings()]
            for table in tables
        }

    before = looking(empty_url, everything)
    upgrade(empty_url)
    with opened(empty_url) as ledger:
        ledger.label_sample("S1", "monocyte", by="R")
    assert downgrade(empty_url, "0001") == "0001"
    assert looking(empty_url, everything) == before
    with pytest.raises(DBAPIError, match="append-only"):  # the guards of the first revision hold again
        looking(empty_url, lambda connection: connection.execute(text("DELETE FROM review")))
    assert upgrade(empty_url) == schema.SCHEMA_REVISION


def test_the_migrated_tables_are_the_metadata(empty_url: str) -> None:
    upgrade(empty_url)

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, schema.metadata))

    assert looking(empty_url, differences) == []


def test_the_migrated_text_is_the_code_s_on_sqlite(tmp_path: Path) -> None:
    """What alembic does not compare: views, triggers, check constraints, partial indexes."""
    upgrade(str(tmp_path / "migrated.db"))
    engine = create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        for statement in (*views("sqlite").values(), *guards("sqlite")):
            connection.execute(text(statement))
    engine.dispose()

    def everything(connection: Connection) -> dict[str, list[str]]:
        query = text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'")
        # Constraints stand in another order: the order of the parts between commas says nothing.
        return {name: sorted(part.strip() for part in plain(sql).split(",")) for name, sql in connection.execute(query)}

    migrated = looking(f"sqlite:///{tmp_path / 'migrated.db'}", everything)
    made = looking(f"sqlite:///{tmp_path / 'made.db'}", everything)
    assert migrated.keys() == made.keys()
    for name, parts in made.items():
        assert [part.strip(" )(") for part in migrated[name]] == [part.strip(" )(") for part in parts], name


def test_the_migrated_text_is_the_code_s_on_postgresql(postgres_url: str) -> None:
    def views_and_guards(connection: Connection) -> list[Any]:
        queries = (
            "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('c', 'f', 'u') "
            "AND connamespace = 'public'::regnamespace ORDER BY 1",
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
            "SELECT proname, prosrc, prosecdef, proconfig FROM pg_proc WHERE proname LIKE 'wbcd%' ORDER BY 1",
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' "
            "AND tablename <> 'alembic_version' ORDER BY 1",
        )
        return [[tuple(row) for row in connection.execute(text(query))] for query in queries]

    upgrade(postgres_url)
    migrated = looking(postgres_url, views_and_guards)
    downgrade(postgres_url, "base")
    engine = create_engine(parse_url(postgres_url).sqlalchemy_url)
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
        for statement in (*views("postgresql").values(), *guards("postgresql")):
            connection.exec_driver_sql(statement.replace("%", "%%"))
    engine.dispose()
    assert looking(postgres_url, views_and_guards) == migrated


def test_a_failed_migration_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema is made in one transaction on both databases: half of it would be worse than none."""
    monkeypatch.setitem(VIEWS, "unused", "")  # the migration is frozen: what the code says now must not reach it
    broken = migrate.command.upgrade

    def breaks_at_the_end(config: Any, revision: str) -> None:
        broken(config, revision)
        raise SchemaMismatch("power cut")

    monkeypatch.setattr(migrate.command, "upgrade", breaks_at_the_end)
    with pytest.raises(SchemaMismatch, match="power cut"):
        Ledger.open(empty_url)
    assert looking(empty_url, names) == set()


def test_alembic_the_library_is_not_shadowed() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import alembic; print(alembic.__file__)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "site-packages" in said.stdout
    assert not (ROOT / "alembic" / "__init__.py").exists()


def test_the_developers_command_works(tmp_path: Path) -> None:
    environment = {"WBCD_DATABASE_URL": f"sqlite:///{tmp_path / 'dev.db'}", "PATH": ""}
    subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    assert current_revision(f"sqlite:///{tmp_path / 'dev.db'}") == schema.SCHEMA_REVISION


@pytest.mark.slow
def test_the_wheel_carries_the_migrations_and_they_run_from_it(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    place = tmp_path / "installed" / "wbcd" / "store" / "migrations"
    assert (place / "env.py").is_file()
    assert len(list((place / "versions").glob("*.py"))) == int(schema.SCHEMA_REVISION)
    program = (
        "import sys; sys.path.insert(0, 'installed'); import wbcd.store.migrate as m; "
        "assert 'installed' in str(m.script_folder()); print(m.upgrade('wheel.db'))"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.stdout == f"{schema.SCHEMA_REVISION}\n", said.stderr


def test_a_database_of_the_version_before_keeps_every_row(tmp_path: Path) -> None:
    """Made by the wbcd of revision 0002 itself (`process`, `label`, `review`; the pictures cut to their first bytes)."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parent / "revision_0002.sql").read_text(encoding="utf-8"))
    connection.close()

    def everything(connection: Connection, columns: dict[str, list[str]]) -> dict[str, list[Any]]:
        return {
            table: [tuple(row) for row in connection.execute(text(f"SELECT {', '.join(names)} FROM {table} ORDER BY 1"))]
            for table, names in columns.items()
        }

    def columns_of(connection: Connection) -> dict[str, list[str]]:
        inspector = inspect(connection)
        tables = [name for name in inspector.get_table_names() if name != "alembic_version"]
        return {table: [column["name"] for column in inspector.get_columns(table)] for table in tables}

    url = f"sqlite:///{path}"
    columns = looking(url, columns_of)
    before = looking(url, lambda connection: everything(connection, columns))
    assert [len(before[table]) for table in ("sample", "acquisition", "run", "cell", "review")] == [2, 4, 4, 4, 1]
    counts = [("donor-A", label, 1) for label in ("monocyte", "myelocyte", "t_lymphocyte")]
    assert upgrade(url) == schema.SCHEMA_REVISION
    after = looking(url, lambda connection: everything(connection, columns))
    corrected = [(*row[:2], 1, *row[3:]) for row in before["model"]]  # the flag was read at the wrong depth
    assert after == before | {"model": corrected}
    assert sorted((row.sample, row.label, row.n) for row in read_differential(url)) == sorted(counts)
    status = read_status(url)
    assert (status.measured, status.rejected, status.cells, status.simulated_model) == (3, 1, 3, True)
    with Ledger.open(url) as ledger:
        assert {row.wbcd_version for row in ledger.read(lambda c: c.execute(text("SELECT wbcd_version FROM run")).all())} == {
            "unknown"
        }
        assert count_outdated(ledger) == (4, 4)  # its recipe names no algorithm, and is the hash of its parameters all the same
        assert list(check_recipes(ledger)) == []
        (review,) = [cell.label for cell in ledger.cell_labels().values() if cell.source == "review"]
        assert review == "monocyte"
        ledger.event("started", "after the upgrade")
    assert downgrade(url, "0002") == "0002"
    again = looking(url, lambda connection: everything(connection, columns))
    assert {table: again[table] for table in again if table not in ("event", "audit_head")} == {
        table: after[table] for table in after if table not in ("event", "audit_head")
    }
