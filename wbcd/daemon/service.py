"""The daemon around the line: the watcher, signals, the service manager, the state file.

The main thread looks at the folder, feeds the line and says that all is well; it says so (WATCHDOG=1) only when the line
has moved since the last time, is verified idle, or waits for a reason that `wbcd status` shows and goes on trying.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from wbcd import __version__
from wbcd.config import Config, WatchSettings, redact
from wbcd.daemon.channel import Broken, Closed
from wbcd.daemon.desk import GaveUp, LedgerLike, Pauses
from wbcd.daemon.faults import FaultPoints
from wbcd.daemon.mark import FolderMark, Marker
from wbcd.daemon.notify import Notifier
from wbcd.daemon.pipeline import Log, Pipeline
from wbcd.daemon.stages import Stages
from wbcd.daemon.state import StateFile
from wbcd.daemon.trial import Trial
from wbcd.errors import StageFailed, WbcdError
from wbcd.records import Outcome

FORGOTTEN_AT_ONCE = 64
"""Vanished files told to the ledger in one request: outcomes wait behind it."""

SHOWN_FOLDERS = 10
"""Most folders named in the state file, whose size is fixed; the log names all."""

LOOK_S = 0.5
"""Longest wait of one look at the folder: a stop, a due retry or a heartbeat is served within it."""


class PassedOver(Protocol):
    """How many files of the folder are no acquisitions, and a few of them with their reasons."""

    count: int

    @property
    def examples(self) -> list[str]: ...


class Watcher(Protocol):
    """Where settled paths come from. ``unreadable``: subfolders that could not be listed at the last look; ``present``: the
    folder itself could; ``ignored``: what it passed over then."""

    present: bool
    unreadable: list[Path]

    @property
    def ignored(self) -> PassedOver: ...

    def start(self) -> None: ...
    def poll(self, timeout_s: float) -> list[Path]: ...
    def vanished(self) -> list[Path]: ...
    def announce_again(self) -> None: ...
    def close(self) -> None: ...


SIFTED_FROM = 64
"""A find of so many, as at a start, is first held against the ledger: most of it may be counted already."""

SIFTED_AT_ONCE = 1000
"""Paths in one question: outcomes wait behind it for some milliseconds."""


class Backlog:
    """Settled paths that the line has had no room for, oldest first or newest first; each path once."""

    def __init__(self, *, newest_first: bool = False) -> None:
        self._paths: deque[Path] = deque()
        self._members: set[Path] = set()
        self._newest_first = newest_first
        self._unsifted: deque[Path] = deque()
        self._in_question = 0
        self._sifted: SimpleQueue[list[Path]] = SimpleQueue()

    def find(self, paths: Sequence[Path]) -> None:
        """What the watcher has found: a few wait as they are, many are to be sifted first."""
        if len(paths) < SIFTED_FROM and not self._unsifted:
            self.add(paths)
        else:
            self._unsifted.extend(paths)

    def sift(self, ask: Callable[[list[Path], Callable[[list[Path]], None]], bool]) -> None:
        """One question at a time; what it left over waits behind what waits already, in the watcher's order."""
        while not self._sifted.empty():
            self._in_question = 0
            self.add(self._sifted.get(), behind=True)
        if self._unsifted and not self._in_question:
            some = list(islice(self._unsifted, SIFTED_AT_ONCE))
            if ask(some, self._sifted.put):
                self._in_question = len(some)
                for _ in some:
                    self._unsifted.popleft()

    def add(self, paths: Iterable[Path], *, behind: bool = False) -> None:
        """Paths come in the watcher's order; newest-first puts a later look before what still waits, unless ``behind``."""
        fresh = [path for path in paths if path not in self._members]
        self._members.update(fresh)
        if self._newest_first and not behind:
            self._paths.extendleft(reversed(fresh))
        else:
            self._paths.extend(fresh)

    def feed(self, offer: Callable[[Path], bool]) -> None:
        """Hand over as many as there is room for."""
        while self._paths and offer(self._paths[0]):
            self._members.discard(self._paths.popleft())

    def __len__(self) -> int:
        return len(self._paths) + len(self._unsifted) + self._in_question


