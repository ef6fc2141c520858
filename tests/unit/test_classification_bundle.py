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


# --- hostile bundles -----------------------------------------------------------------------------


def _raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file (8 bytes of header length, JSON, data) that says whatever a test wants."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",  # the beginning of a pickle
        b"PK\x03\x04" + bytes(60),  # and of torch.save's zip
        _raw({}, length=2**63),
        _raw({}, length=10**9),
        _raw(b"{" * 1000),
        _raw(b"\xff\xfe{}"),
        _raw([1, 2]),
        _raw({"a": 1}),
        _raw({"a": _tensor(0, 8, [1])}, bytes(8)),
        _raw({"a": _tensor(0, 4, [1]), "b": _tensor(0, 4, [1])}, bytes(4)),  # they overlap
        _raw({"a": _tensor(0, 4, [1]), "b": _tensor(2, 6, [1])}, bytes(6)),
        _raw({"a": _tensor(4, 8, [1])}, bytes(8)),  # a hole
        _raw({"a": _tensor(0, 4, [1])}, bytes(40)),  # bytes that belong to nothing
        _raw({"a": _tensor(0, 4 * 2**40, [2**40])}, bytes(4)),
        _raw({"a": _tensor(0, 4, [2**63, 2**63])}, bytes(4)),
        _raw({"a": _tensor(8, 4, [1])}, bytes(8)),
        _raw({"a": _tensor(-4, 0, [1])}, bytes(4)),
        _raw({"a": _tensor(0, 4, [-1])}, bytes(4)),
        _raw({"a": _tensor(0, 4, [1], "OBJECT")}, bytes(4)),
        _raw({"a": _tensor(0, 0, [0])}),
        _raw({"../../../etc/cron.d/x": _tensor(0, 4, [1])}, bytes(4)),
        _raw({"a\u0000b\u001b[2J": _tensor(0, 4, [1])}, bytes(4)),
        _raw({"__metadata__": {"format": "pt"}}),
        _raw({f"t{i}": _tensor(0, 0, [0]) for i in range(5000)}),
    ],
)
def test_hostile_weights_are_refused_with_a_sentence(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    _redigest(folder)
    with pytest.raises(BundleInvalid, match=r"model\.safetensors") as caught:
        load_bundle(folder)
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


def test_a_tensor_smuggled_under_a_known_name_is_refused(folder: Path) -> None:
    """The right names and sizes, one of them twice in the header: safetensors takes neither."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    first = next(iter(json.loads(text).items()))
    doubled = text[:-1] + b"," + json.dumps({first[0]: _tensor(0, 4, [1])}).encode()[1:]
    file.write_bytes(len(doubled).to_bytes(8, "little") + doubled + data[8 + length :])
    _redigest(folder)
    with pytest.raises(BundleInvalid, match=r"model\.safetensors"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"temperature": 1.0', '"temperature": NaN'),
        ('"temperature": 1.0', '"temperature": Infinity'),
        ('"temperature": 1.0', f'"temperature": 1{"0" * 400}'),
        ('"temperature": 1.0', f'"temperature": 1{"0" * 5000}'),
        ('"training": {', '"training": {"loss": NaN, '),
        ('"simulated": true', '"simulated": 1'),
        ('"name": "toy"', '"name": "toy\\u0000"'),
        ('"name": "toy"', '"name": "../toy"'),
        ('"name": "toy"', '"name": ["toy"]'),
        ('"scale": ', '"scale": -'),
        ('"architecture": {', '"architecture": {"code": "import os", "x": '),
        ('"envelope"', '"envelope": {"volume_fl": [5, 1], "mean_delta_ri": [0, 1]}, "old"'),
    ],
)
def test_hostile_metadata_text(folder: Path, old: str, new: str) -> None:
    file = folder / "metadata.json"
    text = file.read_text()
    if old == '"envelope"':
        text = text.replace('"temperature": 1.0', '"temperature": 1.0, "envelope": 0')
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(BundleInvalid, match=r"metadata\.json"):
        load_bundle(folder)


def test_what_is_too_large_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_WEIGHTS_BYTES", 1000)
    with pytest.raises(BundleInvalid, match="at most 1000 bytes"):
        load_bundle(folder)
    monkeypatch.undo()
    with (folder / "metadata.json").open("a") as stream:
        stream.write(" " * 2**20)
    with pytest.raises(BundleInvalid, match="at most 1048576 bytes"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "metadata.json"])
def test_a_fifo_or_a_folder_in_place_of_a_part(folder: Path, name: str) -> None:
    import os

    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleInvalid, match="regular file"):
        load_bundle(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(BundleInvalid, match="regular file"):
        load_bundle(folder)


def test_nothing_of_a_bundle_is_unpickled(folder: Path) -> None:
    """A pickle under every name that other programs would load: never opened."""
    for name in ("model.pt", "pytorch_model.bin", "model.pth", "optimizer.pt"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/wbcd-pickle'\ntR.")
    assert load_bundle(folder).model_id.startswith("toy@")
    assert not Path("/tmp/wbcd-pickle").exists()


def test_every_prediction_names_the_digest(folder: Path) -> None:
    from helpers_classification import toy_cell

    from wbcd.classification import Classifier

    bundle = load_bundle(folder)
    (prediction,) = Classifier(bundle, device="cpu").predict([toy_cell()])
    name, _, digits = prediction.model_id.partition("@")
    assert (name, digits) == ("toy", bundle.digest[:12])
    # ... and the card that the store keeps under that id gives the whole digest back.
    assert bundles.digest_of_card(bundle.card) == bundle.digest
