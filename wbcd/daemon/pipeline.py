"""The line as threads: read -> examine -> classify -> store, joined by bounded channels.

A bad item never stops it; a bad stage always does. An error that may pass (a share that fails, a reader that was ended, a
copy that stalled) is tried again after growing waits, until the limit of tries. An exception without a name is first held
to be the item's, which is tried again likewise; when :data:`STAGE_SUSPECTED_AFTER` different items in a row fail so, it is
the stage's (:class:`StageFailed`). Each try is counted durably before the work begins; an item that was begun before and
has no outcome is worked on alone, so that one which kills the process condemns no neighbour; beyond the limit of tries it
is first given to a child process, for a machine that was switched off at the wrong moments must not condemn a good file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from wbcd.config import Config
from wbcd.daemon import line
from wbcd.daemon.channel import Channel, Closed, Crew, take_batch
from wbcd.daemon.desk import Desk, GaveUp, LedgerLike, Patience, Pauses
from wbcd.daemon.drift import DRIFT, DriftWatch
from wbcd.daemon.faults import FaultPoints
from wbcd.daemon.identity import unread
from wbcd.daemon.line import End, ExaminedCell, Part, Timing, conclude, examine, finish, predict, to_classify
from wbcd.daemon.stages import Stages
from wbcd.daemon.trial import Trial, poison_of, try_in_child
from wbcd.errors import Incomplete, InputError, NotReadable, Poison, StageFailed, Unforeseen, WbcdError
from wbcd.records import Acquisition, MeasuredCell, Outcome, Payload, SetAside

STAGE_SUSPECTED_AFTER = 3
DUPLICATE_IN_HAND_RETRY_S = 1.0
SUSPECT_RETRY_S = 1.0


class Log(Protocol):
    """The part of a structlog logger that the line uses."""

    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...


@dataclass(slots=True)
class Job:
    """One acquisition in hand. ``cells`` fills up in the classify thread."""

    acquisition: Acquisition
    tries: int
    timing: Timing
    cells: list[MeasuredCell] = field(default_factory=list)
    error: WbcdError | None = None


@dataclass(slots=True)
class Totals:
    """What this process has done since its start."""

    measured: int = 0
    rejected: int = 0
    set_aside: int = 0
    duplicates: int = 0
    cells: int = 0

    def count(self, outcome: Outcome) -> None:
        """Add one outcome."""
        setattr(self, outcome.kind, getattr(self, outcome.kind) + 1)
        if outcome.kind == "measured":
            self.cells += sum(cell.verdict.accepted for cell in outcome.cells)

    def sentence(self) -> str:
        """For STATUS= and the log."""
        return (
            f"{self.measured} measured ({self.cells} cells), {self.rejected} rejected, {self.set_aside} set aside, "
            f"{self.duplicates} duplicates"
        )


class _Stopping(Exception):
    """The daemon is to stop, and the file in hand is not begun yet: the next start takes it up."""


class FailureWatch:
    """Tells an item's unforeseen exception from a broken stage: by how many different items in a row it struck."""

    def __init__(self, limit: int = STAGE_SUSPECTED_AFTER) -> None:
        self._limit = limit
        self._struck: set[str] = set()

    def item_went_through(self) -> None:
        """The stages work."""
        self._struck.clear()

    def item_failed(self, content_id: str) -> bool:
        """True when the stage is to blame."""
        self._struck.add(content_id)
        return len(self._struck) >= self._limit


