"""The simplex with a tolerance that fits dtype and K, and its corner."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import SoftmaxTransform, StickBreakingTransform, Transform

__all__ = ["corner", "simplex"]


class _Simplex(constraints.Constraint):
    r"""Vectors of K non-negative entries that sum to one.

    The sum may be off by what rounding K entries and adding them up can do: :math:`8 \epsilon + \epsilon' K / 16 + K`
    times the smallest positive number of the dtype, where :math:`\epsilon'` is that of float32 at least. torch's own
    ``constraints.simplex`` allows 1e-6 for every dtype and K, which half precision and K = 50,000 exceed.

    >>> simplex.check(torch.tensor([0.25, 0.75], dtype=torch.bfloat16))
    tensor(True)
    """

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        num_categories = value.shape[-1]
        info = torch.finfo(value.dtype)
        # Entries are rounded in their own dtype, and computed and added up in float32 at least.
        wide = torch.promote_types(value.dtype, torch.float32)
        total = value.sum(-1, dtype=wide)
        # A softmax on the CPU adds up in eight lanes or more, one after the other: equal weights drift as K.
        tolerance = 8 * info.eps + num_categories / 16 * torch.finfo(wide).eps
        tolerance += num_categories * info.smallest_normal * info.eps
        return (value >= 0).all(-1) & ((total - 1).abs() <= tolerance)


class _Corner(constraints.Constraint):
    """Vectors of K-1 positive entries whose sum is below one: the simplex without its last coordinate.

    >>> corner.check(torch.tensor([0.25, 0.5]))
    tensor(True)
    """

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value > 0).all(-1) & (value.sum(-1) < 1)


simplex = _Simplex()
corner = _Corner()


@biject_to.register(simplex)
def _biject_to_simplex(constraint: _Simplex) -> Transform:
    return StickBreakingTransform()


@transform_to.register(simplex)
def _transform_to_simplex(constraint: _Simplex) -> Transform:
    return SoftmaxTransform()


@biject_to.register(corner)
@transform_to.register(corner)
def _biject_to_corner(constraint: _Corner) -> Transform:
    from igr.transforms import StickBreaking  # transforms needs these constraints

    return StickBreaking()
