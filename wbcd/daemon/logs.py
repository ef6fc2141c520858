"""Logging: one event per line, JSON for machines, columns on a terminal; a flood is summed up, not written out.

A thousand bad files a minute would fill a disk with a thousand lines that say one thing. So each kind of line (event,
outcome and reason) is written ``service.log_lines_min`` times a minute at the most; the rest is counted and told in one line
a minute: ``log.more``, "and 4,312 more". The ledger is told everything all the same: only the log is shortened.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO, TypeAlias

import structlog

from wbcd.config import ServiceSettings
from wbcd.daemon.pipeline import Log
from wbcd.names import shown

WINDOW_S: Final = 60.0

Kind: TypeAlias = tuple[str, ...]
NAMING: Final = ("event", "outcome", "reason", "cause", "kind")
"""The fields that make a kind: two lines that agree in them say the same of two files."""

NEVER_SUMMED: Final = frozenset({"ready", "stopped", "stage_failed", "paused", "resumed", "log.more"})
"""Few by nature, and each worth reading."""


class RateLimit:
    """At most ``most`` of one kind in a window of :data:`WINDOW_S` seconds; ``most`` 0 lets everything pass. Thread-safe."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[Kind, tuple[float, int]] = {}

    def passes(self, kind: Kind) -> bool:
        """Count one of a kind; False when its window is full.

        A window that holds back stays full until :meth:`held_back` has told of it, so that no count is lost.
        """
        if self._most == 0:
            return True
        with self._lock:
            now = self._clock()
            began, count = self._windows.get(kind, (now, 0))
            if now - began >= WINDOW_S and count <= self._most:
                began, count = now, 0
            self._windows[kind] = (began, count + 1)
            return count < self._most

    def held_back(self, *, all_of_it: bool = False) -> dict[Kind, int]:
        """What the windows that are over (``all_of_it``: also the present ones) have held back, by kind; counted anew then."""
        with self._lock:
            now = self._clock()
            over = [kind for kind, (began, _) in self._windows.items() if all_of_it or now - began >= WINDOW_S]
            counts = {kind: self._windows.pop(kind)[1] - self._most for kind in over}
        return {kind: count for kind, count in counts.items() if count > 0}


class Limiter:
    """The processor of structlog that drops what is too much, and the teller of what was dropped."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Raises :class:`structlog.DropEvent` for a line beyond its kind's limit."""
        if event.get("event") not in NEVER_SUMMED and not self._limit.passes(_kind(event)):
            raise structlog.DropEvent
        return event

    def tell(self, log: Log, *, all_of_it: bool = False) -> None:
        """One line for each kind that was held back. To be called now and then, and with ``all_of_it`` at the end."""
        for kind, count in self._limit.held_back(all_of_it=all_of_it).items():
            named = {name: value for name, value in zip(NAMING, kind, strict=True) if value}
            log.warning("log.more", of=named, more=count, message=f"and {count:,} more of {' '.join(named.values())}")


def _kind(event: Mapping[str, Any]) -> Kind:
    return tuple(str(event.get(name) or "") for name in NAMING)


def _on_one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For the console: what a file is called neither begins a line nor moves the cursor. A traceback keeps its lines."""
    kept = ("exc_info", "exception", "stack")
    return {name: value if name in kept else _shown(value) for name, value in event.items()}


class _Shown(str):
    """Is written as it is: structlog takes the repr of what has a space, which would double each backslash once more."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self}'"


def _shown(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return _Shown(shown(value))
    if isinstance(value, Mapping):
        return {_shown(name): _shown(inner) for name, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def configure_logging(settings: ServiceSettings, stream: TextIO | None = None, *, limiter: Limiter | None = None) -> Log:
    """Set structlog up for the whole process; logs go to standard error, results to standard output."""
    stream = stream or sys.stderr
    console = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    shown: list[structlog.typing.Processor] = (
        [_on_one_line, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            *([limiter] if limiter else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    log: Log = structlog.get_logger("wbcd")
    return log
