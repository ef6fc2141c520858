"""What a reviewer's own role can do to the audit chain on PostgreSQL, tried by hand over a real login."""

from __future__ import annotations

import psycopg
import pytest
from helpers_pgsecure import SecureServer
from helpers_store import KEY, opened

from wbcd.store import Ledger
from wbcd.store.answers import connect
from wbcd.store.verification import check_beyond, check_chain
from wbcd.testing import make_cell, make_measured

REVIEWER = "bob"


@pytest.fixture
def server(secure_server: SecureServer) -> SecureServer:
    with opened(secure_server.with_password(secure_server.login("wbcd_daemon"), "wbcd_daemon")) as ledger:
        ledger.commit(make_measured("r", make_cell()), *KEY)
    return secure_server


FORGERIES = {
    "a place of its own": "INSERT INTO review (id, cell_id, reviewer, label, at) VALUES (900, {cell}, 'x', 'monocyte', now())",
    "hashes of its own": "INSERT INTO review (cell_id, reviewer, label, at, previous_hash, row_hash) "
    "VALUES ({cell}, 'x', 'monocyte', now(), repeat('0', 64), repeat('f', 64))",
    "no time": "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', NULL)",
    "the end of time": "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', 'infinity')",
    "before time": "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', '-infinity')",
    "five digits": "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', '20000-01-01')",
    "a label at the end of time": "INSERT INTO sample_label (sample_id, label, labelled_by, at) "
    "VALUES ((SELECT MIN(id) FROM sample), 'monocyte', 'x', 'infinity')",
    "before Christ": "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', '0044-03-15 BC')",
    "another zone": "SET TIME ZONE 'Asia/Tokyo'; INSERT INTO review (cell_id, reviewer, label, at) "
    "VALUES ({cell}, 'x', 'monocyte', '2026-01-01 00:00:00.123456')",
    "another style": "SET DateStyle = 'German'; SET lc_time = 'C'; SET extra_float_digits = -15; "
    "INSERT INTO sample_label (sample_id, label, purity, labelled_by, at) "
    "VALUES ((SELECT MIN(id) FROM sample), 'monocyte', 0.123456789012345, 'x', now())",
    "text of every kind": "INSERT INTO review (cell_id, reviewer, label, note, at) "
    "VALUES ({cell}, U&'\\0001\\FFFF\\+01F600', 'monocyte', E'\\\\u0000 \\t\\n\" \\u2028 ' || repeat('x', 100000), now())",
    "a schema in front": "CREATE TEMP TABLE audit_head (name text, last_id bigint, row_hash text); "
    "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', now())",
    "numbers burnt": "SELECT nextval('review_id_seq') FROM generate_series(1, 1000); "
    "INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', now())",
    "a thousand at once": "INSERT INTO review (cell_id, reviewer, label, at) "
    "SELECT {cell}, 'x', 'monocyte', now() FROM generate_series(1, 1000)",
    "taken back": "BEGIN; INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', now()); ROLLBACK",
}

FORBIDDEN = (
    "SET session_replication_role = replica",
    "ALTER TABLE review DISABLE TRIGGER ALL",
    "UPDATE audit_head SET last_id = 0",
    "SELECT setval('review_id_seq', 1)",
    "LOCK TABLE audit_head IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE event IN SHARE MODE",
    "CREATE OR REPLACE FUNCTION wbcd_chain_review() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
)


@pytest.mark.parametrize("name", FORGERIES)
def test_whatever_a_reviewer_inserts_is_chained_and_readable(server: SecureServer, name: str) -> None:
    """The row is refused, or it is the next link, by the database's own arithmetic; everyone can go on reading and writing."""
    with psycopg.connect(server.url("wbcd")) as owner:
        (cell,) = owner.execute("SELECT MAX(id) FROM cell").fetchone() or (0,)
    with server.connect(REVIEWER) as connection:
        try:
            for statement in FORGERIES[name].format(cell=cell).split("; "):
                connection.execute(statement)
        except psycopg.Error as refused:
            assert refused.sqlstate is not None  # noqa: PT017 - a refusal is as good
    with Ledger.open(server.url("wbcd")) as ledger:
        for table in ("event", "review", "sample_label"):
            assert list(check_chain(ledger, table)) == []
            assert list(check_beyond(ledger, table)) == []
        ledger.review(cell, "head", "monocyte")
        list(ledger.cell_labels())
        ledger.sample_labels()
    for binary in (False, True):  # Python holds no time after 9999: such a row would stop all reading
        with connect(server.url("wbcd"), answer_s=5.0) as owner:
            owner.execute("SELECT id, at FROM review UNION ALL SELECT id, at FROM sample_label", binary=binary).fetchall()


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_what_a_reviewer_may_not(server: SecureServer, statement: str) -> None:
    with server.connect(REVIEWER) as connection, connection.transaction(), pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_an_open_transaction_of_a_reviewer_does_not_hold_up_the_daemon(server: SecureServer) -> None:
    """It holds the end of the reviewers' chain, not that of the journal."""
    with psycopg.connect(server.url("wbcd")) as owner:
        (cell,) = owner.execute("SELECT MAX(id) FROM cell").fetchone() or (0,)
    with psycopg.connect(server.login(REVIEWER), password=server.passwords[REVIEWER]) as connection:
        connection.execute(f"INSERT INTO review (cell_id, reviewer, label, at) VALUES ({cell}, 'x', 'monocyte', now())")
        with opened(server.with_password(server.login("wbcd_daemon"), "wbcd_daemon")) as ledger:
            ledger.event("note", "while a review is open")
            ledger.commit(make_measured("while", make_cell()), *KEY)
        connection.rollback()
