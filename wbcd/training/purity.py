"""Accuracy behind impure labels.

A sorted sample has one label, and a share 1 - p of its cells are not of it (p: the purity of the sorting). Where a label is
wrong a right answer is counted as an error, and a wrong answer may agree with the label by chance. If errors of the
sorting and of the classifier are independent and each spreads evenly over the other K - 1 classes, an accuracy A is seen as

    A_seen = p A + (1 - p) (1 - A) / (K - 1)

which is inverted for A, limits and all (Rogan and Gladen, Am. J. Epidemiol. 107:71, 1978, for K = 2; limits by mapping the
Wilson limits through the same monotone line, after Lang and Reiczigel, Prev. Vet. Med. 113:13, 2014, for a known p). A
perfect classifier is seen at p: the ceiling. Where impurities are the cells that look alike, independence fails and the
corrected figure is an estimate only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.training.statistics import wilson


@dataclass(frozen=True, slots=True)
class Corrected:
    """``ceiling``: what a perfect classifier would be seen at. ``accuracy`` with limits: behind the labels, within 0..1."""

    purity: float
    ceiling: float
    accuracy: float
    ci_low: float
    ci_high: float

    def sentence(self) -> str:
        """For a person."""
        return (
            f"the labels are {self.purity:.1%} pure, so a perfect classifier would be seen at {self.ceiling:.1%}; corrected for"
            f" it: {self.accuracy:.1%} (95 % limits {self.ci_low:.1%} to {self.ci_high:.1%}), if errors are independent"
        )


def corrected(correct: int, n: int, purity: float, classes: int) -> Corrected | None:
    """None when the labels are pure, or so impure that they say no more than chance."""
    chance = (1 - purity) / (classes - 1) if classes > 1 else 0.0
    slope = purity - chance
    if purity >= 1 or slope <= 0 or n == 0:
        return None

    def behind(seen: float) -> float:
        return min(1.0, max(0.0, (seen - chance) / slope))

    low, high = wilson(correct, n)
    return Corrected(purity, purity, behind(correct / n), behind(low), behind(high))


def warnings(purity: NDArray[np.floating[Any]] | None, *, lineages: bool) -> list[str]:
    """Sentences on what no figure is corrected for; ``lineages``: the types that the purity is of were put together."""
    if purity is None or not len(purity):
        return []
    found = []
    if unstated := int((~np.isfinite(purity)).sum()):
        found.append(f"how pure the labels of {unstated} of {len(purity)} cells are nobody stated: they count as pure.")
    if lineages and (pure := mean_purity(purity)) < 1:
        found.append(
            f"the labels of the types are {pure:.1%} pure; how pure the lineages are nobody stated: nothing is corrected."
        )
    return found


def mean_purity(purity: NDArray[np.floating[Any]] | None) -> float:
    """Of the cells judged; what nobody measured counts as pure."""
    if purity is None or not len(purity):
        return 1.0
    return float(np.where(np.isfinite(purity), purity, 1.0).mean())
