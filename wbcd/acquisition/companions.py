"""Files that belong to a sample's file: notes and backgrounds beside it, by their names, and what state they are in.

A sample whose companions change is not what it was when it was judged, so the watcher sees a change of a companion as a change
of the sample, and each outcome remembers what its companions held. Nothing of them is interpreted here.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from wbcd.acquisition.beneath import parent_of
from wbcd.acquisition.candidate import FileStat, stat_candidate
from wbcd.acquisition.session import backgrounds_of_tiff, own_notes

CONFIGURATIONS = re.compile(r"config\.dat|.*\.experiment", re.IGNORECASE)
BACKGROUND_MAT = re.compile(r"bg.*\.mat", re.IGNORECASE)
COMPANION = re.compile(r".*\.(json|wbcdref)|config\.dat|.*\.experiment|(.*_)?bg\.tiff?|bg.*\.mat", re.IGNORECASE)
_TIFF_BACKGROUND = re.compile(r"(.*_)?bg\.tiff?", re.IGNORECASE)
_BLOCK = 1 << 20
MAX_HASHED_BYTES = 4 << 30
"""A companion beyond this is refused by every reader; its length and time stand for its bytes."""

Companions = tuple[tuple[str, str | None], ...]
"""Name and BLAKE2b-160 of the bytes of each, sorted; None for one that is sought and absent."""


def is_companion(name: str) -> bool:
    """True for names that only ever belong to another file: notes, backgrounds, the vendor's configuration."""
    return COMPANION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Listing:
    """The companions among the names of one folder."""

    notes: Mapping[str, tuple[str, ...]]
    tiff_backgrounds: tuple[str, ...]
    mat_backgrounds: tuple[str, ...]
    configurations: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Listing:
        """Sort the names of a folder."""
        found = [name for name in names if is_companion(name)]
        notes: dict[str, tuple[str, ...]] = {}
        for name in found:
            if name.lower().endswith(".json"):
                notes[name.lower()] = (*notes.get(name.lower(), ()), name)
        return cls(
            notes,
            tuple(name for name in found if _TIFF_BACKGROUND.fullmatch(name)),
            tuple(sorted(name for name in found if BACKGROUND_MAT.fullmatch(name))),
            tuple(sorted(name for name in found if CONFIGURATIONS.fullmatch(name))),
        )

    def beside(self, name: str) -> tuple[str, ...]:
        """Those that the sample file ``name`` may be read with, sorted. (Of a TCF only in its own session folder.)"""
        suffix = name.rpartition(".")[2].lower()
        if suffix == "tcf":
            return self.configurations
        notes = [found for sought in own_notes(name) for found in self.notes.get(sought.lower(), ())]
        backgrounds = self.mat_backgrounds if suffix == "mat" else self._of_tiff(name)
        return tuple(sorted({*notes, *backgrounds}))

    def _of_tiff(self, name: str) -> Iterable[str]:
        return backgrounds_of_tiff(name, self.tiff_backgrounds) if re.search(r"_sp\.tiff?$", name, re.IGNORECASE) else ()


def has_companions(path: Path) -> bool:
    """True for samples whose companions are known by name; others state theirs inside, or have none.

    A TCF has them in its own session folder, which has its name.
    """
    suffix = path.suffix.lower()
    return suffix in (".tif", ".tiff", ".mat") or (suffix == ".tcf" and path.absolute().parent.name == path.stem)


ABSENT_STATE = "absent"


def state_on_disk(path: Path) -> str:
    """Short text that changes with each change of a companion; :data:`ABSENT_STATE` for one that cannot be examined."""
    try:
        found = path.lstat()
    except OSError:
        return ABSENT_STATE
    return f"{found.st_size}.{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_ino}"


class Folders:
    """What lies beside samples, looked up once a folder: for one look at many files."""

    def __init__(self) -> None:
        self._listings: dict[Path, Listing] = {}
        self._states: dict[Path, str] = {}

    def take(self, folder: Path, names: Iterable[str]) -> None:
        """The names of ``folder`` are known already."""
        self._listings[folder] = Listing.of(names)

    def names(self, path: Path, others: Iterable[str] = ()) -> tuple[str, ...]:
        """Companions of ``path`` that are there, by name, and ``others`` that it is known to name, there or not."""
        found = self._listing(path.parent).beside(path.name) if has_companions(path) else ()
        return tuple(sorted({*found, *others}))

    def state(self, path: Path, others: Iterable[str] = ()) -> str:
        """Short text that changes with each change of a companion; empty where there is none."""
        names = self.names(path, others)
        if not names:
            return ""
        text = "\0".join(f"{name}\0{self._state(path.parent / name)}" for name in names)
        return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()

    def _listing(self, folder: Path) -> Listing:
        if folder not in self._listings:
            try:
                names = os.listdir(folder)  # noqa: PTH208 - names, not paths
            except OSError:
                names = []
            self._listings[folder] = Listing.of(names)
        return self._listings[folder]

    def _state(self, path: Path) -> str:
        if path not in self._states:
            self._states[path] = state_on_disk(path)
        return self._states[path]


def look(path: Path, others: Iterable[str] = (), *, folders: Folders | None = None) -> FileStat | None:
    """State of a candidate and of its companions now, or None when it is gone. ``others``: see :meth:`Folders.names`."""
    found = stat_candidate(path)
    return None if found is None else replace(found, companions=(folders or Folders()).state(path, others))


def companions_of(
    path: Path, others: Iterable[str] = (), *, root: Path | None = None, folders: Folders | None = None
) -> Companions:
    """Digests of the companions of ``path``; what is absent, or no regular file, or cannot be read, has none.

    ``others``: names that the sample is known to state. No component of the path below ``root`` may be a link.
    """
    names = (folders or Folders()).names(path, others)
    if not names:
        return ()
    with parent_of(path, root) as folder:
        return tuple((name, _digest(folder, name)) for name in names)


def _digest(folder: int, name: str) -> str | None:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return None
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except (OSError, ValueError):
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return None
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = _known(key)
        if not known:
            known.append(
                _hashed(handle) if found.st_size <= MAX_HASHED_BYTES else f"unread-{found.st_size}-{found.st_mtime_ns}"
            )
        return known[0]
    except OSError:
        return None
    finally:
        os.close(handle)


@lru_cache(maxsize=256)
def _known(key: tuple[int, ...]) -> list[str]:  # noqa: ARG001 - the cache's key
    """Where the digest of a file in one state is kept: a session's background is shared by all its samples."""
    return []


def _hashed(handle: int) -> str:
    digest = hashlib.blake2b(digest_size=20)
    with os.fdopen(os.dup(handle), "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
