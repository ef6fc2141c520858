"""Each kind of defect is refused for what it is, and a good acquisition of the same cell is accepted (simulated).

The small version of ``tests/benchmarks/test_bench_quality.py``: one cell, scattered once, exposed with each defect in turn.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_quality import RIGHT_REASONS, judge_stack

from wbcd.recipe import Recipe
from wbcd.simulation.cells import canonical_shape, render, sample_phantom
from wbcd.simulation.defects import DEFECTS, Defect
from wbcd.simulation.microscope import Microscope
from wbcd.simulation.optics import Scattered, record, scatter

VOXEL_UM = (0.1, 0.1, 0.1)
# Two kinds of each whose strength matters, by the benchmark's names and units: the weakest that must be seen.
CASES = [
    Defect("motion", 0.7),
    Defect("coherent_noise", 0.5),
    Defect("low_contrast", 0.1),
    Defect("saturation", 2.2),
    Defect("border", 0.3),
    Defect("defocus", 9.0),
    Defect("lost_frames", 0.3),
    Defect("repeated_frames", 0.3),
    Defect("empty", 1.0),
]


@pytest.fixture(scope="module")
def microscope() -> Microscope:
    return Microscope(5)


@pytest.fixture(scope="module")
def cell(microscope: Microscope) -> tuple[Scattered, float]:
    phantom = sample_phantom("t_lymphocyte", np.random.default_rng(12))
    ri = render(phantom, VOXEL_UM, canonical_shape(phantom, VOXEL_UM))
    return scatter(ri, VOXEL_UM, microscope.optics, microscope.k_in_rad_um), phantom.radius_um


def reason_of(microscope: Microscope, cell: tuple[Scattered, float], defect: Defect | None) -> str | None:
    scattered, radius = cell
    rng = np.random.default_rng(77)
    count = len(microscope.k_in_rad_um)
    w = torch.ones((count, *microscope.camera.shape), dtype=torch.complex64)
    exposure = microscope.exposure(rng)
    place = (0.6, 1.0, -0.7)
    path = None
    if defect is not None:
        half = microscope.camera.shape[0] * microscope.optics.pixel_size_um / 2
        place, path = defect.place(place, half, radius, rng), defect.path(count, rng)
        exposure = replace(exposure, visibility=defect.visibility, gain=defect.gain)
    if defect is None or defect.name != "empty":
        record(scattered, w, np.asarray(place) + (0.0 if path is None else path))
    if defect is not None:
        defect.disturb(w, microscope.optics.pixel_size_um, rng)
    frames = microscope.expose(w, exposure, rng)
    if defect is not None:
        defect.spoil(frames, rng)
    reason, verdict = judge_stack(microscope.stack(frames), Recipe())
    assert all(math.isfinite(check.limit) for check in verdict.checks)
    return reason


def test_a_good_acquisition_is_accepted(microscope: Microscope, cell: tuple[Scattered, float]) -> None:
    assert reason_of(microscope, cell, None) is None


@pytest.mark.parametrize("defect", CASES, ids=lambda defect: defect.name)
def test_a_defect_is_refused_for_what_it_is(microscope: Microscope, cell: tuple[Scattered, float], defect: Defect) -> None:
    assert defect.name in DEFECTS
    assert reason_of(microscope, cell, defect) in RIGHT_REASONS[defect.name]
