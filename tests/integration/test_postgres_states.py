"""Each SQLSTATE of the table, raised by a real server in the middle of storing an outcome: waited for and told, or an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from helpers_store import KEY, opened
from helpers_zygote import wait_until
from psycopg.errors import _sqlcodes

from wbcd.daemon.desk import GaveUp, Patience, Pauses
from wbcd.errors import DatabaseUnavailable, NoRight, NoSpace, SchemaMismatch, StoreError
from wbcd.store import Ledger
from wbcd.store.engine import Retry
from wbcd.store.sqlstates import TABLE, disposition
from wbcd.testing import make_acquisition, make_cell, make_measured

TRIGGER = """
CREATE TABLE fault (code text);
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE wanted text := (SELECT code FROM fault LIMIT 1);
BEGIN
  IF wanted IS NOT NULL THEN RAISE EXCEPTION 'provoked' USING ERRCODE = wanted; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON prediction FOR EACH ROW EXECUTE FUNCTION fail();
"""
"""At the last row of an outcome: acquisition, run and cell are written already, and must not stay."""

EXAMPLES = {"08": "08006", "57": "57014", "53": "53200", "58": "58030", "40": "40001", "28": "28P01", "F0": "F0001"}
CODES = sorted({EXAMPLES.get(code, code) for code in TABLE})
PASSING = (
    "57014 53200 53000 53400 55000 55006 58030 58000 25P03 25P04 XX000 25006 "  # the issue's
    "08000 08003 08006 08001 57P01 57P02 57P03 57P05 57P04 40001 40P01 40003 53300 55P03 3D000 F0001"
)
KINDS = {
    "waits": DatabaseUnavailable,
    "room": NoSpace,
    "rights": NoRight,
    "tells": StoreError,
    "ends": StoreError,
}


@pytest.fixture(scope="module")
def faulty(postgres_server: object) -> Iterator[str]:
    url = postgres_server.url  # type: ignore[attr-defined]
    with psycopg.connect(url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE wbcd_states")
    Ledger.open(url("wbcd_states")).close()
    with psycopg.connect(url("wbcd_states"), autocommit=True) as connection:
        connection.execute(TRIGGER)
    yield url("wbcd_states")
    with psycopg.connect(url(), autocommit=True) as connection:
        connection.execute("DROP DATABASE wbcd_states WITH (FORCE)")


def provoke(url: str, code: str | None) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM fault")
        if code is not None:
            connection.execute("INSERT INTO fault VALUES (%s)", (code,))


def stored(url: str, name: str) -> int:
    with psycopg.connect(url) as connection:
        query = "SELECT COUNT(*) FROM prediction JOIN cell ON cell.id = cell_id JOIN run ON run.id = run_id "
        query += "JOIN acquisition a ON a.id = acquisition_id WHERE content_id = %s"
        row = connection.execute(query, (make_acquisition(name).content_id,)).fetchone()
        return -1 if row is None else int(row[0])


@pytest.mark.parametrize("code", [code for code in CODES if disposition(code) in ("waits", "room", "rights")])
def test_it_is_waited_for_with_its_reason(faulty: str, code: str) -> None:
    pauses = Pauses()
    patience = Patience(pauses)
    provoke(faulty, code)
    with opened(faulty, retry=Retry(0.0)) as ledger:
        work = threading.Thread(target=patience, args=("store", lambda: ledger.commit(make_measured(code, make_cell()), *KEY)))
        work.start()
        try:
            reason = wait_until(lambda: pauses.reason, 10)
            assert "provoked" in reason
            assert code == "53100" or code in reason
            assert stored(faulty, code) == 0
            if code == "42501":
                assert "docs/how-to/use-postgresql.md" in reason
            provoke(faulty, None)
            work.join(20)
            assert not work.is_alive()
        finally:
            patience.give_up()
            work.join()
    assert pauses.reason is None
    assert stored(faulty, code) == 1


@pytest.mark.parametrize(
    "code", [code for code in CODES if disposition(code) in ("tells", "ends")] + ["23505", "22012", "P0001"]
)
def test_it_ends_and_says_why(faulty: str, code: str) -> None:
    provoke(faulty, code)
    with opened(faulty, retry=Retry(0.0)) as ledger, pytest.raises(StoreError, match=code) as caught:
        Patience(Pauses())("store", lambda: ledger.commit(make_measured(code, make_cell()), *KEY))
    assert type(caught.value) is StoreError
    assert not isinstance(caught.value.__cause__, GaveUp)
    assert "docs/how-to/" in caught.value.advice or disposition(code) == "ends"
    assert stored(faulty, code) == 0


@pytest.mark.parametrize("code", [code for code in CODES if disposition(code) == "schema"])
def test_an_absent_table_ends_a_command_and_is_awaited_by_a_daemon(faulty: str, code: str) -> None:
    """Who has registered a model, as a daemon does, has seen the tables: a backup is being restored."""
    provoke(faulty, code)
    with opened(faulty, retry=Retry(0.0)) as ledger:
        with pytest.raises(DatabaseUnavailable, match=code) as caught:
            ledger.commit(make_measured(code, make_cell()), *KEY)
        assert isinstance(caught.value.__cause__, SchemaMismatch)


def test_those_of_the_issue_are_waited_for() -> None:
    for code in PASSING.split():
        assert disposition(code) == "waits", code
    assert disposition("53100") == "room"
    assert disposition("42501") == "rights"


def test_every_code_of_postgresql_has_its_place() -> None:
    """Data, constraints and syntax (classes 21 to 23, 42) are never waited for: they would be refused for ever."""
    known = set(_sqlcodes)
    assert len(known) > 200
    for code in known:
        kind = disposition(code)
        if code[:2] in ("0A", "21", "22", "23", "42", "44", "P0", "2F", "38", "39"):
            assert kind not in ("waits", "room"), code
        if code[:2] in ("08", "53", "57", "58") and code != "08P01":
            assert kind in ("waits", "room"), code
    assert {prefix for prefix in TABLE if len(prefix) == 5} <= known | {"25P04"}
    assert disposition("99999") == "ends"
