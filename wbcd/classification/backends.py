"""What computes the network: torch as it is, torch on a CUDA device by graphs, ONNX Runtime, OpenVINO; one interface for all.

    backend = make_backend(bundle, "openvino")
    backend.probabilities(deltas)          # n - n_m [n, z, y, x] -> [n, classes]

Each answers within PROBABILITY_TOLERANCE of torch eager, which is the reference; ``auto`` measures those that are installed on
a probe, drops one that departs further, and takes the fastest. Nothing in a bundle says how it is run.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wbcd.classification.bundle import Bundle
from wbcd.classification.network import Output
from wbcd.classification.preparation import normalise
from wbcd.errors import BadValue, ConfigurationError, DeviceError, OutOfDeviceMemory

BACKENDS = ("eager", "cuda", "onnxruntime", "openvino")
PROBABILITY_TOLERANCE = 1e-3
"""Largest departure of a probability from eager's: a hundredth of what two seeds of a training differ by."""
PROBE_BATCH, PROBE_REPEATS = 4, 3
GRAPH_WARM_UPS = 3
"""Passes before a CUDA graph is captured: cuDNN chooses its kernels in them, which a capture forbids."""


_FLOAT32 = threading.Lock()
_float32_depth = 0
_float32_before: Any = None


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Convolutions on CUDA in float32 as it is written.

    torch's own choice there is TF32, which keeps three digits: an H100 departed from the CPU by 0.003 of a probability. The
    choice is the process's: the first of several threads makes it, the last puts it back.
    """
    global _float32_before, _float32_depth
    if device.type != "cuda":
        yield
        return
    # The new name where torch has it: it refuses the old one once anybody has used the new.
    flags, name, value = _float32_flag()
    with _FLOAT32:
        if _float32_depth == 0:
            _float32_before = getattr(flags, name)
            setattr(flags, name, value)
        _float32_depth += 1
    try:
        yield
    finally:
        with _FLOAT32:
            _float32_depth -= 1
            if _float32_depth == 0:
                setattr(flags, name, _float32_before)


def _float32_flag() -> tuple[Any, str, Any]:
    conv = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(conv, "fp32_precision"):
        return conv, "fp32_precision", "ieee"
    return torch.backends.cudnn, "allow_tf32", False


class Backend(ABC):
    """One way to compute a bundle's network."""

    name: str

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.bundle, self.device = bundle, device

    @abstractmethod
    def outputs(self, deltas: Tensor) -> Output:
        """Logits and pooled features, float32 on the CPU, of n - n_m [n, z, y, x]. Raises RuntimeError as the library does."""

    def probabilities(self, deltas: Tensor) -> NDArray[np.float64]:
        """softmax(logits / temperature), [n, classes]."""
        return tempered(self.outputs(deltas).logits, self.bundle.model.temperature)

    def shrink(self) -> None:
        """Give back what memory it can; called after it did not suffice."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def tempered(logits: Tensor, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature) in float64, [n, classes]."""
    out: NDArray[np.float64] = torch.softmax(logits.double() / temperature, dim=1).numpy()
    return out


class EagerBackend(Backend):
    """torch, operation by operation: the reference. float32, but bfloat16 on a CUDA device where the evaluation proved it."""

    name = "eager"

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        super().__init__(bundle, device)
        self.dtype = torch.bfloat16 if device.type == "cuda" and bundle.model.bfloat16 else torch.float32
        self.network = bundle.network.to(device)

    def outputs(self, deltas: Tensor) -> Output:
        with torch.inference_mode(), whole_float32(self.device):
            x = normalise(deltas.to(self.device), self.bundle.input)[:, None]
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                found = self.network.both(x)
            return Output(*(part.float().cpu() for part in found))


class CudaBackend(Backend):
    """torch on a CUDA device: channels last, bfloat16 where the bundle's evaluation proved it, each batch size one CUDA graph.

    Batches are padded to a power of two, so that few graphs are captured; what was padded is cut off again. A network of
    a hundred small kernels is bound by their launches, which a graph replays as one.
    """

    name = "cuda"

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        super().__init__(bundle, device)
        self.dtype = torch.bfloat16 if bundle.model.bfloat16 else torch.float32
        # A copy: the bundle's network stays as it is for whoever else holds it. torch's stubs do not know the keyword.
        network: Any = copy.deepcopy(bundle.network)
        self.network = network.to(device, memory_format=torch.channels_last_3d)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Output]] = {}

    def outputs(self, deltas: Tensor) -> Output:
        with torch.inference_mode():
            size = padded_batch(len(deltas))
            graph, held, result = self._graphs.get(size) or self._capture(size)
            held[: len(deltas)].copy_(normalise(deltas.to(self.device, non_blocking=True), self.bundle.input)[:, None])
            graph.replay()
            return Output(*(part[: len(deltas)].float().cpu() for part in result))

    def shrink(self) -> None:
        self._graphs.clear()
        super().shrink()

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Output]:
        held = torch.zeros((size, 1, *self.bundle.input.shape), device=self.device)
        held = held.contiguous(memory_format=torch.channels_last_3d)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UPS):
                self._pass(held)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            result = self._pass(held)
        self._graphs[size] = (graph, held, result)
        return self._graphs[size]

    def _pass(self, x: Tensor) -> Output:
        # No cache of cast weights: what a capture puts there belongs to its graph alone.
        cast = torch.autocast("cuda", self.dtype, enabled=self.dtype is not torch.float32, cache_enabled=False)
        with whole_float32(self.device), cast:
            return self.network.both(x)  # type: ignore[no-any-return]


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU, with the graph of :mod:`wbcd.classification.onnxgraph`."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        super().__init__(bundle, _only_cpu(device, self.name))
        runtime = _library("onnxruntime", "exchange")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(_graph(bundle), options, providers=["CPUExecutionProvider"])

    def outputs(self, deltas: Tensor) -> Output:
        from wbcd.classification.onnxgraph import EARLY_FEATURES, FEATURES, INPUT, LOGITS

        array = deltas.float().contiguous().numpy()[:, None]
        try:
            found = self._session.run([LOGITS, FEATURES, EARLY_FEATURES], {INPUT: array})
        except Exception as error:  # the library's errors share no base but this one
            raise RuntimeError(f"onnxruntime: {error}") from error
        return Output(*map(torch.from_numpy, found))


