"""Sampling without replacement."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from igr.estimators.base import Differentiable, JointEstimator, Needs, Objective, sum_variables
from igr.estimators.couplings import log_prob
from igr.estimators.noise import Noise

__all__ = ["UnorderedSet"]


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0."""
    small = torch.log(-torch.expm1(x.clamp(min=-1.0)))
    return torch.where(x > -1.0, small, torch.log1p(-torch.exp(x.clamp(max=-1.0))))


@torch.no_grad()
def _sample_without_replacement(log_probs: Tensor, count: int, noise: Noise) -> Tensor:
    """Different states of N independent variables, by stochastic beam search.

    Of all K**N states those with the `count` largest log-probabilities plus Gumbel noise are found variable by
    variable: the perturbed log-probability of a prefix is the largest of those of its completions, so that the best
    prefixes contain the best states.

    Args:
        log_probs: ``(*elements, N, K)``, normalised.

    Returns:
        Category of each variable, ``(*elements, count, N)``.
    """
    lead, size = log_probs.shape[:-2], log_probs.shape[-1]
    phi = log_probs.new_zeros(*lead, 1)
    perturbed = torch.zeros_like(phi)
    states = torch.empty(*lead, 1, 0, dtype=torch.long, device=log_probs.device)
    for column in log_probs.unbind(-2):
        child = phi.unsqueeze(-1) + column.unsqueeze(-2)
        possible = child > -torch.inf
        noisy = child + noise.gumbel(child.shape, child, run=0)
        noisy = torch.where(possible, noisy, -torch.inf)
        top = noisy.amax(-1, keepdim=True).clamp(min=torch.finfo(child.dtype).min)
        parent = perturbed.unsqueeze(-1)
        # the children's noise given that the largest of them has what the parent has
        v = parent - noisy + _log1mexp(noisy - top)
        shifted = parent - v.clamp(min=0.0) - torch.log1p(torch.exp(-v.abs()))
        shifted = torch.where(possible, shifted, -torch.inf).flatten(-2)
        perturbed, index = shifted.topk(min(count, shifted.shape[-1]), dim=-1)
        phi = child.flatten(-2).gather(-1, index)
        beam, category = index // size, index % size
        previous = states.gather(-2, beam.unsqueeze(-1).expand(*beam.shape, states.shape[-1]))
        states = torch.cat([previous, category.unsqueeze(-1)], -1)
    return states


@lru_cache(maxsize=16)
def _subsets(count: int) -> list[tuple[list[int], list[list[int]], list[list[int]]]]:
    """By falling size: the subsets of that size, as bit masks; the elements each lacks; it with each of those added."""
    levels = []
    for size in range(count - 1, -1, -1):
        masks = [m for m in range(2**count) if bin(m).count("1") == size]
        missing = [[i for i in range(count) if not m >> i & 1] for m in masks]
        added = [[m | 1 << i for i in lacks] for m, lacks in zip(masks, missing, strict=True)]
        levels.append((masks, missing, added))
    return levels


def _log_set_probs_by_subsets(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log-probability that the set is drawn, as a set, from what is left after some of it have been drawn.

    With U(C) that probability for a subset C of the set S, drawn already,

    .. math:: U(S) = 1, \qquad U(C) = \sum_{s \in S \setminus C} \frac{p(s)}{1 - p(C)} U(C \cup \{s\}).

    Args:
        log_p: ``(*elements, S)``; -inf for what is not in the set after all.

    Returns:
        log U of the empty set (*elements,), of each {s} (*elements, S) and of each {s, t} (*elements, S, S).
    """
    count = log_p.shape[-1]
    device = log_p.device
    bits = torch.arange(2**count, device=device)
    inside = (bits.unsqueeze(-1) >> torch.arange(count, device=device) & 1).bool()
    mass = log_p.exp() @ inside.to(log_p.dtype).T
    # what is left is at least what is left of the set, which rounding of 1 - p(C) must not undo
    left = torch.where(inside, -torch.inf, log_p.unsqueeze(-2)).logsumexp(-1)
    log_rest = torch.maximum(torch.log1p(-mass.clamp(max=1.0)), left)
    log_u = torch.zeros_like(log_rest)
    for masks, missing, added in _subsets(count):
        rest = log_rest[..., masks].unsqueeze(-1)
        own = log_p[..., missing]
        terms = torch.where(own > -torch.inf, own - rest + log_u[..., added], -torch.inf)
        # nothing of the set is left: it has been drawn
        done = (own == -torch.inf).all(-1)
        log_u[..., masks] = torch.where(done, 0.0, terms.logsumexp(-1))
    one = [1 << i for i in range(count)]
    two = [[a | b for a in one] for b in one]
    return log_u[..., 0], log_u[..., one], log_u[..., two]


def _log_set_probs_by_quadrature(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The same for sets of any size, by an integral.

    Let every state arrive after an exponential time with rate p(s). U(C) is the probability that all of S \ C arrive
    before anything outside of S does, which has rate r = 1 - p(S); with x the logarithm of the time in units of 1/r,

    .. math:: U(C) = \int e^{x - e^x} \prod_{s \in S \setminus C} \big(1 - e^{-e^x p(s) / r}\big)\, dx.

    The integrand falls at least like exp(x) to the left of 0 and like exp(-exp(x)) to the right of log(1 + S), so that
    the trapezoidal rule is exact to rounding.
    """
    count = log_p.shape[-1]
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=1e-300)
    end = math.log(count + 60.0)
    x = torch.arange(-40.0, end, 0.15, dtype=log_p.dtype, device=log_p.device)
    # What never arrives, to rounding, still has to be among finite numbers.
    rate = (log_p - torch.log(rest)).clamp(-1e5, 600.0)
    log_time = rate.unsqueeze(-1) + x
    arrived = _log1mexp(-torch.exp(log_time.clamp(min=-40.0)).clamp(max=1e300))
    arrived = torch.where(log_time > -40.0, arrived, log_time)
    arrived = torch.where(log_p.unsqueeze(-1) > -torch.inf, arrived, 0.0)
    total = x - torch.exp(x) + math.log(0.15) + arrived.sum(-2)
    without = total.unsqueeze(-2) - arrived
    other = ~torch.eye(count, dtype=torch.bool, device=log_p.device).unsqueeze(-1)
    pairs = without.unsqueeze(-2) - torch.where(other, arrived.unsqueeze(-3), 0.0)
    return total.logsumexp(-1), without.logsumexp(-1), pairs.logsumexp(-1)


