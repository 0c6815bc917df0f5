"""Enumeration."""

from __future__ import annotations

import pytest
import torch
from enumeration import DOUBLE, FAMILIES, SHAPES, Objectives, exact, replicate
from torch import Tensor, nn

from igr import GumbelSoftmax
from igr.estimators import Enumerate


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N, K", SHAPES)
def test_it_is_the_sum_over_all_states(N: int, K: int, family_name: str) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, K), Objectives(N, K)
    value, gradient = exact(family, parameters, objectives, N, K)
    for chunk in (1, 3, 1000):
        values, gradients = replicate(Enumerate(chunk=chunk), family, parameters, objectives, 2)
        for found, expected in zip([values, *gradients], [value, *gradient], strict=True):
            torch.testing.assert_close(found, expected.unsqueeze(1).expand_as(found))


@pytest.mark.parametrize("sample_axis", [False, True])
def test_chunks_change_nothing_for_what_f_depends_on(sample_axis: bool) -> None:
    decoder = nn.Linear(6, 1, dtype=DOUBLE)
    logits = torch.randn(5, 2, 3, dtype=DOUBLE, requires_grad=True)
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(z.shape)
        return decoder(z.flatten(-2)).squeeze(-1).square()

    results = []
    for chunk in (2, 4, 9, 100):
        estimator = Enumerate(chunk=chunk, sample_axis=sample_axis)
        decoder.zero_grad()
        loss = estimator(GumbelSoftmax(0.5, logits=logits), f)
        gradient = torch.autograd.grad(loss.sum(), [logits, *decoder.parameters()])
        results.append([loss.detach(), *gradient])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)
    if sample_axis:
        assert max(shape[0] for shape in calls) == 9


def test_the_variables_of_an_element_are_found() -> None:
    logits = torch.randn(4, 30, 3)
    q = GumbelSoftmax(0.5, logits=logits)
    # 30 elements of one variable each, though a first guess has them as variables
    loss = Enumerate()(q, lambda z: z[..., 0])
    torch.testing.assert_close(loss, torch.softmax(logits, -1)[..., 0])
    message = (
        r"^q: Enumerate sums over all states of an element, 3\*\*30 here, and max_states is 65536"
    )
    with pytest.raises(ValueError, match=message):
        Enumerate()(q, lambda z: z[..., 0].sum(-1))
    with pytest.raises(ValueError, match=r"4\*\*128 here"):
        Enumerate()(GumbelSoftmax(0.5, logits=torch.zeros(2, 128, 4)), lambda z: z.sum((-1, -2)))


def test_a_state_that_cannot_be_may_have_any_loss() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    loss = Enumerate()(
        GumbelSoftmax(0.5, logits=logits), lambda z: z[..., 0] / (1 - z[..., 2]) + z[..., 2].log()
    )
    # log 0 at the states that are possible; what matters is the third
    assert loss.detach() == -torch.inf
    loss = Enumerate()(GumbelSoftmax(0.5, logits=logits), lambda z: z[..., 0] / (1 - z[..., 2]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
