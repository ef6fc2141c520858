"""How good a classifier is: accuracy with its limits, class by class, donor by donor, and whether its confidence is earned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wbcd.classification import Bundle, Classifier, ModelCard, load_bundle
from wbcd.classification.unknown import Gauge
from wbcd.training import dataset as sets
from wbcd.training.calibration import expected_calibration_error
from wbcd.training.curves import aucs, brier, risk_coverage
from wbcd.training.purity import Corrected, corrected, mean_purity
from wbcd.training.statistics import wilson

__all__ = ["Evaluation", "donor_limits", "evaluate", "judge", "over_donors", "probabilities_of", "summed", "wilson"]

MIN_DONORS = 5
"""Fewer say too little of how donors differ: limits over them would be far too narrow."""
DRAWS = 2000
HELD_OUT = ("test", "test_donor")
"""Splits that no training looks at."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``confusion``: [true][predicted] counts. ``per_donor``: accuracy of each. ``ci_*``: Wilson 95 % limits, by cell.

    ``auc``: each class against the rest; ``aurc``: mean share wrong over all coverages; ``corrected``: accuracy behind impure
    labels, None where they are pure. ``by_donor``: whole donors were held out, whose cells are not independent; then
    ``donor_ci_*`` are the limits of :func:`donor_limits`, None where it has none. ``per_donor_n``: cells of each. ``parts``:
    :func:`part_rows` of a joined set.
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
    by_donor: bool = False
    donors: int = 0
    donor_ci_low: float | None = None
    donor_ci_high: float | None = None
    per_donor_n: dict[str, int] = field(default_factory=dict)
    parts: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; a class without cells has the recall None."""
        out = asdict(self)
        for key in ("recall", "precision", "auc"):
            out[key] = {k: None if math.isnan(v) else v for k, v in out[key].items()}
        return out

    def card_row(self) -> dict[str, Any]:
        """What a model's card states of a split."""
        keys = ["n", "accuracy", "ci_low", "ci_high", "balanced_accuracy", "expected_calibration_error"]
        keys += ["donors", "donor_ci_low", "donor_ci_high"] if self.by_donor else []
        row: dict[str, Any] = {key: getattr(self, key) for key in keys}
        row |= {"parts": list(self.parts)} if self.parts else {}
        recall = {k: v for k, v in self.recall.items() if math.isfinite(v)}
        return {**row, "recall": recall, "confusion_true_by_predicted": [list(r) for r in self.confusion]}

    def sentence(self) -> str:
        """For a person and for the card."""
        what = "simulated" if self.simulated else "measured"
        held_out = "held-out " if self.split in HELD_OUT else ""
        donors = f" by cell; {over_donors(self.donors, self.donor_ci_low, self.donor_ci_high)}" if self.by_donor else ""
        return (
            f"{self.accuracy:.1%} of {self.n} {held_out}{what} cells ({self.split};"
            f" 95 % limits {self.ci_low:.1%} to {self.ci_high:.1%}{donors}), balanced {self.balanced_accuracy:.1%}"
        )


def over_donors(donors: int, low: float | None, high: float | None) -> str:
    """Limits over donors, or why there are none, for a sentence or a table."""
    if low is not None and high is not None:
        return f"over {donors} donors {low:.1%} to {high:.1%}"
    why = f"{donors}, at least {MIN_DONORS} are needed" if donors < MIN_DONORS else f"{donors}, all alike"
    return f"limits over donors cannot be given ({why})"


def donor_limits(accuracy: Sequence[float], cells: Sequence[int], seed: int = 0) -> tuple[float, float] | None:
    """95 % limits of the accuracy over all cells, from the accuracy and the cells of each donor: percentiles of a bootstrap
    over donors, since the cells of one donor are right or wrong together.

    None below :data:`MIN_DONORS` donors, or where all are alike: then drawing them again shows no spread at all.
    """
    shares, weights = np.asarray(accuracy, dtype=np.float64), np.asarray(cells, dtype=np.float64)
    if len(shares) < MIN_DONORS or np.ptp(shares) == 0:
        return None
    drawn = np.random.default_rng(seed).multinomial(len(shares), np.full(len(shares), 1 / len(shares)), size=DRAWS)
    low, high = np.percentile(drawn @ (shares * weights) / (drawn @ weights), (2.5, 97.5))
    return float(low), float(high)


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
    scheme = split_by or scheme_of(bundle)
    cells = data.indices(split, scheme)
    classifier = Classifier(bundle, device, max_batch)
    probabilities = probabilities_of(classifier, data.ri_delta, cells)
    return judge_cells(probabilities, data, cells, split, bundle.model_id, scheme=scheme)


def scheme_of(bundle: Bundle) -> str:
    """The scheme that a bundle was trained by."""
    return scheme_in(bundle.model.training)


def scheme_in(training: Mapping[str, Any]) -> str:
    """The scheme that a card's training states."""
    found = str(training.get("split_by", "both"))
    return found if found in sets.SCHEMES else "both"


def held_out_by_donor(split: str, scheme: str = "both") -> bool:
    """Whether a split's figures are meant for donors never seen: those of a whole other set ("all") are too."""
    return split in ("test_donor", sets.ALL) or scheme == "donor"


