"""The four experiments and the oracles, and the page and the JSON that hold their figures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from wbcd.classification.bundle import write_file
from wbcd.errors import BadValue
from wbcd.records import Shape3, Triple
from wbcd.training import dataset as sets
from wbcd.training import plots, statistics
from wbcd.training.augmentation import Augmentation
from wbcd.training.baselines import NAMES, classical
from wbcd.training.calibration import fit_temperature
from wbcd.training.evaluation import Evaluation, donor_limits, judge_cells, over_donors, summed
from wbcd.training.fit import PRESETS, Training
from wbcd.training.oracle import by_parameters, check_same_cells
from wbcd.training.paper.images import KINDS, picture_set
from wbcd.training.paper.published import ACCURACY, CLASSICAL_BELOW, POPULATION, TENTH_AT_LEAST
from wbcd.training.splits import warnings_of

FIGURES = ("fig2", "fig3", "fig4", "figS2")
ORACLE = "oracle"
SPLITS = {"test": "donors known from training", "test_donor": "donors never seen"}
FACTS, PAGE = "figures.json", "paper.md"
TOGETHER = "3d, all seeds together"
"""The mean of the seeds' probabilities: how much of what is missing is chance of one training."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is computed: epochs of a network on all training cells, its width, seeds a network, shares of figure S2.

    ``most_epochs``: of a network on a share of the cells, which gets more of them; never fewer than ``epochs``.
    """

    epochs: int = 20
    width: int = 16
    seeds: int = 1
    shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    most_epochs: int = 80


FULL = Size()
QUICK = Size(epochs=2, width=4, shares=(0.2, 1.0), most_epochs=4)
"""For a look and for tests: the figures mean nothing."""

Say = Callable[[str], None]


@dataclass(slots=True)
class _Run:
    """One set, one folder; ``trained`` keeps networks that several figures need, ``answered`` each one's logits by split."""

    data: sets.TrainingSet
    out: Path
    size: Size
    device: str
    preset: str
    umap: bool
    say: Say
    ideal: sets.TrainingSet | None = None
    trained: dict[str, list[Training]] = field(default_factory=dict)
    answered: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """For titles."""
        return "Simulated cells" if self.data.simulated else "Measured cells"

    def splits(self) -> list[str]:
        return [s for s in SPLITS if self.data.has(s)]

    def networks(
        self, name: str, data: sets.TrainingSet, *, augmentation: Augmentation | None = None, share: float = 1.0
    ) -> list[Training]:
        """One trained network a seed; what an earlier run has trained is taken up."""
        if name not in self.trained:
            self.trained[name] = [self._network(name, data, seed, augmentation, share) for seed in range(self.size.seeds)]
        return self.trained[name]

    def _network(
        self, name: str, data: sets.TrainingSet, seed: int, augmentation: Augmentation | None, share: float
    ) -> Training:
        self.say(f"{name}, seed {seed}")
        preset = PRESETS[self.preset]
        preset = preset if augmentation is None else replace(preset, augmentation=augmentation)
        # Few cells make short epochs: they get more of them, or a small share would be judged untrained.
        # By the square root: as many as for all cells would be too few steps, as many steps would be learning by heart.
        epochs = min(max(self.size.most_epochs, self.size.epochs), round(self.size.epochs / math.sqrt(share)))
        folder = self.out / "trainings" / f"{name}-{seed}"
        run = Training(data, folder, preset, epochs=epochs, width=self.size.width, seed=seed, device=self.device, share=share)
        run.fit()
        return run

    def probabilities(self, network: Training, data: sets.TrainingSet, split: str) -> NDArray[np.float64]:
        """Of a split's cells, calibrated on the validation cells, [n, classes]."""
        temperature = fit_temperature(self._logits(network, data, "validation"), data.label[network.watched])
        out: NDArray[np.float64] = softmax(self._logits(network, data, split) / temperature, axis=1)
        return out

    def _logits(self, network: Training, data: sets.TrainingSet, split: str) -> NDArray[np.float64]:
        """Asked once: several figures show the same network, and its answers take minutes on a CPU.

        Kept beside the training under the digest of its weights, so a later run takes them up.
        """
        key, cells = (network.out.name, split), data.indices(split)
        if key not in self.answered:
            file = network.out / f"logits-{split}-{_digest(network)}.npy"
            found = _stored(file, (len(cells), len(data.classes)))
            if found is None:
                found = network.logits(cells).astype(np.float64)
                np.save(buffer := io.BytesIO(), found, allow_pickle=False)
                write_file(file, buffer.getvalue())
            self.answered[key] = found
        return self.answered[key]


