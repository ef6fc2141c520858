"""What `wbcd doctor` asks of this machine: each question one small function, so that a test can answer otherwise.

Nothing is changed by asking; where the kernel does not say, the answer is None.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

INOTIFY: Final = Path("/proc/sys/fs/inotify")
MOUNTS: Final = Path("/proc/self/mountinfo")
SHARED_MEMORY: Final = Path("/dev/shm")
NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
MOST_FOLDERS: Final = 200_000

_TIMEX_BYTES: Final = 208  # sizeof(struct timex) on 64-bit Linux, all zero: only ask
_TIME_ERROR: Final = 5


@dataclass(frozen=True, slots=True)
class Room:
    """Space left to this user on the file system of a folder: bytes, and files that can still be made (None: no limit)."""

    free_bytes: int
    free_files: int | None


def python_version() -> tuple[int, int, int]:
    """Of this interpreter."""
    return sys.version_info[:3]


def sqlite_version() -> tuple[int, ...]:
    """Of the library that Python is linked to."""
    return sqlite3.sqlite_version_info


def room_of(folder: Path) -> Room:
    """Raises OSError when the folder is not there."""
    found = os.statvfs(folder)
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def file_system_of(folder: Path) -> str:
    """Type of the file system, "" where the kernel's table cannot be read."""
    from wbcd.acquisition.mounts import file_system_type

    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return file_system_type(PurePosixPath(folder.resolve()), table)


def inotify_limit(name: str) -> int | None:
    """``max_user_watches`` and the like."""
    try:
        return int((INOTIFY / name).read_text())
    except (OSError, ValueError):
        return None


def count_folders(folder: Path) -> int:
    """The folder and those below it, at most :data:`MOST_FOLDERS`; a watch is needed for each."""
    count = 0
    for count, _ in enumerate(os.walk(folder), 1):
        if count >= MOST_FOLDERS:
            break
    return count


def newest_mtime_s(folder: Path) -> float | None:
    """The latest time that a file directly in the folder carries (s since 1970), or None when there is none."""
    times = []
    with os.scandir(folder) as entries:
        for _, entry in zip(range(MOST_FOLDERS), entries, strict=False):
            try:
                times.append(entry.stat(follow_symlinks=False).st_mtime)
            except OSError:
                continue
    return max(times, default=None)


def wall_s() -> float:
    """Wall time, s since 1970."""
    return time.time()


def clock_drift_s(seconds: float = 0.05) -> float:
    """How much further the wall clock went than the monotonic one during a short wait, in s."""
    wall, monotonic = time.time(), time.monotonic()
    time.sleep(seconds)
    return (time.time() - wall) - (time.monotonic() - monotonic)


def clock_is_synchronised() -> bool | None:
    """What the kernel says of its clock (adjtimex(2)); None where it does not answer."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    return None if state < 0 else state != _TIME_ERROR


def open_files_limit() -> int:
    """Most descriptors of a process (the soft limit)."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def reader_guards() -> frozenset[str]:
    """What the kernel takes away from the child that opens foreign files; starts one. Raises ReaderDied."""
    from wbcd.acquisition import IsolatedReader

    with IsolatedReader() as reader:
        return reader.guards_offered()


def has_nvidia_driver() -> bool:
    """True when the kernel has NVIDIA's driver loaded."""
    return NVIDIA_DRIVER.exists()


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What torch says: its version, the CUDA version it was built with (None: a build for the CPU), the devices it sees."""

    version: str
    cuda: str | None
    devices: tuple[str, ...]


def torch_facts() -> TorchFacts:
    """Raises ImportError when there is no torch."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return TorchFacts(torch.__version__, torch.version.cuda, tuple(torch.cuda.get_device_name(n) for n in range(count)))
