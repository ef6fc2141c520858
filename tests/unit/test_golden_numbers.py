"""Golden numbers: what each stage makes of a small fixed input, and the version of the algorithm that makes it.

A number that moves without its version fails, and so does a version that is raised while no number moves: an upgraded daemon
would keep old rows for new ones, or count everything again for nothing. The figures of every version are in
``golden_numbers.json``. After a change that was meant, add a line to the stage's history in ``wbcd.recipe.ALGORITHM_HISTORY``
and run ``PYTHONPATH=tests python tests/unit/test_golden_numbers.py``: it writes the figures of the new version beside the old.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import helpers_mie as mie
import numpy as np
import pytest
import torch
from helpers_acquisition import holograms, load, tcf_file, wbcd_file
from helpers_classification import CLASSES, SPEC, toy_bundle, toy_cell
from helpers_morphology import as_tomogram, ellipsoid, sphere
from helpers_ri import cell_volume, imagej_tiff, x10000, zarr_image
from numpy.typing import NDArray

from wbcd.classification import Classifier
from wbcd.classification.conformal import Conformal
from wbcd.classification.medium import noise_ri
from wbcd.classification.preparation import delta_ri, normalise
from wbcd.morphology import find_cells, measure
from wbcd.quality import background_ri, judge_cell, judge_fields, judge_fringes, judge_tomogram, settle_medium
from wbcd.recipe import ALGORITHM_HISTORY, ALGORITHMS, Recipe
from wbcd.reconstruction import EwaldOperator, find_axis, measure_fringes, reconstruct, retrieve_fields, ri_to_potential
from wbcd.reconstruction.axis import fit_pattern
from wbcd.reconstruction.background import remove_background
from wbcd.reconstruction.instrument import Calibration, Ring, drift, judge_drift
from wbcd.reconstruction.refinement import refine
from wbcd.reconstruction.spectrum import locate, rytov
from wbcd.records import Axis, Cell, FieldStack, FringeReport, HologramStack, InversionReport, Optics, Tomogram, Verdict
from wbcd.simulation.files import write_mat, write_tiff_pair

GOLDEN = Path(__file__).with_name("golden_numbers.json")
Figures = dict[str, float]

MODULES = {
    "reading": "wbcd.acquisition.reading",
    "axis": "wbcd.reconstruction.fringes",
    "fields": "wbcd.reconstruction.field",
    "inversion": "wbcd.reconstruction.tomogram",
    "refinement": "wbcd.reconstruction.refinement",
    "medium": "wbcd.quality.background",
    "quality": "wbcd.quality.optical",
    "drift": "wbcd.reconstruction.instrument",
    "cells": "wbcd.morphology.cells",
    "measuring": "wbcd.morphology.measure",
    "preparation": "wbcd.classification.preparation",
    "classification": "wbcd.classification.classifier",
}
"""Where each stage names its version."""

TOLERANCE = {"axis": 1e-4, "fields": 2e-4, "inversion": 3e-4, "refinement": 1e-3, "drift": 1e-4, "classification": 1e-4}
"""Relative; what another processor's transforms and sums may differ by. Of the others 1e-5."""

RIG = mie.Rig(size=192, frames=9, illumination_na=0.75, electrons=None)
COARSE = replace(RIG, size=96, pixel_um=0.125)
OPTICS = Optics(RIG.wavelength_um, RIG.objective_na, RIG.medium_ri, RIG.pixel_um)
BALL = mie.Sphere((1.8,), (1.372,), (0.3, -0.2, 0.4))
FAST = Recipe(reconstruction=replace(Recipe().reconstruction, shape=(32, 64, 64), voxel_um=(0.2, 0.125, 0.125), iterations=6))
ACCURATE = replace(
    FAST, reconstruction=replace(FAST.reconstruction, mode="accurate", refinement_iterations=2, hold_out_every=4)
)


# --- inputs -----------------------------------------------------------------------------------------------


@cache
def stack() -> HologramStack:
    """A sphere of 3.6 um beside the middle of the field, and the empty field; fringes of a still camera without noise."""
    rng = np.random.default_rng(21)
    w = mie.fields(BALL, RIG)
    return HologramStack(mie.holograms(w, RIG, rng), mie.holograms(np.ones_like(w), RIG, rng), None, 0, OPTICS)


