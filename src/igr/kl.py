r"""KL divergences: closed form (13) where there is one, Monte Carlo (9), and the plug-in (8).

`torch.distributions.kl_divergence` looks for the rule at the first call for two classes, which compilers cannot trace.
For our own it is called when they are imported; for others, or where a library that is imported later registers rules,
call it once before compiling with ``fullgraph=True``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Dirichlet,
    Distribution,
    Independent,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    TransformedDistribution,
)
from torch.distributions import kl_divergence as closed_form
from torch.distributions.kl import register_kl

from igr import _checks, functional
from igr.constraints import corner, countable
from igr.distributions import (
    IGR,
    GumbelSoftmax,
    PlanarIGR,
    Relaxation,
    SharpStickBreakingIGR,
    SoftmaxIGR,
    StickBreakingIGR,
)
from igr.transforms import Compose, SoftmaxPlusPlus

__all__ = ["kl_divergence", "monte_carlo_kl", "plug_in_kl"]

_CATEGORICAL = (Categorical, OneHotCategorical)


def kl_divergence(q: Distribution, p: Distribution, num_samples: int = 1) -> Tensor:
    r"""KL(q || p): in closed form where there is one, by Monte Carlo elsewhere, and of categories.

    .. math:: \mathrm{KL}(q \,\|\, p) = \sum_{k<K} \left( \log \frac{s_k}{\sigma_k}
              + \frac{\sigma_k^2 + (\mu_k - m_k)^2}{2 s_k^2} - \frac 1 2 \right) \qquad (13)

    where q has location :math:`\mu` and scale :math:`\sigma`, and p has m and s.

    | q | p | what it is |
    | --- | --- | --- |
    | `SoftmaxIGR` | `SoftmaxIGR` | (13), of any two temperatures and deltas; infinite where `allowed` differs |
    | an IGR of another form | the same form and map: temperature, delta, flow | (13) |
    | `CountableIGR` | `CountableIGR` of the same closing map | (13), over the coordinates that either holds |
    | `CountableIGR` | `CountableIGR` of another | `monte_carlo_kl`: infinite, as p cuts samples of q elsewhere |
    | an IGR, `GumbelSoftmax` | any other relaxation | `monte_carlo_kl` |
    | an IGR, `GumbelSoftmax` | torch's `RelaxedOneHotCategorical`, `Dirichlet`, `LogisticNormal` | `monte_carlo_kl` |
    | a relaxation | `Categorical`, `OneHotCategorical` | `plug_in_kl`: with relaxed samples it gives no bound |
    | `Categorical`, `OneHotCategorical` | a relaxation, or one of these | (8) of the categories |
    | ``Independent`` of one of these | ``Independent`` of the other | the sum |
    | any other | any other | torch's own, where there is one |

    ``torch.distributions.kl_divergence`` has those in closed form, and for the others an error that says what to call.

    Args:
        q, p: distributions.
        num_samples: n of (9), where that is what is used.

    Returns:
        ``(*batch,)``.

    Raises:
        ValueError: if they do not fit, or there is neither a closed form nor an estimate.

    Two maps onto the simplex are compared by value, but within `torch.compile` by identity alone: temperatures given
    as tensors must then be the same object for a closed form.

    >>> from igr import GumbelSoftmax, SoftmaxIGR
    >>> q, p = SoftmaxIGR(torch.ones(8, 9), torch.ones(9), 0.5), SoftmaxIGR(torch.zeros(9), torch.ones(9), 0.5)
    >>> kl_divergence(q, p)[0]
    tensor(4.5000)
    >>> kl_divergence(q, GumbelSoftmax(0.5, logits=torch.zeros(10)), num_samples=4).shape
    torch.Size([8])
    >>> kl_divergence(q, torch.distributions.Categorical(logits=torch.zeros(10))).shape
    torch.Size([8])
    """
    if _are_independent(q, p):
        return _summed(kl_divergence, q, p, num_samples)
    if isinstance(p, _CATEGORICAL) and isinstance(q, Relaxation):
        return _categorical_kl(q.discrete(), p)
    if isinstance(q, _CATEGORICAL) and isinstance(p, (Relaxation, *_CATEGORICAL)):
        return _categorical_kl(q, p.discrete() if isinstance(p, Relaxation) else p)
    try:
        return closed_form(q, p)
    except NotImplementedError:
        return monte_carlo_kl(q, p, num_samples)  # type: ignore[arg-type]


def monte_carlo_kl(
    q: Relaxation | Independent[Any], p: Distribution, num_samples: int = 1
) -> Tensor:
    r"""Unbiased estimate of KL(q || p), differentiable in the parameters of both.

    .. math:: \frac 1 n \sum_{i=1}^n \log q(\tilde z_i) - \log p(\tilde z_i), \qquad \tilde z_i \sim q \qquad (9)

    It is computed in log space; maps that q and p end with in common cancel and are not evaluated.

    Args:
        q: a relaxation.
        p: a relaxation of the same number of categories, or another density on their simplex, such as torch's
            ``RelaxedOneHotCategorical`` and ``Dirichlet`` (in log space too), ``LogisticNormal`` or a mixture. Or
            both are torch's ``Independent`` of such.
        num_samples: n.

    Returns:
        ``(*batch,)``.

    Raises:
        ValueError: if `num_samples` is not positive, the numbers of categories differ, q is no relaxation, or p has
            no density on the simplex.

    Source: paper, equation (9); Maddison et al. (2017), appendix C.3.

    >>> from igr import GumbelSoftmax
    >>> q, p = GumbelSoftmax(0.5, logits=torch.randn(8, 10)), GumbelSoftmax(0.5, logits=torch.zeros(10))
    >>> monte_carlo_kl(q, p, num_samples=4).shape
    torch.Size([8])
    """
    num_samples = _checks.count("num_samples", num_samples)
    if _are_independent(q, p):
        return _summed(monte_carlo_kl, q, p, num_samples)
    if not isinstance(q, Relaxation):
        raise _checks.unexpected("q", q, "a relaxation")
    if not isinstance(p, Distribution):
        raise _checks.unexpected("p", p, "a distribution")
    if isinstance(p, _CATEGORICAL):
        raise ValueError(
            f"p: expected a density on the simplex, got {type(p).__name__}, against which q has none; "
            "igr.plug_in_kl(q, p) compares their categories"
        )
    # Those over 0, 1, 2, ... have as many entries as they hold coordinates at the time.
    if q.event_shape != p.event_shape and not (q.support is countable and p.support is countable):
        raise ValueError(
            f"q, p: expected the same number of categories, got event shapes {tuple(q.event_shape)} and "
            f"{tuple(p.event_shape)}"
        )
    batch = _checks.broadcast_batch("q, p", q.batch_shape, p.batch_shape)
    if batch != q.batch_shape:
        q = cast("Relaxation", q.expand(batch))
    shared = _shared_maps(q, p)
    if shared and isinstance(q, IGR) and isinstance(p, IGR):
        x, log_q = q._rsample_base_and_log_prob((num_samples,))
        if mine := q.transform.parts[:-shared]:
            x, log_det = Compose(mine).forward_and_log_det(x)
            log_q = log_q - log_det
        if theirs := p.transform.parts[:-shared]:
            x, log_det, inside = Compose(theirs).inverse_and_log_det(x)
            log_p = torch.where(inside, p._base_log_prob(x) - log_det, -torch.inf)
        else:
            log_p = p._base_log_prob(x)
    else:
        log_z, log_q = q.rsample_log_and_log_prob((num_samples,))
        log_p = _log_density(p, log_z)
    return (log_q - log_p).mean(0)


def _are_independent(q: Distribution, p: Distribution) -> bool:
    """Whether both are torch's ``Independent``, over the same number of dimensions."""
    both = isinstance(q, Independent) and isinstance(p, Independent)
    return both and q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims  # type: ignore[attr-defined]


