"""MATLAB sessions of the Guck-lab kind: ``sample###_Tomog.mat`` or ``sample###.mat`` beside a shared background.

A v7.3 file is HDF5 behind a block of 512 bytes. MATLAB writes its axes in reverse order, its texts as uint16 arrays, and
cells as object references; those are followed within the file only, and what they lead to is examined like anything else.
Older files, v7 with its packed variables among them, are read by :mod:`wbcd.acquisition.matv5`.

A camera's grey values come as uint8 or uint16. Programs that fill an array of another class with them (``zeros(...,
'single')``) lose nothing as long as the values are whole; such stacks are taken for what they hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.candidate import open_beneath
from wbcd.acquisition.hdf5 import SIGNATURE, Node, hdf5_of, read_array, translated
from wbcd.acquisition.holograms import Frames, demand_light, demand_shape, matching
from wbcd.acquisition.limits import (
    ANGLES,
    MEDIUM,
    MEDIUM_RI,
    NUMERICAL_APERTURE,
    PIXEL_UM,
    WAVELENGTH_UM,
    ReadDefaults,
    within,
)
from wbcd.acquisition.matv5 import HEAD_BYTES, MatFile, Matrix, Values, is_v5
from wbcd.acquisition.session import Notes, background_name, backgrounds_of_mat, folder_names, read_notes
from wbcd.acquisition.source import Source
from wbcd.acquisition.tiffpair import complete_ticket
from wbcd.errors import BadField, Forbidden, MissingCompanion, TooLarge, Truncated, UnknownFormat
from wbcd.records import Acquisition, HologramStack, Optics, SourceFormat

MAT_SUFFIX = ".mat"
FRAMES_NAME = "tomogMap"
_FRAMES = "whole grey values (y, x, angle), or a cell array of frames (y, x)"
_PLANE = "whole grey values (y, x)"
_SAVE = "Save the frames as the camera gave them: tomogMap (y, x, angle) of uint8 or uint16."
_ALIKE = "Save frames of one size and one class."
_FETCH = "Copy it there, or correct the note that names it."
_BYTE, _WORD = 255, 65535
_NUMERIC = (np.float64, np.float32, np.uint8, np.uint16, np.int32, np.int64, np.uint32, np.uint64, np.int8, np.int16)


Root = Node | MatFile


def looks_like_mat(root: Root) -> bool:
    """True for a file that holds the stack of such a session."""
    return root.has(FRAMES_NAME)


def no_session(root: Root) -> UnknownFormat:
    """What a MATLAB file without that stack is, for a person."""
    names = root.names if isinstance(root, MatFile) else root.names()
    held = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return UnknownFormat(
        f"{root.path} is a MATLAB file of {held or 'nothing'}; a session's sample holds `{FRAMES_NAME}`.",
        action="Save the stack under that name, or move the file elsewhere.",
    )


def read_mat(root: Root, source: Source, defaults: ReadDefaults) -> tuple[Acquisition, HologramStack]:
    """Read and validate the sample and its background; the ticket comes back completed.

    Raises Incomplete (no background yet), MissingField, BadField, CorruptContent, Forbidden, TooLarge.
    """
    names = folder_names(source)
    notes = read_notes(source, names)
    found = _frames(root)
    background = background_name(source, notes, backgrounds_of_mat(source.path.name, names))
    optics = _optics(root, notes, defaults)
    beside = None if background is None else _reference(source, background, defaults)
    frames, reference = (found.frames, None) if beside is None else _alike(found, *beside)
    stack = HologramStack(
        holograms=frames,
        reference=reference,
        illumination_rad_um=notes.illumination(len(frames)),
        normal_frame=notes.count("normal_frame", (0, len(frames) - 1)),
        optics=optics,
    )
    form = SourceFormat.MATLAB_5 if isinstance(root, MatFile) else SourceFormat.MATLAB
    ticket = complete_ticket(source.acquisition, notes, optics, form, defaults, [background])
    if notes.optic("medium_ri") is None:
        ticket = replace(ticket, assumed=(MEDIUM,))
    if ticket.acquired_at is None and root.has("dateTimeVal"):
        ticket = _dated(ticket, _text_of(root, "dateTimeVal"))
    return ticket, stack


def _dated(ticket: Acquisition, text: str | None) -> Acquisition:
    """The rig's local time as it stands: it has no zone."""
    for form in ("%Y-%m-%d %H:%M:%S", "%d-%b-%Y %H:%M:%S"):
        try:
            return replace(ticket, acquired_at=datetime.strptime(text or "", form).isoformat())
        except ValueError:
            continue
    return ticket


