"""Sampling without replacement."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from enumeration import (
    DOUBLE,
    FAMILIES,
    Objectives,
    assert_mean,
    exact,
    gumbel,
    gumbel_parameters,
    replicate,
)
from scipy import stats
from torch import Tensor

from igr import GumbelSoftmax
from igr.estimators import UnorderedSet, unordered
from igr.estimators.noise import Noise


def brute_force(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The probability of a set from its definition: a sum over all orders."""
    p = log_p.exp().tolist()

    def set_prob(members: tuple[int, ...], drawn: float) -> float:
        total = 0.0
        for order in itertools.permutations(members):
            gone, term = drawn, 1.0
            for i in order:
                term *= p[i] / (1 - gone)
                gone += p[i]
            total += term
        return total

    n = len(p)
    every = tuple(range(n))
    one = [set_prob(tuple(i for i in every if i != a), p[a]) for a in every]
    two = [
        [
            set_prob(tuple(i for i in every if i not in (a, b)), sum(p[i] for i in {a, b}))
            for a in every
        ]
        for b in every
    ]
    return torch.tensor(set_prob(every, 0.0)), torch.tensor(one), torch.tensor(two)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_probabilities_of_sets(count: int) -> None:
    for spread in (0.3, 3.0):
        log_p = torch.log_softmax(spread * torch.randn(count + 3, dtype=DOUBLE), -1)[:count]
        by_definition = brute_force(log_p)
        for method in (unordered._log_set_probs_by_subsets, unordered._log_set_probs_by_quadrature):
            for found, expected in zip(method(log_p), by_definition, strict=True):
                torch.testing.assert_close(found.exp(), expected.to(DOUBLE), rtol=1e-6, atol=0)


def test_both_ways_to_the_probabilities_of_sets_agree_where_they_are_tiny() -> None:
    """As for 20 variables of 10 categories: a state's probability is 1e-20, a set's 1e-160."""
    log_p = -46 - 3 * torch.rand(50, 8, dtype=DOUBLE)
    subsets, quadrature = (
        unordered._log_set_probs_by_subsets(log_p),
        unordered._log_set_probs_by_quadrature(log_p),
    )
    for a, b in zip(subsets, quadrature, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)
    assert (subsets[0] < -300).all()


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4, 1e30])
def test_both_ways_agree_where_one_state_is_certain(size: float) -> None:
    """What the others' probabilities are no number can tell: only that they add nothing."""
    log_p = -torch.tensor([0.0, *[size] * 6, 2 * size, torch.inf], dtype=DOUBLE)
    of_subsets, of_quadrature = (
        method(log_p)
        for method in (unordered._log_set_probs_by_subsets, unordered._log_set_probs_by_quadrature)
    )
    for none, one, two in (of_subsets, of_quadrature):
        weight = (log_p + one - none).exp()
        torch.testing.assert_close(weight, (log_p == 0).to(DOUBLE), rtol=0, atol=1e-9)
        control = (log_p + two - one.unsqueeze(-1)).exp()[1:, 0]
        torch.testing.assert_close(control, torch.ones_like(control), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("count", [2, 9, 10, 15])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_a_state_that_is_certain_is_all_there_is(
    size: float, count: int, dtype: torch.dtype
) -> None:
    logits = torch.zeros(3, 20, dtype=dtype)
    logits[0, 0], logits[1, 5], logits[2, 7] = size, size, -size
    logits.requires_grad_()
    loss = UnorderedSet(count)(GumbelSoftmax(0.5, logits=logits), lambda b: 2 * b[..., 5])
    torch.testing.assert_close(loss[:2].double(), torch.tensor([0.0, 2.0], dtype=DOUBLE))
    assert loss.isfinite().all()
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N, K", [(1, 2), (1, 4), (2, 3), (3, 2)])
def test_a_set_of_all_states_has_no_variance(N: int, K: int, family_name: str) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, K), Objectives(N, K)
    value, gradient = exact(family, parameters, objectives, N, K)
    values, gradients = replicate(UnorderedSet(K**N), family, parameters, objectives, 20)
    assert values.std(1).max() < 1e-12
    torch.testing.assert_close(values[:, 0], value)
    for found, expected in zip(gradients, gradient, strict=True):
        assert found.std(1).max() < 1e-12
        torch.testing.assert_close(found[:, 0], expected, atol=1e-9, rtol=1e-7)


def test_sets_beyond_enumeration_are_unbiased_too() -> None:
    parameters, objectives = gumbel_parameters(2, 4), Objectives(2, 4)
    value, gradient = exact(gumbel, parameters, objectives, 2, 4)
    values, gradients = replicate(UnorderedSet(11), gumbel, parameters, objectives, 300)
    assert_mean(values, value)
    assert_mean(gradients[0], gradient[0])


def test_states_are_drawn_without_replacement_from_the_joint_distribution() -> None:
    torch.manual_seed(5)
    log_probs = torch.log_softmax(torch.randn(2, 3, dtype=DOUBLE), -1)
    n = 20_000
    drawn = unordered._sample_without_replacement(
        log_probs.expand(n, 2, 3), 3, Noise(None, torch.Size())
    )
    code = drawn[..., 0] * 3 + drawn[..., 1]
    assert (code.sort(-1).values.diff(dim=-1) > 0).all()
    joint = (log_probs[0].unsqueeze(1) + log_probs[1]).flatten().exp()
    # ordered pairs of the first two: p(a) p(b) / (1 - p(a))
    expected = torch.outer(joint / (1 - joint), joint)
    expected.fill_diagonal_(0)
    counts = torch.bincount(code[:, 0] * 9 + code[:, 1], minlength=81)
    keep = expected.flatten() > 0
    result = stats.chisquare(counts[keep].numpy(), (n * expected.flatten()[keep]).numpy())
    assert result.pvalue > 1e-4
    assert counts[~keep].sum() == 0


def test_beam_search_reaches_a_joint_distribution_too_large_to_list() -> None:
    logits = torch.randn(3, 20, 10, requires_grad=True)
    samples = []

    def f(b: Tensor) -> Tensor:
        samples.append(b.detach())
        return b[..., 0].sum(-1)

    loss = UnorderedSet(4)(GumbelSoftmax(0.5, logits=logits), f)
    loss.sum().backward()
    assert loss.shape == (3,)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert len(samples) == 4
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(samples, 2))


def test_the_dimensions_of_the_variables_are_found_and_remembered() -> None:
    logits = torch.randn(4, 5, 3, dtype=DOUBLE)
    estimator, calls = UnorderedSet(2), []
    for dims, reduce in (
        (2, lambda b: b[..., 0]),
        (1, lambda b: b[..., 0].sum(-1)),
        (0, lambda b: b.sum()),
    ):

        def f(b: Tensor, reduce: Callable = reduce) -> Tensor:
            calls.append(1)
            return reduce(b)

        for expected in (4, 2):
            calls.clear()
            assert estimator(GumbelSoftmax(0.5, logits=logits), f).dim() == dims
            assert len(calls) == expected or (dims == 1 and len(calls) <= 4)
