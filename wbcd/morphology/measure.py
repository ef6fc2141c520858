"""The six parameters of one cell (Ryu et al. 2021, section 4.3), and the sturdier ones kept beside them.

Which volume: the voxels of the mask are counted. Against the volume enclosed by the mesh, on spheres of 4-14 um at
sub-voxel offsets, counting is unbiased (0.05 +- 0.15 % at 4 um, less above) for sharp and blurred edges alike, while the
mesh is 1.7 % too large on sharp ones. Counting also keeps dry mass = density x volume exact. The surface is the mesh
through the same level, or for unresolved edges the mesh that encloses the same voxels, so the two belong together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wbcd.morphology.cells import surface_excess
from wbcd.morphology.shape import EVERY_NEIGHBOUR, Box, bounding_box, coarse_depth, coarse_steps, enlarge, fill_holes
from wbcd.morphology.surface import surface_area
from wbcd.morphology.uncertainty import relative_uncertainty, unwidened
from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.records import Cell, Morphology, Triple

ALGORITHM_VERSION = ALGORITHMS["measuring"]
"""Of the six values and their uncertainties (measure, surface, uncertainty). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

#: Depth below the surface where the RI of a cell's edge is read: past the blur (0.4 um), before the nucleus.
EDGE_DEPTH_UM = (0.7, 1.4)
#: 1 pg/fL = 100 g/dL.
G_DL_PER_PG_FL = 100.0


@dataclass(frozen=True, slots=True)
class _Tight:
    """The cell within its bounding box, widened by the support margin; ``departure`` is RI minus the medium's."""

    ri: NDArray[np.float32]
    mask: NDArray[np.bool_]
    voxel_fl: float


def measure(cell: Cell, recipe: Recipe) -> Morphology:
    """All parameters of ``cell``. An empty mask gives a volume of zero and NaN for the means and ratios.

    volume_fl: voxels of the mask (module docstring). surface_area_um2: :func:`wbcd.morphology.surface.surface_area`.
    sphericity: pi^(1/3) (6 V)^(2/3) / S. dry_mass_pg: sum of (n - n_m) / alpha over the mask, alpha in um3/pg = mL/g
    (Barer 1952). protein_density_g_dl: its mean over the mask. half_contrast: see :func:`half_contrast_region`; the fast
    mode's volume without its known widening.
    dry_mass_total_pg: :func:`total_dry_mass_pg`. The uncertainties: :mod:`wbcd.morphology.uncertainty`.
    """
    tight = _tighten(cell, recipe.morphology.support_margin_um)
    alpha = recipe.morphology.ri_increment_ml_g
    inside = tight.ri[tight.mask].astype(np.float64)
    volume = inside.size * tight.voxel_fl
    # The outer surface: a cell is as round with a large pale nucleus as without.
    excess = surface_excess(tight.ri, fill_holes(tight.mask), recipe.morphology.threshold_ri)
    core = core_ri(tight.ri, tight.mask, cell.voxel_um)
    area = surface_area(excess, cell.voxel_um, core - cell.medium_ri) if inside.size else 0.0
    edge = edge_ri(tight.ri, tight.mask, cell.voxel_um)
    half = half_contrast_region(tight.ri, tight.mask, 0.5 * (cell.medium_ri + edge))
    mean = float(inside.mean()) if inside.size else math.nan
    half_volume = unwidened(int(half.sum()) * tight.voxel_fl, edge - cell.medium_ri, cell.mode) if half.any() else 0.0
    half_mass = _rimmed_mass_pg(cell, tight, half, recipe)
    relative = relative_uncertainty(cell)
    return Morphology(
        volume_fl=volume,
        surface_area_um2=area,
        sphericity=sphericity(volume, area),
        dry_mass_pg=_mass_pg(inside, cell.medium_ri, alpha, tight.voxel_fl),
        protein_density_g_dl=(mean - cell.medium_ri) / alpha * G_DL_PER_PG_FL,
        mean_ri=mean,
        max_ri=float(inside.max()) if inside.size else math.nan,
        volume_half_contrast_fl=half_volume,
        dry_mass_half_contrast_pg=half_mass,
        dry_mass_total_pg=total_dry_mass_pg(cell, recipe),
        mean_ri_uncertainty=relative.contrast * alpha * half_mass / half_volume if half_volume else math.nan,
        volume_uncertainty_fl=relative.volume * half_volume,
        dry_mass_uncertainty_pg=relative.dry_mass * half_mass,
    )


def sphericity(volume_fl: float, surface_area_um2: float) -> float:
    """Area of the sphere of this volume over the area: pi^(1/3) (6 V)^(2/3) / S (Wadell 1935); NaN without a surface."""
    if surface_area_um2 <= 0:
        return math.nan
    return float(math.pi ** (1 / 3) * (6.0 * volume_fl) ** (2 / 3) / surface_area_um2)


