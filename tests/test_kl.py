"""KL divergences: closed forms against Monte Carlo and against covariances, and where there is none."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MultivariateNormal,
    OneHotCategorical,
    StudentT,
    kl_divergence,
)

import igr
from cases import CASES, LAST_OUT, Case, Shear, over, parameters, planar_flow

D = torch.float64


def _q_and_p(
    case: Case, inputs: list[Tensor], t: float = 0.5
) -> tuple[igr.Relaxation, igr.Relaxation]:
    loc, scale, loc0, scale0 = inputs
    return case.build(loc, scale, t), case.build(loc0, scale0, t)


def _inputs(num_categories: int = 4, batch: tuple[int, ...] = ()) -> list[Tensor]:
    loc, scale = parameters(num_categories, batch, seed=1)
    loc0, scale0 = parameters(num_categories, batch, seed=2)
    return [loc, scale, 0.5 * loc0, 1.2 * scale0]


def assert_mean(samples: Tensor, expected: Tensor, sigmas: float = 4.0) -> None:
    """Mean over the first dimension within 4 standard errors: by chance 1 in 16,000 for each number."""
    error = samples.std(0) / math.sqrt(len(samples))
    difference = (samples.mean(0) - expected).abs()
    assert bool((difference <= sigmas * error + 1e-12).all()), (difference / error).max()


def _monte_carlo(q: igr.Relaxation, p: igr.Relaxation) -> Tensor:
    """log q - log p at samples of q, by densities alone, one batch element for each sample."""
    log_z = q.rsample_log()
    return q.log_prob(log_value=log_z) - p.log_prob(log_value=log_z)


def check_value_and_gradient(make, inputs: list[Tensor], n: int = 20_000) -> None:
    """kl_divergence against the mean of log q - log p over samples, and their gradients in all parameters."""
    exact_inputs = [x.clone().requires_grad_() for x in inputs]
    q, p = make(*exact_inputs)
    exact = kl_divergence(q, p)
    exact_grads = torch.autograd.grad(exact, exact_inputs)
    assert exact > 0
    # One copy of the parameters for each sample gives a gradient for each.
    copies = [x.expand(n, *x.shape).clone().requires_grad_() for x in inputs]
    q, p = make(*copies)
    samples = _monte_carlo(q, p)
    grads = torch.autograd.grad(samples.sum(), copies)
    assert_mean(samples.detach(), exact.detach())
    for sampled, expected in zip(grads, exact_grads, strict=True):
        assert_mean(sampled, expected)


@over(
    lambda c: not c.name.startswith("gumbel"),
    lambda c: (
        c.name not in ("student_t", "vertex")
    ),  # no closed form; boundary terms in the gradient
)
def test_closed_form_is_monte_carlo_value_and_gradient(case: Case) -> None:
    check_value_and_gradient(lambda m, s, m0, s0: _q_and_p(case, [m, s, m0, s0]), _inputs())


def test_vertex_interpolation_closed_form_is_monte_carlo() -> None:
    """Equal maps cancel whatever they are; the pathwise gradient is biased here, the closed form's is not."""
    case = next(c for c in CASES if c.name == "vertex")
    q, p = _q_and_p(case, _inputs())
    log_z = q.rsample_log((20_000,))
    samples = q.log_prob(log_value=log_z) - p.log_prob(log_value=log_z)
    assert_mean(samples, kl_divergence(q, p))


@pytest.mark.parametrize("allowed", [None, "first", "last"])
@pytest.mark.parametrize("tensor", [False, True])
def test_softmax_igr_of_different_temperature_and_delta(allowed: str | None, tensor: bool) -> None:
    mask = None
    if allowed:
        mask = torch.tensor([allowed != "first", True, True, allowed != "last"])
    t, t0, d, d0 = 0.3, 0.8, 0.6, 2.0
    wrap = (lambda x: torch.tensor(x, dtype=D)) if tensor else (lambda x: x)

    def make(m: Tensor, s: Tensor, m0: Tensor, s0: Tensor) -> tuple[igr.SoftmaxIGR, igr.SoftmaxIGR]:
        q = igr.SoftmaxIGR(m, s, wrap(t), wrap(d), mask)
        # The prior's parameters are brought to the same logits, so that the divergence is moderate.
        return q, igr.SoftmaxIGR(m0 * t0 / t, s0 * t0 / t, wrap(t0), wrap(d0), mask)

    check_value_and_gradient(make, _inputs())


