"""Distance from all classes: against scikit-learn, and on kinds that no class is."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from wbcd.classification.unknown import auroc, energy, fit_gauge, shrunk_covariance
from wbcd.errors import BadValue


def clusters(n: int, seed: int, features: int = 20, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((features, features)) / 3
    labels = rng.integers(classes, size=n)
    return 4 * np.eye(features)[labels] + rng.standard_normal((n, features)) @ mixing, labels


@pytest.mark.parametrize(("n", "f"), [(40, 60), (200, 20), (50, 50)])
def test_the_shrunk_covariance_is_scikit_learns(n: int, f: int) -> None:
    x = np.random.default_rng(0).standard_normal((n, f)) @ np.random.default_rng(1).standard_normal((f, f))
    x -= x.mean(0)
    np.testing.assert_allclose(shrunk_covariance(x), LedoitWolf(assume_centered=True).fit(x).covariance_, rtol=1e-9, atol=1e-9)


def test_the_distance_is_mahalanobis_to_the_nearest_class() -> None:
    (x, labels), (known, _) = clusters(600, 0), clusters(300, 1)
    gauge = fit_gauge(x, labels, known)
    means = np.stack([x[labels == k].mean(0) for k in range(3)])
    model = LedoitWolf(assume_centered=True).fit(x - means[labels])
    wanted = np.min([np.sqrt(model.mahalanobis(known - mean)) for mean in means], axis=0)
    np.testing.assert_allclose(gauge.distance(known), wanted, rtol=1e-4)


def test_the_threshold_accepts_the_stated_share_of_new_known_cells() -> None:
    accepted = []
    for seed in range(12):
        gauge = fit_gauge(*clusters(600, seed), clusters(400, 100 + seed)[0], acceptance=0.95)
        accepted.append((gauge.distance(clusters(1000, 200 + seed)[0]) <= gauge.threshold).mean())
    assert np.mean(accepted) == pytest.approx(0.95, abs=0.015)


def test_what_lies_elsewhere_is_far() -> None:
    gauge = fit_gauge(*clusters(600, 0), clusters(400, 1)[0])
    known, _ = clusters(300, 2)
    elsewhere = clusters(300, 3)[0] + 3 * np.eye(20)[10]
    assert auroc(gauge.distance(known), gauge.distance(elsewhere)) > 0.95
    assert (gauge.distance(known) <= gauge.threshold).mean() > 0.96


def test_what_lies_between_two_types_is_near_their_lineage_alone() -> None:
    """Why a model of lineages measures the distance from the types: their common mean lies where neither is."""
    (x, kinds), (known, _) = clusters(900, 0), clusters(400, 1)
    lineage = np.minimum(kinds, 1)
    between = (x[kinds == 1].mean(0) + x[kinds == 2].mean(0)) / 2 + 0.05 * np.random.default_rng(2).standard_normal((50, 20))
    by_lineage, by_kind = (fit_gauge(x, groups, known) for groups in (lineage, kinds))
    assert len(by_kind.means) == 3
    assert by_lineage.distance(between).mean() < 1 < by_kind.distance(between).mean()


def test_auroc_is_scikit_learns_ties_and_all() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 10, 200).astype(float), rng.integers(4, 14, 100).astype(float)
    wanted = roc_auc_score(np.r_[np.zeros(200), np.ones(100)], np.r_[known, unknown])
    assert auroc(known, unknown) == pytest.approx(wanted)


def test_energy_is_minus_log_sum_exp() -> None:
    assert energy(np.log(np.array([[1.0, 2.0, 5.0]])))[0] == pytest.approx(-np.log(8.0))


def test_too_few_cells_promise_nothing() -> None:
    with pytest.raises(BadValue, match="needs 99"):
        fit_gauge(*clusters(200, 0), clusters(50, 1)[0], acceptance=0.99)


def test_a_class_without_cells_is_refused() -> None:
    x, labels = clusters(200, 0)
    with pytest.raises(BadValue):
        fit_gauge(x[labels != 1], labels[labels != 1], x)
