"""The scientific parameters, and the versions of the algorithms: whatever changes a number is here, and nothing else is.

The canonical JSON of a recipe is hashed to its id, and every stored number names that id. Site settings (paths, queue
sizes, device) are in :mod:`wbcd.config` and are not hashed.

Parameters are set; algorithm versions are not: they say which code computes. Whoever changes a number of a stage adds a line
to the stage's history in :data:`ALGORITHM_HISTORY`; ``tests/unit/test_golden_numbers.py`` fails until then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wbcd.records import Shape3, Triple

_FIRST: Final = "first counted"

ALGORITHM_HISTORY: Final[Mapping[str, tuple[str, ...]]] = {
    # Stage: what each version changed, in one line; the version is the number of lines. Append, never edit.
    # Rows whose recipe has no versions are of before "first counted".
    "reading": (f"{_FIRST}; before it the NA of an HT-X file was its condenser's",),
    "axis": (f"{_FIRST}; before it the normal frame was taken as stated, or as the first one",),
    "fields": (_FIRST,),
    "inversion": (_FIRST,),
    "refinement": (_FIRST,),
    "medium": (f"{_FIRST}; before it a volume that states no medium had the default one",),
    "quality": (_FIRST,),
    "drift": (_FIRST,),
    "cells": (f"{_FIRST}; before it a cell that what was not measured cuts did not touch the border",),
    "measuring": (_FIRST,),
    "preparation": (_FIRST,),
    "classification": (_FIRST,),
}
"""The stages that make numbers, in the order of the line. The module of each names its version as ``ALGORITHM_VERSION``."""

ALGORITHMS: Final[Mapping[str, int]] = {stage: len(lines) for stage, lines in ALGORITHM_HISTORY.items()}
"""Stage -> version of its algorithm, a whole number from 1."""


@dataclass(frozen=True, slots=True)
class ReconstructionRecipe:
    """From holograms to RI. ``voxel_um`` and ``shape`` are (z, y, x).

    ``mode``: "fast" (Rytov) or "accurate" (multi-slice model, tens of seconds a cell). ``refinement_tv``: total variation of
    the accurate mode in units of the object's own potential. ``hold_out_every``: every such frame judges the accurate mode
    instead of taking part in it. ``unstated_medium``: the medium of an RI volume that states none: "background" as the volume
    itself shows it, "default" the ``default_medium_ri``; holograms show none and always have the default.
    """

    mode: str = field(default="fast", metadata={"choices": ("fast", "accurate")})
    voxel_um: Triple = (0.2, 0.1, 0.1)
    shape: Shape3 = (100, 150, 150)
    iterations: int = 16
    tv_weight: float = 0.0
    non_negative: bool = True
    refocus: bool = True
    refocus_range_um: float = 6.0
    default_medium_ri: float = 1.337
    unstated_medium: str = field(default="background", metadata={"choices": ("background", "default")})
    refinement_iterations: int = 8
    refinement_tv: float = 0.05
    hold_out_every: int = 8


@dataclass(frozen=True, slots=True)
class QualityRecipe:
    """Limits of the optical and the cell verdict; the codes of the checks are in docs/reference/checks.md.

    ``frame_quantile``: a per-frame value is judged by what this share of the frames keeps to. ``max_lost_frames`` is a
    share of the recorded frames; ``max_phase_residue_fraction`` is per pixel and frame. ``max_instrument_drift``: in tolerances
    of the stored calibration, where there is one; above 1 it is told, above this refused. ``accept_own_tomograms``: a tomogram
    that wbcd wrote counts as an acquisition of its own.
    """

    frame_quantile: float = 0.9

    # Of the NA: an axis 0.04 off changes the mass by 0.2 %, one 0.42 off by 10 %. A circle of 30 frames tells it to 0.002.
    max_axis_uncertainty: float = 0.05
    min_fringe_contrast: float = 0.15
    min_sideband_snr: float = 20.0
    min_carrier_separation: float = 2.95
    min_sideband_separation: float = 1.95
    max_saturated_fraction: float = 0.01
    # Stray light of amplitude a leaves a/sqrt(2) rad; 0.17 of it costs 5 % of the mass. A measured HL60 hologram has 0.09.
    max_background_rms_rad: float = 0.12
    max_phase_residue_fraction: float = 0.01
    max_frame_residual: float = 0.6
    max_residual: float = 0.45
    max_focus_shift_um: float = 5.0
    # True vectors differ by 0.0012 at most from the measured ones (2,000 e-/px, 5 frames, also without a reference);
    # vectors that are 5 % too long by 0.044, and cost a few per cent of the volume.
    max_illumination_misfit: float = 0.02
    min_kept_frames: int = 4
    max_lost_frames: float = 0.1
    max_repeated_frames: float = 0.0
    max_frame_shift_um: float = 0.2
    max_non_physical_voxels: int = 0
    max_non_physical_fraction: float = 0.001
    min_ri: float = 1.2
    max_ri: float = 1.8
    min_volume_fl: float = 30.0
    max_volume_fl: float = 3000.0
    min_mean_ri: float = 1.345
    max_mean_ri: float = 1.45
    min_solidity: float = 0.55
    max_lobes: int = 1
    max_medium_offset_ri: float = 0.004
    max_instrument_drift: float = 10.0
    accept_own_tomograms: bool = False


@dataclass(frozen=True, slots=True)
class MorphologyRecipe:
    """Ryu et al. 2021, section 4.3. ``ri_increment_ml_g``: alpha in n = n_m + alpha C. ``support_margin_um``: how far
    around the mask the total dry mass is summed. ``mass_rim_um``: how far beyond the half-contrast surface its dry mass is;
    ``mass_rim_accurate_um``: the same in the accurate mode, where nothing but blur lies beside a cell
    (at most ``support_margin_um``).
    ``max_hole_fl``: enclosed regions below the threshold up to this volume are
    vacuoles and belong to the cell; a larger one is left out, as the paper's rule says."""

    threshold_ri: float = 1.35
    ri_increment_ml_g: float = 0.2
    min_object_fl: float = 10.0
    crop_shape: Shape3 = (100, 150, 150)
    crop_voxel_um: Triple = (0.2, 0.1, 0.1)
    support_margin_um: float = 1.0
    mass_rim_um: float = 0.2
    mass_rim_accurate_um: float = 1.0
    max_hole_fl: float = 10.0