def test_softmax_igr_kl_has_gradients_of_temperature_and_delta() -> None:
    inputs = [torch.tensor(x, dtype=D) for x in (0.4, 0.9, 0.6, 2.0)]
    loc, scale, loc0, scale0 = _inputs()

    def make(t: Tensor, t0: Tensor, d: Tensor, d0: Tensor) -> tuple[igr.SoftmaxIGR, igr.SoftmaxIGR]:
        q = igr.SoftmaxIGR(loc, scale, t, d)
        return q, igr.SoftmaxIGR(2 * loc0, 2 * scale0, t0, d0)

    check_value_and_gradient(make, inputs)


def test_temperature_matters_for_softmax_igr_of_equal_parameters() -> None:
    """The Jacobians do not cancel: with equal loc and scale the divergence is that of (loc, scale) / temperature."""
    loc, scale = parameters(4)
    kl = kl_divergence(igr.SoftmaxIGR(loc, scale, 0.5), igr.SoftmaxIGR(loc, scale, 1.0))
    a, b = 2 * loc, 2 * scale
    normal = torch.distributions.Normal
    expected = kl_divergence(normal(a, b), normal(loc, scale)).sum(-1)
    torch.testing.assert_close(kl, expected)
    same = kl_divergence(igr.SoftmaxIGR(loc, scale, 0.5), igr.SoftmaxIGR(a, b, 1.0))
    torch.testing.assert_close(same, torch.zeros((), dtype=D), rtol=0, atol=1e-12)


def test_same_samples_have_no_divergence_whatever_their_parameters() -> None:
    """(loc, scale, temperature) times a factor, and delta as a shift of loc, are the same distribution."""
    loc, scale = parameters(4)
    q = igr.SoftmaxIGR(loc, scale, 0.5, delta=1.0)
    p = igr.SoftmaxIGR(3 * loc + 1.5 * math.log(2.0), 3 * scale, 1.5, delta=2.0)
    torch.testing.assert_close(kl_divergence(q, p), torch.zeros((), dtype=D), rtol=0, atol=1e-12)
    z = q.sample((20,))
    torch.testing.assert_close(q.log_prob(z), p.log_prob(z))


def test_last_category_not_allowed_is_a_gaussian_of_differences() -> None:
    """Against the divergence of the differences to one allowed y, whose covariance is diagonal plus a constant."""
    loc, scale, loc0, scale0 = _inputs(5)
    mask = LAST_OUT(5)
    kl = kl_divergence(
        igr.SoftmaxIGR(loc, scale, 0.5, allowed=mask),
        igr.SoftmaxIGR(loc0, scale0, 0.5, allowed=mask),
    )

    def differences(m: Tensor, s: Tensor) -> MultivariateNormal:
        return MultivariateNormal(m[:-1] - m[-1], s[:-1].square().diag() + s[-1].square())

    torch.testing.assert_close(
        kl, kl_divergence(differences(loc, scale), differences(loc0, scale0))
    )


def test_density_where_the_last_category_is_not_allowed_is_that_of_differences() -> None:
    loc, scale = parameters(5)
    t = 0.5
    q = igr.SoftmaxIGR(loc, scale, t, allowed=LAST_OUT(5))
    log_z, own = q.rsample_log_and_log_prob((50,))
    d = t * (log_z[:, :3] - log_z[:, 3:4])
    normal = MultivariateNormal(loc[:-1] - loc[-1], scale[:-1].square().diag() + scale[-1].square())
    expected = normal.log_prob(d) - (log_z[:, :4].sum(-1) - 3 * math.log(t))
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(q.log_prob(log_value=log_z), expected)


