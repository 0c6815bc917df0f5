"""What is wrong in the paper and its released code: each mistake shown, and its mend.

The numbers are those of the page of errata in the documentation. E3, E7 to E11, E13 and the cut of E4 are tested beside
the parts that they bear on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

import igr
from igr import functional as fn

D = torch.float64


def _autodiff_log_det(f, y: Tensor) -> float:
    return float(torch.linalg.slogdet(torch.autograd.functional.jacobian(f, y))[1])


def test_e1_jacobian_of_the_softmax_plus_plus() -> None:
    """(22)-(25): y_k stands where the sum s belongs, and the term v v' lacks 1/temperature."""

    def determinant(y: Tensor, t: float, delta: float, s_for_y: bool, factor: bool) -> float:
        """(22), as printed or with either correction."""
        v = torch.exp(y / t)
        s = v.sum() + delta
        diagonal = (s.expand_as(y) if s_for_y else y) * v / t
        rank_one = torch.outer(v, v) / (t if factor else 1.0)
        return float(torch.linalg.det((torch.diag(diagonal) - rank_one) / s**2))

    def autodiff(y: Tensor, t: float, delta: float) -> float:
        f = lambda v: fn.softmax_plus_plus(v, t, delta)[:-1]  # noqa: E731
        return float(torch.linalg.det(torch.autograd.functional.jacobian(f, y)))

    # The smallest example: at K = 2, temperature = delta = 1 and y = 0 it is the logistic function.
    zero = torch.zeros(1, dtype=D)
    assert abs(autodiff(zero, 1.0, 1.0) - 0.25) < 1e-15
    assert abs(determinant(zero, 1.0, 1.0, s_for_y=False, factor=False) + 0.25) < 1e-15

    y, t, delta = torch.tensor([0.4, -0.3, 0.9], dtype=D), 0.5, 0.7
    right = autodiff(y, t, delta)
    assert abs(determinant(y, t, delta, s_for_y=True, factor=True) / right - 1) < 1e-12
    for s_for_y, factor in ((False, False), (False, True), (True, False)):
        assert abs(determinant(y, t, delta, s_for_y, factor) / right - 1) > 0.1
    # (25), the closed form as printed, is the determinant of (22) as printed.
    v = torch.exp(y / t)
    s = v.sum() + delta
    printed = float(s**-6 * (1 - t * (v / y).sum()) / t**3 * (y * v).prod())
    assert abs(printed / determinant(y, t, delta, s_for_y=False, factor=False) - 1) < 1e-12

    own = igr.SoftmaxPlusPlus(t, delta)
    assert abs(float(own.log_abs_det_jacobian(y, own(y))) - math.log(right)) < 1e-12
    z = own(y)
    assert abs(float(z.log().sum()) - 3 * math.log(t) - math.log(right)) < 1e-12


def test_e2_density_of_y_needs_its_scale() -> None:
    """(28) drops the 1/sigma_k of (21): the 'probabilities' no longer add up to one."""
    loc, scale = torch.tensor([0.3, -0.5], dtype=D), torch.tensor([0.4, 1.5], dtype=D)
    t = torch.linspace(0, 20, 200_001, dtype=D)
    step = t[1] - t[0]
    x = (t - loc.unsqueeze(-1)) / scale.unsqueeze(-1)
    phi, cdf = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi), torch.special.ndtr(x)
    weights = torch.full_like(t, float(step))
    weights[0] = weights[-1] = step / 2
    last = torch.special.ndtr(-loc / scale).prod()
    without = torch.stack([(phi[0] * cdf[1] * weights).sum(), (phi[1] * cdf[0] * weights).sum()])
    assert abs(float(without.sum() + last) - 1) > 0.1
    with_scale = without / scale
    # The trapezoidal rule's error is step^2 / 12 times the density's slope at 0, below 1.
    assert abs(float(with_scale.sum() + last) - 1) < float(step) ** 2
    found = igr.SoftmaxIGR(loc, scale, 0.1).discrete().probs
    torch.testing.assert_close(
        found, torch.cat([with_scale, last.view(1)]), rtol=0, atol=float(step) ** 2
    )


