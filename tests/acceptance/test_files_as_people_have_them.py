"""Names in code pages, packed TCF, MATLAB files as people save them: through the command line, against the truth."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import scipy.io

from wbcd.acquisition.names import known_text

RADIUS_UM, MEDIUM, CONTRAST = 4.0, 1.337, 0.033
TCF_MASS_PG = 4 / 3 * np.pi * RADIUS_UM**3 * CONTRAST / 0.2
DONORS = (
    "김지수".encode("cp949"),
    "김지희".encode("cp949"),
    "Müller".encode("cp1252"),
    "Möller".encode("cp1252"),
    "김지수".encode(),
)


def wbcd(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "wbcd.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def processed(folder: Path, place: Path) -> dict[str, dict[str, Any]]:
    told = wbcd("process", folder, "--json", "--db", f"sqlite:///{place / 'wbcd.db'}", "--output-dir", place / "out")
    return {Path(one["path"]).relative_to(folder).as_posix(): one for one in map(json.loads, told.splitlines())}


def mass(outcome: dict[str, Any]) -> float:
    assert outcome["outcome"] == "measured", outcome
    (cell,) = outcome["cells"]
    return float(cell["dry_mass_pg"])


# --- TCF ---------------------------------------------------------------------------------------------


def vendor_tcf(path: Path, title: bytes, number: int, **packing: Any) -> None:
    """A sphere as the vendor's program writes it: 1-element attributes, byte strings, uint16."""
    shape, pitch = (60, 140, 140), (0.4, 0.15, 0.15)
    axes = [(np.arange(size) - size / 2) * step for size, step in zip(shape, pitch, strict=True)]
    r = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2)
    ri = MEDIUM + CONTRAST / (1 + np.exp((r - RADIUS_UM) / 0.05))
    with h5py.File(path, "w") as file:
        file.attrs["FormatVersion"] = np.array([b"1.5.0"])
        file.attrs["Title"] = np.array([title + b"-001"])
        group = file.create_group("Data/3D")
        group.attrs["DataCount"] = np.array([1])
        for axis, size, step in zip("ZYX", shape, pitch, strict=True):
            group.attrs[f"Size{axis}"] = np.array([size])
            group.attrs[f"Resolution{axis}"] = np.array([step])
        data = np.round(ri * 1e4).astype(np.uint16)
        data[0, 0, 0] += number  # other bytes, the same sphere
        group.create_dataset("000000", data=data, **({"chunks": (20, 140, 140), **packing} if packing else {}))
        device = file.create_group("Info/Device")
        for name, value in (("RI", MEDIUM), ("NA", 1.2), ("Wavelength", 0.532)):
            device.attrs[name] = np.array([value])


@pytest.fixture(scope="module")
def tcf(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], Path]:
    place = tmp_path_factory.mktemp("tcf")
    (place / "in").mkdir()
    for number, title in enumerate(DONORS):
        vendor_tcf(place / "in" / f"{number}.TCF", title, number)
    for number, (name, packing) in enumerate(
        {"lz4": hdf5plugin.LZ4(), "zstd": hdf5plugin.Zstd(), "blosc": hdf5plugin.Blosc(cname="zstd")}.items(), 10
    ):
        vendor_tcf(place / "in" / f"{name}.TCF", name.encode(), number, **packing)
    return processed(place / "in", place), place


def test_each_donor_is_a_sample(tcf: tuple[dict[str, dict[str, Any]], Path]) -> None:
    _, place = tcf
    counted = json.loads(wbcd("counts", "--json", "--db", f"sqlite:///{place / 'wbcd.db'}"))
    names = [*map(known_text, DONORS), "lz4", "zstd", "blosc"]
    assert sorted((row["sample"], row["n"], row["total"]) for row in counted) == sorted((name, 1, 1) for name in names)


def test_a_donor_is_asked_for_by_the_name_that_is_shown(tcf: tuple[dict[str, dict[str, Any]], Path]) -> None:
    _, place = tcf
    for title in DONORS:
        (row,) = json.loads(wbcd("counts", "--json", "--sample", known_text(title), "--db", f"sqlite:///{place / 'wbcd.db'}"))
        assert (row["sample"], row["n"]) == (known_text(title), 1)


def test_packed_or_not_the_mass_is_the_spheres(tcf: tuple[dict[str, dict[str, Any]], Path]) -> None:
    outcomes, _ = tcf
    assert len(outcomes) == len(DONORS) + 3
    for outcome in outcomes.values():
        assert abs(mass(outcome) / TCF_MASS_PG - 1) < 0.05


# --- MATLAB ------------------------------------------------------------------------------------------


def saved_again(source: Path, folder: Path, name: str, **how: Any) -> None:
    """The frames of a v7.3 file as ``save(..., '-v7')`` writes them, in the class ``how["dtype"]``."""
    folder.mkdir(exist_ok=True)
    with h5py.File(source) as file:
        frames = file["tomogMap"][()].transpose(2, 1, 0)
        numbers = {key: float(file[key][0, 0]) for key in ("res", "NA", "lambda")}
    scipy.io.savemat(folder / name, {"tomogMap": frames.astype(how["dtype"]), **numbers}, do_compression=how["packed"])


def test_a_session_is_the_same_however_matlab_saved_it(tmp_path: Path) -> None:
    made, watch = tmp_path / "made", tmp_path / "in"
    wbcd("simulate", made, "--format", "mat", "--cells", "1", "--seed", "3", "--truth", tmp_path / "truth.json")
    (truth,) = json.loads((tmp_path / "truth.json").read_text().splitlines()[0])["cells"]
    (sample,) = made.glob("simulated-*.mat")
    (watch / "v73").mkdir(parents=True)
    shutil.copy(sample, watch / "v73" / "sample001.mat")
    shutil.copy(made / "bg001_Tomog.mat", watch / "v73" / "bg001.mat")
    for kind, names, how in (
        ("v7", ("sample001_Tomog.mat", "bg001_Tomog.mat"), {"dtype": np.uint8, "packed": True}),
        ("single", ("sample001.mat", "bg001.mat"), {"dtype": np.float32, "packed": True}),
        ("v6", ("Sample 1.MAT", "BG001.mat"), {"dtype": np.int32, "packed": False}),
    ):
        saved_again(sample, watch / kind, names[0], **how)
        saved_again(made / "bg001_Tomog.mat", watch / kind, names[1], **how)
    scipy.io.savemat(watch / "sample_list.mat", {"drymass": 3.0, "names": "x"})
    outcomes = processed(watch, tmp_path)
    refused = outcomes.pop("sample_list.mat")
    assert (refused["outcome"], refused["reason"]) == ("set_aside", "input.unknown_format")
    assert "a MATLAB file of drymass, names; a session's sample holds `tomogMap`" in refused["message"]
    masses = {name: mass(outcome) for name, outcome in outcomes.items()}
    assert set(masses) == {"v73/sample001.mat", "v7/sample001_Tomog.mat", "single/sample001.mat", "v6/Sample 1.MAT"}
    assert len(set(masses.values())) == 1
    assert abs(masses["v73/sample001.mat"] / truth["dry_mass_pg"] - 1) < 0.05