def _optics(root: Root, notes: Notes, defaults: ReadDefaults) -> Optics:
    """The file's own numbers; a note beside it goes before them, for files are not edited. Medium: note, else the recipe's."""

    def value(key: str, name: str, bounds: tuple[float, float]) -> float:
        stated = notes.optic(key)
        return (
            stated
            if stated is not None
            else within(_number(root, name), bounds, where=root.where(name), action=_mend(name, key))
        )

    return Optics(
        wavelength_um=value("wavelength_um", "lambda", WAVELENGTH_UM),
        objective_na=value("objective_na", "NA", NUMERICAL_APERTURE),
        medium_ri=notes.optic("medium_ri")
        or within(
            defaults.medium_ri,
            MEDIUM_RI,
            where="the recipe's default_medium_ri",
            action="Correct [recipe.reconstruction] default_medium_ri.",
        ),
        pixel_size_um=value("pixel_size_um", "res", PIXEL_UM),
    )


def _mend(name: str, key: str) -> str:
    return f'Correct `{name}` in MATLAB, or write {{"{key}": ...}} into a note beside the file: it goes before.'


def _reference(source: Source, name: str, defaults: ReadDefaults) -> tuple[_Found, str]:
    """The background's frames and what names it in messages."""
    shown = source.path.parent / name
    with ExitStack() as stack:
        folder = stack.enter_context(source.parent())
        try:
            handle = stack.enter_context(open_beneath(folder, name, label=source.path.parent))
        except FileNotFoundError as error:
            raise MissingCompanion(
                f"{shown}, the background of {source.path.name}, is absent.", companion=name, action=_FETCH
            ) from error
        root = stack.enter_context(opened_mat(handle, shown, defaults))
        if not looks_like_mat(root):
            raise no_session(root)
        return _frames(root), str(shown)


@contextmanager
def opened_mat(handle: int, shown: Path, defaults: ReadDefaults) -> Iterator[Root]:
    """An open MATLAB file of either kind; raises UnknownFormat for anything else."""
    if is_v5(handle):
        yield MatFile(handle, shown, defaults.max_logical_bytes)
        return
    head = os.pread(handle, HEAD_BYTES, 0)
    if head.startswith(b"MATLAB 5.0") and len(head) < HEAD_BYTES:
        raise Truncated(f"{shown} holds {len(head)} bytes; the header of such a file is {HEAD_BYTES} long.")
    if head.strip(b"\0") and not head.startswith((b"MATLAB", SIGNATURE[: len(head)])):
        raise UnknownFormat(
            f"{shown} does not begin as a MATLAB file of version 5 or later does (found {head[:8]!r}).",
            action="Save it again with -v7 or -v7.3, or move it elsewhere.",
        )
    with hdf5_of(handle, shown) as (file, _):
        yield Node(file, shown, defaults.max_logical_bytes, "Save the variable again in MATLAB.")


# --- frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """Frames [angle, y, x]; ``given``: in the file they are of the camera's own type, not of one that was filled with them."""

    frames: Frames
    given: bool


def _alike(found: _Found, beside: _Found, where: str) -> tuple[Frames, Frames]:
    """Sample and background in one type, where one of the two had to be found from the values; raises BadField."""
    pair = found.frames, beside.frames
    if not (found.given and beside.given) and pair[0].dtype != pair[1].dtype:
        pair = pair[0].astype(np.uint16), pair[1].astype(np.uint16)
    return pair[0], matching(pair[1], pair[0], where)


def _frames(root: Root) -> _Found:
    """``tomogMap`` as [angle, y, x]: MATLAB's (y, x, angle) lies in a file as [angle, x, y]."""
    here = root.where(FRAMES_NAME)
    if isinstance(root, MatFile):
        found = _frames_of_v5(root, here)
    else:
        node = root.child(FRAMES_NAME)
        found = _frames_of_cells(node, here) if _is_cell(node) else _frames_of_array(node, here)
    demand_light(found.frames, here)
    return found


def _frames_of_array(node: Node, here: str) -> _Found:
    data = node.array(dtypes=_NUMERIC, ndim=3, limits=_FRAMES)
    angles, nx, ny = data.shape
    step = data.chunks[0] if data.chunks else 16  # each chunk is unpacked once

    def planes() -> Iterator[NDArray[Any]]:
        for first in range(0, angles, step):
            yield from read_array(data, (slice(first, first + step),), node.path).transpose(0, 2, 1)

    return _stacked(planes(), (angles, ny, nx), data.dtype, here)


def _frames_of_cells(node: Node, here: str) -> _Found:
    parts = [part.array(dtypes=_NUMERIC, ndim=2, limits=_PLANE) for part in _referred(node)]
    if len({(part.shape, part.dtype) for part in parts}) != 1:
        raise BadField(f"{here}: its cells differ in shape or type; allowed is {_FRAMES}.", action=_ALIKE)
    nx, ny = parts[0].shape
    _demand_room(len(parts) * nx * ny * parts[0].dtype.itemsize, node.max_bytes, here)
    planes = (read_array(part, (slice(None),) * 2, node.path).T for part in parts)
    return _stacked(planes, (len(parts), ny, nx), parts[0].dtype, here)


