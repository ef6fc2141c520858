"""A hung kernel, a lost device, too little memory, a clock that jumps: the daemon under a service manager loses nothing."""

from __future__ import annotations

import datetime as dt
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_faults import FORWARD, clock_shifted_by, count_calls, hang_in, raise_in, too_many_cells_at_once
from helpers_ledger import Whole, check_against, rows
from helpers_manager import Manager, restarts, unit
from helpers_spheres import cheap_settings
from helpers_zygote import Zygote, wait_until

from wbcd.cli.common import EXIT_CONFIG, EXIT_IO
from wbcd.daemon.state import read_state

ACQUISITIONS = 20


@pytest.fixture
def settings(tmp_path: Path, whole: Whole) -> dict:
    return cheap_settings(tmp_path, whole.bundle, **{"watch.dir": whole.incoming, "output.keep_tomograms": True})


@pytest.fixture
def manager(tmp_path: Path, zygote: Zygote) -> Iterator[Manager]:
    made = Manager(zygote, tmp_path, watchdog_s=4.0)
    yield made
    made.close()


def test_a_hung_kernel_is_aborted_by_the_watchdog_and_nothing_is_lost(
    tmp_path: Path, settings: dict, manager: Manager, whole: Whole
) -> None:
    hang = hang_in(FORWARD, passage=4, once=tmp_path / "hung")
    manager.run(settings | {"classification.max_batch": 2}, tmp_path / "log", until_idle=True, faults=[hang])
    assert (tmp_path / "hung").exists()
    assert manager.aborted >= 1
    assert manager.ends[0] == signal.SIGABRT | (manager.ends[0] & 0x80)  # 0x80: a core was written
    assert manager.ends[-1] == 0
    assert check_against(whole, tmp_path) == []


def test_a_lost_device_ends_the_process_with_its_own_status_and_the_unit_restarts_it(
    tmp_path: Path, settings: dict, manager: Manager, whole: Whole
) -> None:
    text = "CUDA error: device-side assert triggered"
    lost = raise_in(FORWARD, "builtins:RuntimeError", text, passage=4, once=tmp_path / "lost")
    manager.run(settings | {"classification.max_batch": 2}, tmp_path / "log", until_idle=True, faults=[lost])
    codes = [os.waitstatus_to_exitcode(status) for status in manager.ends]
    assert codes == [EXIT_IO, 0], (tmp_path / "log").read_text()[-2000:]
    assert "was lost" in (tmp_path / "log").read_text()
    assert check_against(whole, tmp_path) == []


def test_the_unit_restarts_everything_but_a_wrong_configuration() -> None:
    assert restarts(EXIT_IO << 8)
    assert restarts(signal.SIGABRT)
    assert restarts(signal.SIGKILL)
    assert not restarts(EXIT_CONFIG << 8)
    assert unit()["Type"] == "notify"
    assert int(unit()["WatchdogSec"]) > 0


def test_too_little_memory_halves_the_batch_until_it_fits(tmp_path: Path, settings: dict, zygote: Zygote, whole: Whole) -> None:
    note = tmp_path / "batches"
    memory = too_many_cells_at_once(2, note)
    patient = settings | {"classification.max_latency_s": 2.0}
    assert zygote.run(patient, tmp_path / "log", faults=[memory]) == 0, (tmp_path / "log").read_text()[-2000:]
    batches = [int(size) for size in note.read_text().split()]
    assert max(batches) > 2  # there was something to halve
    first_fit = next(index for index, size in enumerate(batches[1:], 1) if size <= 2)  # after the warm-up
    assert max(batches[first_fit:]) <= 2  # the halved size is kept
    assert check_against(whole, tmp_path) == []


def test_ready_comes_after_the_database_the_model_and_the_first_scan(tmp_path: Path, settings: dict, manager: Manager) -> None:
    manager.run(settings, tmp_path / "log", until_idle=True)
    told = [message for _, message in manager.heard]
    ready = next(index for index, message in enumerate(told) if "READY" in message)
    assert not any("WATCHDOG" in message for message in told[:ready])
    log = (tmp_path / "log").read_text()
    assert f'"backlog": {ACQUISITIONS}' in next(line for line in log.splitlines() if '"event": "ready"' in line)
    assert told[ready]["STATUS"] == "Watching."
    waiting = [re.search(r"(\d+) waiting\.$", message["STATUS"]) for message in told[ready + 1 : -1]]
    counts = [int(found[1]) for found in waiting if found is not None]
    assert len(counts) == len(waiting)  # each heartbeat says it
    # Of the scan's finds: 16 wait in the channel of arrivals, some are in hand, the others in the backlog.
    assert 0 < counts[0] <= ACQUISITIONS - 16
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert "STOPPING" in told[-1]


