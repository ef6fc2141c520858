"""The watched folder at its worst: away and back, flooded, and the same file under every name it can have."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest
from helpers_faults import without_rights_over_files
from helpers_ledger import Whole, differences, outcome_table, rows
from helpers_spheres import cheap_settings, sphere, tiny_bundle, write_run
from helpers_zygote import Zygote, may_mount, wait_until

from wbcd.daemon.state import read_state
from wbcd.simulation.files import write_tcf

ACQUISITIONS = 20
IN_ALL_EVENTS, IN_Q_OVERFLOW = 0xFFF, 0x4000
IN_ACCESS, IN_OPEN = 0x1, 0x20


def outcomes(folder: Path) -> int:
    if not (folder / "wbcd.db").exists():
        return 0
    try:
        return int(rows(folder, "SELECT COUNT(*) FROM run")[0][0])
    except Exception:  # noqa: BLE001 - the schema is just being made
        return 0


def test_a_share_that_is_unmounted_and_mounted_again(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    if not may_mount():
        pytest.skip("this machine allows no mounts of one's own (unshare -m)")
    share, incoming = tmp_path / "share", tmp_path / "incoming"
    share.mkdir()
    incoming.mkdir()
    files = sorted(whole.incoming.iterdir())
    for path in files[:8]:
        shutil.copy2(path, share)
    assert zygote.command("mount", "--bind", share, incoming) == 0
    settings = cheap_settings(tmp_path, whole.bundle, **{"watch.mode": "inotify", "watch.rescan_s": 0.5})
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 8)
    assert zygote.command("umount", "-l", incoming) == 0
    for path in files[8:]:  # written by others while it is away
        shutil.copy2(path, share)
    seen = read_state(tmp_path / "output").details["updated_unix_s"]
    wait_until(lambda: read_state(tmp_path / "output").details["updated_unix_s"] > seen + 1.0)
    assert outcomes(tmp_path) == 8
    assert zygote.command("mount", "--bind", share, incoming) == 0
    wait_until(lambda: outcomes(tmp_path) == ACQUISITIONS)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert differences(outcome_table(tmp_path), whole.table) == []
    assert rows(tmp_path, "SELECT COUNT(*) FROM event WHERE kind = 'duplicate'") == [(0,)]  # the same files, not copies


def test_a_folder_that_is_renamed_and_comes_back(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    incoming, away = tmp_path / "incoming", tmp_path / "away"
    incoming.mkdir()
    files = sorted(whole.incoming.iterdir())
    for path in files[:8]:
        shutil.copy2(path, incoming)
    settings = cheap_settings(tmp_path, whole.bundle, **{"watch.mode": "inotify", "watch.rescan_s": 0.5})
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 8)
    incoming.rename(away)
    said = wait_until(lambda: read_state(tmp_path / "output").reason)
    assert "absent" in said
    for path in files[8:]:
        shutil.copy2(path, away)
    away.rename(incoming)
    wait_until(lambda: outcomes(tmp_path) == ACQUISITIONS)
    wait_until(lambda: read_state(tmp_path / "output").state == "running")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert differences(outcome_table(tmp_path), whole.table) == []


class OwnQueue:
    """An inotify queue of the test's own on a folder or file, never read until the end: full when the daemon's is."""

    def __init__(self, watched: Path, events: int = IN_ALL_EVENTS) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._handle, os.fsencode(watched), events) >= 0

    def seen(self) -> int:
        """The bits of all events so far; reads them away."""
        found = 0
        try:
            while data := os.read(self._handle, 1 << 20):
                at = 0
                while at < len(data):
                    _, mask, _, length = struct.unpack_from("iIII", data, at)
                    found |= mask
                    at += 16 + length
        except BlockingIOError:
            pass
        return found

    def overflowed(self) -> bool:
        """Reads it all, and ends it."""
        found = self.seen()
        self.close()
        return bool(found & IN_Q_OVERFLOW)

    def close(self) -> None:
        os.close(self._handle)


def test_an_inotify_queue_that_overflows(tmp_path: Path, zygote: Zygote, whole: Whole) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    files = sorted(whole.incoming.iterdir())
    shutil.copy2(files[0], incoming)
    rescan_s = 3.0
    settings = cheap_settings(tmp_path, whole.bundle, **{"watch.mode": "inotify", "watch.rescan_s": rescan_s})
    daemon = zygote.begin(settings, tmp_path / "log")
    wait_until(lambda: outcomes(tmp_path) == 1)
    queue = OwnQueue(incoming)
    daemon.send(signal.SIGSTOP)
    for number in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 3 + 100):
        hidden = incoming / f".{number % 7}"  # made, opened, closed and removed: at least four events
        os.close(os.open(hidden, os.O_CREAT | os.O_WRONLY, 0o600))
        hidden.unlink()
    for path in files[1:]:
        shutil.copy2(path, incoming)
    assert queue.overflowed()
    assert daemon.process.status() == "stopped"
    daemon.send(signal.SIGCONT)
    resumed = time.monotonic()
    wait_until(lambda: read_state(tmp_path / "output").details["waiting"] > 0 or outcomes(tmp_path) > 1)
    found_after_s = time.monotonic() - resumed
    wait_until(lambda: outcomes(tmp_path) == ACQUISITIONS)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert differences(outcome_table(tmp_path), whole.table) == []
    assert found_after_s < 4 * rescan_s  # one rescan, on a machine that may be busy


# --- the same file, and what is no file -----------------------------------------------------------


def _tcf(path: Path, radius_um: float) -> Path:
    return write_tcf(path, [sphere(radius_um)], voxel_um=(0.4, 0.4, 0.4), title=path.stem)


def _by_name(folder: Path) -> dict[str, tuple[str, str | None]]:
    query = "SELECT a.path, r.outcome, r.reason FROM run r JOIN acquisition a ON a.id = r.acquisition_id ORDER BY r.id"
    return {Path(path).name: (outcome, reason) for path, outcome, reason in rows(folder, query)}


def _events(folder: Path, kind: str) -> list[str]:
    return [message for (message,) in rows(folder, "SELECT message FROM event WHERE kind = ? ORDER BY id", kind)]


def test_copied_renamed_touched_overwritten_rewritten(tmp_path: Path, zygote: Zygote) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    settings = cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle"))

    def look() -> None:
        assert zygote.run(settings, tmp_path / "log") == 0, (tmp_path / "log").read_text()[-2000:]

    names = ("copied", "renamed", "touched", "overwritten", "rewritten")
    for number, name in enumerate(names):
        _tcf(incoming / f"{name}.TCF", 3.0 + 0.1 * number)
    look()
    first = rows(tmp_path, "SELECT id, acquisition_id, outcome, finished_at FROM run ORDER BY id")
    assert len(first) == 5
    shutil.copyfile(incoming / "copied.TCF", incoming / "copy.TCF")
    (incoming / "renamed.TCF").rename(incoming / "new-name.TCF")
    os.utime(incoming / "touched.TCF", (1_700_000_000, 1_700_000_000))
    shutil.copyfile(incoming / "copied.TCF", incoming / "overwritten.TCF")  # in place, with what is counted already
    look()
    assert rows(tmp_path, "SELECT id, acquisition_id, outcome, finished_at FROM run ORDER BY id") == first
    assert len(_events(tmp_path, "changed_after_count")) == 1
    _tcf(incoming / "rewritten.TCF", 3.95)  # new content under the name of what is counted
    look()
    runs = rows(tmp_path, "SELECT id, acquisition_id, outcome, finished_at FROM run ORDER BY id")
    assert runs[:5] == first  # what was counted stands
    assert len(runs) == 6
    changed = _events(tmp_path, "changed_after_count")
    assert len(changed) == 2
    assert "rewritten.TCF" in changed[1]
    duplicates = " ".join(_events(tmp_path, "duplicate"))
    assert "copy.TCF" in duplicates
    assert "touched.TCF" not in duplicates  # the same file is no copy of itself
    look()
    assert len(rows(tmp_path, "SELECT id FROM run")) == 6


def test_what_is_no_regular_file_is_refused_and_nothing_outside_is_read(tmp_path: Path, zygote: Zygote) -> None:
    incoming, secret = tmp_path / "incoming", tmp_path / "secret.TCF"
    incoming.mkdir()
    _tcf(secret, 3.3)  # a good acquisition, outside: were it read, it would be counted
    _tcf(incoming / "swapped.TCF", 3.0)
    _tcf(incoming / "good.TCF", 3.1)
    _tcf(incoming / "unreadable.TCF", 3.2).chmod(0)
    settings = cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle"))

    def look() -> None:
        status = zygote.run(settings, tmp_path / "log", faults=[without_rights_over_files()])
        assert status == 0, (tmp_path / "log").read_text()[-2000:]

    look()
    assert _by_name(tmp_path)["swapped.TCF"] == ("measured", None)
    (incoming / "swapped.TCF").unlink()
    (incoming / "swapped.TCF").symlink_to(secret)
    os.mkfifo(incoming / "fifo.TCF")
    (incoming / "directory.h5").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    _tcf(outside / "private.TCF", 3.4)
    (incoming / "through").symlink_to(outside)  # a folder that leads out
    (incoming / "through.zarr").symlink_to(outside)
    watched = {path: OwnQueue(path, IN_OPEN | IN_ACCESS) for path in (secret, outside, outside / "private.TCF")}
    expected = {"fifo.TCF", "directory.h5", "swapped.TCF", "through.zarr"}
    if os.geteuid() == 0:
        os.mknod(incoming / "device.h5", 0o20666, os.makedev(1, 5))  # /dev/zero: reading it would never end
        expected.add("device.h5")
    look()
    assert {path.name: queue.seen() for path, queue in watched.items()} == {path.name: 0 for path in watched}  # never opened
    secret.read_bytes()
    (outside / "private.TCF").read_bytes()
    list(outside.iterdir())
    for queue in watched.values():  # and had it been, it would have been seen
        assert queue.seen() & IN_OPEN
        queue.close()
    found = _by_name(tmp_path)
    for name in expected:
        assert found[name] == ("set_aside", "input.not_a_regular_file"), name
    assert found["unreadable.TCF"] == ("set_aside", "input.not_readable")
    assert found["good.TCF"] == ("measured", None)
    assert not {"secret.TCF", "private.TCF"} & set(found)
    assert rows(tmp_path, "SELECT COUNT(*) FROM run WHERE outcome = 'measured'") == [(2,)]  # good, and swapped before


def test_newest_first_if_asked(tmp_path: Path, zygote: Zygote) -> None:
    write_run(tmp_path / "incoming", 12)
    settings = cheap_settings(tmp_path, tiny_bundle(tmp_path / "bundle"), **{"watch.newest_first": True})
    assert zygote.run(settings, tmp_path / "log") == 0
    query = "SELECT a.path FROM run r JOIN acquisition a ON a.id = r.acquisition_id ORDER BY r.id"
    numbers = [int(Path(path).stem) for (path,) in rows(tmp_path, query)]
    waited = {6}  # truncated: looked at again before it is set aside
    assert [number for number in numbers if number not in waited] == [n for n in range(11, -1, -1) if n not in waited]
