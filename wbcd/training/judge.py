"""The judge: one page of everything that a classifier's figures can and cannot say, over one model or several seeds of it.

    judged = judge_models(["run-1/bundle", "run-2/bundle"], "cells.zarr", split="test_donor", out=Path("report"))
    judged.facts["summary"]["accuracy"]          # mean, SD, least and greatest over the models

Written where ``out`` is given: report.json, report.md and four PNGs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from wbcd.classification import Bundle, Classifier, load_bundle
from wbcd.classification.bundle import write_file
from wbcd.errors import BadValue
from wbcd.names import in_markdown, in_plot
from wbcd.training import curves, plots, seen, statistics
from wbcd.training import dataset as sets
from wbcd.training import purity as purities
from wbcd.training.calibration import expected_calibration_error
from wbcd.training.evaluation import (
    Evaluation,
    answers_of,
    counted_of,
    judge,
    judge_cells,
    over_donors,
    part_rows,
    probabilities_of,
    scheme_of,
    summed,
)
from wbcd.training.splits import warnings_of

SUMMARISED = ("accuracy", "balanced_accuracy", "expected_calibration_error", "negative_log_likelihood", "brier", "aurc")
SHOWN_FAILURES = 18
FAILURES = "failures.png"
COVERAGES = (0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Judged:
    """``evaluations``: one a model; ``facts``: the whole report, JSON-ready."""

    evaluations: tuple[Evaluation, ...]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One model's answers on the judged cells: ``raw`` without temperature scaling; ``counted``: those that the daemon would
    count, None where the model cannot tell unknown cells."""

    bundle: Bundle
    probabilities: NDArray[np.float64]
    raw: NDArray[np.float64]
    counted: NDArray[np.bool_] | None
    evaluation: Evaluation


def judge_models(
    models: Sequence[str | Path],
    dataset_path: str | Path,
    *,
    split: str = "test",
    split_by: str | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> Judged:
    """Measure every model on one split of a set; the plots show the first. Models must have the same classes.

    Raises BadValue on models that cannot be put beside one another, BundleInvalid on a set for another input.
    """
    if not models:
        raise BadValue("no model is given; at least one is needed.")
    bundles = [load_bundle(m) for m in models]
    schemes = {split_by or scheme_of(b) for b in bundles}
    if len({b.classes for b in bundles}) > 1 or len(schemes) > 1:
        raise BadValue(
            f"the models have classes {sorted({b.classes for b in bundles})} and splits by {', '.join(sorted(schemes))};"
            " one of each is needed.",
            action="Evaluate them apart, or compare two with `wbcd model compare`.",
        )
    scheme = schemes.pop()
    data = sets.load(Path(dataset_path))
    fitted = [sets.check_matches(data, b.classes, b.input, b.path) for b in bundles]
    cells = fitted[0].indices(split, scheme)
    answers = [_answer(b, d, cells, (split, scheme), device) for b, d in zip(bundles, fitted, strict=True)]
    facts = _facts(answers, fitted[0], cells, split, scheme)
    facts["warnings"] += _of_labels(data, fitted[0], cells)
    if out is not None:
        _write(out, answers[0], fitted[0], cells, facts)
    return Judged(tuple(a.evaluation for a in answers), facts)


def compare_models(
    first: str | Path,
    second: str | Path,
    dataset_path: str | Path,
    *,
    split: str = "test",
    split_by: str | None = None,
    device: str = "auto",
) -> tuple[statistics.Comparison, str, list[str]]:
    """Two models on the same cells, paired; as lineages where one of them knows only those. Also what was compared, and
    sentences on what the comparison cannot mean.

    Raises BadValue where the two were trained by different splits and ``split_by`` names none: one has seen the other's test.
    """
    bundles = [load_bundle(first), load_bundle(second)]
    schemes = {split_by or scheme_of(b) for b in bundles}
    if len(schemes) > 1:
        raise BadValue(
            f"{first} and {second} were trained by the splits {' and '.join(sorted(schemes))}; neither's test cells are"
            " unseen by both.",
            action="Train both by one scheme, or evaluate on another set with --split all.",
        )
    data = sets.load(Path(dataset_path))
    scheme = schemes.pop()
    cells = data.indices(split, scheme)
    lineages = len({b.classes for b in bundles}) > 1
    right = [_right(b, data, cells, device, lineages) for b in bundles]
    what = "lymphoid and myeloid" if lineages else ", ".join(bundles[0].classes)
    warnings = [text for b in bundles for text in seen.warnings(b, data, cells, split, scheme)]
    if data.purity is not None and (pure := purities.mean_purity(data.purity[cells])) < 1:
        warnings.append(
            f"the labels are {pure:.1%} pure: both accuracies, and with them the difference, are seen through that."
        )
    return statistics.compare(right[0], right[1], simulated=data.simulated), what, warnings


def _of_labels(data: sets.TrainingSet, fitted: sets.TrainingSet, cells: NDArray[np.intp]) -> list[str]:
    """``data``: the set as it is stored, of which ``fitted`` may have kept the lineages alone."""
    purity = None if data.purity is None else data.purity[cells]
    return purities.warnings(purity, lineages=fitted.classes != data.classes)


def _right(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp], device: str, lineages: bool) -> NDArray[np.bool_]:
    fitted = sets.check_matches(data, bundle.classes, bundle.input, bundle.path)
    probabilities = probabilities_of(Classifier(bundle, device), fitted.ri_delta, cells)
    if lineages and bundle.classes != sets.LINEAGES:
        fitted, probabilities = fitted.as_lineages(), summed(probabilities, bundle.classes)
    right: NDArray[np.bool_] = probabilities.argmax(1) == fitted.label[cells]
    return right


