"""Draws given the category: coupling, distribution, gradients, tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from igr import GumbelSoftmax, SoftmaxIGR
from igr.conditional import (
    conditional_gaussian,
    conditional_gaussian_and_log_prob,
    conditional_gumbel,
    log_ndtri,
    rounding_gap,
    truncated_normal_below,
)
from igr.functional import softmax_plus_plus


def one_hot(index: Tensor | int, K: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(index), K).to(dtype)


def extremes(K: int, dtype: torch.dtype, rows: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Every category forced to win, whatever its probability: loc up to 30, scale from 0.05 to 5."""
    loc = torch.empty(rows, K - 1, dtype=dtype).uniform_(-30, 30)
    loc[: rows // 3] /= 10
    scale = torch.empty(rows, K - 1, dtype=dtype).uniform_(math.log(0.05), math.log(5)).exp()
    onehot = one_hot(torch.randint(K, (rows,)), K, dtype)
    return loc, scale, onehot


# ---------------------------------------------------------------------------------------------------------------------
# pieces


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=dtype)
    scale, noise = torch.full_like(x, 0.7), torch.full_like(x, 0.3)
    scale.requires_grad_()
    for f, inputs in ((log_ndtri, [x - 4]), (truncated_normal_below, [x, scale, x + 0.5, noise])):
        found = f(*inputs)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, f(*(y.float() for y in inputs)))
    (grad,) = torch.autograd.grad(found.sum(), scale)
    assert grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.1, 1.0])
def test_the_lead_at_a_temperature_in_half_precision(
    temperature: float, dtype: torch.dtype
) -> None:
    """It does not underflow: at low temperatures it is below all numbers of half precision."""
    t = torch.tensor(temperature, dtype=dtype)
    for computed in (torch.float32, torch.float64):
        assert float(rounding_gap(t, computed)) == pytest.approx(rounding_gap(float(t), computed))


def test_log_ndtri_inverts_log_ndtr() -> None:
    x = torch.cat([-torch.logspace(-3, 8, 500), torch.linspace(-3, 8, 500)]).double()
    log_p = torch.from_numpy(special.log_ndtr(x.numpy()))
    back = special.log_ndtr(log_ndtri(log_p).numpy())
    # in log p, to rounding (which is relative, as is that of x itself): x**2 / 2 doubles a relative error of x
    np.testing.assert_allclose(back, log_p.numpy(), rtol=1e-13, atol=0)


