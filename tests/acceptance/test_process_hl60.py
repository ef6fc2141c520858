"""A measured HL60 leukocyte as TCF (uint16, tiled) and as OME-Zarr through `wbcd process --json`, as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_spheres import tiny_bundle

from wbcd.simulation.files import write_ome_zarr_ri, write_tcf

VOLUME_FL, DRY_MASS_PG = 1214.0, 116.8
"""Of the values above RI 1.35, at medium 1.335: from the volume itself, by counting voxels."""
SIX = ("volume_fl", "surface_area_um2", "sphericity", "dry_mass_pg", "protein_density_g_dl", "mean_ri")


def wbcd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wbcd.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def processed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict], Path]:
    """The outcomes of three files, those of a second call, and the folder."""
    folder = tmp_path_factory.mktemp("hl60")
    with np.load(shared_data / "hl60" / "hl60_ri.npz") as data:
        ri, voxel, medium = data["ri"], float(data["voxel_um"]), float(data["medium_index"])
    voxel_um = (voxel, voxel, voxel)
    incoming = folder / "incoming"
    incoming.mkdir()
    write_tcf(incoming / "plain.TCF", [ri], voxel_um=voxel_um, medium_ri=medium, title="hl60")
    write_tcf(
        incoming / "tiled.TCF",
        [ri],
        voxel_um=voxel_um,
        medium_ri=medium,
        version="1.6.2",
        tile_shape=(64, 64, 64),
        title="hl60-ldm",
    )
    write_ome_zarr_ri(incoming / "hl60.zarr", ri, voxel_um=voxel_um, medium_ri=medium)
    bundle = tiny_bundle(folder / "bundle")
    options = (
        "--json",
        "--keep-tomograms",
        "--model",
        bundle,
        "--db",
        f"sqlite:///{folder}/wbcd.db",
        "--output-dir",
        folder / "out",
    )
    first = wbcd("process", incoming, *options)
    assert first.returncode == 0, first.stderr
    second = wbcd("process", incoming / "plain.TCF", *options)
    assert second.returncode == 0, second.stderr
    return (
        [json.loads(line) for line in first.stdout.splitlines()],
        [json.loads(line) for line in second.stdout.splitlines()],
        folder,
    )


def test_one_object_a_file_with_the_promised_keys(processed) -> None:
    outcomes, _, _ = processed
    assert {Path(made["path"]).name for made in outcomes} == {"plain.TCF", "tiled.TCF", "hl60.zarr"}
    for made in outcomes:
        assert {"path", "outcome", "reason", "message", "cells"} <= set(made)
        assert made["outcome"] == "measured"
        (cell,) = made["cells"]
        assert set(cell) == {"number", *SIX, "label", "probability", "flags", "tomogram"}


def test_the_measured_cell_has_its_own_volume_and_mass(processed) -> None:
    outcomes, _, _ = processed
    for made in outcomes:
        (cell,) = made["cells"]
        assert cell["volume_fl"] == pytest.approx(VOLUME_FL, rel=0.03)
        assert cell["dry_mass_pg"] == pytest.approx(DRY_MASS_PG, rel=0.03)


def test_the_kept_tomogram_is_an_ome_zarr_of_true_ri(processed) -> None:
    outcomes, _, _ = processed
    for made in outcomes:
        path = Path(made["cells"][0]["tomogram"])
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        assert attributes["ome"]["version"] == "0.5"


def test_a_second_call_shows_the_stored_outcome(processed) -> None:
    outcomes, again, folder = processed
    (made,) = again
    before = next(each for each in outcomes if each["path"] == made["path"])
    assert made.pop("duplicate_of") == made["path"]
    assert made["cells"][0]["volume_fl"] == before["cells"][0]["volume_fl"]
    counts = wbcd("counts", "--json", "--db", f"sqlite:///{folder}/wbcd.db")
    assert sum(row["n"] for row in json.loads(counts.stdout)) == 3
    status = wbcd("status", "--json", "--db", f"sqlite:///{folder}/wbcd.db", "--output-dir", folder / "out")
    assert json.loads(status.stdout)["store"]["measured"] == 3
