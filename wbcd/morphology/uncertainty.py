"""Standard uncertainties of one cell's volume, dry mass and mean RI, from how well frames held out of the fit agree with it.

Each is the value times sqrt(floor^2 + (slope x residual)^2), the residual being the relative misfit of the held-out frames.
The constants were fitted to random exact spheres with and without a nucleus (``make bench-reconstruction``; the fast mode's to
another seed than the one reported in docs/benchmarks.md, the accurate mode's to its 200 spheres), so that value +- 1.96 u
covers the truth in about 95 % of them. They hold the systematic error that is left of the mode: the fast mode's masses are
high by 1.8 % (median), the accurate mode's low by 0.3 %, of large and dense cells by up to 2.5 %, and the uncertainties say so.
The accurate mode's residual is that of its own model.

They belong to ``volume_half_contrast_fl``, to ``dry_mass_half_contrast_pg`` and to the mean RI that follows from the two; a
threshold at a fixed RI cuts another surface, whose distance to the true one depends on the contrast.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from wbcd.records import Cell


class Law(NamedTuple):
    """Relative standard uncertainty: a floor, and what the residual of the held-out frames adds."""

    floor: float
    slope: float

    def __call__(self, residual: float) -> float:
        """Of a value under this residual; NaN where no frame was held out."""
        return math.hypot(self.floor, self.slope * residual)


class Uncertainty(NamedTuple):
    """Relative standard uncertainties; the RI's is relative to its contrast with the medium."""

    volume: float
    dry_mass: float
    contrast: float


LAWS: Final = {
    "fast": {"volume": Law(0.006, 0.05), "dry_mass": Law(0.0145, 0.03), "contrast": Law(0.016, 0.03)},
    "accurate": {"volume": Law(0.001, 0.125), "dry_mass": Law(0.001, 0.215), "contrast": Law(0.001, 0.285)},
}

RYTOV_WIDENING: Final = 0.58
"""Relative widening of a radius per unit of contrast n - n_m in the fast mode: of phantoms of two classes through holograms,
and of 64 exact spheres (5-14 um, contrast 0.018-0.048), whose half-contrast volumes are high by 1.75 times their contrast, with
a spread of 0.8 %."""


def unwidened(volume_fl: float, contrast: float, mode: str) -> float:
    """Volume in fL without the fast mode's widening, from the contrast at the edge; as it is for other modes."""
    return volume_fl / (1 + RYTOV_WIDENING * contrast) ** 3 if mode == "fast" else volume_fl


def relative_uncertainty(cell: Cell) -> Uncertainty:
    """Of one cell; NaN where its inversion says nothing (RI volumes that were read, modes without constants)."""
    laws = LAWS.get(cell.mode)
    if laws is None:
        return Uncertainty(math.nan, math.nan, math.nan)
    return Uncertainty(**{name: law(cell.held_out_residual) for name, law in laws.items()})
