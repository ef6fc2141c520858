"""Simulated acquisitions with known defects through the line's stages, and how the verdicts met them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wbcd.acquisition import identify, read
from wbcd.errors import InputError
from wbcd.morphology import find_cells, measure
from wbcd.quality import judge_cell, judge_fields, judge_fringes, judge_tomogram
from wbcd.recipe import Recipe
from wbcd.reconstruction import measure_fringes, reconstruct, retrieve_fields
from wbcd.records import HologramStack, Tomogram, Verdict
from wbcd.simulation.microscope import simulate

# What each defect may rightly be called: the thing itself, or the damage that it does.
RIGHT_REASONS: Mapping[str, frozenset[str]] = {
    "motion": frozenset({"frame_shift_um", "frame_residual", "residual", "phase_residues"}),
    # Stray light also saturates the camera where it adds up.
    "coherent_noise": frozenset(
        {"saturated_fraction", "background_rms_rad", "frame_residual", "residual", "phase_residues", "frame_shift_um"}
    ),
    "low_contrast": frozenset({"fringe_contrast", "sideband_snr"}),
    "saturation": frozenset({"saturated_fraction"}),
    "border": frozenset({"touches_border", "empty_field", "volume_low", "focus_shift_um"}),
    "empty": frozenset({"empty_field"}),
    "debris": frozenset({"volume_low", "empty_field", "mean_ri_low"}),
    "doublet": frozenset({"lobes", "solidity", "volume_high"}),
    "defocus": frozenset({"focus_shift_um"}),
    "lost_frames": frozenset({"lost_frames", "kept_frames", "input.corrupt"}),
    "repeated_frames": frozenset({"frame_residual", "frame_shift_um", "residual", "repeated_frames"}),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """One acquisition: its defect (None: good), the reason of its rejection (None: accepted), every value judged."""

    name: str
    defect: str | None
    strength: float
    kind: str
    reason: str | None
    values: Mapping[str, float]

    @property
    def rejected_rightly(self) -> bool:
        """A defective acquisition refused for what is wrong with it."""
        return self.defect is not None and self.reason in RIGHT_REASONS[self.defect]


def judged(folder: Path, cells: int, defects: float, seed: int, *, start: int = 0) -> Iterator[Judged]:
    """Simulate, judge, delete; one file on disk at a time."""
    recipe = Recipe()
    for made in simulate(folder / "watch", cells, seed, defects=defects, start=start):
        truth = made.truth
        reason, verdict = judge_file(made.path, recipe)
        values = {check.code: check.value for check in verdict.checks}
        strength = float(truth.get("strength") or 0.0)
        yield Judged(made.path.name, truth["defect"], strength, str(truth["kind"]), reason, values)
        made.path.unlink()


def judge_file(path: Path, recipe: Recipe) -> tuple[str | None, Verdict]:
    """The reason (None when accepted) and all checks of one hologram file."""
    try:
        _, payload = read(identify(path))
    except InputError as error:
        return error.code, Verdict()  # the line sets it aside with this code
    assert isinstance(payload, HologramStack)
    return judge_stack(payload, recipe)


def judge_stack(stack: HologramStack, recipe: Recipe) -> tuple[str | None, Verdict]:
    """The same for holograms in memory; the order is the line's."""
    fringes = measure_fringes(stack)
    verdict = judge_fringes(fringes, recipe)
    if verdict.accepted:
        fields = retrieve_fields(stack, recipe, fringes=fringes)
        verdict += judge_fields(fields, recipe)
        if verdict.accepted:
            return _judge_tomograms(reconstruct(fields, recipe), verdict, recipe)
    failed = verdict.failed
    return (failed.code if failed else None), verdict


def _judge_tomograms(tomograms: Iterable[Tomogram], verdict: Verdict, recipe: Recipe) -> tuple[str | None, Verdict]:
    refused: list[str] = []
    accepted = 0
    for tomogram in tomograms:
        optical = judge_tomogram(tomogram, recipe)
        verdict += optical
        if optical.failed is not None:
            return optical.failed.code, verdict
        for cell in find_cells(tomogram, recipe):
            cellular = judge_cell(cell, measure(cell, recipe), recipe)
            verdict += cellular
            accepted += cellular.accepted
            if cellular.failed is not None:
                refused.append(cellular.failed.code)
    if accepted:
        return None, verdict
    return (refused[0] if refused else "empty_field"), verdict


def table(rows: Iterable[Judged]) -> list[dict[str, Any]]:
    """Per defect: number, refused, refused for the right reason, and the reasons met."""
    rows = list(rows)
    out = []
    for defect in sorted({row.defect for row in rows}, key=str):
        some = [row for row in rows if row.defect == defect]
        out.append(
            {
                "defect": defect or "none (good)",
                "n": len(some),
                "refused": sum(row.reason is not None for row in some),
                "rightly": sum(row.rejected_rightly for row in some),
                "reasons": dict(Counter(str(row.reason) for row in some)),
            }
        )
    return out


