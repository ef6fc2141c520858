"""The simulated instrument: its frames, its files, and that its cells come back through the reconstruction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from wbcd.acquisition import ReadDefaults, identify, read
from wbcd.errors import BadValue
from wbcd.recipe import Recipe
from wbcd.reconstruction import reconstruct, retrieve_fields
from wbcd.simulation.cells import canonical_shape, measure_truth, render, sample_phantom
from wbcd.simulation.microscope import Camera, Exposure, Microscope, Order, Progress, Specimen, plan, simulate

VOXEL = (0.1, 0.1, 0.1)


@pytest.fixture(scope="module")
def microscope() -> Microscope:
    return Microscope(7)


def quick(out: Path, cells: int, **options: object) -> Iterator[Progress]:
    """Empty fields are the quickest files to make: two in eleven of these."""
    return simulate(out, cells, 3, mix={"b_lymphocyte": 1.0}, **options)  # type: ignore[arg-type]


def test_fringes_lie_where_the_alignment_says(microscope: Microscope) -> None:
    frames = microscope.reference
    assert frames.dtype == np.uint8
    assert frames.shape == (49, 512, 512)
    for i in (0, 5, 30):
        spectrum = np.abs(np.fft.fft2(frames[i] - frames[i].mean()))
        fx, fy = (np.fft.fftfreq(512, 0.0625)[None, :], np.fft.fftfreq(512, 0.0625)[:, None])
        spectrum[(fx < 0) | (np.hypot(fx, fy) < 3)] = 0
        row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
        expected = np.asarray(microscope.carrier_cycles_um) + microscope.k_in_rad_um[i] / (2 * np.pi)
        assert fx[0, column] == pytest.approx(expected[0], abs=0.04)
        assert (fy[row, 0] - expected[1] + 8) % 16 - 8 == pytest.approx(0, abs=0.04)
    assert np.hypot(*microscope.carrier_cycles_um) > 3 * 1.2 / 0.532


def test_noise_is_shot_noise_of_the_stated_well() -> None:
    camera = Camera(bits=12, full_well=10_000.0, read_noise=0.0)
    microscope = Microscope(7, camera=camera, frames=3)
    still = Exposure(np.zeros(3), np.zeros((3, 2)), np.ones(3))
    first, second = (microscope.expose(None, still, np.random.default_rng(i)).astype(float) for i in (1, 2))
    assert first.max() <= 4095
    electrons = (first + second) / 2 * 10_000 / 4095
    bright = electrons > 500
    difference = (first - second)[bright] * 10_000 / 4095
    assert np.var(difference / np.sqrt(2 * electrons[bright])) == pytest.approx(1.0, rel=0.02)


def test_a_cell_comes_back_through_the_reconstruction(microscope: Microscope) -> None:
    phantom = sample_phantom("t_lymphocyte", np.random.default_rng(5))
    ri = render(phantom, VOXEL, canonical_shape(phantom, VOXEL))
    truth = measure_truth(phantom, ri, VOXEL)
    stack = microscope.acquire([Specimen(ri, VOXEL, (0.9, -1.1, 1.6))], np.random.default_rng(1))
    recipe = Recipe()
    (tomogram,) = reconstruct(retrieve_fields(stack, recipe), recipe)
    assert tomogram.report is not None
    assert tomogram.report.focus_um == pytest.approx(0.9, abs=0.3)
    mask = tomogram.ri > 1.35
    voxel = float(np.prod(tomogram.voxel_um))
    assert mask.sum() * voxel == pytest.approx(truth.volume_fl, rel=0.12)
    assert float((tomogram.ri[mask] - 1.337).sum()) * voxel / 0.2 == pytest.approx(truth.dry_mass_pg, rel=0.10)
    place = np.array(
        [o + (s // 2) * v for o, s, v in zip(tomogram.origin_um, tomogram.ri.shape, tomogram.voxel_um, strict=True)]
    )
    assert place[1:] == pytest.approx([16 - 1.1, 16 + 1.6], abs=0.5)


def test_files_do_not_depend_on_the_length_of_the_run_and_are_not_made_twice(tmp_path: Path) -> None:
    short, long = tmp_path / "a" / "watch", tmp_path / "b" / "watch"
    (first,) = quick(short, 1)
    pair = list(quick(long, 2))
    assert pair[0].path.name == first.path.name
    assert pair[0].path.read_bytes() == first.path.read_bytes()
    assert pair[0].path.read_bytes() != pair[1].path.read_bytes()
    references = [next(folder.glob("*.wbcdref")).read_bytes() for folder in (short, long)]
    assert references[0] == references[1]

    before = first.path.stat().st_mtime_ns
    again = list(quick(short, 2))
    assert [p.resumed for p in again] == [True, False]
    assert first.path.stat().st_mtime_ns == before
    assert again[1].path.read_bytes() == pair[1].path.read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a" / "watch.truth.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert lines[0]["label"] == "b_lymphocyte"
    assert lines[0]["cells"][0]["volume_fl"] > 30
    # Nothing but acquisitions and the shared reference lies in the watched folder.
    assert {p.suffix for p in short.iterdir()} == {".h5", ".wbcdref"}
    with h5py.File(first.path) as file:
        assert file.attrs["complete"]
        assert file.attrs["acquired_at"] == "2024-01-04T08:00:00+00:00"
        assert file["holograms"].shape == (49, 512, 512)
        assert "reference" not in file


def test_the_rate_is_kept_on_the_given_clock(tmp_path: Path) -> None:
    now = [0.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    # Files 5 and 6 of a round of defects are an empty field and debris: quick to make.
    run = simulate(tmp_path / "w", 2, 3, rate=0.5, defects=1.0, start=5, clock=lambda: now[0], sleep=sleep)
    assert [progress.truth["defect"] for progress in run] == ["empty", "debris"]
    assert waits == [0.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"defects": 1.5}, "defects is 1.5"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"format": "czi"}, "format is 'czi'"),
        ({"mix": {"platelet": 1.0}}, "mix is {'platelet': 1.0}"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        simulate(tmp_path / "w", 1, 0, **options)  # type: ignore[arg-type]


def test_truth_never_lies_in_the_watched_folder(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="it must lie outside the watched folder"):
        simulate(tmp_path / "w", 1, 0, truth=tmp_path / "w" / "truth.jsonl")


def test_the_mix_is_kept() -> None:
    order = Order(1, mix={"b_lymphocyte": 3.0, "monocyte": 1.0})
    kinds = [plan(order, i, np.random.default_rng([1, i])).phantoms[0][0].kind for i in range(400)]
    assert kinds.count("b_lymphocyte") / 400 == pytest.approx(0.75, abs=0.06)
    assert set(kinds) == {"b_lymphocyte", "monocyte"}


@pytest.mark.parametrize("sample", ["donor 7", "donor-2024"])
def test_a_simulated_tcf_is_read_with_the_sample_it_was_made_for(tmp_path: Path, sample: str) -> None:
    (made,) = simulate(tmp_path / "w", 1, 5, format="tcf", sample=sample, start=1234)
    ticket, _ = read(identify(made.path), defaults=ReadDefaults(sample_id="another"))
    assert ticket.sample_id == sample


def test_volumes_in_the_vendors_format(tmp_path: Path) -> None:
    made = list(simulate(tmp_path / "w", 2, 5, format="tcf", defects=0.5, mix={"t_lymphocyte": 1.0}))
    assert [p.path.suffix for p in made] == [".TCF", ".TCF"]
    assert [p.truth["defect"] for p in made] == [None, "border"]
    (cell,) = made[0].truth["cells"]
    with h5py.File(made[0].path) as file:
        ri = file["Data/3D/000000"][:] / 1e4
    assert ri.shape == (100, 150, 150)
    mask = ri > 1.35
    assert mask.sum() * 0.002 == pytest.approx(cell["volume_fl"], rel=0.12)
    assert (ri[mask] - 1.337).sum() * 0.002 / 0.2 == pytest.approx(cell["dry_mass_pg"], rel=0.12)
