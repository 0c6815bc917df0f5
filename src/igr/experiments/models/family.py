"""What a family of relaxed categoricals is to a model, and what the families share.

Shapes: R runs, B images, N variables of K categories. Inside a model the categories come *before* the variables,
``(R, B, K, N)``, because a softmax along a last axis of ten is ten times slower than along the one before it. The
public distributions have the categories last; `Family.distribution` turns the axes round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from igr.distributions import Relaxation

__all__ = ["Family", "gaussian_sample", "tempered_softmax", "winner"]


@dataclass(frozen=True)
class Family(ABC):
    """A relaxed categorical posterior with its prior, over N variables of K categories.

    Source: paper, sections 2.2 and 3. ``parameters`` below are the posterior's, ``(R, B, P, N)`` with P =
    `outputs_per_variable`; ``temperature`` broadcasts against them.
    """

    num_categories: int
    prior_temperature: float
    sticking_the_landing: bool = False
    """Whether the KL is that of one sample, the posterior's parameters detached inside log q."""
    unit_scale: bool = False
    """Whether the Gaussian's scales are held at 1, so that the network gives its locations alone."""

    @property
    @abstractmethod
    def outputs_per_variable(self) -> int:
        """How many parameters each variable has."""

    @property
    @abstractmethod
    def noise_per_variable(self) -> int:
        """How many random numbers one sample of one variable takes."""

    @property
    def network_outputs(self) -> int:
        """How many numbers of each variable the network gives."""
        return self.noise_per_variable if self.unit_scale else self.outputs_per_variable

    def complete(self, outputs: Tensor) -> Tensor:
        """The parameters ``(R, B, P, N)``, logarithms of scales held at 1 included, from the network's outputs."""
        return F.pad(outputs, (0, 0, 0, outputs.shape[-2])) if self.unit_scale else outputs

    @abstractmethod
    def fill_noise(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out` with the base distribution's draws."""

    @abstractmethod
    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A relaxed sample ``(R, B, K, N)`` and KL(q || p), or its estimate, of each image ``(R, B)``."""

    @abstractmethod
    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> Relaxation:
        """The posterior as a public distribution, batch ``(R, B, N)``, events ``(K,)``."""

    def initial_tensors(self, num_variables: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Learned tensors of the family's own for one run, by name; most families have none."""
        return {}

    def bind(self, tensors: dict[str, Tensor]) -> Family:
        """The family with its own tensors, stacked, taken from among a model's."""
        return self

    def categories(self, parameters: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        """The category ``(R, B, N)`` that a sample becomes as the temperature goes to 0."""
        return winner(self.sample_and_kl(parameters, noise, temperature)[0])

    def discrete_log_probs(
        self, parameters: Tensor, temperature: Tensor | float, generator: torch.Generator
    ) -> Tensor:
        """Log-probabilities of the recovered categorical, ``(R, B, N, K)``.

        Where there is no closed form they are estimated by draws from `generator`.
        """
        return self.distribution(parameters, temperature).discrete().logits

    @abstractmethod
    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        """KL(q || p) of the relaxation for each image, ``(R, B)``: exact if there is a closed form."""


class _GaussianSample(torch.autograd.Function):
    """y = loc + scale * noise and KL(N(loc, scale) || N(prior_loc, 1)), see `gaussian_sample`."""

    @staticmethod
    def forward(
        ctx, parameters: Tensor, noise: Tensor, prior_loc: Tensor | float, sticking: bool
    ) -> tuple[Tensor, Tensor]:
        # At this size an operation takes as long as its work, and its kind as long again where it is the first.
        size = noise.shape[-2]
        loc, log_scale = parameters.narrow(-2, 0, size), parameters.narrow(-2, size, size)
        scale = log_scale.exp()
        y = torch.addcmul(loc, scale, noise)
        distance = (y if sticking else loc) - prior_loc
        minus_kl = torch.addcmul(log_scale, distance, distance, value=-0.5)
        if sticking:
            minus_kl = torch.addcmul(minus_kl, noise, noise, value=0.5)
            kl = -minus_kl.sum((-2, -1))
        else:
            minus_kl = torch.addcmul(minus_kl, scale, scale, value=-0.5)
            kl = -0.5 * noise[0, 0].numel() - minus_kl.sum((-2, -1))
        ctx.save_for_backward(noise, scale, distance)
        ctx.sticking = sticking
        return y, kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor, grad_kl: Tensor) -> tuple[Tensor, None, None, None]:
        noise, scale, distance = ctx.saved_tensors
        grad_kl = grad_kl[..., None, None]
        if ctx.sticking:
            grad_loc = torch.addcmul(grad_y, distance - noise / scale, grad_kl)
            grad_log_scale = grad_loc * noise * scale
        else:
            grad_loc = torch.addcmul(grad_y, distance, grad_kl)
            grad_scale = torch.addcmul(grad_y * noise, scale, grad_kl)
            grad_log_scale = grad_scale.mul_(scale).sub_(grad_kl)
        return torch.cat([grad_loc, grad_log_scale], -2), None, None, None


def gaussian_sample(
    parameters: Tensor, noise: Tensor, prior_loc: Tensor | float, sticking: bool
) -> tuple[Tensor, Tensor]:
    r"""Gaussian y ``(R, B, K-1, N)`` and its KL from :math:`\mathcal N(m, 1)` for each image, ``(R, B)``.

    With `sticking`, the KL is :math:`\log q(y) - \log p(y)` of this one y, the parameters inside log q detached, so
    that only the path through y carries a gradient (Roeder et al. 2017); else the closed form (13).
    """
    batch = noise.shape[:2]
    if parameters.shape[:2] != batch:
        parameters = parameters.expand(*batch, -1, -1)
    if not torch.compiler.is_compiling():
        return _GaussianSample.apply(parameters, noise, prior_loc, sticking)
    loc, log_scale = parameters.chunk(2, dim=-2)
    y = torch.addcmul(loc, log_scale.exp(), noise)
    if sticking:
        loc, log_scale = loc.detach(), log_scale.detach()
        log_q = -0.5 * ((y - loc) * (-log_scale).exp()).square() - log_scale
        kl = log_q + 0.5 * (y - prior_loc).square()
    else:
        kl = 0.5 * ((loc - prior_loc).square() + (2 * log_scale).exp() - 1) - log_scale
    return y, kl.sum((-2, -1))


def tempered_softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of logits / temperature along the categories, the last axis but one."""
    if not torch.compiler.is_compiling():
        return torch.softmax(logits / temperature, dim=-2)
    # This way round no code is made for temperatures below zero, which takes longer than the softmax.
    z = ((logits - logits.detach().amax(-2, keepdim=True)) / temperature).exp()
    return z / z.sum(-2, keepdim=True)


def winner(scores: Tensor) -> Tensor:
    """Index of the largest along the last axis but one; torch's argmax takes fifty times as long there."""
    if scores.shape[-2] == 2:
        return (scores[..., 1, :] > scores[..., 0, :]).long()
    return scores.max(-2).indices
