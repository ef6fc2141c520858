"""The cell verdict: is this one whole cell, and could it be a leukocyte."""

from __future__ import annotations

from wbcd.recipe import Recipe
from wbcd.records import Cell, Check, Morphology, Verdict


def judge_cell(cell: Cell, morphology: Morphology, recipe: Recipe) -> Verdict:
    """Damage first, then wholeness, then plausibility: the first failure is the reason that a person reads."""
    limits = recipe.quality
    volume, mean = morphology.volume_fl, morphology.mean_ri
    return Verdict(
        (
            Check(
                "non_physical_voxels", float(cell.non_physical_voxels), float(limits.max_non_physical_voxels), "max", "voxels"
            ),
            Check("volume_low", volume, limits.min_volume_fl, "min", "fL"),
            # Before the border: two cells grown together may outgrow the crop, and the cause is the better reason.
            Check("lobes", float(cell.lobes), float(limits.max_lobes), "max"),
            Check("touches_border", float(cell.touches_border), 0.0, "max"),
            Check("volume_high", volume, limits.max_volume_fl, "max", "fL"),
            Check("solidity", cell.solidity, limits.min_solidity, "min"),
            Check("mean_ri_low", mean, limits.min_mean_ri, "min"),
            Check("mean_ri_high", mean, limits.max_mean_ri, "max"),
        )
    )
