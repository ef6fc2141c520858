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
    """Runs an update of batches of one shape on one CUDA device: the first times as it is, then as the graph that it became.

    The update takes inputs and labels and returns what is to be known of it. It must read no tensor on the host, set gradients
    to None before it makes new ones, and step an optimizer built with ``capturable``. A call's answer is overwritten by the
    next. Whatever the update reads besides must stay where it is: after a checkpoint was loaded, make another one.
    """

    def __init__(self) -> None:
        self._to_warm = WARM_UPS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def recorded(self) -> bool:
        """Whether the next call is a replay."""
        return self._graph is not None

    def __call__(self, update: Update, inputs: Tensor, labels: Tensor) -> Tensor:
        """As ``update`` answers; always the same one (it is not kept: a method would keep its object alive)."""
        with torch.cuda.device(inputs.device):
            if self._to_warm:
                self._to_warm -= 1
                return _aside(update, inputs, labels)
            if self._graph is None or self._held is None:
                # Recording runs nothing: the batch that is recorded is still to be replayed.
                self._graph, self._held = _recorded(update, inputs, labels)
            held_inputs, held_labels, answer = self._held
            held_inputs.copy_(inputs)
            held_labels.copy_(labels)
            self._graph.replay()
            return answer


def _aside(update: Update, inputs: Tensor, labels: Tensor) -> Tensor:
    """On a stream of its own, as recording asks of all that runs before it."""
    side = _stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        answer = update(inputs, labels)
    torch.cuda.current_stream().wait_stream(side)
    return answer


def _recorded(update: Update, inputs: Tensor, labels: Tensor) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor, Tensor]]:
    held_inputs, held_labels = inputs.clone(), labels.clone()
    graph = torch.cuda.CUDAGraph()
    # torch's own stream for this belongs to the device that was the current one when it was first asked for.
    with torch.cuda.graph(graph, stream=_stream()):
        answer = update(held_inputs, held_labels)
    return graph, (held_inputs, held_labels, answer)


def _stream() -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no stub for it
    return stream
