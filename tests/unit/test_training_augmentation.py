"""Augmentation against exact geometry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wbcd.training.augmentation import PAPER, Augmentation, augment

VOXEL = (0.4, 0.2, 0.2)
STILL = Augmentation(0.0, False, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, resampled=1.0)


def blob(shape: tuple[int, int, int], centre_um: tuple[float, float, float], sigma_um: float = 1.0) -> Tensor:
    """A Gaussian about a point, coordinates from the box's middle."""
    z, y, x = ((torch.arange(n) - (n - 1) / 2) * d - c for n, d, c in zip(shape, VOXEL, centre_um, strict=True))
    return 0.03 * torch.exp(-(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) / (2 * sigma_um**2))


def centre(volume: Tensor) -> Tensor:
    """Centre of mass (z, y, x) in um from the middle."""
    axes = [(torch.arange(n) - (n - 1) / 2) * d for n, d in zip(volume.shape, VOXEL, strict=True)]
    sums = [volume.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return torch.stack([(s * a).sum() / s.sum() for s, a in zip(sums, axes, strict=True)])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rotation_keeps_the_radius_in_um_even_in_an_oblong_box() -> None:
    volumes = blob((20, 60, 44), (0.0, 1.5, 0.0)).repeat(8, 1, 1, 1)
    out = augment(volumes, VOXEL, Augmentation(0.0, True, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, resampled=1.0), seeded(1))
    places = torch.stack([centre(v) for v in out])
    torch.testing.assert_close(places[:, 1:].norm(dim=1), torch.full((8,), 1.5), atol=0.02, rtol=0)
    torch.testing.assert_close(places[:, 0], torch.zeros(8), atol=0.02, rtol=0)
    assert places[:, 1].std() > 0.5
    torch.testing.assert_close(out.sum((1, 2, 3)), volumes.sum((1, 2, 3)), rtol=0.01, atol=0)


def test_flips_go_both_ways_in_the_plane_and_never_along_the_axis() -> None:
    volumes = blob((30, 40, 40), (1.0, 0.8, 0.6)).repeat(32, 1, 1, 1)
    places = torch.stack([centre(v) for v in augment(volumes, VOXEL, STILL, seeded(2))])
    torch.testing.assert_close(places.abs(), torch.tensor([[1.0, 0.8, 0.6]]).repeat(32, 1), atol=0.02, rtol=0)
    assert ((places > 0).any(0) & (places < 0).any(0)).tolist() == [False, True, True]
    kept = augment(volumes, VOXEL, Augmentation(0.0, False, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, flip=False, resampled=1.0), seeded(2))
    torch.testing.assert_close(kept, volumes)


def test_translation_is_bounded_in_um() -> None:
    volumes = blob((40, 60, 60), (0.0, 0.0, 0.0)).repeat(32, 1, 1, 1)
    moved = Augmentation(1.2, False, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, resampled=1.0)
    places = torch.stack([centre(v) for v in augment(volumes, VOXEL, moved, seeded(3))])
    assert float(places.abs().max()) <= 1.25
    assert bool((places.abs().amax(0) > 0.8).all())


def test_elastic_moves_little_and_keeps_the_mass() -> None:
    volumes = blob((30, 50, 50), (0.0, 0.0, 0.0), 1.5).repeat(8, 1, 1, 1)
    bent = Augmentation(0.0, False, 0.15, 3.0, 0.0, 0.0, 0.0, 0.0, resampled=1.0)
    out = augment(volumes, VOXEL, bent, seeded(4))
    assert float((out - volumes).abs().max()) > 1e-4
    assert float(torch.stack([centre(v) for v in out]).abs().max()) < 0.5
    assert float(out.sum() / volumes.sum()) == pytest.approx(1, abs=0.1)


def test_noise_offset_and_scale() -> None:
    flat = torch.full((64, 4, 12, 12), 0.03)
    inner = (slice(None), slice(1, 3), slice(3, 9), slice(3, 9))
    noisy = augment(flat, VOXEL, Augmentation(0.0, False, 0.0, 3.0, 0.0, 1e-3, 0.0, 0.0), seeded(5))[inner]
    # Sigma is uniform up to the greatest: its mean square is a third of the greatest's.
    assert float((noisy - 0.03).square().mean().sqrt()) == pytest.approx(1e-3 / math.sqrt(3), rel=0.15)
    shifted = augment(flat, VOXEL, Augmentation(0.0, False, 0.0, 3.0, 0.0, 0.0, 2e-4, 0.0), seeded(6))[inner]
    assert float(shifted.mean((1, 2, 3)).std()) == pytest.approx(2e-4, rel=0.3)


def test_the_generator_decides_everything() -> None:
    volumes = blob((20, 30, 30), (0.5, 0.5, 0.0)).repeat(3, 1, 1, 1).half()
    one, two, other = (augment(volumes, VOXEL, Augmentation(), seeded(s)) for s in (7, 7, 8))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert one.shape == volumes.shape
    assert one.dtype is torch.float32
    assert not torch.equal(one, other)


def test_a_crop_leaves_medium_beyond_a_box_and_touches_nothing_within() -> None:
    flat = torch.full((16, 20, 30, 30), 0.03)
    out = augment(
        flat, VOXEL, Augmentation(0.0, False, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, crop_um=1.0, flip=False, resampled=1.0), seeded(9)
    )
    assert bool(((out == 0) | ((out - 0.03).abs() < 1e-7)).all())
    for axis, pitch in enumerate(VOXEL, start=1):
        others = tuple(a for a in (1, 2, 3) if a != axis)
        lost = (out.amax(others) == 0).float().sum(1) * pitch
        assert 0 < float(lost.max()) <= 2.0 + pitch
    # What is left is one box.
    filled = (out > 0).sum((1, 2, 3))
    sides = [(out.amax(tuple(a for a in (1, 2, 3) if a != axis)) > 0).sum(1) for axis in (1, 2, 3)]
    assert torch.equal(filled, sides[0] * sides[1] * sides[2])


def test_a_picture_is_not_moved_out_of_its_plane() -> None:
    pictures = blob((1, 40, 40), (0.0, 0.4, 0.0)).repeat(8, 1, 1, 1)
    out = augment(pictures, VOXEL, Augmentation(noise_ri=0.0, zoom=0.0, offset_ri=0.0, scale=0.0), seeded(10))
    assert out.shape == pictures.shape
    torch.testing.assert_close(out.sum((1, 2, 3)), pictures.sum((1, 2, 3)), rtol=0.1, atol=0)


def test_the_papers_augmentation_neither_turns_nor_mirrors() -> None:
    volumes = blob((20, 40, 40), (0.0, 0.8, 0.6)).repeat(16, 1, 1, 1)
    still = replace(PAPER, translation_um=0.0, elastic_um=0.0, noise_ri=0.0, crop_um=0.0)
    torch.testing.assert_close(augment(volumes, VOXEL, still, seeded(11)), volumes)
    assert PAPER.crop_um > 0
    assert PAPER.elastic_um > 0


def test_what_is_not_interpolated_keeps_every_value() -> None:
    """Whole voxels, quarter turns and flips: what leaves the box is lost, all else is there."""
    volumes = torch.zeros((64, 12, 14, 14))
    volumes[:, 3:9, 3:11, 3:11] = torch.rand((64, 6, 8, 8), generator=seeded(12)) + 0.5
    still = replace(Augmentation(), noise_ri=0.0, offset_ri=0.0, scale=0.0, resampled=0.0)
    out = augment(volumes, VOXEL, still, seeded(13))
    for before, after in zip(volumes, out, strict=True):
        torch.testing.assert_close(after[after > 0].sort().values, before[before > 0].sort().values, rtol=0, atol=0)
    places = torch.stack([(v > 0).nonzero().float().mean(0) for v in out])
    moved = places - torch.tensor([5.5, 6.5, 6.5])
    # 0.4 um are one voxel along z, two across.
    assert moved.abs().amax(0).tolist() == [1.0, 2.0, 2.0]


def test_all_eight_ways_to_lay_a_square_are_taken_and_four_of_an_oblong() -> None:
    still = replace(Augmentation(), translation_um=0.0, noise_ri=0.0, offset_ri=0.0, scale=0.0, resampled=0.0)
    for shape, ways in (((4, 8, 8), 8), ((4, 8, 10), 4)):
        volume = torch.rand(shape, generator=seeded(14))
        out = augment(volume.repeat(128, 1, 1, 1), VOXEL, still, seeded(15))
        assert len({v.numpy().tobytes() for v in out}) == ways


def test_the_share_that_is_interpolated() -> None:
    volume = torch.rand((6, 10, 10), generator=seeded(16))
    bent = replace(Augmentation(), noise_ri=0.0, offset_ri=0.0, scale=0.0, resampled=0.25)
    out = augment(volume.repeat(16, 1, 1, 1), VOXEL, bent, seeded(17))
    known = set(volume.flatten().tolist()) | {0.0}
    kept = [set(v.flatten().tolist()) <= known for v in out]
    assert sum(kept) == 12