def test_different_allowed_categories_are_infinitely_far() -> None:
    loc, scale = parameters(4)
    a, b = torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True])
    q, p = igr.SoftmaxIGR(loc, scale, 0.5, allowed=a), igr.SoftmaxIGR(loc, scale, 0.5, allowed=b)
    assert kl_divergence(q, p) == torch.inf
    everything = igr.SoftmaxIGR(loc, scale, 0.5, allowed=torch.ones(4, dtype=torch.bool))
    assert kl_divergence(everything, igr.SoftmaxIGR(loc, scale, 0.5)) == 0


def test_allowed_for_each_element_and_one_category_left() -> None:
    loc, scale = parameters(3, (4,))
    mask = torch.tensor(
        [[True] * 3, [True, True, False], [False, False, True], [True, False, False]]
    )
    q = igr.SoftmaxIGR(loc, scale, 0.5, allowed=mask)
    p = igr.SoftmaxIGR(torch.zeros(2, dtype=D), torch.ones(2, dtype=D), 0.5, allowed=mask)
    kl = kl_divergence(q, p)
    assert kl.isfinite().all()
    torch.testing.assert_close(kl[2:], torch.zeros(2, dtype=D), rtol=0, atol=1e-12)
    for i in range(2):
        one = kl_divergence(
            igr.SoftmaxIGR(loc[i], scale[i], 0.5, allowed=mask[i]),
            igr.SoftmaxIGR(torch.zeros(2, dtype=D), torch.ones(2, dtype=D), 0.5, allowed=mask[i]),
        )
        torch.testing.assert_close(kl[i], one)


@over(lambda c: not c.name.startswith("gumbel"), lambda c: c.name != "student_t")
def test_batch_shapes_and_zero(case: Case) -> None:
    """Broadcasts over batches, and is zero for equal distributions."""
    q = case.some(4, (3, 2), 0.5)
    p = case.some(4, (2,), 0.5, seed=1)
    kl = kl_divergence(q, p)
    assert kl.shape == (3, 2)
    assert bool((kl >= 0).all())
    same = kl_divergence(q, case.some(4, (3, 2), 0.5))
    torch.testing.assert_close(same, torch.zeros(3, 2, dtype=D), rtol=0, atol=1e-10)
    joint = kl_divergence(Independent(q, 1), Independent(p.expand((3, 2)), 1))
    torch.testing.assert_close(joint, kl.sum(-1))


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_estimates_of_independent_variables_add_up(dims: int) -> None:
    q, p = igr.GumbelSoftmax(0.5, logits=torch.randn(4, 3, 2, 5)), igr.GumbelSoftmax.uniform(5, 0.3)
    torch.manual_seed(1)
    each = igr.monte_carlo_kl(q, p, 2)
    torch.manual_seed(1)
    found = igr.monte_carlo_kl(Independent(q, dims), Independent(p.expand((4, 3, 2)), dims), 2)
    torch.testing.assert_close(found, each.sum((-2, -1)[2 - dims :]) if dims else each)


def test_equal_compositions_have_a_closed_form_however_written() -> None:
    loc, scale, loc0, scale0 = _inputs()
    normal = torch.distributions.Normal
    expected = kl_divergence(normal(loc, scale), normal(loc0, scale0)).sum(-1)
    steps = [igr.StickBreaking(), igr.Sharpen(0.5)]
    pairs = [
        (igr.SoftmaxIGR(loc, scale, 0.5), igr.IGR(loc0, scale0, igr.SoftmaxPlusPlus(0.5))),
        (igr.SharpStickBreakingIGR(loc, scale, 0.5), igr.IGR(loc0, scale0, igr.Compose(steps))),
        (
            igr.IGR(loc, scale, igr.Compose([Shear(), igr.SoftmaxPlusPlus(0.5)])),
            igr.PlanarIGR(loc0, scale0, 0.5, Shear()),
        ),
        (
            igr.PlanarIGR(loc, scale, 0.5, planar_flow(3, D)),
            igr.PlanarIGR(loc0, scale0, 0.5, planar_flow(3, D)),
        ),
    ]
    for q, p in pairs:
        torch.testing.assert_close(kl_divergence(q, p), expected)
        torch.testing.assert_close(kl_divergence(q.expand((2,)), p), expected.expand(2))