class LookAgain:
    """When what is not final is looked at again: at the start, when the folder comes back, once a rescan for what a person
    asked for, and every so many hours a sample of what is counted."""

    def __init__(self, watch: WatchSettings, pipeline: Pipeline, *, present: bool) -> None:
        self._watch = watch
        self._pipeline = pipeline
        self._present = present
        self._due = True
        self._next_look_s = self._next_rehash_s = float("-inf")

    def look(self, now_s: float, *, present: bool) -> None:
        """Called in each turn of the main loop; what finds no room now is asked for in the next turn."""
        self._due |= present and not self._present
        self._present = present
        if self._due:
            self._due = not self._pipeline.reopen(absent=True)
        if now_s >= self._next_look_s and self._pipeline.look_at_companions() and self._pipeline.take_reopened():
            self._next_look_s = now_s + self._watch.rescan_s
        if self._watch.rehash_files and now_s >= self._next_rehash_s:
            self._rehash(now_s)

    def _rehash(self, now_s: float) -> None:
        """Ask ten times in that span: the journal says when it was done last, by this process or one before."""
        if self._pipeline.rehash(self._watch.rehash_files, self._watch.rehash_every_h):
            self._next_rehash_s = now_s + self._watch.rehash_every_h * 360


class Service:
    """One run of the daemon, from start to a drained stop. :meth:`run` returns when stopped, raises when the line fails."""

    def __init__(
        self,
        config: Config,
        *,
        make_stages: Callable[[], Stages],
        open_ledger: Callable[[Stages], LedgerLike],
        watcher: Watcher,
        log: Log,
        env: Mapping[str, str] | None = None,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
        stop_when_idle: bool = False,
        trial: Trial | None = None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._on_beat = on_beat
        self._make_stages = make_stages
        self._open_ledger = open_ledger
        self._watcher = watcher
        self._log = log
        environment = os.environ if env is None else env
        self._notifier = Notifier(environment)
        self._faults = FaultPoints.from_environment(environment)
        self._on_outcome = on_outcome
        self._stop_when_idle = stop_when_idle
        self._trial = trial
        self._stop = threading.Event()
        self._stop_reason = "asked"
        self._vanished: list[Path] = []
        self._backlog = Backlog(newest_first=config.watch.newest_first)
        self._pauses = Pauses(self._pause_changed)
        self._started_unix_s = time.time()
        self._idle_since_s = float("inf")
        self._looked = False
        self._note: Callable[[str, str], None] | None = None
        self._mark = FolderMark(config.watch.dir)
        self._others: list[Marker] = []
        self._seen_beats = self._seen_attempts = -1
        self._seen_openings = 1
        self._silent_since: str | None = None
        self._said_reason: str | None = None
        self._state_problem: str | None = None

    def stop(self, reason: str = "asked") -> None:
        """Ask for a drained stop; safe in a signal handler."""
        self._stop_reason = reason
        self._stop.set()

    def run(self) -> None:
        """Start, work until asked to stop, drain. Raises :class:`StageFailed` (or the stage's own error) on a failure, and
        AlreadyRunning before anything is touched."""
        state = StateFile(self._config.output.dir)
        try:
            self._look_for_others()
            self._say(state, None, "starting")
            with self._signals():
                self._work(state)
        finally:
            self._mark.close()
            state.close()

    def _look_for_others(self) -> None:
        """Say when another daemon begins or ends to watch the same folder: each counts every file, into its own database."""
        others = self._mark.look()
        if others != self._others:
            self._others = others
            by = [str(other) for other in others]
            if by:
                told = "Each daemon counts every file of the folder; stop one unless that is wanted."
                self._log.warning("watch.shared", folder=str(self._config.watch.dir), by=by, action=told)
            else:
                self._log.info("watch.alone", folder=str(self._config.watch.dir))

    def _work(self, state: StateFile) -> None:
        try:
            stages = self._make_stages()
        except WbcdError as error:
            self._say(state, None, "failed", reason=error.sentence())
            raise
        pipeline = Pipeline(
            self._config,
            stages,
            lambda: self._open_ledger(stages),
            log=self._log,
            faults=self._faults,
            pauses=self._pauses,
            on_outcome=self._on_outcome,
            trial=self._trial,
            # A run that ends when nothing waits does not wait for a file that may never come: the next one takes it up.
            companion_wait_s=0.0 if self._stop_when_idle else None,
        )
        self._note = pipeline.event
        pipeline.start()
        try:
            self._watcher.start()
            self._wait_until_open(pipeline, state)
            self._serve(pipeline, state)
        except (Broken, Closed):
            pass  # the line has failed: its own error is raised below
        finally:
            self._watcher.close()
            self._drain(pipeline, state)
            stages.close()
        self._raise_failure(pipeline)

    def _wait_until_open(self, pipeline: Pipeline, state: StateFile) -> None:
        while not pipeline.ready and not self._stop.is_set() and pipeline.failure is None:
            self._stop.wait(0.1)
            self._heartbeat(pipeline, state, ready=False)

    def _serve(self, pipeline: Pipeline, state: StateFile) -> None:
        self._backlog.find(self._watcher.poll(0.0))  # the first scan comes before READY
        self._looked = True
        self._ready(pipeline, state)
        again = LookAgain(self._config.watch, pipeline, present=self._watcher.present)
        next_beat_s = 0.0
        self._idle_since_s = time.monotonic()
        while not self._stop.is_set() and pipeline.failure is None:
            self._look_through_again(pipeline)
            self._backlog.add(pipeline.due(time.monotonic()))
            self._backlog.sift(pipeline.sift)
            self._backlog.feed(pipeline.offer)
            self._backlog.find(self._watcher.poll(0.02 if len(self._backlog) or self._vanished else LOOK_S))
            self._forget_vanished(pipeline)
            self._listen(pipeline)
            if time.monotonic() >= next_beat_s or self._waits_for != self._said_reason:  # why it waits is told at once
                self._heartbeat(pipeline, state)
                next_beat_s = time.monotonic() + self._beat_every_s
            if self._stop_when_idle and self._is_finished(pipeline):
                self.stop("idle")
            # Last: the store answers while the folder is looked at; asked before, it would keep the line from ever idling.
            again.look(time.monotonic(), present=self._watcher.present)

    def _look_through_again(self, pipeline: Pipeline) -> None:
        """Another database lies in the place of the one that was written to: hold every file of the folder against it."""
        if pipeline.openings != self._seen_openings:
            self._seen_openings = pipeline.openings
            self._watcher.announce_again()
            self._idle_since_s = time.monotonic()
            self._log.warning("looked_through_again", reason="Another database has taken the place of the one written to.")

    def _forget_vanished(self, pipeline: Pipeline) -> None:
        """Let the ledger know what left the folder, so that it no longer counts as waiting."""
        self._vanished += self._watcher.vanished()
        few = self._vanished[:FORGOTTEN_AT_ONCE]
        if few and pipeline.forget(few):
            del self._vanished[: len(few)]

    def _is_finished(self, pipeline: Pipeline) -> bool:
        """Nothing waits anywhere, and has not for longer than a file that is there needs to settle."""
        now_s = time.monotonic()
        if len(self._backlog) or not pipeline.idle or pipeline.awaited:
            self._idle_since_s = now_s
        return now_s - self._idle_since_s > self._config.watch.quiet_s + LOOK_S

    @property
    def _beat_every_s(self) -> float:
        watchdog_s = self._notifier.watchdog_s
        return min(self._config.service.heartbeat_s, watchdog_s / 3) if watchdog_s else self._config.service.heartbeat_s

    def _ready(self, pipeline: Pipeline, state: StateFile) -> None:
        if self._config.watch.dir is not None and self._watcher.present:
            pipeline.forget_lost(self._config.watch.dir.absolute())
        pipeline.end_pause("The daemon was started again and takes files.")
        pipeline.works_by()
        pipeline.settle_volumes()
        self._notifier.send(READY="1", STATUS="Watching.")
        self._say(state, pipeline, "paused" if self._waits_for else "running")
        self._log.info(
            "ready",
            version=__version__,
            watch=str(self._config.watch.dir),
            database=redact(self._config.database.url),
            recipe=self._config.recipe.recipe_id,
            backlog=len(self._backlog),
        )

    def _heartbeat(self, pipeline: Pipeline, state: StateFile, *, ready: bool = True) -> None:
        self._look_for_others()
        self._listen(pipeline)
        reason = self._said_reason = self._waits_for
        sentence = f"Paused: {reason}" if reason else f"{pipeline.totals.sentence()}; {len(self._backlog)} waiting."
        values = {"STATUS": sentence}
        if ready and self._is_well(pipeline):
            values["WATCHDOG"] = "1"
        self._notifier.send(**values)
        self._on_beat()
        self._say(state, pipeline, "paused" if reason else "running" if ready else "starting")

    @property
    def _waits_for(self) -> str | None:
        """Why nothing new is taken now: the store, the disk, or the absence of the folder once the line is open."""
        absent = self._looked and not self._watcher.present
        folder = f"{self._config.watch.dir} is absent or cannot be listed; it is looked for again." if absent else None
        silent = f"The database does not answer since {self._silent_since}." if self._silent_since else None
        return " ".join(filter(None, (silent, self._pauses.reason, folder))) or None

    def _listen(self, pipeline: Pipeline) -> None:
        """Note since when the database does not answer: its own thread waits in the question and cannot say so."""
        silent_s = pipeline.silent_for_s()
        if silent_s is None:
            if self._silent_since is not None:
                self._log.info("database_answers")
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - silent_s))
            self._log.warning("database_silent", since=self._silent_since)

    def _is_well(self, pipeline: Pipeline) -> bool:
        moved = pipeline.beats != self._seen_beats or self._pauses.attempts != self._seen_attempts
        self._seen_beats, self._seen_attempts = pipeline.beats, self._pauses.attempts
        return moved or pipeline.idle

    def _drain(self, pipeline: Pipeline, state: StateFile) -> None:
        self._notifier.send(STOPPING="1", STATUS=f"Stopping; {pipeline.in_hand} in hand.")
        self._say(state, pipeline, "stopping")
        whole = pipeline.stop(self._config.service.drain_s)
        if not whole and pipeline.failure is None:
            self._log.warning("unfinished", in_hand=pipeline.in_hand, note="taken up again at the next start")
        failure = self._failure_of(pipeline)
        self._say(state, pipeline, "failed" if failure is not None else "stopped", reason=str(failure) if failure else None)
        self._log.info("stopped", reason=self._stop_reason, **vars_of(pipeline.totals))

    def _failure_of(self, pipeline: Pipeline) -> BaseException | None:
        failure = pipeline.failure
        # Giving up on an absent database while stopping is not a failure: nothing is lost.
        return None if failure is None or (isinstance(failure, GaveUp) and self._stop.is_set()) else failure

    def _raise_failure(self, pipeline: Pipeline) -> None:
        failure = self._failure_of(pipeline)
        if failure is None:
            return
        self._log.error("stage_failed", message=str(failure), exc_info=failure)
        if isinstance(failure, WbcdError):
            raise failure
        raise StageFailed(f"{type(failure).__name__}: {failure}") from failure

    def _pause_changed(self, cause: str, reason: str | None) -> None:
        if reason is None:
            self._log.info("resumed", cause=cause)
        else:
            self._log.warning("paused", cause=cause, reason=reason)
        if cause == "output" and self._note is not None:  # the database can still be told; of its own absence it cannot
            kind = "intake_resumed" if reason is None else "intake_paused"
            self._note(kind, reason or "The output folder takes files again.")

    def _say(self, state: StateFile, pipeline: Pipeline | None, word: str, reason: str | None = None) -> None:
        totals = vars_of(pipeline.totals) if pipeline else {}
        awaiting = pipeline.awaiting if pipeline else {}
        state.write(
            {
                "state": word,
                "reason": reason or self._waits_for,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "version": __version__,
                "started_unix_s": self._started_unix_s,
                "updated_unix_s": time.time(),
                "heartbeat_s": self._config.service.heartbeat_s,
                "watch_dir": str(self._config.watch.dir),
                "also_watched_by": [str(other) for other in self._others],
                "unreadable_folders": [str(folder) for folder in self._watcher.unreadable[:SHOWN_FOLDERS]],
                "ignored_files": {"count": self._watcher.ignored.count, "examples": self._watcher.ignored.examples},
                "recipe": self._config.recipe.recipe_id,
                "waiting": len(self._backlog),
                "in_hand": pipeline.in_hand if pipeline else 0,
                "since_start": totals,
                "awaiting": len(awaiting),
                "awaiting_examples": dict(islice(awaiting.items(), SHOWN_FOLDERS)),
                "channels": pipeline.statistics() if pipeline else {},
            }
        )
        if state.problem != self._state_problem:
            self._state_problem = state.problem
            (self._log.warning if state.problem else self._log.info)("state_file", problem=state.problem)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a drained stop; a second SIGINT is obeyed at once. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(number: int, _frame: Any) -> None:
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.stop(signal.Signals(number).name)

        before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def vars_of(totals: Any) -> dict[str, int]:
    """The counts as a dictionary."""
    return {name: getattr(totals, name) for name in totals.__slots__}
