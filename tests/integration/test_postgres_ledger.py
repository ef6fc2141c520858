"""What only a server can do: vanish in the middle, come back, and be written by two daemons at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from helpers_postgres import OwnServer
from helpers_store import KEY, opened

from wbcd.errors import DatabaseUnavailable
from wbcd.report.counts import read_differential, read_status
from wbcd.store import Ledger
from wbcd.store.engine import Retry
from wbcd.testing import FakeClock, make_acquisition, make_cell, make_measured, make_rejected


def test_both_databases_count_the_same(tmp_path: Path, postgres_url: str) -> None:
    labels = ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte")
    results = []
    for url in (str(tmp_path / "wbcd.db"), postgres_url):
        clock = FakeClock()
        with opened(url, now=clock.now) as ledger:
            for number in range(40):
                flags = ("unclassified",) if number % 9 == 0 else ()
                cells = [
                    make_cell(labels[(number * 7 + i) % 4], number=i + 1, accepted=number % 5 != i, flags=flags)
                    for i in range(number % 4)
                ]
                ledger.commit(make_measured(f"{number}", *cells, sample=f"donor {number % 3}"), *KEY)
                ledger.commit(make_rejected(f"r{number}", reason=("frame_residual", "residual")[number % 2]), *KEY)
                ledger.begin(make_acquisition(f"open {number % 6}"))
                clock.advance(1.25)
        status = read_status(url, now=clock.now()).as_dict()
        assert status.pop("database")
        results.append((read_differential(url), status))
    assert results[0] == results[1]
    assert len(results[0][0]) == 13  # four labels of three donors, and the unclassified of one


def test_two_daemons_fed_the_same_files_make_one_row_each(postgres_url: str) -> None:
    """Each begins with an empty database, so that even the schema is raced for."""
    errors: list[BaseException] = []
    together = threading.Barrier(3)

    def daemon(shift: int) -> None:
        try:
            together.wait()
            with opened(postgres_url) as ledger:
                for number in range(30):
                    outcome = make_measured(f"{(number + shift) % 30}")
                    ledger.sighted(outcome.acquisition.path, 1, 1, outcome.acquisition.content_id)
                    ledger.begin(outcome.acquisition)
                    ledger.commit(outcome, *KEY)
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=daemon, args=(shift,)) for shift in (0, 0, 15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    status = read_status(postgres_url)
    assert (status.measured, status.cells, status.counts[0].n, status.open) == (30, 30, 30, 0)


def test_a_server_that_is_killed_and_restarted_loses_and_doubles_nothing(own_postgres: OwnServer) -> None:
    url = own_postgres.url()
    with opened(url) as ledger:
        for number in range(10):
            ledger.commit(make_measured(f"{number}"), *KEY)
        own_postgres.kill()
        restart = threading.Thread(target=own_postgres.start)
        restart.start()
        for number in range(20):  # the first ten again: an acknowledgement may have been lost
            assert ledger.begin(make_acquisition(f"{number}")) == 1
            ledger.commit(make_measured(f"{number}"), *KEY)
        restart.join()
        ledger.check()
    status = read_status(url)
    assert (status.measured, status.cells, status.open) == (20, 20, 0)


def test_a_connection_that_the_server_ends_is_replaced(postgres_url: str) -> None:
    with opened(postgres_url) as ledger, psycopg.connect(postgres_url, autocommit=True) as other:
        for number in range(5):
            ledger.commit(make_measured(f"{number}"), *KEY)
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wbcd'")
        ledger.commit(make_measured("after"), *KEY)
    assert read_status(postgres_url).measured == 6


def test_patience_has_an_end_and_the_caller_is_told(own_postgres: OwnServer) -> None:
    clock = FakeClock()
    with opened(own_postgres.url(), retry=Retry(5.0, sleep=clock.sleep, clock=clock)) as ledger:
        own_postgres.stop()
        with pytest.raises(DatabaseUnavailable):
            ledger.commit(make_measured("a"), *KEY)
        assert sum(clock.slept_s) == pytest.approx(5.0, abs=2.0)
        own_postgres.start()
        ledger.commit(make_measured("a"), *KEY)
    assert read_status(own_postgres.url()).measured == 1


def test_a_writer_that_waits_for_another_is_not_lost(postgres_url: str) -> None:
    """A row lock held by somebody else's transaction: the ledger waits, then goes on."""
    with opened(postgres_url) as ledger, psycopg.connect(postgres_url) as other:
        ledger.begin(make_acquisition("a"))
        other.execute("UPDATE acquisition SET tries = tries")
        waiting = threading.Thread(target=ledger.commit, args=(make_measured("a"), *KEY))
        waiting.start()
        with psycopg.connect(postgres_url, autocommit=True) as looking:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wbcd' AND wait_event_type = 'Lock'"
            deadline = time.monotonic() + 20
            while not (looking.execute(query).fetchone() or (0,))[0]:
                assert time.monotonic() < deadline, "the ledger never waited"
        other.rollback()
        waiting.join()
    assert read_status(postgres_url).measured == 1


CHILD = """
import sys
from helpers_store import KEY, opened
from wbcd.testing import make_measured, make_cell
with opened(sys.argv[1]) as ledger:
    print("ready", flush=True)
    for number in range(100000):
        outcome = make_measured(f"{number}", make_cell(), make_cell("monocyte", number=2))
        ledger.begin(outcome.acquisition)
        ledger.commit(outcome, *KEY)
        print(number, flush=True)
"""


def test_a_killed_daemon_keeps_what_it_said_was_stored(postgres_url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, postgres_url], env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = next(child.stdout)
        while said.strip() != "7":
            said = next(child.stdout)
        child.send_signal(signal.SIGKILL)
        said = (child.stdout.read().split() or ["7"])[-1]
    with Ledger.open(postgres_url) as ledger:
        outcomes = list(ledger.outcomes())
    assert len(outcomes) in (int(said) + 1, int(said) + 2)
    assert all(len(outcome.cells) == 2 for outcome in outcomes)