def test_truncated_normal_against_scipy_and_far_out() -> None:
    bound = torch.linspace(-35, 8, 400, dtype=torch.float64)
    noise = torch.rand(400, dtype=torch.float64)
    y = truncated_normal_below(torch.zeros(()), torch.ones(()), bound, noise)
    gap = special.log_ndtr(y.numpy()) - special.log_ndtr(bound.numpy())
    # log Phi itself is known to an ulp only, up to 600 in size
    np.testing.assert_allclose(gap, np.log(noise.numpy()), atol=2e-12, rtol=1e-9)
    # far out it is an exponential variable: bound - y tends to -log(u) / |bound|
    bound = torch.tensor([-1e6, -1e8, -1e10], dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    u = torch.full((3,), 0.3, dtype=torch.float64)
    y = truncated_normal_below(zero, one, bound, u)
    assert (y < bound).logical_or(bound.abs() > 1e7).all()
    # measured from the bound, the distance has all its digits: put the bound at 0
    y = truncated_normal_below(-bound, one, zero, u)
    torch.testing.assert_close(y, math.log(0.3) / bound.abs(), rtol=1e-10, atol=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# hard(z~) == b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("K", [2, 3, 10, 100])
def test_the_category_given_wins(K: int, dtype: torch.dtype) -> None:
    loc, scale, onehot = extremes(K, dtype, rows=600 if K < 100 else 60)
    y = conditional_gaussian(loc, scale, onehot)
    assert y.dtype == dtype
    assert y.isfinite().all()
    scores = torch.cat([y, torch.zeros(len(y), 1, dtype=dtype)], -1)
    assert (scores.argmax(-1) == onehot.argmax(-1)).all()
    assert ((scores == scores.amax(-1, keepdim=True)).sum(-1) == 1).all(), "a tie"

    logits = torch.cat([loc, loc.new_zeros(len(loc), 1)], -1)
    scores = conditional_gumbel(logits, onehot)
    assert scores.isfinite().all()
    assert (scores.argmax(-1) == onehot.argmax(-1)).all()


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_small_lead_survives_the_softmax(temperature: float, dtype: torch.dtype) -> None:
    gap = rounding_gap(temperature, dtype)
    for K in (2, 10):
        loc, scale, onehot = extremes(K, dtype, rows=500)
        # the noise that brings the others nearest to the winner
        noise = torch.ones(500, K - 1, dtype=torch.float64)
        y = conditional_gaussian(loc, scale, onehot, noise=noise, gap=gap)
        q = SoftmaxIGR(loc, scale, temperature)
        torch.testing.assert_close(q.hard(softmax_plus_plus(y, temperature)), onehot)
        logits = torch.cat([loc, loc.new_zeros(len(loc), 1)], -1)
        noise = torch.ones(500, K, dtype=torch.float64)
        scores = conditional_gumbel(logits, onehot, noise=noise, gap=gap)
        p = GumbelSoftmax(temperature, logits=logits)
        torch.testing.assert_close(p.hard(torch.softmax(scores / temperature, -1)), onehot)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hard_of_a_conditional_sample_is_the_category(
    temperature: float, dtype: torch.dtype
) -> None:
    for K in (2, 10):
        loc, scale, onehot = extremes(K, dtype, rows=500)
        for q in (
            SoftmaxIGR(loc, scale, temperature),
            SoftmaxIGR(loc, scale, temperature, delta=0.3),
            GumbelSoftmax(temperature, logits=torch.cat([loc, loc.new_zeros(len(loc), 1)], -1)),
        ):
            torch.testing.assert_close(q.hard(q.conditional_rsample(onehot)), onehot)


def test_extreme_noise_and_parameters_stay_finite() -> None:
    # P(k) down to exp(-1e20), noise at its ends, scales over nine decades
    loc = torch.tensor([-1e4, 1e4, 0.0, -30.0], dtype=torch.float64)
    scale = torch.tensor([1e-6, 1e-3, 1e3, 0.05], dtype=torch.float64)
    for u in (0.0, 1e-12, 0.5, 1.0):
        x, s = loc.expand(5, 4).clone().requires_grad_(), scale.expand(5, 4).clone()
        s.requires_grad_()
        noise = torch.full((5, 4), u, dtype=torch.float64)
        y, log_prob = conditional_gaussian_and_log_prob(x, s, torch.eye(5), noise=noise)
        (y.sum() + log_prob.sum()).backward()
        for value in (y, log_prob, x.grad, s.grad):
            assert value is not None
            assert value.isfinite().all()
        scores = torch.cat([y, torch.zeros(5, 1)], -1)
        assert (scores.argmax(-1) == torch.arange(5)).all()


# ---------------------------------------------------------------------------------------------------------------------
# distribution


def reference(loc: np.ndarray, scale: np.ndarray, k: int, t: float, floor: float) -> float:
    """P(y_k <= t | k wins) by an adaptive integrator, in pieces that it cannot miss anything in."""
    others = [j for j in range(len(loc)) if j != k]

    def log_density(t: float) -> float:
        x = (t - loc[others]) / scale[others]
        return float(special.log_ndtr(x).sum() - 0.5 * ((t - loc[k]) / scale[k]) ** 2)

    ends = max(floor, float((loc - 12 * scale).min())), float((loc + 12 * scale).max())
    grid = np.linspace(*ends, 40_001)
    values = np.array([log_density(a) for a in grid[:: 40 if len(loc) > 3 else 20]])
    grid = grid[:: 40 if len(loc) > 3 else 20]
    peak = values.max()
    near = np.flatnonzero(values > peak - 60)
    low, high = grid[max(near[0] - 1, 0)], grid[min(near[-1] + 1, len(grid) - 1)]

    def mass(a: float, b: float) -> float:
        cuts = np.linspace(a, b, 13)
        return sum(
            integrate.quad(lambda t: math.exp(log_density(t) - peak), i, j, epsabs=0, epsrel=1e-11)[
                0
            ]
            for i, j in zip(cuts[:-1], cuts[1:], strict=True)
        )

    t = min(max(t, low), high)
    left, right = mass(low, t), mass(t, high)
    return left / (left + right)


@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("last_allowed", [True, False])
def test_the_winner_is_inverted_to_full_precision(K: int, last_allowed: bool) -> None:
    if K == 2 and not last_allowed:
        pytest.skip("one category only")
    for _ in range(4):
        loc = torch.randn(K - 1, dtype=torch.float64) * 2
        scale = torch.empty(K - 1, dtype=torch.float64).uniform_(math.log(0.1), math.log(3)).exp()
        k = int(torch.randint(K - 1, ()))
        for u in (0.001, 0.3, 0.97):
            noise = torch.full((K - 1,), u, dtype=torch.float64)
            allowed = torch.ones(K, dtype=torch.bool)
            allowed[-1] = last_allowed
            y = conditional_gaussian(loc, scale, one_hot(k, K), noise=noise, allowed=allowed)
            floor = 0.0 if last_allowed else -math.inf
            found = reference(loc.numpy(), scale.numpy(), k, float(y[k]), floor)
            assert found == pytest.approx(u, abs=1e-8)


def test_log_probability_is_that_of_proposition_2() -> None:
    loc = torch.randn(300, 7, dtype=torch.float64) * 2
    scale = torch.empty(300, 7, dtype=torch.float64).uniform_(math.log(0.05), math.log(5)).exp()
    log_probs = torch.stack(
        [
            conditional_gaussian_and_log_prob(loc, scale, one_hot(k, 8).expand(300, 8))[1]
            for k in range(8)
        ],
        -1,
    )
    # eight quadratures, each on a grid of its own, and one product
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(300).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        log_probs.exp(), SoftmaxIGR(loc, scale, 1.0).discrete().probs, atol=1e-8, rtol=0
    )


# Each of the 26 tests below fails for a correct program with this probability.
LEVEL = 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mixing_over_the_category_gives_back_the_gaussian(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    loc = torch.tensor([0.5, -1.0, 0.3, 2.0], dtype=dtype)
    scale = torch.tensor([1.0, 3.0, 0.1, 0.5], dtype=dtype)
    n = 20_000
    y = loc + scale * torch.randn(n, 4, dtype=dtype)
    onehot = one_hot(torch.cat([y, y.new_zeros(n, 1)], -1).argmax(-1), 5, dtype)
    again = conditional_gaussian(loc.expand(n, 4), scale.expand(n, 4), onehot)
    z = ((again - loc) / scale).double().numpy()
    for k in range(4):
        assert stats.kstest(z[:, k], "norm").pvalue > LEVEL
    # sums and differences see what the coordinates do to each other
    for combination in ([1, 1, 0, 0], [1, -1, 0, 0], [0, 1, 1, -1], [1, 0, 0, 1]):
        c = np.array(combination) / np.linalg.norm(combination)
        assert stats.kstest(z @ c, "norm").pvalue > LEVEL
    # and it is a new draw: within a category nothing is kept of the first one
    first = ((y - loc) / scale).double().numpy()
    rows = onehot.argmax(-1).numpy() == 3
    assert stats.spearmanr(first[rows, 1], z[rows, 1]).pvalue > LEVEL


def test_mixing_over_the_category_gives_back_the_gumbel() -> None:
    torch.manual_seed(2)
    logits = torch.tensor([0.5, -1.0, 0.3, 2.0], dtype=torch.float64)
    n = 20_000
    onehot = one_hot(torch.distributions.Categorical(logits=logits).sample((n,)), 4)
    noise = (conditional_gumbel(logits.expand(n, 4), onehot) - logits).numpy()
    uniform = stats.gumbel_r.cdf(noise)
    for k in range(4):
        assert stats.kstest(uniform[:, k], "uniform").pvalue > LEVEL
    z = stats.norm.ppf(uniform)
    for combination in ([1, 1, 0, 0], [1, -1, 0, 0], [0, 1, 1, -1], [1, 0, 0, 1]):
        c = np.array(combination) / np.linalg.norm(combination)
        assert stats.kstest(z @ c, "norm").pvalue > LEVEL


def test_given_the_last_category_all_are_truncated_at_zero() -> None:
    torch.manual_seed(3)
    n = 5000
    loc, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
    y = conditional_gaussian(loc.expand(n, 2), scale.expand(n, 2), one_hot(2, 3).expand(n, 3))
    for k in range(2):
        x = y[:, k].numpy()
        law = stats.truncnorm(-np.inf, -float(loc[k] / scale[k]), float(loc[k]), float(scale[k]))
        assert stats.kstest(x, law.cdf).pvalue > LEVEL


def test_draws_with_some_categories_not_allowed() -> None:
    torch.manual_seed(4)
    n = 20_000
    loc, scale = torch.tensor([0.5, 9.0, -0.3]).double(), torch.tensor([1.0, 1.0, 2.0]).double()
    allowed = torch.tensor([True, False, True, False])
    y = (loc + scale * torch.randn(n, 3).double()).masked_fill(~allowed[:3], -torch.inf)
    onehot = one_hot(y.argmax(-1), 4)
    again = conditional_gaussian(
        loc.expand(n, 3), scale.expand(n, 3), onehot, allowed=allowed.expand(n, 4)
    )
    assert (again[:, 1] == -torch.inf).all()
    assert (again.argmax(-1) == onehot.argmax(-1)).all()
    z = ((again - loc) / scale).numpy()
    for sample in (z[:, 0], z[:, 2], (z[:, 0] + z[:, 2]) / math.sqrt(2)):
        assert stats.kstest(sample, "norm").pvalue > LEVEL


# ---------------------------------------------------------------------------------------------------------------------
# gradients


def central(f, x: Tensor, h: float = 1e-5) -> Tensor:
    """Jacobian by central differences: rows are outputs."""
    columns = []
    for i in range(x.numel()):
        e = torch.zeros_like(x).flatten()
        e[i] = h
        e = e.view_as(x)
        columns.append((f(x + e) - f(x - e)) / (2 * h))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_gradients_agree_with_finite_differences_of_common_random_numbers(K: int) -> None:
    for k in range(K):
        loc = torch.randn(K - 1, dtype=torch.float64)
        scale = torch.empty(K - 1, dtype=torch.float64).uniform_(-1.5, 1.0).exp()
        noise = torch.rand(K - 1, dtype=torch.float64)
        onehot = one_hot(k, K)

        def both(loc: Tensor, scale: Tensor) -> Tensor:
            y, log_prob = conditional_gaussian_and_log_prob(loc, scale, onehot, noise=noise)  # noqa: B023
            return torch.cat([y, log_prob.unsqueeze(-1)])

        exact = torch.autograd.functional.jacobian(both, (loc, scale))
        # differences are off by h**2 f''' / 6 and by rounding over h
        for i, x in enumerate((loc, scale)):
            numeric = central(lambda v: both(v, scale) if i == 0 else both(loc, v), x)  # noqa: B023
            torch.testing.assert_close(exact[i], numeric, atol=2e-6, rtol=2e-6)

        logits = torch.randn(K, dtype=torch.float64)
        noise_g = torch.rand(K, dtype=torch.float64)

        def gumbel(logits: Tensor) -> Tensor:
            return conditional_gumbel(logits, onehot, noise=noise_g)  # noqa: B023

        exact_g = torch.autograd.functional.jacobian(gumbel, logits)
        torch.testing.assert_close(exact_g, central(gumbel, logits), atol=2e-6, rtol=2e-6)


def test_gradients_with_some_categories_not_allowed() -> None:
    loc, scale = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.3
    noise = torch.rand(3, dtype=torch.float64)
    allowed = torch.tensor([True, False, True, False])

    def draw(loc: Tensor, scale: Tensor) -> Tensor:
        y, log_prob = conditional_gaussian_and_log_prob(
            loc, scale, one_hot(2, 4), noise=noise, allowed=allowed
        )
        return torch.cat([y[[0, 2]], log_prob.unsqueeze(-1)])

    exact = torch.autograd.functional.jacobian(draw, (loc, scale))
    assert (exact[0][:, 1] == 0).all()
    assert (exact[1][:, 1] == 0).all()
    torch.testing.assert_close(exact[0], central(lambda v: draw(v, scale), loc), atol=2e-6, rtol=0)
    torch.testing.assert_close(exact[1], central(lambda v: draw(loc, v), scale), atol=2e-6, rtol=0)


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_draw_given_by_its_value_has_the_derivatives_of_the_one_given_by_its_noise(
    K: int, dtype: torch.dtype
) -> None:
    tolerance = (
        {"atol": 1e-9, "rtol": 1e-7} if dtype == torch.float64 else {"atol": 3e-3, "rtol": 3e-3}
    )
    n = 200
    loc = torch.randn(n, K - 1, dtype=dtype)
    scale = torch.empty(n, K - 1, dtype=dtype).uniform_(-1.5, 1.0).exp()
    logits = torch.randn(n, K, dtype=dtype)
    onehot = one_hot(torch.randint(K, (n,)), K, dtype)
    allowed = torch.ones(K, dtype=torch.bool)
    draws = [
        (lambda a, b, **k: conditional_gaussian_and_log_prob(a, b, onehot, **k)[0], (loc, scale)),
        (lambda a, **k: conditional_gumbel(a, onehot, **k), (logits,)),
    ]
    if K > 2:
        allowed[-1] = False
        inside = one_hot(torch.randint(K - 1, (n,)), K, dtype)
        draws.append(
            (
                lambda a, b, **k: conditional_gaussian_and_log_prob(
                    a, b, inside, allowed=allowed, **k
                )[0],
                (loc, scale),
            )
        )
    for draw, parameters in draws:
        noise = torch.rand(n, parameters[0].shape[-1], dtype=torch.float64) * 0.98 + 0.01
        leaves = [p.clone().requires_grad_() for p in parameters]
        first = draw(*leaves, noise=noise)
        again = draw(*leaves, value=first)
        torch.testing.assert_close(first, again, **tolerance)
        weight = torch.randn_like(first)
        expected = torch.autograd.grad((first * weight).sum(), leaves)
        found = torch.autograd.grad((again * weight).sum(), leaves)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


def test_gradients_in_the_tails() -> None:
    # rare winners, where the implicit derivative divides one tiny number by another
    loc = torch.tensor([-6.0, 4.0, 3.0], dtype=torch.float64)
    scale = torch.tensor([0.5, 0.3, 0.05], dtype=torch.float64)
    for u in (1e-9, 1e-4, 1 - 1e-9):
        noise = torch.full((3,), u, dtype=torch.float64)

        def draw(loc: Tensor) -> Tensor:
            return conditional_gaussian(loc, scale, one_hot(0, 4), noise=noise)  # noqa: B023

        exact = torch.autograd.functional.jacobian(draw, loc)
        torch.testing.assert_close(exact, central(draw, loc), atol=1e-5, rtol=1e-5)


def test_float32_agrees_with_float64() -> None:
    loc, scale, onehot = extremes(8, torch.float32, rows=500)
    loc = loc / 5
    noise = torch.rand(500, 7, dtype=torch.float64)
    results = []
    for dtype in (torch.float32, torch.float64):
        x, s = loc.to(dtype).requires_grad_(), scale.to(dtype).requires_grad_()
        y, log_prob = conditional_gaussian_and_log_prob(x, s, onehot, noise=noise)
        gradient = torch.autograd.grad((y * y.detach().cos()).sum() + log_prob.sum(), (x, s))
        results.append((y.detach(), log_prob.detach(), *gradient))
    # the quadrature for float32 is coarser; scales go down to 0.05, and slopes up with their inverse
    for single, double, worst in zip(*results, (2e-5, 2e-5, 2e-3, 2e-3), strict=True):
        error = (single.double() - double).abs() / (1 + double.abs())
        assert error.max() < worst
        assert error.mean() < worst / 500


def test_a_second_derivative_is_refused_but_one_through_something_else_is_right() -> None:
    loc = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(5, 2, dtype=torch.float64)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y = conditional_gaussian(loc, scale, one_hot(0, 3).expand(5, 3))
    (slope,) = torch.autograd.grad((weight * y).sin().sum(), loc, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), weight, retain_graph=True)
    with torch.no_grad():
        jacobian = torch.autograd.grad(
            y, loc, torch.ones_like(y), retain_graph=True
        )  # of the sum; enough to see that y depends on loc
        assert jacobian[0].abs().sum() > 0

    def squared(weight: Tensor) -> Tensor:
        (g,) = torch.autograd.grad((weight * y).sin().sum(), loc, retain_graph=True)
        return g.square().sum()

    h = 1e-6
    numeric = (squared(weight + h) - squared(weight - h)) / (2 * h)
    torch.testing.assert_close(second, numeric, atol=1e-6, rtol=1e-6)
    with pytest.raises(RuntimeError, match="first derivatives"):
        torch.autograd.grad(slope.sum(), loc)


# ---------------------------------------------------------------------------------------------------------------------
# interface


def test_same_noise_same_draw_and_generators() -> None:
    loc, scale = torch.zeros(4, 2), torch.ones(4, 2)
    onehot = one_hot(torch.tensor([0, 1, 2, 0]), 3, torch.float32)
    noise = torch.rand(4, 2)
    first = conditional_gaussian(loc, scale, onehot, noise=noise)
    torch.testing.assert_close(first, conditional_gaussian(loc, scale, onehot, noise=noise))
    draws = [
        conditional_gaussian(loc, scale, onehot, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    torch.testing.assert_close(*draws)
    draws = [
        conditional_gumbel(onehot, onehot, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    torch.testing.assert_close(*draws)


def test_a_leading_axis_of_samples_broadcasts() -> None:
    loc, scale = torch.zeros(4, 2), torch.ones(4, 2)
    onehot = one_hot(torch.randint(3, (6, 5, 4)), 3, torch.float32)
    assert conditional_gaussian(loc, scale, onehot).shape == (6, 5, 4, 2)
    assert conditional_gumbel(torch.zeros(4, 3), onehot).shape == (6, 5, 4, 3)


def test_vmap() -> None:
    loc, scale = torch.randn(3, 4, 2), torch.rand(3, 4, 2) + 0.5
    onehot = one_hot(torch.randint(3, (3, 4)), 3, torch.float32)
    noise = torch.rand(3, 4, 2)
    together = conditional_gaussian(loc, scale, onehot, noise=noise)
    one_by_one = torch.func.vmap(lambda a, b, c, n: conditional_gaussian(a, b, c, noise=n))(
        loc, scale, onehot, noise
    )
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-5)


def test_a_category_that_cannot_be_drawn_is_never_in_the_way() -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.0], requires_grad=True)
    y = conditional_gumbel(logits, torch.tensor([1.0, 0.0, 0.0]))
    assert y[1] == -torch.inf
    torch.softmax(y, -1)[0].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: conditional_gaussian(torch.zeros(2), torch.ones(2), torch.eye(4)[0]), "onehot"),
        (lambda: conditional_gumbel(torch.zeros(2), torch.eye(4)[0]), "onehot"),
        (
            lambda: conditional_gaussian(
                torch.zeros(2), torch.ones(2), torch.eye(3)[0], noise=torch.rand(3)
            ),
            "noise",
        ),
        (
            lambda: conditional_gumbel(torch.zeros(2), torch.eye(2)[0], noise=torch.rand(3)),
            "noise",
        ),
    ],
)
def test_wrong_shapes_are_named(call, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .* got"):
        call()
