"""The exact gradient, where there are few enough states."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical
from torch.utils.checkpoint import checkpoint

from igr import _checks
from igr.estimators.base import (
    Differentiable,
    JointEstimator,
    Needs,
    Objective,
    sum_variables,
)
from igr.estimators.couplings import log_prob
from igr.estimators.noise import Noise

__all__ = ["Enumerate"]


class Enumerate(JointEstimator):
    r"""The exact loss and gradient, by a sum over all states of an element's variables.

    .. math:: \nabla_\theta \sum_{b} p_\theta(b)\, f_\theta(b)

    No variance. f is a black box, evaluated at each of the :math:`K^N` one-hot states; a first call may evaluate one
    chunk twice, to find N.

    Args:
        max_states: most states that an element may have.
        chunk: states in a call of f, with ``sample_axis=True``, and in memory at once: where there are more, f is
            evaluated again in the backward pass (not under `torch.func`, which keeps them all).
        sample_axis: f takes a chunk of states at once, with a leading axis, instead of one call for each.

    Raises:
        ValueError: when called, if there are more than `max_states` states.

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> loss = Enumerate()(GumbelSoftmax(0.5, logits=logits), lambda b: b[..., 0].sum(-1) ** 2)
        >>> loss.detach()
        tensor(0.8889)
    """

    needs = Needs.PROBABILITIES
    f_is = Differentiable.NOWHERE
    bias = "none, and no variance"
    evaluations_per_sample = None

    def __init__(
        self, max_states: int = 2**16, chunk: int = 1024, *, sample_axis: bool = False
    ) -> None:
        super().__init__(sample_axis=sample_axis)
        _checks.count("max_states", max_states)
        _checks.count("chunk", chunk)
        self.max_states, self.chunk = max_states, chunk

    def extra_repr(self) -> str:
        return f"max_states={self.max_states}, chunk={self.chunk}"

    def _estimate(
        self, q: Distribution, law: OneHotCategorical, f: Objective, noise: Noise
    ) -> Tensor:
        logits = law.logits
        size = logits.shape[-1]

        def count(dims: int) -> int:
            return size ** math.prod(logits.shape[dims:-1])

        def states(start: int, dims: int) -> Tensor:
            # a single one, for the sake of f's shape, where there are too many
            stop = min(start + self.chunk, count(dims) if count(dims) <= self.max_states else 1)
            return _states(torch.arange(start, stop, device=logits.device), logits, dims)

        def part(samples: Tensor, values: Tensor) -> Tensor:
            log_p = sum_variables(log_prob(logits, samples), values.dim())
            possible = log_p > -torch.inf
            return (log_p.exp() * torch.where(possible, values, 0.0)).sum(0)

        def further(start: int, dims: int) -> Tensor:
            samples = states(start, dims)
            return part(samples, self._evaluate(f, samples, q))

        samples, values = self._draw_and_evaluate(lambda dims: states(0, dims), f, q)
        dims = values.dim() - 1
        total = count(dims)
        if total > self.max_states:
            raise ValueError(
                f"q: Enumerate sums over all states of an element, {size}**{math.prod(logits.shape[dims:-1])} here, "
                f"and max_states is {self.max_states}; use an estimator that samples"
            )
        loss = part(samples, values)
        for start in range(self.chunk, total, self.chunk):
            if torch.is_grad_enabled() and not _checks.is_transformed():
                more = cast("Tensor", checkpoint(further, start, dims, use_reentrant=False))
            else:
                more = further(start, dims)
            loss = loss + more
        return loss


def _states(index: Tensor, logits: Tensor, dims: int) -> Tensor:
    """The states of these numbers, one-hot ``(len(index), *batch, K)``, the same for all elements."""
    size, batch = logits.shape[-1], logits.shape[:-1]
    variables = math.prod(batch[dims:])
    # beyond 2**63 only where there are too many states, of which the first will do
    power = (size ** torch.arange(variables - 1, -1, -1, device=index.device)).clamp(min=1)
    onehot = nn.functional.one_hot(index.unsqueeze(-1) // power % size, size).to(logits.dtype)
    onehot = onehot.reshape(len(index), *(1,) * dims, *batch[dims:], size)
    return onehot.expand(len(index), *batch, size).contiguous()
