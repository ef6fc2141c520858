"""When is a file at rest? Pure rules, apart from disk and clock.

A file is settled when its size and mtime have been the same in every observation over ``quiet_s`` seconds of the caller's
monotonic clock. It is announced once; again only when it changes afterwards or :meth:`StabilityTracker.retry` asks for it.
That it is at rest does not mean that it is whole: each reader demands the semantic end of its format.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from wbcd.acquisition.candidate import FileStat


@dataclass(frozen=True, slots=True)
class _Sight:
    stat: FileStat
    since_s: float


class StabilityTracker:
    """Remembers since when each file looks the same. ``now_s`` must never go backwards."""

    def __init__(self, quiet_s: float) -> None:
        self.quiet_s = quiet_s
        self._sights: dict[Path, _Sight] = {}
        # In order of since_s, because whatever is seen anew goes to the end: what settles next is always first.
        self._waiting: dict[Path, float] = {}

    def observe(self, snapshot: Mapping[Path, FileStat], now_s: float, *, partial: bool = False) -> list[Path]:
        """Take in what is there at ``now_s``; return the newly settled, oldest mtime first.

        A path that a full snapshot lacks is forgotten; ``partial=True`` says that the snapshot covers only its own paths.
        """
        if not partial:
            for gone in self._sights.keys() - snapshot.keys():
                self.forget(gone)
        settled = [path for path, stat in snapshot.items() if self._see(path, stat, now_s)]
        for path in settled:
            del self._waiting[path]
        return sorted(settled, key=lambda path: (self._sights[path].stat.mtime_ns, path))

    def _see(self, path: Path, stat: FileStat, now_s: float) -> bool:
        sight = self._sights.get(path)
        if sight is None or sight.stat != stat:
            self._await(path, stat, now_s)
        return path in self._waiting and now_s - self._waiting[path] >= self.quiet_s

    def _await(self, path: Path, stat: FileStat, now_s: float) -> None:
        self._sights[path] = _Sight(stat, now_s)
        self._waiting.pop(path, None)
        self._waiting[path] = now_s

    def forget(self, path: Path) -> None:
        """The path is gone; should it come back it is new."""
        self._sights.pop(path, None)
        self._waiting.pop(path, None)

    def retry(self, path: Path, now_s: float) -> None:
        """Announce the path once more after another quiet time (the reader found it incomplete)."""
        sight = self._sights.get(path)
        if sight is not None:
            self._await(path, sight.stat, now_s)

    def due(self, now_s: float) -> list[Path]:
        """Waiting paths whose quiet time is over if they still look the same: those to examine again."""
        return list(takewhile(lambda path: now_s - self._waiting[path] >= self.quiet_s, self._waiting))

    def next_s(self) -> float | None:
        """Earliest time at which a waiting path can settle, or None."""
        first = next(iter(self._waiting.values()), None)
        return None if first is None else first + self.quiet_s

    @property
    def known(self) -> Set[Path]:
        """What was there at the last look."""
        return self._sights.keys()

    def __len__(self) -> int:
        return len(self._sights)
