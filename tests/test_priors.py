"""Matching a relaxation to a discrete distribution, and erratum E3."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Poisson,
)

import igr
from igr import functional
from igr.priors import OutOfReachWarning, cross_entropy, distance, fit, hazard_loc, match

D = torch.float64
TEN = torch.tensor([10, 1, 5, 1, 10, 10, 1, 6, 1, 1], dtype=D) / 46
# As in figures 7 and 8, whose mean is 50 * 0.4 / 0.6: torch counts what has probability `probs`.
NEGATIVE_BINOMIAL = NegativeBinomial(50, probs=torch.tensor(0.4))


def planar(num_categories: int) -> Callable[..., igr.PlanarIGR]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=D, generator=generator)

    flow = [igr.Planar(draw(num_categories - 1), draw(num_categories - 1), draw()) for _ in "12"]
    return functools.partial(igr.PlanarIGR, flow=flow)


@pytest.mark.parametrize(
    ("family", "bound"),
    [
        (igr.SoftmaxIGR, 1e-6),
        (igr.SharpStickBreakingIGR, 1e-5),
        (igr.GumbelSoftmax, 1e-6),
        (igr.CountableIGR, 1e-5),
    ],
)
@pytest.mark.parametrize("target", [TEN, Binomial(12, torch.tensor(0.3))], ids=["ten", "binomial"])
def test_hard_match_recovers_the_target(target: Any, family: Any, bound: float) -> None:
    q = match(target, family, temperature=0.1)
    assert isinstance(q, family)
    closeness = distance(q, target)
    assert closeness.standard_error is None
    assert closeness.total_variation < bound


@pytest.mark.parametrize("family", [igr.SoftmaxIGR, igr.SharpStickBreakingIGR])
def test_what_a_family_rules_out_is_no_part_of_the_target(family: Any) -> None:
    masked = functools.partial(family, allowed=torch.tensor([True, False, True, True]))
    q = match(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=D), masked, 0.5)
    wanted = torch.tensor([4.0, 0.0, 2.0, 1.0], dtype=D) / 7
    torch.testing.assert_close(q.probs, wanted, rtol=0, atol=1e-5)


def test_rounding_is_not_taken_for_what_was_cut() -> None:
    match(torch.rand(1000, 7, dtype=D).softmax(-1), igr.GumbelSoftmax, 0.5)


@pytest.mark.parametrize("family", [igr.SoftmaxIGR, igr.SharpStickBreakingIGR])
def test_hard_match_by_an_independent_count(family: Any) -> None:
    """Each frequency within 4.5 standard errors: it fails by chance once in 15,000 seeds."""
    n = 100_000
    q = match(TEN, family, temperature=0.1)
    y = q.loc + torch.randn(n, 9, dtype=D)
    if family is igr.SoftmaxIGR:
        scores = torch.cat([y, torch.zeros(n, 1, dtype=D)], -1)
    else:
        u = torch.sigmoid(y)
        kept = torch.cumprod(1 - u, -1)
        before = torch.cat([torch.ones(n, 1, dtype=D), kept[:, :-1]], -1)
        scores = torch.cat([u * before, kept[:, -1:]], -1)
    found = torch.bincount(scores.argmax(-1), minlength=10) / n
    assert ((found - TEN).abs() < 4.5 * (TEN * (1 - TEN) / n).sqrt()).all()


@pytest.mark.parametrize("num_categories", [2, 10, 300])
def test_uniform_has_a_closed_form(num_categories: int) -> None:
    """P(last) = Phi(-loc)^(K-1) = 1/K, and the others are alike."""
    uniform = torch.full((num_categories,), 1 / num_categories, dtype=D)
    quantile = Normal(0.0, 1.0).icdf(torch.tensor(num_categories ** (-1 / (num_categories - 1))))
    q = match(uniform, igr.SoftmaxIGR, temperature=0.1)
    assert (q.loc + quantile).abs().max() < 1e-3
    assert distance(q, uniform).total_variation < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [Poisson(torch.tensor(50.0)), NEGATIVE_BINOMIAL], ids=["poisson", "negative binomial"]
)
def test_countable_matches_infinite_targets_without_a_number_of_categories(target: Any) -> None:
    q = match(target, igr.CountableIGR, temperature=0.1)
    assert distance(q, target).total_variation < 1e-5
    counted = q.discrete(num_samples=20_000)
    probs = torch.exp(target.log_prob(torch.arange(q.num_coordinates).double()))
    off = 0.5 * (counted.probs[:-1] - probs).abs().sum()
    # What 20,000 draws are off by on average, and a quarter.
    noise = 0.5 * (2 / torch.pi) ** 0.5 * (probs * (1 - probs) / 20_000).sqrt().sum()
    assert off < 1.25 * noise


def test_countable_matches_a_geometric_distribution() -> None:
    """The Geometric's hazard is the same at each count, and the stick goes on for ever."""
    target = Geometric(torch.tensor(0.4))
    q = match(target, igr.CountableIGR, temperature=0.1)
    assert distance(q, target).total_variation < 1e-5
    assert 20 < q.num_coordinates < 40
    counted = q.discrete(num_samples=50_000).probs
    probs = 0.4 * 0.6 ** torch.arange(8)
    assert ((counted[:8] - probs).abs() < 4.5 * (probs * (1 - probs) / 50_000).sqrt()).all()


