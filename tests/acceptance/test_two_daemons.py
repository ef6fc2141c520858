"""Two daemons of two instruments, real processes with logins of their own, into one PostgreSQL database."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psycopg
from helpers_pgsecure import SecureServer
from helpers_spheres import cheap_settings, tiny_bundle, write_run
from helpers_zygote import Zygote

from wbcd.store import Ledger, verification
from wbcd.store.chain import CHAINED

SHARED, OWN = 10, 10
RUNS = "SELECT COUNT(*), COUNT(DISTINCT acquisition_id) FROM run"
BY_INSTRUMENT = (
    "SELECT split_part(path, '/', -2) AS instrument, COUNT(*) FROM acquisition JOIN run ON run.acquisition_id = acquisition.id "
    "GROUP BY 1 ORDER BY 1"
)
DUPLICATE_CELLS = "SELECT run_id, number FROM cell GROUP BY run_id, number HAVING COUNT(*) > 1"
DUPLICATE_PREDICTIONS = "SELECT cell_id FROM prediction GROUP BY cell_id, model_id HAVING COUNT(*) > 1"


def fill(folder: Path, name: str) -> None:
    """The shared acquisitions, and some that only this instrument made (another file name within, so another content)."""
    write_run(folder / "shared", SHARED)
    write_run(folder / "own", OWN)
    (folder / name).mkdir()
    for path in (folder / "shared").iterdir():
        shutil.copy2(path, folder / name / path.name)
    for path in (folder / "own").iterdir():
        data = bytearray(path.read_bytes())
        (folder / name / f"{name}-{path.name}").write_bytes(
            bytes(data) + name.encode()
        )  # behind the end of the HDF5: another content
        shutil.copystat(path, folder / name / f"{name}-{path.name}")


def test_two_daemons_fed_the_same_files_count_each_content_once(tmp_path: Path, secure_server: SecureServer) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    logins = {"left": "wbcd_daemon", "right": "second"}
    settings: dict[str, dict[str, Any]] = {}
    for name, login in logins.items():
        (tmp_path / name).mkdir()
        fill(tmp_path / name, name)
        settings[name] = cheap_settings(tmp_path / name, bundle) | {
            "watch.dir": tmp_path / name / name,
            "database.url": secure_server.login(login),
            "database.password_file": password_file(tmp_path / name, secure_server.passwords[login]),
        }
    zygotes = {name: Zygote() for name in logins}
    try:
        daemons = {
            name: zygotes[name].begin(settings[name], tmp_path / name / "log", until_idle=True, faults=[]) for name in logins
        }
        ended = {name: daemon.wait() for name, daemon in daemons.items()}
    finally:
        for zygote in zygotes.values():
            zygote.close()
    logs = {name: (tmp_path / name / "log").read_text() for name in logins}
    assert ended == {"left": 0, "right": 0}, logs
    # What both had in hand is stored once, and told once: the other says that it was stored already.
    told = [json.loads(line) for log in logs.values() for line in log.splitlines() if line.startswith("{")]
    assert sum(line["event"] == "outcome" for line in told) == SHARED + 2 * OWN
    stopped = [line for line in told if line["event"] == "stopped"]
    assert sum(line["measured"] + line["rejected"] + line["set_aside"] for line in stopped) == SHARED + 2 * OWN
    with psycopg.connect(secure_server.url("wbcd")) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]

        assert rows(RUNS) == [(SHARED + 2 * OWN, SHARED + 2 * OWN)]
        assert rows(DUPLICATE_CELLS) == rows(DUPLICATE_PREDICTIONS) == []
        assert rows("SELECT path, content_id, tries FROM acquisition WHERE tries > 0") == []
        assert rows("SELECT COUNT(DISTINCT path) FROM source_file") == [(2 * (SHARED + OWN),)]
        assert rows("SELECT COALESCE(SUM(n), 0) FROM backlog") == [(0,)]
        counts = dict(rows(BY_INSTRUMENT))
        assert sum(counts.values()) == SHARED + 2 * OWN
        assert all(counts[name] >= OWN for name in logins)  # what only it made, and its part of the shared
        for name in logins:
            own = f"SELECT COUNT(*) FROM acquisition a JOIN run r ON r.acquisition_id = a.id WHERE a.path LIKE '%/{name}-%'"
            assert rows(own) == [(OWN,)]
    auditor = secure_server.with_password(secure_server.login("carol"), "carol")
    with Ledger.open(auditor, create=False) as ledger:
        assert [finding for table in CHAINED for finding in verification.check_chain(ledger, table)] == []
    assert not any(secure_server.passwords[login] in log for login in logins.values() for log in logs.values())


def password_file(folder: Path, password: str) -> Path:
    path = folder / "password"
    path.write_text(password + "\n")
    path.chmod(0o600)
    return path
