"""The shipped reference models: small, honest about where they come from, and aware of what they cannot know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wbcd.classification import OUTSIDE_TRAINING_RANGE, UNCLASSIFIED, UNKNOWN_CELL, Bundle, Classifier, Envelope, load_bundle
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.records import Cell, Tomogram
from wbcd.simulation.cells import CLASSES, phantoms_digest, sample_phantom
from wbcd.simulation.fast import half_resolution
from wbcd.training.dataset import LINEAGES


@pytest.fixture(scope="module")
def reference() -> Bundle:
    return load_bundle("reference")


@pytest.fixture(scope="module")
def two() -> Bundle:
    return load_bundle("reference-two")


def ball(radius_um: float, delta: float) -> Cell:
    z, y, x = (np.indices((100, 150, 150)) - np.array([50, 75, 75])[:, None, None, None]) * np.array([0.2, 0.1, 0.1])[
        :, None, None, None
    ]
    mask = np.sqrt(z**2 + y**2 + x**2) < radius_um
    ri = np.where(mask, 1.337 + delta, 1.337).astype(np.float32)
    return Cell(1, ri, mask, (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))


def test_they_are_small_and_say_simulated(reference: Bundle, two: Bundle) -> None:
    assert (reference.classes, two.classes) == (CLASSES, LINEAGES)
    for shipped in (reference, two):
        assert sum(file.stat().st_size for file in shipped.path.iterdir()) < 8_000_000
        assert shipped.model.simulated
        assert "simulated" in (shipped.path / "README.md").read_text()


def test_their_cards_say_how_they_were_made_and_how_they_did_on_unseen_donors(reference: Bundle, two: Bundle) -> None:
    for shipped, least in ((reference, 0.94), (two, 0.995)):
        training, donors = shipped.model.training, shipped.model.measured["test_donor"]
        assert training["data"]["phantoms"] == phantoms_digest()
        assert len(training["data_hash"]) == 40
        assert training["command"].startswith("wbcd train ")
        assert training["training_seconds"] > 0
        assert donors["n"] >= 2000
        assert donors["accuracy"] >= least
        assert donors["expected_calibration_error"] <= 0.02
        assert shipped.model.measured["test"]["accuracy"] >= least


def test_the_four_class_model_bears_cells_through_holograms(reference: Bundle) -> None:
    """What the daemon sees; figures of fast optics alone say nothing of it (decision 0055)."""
    for split in ("test", "test_donor"):
        fast, exact = reference.model.measured[split]["parts"]
        assert "(fast)" in fast["part"]
        assert "(exact)" in exact["part"]
        assert exact["n"] >= 300
        assert min(fast["accuracy"], exact["accuracy"]) >= 0.94
        assert max(fast["unclassified"], exact["unclassified"]) <= 0.05


def test_the_lineages_are_told_from_the_same_features(reference: Bundle, two: Bundle) -> None:
    """So a stranger to one is a stranger to the other."""
    weights, others = reference.network.state_dict(), two.network.state_dict()
    shared = [name for name in weights if not name.startswith("classifier.")]
    assert all(torch.equal(weights[name], others[name]) for name in shared)
    assert reference.gauge is not None
    assert two.gauge is not None
    assert two.gauge.threshold == pytest.approx(reference.gauge.threshold, rel=0.05)


def test_they_know_their_limits(reference: Bundle, two: Bundle) -> None:
    for shipped in (reference, two):
        assert shipped.gauge is not None
        assert shipped.model.conformal is not None
        assert shipped.model.instrument is not None
        for split in ("test", "test_donor"):
            known = shipped.model.measured["knowing"][split]
            assert known["accepted"] >= 0.97
            # 99 % are stated; the limits of 1,600 and 2,008 cells lie half a point off.
            assert known["coverage"] >= shipped.model.conformal.coverage - 0.005
        assert shipped.model.conformal.coverage == 0.99
        assert shipped.model.instrument.noise_ri is not None
        assert "--held-out" in shipped.model.measured["limits_from"]["command"]
    # The likeliest class is always in the set: only sets of several classes hold more than the network's own accuracy.
    four = reference.model.measured
    assert four["knowing"]["test_donor"]["mean_set_size"] > 1.02
    assert four["knowing"]["test_donor"]["coverage"] > four["test_donor"]["accuracy"]


def test_it_knows_most_cells_it_never_saw(reference: Bundle) -> None:
    # Simulated cells of another seed; 16 are few, so the bar is far below the card's figure and far above chance.
    recipe, fast = Recipe(), half_resolution()
    rng = np.random.default_rng(99)
    cells, labels = [], []
    for kind in CLASSES * 4:
        found = find_cells(fast.phantom(sample_phantom(kind, rng), rng), recipe)
        cells.append(max(found, key=lambda cell: int(cell.mask.sum())))
        labels.append(kind)
    predictions = Classifier(reference, "cpu").predict(cells)
    assert sum(p.label == label for p, label in zip(predictions, labels, strict=True)) >= 12
    assert sum(UNCLASSIFIED in p.flags for p in predictions) <= 3


@pytest.mark.parametrize(
    ("radius", "delta", "within"), [(3.6, 0.03, True), (7.0, 0.03, False), (1.5, 0.03, False), (3.6, 0.06, False)]
)
def test_a_cell_outside_the_training_range_is_unclassified(
    reference: Bundle, radius: float, delta: float, within: bool
) -> None:
    (prediction,) = Classifier(reference, "cpu").predict([ball(radius, delta)])
    assert (OUTSIDE_TRAINING_RANGE in prediction.flags) is not within
    # A ball of a cell's size and density is within the range and still no cell: what becomes of it the distance says.
    assert within or UNCLASSIFIED in prediction.flags


def test_without_envelope_and_distance_nothing_is_told_apart(reference: Bundle) -> None:
    blind = replace(reference, gauge=None, model=replace(reference.model, envelope=None, conformal=None))
    (prediction,) = Classifier(blind, "cpu").predict([ball(7.0, 0.03)])
    assert prediction.flags == ()


def test_a_nan_is_never_inside() -> None:
    envelope = Envelope((30.0, 900.0), (0.01, 0.04))
    assert envelope.holds(100.0, 0.03)
    assert not envelope.holds(float("nan"), 0.03)


def test_a_measured_hl60_is_flagged_as_unknown(reference: Bundle, shared_data: Path) -> None:
    with np.load(shared_data / "hl60" / "hl60_ri.npz") as data:
        tomogram = Tomogram(data["ri"].astype(np.float32), (float(data["voxel_um"]),) * 3, float(data["medium_index"]))
    (cell,) = find_cells(tomogram, Recipe())
    (prediction,) = Classifier(reference, "cpu").predict([cell])
    # By its distance, too: of its size alone it could be a myelocyte of a large donor.
    assert {UNKNOWN_CELL, UNCLASSIFIED} <= set(prediction.flags)
