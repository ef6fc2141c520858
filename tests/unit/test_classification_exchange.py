"""Exchange: what goes out is checked, what comes in is refused unless every part holds."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import json
import socket
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers_classification import toy_bundle

from wbcd.classification import Bundle, Classifier, fit_gauge, save_bundle
from wbcd.classification.backends import EagerBackend, probe
from wbcd.classification.exchange import export_bioimageio, export_onnx, import_model, sha256
from wbcd.classification.network import EARLY_CHANNELS
from wbcd.errors import BadValue, BundleInvalid


@pytest.fixture(scope="module", params=[1, 4], ids=["one view", "four views"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy", views=request.param)


@pytest.fixture(scope="module")
def exported(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("onnx") / "toy.onnx"
    return file, export_onnx(bundle, file)


def test_one_onnx_file_that_onnxruntime_reads_as_eager(bundle: Bundle, exported: tuple[Path, str]) -> None:
    file, digest = exported
    assert sha256(file.read_bytes()) == digest
    assert [p.name for p in file.parent.iterdir()] == ["toy.onnx"]
    onnx.checker.check_model(str(file), full_check=True)
    given = probe(bundle)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"delta_ri": given.numpy()[:, None]})
    np.testing.assert_allclose(found, EagerBackend(bundle, torch.device("cpu")).probabilities(given), atol=1e-4)


def test_there_and_back_is_the_same_model(bundle: Bundle, exported: tuple[Path, str], tmp_path: Path) -> None:
    back = import_model(*exported, tmp_path / "back")
    assert back.model_id == bundle.model_id
    assert (back.path / "model.safetensors").read_bytes() == (bundle.path / "model.safetensors").read_bytes()
    Classifier(back, "cpu").warm_up()


@pytest.fixture(scope="module")
def knowing(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """It has a distance by which unknown cells are told."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((240, EARLY_CHANNELS * bundle.model.width)).astype(np.float32)
    labels = np.arange(240) % len(bundle.classes)
    gauge = fit_gauge(features, labels, features[:120])
    return save_bundle(tmp_path_factory.mktemp("knowing") / "bundle", bundle.network, bundle.model, gauge)


