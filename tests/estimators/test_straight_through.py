"""The straight-through family."""

from __future__ import annotations

import pytest
import torch
from enumeration import DOUBLE, FAMILIES, Objectives, Z, assert_mean, exact, replicate

from igr import SoftmaxIGR
from igr.estimators import RaoBlackwellStraightThrough, ReinMax, RelaxedStraightThrough, coupling
from igr.estimators.noise import Noise


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N, K", [(1, 2), (2, 3)])
def test_rao_blackwell_keeps_the_mean_of_straight_through_and_lowers_the_variance(
    N: int, K: int, family_name: str
) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, K), Objectives(N, K)
    value, gradient = exact(family, parameters, objectives, N, K)
    B = 1500
    values, plain = replicate(
        RelaxedStraightThrough(), family, parameters, objectives, B, torch.float32
    )
    assert_mean(values, value, slack=1e-5)
    estimator = RaoBlackwellStraightThrough(4)
    values, smooth = replicate(estimator, family, parameters, objectives, B, torch.float32)
    assert_mean(values, value, slack=1e-5)
    for a, b in zip(plain, smooth, strict=True):
        error = ((a.var(1) + b.var(1)) / B).sqrt()
        assert ((a.mean(1) - b.mean(1)).abs() <= Z * error + 1e-5).all()
        varies = a.var(1).sum((-1, -2)) > 1e-9
        assert (b.var(1).sum((-1, -2)) < a.var(1).sum((-1, -2)))[varies].all()
    # biased: a quadratic loss shows it
    bias, error = (plain[0].mean(1) - gradient[0])[2], (plain[0].var(1)[2] / B).sqrt()
    assert (bias.abs() > 3 * error).any()


def test_rao_blackwell_holds_the_noise_and_not_the_sample() -> None:
    """One draw for each: the gradient is that of the relaxed sample at that noise."""
    loc = torch.randn(50, 3, dtype=DOUBLE, requires_grad=True)
    scale = torch.rand(50, 3, dtype=DOUBLE) + 0.5
    weight = torch.randn(4, dtype=DOUBLE)
    torch.manual_seed(7)
    RaoBlackwellStraightThrough(1)(
        SoftmaxIGR(loc, scale, 0.5), lambda z: z @ weight
    ).sum().backward()
    torch.manual_seed(7)
    noise = Noise(None, torch.Size([50]))
    law = coupling(SoftmaxIGR(loc, scale, 0.5))
    onehot = law.hard(law.draw([p.detach().unsqueeze(0) for p in law.parameters], noise))
    y, _ = law.draw_given(
        [p.detach().unsqueeze(0) for p in law.parameters], onehot.unsqueeze(0), 0.5, noise
    )
    noise = ((y - loc) / scale).detach()[0, 0]
    (expected,) = torch.autograd.grad(
        (SoftmaxIGR(loc, scale, 0.5).transform(loc + scale * noise) @ weight).sum(), loc
    )
    torch.testing.assert_close(loc.grad, expected)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_reinmax_is_exact_up_to_second_order(family_name: str) -> None:
    family, make = FAMILIES[family_name]
    for K in (2, 3, 4):
        parameters, objectives = make(1, K), Objectives(1, K)
        _, gradient = exact(family, parameters, objectives, 1, K)
        _, gradients = replicate(ReinMax(), family, parameters, objectives, 2000)
        for found, expected in zip(gradients, gradient, strict=True):
            # constant, linear, quadratic; the network is neither
            for i in (0, 1, 2, 4, 5, 6):
                assert_mean(found[i : i + 1], expected[i : i + 1], slack=1e-8)
