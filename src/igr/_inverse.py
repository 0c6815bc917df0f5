r"""Locations at which a relaxation stands for given probabilities: what recovers them, inverted.

For the softmax++, P is the gradient of the convex function :math:`E \max(y, 0)` of loc, and its Jacobian is diagonal
but for a matrix of as low a rank as Proposition 2 has nodes (`igr.discrete.Linearized`): Newton's method, on the normal
quantiles of the probabilities, takes some five steps, of O(K) each. For a broken stick, whose Jacobian would cost K
times the probabilities, the quantiles of the hazards are iterated with Anderson's acceleration. Gradients come from the
implicit function theorem.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from igr import functional
from igr.conditional import _first_order
from igr.discrete import (
    NODES,
    Linearized,
    argmax_linearized,
    argmax_log_probs,
    log_normal_cdf,
)
from igr.stick_breaking import leader_log_probs, recovered

__all__ = [
    "OutOfReachWarning",
    "hazard",
    "iterate",
    "loc_of",
    "normalise",
    "solve",
    "total_variation",
]

_LOST = 1e-8  # recovered probabilities of broken sticks are told from 0 above this
_SOLVED = 1e-12  # total variation distance at which a solver stops
_STEPS = 30  # of Newton's method, which takes three to eight where no probability is below 1e-12
_IN_CACHE, _MAX_ELEMENTS = 2**18, 2**22  # numbers that are at work at once, on a CPU and elsewhere
_TINY = 1e-290


class OutOfReachWarning(UserWarning):
    """A target that no parameters of the family reach, or a part of it that was cut; says how much."""


def loc_of(probs: Tensor, scale: Tensor, sticks: bool) -> tuple[Tensor, Tensor]:
    """Locations with given recovered probabilities, differentiable, and the total variation distance that is left.

    Args:
        probs: ``(*batch, K)`` in float64, summing to one; a category of 0 takes no part.
        scale: ``(*batch, K-1)`` in float64.
        sticks: of `igr.SharpStickBreakingIGR`, in the place of `igr.SoftmaxIGR`.

    Returns:
        ``(*batch, K-1)``, 0 where it does not matter; and ``(*batch,)``.
    """
    loc, left = _solve(probs.detach(), scale.detach(), sticks)
    if not any(map(functional.is_differentiated, (probs, scale))):
        return loc, left
    allowed = probs > 0
    if not sticks:
        off = probs
        if functional.is_differentiated(scale):
            change = torch.where(allowed, _log_probs(loc, scale, allowed, sticks), 0.0)
            off = off - probs.detach() * change
        return _Solution.apply(off, loc, scale.detach(), probs.detach()), left
    off = probs - _log_probs(loc, scale, allowed, sticks).exp()
    off = torch.where(functional.stick_breaking_active(allowed), off[..., :-1], 0.0)
    return loc + _Solve.apply(_jacobian(loc, scale.detach(), allowed), off), left


def solve(
    probs: Tensor, scale: Tensor, sticks: bool, rest: bool = True, solved: float = _SOLVED
) -> tuple[Tensor, Tensor]:
    """`loc_of` without derivatives; with ``rest=False``, of `igr.StickBreakingIGR`, whose last category is left out."""
    if sticks:
        return _solve_sticks(probs, scale, rest, solved)
    loc, left = _in_pieces(functools.partial(_newton, solved=solved), probs, scale)
    return loc, left


def _in_pieces(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """`function` of some elements of the batch at a time; the first of the inputs has K entries."""
    *batch, num_categories = inputs[0].shape
    most = _IN_CACHE * torch.get_num_threads() if inputs[0].is_cpu else _MAX_ELEMENTS
    size = max(1, most // (num_categories * NODES))
    pieces = zip(*(x.reshape(-1, x.shape[-1]).split(size) for x in inputs), strict=True)
    results = zip(*(function(*piece) for piece in pieces), strict=True)
    return tuple(whole.reshape((*batch, *whole.shape[1:])) for whole in map(torch.cat, results))


# Opaque to compilers, which would unroll the steps and could not stop early.
@torch.library.custom_op(
    "igr::loc_of",
    mutates_args=(),
    schema="(Tensor probs, Tensor scale, bool sticks) -> (Tensor, Tensor)",
)
def _solve(probs: Tensor, scale: Tensor, sticks: bool) -> tuple[Tensor, Tensor]:
    return solve(probs, scale, sticks)


@_solve.register_fake
def _(probs: Tensor, scale: Tensor, sticks: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scale), probs.new_empty(probs.shape[:-1])


@torch.library.custom_op(
    "igr::loc_of_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor loc, Tensor scale, Tensor probs) -> Tensor",
)
def _pull_back(grad: Tensor, loc: Tensor, scale: Tensor, probs: Tensor) -> Tensor:
    """What a gradient with respect to loc is with respect to the probabilities, which loc was solved for."""

    def adjoint(probs: Tensor, grad: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor]:
        allowed = probs > 0
        at = argmax_linearized(loc, scale, allowed)
        found = _Newton.of(at, allowed).adjoint(torch.where(allowed[:, :-1], grad, 0.0))
        # Of logarithms: where a probability is far too small to be met, it is its share that is changed.
        return (torch.where(allowed, found * at.probs / probs.clamp_min(_TINY), 0.0),)

    return _in_pieces(adjoint, probs, grad, loc, scale)[0]


@_pull_back.register_fake
def _(grad: Tensor, loc: Tensor, scale: Tensor, probs: Tensor) -> Tensor:
    return torch.empty_like(probs)


def _batched(operator: Any) -> Callable[..., Any]:
    """The rule by which `torch.func.vmap` calls an operator that takes batches."""

    def rule(info: Any, in_dims: Any, *args: Any) -> Any:
        args = tuple(
            x
            if not isinstance(x, Tensor)
            else (
                x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            ).contiguous()
            for x, dim in zip(args, in_dims, strict=True)
        )
        found = operator(*args)
        return found, (0,) * len(found) if isinstance(found, tuple) else 0

    return rule


if hasattr(_solve, "register_vmap"):  # torch 2.5
    _solve.register_vmap(_batched(_solve))
    _pull_back.register_vmap(_batched(_pull_back))


class _Solution(torch.autograd.Function):
    """loc, as a function of what the probabilities are to be, up to a constant: differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(off: Tensor, loc: Tensor, scale: Tensor, probs: Tensor) -> Tensor:
        return loc.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        off, *where = ctx.saved_tensors
        found = _pull_back(*(x.detach() for x in (grad[0], *where)))
        return _first_order(found, grad[0], off), None, None, None


