"""What the quadratures share: nodes and weights of the Gauss-Legendre rule, and bounded memory for gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from igr import _checks

__all__ = ["gauss_legendre", "recomputed"]

Result = TypeVar("Result")


@lru_cache(maxsize=16)
def gauss_legendre(num_nodes: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on [0, 1], by Newton's method.

    They are plain numbers: a tensor that is kept would carry the mode that it was made in, such as inference mode or
    a default device, to all that use it later.

    >>> nodes, weights = gauss_legendre(3)
    >>> integral = sum(w * x**5 for x, w in zip(nodes, weights))  # exact for polynomials of degree 5
    >>> math.isclose(integral, 1 / 6, rel_tol=1e-14)
    True
    """
    nodes, weights = [], []
    for i in range(num_nodes):
        x = -math.cos(math.pi * (i + 0.75) / (num_nodes + 0.5))
        for _ in range(6):
            before, value = 1.0, x
            for n in range(2, num_nodes + 1):
                before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
            slope = num_nodes * (x * value - before) / (x * x - 1)
            x -= value / slope
        nodes.append((x + 1) / 2)
        weights.append(1 / ((1 - x * x) * slope * slope))
    return nodes, weights


def recomputed(function: Callable[..., Result], *inputs: object) -> Result:
    """`function` of `inputs`, computed again in the backward pass instead of kept where that can be."""
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in inputs
    )
    # torch.func.grad and its siblings cannot differentiate a checkpoint.
    if differentiable and not _checks.is_transformed():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)
