r"""Choosing the parameters of a relaxation so that it stands for a given discrete distribution (14).

Read literally, (14) minimises :math:`E\|\tilde z - p_0\|^2` over loc and scale, and its minimum is the point mass at
:math:`p_0`, which the scale reaches by going to 0 (erratum E3). Two things can be meant instead, and `match` does
either, at a scale that is given:

- ``how="hard"``: the recovered discrete distribution is :math:`p_0`. No temperature enters.
- ``how="mean"``: :math:`E[\tilde z] = p_0`, at the temperature given.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical

from igr import _checks, functional
from igr._inverse import OutOfReachWarning, hazard, iterate, normalise, solve, total_variation
from igr.countable import CountableIGR, CountableParameters
from igr.discrete import argmax_log_probs
from igr.distributions import IGR, GumbelSoftmax, Relaxation
from igr.stick_breaking import leader_log_probs
from igr.transforms import Compose, Sharpen, SoftmaxPlusPlus, StickBreaking

__all__ = [
    "Closeness",
    "Fit",
    "OutOfReachWarning",
    "cross_entropy",
    "distance",
    "fit",
    "hazard_loc",
    "match",
]

_FLOOR = (
    1e-10  # every category of a relaxation has some probability: a zero in a target becomes this
)
_TAIL = 1e-6  # mass of a countable target beyond the coordinates that are matched
_REPLICATES = 8  # independent estimates that a standard error comes from
_SOLVED = 1e-6  # total variation distance at which a solver stops
_REACHED = (
    1e-4  # and beyond which a target counts as out of reach, ten times that for a mean over noise
)

Target = Tensor | Distribution  # probabilities, or a distribution of counts
Q = TypeVar("Q", bound=Relaxation)


class Closeness(NamedTuple):
    """How far a relaxation is from its target."""

    total_variation: Tensor
    """Half the sum of the absolute differences, ``(*batch,)``."""
    standard_error: Tensor | None
    """Half the sum of the standard errors of the estimated probabilities; None where they were computed exactly."""


def match(
    target: Target,
    family: Callable[..., Q],
    temperature: float | Tensor,
    how: str = "hard",
    *,
    scale: float | Tensor = 1.0,
    num_categories: int | None = None,
    num_samples: int = 2**14,
    seed: int = 0,
) -> Q:
    r"""The member of a family that stands for a discrete distribution.

    With ``how="hard"``, the recovered discrete distribution equals the target, by Proposition 2 or by the exact
    probabilities of `igr.stick_breaking`; with ``how="mean"``, :math:`E[\tilde z]` does, over fixed quasi-random
    noise. See `distance` for how close the result is.

    Args:
        target: probabilities ``(*batch, K)``; a torch ``Categorical`` or ``OneHotCategorical``, or ``Bernoulli`` for
            the categories 0 and 1; or a torch distribution of counts 0, 1, 2, ..., such as ``Binomial`` or
            ``Poisson``, without a batch.
        family: what to call with ``(loc, scale, temperature)``: `igr.SoftmaxIGR`, `igr.SharpStickBreakingIGR`, a
            ``functools.partial`` of `igr.PlanarIGR`, ...; or `igr.GumbelSoftmax`; or `igr.CountableIGR`, which finds
            its number of coordinates itself. A ``functools.partial`` of any fits.
        temperature: of the result. With ``how="hard"`` it does not matter for loc.
        how: "hard" or "mean".
        scale: positive, broadcasts against ``(*batch, K-1)``; held fixed.
        num_categories: K, needed where the target is infinite and the family is not. The target is then cut and
            what remains is made to sum to one, with a warning that says how much was cut.
        num_samples: noise points of ``how="mean"``, and of families whose recovery is not exact.
        seed: of that noise. The global random state is neither used nor changed.

    Returns:
        A distribution of the family. A probability of 0 is matched by 1e-10.

    Raises:
        ValueError: if an argument does not fit.

    Warns:
        OutOfReachWarning: with the distance that is left, where the target is out of reach: (18) never chooses its
            last category, and at a high temperature its mean reaches few targets (errata E3 and E5).

    Differs from the paper: (14) is minimised by a point mass (erratum E3); this is what it stands for.

    >>> from igr import SoftmaxIGR
    >>> prior = match(torch.full((10,), 0.1), SoftmaxIGR, temperature=0.1)
    >>> prior.loc[0]
    tensor(-0.7530)
    """
    if torch.is_inference_mode_enabled():
        # What is solved for needs gradients on the way, and may be trained against later.
        with torch.inference_mode(False), torch.no_grad():
            return match(
                _normal(target),
                family,
                _normal(temperature),
                how,
                scale=_normal(scale),
                num_categories=num_categories,
                num_samples=num_samples,
                seed=seed,
            )
    _check_how(how)
    if isinstance(family, Distribution) or not callable(family):
        raise ValueError(
            "family: expected a class such as igr.SoftmaxIGR, or what makes a distribution of (loc, scale, "
            f"temperature), got {family!r}"
        )
    made_of = family.func if isinstance(family, functools.partial) else family
    countable = _is_a(made_of, CountableIGR)
    _checks.count("num_samples", num_samples)
    seed = _checks.count("seed", seed, 0)
    if num_categories is not None:
        num_categories = _checks.count("num_categories", num_categories, 2)
    probs, beyond = _masses(target, None if countable else num_categories, endless=countable)
    like = target if isinstance(target, Tensor) else target.mean
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    if countable:
        probs = torch.cat([probs, beyond.unsqueeze(-1)], -1)
    elif bool((beyond > 0).any()):
        _warn(
            f"a mass of {float(beyond.max()):.3g} of the target lies beyond {probs.shape[-1]} "
            "categories and was cut; the rest is made to sum to one"
        )
    probs = probs.clamp_min(_FLOOR)
    probs = probs / probs.sum(-1, keepdim=True)
    settings = _Settings(how, scale, num_samples, seed, dtype)
    if _is_a(made_of, GumbelSoftmax):
        return _match_gumbel(probs, family, temperature, settings)
    if countable:
        return _match_countable(probs, family, temperature, settings)
    return _match_igr(probs, lambda loc, scale: family(loc, scale, temperature), settings)


def _normal(value: Any) -> Any:
    """The same, or a copy of a tensor that was made in inference mode."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


