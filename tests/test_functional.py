"""The maps as functions: against loops and automatic differentiation, and as samplers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import igr
from cases import planar_flow, stick
from igr import functional as fn

D = torch.float64


def jacobian_log_det(f: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """log |det| of the Jacobian of f at y ``(K-1,)`` by automatic differentiation, and its condition number."""
    jacobian = torch.autograd.functional.jacobian(f, y)
    return torch.linalg.slogdet(jacobian)[1], torch.linalg.cond(jacobian)


# The softmax++


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("delta", [0.1, 1.0, 10.0])
def test_softmax_plus_plus_is_its_formula(temperature: float, delta: float) -> None:
    y = torch.randn(50, 6, dtype=D)
    weights = torch.exp(y / temperature)
    total = weights.sum(-1, keepdim=True) + delta
    expected = torch.cat([weights / total, delta / total], -1)
    torch.testing.assert_close(fn.softmax_plus_plus(y, temperature, delta), expected)
    torch.testing.assert_close(fn.log_softmax_plus_plus(y, temperature, delta), expected.log())


@pytest.mark.parametrize("num_categories", [2, 3, 10, 50])
@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("delta", [0.1, 1.0, 10.0])
def test_softmax_plus_plus_log_det_is_that_of_autodiff(
    num_categories: int, temperature: float, delta: float
) -> None:
    """To 1e-10, plus what a determinant by elimination loses to the condition of the Jacobian."""
    transform = igr.SoftmaxPlusPlus(temperature, delta)
    for spread in (temperature, 1.0):
        y = spread * torch.randn(num_categories - 1, dtype=D)
        log_z = fn.log_softmax_plus_plus(y, temperature, delta)
        closed = log_z.sum() - (num_categories - 1) * math.log(temperature)
        value, condition = jacobian_log_det(
            lambda v: fn.softmax_plus_plus(v, temperature, delta)[:-1], y
        )
        if spread == 1.0 and condition > 1e12:
            continue  # autodiff's own Jacobian is singular to working precision
        tolerance = 1e-10 + torch.finfo(D).eps * float(condition)
        assert abs(closed - value) < tolerance
        assert abs(transform.log_abs_det_jacobian(y, transform(y)) - value) < tolerance


def test_softmax_plus_plus_log_det_is_right_where_autodiff_underflows() -> None:
    """At temperature 0.01, in 60 digits: the derivative of (15) by the quotient rule, and its determinant."""
    mpmath = pytest.importorskip("mpmath")
    y = torch.tensor([0.9, -1.7, 0.4], dtype=D)
    with mpmath.workdps(400):
        t = mpmath.mpf(0.01)
        e = [mpmath.exp(mpmath.mpf(float(v)) / t) for v in y]
        s = sum(e) + 1
        jacobian = mpmath.matrix(3, 3)
        for i in range(3):
            for j in range(3):
                jacobian[i, j] = ((e[i] * s if i == j else 0) - e[i] * e[j]) / (s * s * t)
        expected = float(mpmath.log(mpmath.det(jacobian)))
    transform = igr.Compose([igr.SoftmaxPlusPlus(0.01)])
    assert abs(float(transform.forward_and_log_det(y)[1]) - expected) < 1e-10 * abs(expected)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 2.0])
def test_softmax_plus_plus_inverse(temperature: float) -> None:
    y = torch.randn(50, 6, dtype=D)
    log_z = fn.log_softmax_plus_plus(y, temperature, 0.3)
    torch.testing.assert_close(fn.log_softmax_plus_plus_inverse(log_z, temperature, 0.3), y)


def test_softmax_plus_plus_keeps_to_allowed() -> None:
    y = torch.randn(50, 3, dtype=D)
    allowed = torch.tensor([True, False, True, False])
    z = fn.softmax_plus_plus(y, 0.5, allowed=allowed)
    expected = torch.zeros(50, 4, dtype=D)
    expected[:, [0, 2]] = torch.softmax(y[:, [0, 2]] / 0.5, -1)
    torch.testing.assert_close(z, expected)


# Breaking the stick


@pytest.mark.parametrize("num_categories", [2, 3, 10])
def test_stick_breaking_is_its_loop(num_categories: int) -> None:
    y = torch.randn(50, num_categories - 1, dtype=D)
    torch.testing.assert_close(fn.log_stick_breaking(y).exp(), stick(y))


@pytest.mark.parametrize("num_categories", [2, 3, 10])
def test_stick_breaking_log_det_is_that_of_autodiff(num_categories: int) -> None:
    y = torch.randn(num_categories - 1, dtype=D)
    value, _ = jacobian_log_det(lambda v: stick(v)[:-1], y)
    torch.testing.assert_close(fn.log_stick_breaking(y).sum(), value, rtol=1e-10, atol=1e-10)


def test_stick_breaking_inverse_is_accurate_in_the_tails() -> None:
    y = torch.tensor([[-30.0, 25.0, -3.0, 40.0], [200.0, -300.0, 100.0, -50.0]], dtype=D)
    torch.testing.assert_close(fn.log_stick_breaking_inverse(fn.log_stick_breaking(y)), y)


@pytest.mark.parametrize(("dtype", "num_categories"), [(D, 10), (D, 2000), (torch.float32, 2000)])
def test_what_is_left_of_the_stick_gives_its_pieces(
    dtype: torch.dtype, num_categories: int
) -> None:
    """The samplers' quicker form, its samples and gradients, to the rounding of the largest number in it."""
    spread = 20.0 if num_categories == 10 else 2.0  # the long stick's last pieces underflow
    y = (spread * torch.randn(20, num_categories - 1, dtype=D)).to(dtype).requires_grad_()
    log_w = fn.log_stick_breaking(y.double())
    left = fn.log_stick_left(y)
    rounding = 4 * torch.finfo(dtype).eps * float(log_w.detach().abs().max())
    torch.testing.assert_close(y + left, log_w[:, :-1], rtol=0.0, atol=rounding, check_dtype=False)
    torch.testing.assert_close(
        left[:, -1], log_w[:, -1], rtol=0.0, atol=rounding, check_dtype=False
    )

    weights = torch.randn(20, num_categories, dtype=D)
    expected = fn.softmax_plus_plus(log_w[:, :-1].exp(), 0.5)
    zero, one = torch.zeros_like(y), torch.ones_like(y)
    z = fn.stick_breaking_igr_softmax(y, zero + 1e-30, 0.5, noise=one)
    # What has a weight to speak of comes early in the stick, where the numbers are small.
    few = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(z, expected, rtol=few, atol=few, check_dtype=False)
    (grad,) = torch.autograd.grad((z * weights.to(dtype)).sum(), y)
    (right,) = torch.autograd.grad((expected * weights).sum(), y)
    torch.testing.assert_close(grad, right, rtol=few, atol=few, check_dtype=False)


