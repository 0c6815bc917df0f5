r"""Recovering the discrete distribution that a relaxed one tends to as its temperature goes to 0.

Proposition 2 has it as K - 1 one-dimensional integrals, each over a product of K - 1 factors. Here
all of them share one set of nodes, at which the product is formed once, so that the cost grows as
K times the number of nodes. Where the nodes go is worked out for each problem of the batch:

- A category wins only where no other Gaussian lies clearly higher. Below
  :math:`t_1 = \max_k (\mu_k - c\,\sigma_k)` the product of the cdfs is at most :math:`\Phi(-c)`, so
  the integral starts there or at the threshold, whichever is larger; or higher still, where the
  product of many cdfs becomes negligible later (found by Newton's method).
- Hence every Gaussian that matters at a distance :math:`d` above the start has a scale of at least
  :math:`d / 2c`: the resolution that is needed falls off as one over the distance, and
  :math:`t = t_1 + a\,(e^u - 1)`, with :math:`a` in proportion to the smallest scale that matters,
  spreads it evenly. Scales from 0.05 to 5 lie a few e-folds apart in :math:`u`.
- In :math:`u` the integrand is smooth and vanishes at the far end. The trapezoidal rule converges
  geometrically there once the near end, where the integrand may be cut off by the threshold, is
  approached smoothly: :math:`u = h\,\eta\,\psi(x)` with :math:`\psi(x) = x \Phi(x) + \phi(x)`.

The nodes are constants to autograd: the integral does not depend on where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from igr import _checks, _fused, functional
from igr._quadrature import recomputed

__all__ = ["Recovered", "argmax_log_probs", "log_normal_cdf", "monte_carlo_probs", "uniform_loc"]

_SQRT_HALF = math.sqrt(0.5)
_LOG_SQRT_PI = 0.5 * math.log(math.pi)
NODES = 96  # in float64: enough for scales that differ by a factor of 100
_IN_CACHE = 2**16  # numbers; a few tensors of so many fit into a core's cache


def log_normal_cdf(x: Tensor) -> Tensor:
    r"""Logarithm of the standard normal cdf, :math:`\log \Phi(x)`, twice differentiable everywhere.

    `torch.special.log_ndtr` has no half precision, costs many times as much as an `erfc` on a
    CPU, and its derivatives break down in the lower tail in float32. This one computes half precision
    in float32.

    >>> log_normal_cdf(torch.tensor([-100.0, 0.0, 3.0]))
    tensor([-5.0055e+03, -6.9315e-01, -1.3508e-03])
    """
    dtype = _checks.floating("x", x).dtype
    x = functional.full_precision(x)
    # Each branch sees only arguments that it can take, or the gradients of the others would be NaN.
    # Beyond `far` the square of the cdf, which a second derivative divides by, would underflow.
    far = -25.0 if x.dtype == torch.float64 else -8.5
    upper = torch.log1p(torch.erfc(x.clamp(min=-1.0) * _SQRT_HALF) * -0.5)
    lower = torch.log(torch.erfc(x.clamp(min=far, max=-1.0) * -_SQRT_HALF) * 0.5)
    tail = x.clamp(max=far)
    w = tail.square().reciprocal()
    # Phi(x) = phi(x)/|x| (1 - 1/x^2 + 3/x^4 - ...), six terms
    series = w * (w * (w * (w * (w * (w * 10395 - 945) + 105) - 15) + 3) - 1)
    below = -0.5 * tail.square() - torch.log(-tail) - 0.5 * math.log(2 * math.pi)
    below = below + torch.log1p(series)
    return torch.where(x > -1.0, upper, torch.where(x > far, lower, below)).to(dtype)


def _quantile(p: float) -> float:
    """Where a standard normal is exceeded with probability p, to some 1% for p < 0.01."""
    a = -math.log(p)
    return math.sqrt(2 * a - math.log(4 * math.pi * a))


class _Rule(NamedTuple):
    """The constants of the quadrature, all of them functions of the tolerance."""

    negligible: float
    """Probability that may be left out at either end."""
    cut: float
    """Standard deviations beyond which a Gaussian is left out, c."""
    unit: float
    """The length a of the exponential map, in units of the smallest scale that matters."""
    step: float
    """Largest step in u: measured, the error, that of derivatives too, falls as exp(-1.5 / step) or faster."""
    blend: float
    """Steps over which the near end is approached, eta."""
    lead: float
    """Nodes spent on the near end."""

    @classmethod
    def of(cls, tolerance: float) -> _Rule:
        negligible, digits = tolerance / 100, -math.log(tolerance)
        cut, blend = _quantile(negligible), math.sqrt(0.8 * digits) / math.pi
        lead = max(1.0, cut - 1 / blend) * blend
        return cls(negligible, cut, 0.2 * cut, 1.5 / digits, blend, lead)

    def num_nodes(self, log_reach: Tensor) -> Tensor:
        """Nodes that the tolerance needs where u runs up to log_reach, on a coarse scale: 16, 20, 25, 32, ..."""
        # NaN of parameters that were not checked gives NaN
        reach = log_reach.nan_to_num(0.0, posinf=0.0)
        needed = torch.log2((self.lead + 0.5 + reach / self.step).clamp(min=16.0))
        return torch.exp2((3 * needed).ceil() / 3).round().long()


class _Span(NamedTuple):
    """Where the nodes of each problem go: offsets a (e^u - 1), u up to `log_reach`, from `start`.

    Each is ``(1, batch)``. The start is `origin + start`, kept apart so that the distance from it is
    exact also where the scales are far below the spacing of floating-point numbers at `origin`.
    """

    origin: Tensor
    start: Tensor
    unit: Tensor
    log_reach: Tensor


# From here on the batch comes last: what categories share, or nodes, then broadcasts over long runs of memory.


def _standardize(loc: Tensor, scale: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """y = (t - loc) / (scale sqrt 2) at t = 0, and dy / dt."""
    inverse = _SQRT_HALF / scale
    y = loc * -inverse
    # so far below that its cdf is one
    return y if allowed is None else y.masked_fill(~allowed, 9.0), inverse


def _place(
    loc: Tensor, scale: Tensor, bounded: Tensor | None, allowed: Tensor | None, rule: _Rule
) -> _Span:
    """Where the nodes go. No gradient."""

    def possible(x: Tensor) -> Tensor:
        return x if allowed is None else x.masked_fill(~allowed, -torch.inf)

    def begin(loc: Tensor, threshold: float | Tensor) -> Tensor:
        """Where the first integrand begins to matter, or the threshold where that is higher."""
        begins = possible(loc - rule.cut * scale).amax(0, keepdim=True)
        above = begins.clamp(min=threshold)
        if bounded is None:
            return above
        # 0 where nothing is allowed, so that no NaN comes of it
        return torch.where(bounded, above, begins.nan_to_num(neginf=0.0))

    origin = begin(loc, 0.0)
    local = loc - origin
    start = begin(local, -origin)
    ends = possible(local + _quantile(rule.negligible / loc.shape[0]) * scale)
    end, last = ends.max(0, keepdim=True)
    # Where many Gaussians compete, their maximum lies far above that start. sqrt(-log F) is convex
    # (it is for each cdf, and so is a norm of convex functions), so Newton's method, begun where the
    # cdf F of the maximum is too small to matter, nears the point where it begins to from below.
    readable = _checks.values_can_be_read(loc, scale)
    at_start, slope = _standardize(local - start, scale, allowed)
    target = math.sqrt(-math.log(rule.negligible))
    low = torch.zeros_like(start)
    for _ in range(4):
        y = torch.addcmul(at_start, low, slope)
        log_cdf = torch.log(torch.erfc(-y) * 0.5)
        root = torch.sqrt(-log_cdf.sum(0, keepdim=True).clamp(max=0.0))
        if readable and not (root > target).any():
            break
        fall = (torch.exp(-y * y - log_cdf) * slope).sum(0, keepdim=True) / math.sqrt(math.pi)
        low = low + torch.where(root > target, (root - target) * 2 * root / fall, 0.0)

    moved = origin + low
    start = start + low - (moved - origin)
    reach = end - (moved - origin) - start
    irrelevant = loc - moved + rule.cut * scale <= start
    if allowed is not None:
        irrelevant = irrelevant | ~allowed
    finest = scale.masked_fill(irrelevant, torch.inf).amin(0, keepdim=True)
    # Where none reaches the start, the one that comes closest sets the lengths.
    closest = scale.gather(0, last)
    finest = torch.where(finest == torch.inf, closest, finest)
    reach = torch.where(reach > 0, reach, closest)
    unit = rule.unit * finest
    return _Span(moved, start, unit, torch.log1p(reach / unit))


def _log_cdf(y: Tensor) -> Tensor:
    """log Phi(y sqrt 2), the cdf being right to rounding of 1 - Phi where that is small.

    For products of many cdfs, where small ones do not matter: `log_normal_cdf` takes five times as long.
    """
    eps = torch.finfo(y.dtype).eps
    # Beyond, erfc is below eps^1.4. On a CPU log1p takes ten times as long where it is much smaller, and so does erfc
    # where it underflows.
    upper = y.clamp(max=math.sqrt(-1.4 * math.log(eps))).erfc_()
    # One eps less than 1/2, so that the result is finite where Phi is smaller than that.
    return upper.mul_(0.5 * eps - 0.5).log1p_()


def _exp_(x: Tensor) -> Tensor:
    """exp, but what is negligible beside 1 does not underflow, which takes a CPU fifty times as long. In place."""
    return x.clamp(min=0.9 * math.log(torch.finfo(x.dtype).tiny)).exp_()


class _Nodes(NamedTuple):
    """Nodes and logarithms of the weights where u runs up to 1, ``(nodes, 1, 1)``."""

    u: Tensor
    log_weights: Tensor

    @classmethod
    def of(cls, rule: _Rule, num_nodes: int, like: Tensor) -> _Nodes:
        """By the rule described above."""
        x = torch.arange(num_nodes, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
        x = (x - rule.lead) / rule.blend
        weights = 0.5 * torch.erfc(x * -_SQRT_HALF)
        nodes = x * weights + torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        steps = num_nodes - rule.lead - 0.5
        return cls(nodes * (rule.blend / steps), torch.log(weights / steps))


# Where a result is not needed again, not by autograd either, the next takes its place: new memory costs more than
# arithmetic.


def _terms(
    start: Tensor, slope: Tensor, unit: Tensor, log_reach: Tensor, nodes: _Nodes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What (21) sums, ``(nodes, K-1, batch)``, given y at the start of the integrals and dy / dt.

    Returns:
        Offsets a (e^u - 1), y there, the logarithms of the terms but for their factors that all nodes have, and those
        less log phi / Phi. All but the first and last are there for each category.
    """
    u = log_reach * nodes.u
    offsets = unit * torch.expm1(u)
    # not a matrix product, which autocast or TF32 would round
    y = torch.addcmul(start, slope, offsets)
    log_cdf = _log_cdf(y)
    shared = log_cdf.sum(1, keepdim=True) + u.add_(nodes.log_weights)
    return offsets, y, torch.addcmul(shared - log_cdf, y, y, value=-1), shared