def report() -> FringeReport:
    """Frames as they might be; of one the contrast is low."""
    rng = np.random.default_rng(24)
    contrast = rng.uniform(0.7, 0.8, RIG.frames)
    contrast[4] = 0.3
    return FringeReport(
        carrier_rad_um=(31.6, 31.2),
        contrast=contrast,
        sideband_snr=rng.uniform(400, 600, RIG.frames),
        saturated_fraction=rng.uniform(0, 0.004, RIG.frames),
        mean_level=rng.uniform(90, 110, RIG.frames),
        repeated=np.arange(RIG.frames) == 3,
        carrier_separation=3.1,
        sideband_separation=2.6,
        axis=Axis(0, stated=1, uncertainty_na=0.004),
    )


@cache
def fields() -> FieldStack:
    """The sphere's exact fields, as they would come from holograms without any fault."""
    return FieldStack(
        w=mie.fields(BALL, COARSE).astype(np.complex64),
        k_in_rad_um=COARSE.k_in(),
        pixel_um=COARSE.pixel_um,
        normal_frame=0,
        optics=OPTICS,
        fringes=report(),
        kept=np.arange(RIG.frames),
        background_rms_rad=np.random.default_rng(25).uniform(0.02, 0.05, RIG.frames),
        illumination_misfit=0.003,
    )


@cache
def volume() -> Tomogram:
    """Two cells, one lying across a corner; noise, and a medium that is not the stated one."""
    shape = (60, 110, 110)
    occupancy = ellipsoid((2.6, 3.1, 2.9), shape=shape) + sphere(4.2, offset_um=(0.4, 3.9, 4.2), shape=shape)
    clean = as_tomogram(occupancy, inside=1.371)
    noise = np.random.default_rng(22).normal(4e-4, 6e-4, shape).astype(np.float32)
    return replace(clean, ri=clean.ri + noise, objective_na=1.2, wavelength_um=0.532)


@cache
def cell() -> Cell:
    """An ellipsoid in noise, as the fast mode might have made it."""
    shape = (60, 80, 80)
    clean = as_tomogram(ellipsoid((2.6, 3.1, 2.9), shape=shape), inside=1.371)
    ri = clean.ri + np.random.default_rng(26).normal(4e-4, 6e-4, shape).astype(np.float32)
    return Cell(
        1,
        ri,
        clean.ri > 1.35,
        clean.voxel_um,
        clean.medium_ri,
        (6.0, 4.0, 4.0),
        solidity=0.99,
        mode="fast",
        held_out_residual=0.15,
    )


# --- figures ----------------------------------------------------------------------------------------------


def of_array(name: str, values: NDArray[Any]) -> Figures:
    """Sum, spread, and one sum that tells where things lie: of every place another weight."""
    flat = np.asarray(values, np.float64).ravel()
    weight = np.linspace(0.5, 1.5, flat.size)
    return {
        f"{name} sum": float(flat.sum()),
        f"{name} rms": float(np.sqrt((flat**2).mean())),
        f"{name} placed": float(weight @ flat),
    }


def of_object(name: str, value: object, keys: tuple[str, ...]) -> Figures:
    return {f"{name} {key}": float(getattr(value, key)) for key in keys}


def of_verdict(name: str, verdict: Verdict) -> Figures:
    """Each value that is judged, and which check is the reason of a refusal (-1: none)."""
    values = {f"{name} {check.code}": float(check.value) for check in verdict.checks}
    return {**values, f"{name} refused by": float(verdict.checks.index(verdict.failed) if verdict.failed else -1)}


