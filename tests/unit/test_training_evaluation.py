"""Limits over donors against scipy's bootstrap, and where they are stated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from wbcd.training import plots
from wbcd.training.evaluation import Evaluation, donor_limits, judge, over_donors

SHARES = [0.99, 0.95, 0.7, 0.9, 0.97, 0.88, 0.6, 0.93]
SIZES = [100, 40, 60, 20, 80, 50, 30, 90]


def judged(shares: list[float], cells: int, split: str, **how: str) -> Evaluation:
    """Donors of equally many cells, so many of them right."""
    right = np.concatenate([np.arange(cells) < round(s * cells) for s in shares])
    labels = np.arange(len(right)) % 2
    answers = np.eye(2)[np.where(right, labels, 1 - labels)]
    return judge(answers, labels, np.repeat(np.arange(len(shares)), cells), ("a", "b"), split, **how)


def test_limits_over_donors_are_those_of_scipy() -> None:
    found = donor_limits(SHARES, SIZES)
    theirs = bootstrap(
        (np.array(SHARES), np.array(SIZES)),
        lambda share, size, axis: (share * size).sum(axis) / size.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert donor_limits(SHARES, SIZES) == found


def test_few_donors_or_donors_that_are_alike_have_no_limits() -> None:
    assert donor_limits(SHARES[:4], SIZES[:4]) is None
    assert donor_limits([1.0] * 8, SIZES) is None
    assert over_donors(4, None, None) == "limits over donors cannot be given (4, at least 5 are needed)"
    assert over_donors(8, None, None) == "limits over donors cannot be given (8, all alike)"


@pytest.mark.parametrize(("split", "scheme"), [("test_donor", "both"), ("test", "donor"), ("all", "both")])
def test_cells_of_unseen_donors_are_not_taken_for_independent(split: str, scheme: str) -> None:
    found = judged(SHARES, 100, split, scheme=scheme)
    low, high = found.donor_ci_low, found.donor_ci_high
    assert low is not None
    assert high is not None
    assert low < found.ci_low < found.accuracy < found.ci_high < high
    assert f"% by cell; over 8 donors {low:.1%} to {high:.1%})" in found.sentence()
    assert found.as_json()["donors"] == 8
    assert found.per_donor_n == {str(d): 100 for d in range(8)}
    few = judged(SHARES[:3], 100, split, scheme=scheme)
    assert "limits over donors cannot be given (3, at least 5 are needed)" in few.sentence()


def test_cells_of_known_donors_have_limits_by_cell_alone() -> None:
    found = judged(SHARES, 100, "test")
    assert (found.by_donor, found.donor_ci_low, found.donor_ci_high) == (False, None, None)
    assert "donor" not in found.sentence()


def test_whiskers_end_at_the_limits_and_hide_no_wrong_ones() -> None:
    axes = plots.figure(2, 2).subplots()
    plots.limits(axes, ([0, 1], [0.9, 1.0]), [(0.8, 0.95), (0.97, 1 - 1e-16)], "black")
    segments = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segments, [[[0, 0.8], [0, 0.95]], [[1, 0.97], [1, 1.0]]])
    with pytest.raises(ValueError, match="negative"):
        plots.limits(axes, ([0], [0.9]), [(0.91, 0.95)], "black")


@pytest.mark.parametrize(("split", "held_out"), [("test", True), ("test_donor", True), ("train", False), ("all", False)])
def test_only_cells_that_no_training_looks_at_are_called_held_out(split: str, held_out: bool) -> None:
    assert ("held-out" in judged(SHARES, 100, split).sentence()) is held_out
