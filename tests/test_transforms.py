"""The maps as torch transforms: Jacobians, inverses, composition, equality, constraints."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.distributions import constraints as torch_constraints
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    SoftmaxTransform,
    StickBreakingTransform,
    Transform,
)

import igr
from cases import Shear, parameters
from igr.constraints import corner, simplex

D = torch.float64

U, W, B = (
    torch.tensor([0.5, -0.2], dtype=D),
    torch.tensor([1.0, 0.4], dtype=D),
    torch.tensor(0.3, dtype=D),
)

# Each map of three categories, and a point that it takes.
REAL = torch.tensor([0.4, -0.9], dtype=D)
CORNER = torch.tensor([0.6, 0.3], dtype=D)
MAPS: dict[str, tuple[Transform, Tensor]] = {
    "softmax": (igr.SoftmaxPlusPlus(0.4, 0.7), REAL),
    "stick": (igr.StickBreaking(), REAL),
    "sharpen": (igr.Sharpen(0.4), CORNER),
    "vertex": (igr.VertexInterpolation(0.4), CORNER),
    "close": (igr.Close(), CORNER),
    "planar": (igr.Planar(U, W, B), REAL),
    "stick_softmax": (igr.Compose([igr.StickBreaking(), igr.SoftmaxPlusPlus(0.4)]), REAL),
    "stick_sharpen": (igr.Compose([igr.StickBreaking(), igr.Sharpen(0.4)]), REAL),
    "stick_vertex": (igr.Compose([igr.StickBreaking(), igr.VertexInterpolation(0.4), igr.Close()]), REAL),
    "planar_softmax": (igr.Compose([igr.Planar(U, W, B), igr.Planar(W, U, B), igr.SoftmaxPlusPlus(0.4)]), REAL),
    "shear_softmax": (igr.Compose([Shear(), igr.SoftmaxPlusPlus(0.4)]), REAL),
    "affine_softmax": (igr.Compose([AffineTransform(U, W), igr.SoftmaxPlusPlus(0.4)]), REAL),
    "shear_stick_sharpen": (igr.Compose([Shear(), igr.StickBreaking(), igr.Sharpen(0.4)]), REAL),
    "stick_affine_softmax": (
        igr.Compose([igr.StickBreaking(), AffineTransform(0.0, 2.0), igr.SoftmaxPlusPlus(0.4)]),
        REAL,
    ),
    "torch_stick": (igr.Compose([Shear(), StickBreakingTransform()]), REAL),
}  # fmt: skip

each = pytest.mark.parametrize("name", MAPS)


@each
def test_log_det_is_that_of_autodiff(name: str) -> None:
    transform, x = MAPS[name]
    y = transform(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[..., : x.shape[-1]], x)
    expected = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(
        transform.log_abs_det_jacobian(x, y), expected, rtol=1e-10, atol=1e-10
    )
    if isinstance(transform, igr.Compose):
        log_y, log_det = transform.forward_and_log_det(x)
        torch.testing.assert_close(log_det, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(log_y.exp(), y)


@each
def test_inverse(name: str) -> None:
    transform, x = MAPS[name]
    torch.testing.assert_close(transform.inv(transform(x)), x, rtol=1e-8, atol=1e-8)
    if isinstance(transform, igr.Compose):
        back, log_det, inside = transform.inverse_and_log_det(transform(x).log())
        assert bool(inside)
        torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            log_det, transform.forward_and_log_det(x)[1], rtol=1e-7, atol=1e-7
        )


@each
def test_domain_codomain_and_shapes(name: str) -> None:
    transform, x = MAPS[name]
    batch = x.expand(4, 1, 2)
    y = transform(batch)
    assert bool(transform.domain.check(batch).all())
    assert bool(transform.codomain.check(y).all())
    assert transform.forward_shape(batch.shape) == y.shape
    assert transform.inverse_shape(y.shape) == batch.shape
    assert transform.domain.event_dim == 1
    assert transform.log_abs_det_jacobian(batch, y).shape == (4, 1)
    assert transform.bijective


@each
def test_float32_stays_float32_and_half_stays_half(name: str) -> None:
    transform, x = MAPS[name]
    if name in ("planar", "planar_softmax", "affine_softmax"):
        pytest.skip("its parameters are float64")
    assert transform(x.float()).dtype == torch.float32
    if name not in ("torch_stick",):
        torch.testing.assert_close(
            transform(x.bfloat16()).double(), transform(x), rtol=0.1, atol=0.01
        )


@each
def test_copies_are_equal_and_work(name: str) -> None:
    transform, x = MAPS[name]
    for other in (
        copy.deepcopy(transform),
        pickle.loads(pickle.dumps(transform)),
        copy.copy(transform),
    ):
        assert other == transform
        torch.testing.assert_close(other(x), transform(x))
        if isinstance(transform, igr.Compose):
            assert isinstance(other, igr.Compose)
            torch.testing.assert_close(other.forward_stable(x), transform.forward_stable(x))


@each
def test_cache(name: str) -> None:
    transform, x = MAPS[name]
    inverse = transform.inv  # which torch keeps for as long as somebody else does
    cached = transform.with_cache(1)
    assert cached == transform
    assert cached.inv.inv is cached is not inverse.inv
    torch.testing.assert_close(cached(x), transform(x))
    assert transform.with_cache(0) is transform


@each
def test_has_a_readable_repr(name: str) -> None:
    assert "object at" not in repr(MAPS[name][0]).replace("Shear", "") or "Shear" in repr(
        MAPS[name][0]
    )


def test_inside_torchs_own_transformed_distribution() -> None:
    """The classes serve torch's classes too, not only ours."""
    loc, scale = parameters(4)
    base = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
    theirs = torch.distributions.TransformedDistribution(base, [igr.SoftmaxPlusPlus(0.5)])
    ours = igr.SoftmaxIGR(loc, scale, 0.5)
    z = theirs.rsample((20,))
    torch.testing.assert_close(theirs.log_prob(z), ours.log_prob(z))
    two = torch.distributions.TransformedDistribution(base, [igr.StickBreaking(), igr.Sharpen(0.5)])
    z = two.rsample((20,))
    torch.testing.assert_close(
        two.log_prob(z), igr.SharpStickBreakingIGR(loc, scale, 0.5).log_prob(z)
    )


