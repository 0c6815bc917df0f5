"""Recovering the discrete distribution: Proposition 2 by quadrature, and Monte Carlo."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from igr import discrete
from igr.discrete import (
    Recovered,
    _log_cdf,
    argmax_log_probs,
    log_normal_cdf,
    monte_carlo_probs,
)
from igr.stick_breaking import leader_log_probs

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
# A test against random numbers fails by chance with at most this probability.
FAILURE_RATE = 1e-6


class Problem(NamedTuple):
    loc: np.ndarray
    scale: np.ndarray
    threshold: float = 0.0

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.loc, dtype=dtype), torch.tensor(self.scale, dtype=dtype)

    @classmethod
    def of(cls, loc: Tensor, scale: Tensor, threshold: float = 0.0) -> Problem:
        return cls(loc.double().numpy(), scale.double().numpy(), threshold)


# ------------------------------------------------------------------------------------------------
# The reference: scipy's adaptive integrator on the integral as it is written


def integrate(problem: Problem, k: int, integrand: Callable[..., float]) -> float:
    """Integral of `integrand(t, z, log_cdf)`, which vanishes where Gaussian k or any cdf does."""
    loc, scale, threshold = problem

    def f(t: float) -> float:
        z = (t - loc) / scale
        return integrand(t, z, scipy.special.log_ndtr(z))

    low, high = max(threshold, (loc - 9 * scale).max()), loc[k] + 9 * scale[k]
    if low >= high:
        return 0.0
    # where the integrand may bend: around every Gaussian, if they are few, and around the narrowest
    near = np.argsort(np.abs(loc[k] - loc) / scale)[:12]
    marks = np.concatenate([loc[near] + c * scale[near] for c in (-6, -2, 0, 2, 6)])
    marks = np.concatenate([marks, low + (high - low) * np.array([0.01, 0.03, 0.1, 0.3])])
    marks = np.unique(np.concatenate([marks[(marks > low) & (marks < high)], [low, high]]))
    return sum(
        scipy.integrate.quad(f, a, b, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
        for a, b in zip(marks[:-1], marks[1:], strict=True)
    )


def density(problem: Problem, k: int) -> Callable[[float, np.ndarray, np.ndarray], float]:
    """The integrand of (21)."""
    constant = math.sqrt(2 * math.pi) * problem.scale[k]
    return lambda t, z, log_cdf: math.exp(log_cdf.sum() - log_cdf[k] - z[k] ** 2 / 2) / constant


def reference_probability(problem: Problem, k: int) -> float:
    loc, scale, threshold = problem
    if k == len(loc):
        return math.exp(scipy.special.log_ndtr((threshold - loc) / scale).sum())
    return integrate(problem, k, density(problem, k))


def reference_derivatives(problem: Problem, k: int, j: int) -> tuple[float, float]:
    """Derivatives of P(k) with respect to loc_j / scale_j and log scale_j, k and j below K."""
    f = density(problem, k)

    def mills(z: np.ndarray, log_cdf: np.ndarray) -> float:
        return math.exp(-(z[j] ** 2) / 2 - log_cdf[j]) / math.sqrt(2 * math.pi)

    if j == k:
        return (
            integrate(problem, k, lambda t, z, g: f(t, z, g) * z[k]),
            integrate(problem, k, lambda t, z, g: f(t, z, g) * (z[k] ** 2 - 1)),
        )
    return (
        integrate(problem, k, lambda t, z, g: -f(t, z, g) * mills(z, g)),
        integrate(problem, k, lambda t, z, g: -f(t, z, g) * mills(z, g) * z[j]),
    )


def random_problems(count: int, sizes: tuple[int, ...], seed: int) -> Iterator[Problem]:
    """Problems within the stated range, half of them made to be hard."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        n = int(rng.choice(sizes))
        scale = np.exp(rng.uniform(math.log(0.05), math.log(5), n))
        extreme = rng.choice([0.05, 5.0], n)
        if i % 6 == 0:
            loc = rng.uniform(-10, 10, n)
        elif i % 6 == 1:
            loc, scale = rng.normal(-0.75, 1, n), np.exp(0.5 * rng.normal(size=n)).clip(0.05, 5)
        elif i % 6 == 2:  # all of them matter at one point, in whatever tail of theirs it lies
            loc = rng.uniform(-3, 10) - rng.uniform(-2, 4, n) * scale
        elif i % 6 == 3:  # narrow ones beside wide ones
            loc, scale = rng.uniform(-3, 10) - rng.uniform(-2, 4, n) * extreme, extreme
        elif i % 6 == 4:  # a crowd
            loc, scale = np.full(n, rng.uniform(-3, 10)), np.full(n, scale[0])
            loc[0], scale[0] = rng.uniform(-10, 10), 5.0
        else:  # a crowd of narrow ones just above the threshold, and wide ones
            loc = np.where(extreme < 1, rng.normal(0.2, 0.1, n), rng.uniform(-10, 10, n))
            scale = extreme
        # values that float32 has, so that one reference serves both
        yield Problem(
            loc.clip(-10, 10).astype(np.float32).astype(float),
            scale.astype(np.float32).astype(float),
        )


