"""From a tomogram to its cells: threshold, connected components, one centred crop each.

The work is per bounding box: a field of 210 x 732 x 732 voxels costs one boolean mask and one label image, whatever
the number of cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wbcd.morphology.resample import copy_window, resample_window
from wbcd.morphology.shape import (
    EVERY_NEIGHBOUR,
    Box,
    bounding_box,
    coarse_steps,
    count_lobes,
    enlarge,
    fill_holes,
    largest_component,
    solidity,
)
from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.records import Cell, Tomogram, Triple

ALGORITHM_VERSION = ALGORITHMS["cells"]
"""Of the cells (cells, resample, shape). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

#: Of an object's face that meets what was not measured: below it a few voxels are lost, and nothing is cut off.
FILL_UM2 = 0.5
#: Voxels of a neighbour's blurred edge this near to it, and nearer to it than to the cell, are cleared with it.
NEIGHBOUR_SKIRT_UM = 0.6
#: Cells with less between them touch, or did: light that passes through both is described rightly by no weak scattering.
TOUCHING_UM = 0.4
#: Source voxels kept around a crop, for the interpolation kernel.
KERNEL_MARGIN_PX = 4


@dataclass(frozen=True, slots=True)
class _Found:
    """One component: its label, bounding box, filled mask [box], centre of the mask in voxels of the tomogram."""

    label: int
    box: Box
    mask: NDArray[np.bool_]
    centre_px: Triple


def find_cells(tomogram: Tomogram, recipe: Recipe, *, first_number: int = 1) -> list[Cell]:
    """The cells of a tomogram, in reading order (y, then x), numbered from ``first_number``; [] when there is none.

    A cell is a 26-connected component of RI > ``threshold_ri`` (an absolute value, whatever the medium; Ryu et al. 2021,
    section 4.3) of at least ``min_object_fl``. Enclosed holes up to ``max_hole_fl`` are filled: a vacuole belongs to the cell;
    larger regions below the threshold stay out of the mask (and so of volume and mass), as the paper's rule says, but make
    no difference to surface, lobes and solidity. It is returned as a crop of
    ``crop_shape`` at ``crop_voxel_um`` whose middle voxel lies at the cell's centre; everything else above the threshold
    is replaced by the medium. Voxels that are not finite or outside ``min_ri``..``max_ri`` belong to no cell: they are
    counted and replaced, by the cell's mean where they are enclosed by it and by the medium elsewhere.

    ``lobes`` counts the cell's own and the other cells that stand closer than 0.4 um. ``touches_border`` is set where the cell
    reaches the edge of the volume, of ``fill`` or of ``field_of_view_um``, belongs to an object that the normal frame shows to
    be cut (what is reconstructed of one may be a splinter far from the edge), or does not fit into the crop: in each case part
    of it may be missing.
    """
    labels, boxes = _label(tomogram, recipe)
    found = sorted(_components(labels, boxes, tomogram, recipe), key=lambda each: (each.centre_px[1:], each.centre_px[0]))
    cells = [_cut(each, labels, tomogram, recipe, number) for number, each in enumerate(found, start=first_number)]
    if len(cells) < 2:
        return cells
    numbers = [each.label for each in found]
    close = [_neighbours(each, labels, numbers, tomogram.voxel_um) for each in found]
    return [replace(cell, lobes=cell.lobes + count) for cell, count in zip(cells, close, strict=True)]


def _label(tomogram: Tomogram, recipe: Recipe) -> tuple[NDArray[np.int32], list[Box | None]]:
    """Labels int32 [z, y, x] of the components above the threshold, and the bounding box of each."""
    above = tomogram.ri > np.float32(recipe.morphology.threshold_ri)
    above &= tomogram.ri <= np.float32(recipe.quality.max_ri)
    labels = np.zeros(above.shape, dtype=np.int32)
    inner = bounding_box(above)
    ndimage.label(above[inner], EVERY_NEIGHBOUR, output=labels[inner])
    return labels, [cast(Box | None, _moved(box, inner)) for box in ndimage.find_objects(labels[inner])]


def _moved(box: tuple[slice, ...], by: Box) -> tuple[slice, ...]:
    """A box within the box ``by`` as a box of the whole."""
    return tuple(slice(b.start + (o.start or 0), b.stop + (o.start or 0)) for b, o in zip(box, by, strict=True))


def _neighbours(found: _Found, labels: NDArray[np.int32], cells: list[int], voxel_um: Triple) -> int:
    """How many other cells stand closer than TOUCHING_UM: they shade one another, and neither is measured rightly."""
    margin = tuple(math.ceil(TOUCHING_UM / pitch) for pitch in voxel_um)
    around = tuple(
        slice(max(part.start - m, 0), min(part.stop + m, n)) for part, m, n in zip(found.box, margin, labels.shape, strict=True)
    )
    here = labels[around]
    others = np.isin(here, [label for label in cells if label != found.label])
    if not others.any():
        return 0
    distance = ndimage.distance_transform_edt(here != found.label, sampling=voxel_um)
    return len(np.unique(here[others & (distance < TOUCHING_UM)]))


