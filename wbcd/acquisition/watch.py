"""The watch folder: notifications are hints, the periodic rescan is the truth.

inotify loses events silently when its queue overflows, sees nothing that another host writes to a share, and a polling
emitter ends for good at one I/O error while its observer claims to live. So hints only bring a look forward; every
``rescan_s`` the whole folder is listed, and whatever is there is found then. The emitters are checked at the same time
and made anew when one has died or when the folder is no longer the directory it was (unmounted, moved, made again).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserverVFS

from wbcd.acquisition.beneath import subfolder
from wbcd.acquisition.candidate import FOLDER_SUFFIX, FileStat, is_candidate, stat_candidate, state_of
from wbcd.acquisition.companions import Folders, has_companions, is_companion, look
from wbcd.acquisition.ignored import Ignored
from wbcd.acquisition.mounts import lies_on_network
from wbcd.acquisition.settle import StabilityTracker
from wbcd.errors import InputError

Mode = Literal["auto", "inotify", "polling"]
MAX_HINTS = 10_000
"""More hints than this between two looks make a full scan the cheaper answer."""
_TELLING = frozenset({"created", "modified", "moved", "closed", "deleted"})
_JOIN_S = 5.0
_log = structlog.get_logger(__name__)
# Said from watchdog's thread when folders are made faster than it can listen to them; nothing is lost by it.
warnings.filterwarnings("ignore", message="Callback with id", category=RuntimeWarning, module=r"watchdog\.")
# ... and when it is being stopped: nothing that a person could act on.
logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)


class HintBox(FileSystemEventHandler):
    """Collects the candidates that notifications name; bounded, for a burst must not grow memory."""

    def __init__(self, folder: Path, limit: int = MAX_HINTS) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._paths: set[Path] = set()
        self._overflowed = False
        self._companion = False
        self._woken = False
        self.rung = threading.Event()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note the candidate an event is about. Openings and readings are left out: most of them are our own."""
        if event.event_type not in _TELLING:
            return
        for raw in (event.src_path, event.dest_path):
            if raw:
                self.hint(Path(os.fsdecode(raw)), new_folder=event.is_directory and event.event_type in ("created", "moved"))

    def hint(self, path: Path, *, new_folder: bool = False) -> None:
        """Note one path. A folder that appears may already hold files whose events were missed: then all is looked at."""
        found = candidate_of(path, self._folder)
        with self._lock:
            if found is None:
                self._overflowed |= new_folder
                self._companion |= is_companion(path.name)
            elif len(self._paths) < self._limit:
                self._paths.add(found)
            else:
                self._overflowed = True
            if found is not None or new_folder:
                self.rung.set()

    def companion_changed(self) -> bool:
        """True once after hints about files that belong to others: which, a full look tells."""
        with self._lock:
            changed, self._companion = self._companion, False
        return changed

    def take(self) -> tuple[set[Path], bool]:
        """The hinted paths since the last call, and whether there were too many to keep."""
        with self._lock:
            paths, overflowed = self._paths, self._overflowed
            self._paths, self._overflowed = set(), False
            self.rung.clear()
        return paths, overflowed

    def wake(self) -> None:
        """End the present wait, or the next one."""
        with self._lock:
            self._woken = True
            self.rung.set()

    def was_woken(self) -> bool:
        """True once after :meth:`wake`."""
        with self._lock:
            woken, self._woken = self._woken, False
        return woken


def candidate_of(path: Path, folder: Path) -> Path | None:
    """The candidate that ``path`` is or lies in, below ``folder``; None for anything else or hidden."""
    try:
        parts = path.relative_to(folder).parts
    except ValueError:
        return None
    at = folder
    for part in parts:
        if part.startswith("."):
            return None
        at = at / part
        if is_candidate(at):
            return at
    return None


def scan(folder: Path, ignored: Ignored | None = None) -> tuple[dict[Path, FileStat], list[Path]]:
    """Every candidate below ``folder`` with its state, and the subfolders that could not be listed.

    Session folders are entered, symbolic links and hidden folders are not; a candidate is never entered. What is passed over
    is counted in ``ignored``. Raises OSError when the folder itself cannot be listed.
    """
    found: dict[Path, FileStat] = {}
    unreadable: list[Path] = []
    folders = Folders()
    waiting = [""]
    base = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while waiting:
            name = waiting.pop()
            at = folder / name
            try:
                # Below the descriptor: a subfolder swapped for a link since it was listed is not entered.
                with subfolder(base, name, folder) as here, os.scandir(here) as listing:
                    entries = list(listing)
                    folders.take(at, (entry.name for entry in entries))
                    for entry in entries:
                        passed = _sort_entry(entry, at / entry.name, found, waiting, folder)
                        if passed and ignored is not None:
                            ignored.note(entry, at / entry.name, folder)
                        _add_companions(at / entry.name, found, folders)
            except (OSError, InputError):
                if not name:
                    raise
                unreadable.append(at)
    finally:
        os.close(base)
    return found, unreadable


