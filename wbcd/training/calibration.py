"""Temperature scaling (Guo et al. 2017): one number that makes probabilities mean what they say; no label changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LIMITS = (0.2, 10.0)
"""A few validation cells that are all right would ask for a temperature of nothing."""
BINS = 15


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature that minimises the cross entropy of softmax(logits / T). ``logits`` [n, classes], ``labels`` [n].

    Where no label is wrong that has no minimum: the true class then counts (n + 1) / (n + 2), as Platt (1999) has it, and not
    more is promised than so many cells can tell.
    """
    targets = np.eye(logits.shape[1])[labels]
    if len(labels) and (logits.argmax(axis=1) == labels).all():
        others = 1 / ((len(labels) + 2) * (logits.shape[1] - 1))
        targets = np.where(targets == 1, (len(labels) + 1) / (len(labels) + 2), others)

    def loss(log_temperature: float) -> float:
        return _cross_entropy(logits / np.exp(log_temperature), targets)

    low, high = np.log(LIMITS)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Mean negative log probability of the true class, nats."""
    return _cross_entropy(logits, np.eye(logits.shape[1])[labels])


def _cross_entropy(logits: NDArray[np.floating], targets: NDArray[np.float64]) -> float:
    """``targets`` [n, classes]: probability of each class."""
    return float(-(targets * log_softmax(logits.astype(np.float64), axis=1)).sum(axis=1).mean())


def expected_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.integer], bins: int = BINS) -> float:
    """Mean |accuracy - confidence| over equal-width confidence bins, weighted by their cells."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    weight = np.bincount(index, minlength=bins)
    gap = np.bincount(index, right, bins) - np.bincount(index, confidence, bins)
    return float(np.abs(gap[weight > 0]).sum() / len(labels))