def _summed(kl: Callable[..., Tensor], q: Any, p: Any, *num_samples: int) -> Tensor:
    """A divergence between what two ``Independent`` hold, summed over their dimensions."""
    dims = q.reinterpreted_batch_ndims
    terms = kl(q.base_dist, p.base_dist, *num_samples)
    return terms.sum(tuple(range(-dims, 0))) if dims else terms


def _log_density(p: Distribution, log_z: Tensor) -> Tensor:
    """log p of a point of the simplex given by its logarithm."""
    if isinstance(p, RelaxedOneHotCategorical):
        p = GumbelSoftmax(p.temperature, logits=p.logits, validate_args=False)
    if isinstance(p, Relaxation):
        return p.log_prob(log_value=log_z)
    if isinstance(p, Dirichlet):
        a = p.concentration
        constant = torch.lgamma(a.sum(-1)) - torch.lgamma(a).sum(-1)
        log_p = ((a - 1) * log_z).sum(-1) + constant
    else:
        # Only z itself can be given: what underflows is read as the smallest number, but not what is ruled out.
        z = log_z.exp().clamp_min(torch.finfo(log_z.dtype).tiny)
        log_p = p.log_prob(torch.where(log_z > -torch.inf, z, 0.0))
    # On a face there is no density of those over the whole simplex, whatever they say there.
    on_face = (log_z == -torch.inf).any(-1)
    return torch.where(on_face & ~log_p.isfinite(), -torch.inf, log_p)