# No closed form


def _pairs_without() -> list[tuple[igr.Relaxation, igr.Relaxation]]:
    loc, scale = parameters(4)
    softmax = igr.SoftmaxIGR(loc, scale, 0.5)
    sharp = igr.SharpStickBreakingIGR(loc, scale, 0.5)
    gumbel = igr.GumbelSoftmax(0.5, logits=torch.zeros(4, dtype=D))
    planar = igr.PlanarIGR(loc, scale, 0.5, planar_flow(3, D))
    student = igr.IGR.from_base(
        Independent(StudentT(torch.tensor(5.0, dtype=D), loc, scale), 1), igr.SoftmaxPlusPlus(0.5)
    )
    return [
        (softmax, sharp),
        (sharp, softmax),
        (sharp, igr.SharpStickBreakingIGR(loc, scale, 0.6)),
        (planar, softmax),
        (softmax, gumbel),
        (gumbel, softmax),
        (gumbel, gumbel),
        (student, student),
        (igr.StickBreakingIGR(loc, scale, 0.5), igr.StickBreakingIGR(loc, scale, 0.5, delta=2.0)),
        (igr.StickBreakingIGR(loc, scale, 0.5), softmax),
    ]


@pytest.mark.parametrize("pair", range(10))
def test_no_closed_form_names_monte_carlo_kl(pair: int) -> None:
    q, p = _pairs_without()[pair]
    with pytest.raises(NotImplementedError, match="monte_carlo_kl"):
        kl_divergence(q, p)


# Monte Carlo (9)


def test_every_refusal_says_why_and_what_to_do() -> None:
    loc, scale = parameters(4)
    logits = torch.zeros(4, dtype=D)
    ours = [
        igr.SoftmaxIGR(loc, scale, 0.5),
        igr.StickBreakingIGR(loc, scale, 0.5),
        igr.SharpStickBreakingIGR(loc, scale, 0.5),
        igr.PlanarIGR(loc, scale, 0.5, planar_flow(3, D)),
        igr.IGR.from_base(Independent(StudentT(5.0, loc, scale), 1), igr.SoftmaxPlusPlus(0.5)),
        igr.GumbelSoftmax(0.5, logits=logits),
        igr.CountableIGR(igr.nn.CountableParameters(3), 0.5),
    ]
    components = torch.distributions.Dirichlet(torch.ones(2, 4, dtype=D))
    mixing = torch.distributions.Categorical(logits=torch.zeros(2, dtype=D))
    others = [
        torch.distributions.Categorical(logits=logits),
        torch.distributions.OneHotCategorical(logits=logits),
        torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits),
        torch.distributions.Dirichlet(torch.ones(4, dtype=D)),
        torch.distributions.LogisticNormal(loc, scale),
        torch.distributions.MixtureSameFamily(mixing, components),
        torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1),
    ]
    refused = 0
    for q in ours + others:
        for p in ours + others:
            if q in others and p in others:
                continue
            try:
                kl_divergence(q, p)
            except NotImplementedError as error:
                refused += 1
                message = str(error)
                assert f"no KL from {type(q).__name__}" in message or "no closed-form KL" in message
                assert "igr." in message or "average q.log_prob(z)" in message, message
                maps = (
                    isinstance(q, igr.IGR) and isinstance(p, igr.IGR) and q.transform != p.transform
                )
                assert ("maps onto the simplex differ" in message) == maps, message
    assert refused > 100