class _Solve(torch.autograd.Function):
    """Solution of a linear system, as a function of its right-hand side, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        matrix, right = ctx.saved_tensors
        found = torch.linalg.solve(matrix.mT, grad[0].unsqueeze(-1)).squeeze(-1)
        return None, _first_order(found, right)


def _log_probs(loc: Tensor, scale: Tensor, allowed: Tensor, sticks: bool) -> Tensor:
    if sticks:
        return leader_log_probs(loc, scale, allowed=allowed, validate_args=False)
    return argmax_log_probs(loc, scale, allowed=allowed, validate_args=False).log_softmax(-1)


def _jacobian(loc: Tensor, scale: Tensor, allowed: Tensor) -> Tensor:
    """Derivatives of a broken stick's probabilities but the last; what does not matter is the identity."""

    def probabilities(loc: Tensor) -> Tensor:
        # all at once: torch.func takes nothing that is computed again, compiled or not
        log_probs = leader_log_probs(
            loc, scale, allowed=allowed, max_elements=2**62, validate_args=False
        )
        return log_probs.exp()[..., :-1]

    found, pull_back, *_ = torch.func.vjp(probabilities, loc)
    rows = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
    columns = [pull_back(row.expand(found.shape))[0] for row in rows]
    jacobian = torch.stack(columns, -2).detach()
    active = functional.stick_breaking_active(allowed)
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    return torch.where(both, jacobian, torch.diag_embed(torch.ones_like(loc)))


