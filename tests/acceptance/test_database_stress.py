"""The database under stress, each done for real to a running daemon: replaced, hung, cancelled, locked, full of connections.

Each time the daemon waits, `wbcd status` says why, it goes on by itself, and every row is as in an undisturbed run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from helpers_faults import set_to
from helpers_ledger import Whole, check_against, differences, outcome_table, rows
from helpers_postgres import OwnServer, programs_folder
from helpers_spheres import cheap_settings
from helpers_zygote import Daemon, Zygote, wait_until

from wbcd.cli import cli
from wbcd.daemon.state import DaemonState, read_state
from wbcd.errors import StoreError
from wbcd.report.counts import read_status
from wbcd.store.backup import backup_postgres, backup_sqlite
from wbcd.store.urls import parse_url

SAID_WITHIN_S = 10.0

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


def make_database(server: OwnServer, name: str) -> str:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.url(name)


def outcomes(url: str) -> int:
    try:
        return read_status(url).outcomes
    except StoreError:  # no schema yet, or no server
        return -1


def expect_whole(url: str, whole: Whole) -> None:
    """Row by row as in the undisturbed run, each once, nothing left begun."""
    with psycopg.connect(url) as connection:
        found = [(Path(row[0]).name, *row[1:]) for row in connection.execute(OUTCOMES).fetchall()]
        assert differences(found, whole.table) == []
        assert connection.execute("SELECT COUNT(*) FROM acquisition WHERE tries > 0").fetchone() == (0,)


def state(folder: Path) -> DaemonState:
    return read_state(folder / "output")


def said(folder: Path, words: str, *, within_s: float = SAID_WITHIN_S) -> DaemonState:
    """The state once its reason holds ``words``."""

    def look() -> DaemonState | None:
        found = state(folder)
        return found if words in (found.reason or "") else None

    found: DaemonState = wait_until(look, within_s, f"{words!r} in {folder}: now {state(folder)}")
    return found


def running(folder: Path, *, within_s: float = 40.0) -> None:
    wait_until(lambda: state(folder).state == "running", within_s, f"running: now {state(folder)}")


def asked_status(folder: Path, url: str, *more: str) -> tuple[int, dict[str, Any], float]:
    """`wbcd status`: its exit status, its answer, and how long it took."""
    started = time.monotonic()
    done = CliRunner().invoke(cli, ["status", "--json", "--db", url, "--output-dir", str(folder / "output"), *more])
    return done.exit_code, json.loads(done.output.splitlines()[0]), time.monotonic() - started


def stop(daemon: Daemon, folder: Path) -> None:
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0, (folder / "log").read_text()[-3000:]


def feed(whole: Whole, folder: Path, first: int, last: int) -> None:
    """Some of the acquisitions, each under its name only when whole."""
    incoming = folder / "incoming"
    incoming.mkdir(exist_ok=True)
    for path in sorted(whole.incoming.iterdir())[first:last]:
        shutil.copy2(path, folder / path.name)
        (folder / path.name).rename(incoming / path.name)


# --- the SQLite file -------------------------------------------------------------------------------------


def put_by_name(database: Path, backup: Path) -> None:
    shutil.copy(backup, database.with_suffix(".new"))
    database.with_suffix(".new").rename(database)


def put_by_bytes(database: Path, backup: Path) -> None:
    """`cp`, then `rm -f wbcd.db-wal wbcd.db-shm`."""
    with backup.open("rb") as source, database.open("r+b") as target:
        target.truncate(0)
        shutil.copyfileobj(source, target)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink()


@pytest.mark.parametrize("put", [put_by_name, put_by_bytes], ids=lambda put: put.__name__)
def test_a_backup_put_in_place_under_the_daemon(
    tmp_path: Path, zygote: Zygote, whole: Whole, put: Callable[[Path, Path], None]
) -> None:
    """What was counted after the backup is counted again; what comes later is counted into the new file."""
    database, log = tmp_path / "wbcd.db", tmp_path / "log"
    feed(whole, tmp_path, 0, 6)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle), log)
    url = f"sqlite:///{database}"
    wait_until(lambda: outcomes(url) == 6)
    backup_sqlite(parse_url(url), tmp_path / "backup.db")
    feed(whole, tmp_path, 6, 14)
    wait_until(lambda: outcomes(url) == 14)
    put(database, tmp_path / "backup.db")
    wait_until(lambda: "store.replaced" in log.read_text() or "while it was open" in log.read_text(), SAID_WITHIN_S)
    feed(whole, tmp_path, 14, 20)
    wait_until(lambda: outcomes(url) == 20)
    running(tmp_path)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []
    assert rows(tmp_path, "SELECT COUNT(*) FROM event WHERE kind = 'database_replaced'") == [(1,)]
    assert '"paused"' in log.read_text()
    assert '"resumed"' in log.read_text()


def test_a_file_that_goes_is_waited_for(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    database, url = tmp_path / "wbcd.db", f"sqlite:///{tmp_path / 'wbcd.db'}"
    feed(whole, tmp_path, 0, 5)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle), tmp_path / "log")
    wait_until(lambda: outcomes(url) == 5)
    database.rename(tmp_path / "moved.db")
    assert said(tmp_path, "removed while it was open; it is waited for").state == "paused"
    code, answer, _ = asked_status(tmp_path, url)
    assert code == 0
    assert "is waited for" in answer["daemon"]["reason"]
    feed(whole, tmp_path, 5, 20)
    assert not database.exists()
    (tmp_path / "moved.db").rename(database)
    wait_until(lambda: outcomes(url) == 20)
    running(tmp_path)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []
    assert len(outcome_table(tmp_path)) == len(whole.table)


# --- a server that hangs ------------------------------------------------------------------------------------


def back_ends(server: OwnServer, database: str) -> list[int]:
    """Of the daemon's connections."""
    with psycopg.connect(server.url()) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'wbcd' AND datname = %s"
        return [row[0] for row in connection.execute(query, (database,))]


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def test_a_back_end_that_hangs(tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole) -> None:
    """Idle and at work: told within ten seconds; when it goes on, nothing is lost, nothing twice."""
    url = make_database(server, "hung")
    settings = cheap_settings(tmp_path, whole.bundle) | {"database.url": url}
    feed(whole, tmp_path, 0, 4)
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(url) == 4)
    with stopped(*back_ends(server, "hung")):  # idle
        found = said(tmp_path, "does not answer since")
        assert found.state == "paused"
    running(tmp_path)
    feed(whole, tmp_path, 4, 12)
    wait_until(lambda: outcomes(url) >= 6)
    with stopped(*back_ends(server, "hung")):  # at work
        said(tmp_path, "does not answer since")
        code, answer, seconds = asked_status(tmp_path, url)
        assert code == 0
        assert "does not answer since" in answer["daemon"]["reason"]
        assert seconds < 10
        assert asked_status(tmp_path, url, "--check")[0] == 1
    wait_until(lambda: outcomes(url) == 12)
    running(tmp_path)
    assert asked_status(tmp_path, url, "--check")[0] == 0
    feed(whole, tmp_path, 12, 20)
    wait_until(lambda: outcomes(url) == 20)
    stop(daemon, tmp_path)
    expect_whole(url, whole)