def test_monte_carlo_kl_agrees_with_the_closed_form() -> None:
    for t0 in (0.5, 0.8):
        loc, scale, loc0, scale0 = _inputs()
        q, p = igr.SoftmaxIGR(loc, scale, 0.5), igr.SoftmaxIGR(loc0, scale0, t0)
        n = 20_000
        assert_mean(igr.monte_carlo_kl(q.expand((n,)), p), kl_divergence(q, p))
        many = igr.monte_carlo_kl(q, p, num_samples=n)
        spread = igr.monte_carlo_kl(q.expand((n,)), p).std() / math.sqrt(n)
        assert (many - kl_divergence(q, p)).abs() < 4 * spread


def test_monte_carlo_kl_of_planar_against_a_plain_prior() -> None:
    """Against quadrature over y at K = 2: the shared softmax++ cancels, the flow does not. Value and gradient."""
    loc, scale = torch.tensor([0.3], dtype=D), torch.tensor([0.8], dtype=D)
    u, w, b = (torch.tensor(x, dtype=D) for x in ([0.7], [1.1], 0.2))
    normal = torch.distributions.Normal

    def divergence(loc: Tensor) -> Tensor:
        grid = torch.linspace(-12, 12, 20_001, dtype=D)
        y = (loc + scale * grid).unsqueeze(-1)
        x, log_det = igr.functional.planar(y, u, w, b)
        log_ratio = normal(loc, scale).log_prob(y).squeeze(-1) - log_det
        log_ratio = log_ratio - normal(0.0, 1.0).log_prob(x.squeeze(-1))
        return (normal(0.0, 1.0).log_prob(grid).exp() * log_ratio).sum() * (grid[1] - grid[0])

    loc.requires_grad_()
    exact = divergence(loc)
    (exact_grad,) = torch.autograd.grad(exact, loc)
    n = 20_000
    copies = loc.detach().expand(n, 1).clone().requires_grad_()
    q = igr.PlanarIGR(copies, scale, 0.3, igr.Planar(u, w, b))
    samples = igr.monte_carlo_kl(
        q, igr.SoftmaxIGR(torch.zeros(1, dtype=D), torch.ones(1, dtype=D), 0.3)
    )
    (grads,) = torch.autograd.grad(samples.sum(), copies)
    # The normalising constant of the grid's float32 numbers is exact in float64 to 1e-12.
    assert_mean(samples.detach(), exact.detach())
    assert_mean(grads, exact_grad)


@over(lambda c: c.log_space, lambda c: c.allowed is None)
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_monte_carlo_kl_is_finite_at_low_temperature(case: Case, temperature: float) -> None:
    q = case.some(6, (50,), temperature, torch.float64)
    zeros, ones = torch.zeros(5, dtype=D), torch.ones(5, dtype=D)
    for p in (
        igr.GumbelSoftmax(0.5, logits=torch.zeros(6, dtype=D)),
        igr.SoftmaxIGR(zeros, ones, 0.5),
        igr.SharpStickBreakingIGR(zeros, ones, 0.5),
    ):
        assert igr.monte_carlo_kl(q, p, num_samples=3).isfinite().all()


@pytest.mark.parametrize("pair", [0, 1, 2, 3, 4, 5, 6, 7, 9])
def test_monte_carlo_kl_is_the_mean_log_ratio(pair: int) -> None:
    """The shared maps that cancel make no difference: against densities alone, within 4 standard errors of both."""
    q, p = _pairs_without()[pair]
    n = 5000
    a = igr.monte_carlo_kl(q.expand((n,)), p)
    b = _monte_carlo(q.expand((n,)), p)
    error = ((a.var() + b.var()) / n).sqrt()
    assert (a.mean() - b.mean()).abs() < 4 * error + 1e-12


