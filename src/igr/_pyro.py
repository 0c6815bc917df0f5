"""What Pyro asks of a distribution besides torch's own interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["PyroSite"]


def _mixin() -> Any:
    from pyro.distributions.torch_distribution import TorchDistributionMixin  # only Pyro calls this

    return TorchDistributionMixin


class PyroSite(Distribution):
    """Lets ``pyro.sample`` take a distribution as it is. Abstract; Pyro is imported only where Pyro is in use.

    A plate broadcasts Pyro's own classes alone: expand the distribution to the size of the plate, or Pyro says that
    the shapes disagree.
    """

    @property
    def event_dim(self) -> int:
        """Number of dimensions of an event."""
        return len(self.event_shape)

    def __call__(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a sample, as ``pyro.sample`` does."""
        return self.rsample(torch.Size(sample_shape))

    def shape(self, sample_shape: Sequence[int] = ()) -> tuple[int, ...]:
        """Shape of a sample."""
        return (*sample_shape, *self.batch_shape, *self.event_shape)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The terms of Pyro's gradient estimators."""
        return _mixin().score_parts(self, x, *args, **kwargs)

    def expand_by(self, sample_shape: Sequence[int]) -> Distribution:
        """Expand by dimensions to the left of the batch."""
        return self.expand((*sample_shape, *self.batch_shape))

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Distribution:
        """Pyro's ``Independent`` of this distribution."""
        return _mixin().to_event(self, reinterpreted_batch_ndims)

    def mask(self, mask: bool | Tensor) -> Distribution:
        """Pyro's masked distribution; for categories that are ruled out, see `allowed`."""
        return _mixin().mask(self, mask)