def _integrate(start: Tensor, slope: Tensor, *where: Any) -> Tensor:
    """Logarithms of the sums over the nodes, ``(K-1, batch)``."""
    _, _, terms, _ = _terms(start, slope, *where)
    largest = terms.detach().amax(0)
    return _exp_(terms.sub_(largest)).sum(0).log_().add_(largest)


def _gradient(
    grad: Tensor, log_sums: Tensor, start: Tensor, slope: Tensor, *where: Any
) -> tuple[Tensor, Tensor]:
    """Derivatives of the sum of grad times `_integrate` with respect to start and slope."""
    offsets, y, terms, shared = _terms(start, slope, *where)
    shares = _exp_(terms - log_sums) * grad
    log_cdf_slope = _exp_(terms.sub_(shared + _LOG_SQRT_PI))
    others = shares.sum(1, keepdim=True) - shares
    by_y = others.mul_(log_cdf_slope).addcmul_(y, shares, value=-2)
    return by_y.sum(0), by_y.mul_(offsets).sum(0)


class _LogSums(torch.autograd.Function):
    """`_integrate` and its gradient, piece by piece: columns, and the other arguments there."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, slope: Tensor, pieces: list[tuple[slice, Any]]) -> Tensor:
        ctx.pieces = pieces
        parts = [_integrate(start[:, some], slope[:, some], *where) for some, where in pieces]
        log_sums = torch.cat(parts, 1)
        ctx.save_for_backward(log_sums, start, slope)
        return log_sums

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        inputs = *grad, *ctx.saved_tensors
        # Recorded where it is to be differentiated again.
        parts = [
            recomputed(_gradient, *(x[:, some] for x in inputs), *where)
            for some, where in ctx.pieces
        ]
        return *(torch.cat(part, 1) for part in zip(*parts, strict=True)), None


def argmax_log_probs(
    loc: Tensor,
    scale: Tensor,
    *,
    tolerance: float | None = None,
    num_nodes: int | None = None,
    threshold: float | Tensor = 0.0,
    allowed: Tensor | None = None,
    max_elements: int = 2**22,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Log-probability that each of K - 1 independent Gaussians is the largest and above a threshold.

    With :math:`y_k \sim N(\mu_k, \sigma_k^2)` and threshold :math:`\theta`, category :math:`k < K`
    wins where :math:`y_k` is the largest and above :math:`\theta`, and K where all are below:

    .. math:: P(k) = \int_\theta^\infty \frac{1}{\sigma_k} \phi\Big(\frac{t - \mu_k}{\sigma_k}\Big)
              \prod_{j \ne k} \Phi\Big(\frac{t - \mu_j}{\sigma_j}\Big)\, dt, \qquad
              P(K) = \prod_j \Phi\Big(\frac{\theta - \mu_j}{\sigma_j}\Big). \qquad (21)

    The probabilities of all K categories take O(K x nodes) time. Their error is below 1e-5 in float32
    and 1e-10 in float64 for scales that differ by up to a factor of 100, K up to 1,000, and so is
    that of their derivatives with respect to loc / scale and log scale. They are not normalised: by
    how much they miss a sum of one tells how well the integral was done. A probability far below the
    tolerance has a finite logarithm and a gradient that points the right way, but comes out too small. The last bit of
    an element may depend on the others of its batch: vectorised instructions round otherwise than those at the end of
    a run of memory.

    Args:
        loc: means, ``(*batch, K-1)``.
        scale: standard deviations, broadcasts against `loc`.
        tolerance: wanted error of the probabilities, at least 3e-6 (1e-12 in float64); by default as said above. The
            number of nodes is worked out from the values, each problem's own, which covers any ratio of scales.
            Without a tolerance it is the same for all, 52 (96 in float64), enough for the worst case, where values
            cannot be read (in a compiled graph, under `torch.func.vmap`) and on a GPU, which would have to wait.
        num_nodes: nodes of the quadrature for every problem, instead.
        threshold: :math:`\theta`, broadcasts against ``batch``; minus infinity for none.
        allowed: boolean, broadcasts against ``(*batch, K)``: categories that may win. Others take no
            part and get -inf. Where the last one is not allowed there is no threshold.
        max_elements: size of the largest tensors that are held, K x nodes for each problem. Batches that need more are
            computed in chunks: on a CPU always in such as fit into its cache. None is kept for the backward pass,
            which computes them again (`torch.func.grad` keeps them all). A single problem is not divided, and nothing
            is where the code is compiled or exported: there a graph fits every size of batch.
        validate_args: whether to check values, by default as `torch.distributions` does.

    Returns:
        ``(*batch, K)``, in float32 where the arguments are of half precision.

    Raises:
        ValueError: if shapes do not match, a scale is not positive, or nothing is allowed.

    Source: paper, Proposition 2 and equation (21).

    Differs from the paper: its proof (28) drops the factor :math:`1/\sigma_k` that (21) has
    (erratum E2); the sum over k would then not be one.

    >>> argmax_log_probs(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0])).exp()
    tensor([0.3012, 0.4488, 0.2500])
    """
    loc, scale, bounded, allowed = _check(
        loc, scale, threshold, allowed, tolerance, num_nodes, max_elements, validate_args
    )
    *batch, num_gaussians = loc.shape
    loc, scale = (functional.full_precision(x).reshape(-1, num_gaussians).mT for x in (loc, scale))
    bounded = None if bounded is None else bounded.reshape(1, -1)
    takes_part = None if allowed is None else allowed[..., :-1].reshape(-1, num_gaussians).mT
    if takes_part is not None:
        loc, scale = torch.where(takes_part, loc, 0.0), torch.where(takes_part, scale, 1.0)

    first = _log_integrals(loc, scale, bounded, takes_part, tolerance, num_nodes, max_elements)
    log_cdf = log_normal_cdf(-loc / scale)
    if takes_part is not None:
        log_cdf = torch.where(takes_part, log_cdf, 0.0)
    last = log_cdf.sum(0, keepdim=True)
    if bounded is not None:
        last = torch.where(bounded, last, -torch.inf)
    log_probs = torch.cat([first, last]).mT.reshape(*batch, num_gaussians + 1)
    if allowed is not None:
        log_probs = log_probs.masked_fill(~allowed, -torch.inf)
    return log_probs


