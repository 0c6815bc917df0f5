"""CARMS, ARMS and DisARM."""

from __future__ import annotations

import pytest
import torch
from enumeration import DOUBLE, FAMILIES, Objectives, assert_mean, exact, replicate
from scipy import stats
from torch import Tensor

from igr import GumbelSoftmax
from igr.estimators import CARMS, DisARM, LeaveOneOut, Reinforce
from igr.estimators.antithetic import _repelling
from igr.estimators.noise import Noise


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_pairs_are_as_likely_as_the_ratios_say(K: int, count: int) -> None:
    torch.manual_seed(10 * K + count)
    logits, n = torch.randn(K, dtype=DOUBLE), 40_000
    p = torch.softmax(logits, -1)
    onehot, ratio = _repelling(logits.expand(n, K), count, Noise(None, torch.Size([n])))
    first, second = onehot[0].argmax(-1), onehot[-1].argmax(-1)
    table = torch.bincount(first * K + second, minlength=K * K).reshape(K, K)
    # from the ratios: P(k, l) for k != l, and what is left for k = l
    seen = torch.zeros(K, K, dtype=DOUBLE)
    seen[first, second] = ratio[0, -1]
    off = seen > 0
    expected = torch.where(off, torch.outer(p, p) / seen.clamp(min=1e-9), 0.0)
    expected = expected + torch.diag((p - expected.sum(1)).clamp(min=0.0))
    keep = expected > 1e-12
    assert table[~keep].sum() == 0
    # 9 tables, each fails a correct program once in 100,000
    result = stats.chisquare(table[keep].numpy(), (n * expected[keep] / expected.sum()).numpy())
    assert result.pvalue > 1e-5
    assert expected.sum() == pytest.approx(1, abs=1e-6)
    # they repel
    assert (torch.diag(expected) < p * p).all()


@pytest.mark.parametrize("count, K", [(2, 2), (2, 5), (7, 3)])
def test_samples_have_the_marginals_of_q(count: int, K: int) -> None:
    torch.manual_seed(0)
    logits, n = torch.randn(K), 20_000
    onehot, _ = _repelling(logits.expand(n, K), count, Noise(None, torch.Size([n])))
    for sample in onehot:
        expected = n * torch.softmax(logits.double(), -1)
        assert stats.chisquare(sample.sum(0).double().numpy(), expected.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N", [1, 3])
def test_disarm_is_unbiased(N: int, family_name: str) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, 2), Objectives(N, 2)
    value, gradient = exact(family, parameters, objectives, N, 2)
    values, gradients = replicate(DisARM(), family, parameters, objectives, 1500, torch.float32)
    assert_mean(values, value, slack=2e-5)
    for found, expected in zip(gradients, gradient, strict=True):
        assert_mean(found, expected, slack=1e-4)


def test_disarm_is_its_own_formula() -> None:
    logits = torch.randn(200, 3, 2, dtype=DOUBLE, requires_grad=True)
    seen: list[tuple[Tensor, Tensor]] = []

    def f(b: Tensor) -> Tensor:
        value = (b[..., 0] * torch.tensor([1.0, -2.0, 0.7])).sum(-1).exp()
        seen.append((b, value))
        return value

    DisARM()(GumbelSoftmax(0.5, logits=logits), f).sum().backward()
    (b, value), (other, other_value) = seen
    alpha = (logits[..., 0] - logits[..., 1]).detach()
    expected = 0.5 * (value - other_value).unsqueeze(-1) * (b - other)[..., 0]
    expected = expected * torch.sigmoid(alpha.abs())
    torch.testing.assert_close(logits.grad[..., 0], expected)  # type: ignore[index]
    torch.testing.assert_close(logits.grad[..., 1], -expected)  # type: ignore[index]


@pytest.mark.parametrize("K, count", [(2, 2), (2, 4), (4, 2), (4, 4)])
def test_repelling_samples_lower_the_variance(K: int, count: int) -> None:
    logits = torch.randn(2, K, dtype=DOUBLE).expand(4000, 2, K)
    weight = torch.linspace(-1, 1, K, dtype=DOUBLE)

    def variance(estimator) -> float:
        leaf = logits.clone().requires_grad_()
        q = GumbelSoftmax(0.5, logits=leaf)
        estimator(q, lambda b: (b @ weight).sum(-1)).sum().backward()
        return float(leaf.grad.var(0).sum())  # type: ignore[union-attr]

    assert variance(CARMS(count)) < variance(Reinforce(LeaveOneOut(), count))


def test_refusals() -> None:
    q = GumbelSoftmax(0.5, logits=torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"^q: DisARM is for 2 categories, got 3$"):
        DisARM()(q, lambda b: b[..., 0])
    with pytest.raises(ValueError, match=r"^num_samples: expected at least 2 for CARMS.*got 1"):
        CARMS(1)
