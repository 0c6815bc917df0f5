"""REBAR, RELAX, the double control variate, RODEO, and coupled draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from enumeration import DOUBLE, FAMILIES, Objectives, assert_mean, exact, igr, relax, replicate
from torch import Tensor, nn

from igr import GumbelSoftmax, SoftmaxIGR, functional
from igr import estimators as E
from igr.estimators import (
    ControlNetwork,
    DoubleControlVariate,
    LeaveOneOut,
    Rebar,
    Reinforce,
    Relax,
    Rodeo,
    UnorderedSet,
    couplings,
)
from igr.estimators.noise import Noise


@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_comparison_sees_a_coupling_that_is_wrong(
    family_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample that b is the category of, in the place of a new one given b, makes REBAR biased."""
    family, make = FAMILIES[family_name]
    parameters, objectives = make(1, 3), Objectives(1, 3)
    _, gradient = exact(family, parameters, objectives, 1, 3)
    for law in (couplings._GaussianCoupling, couplings._GumbelCoupling):
        drawn, given = law.draw, law.draw_given

        def draw(self, parameters, noise, drawn=drawn):
            self.last = drawn(self, parameters, noise)
            return self.last

        def draw_given(self, parameters, onehot, temperature, noise, scores=None, given=given):
            return self.last, given(self, parameters, onehot, temperature, noise)[1]

        monkeypatch.setattr(law, "draw", draw)
        monkeypatch.setattr(law, "draw_given", draw_given)
    _, gradients = replicate(Rebar(0.4), family, parameters, objectives, 1500, torch.float32)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(gradients[0], gradient[0])