def test_what_tells_unknown_cells_travels_with_the_model(knowing: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "toy.onnx"
    back = import_model(file, export_onnx(knowing, file), tmp_path / "back")
    assert back.model_id == knowing.model_id
    assert back.gauge is not None
    assert knowing.gauge is not None
    features = np.random.default_rng(1).standard_normal((5, knowing.gauge.means.shape[1])).astype(np.float32)
    np.testing.assert_array_equal(back.gauge.distance(features), knowing.gauge.distance(features))


def _no_gauge(model: Any) -> None:
    del model.metadata_props[1]


def _gauge_no_base64(model: Any) -> None:
    model.metadata_props[1].value = "%"


def _another_gauge(model: Any) -> None:
    model.metadata_props[1].value = model.metadata_props[1].value[:-8] + "AAAAAAA="


@pytest.mark.parametrize(
    ("change", "what"),
    [(_no_gauge, "0 metadata entries"), (_gauge_no_base64, "not base64"), (_another_gauge, "BLAKE2b digest")],
)
def test_a_distance_that_does_not_hold_is_refused(knowing: Bundle, tmp_path: Path, change: Any, what: str) -> None:
    file = tmp_path / "toy.onnx"
    digest = export_onnx(knowing, file)
    with pytest.raises(BundleInvalid, match=what):
        import_model(*_changed((file, digest), tmp_path, change), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches for the network fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("offline")
def test_a_model_whose_logits_are_all_negative_can_be_packed(bundle: Bundle, tmp_path: Path) -> None:
    network = copy.deepcopy(bundle.network)
    with torch.no_grad():
        network.classifier[-1].weight.zero_()
        network.classifier[-1].bias.copy_(torch.tensor([-3.0, -2.0]))
    export_bioimageio(dataclasses.replace(bundle, network=network), tmp_path / "negative.zip")
    with zipfile.ZipFile(tmp_path / "negative.zip") as archive:
        given = json.loads(archive.read("rdf.yaml"))["config"]["bioimageio"]["reproducibility_tolerance"]
    assert [row["output_ids"] for row in given] == [["probabilities"], ["features"], ["early_features"]]


@pytest.mark.usefixtures("offline")
def test_a_bioimageio_package_is_valid_and_comes_back(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "toy.zip"
    digest = export_bioimageio(bundle, file)
    with zipfile.ZipFile(file) as archive:
        rdf = json.loads(archive.read("rdf.yaml"))
        weights = archive.read("weights.onnx")
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
        given, wanted = (np.load(io.BytesIO(archive.read(f"test_{n}.npy"))) for n in ("delta_ri", "probabilities"))
    assert rdf["weights"]["onnx"]["sha256"] == digest == sha256(weights)
    assert {"rdf.yaml", "README.md", "weights.onnx", "test_delta_ri.npy", "test_probabilities.npy"} <= names
    (found,) = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"]).run(
        ["probabilities"], {"delta_ri": given}
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bioimageio.spec import InvalidDescr, ValidationContext, load_description

        with ValidationContext(perform_io_checks=True):
            # From the folder: from a zip the library leaves the file open; what it leaves open else is collected here.
            described = load_description(tmp_path / "unpacked" / "rdf.yaml")
            gc.collect()
    assert not isinstance(described, InvalidDescr)
    assert import_model(file, digest, tmp_path / "back").model_id == bundle.model_id


def test_without_the_right_digest_nothing_is_read(exported: tuple[Path, str], tmp_path: Path) -> None:
    file, digest = exported
    with pytest.raises(BundleInvalid, match="SHA-256"):
        import_model(file, "0" * 64, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert import_model(file, f" {digest.upper()} ", tmp_path / "back").classes == ("small", "large")


def _changed(exported: tuple[Path, str], tmp_path: Path, change: Any) -> tuple[Path, str]:
    model = onnx.load(str(exported[0]))
    change(model)
    data = model.SerializeToString()
    file = tmp_path / "changed.onnx"
    file.write_bytes(data)
    return file, sha256(data)


def _external(model: Any) -> None:
    entry = model.graph.initializer[0]
    entry.ClearField("raw_data")
    entry.data_location = onnx.TensorProto.EXTERNAL
    item = entry.external_data.add()
    item.key, item.value = "location", "/etc/passwd"


def _foreign(model: Any) -> None:
    model.graph.node[1].domain = "com.example"


def _loop(model: Any) -> None:
    model.graph.node[1].op_type = "Loop"


def _constant(model: Any) -> None:
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(3), "x")))


def _function(model: Any) -> None:
    model.functions.append(onnx.helper.make_function("com.example", "f", [], [], [], [onnx.helper.make_opsetid("", 18)]))


def _without_card(model: Any) -> None:
    del model.metadata_props[:]


def _card_no_json(model: Any) -> None:
    model.metadata_props[0].value = "{"


def _another_architecture(model: Any) -> None:
    card = json.loads(model.metadata_props[0].value)
    card["architecture"]["name"] = "os.system"
    model.metadata_props[0].value = json.dumps(card)


def _counters(model: Any) -> None:
    card = json.loads(model.metadata_props[0].value)
    card["counters"] = {"stem.1.num_batches_tracked": "many"}
    model.metadata_props[0].value = json.dumps(card)


def _tensor_missing(model: Any) -> None:
    for entry in model.graph.initializer:
        if entry.name == "stem.0.weight":
            entry.name = "other"
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "stem.0.weight":
                node.input[place] = "other"


def _not_finite(model: Any) -> None:
    for entry in model.graph.initializer:
        if entry.name == "stem.0.weight":
            values = onnx.numpy_helper.to_array(entry).copy()
            values.flat[0] = np.nan
            entry.CopyFrom(onnx.numpy_helper.from_array(values, entry.name))


def _another_slope(model: Any) -> None:
    # The numbers hold, the graph computes something else: whoever ran it would have another model than the one imported.
    for node in model.graph.node:
        if node.op_type == "LeakyRelu":
            node.attribute[0].f = 0.9


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_external, "external data"),
        (_foreign, "none of those"),
        (_loop, "none of those"),
        (_constant, "of its own"),
        (_function, "none of those"),
        (_without_card, "metadata"),
        (_card_no_json, "not JSON"),
        (_another_architecture, "architecture"),
        (_counters, "counters"),
        (_tensor_missing, "stem.0.weight"),
        (_not_finite, "finite"),
        (_another_slope, "depart"),
    ],
)
def test_a_file_with_a_part_that_does_not_hold_is_refused(
    exported: tuple[Path, str], tmp_path: Path, change: Any, what: str
) -> None:
    with pytest.raises(BundleInvalid, match=what):
        import_model(*_changed(exported, tmp_path, change), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04 no archive", b"\x80\x04cposix\nsystem\n."])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(data)
    with pytest.raises(BundleInvalid):
        import_model(file, sha256(data), tmp_path / "back")


def test_a_package_without_its_entry_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rdf.yaml", "{}")
    with pytest.raises(BundleInvalid, match="ONNX entries"):
        import_model(file, "0" * 64, tmp_path / "back")
    with pytest.raises(BundleInvalid, match="cannot be read"):
        import_model(tmp_path / "absent.onnx", "0" * 64, tmp_path / "back")


def test_nothing_is_imported_over_a_bundle(bundle: Bundle, exported: tuple[Path, str], tmp_path: Path) -> None:
    kept = import_model(*exported, tmp_path / "back")
    with pytest.raises(BadValue, match=f"holds {kept.model_id} already"):
        import_model(*exported, tmp_path / "back")
