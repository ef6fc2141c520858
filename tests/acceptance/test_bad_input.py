"""Every kind of bad input through the real daemon: one row each, with a code and a sentence, and the daemon goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_spheres import MEDIUM, VOXEL_UM, cheap_settings, sphere, tiny_bundle
from helpers_zygote import Zygote

from wbcd.records import HologramStack
from wbcd.simulation.files import write_acquisition, write_ome_zarr_ri, write_tcf
from wbcd.simulation.microscope import Camera, Exposure, Microscope


def stack(*, visibility: float = 1.0) -> HologramStack:
    """Frames of an empty field of view, 192 x 192, with its own sample-free reference."""
    microscope = Microscope(3, camera=Camera(shape=(192, 192)), frames=33)
    rng = np.random.default_rng(5)
    frames = len(microscope.k_in_rad_um)
    still = Exposure(np.zeros(frames), np.zeros((frames, 2)), np.ones(frames), visibility)
    return microscope.stack(microscope.expose(None, still, rng))


def write_holograms(path: Path, made: HologramStack) -> Path:
    return write_acquisition(
        path, made, acquisition_id=path.stem, acquired_at="2024-05-06T07:08:09+00:00", sample_id="bad", instrument_id="test"
    )


def change(path: Path, edit) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


def replace_frames(file: h5py.File, frames: np.ndarray) -> None:
    del file["holograms"]
    file.create_dataset("holograms", data=frames, chunks=(1, *frames.shape[1:]), fletcher32=True)


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind, and a good one at the end of the alphabet."""
    folder = tmp_path_factory.mktemp("incoming")
    empty = write_holograms(folder / "empty_field.h5", stack())
    frames = stack().holograms
    names = (
        "truncated",
        "half_written",
        "wrong_dtype",
        "wrong_shape",
        "missing_attribute",
        "zero_frames",
        "constant",
        "nm_for_um",
    )
    for name in names:
        shutil.copy(empty, folder / f"{name}.h5")
    os.truncate(folder / "truncated.h5", empty.stat().st_size * 2 // 3)
    change(folder / "half_written.h5", lambda file: file.attrs.__delitem__("complete"))
    change(folder / "wrong_dtype.h5", lambda file: replace_frames(file, frames.astype(np.float32)))
    change(folder / "wrong_shape.h5", lambda file: replace_frames(file, frames[0]))
    change(folder / "missing_attribute.h5", lambda file: file.attrs.__delitem__("wavelength_um"))
    change(
        folder / "zero_frames.h5",
        lambda file: replace_frames(file, frames * (np.arange(len(frames)) < 20)[:, None, None].astype(np.uint8)),
    )
    change(folder / "constant.h5", lambda file: replace_frames(file, np.full_like(frames, 90)))
    change(folder / "nm_for_um.h5", lambda file: file.attrs.__setitem__("wavelength_um", 532.0))
    write_holograms(folder / "no_sideband.h5", stack(visibility=0.0))
    (folder / "not_hdf5.h5").write_bytes(b"This is a text file." * 100)
    (folder / "nothing.h5").write_bytes(b"")
    (folder / "directory.h5").mkdir()
    (folder / "link.h5").symlink_to("/etc/hostname")
    os.mkfifo(folder / "fifo.h5")
    nan = sphere(3.0)
    nan[10:20] = np.nan
    write_ome_zarr_ri(folder / "nan.zarr", nan, voxel_um=VOXEL_UM, medium_ri=MEDIUM)
    write_tcf(folder / "wrong_scale.TCF", [sphere(3.0) * 1.4], voxel_um=VOXEL_UM, title="wrong-scale")
    write_tcf(folder / "y_good.TCF", [sphere(3.4)], voxel_um=VOXEL_UM, title="good")
    shutil.copy(folder / "y_good.TCF", folder / "z_copy.TCF")
    return folder


@pytest.fixture(scope="module")
def rows(bad_files: Path, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> dict[str, tuple[str, str, str]]:
    """Name -> (outcome, reason, message), from the database of a daemon that met them all."""
    folder = tmp_path_factory.mktemp("daemon")
    settings = cheap_settings(folder, tiny_bundle(folder / "bundle"), **{"limits.isolate": True})
    status = zygote.run(settings | {"watch.dir": bad_files, "watch.quiet_s": 0.3}, folder / "log", until_idle=True)
    assert status == 0, (folder / "log").read_text()[-3000:]
    again = zygote.run(settings | {"watch.dir": bad_files, "watch.quiet_s": 0.3}, folder / "log", until_idle=True)
    assert again == 0, (folder / "log").read_text()[-3000:]
    connection = sqlite3.connect(folder / "wbcd.db")
    query = "SELECT a.path, r.outcome, r.reason, r.message FROM run r JOIN acquisition a ON a.id = r.acquisition_id"
    found = connection.execute(query).fetchall()
    events = connection.execute("SELECT kind, message FROM event").fetchall()
    connection.close()
    assert "duplicate" in {kind for kind, _ in events}
    names = [Path(path).name for path, *_ in found]
    assert len(names) == len(set(names))
    return {Path(path).name: tuple(rest) for path, *rest in found}  # type: ignore[return-value]


EXPECTED = {
    "truncated.h5": ("set_aside", "input.truncated"),
    "half_written.h5": ("set_aside", "input.incomplete"),
    "wrong_dtype.h5": ("set_aside", "input.bad_field"),
    "wrong_shape.h5": ("set_aside", "input.bad_field"),
    "missing_attribute.h5": ("set_aside", "input.missing_field"),
    "zero_frames.h5": ("set_aside", "input.corrupt"),
    "constant.h5": (None, None),
    "nm_for_um.h5": ("set_aside", "input.bad_field"),
    "no_sideband.h5": ("rejected", None),
    "empty_field.h5": ("rejected", "empty_field"),
    "not_hdf5.h5": ("set_aside", "input.unknown_format"),
    "nothing.h5": ("set_aside", None),
    "directory.h5": ("set_aside", "input.not_a_regular_file"),
    "link.h5": ("set_aside", "input.not_a_regular_file"),
    "fifo.h5": ("set_aside", "input.not_a_regular_file"),
    "nan.zarr": (None, None),
    "wrong_scale.TCF": (None, None),
    "y_good.TCF": ("measured", None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_gets_one_row_with_its_reason(rows: dict[str, tuple[str, str, str]], name: str) -> None:
    outcome, reason, message = rows[name]
    wanted_outcome, wanted_reason = EXPECTED[name]
    assert outcome == (wanted_outcome or outcome)
    assert reason == (wanted_reason or reason)
    if name != "y_good.TCF":
        assert outcome in ("rejected", "set_aside")
        assert Path(name).name in message
        assert len(message.split()) > 4


def test_nothing_else_has_a_row(rows: dict[str, tuple[str, str, str]]) -> None:
    assert set(rows) == set(EXPECTED)  # the copy is no row


def test_an_unreadable_file_is_set_aside(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("a superuser reads everything")
    from wbcd.acquisition import identify
    from wbcd.errors import NotReadable

    path = tmp_path / "secret.h5"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(NotReadable, match="secret"):
        identify(path)
