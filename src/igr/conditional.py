r"""Exact draws of the relaxed variables given the category that won (what REBAR and RELAX need).

Both draws are functions of uniform noise that can be differentiated once with respect to the distribution's
parameters. The Gaussian one has no closed form; it inverts a one-dimensional distribution function numerically and
differentiates it implicitly.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from igr import _checks
from igr._checks import values_can_be_read
from igr._quadrature import gauss_legendre
from igr.functional import HALF_LOG_2PI, draw, full_precision

__all__ = [
    "conditional_gaussian",
    "conditional_gaussian_and_log_prob",
    "conditional_gumbel",
    "log_ndtri",
    "rounding_gap",
    "truncated_normal_below",
]


class _Rule(NamedTuple):
    """How fine the quadratures are.

    `drop` is how many nats below the maximum they cover. A draw is inverted on `panels` of `nodes` each; a side of it
    that is w wide takes `least + growth w` nodes, or `most` where w cannot be asked.
    """

    drop: float
    panels: int
    nodes: int
    least: float
    growth: float
    most: int


_FINE = _Rule(drop=36.0, panels=8, nodes=16, least=8.0, growth=19.0, most=96)
_COARSE = _Rule(drop=22.0, panels=6, nodes=8, least=3.0, growth=10.5, most=44)


def _compute_dtype(value: Tensor) -> torch.dtype:
    """float64, except where a device has none."""
    return torch.float32 if value.device.type == "mps" else torch.float64


# ---------------------------------------------------------------------------------------------------------------------
# the normal distribution function in log space


def _safely_small(x: Tensor) -> bool:
    """Whether no Phi(x) underflows, where that can be asked at little cost."""
    if x.device.type != "cpu" or not values_can_be_read(x):
        return False
    return x.numel() == 0 or bool(x.amin() > -25.0)


def _mills(x: Tensor) -> Tensor:
    """phi(x) / Phi(x), for all x."""
    if _safely_small(x):
        return _safe_mills(x, torch.erfc(x * -math.sqrt(0.5)))
    return math.sqrt(2 / math.pi) / torch.special.erfcx(x * -math.sqrt(0.5))


def _safe_mills(x: Tensor, twice: Tensor) -> Tensor:
    """The same where 2 Phi(x), which is given, does not underflow; at a thirtieth of the cost of erfcx."""
    # exp takes long where it underflows
    half_square = (x * x).mul_(-0.5).clamp_(min=-600.0)
    return half_square.exp_().div_(twice).mul_(math.sqrt(2 / math.pi))


def _log_ndtr(x: Tensor) -> Tensor:
    """log Phi(x). torch's own cannot be vmapped, and on a CPU costs 20 times an erfc.

    `igr.discrete.log_normal_cdf`, which is twice differentiable everywhere and above 0 right to more than a rounding of
    1, takes six times as long where nothing underflows.
    """
    if _safely_small(x) and not x.requires_grad:
        return torch.log2(torch.erfc(x * -math.sqrt(0.5))).sub_(1.0).mul_(math.log(2.0))
    left = x.clamp(max=0.0)
    left = torch.log(torch.special.erfcx(left * -math.sqrt(0.5)) * 0.5) - 0.5 * left * left
    right = torch.log1p(-0.5 * torch.erfc(x.clamp(min=0.0) * math.sqrt(0.5)))
    return torch.where(x < 0, left, right)


def _log_ndtr_rise(x0: Tensor, inverse: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x = x0 + inverse offset, log Phi(x) - log Phi(x0) without cancellation, and phi(x) / Phi(x)."""
    # In place where that can be: new memory costs more than arithmetic.
    x = torch.addcmul(x0, inverse, offset)
    if _safely_small(x) and _safely_small(x0):
        twice = (x * -math.sqrt(0.5)).erfc_()
        start = torch.erfc(x0 * -math.sqrt(0.5)).reciprocal_()
        rise = (twice * start).log2_().mul_(math.log(2.0))
        return x, rise, _safe_mills(x, twice)
    mills, step = _mills(x), inverse * offset
    scaled = torch.special.erfcx(x.clamp(max=0.0) * -math.sqrt(0.5))
    start = torch.special.erfcx(x0.clamp(max=0.0) * -math.sqrt(0.5))
    rise = torch.log(scaled / start) - 0.5 * step * (x + x0)
    return x, torch.where((x < 0) & (x0 < 0), rise, _log_ndtr(x) - _log_ndtr(x0)), mills


def _log_mills(x: Tensor) -> Tensor:
    r"""log(phi(x) / Phi(x)), also where both underflow."""
    left = 0.5 * math.log(2 / math.pi) - torch.log(
        torch.special.erfcx(x.clamp(max=0.0) * -math.sqrt(0.5))
    )
    right = -0.5 * x * x - HALF_LOG_2PI - _log_ndtr(x.clamp(min=0.0))
    return torch.where(x < 0, left, right)


