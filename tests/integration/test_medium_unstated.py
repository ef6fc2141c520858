"""A medium that the file does not state: measured where the volume shows it, told of where nothing does.

The truth is the generator's: a sphere in its medium, with the noise of an instrument.
"""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_spheres import tiny_bundle
from numpy.typing import NDArray

from wbcd.acquisition import identify, read
from wbcd.config import Config
from wbcd.quality import background_ri, settle_medium
from wbcd.recipe import Recipe
from wbcd.records import RiSeries, Tomogram
from wbcd.simulation.files import write_ome_zarr_ri, write_tcf

VOXEL_UM = (0.2, 0.1, 0.1)
RADIUS_UM, CONTRAST = 4.0, 0.040
VOLUME_FL = 4 / 3 * math.pi * RADIUS_UM**3
MASS_PG = VOLUME_FL * CONTRAST / 0.2
MEDIA = (1.333, 1.335, 1.337, 1.340, 1.343, 1.345)


def volume(medium: float, shape: tuple[int, int, int] = (64, 128, 128), noise: float = 1e-3) -> NDArray[np.float64]:
    """A sphere of :data:`CONTRAST` in the middle; its edge is blurred over a voxel, as any instrument's."""
    grid = np.meshgrid(*((np.arange(n) - n // 2) * p for n, p in zip(shape, VOXEL_UM, strict=True)), indexing="ij")
    inside = np.clip((RADIUS_UM - np.sqrt(sum(x**2 for x in grid))) / 0.1 + 0.5, 0, 1)
    return medium + CONTRAST * inside + np.random.default_rng(7).normal(0, noise, shape)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle")


def outcomes(files: list[Path], bundle: Path, folder: Path, config: str = "") -> dict[str, dict[str, Any]]:
    """What `wbcd process --json` says, by file name."""
    settings = folder / "wbcd.toml"
    settings.write_text(config)
    options = ["--model", bundle, "--db", f"sqlite:///{folder}/wbcd.db", "--output-dir", folder / "out", "--config", settings]
    command = [sys.executable, "-m", "wbcd.cli", "process", "--json", *map(str, [*files, *options])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(one["path"]).name: one for one in made}


def only_cell(made: dict[str, Any]) -> dict[str, Any]:
    assert made["outcome"] == "measured", made
    (cell,) = made["cells"]
    return dict(cell)


def test_the_background_is_the_medium_where_none_is_stated(tmp_path: Path, bundle: Path) -> None:
    """Six media through both formats: volume and mass within 5 % of the generator's, and the cell says how."""
    files = []
    for medium in MEDIA:
        ri = volume(medium)
        files.append(write_ome_zarr_ri(tmp_path / f"z{medium}.zarr", ri, VOXEL_UM, None))
        tcf = tmp_path / f"t{medium}.TCF"
        files.append(write_tcf(tcf, [ri], voxel_um=VOXEL_UM, device=False, title=f"t{medium}"))
    made = outcomes(files, bundle, tmp_path)
    assert len(made) == len(files)
    for name, one in made.items():
        cell = only_cell(one)
        assert cell["volume_fl"] == pytest.approx(VOLUME_FL, rel=0.05), name
        assert cell["dry_mass_pg"] == pytest.approx(MASS_PG, rel=0.05), name
        assert "medium_from_background" in cell["flags"], name
    with sqlite3.connect(tmp_path / "wbcd.db") as database:
        stored = dict(database.execute("select path, medium_ri from acquisition").fetchall())
        flags = [json.loads(row[0]) for row in database.execute("select flags from prediction")]
    for path, medium in stored.items():
        assert medium == pytest.approx(float(Path(path).stem[1:]), abs=4e-4), path
    assert all("medium_from_background" in row for row in flags)


def test_a_stated_medium_is_kept_and_refused_where_the_background_differs(tmp_path: Path, bundle: Path) -> None:
    ri = volume(1.340)
    right = write_ome_zarr_ri(tmp_path / "right.zarr", ri, VOXEL_UM, 1.340)
    wrong = write_ome_zarr_ri(tmp_path / "wrong.zarr", ri, VOXEL_UM, 1.3345)
    made = outcomes([right, wrong], bundle, tmp_path)
    assert "medium_from_background" not in only_cell(made["right.zarr"])["flags"]
    assert (made["wrong.zarr"]["outcome"], made["wrong.zarr"]["reason"]) == ("rejected", "medium_offset_ri")


@pytest.mark.parametrize(
    "config",
    ["[defaults]\nmedium_ri = 1.337\n", "[recipe.reconstruction]\ndefault_medium_ri = 1.337\n"],
    ids=["site", "recipe"],
)
def test_a_default_that_a_person_set_is_a_statement(tmp_path: Path, bundle: Path, config: str) -> None:
    """Even where it is the built-in value: it is used as it is, held against the background, and nothing is flagged."""
    near = write_ome_zarr_ri(tmp_path / "near.zarr", volume(1.3385), VOXEL_UM, None)
    far = write_ome_zarr_ri(tmp_path / "far.zarr", volume(1.3425), VOXEL_UM, None)
    made = outcomes([near, far], bundle, tmp_path, config)
    cell = only_cell(made["near.zarr"])
    assert "medium_from_background" not in cell["flags"]
    assert cell["dry_mass_pg"] == pytest.approx(MASS_PG * (1 + 0.0015 / CONTRAST), rel=0.01)
    assert made["far.zarr"]["reason"] == "medium_offset_ri"


def test_whether_a_default_is_a_statement_is_part_of_the_recipe() -> None:
    """Else the same bytes under one recipe would have two masses."""
    built_in, stated = Config.load(None, {}), Config.load(None, {}, {"defaults.medium_ri": 1.337})
    assert built_in.recipe.reconstruction.default_medium_ri == stated.recipe.reconstruction.default_medium_ri
    assert built_in.recipe.recipe_id != stated.recipe.recipe_id
    chosen = {"defaults.medium_ri": 1.34, "recipe.reconstruction.unstated_medium": "background"}
    assert Config.load(None, {}, chosen).recipe.reconstruction.unstated_medium == "background"


def test_the_ticket_names_what_was_assumed(tmp_path: Path) -> None:
    ri = volume(1.340, (16, 32, 32))
    silent = write_tcf(tmp_path / "silent.TCF", [ri], voxel_um=VOXEL_UM, device=False)
    zero = write_tcf(tmp_path / "zero.TCF", [ri], voxel_um=VOXEL_UM, medium_ri=1.34)
    with h5py.File(zero, "r+") as file:
        file["Info/Device"].attrs["RI"] = np.array([0.0])  # the vendor's "not set"
    stated = write_tcf(tmp_path / "stated.TCF", [ri], voxel_um=VOXEL_UM, medium_ri=1.34)
    for path, assumed in ((silent, ("medium",)), (zero, ("medium",)), (stated, ())):
        ticket, payload = read(identify(path))
        assert isinstance(payload, RiSeries)
        payload.close()
        assert ticket.assumed == assumed, path


# --- the rule ----------------------------------------------------------------------------------------


def tomogram(ri: NDArray[np.floating[Any]], **changes: Any) -> Tomogram:
    return replace(Tomogram(ri.astype(np.float32), VOXEL_UM, 1.337), **changes)


@pytest.mark.parametrize("medium", MEDIA)
def test_a_tight_box_around_a_cell_and_a_noisy_one(medium: float) -> None:
    """The cell fills half of its box; the noise is that of the poorest instrument."""
    tight = volume(medium, (42, 84, 84), noise=2e-4)
    noisy = volume(medium, noise=3e-3)
    for ri in (tight, noisy):
        assert settle_medium(tomogram(ri), Recipe()).medium_ri == pytest.approx(medium, abs=4e-4)


def test_fill_is_no_background_and_becomes_the_medium() -> None:
    """A stitched volume of which more was never measured than is medium: the fill stands at the default."""
    ri = volume(1.342)
    fill = np.zeros(ri.shape, bool)
    fill[:, :50] = True
    ri[fill] = 1.337
    settled = settle_medium(tomogram(ri, fill=fill), Recipe())
    assert settled.medium_ri == pytest.approx(1.342, abs=2e-4)
    np.testing.assert_allclose(settled.ri[fill], settled.medium_ri, atol=1e-6)


def test_fill_does_not_hide_a_medium_that_was_stated_wrongly() -> None:
    ri = volume(1.342)
    fill = np.zeros(ri.shape, bool)
    fill[:, :110] = True
    ri[fill] = 1.337
    assert background_ri(tomogram(ri, fill=fill)) == pytest.approx(1.342, abs=3e-4)


@pytest.mark.parametrize("medium", [1.29, 1.36, 1.0])
def test_what_can_be_no_medium_is_left_to_the_verdict(medium: float) -> None:
    """Above the cells' threshold all would be one cell; far below it is not water."""
    given = tomogram(volume(medium))
    assert settle_medium(given, Recipe()) is given