def reading() -> Figures:
    """The same cell as uint16, float and uint8 of a TCF, as TIFF and as OME-Zarr; frames of each format of holograms."""
    ri = cell_volume((12, 30, 33), centre=(6, 15, 16))
    holes = ri.copy()
    holes[:, :4, :5] = 0
    out: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = {
            "tcf": tcf_file(place / "a.TCF", [holes]),
            "tcf float": tcf_file(place / "f.TCF", [ri], version="1.2"),
            "tcf uint8": tcf_file(place / "b.TCF", [ri], version="1.5", tile_type="uint8"),
            "tiff": imagej_tiff(place / "c.tif", x10000(ri)),
            "zarr": zarr_image(place / "d.zarr", x10000(ri)),
        }
        for name, path in files.items():
            (tomogram,) = load(path)[1]
            out |= of_array(f"{name} n - 1", tomogram.ri - 1)
            out |= {f"{name} voxel_um {axis}": pitch for axis, pitch in zip("zyx", tomogram.voxel_um, strict=True)}
            out |= of_object(name, tomogram, ("medium_ri",))
        made = holograms(4, 64, reference=True, dtype=np.uint16)
        background = write_mat(place / "bg001_Tomog.mat", made.reference, made.optics)
        rigs = {
            "hdf5": wbcd_file(place / "e.h5", made),
            "tiff pair": write_tiff_pair(place, "g", made),
            "mat": write_mat(background.with_name("sample001_Tomog.mat"), made.holograms, made.optics),
        }
        for name, path in rigs.items():
            frames = load(path)[1]
            out |= of_array(f"{name} frames", frames.holograms) | of_array(f"{name} reference", frames.reference)
            out |= of_object(name, frames.optics, ("wavelength_um", "objective_na", "medium_ri", "pixel_size_um"))
    return out


def axis() -> Figures:
    """The normal frame of a stack that states none and of one whose axis lies off the middle; carrier, contrast, vectors."""
    unstated = replace(stack(), normal_frame=None)
    report = measure_fringes(unstated)
    rng = np.random.default_rng(23)
    points = np.concatenate([[[0.0, 0.0]], RIG.k_in()[1:] / RIG.k0 / RIG.objective_na]) + (0.13, -0.07)
    pattern = fit_pattern(points + rng.normal(0, 0.002, points.shape), np.ones(len(points), bool))
    assert pattern is not None
    frame = find_axis(unstated).normal_frame
    return {
        **of_array("contrast", report.contrast),
        **of_array("snr", report.sideband_snr),
        "normal frame": math.nan if frame is None else float(frame),
        "carrier x": report.carrier_rad_um[0],
        "carrier y": report.carrier_rad_um[1],
        "carrier separation": report.carrier_separation or math.nan,
        "sideband separation": report.sideband_separation or math.nan,
        "pattern x": pattern.centre[0],
        "pattern y": pattern.centre[1],
        **of_object("pattern", pattern, ("radius", "uncertainty")),
    }


def of_fields() -> Figures:
    """With and without a reference."""
    out: Figures = {}
    for name, frames in (("reference", stack()), ("alone", replace(stack(), reference=None))):
        found = retrieve_fields(frames, FAST)
        out |= of_array(f"{name} |w|", np.abs(found.w)) | of_array(f"{name} phase", np.angle(found.w))
        out |= of_array(f"{name} |k|", np.hypot(*found.k_in_rad_um.T)) | of_array(f"{name} rms", found.background_rms_rad)
    return out


def inversion() -> Figures:
    (tomogram,) = reconstruct(fields(), FAST)
    assert tomogram.report is not None
    return (
        of_array("n - n_m", tomogram.ri - tomogram.medium_ri)
        | of_array("frame residual", tomogram.report.frame_residual)
        | of_array("frame shift", tomogram.report.frame_shift_um)
        | of_object("report", tomogram.report, ("focus_um", "residual", "held_out_residual", "residue_count"))
    )


def refinement() -> Figures:
    """From a sphere that is a little too small."""
    (window,) = locate(fields(), ACCURATE)
    phases = rytov(fields(), window, ACCURATE, device="cpu")
    shape, voxel = ACCURATE.reconstruction.shape, ACCURATE.reconstruction.voxel_um
    operator = EwaldOperator(phases.k_in_rad_um, phases.optics, shape, voxel, "cpu", (3, 7))
    start = as_tomogram(sphere(3.2, shape=shape, pitch=voxel), inside=1.370, pitch=voxel).ri
    potential = ri_to_potential(torch.from_numpy(start), OPTICS)
    refined, found = refine(fields(), window, phases, operator, potential, potential, ACCURATE)
    return of_array("potential", refined.numpy()) | of_object("report", found, ("kept", "misfit_before", "misfit_after"))


def medium() -> Figures:
    unstated = replace(volume(), ri=volume().ri.copy())
    settled = settle_medium(unstated, Recipe())
    return {
        "background - n_m": background_ri(volume()) - volume().medium_ri,
        "settled - n_m": settled.medium_ri - volume().medium_ri,
    }