def _digest(network: Training) -> str:
    """Of weights and buffers as they answer now."""
    state = network.network.state_dict()
    return hashlib.blake2b(b"".join(state[k].cpu().numpy().tobytes() for k in sorted(state)), digest_size=8).hexdigest()


def _stored(file: Path, shape: tuple[int, int]) -> NDArray[np.float64] | None:
    """What an earlier run has kept; None where it kept nothing that fits."""
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float64 else None


def run_experiments(
    which: Sequence[str],
    dataset_path: str | Path,
    out: str | Path,
    *,
    size: Size = FULL,
    preset: str = "modern",
    device: str = "auto",
    umap: bool = True,
    shape: Shape3 | None = None,
    voxel_um: Triple | None = None,
    ideal: str | Path | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Run some of :data:`FIGURES`, or :data:`ORACLE`; tables, plots, ``figures.json`` and ``paper.md`` go into ``out``.

    ``umap``: draw the features too (the first time, a minute goes to compiling). ``shape``, ``voxel_um``: a smaller box, a
    coarser pitch than the set's. Networks go on where they were interrupted; figures made before, of the same set, stay in
    the JSON. ``ideal``: a set that shows the same phantoms themselves, for the oracle. Returns the figures. Raises BadValue on
    an unknown figure, a folder of another set's figures, an ``ideal`` of other phantoms.
    """
    if unknown := [name for name in which if name not in (*FIGURES, ORACLE)]:
        raise BadValue(f"there is no figure {unknown[0]!r}; there are {', '.join((*FIGURES, ORACLE))}.")
    data, folder = sets.load(Path(dataset_path)), Path(out)
    _check_cells(data, which)
    data = data.at(data.spec(shape, voxel_um))
    folder.mkdir(parents=True, exist_ok=True)
    facts = _earlier(folder, data, {"size": size, "preset": preset} if set(which) - {"fig2"} else {})
    themselves = sets.load(Path(ideal)) if ideal is not None else None
    if themselves is not None:
        check_same_cells(data, themselves)
        themselves = themselves.at(data.input)
    run = _Run(data, folder, size, device, preset, umap, say, themselves)
    makers = {"fig2": figure_2, "fig3": figure_3, "fig4": figure_4, "figS2": figure_s2, ORACLE: oracle}
    for name in which:
        facts[name] = makers[name](run)
        write_file(folder / FACTS, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
        write_file(folder / PAGE, page(facts).encode())
    return facts


def _check_cells(data: sets.TrainingSet, which: Sequence[str]) -> None:
    """Before hours of training: whether there is anything to draw, and to judge by. Raises BadValue."""
    if empty := [c for k, c in enumerate(data.classes) if not (data.label == k).any()]:
        raise BadValue(f"{data.path}: has no cell of class {empty[0]!r}.", action="Make the set without it (--classes).")
    if set(which) - {"fig2"} and not any(data.has(split) for split in SPLITS):
        raise BadValue(f"{data.path}: {len(data.label)} cells, and none is held out to judge by.", action="Give a larger set.")


def _other_classes(classes: Sequence[str]) -> list[str]:
    theirs = POPULATION["volume_fl"]
    if set(classes) == set(theirs):
        return []
    return [f"The classes here are {', '.join(classes)}; the paper's figures, given beside, are of {', '.join(theirs)}."]


def _earlier(folder: Path, data: sets.TrainingSet, how: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that are there, and what is said of all; ``how``: size and preset of the trainings, empty without any."""
    head: dict[str, Any] = {
        "simulated": data.simulated,
        "data_hash": data.data_hash,
        "cells": len(data.label),
        "donors": len(np.unique(data.donor)),
        "classes": list(data.classes),
        "input": sets.spec_to_card(data.input),
        "warnings": [*_other_classes(data.classes), *warnings_of(data.label, data.donor, data.classes)],
    }
    if how:
        # Each point of the learning curve says its share: another choice of them contradicts nothing.
        head["size"] = {key: value for key, value in asdict(how["size"]).items() if key != "shares"}
        head["preset"] = how["preset"]
    file = folder / FACTS
    if not file.exists():
        return head
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise BadValue(f"{file}: not JSON: {error}.", action="Choose another folder.") from error
    for key in ("data_hash", "size", "input", "preset"):
        if key in found and key in head and found[key] != head[key]:
            raise BadValue(
                f"{file}: holds figures whose {key} is {found[key]}, not {head[key]}.", action="Choose another folder."
            )
    return {**found, **head}


# --- figure 2: the populations --------------------------------------------------------------------


def figure_2(run: _Run) -> dict[str, Any]:
    """Mean and SD of the six parameters, beside the paper's; SD of the donors' means beside it."""
    data = run.data
    table: dict[str, Any] = {}
    for name, column in zip(sets.SIX, data.morphology.T.astype(np.float64), strict=True):
        table[name] = {c: _population_row(data, column, k, name, c) for k, c in enumerate(data.classes)}
    made = plots.figure(12, 7)
    made.suptitle(f"{run.what}: the six parameters (boxes: quartiles; diamonds: the paper's means, exchange put right)")
    for axes, (name, column) in zip(made.subplots(2, 3).ravel(), zip(sets.SIX, data.morphology.T, strict=True), strict=True):
        axes.boxplot([column[data.label == k] for k in range(len(data.classes))], showfliers=False)
        published = [POPULATION[name].get(c, (np.nan,))[0] for c in data.classes]
        axes.plot(range(1, len(data.classes) + 1), published, "D", color=plots.COLOURS[5], ms=5)
        axes.set_xticks(range(1, len(data.classes) + 1), [c.replace("_", "\n") for c in data.classes], fontsize=8)
        axes.set_title(plots.title_of(name), fontsize=10)
    plots.save(made, run.out / "fig2.png")
    return {"table": table}


def _population_row(data: sets.TrainingSet, column: NDArray[np.float64], k: int, name: str, kind: str) -> dict[str, Any]:
    values = column[data.label == k]
    donors = data.donor[data.label == k]
    means = [float(values[donors == d].mean()) for d in np.unique(donors)]
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    row = {
        "n": len(values),
        "mean": mean,
        "sd": sd,
        "sd_of_donor_means": float(np.std(means, ddof=1)) if len(means) > 1 else None,
    }
    published = POPULATION[name].get(kind)
    if published is None:
        return row
    return {**row, "paper_mean": published[0], "paper_sd": published[1], "mean_ratio": mean / published[0]}


# --- figure 3: the 3D network ---------------------------------------------------------------------


def figure_3(run: _Run) -> dict[str, Any]:
    """Two and four classes; the two also by summing the four; UMAP of the features."""
    four = _judged(run, "3d-four", run.data)
    facts: dict[str, Any] = {"four": four, "paper": {"two": ACCURACY["3d_two"], "four": ACCURACY["3d_four"]}}
    tasks = {"four": run.data}
    if all(c in sets.LINEAGE for c in run.data.classes):
        two = run.data.as_lineages()
        facts["two"] = _judged(run, "3d-two", two)
        facts["two_by_summing_four"] = _summed(run, run.data)
        tasks["two"] = two
    made = plots.figure(5 * len(tasks), 4.4 * len(run.splits()))
    made.suptitle(f"{run.what}: 3D network, held-out cells")
    grid = made.subplots(len(run.splits()), len(tasks), squeeze=False)
    for row, split in enumerate(run.splits()):
        for column, (task, data) in enumerate(tasks.items()):
            first = facts[task][split]["seeds"][0]
            title = f"{task} classes, {SPLITS[split]}: {first['accuracy']:.1%}"
            plots.confusion(grid[row, column], first["confusion"], data.classes, title)
    plots.save(made, run.out / "fig3.png")
    facts["umap"] = {task: _umap(run, f"3d-{task}", data) for task, data in tasks.items()}
    return facts


def _judged(
    run: _Run,
    name: str,
    data: sets.TrainingSet,
    *,
    augmentation: Augmentation | None = None,
    share: float = 1.0,
) -> dict[str, Any]:
    """Mean and SD of the accuracy over the seeds, and each seed's evaluation, a split; cells and epochs of the training.

    ``epochs_done``: of each seed, fewer where it stopped early.
    """
    networks = run.networks(name, data, augmentation=augmentation, share=share)
    found = {s: [_evaluate(run, n, data, s) for n in networks] for s in run.splits()}
    return {s: _row(evaluations) for s, evaluations in found.items()} | {
        "train_cells": len(networks[0].cells),
        "epochs": networks[0].epochs,
        "epochs_done": [n.progress.epoch for n in networks],
    }


def _row(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The limits are the mean's, which the plots show: by cell, and over donors where whole donors were held out."""
    keys = ("n", "accuracy", "ci_low", "ci_high", "balanced_accuracy", "expected_calibration_error", "confusion", "recall")
    accuracy, first = statistics.mean_and_sd([e.accuracy for e in evaluations]), evaluations[0]
    low, high = _by_cell(accuracy["mean"], first.n)
    row = {
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "by_donor": first.by_donor,
        "seeds": [{key: e.as_json()[key] for key in keys} for e in evaluations],
    }
    if not first.by_donor:
        return row
    shares = [float(np.mean([e.per_donor[d] for e in evaluations])) for d in first.per_donor_n]
    over = donor_limits(shares, list(first.per_donor_n.values())) or (None, None)
    return {**row, "donors": first.donors, "donor_ci_low": over[0], "donor_ci_high": over[1]}


def _by_cell(mean: Any, n: int) -> tuple[float, float]:
    """Wilson's limits of a mean over seeds at n cells: all seeds answer for the same cells, and more of them add none."""
    return statistics.wilson(mean * n, n)


def _limits(row: Mapping[str, Any]) -> tuple[float, float]:
    """Of a row that may be of an earlier version, without limits of its own."""
    return _by_cell(row["accuracy"]["mean"], row["seeds"][0]["n"])


def _evaluate(run: _Run, network: Training, data: sets.TrainingSet, split: str) -> Evaluation:
    return judge_cells(run.probabilities(network, data, split), data, data.indices(split), split, network.out.name)


def _together(run: _Run, name: str, data: sets.TrainingSet, split: str) -> Evaluation:
    answers = np.mean([run.probabilities(n, data, split) for n in run.networks(name, data)], axis=0)
    return judge_cells(answers, data, data.indices(split), split, name)


def _summed(run: _Run, data: sets.TrainingSet) -> dict[str, Any]:
    two, networks = data.as_lineages(), run.networks("3d-four", data)
    found: dict[str, Any] = {}
    for split in run.splits():
        cells = data.indices(split)
        answers = [summed(run.probabilities(n, data, split), data.classes) for n in networks]
        found[split] = _row([judge_cells(a, two, cells, split, "3d-four summed") for a in answers])
    return found


def _umap(run: _Run, name: str, data: sets.TrainingSet) -> str:
    """Draw the features of all held-out cells in two dimensions; what was made, or why not."""
    if not run.umap:
        return "not asked for"
    try:
        from umap import UMAP
    except ImportError:
        return "not made: umap-learn is not installed (pip install 'wbcd[train]')"
    cells = np.concatenate([data.indices(split) for split in run.splits()])
    features = run.networks(name, data)[0].features(cells)
    # One job: the seed decides the picture only then.
    reducer = UMAP(n_neighbors=min(15, len(cells) - 1), random_state=0, n_jobs=1)
    threads = torch.get_num_threads()
    plane = reducer.fit_transform(features)
    # Its compiler gives OpenMP all cores, torch's too: whatever is trained next would not be what its seed says.
    torch.set_num_threads(threads)
    made = plots.figure(7.4, 5.4)
    axes = made.subplots()
    for k, kind in enumerate(run.data.classes):
        here = run.data.label[cells] == k
        axes.scatter(plane[here, 0], plane[here, 1], s=9, color=plots.colour_of(k), label=kind.replace("_", " "))
    axes.set_title(f"{run.what}: features after the second downsampling block\n({name}, UMAP, held-out cells)", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    plots.legend(axes)
    plots.save(made, run.out / f"fig3-umap-{name}.png")
    rows = [(int(c), run.data.classes[run.data.label[c]], *map(float, p)) for c, p in zip(cells, plane, strict=True)]
    _write_csv(run.out / f"fig3-umap-{name}.csv", ("cell", "class", "x", "y"), rows)
    return f"fig3-umap-{name}.png"


# --- figure 4: what else could do it ----------------------------------------------------------------


def figure_4(run: _Run) -> dict[str, Any]:
    """Five classifiers on six parameters, 2D networks on three kinds of picture, and the 3D network."""
    facts: dict[str, Any] = {"3d": _judged(run, "3d-four", run.data)}
    if run.size.seeds > 1:
        facts[TOGETHER] = {split: _row([_together(run, "3d-four", run.data, split)]) for split in run.splits()}
    run.say("classifiers on the six parameters")
    for name, found in classical(run.data, run.splits()).items():
        facts[name] = {split: _row([evaluation]) for split, evaluation in found.items()}
    for kind in KINDS:
        pictures, augmentation = picture_set(run.data, kind, PRESETS[run.preset].augmentation)
        facts[kind] = _judged(run, f"2d-{kind}", pictures, augmentation=augmentation)
    facts["pictures_from"] = str(run.data.card.get("pictures", "projections of the tomograms"))
    facts["paper"] = {**{k: ACCURACY[k] for k in KINDS}, "3d": ACCURACY["3d_four"], "classical": f"below {CLASSICAL_BELOW}"}
    _draw_bars(run, facts)
    return facts


def _draw_bars(run: _Run, facts: Mapping[str, Any]) -> None:
    names = (*NAMES, *KINDS, "3d")
    made = plots.figure(12, 4.4)
    axes = made.subplots()
    for i, split in enumerate(run.splits()):
        rows = [facts[n][split] for n in names]
        means = [r["accuracy"]["mean"] for r in rows]
        place = [k + 0.38 * i for k in range(len(names))]
        axes.bar(place, means, 0.36, color=plots.COLOURS[i], label=SPLITS[split])
        plots.limits(axes, (place, means), [_limits(r) for r in rows], "black")
        plots.spreads(axes, ([x + 0.09 for x in place], means), [r["accuracy"]["sd"] for r in rows], "black", named=i == 0)
    marks = [(names.index(k) + 0.19, v) for k, v in ACCURACY.items() if k in names] + [(len(names) - 0.81, ACCURACY["3d_four"])]
    axes.plot(*zip(*marks, strict=True), "D", color=plots.COLOURS[5], label="the paper's (real cells)")
    axes.set_xticks(np.arange(len(names)) + 0.19, [n.replace("_", "\n") for n in names])
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.02)
    axes.set_title(f"{run.what}: accuracy on held-out cells, 95 % limits by cell", fontsize=10)
    plots.legend(axes)
    plots.save(made, run.out / "fig4.png")


# --- figure S2: how many cells it takes -------------------------------------------------------------


def figure_s2(run: _Run) -> dict[str, Any]:
    """Accuracy of the 3D network against the share of the training cells."""
    rows = []
    for share in run.size.shares:
        name = "3d-four" if share == 1 else f"3d-four-{100 * share:g}-percent"
        rows.append({"share": share, **_judged(run, name, run.data, share=share)})
    made = plots.figure(7.4, 4.4)
    axes = made.subplots()
    for i, split in enumerate(run.splits()):
        means = [r[split]["accuracy"]["mean"] for r in rows]
        percent = [100 * r["share"] for r in rows]
        axes.plot(percent, means, color=plots.COLOURS[i], marker="o", label=SPLITS[split])
        plots.limits(axes, (percent, means), [_limits(r[split]) for r in rows], plots.COLOURS[i])
        # To the left and to the right, by a factor: the axis is logarithmic.
        beside = [x * (0.96, 1.04)[i] for x in percent]
        plots.spreads(axes, (beside, means), [r[split]["accuracy"]["sd"] for r in rows], plots.COLOURS[i], named=i == 0)
    axes.set_xscale("log")
    axes.set_xticks([100 * r["share"] for r in rows], [f"{100 * r['share']:g}" for r in rows])
    axes.minorticks_off()
    axes.set_xlabel(f"% of the {len(run.data.indices('train'))} training cells")
    axes.set_ylabel("accuracy")
    axes.set_title(f"{run.what}: learning curve, 95 % limits by cell", fontsize=10)
    plots.legend(axes)
    plots.save(made, run.out / "figS2.png")
    return {"curve": rows, "paper": f"a tenth of the training cells: at least {TENTH_AT_LEAST}"}


# --- the oracles ------------------------------------------------------------------------------------


def oracle(run: _Run) -> dict[str, Any]:
    """What could be known: classifiers on the phantoms' own parameters, and the 3D network on the phantoms themselves."""
    run.say("classifiers on the phantoms' own parameters")
    found = by_parameters(run.data, run.splits())
    facts: dict[str, Any] = {name: {s: _row([e]) for s, e in of.items()} for name, of in found.items()}
    if run.ideal is not None:
        facts["3d on ideal volumes"] = _judged(run, "3d-ideal", run.ideal)
    best = {s: max((name for name in facts), key=lambda name: facts[name][s]["accuracy"]["mean"]) for s in run.splits()}
    return {"of": facts, "best": best}


# --- the page ---------------------------------------------------------------------------------------


def page(facts: Mapping[str, Any]) -> str:
    """All figures made so far, for a person."""
    what = "simulated" if facts["simulated"] else "measured"
    lines = [
        f"# The paper's experiments on {facts['cells']} {what} cells",
        "",
        f"{facts['donors']} donors; data hash `{facts['data_hash']}`. Research use only; not for diagnosis.",
        "",
    ]
    if facts["simulated"]:
        lines += [
            "The cells are **simulated**: the ordering of the methods is partly a property of the phantoms, and no evidence"
            " for the paper.",
            "",
        ]
    if all(facts.get("size", {}).get(key) == getattr(QUICK, key) for key in ("epochs", "width")):
        lines += ["**A quick look**: small networks, hardly trained. The figures of networks below mean nothing.", ""]
    lines += [f"> {text}\n" for text in facts["warnings"]]
    writers = {"fig2": _page_2, "fig3": _page_3, "fig4": _page_4, "figS2": _page_s2, ORACLE: _page_oracle}
    for name, writer in writers.items():
        if name in facts:
            lines += writer(facts[name], facts["classes"])
    return "\n".join(lines) + "\n"


def _page_2(facts: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    lines = ["## Figure 2: the six parameters, mean ± SD (the paper's)", "", "| | " + " | ".join(classes) + " |"]
    lines.append("|---|" + "---|" * len(classes))
    for name, row in facts["table"].items():
        shown = []
        for kind in classes:
            r = row[kind]
            paper = f" ({r['paper_mean']:.4g} ± {r['paper_sd']:.3g})" if "paper_mean" in r else ""
            shown.append(f"{r['mean']:.4g} ± {r['sd']:.2g}{paper}")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return [*lines, "", "![the six parameters](fig2.png)", ""]


def _page_3(facts: Mapping[str, Any], classes: Sequence[str]) -> list[str]:  # noqa: ARG001 - one signature for all
    lines = [
        "## Figure 3: the 3D network",
        "",
        "| task | held out | accuracy | 95 % limits | the paper's |",
        "|---|---|---|---|---|",
    ]
    for task, published in (("two", "two"), ("two_by_summing_four", "two"), ("four", "four")):
        for split, where in SPLITS.items():
            if task in facts and split in facts[task]:
                row = _accuracy_cells(facts[task][split])
                lines.append(f"| {task.replace('_', ' ')} | {where} | {row} | {facts['paper'][published]:.1%} |")
    lines += ["", "![confusion](fig3.png)", ""]
    return lines + [f"UMAP, {task} classes: {made}\n" for task, made in facts["umap"].items()]


def _page_4(facts: Mapping[str, Any], classes: Sequence[str]) -> list[str]:  # noqa: ARG001 - one signature for all
    lines = [
        "## Figure 4: other ways",
        "",
        "| what | held out | accuracy | 95 % limits | the paper's |",
        "|---|---|---|---|---|",
    ]
    for name in (*NAMES, *KINDS, "3d", *((TOGETHER,) if TOGETHER in facts else ())):
        published = facts["paper"].get(name if name != TOGETHER else "3d")
        shown = facts["paper"]["classical"] if published is None else f"{published:.1%}"
        for split, where in SPLITS.items():
            if split in facts[name]:
                lines.append(f"| {name} | {where} | {_accuracy_cells(facts[name][split])} | {shown} |")
    return [*lines, "", f"Phase and amplitude come from: {facts['pictures_from']}.", "", "![accuracy](fig4.png)", ""]


def _page_s2(facts: Mapping[str, Any], classes: Sequence[str]) -> list[str]:  # noqa: ARG001 - one signature for all
    lines = [
        "## Figure S2: how many cells it takes",
        "",
        "| cells | share | held out | accuracy | 95 % limits |",
        "|---|---|---|---|---|",
    ]
    for row in facts["curve"]:
        for split, where in SPLITS.items():
            if split in row:
                lines.append(f"| {row['train_cells']} | {row['share']:.0%} | {where} | {_accuracy_cells(row[split])} |")
    return [*lines, "", f"The paper: {facts['paper']}.", "", "![learning curve](figS2.png)", ""]


def _page_oracle(facts: Mapping[str, Any], classes: Sequence[str]) -> list[str]:  # noqa: ARG001 - one signature for all
    lines = [
        "## What could be known",
        "",
        "Classifiers on everything that was drawn for a phantom, and the network on phantoms free of noise and optics.",
        "",
        "| what | held out | accuracy | 95 % limits | |",
        "|---|---|---|---|---|",
    ]
    for name, found in facts["of"].items():
        for split, where in SPLITS.items():
            if split in found:
                best = "the best" if facts["best"][split] == name else ""
                lines.append(f"| {name} | {where} | {_accuracy_cells(found[split])} | {best} |")
    return [*lines, ""]


def _accuracy_cells(row: Mapping[str, Any]) -> str:
    """Two cells of a table: the mean with its SD over seeds, and its limits."""
    sd = row["accuracy"]["sd"]
    low, high = _limits(row)
    spread = "" if sd is None else f" (SD {100 * sd:.2f} points of {row['accuracy']['n']} seeds)"
    donors = ""
    if row.get("by_donor"):
        donors = f" by cell; {over_donors(row['donors'], row['donor_ci_low'], row['donor_ci_high'])}"
    return f"{row['accuracy']['mean']:.1%}{spread} | {low:.1%} to {high:.1%}{donors}"


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())
