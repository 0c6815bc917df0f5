r"""Which category of a broken stick is the largest: exact probabilities where Proposition 2 does not apply.

Let :math:`w = SB(\sigma(y))` (16) with independent Gaussian y, :math:`R_k = \prod_{i \le k} (1 - \sigma(y_i))` what is
left after k breaks, :math:`x_k = \max_{j \le k} \log (w_j / R_k)` how far the leader is ahead of it, and
:math:`m_k = \max_{j > k} \log (w_j / R_k)` the best of what is to come. Then

.. math:: x_k = \max(x_{k-1} + \zeta(y_k),\; y_k), \qquad
          m_{k-1} = \max(m_k - \zeta(y_k),\; \log \sigma(y_k)), \qquad \zeta(y) = \log (1 + e^y),

and category k wins where :math:`x_{k-1} < \log \sigma(y_k)` and :math:`m_k < y_k`. What came before, the break, and
what is to come are independent, so with :math:`G_k(x) = P(x_k \le x)`

.. math:: G_k(x) = \int_{y < x} \phi_k(y)\, G_{k-1}(x - \zeta(y))\, dy, \qquad
          P(k) = E_{m_k} \int_{y > m_k} \phi_k(y)\, G_{k-1}(\log \sigma(y))\, dy, \qquad P(K) = G_{K-1}(0).

Only :math:`-\log(K - k) \le x \le 0` matters after k breaks: a leader below that loses for sure, one above has won.
There G is as smooth as the Gaussians are, so the polynomial through its values at a few Chebyshev nodes is as good as
G itself, and the law of m, which is not smooth, is needed for the integrals of such polynomials only: it is kept as
weights of the same nodes. Nodes and those of the integrals depend on K and on the smallest scale, not on the rest of
the parameters. So problems that need the same resolution share them, and the work is in matrix products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igr import _checks, functional
from igr._quadrature import gauss_legendre, recomputed

__all__ = ["leader_log_probs", "recovered"]

_CUT = 6.0  # a Gaussian has 2e-9 of its mass further out
_FAR = 16.0  # breaks that leave or take e^-16 of what a polynomial resolves leave or take nothing
_COARSEST = 0.6  # scales above this need no fewer nodes: log(1 + e^y) bends
_FINEST = 0.02
_STEPS = 3  # resolutions between one and its half
_UNREAD_SCALE, _UNREAD_DEPTH = 0.1, 8.0  # where values cannot be read
_TAIL_POINTS = 5  # of the polynomials that stand for G where y runs off to either side
_TAIL_NODES = 20
_PANEL, _PANEL_NODES = 0.6, 3  # width in scales
_NODES_PER_SCALE, _LEAST_NODES = 2.1, 7  # of G
_NODES_AT_ONCE = 24
_SMALLEST = 1e-9  # smaller probabilities are lost in rounding


def leader_log_probs(
    loc: Tensor,
    scale: Tensor,
    *,
    rest: bool = True,
    allowed: Tensor | None = None,
    smallest_scale: float | None = None,
    max_elements: int = 2**21,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Log-probabilities of the category with the largest stick-breaking weight, for all K at O(K) cost.

    They are what `igr.SharpStickBreakingIGR` tends to as its temperature goes to 0 and, with ``rest=False``, what
    `igr.StickBreakingIGR` tends to. Differentiable in `loc` and `scale`.

    Args:
        loc, scale: of the Gaussian y, ``(*batch, K-1)``.
        rest: whether what is left of the stick is a category, the last. In (18) it is never chosen (erratum E5).
        allowed: boolean, broadcasts against ``(*batch, K)``; other categories break nothing off, and the last allowed
            one takes what is left.
        smallest_scale: what to resolve; smaller scales count as this. By default each element's own smallest, or 0.02
            where that is larger. Where values cannot be read (a compiled or exported graph, `torch.func.vmap`): 0.1.
        max_elements: size of what is held at once. Batches that need more are computed in chunks, and computed again in
            the backward pass (not under `torch.func.grad`, which keeps them all).
        validate_args: whether to check values, by default as `torch.distributions` does.

    Raises:
        ValueError: if shapes do not match, a scale is not positive, or nothing is allowed.

    Returns:
        ``(*batch, K)``. The probabilities are off by less than 1e-6 for scales in [0.05, 5] and loc in [-10, 10].

    >>> leader_log_probs(torch.zeros(1), torch.ones(1)).exp()
    tensor([0.5000, 0.5000])
    """
    loc, scale, allowed = _checks.gaussians(loc, scale, allowed, validate_args)
    if smallest_scale is not None:
        smallest_scale = _checks.number(
            "smallest_scale", smallest_scale, "a positive finite number", _checks.is_positive
        )
    _checks.count("max_elements", max_elements)
    return recovered(loc, scale, rest, allowed, {}, smallest_scale, max_elements)


