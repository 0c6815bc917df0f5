r"""Straight-through estimators that are exact for a quadratic f.

Write :math:`J_b` for what turns the gradient of f at the sample b into that of the logits :math:`\theta`, for one
variable. Exactness for :math:`f(b) = c \cdot b + \tfrac12 b^\top A b`, whatever c and A are, says of
:math:`V_{kl} = p_k J_{e_k} e_l` and of the columns :math:`m_l = p_l (e_l - p)` of the exact Jacobian

.. math:: V_{ll} = \tfrac12 m_l, \qquad V_{kl} = -V_{lk} \ (k \ne l), \qquad \sum_{k \ne l} V_{kl} = \tfrac12 m_l,

a flow between the categories with given sources. `ReinMax` at temperature 1 is the one with the flow
:math:`V_{kl} = \tfrac12 p_k p_l (e_l - e_k)`, and so is `ZGR`; `MVE` is the one of least norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from igr import _checks
from igr.conditional import conditional_gumbel
from igr.estimators.couplings import conditional_uniform, log_prob
from igr.estimators.noise import Noise
from igr.estimators.straight_through import Surrogate

__all__ = ["MVE", "ZGR", "ReinMax", "ReinMaxRao"]


class ReinMax(Surrogate):
    r"""A straight-through estimator that is exact to second order.

    .. math:: \pi_0 = \operatorname{softmax}(\theta), \quad
              \pi_1 = \tfrac12 (b + \operatorname{softmax}(\theta/\tau)), \quad
              \nabla_\theta \approx \nabla_b f(b) \cdot
              \big(2\, \nabla_\theta \operatorname{softmax}(\log \pi_1) - \tfrac12 \nabla_\theta \pi_0\big)

    where :math:`\log \pi_1` has the derivative of :math:`\theta`, the log-probabilities of the categories (Proposition
    2 for `SoftmaxIGR`). Unbiased for a quadratic f of one variable at temperature 1, biased else. One evaluation of f
    per sample, at one-hot vectors.

    Args:
        temperature: :math:`\tau` of the estimator, positive; that of q plays no part. Published results use 1.3 to
            1.5, which trade some bias for variance.

    Source: Liu et al. (2023), "Bridging discrete and backpropagation: straight-through and beyond", algorithm 2.
    """

    bias = "none up to second order in one variable (temperature 1)"

    def __init__(
        self, temperature: float = 1.0, num_samples: int = 1, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        _checks.temperature("temperature", temperature)
        self.temperature = temperature

    def _surrogate(self, theta: Tensor, onehot: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            log_mean = torch.log(0.5 * (onehot + torch.softmax(theta / self.temperature, -1)))
            shift = torch.where(theta > -torch.inf, log_mean - theta, 0.0)
        return 2 * torch.softmax(shift + theta, -1) - 0.5 * torch.softmax(theta, -1)


class ZGR(ReinMax):
    r"""ZGR, the limit of `RaoBlackwellStraightThrough` with Gumbel noise as its temperature goes to 0.

    .. math:: \tfrac12 \nabla_b f(b) \cdot
              \big( \nabla_\theta\, p_\theta + (b - p)\, \nabla_\theta \log p_\theta(b) \big),

    the mean of `StraightThrough` and of a first-order score-function estimator (DARN). Multiplied out, this is
    `ReinMax` at temperature 1, draw by draw: both are
    :math:`\tfrac12 \sum_j p_j (e_b - e_j)(e_b - e_j)^\top \nabla_b f`, and this class is that one. Unbiased for a
    quadratic f of one variable, biased else. One evaluation of f per sample, at one-hot vectors.

    For `SoftmaxIGR` it is the same function of the categories' probabilities (Proposition 2); the limit for Gaussian
    noise is another estimator, whose flow between two categories is the density of a tie between them.

    Source: Shekhovtsov (2023), "Cold analysis of Rao-Blackwellized straight-through Gumbel-Softmax gradient estimator".
    """

    bias = "none up to second order in one variable"

    def __init__(self, num_samples: int = 1, *, sample_axis: bool = False) -> None:
        super().__init__(1.0, num_samples, sample_axis=sample_axis)


class ReinMaxRao(Surrogate):
    r"""`ReinMax` with its first term smoothed by conditional Gumbel noise.

    .. math:: \nabla_b f(b) \cdot \big(2\, \mathbb E\big[\nabla_\theta
              \operatorname{softmax}((\log \pi_1 + G) / \tau) \,\big|\, b\big] - \tfrac12 \nabla_\theta\, p_\theta\big),
              \qquad \pi_1 = \tfrac12 (b + p),

    G Gumbel noise with which b wins against :math:`\log \pi_1`, by `num_conditional` exact conditional draws. The
    derivative passes through :math:`\log \pi_1` as through :math:`\theta`, the log-probabilities, and so reaches a
    `SoftmaxIGR`'s parameters too, by Proposition 2; what is smoothed is the midpoint, whose noise is Gumbel's whatever
    that of q. One evaluation of f per sample, at one-hot vectors.

    Biased, for a linear f too: b is drawn from p, and not from the :math:`\pi_1` in which it is held. As
    :math:`\tau \to 0` the expectation is *half* the gradient of a linear f (derived from the limit in `ZGR`), and a
    quadratic one's less the same; the bias at other temperatures is measured in the documentation.

    Args:
        temperature: :math:`\tau`, a positive number; that of q plays no part.
        num_conditional: conditional draws for each sample.

    Source: Wang and Bui (2026), "Beyond ReinMax: low-variance gradient estimators for discrete latent variables", as
    in their code.
    """

    bias = "yes"

    def __init__(
        self,
        temperature: float = 1.0,
        num_conditional: int = 10,
        num_samples: int = 1,
        *,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        _checks.temperature("temperature", temperature)
        _checks.count("num_conditional", num_conditional)
        self.temperature, self.num_conditional = temperature, num_conditional

    def _surrogate(self, theta: Tensor, onehot: Tensor, noise: Noise) -> Tensor:
        probs = torch.softmax(theta, -1)
        with torch.no_grad():
            middle = torch.log(0.5 * (onehot + probs))
            several = onehot.expand(self.num_conditional, *onehot.shape)
            u = conditional_uniform(noise, several.shape, theta)
            scores = conditional_gumbel(middle, several, noise=u)
            shift = torch.where(theta > -torch.inf, scores - theta, 0.0)
        smooth = torch.softmax((shift + theta) / self.temperature, -1).mean(0)
        return 2 * smooth - 0.5 * probs


class MVE(Surrogate):
    r"""MVE, the straight-through estimator of least norm among those that are exact for a quadratic f.

    With the flow V of this module's introduction,

    .. math:: \min_V \sum_{k} \sum_{l \ne k} \frac{\|V_{kl}\|^2}{p_k}
              \quad\Longrightarrow\quad
              V_{kl} = \frac{p_k p_l}{p_k + p_l} (\lambda_l - \lambda_k), \qquad
              \sum_{k \ne l} \frac{p_k}{p_k + p_l} (\lambda_l - \lambda_k) = \tfrac12 \nabla_\theta \log p_l,

    and the estimate is :math:`\tfrac12 \nabla \log p_b\, \partial_b f +
    \sum_{l \ne b} \tfrac{p_l}{p_b + p_l} (\lambda_l - \lambda_b)\, \partial_l f`. The objective is the mean square
    for gradients of f that are white noise. It does not depend on the parameters that :math:`\theta` stands for, so
    that for `SoftmaxIGR` :math:`\nabla \log p` is that of Proposition 2. One evaluation of f per sample, at one-hot
    vectors, and for each variable a system of K equations: :math:`O(K^3)`, whatever the number of samples.

    Source: Hooper and Shekhovtsov (2026), "Generalized and optimal straight-through estimators": the limit of no bias
    up to second order. Their estimator for a given trade-off between bias and variance lies between this one and
    `StraightThrough`.

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(8, 3, requires_grad=True)
        >>> MVE()(SoftmaxIGR(loc, torch.ones(8, 3), 0.5), lambda b: b[..., 0] ** 2).sum().backward()
        >>> loc.grad.shape
        torch.Size([8, 3])
    """

    bias = "none up to second order in one variable"

    def _surrogate(self, theta: Tensor, onehot: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            p = torch.softmax(theta, -1)
            row, column = p.unsqueeze(-1), p.unsqueeze(-2)
            pair = (row + column).clamp(min=torch.finfo(p.dtype).tiny)
            share = column / pair * (1 - torch.eye(p.shape[-1], dtype=p.dtype, device=p.device))
            # the last term fixes the constant that lambda has free: its mean is 0
            system = torch.diag_embed(share.sum(-1)) - share + column
            own = (onehot * p).sum(-1, keepdim=True)
            weight = p / (own + p)
        # no category, no gradient: theta must not be -inf in a product
        finite = torch.where(theta > -torch.inf, theta, 0.0)
        log_probs = torch.where(
            theta > -torch.inf, finite - torch.logsumexp(theta, -1, keepdim=True), 0.0
        )
        potential = torch.linalg.solve(system, 0.5 * log_probs.unsqueeze(-1)).squeeze(-1)
        drop = potential - (onehot * potential).sum(-1, keepdim=True)
        return weight * drop + 0.5 * onehot * log_prob(log_probs, onehot).unsqueeze(-1)
