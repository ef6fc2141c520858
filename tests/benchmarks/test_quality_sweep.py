"""Quality as a measured instrument (simulated): every kind of defect from harmless to gross, `make bench-quality`.

Prints, for each kind: the share detected at 2 % false rejection and at the recipe's own limits, the strength from which more
than 98 % are refused, and what a defect that was *not* refused still does to volume, dry mass and mean RI. Two pictures:
ROC curves, and detection against strength.

Resumable: each acquisition is a line of ``trials.jsonl`` in $WBCD_SWEEP_DIR (default ``build/quality-sweep``); delete the file
to begin anew. $WBCD_SWEEP_ROUNDS rounds (default 16) of one acquisition of each kind and four good ones; about 2.5 s of CPU
each, on $WBCD_SWEEP_WORKERS processes (default 2).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_quality import GOOD, RIGHT_REASONS, SCALES, Trial, examined, tried
from numpy.typing import NDArray
from scipy.optimize import minimize

from wbcd.morphology import find_cells, measure
from wbcd.recipe import Recipe
from wbcd.reconstruction import reconstruct, retrieve_fields
from wbcd.records import Tomogram
from wbcd.simulation.cells import CLASSES, canonical_shape, render, sample_phantom
from wbcd.simulation.defects import Defect
from wbcd.simulation.microscope import Microscope
from wbcd.simulation.optics import Scattered, record, scatter

SEED = 41
BASES = 4
GOOD_A_ROUND = 4
FALSE_REJECTION = 0.02
SURE = 0.98
VOXEL_UM = (0.1, 0.1, 0.1)
MASS_BAR = 0.05
NO_CELL = ("debris", "empty")


def folder() -> Path:
    return Path(os.environ.get("WBCD_SWEEP_DIR", "build/quality-sweep"))


# --- one acquisition -------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def microscope() -> Microscope:
    torch.set_num_threads(1)
    return Microscope(SEED)


@lru_cache(maxsize=BASES)
def base_cell(base: int) -> tuple[Scattered, float]:
    """Scattered light and radius of one of the cells that all kinds share."""
    phantom = sample_phantom(CLASSES[base % len(CLASSES)], np.random.default_rng([SEED, base]))
    ri = render(phantom, VOXEL_UM, canonical_shape(phantom, VOXEL_UM))
    return scatter(ri, VOXEL_UM, microscope().optics, microscope().k_in_rad_um), phantom.radius_um


def debris(diameter_um: float) -> Scattered:
    half = math.ceil(diameter_um / 2 / VOXEL_UM[0]) + 4
    axis = np.arange(-half, half + 1) * VOXEL_UM[0]
    inside = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2 <= (diameter_um / 2) ** 2
    ri = np.where(inside, 1.365, microscope().optics.medium_ri).astype(np.float32)
    return scatter(ri, VOXEL_UM, microscope().optics, microscope().k_in_rad_um)


def trial(kind: str, index: int, share: float) -> Trial:
    """Make and judge one acquisition; everything random follows from (kind, index)."""
    rng = np.random.default_rng([SEED, index, *kind.encode()])
    base = index % BASES
    strength = 0.0 if kind == GOOD else SCALES[kind].at(share)
    recipe = Recipe()
    if kind == "non_physical":
        verdict, tomograms = examined(acquisition(GOOD, base, 0.0, rng), recipe)
        return tried(kind, index, base, strength, verdict, [spoilt(tomogram, strength, rng) for tomogram in tomograms])
    verdict, tomograms = examined(acquisition(kind, base, strength, rng), recipe)
    return tried(kind, index, base, strength, verdict, tomograms)


def acquisition(kind: str, base: int, strength: float, rng: np.random.Generator) -> Any:
    scope = microscope()
    scattered, radius = base_cell(base)
    place = (float(rng.normal(0, 0.6)), *(float(v) for v in rng.uniform(-2, 2, 2)))
    defect = Defect(kind, strength)
    half = scope.camera.shape[0] * scope.optics.pixel_size_um / 2
    place = defect.place(place, half, radius, rng)
    path = defect.path(len(scope.k_in_rad_um), rng)
    w = torch.ones((len(scope.k_in_rad_um), *scope.camera.shape), dtype=torch.complex64)
    if kind == "debris":
        record(debris(strength), w, np.asarray(place))
    elif kind != "empty":
        record(scattered, w, np.asarray(place) + (0.0 if path is None else path))
    if kind == "doublet":
        other, other_radius = base_cell((base + 1) % BASES)
        angle = rng.uniform(0, 2 * math.pi)
        apart = max(radius + other_radius - strength, 1.0)
        record(other, w, np.asarray(place) + np.array([0.0, math.sin(angle), math.cos(angle)]) * apart)
    defect.disturb(w, scope.optics.pixel_size_um, rng)
    exposure = replace(scope.exposure(rng), visibility=defect.visibility, gain=defect.gain)
    frames = scope.expose(w, exposure, rng)
    defect.spoil(frames, rng)
    return scope.stack(frames)


def spoilt(tomogram: Tomogram, voxels: float, rng: np.random.Generator) -> Tomogram:
    ri = tomogram.ri.copy()
    at = rng.choice(ri.size, round(voxels), replace=False)
    ri.reshape(-1)[at] = rng.choice([np.nan, -6.9e37, 0.0, 9.9], len(at))
    return replace(tomogram, ri=ri)


PROTECTED: Mapping[str, tuple[float, ...]] = {
    "motion": (0.7, 1.5),
    "coherent_noise": (0.15, 0.3),
    "low_contrast": (0.06, 0.12, 0.25),
    "saturation": (1.9, 2.6),
    "defocus": (6.0, 9.0),
    "lost_frames": (0.2, 0.4),
    "repeated_frames": (0.1, 0.4),
}
"""Strengths at and beyond the recipe's limits, where the harm is asked for all the same."""


