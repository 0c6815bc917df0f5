"""Estimators of the relaxed objective."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from igr import _checks, functional
from igr.distributions import IGR, GumbelSoftmax, Relaxation
from igr.estimators.base import Differentiable, Estimator, Needs, Objective, sum_variables
from igr.estimators.noise import Noise

__all__ = ["Pathwise", "StickingTheLanding", "sticking_the_landing_kl"]


@singledispatch
def draw_log(q: Relaxation, num_samples: int, noise: Noise) -> Tensor:
    """log z ``(S, *batch, K)``, differentiable."""
    if noise.generator is not None:
        raise ValueError(
            f"generator: {type(q).__name__} draws from torch's global generator alone; expected None"
        )
    return q.rsample_log((num_samples,))


@draw_log.register
def _(q: IGR, num_samples: int, noise: Noise) -> Tensor:
    return q.transform.forward_stable(_draw_base(q, num_samples, noise))


@draw_log.register
def _(q: GumbelSoftmax, num_samples: int, noise: Noise) -> Tensor:
    logits = functional.full_precision(q.logits)
    gumbel = noise.gumbel((num_samples, *logits.shape), logits)
    return functional.log_softmax(functional.temper(logits + gumbel, q.temperature))


def _draw_base(q: IGR, num_samples: int, noise: Noise) -> Tensor:
    """y ``(S, *batch, K-1)``, differentiable."""
    if noise.generator is None:
        return q._rsample_base((num_samples,))
    if not q._is_gaussian:
        raise ValueError(
            f"generator: {q.base_dist} draws from torch's global generator alone; expected None"
        )
    loc = functional.full_precision(q.loc)
    return q._affine(noise.normal((num_samples, *loc.shape), loc))


class Pathwise(Estimator):
    r"""The reparameterization gradient of the relaxed objective (3), (4).

    .. math:: \nabla_\theta f(\tilde z_\theta(\epsilon))

    Unbiased for the relaxed objective :math:`\mathbb E_{\tilde q}[f(\tilde z)]`, biased for the discrete one. f must
    be differentiable on the simplex. One evaluation of f per sample. Works for every relaxation.

    Source: Kingma and Welling (2014); Maddison et al. (2017); Jang et al. (2017).

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.zeros(8, 3, requires_grad=True)
        >>> loss = Pathwise()(GumbelSoftmax(0.5, logits=logits), lambda z: (z[..., 0] - 0.4).square())
        >>> loss.sum().backward()
        >>> loss.shape, logits.grad.shape
        (torch.Size([8]), torch.Size([8, 3]))
    """

    needs = Needs.SAMPLES
    f_is = Differentiable.SIMPLEX
    bias = "none for the relaxed, some for the discrete objective"
    target = "relaxed objective"

    def _estimate(self, q: Distribution, law: Relaxation, f: Objective, noise: Noise) -> Tensor:
        if noise.generator is None:
            z = law.rsample((self.num_samples,))
        else:
            z = law._cast(draw_log(law, self.num_samples, noise).exp())
        return self._evaluate(f, z, q).mean(0)


def _constant(value: Any) -> Any:
    """The same map or tensor, its parameters held constant."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list):
        return [_constant(v) for v in value]
    if isinstance(value, torch.distributions.Transform):
        new = copy.copy(value)
        for name, attribute in vars(value).items():
            setattr(new, name, _constant(attribute))
        return new
    return value


@singledispatch
def _detached(q: Distribution) -> Relaxation:
    """q with its parameters held constant."""
    raise ValueError(
        f"q: expected an IGR with a Gaussian base, or a GumbelSoftmax, got {type(q).__name__}"
    )


@_detached.register
def _(q: IGR) -> Relaxation:
    if not q._is_gaussian:
        raise ValueError(f"q: expected an IGR with a Gaussian base, got {q.base_dist}")
    if any(isinstance(part, nn.Module) for part in q.transform.parts):
        raise ValueError(
            "q: its map has parameters that cannot be held constant; use igr.monte_carlo_kl"
        )
    return IGR(q.loc.detach(), q.scale.detach(), _constant(q.transform), validate_args=False)


@_detached.register
def _(q: GumbelSoftmax) -> Relaxation:
    return GumbelSoftmax(_constant(q.temperature), logits=q.logits.detach(), validate_args=False)


