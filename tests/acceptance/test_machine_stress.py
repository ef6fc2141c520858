"""What befalls a running daemon besides its database: its folders taken away, its model replaced, itself stopped for long."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers_faults import without_rights_over_files
from helpers_ledger import Whole, check_against, rows
from helpers_spheres import cheap_settings, sphere, tiny_bundle
from helpers_zygote import Daemon, Zygote, wait_until

from wbcd.cli import cli
from wbcd.config import Config
from wbcd.daemon.state import FILE_NAME, DaemonState, read_state
from wbcd.daemon.trial import try_in_child
from wbcd.errors import StoreError
from wbcd.report.counts import read_status

SAID_WITHIN_S = 10.0


def outcomes(folder: Path) -> int:
    try:
        return read_status(f"sqlite:///{folder / 'wbcd.db'}").outcomes
    except StoreError:
        return -1


def state(folder: Path) -> DaemonState:
    return read_state(folder / "output")


def checked(folder: Path) -> tuple[int, dict[str, Any]]:
    """`wbcd status --check`."""
    done = CliRunner().invoke(cli, ["status", "--check", "--json", "--output-dir", str(folder / "output")])
    return done.exit_code, json.loads(done.output)["daemon"]


def stop(daemon: Daemon, folder: Path) -> None:
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0, (folder / "log").read_text()[-3000:]


def feed(whole: Whole, folder: Path, first: int, last: int) -> None:
    incoming = folder / "incoming"
    incoming.mkdir(exist_ok=True)
    for path in sorted(whole.incoming.iterdir())[first:last]:
        shutil.copy2(path, folder / path.name)
        (folder / path.name).rename(incoming / path.name)


def test_the_output_folder_is_removed(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """The state file is made again: "absent" was said of a daemon that worked on."""
    feed(whole, tmp_path, 0, 8)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle), tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 8)
    shutil.rmtree(tmp_path / "output")
    wait_until(lambda: state(tmp_path).state == "running", SAID_WITHIN_S)
    (tmp_path / "output" / FILE_NAME).unlink()
    wait_until(lambda: state(tmp_path).state == "running", SAID_WITHIN_S)
    feed(whole, tmp_path, 8, 20)
    wait_until(lambda: outcomes(tmp_path) == 20)
    assert checked(tmp_path)[0] == 0
    stop(daemon, tmp_path)
    assert state(tmp_path).state == "stopped"
    assert check_against(whole, tmp_path) == []


def test_the_output_folder_becomes_a_file_for_a_while(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """Where nothing can be made, the daemon works on, the log says so, and the file comes back when it can."""
    output = tmp_path / "output"
    feed(whole, tmp_path, 0, 4)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle), tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 4)
    output.rename(tmp_path / "away")
    output.touch()
    wait_until(lambda: "cannot be made again" in (tmp_path / "log").read_text(), SAID_WITHIN_S)
    code, said = checked(tmp_path)
    assert (code, said["state"]) == (1, "absent")
    assert "is not there" in said["reason"]
    feed(whole, tmp_path, 4, 20)
    wait_until(lambda: outcomes(tmp_path) == 20)
    output.unlink()
    wait_until(lambda: state(tmp_path).state == "running", SAID_WITHIN_S)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []


def test_the_output_folder_becomes_read_only(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """Volumes cannot be kept: intake pauses, the state is told in the file that is open, and it goes on by itself."""
    output = tmp_path / "output"
    feed(whole, tmp_path, 0, 4)
    settings = cheap_settings(tmp_path, whole.bundle) | {"output.keep_tomograms": True}
    daemon = zygote.begin(settings, tmp_path / "log", faults=[without_rights_over_files()])
    wait_until(lambda: outcomes(tmp_path) == 4)
    folders = [output, *(path for path in output.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    feed(whole, tmp_path, 4, 20)
    wait_until(lambda: "Permission denied" in (state(tmp_path).reason or ""), SAID_WITHIN_S)
    code, said = checked(tmp_path)
    assert (code, said["state"]) == (1, "paused")
    for folder in folders:
        folder.chmod(0o755)
    wait_until(lambda: outcomes(tmp_path) == 20)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []


def test_the_model_folder_is_replaced(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """The daemon goes on with the model that it began with, whose name is that of its bytes; the next start takes the other."""
    bundle = tmp_path / "bundle"
    shutil.copytree(whole.bundle, bundle)
    feed(whole, tmp_path, 0, 5)
    settings = cheap_settings(tmp_path, bundle)
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 5)
    for path in bundle.iterdir():
        path.write_bytes(b"\xff" * 100)
    feed(whole, tmp_path, 5, 12)
    wait_until(lambda: outcomes(tmp_path) == 12)
    shutil.rmtree(bundle)
    feed(whole, tmp_path, 12, 20)
    wait_until(lambda: outcomes(tmp_path) == 20)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []
    assert rows(tmp_path, "SELECT COUNT(DISTINCT model_id) FROM run") == [(1,)]


def test_a_trial_without_the_model_condemns_no_file(tmp_path: Path, whole: Whole) -> None:
    """A file that was in hand when the machine was switched off three times is tried in a child, which loads the model anew."""
    flat = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in cheap_settings(tmp_path, tmp_path / "gone").items()
    }
    config = Config.load(None, {}, flat)
    assert try_in_child(config, sorted(whole.incoming.iterdir())[0]) is None


@pytest.mark.parametrize("seconds", [3, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_daemon_that_is_stopped_and_goes_on(tmp_path: Path, zygote: Zygote, whole: Whole, seconds: float) -> None:
    """SIGSTOP, as a debugger, a frozen container or a suspended machine: told at once, and nothing is lost or condemned."""
    feed(whole, tmp_path, 0, 20)
    settings = cheap_settings(tmp_path, whole.bundle) | {"limits.isolate": True}
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) >= 5)
    daemon.send(signal.SIGSTOP)
    try:
        code, said = wait_until(lambda: found if (found := checked(tmp_path))[1]["state"] == "silent" else None, SAID_WITHIN_S)
        assert code == 1
        assert "stopped by a signal" in said["reason"]
        threading.Event().wait(seconds)
    finally:
        daemon.send(signal.SIGCONT)
    wait_until(lambda: outcomes(tmp_path) == 20, 120)
    wait_until(lambda: checked(tmp_path)[0] == 0, SAID_WITHIN_S)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []


@pytest.mark.parametrize("seconds", [0, pytest.param(180, marks=pytest.mark.slow)])
def test_another_program_holds_the_write_lock(tmp_path: Path, zygote: Zygote, whole: Whole, seconds: float) -> None:
    """Of SQLite, for minutes: it says so within ten seconds, and names the lock when the wait for it is over."""
    feed(whole, tmp_path, 0, 6)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle), tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 6)
    with closing(sqlite3.connect(tmp_path / "wbcd.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        feed(whole, tmp_path, 6, 20)
        wait_until(lambda: "does not answer since" in (state(tmp_path).reason or ""), SAID_WITHIN_S)
        assert checked(tmp_path)[0] == 1
        wait_until(lambda: "database is locked" in (state(tmp_path).reason or ""), 30)
        threading.Event().wait(seconds)
        assert not daemon.ended
        other.execute("ROLLBACK")
    wait_until(lambda: outcomes(tmp_path) == 20)
    stop(daemon, tmp_path)
    assert check_against(whole, tmp_path) == []


def test_a_newer_schema_under_the_daemon_ends_it(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    """An older program before a newer schema: not a row more, and no restart that would not help (78)."""
    feed(whole, tmp_path, 0, 4)
    daemon = zygote.begin(cheap_settings(tmp_path, whole.bundle), tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 4)
    with closing(sqlite3.connect(tmp_path / "wbcd.db", timeout=20)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    feed(whole, tmp_path, 4, 8)
    assert os.waitstatus_to_exitcode(daemon.wait()) == 78
    found = state(tmp_path)
    assert found.state == "failed"
    assert "9999" in (found.reason or "")
    assert rows(tmp_path, "SELECT COUNT(*) FROM run") == [(4,)]


FEW, MANY = 160, 2000


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_many_tiny_files_with_flat_descriptors_threads_and_memory(tmp_path: Path, zygote: Zygote, count: int) -> None:
    from wbcd.simulation.files import write_tcf

    incoming = tmp_path / "incoming"
    incoming.mkdir()
    volumes = [sphere(3.0 + 0.1 * number, size=24) for number in range(8)]
    for number in range(count):
        write_tcf(incoming / f"{number:05d}.TCF", [volumes[number % 8]], voxel_um=(0.4, 0.4, 0.4), title=f"cell-{number}")
    settings = cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle")) | {"limits.isolate": True}
    daemon = zygote.begin(settings, tmp_path / "log")

    def sample() -> tuple[int, int, float]:
        process = daemon.process
        return process.num_fds(), process.num_threads(), process.memory_info().rss / 2**20

    seen: list[tuple[int, int, float]] = []
    third = count // 3
    wait_until(lambda: outcomes(tmp_path) >= third, 600)
    while (done := outcomes(tmp_path)) < count:
        seen.append(sample())
        wait_until(lambda done=done: outcomes(tmp_path) > done, 120)
    stop(daemon, tmp_path)
    half = len(seen) // 2
    early, late = seen[:half], seen[half:]
    for what, index, more in (("descriptors", 0, 3), ("threads", 1, 2), ("MiB", 2, 20.0)):
        before, after = max(one[index] for one in early), max(one[index] for one in late)
        assert after <= before + more, f"{what}: {before} in the first half, {after} in the second"
    assert rows(tmp_path, "SELECT COUNT(*), COUNT(DISTINCT acquisition_id) FROM run") == [(count, count)]