@pytest.mark.parametrize("family_name", FAMILIES)
def test_draws_that_do_not_know_the_category_do_not_lower_the_variance(
    family_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Erratum E10: with independent draws the mean is still right, but the purpose is missed."""
    family, make = FAMILIES[family_name]
    parameters, objectives = make(1, 3), Objectives(1, 3)
    _, gradient = exact(family, parameters, objectives, 1, 3)

    def variance(estimator: E.Estimator) -> Tensor:
        _, gradients = replicate(estimator, family, parameters, objectives, 1500, torch.float32)
        assert_mean(gradients[0], gradient[0], slack=1e-4)
        return gradients[0].var(1).sum((-1, -2))

    plain, right = variance(Reinforce()), variance(Rebar(0.4, eta=0.5))
    for law in (couplings._GaussianCoupling, couplings._GumbelCoupling):
        given = law.draw_given

        def independent(self, parameters, onehot, temperature, noise, scores=None, given=given):
            score = given(self, parameters, onehot, temperature, noise)[1]
            return self.draw(parameters, noise), score

        monkeypatch.setattr(law, "draw_given", independent)
    wrong = variance(Rebar(0.4, eta=0.5, tied=False))
    # the linear and the quadratic loss
    assert (right[1:3] < plain[1:3]).all()
    assert (right[1:3] < 0.9 * wrong[1:3]).all()


@pytest.mark.parametrize("family_name", FAMILIES)
def test_control_variates_lower_the_variance(family_name: str) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(2, 3), Objectives(2, 3)

    def variance(estimator: E.Estimator) -> Tensor:
        _, gradients = replicate(estimator, family, parameters, objectives, 500)
        return sum(g.var(1).sum((-1, -2)) for g in gradients)  # type: ignore[return-value]

    plain = variance(Reinforce())
    # a constant loss: nothing is left of the variance with eta = 1, leave-one-out, or a set
    for estimator in (Rebar(0.4), Reinforce(LeaveOneOut(), 2), UnorderedSet(2)):
        small = variance(estimator)
        assert small[0] < 1e-20 * plain[0]
    assert (variance(UnorderedSet(4)) < variance(Reinforce(LeaveOneOut(), 4)))[1:4].all()
    assert (variance(Rebar(0.4, eta=0.5)) < plain)[1:3].all()


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("which", ["rebar", "relax"])
def test_own_gradient_is_that_of_the_mean_square(family_name: str, which: str) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(2, 3), Objectives(2, 3)
    estimator: E.Estimator = Rebar(0.4, 0.8) if which == "rebar" else relax(2, 3)
    estimator.double()
    B = 5
    # without a term in q's parameters, whose direct gradient is no part of the estimator's
    objectives.extra = lambda parameters: parameters[0].new_zeros(8, B)  # type: ignore[method-assign]

    def mean_square() -> float:
        torch.manual_seed(3)
        _, gradients = replicate(estimator, family, parameters, objectives, B)
        return float(sum(g.square().sum() for g in gradients))

    mean_square()
    own = {name: p.grad.clone() for name, p in estimator.named_parameters() if p.grad is not None}
    assert own.keys() == dict(estimator.named_parameters()).keys()
    for name, p in estimator.named_parameters():
        flat = p.data.view(-1)
        for i in range(0, flat.numel(), max(1, flat.numel() // 3)):
            h, kept, ends = 1e-6, float(flat[i]), []
            for step in (h, -h):
                flat[i] = kept + step
                ends.append(mean_square())
            flat[i] = kept
            numeric = (ends[0] - ends[1]) / (2 * h)
            assert float(own[name].view(-1)[i]) == pytest.approx(numeric, rel=1e-4, abs=1e-5)


@pytest.fixture
def drawn() -> tuple[GumbelSoftmax, Callable[[Tensor], Tensor], Callable[[], tuple[Tensor, ...]]]:
    """Four variables of three categories, a loss, and what gives its samples, values and slopes."""
    c, seen = torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE), []

    def f(b: Tensor) -> Tensor:
        seen.append(b.detach())
        return (b * c).sum(-1).square()

    def found() -> tuple[Tensor, ...]:
        b = torch.stack(seen)
        return b, (b * c).sum(-1).square(), 2 * (b * c).sum(-1, keepdim=True) * c

    logits = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    return GumbelSoftmax(0.5, logits=logits), f, found


def test_double_control_variate_is_its_formula(drawn: Any) -> None:
    q, f, found = drawn
    E.DoubleControlVariate(3, weight=0.7).double()(q, f).sum().backward()
    (b, values, slope), p = found(), q.probs.detach()
    others, mean = (slope.sum(0) - slope) / 2, slope.mean(0)
    r = values - 0.7 * (others * (b - p)).sum(-1)
    score = ((r - (r.sum(0) - r) / 2).unsqueeze(-1) * (b - p)).mean(0)
    path = 0.7 * p * (mean - (mean * p).sum(-1, keepdim=True))
    torch.testing.assert_close(q.logits.grad, score + path)


def test_rodeo_has_linear_models_of_the_others(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q, f, found = drawn
    network, given = E.Rodeo._network, []

    def noted(self: E.Rodeo, module: nn.Module, linear: Tensor, level: Tensor) -> Tensor:
        given.append((linear, level))
        return network(self, module, linear, level)

    monkeypatch.setattr(E.Rodeo, "_network", noted)
    E.Rodeo(3).double()(q, f)
    b, values, slope = found()
    for i in range(3):
        others = [j for j in range(3) if j != i]
        there = sum(slope[j] - (slope[j] * b[j]).sum(-1, keepdim=True) for j in others) / 2
        for linear, level in given:
            expected = there if linear.dim() == 3 else (there * b[i]).sum(-1)
            torch.testing.assert_close(linear[i], expected)
            torch.testing.assert_close(level[i], values[others].mean(0))


def test_own_gradient_is_a_mean_over_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of three samples is that of one where all three are the same."""
    draw = Noise._draw
    monkeypatch.setattr(
        Noise,
        "_draw",
        lambda self, one, shape, run=None: draw(self, one, (1, *shape[1:])).expand(shape),
    )
    q = GumbelSoftmax(0.5, logits=torch.randn(6, 2, 3, dtype=DOUBLE, requires_grad=True))
    found = []
    for samples in (1, 3):
        estimator = Rebar(0.4, 0.8, num_samples=samples).double()
        torch.manual_seed(1)
        estimator(q, lambda z: z[..., 0].sum(-1).square()).sum().backward()
        found.append([p.grad for p in estimator.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_loss_hands_out_gradients_for_any_reduction(family_name: str) -> None:
    """A mean over the batch scales q's gradients and the estimator's own by the same factor."""
    family, make = FAMILIES[family_name]
    results = []
    for reduce in (torch.sum, torch.mean):
        torch.manual_seed(0)
        leaves = [p.expand(6, 2, p.shape[-1]).clone().requires_grad_() for p in make(1, 3)]
        estimator = relax(2, 3).double()
        torch.manual_seed(1)
        reduce(estimator(family(leaves), lambda z: (z[..., 0].sum(-1) - 0.3) ** 2)).backward()
        results.append([p.grad for p in (*leaves, *estimator.parameters())])
    for total, mean in zip(*results, strict=True):
        torch.testing.assert_close(total, 6 * mean)


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("make_estimator", [lambda: Rebar(0.4), lambda: relax(2, 3)])
def test_nothing_but_the_estimator_gets_the_gradient_of_its_variance(
    family_name: str, make_estimator: Callable[[], E.Estimator]
) -> None:
    """A decoder's gradient is that of the loss at the one-hot sample, free of the control variate."""
    family, make = FAMILIES[family_name]
    encoder = [p.expand(4, 2, 3 - (family is igr)).clone().requires_grad_() for p in make(1, 3)]
    decoder = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    leaves = [p.exp() if i else 2 * p for i, p in enumerate(encoder)]
    estimator = make_estimator().double()
    seen = []

    def f(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return (z * decoder).sum((-1, -2)).exp()

    loss = estimator(family(leaves), f)
    (expected,) = torch.autograd.grad(f(seen[0]).sum(), decoder)
    loss.sum().backward()
    torch.testing.assert_close(decoder.grad, expected)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder)
    assert len(seen) == 3, "two evaluations of f, and the one above"


def test_training_lowers_the_variance_and_eval_leaves_it_alone() -> None:
    torch.manual_seed(0)
    logits = torch.zeros(500, 2, 3)

    def f(z: Tensor) -> Tensor:
        return (z[..., 0].sum(-1) - 0.45) ** 2

    estimator = Relax(ControlNetwork((2, 3)), temperature=2.0)

    def variance() -> float:
        x = logits.clone().requires_grad_()
        estimator(GumbelSoftmax(0.5, logits=x), f).sum().backward()
        assert x.grad is not None
        return float(x.grad.var(0).sum())

    estimator.eval()
    before = variance()
    assert all(p.grad is None for p in estimator.parameters())
    estimator.train()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        variance()
        optimizer.step()
    estimator.eval()
    assert variance() < 0.75 * before


def test_a_stack_of_runs_is_the_runs_one_by_one() -> None:
    """Parameters with a leading axis of runs; one run's control variate does not see another's."""
    R, B, N, K = 3, 5, 2, 4

    def build() -> tuple[Tensor, Relax]:
        torch.manual_seed(0)
        loc = torch.randn(R, B, N, K - 1)
        network = ControlNetwork((N, K), stack=(R,))
        return loc, Relax(network, temperature=torch.tensor([0.2, 0.5, 1.0]).reshape(R, 1, 1))

    def own(loc: Tensor) -> list[Tensor]:
        _, estimator = build()
        leaf = loc.clone().requires_grad_()
        q = SoftmaxIGR(leaf, torch.ones_like(leaf), temperature=torch.full((R, 1, 1), 0.5))
        torch.manual_seed(1)
        loss = estimator(q, lambda z: (z[..., 0].sum(-1) - 0.3) ** 2)
        assert loss.shape == (R, B)
        loss.mean(1).sum().backward()
        return [leaf.grad, *(p.grad for p in estimator.parameters())]  # type: ignore[list-item]

    loc, _ = build()
    changed = loc.clone()
    changed[2] += 1.0
    for before, after in zip(own(loc), own(changed), strict=True):
        torch.testing.assert_close(before[:2], after[:2])
        assert not torch.equal(before[2], after[2])


# ---------------------------------------------------------------------------------------------------------------------
# the double control variate


def gradient_of(estimator: E.Estimator, logits: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    torch.manual_seed(3)
    leaf = logits.clone().requires_grad_()
    estimator(GumbelSoftmax(0.5, logits=leaf), f).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_double_control_variate_takes_all_variance_of_a_linear_loss() -> None:
    logits, weight = (
        torch.randn(2, 3, dtype=DOUBLE).expand(50, 2, 3),
        torch.randn(2, 3, dtype=DOUBLE),
    )

    def f(b: Tensor) -> Tensor:
        return (b * weight).sum((-1, -2))

    found = gradient_of(DoubleControlVariate(3).double(), logits, f)
    assert found.std(0).max() < 1e-12
    torch.testing.assert_close(found, gradient_of(E.Enumerate(), logits, f))


def test_double_control_variate_without_the_first_is_leave_one_out() -> None:
    logits = torch.randn(50, 2, 3, dtype=DOUBLE)

    def f(b: Tensor) -> Tensor:
        return b[..., 0].sum(-1).exp()

    found = gradient_of(DoubleControlVariate(3, weight=0.0).double(), logits, f)
    torch.testing.assert_close(found, gradient_of(Reinforce(LeaveOneOut(), 3), logits, f))


@pytest.mark.parametrize("stack", [False, True])
def test_the_weights_gradient_is_that_of_the_mean_square(stack: bool) -> None:
    logits = torch.randn(4, 5, 2, 3, dtype=DOUBLE)
    initial = (
        torch.linspace(0.2, 0.9, 4, dtype=DOUBLE).reshape(4, 1) if stack else torch.tensor(0.7)
    )
    estimator = DoubleControlVariate(3, weight=initial).double()

    def f(b: Tensor) -> Tensor:
        return b[..., 0].sum(-1).exp()

    square = gradient_of(estimator, logits, f).square().sum((1, 2, 3))
    assert estimator.weight.grad is not None
    own = estimator.weight.grad.clone()
    h = 1e-6
    with torch.no_grad():
        estimator.weight.add_(h)
    more = gradient_of(estimator, logits, f).square().sum((1, 2, 3))
    numeric = (more - square) / h
    expected = numeric.reshape(4, 1) if stack else numeric.sum()
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# RODEO, and what it shares with those above


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reinforce(LeaveOneOut(), 2),
        lambda: DoubleControlVariate(2, weight=0.7),
        lambda: Rodeo(2, 20),
    ],
    ids=["leave one out", "double control variate", "rodeo"],
)
@pytest.mark.parametrize("N, K", [(1, 3), (2, 2), (1, 4)])
def test_the_expectation_over_all_pairs_of_samples_is_the_gradient(
    N: int, K: int, make: Callable[[], E.Estimator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any randomness: every pair, weighted by its probability."""
    states = torch.cartesian_prod(*[torch.arange(K)] * (2 * N)).view(-1, 2, N)
    onehot = nn.functional.one_hot(states, K).to(DOUBLE).movedim(1, 0)
    monkeypatch.setattr(Noise, "onehot", lambda self, logits, count: onehot.clone())
    logits = torch.log_softmax(torch.randn(N, K, dtype=DOUBLE), -1)
    probability = (onehot * logits).sum((0, -2, -1)).exp()
    torch.testing.assert_close(probability.sum().item(), 1.0)
    weight = torch.randn(N, K, dtype=DOUBLE)

    def f(b: Tensor) -> Tensor:
        return 3 + (b * weight).sum((-1, -2)).exp()

    estimator = make().double()
    if isinstance(estimator, Rodeo):
        for network in (estimator.baseline, estimator.score):
            network.factor.data.fill_(1.5)
    every = gradient_of(estimator, logits.expand(len(probability), N, K), f)
    expected = gradient_of(E.Enumerate(), logits.unsqueeze(0), f)[0]
    found = (every * probability.view(-1, 1, 1)).sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (every - expected).abs().max() > 0.01


def test_rodeo_begins_as_leave_one_out_and_lowers_its_variance() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3).expand(300, 2, 3)

    def f(b: Tensor) -> Tensor:
        return (b[..., 0].sum(-1) - 0.45) ** 2

    plain = gradient_of(Reinforce(LeaveOneOut(), 2), logits, f)
    estimator = Rodeo(2, 20)
    torch.testing.assert_close(gradient_of(estimator, logits, f), plain)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.02)
    for seed in range(150):
        optimizer.zero_grad()
        torch.manual_seed(10 + seed)
        estimator(GumbelSoftmax(0.5, logits=logits.clone().requires_grad_()), f).sum().backward()
        optimizer.step()
    estimator.eval()
    assert gradient_of(estimator, logits, f).var(0).sum() < 0.5 * plain.var(0).sum()


def test_rodeos_own_gradient_is_that_of_the_mean_square() -> None:
    logits = torch.randn(4, 2, 3, dtype=DOUBLE)
    estimator = Rodeo(3, 5).double()
    for network in (estimator.baseline, estimator.score):
        network.factor.data.fill_(0.7)

    def f(b: Tensor) -> Tensor:
        return b[..., 0].sum(-1).exp()

    before = gradient_of(estimator, logits, f).square().sum()
    for name, parameter in estimator.named_parameters():
        assert parameter.grad is not None
        own, h = parameter.grad.flatten()[0].item(), 1e-6
        parameter.data.view(-1)[0] += h
        numeric = (gradient_of(estimator.eval(), logits, f).square().sum() - before).item() / h
        parameter.data.view(-1)[0] -= h
        assert numeric == pytest.approx(own, rel=1e-3, abs=1e-4), name


# ---------------------------------------------------------------------------------------------------------------------
# coupled draws


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.5, 2.0])
def test_a_coupled_draw_has_the_category_that_it_was_given(
    temperature: float, dtype: torch.dtype, family_name: str
) -> None:
    """For every category, likely or not, of scores and of relaxed samples alike."""
    family, _ = FAMILIES[family_name]
    K, n = 4, 500
    loc = 3 * torch.randn(n, 2, K - (family is igr), dtype=dtype)
    parameters = [loc, torch.empty_like(loc).uniform_(-2, 2).exp()]
    q = family(parameters, temperature)
    law, noise = E.coupling(q), Noise(None, q.batch_shape)
    for k in range(K):
        onehot = torch.nn.functional.one_hot(torch.full((1, n, 2), k), K).to(dtype)
        given = [p.unsqueeze(0) for p in law.parameters]
        scores, _ = law.draw_given(given, onehot, temperature, noise)
        assert torch.equal(law.hard(scores), onehot)
        assert torch.equal(functional.one_hot_argmax(law.relax(scores, temperature)), onehot)
    drawn = law.draw([p.unsqueeze(0) for p in law.parameters], noise)
    onehot = law.hard(drawn)
    tied, _ = law.draw_given(
        [p.unsqueeze(0) for p in law.parameters], onehot, temperature, noise, drawn
    )
    assert torch.equal(law.hard(tied), onehot)
