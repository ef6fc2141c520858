"""Plots of evaluations and experiments, as PNG. matplotlib comes with the extra ``train``; no window is ever opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbcd.errors import ConfigurationError
from wbcd.names import in_plot
from wbcd.report.figures import VALUES

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Okabe and Ito's, distinct to the colour-blind."""
RI_RANGE = (0.0, 0.05)
"""Grey scale of n - n_m in galleries."""


UNITS = {"um2": "µm²"}
"""As matplotlib's font can write them."""


def title_of(column: str) -> str:
    """What a column of the six parameters is called in a picture, with its unit: "Volume (fL)"."""
    name, unit = next((title, unit) for known, title, unit, _ in VALUES if known == column)
    return f"{name} ({UNITS.get(unit, unit)})" if unit else name


def legend(axes: Any) -> None:
    """Beside the axes, where no point or bar can lie under it."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def figure(width: float, height: float) -> Any:
    """An empty figure, inches. Raises ConfigurationError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "matplotlib is not installed.", action="Install the extra: pip install 'wbcd[train]'."
        ) from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Any, path: Path) -> None:
    """As PNG, without a time stamp: the same numbers give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=110, metadata={"Software": None})


def colour_of(k: int) -> str:
    """Of the class with this number; from the ninth on they come again."""
    return COLOURS[k % len(COLOURS)]


def confusion(axes: Any, table: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """True classes down, predicted across; colour is the share of the row."""
    counts = np.asarray(table, dtype=float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(counts):
        dark = share[row, column] > 0.5
        axes.text(column, row, f"{int(value)}", ha="center", va="center", color="white" if dark else "black", fontsize=9)
    names = [in_plot(c).replace("_", "\n") for c in classes]
    axes.set_xticks(range(len(classes)), names, fontsize=8)
    axes.set_yticks(range(len(classes)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)


def roc_curves(axes: Any, curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], areas: Mapping[str, float]) -> None:
    """One curve a class."""
    for k, (name, (false, true)) in enumerate(curves.items()):
        axes.plot(false, true, color=colour_of(k), label=f"{name.replace('_', ' ')} {areas[name]:.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.set_title("ROC, class against rest (area)", fontsize=10)
    legend(axes)


def reliability(axes: Any, before: Sequence[Any], after: Sequence[Any], errors: tuple[float, float]) -> None:
    """Bins before and after temperature scaling."""
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    for bins, colour, name, error in ((before, "0.5", "before", errors[0]), (after, COLOURS[0], "after", errors[1])):
        size = [8 + 60 * b.n / max(x.n for x in bins) for b in bins]
        axes.scatter(
            [b.confidence for b in bins], [b.accuracy for b in bins], s=size, color=colour, label=f"{name}: ECE {error:.3f}"
        )
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
    axes.set_title("reliability, temperature scaling", fontsize=10)
    legend(axes)


def risk_coverage(axes: Any, coverage: NDArray[Any], risk: NDArray[Any], area: float) -> None:
    """Share wrong among the cells answered, most confident first."""
    axes.plot(coverage, risk, color=COLOURS[0])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(0.02, 1.1 * float(risk[len(risk) // 20 :].max(initial=0.0))))
    axes.set_xlabel("coverage (share of cells answered)")
    axes.set_ylabel("share of them wrong")
    axes.set_title(f"risk and coverage (area {area:.4f})", fontsize=10)


def limits(
    axes: Any, means: tuple[Sequence[float], Sequence[float]], between: Sequence[tuple[float, float]], colour: str
) -> None:
    """Whiskers from the lower to the upper limit through the means (x, y)."""
    x, y = np.asarray(means, dtype=float)
    low, high = np.asarray(between, dtype=float).T
    # Rounded: the limit of a whole share may miss it by the last bit. A mean outside its limits is refused by matplotlib.
    errors = np.round([y - low, high - y], 9)
    axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2)


def spreads(
    axes: Any, means: tuple[Sequence[float], Sequence[float]], sds: Sequence[float | None], colour: str, *, named: bool
) -> None:
    """One SD over seeds to either side of the means (x, y), a broad line where there is one; ``named`` in the legend."""
    shown = [(x, y, sd) for x, y, sd in zip(*means, sds, strict=True) if sd is not None]
    if shown:
        x, y, sd = np.array(shown).T
        axes.errorbar(
            x, y, yerr=sd, fmt="none", ecolor=colour, elinewidth=2.5, alpha=0.5, label="SD over seeds" if named else None
        )


def gallery(cells: Sequence[tuple[NDArray[Any], str]], pitch_um: tuple[float, float, float], title: str) -> Any:
    """Each cell as two planes through its middle (x-y and x-z, to scale), with a line of text under it."""
    columns = min(6, max(len(cells), 1))
    rows = -(-max(len(cells), 1) // columns)
    made = figure(1.9 * columns, 3.4 * rows + 0.4)
    made.suptitle(title, fontsize=10)
    grid = made.subplots(2 * rows, columns, squeeze=False, height_ratios=[1.0, 1.0] * rows)
    for axes in grid.ravel():
        axes.axis("off")
    for i, (volume, text) in enumerate(cells):
        nz, ny, _ = volume.shape
        top, side = grid[2 * (i // columns), i % columns], grid[2 * (i // columns) + 1, i % columns]
        shown = {"cmap": "gray", "vmin": RI_RANGE[0], "vmax": RI_RANGE[1]}
        top.imshow(volume[nz // 2].astype(float), aspect=pitch_um[1] / pitch_um[2], **shown)
        side.imshow(volume[:, ny // 2].astype(float), aspect=pitch_um[0] / pitch_um[2], **shown)
        top.set_title(text, fontsize=7)
    return made
