"""wbcd acquisition files, version 1: raw off-axis holograms (docs/reference/formats.md, section 1)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.hdf5 import Node, open_hdf5, read_array, unchecked_parts
from wbcd.acquisition.limits import (
    ANGLES,
    FRAME_PIXELS,
    MEDIUM_RI,
    NUMERICAL_APERTURE,
    PIXEL_UM,
    PROVENANCE,
    WAVELENGTH_UM,
    ReadDefaults,
)
from wbcd.acquisition.seal import SEAL, SEALED_ATTRIBUTES, seal_of
from wbcd.acquisition.source import Source
from wbcd.errors import BadField, CorruptContent, Incomplete, MissingCompanion, NotReadable
from wbcd.records import Acquisition, HologramStack, Optics, SourceFormat

FORMAT = "wbcd-acquisition"
VERSION = 1
MARKS = ("holograms", "acquisition_id", "wavelength_um", "complete")
"""Names that tell a wbcd file whose `format` is missing from a foreign HDF5 file."""
_ARRAYS = ("holograms", "reference", "illumination")
_FRAMES = "uint8 or uint16 [angle, y, x]"
_IN_UM = "The unit is um; a value in nm is a thousand times too large."
MAX_EXTRA_ZERO_ROWS = 1 / 32
MAX_DARK_SHARE = 0.1

Frames = NDArray[np.uint8] | NDArray[np.uint16]


def read_holograms(root: Node, source: Source, defaults: ReadDefaults) -> tuple[Acquisition, HologramStack]:
    """Read and validate the whole file; the ticket comes back completed.

    Raises Incomplete without `complete`, MissingField, BadField, CorruptContent, Forbidden, TooLarge.
    """
    _demand_version(root)
    _demand_complete(root)
    root.demand_hard_links()
    optics = _optics(root)
    holograms = _frames(root.child("holograms"))
    stack = HologramStack(
        holograms=holograms,
        reference=_reference(root, source, holograms, defaults),
        illumination_rad_um=_illumination(root, len(holograms), optics),
        normal_frame=root.required_count("normal_frame", (0, len(holograms) - 1)),
        optics=optics,
    )
    ticket = _ticket(root, source.acquisition, optics, defaults)
    # The seal covers all that checksums do.
    return replace(ticket, unprotected=() if _demand_seal(root, stack) else (*_unchecked(root), PROVENANCE)), stack


def _demand_seal(root: Node, stack: HologramStack) -> bool:
    """False without a seal (:mod:`wbcd.acquisition.seal`); raises CorruptContent when the content is not what was sealed."""
    seal = root.text(SEAL)
    if seal is None:
        return False
    arrays: dict[str, NDArray[Any] | None] = {"holograms": stack.holograms, "reference": stack.reference}
    inside = {name: values for name, values in arrays.items() if values is not None and root.has(name)}
    if root.has("illumination"):  # as stored: the stack holds it as float64 whatever it was
        inside["illumination"] = root.child("illumination").group[()]
    _demand_same_seal(root, seal, inside)
    return True


def _demand_same_seal(root: Node, seal: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    found = seal_of({name: root.attribute(name) for name in SEALED_ATTRIBUTES}, arrays)
    if found != seal:
        raise CorruptContent(f"attribute {root.where(SEAL)} is {seal[:40]!r}; what the file holds has the seal {found!r}.")


def _demand_version(root: Node) -> None:
    if root.required_text("format") != FORMAT:
        raise BadField(f"attribute {root.where('format')} is {root.text('format')!r}; allowed is {FORMAT!r}.")
    root.required_count("format_version", (VERSION, VERSION))


def _demand_complete(root: Node) -> None:
    complete = root.attribute("complete")
    if complete not in (True,):
        state = "absent" if complete is None else repr(complete)
        raise Incomplete(f"attribute {root.where('complete')} is {state}; the writer sets it to True last.")


def _optics(root: Node) -> Optics:
    return Optics(
        wavelength_um=root.required_number("wavelength_um", WAVELENGTH_UM, "um", _IN_UM),
        objective_na=root.required_number("objective_na", NUMERICAL_APERTURE),
        medium_ri=root.required_number("medium_ri", MEDIUM_RI),
        pixel_size_um=root.required_number("pixel_size_um", PIXEL_UM, "um", "It is meant at the sample plane."),
    )


def _ticket(root: Node, acquisition: Acquisition, optics: Optics, defaults: ReadDefaults) -> Acquisition:
    shared = None if root.has("reference") else root.text("reference_file")
    return replace(
        acquisition,
        format=SourceFormat.HOLOGRAMS,
        acquisition_id=root.required_text("acquisition_id"),
        acquired_at=_moment(root),
        sample_id=root.text("sample_id") or defaults.sample_id or acquisition.sample_id,
        instrument_id=root.required_text("instrument_id"),
        medium_ri=optics.medium_ri,
        wavelength_um=optics.wavelength_um,
        objective_na=optics.objective_na,
        pixel_size_um=optics.pixel_size_um,
        companions=() if shared is None else ((shared, None),),
    )


def _unchecked(root: Node) -> tuple[str, ...]:
    return unchecked_parts([root.group], [root.group[name] for name in _ARRAYS if root.has(name)])


def _moment(root: Node) -> str:
    text = root.required_text("acquired_at")
    try:
        zoned = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        zoned = False
    if not zoned:
        raise BadField(f"attribute {root.where('acquired_at')} is {text!r}; allowed is ISO 8601 with a zone.")
    return text


def _frames(node: Node) -> Frames:
    data = node.array(dtypes=(np.uint8, np.uint16), ndim=3, limits=_FRAMES)
    here = node.where("")
    demand_shape(data.shape, here)
    frames: Frames = read_array(data, (slice(None),) * 3, node.path)
    demand_light(frames, here)
    return frames


def demand_shape(shape: tuple[int, ...], here: str) -> None:
    """Raise BadField unless [angle, y, x] lies within the limits; ``here`` names the array."""
    limits = (ANGLES, FRAME_PIXELS, FRAME_PIXELS)
    for axis, size, (low, high) in zip(("angle", "y", "x"), shape, limits, strict=True):
        if not low <= size <= high:
            raise BadField(f"{here} has shape {shape}; allowed along {axis} is {low} to {high}.")


def demand_light(frames: Frames, here: str) -> None:
    """No part of a frame may be missing, nor the last one, nor many: preallocated and never written, it reads as zeros.

    A few dark frames before the last are what a camera or a shutter lost; they are dropped and counted further on.
    Raises CorruptContent.
    """
    row_maximum = frames.max(axis=2)
    zero_rows = np.count_nonzero(row_maximum == 0, axis=1)
    rows = frames.shape[1]
    dark = np.flatnonzero(zero_rows == rows)
    if dark.size > MAX_DARK_SHARE * len(frames) or (dark.size and dark[-1] == len(frames) - 1):
        raise CorruptContent(
            f"{here} has {dark.size} frames of nothing but zeros, the first at index {dark[0]};"
            f" allowed are {int(MAX_DARK_SHARE * len(frames))}, not the last."
        )
    # A vignetted field has zero rows in every frame; missing data only in some.
    excess = np.where(zero_rows == rows, 0, zero_rows - np.median(zero_rows))
    worst = int(np.argmax(excess))
    if excess[worst] > rows * MAX_EXTRA_ZERO_ROWS:
        raise CorruptContent(
            f"{here} has {zero_rows[worst]} rows of zeros in frame {worst}, {excess[worst]:.0f} more than the other frames;"
            f" allowed are {rows * MAX_EXTRA_ZERO_ROWS:.0f} more."
        )
    if row_maximum[-1, -1] == 0 and not (row_maximum[:-1, -1] == 0).any():
        raise CorruptContent(f"{here} ends in zeros: the last row of its last frame, and of no other, was never written.")


def _illumination(root: Node, angles: int, optics: Optics) -> NDArray[np.float64] | None:
    if not root.has("illumination"):
        return None
    node = root.child("illumination")
    data = node.array(dtypes=(np.float64, np.float32), ndim=2, limits="float64 [angle, 2]")
    if data.shape != (angles, 2):
        raise BadField(f"{root.where('illumination')} has shape {data.shape}; the holograms demand {(angles, 2)}.")
    vectors = read_array(data, (slice(None), slice(None)), root.path).astype(np.float64)
    limit = 2 * math.pi * optics.medium_ri / optics.wavelength_um
    length = np.hypot(vectors[:, 0], vectors[:, 1])
    wrong = np.flatnonzero(~(length <= limit))
    if wrong.size:
        found = vectors[wrong[0]].tolist()
        raise BadField(
            f"{root.where('illumination')}[{wrong[0]}] is {found} rad/um; its length may be at most {limit:.4g} rad/um."
        )
    return vectors


# --- the reference -------------------------------------------------------------------------------


def _reference(root: Node, source: Source, holograms: Frames, defaults: ReadDefaults) -> Frames | None:
    if root.has("reference"):
        return matching(_frames(root.child("reference")), holograms, root.where("reference"))
    name = root.text("reference_file")
    return None if name is None else _shared_reference(source, name, holograms, defaults)


def _shared_reference(source: Source, name: str, holograms: Frames, defaults: ReadDefaults) -> Frames:
    path = source.path
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise BadField(
            f"attribute {path}: `reference_file` is {name!r}; allowed is the plain name of a file in the same folder."
        )
    shown = path.parent / name
    with source.parent() as folder:
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError as error:
            raise MissingCompanion(
                f"{shown}, the `reference_file` of {path.name}, is absent.",
                companion=name,
                action="Copy it into the same folder; the file is taken up again then.",
            ) from error
        except OSError as error:
            raise NotReadable(f"{shown} cannot be examined: {error.strerror}.") from error
        with open_hdf5(Path(name), dir_fd=folder, label=shown) as (file, _):
            root = Node(file, shown, defaults.max_logical_bytes)
            if root.attribute("complete") is False:
                raise Incomplete(f"attribute {root.where('complete')} is False; the writer sets it to True last.")
            reference = matching(_frames(root.child("reference")), holograms, root.where("reference"))
            seal = root.text(SEAL)
            if seal is not None:
                _demand_same_seal(root, seal, {"reference": reference})
            return reference


def matching(reference: Frames, holograms: Frames, where: str) -> Frames:
    """The reference, of the holograms' shape and type; raises BadField otherwise. ``where`` names it."""
    if (reference.shape, reference.dtype) != (holograms.shape, holograms.dtype):
        raise BadField(
            f"{where} is {reference.dtype} {reference.shape}; the holograms demand {holograms.dtype} {holograms.shape}."
        )
    return reference


def looks_like_holograms(root: Node) -> bool:
    """True for a wbcd file, also one that has lost its `format`."""
    if root.attribute("format") is not None:
        return True
    return any(root.has(name) or name in root.group.attrs for name in MARKS)
