"""Verdicts: each limit fails alone and for its own reason; values stand beside limits when all is well."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from wbcd.quality import background_ri, judge_cell, judge_fields, judge_fringes, judge_tomogram
from wbcd.quality.optical import at_least, at_most
from wbcd.recipe import Recipe
from wbcd.records import Axis, Cell, FieldStack, FringeReport, InversionReport, Morphology, Optics, Tomogram, Verdict

RECIPE = Recipe()
FRAMES = 49


def fringes(**changes: object) -> FringeReport:
    good = FringeReport(
        carrier_rad_um=(31.4, 31.4),
        contrast=np.full(FRAMES, 0.8),
        sideband_snr=np.full(FRAMES, 500.0),
        saturated_fraction=np.zeros(FRAMES),
        mean_level=np.full(FRAMES, 100.0),
        carrier_separation=3.1,
        sideband_separation=2.6,
        axis=Axis(0, uncertainty_na=0.0),
    )
    return dataclasses.replace(good, **changes)


def fields(kept: int = FRAMES, background: float = 0.05) -> FieldStack:
    return FieldStack(
        w=np.ones((kept, 2, 2), np.complex64),
        k_in_rad_um=np.zeros((kept, 2)),
        pixel_um=0.1,
        normal_frame=0,
        optics=Optics(0.532, 1.2, 1.337, 0.1),
        fringes=fringes(),
        kept=np.arange(kept),
        background_rms_rad=np.full(kept, background),
        illumination_misfit=0.001,
    )


def report(**changes: object) -> InversionReport:
    good = InversionReport(
        focus_um=1.0,
        residue_count=0,
        frame_residual=np.full(FRAMES, 0.2),
        residual=0.2,
        frame_shift_um=np.full(FRAMES, 0.02),
        iterations=12,
        seconds=1.0,
    )
    return dataclasses.replace(good, **changes)


def tomogram(medium: float = 1.337, background: float = 1.337, inversion: InversionReport | None = None) -> Tomogram:
    ri = np.random.default_rng(1).normal(background, 3e-4, (20, 40, 40)).astype(np.float32)
    ri[5:15, 10:30, 10:30] = 1.37
    return Tomogram(ri, (0.2, 0.1, 0.1), medium, report=inversion)


def cell(**changes: object) -> Cell:
    shape = (4, 4, 4)
    good = Cell(1, np.full(shape, 1.337, np.float32), np.ones(shape, bool), (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))
    return dataclasses.replace(good, **changes)


def morphology(**changes: float) -> Morphology:
    return dataclasses.replace(Morphology(263.0, 232.0, 0.854, 41.0, 15.7, 1.368, 1.39, 250.0, 40.0, 42.0), **changes)


def reason(verdict: Verdict) -> str | None:
    return verdict.failed.code if verdict.failed else None


def some_frames(good: float, bad: float, count: int) -> np.ndarray:
    values = np.full(FRAMES, good)
    values[:count] = bad
    return values


def test_good_ones_pass_with_values_beside_limits() -> None:
    for verdict in (
        judge_fringes(fringes(), RECIPE),
        judge_fields(fields(), RECIPE),
        judge_tomogram(tomogram(inversion=report()), RECIPE),
        judge_cell(cell(), morphology(), RECIPE),
    ):
        assert verdict.accepted
        assert all(math.isfinite(check.value) and math.isfinite(check.limit) for check in verdict.checks)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"contrast": np.full(FRAMES, 0.1)}, "fringe_contrast"),
        ({"sideband_snr": np.full(FRAMES, 3.0)}, "sideband_snr"),
        ({"saturated_fraction": np.full(FRAMES, 0.05)}, "saturated_fraction"),
        ({"contrast": np.full(FRAMES, np.nan)}, "fringe_contrast"),
        ({"axis": Axis(None, (5.0, 5.0), uncertainty_na=0.06), "contrast": np.zeros(FRAMES)}, "normal_frame"),
        ({"carrier_separation": 2.4}, "carrier_separation"),
        ({"sideband_separation": 1.1}, "sideband_separation"),
        ({"mean_level": some_frames(100.0, 0.0, 10)}, "lost_frames"),
        ({"repeated": some_frames(False, True, 1)}, "repeated_frames"),
    ],
)
def test_fringes_fail_for_their_reason(change: dict[str, np.ndarray], code: str) -> None:
    assert reason(judge_fringes(fringes(**change), RECIPE)) == code


def test_saturation_is_named_before_the_contrast_it_ruins() -> None:
    ruined = fringes(contrast=np.full(FRAMES, 0.05), saturated_fraction=np.full(FRAMES, 0.3))
    assert reason(judge_fringes(ruined, RECIPE)) == "saturated_fraction"


def test_a_few_bad_frames_are_borne_and_a_tenth_is_not() -> None:
    assert judge_fringes(fringes(contrast=some_frames(0.8, 0.0, 4)), RECIPE).accepted
    assert not judge_fringes(fringes(contrast=some_frames(0.8, 0.0, 6)), RECIPE).accepted
    assert judge_fringes(fringes(contrast=some_frames(0.8, np.nan, 4)), RECIPE).accepted


@pytest.mark.parametrize(
    ("given", "code"),
    [(fields(kept=3), "kept_frames"), (fields(kept=30), "lost_frames"), (fields(background=0.5), "background_rms_rad")],
)
def test_fields_fail_for_their_reason(given: FieldStack, code: str) -> None:
    assert reason(judge_fields(given, RECIPE)) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"focus_um": -7.0}, "focus_shift_um"),
        ({"residue_count": 40_000}, "phase_residues"),
        ({"frame_shift_um": some_frames(0.01, 2.0, 20)}, "frame_shift_um"),
        ({"frame_residual": some_frames(0.2, 0.9, 20)}, "frame_residual"),
        ({"residual": 0.8}, "residual"),
        ({"residual": math.nan}, "residual"),
    ],
)
def test_tomograms_fail_for_their_reason(change: dict[str, object], code: str) -> None:
    assert reason(judge_tomogram(tomogram(inversion=report(**change)), RECIPE)) == code


def test_an_inversion_that_registers_no_frames_is_not_judged_by_it() -> None:
    verdict = judge_tomogram(tomogram(inversion=report(frame_shift_um=np.zeros(0))), RECIPE)
    assert verdict.accepted
    assert "frame_shift_um" not in {check.code for check in verdict.checks}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -6.9e37, 0.0, 2.0])
def test_non_physical_voxels_are_counted(bad: float) -> None:
    given = tomogram()
    given.ri[3, 4, 5:8] = bad
    # A few beside the cells are counted and let pass: the cell's own verdict has the last word on those it holds.
    few = judge_tomogram(given, RECIPE)
    assert few.accepted
    assert few.checks[0].value == pytest.approx(3 / given.ri.size)
    given.ri[3:6] = bad
    assert reason(judge_tomogram(given, RECIPE)) == "non_physical_fraction"


def test_medium_offset_is_measured_and_judged() -> None:
    verdict = judge_tomogram(tomogram(background=1.345), RECIPE)
    assert reason(verdict) == "medium_offset_ri"
    assert verdict.failed is not None
    assert verdict.failed.value == pytest.approx(0.008, abs=1e-4)


def test_background_is_the_mode_not_the_mean() -> None:
    given = tomogram(background=1.3362)
    assert background_ri(given) == pytest.approx(1.3362, abs=5e-5)
    assert abs(float(given.ri.mean()) - 1.3362) > 1e-3


def test_background_of_clamped_noise_and_of_a_uint16_file() -> None:
    clamped = tomogram()
    np.maximum(clamped.ri, np.float32(1.337), out=clamped.ri)
    assert background_ri(clamped) == pytest.approx(1.337, abs=2e-4)
    coarse = tomogram(background=1.3371)
    coarse.ri[:] = np.round(coarse.ri * 1e4) / 1e4
    assert background_ri(coarse) == pytest.approx(1.3371, abs=1e-4)


def test_no_background_fails_rather_than_passes() -> None:
    verdict = judge_tomogram(Tomogram(np.full((4, 4, 4), 1.5, np.float32), (0.2, 0.1, 0.1), 1.337), RECIPE)
    assert reason(verdict) == "medium_offset_ri"
    assert verdict.as_json()[-1]["value"] is None


@pytest.mark.parametrize(
    ("of_cell", "of_morphology", "code"),
    [
        ({"touches_border": True}, {}, "touches_border"),
        ({"lobes": 2}, {}, "lobes"),
        ({"solidity": 0.5}, {}, "solidity"),
        ({"non_physical_voxels": 1}, {}, "non_physical_voxels"),
        ({}, {"volume_fl": 12.0}, "volume_low"),
        ({}, {"volume_fl": 4000.0}, "volume_high"),
        ({}, {"mean_ri": 1.34}, "mean_ri_low"),
        ({}, {"mean_ri": 1.5}, "mean_ri_high"),
        ({}, {"volume_fl": 0.0, "mean_ri": math.nan}, "volume_low"),
    ],
)
def test_cells_fail_for_their_reason(of_cell: dict[str, object], of_morphology: dict[str, float], code: str) -> None:
    assert reason(judge_cell(cell(**of_cell), morphology(**of_morphology), RECIPE)) == code


def test_limits_come_from_the_recipe() -> None:
    wide = dataclasses.replace(RECIPE, quality=dataclasses.replace(RECIPE.quality, max_lobes=2, max_volume_fl=9000.0))
    assert judge_cell(cell(lobes=2), morphology(volume_fl=5000.0), wide).accepted


def test_quantiles_of_frames() -> None:
    values = np.arange(10.0)
    assert at_most(values, 0.9) == 9.0
    assert at_most(values, 0.5) == 5.0
    assert at_least(values, 1.0) == 0.0
    assert math.isnan(at_most(np.zeros(0), 0.9))


def test_each_code_is_documented_with_its_limit() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z_]+)`", text, flags=re.MULTILINE))
    verdict = (
        judge_fringes(fringes(), RECIPE)
        + judge_fields(fields(), RECIPE)
        + judge_tomogram(tomogram(inversion=report()), RECIPE)
        + judge_cell(cell(), morphology(), RECIPE)
    )
    # What is flagged beside the limits, never refusing.
    flags = {"unprotected_parts", "instrument_drift", "not_refined", "normal_frame_moved"} & documented
    flags |= {"medium_from_background", "medium_assumed", "no_normal_frame"} & documented
    assert documented - flags == {check.code for check in verdict.checks}
    for check in verdict.checks:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{check.code}`"))
        assert float(re.search(r"at (?:most|least) ([\d.]+)", row).group(1)) == pytest.approx(check.limit)
        assert check.unit in check.sentence()
