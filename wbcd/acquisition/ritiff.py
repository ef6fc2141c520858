"""RI volumes as TIFF: the vendor's ``NAME_HT3D_0.00.TIFF``, exports of reconstruction programs, OME-TIFF.

float32 or float64 RI, or uint16 of RI x 1e4; planes along z are pages, time points follow one another. How many there are and
their pitch is said by OME-XML, by ImageJ's lines, by tifffile's JSON, or by notes (JSON) beside the file. tifffile walks the
directories; the pixels are unpacked here, segment by segment and within their declared size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from wbcd.acquisition.candidate import demand_unchanged
from wbcd.acquisition.limits import MEDIUM, PROVENANCE, SCALE, VALUES, VOXEL_UM, ReadDefaults, plain_text, within
from wbcd.acquisition.session import Notes, folder_names, read_notes
from wbcd.acquisition.source import Source
from wbcd.acquisition.tiffmeta import IMAGEJ, MAX_PLANES, OME, PLAIN, TIFFFILE, Described, Resolution, described
from wbcd.acquisition.tiffpair import COMPRESSIONS, demand_end, demand_signature, translated, unpacked
from wbcd.acquisition.volume import assemble, decode, demand_loadable
from wbcd.errors import (
    BadField,
    CorruptContent,
    Forbidden,
    Incomplete,
    MissingCompanion,
    MissingField,
    TooLarge,
    Truncated,
    UnknownFormat,
)
from wbcd.records import Acquisition, Shape3, SourceFormat, Tomogram, Triple

RI_SCALE = 1e4
RI_OF_CELLS = (1.2, 1.8)
"""Narrower than what is physical: nothing in a TIFF says that its values are RI, so that they have to."""
MAX_OUTSIDE_FRACTION = 0.01
MAX_SEGMENTS = 8192
NOTE_KEY = "voxel_um"
_TYPES: Mapping[tuple[int, int], np.dtype[Any]] = {
    (1, 16): np.dtype(np.uint16),
    (3, 32): np.dtype(np.float32),
    (3, 64): np.dtype(np.float64),
}
_NOT_RI = (
    "Export refractive index, not a picture of it. Holograms are named NAME_sp.tif, their backgrounds NAME_bg.tif; keep other"
    " images elsewhere."
)


@dataclass(frozen=True, slots=True)
class _Page:
    """One plane as it is stored: ``segments`` are strips or tiles of ``rows`` x ``columns``, at (offset, bytes)."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    compression: int
    predictor: int
    tiled: bool
    rows: int
    columns: int
    segments: tuple[tuple[int, int], ...]

    @property
    def alike(self) -> tuple[Any, ...]:
        """What all pages of a volume share."""
        return self.shape, self.dtype

    @property
    def nbytes(self) -> int:
        """Of the unpacked plane."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class RiTiffHeader:
    """One examined file. ``shape`` and ``voxel_um`` are (z, y, x); ``pages``: planes, volume by volume."""

    shape: Shape3
    time_points: int
    voxel_um: Triple
    medium_ri: float
    wavelength_um: float | None
    objective_na: float | None
    order: Literal[">", "<"]
    pages: tuple[_Page, ...]


# --- header ----------------------------------------------------------------------------------------


def read_ri_tiff_header(source: Source, defaults: ReadDefaults) -> tuple[Acquisition, RiTiffHeader]:
    """Validate everything but the voxels; the ticket comes back completed.

    Raises UnknownFormat (no TIFF, a background), BadField (types, colours, channels, several images), MissingField or
    Incomplete (no pitch in file and notes; fewer pages than stated), Forbidden (planes in other files, compressions),
    Truncated, CorruptContent, TooLarge.
    """
    path = source.path
    names = folder_names(source)
    with source.opened() as handle:
        state = os.fstat(handle)
        demand_unchanged(source.acquisition, state.st_size, state.st_mtime_ns)
        notes = read_notes(source, names)
        _demand_no_background(path, notes)
        order, pages, said = _examined(handle, path, defaults.max_logical_bytes)
        planes, times = _planes_and_times(said, len(pages), notes, path)
        pages = _in_order(pages, said, planes * times, state.st_size, path)
        shape = (planes, *pages[0].shape)
        demand_loadable(shape, defaults, f"{path}: its planes")
        _demand_whole(pages, state.st_size, path)
        _demand_ri(handle, pages[planes // 2], order, path)
    header = RiTiffHeader(
        shape=shape,
        time_points=times,
        voxel_um=_voxel(said, notes, names, path),
        medium_ri=notes.optic("medium_ri") or defaults.medium_ri,
        wavelength_um=notes.optic("wavelength_um"),
        objective_na=notes.optic("objective_na"),
        order=order,
        pages=tuple(pages),
    )
    return _ticket(source.acquisition, notes, said, header, defaults), header


def _demand_no_background(path: Path, notes: Notes) -> None:
    if notes.values.get("background") == path.name:
        raise UnknownFormat(
            f"{path} is the background that {notes.where['background'].name} names; it is read with its samples.",
            action="Nothing to do; named *_bg.tif it is passed over.",
        )


def _examined(handle: int, path: Path, max_bytes: int) -> tuple[Literal[">", "<"], list[_Page], Described]:
    """Every page of the file, none of its pixels read, and what the description of the first says."""
    size = os.fstat(handle).st_size
    demand_signature(os.pread(handle, 4, 0), size, path)
    pages: list[_Page] = []
    seen: set[int] = set()
    offset = 0
    with translated(path), os.fdopen(os.dup(handle), "rb") as stream, tifffile.TiffFile(stream, name=str(path)) as file:
        first: Any = None
        page: Any
        for page in file.pages:
            if len(pages) == MAX_PLANES:
                raise TooLarge(f"{path} holds more than {MAX_PLANES} pages.", action="")
            pages.append(_page(page, f"{path}: page {len(pages)}", max_bytes))
            if pages[-1].alike != pages[0].alike:
                raise BadField(
                    f"{path}: page {len(pages) - 1} is {pages[-1].shape} {pages[-1].dtype}, the first {pages[0].shape}"
                    f" {pages[0].dtype}; all must be alike.",
                    action="Export the volume alone: other images do not belong into its file.",
                )
            if page.offset in seen:
                raise CorruptContent(f"{path}: its pages lead back to byte {page.offset}.")
            seen.add(page.offset)
            first, offset = first or page, page.offset
        if not pages:
            raise CorruptContent(f"{path} holds no page.")
        demand_end(stream, file, offset, size, path)
        said = described(_description(first), _resolution(first), str(path))
        return ">" if file.byteorder == ">" else "<", pages, said


def _page(page: Any, where: str, max_bytes: int) -> _Page:
    if page.samplesperpixel != 1 or page.photometric != 1 or len(page.shape) != 2:
        raise BadField(
            f"{where} has {page.samplesperpixel} samples a pixel, shape {page.shape}, photometric {int(page.photometric)};"
            " allowed is one sample a pixel, 0 is black.",
            action=_NOT_RI,
        )
    kinds = {1: "uint", 2: "int", 3: "float"}
    dtype: np.dtype[Any] | None = _TYPES.get((int(page.sampleformat), int(page.bitspersample)))
    if dtype is None:
        found = f"{kinds.get(int(page.sampleformat), 'type ' + str(int(page.sampleformat)))}{page.bitspersample}"
        raise BadField(
            f"{where} holds {found}; allowed are float32 and float64 of RI, and uint16 of RI x 10,000.", action=_NOT_RI
        )
    if page.compression not in COMPRESSIONS:
        raise Forbidden(
            f"{where} is compressed by method {int(page.compression)} ({getattr(page.compression, 'name', 'unknown')});"
            f" allowed are {', '.join(dict.fromkeys(COMPRESSIONS.values()))}.",
            action="Save the volume without compression.",
        )
    if page.predictor not in ((1, 2) if dtype.kind == "u" else (1, 3)) or getattr(page, "fillorder", 1) != 1:
        raise Forbidden(
            f"{where} is stored by predictor {int(page.predictor)} or an unusual bit order.",
            action="Save the volume without compression.",
        )
    height, width = (int(n) for n in page.shape)
    rows, columns = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (int(page.rowsperstrip), width)
    rows = rows if page.is_tiled else max(1, min(rows, height))
    if rows < 1 or columns < 1 or rows * columns * dtype.itemsize > max_bytes:
        raise TooLarge(f"{where} has segments of {rows} x {columns}; the limit is {max_bytes} bytes.")
    expected = math.ceil(height / rows) * math.ceil(width / columns)
    if not len(page.dataoffsets) == len(page.databytecounts) == expected <= MAX_SEGMENTS:
        raise CorruptContent(
            f"{where} has {len(page.dataoffsets)} strips or tiles; its header says {expected}; the limit is {MAX_SEGMENTS}."
        )
    segments = tuple((int(a), int(b)) for a, b in zip(page.dataoffsets, page.databytecounts, strict=True))
    made = _Page(
        (height, width), dtype, int(page.compression), int(page.predictor), bool(page.is_tiled), rows, columns, segments
    )
    if made.nbytes > max_bytes:
        raise TooLarge(f"{where} declares {made.nbytes} bytes; the limit is {max_bytes}.")
    return made


def _description(page: Any) -> str:
    value = _tag(page, "ImageDescription")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _resolution(page: Any) -> Resolution:
    unit = _tag(page, "ResolutionUnit")
    x, y = (_ratio(_tag(page, name)) for name in ("XResolution", "YResolution"))
    return Resolution(x, y, int(unit) if isinstance(unit, int) else 1)


def _tag(page: Any, name: str) -> Any:
    tag = page.tags.get(name)
    return None if tag is None else tag.value


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) for n in value) and value[1]:
        return float(value[0] / value[1])
    return None


def _planes_and_times(said: Described, pages: int, notes: Notes, path: Path) -> tuple[int, int]:
    stated = notes.count("planes", (1, MAX_PLANES))
    planes = said.planes or stated or pages
    if stated is not None and stated != planes:
        raise BadField(
            f"{path} has {planes} planes by its {said.kind}, {stated} by {notes.where['planes'].name}.",
            action="Correct the notes, or save the file again.",
        )
    if planes < 2:
        raise BadField(f"{path} holds one plane; a volume of RI has several along z.", action=_NOT_RI)
    return planes, said.time_points


def _in_order(pages: list[_Page], said: Described, count: int, size: int, path: Path) -> list[_Page]:
    """``count`` planes, time by time; raises Incomplete where pages are missing, BadField where some belong to nothing."""
    if len(pages) == 1 and count > 1 and said.kind in (IMAGEJ, TIFFFILE):
        pages = _continued(pages[0], count, size, path)
    wanted = range(count) if said.pages is None else said.pages
    if max(wanted) >= len(pages):
        raise Incomplete(f"{path} holds {len(pages)} of {max(wanted) + 1} pages that its {_kind(said)}.")
    if said.kind != OME and len(pages) > count:
        raise BadField(
            f"{path} holds {len(pages)} pages; {count} is what its {_kind(said)}.",
            action="Correct the notes, or save the file again.",
        )
    return [pages[at] for at in wanted]


def _kind(said: Described) -> str:
    return "notes state" if said.kind == PLAIN else f"description ({said.kind}) states"


def _continued(page: _Page, count: int, size: int, path: Path) -> list[_Page]:
    """ImageJ (over 4 GB) and tifffile can write one directory for a whole stack: the planes follow one another."""
    begin, end = page.segments[0][0], page.segments[0][0]
    for offset, length in page.segments:
        if offset != end:
            break
        end += length
    if page.compression != 1 or page.tiled or end - begin != page.nbytes:
        raise Incomplete(f"{path} holds 1 of the {count} pages that its description states.")
    if begin + count * page.nbytes > size:
        raise Truncated(f"{path} holds {size} bytes; {count} planes end at byte {begin + count * page.nbytes}.")
    shifts = (index * page.nbytes for index in range(count))
    return [replace(page, segments=tuple((at + shift, length) for at, length in page.segments)) for shift in shifts]


def _demand_whole(pages: Sequence[_Page], size: int, path: Path) -> None:
    for index, page in enumerate(pages):
        for number, (offset, count) in enumerate(page.segments):
            where = f"{path}: plane {index}, segment {number}"
            if offset < 8 or count <= 0:
                raise Incomplete(f"{where} was declared and never written.")
            if offset + count > size:
                raise Truncated(f"{where} ends at byte {offset + count}; the file holds {size}.")


def _demand_ri(handle: int, page: _Page, order: Literal[">", "<"], path: Path) -> None:
    """Judge the middle plane at once: nobody shall look for the voxel size of a picture that is no RI."""
    tally = _Tally()
    with translated(path), os.fdopen(os.dup(handle), "rb") as stream:
        tally.add(_pixels(stream, page, order, str(path)))
    tally.judge(str(path))


def _voxel(said: Described, notes: Notes, names: Sequence[str], path: Path) -> Triple:
    """(z, y, x) in um: the notes' before the file's own; raises MissingField or, without notes, MissingCompanion."""
    if NOTE_KEY in notes.values:
        return _noted_voxel(notes)
    found = []
    for axis, value in zip("zyx", said.pitch_um, strict=True):
        if value is None:
            continue
        try:
            found.append(within(value, VOXEL_UM, where=f"{path}: pitch along {axis} by its {said.kind}", unit="um"))
        except BadField as error:
            raise BadField(error.message, action=f"Write the right one as `{NOTE_KEY}`: {_how_to_note(notes)}") from error
    if len(found) == 3:
        return found[0], found[1], found[2]
    absent = ", ".join(axis for axis, value in zip("zyx", said.pitch_um, strict=True) if value is None)
    files = " or ".join(dict.fromkeys(notes.sought))
    there = any(name in names for name in notes.sought)
    kind = MissingField if there else MissingCompanion  # notes may be on their way
    waits = "" if there else " waits for its notes"
    raise kind(
        f"{path}{waits}: the size of its voxels along {absent} is not in the file ({said.kind}), nor `{NOTE_KEY}` in {files}.",
        action=f"Write {_how_to_note(notes)}",
    )


def _how_to_note(notes: Notes) -> str:
    key = f'{{"{NOTE_KEY}": [z, y, x]}} in micrometres, such as {{"{NOTE_KEY}": [0.4, 0.15, 0.15]}}'
    return f"{key}, into {' or '.join(dict.fromkeys(notes.sought))} in the same folder."


def _noted_voxel(notes: Notes) -> Triple:
    where = f"{notes.where[NOTE_KEY]}: `{NOTE_KEY}`"
    values = notes.values[NOTE_KEY]
    numbers = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numbers or len(values) != 3:
        raise BadField(
            f"{where} is {str(values)[:80]!r}; allowed are three numbers, [z, y, x] in um.", action="Correct the notes."
        )
    z, y, x = (within(float(min(v, 10**9)), VOXEL_UM, where=where, unit="um") for v in values)
    return z, y, x


def _ticket(
    acquisition: Acquisition, notes: Notes, said: Described, header: RiTiffHeader, defaults: ReadDefaults
) -> Acquisition:
    date = notes.text("acquired_at") or said.acquired_at
    return replace(
        acquisition,
        format=SourceFormat.RI_TIFF,
        acquisition_id=notes.text("acquisition_id") or acquisition.path.stem,
        acquired_at=None if date is None else plain_text(date, where=f"{acquisition.path}: its date"),
        sample_id=notes.text("sample_id") or defaults.sample_id or acquisition.sample_id,
        instrument_id=notes.text("instrument_id"),
        medium_ri=header.medium_ri,
        wavelength_um=header.wavelength_um,
        objective_na=header.objective_na,
        pixel_size_um=header.voxel_um[2],
        time_points=header.time_points,
        companions=tuple((name, None) for name in notes.files),
        assumed=() if notes.optic("medium_ri") else (MEDIUM,),
        unprotected=(SCALE, VALUES, PROVENANCE),
    )


# --- volumes ---------------------------------------------------------------------------------------


def ri_tiff_volumes(source: Source, header: RiTiffHeader) -> Iterator[Tomogram]:
    """Every time point as float32 RI [z, y, x], each loaded when it is asked for; raises CorruptContent or BadField."""
    with source.opened() as handle, os.fdopen(os.dup(handle), "rb") as stream:
        for index in range(header.time_points):
            yield _volume(stream, source.path, header, index)


def _volume(stream: BinaryIO, path: Path, header: RiTiffHeader, index: int) -> Tomogram:
    planes = header.shape[0]
    where = f"{path}: time point {index}" if header.time_points > 1 else str(path)

    def load(out: NDArray[np.float32]) -> None:
        tally = _Tally()
        for z in range(planes):
            stored = _pixels(stream, header.pages[index * planes + z], header.order, f"{where}, plane {z}")
            tally.add(stored)
            decode(stored, RI_SCALE, 0.0, out[z])
        tally.judge(where)

    with translated(path):
        ri, fill = assemble(header.shape, header.medium_ri, load, where)
    return Tomogram(
        ri=ri,
        voxel_um=header.voxel_um,
        medium_ri=header.medium_ri,
        time_index=index,
        wavelength_um=header.wavelength_um,
        objective_na=header.objective_na,
        fill=fill,
    )


@dataclass(slots=True)
class _Tally:
    """What the stored values are like; 0 and what is not finite are judged with the volume."""

    low: float = math.inf
    high: float = -math.inf
    known: int = 0
    outside: int = 0
    dtype: str = ""

    def add(self, stored: NDArray[Any]) -> None:
        self.dtype = str(stored.dtype)
        scale = RI_SCALE if stored.dtype.kind == "u" else 1.0
        low, high = (bound * scale for bound in RI_OF_CELLS)
        smallest, largest = float(stored.min()), float(stored.max())
        if not (low <= smallest and largest <= high):  # the common case needs no mask; a NaN comes here
            known = stored[np.isfinite(stored) & (stored != 0)]
            self.known += known.size
            self.outside += int(np.count_nonzero((known < low) | (known > high)))
            if not known.size:
                return
            smallest, largest = float(known.min()), float(known.max())
        else:
            self.known += stored.size
        self.low, self.high = min(self.low, smallest), max(self.high, largest)

    def judge(self, where: str) -> None:
        if self.outside > MAX_OUTSIDE_FRACTION * self.known:
            low, high = RI_OF_CELLS
            share = self.outside / self.known
            raise BadField(
                f"{where} holds {self.dtype} values of {self.low:.6g} to {self.high:.6g}, {share:.1%} of them no RI of cells or"
                f" media; allowed are float values of {low:g} to {high:g}, or uint16 of RI x 10,000, {low * RI_SCALE:.0f} to"
                f" {high * RI_SCALE:.0f}.",
                action=_NOT_RI,
            )


def _pixels(stream: BinaryIO, page: _Page, order: Literal[">", "<"], where: str) -> NDArray[Any]:
    """One plane [y, x] in native byte order."""
    height, width = page.shape
    out = np.empty(page.shape, page.dtype)
    across = math.ceil(width / page.columns)
    for index, (offset, count) in enumerate(page.segments):
        top, left = index // across * page.rows, index % across * page.columns
        rows = page.rows if page.tiled else min(page.rows, height - top)  # a tile is whole beyond the edge of the page
        stream.seek(offset)
        block = _block(stream.read(count), page, (rows, page.columns), order, f"{where}, segment {index}")
        part = out[top : top + rows, left : left + page.columns]
        part[...] = block[: part.shape[0], : part.shape[1]]
    return out


def _block(raw: bytes, page: _Page, shape: tuple[int, int], order: Literal[">", "<"], where: str) -> NDArray[Any]:
    expected = math.prod(shape) * page.dtype.itemsize
    plain = unpacked(raw, page.compression, expected)
    if len(plain) < expected:
        raise CorruptContent(f"{where} unpacks to {len(plain)} bytes; {expected} are needed.")
    if page.predictor == 3:  # the bytes of a row by significance, each plane differenced (TIFF technical note 3)
        rows = np.frombuffer(plain, np.uint8, expected).reshape(shape[0], -1)
        sums = np.cumsum(rows, axis=1, dtype=np.uint8).reshape(shape[0], page.dtype.itemsize, shape[1])
        return (
            np.ascontiguousarray(sums.transpose(0, 2, 1)).view(page.dtype.newbyteorder(">")).reshape(shape).astype(page.dtype)
        )
    values = np.frombuffer(plain, page.dtype.newbyteorder(order), math.prod(shape)).reshape(shape).astype(page.dtype)
    return np.cumsum(values, axis=1, dtype=page.dtype) if page.predictor == 2 else values
