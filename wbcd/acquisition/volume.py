"""Decoded RI volumes, whatever the format: fill, scale and damage are judged in one place, slab by slab.

Slabs of a few MB keep the peak at one float32 volume: a field of 210 x 732 x 732 takes 450 MB.

Rules. A stored 0 is the vendor's fill of what was never measured: it becomes the medium's RI and is marked in ``fill``.
NaN, infinities and values outside 1..2 stay as they are: single ones are judged with the cell that holds them (quality,
``non_physical_voxels``); when more than 1 % of a volume is so, it is damaged or on a wrong scale and refused here. A plane of
nothing but zeros is data that was never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.acquisition.limits import MAX_NON_PHYSICAL_FRACTION, PHYSICAL_RI, ReadDefaults
from wbcd.errors import BadField, CorruptContent, TooLarge
from wbcd.records import Shape3

SLAB_VOXELS = 4 * 2**20
MAX_FILL_FRACTION = 0.9

Load = Callable[[NDArray[np.float32]], None]
"""Writes the decoded RI into the given zeros, float32 [z, y, x]; what it leaves is fill."""


@dataclass(slots=True)
class _Tally:
    fill: int = 0
    infinite: int = 0
    strange: int = 0
    low: float = np.inf
    high: float = -np.inf


def demand_loadable(shape: Shape3, defaults: ReadDefaults, where: str) -> None:
    """Raise TooLarge when one volume of ``shape`` as float32 is over the limit."""
    declared = math.prod(shape) * 4
    if declared > defaults.max_logical_bytes:
        raise TooLarge(f"{where} declares a volume {shape} of {declared} bytes; the limit is {defaults.max_logical_bytes}.")


def slabs(shape: Shape3, chunk_planes: int = 1) -> Iterator[slice]:
    """Ranges of planes that cover the volume, of about SLAB_VOXELS, never through a stored chunk: each is unpacked once."""
    planes = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    step = max(planes // chunk_planes, 1) * chunk_planes
    return (slice(first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def decode(stored: NDArray[Any], scale: float, offset: float, out: NDArray[np.float32]) -> None:
    """Write stored / scale + offset into ``out`` without a temporary; unsigned integers only are scaled."""
    if stored.dtype.kind == "u":
        np.divide(stored, np.float32(scale), out=out)
        if offset:
            out += np.float32(offset)
    else:
        out[...] = stored


def assemble(shape: Shape3, medium_ri: float, load: Load, where: str) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Load one volume and apply the rules above; returns it with the mask of its fill, or None.

    Raises CorruptContent (planes of zeros, mostly fill, many non-finite) or BadField (most values no RI at all).
    """
    ri = np.zeros(shape, np.float32)
    load(ri)
    fill: NDArray[np.bool_] | None = None
    tally = _Tally()
    for planes in slabs(shape):
        part = ri[planes]
        holes = part == 0
        if holes.any():
            _demand_measured_planes(holes, planes.start, where)
            fill = np.zeros(shape, np.bool_) if fill is None else fill
            fill[planes] = holes
            part[holes] = medium_ri
            tally.fill += int(np.count_nonzero(holes))
        _count(part, tally)
    _judge(tally, ri.size, where)
    return ri, fill


def _demand_measured_planes(holes: NDArray[np.bool_], first: int, where: str) -> None:
    empty = np.flatnonzero(holes.all(axis=(1, 2)))
    if empty.size:
        raise CorruptContent(
            f"{where} holds nothing but zeros in plane z = {first + int(empty[0])}; allowed are 0 such planes."
        )


def _count(slab: NDArray[np.float32], tally: _Tally) -> None:
    low, high = PHYSICAL_RI
    smallest, largest = float(slab.min()), float(slab.max())
    if low <= smallest and largest <= high:  # the common case, without a mask; a NaN fails it
        tally.low, tally.high = min(tally.low, smallest), max(tally.high, largest)
        return
    finite = np.isfinite(slab)
    known = slab[finite]
    tally.infinite += slab.size - known.size
    tally.strange += int(np.count_nonzero((known < low) | (known > high)))
    if known.size:
        tally.low, tally.high = min(tally.low, float(known.min())), max(tally.high, float(known.max()))


def _judge(tally: _Tally, size: int, where: str) -> None:
    low, high = PHYSICAL_RI
    if tally.fill > MAX_FILL_FRACTION * size:
        raise CorruptContent(
            f"{where} is fill (0) in {tally.fill / size:.1%} of its voxels; at most {MAX_FILL_FRACTION:.0%} is allowed."
        )
    if tally.infinite > MAX_NON_PHYSICAL_FRACTION * size:
        found = tally.infinite / size
        raise CorruptContent(
            f"{where} is not finite in {found:.1%} of its voxels; at most {MAX_NON_PHYSICAL_FRACTION:.0%} is allowed.",
            action="Copy the file again; if the original is the same, reconstruct it again.",
        )
    if tally.strange > MAX_NON_PHYSICAL_FRACTION * size:
        raise BadField(
            f"{where} spans {tally.low:.6g} to {tally.high:.6g} with {tally.strange / size:.1%} of its voxels outside the RI"
            f" of matter, {low:g} to {high:g}; at most {MAX_NON_PHYSICAL_FRACTION:.0%} is allowed.",
            action="Write RI as float, or RI x 10,000 as uint16, and 0 where nothing was measured.",
        )
