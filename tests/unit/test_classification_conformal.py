"""Prediction sets and temperature, against MAPIE and scikit-learn."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wbcd.classification.conformal import METHODS, Conformal, Method, all_scores, fit_conformal, upper_quantile
from wbcd.errors import BadValue
from wbcd.training.calibration import fit_temperature

CLASSES = 4


def drawn(n: int, seed: int, sharpness: float = 2.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Calibrated probabilities: labels are drawn from them."""
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((n, CLASSES))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) < rng.random((n, 1))).sum(1)
    return p, np.minimum(labels, CLASSES - 1)


class Given:
    """An estimator for MAPIE that answers with the probabilities it is fed."""

    classes_ = np.arange(CLASSES)
    n_features_in_ = CLASSES
    fitted_ = True

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> Given:
        return self

    def predict_proba(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x

    def predict(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        return x.argmax(1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class NoDraw(np.random.RandomState):
    """MAPIE calibrates adaptive scores with a random part of the true class's probability, to trim the coverage to the
    digit; we take none of it."""

    def uniform(self, *_: Any, size: Any = None, **__: Any) -> Any:
        return np.zeros(size)


def estimator() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.base import BaseEstimator, ClassifierMixin

    class Estimator(Given, ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
        pass

    return Estimator()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_are_those_of_mapie(method: Method, coverage: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mapie.classification import SplitConformalClassifier

        (p, labels), (q, _) = drawn(500, 1), drawn(400, 2)
        theirs = SplitConformalClassifier(
            estimator(), confidence_level=coverage, conformity_score=method, prefit=True, random_state=NoDraw()
        )
        theirs.conformalize(p, labels)
        _, sets = theirs.predict_set(q, conformity_score_params={"include_last_label": False} if method == "aps" else {})
    conformal = fit_conformal(p, labels, coverage=coverage, method=method, by_class=False)
    assert conformal.thresholds == pytest.approx([float(theirs._mapie_classifier.quantiles_[0])] * CLASSES, rel=1e-12)
    wanted = sets[:, :, 0].copy()
    wanted[np.arange(len(q)), q.argmax(1)] = True
    np.testing.assert_array_equal(conformal.sets(q), wanted)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_by_class_each_class_has_the_set_that_mapie_gives_it_from_its_own_cells(coverage: float) -> None:
    """Mondrian: the threshold of a class is that of a calibration with no cell but its own."""
    from mapie.classification import SplitConformalClassifier

    (p, labels), (q, _) = drawn(800, 1), drawn(400, 2)
    wanted = np.zeros(q.shape, dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in range(CLASSES):
            own = labels == kind
            theirs = SplitConformalClassifier(estimator(), confidence_level=coverage, conformity_score="lac", prefit=True)
            theirs.conformalize(p[own], labels[own])
            wanted[:, kind] = theirs.predict_set(q)[1][:, kind, 0]
    wanted[np.arange(len(q)), q.argmax(1)] = True
    np.testing.assert_array_equal(fit_conformal(p, labels, coverage=coverage, by_class=True).sets(q), wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by_class", [True, False])
def test_the_stated_coverage_holds_on_new_cells(method: Method, by_class: bool) -> None:
    hits, per_class = [], []
    for seed in range(30):
        conformal = fit_conformal(*drawn(400, seed), coverage=0.9, method=method, by_class=by_class)
        q, truth = drawn(1000, 1000 + seed)
        right = conformal.sets(q)[np.arange(len(q)), truth]
        hits.append(right.mean())
        per_class.append([right[truth == k].mean() for k in range(CLASSES)])
    assert np.mean(hits) >= 0.895
    # Sets of every class would hold too. "lac" wastes nothing; adaptive sets without a random part cover more than they say.
    assert np.mean(hits) <= (0.91 if method == "lac" else 0.94)
    if by_class:
        assert np.mean(per_class, axis=0).min() >= 0.89


@given(st.integers(0, 10_000), st.sampled_from(METHODS), st.booleans(), st.floats(0.05, 0.99))
def test_no_set_is_empty_and_the_label_is_in_it(seed: int, method: Method, by_class: bool, coverage: float) -> None:
    conformal = fit_conformal(*drawn(40, seed), coverage=coverage, method=method, by_class=by_class)
    q, _ = drawn(20, seed + 1)
    sets = conformal.sets(q)
    assert sets.any(1).all()
    assert sets[np.arange(20), q.argmax(1)].all()


def test_too_few_cells_of_a_class_put_it_into_every_set() -> None:
    p, labels = drawn(200, 3)
    few = np.concatenate([np.flatnonzero(labels != 0), np.flatnonzero(labels == 0)[:5]])
    conformal = fit_conformal(p[few], labels[few], coverage=0.9)
    assert conformal.thresholds[0] == math.inf
    assert conformal.sets(p)[:, 0].all()


def test_the_quantile_is_the_finite_sample_one() -> None:
    assert upper_quantile(np.arange(1.0, 100.0), 0.9) == 90
    assert upper_quantile(np.arange(1.0, 11.0), 0.9) == 10
    assert upper_quantile(np.arange(1.0, 9.0), 0.9) == math.inf


def test_adaptive_scores_sum_what_is_as_probable() -> None:
    np.testing.assert_allclose(all_scores(np.array([[0.2, 0.5, 0.3]]), "aps"), [[1.0, 0.5, 0.8]])
    np.testing.assert_allclose(all_scores(np.array([[0.2, 0.5, 0.3]]), "lac"), [[0.8, 0.5, 0.7]])


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0])
def test_senseless_coverage_is_refused(coverage: float) -> None:
    with pytest.raises(BadValue):
        fit_conformal(*drawn(20, 0), coverage=coverage)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(BadValue):
        fit_conformal(*drawn(20, 0), method="best")  # type: ignore[arg-type]


def test_thresholds_of_one_keep_every_class() -> None:
    assert Conformal("lac", 0.9, (1.0,) * CLASSES).sets(drawn(5, 0)[0]).all()


def test_the_temperature_is_scikit_learns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.base import BaseEstimator, ClassifierMixin
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator

        class Scores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
            """Answers with the logits it is fed."""

            classes_ = np.arange(CLASSES)
            n_features_in_ = CLASSES

            def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> Scores:
                return self

            def decision_function(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
                return x

            def predict(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
                return x.argmax(1)

            def __sklearn_is_fitted__(self) -> bool:
                return True

        p, labels = drawn(800, 5)
        logits = 2.5 * np.log(p)
        theirs = CalibratedClassifierCV(FrozenEstimator(Scores()), method="temperature", ensemble=False).fit(logits, labels)
        wanted = theirs.predict_proba(logits)
    scaled = logits / fit_temperature(logits, labels)
    ours = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
    np.testing.assert_allclose(ours, wanted, atol=2e-3)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.15)