def _answer(bundle: Bundle, data: sets.TrainingSet, cells: NDArray[np.intp], part: tuple[str, str], device: str) -> _Answer:
    """``part``: split and scheme."""
    probabilities, early = answers_of(Classifier(bundle, device), data.ri_delta, cells)
    # softmax(z / T) gives z up to a constant, which no softmax sees.
    raw = softmax(bundle.model.temperature * np.log(probabilities.clip(1e-300)), axis=1)
    split, scheme = part
    tells = bundle.gauge is not None or bundle.model.envelope is not None
    counted = counted_of(bundle.gauge, bundle.model, data, cells, early) if tells else None
    judged = judge_cells(probabilities, data, cells, split, bundle.model_id, scheme=scheme, counted=counted)
    return _Answer(bundle, probabilities, raw, counted, judged)


# --- facts ----------------------------------------------------------------------------------------


def _facts(
    answers: Sequence[_Answer], data: sets.TrainingSet, cells: NDArray[np.intp], split: str, scheme: str
) -> dict[str, Any]:
    labels, donors = data.label[cells], data.donor[cells]
    evaluations = [a.evaluation for a in answers]
    first = answers[0]
    facts: dict[str, Any] = {
        "simulated": data.simulated,
        "data": {"name": data.path.name, "hash": data.data_hash, "split": split, "split_by": scheme, "cells": len(cells)},
        "classes": list(data.classes),
        "warnings": _warnings(answers, data, cells, split, scheme),
        "models": [_clean(e.as_json()) for e in evaluations],
        "summary": {name: statistics.mean_and_sd([float(getattr(e, name)) for e in evaluations]) for name in SUMMARISED},
        "calibration": {
            "temperature": first.bundle.model.temperature,
            "fitted_on": _fitted_on(first.bundle),
            "ece_before": expected_calibration_error(first.raw, labels),
            "ece_after": expected_calibration_error(first.probabilities, labels),
        },
        "counted": _counted_facts(first, labels),
        "parts": _part_rows(answers, data, cells),
        "risk_at_coverage": _risks(first.probabilities, labels),
        "per_donor": _donor_rows(first.probabilities, labels, donors, data),
    }
    if data.classes != sets.LINEAGES and all(c in sets.LINEAGE for c in data.classes):
        facts["summed_to_lineages"] = _lineage_facts(answers, data, cells, (split, scheme))
    return facts


