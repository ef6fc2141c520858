"""What rigs do to an acquisition, judged by exact Mie spheres: their file layouts, lost and saturated frames, odd sizes,
missing references, vectors given, few frames and many. One sphere, scattered once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import helpers_mie as mie
import numpy as np
import pytest
from numpy.typing import NDArray

from wbcd.acquisition import identify, read
from wbcd.errors import ReconstructionError
from wbcd.morphology import find_cells, measure
from wbcd.quality import judge_fields, judge_fringes, judge_tomogram
from wbcd.recipe import Recipe
from wbcd.reconstruction import measure_fringes, measure_illumination, reconstruct, retrieve_fields
from wbcd.records import FieldStack, HologramStack, Morphology, Optics, Verdict
from wbcd.simulation.files import write_mat, write_tiff_pair

RIG = mie.Rig(frames=21)
SPHERE = mie.Sphere((3.6,), (1.370,), (0.8, -0.5, 0.7))
RECIPE = Recipe()
OPTICS = Optics(RIG.wavelength_um, RIG.objective_na, RIG.medium_ri, RIG.pixel_um)
MASS_PG = SPHERE.mass_pg(RIG.medium_ri)


@pytest.fixture(scope="module")
def light() -> NDArray[np.complex128]:
    return mie.fields(SPHERE, RIG)


@pytest.fixture(scope="module")
def stack(light: NDArray[np.complex128]) -> HologramStack:
    return exposed(light, RIG)


def exposed(light: NDArray[np.complex128], rig: mie.Rig) -> HologramStack:
    rng = np.random.default_rng(4)
    frames = mie.holograms(light, rig, rng)
    reference = mie.holograms(np.ones_like(light), rig, rng)
    return HologramStack(frames, reference, None, 0, OPTICS)


@dataclass(frozen=True)
class Result:
    fields: FieldStack
    verdict: Verdict
    cell: Morphology


def result(stack: HologramStack) -> Result:
    fringes = measure_fringes(stack)
    fields = retrieve_fields(stack, RECIPE, fringes=fringes)
    (tomogram,) = reconstruct(fields, RECIPE)
    (cell,) = find_cells(tomogram, RECIPE)
    verdict = judge_fringes(fringes, RECIPE) + judge_fields(fields, RECIPE) + judge_tomogram(tomogram, RECIPE)
    return Result(fields, verdict, measure(cell, RECIPE))


def same_numbers(found: Result, expected: Result) -> None:
    """Every measure the same to the last bit; a spread that is not known is as unknown in both."""
    for name, value in asdict(expected.cell).items():
        np.testing.assert_array_equal(getattr(found.cell, name), value, err_msg=name)


def demand(found: Result, mass_percent: float) -> None:
    assert found.verdict.accepted, found.verdict.failed
    assert abs(found.cell.dry_mass_half_contrast_pg / MASS_PG - 1) < mass_percent / 100


@pytest.fixture(scope="module")
def plain(stack: HologramStack) -> Result:
    return result(stack)


def test_the_plain_acquisition(plain: Result) -> None:
    demand(plain, 4)


# --- layouts -----------------------------------------------------------------------------------------


def test_a_tiff_pair_gives_the_same_numbers(stack: HologramStack, plain: Result, tmp_path: Path) -> None:
    _, back = read(identify(write_tiff_pair(tmp_path, "bead", stack)))
    assert isinstance(back, HologramStack)
    same_numbers(result(back), plain)


def test_a_matlab_session_gives_the_same_numbers(stack: HologramStack, plain: Result, tmp_path: Path) -> None:
    assert stack.reference is not None
    write_mat(tmp_path / "bg001_Tomog.mat", stack.reference, OPTICS)
    path = write_mat(tmp_path / "sample001_Tomog.mat", stack.holograms, OPTICS)
    (tmp_path / "session.json").write_text(json.dumps({"normal_frame": 0, "medium_ri": OPTICS.medium_ri}))
    _, back = read(identify(path))
    assert isinstance(back, HologramStack)
    same_numbers(result(back), plain)


def test_medium_per_sample_moves_ri_as_it_must(stack: HologramStack, plain: Result, tmp_path: Path) -> None:
    """The contrast is measured, the medium is stated: RI follows it."""
    _, back = read(identify(write_tiff_pair(tmp_path, "bead", stack, medium_ri=1.341)))
    assert isinstance(back, HologramStack)
    found = result(back)
    assert abs(found.cell.max_ri - plain.cell.max_ri - 0.004) < 5e-4


def test_sixteen_bits(light: NDArray[np.complex128], tmp_path: Path) -> None:
    made = exposed(light, replace(RIG, bits=12))
    _, back = read(identify(write_tiff_pair(tmp_path, "bead", made)))
    assert isinstance(back, HologramStack)
    assert back.holograms.dtype == np.uint16
    demand(result(back), 4)


# --- frames ------------------------------------------------------------------------------------------


def spoilt(stack: HologramStack, **frames: Any) -> HologramStack:
    """``lost``, ``saturated``, ``lost_reference``: indices of frames."""
    holograms = stack.holograms.copy()
    reference = None if stack.reference is None else stack.reference.copy()
    holograms[frames.get("lost", [])] = 0
    for i in frames.get("saturated", []):
        holograms[i] = np.clip(holograms[i].astype(float) * 2.2, 0, 255).astype(np.uint8)
    if reference is not None:
        reference[frames.get("lost_reference", [])] = 0
    return replace(stack, holograms=holograms, reference=reference)


@pytest.mark.parametrize(
    ("frames", "dropped"),
    [
        ({"lost": [7], "saturated": [12]}, [7, 12]),
        ({"lost_reference": [3, 4]}, [3, 4]),
        ({"lost": [0]}, [0]),  # the normal frame itself
        ({"lost": [0], "lost_reference": [0]}, [0]),
    ],
    ids=["lost and saturated", "lost in the reference", "normal", "normal everywhere"],
)
def test_single_bad_frames_are_dropped_and_counted(stack: HologramStack, frames: Any, dropped: list[int]) -> None:
    found = result(spoilt(stack, **frames))
    assert sorted(set(range(21)) - set(found.fields.kept.tolist())) == dropped
    lost = [check.value for check in found.verdict.checks if check.code == "lost_frames"]
    assert lost[-1] == pytest.approx(len(dropped) / 21)
    demand(found, 4)


def test_the_normal_frame_lost_without_a_reference(stack: HologramStack) -> None:
    found = result(replace(spoilt(stack, lost=[0]), reference=None))
    expected = RIG.k_in()[1:]
    assert np.abs(found.fields.k_in_rad_um - expected).max() < 0.02 * RIG.k0
    demand(found, 5)


def test_many_saturated_frames_are_a_rejection(stack: HologramStack) -> None:
    verdict = judge_fringes(measure_fringes(spoilt(stack, saturated=range(21))), RECIPE)
    assert verdict.failed is not None
    assert verdict.failed.code == "saturated_fraction"


def test_no_light_at_all_is_an_error_with_a_name(stack: HologramStack) -> None:
    with pytest.raises(ReconstructionError, match="none of 21 frames"):
        retrieve_fields(replace(stack, holograms=np.full_like(stack.holograms, 9), reference=None), RECIPE)


def test_without_a_reference(stack: HologramStack) -> None:
    demand(result(replace(stack, reference=None)), 5)


def test_vectors_given(stack: HologramStack, plain: Result) -> None:
    found = result(replace(stack, illumination_rad_um=RIG.k_in()))
    np.testing.assert_array_equal(found.fields.k_in_rad_um, RIG.k_in())
    assert found.cell.dry_mass_pg == pytest.approx(plain.cell.dry_mass_pg, rel=0.01)
    assert found.verdict.accepted


WRONG_VECTORS = {
    "5 % too long": lambda k: 1.05 * k,
    "negated": lambda k: -k,
    "x and y swapped": lambda k: k[:, ::-1],
    "in another order": lambda k: np.roll(k, 1, axis=0),
}


@pytest.mark.parametrize("referenced", [True, False])
@pytest.mark.parametrize("change", [None, *WRONG_VECTORS])
def test_given_vectors_are_held_against_the_fringes(
    light: NDArray[np.complex128], change: str | None, referenced: bool
) -> None:
    """2,000 electrons, five frames of which one is lost: the poorest that is measured at all."""
    chosen = [0, 1, 6, 11, 16]
    made = exposed(light, replace(RIG, electrons=2000.0))
    assert made.reference is not None
    frames = made.holograms[chosen]
    frames[2] = 0
    k_in = RIG.k_in()[chosen]
    given = replace(
        made,
        holograms=frames,
        reference=made.reference[chosen] if referenced else None,
        illumination_rad_um=k_in if change is None else WRONG_VECTORS[change](k_in),
    )
    recipe = replace(RECIPE, quality=replace(RECIPE.quality, max_lost_frames=0.3))
    failed = judge_fields(retrieve_fields(given, recipe), recipe).failed
    assert (None if failed is None else failed.code) == (None if change is None else "illumination_misfit")


def test_true_vectors_pass_whatever_sideband_is_found(light: NDArray[np.complex128]) -> None:
    """A mirrored carrier: the conjugate is demodulated, and an empty field cannot say so."""
    rig = replace(RIG, carrier_cycles_um=(-5.0, 4.9))
    for seen in (light, np.ones_like(light)):
        fields = retrieve_fields(replace(exposed(seen, rig), illumination_rad_um=RIG.k_in()), RECIPE)
        assert fields.illumination_misfit is not None
        assert fields.illumination_misfit < 0.002
        assert fields.measured_rad_um is not None


def test_the_normal_frame_lost_true_vectors_pass(stack: HologramStack) -> None:
    for given in (spoilt(stack, lost=[0]), spoilt(stack, lost=[0], lost_reference=[0])):
        fields = retrieve_fields(replace(given, illumination_rad_um=RIG.k_in()), RECIPE)
        assert fields.illumination_misfit is not None
        assert fields.illumination_misfit < 0.005


@pytest.mark.parametrize("shape", [(511, 509), (480, 512)])
def test_odd_sizes(stack: HologramStack, shape: tuple[int, int]) -> None:
    assert stack.reference is not None
    ny, nx = shape
    found = result(replace(stack, holograms=stack.holograms[:, :ny, :nx], reference=stack.reference[:, :ny, :nx]))
    assert abs(found.fields.pixel_um - 0.1) < 0.001
    demand(found, 4)


def test_four_frames_are_enough_to_be_measured(stack: HologramStack) -> None:
    """The missing cone is then wide open: the number is rough, but it is one, and it says what it was made of."""
    assert stack.reference is not None
    chosen = [0, 1, 8, 14]
    found = result(replace(stack, holograms=stack.holograms[chosen], reference=stack.reference[chosen]))
    assert len(found.fields.kept) == 4
    assert abs(found.cell.dry_mass_half_contrast_pg / MASS_PG - 1) < 0.25


@pytest.mark.slow
def test_three_hundred_frames(stack: HologramStack) -> None:
    rig = replace(RIG, frames=300)
    found = result(exposed(mie.fields(SPHERE, rig), rig))
    demand(found, 4)


# --- sidebands ---------------------------------------------------------------------------------------


def carried(light: NDArray[np.complex128], carrier: tuple[float, float]) -> str | None:
    failed = judge_fringes(measure_fringes(exposed(light[:5], replace(RIG, carrier_cycles_um=carrier))), RECIPE).failed
    return None if failed is None else failed.code


def test_any_direction_of_the_carrier_is_found(light: NDArray[np.complex128]) -> None:
    for carrier in ((5.03, 4.96), (5.03, -4.96), (-5.0, 4.9), (4.9, 5.2)):
        made = exposed(light[:9], replace(RIG, carrier_cycles_um=carrier))
        (fx, fy), _ = measure_illumination(made.holograms, OPTICS, 0)
        sign = np.sign(fx * carrier[0])
        assert np.hypot(fx - sign * carrier[0], fy - sign * carrier[1]) < 0.01
        assert carried(light, carrier) is None


@pytest.mark.parametrize(
    ("carrier", "code"),
    [
        ((4.2, 4.1), "carrier_separation"),  # 2.6 NA/lambda
        ((6.5, 0.3), "carrier_separation"),  # 2.9
        ((7.0, 0.9), "sideband_separation"),  # its conjugate lies across Nyquist in x
        ((0.9, 7.6), "sideband_separation"),
        ((11.5, 11.6), "carrier_separation"),  # beyond Nyquist: the alias lies at (-4.5, -4.4)
        ((10.97, -11.04), None),  # beyond Nyquist too, but its alias at (-5.03, 4.96) is clear of everything: usable
    ],
)
def test_an_aliased_or_overlapping_sideband_is_a_named_rejection(
    light: NDArray[np.complex128], carrier: tuple[float, float], code: str | None
) -> None:
    assert carried(light, carrier) == code


def test_no_sideband_is_a_named_rejection(light: NDArray[np.complex128]) -> None:
    rng = np.random.default_rng(1)
    frames = rng.poisson(3000 * np.abs(light[:5, ::2, ::2]) ** 2).astype(np.uint16)
    failed = judge_fringes(measure_fringes(HologramStack(frames, None, None, 0, OPTICS)), RECIPE).failed
    assert failed is not None
    # Which of them speaks first depends on where in the noise the strongest peak lies.
    assert failed.code in ("fringe_contrast", "sideband_snr", "carrier_separation")


@pytest.mark.parametrize(
    ("step", "na", "code"),
    [(1, 0.65, None), (1, 1.2, "carrier_separation"), (3, 0.65, "any"), (4, 0.65, "any")],
    ids=["as measured", "too wide a pupil", "every third pixel", "every fourth pixel"],
)
@pytest.mark.parametrize("name", ["data", "bg_data"])
def test_the_measured_hl60_hologram_and_its_background(
    shared_data: Path, name: str, step: int, na: float, code: str | None
) -> None:
    """The sample states no pixel size: 0.0763 um makes its fringes 3.06 NA/lambda at NA 0.65. Thinned out, they alias."""
    with np.load(shared_data / "qpretrieve" / "hologram_cell.npz") as data:
        frames = np.stack([data[name][::step, ::step]] * 2)
    frames[1] += 1  # a second frame that is not the first once more
    stack = HologramStack(frames, None, None, 0, Optics(0.647, na, 1.335, 0.0763 * step))
    failed = judge_fringes(measure_fringes(stack), RECIPE).failed
    if code == "any":
        assert failed is not None
        assert failed.code in ("carrier_separation", "sideband_separation", "fringe_contrast", "sideband_snr")
    else:
        assert (None if failed is None else failed.code) == code
