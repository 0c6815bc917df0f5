"""exp of numbers that are not positive, against torch's and mpmath's."""

from __future__ import annotations

import mpmath
import pytest
import torch

from igr._exp import exp_nonpositive, exp_nonpositive_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lowest", [-10.0, -1e4, -float("inf")])
def test_equals_exp_down_to_the_smallest_normal_number(dtype: torch.dtype, lowest: float) -> None:
    info = torch.finfo(dtype)
    edge = float(mpmath.log(info.tiny))
    x = torch.cat(
        [
            torch.linspace(1.02 * edge if lowest < edge else -10.0, 0.0, 4001, dtype=dtype),
            torch.tensor([0.0, -0.0, lowest], dtype=dtype),
        ]
    )
    wanted = torch.tensor([float(mpmath.exp(v)) for v in x.tolist()], dtype=torch.float64)
    for found in (exp_nonpositive(x), exp_nonpositive_(x.clone())):
        found = found.double()
        normal = wanted > info.tiny * 1.1
        error = (found - wanted).abs() / wanted.clamp_min(info.tiny)
        assert error[normal].max() < 2 * info.eps
        # What is less than that may be 0, but nothing in between is made up.
        assert ((found == 0) | (error < 2 * info.eps))[~normal].all()
        assert (found[x < edge] == 0).all()


def test_gradient_is_exp_or_zero() -> None:
    x = torch.tensor([0.0, -1.0, -80.0, -200.0, -float("inf")], requires_grad=True)
    (gradient,) = torch.autograd.grad(exp_nonpositive(x).sum(), x)
    torch.testing.assert_close(gradient, x.detach().exp(), rtol=1e-6, atol=1e-38)


def test_what_is_no_number_stays_so() -> None:
    x = torch.tensor([0.0, float("nan"), -500.0])
    assert exp_nonpositive(x).isnan().tolist() == [False, True, False]
    assert exp_nonpositive_(x.clone()).isnan().tolist() == [False, True, False]


def test_nothing_to_do() -> None:
    assert exp_nonpositive(torch.empty(0, 3)).shape == (0, 3)
    assert exp_nonpositive_(torch.empty(0, 3)).shape == (0, 3)
