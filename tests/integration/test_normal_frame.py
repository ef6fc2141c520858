"""Which frame is lit along the axis, through `wbcd process`: found, verified or refused; mass as of the rightly framed session.

One exact sphere, scattered once for each circle of light; the layouts differ in the order of the frames and in what they state.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import helpers_mie as mie
import numpy as np
import pytest
from helpers_spheres import tiny_bundle
from numpy.typing import NDArray

from wbcd.records import HologramStack, Optics
from wbcd.simulation.files import write_acquisition, write_mat, write_tiff_pair

STEPS = 30
SPHERE = mie.Sphere((3.6,), (1.370,), (0.8, -0.5, 0.7))
ALL = list(range(STEPS + 1))
CIRCLE = ALL[1:]
AT_48 = [*CIRCLE, *CIRCLE[:18], 0, *CIRCLE[18:24]]
"""The circle once, and most of it again: such scans have the normal frame 49th."""


@dataclass(frozen=True)
class Scan(mie.Rig):
    """The rig with its frames in another order: ``order`` indexes the normal frame (0) and the circle (1 ...)."""

    order: tuple[int, ...] = tuple(ALL)

    def k_in(self) -> NDArray[np.float64]:
        return super().k_in()[list(self.order)]


def optics(rig: mie.Rig) -> Optics:
    return Optics(rig.wavelength_um, rig.objective_na, rig.medium_ri, rig.pixel_um)


class Session:
    """Stacks of one sphere under one circle of light."""

    def __init__(self, illumination_na: float) -> None:
        self.rig = Scan(size=256, frames=STEPS + 1, illumination_na=illumination_na)
        self.light = mie.fields(SPHERE, self.rig)

    def stack(
        self, order: list[int], stated: int | None, *, reference: bool = True, vectors: bool = False, **rig: Any
    ) -> HologramStack:
        scan = replace(self.rig, order=tuple(order), **rig)
        rng = np.random.default_rng(5)
        w = self.light[order]
        return HologramStack(
            mie.holograms(w, scan, rng),
            mie.holograms(np.ones_like(w), scan, rng) if reference else None,
            scan.k_in() if vectors else None,
            stated,
            optics(scan),
        )


def write_h5(path: Path, stack: HologramStack) -> Path:
    """As the simulator writes it; without the attribute where the stack states no normal frame."""
    import h5py

    written = replace(stack, normal_frame=0 if stack.normal_frame is None else stack.normal_frame)
    made = write_acquisition(
        path, written, acquisition_id=path.stem, acquired_at="2026-01-01T08:00:00+00:00", sample_id="s", instrument_id="rig"
    )
    if stack.normal_frame is None:
        with h5py.File(made, "r+") as file:
            del file.attrs["normal_frame"], file.attrs["seal"]
    return made


def write_session(folder: Path, stack: HologramStack, **notes: Any) -> Path:
    """A MATLAB session of its own folder."""
    assert stack.reference is not None
    write_mat(folder / "bg001_Tomog.mat", stack.reference, stack.optics)
    (folder / "session.json").write_text(json.dumps(notes))
    return write_mat(folder / f"{folder.name}_Tomog.mat", stack.holograms, stack.optics)


@dataclass
class Processed:
    """Outcomes by the file's stem, and the stored checks by the same."""

    outcomes: dict[str, dict[str, Any]]
    checks: dict[str, dict[str, dict[str, Any]]]

    def cell(self, name: str) -> dict[str, Any]:
        made = self.outcomes[name]
        assert made["outcome"] == "measured", made
        (cell,) = made["cells"]
        return dict(cell)


