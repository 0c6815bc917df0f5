"""What a decoder's outputs mean: binary pixels, or grey levels in a sound way and the paper's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["LIKELIHOODS", "Bernoulli", "Gaussian", "Likelihood"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_CACHED = 2**18  # numbers; some tensors of so many fit into a core's cache


class Likelihood(ABC):
    """What the decoder's outputs mean: p(x | z)."""

    outputs_per_pixel: int

    @abstractmethod
    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """``log p(x | z)`` of shape ``(...)`` from outputs ``(..., D * outputs_per_pixel)`` and x ``(..., D)``."""

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        """`log_prob` of many samples ``(B, M, ...)`` for each image ``(B, D)``; may destroy `outputs`.

        No output is larger than `largest`.
        """
        return self.log_prob(outputs, x.unsqueeze(1).expand(-1, outputs.shape[1], -1))

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """The expected image ``(..., D)``, for pictures."""


class Bernoulli(Likelihood):
    """Independent binary pixels, from logits."""

    outputs_per_pixel = 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return _BernoulliLogProb.apply(outputs, x)
        return _log_prob_for_compilers(outputs, x)

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        on = torch.bmm(outputs, x.unsqueeze(-1)).squeeze(-1)
        # Where exp, unlike softplus, would soon overflow.
        if largest > 80 and outputs.amax() > 80:
            return on - F.softplus(outputs).sum(-1)
        # log(1 + exp(l)) in place: a third of softplus's time, its error at most one rounding of 1.
        return on - outputs.exp_().add_(1).log_().sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)


def _run_by_run(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The runs of a stack that a core's cache does not hold one after the other, so that each stays in it."""
    first = tensors[0]
    if first.numel() <= _CACHED or first.is_cuda:
        return [tensors]
    if first.dim() < 3 or any(len(x) != len(first) for x in tensors):
        return [tensors]
    return zip(*(x.split(1) for x in tensors), strict=True)


class _BernoulliLogProb(torch.autograd.Function):
    """sum_d x_d l_d - softplus(l_d), with its gradient x - sigmoid(l) in three passes over l, not six."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        found = [
            torch.linalg.vecdot(some, l) - _softplus(l).sum(-1)
            for l, some in _run_by_run(logits, x)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (x - torch.sigmoid(logits)) * grad.unsqueeze(-1), None
        grad_logits = torch.empty_like(logits)
        for out, l, some, g in _run_by_run(grad_logits, logits, x, grad.unsqueeze(-1)):
            torch.sigmoid(l, out=out)
            torch.sub(some, out, out=out).mul_(g)
        return grad_logits, None


def _log_prob_for_compilers(logits: Tensor, x: Tensor) -> Tensor:
    """The same, with one exponential for value and gradient, and one logarithm for four pixels.

    Compiled exponentials and logarithms take several times as long as torch's own. In float32 and float64.
    """
    l = logits.detach()
    # Beyond this, log(1 + e^l) is l to the last digit, and products of four stay far from overflow.
    limit = 1 - math.log(torch.finfo(l.dtype).eps)
    power = l.clamp_max(limit).exp()
    one_more = product = 1 + power
    for _ in range(2):
        if product.shape[-1] % 2 == 0:
            first, second = product.chunk(2, dim=-1)
            product = first * second
    # What is added is zero, and has the gradient x - sigmoid(l).
    gradient = (x - power / one_more) * (logits - l)
    linear = x * l - (l - limit).clamp_min(0)
    return (linear + gradient).sum(-1) - product.log().sum(-1)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) in half the time of torch's; its error is at most a rounding of 1 or of x."""
    # Where e^x would overflow, x itself is log(1 + e^x) to the last digit; to look is quicker than to provide for it.
    limit = 0.9 * math.log(torch.finfo(x.dtype).max)
    if x.is_cpu and x.amax().item() <= limit:
        return x.exp().add_(1).log_()
    y = x.clamp_max(limit).exp_().add_(1).log_()
    return torch.maximum(y, x, out=y)


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
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
    "gaussian-paper": Gaussian(floor=1e-6, elu=True),
}
"""Every decoder by its name on the command line."""
