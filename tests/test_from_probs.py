"""Distributions made of probabilities: `from_probs`, `from_logits`, `uniform`, and what reads them back."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import igr
from cases import Case, over
from igr import _inverse
from igr._inverse import loc_of
from igr.discrete import argmax_linearized, argmax_log_probs

D = torch.float64
EXACT = [igr.SoftmaxIGR, igr.SharpStickBreakingIGR]
both = pytest.mark.parametrize("family", EXACT, ids=lambda f: f.__name__)


def some_probs(
    num_categories: int, batch: int = 3, smallest: float = 1e-6, seed: int = 0
) -> Tensor:
    """Probabilities spread over all magnitudes down to `smallest`, which the first and the last have."""
    g = torch.Generator().manual_seed(seed)
    p = smallest ** torch.rand(batch, num_categories, generator=g, dtype=D)
    if num_categories > 2:
        p[:, 0] = 1.0
    p[0, -1], p[1, -1] = smallest, 1.0
    return p / p.sum(-1, keepdim=True)


_inverse_iterate = _inverse.iterate


@pytest.mark.parametrize("num_categories", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("scale", [1.0, "different"])
def test_softmax_round_trip(num_categories: int, scale: Any) -> None:
    p = some_probs(num_categories)
    if scale == "different":
        g = torch.Generator().manual_seed(1)
        scale = torch.randn(num_categories - 1, generator=g, dtype=D).exp().clamp(0.1, 10.0)
    for dtype, bound in ((torch.float32, 1e-5), (D, 1e-9)):
        s = scale.to(dtype) if isinstance(scale, Tensor) else scale
        q = igr.SoftmaxIGR.from_probs(p.to(dtype), 0.5, s)
        assert q.loc.dtype == q.scale.dtype == dtype
        assert (q.discrete().probs - p).abs().max() < bound


@pytest.mark.parametrize("num_categories", [2, 3, 10, 40])
def test_broken_stick_round_trip(num_categories: int) -> None:
    p = some_probs(num_categories)
    for dtype, bound in ((torch.float32, 1e-5), (D, 1e-9)):
        q = igr.SharpStickBreakingIGR.from_probs(p.to(dtype), 0.5)
        assert (q.discrete().probs - p).abs().max() < bound


@pytest.mark.parametrize(
    "num_categories, scale", [(3, 0.05), (10, 0.1), (30, 0.2), (60, 0.3), (100, 1.0), (100, 5.0)]
)
def test_broken_sticks_are_reached_at_any_scale(num_categories: int, scale: float) -> None:
    """In a few steps, from a start that is close, batches with zeros included; a warning would be an error."""
    p = torch.stack([torch.ones(num_categories), torch.arange(num_categories) % 3 + 1.0]).to(D)
    p[1, 1], p[1, -1] = 0.0, 0.0
    p = p / p.sum(-1, keepdim=True)
    steps: list[Tensor] = []

    def iterate(evaluate: Any, *rest: Any) -> Any:
        return _inverse_iterate(lambda x: steps.append(x) or evaluate(x), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_inverse, "iterate", iterate)
        found = igr.SharpStickBreakingIGR.from_probs(p, 0.5, scale)
    assert len(steps) <= 25
    assert (found.discrete().probs - p).abs().max() < 1e-9


@both
def test_by_an_independent_count(family: Any) -> None:
    """Fails for one seed in 10,000 by chance: 5 frequencies within 4.5 standard errors."""
    torch.manual_seed(0)
    p = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05])
    q = family.from_probs(p, 0.3)
    n = 40_000
    found = q.hard(q.sample((n,))).mean(0)
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize(("spread", "ratio"), [(1.0, 50.0), (10.0, 10.0), (30.0, 1.0)])
@pytest.mark.parametrize("num_categories", [3, 30, 300])
def test_softmax_of_any_logits(num_categories: int, spread: float, ratio: float) -> None:
    """Probabilities down to e^-100, scales that differ, more rows than are solved at once."""
    g = torch.Generator().manual_seed(2)
    logits = spread * torch.randn(20, num_categories, generator=g, dtype=D)
    logits[0, 0] = logits[1, -1] = -torch.inf
    logits[2, -1], logits[3, -1], logits[4, 0] = -60.0, 200.0, 200.0
    scale = ratio ** torch.rand(num_categories - 1, generator=g, dtype=D)
    logits.requires_grad_()
    q = igr.SoftmaxIGR.from_logits(logits, 0.5, scale)
    assert (q.discrete().probs - logits.softmax(-1)).abs().max() < 1e-9
    weights = torch.randn(q.loc.shape, generator=g, dtype=D)
    (found,) = torch.autograd.grad((weights * q.loc).sum(), logits)
    # A logit moves loc by a few scales, however improbable its category.
    assert found.abs().max() < 5 * ratio
    for i in (0, 5, 19) if spread == 1.0 else ():
        row = igr.SoftmaxIGR.from_logits(logits[i], 0.5, scale)
        (expected,) = torch.autograd.grad((weights[i] * row.loc).sum(), logits)
        assert torch.allclose(found[i], expected[i], rtol=1e-6, atol=1e-6)


def test_gradients_of_many_categories() -> None:
    g = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(2, 2, 200, generator=g, dtype=D)
    scale = torch.rand(2, 199, generator=g, dtype=D) + 0.5

    def f(logits: Tensor, scale: Tensor) -> Tensor:
        return (igr.SoftmaxIGR.from_logits(logits, 0.5, scale).loc * weights[:, 1:]).sum()

    assert torch.autograd.gradcheck(
        f, (logits.requires_grad_(), scale.requires_grad_()), fast_mode=True
    )


@both
def test_gradients(family: Any) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, generator=g, dtype=D).requires_grad_()
    scale = torch.rand(2, 3, generator=g, dtype=D).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: family.from_logits(x, 0.5, s).loc, (logits, scale))
    p = torch.tensor([[0.2, 0.0, 0.3, 0.5], [0.4, 0.3, 0.3, 0.0]], dtype=D)
    assert torch.autograd.gradcheck(
        lambda w: family.from_probs(p * w.exp(), 0.5).loc,
        (torch.zeros(2, 4, dtype=D, requires_grad=True),),
    )


def test_gradients_of_small_probabilities() -> None:
    # relative steps: a probability of 1e-6 takes none of 1e-6
    p = some_probs(6, smallest=1e-6)
    w = torch.zeros_like(p, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: igr.SoftmaxIGR.from_probs(p * w.exp(), 0.5).loc, (w,))


def test_second_derivatives_are_refused() -> None:
    logits = torch.zeros(3, dtype=D, requires_grad=True)
    loc = igr.SoftmaxIGR.from_logits(logits, 0.5).loc
    (first,) = torch.autograd.grad(loc.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"from_logits and from_probs .*first derivatives"):
        torch.autograd.grad(first.sum(), logits)


@pytest.mark.parametrize("num_categories", [2, 5, 150])  # the last of more than there are nodes
@pytest.mark.parametrize("last", [True, False])
def test_linear_systems_are_those_of_the_derivatives(last: bool, num_categories: int) -> None:
    g = torch.Generator().manual_seed(3)
    loc = torch.randn(num_categories - 1, generator=g, dtype=D) - 2
    scale = torch.rand(num_categories - 1, generator=g, dtype=D) + 1
    allowed = torch.rand(num_categories, generator=g) < 0.9
    allowed[0], allowed[-1] = True, last
    at = argmax_linearized(loc[None], scale[None], allowed[None])
    expected = torch.func.jacrev(lambda m: argmax_log_probs(m, scale, allowed=allowed).softmax(-1))(
        loc
    )
    dense = -at.factors[0] @ at.factors[0].T
    dense.diagonal().add_(at.diagonal[0])
    active = allowed[:-1]
    assert torch.allclose(dense[active][:, active], expected[:-1][active][:, active], atol=1e-9)
    assert torch.allclose(-at.last[0], expected[-1], atol=1e-9)

    newton = _inverse._Newton.of(at, allowed[None])
    change = torch.randn(num_categories, generator=g, dtype=D)
    change = at.probs[0] * (change - (at.probs[0] * change).sum())  # which sums to 0
    step = newton.step(change[None])[0]
    assert torch.allclose(expected @ step, change, rtol=1e-6, atol=1e-12)
    assert last or step[active].sum().abs() < 1e-9
    grad = torch.randn(num_categories - 1, generator=g, dtype=D) * active
    assert torch.allclose(newton.adjoint(grad[None])[0] @ change, grad @ step)


@both
def test_what_float32_rounds_to_zero_is_ruled_out_too(family: Any) -> None:
    q = family.from_logits(torch.tensor([0.0, 1.0, -200.0]), 0.5)
    assert q.allowed.tolist() == [True, True, False]


@both
def test_zeros_are_ruled_out_as_by_a_mask(family: Any) -> None:
    p = torch.tensor(
        [[0.5, 0.0, 0.3, 0.2], [0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4]]
    )
    q = family.from_probs(p, 0.5)
    assert q.allowed.equal(p > 0)
    assert q.loc.isfinite().all()
    assert torch.allclose(q.probs, p, atol=1e-6)
    assert ((q.sample((50,)) == 0) == (p == 0)).all()
    assert family.from_probs(p[3], 0.5).allowed is None
    masked = family.from_logits(p.log(), 0.5)
    assert masked.allowed.equal(p > 0)
    assert torch.allclose(masked.probs, p, atol=1e-6)
    # gradients of what is ruled out are 0
    logits = p.log().requires_grad_()
    z = family.from_logits(logits, 0.5).rsample()
    (grad,) = torch.autograd.grad(z.square().sum(), logits)
    assert grad.isfinite().all()
    assert (grad[p == 0] == 0).all()


@both
def test_shapes_dtypes_and_options(family: Any) -> None:
    p = torch.tensor([[0.2, 0.3, 0.5]]).expand(4, 3)
    q = family.from_probs(p, torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0]))
    assert q.batch_shape == (4,)
    assert q.scale[0].equal(torch.tensor([1.0, 2.0]))
    assert family.from_probs(p[0], 0.5, torch.ones(7, 2)).batch_shape == (7,)
    assert family.from_probs(p[0], 0.5, torch.ones(2, dtype=D)).loc.dtype == D
    assert family.from_probs(2 * p[0], 0.5).probs.allclose(p[0], atol=1e-6)
    assert family.from_probs(p.half(), 0.5).loc.dtype == torch.half
    assert family.from_probs(p[:0], 0.5).batch_shape == (0,)
    assert family.from_logits(torch.tensor([1e3, 1e3, 1e3]), 0.5).probs.allclose(
        torch.tensor(1 / 3)
    )


def test_delta_is_passed_on() -> None:
    q = igr.SoftmaxIGR.from_probs(torch.tensor([0.2, 0.8]), 0.5, delta=0.3)
    assert q.delta == 0.3
    assert q.probs.allclose(torch.tensor([0.2, 0.8]))


P = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: igr.SoftmaxIGR.from_probs([0.5, 0.5], 0.5), "probs: expected a tensor"),
        (lambda: igr.SoftmaxIGR.from_probs(P[:1], 0.5), "probs: expected shape .* K >= 2"),
        (lambda: igr.SoftmaxIGR.from_probs(-P, 0.5), "probs: expected non-negative"),
        (lambda: igr.SoftmaxIGR.from_probs(0 * P, 0.5), "probs: .* not all of them 0"),
        (lambda: igr.SoftmaxIGR.from_probs(P, 0.5, -1.0), "scale: expected a positive"),
        (
            lambda: igr.SoftmaxIGR.from_probs(P, 0.5, torch.ones(3)),
            r"scale: expected shape .*, 1\)",
        ),
        (lambda: igr.SoftmaxIGR.from_probs(P, 0.0), "temperature: expected a positive"),
        (lambda: igr.SoftmaxIGR.from_probs(P, 0.5, allowed=P > 0), "allowed: expected none"),
        (lambda: igr.SoftmaxIGR.from_logits(P.long(), 0.5), "logits: expected floating-point"),
        (lambda: igr.SoftmaxIGR.from_logits(P * torch.inf, 0.5), "logits: expected numbers below"),
        (lambda: igr.StickBreakingIGR.from_probs(P, 0.5), "igr.SharpStickBreakingIGR.from_probs"),
        (lambda: igr.PlanarIGR.from_logits(P, 0.5), "igr.match"),
        (lambda: igr.PlanarIGR.uniform(3, 0.5), "igr.match"),
        (
            lambda: igr.SoftmaxIGR.uniform(1, 0.5),
            "num_categories: expected a whole number of at least 2",
        ),
        (lambda: igr.SoftmaxIGR.uniform(3, 0.5, 0.0), "scale: expected a positive"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: igr.SoftmaxIGR(x, torch.ones(5), 0.5, num_categories=5),
        lambda x: igr.StickBreakingIGR(x, torch.ones(5), 0.5, num_categories=5),
        lambda x: igr.SharpStickBreakingIGR(x, torch.ones(5), 0.5, num_categories=5),
        lambda x: igr.PlanarIGR(x, torch.ones(5), 0.5, [], num_categories=5),
        lambda x: igr.IGR(x, torch.ones(5), igr.SoftmaxPlusPlus(0.5), num_categories=5),
    ],
)
def test_logits_as_loc_are_told_what_to_write(make: Any) -> None:
    with pytest.raises(ValueError, match=r"one fewer than num_categories = 5.*from_logits\(logits"):
        make(torch.zeros(2, 5))
    assert (
        igr.SoftmaxIGR(torch.zeros(2, 5), torch.ones(5), 0.5, num_categories=6).num_categories == 6
    )


@pytest.mark.parametrize("num_categories", [2, 3, 10, 30])
def test_uniform(num_categories: int) -> None:
    for family in (*EXACT, igr.GumbelSoftmax):
        q = family.uniform(num_categories, 0.5, batch_shape=(3,), dtype=D)
        assert q.batch_shape == (3,)
        assert (q.discrete().probs - 1 / num_categories).abs().max() < 1e-9
    for family in EXACT:
        q = family.uniform(num_categories, 0.5, scale=2.0)
        assert (q.scale == 2.0).all()
        assert (q.discrete().probs - 1 / num_categories).abs().max() < 1e-5
    q = igr.StickBreakingIGR.uniform(num_categories, 0.5, dtype=D)
    assert (q.discrete().probs[:-1] - 1 / (num_categories - 1)).abs().max() < 1e-9


def test_what_is_cached_carries_no_mode() -> None:
    with torch.inference_mode():
        igr.SharpStickBreakingIGR.uniform(7, 0.5)
    loc = igr.SharpStickBreakingIGR.uniform(7, 0.5).loc.requires_grad_()
    loc.sum().backward()


def test_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(_inverse.iterate, max_steps=2)
    monkeypatch.setattr(_inverse, "iterate", few)
    with pytest.warns(igr.priors.OutOfReachWarning, match="total variation distance"):
        igr.SharpStickBreakingIGR.from_probs(some_probs(6)[0], 0.5)


@both
def test_vmap(family: Any) -> None:
    x = torch.randn(3, 2, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.7, 1.0, 1.5], dtype=D)

    def f(x: Tensor, scale: Tensor) -> Tensor:
        return family.from_logits(x, 0.5, scale).loc

    expected = torch.stack([f(a, s) for a, s in zip(x, scale, strict=True)])
    assert torch.allclose(torch.func.vmap(f)(x, scale), expected, atol=1e-6)

    def g(x: Tensor, scale: Tensor) -> Tensor:
        return f(x, scale).square().sum()

    grads = torch.func.vmap(torch.func.grad(g))(x, scale)
    expected = torch.stack([torch.func.grad(g)(a, s) for a, s in zip(x, scale, strict=True)])
    # where values cannot be read, broken sticks have other nodes
    assert torch.allclose(grads, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, of functions with gradients
def test_compiles_in_one_graph_with_gradients() -> None:
    torch.compiler.reset()

    def f(x: Tensor) -> Tensor:
        return igr.SoftmaxIGR.from_logits(x, 0.5).loc

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for shape in ((7, 4), (8, 4), (9, 6)):
        x = torch.randn(shape, requires_grad=True)
        found, expected = compiled(x), f(x)
        assert torch.allclose(found, expected, atol=1e-6)
        (a,), (b,) = (torch.autograd.grad(y.square().sum(), x) for y in (found, expected))
        assert torch.allclose(a, b, atol=1e-5)
    torch.compiler.reset()


@both
def test_compiles_in_one_graph(family: Any) -> None:
    torch.compiler.reset()

    def f(x: Tensor) -> Tensor:
        return family.from_logits(x, 0.5).loc + family.uniform(3, 0.5).loc.sum()

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    for shape in ((7, 4), (8, 4), (9, 6)):
        x = torch.randn(shape)
        assert torch.allclose(compiled(x), f(x), atol=1e-6)
    torch.compiler.reset()


@both
def test_exports(family: Any) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return family.from_logits(x, 0.5).loc

    shapes = ({0: torch.export.Dim("batch", min=2, max=100)},)
    program = torch.export.export(Module(), (torch.randn(7, 4),), dynamic_shapes=shapes)
    for n in (2, 9):
        x = torch.randn(n, 4)
        assert torch.allclose(program.module()(x), Module()(x), atol=1e-6)


@both
def test_operator_is_sound(family: Any) -> None:
    p = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]], dtype=D)
    args = (p, torch.ones(2, 2, dtype=D), family is igr.SharpStickBreakingIGR)
    torch.library.opcheck(torch.ops.igr.loc_of.default, args)
    with torch._subclasses.FakeTensorMode() as mode:
        loc, left = loc_of(mode.from_tensor(p), mode.from_tensor(args[1]), args[2])
    assert loc.shape == (2, 2)
    assert left.shape == (2,)


# What torch.distributions' users reach for


@over()
def test_probs_and_mode_are_those_of_the_recovered_distribution(case: Case) -> None:
    q = case.some(4, (3,))
    torch.manual_seed(0)
    discrete = q.discrete()
    torch.manual_seed(0)
    assert torch.allclose(q.probs, discrete.probs, rtol=1e-12, atol=0)
    torch.manual_seed(0)
    mode = q.mode
    assert torch.equal(mode, discrete.mode.to(mode))
    assert mode.dtype == q.rsample().dtype
    torch.manual_seed(0)
    assert torch.equal(q.deterministic_sample, mode)
    assert torch.equal(q.discrete().deterministic_sample, mode)
    torch.manual_seed(0)
    assert torch.equal(igr.nn.Sample().eval()(q), mode)


@over(lambda case: case.own_noise)
def test_entropy_is_estimated(case: Case) -> None:
    torch.manual_seed(0)
    q = case.some(3, (2,))
    found = q.entropy(8)
    torch.manual_seed(0)
    assert torch.equal(found, -q.rsample_and_log_prob((8,))[1].mean(0))
    assert q.entropy().shape == (2,)  # as callers ask who have distributions of any kind
    with pytest.raises(ValueError, match="num_samples: expected a whole number of at least 1"):
        q.entropy(0)


@over(lambda case: case.num_allowed(3) == 3)
def test_what_has_no_closed_form_says_what_there_is(case: Case) -> None:
    q = case.some(3)
    for get, hint in (
        (lambda: q.mean, r"rsample\(\(n,\)\).mean\(0\)"),
        (lambda: q.variance, r"rsample\(\(n,\)\).var\(0\)"),
        (lambda: q.perplexity(), r"perplexity\(\)"),
        (lambda: q.enumerate_support(), "continuum"),
    ):
        with pytest.raises(NotImplementedError, match=rf"{hint}.*discrete\(\)"):
            get()


def test_entropy_of_a_uniform_on_the_simplex_by_hand() -> None:
    """K = 2: z_1 is uniform on [0, 1], whose entropy is 0. Fails once in 15,000 (4 standard errors)."""
    torch.manual_seed(0)
    q = igr.GumbelSoftmax(1.0, logits=torch.zeros(2, dtype=D))
    n = 10_000
    assert (
        abs(float(q.entropy(n))) < 4 * float(q.rsample_and_log_prob((n,))[1].std()) / n**0.5 + 1e-9
    )


@pytest.mark.parametrize("family", [*EXACT, igr.GumbelSoftmax], ids=lambda f: f.__name__)
def test_one_call_makes_any_family_of_logits_or_probabilities(family: Any) -> None:
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.1, 0.4, 0.25, 0.25]])
    for q in (family.from_probs(p, 0.5), family.from_logits(p.log(), temperature=0.5)):
        torch.testing.assert_close(q.probs, p, rtol=1e-5, atol=1e-6)
        assert q.rsample()[0, 1] == 0
        assert float(q.temperature) == 0.5


def test_probabilities_of_hundreds_of_orders_of_magnitude_are_approached() -> None:
    """By steps that are not too long: without a limit some would be missed by tenths."""
    probs = torch.softmax(-600 * torch.rand(200, 10, dtype=D), -1)
    scale = (4.6 * (torch.rand(200, 9, dtype=D) - 0.5)).exp()
    _, left = _inverse.solve(probs, scale, sticks=False)
    assert left.max() < 1e-3
