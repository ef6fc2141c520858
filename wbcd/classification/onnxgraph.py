"""The fish network as an ONNX graph, written node by node: no tracing, no TorchScript, no code in the file.

One file holds all: n - n_m at the network's pitch goes in, probabilities, logits and pooled features come out; normalisation
and temperature are nodes of the graph. Initialisers carry the names of the bundle's tensors. The spatial shape is fixed, the
batch is free. Written against opset 18, which ONNX Runtime 1.14+ and OpenVINO 2023+ read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wbcd.classification.bundle import Bundle
from wbcd.classification.network import EARLY_CHANNELS, VIEWS, Bottleneck, FishNet3d, SqueezeExcite
from wbcd.errors import ConfigurationError
from wbcd.records import Shape3

OPSET, IR_VERSION = 18, 9
INPUT, PROBABILITIES, LOGITS, FEATURES, EARLY_FEATURES = "delta_ri", "probabilities", "logits", "features", "early_features"
OUTPUTS = (PROBABILITIES, LOGITS, FEATURES, EARLY_FEATURES)


def onnx_model(bundle: Bundle, shape: Shape3 | None = None) -> Any:
    """The bundle's network as an ``onnx.ModelProto`` for inputs [n, 1, *shape] (the bundle's own shape by default).

    Raises ConfigurationError without the ``onnx`` package.
    """
    onnx = _onnx()
    graph = _Graph(onnx, bundle.network)
    outputs = graph.write(bundle, shape or bundle.input.shape)
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    made = onnx.helper.make_graph(
        graph.nodes,
        "wbcd",
        [value(INPUT, kind, ["n", 1, *(shape or bundle.input.shape)])],
        [value(name, kind, ["n", width]) for name, width in outputs],
        graph.initialisers,
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(made, producer_name="wbcd", opset_imports=[opset], ir_version=IR_VERSION)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ConfigurationError("onnx is not installed.", action="Install the extra: pip install 'wbcd[exchange]'.") from error
    return onnx


class _Graph:
    """Nodes and initialisers as they are added; a value is its name, and :attr:`sizes` knows its (z, y, x)."""

    def __init__(self, onnx: Any, network: FishNet3d) -> None:
        self.onnx, self.network = onnx, network
        self.nodes: list[Any] = []
        self.initialisers: list[Any] = []
        self.sizes: dict[str, Shape3] = {}

    def write(self, bundle: Bundle, shape: Shape3) -> list[tuple[str, int]]:
        """All of it; names and widths of the outputs."""
        self.sizes[INPUT] = shape
        scaled = self.node("Mul", [INPUT, self.number("scale", bundle.input.scale)], shape)
        early, head = self.stages(self.views(self.node("Relu", [scaled], shape)))
        classes, width = self.network.classes, self.network.width
        self.flat(head, 33 * width, FEATURES)
        self.flat(early, EARLY_CHANNELS * width, EARLY_FEATURES)
        logits = self.classifier(head)
        tempered = self.node("Div", [logits, self.number("temperature", bundle.model.temperature)])
        self.node("Softmax", [tempered], name=PROBABILITIES, axis=1)
        return list(zip(OUTPUTS, (classes, classes, 33 * width, EARLY_CHANNELS * width), strict=True))

    def views(self, x: str) -> str:
        """Every view of the batch, one after the other."""
        size, made = self.sizes[x], []
        for axes in VIEWS[self.network.views]:
            view = x
            for axis in axes:
                view = self.node("Gather", [view, self.integers(list(range(size[axis - 2]))[::-1])], size, axis=axis)
            made.append(view)
        return x if len(made) == 1 else self.node("Concat", made, size, axis=0)

    def flattened(self, x: str, channels: int, name: str) -> str:
        """[n, channels] under a name: the means over the views of [views n, channels, 1, 1, 1]."""
        views = self.network.views
        if views == 1:
            return self.node("Flatten", [x], name=name, axis=1)
        apart = self.node("Reshape", [x, self.integers([views, -1, channels])])
        return self.node("ReduceMean", [apart, self.integers([0])], name=name, keepdims=0)

    def stages(self, x: str) -> tuple[str, str]:
        """As :meth:`FishNet3d.stages`; the maps "down 2.1" and "down 2.3"."""
        net = self.network
        tail = [self.sequence(net.stem, "stem", x)]
        for number, block in enumerate(net.down1):
            tail.append(self.halve(self.sequence(block, f"down1.{number}", tail[-1])))
        up = self.excite(net.bridge, "bridge", tail[-1])
        links = [up]
        for number, (refine, link) in enumerate(zip(net.refine, net.up_links, strict=True)):
            refined = self.sequence(refine, f"refine.{number}", up)
            up = self.join(refined, self.sequence(link, f"up_links.{number}", tail[2 - number]))
            links.append(up)
        down, heads = up, []
        for number, (block, link) in enumerate(zip(net.down2, net.down_links, strict=True)):
            halved = self.halve(self.sequence(block, f"down2.{number}", down))
            down = self.join(halved, self.sequence(link, f"down_links.{number}", links[2 - number]))
            heads.append(down)
        return heads[0], heads[-1]

    def classifier(self, head: str) -> str:
        """Logits [n, classes] under their name."""
        scores = self.sequence(self.network.classifier, "classifier", head)
        return self.flattened(scores, self.network.classes, LOGITS)

    def flat(self, x: str, channels: int, name: str) -> str:
        """Mean over (z, y, x), [n, channels]."""
        return self.flattened(self.node("GlobalAveragePool", [x], (1, 1, 1)), channels, name)

    # --- modules ---

    def sequence(self, modules: nn.Module, prefix: str, x: str) -> str:
        """Every child in turn."""
        for name, module in modules.named_children():
            x = self.module(module, f"{prefix}.{name}", x)
        return x

    def module(self, module: nn.Module, prefix: str, x: str) -> str:
        """One layer or block."""
        size = self.sizes[x]
        match module:
            case Bottleneck():
                return self.bottleneck(module, prefix, x)
            case nn.Conv3d():
                return self.convolution(module, prefix, x)
            case nn.BatchNorm3d():
                return self.normalisation(module, prefix, x)
            case nn.LeakyReLU():
                return self.node("LeakyRelu", [x], size, alpha=float(module.negative_slope))
            case nn.MaxPool3d():
                return self.pool(x, _three(module.kernel_size), _three(module.stride), _three(module.padding))
            case nn.AdaptiveAvgPool3d():
                return self.node("GlobalAveragePool", [x], (1, 1, 1))
            case nn.Sigmoid():
                return self.node("Sigmoid", [x], size)
            case _:
                raise ConfigurationError(f"layer {prefix} is a {type(module).__name__}, which has no ONNX form here.")

    def bottleneck(self, block: Bottleneck, prefix: str, x: str) -> str:
        """Shortcut plus body."""
        size = self.sizes[x]
        kept = x
        if block.reduce > 1:
            grouped = self.node("Reshape", [x, self.integers([0, block.outputs, block.reduce, -1])])
            mean = self.node("ReduceMean", [grouped, self.integers([2])], keepdims=0)
            kept = self.node("Reshape", [mean, self.integers([0, block.outputs, *size])], size)
        elif isinstance(block.shortcut, nn.Conv3d):
            kept = self.convolution(block.shortcut, f"{prefix}.shortcut", x)
        return self.node("Add", [kept, self.sequence(block.body, f"{prefix}.body", x)], size)

    def excite(self, block: SqueezeExcite, prefix: str, x: str) -> str:
        """Bottlenecks, then a gate a channel."""
        y = self.sequence(block.blocks, f"{prefix}.blocks", x)
        return self.node("Mul", [y, self.sequence(block.gate, f"{prefix}.gate", y)], self.sizes[y])

    def convolution(self, layer: nn.Conv3d, prefix: str, x: str) -> str:
        """With zero padding."""
        weights = [self.tensor(f"{prefix}.weight", layer.weight)]
        if layer.bias is not None:
            weights.append(self.tensor(f"{prefix}.bias", layer.bias))
        kernel, stride, dilation = _three(layer.kernel_size), _three(layer.stride), _three(layer.dilation)
        padding = _three(layer.padding)
        size = _after(self.sizes[x], kernel, stride, padding, dilation)
        return self.node("Conv", [x, *weights], size, kernel_shape=kernel, strides=stride, pads=padding * 2, dilations=dilation)

    def normalisation(self, layer: nn.BatchNorm3d, prefix: str, x: str) -> str:
        """By the running statistics."""
        state = layer.state_dict()
        names = [self.tensor(f"{prefix}.{key}", state[key]) for key in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", [x, *names], self.sizes[x], epsilon=layer.eps)

    def pool(self, x: str, kernel: list[int], stride: list[int], padding: list[int]) -> str:
        """Largest value of each window."""
        size = _after(self.sizes[x], kernel, stride, padding, [1, 1, 1])
        return self.node("MaxPool", [x], size, kernel_shape=kernel, strides=stride, pads=padding * 2)

    def halve(self, x: str) -> str:
        """As the network's: an axis of one voxel stays."""
        kernel = [min(2, n) for n in self.sizes[x]]
        return self.pool(x, kernel, kernel, [0, 0, 0])

    def join(self, x: str, link: str) -> str:
        """``x`` brought to the size of ``link`` by nearest voxels, then both side by side."""
        size = self.sizes[link]
        if self.sizes[x] != size:
            x = self.resized(x, size)
        return self.node("Concat", [x, link], size, axis=1)

    def resized(self, x: str, size: Shape3) -> str:
        """Nearest voxels. Whole factors by Resize; for others runtimes round apart, so the indices are written out."""
        have = self.sizes[x]
        if all(n % m == 0 for n, m in zip(size, have, strict=True)):
            scales = self.tensor_of("scales", torch.tensor([1.0, 1.0, *(n / m for n, m in zip(size, have, strict=True))]))
            return self.node(
                "Resize", [x, "", scales], size,
                mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
        for axis, (n, m) in enumerate(zip(size, have, strict=True)):
            if n != m:
                source = nn.functional.interpolate(torch.arange(float(m))[None, None], size=n, mode="nearest").flatten()
                z, y, x_axis = (n if i == axis else each for i, each in enumerate(have))
                have = (z, y, x_axis)
                x = self.node("Gather", [x, self.integers(source.long().tolist())], have, axis=axis + 2)
        return x

    # --- nodes and numbers ---

    def node(
        self, op: str, inputs: list[str], size: Shape3 | None = None, *, name: str | None = None, **attributes: Any
    ) -> str:
        """Add a node; the name of its output."""
        output = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
        if size is not None:
            self.sizes[output] = size
        return output

    def tensor(self, name: str, values: Tensor) -> str:
        """An initialiser under a name of the state dictionary."""
        array = values.detach().cpu().contiguous().numpy()
        self.initialisers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def tensor_of(self, what: str, values: Tensor) -> str:
        """An initialiser under a name of its own."""
        return self.tensor(f"{what}_{len(self.initialisers)}", values)

    def number(self, what: str, value: float) -> str:
        return self.tensor_of(what, torch.tensor([value], dtype=torch.float32))

    def integers(self, values: Sequence[int]) -> str:
        return self.tensor_of("integers", torch.tensor(values, dtype=torch.int64))


def _three(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 3


def _after(size: Shape3, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Shape3:
    """Spatial size after a convolution or a pool (rounded down)."""
    z, y, x = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return z, y, x
