"""Who may do what on PostgreSQL, by real logins with passwords: every grant works, and nothing else does."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from helpers_pgsecure import LOGINS, SecureServer, make_authority, make_certificate, make_roles, system_programs
from helpers_postgres import programs_folder
from helpers_store import KEY, opened

from wbcd.cli import cli
from wbcd.errors import DatabaseUnavailable, SchemaMismatch, StoreError
from wbcd.report.counts import read_differential, read_status
from wbcd.store import Ledger, backup, downgrade, upgrade, verification
from wbcd.store.chain import CHAINED
from wbcd.store.engine import Retry
from wbcd.store.roles import GRANTS, OWNER, ROLES, roles_sql
from wbcd.store.schema import SCHEMA_REVISION, metadata
from wbcd.store.urls import parse_url
from wbcd.store.views import VIEW_NAMES
from wbcd.testing import make_acquisition, make_cell, make_measured, make_rejected

NEVER = Retry(0.0)
ROOT = Path(__file__).parents[2]
RELATIONS = sorted((*metadata.tables, *VIEW_NAMES, "alembic_version"))
WRITES = {
    "INSERT": "INSERT INTO {0} SELECT * FROM {0} WHERE FALSE",
    "UPDATE": "UPDATE {0} SET {1} = {1} WHERE FALSE",
    "DELETE": "DELETE FROM {0} WHERE FALSE",
    "TRUNCATE": "TRUNCATE {0}",
}


@pytest.fixture(scope="module")
def counted(secure_server: SecureServer) -> SecureServer:
    """Outcomes of a daemon that logged in with its own role."""
    with opened(secure_server.with_password(secure_server.login("wbcd_daemon"), "wbcd_daemon")) as ledger:
        ledger.sighted("/watch/a.h5", 1, 1, make_acquisition("a").content_id)
        assert ledger.begin(make_acquisition("a")) == 1
        ledger.commit(make_measured("a", make_cell(), make_cell("monocyte", number=2)), *KEY)
        ledger.commit(make_measured("a"), *KEY)  # again
        ledger.commit(make_rejected("r"), *KEY)
        ledger.sighted("/watch/a.h5", 1, 2, "another content")
        ledger.gone("/watch/a.h5")
        ledger.event("note", "by the daemon")
        ledger.end_pause("x")
        ledger.check(deep=True)
        assert ledger.unfinished() == []
        assert len(list(ledger.cells())) == 2
    return secure_server


def may(server: SecureServer, login: str, statement: str) -> bool:
    """Tried for real, and rolled back."""
    with psycopg.connect(server.login(login), password=server.passwords[login]) as connection:
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return False
        except (psycopg.errors.RaiseException, psycopg.errors.FeatureNotSupported):
            return True  # allowed, and then stopped by a guard or a foreign key
        finally:
            connection.rollback()
        return True


@pytest.mark.parametrize("login", [login for login in LOGINS if login != OWNER])
def test_exactly_what_is_granted_is_possible(counted: SecureServer, login: str) -> None:
    granted = {(right, name) for right, names in GRANTS[LOGINS[login]] for name in names if name in RELATIONS}
    found = {("SELECT", name) for name in RELATIONS if may(counted, login, f"SELECT * FROM {name} LIMIT 1")}
    if may(counted, login, "SELECT id, name FROM sample") and ("SELECT", "sample") not in found:
        found.add(("SELECT (id, name)", "sample"))
    for name in (*metadata.tables, "alembic_version"):
        column = "version_num" if name == "alembic_version" else next(iter(metadata.tables[name].columns)).name
        for right in ("UPDATE", "DELETE", "TRUNCATE"):
            if may(counted, login, WRITES[right].format(name, column)):
                found.add((right, name))
        with counted.connect(login) as connection:
            query = "SELECT has_table_privilege(%s, 'INSERT'), has_table_privilege(%s, 'REFERENCES, TRIGGER')"
            insert, other = connection.execute(query, (name, name)).fetchone() or (None, None)
        assert not other
        if insert:
            found.add(("INSERT", name))
    assert found == granted


@pytest.mark.parametrize("login", [login for login in LOGINS if login != OWNER])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (x int)",
        "ALTER TABLE run ADD COLUMN x int",
        "DROP VIEW backlog",
        "ALTER TABLE review DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "CREATE ROLE x",
        "SELECT setval('review_id_seq', 1)",
        "CREATE OR REPLACE FUNCTION wbcd_append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY run TO PROGRAM 'true'",
    ],
)
def test_no_login_but_the_owner_changes_the_schema_or_its_guards(counted: SecureServer, login: str, statement: str) -> None:
    assert not may(counted, login, statement)


def wbcd(server: SecureServer, login: str, *words: str) -> Result:
    """The command line as this login, its password where a person keeps it."""
    return CliRunner().invoke(
        cli, [*words, "--db", server.login(login)], env={"CREDENTIALS_DIRECTORY": str(server.keep(login))}
    )


READING = (
    ("status",),
    ("status", "--json"),
    ("status", "--all"),
    ("status", "--prometheus"),
    ("counts",),
    ("counts", "--all", "--sample", "S1"),
    ("cells",),
    ("cells", "--all", "--refused", "--uncertain", "--json"),
    ("cells", "--sample", "S1", "--csv"),
    ("db", "current"),
    ("label", "--list"),
    ("label", "--json"),
)


@pytest.mark.parametrize("login", ["alice", "bob", "carol", "wbcd_daemon"])
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_whoever_may_read_reads_on_the_command_line(counted: SecureServer, login: str, words: tuple[str, ...]) -> None:
    done = wbcd(counted, login, *words)
    assert done.exit_code == 0, done.output
    assert "error" not in done.output
    assert "permission" not in done.output


@pytest.mark.parametrize("login", ["alice", "bob", "carol"])
def test_they_all_see_the_same(counted: SecureServer, login: str, tmp_path: Path) -> None:
    store = json.loads(wbcd(counted, login, "status", "--json").stdout)["store"]
    assert (store["measured"], store["rejected"], store["other_results"], store["model"]) == (1, 1, 0, KEY[1])
    first, second = (json.loads(line) for line in wbcd(counted, login, "cells", "--json").stdout.splitlines())
    assert (first["counted_as"], second["counted_as"]) == ("b_lymphocyte", "monocyte")
    shown = wbcd(counted, login, "cells", "--pictures", str(tmp_path / "look"))
    assert shown.exit_code == 0, shown.output
    assert len(list((tmp_path / "look").iterdir())) == 2  # the thumbnails


def test_a_reader_counts_and_sees_nothing_else(counted: SecureServer) -> None:
    url = counted.with_password(counted.login("alice"), "alice")
    assert [(row.label, row.n) for row in read_differential(url)] == [("b_lymphocyte", 1), ("monocyte", 1)]
    assert read_status(url).measured == 1
    for words in (("review", "1", "--as", "monocyte"), ("label", "--sample", "S1", "--as", "monocyte"), ("verify",)):
        done = wbcd(counted, "alice", *words)
        assert done.exit_code != 0, words
        assert "permission denied" in done.output


def test_a_reviewer_reviews_and_labels_on_the_command_line(counted: SecureServer) -> None:
    reviewed = wbcd(counted, "bob", "review", "2", "--as", "myelocyte", "--new-class", "--by", "bob", "--note", "granules")
    assert (reviewed.exit_code, "cell 2: myelocyte" in reviewed.stdout) == (0, True), reviewed.output
    labelled = wbcd(counted, "bob", "label", "--sample", "S1", "--as", "monocyte", "--purity", "0.9", "--by", "bob")
    assert labelled.exit_code == 0, labelled.output
    near = wbcd(counted, "bob", "review", "2", "--as", "myelocite", "--by", "bob")
    assert "myelocyte" in near.output  # what was named before, without a look into the tables
    (cell,) = (
        row for row in map(json.loads, wbcd(counted, "bob", "cells", "--json").stdout.splitlines()) if row["cell_id"] == 2
    )
    assert cell["reviewer"] == "bob"
    given = json.loads(wbcd(counted, "bob", "label", "--json").stdout)[-1]
    assert (given["sample"], given["label"], given["purity"], given["labelled_by"]) == ("S1", "monocyte", 0.9, "bob")
    audited = wbcd(counted, "carol", "verify").output
    assert "model: model@1 is not what its stored card says" in audited  # the card of the tests has no digest
    assert "1 things do not hold" in audited
    refused = wbcd(counted, "carol", "review", "2", "--as", "monocyte")
    assert refused.exit_code != 0
    assert "permission denied" in refused.output


FORGED = (
    "INSERT INTO review (id, cell_id, reviewer, label, at, previous_hash, row_hash)"
    " VALUES (1, 1, 'bob', 'monocyte', now(), 'x', 'y')",
    "INSERT INTO review (id, cell_id, reviewer, label) VALUES (9223372036854775807, 1, 'bob', 'monocyte')",
    "INSERT INTO sample_label (id, sample_id, label, labelled_by, at, row_hash) VALUES (-5, 1, 'monocyte', 'bob', now(), 'y')",
)


@pytest.mark.parametrize("statement", FORGED)
def test_a_reviewer_who_forges_a_place_in_the_chain_gets_the_next_one(counted: SecureServer, statement: str) -> None:
    """The trigger gives id and hashes, whatever the row says; the auditor finds the chain whole, and the row in it."""
    table = statement.split()[2]
    url = counted.with_password(counted.login("carol"), "carol")
    with Ledger.open(url, create=False) as ledger:
        before = verification.heads(ledger)
    with counted.connect("bob") as connection:
        connection.execute(statement)
    with Ledger.open(url, create=False) as ledger:
        after = verification.heads(ledger)
        assert [finding for name in CHAINED for finding in verification.check_chain(ledger, name)] == []
    assert after[table].last_id == before[table].last_id + 1
    assert {name: after[name] for name in CHAINED if name != table} == {name: before[name] for name in CHAINED if name != table}


NO_RIGHT = ("42501", "0A000", "55000")
"""No right; or the function of a trigger, which nobody calls; or a view of two tables, which takes no rows."""


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_head SET last_id = 0",
        "UPDATE review SET label = 'monocyte'",
        "DELETE FROM review",
        "TRUNCATE sample_label",
        "INSERT INTO audit_head VALUES ('mine', 0, '')",
        "INSERT INTO event (at, kind, message, details) VALUES (now(), 'x', 'y', '{}')",
        "UPDATE labelled_sample SET label = 'x'",
        "DELETE FROM cell_picture",
        "UPDATE known_model SET simulated = false",
        "INSERT INTO journal (at, kind, message) VALUES (now(), 'x', 'y')",
        "SELECT wbcd_chain_review()",
        "SELECT card FROM model",
        "SELECT details FROM event",
        "UPDATE run SET reopened_at = now()",
        "DELETE FROM cell",
    ],
)
def test_a_reviewer_may_neither_touch_the_chain_nor_write_through_a_view(counted: SecureServer, statement: str) -> None:
    with counted.connect("bob") as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)
    assert caught.value.sqlstate in NO_RIGHT, caught.value


def test_a_temporary_table_of_a_reviewer_misleads_no_trigger(counted: SecureServer) -> None:
    with counted.connect("bob") as connection:
        connection.execute("CREATE TEMPORARY TABLE audit_head (name text, last_id bigint, row_hash text)")
        connection.execute("INSERT INTO audit_head VALUES ('review', 0, 'mine')")
        connection.execute("INSERT INTO review (cell_id, reviewer, label) VALUES (1, 'bob', 'monocyte')")
        assert connection.execute("SELECT last_id, row_hash FROM pg_temp.audit_head").fetchall() == [(0, "mine")]
    with Ledger.open(counted.with_password(counted.login("carol"), "carol"), create=False) as ledger:
        assert list(verification.check_chain(ledger, "review")) == []


def test_the_daemon_replaces_only_what_is_opened_again(counted: SecureServer) -> None:
    with counted.connect("wbcd_daemon") as connection:
        for statement in ("DELETE FROM prediction", "DELETE FROM cell", "UPDATE run SET outcome = 'rejected', reason = 'x'"):
            with pytest.raises(psycopg.errors.RaiseException, match="not opened again"):
                connection.execute(statement)
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE run SET asked_at = now() WHERE outcome = 'measured'")
            connection.execute("UPDATE run SET reopened_at = now() WHERE outcome = 'measured'")
            connection.execute("DELETE FROM prediction")
            connection.execute("DELETE FROM cell WHERE NOT EXISTS (SELECT FROM review WHERE cell_id = cell.id)")
            connection.execute("UPDATE run SET wbcd_version = 'next' WHERE reopened_at IS NOT NULL")
        with pytest.raises(psycopg.errors.RaiseException, match="not opened again"):
            connection.execute("DELETE FROM run")


def test_a_reviewer_adds_by_psql_and_by_wbcd_and_every_row_is_chained(counted: SecureServer) -> None:
    by_hand = "INSERT INTO review (cell_id, reviewer, label) VALUES (1, 'bob', 'monocyte')"
    environment = {"PGPASSWORD": counted.passwords["bob"], "PATH": ""}
    psql = [str(programs_folder() / "psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-c", by_hand, counted.login("bob")]
    carol = counted.with_password(counted.login("carol"), "carol")
    with Ledger.open(carol, create=False) as ledger:
        before, labels = verification.heads(ledger)["review"].last_id, len(ledger.sample_labels())
    subprocess.run(psql, env=environment, check=True, capture_output=True)
    with Ledger.open(counted.with_password(counted.login("bob"), "bob"), create=False) as ledger:
        ledger.review(2, "bob", "b_lymphocyte")
        ledger.label_sample("S1", "monocyte", purity=0.9, by="bob")
        with pytest.raises(StoreError, match="permission denied"):
            ledger.event("note", "not his")
        assert [label.label for label in ledger.sample_labels("S1")][-1:] == ["monocyte"]
    with Ledger.open(counted.with_password(counted.login("carol"), "carol"), create=False) as ledger:
        found = [finding for table in CHAINED for finding in verification.check_chain(ledger, table)]
        assert found == []
        assert verification.heads(ledger)["review"].last_id == before + 2
        assert len(ledger.sample_labels()) == labels + 1
    with counted.connect("alice") as connection:
        assert connection.execute("SELECT source, COUNT(*) FROM cell_label GROUP BY source").fetchall() == [("review", 2)]


def test_a_reviewer_cannot_capture_the_guard(counted: SecureServer) -> None:
    """The chain's function runs with its owner's rights: a table of the same name in a schema of one's own is not found."""
    with counted.connect("bob") as connection:
        connection.execute("CREATE TEMPORARY TABLE audit_head (name text, last_id bigint, row_hash text)")
        connection.execute("INSERT INTO audit_head VALUES ('review', 1000, 'forged')")
        connection.execute("INSERT INTO review (cell_id, reviewer, label) VALUES (1, 'bob', 'x')")
    with Ledger.open(counted.with_password(counted.login("carol"), "carol"), create=False) as ledger:
        assert list(verification.check_chain(ledger, "review")) == []
        assert verification.heads(ledger)["review"].last_id < 1000


