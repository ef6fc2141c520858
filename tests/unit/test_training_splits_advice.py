"""What one is told to do where cells or arguments of a training function are refused: nothing about a configuration file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from wbcd.classification.conformal import fit_conformal
from wbcd.classification.unknown import fit_gauge
from wbcd.errors import BadValue, ConfigurationError
from wbcd.training.checkpoint import KEPT, PROGRESS, resume
from wbcd.training.fromdb import plan
from wbcd.training.oracle import parameters

X, Y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2
SURE = np.tile([0.6, 0.4], (60, 1))

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too few cells": (lambda: fit_gauge(X, Y, X[:48], acceptance=0.99), "Give more held-out cells, or a lower acceptance."),
    "no cell": (lambda: fit_gauge(X, Y + 1, X), "Give training cells of each class"),
    "coverage": (lambda: fit_conformal(SURE, Y, coverage=1.0), "Give a share"),
    "method": (lambda: fit_conformal(SURE, Y, method="best"), "Choose one"),  # type: ignore[arg-type]
    "label_by": (lambda: plan(None, "moon"), "Choose one"),  # type: ignore[arg-type]
    "phantoms": (lambda: parameters(SimpleNamespace(card={}, simulated=False, path="x")), "dataset make"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_refusal_says_what_to_do(case: str) -> None:
    call, wanted = REFUSED[case]
    with pytest.raises(BadValue) as caught:
        call()
    assert wanted in caught.value.advice
    assert ConfigurationError.action not in caught.value.sentence()


def test_a_checkpoint_of_another_name_is_to_be_removed(tmp_path: Path) -> None:
    stored = {"identity": {}, "state": "other.safetensors", **dict.fromkeys(KEPT, 1)}
    (tmp_path / PROGRESS).write_text(json.dumps(stored))
    network = torch.nn.Linear(1, 1)
    with pytest.raises(BadValue, match=r"other\.safetensors") as caught:
        resume(tmp_path, {}, network, torch.optim.SGD(network.parameters()))
    assert caught.value.advice == "Remove the folder and train anew."
