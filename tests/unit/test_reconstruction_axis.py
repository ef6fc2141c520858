"""The pattern that a scan's directions draw: its centre, and which frame is lit along the axis. Units of the objective's NA."""

from __future__ import annotations

import math
from dataclasses import replace

import helpers_mie as mie
import numpy as np
import pytest
from numpy.typing import NDArray

from wbcd.quality import judge_fields, judge_fringes
from wbcd.recipe import Recipe
from wbcd.reconstruction import find_axis, measure_fringes, retrieve_fields
from wbcd.reconstruction.axis import Pattern, fit_pattern
from wbcd.records import Axis, HologramStack, Optics

CENTRE = np.array([0.13, -0.07])
NOISE = 0.002
Points = NDArray[np.float64]


def circle(count: int, radius: float = 0.5, share: float = 1.0) -> Points:
    angle = 0.3 + 2 * np.pi * share * np.arange(count) / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def spiral(count: int, turns: float) -> Points:
    along = np.arange(count) / (count - 1)
    angle = 2 * np.pi * turns * along
    return 0.6 * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def grid(side: int) -> Points:
    axis = np.linspace(-0.6, 0.6, side)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return points[np.hypot(*points.T) < 0.65]


def with_normal(points: Points, at: int) -> Points:
    return np.insert(points, at, 0.0, axis=0)


def pattern(points: Points, usable: NDArray[np.bool_] | None = None) -> Pattern | None:
    rng = np.random.default_rng(1)
    seen = points + CENTRE + rng.normal(0, NOISE, points.shape)
    return fit_pattern(seen, np.ones(len(points), bool) if usable is None else usable)