def core_ri(ri: NDArray[np.float32], mask: NDArray[np.bool_], voxel_um: Triple) -> float:
    """RI of the cell's inside: the median over the half of the mask that lies deepest; NaN when empty.

    The median ignores nucleoli and droplets; the depth keeps the blurred edge out, whatever the cell's size.
    """
    depth = coarse_depth(mask, voxel_um)
    inside = depth > 0
    if not inside.any():
        return float(np.median(ri[mask])) if mask.any() else math.nan
    deep = inside & (depth >= np.median(depth[inside]))
    return float(np.median(ri[coarse_steps(voxel_um)][deep]))


def edge_ri(ri: NDArray[np.float32], mask: NDArray[np.bool_], voxel_um: Triple) -> float:
    """RI just inside the cell's surface: the median over the mask between EDGE_DEPTH_UM; :func:`core_ri` where it is thinner.

    A blurred edge passes its true place half-way between what lies on its two sides; a nucleus is not one of them.
    """
    depth = coarse_depth(mask, voxel_um)
    shell = (depth >= EDGE_DEPTH_UM[0]) & (depth <= EDGE_DEPTH_UM[1])
    return float(np.median(ri[coarse_steps(voxel_um)][shell])) if shell.any() else core_ri(ri, mask, voxel_um)


def half_contrast_region(ri: NDArray[np.float32], mask: NDArray[np.bool_], level: float) -> NDArray[np.bool_]:
    """Mask [z, y, x] of the cell by the surface at ``level``: half-way between medium and :func:`edge_ri`, holes filled.

    Unlike a fixed threshold it does not move with the blur, and not with the contrast. Only what is connected with
    ``mask`` counts.
    """
    labels, _ = ndimage.label(ri > np.float32(level), EVERY_NEIGHBOUR)
    touched = np.unique(labels[mask])
    return fill_holes(np.isin(labels, touched[touched > 0]))


def total_dry_mass_pg(cell: Cell, recipe: Recipe) -> float:
    """Dry mass in pg over the mask widened by ``support_margin_um``: blur and low RI put part of it below the threshold.

    Negative departures count, so that noise cancels, and the median departure outside the support is subtracted, so
    that an offset of the medium does not turn into mass. Beyond the margin noise clamped at the medium would add up
    (13 % over a whole crop), which is why the sum is not taken over everything.
    """
    if not cell.mask.any():
        return 0.0
    support = _widened(cell, recipe.morphology.support_margin_um)
    departure = cell.ri - np.float32(cell.medium_ri)
    outside = departure[::2, ::4, ::4][~support[::2, ::4, ::4]]
    offset = float(np.median(outside)) if outside.size else 0.0
    total = float(departure[support].sum(dtype=np.float64)) - offset * int(np.count_nonzero(support))
    return total / recipe.morphology.ri_increment_ml_g * math.prod(cell.voxel_um)


def _rimmed_mass_pg(cell: Cell, tight: _Tight, half: NDArray[np.bool_], recipe: Recipe) -> float:
    """Dry mass in pg over the half-contrast region and the rim of ``mass_rim_um`` into which blur carries its mass.

    The blur of an edge takes as much from inside as it puts outside; the rim holds that, and little of the noise that is
    clamped at the medium. The accurate mode leaves next to none of that, so its rim can hold all of
    the blur, also that of the missing cone above and below the cell.
    """
    if not half.any():
        return 0.0
    rims = recipe.morphology
    support = half | _near(half, cell.voxel_um, rims.mass_rim_accurate_um if cell.mode == "accurate" else rims.mass_rim_um)
    departure = tight.ri[support].astype(np.float64) - cell.medium_ri
    return float(departure.sum()) / recipe.morphology.ri_increment_ml_g * tight.voxel_fl


def _widened(cell: Cell, margin_um: float) -> NDArray[np.bool_]:
    """The mask and all within ``margin_um`` of it, computed in its bounding box."""
    box = _box(cell, margin_um)
    support = cell.mask.copy()
    support[box] |= _near(cell.mask[box], cell.voxel_um, margin_um)
    return support


def _near(mask: NDArray[np.bool_], voxel_um: Triple, margin_um: float) -> NDArray[np.bool_]:
    """All within ``margin_um`` of the mask, at the coarse pitch."""
    steps = coarse_steps(voxel_um)
    sampling = [pitch * part.step for pitch, part in zip(voxel_um, steps, strict=True)]
    distance = np.asarray(ndimage.distance_transform_edt(~mask[steps], sampling=sampling))
    return enlarge(distance <= margin_um, steps, mask.shape)


def _tighten(cell: Cell, margin_um: float) -> _Tight:
    box = _box(cell, margin_um)
    return _Tight(cell.ri[box], cell.mask[box], math.prod(cell.voxel_um))


def _box(cell: Cell, margin_um: float) -> Box:
    """Bounding box of the mask with ``margin_um`` around it, within the crop."""
    z, y, x = (math.ceil(margin_um / pitch) + 1 for pitch in cell.voxel_um)
    return bounding_box(cell.mask, (z, y, x))


def _mass_pg(ri: NDArray[np.float64], medium_ri: float, alpha: float, voxel_fl: float) -> float:
    return float((ri - medium_ri).sum()) / alpha * voxel_fl
