"""Places where a test may end the process, to prove that nothing is lost there. Inert unless WBCD_TESTING=1.

``WBCD_FAULT_POINT=after_begin:3`` kills the process (SIGKILL, as the kernel would) the third time that it passes
``after_begin``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from typing import Final

from wbcd.errors import BadValue

POINTS: Final = (
    "after_identify",
    "after_sighted",
    "after_begin",
    "after_read",
    "after_examine",
    "after_classify",
    "after_keep",
    "before_commit",
    "after_commit",
)


class FaultPoints:
    """Counts passages of named points and kills at the chosen one."""

    def __init__(self, name: str | None = None, passage: int = 1) -> None:
        self._name = name
        self._left = passage
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> FaultPoints:
        """As ``WBCD_FAULT_POINT`` says. Raises :class:`BadValue` outside tests or for a point that does not exist."""
        text = env.get("WBCD_FAULT_POINT", "")
        if not text:
            return cls()
        if env.get("WBCD_TESTING") != "1":
            raise BadValue(
                "environment: WBCD_FAULT_POINT is set, which kills the daemon on purpose.",
                action="Unset it; it is for the tests, which also set WBCD_TESTING=1.",
            )
        name, _, passage = text.partition(":")
        if name not in POINTS or not (passage or "1").isdigit():
            raise BadValue(f"environment: WBCD_FAULT_POINT is {text!r}; it must be NAME[:N] with NAME of {', '.join(POINTS)}.")
        return cls(name, int(passage or "1"))

    def passing(self, name: str) -> None:
        """Say that the line is here."""
        if name != self._name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
