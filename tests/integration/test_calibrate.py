"""`wbcd calibrate` against exact Mie beads with known aberrations and magnification errors, and the daemon's sense of drift."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import helpers_bead as bead
import helpers_mie as mie
import miepython
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wbcd.cli import cli
from wbcd.daemon.drift import DriftWatch
from wbcd.daemon.instruments import Instruments, calibration_path, load_calibration, store_calibration
from wbcd.errors import BadValue, MissingField, NoObject, ReconstructionError
from wbcd.recipe import Recipe
from wbcd.reconstruction import instrument
from wbcd.reconstruction.field import retrieve_fields
from wbcd.reconstruction.instrument import Calibration, calibrate, drift, judge_drift, measure_ring, zernike
from wbcd.reconstruction.mie import FarField, partial_waves
from wbcd.records import Acquisition, FieldStack, HologramStack, Measured, Optics, Verdict
from wbcd.simulation.cells import render, sample_phantom
from wbcd.simulation.files import write_acquisition
from wbcd.simulation.microscope import RENDER_UM, Microscope, Specimen

RECIPE = Recipe()
PIXEL = bead.RIG.pixel_um
OPTICS = Optics(0.532, 1.2, 1.337, PIXEL)
KNOWN = {"bead_um": 5.0, "bead_ri": 1.400}


@pytest.fixture(scope="module")
def plain() -> HologramStack:
    return bead.stack(bead.light())


@pytest.fixture(scope="module")
def calibrated(plain: HologramStack) -> tuple[Calibration, FieldStack]:
    return calibrate(plain, RECIPE, illumination_na=1.05, **KNOWN)


# --- the bead ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("radius", "ri"), [(0.5, 1.59), (2.5, 1.40), (5.0, 1.45)])
def test_partial_waves_conserve_energy_and_agree_with_the_tests_own(radius: float, ri: float) -> None:
    waves = partial_waves(radius, ri, 0.532, 1.337)
    np.testing.assert_allclose(np.abs(1 + 2 * waves), 1.0, atol=1e-9)
    theirs = mie.partial_waves(mie.Sphere((radius,), (ri,)), 2 * np.pi / 0.532, 1.337)
    n = min(len(waves), len(theirs))
    np.testing.assert_allclose(waves[:n], theirs[:n], atol=1e-9)


def test_forward_scattering_agrees_with_vector_mie() -> None:
    """Optical theorem: Q_ext = -4/x^2 sum (2l+1) Re R_l; polarisation changes it by little for a weak bead."""
    radius, ri = 2.5, 1.40
    waves = partial_waves(radius, ri, 0.532, 1.337)
    x = 2 * math.pi * 1.337 * radius / 0.532
    ours = -4 / x**2 * float(np.sum((2 * np.arange(len(waves)) + 1) * waves.real))
    theirs = miepython.efficiencies(ri, 2 * radius, 0.532, n_env=1.337)[0]
    assert ours == pytest.approx(theirs, rel=0.01)
    assert FarField(radius, ri, 0.532, 1.337)(np.array([1.0]))[0] == pytest.approx(
        complex(np.sum((2 * np.arange(len(waves)) + 1) * waves)), rel=1e-6
    )


def test_a_bead_that_cannot_be_is_named() -> None:
    with pytest.raises(BadValue, match="size parameter"):
        partial_waves(500.0, 1.4, 0.532, 1.337)


def test_zernike_polynomials_are_orthonormal_and_nolls() -> None:
    line = np.linspace(-1, 1, 401)
    x, y = (axis.ravel() for axis in np.meshgrid(line, line))
    inside = np.hypot(x, y) <= 1
    points = np.column_stack([x, y])[inside]
    x, y = points.T
    np.testing.assert_allclose(zernike(2, 2, points), bead.astigmatism(1)(x, y), atol=1e-12)
    np.testing.assert_allclose(zernike(3, 1, points), bead.coma(1)(x, y), atol=1e-12)
    np.testing.assert_allclose(zernike(4, 0, points), bead.spherical(1)(x, y), atol=1e-12)
    modes = np.array([zernike(n, m, points) for n in range(5) for m in range(-n, n + 1, 2)])
    np.testing.assert_allclose(modes @ modes.T / len(points), np.eye(len(modes)), atol=0.02)


def test_a_good_instrument(calibrated: tuple[Calibration, FieldStack]) -> None:
    found, _ = calibrated
    kx, ky = found.carrier_rad_um
    assert (kx, ky) == pytest.approx([2 * math.pi * f for f in bead.RIG.carrier_cycles_um], abs=0.01)
    assert found.ring.radius_na == pytest.approx(1.05, rel=0.001)
    assert np.hypot(*found.ring.centre_na) < 0.001
    assert found.ring.roundness < 0.001
    assert (found.ring.gaps_deg, found.ring.repeated) == ((), ())
    assert found.pixel_size_from_ring_um == pytest.approx(PIXEL, rel=0.001)
    assert found.bead is not None
    assert found.bead.pixel_size_um == pytest.approx(PIXEL, rel=0.001)
    assert found.bead.zernike_rms_rad < 0.01
    z, y, x = found.bead.place_um
    centre = bead.RIG.size // 2 * PIXEL
    assert (x - centre, y - centre, z) == pytest.approx(bead.BEAD.centre_um, abs=0.02)
    assert found.bead.residual < 0.05


@pytest.mark.parametrize(
    ("name", "pupil", "rad"),
    [("astigmatism_0", bead.astigmatism, 0.3), ("coma_x", bead.coma, -0.2), ("spherical", bead.spherical, 0.15)],
)
def test_a_known_aberration_is_found_within_a_tenth(name: str, pupil: object, rad: float) -> None:
    found, _ = calibrate(bead.stack(bead.light(pupil(rad))), RECIPE, **KNOWN)  # type: ignore[operator]
    assert found.bead is not None
    assert found.bead.zernike_rad[name] == pytest.approx(rad, rel=0.1)
    others = [value for other, value in found.bead.zernike_rad.items() if other != name]
    assert max(map(abs, others)) < 0.02


@pytest.mark.parametrize("error", [-0.01, 0.01])
def test_a_magnification_error_of_a_percent_is_found(plain: HologramStack, error: float) -> None:
    """The file states pixels that are wrong by 1 %: bead and circle both say so, within 0.2 %."""
    wrong = replace(plain, optics=replace(plain.optics, pixel_size_um=PIXEL * (1 + error)))
    found, _ = calibrate(wrong, RECIPE, illumination_na=1.05, **KNOWN)
    assert found.bead is not None
    assert found.bead.pixel_size_um == pytest.approx(PIXEL, rel=0.002)
    assert found.pixel_size_from_ring_um == pytest.approx(PIXEL, rel=0.002)


@pytest.mark.parametrize("error", [-0.03, 0.0, 0.01])
def test_the_rim_of_the_pupil_tells_pixel_size_and_the_lights_na(plain: HologramStack, error: float) -> None:
    """Nothing but the objective's NA and the wavelength is believed: neither bead nor vectors nor the light's NA is given."""
    wrong = replace(plain, optics=replace(plain.optics, pixel_size_um=PIXEL * (1 + error)))
    found, _ = calibrate(wrong, RECIPE)
    assert found.pixel_size_from_rim_um == pytest.approx(PIXEL, rel=0.005)
    assert found.illumination_na == pytest.approx(1.05, rel=0.005)
    assert Calibration.from_json(json.loads(json.dumps(found.as_json()))).rim_na == found.rim_na


def test_an_empty_field_shows_no_rim(plain: HologramStack) -> None:
    """Without anything that scatters there is only camera noise at the rim: no pixel size is made of it."""
    assert plain.reference is not None
    found, _ = calibrate(replace(plain, holograms=plain.reference, reference=None), RECIPE)
    assert (found.rim_na, found.pixel_size_from_rim_um, found.illumination_na) == (None, None, None)


def test_vectors_in_the_file_tell_the_pixel_size_too(plain: HologramStack) -> None:
    wrong = replace(plain, illumination_rad_um=bead.RIG.k_in(), optics=replace(plain.optics, pixel_size_um=PIXEL * 1.01))
    found, _ = calibrate(wrong, RECIPE)
    assert found.pixel_size_from_ring_um == pytest.approx(PIXEL, rel=0.002)
    assert found.bead is None


def test_a_wrong_bead_leaves_much_unexplained(plain: HologramStack, calibrated: tuple[Calibration, FieldStack]) -> None:
    assert calibrated[0].bead is not None
    found, _ = calibrate(plain, RECIPE, bead_um=4.0, bead_ri=1.400)
    assert found.bead is not None
    assert found.bead.residual > 5 * calibrated[0].bead.residual
    assert calibrated[0].bead.explained
    assert not found.bead.explained


def test_a_bead_without_a_reference_is_refused(plain: HologramStack) -> None:
    with pytest.raises(MissingField, match="no sample-free frames"):
        calibrate(replace(plain, reference=None), RECIPE, **KNOWN)
    found, _ = calibrate(replace(plain, reference=None), RECIPE, illumination_na=1.05)
    assert found.pixel_size_from_ring_um == pytest.approx(PIXEL, rel=0.005)


def simulated_cell(kind: str) -> HologramStack:
    rng = np.random.default_rng(5)
    phantom = sample_phantom(kind, rng, medium_ri=1.337)
    side = 2 * math.ceil((phantom.radius_um * 1.6 + 1) / RENDER_UM[0])
    specimen = Specimen(render(phantom, RENDER_UM, (side, side, side)), RENDER_UM, (0.3, 0.5, -0.5))
    return Microscope(11, frames=13).acquire([specimen], rng)


def test_a_cell_is_no_bead_and_the_fit_soon_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 steps of the fit took a minute on such a cell; its evaluations are counted, for a clock depends on the machine."""
    asked = []
    model = instrument._BeadModel._model
    monkeypatch.setattr(instrument._BeadModel, "_model", lambda *args: asked.append(1) or model(*args))
    found, _ = calibrate(simulated_cell("b_lymphocyte"), RECIPE, **KNOWN)
    assert found.bead is not None
    assert not found.bead.explained
    assert len(asked) <= 400