class _Settings(NamedTuple):
    how: str
    scale: float | Tensor
    num_samples: int
    seed: int
    dtype: torch.dtype


def _match_gumbel(
    probs: Tensor, family: Callable[..., Any], temperature: float | Tensor, settings: _Settings
) -> Any:
    def build(logits: Tensor) -> Any:
        return family(temperature, logits=logits)

    logits = probs.log()
    if settings.how == "mean":
        q = build(logits)
        probs, logits = probs.expand(q.logits.shape), q.logits.clone()
        uniform = _sobol(settings.num_samples, probs.shape[-1], settings.seed).to(probs.device)
        gumbel = -torch.log(-torch.log(uniform))
        gumbel = gumbel.reshape(-1, *(1,) * (probs.dim() - 1), probs.shape[-1])

        def mean(logits: Tensor) -> Tensor:
            scaled = (logits + gumbel) / functional.lift(temperature)
            return torch.softmax(scaled, -1).mean(0)

        def towards(found: Tensor) -> Tensor:
            return (1 + functional.lift(temperature)) * (probs.log() - found.log())

        logits, left = _solve(mean, towards, probs, logits)
        logits = torch.log_softmax(logits, -1)
        _report(left, settings.how, 10 * _REACHED)
    return build(logits.to(settings.dtype))


def _match_countable(
    probs: Tensor, family: Callable[..., Any], temperature: float | Tensor, settings: _Settings
) -> Any:
    """As a finite stick-breaking relaxation whose last category is everything beyond."""
    if probs.dim() > 1:
        raise ValueError(
            f"target: expected one distribution for CountableIGR, got a batch of shape {tuple(probs.shape[:-1])}"
        )
    parameters = CountableParameters(1, device=probs.device)
    closing = family(parameters, temperature).closing(temperature)

    def build(loc: Tensor, scale: Tensor) -> IGR:
        return IGR(loc, scale, Compose([StickBreaking(), closing]))

    finite = _match_igr(probs, build, settings._replace(dtype=torch.float64))
    # Beyond the coordinates that were matched the stick is broken in halves: nothing is left to speak of.
    loc = torch.cat([finite.loc, finite.loc.new_zeros(1)])
    scale = torch.cat([finite.scale, finite.scale.new_ones(1)])
    parameters = CountableParameters(
        finite.loc.shape[-1],
        loc=loc,
        scale=scale,
        dtype=settings.dtype,
        device=loc.device,
    )
    return family(parameters.requires_grad_(False), temperature)


