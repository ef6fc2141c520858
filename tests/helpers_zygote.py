"""Daemons that start at once: one process imports the heavy rooms and forks a daemon for each line it reads.

A forked daemon is a process like any other: it is killed with SIGKILL and leaves nothing behind but its files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

FINISHED, FAILED = 0, 1


def serve() -> None:
    """Read ``{"config": {...}, "env": {...}, "log": path}`` a line; answer with the pid, then with the wait status."""
    import torch

    from wbcd.daemon import assembly  # noqa: F401 - imported here once, so that each fork has it

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
    from wbcd.config import Config
    from wbcd.daemon.start import start

    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.dup2(log, 1)
    try:
        start(Config.load(None, {}, request["config"]), until_idle=request["until_idle"])
    except BaseException as error:  # noqa: BLE001 - the child must not return into the zygote's loop
        os.write(2, f"failed: {type(error).__name__}: {error}\n".encode())
        os._exit(FAILED)
    os._exit(FINISHED)


class Zygote:
    """The parent's side: one daemon at a time."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WBCD_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        return self._process.stdout.readline().strip()  # type: ignore[union-attr]

    def run(
        self,
        config: dict[str, Any],
        log: Path,
        *,
        kill_after_s: float | None = None,
        sign: int = signal.SIGKILL,
        env: dict[str, str] | None = None,
        until_idle: bool = True,
    ) -> int:
        """One daemon from start to end, or to its kill; returns the wait status (a signal's number, or 0)."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
        request = {"config": plain, "env": env or {}, "log": str(log), "until_idle": until_idle}
        self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        pid = int(self._read())
        timer = threading.Timer(kill_after_s, _kill, (pid, sign)) if kill_after_s is not None else None
        if timer:
            timer.start()
        status = int(self._read())
        if timer:
            timer.cancel()
        return status

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(20)
        self._process.stdout.close()  # type: ignore[union-attr]


def _kill(pid: int, sign: int) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    serve()
