"""Calibration, evaluation and learning rates against known values and public libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, precision_score, recall_score
from torch import nn

from wbcd.training.calibration import cross_entropy, expected_calibration_error, fit_temperature
from wbcd.training.evaluation import judge, wilson
from wbcd.training.fit import PRESETS, learning_rate


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_logits_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    true = 2 * rng.standard_normal((20_000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(true, axis=1)])
    assert fit_temperature(true * temperature, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("classes", [2, 4])
def test_where_no_label_is_wrong_no_more_is_promised_than_so_many_cells_can_tell(classes: int) -> None:
    """The mean probability of the true class is Platt's (n + 1) / (n + 2), not 1."""
    n = 400
    labels = np.arange(n) % classes
    logits = 3.0 * np.eye(classes)[labels]
    certain = softmax(logits / fit_temperature(logits, labels), axis=1)[np.arange(n), labels]
    assert certain == pytest.approx((n + 1) / (n + 2), abs=1e-5)
    # One mistake, and the plain minimum is there.
    labels[0] = (labels[0] + 1) % classes
    found = fit_temperature(logits, labels)
    assert softmax(logits / found, axis=1).max(axis=1).mean() == pytest.approx((n - 1) / n, abs=1e-4)


def test_cross_entropy_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((50, 3)), rng.integers(0, 3, 50)
    assert cross_entropy(logits, labels) == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=[0, 1, 2]))


def test_calibration_error_of_known_cases() -> None:
    certain = np.tile([[1.0, 0.0]], (10, 1))
    assert expected_calibration_error(certain, np.zeros(10, int)) == 0
    assert expected_calibration_error(certain, np.array([0] * 6 + [1] * 4)) == pytest.approx(0.4)
    assert expected_calibration_error(np.tile([[0.7, 0.3]], (10, 1)), np.array([0] * 7 + [1] * 3)) == pytest.approx(0)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (37, 40), (1, 1), (480, 500)])
def test_wilson_is_that_of_scipy(correct: int, n: int) -> None:
    limits = binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert wilson(correct, n) == pytest.approx((limits.low, limits.high), abs=1e-9)


def test_judgement_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    probabilities, labels = softmax(rng.standard_normal((90, 3)), axis=1), rng.integers(0, 3, 90)
    donors = np.arange(90) % 5
    got = judge(probabilities, labels, donors, ("a", "b", "c"), "test")
    predicted = probabilities.argmax(1)
    np.testing.assert_array_equal(got.confusion, confusion_matrix(labels, predicted))
    assert got.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    np.testing.assert_allclose(list(got.recall.values()), recall_score(labels, predicted, average=None))
    np.testing.assert_allclose(list(got.precision.values()), precision_score(labels, predicted, average=None))
    assert got.accuracy == pytest.approx((predicted == labels).mean())
    assert got.negative_log_likelihood == pytest.approx(log_loss(labels, probabilities))
    assert np.mean(list(got.per_donor.values())) == pytest.approx(got.accuracy)
    assert "simulated" in got.sentence()


def test_a_class_without_cells_has_no_recall() -> None:
    got = judge(np.eye(3)[[0, 1]], np.array([0, 1]), np.zeros(2, int), ("a", "b", "c"), "test")
    assert math.isnan(got.recall["c"])
    assert got.as_json()["recall"]["c"] is None
    assert got.balanced_accuracy == 1


@pytest.mark.parametrize("steps", [1, 7, 400])
def test_one_cycle_is_that_of_torch(steps: int) -> None:
    preset = PRESETS["modern"]
    rates = [learning_rate(preset, s, steps) for s in range(steps)]
    assert max(rates) <= preset.learning_rate
    if steps < 100:
        return
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, preset.learning_rate, steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < steps:
            theirs.step()
    # Theirs peaks a step earlier: pct_start * steps - 1.
    np.testing.assert_allclose(rates, expected, atol=0.02 * preset.learning_rate)


def test_the_paper_decays_by_step() -> None:
    assert learning_rate(PRESETS["paper"], 0, 10) == 0.004
    assert learning_rate(PRESETS["paper"], 1000, 10) == pytest.approx(0.004 * 0.9999**1000)