@pytest.mark.parametrize("family", [igr.SoftmaxIGR, igr.SharpStickBreakingIGR, planar(10)])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_mean_match(family: Any, temperature: float) -> None:
    """E[z] by other noise, each entry within 4.5 standard errors; 5e-4 is what fixed noise leaves."""
    q = match(TEN, family, temperature, how="mean")
    z = q.sample((40_000,)).double()
    error = z.std(0) / 200
    assert ((z.mean(0) - TEN).abs() < 4.5 * error + 5e-4).all()
    closeness = distance(q, TEN, "mean")
    assert closeness.standard_error is not None
    assert closeness.total_variation < 3 * closeness.standard_error + 1e-3


def test_mean_match_of_gumbel_softmax() -> None:
    q = match(TEN, igr.GumbelSoftmax, 0.5, how="mean")
    assert distance(q, TEN, "mean", num_samples=2**17).total_variation < 5e-3
    assert distance(igr.GumbelSoftmax(0.5, probs=TEN), TEN, "mean").total_variation > 0.01


def test_mean_of_the_softmax_plus_plus_has_one_solution() -> None:
    """E3: at a fixed scale E[z] is the gradient of a strictly convex function of loc."""
    q = match(TEN, igr.SoftmaxIGR, 0.5, how="mean", num_samples=2**12)
    again = igr.priors._solve(
        lambda loc: _mean(loc, 0.5),
        lambda found: torch.special.ndtri(TEN[:-1]) - torch.special.ndtri(found[..., :-1]),
        TEN,
        q.loc + torch.randn(9, dtype=D),
    )[0]
    assert (again - q.loc).abs().max() < 1e-3


def _mean(loc: Tensor, temperature: float) -> Tensor:
    uniform = igr.priors._sobol(2**12, 9, 0)
    y = loc + torch.special.ndtri(uniform)
    return functional.softmax_plus_plus(y, temperature).mean(0)


def test_literal_objective_is_minimised_by_a_point_mass() -> None:
    """E3, the mistake: E||z - p0||^2 falls as the scale goes to 0, where nothing discrete is left.

    The mend keeps the scale, and what it stands for is the target.
    """
    target = torch.tensor([0.5, 0.3, 0.2], dtype=D)
    noise = torch.randn(512, 2, dtype=D)
    loc = functional.log_softmax_plus_plus_inverse(target.log(), 0.5).requires_grad_()
    log_scale = torch.zeros(2, dtype=D, requires_grad=True)

    def literal() -> Tensor:
        z = functional.softmax_plus_plus(loc + log_scale.exp() * noise, 0.5)
        return (z - target).square().sum(-1).mean()

    optimizer = torch.optim.Adam([loc, log_scale], lr=0.05)
    start = literal().item()
    for _ in range(800):
        optimizer.zero_grad()
        loss = literal()
        loss.backward()
        optimizer.step()
    assert literal().item() < start / 200
    assert log_scale.exp().max() < 0.05
    mistaken = igr.SoftmaxIGR(loc.detach(), log_scale.detach().exp(), 0.5)
    assert distance(mistaken, target).total_variation > 0.4
    assert distance(match(target, igr.SoftmaxIGR, 0.5), target).total_variation < 1e-6


