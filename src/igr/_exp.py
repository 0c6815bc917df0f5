"""exp that takes no longer where it underflows.

On a CPU torch's takes up to 150 times as long there, and at low temperatures most weights underflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from igr._checks import values_can_be_read

__all__ = ["exp_nonpositive", "exp_nonpositive_"]


# Somewhat above the logarithm of the smallest normal number.
_LEAST = {
    dtype: math.log(torch.finfo(dtype).tiny) * (1 - 2**-14)
    for dtype in (torch.float32, torch.float64)
}


def _underflows(x: Tensor) -> bool:
    return x.is_cpu and x.numel() > 0 and not x.amin().item() >= _LEAST[x.dtype]


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp of numbers that are not positive; what is no normal number is 0, and has no gradient.

    >>> exp_nonpositive(torch.tensor([0.0, -1.0, -200.0]))
    tensor([1.0000, 0.3679, 0.0000])
    """
    if not values_can_be_read(x) or not _underflows(x.detach()):
        return x.exp()
    least = _LEAST[x.dtype]
    return torch.where(x < least, 0.0, x.clamp_min(least).exp())


def exp_nonpositive_(x: Tensor) -> Tensor:
    """The same in place, in eager mode, where no gradient is needed."""
    if not _underflows(x):
        return x.exp_()
    least = _LEAST[x.dtype]
    # The threshold is just above what the clamped ones come to.
    return torch.threshold_(x.clamp_min_(least).exp_(), math.exp(least * (1 - 2**-20)), 0.0)