def test_e4_softmax_of_infinitely_many_weights_diverges_and_sharpening_does_not() -> None:
    """Each term of (18)'s sum is at least 1, so that it grows as K; that of sharpened weights stays below 1."""
    t = 0.5
    for num_categories in (100, 1000, 10_000):
        y = torch.zeros(num_categories - 1, dtype=D)
        log_w = fn.log_stick_breaking(y)
        assert torch.exp(log_w[:-1].exp() / t).sum() >= num_categories - 1
        assert torch.exp(log_w / t).sum() <= 1
    # So the first category's share vanishes as categories are added that the sample never uses, or it does not.
    few, many = torch.zeros(9, dtype=D), torch.zeros(9999, dtype=D)
    plain = [
        float(fn.softmax_plus_plus(fn.log_stick_breaking(y)[:-1].exp(), t)[0]) for y in (few, many)
    ]
    sharp = [float(fn.log_sharpen(fn.log_stick_breaking(y), t)[0].exp()) for y in (few, many)]
    assert plain[1] < 1e-3 * plain[0] + 1e-3
    assert abs(sharp[1] - sharp[0]) < 1e-5


def test_e5_last_category_of_stick_breaking_is_never_chosen() -> None:
    """(18) at K = 10: 0 of 20,000 draws even where the last category holds nearly all of the stick."""
    loc, scale = torch.full((9,), -3.0, dtype=D), torch.ones(9, dtype=D)
    paper = igr.StickBreakingIGR(loc, scale, 0.01)
    mended = igr.SharpStickBreakingIGR(loc, scale, 0.01)
    for q, least, most in ((paper, 0, 0), (mended, 10_000, 20_000)):
        for z in (q.hard(log_value=q.rsample_log((20_000,))), q.straight_through((20_000,))):
            assert least <= int(z[:, -1].sum()) <= most
    # At K = 2 every hard sample is category 1, and the relaxed ones never fall below 1/2.
    binary = igr.StickBreakingIGR(torch.tensor([-3.0]), torch.ones(1), 0.5)
    z = binary.sample((5000,))
    assert int(binary.hard(z)[:, 0].sum()) == 5000
    assert z[:, 0].min() >= 0.5


def test_e5_sharpened_is_the_softmax_plus_plus_at_two_categories() -> None:
    loc, scale = torch.tensor([0.4], dtype=D), torch.tensor([1.3], dtype=D)
    a, b = igr.SharpStickBreakingIGR(loc, scale, 0.3), igr.SoftmaxIGR(loc, scale, 0.3)
    torch.manual_seed(1)
    log_a, log_prob_a = a.rsample_log_and_log_prob((100,))
    torch.manual_seed(1)
    log_b, log_prob_b = b.rsample_log_and_log_prob((100,))
    torch.testing.assert_close(log_a, log_b)
    torch.testing.assert_close(log_prob_a, log_prob_b)


def test_e5_sharpened_log_det() -> None:
    """sum log z - sum log w - (K-1) log temperature, and stick-breaking's sum log w."""
    y, t = torch.tensor([0.4, -0.3, 0.9], dtype=D), 0.4
    q = igr.SharpStickBreakingIGR(torch.zeros(3, dtype=D), torch.ones(3, dtype=D), t)
    right = _autodiff_log_det(lambda v: q.transform(v)[:-1], y)
    log_z, log_det = q.transform.forward_and_log_det(y)
    assert abs(float(log_det) - right) < 1e-12
    assert abs(float(log_z.sum()) - 3 * math.log(t) - right) < 1e-12


def test_e6_released_test_log_likelihood_is_no_bound() -> None:
    """At q = posterior it exceeds the evidence; the importance-weighted bound is exact there."""
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=D)
    likelihood = torch.tensor([0.05, 0.3, 0.9], dtype=D)
    evidence = float((prior * likelihood).sum().log())
    posterior = prior * likelihood / (prior * likelihood).sum()
    kl = kl_divergence(Categorical(probs=posterior), Categorical(probs=prior))
    # By enumeration, with as many samples as one likes: log E_q p(x|z) - KL.
    limit = float((posterior * likelihood).sum().log() - kl)
    assert limit > evidence + 0.05
    z = Categorical(probs=posterior).sample((1000,))
    released = igr.released_estimate(likelihood.log()[z], kl)
    assert released > evidence
    bound = igr.importance_weighted_bound(likelihood.log()[z], prior.log()[z], posterior.log()[z])
    assert abs(float(bound) - evidence) < 1e-12


