"""Classifiers on the six parameters alone: what the volume adds must show beside them.

The five of the paper: linear discriminant, k-nearest neighbours (5), support vectors, naive Bayes, decision tree.
scikit-learn comes with the extra ``train``; its estimators are fitted anew and never stored, since its files are pickles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import ConfigurationError
from wbcd.training import dataset as sets
from wbcd.training.evaluation import Evaluation, judge

NAMES = ("lda", "svm", "knn", "naive_bayes", "tree")


def evaluate_baselines(
    dataset_path: str | Path, split: str = "test", *, names: tuple[str, ...] = NAMES, seed: int = 0
) -> dict[str, Evaluation]:
    """Fit each on the six parameters of "train", measure it on ``split``. Raises ConfigurationError without scikit-learn."""
    return baselines_on(sets.load(Path(dataset_path)), split, names=names, seed=seed)


def baselines_on(
    data: sets.TrainingSet, split: str = "test", *, names: tuple[str, ...] = NAMES, seed: int = 0
) -> dict[str, Evaluation]:
    """As :func:`evaluate_baselines`, on a set in memory."""
    train, test = data.indices("train"), data.indices(split)
    simulated = bool(data.card.get("simulated", True))
    out: dict[str, Evaluation] = {}
    for name in names:
        model = _model(name, seed).fit(data.morphology[train], data.label[train])
        probabilities = _one_hot(model.predict(data.morphology[test]), len(data.classes))
        out[name] = judge(
            probabilities, data.label[test], data.donor[test], data.classes, split, simulated=simulated, model_id=name
        )
    return out


def _one_hot(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.eye(classes)[labels]
    return out


def _model(name: str, seed: int) -> Any:
    try:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.naive_bayes import GaussianNB
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise ConfigurationError(
            "scikit-learn is not installed.", action="Install the extra: pip install 'wbcd[train]'."
        ) from error
    models = {
        "lda": LinearDiscriminantAnalysis,
        "svm": lambda: SVC(C=10.0, random_state=seed),
        "knn": lambda: KNeighborsClassifier(5),
        "naive_bayes": GaussianNB,
        "tree": lambda: DecisionTreeClassifier(min_samples_leaf=5, random_state=seed),
    }
    return make_pipeline(StandardScaler(), models[name]())
