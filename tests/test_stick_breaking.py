"""The exact probabilities of the largest stick-breaking weight, against integrators and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

import igr
from igr import functional
from igr.stick_breaking import leader_log_probs, recovered

D = torch.float64


def _quad(
    f: Callable[[float], float], normal: Any, start: float, end: float, *bends: float
) -> float:
    """The integral of f times a normal density, in pieces between which f may bend."""
    mean, sd = normal.mean(), normal.std()
    low, high = max(start, mean - 9 * sd), min(end, mean + 9 * sd)
    cuts = (low, high, *bends, *(mean + sd * c for c in (-3, 0, 3)))
    return sum(
        integrate.quad(lambda y: normal.pdf(y) * f(y), *piece, epsabs=1e-8, epsrel=1e-6)[0]
        for piece in pairwise(sorted(c for c in cuts if low <= c <= high))
    )


def _integrated(loc: Tensor, scale: Tensor, rest: bool) -> Tensor:
    """The probabilities for three breaks by nested adaptive integrals."""
    normals = [stats.norm(float(m), float(s)) for m, s in zip(loc, scale, strict=True)]
    cdfs = [
        lambda y, m=float(m), s=float(s): float(special.ndtr((y - m) / s))
        for m, s in zip(loc, scale, strict=True)
    ]

    def best_of_last(x: float) -> float:
        """P(neither the third piece nor what it leaves exceeds x times what the second left)."""
        if x >= 1:
            return 1.0
        above = cdfs[2](special.logit(x))
        return max(0.0, above - cdfs[2](special.logit(1 - x))) if rest else above

    def best_of_later(x: float) -> float:
        return _quad(
            lambda y: best_of_last(x * (1 + math.exp(y))),
            normals[1],
            -math.inf,
            special.logit(min(x, 1.0)),
            *(math.log(share / x - 1) for share in (0.5, 1.0) if share > x),
        )

    def best_of_first(x: float) -> float:
        """P(neither of the first two pieces exceeds x times what is left after them)."""
        at = math.log(x)
        return _quad(lambda y: cdfs[0](at - np.logaddexp(0, y)), normals[1], -math.inf, at)

    bends = -math.log(3), -math.log(2), 0.0
    no_limit = -math.inf, math.inf
    out = [
        _quad(lambda y: best_of_later(math.exp(y)), normals[0], *no_limit, *bends),
        _quad(
            lambda y: cdfs[0](-np.logaddexp(0, -y)) * best_of_last(math.exp(y)),
            normals[1],
            *no_limit,
            *bends,
        ),
        _quad(
            lambda y: best_of_first(special.expit(y)),
            normals[2],
            0 if rest else -math.inf,
            math.inf,
        ),
        _quad(lambda y: best_of_first(special.expit(-y)), normals[2], -math.inf, 0)
        if rest
        else 0.0,
    ]
    return torch.tensor(out, dtype=D)


@pytest.mark.parametrize(
    ("loc", "scale", "rest"),
    [
        ((-0.4, 0.7, 0.1), (1.3, 0.6, 0.9), True),
        ((-0.6, -0.8, 0.3), (0.05, 1.0, 2.0), False),
        ((-1.0, -0.4, -0.2), (3.0, 0.06, 0.3), True),
        ((-5.0, 1.0, -0.1), (5.0, 5.0, 0.05), False),
    ],
)
def test_three_breaks_agree_with_an_adaptive_integrator(loc: Any, scale: Any, rest: bool) -> None:
    loc, scale = torch.tensor(loc, dtype=D), torch.tensor(scale, dtype=D)
    expected = _integrated(loc, scale, rest)
    assert abs(expected.sum() - 1) < 3e-7
    assert (leader_log_probs(loc, scale, rest=rest).exp() - expected).abs().max() < 1e-6


def test_one_break_is_the_normal_cdf() -> None:
    loc, scale = torch.tensor([[-3.0], [0.2], [40.0]], dtype=D), torch.tensor([0.7], dtype=D)
    probs = leader_log_probs(loc, scale).exp()
    assert (probs[:, 0] - torch.special.ndtr(loc[:, 0] / 0.7)).abs().max() < 1e-7


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("num_categories", [4, 24])
def test_agrees_with_monte_carlo(num_categories: int, rest: bool) -> None:
    """Within 4.5 standard errors in all of 56 numbers: it fails by chance once in 2,600 seeds."""
    n = 60_000
    loc = torch.randn(num_categories - 1, dtype=D) - (num_categories > 4) * 2.0
    scale = torch.empty_like(loc).uniform_(0.3, 3.0)
    log_w = functional.log_stick_breaking(loc + scale * torch.randn(n, num_categories - 1, dtype=D))
    leader = (log_w if rest else log_w[:, :-1]).argmax(-1)
    found = torch.bincount(leader, minlength=num_categories) / n
    probs = leader_log_probs(loc, scale, rest=rest).exp()
    error = (probs * (1 - probs) / n).sqrt() + 1.0 / n
    assert ((found - probs).abs() < 4.5 * error).all()
    assert rest or probs[-1] == 0


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize(("smallest", "largest", "bound"), [(0.3, 3.0, 1e-6), (0.05, 5.0, 1e-6)])
def test_default_resolution_is_enough(
    smallest: float, largest: float, bound: float, rest: bool
) -> None:
    loc = 3 * torch.randn(2, 3, dtype=D)
    scale = torch.empty(2, 3, dtype=D).uniform_(math.log(smallest), math.log(largest)).exp()
    probs = leader_log_probs(loc, scale, rest=rest).exp()
    fine = leader_log_probs(loc, scale, rest=rest, smallest_scale=smallest / 2).exp()
    assert (probs - fine).abs().max() < bound


def test_gradients_agree_with_differences() -> None:
    loc, scale = torch.randn(4, dtype=D), 0.5 + torch.rand(4, dtype=D)
    weights = torch.randn(5, dtype=D)

    def total(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (leader_log_probs(loc, scale) * weights).sum()

    loc.requires_grad_()
    scale.requires_grad_()
    found = torch.autograd.grad(total(loc, scale), (loc, scale))
    step = 1e-4
    for which, gradient in enumerate(found):
        for i in range(4):
            ends = []
            for sign in (1, -1):
                at = [loc.detach().clone(), scale.detach().clone()]
                at[which][i] += sign * step
                ends.append(float(total(at[0], at[1])))
            expected = (ends[0] - ends[1]) / (2 * step)
            assert abs(float(gradient[i]) - expected) < 1e-5 * (1 + abs(expected))


@pytest.mark.parametrize("mask", ["10110", "01101", "10100", "00010", "00001"])
def test_categories_that_are_not_allowed(mask: str) -> None:
    """As if the breaks that are not made were not there."""
    allowed = torch.tensor([c == "1" for c in mask])
    loc, scale = torch.randn(4, dtype=D), 0.5 + torch.rand(4, dtype=D)
    probs = leader_log_probs(loc, scale, allowed=allowed).exp()
    assert (probs[~allowed] == 0).all()
    made = functional.stick_breaking_active(allowed)
    expected = leader_log_probs(loc[made], scale[made]).exp() if made.any() else torch.ones(1)
    assert (probs[allowed] - expected).abs().max() < 1e-5


def test_batches_and_single_elements_agree() -> None:
    loc = torch.randn(2, 3, 5, dtype=D)
    whole = leader_log_probs(loc, torch.ones(5, dtype=D)).exp()
    one = leader_log_probs(loc[1, 2], torch.ones(5, dtype=D)).exp()
    assert whole.shape == (2, 3, 6)
    assert (whole[1, 2] - one).abs().max() < 1e-6


def test_nodes_are_kept_for_the_next_call_and_no_longer() -> None:
    made: dict[Any, Any] = {}
    kept = []
    for scale in (1.0, 0.2, 0.2):
        recovered(torch.zeros(1, 3, dtype=D), torch.full((1, 3), scale).to(D), True, None, made)
        (nodes,) = made.values()
        kept.append(nodes)
    assert kept[0] is not kept[1]
    assert kept[1] is kept[2]


def _some(batch: int, dtype: torch.dtype = D) -> tuple[Tensor, Tensor]:
    """Parameters such as those of a fresh head, of different needs."""
    loc = torch.randn(batch, 5, dtype=dtype) / 2
    return loc, (0.6 * torch.randn(batch, 5, dtype=dtype)).exp().clamp(0.2, 3.0)


@pytest.mark.parametrize("rest", [True, False])
def test_an_element_does_not_depend_on_its_batch(rest: bool) -> None:
    """Nor do its gradients, where the batch is computed in chunks."""
    loc, scale = _some(7)
    scale[3, 2] = 0.1
    weights = torch.randn(7, 6, dtype=D)

    def run(rows: slice, **options: int) -> tuple[Tensor, ...]:
        leaves = [x[rows].clone().requires_grad_() for x in (loc, scale)]
        probs = leader_log_probs(*leaves, rest=rest, **options).exp()
        return probs.detach(), *torch.autograd.grad((probs * weights[rows]).sum(), leaves)

    whole = run(slice(None), max_elements=3000)
    alone = [run(slice(i, i + 1)) for i in range(7)]
    for found, expected in zip(whole, zip(*alone, strict=True), strict=True):
        assert (found - torch.cat(expected)).abs().max() < 1e-9


def test_single_precision() -> None:
    loc, scale = _some(20, torch.float32)
    probs = leader_log_probs(loc, scale)
    assert probs.dtype == torch.float32
    assert (probs.exp() - leader_log_probs(loc.double(), scale.double()).exp()).abs().max() < 1e-6


def test_scales_too_small_to_resolve_leave_what_is_certain() -> None:
    loc = torch.tensor([-1.0, 0.5, -3.0], dtype=D)
    probs = leader_log_probs(loc, torch.full_like(loc, 1e-5)).exp()
    assert (probs - torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=D)).abs().max() < 1e-6


def test_negligible_breaks_compare_as_gaussians_do() -> None:
    """Without what is left: the largest of two pieces that are both tiny."""
    loc, scale = torch.tensor([-500.0, -501.0], dtype=D), torch.tensor([1.0, 0.7], dtype=D)
    expected = torch.special.ndtr((loc[0] - loc[1]) / scale.norm())
    assert abs(leader_log_probs(loc, scale, rest=False).exp()[0] - expected) < 1e-6


@pytest.mark.parametrize("build", [igr.StickBreakingIGR, igr.SharpStickBreakingIGR])
def test_what_comes_first_leaves_no_traces(build: Callable[..., igr.IGR]) -> None:
    """Nothing is kept from a first call in inference mode, or with another default device."""
    loc = torch.zeros(3, requires_grad=True)
    with torch.inference_mode():
        build(loc, torch.ones(3), 0.5).discrete()
    with torch.device("meta"):
        build(torch.zeros(3, device="cpu"), torch.ones(3, device="cpu"), 0.5).discrete()
    build(loc, torch.ones(3), 0.5).discrete().logits[0].backward()
    assert loc.grad.abs().sum() > 0


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_empty_batches(shape: tuple[int, ...], rest: bool) -> None:
    loc = torch.zeros(shape, requires_grad=True)
    log_probs = leader_log_probs(loc, torch.ones(shape), rest=rest)
    assert log_probs.shape == (*shape[:-1], 4)
    log_probs.sum().backward()


def test_draws_in_the_place_of_exact_probabilities() -> None:
    """Within 5 standard errors: it fails by chance once in 200,000 seeds."""
    for build in (igr.StickBreakingIGR, igr.SharpStickBreakingIGR):
        q = build(torch.randn(4), torch.ones(4), 0.5)
        found = q.discrete(2000)
        gap = (found.probs - q.discrete().probs).abs()
        assert (gap < 5 * found.standard_error).all()


@pytest.mark.parametrize("rest", [True, False])
def test_vmap_takes_the_declared_smallest_scale(rest: bool) -> None:
    loc, scale = _some(3)

    def run(loc: Tensor, scale: Tensor) -> Tensor:
        return leader_log_probs(loc, scale, rest=rest, smallest_scale=0.2).exp()

    assert (torch.func.vmap(run)(loc, scale) - run(loc, scale)).abs().max() < 1e-6


class _Discrete(torch.nn.Module):
    def __init__(self, build: Callable[..., igr.IGR]) -> None:
        super().__init__()
        self.build = build

    def forward(self, loc: Tensor, scale: Tensor) -> Tensor:
        return self.build(loc, scale, 0.5).discrete(smallest_scale=0.3).probs


def _two_breaks(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 2), 0.3 + torch.rand(batch, 2)


BOTH = pytest.mark.parametrize("build", [igr.StickBreakingIGR, igr.SharpStickBreakingIGR])


@BOTH
@pytest.mark.slow
def test_discrete_can_be_compiled_as_one_graph(build: Callable[..., igr.IGR]) -> None:
    module = _Discrete(build)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    for batch in (3, 5):
        loc, scale = _two_breaks(batch)
        assert (compiled(loc, scale) - module(loc, scale)).abs().max() < 1e-6


@BOTH
@pytest.mark.slow
def test_discrete_can_be_exported_for_any_batch(build: Callable[..., igr.IGR]) -> None:
    module = _Discrete(build)
    any_size = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(
        module, _two_breaks(5), dynamic_shapes={"loc": any_size, "scale": any_size}
    )
    loc, scale = _two_breaks(3)
    assert (program.module()(loc, scale) - module(loc, scale)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["loc", "scale"])
@pytest.mark.parametrize("family", [igr.StickBreakingIGR, igr.SharpStickBreakingIGR])
def test_parameters_that_are_nan_give_nan_and_leave_others_alone(family: Any, name: str) -> None:
    """As a run that diverged has them, beside others of its stack."""
    parameters = {"loc": torch.zeros(3, 4), "scale": torch.ones(3, 4)}
    expected = family(**parameters, temperature=0.5).discrete().probs
    parameters[name][1, 2] = torch.nan
    found = family(**parameters, temperature=0.5, validate_args=False).discrete().probs
    assert found[1].isnan().any()
    torch.testing.assert_close(found[::2], expected[::2])


@pytest.mark.parametrize("rest", [True, False])
def test_forward_mode_agrees_with_reverse_mode(rest: bool) -> None:
    loc, scale = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64) + 0.5

    def probs(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return leader_log_probs(loc, scale, rest=rest, smallest_scale=0.1).exp()

    forward = torch.func.jacfwd(probs, (0, 1))(loc, scale)
    for found, expected in zip(forward, torch.func.jacrev(probs, (0, 1))(loc, scale), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    tangent = torch.randn_like(loc)
    _, along = torch.func.jvp(lambda x: probs(x, scale), (loc,), (tangent,))
    expected = (forward[0] * tangent).sum((-1, -2))
    torch.testing.assert_close(along, expected, rtol=1e-6, atol=1e-8)
