"""Which file gets which defect, and what each does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from wbcd.errors import BadValue
from wbcd.simulation.defects import DEFECTS, Defect, draw_defect, planned_defect


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_the_share_is_kept_over_any_stretch(fraction: float) -> None:
    planned = [planned_defect(fraction, i) is not None for i in range(200)]
    for start, stop in itertools.combinations(range(0, 201, 20), 2):
        assert abs(sum(planned[start:stop]) - fraction * (stop - start)) <= 1


def test_the_kinds_come_in_turn() -> None:
    found = [name for i in range(4 * len(DEFECTS)) if (name := planned_defect(0.5, i)) is not None]
    assert found == list(DEFECTS) * 2


def test_motion_walks_its_strength() -> None:
    path = Defect("motion", 1.5).path(49, np.random.default_rng(0))
    assert path is not None
    assert path.shape == (49, 3)
    assert np.all(path[:, 0] == 0)
    assert np.linalg.norm(path[-1] - path[0]) == pytest.approx(1.5, rel=0.4)
    assert Defect("empty", 1.0).path(49, np.random.default_rng(0)) is None


def test_frames_are_lost_or_repeated_but_never_the_first_two() -> None:
    frames = np.arange(1, 50, dtype=np.uint8)[:, None, None] * np.ones((49, 4, 4), np.uint8)
    lost, repeated = frames.copy(), frames.copy()
    Defect("lost_frames", 0.2).spoil(lost, np.random.default_rng(0))
    Defect("repeated_frames", 0.2).spoil(repeated, np.random.default_rng(0))
    assert (lost.reshape(49, -1).max(1) == 0).sum() == 10
    assert (np.diff(repeated[:, 0, 0].astype(int)) == 0).sum() == 10
    assert (lost[:2] == frames[:2]).all()


def test_stray_light_has_the_stated_amplitude() -> None:
    w = torch.ones((3, 128, 128), dtype=torch.complex64)
    Defect("coherent_noise", 0.5).disturb(w, 0.0625, np.random.default_rng(0))
    assert float((w - 1).abs().square().mean().sqrt()) == pytest.approx(0.5, rel=1e-3)


def test_places() -> None:
    rng = np.random.default_rng(0)
    assert Defect("defocus", -9.0).place((0.1, 1.0, 2.0), 16.0, 4.0, rng) == (-9.0, 1.0, 2.0)
    moved = Defect("border", 0.25).place((0.1, 1.0, 2.0), 16.0, 4.0, rng)
    assert max(abs(v) for v in moved) == pytest.approx(15.0)
    assert Defect("motion", 1.0).place((0.1, 1.0, 2.0), 16.0, 4.0, rng) == (0.1, 1.0, 2.0)


def test_an_unknown_defect_is_refused_by_name() -> None:
    with pytest.raises(BadValue, match="Defect 'gremlin' is unknown"):
        draw_defect("gremlin", np.random.default_rng(0))