def _warnings(
    answers: Sequence[_Answer], data: sets.TrainingSet, cells: NDArray[np.intp], split: str, scheme: str
) -> list[str]:
    found = warnings_of(data.label, data.donor, data.classes)
    if missing := [c for k, c in enumerate(data.classes) if not (data.label[cells] == k).any()]:
        found.append(f"{', '.join(missing)}: not one of the judged cells; nothing is said of it.")
    return found + [text for a in answers for text in seen.warnings(a.bundle, data, cells, split, scheme)]


def _counted_facts(answer: _Answer, labels: NDArray[np.int64]) -> dict[str, Any] | None:
    """``accuracy``: of the cells that are counted, None where none is. None where the model cannot tell unknown cells."""
    if answer.counted is None:
        return None
    right = (answer.probabilities.argmax(1) == labels)[answer.counted]
    return {
        "unclassified": float(1 - answer.counted.mean()),
        "accuracy": float(right.mean()) if right.size else None,
        "by_distance": answer.bundle.gauge is not None,
    }


def _part_rows(answers: Sequence[_Answer], data: sets.TrainingSet, cells: NDArray[np.intp]) -> list[dict[str, Any]]:
    right = np.stack([a.probabilities.argmax(1) == data.label[cells] for a in answers])
    return part_rows(data, cells, right, answers[0].counted)


def counted_sentence(facts: Mapping[str, Any]) -> str:
    """What the daemon would not count of the judged cells, by the first model."""
    model, counted = facts["models"][0]["model_id"], facts["counted"]
    if counted is None:
        return f"{model} cannot tell unknown cells: every cell is counted. `wbcd model calibrate` teaches it."
    if not counted["by_distance"]:
        return (
            f"{model} has no distance to tell unknown cells by (`wbcd model calibrate`); its range of training alone leaves"
            f" {counted['unclassified']:.1%} of them unclassified."
        )
    rest = "" if counted["accuracy"] is None else f"; of those that it counts {counted['accuracy']:.1%} are right"
    return (
        f"As unknown or outside its range of training {model} leaves {counted['unclassified']:.1%} of them unclassified{rest}."
    )


def _risks(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    _, risk, _ = curves.risk_coverage(probabilities, labels)
    return {f"{c:g}": float(risk[max(1, math.ceil(c * len(risk))) - 1]) for c in COVERAGES}


def _donor_rows(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], donors: NDArray[np.int64], data: sets.TrainingSet
) -> list[dict[str, Any]]:
    right = probabilities.argmax(1) == labels
    names = list(data.card.get("donor_names") or [])
    rows = []
    for donor in np.unique(donors).tolist():
        here = donors == donor
        n, correct = int(here.sum()), int(right[here].sum())
        low, high = statistics.wilson(correct, n)
        name = names[donor] if donor < len(names) else str(donor)
        rows.append({"donor": name, "n": n, "accuracy": correct / n, "ci_low": low, "ci_high": high})
    return rows


def _lineage_facts(
    answers: Sequence[_Answer], data: sets.TrainingSet, cells: NDArray[np.intp], part: tuple[str, str]
) -> dict[str, Any]:
    two, (split, scheme) = data.as_lineages(), part
    evaluations = [
        judge(
            summed(a.probabilities, data.classes),
            two.label[cells],
            two.donor[cells],
            two.classes,
            split,
            simulated=data.simulated,
            model_id=a.bundle.model_id,
            scheme=scheme,
        )
        for a in answers
    ]
    first, mean = evaluations[0], statistics.mean_and_sd([e.accuracy for e in evaluations])
    low, high = statistics.wilson(float(mean["mean"] or 0.0) * first.n, first.n)
    return {
        "accuracy": mean,
        "ci_low": low,
        "ci_high": high,
        "by_donor": first.by_donor,
        "donors": first.donors,
        "donor_ci_low": first.donor_ci_low,
        "donor_ci_high": first.donor_ci_high,
        "confusion": [list(row) for row in first.confusion],
    }


