r"""Which category of a broken stick is the largest: exact probabilities where Proposition 2 does not apply.

Let :math:`w = SB(\sigma(y))` (16) with independent Gaussian y, :math:`R_k = \prod_{i \le k} (1 - \sigma(y_i))` what is
left after k breaks, and :math:`r_k = \max_{j \le k} w_j / R_k` how far the leader is ahead of it. Then

.. math:: r_k = \max\Big(\frac{r_{k-1}}{1 - \sigma(y_k)},\; e^{y_k}\Big),

so r is a Markov chain on one dimension: category k takes the lead when :math:`\sigma(y_k) > r_{k-1}`, and once
:math:`r_k \ge 1` nothing that is left can overtake. With :math:`G_k(r) = P(r_k \le r)`, which runs forward, and
:math:`V_k(r)`, the probability that a leader with :math:`r_k = r` keeps the lead, which runs backward,

.. math:: G_k(r) = \int_{-\infty}^{\log r} \phi_k(y)\, G_{k-1}\big(r (1 - \sigma(y))\big)\, dy, \qquad
          V_{k-1}(r) = \int_{\sigma(y) < r} \phi_k(y)\, V_k\Big(\frac{r}{1 - \sigma(y)}\Big)\, dy, \\
          P(k) = \int \phi_k(y)\, G_{k-1}(\sigma(y))\, V_k(e^y)\, dy, \qquad P(K) = G_{K-1}(1).

All three are one-dimensional integrals of smooth functions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from igr import functional
from igr._quadrature import gauss_legendre

__all__ = ["leader_log_probs"]

_CUT = 7.5  # a Gaussian has 3e-14 of its mass further out
_HIGH = 16.0  # logit of the largest r below 1 that is told from 1
_ORDER = 6  # points of the interpolation
_POINTS_PER_SCALE = 8


def leader_log_probs(
    loc: Tensor,
    scale: Tensor,
    *,
    rest: bool = True,
    allowed: Tensor | None = None,
    num_points: int | None = None,
    num_nodes: int | None = None,
) -> Tensor:
    r"""Log-probabilities of the category with the largest stick-breaking weight, for all K at O(K) cost.

    They are what `igr.SharpStickBreakingIGR` tends to as its temperature goes to 0 and, with ``rest=False``, what
    `igr.StickBreakingIGR` tends to. Differentiable in `loc` and `scale`.

    Args:
        loc, scale: of the Gaussian y, ``(*batch, K-1)``.
        rest: whether what is left of the stick is a category, the last. In (18) it is never chosen (erratum E5).
        allowed: boolean, broadcasts against ``(*batch, K)``; other categories break nothing off, and the last allowed
            one takes what is left.
        num_points: points of the grid that G and V are kept on; by default as many as range and smallest scale ask for.
        num_nodes: nodes of each integral; by default as many as the ratio of the scales asks for.

    Returns:
        ``(*batch, K)``. The probabilities are off by less than 1e-6 for scales in [0.05, 5] and loc in [-10, 10].

    >>> leader_log_probs(torch.zeros(1), torch.ones(1)).exp()
    tensor([0.5000, 0.5000])
    """
    dtype = loc.dtype
    loc, scale = torch.broadcast_tensors(loc.double(), scale.double())
    if allowed is not None:
        active = functional.stick_breaking_active(allowed)
        batch = torch.broadcast_shapes(loc.shape[:-1], allowed.shape[:-1])
        loc, scale = loc.expand(*batch, -1), scale.expand(*batch, -1)
        active = active.expand(loc.shape)
        # A break this far down takes nothing off.
        loc, scale = torch.where(active, loc, -1e3), torch.where(active, scale, 1.0)
    else:
        active = torch.ones_like(loc, dtype=torch.bool)
    probs = _Recursion(loc, scale, active, rest, num_points, num_nodes).probs()
    if allowed is not None:
        probs = _move_rest(probs, allowed.expand(probs.shape))
    probs = probs.clamp_min(1e-300)
    log_probs = probs.log() - probs.sum(-1, keepdim=True).log()
    if not rest and allowed is None:
        log_probs = torch.cat(
            [log_probs[..., :-1], torch.full_like(log_probs[..., -1:], -torch.inf)], -1
        )
    if allowed is not None:
        log_probs = log_probs.masked_fill(~allowed, -torch.inf)
    return log_probs.to(torch.promote_types(dtype, torch.float32))


def _move_rest(probs: Tensor, allowed: Tensor) -> Tensor:
    """What is left of the stick, which comes as the last entry, given to the last allowed category."""
    position = torch.arange(allowed.shape[-1], device=allowed.device)
    last = torch.where(allowed, position, -1).amax(-1, keepdim=True)
    own = torch.where(allowed & (position != last), probs, 0.0)
    return torch.where(position == last, probs[..., -1:], own)


class _Recursion:
    """G forward and V backward, on grids that are uniform in logit r.

    Grids and nodes are constants, and the Gaussian densities at the nodes carry the gradient: with every domain cut
    where it has no mass, or where the integrand is zero, that is the derivative of the integral.
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        active: Tensor,
        rest: bool,
        num_points: int | None,
        num_nodes: int | None,
    ) -> None:
        self.loc, self.scale, self.rest = loc, scale, rest
        with torch.no_grad():
            left = (loc - _CUT * scale).masked_fill(~active, torch.inf)
            self.low = left.amin(-1).clamp(-1e3, -1.0)
            finest = scale.masked_fill(~active, torch.inf).amin().clamp(max=1.0)
            if num_points is None:
                span = _HIGH - float(self.low.min())
                num_points = max(64, min(2048, math.ceil(_POINTS_PER_SCALE * span / float(finest))))
            if num_nodes is None:
                ratio = float((scale.masked_fill(~active, 0.0).amax() / finest).clamp(min=1.0))
                num_nodes = min(256, math.ceil(16 + 16 * ratio))
            # The logarithm of the number of categories after break k, what is left included: the largest of them
            # has at least its share of what is left, so a leader with less than that loses for sure.
            later = active.flip(-1).cumsum(-1).flip(-1)
            self.log_later = (later - active.to(later.dtype) + 1).to(loc.dtype).log()
            self.fractions = torch.linspace(0, 1, num_points, dtype=loc.dtype, device=loc.device)
            self.nodes, self.weights = (x.to(loc.device) for x in gauss_legendre(num_nodes))

    def probs(self) -> Tensor:
        """P(k) for all k, ``(*batch, K)``."""
        keeps = self._backward()
        behind: Tensor | None = None
        out = []
        for k in range(self.loc.shape[-1]):
            out.append(self._takes_and_keeps(k, behind, keeps[k]))
            behind = self._forward(k, behind)
        # What is left wins where r stays below 1: the upper end of the grid.
        left = torch.zeros_like(out[0]) if behind is None or not self.rest else behind[..., -1]
        return torch.stack([*out, left], -1)

    def _forward(self, k: int, behind: Tensor | None) -> Tensor:
        """G after break k, from G before it."""
        log_r = F.logsigmoid(self._grid(self.low))
        if behind is None:
            return torch.special.ndtr((log_r - self.loc[..., k, None]) / self.scale[..., k, None])
        y, mass = self._nodes_between(k, None, log_r)
        before = _logit_exp(log_r.unsqueeze(-1) - F.softplus(y))
        return (mass * _interpolate(behind, self.low, before)).sum(-1)

    def _backward(self) -> list[tuple[Tensor, Tensor]]:
        """V after each break, with the lower end of its grid."""
        num_breaks = self.loc.shape[-1]
        low = self._lower_end(num_breaks - 1)
        value = torch.full_like(self._grid(low), 0.0 if self.rest else 1.0)
        out = [(value, low)]
        for k in reversed(range(1, num_breaks)):
            least = -self.log_later[..., k, None]
            later_low, low = low, self._lower_end(k - 1)
            c = self._grid(low)
            log_r = F.logsigmoid(c)
            # Below this y the leader stays too small to keep the lead; above -c it has won.
            start = None
            if self.rest:
                start = _log_expm1(least - log_r)
            # The leader's share of what is left passes a half: there V bends.
            half = _log_expm1(-math.log(2) - log_r)
            y, mass = self._nodes_between(k, start, torch.minimum(c, -c), bend=half)
            after = _logit_exp((log_r.unsqueeze(-1) + F.softplus(y)).clamp_max(-1e-15))
            value = (mass * _interpolate(value, later_low, after)).sum(-1)
            loc, scale = self.loc[..., k, None], self.scale[..., k, None]
            won = torch.special.ndtr((c - loc) / scale) - torch.special.ndtr((-c - loc) / scale)
            value = value + torch.where(c > 0, won, 0.0)
            out.append((value, low))
        return out[::-1]

    def _takes_and_keeps(
        self, k: int, behind: Tensor | None, keeps: tuple[Tensor, Tensor]
    ) -> Tensor:
        """P(k): category k takes the lead at its break, and keeps it."""
        zero = torch.zeros_like(self.low).unsqueeze(-1)
        # For good, where it takes more than it leaves.
        y, mass = self._nodes_between(k, zero, None)
        total = (mass * self._before(behind, y)).sum((-1, -2))
        least = -self.log_later[..., k, None] if self.rest else None
        y, mass = self._nodes_between(k, least, zero, bend=zero - math.log(2))
        kept = _interpolate(*keeps, _logit_exp(y.clamp_max(-1e-15)))
        return total + (mass * self._before(behind, y) * kept).sum((-1, -2))

    def _before(self, behind: Tensor | None, y: Tensor) -> Tensor:
        return torch.ones_like(y) if behind is None else _interpolate(behind, self.low, y)

    def _grid(self, low: Tensor) -> Tensor:
        return low.unsqueeze(-1) + self.fractions * (_HIGH - low).unsqueeze(-1)

    def _lower_end(self, k: int) -> Tensor:
        """Logit of the smallest r that a leader after break k can keep the lead with, or that matters."""
        if not self.rest:
            return self.low
        exact = -torch.log(torch.expm1(self.log_later[..., k]).clamp_min(math.exp(1 - _HIGH)))
        return torch.maximum(exact, self.low)

    def _nodes_between(
        self, k: int, start: Tensor | None, end: Tensor | None, *, bend: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Nodes of y_k between two bounds ``(*batch, n)``, and the Gaussian mass that each stands for.

        With a `bend`, a y where the integrand changes its slope, they are even in x on either side of it, where
        y = end + log sigmoid(x): towards the end, logit r runs off to infinity as x does.
        """
        loc, scale = self.loc[..., k, None, None], self.scale[..., k, None, None]
        with torch.no_grad():
            first, last = loc - _CUT * scale, loc + _CUT * scale
            if start is not None:
                first = torch.maximum(first, start.unsqueeze(-1))
            if end is not None:
                last = torch.minimum(last, end.unsqueeze(-1))
            last = torch.maximum(first, last)
            if bend is None or end is None:
                y = first + (last - first) * self.nodes
                weight = (last - first) * self.weights
            else:
                end = end.unsqueeze(-1)
                first, middle, last = (
                    _logit_exp((y - end).clamp_max(-math.exp(-_HIGH)))
                    for y in (first, bend.unsqueeze(-1), last)
                )
                middle = torch.maximum(torch.minimum(middle, last), first)
                x = [first + (middle - first) * self.nodes, middle + (last - middle) * self.nodes]
                weights = [(middle - first) * self.weights, (last - middle) * self.weights]
                joined = torch.cat(x, -1)
                y = end + F.logsigmoid(joined)
                weight = torch.cat(weights, -1) * torch.sigmoid(-joined)
        z = (y - loc) / scale
        return y, weight * torch.exp(-0.5 * z * z) / (scale * math.sqrt(2 * math.pi))


def _logit_exp(log_p: Tensor) -> Tensor:
    """Logit of exp(log_p)."""
    return log_p - torch.log(-torch.expm1(log_p))


def _log_expm1(x: Tensor) -> Tensor:
    """log(exp(x) - 1), and -inf where x is not positive."""
    return torch.where(x > 0, x + torch.log(-torch.expm1(-x.abs())), -torch.inf)


@lru_cache(maxsize=1)
def _polynomial() -> Tensor:
    """What takes values at consecutive points to the coefficients of the polynomial through them."""
    points = torch.arange(_ORDER, dtype=torch.float64) - (_ORDER - 1) / 2
    return torch.linalg.inv(torch.linalg.vander(points, N=_ORDER)).T.contiguous()


def _interpolate(values: Tensor, low: Tensor, c: Tensor) -> Tensor:
    """Values on the grid from `low` up, at c by Lagrange's polynomial; 0 below the grid and constant above it."""
    num_points = values.shape[-1]
    low = low.reshape(*low.shape, *(1,) * (c.dim() - low.dim()))
    position = ((c - low) * ((num_points - 1) / (_HIGH - low))).clamp(-1.0, num_points - 1.0)
    base = (position.floor() - (_ORDER // 2 - 1)).clamp(0, num_points - _ORDER)
    t = position - (base + (_ORDER - 1) / 2)
    index = base.long().flatten(values.dim() - 1)
    coefficients = values.unfold(-1, _ORDER, 1) @ _polynomial().to(values.device)
    total = coefficients[..., -1].gather(-1, index).reshape(t.shape)
    for j in reversed(range(_ORDER - 1)):
        total = torch.addcmul(coefficients[..., j].gather(-1, index).reshape(t.shape), total, t)
    return torch.where(position < 0, 0.0, total)
