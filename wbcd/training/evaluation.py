"""How good a classifier is: accuracy with its limits, class by class, donor by donor, and whether its confidence is earned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import Classifier, load_bundle
from wbcd.training import dataset as sets
from wbcd.training.calibration import expected_calibration_error

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``confusion``: [true][predicted] counts. ``per_donor``: accuracy of each. ``ci_*``: Wilson 95 % limits."""

    split: str
    classes: tuple[str, ...]
    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    balanced_accuracy: float
    confusion: tuple[tuple[int, ...], ...]
    recall: dict[str, float]
    precision: dict[str, float]
    expected_calibration_error: float
    negative_log_likelihood: float
    per_donor: dict[str, float]
    simulated: bool = True
    model_id: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; a class without cells has the recall None."""
        out = asdict(self)
        for key in ("recall", "precision"):
            out[key] = {k: None if math.isnan(v) else v for k, v in out[key].items()}
        return out

    def sentence(self) -> str:
        """For a person and for the card."""
        what = "simulated" if self.simulated else "measured"
        return (
            f"{self.accuracy:.1%} of {self.n} held-out {what} cells ({self.split};"
            f" 95 % limits {self.ci_low:.1%} to {self.ci_high:.1%}), balanced {self.balanced_accuracy:.1%}"
        )


def evaluate(
    bundle_path: str | Path, dataset_path: str | Path, split: str = "test", *, device: str = "auto", max_batch: int = 16
) -> Evaluation:
    """Measure a bundle on one split ("train", "validation", "test", "test_donor") of a set.

    Raises BundleInvalid when the set was not prepared for the model, BadValue for an unknown or empty split.
    """
    bundle, data = load_bundle(bundle_path), sets.load(Path(dataset_path))
    sets.check_matches(data, bundle.classes, bundle.input, bundle.path)
    cells = data.indices(split)
    classifier = Classifier(bundle, device, max_batch)
    probabilities = probabilities_of(classifier, data.ri_delta, cells)
    simulated = bool(data.card.get("simulated", True))
    return judge(
        probabilities, data.label[cells], data.donor[cells], data.classes, split, simulated=simulated, model_id=bundle.model_id
    )


def probabilities_of(classifier: Classifier, deltas: NDArray[np.float16], cells: NDArray[np.intp]) -> NDArray[np.float64]:
    """[cells, classes], a batch at a time: the float32 copy of a whole set need not fit."""
    step = classifier.batch_size
    parts = [cells[i : i + step] for i in range(0, len(cells), step)]
    return np.concatenate([classifier.probabilities(torch.from_numpy(deltas[p].astype(np.float32)))[0] for p in parts])


def judge(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    donors: NDArray[np.integer],
    classes: tuple[str, ...],
    split: str,
    *,
    simulated: bool = True,
    model_id: str = "",
) -> Evaluation:
    """All figures from probabilities [n, classes], true labels [n] and donors [n]."""
    predicted = probabilities.argmax(axis=1)
    count = len(classes)
    confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    correct, n = int(np.trace(confusion)), len(labels)
    low, high = wilson(correct, n)
    recall, precision = _ratio(np.diag(confusion), confusion.sum(1)), _ratio(np.diag(confusion), confusion.sum(0))
    likelihood = probabilities[np.arange(n), labels].clip(1e-12)
    return Evaluation(
        split=split,
        classes=classes,
        n=n,
        correct=correct,
        accuracy=correct / n,
        ci_low=low,
        ci_high=high,
        balanced_accuracy=float(np.nanmean(recall)),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
        recall=dict(zip(classes, recall.tolist(), strict=True)),
        precision=dict(zip(classes, precision.tolist(), strict=True)),
        expected_calibration_error=expected_calibration_error(probabilities, labels),
        negative_log_likelihood=float(-np.log(likelihood).mean()),
        per_donor={str(d): float((predicted == labels)[donors == d].mean()) for d in np.unique(donors)},
        simulated=simulated,
        model_id=model_id,
    )


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score limits of a proportion (Wilson 1927); (0, 1) when nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
