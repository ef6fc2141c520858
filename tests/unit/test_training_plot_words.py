"""Titles name their unit, and no legend lies over what it explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from wbcd.training import curves, plots
from wbcd.training.dataset import SIX


def test_titles_of_the_six_parameters_have_their_units() -> None:
    titles = ["Volume (fL)", "Surface area (µm²)", "Sphericity", "Dry mass (pg)", "Protein density (g/dL)", "Mean RI"]
    assert [plots.title_of(name) for name in SIX] == titles


def draw(kind: str, axes: Any) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    probabilities = softmax(2 * np.eye(4)[labels] + rng.standard_normal((200, 4)), axis=1)
    if kind == "ROC":
        shown = {str(k): curves.roc(probabilities[:, k], labels == k) for k in range(4)}
        plots.roc_curves(axes, shown, {str(k): 0.9 for k in range(4)})
    elif kind == "reliability":
        bins = curves.reliability(probabilities, labels)
        plots.reliability(axes, bins, bins, (0.1, 0.1))
    else:
        axes.bar(range(4), [1.0] * 4, label="bars that fill the axes")
        plots.legend(axes)


@pytest.mark.parametrize("kind", ["ROC", "reliability", "bars"])
def test_a_legend_lies_beside_the_axes_and_within_the_picture(kind: str) -> None:
    made = plots.figure(8, 4)
    axes = made.subplots()
    draw(kind, axes)
    made.draw_without_rendering()
    legend, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert not legend.overlaps(inside)
    assert legend.x1 <= made.bbox.x1
    assert legend.y0 >= made.bbox.y0
    assert inside.width > 0.5 * made.bbox.width
