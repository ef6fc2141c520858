"""RI volumes in the files of other programs through `wbcd process --json` and through the daemon: the right volume and mass.

The truth is an ellipsoid of 210.8 fL at RI 1.372 in 1.337: 36.9 pg at 0.2 ml/g.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers_ri import (
    DRY_MASS_PG,
    MEDIUM,
    VOLUME_FL,
    VOXEL_UM,
    bioformats2raw,
    cell_volume,
    described_tiff,
    imagej_tiff,
    leaving_out,
    multiscales,
    ome_tiff,
    ome_xml,
    packed,
    pixels_xml,
    write_notes,
    x10000,
    zarr_image,
)
from helpers_spheres import tiny_bundle

RI = cell_volume()
FILL = float(np.float32(MEDIUM))
SPARSE = {"chunks": (12, 28, 30), **leaving_out(FILL)}


def noted_tiff(path: Path) -> Path:
    """A stack without any description, its pitch in notes."""
    tifffile.imwrite(path, x10000(RI), metadata=None)
    write_notes(path.with_suffix(".json"), voxel_um=VOXEL_UM, medium_ri=MEDIUM)
    return path


def stitched(ri: np.ndarray, fill: float) -> np.ndarray:
    """Two corners of the field were not measured."""
    made = ri.copy()
    made[:, :28, :30] = made[:, 84:, 90:] = fill
    return made


MAKERS: dict[str, Callable[[Path], Path]] = {
    "x.001.Group1.A1.TP01_HT3D_0.00.TIFF": lambda p: imagej_tiff(p, x10000(RI)),
    "cm_HT3D_0.00.TIFF": lambda p: imagej_tiff(p, x10000(RI), resolution=(1e4 / 0.16, 1e4 / 0.16), resolutionunit=3),
    "Tomogram_Field_sample001.tif": noted_tiff,
    "float.ome.tif": lambda p: ome_tiff(p, RI),
    "nm.ome.tif": lambda p: described_tiff(
        p,
        x10000(RI),
        ome_xml(
            pixels_xml(
                RI.shape,
                **{f"PhysicalSize{axis}": size * 1000 for axis, size in zip("ZYX", VOXEL_UM, strict=True)},
                **{f"PhysicalSize{axis}Unit": "nm" for axis in "ZYX"},
            )
        ),
    ),
    "tiled.tif": lambda p: ome_tiff(p, RI, tile=(64, 64), compression="zlib", bigtiff=True),
    "bf2raw.zarr": lambda p: bioformats2raw(p, [RI]),
    "bf2raw5.zarr": lambda p: bioformats2raw(p, [RI], version="0.5"),
    "um.zarr": lambda p: zarr_image(p, RI, multiscales(unit="um")),
    "metre.zarr": lambda p: zarr_image(p, RI, multiscales(unit="meter", scale=tuple(s * 1e-6 for s in VOXEL_UM))),
    "angstrom.zarr": lambda p: zarr_image(p, RI, multiscales(unit="angstrom", scale=tuple(s * 1e4 for s in VOXEL_UM))),
    "sparse.zarr": lambda p: zarr_image(p, RI, **SPARSE),
    "sparse4.zarr": lambda p: zarr_image(p, RI, version="0.4", **SPARSE),
    "outside0.zarr": lambda p: zarr_image(p, stitched(RI, 0), chunks=(12, 28, 30), **leaving_out(0.0)),
    "outside_nan.zarr": lambda p: zarr_image(p, stitched(RI, np.nan), chunks=(12, 28, 30), **leaving_out(np.nan)),
    "stored.zarr.zip": lambda p: packed(zarr_image(p.parent / ".stored", RI, **SPARSE), p, top="stored.zarr/"),
    "deflated.ozx": lambda p: packed(zarr_image(p.parent / ".deflated", RI), p, method=zipfile.ZIP_DEFLATED),
}


def wbcd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wbcd.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def options(folder: Path) -> tuple[str | Path, ...]:
    bundle = tiny_bundle(folder / "bundle")
    return ("--model", bundle, "--db", f"sqlite:///{folder}/wbcd.db", "--output-dir", folder / "out")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One process for all of them: its outcome objects by the names of the files."""
    folder = tmp_path_factory.mktemp("ri")
    incoming = folder / "incoming"
    incoming.mkdir()
    for name, make in MAKERS.items():
        make(incoming / name)
    done = wbcd("process", incoming, "--json", *options(folder))
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(each["path"]).name: each for each in made}


def test_every_variant_is_met_and_nothing_else(outcomes) -> None:
    assert set(outcomes) == set(MAKERS)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_volume_and_mass_are_the_truth(outcomes, name) -> None:
    made = outcomes[name]
    assert made["outcome"] == "measured", made["message"]
    (cell,) = made["cells"]
    assert cell["volume_fl"] == pytest.approx(VOLUME_FL, rel=0.05)
    assert cell["dry_mass_pg"] == pytest.approx(DRY_MASS_PG, rel=0.05)


def test_a_cell_that_the_unmeasured_field_cuts_off_is_not_measured(tmp_path) -> None:
    """A third of it lies in a corner of the field that was not measured: its volume would be a third too small."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    cut = RI.copy()
    cut[:, :, 68:] = 0
    zarr_image(incoming / "cut.zarr", cut, chunks=(48, 56, 68), **leaving_out(0.0))
    imagej_tiff(incoming / "cut.tif", x10000(cut))
    done = wbcd("process", incoming, "--json", *options(tmp_path))
    for made in map(json.loads, done.stdout.splitlines()):
        assert (made["outcome"], made["reason"]) == ("rejected", "touches_border"), made


def test_notes_that_come_late_take_the_volume_up_again(tmp_path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    path = noted_tiff(incoming / "Tomogram_Field_sample001.tif")
    notes = path.with_suffix(".json")
    text = notes.read_text()
    notes.unlink()
    known = options(tmp_path)
    (first,) = map(json.loads, wbcd("process", incoming, "--json", *known).stdout.splitlines())
    assert first["outcome"] == "set_aside"
    assert "into Tomogram_Field_sample001.json or session.json" in first["message"]
    notes.write_text(text)
    (second,) = map(json.loads, wbcd("process", incoming, "--json", *known).stdout.splitlines())
    assert second["outcome"] == "measured", second["message"]
    assert second["cells"][0]["volume_fl"] == pytest.approx(VOLUME_FL, rel=0.05)


def test_the_daemon_finds_them_and_ends_each_in_one_outcome(tmp_path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    wanted = ["float.ome.tif", "deflated.ozx", "x.001.Group1.A1.TP01_HT3D_0.00.TIFF"]
    for name in wanted:
        MAKERS[name](incoming / name)
    camera = np.random.default_rng(0).integers(1, 250, (5, 40, 44)).astype(np.uint8)
    tifffile.imwrite(incoming / "cell1.tif", camera)
    for passed_over in ("bg.tif", "y_bg.tif", "x.001.Group1.A1.TP01_FL3D_CH0_0.00.TIFF"):
        tifffile.imwrite(incoming / passed_over, camera)
    known = options(tmp_path)
    done = wbcd("run", "--watch-dir", incoming, "--until-idle", *known)
    assert done.returncode == 0, done.stderr
    again = wbcd("process", incoming, "--json", *known)
    found = {Path(each["path"]).name: each for each in map(json.loads, again.stdout.splitlines())}
    assert set(found) == {*wanted, "cell1.tif"}
    assert all(found[name]["outcome"] == "measured" for name in wanted)
    assert found["cell1.tif"]["outcome"] == "set_aside"
    assert "holds uint8; allowed are float32" in found["cell1.tif"]["message"]
