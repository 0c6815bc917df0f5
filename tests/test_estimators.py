"""Gradient estimators: against enumeration, against their own definitions, and where they must refuse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from igr import (
    GumbelSoftmax,
    Planar,
    PlanarIGR,
    SharpStickBreakingIGR,
    SoftmaxIGR,
    StickBreakingIGR,
    monte_carlo_kl,
)
from igr import estimators as E
from igr.estimators import (
    ControlNetwork,
    LeaveOneOut,
    Pathwise,
    RaoBlackwellStraightThrough,
    Rebar,
    Reinforce,
    ReinMax,
    Relax,
    RunningMean,
    StickingTheLanding,
    StraightThrough,
    UnorderedSet,
    sticking_the_landing_kl,
)

DOUBLE = torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# the exact gradient, and the families


def igr(parameters: list[Tensor], temperature: float = 0.5) -> SoftmaxIGR:
    return SoftmaxIGR(parameters[0], parameters[1], temperature)


def gumbel(parameters: list[Tensor], temperature: float = 0.5) -> GumbelSoftmax:
    return GumbelSoftmax(temperature, logits=parameters[0])


def common(draw: Callable[[], list[Tensor]], family: Callable) -> list[Tensor]:
    """Parameters under which no category is rare: a mean over rare events is far from normal."""
    while True:
        parameters = draw()
        if float(family(parameters).discrete().probs.min()) > 0.08:
            return parameters


def igr_parameters(N: int, K: int) -> list[Tensor]:
    def draw() -> list[Tensor]:
        scale = torch.empty(N, K - 1, dtype=DOUBLE).uniform_(-0.7, 0.7).exp()
        return [torch.randn(N, K - 1, dtype=DOUBLE) * 0.7, scale]

    return common(draw, igr)


def gumbel_parameters(N: int, K: int) -> list[Tensor]:
    return common(lambda: [torch.randn(N, K, dtype=DOUBLE)], gumbel)


FAMILIES = {"igr": (igr, igr_parameters), "gumbel": (gumbel, gumbel_parameters)}


class Objectives:
    """Four losses of (N, K) samples, each without and with a term in q's parameters: stacked along the first axis."""

    count = 8

    def __init__(self, N: int, K: int) -> None:
        self.w = torch.randn(N, K, dtype=DOUBLE)
        self.a = torch.randn(N * K, 6, dtype=DOUBLE)
        self.b = torch.randn(6, dtype=DOUBLE)

    def plain(self, z: Tensor) -> Tensor:
        """(..., N, K) -> (4, ...)."""
        linear = (z * self.w).sum((-1, -2))
        network = torch.tanh(z.flatten(-2) @ self.a) @ self.b
        return torch.stack([torch.full_like(linear, 1.7), linear, (linear - 0.4) ** 2, network])

    def extra(self, parameters: list[Tensor]) -> Tensor:
        return sum((p.sin() * 0.3).sum((-1, -2)) for p in parameters)  # type: ignore[return-value]

    def of_batch(self, parameters: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """Samples (8, B, N, K) -> (8, B)."""

        def f(z: Tensor) -> Tensor:
            pick = torch.arange(4)
            values = torch.cat([self.plain(z[:4])[pick, pick], self.plain(z[4:])[pick, pick]])
            term = self.extra(parameters)
            return values + torch.cat([torch.zeros_like(term[:4]), term[4:]])

        return f


def states(N: int, K: int) -> Tensor:
    index = torch.tensor(list(itertools.product(range(K), repeat=N)))
    return nn.functional.one_hot(index, K).to(DOUBLE)


def exact(
    family: Callable, parameters: list[Tensor], objectives: Objectives, N: int, K: int
) -> tuple[Tensor, list[Tensor]]:
    """Values (8,) and gradients (8, N, .) by enumeration."""
    leaves = [p.expand(8, *p.shape).clone().requires_grad_() for p in parameters]
    log_probs = family(leaves).discrete().logits
    every = states(N, K)
    log_p = (every * log_probs.unsqueeze(1)).sum((-1, -2))
    f = torch.cat([objectives.plain(every)] * 2)
    term = objectives.extra(leaves)
    value = (log_p.exp() * f).sum(1) + torch.cat([torch.zeros_like(term[:4]), term[4:]])
    return value.detach(), list(torch.autograd.grad(value.sum(), leaves))


def replicate(
    estimator: E.Estimator,
    family: Callable,
    parameters: list[Tensor],
    objectives: Objectives,
    B: int,
    dtype: torch.dtype = DOUBLE,
) -> tuple[Tensor, list[Tensor]]:
    """B independent estimates: values (8, B) and gradients (8, B, N, .)."""
    leaves = [p.to(dtype).expand(8, B, *p.shape).clone().requires_grad_() for p in parameters]
    wide = [leaf.to(DOUBLE) for leaf in leaves]
    f = objectives.of_batch(wide)
    loss = estimator(family(leaves), lambda z: f(z.to(DOUBLE)).to(dtype))
    loss.sum().backward()
    return loss.detach().double(), [leaf.grad.double() for leaf in leaves]  # type: ignore[union-attr]


# One run of all tests that compare a mean fails for a correct program with at most this probability (normal
# approximation, Bonferroni over fewer than 10,000 means); the seed is fixed, so that it fails always or never.
FAILURE_RATE = 1e-3
Z = float(stats.norm.isf(FAILURE_RATE / 2 / 10_000))


def assert_mean(samples: Tensor, expected: Tensor, slack: float = 1e-9) -> None:
    """Along the second dimension, the mean is what is expected within its standard error."""
    error = samples.std(1) / math.sqrt(samples.shape[1])
    excess = (samples.mean(1) - expected).abs() / (Z * error + slack)
    assert excess.max() < 1, f"{float(excess.max() * Z):.1f} standard errors off"


def relax(N: int, K: int) -> Relax:
    return Relax(ControlNetwork((N, K), factor=0.5).double(), temperature=0.4)


def black_box_relax(N: int, K: int) -> Relax:
    return Relax(ControlNetwork((N, K), factor=1.0).double(), temperature=0.4, with_loss=False)


UNBIASED: dict[str, Callable[[int, int], E.Estimator]] = {
    "reinforce": lambda N, K: Reinforce(),
    "running mean": lambda N, K: Reinforce(RunningMean(0.5, shape=(8,))),
    "leave one out": lambda N, K: Reinforce(LeaveOneOut(), num_samples=3),
    "rebar": lambda N, K: Rebar(temperature=0.4, eta=0.8),
    "rebar, a new draw": lambda N, K: Rebar(temperature=0.4, eta=0.8, tied=False),
    "rebar twice": lambda N, K: Rebar(temperature=0.4, num_samples=2),
    "relax": relax,
    "relax, black box": black_box_relax,
    "unordered set of 2": lambda N, K: UnorderedSet(2),
    "unordered set": lambda N, K: UnorderedSet(min(K**N, 5)),
}
SHAPES = [(1, 2), (1, 4), (2, 3), (3, 2)]


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N, K", SHAPES)
def test_mean_gradient_is_that_of_full_enumeration(
    N: int, K: int, family_name: str, name: str
) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, K), Objectives(N, K)
    value, gradient = exact(family, parameters, objectives, N, K)
    estimator = UNBIASED[name](N, K)
    estimator.float()
    if name == "running mean":
        replicate(estimator, family, parameters, objectives, 50, torch.float32)
    values, gradients = replicate(estimator, family, parameters, objectives, 1500, torch.float32)
    # float32's own error, which is all there is where a loss is constant
    assert_mean(values, value, slack=2e-5)
    for found, expected in zip(gradients, gradient, strict=True):
        assert_mean(found, expected, slack=1e-4)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_comparison_sees_a_coupling_that_is_wrong(
    family_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample that b is the category of, in the place of a new one given b, makes REBAR biased."""
    family, make = FAMILIES[family_name]
    parameters, objectives = make(1, 3), Objectives(1, 3)
    _, gradient = exact(family, parameters, objectives, 1, 3)
    for law in (E._GaussianCoupling, E._GumbelCoupling):
        drawn, given = law.draw, law.draw_given

        def draw(self, parameters, drawn=drawn):
            self.last = drawn(self, parameters)
            return self.last

        def draw_given(self, parameters, onehot, temperature, scores=None, given=given):
            return self.last, given(self, parameters, onehot, temperature)[1]

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
    for law in (E._GaussianCoupling, E._GumbelCoupling):
        given = law.draw_given

        def independent(self, parameters, onehot, temperature, scores=None, given=given):
            return self.draw(parameters), given(self, parameters, onehot, temperature)[1]

        monkeypatch.setattr(law, "draw_given", independent)
    wrong = variance(Rebar(0.4, eta=0.5))
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


# ---------------------------------------------------------------------------------------------------------------------
# the biased ones


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


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N, K", [(1, 2), (2, 3)])
def test_rao_blackwell_keeps_the_mean_of_straight_through_and_lowers_the_variance(
    N: int, K: int, family_name: str
) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, K), Objectives(N, K)
    value, gradient = exact(family, parameters, objectives, N, K)
    B = 1500
    values, plain = replicate(StraightThrough(), family, parameters, objectives, B, torch.float32)
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
    law = E.coupling(SoftmaxIGR(loc, scale, 0.5))
    onehot = law.hard(law.draw([p.detach().unsqueeze(0) for p in law.parameters]))
    y, _ = law.draw_given(
        [p.detach().unsqueeze(0) for p in law.parameters], onehot.unsqueeze(0), 0.5
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


# ---------------------------------------------------------------------------------------------------------------------
# what is learned


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("which", ["rebar", "relax", "relax, 3 samples"])
def test_own_gradient_is_that_of_the_mean_square(family_name: str, which: str) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(2, 3), Objectives(2, 3)
    estimator: E.Estimator = Rebar(0.4, 0.8) if which == "rebar" else relax(2, 3)
    estimator.double()
    if which == "relax, 3 samples":
        # one element three times over: its gradients are then three samples of one estimator
        parameters, B = [p.clone() for p in parameters], 3
    else:
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
    assert len(seen) == 4, "three evaluations of f, and the one above"


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


def test_running_mean_and_leave_one_out() -> None:
    baseline = RunningMean(0.9, shape=(2,))
    first = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    assert (baseline(first) == 0).all(), "the first call knows nothing yet"
    torch.testing.assert_close(baseline(first)[0], torch.tensor([[2.0], [20.0]]))
    baseline.eval()
    baseline(100 * first)
    torch.testing.assert_close(baseline(first)[0], torch.tensor([[2.0], [20.0]]))
    assert set(baseline.state_dict()) == {"mean", "weight"}


# ---------------------------------------------------------------------------------------------------------------------
# unordered sets


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
        for method in (E._log_set_probs_by_subsets, E._log_set_probs_by_quadrature):
            for found, expected in zip(method(log_p), by_definition, strict=True):
                torch.testing.assert_close(found.exp(), expected.to(DOUBLE), rtol=1e-6, atol=0)


def test_both_ways_to_the_probabilities_of_sets_agree_where_they_are_tiny() -> None:
    """As for 20 variables of 10 categories: a state's probability is 1e-20, a set's 1e-160."""
    log_p = -46 - 3 * torch.rand(50, 8, dtype=DOUBLE)
    subsets, quadrature = E._log_set_probs_by_subsets(log_p), E._log_set_probs_by_quadrature(log_p)
    for a, b in zip(subsets, quadrature, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)
    assert (subsets[0] < -300).all()


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
    drawn = E._sample_without_replacement(log_probs.expand(n, 2, 3), 3)
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


# ---------------------------------------------------------------------------------------------------------------------
# sticking the landing


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


# ---------------------------------------------------------------------------------------------------------------------
# the sign (erratum E7)

EVERY: dict[str, Callable[[int, int], E.Estimator]] = {
    **UNBIASED,
    "running mean": lambda N, K: Reinforce(RunningMean()),
    "pathwise": lambda N, K: Pathwise(),
    "straight-through": lambda N, K: StraightThrough(),
    "rao-blackwell": lambda N, K: RaoBlackwellStraightThrough(4),
    "reinmax": lambda N, K: ReinMax(),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_loss_is_a_bound_and_training_moves_towards_it(family_name: str, name: str) -> None:
    """A model whose evidence is known: the loss is above -log p(x) on average, and falls towards it.

    With the KL term subtracted (erratum E7) it would be below: at the start by more than a nat.
    """
    torch.manual_seed(0)
    family, _ = FAMILIES[family_name]
    N, K, B = 1, 3, 100
    log_likelihood = torch.tensor([-1.0, -2.0, -3.0], dtype=DOUBLE)
    evidence = float(torch.logsumexp(log_likelihood - math.log(K), 0))
    if family_name == "igr":
        parameters = [torch.tensor([[-1.0, 2.5]], dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE)]
    else:
        parameters = [torch.tensor([[-2.0, 3.0, -2.0]], dtype=DOUBLE)]
    leaves = [p.expand(B, *p.shape).clone().requires_grad_() for p in parameters]
    estimator = EVERY[name](N, K).double()
    optimizer = torch.optim.Adam(leaves[:1], lr=0.2)

    def step() -> tuple[Tensor, Tensor]:
        q = family(leaves, 0.3)
        logits = q.discrete().logits
        kl = (logits.exp() * (logits + math.log(K))).sum((-1, -2))
        loss = estimator(q, lambda z: kl - (z * log_likelihood).sum((-1, -2)))
        exact_loss = kl - (logits.exp() * log_likelihood).sum((-1, -2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        return loss.detach(), exact_loss.detach()

    first, first_exact = step()
    for _ in range(30):
        last_exact = step()[1]
    assert float(first_exact[0]) > -evidence + 0.5
    assert float(first.mean()) > -evidence + 0.2
    assert float(last_exact.mean()) < float(first_exact.mean()) - 0.3
    assert float(last_exact.min()) >= -evidence - 1e-9


# ---------------------------------------------------------------------------------------------------------------------
# degenerate inputs

NEED_PROBABILITIES = [
    "reinforce",
    "leave one out",
    "rebar",
    "relax",
    "unordered set of 2",
    "reinmax",
]


@pytest.mark.parametrize("name", EVERY)
def test_a_probability_of_one_and_of_zero(name: str) -> None:
    """Only one category can be drawn: the value is exact, the gradient finite."""
    inf = torch.inf
    logits = torch.tensor([[[0.0, -inf, -inf]], [[1.0, 1.0, -inf]]]).requires_grad_()
    weight = torch.tensor([2.0, 5.0, -7.0])
    estimator = EVERY[name](1, 3).float()
    loss = estimator(GumbelSoftmax(0.5, logits=logits), lambda z: (z * weight).sum((-1, -2)))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert loss[0] == 2.0
    assert (logits.grad[0] == 0).all()
    assert 2.0 <= float(loss[1].detach()) <= 5.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_an_igr_that_is_certain_and_one_with_a_category_not_allowed(name: str) -> None:
    loc = torch.tensor([[[-400.0, 300.0]], [[0.3, 0.2]]]).requires_grad_()
    scale = torch.ones(2, 1, 2).requires_grad_()
    weight = torch.tensor([2.0, 5.0, -7.0])
    estimator = EVERY[name](1, 3).float()

    def f(z: Tensor) -> Tensor:
        return (z * weight).sum((-1, -2))

    loss = estimator(SoftmaxIGR(loc, scale, 0.5), f)
    loss.sum().backward()
    assert float(loss[0].detach()) == pytest.approx(5.0, abs=1e-5)
    for leaf in (loc, scale):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad[0].abs().max() < 1e-4
    for allowed in ([True, False, True], [True, True, False]):
        leaf = torch.zeros(5, 1, 2, requires_grad=True)
        q = SoftmaxIGR(leaf, torch.ones(5, 1, 2), 0.5, allowed=torch.tensor(allowed))
        loss = estimator(q, f)
        loss.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        if not allowed[1]:
            assert (leaf.grad[..., 1] == 0).all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_of_the_wrong_kind_is_named(name: str) -> None:
    q = GumbelSoftmax(0.5, logits=torch.zeros(6, 2, 3))
    estimator = EVERY[name](2, 3).float()
    with pytest.raises(
        ValueError, match=r"^f: expected one value for each batch element.*\(6, 2\).*\(5,\)"
    ):
        estimator(q, lambda z: torch.zeros(5))
    with pytest.raises(ValueError, match=r"^f: expected a floating-point tensor.*float"):
        estimator(q, lambda z: 1.0)
    with pytest.raises(ValueError, match=r"^f: expected a floating-point tensor.*int64"):
        estimator(q, lambda z: torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: UnorderedSet(1), "num_samples: expected at least 2"),
        (
            lambda: Reinforce(LeaveOneOut()),
            "num_samples: expected at least 2 for the baseline LeaveOneOut, got 1",
        ),
        (lambda: Reinforce(num_samples=0), "num_samples: expected a positive integer, got 0"),
        (
            lambda: RaoBlackwellStraightThrough(0),
            "num_conditional: expected a positive integer, got 0",
        ),
        (lambda: Rebar(temperature=0.0), "temperature: expected a positive number"),
        (lambda: ReinMax(temperature=-1.0), "temperature: expected a positive number"),
        (lambda: RunningMean(1.0), "decay: expected a number in"),
        (lambda: RunningMean(shape=(3,))(torch.zeros(1, 4)), "shape: expected losses of shape"),
        (
            lambda: UnorderedSet(10)(
                GumbelSoftmax(0.5, logits=torch.zeros(4, 2, 3)), lambda b: b[..., 0].sum(-1)
            ),
            r"num_samples: expected at most the number of states, 3\*\*2 = 9, got 10",
        ),
        (
            lambda: Rebar()(
                SharpStickBreakingIGR(torch.zeros(2), torch.ones(2), 0.5), lambda b: b[..., 0]
            ),
            "q: expected a distribution with an exact conditional draw .* got SharpStickBreakingIGR",
        ),
        (
            lambda: Reinforce()(
                PlanarIGR(
                    torch.zeros(2),
                    torch.ones(2),
                    0.5,
                    Planar(torch.ones(2), torch.ones(2), torch.tensor(0.0)),
                ),
                lambda b: b[..., 0],
            ),
            "q: Reinforce needs the gradient of the categories' probabilities, and PlanarIGR",
        ),
        (
            lambda: Pathwise()(torch.distributions.Bernoulli(torch.tensor(0.5)), lambda b: b),
            "q: Pathwise needs a relaxation to sample from, got Bernoulli",
        ),
        (
            lambda: StickingTheLanding(GumbelSoftmax(0.5, logits=torch.zeros(3)))(
                GumbelSoftmax(0.5, logits=torch.zeros(4)), lambda b: b[..., 0]
            ),
            "prior: expected 4 categories as q has, got 3",
        ),
        (
            lambda: ControlNetwork((2, 3))(torch.zeros(5, 3, 2)),
            r"z: expected a shape that ends in \(2, 3\)",
        ),
    ],
)
def test_errors(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", EVERY)
def test_one_call_with_a_sample_axis_is_the_same_as_several(name: str) -> None:
    if not hasattr(EVERY[name](2, 3), "sample_axis"):
        pytest.skip("no such option")
    logits = torch.randn(6, 2, 3, dtype=DOUBLE)
    estimator = EVERY[name](2, 3).double()
    results = []
    for estimator.sample_axis in (False, True):
        leaf = logits.clone().requires_grad_()
        torch.manual_seed(4)
        loss = estimator(GumbelSoftmax(0.5, logits=leaf), lambda z: z[..., 0].sum(-1) ** 2)
        loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
        for module in estimator.modules():
            if isinstance(module, RunningMean):
                module.weight.zero_()
                module.mean.zero_()
    torch.testing.assert_close(*results)
    with pytest.raises(ValueError, match="leading axis"):
        estimator(GumbelSoftmax(0.5, logits=logits), lambda z: torch.zeros(99, dtype=DOUBLE))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_without_gradients_the_value_is_all(family_name: str, name: str) -> None:
    family, make = FAMILIES[family_name]
    estimator = EVERY[name](2, 3).double()
    parameters = [p.expand(4, *p.shape).clone() for p in make(2, 3)]
    with torch.no_grad():
        loss = estimator(family(parameters), lambda z: z[..., 0].sum(-1))
    assert loss.shape == (4,)
    assert not loss.requires_grad


@pytest.mark.parametrize(
    "name", ["reinforce", "leave one out", "relax, black box", "unordered set"]
)
def test_black_boxes_may_have_no_gradient(name: str) -> None:
    logits = torch.randn(6, 2, 3, dtype=DOUBLE, requires_grad=True)

    def f(b: Tensor) -> Tensor:
        return torch.from_numpy(b.detach().numpy()[..., 0].sum(-1))

    UNBIASED[name](2, 3)(GumbelSoftmax(0.5, logits=logits), f).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for make in (lambda: Rebar(0.4), lambda: Reinforce(), lambda: UnorderedSet(2)):
            loc = torch.zeros(4, 2, 3, dtype=dtype, requires_grad=True)
            q = SoftmaxIGR(loc, torch.ones_like(loc), 0.5)
            make()(q, lambda z: z[..., 0].sum(-1)).sum().backward()
            assert loc.grad is not None
            assert loc.grad.dtype == dtype
            assert loc.grad.isfinite().all()


@pytest.mark.parametrize("name", ["reinforce", "unordered set of 2", "reinmax"])
def test_a_plain_categorical_will_do_where_nothing_is_relaxed(name: str) -> None:
    logits = torch.randn(6, 2, 3, dtype=DOUBLE, requires_grad=True)
    q = torch.distributions.OneHotCategorical(logits=logits)
    EVERY[name](2, 3)(q, lambda b: b[..., 0].sum(-1)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
