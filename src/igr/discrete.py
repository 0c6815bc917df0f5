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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from igr import _checks, functional
from igr._quadrature import recomputed

__all__ = ["Recovered", "argmax_log_probs", "log_normal_cdf", "monte_carlo_probs", "uniform_loc"]

_SQRT_HALF = math.sqrt(0.5)
_LOG_SQRT_PI = 0.5 * math.log(math.pi)


def log_normal_cdf(x: Tensor) -> Tensor:
    r"""Logarithm of the standard normal cdf, :math:`\log \Phi(x)`, twice differentiable everywhere.

    `torch.special.log_ndtr` has no half precision, costs some forty times as much as an `erfc` on a
    CPU, and its derivatives break down in the lower tail (in float32 the first is 6.5 times too
    large at -1e4 and 0 at -1e10). This one computes half precision in float32.

    >>> log_normal_cdf(torch.tensor([-100.0, 0.0, 3.0]))
    tensor([-5.0055e+03, -6.9315e-01, -1.3508e-03])
    """
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x = x.float()
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

    tolerance: float

    @property
    def negligible(self) -> float:
        """Probability that may be left out at either end."""
        return self.tolerance / 100

    @property
    def cut(self) -> float:
        """Standard deviations beyond which a Gaussian is left out, c."""
        return _quantile(self.negligible)

    @property
    def unit(self) -> float:
        """The length a of the exponential map, in units of the smallest scale that matters."""
        return 0.2 * self.cut

    @property
    def step(self) -> float:
        """Largest step in u: measured, the error falls as exp(-1.65 / step) or faster."""
        return -1.65 / math.log(self.tolerance)

    @property
    def blend(self) -> float:
        """Steps over which the near end is approached, eta."""
        return math.sqrt(-0.8 * math.log(self.tolerance)) / math.pi

    @property
    def lead(self) -> float:
        """Nodes spent on the near end."""
        return max(1.0, _quantile(self.negligible) - 1 / self.blend) * self.blend

    def num_nodes(self, log_reach: float) -> int:
        """Nodes that the tolerance needs where u runs up to log_reach."""
        return max(16, math.ceil(self.lead + 0.5 + log_reach / self.step))


class _Span(NamedTuple):
    """Where the nodes of each problem go: offsets a (e^u - 1), u up to `log_reach`, from `start`.

    Each is ``(batch, 1)``. The start is `origin + start`, kept apart so that the distance from it is
    exact also where the scales are far below the spacing of floating-point numbers at `origin`.
    """

    origin: Tensor
    start: Tensor
    unit: Tensor
    log_reach: Tensor


