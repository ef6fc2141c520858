"""Shipped fakes for tests of wbcd and of what is built on it: a clock, and a ledger in memory. Never used at run time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wbcd.errors import StoreError
from wbcd.records import Acquisition, Outcome


class FakeClock:
    """A monotonic clock that moves when told."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@dataclass
class MemoryLedger:
    """Keeps what :class:`wbcd.store.Ledger` would, and refuses to be used from two threads at a time.

    ``failures``: errors to raise, one at each next call that touches the store, before it succeeds.
    """

    outcomes: dict[tuple[str, str, str], Outcome] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    paths: dict[tuple[str, int, int], str] = field(default_factory=dict)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    failures: list[StoreError] = field(default_factory=list)
    commits: int = 0
    closed: bool = False
    _thread: int | None = None

    def begin(self, acquisition: Acquisition) -> int:
        """Count a try; the number of tries, this one included."""
        self._touch()
        self.tries[acquisition.content_id] = self.tries.get(acquisition.content_id, 0) + 1
        return self.tries[acquisition.content_id]

    def known(self, content_id: str, recipe_id: str, model_id: str) -> Outcome | None:
        """The stored outcome, or None."""
        self._touch()
        return self.outcomes.get((content_id, recipe_id, model_id))

    def commit(self, outcome: Outcome, recipe_id: str, model_id: str) -> None:
        """Store an outcome; a second one for the same content, recipe and model changes nothing."""
        self._touch()
        self.commits += 1
        self.outcomes.setdefault((outcome.acquisition.content_id, recipe_id, model_id), outcome)
        self.tries.pop(outcome.acquisition.content_id, None)

    def sighted(self, path: Path, size: int, mtime_ns: int, content_id: str) -> None:
        """Remember what a path held."""
        self._touch()
        self.paths[str(path), size, mtime_ns] = content_id

    def recall(self, path: Path, size: int, mtime_ns: int) -> str | None:
        """What a path in this state held, or None."""
        self._touch()
        return self.paths.get((str(path), size, mtime_ns))

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Note an event."""
        self._touch()
        self.events.append((kind, message, fields))

    def close(self) -> None:
        """No more use."""
        self.closed = True

    def _touch(self) -> None:
        here = threading.get_ident()
        self._thread = self._thread or here
        if self._thread != here:
            raise RuntimeError("the ledger was used from two threads")
        if self.failures:
            raise self.failures.pop(0)
