"""A loss and its gradient as one compiled program, for steps that are the same thousands of times."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


def compile_gradient(
    loss: Callable[[dict[str, Tensor], Tensor, Tensor], tuple[Tensor, Any]],
) -> Callable[[dict[str, Tensor], Tensor, Tensor], tuple[dict[str, Tensor], Any]]:
    """The gradient of `loss` with respect to its first argument, and what it returns besides, compiled at first use.

    One program, where ``loss(...).backward()`` would be two with autograd between them. It is for arguments whose
    shapes, and for a `loss` whose surroundings, never change: that is not checked, where torch lets us choose, because
    it takes as long as a tenth of a small step.

    The loss must do without `torch.autograd.Function`, which older versions do not differentiate in this way.

    Compiled code is filed by the code object that it was made from. Each has one of its own here, so that none is taken
    for another, nor counts towards another's limit.
    """

    def gradient(tensors: dict[str, Tensor], x: Tensor, noise: Tensor) -> Any:
        gradients, others = torch.func.grad(loss, has_aux=True)(tensors, x, noise)
        # An optimiser's fused steps take a gradient's memory to be laid out as its parameter's.
        return {name: value.contiguous() for name, value in gradients.items()}, others

    own = FunctionType(gradient.__code__.replace(), globals(), closure=gradient.__closure__)
    unchecked = getattr(torch.compiler, "skip_all_guards_unsafe", None)  # newer versions have it
    options = {"guard_filter_fn": unchecked} if unchecked else None
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)
