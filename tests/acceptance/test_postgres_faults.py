"""A PostgreSQL that is killed while the daemon works, and one whose COMMIT is done but never answered: nothing lost, nothing
twice, and the daemon that began is the daemon that ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from helpers_ledger import Whole, differences
from helpers_postgres import OwnServer
from helpers_proxy import Cutter, Moment
from helpers_spheres import cheap_settings
from helpers_zygote import Zygote, wait_until

from wbcd.errors import StoreError
from wbcd.report.counts import read_status

ACQUISITIONS = 20
OUTCOMES = """
SELECT a.path, a.content_id, r.outcome, r.reason, c.number, c.volume_fl, c.dry_mass_pg, p.label, p.probability
FROM run r JOIN acquisition a ON a.id = r.acquisition_id
LEFT JOIN cell c ON c.run_id = r.id LEFT JOIN prediction p ON p.cell_id = c.id
"""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    own = OwnServer()
    yield own
    own.close()


def ask(server: OwnServer, query: str, database: str = "postgres") -> list[tuple[Any, ...]]:
    with psycopg.connect(server.url(database)) as connection:
        return connection.execute(query).fetchall()


def expect_whole(server: OwnServer, whole: Whole, database: str) -> None:
    """Row by row as in the undisturbed run, each once, nothing left begun."""
    found = [(Path(row[0]).name, *row[1:]) for row in ask(server, OUTCOMES, database)]
    assert differences(found, whole.table) == []
    assert ask(server, "SELECT COUNT(*) FROM acquisition WHERE tries > 0", database) == [(0,)]


def make_database(server: OwnServer, name: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")


def outcomes(url: str) -> int:
    try:
        return read_status(url).outcomes
    except StoreError:  # no schema yet, or no server
        return -1


def test_killed_and_restarted_twice_in_mid_run(tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole) -> None:
    make_database(server, "killed")
    url = server.url("killed")
    settings = cheap_settings(tmp_path, whole.bundle) | {"watch.dir": whole.incoming, "database.url": url}
    daemon = zygote.begin(settings, tmp_path / "log", until_idle=True)
    for least in (3, 11):
        wait_until(lambda least=least: outcomes(url) >= least)
        server.kill()
        server.start()
    assert daemon.wait() == 0, (tmp_path / "log").read_text()[-3000:]
    expect_whole(server, whole, "killed")


CUTS: dict[str, Any] = {
    "answers and requests in turn": lambda n: ("answer lost" if n % 10 else "request lost") if n % 5 == 0 else None,
    "two answers running": lambda n: "answer lost" if n % 11 in (3, 4) else None,
}


@pytest.mark.parametrize("name", CUTS)
def test_a_commit_that_is_never_answered(tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole, name: str) -> None:
    database = name.replace(" ", "_")
    make_database(server, database)

    def cut(number: int) -> Moment | None:
        moment: Moment | None = CUTS[name](number)
        return moment

    cutter = Cutter(server.socket, cut)
    settings = cheap_settings(tmp_path, whole.bundle) | {
        "watch.dir": whole.incoming,
        "database.url": f"postgresql://wbcd@127.0.0.1:{cutter.port}/{database}",
    }
    try:
        assert zygote.run(settings, tmp_path / "log") == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        cutter.close()
    expect_whole(server, whole, database)
    # Every transaction that changes something went by: sighting, try and outcome of each at the least.
    assert cutter.commits > 3 * ACQUISITIONS
    assert sum(cutter.done.values()) >= cutter.commits // 6
