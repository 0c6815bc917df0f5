"""A layer that is soft in training and hard when deployed."""

from __future__ import annotations

from torch import Tensor, nn

from igr import functional
from igr.distributions import Relaxation

__all__ = ["Sample"]


class Sample(nn.Module):
    r"""Relaxed samples in ``train()``, one-hot vectors in ``eval()``.

    In training :math:`\tilde z`, or its one-hot vector with the gradient of :math:`\tilde z`; in evaluation the
    category of the largest probability :math:`\arg\max_k \tilde\alpha_k`, ``q.mode``, or a hard sample. The
    mode costs what ``discrete()`` does: it is exact, and the same each time, wherever that is.

    Args:
        straight_through: one-hot vectors in training as well.
        random: hard samples in evaluation, in the place of the mode.

    Shape: a distribution of batch shape ``(*,)`` to ``(*, K)``.

    >>> import igr, torch
    >>> model = nn.Sequential(igr.nn.SoftmaxIGRHead(8, num_variables=3, num_categories=4), Sample(), nn.Flatten())
    >>> model(torch.randn(5, 8)).shape
    torch.Size([5, 12])
    >>> model.eval()(torch.randn(5, 8)).unique()
    tensor([0., 1.])
    """

    def __init__(self, *, straight_through: bool = False, random: bool = False) -> None:
        super().__init__()
        self.straight_through = straight_through
        self.random = random

    def forward(self, q: Relaxation) -> Tensor:
        """Draw from a distribution, or take its mode."""
        if not isinstance(q, Relaxation):
            raise ValueError(
                f"q: expected a relaxation, such as the heads of igr.nn return, got {type(q).__name__}"
            )
        if self.training:
            return q.straight_through() if self.straight_through else q.rsample()
        if not self.random:
            return q.mode
        return q._cast(functional.one_hot_argmax(q.hard_scores(q.rsample_log().detach())))

    def extra_repr(self) -> str:
        return f"straight_through={self.straight_through}, random={self.random}"
