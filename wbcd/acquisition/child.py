"""The isolated reader's own process: ``python -m wbcd.acquisition.child DESCRIPTOR LIMITS``.

Answers packets on the inherited socket until it is closed. Started by :class:`wbcd.acquisition.isolate.IsolatedReader`.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

import wbcd
from wbcd.acquisition import filters, sandbox, wire
from wbcd.acquisition.limits import ReadDefaults
from wbcd.acquisition.reading import read
from wbcd.acquisition.source import Held
from wbcd.errors import CorruptContent, InputError, TooLarge
from wbcd.records import HologramStack, Tomogram

LEAST_CPU_S, BYTES_A_CPU_SECOND = 20.0, 4e6
"""A whole field of 370 MB takes about 5 s; a slow machine has a fifth of this one's speed."""


class Reader:
    """One request at a time; keeps the series of the last file, and its descriptors, for the next volume."""

    def __init__(self, channel: socket.socket, cpu_s: float, guards: list[str]) -> None:
        self._channel = channel
        self._cpu_s = cpu_s
        self._guards = guards
        self._allowed_s = cpu_s
        self._settled = False
        self._held: tuple[int, ...] = ()
        self._volumes: Iterator[Tomogram] = iter(())

    def serve(self) -> None:
        """Answer until the other side closes."""
        while (packet := wire.receive_request(self._channel)) is not None:
            allow_cpu(self._seconds_for(packet[0]))
            error = self._tried(*packet)
            if error is not None:
                self._volumes = iter(())
                wire.send(self._channel, wire.pack_error(error))

    def _seconds_for(self, request: wire.Message) -> float:
        """For one request; a volume has as long as its file had."""
        if request["ask"] == "read":
            self._allowed_s = cpu_for(int(request["acquisition"]["size_bytes"]), self._cpu_s)
        return self._allowed_s

    def _tried(self, request: wire.Message, handles: tuple[int, ...]) -> InputError | None:
        try:
            self._answer(request, handles)
        except InputError as error:
            return error
        except MemoryError:
            return TooLarge("The file needs more memory than the isolated reader may use.")
        except Exception as error:  # noqa: BLE001 - damage has no end of forms; a dead reader would cost a start for each
            what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return CorruptContent(f"{os.fsdecode(self._path(request))} makes no sense to the reader: {what}.")
        return None

    @staticmethod
    def _path(request: wire.Message) -> str:
        return str(request.get("acquisition", {}).get("path", "the file"))

    def _answer(self, request: wire.Message, handles: tuple[int, ...]) -> None:
        if request["ask"] == "volume":
            self._send_volume()
        elif request["ask"] == "read":
            self._read(request, handles)
        else:
            wire.send(self._channel, {"answer": "ready", "guards": self._guards})

    def _read(self, request: wire.Message, handles: tuple[int, ...]) -> None:
        self._volumes = iter(())
        self._hold(handles)
        if not self._settled_on(str(request["ground"]), handles):
            wire.send(self._channel, {"answer": "elsewhere"})
            return
        ticket, payload = read(
            wire.unpack_acquisition(request["acquisition"]),
            defaults=ReadDefaults(**request["defaults"]),
            held=Held(*handles),
        )
        answer: wire.Message = {"acquisition": wire.pack_acquisition(ticket), "guards": self._guards}
        if isinstance(payload, HologramStack):
            head, arrays = wire.pack_stack(payload)
            wire.send(self._channel, {"answer": "stack", "head": head, **answer}, arrays)
        else:
            self._volumes = iter(payload)
            wire.send(self._channel, {"answer": "series", "count": payload.count, **answer})

    def _hold(self, handles: tuple[int, ...]) -> None:
        for handle in self._held:
            os.close(handle)
        self._held = handles

    def _settled_on(self, ground: str, handles: tuple[int, ...]) -> bool:
        """Before the first byte of a file is read: from now on nothing is opened but below ``ground``.

        False when that was another folder, or one since unmounted and mounted again: the daemon then starts another child. Also
        when its own user may not read there, whatever its capability.
        """
        if not self._settled:
            self._settled = True
            if sandbox.OWN_USER in self._guards and not _can_be_read(Path(wbcd.__file__), Path(os.__file__), Path(np.__file__)):
                return False
            allowed = [Path(ground), *sandbox.program_folders(Path(wbcd.__file__).parent)]
            if sandbox.allow_reading_only(allowed):
                self._guards.append(sandbox.LANDLOCK)
        try:
            os.close(os.open(f"/proc/self/fd/{handles[0]}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            if sandbox.OWN_USER in self._guards:
                return _can_be_read(Path(f"/proc/self/fd/{handles[1]}"))
        except PermissionError:
            return False
        return True

    def _send_volume(self) -> None:
        tomogram = next(self._volumes, None)
        if tomogram is None:
            wire.send(self._channel, {"answer": "end"})
        else:
            head, arrays = wire.pack_tomogram(tomogram)
            wire.send(self._channel, {"answer": "volume", "head": head}, arrays)


def _can_be_read(*places: Path) -> bool:
    """False when this user may not open one of them."""
    for place in places:
        try:
            os.close(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                return False
    return True


def cpu_for(size_bytes: int, limit_s: float) -> float:
    """CPU seconds for a file of that size: no small one may keep the reader busy for long, whatever loop it finds in HDF5."""
    return min(limit_s, LEAST_CPU_S + size_bytes / BYTES_A_CPU_SECOND)


def be_killed_first() -> None:
    """When memory runs out, the kernel shall take the reader, not the daemon."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def be_silent() -> None:
    """From here on nothing that a file brings about reaches the daemon's log or terminal; a failed start was told before."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def allow_cpu(seconds: float) -> None:
    """Set the soft CPU limit to ``seconds`` from now: the limit is counted for each request, not for the process's life."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, resource.RLIM_INFINITY))


def confine(limits: Mapping[str, float]) -> None:
    """Take on the hard limits of address space, file size and descriptors; no core dump.

    RLIMIT_NPROC is left alone: it counts all threads of the user on the whole machine, not those of this process. New processes
    are denied by the filter of :mod:`wbcd.acquisition.sandbox`.
    """
    for kind, name in (
        (resource.RLIMIT_AS, "address_space_bytes"),
        (resource.RLIMIT_FSIZE, "array_bytes"),
        (resource.RLIMIT_NOFILE, "descriptors"),
    ):
        resource.setrlimit(kind, (int(limits[name]), int(limits[name])))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(arguments: list[str]) -> int:
    """Entry point; the exit status is only for the log."""
    descriptor, limits = int(arguments[0]), json.loads(arguments[1])
    be_killed_first()
    confine(limits)
    filters.load()
    be_silent()
    guards = sandbox.give_up_rights(own_user=bool(limits["own_user"]))
    if sandbox.deny_system_calls():
        guards.append(sandbox.SECCOMP)
    with socket.socket(fileno=descriptor) as channel:
        Reader(channel, limits["cpu_s"], guards).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