# Equality: the same map, however it was put together


SAME = [
    (igr.SoftmaxPlusPlus(0.5), igr.SoftmaxPlusPlus(0.5)),
    (igr.SoftmaxPlusPlus(0.5), igr.SoftmaxPlusPlus(torch.tensor(0.5))),
    (igr.SoftmaxPlusPlus(torch.tensor([0.5, 1.0])), igr.SoftmaxPlusPlus(torch.tensor([0.5, 1.0]))),
    (
        igr.Compose(
            [igr.Compose([igr.StickBreaking(), igr.VertexInterpolation(0.5)]), igr.Close()]
        ),
        igr.Compose(
            [igr.StickBreaking(), igr.Compose([igr.VertexInterpolation(0.5), igr.Close()])]
        ),
    ),
    (
        igr.Compose(
            [ComposeTransform([Shear(), AffineTransform(0.0, 2.0)]), igr.SoftmaxPlusPlus(0.5)]
        ),
        igr.Compose([Shear(), AffineTransform(0.0, 2.0), igr.SoftmaxPlusPlus(0.5)]),
    ),
    (igr.Planar(U, W, B), igr.Planar(U.clone(), W.clone(), B.clone())),
    (igr.Sharpen(0.5, torch.tensor([True, False])), igr.Sharpen(0.5, torch.tensor([True, False]))),
]
DIFFERENT = [
    (igr.SoftmaxPlusPlus(0.5), igr.SoftmaxPlusPlus(0.6)),
    (igr.SoftmaxPlusPlus(0.5), igr.SoftmaxPlusPlus(0.5, 2.0)),
    (igr.SoftmaxPlusPlus(0.5), igr.Sharpen(0.5)),
    (igr.SoftmaxPlusPlus(0.5), igr.SoftmaxPlusPlus(0.5, allowed=torch.tensor([True, True]))),
    (igr.SoftmaxPlusPlus(torch.tensor([0.5, 1.0])), igr.SoftmaxPlusPlus(torch.tensor([0.5, 1.0, 2.0]))),
    (igr.Planar(U, W, B), igr.Planar(W, U, B)),
    (igr.Sharpen(0.5, torch.tensor([True, False])), igr.Sharpen(0.5, torch.tensor([False, True]))),
    (igr.Compose([igr.StickBreaking(), igr.Sharpen(0.5)]), igr.Compose([igr.StickBreaking(), igr.Sharpen(0.6)])),
    (igr.StickBreaking(), StickBreakingTransform()),
]  # fmt: skip


@pytest.mark.parametrize("a, b", SAME)
def test_equal(a: Transform, b: Transform) -> None:
    assert a == b
    assert b == a
    assert igr.Compose([a]) == igr.Compose([b])


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_not_equal(a: Transform, b: Transform) -> None:
    assert a != b
    assert b != a


# What does not fit