def log_ndtri(log_p: Tensor) -> Tensor:
    r"""The x at which :math:`\log \Phi(x)` equals `log_p`; torch has no such inverse.

    Exact to rounding from ``log_p = -1e300`` to the last number below 0. Not differentiable.

    Args:
        log_p: any shape, negative.

    Returns:
        The same shape; in float32 for half precision.

    Example:
        >>> log_ndtri(torch.special.log_ndtr(torch.tensor([-100.0, -1.0, 3.0]))).round(decimals=3)
        tensor([-100.,   -1.,    3.])
    """
    log_p = full_precision(_checks.floating("log_p", log_p))
    with torch.no_grad():
        lower = torch.special.ndtri(log_p.clamp(min=-40.0).exp())
        upper = -torch.special.ndtri(-torch.expm1(log_p))
        middle = torch.where(log_p < -0.5, lower, upper)
        # log Phi(x) is below -x**2 / 2, and concave: Newton's method needs few steps, from either side
        far = log_p.clamp(max=-30.0)
        x = -torch.sqrt(-2 * far - torch.log(-4 * math.pi * far))
        for _ in range(3):
            x = x - (_log_ndtr(x) - far) * torch.exp(-_log_mills(x))
        return torch.where(log_p < -30.0, x, middle)


def _distance_below(c: Tensor, log_u: Tensor) -> Tensor:
    r"""d >= 0 with log Phi(c - d) = log Phi(c) + log u, without cancellation where c is far below 0."""
    near = c.clamp(min=-5.0)
    near = near - log_ndtri(log_u + _log_ndtr(near))
    far = c.clamp(max=-5.0)
    start = torch.log(torch.special.erfcx(far * -math.sqrt(0.5)))
    d = -2 * log_u / (torch.sqrt(far * far - 2 * log_u) - far)
    for _ in range(4):
        scaled = torch.special.erfcx((d - far) * math.sqrt(0.5))
        excess = torch.log(scaled) - start - d * (0.5 * d - far) - log_u
        d = d + excess * scaled * math.sqrt(math.pi / 2)
    return torch.where(c < -5.0, d, near).clamp(min=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# first derivatives only


class _FirstOrder(torch.autograd.Function):
    """Passes a first derivative through; refuses to be differentiated again, for the derivative is held constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Tensor, *parameters: Tensor) -> Tensor:
        return derivative.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        raise RuntimeError(
            "a conditional draw, and the loc that from_logits and from_probs solve for, have first derivatives with "
            "respect to the distribution's parameters only; differentiate a function of them with respect to something "
            "else, such as a control variate's parameters, and for second derivatives give loc itself, as a head does"
        )


def _first_order(derivative: Tensor, *parameters: Tensor) -> Tensor:
    if (
        torch.compiler.is_compiling()
    ):  # compilers take no function in another's backward, nor differentiate twice
        return derivative
    return _FirstOrder.apply(derivative, *parameters)


class _TruncatedNormal(torch.autograd.Function):
    r"""y = loc + scale x, x standard normal given that y < bound, as a function of uniform noise.

    Either the noise is given, or the value that it leads to.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        loc: Tensor, scale: Tensor, bound: Tensor, noise: Tensor | None, value: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = (bound - loc) / scale
        if value is not None:
            d, x = (bound - value) / scale, (value - loc) / scale
        elif noise is not None:
            d = _distance_below(c, torch.log(noise))
            x = c - d
        # phi(c) / Phi(c) over phi(x) / Phi(x): in (0, 1], for x < c
        ratio = torch.exp(_log_mills(c) - _log_mills(x))
        y = (
            torch.where(c < 0, bound - scale * d, loc + scale * x)
            if value is None
            else value.clone()
        )
        # x - ratio c, regrouped so that nothing cancels where both are far below 0
        slope = torch.where(c < 0, c * (1 - ratio) - d, x - ratio * c)
        return y, ratio, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        loc, scale, bound = inputs[:3]
        _, ratio, slope = output
        ctx.mark_non_differentiable(ratio, slope)
        ctx.save_for_backward(loc, scale, bound, ratio, slope)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        loc, scale, bound, ratio, slope = ctx.saved_tensors
        parameters = (loc, scale, bound)
        ratio = _first_order(ratio, *parameters)
        slope = _first_order(slope, *parameters)
        return grad[0] * (1 - ratio), grad[0] * slope, grad[0] * ratio, None, None


def truncated_normal_below(loc: Tensor, scale: Tensor, bound: Tensor, noise: Tensor) -> Tensor:
    r"""A normal variable given that it is below `bound`, as a differentiable function of uniform noise.

    .. math:: y = \mu + \sigma\, \Phi^{-1}\big(u\, \Phi(c)\big), \qquad c = (b - \mu)/\sigma

    Computed in log space: exact however far the bound is in either tail.

    Args:
        loc, scale, bound, noise: shapes that broadcast; noise is uniform on (0, 1).

    Returns:
        The broadcast shape, differentiable once in loc, scale and bound; in float32 for half precision.

    Example:
        >>> zero, one = torch.zeros(()), torch.ones(())
        >>> truncated_normal_below(zero, one, zero - 100.0, zero + 0.5)
        tensor(-100.0069)
    """
    given = _checks.broadcast(loc=loc, scale=scale, bound=bound, noise=noise)
    loc, scale, bound, noise = (full_precision(x) for x in given)
    y: Tensor = _TruncatedNormal.apply(loc, scale, bound, noise, None)[0]
    return y


# ---------------------------------------------------------------------------------------------------------------------
# the largest of several normals, given which one it is


def _rule_and_integral(num_nodes: int) -> tuple[list[float], list[float], list[list[float]]]:
    """Nodes and weights of `gauss_legendre`, and a matrix from values at the nodes to an integral.

    The integral from -1 to x of the polynomial through the values (on [-1, 1]) is a polynomial; the matrix has its
    coefficients of x**0, x**1, ...
    """
    # Legendre polynomials and their integrals from -1, as coefficients of powers
    powers = [[1.0], [0.0, 1.0]]
    for n in range(2, num_nodes + 1):
        longer = [0.0, *(c * (2 * n - 1) / n for c in powers[-1])]
        for i, c in enumerate(powers[-2]):
            longer[i] -= c * (n - 1) / n
        powers.append(longer)
    integrals = []
    for n in range(num_nodes):
        coefficients = [0.0, *(c / (i + 1) for i, c in enumerate(powers[n]))]
        coefficients[0] = -sum(c * (-1) ** i for i, c in enumerate(coefficients))
        integrals.append(coefficients + [0.0] * (num_nodes + 1 - len(coefficients)))
    nodes, weights = gauss_legendre(num_nodes)
    matrix = []
    for node, weight in zip(nodes, weights, strict=True):
        x = 2 * node - 1
        legendre = [1.0, x]
        for n in range(2, num_nodes):
            legendre.append(((2 * n - 1) * x * legendre[-1] - (n - 1) * legendre[-2]) / n)
        series = [(2 * n + 1) * weight * legendre[n] for n in range(num_nodes)]
        matrix.append(
            [
                sum(a * row[j] for a, row in zip(series, integrals, strict=True))
                for j in range(num_nodes + 1)
            ]
        )
    return nodes, weights, matrix


# Made once: compilers trace neither the making nor a cache.
_RULES = {rule.nodes: _rule_and_integral(rule.nodes) for rule in (_FINE, _COARSE)}
_MOST = {rule.most: gauss_legendre(rule.most) for rule in (_FINE, _COARSE)}


# The batch M comes last, and the n normals before it: what they share, or nodes, then broadcasts over long runs of
# memory.


class _Density(NamedTuple):
    r"""Density of t, the largest of several normals, given which one it is, up to a factor.

    With x_j = (t - m_j) / s_j, k the winner, the density on t > floor is proportional to exp(psi(t)) with

        psi(t) = -x_k**2 / 2 + sum over others of log Phi(x_j),

    which is concave. Everything is measured from its maximum, so that nothing cancels where psi itself is huge.

    Shapes: (n, M) for x_j at the maximum, 1 / s_j and the others (0 or 1); (M,) for x_k at the maximum and s_k, and
    for the range: t less the maximum is left + unit (exp(v) - 1), v up to `width`. In v a density is resolved evenly:
    only at the left end can factors with a small scale be seen, for a factor whose step lies d above it has a scale of
    at least d / sqrt(2 drop).
    """

    x0: Tensor
    inverse: Tensor
    others: Tensor
    own0: Tensor
    scale_k: Tensor
    left: Tensor
    unit: Tensor
    width: Tensor

    def at(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """psi less its maximum (q, M), x and phi(x) / Phi(x) (q, n, M) at `offset` (q, M) from the maximum."""
        x, rise, mills = _log_ndtr_rise(self.x0, self.inverse, offset.unsqueeze(1))
        own = offset / self.scale_k
        return (rise * self.others).sum(1) - own * (self.own0 + 0.5 * own), x, mills

    def place(self, v: Tensor) -> Tensor:
        """Offset from the maximum."""
        return torch.addcmul(self.left, self.unit, torch.expm1(v))


def _find_density(
    loc: Tensor, scale: Tensor, winner: Tensor, others: Tensor, floor: Tensor, drop: float
) -> tuple[_Density, Tensor, Tensor]:
    """Finds the maximum, and the range where psi is within `drop` of it. Returns psi's maximum and its place too."""
    inverse = 1 / scale
    loc_k, scale_k = (loc * winner).sum(0), (scale * winner).sum(0)
    weight = others.to(loc.dtype)
    scaled_weight = weight * inverse

    # the maximum: psi' is convex and falls, so that Newton's method from the left does not overshoot
    mode = torch.maximum(loc_k, floor)
    for _ in range(10):
        x = (mode - loc) * inverse
        mills = _mills(x)
        slope = (mills * scaled_weight).sum(0) - (mode - loc_k) / scale_k**2
        curve = ((mills * (x + mills)).clamp(0.0, 1.0) * scaled_weight * inverse).sum(0)
        before, mode = mode, torch.maximum(mode + slope / (curve + scale_k**-2), floor)
        if values_can_be_read(mode) and not bool((mode - before > 1e-9 * scale_k).any()):
            break
    x0 = (mode - loc) * inverse
    own0 = (mode - loc_k) / scale_k
    mills = _mills(x0)
    fall = (own0 / scale_k - (mills * scaled_weight).sum(0)).clamp(min=0.0)
    # h (x + h) lies in (0, 1); the clamp is for rounding where x is far below 0
    curve = ((mills * (x0 + mills)).clamp(0.0, 1.0) * scaled_weight * inverse).sum(0) + scale_k**-2
    found = _Density(x0, inverse, weight, own0, scale_k, *[torch.zeros_like(mode)] * 3)

    def newton(offset: Tensor) -> Tensor:
        """A step towards where psi has fallen by `drop`."""
        psi, _, mills = found.at(offset.unsqueeze(0))
        slope = (mills[0] * scaled_weight).sum(0) - (own0 + offset / scale_k) / scale_k
        return offset - (psi[0] + drop) / slope

    # the right end: psi'' <= -1 / scale_k**2 bounds it, and Newton's method comes nearer from there
    right = 2 * drop / (fall + torch.sqrt(fall * fall + 2 * drop / scale_k**2))
    for _ in range(3):
        right = torch.minimum(newton(right).clamp(min=0.0), right)
    # the left end: psi'' is at most what it is at the maximum, and no factor can fall by more than the whole may
    bound = -torch.sqrt(2 * drop / curve)
    gain, log_cdf = 0.5 * own0 * own0, _log_ndtr(x0)
    limit = -scale * (x0 + torch.sqrt(2 * (drop + gain - log_cdf)))
    limit = torch.where(others, limit, -torch.inf).amax(0)
    left = torch.minimum(torch.maximum(bound, limit), 1e-3 * bound)
    for _ in range(3):
        left = torch.minimum(torch.maximum(newton(left), bound), 1e-3 * bound)
    left = torch.maximum(left, floor - mode)

    visible = winner | (others & (x0 + left * inverse < 7.0))
    unit = 2.5 * torch.where(visible, scale, torch.inf).amin(0)
    width = torch.log1p(((right - left) / unit).clamp(min=1e-12))
    found = found._replace(left=left, unit=unit, width=width)
    return found, (weight * log_cdf).sum(0) - gain, mode


def _invert(density: _Density, noise: Tensor, rule: _Rule) -> Tensor:
    """The t, less the maximum, whose distribution function is the noise (M,): Gauss-Legendre panels, then a polish."""
    left, panels = density.left, rule.panels
    node, node_weight, to_integral = (
        torch.tensor(a, dtype=left.dtype, device=left.device) for a in _RULES[rule.nodes]
    )
    node, node_weight = node.unsqueeze(-1), node_weight.unsqueeze(-1)
    panel = torch.arange(panels, dtype=left.dtype, device=left.device).unsqueeze(-1)
    width = density.width / panels
    v = (panel.unsqueeze(-1) + node).flatten(0, 1) * width
    # per unit of v / width, in which every panel has length 1
    values = torch.exp(density.at(density.place(v))[0] + v) * (density.unit * width)
    values = values.unflatten(0, (panels, rule.nodes))
    mass = (values * node_weight).sum(1)
    total, below = mass.sum(0), mass.cumsum(0)

    # the panel that holds the quantile, and in it the quantile of the polynomial through the nodes
    target = noise * total
    index = (below < target).sum(0, keepdim=True).clamp(max=panels - 1)
    chosen = mass.gather(0, index).squeeze(0)
    inside = target - (below.gather(0, index).squeeze(0) - chosen)
    values = values.gather(0, index.unsqueeze(1).expand(1, *values.shape[1:])).squeeze(0)
    coefficients = (to_integral.mT @ values * 0.5).unbind(0)
    low, high = -torch.ones_like(target), torch.ones_like(target)
    z = (2 * inside / chosen.clamp(min=1e-300) - 1).clamp(-1.0, 1.0)
    for _ in range(6):
        integral, slope = coefficients[-1], torch.zeros_like(z)
        for c in reversed(coefficients[:-1]):
            slope = torch.addcmul(integral, slope, z)
            integral = torch.addcmul(c, integral, z)
        excess = integral - inside
        low = torch.where(excess < 0, z, low)
        high = torch.where(excess < 0, high, z)
        z = z - excess / slope
        z = torch.where((z >= low) & (z <= high), z, 0.5 * (low + high))
    first, t, last = (density.place(width * (index + i)) for i in (0, 0.5 * (z + 1), 1))
    t = torch.minimum(torch.maximum(t, first), last)

    # polished, measured from the end of the panel that is nearer to the tail
    upper = noise > 0.5
    beyond = (mass * torch.where(upper, panel > index, panel < index)).sum(0)
    tail = torch.where(upper, 1 - noise, noise) * total
    for _ in range(2):
        start, end = torch.where(upper, t, first), torch.where(upper, last, t)
        psi = density.at(torch.cat([start + (end - start) * node, t]))[0]
        relative = torch.exp(psi)
        part = (relative[:-1] * node_weight).sum(0) * (end - start)
        # where the quantile lies past the last panel nothing is left beyond
        beyond_t = torch.maximum(beyond + part, 1e-3 * tail)
        step = torch.log(beyond_t / tail) * beyond_t / relative[-1]
        t = torch.minimum(torch.maximum(torch.where(upper, t + step, t - step), first), last)
    return t.squeeze(0)


def _side(
    density: _Density, start: Tensor, width: Tensor, rule: tuple[list[float], list[float]]
) -> tuple[Tensor, ...]:
    """Integrals over v from `start` on of the density, and of it times derivatives of psi.

    Returns:
        Those of 1, x_k and x_k**2 - 1 (M,), phi / Phi and x phi / Phi (n, M).
    """
    node, weight = (
        torch.tensor(a, dtype=start.dtype, device=start.device).unsqueeze(-1) for a in rule
    )
    v = torch.addcmul(start, node, width)
    offset = density.place(v)
    psi, x, mills = density.at(offset)
    mass = torch.exp(psi + v) * weight * (density.unit * width)
    own = density.own0 + offset / density.scale_k
    by_loc = mills.mul_(mass.unsqueeze(1)).sum(0)
    by_scale = mills.mul_(x).sum(0)
    return mass.sum(0), (mass * own).sum(0), (mass * (own * own - 1)).sum(0), by_loc, by_scale


def _sides(density: _Density, t: Tensor, rule: _Rule) -> tuple[Tensor, ...]:
    """The same below and above t (2, ..., M), by Gauss-Legendre rules of as many nodes as each needs."""
    at_t = torch.log1p((t - density.left) / density.unit)
    start = torch.cat([torch.zeros_like(at_t), at_t])
    width = torch.cat([at_t, density.width - at_t])
    if not values_can_be_read(t):
        both = _Density(*(torch.cat([x, x], -1) for x in density))
        results = [_side(both, start, width, _MOST[rule.most])]
        order = None
    else:
        # NaN of parameters that were not checked gives NaN
        needs = (rule.least + rule.growth * width).nan_to_num(0.0).clamp(min=8.0)
        needs = torch.ceil(needs / 4).long() * 4
        # those of like needs together
        order = needs.argsort()
        levels, counts = (x.tolist() for x in needs.unique(return_counts=True))
        results, done = [], 0
        for nodes, count in zip(levels or [8], counts or [0], strict=True):
            # pieces whose memory is bounded, small ones on a CPU for the sake of its cache
            size = 2**16 if t.device.type == "cpu" else 2**26
            for some in order[done : done + count].split(max(1, size // (len(density.x0) * nodes))):
                piece = _Density(*(x.index_select(-1, some % len(t)) for x in density))
                results.append(_side(piece, start[some], width[some], gauss_legendre(nodes)))
            done += count
    columns = [torch.cat(column, -1) for column in zip(*results, strict=True)]
    if order is not None:
        columns = [x.index_select(-1, order.argsort()) for x in columns]
    return tuple(x.unflatten(-1, (2, -1)).movedim(-2, 0) for x in columns)


class _Largest(torch.autograd.Function):
    """Draw of the largest normal given which one it is, log-probability of that, and derivatives of both.

    Shapes: (M, n) for loc, scale, winner, others; (M,) for floor and noise. With `given`, the values of t stand in the
    place of the noise that leads to them. Returns t, log P (M,) and the derivatives of both with respect to loc and
    scale (M, n); those of t are implicit, from the side of t on which there is less.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        loc: Tensor,
        scale: Tensor,
        winner: Tensor,
        others: Tensor,
        floor: Tensor,
        noise: Tensor,
        rule: _Rule,
        given: bool,
    ) -> tuple[Tensor, ...]:
        loc, scale, winner, others = (x.mT.contiguous() for x in (loc, scale, winner, others))
        density, peak, mode = _find_density(loc, scale, winner, others, floor, rule.drop)
        t = noise - mode if given else _invert(density, noise, rule)
        ends = (density.place(v) for v in (torch.zeros_like(t), density.width))
        t = torch.clamp(t, *ends)
        mass, own_loc, own_scale, by_loc, by_scale = _sides(density, t, rule)
        total = mass.sum(0)
        log_prob = peak + torch.log(total / density.scale_k) - HALF_LOG_2PI

        upper = mass[0] > mass[1]
        side = torch.where(upper, mass[1], mass[0]) / total
        towards = torch.where(upper, 1.0, -1.0) / torch.exp(density.at(t.unsqueeze(0))[0][0])
        t_gradients, log_prob_gradients = [], []
        for own, by_others in ((own_loc, by_loc), (own_scale, by_scale)):
            slopes = torch.where(winner, own.unsqueeze(1), -by_others * density.others)
            slopes = slopes * density.inverse
            whole = slopes.sum(0)
            change = torch.where(upper, slopes[1], slopes[0]) - side * whole
            t_gradients.append((change * towards).mT)
            log_prob_gradients.append((whole / total).mT)
        return (noise if given else mode + t, log_prob, *t_gradients, *log_prob_gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(inputs[0], inputs[1], *output[2:])

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        loc, scale, *jacobian = ctx.saved_tensors
        t_loc, t_scale, p_loc, p_scale = [_first_order(j, loc, scale) for j in jacobian]
        grad_t, grad_p = grad[0].unsqueeze(-1), grad[1].unsqueeze(-1)
        grad_loc = grad_t * t_loc + grad_p * p_loc
        grad_scale = grad_t * t_scale + grad_p * p_scale
        return grad_loc, grad_scale, None, None, None, None, None, None


# ---------------------------------------------------------------------------------------------------------------------
# public


def _uniform(like: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Uniform noise strictly inside (0, 1) in the dtype of the computation."""
    dtype = _compute_dtype(like)
    if noise is None:
        noise = draw(torch.rand, like.shape, dtype, like.device, generator)
    elif _checks.tensor("noise", noise).shape != like.shape:
        raise ValueError(
            f"noise: expected uniform numbers of shape {tuple(like.shape)}, got shape {tuple(noise.shape)}"
        )
    eps = torch.finfo(dtype).eps / 4
    return noise.to(dtype).clamp(eps, 1 - 2 * eps)


def rounding_gap(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A lead for the winner that survives rounding in a softmax at that temperature: `gap` below.

    Example:
        >>> rounding_gap(0.5, torch.float32) < 1e-5
        True
    """
    temperature = full_precision(temperature) if isinstance(temperature, Tensor) else temperature
    return 16 * torch.finfo(dtype).eps * temperature


def conditional_gaussian_and_log_prob(
    loc: Tensor,
    scale: Tensor,
    onehot: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    allowed: Tensor | None = None,
    gap: float | Tensor = 0.0,
    value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""`conditional_gaussian`, and the log-probability of the category (21) that the same quadrature yields.

    Both are differentiable in `loc` and `scale`. This is what a score-function estimator with a control variate needs,
    at no more than the cost of the draw.

    With `value`, a draw ``(*batch, K-1)`` that `onehot` is the category of, the result is that very draw, but with the
    derivatives of a conditional one: those of y as a function of loc and scale with the *conditional* noise that leads
    to it held. Its distribution given the category is the same, and so it may stand in for a new draw; what it shares
    with `value` cancels in REBAR's difference of gradients.

    Returns:
        y of shape ``(*batch, K-1)`` and the log-probability of shape ``(*batch,)``.
    """
    loc, scale = _checks.broadcast(loc=_checks.floating("loc", loc), scale=scale)
    if _checks.tensor("onehot", onehot).shape[-1:] != (loc.shape[-1] + 1,):
        raise ValueError(
            f"onehot: expected {loc.shape[-1] + 1} categories in its last dimension, one more than loc has, "
            f"got shape {tuple(onehot.shape)}"
        )
    dtype = loc.dtype
    size = loc.shape[-1]
    shape = (*_checks.broadcast_batch("onehot", loc.shape[:-1], onehot.shape[:-1]), size)
    compute = _compute_dtype(loc)
    m, s = loc.to(compute).expand(shape), scale.to(compute).expand(shape)
    winner = (onehot > 0).expand(*shape[:-1], size + 1)
    u = _uniform(m, noise, generator) if value is None else None
    given = None if value is None else value.detach().to(compute).expand(shape)
    bounded = torch.ones_like(winner[..., 0])
    others = ~winner[..., :-1]
    if allowed is not None:
        allowed = allowed.expand(winner.shape)
        others = others & allowed[..., :-1]
        bounded = allowed[..., -1]
    last = winner[..., -1]
    # where the last category wins there is no winner among the others: any will do, its result is not used
    stand_in = torch.zeros_like(others)
    stand_in[..., 0] = True
    chosen = torch.where(last.unsqueeze(-1), stand_in, winner[..., :-1])
    if size == 1 and allowed is None:
        # two categories: nothing but a normal truncated below at 0
        mirrored = (None, -given) if u is None else (1 - u, None)  # type: ignore[operator]
        t = -_TruncatedNormal.apply(-m, s, torch.zeros_like(m), *mirrored)[0].squeeze(-1)
        log_prob = _log_ndtr(m / s).squeeze(-1)
    else:
        floor = torch.where(bounded | last, 0.0, -torch.inf).to(compute)
        source = ((given if u is None else u) * chosen).sum(-1)  # type: ignore[operator]
        flat = [a.reshape(-1, size) for a in (m, s, chosen, others & ~chosen)]
        rule = _FINE if dtype == torch.float64 else _COARSE
        t, log_prob = _Largest.apply(*flat, floor.reshape(-1), source.reshape(-1), rule, u is None)[
            :2
        ]
        t, log_prob = t.reshape(shape[:-1]), log_prob.reshape(shape[:-1])
    below_zero = _log_ndtr(-m / s)
    log_last = torch.where(others, below_zero, 0.0).sum(-1)
    log_prob = torch.where(last, log_last, log_prob)

    top = torch.where(last, 0.0, t).unsqueeze(-1)
    if given is not None:
        top = top.expand(shape)
        rest = _TruncatedNormal.apply(m, s, top, None, torch.minimum(given, top.detach()))[0]
        y = torch.where(winner[..., :-1], top, rest)
        if allowed is not None:
            y = torch.where(others | winner[..., :-1], y, -torch.inf)
        return y.to(dtype), log_prob.to(dtype)

    # rounding must not let another category win, in the dtype of the result and after a softmax
    if isinstance(gap, Tensor):
        gap = gap.to(compute).unsqueeze(-1)
    gap = gap + torch.finfo(dtype).tiny
    if allowed is None:
        top = torch.where(last.unsqueeze(-1), top, top.clamp(min=gap))
    else:
        top = torch.where((bounded & ~last).unsqueeze(-1), top.clamp(min=gap), top)
    ceiling = top - gap - 4 * torch.finfo(dtype).eps * top.abs()
    rest = truncated_normal_below(m, s, top, u)  # type: ignore[arg-type]
    y = torch.where(winner[..., :-1], top, torch.minimum(rest, ceiling))
    if allowed is not None:
        y = torch.where(others | winner[..., :-1], y, -torch.inf)
    return y.to(dtype), log_prob.to(dtype)


def conditional_gaussian(
    loc: Tensor,
    scale: Tensor,
    onehot: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    allowed: Tensor | None = None,
    gap: float | Tensor = 0.0,
) -> Tensor:
    r"""Independent normals y given which of (y, 0) is the largest: exact, differentiable, stable in the tails.

    Given that category k < K wins, :math:`y_k = t` has the density

    .. math:: \frac{1}{P(k)} \frac{1}{\sigma_k} \phi\Big(\frac{t - \mu_k}{\sigma_k}\Big)
              \prod_{j \ne k} \Phi\Big(\frac{t - \mu_j}{\sigma_j}\Big), \qquad t > 0,

    the integrand of (21), and the others are normals truncated above at t. Given that the last one wins, all are
    normals truncated above at 0. The distribution function of t is integrated in log space and inverted; first
    derivatives come from the implicit function theorem, :math:`dt/d\theta = -(\partial F/\partial\theta) / f(t)`. The
    computation is in float64 whatever the dtype of the arguments, and its cost is linear in K.

    Args:
        loc, scale: shape ``(*batch, K-1)``.
        onehot: shape ``(*batch, K)``.
        noise: uniform on (0, 1), shape ``(*batch, K-1)``; drawn where not given.
        generator: source of the noise.
        allowed: boolean, broadcasts against ``(*batch, K)``. Coordinates that are not allowed come out as -inf; where
            the last category is not allowed, nothing bounds t below.
        gap: the winner leads by at least this much; see `rounding_gap`. A number or shape ``(*batch,)``.

    Returns:
        y of shape ``(*batch, K-1)``, differentiable once in loc and scale.

    Raises:
        ValueError: onehot does not have K categories, or noise does not have the shape of the result.

    Differs from the paper: its released code draws anew, whatever the category (erratum E10).

    Example:
        >>> onehot = torch.eye(3)
        >>> y = conditional_gaussian(torch.zeros(3, 2), torch.ones(3, 2), onehot)
        >>> torch.cat([y, torch.zeros(3, 1)], -1).argmax(-1)
        tensor([0, 1, 2])
    """
    return conditional_gaussian_and_log_prob(
        loc, scale, onehot, noise=noise, generator=generator, allowed=allowed, gap=gap
    )[0]


def _conditional_log_exponential(logits: Tensor, value: Tensor, winner: Tensor) -> Tensor:
    """Logarithms of the exponential variables that lead to a given draw in `conditional_gumbel`."""
    largest = torch.where(winner, value, -torch.inf).amax(-1, keepdim=True)
    behind = (largest - value).clamp(min=torch.finfo(value.dtype).tiny)
    others = torch.where(logits > -torch.inf, logits - largest, 0.0) + _log_expm1(behind)
    return torch.where(winner, torch.logsumexp(logits, -1, keepdim=True) - largest, others)


def _log_expm1(x: Tensor) -> Tensor:
    """log(exp(x) - 1), the inverse of softplus, for x > 0."""
    return torch.where(x > 30.0, x, torch.log(torch.expm1(x.clamp(max=30.0))))


def conditional_gumbel(
    logits: Tensor,
    onehot: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    gap: float | Tensor = 0.0,
    value: Tensor | None = None,
) -> Tensor:
    r"""Logits plus independent standard Gumbel variables, given which sum is the largest (Maddison et al. 2017).

    The largest, T, is a Gumbel variable with location :math:`\operatorname{logsumexp}(\text{logits})`, whichever wins;
    the others are Gumbel variables truncated above at T:

    .. math:: y_j = T - \operatorname{softplus}\big(T + \log E_j - \text{logits}_j\big), \qquad E_j = -\log u_j.

    Args:
        logits: shape ``(*batch, K)``; -inf for a category that cannot be drawn, whose y is -inf.
        onehot: shape ``(*batch, K)``.
        noise: uniform on (0, 1), shape ``(*batch, K)``; drawn where not given.
        generator: source of the noise.
        gap: the winner leads by at least this much, as in `conditional_gaussian`.
        value: a draw that `onehot` is the category of, as in `conditional_gaussian_and_log_prob`: the conditional noise
            that leads to it is used.

    Returns:
        y of shape ``(*batch, K)``, differentiable in logits.

    Raises:
        ValueError: onehot or noise does not fit logits.

    Example:
        >>> conditional_gumbel(torch.tensor([5.0, 0.0, -5.0]), torch.tensor([0.0, 0.0, 1.0])).argmax()
        tensor(2)
    """
    if _checks.tensor("onehot", onehot).shape[-1:] != _checks.floating("logits", logits).shape[-1:]:
        raise ValueError(
            f"onehot: expected {logits.shape[-1]} categories in its last dimension, as logits has, "
            f"got shape {tuple(onehot.shape)}"
        )
    dtype = logits.dtype
    wide = logits.to(_compute_dtype(logits))
    shape = _checks.broadcast_batch("onehot", wide.shape, onehot.shape)
    wide = wide.expand(shape)
    winner = (onehot > 0).expand(shape)
    if value is None:
        log_e = torch.log(-torch.log(_uniform(wide, noise, generator)))
    else:
        log_e = _conditional_log_exponential(wide.detach(), value.detach().to(wide.dtype), winner)
    largest = torch.logsumexp(wide, -1, keepdim=True) - torch.where(winner, log_e, 0.0).sum(
        -1, keepdim=True
    )
    possible = wide > -torch.inf
    finite = torch.where(possible, wide, 0.0)
    behind = torch.nn.functional.softplus(largest + log_e - finite)
    if isinstance(gap, Tensor):
        gap = gap.to(wide.dtype).unsqueeze(-1)
    gap = gap + torch.finfo(dtype).tiny + 4 * torch.finfo(dtype).eps * largest.abs()
    y = torch.where(winner, largest, largest - torch.maximum(behind, gap))
    return torch.where(possible | winner, y, -torch.inf).to(dtype)