def _draw_and_kl(
    q: Relaxation, prior: Relaxation, num_samples: int, noise: Noise
) -> tuple[Tensor, Tensor]:
    """z ``(S, *batch, K)`` and log q(z) - log p(z) ``(S, *batch)``, q's parameters held constant in the former."""
    if not isinstance(prior, Relaxation):
        raise _checks.unexpected("prior", prior, "a relaxation")
    if q.event_shape != prior.event_shape:
        raise ValueError(
            f"prior: expected {q.num_categories} categories as q has, got {prior.num_categories}"
        )
    fixed = _detached(q)
    if (
        isinstance(q, IGR)
        and isinstance(fixed, IGR)
        and isinstance(prior, IGR)
        and q.allowed is None
        and prior.allowed is None
        and q.transform == prior.transform
    ):
        # the maps cancel
        y = _draw_base(q, num_samples, noise)
        return q._cast(q.transform.forward(y)), fixed._base_log_prob(y) - prior._base_log_prob(y)
    log_z = draw_log(q, num_samples, noise)
    log_ratio = fixed.log_prob(log_value=log_z) - prior.log_prob(log_value=log_z)
    return q._cast(log_z.exp()), log_ratio


def sticking_the_landing_kl(
    q: Relaxation,
    prior: Relaxation,
    num_samples: int = 1,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    r"""KL(q || prior) by samples, q's parameters held constant inside log q.

    .. math:: \frac 1 S \sum_i \log q_{\operatorname{stop}(\theta)}(\tilde z_i) - \log p(\tilde z_i), \qquad
              \tilde z_i \sim q_\theta

    Value and gradient are unbiased: what is left out, the score of q, has expectation 0. The gradient vanishes, sample
    by sample, where q equals the prior.

    Returns:
        ``(*batch,)``.

    Source: Roeder et al. (2017).

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(5, 2, requires_grad=True)
        >>> q, prior = SoftmaxIGR(loc, torch.ones(5, 2), 0.5), SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5)
        >>> sticking_the_landing_kl(q, prior).sum().backward()
        >>> loc.grad.abs().max()
        tensor(0.)
    """
    num_samples = _checks.count("num_samples", num_samples)
    if not isinstance(q, Relaxation):
        raise _checks.unexpected("q", q, "a relaxation")
    noise = Noise(generator, q.batch_shape)
    return _draw_and_kl(q, prior, num_samples, noise)[1].mean(0)


class StickingTheLanding(Estimator):
    r"""The pathwise estimator of :math:`\mathbb E[f(\tilde z)] + \mathrm{KL}(\tilde q \,\|\, \tilde p)`, the KL
    estimated from the same samples with q's parameters held constant inside log q.

    f is the loss *without* the KL term: the loss that comes back has it added, summed over an element's variables. As
    for bias it is `Pathwise`: unbiased for the relaxed objective. One evaluation of f per sample. Works for
    `GumbelSoftmax` and every IGR with a Gaussian base whose map can be inverted.

    Args:
        prior: a relaxation of the same number of categories, whose batch shape broadcasts with that of q.

    Source: Roeder et al. (2017), "Sticking the landing"; the paper's SL rows.

    Example:
        >>> from igr import GumbelSoftmax
        >>> q = GumbelSoftmax(0.5, logits=torch.randn(8, 2, 3, requires_grad=True))
        >>> estimator = StickingTheLanding(GumbelSoftmax(0.5, logits=torch.zeros(3)))
        >>> estimator(q, lambda z: z[..., 0].sum(-1)).shape
        torch.Size([8])
    """

    needs = Needs.DENSITY
    f_is = Differentiable.SIMPLEX
    bias = "as `Pathwise`"
    target = "relaxed objective with KL"

    def __init__(
        self, prior: Relaxation, num_samples: int = 1, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self.prior = prior

    def _estimate(self, q: Distribution, law: Relaxation, f: Objective, noise: Noise) -> Tensor:
        z, log_ratio = _draw_and_kl(law, self.prior, self.num_samples, noise)
        values = self._evaluate(f, z, q)
        return (values + sum_variables(log_ratio, values.dim())).mean(0)