def test_a_break_that_takes_all_is_no_difference_of_large_numbers() -> None:
    y = torch.tensor([3.0, 1e8, -1.0])
    expected = fn.softmax_plus_plus(stick(y.to(D))[:-1], 0.5)
    z = fn.stick_breaking_softmax_plus_plus(y, 0.5)
    torch.testing.assert_close(z, expected, check_dtype=False)


@pytest.mark.parametrize(
    "allowed",
    [[True, False, True, True], [True, False, True, False], [False, True, False, False]],
)
def test_stick_breaking_keeps_to_allowed(allowed: list[bool]) -> None:
    y = torch.randn(50, 3, dtype=D)
    mask = torch.tensor(allowed)
    index = mask.nonzero().squeeze(-1)
    expected = torch.zeros(50, 4, dtype=D)
    expected[:, index] = stick(y[:, index[:-1]]) if len(index) > 1 else 1.0
    torch.testing.assert_close(fn.log_stick_breaking(y, allowed=mask).exp(), expected)


# Sharpening


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 2.0])
def test_sharpen_is_its_formula_and_inverts(temperature: float) -> None:
    w = torch.softmax(torch.randn(50, 5, dtype=D), -1)
    power = w ** (1 / temperature)
    expected = power / power.sum(-1, keepdim=True)
    log_z = fn.log_sharpen(w.log(), temperature)
    torch.testing.assert_close(log_z.exp(), expected)
    torch.testing.assert_close(fn.log_sharpen_inverse(log_z, temperature).exp(), w)


