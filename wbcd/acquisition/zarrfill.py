"""Chunks that were never written: do they equal the fill value, or is the writer not done? Pure rules.

Zarr leaves out a chunk that holds nothing but the fill value, and a writer that was broken off leaves the same gap. A gap
stands for the fill value only where the rest of the image agrees:

- The fill value is an RI (the medium's). Beside the gap the image is that value too: measured RI is never exactly constant, so
  that a gap in noise is a chunk that is missing; and no object reaches the gap, for it would be cut off.
- The fill value is 0 or NaN: nothing was measured there (the field of a stitched image has corners outside it). Such a gap goes
  through all planes and reaches the edge of the image. What touches it is judged as what touches the edge.
- Any other fill value, or none, cannot stand for anything.
- In neither case is a chunk written that holds the fill value alone: its writer would have written the others too. Nor, where
  nothing was measured, do the absent ones follow all the written ones in the order in which writers go: that one is at work.

What cannot be told: a writer that leaves such chunks out, broken off before an object in a constant background.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.records import Shape3, Triple

FILL_RI = (1.2, 1.8)
OBJECT_RI = 0.01
"""A departure from the fill value that is no noise and no artefact: a cell's edge reaches half of that of its inside, 0.02."""
CAP_UM = 2 * math.pi * 5.0
"""Times a voxel's depth: the face of a cap one voxel deep on a cell of 10 um. An object may end where a chunk does, and then
shows that much of itself there; a cap of the same face that is missing from a cell of 6 um is 3 % of it or less."""
MAX_UNLIKE = 0.5
"""Share of the voxels beside the gaps that may be other than the fill value."""
_CODES = {"f2": ">e", "f4": ">f", "f8": ">d"}


@dataclass(frozen=True, slots=True)
class Gaps:
    """``absent``: per volume [z, y, x], True for a chunk without a file; ``inner``: the chunks' shape within shards, or None;
    ``shared``: a chunk holds parts of other time points too.

    ``fill``: the fill value as RI; 0 stands for what was not measured (0, NaN), None for what cannot stand for anything.
    """

    chunk: Shape3
    fill: float | None
    fill_is_nan: bool
    absent: NDArray[np.bool_] | None = None
    inner: Shape3 | None = None
    shared: bool = False


def fill_of(value: Any, dtype: np.dtype[Any], scale: float) -> tuple[float | None, bool]:
    """The declared fill value as RI, 0 where it says that nothing was measured, None where it says nothing; and: is it NaN?

    ``scale``: stored value over RI of unsigned integers.
    """
    number = _number(value, dtype)
    if number is None:
        return None, False
    if math.isnan(number) or number == 0:
        return 0.0, math.isnan(number)
    ri = float(np.float32(number / np.float32(scale))) if dtype.kind == "u" else float(np.float32(number))
    return (ri, False) if FILL_RI[0] <= ri <= FILL_RI[1] else (None, False)


def _number(value: Any, dtype: np.dtype[Any]) -> float | None:
    """JSON of both zarr formats: a number, "NaN", or the bits as "0x..."; absent and null are what zarr takes for them: 0."""
    if value is None:
        return 0.0
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e300 else None
    if value == "NaN":
        return math.nan
    code = _CODES.get(f"{dtype.kind}{dtype.itemsize}")
    if isinstance(value, str) and value.startswith("0x") and code is not None:
        try:
            return float(struct.unpack(code, bytes.fromhex(value[2:]))[0])
        except (ValueError, struct.error):
            return None
    return None


# --- by the names of the chunks --------------------------------------------------------------------


def why_incomplete(absent: NDArray[np.bool_], fill: float | None) -> str:
    """Why the absent chunks [z, y, x] of one volume are missing ones; empty where they can be the fill value."""
    if not absent.any():
        return ""
    if absent.all():
        return "nothing of the volume is written"
    if fill is None:
        return "its fill value is no RI, and could not stand for them"
    if fill == 0:
        return _why_not_outside(absent)
    return ""