class Linearized(NamedTuple):
    r"""Probabilities (21) with their derivatives with respect to loc, which have as low a rank as there are nodes.

    .. math:: -\frac{\partial P(k)}{\partial \mu_j} = \int \frac{f_k f_j}{F_k F_j} \prod_i F_i \, dt
              \approx \sum_q A_{kq} A_{jq} \quad (j \ne k), \qquad
              \frac{\partial P}{\partial \mu} = \operatorname{diag}(d) - A A^\top, \quad
              d_k = \sum_j (A A^\top)_{kj} - \frac{\partial P(K)}{\partial \mu_k}

    with density f and cdf F of each Gaussian, as all K derivatives sum to 0. Of K categories but the last where not
    said otherwise.
    """

    probs: Tensor
    """``(batch, K)``, made to sum to one."""
    diagonal: Tensor
    """d, ``(batch, K-1)``; 1 for what is not allowed."""
    factors: Tensor
    """A, ``(batch, K-1, nodes)``; 0 for what is not allowed."""
    last: Tensor
    """Minus the derivatives of P(K), ``(batch, K-1)``."""


def argmax_linearized(
    loc: Tensor, scale: Tensor, allowed: Tensor, least_nodes: int = 16
) -> Linearized:
    """`argmax_log_probs` and what it takes to invert it, of ``(batch, K-1)`` in float64 whose values can be read.

    All problems have as many nodes as the neediest, or `least_nodes`. No gradient.
    """
    tiny = 1e-290
    with torch.no_grad():
        loc, scale, allowed = loc.T, scale.T, allowed.T
        takes_part, bounded = allowed[:-1], allowed[-1:]
        loc, scale = torch.where(takes_part, loc, 0.0), torch.where(takes_part, scale, 1.0)
        rule = _Rule.of(1e-10)
        span = _place(loc, scale, bounded, takes_part, rule)
        first = (loc - span.origin) - span.start
        start, slope = _standardize(first, scale, takes_part)
        needed = rule.num_nodes(span.log_reach).amax() if loc.shape[1] else 0
        nodes = _Nodes.of(rule, max(least_nodes, int(needed)), loc)
        offsets, _, terms, shared = _terms(start, slope, span.unit, span.log_reach, nodes)
        # sqrt of the product of all cdfs and the weight of the node
        half = 0.5 * (shared + torch.log(span.unit * span.log_reach))
        terms = terms.sub_(shared - half).add_(torch.log(slope) - _LOG_SQRT_PI)
        # Laid out anew once: products of batches that are not contiguous are made one by one.
        factors = _exp_(terms).masked_fill_(~takes_part, 0.0).permute(2, 1, 0).contiguous()
        weights = half.exp_()
        sums = factors @ torch.cat([weights, weights * offsets], 1).permute(2, 0, 1).contiguous()
        probs, moments = sums.unbind(-1)

        z = loc / scale
        log_cdf = torch.where(takes_part, log_normal_cdf(-z), 0.0)
        rest = torch.where(bounded, log_cdf.sum(0, keepdim=True), -torch.inf)
        density = torch.exp(rest - 0.5 * z * z - log_cdf) / (scale * math.sqrt(2 * math.pi))
        last = torch.where(takes_part, density, 0.0).T
        total = factors.sum(1).unsqueeze(-1)
        diagonal = (factors @ total).squeeze(-1) + last
        # The same, integrated by parts, but for a term that is never negative. What is far less probable than the
        # tolerance is cut off by the span, where parts do not add up: this is then how its probability changes.
        diagonal = diagonal.maximum((moments - first.T * probs) / scale.T.square())
        diagonal = torch.where(takes_part.T, diagonal.clamp_min(tiny), 1.0)
        probs = torch.cat([probs, rest.T.exp()], -1)
        return Linearized(probs / probs.sum(-1, keepdim=True), diagonal, factors, last)


