"""The line as threads: read -> examine -> classify -> store, joined by bounded channels.

A bad item never stops it; a bad stage always does. An error that may pass (a share that fails, a reader that was ended, a
copy that stalled) is tried again after growing waits, until the limit of tries. An exception without a name is first held
to be the item's, which is tried again likewise; when :data:`STAGE_SUSPECTED_AFTER` different items in a row fail so, it is
the stage's (:class:`StageFailed`). Each try is counted durably before the work begins; an item that was begun before and
has no outcome is worked on alone, so that one which kills the process condemns no neighbour; beyond the limit of tries it
is first given to a child process, for a machine that was switched off at the wrong moments must not condemn a good file.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from wbcd.acquisition.companions import ABSENT_STATE, Folders, has_companions, state_on_disk
from wbcd.config import Config
from wbcd.daemon import line
from wbcd.daemon.channel import Channel, Closed, Crew, take_batch
from wbcd.daemon.desk import Desk, GaveUp, LedgerLike, Patience, Pauses
from wbcd.daemon.drift import DRIFT, DriftWatch
from wbcd.daemon.faults import FaultPoints
from wbcd.daemon.identity import UNREAD, unread
from wbcd.daemon.line import End, ExaminedCell, Part, Timing, conclude, examine, finish, predict, to_classify
from wbcd.daemon.reopening import ABSENT, CONDITIONAL, conditions_of, is_open_again
from wbcd.daemon.stages import Stages, with_companions
from wbcd.daemon.trial import Trial, poison_of, try_in_child
from wbcd.errors import (
    Incomplete,
    InputError,
    MissingCompanion,
    NotReadable,
    Poison,
    StageFailed,
    Unforeseen,
    VolumeGone,
    WbcdError,
)
from wbcd.records import Acquisition, MeasuredCell, Outcome, Payload, SetAside

STAGE_SUSPECTED_AFTER = 3
DUPLICATE_IN_HAND_RETRY_S = 1.0
SUSPECT_RETRY_S = 1.0
REHASHED = "rehashed"
ABSENT_AGAIN_AFTER = dt.timedelta(minutes=10)


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
    concluded_at: dt.datetime | None = None


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


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A file that waits for another: until when (monotonic s), in which state it was, and what for."""

    until_s: float
    state: str
    message: str


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

    def holds(self, path: Path) -> bool:
        """True when a job of this very path is in hand."""
        with self._changed:
            return any(job.acquisition.path == path for job in self._jobs.values())

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
        companion_wait_s: float | None = None,
    ) -> None:
        self._config = config
        self._companion_wait_s = config.watch.companion_wait_s if companion_wait_s is None else companion_wait_s
        self._conditions = conditions_of(config)
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
        self._awaiting: dict[Path, _Awaited] = {}
        self._companions: dict[Path, str] = {}
        self._companions_known = False
        self._rehashed: set[Path] = set()
        self._copies: dict[Path, tuple[str, int, int, str]] = {}
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

        def work(ledger: LedgerLike) -> None:
            known = ledger.counted(paths, self._recipe.recipe_id, self._stages.model_id)
            states: dict[Path, str] = {}
            left = []
            folders = Folders()
            for path in paths:
                file = known.get(path)
                found = self._stages.look(path, file.companions, folders=folders) if file is not None else None
                if file is None or found is None or not file.is_as(found.size, found.mtime_ns, found.token):
                    left.append(path)
                elif not file.state:
                    states[path] = found.token
            if states:
                ledger.note_states(states)
            keep(left)
            self._beat()

        return self._desk.try_tell(work)

    def _forget(self, ledger: LedgerLike, paths: Sequence[Path]) -> None:
        with self._abandoned_discarded(ledger):
            for path in paths:
                self._awaiting.pop(path, None)
                ledger.gone(path)

    def _sight(self, ledger: LedgerLike, acquisition: Acquisition) -> None:
        with self._abandoned_discarded(ledger):
            ledger.sighted(
                acquisition.path,
                acquisition.size_bytes,
                acquisition.mtime_ns,
                acquisition.content_id,
                state=acquisition.state,
                companions=acquisition.companions,
            )
        self._note_companions(acquisition)
        self._faults.passing("after_sighted")

    @contextmanager
    def _abandoned_discarded(self, ledger: LedgerLike) -> Iterator[None]:
        """What was begun and lies nowhere any more will have no outcome: no row will name the volumes kept of it."""
        if self._stages.volumes_root is None:
            yield
            return
        begun = {one.content_id for one in ledger.unfinished()}
        yield
        for content_id in begun.difference(one.content_id for one in ledger.unfinished()):
            if self._in_hand.get(content_id) is None:
                self._discard(ledger, content_id)

    def _discard(self, ledger: LedgerLike, content_id: str) -> None:
        """Remove the volumes of a content that no row of any recipe and model names."""
        discard = self._stages.discard
        ledger.discard_volumes(content_id, self._config.output.dir, lambda named: discard(content_id, named))

    def settle_volumes(self) -> None:
        """Remove what a daemon that was killed kept and no row came to name; what is in hand is left alone."""
        root = self._config.output.dir

        def work(ledger: LedgerLike) -> None:
            for content_id in ledger.volumes_to_settle(root):
                if self._in_hand.get(content_id) is None:
                    self._discard(ledger, content_id)
                self._beat()

        self._desk.tell(work)

    # --- what is not final ---

    def works_by(self) -> None:
        """The recipe and the model are asked for from now on: their results are the current ones."""
        self._desk.tell(lambda ledger: self._ask_for_all(ledger))

    def _ask_for_all(self, ledger: LedgerLike) -> None:
        if ledger.ask_for_all(self._recipe.recipe_id, self._stages.model_id):
            self._log.info("works_by", recipe=self._recipe.recipe_id, model=self._stages.model_id)

    def reopen(self, *, absent: bool) -> bool:
        """Open again what today's limits might let pass, and (``absent``) what a share that was away refused; take up all that
        was opened, by whom ever. False when the store has no room to hear of it now."""
        reasons = (*CONDITIONAL, *ABSENT) if absent else CONDITIONAL

        def work(ledger: LedgerLike) -> None:
            key = self._recipe.recipe_id, self._stages.model_id
            found = ledger.set_aside(*key, reasons=reasons)
            again = [one for one in found if not one.content_id.startswith(UNREAD) and self._is_open_again(one)]
            if again:
                ledger.reopen([one.run_id for one in again], "the site's limits, wbcd or the share are others now")
            for path in {Path(one.path) for one in found if absent and one.content_id.startswith(UNREAD)}:
                self._take_up_again(path)
            self._take_reopened(ledger)

        return self._desk.try_tell(work)

    def _is_open_again(self, one: Any) -> bool:
        if one.reason in ABSENT:  # not at each of a row of starts
            return bool(dt.datetime.now(dt.UTC) - one.finished_at > ABSENT_AGAIN_AFTER)
        return is_open_again(one.reason, one.conditions, self._conditions)

    def _take_up_again(self, path: Path) -> None:
        """At once, if it lies in the folder that is watched and is not in hand or waiting."""
        watched = self._config.watch.dir
        if watched is not None and not path.is_relative_to(watched.absolute()):
            return
        if path not in self._awaiting and not self._in_hand.holds(path) and path not in self._waiting_paths():
            self._look_again(path, 0.0)

    def take_reopened(self) -> bool:
        """Take up what was opened again (`wbcd retry`); False when the store has no room to hear of it now."""
        return self._desk.try_tell(self._take_reopened)

    def _take_reopened(self, ledger: LedgerLike) -> None:
        for path in ledger.reopened(self._recipe.recipe_id, self._stages.model_id):
            self._take_up_again(path)

    def rehash(self, most: int, every_h: float) -> bool:
        """When it is time, by the journal, hash a sample of counted files again, as if nothing were known of their state.

        The first time comes as long after the first outcome. False when the store has no room for the question now.
        """

        def work(ledger: LedgerLike) -> None:
            last = ledger.last_event_at(REHASHED) or ledger.first_outcome_at()
            if last is None or dt.datetime.now(dt.UTC) - last < dt.timedelta(hours=every_h):
                return
            chosen = ledger.counted_sample(self._recipe.recipe_id, self._stages.model_id, most)
            self._rehashed.update(chosen)
            for path in chosen:
                self._take_up_again(path)
            ledger.event(REHASHED, f"{len(chosen)} counted files are hashed again.", files=len(chosen))
            self._log.info(REHASHED, files=len(chosen))

        return self._desk.try_tell(work)

    @property
    def awaiting(self) -> dict[str, str]:
        """Files that wait for one that belongs to them, with the sentence that says for which."""
        return {str(path): awaited.message for path, awaited in list(self._awaiting.items())}

    def _waiting_paths(self) -> set[Path]:
        with self._later_lock:
            return {path for _, path in self._later}

    def _note_companions(self, acquisition: Acquisition) -> None:
        """Companions that no rule of names tells are watched from here on: each is known by what its sample's file says."""
        if not has_companions(acquisition.path):
            for name, digest in acquisition.companions:
                path = acquisition.path.absolute().parent / name
                self._companions.setdefault(path, ABSENT_STATE if digest is None else state_on_disk(path))

    def look_at_companions(self) -> bool:
        """Take up what names a companion that has come or changed since; False when the store has no room to hear of it now.

        For companions that only a file itself names. At a start every file is held against its own; this is for later.
        """

        def work(ledger: LedgerLike) -> None:
            if not self._companions_known:
                for name in ledger.companion_names():
                    self._companions.setdefault(Path(name), state_on_disk(Path(name)))
                self._companions_known = True
            for path, before in list(self._companions.items()):
                now = state_on_disk(path)
                if now != before:
                    self._companions[path] = now
                    for dependent in ledger.dependents(path):
                        self._look_again(dependent, self._config.watch.quiet_s)

        return self._desk.try_tell(work)

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
            if not self._stopping.is_set() and not self._is_copy_in_hand(path):
                self._take_up(path)
                self._beat()
        self._payloads.close()

    def _is_copy_in_hand(self, path: Path) -> bool:
        """True for a copy, as it was hashed, of what is in work still: no progress, and nothing to be read again."""
        known = self._copies.get(path)
        if known is None:
            return False
        found = self._stages.look(path)
        if found is None or (found.size, found.mtime_ns, found.token) != known[1:] or self._in_hand.get(known[0]) is None:
            del self._copies[path]
            return False
        self._look_again(path, DUPLICATE_IN_HAND_RETRY_S)
        return True

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
        before = job.acquisition
        try:
            read, payload = self._stages.read(before)
            job.acquisition = self._with_companions(before, read)
        except Exception as error:  # noqa: BLE001 - one file's failure is recorded as its own, with its class
            if isinstance(error, MissingCompanion) and error.companion:
                job.acquisition = self._with_companions(before, replace(before, companions=((error.companion, None),)))
            self._end(job, End(job.acquisition, error=line.as_error_of_item(error, "read")))
            return
        job.timing.done("read")
        self._faults.passing("after_read")
        self._payloads.put((job, payload))

    def _with_companions(self, before: Acquisition, read: Acquisition) -> Acquisition:
        """The ticket with its companions; what only its reader could name is remembered now."""
        ticket = with_companions(self._stages, before, read)
        if ticket.companions != before.companions:
            self._desk.tell(lambda ledger: self._sight(ledger, ticket))
        return ticket

    def _begun(self, path: Path) -> Job | None:
        """The job for a path, its try counted; None when there is nothing to do for it (now)."""
        acquisition = self._identified(path)
        if acquisition is None:
            return None
        if self._in_hand.get(acquisition.content_id) is not None:
            self._look_again(path, DUPLICATE_IN_HAND_RETRY_S)  # a copy of what is in work: a duplicate once that is stored
            found = self._stages.look(path)
            if found is not None:
                self._copies[path] = (acquisition.content_id, found.size, found.mtime_ns, found.token)
            return None
        self._desk.tell(lambda ledger: self._sight(ledger, acquisition))
        stored = self._known(acquisition.content_id)
        if stored is not None:
            if str(stored.path) != str(path.absolute()):  # else the very file: forgotten while its folder was away, or touched
                self._note_duplicate(acquisition)
            return None
        if self._postponed(acquisition):
            return None
        root = self._stages.volumes_root
        tries = self._desk.ask(lambda ledger: ledger.begin(acquisition, volumes_root=root))
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
        again = path in self._rehashed
        self._rehashed.discard(path)
        file = self._desk.ask(lambda ledger: ledger.remembered(path))
        others = () if file is None else tuple(file.companions)
        found = self._stages.look(path, others)
        as_it_was = file is not None and found is not None and file.is_as(found.size, found.mtime_ns, found.token)
        unread_before = file is not None and file.content_id.startswith(UNREAD)
        if as_it_was and not unread_before and not again and self._known(file.content_id) is not None:
            return None  # this very file is counted already
        # Where its own state is as it was, only companions have changed: its bytes need not be hashed again.
        same_bytes = file is not None and found is not None and not unread_before and not again and _same_file(file, found)
        try:
            acquisition = (
                Acquisition(file.content_id, path, file.size_bytes, file.mtime_ns)
                if same_bytes
                else self._stages.identify(path, beat=self._hashed_on)
            )
            companions = self._stages.companions(path, others)
        except _Stopping:
            return None
        except Incomplete:  # it changed while its bytes were hashed: the watcher tells when it rests again
            self._look_again(path, max(self._config.watch.quiet_s, DUPLICATE_IN_HAND_RETRY_S))
            return None
        except (InputError, OSError) as error:
            if again and as_it_was:
                self._log.warning("rehash_failed", path=str(path), reason=str(error))
            else:
                self._end_unread(path, error, sight=not as_it_was)
            return None
        if unread_before:  # its bytes can be read now: the ticket in their place is over
            self._desk.tell(lambda ledger: ledger.retire_unread(file.content_id, path))
        self._faults.passing("after_identify")
        # The state from before the bytes were read: should they have changed since, they are read once more.
        state = "" if found is None else found.token
        return replace(acquisition, companions=companions, state=state)

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
            self._awaiting.pop(path, None)
            self._log.info("vanished", path=str(path))
            self._desk.tell(lambda ledger: ledger.gone(path))
            return
        if isinstance(error, OSError):
            error = NotReadable(f"{path.name} cannot be opened: {error.strerror}.")
        acquisition = unread(path, self._config.host)
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
        if isinstance(error, MissingCompanion) and self._waits_for_companion(job, error):
            return
        # What another daemon of the same database has stored meanwhile is not looked at again: the commit ends its tries.
        may_pass = isinstance(error, line.MAY_PASS) and not isinstance(error, MissingCompanion)
        may_pass = may_pass and job.tries < self._config.limits.max_tries
        if may_pass and error is not None and self._known(job.acquisition.content_id) is None:
            self._again_later(job, error)
            return
        ended = End(end.acquisition, end.verdict, error)
        self._settle(job, conclude(ended, job.cells, job.timing.total_s))

    def _waits_for_companion(self, job: Job, error: MissingCompanion) -> bool:
        """True while the patience for a companion lasts; it begins anew with each change of the file or its companions."""
        path, now_s = job.acquisition.path, time.monotonic()
        known = self._awaiting.get(path)
        if known is None or known.state != job.acquisition.state:
            known = _Awaited(now_s + self._companion_wait_s, job.acquisition.state, error.message)
        if now_s >= known.until_s:
            self._awaiting.pop(path, None)
            return False
        self._awaiting[path] = known
        content_id = job.acquisition.content_id
        self._desk.tell(lambda ledger: ledger.wait_for(content_id, error.message))
        self._in_hand.remove(content_id)
        self._look_again(path, known.until_s - now_s)
        self._log.info("waits_for_companion", path=str(path), message=error.message, wait_s=round(known.until_s - now_s, 1))
        return True

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
        self._awaiting.pop(job.acquisition.path, None)
        job.concluded_at = dt.datetime.now(dt.UTC)
        self._desk.tell(lambda ledger: self._commit(ledger, job, outcome))

    def _commit(self, ledger: LedgerLike, job: Job, outcome: Outcome) -> None:
        self._faults.passing("before_commit")
        started = time.monotonic()
        try:
            stored = ledger.commit(
                outcome,
                self._recipe.recipe_id,
                self._stages.model_id,
                conditions=self._conditions,
                once_per_acquisition=self._config.watch.same_acquisition == "duplicate",
                check=lambda: self._stages.demand_volumes(volumes_of(outcome)),
                at=job.concluded_at,
            )
        except VolumeGone as error:
            self._again_later(job, error)
            return
        job.timing.seconds["commit"] = time.monotonic() - started
        self._faults.passing("after_commit")
        content_id = outcome.acquisition.content_id
        if ledger.volumes_to_settle(self._config.output.dir, content_id):
            self._discard(ledger, content_id)
        if stored is None:
            self._log.info("stored_already", content_id=job.acquisition.content_id, path=str(job.acquisition.path))
            self.totals.duplicates += 1
        else:
            self._tell_stored(ledger, stored, job)
        self._in_hand.remove(job.acquisition.content_id)
        self._beat()

    def _tell_stored(self, ledger: LedgerLike, outcome: Outcome, job: Job) -> None:
        drifted = self._drift.message(outcome)
        if drifted is not None:
            self._log.warning(DRIFT, message=drifted)
            ledger.event(DRIFT, drifted)
        self.totals.count(outcome)
        self._log.info("outcome", **outcome_fields(outcome, job.timing.seconds))
        self._on_outcome(outcome)

    def _beat(self) -> None:
        self.beats += 1

    def _over(self) -> bool:
        return self._crew.failure is not None


def volumes_of(outcome: Outcome) -> list[str]:
    """The kept volumes that its cells name."""
    cells = () if isinstance(outcome, SetAside) else outcome.cells
    return [cell.tomogram_path for cell in cells if cell.tomogram_path is not None]


def _same_file(file: Any, found: Any) -> bool:
    """True when the file itself is in the state in which it was hashed, whatever has become of its companions."""
    own = file.state.rpartition(".")[0]
    return bool(own) and (file.size_bytes, file.mtime_ns, own) == (found.size, found.mtime_ns, found.token.rpartition(".")[0])


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
