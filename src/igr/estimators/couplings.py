"""How relaxed samples depend on the parameters, with and without a given category."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from igr import functional
from igr.conditional import (
    _compute_dtype as compute_dtype,
)
from igr.conditional import (
    conditional_gaussian_and_log_prob,
    conditional_gumbel,
    rounding_gap,
)
from igr.distributions import GumbelSoftmax, SoftmaxIGR
from igr.estimators.noise import Noise

__all__ = ["Coupling", "coupling"]


def log_prob(logits: Tensor, onehot: Tensor) -> Tensor:
    """Log-probability of one-hot vectors, elementwise over the batch; -inf has no part in the sum."""
    return torch.where(onehot > 0, logits, 0.0).sum(-1)


def conditional_uniform(
    noise: Noise, shape: Sequence[int], like: Tensor, scores: Tensor | None = None
) -> Tensor | None:
    """Noise for a conditional draw, in the precision that it is computed in; none where the scores are given."""
    return None if scores is not None else noise.uniform(shape, like, compute_dtype(like))


class Coupling:
    """What `Rebar`, `Relax` and `RaoBlackwellStraightThrough` must know of a family; see `coupling`.

    Scores y are what the noise and the parameters yield before the temperature comes in: the largest names the
    category.
    """

    parameters: tuple[Tensor, ...]
    temperature: float | Tensor

    @abstractmethod
    def draw(self, parameters: Sequence[Tensor], noise: Noise) -> Tensor:
        """Scores, differentiable in the parameters."""

    @abstractmethod
    def hard(self, scores: Tensor) -> Tensor:
        """One-hot vectors of the largest."""

    @abstractmethod
    def relax(self, scores: Tensor, temperature: float | Tensor) -> Tensor:
        """Relaxed samples."""

    @abstractmethod
    def draw_given(
        self,
        parameters: Sequence[Tensor],
        onehot: Tensor,
        temperature: float | Tensor,
        noise: Noise,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores given the category, and its log-probability, both differentiable in the parameters.

        With `scores` that the category was read from, these very scores, but with the conditional draw's derivatives.
        """

    @abstractmethod
    def hold_noise(self, scores: Tensor) -> Tensor:
        """The same scores as a function of q's parameters, the noise that they come from held constant."""


class _GaussianCoupling(Coupling):
    def __init__(self, q: SoftmaxIGR) -> None:
        self.parameters = (functional.full_precision(q.loc), functional.full_precision(q.scale))
        self.temperature, self.delta, self.allowed = q.temperature, q.delta, q.allowed

    def draw(self, parameters: Sequence[Tensor], noise: Noise) -> Tensor:
        loc, scale = parameters
        return torch.addcmul(loc, scale, noise.normal(loc.shape, loc))

    def hard(self, scores: Tensor) -> Tensor:
        padded = nn.functional.pad(scores, (0, 1))
        if self.allowed is not None:
            padded = padded.masked_fill(~self.allowed, -torch.inf)
        return functional.one_hot_argmax(padded).to(scores.dtype)

    def relax(self, scores: Tensor, temperature: float | Tensor) -> Tensor:
        return functional.softmax_plus_plus(
            scores, temperature, self.delta, allowed=self.allowed, validate_args=False
        )

    def draw_given(
        self,
        parameters: Sequence[Tensor],
        onehot: Tensor,
        temperature: float | Tensor,
        noise: Noise,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        loc, scale = parameters
        gap = rounding_gap(temperature, loc.dtype)
        y, log_probs = conditional_gaussian_and_log_prob(
            loc,
            scale,
            onehot,
            noise=conditional_uniform(noise, (*onehot.shape[:-1], loc.shape[-1]), loc, scores),
            allowed=self.allowed,
            gap=gap,
            value=scores,
        )
        if self.allowed is not None:
            # masked again in a moment; until then -inf would only turn gradients into NaN
            y = torch.where(self.allowed[..., :-1], y, 0.0)
        return y, log_probs

    def hold_noise(self, scores: Tensor) -> Tensor:
        loc, scale = self.parameters
        return torch.addcmul(loc, scale, ((scores - loc) / scale).detach())


class _GumbelCoupling(Coupling):
    def __init__(self, q: GumbelSoftmax) -> None:
        self.parameters = (functional.full_precision(q.logits),)
        self.temperature = q.temperature

    def draw(self, parameters: Sequence[Tensor], noise: Noise) -> Tensor:
        (logits,) = parameters
        return logits + noise.gumbel(logits.shape, logits)

    def hard(self, scores: Tensor) -> Tensor:
        return functional.one_hot_argmax(scores).to(scores.dtype)

    def relax(self, scores: Tensor, temperature: float | Tensor) -> Tensor:
        return torch.softmax(functional.temper(scores, temperature), -1)

    def draw_given(
        self,
        parameters: Sequence[Tensor],
        onehot: Tensor,
        temperature: float | Tensor,
        noise: Noise,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        (logits,) = parameters
        gap = rounding_gap(temperature, logits.dtype)
        u = conditional_uniform(noise, onehot.shape, logits, scores)
        y = conditional_gumbel(logits, onehot, noise=u, gap=gap, value=scores)
        return y, log_prob(torch.log_softmax(logits, -1), onehot)

    def hold_noise(self, scores: Tensor) -> Tensor:
        (logits,) = self.parameters
        possible = logits > -torch.inf
        return torch.where(possible, logits + (scores - logits).detach(), -torch.inf)


@singledispatch
def coupling(q: Distribution) -> Coupling:
    """How relaxed samples of q depend on its parameters, with and without a given category.

    Registered for `SoftmaxIGR` and `GumbelSoftmax`; ``@coupling.register`` adds a family.

    Raises:
        ValueError: for any other distribution.
    """
    raise ValueError(
        f"q: expected a distribution with an exact conditional draw (SoftmaxIGR or GumbelSoftmax), "
        f"got {type(q).__name__}"
    )


@coupling.register
def _(q: SoftmaxIGR) -> Coupling:
    return _GaussianCoupling(q)


@coupling.register
def _(q: GumbelSoftmax) -> Coupling:
    return _GumbelCoupling(q)