def _sort_entry(entry: os.DirEntry[str], path: Path, found: dict[Path, FileStat], waiting: list[str], folder: Path) -> bool:
    """Take the entry for a candidate or for a folder to enter; True where it is passed over."""
    if is_candidate(path):
        state = _state(entry, path)
        if state is not None:
            found[path] = state
        return False
    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
        waiting.append(str(path.relative_to(folder)))
        return False
    return True


def _add_companions(path: Path, found: dict[Path, FileStat], folders: Folders) -> None:
    if path in found and has_companions(path):
        found[path] = replace(found[path], companions=folders.state(path))


def _state(entry: os.DirEntry[str], path: Path) -> FileStat | None:
    if path.suffix.lower() == FOLDER_SUFFIX:
        return stat_candidate(path)
    try:
        now = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # renamed between listing and looking
        return None
    except OSError:  # one bad entry must not hide the rest of its folder; it is met and recorded
        return stat_candidate(path)
    return state_of(now)


class FolderWatcher:
    """Finds settled candidates of one folder and its session folders; never writes there.

    ``mode``: "inotify", "polling", or "auto" (polling on a network file system). ``quiet_s``: a file must rest that long.
    ``newest_first``: order of what is found together. ``clock``: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Mode = "auto",
        rescan_s: float = 60.0,
        quiet_s: float = 2.0,
        poll_interval_s: float = 2.0,
        newest_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder.absolute()
        self.mode = mode
        self.rescan_s = rescan_s
        self.poll_interval_s = poll_interval_s
        self.newest_first = newest_first
        self.present = False
        self.unreadable: list[Path] = []
        self.ignored = Ignored()
        self._vanished: set[Path] = set()
        self.scans = 0
        self.last_scan_s: float | None = None
        self._scan_took_s = 0.0
        self._clock = clock
        self._tracker = StabilityTracker(quiet_s)
        self._hints = HintBox(self.folder)
        self._observer: Any = None
        self._started = False
        self._identity: tuple[int, int] | None = None
        self._next_scan_s = clock()

    @property
    def kind(self) -> Literal["inotify", "polling", "none"]:
        """Where hints come from now; "none": only the rescan works (folder absent, inotify watches used up)."""
        if self._observer is None:
            return "none"
        return "polling" if isinstance(self._observer, PollingObserverVFS) else "inotify"

    @property
    def known(self) -> int:
        """Number of candidates seen at the last look."""
        return len(self._tracker)

    def start(self) -> None:
        """Ask for notifications; the first :meth:`poll` scans. A missing folder is no error: it is awaited.

        Without it the rescan alone finds the files.
        """
        self._started = True
        self._watch_afresh()

    def close(self) -> None:
        """End the notifications."""
        self._started = False
        self._unwatch()

    def _unwatch(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(_JOIN_S)

    def __enter__(self) -> FolderWatcher:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def retry(self, path: Path) -> None:
        """Give ``path`` out once more after another quiet time."""
        self._tracker.retry(path, self._clock())

    def announce_again(self) -> None:
        """Give out every candidate once more, after another quiet time; the whole folder is looked at first."""
        for path in list(self._tracker.known):
            self._tracker.retry(path, self._clock())
        self._next_scan_s = self._clock()

    def vanished(self) -> list[Path]:
        """Candidates that left the folder since the last call and have not come back. An absent folder has lost none."""
        vanished, self._vanished = self._vanished, set()
        return sorted(vanished)

    def wake(self) -> None:
        """Let a waiting :meth:`poll` look at once (from another thread: stopping, say)."""
        self._hints.wake()

    def poll(self, timeout_s: float) -> list[Path]:
        """Candidates that settled, in order of mtime; waits up to ``timeout_s`` for the first, then [].

        A hint or :meth:`wake` ends a wait early, so that [] may come before the time is over.
        """
        deadline = self._clock() + timeout_s
        settled = self._look()
        if not settled and (pause := self._pause(deadline)) > 0 and not self._hints.was_woken():
            self._hints.rung.wait(pause)
            self._hints.was_woken()
            settled = self._look()
        return settled[::-1] if self.newest_first else settled

    def _pause(self, deadline: float) -> float:
        times = [deadline, self._next_scan_s]
        settles = self._tracker.next_s()
        if settles is not None:
            times.append(settles)
        return min(times) - self._clock()

    def _look(self) -> list[Path]:
        paths, overflowed = self._hints.take()
        if self._hints.companion_changed():
            self._next_scan_s = min(self._next_scan_s, self._soonest_scan_s())
        if overflowed or self._clock() >= self._next_scan_s:
            return self._rescan()
        return self._glance(paths.union(self._tracker.due(self._clock())))

    def _soonest_scan_s(self) -> float:
        """A full look for the sake of a companion: not before it can have settled, nor for more than a tenth of the time."""
        return max(self._clock(), (self.last_scan_s or 0.0) + max(self._tracker.quiet_s, 10 * self._scan_took_s))

    def _rescan(self) -> list[Path]:
        began_s = self._clock()
        self._next_scan_s = began_s + self.rescan_s
        self._heal()
        try:
            ignored = Ignored()
            snapshot, unreadable = scan(self.folder, ignored)
        except OSError as error:
            if self.present or self.scans == 0:
                _log.warning("watch.folder_absent", folder=str(self.folder), reason=error.strerror)
            self.present = False
            self.scans += 1
            return []  # nothing is forgotten: the share may come back
        self.present = True
        self.scans += 1
        self._name_unreadable(unreadable)
        self.ignored = ignored
        self.last_scan_s = self._clock()
        self._scan_took_s = self.last_scan_s - began_s
        self._vanished.update(self._tracker.known - snapshot.keys())
        self._vanished.difference_update(snapshot)
        return self._tracker.observe(snapshot, self.last_scan_s)

    def _name_unreadable(self, unreadable: list[Path]) -> None:
        """Keep them, and say each once until it can be listed again."""
        for folder in set(unreadable).difference(self.unreadable):
            _log.warning("watch.folder_unreadable", folder=str(folder), action="Let the daemon's user list it.")
        self.unreadable = unreadable

    def _glance(self, paths: set[Path]) -> list[Path]:
        snapshot: dict[Path, FileStat] = {}
        folders = Folders()
        for path in paths:
            state = look(path, folders=folders) if self._lies_inside(path) else None
            if state is None:
                self._tracker.forget(path)
                if self.present:
                    self._vanished.add(path)
            else:
                snapshot[path] = state
                self._vanished.discard(path)
        return self._tracker.observe(snapshot, self._clock(), partial=True)

    def _lies_inside(self, path: Path) -> bool:
        """True when no folder between the watch folder and the path is a symbolic link."""
        at = path.parent
        while at != self.folder:
            try:
                if not stat.S_ISDIR(at.lstat().st_mode):
                    return False
            except OSError:
                return False
            at = at.parent
        return True

    # --- notifications ---------------------------------------------------------------------------

    def _heal(self) -> None:
        if not self._started:
            return
        alive = self._observer is not None and self._observer.is_alive()
        emitters = self._observer.emitters if alive else ()
        if not emitters or not all(emitter.is_alive() for emitter in emitters) or self._identity != self._folder_identity():
            if self._identity is not None:
                _log.warning("watch.restarted", folder=str(self.folder), kind=self.kind)
            self._watch_afresh()

    def _folder_identity(self) -> tuple[int, int] | None:
        try:
            found = self.folder.stat()
        except OSError:
            return None
        return (found.st_dev, found.st_ino)

    def _watch_afresh(self) -> None:
        self._unwatch()
        self._identity = self._folder_identity()
        if self._identity is None:
            return
        # lstat: watchdog's own polling walks through symbolic links, and two of them in a loop keep it busy for ever.
        polling = partial(PollingObserverVFS, os.lstat, os.scandir, polling_interval=self.poll_interval_s)
        observer: Any = polling() if self._polls() else Observer()
        try:
            observer.schedule(self._hints, str(self.folder), recursive=True)
            observer.start()
        except OSError as error:  # no inotify watches left, or the folder went away in between: the rescan goes on
            _log.warning("watch.no_hints", folder=str(self.folder), reason=str(error))
            observer.unschedule_all()
            return
        self._observer = observer

    def _polls(self) -> bool:
        return self.mode == "polling" or (self.mode == "auto" and lies_on_network(self.folder))
