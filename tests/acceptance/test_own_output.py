"""wbcd does not count what it wrote itself: the real daemon and `wbcd process`, as a person starts them."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from helpers_spheres import SIZE, VOXEL_UM, sphere, tiny_bundle

from wbcd.cli import cli
from wbcd.simulation.files import write_ome_zarr_ri, write_tcf

SETTINGS = """
[watch]
quiet_s = 0.2
rescan_s = 0.5
[classification]
model = "{bundle}"
device = "cpu"
[recipe.morphology]
crop_shape = [32, 32, 32]
crop_voxel_um = [0.4, 0.4, 0.4]
"""
ROWS = """
SELECT a.path, a.content_id, r.outcome, r.reason, r.message, (SELECT COUNT(*) FROM cell c WHERE c.run_id = r.id)
FROM run r JOIN acquisition a ON a.id = r.acquisition_id ORDER BY r.id
"""


def wbcd(*arguments: str | Path, at: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wbcd.cli", *map(str, arguments), "--config", str(at / "wbcd.toml")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WBCD_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=at, env=environment)


def rows(database: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return connection.execute(ROWS).fetchall()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and one acquisition in ``in``."""
    root = tmp_path_factory.mktemp("own")
    bundle = tiny_bundle(root / "bundle")
    (root / "wbcd.toml").write_text(SETTINGS.format(bundle=bundle))
    (root / "in").mkdir()
    write_tcf(root / "in" / "a.TCF", [sphere(3.0)], voxel_um=VOXEL_UM, title="donor 1")
    return root


@pytest.fixture(scope="module")
def kept(place: Path) -> tuple[str, Path]:
    """The content id of the acquisition, and the tomogram that a daemon kept of its cell."""
    done = wbcd("run", "--watch-dir", "in", "--keep-tomograms", "--until-idle", at=place)
    assert done.returncode == 0, done.stderr
    ((_, content_id, outcome, _, _, cells),) = rows(place / "wbcd.db")
    assert (outcome, cells) == ("measured", 1)
    (image,) = (place / "wbcd-output").glob("??/*.ome.zarr")
    return content_id, image


def saved_again_as_zarr_2(image: Path, path: Path) -> None:
    """OME-Zarr 0.4, as a program writes it that keeps the attributes it does not know: they lie in ``.zattrs``."""
    attributes = zarr.open_group(str(image), mode="r").attrs.asdict()
    (level, *_) = attributes["ome"]["multiscales"]
    old = {"multiscales": [{**level, "version": "0.4", "datasets": level["datasets"][:1]}], "wbcd": attributes["wbcd"]}
    group = zarr.open_group(str(path), mode="w", zarr_format=2, attributes=old)
    values = zarr.open_array(str(image / "0"), mode="r")[...]
    group.create_array("0", shape=values.shape, chunks=values.shape, dtype=values.dtype)[...] = values


