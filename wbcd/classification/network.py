"""The 3D fish network: tail (downsampling), body (upsampling with refinement), head (second downsampling), classifier.

After Ryu et al. 2021 (FishNet-like 3D network) and Sun et al. 2018 (FishNet: the transfer links). Tail, body and head have
three stages each; a stem comes before, a squeeze-and-excitation bridge between tail and body. Channels for width w, sizes
for an input of 1 x 100 x 150 x 150:

    stem      w                  25 x 38 x 38
    down 1    2w, 4w, 8w         12 x 19 x 19, 6 x 9 x 9, 3 x 4 x 4
    bridge    8w                 3 x 4 x 4
    up        12w, 8w, 5w        6 x 9 x 9, 12 x 19 x 19, 25 x 38 x 38
    down 2    13w, 25w, 33w      12 x 19 x 19, 6 x 9 x 9, 3 x 4 x 4
    classes

The joined channels are what the transfers add: up 1 = 8w + 4w (down 1.2); up 2 = 12w/2 + 2w (down 1.1); up 3 = 8w/2 + w
(stem); down 2.1 = 5w + 8w (up 2); down 2.2 = 13w + 12w (up 1); down 2.3 = 25w + 8w (bridge). Every join resizes to the
feature it meets, so any input size works.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01
"""Negative slope of every leaky rectifier; also that of the He initialisation."""

DILATIONS = (1, 2, 4)
"""Of the refinement in up 1, 2, 3: the receptive field grows where the maps do."""

LAST_LAYER_STD = 0.01
"""Of the last layer's weights: the first loss is then ln(classes), where He's would give about 8."""

EARLY, EARLY_CHANNELS = "down 2.1", 13
"""The map whose means tell unknown cells best (measured over all of them, docs/benchmarks.md), and its channels over the width:
later ones have forgotten what does not part the classes, earlier ones have not yet seen the cell as a whole."""

VIEWS: Mapping[int, tuple[tuple[int, ...], ...]] = {1: ((),), 4: ((), (4,), (3,), (3, 4))}
"""How many views of a cell a network takes, and the axes of [n, 1, z, y, x] that are mirrored in each: as it is, and mirrored
in the plane. What it says of them is averaged; a cell has no left and right, so what differs is the network's own."""

PAPER_WIDTH = 48
"""From this width on, the paper's proportions are built; below it, the light ones."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Proportions of a network: bottleneck width = channels / ``squeeze``, and how many bottlenecks each place has.

    ``links``: in the transfers to down 2 from up 2, up 1 and the bridge.
    """

    squeeze: int
    tail: tuple[int, int, int]
    bridge: int
    body: tuple[int, int, int]
    head: tuple[int, int, int]
    links: tuple[int, int, int]


LIGHT = Plan(squeeze=4, tail=(1, 2, 2), bridge=2, body=(2, 1, 1), head=(1, 1, 1), links=(1, 1, 1))
PAPER = Plan(squeeze=2, tail=(2, 1, 1), bridge=2, body=(1, 1, 1), head=(1, 1, 2), links=(1, 3, 3))


def plan_of(width: int) -> Plan:
    """The proportions that belong to a width."""
    return PAPER if width >= PAPER_WIDTH else LIGHT


class Output(NamedTuple):
    """Of one pass: ``logits`` [n, classes]; ``features`` [n, 33 width], pooled after the second downsampling block; ``early``
    [n, 13 width], pooled after :data:`EARLY`, by which cells of no class are told."""

    logits: Tensor
    features: Tensor
    early: Tensor


class Bottleneck(nn.Module):
    """Pre-activated residual block: 1x1x1, 3x3x3 (dilated), 1x1x1, each after batch normalisation and leaky rectifier.

    The shortcut is the identity, the mean over channel groups where channels shrink by an integer, else a 1x1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, squeeze: int, dilation: int = 1) -> None:
        super().__init__()
        middle = max(outputs // squeeze, 1)
        self.outputs = outputs
        self.reduce = inputs // outputs if inputs > outputs and inputs % outputs == 0 else 1
        self.body = nn.Sequential(
            *_activated(inputs, nn.Conv3d(inputs, middle, 1, bias=False)),
            *_activated(middle, nn.Conv3d(middle, middle, 3, padding=dilation, dilation=dilation, bias=False)),
            *_activated(middle, nn.Conv3d(middle, outputs, 1, bias=False)),
        )
        projected = self.reduce == 1 and inputs != outputs
        self.shortcut: nn.Module = nn.Conv3d(inputs, outputs, 1, bias=False) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, z, y, x] -> [n, outputs, z, y, x]."""
        kept = self.shortcut(x)
        if self.reduce > 1:
            # Channels last throughout, as the maps are laid out in training.
            last = x.movedim(1, -1)
            kept = last.reshape(*last.shape[:-1], self.outputs, self.reduce).mean(-1).movedim(-1, 1)
        out: Tensor = kept + self.body(x)
        return out