class OpenVinoBackend(Backend):
    """OpenVINO on the CPU in float32 (its own choice of bfloat16 on newer processors would change probabilities)."""

    name = "openvino"

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        super().__init__(bundle, _only_cpu(device, self.name))
        core = _library("openvino", "openvino").Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._compiled = core.compile_model(core.read_model(_graph(bundle), b""), "CPU", settings)

    def outputs(self, deltas: Tensor) -> Output:
        from wbcd.classification.onnxgraph import EARLY_FEATURES, FEATURES, LOGITS

        found = self._compiled(deltas.float().contiguous().numpy()[:, None])
        # Copies: the library's arrays live in its own buffers, which the next call overwrites.
        return Output(*(torch.from_numpy(np.array(found[name])) for name in (LOGITS, FEATURES, EARLY_FEATURES)))


MAKERS: dict[str, Callable[[Bundle, torch.device], Backend]] = {
    "eager": EagerBackend,
    "cuda": CudaBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
}


def make_backend(bundle: Bundle, name: str = "eager", device: torch.device | None = None) -> Backend:
    """The backend ``name`` of BACKENDS, or by ``auto`` the fastest on ``device`` that answers as eager does.

    Raises BadValue for another name or a device that it cannot use, ConfigurationError where its library is not installed.
    """
    device = device or torch.device("cpu")
    if name == "auto":
        return _fastest(bundle, device)
    if name not in MAKERS:
        raise BadValue(f"[classification] backend is {name!r}; it must be auto or one of {', '.join(BACKENDS)}.")
    if name == "cuda" and device.type != "cuda":
        raise BadValue(f'[classification] backend is "cuda" and the device is {device}; it needs a CUDA device.')
    return MAKERS[name](bundle, device)


def available(device: torch.device) -> list[str]:
    """Backends that can run on ``device``: those of torch, and those whose library is installed."""
    from importlib.util import find_spec

    if device.type == "cuda":
        return ["eager", "cuda"]
    # Both build their graph with onnx.
    if find_spec("onnx") is None:
        return ["eager"]
    return ["eager", *(name for name in ("onnxruntime", "openvino") if find_spec(name) is not None)]


def padded_batch(cells: int) -> int:
    """The power of two that holds ``cells``."""
    return 1 << max(0, cells - 1).bit_length()


def seconds_a_batch(backend: Backend, deltas: Tensor, repeats: int = PROBE_REPEATS) -> float:
    """Best of ``repeats`` passes after one to warm up: other work on the machine only ever adds."""
    backend.outputs(deltas)
    best = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        backend.outputs(deltas)
        best = min(best, time.perf_counter() - began)
    return best


def probe(bundle: Bundle, cells: int = PROBE_BATCH) -> Tensor:
    """n - n_m [n, z, y, x] of balls of several sizes in noise: something to time and to compare backends on."""
    z, y, x = (
        ((torch.arange(n) - n // 2) * d).square() for n, d in zip(bundle.input.shape, bundle.input.voxel_um, strict=True)
    )
    distance = (z[:, None, None] + y[None, :, None] + x).sqrt()
    generator = torch.Generator().manual_seed(0)
    balls = [0.03 * (distance < 2.0 + 0.7 * number) for number in range(cells)]
    return torch.stack(balls) + 0.002 * torch.randn((cells, *bundle.input.shape), generator=generator)


def _fastest(bundle: Bundle, device: torch.device) -> Backend:
    deltas = probe(bundle)
    reference: Backend = EagerBackend(bundle, device)
    wanted = reference.probabilities(deltas)
    best, least = reference, seconds_a_batch(reference, deltas)
    for name in available(device)[1:]:
        try:
            rival = MAKERS[name](bundle, device)
            departure = float(np.abs(rival.probabilities(deltas) - wanted).max())
            taken = seconds_a_batch(rival, deltas)
        except (RuntimeError, ConfigurationError, DeviceError, OutOfDeviceMemory):
            continue  # a library that fails here is one that is not there: eager serves
        if departure <= PROBABILITY_TOLERANCE and taken < least:
            best, least = rival, taken
    return best


def _graph(bundle: Bundle) -> bytes:
    from wbcd.classification.onnxgraph import onnx_model

    data: bytes = onnx_model(bundle).SerializeToString()
    return data


def _only_cpu(device: torch.device, name: str) -> torch.device:
    if device.type != "cpu":
        raise BadValue(f"[classification] backend is {name!r} and the device is {device}; it runs on the CPU only.")
    return device


def _library(name: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"{name} is not installed.", action=f"Install the extra: pip install 'wbcd[{extra}]'."
        ) from error
