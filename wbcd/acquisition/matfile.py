"""MATLAB v7.3 sessions of the Guck-lab kind: ``sample###_Tomog.mat`` beside a shared ``bg*_Tomog.mat``.

A v7.3 file is HDF5 behind a block of 512 bytes. MATLAB writes its axes in reverse order, its texts as uint16 arrays, and
cells as object references; those are followed within the file only, and what they lead to is examined like anything else.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.candidate import open_beneath
from wbcd.acquisition.hdf5 import Node, hdf5_of, read_array, translated
from wbcd.acquisition.holograms import Frames, demand_light, demand_shape, matching
from wbcd.acquisition.limits import ANGLES, MEDIUM_RI, NUMERICAL_APERTURE, PIXEL_UM, WAVELENGTH_UM, ReadDefaults, within
from wbcd.acquisition.session import Notes, background_name, backgrounds_of_mat, folder_names, read_notes
from wbcd.acquisition.source import Source
from wbcd.acquisition.tiffpair import complete_ticket
from wbcd.errors import BadField, Forbidden, MissingCompanion
from wbcd.records import Acquisition, HologramStack, Optics, SourceFormat

FRAMES_NAME = "tomogMap"
NORMAL_FRAME = 48
"""Frame 49 of MATLAB's count is lit along the axis."""
_FRAMES = "uint8 or uint16 (y, x, angle)"
_NUMERIC = (np.float64, np.float32, np.uint8, np.uint16, np.int32, np.int64, np.uint32, np.uint64, np.int8, np.int16)


def looks_like_mat(root: Node) -> bool:
    """True for an HDF5 file that holds the stack of such a session."""
    return root.has(FRAMES_NAME)


def read_mat(root: Node, source: Source, defaults: ReadDefaults) -> tuple[Acquisition, HologramStack]:
    """Read and validate the sample and its background; the ticket comes back completed.

    Raises Incomplete (no background yet), MissingField, BadField, CorruptContent, Forbidden, TooLarge.
    """
    names = folder_names(source)
    notes = read_notes(source, names)
    frames = _frames(root)
    background = background_name(source, notes, backgrounds_of_mat(source.path.name, names))
    optics = _optics(root, notes, defaults)
    normal = notes.count("normal_frame", (0, len(frames) - 1))
    stack = HologramStack(
        holograms=frames,
        reference=None if background is None else _reference(source, background, frames, defaults),
        illumination_rad_um=notes.illumination(len(frames)),
        normal_frame=(NORMAL_FRAME if len(frames) > NORMAL_FRAME else 0) if normal is None else normal,
        optics=optics,
    )
    ticket = complete_ticket(source.acquisition, notes, optics, SourceFormat.MATLAB, defaults, [background])
    if ticket.acquired_at is None and root.has("dateTimeVal"):
        ticket = _dated(ticket, _text(root.child("dateTimeVal")))
    return ticket, stack


def _dated(ticket: Acquisition, text: str | None) -> Acquisition:
    """The rig's local time as it stands: it has no zone."""
    for form in ("%Y-%m-%d %H:%M:%S", "%d-%b-%Y %H:%M:%S"):
        try:
            return replace(ticket, acquired_at=datetime.strptime(text or "", form).isoformat())
        except ValueError:
            continue
    return ticket


def _optics(root: Node, notes: Notes, defaults: ReadDefaults) -> Optics:
    """The file's own numbers; a note beside it goes before them, for files are not edited. Medium: note, else the recipe's."""

    def value(key: str, name: str, bounds: tuple[float, float]) -> float:
        stated = notes.optic(key)
        return stated if stated is not None else within(_number(root.child(name)), bounds, where=root.where(name))

    return Optics(
        wavelength_um=value("wavelength_um", "lambda", WAVELENGTH_UM),
        objective_na=value("objective_na", "NA", NUMERICAL_APERTURE),
        medium_ri=notes.optic("medium_ri") or within(defaults.medium_ri, MEDIUM_RI, where="the recipe's default_medium_ri"),
        pixel_size_um=value("pixel_size_um", "res", PIXEL_UM),
    )