def test_a_back_end_that_never_goes_on_is_given_up(tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole) -> None:
    """The limit of the client's side (shortened here): a new connection goes on, though the old back end is still stopped."""
    url = make_database(server, "given_up")
    settings = cheap_settings(tmp_path, whole.bundle) | {"database.url": url}
    feed(whole, tmp_path, 0, 10)
    daemon = zygote.begin(settings, tmp_path / "log", faults=[set_to("wbcd.store.ledger:ANSWER_S", 5.0)])
    wait_until(lambda: outcomes(url) == 10)  # so that the one that is stopped holds no lock
    with stopped(*back_ends(server, "given_up")):
        feed(whole, tmp_path, 10, 20)
        said(tmp_path, "does not answer since")
        wait_until(lambda: outcomes(url) == 20)
        running(tmp_path)
    stop(daemon, tmp_path)
    expect_whole(url, whole)


def test_a_whole_server_that_hangs(tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole) -> None:
    """Not even connecting ends, and `wbcd status` ends all the same."""
    url = make_database(server, "all_hung")
    settings = cheap_settings(tmp_path, whole.bundle) | {"database.url": url}
    feed(whole, tmp_path, 0, 6)
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(url) >= 2)
    with stopped(server.pid, *back_ends(server, "all_hung")):
        said(tmp_path, "does not answer since")
        code, answer, seconds = asked_status(tmp_path, url)
        assert code == 0
        assert answer["daemon"]["state"] == "paused"
        assert "timeout" in answer["store"]["error"]
        assert seconds < 10
    feed(whole, tmp_path, 6, 20)
    wait_until(lambda: outcomes(url) == 20)
    running(tmp_path)
    stop(daemon, tmp_path)
    expect_whole(url, whole)


# --- a server that refuses ----------------------------------------------------------------------------------


def give(server: OwnServer, statement: str, database: str = "postgres") -> None:
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        connection.execute(statement)


def end_connections(server: OwnServer, database: str) -> None:
    """As an administrator: the daemon must connect anew, and meets what was set meanwhile."""
    give(
        server,
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()",
    )


