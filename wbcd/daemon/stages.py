"""The stages as the line calls them: one record of functions, the real ones or a test's.

The line never imports a stage itself, so that it can be read and tested without torch, files or a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wbcd.recipe import Recipe
from wbcd.records import (
    Acquisition,
    Cell,
    FieldStack,
    FringeReport,
    HologramStack,
    Morphology,
    Payload,
    Prediction,
    Tomogram,
    Verdict,
)


class Stat(Protocol):
    """State of a file that tells a change without reading it."""

    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class Identify(Protocol):
    """The ticket of a path. ``beat`` is called while its bytes are hashed; what it raises ends that."""

    def __call__(self, path: Path, *, beat: Callable[[], None] = ...) -> Acquisition: ...


@dataclass(frozen=True, slots=True)
class Stages:
    """What each room does for the line. ``keep`` writes a cell's volume and returns its path, or None when none is
    kept; ``discard`` removes the volumes of a content that no row will name (None when none are kept); ``close`` ends what
    the stages hold (reader processes); ``settle_medium``: the medium that a volume shows, where its file states none;
    ``judge_instrument``: drift against the stored calibration, where there is one."""

    look: Callable[[Path], Stat | None]
    identify: Identify
    read: Callable[[Acquisition], tuple[Acquisition, Payload]]
    measure_fringes: Callable[[HologramStack], FringeReport]
    judge_fringes: Callable[[FringeReport, Recipe], Verdict]
    retrieve_fields: Callable[[HologramStack, FringeReport, Recipe], FieldStack]
    judge_fields: Callable[[FieldStack, Recipe], Verdict]
    reconstruct: Callable[[FieldStack, Recipe], Iterable[Tomogram]]
    judge_tomogram: Callable[[Tomogram, Recipe], Verdict]
    find_cells: Callable[[Tomogram, Recipe, int], Sequence[Cell]]
    measure: Callable[[Cell, Recipe], Morphology]
    judge_cell: Callable[[Cell, Morphology, Recipe], Verdict]
    predict: Callable[[Sequence[Cell]], Sequence[Prediction]]
    picture: Callable[[Cell], bytes]
    keep: Callable[[Cell, Acquisition], str | None]
    model_id: str
    model_card: dict[str, object]
    discard: Callable[[str], object] | None = None
    close: Callable[[], None] = lambda: None
    settle_medium: Callable[[Tomogram, Recipe], Tomogram] = lambda tomogram, _: tomogram
    judge_instrument: Callable[[Acquisition, FringeReport, FieldStack, Recipe], Verdict] = lambda *_: Verdict()