def _check(
    loc: Tensor,
    scale: Tensor,
    threshold: float | Tensor,
    allowed: Tensor | None,
    tolerance: float | None,
    num_nodes: int | None,
    max_elements: int,
    validate_args: bool | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Arguments of one shape and dtype, with loc less the threshold; and where there is one."""
    loc, scale, allowed = _checks.gaussians(loc, scale, allowed, validate_args)
    dtype = loc.dtype
    smallest = 1e-12 if dtype == torch.float64 else 3e-6
    if tolerance is not None:
        expected = f"a number from {smallest} to 0.01 for {dtype}"
        _checks.number("tolerance", tolerance, expected, lambda x: smallest <= x <= 0.01)
    if num_nodes is not None:
        _checks.count("num_nodes", num_nodes, 16)
    _checks.count("max_elements", max_elements)
    threshold = _checks.real("threshold", threshold)
    if not isinstance(threshold, Tensor) and not threshold < torch.inf:
        raise ValueError(f"threshold: expected a number below infinity, got {threshold}")
    batch = loc.shape[:-1]
    if isinstance(threshold, Tensor):
        batch = _checks.broadcast_batch("threshold", batch, threshold.shape)
        loc, scale = loc.expand(*batch, -1), scale.expand(*batch, -1)
        allowed = None if allowed is None else allowed.expand(*batch, -1)
        if _checks.enabled(validate_args):
            below = threshold < torch.inf
            _checks.satisfies("threshold", threshold, below, "values below infinity")

    bounded = None
    if isinstance(threshold, Tensor) or threshold == -torch.inf:
        threshold = torch.as_tensor(threshold, dtype=dtype, device=loc.device).expand(batch)
        bounded = threshold > -torch.inf
        threshold = torch.where(bounded, threshold, 0.0).unsqueeze(-1)
    if isinstance(threshold, Tensor) or threshold != 0:
        loc = loc - threshold
    if allowed is not None:
        bounded = allowed[..., -1] if bounded is None else bounded & allowed[..., -1]
    return loc, scale, bounded, allowed


def _log_integrals(
    loc: Tensor,
    scale: Tensor,
    bounded: Tensor | None,
    allowed: Tensor | None,
    tolerance: float | None,
    num_nodes: int | None,
    max_elements: int,
) -> Tensor:
    """log P(k) for k < K, ``(K-1, batch)``, in pieces of the batch."""
    double = loc.dtype == torch.float64
    rule = _Rule.of(tolerance or (1e-10 if double else 1e-5))
    num_gaussians, count = loc.shape
    if num_gaussians < 64:  # the longer of the two runs is innermost
        loc, scale = loc.contiguous(), scale.contiguous()
    span = _place(loc.detach(), scale.detach(), bounded, allowed, rule)

    sizes, order = [count], None
    if num_nodes is not None:
        nodes = [num_nodes]
    elif _checks.values_can_be_read(loc, scale) and (tolerance is not None or loc.is_cpu):
        # those of like needs together
        needs = rule.num_nodes(span.log_reach.squeeze(0))
        levels, counts = needs.unique(return_counts=True)
        nodes, sizes = _checks.as_list(levels) or [16], _checks.as_list(counts) or [0]
        order = needs.argsort() if len(nodes) > 1 else None
    elif tolerance is not None:
        nodes = [int(rule.num_nodes(span.log_reach).max())]
    else:
        # enough for scales that differ by a factor of 100, where u runs up to 6.7
        nodes = [NODES if double else 52]

    start, slope = _standardize((loc - span.origin) - span.start, scale, allowed)
    log_factor = torch.log(slope) + (torch.log(span.unit * span.log_reach) - _LOG_SQRT_PI)
    inputs: tuple[Tensor, ...] = (start, slope, span.unit, span.log_reach)
    if order is not None:
        inputs = tuple(x.index_select(1, order) for x in inputs)
    start, slope, *lengths = inputs
    fused = _fused.applies(loc, scale)
    if fused and loc.is_cpu:
        max_elements = min(max_elements, _IN_CACHE * torch.get_num_threads())
    pieces, done = [], 0
    for n, size in zip(nodes, sizes, strict=True):
        at_nodes = _Nodes.of(rule, n, loc)
        step, end = max(1, max_elements // (num_gaussians * n)), done + size
        if (
            torch.compiler.is_compiling()
        ):  # a number of pieces would tie the graph to the batch's size
            cuts = [slice(None)]
        else:
            cuts = [slice(i, min(i + step, end)) for i in range(done, max(end, 1), step)]
        pieces += [(some, (*(x[:, some] for x in lengths), at_nodes)) for some in cuts]
        done = end
    if fused:
        log_sums = _LogSums.apply(start, slope, pieces)
    elif len(pieces) == 1:
        log_sums = _integrate(start, slope, *pieces[0][1])
    else:
        parts = [
            recomputed(_integrate, start[:, some], slope[:, some], *where) for some, where in pieces
        ]
        log_sums = torch.cat(parts, 1)
    if order is not None:
        log_sums = log_sums.index_select(1, order.argsort())
    return log_sums + log_factor


class Recovered(NamedTuple):
    """Probabilities estimated from draws, and how far off they may be."""

    probs: Tensor
    standard_error: Tensor


def monte_carlo_probs(
    hard_sampler: Callable[[int], Tensor],
    num_samples: int,
    *,
    pseudo_count: float = 0.0,
    max_elements: int = 2**24,
) -> Recovered:
    r"""Probabilities of the categories of one-hot draws, with their standard errors.

    With :math:`n_k` of S draws in category k and pseudo-count a, the estimate is
    :math:`(n_k + a) / (S + K a)`, and its standard error :math:`\sqrt{\tilde p (1 - \tilde p) / S}` with
    :math:`\tilde p = (n_k + 1/2) / (S + 1)`: not zero where a category was never drawn.

    Args:
        hard_sampler: takes a number n, returns n one-hot draws, ``(n, *batch, K)``.
        num_samples: S.
        pseudo_count: a; 1/2 is the Jeffreys prior, and anything above 0 keeps every logarithm finite.
        max_elements: size of the largest tensor to draw at once.

    Returns:
        `Recovered`, a named tuple ``(probs, standard_error)``, each ``(*batch, K)``.

    Raises:
        ValueError: if `num_samples` or `max_elements` is not positive or `pseudo_count` is negative.

    >>> draws = torch.eye(3)[[0, 0, 1, 0]]
    >>> monte_carlo_probs(lambda n: draws[:n], 1, pseudo_count=0.5).probs
    tensor([0.6000, 0.2000, 0.2000])
    """
    _checks.count("num_samples", num_samples)
    _checks.number(
        "pseudo_count", pseudo_count, "a number of 0 or more", lambda x: 0 <= x < math.inf
    )
    _checks.count("max_elements", max_elements)
    with torch.no_grad():
        # the first draw tells how large one is
        draws = hard_sampler(1)
        dtype = torch.float64 if draws.dtype == torch.float64 else torch.float32
        counts, done = draws.sum(0, dtype=torch.int64), 1
        at_once = max(1, max_elements // max(1, draws.numel()))
        while done < num_samples:
            n = min(at_once, num_samples - done)
            seen = hard_sampler(n).sum(0, dtype=torch.int64)
            # More categories may have come to be held.
            counts = torch.nn.functional.pad(counts, (0, seen.shape[-1] - counts.shape[-1])) + seen
            done += n
    seen = counts.to(dtype)
    probs = (seen + pseudo_count) / (num_samples + pseudo_count * seen.shape[-1])
    smoothed = (seen + 0.5) / (num_samples + 1)
    return Recovered(probs, torch.sqrt(smoothed * (1 - smoothed) / num_samples))


@torch.compiler.assume_constant_result
def uniform_loc(num_categories: int) -> float:
    r"""The location, the same for all K-1 and with scale 1, at which all K categories of IGR-I are equally probable.

    With equal locations m the last one has probability :math:`\Phi(-m)^{K-1}` (Prop. 2), so

    .. math:: m = -\Phi^{-1}\big(K^{-1/(K-1)}\big)

    >>> round(uniform_loc(10), 4)
    -0.753
    """
    _checks.count("num_categories", num_categories, 2)
    return -NormalDist().inv_cdf(num_categories ** (-1 / (num_categories - 1)))
