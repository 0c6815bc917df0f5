"""The operations with gradients written out, against the plain formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import igr
from igr import _fused, functional

TOLERANCE = 1e-13  # some tens of roundings of numbers of order ten


def _parameters(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    loc = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(*shape, dtype=torch.float64) + 0.3).requires_grad_()
    return loc, scale, torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_sample_equals_the_plain_formula_with_its_first_two_derivatives(dim: int) -> None:
    loc, scale, noise = _parameters(3, 2, 4)
    assert _fused.applies(loc, scale, noise)

    def fused(loc: Tensor, scale: Tensor) -> Tensor:
        return functional.igr_softmax(loc, scale, 0.3, dim=dim, delta=2.0, noise=noise)

    def plain(loc: Tensor, scale: Tensor) -> Tensor:
        y = (loc + scale * noise).movedim(dim, -1)
        return functional.softmax_plus_plus(y, 0.3, 2.0).movedim(-1, dim)

    _agree(fused, plain, loc, scale)
    assert gradcheck(fused, (loc, scale))
    assert gradgradcheck(fused, (loc, scale))


def test_sample_with_a_temperature_for_each_element() -> None:
    loc, scale, noise = _parameters(3, 2, 4)
    temperature = torch.rand(3, 1, dtype=torch.float64) + 0.2
    _agree(
        lambda loc, scale: functional.igr_softmax(loc, scale, temperature, noise=noise),
        lambda loc, scale: functional.softmax_plus_plus(loc + scale * noise, temperature),
        loc,
        scale,
    )


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_kl_equals_the_plain_formula_with_its_first_two_derivatives(dim: int) -> None:
    loc, scale, _ = _parameters(3, 2, 4)
    loc0 = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    scale0 = (torch.rand(4, dtype=torch.float64) + 0.3).requires_grad_()
    inputs = loc, scale, loc0, scale0

    def fused(*inputs: Tensor) -> Tensor:
        return functional.gaussian_kl(*inputs, dim=dim)

    _agree(fused, lambda *inputs: functional.gaussian_kl_terms(*inputs).sum(dim), *inputs)
    assert gradcheck(fused, inputs)
    assert gradgradcheck(fused, inputs)


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("prior", ["tensors", "numbers", "standard", "location"])
def test_kl_in_blocks_is_the_kl(dim: int, prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "_BLOCK", 40)  # blocks of 3, 3 and 1 rows
    loc, scale, _ = _parameters(7, 3, 4)
    parameters: tuple[float | Tensor, float | Tensor] = {
        "tensors": (torch.randn(3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)),
        "numbers": (0.5, 2.0),
        "standard": (0.0, 1.0),
        "location": (-1.5, 1.0),
    }[prior]
    _agree(
        lambda loc, scale: functional.gaussian_kl(loc, scale, *parameters, dim=dim),
        lambda loc, scale: functional.gaussian_kl_terms(loc, scale, *parameters).sum(dim),
        loc,
        scale,
    )


D = torch.float64
LOC, ONEHOT = torch.randn(4, 3, dtype=D), torch.eye(4, dtype=D)
# What a training step may call, of loc, scale, a temperature for each element, and another location.
STEPS = {
    "igr_softmax": lambda m, s, t, m0: functional.igr_softmax(m, s, t),
    "igr_softmax, dim": lambda m, s, t, m0: functional.igr_softmax(m.mT, s.mT, t, dim=0),
    "igr_softmax, delta": lambda m, s, t, m0: functional.igr_softmax(m, s, t, delta=t),
    "softmax": lambda m, s, t, m0: igr.SoftmaxIGR(m, s, t).rsample(),
    "softmax, several": lambda m, s, t, m0: igr.SoftmaxIGR(m, s, t).rsample((2,)),
    "density": lambda m, s, t, m0: igr.SoftmaxIGR(m, s, t).rsample_and_log_prob()[1],
    "given": lambda m, s, t, m0: igr.SoftmaxIGR(m, s, t).conditional_rsample(ONEHOT),
    "probs": lambda m, s, t, m0: igr.SoftmaxIGR(m, s, t).probs,
    "sharp": lambda m, s, t, m0: igr.SharpStickBreakingIGR(m, s, t).rsample(),
    "sticks": lambda m, s, t, m0: igr.StickBreakingIGR(m, s, t).rsample(),
    "gumbel": lambda m, s, t, m0: igr.GumbelSoftmax(t, logits=m).rsample(),
    "kl": lambda m, s, t, m0: functional.gaussian_kl(m, s, m0, s),
}


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_what_is_changed_in_place_before_the_backward_pass_makes_no_wrong_gradient(
    name: str, single: bool
) -> None:
    """It is an error, as in torch, or has no part in the gradient."""

    def gradients(changed: int | None = None) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        loc, scale = LOC.clone().requires_grad_(), torch.ones_like(LOC).requires_grad_()
        temperature = torch.tensor(0.5, dtype=D) if single else torch.linspace(0.3, 0.6, 4, dtype=D)
        inputs = [loc * 1, scale * 1, temperature, torch.ones_like(LOC)]
        out = STEPS[name](*inputs)
        if changed is not None:
            with torch.no_grad():
                inputs[changed].mul_(0.1)
        weights = torch.linspace(0.0, 1.0, out.numel(), dtype=D).view_as(out)
        return torch.autograd.grad(out, [loc, scale], weights, materialize_grads=True)

    expected = gradients()
    for changed in range(4):
        try:
            found = gradients(changed)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
        else:
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in jvp
def test_the_plain_formula_serves_where_the_fused_one_cannot() -> None:
    loc, scale, noise = _parameters(3, 4)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    functional.igr_softmax(loc, scale, temperature, noise=noise)[:, 0].sum().backward()
    assert temperature.grad is not None
    assert temperature.grad.abs() > 0
    assert not _fused.applies(loc.bfloat16())
    assert not _fused.applies(loc, noise.float())
    torch.func.vmap(lambda x: functional.gaussian_kl(x, torch.ones_like(x)))(loc)
    torch.func.jvp(lambda x: functional.gaussian_kl(x, scale), (loc,), (noise,))


def _agree(fused, plain, *inputs: Tensor) -> None:
    ours, theirs = fused(*inputs), plain(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    weights = torch.randn_like(ours)
    got = torch.autograd.grad(ours, inputs, weights)
    wanted = torch.autograd.grad(theirs, inputs, weights)
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)