def _clean(value: Any) -> Any:
    """JSON without numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- files ----------------------------------------------------------------------------------------


def _write(out: Path, answer: _Answer, data: sets.TrainingSet, cells: NDArray[np.intp], facts: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    labels = data.label[cells]
    what = "simulated" if data.simulated else "measured"
    _draw_overview(out / "overview.png", answer, labels, data.classes, what, facts)
    if _mistakes(facts):
        _draw_failures(out / FAILURES, answer, data, cells, what)
    else:
        (out / FAILURES).unlink(missing_ok=True)  # of an earlier report in this folder
    write_file(out / "report.json", (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    write_file(out / "report.md", page(facts).encode())


def _draw_overview(
    path: Path, answer: _Answer, labels: NDArray[np.int64], classes: tuple[str, ...], what: str, facts: Mapping[str, Any]
) -> None:
    made = plots.figure(13, 8.6)
    made.suptitle(f"{in_plot(answer.bundle.model_id)} on {len(labels)} {what} cells")
    grid = made.subplots(2, 2)
    plots.confusion(grid[0, 0], answer.evaluation.confusion, classes, "confusion")
    shown = {c: curves.roc(answer.probabilities[:, k], labels == k) for k, c in enumerate(classes) if (labels == k).any()}
    plots.roc_curves(grid[0, 1], shown, answer.evaluation.auc)
    calibration = facts["calibration"]
    plots.reliability(
        grid[1, 0],
        curves.reliability(answer.raw, labels),
        curves.reliability(answer.probabilities, labels),
        (calibration["ece_before"], calibration["ece_after"]),
    )
    plots.risk_coverage(grid[1, 1], *curves.risk_coverage(answer.probabilities, labels))
    plots.save(made, path)


def _fitted_on(bundle: Bundle) -> str:
    """Whose cells gave the temperature, as the model's card says."""
    limits = bundle.model.measured.get("limits_from")
    if limits is None or limits.get("data_hash") == bundle.model.training.get("data_hash"):
        return "validation cells"
    other = "other " if "donors_seen" in limits else ""
    return f"{limits['cells']} cells of {limits['donors']} {other}donors"


def _draw_failures(path: Path, answer: _Answer, data: sets.TrainingSet, cells: NDArray[np.intp], what: str) -> None:
    """The most confident mistakes first."""
    labels, predicted = data.label[cells], answer.probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-answer.probabilities[wrong].max(1), kind="stable")][:SHOWN_FAILURES]
    shown = [
        (
            data.ri_delta[cells[i]],
            f"{data.classes[labels[i]]}\nas {data.classes[predicted[i]]} {answer.probabilities[i].max():.2f}\n"
            f"cell {_name(data, int(cells[i]))}, {data.morphology[cells[i], 0]:.0f} fL",
        )
        for i in order
    ]
    title = f"{len(wrong)} of {len(cells)} {what} cells wrong; the most confident first (x-y and x-z through the middle)"
    plots.save(plots.gallery(shown, data.input.voxel_um, title), path)


def _name(data: sets.TrainingSet, cell: int) -> int:
    return cell if data.cell_id is None else int(data.cell_id[cell])