def _shared_maps(q: Distribution, p: Distribution) -> int:
    """How many maps q and p end with in common, when what comes before them is a density on R^(K-1)."""
    if (
        not (isinstance(q, IGR) and isinstance(p, IGR))
        or q.allowed is not None
        or p.allowed is not None
    ):
        return 0
    count, mine, theirs = 0, q.transform.parts, p.transform.parts
    while count < min(len(mine), len(theirs)) and mine[-1 - count] == theirs[-1 - count]:
        count += 1
    # What is left of both must give points of the same space: R^(K-1), or the corner.
    return count if _gives_corner(q, count) == _gives_corner(p, count) else 0


def _gives_corner(q: IGR, shared: int) -> bool:
    parts = q.transform.parts
    return shared < len(parts) and parts[-shared - 1].codomain is corner


def plug_in_kl(
    q: Relaxation | Independent[Any], p0: Categorical | OneHotCategorical | Independent[Any]
) -> Tensor:
    r"""Divergence of the recovered categorical distribution of q from `p0`.

    .. math:: \mathrm{KL}(\tilde\alpha \,\|\, p_0) = \sum_k \tilde\alpha_k
              \log \frac{\tilde\alpha_k}{p_{0,k}} \qquad (8)

    With relaxed samples in the other term of an objective it does not give a bound: `monte_carlo_kl`, or the closed
    form of `torch.distributions.kl_divergence`, does.

    Args:
        q: a relaxation; its ``discrete()`` is used.
        p0: categorical distribution over the same categories. Or both are torch's ``Independent`` of such.

    Returns:
        ``(*batch,)``.

    Raises:
        ValueError: if `p0` is something else, or of another number of categories.

    >>> from igr import GumbelSoftmax
    >>> uniform = torch.distributions.Categorical(logits=torch.zeros(4))
    >>> plug_in_kl(GumbelSoftmax(0.5, logits=torch.zeros(4)), uniform)
    tensor(0.)
    """
    if _are_independent(q, p0):
        return _summed(plug_in_kl, q, p0)
    if not isinstance(p0, _CATEGORICAL):
        raise ValueError(
            f"p0: expected a torch Categorical or OneHotCategorical, got {type(p0).__name__}; igr.monte_carlo_kl "
            "compares densities"
        )
    if not isinstance(q, Relaxation):
        raise _checks.unexpected("q", q, "a relaxation")
    return _categorical_kl(q.discrete(), p0, "p0")


def _categorical_kl(
    q: Categorical | OneHotCategorical, p: Categorical | OneHotCategorical, name: str = "p"
) -> Tensor:
    """(8) between categorical distributions; infinite where p rules out a category that q does not."""
    log_q, log_p = _log_probs(q), _log_probs(p)
    if log_q.shape[-1] != log_p.shape[-1]:
        raise ValueError(
            f"{name}: expected {log_q.shape[-1]} categories, as q has, got {log_p.shape[-1]}"
        )
    _checks.broadcast_batch(name, log_q.shape[:-1], log_p.shape[:-1])
    alpha = log_q.exp()
    # A category of probability 0 adds nothing.
    terms = alpha * torch.where(alpha > 0, log_q - log_p, 0.0)
    return terms.sum(-1)