def test_monte_carlo_kl_outside_the_image_is_infinite() -> None:
    loc, scale = parameters(4)
    q, p = igr.SoftmaxIGR(loc, scale, 0.5), igr.StickBreakingIGR(loc, scale, 0.5)
    assert igr.monte_carlo_kl(q, p, num_samples=50) == torch.inf
    parts = igr.StickBreaking(), igr.VertexInterpolation(0.5), igr.Close()  # the last is in common
    q, p = (igr.IGR(loc, scale, igr.Compose(some)) for some in (parts[::2], parts))
    assert igr.monte_carlo_kl(q, p, num_samples=50) == torch.inf


def test_monte_carlo_kl_of_a_face_against_the_whole_simplex_is_infinite() -> None:
    loc, scale = parameters(4)
    q = igr.SoftmaxIGR(loc, scale, 0.5, allowed=torch.tensor([True, False, True, True]))
    for p in (
        torch.distributions.LogisticNormal(loc, scale),
        *(torch.distributions.Dirichlet(torch.full((4,), a, dtype=D)) for a in (0.5, 1.0, 2.0)),
    ):
        assert igr.monte_carlo_kl(q, p, num_samples=5) == torch.inf


def test_monte_carlo_kl_differentiates_both() -> None:
    inputs = [x.requires_grad_() for x in _inputs()]
    q, p = (
        igr.SharpStickBreakingIGR(inputs[0], inputs[1], 0.5),
        igr.SoftmaxIGR(inputs[2], inputs[3], 0.5),
    )
    for g in torch.autograd.grad(igr.monte_carlo_kl(q, p, num_samples=5), inputs):
        assert g.isfinite().all()
        assert bool((g != 0).all())


def test_laplace_bases_have_the_closed_form_of_torch() -> None:
    loc, scale, loc0, scale0 = _inputs()
    q, p = (
        igr.IGR.from_base(Independent(Laplace(m, s), 1), igr.SoftmaxPlusPlus(0.5))
        for m, s in ((loc, scale), (loc0, scale0))
    )
    expected = kl_divergence(Laplace(loc, scale), Laplace(loc0, scale0)).sum(-1)
    torch.testing.assert_close(kl_divergence(q, p), expected)


BAD = [
    (
        lambda q, p: igr.monte_carlo_kl(q, p, num_samples=0),
        "num_samples: expected a whole number of at least 1, got 0",
    ),
    (
        lambda q, p: igr.monte_carlo_kl(q, igr.SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5)),
        r"q, p: expected the same number of categories, got event shapes \(4,\) and \(3,\)",
    ),
]


@pytest.mark.parametrize("call, message", BAD)
def test_errors(call: object, message: str) -> None:
    q, p = _pairs_without()[0]
    with pytest.raises(ValueError, match=message):
        call(q, p)  # type: ignore[operator]


# Plug-in (8)


@pytest.mark.parametrize("kind", [Categorical, OneHotCategorical])
def test_plug_in_kl_is_that_of_the_recovered_categorical(kind: type) -> None:
    logits = torch.randn(5, 4, dtype=D)
    p0 = kind(logits=torch.randn(4, dtype=D))
    kl = igr.plug_in_kl(igr.GumbelSoftmax(0.5, logits=logits), p0)
    torch.testing.assert_close(kl, kl_divergence(kind(logits=logits), p0))
    q = igr.SoftmaxIGR(*parameters(4, (5,)), 0.5)
    expected = kl_divergence(
        OneHotCategorical(probs=q.discrete().probs), OneHotCategorical(logits=p0.logits)
    )
    torch.testing.assert_close(igr.plug_in_kl(q, p0), expected, rtol=1e-6, atol=1e-8)


def test_plug_in_kl_with_impossible_categories() -> None:
    logits = torch.tensor([0.3, -0.2, -torch.inf], dtype=D, requires_grad=True)
    both = OneHotCategorical(
        logits=torch.tensor([0.0, 0.0, -torch.inf], dtype=D), validate_args=False
    )
    kl = igr.plug_in_kl(igr.GumbelSoftmax(0.5, logits=logits), both)
    expected = kl_divergence(
        Categorical(logits=logits[:2]), Categorical(logits=torch.zeros(2, dtype=D))
    )
    torch.testing.assert_close(kl, expected)
    (grad,) = torch.autograd.grad(kl, logits)
    assert grad.isfinite().all()
    one = OneHotCategorical(
        logits=torch.tensor([0.0, -torch.inf, -torch.inf], dtype=D), validate_args=False
    )
    assert igr.plug_in_kl(igr.GumbelSoftmax(0.5, logits=logits.detach()), one) == torch.inf


