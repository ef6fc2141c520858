"""Simulated acquisitions with known defects through the line's stages, and how the verdicts met them."""

from __future__ import annotations

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
