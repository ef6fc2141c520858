"""Phase unwrapping and its cosine transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from wbcd.reconstruction import unwrap as u


@pytest.mark.parametrize("n", [16, 37, 150])
def test_cosine_transform_agrees_with_scipy(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = dctn(x.numpy(), axes=[-1], type=2) / 2
    np.testing.assert_allclose(u._dct(x).numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(u._idct(u._dct(x)).numpy(), x.numpy(), atol=1e-10)


@pytest.mark.parametrize("height", [1.0, 5.7, 14.0])
def test_a_cell_shaped_phase_is_recovered_exactly(height: float) -> None:
    y, x = np.mgrid[-100:100, -110:110] * 0.1
    truth = height * np.exp(-(x**2 + y**2) / 18) + 0.05
    wrapped = torch.from_numpy(np.angle(np.exp(1j * truth)))[None]
    np.testing.assert_allclose(u.unwrap(wrapped)[0].numpy(), truth, atol=1e-9)


def test_a_frame_without_jumps_is_left_alone() -> None:
    phase = torch.zeros(2, 20, 20)
    phase[0, 5:10, 5:10] = 1.0
    assert u.unwrap(phase) is phase


def test_a_vortex_is_one_residue() -> None:
    y, x = np.mgrid[-8:8, -8:8] + 0.5
    charge = u.residues(u.turns(torch.from_numpy(np.arctan2(y, x))[None]))
    assert int(charge.abs().sum()) == 1


def test_both_ways_agree_where_there_are_no_residues() -> None:
    y, x = np.mgrid[-90:90, -80:80] * 0.1
    truth = np.stack([9 * np.exp(-(x**2 + y**2) / 20), 6 * np.exp(-((x - 2) ** 2 + y**2) / 9) - 0.4])
    wrapped = torch.from_numpy(np.angle(np.exp(1j * truth)))
    np.testing.assert_allclose(u._counted(wrapped, u.turns(wrapped)).numpy(), truth, atol=1e-9)
    np.testing.assert_allclose(u._congruent(wrapped).numpy(), truth, atol=1e-9)


def test_a_frame_with_residues_is_still_unwrapped_about_them() -> None:
    """A pair of residues in a corner must not tear the rest: counting along rows would."""
    y, x = np.mgrid[-90:90, -80:80] * 0.1
    truth = 8 * np.exp(-(x**2 + y**2) / 20)
    pair = np.arctan2(y + 8, x + 7) - np.arctan2(y + 8, x + 6.6)
    wrapped = torch.from_numpy(np.angle(np.exp(1j * (truth + pair))))[None]
    assert int(u.residues(u.turns(wrapped)).abs().sum()) == 2
    found = u.unwrap(wrapped)[0].numpy()
    np.testing.assert_allclose(found[60:, 60:], (truth + pair)[60:, 60:], atol=1e-6)