def made_coarser(image: Path, path: Path) -> None:
    """Half as many voxels along each axis, in one file a level; our attributes lie a floor deeper."""
    attributes = zarr.open_group(str(image), mode="r").attrs.asdict()
    values = (
        zarr.open_array(str(image / "0"), mode="r")[...].reshape(SIZE // 2, 2, SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3, 5))
    )
    write_ome_zarr_ri(path, values, tuple(2 * v for v in VOXEL_UM))
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["ome"]["multiscales"][0]["metadata"] = {"original": {"wbcd": attributes["wbcd"]}}
    (path / "zarr.json").write_text(json.dumps(meta))


@pytest.fixture(scope="module")
def copies(place: Path, kept: tuple[str, Path]) -> Path:
    """A watch folder into which the tomogram came back: as it is, renamed, and in two other layouts; and a foreign one."""
    _, image = kept
    folder = place / "back"
    shutil.copytree(image, folder / image.name)
    shutil.copytree(image, folder / "session" / "renamed.zarr")
    saved_again_as_zarr_2(image, folder / "zarr2.zarr")
    made_coarser(image, folder / "coarser.zarr")
    write_ome_zarr_ri(folder / "foreign.zarr", sphere(2.8), VOXEL_UM)  # it has an attribute `wbcd` too: its medium
    return folder


def test_an_output_folder_in_the_watch_folder_is_refused(place: Path) -> None:
    options = ("--watch-dir", "in", "--output-dir", "in/results", "--keep-tomograms", "--until-idle")
    done = wbcd("run", *options, "--db", f"sqlite:///{place / 'none.db'}", at=place)
    assert done.returncode == 78
    assert f"output.dir in/results ({place / 'in' / 'results'}) lies in watch.dir in ({place / 'in'})" in done.stderr
    assert not (place / "in" / "results").exists()
    assert not (place / "none.db").exists()


def test_a_tomogram_that_comes_back_is_one_row_that_names_its_source(place: Path, kept: tuple[str, Path], copies: Path) -> None:
    """Into another daemon's folder and database, which have never seen it."""
    content_id, _ = kept
    options = (
        "--watch-dir",
        copies,
        "--output-dir",
        "out-2",
        "--db",
        "sqlite:///second.db",
        "--until-idle",
        "--keep-tomograms",
    )
    done = wbcd("run", *options, at=place)
    assert done.returncode == 0, done.stderr
    found = rows(place / "second.db")
    own = {
        Path(path).name: (reason, message, cells)
        for path, _, outcome, reason, message, cells in found
        if outcome == "set_aside"
    }
    # The copy and the renamed copy have the same bytes: the second is a duplicate.
    assert len(own) == 3
    assert {"zarr2.zarr", "coarser.zarr"} < set(own)
    for reason, message, cells in own.values():
        assert (reason, cells) == ("input.own_tomogram", 0)
        assert f"a tomogram that wbcd wrote, of cell 1 of the acquisition {content_id}" in message
    assert [(Path(path).name, cells) for path, _, outcome, _, _, cells in found if outcome == "measured"] == [
        ("foreign.zarr", 1)
    ]


def test_with_the_option_they_are_counted_also_after_they_were_set_aside(place: Path, copies: Path) -> None:
    options = ("--watch-dir", copies, "--output-dir", "out-2", "--db", "sqlite:///second.db", "--until-idle")
    before = len(rows(place / "second.db")) if (place / "second.db").exists() else 0
    done = wbcd("run", *options, "--accept-own-tomograms", at=place)
    assert done.returncode == 0, done.stderr
    later = rows(place / "second.db")[before:]
    assert [(outcome, cells) for _, _, outcome, _, _, cells in later] == [("measured", 1)] * 4


def process(*arguments: str | Path) -> Result:
    """`wbcd process` in this process: torch is imported once."""
    result = CliRunner().invoke(cli, ["process", *map(str, arguments), "--json", "--config", "wbcd.toml"])
    assert result.exit_code == 0, result.stderr
    return result


def test_process_passes_over_what_is_kept_below_the_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wbcd process .` with the output folder in it, twice: the commands of the README go on working."""
    shutil.copy2(place / "wbcd.toml", tmp_path)
    shutil.copy2(place / "in" / "a.TCF", tmp_path)
    (tmp_path / "wbcd-output" / "ab").mkdir(parents=True)
    write_ome_zarr_ri(tmp_path / "theirs.zarr", sphere(2.8), VOXEL_UM)
    monkeypatch.chdir(tmp_path)
    first = process(".", "--keep-tomograms")
    assert sorted(json.loads(line)["path"] for line in first.stdout.splitlines()) == ["a.TCF", "theirs.zarr"]
    second = process(".", "--keep-tomograms")
    made = [json.loads(line) for line in second.stdout.splitlines()]
    assert sorted(each["path"] for each in made) == ["a.TCF", "theirs.zarr"]
    assert "wbcd: 2 tomograms that wbcd keeps in wbcd-output were passed over." in second.stderr
    assert [outcome for _, _, outcome, _, _, _ in rows(tmp_path / "wbcd.db")] == ["measured", "measured"]
    tomograms = {Path(cell["tomogram"]) for each in made for cell in each["cells"]}
    assert all(path.is_absolute() for path in tomograms)
    assert tomograms == set((tmp_path / "wbcd-output").glob("??/*.ome.zarr"))
    # Named by itself it is met, and set aside; with the option counted.
    named = process(min(tomograms))
    assert json.loads(named.stdout)["reason"] == "input.own_tomogram"
    asked = process(min(tomograms), "--accept-own-tomograms")
    assert json.loads(asked.stdout)["outcome"] == "measured"


def test_a_counted_copy_has_the_cell_of_the_original(place: Path, kept: tuple[str, Path]) -> None:
    ri = zarr.open_array(str(kept[1] / "0"), mode="r")[...]
    assert np.abs(ri - sphere(3.0)).max() < 2e-3  # the crop is centred on the voxel nearest to the sphere's centre
