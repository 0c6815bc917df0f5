r"""The simplex with a tolerance that fits dtype and K, its corner, its faces, and what a map reaches of it.

>>> simplex.check(torch.tensor([0.25, 0.75], dtype=torch.bfloat16))
tensor(True)
>>> corner.check(torch.tensor([0.25, 0.5]))
tensor(True)
>>> face(torch.tensor([True, False, True])).check(torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]))
tensor([ True, False])
>>> from igr import Compose, SoftmaxPlusPlus, StickBreaking
>>> reached = image(Compose([StickBreaking(), SoftmaxPlusPlus(0.5)]))
>>> reached.check(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
tensor([ True, False])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.transforms import SoftmaxTransform, StickBreakingTransform, Transform

if TYPE_CHECKING:
    from igr.transforms import Compose

__all__ = ["corner", "countable", "face", "image", "simplex"]


class _Simplex(constraints.Constraint):
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
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value > 0).all(-1) & (value.sum(-1) < 1)


class _Face(constraints.Constraint):
    event_dim = 1

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return simplex.check(value) & (self.allowed | (value == 0)).all(-1)


class _Image(constraints.Constraint):
    event_dim = 1

    def __init__(self, transform: Compose) -> None:
        self.transform = transform
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return simplex.check(value) & self.transform.source(value)[1]


class _Countable(_Simplex):
    pass


simplex = _Simplex()
r"""Vectors of K non-negative entries that sum to one.

The sum may be off by what rounding K entries and adding them up can do: :math:`8 \epsilon + \epsilon' K / 16 + K`
times the smallest positive number of the dtype, where :math:`\epsilon'` is that of float32 at least. torch's own
``constraints.simplex`` allows 1e-6 for every dtype and K, which half precision and K = 50,000 exceed.
"""

countable = _Countable()
"""Vectors on the simplex with as many entries as each sample of `igr.CountableIGR` needs, then zeros.

No map from a fixed number of coordinates reaches them all, so `biject_to` refuses.
"""

corner = _Corner()
"""Vectors of K-1 positive entries whose sum is below one: the simplex without its last coordinate."""

face = _Face
"""``face(allowed)``: the face of the simplex whose corners are the allowed categories; all others are 0.

`allowed` is boolean, ``(*batch, K)``. `biject_to` gives stick-breaking over the allowed categories. It takes K-1
coordinates, of which a face with fewer corners has no need: those count as standard normal, so that a density over all
K-1 is proper.
"""

image = _Image
"""``image(transform)``: the points of the simplex that a map from R^(K-1) reaches, up to rounding.

`biject_to` gives the map.
"""


@biject_to.register(simplex)
def _biject_to_simplex(constraint: _Simplex) -> Transform:
    return StickBreakingTransform()


@transform_to.register(simplex)
def _transform_to_simplex(constraint: _Simplex) -> Transform:
    return SoftmaxTransform()


@biject_to.register(_Image)
@transform_to.register(_Image)
def _onto_image(constraint: _Image) -> Transform:
    return constraint.transform


@biject_to.register(countable)
@transform_to.register(countable)
def _no_map(constraint: _Countable) -> Transform:
    raise NotImplementedError(
        "samples of CountableIGR have no fixed number of coordinates, so that no transform reaches them: write the "
        "guide yourself, or take SharpStickBreakingIGR with as many categories as matter"
    )
