"""No NaN and no infinity, over the whole range of parameters that is promised.

Temperature in [0.01, 10], |loc| up to 1e4, scale in [1e-6, 1e3], K from 2 to 100,000, float32 and
float64. For each of 9 forms 40 small settings (K up to 64) of 8 samples and 4 large ones (K up to
100,000) of 1 sample are tried, each by three ways to draw: 8,748 draws. The slow test adds 1,000 small
settings for each form, 216,000 draws.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import igr
from cases import Case, over

quick = settings(derandomize=True, deadline=None, database=None, max_examples=40)
few = settings(quick, max_examples=4)
many = settings(quick, max_examples=1000)

NAMES = [
    *("softmax", "softmax_delta", "stick_breaking", "sharp", "planar", "gumbel"),
    *("softmax_first_out", "softmax_last_out", "sharp_last_out"),
]
forms = over(lambda c: c.name in NAMES)


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers between low and high, evenly in their logarithm, the ends among them."""
    inside = st.floats(math.log10(low), math.log10(high)).map(
        lambda x: min(max(10.0**x, low), high)
    )
    return st.sampled_from([low, high]) | inside


@st.composite
def parameters(draw: st.DrawFn, sizes: st.SearchStrategy[int]) -> tuple[Tensor, Tensor, float]:
    """loc and scale of one size each, or spread over the whole range, and a temperature."""
    n = draw(sizes) - 1
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size, widest, narrowest = (
        draw(powers(1e-3, 1e4)),
        draw(powers(1e-6, 1e3)),
        draw(powers(1e-6, 1e3)),
    )
    shape = draw(st.sampled_from(["even", "signs", "low", "high"]))
    u = 2 * torch.rand(n, generator=g, dtype=torch.float64) - 1
    loc = size * {"even": u, "signs": u.sign(), "low": -u.abs(), "high": torch.ones_like(u)}[shape]
    log_scale = torch.lerp(
        torch.tensor(math.log(narrowest), dtype=torch.float64),
        torch.tensor(math.log(widest), dtype=torch.float64),
        torch.rand(n, generator=g, dtype=torch.float64),
    )
    scale = log_scale.exp().clamp(1e-6, 1e3)
    return loc.to(dtype), scale.to(dtype), draw(powers(0.01, 10.0))


def no_nan_and_no_infinity(
    case: Case, loc: Tensor, scale: Tensor, t: float, num_samples: int
) -> None:
    loc, scale = loc.clone().requires_grad_(), scale.clone().requires_grad_()
    temperature = torch.tensor(t, dtype=loc.dtype, requires_grad=True)
    q = case.build(loc, scale, temperature)
    mask = torch.ones(q.num_categories, dtype=torch.bool)
    if case.allowed is not None:
        mask = case.allowed(q.num_categories)
    weights = torch.linspace(-1, 1, q.num_categories, dtype=loc.dtype)

    def check(name: str, value: Tensor, *, finite: bool = True) -> None:
        assert not value.isnan().any(), name
        assert not finite or value.isfinite().all(), name
        if finite:
            for x, what in ((loc, "loc"), (scale, "scale"), (temperature, "temperature")):
                (g,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
                assert g is None or bool(g.isfinite().all()), f"gradient of {name} in {what}"

    z = q.rsample((num_samples,))
    assert bool(q.support.check(z.detach()).all())
    assert bool((z[..., ~mask] == 0).all())
    check("rsample", z * weights)
    log_z, own = q.rsample_log_and_log_prob((num_samples,))
    assert bool((log_z[..., ~mask] == -torch.inf).all())
    assert bool((log_z[..., mask] <= 0).all())
    check("rsample_log", log_z[..., mask])
    check("density of own samples", own)
    check("straight_through", q.straight_through((num_samples,)) * weights)

    # By inversion, too: a sample may have rounded to a point that has no density, but never to NaN.
    for name, value in (
        ("log_prob(value)", q.log_prob(z.detach())),
        ("log_prob(log_value)", q.log_prob(log_value=log_z.detach())),
    ):
        assert not value.isnan().any(), name
        assert bool((value < torch.inf).all()), name
        for x in (loc, scale, temperature):
            (g,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
            assert g is None or bool(g.isfinite().all()), f"gradient of {name}"
    hard = q.hard(z.detach())
    assert bool((hard.sum(-1) == 1).all())
    assert bool((hard[..., ~mask] == 0).all())


@forms
@quick
@given(data=st.data())
def test_small(case: Case, data: st.DataObject) -> None:
    sizes = st.integers(2 if case.allowed is None else 3, 64)
    no_nan_and_no_infinity(case, *data.draw(parameters(sizes)), 8)


@pytest.mark.slow
@forms
@many
@given(data=st.data())
def test_many_small(case: Case, data: st.DataObject) -> None:
    sizes = st.integers(2 if case.allowed is None else 3, 64)
    no_nan_and_no_infinity(case, *data.draw(parameters(sizes)), 8)


@forms
@few
@given(data=st.data())
def test_large(case: Case, data: st.DataObject) -> None:
    sizes = st.sampled_from([100_000]) | st.integers(1000, 100_000)
    no_nan_and_no_infinity(case, *data.draw(parameters(sizes)), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@quick
@given(data=st.data())
def test_closed_form_divergence(dtype: torch.dtype, data: st.DataObject) -> None:
    """40 pairs for each dtype: finite where float32 can hold it, never NaN, never below 0 by more than rounding."""
    loc, scale, t = data.draw(parameters(st.integers(2, 64)))
    loc0, scale0 = torch.zeros_like(loc), torch.ones_like(scale)
    loc, scale = loc.to(dtype).requires_grad_(), scale.to(dtype).requires_grad_()
    kl = torch.distributions.kl_divergence(
        igr.SoftmaxIGR(loc, scale, t),
        igr.SoftmaxIGR(loc0.to(dtype), scale0.to(dtype), data.draw(powers(0.1, 1.0))),
    )
    assert kl.isfinite()
    assert kl > -1e-4 * len(loc)
    for g in torch.autograd.grad(kl, [loc, scale]):
        assert g.isfinite().all()


@quick
@given(temperature=powers(0.01, 10.0), seed=st.integers(0, 2**32), k=st.integers(2, 20))
def test_inverse_round_trip(temperature: float, seed: int, k: int) -> None:
    """40 settings in float64: y back from log z, through softmax++ and through stick-breaking and sharpening."""
    g = torch.Generator().manual_seed(seed)
    y = 5 * torch.randn(20, k - 1, generator=g, dtype=torch.float64)
    for parts in (
        [igr.SoftmaxPlusPlus(temperature)],
        [igr.StickBreaking(), igr.Sharpen(temperature)],
    ):
        transform = igr.Compose(parts)
        back, log_det, inside = transform.inverse_and_log_det(transform.forward_stable(y))
        assert bool(inside.all())
        torch.testing.assert_close(back, y, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(
            log_det, transform.forward_and_log_det(y)[1], rtol=1e-7, atol=1e-6
        )