@pytest.mark.parametrize("num_categories", [2, 3, 10])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.0])
def test_sharpen_log_det_is_that_of_autodiff(num_categories: int, temperature: float) -> None:
    w = torch.softmax(0.3 * torch.randn(num_categories, dtype=D), -1)
    log_z = fn.log_sharpen(w.log(), temperature)
    closed = log_z.sum() - w.log().sum() - (num_categories - 1) * math.log(temperature)

    def sharpen(v: Tensor) -> Tensor:
        p = torch.cat([v, 1 - v.sum(-1, keepdim=True)]) ** (1 / temperature)
        return (p / p.sum())[:-1]

    value, condition = jacobian_log_det(sharpen, w[:-1])
    assert abs(closed - value) < 1e-10 + 1e-15 * float(condition)


# Interpolation


def test_vertex_interpolation_is_its_formula_and_inverts() -> None:
    t = 0.3
    w = torch.softmax(2 * torch.randn(500, 4, dtype=D), -1)
    vertex = torch.zeros(500, 4, dtype=D)
    for i in range(500):
        above = (w[i, :-1] > 0.5).nonzero().flatten().tolist()
        vertex[i, above[0] if above else -1] = 1.0
    assert set(vertex.argmax(-1).tolist()) == {0, 1, 2, 3}
    log_z = fn.log_vertex_interpolation(w.log(), t)
    torch.testing.assert_close(log_z.exp(), t * w + (1 - t) * vertex)
    torch.testing.assert_close(fn.log_vertex_interpolation_inverse(log_z, t).exp(), w)
    half = torch.tensor([0.5, 0.25, 0.25], dtype=D)
    assert fn.nearest_vertex(half.log()).tolist() == [False, False, True]


def test_vertex_interpolation_log_det_is_that_of_autodiff() -> None:
    w = torch.tensor([0.6, 0.1, 0.1], dtype=D)
    value, _ = jacobian_log_det(igr.VertexInterpolation(0.3), w)
    x, y = torch.zeros(1, 4, dtype=D), torch.zeros(1, 4, dtype=D)
    assert abs(float(igr.VertexInterpolation(0.3).log_det(x, y)) - float(value)) < 1e-12


# Planar flows


@pytest.mark.parametrize("num_coordinates", [1, 2, 9])
def test_planar_log_det_is_that_of_autodiff(num_coordinates: int) -> None:
    for _ in range(20):
        y, u, w = 2 * torch.randn(3, num_coordinates, dtype=D)
        b = torch.randn((), dtype=D)
        value, _ = jacobian_log_det(lambda v, u=u, w=w, b=b: fn.planar(v, u, w, b)[0], y)
        torch.testing.assert_close(fn.planar(y, u, w, b)[1], value, rtol=1e-8, atol=1e-8)


def test_planar_is_invertible_for_any_parameters() -> None:
    """w'u^ > -1 whatever u and w, so that the flow increases along w; u at right angles to w is left alone."""
    u, w = 10 * torch.randn(2, 500, 4, dtype=D)
    y = 3 * torch.randn(500, 4, dtype=D)
    b = torch.randn(500, dtype=D)
    x, log_det = fn.planar(y, u, w, b)
    assert log_det.isfinite().all()
    torch.testing.assert_close(fn.planar(fn.planar_inverse(x, u, w, b), u, w, b)[0], x)
    direction = fn.planar(y, u, w, b)[0] - y
    across = u - (u * w).sum(-1, keepdim=True) * w / (w * w).sum(-1, keepdim=True)
    h = torch.tanh((w * y).sum(-1, keepdim=True) + b.unsqueeze(-1))
    moved = direction - (direction * w).sum(-1, keepdim=True) * w / (w * w).sum(-1, keepdim=True)
    torch.testing.assert_close(moved, across * h, rtol=1e-8, atol=1e-8)