def _frames_of_v5(root: MatFile, here: str) -> _Found:
    with root.values(FRAMES_NAME) as (head, values):
        if head.is_cell:
            return _frames_of_v5_cells(head, values, root.max_bytes, here)
        if len(head.shape) != 3 or 0 in head.shape:
            raise BadField(f"{here} is {head.says()}; allowed is {_FRAMES}.", action=_SAVE)
        ny, nx, angles = head.shape
        stored = values.numbers(head)
        planes = (values.take(stored, nx * ny).reshape(nx, ny).T for _ in range(angles))
        return _stacked(planes, (angles, ny, nx), head.dtype if np.can_cast(stored, head.dtype) else stored, here)


def _frames_of_v5_cells(head: Matrix, values: Values, max_bytes: int, here: str) -> _Found:
    first = values.head() if 0 < head.size <= ANGLES[1] else None
    if first is None or len(first.shape) != 2 or 0 in first.shape:
        says = head.says() if first is None else f"{head.says()} of {first.says()}"
        raise BadField(f"{here} is {says}; allowed is {_FRAMES}, at most {ANGLES[1]}.", action=_SAVE)
    ny, nx = first.shape
    stored = values.numbers(first)
    _demand_room(head.size * nx * ny * stored.itemsize, max_bytes, here)

    def planes() -> Iterator[NDArray[Any]]:
        kind = stored
        for index in range(head.size):
            if index:
                found = values.head()
                if (found.shape, found.kind) != (first.shape, first.kind):
                    raise BadField(f"{here}: its cells differ in shape or type; allowed is {_FRAMES}.", action=_ALIKE)
                kind = values.numbers(found)
            yield values.take(kind, nx * ny).reshape(nx, ny).T
            if index + 1 < head.size:
                values.end()

    return _stacked(planes(), (head.size, ny, nx), first.dtype if np.can_cast(stored, first.dtype) else stored, here)


def _demand_room(size: int, limit: int, here: str) -> None:
    if size > limit:
        raise TooLarge(f"{here} declares {size} bytes; the limit is {limit}.")


def _stacked(planes: Iterable[NDArray[Any]], shape: tuple[int, int, int], dtype: np.dtype[Any], here: str) -> _Found:
    """The planes [y, x] as one stack of ``shape``; of another type than a camera's they must hold whole grey values."""
    demand_shape(shape, here)
    given = dtype.newbyteorder("=") in (np.dtype(np.uint8), np.dtype(np.uint16))
    frames: NDArray[Any] = np.empty(shape, dtype.newbyteorder("=") if given else np.uint16)
    for index, plane in enumerate(planes):
        fits = given and np.can_cast(plane.dtype, frames.dtype)
        frames[index] = plane if fits else _grey_values(plane, f"{here}, frame {index},")
    if not given and int(frames.max()) <= _BYTE:
        frames = frames.astype(np.uint8)
    return _Found(frames, given)


def _grey_values(plane: NDArray[Any], where: str) -> NDArray[Any]:
    wrong = ~((plane >= 0) & (plane <= _WORD) & (plane == np.floor(plane)))  # NaN is wrong, too
    if wrong.any():
        raise BadField(
            f"{where} holds {plane[wrong].ravel()[0]:g}, which is no grey value of a camera; allowed are whole numbers from 0"
            f" to {_WORD}.",
            action=_SAVE,
        )
    return plane


# --- MATLAB's ways ---------------------------------------------------------------------------------


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
        raise BadField(f"{here} refers to something that is no array.", action=_SAVE)
    return [Node(one, node.path, node.max_bytes) for one in found]


def _number(root: Root, name: str) -> float:
    """A MATLAB scalar: an array of one element."""
    if isinstance(root, MatFile):
        with root.values(name) as (head, values):
            _demand_one(head.shape, root.where(name))
            return float(values.take(values.numbers(head), 1)[0])
    node = root.child(name)
    data = node.array(dtypes=_NUMERIC, ndim=node.group.ndim if isinstance(node.group, h5py.Dataset) else 2, limits="one number")
    _demand_one(data.shape, node.where(""))
    return float(read_array(data, (slice(None),) * data.ndim, node.path).ravel()[0])


def _demand_one(shape: tuple[int, ...], where: str) -> None:
    if math.prod(shape) != 1:
        raise BadField(
            f"{where} has shape {shape}; allowed is one number.", action="Save the value that holds for the session."
        )


def _text_of(root: Root, name: str) -> str | None:
    if not isinstance(root, MatFile):
        return _text(root.child(name))
    with root.values(name) as (head, values):
        text = values.text(values.head() if head.is_cell and head.size else head)
        values.rest()
        return text


def _text(node: Node) -> str | None:
    """A MATLAB char array (uint16, transposed), or the first one of a cell; None where it is none."""
    if _is_cell(node):
        parts = _referred(node)
        return _text(parts[0]) if parts and not _is_cell(parts[0]) else None
    data = node.group
    if not isinstance(data, h5py.Dataset) or data.dtype != np.uint16 or data.ndim != 2 or data.size > 1024:
        return None
    characters = read_array(node.array(dtypes=(np.uint16,), ndim=2, limits="text"), (slice(None),) * 2, Path(node.path))
    try:
        return characters.T.astype("<u2").tobytes().decode("utf-16-le").strip("\0 ") or None
    except UnicodeDecodeError:
        return None
