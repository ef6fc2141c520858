"""The session folders of rigs that were not built for wbcd: which file belongs to which, and what their notes say.

A sample's file names its companions by its own name: notes about the optics (JSON) and sample-free frames, its own or shared
by the session. Names are resolved in the folder that holds the sample, never outside it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.candidate import open_beneath, read_whole
from wbcd.acquisition.limits import MEDIUM_RI, NUMERICAL_APERTURE, PIXEL_UM, WAVELENGTH_UM, within
from wbcd.acquisition.source import Source
from wbcd.errors import BadField, Incomplete, MissingCompanion, MissingField

SESSION_NOTES = "session.json"
NO_BACKGROUND = "none"
MAX_NOTES_BYTES = 1 << 20
_OPTICS = {
    "wavelength_um": WAVELENGTH_UM,
    "objective_na": NUMERICAL_APERTURE,
    "medium_ri": MEDIUM_RI,
    "pixel_size_um": PIXEL_UM,
}


# --- names: pure rules -----------------------------------------------------------------------------


def own_notes(name: str) -> tuple[str, ...]:
    """Names of the notes about the sample file ``name``, the nearest first; the session's own are the last."""
    stem = name.rpartition(".")[0]
    short = re.sub(r"_(sp|tomog)$", "", stem, flags=re.IGNORECASE)
    return (f"{stem}.json", f"{short}.json", SESSION_NOTES)


def backgrounds_of_tiff(name: str, names: Sequence[str]) -> list[str]:
    """Sample-free stacks for ``NAME_sp.tif``: ``NAME_bg.tif``, else the session's ``bg.tif``. Letters' case is ignored.

    Another sample's own background is never taken for a shared one.
    """
    stem = re.sub(r"_sp\.tiff?$", "", name, flags=re.IGNORECASE)
    own = _named(names, rf"{re.escape(stem)}_bg\.tiff?")
    return own or _named(names, r"(session_)?bg\.tiff?")


def backgrounds_of_mat(name: str, names: Sequence[str]) -> list[str]:  # noqa: ARG001 - the same signature as for TIFF
    """Sample-free stacks for ``sample###_Tomog.mat``: every ``bg*_Tomog.mat`` of the session."""
    return _named(names, r"bg.*_tomog\.mat")


def _named(names: Sequence[str], pattern: str) -> list[str]:
    return sorted(name for name in names if re.fullmatch(pattern, name, flags=re.IGNORECASE))


# --- notes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notes:
    """What JSON files beside a sample say of it: the sample's own before the session's, key by key.

    Recognised: ``wavelength_um, objective_na, medium_ri, pixel_size_um, normal_frame, frames, illumination_rad_um`` and the
    texts ``sample_id, instrument_id, acquisition_id, acquired_at, background``; other keys are the rig's own business.
    """

    values: Mapping[str, Any]
    where: Mapping[str, Path]
    sought: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the notes that said something."""
        return tuple(sorted({path.name for path in self.where.values()}))

    def optic(self, key: str) -> float | None:
        """One of the optics' numbers, within its physical bounds; None where no note has it. Raises BadField."""
        if key not in self.values:
            return None
        return within(self._number(key), _OPTICS[key], where=self._at(key), unit="um" if key.endswith("_um") else "")

    def required_optic(self, key: str) -> float:
        """The same; raises MissingField that names the notes in which it was sought."""
        found = self.optic(key)
        if found is None:
            raise MissingField(f"`{key}` is in none of {', '.join(self.sought)}.", action="Write it into one of them.")
        return found

    def count(self, key: str, limits: tuple[int, int]) -> int | None:
        """A whole number within ``limits``; None where no note has it. Raises BadField."""
        if key not in self.values:
            return None
        value = self._number(key)
        if not value.is_integer():
            raise BadField(f"{self._at(key)} is {value}; allowed is a whole number.")
        return int(within(value, (float(limits[0]), float(limits[1])), where=self._at(key)))

    def text(self, key: str) -> str | None:
        """A text of 1 to 255 characters; None where no note has it or it is empty. Raises BadField."""
        value = self.values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > 255:
            raise BadField(f"{self._at(key)} is {str(value)[:80]!r}; allowed is a text of at most 255 characters.")
        return value

    def illumination(self, frames: int) -> NDArray[np.float64] | None:
        """float64 [frame, 2], (k_x, k_y) in rad/um; None where no note has it. Raises BadField."""
        if "illumination_rad_um" not in self.values:
            return None
        where = self._at("illumination_rad_um")
        try:
            vectors = np.array(self.values["illumination_rad_um"], np.float64)
        except (TypeError, ValueError) as error:
            raise BadField(f"{where} is no list of pairs of numbers.") from error
        if vectors.shape != (frames, 2) or not np.isfinite(vectors).all():
            raise BadField(f"{where} has shape {vectors.shape}; the frames demand {(frames, 2)} finite numbers.")
        return vectors

    def _number(self, key: str) -> float:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadField(f"{self._at(key)} is {str(value)[:80]!r}; allowed is a number.")
        try:
            return float(value)
        except OverflowError:
            return math.inf

    def _at(self, key: str) -> str:
        return f"{self.where[key]}: `{key}`"