class InHand:
    """The jobs that are begun and have no outcome yet, by content id."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()

    def add(self, job: Job) -> None:
        """The job is begun."""
        with self._changed:
            self._jobs[job.acquisition.content_id] = job

    def get(self, content_id: str) -> Job | None:
        """The job, if it is in hand."""
        with self._changed:
            return self._jobs.get(content_id)

    def remove(self, content_id: str) -> None:
        """The job has its outcome, or will be begun again later."""
        with self._changed:
            self._jobs.pop(content_id, None)
            self._changed.notify_all()

    def wait_until_empty(self, over: Callable[[], bool]) -> None:
        """Until nothing is in hand, or ``over`` says that the line has failed."""
        with self._changed:
            while self._jobs and not over():
                self._changed.wait(0.25)

    def __len__(self) -> int:
        with self._changed:
            return len(self._jobs)


class Pipeline:
    """The threads of the daemon. Paths go in by :meth:`offer`; each ends in one committed outcome."""

    def __init__(
        self,
        config: Config,
        stages: Stages,
        open_ledger: Callable[[], LedgerLike],
        *,
        log: Log,
        faults: FaultPoints | None = None,
        pauses: Pauses | None = None,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
        trial: Trial | None = None,
    ) -> None:
        self._config = config
        self._trial = trial or (lambda path: try_in_child(config, path, beat=self._beat))
        self._recipe = config.recipe
        self._stages = stages
        self._log = log
        self._faults = faults or FaultPoints()
        self._on_outcome = on_outcome
        self.pauses = pauses or Pauses()
        self.totals = Totals()
        self._patience = Patience(self.pauses)
        self._crew = Crew()
        self._failures = FailureWatch()
        self._in_hand = InHand()
        self._suspects: set[str] | None = None
        self._drift = DriftWatch()
        self._later: list[tuple[float, Path]] = []
        self._later_lock = threading.Lock()
        self._stopping = threading.Event()
        self.beats = 0
        batch = config.classification.max_batch
        self._arrivals: Channel[Path] = self._crew.channel("arrivals", 16, "paths only; enough that the reader never waits")
        self._payloads: Channel[tuple[Job, Payload]] = self._crew.channel("payloads", 1, "13-26 MB each; one read ahead")
        self._parts: Channel[Part] = self._crew.channel("parts", max(2, batch), "11 MB a cell; one batch ahead")
        self._desk = Desk(open_ledger, self._crew, self._patience)

    # --- from outside ---

    def start(self) -> None:
        """Start the threads."""
        self._crew.start("store", self._desk.serve)
        self._crew.start("read", self._read)
        self._crew.start("examine", self._examine)
        self._crew.start("classify", self._classify)

    @property
    def ready(self) -> bool:
        """True when the database is open."""
        return self._desk.opened.is_set()

    @property
    def openings(self) -> int:
        """One more each time that another database has taken the place of the last: then what was counted may be so no more."""
        return self._desk.openings

    def silent_for_s(self) -> float | None:
        """How long the database has not answered; None while it does."""
        return self._desk.silent_for_s()

    @property
    def failure(self) -> BaseException | None:
        """What stopped the line, or None."""
        return self._crew.failure

    def offer(self, path: Path) -> bool:
        """Take a settled path if there is room now. Raises Broken or Closed when the line is over."""
        return self._arrivals.offer(path)

    def due(self, now_s: float) -> list[Path]:
        """The paths to look at again now, by the monotonic clock."""
        with self._later_lock:
            ready = [path for when, path in self._later if when <= now_s]
            self._later = [(when, path) for when, path in self._later if when > now_s]
        return ready

    @property
    def awaited(self) -> int:
        """Paths that will be looked at again later."""
        with self._later_lock:
            return len(self._later)

    @property
    def idle(self) -> bool:
        """Verified: nothing in hand, every channel empty, every thread waiting for work."""
        statistics = self._crew.statistics()
        return len(self._in_hand) == 0 and all(each.length == 0 and each.waiting_to_take > 0 for each in statistics)

    @property
    def in_hand(self) -> int:
        """Acquisitions begun and not yet stored."""
        return len(self._in_hand)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Each channel's length, peak and capacity."""
        return {
            each.name: {"length": each.length, "peak": each.peak, "capacity": each.capacity, "reason": each.reason}
            for each in self._crew.statistics()
        }

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Write an event beside the outcomes."""
        self._desk.tell(lambda ledger: ledger.event(kind, message, **fields))

    def end_pause(self, message: str) -> None:
        """Write that intake goes on, if the last event says that it is paused: by a daemon that ended so."""
        self._desk.tell(lambda ledger: ledger.end_pause(message))

    def forget_lost(self, folder: Path) -> None:
        """Forget what was begun from ``folder`` and left it while no daemon was watching."""

        def work(ledger: LedgerLike) -> None:
            begun = [Path(one.path) for one in ledger.unfinished()]
            self._forget(ledger, [path for path in begun if path.is_relative_to(folder) and _is_gone(path)])

        self._desk.tell(work)

    def forget(self, paths: Sequence[Path]) -> bool:
        """These have left the folder; False when the store has no room to hear of it now."""
        return self._desk.try_tell(lambda ledger: self._forget(ledger, paths))

    def sift(self, paths: Sequence[Path], keep: Callable[[list[Path]], None]) -> bool:
        """``keep`` is given those that are not counted as they lie there, in order, in the store's thread.

        False when the store has no room for the question now.
        """

        def counted(path: Path, sighted: tuple[int, int] | None) -> bool:
            found = self._stages.look(path) if sighted is not None else None
            return found is not None and (found.size, found.mtime_ns) == sighted

        def work(ledger: LedgerLike) -> None:
            known = ledger.counted(paths, self._recipe.recipe_id, self._stages.model_id)
            keep([path for path in paths if not counted(path, known.get(path))])
            self._beat()

        return self._desk.try_tell(work)

    def _forget(self, ledger: LedgerLike, paths: Sequence[Path]) -> None:
        with self._abandoned_discarded(ledger):
            for path in paths:
                ledger.gone(path)

    def _sight(self, ledger: LedgerLike, acquisition: Acquisition) -> None:
        with self._abandoned_discarded(ledger):
            ledger.sighted(acquisition.path, acquisition.size_bytes, acquisition.mtime_ns, acquisition.content_id)
        self._faults.passing("after_sighted")

    @contextmanager
    def _abandoned_discarded(self, ledger: LedgerLike) -> Iterator[None]:
        """What was begun and lies nowhere any more will have no outcome: no row will name the volumes kept of it."""
        if self._stages.discard is None:
            yield
            return
        begun = {one.content_id for one in ledger.unfinished()}
        yield
        for content_id in begun.difference(one.content_id for one in ledger.unfinished()):
            if self._in_hand.get(content_id) is None:
                self._discard(ledger, content_id)

    def _discard(self, ledger: LedgerLike, content_id: str) -> None:
        """Remove the volumes of a content, unless an outcome names them (another daemon's, of the same folders)."""
        discard = self._stages.discard
        if discard is not None and ledger.known(content_id, self._recipe.recipe_id, self._stages.model_id) is None:
            discard(content_id)

    def stop(self, timeout_s: float) -> bool:
        """Finish what is begun and end; False when something was left unfinished (it is taken up at the next start)."""
        self._stopping.set()
        self._arrivals.close()
        whole = self._crew.join(timeout_s)
        if not whole:
            self._patience.give_up()
            whole = self._crew.join(5.0) and len(self._in_hand) == 0
        return whole

    # --- read ---

    def _read(self) -> None:
        for path in self._arrivals:
            if not self._stopping.is_set():
                self._take_up(path)
                self._beat()
        self._payloads.close()

    def _take_up(self, path: Path) -> None:
        job = self._begun(path)
        if job is None:
            return
        if job.tries > 1:  # it was begun before: alone, so that it is to blame if the process dies again
            self._in_hand.wait_until_empty(self._over)
        self._in_hand.add(job)
        poison = self._poison(job)
        if poison is not None:
            self._settle(job, SetAside(job.acquisition, poison))
            return
        self._read_payload(job)
        if job.tries > 1:
            self._in_hand.wait_until_empty(self._over)

    def _poison(self, job: Job) -> Poison | None:
        """Beyond the limit of tries, a trial in a child process tells poison from bad luck."""
        if job.tries <= self._config.limits.max_tries:
            return None
        self._log.warning("trial", content_id=job.acquisition.content_id, path=str(job.acquisition.path), tries=job.tries)
        return poison_of(job.acquisition.path, job.tries - 1, self._trial(job.acquisition.path))

    def _read_payload(self, job: Job) -> None:
        job.timing.skip()
        try:
            job.acquisition, payload = self._stages.read(job.acquisition)
        except Exception as error:  # noqa: BLE001 - one file's failure is recorded as its own, with its class
            self._end(job, End(job.acquisition, error=line.as_error_of_item(error, "read")))
            return
        job.timing.done("read")
        self._faults.passing("after_read")
        self._payloads.put((job, payload))

    def _begun(self, path: Path) -> Job | None:
        """The job for a path, its try counted; None when there is nothing to do for it (now)."""
        acquisition = self._identified(path)
        if acquisition is None:
            return None
        if self._in_hand.get(acquisition.content_id) is not None:
            self._look_again(path, DUPLICATE_IN_HAND_RETRY_S)  # a copy of what is in work: a duplicate once that is stored
            return None
        self._desk.tell(lambda ledger: self._sight(ledger, acquisition))
        stored = self._known(acquisition.content_id)
        if stored is not None:
            if str(stored.path) != str(path):  # else it is the very file: forgotten while its folder was away, or touched
                self._note_duplicate(acquisition)
            return None
        if self._postponed(acquisition):
            return None
        tries = self._desk.ask(lambda ledger: ledger.begin(acquisition))
        self._faults.passing("after_begin")
        return Job(acquisition, tries, Timing(beat=self._beat))

    def _postponed(self, acquisition: Acquisition) -> bool:
        """Once a start, what awaits a trial lets everything else go first: trials take long, and a process that is ended
        again and again before one is over would never come to the next file."""
        if self._suspects is None:
            most = self._config.limits.max_tries
            begun = self._desk.ask(lambda ledger: ledger.unfinished())
            self._suspects = {one.content_id for one in begun if one.tries >= most}
        if acquisition.content_id not in self._suspects:
            return False
        self._suspects.remove(acquisition.content_id)
        self._look_again(acquisition.path, SUSPECT_RETRY_S)
        return True

    def _identified(self, path: Path) -> Acquisition | None:
        found = self._stages.look(path)
        seen = None if found is None else self._desk.ask(lambda ledger: ledger.recall(path, found.size, found.mtime_ns))
        if seen is not None and not seen.startswith("unread-") and self._known(seen) is not None:
            return None  # this very file is counted already
        try:
            acquisition = self._stages.identify(path, beat=self._hashed_on)
        except _Stopping:
            return None
        except Incomplete:  # it changed while its bytes were hashed: the watcher tells when it rests again
            self._look_again(path, max(self._config.watch.quiet_s, DUPLICATE_IN_HAND_RETRY_S))
            return None
        except (InputError, OSError) as error:
            self._end_unread(path, error, sight=seen is None)
            return None
        if seen is not None and seen.startswith("unread-"):  # its bytes can be read now: the ticket in their place is over
            self._desk.tell(lambda ledger: ledger.gone(path))
        self._faults.passing("after_identify")
        return acquisition

    def _hashed_on(self) -> None:
        """After each block: a large file on a slow share is progress, and shall not hold up a stop; it is not begun yet."""
        if self._stopping.is_set() or self._over():
            raise _Stopping
        self._beat()

    def _end_unread(self, path: Path, error: InputError | OSError, *, sight: bool) -> None:
        """A file that gives no bytes has no content id; its path, size and mtime stand for it. One that is gone is no file.

        ``sight``: nothing better is known of the path, so that the ledger may remember this of it.
        """
        if _is_gone(path):
            self._log.info("vanished", path=str(path))
            self._desk.tell(lambda ledger: ledger.gone(path))
            return
        if isinstance(error, OSError):
            error = NotReadable(f"{path.name} cannot be opened: {error.strerror}.")
        acquisition = unread(path)
        if self._known(acquisition.content_id) is not None:
            return
        if sight:
            self._desk.tell(
                lambda ledger: ledger.sighted(path, acquisition.size_bytes, acquisition.mtime_ns, acquisition.content_id)
            )
        tries = self._desk.ask(lambda ledger: ledger.begin(acquisition))
        job = Job(acquisition, tries, Timing(beat=self._beat))
        self._in_hand.add(job)
        self._end(job, End(acquisition, error=error))

    def _known(self, content_id: str) -> Any:
        recipe_id, model_id = self._recipe.recipe_id, self._stages.model_id
        return self._desk.ask(lambda ledger: ledger.known(content_id, recipe_id, model_id))

    def _note_duplicate(self, acquisition: Acquisition) -> None:
        message = f"{acquisition.path.name} has the content of an acquisition that is stored already; it is not counted again."
        self.event("duplicate", message, content_id=acquisition.content_id, path=str(acquisition.path))
        self.totals.duplicates += 1
        self._log.info("duplicate", content_id=acquisition.content_id, path=str(acquisition.path))

    # --- examine ---

    def _examine(self) -> None:
        for job, payload in self._payloads:
            self._examine_one(job, payload)
        self._parts.close()

    def _examine_one(self, job: Job, payload: Payload) -> None:
        job.timing.skip()
        for part in examine(job.acquisition, payload, self._stages, self._recipe, job.timing):
            if isinstance(part, End):
                self._faults.passing("after_examine")
            self._parts.put(part)

    # --- classify ---

    def _classify(self) -> None:
        settings = self._config.classification
        while True:
            try:
                parts = take_batch(
                    self._parts,
                    weight=lambda part: len(to_classify([part])),
                    max_weight=settings.max_batch,
                    max_latency_s=settings.max_latency_s,
                )
            except Closed:
                break
            self._classify_batch(parts)
            self._beat()
        self._desk.close()

    def _classify_batch(self, parts: list[Part]) -> None:
        chosen = to_classify(parts)
        started = time.monotonic()
        predictions = self._predict(chosen)
        share_s = (time.monotonic() - started) / max(1, len(chosen))
        self._faults.passing("after_classify")
        for part in parts:
            job = self._in_hand.get(part.acquisition.content_id)
            if job is None:
                continue
            if isinstance(part, End):
                self._end(job, part)
            else:
                job.timing.seconds["classify"] = job.timing.seconds.get("classify", 0.0) + share_s
                self._finish(job, part, predictions.get(id(part)))

    def _predict(self, chosen: list[ExaminedCell]) -> dict[int, Any]:
        """Predictions by part; where the batch fails, cell by cell, so that a bad one is found and the rest go on."""
        try:
            return {id(part): prediction for part, prediction in zip(chosen, predict(chosen, self._stages), strict=True)}
        except Exception as error:  # noqa: BLE001 - re-raised there unless it may be one item's
            wrapped = line.as_error_of_item(error, "classify")
            if len(chosen) == 1:
                self._blame(chosen[0], wrapped)
                return {}
        found: dict[int, Any] = {}
        for part in chosen:
            found |= self._predict([part])
        return found

    def _blame(self, part: ExaminedCell, error: WbcdError) -> None:
        job = self._in_hand.get(part.acquisition.content_id)
        if job is not None:
            job.error = job.error or error

    def _finish(self, job: Job, part: ExaminedCell, prediction: Any) -> None:
        if job.error is not None:
            return
        try:
            cell = self._patience("output", lambda: finish(part, prediction, self._stages))
            self._faults.passing("after_keep")
            job.cells.append(cell)
        except GaveUp:
            raise
        except Exception as error:  # noqa: BLE001 - re-raised there unless it may be this item's
            job.error = line.as_error_of_item(error, "picture")

    # --- outcome ---

    def _end(self, job: Job, end: End) -> None:
        error = job.error or end.error
        if isinstance(error, Unforeseen):
            self._log.error("unforeseen", content_id=job.acquisition.content_id, path=str(job.acquisition.path), exc_info=error)
            if self._failures.item_failed(job.acquisition.content_id):
                raise StageFailed(
                    f"{STAGE_SUSPECTED_AFTER} acquisitions in a row failed alike; the last: {error.message}"
                ) from error
        elif error is None:
            self._failures.item_went_through()
        # What another daemon of the same database has stored meanwhile is not looked at again: the commit ends its tries.
        may_pass = isinstance(error, line.MAY_PASS) and job.tries < self._config.limits.max_tries
        if may_pass and error is not None and self._known(job.acquisition.content_id) is None:
            self._again_later(job, error)
            return
        ended = End(end.acquisition, end.verdict, error)
        self._settle(job, conclude(ended, job.cells, job.timing.total_s))

    def _again_later(self, job: Job, error: WbcdError) -> None:
        watch = self._config.watch
        wait_s = line.retry_after_s(job.tries, quiet_s=watch.quiet_s, rescan_s=watch.rescan_s)
        self._in_hand.remove(job.acquisition.content_id)
        self._look_again(job.acquisition.path, wait_s)
        self._log.info(
            "again_later",
            content_id=job.acquisition.content_id,
            path=str(job.acquisition.path),
            reason=error.code,
            message=error.message,
            tries=job.tries,
            wait_s=wait_s,
        )

    def _look_again(self, path: Path, wait_s: float) -> None:
        with self._later_lock:
            self._later.append((time.monotonic() + wait_s, path))

    def _settle(self, job: Job, outcome: Outcome) -> None:
        self._desk.tell(lambda ledger: self._commit(ledger, job, outcome))

    def _commit(self, ledger: LedgerLike, job: Job, outcome: Outcome) -> None:
        self._faults.passing("before_commit")
        if isinstance(outcome, SetAside):
            self._discard(ledger, outcome.acquisition.content_id)
        started = time.monotonic()
        ledger.commit(outcome, self._recipe.recipe_id, self._stages.model_id)
        job.timing.seconds["commit"] = time.monotonic() - started
        self._faults.passing("after_commit")
        drifted = self._drift.message(outcome)
        if drifted is not None:
            self._log.warning(DRIFT, message=drifted)
            ledger.event(DRIFT, drifted)
        self.totals.count(outcome)
        self._log.info("outcome", **outcome_fields(outcome, job.timing.seconds))
        self._on_outcome(outcome)
        self._in_hand.remove(job.acquisition.content_id)
        self._beat()

    def _beat(self) -> None:
        self.beats += 1

    def _over(self) -> bool:
        return self._crew.failure is not None


def _is_gone(path: Path) -> bool:
    """True when there is nothing of that name; a path that cannot be examined is there."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def outcome_fields(outcome: Outcome, seconds: dict[str, float]) -> dict[str, Any]:
    """The one log event of an outcome."""
    fields: dict[str, Any] = {
        "content_id": outcome.acquisition.content_id,
        "path": str(outcome.acquisition.path),
        "sample": outcome.acquisition.sample_id,
        "outcome": outcome.kind,
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
    }
    if outcome.kind == "measured":
        fields["cells"] = [cell.prediction.label for cell in outcome.cells if cell.prediction is not None]
    elif outcome.kind == "rejected":
        fields |= {"reason": outcome.reason, "message": outcome.message}
    else:
        fields |= {"reason": outcome.error.code, "message": outcome.error.sentence()}
    return fields