def _why_not_outside(absent: NDArray[np.bool_]) -> str:
    order = absent.reshape(-1)
    if order[np.argmax(order) :].all():
        return "they are the last ones, as a writer leaves them that is not done"
    columns = absent[0]
    if not (absent == columns).all():
        return "they do not go through all planes, as what lies outside the field does"
    if not (_reached_from_edge(columns) == columns).all():
        return "they lie within the field"
    return ""


def _reached_from_edge(columns: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the absent columns [y, x] those that hang together with the edge."""
    reached = columns.copy()
    reached[1:-1, 1:-1] = False
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= columns
        if (grown == reached).all():
            return grown
        reached = grown


# --- by the values beside them ---------------------------------------------------------------------


def blank_gaps(ri: NDArray[np.float32], gaps: Gaps) -> None:
    """Set to 0 what the fill value says was not measured, in place."""
    if gaps.fill != 0:
        return
    if gaps.fill_is_nan:
        ri[np.isnan(ri)] = 0.0
    if gaps.absent is not None:
        for block in _blocks(gaps.absent, gaps.chunk):
            ri[block] = 0.0


def why_contradicted(ri: NDArray[np.float32], gaps: Gaps, voxel_um: Triple) -> str:
    """Why the values of a loaded volume say that its gaps are not its fill value; empty where they agree."""
    absent = gaps.absent
    if (
        absent is not None
        and not gaps.shared
        and any(bool((ri[block] == gaps.fill).all()) for block in _blocks(~absent, gaps.chunk))
    ):
        return "other chunks are written that hold nothing but the fill value, so that its writer leaves none out"
    if gaps.fill is None or gaps.fill == 0:
        return ""
    chunk, open_ = gaps.chunk, absent
    if gaps.inner is not None:  # chunks that a shard leaves out have no name: they are known by their values
        chunk, open_ = gaps.inner, _constant(ri, gaps.inner, gaps.fill)
    if open_ is None or not open_.any() or open_.all():
        return ""
    beside = unlike = 0
    for axis, face in _faces(ri, open_, chunk):
        beside += face.size
        unlike += int(np.count_nonzero(face != np.float32(gaps.fill)))
        cut_um2 = int(np.count_nonzero(np.abs(face - gaps.fill) > OBJECT_RI)) * math.prod(voxel_um) / voxel_um[axis]
        if cut_um2 > CAP_UM * voxel_um[axis]:
            return f"an object of {cut_um2:.3g} um^2 is cut off beside them"
    if unlike > MAX_UNLIKE * beside:
        return f"{unlike / beside:.0%} of the voxels beside them are other than the fill value {gaps.fill:.6g}"
    return ""


def _constant(ri: NDArray[np.float32], chunk: Shape3, fill: float) -> NDArray[np.bool_]:
    """Which chunks [z, y, x] hold nothing but ``fill``."""
    counts = tuple(-(-size // step) for size, step in zip(ri.shape, chunk, strict=True))
    found = np.zeros(counts, np.bool_)
    for index in np.ndindex(*counts):
        block = tuple(slice(at * step, (at + 1) * step) for at, step in zip(index, chunk, strict=True))
        found[index] = bool((ri[block] == np.float32(fill)).all())
    return found


def _blocks(chosen: NDArray[np.bool_], chunk: Shape3) -> Iterator[tuple[slice, ...]]:
    for index in np.argwhere(chosen):
        yield tuple(slice(int(at) * step, (int(at) + 1) * step) for at, step in zip(index, chunk, strict=True))


def _faces(ri: NDArray[np.float32], absent: NDArray[np.bool_], chunk: Shape3) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The written voxels that touch an absent chunk, by the axis across the face between them."""
    for axis in range(3):
        grid, values = np.moveaxis(absent, axis, 0), np.moveaxis(ri, axis, 0)
        down, right = (step for at, step in enumerate(chunk) if at != axis)
        for index in range(len(grid) - 1):
            plane = (index + 1) * chunk[axis]
            for touched, at in ((grid[index] & ~grid[index + 1], plane), (~grid[index] & grid[index + 1], plane - 1)):
                if touched.any():
                    wide = touched.repeat(down, axis=0).repeat(right, axis=1)[: values.shape[1], : values.shape[2]]
                    yield axis, values[at][wide]