@pytest.mark.parametrize(
    ("points", "normal"),
    [
        (with_normal(circle(48), 48), 48),
        (with_normal(circle(30), 17), 17),
        (with_normal(circle(30)[np.random.default_rng(2).permutation(30)], 5), 5),
        (with_normal(circle(30) * (1, 0.7), 9), 9),
        (with_normal(np.concatenate([circle(24), circle(24, 0.25)]), 24), 24),
        (with_normal(circle(40, 0.5, 0.3), 0), 0),
        (spiral(49, 3), 0),
        (spiral(60, 5)[::-1], 59),
        (grid(7), len(grid(7)) // 2),
        (with_normal(circle(3), 2), 2),
    ],
    ids=["48", "17", "shuffled", "ellipse", "two circles", "arc", "spiral", "spiral inwards", "grid", "four frames"],
)
def test_the_normal_frame_of_a_pattern(points: Points, normal: int) -> None:
    found = pattern(points)
    assert found is not None
    assert found.central[0] == normal


@pytest.mark.parametrize(
    "points",
    [circle(30), circle(5), circle(40, 1.0), circle(30) * (1, 0.7), np.concatenate([circle(24), circle(24, 0.25)]), grid(6)],
    ids=["circle", "five", "to the rim", "ellipse", "two circles", "grid"],
)
def test_a_pattern_without_a_normal_frame_has_a_centre(points: Points) -> None:
    found = pattern(points)
    assert found is not None
    assert not found.central
    assert math.dist(found.centre, CENTRE) < 3 * max(found.uncertainty, NOISE / 2)
    assert found.uncertainty < 0.01


def test_frames_that_are_wrong_do_not_move_the_centre() -> None:
    """A fifth of the peaks lie anywhere; others are not usable at all."""
    points = with_normal(circle(40), 20)
    rng = np.random.default_rng(3)
    points[[3, 8, 15, 22, 27, 31, 36, 39]] = rng.uniform(-0.9, 0.9, (8, 2))
    usable = np.ones(41, bool)
    usable[[1, 2]] = False
    points[[1, 2]] = 5.0
    found = pattern(points, usable)
    assert found is not None
    assert found.central[0] == 20
    assert math.dist(found.centre, CENTRE) < 0.01


@pytest.mark.parametrize(
    "points",
    [circle(3), circle(4), np.zeros((20, 2)), circle(4, 0.02)],
    ids=["three", "four", "one direction", "hardly apart"],
)
def test_too_little_draws_no_pattern(points: Points) -> None:
    assert pattern(points) is None


def test_a_disc_without_symmetry_has_no_sure_centre() -> None:
    """Half a spiral's turns: the middle of its widths is near the axis, and says how uncertain it is."""
    points = spiral(40, 3)[15:]
    found = pattern(points)
    assert found is not None
    if not found.central:
        assert found.uncertainty > Recipe().quality.max_axis_uncertainty


# --- through fringes -----------------------------------------------------------------------------------

RIG = mie.Rig(size=256, frames=13, illumination_na=0.6)
OPTICS = Optics(RIG.wavelength_um, RIG.objective_na, RIG.medium_ri, RIG.pixel_um)


def empty(rig: mie.Rig = RIG, optics: Optics = OPTICS) -> HologramStack:
    """The empty field, normal frame first."""
    light = np.ones((rig.frames, rig.size, rig.size), np.complex128)
    rng = np.random.default_rng(6)
    return HologramStack(mie.holograms(light, rig, rng), mie.holograms(light, rig, rng), None, 0, optics)


def ordered(stack: HologramStack, order: list[int], stated: int | None) -> HologramStack:
    assert stack.reference is not None
    return replace(stack, holograms=stack.holograms[order], reference=stack.reference[order], normal_frame=stated)


def test_a_frame_that_is_found_gives_the_numbers_of_one_that_is_stated() -> None:
    """To the last bit: what is found is the frame, not another carrier."""
    stated = empty()
    one, other = (retrieve_fields(s, Recipe()) for s in (stated, replace(stated, normal_frame=None)))
    np.testing.assert_array_equal(one.w, other.w)
    np.testing.assert_array_equal(one.k_in_rad_um, other.k_in_rad_um)


@pytest.mark.parametrize("carrier", [(5.03, 4.96), (5.03, -4.96), (-5.0, 4.9)])
def test_the_centre_of_a_circle_is_the_carrier(carrier: tuple[float, float]) -> None:
    axis = find_axis(ordered(empty(replace(RIG, carrier_cycles_um=carrier)), list(range(1, 13)), None))
    assert axis.normal_frame is None
    assert axis.carrier_cycles_um is not None
    sign = math.copysign(1, axis.carrier_cycles_um[0] * carrier[0])
    assert math.dist(axis.carrier_cycles_um, (sign * carrier[0], sign * carrier[1])) < 0.01


def test_fringes_along_an_axis_of_the_camera() -> None:
    """The carrier lies where the half planes meet: half the frames show their sideband's mirror. None lacks contrast."""
    rig = replace(RIG, objective_na=0.8, carrier_cycles_um=(0.02, 5.0), frames=13)
    optics = replace(OPTICS, objective_na=0.8)
    for stack in (empty(rig, optics), ordered(empty(rig, optics), list(range(1, 13)), None)):
        fringes = measure_fringes(stack)
        assert judge_fringes(fringes, Recipe()).accepted
        radius = np.hypot(*retrieve_fields(stack, Recipe(), fringes=fringes).k_in_rad_um.T)
        np.testing.assert_allclose(radius[-12:], 0.6 * RIG.k0, rtol=0.02)


def test_vectors_about_the_wrong_frame_are_refused_and_the_true_ones_taken() -> None:
    """A program that measured them from the frame it took for the normal one: they agree with the fringes but for the axis."""
    stack = ordered(empty(), [1, 2, 3, 0, *range(4, 13)], 0)
    true = RIG.k_in()[[1, 2, 3, 0, *range(4, 13)]]
    for vectors, code in ((true, None), (true - true[0], "illumination_misfit")):
        given = replace(stack, illumination_rad_um=vectors)
        fields = retrieve_fields(given, Recipe())
        assert fields.fringes.axis == Axis(3, None, 0, 0.0)
        failed = judge_fields(fields, Recipe()).failed
        assert (None if failed is None else failed.code) == code


def test_vectors_tell_the_axis_of_a_circle_beside_it() -> None:
    """Its centre is 0.1 off; the file's vectors agree with every peak, and know."""
    shifted = RIG.k_in()[1:] + np.array([0.1 * RIG.k0, 0.0])
    stack = ordered(empty(), list(range(1, 13)), None)
    axis = find_axis(replace(stack, illumination_rad_um=shifted))
    assert axis.normal_frame is None
    assert axis.carrier_cycles_um is not None
    assert axis.carrier_cycles_um[0] == pytest.approx(5.03 - 0.1 / RIG.wavelength_um, abs=0.01)


def test_too_few_directions_are_refused_before_anything_is_judged_about_them() -> None:
    verdict = judge_fringes(measure_fringes(ordered(empty(), [1, 4, 7], None)), Recipe())
    assert verdict.failed is not None
    assert verdict.failed.code == "normal_frame"
    named = judge_fringes(measure_fringes(ordered(empty(), [0, 4, 7], 0)), Recipe())
    assert named.accepted  # too few to contradict the file


def test_frames_without_fringes_are_not_blamed_on_the_axis() -> None:
    dull = np.random.default_rng(0).poisson(90, (6, 128, 128)).astype(np.uint8)
    verdict = judge_fringes(measure_fringes(HologramStack(dull, None, None, None, OPTICS)), Recipe())
    assert verdict.failed is not None
    assert verdict.failed.code != "normal_frame"