HARD = [
    # found by searching for the largest error of float32 and float64, probabilities and gradients
    Problem(
        np.array([-3.2183, -2.1712, -0.9892, -0.6705, 0.1516, 9.9431]),
        np.array([4.7781, 2.2412, 1.0452, 1.7581, 0.0523, 1.8543]),
    ),
    Problem(
        np.array([-8.1284, -0.0653, -0.0609, -0.0596, -0.059, 0.0076]),
        np.array([5.0, 0.05, 0.05, 0.05, 0.05, 0.05]),
    ),
    Problem(np.array([-8.1611, 1.089, 1.3507, 2.1131]), np.array([1.486, 0.0726, 0.081, 0.0516])),
    Problem(np.array([2.4518, 8.0359, 8.3356, 8.7591]), np.array([5.0, 0.06, 0.0506, 0.0518])),
    Problem(np.array([0.1, -10.0]), np.array([0.05, 5.0])),
    Problem(np.array([10.0, 9.9]), np.array([0.05, 5.0])),
]


# ------------------------------------------------------------------------------------------------
# Accuracy


def assert_agrees(problem: Problem, categories: list[int]) -> None:
    expected = np.array([reference_probability(problem, k) for k in categories])
    for dtype, tolerance in TOLERANCE.items():
        loc, scale = problem.tensors(dtype)
        if dtype == torch.float32:  # the reference is for the values that float32 has
            assert np.array_equal(loc.double().numpy(), problem.loc)
        probs = argmax_log_probs(loc, scale).exp().double()
        np.testing.assert_allclose(probs[categories].numpy(), expected, rtol=0, atol=tolerance)
        assert abs(float(probs.sum()) - 1) < tolerance


def test_probabilities_agree_with_an_adaptive_integrator() -> None:
    for i, problem in enumerate(random_problems(60, (1, 2, 4, 9, 19, 49), seed=0)):
        n = len(problem.loc)
        winner = int(argmax_log_probs(*problem.tensors())[:-1].argmax())
        assert_agrees(problem, sorted({winner, int(problem.scale.argmin()), i % n, n}))


@pytest.mark.parametrize("problem", HARD)
def test_probabilities_where_the_quadrature_is_worst(problem: Problem) -> None:
    problem = Problem.of(*problem.tensors(torch.float32))
    assert_agrees(problem, list(range(len(problem.loc) + 1)))


def test_probabilities_of_a_thousand_categories_agree_with_an_adaptive_integrator() -> None:
    for problem in random_problems(6, (999,), seed=1):
        winner = int(argmax_log_probs(*problem.tensors())[:-1].argmax())
        assert_agrees(problem, [winner, 999])


