"""An update of the weights, recorded once as a CUDA graph and replayed.

One update of the network is more than a thousand small kernels, and a host launches each of them in Python: an H100 spent 30 ms
on 16 cells whatever their size, nearly all of it waiting for the next launch (docs/benchmarks.md). A graph is one launch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
"""Updates that run before the recording: the optimizer makes its moments at the first, the libraries choose their kernels."""

Update = Callable[[Tensor, Tensor], Tensor]


class GraphedUpdate:
    """``update`` of batches of one shape on one CUDA device.

    ``update`` takes inputs and labels and returns what is to be known of the update. It must read no tensor on the host, set
    gradients to None before it makes new ones, and step an optimizer built with ``capturable``. A call's answer is overwritten
    by the next.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._to_warm = WARM_UPS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """As ``update`` answers."""
        with torch.cuda.device(inputs.device):
            return self._call(inputs, labels)

    def _call(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self._to_warm:
            self._to_warm -= 1
            return self._aside(inputs, labels)
        if self._graph is None or self._held is None:
            # Recording runs nothing: the batch that is recorded is still to be replayed.
            self._held = self._record(inputs, labels)
        held_inputs, held_labels, answer = self._held
        held_inputs.copy_(inputs)
        held_labels.copy_(labels)
        assert self._graph is not None  # for the type checker
        self._graph.replay()
        return answer

    def _aside(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """On a stream of its own, as recording asks of all that runs before it."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            answer = self._update(inputs, labels)
        torch.cuda.current_stream().wait_stream(side)
        return answer

    def _record(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        held_inputs, held_labels = inputs.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            answer = self._update(held_inputs, held_labels)
        return held_inputs, held_labels, answer
