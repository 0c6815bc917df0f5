"""Estimators of the relaxed objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from enumeration import (
    DOUBLE,
    FAMILIES,
    Objectives,
    Z,
    assert_mean,
    gumbel,
    gumbel_parameters,
    igr,
    igr_parameters,
    replicate,
)
from torch import Tensor

from igr import SharpStickBreakingIGR, SoftmaxIGR, StickBreakingIGR, monte_carlo_kl
from igr.estimators import Pathwise, StickingTheLanding, sticking_the_landing_kl


@pytest.mark.parametrize("family_name", FAMILIES)
def test_pathwise_is_unbiased_for_the_relaxed_objective(family_name: str) -> None:
    """K = 2, where the relaxed objective is an integral over one variable."""
    family, make = FAMILIES[family_name]
    parameters, objectives = make(1, 2), Objectives(1, 2)
    leaves = [p.expand(8, *p.shape).clone().requires_grad_() for p in parameters]
    u = (torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000
    if family_name == "igr":
        score = leaves[0][..., 0] + leaves[1][..., 0] * torch.special.ndtri(u).unsqueeze(
            -1
        ).unsqueeze(-1)
    else:
        score = leaves[0][..., 0] - leaves[0][..., 1] + torch.logit(u).unsqueeze(-1).unsqueeze(-1)
    z1 = torch.sigmoid(score / 0.5)
    z = torch.stack([z1, 1 - z1], -1).movedim(0, 1)
    value = objectives.of_batch([leaf.unsqueeze(1) for leaf in leaves])(z).mean(1)
    gradient = torch.autograd.grad(value.sum(), leaves)
    values, gradients = replicate(Pathwise(), family, parameters, objectives, 4000)
    # the midpoint rule leaves out the tails of the noise: 1e-4 of them
    assert_mean(values, value.detach(), slack=2e-4)
    for found, expected in zip(gradients, gradient, strict=True):
        assert_mean(found, expected, slack=1e-3)


@pytest.mark.parametrize("name", ["igr", "igr, other prior", "gumbel", "stick", "sharp"])
def test_sticking_the_landing_estimates_the_kl_and_its_gradient(name: str) -> None:
    torch.manual_seed(2)
    B = 4000
    loc = torch.randn(3, dtype=DOUBLE) * 0.5
    scale = torch.tensor([0.5, 1.0, 1.5], dtype=DOUBLE)
    zero, one = torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    if name == "gumbel":
        parameters, prior = (
            [torch.randn(4, dtype=DOUBLE)],
            gumbel([torch.zeros(4, dtype=DOUBLE)], 0.7),
        )

        def make(p: list[Tensor]):
            return gumbel(p, 0.6)
    else:
        parameters = [loc, scale]
        family = {"stick": StickBreakingIGR, "sharp": SharpStickBreakingIGR}.get(name, SoftmaxIGR)
        prior = family(zero, one, 0.5 if name != "igr, other prior" else 0.8)

        def make(p: list[Tensor]):
            return family(p[0], p[1], 0.5)

    def replicate_kl(kl: Callable) -> tuple[Tensor, list[Tensor]]:
        leaves = [p.expand(B, p.shape[-1]).clone().requires_grad_() for p in parameters]
        value = kl(make(leaves), prior)
        value.sum().backward()
        return value.detach(), [leaf.grad for leaf in leaves]  # type: ignore[misc]

    reference, expected = replicate_kl(lambda q, p: monte_carlo_kl(q, p, 40))
    value, found = replicate_kl(lambda q, p: sticking_the_landing_kl(q, p))
    for a, b in [(reference, value), *zip(expected, found, strict=True)]:
        error = ((a.var(0) + b.var(0)) / B).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= Z * error).all()
    # the estimator, with a loss of 0, is this very KL
    torch.manual_seed(9)
    leaves = [p.expand(B, p.shape[-1]).clone().requires_grad_() for p in parameters]
    loss = StickingTheLanding(prior)(make(leaves), lambda z: z.new_zeros(B))
    torch.manual_seed(9)
    torch.testing.assert_close(loss, sticking_the_landing_kl(make(leaves), prior))


def test_the_landing_sticks() -> None:
    """Where q is the prior the gradient is exactly zero, sample by sample; that of the plain estimate is not."""
    for make, parameters in (
        (lambda p: igr(p), igr_parameters(1, 4)),
        (lambda p: gumbel(p), gumbel_parameters(1, 4)),
    ):
        for kl, sticks in ((sticking_the_landing_kl, True), (monte_carlo_kl, False)):
            leaves = [p.expand(10, -1).clone().requires_grad_() for p in parameters]
            kl(make(leaves), make(parameters)).sum().backward()
            size = max(float(leaf.grad.abs().max()) for leaf in leaves)  # type: ignore[union-attr]
            assert (size < 1e-9) == sticks
