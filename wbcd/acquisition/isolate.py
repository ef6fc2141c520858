"""Files from outside are opened in a process of their own: limited in memory, time and descriptors, killed when it hangs.

One child serves many files (starting one costs about half a second, a request a millisecond) and is replaced after a crash.
Arrays come over as sealed memory files, mapped without a copy; see :mod:`wbcd.acquisition.wire`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from numpy.typing import NDArray

import wbcd
from wbcd.acquisition import sandbox, wire
from wbcd.acquisition.beneath import ground_of
from wbcd.acquisition.limits import MAX_ARRAY_BYTES, MIB, ReadDefaults
from wbcd.acquisition.source import Source
from wbcd.errors import ReaderDied
from wbcd.records import Acquisition, Payload, RiSeries, Tomogram

_KILL_WAIT_S = 10.0
_PROGRAM = ("-m", "wbcd.acquisition.child")
_GUARDS = (sandbox.SECCOMP, sandbox.LANDLOCK)
_MORE = (sandbox.OWN_USER, sandbox.NAMESPACES)  # where the machine allows them: nobody is warned of their absence
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_log = structlog.get_logger(__name__)

READER_BYTES = 512 * MIB
"""Address space of a reader beside its arrays: 131 MiB before it has read anything, the rest for chunks being unpacked."""


@dataclass(frozen=True, slots=True)
class IsolationLimits:
    """Of one child: its address space, the largest array it may hand over, and, for each request, CPU and wall seconds.

    The memory files that it hands over lie outside its address space; what all together may take is what MemoryMax of the
    unit must hold (tests/unit/test_systemd_unit.py adds it up). ``own_user``: the child of a daemon that is root becomes a user
    of its own; where it then cannot read, a reader goes on without by itself.
    """

    address_space_bytes: int = 2 * MAX_ARRAY_BYTES + READER_BYTES
    array_bytes: int = MAX_ARRAY_BYTES
    descriptors: int = 64
    cpu_s: float = 120.0
    timeout_s: float = 180.0
    own_user: bool = True

    @classmethod
    def for_arrays(cls, array_bytes: int) -> IsolationLimits:
        """For files whose arrays unpack to ``array_bytes`` at the most: two of them, frames and reference, are held at once."""
        return cls(address_space_bytes=2 * array_bytes + READER_BYTES, array_bytes=array_bytes)


class IsolatedReader:
    """:func:`wbcd.acquisition.read` in a limited child process; a context manager, safe to share between threads.

    A series of volumes is served one volume at a time, as it is iterated; asking for another file ends it (iterating on then
    raises ReaderDied). :attr:`busy` says that one is open: until its last volume, a failure, or ``close()`` of its iterator.

    Files are opened here, no link followed below ``root`` (the watch folder; by default each file's own folder), and are
    handed over as descriptors. The child can open files below that folder only, where the kernel has Landlock: for a file
    elsewhere it is replaced. :attr:`guards` names what the kernel took away from it; :attr:`restarts` counts its deaths.
    """

    def __init__(self, limits: IsolationLimits | None = None, *, root: Path | None = None) -> None:
        self.limits = limits or IsolationLimits()
        self.root = None if root is None else root.absolute()
        self.restarts = -1
        self.guards: frozenset[str] = frozenset()
        self._told = False
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._series = 0
        self._open: set[int] = set()

    @property
    def busy(self) -> bool:
        """True while a series still wants volumes: another file asked for now would take them away."""
        return bool(self._open)

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the child and wait until it answers; else the first :meth:`read` does."""
        with self._lock:
            self._ask({"ask": "ready"}, None)

    def guards_offered(self) -> frozenset[str]:
        """What the kernel will have taken from the child before it opens a file; starts it."""
        with self._lock:
            answer, _ = self._ask({"ask": "ready"}, None)
        landlock = [sandbox.LANDLOCK] if sandbox.landlock_version() > 0 else []
        return frozenset(guard for guard in (*_GUARDS, *_MORE) if guard in [*answer["guards"], *landlock])

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def read(self, acquisition: Acquisition, defaults: ReadDefaults | None = None) -> tuple[Acquisition, Payload]:
        """Same as :func:`wbcd.acquisition.read`; raises ReaderDied when the child crashed, hung or ran out of a limit."""
        source = Source(acquisition, self.root)
        ground = ground_of(acquisition.path, self.root)
        request = {
            "ask": "read",
            "ground": os.fsdecode(ground),
            "acquisition": wire.pack_acquisition(acquisition),
            "defaults": wire.pack_defaults(defaults or ReadDefaults()),
        }
        with self._lock:
            self._series += 1
            self._open.clear()
            series = self._series
            with source.parent() as parent, source.opened() as item:
                answer, arrays = self._ask(request, acquisition.path, (parent, item))
                for own_user in (self.limits.own_user, False):
                    if answer.get("answer") != "elsewhere":
                        break
                    self._stop()
                    self.limits = replace(self.limits, own_user=own_user)
                    self.restarts -= 1  # replaced, not dead
                    answer, arrays = self._ask(request, acquisition.path, (parent, item))
            with _believed(acquisition.path):
                self._note_guards(answer["guards"])
                ticket = wire.unpack_acquisition(answer["acquisition"])
                if answer["answer"] == "stack":
                    return ticket, wire.unpack_stack(answer["head"], arrays)
                count = int(answer["count"])
                self._open.add(series)
                volumes = _Volumes(count, lambda: self._volume(series, acquisition.path), lambda: self._open.discard(series))
                return ticket, RiSeries(count, volumes)

    def _volume(self, series: int, path: Path) -> Tomogram:
        with self._lock:
            if series != self._series or self._child is None:
                raise ReaderDied(
                    f"The isolated reader went on before all volumes of {path} were taken.", action="Read it again."
                )
            answer, arrays = self._ask({"ask": "volume"}, path)
            with _believed(path):
                if answer["answer"] != "volume":
                    raise ReaderDied(f"The isolated reader has no more volumes of {path}.")
                return wire.unpack_tomogram(answer["head"], arrays)

    # --- the child -------------------------------------------------------------------------------

    def _note_guards(self, guards: object) -> None:
        found = frozenset(guard for guard in (*_GUARDS, *_MORE) if isinstance(guards, list) and guard in guards)
        missing = [guard for guard in _GUARDS if guard not in found]
        if missing and (found != self.guards or not self._told):
            self._told = True
            _log.warning("reader.unguarded", missing=missing, action="Use a kernel with seccomp and Landlock (5.13 or later).")
        self.guards = found

    def _ask(
        self, request: wire.Message, path: Path | None, handles: Sequence[int] = ()
    ) -> tuple[wire.Message, dict[str, NDArray[Any]]]:
        if self._child is None or self._child.poll() is not None or self._channel is None:
            self._stop()
            self._channel = self._spawn()
        try:
            wire.send_request(self._channel, request, handles)
            packet = wire.receive(self._channel)
        except TimeoutError as error:
            self._stop()
            raise ReaderDied(f"Reading {path} took more than {self.limits.timeout_s:g} s; the reader was ended.") from error
        except (OSError, ReaderDied) as error:
            raise ReaderDied(f"The isolated reader {self._obituary()} while reading {path}.") from error
        if packet is None:
            raise ReaderDied(f"The isolated reader {self._obituary()} while reading {path}.")
        answer, arrays = packet
        if "error" in answer:
            raise wire.unpack_error(answer)
        return answer, arrays

    def _spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(self.limits.timeout_s)
        with theirs:
            command = [sys.executable, "-P", *_PROGRAM, str(theirs.fileno()), json.dumps(asdict(self.limits))]
            self._child = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is the daemon's to handle
            )
        self.restarts += 1
        return ours

    def _obituary(self) -> str:
        """End what is left of the child and say how it ended."""
        status = self._wait()
        self._stop()
        if status is None:
            return "broke off"
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"

    def _wait(self) -> int | None:
        try:
            return self._child.wait(1.0) if self._child is not None else None
        except subprocess.TimeoutExpired:
            return None

    def _stop(self) -> None:
        child, self._child = self._child, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if child is not None:
            child.kill()
            child.wait(_KILL_WAIT_S)


class _Volumes(Iterator[Tomogram]):
    """``count`` volumes, each asked for by ``take``; ``release`` is called once no more are wanted.

    A generator would not do: closed before its first volume, it runs none of its own code and would keep the reader busy.
    """

    def __init__(self, count: int, take: Callable[[], Tomogram], release: Callable[[], None]) -> None:
        self._left = count
        self._take = take
        self._release = release

    def __next__(self) -> Tomogram:
        if self._left <= 0:
            self.close()
            raise StopIteration
        try:
            tomogram = self._take()
        except BaseException:
            self.close()
            raise
        self._left -= 1
        if self._left == 0:
            self.close()
        return tomogram

    def close(self) -> None:
        """Want no more."""
        self._left = 0
        self._release()


@contextmanager
def _believed(path: Path) -> Iterator[None]:
    """Map a well-formed answer of wrong content to ReaderDied."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ReaderDied(f"The isolated reader answered nonsense for {path}: {error}.") from error


def _environment() -> dict[str, str]:
    """Little of ours: no credentials, no HDF5 plugins, one thread for numerical libraries."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(wbcd.__file__).resolve().parents[1]),
        "HDF5_PLUGIN_PRELOAD": "::",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",  # a strange file makes libraries talk; what matters comes back as an error
    }