def unjudged(kind: str, base: int, strength: float) -> dict[str, float]:
    """What would have been measured had nobody judged: values of the largest cell, {} where none is found."""
    rng = np.random.default_rng([SEED, base, *kind.encode()])
    recipe = Recipe()
    tomograms = reconstruct(retrieve_fields(acquisition(kind, base, strength, rng), recipe), recipe)
    found = [measure(cell, recipe) for tomogram in tomograms for cell in find_cells(tomogram, recipe)]
    if not found:
        return {}
    largest = max(found, key=lambda morphology: morphology.volume_fl)
    return {name: getattr(largest, name) for name in ("volume_fl", "dry_mass_pg", "mean_ri")}


# --- all of them -----------------------------------------------------------------------------------


def plan(rounds: int) -> list[tuple[str, int, float]]:
    """(kind, index, share): strengths spread evenly whatever the number of rounds, good ones in between."""
    out: list[tuple[str, int, float]] = []
    for i in range(rounds):
        share = (i * 0.6180339887498949 + 0.5) % 1.0
        out += [(GOOD, GOOD_A_ROUND * i + j, 0.0) for j in range(GOOD_A_ROUND)]
        out += [(kind, i, share) for kind in SCALES]
    return out


def made(path: Path) -> list[Trial]:
    """What is there already; a last line cut short is dropped."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(Trial(**entry | {"score": math.inf if entry["score"] is None else entry["score"]}))
    return found


def run(path: Path, rounds: int, workers: int) -> list[Trial]:
    done = made(path)
    known = {(one.kind, one.index) for one in done}
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = [job for job in plan(rounds) if job[:2] not in known]
    with (
        path.open("a") as lines,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        for future in as_completed([pool.submit(trial, *job) for job in todo]):
            one = future.result()
            entry = asdict(one) | {"score": one.score if math.isfinite(one.score) else None}
            lines.write(json.dumps(entry) + "\n")
            lines.flush()
            done.append(one)
    return done


# --- what they say ---------------------------------------------------------------------------------


def of_kind(one: Trial, kind: str) -> float:
    """How near to refusal by the checks that are right for ``kind``; what was refused for another reason keeps its score."""
    if one.reason is not None:
        return one.score
    return max((one.near[code] for code in reasons(kind) if code in one.near), default=0.0)


def reasons(kind: str) -> frozenset[str]:
    return RIGHT_REASONS.get(kind, frozenset({"non_physical_fraction", "non_physical_voxels"}))


def threshold_of(good: Sequence[Trial], kind: str) -> float:
    """The value that 2 % of the good acquisitions exceed, at most; never above the recipe's own limit."""
    return min(float(np.quantile([of_kind(one, kind) for one in good], 1 - FALSE_REJECTION, method="higher")), 1.0)


