"""The exact probabilities of the largest stick-breaking weight, against integrators and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import integrate, stats

from igr import functional
from igr.stick_breaking import leader_log_probs

D = torch.float64


def test_two_breaks_agree_with_an_adaptive_integrator() -> None:
    """K = 3: with u = sigmoid(y), the last wins iff u_1 < 1/2 is beaten, which is one nested integral."""
    loc, scale = torch.tensor([-0.4, 0.7], dtype=D), torch.tensor([1.3, 0.6], dtype=D)
    first, second = (stats.norm(float(m), float(s)) for m, s in zip(loc, scale, strict=True))

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    def second_wins(y: float) -> float:
        r = math.exp(y)  # w_1 against what is left of the stick
        u_least = max(r, 0.5)
        return second.sf(logit(u_least)) if u_least < 1 else 0.0

    def last_wins(y: float) -> float:
        r = math.exp(y)
        u_most = min(1 - r, 0.5)
        return second.cdf(logit(u_most)) if u_most > 0 else 0.0

    def total(wins: Callable[[float], float]) -> float:
        # The integrands bend where r passes 1/2 and 1.
        ends = [(-10.0, math.log(0.5)), (math.log(0.5), 0.0)]
        return sum(
            integrate.quad(lambda y: first.pdf(y) * wins(y), *end, epsabs=1e-13)[0] for end in ends
        )

    found = [total(second_wins), total(last_wins)]
    probs = leader_log_probs(loc, scale).exp()
    expected = torch.tensor([1 - sum(found), *found], dtype=D)
    assert (probs - expected).abs().max() < 1e-7


def test_one_break_is_the_normal_cdf() -> None:
    loc, scale = torch.tensor([[-3.0], [0.2], [40.0]], dtype=D), torch.tensor([0.7], dtype=D)
    probs = leader_log_probs(loc, scale).exp()
    assert (probs[:, 0] - torch.special.ndtr(loc[:, 0] / 0.7)).abs().max() < 1e-7


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("num_categories", [4, 24])
def test_agrees_with_monte_carlo(num_categories: int, rest: bool) -> None:
    """Within 4.5 standard errors in all of 56 numbers: it fails by chance once in 2,600 seeds."""
    n = 60_000
    loc = torch.randn(num_categories - 1, dtype=D) - (num_categories > 4) * 2.0
    scale = torch.empty_like(loc).uniform_(0.3, 3.0)
    log_w = functional.log_stick_breaking(loc + scale * torch.randn(n, num_categories - 1, dtype=D))
    leader = (log_w if rest else log_w[:, :-1]).argmax(-1)
    found = torch.bincount(leader, minlength=num_categories) / n
    probs = leader_log_probs(loc, scale, rest=rest).exp()
    error = (probs * (1 - probs) / n).sqrt() + 1.0 / n
    assert ((found - probs).abs() < 4.5 * error).all()
    assert rest or probs[-1] == 0


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize(("smallest", "largest", "bound"), [(0.3, 3.0, 1e-6), (0.05, 5.0, 1e-6)])
def test_default_resolution_is_enough(
    smallest: float, largest: float, bound: float, rest: bool
) -> None:
    loc = 3 * torch.randn(2, 3, dtype=D)
    scale = torch.empty(2, 3, dtype=D).uniform_(math.log(smallest), math.log(largest)).exp()
    probs = leader_log_probs(loc, scale, rest=rest).exp()
    fine = leader_log_probs(loc, scale, rest=rest, num_points=900, num_nodes=96).exp()
    assert (probs - fine).abs().max() < bound


def test_gradients_agree_with_differences() -> None:
    loc, scale = torch.randn(4, dtype=D), 0.5 + torch.rand(4, dtype=D)
    weights = torch.randn(5, dtype=D)

    def total(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (leader_log_probs(loc, scale, num_points=300, num_nodes=48) * weights).sum()

    loc.requires_grad_()
    scale.requires_grad_()
    found = torch.autograd.grad(total(loc, scale), (loc, scale))
    step = 1e-4
    for which, gradient in enumerate(found):
        for i in range(4):
            ends = []
            for sign in (1, -1):
                at = [loc.detach().clone(), scale.detach().clone()]
                at[which][i] += sign * step
                ends.append(float(total(at[0], at[1])))
            expected = (ends[0] - ends[1]) / (2 * step)
            assert abs(float(gradient[i]) - expected) < 1e-5 * (1 + abs(expected))


@pytest.mark.parametrize("mask", ["10110", "01101", "10100", "00010", "00001"])
def test_categories_that_are_not_allowed(mask: str) -> None:
    """As if the breaks that are not made were not there."""
    allowed = torch.tensor([c == "1" for c in mask])
    loc, scale = torch.randn(4, dtype=D), 0.5 + torch.rand(4, dtype=D)
    probs = leader_log_probs(loc, scale, allowed=allowed).exp()
    assert (probs[~allowed] == 0).all()
    made = functional.stick_breaking_active(allowed)
    expected = leader_log_probs(loc[made], scale[made]).exp() if made.any() else torch.ones(1)
    assert (probs[allowed] - expected).abs().max() < 1e-5


def test_batches_and_single_elements_agree() -> None:
    loc = torch.randn(2, 3, 5, dtype=D)
    whole = leader_log_probs(loc, torch.ones(5, dtype=D)).exp()
    one = leader_log_probs(loc[1, 2], torch.ones(5, dtype=D)).exp()
    assert whole.shape == (2, 3, 6)
    assert (whole[1, 2] - one).abs().max() < 1e-6