def _components(labels: NDArray[np.int32], boxes: list[Box | None], tomogram: Tomogram, recipe: Recipe) -> Iterator[_Found]:
    """The components that are large enough, holes filled."""
    least = recipe.morphology.min_object_fl / math.prod(tomogram.voxel_um)
    for label, box in enumerate(boxes, start=1):
        if box is None or math.prod(part.stop - part.start for part in box) < least:
            continue
        mask = fill_holes(labels[box] == label)
        if mask.sum() >= least:
            yield _Found(label, box, mask, _centre(mask, box, tomogram.voxel_um, recipe))


def _centre(mask: NDArray[np.bool_], box: Box, voxel_um: Triple, recipe: Recipe) -> Triple:
    """Centroid of the mask in voxels of the tomogram, moved no further than it must be for the box to fit into the crop."""
    crop, pitch = recipe.morphology.crop_shape, recipe.morphology.crop_voxel_um
    result = []
    for axis, part in enumerate(box):
        along = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        centroid = part.start + float(np.average(np.arange(along.size), weights=along))
        # Room on either side of the middle voxel, in source voxels.
        before = (crop[axis] // 2 - 1) * pitch[axis] / voxel_um[axis]
        after = (crop[axis] - crop[axis] // 2 - 2) * pitch[axis] / voxel_um[axis]
        low, high = part.stop - 1 - after, part.start + before
        result.append(min(max(centroid, low), high) if low <= high else 0.5 * (part.start + part.stop - 1))
    return result[0], result[1], result[2]


def _cut(found: _Found, labels: NDArray[np.int32], tomogram: Tomogram, recipe: Recipe, number: int) -> Cell:
    morphology = recipe.morphology
    start, departure = _window(found, labels, tomogram, recipe)
    centre = tuple(c - s for c, s in zip(found.centre_px, start, strict=True))
    crop = resample_window(
        departure, tomogram.voxel_um, (centre[0], centre[1], centre[2]), morphology.crop_shape, morphology.crop_voxel_um
    )
    crop += np.float32(tomogram.medium_ri)
    above = crop > np.float32(morphology.threshold_ri)
    tight = bounding_box(above, (2, 2, 2))
    own = largest_component(above[tight])
    body = fill_holes(own)
    excess = surface_excess(crop[tight], body, morphology.threshold_ri)
    mask = np.zeros_like(above)
    mask[tight] = fill_holes(own, morphology.max_hole_fl / math.prod(morphology.crop_voxel_um))
    return Cell(
        number=number,
        ri=crop,
        mask=mask,
        voxel_um=morphology.crop_voxel_um,
        medium_ri=tomogram.medium_ri,
        centre_um=_position(found.centre_px, tomogram),
        time_index=tomogram.time_index,
        touches_border=_reaches_border(found.box, tomogram) or _reaches_fill(found, tomogram) or _reaches_edge(mask),
        solidity=solidity(excess, body, morphology.crop_voxel_um),
        lobes=count_lobes(body, morphology.crop_voxel_um),
        non_physical_voxels=_count_non_physical(tomogram.ri[found.box], recipe),
        objective_na=tomogram.objective_na,
        wavelength_um=tomogram.wavelength_um,
        pitch_um=tomogram.voxel_um[2],
        mode=tomogram.report.mode if tomogram.report else "",
        held_out_residual=tomogram.report.judged_by if tomogram.report else math.nan,
    )


def surface_excess(ri: NDArray[np.float32], mask: NDArray[np.bool_], level: float) -> NDArray[np.float32]:
    """RI minus ``level`` float32 [z, y, x], made positive exactly in the mask: holes are raised, strangers lowered."""
    excess = ri - np.float32(level)
    smallest = np.float32(1e-7)
    excess[mask & (excess <= 0)] = max(float(excess.max(initial=0.0)), 1e-6)
    np.minimum(excess, -smallest, out=excess, where=~mask)
    return excess


def _window(
    found: _Found, labels: NDArray[np.int32], tomogram: Tomogram, recipe: Recipe
) -> tuple[tuple[int, int, int], NDArray[np.float32]]:
    """First voxel and departure from the medium float32 [z, y, x] of the source around a crop, this cell only."""
    start, shape = [], []
    for axis, centre in enumerate(found.centre_px):
        span = recipe.morphology.crop_shape[axis] * recipe.morphology.crop_voxel_um[axis] / tomogram.voxel_um[axis]
        half = math.ceil(span / 2 + KERNEL_MARGIN_PX * max(1.0, span / recipe.morphology.crop_shape[axis]))
        low = max(round(centre) - half, 0)
        start.append(low)
        shape.append(max(min(round(centre) + half + 1, tomogram.ri.shape[axis]) - low, 1))
    part = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    departure = tomogram.ri[part] - np.float32(tomogram.medium_ri)
    own = copy_window(
        found.mask.view(np.uint8),
        tuple(s - b.start for s, b in zip(start, found.box, strict=True)),
        (shape[0], shape[1], shape[2]),
    ).view(np.bool_)
    _repair(departure, own, tomogram.medium_ri, recipe)
    _clear_others(departure, own, labels[part], tomogram.voxel_um)
    return (start[0], start[1], start[2]), departure


def _repair(departure: NDArray[np.float32], own: NDArray[np.bool_], medium_ri: float, recipe: Recipe) -> None:
    """Replace, in place, what is no refractive index: by the cell's mean inside it, by the medium elsewhere."""
    good = _physical(departure, recipe.quality.min_ri - medium_ri, recipe.quality.max_ri - medium_ri)
    if good.all():
        return
    departure[~good] = 0.0
    inside = own & good
    departure[own & ~good] = departure[inside].mean(dtype=np.float64) if inside.any() else 0.0


def _physical(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.bool_]:
    # A comparison with NaN is False, so this is also the test for finiteness.
    return (values >= np.float32(low)) & (values <= np.float32(high))


def _count_non_physical(region: NDArray[np.float32], recipe: Recipe) -> int:
    return region.size - int(np.count_nonzero(_physical(region, recipe.quality.min_ri, recipe.quality.max_ri)))


def _clear_others(departure: NDArray[np.float32], own: NDArray[np.bool_], labels: NDArray[np.int32], voxel_um: Triple) -> None:
    """Set to the medium, in place, all other components and the blurred skirts that are nearer to them than to the cell."""
    others = (labels > 0) & ~own
    if not others.any():
        return
    coarse = coarse_steps(voxel_um)
    sampling = [pitch * part.step for pitch, part in zip(voxel_um, coarse, strict=True)]
    foreign = others[coarse]
    distance, nearest = ndimage.distance_transform_edt(~(foreign | own[coarse]), sampling=sampling, return_indices=True)
    skirt = (distance <= NEIGHBOUR_SKIRT_UM) & foreign[tuple(nearest)]
    departure[(enlarge(skirt, coarse, departure.shape) & ~own) | others] = 0.0


def _reaches_border(box: Box, tomogram: Tomogram) -> bool:
    """Whether the box meets the edge of the volume or, laterally, of the instrument's field of view, or an object that does."""
    limits = [(0.0, float(length)) for length in tomogram.ri.shape]
    if tomogram.field_of_view_um is not None:
        y0, y1, x0, x1 = tomogram.field_of_view_um
        for axis, (low, high) in ((1, (y0, y1)), (2, (x0, x1))):
            origin, pitch = tomogram.origin_um[axis], tomogram.voxel_um[axis]
            # Voxels are centred on their coordinates: the first one begins half a pitch before its own.
            limits[axis] = (
                max(limits[axis][0], (low - origin) / pitch),
                min(limits[axis][1], (high - origin) / pitch),
            )
    if any(part.start <= low or part.stop >= high for part, (low, high) in zip(box, limits, strict=True)):
        return True
    (y0, y1), (x0, x1) = (
        (tomogram.origin_um[axis] + box[axis].start * pitch, tomogram.origin_um[axis] + box[axis].stop * pitch)
        for axis, pitch in ((1, tomogram.voxel_um[1]), (2, tomogram.voxel_um[2]))
    )
    return any(y0 < b and y1 > a and x0 < d and x1 > c for a, b, c, d in tomogram.cut_um)


def _reaches_fill(found: _Found, tomogram: Tomogram) -> bool:
    """Whether the object meets what was not measured (the outside of a stitched field): more of it may lie there."""
    if tomogram.fill is None:
        return False
    around = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in found.box)
    fill = tomogram.fill[around]
    if not fill.any():
        return False
    mask = np.zeros(fill.shape, np.bool_)
    mask[tuple(slice(p.start - a.start, p.stop - a.start) for p, a in zip(found.box, around, strict=True))] = found.mask
    met = np.count_nonzero(ndimage.binary_dilation(mask, EVERY_NEIGHBOUR) & fill)
    return bool(met * math.prod(tomogram.voxel_um) ** (2 / 3) > FILL_UM2)


def _reaches_edge(mask: NDArray[np.bool_]) -> bool:
    """Whether the mask meets the edge of its own crop: the cell is larger than the crop."""
    return any(bool(mask.take(index, axis=axis).any()) for axis in range(3) for index in (0, -1))


def _position(centre_px: Triple, tomogram: Tomogram) -> Triple:
    z, y, x = (o + c * p for o, c, p in zip(tomogram.origin_um, centre_px, tomogram.voxel_um, strict=True))
    return z, y, x