def test_rounding_does_not_add_up_over_a_thousand_small_chances() -> None:
    """998 cdfs of nearly one: taken as 1 - 3e-6 in float32, their product is off by up to 3e-5."""
    loc, scale = torch.full((999,), -10.0), torch.full((999,), 4.4)
    loc[0], scale[0] = 10.0, 0.05
    expected = reference_probability(Problem.of(loc, scale), 0)
    found = argmax_log_probs(loc, scale, num_nodes=96)[0].exp().item()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logarithms_are_finite_where_the_cdf_rounds_to_zero(dtype: torch.dtype) -> None:
    assert _log_cdf(torch.linspace(-20, 20, 1001, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sums_to_one_over_many_problems(dtype: torch.dtype) -> None:
    for size, count in ((49, 600), (999, 60)):
        problems = list(random_problems(count, (size,), seed=2))
        loc, scale = (
            torch.stack(x) for x in zip(*(p.tensors(dtype) for p in problems), strict=True)
        )
        error = argmax_log_probs(loc, scale).double().exp().sum(-1) - 1
        assert error.abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_derivatives_agree_with_an_adaptive_integrator(dtype: torch.dtype) -> None:
    problems = [*random_problems(18, (1, 2, 4, 9), seed=3), *HARD]
    for i, problem in enumerate(problems):
        loc, scale = problem.tensors(torch.float32)
        problem = Problem.of(loc, scale)
        loc, scale = loc.to(dtype), scale.to(dtype)
        by_loc, by_scale = torch.func.jacrev(
            lambda loc, scale: argmax_log_probs(loc, scale).exp(), (0, 1)
        )(loc, scale)
        n = len(problem.loc)
        k = int(argmax_log_probs(loc, scale)[:-1].argmax())
        for j in {k, i % n}:
            expected = reference_derivatives(problem, k, j)
            found = (by_loc[k, j] * scale[j]).item(), (by_scale[k, j] * scale[j]).item()
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])


def test_derivatives_over_many_problems_of_their_own_needs() -> None:
    """Of the largest probability, in float32, against as many nodes as it takes in float64."""
    for size in (4, 9):
        problems = zip(*(p.tensors() for p in random_problems(600, (size,), seed=77)), strict=True)
        loc, scale = map(torch.stack, problems)
        winner = argmax_log_probs(loc, scale).argmax(-1, keepdim=True)

        def slopes(loc: Tensor, scale: Tensor, winner: Tensor = winner, **options: Any) -> Tensor:
            loc, scale = (x.clone().requires_grad_() for x in (loc, scale))
            probs = argmax_log_probs(loc, scale, **options).exp().gather(-1, winner)
            return torch.stack(torch.autograd.grad(probs.sum(), (loc, scale))) * scale.detach()

        expected = slopes(loc, scale, tolerance=1e-12, num_nodes=300)
        assert (slopes(loc.float(), scale.float()) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
def test_tolerance_is_kept(tolerance: float) -> None:
    """Also where scales differ by a factor of 1e6, which the default number of nodes is not for."""
    problems = [*random_problems(60, (5,), seed=4)]
    loc, scale = (torch.stack(x) for x in zip(*(p.tensors() for p in problems), strict=True))
    wide = torch.exp(torch.rand_like(loc) * math.log(1e6)) * 1e-3
    for scales in (scale, wide):
        exact = argmax_log_probs(loc, scales, tolerance=1e-12, num_nodes=500).exp()
        assert (exact.sum(-1) - 1).abs().max() < 1e-12
        found = argmax_log_probs(loc, scales, tolerance=tolerance).exp()
        assert (found - exact).abs().max() < tolerance


def test_tolerance_takes_no_more_nodes_than_it_needs() -> None:
    loc, scale = torch.full((4, 9), -0.75), torch.ones(4, 9)
    with LargestTensor() as few:
        argmax_log_probs(loc, scale, tolerance=1e-5)
    with LargestTensor() as many:
        argmax_log_probs(loc, scale)
    assert few.largest <= many.largest / 2


def test_two_categories_are_a_normal_cdf() -> None:
    loc, scale = torch.linspace(-8, 8, 33, dtype=torch.float64).unsqueeze(-1), torch.tensor([1.3])
    probs = argmax_log_probs(loc, scale.double()).exp()
    expected = torch.special.ndtr(loc / scale)
    torch.testing.assert_close(probs, torch.cat([expected, 1 - expected], -1), rtol=0, atol=1e-10)


def test_equal_gaussians_share_alike() -> None:
    for size in (3, 10, 100):
        # the median of the largest is 0
        loc = -scipy.special.ndtri(0.5 ** (1 / size))
        probs = argmax_log_probs(torch.full((size,), loc, dtype=torch.float64), torch.ones(size))
        expected = torch.tensor([0.5 / size] * size + [0.5], dtype=torch.float64)
        torch.testing.assert_close(probs.exp(), expected, rtol=0, atol=1e-10)


def test_without_one_over_sigma_the_probabilities_do_not_sum_to_one() -> None:
    """Erratum E2: the mistake of (28), and the mend."""
    problem = Problem(np.array([0.5, -0.2, 0.3]), np.array([0.4, 2.0, 1.5]))
    right = [reference_probability(problem, k) for k in range(4)]
    wrong = [p * s for p, s in zip(right, [*problem.scale, 1.0], strict=True)]
    assert abs(sum(wrong) - 1) > 0.2
    found = argmax_log_probs(*problem.tensors()).exp()
    np.testing.assert_allclose(found.numpy(), right, rtol=0, atol=1e-10)
    assert abs(sum(right) - 1) < 1e-12


# ------------------------------------------------------------------------------------------------
# Against frequencies


def test_frequencies_of_draws() -> None:
    loc = torch.tensor([[0.0, 0.5, -1.0], [0.3, 0.3, 2.0]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 0.2, 3.0], [0.1, 1.0, 0.5]], dtype=torch.float64)
    allowed = torch.tensor([[True, True, False, True], [True, True, True, False]])
    n = 100_000
    for threshold, mask in ((0.0, None), (0.4, None), (0.4, allowed)):
        y = loc + scale * torch.randn(n, *loc.shape, dtype=torch.float64)
        y = torch.cat([y, torch.full((n, 2, 1), threshold, dtype=torch.float64)], -1)
        if mask is not None:
            y = y.masked_fill(~mask, -torch.inf)
        counts = torch.nn.functional.one_hot(y.argmax(-1), 4).sum(0)
        probs = argmax_log_probs(loc, scale, threshold=threshold, allowed=mask).exp()
        for row in range(2):
            possible = probs[row] > 0
            assert counts[row][~possible].sum() == 0
            pvalue = scipy.stats.chisquare(
                counts[row][possible].numpy(), (probs[row] / probs[row].sum())[possible].numpy() * n
            ).pvalue
            assert pvalue > FAILURE_RATE / 6