def test_e12_planar_flow_divides_by_the_square_of_the_norm() -> None:
    """By the norm, as released, the flow folds over; by its square it does not."""
    u, w, b = (
        torch.tensor([-4.0, 0.0], dtype=D),
        torch.tensor([0.5, 0.0], dtype=D),
        torch.tensor(0.0, dtype=D),
    )
    wu = (w * u).sum()
    m = torch.nn.functional.softplus(wu) - 1
    released = u + (m - wu) * w / w.norm()
    mended = u + (m - wu) * w / w.square().sum()
    assert 1 + (w * released).sum() < 0, (
        "as released, the slope at the origin is negative: not invertible"
    )
    assert 1 + (w * mended).sum() > 0
    torch.testing.assert_close((w * mended).sum(), m)
    y = torch.linspace(-3, 3, 1001, dtype=D)
    line = torch.stack([y, torch.zeros_like(y)], -1)
    x = fn.planar(line, u, w, b)[0]
    torch.testing.assert_close(x, line + mended * torch.tanh((line * w).sum(-1, keepdim=True) + b))
    assert bool((x[:, 0].diff() > 0).all())
    folded = line + released * torch.tanh((line * w).sum(-1, keepdim=True) + b)
    assert bool((folded[:, 0].diff() < 0).any())


def test_e12_norm_is_taken_for_each_variable() -> None:
    """Variables side by side do not change each other's flow."""
    u, w, y = torch.randn(3, 5, 4, dtype=D)
    b = torch.randn(5, dtype=D)
    together = fn.planar(y, u, w, b)
    for i in range(5):
        alone = fn.planar(y[i], u[i], w[i], b[i])
        torch.testing.assert_close(together[0][i], alone[0])
        torch.testing.assert_close(together[1][i], alone[1])


def test_e14_gradient_of_the_interpolation_is_biased() -> None:
    """At K = 2, E[z_1] by quadrature: its derivative in loc, against the mean of the pathwise gradient.

    z_1 jumps by 1 - temperature where w_1 = sigmoid(y) crosses 1/2, that is at y = 0. The pathwise gradient is
    temperature E[sigmoid'(y)]; the boundary term that it misses is (1 - temperature) times the density of y at 0.
    """
    t, loc, scale = 0.1, torch.tensor(0.5, dtype=D), 1.0
    grid = torch.linspace(-10, 10, 2_000_001, dtype=D)
    step = grid[1] - grid[0]
    density = torch.exp(-0.5 * ((grid - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    w = torch.sigmoid(grid)
    z = t * w + (1 - t) * (w > 0.5)
    true_gradient = float((z * density * (grid - loc) / scale**2).sum() * step)
    pathwise = float((t * w * (1 - w) * density).sum() * step)
    boundary = (1 - t) * math.exp(-0.5 * float(loc) ** 2) / math.sqrt(2 * math.pi)
    assert abs(true_gradient - (pathwise + boundary)) < 1e-5
    assert pathwise < 0.1 * true_gradient

    n = 20_000
    copies = loc.expand(n, 1).clone().requires_grad_()
    steps = [igr.StickBreaking(), igr.VertexInterpolation(t), igr.Close()]
    q = igr.IGR(copies, torch.ones(1, dtype=D), igr.Compose(steps))
    (sampled,) = torch.autograd.grad(q.rsample()[:, 0].sum(), copies)
    error = float(sampled.std()) / math.sqrt(n)
    assert abs(float(sampled.mean()) - pathwise) < 4 * error

    # Sharpening does not jump: the mean of its gradient is the gradient of its mean.
    copies = loc.expand(n, 1).clone().requires_grad_()
    q = igr.SharpStickBreakingIGR(copies, torch.ones(1, dtype=D), t)
    (sampled,) = torch.autograd.grad(q.rsample()[:, 0].sum(), copies)
    exact = float((torch.sigmoid(grid / t) * density * (grid - loc) / scale**2).sum() * step)
    assert abs(float(sampled.mean()) - exact) < 4 * float(sampled.std()) / math.sqrt(n)


def test_e14_projection_is_not_the_argmax() -> None:
    """P_S takes vertex k if w_k > 1/2, else the last: (0.45, 0.35, 0.2) goes to the last category, not the first."""
    w = torch.tensor([0.45, 0.35, 0.2], dtype=D)
    z = igr.Compose([igr.VertexInterpolation(0.01), igr.Close()])(w[:-1])
    assert int(z.argmax()) == 2
    assert int(w.argmax()) == 0
