"""What the medium's refractive index is in a tomogram, and which of its voxels are no refractive index at all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wbcd.records import Tomogram

#: Voxels looked at, at most: the mode of a million is known to 1e-5, and a field has a hundred million.
SAMPLE = 1_000_000
#: The medium is sought within this much of the stated value.
SEARCH_RI = 0.03
#: Bin of the histogram and half-width of the window whose median refines its mode.
BIN_RI = 2e-4
REFINE_RI = 1e-3


def background_ri(tomogram: Tomogram) -> float:
    """RI of the medium: the mode of the voxels within SEARCH_RI of the stated medium, refined by the median around it.

    The mode, because cells only add voxels far above it and clamped noise only piles up on it; a mean or a median over
    everything moves with the number of cells. NaN when no voxel is near the stated medium.
    """
    values = _sample(tomogram.ri)
    near = values[np.abs(values - tomogram.medium_ri) <= SEARCH_RI]
    if near.size == 0:
        return math.nan
    edges = tomogram.medium_ri - SEARCH_RI + BIN_RI * np.arange(round(2 * SEARCH_RI / BIN_RI) + 1)
    counts, _ = np.histogram(near, bins=edges)
    # Three bins together: uint16 files have values every 1e-4, which beats with the bins.
    smooth = np.convolve(counts, np.ones(3), mode="same")
    peak = edges[int(smooth.argmax())] + BIN_RI / 2
    return float(np.median(near[np.abs(near - peak) <= REFINE_RI]))


def _sample(ri: NDArray[np.float32]) -> NDArray[np.float64]:
    stride = max(1, math.ceil((ri.size / SAMPLE) ** (1 / 3)))
    values = ri[::stride, ::stride, ::stride].astype(np.float64).ravel()
    return values[np.isfinite(values)]


def count_non_physical(ri: NDArray[np.float32], min_ri: float, max_ri: float) -> int:
    """Voxels that are NaN, infinite or outside min_ri..max_ri, slice by slice: no copy of the volume is made."""
    low, high = np.float32(min_ri), np.float32(max_ri)
    # A comparison with NaN is False, so the bounds are also the test for finiteness.
    return int(ri.size - sum(int(np.count_nonzero((plane >= low) & (plane <= high))) for plane in ri))
