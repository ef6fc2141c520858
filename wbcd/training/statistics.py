"""Limits and tests of shares: Wilson's interval, McNemar's exact test, and limits of a paired difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(correct: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score limits of a proportion (Wilson 1927); (0, 1) when nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two classifiers on the same ``n`` cells. ``only_a``: right by A alone; ``difference``: accuracy of A minus that of B."""

    n: int
    correct_a: int
    correct_b: int
    only_a: int
    only_b: int
    p_value: float
    difference: float
    ci_low: float
    ci_high: float
    simulated: bool = False

    def sentence(self) -> str:
        """For a person."""
        cells = "simulated cells" if self.simulated else "cells"
        verdict = "differ" if self.p_value < 0.05 else "cannot be told apart"
        return (
            f"A {self.correct_a / self.n:.1%}, B {self.correct_b / self.n:.1%} of {self.n} {cells}: difference"
            f" {100 * self.difference:+.1f} points (95 % limits {100 * self.ci_low:+.1f} to {100 * self.ci_high:+.1f});"
            f" right by A alone {self.only_a}, by B alone {self.only_b}; exact McNemar p = {self.p_value:.3g}: they {verdict}"
        )


def compare(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], *, simulated: bool = False) -> Comparison:
    """Of two vectors [n], n >= 1: which cells, simulated ones or not, each got right."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    n = len(right_a)
    low, high = paired_limits(only_a, only_b, n)
    return Comparison(
        n=n,
        correct_a=int(right_a.sum()),
        correct_b=int(right_b.sum()),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar_exact(only_a, only_b),
        difference=(only_a - only_b) / n,
        ci_low=low,
        ci_high=high,
        simulated=simulated,
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p: under equality each disagreement is a fair coin (McNemar 1947, exact form); 1 without disagreement."""
    if only_a + only_b == 0:
        return 1.0
    return min(1.0, 2 * float(binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def paired_limits(only_a: int, only_b: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Limits of the difference of two paired shares: the adjusted Wald interval of Bonett and Price (2012)."""
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def mean_and_sd(values: list[float]) -> dict[str, Any]:
    """Of several seeds: mean, sample SD (None of one), least and greatest."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }
