"""The medium around a cell: what the tomogram shows counts, not what the file states."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_classification import SPEC, toy_cell
from hypothesis import given, settings
from hypothesis import strategies as st

from wbcd.classification import Classifier, load_bundle
from wbcd.classification.medium import medium_ri, noise_ri
from wbcd.classification.preparation import delta_ri
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.records import Cell, Tomogram
from wbcd.simulation.cells import CLASSES, sample_phantom
from wbcd.simulation.fast import half_resolution


def noisy(cell: Cell, sd: float, offset: float, seed: int = 0) -> Cell:
    noise = np.random.default_rng(seed).normal(offset, sd, cell.ri.shape).astype(np.float32)
    return replace(cell, ri=cell.ri + noise)


@settings(max_examples=25)
@given(offset=st.floats(-0.008, 0.008), sd=st.floats(1e-4, 2e-3), seed=st.integers(0, 10))
def test_an_offset_is_found_through_noise(offset: float, sd: float, seed: int) -> None:
    assert medium_ri(noisy(toy_cell(), sd, offset, seed)) == pytest.approx(1.337 + offset, abs=max(1e-4, 0.1 * sd))


def test_padding_is_no_medium() -> None:
    cell = noisy(toy_cell(), 5e-4, 0.005)
    padded = cell.ri.copy()
    padded[:, :9] = 1.337
    assert medium_ri(replace(cell, ri=padded)) == pytest.approx(1.342, abs=1e-4)
    inside = delta_ri(replace(cell, ri=padded), SPEC)
    assert np.abs(inside[:, :4]).max() == 0


def test_clamped_noise_leaves_the_stated_medium() -> None:
    # What a non-negative inversion gives: nothing lies below the medium, and half of it lies on it.
    cell = noisy(toy_cell(), 5e-4, 0.0)
    assert medium_ri(replace(cell, ri=np.maximum(cell.ri, np.float32(1.337)))) == pytest.approx(1.337, abs=1e-6)


@settings(max_examples=25)
@given(sd=st.floats(1e-4, 4e-3), offset=st.floats(-0.003, 0.003), seed=st.integers(0, 10))
def test_noise_is_its_standard_deviation(sd: float, offset: float, seed: int) -> None:
    assert noise_ri(noisy(toy_cell(), sd, offset, seed), 1.337 + offset) == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize("sd", [2e-4, 2e-3])
def test_clamped_noise_is_seen(sd: float) -> None:
    """Three quarters of the background lie exactly on the medium, as after our own inversion: half the median says nothing."""
    cell = noisy(toy_cell(), sd, 0.0)
    shown = np.maximum(cell.ri - np.float32(0.6745 * sd), np.float32(1.337))
    # The rms of a unit normal above z = 0.6745, lessened by it: ((1 + z^2) Q(z) - z phi(z))^(1/2).
    assert noise_ri(replace(cell, ri=shown), 1.337) == pytest.approx(0.387 * sd, rel=0.15)


def test_padding_takes_nothing_off_the_noise() -> None:
    cell = noisy(toy_cell(), 1e-3, 0.0)
    padded = cell.ri.copy()
    padded[:, :9] = 1.337
    assert noise_ri(replace(cell, ri=padded), 1.337) == pytest.approx(1e-3, rel=0.1)


def test_without_background_nothing_is_known_of_the_noise() -> None:
    cell = toy_cell()
    assert math.isnan(noise_ri(replace(cell, mask=np.ones_like(cell.mask)), 1.337))


def test_a_neighbour_and_its_halo_do_not_move_it() -> None:
    cell = noisy(toy_cell(), 5e-4, 0.003)
    ri = cell.ri.copy()
    ri[:, 24:, :] += np.float32(0.01)
    assert medium_ri(replace(cell, ri=ri)) == pytest.approx(1.340, abs=2e-4)


def test_the_shadow_along_the_axis_is_left_out() -> None:
    cell = noisy(toy_cell(2.0), 5e-4, 0.0)
    ri = cell.ri.copy()
    shadow = cell.mask.any(axis=0)
    ri[:, shadow] -= np.float32(0.006) * ~cell.mask[:, shadow]
    assert medium_ri(replace(cell, ri=ri)) == pytest.approx(1.337, abs=1e-4)


def test_without_background_the_stated_medium_holds() -> None:
    cell = toy_cell()
    assert medium_ri(cell) == cell.medium_ri
    assert medium_ri(replace(cell, mask=np.ones_like(cell.mask))) == cell.medium_ri
    assert medium_ri(replace(cell, ri=np.full_like(cell.ri, np.nan))) == cell.medium_ri
    assert medium_ri(replace(cell, ri=cell.ri + np.float32(0.2))) == cell.medium_ri


def _found(tomogram: Tomogram) -> Cell:
    return max(find_cells(tomogram, Recipe()), key=lambda cell: int(cell.mask.sum()))


def test_an_offset_changes_no_label_of_the_reference_model() -> None:
    # The tomogram's RI is 0.005 above what it states: more lies above the threshold, yet no label may change.
    fast, rng = half_resolution(), np.random.default_rng(5)
    tomograms = [fast.phantom(sample_phantom(kind, rng), rng) for kind in CLASSES]
    off = [replace(t, ri=t.ri + np.float32(0.005)) for t in tomograms]
    classifier = Classifier(load_bundle("reference"), "cpu")
    plain, shifted = (classifier.predict([_found(t) for t in group]) for group in (tomograms, off))
    for a, b in zip(plain, shifted, strict=True):
        assert a.label == b.label
        assert a.probability == pytest.approx(b.probability, abs=0.03)


def test_the_medium_of_a_measured_hl60(shared_data: Path) -> None:
    with np.load(shared_data / "hl60" / "hl60_ri.npz") as data:
        tomogram = Tomogram(data["ri"].astype(np.float32), (float(data["voxel_um"]),) * 3, float(data["medium_index"]))
    cell = _found(tomogram)
    off = _found(replace(tomogram, ri=tomogram.ri + np.float32(0.004)))
    assert medium_ri(cell) == pytest.approx(tomogram.medium_ri, abs=2e-3)
    assert medium_ri(off) - medium_ri(cell) == pytest.approx(0.004, abs=2e-4)