def read_notes(source: Source, names: Sequence[str]) -> Notes:
    """All notes that concern the sample; empty where there are none. Raises BadField, NotARegularFile, TooLarge."""
    sought = own_notes(source.path.name)
    values: dict[str, Any] = {}
    where: dict[str, Path] = {}
    for name in sought:
        if name not in names:
            continue
        path = source.path.parent / name
        for key, value in _parsed(_bytes_of(source, name), path).items():
            if key not in values:
                values[key], where[key] = value, path
    return Notes(values, where, sought)


def _bytes_of(source: Source, name: str) -> bytes:
    path = source.path.parent / name
    with source.parent() as folder:
        try:
            with open_beneath(folder, name, label=source.path.parent) as handle:
                return read_whole(handle, MAX_NOTES_BYTES, path)
        except FileNotFoundError as error:
            raise Incomplete(f"{path} vanished while it was read.") from error


def _parsed(raw: bytes, path: Path) -> dict[str, Any]:
    if not raw.strip():
        raise Incomplete(f"{path} is empty: its writer is not done.")
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadField(f"{path} is not JSON: {str(error)[:200]}.", action="Correct the file, or write it again.") from error
    if not isinstance(found, dict):
        raise BadField(f"{path} holds a {type(found).__name__}; allowed is one JSON object.")
    return found


# --- the folder ------------------------------------------------------------------------------------


def folder_names(source: Source) -> list[str]:
    """Plain names of all entries beside the sample."""
    with source.parent() as folder:
        return os.listdir(folder)  # noqa: PTH208 - a descriptor has no path that could be trusted


def background_name(source: Source, notes: Notes, found: Sequence[str]) -> str | None:
    """The sample-free file to take of those ``found``, or None where the notes say that there is none.

    Raises Incomplete when none is there and none is said to be missing (it may be on its way), BadField when several are.
    """
    stated = notes.text("background")
    if stated is not None:
        return None if stated.lower() == NO_BACKGROUND else _plain(stated, notes)
    if len(found) > 1:
        raise BadField(
            f"{source.path}: {len(found)} backgrounds lie beside it ({', '.join(found[:4])}).",
            action=f'Name one: {{"background": "{found[0]}"}} in {notes.sought[0]} or {SESSION_NOTES}.',
        )
    if not found:
        raise MissingCompanion(
            f"{source.path}: no background lies beside it; it waits for one.",
            action=f'Copy it there, or write {{"background": "{NO_BACKGROUND}"}} into {notes.sought[0]} to do without one.',
        )
    return found[0]


def _plain(name: str, notes: Notes) -> str:
    if name in (".", "..") or "/" in name or "\0" in name:
        at = notes.where["background"]
        raise BadField(f"{at}: `background` is {name!r}; allowed is the plain name of a file in the same folder.")
    return name