class _Newton(NamedTuple):
    r"""Changes of loc that lead to given changes of the probabilities, which sum to zero.

    The Jacobian J is all but singular where the last category is improbable, and singular without it, as then only
    differences of loc matter. What the last one asks for says where they are:

    .. math:: (J + u g^\top)\, dx = dp + u\, g^\top dx, \qquad u_k = (1 - p_K)\, p_k, \qquad
              g_k = \frac{\partial P(K)}{\partial x_k} \Big/ \sum_j \frac{\partial P(K)}{\partial x_j}, \qquad
              g^\top dx = dp_K \Big/ \sum_j \frac{\partial P(K)}{\partial x_j},

    or, without it, :math:`1^\top dx = 0`. With D the diagonal and s the sums of the factors A over the categories,
    :math:`J = D\, (1 - W T^\top)` for :math:`W_{kq} = A_{kq} s_q / d_k` and :math:`T_{kq} = A_{kq} / s_q`, which are
    probabilities, however small those of the categories; :math:`u g^\top` is one more column of each.
    """

    diagonal: Tensor
    w: Tensor
    t: Tensor
    last: Tensor  # u over the sum of -dP(K)/dx; 0 where there is no last category

    @classmethod
    def of(cls, at: Linearized, allowed: Tensor) -> _Newton:
        with_last = allowed[:, -1:]
        u = at.probs[:, :-1] * at.probs[:, :-1].sum(-1, keepdim=True)
        total = at.last.sum(-1, keepdim=True).clamp_min(_TINY)
        anchor = torch.where(with_last, at.last / total, allowed[:, :-1].to(total))
        sums = at.factors.sum(-2, keepdim=True).clamp_min(_TINY)
        w = torch.cat([at.factors * sums, -u.unsqueeze(-1)], -1) / at.diagonal.unsqueeze(-1)
        t = torch.cat([at.factors / sums, anchor.unsqueeze(-1)], -1)
        return cls(at.diagonal, w, t, torch.where(with_last, u / total, 0.0))

    def step(self, change: Tensor) -> Tensor:
        """dx, ``(batch, K-1)``, of dp, ``(batch, K)``."""
        change = change[:, :-1] - self.last * change[:, -1:]
        return _solve_low_rank(self.w, self.t, change / self.diagonal)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The gradient with respect to dp, ``(batch, K)``, of that with respect to dx."""
        found = _solve_low_rank(self.t, self.w, grad) / self.diagonal
        return torch.cat([found, -(self.last * found).sum(-1, keepdim=True)], -1)


def _solve_low_rank(w: Tensor, t: Tensor, right: Tensor) -> Tensor:
    """(1 - W T^T)^-1 right, from that or from 1 - T^T W, whichever is smaller."""
    size, rank = w.shape[-2:]
    one = torch.eye(min(size, rank), dtype=w.dtype, device=w.device)
    right = right.unsqueeze(-1)
    if size <= rank:
        found = torch.linalg.solve(one - w @ t.mT, right)
    else:
        found = right + w @ torch.linalg.solve(one - t.mT @ w, t.mT @ right)
    return found.squeeze(-1)


def _newton(probs: Tensor, scale: Tensor, solved: float) -> tuple[Tensor, Tensor]:
    allowed = probs > 0
    active = allowed[:, :-1]
    wanted = _quantile(probs)
    loc = _start(probs, scale, allowed)
    best, left, nodes = loc, torch.full_like(probs[:, 0], torch.inf), 16
    for _ in range(_STEPS):
        # of at least as many nodes as before, or there would be a jump each time
        at = argmax_linearized(loc, scale, allowed, nodes)
        found, nodes = at.probs, at.factors.shape[-1]
        now = total_variation(found, probs)
        best, left = torch.where((now < left).unsqueeze(-1), loc, best), torch.fmin(now, left)
        if bool((left < solved).all()):
            break
        quantile = _quantile(found)
        density = functional.gaussian_terms(quantile).exp()
        change = torch.where(allowed, density * (wanted - quantile), 0.0)
        change = change - found * change.sum(-1, keepdim=True)
        step = _Newton.of(at, allowed).step(change)
        # No coordinate moves by more than a few of its standard deviations.
        longest = (step.abs() / scale).amax(-1, keepdim=True)
        loc = loc + step * (3.0 / longest.clamp_min(3.0))
    # Without the last category only differences matter: those with mean 0.
    count = active.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(active, best, 0.0).sum(-1, keepdim=True) / count
    return torch.where(active, best - torch.where(allowed[:, -1:], 0.0, mean), 0.0), left


def _start(probs: Tensor, scale: Tensor, allowed: Tensor) -> Tensor:
    r"""Close to the solution, and the solution itself where all but the last probability are equal, or K = 2.

    If the cdfs were powers of one, :math:`F_k = G^{a_k}` with :math:`a_k = p_k / (1 - p_K)`, these would be the shares
    of the wins above any threshold. At the threshold t where :math:`G = \max(p_K, 1/e)` they are made so: where most
    wins are. Then :math:`\prod_k F_k(0) = p_K` says where t is.
    """
    active, last = allowed[:, :-1], probs[:, -1:]
    log_g = last.clamp_min(math.exp(-1)).log()
    shares = probs[:, :-1] / probs[:, :-1].sum(-1, keepdim=True).clamp_min(_TINY)
    loc = torch.where(active, scale * _quantile(-torch.expm1(shares * log_g)), 0.0)
    target = (-last.clamp_min(_TINY).log()).sqrt()
    lower = allowed[:, -1:] & (last < math.exp(-1))
    above = torch.zeros_like(last)
    for _ in range(5):  # of Newton's method on a convex function, sqrt(-log F)
        z = -(loc + above) / scale
        log_cdf = torch.where(active, log_normal_cdf(z), 0.0)
        root = (-log_cdf.sum(-1, keepdim=True)).clamp_min(_TINY).sqrt()
        slope = torch.exp(-0.5 * z * z - log_cdf) / (scale * math.sqrt(2 * math.pi))
        slope = torch.where(active, slope, 0.0).sum(-1, keepdim=True).clamp_min(_TINY)
        above = above + torch.where(lower, (target - root) * 2 * root / slope, 0.0)
    return torch.where(active, loc + above, 0.0)


def _quantile(probs: Tensor) -> Tensor:
    return torch.special.ndtri(probs.clamp(1e-200, 1 - 1e-16))


def _solve_sticks(probs: Tensor, scale: Tensor, rest: bool, solved: float) -> tuple[Tensor, Tensor]:
    allowed = probs > 0
    mask = None if bool(allowed.all()) else allowed
    if not rest:
        # The last break only says how much is left over: it stays in the middle.
        probs, mask = normalise(probs[..., :-1]), None
    active = functional.stick_breaking_active(allowed if rest else allowed[..., :-1])
    made: dict[Any, Any] = {}

    def evaluate(loc: Tensor) -> Tensor:
        loc = loc if rest else F.pad(loc, (0, 1))
        found = recovered(loc, scale, rest, mask, made).exp()
        return found if rest else found[..., :-1]

    def quantiles(probs: Tensor) -> Tensor:
        hazards = hazard(probs.clamp_min(_LOST))[..., :-1]
        return torch.special.ndtri(hazards.clamp(1e-15, 1 - 1e-15))

    wanted = torch.where(active, quantiles(probs), 0.0)
    width = scale if rest else scale[..., :-1]
    start = _start_sticks(wanted, width, active, None if rest else scale[..., -1])

    def towards(found: Tensor) -> Tensor:
        # Where next to nothing is left yet, a step would follow rounding.
        left = found.flip(-1).cumsum(-1).flip(-1)[..., :-1]
        moves = active & (left >= 10 * _LOST)
        return width * torch.where(moves, wanted - quantiles(found), 0.0)

    loc, left = iterate(evaluate, towards, probs, start, solved)
    return loc if rest else F.pad(loc, (0, 1)), left


def _start_sticks(
    quantiles: Tensor, scale: Tensor, active: Tensor, last_scale: Tensor | None
) -> Tensor:
    r"""Close to the solution, given quantiles of the hazards :math:`h_k`; a last break, if there is one, in the middle.

    If each break were only compared with what is to come, the best of which is :math:`m_k` in units of what is left,
    :math:`P(y_k > m_k) = h_k` would say where it is, and :math:`m_{k-1} = \max(m_k, y_k) - \log(1 + e^{y_k})`. Mean and
    variance of the maximum are those of two normals (Clark 1961), and the logarithm is taken to second order.
    """
    mean = var = quantiles.new_zeros(quantiles.shape[:-1])
    if last_scale is not None:
        var = last_scale.square()
        mean, var = -math.log(2) - var / 8, var / 4
    loc = torch.zeros_like(quantiles)
    for k in reversed(range(quantiles.shape[-1])):
        q, s = quantiles[..., k], scale[..., k].square()
        width = (s + var).sqrt()
        y, h = mean + width * q, torch.special.ndtr(q)
        density = width * functional.gaussian_terms(q).exp()
        top = y * h + mean * (1 - h) + density
        square = (y * y + s) * h + (mean * mean + var) * (1 - h) + (y + mean) * density
        share = torch.sigmoid(y)
        spread = (square - top * top + share * s * (share - 2 * h)).clamp_min(_TINY)
        below = top - F.softplus(y) - 0.5 * s * share * (1 - share)
        mean = torch.where(active[..., k], below, mean)
        var = torch.where(active[..., k], spread, var)
        loc[..., k] = torch.where(active[..., k], y, 0.0)
    return loc


@torch.compiler.assume_constant_result
def equal_sticks(num_categories: int, scale: float, rest: bool) -> tuple[float, ...]:
    """Locations of a broken stick with equal probabilities, as plain numbers; of the first K-1 without `rest`."""
    return _equal_sticks(num_categories, scale, rest)


@functools.lru_cache(maxsize=256)
def _equal_sticks(num_categories: int, scale: float, rest: bool) -> tuple[float, ...]:
    if not rest and num_categories == 2:
        return (0.0,)  # one category, whatever its break
    # Where another device is the default, or in inference mode, the numbers are the same.
    with torch.inference_mode(False):
        probs = torch.full((num_categories,), 1 / num_categories, dtype=torch.float64, device="cpu")
        loc, _ = solve(probs, torch.full_like(probs[1:], scale), True, rest)
    return tuple(loc.tolist())


def iterate(
    evaluate: Callable[[Tensor], Tensor],
    towards: Callable[[Tensor], Tensor],
    probs: Tensor,
    x: Tensor,
    solved: float,
    max_steps: int = 150,
    memory: int = 8,
) -> tuple[Tensor, Tensor]:
    """Where `evaluate` gives `probs`, by x + towards(evaluate(x)) with Anderson's acceleration; and how far it is off.

    For each element of the batch. It stops where all are closer than `solved`.
    """
    best, left = x, torch.full_like(probs[..., 0], torch.inf)
    damping = torch.ones_like(left).unsqueeze(-1)
    points: list[Tensor] = []
    steps: list[Tensor] = []
    for _ in range(max_steps):
        found = evaluate(x)
        now = total_variation(found, probs)
        # The first steps may well lead away from a start that is close.
        worse = ((now > 4 * left.clamp_min(0.1)) | now.isnan()).unsqueeze(-1)
        best, left = torch.where((now < left).unsqueeze(-1), x, best), torch.fmin(now, left)
        if bool((left < solved).all()):
            break
        if bool(worse.any()):
            # Back to the best point, more carefully, and without what was learned on the way.
            damping = torch.where(worse, damping * 0.5, damping)
            x = torch.where(worse, best, x)
            points, steps = [], []
            found = evaluate(x)
        step = damping * towards(found)
        points, steps = [*points, x][-memory:], [*steps, step][-memory:]
        move = step
        if len(points) > 1:
            dx = torch.stack(points[1:], -1) - torch.stack(points[:-1], -1)
            ds = torch.stack(steps[1:], -1) - torch.stack(steps[:-1], -1)
            gram = ds.mT @ ds
            ridge = 1e-12 * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-300
            gram = gram + ridge[..., None, None] * torch.eye(
                gram.shape[-1], dtype=x.dtype, device=x.device
            )
            weights = torch.linalg.solve(gram, ds.mT @ step.unsqueeze(-1))
            move = step - ((dx + ds) @ weights).squeeze(-1)
        x = x + move.clamp(-3.0, 3.0)
    return best, left


def total_variation(found: Tensor, probs: Tensor) -> Tensor:
    return 0.5 * (found - probs).abs().sum(-1)


def normalise(probs: Tensor) -> Tensor:
    return probs / probs.sum(-1, keepdim=True)


def hazard(probs: Tensor) -> Tensor:
    return probs / probs.flip(-1).cumsum(-1).flip(-1)
