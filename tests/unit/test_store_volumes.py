"""Kept tomograms: the specification's layout, checksums that bite, whole or absent."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from wbcd.errors import CorruptContent, NoSpace, StoreError, VolumeGone
from wbcd.records import Cell
from wbcd.store import volumes
from wbcd.store.volumes import (
    clean_stale,
    demand_volumes,
    discard_tomograms,
    read_tomogram,
    tomogram_path,
    write_tomogram,
)
from wbcd.testing import make_acquisition

VOXEL_UM = (0.2, 0.1, 0.1)
CENTRE_UM = (1.0, 15.0, 16.0)


def a_cell(shape: tuple[int, int, int] = (30, 41, 40), number: int = 1) -> Cell:
    """RI that is linear in space, so that the mean of a block is its value at the block's centre."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    ri = (1.337 + 1e-4 * z + 2e-4 * y + 3e-4 * x).astype(np.float32)
    return Cell(number, ri, ri > 1.35, VOXEL_UM, 1.337, CENTRE_UM)


def written(root: Path, cell: Cell | None = None) -> Path:
    return write_tomogram(root, cell or a_cell(), acquisition=make_acquisition("a"), recipe_id="r1")


def attributes(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]
    return found


def parts(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if volumes.TEMPORARY in path.name]


def test_the_layout_is_that_of_ome_zarr_05(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert path.name.endswith(".ome.zarr")
    ome = attributes(path)["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert multiscale["axes"] == [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1", "2"]
    for dataset in multiscale["datasets"]:
        assert [t["type"] for t in dataset["coordinateTransformations"]] == ["scale", "translation"]
        array = zarr.open_array(str(path / dataset["path"]), mode="r")
        assert array.metadata.zarr_format == 3
        assert array.metadata.dimension_names == ("z", "y", "x")
        assert array.dtype == np.float32
        assert json.loads((path / dataset["path"] / "zarr.json").read_text())["codecs"][-1] == {"name": "crc32c"}
    (channel,) = ome["omero"]["channels"]
    assert (channel["window"]["start"], channel["window"]["end"]) == (1.335, 1.365)
    assert channel["window"]["min"] < channel["window"]["start"] < channel["window"]["end"] < channel["window"]["max"]


def test_where_the_numbers_come_from_is_in_our_namespace(tmp_path: Path) -> None:
    ours = attributes(written(tmp_path))["wbcd"]
    acquisition = make_acquisition("a")
    assert ours["source_content_id"] == acquisition.content_id
    assert (ours["recipe_id"], ours["cell_number"], ours["medium_ri"]) == ("r1", 1, 1.337)
    assert (ours["wavelength_um"], ours["objective_na"], ours["sample_id"]) == (0.532, 1.2, "S1")


def test_true_refractive_index_comes_back_exactly(tmp_path: Path) -> None:
    cell = a_cell()
    ri, ours = read_tomogram(written(tmp_path, cell))
    np.testing.assert_array_equal(ri, cell.ri)
    assert ours["recipe_id"] == "r1"


def test_every_level_lies_where_its_transformation_says(tmp_path: Path) -> None:
    """The linear RI is known at every point of space: each level's voxels must have its value at their own centres."""
    cell = a_cell()
    path = written(tmp_path, cell)
    first_um = [c - (n - 1) / 2 * p for c, n, p in zip(CENTRE_UM, cell.ri.shape, VOXEL_UM, strict=True)]
    for dataset in attributes(path)["ome"]["multiscales"][0]["datasets"]:
        scale, translation = (t[t["type"]] for t in dataset["coordinateTransformations"])
        level = zarr.open_array(str(path / dataset["path"]), mode="r")[...]
        index = np.indices(level.shape)
        place = [(t + s * i - f) / p for t, s, i, f, p in zip(translation, scale, index, first_um, VOXEL_UM, strict=True)]
        expected = 1.337 + 1e-4 * place[0] + 2e-4 * place[1] + 3e-4 * place[2]
        np.testing.assert_allclose(level, expected, atol=3e-7)


def test_the_centre_of_the_crop_is_the_centre_of_the_cell(tmp_path: Path) -> None:
    path = written(tmp_path, a_cell((31, 41, 41)))
    scale, translation = (
        t[t["type"]] for t in attributes(path)["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    )
    assert [t + s * n for t, s, n in zip(translation, scale, (15, 20, 20), strict=True)] == pytest.approx(list(CENTRE_UM))


def test_non_physical_voxels_survive(tmp_path: Path) -> None:
    cell = a_cell()
    cell.ri[3, 4, 5] = np.nan
    ri, _ = read_tomogram(written(tmp_path, cell))
    np.testing.assert_array_equal(ri, cell.ri)


def test_the_same_cell_again_writes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert written(tmp_path) == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    assert parts(tmp_path) == []


def test_cells_recipes_and_acquisitions_have_folders_of_their_own(tmp_path: Path) -> None:
    paths = {
        write_tomogram(tmp_path, a_cell(number=number), acquisition=make_acquisition(name), recipe_id=recipe)
        for number in (1, 2)
        for name in "ab"
        for recipe in ("r1", "r2")
    }
    assert len(paths) == 8


@pytest.mark.parametrize("level", ["0", "1"])
def test_a_missing_chunk_is_no_volume_and_is_written_again(tmp_path: Path, level: str) -> None:
    path = written(tmp_path)
    (path / level / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(CorruptContent, match=f"level {level} holds"):
        read_tomogram(path)
    assert written(tmp_path) == path
    read_tomogram(path)
    assert parts(tmp_path) == []


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_is_found(tmp_path: Path, place: int) -> None:
    path = written(tmp_path)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    raw = bytearray(chunk.read_bytes())
    raw[place] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(CorruptContent):
        read_tomogram(path)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(volumes, "_publish", full)
    with pytest.raises(NoSpace, match="disk is full"):
        written(tmp_path)
    assert list(tmp_path.rglob("*.zarr")) == []
    assert parts(tmp_path) == []


def test_what_reads_back_otherwise_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image = volumes._write_image

    def silently_wrong(path: Path, cell: Cell, provenance: dict[str, Any]) -> None:
        write_image(path, cell, provenance)
        zarr.open_array(str(path / "0"), mode="r+")[0, 0, 0] = 9.0

    monkeypatch.setattr(volumes, "_write_image", silently_wrong)
    with pytest.raises(StoreError, match="reads back otherwise"):
        written(tmp_path)
    assert list(tmp_path.rglob("*.zarr")) == []


CHILD = """
import os, signal, sys
from pathlib import Path
from test_store_volumes import written
from wbcd.store import volumes
volumes._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
written(Path(sys.argv[1]))
"""


def test_a_killed_writer_leaves_only_what_the_next_start_removes(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}
    died = subprocess.run([sys.executable, "-c", CHILD, tmp_path], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*.ome.zarr")) == []
    (part,) = (path for path in parts(tmp_path) if path.is_dir())
    living = os.open(part, os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    assert clean_stale(tmp_path, now_s=part.stat().st_mtime + 4000) == 0  # another process still writes there
    os.close(living)
    assert clean_stale(tmp_path) == 1
    assert parts(tmp_path) == []
    read_tomogram(written(tmp_path))


def test_where_folders_cannot_be_locked_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # what NFS says of a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    read_tomogram(written(tmp_path / "root"))
    part = tmp_path / "ab" / f"{volumes.TEMPORARY}x"
    part.mkdir(parents=True)
    assert clean_stale(tmp_path) == 0
    assert clean_stale(tmp_path, now_s=part.stat().st_mtime + 4000) == 1


def test_discarding_leaves_what_a_row_names_and_other_contents(tmp_path: Path) -> None:
    path = written(tmp_path)
    content_id = path.name.split("-")[0]
    assert discard_tomograms(tmp_path, content_id=content_id, named=["/elsewhere/" + path.name]) == 0
    assert discard_tomograms(tmp_path, content_id=content_id[:-1] + "x", named=[]) == 0
    read_tomogram(path)
    demand_volumes(tmp_path, [str(path)])
    assert discard_tomograms(tmp_path, content_id=content_id, named=[]) == 1
    assert list(path.parent.iterdir()) == []
    with pytest.raises(VolumeGone, match="is gone"):
        demand_volumes(tmp_path, [str(path)])


def test_the_same_file_with_another_background_is_another_image(tmp_path: Path) -> None:
    key = {"content_id": "c" * 40, "recipe_id": "r" * 16, "number": 1}
    plain = tomogram_path(tmp_path, **key)
    assert tomogram_path(tmp_path, **key, companions=[("bg.tif", None)]) == plain  # not there: read without
    first, second = (tomogram_path(tmp_path, **key, companions=[("bg.tif", digest)]) for digest in ("1", "2"))
    assert len({plain, first, second}) == 3


def test_cleaning_touches_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (path.parent / f"{volumes.TEMPORARY}link").symlink_to(outside)
    assert clean_stale(tmp_path, older_than_s=-1) == 0
    assert outside.is_dir()
    read_tomogram(path)


TINY_DISK = """
import sys
from pathlib import Path
import numpy as np
from test_store_volumes import a_cell, written
from helpers_store import KEY, opened
from wbcd.errors import NoSpace
from wbcd.store.volumes import read_tomogram
from wbcd.testing import make_cell, make_measured
from wbcd.report.counts import read_status

root = Path(sys.argv[1])
ballast = root / "ballast"
cell = a_cell((100, 150, 150))
cell.ri[...] += np.random.default_rng(1).normal(0, 1e-3, cell.ri.shape).astype(np.float32)

with opened(str(root / "wbcd.db")) as ledger:
    ledger.commit(make_measured("before"), *KEY)
    ballast.write_bytes(bytes(22 * 2**20))
    try:
        written(root, cell)
        raise SystemExit("the image fitted")
    except NoSpace as error:
        assert "full" in error.message, error.message
    assert not list(root.rglob("*.zarr")) and not list(root.rglob(".wbcd-part-*"))
    assert "MiB are free" in read_status(root / "wbcd.db").note
    refused = None
    for number in range(200):
        try:
            ledger.commit(make_measured(f"big{number}", make_cell(thumbnail_png=bytes(200_000))), *KEY)
        except NoSpace as error:
            refused = number
            break
    assert refused is not None, "the database never filled the disk"
    try:
        ledger.check()
        raise SystemExit("the check saw nothing")
    except NoSpace:
        pass
    ballast.unlink()
    ledger.check()
    ledger.commit(make_measured(f"big{refused}"), *KEY)
    read_tomogram(written(root))
    assert ledger.check(deep=True)
    assert read_status(root / "wbcd.db").measured == refused + 2
print("resumed")
"""


def test_a_really_full_disk_pauses_and_resumes(tmp_path: Path) -> None:
    """On a file system of 24 MiB in a mount name space of its own: images and rows are refused by name, then go on."""
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size=24m none {tmp_path}"
    if unshare is None or subprocess.run([unshare, "-Urm", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("this kernel lets nobody mount in a name space of his own")
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}
    script = f'{mount} && exec "$0" -c "$1" {tmp_path}'
    said = subprocess.run(
        [unshare, "-Urm", "sh", "-c", script, sys.executable, TINY_DISK],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "resumed\n", said.stderr
