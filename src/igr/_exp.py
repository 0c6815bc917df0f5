"""exp that takes no longer where it underflows.

On a CPU torch's takes up to 150 times as long there, and at low temperatures most weights underflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from igr._checks import values_can_be_read

__all__ = ["exp_nonpositive", "exp_nonpositive_"]


def _least(x: Tensor) -> float:
    """Somewhat above the logarithm of the smallest normal number."""
    return math.log(torch.finfo(x.dtype).tiny) * (1 - 2**-14)


def _underflows(x: Tensor) -> bool:
    if not x.is_cpu or not values_can_be_read(x) or x.numel() == 0:
        return False
    return not bool(x.detach().amin() >= _least(x))


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp of numbers that are not positive; what is no normal number is 0, and has no gradient.

    >>> exp_nonpositive(torch.tensor([0.0, -1.0, -200.0]))
    tensor([1.0000, 0.3679, 0.0000])
    """
    if not _underflows(x):
        return x.exp()
    return torch.where(x < _least(x), 0.0, x.clamp_min(_least(x)).exp())


def exp_nonpositive_(x: Tensor) -> Tensor:
    """The same in place, where no gradient is needed."""
    if not _underflows(x):
        return x.exp_()
    least = _least(x)
    # The threshold is just above what the clamped ones come to.
    return torch.threshold_(x.clamp_min_(least).exp_(), math.exp(least * (1 - 2**-20)), 0.0)