@dataclass(frozen=True, slots=True)
class ClassificationRecipe:
    """``min_probability``: below it a cell is counted as unclassified, not under its most probable label."""

    min_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """All scientific parameters of one way of making numbers.

    The versions of the algorithms are those of this wbcd, whatever else is set: nothing else can compute with a recipe.
    """

    reconstruction: ReconstructionRecipe = field(default_factory=ReconstructionRecipe)
    quality: QualityRecipe = field(default_factory=QualityRecipe)
    morphology: MorphologyRecipe = field(default_factory=MorphologyRecipe)
    classification: ClassificationRecipe = field(default_factory=ClassificationRecipe)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, JSON-ready: a section each, and ``algorithms`` (stage -> version)."""
        return {**dataclasses.asdict(self), "algorithms": dict(ALGORITHMS)}

    def canonical_json(self) -> str:
        """Sorted keys, no spaces, shortest floats: the same recipe gives the same text on every machine."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def recipe_id(self) -> str:
        """First 16 hex digits of BLAKE2b of the canonical JSON."""
        return hashlib.blake2b(self.canonical_json().encode(), digest_size=8).hexdigest()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of :meth:`as_dict`; missing fields take their defaults. Raises TypeError on an unknown field.

        ``algorithms`` is not taken over: what computes with the recipe are the algorithms of this wbcd, so that a recipe stored
        by another version has another id here. What was stored is asked with :func:`older_algorithms`.
        """
        parts: dict[str, Any] = {}
        for section in dataclasses.fields(cls):
            kind = SECTIONS[section.name]
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in data.get(section.name, {}).items()}
            parts[section.name] = kind(**given)
        return cls(**parts)


SECTIONS: Mapping[str, type[Any]] = {
    "reconstruction": ReconstructionRecipe,
    "quality": QualityRecipe,
    "morphology": MorphologyRecipe,
    "classification": ClassificationRecipe,
}


def older_algorithms(parameters: Mapping[str, Any]) -> dict[str, int | None]:
    """Of the parameters of a stored recipe: the stages whose algorithm is older than today's, with the version that it was.

    None: no version was stored, which is older than any. A version newer than today's (of a later wbcd) is not older.
    """
    stored = parameters.get("algorithms")
    versions = stored if isinstance(stored, Mapping) else {}
    known = {stage: version if isinstance(version := versions.get(stage), int) else None for stage in ALGORITHMS}
    return {stage: version for stage, version in known.items() if version is None or version < ALGORITHMS[stage]}


def differing_parameters(parameters: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """``section.name`` of each stored parameter that ``recipe`` sets to something else; what was not stored is left out."""
    today: Mapping[str, Any] = json.loads(recipe.canonical_json())
    return [
        f"{section}.{name}"
        for section in SECTIONS
        for name, value in today[section].items()
        if parameters.get(section, {}).get(name, value) != value
    ]
