"""Telling a cell of none of the classes: Mahalanobis distance on the network's pooled features (Lee et al. 2018).

A network gives a confident label to anything, and its logits do not tell: the energy of a red cell was that of a lymphocyte in
a prototype (AUROC 0.35), while its features lie far from all that the training showed. Each class (or each type, where a class
is a lineage of several) has its mean, all share one covariance, shrunk as Ledoit and Wolf 2004 so that it can be inverted with
fewer cells than features; the distance is that to the nearest mean. What is stored is the whitening, so that use is one product
of matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import logsumexp

from wbcd.classification.conformal import upper_quantile
from wbcd.errors import BadValue


@dataclass(frozen=True, slots=True)
class Gauge:
    """``means`` float32 [groups, f], of the classes or of the types that they are made of; ``whitening`` float32 [f, r] with
    W W^T the inverse covariance; ``threshold``: a distance beyond it is that of an unknown cell; ``acceptance``: share of known
    cells within it; ``cells`` it was set on."""

    means: NDArray[np.float32]
    whitening: NDArray[np.float32]
    threshold: float
    acceptance: float
    cells: int

    def distance(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mahalanobis distance [n] of features [n, f] to the nearest mean."""
        white = features.astype(np.float64) @ self.whitening.astype(np.float64)
        centres = self.means.astype(np.float64) @ self.whitening.astype(np.float64)
        squares = ((white[:, None] - centres[None]) ** 2).sum(axis=2)
        nearest: NDArray[np.float64] = np.sqrt(squares.min(axis=1))
        return nearest


def fit_gauge(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    known_features: NDArray[np.floating],
    *,
    acceptance: float = 0.99,
) -> Gauge:
    """Means and covariance from training cells (features [n, f], labels [n]), the threshold from cells not trained on [m, f].

    Raises BadValue where a class has no cell, or the cells are too few to promise the acceptance.
    """
    kinds = np.unique(labels)
    if len(kinds) != int(labels.max()) + 1:
        raise BadValue(
            f"classes {sorted(set(range(int(labels.max()) + 1)) - set(kinds.tolist()))} have no training cell.",
            action="Give training cells of each class, or leave the class out.",
        )
    values = features.astype(np.float64)
    means = np.stack([values[labels == kind].mean(axis=0) for kind in kinds])
    whitening = _whitening(shrunk_covariance(values - means[labels]))
    bare = Gauge(means.astype(np.float32), whitening.astype(np.float32), 0.0, acceptance, len(known_features))
    threshold = upper_quantile(bare.distance(known_features), acceptance)
    if not np.isfinite(threshold):
        least = least_cells(acceptance)
        raise BadValue(
            f"{len(known_features)} validation cells; an acceptance of {acceptance:.0%} needs {least}.",
            action="Give more held-out cells, or a lower acceptance.",
        )
    return Gauge(bare.means, bare.whitening, threshold, acceptance, len(known_features))


def least_cells(acceptance: float) -> int:
    """Known cells without which no threshold can promise the acceptance."""
    return math.ceil(round(acceptance / (1 - acceptance), 6))


def shrunk_covariance(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance [f, f] of rows that are centred, drawn towards a multiple of one: Ledoit and Wolf 2004, equations 10-14."""
    n, f = centred.shape
    sample = centred.T @ centred / n
    mean = float(np.trace(sample)) / f
    spread = float(((sample - mean * np.eye(f)) ** 2).sum()) / f
    squares = centred**2
    noise = (float((squares.T @ squares).sum()) / n - float((sample**2).sum())) / f / n
    share = min(noise, spread) / spread if spread > 0 else 0.0
    out: NDArray[np.float64] = (1 - share) * sample + share * mean * np.eye(f)
    return out


def _whitening(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """W with W W^T the inverse; directions that never varied are left out."""
    values, vectors = eigh(covariance)
    kept = values > values[-1] * 1e-10
    out: NDArray[np.float64] = vectors[:, kept] / np.sqrt(values[kept])
    return out


def energy(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """-log sum exp of the logits [n, classes] (Liu et al. 2020): the score that fails here, kept to be compared."""
    out: NDArray[np.float64] = -logsumexp(logits.astype(np.float64), axis=1)
    return out


def auroc(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """Chance that an unknown cell scores above a known one, ties a half (Mann-Whitney U over n m)."""
    ranked = np.sort(known)
    below = np.searchsorted(ranked, unknown, side="left") + np.searchsorted(ranked, unknown, side="right")
    return float(below.sum() / 2 / (len(known) * len(unknown)))