# ------------------------------------------------------------------------------------------------
# Derivatives, transforms, compilation


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    loc = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(*shape, dtype=torch.float64) + 0.1).requires_grad_()
    return loc, scale


def with_not_allowed(loc: Tensor, scale: Tensor) -> Tensor:
    allowed = torch.tensor([[True, False, True, True], [True, True, True, False]])
    return argmax_log_probs(loc, scale, allowed=allowed)[allowed]


@pytest.mark.parametrize(
    "function",
    [
        argmax_log_probs,
        lambda loc, scale: argmax_log_probs(loc, scale, max_elements=1),
        lambda loc, scale: argmax_log_probs(loc, scale, tolerance=1e-12),
        with_not_allowed,
    ],
    ids=["default", "chunks", "tolerance", "allowed"],
)
def test_first_and_second_derivatives(function: Callable[..., Tensor]) -> None:
    inputs = batch(2, 3)
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 9, 100])
def test_gradients_are_those_of_the_plain_formula(size: int, dtype: torch.dtype) -> None:
    """Which function transforms take; here of problems of all needs, in several pieces."""
    problems = zip(*(p.tensors() for p in random_problems(120, (size,), seed=6)), strict=True)
    loc, scale = map(torch.stack, problems)
    allowed = torch.rand(120, size + 1) < 0.8
    allowed[:, size // 2] = True
    weights = torch.randn(120, size + 1, dtype=torch.float64)

    def loss(loc: Tensor, scale: Tensor) -> Tensor:
        probs = argmax_log_probs(loc, scale, allowed=allowed, max_elements=2**14).exp()
        return (probs * weights.to(probs)).sum()

    expected = torch.func.grad(loss, (0, 1))(loc, scale)
    inputs = [x.to(dtype).requires_grad_() for x in (loc, scale)]
    found = torch.autograd.grad(loss(*inputs), inputs)
    for x, y in zip(found, expected, strict=True):
        error = ((x - y) * scale).abs().amax(-1)
        bound = 1e-12 if dtype == torch.float64 else TOLERANCE[dtype] * weights.abs().sum(-1)
        assert (error < bound).all()


def test_an_element_does_not_depend_on_its_batch() -> None:
    loc, scale = (x.detach().float() for x in batch(300, 9))
    whole = argmax_log_probs(loc, scale)
    for i in range(0, 300, 23):
        torch.testing.assert_close(argmax_log_probs(loc[i], scale[i]), whole[i])


def test_derivative_with_respect_to_the_threshold() -> None:
    loc, scale = (x.detach() for x in batch(2, 3))
    threshold = torch.tensor([0.2, -0.3], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: argmax_log_probs(loc, scale, threshold=t), (threshold,))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in jvp
def test_forward_mode_agrees_with_reverse_mode() -> None:
    loc, scale = (x.detach() for x in batch(3))
    forward = torch.func.jacfwd(argmax_log_probs, (0, 1))(loc, scale)
    reverse = torch.func.jacrev(argmax_log_probs, (0, 1))(loc, scale)
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("max_elements", [2**22, 1])
def test_vmap_is_a_batch(max_elements: int) -> None:
    loc, scale = (x.detach() for x in batch(5, 3))

    def one(loc: Tensor, scale: Tensor) -> Tensor:
        return argmax_log_probs(loc, scale, max_elements=max_elements)

    torch.testing.assert_close(torch.func.vmap(one)(loc, scale), one(loc, scale))
    jacobians = torch.func.vmap(torch.func.jacrev(one))(loc, scale)
    for i in range(5):
        torch.testing.assert_close(jacobians[i], torch.func.jacrev(one)(loc[i], scale[i]))


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("aot_eager", {}),
        ("eager", {"allowed": torch.tensor([True, False, True, True])}),
        ("eager", {"max_elements": 900}),
        ("eager", {"tolerance": 1e-8, "num_nodes": 80}),
    ],
    ids=["default", "allowed", "chunks", "tolerance"],
)
def test_compiles_without_graph_breaks(backend: str, options: dict[str, Any]) -> None:
    inputs = batch(5, 3)

    def f(loc: Tensor, scale: Tensor) -> Tensor:
        return argmax_log_probs(loc, scale, **options)

    torch.compiler.reset()
    found, expected = torch.compile(f, fullgraph=True, backend=backend)(*inputs), f(*inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found[:, 0].sum(), inputs),
        torch.autograd.grad(expected[:, 0].sum(), inputs),
    )
    torch.compiler.reset()


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return out


