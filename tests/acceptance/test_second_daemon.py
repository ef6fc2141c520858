"""A second daemon: refused on the same output folder, told of on the same watch folder. Real daemons, real verbs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_ledger import Whole, check_against
from helpers_spheres import cheap_settings
from helpers_zygote import Daemon, Zygote, wait_until

from wbcd.cli.common import EXIT_CONFIG
from wbcd.daemon.state import FILE_NAME, read_state


@pytest.fixture(scope="module")
def second() -> Iterator[Zygote]:
    """Daemons beside those of the session's own zygote."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def none_left(zygote: Zygote, second: Zygote) -> Iterator[None]:
    yield
    zygote.end_running()
    second.end_running()


def site(folder: Path, whole: Whole) -> dict[str, Any]:
    """A site of its own on the shared watch folder."""
    folder.mkdir(exist_ok=True)
    return cheap_settings(folder, whole.bundle, **{"watch.dir": whole.incoming})


def begun(zygote: Zygote, settings: dict[str, Any], log: Path) -> Daemon:
    daemon = zygote.begin(settings, log)
    wait_until(lambda: read_state(settings["output.dir"]).state == "running", what=f"ready ({log})")
    return daemon


def verb(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wbcd.cli", *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WBCD_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def of_site(settings: dict[str, Any]) -> list[object]:
    return ["--watch-dir", settings["watch.dir"], "--output-dir", settings["output.dir"], "--db", settings["database.url"]]


def state_of(settings: dict[str, Any]) -> dict[str, Any]:
    return read_state(settings["output.dir"]).details or {}


def outcomes_in(log: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == "outcome"]


def test_a_second_daemon_on_the_same_output_is_refused_until_the_first_is_dead(
    tmp_path: Path, zygote: Zygote, second: Zygote, whole: Whole
) -> None:
    settings = site(tmp_path, whole)
    first = begun(zygote, settings, tmp_path / "first.log")
    refused = verb("run", *of_site(settings))
    assert refused.returncode == EXIT_CONFIG
    for told in (
        "output folder of another daemon",
        f"process {first.pid} on {os.uname().nodename}, since 20",
        str(whole.incoming),
    ):
        assert told in refused.stderr, refused.stderr
    other_database = settings | {"database.url": f"sqlite:///{tmp_path / 'other.db'}"}
    assert second.run(other_database, tmp_path / "second.log") == EXIT_CONFIG << 8
    assert not (tmp_path / "other.db").exists()  # nothing was begun
    link = tmp_path / "link"
    link.symlink_to(settings["output.dir"])
    assert second.run(settings | {"output.dir": link}, tmp_path / "second.log") == EXIT_CONFIG << 8
    assert state_of(settings)["pid"] == first.pid
    assert read_state(settings["output.dir"]).state == "running"
    first.send(signal.SIGKILL)
    assert first.wait() == signal.SIGKILL
    assert second.run(settings, tmp_path / "third.log") == 0, (tmp_path / "third.log").read_text()[-2000:]
    assert check_against(whole, tmp_path) == []
    told = [entry["path"] for log in ("first.log", "third.log") for entry in outcomes_in(tmp_path / log)]
    assert len(told) == len(set(told)) > 0  # no outcome is told twice; one that the kill came upon may be told by none


def test_daemons_that_begin_at_once_leave_one(tmp_path: Path, zygote: Zygote, second: Zygote, whole: Whole) -> None:
    """Which of them is left to chance; never both, never none."""
    settings = site(tmp_path, whole)
    both = [made.begin(settings, tmp_path / f"{number}.log", until_idle=True) for number, made in enumerate((zygote, second))]
    assert sorted(daemon.wait() for daemon in both) == [0, EXIT_CONFIG << 8]
    assert check_against(whole, tmp_path) == []


def test_daemons_of_one_watch_folder_are_told_of_one_another(
    tmp_path: Path, zygote: Zygote, second: Zygote, whole: Whole
) -> None:
    sites = [site(tmp_path / name, whole) for name in ("a", "b")]
    first = begun(zygote, sites[0], tmp_path / "a.log")
    assert state_of(sites[0])["also_watched_by"] == []
    assert "another daemon" not in verb("status", *of_site(sites[0])).stdout
    doctor = verb("doctor", *of_site(sites[1]))
    assert f"another daemon watches {whole.incoming} too: process {first.pid}" in doctor.stdout.replace("\n", " ")
    other = begun(second, sites[1], tmp_path / "b.log")
    for settings, own, foreign in ((sites[0], first, other), (sites[1], other, first)):
        wait_until(lambda settings=settings: state_of(settings).get("also_watched_by"), what="told")
        assert state_of(settings)["pid"] == own.pid
        assert state_of(settings)["also_watched_by"] == [f"process {foreign.pid} (user {os.getuid()})"]
        shown = verb("status", *of_site(settings)).stdout
        assert f"watched by another daemon too: process {foreign.pid}" in shown
        assert f"process {foreign.pid}" in str(json.loads(verb("status", "--json", *of_site(settings)).stdout)["daemon"])
    for log in ("a.log", "b.log"):
        assert (tmp_path / log).read_text().count("watch.shared") == 1
    other.send(signal.SIGKILL)
    other.wait()
    wait_until(lambda: state_of(sites[0])["also_watched_by"] == [], what="alone again")
    assert "watch.alone" in (tmp_path / "a.log").read_text()
    assert "another daemon" not in verb("status", *of_site(sites[0])).stdout


def test_two_sites_of_their_own_are_told_nothing(tmp_path: Path, zygote: Zygote, second: Zygote, whole: Whole) -> None:
    sites = [site(tmp_path / name, whole) for name in ("a", "b")]
    sites[1]["watch.dir"] = tmp_path / "b" / "incoming"
    sites[1]["watch.dir"].mkdir()
    begun(zygote, sites[0], tmp_path / "a.log")
    begun(second, sites[1], tmp_path / "b.log")
    for settings, log in zip(sites, ("a.log", "b.log"), strict=True):
        assert state_of(settings)["also_watched_by"] == []
        assert "watch.shared" not in (tmp_path / log).read_text()
        assert (settings["output.dir"] / FILE_NAME).exists()
