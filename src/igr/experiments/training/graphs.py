"""Replay of recorded training steps on CUDA, where launching the kernels of a small step outlasts running them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_WARM_UP = 3  # steps before recording, which libraries and the allocator settle in


class GraphedStep:
    """A training step, recorded as a CUDA graph at its first call and replayed from then on.

    The step must read and write the same tensors each time: its optimiser is ``capturable``, and its gradients are set
    to None before it is recorded, so that each replay writes them afresh.

    Args:
        step: takes images and noise, updates the parameters, returns tensors.
        learned: all that the step changes: parameters and the optimiser's state. What the steps before recording do to
            it is undone.
        forget: sets the gradients to None.
    """

    def __init__(
        self, step: Step, learned: Callable[[], list[Tensor]], forget: Callable[[], None]
    ) -> None:
        self.step, self.learned, self.forget = step, learned, forget
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Take the step on these images and this noise; the result is overwritten by the next call."""
        if self.graph is None:
            self.graph = self._record(x, noise)
        else:
            self.x.copy_(x)
            self.noise.copy_(noise)
        self.graph.replay()
        return self.result

    def _record(self, x: Tensor, noise: Tensor) -> torch.cuda.CUDAGraph:
        self.x, self.noise = x.clone(), noise.clone()
        before = [value.detach().clone() for value in self.learned()]
        fresh = len(before)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.step(self.x, self.noise)
        torch.cuda.current_stream().wait_stream(stream)
        self.forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.step(self.x, self.noise)
        with torch.no_grad():
            values = self.learned()
            for value, old in zip(values, before, strict=False):
                value.copy_(old)
            # The optimiser makes its moments and its count of steps at its first step: they start from zero.
            for value in values[fresh:]:
                value.zero_()
        return graph
