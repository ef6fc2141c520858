"""The one thread that touches the database, and how it waits when the database or the disk cannot take a result.

Other threads ask it questions or tell it outcomes through one bounded channel; so intake pauses by itself while the
database is away, and resumes by itself. The reason is kept in :class:`Pauses`, which `wbcd status` shows.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from wbcd.daemon.channel import Broken, Channel, Closed, Crew
from wbcd.errors import DatabaseUnavailable, NoRight, NoSpace, WbcdError
from wbcd.records import Acquisition, Outcome

R = TypeVar("R")

FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 15.0

PING_EVERY_S = 3.0
"""A database that nobody asks anything is asked whether it is there: else a server that hung, or a file that was replaced,
would be noticed with the next acquisition only, perhaps tomorrow."""

SILENT_AFTER_S = 4.0
"""An answer that takes longer is told as none: with the ping, the daemon's own heartbeat and a look, within ten seconds."""


class LedgerLike(Protocol):
    """What the line needs of a ledger; :class:`wbcd.store.Ledger` and the tests' in-memory one have it."""

    def begin(self, acquisition: Acquisition, *, volumes_root: Path | None = None) -> int: ...
    def wait_for(self, content_id: str, sentence: str) -> None: ...
    def known(self, content_id: str, recipe_id: str, model_id: str) -> Any: ...
    def commit(
        self,
        outcome: Outcome,
        recipe_id: str,
        model_id: str,
        *,
        conditions: Mapping[str, Any] | None = None,
        once_per_acquisition: bool = False,
        check: Callable[[], None] = ...,
        at: dt.datetime | None = None,
    ) -> Outcome | None: ...
    def ask(self, content_id: str, recipe_id: str, model_id: str) -> None: ...
    def ask_for_all(self, recipe_id: str, model_id: str) -> bool: ...
    def sighted(
        self,
        path: Any,
        size: int,
        mtime_ns: int,
        content_id: str,
        *,
        state: str = "",
        companions: Sequence[tuple[str, str | None]] = (),
    ) -> None: ...
    def remembered(self, path: Any) -> Any: ...
    def counted(self, paths: Sequence[Path], recipe_id: str, model_id: str) -> Mapping[Path, Any]: ...
    def note_states(self, states: Mapping[Path, str]) -> None: ...
    def counted_sample(self, recipe_id: str, model_id: str, most: int) -> list[Path]: ...
    def last_event_at(self, kind: str) -> dt.datetime | None: ...
    def first_outcome_at(self) -> dt.datetime | None: ...
    def reopen(self, run_ids: Sequence[int], why: str, *, by: str | None = None, ended: Sequence[str] = ...) -> set[int]: ...
    def reopened(self, recipe_id: str, model_id: str) -> list[Path]: ...
    def set_aside(self, recipe_id: str, model_id: str, *, reasons: Sequence[str] | None = None) -> Sequence[Any]: ...
    def companion_names(self) -> set[str]: ...
    def dependents(self, companion: Path) -> list[Path]: ...
    def retire_unread(self, content_id: str, path: Any) -> None: ...
    def discard_volumes(self, content_id: str, root: Path, remove: Callable[[Sequence[str]], object]) -> None: ...
    def volumes_to_settle(self, root: Path, content_id: str | None = None) -> list[str]: ...
    def unfinished(self) -> Sequence[Any]: ...
    def gone(self, path: Any) -> None: ...
    def end_pause(self, message: str) -> None: ...
    def event(self, kind: str, message: str, **fields: Any) -> None: ...
    def close(self) -> None: ...


class GaveUp(Exception):
    """The stop's time is over while the store is away; what was not stored is made again at the next start."""


class Pauses:
    """Why the line waits, by cause; empty when it does not. ``changed`` hears of each beginning and end."""

    def __init__(self, changed: Callable[[str, str | None], None] = lambda *_: None) -> None:
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        self._changed = changed
        self.attempts = 0

    def begin(self, cause: str, error: WbcdError) -> None:
        """The line waits because of ``error``."""
        with self._lock:
            self.attempts += 1
            new = cause not in self._reasons
            self._reasons[cause] = error.sentence()
        if new:
            self._changed(cause, error.sentence())

    def end(self, cause: str) -> None:
        """The cause is gone."""
        with self._lock:
            was = self._reasons.pop(cause, None)
        if was is not None:
            self._changed(cause, None)

    @property
    def reason(self) -> str | None:
        """All present reasons as one text, or None."""
        with self._lock:
            return " ".join(self._reasons.values()) or None


