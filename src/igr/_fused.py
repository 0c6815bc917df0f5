r"""The two operations of every training step, with their gradients written out.

They compute what the plain formulas in `igr.functional` do, in fewer passes over memory: eager torch is bound by
those. Where a compiler, a function transform, or a gradient with respect to the temperature is at work, `applies` is
false and the plain formulas serve.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from igr._checks import is_eager
from igr._exp import exp_nonpositive_

__all__ = ["applies", "gaussian_kl", "igr_softmax"]

_BLOCK = 2**18  # numbers; a few tensors of so many fit into a core's cache


def applies(loc: Tensor, *others: float | Tensor | None) -> bool:
    """Whether eager mode is at work, and every other tensor has the dtype of `loc` and broadcasts into its shape."""
    if not is_eager() or torch._C._functorch.maybe_current_level() is not None:
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    if loc.dtype not in (torch.float32, torch.float64):
        return False
    return all(_fits(value, loc) for value in others if isinstance(value, Tensor))


def _fits(value: Tensor, loc: Tensor) -> bool:
    if value.dtype != loc.dtype:
        return False
    if value.shape == loc.shape:
        return True
    pairs = zip(reversed(value.shape), reversed(loc.shape), strict=False)
    return value.dim() <= loc.dim() and all(a in (1, b) for a, b in pairs)


class _IGRSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        scale: Tensor,
        noise: Tensor,
        temperature: float | Tensor,
        last: float,
        dim: int,
    ) -> Tensor:
        n = loc.shape[dim]
        shape = list(loc.shape)
        shape[dim] = n + 1
        x = loc.new_empty(shape)
        y = x.narrow(dim, 0, n)
        torch.addcmul(loc, scale, noise, out=y)
        y.div_(temperature)
        x.narrow(dim, n, 1).fill_(last)
        if dim % loc.dim() == loc.dim() - 1:
            exp_nonpositive_(x.sub_(x.amax(dim, keepdim=True)))
            z = x.div_(x.sum(dim, keepdim=True))
        else:
            z = torch.softmax(x, dim)
        ctx.dim = dim
        ctx.number, tensor = (
            (None, temperature) if isinstance(temperature, Tensor) else (temperature, None)
        )
        # Saved with the others: what is changed in place before the backward pass is an error.
        ctx.save_for_backward(z, noise, tensor)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, noise, temperature = ctx.saved_tensors
        temperature = ctx.number if temperature is None else temperature
        n = noise.shape[ctx.dim]
        if torch.is_grad_enabled():
            z_first, z_last = z.split([n, 1], ctx.dim)
            grad_first, grad_last = grad.split([n, 1], ctx.dim)
            weighted = z_first * grad_first
            total = weighted.sum(ctx.dim, keepdim=True) + z_last * grad_last
            grad_y = (weighted - z_first * total) / temperature
        else:
            grad_y = _softmax_backward(grad, z, ctx.dim, n).div_(temperature)
        grad_scale = grad_y * noise if ctx.needs_input_grad[1] else None
        return grad_y, grad_scale, None, None, None, None


def _softmax_backward(grad: Tensor, z: Tensor, dim: int, n: int) -> Tensor:
    """The first n entries along `dim` of a softmax's gradient."""
    if dim % z.dim() != z.dim() - 1:
        return torch._softmax_backward_data(grad, z, dim, z.dtype).narrow(dim, 0, n)
    z_first, z_last = z.split([n, 1], dim)
    grad_first, grad_last = grad.split([n, 1], dim)
    weighted = z_first * grad_first
    total = weighted.sum(dim, keepdim=True) + z_last * grad_last
    return weighted.addcmul_(z_first, total, value=-1)


def igr_softmax(
    loc: Tensor, scale: Tensor, noise: Tensor, temperature: float | Tensor, last: float, dim: int
) -> Tensor:
    """softmax of (loc + scale * noise) / temperature and, after it along `dim`, the entry `last`.

    The temperature, where it is a tensor, broadcasts against loc as it is.
    """
    return _IGRSoftmax.apply(loc, scale, noise, temperature, last, dim)


def _kl(
    loc: Tensor, scale: Tensor, loc0: float | Tensor, scale0: float | Tensor, dim: int
) -> Tensor:
    # One sum for all: over short rows a sum takes as long as several of the other passes.
    if _is(scale0, 1):  # the usual prior saves passes
        terms = loc * loc if _is(loc0, 0) else (loc - loc0).square_()
        terms.addcmul_(scale, scale).sub_(scale.log(), alpha=2)
    else:
        ratio = scale / scale0
        terms = (loc - loc0).div_(scale0).square_().addcmul_(ratio, ratio)
        terms.sub_(ratio.log_(), alpha=2)
    return terms.sum(dim).sub_(loc.shape[dim]).mul_(0.5)


def _is(value: float | Tensor, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number


def _blocks(value: float | Tensor, like: Tensor, rows: int) -> Iterable[Any]:
    return value.expand_as(like).split(rows) if isinstance(value, Tensor) else repeat(value)


class _GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        scale: Tensor,
        loc0: float | Tensor,
        scale0: float | Tensor,
        dim: int,
    ) -> Tensor:
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in (loc0, scale0)]
        ctx.dim = dim
        ctx.save_for_backward(loc, scale, *(x for x in (loc0, scale0) if isinstance(x, Tensor)))
        if not loc.is_cpu or loc.numel() <= _BLOCK or dim % loc.dim() == 0:
            return _kl(loc, scale, loc0, scale0, dim)
        # What is there only in between stays in a core's cache: beyond it, new memory costs more than arithmetic.
        rows = max(1, _BLOCK * len(loc) // loc.numel())
        parts = (_blocks(value, loc, rows) for value in (loc, scale, loc0, scale0))
        return torch.cat([_kl(a, b, a0, b0, dim) for a, b, a0, b0 in zip(*parts, strict=False)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, *tensors = ctx.saved_tensors
        loc0, scale0 = (tensors.pop(0) if number is None else number for number in ctx.numbers)
        grad = grad.unsqueeze(ctx.dim)
        precision = 1 / (scale0 * scale0)
        if torch.is_grad_enabled():
            distance = (loc - loc0) * precision * grad
            grad_scale = (scale * precision - 1 / scale) * grad
        elif isinstance(precision, Tensor):
            distance = (loc - loc0).mul_(precision).mul_(grad)
            grad_scale = scale.reciprocal().neg_().addcmul_(scale, precision).mul_(grad)
        else:
            weight = grad * precision
            distance = loc * weight if _is(loc0, 0) else (loc - loc0).mul_(weight)
            grad_scale = scale.reciprocal().mul_(-grad).addcmul_(scale, weight)
        grad_loc0 = grad_scale0 = None
        if ctx.needs_input_grad[2]:
            grad_loc0 = (-distance).sum_to_size(loc0.shape)
        if ctx.needs_input_grad[3]:
            squares = (loc - loc0).square() + scale.square()
            terms = (1 - squares * precision) / scale0 * grad
            grad_scale0 = terms.sum_to_size(scale0.shape)
        return distance, grad_scale, grad_loc0, grad_scale0, None


def gaussian_kl(
    loc: Tensor, scale: Tensor, loc0: float | Tensor, scale0: float | Tensor, dim: int
) -> Tensor:
    """KL of independent normals, summed along `dim`; the second pair broadcasts against the first."""
    return _GaussianKL.apply(loc, scale, loc0, scale0, dim)