class LaidOut(torch.autograd.Function):
    """The identity; its gradient gets the memory layout of what went in.

    Max pooling answers in channels first whatever it was given, and all layers before it then walk two layouts at once: a
    seventh of a training step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """``x``."""
        ctx.last = x.is_contiguous(memory_format=torch.channels_last_3d)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient, laid out as ``x`` was."""
        (gradient,) = gradients
        if not ctx.last or gradient.device.type != "cpu" or gradient.is_contiguous(memory_format=torch.channels_last_3d):
            return gradient
        n, channels = gradient.shape[:2]
        out = torch.empty_like(gradient, memory_format=torch.channels_last_3d)
        flat = gradient.reshape(n, channels, -1)
        # One matrix at a time: torch transposes those by blocks, and five axes voxel by voxel.
        for cell, rows in zip(flat, out.movedim(1, -1).view(n, -1, channels), strict=True):
            rows.copy_(cell.t())
        return out


def _laid_out(x: Tensor) -> Tensor:
    out: Tensor = LaidOut.apply(x) if x.requires_grad else x  # type: ignore[no-untyped-call]  # torch has no stub for it
    return out


class MaxPool(nn.MaxPool3d):
    """Max pooling whose gradient keeps the layout."""

    def forward(self, input: Tensor) -> Tensor:
        """[n, channels, z, y, x], pooled."""
        out: Tensor = super().forward(_laid_out(input))
        return out


