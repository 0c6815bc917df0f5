"""One-hot samples with a gradient put in the place of their own, which is 0 everywhere."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from igr import _checks, functional
from igr.distributions import Relaxation
from igr.estimators.base import (
    Differentiable,
    Estimator,
    Needs,
    Objective,
)
from igr.estimators.couplings import Coupling
from igr.estimators.noise import Noise
from igr.estimators.relaxed import draw_log

__all__ = [
    "GappedStraightThrough",
    "RaoBlackwellStraightThrough",
    "RelaxedStraightThrough",
    "StraightThrough",
]


class RelaxedStraightThrough(Estimator):
    r"""STGS, the straight-through Gumbel-Softmax, for any relaxation: one-hot samples with the gradient of the relaxed
    ones behind them.

    .. math:: \nabla_b f(b) \cdot \nabla_\theta \tilde z_\theta(\epsilon), \qquad b = h(\tilde z)

    Its value is that of the discrete objective; its gradient is biased. One evaluation of f per sample.

    Source: Jang et al. (2017).

    .. warning:: In version 0.1 this was called ``StraightThrough``, a name that is now Bengio's estimator.
    """

    needs = Needs.SAMPLES
    f_is = Differentiable.VERTICES
    bias = "yes; falls with the temperature as the variance rises"

    def _estimate(self, q: Distribution, law: Relaxation, f: Objective, noise: Noise) -> Tensor:
        if noise.generator is None:
            samples = law.straight_through((self.num_samples,))
        else:
            log_z = draw_log(law, self.num_samples, noise)
            onehot = functional.one_hot_argmax(law.hard_scores(log_z))
            samples = functional.straight_through(onehot, log_z.exp())
        return self._evaluate(f, samples, q).mean(0)


class RaoBlackwellStraightThrough(Estimator):
    r"""GR-MC, the Gumbel-Rao estimator, for any relaxation with a conditional draw: `RelaxedStraightThrough` with the
    relaxed gradient averaged over what the category leaves open.

    .. math:: \nabla_b f(b) \cdot \mathbb E\big[\nabla_\theta \tilde z_\theta(\epsilon) \,\big|\, b\big]

    The expectation is over the noise given the category, by `num_conditional` exact conditional draws. Same
    expectation as `RelaxedStraightThrough`, hence the same bias, at a lower variance; f is still evaluated once per
    sample.

    Args:
        num_conditional: conditional draws for each sample.

    Source: Paulus et al. (2021), "Rao-Blackwellizing the straight-through Gumbel-Softmax gradient estimator"; for IGR,
    the same with the conditional draw of `igr.conditional`.
    """

    needs = Needs.COUPLING
    f_is = Differentiable.VERTICES
    bias = "that of the relaxed straight-through"

    def __init__(
        self, num_conditional: int = 10, num_samples: int = 1, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        _checks.count("num_conditional", num_conditional)
        self.num_conditional = num_conditional

    def _estimate(self, q: Distribution, law: Coupling, f: Objective, noise: Noise) -> Tensor:
        with torch.no_grad():
            parameters = [p.expand(self.num_samples, *p.shape) for p in law.parameters]
            onehot = law.hard(law.draw(parameters, noise))
            several = onehot.expand(self.num_conditional, *onehot.shape)
            scores, _ = law.draw_given(parameters, several, law.temperature, noise)
        relaxed = law.relax(law.hold_noise(scores), law.temperature).mean(0)
        return self._evaluate(f, functional.straight_through(onehot, relaxed), q).mean(0)


class Surrogate(Estimator):
    """One-hot samples with the gradient of a function of them and of the categories' log-probabilities."""

    needs = Needs.PROBABILITIES
    f_is = Differentiable.VERTICES

    @abstractmethod
    def _surrogate(self, theta: Tensor, onehot: Tensor, noise: Noise) -> Tensor:
        """``(S, *batch, K)`` from log-probabilities ``(*batch, K)``, 0 where there is no such category."""

    def _estimate(
        self, q: Distribution, law: OneHotCategorical, f: Objective, noise: Noise
    ) -> Tensor:
        onehot = noise.onehot(law.logits, self.num_samples)
        surrogate = self._surrogate(law.logits, onehot, noise)
        return self._evaluate(f, functional.straight_through(onehot, surrogate), q).mean(0)


class StraightThrough(Surrogate):
    r"""ST, the straight-through estimator: one-hot samples with the gradient of the probabilities behind them.

    .. math:: \nabla_b f(b) \cdot \nabla_\theta\, p_\theta

    Exact for a linear f, biased else. One evaluation of f per sample, at one-hot vectors.

    Source: Bengio et al. (2013).

    .. warning:: In version 0.1 this was the name of what is now `RelaxedStraightThrough` (STGS).

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(8, 2, requires_grad=True)
        >>> loss = StraightThrough()(SoftmaxIGR(loc, torch.ones(8, 2), 0.5), lambda b: b[..., 0])
        >>> loss.sum().backward()
        >>> loc.grad.shape
        torch.Size([8, 2])
    """

    bias = "none for a linear f"

    def _surrogate(self, theta: Tensor, onehot: Tensor, noise: Noise) -> Tensor:
        return torch.softmax(theta, -1).expand_as(onehot)


class GappedStraightThrough(Surrogate):
    r"""GST: the gradient of a softmax whose logits have been moved so that the category drawn leads by a gap.

    .. math:: \nabla_b f(b) \cdot \nabla_\theta \operatorname{softmax}\big((\theta + m) / \tau\big), \qquad
              m = b\, (\max\theta - \theta_b) - (1 - b) \max(\theta - \max\theta + g, 0)

    with m held constant: the category drawn is lifted to the largest logit, all others stay g or more below it. It is
    what `RelaxedStraightThrough` does, with as little randomness as consistency of b and the softmax allows. Biased.
    One evaluation of f per sample, at one-hot vectors.

    Args:
        gap: g, a positive number.
        temperature: :math:`\tau`, a positive number; that of q plays no part.

    Source: Fan et al. (2022), "Training discrete deep generative models via gapped straight-through estimator",
    where it is GST-1.0.
    """

    bias = "yes"

    def __init__(
        self,
        gap: float = 1.0,
        temperature: float = 1.0,
        num_samples: int = 1,
        *,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self.gap = _checks.number("gap", gap, "a positive finite number", _checks.is_positive)
        _checks.temperature("temperature", temperature)
        self.temperature = temperature

    def _surrogate(self, theta: Tensor, onehot: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            behind = theta - theta.amax(-1, keepdim=True)
            move = torch.where(onehot > 0, -behind, -(behind + self.gap).clamp(min=0.0))
        return torch.softmax((theta + move) / self.temperature, -1)
