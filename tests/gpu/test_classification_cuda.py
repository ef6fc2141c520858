"""The CUDA backend against eager on the CPU; `.venv/bin/pytest -m gpu` where a device is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_classification import toy_bundle, toy_cell

from wbcd.classification import Bundle, Classifier, load_bundle
from wbcd.classification.backends import PROBABILITY_TOLERANCE, CudaBackend, EagerBackend, make_backend, probe
from wbcd.classification.bench import bfloat16_is_equal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["toy", "reference"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return toy_bundle(tmp_path / "toy") if request.param == "toy" else load_bundle("reference")


def test_graphs_answer_as_eager_on_the_cpu(bundle: Bundle) -> None:
    given = probe(bundle, 7)
    wanted = EagerBackend(bundle, torch.device("cpu")).probabilities(given)
    backend = CudaBackend(bundle, torch.device("cuda"))
    for size in (1, 2, 3, 7, 3):  # padded sizes, and a graph used again
        np.testing.assert_allclose(backend.probabilities(given[:size]), wanted[:size], atol=PROBABILITY_TOLERANCE)


def test_one_answer_does_not_overwrite_another(bundle: Bundle) -> None:
    given = probe(bundle, 4)
    backend = CudaBackend(bundle, torch.device("cuda"))
    first = backend.outputs(given[:2])
    kept = first.logits.clone()
    backend.outputs(given[2:])
    assert torch.equal(first.logits, kept)


def test_bfloat16_only_where_it_was_proved(bundle: Bundle) -> None:
    device = torch.device("cuda")
    assert CudaBackend(bundle, device).dtype is torch.float32
    proved = replace(bundle, model=replace(bundle.model, bfloat16=True))
    assert CudaBackend(proved, device).dtype is torch.bfloat16
    assert np.isfinite(CudaBackend(proved, device).probabilities(probe(bundle))).all()


def test_bfloat16_is_called_equal_only_where_it_is(bundle: Bundle) -> None:
    device, given = torch.device("cuda"), probe(bundle)
    proved = replace(bundle, model=replace(bundle.model, bfloat16=True))
    change = np.abs(CudaBackend(proved, device).probabilities(given) - EagerBackend(bundle, device).probabilities(given)).max()
    assert bfloat16_is_equal(bundle, given, device) == (change <= PROBABILITY_TOLERANCE)


def test_auto_and_the_classifier_run_there(bundle: Bundle) -> None:
    assert make_backend(bundle, "auto", torch.device("cuda")).device.type == "cuda"
    there = Classifier(bundle, "cuda", backend="cuda").predict([toy_cell()])
    here = Classifier(bundle, "cpu").predict([toy_cell()])
    assert there[0].label == here[0].label


def test_shrinking_gives_the_graphs_back(bundle: Bundle) -> None:
    backend = CudaBackend(bundle, torch.device("cuda"))
    wanted = backend.probabilities(probe(bundle, 2))
    backend.shrink()
    np.testing.assert_allclose(backend.probabilities(probe(bundle, 2)), wanted, atol=1e-5)