def judge_cells(
    probabilities: NDArray[np.floating],
    data: sets.TrainingSet,
    cells: NDArray[np.intp],
    split: str,
    model_id: str,
    *,
    scheme: str = "both",
    counted: NDArray[np.bool_] | None = None,
) -> Evaluation:
    """:func:`judge` of some cells of a set, and of its parts; ``counted``: as in :func:`part_rows`."""
    judged = judge(
        probabilities,
        data.label[cells],
        data.donor[cells],
        data.classes,
        split,
        simulated=data.simulated,
        model_id=model_id,
        purity=None if data.purity is None else data.purity[cells],
        scheme=scheme,
    )
    right = probabilities.argmax(axis=1) == data.label[cells]
    return replace(judged, parts=tuple(part_rows(data, cells, right[None], counted)))


def counted_of(
    gauge: Gauge | None, model: ModelCard, data: sets.TrainingSet, cells: NDArray[np.intp], early: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Cells within a model's distance and range of training: the others are "unclassified" in the daemon's counts.

    Instruments are not asked: a set of cells does not keep each one's.
    """
    counted = np.ones(len(cells), dtype=np.bool_)
    if gauge is not None:
        counted &= gauge.distance(early) <= gauge.threshold
    if (envelope := model.envelope) is not None:
        volume, contrast = sets.volume_and_contrast(data.morphology[cells])
        counted &= [envelope.holds(float(v), float(c)) for v, c in zip(volume, contrast, strict=True)]
    return counted


def part_rows(
    data: sets.TrainingSet, cells: NDArray[np.intp], right: NDArray[np.bool_], counted: NDArray[np.bool_] | None
) -> list[dict[str, Any]]:
    """A joined set's parts apart: what holds for cells of one instrument need not hold for another's.

    ``right``: [models, n]; ``counted`` [n]: by the first model, None where it counts all. Accuracy is the models' mean, its
    limits Wilson's. A part without any of ``cells`` has no row; a set that was not joined has none at all.
    """
    rows = []
    for name, numbers in data.origins():
        here = (cells >= numbers.start) & (cells < numbers.stop)
        if not (n := int(here.sum())):
            continue
        shares = right[:, here].mean(axis=1)
        low, high = wilson(float(shares.mean()) * n, n)
        row = {"part": name, "n": n, "accuracy": float(shares.mean()), "ci_low": low, "ci_high": high}
        if counted is not None:
            row["unclassified"] = float(1 - counted[here].mean())
        rows.append(row)
    return rows


def summed(probabilities: NDArray[np.floating], classes: tuple[str, ...]) -> NDArray[np.float64]:
    """Probabilities of types -> of lineages [n, 2], in the order of ``dataset.LINEAGES``: the two-class task without a network
    of its own."""
    out = np.zeros((len(probabilities), len(sets.LINEAGES)))
    for k, name in enumerate(classes):
        out[:, sets.LINEAGES.index(sets.LINEAGE[name])] += probabilities[:, k]
    return out


def probabilities_of(classifier: Classifier, deltas: NDArray[np.float16], cells: NDArray[np.intp]) -> NDArray[np.float64]:
    """[cells, classes], a batch at a time: the float32 copy of a whole set need not fit."""
    return answers_of(classifier, deltas, cells)[0]


def answers_of(
    classifier: Classifier, deltas: NDArray[np.float16], cells: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Probabilities [cells, classes] and the features that unknown cells are told by [cells, f]."""
    step = classifier.batch_size
    probabilities, early = [], []
    for part in (cells[i : i + step] for i in range(0, len(cells), step)):
        found = classifier.outputs(torch.from_numpy(deltas[part].astype(np.float32)))
        probabilities.append(classifier.probabilities_of(found))
        early.append(found.early.numpy())
    return np.concatenate(probabilities), np.concatenate(early)


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
    scheme: str = "both",
) -> Evaluation:
    """All figures from probabilities [n, classes], true labels [n] and donors [n]; ``scheme``: that ``split`` is of."""
    predicted = probabilities.argmax(axis=1)
    count = len(classes)
    confusion = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    correct, n = int(np.trace(confusion)), len(labels)
    low, high = wilson(correct, n)
    recall, precision = _ratio(np.diag(confusion), confusion.sum(1)), _ratio(np.diag(confusion), confusion.sum(0))
    likelihood = probabilities[np.arange(n), labels].clip(1e-12)
    names, who, sizes = np.unique(donors, return_inverse=True, return_counts=True)
    shares = (np.bincount(who, weights=predicted == labels) / sizes).tolist()
    by_donor = held_out_by_donor(split, scheme)
    limits = donor_limits(shares, sizes.tolist()) if by_donor else None
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
        per_donor=dict(zip(map(str, names), shares, strict=True)),
        simulated=simulated,
        model_id=model_id,
        auc=aucs(probabilities, labels, classes),
        brier=brier(probabilities, labels),
        aurc=risk_coverage(probabilities, labels)[2],
        corrected=corrected(correct, n, mean_purity(purity), count),
        by_donor=by_donor,
        donors=len(names),
        donor_ci_low=None if limits is None else limits[0],
        donor_ci_high=None if limits is None else limits[1],
        per_donor_n=dict(zip(map(str, names), sizes.tolist(), strict=True)),
    )


def _ratio(part: NDArray[np.integer], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