def sure_from(trials: Sequence[Trial], kind: str, threshold: float) -> float:
    """Strength from which more than 98 % are refused, by a logistic curve through the trials; NaN where none is reached."""
    scale = SCALES[kind]
    x = np.array([place(scale, one.strength) for one in trials])
    y = np.array([of_kind(one, kind) > threshold for one in trials], float)
    if y.all():
        return float(scale.at(float(x.min())))

    def misfit(parameters: NDArray[np.float64]) -> float:
        slope = math.exp(parameters[1])
        z = slope * (x - parameters[0])
        # A weak prior on the slope: with few trials the data may separate, and the curve must not become a step.
        return float(np.sum(np.logaddexp(0, z) - y * z) + 0.05 * (parameters[1] - 3) ** 2)

    best = min((minimize(misfit, [start, 2.5], method="Nelder-Mead") for start in (0.2, 0.5, 0.8)), key=lambda found: found.fun)
    share = best.x[0] + math.log(SURE / (1 - SURE)) / math.exp(best.x[1])
    return float(scale.at(share)) if share <= 1.0 else math.nan


def place(scale: Any, strength: float) -> float:
    """Inverse of Scale.at."""
    if scale.low == scale.high:
        return 0.5
    if scale.linear:
        share = (strength - scale.low) / (scale.high - scale.low)
    else:
        share = math.log(strength / scale.low) / math.log(scale.high / scale.low)
    return share if scale.rising else 1 - share