@contextmanager
def table_locked(server: OwnServer, database: str) -> Iterator[None]:
    with psycopg.connect(server.url(database)) as connection:
        connection.execute("LOCK TABLE run IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def statements_time_out(server: OwnServer, database: str) -> Iterator[None]:
    """57014: a statement_timeout, set for the whole database, while somebody holds a lock."""
    give(server, f"ALTER DATABASE {database} SET statement_timeout = '300ms'")
    end_connections(server, database)
    with table_locked(server, database):
        yield
    give(server, f"ALTER DATABASE {database} RESET statement_timeout")
    end_connections(server, database)


@contextmanager
def cancelled_by_hand(server: OwnServer, database: str) -> Iterator[None]:
    """57014 again and again, by pg_cancel_backend."""
    over = threading.Event()

    def cancel() -> None:
        query = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'wbcd' AND datname = %s"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            while not over.wait(0.05):
                connection.execute(query, (database,))

    thread = threading.Thread(target=cancel)
    with table_locked(server, database):
        thread.start()
        yield
    over.set()
    thread.join()


@contextmanager
def read_only(server: OwnServer, database: str) -> Iterator[None]:
    """25006, as on a standby."""
    give(server, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    end_connections(server, database)
    yield
    with psycopg.connect(server.url(), autocommit=True, options="-c default_transaction_read_only=off") as connection:
        connection.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
    end_connections(server, database)


@contextmanager
def no_right(server: OwnServer, database: str) -> Iterator[None]:
    give(server, f"REVOKE INSERT ON run FROM {database}", database)
    yield
    give(server, f"GRANT INSERT ON run TO {database}", database)


@contextmanager
def no_connection_left(server: OwnServer, database: str) -> Iterator[None]:
    """53300: every one that the server has is taken, but for those kept for a superuser."""
    held: list[Any] = []
    try:
        while True:
            try:
                held.append(psycopg.connect(server.url(database).replace("//wbcd@", f"//{database}@")))
            except psycopg.OperationalError as error:
                assert "connection slots" in str(error) or "too many" in str(error), error  # noqa: PT017
                break
        end_of = (
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wbcd' AND datname = '{database}'"
        )
        give(server, end_of)
        held.append(wait_until(lambda: taken(server, database), 10))
        yield
    finally:
        for connection in held:
            connection.close()


def taken(server: OwnServer, database: str) -> Any:
    """The place that the daemon lost, before it has it back."""
    try:
        return psycopg.connect(server.url(database).replace("//wbcd@", f"//{database}@"))
    except psycopg.OperationalError:
        return None


REFUSALS = {
    "locked": (table_locked, "does not answer since"),
    "timed_out": (statements_time_out, "SQLSTATE 57014"),
    "cancelled": (cancelled_by_hand, "SQLSTATE 57014"),
    "read_only": (read_only, "SQLSTATE 25006"),
    "no_right": (no_right, "SQLSTATE 42501"),
    "no_connection": (no_connection_left, "slots are reserved"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_waited_for_with_its_reason(
    tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole, name: str
) -> None:
    provoked, words = REFUSALS[name]
    database = f"refusing_{name}"
    give(server, f"CREATE ROLE {database} LOGIN")
    give(server, f"CREATE DATABASE {database} OWNER {database}")
    url = server.url(database)
    own = url.replace("//wbcd@", f"//{database}@")  # who owns the schema, and is no superuser
    feed(whole, tmp_path, 0, 4)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle) | {"database.url": own}, tmp_path / "log")
    wait_until(lambda: outcomes(url) == 4)
    with provoked(server, database):
        feed(whole, tmp_path, 4, 20)
        assert said(tmp_path, words).state == "paused"
        assert not daemon.ended
    wait_until(lambda: outcomes(url) == 20)
    running(tmp_path)
    stop(daemon, tmp_path)
    expect_whole(url, whole)


def test_a_dump_restored_under_the_daemon(tmp_path: Path, server: OwnServer, zygote: Zygote, whole: Whole) -> None:
    """The database is dropped, made again and filled from a dump: waited for, and what is not in the dump is counted again."""
    url = make_database(server, "restored")
    feed(whole, tmp_path, 0, 6)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle) | {"database.url": url}, tmp_path / "log")
    wait_until(lambda: outcomes(url) == 6)
    programs = programs_folder()
    backup_postgres(parse_url(url), tmp_path / "x.dump", env=os.environ, program=str(programs / "pg_dump"))
    feed(whole, tmp_path, 6, 14)
    wait_until(lambda: outcomes(url) == 14)
    give(server, "DROP DATABASE restored WITH (FORCE)")
    said(tmp_path, 'database "restored" does not exist')
    give(server, "CREATE DATABASE restored")
    feed(whole, tmp_path, 14, 20)
    said(tmp_path, "Is a backup being restored?")
    command = [str(programs / "pg_restore"), "--exit-on-error", f"--dbname={url}", str(tmp_path / "x.dump")]
    assert subprocess.run(command, check=False).returncode == 0
    wait_until(lambda: outcomes(url) == 20)
    running(tmp_path)
    stop(daemon, tmp_path)
    expect_whole(url, whole)