def _match_igr(probs: Tensor, build: Callable[[Tensor, Tensor], Any], settings: _Settings) -> Any:
    shape = (*probs.shape[:-1], probs.shape[-1] - 1)
    scale = _checks.positive("scale", settings.scale)
    scale = torch.as_tensor(scale, dtype=torch.float64, device=probs.device)
    loc, scale = _checks.broadcast(loc=probs.new_zeros(shape), scale=scale)
    probe = build(loc, scale)
    if not isinstance(probe, IGR) or not probe._is_gaussian:
        raise ValueError(
            "family: expected igr.GumbelSoftmax, igr.CountableIGR, or what makes an igr.IGR of (loc, scale, "
            f"temperature), got one that makes {type(probe).__name__}"
        )
    loc, scale = probe.loc, probe.scale
    probs = probs.expand(*loc.shape[:-1], -1)
    parts = [type(part) for part in probe.transform.parts]
    sticks = StickBreaking in parts
    if settings.how == "hard" and _exact_log_probs(probe) is not None:
        rest = parts[-1] is not SoftmaxPlusPlus or not sticks
        lost = 0.0 if rest else probs[..., -1]
        if probe.allowed is not None:
            probs = normalise(torch.where(probe.allowed, probs, 0.0))
        loc, left = solve(probs, scale, sticks, rest, _SOLVED)
        _report(left * (1 - lost) + lost, settings.how, _REACHED)
        return build(loc.to(settings.dtype), scale.to(settings.dtype))
    noise = torch.special.ndtri(_sobol(settings.num_samples, loc.shape[-1], settings.seed))
    noise = noise.to(loc.device).reshape(-1, *(1,) * (loc.dim() - 1), loc.shape[-1])

    def evaluate(loc: Tensor) -> Tensor:
        return _average(build(loc, scale), noise, settings.how)

    # A step of so much moves a probability, seen through the normal quantile, by about as much as is wanted.
    width, tolerance = scale, 10 * _REACHED
    if settings.how == "hard":
        tolerance = float((probs * (1 - probs) / settings.num_samples).sqrt().sum(-1).max())
    else:
        temperature = getattr(probe.transform.parts[-1], "temperature", 1.0)
        width = (scale.square() + (1.6 * functional.lift(temperature)) ** 2).sqrt()

    def quantiles(probs: Tensor) -> Tensor:
        if sticks:
            probs = hazard(probs)
        return torch.special.ndtri(probs[..., :-1].clamp(1e-15, 1 - 1e-15))

    wanted = quantiles(probs)

    def towards(found: Tensor) -> Tensor:
        return width * (wanted - quantiles(found))

    differentiable = settings.how == "mean"
    loc, left = _solve(evaluate, towards, probs, width * wanted, tolerance, differentiable)
    _report(left, settings.how, tolerance)
    return build(loc.to(settings.dtype), scale.to(settings.dtype))


def _solve(
    evaluate: Callable[[Tensor], Tensor],
    towards: Callable[[Tensor], Tensor],
    probs: Tensor,
    start: Tensor,
    tolerance: float = _REACHED,
    differentiable: bool = True,
) -> tuple[Tensor, Tensor]:
    """Parameters at which `evaluate` gives `probs`, and the total variation distance that is left.

    Iterates x + towards(evaluate(x)) with Anderson's acceleration, for each element of the batch; where that does
    not arrive and there is a gradient, minimises the squared distance.
    """
    with torch.no_grad():
        best, left = iterate(evaluate, towards, probs, start, _SOLVED)
    if differentiable and bool((left > tolerance).any()):
        x = best.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x],
            max_iter=60,
            tolerance_grad=1e-10,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (evaluate(x) - probs).square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        x = x.detach()
        with torch.no_grad():
            now = total_variation(evaluate(x), probs)
        best = torch.where((now < left).unsqueeze(-1), x, best)
        left = torch.minimum(now, left)
    return best, left


