"""A large backlog of bad files: flat memory, a short log, progress shown, and a restart that does no work again.

`make test` takes 600 files; `make test-all` takes 100,000 (WBCD_BACKLOG sets another number) and writes a plot of the
memory (WBCD_BACKLOG_PLOT names the file).
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from helpers_faults import count_calls
from helpers_ledger import rows
from helpers_spheres import cheap_settings, tiny_bundle
from helpers_zygote import Daemon, Zygote, wait_until

from wbcd.daemon.state import read_state

LOG_LINES_MIN = 50


def write_bad_files(folder: Path, count: int) -> None:
    """Tiny, all different, none of a known format; in session folders, as an instrument's export would be."""
    for number in range(count):
        session = folder / f"session-{number // 1000:03d}"
        if number % 1000 == 0:
            session.mkdir(parents=True)
        (session / f"{number:06d}.h5").write_bytes(b"not an acquisition %d" % number)


@dataclass
class Watched:
    """What was seen of a daemon while it worked: seconds, MB, files that wait."""

    samples: list[tuple[float, float, int]] = field(default_factory=list)

    def follow(self, daemon: Daemon, output: Path, every_s: float) -> int:
        """Until it ends; its wait status."""
        started = time.monotonic()
        while not daemon.ended:
            try:
                memory_mb = daemon.process.memory_info().rss / 2**20
            except psutil.Error:
                break
            details = read_state(output).details or {}
            if details.get("pid") == daemon.pid and details.get("state") == "running":
                self.samples.append((time.monotonic() - started, memory_mb, int(details["waiting"])))
            time.sleep(every_s)
        return daemon.wait()

    @property
    def growth_mb(self) -> float:
        """From a fifth of the way, when everything is known and every cache is warm, to the end."""
        steady = [memory for _, memory, _ in self.samples[len(self.samples) // 5 :]]
        return max(steady) - steady[0]


def work_through(folder: Path, zygote: Zygote, count: int, every_s: float) -> tuple[Watched, Watched, dict[str, float]]:
    """The whole backlog, killed (-9) at a third of it, then a restart when all is done: what was seen, and how long each took
    until nothing waited."""
    write_bad_files(folder / "incoming", count)
    settings = cheap_settings(
        folder,
        tiny_bundle(folder / "bundle"),
        **{"watch.mode": "inotify", "watch.rescan_s": 60.0, "service.log_lines_min": LOG_LINES_MIN},
    )
    first, again, seconds = Watched(), Watched(), {}
    daemon = zygote.begin(settings, folder / "log-killed", until_idle=True)
    wait_until(lambda: daemon.ended or stored(folder) >= count // 3, 4 * 3600.0)
    daemon.send(signal.SIGKILL)
    assert daemon.wait() == signal.SIGKILL
    half, done = rows(folder, "SELECT SUM(id), COUNT(*), MAX(finished_at) FROM run")[0], stored(folder)
    assert count // 3 <= done < count
    started = time.monotonic()
    assert first.follow(zygote.begin(settings, folder / "log", until_idle=True), folder / "output", every_s) == 0
    seconds["first"] = time.monotonic() - started
    # What was stored before the kill is as it was, and nothing was done twice.
    assert rows(folder, f"SELECT SUM(id), COUNT(*), MAX(finished_at) FROM run WHERE id <= {done}")[0] == half
    assert rows(folder, "SELECT COUNT(DISTINCT acquisition_id) - COUNT(*) FROM run") == [(0,)]
    before = rows(folder, "SELECT SUM(id), COUNT(*), MAX(finished_at) FROM run")
    begun = rows(folder, "SELECT MAX(begun_at) FROM acquisition")
    faults = [count_calls("wbcd.acquisition.candidate:identify", folder / "identified")]
    started = time.monotonic()
    daemon = zygote.begin(settings, folder / "log-again", until_idle=True, faults=faults)
    assert again.follow(daemon, folder / "output", every_s) == 0
    seconds["again"] = time.monotonic() - started
    # The restart found its place: not a byte was hashed again, nothing was begun, nothing was stored.
    assert (folder / "identified").stat().st_size == 0
    assert rows(folder, "SELECT SUM(id), COUNT(*), MAX(finished_at) FROM run") == before
    assert rows(folder, "SELECT MAX(begun_at) FROM acquisition") == begun
    assert before[0][1] == count
    assert rows(folder, "SELECT DISTINCT outcome, reason FROM run") == [("set_aside", "input.unknown_format")]
    return first, again, seconds


def stored(folder: Path) -> int:
    """Outcomes that are committed; 0 before there is a schema."""
    try:
        return int(rows(folder, "SELECT COUNT(*) FROM run")[0][0])
    except sqlite3.OperationalError:
        return 0


def log_lines(folder: Path) -> tuple[int, int]:
    """Outcome lines that were written, and how many more the log says there were."""
    lines = [line for name in ("log-killed", "log") for line in (folder / name).read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.endswith("}")]  # the kill may have cut its last one
    written = sum(event["event"] == "outcome" for event in events)
    more = sum(event["more"] for event in events if event["event"] == "log.more" and event["of"]["event"] == "outcome")
    return written, more


def test_some_hundred_bad_files(tmp_path: Path, zygote: Zygote) -> None:
    count = 600
    first, _, seconds = work_through(tmp_path, zygote, count, 0.1)
    assert first.growth_mb < 30
    waiting = [left for _, _, left in first.samples]
    assert waiting[0] > waiting[len(waiting) // 2] > waiting[-1]  # progress is shown
    written, more = log_lines(tmp_path)
    # Of those before the kill, the last minute's sum was not written any more.
    assert count - count // 3 - 1 <= written + more <= count
    assert written <= LOG_LINES_MIN * (2 + seconds["first"] // 60 + 1)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_thousand_bad_files(tmp_path: Path, zygote: Zygote, capsys: pytest.CaptureFixture[str]) -> None:
    count = int(os.environ.get("WBCD_BACKLOG", "100000"))
    first, again, seconds = work_through(tmp_path, zygote, count, 2.0)
    plot(first, Path(os.environ.get("WBCD_BACKLOG_PLOT", tmp_path / "backlog.png")))
    written, more = log_lines(tmp_path)
    figures = {
        "files": count,
        "first_s": round(seconds["first"]),
        "restart_s": round(seconds["again"], 1),
        "growth_mb": round(first.growth_mb, 1),
        "largest_mb": round(max(memory for _, memory, _ in first.samples + again.samples)),
        "log_lines": written,
        "more_told": more,
    }
    with capsys.disabled():
        print(f"\nbacklog: {json.dumps(figures)}")
    assert first.growth_mb < 60
    assert written + more <= count
    assert seconds["again"] < 60  # a promise to the user, not a measure of this machine


def plot(watched: Watched, path: Path) -> None:
    """Memory and waiting files against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [seconds / 60 for seconds, _, _ in watched.samples]
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 4.4), layout="constrained")
    top.plot(minutes, [memory for _, memory, _ in watched.samples], lw=1)
    top.set_ylabel("resident memory (MB)")
    top.set_ylim(bottom=0)
    bottom.plot(minutes, [left for _, _, left in watched.samples], lw=1)
    bottom.set_ylabel("waiting files")
    bottom.set_xlabel("minutes")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
