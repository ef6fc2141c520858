"""Which daemons of this machine watch a folder: each marks it, without writing into it, and sees the marks of the others.

A mark is a listening abstract Unix socket, named after the folder's device and inode (unix(7)): it needs no place that every
user may write to, holds no file of the folder open (an unmount goes through), and ends with its process however that dies. The
kernel tells who listens. Not seen: daemons of other machines, and of containers with a network of their own.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SLOTS = 8
"""Daemons of one folder that can be told apart; a ninth sees the others and is not seen."""

_BACKLOG = 64
_CREDENTIALS = struct.Struct("=3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True, order=True)
class Marker:
    """A process that has marked the folder. ``pid`` is 0 for one whose number cannot be seen from here (a container)."""

    pid: int
    uid: int

    def __str__(self) -> str:
        return f"process {self.pid or 'of another container'} (user {self.uid})"


def markers_of(folder: Path, *, but: int | None = None) -> list[Marker]:
    """The daemons that watch ``folder``, without process ``but``; none when the folder is absent."""
    key = _key_of(folder)
    found = {marker for slot in range(SLOTS) if (marker := _who(key, slot)) is not None} if key else set()
    return sorted(marker for marker in found if marker.pid != but)


class FolderMark:
    """This process's mark on its watch folder. One thread."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._key: str | None = None
        self._slot: int | None = None
        self._listening: socket.socket | None = None

    def look(self) -> list[Marker]:
        """Mark the folder, anew when it is another one by now (mounted again), and return the others that watch it."""
        if self._folder is None:
            return []
        key = _key_of(self._folder)
        if key != self._key:
            self.close()
        if key is None:
            return []
        if self._listening is None:
            self._key = key
            self._take(key)
        self._turn_away()
        found = (_who(key, slot) for slot in range(SLOTS) if slot != self._slot)
        return sorted({marker for marker in found if marker is not None})

    def close(self) -> None:
        """Take the mark off."""
        if self._listening is not None:
            self._listening.close()
        self._listening = self._slot = self._key = None

    def _take(self, key: str) -> None:
        for slot in range(SLOTS):
            mark = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                mark.bind(_address(key, slot))
                mark.listen(_BACKLOG)
            except OSError as error:
                mark.close()
                if error.errno == errno.EADDRINUSE:
                    continue
                return  # sockets are forbidden here: nobody is told, nothing else is amiss
            self._listening, self._slot = mark, slot
            return

    def _turn_away(self) -> None:
        """Whoever asked has seen what there is to see; the queue is emptied for the next."""
        with suppress(BlockingIOError):
            while self._listening is not None:
                self._listening.accept()[0].close()


def _key_of(folder: Path) -> str | None:
    try:
        state = folder.stat()
    except OSError:
        return None
    return f"{state.st_dev:x}-{state.st_ino:x}"


def _address(key: str, slot: int) -> bytes:
    return f"\0wbcd-watch-{key}-{slot}".encode()


def _who(key: str, slot: int) -> Marker | None:
    with _asking() as asking:
        try:
            asking.connect(_address(key, slot))
            pid, uid, _ = _CREDENTIALS.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        except OSError:
            return None  # nobody, or one who is just beginning to listen: seen at the next look
        return Marker(pid, uid)


@contextmanager
def _asking() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asking:
        yield asking
