"""Input preparation: pitch, medium, centre and normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_classification import toy_cell
from hypothesis import given
from hypothesis import strategies as st

from wbcd.classification.preparation import InputSpec, delta_ri, fit_centre, normalise, resample


def test_halving_the_pitch_averages_and_keeps_the_integral() -> None:
    cell = toy_cell()
    delta = delta_ri(cell, InputSpec((12, 16, 16), (0.8, 0.8, 0.8)))
    fine = cell.ri.astype(np.float64) - cell.medium_ri
    assert delta.shape == (12, 16, 16)
    assert delta.sum() * 8 == pytest.approx(fine.sum(), rel=1e-4)
    assert delta[6, 8, 8] == pytest.approx(0.03, rel=1e-3)


def test_each_cell_has_its_own_medium() -> None:
    spec = InputSpec((12, 16, 16), (0.8, 0.8, 0.8))
    water, dense = toy_cell(medium=1.337), toy_cell(medium=1.35)
    np.testing.assert_allclose(delta_ri(water, spec), delta_ri(dense, spec), atol=1e-6)


@pytest.mark.parametrize("target", [(0.4, 0.4, 0.4), (0.6, 0.6, 0.6), (0.8, 0.5, 0.7), (1.0, 1.0, 1.0), (0.25, 0.3, 0.4)])
def test_any_pitch_keeps_the_integral_and_the_centre(target: tuple[float, float, float]) -> None:
    z, y, x = (torch.arange(n) - (n - 1) / 2 for n in (24, 32, 32))
    blob = torch.exp(-((z[:, None, None] * 0.4) ** 2 + (y[:, None] * 0.4) ** 2 + (x * 0.4) ** 2) / (2 * 1.5**2))
    out = resample(blob, (0.4, 0.4, 0.4), target)
    voxel = np.prod(target) / 0.4**3
    assert float(out.sum()) * voxel == pytest.approx(float(blob.sum()), rel=0.02)
    for axis, (n, d) in enumerate(zip(out.shape, target, strict=True)):
        profile = out.sum(tuple(a for a in range(3) if a != axis)).double()
        centre = float((profile * (torch.arange(n) - (n - 1) / 2) * d).sum() / profile.sum())
        # A whole factor may leave an odd voxel over at one edge.
        assert abs(centre) <= d / 2 + 0.4


@given(st.integers(1, 9), st.integers(1, 9))
def test_crop_and_pad_keep_the_middle(size: int, wanted: int) -> None:
    volume = torch.zeros((size, 1, 1))
    volume[size // 2] = 1
    out = fit_centre(volume, (wanted, 1, 1))
    assert out.shape == (wanted, 1, 1)
    assert float(out.sum()) == 1
    assert float(out[wanted // 2, 0, 0]) == 1


def test_normalisation_is_nine_times_clipped_at_zero() -> None:
    out = normalise(torch.tensor([-0.01, 0.0, 0.03]), InputSpec())
    torch.testing.assert_close(out, torch.tensor([0.0, 0.0, 0.27]))


def test_values_that_are_not_finite_count_as_medium() -> None:
    cell = toy_cell()
    ri = cell.ri.copy()
    ri[0, 0, 0], ri[1, 1, 1] = np.nan, np.inf
    assert np.isfinite(delta_ri(replace(cell, ri=ri), InputSpec((12, 16, 16), (0.8, 0.8, 0.8)))).all()