class UnorderedSet(JointEstimator):
    r"""The unordered set estimator with its built-in control variate: S different states, weighted.

    .. math:: \sum_{s \in S} \nabla_\theta p_\theta(s)\, R(S, s)
              \Big( f(s) - \sum_{t \in S} p_\theta(t)\, R^{D \setminus \{s\}}(S, t)\, f(t) \Big), \qquad
              R(S, s) = \frac{p^{D \setminus \{s\}}(S \setminus \{s\})}{p(S)}

    The states are drawn without replacement from the *joint* distribution of all variables of an element, by
    stochastic beam search over its K^N states. It is REINFORCE with a leave-one-out baseline, Rao-Blackwellised over
    the order of the draws. Unbiased; exact, with no variance at all, where `num_samples` is the number of states.
    f is a black box, evaluated `num_samples` times at one-hot vectors.

    Args:
        num_samples: S, at least 2 and at most K^N. With S up to 9 the ratios are summed over all subsets exactly,
            beyond that they come from a quadrature exact to rounding.

    Raises:
        ValueError: when called, if there are fewer states than samples.

    Source: Kool et al. (2020), "Estimating gradients for discrete random variables by sampling without replacement",
    equations (9) and (17), the paper's USPGBL; Kool et al. (2019), "Stochastic beams and where to find them".

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
        >>> UnorderedSet(3)(GumbelSoftmax(0.5, logits=logits), lambda b: b[..., 0]).backward()
        >>> p = torch.softmax(logits, -1)
        >>> torch.allclose(logits.grad, p[0] * (torch.tensor([1.0, 0.0, 0.0]) - p))
        True
    """

    needs = Needs.PROBABILITIES
    f_is = Differentiable.NOWHERE
    min_samples = 2
    max_enumerated = 9

    def __init__(self, num_samples: int, *, sample_axis: bool = False) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)

    def _estimate(
        self, q: Distribution, law: OneHotCategorical, f: Objective, noise: Noise
    ) -> Tensor:
        logits = law.logits
        samples, values = self._draw_and_evaluate(
            lambda dims: self._draw(logits, dims, noise), f, q
        )
        dims = values.dim() - 1

        log_probs = sum_variables(log_prob(logits, samples), values.dim())
        with torch.no_grad():
            weight, control = self._weights(logits, samples, dims)
            possible = weight > 0
            plain = torch.where(possible, values, 0.0).to(weight.dtype)
            # a row of the control variate's weights sums to 1, so that it can be taken from the differences
            difference = plain.unsqueeze(1) - plain.unsqueeze(0)
            coefficient = (weight * (control * difference).sum(1)).to(values.dtype)
        direct = torch.where(possible, weight.to(values.dtype) * values, 0.0)
        moving = torch.where(possible, log_probs, 0.0)
        return (direct + coefficient * (moving - moving.detach())).sum(0)

    def _draw(self, logits: Tensor, dims: int, noise: Noise) -> Tensor:
        """One-hot states ``(S, *batch, K)``."""
        batch, size = logits.shape[:-1], logits.shape[-1]
        variables = math.prod(batch[dims:])
        if size**variables < self.num_samples:
            raise ValueError(
                f"num_samples: expected at most the number of states, {size}**{variables} = {size**variables}, "
                f"got {self.num_samples}"
            )
        log_probs = torch.log_softmax(_wide(logits.detach()), -1)
        states = _sample_without_replacement(
            log_probs.reshape(*batch[:dims], variables, size), self.num_samples, noise
        )
        onehot = nn.functional.one_hot(states.movedim(-2, 0), size)
        return onehot.reshape(self.num_samples, *batch, size).to(logits.dtype)

    def _weights(self, logits: Tensor, samples: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        """p R ``(S, *elements)``, and p R of the control variate ``(S, S, *elements)``, rows by sample."""
        log_probs = torch.log_softmax(_wide(logits), -1)
        log_p = sum_variables(log_prob(log_probs, samples), dims + 1).movedim(0, -1)
        if self.num_samples <= self.max_enumerated:
            none, one, two = _log_set_probs_by_subsets(log_p)
        else:
            none, one, two = _log_set_probs_by_quadrature(log_p)
        possible = log_p > -torch.inf
        weight = torch.where(possible, (log_p + one - none.unsqueeze(-1)).exp(), 0.0)
        control = (log_p.unsqueeze(-2) + two - one.unsqueeze(-1)).exp()
        # its own sample has been drawn for certain
        eye = torch.eye(self.num_samples, dtype=torch.bool, device=log_p.device)
        control = torch.where(eye, log_p.exp().unsqueeze(-2), control)
        control = torch.where(possible.unsqueeze(-1) & possible.unsqueeze(-2), control, 0.0)
        return weight.movedim(-1, 0), control.movedim((-2, -1), (0, 1))