def quality() -> Figures:
    rng = np.random.default_rng(27)
    inverted = replace(
        volume(),
        report=InversionReport(
            focus_um=-1.2,
            residue_count=70,
            frame_residual=rng.uniform(0.2, 0.4, RIG.frames),
            residual=0.3,
            frame_shift_um=rng.uniform(0.01, 0.05, RIG.frames),
            iterations=6,
            seconds=1.0,
        ),
    )
    morphology = measure(cell(), Recipe())
    known = replace(morphology, volume_fl=130.0, mean_ri=1.366)
    return (
        of_verdict("fringes", judge_fringes(report(), Recipe()))
        | of_verdict("fields", judge_fields(fields(), Recipe()))
        | of_verdict("inverted", judge_tomogram(inverted, Recipe()))
        | of_verdict("read", judge_tomogram(volume(), Recipe()))
        | of_verdict("cell", judge_cell(cell(), known, Recipe()))
        | of_verdict("two cells", judge_cell(replace(cell(), lobes=2, touches_border=True, solidity=0.5), known, Recipe()))
    )


def of_drift() -> Figures:
    """The light's circle has moved aside and grown, the carrier moved, the contrast fallen."""
    angles = (math.nan, *np.linspace(10, 325, RIG.frames - 1))
    ring = Ring((0.004, -0.002), 0.744, 0.001, angles, (), ())
    then = Calibration(OPTICS, RIG.frames, (31.7, 31.1), 3.0, 2.5, 0.85, ring)
    found = drift(then, report(), fields())
    return {**found, **of_verdict("verdict", judge_drift(found, Recipe()))}


def of_cells() -> Figures:
    found = find_cells(volume(), Recipe())
    out: Figures = {"count": float(len(found))}
    for one in found:
        name = f"cell {one.number}"
        out |= of_array(f"{name} n - n_m", one.ri - one.medium_ri) | of_array(f"{name} mask", one.mask)
        out |= of_object(name, one, ("lobes", "solidity", "touches_border"))
        out |= {f"{name} centre {axis}": at for axis, at in zip("zyx", one.centre_um, strict=True)}
    return out


def measuring() -> Figures:
    """In each mode, and as it is read from a file, where no uncertainty is known."""
    out: Figures = {}
    for mode in ("", "fast", "accurate"):
        got = measure(replace(cell(), mode=mode), Recipe())
        values = {f"{mode or 'file'} {item.name}": float(getattr(got, item.name)) for item in dataclasses.fields(got)}
        out |= {name: value for name, value in values.items() if mode or not math.isnan(value)}
    return out


def preparation() -> Figures:
    delta = delta_ri(cell(), SPEC)
    return (
        of_array("delta", delta)
        | of_array("input", normalise(torch.from_numpy(delta), SPEC).numpy())
        | {"noise": noise_ri(cell(), cell().medium_ri + 4e-4)}
    )


def classification() -> Figures:
    """A network of fixed weights; a prediction set at fixed thresholds, told in flags."""
    seen = [toy_cell(radius, delta) for radius, delta in ((2.0, 0.02), (3.0, 0.03), (4.5, 0.04))]
    with tempfile.TemporaryDirectory() as folder:
        bundle = toy_bundle(Path(folder) / "toy", views=4)
        sets = replace(
            bundle, model=replace(bundle.model, temperature=1.7, conformal=Conformal("lac", 0.9, (0.7,) * len(CLASSES)))
        )
        found = Classifier(sets, device="cpu", keep_features=True, min_probability=0.6).predict(seen)
    out: Figures = {}
    for i, prediction in enumerate(found):
        assert prediction.features is not None
        out |= {f"cell {i} {label}": p for label, p in prediction.probabilities.items()}
        out |= {f"cell {i} flags": float(len(prediction.flags))}
        out |= of_array(f"cell {i} features", prediction.features)
    return out


STAGES: Mapping[str, Callable[[], Figures]] = {
    "reading": reading,
    "axis": axis,
    "fields": of_fields,
    "inversion": inversion,
    "refinement": refinement,
    "medium": medium,
    "quality": quality,
    "drift": of_drift,
    "cells": of_cells,
    "measuring": measuring,
    "preparation": preparation,
    "classification": classification,
}


# --- what is compared -------------------------------------------------------------------------------------


