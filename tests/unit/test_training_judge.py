"""Curves, purity, paired tests, splits and confounding against public libraries, exact cases and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import auc, brier_score_loss, roc_auc_score, roc_curve

from wbcd.training import curves
from wbcd.training.dataset import LINEAGES
from wbcd.training.evaluation import judge, summed
from wbcd.training.purity import corrected, mean_purity
from wbcd.training.splits import SCHEMES, SPLITS, confounding, continue_splits, donor_says, make_splits, warnings_of
from wbcd.training.statistics import compare, mcnemar_exact, mean_and_sd, paired_limits

RNG = np.random.default_rng(20261122)


def answers(n: int = 300, classes: int = 4, strength: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, classes, n)
    logits = RNG.standard_normal((n, classes)) + strength * np.eye(classes)[labels]
    return softmax(logits, axis=1), labels


def test_roc_is_that_of_scikit_learn_with_ties() -> None:
    scores = np.round(RNG.random(200), 1)
    positive = RNG.random(200) < scores
    false, true = curves.roc(scores, positive)
    theirs_false, theirs_true, _ = roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, theirs_false)
    np.testing.assert_allclose(true, theirs_true)
    assert curves.area(false, true) == pytest.approx(auc(theirs_false, theirs_true))


def test_areas_are_those_of_scikit_learn_and_nan_where_undefined() -> None:
    probabilities, labels = answers()
    found = curves.aucs(probabilities, labels, ("a", "b", "c", "d"))
    theirs = roc_auc_score(labels, probabilities, multi_class="ovr", average=None)
    np.testing.assert_allclose(list(found.values()), theirs)
    assert math.isnan(curves.aucs(probabilities[:5], np.zeros(5, int), ("a", "b", "c", "d"))["b"])


def test_brier_is_that_of_scikit_learn() -> None:
    probabilities, labels = answers(classes=2)
    assert curves.brier(probabilities, labels) == pytest.approx(2 * brier_score_loss(labels, probabilities[:, 1]))


def test_reliability_of_known_cells() -> None:
    probabilities = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 0])
    low, high = curves.reliability(probabilities, labels, bins=10)
    assert (low.n, low.accuracy) == (2, 0.5)
    assert low.confidence == pytest.approx(0.55)
    assert (high.n, high.accuracy) == (4, 0.75)


def test_risk_and_coverage_of_known_cells() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    coverage, risk, area = curves.risk_coverage(probabilities, np.array([0, 1, 1, 0]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 2 / 4])
    assert area == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 1 / 2]))


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 5), (1, 9), (12, 3), (0, 6), (40, 21)])
def test_mcnemar_is_the_exact_binomial_test(a: int, b: int) -> None:
    expected = 1.0 if a + b == 0 else binomtest(a, a + b, 0.5).pvalue
    assert mcnemar_exact(a, b) == pytest.approx(expected)
    # The formula of statsmodels.stats.contingency_tables.mcnemar(exact=True).
    by_hand = min(1.0, 2 * sum(math.comb(a + b, i) for i in range(min(a, b) + 1)) / 2 ** (a + b))
    assert mcnemar_exact(a, b) == pytest.approx(by_hand)


def test_the_paired_limits_cover_the_true_difference() -> None:
    """Bonett and Price claim 95 %: of 2,000 draws with 20 % and 12 % disagreement, within three standard errors or above."""
    n, p_a, p_b = 150, 0.20, 0.12
    covered = 0
    for only_a, only_b, _ in RNG.multinomial(n, (p_a, p_b, 1 - p_a - p_b), 2000):
        low, high = paired_limits(int(only_a), int(only_b), n)
        covered += low <= p_a - p_b <= high
    assert covered / 2000 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_comparison_counts_what_only_one_got_right() -> None:
    right_a = np.array([True] * 70 + [False] * 30)
    right_b = np.array([True] * 50 + [False] * 40 + [True] * 10)
    found = compare(right_a, right_b)
    assert (found.only_a, found.only_b, found.correct_a, found.correct_b) == (20, 10, 70, 60)
    assert found.difference == pytest.approx(0.1)
    assert found.ci_low < 0.1 < found.ci_high
    assert "cannot be told apart" in found.sentence()


@pytest.mark.parametrize(("classes", "accuracy", "purity"), [(2, 0.97, 0.95), (4, 0.9, 0.85), (4, 0.6, 0.7)])
def test_the_accuracy_behind_impure_labels_is_found_again(classes: int, accuracy: float, purity: float) -> None:
    """200,000 cells whose labels and whose answers err independently."""
    n = 200_000
    truth = RNG.integers(0, classes, n)
    said = np.where(RNG.random(n) < accuracy, truth, (truth + RNG.integers(1, classes, n)) % classes)
    label = np.where(RNG.random(n) < purity, truth, (truth + RNG.integers(1, classes, n)) % classes)
    seen = int((said == label).sum())
    found = corrected(seen, n, purity, classes)
    assert found is not None
    assert found.accuracy == pytest.approx(accuracy, abs=0.006)
    assert found.ci_low < accuracy < found.ci_high or abs(found.accuracy - accuracy) < 0.003
    assert seen / n < accuracy
    assert found.ceiling == purity


def test_pure_and_hopeless_labels_correct_nothing() -> None:
    assert corrected(9, 10, 1.0, 4) is None
    assert corrected(9, 10, 0.25, 4) is None
    assert corrected(100, 100, 0.9, 4).accuracy == 1.0  # type: ignore[union-attr]
    assert mean_purity(np.array([0.9, np.nan, 0.8])) == pytest.approx(0.9)
    assert mean_purity(None) == 1.0


def test_the_judgement_corrects_for_purity_where_it_is_known() -> None:
    probabilities, labels = answers()
    donors = np.zeros(len(labels), int)
    names = ("a", "b", "c", "d")
    assert judge(probabilities, labels, donors, names, "test").corrected is None
    found = judge(probabilities, labels, donors, names, "test", purity=np.full(len(labels), 0.9))
    assert found.corrected is not None
    assert found.corrected.accuracy > found.accuracy
    assert "90.0% pure" in found.corrected.sentence()


def test_lineages_are_the_sums_of_their_types() -> None:
    probabilities, _ = answers(5)
    found = summed(probabilities, ("b_lymphocyte", "t_lymphocyte", "monocyte", "myelocyte"))
    assert LINEAGES == ("lymphoid", "myeloid")
    np.testing.assert_allclose(found, np.stack([probabilities[:, :2].sum(1), probabilities[:, 2:].sum(1)], 1))


# --- donors ---------------------------------------------------------------------------------------


def test_a_donor_a_class_is_told_and_balanced_donors_are_not() -> None:
    label = np.repeat([0, 1, 2, 3], 50)
    assert confounding(label, label) == pytest.approx(1)
    assert donor_says(label, label)[0] == 1
    assert confounding(label, np.tile(np.arange(10), 20)) < 0.1
    assert warnings_of(label, np.tile(np.arange(10), 20), ("a", "b", "c", "d")) == []
    told = warnings_of(label, label, ("a", "b", "c", "d"))
    assert "confounded" in told[0]
    assert "single donor" in told[1]


def test_many_small_donors_do_not_look_confounded_by_chance() -> None:
    """Two cells a donor, drawn at random: without leaving one out the donor would seem to tell nearly all."""
    label = RNG.integers(0, 4, 400)
    assert confounding(label, np.arange(400) // 2) < 0.1


def test_the_papers_donors_are_warned_of() -> None:
    """One or two types a donor, as the paper images them."""
    label = np.repeat([0, 1, 2, 3, 0, 1], 40)
    donor = np.repeat([0, 0, 1, 1, 2, 3], 40)
    assert any("confounded" in text for text in warnings_of(label, donor, ("a", "b", "c", "d")))


def test_the_three_schemes_hold_what_they_promise() -> None:
    label, donor = np.tile([0, 1, 2, 3], 150), np.repeat(np.arange(12), 50)
    splits = make_splits(label, donor, 3)
    train, validation, test, held = range(4)
    by_donor = splits["donor"]
    parts = [set(donor[by_donor == i].tolist()) for i in (train, validation, test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert all(parts)
    shares = [(splits["cell"] == i).mean() for i in (train, validation, test)]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert not (splits["cell"] == held).any()
    seen = set(donor[splits["both"] != held].tolist())
    assert not seen & set(donor[splits["both"] == held].tolist())
    assert SPLITS[held] == "test_donor"


@pytest.mark.parametrize("known", [1, 3, 7, 12])
def test_splits_carried_on_move_nobody(known: int) -> None:
    """Of 12 donors ``known`` are in the first cells too."""
    rng = np.random.default_rng(known)
    label, donor = np.tile(np.arange(4), 150), np.concatenate([rng.integers(0, known, 200), rng.integers(0, 12, 400)])
    kept = make_splits(label[:200], donor[:200], 1)
    found = continue_splits(label, donor, 2, kept)
    for scheme in SCHEMES:
        np.testing.assert_array_equal(found[scheme][:200], kept[scheme])
        assert set(np.unique(found[scheme])) <= {0, 1, 2, 3}
    out = SPLITS.index("test_donor")
    held = set(donor[found["both"] == out].tolist())
    assert held.isdisjoint(donor[found["both"] != out].tolist())
    assert not (held - set(donor[:200][kept["both"] == out].tolist())) & set(range(known))
    assert len(held) == 2, "a fifth of all twelve"
    for one in np.unique(donor):
        assert len(np.unique(found["donor"][donor == one])) == 1
    by_donor = {i: set(donor[found["donor"] == i].tolist()) for i in range(3)}
    assert (len(by_donor[1]), len(by_donor[2])) == (1, 2)
    new = np.arange(600) >= 200
    free = new & (found["both"] != out)
    assert 0.65 < (found["both"][free] == 0).mean() < 0.75
    assert 0.65 < (found["cell"][new] == 0).mean() < 0.75


def test_no_class_loses_its_last_donor() -> None:
    """Class 3 is of donor 5 alone: whatever the seed, training keeps it."""
    label = np.concatenate([np.tile([0, 1, 2], 100), np.full(60, 3)])
    donor = np.concatenate([np.repeat(np.arange(5), 60), np.full(60, 5)])
    for seed in range(20):
        for scheme in make_splits(label, donor, seed).values():
            assert set(label[scheme == 0].tolist()) == {0, 1, 2, 3}


def test_mean_and_sd_are_numpys() -> None:
    values = [0.91, 0.93, 0.92]
    found = mean_and_sd(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert mean_and_sd([0.5])["sd"] is None
