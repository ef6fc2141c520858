"""TIFF pairs: ``NAME_sp.tif`` (sample), ``NAME_bg.tif`` or a session's ``bg.tif`` (sample-free), notes in ``NAME.json``.

The layout of KAIST-style rigs (docs/reference/formats.md): one page an angle, 8 or 16 bits. tifffile walks the directories;
the pixels are unpacked here, strip by strip and within their declared size, so that a few bytes cannot become gigabytes.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from wbcd.acquisition.candidate import demand_unchanged, open_beneath
from wbcd.acquisition.holograms import Frames, demand_light, demand_shape, matching
from wbcd.acquisition.limits import ANGLES, ReadDefaults
from wbcd.acquisition.session import Notes, background_name, backgrounds_of_tiff, folder_names, read_notes
from wbcd.acquisition.source import Source
from wbcd.errors import (
    BadField,
    CorruptContent,
    Forbidden,
    Incomplete,
    InputError,
    MissingCompanion,
    NotReadable,
    TooLarge,
    Truncated,
    UnknownFormat,
)
from wbcd.records import Acquisition, HologramStack, Optics, SourceFormat

SUFFIXES = frozenset({".tif", ".tiff"})
COMPRESSIONS = {1: "none", 8: "deflate", 32946: "deflate", 32773: "PackBits"}
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_STRIPS = 8192
_NONE, _PACKBITS = 1, 32773
_FRAMES = "uint8 or uint16 pages of one sample a pixel"
# It writes of damage to its log and goes on; here damage ends the reading.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
# What tifffile raises where the directories make no sense; anything else is a fault of ours.
_LIBRARY_ERRORS = (
    tifffile.TiffFileError, ValueError, TypeError, KeyError, IndexError, struct.error, OverflowError, AttributeError, EOFError
)  # fmt: skip


def read_tiff_pair(source: Source, defaults: ReadDefaults) -> tuple[Acquisition, HologramStack]:
    """Read and validate sample, background and notes; the ticket comes back completed.

    Raises Incomplete (a companion is not there yet, or holds more pages than the sample), MissingField, BadField,
    CorruptContent, Truncated, Forbidden (a compression outside the list), TooLarge.
    """
    names = folder_names(source)
    with source.opened() as handle:
        state = os.fstat(handle)
        demand_unchanged(source.acquisition, state.st_size, state.st_mtime_ns)
        notes = _demand_notes(source, names)
        frames = read_stack(handle, source.path, defaults.max_logical_bytes)
    background = background_name(source, notes, backgrounds_of_tiff(source.path.name, names))
    reference = None if background is None else _reference(source, background, frames, defaults)
    _demand_count(notes, frames, source.path)
    optics = Optics(
        wavelength_um=notes.required_optic("wavelength_um"),
        objective_na=notes.required_optic("objective_na"),
        medium_ri=notes.required_optic("medium_ri"),
        pixel_size_um=notes.required_optic("pixel_size_um"),
    )
    stack = HologramStack(
        holograms=frames,
        reference=reference,
        illumination_rad_um=notes.illumination(len(frames)),
        normal_frame=notes.count("normal_frame", (0, len(frames) - 1)) or 0,
        optics=optics,
    )
    return complete_ticket(source.acquisition, notes, optics, SourceFormat.TIFF_PAIR, defaults, [background]), stack


def complete_ticket(
    acquisition: Acquisition,
    notes: Notes,
    optics: Optics,
    form: SourceFormat,
    defaults: ReadDefaults,
    backgrounds: Sequence[str | None] = (),
) -> Acquisition:
    """The ticket with what the notes and the optics say; the file's stem is its id where no note names one.

    ``backgrounds``: names of the sample-free files that were read with it.
    """
    return replace(
        acquisition,
        companions=tuple((name, None) for name in sorted({*notes.files, *filter(None, backgrounds)})),
        format=form,
        acquisition_id=notes.text("acquisition_id") or acquisition.path.stem,
        acquired_at=notes.text("acquired_at"),
        sample_id=notes.text("sample_id") or defaults.sample_id or acquisition.sample_id,
        instrument_id=notes.text("instrument_id"),
        medium_ri=optics.medium_ri,
        wavelength_um=optics.wavelength_um,
        objective_na=optics.objective_na,
        pixel_size_um=optics.pixel_size_um,
    )


def _demand_notes(source: Source, names: Sequence[str]) -> Notes:
    notes = read_notes(source, names)
    if not notes.values:
        raise MissingCompanion(
            f"{source.path}: waits for its notes, which are absent ({', '.join(notes.sought)}).",
            action="Write wavelength_um, objective_na, medium_ri and pixel_size_um into one of them.",
        )
    return notes


def _demand_count(notes: Notes, frames: Frames, path: Path) -> None:
    stated = notes.count("frames", ANGLES)
    if stated is not None and stated > len(frames):
        raise Incomplete(f"{path} holds {len(frames)} of the {stated} frames that its notes state.")


def _reference(source: Source, name: str, frames: Frames, defaults: ReadDefaults) -> Frames:
    shown = source.path.parent / name
    with source.parent() as folder:
        try:
            with open_beneath(folder, name, label=source.path.parent) as handle:
                found = read_stack(handle, shown, defaults.max_logical_bytes)
        except FileNotFoundError as error:
            raise MissingCompanion(f"{shown}, the background of {source.path.name}, is absent.", companion=name) from error
    if len(found) > len(frames):
        raise Incomplete(f"{source.path} holds {len(frames)} frames, its background {shown.name} {len(found)}.")
    return matching(found, frames, str(shown))


# --- one stack -------------------------------------------------------------------------------------


def read_stack(handle: int, shown: Path, max_bytes: int) -> Frames:
    """All pages of an open TIFF or BigTIFF file as frames [angle, y, x]; ``shown`` names it in messages."""
    size = os.fstat(handle).st_size
    _demand_signature(os.pread(handle, 4, 0), size, shown)
    with _translated(shown), os.fdopen(os.dup(handle), "rb") as stream, tifffile.TiffFile(stream, name=str(shown)) as file:
        pages = _pages(file, shown, max_bytes)
        _demand_end(stream, file, pages[-1].offset, size, shown)
        first = pages[0]
        demand_shape((len(pages), *first.shape), str(shown))
        dtype = np.dtype(f"u{int(first.bitspersample) // 8}")
        frames = np.empty((len(pages), *first.shape), dtype)
        order: Literal[">", "<"] = ">" if file.byteorder == ">" else "<"
        for index, page in enumerate(pages):
            frames[index] = _pixels(stream, page, dtype, order, size, f"{shown}: page {index}")
    demand_light(frames, str(shown))
    return frames


def _demand_signature(head: bytes, size: int, shown: Path) -> None:
    if not head.strip(b"\0"):
        raise Incomplete(f"{shown} ({size} bytes) begins with nothing but zeros: nothing was written yet.")
    if head not in SIGNATURES:
        raise UnknownFormat(f"{shown} does not begin as a TIFF file does (found {head!r}).")


@contextmanager
def _translated(shown: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise TooLarge(f"{shown} needs more memory than the reader may use.") from error
    except OSError as error:
        raise NotReadable(f"{shown} cannot be read: {error}.") from error
    except _LIBRARY_ERRORS as error:
        raise CorruptContent(f"{shown} is damaged: {str(error)[:200] or type(error).__name__}.") from error


def _pages(file: tifffile.TiffFile, shown: Path, max_bytes: int) -> list[Any]:
    """The pages, examined and not yet read; raises TooLarge at the page after the limit, so that no chain is endless."""
    pages: list[Any] = []
    page: Any  # tifffile's pages and frames of pages; _examine demands what is used
    for page in file.pages:
        if len(pages) == ANGLES[1]:
            raise TooLarge(f"{shown} holds more than {ANGLES[1]} pages.", action="")
        _examine(page, f"{shown}: page {len(pages)}")
        if pages and (page.shape, page.bitspersample) != (pages[0].shape, pages[0].bitspersample):
            raise BadField(f"{shown}: page {len(pages)} is {page.shape}, the first {pages[0].shape}; all must be alike.")
        pages.append(page)
        declared = len(pages) * math.prod(page.shape) * int(page.bitspersample) // 8
        if declared > max_bytes:
            raise TooLarge(f"{shown} declares {declared} bytes or more; the limit is {max_bytes}.")
    if not pages:
        raise CorruptContent(f"{shown} holds no page.")
    return pages


def _demand_end(stream: BinaryIO, file: tifffile.TiffFile, offset: int, size: int, shown: Path) -> None:
    """The last directory found must say that it is the last: tifffile passes over a chain that leads astray."""
    count, entry, link = ("Q", 20, "Q") if file.is_bigtiff else ("H", 12, "I")
    stream.seek(offset)
    (entries,) = struct.unpack(file.byteorder + count, stream.read(struct.calcsize(count)))
    stream.seek(entries * entry, os.SEEK_CUR)
    (following,) = struct.unpack(file.byteorder + link, stream.read(struct.calcsize(link)))
    if following >= size:
        raise Truncated(f"{shown} holds {size} bytes; its next page begins at byte {following}.")
    if following:
        raise CorruptContent(f"{shown}: its pages lead back to byte {following}.")


def _examine(page: Any, where: str) -> None:
    if page.compression not in COMPRESSIONS:
        allowed = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        raise Forbidden(
            f"{where} is compressed by method {int(page.compression)}; allowed are {allowed}.",
            action="Save the stack without compression.",
        )
    plain = page.samplesperpixel == 1 and page.sampleformat == 1 and page.bitspersample in (8, 16) and len(page.shape) == 2
    if not plain or page.photometric != 1:
        raise BadField(
            f"{where} has {page.samplesperpixel} samples of {page.bitspersample} bits, shape {page.shape}, photometric "
            f"{int(page.photometric)}; allowed is {_FRAMES}, 0 is black."
        )
    if page.is_tiled or page.predictor not in (1, 2) or getattr(page, "fillorder", 1) != 1:
        raise BadField(f"{where} is tiled, or stored by an unusual predictor or bit order; allowed are strips.")
    strips = math.ceil(page.shape[0] / max(1, min(page.rowsperstrip, page.shape[0])))
    if not len(page.dataoffsets) == len(page.databytecounts) == strips <= MAX_STRIPS:
        raise CorruptContent(f"{where} has {len(page.dataoffsets)} strips; its header says {strips}.")


def _pixels(stream: BinaryIO, page: Any, dtype: np.dtype[Any], order: Literal[">", "<"], size: int, where: str) -> NDArray[Any]:
    """One page [y, x] in native byte order, strip by strip."""
    height, width = page.shape
    rows = max(1, min(int(page.rowsperstrip), height))
    out = np.empty((height, width), dtype)
    for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        if offset < 8 or count <= 0:
            raise Incomplete(f"{where}: strip {index} was declared and never written.")
        if offset + count > size:
            raise Truncated(f"{where}: strip {index} ends at byte {offset + count}; the file holds {size}.")
        stop = min(height, (index + 1) * rows)
        expected = (stop - index * rows) * width * dtype.itemsize
        stream.seek(offset)
        raw = _unpacked(stream.read(count), int(page.compression), expected)
        if len(raw) < expected:
            raise CorruptContent(f"{where}: strip {index} unpacks to {len(raw)} bytes; {expected} are needed.")
        values = np.frombuffer(raw, dtype.newbyteorder(order), (stop - index * rows) * width).reshape(-1, width).astype(dtype)
        # Horizontal differencing wraps around in the samples' own type.
        out[index * rows : stop] = np.cumsum(values, axis=1, dtype=dtype) if page.predictor == 2 else values
    return out


def _unpacked(raw: bytes, compression: int, limit: int) -> bytes:
    """The strip's bytes, never more than ``limit``."""
    if compression == _NONE:
        return raw
    if compression == _PACKBITS:
        return _packbits(raw, limit)
    try:
        return zlib.decompressobj().decompress(raw, limit)
    except zlib.error as error:
        raise ValueError(f"a strip does not inflate ({error})") from error


def _packbits(raw: bytes, limit: int) -> bytes:
    """Apple's run-length code (TIFF 6.0, section 9)."""
    out = bytearray()
    at = 0
    while at < len(raw) and len(out) < limit:
        count = raw[at]
        if count < 128:
            out += raw[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            out += raw[at + 1 : at + 2] * (257 - count if count > 128 else 0)
            at += 2 if count > 128 else 1
    return bytes(out[:limit])