def _log_probs(q: Categorical | OneHotCategorical) -> Tensor:
    """Logarithms of the probabilities, with a gradient of 0 where they are -inf.

    Of a distribution made of probabilities, torch has those below a rounding of 1 as that, zeros included.
    """
    logits = functional.full_precision(q.logits)
    if "probs" not in vars(getattr(q, "_categorical", q)):
        return logits
    probs = functional.full_precision(q.probs)
    exact = torch.where(probs > 0, probs, 1.0).log().masked_fill(probs == 0, -torch.inf)
    # Where logits were given, those of probabilities that underflow are far below what torch makes of a zero.
    given = logits < math.log(torch.finfo(q.logits.dtype).tiny)
    return torch.where(given, logits, torch.minimum(logits, exact))


def _no_closed_form(q: Distribution, p: Distribution) -> NotImplementedError:
    names = f"from {type(q).__name__} to {type(p).__name__}"
    if isinstance(q, _CATEGORICAL) or isinstance(p, _CATEGORICAL):
        why = (
            f"no KL {names}: one has a density on the simplex and the other probabilities of its corners; "
            "igr.kl_divergence(q, p) has that of the categorical distribution that is relaxed"
        )
    elif q.event_shape != p.event_shape:
        why = (
            f"no KL {names}: event shapes {tuple(q.event_shape)} and {tuple(p.event_shape)} differ; "
            "igr.monte_carlo_kl takes those of one number of categories"
        )
    elif isinstance(q, Relaxation):
        why = f"no closed-form KL {names}{_reason(q, p)}; use igr.monte_carlo_kl(q, p, num_samples)"
    else:
        why = (
            f"no closed-form KL {names}; average q.log_prob(z) - p.log_prob(z) over samples z of q"
        )
        if isinstance(q, RelaxedOneHotCategorical):
            why += ", or make q an igr.GumbelSoftmax, the same distribution, for igr.monte_carlo_kl"
    return NotImplementedError(why)


def _reason(q: Relaxation, p: Distribution) -> str:
    if isinstance(q, IGR) and isinstance(p, IGR):
        return (
            f": their maps onto the simplex differ, {q.transform} and {p.transform}; of equal ones, with the same "
            "temperature, it would be that of what goes in (13)"
        )
    if isinstance(q, GumbelSoftmax) and isinstance(p, GumbelSoftmax):
        return ": of two Gumbel-Softmax densities (6) none is known, whatever their temperatures"
    return ""


@register_kl(Relaxation, Relaxation)
@register_kl(Relaxation, Distribution)
@register_kl(Distribution, Relaxation)
@register_kl(IGR, GumbelSoftmax)
@register_kl(GumbelSoftmax, IGR)
@register_kl(IGR, TransformedDistribution)
@register_kl(TransformedDistribution, IGR)
def _kl_none(q: Distribution, p: Distribution) -> Tensor:
    raise _no_closed_form(q, p)


@register_kl(IGR, IGR)
def _kl_igr(q: IGR, p: IGR) -> Tensor:
    """(13): the Jacobians cancel where the maps are the same."""
    if q.event_shape != p.event_shape:
        raise _no_closed_form(q, p)
    gaussian = q._is_gaussian and p._is_gaussian
    map_q, map_p = q.transform.softmax_plus_plus, p.transform.softmax_plus_plus
    if gaussian and map_q is not None and map_p is not None:
        return _kl_softmax_plus_plus(q, p, map_q, map_p)
    if q.transform != p.transform:
        raise _no_closed_form(q, p)
    if not gaussian:
        try:
            return closed_form(q.base_dist, p.base_dist)
        except NotImplementedError:
            raise NotImplementedError(
                f"no closed-form KL between the bases {q.base_dist} and {p.base_dist}; "
                "use igr.monte_carlo_kl(q, p, num_samples)"
            ) from None
    parameters = q.loc, q.scale, p.loc, p.scale
    if q._active is None:
        return functional.gaussian_kl(*parameters)
    return torch.where(q._active, functional.gaussian_kl_terms(*parameters), 0.0).sum(-1)