def page(facts: Mapping[str, Any]) -> str:
    """The report for a person."""
    what = "simulated" if facts["simulated"] else "measured"
    data, models, summary = facts["data"], facts["models"], facts["summary"]
    first = models[0]
    classes = facts["classes"]
    lines = [
        f"# {', '.join(m['model_id'] for m in models)} on {data['cells']} {what} cells",
        "",
        f"{in_markdown(data['name'])} (hash `{data['hash']}`), part `{data['split']}` of the split by `{data['split_by']}`."
        " Research use only; not for diagnosis.",
        "",
        *(f"> {in_markdown(text)}\n" for text in facts["warnings"]),
        f"**Accuracy {first['accuracy']:.1%}** (95 % limits {_between(first)}, Wilson{_over(first)}),"
        f" balanced {first['balanced_accuracy']:.1%}.",
        "",
    ]
    if len(models) > 1:
        lines += ["| over the models | mean | SD | least | greatest |", "|---|---|---|---|---|"]
        lines += [f"| {n.replace('_', ' ')} | {_four(summary[n])} |" for n in SUMMARISED] + [""]
    if first["corrected"]:
        row = first["corrected"]
        lines += [
            f"The labels are {row['purity']:.1%} pure: a perfect classifier would be seen at {row['ceiling']:.1%}. Corrected"
            f" for that (Rogan and Gladen 1978, errors independent): {row['accuracy']:.1%} ({row['ci_low']:.1%} to"
            f" {row['ci_high']:.1%}).",
            "",
        ]
    if "summed_to_lineages" in facts:
        two = facts["summed_to_lineages"]
        impure = " Not corrected for impure labels: of which lineage the impurities are, nobody stated."
        lines += [
            f"Summed to lymphoid and myeloid: {two['accuracy']['mean']:.1%} ({_between(two)}{_over(two)})."
            + (impure if first["corrected"] else ""),
            "",
        ]
    lines += [counted_sentence(facts), ""]
    if facts["parts"]:
        of = " (mean of the models)" if len(models) > 1 else ""
        by = f" (by {first['model_id']})" if len(models) > 1 else ""
        lines += [f"| part of the set | cells | accuracy{of} | 95 % limits | unclassified{by} |", "|---|---|---|---|---|"]
        lines += [_part_line(row) for row in facts["parts"]] + [""]
    lines += [
        "| true \\ predicted | " + " | ".join(classes) + " | recall | precision | AUC |",
        "|---|" + "---|" * (len(classes) + 3),
    ]
    for name, row in zip(classes, first["confusion"], strict=True):
        figures = (first["recall"][name], first["precision"][name], first["auc"][name])
        shown = ["" if v is None else f"{v:.3f}" for v in figures]
        lines.append(f"| {name} | " + " | ".join(str(n) for n in row) + " | " + " | ".join(shown) + " |")
    calibration = facts["calibration"]
    lines += [
        "",
        f"Calibration error {calibration['ece_before']:.4f} before and {calibration['ece_after']:.4f} after temperature scaling"
        f" (T = {calibration['temperature']:.3f}, fitted on {calibration['fitted_on']}). Share wrong among the most confident: "
        + ", ".join(f"{float(c):.0%} of cells {r:.2%}" for c, r in facts["risk_at_coverage"].items())
        + ".",
        "",
        "![confusion, ROC, reliability, risk and coverage](overview.png)",
        "",
        "| donor | cells | accuracy | 95 % limits |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {in_markdown(r['donor'])} | {r['n']} | {r['accuracy']:.1%} | {r['ci_low']:.1%} to {r['ci_high']:.1%} |"
        for r in facts["per_donor"]
    ]
    lines += ["", f"![the most confident mistakes]({FAILURES})" if _mistakes(facts) else "No cell was labelled wrongly."]
    return "\n".join(lines) + "\n"


def _mistakes(facts: Mapping[str, Any]) -> int:
    """Cells that the first model labels wrongly: what stands off the diagonal."""
    table = np.asarray(facts["models"][0]["confusion"])
    return int(table.sum() - np.trace(table))


def part_sentence(row: Mapping[str, Any]) -> str:
    """A part's row, for a terminal."""
    left = "" if "unclassified" not in row else f", {row['unclassified']:.1%} unclassified"
    return f"part {row['part']}: {row['accuracy']:.1%} of {row['n']} ({_between(row)}){left}"


def _part_line(row: Mapping[str, Any]) -> str:
    """A part's row of the report's table."""
    left = "" if "unclassified" not in row else f"{row['unclassified']:.1%}"
    return f"| {in_markdown(row['part'])} | {row['n']} | {row['accuracy']:.1%} | {_between(row)} | {left} |"


def _between(row: Mapping[str, Any]) -> str:
    return f"{row['ci_low']:.1%} to {row['ci_high']:.1%}"


def _over(row: Mapping[str, Any]) -> str:
    """Limits over donors, where the donors were held out."""
    return "; " + over_donors(row["donors"], row["donor_ci_low"], row["donor_ci_high"]) if row["by_donor"] else ""


def _four(row: Mapping[str, Any]) -> str:
    sd = "" if row["sd"] is None else f"{row['sd']:.4f}"
    return f"{row['mean']:.4f} | {sd} | {row['low']:.4f} | {row['high']:.4f}"
