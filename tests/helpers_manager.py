"""A service manager for tests: hears sd_notify, aborts what misses its watchdog, restarts as the unit says.

The rules are read from ``systemd/wbcd.service``; where systemd itself runs, it does the same.
"""

from __future__ import annotations

import configparser
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers_zygote import Daemon, Zygote

UNIT = Path(__file__).parents[1] / "systemd" / "wbcd.service"


def unit() -> dict[str, str]:
    """The ``[Service]`` section; of a repeated key the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, encoding="utf-8")
    return dict(parser["Service"])


def restarts(status: int) -> bool:
    """Whether the unit is started again after a process that ended so (a wait status)."""
    rules = unit()
    code = os.waitstatus_to_exitcode(status)
    never = rules.get("RestartPreventExitStatus", "").split()
    return rules["Restart"] == "always" and str(code) not in never


@dataclass
class Manager:
    """Runs a daemon as ``Type=notify`` with ``WatchdogSec``."""

    zygote: Zygote
    folder: Path
    watchdog_s: float
    heard: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    aborted: int = 0

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = self.folder / "notify"
        self._socket.bind(str(self._address))
        self._socket.settimeout(0.1)
        self._alive_s = float("inf")

    @property
    def env(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self._address), "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6))}

    def run(self, settings: dict[str, Any], log: Path, *, timeout_s: float = 240.0, **more: Any) -> None:
        """Until a process ends with status 0 (or one that must not be restarted)."""
        deadline = time.monotonic() + timeout_s
        while not self.ends or (self.ends[-1] != 0 and restarts(self.ends[-1])):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still restarting: {self.ends}")
            daemon = self.zygote.begin(settings, log, env=self.env, **more)
            self._alive_s = float("inf")  # the watchdog counts from READY
            watch = threading.Thread(target=self._watch, args=(daemon,))
            watch.start()
            self.ends.append(daemon.wait())
            watch.join(20)

    def _watch(self, daemon: Daemon) -> None:
        while not daemon.ended:
            self._hear()
            if time.monotonic() - self._alive_s > self.watchdog_s:
                self.aborted += 1
                self._alive_s = float("inf")
                daemon.send(signal.SIGABRT)  # systemd's WatchdogSignal
        while self._hear():
            pass

    def _hear(self) -> bool:
        """Take one message; False when there is none."""
        try:
            message = self._socket.recv(65536).decode(errors="replace")
        except TimeoutError:
            return False
        told = dict(line.split("=", 1) for line in message.splitlines())
        self.heard.append((time.monotonic(), told))
        if "READY" in told or "WATCHDOG" in told:
            self._alive_s = time.monotonic()
        return True

    def close(self) -> None:
        self._socket.close()