def biases(trials: Sequence[Trial], good: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Greatest relative departure from the same cell's good acquisitions, among those accepted."""
    worst = {"volume_fl": 0.0, "dry_mass_pg": 0.0, "mean_ri": 0.0}
    for one in trials:
        if one.reason is not None or one.base not in good:
            continue
        bases = [one.base] if one.kind != "doublet" else [one.base, (one.base + 1) % BASES]
        # Of two cells the larger one's values are kept, unless it was refused.
        found = one.values["volume_fl"]
        whole = min((good[base] for base in bases), key=lambda values: abs(math.log(found / values["volume_fl"])))
        for name in worst:
            medium = 1.337 if name == "mean_ri" else 0.0
            departure = (one.values[name] - medium) / (whole[name] - medium) - 1
            worst[name] = max(worst[name], abs(departure), key=abs)
    return worst


def normal_values(trials: Sequence[Trial]) -> dict[int, dict[str, float]]:
    out: dict[int, dict[str, float]] = {}
    for base in {one.base for one in trials}:
        some = [one.values for one in trials if one.base == base and one.reason is None]
        if some:
            out[base] = {name: float(np.median([values[name] for values in some])) for name in some[0]}
    return out


def rows(trials: Sequence[Trial]) -> Iterator[dict[str, Any]]:
    good = [one for one in trials if one.kind == GOOD]
    normal = normal_values(good)
    yield {
        "kind": GOOD,
        "n": len(good),
        "refused": np.mean([one.reason is not None for one in good]),
        "bias": biases(good, normal),
    }
    for kind in SCALES:
        some = [one for one in trials if one.kind == kind]
        if some:
            threshold = threshold_of(good, kind)
            yield {
                "kind": kind,
                "threshold": threshold,
                "n": len(some),
                "refused": np.mean([one.reason is not None for one in some]),
                "at_two_percent": np.mean([of_kind(one, kind) > threshold for one in some]),
                "rightly": np.mean([right(one) for one in some if one.reason is not None] or [math.nan]),
                "auc": auc(some, good, kind),
                "sure_from": sure_from(some, kind, 1.0),
                "sure_from_two_percent": sure_from(some, kind, threshold),
                "bias": biases(some, normal),
            }


def right(one: Trial) -> bool:
    return one.reason in reasons(one.kind)


def auc(some: Sequence[Trial], good: Sequence[Trial], kind: str) -> float:
    """Chance that a defective acquisition scores above a good one (Mann-Whitney)."""
    a, b = np.array([of_kind(one, kind) for one in some]), np.array([of_kind(one, kind) for one in good])
    return float(np.mean((a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])))


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    first, spread = table[0], table[0]["bias"]
    lines = [
        f"{first['n']} good acquisitions: {100 * first['refused']:.1f} % refused; repeated measurements of one cell "
        f"differ by at most {100 * spread['volume_fl']:.2f} % (volume), {100 * spread['dry_mass_pg']:.2f} % (mass).",
        "",
        "| kind | n | refused | 2 % false rejection: limit at, detected | AUC | for the right reason |"
        " > 98 % refused from (recipe) | (at 2 %) | undetected: volume, mass, RI, at most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table[1:]:
        unit = SCALES[row["kind"]].unit
        harm = ", ".join(f"{100 * row['bias'][name]:.1f} %" for name in ("volume_fl", "dry_mass_pg", "mean_ri"))
        harm = "no cell to compare with" if row["kind"] in NO_CELL else harm
        lines.append(
            f"| {row['kind']} | {row['n']} | {100 * row['refused']:.0f} %"
            f" | {row['threshold']:.2f}, {100 * row['at_two_percent']:.0f} %"
            f" | {row['auc']:.3f} | {100 * row['rightly']:.0f} %"
            f" | {shown(row['sure_from'], unit)} | {shown(row['sure_from_two_percent'], unit)}"
            f" | {harm} |"
        )
    return "\n".join(lines)


def shown(strength: float, unit: str) -> str:
    return "not within the sweep" if math.isnan(strength) else f"{strength:.2g} {unit}".strip()


def draw(trials: Sequence[Trial], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    every_good = [one for one in trials if one.kind == GOOD]
    figure, axes = pyplot.subplots(3, 4, figsize=(13, 9), layout="constrained")
    for axis, kind in zip(axes.flat, SCALES, strict=True):
        good = np.array([of_kind(one, kind) for one in every_good])
        some = np.array([of_kind(one, kind) for one in trials if one.kind == kind])
        cuts = np.unique(np.concatenate([[-np.inf], good, some[np.isfinite(some)], [np.inf]]))
        false = [np.mean(good > cut) for cut in cuts]
        found = [np.mean(some > cut) for cut in cuts]
        axis.step(false, found, where="post", color="#1f5fa8")
        axis.axvline(FALSE_REJECTION, color="#999999", lw=0.8, ls=":")
        axis.set(title=f"{kind} (n = {len(some)})", xlim=(-0.02, 1), ylim=(-0.02, 1.03))
        axis.set(xlabel="good ones refused", ylabel="detected")
    figure.suptitle("ROC over the distance to the recipe's limits (simulated; strengths as swept, harmless ones included)")
    figure.savefig(target / "roc.png", dpi=90)
    pyplot.close(figure)

    figure, axes = pyplot.subplots(3, 4, figsize=(13, 9), layout="constrained")
    for axis, (kind, scale) in zip(axes.flat, SCALES.items(), strict=True):
        some = [one for one in trials if one.kind == kind]
        x = [one.strength for one in some]
        y = [min(of_kind(one, kind), 30.0) for one in some]
        colours = ["#b03030" if one.reason else "#2f8f4f" for one in some]
        axis.scatter(x, np.maximum(y, 0.03), c=colours, s=18)
        axis.axhline(1, color="black", lw=0.8)
        axis.axhline(max(threshold_of(every_good, kind), 0.03), color="#999999", lw=0.8, ls=":")
        axis.set(yscale="log", title=kind, xlabel=scale.unit, ylabel="value over limit")
        if not scale.linear:
            axis.set_xscale("log")
            axis.set_xticks(
                np.geomspace(scale.low, scale.high, 4), [f"{x:.2g}" for x in np.geomspace(scale.low, scale.high, 4)]
            )
            axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    figure.suptitle(
        "How near to refusal each acquisition is (simulated): red refused, green accepted; dotted: 2 % of the good ones"
    )
    figure.savefig(target / "strength.png", dpi=90)
    pyplot.close(figure)


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_each_defect_is_swept_from_harmless_to_gross() -> None:
    target = folder()
    rounds = int(os.environ.get("WBCD_SWEEP_ROUNDS", "16"))
    trials = run(target / "trials.jsonl", rounds, int(os.environ.get("WBCD_SWEEP_WORKERS", "2")))
    table = list(rows(trials))
    print(f"\nseed {SEED}, {len(trials)} acquisitions (simulated), {BASES} cells")
    text = markdown(table)
    print(text)
    (target / "table.md").write_text(text + "\n")
    draw(trials, target)
    print(f"pictures: {target / 'roc.png'}, {target / 'strength.png'}")
    assert table[0]["refused"] <= 0.05
    for row in table[1:]:
        if row["kind"] not in NO_CELL:
            assert row["bias"]["dry_mass_pg"] <= MASS_BAR, row


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", PROTECTED)
def test_what_the_limits_protect_from(kind: str) -> None:
    """Printed only: the harm beyond a limit says whether the limit stands where it should."""
    base = 1
    plain = unjudged(GOOD, base, 0.0)
    for strength in PROTECTED[kind]:
        values = unjudged(kind, base, strength)
        bias = {name: 100 * (values[name] / plain[name] - 1) for name in ("volume_fl", "dry_mass_pg")} if values else {}
        said = ", ".join(f"{name} {value:+.1f} %" for name, value in bias.items()) or "no cell found"
        print(f"{kind} {strength:g} {SCALES[kind].unit}: {said}")
    assert plain