def distance(
    q: Relaxation,
    target: Target,
    how: str = "hard",
    *,
    num_samples: int = 2**16,
    seed: int = 1,
) -> Closeness:
    """Total variation distance from what a relaxation stands for to a discrete distribution.

    Args:
        q: a relaxation.
        target: as for `match`. What it has beyond the categories of q counts too.
        how: "hard" for the recovered discrete distribution, "mean" for E[z].
        num_samples: noise points where the probabilities are estimated rather than computed.
        seed: of that noise. The global random state is neither used nor changed.

    Returns:
        The distance, ``(*batch,)``, and a standard error where it was estimated.

    >>> from igr import GumbelSoftmax
    >>> target = torch.tensor([0.2, 0.3, 0.5])
    >>> distance(GumbelSoftmax(0.5, probs=target), target).total_variation < 1e-6
    tensor(True)
    """
    _check_how(how)
    if not isinstance(q, Relaxation):
        raise _checks.unexpected("q", q, "a relaxation")
    _checks.count("num_samples", num_samples)
    seed = _checks.count("seed", seed, 0)
    with torch.no_grad():
        exact = _exact_log_probs(q) if how == "hard" else None
        error = None
        if exact is not None:
            found = exact.exp().double()
        else:
            found, error = _estimate(q, how, num_samples, seed)
        rest = torch.zeros_like(found[..., 0])
        if isinstance(q, CountableIGR):
            found, rest = found[..., :-1], found[..., -1]
        probs, beyond = _masses(target, found.shape[-1])
        total = 0.5 * ((found - probs).abs().sum(-1) + (rest - beyond).abs())
    return Closeness(total, None if error is None else 0.5 * error.sum(-1))