def test_no_bead_no_fringes_no_contrast(plain: HologramStack) -> None:
    assert plain.reference is not None
    empty = replace(plain, holograms=plain.reference[:, ::-1, ::-1][:, ::-1, ::-1] // 2 + plain.holograms[:1].min())
    with pytest.raises(NoObject, match="No bead"):
        calibrate(empty, RECIPE, **KNOWN)
    with pytest.raises(BadValue, match="invisible"):
        calibrate(plain, RECIPE, bead_um=5.0, bead_ri=1.337)
    with pytest.raises(BadValue, match="both or neither"):
        calibrate(plain, RECIPE, bead_um=5.0)
    noise = np.random.default_rng(0).integers(90, 110, plain.holograms.shape).astype(np.uint8)
    with pytest.raises(ReconstructionError, match="no fringes"):
        calibrate(replace(plain, holograms=noise, reference=None), RECIPE)


# --- the circle --------------------------------------------------------------------------------------


def circle(frames: int = 24, na: float = 1.05, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    angle = 2 * np.pi * np.arange(frames) / frames + 0.1
    ring = np.column_stack([na * np.cos(angle) + centre[0], na * np.sin(angle) + centre[1]])
    return np.concatenate([[[0.0, 0.0]], ring]) * 2 * np.pi / 0.532


def test_centre_radius_gaps_and_repeats_of_the_circle() -> None:
    k = circle(centre=(0.02, -0.01))
    k[9] = k[8]
    ring = measure_ring(np.delete(k, [15], 0), 0, OPTICS)
    assert ring.centre_na == pytest.approx((0.02, -0.01), abs=1e-6)
    assert ring.radius_na == pytest.approx(1.05)
    assert len(ring.gaps_deg) == 2  # where 15 is missing, and where 9 should have been
    assert ring.repeated in ((8,), (9,))
    assert math.isnan(ring.angles_deg[0])
    with pytest.raises(ReconstructionError, match="2 tilted frames"):
        measure_ring(circle(2), 0, OPTICS)


def test_an_ellipse_is_not_round() -> None:
    ring = measure_ring(circle() * (1.0, 1.05), 0, OPTICS)
    assert 0.01 < ring.roundness < 0.03


# --- storing and drift -------------------------------------------------------------------------------


def test_what_is_stored_comes_back(calibrated: tuple[Calibration, FieldStack], tmp_path: Path) -> None:
    found, _ = calibrated
    path = store_calibration(calibration_path(tmp_path, "rig/../1"), found, {"source": "bead.h5"})
    assert path.parent == tmp_path / "calibration"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    back = load_calibration(path)
    assert back is not None
    assert json.dumps(back.as_json()) == json.dumps(found.as_json())
    assert load_calibration(tmp_path / "absent.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"calibration": 3}', '{"calibration": {"ring": {}}}', "[" * 100_000])
def test_a_broken_calibration_is_named_and_judges_nothing(
    text: str, tmp_path: Path, calibrated: tuple[Calibration, FieldStack]
) -> None:
    path = calibration_path(tmp_path, None)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(BadValue):
        load_calibration(path)
    fields = calibrated[1]
    assert Instruments(tmp_path).judge(ticket(None), fields.fringes, fields, RECIPE) == Verdict()


def ticket(instrument: str | None) -> Acquisition:
    return Acquisition("0" * 40, Path("a.h5"), 1, 1, instrument_id=instrument)


def test_drift_is_told_once_and_refused_only_far_off(
    calibrated: tuple[Calibration, FieldStack], plain: HologramStack, tmp_path: Path
) -> None:
    found, fields = calibrated
    store_calibration(calibration_path(tmp_path, "rig"), found, {})
    instruments, watch = Instruments(tmp_path), DriftWatch()

    def judged(carrier_cycles_um: tuple[float, float]) -> Measured:
        fringes = replace(fields.fringes, carrier_rad_um=tuple(2 * math.pi * f for f in carrier_cycles_um))
        return Measured(ticket("rig"), instruments.judge(ticket("rig"), fringes, fields, RECIPE), ())

    fx, fy = bead.RIG.carrier_cycles_um
    same, conjugate, moved, far = judged((fx, fy)), judged((-fx, -fy)), judged((fx + 0.1, fy)), judged((fx + 1.0, fy))
    assert same.verdict.checks[0].value < 0.2
    assert conjugate.verdict.checks[0].value < 0.2
    assert 1 < moved.verdict.checks[0].value < 5
    assert moved.verdict.accepted
    assert far.verdict.failed is not None
    assert far.verdict.failed.code == "instrument_drift"
    told = [watch.message(outcome) for outcome in (same, moved, moved, same, same)]
    assert [message is not None for message in told] == [False, True, False, True, False]
    assert "rig departs from its calibration" in str(told[1])
    assert instruments.judge(ticket("another"), fields.fringes, fields, RECIPE) == Verdict()


def test_contrast_lost_and_a_changed_circle_drift(calibrated: tuple[Calibration, FieldStack]) -> None:
    found, fields = calibrated
    faded = drift(found, replace(fields.fringes, contrast=fields.fringes.contrast * 0.7), fields)
    assert faded["contrast"] == pytest.approx(1.5, rel=0.02)
    narrower = drift(found, fields.fringes, replace(fields, measured_rad_um=fields.k_in_rad_um * 0.98))
    assert narrower["ring_radius"] == pytest.approx(2.0, rel=0.02)
    assert judge_drift(narrower, RECIPE).accepted


def test_a_moved_circle_is_seen_through_the_vectors_that_the_file_still_states(
    calibrated: tuple[Calibration, FieldStack], tmp_path: Path
) -> None:
    """The scanner lost 4 % of its swing; the file goes on stating the old vectors."""
    found, _ = calibrated
    rig = replace(bead.RIG, illumination_na=1.05 * 0.96)
    stale = replace(bead.stack(bead.light(rig=rig), rig=rig), illumination_rad_um=bead.RIG.k_in())
    fields = retrieve_fields(stale, RECIPE)
    np.testing.assert_array_equal(fields.k_in_rad_um, bead.RIG.k_in())
    assert drift(found, fields.fringes, fields)["ring_radius"] == pytest.approx(4.0, rel=0.03)


def test_few_frames_have_no_circle_and_lost_ones_no_contrast(
    calibrated: tuple[Calibration, FieldStack], plain: HologramStack
) -> None:
    """A stored calibration must not turn a scan of few frames into an error: the verdict judges those."""
    found, _ = calibrated
    assert plain.reference is not None
    chosen = [0, 1, 7]
    few = retrieve_fields(replace(plain, holograms=plain.holograms[chosen], reference=plain.reference[chosen]), RECIPE)
    assert set(drift(found, few.fringes, few)) == {"carrier", "contrast"}
    dark = plain.holograms.copy()
    dark[3:] = 0
    mostly = retrieve_fields(replace(plain, holograms=dark), RECIPE)
    assert len(mostly.kept) == 3
    assert drift(found, mostly.fringes, mostly)["contrast"] < 0.2


def test_two_beads_tell_scale_and_aberration(calibrated: tuple[Calibration, FieldStack]) -> None:
    found, fields = calibrated
    assert found.bead is not None
    later = replace(
        found.bead,
        pixel_size_um=found.bead.pixel_size_um * 1.01,
        zernike_rad={**found.bead.zernike_rad, "coma_x": found.bead.zernike_rad["coma_x"] + 0.4},
    )
    told = drift(found, fields.fringes, fields, later)
    assert told["bead_pixel_size"] == pytest.approx(2.0)
    assert told["aberration"] == pytest.approx(2.0)
    assert "aberration" not in drift(replace(found, bead=None), fields.fringes, fields, later)
    assert "aberration" not in drift(found, fields.fringes, fields)


# --- the verb ----------------------------------------------------------------------------------------


def test_the_verb_stores_prints_and_draws(plain: HologramStack, tmp_path: Path) -> None:
    path = write_acquisition(
        tmp_path / "bead.h5",
        plain,
        acquisition_id="B-1",
        acquired_at="2026-11-22T20:00:00+00:00",
        sample_id="bead",
        instrument_id="rig 7",
    )
    options = ["calibrate", str(path), "--bead-um", "5", "--bead-ri", "1.40", "--output-dir", str(tmp_path / "out")]
    first = CliRunner().invoke(cli, [*options, "--store", "--illumination-na", "1.05"], catch_exceptions=False)
    assert first.exit_code == 0, first.output
    for words in ("carrier", "fringe contrast", "illumination", "pixel, from bead", "aberration", "written:"):
        assert words in first.output
    (stored,) = (tmp_path / "out" / "calibration").glob("rig_7-*.json")  # a name with a space has a digest beside it
    assert load_calibration(stored) is not None
    with Image.open(stored.with_suffix(".png")) as picture:
        assert min(picture.size) > 600
    second = CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False)
    answer = json.loads(second.output)
    assert answer["bead"]["pixel_size_um"] == pytest.approx(PIXEL, rel=0.002)
    assert {"ring_radius", "bead_pixel_size", "aberration"} <= set(answer["instrument_drift"])
    assert max(answer["instrument_drift"].values()) < 0.2
    assert answer["stored"] is None


def written(folder: Path, stack: HologramStack) -> Path:
    return write_acquisition(
        folder / "a.h5",
        stack,
        acquisition_id="B-1",
        acquired_at="2026-11-22T20:00:00+00:00",
        sample_id="bead",
        instrument_id="rig",
    )


def test_what_the_verb_refuses_it_names(plain: HologramStack, tmp_path: Path) -> None:
    path = written(tmp_path, plain)
    known = ["--bead-um", "4", "--bead-ri", "1.40"]

    def refused(*options: str, file: Path = path) -> tuple[int, str]:
        answer = CliRunner().invoke(cli, ["calibrate", str(file), "--output-dir", str(tmp_path / "out"), *options])
        assert isinstance(answer.exception, SystemExit), answer.exception
        return answer.exit_code, answer.output

    code, said = refused("--plot", "/proc/x.png")
    assert code == 69
    assert "/proc/x.png cannot be written" in said
    code, said = refused("--bead-um", "5", "--bead-ri", "1.337")
    assert code == 2
    assert "invisible" in said
    assert "configuration" not in said
    code, said = refused(*known, "--store")
    assert code == 70
    assert "unexplained" in said
    assert "nothing was stored" in said
    assert not (tmp_path / "out" / "calibration").exists()
    code, said = refused(file=tmp_path)
    assert code == 70
    assert "Name one acquisition file" in said
    assert "watch folder" not in said


def test_wrong_usage_of_the_verb(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"x")
    assert CliRunner().invoke(cli, ["calibrate", str(tmp_path / "a.h5"), "--bead-um", "5"]).exit_code == 2
    assert CliRunner().invoke(cli, ["calibrate", str(tmp_path / "absent.h5")]).exit_code == 2
