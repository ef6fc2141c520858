"""The shipped models on cells of donors whom nothing in them has met: their cards' figures, measured again (simulated)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from wbcd.classification import UNCLASSIFIED, Classifier, load_bundle
from wbcd.records import Cell
from wbcd.simulation.cells import CLASSES
from wbcd.training.dataset import LINEAGE
from wbcd.training.simulated import Seen, draw_of, simulate_cell

pytestmark = pytest.mark.slow

CELLS, BATCH, FIRST_DONOR, DONORS = 160, 16, 2_500, 20


@dataclass(frozen=True)
class Answers:
    """Labels of each cell by the four-class model, by it where the tomogram's RI is 0.005 above what it states, and by the
    two-class model; and how many of the first are counted."""

    truth: list[str]
    four: list[str]
    shifted: list[str]
    two: list[str]
    counted: int


def cells() -> Iterator[Cell]:
    for index in range(CELLS):
        kind, donor = CLASSES[index % len(CLASSES)], FIRST_DONOR + index // len(CLASSES) % DONORS
        found = simulate_cell(kind, donor, draw_of(7, index, 0, FIRST_DONOR))
        assert isinstance(found, Seen)
        yield found.cell


def shifted(cell: Cell) -> Cell:
    """What was measured is 0.005 too high; what was padded stays at the stated medium."""
    measured = np.abs(cell.ri - np.float32(cell.medium_ri)) > 1e-6
    return replace(cell, ri=np.where(measured, cell.ri + np.float32(0.005), cell.ri))


@pytest.fixture(scope="module")
def answers() -> Answers:
    four, two = (Classifier(load_bundle(name), "cpu") for name in ("reference", "reference-two"))
    found = Answers([CLASSES[i % len(CLASSES)] for i in range(CELLS)], [], [], [], 0)
    drawn = cells()
    for _ in range(0, CELLS, BATCH):
        batch = [next(drawn) for _ in range(BATCH)]
        predictions = four.predict(batch)
        found.four.extend(p.label for p in predictions)
        found = replace(found, counted=found.counted + sum(UNCLASSIFIED not in p.flags for p in predictions))
        found.shifted.extend(p.label for p in four.predict([shifted(cell) for cell in batch]))
        found.two.extend(p.label for p in two.predict(batch))
    return found


def least(bar: float) -> float:
    """The bar, less three standard errors of so many cells."""
    return bar - 3 * math.sqrt(bar * (1 - bar) / CELLS)


def share(ones: list[str], others: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(ones, others, strict=True)]))


def test_four_classes_are_told(answers: Answers) -> None:
    assert share(answers.four, answers.truth) >= least(0.94)


def test_nearly_all_cells_of_the_known_classes_are_counted(answers: Answers) -> None:
    assert answers.counted / CELLS >= least(0.98)


def test_the_four_summed_and_the_two_class_model_tell_the_lineages(answers: Answers) -> None:
    truth = [LINEAGE[kind] for kind in answers.truth]
    assert share([LINEAGE[label] for label in answers.four], truth) >= least(0.995)
    assert share(answers.two, truth) >= least(0.995)


def test_an_offset_of_the_medium_changes_next_to_nothing(answers: Answers) -> None:
    # A prototype without the medium's own value lost 25 points.
    assert share(answers.shifted, answers.truth) >= least(0.94)
    assert share(answers.shifted, answers.four) >= 0.97