def look_up_rules() -> None:
    """Have torch look for the rules of our classes now, where no compiler has to trace it."""
    zero = torch.zeros(1, device="cpu")
    gumbel = GumbelSoftmax(1.0, logits=zero.expand(2))
    forms: list[Distribution] = [
        *(
            form(zero, zero + 1, 1.0)
            for form in (SoftmaxIGR, StickBreakingIGR, SharpStickBreakingIGR)
        ),
        PlanarIGR(zero, zero + 1, 1.0, []),
        IGR(zero, zero + 1, SoftmaxPlusPlus(1.0)),
        gumbel,
        gumbel.discrete(),
        OneHotCategorical(logits=zero.expand(2)),
    ]
    for q in forms:
        for p in forms:
            with contextlib.suppress(NotImplementedError):
                closed_form(q, p)


def _kl_softmax_plus_plus(q: IGR, p: IGR, map_q: SoftmaxPlusPlus, map_p: SoftmaxPlusPlus) -> Tensor:
    """(13) for any two temperatures and deltas: both are N(loc / t - log delta, scale / t) through one map."""
    if map_q is map_p or _equal(map_q, map_p):
        parameters = q.loc, q.scale, p.loc, p.scale
    else:
        parameters = *_standardised(q, map_q), *_standardised(p, map_p)
    if q.allowed is None and p.allowed is None:
        return functional.gaussian_kl(*parameters)
    return _kl_allowed(parameters, q.allowed, p.allowed, q.num_categories)


def _equal(a: SoftmaxPlusPlus, b: SoftmaxPlusPlus) -> bool:
    """Whether temperature and delta are the same numbers, or the same tensors by identity: no value is read."""
    pairs = ((a.temperature, b.temperature), (a.delta, b.delta))
    return all(
        x is y or (not isinstance(x, Tensor) and not isinstance(y, Tensor) and x == y)
        for x, y in pairs
    )


def _standardised(q: IGR, closing: SoftmaxPlusPlus) -> tuple[Tensor, Tensor]:
    t = functional.lift(closing.temperature)
    shift = functional.lift(functional.log(closing.delta))
    loc, scale = functional.full_precision(q.loc), functional.full_precision(q.scale)
    return loc / t - shift, scale / t


def _kl_allowed(
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
    allowed: Tensor | None,
    allowed0: Tensor | None,
    num_categories: int,
) -> Tensor:
    """The sum over the allowed, and where the last one is not, the divergence between the differences.

    The differences between the allowed y have covariance diag(s^2) seen up to a common shift; marginalising the shift
    out of both normals changes the divergence by what is below. Over different categories it is infinite.
    """
    terms = functional.gaussian_kl_terms(*parameters)
    every = torch.ones(num_categories, dtype=torch.bool, device=terms.device)
    allowed = every if allowed is None else allowed
    allowed0 = every if allowed0 is None else allowed0
    first = allowed[..., :-1]
    total = torch.where(first, terms, 0.0).sum(-1)

    loc, scale, loc0, scale0 = (functional.full_precision(x) for x in parameters)
    tiny = torch.finfo(terms.dtype).tiny
    weight = torch.where(first, scale.square().reciprocal(), 0.0)
    weight0 = torch.where(first, scale0.square().reciprocal(), 0.0)
    sum_weight = weight.sum(-1).clamp_min(tiny)
    sum_weight0 = weight0.sum(-1).clamp_min(tiny)
    shift = (weight0 * (loc - loc0)).sum(-1)
    spread = (weight0.square() * scale.square()).sum(-1)
    change = 0.5 * (
        sum_weight0.log() - sum_weight.log() + 1 - (spread + shift * shift) / sum_weight0
    )
    total = total + torch.where(allowed[..., -1], 0.0, change)
    return torch.where((allowed == allowed0).all(-1), total, torch.inf)