def test_the_daemon_does_not_migrate_and_says_what_to_do(counted: SecureServer) -> None:
    owner = counted.with_password(counted.login("wbcd_owner"), "wbcd_owner")
    daemon = counted.with_password(counted.login("wbcd_daemon"), "wbcd_daemon")
    with psycopg.connect(counted.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    with psycopg.connect(counted.url("empty"), autocommit=True) as connection:
        connection.execute(roles_sql())
    empty_owner, empty_daemon = (url.replace("/wbcd?", "/empty?") for url in (owner, daemon))
    with pytest.raises(SchemaMismatch, match="'wbcd_daemon' may not make one") as caught:
        Ledger.open(empty_daemon)
    assert "as the owner" in caught.value.sentence()
    assert upgrade(empty_owner, "0001") == "0001"
    with pytest.raises(StoreError) as refused:  # an older schema, to which nothing was granted yet
        Ledger.open(empty_daemon)
    assert "permission denied" in refused.value.message or "0001" in refused.value.message
    with pytest.raises(StoreError, match=r"permission denied|must be owner"):
        upgrade(daemon.replace("/wbcd?", "/empty?"))
    upgrade(empty_owner)
    with opened(empty_daemon) as ledger:  # the migration granted what the daemon needs
        ledger.commit(make_measured("a"), *KEY)
    with pytest.raises(StoreError, match=r"permission denied|must be owner"):
        downgrade(empty_daemon, "base")
    assert downgrade(empty_owner, "base") == "base"
    assert upgrade(empty_owner) == SCHEMA_REVISION
    with psycopg.connect(counted.url("empty"), autocommit=True) as connection:
        connection.execute(roles_sql())  # again, with the tables there: nothing changes
    with opened(empty_daemon) as ledger:
        ledger.commit(make_measured("a"), *KEY)


def test_the_auditor_s_dump_restores_with_owner_guards_and_grants(counted: SecureServer, tmp_path: Path) -> None:
    """As the documentation says: roles first, then pg_restore, then an upgrade by the owner; every login works as before."""
    programs = programs_folder()
    carol = counted.with_password(counted.login("carol"), "carol")
    program = str(programs / "pg_dump")
    made = backup.backup_postgres(parse_url(carol), tmp_path / "monday.dump", env={}, program=program)
    with psycopg.connect(counted.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    with psycopg.connect(counted.url("restored"), autocommit=True) as connection:
        connection.execute(roles_sql())
    restore = [programs / "pg_restore", "--exit-on-error", f"--dbname={counted.url('restored')}", made.path]
    subprocess.run(restore, check=True, capture_output=True)
    owner, daemon, carol_there = (
        counted.with_password(counted.login(login), login).replace("/wbcd?", "/restored?")
        for login in ("wbcd_owner", "wbcd_daemon", "carol")
    )
    assert upgrade(owner) == upgrade(owner)
    with Ledger.open(carol_there, create=False) as ledger, Ledger.open(carol, create=False) as before:
        assert [finding for table in CHAINED for finding in verification.check_chain(ledger, table)] == []
        assert verification.heads(ledger) == verification.heads(before)
    with opened(daemon) as ledger:
        ledger.commit(make_measured("after the restore"), *KEY)
        ledger.event("note", "goes on")
        with pytest.raises(StoreError, match="permission denied"):
            ledger.review(1, "daemon", "x")
    assert read_differential(daemon)


def test_a_wrong_password_is_refused_with_a_sentence(counted: SecureServer) -> None:
    url = counted.with_password(counted.login("wbcd_daemon"), "alice")
    with pytest.raises((StoreError, DatabaseUnavailable), match="password authentication failed") as caught:
        Ledger.open(url).close()
    assert counted.passwords["alice"] not in caught.value.sentence()


def test_the_deployed_file_is_what_the_command_prints() -> None:
    assert (ROOT / "deploy" / "roles.sql").read_text() == roles_sql() == CliRunner().invoke(cli, ["db", "roles"]).output
    assert set(GRANTS) == set(ROLES) - {OWNER}


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(system_programs() is None, reason="no PostgreSQL with TLS in /usr/lib/postgresql")
def test_the_server_s_certificate_is_checked_as_the_url_says(tmp_path: Path) -> None:
    """sslmode and the others pass through the URL to libpq; verify-full refuses another authority and another name."""
    authority = make_authority(tmp_path, "authority")
    certificate = make_certificate(tmp_path, authority, "server", address="IP:127.0.0.1")
    server = SecureServer((*certificate, authority[0]), system_programs())
    try:
        make_roles(server)
        check_tls(server, authority[0], make_authority(tmp_path, "other")[0], tmp_path)
        check_client_certificate(server, authority, tmp_path)
    finally:
        server.close()


def check_tls(counted: SecureServer, good: Path, other: Path, tmp_path: Path) -> None:
    def url(mode: str, authority: Path, host: str = "127.0.0.1") -> str:
        return counted.with_password(counted.tls("wbcd_daemon", mode=mode, authority=authority, host=host), "wbcd_daemon")

    with opened(url("verify-full", good)) as ledger:
        used = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert ledger.read(lambda connection: connection.exec_driver_sql(used).one())[0] is True
        ledger.event("note", "over TLS")
        ledger.commit(make_measured("a"), *KEY)
    assert [row.n for row in read_differential(url("verify-full", good))] == [1]
    for wrong, sentence in (
        (url("verify-full", other), "certificate verify failed"),
        (url("verify-full", good, host="localhost"), "does not match host name"),
        (url("verify-full", tmp_path / "absent.pem"), "does not exist"),
        (url("disable", good), "pg_hba.conf rejects|no pg_hba.conf entry"),
    ):
        for opener in (lambda url: Ledger.open(url, retry=NEVER).close(), read_differential):
            with pytest.raises(StoreError, match=sentence) as caught:
                opener(wrong)
            assert counted.passwords["wbcd_daemon"] not in caught.value.sentence()


def check_client_certificate(server: SecureServer, authority: tuple[Path, Path], tmp_path: Path) -> None:
    """A login by certificate: sslcert and sslkey pass through as well, and no password is needed."""
    base = server.tls("second", mode="verify-full", authority=authority[0])
    certificate, key = make_certificate(tmp_path, authority, "second", address="DNS:second")
    with opened(f"{base}&sslcert={certificate}&sslkey={key}") as ledger:
        ledger.event("note", "by certificate")
    stranger = make_authority(tmp_path, "stranger")
    certificate, key = make_certificate(tmp_path, stranger, "second", address="DNS:second")
    for url in (base, f"{base}&sslcert={certificate}&sslkey={key}"):
        with pytest.raises(StoreError, match=r"certificate|alert|closed"):
            Ledger.open(url, retry=NEVER).close()


def test_the_password_is_never_shown(
    counted: SecureServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By file and by credential; in the output of every reading verb, in the state of the daemon and in its log."""
    secret = counted.passwords["carol"]
    (tmp_path / "password").write_text(secret + "\n")
    (tmp_path / "wbcd.toml").write_text(
        f'[database]\nurl = "{counted.login("carol")}"\npassword_file = "{tmp_path / "password"}"\n'
        f'[output]\ndir = "{tmp_path / "output"}"\n'
    )
    caplog.set_level(logging.DEBUG)
    config = ["--config", str(tmp_path / "wbcd.toml")]
    for verb in (["status"], ["status", "--json"], ["counts"], ["config", "show"], ["config", "check"], ["verify"],
                 ["db", "current"], ["db", "backup", str(tmp_path / "x.dump")], ["status", "--prometheus"]):  # fmt: skip
        done = CliRunner().invoke(cli, [*verb, *config])
        assert secret not in done.output, verb
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert "permission denied" not in done.output
    assert "1 measured" in CliRunner().invoke(cli, ["status", *config]).output
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "database-password").write_text(secret)
    done = CliRunner().invoke(cli, ["counts", "--db", counted.login("carol")])
    assert (done.exit_code, secret in done.output) == (0, False)
    (tmp_path / "database-password").write_text("wrong")
    done = CliRunner().invoke(cli, ["counts", "--db", counted.login("carol")])
    assert done.exit_code == 69
    assert "password authentication failed" in done.output
    assert secret not in caplog.text
