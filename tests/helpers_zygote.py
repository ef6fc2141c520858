"""Daemons that start at once: one process imports the heavy rooms and forks a daemon for each line it reads.

A forked daemon is a process like any other: it is killed with SIGKILL and leaves nothing behind but its files. With
``own_mounts`` the daemons see file systems of their own (small disks), which the test reaches under :meth:`Zygote.seen`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

FINISHED = 0


def serve() -> None:
    """Read ``{"config": {...}, "env": {...}, "log": path}`` a line; answer with the pid, then with the wait status."""
    import helpers_faults  # noqa: F401 - this and what follows: imported here once, so that each fork has it
    import torch
    import watchdog.observers.inotify
    import watchdog.observers.polling  # noqa: F401

    import wbcd.cli.common
    import wbcd.daemon.assembly
    import wbcd.daemon.start
    import wbcd.daemon.trial
    import wbcd.store.migrate  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_a_daemon(request)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def _be_a_daemon(request: dict[str, Any]) -> None:
    from helpers_faults import install

    from wbcd.cli.common import exit_status
    from wbcd.config import Config
    from wbcd.daemon.start import start
    from wbcd.errors import WbcdError

    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.dup2(log, 1)
    try:
        install(request["faults"])
        start(Config.load(None, {}, request["config"]), until_idle=request["until_idle"])
    except WbcdError as error:  # as `wbcd run` ends
        os.write(2, f"wbcd: {error.sentence()}\n".encode(errors="replace"))
        os._exit(exit_status(error))
    except BaseException as error:  # noqa: BLE001 - the child must not return into the zygote's loop
        os.write(2, f"failed: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(FINISHED)


class Daemon:
    """One that runs now. :meth:`wait` must be called before the zygote can begin another."""

    def __init__(self, pid: int, zygote: Zygote) -> None:
        self.pid = pid
        self._zygote = zygote
        self._status: int | None = None

    @functools.cached_property
    def process(self) -> psutil.Process:
        """Raises psutil.NoSuchProcess when it has ended already."""
        return psutil.Process(self.pid)

    def send(self, sign: int) -> None:
        """A signal, if it was not waited for yet."""
        if self._status is None:
            _kill(self.pid, sign)

    def wait(self) -> int:
        """The wait status: a signal's number, or the exit status shifted by 8 bits (``os.waitstatus_to_exitcode``)."""
        if self._status is None:
            self._status = int(self._zygote._read())
            self._zygote._running = None
        return self._status

    @property
    def ended(self) -> bool:
        """True when it has died, whether or not that was waited for."""
        if self._status is not None:
            return True
        try:
            return self.process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Zygote:
    """The parent's side: one daemon at a time."""

    def __init__(self, *, own_mounts: bool = False) -> None:
        self._running: Daemon | None = None
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WBCD_")}
        namespace = ["unshare", "-m" if os.geteuid() == 0 else "-Urm"] if own_mounts else []
        self._process = subprocess.Popen(
            [*namespace, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        return self._process.stdout.readline().strip()  # type: ignore[union-attr]

    def _write(self, request: dict[str, Any]) -> None:
        self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]

    def command(self, *words: object) -> int:
        """Run a program among the daemons' file systems, also while one runs; its exit status."""
        into = ["nsenter", "-t", str(self._process.pid), "-m", *(() if os.geteuid() == 0 else ("-U", "--preserve-credentials"))]
        return subprocess.run([*into, *map(str, words)], check=False).returncode

    def seen(self, path: Path) -> Path:
        """A path as the daemons see it, reached from here."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def begin(
        self,
        config: dict[str, Any],
        log: Path,
        *,
        env: dict[str, str] | None = None,
        until_idle: bool = False,
        faults: list[dict[str, Any]] | None = None,
    ) -> Daemon:
        """Start a daemon and go on."""
        self.end_running()
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
        self._write({"config": plain, "env": env or {}, "log": str(log), "until_idle": until_idle, "faults": faults or []})
        self._running = Daemon(int(self._read()), self)
        return self._running

    def end_running(self) -> None:
        """Kill the daemon that a failed test has left."""
        if self._running is not None:
            self._running.send(signal.SIGCONT)
            self._running.send(signal.SIGKILL)
            self._running.wait()
            self._running = None

    def run(
        self,
        config: dict[str, Any],
        log: Path,
        *,
        kill_after_s: float | None = None,
        sign: int = signal.SIGKILL,
        env: dict[str, str] | None = None,
        until_idle: bool = True,
        faults: list[dict[str, Any]] | None = None,
    ) -> int:
        """One daemon from start to end, or to its kill; returns the wait status (a signal's number, or 0)."""
        daemon = self.begin(config, log, env=env, until_idle=until_idle, faults=faults)
        timer = threading.Timer(kill_after_s, daemon.send, (sign,)) if kill_after_s is not None else None
        if timer:
            timer.start()
        status = daemon.wait()
        if timer:
            timer.cancel()
        return status

    def close(self) -> None:
        self.end_running()
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(20)
        self._process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for the whole session: it takes seconds to start. Its daemons have mounts of their own where that is allowed."""
    made = Zygote(own_mounts=may_mount())
    yield made
    made.close()


@functools.cache
def may_mount() -> bool:
    """True when a program may have mounts of its own here."""
    command = ["unshare", "-m" if os.geteuid() == 0 else "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def wait_until(condition: Any, timeout_s: float = 60.0, what: str = "") -> Any:
    """The first true value of ``condition()``; TimeoutError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what or condition}: not within {timeout_s:g} s")
        threading.Event().wait(0.02)
    return found


def _kill(pid: int, sign: int) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    serve()
