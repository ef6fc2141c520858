"""A measured off-axis hologram of an HL60 cell against qpretrieve, the public field-retrieval library."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.restoration import unwrap_phase

from wbcd.recipe import Recipe, ReconstructionRecipe
from wbcd.reconstruction import demodulate, measure_illumination, retrieve_fields
from wbcd.reconstruction.unwrap import unwrap
from wbcd.records import HologramStack, Optics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of optional FFT backends that are not installed
    import qpretrieve

# The sample file states no pixel size: this one makes the pupil half the sideband's distance, qpretrieve's usual filter.
RADIUS_PER_PX = 0.118
PIXEL_UM = RADIUS_PER_PX * 0.647
OPTICS = Optics(0.647, 1.0, 1.335, PIXEL_UM)
RECIPE = Recipe(reconstruction=replace(ReconstructionRecipe(), voxel_um=(0.2, PIXEL_UM, PIXEL_UM)))


@pytest.fixture(scope="module")
def stack(shared_data: Path) -> HologramStack:
    with np.load(shared_data / "qpretrieve" / "hologram_cell.npz") as data:
        # A square: qpretrieve filters squares only, and pads others (which changes what the filter's edge lets through).
        return HologramStack(data["data"][None, :200, :200], data["bg_data"][None, :200, :200], None, 0, OPTICS)


@pytest.fixture(scope="module")
def their_phase(stack: HologramStack) -> NDArray[np.float64]:
    assert stack.reference is not None
    (fx, fy), _ = measure_illumination(stack.reference, OPTICS, 0)
    settings = {
        "filter_name": "disk",
        "filter_size": RADIUS_PER_PX,
        "filter_size_interpretation": "frequency",
        "sideband_freq": (fy * PIXEL_UM, fx * PIXEL_UM),
    }
    sample = qpretrieve.OffAxisHologram(stack.holograms[0], padding=0).run_pipeline(**settings)
    background = qpretrieve.OffAxisHologram(stack.reference[0], padding=0).run_pipeline(**settings)
    return unwrap_phase(np.angle(np.squeeze(sample) / np.squeeze(background)))


def test_phase_agrees_with_qpretrieve_within_5_mrad(stack: HologramStack, their_phase: NDArray[np.float64]) -> None:
    assert stack.reference is not None
    carrier, _ = measure_illumination(stack.reference, OPTICS, 0)
    ratio = demodulate(stack.holograms, OPTICS, carrier, RECIPE) / demodulate(stack.reference, OPTICS, carrier, RECIPE)
    ours = unwrap(torch.from_numpy(np.angle(ratio)))[0].numpy()
    cell = np.abs(ours - np.median(ours[:10])) > 0.5
    assert cell.sum() > 5000
    assert np.std((ours - their_phase)[cell]) < 0.005


def test_after_our_background_removal_only_a_plane_differs(stack: HologramStack, their_phase: NDArray[np.float64]) -> None:
    found = retrieve_fields(stack, RECIPE)
    ours = unwrap(torch.from_numpy(np.angle(found.w)))[0].numpy()
    # The cell retards: positive phase, whichever sideband was found.
    assert ours.max() > 4
    y, x = np.indices(ours.shape)
    plane = np.stack([np.ones(ours.size), y.ravel(), x.ravel()], 1)
    sign = np.sign(np.corrcoef(ours.ravel(), their_phase.ravel())[0, 1])
    difference = (ours - sign * their_phase).ravel()
    left = difference - plane @ np.linalg.lstsq(plane, difference, rcond=None)[0]
    assert np.std(left) < 0.005