ANY = torch.zeros(2)
BAD = [
    (lambda: igr.SoftmaxPlusPlus(0.0), "temperature: expected a positive finite number above 1e-16, got 0.0"),
    (lambda: igr.SoftmaxPlusPlus(-1.0), "temperature: expected a positive finite number above 1e-16, got -1.0"),
    (lambda: igr.SoftmaxPlusPlus(None), "temperature: expected a positive number or a tensor, got NoneType"),
    (lambda: igr.SoftmaxPlusPlus(torch.tensor([0.5, 0.0])), r"temperature: .* with 1 invalid element.* \[0.0\]"),
    (lambda: igr.SoftmaxPlusPlus(1.0, delta=0.0), "delta: expected a positive finite number, got 0.0"),
    (lambda: igr.Sharpen(0.0), "temperature: expected a positive finite number"),
    (lambda: igr.VertexInterpolation(1.5), r"temperature: expected values in \(0, 1\], got 1.5"),
    (lambda: igr.VertexInterpolation(torch.tensor(1.5)), r"temperature: expected values in \(0, 1\]"),
    (lambda: igr.VertexInterpolation(0.0), "temperature: expected a positive finite number"),
    (lambda: igr.Planar(ANY, torch.zeros(3), ANY[0]), r"u, w, b: .* got \(2,\), \(3,\), \(\)"),
    (lambda: igr.Planar(torch.zeros(2), torch.zeros(2), torch.zeros(2)), "u, w, b: expected shapes"),
    (lambda: igr.Compose([]), "parts: expected at least one transform, got none"),
    (lambda: igr.Compose([0.5]), "parts: expected transforms, got float"),
    (lambda: igr.Compose([igr.SoftmaxPlusPlus(1.0), Shear()]), "parts: .* gives points of"),
    (lambda: igr.Compose([Shear(), igr.Sharpen(0.5)]), "parts: Sharpen.* takes points of"),
    (lambda: igr.Compose([Shear(), igr.Close()]), "parts: Close.* takes points of"),
    (lambda: igr.IGR(ANY, ANY + 1, igr.StickBreaking()), "transform: expected a map that ends on the simplex"),
    (lambda: igr.IGR(ANY, ANY + 1, igr.Sharpen(0.5)), r"transform: expected a map of R\^\(K-1\)"),
    (lambda: igr.IGR(ANY, ANY + 1, igr.Compose([igr.Close()])), r"transform: expected a map of R\^"),
]  # fmt: skip


@pytest.mark.parametrize("make, message", BAD)
def test_errors(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_composition_counts_the_batch_of_every_parameter() -> None:
    parts = [
        AffineTransform(torch.zeros(5, 1, 3), torch.ones(3)),
        igr.SoftmaxPlusPlus(torch.rand(2) + 0.1),
    ]
    q = igr.IGR(torch.zeros(3), torch.ones(3), igr.Compose(parts))
    assert q.batch_shape == (5, 2)
    z, log_prob = q.rsample_and_log_prob()
    assert (z.shape, log_prob.shape) == ((5, 2, 4), (5, 2))


def test_torchs_closing_transforms_fit() -> None:
    q = igr.IGR(torch.zeros(3), torch.ones(3), StickBreakingTransform())
    assert q.event_shape == (4,)
    z, log_prob = q.rsample_and_log_prob((50,))
    base = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1
    )
    theirs = torch.distributions.TransformedDistribution(base, StickBreakingTransform())
    torch.testing.assert_close(log_prob, theirs.log_prob(z), rtol=1e-3, atol=1e-3)


# Constraints


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_categories", [2, 10, 1000, 50_000])
def test_simplex_has_a_tolerance_for_dtype_and_size(
    dtype: torch.dtype, num_categories: int
) -> None:
    """Rounded points of the simplex pass; points that are off by more than rounding do not."""
    for spread in (0.1, 1.0, 10.0):
        z = torch.softmax(spread * torch.randn(20, num_categories, dtype=D), -1).to(dtype)
        assert bool(simplex.check(z).all())
    off = torch.full((num_categories,), 1 / num_categories, dtype=D)
    slack = float(torch.finfo(dtype).eps) * (16 + num_categories / 8)
    if dtype in (torch.float32, torch.float64):
        assert not bool(simplex.check((off * (1 + slack)).to(dtype)))
    off[0] += 0.9
    assert not bool(simplex.check(off.to(dtype)))
    off[0] = -0.1
    off[1] += 0.1
    assert not bool(simplex.check(off.to(dtype)))


def test_simplex_refuses_what_is_not_a_number() -> None:
    assert not bool(simplex.check(torch.tensor([torch.nan, 1.0])))
    assert not bool(simplex.check(torch.tensor([torch.inf, -torch.inf])))


def test_constraints_are_registered() -> None:
    x = torch.randn(5, 3, dtype=D)
    z = biject_to(simplex)(x)
    assert bool(simplex.check(z).all())
    torch.testing.assert_close(biject_to(simplex).inv(z), x)
    assert isinstance(transform_to(simplex), SoftmaxTransform)
    w = biject_to(corner)(x)
    assert bool(corner.check(w).all())
    torch.testing.assert_close(biject_to(corner).inv(w), x)
    assert not bool(corner.check(torch.tensor([0.5, 0.6])))
    assert biject_to(igr.SoftmaxIGR(x, x.exp(), 1.0).support).codomain is torch_constraints.simplex


def test_the_simplex_allows_for_the_rounding_of_entries_below_the_normal_numbers() -> None:
    n = 1_597_000  # whose inverse lies between two numbers of half precision
    assert simplex.check(torch.full((n,), 1 / n, dtype=torch.float16))