def test_chunks_bound_memory_and_change_nothing() -> None:
    loc, scale = batch(200, 9)
    found = []
    for max_elements in (2**22, 2**13):
        with LargestTensor() as sizes:
            log_probs = argmax_log_probs(loc, scale, max_elements=max_elements)
            found.append((log_probs, *torch.autograd.grad(log_probs[:, 2].sum(), (loc, scale))))
        assert sizes.largest <= max_elements
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_elements", [2**22, 2**13])
def test_nothing_of_the_size_of_all_nodes_is_held(
    max_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither kept for the backward pass, nor there at once in either pass."""
    loc, scale = batch(2000, 9)
    kept, held = [], []
    terms = discrete._terms

    def measured(*args: Any) -> tuple[Tensor, ...]:
        found = terms(*args)
        held.extend(x.numel() for x in found)
        return found

    monkeypatch.setattr(discrete, "_terms", measured)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        log_probs = argmax_log_probs(loc, scale, max_elements=max_elements)
    assert max(x.numel() for x in kept) <= 2000 * 10
    log_probs[:, 2].sum().backward()
    assert max(held) <= min(max_elements, 2**16 * torch.get_num_threads())
    assert sum(held) > 2 * 2 * 16 * loc.numel()


def test_empty_batch() -> None:
    assert argmax_log_probs(torch.zeros(0, 3), torch.ones(0, 3)).shape == (0, 4)
    assert argmax_log_probs(torch.zeros(0, 3), torch.ones(3), tolerance=1e-4).shape == (0, 4)


# ------------------------------------------------------------------------------------------------
# Degenerate arguments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_is_nan_or_infinite_over_the_range_of_parameters(dtype: torch.dtype) -> None:
    """|loc| up to 1e4, scale from 1e-6 to 1e3: 2,400 problems in each of three dtypes."""
    for size in (1, 2, 9):
        loc = torch.randn(800, size) * 10 ** (torch.rand(800, size) * 5 - 1)
        scale = 10 ** (torch.rand(800, size) * 9 - 6)
        kind = torch.arange(800).remainder(5).unsqueeze(-1)
        ends = torch.where(torch.rand(800, size) < 0.5, 1e4, -1e4)
        loc = torch.where(kind == 0, ends, torch.where(kind == 1, loc.round(), loc))
        loc = torch.where(kind == 2, 0.0, loc)
        scale = torch.where(kind == 2, scale[:, :1], torch.where(kind == 3, 1e-6, scale))
        loc, scale = (
            x.to(dtype).requires_grad_() for x in (loc.clamp(-1e4, 1e4), scale.clamp(1e-6, 1e3))
        )
        log_probs = argmax_log_probs(loc, scale)
        assert log_probs.isfinite().all()
        for k in range(size + 1):
            for x in torch.autograd.grad(log_probs[:, k].sum(), (loc, scale), retain_graph=True):
                assert x.isfinite().all()
        # what a loss in terms of probabilities sees, twice differentiated
        (by_loc,) = torch.autograd.grad(log_probs.exp().square().sum(), loc, create_graph=True)
        for x in torch.autograd.grad((by_loc * scale.detach()).square().sum(), (loc, scale)):
            assert not x.isnan().any()


def test_winner_beyond_the_spacing_of_float32() -> None:
    """At 1e4 neighbours in float32 lie 1e-3 apart, a thousand of these scales."""
    loc, scale = torch.tensor([1e4, -1e4, 9e3]), torch.tensor([1e-6, 1e-6, 1e3])
    log_probs = argmax_log_probs(loc, scale, tolerance=1e-5)
    expected = torch.tensor([scipy.special.ndtr(1.0), 0.0, scipy.special.ndtr(-1.0), 0.0])
    torch.testing.assert_close(log_probs.exp(), expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    loc, scale = torch.randn(20, 9).to(dtype), (torch.rand(20, 9) + 0.1).to(dtype)
    log_probs = argmax_log_probs(loc, scale)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, argmax_log_probs(loc.float(), scale.float()))


def test_a_hopeless_category_is_pulled_back() -> None:
    loc = torch.tensor([-9.0, 9.0], requires_grad=True)
    log_probs = argmax_log_probs(loc, torch.tensor([0.1, 0.1]))
    (grad,) = torch.autograd.grad(log_probs[0], loc)
    assert log_probs[0] < -1000
    assert grad[0] > 0
    assert grad[1] < 0


# ------------------------------------------------------------------------------------------------
# Thresholds and categories that are not allowed


def test_threshold_shifts() -> None:
    loc, scale = (x.detach() for x in batch(4, 3))
    torch.testing.assert_close(
        argmax_log_probs(loc, scale, threshold=0.7), argmax_log_probs(loc - 0.7, scale)
    )
    thresholds = torch.tensor([[0.7], [-torch.inf]], dtype=torch.float64)
    found = argmax_log_probs(loc, scale, threshold=thresholds)
    assert found.shape == (2, 4, 4)
    torch.testing.assert_close(found[0], argmax_log_probs(loc, scale, threshold=0.7))
    torch.testing.assert_close(found[1], argmax_log_probs(loc, scale, threshold=-torch.inf))


def test_without_a_threshold_two_gaussians_are_a_normal_cdf() -> None:
    loc, scale = (x.detach() for x in batch(50, 2))
    probs = argmax_log_probs(loc, scale, threshold=-torch.inf).exp()
    expected = torch.special.ndtr((loc[:, 0] - loc[:, 1]) / scale.square().sum(-1).sqrt())
    expected = torch.stack([expected, 1 - expected, torch.zeros(50)], -1)
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-10)


def test_not_allowed_is_not_there() -> None:
    loc, scale = batch(6, 4)
    allowed = torch.tensor([True, False, True, False, True])
    found = argmax_log_probs(loc, scale, allowed=allowed)
    assert (found[:, ~allowed] == -torch.inf).all()
    kept = allowed[:-1]
    torch.testing.assert_close(
        found[:, allowed], argmax_log_probs(loc[:, kept], scale[:, kept]), rtol=0, atol=1e-10
    )
    for x in torch.autograd.grad(found[:, allowed].sum(), (loc, scale)):
        assert (x[:, ~kept] == 0).all()
        assert (x[:, kept] != 0).all()

    without_last = torch.tensor([True, True, True, True, False])
    torch.testing.assert_close(
        argmax_log_probs(loc, scale, allowed=without_last),
        argmax_log_probs(loc, scale, threshold=-torch.inf),
    )


def test_values_of_what_is_not_allowed_do_not_matter() -> None:
    loc = torch.tensor([0.3, torch.nan, 1.0], requires_grad=True)
    scale = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    allowed = torch.tensor([True, False, True, True])
    found = argmax_log_probs(loc, scale, allowed=allowed)
    torch.testing.assert_close(
        found[allowed], argmax_log_probs(torch.tensor([0.3, 1.0]), torch.tensor([1.0, 2.0]))
    )
    for x in torch.autograd.grad(found[0], (loc, scale)):
        assert x.isfinite().all()


@pytest.mark.parametrize("only", range(4))
def test_one_allowed_category_is_certain(only: int) -> None:
    allowed = torch.arange(4) == only
    loc, scale = torch.tensor([3.0, -20.0, 0.0]), torch.tensor([1.0, 0.1, 2.0])
    if only < 3:
        probs = argmax_log_probs(loc, scale, allowed=allowed).exp()
        torch.testing.assert_close(probs, allowed.float(), rtol=0, atol=1e-5)
    else:
        assert argmax_log_probs(loc, scale, allowed=allowed).tolist() == [-math.inf] * 3 + [0.0]


def test_nothing_allowed_is_not_nan_when_unchecked() -> None:
    loc, scale = batch(2, 3)
    nothing = torch.zeros(4, dtype=torch.bool)
    found = argmax_log_probs(loc, scale, allowed=nothing, validate_args=False)
    assert (found == -torch.inf).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loc": torch.zeros(3, 4)}, "loc .*3, 4.*scale .*3"),
        ({"loc": torch.zeros(2, 0), "scale": torch.ones(1, 1)[:, :0]}, r"loc: expected .*K-1"),
        ({"loc": torch.zeros(3, dtype=torch.int64), "scale": torch.ones(3).long()}, "loc: .*int64"),
        ({"loc": torch.tensor([0.0, torch.nan, 1.0])}, "loc: expected finite"),
        ({"scale": torch.tensor([1.0, 0.0, 1.0])}, "scale: expected positive"),
        ({"tolerance": 1e-9}, r"tolerance: expected a number from 3e-06 .*1e-09"),
        ({"tolerance": 0.5}, "tolerance: expected .*0.5"),
        ({"num_nodes": 3}, "num_nodes: expected a whole number of at least 16, got 3"),
        ({"max_elements": 0}, "max_elements: expected a whole number of at least 1"),
        ({"max_elements": 2.5}, "max_elements: expected a whole number of at least 1"),
        ({"smallest_scale": -1.0}, "smallest_scale: expected a positive finite number, got -1.0"),
        ({"loc": torch.tensor(0.0), "scale": torch.tensor(1.0)}, r"loc: expected .*shape \(\)"),
        ({"threshold": math.inf}, "threshold: expected"),
        ({"threshold": math.nan}, "threshold: expected"),
        ({"threshold": torch.tensor(torch.inf)}, "threshold: expected"),
        ({"threshold": torch.zeros(4), "loc": torch.zeros(2, 3)}, "threshold: expected a shape"),
        ({"allowed": torch.ones(4)}, "allowed: expected a boolean"),
        ({"allowed": torch.ones(3, dtype=torch.bool)}, "allowed: .*shape"),
        ({"allowed": [True] * 4}, "allowed: expected a boolean tensor, got list"),
        ({"allowed": torch.ones(2, 4) > 0, "loc": torch.zeros(3, 3)}, "allowed: expected a shape"),
        (
            {"allowed": torch.zeros(4, dtype=torch.bool)},
            "allowed: expected at least one allowed category",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    arguments = {"loc": torch.zeros(3), "scale": torch.ones(3), "validate_args": True, **arguments}
    takes = [
        function
        for function in (argmax_log_probs, leader_log_probs)
        if arguments.keys() <= inspect.signature(function).parameters.keys()
    ]
    assert takes
    for function in takes:
        with pytest.raises(ValueError, match=message):
            function(**arguments)


# ------------------------------------------------------------------------------------------------
# The normal cdf


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 4e-15)])
def test_log_normal_cdf_and_its_derivatives(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([torch.linspace(-60, 8, 4001), -torch.logspace(1.8, 6, 100)]).to(dtype)
    x.requires_grad_()
    y = log_normal_cdf(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)

    z = x.detach().double().numpy()
    value = scipy.special.log_ndtr(z)
    mills = math.sqrt(2 / math.pi) / scipy.special.erfcx(-z / math.sqrt(2))
    # -mills (z + mills) loses digits in the tail; there its expansion is -1 + 1/z^2 - 6/z^4 + ...
    w = 1 / z.clip(max=-30) ** 2
    tail = -1 + w * (1 - w * (6 - w * (50 - w * 518)))
    second = np.where(z < -30, tail, -mills * (z + mills))

    # relative to the value, but the cdf itself is rounded where it is far from 0 and 1
    np.testing.assert_allclose(y.detach().double().numpy(), value, rtol=20 * tolerance, atol=0)
    np.testing.assert_allclose(slope.detach().double().numpy(), mills, rtol=200 * tolerance, atol=0)
    bend = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    np.testing.assert_allclose(curvature.double().numpy(), second, rtol=bend, atol=bend)


def test_log_normal_cdf_at_zero_and_in_half_precision() -> None:
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = log_normal_cdf(x)
    assert y.item() == pytest.approx(-math.log(2))
    assert torch.autograd.grad(y, x)[0].item() == pytest.approx(math.sqrt(2 / math.pi))
    assert log_normal_cdf(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------
# Monte Carlo


def sampler(probs: Tensor) -> Callable[[int], Tensor]:
    q = torch.distributions.OneHotCategorical(probs=probs)
    return lambda n: q.sample((n,))


def test_monte_carlo_errors_are_as_large_as_stated() -> None:
    probs = torch.tensor([[0.7, 0.2999, 0.0001], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    found = monte_carlo_probs(sampler(probs), 40_000)
    assert isinstance(found, Recovered)
    z = ((found.probs - probs) / found.standard_error).abs()
    # the rare category is Poisson(4), skewed, and within this by a wide margin
    assert z.max() < scipy.stats.norm.isf(FAILURE_RATE / 12)
    # and no larger: over many repetitions they are of unit variance
    repeated = monte_carlo_probs(sampler(probs[1].expand(2000, 3)), 400)
    z = (repeated.probs[:, 0] - 1 / 3) / repeated.standard_error[:, 0]
    low, high = scipy.stats.chi2.interval(1 - FAILURE_RATE, 2000)
    assert low < z.square().sum() < high


def test_monte_carlo_counts_every_draw_once() -> None:
    sizes = []

    def draw(n: int) -> Tensor:
        sizes.append(n)
        return torch.eye(4)[torch.arange(n) % 2].unsqueeze(1).expand(n, 5, 4)

    found = monte_carlo_probs(draw, 100, max_elements=20 * 7, pseudo_count=0.5)
    assert sum(sizes) == 100
    assert max(sizes) == 7
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(5))
    # the third is never drawn: half a count of 102, and an error that is not zero
    torch.testing.assert_close(found.probs[:, 2], torch.full((5,), 0.5 / 102))
    assert (found.standard_error[:, 2] > 0.5 / 102).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_monte_carlo_counts_are_exact_in_any_dtype(dtype: torch.dtype) -> None:
    found = monte_carlo_probs(lambda n: torch.ones(n, 1).to(dtype), 5000)
    assert found.probs.item() == 1.0
    assert found.probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples: expected a whole number of at least 1, got 0"),
        ({"num_samples": 1, "pseudo_count": -1.0}, "pseudo_count: expected .* got -1.0"),
        (
            {"num_samples": 1, "max_elements": 0},
            "max_elements: expected a whole number of at least 1",
        ),
    ],
)
def test_monte_carlo_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        monte_carlo_probs(lambda n: torch.ones(n, 1), **arguments)
