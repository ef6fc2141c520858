"""Batches of cells: counts, order, memory, lost devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_classification import CLASSES, toy_bundle, toy_cell

from wbcd.classification import UNCLASSIFIED, Bundle, Classifier
from wbcd.classification.backends import EagerBackend
from wbcd.classification.network import FishNet3d, Output
from wbcd.errors import BadValue, DeviceError, DeviceLost, OutOfDeviceMemory
from wbcd.records import Cell


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def cells() -> list[Cell]:
    return [toy_cell(1.5 + 0.3 * i, number=i + 1) for i in range(7)]


def test_one_prediction_a_cell_in_order(bundle: Bundle, cells: list[Cell]) -> None:
    together = Classifier(bundle, "cpu", 16).predict(cells)
    alone = [Classifier(bundle, "cpu", 16).predict([c])[0] for c in cells]
    short = Classifier(bundle, "cpu", 3).predict(cells)
    assert len(together) == len(cells)
    for a, b, c in zip(together, alone, short, strict=True):
        assert a.label == b.label == c.label
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
        assert c.probability == pytest.approx(b.probability, abs=1e-5)
    assert len({round(p.probability, 6) for p in together}) > 1


def test_a_prediction_is_whole(bundle: Bundle, cells: list[Cell]) -> None:
    prediction = Classifier(bundle, "cpu").predict(cells[:1])[0]
    assert prediction.model_id == bundle.model_id
    assert tuple(prediction.probabilities) == CLASSES
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.probability == max(prediction.probabilities.values()) == prediction.probabilities[prediction.label]
    assert prediction.features is not None
    assert prediction.features.shape == (33 * 4,)
    assert prediction.flags == ()


def test_no_cells_no_predictions(bundle: Bundle) -> None:
    assert Classifier(bundle, "cpu").predict([]) == []


def test_below_the_least_probability_a_cell_is_unclassified(bundle: Bundle, cells: list[Cell]) -> None:
    predictions = Classifier(bundle, "cpu", min_probability=1.0).predict(cells)
    assert all(UNCLASSIFIED in p.flags for p in predictions if p.probability < 1)


def _failing(monkeypatch: pytest.MonkeyPatch, error: Exception, fits: int) -> list[int]:
    """Batches of more than ``fits`` cells fail; the sizes tried are recorded."""
    sizes: list[int] = []
    real = FishNet3d.both

    def both(self: FishNet3d, x: torch.Tensor) -> Output:
        sizes.append(len(x))
        if len(x) > fits:
            raise error
        return real(self, x)

    monkeypatch.setattr(FishNet3d, "both", both)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: x"),
    ],
)
def test_out_of_memory_halves_the_batch_and_keeps_it(
    bundle: Bundle, cells: list[Cell], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = [p.label for p in Classifier(bundle, "cpu").predict(cells)]
    sizes = _failing(monkeypatch, error, fits=2)
    classifier = Classifier(bundle, "cpu", 8)
    assert [p.label for p in classifier.predict(cells)] == expected
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert classifier.batch_size == 2


def test_one_cell_that_does_not_fit_is_an_error(bundle: Bundle, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."), fits=0)
    with pytest.raises(OutOfDeviceMemory):
        Classifier(bundle, "cpu", 4).predict(cells)


def test_a_poisoned_context_is_a_lost_device(bundle: Bundle, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"), fits=0)
    with pytest.raises(DeviceLost):
        Classifier(bundle, "cpu").predict(cells)


def test_any_other_failure_is_a_device_error(bundle: Bundle, cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), fits=0)
    with pytest.raises(DeviceError) as caught:
        Classifier(bundle, "cpu").predict(cells)
    assert not isinstance(caught.value, (DeviceLost, OutOfDeviceMemory))


def test_temperature_softens_and_keeps_the_label(bundle: Bundle, cells: list[Cell]) -> None:
    from dataclasses import replace

    warm = replace(bundle, model=replace(bundle.model, temperature=4.0))
    for cold, soft in zip(Classifier(bundle, "cpu").predict(cells), Classifier(warm, "cpu").predict(cells), strict=True):
        assert soft.label == cold.label
        assert soft.probability <= cold.probability
        odds = np.log(cold.probability / (1 - cold.probability))
        assert np.log(soft.probability / (1 - soft.probability)) == pytest.approx(odds / 4, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("device", "batch"), [("tpu", 4), ("mps", 4), ("cuda:99", 4), ("cpu", 0)])
def test_senseless_settings_are_refused(bundle: Bundle, device: str, batch: int) -> None:
    with pytest.raises(BadValue):
        Classifier(bundle, device, batch)


def test_warm_up_and_fp32_on_the_cpu(bundle: Bundle) -> None:
    classifier = Classifier(bundle, "cpu")
    classifier.warm_up()
    assert isinstance(classifier.backend, EagerBackend)
    assert classifier.backend.dtype is torch.float32
