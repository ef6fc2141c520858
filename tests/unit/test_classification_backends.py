"""Every backend answers as torch eager does, on real (simulated) cells of the shipped model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers_classification import toy_bundle

from wbcd.classification import Bundle, Classifier, InputSpec, load_bundle
from wbcd.classification.backends import (
    PROBABILITY_TOLERANCE,
    Backend,
    EagerBackend,
    available,
    make_backend,
    padded_batch,
    probe,
    seconds_a_batch,
)
from wbcd.classification.network import FishNet3d, Output
from wbcd.classification.onnxgraph import onnx_model
from wbcd.classification.preparation import delta_ri, normalise
from wbcd.errors import BadValue, ConfigurationError
from wbcd.morphology import find_cells
from wbcd.recipe import Recipe
from wbcd.simulation.cells import CLASSES, sample_phantom
from wbcd.simulation.fast import half_resolution

CPU = torch.device("cpu")
OTHERS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def reference() -> Bundle:
    return load_bundle("reference")


@pytest.fixture(scope="module")
def deltas(reference: Bundle) -> torch.Tensor:
    """Two simulated cells of each class at the model's pitch."""
    rng, fast, made = np.random.default_rng(1), half_resolution(), []
    for kind in CLASSES[::2]:
        found = find_cells(fast.phantom(sample_phantom(kind, rng), rng), Recipe())
        made.append(delta_ri(max(found, key=lambda cell: int(cell.mask.sum())), reference.input))
    return torch.from_numpy(np.stack(made))


@pytest.mark.parametrize("name", OTHERS)
def test_probabilities_and_features_are_eagers(reference: Bundle, deltas: torch.Tensor, name: str) -> None:
    pytest.importorskip(name)
    eager, other = EagerBackend(reference, CPU), make_backend(reference, name)
    assert np.abs(other.probabilities(deltas) - eager.probabilities(deltas)).max() < PROBABILITY_TOLERANCE
    for a, b in zip(other.outputs(deltas), eager.outputs(deltas), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    # The batch is free, and one call does not overwrite the answer of another.
    first = other.outputs(deltas[:1])
    kept = first.logits.clone()
    other.outputs(deltas[1:])
    torch.testing.assert_close(first.logits, kept, rtol=0, atol=0)
    torch.testing.assert_close(kept, eager.outputs(deltas[:1]).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize(("shape", "width"), [((12, 16, 16), 4), ((20, 24, 28), 4), ((9, 33, 17), 3), ((40, 30, 50), 16)])
def test_the_graph_is_the_network_at_any_shape(tmp_path: Path, shape: tuple[int, int, int], width: int, views: int) -> None:
    # Odd sizes resize by fractions, where runtimes round apart unless the indices are written out.
    import onnxruntime

    bundle = toy_bundle(tmp_path / "toy", width=width, views=views)
    model = onnx_model(bundle, shape)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = 0.03 * torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    _, logits, features, early = session.run(None, {"delta_ri": x.numpy()[:, None]})
    with torch.inference_mode():
        wanted = bundle.network.both(normalise(x, InputSpec())[:, None])
    for ours, theirs in zip(wanted, (logits, features, early), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-3, atol=1e-3)


def test_auto_takes_the_fastest_that_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = toy_bundle(tmp_path / "toy")

    class Wrong(EagerBackend):
        """Fast, and wrong."""

        def outputs(self, deltas: torch.Tensor) -> Output:
            return Output(torch.zeros((len(deltas), 2)), torch.zeros((len(deltas), 132)), torch.zeros((len(deltas), 52)))

    class Quick(EagerBackend):
        """Right, and remembers."""

        held: Output | None = None

        def outputs(self, deltas: torch.Tensor) -> Output:
            self.held = self.held or super().outputs(deltas)
            return self.held

    slow = EagerBackend.outputs

    def slowly(self: EagerBackend, deltas: torch.Tensor) -> Output:
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass
        return slow(self, deltas)

    monkeypatch.setattr(EagerBackend, "outputs", slowly)
    monkeypatch.setattr("wbcd.classification.backends.available", lambda device: ["eager", "wrong", "quick", "broken"])
    makers: dict[str, object] = {"wrong": Wrong, "quick": Quick}

    def broken(bundle: Bundle, device: torch.device) -> Backend:
        raise ConfigurationError("not installed.")

    for name, maker in {**makers, "broken": broken}.items():
        monkeypatch.setitem(__import__("wbcd.classification.backends", fromlist=["MAKERS"]).MAKERS, name, maker)
    assert isinstance(make_backend(bundle, "auto"), Quick)


def test_without_libraries_eager_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available(CPU) == ["eager"]
    assert available(torch.device("cuda")) == ["eager", "cuda"]
    assert isinstance(make_backend(toy_bundle(tmp_path / "toy"), "auto"), EagerBackend)


@pytest.mark.parametrize("name", ["tensorrt", "cuda", ""])
def test_senseless_backends_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadValue, match="backend"):
        Classifier(toy_bundle(tmp_path / "toy"), "cpu", backend=name)


@pytest.mark.parametrize("name", OTHERS)
def test_cpu_backends_refuse_a_cuda_device(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadValue, match="CPU only"):
        make_backend(toy_bundle(tmp_path / "toy"), name, torch.device("cuda"))


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigurationError) as caught:
        make_backend(toy_bundle(tmp_path / "toy"), "openvino")
    assert "wbcd[openvino]" in caught.value.sentence()


def test_batches_are_padded_to_powers_of_two() -> None:
    assert [padded_batch(n) for n in (1, 2, 3, 4, 5, 16, 17)] == [1, 2, 4, 4, 8, 16, 32]


def test_a_probe_tells_networks_apart_and_time_is_measured(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy")
    backend = EagerBackend(bundle, CPU)
    found = backend.probabilities(probe(bundle))
    assert found.shape == (4, 2)
    assert np.ptp(found[:, 0]) > 1e-3
    assert seconds_a_batch(backend, probe(bundle, 1)) > 0


def test_an_unknown_layer_has_no_onnx_form(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy")
    network: FishNet3d = bundle.network
    network.stem[2] = torch.nn.GELU()
    with pytest.raises(ConfigurationError, match="GELU"):
        onnx_model(bundle)