@pytest.mark.parametrize("how", ["hard", "mean"])
def test_stick_breaking_is_out_of_reach_and_says_so(how: str) -> None:
    """E3 and E5: (18) never chooses the last of K, and at temperature 1 its z stay near the centre."""
    with pytest.warns(OutOfReachWarning, match="total variation distance of 0"):
        q = match(TEN, igr.StickBreakingIGR, 1.0, how, num_samples=2**10)
    left = float(distance(q, TEN, how, num_samples=2**12).total_variation)
    if how == "hard":
        # The first nine are matched among themselves.
        assert left == pytest.approx(1 / 46, abs=1e-5)
        assert q.loc[-1] == 0
    else:
        assert 0.2 < left < 0.5
        assert q.sample((1000,)).max() < 0.232 + 1e-6


def test_stick_breaking_of_two_categories_is_always_the_first() -> None:
    with pytest.warns(OutOfReachWarning, match="distance of 0.7"):
        q = match(torch.tensor([0.3, 0.7]), igr.StickBreakingIGR, 0.5)
    assert q.discrete().probs.tolist() == [1.0, 0.0]


def test_a_batch_of_targets() -> None:
    target = torch.distributions.Dirichlet(torch.ones(5, dtype=D)).sample((2, 3))
    for family in (igr.SoftmaxIGR, igr.SharpStickBreakingIGR, igr.GumbelSoftmax):
        q = match(target, family, 0.5)
        assert q.batch_shape == (2, 3)
        assert distance(q, target).total_variation.max() < 1e-5


def test_temperature_and_scale_may_be_batched() -> None:
    temperature = torch.tensor([[0.1], [0.5]])
    q = match(TEN[:4] / TEN[:4].sum(), igr.SoftmaxIGR, temperature, scale=torch.tensor([2.0]))
    assert q.batch_shape == (2, 1)
    assert q.scale.unique().tolist() == [2.0]
    assert (q.loc[0] == q.loc[1]).all()


def test_zero_probabilities() -> None:
    target = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    for family in (igr.SoftmaxIGR, igr.SharpStickBreakingIGR, igr.GumbelSoftmax):
        q = match(target, family, 0.1)
        assert q.loc.isfinite().all() if family is not igr.GumbelSoftmax else True
        assert distance(q, target).total_variation < 1e-5
        assert q.loc.dtype == torch.float32 if family is not igr.GumbelSoftmax else True


def test_forms_of_the_target_agree() -> None:
    probs = TEN.float()
    expected = match(probs, igr.SoftmaxIGR, 0.1).loc
    for target in (Categorical(probs), OneHotCategorical(probs)):
        assert (match(target, igr.SoftmaxIGR, 0.1).loc - expected).abs().max() < 1e-5


def test_infinite_target_is_cut_with_a_warning() -> None:
    target = Geometric(torch.tensor(0.3))
    with pytest.warns(OutOfReachWarning, match="a mass of 0.168 of the target lies beyond 5"):
        q = match(target, igr.SoftmaxIGR, 0.1, num_categories=5)
    assert q.num_categories == 5
    assert float(distance(q, target).total_variation) == pytest.approx(0.7**5, abs=1e-5)


def test_is_deterministic_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    a = match(TEN, igr.SoftmaxIGR, 0.3, "mean", num_samples=512)
    distance(igr.GumbelSoftmax(0.5, probs=TEN), TEN, "mean", num_samples=512)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(match(TEN, igr.SoftmaxIGR, 0.3, "mean", num_samples=512).loc, a.loc)


