"""Bounds of latent-variable models against a model whose likelihood is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

import igr

D = torch.float64

# One categorical latent variable of four values, and one observation.
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=D)
LIKELIHOOD = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=D)
EVIDENCE = float((PRIOR * LIKELIHOOD).sum().log())
POSTERIOR = PRIOR * LIKELIHOOD / (PRIOR * LIKELIHOOD).sum()
Q = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=D)


def _draw(q: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    z = Categorical(probs=q).sample(shape)
    return LIKELIHOOD.log()[z], PRIOR.log()[z], q.log()[z]


def test_elbo_is_likelihood_less_divergence() -> None:
    """Its mean over q, by enumeration, is the evidence less the divergence from the posterior."""
    kl = kl_divergence(Categorical(probs=Q), Categorical(probs=PRIOR))
    value = (Q * igr.elbo(LIKELIHOOD.log(), kl)).sum()
    gap = kl_divergence(Categorical(probs=Q), Categorical(probs=POSTERIOR))
    torch.testing.assert_close(value, EVIDENCE - gap)


def _exact_bound(q: Tensor, m: int) -> float:
    """Mean of the bound over all 4^m tuples of samples."""
    z = torch.cartesian_prod(*[torch.arange(4)] * m).view(-1, m)
    weight = q[z].prod(-1)
    bound = igr.importance_weighted_bound(LIKELIHOOD.log()[z], PRIOR.log()[z], q.log()[z], dim=-1)
    return float((weight * bound).sum())


def test_importance_weighted_bound_is_a_bound_that_tightens() -> None:
    values = [_exact_bound(Q, m) for m in (1, 2, 4, 6)]
    assert values == sorted(values)
    assert values[-1] < EVIDENCE
    assert EVIDENCE - values[-1] < 0.3 * (EVIDENCE - values[0])


@pytest.mark.parametrize("m", [1, 3])
def test_importance_weighted_bound_is_exact_at_the_posterior(m: int) -> None:
    bound = igr.importance_weighted_bound(*_draw(POSTERIOR, (m, 5)))
    torch.testing.assert_close(bound, torch.full((5,), EVIDENCE, dtype=D))


def test_importance_weighted_bound_tends_to_the_evidence() -> None:
    """The mean of the weights is the likelihood, within 4 standard errors."""
    m = 40_000
    log_likelihood, log_prior, log_q = _draw(Q, (m,))
    bound = igr.importance_weighted_bound(log_likelihood, log_prior, log_q)
    weights = (log_likelihood + log_prior - log_q).exp()
    assert abs(float(bound.exp()) - math.exp(EVIDENCE)) < 4 * float(weights.std()) / math.sqrt(m)


def test_released_estimate_is_its_formula_and_no_bound() -> None:
    kl = kl_divergence(Categorical(probs=POSTERIOR), Categorical(probs=PRIOR))
    log_likelihood, _, _ = _draw(POSTERIOR, (10_000,))
    value = igr.released_estimate(log_likelihood, kl)
    torch.testing.assert_close(value, log_likelihood.exp().mean().log() - kl)
    assert value > EVIDENCE + 0.01


def test_many_samples_do_not_underflow() -> None:
    """Log-likelihoods of real images, near -100, average without underflow, along any dimension."""
    x = -1000.0 - torch.rand(7, 50, dtype=D)
    zero = torch.zeros((), dtype=D)
    for dim in (0, 1, -1):
        expected = (x + 1000).exp().mean(dim).log() - 1000
        torch.testing.assert_close(igr.importance_weighted_bound(x, zero, zero, dim=dim), expected)
        torch.testing.assert_close(igr.released_estimate(x, zero, dim=dim), expected)


def test_gradients() -> None:
    x = torch.randn(6, 3, dtype=D, requires_grad=True)
    kl = torch.rand(3, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(igr.elbo, (x, kl))
    assert torch.autograd.gradcheck(igr.importance_weighted_bound, (x, x.detach().clone(), kl))
    assert torch.autograd.gradcheck(igr.released_estimate, (x, kl))
