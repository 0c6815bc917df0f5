"""Every function along any dimension: what it gives along the last one, moved, with gradients and layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from igr import functional as fn

D = torch.float64
K = 5


def _y(*batch: int) -> Tensor:
    return torch.randn(*batch, K - 1, dtype=D)


def _log_w(*batch: int) -> Tensor:
    return torch.log_softmax(torch.randn(*batch, K, dtype=D), -1)


def _positive(*batch: int) -> Tensor:
    return torch.rand(*batch, K - 1, dtype=D) + 0.3


# What is along `dim` comes first, then what has the shape of the batch: a temperature, delta or b.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Callable[..., Tensor]], int]] = {
    "softmax_plus_plus": (fn.softmax_plus_plus, [_y], 2),
    "log_softmax_plus_plus": (fn.log_softmax_plus_plus, [_y], 2),
    "log_softmax_plus_plus_inverse": (fn.log_softmax_plus_plus_inverse, [_log_w], 2),
    "log_stick_breaking": (fn.log_stick_breaking, [_y], 0),
    "log_stick_breaking_inverse": (fn.log_stick_breaking_inverse, [_log_w], 0),
    "stick_breaking_softmax_plus_plus": (fn.stick_breaking_softmax_plus_plus, [_y], 2),
    "sharp_stick_breaking": (fn.sharp_stick_breaking, [_y], 1),
    "log_sharpen": (fn.log_sharpen, [_log_w], 1),
    "log_sharpen_inverse": (fn.log_sharpen_inverse, [_log_w], 1),
    "log_vertex_interpolation": (fn.log_vertex_interpolation, [_log_w], 1),
    "log_vertex_interpolation_inverse": (
        lambda log_w, t, dim: fn.log_vertex_interpolation_inverse(
            fn.log_vertex_interpolation(log_w, t, dim), t, dim
        ),
        [_log_w],
        1,
    ),
    "planar": (fn.planar, [_y, _y, _y], 1),
    "planar_inverse": (fn.planar_inverse, [_y, _y, _y], 1),
    "gaussian_kl": (fn.gaussian_kl, [_y, _positive, _y, _positive], 0),
    "gaussian_log_prob": (fn.gaussian_log_prob, [_y, _y, _positive], 0),
    "exp_concrete_log_prob": (fn.exp_concrete_log_prob, [_log_w, _log_w], 1),
    "igr_softmax": (
        lambda loc, scale, noise, tau, delta, dim: fn.igr_softmax(
            loc, scale, tau, dim=dim, delta=delta, noise=noise
        ),
        [_y, _positive, _y],
        2,
    ),
    "stick_breaking_igr_softmax": (
        lambda loc, scale, noise, tau, delta, dim: fn.stick_breaking_igr_softmax(
            loc, scale, tau, dim=dim, delta=delta, noise=noise
        ),
        [_y, _positive, _y],
        2,
    ),
    "sharp_stick_breaking_igr_softmax": (
        lambda loc, scale, noise, tau, dim: fn.sharp_stick_breaking_igr_softmax(
            loc, scale, tau, dim=dim, noise=noise
        ),
        [_y, _positive, _y],
        1,
    ),
    "planar_igr_softmax": (
        lambda loc, scale, noise, tau, delta, dim: fn.planar_igr_softmax(
            loc, scale, lambda y: y + y.cumsum(-1).tanh(), tau, dim=dim, delta=delta, noise=noise
        ),
        [_y, _positive, _y],
        2,
    ),
    "gumbel_softmax": (
        lambda logits, noise, tau, dim: fn.gumbel_softmax(logits, tau, dim=dim, noise=noise),
        [_log_w, _log_w],
        1,
    ),
}  # fmt: skip

each_function = pytest.mark.parametrize("name", FUNCTIONS)


@each_function
@pytest.mark.parametrize("batch", [(3,), (3, 2), (2, 3, 4)])
@pytest.mark.parametrize("per", ["batch", "last of the batch", "scalar", "number"])
def test_any_dimension_gives_what_the_last_does(
    name: str, batch: tuple[int, ...], per: str
) -> None:
    """Values and gradients, for every dimension counted from either end, and for whatever has the batch's shape."""
    f, along, others = FUNCTIONS[name]
    inputs = [make(*batch).requires_grad_() for make in along]
    shape = {"batch": batch, "last of the batch": batch[-1:], "scalar": (), "number": ()}[per]
    # Below 1, as the interpolation wants it.
    values = [(0.2 + 0.7 * torch.rand(shape, dtype=D)).requires_grad_() for _ in range(others)]
    rest = [v.item() if per == "number" and name[:6] != "planar" else v for v in values]

    def gradients(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        total = sum(x.square().sum() for x in (out if isinstance(out, tuple) else (out,)))
        return torch.autograd.grad(total, [*inputs, *values], allow_unused=True)

    expected = f(*inputs, *rest, dim=-1)
    g_expected = gradients(expected)
    for dim in range(-len(batch) - 1, len(batch) + 1):
        moved = [x.movedim(-1, dim) for x in inputs]
        found = f(*moved, *rest, dim=dim)
        pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a if a.dim() == len(batch) else a.movedim(dim, -1), b)
        for a, b in zip(gradients(found), g_expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)


