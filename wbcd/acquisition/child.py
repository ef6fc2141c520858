"""The isolated reader's own process: ``python -m wbcd.acquisition.child DESCRIPTOR LIMITS``.

Answers packets on the inherited socket until it is closed. Started by :class:`wbcd.acquisition.isolate.IsolatedReader`.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
from collections.abc import Iterator, Mapping

from wbcd.acquisition import wire
from wbcd.acquisition.limits import ReadDefaults
from wbcd.acquisition.reading import read
from wbcd.errors import InputError, TooLarge
from wbcd.records import HologramStack, Tomogram


class Reader:
    """One request at a time; keeps the series of the last file open for the next volume."""

    def __init__(self, channel: socket.socket, cpu_s: float) -> None:
        self._channel = channel
        self._cpu_s = cpu_s
        self._volumes: Iterator[Tomogram] = iter(())

    def serve(self) -> None:
        """Answer until the other side closes."""
        while (packet := wire.receive(self._channel)) is not None:
            allow_cpu(self._cpu_s)
            try:
                self._answer(packet[0])
            except InputError as error:
                self._volumes = iter(())
                wire.send(self._channel, wire.pack_error(error))
            except MemoryError:
                self._volumes = iter(())
                wire.send(
                    self._channel, wire.pack_error(TooLarge("The file needs more memory than the isolated reader may use."))
                )

    def _answer(self, request: wire.Message) -> None:
        if request["ask"] == "volume":
            self._send_volume()
        elif request["ask"] == "read":
            self._read(request)
        else:
            wire.send(self._channel, {"answer": "ready"})

    def _read(self, request: wire.Message) -> None:
        self._volumes = iter(())
        ticket, payload = read(
            wire.unpack_acquisition(request["acquisition"]),
            defaults=ReadDefaults(**request["defaults"]),
        )
        answer: wire.Message = {"acquisition": wire.pack_acquisition(ticket)}
        if isinstance(payload, HologramStack):
            head, arrays = wire.pack_stack(payload)
            wire.send(self._channel, {"answer": "stack", "head": head, **answer}, arrays)
        else:
            self._volumes = iter(payload)
            wire.send(self._channel, {"answer": "series", "count": payload.count, **answer})

    def _send_volume(self) -> None:
        tomogram = next(self._volumes, None)
        if tomogram is None:
            wire.send(self._channel, {"answer": "end"})
        else:
            head, arrays = wire.pack_tomogram(tomogram)
            wire.send(self._channel, {"answer": "volume", "head": head}, arrays)


def allow_cpu(seconds: float) -> None:
    """Set the soft CPU limit to ``seconds`` from now: the limit is counted for each request, not for the process's life."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, resource.RLIM_INFINITY))


def confine(limits: Mapping[str, float]) -> None:
    """Take on the hard limits of address space, file size and descriptors; no core dump."""
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
    confine(limits)
    with socket.socket(fileno=descriptor) as channel:
        Reader(channel, limits["cpu_s"]).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