def _standardize(
    loc: Tensor, scale: Tensor, origin: Tensor, start: Tensor, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(loc - origin - start) / (scale sqrt 2), and 1 / (scale sqrt 2)."""
    inverse = _SQRT_HALF / scale
    distance = ((loc - origin) - start) * inverse
    if allowed is not None:
        # so far below that its cdf is one
        distance = distance.masked_fill(~allowed, -9.0)
    return distance, inverse


def _place(
    loc: Tensor, scale: Tensor, bounded: Tensor | None, allowed: Tensor | None, rule: _Rule
) -> _Span:
    """Where the nodes go. No gradient."""

    def largest(x: Tensor) -> tuple[Tensor, Tensor]:
        if allowed is not None:
            x = x.masked_fill(~allowed, -torch.inf)
        return x.max(-1, keepdim=True)

    def begin(loc: Tensor, threshold: float | Tensor) -> Tensor:
        """Where the first integrand begins to matter, or the threshold where that is higher."""
        begins = largest(loc - rule.cut * scale)[0]
        above = begins.clamp(min=threshold)
        if bounded is None:
            return above
        # 0 where nothing is allowed, so that no NaN comes of it
        return torch.where(bounded, above, begins.nan_to_num(neginf=0.0))

    origin = begin(loc, 0.0)
    local = loc - origin
    start = begin(local, -origin)
    end, last = largest(local + _quantile(rule.negligible / loc.shape[-1]) * scale)
    # Where many Gaussians compete, their maximum lies far above that start. sqrt(-log F) is convex
    # (it is for each cdf, and so is a norm of convex functions), so Newton's method, begun where the
    # cdf F of the maximum is too small to matter, nears the point where it begins to from below.
    distance, inverse = _standardize(local, scale, torch.zeros_like(start), start, allowed)
    target = math.sqrt(-math.log(rule.negligible))
    low = torch.zeros_like(start)
    for _ in range(4):
        y = low * inverse - distance
        log_cdf = torch.log(torch.erfc(-y) * 0.5)
        slope = (torch.exp(-y * y - log_cdf) * inverse).sum(-1, keepdim=True) / math.sqrt(math.pi)
        root = torch.sqrt(-log_cdf.sum(-1, keepdim=True).clamp(max=0.0))
        low = low + torch.where(root > target, (root - target) * 2 * root / slope, 0.0)

    moved = origin + low
    start = start + low - (moved - origin)
    reach = end - (moved - origin) - start
    irrelevant = loc - moved + rule.cut * scale <= start
    if allowed is not None:
        irrelevant = irrelevant | ~allowed
    finest = scale.masked_fill(irrelevant, torch.inf).amin(-1, keepdim=True)
    # Where none reaches the start, the one that comes closest sets the lengths.
    closest = scale.gather(-1, last)
    finest = torch.where(finest == torch.inf, closest, finest)
    reach = torch.where(reach > 0, reach, closest)
    unit = rule.unit * finest
    return _Span(moved, start, unit, torch.log1p(reach / unit))


def _scaled_offsets(offsets: Tensor, distance: Tensor, inverse: Tensor) -> Tensor:
    """(t - loc) / (scale sqrt 2) at all nodes t, ``(batch, K-1, nodes)``."""
    # not a matrix product, which autocast or TF32 would round
    return torch.addcmul(-distance.unsqueeze(-1), inverse.unsqueeze(-1), offsets.unsqueeze(-2))


def _log_cdf(y: Tensor) -> Tensor:
    """log Phi(y sqrt 2), the cdf being right to rounding of 1 - Phi where that is small."""
    # One eps less than 1/2, so that the result is finite where Phi is smaller than that.
    return torch.log1p(torch.erfc(y).mul_(0.5 * torch.finfo(y.dtype).eps - 0.5))


def _integrate(
    loc: Tensor, scale: Tensor, allowed: Tensor | None, span: _Span, rule: _Rule, num_nodes: int
) -> Tensor:
    """Logarithms of the integrals (21) by the rule described above, ``(batch, K-1)``."""
    x = torch.arange(num_nodes, dtype=loc.dtype, device=loc.device)
    x = (x - rule.lead) / rule.blend
    weights = 0.5 * torch.erfc(x * -_SQRT_HALF)
    nodes = x * weights + torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    step = span.log_reach / (num_nodes - rule.lead - 0.5)
    u = step * rule.blend * nodes
    log_weights = torch.log(weights) + u + torch.log(step * span.unit)

    distance, inverse = _standardize(loc, scale, span.origin, span.start, allowed)
    y = _scaled_offsets(span.unit * torch.expm1(u), distance, inverse)
    log_cdf = _log_cdf(y)
    shared = log_cdf.sum(-2, keepdim=True) + log_weights.unsqueeze(-2)
    terms = torch.addcmul(shared - log_cdf, y, y, value=-1)
    return torch.logsumexp(terms, -1) + (torch.log(inverse) - _LOG_SQRT_PI)


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
    tolerance has a finite logarithm and a gradient that points the right way, but comes out too small.

    Args:
        loc: means, ``(*batch, K-1)``.
        scale: standard deviations, broadcasts against `loc`.
        tolerance: wanted error of the probabilities, at least 3e-6 (1e-12 in float64). The number of
            nodes is then worked out from the values, which makes a GPU wait and breaks a compiled
            graph, but covers any ratio of scales and takes fewer nodes, down to a third, for easy ones.
            By default as said above, with as many nodes as the worst case needs.
        num_nodes: nodes of the quadrature, instead of 52 (96 in float64) or what `tolerance` asks for.
        threshold: :math:`\theta`, broadcasts against ``batch``; minus infinity for none.
        allowed: boolean, broadcasts against ``(*batch, K)``: categories that may win. Others take no
            part and get -inf. Where the last one is not allowed there is no threshold.
        max_elements: size of the largest tensors that are held, K x nodes for each problem. Batches
            that need more are computed in chunks, and computed again in the backward pass (not under
            `torch.func.grad`, which keeps them all). A single problem is not divided, and nothing is where the code is
            compiled or exported: there a graph fits every size of batch.
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
    loc = functional.full_precision(loc).reshape(-1, num_gaussians)
    scale = functional.full_precision(scale).reshape(-1, num_gaussians)
    bounded = None if bounded is None else bounded.reshape(-1, 1)
    takes_part = None if allowed is None else allowed[..., :-1].reshape(-1, num_gaussians)
    if takes_part is not None:
        loc, scale = torch.where(takes_part, loc, 0.0), torch.where(takes_part, scale, 1.0)

    first = _log_integrals(loc, scale, bounded, takes_part, tolerance, num_nodes, max_elements)
    log_cdf = log_normal_cdf(-loc / scale)
    if takes_part is not None:
        log_cdf = torch.where(takes_part, log_cdf, 0.0)
    last = log_cdf.sum(-1, keepdim=True)
    if bounded is not None:
        last = torch.where(bounded, last, -torch.inf)
    log_probs = torch.cat([first, last], -1).reshape(*batch, num_gaussians + 1)
    if allowed is not None:
        log_probs = log_probs.masked_fill(~allowed, -torch.inf)
    return log_probs


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
    loc, scale = _checks.broadcast(loc=loc, scale=scale)
    dtype = torch.promote_types(loc.dtype, scale.dtype)
    if loc.ndim == 0 or loc.shape[-1] == 0 or not dtype.is_floating_point:
        raise ValueError(
            f"loc: expected floating-point values of shape (*batch, K-1) with K of 2 or more, "
            f"got {dtype} of shape {tuple(loc.shape)}"
        )
    smallest = 1e-12 if dtype == torch.float64 else 3e-6
    if tolerance is not None and not smallest <= tolerance <= 0.01:
        raise ValueError(
            f"tolerance: expected a number from {smallest} to 0.01 for {dtype}, got {tolerance}"
        )
    if num_nodes is not None and num_nodes < 16:
        raise ValueError(f"num_nodes: expected at least 16, got {num_nodes}")
    if max_elements < 1:
        raise ValueError(f"max_elements: expected a positive number, got {max_elements}")
    if not isinstance(threshold, Tensor) and not threshold < torch.inf:
        raise ValueError(f"threshold: expected a number below infinity, got {threshold}")

    batch: tuple[int, ...] = loc.shape[:-1]
    if isinstance(threshold, Tensor):
        batch = _broadcast_shapes(batch, threshold=threshold.shape)
    if allowed is not None:
        if allowed.dtype != torch.bool:
            raise ValueError(f"allowed: expected a boolean tensor, got {allowed.dtype}")
        num_categories = loc.shape[-1] + 1
        shape = _broadcast_shapes((*batch, num_categories), allowed=allowed.shape)
        if shape[-1] != num_categories:
            raise ValueError(
                f"allowed: expected {num_categories} categories, one more than loc has, "
                f"got shape {tuple(allowed.shape)}"
            )
        batch, allowed = shape[:-1], allowed.expand(shape)
    loc, scale = (x.to(dtype).expand(*batch, -1) for x in (loc, scale))

    if _checks.enabled(validate_args):
        takes_part = True if allowed is None else allowed[..., :-1]
        finite = (loc.abs() < torch.inf) | torch.logical_not(torch.as_tensor(takes_part))
        _checks.satisfies("loc", loc, finite, "finite values")
        positive = ((scale > 0) & (scale < torch.inf)) | ~torch.as_tensor(takes_part)
        _checks.satisfies("scale", scale, positive, "positive finite values")
        if allowed is not None:
            _checks.satisfies("allowed", allowed, allowed.any(-1), "a category that may win")
        if isinstance(threshold, Tensor):
            _checks.satisfies(
                "threshold", threshold, threshold < torch.inf, "values below infinity"
            )

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


def _broadcast_shapes(shape: Sequence[int], **other: Sequence[int]) -> tuple[int, ...]:
    ((name, against),) = other.items()
    try:
        return tuple(torch.broadcast_shapes(tuple(shape), tuple(against)))
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts against {tuple(shape)}, got {tuple(against)}"
        ) from None


def _log_integrals(
    loc: Tensor,
    scale: Tensor,
    bounded: Tensor | None,
    allowed: Tensor | None,
    tolerance: float | None,
    num_nodes: int | None,
    max_elements: int,
) -> Tensor:
    """log P(k) for k < K, ``(batch, K-1)``, in chunks of the batch."""
    double = loc.dtype == torch.float64
    rule = _Rule(tolerance or (1e-10 if double else 1e-5))
    count, num_gaussians = loc.shape

    def rows(nodes: int) -> list[slice]:
        # The number of chunks would tie a compiled graph to the size of the batch.
        if torch.compiler.is_compiling():
            return [slice(None)]
        size = max(1, max_elements // (num_gaussians * nodes))
        return [slice(i, i + size) for i in range(0, max(count, 1), size)]

    def part(x: Tensor | None, row: slice) -> Tensor | None:
        return None if x is None else x[row]

    spans = [
        _place(loc[i].detach(), scale[i].detach(), part(bounded, i), part(allowed, i), rule)
        for i in rows(1)
    ]
    span = _Span(*map(torch.cat, zip(*spans, strict=True)))
    if num_nodes is None:
        if tolerance is None:
            # enough for scales that differ by a factor of 100, where u runs up to 6.7
            num_nodes = 96 if double else 52
        else:
            # NaN of parameters that were not checked gives NaN
            reach = span.log_reach.nan_to_num(0.0, posinf=0.0).max() if count else 0.0
            num_nodes = rule.num_nodes(float(reach))

    chunks = rows(num_nodes)
    parts = []
    for i in chunks:
        inputs = (loc[i], scale[i], part(allowed, i), _Span(*(x[i] for x in span)), rule, num_nodes)
        parts.append(_integrate(*inputs) if len(chunks) == 1 else recomputed(_integrate, *inputs))
    return torch.cat(parts)


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
    if num_samples < 1:
        raise ValueError(f"num_samples: expected a positive number, got {num_samples}")
    if not 0 <= pseudo_count < math.inf:
        raise ValueError(f"pseudo_count: expected a number of 0 or more, got {pseudo_count}")
    if max_elements < 1:
        raise ValueError(f"max_elements: expected a positive number, got {max_elements}")
    with torch.no_grad():
        # the first draw tells how large one is
        draws = hard_sampler(1)
        dtype = torch.float64 if draws.dtype == torch.float64 else torch.float32
        counts, done = draws.sum(0, dtype=torch.int64), 1
        at_once = max(1, max_elements // max(1, draws.numel()))
        while done < num_samples:
            n = min(at_once, num_samples - done)
            counts += hard_sampler(n).sum(0, dtype=torch.int64)
            done += n
    seen = counts.to(dtype)
    probs = (seen + pseudo_count) / (num_samples + pseudo_count * seen.shape[-1])
    smoothed = (seen + 0.5) / (num_samples + 1)
    return Recovered(probs, torch.sqrt(smoothed * (1 - smoothed) / num_samples))


def uniform_loc(num_categories: int) -> float:
    r"""The location, the same for all K-1 and with scale 1, at which all K categories of IGR-I are equally probable.

    With equal locations m the last one has probability :math:`\Phi(-m)^{K-1}` (Prop. 2), so

    .. math:: m = -\Phi^{-1}\big(K^{-1/(K-1)}\big)

    >>> round(uniform_loc(10), 4)
    -0.753
    """
    n = num_categories - 1
    p = torch.tensor(num_categories ** (-1 / n), dtype=torch.float64)
    return -torch.special.ndtri(p).item()
