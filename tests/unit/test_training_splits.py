"""Donors and classes: the warning that one tells the other, and parts that hold every class."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from wbcd.training.splits import SPLITS, confounding, donor_says, make_splits, missing_classes, warnings_of

FOUR = ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte")
TRAIN, VALIDATION, TEST = range(3)


def confounded(label: NDArray[np.int64], donor: NDArray[np.int64]) -> bool:
    return any("confounded" in text for text in warnings_of(label, donor, FOUR))


# --- does the donor tell the class ----------------------------------------------------------------


@pytest.mark.parametrize("cells", [24, 400, 2000])
@pytest.mark.parametrize("donors", [2, 20])
def test_random_donors_of_equal_classes_are_not_warned_of(cells: int, donors: int) -> None:
    label = np.arange(cells) % 4
    drawn = [np.random.default_rng(seed).integers(0, donors, cells) for seed in range(20)]
    assert [seed for seed, donor in enumerate(drawn) if confounded(label, donor)] == []


def test_random_donors_of_unequal_classes_are_not_warned_of() -> None:
    label = np.repeat([0, 1, 2, 3], [700, 200, 60, 40])
    assert not any(confounded(label, np.random.default_rng(seed).integers(0, 20, 1000)) for seed in range(20))


@pytest.mark.parametrize("types", [1, 2])
def test_donors_imaged_for_some_types_are_warned_of(types: int) -> None:
    """Twelve donors, forty cells each, of one type or of two: as the paper images them."""
    donor = np.repeat(np.arange(12), 40)
    label = (donor + np.arange(480) % types) % 4
    told = warnings_of(label, donor, FOUR)
    assert f"tells {1 / types:.0%} of the cells' classes, 25% are guessed without" in told[0]
    assert confounding(label, donor) > 0.25


def test_one_donor_or_one_class_tells_nothing() -> None:
    label = np.arange(40) % 4
    assert confounding(label, np.zeros(40, int)) == 0
    assert confounding(np.zeros(40, int), label) == 0
    assert confounding(label, np.arange(40)) == 0


def test_the_guess_without_the_donor_is_the_largest_class() -> None:
    assert donor_says(np.arange(400) % 4, np.zeros(400, int)) == (0.25, 0.25)
    assert donor_says(np.array([0, 0, 0, 1]), np.array([5, 5, 9, 9])) == (0.75, 0.75)


# --- parts of whole donors ------------------------------------------------------------------------


@pytest.mark.parametrize("donors", [3, 5, 10, 20, 40])
def test_where_every_donor_has_every_class_donors_are_drawn_as_ever(donors: int) -> None:
    """Sets whose splits were drawn before parts were made to hold every class keep theirs."""
    label, donor = np.tile(np.arange(4), 2 * donors), np.repeat(np.arange(donors), 8)
    for seed in range(10):
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,))).permutation(donors)
        test, watched = max(1, round(0.2 * donors)), max(1, round(0.1 * donors))
        wanted = np.zeros(len(label), np.int8)
        wanted[np.isin(donor, order[:test])] = TEST
        wanted[np.isin(donor, order[test : test + watched])] = VALIDATION
        np.testing.assert_array_equal(make_splits(label, donor, seed)["donor"], wanted)


@pytest.mark.parametrize("types", [1, 2])
@pytest.mark.parametrize("donors", [12, 20, 40])
def test_each_part_has_every_class_though_no_donor_has(donors: int, types: int) -> None:
    donor = np.repeat(np.arange(donors), 6)
    label = (donor + np.arange(len(donor)) % types) % 4
    for seed in range(20):
        part = make_splits(label, donor, seed)["donor"]
        for i in (TRAIN, VALIDATION, TEST):
            assert set(label[part == i].tolist()) == {0, 1, 2, 3}
        assert all(len(np.unique(part[donor == one])) == 1 for one in range(donors))
        assert missing_classes(label, {"donor": part}, FOUR) == []


def test_donors_are_drawn_by_the_seed() -> None:
    donor = np.repeat(np.arange(40), 6)
    drawn = [make_splits(donor % 4, donor, seed)["donor"].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    shares = [(np.array(drawn[0]) == i).mean() for i in (TRAIN, VALIDATION, TEST)]
    assert shares == pytest.approx([0.7, 0.1, 0.2])


def test_two_donors_a_class_leave_training_whole_and_no_part_empty() -> None:
    donor = np.repeat(np.arange(8), 6)
    label = donor % 4
    for seed in range(20):
        part = make_splits(label, donor, seed)["donor"]
        assert set(label[part == TRAIN].tolist()) == {0, 1, 2, 3}
        assert (part == VALIDATION).any()
        assert (part == TEST).any()
        told = missing_classes(label, {"donor": part}, FOUR)
        assert [text for text in told if "no cell in validation (by donor)" in text]
        lacking = [FOUR[k] for k in range(4) if not (label[part == TEST] == k).any()]
        assert [text for text in told if text.startswith(f"{', '.join(lacking)}: in training, but no cell in test (by donor)")]


def test_an_empty_part_lacks_nothing_and_a_class_outside_training_is_named_once() -> None:
    label = np.array([0, 0, 1, 2])
    part = np.array([SPLITS.index(name) for name in ("train", "test", "test", "test_donor")], np.int8)
    told = missing_classes(label, {"both": part, "cell": np.zeros(4, np.int8)}, FOUR[:3])
    # Without validation nothing can be trained: that is said of each scheme.
    unwatched = [text for text in told if text.startswith("no cell is in validation")]
    assert [text.split("(")[1].split(")")[0] for text in unwatched] == ["by both", "by cell"]
    told = [text for text in told if text not in unwatched]
    assert len(told) == 2
    assert told[0].startswith("t_lymphocyte, monocyte: no cell in training (by both)")
    assert told[1].startswith("b_lymphocyte: in training, but no cell in test_donor (by both)")
    # A class of the card alone is a typo of somebody's: no network can learn it either.
    told = missing_classes(label, {"cell": np.zeros(4, np.int8)}, FOUR)
    assert [text for text in told if text.startswith(f"{FOUR[3]}: no cell in training (by cell)")]
