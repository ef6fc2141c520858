"""The stages as the line calls them: one record of functions, the real ones or a test's.

The line never imports a stage itself, so that it can be read and tested without torch, files or a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from wbcd.acquisition.companions import Folders
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
    """State of a file that tells a change without reading it; ``token`` is all of it but size and mtime, as text."""

    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def token(self) -> str: ...


class Look(Protocol):
    """State of a path and of the files that belong to it; ``others``: names of such files that it is known to state;
    ``folders``: what is known already of folders, for one look at many files."""

    def __call__(self, path: Path, others: Iterable[str] = ..., *, folders: Folders | None = ...) -> Stat | None: ...


class FindCompanions(Protocol):
    """Names and digests of the files that belong to a path; None for one that is absent."""

    def __call__(self, path: Path, others: Iterable[str] = ...) -> tuple[tuple[str, str | None], ...]: ...


class Identify(Protocol):
    """The ticket of a path. ``beat`` is called while its bytes are hashed; what it raises ends that."""

    def __call__(self, path: Path, *, beat: Callable[[], None] = ...) -> Acquisition: ...


@dataclass(frozen=True, slots=True)
class Stages:
    """What each room does for the line. ``keep`` writes a cell's volume (with its label, if it has one) and returns its
    absolute path below ``volumes_root``, or None when none is kept; ``discard`` removes those volumes of a content that are
    not among the named ones; ``demand_volumes`` raises :class:`wbcd.errors.VolumeGone` when one is
    not there; ``close`` ends what the stages hold (reader processes); ``settle_medium``: the medium that a volume shows, where
    its file states none; ``judge_instrument``: drift against the stored calibration, where there is one."""

    look: Look
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
    keep: Callable[[Cell, Acquisition, Prediction | None], str | None]
    model_id: str
    model_card: dict[str, object]
    companions: FindCompanions = lambda path, others=(): ()  # noqa: ARG005 - a test's rig without companions
    volumes_root: Path | None = None
    discard: Callable[[str, Sequence[str]], object] = lambda *_: None
    demand_volumes: Callable[[Sequence[str]], None] = lambda _: None
    close: Callable[[], None] = lambda: None
    settle_medium: Callable[[Tomogram, Recipe], Tomogram] = lambda tomogram, _: tomogram
    judge_instrument: Callable[[Acquisition, FringeReport, FieldStack, Recipe], Verdict] = lambda *_: Verdict()


def with_companions(stages: Stages, before: Acquisition, read: Acquisition) -> Acquisition:
    """``read`` with the digests of its companions: those of ``before``, or anew where its reader names others.

    The reader opens its companions in another process and gives back their names only.
    """
    named, known = {name for name, _ in read.companions}, {name for name, _ in before.companions}
    if named <= known:
        return replace(read, companions=before.companions, state=before.state)
    found = stages.look(before.path, known | named)
    companions = stages.companions(before.path, known | named)
    return replace(read, companions=companions, state=before.state if found is None else found.token)