class Patience:
    """Repeats what a missing database or a full disk refuses, until it works or the stop's time is over."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._over = threading.Event()

    def give_up(self) -> None:
        """Wait no longer: the process is stopping."""
        self._over.set()

    def __call__(self, cause: str, action: Callable[[], R]) -> R:
        """The result of ``action``; raises :class:`GaveUp` after :meth:`give_up`."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                result = action()
            except (DatabaseUnavailable, NoRight, NoSpace) as error:
                self._pauses.begin(cause, error)
            else:
                self._pauses.end(cause)
                return result
            if self._over.wait(delay_s):
                raise GaveUp(cause)
            delay_s = min(2 * delay_s, LONGEST_RETRY_S)


@dataclass(frozen=True, slots=True)
class _Request(Generic[R]):
    action: Callable[[LedgerLike], R]
    answer: Future[R]


class Desk:
    """Owns the ledger in its own thread."""

    def __init__(self, open_ledger: Callable[[], LedgerLike], crew: Crew, patience: Patience) -> None:
        self._open = open_ledger
        self._crew = crew
        self._patience = patience
        self._requests: Channel[_Request[Any]] = crew.channel("store", 8, "outcomes are small; a full queue must be felt soon")
        self.opened = threading.Event()
        self._ledger: LedgerLike | None = None
        self._since_s: float | None = None
        self._silent = False

    @property
    def openings(self) -> int:
        """How many databases the ledger has found in its place; a ledger that does not know has found one."""
        return int(getattr(self._ledger, "openings", 1))

    def silent_for_s(self) -> float | None:
        """How long the present request goes without an answer of the database; None while it answers soon enough.

        A request that met a silence stays silent until it is done: in between the database may only refuse a connection.
        """
        since_s, asked_s = self._since_s, self._asked_s()
        now_s = time.monotonic()
        self._silent = since_s is not None and (self._silent or (asked_s is not None and now_s - asked_s > SILENT_AFTER_S))
        return now_s - since_s if since_s is not None and self._silent else None

    def _asked_s(self) -> float | None:
        asked_s = self._since_s if self._ledger is None else getattr(self._ledger, "asked_since_s", None)
        return None if asked_s is None else float(asked_s)

    def serve(self) -> None:
        """The thread's work: open, answer until closed, close."""
        try:
            ledger = self._ledger = self._patiently(self._open)
        except GaveUp:
            self._requests.break_()
            return
        self.opened.set()
        try:
            while (request := self._next(ledger)) is not None:
                self._answer(request, ledger)
        finally:
            ledger.close()

    def _patiently(self, action: Callable[[], R]) -> R:
        self._since_s = time.monotonic()
        try:
            return self._patience("store", action)
        finally:
            self._since_s = None

    def _next(self, ledger: LedgerLike) -> _Request[Any] | None:
        """The next request, None when there will be none; meanwhile the database is asked whether it is there."""
        ping = getattr(ledger, "ping", None)
        while True:
            try:
                return self._requests.take(PING_EVERY_S)
            except TimeoutError:
                if ping is not None:
                    self._patiently(ping)
            except Closed:
                return None

    def ask(self, action: Callable[[LedgerLike], R]) -> R:
        """Do ``action`` in the desk's thread and wait for its result. Raises :class:`Broken` when the line has failed."""
        request: _Request[R] = _Request(action, Future())
        self._requests.put(request)
        while True:
            try:
                return request.answer.result(timeout=0.25)
            except FutureTimeout:
                if self._crew.failure is not None:
                    raise Broken("store") from None

    def tell(self, action: Callable[[LedgerLike], None]) -> None:
        """Do ``action`` in the desk's thread, in order, without waiting for it; its failure stops the line."""
        self._requests.put(_Request(action, Future()))

    def try_tell(self, action: Callable[[LedgerLike], None]) -> bool:
        """:meth:`tell` if there is room now; False when there is none (the thread that keeps watch must never wait)."""
        return self._requests.offer(_Request(action, Future()))

    def close(self) -> None:
        """Answer what is asked already, then close the ledger."""
        self._requests.close()

    def _answer(self, request: _Request[Any], ledger: LedgerLike) -> None:
        try:
            request.answer.set_result(self._patiently(lambda: request.action(ledger)))
        except GaveUp as error:
            request.answer.set_exception(error)
        except BaseException as error:
            request.answer.set_exception(error)
            raise