MASKED: dict[str, Callable[..., Tensor]] = {
    "softmax_plus_plus": fn.softmax_plus_plus,
    "log_softmax_plus_plus": fn.log_softmax_plus_plus,
    "log_stick_breaking": lambda y, t, **options: fn.log_stick_breaking(y, **options),
    "sharp_stick_breaking": fn.sharp_stick_breaking,
    "log_sharpen": lambda y, t, dim, allowed: fn.log_sharpen(
        fn.log_stick_breaking(y, dim), t, dim, allowed=allowed
    ),
    "igr_softmax": lambda y, t, **options: fn.igr_softmax(
        y, torch.ones_like(y), t, noise=y, **options
    ),
    "hard igr_softmax": lambda y, t, **options: fn.igr_softmax(
        y, torch.ones_like(y), t, True, noise=y, **options
    ),
    "sharp_stick_breaking_igr_softmax": lambda y, t, **options: fn.sharp_stick_breaking_igr_softmax(
        y, torch.ones_like(y), t, noise=y, **options
    ),
    "gumbel_softmax": lambda y, t, dim, allowed: fn.gumbel_softmax(
        torch.cat([y, y.narrow(dim, 0, 1)], dim),
        t,
        dim=dim,
        allowed=allowed,
        noise=torch.cat([y, y.narrow(dim, 1, 1)], dim),
    ),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("vector", [False, True])
def test_masks_along_any_dimension(name: str, vector: bool) -> None:
    """A mask has the categories along the same dimension; a vector is the mask of every element."""
    y = _y(3, 2)
    allowed = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    allowed = allowed[0] if vector else allowed.expand(3, 2, K)
    expected = MASKED[name](y, 0.5, dim=-1, allowed=allowed)
    assert bool(
        (expected.exp() if "log" in name else expected)[~allowed.expand(3, 2, K)].eq(0).all()
    )
    for dim in range(-3, 3):
        mask = allowed if vector else allowed.movedim(-1, dim)
        found = MASKED[name](y.movedim(-1, dim), 0.5, dim=dim, allowed=mask)
        torch.testing.assert_close(found.movedim(dim, -1), expected)


@pytest.mark.parametrize("dim", [1, -3, 3])
def test_hard_samples_are_laid_out_as_torchs(dim: int) -> None:
    """Contiguous, whatever `dim`, so that they have a view as `torch.nn.functional.gumbel_softmax` of the same does."""
    x = torch.randn(2, 4, 3, 4)
    for hard in (False, True):
        for sampler in (
            fn.igr_softmax,
            fn.stick_breaking_igr_softmax,
            fn.sharp_stick_breaking_igr_softmax,
        ):
            assert sampler(x, torch.ones_like(x), 0.5, hard, dim).is_contiguous()
        assert fn.gumbel_softmax(x, 0.5, hard, dim).is_contiguous()


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dimension_that_is_not_there(dim: int) -> None:
    y, w = torch.zeros(3, 4), torch.ones(3, 4)
    for call in (
        lambda: fn.softmax_plus_plus(y, dim=dim),
        lambda: fn.log_stick_breaking(y, dim),
        lambda: fn.planar(y, y, w, torch.zeros(3), dim),
        lambda: fn.igr_softmax(y, w, dim=dim),
        lambda: fn.stick_breaking_igr_softmax(y, w, dim=dim),
        lambda: fn.sharp_stick_breaking_igr_softmax(y, w, dim=dim),
        lambda: fn.planar_igr_softmax(y, w, lambda x: x, dim=dim),
        lambda: fn.gumbel_softmax(y, dim=dim),
        lambda: fn.gaussian_kl(y, w, dim=dim),
        lambda: fn.gaussian_log_prob(y, dim=dim),
        lambda: fn.exp_concrete_log_prob(y, 0.0, 0.5, dim),
    ):
        with pytest.raises(ValueError, match=rf"dim: expected .*\(3, 4\), got {dim}"):
            call()


def test_densities_are_torchs() -> None:
    from torch.distributions import Normal, RelaxedOneHotCategorical

    y, loc, scale = _y(3, 2), _y(2), _positive(2)
    expected = Normal(loc, scale).log_prob(y).sum(-1)
    torch.testing.assert_close(fn.gaussian_log_prob(y, loc, scale), expected)
    log_z, logits, t = _log_w(3, 2), torch.randn(2, K, dtype=D), torch.rand(2, dtype=D) + 0.2
    for i in range(2):
        q = RelaxedOneHotCategorical(t[i], logits=logits[i])
        expected = q.log_prob(log_z[:, i].exp()) + log_z[:, i].sum(-1)
        found = fn.exp_concrete_log_prob(log_z[:, i] + 3.0, logits[i], float(t[i]))
        torch.testing.assert_close(found, expected)


def test_planar_inverse_from_a_known_point_has_the_same_gradient() -> None:
    y, u, w = _y(7), *(x.requires_grad_() for x in (_y(7), _y(7)))
    b = torch.randn(7, dtype=D, requires_grad=True)
    x = fn.planar(y, u, w, b)[0].detach().requires_grad_()
    results = []
    for near in (None, y):
        found = fn.planar_inverse(x, u, w, b, near=near)
        results.append((found, *torch.autograd.grad(found.square().sum(), [x, u, w, b])))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shapes", [((1,), (), (4,)), ((3, 1), (4,), ()), ((4,), (3, 1), (3, 4))])
def test_gaussian_density_counts_every_entry_that_broadcasting_makes(shapes):
    y, loc, scale = (torch.rand(shape, dtype=torch.float64) + 0.5 for shape in shapes)
    expected = torch.distributions.Normal(loc, scale).log_prob(y).sum(-1)
    torch.testing.assert_close(fn.gaussian_log_prob(y, loc, scale), expected)
