"""The network against the stage table of the science notes, and at any input size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from wbcd.classification.network import FishNet3d, multiply_adds, parameter_count

INPUT = (100, 150, 150)
SIZES = {
    "stem": (25, 38, 38),
    "down 1.1": (12, 19, 19),
    "down 1.2": (6, 9, 9),
    "down 1.3": (3, 4, 4),
    "bridge": (3, 4, 4),
    "up .1": (6, 9, 9),
    "up .2": (12, 19, 19),
    "up .3": (25, 38, 38),
    "down 2.1": (12, 19, 19),
    "down 2.2": (6, 9, 9),
    "down 2.3": (3, 4, 4),
}
CHANNELS = {
    16: (16, 32, 64, 128, 128, 192, 128, 80, 208, 400, 528),
    64: (64, 128, 256, 512, 512, 768, 512, 320, 832, 1600, 2112),
}


@pytest.mark.parametrize(("width", "millions", "gflop"), [(16, 1.05, 6.2), (64, 81, 256)])
def test_stage_table_parameters_and_cost(width: int, millions: float, gflop: float) -> None:
    with torch.device("meta"):
        network = FishNet3d(4, width)
    maps = network.eval().stages(torch.zeros((1, 1, *INPUT), device="meta"))
    assert {k: tuple(v.shape[2:]) for k, v in maps.items()} == SIZES
    assert tuple(v.shape[1] for v in maps.values()) == CHANNELS[width]
    assert parameter_count(network) / 1e6 == pytest.approx(millions, rel=0.01)
    assert 2 * multiply_adds(network, INPUT) / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (16, 33, 20), (40, 64, 64)])
def test_any_input_size_works(shape: tuple[int, int, int]) -> None:
    network = FishNet3d(3, 4).eval()
    with torch.inference_mode():
        logits, features, early = network.both(torch.rand((2, 1, *shape)))
    assert logits.shape == (2, 3)
    assert features.shape == (2, 33 * 4)
    assert early.shape == (2, 13 * 4)
    assert bool(torch.isfinite(logits).all())


def test_first_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    network = FishNet3d(4, 8).train()
    loss = F.cross_entropy(network(torch.rand((8, 1, 16, 24, 24))), torch.arange(8) % 4)
    assert float(loss.detach()) == pytest.approx(math.log(4), abs=0.1)


def test_every_parameter_receives_a_gradient() -> None:
    torch.manual_seed(0)
    network = FishNet3d(4, 4).train()
    F.cross_entropy(network(torch.rand((4, 1, 24, 32, 32))), torch.arange(4)).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []


def test_he_initialisation_by_fan_out() -> None:
    torch.manual_seed(0)
    weight = FishNet3d(4, 32).stem[3].weight.detach()
    fan_out = weight.shape[0] * 27
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / fan_out), rel=0.03)


def test_features_are_the_pooled_second_downsampling() -> None:
    network = FishNet3d(4, 4).eval()
    x = torch.rand((1, 1, 16, 32, 32))
    torch.testing.assert_close(network.features(x), network.stages(x)["down 2.3"].mean((2, 3, 4)))