def _exact_kl(q: list[float], p: list[float]) -> float:
    if any(a > 0 and b == 0 for a, b in zip(q, p, strict=True)):
        return math.inf
    pairs = zip(q, p, strict=True)
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in pairs if a > 0)


DISTRIBUTIONS = [
    [0.5, 0.5, 0.0],
    [1.0, 0.0, 0.0],
    [0.25, 0.25, 0.5],
    [0.5, 0.5 - 2**-30, 2**-30],  # below a rounding of 1, which torch's own takes it for
    [0.5, 0.5, 2.0**-120],
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D])
@pytest.mark.parametrize("kinds", [("probs", "probs"), ("probs", "logits"), ("logits", "probs")])
@pytest.mark.parametrize("read", [False, True])
def test_kl_of_categories_is_infinite_where_only_the_second_rules_one_out(
    dtype: torch.dtype, kinds: tuple[str, str], read: bool
) -> None:
    """Of all pairs, made either way, and with the other parameter computed before or not."""

    def make(kind: str, family: Any, probs: list[float]) -> Any:
        values = torch.tensor(probs, dtype=D)
        values = values.log() if kind == "logits" else values
        made = family(**{kind: values.to(dtype)}, validate_args=False)
        if read:
            assert made.probs is not None
            assert made.logits is not None
        return made

    def seen(kind: str, probs: list[float]) -> list[float]:
        """What the dtype leaves of them."""
        given = torch.tensor(probs, dtype=D)
        if kind == "logits":
            return torch.softmax(given.log().to(dtype).double(), -1).tolist()
        given = given.to(dtype).double()
        return (given / given.sum()).tolist()

    for a in DISTRIBUTIONS:
        for b in DISTRIBUTIONS:
            expected = _exact_kl(seen(kinds[0], a), seen(kinds[1], b))
            for family in (Categorical, OneHotCategorical, igr.RecoveredCategorical):
                q, p = make(kinds[0], Categorical, a), make(kinds[1], family, b)
                found = igr.kl_divergence(q, p)
                tolerance = 4 * torch.finfo(dtype).eps
                assert found.dtype == torch.promote_types(dtype, torch.float32)
                assert float(found) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("ruled_out", [0, 2])
@pytest.mark.parametrize("both", [False, True])
def test_kl_of_categories_has_the_gradient_of_those_that_are_left(
    ruled_out: int, both: bool
) -> None:
    q, p = torch.tensor([0.2, 0.3, 0.5], dtype=D), torch.tensor([0.5, 0.25, 0.25], dtype=D)
    q[ruled_out] = 0.0
    p[ruled_out] *= not both
    kept = [k for k in range(3) if k != ruled_out]
    inputs = [q.requires_grad_(), p.requires_grad_()]
    grads = torch.autograd.grad(igr.kl_divergence(*(Categorical(probs=x) for x in inputs)), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    a, b = ((x / x.sum())[kept] for x in inputs)
    expected = torch.autograd.grad((a * (a.log() - b.log())).sum(), inputs)
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad[kept], wanted[kept])