def recovered(
    loc: Tensor,
    scale: Tensor,
    rest: bool,
    allowed: Tensor | None,
    made: dict[Any, _Nodes],
    smallest_scale: float | None = None,
    max_elements: int = 2**21,
) -> Tensor:
    """`leader_log_probs` of arguments that were checked; `made` keeps nodes for the next call: most of the work."""
    dtype = loc.dtype
    loc, scale = loc.double(), scale.double()
    if allowed is not None:
        active = functional.stick_breaking_active(allowed)
        # A break this far down takes nothing off.
        loc, scale = torch.where(active, loc, -1e3), torch.where(active, scale, 1.0)
    *batch, num_breaks = loc.shape
    loc, scale = loc.reshape(-1, num_breaks), scale.reshape(-1, num_breaks)
    probs = _probs(loc, scale, rest, smallest_scale, max_elements, made)
    probs = probs.reshape(*batch, num_breaks + 1)
    if not rest:
        probs = torch.cat([probs[..., :-1], torch.zeros_like(probs[..., -1:])], -1)
    if allowed is not None:
        probs = _move_rest(probs, allowed)
    # What rounding drowns goes on as a straight line, with a gradient that points the right way.
    linear = math.log(_SMALLEST) + (probs / _SMALLEST - 1).clamp_min(-1.0)
    log_probs = torch.where(probs < _SMALLEST, linear, probs.clamp_min(_SMALLEST).log())
    log_probs = log_probs - probs.sum(-1, keepdim=True).log()
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


def _probs(
    loc: Tensor,
    scale: Tensor,
    rest: bool,
    smallest: float | None,
    max_elements: int,
    made: dict[Any, _Nodes],
) -> Tensor:
    """P(k) for all k, ``(batch, K)``: problems of like needs together, in chunks."""
    if not _checks.values_can_be_read(loc, scale):
        declared = smallest or _UNREAD_SCALE, 0.0 if rest else _UNREAD_DEPTH
        return _Nodes(*declared, loc, max_elements).probs(loc, scale)
    if not loc.shape[0]:
        return torch.cat([loc, loc[:, :1]], -1)
    with torch.no_grad():
        at, width = loc.detach(), scale.detach()  # without tangents too
        finest = width.amin(-1) if smallest is None else torch.full_like(width[:, 0], smallest)
        steps = (_STEPS * torch.log2(_COARSEST / finest.clamp_min(_FINEST))).ceil().clamp_min(0)
        depth = torch.zeros_like(steps)
        if not rest:
            # All breaks are smaller than this with a probability that may be left out.
            depth = -(at - _CUT * width).amax(-1).clamp_max(0.0).floor()
            # Where all breaks are negligible, they may as well be larger by the same factor.
            up = (-20.0 - (at + _CUT * width).amax(-1)).clamp_min(0.0).floor()
            up = up.minimum((depth - 30.0).clamp_min(0.0))
            depth = (depth - up).clamp_max(60.0)
        needs = torch.stack([steps, depth], -1).nan_to_num()  # what is NaN comes out as NaN
        needs, group = needs.unique(dim=0, return_inverse=True)
        order = group.argsort()
        sizes = _checks.as_list(group.bincount())
    if not rest:
        loc = loc + up.unsqueeze(-1)
    parts, room, before = [], max_elements, dict(made)
    made.clear()
    for need, rows in zip(map(tuple, _checks.as_list(needs)), order.split(sizes), strict=True):
        nodes = made[need] = before.get(need) or _Nodes(
            _COARSEST * 2 ** (-need[0] / _STEPS), need[1], loc, max_elements
        )
        for chunk in rows.split(nodes.at_once):
            # kept for the backward pass while there is room
            room -= len(chunk) * nodes.held
            some = loc[chunk], scale[chunk]
            parts.append(nodes.probs(*some) if room >= 0 else recomputed(nodes.probs, *some))
    return torch.cat(parts)[order.argsort()]


