"""The advice of an error fits the fault: who wrote the file, and what that person can do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from helpers_acquisition import OPTICS, edit, holograms, load, tcf_file, wbcd_file

from wbcd import errors
from wbcd.acquisition.limits import ReadDefaults
from wbcd.errors import InputError
from wbcd.simulation.files import write_mat, write_ome_zarr_ri, write_tiff_pair, write_tiff_stack

STACK = holograms(5, 64, reference=True)
EXPORT = "Export"


def advice_on(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **options)
    assert caught.value.advice.endswith((".", ")."))
    assert caught.value.message.endswith(".")
    return caught.value.advice


def drop(group: str, name: str) -> Callable[[h5py.File], object]:
    return lambda file: file[group].attrs.pop(name)


def put(group: str, name: str, value: Any) -> Callable[[h5py.File], object]:
    return lambda file: file[group].attrs.__setitem__(name, value)


TCF_FAULTS = [
    drop("/", "FormatVersion"),
    put("/", "FormatVersion", np.bytes_("new")),
    drop("Data/3D", "ResolutionZ"),
    put("Data/3D", "ResolutionZ", np.array([300.0])),
    put("Data/3D", "SizeX", np.array([7])),
    put("Info/Device", "RI", np.array([17.0])),
    put("Info/Device", "NA", np.array([12.0])),
    put("Info/Device", "Wavelength", np.array([9.0])),
    put("/", "Title", 7),
]


@pytest.mark.parametrize("change", TCF_FAULTS)
def test_a_tcf_is_exported_again(tmp_path: Path, change: Any) -> None:
    assert advice_on(edit(tcf_file(tmp_path / "a.TCF"), change)).startswith("Export the acquisition again")


@pytest.mark.parametrize(
    "change",
    [
        drop("/", "objective_na"),
        put("/", "objective_na", 12.0),
        put("/", "wavelength_um", 532),
        put("/", "acquired_at", "yesterday"),
        put("/", "normal_frame", 0.5),
        put("/", "sample_id", 3),
        put("/", "reference_file", "../a"),
        lambda file: file.__setitem__("illumination", np.zeros((1, 2))),
        lambda file: file.pop("holograms"),
    ],
)
def test_a_rigs_own_program_cannot_export_anything(tmp_path: Path, change: Any) -> None:
    advice = advice_on(edit(wbcd_file(tmp_path / "a.h5", holograms(5, 64)), change))
    assert EXPORT not in advice
    assert "program" in advice or "made" in advice


@pytest.mark.parametrize(
    "notes",
    [
        {"wavelength_um": 532},
        {"wavelength_um": "green"},
        {"normal_frame": 99},
        {"normal_frame": 1.5},
        {"frames": 1.5},
        {"illumination_rad_um": "round"},
        {"illumination_rad_um": [[0, 0]]},
        {"background": "../b"},
        {"sample_id": 7},
    ],
)
def test_a_note_is_corrected_where_it_is(tmp_path: Path, notes: dict[str, Any]) -> None:
    path = write_tiff_pair(tmp_path, "a", STACK)
    (tmp_path / "a_sp.json").write_text(json.dumps(notes))
    advice = advice_on(path)
    assert EXPORT not in advice
    assert "a_sp.json" in advice or next(iter(notes)) in advice or "Correct it" in advice


def test_a_background_that_does_not_fit_is_taken_again(tmp_path: Path) -> None:
    path = write_tiff_pair(tmp_path, "a", STACK)
    write_tiff_stack(tmp_path / "a_bg.tif", STACK.reference[:, :40].copy())
    assert "same frames, size and bits" in advice_on(path)
    (tmp_path / "a_bg.tif").unlink()
    (tmp_path / "a_sp.json").write_text('{"background": "b.tif"}')
    assert "note that names it" in advice_on(path)


def test_a_stack_of_another_kind_is_saved_again(tmp_path: Path) -> None:
    path = write_tiff_pair(tmp_path, "a", STACK)
    write_tiff_stack(path, STACK.holograms.astype(np.uint32))
    assert advice_on(path).startswith("Save the frames again")


@pytest.mark.parametrize("name", ["res", "NA", "lambda"])
@pytest.mark.parametrize("version", ["v7", "v7.3"])
def test_a_variable_is_saved_again_or_a_note_goes_before_it(tmp_path: Path, name: str, version: str) -> None:
    (tmp_path / "session.json").write_text('{"background": "none"}')
    path = tmp_path / "sample1.mat"
    for value in (50.0, None):
        numbers = {"res": 0.06, "NA": 1.2, "lambda": 0.532, name: value}
        held = {key: number for key, number in numbers.items() if number is not None}
        if version == "v7":
            scipy.io.savemat(path, {"tomogMap": STACK.holograms.transpose(1, 2, 0), **held})
        else:
            write_mat(path, STACK.holograms, OPTICS)

            def change(file: h5py.File, held: dict[str, float] = held) -> None:
                del file[name]
                if name in held:
                    file[name] = np.array([[held[name]]])

            edit(path, change)
        advice = advice_on(path)
        assert EXPORT not in advice
        assert "note" in advice if value else "Save" in advice


def test_the_recipes_own_value_is_corrected_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text('{"background": "none"}')
    path = write_mat(tmp_path / "sample1.mat", STACK.holograms, OPTICS)
    assert "default_medium_ri" in advice_on(path, defaults=ReadDefaults(medium_ri=3.0))


def test_a_config_beside_a_tcf_is_corrected_or_taken_away(tmp_path: Path) -> None:
    path = tcf_file(tmp_path / "s" / "s.TCF", device=False)
    (path.parent / "config.dat").write_text("n_m,3.0\n")
    assert "take the file away" in advice_on(path)


def test_values_on_another_scale_are_no_matter_of_exporting(tmp_path: Path) -> None:
    path = write_ome_zarr_ri(tmp_path / "a.zarr", np.full((8, 40, 40), 33.0, np.float32), (0.2, 0.1, 0.1))
    assert "RI x 10,000 as uint16" in advice_on(path)


def test_the_default_advice_is_true_of_every_file() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InputError)]
    assert len(kinds) > 10
    assert not [kind for kind in kinds if EXPORT in kind.action]