def stored() -> dict[str, dict[str, Figures]]:
    """Stage -> version -> figures."""
    found: dict[str, dict[str, Figures]] = json.loads(GOLDEN.read_text())
    return found


def moved(stage: str, before: Figures, now: Figures) -> list[str]:
    """The figures of both that differ by more than the stage's tolerance, with both values."""
    rel = TOLERANCE.get(stage, 1e-5)
    return [
        f"{name}: {before[name]:.9g} -> {now[name]:.9g}"
        for name in before
        if name in now and not _close(before[name], now[name], rel)
    ]


def _close(before: float, now: float, rel: float) -> bool:
    return math.isclose(before, now, rel_tol=rel, abs_tol=rel * 1e-2) or (math.isnan(before) and math.isnan(now))


def complaint(stage: str, version: int, now: Figures, kept: Mapping[str, Figures]) -> str | None:
    """Why a stage's figures and its version do not belong together, and what to do; None when they do."""
    write = f"then run PYTHONPATH=tests python tests/unit/{Path(__file__).name}"
    if str(version) not in kept:
        return f"{stage}: version {version} has no figures in {GOLDEN.name}; if its numbers moved, {write[5:]}."
    before = kept[str(version)]
    changed = moved(stage, before, now)
    if changed:
        return (
            f"{stage}: version {version} of the algorithm made other numbers before. If the change was meant, raise the"
            f" version: add a line to ALGORITHM_HISTORY[{stage!r}] in wbcd/recipe.py, {write}. Else put the numbers back.\n  "
            + "\n  ".join(changed)
        )
    if set(now) != set(before):
        return f"{stage}: figures came or went ({', '.join(sorted(set(now) ^ set(before)))}); {write[5:]}."
    if version > 1 and str(version - 1) in kept and not moved(stage, kept[str(version - 1)], before):
        return (
            f"{stage}: the version was raised to {version}, and no figure moved. Take the line out of"
            f" ALGORITHM_HISTORY[{stage!r}] again, or add a figure to {Path(__file__).name} that shows the change (make it with"
            " the code of before first)."
        )
    return None


@pytest.mark.parametrize("stage", ALGORITHMS)
def test_numbers_and_version_move_together(stage: str) -> None:
    assert complaint(stage, ALGORITHMS[stage], STAGES[stage](), stored()[stage]) is None


@pytest.mark.parametrize("stage", ALGORITHMS)
def test_the_stage_names_its_version(stage: str) -> None:
    assert ALGORITHMS[stage] == importlib.import_module(MODULES[stage]).ALGORITHM_VERSION


def test_every_module_that_names_a_version_is_a_stage_and_every_version_has_its_line() -> None:
    root = Path(importlib.import_module("wbcd").__file__ or "").parent
    naming = {
        ".".join(("wbcd", *path.relative_to(root).with_suffix("").parts)): found[1]
        for path in root.rglob("*.py")
        if (found := re.search(r'^ALGORITHM_VERSION = ALGORITHMS\["(\w+)"\]$', path.read_text(), re.MULTILINE))
    }
    assert naming == {module: stage for stage, module in MODULES.items()}
    assert list(ALGORITHM_HISTORY) == list(STAGES)
    for stage, lines in ALGORITHM_HISTORY.items():
        assert len(set(lines)) == len(lines) == ALGORITHMS[stage] >= 1
        assert set(stored()[stage]) == {str(number) for number in range(1, len(lines) + 1)}
        assert not any("\n" in line or not line for line in lines)


# --- that the comparison sees what it is there for ----------------------------------------------------------

SMALL: Figures = {"a": 2.0, "b": 0.5}