# --- the sweep: every defect from harmless to gross ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """How strong a defect is drawn, log-uniformly unless ``linear``; ``rising``: stronger is worse."""

    low: float
    high: float
    unit: str
    rising: bool = True
    linear: bool = False

    def at(self, share: float) -> float:
        """The strength at ``share`` (0..1) of the way from harmless to gross."""
        share = share if self.rising else 1 - share
        if self.linear:
            return self.low + share * (self.high - self.low)
        return float(self.low * (self.high / self.low) ** share)


SCALES: Mapping[str, Scale] = {
    "motion": Scale(0.05, 2.0, "um over the scan"),
    "coherent_noise": Scale(0.03, 0.8, "amplitude of the stray light"),
    "low_contrast": Scale(0.02, 1.0, "factor on the visibility", rising=False),
    "saturation": Scale(1.1, 3.0, "factor on the light"),
    "lost_frames": Scale(0.02, 0.4, "share of the frames"),
    "repeated_frames": Scale(0.02, 0.4, "share of the frames"),
    "defocus": Scale(0.5, 11.0, "um", linear=True),
    "border": Scale(-0.2, 1.4, "centre inside the edge, in radii", rising=False, linear=True),
    "doublet": Scale(-1.5, 3.0, "overlap, um", linear=True),
    "debris": Scale(1.5, 5.5, "diameter, um", rising=False, linear=True),
    "empty": Scale(1.0, 1.0, "", linear=True),
    "non_physical": Scale(1.0, 30_000.0, "voxels of the volume"),
}
GOOD = "good"


MEDIUM_RI = 1.337
YES_OR_NO = frozenset(
    {"lobes", "touches_border", "repeated_frames", "non_physical_voxels", "carrier_separation", "sideband_separation"}
)
"""Checks that know no degrees (counts, and the rig's geometry): passed is 0, failed is infinite."""


def score(verdict: Verdict) -> float:
    """How near a verdict is to refusal: the greatest ratio of value and limit; above 1 is refused."""
    return max((nearness(check.code, check.value, check.limit, check.sense) for check in verdict.checks), default=0.0)


def nearness(code: str, value: float, limit: float, sense: str) -> float:
    """Ratio of value and limit the way that 1 is the limit and more is worse; mean RI counts from the medium."""
    if not math.isfinite(value):
        return math.inf
    if code in YES_OR_NO:
        return math.inf if (value > limit if sense == "max" else value < limit) else 0.0
    if code.startswith("mean_ri"):
        value, limit = value - MEDIUM_RI, limit - MEDIUM_RI
    over, under = (value, limit) if sense == "max" else (limit, value)
    if under <= 0:
        return math.inf if over > under else 0.0
    return max(over, 0.0) / under


@dataclass(frozen=True, slots=True)
class Trial:
    """One acquisition of the sweep; ``values``: volume_fl, dry_mass_pg, mean_ri of its best cell, {} where none is accepted.

    ``score``: how near to refusal the whole acquisition is (see :func:`score`), ``near``: the same for each check;
    ``reason``: None where accepted.
    """

    kind: str
    index: int
    base: int
    strength: float
    score: float
    reason: str | None
    values: Mapping[str, float]
    near: Mapping[str, float]


def examined(stack: HologramStack, recipe: Recipe) -> tuple[Verdict, list[Tomogram]]:
    """The optical verdict of a stack, as far as the line would go, and the tomograms where it went to its end."""
    fringes = measure_fringes(stack)
    verdict = judge_fringes(fringes, recipe)
    if not verdict.accepted:
        return verdict, []
    fields = retrieve_fields(stack, recipe, fringes=fringes)
    verdict += judge_fields(fields, recipe)
    return verdict, reconstruct(fields, recipe) if verdict.accepted else []


def tried(kind: str, index: int, base: int, strength: float, verdict: Verdict, tomograms: Iterable[Tomogram]) -> Trial:
    """Cells found, judged and measured; the acquisition is as near to refusal as its optics and its best cell together."""
    recipe = Recipe()
    best, values, reasons, own = math.inf, {}, [], Verdict()
    for tomogram in tomograms:
        verdict += judge_tomogram(tomogram, recipe)
        for cell in find_cells(tomogram, recipe) if verdict.accepted else ():
            morphology = measure(cell, recipe)
            cellular = judge_cell(cell, morphology, recipe)
            reasons += [cellular.failed.code] if cellular.failed else []
            near = score(cellular)
            if near < best:
                best, own = near, cellular
                values = {name: getattr(morphology, name) for name in ("volume_fl", "dry_mass_pg", "mean_ri")}
    optical = score(verdict)
    failed = verdict.failed
    whole = max(optical, best) if failed is None else max(optical, 1.0 + 1e-9)
    reason = failed.code if failed else None if best <= 1 else (reasons or ["empty_field"])[0]
    by_check: dict[str, float] = {}
    for check in (verdict + own).checks:
        ratio = nearness(check.code, check.value, check.limit, check.sense)
        by_check[check.code] = max(by_check.get(check.code, 0.0), min(ratio, 1e6))
    return Trial(kind, index, base, strength, whole, reason, values if reason is None else {}, by_check)