def _reference(source: Source, name: str, frames: Frames, defaults: ReadDefaults) -> Frames:
    shown = source.path.parent / name
    with ExitStack() as stack:
        folder = stack.enter_context(source.parent())
        try:
            handle = stack.enter_context(open_beneath(folder, name, label=source.path.parent))
        except FileNotFoundError as error:
            raise MissingCompanion(f"{shown}, the background of {source.path.name}, is absent.", companion=name) from error
        file, _ = stack.enter_context(hdf5_of(handle, shown))
        return matching(_frames(Node(file, shown, defaults.max_logical_bytes)), frames, str(shown))


# --- MATLAB's ways ---------------------------------------------------------------------------------


def _frames(root: Node) -> Frames:
    """``tomogMap`` as [angle, y, x]: HDF5 shows MATLAB's (y, x, angle) as [angle, x, y]."""
    node = root.child(FRAMES_NAME)
    here = node.where("")
    if _is_cell(node):
        found = [_plane(part) for part in _referred(node)]
        if len({(plane.shape, plane.dtype) for plane in found}) != 1:
            raise BadField(f"{here}: its cells differ in shape or type; allowed is {_FRAMES}.")
        demand_shape((len(found), *found[0].shape), here)
        frames: NDArray[Any] = np.stack(found)
    else:
        data = node.array(dtypes=(np.uint8, np.uint16), ndim=3, limits=_FRAMES)
        angles, nx, ny = data.shape
        demand_shape((angles, ny, nx), here)
        stored = read_array(data, (slice(None),) * 3, node.path)
        frames = np.ascontiguousarray(stored.transpose(0, 2, 1))
    demand_light(frames, here)
    return frames


def _plane(node: Node) -> NDArray[np.uint8] | NDArray[np.uint16]:
    data = node.array(dtypes=(np.uint8, np.uint16), ndim=2, limits="uint8 or uint16 (y, x)")
    return np.ascontiguousarray(read_array(data, (slice(None),) * 2, node.path).T)


def _is_cell(node: Node) -> bool:
    return isinstance(node.group, h5py.Dataset) and h5py.check_ref_dtype(node.group.dtype) is not None


def _referred(node: Node) -> list[Node]:
    """What a cell array refers to, in its order; object references only, and only as many as there may be frames."""
    data = node.group
    here = node.where("")
    if h5py.check_ref_dtype(data.dtype) is not h5py.Reference or data.size > ANGLES[1]:
        raise Forbidden(f"{here} holds {data.size} references; allowed are at most {ANGLES[1]} to objects of the file.")
    with translated(node.path):
        found = [data.file[reference] if reference else None for reference in np.ravel(data[()])]
    if any(not isinstance(one, h5py.Dataset) for one in found):
        raise BadField(f"{here} refers to something that is no array.")
    return [Node(one, node.path, node.max_bytes) for one in found]


def _number(node: Node) -> float:
    """A MATLAB scalar: an array of one element."""
    data = node.array(dtypes=_NUMERIC, ndim=node.group.ndim if isinstance(node.group, h5py.Dataset) else 2, limits="one number")
    if math.prod(data.shape) != 1:
        raise BadField(f"{node.where('')} has shape {data.shape}; allowed is one number.")
    return float(read_array(data, (slice(None),) * data.ndim, node.path).ravel()[0])


def _text(node: Node) -> str | None:
    """A MATLAB char array (uint16, transposed), or the first one of a cell; None where it is none."""
    if _is_cell(node):
        parts = _referred(node)
        return _text(parts[0]) if parts and not _is_cell(parts[0]) else None
    data = node.group
    if not isinstance(data, h5py.Dataset) or data.dtype != np.uint16 or data.ndim != 2 or data.size > 1024:
        return None
    characters = read_array(node.array(dtypes=(np.uint16,), ndim=2, limits="text"), (slice(None),) * 2, Path(node.path))
    return characters.T.astype("<u2").tobytes().decode("utf-16-le", "replace").strip("\0 ") or None
