"""The daemon's state file, ``daemon-state.json`` in the output folder: what `wbcd status` shows beside the database.

It is written in place over bytes that were allocated at the start, so that a full disk cannot keep the daemon from saying
that the disk is full. A reader may meet a half-written text; it looks again.

The file is locked (flock) while its daemon lives: a second daemon on the same output folder would write over its state and
remove the volumes that it is writing. The kernel lets go of the lock when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wbcd.errors import AlreadyRunning, not_written

FILE_NAME: Final = "daemon-state.json"
SIZE_BYTES: Final = 8192
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of a file system that has none


class StateFile:
    """The writing side; one process. Raises AlreadyRunning when another lives, StoreError when the file cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self.problem: str | None = None
        """Why what is written now cannot be read under the name; None when it can."""
        try:
            self._handle = self._made()
        except OSError as error:
            raise not_written(self.path, error) from error

    def _be_the_only_one(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"{self.path.parent} is the output folder of another daemon: {_owner(self.path)}.") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def write(self, state: dict[str, Any]) -> None:
        """Replace the content; a text that does not fit loses its longest parts, the channels and the names of files.

        A file that was removed, with its folder perhaps, is made again; while that is refused, :attr:`problem` says why.
        """
        self._stand()
        text = json.dumps(state, default=str)
        if len(text.encode()) > SIZE_BYTES:
            text = json.dumps({**state, **self._shorter(state)}, default=str)
        os.pwrite(self._handle, text.encode().ljust(SIZE_BYTES)[:SIZE_BYTES], 0)

    @staticmethod
    def _shorter(state: dict[str, Any]) -> dict[str, Any]:
        ignored = state.get("ignored_files") or {}
        return {
            "channels": {},
            "reason": state["reason"] and str(state["reason"])[:1000],
            "ignored_files": {**ignored, "examples": []},
            "unreadable_folders": [],
            "awaiting_examples": {},
        }

    def _made(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._be_the_only_one(handle)
            os.posix_fallocate(handle, 0, SIZE_BYTES)
        except (OSError, AlreadyRunning):
            os.close(handle)
            raise
        return handle

    def _stand(self) -> None:
        """Write to what lies under the name, not to a file that has lost it."""
        ours = os.fstat(self._handle)
        try:
            there = self.path.stat()
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                self.problem = None
                return
        except OSError:
            pass  # it is not there, or cannot be looked at
        try:
            fresh = self._made()
        except (OSError, AlreadyRunning) as error:
            why = error.message if isinstance(error, AlreadyRunning) else error.strerror
            self.problem = f"{self.path} was removed and cannot be made again: {why}."
            return
        os.close(self._handle)
        self._handle, self.problem = fresh, None

    def close(self) -> None:
        """Let go of the file; its last content stays."""
        os.close(self._handle)


def _owner(path: Path) -> str:
    """Who holds the lock, by the state that it wrote."""
    details = _read(path)
    if details is None:
        return "it is just starting"
    since = datetime.fromtimestamp(float(details.get("started_unix_s", 0.0)), UTC).isoformat(timespec="seconds")
    where = f"process {details.get('pid')} on {details.get('host')}, since {since}"
    return f"{where}, watching {details.get('watch_dir')}"


@dataclass(frozen=True, slots=True)
class DaemonState:
    """The reading side's answer. ``state``: absent, starting, running, paused, stopping, stopped, failed, silent or unreadable
    (the file is there, or may be; ``details["permitted"]`` says whether a right is what is missing)."""

    state: str
    reason: str | None = None
    details: dict[str, Any] | None = None


def read_state(folder: Path, *, now_s: float | None = None) -> DaemonState:
    """What the daemon of this output folder last said; "silent" when its process is gone or has said nothing for long."""
    try:
        details = _read(folder / FILE_NAME)
    except OSError as error:
        permitted = not isinstance(error, PermissionError)
        why = error.strerror if permitted else "no permission"
        return DaemonState("unreadable", f"cannot read the daemon's state ({why})", {"permitted": permitted})
    if details is None:
        return DaemonState("absent", None if folder.is_dir() else f"The output folder {folder} is not there.")
    state, reason = str(details.get("state")), details.get("reason")
    if state in ("stopped", "failed"):
        return DaemonState(state, reason, details)
    age_s = (time.time() if now_s is None else now_s) - float(details.get("updated_unix_s", 0.0))
    pid = int(details.get("pid", 0))
    if not _alive(pid):
        return DaemonState("silent", "The daemon's process is gone; it did not stop in order.", details)
    if _process_state(pid) in ("T", "t"):
        return DaemonState("silent", f"The daemon's process {pid} is stopped by a signal; SIGCONT lets it go on.", details)
    if age_s > 10 * float(details.get("heartbeat_s", 5.0)) + 30:
        return DaemonState("silent", f"The daemon has said nothing for {age_s:.0f} s.", details)
    return DaemonState(state, reason, details)


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is none. Raises OSError for one that is there and cannot be read."""
    for _ in range(3):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            continue  # met in the middle of a write
        return data if isinstance(data, dict) else None
    return None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _process_state(pid) not in ("Z", "X")  # dead, and not buried yet


def _process_state(pid: int) -> str | None:
    """The kernel's letter (proc(5)): R, S, D, T, Z ...; None where it does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