def test_the_model_is_warmed_up_before_ready(tmp_path: Path, settings: dict, manager: Manager) -> None:
    """With nothing to classify the network runs all the same; and where its first run fails, READY was not said."""
    (tmp_path / "empty").mkdir()
    note = tmp_path / "calls"
    failing = raise_in(FORWARD, "builtins:RuntimeError", "the first pass failed", passage=1, once=tmp_path / "failed")
    faults = [count_calls(FORWARD, note), failing]
    manager.run(settings | {"watch.dir": tmp_path / "empty"}, tmp_path / "log", until_idle=True, faults=faults)
    assert len(manager.ends) == 2
    assert manager.ends[0] != 0
    assert manager.ends[1] == 0
    assert "the first pass failed" in (tmp_path / "log").read_text()
    assert sum("READY" in message for _, message in manager.heard) == 1  # of the second process only
    assert note.stat().st_size >= 1


def test_not_ready_while_the_database_is_away(tmp_path: Path, settings: dict, zygote: Zygote, manager: Manager) -> None:
    """Its folder is a file: it cannot be made. READY waits, the reason shows, and both end when the file goes."""
    (tmp_path / "data").write_text("in the way")
    away = settings | {"database.url": f"sqlite:///{tmp_path}/data/wbcd.db"}
    runner = threading.Thread(target=manager.run, args=(away, tmp_path / "log"), kwargs={"until_idle": True})
    runner.start()
    state = wait_until(lambda: (found := read_state(tmp_path / "output")).state == "paused" and found)
    assert "data" in state.reason
    assert not any("READY" in message for _, message in manager.heard)
    (tmp_path / "data").unlink()
    runner.join(240)
    assert manager.ends == [0]
    assert any("READY" in message for _, message in manager.heard)


DAY_S = 86_400


@pytest.mark.parametrize("jumps", [(DAY_S, -DAY_S), (-DAY_S, DAY_S)], ids=["a day on, then back", "a day back, then on"])
def test_a_wall_clock_that_jumps_changes_nothing_but_labels(
    tmp_path: Path, settings: dict, zygote: Zygote, whole: Whole, jumps: tuple[int, int]
) -> None:
    shift = tmp_path / "shift"
    timed = settings | {"watch.quiet_s": 0.2, "classification.max_latency_s": 0.2}
    started = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    daemon = zygote.begin(timed, tmp_path / "log", until_idle=True, faults=[clock_shifted_by(shift)])

    def stored() -> int:
        try:
            return int(rows(tmp_path, "SELECT COUNT(*) FROM run")[0][0])
        except Exception:  # noqa: BLE001 - no schema yet
            return 0

    for least, seconds in zip((3, 9), jumps, strict=True):
        wait_until(lambda least=least: stored() >= least)
        (tmp_path / "new-shift").write_text(str(seconds))
        (tmp_path / "new-shift").rename(shift)
    assert daemon.wait() == 0, (tmp_path / "log").read_text()[-2000:]
    assert check_against(whole, tmp_path) == []
    # The labels did jump, so the clock was really wrong ...
    days = {
        round((dt.datetime.fromisoformat(at).replace(tzinfo=None) - started).total_seconds() / DAY_S)
        for (at,) in rows(tmp_path, "SELECT finished_at FROM run")
    }
    assert {0, jumps[0] // DAY_S} <= days <= {-1, 0, 1}
    # ... and the order stayed that of the files, but for those that were looked at again.
    query = "SELECT a.path FROM run r JOIN acquisition a ON a.id = r.acquisition_id ORDER BY r.id"
    order = [int(Path(path).stem) for (path,) in rows(tmp_path, query)]
    once = [number for number in order if number % 10 != 6]
    assert once == sorted(once)
    # No stage took longer than the run by the monotonic clock says: seconds are never differences of wall time.
    assert all(0 <= seconds < 120 for (seconds,) in rows(tmp_path, "SELECT seconds FROM run"))