def hazard_loc(probs: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    r"""Where stick-breaking tends to `probs` as the scales grow: a good start for fitting.

    .. math:: \mu_k = \sigma_k \Phi^{-1}(h_k), \qquad h_k = \frac{p_k}{\sum_{j \ge k} p_j}

    Args:
        probs: ``(*batch, K)``.
        scale: positive, broadcasts against ``(*batch, K-1)``.

    Returns:
        loc, ``(*batch, K-1)``.

    >>> hazard_loc(torch.tensor([0.5, 0.25, 0.25]))
    tensor([0., 0.])
    """
    dtype = _checks.floating("probs", probs).dtype
    hazards = hazard(probs.double().clamp_min(_FLOOR))[..., :-1]
    quantile = torch.special.ndtri(hazards.clamp(1e-15, 1 - 1e-15))
    scale = torch.as_tensor(_checks.positive("scale", scale), device=probs.device)
    scale, quantile = _checks.broadcast(scale=scale, probs=quantile)
    return (scale * quantile).to(dtype)


@dataclass
class Fit:
    """What `fit` did."""

    objective: Tensor
    """Estimates of the objective, one for each step."""
    closeness: list[tuple[int, float]]
    """(step, total variation distance over 16,384 samples), before the first step and after the last included."""


def fit(
    build: Callable[[], Relaxation],
    parameters: Iterable[Tensor] | nn.Module,
    target: Target,
    how: str = "mean",
    *,
    num_steps: int = 1000,
    learning_rate: float = 0.05,
    num_samples: int = 200,
    every: int = 100,
    objective: Callable[[Tensor, Tensor], Tensor] | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Fit:
    r"""Descend on (14), mended, with Adam: what the paper does, to be looked at; `match` solves it.

    .. math:: \| E[\tilde z] - p_0 \|^2 \approx (\bar z_1 - p_0)^\top (\bar z_2 - p_0)

    with the means of two independent halves of the samples, so that the estimate has no bias; the mean of the
    squares would add the variance of the mean, and lead towards erratum E3's point mass. With ``how="hard"``,
    :math:`\tilde z` is the one-hot sample with the gradient of the relaxed one.

    Args:
        build: makes the distribution from the current parameters.
        parameters: what to optimise. `igr.nn.CountableParameters` may grow.
        target: as for `match`, without a batch.
        how: "mean" or "hard".
        num_steps, learning_rate: of Adam.
        num_samples: drawn at each step, from torch's global random state.
        every: measure the distance every so many steps.
        objective: called with the means of the two halves ``(2, K)`` and the probabilities ``(K,)``, in the place of
            the squared distance; such as `cross_entropy`, which weighs small probabilities more and comes closer.
        callback: called with the step and the objective after each.

    Returns:
        The course of the objective and of the distance.

    Differs from the paper: (14) read literally leads to a point mass (erratum E3).

    >>> from igr import SoftmaxIGR
    >>> loc = torch.zeros(2, requires_grad=True)
    >>> course = fit(lambda: SoftmaxIGR(loc, torch.ones(2), 0.5), [loc], torch.tensor([0.6, 0.3, 0.1]), num_steps=50)
    >>> course.closeness[-1][1] < course.closeness[0][1]
    True
    """
    _check_how(how)
    for name, number in (("num_steps", num_steps), ("num_samples", num_samples), ("every", every)):
        _checks.count(name, number)
    owned = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
    optimizer = torch.optim.Adam(owned, lr=learning_rate)
    objective = _squared_distance if objective is None else objective
    course, closeness = [], []
    for step in range(num_steps + 1):
        q = build()
        if step % every == 0 or step == num_steps:
            closeness.append((step, _estimated_distance(q, target, how)))
        if step == num_steps:
            break
        draw = q.straight_through if how == "hard" else q.rsample
        halves = draw((2, (num_samples + 1) // 2)).mean(1)
        probs = _masses(target, halves.shape[-1])[0]
        loss = objective(halves, probs.to(halves))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.detach())
        if callback is not None:
            callback(step, loss.item())
    return Fit(torch.stack(course), closeness)


def cross_entropy(halves: Tensor, probs: Tensor) -> Tensor:
    r"""An objective for `fit`: :math:`-\sum_k p_k \log \bar z_k`, with the mean of all samples."""
    mean = halves.mean(0).clamp_min(1e-6)
    return -(probs * mean.log()).sum()


def _squared_distance(halves: Tensor, probs: Tensor) -> Tensor:
    off = halves - probs
    return (off[0] * off[1]).sum()


def _estimated_distance(q: Relaxation, target: Target, how: str) -> float:
    with torch.no_grad():
        found = _estimate(q, how, 2**14, seed=1)[0]
        probs, beyond = _masses(target, found.shape[-1])
        return float(total_variation(found, probs) + 0.5 * beyond)


def _check_how(how: str) -> None:
    if how not in ("hard", "mean"):
        raise ValueError(f'how: expected "hard" or "mean", got {how!r}')


def _is_a(family: Any, parent: type) -> bool:
    return isinstance(family, type) and issubclass(family, parent)


def _warn(message: str) -> None:
    warnings.warn(message, OutOfReachWarning, stacklevel=4)


def _report(left: Tensor, how: str, tolerance: float) -> None:
    worst = float(left.max()) if left.numel() else 0.0
    if worst > tolerance:
        meant = "recovered discrete distribution" if how == "hard" else "mean"
        warnings.warn(
            f"the target is out of reach: the {meant} is left at a total variation distance of {worst:.3g} from it",
            OutOfReachWarning,
            stacklevel=4,
        )


def _masses(
    target: Target, length: int | None = None, *, endless: bool = False
) -> tuple[Tensor, Tensor]:
    """The target's probabilities of the first `length` categories, and what is beyond them.

    Without a length, of all; of an infinite target, where `endless`, of so many that next to nothing is beyond.
    """
    if isinstance(target, Tensor):
        if target.dim() < 1 or target.shape[-1] < 2:
            raise ValueError(f"target: expected shape (*batch, K), got {tuple(target.shape)}")
        probs = target.detach().double()
        valid = (probs >= 0).all(-1) & ((probs.sum(-1) - 1).abs() < 1e-2)
        _checks.satisfies("target", target, valid, "probabilities that sum to one")
        probs = normalise(probs)
    elif isinstance(target, (Categorical, OneHotCategorical)):
        probs = normalise(target.probs.detach().double())
    elif isinstance(target, Bernoulli):
        p = target.probs.detach().double()
        probs = torch.stack([1 - p, p], -1)
    else:
        probs = _count_masses(target, length, endless)
    if length is None:
        length = probs.shape[-1]
    beyond = 1 - probs[..., :length].sum(-1)
    # Rounding is not mass.
    beyond = torch.where(beyond > 1e-9, beyond, 0.0)
    return F.pad(probs[..., :length], (0, max(0, length - probs.shape[-1]))), beyond


def is_infinite(target: Target) -> bool:
    """Whether a target has infinitely many categories, as a Poisson distribution has."""
    finite = isinstance(target, (Tensor, Categorical, OneHotCategorical, Bernoulli))
    return not finite and getattr(getattr(target, "support", None), "upper_bound", None) is None


def _count_masses(target: Distribution, length: int | None, endless: bool) -> Tensor:
    support = getattr(target, "support", None)
    if (
        not isinstance(target, Distribution)
        or target.batch_shape + target.event_shape
        or not getattr(support, "is_discrete", False)
        or getattr(support, "lower_bound", 0) != 0
    ):
        raise ValueError(
            "target: expected probabilities (*batch, K), a torch Categorical, OneHotCategorical or Bernoulli, or a "
            f"torch distribution of counts 0, 1, 2, ... without a batch (match each by itself), got {target}"
        )
    upper = getattr(support, "upper_bound", None)
    if upper is not None:
        size = int(upper) + 1
    elif length is not None:
        size = length
    elif not endless:
        raise ValueError(
            f"num_categories: expected a number, as {type(target).__name__} has infinitely many categories and the "
            "family has not; or use igr.CountableIGR"
        )
    else:
        size = 64
        while float(_pmf(target, size)[-1]) > 1e-12 or float(target.mean) > size:
            size *= 2
            if size > 2**20:
                raise ValueError(
                    f"target: expected a tail that ends within a million counts, got {target}"
                )
        probs = _pmf(target, size)
        # Beyond these next to nothing is left.
        size = int((probs.flip(-1).cumsum(-1).flip(-1) > _TAIL).sum())
    return _pmf(target, max(size, 2))


def _pmf(target: Distribution, size: int) -> Tensor:
    mean = target.mean
    counts = torch.arange(size, dtype=torch.float64, device=mean.device)
    return target.log_prob(counts).exp().double()


def _exact_log_probs(q: Relaxation) -> Tensor | None:
    """Logarithms of the recovered probabilities where they can be computed, in float64."""
    if isinstance(q, GumbelSoftmax):
        return torch.log_softmax(q.logits.double(), -1)
    if isinstance(q, CountableIGR):
        closing = q.closing(q.temperature)
        if not isinstance(closing, (Sharpen, SoftmaxPlusPlus)):
            return None
        return leader_log_probs(q.loc.double(), q.scale.double(), rest=isinstance(closing, Sharpen))
    if not isinstance(q, IGR) or not q._is_gaussian:
        return None
    loc, scale = q.loc.double(), q.scale.double()
    parts = q.transform.parts
    last = parts[-1]
    if len(parts) == 1 and isinstance(last, SoftmaxPlusPlus):
        return argmax_log_probs(loc, scale, allowed=last.allowed)
    if len(parts) == 2 and isinstance(parts[0], StickBreaking):
        if isinstance(last, Sharpen):
            return leader_log_probs(loc, scale, allowed=last.allowed)
        if isinstance(last, SoftmaxPlusPlus) and last.allowed is None:
            return leader_log_probs(loc, scale, rest=False)
    return None


def _sobol(num_samples: int, dimension: int, seed: int) -> Tensor:
    """Quasi-random points of the open unit cube; random ones in more dimensions than Sobol's sequence has."""
    with torch.device("cpu"):  # the same on every device
        if dimension > torch.quasirandom.SobolEngine.MAXDIM:
            generator = torch.Generator().manual_seed(seed)
            points = torch.rand(num_samples, dimension, dtype=torch.float64, generator=generator)
        else:
            engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
            points = engine.draw(num_samples, dtype=torch.float64)
    return points.clamp(1e-12, 1 - 1e-12)


def _average(q: IGR, noise: Tensor, how: str) -> Tensor:
    """E[z], or how often each category is the one that z relaxes, over given noise."""
    stable = q.transform.forward_stable(q.loc + q.scale * noise)
    if how == "mean":
        return stable.exp().mean(0)
    return functional.one_hot_argmax(q.hard_scores(stable)).double().mean(0)


def _estimate(q: Relaxation, how: str, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """What `_average` gives for any relaxation, with a standard error from independent replicates."""
    size = max(1, num_samples // _REPLICATES)
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for replicate in range(_REPLICATES):
            if isinstance(q, IGR) and q._is_gaussian:
                noise = torch.special.ndtri(_sobol(size, q.loc.shape[-1], seed + 1000 * replicate))
                shape = (-1, *(1,) * (q.loc.dim() - 1), q.loc.shape[-1])
                found.append(_average(q, noise.reshape(shape).to(q.loc.device), how))
                continue
            log_z = q.rsample_log((size,))
            z = log_z.exp() if how == "mean" else functional.one_hot_argmax(q.hard_scores(log_z))
            z = z.double().mean(0)
            found.append(F.pad(z, (0, q.num_categories - z.shape[-1])))
    width = max(z.shape[-1] for z in found)
    values = torch.stack([F.pad(z, (0, width - z.shape[-1])) for z in found])
    return values.mean(0), values.std(0) / math.sqrt(_REPLICATES)
