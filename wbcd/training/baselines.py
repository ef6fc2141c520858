"""Classifiers on the six parameters alone: what the volume adds must show beside them.

The five of the paper (section 4.5): linear discriminant, k-nearest neighbours (5), support vectors (an error-correcting output
code of one binary machine for each pair of classes: six for four), naive Bayes, decision tree. Those whose strength is
a parameter get it by cross-validation on the training cells, so that they are beaten at their best. scikit-learn comes with
the extra ``train``; its estimators are fitted anew and never stored, since its files are pickles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import BadValue, ConfigurationError
from wbcd.training import dataset as sets
from wbcd.training.evaluation import Evaluation, judge_cells

NAMES = ("lda", "svm", "knn", "naive_bayes", "tree")
FOLDS = 5
NEIGHBOURS = 5


def evaluate_baselines(
    dataset_path: str | Path, split: str = "test", *, names: tuple[str, ...] = NAMES, seed: int = 0
) -> dict[str, Evaluation]:
    """Fit each on the six parameters of "train", measure it on ``split``. Raises ConfigurationError without scikit-learn."""
    return baselines_on(sets.load(Path(dataset_path)), split, names=names, seed=seed)


def baselines_on(
    data: sets.TrainingSet, split: str = "test", *, names: tuple[str, ...] = NAMES, seed: int = 0
) -> dict[str, Evaluation]:
    """As :func:`evaluate_baselines`, on a set in memory."""
    return {name: found[split] for name, found in classical(data, [split], names=names, seed=seed).items()}


def classical(
    data: sets.TrainingSet, splits: Sequence[str], *, names: tuple[str, ...] = NAMES, seed: int = 0, split_by: str = "both"
) -> dict[str, dict[str, Evaluation]]:
    """Fit each once on "train", measure it on several splits: {name: {split: evaluation}}. Raises BadValue on too few cells."""
    train = data.indices("train", split_by)
    there = len(np.unique(data.label[train]))
    if len(train) < max(NEIGHBOURS, len(data.classes) + 1) or there < 2:
        raise BadValue(
            f"{data.path}: {len(train)} training cells of {there} classes are too few for classifiers.",
            action="Give a larger set.",
        )
    out: dict[str, dict[str, Evaluation]] = {}
    for name in names:
        model = _model(name, data.label[train], seed).fit(data.morphology[train], data.label[train])
        out[name] = {}
        for split in splits:
            cells = data.indices(split, split_by)
            probabilities = _one_hot(model.predict(data.morphology[cells]), len(data.classes))
            out[name][split] = judge_cells(probabilities, data, cells, split, name, scheme=split_by)
    return out


def _one_hot(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.eye(classes)[labels]
    return out


def _model(name: str, labels: NDArray[np.int64], seed: int) -> Any:
    try:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.multiclass import OneVsOneClassifier
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
    models: dict[str, tuple[Any, dict[str, list[Any]]]] = {
        "lda": (LinearDiscriminantAnalysis(), {}),
        "svm": (
            OneVsOneClassifier(SVC(random_state=seed)),
            {"estimator__kernel": ["linear", "rbf"], "estimator__C": [0.3, 1.0, 10.0, 100.0]},
        ),
        "knn": (KNeighborsClassifier(NEIGHBOURS), {}),
        "naive_bayes": (GaussianNB(), {}),
        "tree": (DecisionTreeClassifier(random_state=seed), {"min_samples_leaf": [1, 5, 15]}),
    }
    estimator, grid = models[name]
    line = make_pipeline(StandardScaler(), estimator)
    folds = min(FOLDS, int(np.bincount(labels)[np.unique(labels)].min()))
    if not grid or folds < 2:
        return line
    step = line.steps[-1][0]
    shuffled = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return GridSearchCV(line, {f"{step}__{key}": values for key, values in grid.items()}, cv=shuffled)
