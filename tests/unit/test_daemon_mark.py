"""Marks on a watch folder, and the lock of an output folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from wbcd.daemon import mark
from wbcd.daemon.mark import SLOTS, FolderMark, Marker, markers_of
from wbcd.daemon.state import StateFile
from wbcd.errors import AlreadyRunning, StoreError

HOLDS = """
import sys
from pathlib import Path
from wbcd.daemon.mark import FolderMark
mark = FolderMark(Path(sys.argv[1]))
mark.look()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_mark_names_the_process_and_ends_with_it(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    mine = FolderMark(tmp_path)
    assert mine.look() == [Marker(other.pid, os.getuid())]
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    assert markers_of(link, but=os.getpid()) == [Marker(other.pid, os.getuid())]
    other.kill()
    other.wait()
    assert mine.look() == []
    assert markers_of(tmp_path, but=os.getpid()) == []
    mine.close()
    assert markers_of(tmp_path) == []


def test_many_questions_do_not_fill_the_queue(tmp_path: Path) -> None:
    mine = FolderMark(tmp_path)
    mine.look()
    for _ in range(3):
        for _ in range(mark._BACKLOG):
            assert markers_of(tmp_path) == [Marker(os.getpid(), os.getuid())]
        assert mine.look() == []  # itself is no other
    mine.close()


def test_the_mark_follows_the_folder(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """Mounted again it is another folder under the same name; absent it is none."""
    folder = tmp_path / "w"
    mine = FolderMark(folder)
    assert mine.look() == []
    folder.mkdir()
    assert mine.look() == []
    assert markers_of(folder) == [Marker(os.getpid(), os.getuid())]
    folder.rename(tmp_path / "old")
    folder.symlink_to(tmp_path)
    assert [marker.pid for marker in mine.look()] == [other.pid]
    assert markers_of(tmp_path / "old") == []
    mine.close()


def test_more_daemons_than_slots_hurt_nobody(tmp_path: Path) -> None:
    marks = [FolderMark(tmp_path) for _ in range(SLOTS + 1)]
    for one in marks:
        one.look()
    assert marks[-1].look() == [Marker(os.getpid(), os.getuid())]
    for one in marks:
        one.close()


def test_no_folder_and_no_sockets_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FolderMark(None).look() == []

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(socket.socket, "bind", refused)
    assert FolderMark(tmp_path).look() == []


def test_an_output_folder_has_one_state_file_at_a_time(tmp_path: Path) -> None:
    first = StateFile(tmp_path)
    with pytest.raises(AlreadyRunning, match="just starting"):
        StateFile(tmp_path)
    first.write({"pid": 4711, "host": "microscope-2", "started_unix_s": 1.8e9, "watch_dir": "/data"})
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises(AlreadyRunning, match=r"process 4711 on microscope-2, since 2027-01-15T08:00:00\+00:00, watching /data"):
        StateFile(tmp_path)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
    first.close()
    StateFile(tmp_path).close()


@pytest.mark.parametrize(("code", "opened"), [(errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_used_as_before(
    tmp_path: Path, code: int, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fails)
    with ExitStack() as stack:
        if not opened:
            stack.enter_context(pytest.raises(StoreError, match="cannot be written"))
        StateFile(tmp_path).close()
