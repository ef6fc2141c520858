"""Which files of the folder are passed over, and why: each that is no acquisition, and none that is read with one.

Only names are judged. What is read with an acquisition (backgrounds, notes, an instrument's own settings) is used, not ignored.
"""

from __future__ import annotations

import os
from bisect import insort
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wbcd.acquisition.candidate import UNFINISHED_SUFFIXES
from wbcd.acquisition.companions import is_companion

SHOWN: Final = 3
"""Most files named where they are counted."""

_BY_SUFFIX: Final = {
    ".tif": "is a projection or fluorescence beside an RI volume",
    ".tiff": "is a projection or fluorescence beside an RI volume",
    ".mat": "is no *_Tomog.mat or sample*.mat",
}


class Ignored:
    """Counts what a look at the folder passes over, and keeps a few names for each reason."""

    def __init__(self) -> None:
        self.count = 0
        self._names: dict[str, list[str]] = {}

    def note(self, entry: os.DirEntry[str], path: Path, folder: Path) -> None:
        """An entry of the folder that is no acquisition and no folder that is entered."""
        reason = why_ignored(entry.name, is_folder=entry.is_dir(follow_symlinks=False), is_link=entry.is_symlink())
        if reason is None:
            return
        self.count += 1
        names = self._names.setdefault(reason, [])
        insort(names, str(path.relative_to(folder)))
        del names[SHOWN:]

    @property
    def examples(self) -> list[str]:
        """At most :data:`SHOWN` of them with their reasons, of as many reasons as there is room for."""
        ranked = [
            (place, reason not in _BY_SUFFIX.values(), reason, f"{name} {reason}")  # what may be meant as an acquisition first
            for reason, names in self._names.items()
            for place, name in enumerate(names)
        ]
        return [text for *_, text in sorted(ranked)[:SHOWN]]


def why_ignored(name: str, *, is_folder: bool = False, is_link: bool = False) -> str | None:
    """Why an entry that is no acquisition is passed over, as the end of a sentence; None for what is read with one."""
    if is_folder or name.startswith("."):
        return "is hidden"
    if is_link:
        return "is a symbolic link"
    if is_companion(name):
        return None
    lower = name.lower()
    if lower.endswith(UNFINISHED_SUFFIXES):
        return "has the name of a file that is still written"
    return _BY_SUFFIX.get(Path(lower).suffix, "has no name of an acquisition")


def sentence(count: int, examples: Sequence[str]) -> str:
    """``3 files ignored: run.mat is no *_Tomog.mat or sample*.mat, ... 2 more``."""
    more = count - len(examples)
    named = [*examples, *([f"... {more} more"] if more > 0 and examples else [])]
    return f"{count} file{'s' if count != 1 else ''} ignored{': ' if named else ''}{', '.join(named)}"
