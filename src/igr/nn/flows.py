"""A learnable planar flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from igr import _checks
from igr.transforms import Planar

__all__ = ["PlanarFlow"]


class PlanarFlow(nn.Module):
    r"""Nested planar flows on R^(K-1) with learnable parameters, the identity to begin with, nearly.

    Each is :math:`f(y) = y + \hat u \tanh(w^\top y + b)`, see `igr.functional.planar`; it starts at
    :math:`u = \log(e - 1) w / (w^\top w)`, where :math:`\hat u = 0`, and a little noise.

    Args:
        num_coordinates: K-1.
        num_flows: how many are nested; the paper has 2.
        batch_shape: of the parameters, such as ``(num_variables,)``: one flow for each variable, shared by all inputs.
        device, dtype: of the parameters; torch's defaults where None.

    Raises:
        ValueError: if a size is too small.

    Shape: ``(*, *batch_shape, K-1)`` to the same.

    Source: paper, section 3.1; Rezende and Mohamed (2015).

    >>> flow = PlanarFlow(9, batch_shape=(20,))
    >>> flow(torch.zeros(100, 20, 9)).shape
    torch.Size([100, 20, 9])
    >>> from igr import PlanarIGR
    >>> z = PlanarIGR(torch.zeros(100, 20, 9), torch.ones(9), 0.1, flow.transforms()).rsample()
    """

    def __init__(
        self,
        num_coordinates: int,
        num_flows: int = 2,
        batch_shape: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_coordinates = _checks.count("num_coordinates", num_coordinates)
        batch_shape = _checks.shape("batch_shape", batch_shape)
        shape = (_checks.count("num_flows", num_flows), *batch_shape, num_coordinates)
        self.u = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.w = nn.Parameter(torch.empty_like(self.u))
        self.b = nn.Parameter(torch.empty(shape[:-1], device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew: w of norm 1 in a random direction, a flow near the identity."""
        self.w.normal_()
        self.w.div_(self.w.norm(dim=-1, keepdim=True))
        self.u.normal_(std=0.01).add_(self.w, alpha=math.log(math.e - 1))
        self.b.zero_()

    def transforms(self) -> list[Planar]:
        """The flows, the first of them first, as transforms for `igr.PlanarIGR` or `igr.Compose`."""
        whole = (self.u, self.w, self.b)
        return [_Part(whole, index) for index in range(self.u.shape[0])]

    def forward(self, y: Tensor) -> Tensor:
        """Apply the flows to y."""
        for transform in self.transforms():
            y = transform(y)
        return y

    def extra_repr(self) -> str:
        num_flows, *batch_shape, num_coordinates = self.u.shape
        return f"{num_coordinates}, num_flows={num_flows}, batch_shape={tuple(batch_shape)}"


class _Part(Planar):
    """One of the flows of a module: the same map as another made of the same parameters, whose values need no look."""

    def __init__(self, whole: tuple[Tensor, Tensor, Tensor], index: int) -> None:
        super().__init__(*(parameter[index] for parameter in whole))
        self.whole = whole
        self.index = index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Part) or self.index != other.index:
            return super().__eq__(other)
        pairs = zip(self.whole, other.whole, strict=True)
        return all(mine is theirs for mine, theirs in pairs) or super().__eq__(other)

    __hash__ = Planar.__hash__
