"""Phantoms: populations as published, shape and mass as drawn, whatever the pitch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from wbcd.errors import BadValue
from wbcd.simulation.cells import (
    CLASSES,
    DRAWN,
    Phantom,
    axes,
    canonical_shape,
    geometry,
    measure_truth,
    parameters_of,
    phantoms_digest,
    render,
    sample_phantom,
)
from wbcd.simulation.fast import optics_digest
from wbcd.training.simulated import DONOR_SD

FROZEN = "4e0e9a96d474bf86a5de0c62f6c811d7"
FROZEN_OPTICS = "425262d954021842de410d33b5e3c934"
FROZEN_DONORS = {"volume": 0.05, "density": 0.01, "granularity": 0.12, "medium_ri": 5e-4}

VOXEL = (0.15, 0.12, 0.12)


@pytest.fixture(scope="module")
def phantoms() -> dict[str, Phantom]:
    rng = np.random.default_rng(11)
    return {kind: sample_phantom(kind, rng) for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_population_has_the_means_and_spreads_of_its_table(kind: str) -> None:
    rng = np.random.default_rng(1)
    drawn = [sample_phantom(kind, rng) for _ in range(4000)]
    table = DRAWN[kind]
    for values, (mean, sd) in (
        ([p.volume_fl for p in drawn], table.volume_fl),
        ([p.density_g_dl for p in drawn], table.density_g_dl),
        ([p.sphericity for p in drawn], table.sphericity),
        ([p.dry_mass_pg for p in drawn], table.dry_mass_pg),
    ):
        assert np.mean(values) == pytest.approx(mean, rel=0.01)
        assert np.std(values) == pytest.approx(sd, rel=0.10)
    surface = [math.pi ** (1 / 3) * (6 * p.volume_fl) ** (2 / 3) / p.sphericity for p in drawn]
    assert np.mean(surface) == pytest.approx(table.surface_um2[0], rel=0.02)
    assert np.std(surface) == pytest.approx(table.surface_um2[1], rel=0.12)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_rendered_cell_has_the_drawn_mass_volume_and_sphericity(phantoms: dict[str, Phantom], kind: str) -> None:
    phantom = phantoms[kind]
    ri = render(phantom, VOXEL, canonical_shape(phantom, VOXEL))
    truth = measure_truth(phantom, ri, VOXEL)
    assert truth.dry_mass_total_pg == pytest.approx(phantom.dry_mass_pg, rel=1e-4)
    # The surface at RI 1.35 lies a few hundredths of a voxel outside the drawn one.
    assert truth.volume_fl == pytest.approx(phantom.volume_fl, rel=0.03)
    assert truth.sphericity == pytest.approx(phantom.sphericity, abs=0.02)
    assert truth.mean_ri == pytest.approx(1.337 + 0.2 * phantom.density_g_dl / 100, abs=0.0015)
    edge = np.concatenate([face.ravel() for face in (ri[0], ri[-1], ri[:, 0], ri[:, -1], ri[..., 0], ri[..., -1])])
    assert edge == pytest.approx(1.337, abs=1e-6)


def test_the_same_phantom_at_another_pitch_is_the_same_object(phantoms: dict[str, Phantom]) -> None:
    phantom = phantoms["monocyte"]
    fine, coarse = (0.1, 0.1, 0.1), (0.2, 0.2, 0.2)
    a = measure_truth(phantom, render(phantom, fine, canonical_shape(phantom, fine)), fine)
    b = measure_truth(phantom, render(phantom, coarse, canonical_shape(phantom, coarse)), coarse)
    assert b.dry_mass_total_pg == pytest.approx(a.dry_mass_total_pg, rel=1e-4)
    assert b.volume_fl == pytest.approx(a.volume_fl, rel=0.03)


def test_the_same_seed_gives_the_same_voxels_and_another_does_not() -> None:
    shape = (60, 80, 80)
    first, again = (sample_phantom("t_lymphocyte", np.random.default_rng(4)) for _ in range(2))
    other = sample_phantom("t_lymphocyte", np.random.default_rng(5))
    assert first == again
    assert np.array_equal(render(first, VOXEL, shape), render(again, VOXEL, shape))
    assert not np.array_equal(render(first, VOXEL, shape), render(other, VOXEL, shape))


def test_an_offset_moves_the_centre_of_mass(phantoms: dict[str, Phantom]) -> None:
    phantom = phantoms["b_lymphocyte"]
    shape = (90, 110, 110)

    def centre(offset: tuple[float, float, float]) -> list[float]:
        excess = render(phantom, VOXEL, shape, offset_um=offset) - 1.337
        return [float((excess * axis.numpy()).sum() / excess.sum()) for axis in axes(VOXEL, shape)]

    moved = np.subtract(centre((0.7, -0.5, 1.03)), centre((0.0, 0.0, 0.0)))
    assert moved == pytest.approx([0.7, -0.5, 1.03], abs=0.01)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_nucleus_has_the_lower_index(phantoms: dict[str, Phantom], kind: str) -> None:
    phantom = phantoms[kind]
    shape = canonical_shape(phantom, VOXEL)
    ri = torch.from_numpy(render(phantom, VOXEL, shape))
    grid = axes(VOXEL, shape)
    parts = geometry(phantom)
    assert parts.nucleus is not None
    core = parts.surface.depth(*grid) > 0.5
    nucleus = core & (parts.nucleus.depth(*grid) > 0.2)
    cytoplasm = core & (parts.nucleus.depth(*grid) < -0.2) & (ri < 1.39)
    ratio = float((ri[nucleus].median() - 1.337) / (ri[cytoplasm].median() - 1.337))
    assert 0.82 < ratio < 0.96


def test_truth_of_a_sphere_is_the_spheres() -> None:
    radius, voxel = 4.0, (0.1, 0.1, 0.1)
    z, y, x = axes(voxel, (100, 100, 100))
    depth = radius - (z**2 + y**2 + x**2).sqrt()
    # Contrast 0.026: RI 1.35 is the half-way surface.
    ri = (1.337 + 0.026 * (depth / 0.1 + 0.5).clamp(0, 1)).numpy().astype(np.float32)
    truth = measure_truth(Phantom("sphere", 0, 1.0), ri, voxel)
    assert truth.volume_fl == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.005)
    assert truth.surface_area_um2 == pytest.approx(4 * math.pi * radius**2, rel=0.01)
    assert truth.protein_density_g_dl == pytest.approx(13.0, rel=0.01)


def test_objects_that_are_no_single_cell() -> None:
    rng = np.random.default_rng(2)
    debris, doublet, empty = (sample_phantom(kind, rng) for kind in ("debris", "doublet", "empty"))
    assert debris.volume_fl < 10
    assert len(doublet.parts) == 2
    pair = render(doublet, (0.3, 0.3, 0.3), canonical_shape(doublet, (0.3, 0.3, 0.3)))
    mass = float((pair - 1.337).sum()) * 0.027 / 0.2
    assert 0.9 * doublet.dry_mass_pg < mass <= doublet.dry_mass_pg * 1.001
    assert (render(empty, VOXEL, (8, 8, 8)) == np.float32(1.337)).all()


def test_granularity_changes_the_texture_alone(phantoms: dict[str, Phantom]) -> None:
    plain = parameters_of(phantoms["myelocyte"])
    rich = parameters_of(replace(phantoms["myelocyte"], granularity=1.5))
    assert {name: rich[name] for name in plain if name != "granularity"} == {
        name: plain[name] for name in plain if name != "granularity"
    }
    parts = [geometry(replace(phantoms["myelocyte"], granularity=g)) for g in (1.0, 1.5)]
    assert parts[1].texture == pytest.approx([1.5 * t for t in parts[0].texture])


def test_the_parameters_are_those_of_the_volume(phantoms: dict[str, Phantom]) -> None:
    """The nucleus as the table states it, against the voxels that lie inside it."""
    for kind, phantom in phantoms.items():
        shape = canonical_shape(phantom, VOXEL)
        inside = geometry(phantom).nucleus.depth(*axes(VOXEL, shape)) > 0  # type: ignore[union-attr]
        said = parameters_of(phantom)
        assert said["nucleus_fl"] == pytest.approx(float(inside.sum()) * math.prod(VOXEL), rel=0.03), kind
        assert (said["nucleus_half_angle"] > 0) == (kind == "monocyte")
        assert said["nucleus_share"] == said["nucleus_fl"] / phantom.volume_fl


def test_the_phantoms_are_those_that_models_were_trained_on() -> None:
    """Frozen: who changes a phantom, the optics or how donors differ changes what every figure of every simulated set means.

    See the decision record.
    """
    assert phantoms_digest() == FROZEN
    assert optics_digest() == FROZEN_OPTICS
    assert FROZEN_DONORS == DONOR_SD


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(BadValue, match=r"'platelet' is unknown; it must be one of b_lymphocyte"):
        sample_phantom("platelet", np.random.default_rng(0))
