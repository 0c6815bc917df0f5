"""The straight-through family."""

from __future__ import annotations

import pytest
import torch
from enumeration import DOUBLE, FAMILIES, Objectives, Z, assert_mean, exact, replicate
from torch import Tensor

from igr import GumbelSoftmax, SoftmaxIGR
from igr.estimators import (
    MVE,
    Estimator,
    GappedStraightThrough,
    RaoBlackwellStraightThrough,
    ReinMax,
    RelaxedStraightThrough,
    StraightThrough,
    coupling,
)
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
@pytest.mark.parametrize("estimator", [ReinMax(), MVE()], ids=lambda e: type(e).__name__)
def test_reinmax_and_mve_are_exact_up_to_second_order(
    family_name: str, estimator: Estimator
) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(1, 3), Objectives(1, 3)
    _, gradient = exact(family, parameters, objectives, 1, 3)
    _, gradients = replicate(estimator, family, parameters, objectives, 1500)
    for found, expected in zip(gradients, gradient, strict=True):
        # constant, linear, quadratic; the network is neither
        for i in (0, 1, 2, 4, 5, 6):
            assert_mean(found[i : i + 1], expected[i : i + 1], slack=1e-8)


def test_the_gap_is_there() -> None:
    """The moved softmax has the category drawn ahead of all others by the gap, and moves nothing that need not move."""
    theta = 2 * torch.randn(200, 5, dtype=DOUBLE)
    theta[:, 4] = -torch.inf
    noise = Noise(None, torch.Size([200]))
    onehot = noise.onehot(theta, 1)
    moved = GappedStraightThrough(1.5)._surrogate(theta, onehot, noise).log()
    own = torch.where(onehot > 0, moved, 0.0).sum(-1, keepdim=True)
    lead = (own - moved)[onehot == 0]
    assert (lead >= 1.5 - 1e-9).all()
    # a category 1.5 or more behind the largest logit stays as far behind it
    behind = (theta.amax(-1, keepdim=True) - theta).expand_as(onehot)[onehot == 0]
    torch.testing.assert_close(lead, behind.clamp(min=1.5))
    # which temperature and gap are its own
    q = [GumbelSoftmax(t, logits=theta) for t in (0.1, 3.0)]
    for law in q:
        torch.manual_seed(0)
        GappedStraightThrough()(law, lambda z: z[..., 0])


def test_gapped_gradient_is_that_of_the_moved_softmax() -> None:
    theta = torch.tensor([1.0, 0.4, -2.0], dtype=DOUBLE, requires_grad=True)
    onehot = torch.tensor([[0.0, 1.0, 0.0]], dtype=DOUBLE)
    # the second is lifted from 0.4 to 1, the first lowered from 1 to 0, the third is far enough
    weight = torch.randn(3, dtype=DOUBLE)
    noise = Noise(None, torch.Size())
    surrogate = GappedStraightThrough(1.0, temperature=0.7)._surrogate(theta, onehot, noise)
    (found,) = torch.autograd.grad((surrogate * weight).sum(), theta)
    moved = torch.tensor([0.0, 1.0, -2.0], dtype=DOUBLE, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.softmax(moved / 0.7, -1) @ weight, moved)
    torch.testing.assert_close(found, expected)


def test_straight_through_is_bengios() -> None:
    logits = torch.randn(40, 2, 3, dtype=DOUBLE, requires_grad=True)
    seen = []

    def f(b: Tensor) -> Tensor:
        seen.append(b)
        return b[..., 0].sum(-1).exp()

    StraightThrough()(GumbelSoftmax(0.5, logits=logits), f).sum().backward()
    (b,) = seen
    assert ((b == 0) | (b == 1)).all()
    leaf = logits.detach().requires_grad_()
    slope = b.detach()[..., 0].sum(-1, keepdim=True).exp()
    (slope * torch.softmax(leaf, -1)[..., 0]).sum().backward()
    torch.testing.assert_close(logits.grad, leaf.grad)
