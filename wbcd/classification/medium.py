"""The medium's refractive index as the tomogram itself shows it around a cell.

A file states the medium's RI, and the statement may be off: by a reagent, by a temperature, by a default that nobody changed. A
network that is given n - n_m with a wrong n_m sees a denser or paler cell in a grey sea (a prototype lost 25 points of accuracy
at +0.005). What surrounds the cell is medium, so its own value is taken from there, for training and for use alike.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wbcd.records import Cell

MARGIN_UM = 1.0
"""Voxels whose (y, x) lies nearer to the cell's projection than this are left out, at every height: the missing cone draws a
cell's shadow along the optical axis, and its edge is blurred."""
REACH_UM = 4.0
"""Voxels farther off than this are left out where there is enough else: a crop is padded there, or another cell's place."""
MIN_VOXELS = 500
"""Fewer say nothing, and the stated medium is taken."""
SEARCH_RI = 0.03
"""The medium is sought within this much of the stated value."""
BIN_RI, REFINE_RI = 2e-4, 1e-3
"""Bin of the histogram, and least half-width of the window whose median refines its mode."""
QUARTILE, REFINEMENTS = 0.6745, 4
"""Median of |x| of a unit normal; how often the window is centred anew on its own median."""
KEPT, KEPT_RMS = 0.99, 0.9616
"""Share of the background that tells its noise (a few voxels of dust are not noise; neighbours are cleared before), and the
rms of that share of a unit normal:
(1 - 2 z phi(z) / 0.99)^(1/2), z = 2.576."""
EXACT_RI = 1e-6
"""A voxel this near to the stated medium was never measured (padding, a removed neighbour) or was clamped to it."""


def medium_ri(cell: Cell) -> float:
    """RI of the medium around ``cell``: the mode of the background voxels, refined by the median about it.

    The mode: what a neighbour or a halo adds lies beside it. Voxels at exactly the stated medium count only where they are
    the majority (an inversion that clamps at the medium); else they are padding. The stated value is returned when too
    few voxels lie around the cell, or none within SEARCH_RI of it.
    """
    departure = _background(cell)
    exact = np.abs(departure) <= EXACT_RI
    if departure.size < MIN_VOXELS or _clamped(exact):
        return cell.medium_ri
    measured = departure[~exact]
    near = measured[np.abs(measured) <= SEARCH_RI]
    return cell.medium_ri + _mode(near) if near.size >= MIN_VOXELS else cell.medium_ri


def noise_ri(cell: Cell, medium: float) -> float:
    """Root mean square of the background about ``medium``, its outermost hundredth left out; NaN without background.

    Not from the median distance: an inversion that clamps at the medium leaves most voxels exactly there, and the median of
    their distance is 0 whatever the noise. Of noise that is not clamped it is the standard deviation.
    """
    departure = _background(cell)
    exact = np.abs(departure) <= EXACT_RI
    departure = (departure if _clamped(exact) else departure[~exact]) - (medium - cell.medium_ri)
    if departure.size < MIN_VOXELS:
        return math.nan
    kept = np.sort(np.abs(departure))[: math.ceil(KEPT * departure.size)]
    return float(np.sqrt(np.mean(kept**2))) / KEPT_RMS


def _clamped(exact: NDArray[np.bool_]) -> bool:
    """Whether voxels at exactly the stated medium are an inversion's, that clamped them there, and not padding."""
    return 2 * int(exact.sum()) >= exact.size


def _background(cell: Cell) -> NDArray[np.float64]:
    """Departures from the stated medium, at every second row and column, of the voxels beside the cell and its shadow."""
    distance = _distance_um(cell)
    ring = (distance > MARGIN_UM) & (distance <= MARGIN_UM + REACH_UM)
    values: NDArray[np.float64] = cell.ri[_heights(cell), ::2, ::2][:, ring].astype(np.float64).ravel()
    departure: NDArray[np.float64] = values[np.isfinite(values)] - float(np.float32(cell.medium_ri))
    return departure


def _distance_um(cell: Cell) -> NDArray[np.float64]:
    """[y, x] distance from the cell's projection along the optical axis; an empty mask lies nowhere."""
    shadow = np.asarray(cell.mask.any(axis=0))[::2, ::2]
    if not shadow.any():
        return np.full(shadow.shape, MARGIN_UM + REACH_UM)
    pitch = [2 * v for v in cell.voxel_um[1:]]
    return np.asarray(ndimage.distance_transform_edt(~shadow, sampling=pitch))


def _heights(cell: Cell) -> slice:
    """The slices that the cell passes through, MARGIN_UM wider: beyond them a crop may be padded."""
    used = np.flatnonzero(cell.mask.any(axis=(1, 2)))
    if not used.size:
        return slice(None)
    margin = math.ceil(MARGIN_UM / cell.voxel_um[0])
    return slice(max(0, int(used[0]) - margin), int(used[-1]) + 1 + margin)


def _mode(values: NDArray[np.float64]) -> float:
    edges = np.arange(-round(SEARCH_RI / BIN_RI), round(SEARCH_RI / BIN_RI) + 2) * BIN_RI - BIN_RI / 2
    counts, _ = np.histogram(values, bins=edges)
    # Five bins together: files in uint16 have values every 1e-4, which beats with the bins, and a ring has few voxels.
    smooth = np.convolve(counts, np.ones(5), mode="same")
    centre = float(edges[int(smooth.argmax())]) + BIN_RI / 2
    # The noise by the lower side alone: above lie halos and neighbours. Wide noise has a rough histogram and a wide window.
    below = centre - values[values < centre]
    spread = 1.5 * float(np.median(below)) / QUARTILE if below.size else 0.0
    for _ in range(REFINEMENTS):
        centre = float(np.median(values[np.abs(values - centre) <= max(REFINE_RI, spread)]))
    return centre