class Halving(nn.Conv3d):
    """A 3x3x3 convolution of one channel by steps of two.

    While training it is computed as a 2x2x2 convolution of the eight voxels of each block: the same sums, and a gradient of
    the weights in an eighth of the time (oneDNN has no good kernel for a single channel).
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(1, outputs, 3, stride=2, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """[n, 1, z, y, x] -> [n, outputs, ceil(z / 2), ceil(y / 2), ceil(x / 2)]."""
        if not self.training:
            return super().forward(input)
        z, y, x = input.shape[2:]
        padded = F.pad(input, (1, 1 + x % 2, 1, 1 + y % 2, 1, 1 + z % 2))
        blocks = _blocks(padded).contiguous(memory_format=torch.channels_last_3d)
        # The fourth voxel along each axis has no weight.
        weight = _blocks(F.pad(self.weight, (0, 1, 0, 1, 0, 1)))
        return F.conv3d(blocks, weight)


def _blocks(x: Tensor) -> Tensor:
    """[n, 1, 2 z, 2 y, 2 x] -> [n, 8, z, y, x]: the voxels of each block of 2 x 2 x 2 as channels."""
    n, _, z, y, w = x.shape
    split = x.reshape(n, z // 2, 2, y // 2, 2, w // 2, 2)
    return split.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, 8, z // 2, y // 2, w // 2)


class SqueezeExcite(nn.Module):
    """Bottlenecks followed by a gate a channel, computed from the pooled map (Hu et al. 2018)."""

    def __init__(self, channels: int, blocks: int, squeeze: int) -> None:
        super().__init__()
        self.blocks = _chain(channels, channels, blocks, squeeze)
        inner = max(channels // 16, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, inner, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv3d(inner, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        y = self.blocks(x)
        out: Tensor = y * self.gate(y)
        return out


class FishNet3d(nn.Module):
    """The classifier of cells. Input [n, 1, z, y, x], (n - n_m) * 9 clipped at 0; see the module for the stages.

    ``views``: one of :data:`VIEWS`; in training there is always one.
    """

    def __init__(self, classes: int = 4, width: int = 16, views: int = 1) -> None:
        super().__init__()
        w, p = width, plan_of(width)
        s = p.squeeze
        self.width, self.classes, self.views = width, classes, views
        self.stem = _stem(w)
        tail = zip((w, 2 * w, 4 * w), (2 * w, 4 * w, 8 * w), p.tail, strict=True)
        self.down1 = nn.ModuleList(_chain(i, o, n, s) for i, o, n in tail)
        self.bridge = SqueezeExcite(8 * w, p.bridge, s)
        body = zip((8 * w, 12 * w, 8 * w), (8 * w, 6 * w, 4 * w), p.body, DILATIONS, strict=True)
        self.refine = nn.ModuleList(_chain(i, o, n, s, d) for i, o, n, d in body)
        self.up_links = nn.ModuleList(_chain(c, c, 1, s) for c in (4 * w, 2 * w, w))
        self.down2 = nn.ModuleList(_chain(c, c, n, s) for c, n in zip((5 * w, 13 * w, 25 * w), p.head, strict=True))
        self.down_links = nn.ModuleList(_chain(c, c, n, s) for c, n in zip((8 * w, 12 * w, 8 * w), p.links, strict=True))
        self.classifier = _classifier(33 * w, classes)
        self._initialise()

    def stages(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Every stage's map by its name in the table, [n, channels, z, y, x]."""
        maps = OrderedDict(stem=self.stem(x))
        tail = [maps["stem"]]
        for number, block in enumerate(self.down1, start=1):
            tail.append(_halve(block(tail[-1])))
            maps[f"down 1.{number}"] = tail[-1]
        up = self.bridge(tail[-1])
        maps["bridge"] = up
        links = [up]
        for number, (refine, link) in enumerate(zip(self.refine, self.up_links, strict=True), start=1):
            up = _join(refine(up), link(tail[3 - number]))
            links.append(up)
            maps[f"up .{number}"] = up
        down = up
        for number, (block, link) in enumerate(zip(self.down2, self.down_links, strict=True), start=1):
            down = _join(_halve(block(down)), link(links[3 - number]))
            maps[f"down 2.{number}"] = down
        return maps

    def both(self, x: Tensor) -> Output:
        """Logits and pooled features, of several views their means."""
        if self.training or self.views == 1:
            return self._once(x)
        found = self._once(torch.cat([x.flip(axes) if axes else x for axes in VIEWS[self.views]]))
        return Output(*(part.reshape(self.views, len(x), -1).mean(0) for part in found))

    def _once(self, x: Tensor) -> Output:
        maps = self.stages(x)
        head = maps["down 2.3"]
        return Output(self.classifier(head).flatten(1), head.mean((2, 3, 4)), maps[EARLY].mean((2, 3, 4)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes]."""
        return self.both(x).logits

    def features(self, x: Tensor) -> Tensor:
        """[n, 33 width]: the pooled map after the second downsampling block, as the paper's UMAP takes it."""
        return self.both(x).features

    def _initialise(self) -> None:
        if next(self.parameters()).is_meta:
            return  # weights are loaded next; drawing numbers that no memory holds imports torch's compiler: seconds
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The rest of the last layer (its bias) is zero already.
        nn.init.normal_(next(self.classifier[-1].parameters()), std=LAST_LAYER_STD)


ARCHITECTURES: Mapping[str, type[FishNet3d]] = {"fishnet3d": FishNet3d}
"""What a bundle may name: nothing else is ever built from a file."""


def parameter_count(network: nn.Module) -> int:
    """Numbers that a training may change."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(network: FishNet3d, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all convolutions for one input [z, y, x] in all its views; a FLOP figure is twice that.

    Builds nothing: any device.
    """
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv3d):
            total += module.weight.numel() * output[0, 0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv3d)]
    mode = network.training
    network.eval()(torch.zeros((1, 1, *shape), device=next(network.parameters()).device))
    network.train(mode)
    for hook in hooks:
        hook.remove()
    return total * network.views


def _activated(channels: int, convolution: nn.Conv3d) -> tuple[nn.Module, ...]:
    return nn.BatchNorm3d(channels), nn.LeakyReLU(SLOPE, inplace=True), convolution


def _chain(inputs: int, outputs: int, blocks: int, squeeze: int, dilation: int = 1) -> nn.Sequential:
    first = Bottleneck(inputs, outputs, squeeze, dilation)
    return nn.Sequential(first, *(Bottleneck(outputs, outputs, squeeze, dilation) for _ in range(blocks - 1)))


def _stem(width: int) -> nn.Sequential:
    half = max(width // 2, 1)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, half), (half, half), (half, width)):
        convolution = Halving(outputs) if inputs == 1 else nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(outputs), nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers, MaxPool(3, stride=2, padding=1))


def _classifier(channels: int, classes: int) -> nn.Sequential:
    inner = channels // 2
    return nn.Sequential(
        *_activated(channels, nn.Conv3d(channels, inner, 1, bias=False)),
        nn.BatchNorm3d(inner),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.AdaptiveAvgPool3d(1),
        nn.Conv3d(inner, classes, 1),
    )


def _halve(x: Tensor) -> Tensor:
    # An axis of one voxel stays: a pool of two has no output there.
    kernel = [min(2, size) for size in x.shape[2:]]
    return F.max_pool3d(_laid_out(x), kernel)


def _join(x: Tensor, link: Tensor) -> Tensor:
    if x.shape[2:] != link.shape[2:]:
        x = F.interpolate(x, size=link.shape[2:], mode="nearest")
    return torch.cat((x, link), dim=1)
