"""The optical verdict: raw frames, fields, tomogram. Every per-frame value is judged by a quantile over the frames.

A single bad frame of 49 costs nothing that the inversion would notice; a tenth of them does. So the value of a
per-frame check is its ``frame_quantile`` (0.9): what all but the worst tenth of the frames keep to.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wbcd.quality.background import background_ri, count_non_physical
from wbcd.recipe import ALGORITHMS, Recipe
from wbcd.records import Check, FieldStack, FringeReport, InversionReport, Tomogram, Verdict

ALGORITHM_VERSION = ALGORITHMS["quality"]
"""Of the verdicts: which values are judged, and how (optical, cellular). History: :data:`wbcd.recipe.ALGORITHM_HISTORY`."""

DARK_SHARE = 0.1
"""A frame with less than this share of the median light is lost."""


def at_most(values: NDArray[np.float64], quantile: float) -> float:
    """The value that the fraction ``quantile`` of the frames does not exceed; NaN (which fails) without frames.

    A frame whose value is not finite counts as infinitely bad.
    """
    if values.size == 0:
        return math.nan
    worst = np.where(np.isfinite(values), values, np.inf)
    return float(np.quantile(worst, quantile, method="higher"))


def at_least(values: NDArray[np.float64], quantile: float) -> float:
    """The value that the fraction ``quantile`` of the frames reaches; NaN without frames."""
    return -at_most(-values, quantile)


def judge_fringes(report: FringeReport, recipe: Recipe) -> Verdict:
    """Lost and repeated frames, saturation, fringe contrast and sideband of the raw frames [angle], before any field.

    A dark frame is lost, not low in contrast: the frames that hold light are judged by theirs.
    """
    limits = recipe.quality
    share = limits.frame_quantile
    lit = report.mean_level > DARK_SHARE * np.median(report.mean_level)
    repeated = 0.0 if report.repeated is None or not report.repeated.size else float(np.mean(report.repeated))
    return Verdict(
        (
            Check("lost_frames", 1.0 - float(np.mean(lit)), limits.max_lost_frames, "max", "of the frames"),
            Check("repeated_frames", repeated, limits.max_repeated_frames, "max", "of the frames"),
            # Saturation before contrast: it also lowers the contrast, and the cause is the better reason.
            Check("saturated_fraction", at_most(report.saturated_fraction[lit], share), limits.max_saturated_fraction, "max"),
            # Before what is judged about the carrier: about a wrong one the frames seem to have no contrast.
            *_axis_checks(report, recipe),
            # Before contrast: frames whose sideband is folded over lose contrast too.
            *_sideband_checks(report, recipe),
            Check("fringe_contrast", at_least(report.contrast[lit], share), limits.min_fringe_contrast, "min"),
            Check("sideband_snr", at_least(report.sideband_snr[lit], share), limits.min_sideband_snr, "min"),
        )
    )


def _sideband_checks(report: FringeReport, recipe: Recipe) -> tuple[Check, ...]:
    """Is the sideband clear of the zero order, and of its own mirror image across the camera's Nyquist limit?"""
    limits = recipe.quality
    judged = (
        ("carrier_separation", report.carrier_separation, limits.min_carrier_separation),
        ("sideband_separation", report.sideband_separation, limits.min_sideband_separation),
    )
    return tuple(Check(code, value, limit, "min", "NA/lambda") for code, value, limit in judged if value is not None)


def _axis_checks(report: FringeReport, recipe: Recipe) -> tuple[Check, ...]:
    """Is it known where the optical axis lies among the directions of light? And a word where the file states another."""
    axis = report.axis
    if axis is None or axis.uncertainty_na is None:
        return ()
    known = Check("normal_frame", axis.uncertainty_na, recipe.quality.max_axis_uncertainty, "max", "of the NA")
    return (known,) if axis.stated is None else (known, Check("normal_frame_moved", float(axis.moved), 1.0, "max"))


def judge_fields(fields: FieldStack, recipe: Recipe) -> Verdict:
    """Frames lost on the way from hologram to field, stated directions of light, and the phase noise outside the object."""
    limits = recipe.quality
    recorded = max(int(fields.fringes.contrast.size), 1)
    kept = int(fields.kept.size)
    background = at_most(fields.background_rms_rad, limits.frame_quantile)
    misfit = fields.illumination_misfit
    # Measured vectors need no check against themselves.
    stated = () if misfit is None else (Check("illumination_misfit", misfit, limits.max_illumination_misfit, "max", "NA k0"),)
    return Verdict(
        (
            Check("kept_frames", float(kept), float(limits.min_kept_frames), "min", "frames"),
            Check("lost_frames", 1.0 - kept / recorded, limits.max_lost_frames, "max", "of the frames"),
            *stated,
            Check("background_rms_rad", background, limits.max_background_rms_rad, "max", "rad"),
        )
    )


def judge_tomogram(tomogram: Tomogram, recipe: Recipe) -> Verdict:
    """Physical values and medium of any RI volume; and, where it was inverted here, how well the frames agree with it."""
    limits = recipe.quality
    bad = count_non_physical(tomogram.ri, limits.min_ri, limits.max_ri)
    offset = abs(background_ri(tomogram) - tomogram.medium_ri)
    checks = (
        # A few bad voxels beside the cells spoil nothing; those in a cell's box are the cell's verdict.
        Check("non_physical_fraction", bad / tomogram.ri.size, limits.max_non_physical_fraction, "max", "of the voxels"),
        Check("medium_offset_ri", offset, limits.max_medium_offset_ri, "max"),
    )
    if tomogram.report is None:
        return Verdict(checks)
    return Verdict(checks[:1] + _inversion_checks(tomogram.report, tomogram.ri.shape, recipe) + checks[1:])


def _inversion_checks(report: InversionReport, shape: tuple[int, ...], recipe: Recipe) -> tuple[Check, ...]:
    limits = recipe.quality
    # Residues per pixel and frame: the count alone grows with the frame and the number of angles.
    pixels = max(report.frame_residual.size, 1) * shape[-2] * shape[-1]
    return (
        Check("focus_shift_um", abs(report.focus_um), limits.max_focus_shift_um, "max", "um"),
        Check("phase_residues", report.residue_count / pixels, limits.max_phase_residue_fraction, "max", "a pixel and frame"),
        *_agreement_checks(report, recipe),
        *_refinement_checks(report),
    )


def _refinement_checks(report: InversionReport) -> tuple[Check, ...]:
    """A word, never a refusal: 1 where the held-out frames preferred the fast mode's result, which stayed."""
    return (Check("not_refined", float(not report.refinement.kept), 1.0, "max"),) if report.refinement else ()


def _agreement_checks(report: InversionReport, recipe: Recipe) -> tuple[Check, ...]:
    """Do the frames agree with one another and with the tomogram? Not asked where the field's edge cuts an object: each
    direction of light then shows another part of it, and the cell's own verdict names the border.
    """
    limits = recipe.quality
    if report.cut_by_field:
        return ()
    checks = (
        Check("frame_residual", at_most(report.frame_residual, limits.frame_quantile), limits.max_frame_residual, "max"),
        Check("residual", report.residual, limits.max_residual, "max"),
    )
    if not report.frame_shift_um.size:
        return checks  # not every inversion registers the frames
    shift = at_most(report.frame_shift_um, limits.frame_quantile)
    return (Check("frame_shift_um", shift, limits.max_frame_shift_um, "max", "um"), *checks)
