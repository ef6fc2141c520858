"""How good a classifier is: accuracy with its limits, class by class, donor by donor, and whether its confidence is earned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import Bundle, Classifier, load_bundle
from wbcd.training import dataset as sets
from wbcd.training.calibration import expected_calibration_error
from wbcd.training.curves import aucs, brier, risk_coverage
from wbcd.training.purity import Corrected, corrected, mean_purity
from wbcd.training.statistics import wilson

__all__ = ["Evaluation", "evaluate", "judge", "probabilities_of", "summed", "wilson"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``confusion``: [true][predicted] counts. ``per_donor``: accuracy of each. ``ci_*``: Wilson 95 % limits.

    ``auc``: each class against the rest; ``aurc``: mean share wrong over all coverages; ``corrected``: accuracy behind impure
    labels, None where they are pure.
    """

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
    auc: dict[str, float] = field(default_factory=dict)
    brier: float = math.nan
    aurc: float = math.nan
    corrected: Corrected | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; a class without cells has the recall None."""
        out = asdict(self)
        for key in ("recall", "precision", "auc"):
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
    bundle_path: str | Path,
    dataset_path: str | Path,
    split: str = "test",
    *,
    device: str = "auto",
    max_batch: int = 16,
    split_by: str | None = None,
) -> Evaluation:
    """Measure a bundle on one split ("train", "validation", "test", "test_donor", "all") of a set.

    ``split_by``: None is the scheme that the bundle was trained by, the only one whose test cells it has not seen.
    Raises BundleInvalid when the set was not prepared for the model, BadValue for an unknown or empty split.
    """
    bundle, data = load_bundle(bundle_path), sets.load(Path(dataset_path))
    data = sets.check_matches(data, bundle.classes, bundle.input, bundle.path)
    cells = data.indices(split, split_by or scheme_of(bundle))
    classifier = Classifier(bundle, device, max_batch)
    probabilities = probabilities_of(classifier, data.ri_delta, cells)
    return judge_cells(probabilities, data, cells, split, bundle.model_id)


def scheme_of(bundle: Bundle) -> str:
    """The scheme that a bundle was trained by."""
    found = str(bundle.model.training.get("split_by", "both"))
    return found if found in sets.SCHEMES else "both"


def judge_cells(
    probabilities: NDArray[np.floating], data: sets.TrainingSet, cells: NDArray[np.intp], split: str, model_id: str
) -> Evaluation:
    """:func:`judge` of some cells of a set."""
    return judge(
        probabilities,
        data.label[cells],
        data.donor[cells],
        data.classes,
        split,
        simulated=data.simulated,
        model_id=model_id,
        purity=None if data.purity is None else data.purity[cells],
    )


def summed(probabilities: NDArray[np.floating], classes: tuple[str, ...]) -> NDArray[np.float64]:
    """Probabilities of types -> of lineages [n, 2], in the order of ``dataset.LINEAGES``: the two-class task without a network
    of its own."""
    out = np.zeros((len(probabilities), len(sets.LINEAGES)))
    for k, name in enumerate(classes):
        out[:, sets.LINEAGES.index(sets.LINEAGE[name])] += probabilities[:, k]
    return out


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
    purity: NDArray[np.floating] | None = None,
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
        auc=aucs(probabilities, labels, classes),
        brier=brier(probabilities, labels),
        aurc=risk_coverage(probabilities, labels)[2],
        corrected=corrected(correct, n, mean_purity(purity), count),
    )


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
