"""The watch folder on a real file system, with real notifications. No sleeps: the watcher's own waiting is what is tested."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_acquisition import ri_volume, until, wbcd_file
from structlog.testing import capture_logs
from watchdog.events import FileCreatedEvent, FileOpenedEvent

from wbcd.acquisition import FolderWatcher
from wbcd.acquisition.watch import HintBox, candidate_of, scan
from wbcd.simulation.files import write_ome_zarr_ri

LONG_S = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def gather(watcher: FolderWatcher, count: int, timeout_s: float = 20.0) -> list[Path]:
    """Poll until ``count`` files settled or the time is over."""
    found: list[Path] = []
    end = time.monotonic() + timeout_s
    while len(found) < count and (left := end - time.monotonic()) > 0:
        found += watcher.poll(left)
    return found


def drain(watcher: FolderWatcher, until: Callable[[], bool], timeout_s: float = 20.0) -> list[Path]:
    found: list[Path] = []
    end = time.monotonic() + timeout_s
    while not until() and time.monotonic() < end:
        found += watcher.poll(0.05)
    return found


# --- listing -------------------------------------------------------------------------------------


def test_scan_enters_session_folders_and_nothing_else(tmp_path):
    wanted = [tmp_path / "a.h5", tmp_path / "s1" / "b.TCF", tmp_path / "s1" / "deep" / "c.hdf5"]
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    zarr = write_ome_zarr_ri(tmp_path / "d.zarr", ri_volume(), (0.2, 0.1, 0.1))
    (zarr / "0" / "inner.h5").write_bytes(b"1")
    (tmp_path / "x.h5").mkdir()
    (tmp_path / "x.h5" / "inner.h5").write_bytes(b"1")
    os.mkfifo(tmp_path / "f.h5")
    (tmp_path / "l.h5").symlink_to("/etc/hostname")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "e.h5").write_bytes(b"1")
    (tmp_path / "g.h5.part").write_bytes(b"1")
    found, unreadable = scan(tmp_path)
    assert set(found) == {*wanted, zarr, tmp_path / "x.h5", tmp_path / "f.h5", tmp_path / "l.h5"}
    assert unreadable == []


def test_scan_of_an_absent_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.h5", "a.h5"),
        ("s/a.TCF", "s/a.TCF"),
        ("s/a.zarr/0/c/0", "s/a.zarr"),
        ("a.zarr/0/x.h5", "a.zarr"),
        (".s/a.h5", None),
        ("s/config.dat", None),
        ("a.h5.part", None),
    ],
)
def test_candidate_of_an_event(tmp_path, name, expected):
    assert candidate_of(tmp_path / name, tmp_path) == (None if expected is None else tmp_path / expected)


def test_event_outside_the_folder_is_nothing(tmp_path):
    assert candidate_of(Path("/elsewhere/a.h5"), tmp_path) is None


def test_hints_are_bounded_and_our_own_openings_are_none(tmp_path):
    box = HintBox(tmp_path, limit=3)
    box.on_any_event(FileOpenedEvent(str(tmp_path / "z.h5")))
    assert box.take() == (set(), False)
    for index in range(10):
        box.on_any_event(FileCreatedEvent(str(tmp_path / f"{index}.h5")))
    paths, overflowed = box.take()
    assert (len(paths), overflowed) == (3, True)
    assert not box.rung.is_set()
    assert box.take() == (set(), False)


# --- rescan is the truth -------------------------------------------------------------------------


def test_quiet_time_runs_on_the_given_clock(tmp_path):
    clock = Clock()
    path = wbcd_file(tmp_path / "a.h5")
    watcher = FolderWatcher(tmp_path, quiet_s=2.0, clock=clock)
    assert watcher.poll(0.0) == []
    clock.now += 1.9
    assert watcher.poll(0.0) == []
    clock.now += 0.2
    assert watcher.poll(0.0) == [path]
    assert watcher.poll(0.0) == []
    assert (watcher.known, watcher.present, watcher.kind) == (1, True, "none")


def test_a_growing_file_waits_and_a_wall_clock_jump_does_not_matter(tmp_path):
    clock = Clock()
    path = tmp_path / "a.h5"
    path.write_bytes(b"1")
    os.utime(path, (0, 0))  # an mtime of 1970: age by the wall clock says nothing
    watcher = FolderWatcher(tmp_path, quiet_s=2.0, rescan_s=0.5, clock=clock)
    for size in range(2, 8):
        assert watcher.poll(0.0) == []
        path.write_bytes(b"1" * size)
        clock.now += 1.5
    assert watcher.poll(0.0) == []
    clock.now += 2.0
    assert watcher.poll(0.0) == [path]


def test_without_any_notification_the_rescan_finds_everything(tmp_path):
    clock = Clock()
    watcher = FolderWatcher(tmp_path, quiet_s=0.0, rescan_s=60.0, clock=clock)  # never started: no hints at all
    assert watcher.poll(0.0) == []
    paths = {wbcd_file(tmp_path / f"s{index}" / "a.h5") for index in range(5)}
    clock.now += 59.0
    assert watcher.poll(0.0) == []
    clock.now += 1.5
    assert set(watcher.poll(0.0)) == paths


def test_order_is_by_mtime_and_newest_first_if_asked(tmp_path):
    for index, name in enumerate(("b.h5", "a.h5", "c.h5")):
        (tmp_path / name).write_bytes(b"1")
        os.utime(tmp_path / name, ns=(0, index))
    names = [path.name for path in FolderWatcher(tmp_path, quiet_s=0.0).poll(0.0)]
    assert names == ["b.h5", "a.h5", "c.h5"]
    names = [path.name for path in FolderWatcher(tmp_path, quiet_s=0.0, newest_first=True).poll(0.0)]
    assert names == ["c.h5", "a.h5", "b.h5"]


def test_retry_gives_a_file_out_again(tmp_path):
    clock = Clock()
    path = wbcd_file(tmp_path / "a.h5")
    watcher = FolderWatcher(tmp_path, quiet_s=1.0, clock=clock)
    watcher.poll(0.0)
    clock.now += 1.0
    assert watcher.poll(0.0) == [path]
    watcher.retry(path)
    assert watcher.poll(0.0) == []
    clock.now += 1.0
    assert watcher.poll(0.0) == [path]


def test_a_vanished_folder_is_awaited_and_nothing_is_forgotten(tmp_path):
    clock = Clock()
    folder, away = tmp_path / "watch", tmp_path / "away"
    first = wbcd_file(folder / "a.h5")
    watcher = FolderWatcher(folder, quiet_s=0.0, rescan_s=1.0, clock=clock)
    assert watcher.poll(0.0) == [first]
    folder.rename(away)
    clock.now += 1.0
    assert watcher.poll(0.0) == []
    assert not watcher.present
    second = wbcd_file(away / "b.h5")
    away.rename(folder)
    clock.now += 1.0
    assert watcher.poll(0.0) == [folder / second.name]  # the first was counted before
    assert watcher.present


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_found(tmp_path, monkeypatch):
    good = wbcd_file(tmp_path / "a.h5")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def denying(at):
        if str(Path(f"/proc/self/fd/{at}").readlink()).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(at)

    monkeypatch.setattr(os, "scandir", denying)
    clock = Clock()
    watcher = FolderWatcher(tmp_path, quiet_s=0.0, rescan_s=1.0, clock=clock)
    with capture_logs() as said:
        assert watcher.poll(0.0) == [good]
        clock.now += 2.0
        watcher.poll(0.0)
    assert watcher.scans == 2
    assert watcher.unreadable == [tmp_path / "locked"]
    assert [entry["folder"] for entry in said if entry["event"] == "watch.folder_unreadable"] == [str(tmp_path / "locked")]


def test_a_zarr_folder_that_cannot_be_listed_is_given_out(tmp_path, monkeypatch):
    (tmp_path / "a.zarr").mkdir()
    scandir = os.scandir

    def denying(at):
        if isinstance(at, int) and str(Path(f"/proc/self/fd/{at}").readlink()).endswith(".zarr"):
            raise PermissionError(13, "Permission denied")
        return scandir(at)

    monkeypatch.setattr(os, "scandir", denying)
    assert FolderWatcher(tmp_path, quiet_s=0.0).poll(0.0) == [tmp_path / "a.zarr"]


def test_a_hint_through_a_linked_folder_is_not_followed(tmp_path):
    folder, outside = tmp_path / "watch", tmp_path / "outside"
    folder.mkdir()
    wbcd_file(outside / "a.h5")
    (folder / "link").symlink_to(outside)
    watcher = FolderWatcher(folder, quiet_s=0.0)
    watcher._hints.hint(folder / "link" / "a.h5")
    assert watcher.poll(0.0) == []
    watcher._hints.hint(folder / "link" / "a.h5")
    assert watcher.poll(0.0) == []


def test_a_backlog_is_given_out_once(tmp_path):
    for index in range(500):
        (tmp_path / f"{index}.h5").write_bytes(b"1")
    watcher = FolderWatcher(tmp_path, quiet_s=0.0)
    assert len(watcher.poll(0.0)) == 500
    assert watcher.poll(0.0) == []


# --- notifications -------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "kind"), [("inotify", "inotify"), ("polling", "polling"), ("auto", "inotify")])
def test_new_files_are_found_long_before_the_rescan(tmp_path, mode, kind):
    (tmp_path / "session").mkdir()
    with FolderWatcher(tmp_path, mode=mode, rescan_s=LONG_S, quiet_s=0.05, poll_interval_s=0.05) as watcher:
        assert watcher.kind == kind
        assert watcher.poll(0.0) == []
        paths = {wbcd_file(tmp_path / "a.h5"), wbcd_file(tmp_path / "session" / "b.h5")}
        assert set(gather(watcher, 2)) == paths
        assert watcher.scans == 1


def test_new_session_folder_with_files_already_in_it(tmp_path):
    with FolderWatcher(tmp_path, mode="inotify", rescan_s=LONG_S, quiet_s=0.05) as watcher:
        watcher.poll(0.0)
        paths = {wbcd_file(tmp_path / f"s{index}" / "a.h5") for index in range(20)}
        elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
        wbcd_file(elsewhere / "b.h5")
        elsewhere.rename(tmp_path / "moved-in")
        assert set(gather(watcher, 21)) == {*paths, tmp_path / "moved-in" / "b.h5"}


def test_a_zarr_folder_is_one_candidate(tmp_path):
    with FolderWatcher(tmp_path, mode="inotify", rescan_s=LONG_S, quiet_s=0.3) as watcher:
        watcher.poll(0.0)
        path = write_ome_zarr_ri(tmp_path / "a.zarr", ri_volume((70, 40, 44)), (0.2, 0.1, 0.1))
        assert gather(watcher, 1) == [path]


def test_reading_a_file_is_no_hint(tmp_path):
    path = wbcd_file(tmp_path / "a.h5")
    with FolderWatcher(tmp_path, mode="inotify", rescan_s=LONG_S, quiet_s=0.0) as watcher:
        assert watcher.poll(0.0) == [path]
        for _ in range(5):
            path.read_bytes()
        marker = wbcd_file(tmp_path / "b.h5")
        assert gather(watcher, 1) == [marker]
        assert path not in watcher._hints.take()[0]


def test_deleted_files_are_forgotten_and_come_back_as_new(tmp_path):
    path = wbcd_file(tmp_path / "a.h5")
    kept = tmp_path.parent / f"{tmp_path.name}-kept"
    with FolderWatcher(tmp_path, mode="inotify", rescan_s=LONG_S, quiet_s=0.05) as watcher:
        assert gather(watcher, 1) == [path]
        path.rename(kept)
        drain(watcher, lambda: watcher.known == 0)
        assert watcher.known == 0
        kept.rename(path)
        assert gather(watcher, 1) == [path]


@pytest.mark.parametrize("mode", ["inotify", "polling"])
def test_folder_replaced_under_the_watcher(tmp_path, mode):
    """Unmounted and mounted again: the old notifications are deaf; one rescan finds the files and listens anew."""
    folder = tmp_path / "watch"
    wbcd_file(folder / "a.h5")
    with FolderWatcher(folder, mode=mode, rescan_s=0.2, quiet_s=0.05, poll_interval_s=0.05) as watcher:
        assert len(gather(watcher, 1)) == 1
        shutil.rmtree(folder)
        drain(watcher, lambda: not watcher.present)
        assert not watcher.present
        second = wbcd_file(folder / "b.h5")
        assert gather(watcher, 1) == [second]
        watcher.rescan_s = LONG_S
        drain(watcher, lambda: watcher._next_scan_s > watcher._clock() + 100)
        third = wbcd_file(folder / "c.h5")  # only a notification can tell of it now
        assert gather(watcher, 1) == [third]


def test_started_before_the_folder_exists(tmp_path):
    folder = tmp_path / "later"
    with FolderWatcher(folder, mode="inotify", rescan_s=0.1, quiet_s=0.05) as watcher:
        assert watcher.kind == "none"
        assert watcher.poll(0.0) == []
        path = wbcd_file(folder / "a.h5")
        assert gather(watcher, 1) == [path]
        assert watcher.kind == "inotify"


@pytest.mark.parametrize("mode", ["inotify", "polling"])
def test_a_dead_emitter_is_replaced_at_the_next_rescan(tmp_path, mode):
    with FolderWatcher(tmp_path, mode=mode, rescan_s=LONG_S, quiet_s=0.05, poll_interval_s=0.05) as watcher:
        watcher.poll(0.0)
        (emitter,) = watcher._observer.emitters
        emitter.stop()
        emitter.join(10)
        assert watcher._observer.is_alive()  # the observer claims to live: watchdog #1065
        path = wbcd_file(tmp_path / "a.h5")
        watcher._next_scan_s = 0.0
        assert gather(watcher, 1) == [path]
        (fresh,) = watcher._observer.emitters
        assert fresh is not emitter
        assert fresh.is_alive()
        second = wbcd_file(tmp_path / "b.h5")
        assert gather(watcher, 1) == [second]


def test_without_inotify_watches_the_rescan_goes_on(tmp_path, monkeypatch):
    class NoWatches:
        def __init__(self, *arguments, **options):
            self.emitters = ()

        def schedule(self, *arguments, **options):
            pass

        def start(self):
            raise OSError(28, "inotify watch limit reached")

        def unschedule_all(self):
            pass

    monkeypatch.setattr("wbcd.acquisition.watch.Observer", NoWatches)
    path = wbcd_file(tmp_path / "a.h5")
    with FolderWatcher(tmp_path, mode="inotify", rescan_s=0.05, quiet_s=0.05) as watcher:
        assert watcher.kind == "none"
        assert gather(watcher, 1) == [path]


def test_a_burst_over_the_hints_bound_is_answered_by_a_scan(tmp_path):
    with FolderWatcher(tmp_path, mode="inotify", rescan_s=LONG_S, quiet_s=0.2) as watcher:
        watcher._hints._limit = 50
        watcher.poll(0.0)
        for index in range(400):
            os.close(os.open(tmp_path / f"{index}.h5", os.O_CREAT | os.O_WRONLY))
        found = gather(watcher, 400)
        assert len(found) == len(set(found)) == 400
        assert watcher.scans > 1


def test_wake_ends_the_waiting(tmp_path):
    watcher = FolderWatcher(tmp_path, rescan_s=LONG_S)
    watcher.poll(0.0)
    watcher.wake()
    started = time.monotonic()
    assert watcher.poll(30.0) == []
    assert time.monotonic() - started < 10.0


def test_closing_leaves_no_thread(tmp_path):
    import threading

    watcher = FolderWatcher(tmp_path, mode="polling", poll_interval_s=0.05)
    watcher.start()
    threads = [*watcher._observer.emitters, watcher._observer]
    watcher.close()
    for thread in threads:
        thread.join(10)
    assert not any(thread in threading.enumerate() for thread in threads)
    watcher.close()


@pytest.mark.parametrize("mode", ["inotify", "polling"])
def test_links_in_a_loop_are_not_walked(tmp_path, mode):
    """Found by the fuzz: watchdog's polling follows links; with two of them that lead up its walk doubles at every level."""
    folder = tmp_path / "watch"
    good = wbcd_file(folder / "a.h5")
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("one", "two", "three"):
        (folder / name).symlink_to(folder)
        (folder / f"{name}.zarr").mkdir()
        (folder / f"{name}.zarr" / "0").symlink_to(tmp_path)
    begin = time.monotonic()
    with FolderWatcher(folder, mode=mode, quiet_s=0.0, poll_interval_s=0.1) as watcher:
        assert good in watcher.poll(0.0)
        assert watcher.kind == mode
        late = wbcd_file(folder / "session" / "b.h5")
        assert until(lambda: late in watcher.poll(0.5))
        wbcd_file(outside / "c.h5")
        known = watcher._tracker.known
        assert all(path.parent in (folder, folder / "session") for path in known)
    assert time.monotonic() - begin < 60.0
