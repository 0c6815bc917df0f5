r"""Locations at which a relaxation stands for given probabilities: what recovers them, inverted.

For the softmax++, P is the gradient of the convex function :math:`E \max(y, 0)` of loc, and its Jacobian an M-matrix
that Proposition 2's nodes yield as well: Newton's method, on the normal quantiles of the probabilities, arrives from
anywhere in some ten steps. For a broken stick, whose Jacobian would cost K times the probabilities, the quantiles of
the hazards are iterated with Anderson's acceleration. Gradients come from the implicit function theorem.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igr import _checks, functional
from igr.conditional import _first_order
from igr.discrete import NODES, argmax_jacobian, argmax_log_probs
from igr.stick_breaking import leader_log_probs

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
_STEPS = 30  # of Newton's method: probabilities of 1e-6 among a thousand take 26
_MAX_ELEMENTS = 2**22


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
    differentiated = functional.is_differentiated
    if differentiated(probs) or differentiated(scale):
        allowed = probs > 0
        log_probs = _log_probs(loc, scale, allowed, sticks)
        active = _active(allowed, sticks)
        off = torch.where(active, probs[..., :-1] - log_probs.exp()[..., :-1], 0.0)
        jacobian = _jacobian(loc, scale.detach(), allowed, sticks, log_probs.detach().exp())
        loc = loc + _Solve.apply(jacobian, off)
    return loc, left


def solve(
    probs: Tensor, scale: Tensor, sticks: bool, rest: bool = True, solved: float = _SOLVED
) -> tuple[Tensor, Tensor]:
    """`loc_of` without derivatives; with ``rest=False``, of `igr.StickBreakingIGR`, whose last category is left out."""
    if sticks:
        return _solve_sticks(probs, scale, rest, solved)
    *batch, num_categories = probs.shape
    probs, scale = probs.reshape(-1, num_categories), scale.reshape(-1, num_categories - 1)
    size = max(1, _MAX_ELEMENTS // (num_categories * (num_categories + 100)))
    pieces = zip(probs.split(size), scale.split(size), strict=True)
    results = [_newton(*piece) for piece in pieces]
    loc = torch.cat([found for found, _ in results])
    left = torch.cat([how_far for _, how_far in results])
    return loc.reshape(*batch, num_categories - 1), left.reshape(batch)


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


def _solve_vmap(info: Any, in_dims: Any, probs: Tensor, scale: Tensor, sticks: bool) -> Any:
    probs, scale = (
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((probs, scale), in_dims[:2], strict=True)
    )
    return _solve(probs.contiguous(), scale.contiguous(), sticks), (0, 0)


if hasattr(_solve, "register_vmap"):  # torch 2.5
    _solve.register_vmap(_solve_vmap)


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


def _active(allowed: Tensor, sticks: bool) -> Tensor:
    """The coordinates that matter."""
    return functional.stick_breaking_active(allowed) if sticks else allowed[..., :-1]


def _log_probs(loc: Tensor, scale: Tensor, allowed: Tensor, sticks: bool) -> Tensor:
    if sticks:
        return leader_log_probs(loc, scale, allowed=allowed)
    # of as many nodes at each step, or Newton's method would see a jump
    found = argmax_log_probs(loc, scale, num_nodes=NODES, allowed=allowed, validate_args=False)
    return found.log_softmax(-1)


def _jacobian(loc: Tensor, scale: Tensor, allowed: Tensor, sticks: bool, probs: Tensor) -> Tensor:
    """Derivatives of the probabilities but the last, made invertible: only what matters is not the identity."""
    if sticks:

        def probabilities(loc: Tensor) -> Tensor:
            # all at once: torch.func takes nothing that is computed again, compiled or not
            log_probs = leader_log_probs(loc, scale, allowed=allowed, max_elements=2**62)
            return log_probs.exp()[..., :-1]

        found, pull_back, *_ = torch.func.vjp(probabilities, loc)
        rows = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        columns = [pull_back(row.expand(found.shape))[0] for row in rows]
        jacobian = torch.stack(columns, -2).detach()
    else:
        jacobian = argmax_jacobian(loc, scale, allowed)
        # Without the last category only differences matter: their sum stays where it is.
        free = (allowed[..., :-1] & ~allowed[..., -1:]).to(jacobian)
        jacobian = jacobian + probs[..., :-1].unsqueeze(-1) * free.unsqueeze(-2)
    active = _active(allowed, sticks)
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    return torch.where(both, jacobian, torch.diag_embed(torch.ones_like(loc)))


def _newton(probs: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    allowed = probs > 0
    active = allowed[..., :-1]
    wanted = torch.where(active, _quantile(probs[..., :-1]), 0.0)
    loc = scale * wanted
    best, left = loc, torch.full_like(probs[..., 0], torch.inf)
    for _ in range(_STEPS):
        found = _log_probs(loc, scale, allowed, False).exp()
        now = total_variation(found, probs)
        best, left = torch.where((now < left).unsqueeze(-1), loc, best), torch.fmin(now, left)
        if _checks.values_can_be_read(left) and bool((left < _SOLVED).all()):
            break
        quantile = _quantile(found[..., :-1])
        density = torch.exp(-0.5 * quantile * quantile) / math.sqrt(2 * math.pi)
        right = torch.where(active, density * (wanted - quantile), 0.0)
        jacobian = _jacobian(loc, scale, allowed, False, found)
        step = torch.linalg.solve(jacobian, right.unsqueeze(-1)).squeeze(-1)
        # No coordinate moves by more than a few of its standard deviations.
        longest = (step.abs() / scale).amax(-1, keepdim=True)
        loc = loc + step * (3.0 / longest.clamp_min(3.0))
    # Without the last category only differences matter: those with mean 0.
    count = active.sum(-1, keepdim=True).clamp_min(1)
    mean = torch.where(active, best, 0.0).sum(-1, keepdim=True) / count
    return torch.where(active, best - torch.where(allowed[..., -1:], 0.0, mean), 0.0), left


def _quantile(probs: Tensor) -> Tensor:
    return torch.special.ndtri(probs.clamp(1e-200, 1 - 1e-16))


def _solve_sticks(probs: Tensor, scale: Tensor, rest: bool, solved: float) -> tuple[Tensor, Tensor]:
    allowed = probs > 0
    mask = None if bool(allowed.all()) else allowed
    if not rest:
        # The last break only says how much is left over: it stays in the middle.
        probs, mask = normalise(probs[..., :-1]), None
    active = _active(allowed if rest else allowed[..., :-1], sticks=True)

    def evaluate(loc: Tensor) -> Tensor:
        loc = loc if rest else F.pad(loc, (0, 1))
        found = leader_log_probs(loc, scale, rest=rest, allowed=mask).exp()
        return found if rest else found[..., :-1]

    def quantiles(probs: Tensor) -> Tensor:
        hazards = hazard(probs.clamp_min(_LOST))[..., :-1]
        return torch.special.ndtri(hazards.clamp(1e-15, 1 - 1e-15))

    wanted = torch.where(active, quantiles(probs), 0.0)
    width = scale if rest else scale[..., :-1]

    def towards(found: Tensor) -> Tensor:
        # Where next to nothing is left yet, a step would follow rounding.
        left = found.flip(-1).cumsum(-1).flip(-1)[..., :-1]
        moves = active & (left >= 10 * _LOST)
        return width * torch.where(moves, wanted - quantiles(found), 0.0)

    loc, left = iterate(evaluate, towards, probs, width * wanted, solved)
    return loc if rest else F.pad(loc, (0, 1)), left


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
        worse = ((now > 4 * left) | now.isnan()).unsqueeze(-1)
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
