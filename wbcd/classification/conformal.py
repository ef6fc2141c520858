"""Prediction sets with a stated coverage (split conformal prediction; Vovk et al. 2005, Angelopoulos and Bates 2023).

A set of classes is given instead of one, large enough to hold the true class in a stated share of cells that are exchangeable
with those of the calibration. Scores: "lac", 1 - p(class) (Sadinle et al. 2019: smallest sets), and "aps", the summed
probability of all classes at least as probable (Romano et al. 2020: adapts to hard cells). One threshold for all classes, or
one a class (Mondrian), which keeps the coverage within each class and not only on average. The most probable class is always
in the set: an empty set would say nothing, and adding to a set never lowers its coverage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import BadValue

Method: TypeAlias = Literal["lac", "aps"]
METHODS: tuple[Method, ...] = ("lac", "aps")
ROUNDING = 1e-9
"""Scores equal to a threshold are within it, whatever the last digit of a sum says."""


@dataclass(frozen=True, slots=True)
class Conformal:
    """``thresholds``: largest score of a class that is still in the set, in the order of the classes; infinite where the
    calibration had too few cells of a class for the coverage (then the class is in every set)."""

    method: Method
    coverage: float
    thresholds: tuple[float, ...]

    def sets(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Membership [n, classes] for probabilities [n, classes]; at least one True in each row."""
        scores = all_scores(probabilities, self.method)
        member: NDArray[np.bool_] = scores <= np.asarray(self.thresholds)[None, :] + ROUNDING
        member[np.arange(len(member)), probabilities.argmax(axis=1)] = True
        return member


def fit_conformal(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    coverage: float = 0.9,
    method: Method = "lac",
    by_class: bool = True,
) -> Conformal:
    """Thresholds from calibration cells: probabilities [n, classes], labels [n]. Raises BadValue outside sense."""
    if not 0 < coverage < 1:
        raise BadValue(f"coverage is {coverage}; it must lie between 0 and 1.", action="Give a share such as 0.9.")
    if method not in METHODS:
        raise BadValue(f"method is {method!r}; it must be one of {', '.join(METHODS)}.", action="Choose one of them.")
    scores = all_scores(probabilities, method)[np.arange(len(labels)), labels]
    count = probabilities.shape[1]
    groups = [scores[labels == kind] for kind in range(count)] if by_class else [scores] * count
    return Conformal(method, coverage, tuple(upper_quantile(group, coverage) for group in groups))


def upper_quantile(scores: NDArray[np.floating], coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest score: a further exchangeable one is no larger with that probability.

    Infinite when n is too small to promise it.
    """
    rank = math.ceil((len(scores) + 1) * coverage - ROUNDING)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def all_scores(probabilities: NDArray[np.floating], method: Method) -> NDArray[np.float64]:
    """Score of every class of every cell, [n, classes]; small is likely."""
    values = probabilities.astype(np.float64)
    if method == "lac":
        return 1 - values
    order = np.argsort(-values, axis=1, kind="stable")
    summed = np.cumsum(np.take_along_axis(values, order, axis=1), axis=1)
    out = np.empty_like(values)
    np.put_along_axis(out, order, summed, axis=1)
    return out
