r"""Decoders of grey levels: independent Gaussian pixels, a sound one and the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from igr.experiments.models import vae as models
from igr.experiments.models.vae import Likelihood

__all__ = ["LIKELIHOODS", "Gaussian"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class _GaussianLogProb(torch.autograd.Function):
    """sum_d log N(x_d | sigmoid(a_d), floor + softplus(b_d)) of (a, b), less its constant, with its gradient."""

    @staticmethod
    def forward(ctx, outputs: Tensor, x: Tensor, floor: float) -> Tensor:
        a, b = outputs.chunk(2, dim=-1)
        mean, scale = torch.sigmoid(a), F.softplus(b).add_(floor)
        residual = (x - mean).div_(scale)
        ctx.save_for_backward(mean, scale, residual, b)
        return -0.5 * torch.linalg.vecdot(residual, residual) - scale.log().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        mean, scale, residual, b = ctx.saved_tensors
        weight = grad.unsqueeze(-1) / scale
        grad_a = residual * weight * (mean - mean * mean)
        grad_b = torch.addcmul(-weight, residual.square(), weight).mul_(torch.sigmoid(b))
        return torch.cat([grad_a, grad_b], -1), None, None


@dataclass(frozen=True)
class Gaussian(Likelihood):
    r"""Independent Gaussian pixels; the outputs are D numbers a for the means, then D numbers b for the scales.

    .. math:: \mathcal N\big(x_d \mid \sigma(a_d),\; \text{floor} + \log(1 + e^{b_d})\big)

    Grey levels lie in [0, 1] and so does the mean. They are multiples of 1/255: without a floor of about that size the
    density of a pixel that is the same in all images has no bound, and the test score says nothing.

    Args:
        floor: smallest scale.
        elu: apply elu to both outputs first, as the paper's released code does. Then no mean is below
            :math:`\sigma(-1) = 0.269` and no scale below :math:`\log(1 + e^{-1}) = 0.313`, so that no image has a
            log-density above 190 for 784 pixels, and black cannot be fitted (erratum E8).
    """

    floor: float = 1 / 255
    elu: bool = False
    outputs_per_pixel = 2

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        outputs = F.elu(outputs) if self.elu else outputs
        constant = x.shape[-1] * _HALF_LOG_2PI
        if not torch.compiler.is_compiling():
            return _GaussianLogProb.apply(outputs, x, self.floor) - constant
        a, b = outputs.chunk(2, dim=-1)
        scale = F.softplus(b) + self.floor
        residual = (x - torch.sigmoid(a)) / scale
        return -(0.5 * residual.square() + scale.log()).sum(-1) - constant

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        a, b = (F.elu_(outputs) if self.elu else outputs).chunk(2, dim=-1)
        scale = F.softplus(b).add_(self.floor)
        residual = a.sigmoid_().sub_(x.unsqueeze(1)).div_(scale).square_().sum(-1)
        return -0.5 * residual - scale.log_().sum(-1) - x.shape[-1] * _HALF_LOG_2PI

    def mean(self, outputs: Tensor) -> Tensor:
        a = outputs.chunk(2, dim=-1)[0]
        return torch.sigmoid(F.elu(a) if self.elu else a)


LIKELIHOODS: dict[str, Likelihood] = {
    **models.LIKELIHOODS,
    "gaussian": Gaussian(),
    "gaussian-paper": Gaussian(floor=1e-6, elu=True),
}
"""Every decoder by its name on the command line."""