def test_planar_hard_match_is_within_its_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = match(TEN, planar(10), 0.1, num_samples=2**14)
    closeness = distance(q, TEN)
    assert closeness.standard_error is not None
    assert closeness.total_variation < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEN, igr.SoftmaxIGR, 0.1, "median"), "how: expected"),
        ((TEN * 2, igr.SoftmaxIGR, 0.1), "target: expected probabilities"),
        ((torch.tensor([1.2, -0.2]), igr.SoftmaxIGR, 0.1), "target: expected probabilities"),
        ((torch.tensor(1.0), igr.SoftmaxIGR, 0.1), "target: expected shape"),
        ((Poisson(torch.tensor(3.0)), igr.SoftmaxIGR, 0.1), "num_categories: expected"),
        ((Normal(0.0, 1.0), igr.SoftmaxIGR, 0.1), "target: expected probabilities"),
        ((Poisson(torch.ones(3)), igr.CountableIGR, 0.1), "target: expected probabilities"),
        ((TEN.expand(2, 10), igr.CountableIGR, 0.1), "target: expected one distribution"),
        ((TEN, lambda loc, scale, t: Normal(loc, scale), 0.1), "family: expected"),
        ((TEN, igr.SoftmaxIGR, 0.0), "temperature: expected"),
    ],
)
def test_errors_name_the_argument(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match(*arguments)
    if len(arguments) == 3 and arguments[2] == 0.1:
        with pytest.raises(ValueError, match="scale: expected a positive"):
            match(TEN, igr.SoftmaxIGR, 0.1, scale=-1.0)


def test_hazard_start_tends_to_the_target_as_scales_grow() -> None:
    """TV to Binomial(12, 0.3) falls with the scale."""
    target = Binomial(12, torch.tensor(0.3))
    probs = torch.exp(target.log_prob(torch.arange(13.0)))
    left = []
    for scale in (1.0, 3.0, 10.0, 30.0):
        q = igr.SharpStickBreakingIGR(hazard_loc(probs, scale), torch.full((12,), scale), 0.1)
        left.append(float(distance(q, target).total_variation))
    assert left == sorted(left, reverse=True)
    assert left[0] > 0.2
    assert left[-1] < 0.02


@pytest.mark.parametrize("how", ["mean", "hard"])
def test_fit_descends(how: str) -> None:
    loc = hazard_loc(torch.full((10,), 0.1)).requires_grad_()
    seen: list[int] = []
    course = fit(
        lambda: igr.SharpStickBreakingIGR(loc, torch.ones(9), 0.2),
        [loc],
        TEN,
        how,
        num_steps=150,
        every=75,
        callback=lambda step, _: seen.append(step),
    )
    assert seen == list(range(150))
    assert course.objective.shape == (150,)
    assert [step for step, _ in course.closeness] == [0, 75, 150]
    assert course.closeness[-1][1] < 0.15 < course.closeness[0][1]


def test_fit_grows_countable_parameters_and_takes_another_objective() -> None:
    parameters = igr.nn.CountableParameters(initial=4)
    target = Binomial(8, torch.tensor(0.5))
    course = fit(
        lambda: igr.CountableIGR(parameters, 0.2),
        parameters,
        target,
        num_steps=150,
        every=150,
        objective=cross_entropy,
    )
    assert parameters.num_coordinates >= 8
    assert course.closeness[-1][1] < 0.3 < course.closeness[0][1]


@pytest.mark.parametrize("how", ["hard", "mean"])
@pytest.mark.parametrize(
    "family",
    [
        igr.SoftmaxIGR,
        igr.StickBreakingIGR,
        igr.SharpStickBreakingIGR,
        igr.GumbelSoftmax,
        igr.CountableIGR,
        planar(3),
    ],
)
def test_matches_the_same_in_inference_mode(family: Any, how: str) -> None:
    def matched() -> igr.Relaxation:
        target = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
        temperature = torch.tensor(0.9, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutOfReachWarning)
            return igr.match(target, family, temperature, how, num_samples=256)

    with torch.inference_mode():
        found = matched()
    found.rsample((2,))
    with torch.no_grad():
        expected = matched()
    if isinstance(found, igr.GumbelSoftmax):
        assert torch.equal(found.logits, expected.logits)
    else:
        assert torch.equal(found.loc, expected.loc)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "target",
    [
        lambda p: p,
        lambda p: Categorical(probs=p, validate_args=False),
        lambda p: OneHotCategorical(logits=p.log(), validate_args=False),
        lambda p: Bernoulli(p[0]),
        lambda p: Binomial(2, p[0]),
    ],
)
def test_dtype_is_that_of_the_target(target: Any, dtype: torch.dtype) -> None:
    q = match(target(torch.tensor([0.25, 0.25, 0.5], dtype=dtype)), igr.SoftmaxIGR, 0.5)
    assert q.loc.dtype == dtype
