"""Bundles: what is saved comes back; what was tampered with is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_classification import CLASSES, SPEC, toy_bundle
from safetensors.torch import load_file, save_file

from wbcd.classification import FishNet3d, ModelCard, load_bundle, save_bundle
from wbcd.classification import bundle as bundles
from wbcd.errors import BundleInvalid, UnknownModel


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy").path


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "toy")


def test_round_trip(folder: Path) -> None:
    first, second = load_bundle(folder), load_bundle(str(folder))
    assert first.classes == CLASSES
    assert first.input == SPEC
    assert first.model_id == second.model_id
    assert first.model_id.startswith("toy@")
    assert len(first.model_id) == len("toy@") + 12
    assert not first.network.training
    x = torch.rand((1, 1, 12, 16, 16))
    torch.testing.assert_close(first.network(x), second.network(x))
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "metadata.json", "README.md"}


def test_the_card_has_monai_keys_and_says_simulated(folder: Path) -> None:
    card = load_bundle(folder).card
    assert {"version", "monai_version", "pytorch_version", "numpy_version", "task", "network_data_format"} <= set(card)
    assert card["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "small", "1": "large"}
    assert card["wbcd"]["simulated"] is True
    assert "simulated" in (folder / "README.md").read_text()


def test_the_id_follows_what_changes_a_probability(tmp_path: Path) -> None:
    network = FishNet3d(2, 4)
    one = save_bundle(tmp_path / "a", network, ModelCard("m", CLASSES, width=4, input=SPEC))
    measured = save_bundle(tmp_path / "b", network, ModelCard("m", CLASSES, width=4, input=SPEC, measured={"accuracy": 0.9}))
    warmer = save_bundle(tmp_path / "c", network, ModelCard("m", CLASSES, width=4, input=SPEC, temperature=1.5))
    swapped = save_bundle(tmp_path / "d", network, ModelCard("m", CLASSES[::-1], width=4, input=SPEC))
    assert one.model_id == measured.model_id
    assert len({one.model_id, warmer.model_id, swapped.model_id}) == 3


def _set(path: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(card: dict[str, Any]) -> None:
        for key in path[:-1]:
            card = card[key]
        card[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("wbcd",), None),
        (("wbcd", "format_version"), 99),
        (("wbcd", "name"), "../../etc"),
        (("wbcd", "classes"), ["a"]),
        (("wbcd", "classes"), ["a", "a"]),
        (("wbcd", "classes"), ["a", "b", "c"]),
        (("wbcd", "classes"), "ab"),
        (("wbcd", "architecture"), {"name": "os.system", "arguments": {}}),
        (("wbcd", "architecture", "arguments"), {"classes": 2, "width": 10**9}),
        (("wbcd", "architecture", "arguments"), {"classes": 2, "width": True}),
        (("wbcd", "architecture", "arguments"), {"classes": 2, "width": 8}),
        (("wbcd", "input", "axes"), "xyz"),
        (("wbcd", "input", "shape"), [4096, 4096, 4096]),
        (("wbcd", "input", "shape"), [12.5, 16, 16]),
        (("wbcd", "input", "voxel_um"), [0.0, 0.1, 0.1]),
        (("wbcd", "input", "medium_ri_rule"), "none"),
        (("wbcd", "input", "normalisation"), {"scale": 9, "clip_below": 1}),
        (("wbcd", "temperature"), 0.0),
        (("wbcd", "temperature"), "hot"),
        (("wbcd", "simulated"), "no"),
        (("wbcd", "digests"), {}),
        (("wbcd", "digests"), None),
    ],
)
def test_bad_metadata_is_refused_with_file_field_and_value(folder: Path, path: tuple[str, ...], value: Any) -> None:
    file = folder / "metadata.json"
    card = json.loads(file.read_text())
    _set(path, value)(card)
    file.write_text(json.dumps(card))
    with pytest.raises(BundleInvalid) as caught:
        load_bundle(folder)
    assert str(folder) in caught.value.message
    assert caught.value.advice


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_metadata_that_is_no_object(folder: Path, text: bytes) -> None:
    (folder / "metadata.json").write_bytes(text)
    with pytest.raises(BundleInvalid):
        load_bundle(folder)


def test_a_flipped_bit_in_the_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleInvalid, match="digest"):
        load_bundle(folder)


def _redigest(folder: Path) -> None:
    file = folder / "metadata.json"
    card = json.loads(file.read_text())
    card["wbcd"]["digests"]["model.safetensors"] = bundles.weights_digest((folder / "model.safetensors").read_bytes())
    file.write_text(json.dumps(card))


@pytest.mark.parametrize("what", ["missing", "extra", "shape", "dtype", "nan"])
def test_weights_that_do_not_fit_the_architecture(folder: Path, what: str) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    name = "stem.0.weight"
    if what == "missing":
        del state[name]
    elif what == "extra":
        state["more"] = torch.zeros(1)
    elif what == "shape":
        state[name] = state[name][:, :, :2].contiguous()
    elif what == "dtype":
        state[name] = state[name].half()
    else:
        state[name][0] = float("nan")
    save_file(state, file)
    _redigest(folder)
    with pytest.raises(BundleInvalid, match="more" if what == "extra" else name):
        load_bundle(folder)


def test_weights_that_are_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    _redigest(folder)
    with pytest.raises(BundleInvalid, match="safetensors"):
        load_bundle(folder)


def test_oversized_weights_are_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(BundleInvalid, match="at most 100 bytes"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "metadata.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleInvalid, match=name):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["no-such-model", "../models", "/nowhere/at/all", ""])
def test_unknown_models_are_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UnknownModel, BundleInvalid)):
        load_bundle(name)


def test_a_shipped_name_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_bundle(tmp_path / "models" / "reference", name="reference")
    monkeypatch.setattr(bundles, "MODELS", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    assert load_bundle("reference").model.name == "reference"
    with pytest.raises(UnknownModel, match="reference"):
        load_bundle("another")
