r"""Recovering the discrete distribution that a relaxed one tends to as its temperature goes to 0 (section 3.3)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["argmax_log_probs"]


@lru_cache(maxsize=64)
def _gauss_legendre(num_nodes: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the Gauss-Legendre rule on [0, 1], by Newton's method."""
    nodes, weights = [], []
    for i in range(num_nodes):
        x = math.cos(math.pi * (i + 0.75) / (num_nodes + 0.5))
        for _ in range(100):
            below, value = 1.0, x
            for n in range(2, num_nodes + 1):
                below, value = value, ((2 * n - 1) * x * value - (n - 1) * below) / n
            slope = num_nodes * (x * value - below) / (x * x - 1)
            step = value / slope
            x -= step
            if abs(step) < 1e-15:
                break
        nodes.append((1 - x) / 2)
        weights.append(1 / ((1 - x * x) * slope * slope))
    return nodes, weights


def argmax_log_probs(
    loc: Tensor,
    scale: Tensor,
    *,
    num_nodes: int | None = None,
    threshold: float = 0.0,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Log-probabilities of the category whose Gaussian is the largest, the last one's being fixed.

    .. math:: P(k) = \int_{t_0}^\infty \frac{1}{\sigma_k} \phi\Big(\frac{t - \mu_k}{\sigma_k}\Big)
              \prod_{j \ne k} \Phi\Big(\frac{t - \mu_j}{\sigma_j}\Big)\, dt, \qquad
              P(K) = \prod_j \Phi\Big(\frac{t_0 - \mu_j}{\sigma_j}\Big) \qquad (21)

    Args:
        loc, scale: shape ``(*batch, K-1)``.
        num_nodes: nodes of the quadrature.
        threshold: :math:`t_0`, what the largest Gaussian must exceed; 0 in the paper.
        allowed: boolean, broadcasts against ``(*batch, K)``.

    Returns:
        ``(*batch, K)``.
    """
    dtype = loc.dtype
    if dtype in (torch.float16, torch.bfloat16):
        loc, scale = loc.float(), scale.float()
    loc, scale = torch.broadcast_tensors(loc, scale)
    double = loc.dtype == torch.float64
    if num_nodes is None:
        num_nodes = 192 if double else 72
    cut = 7.2 if double else 5.2
    with torch.no_grad():
        left, right = loc - cut * scale, loc + cut * scale
        floor: float | Tensor = threshold
        if allowed is not None:
            left = left.masked_fill(~allowed[..., :-1], -torch.inf)
            right = right.masked_fill(~allowed[..., :-1], -torch.inf)
            floor = torch.where(allowed[..., -1], threshold, -torch.inf).to(loc.dtype).unsqueeze(-1)
        start = left.amax(-1, keepdim=True).clamp(min=floor)
        start = start.masked_fill(start == -torch.inf, 0.0)
        finest = scale.masked_fill(right <= start, torch.inf).amin(-1, keepdim=True)
        finest = torch.where(finest == torch.inf, scale.amin(-1, keepdim=True), finest)
        reach = torch.maximum(right.amax(-1, keepdim=True) - start, finest)
        unit = finest * (0.35 * 2 * cut)
        log_reach = torch.log1p(reach / unit)
        unit_nodes, weights = _gauss_legendre(num_nodes)
        u = torch.tensor(unit_nodes, dtype=loc.dtype, device=loc.device) * log_reach
        log_weights = (
            torch.tensor(weights, dtype=loc.dtype, device=loc.device).log()
            + (log_reach * unit).log()
            + u
        )
        offset = torch.expm1(u) * unit
    if allowed is not None:
        loc = torch.where(allowed[..., :-1], loc, start - 40.0)
        scale = torch.where(allowed[..., :-1], scale, 1.0)
    root = math.sqrt(0.5)
    inverse = root / scale
    # x is -(t - loc) / (scale sqrt(2)) at start + offset, measured from start so that no digits are lost
    x = ((loc - start) * inverse).unsqueeze(-1) - offset.unsqueeze(-2) * inverse.unsqueeze(-1)
    tail = 0.5 * torch.erfc(x.abs())
    log_cdf = torch.where(x < 0, torch.log1p(-tail), torch.log(tail.clamp(min=1e-30)))
    terms = (log_cdf.sum(-2, keepdim=True) + log_weights.unsqueeze(-2)) - log_cdf - x * x
    first = terms.logsumexp(-1) + torch.log(inverse) - 0.5 * math.log(math.pi)
    below = (threshold - loc) / scale
    last = torch.special.log_ndtr(below)
    if allowed is not None:
        last = last.masked_fill(~allowed[..., :-1], 0.0)
    out = torch.cat([first, last.sum(-1, keepdim=True)], -1)
    if allowed is not None:
        out = out.masked_fill(~allowed, -torch.inf)
    return out.to(dtype)