class _Nodes:
    """Nodes of all G, and of the integrals over all breaks, for one resolution.

    Args:
        finest: smallest scale.
        depth: what is left in the end counts as a category exp(depth) times smaller than it is.
        like: of whose shape, dtype and device the parameters are.
        max_elements: size of the largest tensors to hold.
    """

    def __init__(self, finest: float, depth: float, like: Tensor, max_elements: int) -> None:
        self.finest, self.max_elements = max(finest, _FINEST), max_elements
        finest = min(self.finest, _COARSEST)
        later = range(like.shape[-1] - 1, -1, -1)
        self.levels: list[_Level] = []
        for n in later:
            previous = self.levels[-1] if self.levels else None
            low, high = -math.log(n + math.exp(depth)), 0.0 if n else -depth
            self.levels.append(_Level(low, high, finest, previous, max_elements, like))
        ends = [[level.left, -level.right] for level in self.levels]
        self.ends = torch.tensor(ends, dtype=like.dtype, device=like.device)
        self.held = sum(level.num_elements for level in self.levels)
        self.at_once = max(1, max_elements // self.held)

    def probs(self, loc: Tensor, scale: Tensor) -> Tensor:
        """P(k) for all k, ``(batch, K)``."""
        scale = scale.clamp_min(self.finest)
        coefficients = torch.ones_like(loc[:, :1])
        tails = _tail_masses(torch.stack([loc, -loc], -1), scale.unsqueeze(-1), self.ends)
        forward = []
        for k, level in enumerate(self.levels):
            inner = _masses(level.y, level.weights, loc[:, k, None], scale[:, k, None])
            masses = torch.cat([tails[:, k, 0], inner, tails[:, k, 1]], -1)
            kept = level.kept(masses)
            taken = masses[:, level.first_taken :]
            forward.append((kept, taken, taken * (coefficients @ level.taken_terms.T)))
            values = (coefficients.unsqueeze(1) @ kept).squeeze(1)
            coefficients = values @ level.to_coefficients.T
        # The law of m after the last break: what is left is all that is to come.
        law = torch.ones_like(loc[:, :1])
        probs = [values[:, 0]]
        for k in reversed(range(len(self.levels))):
            kept, taken, leads = forward[k]
            beaten = law @ self.levels[k].below
            probs.append((leads * beaten).sum(-1))
            if k:
                law = (kept @ law.unsqueeze(-1)).squeeze(-1)
                law = law + (taken * beaten) @ self.levels[k].taken_terms
                law = law @ self.levels[k - 1].to_coefficients
        return torch.stack(probs[::-1], -1)


class _Level:
    """Nodes of G after one break, and of the integrals over that break y, all of them constants.

    The integrals are sums over a number of y: some that stand for all below `left`, those of panels between `left` and
    `right` with the nodes of G among their ends, and some that stand for all above `right`. For a node x, the leader is
    kept by those below it, of which `kept` has log(1 + e^y), and may be overtaken by those above, of which `taken` has
    log(1 + e^-y).
    """

    def __init__(
        self,
        low: float,
        high: float,
        finest: float,
        previous: _Level | None,
        max_elements: int,
        like: Tensor,
    ) -> None:
        def constant(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device)

        self.low = low
        num_nodes = (
            math.ceil(_NODES_PER_SCALE * (high - low) / finest) + _LEAST_NODES if low < high else 1
        )
        x = [high + (low - high) * t for t in reversed(_chebyshev_nodes(num_nodes))]
        # Beyond these, the polynomial through a few points stands for G.
        reach = math.log(math.expm1(finest / 2))
        self.left, self.right = min(low, reach), -reach
        lower, upper = _panels(self.left, low, finest), _panels(high, self.right, finest)
        edges = constant([*lower, *x, *upper[1:], self.right])
        nodes, weights = map(constant, _PANEL_RULE)
        width = edges.diff().unsqueeze(-1)
        self.y = (edges[:-1].unsqueeze(-1) + width * nodes).flatten()
        self.weights = (width * weights).flatten()

        self.x = constant(x)
        self.to_coefficients = _to_coefficients(num_nodes, like).flip(-1)
        first, last = _PANEL_NODES * len(lower), _PANEL_NODES * (len(lower) + num_nodes - 1)
        tail = constant(_chebyshev_nodes(_TAIL_POINTS))
        self.log_kept = torch.cat([_softplus(self.left) * tail, F.softplus(self.y[:last])])
        log_taken = torch.cat([F.softplus(-self.y[first:]), _softplus(-self.right) * tail])
        self.first_taken = _TAIL_POINTS + first
        # Which nodes lie below each y that may be taken; each y that may be kept is below those after.
        node = torch.arange(num_nodes, device=like.device).unsqueeze(-1)
        y = torch.arange(len(log_taken), device=like.device)
        self.below = (_PANEL_NODES * node <= y).to(like)

        self.previous_low, self.num_terms = 0.0, 1
        if previous is not None:
            self.previous_low, self.num_terms = previous.low, len(previous.x)
        self.taken_terms = self._terms(-log_taken, torch.ones_like(log_taken))
        self.num_elements = num_nodes * self.num_terms + 4 * len(self.y)
        # Some nodes at a time: each needs only what lies below it. Where even that is much, when it is needed.
        at_once = min(_NODES_AT_ONCE, max(1, max_elements // (len(self.log_kept) * self.num_terms)))
        self.parts = [slice(i, min(i + at_once, num_nodes)) for i in range(0, num_nodes, at_once)]
        self.kept_terms: list[Tensor] | None = None
        if 16 * len(self.log_kept) * num_nodes * self.num_terms <= max_elements:
            self.kept_terms = [self._kept_terms(part) for part in self.parts]

    def kept(self, masses: Tensor) -> Tensor:
        """What takes coefficients of G before the break to its values after it, ``(batch, terms, nodes)``."""
        if self.kept_terms is not None:
            parts = [_combine(masses, terms) for terms in self.kept_terms]
        else:

            def combine(masses: Tensor, part: slice) -> Tensor:
                return _combine(masses, self._kept_terms(part))

            parts = [recomputed(combine, masses, part) for part in self.parts]
        parts = [part.unflatten(1, (self.num_terms, -1)) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _kept_terms(self, part: slice) -> Tensor:
        """Terms of G before the break at x - log(1 + e^y), for some nodes x and each y below, ``(n, terms nodes)``."""
        x = self.x[part]
        counts = self.first_taken + _PANEL_NODES * torch.arange(
            part.start, part.stop, device=x.device
        )
        num_kept = self.first_taken + _PANEL_NODES * (part.stop - 1)
        is_below = torch.arange(num_kept, device=x.device).unsqueeze(-1) < counts
        return self._terms(x - self.log_kept[:num_kept].unsqueeze(-1), is_below.to(x)).flatten(1)

    def _terms(self, x: Tensor, weight: Tensor) -> Tensor:
        """What G before the break is a sum of, at x, times a weight; before the first break, it is 1."""
        if self.num_terms == 1:
            return weight.unsqueeze(1)
        return _chebyshev(x / self.previous_low, self.num_terms, weight)


def _combine(masses: Tensor, terms: Tensor) -> Tensor:
    return masses[:, : terms.shape[0]] @ terms


def _panels(start: float, end: float, finest: float) -> list[float]:
    """Where panels begin that a Gaussian of the finest scale is smooth on."""
    number = math.ceil((end - start) / (_PANEL * finest))
    return [start + (end - start) * i / number for i in range(number)]


def _chebyshev_nodes(number: int) -> list[float]:
    """Extrema of a Chebyshev polynomial, on [0, 1]."""
    return [0.5 - 0.5 * math.cos(math.pi * i / max(1, number - 1)) for i in range(number)]


def _to_coefficients(number: int, like: Tensor) -> Tensor:
    """What takes values at `_chebyshev_nodes` to the coefficients of `_chebyshev` of the polynomial through them."""
    if number == 1:
        return torch.ones(1, 1, dtype=like.dtype, device=like.device)
    i = torch.arange(number, dtype=like.dtype, device=like.device)
    half = torch.where((i == 0) | (i == number - 1), 0.5, 1.0)
    cosines = torch.cos(math.pi / (number - 1) * (i.unsqueeze(-1) * i))
    return cosines * half * half.unsqueeze(-1) * (2 / (number - 1))


def _chebyshev(t: Tensor, number: int, weight: Tensor) -> Tensor:
    """Chebyshev polynomials T_0, T_1, ... at 1 - 2t times the weight, stacked along the second dimension."""
    t = (1 - 2 * t).clamp(-1, 1)
    out, twice = [weight, t * weight], 2 * t
    for _ in range(number - 2):
        out.append((twice * out[-1]).sub_(out[-2]))
    return torch.stack(out[:number], 1)


def _masses(y: Tensor, weights: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Gaussian densities at y times the weights of y."""
    z = (y - loc) / scale
    log_norm = -scale.log() - 0.5 * math.log(2 * math.pi)
    return weights * torch.exp(torch.addcmul(log_norm, z, z, value=-0.5))


def _tail_masses(loc: Tensor, scale: Tensor, end: Tensor) -> Tensor:
    """What the points of tails stand for: all y < end, polynomials in log(1 + e^y) being integrated.

    Nodes are constants, and the densities at the nodes carry the gradient: with every domain cut where it has no mass,
    that is the derivative of the integral.
    """
    nodes, weights, to_masses = (
        torch.tensor(values, dtype=loc.dtype, device=loc.device)
        for values in (*_TAIL_RULE, _TAIL_POLYNOMIALS)
    )
    with torch.no_grad():
        first = (loc - _CUT * scale).maximum(end - _FAR).minimum(end)
        width = ((loc + _CUT * scale).minimum(end).maximum(first) - first).unsqueeze(-1)
        y = torch.addcmul(first.unsqueeze(-1), width, nodes)
        t = F.softplus(y) / F.softplus(end).unsqueeze(-1)
        powers = [torch.ones_like(t), t]
        while len(powers) < _TAIL_POINTS:
            powers.append(powers[-1] * t)
        basis = torch.stack(powers, -1)
    inner = _masses(y, width * weights, loc.unsqueeze(-1), scale.unsqueeze(-1))
    moments = (inner.unsqueeze(-2) @ basis).squeeze(-2)
    # Further down, log(1 + e^y) is 0.
    below = torch.special.ndtr((end - _FAR - loc) / scale).unsqueeze(-1)
    moments = torch.cat([moments[..., :1] + below, moments[..., 1:]], -1)
    return moments @ to_masses.T


def _lagrange(number: int) -> list[list[float]]:
    """Coefficients of powers of the polynomials that are 1 at one of `_chebyshev_nodes` and 0 at the others."""
    nodes = _chebyshev_nodes(number)
    out = []
    for i, node in enumerate(nodes):
        powers = [1.0]
        for other in nodes[:i] + nodes[i + 1 :]:
            shifted, scaled = [0.0, *powers], [-other * c for c in [*powers, 0.0]]
            powers = [(a + b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        out.append(powers)
    return out


def _softplus(y: float) -> float:
    return math.log1p(math.exp(y))


# Made once: a compiler would trace their making.
_PANEL_RULE, _TAIL_RULE = gauss_legendre(_PANEL_NODES), gauss_legendre(_TAIL_NODES)
_TAIL_POLYNOMIALS = _lagrange(_TAIL_POINTS)