def test_plug_in_kl_of_a_prior_that_rules_a_category_out() -> None:
    probs = torch.tensor([0.5, 0.5, 0.0])
    for q in (
        igr.SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5),
        igr.GumbelSoftmax(0.5, logits=torch.zeros(3)),
        igr.PlanarIGR(torch.zeros(2), torch.ones(2), 0.5, []),
    ):
        assert igr.plug_in_kl(q, OneHotCategorical(probs=probs)) == torch.inf
    within = igr.GumbelSoftmax(0.5, probs=probs)
    torch.testing.assert_close(
        igr.plug_in_kl(within, Categorical(probs=probs)), torch.tensor(0.0), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_of_independent_variables_every_divergence_is_the_sum(dims: int) -> None:
    """What Dreamer and its like write: their one-hot variables are wrapped in Independent."""
    torch.manual_seed(0)
    gumbel = igr.GumbelSoftmax(0.5, logits=torch.randn(2, 3, 5))
    gaussian = igr.SoftmaxIGR(torch.randn(2, 3, 4), torch.ones(4), 0.5)
    onehot = torch.distributions.OneHotCategorical(logits=torch.randn(2, 3, 5))
    number = torch.distributions.Categorical(torch.ones(2, 3, 5))
    for q in (gumbel, gaussian, onehot, gumbel.discrete()):
        for p in (gumbel, gaussian, onehot, number):
            found, terms = (
                (torch.manual_seed(1), igr.kl_divergence(*pair, num_samples=2))[1]
                for pair in ((Independent(q, dims), Independent(p, dims)), (q, p))
            )
            torch.testing.assert_close(found, terms.sum((-2, -1)[-dims:]) if dims else terms)
    found = igr.plug_in_kl(Independent(gaussian, dims), Independent(number, dims))
    terms = igr.plug_in_kl(gaussian, number)
    torch.testing.assert_close(found, terms.sum((-2, -1)[-dims:]) if dims else terms)


@pytest.mark.parametrize("num_samples", [1, 3, 5])
def test_monte_carlo_over_the_batch_of_either(num_samples: int) -> None:
    """A p with a batch that q lacks: one divergence for each, where samples met the batch of p."""
    q = igr.GumbelSoftmax(0.5, logits=torch.zeros(4))
    p = igr.GumbelSoftmax(0.5, logits=torch.randn(5, 4))
    found = igr.monte_carlo_kl(q, p, num_samples)
    assert found.shape == (5,)
    torch.manual_seed(0)
    found = igr.monte_carlo_kl(q, p, 20_000)
    torch.manual_seed(0)
    log_z, log_q = q.expand((5,)).rsample_log_and_log_prob((20_000,))
    expected = torch.stack([log_q[:, i] - p.log_prob(log_value=log_z)[:, i] for i in range(5)])
    torch.testing.assert_close(found, expected.mean(-1), rtol=1e-3, atol=1e-4)
    a = igr.SoftmaxIGR(torch.zeros(3), torch.ones(3), 0.5)
    b = igr.SoftmaxIGR(torch.randn(5, 3), torch.ones(3), 0.5)
    assert igr.monte_carlo_kl(a, b, num_samples).shape == (5,)
    with pytest.raises(ValueError, match="q, p: expected a shape that broadcasts"):
        igr.monte_carlo_kl(q.expand((2,)), p)


@pytest.mark.parametrize(
    "family", [igr.SoftmaxIGR, igr.StickBreakingIGR, igr.SharpStickBreakingIGR]
)
def test_divergences_compile_at_their_first_call(family: Any) -> None:
    """Torch's table of rules, which no compiler traces the making of, is filled when ours are imported."""
    torch._dynamo.reset()
    loc = torch.randn(3, 4)
    prior = igr.GumbelSoftmax(0.5, logits=torch.zeros(5))

    def divergences(loc: torch.Tensor) -> list[torch.Tensor]:
        q, p = (family(x, torch.ones_like(x), 0.5) for x in (loc, torch.zeros_like(loc)))
        return [kl_divergence(q, p), igr.kl_divergence(q, p), igr.kl_divergence(q, prior)]

    expected = divergences(loc)
    torch.distributions.kl._KL_MEMOIZE.clear()
    importlib.reload(importlib.import_module("igr._public"))
    found = torch.compile(divergences, backend="eager", fullgraph=True)(loc)
    torch.testing.assert_close(found[:2], expected[:2])
    assert found[2].shape == (3,)
