"""The network against the stage table of the science notes, and at any input size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from wbcd.classification.network import FishNet3d, Halving, multiply_adds, parameter_count

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


@pytest.mark.parametrize("shape", [(8, 10, 12), (7, 9, 11), (1, 6, 5), (1, 1, 1)])
def test_the_first_convolution_by_blocks_is_the_plain_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = Halving(5).double()
    x = torch.rand((3, 1, *shape), dtype=torch.float64)
    plain = F.conv3d(x, layer.weight, stride=2, padding=1)
    blocks = layer.train()(x)
    assert torch.allclose(blocks, plain, rtol=0, atol=1e-12)
    assert torch.equal(layer.eval()(x), plain)
    weights = [torch.autograd.grad(found.square().sum(), layer.weight)[0] for found in (blocks, plain)]
    assert torch.allclose(*weights, rtol=1e-12)


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


def test_mirrored_in_the_plane_a_cell_of_four_views_stays_the_same_and_along_the_axis_it_does_not() -> None:
    network = FishNet3d(4, 4, views=4).eval()
    torch.nn.init.normal_(next(network.classifier[-1].parameters()))
    x = torch.rand((3, 1, 12, 18, 22))
    with torch.no_grad():
        whole = network.both(x)
        once = FishNet3d(4, 4).eval()
        once.load_state_dict(network.state_dict())
        for axes in ((3,), (4,), (3, 4)):
            for a, b in zip(network.both(x.flip(axes)), whole, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(network(x.flip(2)), whole.logits, atol=1e-4)
        assert not torch.allclose(once(x.flip(3)), once(x), atol=1e-4)
        mean = sum(once(x.flip(axes)) for axes in ((), (3,), (4,), (3, 4))) / 4
        torch.testing.assert_close(whole.logits, mean, atol=1e-5, rtol=1e-4)
    assert multiply_adds(network, (12, 18, 22)) == 4 * multiply_adds(once, (12, 18, 22))


def test_in_training_there_is_one_view() -> None:
    network = FishNet3d(4, 4, views=4).train()
    seen: list[int] = []
    network.stem.register_forward_hook(lambda *given: seen.append(len(given[1][0])))
    network(torch.rand((2, 1, 12, 16, 16)))
    assert seen == [2]
