"""Whole float32 on CUDA: torch's own flag, by whichever name it has, put back by the last who leaves."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from wbcd.classification.backends import whole_float32

CUDA = torch.device("cuda")


@pytest.fixture(params=["new", "old"])
def cudnn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch's flags with the new name, or as an earlier torch has them."""
    found = SimpleNamespace(allow_tf32=True)
    if request.param == "new":
        found.conv = SimpleNamespace(fp32_precision="tf32")
    monkeypatch.setattr(torch.backends, "cudnn", found)
    return found


def whole(cudnn: SimpleNamespace) -> bool:
    if hasattr(cudnn, "conv"):
        assert cudnn.allow_tf32 is True  # the two names are never mixed
        return bool(cudnn.conv.fp32_precision == "ieee")
    return cudnn.allow_tf32 is False


def test_it_holds_within_and_is_put_back(cudnn: SimpleNamespace) -> None:
    with whole_float32(CUDA):
        assert whole(cudnn)
        with whole_float32(CUDA):
            assert whole(cudnn)
        assert whole(cudnn)
    assert not whole(cudnn)
    with pytest.raises(RuntimeError, match="out of memory"), whole_float32(CUDA):
        raise RuntimeError("out of memory")
    assert not whole(cudnn)


def test_one_thread_does_not_undo_it_for_another(cudnn: SimpleNamespace) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with whole_float32(CUDA):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with whole_float32(CUDA):
        leave.set()
        thread.join(10)
        assert whole(cudnn)
    assert not whole(cudnn)


def test_a_cpu_is_left_alone(cudnn: SimpleNamespace) -> None:
    with whole_float32(torch.device("cpu")):
        assert not whole(cudnn)


def test_torch_has_one_of_the_names() -> None:
    with whole_float32(CUDA):
        conv = getattr(torch.backends.cudnn, "conv", None)
        assert (conv.fp32_precision == "ieee") if hasattr(conv, "fp32_precision") else not torch.backends.cudnn.allow_tf32
