"""Score-function estimators with samples that repel each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, OneHotCategorical

from igr.estimators.base import Differentiable, Estimator, Needs, Objective, spread, sum_variables
from igr.estimators.couplings import log_prob
from igr.estimators.noise import Noise

__all__ = ["CARMS", "DisARM"]


class CARMS(Estimator):
    r"""S samples drawn so that they differ, with the weights that make up for it; ARMS where K = 2.

    .. math:: \frac{1}{S (S - 1)} \sum_{i \ne j} (f(b_i) - f(b_j))\,
              \frac{p(b_i)\, p(b_j)}{P(b_i, b_j)}\, \nabla_\theta \log p_\theta(b_i)

    for each variable, where P is the probability of the two categories in a pair of samples. With independent samples
    the ratio is 1, and this is `Reinforce` with `LeaveOneOut`. Unbiased for any exchangeable pairs for which
    :math:`P(k, l) > 0` where :math:`k \ne l`. f is a black box, evaluated S times at one-hot vectors.

    The categories are broken off a stick one after the other, the rarest first, each with conditional probability
    :math:`\pi_m` where a uniform number is below it. The S numbers of a break come from a Dirichlet copula,
    :math:`u = (1 - d)^{S-1}` with d uniform on the simplex, for which

    .. math:: P(u_i < \pi, u_j < \pi) = \Phi(\pi) = \max(2 \pi^{1/(S-1)} - 1, 0)^{S-1}, \qquad
              \frac{p_k\, p_l}{P(k, l)} = \frac{\pi_k (1 - \pi_k)}{\pi_k - \Phi_k}
              \prod_{m < k} \frac{(1 - \pi_m)^2}{1 - 2 \pi_m + \Phi_m}

    with k the one of the two that comes first. No break but the last has :math:`\pi_m > \frac12`, so that no ratio is
    infinite.

    Args:
        num_samples: S, at least 2.

    Source: Dimitriev and Zhou (2021), "ARMS: antithetic-REINFORCE-multi-sample gradient for binary variables", and
    "CARMS: categorical-antithetic-REINFORCE multi-sample gradient estimator".

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(8, 4, 2, requires_grad=True)
        >>> q = SoftmaxIGR(loc, torch.ones_like(loc), 0.5)
        >>> CARMS(3)(q, lambda b: b[..., 0].sum(-1)).sum().backward()
        >>> loc.grad.shape
        torch.Size([8, 4, 2])
    """

    needs = Needs.PROBABILITIES
    f_is = Differentiable.NOWHERE
    min_samples = 2

    def __init__(self, num_samples: int = 2, *, sample_axis: bool = False) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)

    def _estimate(
        self, q: Distribution, law: OneHotCategorical, f: Objective, noise: Noise
    ) -> Tensor:
        count = self.num_samples
        onehot, ratio = _repelling(law.logits, count, noise)
        values = self._evaluate(f, onehot, q)
        with torch.no_grad():
            difference = (values.unsqueeze(1) - values.unsqueeze(0)).to(ratio.dtype)
            weight = (spread(difference, ratio.dim()) * ratio).sum(1) / (count - 1)
        log_probs = log_prob(law.logits, onehot)
        moving = weight * (log_probs - log_probs.detach())
        return (values + sum_variables(moving, values.dim())).mean(0)


@torch.no_grad()
def _repelling(logits: Tensor, count: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """One-hot samples ``(S, *batch, K)``, and the ratio of each pair ``(S, S, *batch)``, 0 where they agree."""
    power = count - 1
    p, order = torch.softmax(logits, -1).sort(-1)
    left = p.flip(-1).cumsum(-1).flip(-1)
    pi = (p / left).clamp(max=1.0)
    u = noise.uniform((count, *logits.shape), logits)
    exponential = -torch.log1p(-u)
    # all of them 0 has a probability, in floating point
    d = exponential / exponential.sum(0).clamp(min=torch.finfo(u.dtype).tiny)
    broken = (1 - d) ** power < pi
    broken[..., -1] = True
    place = (broken.cumsum(-1) == 0).sum(-1, keepdim=True)
    category = order.expand(count, *order.shape).gather(-1, place)
    onehot = torch.zeros_like(u).scatter(-1, category, 1.0)

    both = (2 * pi ** (1 / power) - 1).clamp(min=0.0) ** power
    ahead = pi - both
    here = torch.where(ahead > 0, pi * (1 - pi) / ahead, 0.0)
    passed = 1 - 2 * pi + both
    before = torch.where(passed > 0, (1 - pi) ** 2 / passed, 0.0).cumprod(-1)
    ratio = here * torch.nn.functional.pad(before[..., :-1], (1, 0), value=1.0)
    first = torch.minimum(place.unsqueeze(1), place.unsqueeze(0))
    ratios = ratio.expand(count, count, *ratio.shape).gather(-1, first)
    return onehot, torch.where(place.unsqueeze(1) == place.unsqueeze(0), 0.0, ratios).squeeze(-1)


class DisARM(CARMS):
    r"""Two antithetic samples of binary variables.

    .. math:: \tfrac12 (f(b) - f(b'))\, (b_1 - b'_1)\, \sigma(|\alpha|), \qquad
              b_1 = [u < p_1], \quad b'_1 = [1 - u < p_1], \quad \alpha = \log p_1 - \log p_2

    for each variable, the derivative by the log-odds :math:`\alpha`. It is `CARMS` with two samples of two categories.
    Unbiased. f is a black box, evaluated twice at one-hot vectors.

    Source: Dong, Mnih and Tucker (2020), "DisARM: an antithetic gradient estimator for binary latent variables".
    """

    max_categories = 2

    def __init__(self, *, sample_axis: bool = False) -> None:
        super().__init__(2, sample_axis=sample_axis)