def test_planar_inverse_has_the_gradient_of_the_inverse_function() -> None:
    u, w, x = (torch.randn(3, 4, dtype=D, requires_grad=True) for _ in range(3))
    b = torch.randn(3, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(fn.planar_inverse, (x, u, w, b), rtol=1e-4, atol=1e-6)


def test_planar_with_w_of_zero_is_a_shift() -> None:
    y, u = torch.randn(2, 5, dtype=D)
    w, b = torch.zeros(5, dtype=D, requires_grad=True), torch.tensor(0.7, dtype=D)
    x, log_det = fn.planar(y, u, w, b)
    torch.testing.assert_close(x, y + u * torch.tanh(b))
    torch.testing.assert_close(log_det, torch.zeros((), dtype=D), rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(x.sum() + log_det, w)
    assert grad.isfinite().all()


# Samplers in functional form

Sampler = Callable[..., Tensor]


def _planar(loc: Tensor, scale: Tensor, *args: object, **kwargs: object) -> Tensor:
    flow = igr.Compose(planar_flow(4, D))
    return fn.planar_igr_softmax(
        loc, scale, lambda y: flow.forward(y.double()).to(y), *args, **kwargs
    )  # type: ignore[arg-type]


SAMPLERS: dict[str, Sampler] = {
    "igr": fn.igr_softmax,
    "stick_breaking": fn.stick_breaking_igr_softmax,
    "sharp": fn.sharp_stick_breaking_igr_softmax,
    "planar": _planar,
    "gumbel": lambda loc, scale, *args, **kwargs: fn.gumbel_softmax(
        torch.cat([loc, loc.mul(0.0).select(kwargs.get("dim", -1), 0).unsqueeze(kwargs.get("dim", -1))],
                  kwargs.get("dim", -1)) + 0 * scale.sum(), *args, **kwargs
    ),
}  # fmt: skip

each_sampler = pytest.mark.parametrize("name", SAMPLERS)


def _noise(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "gumbel":
        return fn.gumbel_noise(torch.zeros(*shape[:-1], shape[-1] + 1, dtype=D))
    return torch.randn(shape, dtype=D)


@each_sampler
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_sampler_agrees_with_the_distribution(name: str, temperature: float) -> None:
    loc, scale = torch.randn(7, 4, dtype=D), torch.rand(7, 4, dtype=D) + 0.1
    noise = _noise(name, (7, 4))
    z = SAMPLERS[name](loc, scale, temperature, noise=noise)
    if name == "gumbel":
        logits = torch.cat([loc, torch.zeros(7, 1, dtype=D)], -1)
        expected = torch.softmax((logits + noise) / temperature, -1)
    else:
        make = {
            "igr": igr.SoftmaxIGR,
            "stick_breaking": igr.StickBreakingIGR,
            "sharp": igr.SharpStickBreakingIGR,
            "planar": lambda m, s, t: igr.PlanarIGR(m, s, t, planar_flow(4, D)),
        }[name]
        expected = make(loc, scale, temperature).transform(loc + scale * noise)
    torch.testing.assert_close(z, expected)


@each_sampler
def test_sampler_hard_is_straight_through(name: str) -> None:
    loc = torch.randn(50, 4, dtype=D, requires_grad=True)
    scale, noise = torch.rand(50, 4, dtype=D) + 0.1, _noise(name, (50, 4))
    weights = torch.randn(50, 5, dtype=D)
    soft = SAMPLERS[name](loc, scale, 0.3, noise=noise)
    hard = SAMPLERS[name](loc, scale, 0.3, True, noise=noise)
    assert bool(((hard == 0) | (hard == 1)).all())
    assert bool((hard.sum(-1) == 1).all())
    limit = SAMPLERS[name](loc, scale, 1e-6, noise=noise)
    assert torch.equal(hard.argmax(-1), limit.argmax(-1))
    (a,) = torch.autograd.grad((weights * soft).sum(), loc)
    (b,) = torch.autograd.grad((weights * hard).sum(), loc)
    torch.testing.assert_close(a, b)


@each_sampler
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -2, -3])
def test_sampler_works_along_any_dimension(name: str, hard: bool, dim: int) -> None:
    loc, scale, noise = (
        torch.randn(2, 3, 4, dtype=D),
        torch.ones(2, 3, 4, dtype=D),
        _noise(name, (2, 3, 4)),
    )
    expected = SAMPLERS[name](loc, scale, 0.5, hard, noise=noise)
    moved = SAMPLERS[name](
        loc.movedim(-1, dim),
        scale.movedim(-1, dim),
        0.5,
        hard,
        dim=dim,
        noise=noise.movedim(-1, dim),
    )
    torch.testing.assert_close(moved.movedim(dim, -1), expected)


@each_sampler
def test_sampler_takes_a_generator_and_is_deterministic(name: str) -> None:
    loc, scale = torch.randn(7, 4), torch.ones(7, 4)

    def draw(seed: int) -> Tensor:
        return SAMPLERS[name](loc, scale, 0.5, generator=torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state), "the global generator must be left alone"
    torch.manual_seed(3)
    a = SAMPLERS[name](loc, scale, 0.5)
    torch.manual_seed(3)
    assert torch.equal(SAMPLERS[name](loc, scale, 0.5), a)


@each_sampler
def test_sampler_takes_a_temperature_for_each_element(name: str) -> None:
    loc, scale, noise = (
        torch.randn(3, 2, 4, dtype=D),
        torch.ones(3, 2, 4, dtype=D),
        _noise(name, (3, 2, 4)),
    )
    t = torch.tensor([0.1, 0.5, 2.0], dtype=D)
    z = SAMPLERS[name](loc, scale, t.view(3, 1), noise=noise)
    for i in range(3):
        torch.testing.assert_close(
            z[i], SAMPLERS[name](loc[i], scale[i], float(t[i]), noise=noise[i])
        )


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sampler_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    loc = torch.randn(20, 4).to(dtype).requires_grad_()
    z = SAMPLERS[name](loc, torch.ones(20, 4, dtype=dtype), 0.1)
    assert z.dtype == dtype
    assert bool(igr.constraints.simplex.check(z).all())
    z.square().sum().backward()
    assert loc.grad is not None
    assert loc.grad.dtype == dtype
    assert loc.grad.isfinite().all()


MASKED: dict[str, Sampler] = {
    "igr": fn.igr_softmax,
    "sharp": fn.sharp_stick_breaking_igr_softmax,
    "gumbel": lambda loc, scale, *args, **kwargs: fn.gumbel_softmax(
        torch.nn.functional.pad(loc, (0, 1)), *args, **kwargs
    ),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_sampler_keeps_to_allowed(name: str, hard: bool, last: bool) -> None:
    loc = torch.randn(200, 4, requires_grad=True)
    t = torch.tensor(0.4, requires_grad=True)
    allowed = torch.tensor([True, False, True, False, last])
    z = MASKED[name](loc, torch.ones(200, 4), t, hard, allowed=allowed)
    assert bool((z[:, ~allowed] == 0).all())
    assert set(z.argmax(-1).tolist()) == set(allowed.nonzero().flatten().tolist())
    g_loc, g_t = torch.autograd.grad((z * torch.arange(5.0)).sum(), [loc, t])
    assert bool((g_loc[:, ~allowed[:-1]] == 0).all())
    assert g_t.isfinite()
    assert g_t != 0


def test_gumbel_noise_is_gumbel() -> None:
    """Kolmogorov-Smirnov on 20,000 draws; fails by chance 1 in 10,000."""
    import scipy.stats

    x = fn.gumbel_noise(torch.zeros(20_000, dtype=D))
    assert scipy.stats.kstest(x.numpy(), "gumbel_r").pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_noise_is_finite_at_the_ends_of_rand(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = torch.finfo(dtype).eps
    ends = torch.tensor([0.0, eps / 2, 1 - eps / 2], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends.clone())
    noise = fn.gumbel_noise(torch.zeros(3, dtype=dtype))
    assert noise.isfinite().all()
    assert len(set(noise.tolist())) == 3


def test_straight_through_forward_is_exact() -> None:
    hard, relaxed = fn.one_hot_argmax(torch.randn(100, 7)), torch.softmax(torch.randn(100, 7), -1)
    assert torch.equal(fn.straight_through(hard, relaxed), hard)


Z, O = torch.zeros(3), torch.ones(3)
NUMBER = "tau: expected a positive finite number above 1e-16"
BAD_CALLS = [
    (lambda: fn.igr_softmax(Z, O, 0.0), f"{NUMBER}, got 0.0"),
    (lambda: fn.igr_softmax(Z, O, -1), f"{NUMBER}, got -1"),
    (lambda: fn.igr_softmax(Z, O, math.nan), f"{NUMBER}, got nan"),
    (lambda: fn.igr_softmax(Z, O, math.inf), f"{NUMBER}, got inf"),
    (lambda: fn.igr_softmax(Z, O, "0.5"), "tau: expected a positive number or a tensor, got str"),
    (lambda: fn.igr_softmax(Z, O, torch.tensor(-0.5)), "tau: expected positive finite values"),
    (lambda: fn.igr_softmax(Z, O, delta=0.0), "delta: expected a positive finite number"),
    (lambda: fn.igr_softmax(Z, torch.ones(4)), r"broadcast, got loc \(3,\), scale \(4,\)"),
    (lambda: fn.igr_softmax(Z[0], O[0]), r"loc: expected shape \(\*batch, K-1\), got a scalar"),
    (
        lambda: fn.igr_softmax(Z, O, noise=torch.zeros(2)),
        r"noise: expected the shape of loc, \(3,\), got \(2,\)",
    ),
    (lambda: fn.stick_breaking_igr_softmax(Z, O, 0.0), f"{NUMBER}, got 0.0"),
    (lambda: fn.stick_breaking_igr_softmax(Z, O, delta=-1.0), "delta: expected a positive"),
    (lambda: fn.sharp_stick_breaking_igr_softmax(Z, O, 0.0), f"{NUMBER}, got 0.0"),
    (lambda: fn.planar_igr_softmax(Z, O, lambda y: y, 0.0), f"{NUMBER}, got 0.0"),
    (lambda: fn.gumbel_softmax(Z, 0.0), f"{NUMBER}, got 0.0"),
    (lambda: fn.gumbel_softmax(Z, noise=Z[:2]), r"noise: expected the shape of logits, \(3,\)"),
]


@pytest.mark.parametrize("call, message", BAD_CALLS)
def test_errors(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Gradients written out, against those of the plain formulas


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", [1.0, 0.3])
@pytest.mark.parametrize("shape", ["number", "each", "columns"])
def test_quick_sampling_path_is_the_plain_one(dtype: torch.dtype, delta: float, shape: str) -> None:
    """Value and gradients agree with the formula in float64 to the rounding of the dtype."""
    tau = 0.3
    if shape != "number":
        tau = torch.rand(6, 3 if shape == "each" else 1, dtype=dtype) + 0.1
    loc, noise = torch.randn(2, 6, 3, 4, dtype=dtype)
    scale = torch.rand(6, 3, 4, dtype=dtype) + 0.1
    weights = torch.randn(6, 3, 5, dtype=dtype)
    results = []
    for d, plain in ((dtype, False), (D, True)):
        m, s = loc.to(d).requires_grad_(), scale.to(d).requires_grad_()
        time = tau if isinstance(tau, float) else tau.to(d)
        if plain:
            y = m + s * noise.to(d)
            lifted = time if isinstance(time, float) else time.unsqueeze(-1)
            last = torch.full((6, 3, 1), math.log(delta), dtype=d)
            z = torch.softmax(torch.cat([y / lifted, last], -1), -1)
        else:
            z = fn.igr_softmax(m, s, time, delta=delta, noise=noise.to(d))
        results.append((z, *torch.autograd.grad((z * weights.to(d)).sum(), [m, s])))
    eps = torch.finfo(dtype).eps
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.to(D), b, rtol=200 * eps, atol=200 * eps)


def test_quick_sampling_path_has_second_derivatives_and_a_gradient_of_the_noise() -> None:
    loc, noise = torch.randn(2, 3, 4, dtype=D, requires_grad=True).unbind()
    scale = torch.rand(3, 4, dtype=D) + 0.5

    def sample(loc: Tensor, scale: Tensor) -> Tensor:
        return fn.igr_softmax(loc, scale, 0.7, noise=noise.detach())

    inputs = (loc.detach().requires_grad_(), scale.requires_grad_())
    assert torch.autograd.gradgradcheck(sample, inputs)
    (grad,) = torch.autograd.grad(
        fn.igr_softmax(loc, scale, 0.7, noise=noise).square().sum(), noise
    )
    (expected,) = torch.autograd.grad(
        fn.softmax_plus_plus(loc + scale * noise, 0.7).square().sum(), noise
    )
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("other", ["numbers", "tensors", "smaller"])
def test_gaussian_kl_is_that_of_torch(other: str) -> None:
    from torch.distributions import Normal, kl_divergence

    def gradients(f: Callable[..., Tensor]) -> list[Tensor]:
        torch.manual_seed(0)
        loc, scale = torch.randn(5, 4, dtype=D), torch.rand(5, 4, dtype=D) + 0.5
        inputs = [loc, scale]
        if other != "numbers":
            shape = (5, 4) if other == "tensors" else (4,)
            inputs += [torch.randn(shape, dtype=D), torch.rand(shape, dtype=D) + 0.5]
        for x in inputs:
            x.requires_grad_()
        kl = f(*inputs) if other != "numbers" else f(*inputs, 0.25, 1.5)
        first = torch.autograd.grad((kl * torch.arange(1.0, 6.0)).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        return [kl, *first, *second]

    ours = gradients(fn.gaussian_kl)
    torchs = gradients(lambda m, s, m0, s0: kl_divergence(Normal(m, s), Normal(m0, s0)).sum(-1))
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize(
    "relax",
    [fn.softmax_plus_plus, fn.stick_breaking_softmax_plus_plus, fn.sharp_stick_breaking],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_one_category_has_all(relax: Callable[..., Tensor], dim: int, compiled: bool) -> None:
    if compiled:
        relax = torch.compile(relax, backend="eager", fullgraph=True)
    y = torch.zeros(0, 3) if dim == 0 else torch.zeros(3, 0)
    shape = (1, 3) if dim == 0 else (3, 1)
    assert torch.equal(relax(y, 0.5, dim=dim), torch.ones(shape))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    "sample",
    [fn.igr_softmax, fn.stick_breaking_igr_softmax, fn.sharp_stick_breaking_igr_softmax],
)
def test_a_sampler_of_one_category_has_all(sample: Callable[..., Tensor], hard: bool) -> None:
    nothing = torch.zeros(3, 0)
    assert torch.equal(sample(nothing, nothing, 0.5, hard), torch.ones(3, 1))