def test_a_number_that_moves_without_its_version_is_told_with_the_version_to_raise() -> None:
    told = complaint("cells", 1, SMALL | {"a": 2.001}, {"1": SMALL})
    assert told is not None
    assert "ALGORITHM_HISTORY['cells']" in told
    assert "a: 2 -> 2.001" in told
    assert complaint("cells", 1, SMALL | {"a": 2.0 + 1e-9}, {"1": SMALL}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_told(value: float) -> None:
    assert "a: 2 -> " in str(complaint("cells", 1, SMALL | {"a": value}, {"1": SMALL}))


def test_a_version_that_moves_without_a_number_is_told() -> None:
    assert "has no figures" in str(complaint("cells", 2, SMALL, {"1": SMALL}))
    assert "no figure moved" in str(complaint("cells", 2, SMALL, {"1": SMALL, "2": SMALL}))
    assert "no figure moved" in str(complaint("cells", 2, SMALL | {"c": 1.0}, {"1": SMALL, "2": SMALL | {"c": 1.0}}))
    assert complaint("cells", 2, SMALL | {"b": 0.6}, {"1": SMALL, "2": SMALL | {"b": 0.6}}) is None


def test_a_figure_that_comes_or_goes_is_told() -> None:
    assert "figures came or went (c)" in str(complaint("cells", 1, SMALL | {"c": 1.0}, {"1": SMALL}))


def test_writing_keeps_the_figures_of_before_and_nothing_that_does_not_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = __name__
    monkeypatch.setattr(f"{here}.GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(f"{here}.ALGORITHMS", {"cells": 1})
    monkeypatch.setattr(f"{here}.STAGES", {"cells": lambda: now})
    now = dict(SMALL)
    assert write() == []
    now = {"a": 2.5, "b": 0.5}
    (told,) = write()
    assert "raise the version" in told
    assert stored() == {"cells": {"1": SMALL}}
    monkeypatch.setattr(f"{here}.ALGORITHMS", {"cells": 2})
    assert write() == []
    assert stored() == {"cells": {"1": SMALL, "2": now}}
    monkeypatch.setattr(f"{here}.ALGORITHMS", {"cells": 3})
    (told,) = write()
    assert "no figure moved" in told
    assert set(stored()["cells"]) == {"1", "2"}
    monkeypatch.setattr(f"{here}.ALGORITHMS", {"cells": 2})
    now = {**now, "c": 1.0}
    assert write() == []
    assert stored()["cells"]["2"] == now


def brighter(w: torch.Tensor, *, polynomial: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A thousandth more, as a slip in a line would make it."""
    found, rms = remove_background(w, polynomial=polynomial)
    return found * 1.001, rms


@pytest.mark.parametrize(
    ("stage", "place", "value"),
    [
        ("reading", "wbcd.acquisition.tcf.RI_SCALE", 10_001.0),
        ("axis", "wbcd.reconstruction.axis.LEAST_NOISE", 0.01),
        ("fields", "wbcd.reconstruction.field.remove_background", brighter),
        ("inversion", "wbcd.reconstruction.spectrum.TAPER_UM", 1.5),
        ("refinement", "wbcd.reconstruction.refinement.CURVATURE", 1.7),
        ("medium", "wbcd.quality.background.REFINE_RI", 8e-4),
        ("quality", "wbcd.quality.optical.DARK_SHARE", 0.95),
        ("drift", "wbcd.reconstruction.instrument.RADIUS_TOLERANCE", 0.011),
        ("cells", "wbcd.morphology.shape.HULL_DIRECTIONS", 900),
        ("measuring", "wbcd.morphology.measure.EDGE_DEPTH_UM", (0.6, 1.4)),
        ("preparation", "wbcd.classification.medium.REFINE_RI", 5e-4),
        ("classification", "wbcd.classification.network.SLOPE", 0.011),
    ],
)
def test_a_constant_or_a_line_that_changes_numbers_is_seen(
    stage: str, place: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each stage one; no recipe holds them."""
    module, name = place.rsplit(".", 1)
    monkeypatch.setattr(importlib.import_module(module), name, value)
    told = complaint(stage, ALGORITHMS[stage], STAGES[stage](), stored()[stage])
    assert told is not None
    assert f"ALGORITHM_HISTORY[{stage!r}]" in told


def write() -> list[str]:
    """Put the figures of versions that have none into the file; gives what does not belong together and was left alone."""
    kept = stored() if GOLDEN.exists() else {}
    problems = []
    for stage, version in ALGORITHMS.items():
        versions, now = kept.setdefault(stage, {}), STAGES[stage]()
        told = complaint(stage, version, now, {str(version): now, **versions})
        if told is None or (not moved(stage, versions.get(str(version), now), now) and "came or went" in told):
            versions[str(version)] = {name: float(f"{value:.9g}") for name, value in now.items()}
        else:
            problems.append(told)
    GOLDEN.write_text(json.dumps(kept, indent=1, sort_keys=False) + "\n")
    return problems


if __name__ == "__main__":
    raise SystemExit("\n".join(write()) or None)
