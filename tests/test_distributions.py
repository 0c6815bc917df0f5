"""What every form must satisfy as a distribution, over the table of cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Categorical, Independent, MixtureSameFamily

import igr
from cases import Case, over, parameters

TEMPERATURE = 0.7

# Chance that a goodness-of-fit test fails with correct code, were it seeded anew: 1 in 10,000 each.
FAILURE_RATE = 1e-4


# Shapes


@over()
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (4,), (4, 2)])
def test_shapes(case: Case, batch: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    q = case.some(5, batch)
    assert (q.batch_shape, q.event_shape, q.num_categories) == (batch, (5,), 5)
    z, log_prob = q.rsample_and_log_prob(sample_shape)
    log_z, log_prob_2 = q.rsample_log_and_log_prob(sample_shape)
    for x in (
        q.sample(sample_shape),
        q.rsample(sample_shape),
        z,
        q.rsample_log(sample_shape),
        log_z,
    ):
        assert x.shape == (*sample_shape, *batch, 5)
    for x in (log_prob, log_prob_2, q.log_prob(z), q.log_prob(log_value=log_z)):
        assert x.shape == (*sample_shape, *batch)
    assert q.hard(z).shape == q.straight_through(sample_shape).shape == z.shape
    assert not q.sample(sample_shape).requires_grad


@over()
def test_two_categories(case: Case) -> None:
    if case.num_allowed(2) < 2:
        pytest.skip("one category is left")
    z, log_prob = case.some(2).rsample_and_log_prob((100,))
    torch.testing.assert_close(z.sum(-1), torch.ones(100, dtype=z.dtype))
    assert log_prob.isfinite().all()


# Support


@over()
@pytest.mark.parametrize("num_categories", [3, 10])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_samples_lie_in_the_support(case: Case, num_categories: int, temperature: float) -> None:
    q = case.some(num_categories, temperature=temperature)
    z = q.sample((500,))
    assert bool(q.support.check(z).all())
    torch.testing.assert_close(
        q.rsample_log((500,)).logsumexp(-1), z.new_zeros(500), rtol=0, atol=1e-12
    )
    if case.allowed is not None:
        mask = case.allowed(num_categories)
        assert bool((z[:, ~mask] == 0).all())
    if temperature == 1.0:
        assert bool((z[:, mask if case.allowed is not None else slice(None)] > 0).all())


@over()
def test_log_samples_are_the_logarithms_of_samples(case: Case) -> None:
    q = case.some(6, (2,))
    torch.manual_seed(1)
    z = q.rsample((50,))
    torch.manual_seed(1)
    torch.testing.assert_close(q.rsample_log((50,)).exp(), z)


@over()
def test_own_density_is_log_prob(case: Case) -> None:
    q = case.some(6, (2,))
    z, log_prob = q.rsample_and_log_prob((200,))
    torch.testing.assert_close(q.log_prob(z), log_prob, rtol=1e-7, atol=1e-7)
    log_z, log_prob = q.rsample_log_and_log_prob((200,))
    torch.testing.assert_close(q.log_prob(log_value=log_z), log_prob, rtol=1e-7, atol=1e-7)


# Density: integrates to one, and is that of the samples.
#
# Over the allowed categories, with t_k = log z_k - log z_last, dz = prod_k z_k dt over all of them. Where the density
# reaches far, t = 4 sinh(u) with u on an even grid.


def _coordinates(case: Case) -> tuple[float, float, bool]:
    """Range of u on each axis, and whether t is 4 sinh(u) or u itself."""
    if case.name == "stick_breaking":
        return 0.0, 1 / TEMPERATURE, False  # t_k = w_k / temperature
    return -4.0, 4.0, True


def _to_t(u: Tensor, far: bool) -> tuple[Tensor, Tensor]:
    return (4 * torch.sinh(u), 4 * torch.cosh(u)) if far else (u, torch.ones_like(u))


def _density(case: Case, q: igr.Relaxation, u: Tensor, far: bool) -> Tensor:
    """Density of u ``(*, n-1)``, n categories being allowed."""
    t, slope = _to_t(u, far)
    log_z = torch.log_softmax(torch.nn.functional.pad(t, (0, 1)), -1)
    volume = log_z.sum(-1) + slope.log().sum(-1)
    if case.allowed is not None:
        full = log_z.new_full((*log_z.shape[:-1], q.num_categories), -torch.inf)
        full[..., case.allowed(q.num_categories)] = log_z
        log_z = full
    return (q.log_prob(log_value=log_z) + volume).exp()


def _num_categories(case: Case, num_allowed: int) -> int:
    return num_allowed + (case.allowed is not None)


@over()
def test_density_integrates_to_one_over_two_categories(case: Case) -> None:
    q = case.some(_num_categories(case, 2), temperature=TEMPERATURE)
    low, high, far = _coordinates(case)

    def f(u: float) -> float:
        return float(_density(case, q, torch.tensor([u], dtype=torch.float64), far))

    # The jumps and kinks of the forms that have them are left to the adaptive rule.
    middle = np.linspace(low, high, 9)[1:-1]
    epsabs = 1e-9 if case.smooth else 1e-6
    total, error = scipy.integrate.quad(f, low, high, points=middle, limit=400, epsabs=epsabs)
    assert error < 100 * epsabs
    assert abs(total - 1) < 10 * epsabs + error


def _grid(case: Case, num_points: int) -> tuple[igr.Relaxation, Tensor, float]:
    """Density at the centres of the cells of a square grid, and the volume of a cell."""
    q = case.some(_num_categories(case, 3), temperature=TEMPERATURE)
    low, high, far = _coordinates(case)
    step = (high - low) / num_points
    axis = low + step * (torch.arange(num_points, dtype=torch.float64) + 0.5)
    u = torch.cartesian_prod(axis, axis)
    return q, _density(case, q, u, far).view(num_points, num_points), step * step


def _chi_square(case: Case, q: igr.Relaxation, density: Tensor, volume: float) -> float:
    """p-value of counts of 20,000 samples of q in 64 x 64 cells against the integral of a density over each."""
    coarse, num_samples = 64, 20_000
    m = len(density) // coarse
    probs = density.view(coarse, m, coarse, m).sum((1, 3)).flatten() * volume
    low, high, far = _coordinates(case)
    log_z = q.rsample_log((num_samples,))
    if case.allowed is not None:
        log_z = log_z[:, case.allowed(q.num_categories)]
    t = log_z[:, :-1] - log_z[:, -1:]
    u = torch.asinh(t / 4) if far else t
    cell = ((u - low) / (high - low) * coarse).floor().clamp(0, coarse - 1).long()
    counts = torch.bincount(cell[:, 0] * coarse + cell[:, 1], minlength=coarse * coarse).numpy()
    expected = (probs / probs.sum() * num_samples).numpy()
    rare = expected < 20
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert len(expected) > 20
    return float(scipy.stats.chisquare(observed, expected).pvalue)


@over()
def test_density_over_three_categories(case: Case) -> None:
    """The density integrates to one, and samples fall where it says (chi-square)."""
    q, density, volume = _grid(case, 512)
    # For smooth densities the midpoint rule converges faster than any power; a kink costs the second power of the
    # step, 0.07 where the density is, and a jump the first power over the length of the jump.
    tolerance = 1e-5 if case.smooth else 5e-3
    assert abs(float(density.sum()) * volume - 1) < tolerance
    assert _chi_square(case, q, density, volume) > FAILURE_RATE


def test_goodness_of_fit_has_power() -> None:
    """The chi-square above notices a scale, a loc or a temperature that is off by a tenth."""
    case = Case("softmax", igr.SoftmaxIGR)
    _, density, volume = _grid(case, 512)
    loc, scale = parameters(3)
    for other in (
        igr.SoftmaxIGR(loc, 1.1 * scale, TEMPERATURE),
        igr.SoftmaxIGR(loc + 0.1, scale, TEMPERATURE),
        igr.SoftmaxIGR(loc, scale, 1.1 * TEMPERATURE),
    ):
        assert _chi_square(case, other, density, volume) < FAILURE_RATE


@over()
def test_mean_score_is_zero(case: Case) -> None:
    """At K = 10, where no grid reaches: the gradient of log_prob over samples has mean zero, within 5 standard errors.

    For each of loc, scale and temperature; by chance 1 in 1.7 million for each of at most 19 numbers.
    """
    n, num_categories = 4000, 10
    loc, scale = parameters(num_categories)
    with torch.no_grad():
        log_z = case.build(loc, scale, TEMPERATURE).rsample_log((n,))
    loc, scale = (
        loc.expand(n, -1).clone().requires_grad_(),
        scale.expand(n, -1).clone().requires_grad_(),
    )
    inputs = [loc, scale]
    temperature: float | Tensor = TEMPERATURE
    if (
        case.name != "vertex"
    ):  # there the support's boundary, where there is density, moves with the temperature
        temperature = torch.full((n,), TEMPERATURE, dtype=torch.float64, requires_grad=True)
        inputs.append(temperature)
    q = case.build(loc, scale, temperature)
    for g in torch.autograd.grad(q.log_prob(log_value=log_z).sum(), inputs):
        g = g.reshape(n, -1)
        error = g.std(0) / math.sqrt(n)
        moved = error > 0
        assert moved.any()
        assert bool((g.mean(0)[moved].abs() < 5 * error[moved]).all())


# Points without a density


@over()
def test_exact_zero_has_no_density_and_no_nan_gradient(case: Case) -> None:
    num_categories = 4
    loc, scale = (x.requires_grad_() for x in parameters(num_categories))
    t = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    q = case.build(loc, scale, t)
    inside = case.some(num_categories).sample()
    k = (
        int(inside.argmin())
        if case.allowed is None
        else int(case.allowed(num_categories).nonzero()[0])
    )
    z = inside.clone()
    z[k] = 0.0
    z = torch.stack([z / z.sum(), inside]).requires_grad_()
    log_prob = q.log_prob(z)
    assert log_prob[0] == -torch.inf
    assert log_prob[1].isfinite()
    grads = torch.autograd.grad(log_prob.sum(), [loc, scale, t, z], allow_unused=True)
    for g in grads:
        assert g is None or bool(g.isfinite().all())
    with torch.no_grad():
        assert q.log_prob(log_value=z.log())[0] == -torch.inf


@over(lambda c: not c.fills_simplex)
def test_point_outside_the_image_has_no_density_and_no_nan_gradient(case: Case) -> None:
    loc, scale = (x.requires_grad_() for x in parameters(4))
    t = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    points = {
        # (18) needs z_k > z_K, and log(z_k / z_K) to add up to less than 1 / temperature.
        "stick_breaking": [[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01]],
        # (17): each z_k below temperature / 2 or above 1 - temperature / 2, all but the vertex up to temperature.
        "vertex": [[0.4, 0.2, 0.2, 0.2], [0.3, 0.3, 0.3, 0.1]],
    }
    z = torch.tensor(points[case.name], dtype=torch.float64, requires_grad=True)
    log_prob = case.build(loc, scale, t).log_prob(z)
    assert bool((log_prob == -torch.inf).all())
    for g in torch.autograd.grad(log_prob.sum(), [loc, scale, t, z], allow_unused=True):
        assert g is None or bool(g.isfinite().all())


@over(lambda c: c.allowed is not None)
def test_weight_on_a_category_that_is_not_allowed_has_no_density(case: Case) -> None:
    q = case.some(4)
    z = torch.full((4,), 0.25, dtype=torch.float64)
    assert q.log_prob(z) == -torch.inf


# Gradients


def _seeded(case: Case, what: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def f(loc: Tensor, scale: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(3)
        q = case.build(loc, scale, t)
        out = getattr(q, what)((3,))
        return out if isinstance(out, Tensor) else out[1]

    return f


def test_every_form_has_its_temperature() -> None:
    loc, scale, t = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.5, 0.7])
    flow = igr.Planar(torch.ones(3), torch.ones(3), torch.tensor(0.0))
    for q in (
        igr.SoftmaxIGR(loc, scale, t),
        igr.StickBreakingIGR(loc, scale, t),
        igr.SharpStickBreakingIGR(loc, scale, t),
        igr.PlanarIGR(loc, scale, t, flow),
        igr.GumbelSoftmax(t, logits=loc),
        igr.IGR(loc, scale, igr.SoftmaxPlusPlus(t)),
    ):
        assert q.expand((4, 2)).temperature is t
    closed = igr.Compose([igr.StickBreaking(), igr.VertexInterpolation(0.5), igr.Close()])
    assert not hasattr(igr.IGR(loc, scale, closed), "temperature")


MASKS = torch.tensor(
    [[True, False, True, True], [True, True, True, False], [False, True, False, False]]
)


def _sharp_map(allowed: Tensor) -> igr.Compose:
    return igr.Compose([igr.StickBreaking(allowed), igr.Sharpen(0.5, allowed.clone())])


@pytest.mark.parametrize(
    "form, transform",
    [
        (igr.SoftmaxIGR, lambda m: igr.SoftmaxPlusPlus(0.5, allowed=m)),
        (igr.SharpStickBreakingIGR, _sharp_map),
    ],
)
@pytest.mark.parametrize("allowed", [*MASKS, MASKS])
def test_mask_of_the_map_is_that_of_the_distribution(
    form: Callable, transform: Callable, allowed: Tensor
) -> None:
    (loc, scale), (loc0, scale0) = (
        parameters(4, allowed.shape[:-1], torch.float64, seed) for seed in (0, 1)
    )
    q = igr.IGR(loc, scale, transform(allowed))
    p = igr.IGR(loc0, scale0, q.transform)
    q_form, p_form = (form(x.loc, x.scale, 0.5, allowed=allowed) for x in (q, p))

    z, log_prob = q.rsample_and_log_prob((5,))
    torch.testing.assert_close(q.log_prob(z), q_form.log_prob(z))
    torch.testing.assert_close(q.log_prob(z), log_prob)
    batch = (2, *q.batch_shape)
    torch.testing.assert_close(q.expand(batch).log_prob(z[:2]), q_form.log_prob(z[:2]))
    assert q.support.check(z).all()
    assert not q.support.check(torch.full_like(z, 0.25)).any()
    for a, b in ((q, p), (p, q), (q, p_form if form is igr.SoftmaxIGR else p)):
        want = torch.distributions.kl_divergence(*(q_form, p_form) if a is q else (p_form, q_form))
        torch.testing.assert_close(torch.distributions.kl_divergence(a, b), want)


def test_mask_that_leaves_no_known_density_is_refused() -> None:
    m = MASKS[0]
    base = Independent(torch.distributions.Laplace(torch.zeros(3), torch.ones(3)), 1)
    flow = igr.Planar(torch.ones(3), torch.ones(3), torch.tensor(0.0))
    for parts in (
        [flow, igr.SoftmaxPlusPlus(0.5, allowed=m)],
        [igr.StickBreaking(), igr.Sharpen(0.5, m)],
        [igr.StickBreaking(m), igr.Sharpen(0.5)],
        [igr.StickBreaking(m), igr.Sharpen(0.5, MASKS[1])],
        [igr.StickBreaking(m), igr.SoftmaxPlusPlus(0.5)],
        [igr.StickBreaking(m), igr.VertexInterpolation(0.5), igr.Close()],
    ):
        with pytest.raises(ValueError, match="transform: a mask has a known density in"):
            igr.IGR(torch.zeros(3), torch.ones(3), igr.Compose(parts))
    with pytest.raises(ValueError, match="transform: a mask has a known density in"):
        igr.IGR.from_base(base, igr.SoftmaxPlusPlus(0.5, allowed=m))


@over()
@pytest.mark.parametrize("what", ["rsample", "rsample_and_log_prob"])
def test_gradients_with_fixed_noise_agree_with_finite_differences(case: Case, what: str) -> None:
    loc, scale = (x.requires_grad_() for x in parameters(4, (2,)))
    t = torch.tensor([0.6, 0.8], dtype=torch.float64, requires_grad=True)
    assert gradcheck(_seeded(case, what), (loc, scale, t), atol=1e-6, rtol=1e-4)


@over()
def test_gradient_of_log_prob_agrees_with_finite_differences(case: Case) -> None:
    loc, scale = (x.requires_grad_() for x in parameters(4, (2,)))
    t = torch.tensor([0.6, 0.8], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        log_z = case.build(loc, scale, t).rsample_log()
    mask = slice(None) if case.allowed is None else case.allowed(4)
    free = log_z[..., mask].clone().requires_grad_()

    def f(free: Tensor, loc: Tensor, scale: Tensor, t: Tensor) -> Tensor:
        full = torch.full_like(log_z, -torch.inf)
        full[..., mask] = free
        return case.build(loc, scale, t).log_prob(log_value=full.log_softmax(-1))

    assert gradcheck(f, (free, loc, scale, t), atol=1e-6, rtol=1e-4)


@over(lambda c: c.allowed is not None)
def test_category_that_is_not_allowed_gets_no_gradient(case: Case) -> None:
    loc, scale = parameters(5, (8,))
    loc.requires_grad_()
    scale.requires_grad_()
    z, log_prob = case.build(loc, scale, 0.5).rsample_and_log_prob()
    (z.square().sum() + log_prob.sum()).backward()
    assert case.allowed is not None
    out = ~case.allowed(5)[:-1]
    assert loc.grad is not None
    assert scale.grad is not None
    assert bool((loc.grad[:, out] == 0).all())
    assert bool((loc.grad[:, ~out] != 0).any())
    if not isinstance(case.some(5), igr.GumbelSoftmax):
        assert bool((scale.grad[:, out] == 0).all())


# The limit of Proposition 1


@over(lambda c: c.name != "user_closing")
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_samples_tend_to_hard_samples(case: Case, temperature: float) -> None:
    """With the same noise, samples at a temperature near 0 are the hard samples of any other temperature."""
    warm = case.some(5, (3,), temperature)
    cold = case.some(5, (3,), 1e-5)
    torch.manual_seed(1)
    z = warm.rsample((500,))
    torch.manual_seed(1)
    limit = cold.rsample((500,))
    hard = warm.hard(z)
    assert bool((hard.sum(-1) == 1).all())
    assert bool((hard.amax(-1) == 1).all())
    # Two scores within 1e-4 of each other, which are not yet told apart, come by about once in 10,000 draws.
    apart = (limit - hard).abs().amax(-1) > 1e-3
    assert apart.double().mean() < 3e-3


@over(lambda c: c.score is not None)
@pytest.mark.parametrize("num_categories", [2, 3, 10])
def test_hard_sample_is_the_category_that_proposition_1_names(
    case: Case, num_categories: int
) -> None:
    if case.num_allowed(num_categories) < 2:
        pytest.skip("one category is left")
    q = case.some(num_categories)
    assert isinstance(q, igr.IGR)
    assert case.score is not None
    torch.manual_seed(1)
    y = q.base_dist.rsample((2000,))
    torch.manual_seed(1)
    log_z = q.rsample_log((2000,))
    expected = case.score(y).argmax(-1)
    assert torch.equal(q.hard(log_value=log_z).argmax(-1), expected)
    assert torch.equal(q.hard(log_z.exp()).argmax(-1), expected)
    torch.manual_seed(1)
    assert torch.equal(q.straight_through((2000,)).argmax(-1), expected)


@over()
def test_straight_through_is_hard_forward_and_relaxed_backward(case: Case) -> None:
    loc, scale = parameters(4, (6,))
    loc.requires_grad_()
    weights = torch.randn(6, 4, dtype=torch.float64)
    torch.manual_seed(1)
    soft = case.build(loc, scale, TEMPERATURE).rsample()
    torch.manual_seed(1)
    hard = case.build(loc, scale, TEMPERATURE).straight_through()
    assert bool(((hard == 0) | (hard == 1)).all())
    assert bool((hard.sum(-1) == 1).all())
    (a,) = torch.autograd.grad((weights * soft).sum(), loc)
    (b,) = torch.autograd.grad((weights * hard).sum(), loc)
    torch.testing.assert_close(a, b)


# Batches


@over()
def test_expand(case: Case) -> None:
    q = case.some(4, (3,), torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64))
    wide = q.expand((2, 3))
    assert type(wide) is type(q)
    assert wide.batch_shape == (2, 3)
    z = q.sample()
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z).expand(2, 3))
    assert wide.rsample((5,)).shape == (5, 2, 3, 4)
    assert wide.rsample_and_log_prob((5,))[1].shape == (5, 2, 3)
    # Each element draws its own noise.
    assert not torch.equal(wide.rsample()[0], wide.rsample()[1])


@over()
@pytest.mark.parametrize("shape", [(3,), (2, 1), (3, 1, 1)])
def test_temperature_for_each_element(case: Case, shape: tuple[int, ...]) -> None:
    """A tensor of temperatures gives what each temperature gives alone, at the broadcast batch shape."""
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)[: shape[0]]
    loc, scale = parameters(4, (3,))
    q = case.build(loc, scale, t.view(shape))
    batch = torch.broadcast_shapes(shape, (3,))
    assert q.batch_shape == batch
    log_z, own = q.rsample_log_and_log_prob((7,))
    assert own.shape == (7, *batch)
    values = t.view(shape).expand(batch)
    for i in np.ndindex(*batch):
        one = case.build(loc[i[-1]], scale[i[-1]], float(values[i]))
        each = log_z[(slice(None), *i)]
        torch.testing.assert_close(
            one.log_prob(log_value=each), own[(slice(None), *i)], rtol=1e-6, atol=1e-6
        )
        assert torch.equal(one.hard(log_value=each), q.hard(log_value=log_z)[(slice(None), *i)])


@over(lambda c: c.name != "user_closing")  # that one computes with the temperature itself
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_temperature_in_half_precision_is_the_number_that_it_stands_for(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Samples, densities and divergences: a logarithm in half precision, times K - 1, would be off by up to a nat."""
    inputs = parameters(100, (3,), torch.float32)
    t = torch.full(shape, 0.1, dtype=dtype)
    half, plain = case.build(*inputs, t), case.build(*inputs, float(t.flatten()[0]))

    def quantities(q: igr.Relaxation) -> list[Tensor]:
        torch.manual_seed(0)
        log_z, own = q.rsample_log_and_log_prob((2,))
        given = plain.rsample_log((2,))
        prior = case.some(100, (), 0.2, torch.float32, seed=1)
        return [log_z, own, q.log_prob(log_value=given), igr.monte_carlo_kl(q, prior, 2)]

    for found, expected in zip(quantities(half), quantities(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_delta_in_half_precision_is_the_number_that_it_stands_for(dtype: torch.dtype) -> None:
    loc, scale = parameters(100, (), torch.float32)
    prior = igr.SoftmaxIGR(scale, scale, 0.5)
    for t, delta in ((0.1, torch.tensor(0.3)), (torch.tensor(0.1), 0.3), (torch.tensor(0.1),) * 2):
        t, delta = (x.to(dtype) if isinstance(x, Tensor) else x for x in (t, delta))
        half = igr.SoftmaxIGR(loc, scale, t, delta)
        plain = igr.SoftmaxIGR(loc, scale, float(t), float(delta))
        z = plain.rsample_log((5,))
        for found, expected in (
            (half.transform.forward_stable(loc), plain.transform.forward_stable(loc)),
            (half.log_prob(log_value=z), plain.log_prob(log_value=z)),
            (half.discrete().logits, plain.discrete().logits),
            (igr.kl_divergence(half, prior), igr.kl_divergence(plain, prior)),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@over()
def test_inside_independent(case: Case) -> None:
    q = case.some(4, (2, 3))
    joint = Independent(q, 1)
    assert (joint.batch_shape, joint.event_shape) == ((2,), (3, 4))
    z = joint.rsample((5,))
    torch.testing.assert_close(joint.log_prob(z), q.log_prob(z).sum(-1))
    assert joint.expand((7, 2)).sample().shape == (7, 2, 3, 4)
    assert bool(joint.support.check(z).all())


@over()
def test_inside_mixture_same_family(case: Case) -> None:
    q = case.some(4, (3,))
    weights = Categorical(logits=torch.randn(3, dtype=torch.float64))
    mixture = MixtureSameFamily(weights, q)
    z = mixture.sample((200,))
    assert z.shape == (200, 4)
    by_hand = torch.logsumexp(weights.logits + q.log_prob(z.unsqueeze(1)), -1)
    torch.testing.assert_close(mixture.log_prob(z), by_hand)
    assert by_hand.isfinite().all()


# Densities of own samples: finite for all draws, and those of float64


def _float64_scores(
    case: Case, q: igr.Relaxation, log_z: Tensor, seed: int, t: float
) -> tuple[Tensor, Tensor]:
    """Log-density in float64 at the same noise, and the sum of the sizes of its terms."""
    num_categories = q.num_categories
    if isinstance(q, igr.GumbelSoftmax):
        exact = igr.GumbelSoftmax(t, logits=q.logits.double())
        mask = q.allowed
        terms = log_z.double().masked_fill(~mask, 0.0)
        exact._validate_args = False  # float32 rounds off float64's simplex
        return exact.log_prob(log_value=log_z.double()), (1 + t) * terms.abs().sum(
            -1
        ) + num_categories * (terms.abs().amax(-1) * t)
    assert isinstance(q, igr.IGR)
    torch.manual_seed(seed)
    noise = torch.randn(log_z.shape[:-1] + q.loc.shape[-1:], dtype=torch.float32).double()
    exact = case.build(q.loc.double(), q.scale.double(), t)
    assert isinstance(exact, igr.IGR)
    y = exact.loc + exact.scale * noise
    log_z64, log_det = exact.transform.forward_and_log_det(y)
    log_prob = exact._gaussian_log_prob(noise, exact.scale) - log_det
    w = y.sigmoid().log().abs() + (-y).sigmoid().log().abs().cumsum(-1)
    size = log_z64.masked_fill(log_z64 == -torch.inf, 0.0).abs().sum(-1) + w.sum(-1) * (1 + 1 / t)
    return log_prob, size


@over(lambda c: c.own_noise and c.log_space and c.name not in ("pyro_spline", "zuko"))
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("num_categories, num_samples", [(10, 5000), (50_000, 2)])
def test_density_of_own_samples_is_finite_and_right(
    case: Case, temperature: float, num_categories: int, num_samples: int
) -> None:
    """All of 5,000 draws at K = 10 and of 2 at K = 50,000, in float32, where most samples have exact zeros."""
    q = case.some(num_categories, (), temperature, torch.float32)
    torch.manual_seed(11)
    log_z, log_prob = q.rsample_log_and_log_prob((num_samples,))
    assert log_prob.isfinite().all()
    allowed = log_z if case.allowed is None else log_z[:, case.allowed(num_categories)]
    assert allowed.isfinite().all()
    exact, size = _float64_scores(case, q, log_z, 11, temperature)
    # Each term is rounded to float32, and so is the sum of the terms.
    error = (log_prob.double() - exact).abs()
    bound = 16 * torch.finfo(torch.float32).eps * (size + num_categories)
    assert bool((error <= bound).all()), float((error / bound).max())


def test_torch_fails_where_these_do_not() -> None:
    """RelaxedOneHotCategorical at K = 10 in float32: why densities are given in log space here."""
    from torch.distributions import RelaxedOneHotCategorical

    finite = {}
    for t in (0.05, 0.01):
        logits = torch.zeros(10)
        # Its own check of the simplex fails too.
        rival = RelaxedOneHotCategorical(torch.tensor(t), logits=logits, validate_args=False)
        finite[t] = float(rival.log_prob(rival.sample((2000,))).isfinite().float().mean())
        ours = igr.GumbelSoftmax(t, logits=torch.zeros(10)).rsample_and_log_prob((2000,))[1]
        assert ours.isfinite().all()
    assert finite[0.05] < 0.95
    assert finite[0.01] < 0.01


# Gumbel-Softmax against torch's own class


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_gumbel_softmax_has_the_density_of_torch(temperature: float) -> None:
    from torch.distributions import RelaxedOneHotCategorical

    logits = torch.randn(4, 6, dtype=torch.float64)
    q = igr.GumbelSoftmax(temperature, logits=logits)
    rival = RelaxedOneHotCategorical(torch.tensor(temperature, dtype=torch.float64), logits=logits)
    z = rival.sample((50,))
    torch.testing.assert_close(q.log_prob(z), rival.log_prob(z))


def test_gumbel_softmax_of_probabilities() -> None:
    probs = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    q = igr.GumbelSoftmax(0.5, probs=probs)
    torch.testing.assert_close(q.probs, probs)
    z, log_prob = q.rsample_and_log_prob((100,))
    assert bool((z[:, 1] == 0).all())
    (grad,) = torch.autograd.grad(z.square().sum() + log_prob.sum(), probs)
    assert grad.isfinite().all()
    assert grad[1] == 0


def test_gumbel_softmax_hard_samples_have_its_probabilities() -> None:
    """Chi-square of 20,000 hard samples against the parameter."""
    q = igr.GumbelSoftmax(0.5, probs=torch.tensor([0.1, 0.2, 0.7]))
    counts = q.hard(q.sample((20_000,))).sum(0).numpy()
    assert scipy.stats.chisquare(counts, 20_000 * q.discrete().probs.numpy()).pvalue > FAILURE_RATE


# Recovering the discrete distribution


@over(lambda c: c.score is not None or c.name.startswith("gumbel"))
def test_discrete_agrees_with_hard_samples(case: Case) -> None:
    """Chi-square of 20,000 hard samples against the recovered probabilities."""
    q = case.some(4)
    found = q.discrete()
    assert isinstance(found, torch.distributions.OneHotCategorical)
    torch.testing.assert_close(found.probs.sum(-1), torch.ones((), dtype=found.probs.dtype))
    n = 20_000
    counts = q.hard(log_value=q.rsample_log((n,))).sum(0)
    probs = found.probs
    if found.standard_error is None:
        rare = probs * n < 5
        assert counts[rare].sum() < 30
        expected = (probs[~rare] / probs[~rare].sum() * counts[~rare].sum()).double().numpy()
        assert scipy.stats.chisquare(counts[~rare].double().numpy(), expected).pvalue > FAILURE_RATE
    else:
        error = (found.standard_error.square() + probs * (1 - probs) / n).sqrt()
        assert bool(((counts / n - probs).abs() <= 5 * error + 1e-12).all())


def test_recovered_categorical_expands_with_its_error() -> None:
    error = torch.tensor([0.01, 0.01])
    found = igr.RecoveredCategorical(probs=torch.tensor([0.3, 0.7]), standard_error=error)
    wide = found.expand((4,))
    assert isinstance(wide, igr.RecoveredCategorical)
    assert wide.standard_error is not None
    assert wide.standard_error.shape == wide.probs.shape == (4, 2)
    assert (
        igr.RecoveredCategorical(probs=torch.tensor([0.3, 0.7])).expand((4,)).standard_error is None
    )
    assert found.sample((3,)).shape == (3, 2)
    plain = torch.distributions.OneHotCategorical(probs=torch.tensor([0.5, 0.5]))
    kl = torch.distributions.kl_divergence(found, plain)
    torch.testing.assert_close(kl, igr.plug_in_kl(igr.GumbelSoftmax(1.0, probs=found.probs), plain))


@pytest.mark.parametrize("form", [igr.SoftmaxIGR, igr.SharpStickBreakingIGR])
def test_a_weight_below_the_normal_numbers_has_a_density_and_no_gradient(
    form: type[igr.IGR],
) -> None:
    z = torch.tensor([1e-310, 0.3, 0.7], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    for q in (form(zero, zero + 1, 0.5), igr.GumbelSoftmax(0.5, logits=z.new_zeros(3))):
        log_prob = q.log_prob(z)
        (gradient,) = torch.autograd.grad(log_prob, z)
        assert log_prob.isfinite()
        assert gradient.isfinite().all()