def process(files: list[Path], folder: Path) -> Processed:
    options = ["--model", tiny_bundle(folder / "bundle"), "--db", f"sqlite:///{folder}/wbcd.db", "--output-dir", folder / "out"]
    command = [sys.executable, "-m", "wbcd.cli", "process", "--json", *map(str, [*files, *options])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    made = {Path(one["path"]).name: one for one in map(json.loads, done.stdout.splitlines())}
    with sqlite3.connect(folder / "wbcd.db") as database:
        rows = database.execute(
            "select acquisition.path, run.checks from run join acquisition on run.acquisition_id = acquisition.id"
        ).fetchall()
    checks = {Path(path).name: {check["code"]: check for check in json.loads(text)} for path, text in rows}
    return Processed(made, checks)


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Processed:
    """An illumination NA of 0.5, where a wrong axis was 10 to 17 % of the mass and passed every check."""
    folder = tmp_path_factory.mktemp("low")
    session = Session(0.5)
    moved = [*CIRCLE[:17], 0, *CIRCLE[17:]]
    circle = session.stack(CIRCLE, None)
    silent = replace(session.stack(moved, 17), reference=None)
    files = [
        write_h5(folder / "framed.h5", session.stack(ALL, 0)),
        write_session(folder / "first", session.stack(ALL, None)),
        write_session(folder / "seventeenth", session.stack(moved, None)),
        write_session(folder / "last", session.stack([*CIRCLE, 0], None)),
        write_session(folder / "at48", session.stack(AT_48, None)),
        write_session(folder / "circle", circle),
        write_session(
            folder / "noted", session.stack(moved, None, carrier_cycles_um=(5.1, 4.9)), normal_frame=17, medium_ri=1.337
        ),
        write_session(folder / "few", session.stack(CIRCLE[::8], None)),
        write_session(folder / "tilted", session.stack(CIRCLE, None, carrier_cycles_um=(4.7, 5.35))),
        write_h5(folder / "silent.h5", replace(silent, normal_frame=None)),
        write_h5(folder / "wrong.h5", session.stack(moved, 0)),
        write_h5(folder / "wrong_vectors.h5", session.stack(moved, 0, vectors=True)),
        write_h5(folder / "none.h5", session.stack(CIRCLE, 3)),
        write_h5(folder / "bare.h5", session.stack(CIRCLE, None, reference=False)),
        write_tiff_pair(folder, "tiff", circle),
    ]
    notes = json.loads((folder / "tiff.json").read_text())
    del notes["normal_frame"]
    (folder / "tiff.json").write_text(json.dumps(notes))
    return process(files, folder)


def demand_mass_of(processed: Processed, name: str, framed: str = "framed.h5") -> None:
    found, right = processed.cell(name), processed.cell(framed)
    assert found["dry_mass_pg"] == pytest.approx(right["dry_mass_pg"], rel=0.05)
    assert found["volume_fl"] == pytest.approx(right["volume_fl"], rel=0.05)


@pytest.mark.parametrize(
    "name",
    [
        "first_Tomog.mat",
        "seventeenth_Tomog.mat",
        "last_Tomog.mat",
        "at48_Tomog.mat",
        "circle_Tomog.mat",
        "noted_Tomog.mat",
        "tilted_Tomog.mat",
        "silent.h5",
        "wrong.h5",
        "wrong_vectors.h5",
        "none.h5",
        "bare.h5",
        "tiff_sp.tif",
    ],
)
def test_the_mass_is_that_of_the_rightly_framed_session(low: Processed, name: str) -> None:
    demand_mass_of(low, name)


def test_a_frame_that_the_fringes_contradict_is_flagged(low: Processed) -> None:
    for name in ("wrong.h5", "wrong_vectors.h5", "none.h5"):
        assert "normal_frame_moved" in low.cell(name)["flags"], name
        assert low.checks[name]["normal_frame_moved"]["value"] == 1
    for name in ("framed.h5", "noted_Tomog.mat", "first_Tomog.mat", "seventeenth_Tomog.mat", "silent.h5"):
        assert "normal_frame_moved" not in low.cell(name)["flags"], name


def test_a_circle_without_a_normal_frame_says_so(low: Processed) -> None:
    for name in ("circle_Tomog.mat", "tilted_Tomog.mat", "none.h5", "tiff_sp.tif"):
        assert "no_normal_frame" in low.cell(name)["flags"], name
        assert 0 < low.checks[name]["normal_frame"]["value"] < 0.01
    assert "no_normal_frame" not in low.cell("seventeenth_Tomog.mat")["flags"]
    assert low.checks["framed.h5"]["normal_frame"]["value"] == 0


def test_too_few_directions_are_refused_by_name(low: Processed) -> None:
    """Four frames of a circle, none of them normal: any four points lie nearly on one. Contrast is not to blame."""
    made = low.outcomes["few_Tomog.mat"]
    assert (made["outcome"], made["reason"]) == ("rejected", "normal_frame")


def test_a_medium_that_holograms_cannot_show_is_told_of(low: Processed) -> None:
    assert "medium_assumed" in low.cell("first_Tomog.mat")["flags"]
    for name in ("framed.h5", "noted_Tomog.mat", "tiff_sp.tif"):
        assert "medium_assumed" not in low.cell(name)["flags"], name


def test_at_a_high_illumination_na(tmp_path: Path) -> None:
    """There the far side of the circle lay outside the pupil about a wrong carrier, and the refusal blamed contrast."""
    session = Session(1.0)
    files = [
        write_h5(tmp_path / "framed.h5", session.stack(ALL, 0)),
        write_session(tmp_path / "seventeenth", session.stack([*CIRCLE[:17], 0, *CIRCLE[17:]], None)),
        write_session(tmp_path / "circle", session.stack(CIRCLE, None)),
    ]
    made = process(files, tmp_path)
    for name in ("seventeenth_Tomog.mat", "circle_Tomog.mat"):
        demand_mass_of(made, name)
