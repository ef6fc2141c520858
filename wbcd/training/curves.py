"""Curves of a classifier, pure: ROC, reliability, and risk against coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def roc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates at every distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    right, wrong = np.cumsum(hits)[ends], np.cumsum(~hits)[ends]
    true = np.append(0.0, right / max(int(hits.sum()), 1))
    false = np.append(0.0, wrong / max(int((~hits).sum()), 1))
    return false, true


def area(x: Floats, y: Floats) -> float:
    """Trapezoids."""
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())


def aucs(probabilities: Floats, labels: Ints, classes: tuple[str, ...]) -> dict[str, float]:
    """Area under each class's ROC against all others; NaN where a class has no cell or has all."""
    found: dict[str, float] = {}
    for k, name in enumerate(classes):
        positive = labels == k
        alone = not positive.any() or bool(positive.all())
        found[name] = float("nan") if alone else area(*roc(probabilities[:, k], positive))
    return found


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability diagram: cells, their mean confidence, the share that was right."""

    n: int
    confidence: float
    accuracy: float


def reliability(probabilities: Floats, labels: Ints, bins: int = 15) -> list[Bin]:
    """Equal-width bins of the highest probability; empty ones are left out."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    return [
        Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for here in (index == i for i in range(bins))
        if here.any()
    ]


def risk_coverage(probabilities: Floats, labels: Ints) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Coverage, the share wrong among the most confident cells up to it, and the area under it (Geifman and El-Yaniv 2017)."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    answered = np.arange(1, len(wrong) + 1)
    risk = np.cumsum(wrong) / answered
    return answered / len(wrong), risk, float(risk.mean())


def brier(probabilities: Floats, labels: Ints) -> float:
    """Mean squared distance of the probabilities from the truth, summed over the classes (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())
