"""What the medium's refractive index is in a tomogram, and which of its voxels are no refractive index at all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.records import Tomogram

ALGORITHM_VERSION = ALGORITHMS["medium"]
"""Of the medium that nobody stated, and of the background (this module). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

#: Voxels looked at, at most: the mode of a million is known to 1e-5, and a field has a hundred million.
SAMPLE = 1_000_000
#: The medium is sought within this much of the stated value.
SEARCH_RI = 0.03
#: Bin of the histogram and half-width of the window whose median refines its mode.
BIN_RI = 2e-4
REFINE_RI = 1e-3
#: A medium that nobody stated fills so much of the volume, within so much of its mode: a sphere fills half of its cube.
LEAST_SHARE = 0.2
REFINEMENTS = 8
ABOUT_RI = 5e-3


def background_ri(tomogram: Tomogram) -> float:
    """RI of the medium: the mode of the voxels within SEARCH_RI of the stated medium, refined by the median around it.

    The mode, because cells only add voxels far above it and clamped noise only piles up on it; a mean or a median over
    everything moves with the number of cells. NaN when no voxel is near the stated medium.
    """
    values = _sample(tomogram)
    near = values[np.abs(values - tomogram.medium_ri) <= SEARCH_RI]
    return _mode(near, tomogram.medium_ri)


def settle_medium(tomogram: Tomogram, recipe: Recipe) -> Tomogram:
    """The tomogram in the medium that its own background shows, for one whose file states none; its fill becomes that medium.

    Sought within SEARCH_RI of the recipe's default and below the threshold of a cell: a medium above it would be counted as
    one. Returned as it is where no such medium fills LEAST_SHARE of the volume; :func:`wbcd.quality.judge_tomogram` then says
    how far the background is from the default. The fill is set in place, for a field has 450 MB.
    """
    values = _sample(tomogram)
    default = recipe.reconstruction.default_medium_ri
    known = values[(np.abs(values - default) <= SEARCH_RI) & (values < recipe.morphology.threshold_ri)]
    medium = _mode(known, default)
    for _ in range(REFINEMENTS):  # noise of the mode's bin is 3e-4; the window is centred anew on its own median
        near = values[np.abs(values - medium) <= REFINE_RI]
        medium = float(np.median(near)) if near.size else medium
    if not np.count_nonzero(np.abs(values - medium) <= ABOUT_RI) >= max(LEAST_SHARE * values.size, 1):
        return tomogram
    if tomogram.fill is not None:
        tomogram.ri[tomogram.fill] = medium
    return replace(tomogram, medium_ri=medium)


def _mode(near: NDArray[np.float64], middle: float) -> float:
    """Mode of values within SEARCH_RI of ``middle``, refined by the median around it; NaN without any."""
    if near.size == 0:
        return math.nan
    edges = middle - SEARCH_RI + BIN_RI * np.arange(round(2 * SEARCH_RI / BIN_RI) + 1)
    counts, _ = np.histogram(near, bins=edges)
    # Three bins together: uint16 files have values every 1e-4, which beats with the bins.
    smooth = np.convolve(counts, np.ones(3), mode="same")
    peak = edges[int(smooth.argmax())] + BIN_RI / 2
    return float(np.median(near[np.abs(near - peak) <= REFINE_RI]))


def _sample(tomogram: Tomogram) -> NDArray[np.float64]:
    """Finite values of a regular part of the voxels, those left out that were never measured."""
    stride = max(1, math.ceil((tomogram.ri.size / SAMPLE) ** (1 / 3)))
    part = (slice(None, None, stride),) * 3
    values = tomogram.ri[part].astype(np.float64)
    kept = np.isfinite(values)
    if tomogram.fill is not None:
        kept &= ~tomogram.fill[part]
    return values[kept]


def count_non_physical(ri: NDArray[np.float32], min_ri: float, max_ri: float) -> int:
    """Voxels that are NaN, infinite or outside min_ri..max_ri, slice by slice: no copy of the volume is made."""
    low, high = np.float32(min_ri), np.float32(max_ri)
    # A comparison with NaN is False, so the bounds are also the test for finiteness.
    return int(ri.size - sum(int(np.count_nonzero((plane >= low) & (plane <= high))) for plane in ri))
