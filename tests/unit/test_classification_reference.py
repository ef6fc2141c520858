"""The shipped reference model: small, honest about where it comes from, and aware of what it cannot know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wbcd.classification import OUTSIDE_TRAINING_RANGE, UNCLASSIFIED, Bundle, Classifier, Envelope, load_bundle
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.records import Cell, Tomogram
from wbcd.simulation.cells import CLASSES, sample_phantom
from wbcd.simulation.fast import half_resolution


@pytest.fixture(scope="module")
def reference() -> Bundle:
    return load_bundle("reference")


def ball(radius_um: float, delta: float) -> Cell:
    z, y, x = (np.indices((100, 150, 150)) - np.array([50, 75, 75])[:, None, None, None]) * np.array([0.2, 0.1, 0.1])[
        :, None, None, None
    ]
    mask = np.sqrt(z**2 + y**2 + x**2) < radius_um
    ri = np.where(mask, 1.337 + delta, 1.337).astype(np.float32)
    return Cell(1, ri, mask, (0.2, 0.1, 0.1), 1.337, (0.0, 0.0, 0.0))


def test_it_is_small_and_says_simulated(reference: Bundle) -> None:
    assert sum(file.stat().st_size for file in reference.path.iterdir()) < 8_000_000
    assert reference.model.simulated
    assert reference.classes == CLASSES
    assert reference.model.measured["test"]["accuracy"] >= 0.80
    assert reference.model.measured["test_donor"]["accuracy"] >= 0.80
    assert "simulated" in (reference.path / "README.md").read_text()


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
    assert sum(p.label == label for p, label in zip(predictions, labels, strict=True)) >= 10


@pytest.mark.parametrize(
    ("radius", "delta", "known"), [(3.6, 0.03, True), (7.0, 0.03, False), (1.5, 0.03, False), (3.6, 0.06, False)]
)
def test_a_cell_outside_the_training_range_is_unclassified(reference: Bundle, radius: float, delta: float, known: bool) -> None:
    (prediction,) = Classifier(reference, "cpu").predict([ball(radius, delta)])
    assert prediction.flags == (() if known else (OUTSIDE_TRAINING_RANGE, UNCLASSIFIED))


def test_without_an_envelope_nothing_is_told_apart(reference: Bundle) -> None:
    blind = replace(reference, model=replace(reference.model, envelope=None))
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
    assert UNCLASSIFIED in prediction.flags
