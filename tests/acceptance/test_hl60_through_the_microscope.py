"""A measured HL60 leukocyte as the object of the simulated microscope: its holograms through `wbcd process`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_spheres import tiny_bundle
from scipy.ndimage import distance_transform_edt

from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.records import Tomogram
from wbcd.simulation.files import write_acquisition
from wbcd.simulation.microscope import Microscope, Specimen
from wbcd.simulation.optics import INSTRUMENT


def test_total_dry_mass_survives_holograms_and_reconstruction(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "hl60" / "hl60_ri.npz") as data:
        ri, voxel, medium = data["ri"].astype(np.float32), float(data["voxel_um"]), float(data["medium_index"])
    pitch = (voxel, voxel, voxel)
    # The object is the cell's support: what is above the threshold and 1 um around it. Beyond lies the halo of the file's own
    # reconstruction, partly below the medium, which is no part of the cell.
    (own,) = find_cells(Tomogram(ri, pitch, medium), Recipe())
    support = distance_transform_edt(~own.mask, sampling=own.voxel_um) <= 1.0
    specimen = Specimen(np.where(support, own.ri, np.float32(medium)), own.voxel_um)
    own_mass = float((specimen.ri - np.float32(medium)).sum(dtype=np.float64) * np.prod(own.voxel_um) / 0.2)
    assert own_mass > 116.8
    microscope = Microscope(60, optics=replace(INSTRUMENT, medium_ri=medium))
    stack = microscope.acquire([specimen], np.random.default_rng(60))
    file = tmp_path / "hl60.h5"
    write_acquisition(
        file, stack, acquisition_id="hl60-1", acquired_at="2026-01-01T12:00:00+00:00", sample_id="hl60", instrument_id="sim"
    )
    database = tmp_path / "wbcd.db"
    command = [sys.executable, "-m", "wbcd.cli", "process", str(file), "--json", "--db", f"sqlite:///{database}"]
    done = subprocess.run(
        [*command, "--model", str(tiny_bundle(tmp_path / "bundle"))], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["outcome"] == "measured", outcome
    with sqlite3.connect(database) as connection:
        ((total, above),) = connection.execute("select dry_mass_total_pg, volume_fl from cell").fetchall()
    print(f"total dry mass {total:.1f} pg of {own_mass:.1f}; volume above RI 1.35 {above:.0f} fL")
    assert total == pytest.approx(own_mass, rel=0.05)
