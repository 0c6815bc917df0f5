r"""The maps of the paper as plain functions, each equation once.

Every map is written in log space: a point of the simplex or of its corner
:math:`\{w \in \mathbb R^{K-1} : w_k > 0, \sum_k w_k < 1\}` is carried as the logarithms of all its K weights, the
remainder :math:`1 - \sum_k w_k` included, so that nothing is lost where a weight underflows. Half-precision inputs
are computed, and their logarithms returned, in float32.

Shapes: ``y`` is ``(*batch, K-1)``, log-weights are ``(*batch, K)``; ``temperature`` and ``delta`` are numbers or
tensors that broadcast against ``batch``. The categories may be along any other dimension, which all functions but
`straight_through` and `gumbel_noise` take as `dim` and work along without moving it; ``batch`` is then the shape
without `dim`.

Errors: ValueError, which names the argument, where a temperature is not above 1e-16 (below, gradients and then samples
overflow in float32), a delta or a scale is not positive, one of them is NaN, or shapes do not fit. Values of tensors
are looked at in eager mode and on the CPU alone, so that no step waits for a device, and not where
``torch.distributions.Distribution.set_default_validate_args(False)`` was called. Maps take `validate_args` besides.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from igr import _checks, _fused
from igr._exp import exp_nonpositive

__all__ = [
    "exp_concrete_log_prob",
    "gaussian_kl",
    "gaussian_log_prob",
    "gumbel_noise",
    "gumbel_softmax",
    "igr_softmax",
    "log_sharpen",
    "log_sharpen_inverse",
    "log_softmax_plus_plus",
    "log_softmax_plus_plus_inverse",
    "log_stick_breaking",
    "log_stick_breaking_inverse",
    "log_vertex_interpolation",
    "log_vertex_interpolation_inverse",
    "planar",
    "planar_igr_softmax",
    "planar_inverse",
    "sharp_stick_breaking",
    "sharp_stick_breaking_igr_softmax",
    "softmax_plus_plus",
    "stick_breaking_igr_softmax",
    "stick_breaking_softmax_plus_plus",
    "straight_through",
]


HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_HALF = (torch.float16, torch.bfloat16)


def full_precision(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype in _HALF else x


def _full_precision(x: float | Tensor) -> Any:
    """A number, or a tensor in `full_precision`."""
    return full_precision(x) if isinstance(x, Tensor) else x


def _like(z: Tensor, dtype: torch.dtype) -> Tensor:
    """z back in half precision where its parameters had that; else as it is, in what their dtypes promote to."""
    return z.to(dtype) if dtype in _HALF else z


def lift(value: float | Tensor, dim: int = -1) -> float | Tensor:
    """A per-batch value made to broadcast against a shape with the categories along `dim`, counted from the end."""
    # What has no dimension before `dim`, as a scalar, broadcasts as it is, and so leaves the dtype alone.
    return value.unsqueeze(dim) if isinstance(value, Tensor) and value.dim() >= -dim else value


def _first(x: Tensor, dim: int) -> Tensor:
    """All entries along `dim` but the last."""
    return x.narrow(dim, 0, x.shape[dim] - 1)


def _last(x: Tensor, dim: int) -> Tensor:
    """The last entry along `dim`, which is kept."""
    return x.narrow(dim, x.shape[dim] - 1, 1)


def _mask(allowed: Tensor, num_categories: int, dim: int, validate_args: bool | None) -> Tensor:
    """A mask of K entries along `dim`, checked; a vector is the same for the whole batch."""
    if isinstance(allowed, Tensor) and allowed.dim() == 1:
        allowed = allowed.reshape(-1, *(1,) * (-dim - 1))
    checked = _is_checked(allowed, validate_args)
    return _checks.allowed_categories(allowed, num_categories, checked, dim)  # type: ignore[return-value]


def _rule_out(
    scores: Tensor, allowed: Tensor, dim: int, validate_args: bool | None = None
) -> Tensor:
    return scores.masked_fill(~_mask(allowed, scores.shape[dim], dim, validate_args), -torch.inf)


def _is_checked(value: float | Tensor, validate_args: bool | None = None) -> bool:
    """Whether values are checked: those of tensors on the CPU alone, so that no step waits for a device."""
    return _checks.enabled(validate_args) and (
        not isinstance(value, Tensor)
        or (value.is_cpu and value.numel() > 0 and _checks.values_can_be_read(value))
    )


def _batch(x: Tensor, dim: int) -> torch.Size:
    """The shape without `dim`, counted from the end."""
    return torch.Size(n for i, n in enumerate(x.shape) if i != dim + x.dim())


def _fits(name: str, value: Any, other: str, shape: torch.Size) -> None:
    """Raise ValueError unless it is a number, or a tensor that broadcasts against a shape."""
    value = _checks.real(name, value)
    if isinstance(value, Tensor) and not _checks.broadcasts(value.shape, shape):
        raise ValueError(
            f"{name}: expected a shape that broadcasts against that of {other}, {tuple(shape)}, "
            f"got {tuple(value.shape)}"
        )


def _per_batch(
    check: Callable[..., Any],
    name: str,
    value: float | Tensor,
    like: Tensor,
    dim: int,
    validate_args: bool | None = None,
    *,
    as_torch: bool = False,
) -> float | Tensor:
    """A number, or a tensor that broadcasts against the shape of `like` without `dim`, which passes a check.

    Of samplers, one with a single entry along `dim` as well is taken as torch takes it, against the whole shape.
    """
    if validate_args is False:
        return value
    value = check(name, value, _is_checked(value, validate_args))
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    batch = _batch(like, dim)
    whole = as_torch and value.dim() >= like.dim()
    found = value.squeeze(dim) if whole and value.shape[dim] == 1 else value
    if (whole and found is value) or not _checks.broadcasts(found.shape, batch):
        besides = ", or one with a single entry along the dimension of the categories besides"
        raise ValueError(
            f"{name}: expected a number, a shape that broadcasts against {tuple(batch)}{besides if as_torch else ''}, "
            f"got {tuple(value.shape)}"
        )
    return found


def _tau(value: float | Tensor, like: Tensor, dim: int) -> float | Tensor:
    return _per_batch(_checks.temperature, "tau", value, like, dim, as_torch=True)


def _delta(value: float | Tensor, like: Tensor, dim: int) -> float | Tensor:
    return _per_batch(_checks.positive, "delta", value, like, dim, as_torch=True)


def _temperature(
    value: float | Tensor,
    like: Tensor,
    dim: int,
    validate_args: bool | None,
    check: Callable[..., Any] = _checks.temperature,
) -> float | Tensor:
    return _per_batch(check, "temperature", value, like, dim, validate_args)


def _temperature_and_delta(
    like: Tensor,
    dim: int,
    temperature: float | Tensor,
    delta: float | Tensor,
    validate_args: bool | None,
) -> tuple[float | Tensor, float | Tensor]:
    temperature = _temperature(temperature, like, dim, validate_args)
    return temperature, _per_batch(_checks.positive, "delta", delta, like, dim, validate_args)


def temper(logits: Tensor, temperature: float | Tensor, dim: int = -1) -> Tensor:
    """``logits / temperature``, the categories along `dim`, counted from the end."""
    temperature = lift(temperature, dim)
    if not is_differentiated(temperature):
        return logits / temperature
    # -inf / temperature would give the temperature a gradient of NaN.
    ruled_out = logits == -torch.inf
    return (logits.masked_fill(ruled_out, 0.0) / temperature).masked_fill(ruled_out, -torch.inf)


def is_differentiated(value: float | Tensor) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.requires_grad or torch.autograd.forward_ad._current_level >= 0


def log(value: float | Tensor) -> float | Tensor:
    """Logarithm of a number or of a tensor; in float32 for half precision, as it is multiplied by K-1."""
    if torch.compiler.is_compiling() and not isinstance(value, Tensor):
        # Of math.log a compiler would make one program for each number.
        value = torch.ones((), dtype=torch.float64) * value
    return full_precision(value).log() if isinstance(value, Tensor) else math.log(value)


def _rows_are_short(x: Tensor, dim: int) -> bool:
    # torch's CPU softmax is slow over short rows, and quick along any other dimension than the last: 10 entries take
    # ten times what these elementwise steps take.
    if dim != -1 or not _checks.is_eager():
        return False
    return x.shape[-1] <= 32 and x.device.type == "cpu"


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax along `dim`, counted from the end, quick over short rows too."""
    if not _rows_are_short(x, dim):
        return torch.softmax(x, dim)
    weights = exp_nonpositive(x - x.detach().amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Log-softmax along `dim`, counted from the end, quick over short rows too."""
    if not _rows_are_short(x, dim):
        return torch.log_softmax(x, dim)
    shifted = x - x.detach().amax(-1, keepdim=True)
    return shifted - exp_nonpositive(shifted).sum(-1, keepdim=True).log()


def tempered_softmax(scores: Tensor, temperature: float | Tensor, dim: int = -1) -> Tensor:
    """Softmax of ``scores / temperature`` along `dim`, counted from the end."""
    if not torch.compiler.is_compiling():
        return softmax(temper(scores, temperature, dim), dim)
    # This way round no code is made for temperatures below zero, which takes longer than the softmax.
    scores = scores - scores.detach().amax(dim, keepdim=True)
    weights = temper(scores, temperature, dim).exp()
    return weights / weights.sum(dim, keepdim=True)


def _append(y: Tensor, last: float | Tensor, dim: int) -> Tensor:
    """``y`` with one more entry along `dim`, the same along the batch or one for each element of it."""
    if not isinstance(last, Tensor):
        return F.pad(y, (*(0, 0) * (-dim - 1), 0, 1), value=last)
    last = last.to(y)
    last = last.unsqueeze(dim) if last.dim() >= -dim else last
    shape = list(torch.broadcast_shapes(y.narrow(dim, 0, 1).shape, last.shape))
    last = last.expand(shape)
    shape[dim] = y.shape[dim]
    return torch.cat([y.expand(shape), last], dim)


def _softmax_plus_plus_scores(
    y: Tensor,
    temperature: float | Tensor,
    delta: float | Tensor,
    allowed: Tensor | None,
    dim: int,
    validate_args: bool | None,
) -> Tensor:
    """What the softmax++ is the tempered softmax of: y and, after it, the temperature times log delta."""
    usual = not isinstance(delta, Tensor) and delta == 1
    last = 0.0 if usual else _full_precision(temperature) * log(delta)
    scores = _append(full_precision(y), last, dim)
    return scores if allowed is None else _rule_out(scores, allowed, dim, validate_args)


def softmax_plus_plus(
    y: Tensor,
    temperature: float | Tensor = 1.0,
    delta: float | Tensor = 1.0,
    dim: int = -1,
    *,
    allowed: Tensor | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Map R^(K-1) onto the interior of the K-simplex by the softmax++.

    .. math:: z_k = \frac{\exp(y_k/\tau)}{\sum_{j<K} \exp(y_j/\tau) + \delta}, \qquad
              z_K = \frac{\delta}{\sum_{j<K} \exp(y_j/\tau) + \delta} \qquad (15)

    Args:
        y: shape ``(*batch, K-1)``.
        temperature: :math:`\tau > 0`.
        delta: :math:`\delta > 0`.
        dim: dimension of the categories.
        allowed: boolean, K entries, or K along `dim` for each element; a category that is not allowed gets exactly 0.
        validate_args: False to leave out the checks of all but `y`; None for torch's default.

    Returns:
        ``(*batch, K)``, summing to one; half precision where ``y`` is in that.

    Raises:
        ValueError: if an argument is out of its range, or shapes do not fit; see `igr.functional`.

    Source: paper, equation (15).

    >>> softmax_plus_plus(torch.tensor([0.0, 0.0]), temperature=0.5, delta=2.0)
    tensor([0.2500, 0.2500, 0.5000])
    """
    dim = _checks.categories("y", y, dim)
    temperature, delta = _temperature_and_delta(y, dim, temperature, delta, validate_args)
    scores = _softmax_plus_plus_scores(y, temperature, delta, allowed, dim, validate_args)
    return _like(tempered_softmax(scores, temperature, dim), y.dtype)


def log_softmax_plus_plus(
    y: Tensor,
    temperature: float | Tensor = 1.0,
    delta: float | Tensor = 1.0,
    dim: int = -1,
    *,
    allowed: Tensor | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Logarithm of `softmax_plus_plus`, finite where the weight itself underflows.

    With these log-weights the log-determinant of the Jacobian of (15), with respect to the first K-1 coordinates, is
    :math:`\sum_{k=1}^K \log z_k - (K-1) \log \tau`.

    Differs from the paper: (22)-(25) have :math:`y_k` where the sum :math:`s` belongs, and their rank-one term lacks
    :math:`1/\tau` (erratum E1).

    >>> log_softmax_plus_plus(torch.tensor([1000.0]), temperature=0.1)
    tensor([     0., -10000.])
    """
    dim = _checks.categories("y", y, dim)
    temperature, delta = _temperature_and_delta(y, dim, temperature, delta, validate_args)
    scores = _softmax_plus_plus_scores(y, temperature, delta, allowed, dim, validate_args)
    return log_softmax(temper(scores, temperature, dim), dim)


def log_softmax_plus_plus_inverse(
    log_z: Tensor,
    temperature: float | Tensor = 1.0,
    delta: float | Tensor = 1.0,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Inverse of `log_softmax_plus_plus`: :math:`y_k = \tau (\log z_k - \log z_K + \log \delta)`.

    >>> y = torch.tensor([0.3, -2.0])
    >>> torch.allclose(log_softmax_plus_plus_inverse(log_softmax_plus_plus(y, 0.1), 0.1), y)
    True
    """
    dim = _checks.categories("log_z", log_z, dim, least=1)
    temperature, delta = _temperature_and_delta(log_z, dim, temperature, delta, validate_args)
    log_z = full_precision(log_z)
    ratio = _first(log_z, dim) - _last(log_z, dim)
    return lift(temperature, dim) * (ratio + lift(log(delta), dim))


def log_stick_breaking(
    y: Tensor,
    dim: int = -1,
    *,
    allowed: Tensor | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Log-weights of the stick broken at sigmoid(y).

    .. math:: w_k = \sigma(y_k) \prod_{i<k} (1 - \sigma(y_i)), \qquad
              w_K = \prod_{i<K} (1 - \sigma(y_i)) \qquad (16)

    The log-determinant of its Jacobian, with respect to the first K-1 coordinates, is :math:`\sum_{k=1}^K \log w_k`.

    Args:
        y: shape ``(*batch, K-1)``.
        dim: dimension of the categories.
        allowed: boolean, K entries, or K along `dim` for each element; a category that is not allowed breaks nothing
            off, and the last allowed one takes what is left.
        validate_args: as for `softmax_plus_plus`.

    Returns:
        Logarithms of the K weights, ``(*batch, K)``.

    Source: paper, equation (16); torch's own ``StickBreakingTransform`` adds an offset to ``y`` and is another map.

    >>> log_stick_breaking(torch.tensor([0.0, 0.0])).exp()
    tensor([0.5000, 0.2500, 0.2500])
    """
    dim = _checks.categories("y", y, dim)
    before = (0, 0) * (-dim - 1)
    y = full_precision(y)
    log_kept = F.logsigmoid(-y)
    log_broken = F.pad(F.logsigmoid(y), (*before, 0, 1))
    if allowed is not None:
        allowed = _mask(allowed, y.shape[dim] + 1, dim, validate_args)
        active = stick_breaking_active(allowed, dim)
        log_kept = log_kept.masked_fill(~active, 0.0)
        log_broken = log_broken.masked_fill(~F.pad(active, (*before, 0, 1)), 0.0)
    log_w = log_broken + F.pad(log_kept.cumsum(dim), (*before, 1, 0))
    return log_w if allowed is None else log_w.masked_fill(~allowed, -torch.inf)


def clamp_breaks(y: Tensor) -> Tensor:
    """y, but where a break would leave less of the stick than a rounding of it, no larger than leaves that."""
    return y.clamp_max(1 - math.log(torch.finfo(y.dtype).eps))


def log_stick_left(y: Tensor, dim: int = -1) -> Tensor:
    r"""Logarithms of what is left of the stick of (16) after its breaks, :math:`\sum_{i \le k} \log(1 - \sigma(y_i))`.

    With :math:`y_k` added they are :math:`\log w_k`: `log_stick_breaking` in half the time, with the rounding of the
    largest y.
    """
    return F.logsigmoid(-y).cumsum(dim)


def stick_breaking_active(allowed: Tensor, dim: int = -1) -> Tensor:
    """Which of the K-1 breaks are made: those of the allowed categories but the last allowed one."""
    later = allowed.flip(dim).cumsum(dim).flip(dim).narrow(dim, 1, allowed.shape[dim] - 1) > 0
    return _first(allowed, dim) & later


def log_stick_breaking_inverse(log_w: Tensor, dim: int = -1) -> Tensor:
    r"""Inverse of `log_stick_breaking`: :math:`y_k = \log w_k - \log \sum_{j>k} w_j`.

    >>> y = torch.tensor([0.3, -2.0])
    >>> torch.allclose(log_stick_breaking_inverse(log_stick_breaking(y)), y)
    True
    """
    dim = _checks.categories("log_w", log_w, dim, least=1)
    log_w = full_precision(log_w)
    log_rest = log_w.flip(dim).logcumsumexp(dim).flip(dim)
    return _first(log_w, dim) - log_rest.narrow(dim, 1, log_w.shape[dim] - 1)


def stick_breaking_softmax_plus_plus(
    y: Tensor,
    temperature: float | Tensor = 1.0,
    delta: float | Tensor = 1.0,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Map R^(K-1) onto a part of the K-simplex by stick-breaking and softmax++, equation (18).

    The last category is never chosen as the temperature goes to 0 (erratum E5); in `sharp_stick_breaking` it can be.

    Args:
        y, temperature, delta, dim, validate_args: as for `softmax_plus_plus`.

    >>> stick_breaking_softmax_plus_plus(torch.zeros(2), temperature=0.5)
    tensor([0.5065, 0.3072, 0.1863])
    """
    dim = _checks.categories("y", y, dim)
    temperature, delta = _temperature_and_delta(y, dim, temperature, delta, validate_args)
    w = exp_nonpositive(_quick_log_weights(y, dim))
    return _like(softmax_plus_plus(w, temperature, delta, dim, validate_args=False), y.dtype)


def sharp_stick_breaking(
    y: Tensor,
    temperature: float | Tensor = 1.0,
    dim: int = -1,
    *,
    allowed: Tensor | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Map R^(K-1) onto the interior of the K-simplex by stick-breaking and `log_sharpen`, the mend of (18).

    .. math:: z_k = \frac{w_k^{1/\tau}}{\sum_{j=1}^K w_j^{1/\tau}}

    Args:
        y, temperature, dim, validate_args: as for `softmax_plus_plus`.
        allowed: as for `log_stick_breaking`.

    Differs from the paper: takes the place of (18), which can never choose the last category (errata E4 and E5).

    >>> sharp_stick_breaking(torch.zeros(2), temperature=0.5)
    tensor([0.6667, 0.1667, 0.1667])
    """
    dim = _checks.categories("y", y, dim)
    temperature = _temperature(temperature, y, dim, validate_args)
    log_w = _stick_scores(y, dim, allowed, validate_args)
    return _like(tempered_softmax(log_w, temperature, dim), y.dtype)


def _quick_log_weights(y: Tensor, dim: int) -> Tensor:
    """The first K-1 logarithms of `log_stick_breaking`, with the rounding of the largest y."""
    y = clamp_breaks(full_precision(y))
    return y + log_stick_left(y, dim)


def _stick_scores(
    y: Tensor, dim: int, allowed: Tensor | None, validate_args: bool | None = False
) -> Tensor:
    if allowed is not None or y.shape[dim] == 0:
        return log_stick_breaking(y, dim, allowed=allowed, validate_args=validate_args)
    y = full_precision(y)
    left = log_stick_left(y, dim)
    return torch.cat([y + left, _last(left, dim)], dim)


def log_sharpen(
    log_w: Tensor,
    temperature: float | Tensor,
    dim: int = -1,
    *,
    allowed: Tensor | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Sharpen K weights, the remainder included.

    .. math:: z_k = \frac{w_k^{1/\tau}}{\sum_{j=1}^K w_j^{1/\tau}}

    The log-determinant of its Jacobian, with respect to the first K-1 coordinates, is
    :math:`\sum_{k=1}^K \log z_k - \sum_{k=1}^K \log w_k - (K-1) \log \tau`.

    Args:
        log_w: logarithms of K weights, ``(*batch, K)``.
        temperature: :math:`\tau > 0`.
        dim: dimension of the categories.
        allowed: boolean, K entries, or K along `dim` for each element; other categories get exactly 0.
        validate_args: as for `softmax_plus_plus`.

    Differs from the paper: takes the place of the softmax++ in (18), which can never choose the last category
    (errata E4 and E5).

    >>> log_sharpen(torch.tensor([0.5, 0.25, 0.25]).log(), 0.5).exp()
    tensor([0.6667, 0.1667, 0.1667])
    """
    dim = _checks.categories("log_w", log_w, dim, least=1)
    temperature = _temperature(temperature, log_w, dim, validate_args)
    log_w = full_precision(log_w)
    if allowed is not None:
        log_w = _rule_out(log_w, allowed, dim, validate_args)
    return log_softmax(temper(log_w, temperature, dim), dim)


def log_sharpen_inverse(
    log_z: Tensor,
    temperature: float | Tensor,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Inverse of `log_sharpen`: :math:`w_k \propto z_k^\tau`.

    >>> log_w = torch.tensor([0.5, 0.25, 0.25]).log()
    >>> log_sharpen_inverse(log_sharpen(log_w, 0.1), 0.1).exp()
    tensor([0.5000, 0.2500, 0.2500])
    """
    dim = _checks.categories("log_z", log_z, dim, least=1)
    temperature = _temperature(temperature, log_z, dim, validate_args)
    return log_softmax(full_precision(log_z) * lift(temperature, dim), dim)


def log_vertex_interpolation(
    log_w: Tensor,
    temperature: float | Tensor,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Move a point of the corner towards its nearest vertex.

    .. math:: z = \tau w + (1 - \tau) P_S(w), \qquad 0 < \tau \le 1 \qquad (17)

    :math:`P_S(w) = e_k` where :math:`w_k > 1/2` for a k < K, and 0 elsewhere, which stands for the last category.
    The log-determinant of its Jacobian is :math:`(K-1) \log \tau`.

    Differs from the paper: nothing, but the map jumps where a weight crosses 1/2, so pathwise gradients through it
    miss a boundary term and are biased (erratum E14).

    >>> log_vertex_interpolation(torch.tensor([0.6, 0.3, 0.1]).log(), 0.5).exp()
    tensor([0.8000, 0.1500, 0.0500])
    """
    dim = _checks.categories("log_w", log_w, dim, least=1)
    temperature = _temperature(temperature, log_w, dim, validate_args, _interpolating)
    log_w = full_precision(log_w)
    at_vertex = nearest_vertex(log_w, dim)
    inner = log_w + lift(log(temperature), dim)
    outer = torch.logaddexp(inner, _log1m(temperature, log_w, dim))
    return torch.where(at_vertex, outer, inner)


def log_vertex_interpolation_inverse(
    log_z: Tensor,
    temperature: float | Tensor,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Inverse of `log_vertex_interpolation`; finite and without meaning for a point outside its image.

    >>> log_w = torch.tensor([0.6, 0.3, 0.1]).log()
    >>> log_vertex_interpolation_inverse(log_vertex_interpolation(log_w, 0.5), 0.5).exp()
    tensor([0.6000, 0.3000, 0.1000])
    """
    dim = _checks.categories("log_z", log_z, dim, least=1)
    temperature = _temperature(temperature, log_z, dim, validate_args, _interpolating)
    log_z = full_precision(log_z)
    at_vertex = nearest_vertex(log_z, dim)
    log_w = log_z - lift(log(temperature), dim)
    # What the others leave: the vertex's own weight, less 1 - temperature, would lose digits.
    others = torch.where(at_vertex, -torch.inf, log_w).exp().sum(dim, keepdim=True)
    # Where rounding took all that they leave, it is the least that a sum can miss.
    left = torch.log1p(-others.clamp_max(1 - torch.finfo(log_z.dtype).eps))
    return torch.where(at_vertex, left, log_w)


def _interpolating(name: str, value: Any, validate_args: bool | None) -> Any:
    value = _checks.temperature(name, value, validate_args)
    _checks.at_most_one(name, value, "values in (0, 1]", validate_args)
    return value


def nearest_vertex(log_w: Tensor, dim: int = -1) -> Tensor:
    """One-hot mask of P_S over K categories: a k < K whose weight is above 1/2, else the last."""
    first = _first(log_w, dim) > math.log(0.5)
    return torch.cat([first, ~first.any(dim, keepdim=True)], dim)


def _log1m(temperature: float | Tensor, like: Tensor, dim: int) -> Tensor:
    """log(1 - temperature), which is -inf at temperature 1."""
    return lift(torch.log1p(-_full_precision(temperature) * like.new_ones(())), dim)  # type: ignore[return-value]


def planar(
    y: Tensor,
    u: Tensor,
    w: Tensor,
    b: float | Tensor,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One planar flow on R^(K-1), kept invertible.

    .. math:: f(y) = y + \hat u \tanh(w^\top y + b), \qquad
              \hat u = u + (m(w^\top u) - w^\top u) \frac{w}{w^\top w}, \quad m(x) = -1 + \log(1 + e^x)

    Args:
        y, u, w: ``(*batch, K-1)``; they broadcast.
        b: ``(*batch,)``.
        dim, validate_args: as for `softmax_plus_plus`.

    Returns:
        f(y) and its log-determinant :math:`\log(1 + m(w^\top u) (1 - \tanh^2(w^\top y + b)))`, ``(*batch,)``.

    Differs from the released code: it divides by the norm of w over all variables, not by its square for each
    (erratum E12).

    Source: Rezende and Mohamed (2015), section 4.1 and appendix A.

    >>> y, u, w = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0])
    >>> planar(y, u, w, torch.tensor(0.0))[0]
    tensor([0.9803, 2.0000])
    """
    dim, dtype = _checks.categories("y", y, dim), y.dtype
    if validate_args is not False:
        _planar_fits("y", y, u, w, b, dim)
    y, u, w, b = (_full_precision(x) for x in (y, u, w, b))
    direction, soft = _planar_direction(u, w, dim)
    h = torch.tanh((w * y).sum(dim, keepdim=True) + lift(b, dim))
    # 1 + m (1 - h^2) with m = softplus - 1, rearranged so that nothing cancels as m tends to -1.
    log_det = torch.log(soft * (1 - h * h) + h * h).squeeze(dim)
    return (y + direction * h).to(dtype), log_det


def _planar_fits(name: str, y: Tensor, u: Tensor, w: Tensor, b: float | Tensor, dim: int) -> None:
    """Raise ValueError unless the parameters of a planar flow fit the points that it is for."""
    for other, value in (("u", u), ("w", w)):
        shape = value.shape if isinstance(value, Tensor) else ()
        if len(shape) < -dim or shape[dim] != y.shape[dim]:
            came = tuple(shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{other}: expected a tensor with {y.shape[dim]} entries along dimension {dim}, as {name} has, "
                f"got {came}"
            )
        _fits(other, value, name, y.shape)
    _fits("w", w, "u", u.shape)
    _fits("b", b, f"{name} without dimension {dim}", _batch(y, dim))


def _planar_direction(u: Tensor, w: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    r""":math:`\hat u`, and :math:`1 + w^\top \hat u`, which is positive."""
    wu = (w * u).sum(dim, keepdim=True)
    norm2 = (w * w).sum(dim, keepdim=True)
    soft = F.softplus(wu)
    # Where w is zero the flow is a shift by u tanh(b), invertible as it is.
    shift = torch.where(norm2 > 0, (soft - 1 - wu) / norm2.clamp_min(1e-30), 0.0)
    return u + shift * w, torch.where((w != 0).any(dim, keepdim=True), soft, 1.0)


def planar_inverse(
    x: Tensor,
    u: Tensor,
    w: Tensor,
    b: float | Tensor,
    dim: int = -1,
    *,
    near: Tensor | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Numerical inverse of `planar`, differentiable.

    Solves the scalar equation :math:`a + m \tanh(a + b) = w^\top x`, increasing in a because m > -1, by bisection,
    then takes one Newton step that carries the implicit gradient.

    Args:
        x: what `planar` gave.
        u, w, b, dim, validate_args: as for `planar`.
        near: a point that the inverse is known to be, up to rounding, in place of the search; no gradient goes to it.

    >>> u, w, b = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.3]), torch.tensor(0.1)
    >>> y = torch.tensor([1.0, 2.0])
    >>> torch.allclose(planar_inverse(planar(y, u, w, b)[0], u, w, b), y, atol=1e-5)
    True
    """
    dim, dtype = _checks.categories("x", x, dim), x.dtype
    if validate_args is not False:
        _planar_fits("x", x, u, w, b, dim)
        _fits("near", x if near is None else near, "x", x.shape)
    x, u, w, b = (_full_precision(t) for t in (x, u, w, b))
    b = lift(b, dim)
    direction, soft = _planar_direction(u, w, dim)
    m = (w * direction).sum(dim, keepdim=True)
    target = (w * x).sum(dim, keepdim=True)
    with torch.no_grad():
        if near is not None:
            start = (w * full_precision(near)).sum(dim, keepdim=True)
        else:
            low, high = target - m.abs() - 1e-6, target + m.abs() + 1e-6
            for _ in range(60):
                middle = 0.5 * (low + high)
                below = middle + m * torch.tanh(middle + b) < target
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            start = 0.5 * (low + high)
    h = torch.tanh(start + b)
    slope = (soft * (1 - h * h) + h * h).clamp_min(torch.finfo(x.dtype).tiny)
    a = start - (start + m * h - target) / slope
    return (x - direction * torch.tanh(a + b)).to(dtype)


def one_hot_argmax(scores: Tensor, dim: int = -1) -> Tensor:
    """One-hot of the largest score along `dim`, in the dtype of `scores`.

    >>> one_hot_argmax(torch.tensor([0.1, 0.7, 0.2]))
    tensor([0., 1., 0.])
    """
    # torch's argmax takes up to fifty times as long as max along any dimension but the last.
    index = scores.argmax(-1, keepdim=True) if dim == -1 else scores.max(dim, keepdim=True).indices
    return torch.zeros_like(scores).scatter(dim, index, 1.0)


def straight_through(hard: Tensor, relaxed: Tensor) -> Tensor:
    """`hard` in the forward pass, exactly; the gradient of `relaxed` in the backward pass.

    >>> z = torch.tensor([0.2, 0.8], requires_grad=True)
    >>> straight_through(torch.tensor([0.0, 1.0]), z).detach()
    tensor([0., 1.])
    """
    hard = _checks.tensor("hard", hard)
    _fits("hard", hard, "relaxed", _checks.floating("relaxed", relaxed).shape)
    return hard + (relaxed - relaxed.detach())


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the shape, dtype and device of `like`, always finite.

    >>> gumbel_noise(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """
    _checks.floating("like", like)
    return gumbel_sample(like.shape, like.dtype, like.device, generator)


def draw(
    random: Callable[..., Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    """Random numbers, of torch's global generator where there is none."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator: expected a torch.Generator or None, got {generator!r}; torch.Generator().manual_seed(0) makes "
            "one"
        )
    if generator is None:  # with one, even None, torch does without symbolic sizes
        return random(shape, dtype=dtype, device=device)
    return random(shape, dtype=dtype, device=device, generator=generator)


def gumbel_sample(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    u = draw(torch.rand, shape, dtype, device, generator)
    # rand returns multiples of eps / 2, zero included; zero is read as half of the smallest other one.
    return -torch.log(-torch.log1p(-u.clamp_min(torch.finfo(dtype).eps / 4)))


def _noise(
    loc: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
    dim: int,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """loc and scale, checked and broadcast, standard normal noise of their shape, and `dim` counted from the end."""
    if not isinstance(scale, Tensor):
        raise ValueError(
            f"scale: expected a tensor, got {scale}: here loc and scale, K-1 entries of each, take the place of the K "
            "logits of torch.nn.functional.gumbel_softmax: igr_softmax(loc, scale, tau=...). "
            "For logits write igr.gumbel_softmax(logits, tau=...)"
        )
    dim = _checks.categories("loc", loc, dim)
    _scale_is_positive(scale)
    loc, scale = _checks.broadcast(loc=loc, scale=scale)
    if noise is None:
        dtype = torch.promote_types(loc.dtype, scale.dtype)
        noise = draw(torch.randn, loc.shape, dtype, loc.device, generator)
    else:
        _noise_fits(noise, "loc", loc)
    return loc, scale, noise, dim


def _noise_fits(noise: Any, name: str, like: Tensor) -> None:
    if _checks.tensor("noise", noise).shape != like.shape:
        came = tuple(noise.shape)
        raise ValueError(f"noise: expected the shape of {name}, {tuple(like.shape)}, got {came}")


def _scale_is_positive(scale: Tensor) -> None:
    if _is_checked(scale) and not scale.detach().amin().item() > 0:
        _checks.satisfies("scale", scale, scale > 0, "positive values")


def _affine(loc: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """y = loc + scale * noise (10)."""
    return torch.addcmul(full_precision(loc), full_precision(scale), full_precision(noise))


def _gaussian(
    loc: Tensor,
    scale: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
    dim: int,
) -> tuple[Tensor, int, torch.dtype]:
    """y, `dim` counted from the end, and the dtype of the sample."""
    loc, scale, noise, dim = _noise(loc, scale, noise, generator, dim)
    return _affine(loc, scale, noise), dim, torch.promote_types(loc.dtype, scale.dtype)


def _finish(z: Tensor, scores: Tensor | None, dim: int, dtype: torch.dtype) -> Tensor:
    """Straight-through where `scores` are given, and the dtype."""
    if scores is not None:
        z = straight_through(one_hot_argmax(scores, dim), z)
    return _like(z, dtype)


def sample_softmax_plus_plus(
    loc: Tensor,
    scale: Tensor,
    noise: Tensor,
    temperature: float | Tensor,
    delta: float | Tensor,
    dim: int = -1,
) -> Tensor:
    """softmax++ of loc + scale * noise along `dim`, counted from the end, in fewer passes where `_fused.applies`."""
    lifted, dtype = lift(temperature, dim), torch.promote_types(loc.dtype, scale.dtype)
    plain = isinstance(delta, Tensor) or noise.requires_grad or is_differentiated(lifted)
    if not plain and _fused.applies(loc, scale, noise, lifted):
        return _fused.igr_softmax(loc, scale, noise, lifted, math.log(delta), dim)
    y = _affine(loc, scale, noise)
    return _like(softmax_plus_plus(y, temperature, delta, dim, validate_args=False), dtype)


def igr_softmax(
    loc: Tensor,
    scale: Tensor | None = None,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    dim: int = -1,
    *,
    delta: float | Tensor = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Sample a relaxed categorical variable, as `torch.nn.functional.gumbel_softmax` does, from Gaussian noise.

    .. math:: z = \operatorname{softmax}_{++}(\mu + \sigma \epsilon, \tau), \qquad
              \epsilon \sim \mathcal N(0, I) \qquad (10), (11), (15)

    Args:
        loc, scale: parameters with K-1 entries along `dim`; `scale` is positive, and must be given.
        tau: temperature, a positive number or a tensor that broadcasts against the shape of `loc` without `dim`. One
            with a single entry along `dim` besides is taken against the whole shape, as torch takes it.
        hard: return one-hot vectors (the limit of Proposition 1) with the gradient of the relaxed sample.
        dim: dimension of the categories.
        delta: :math:`\delta` of (15).
        noise: standard normal noise of the shape of `loc`, to be used in place of drawing it.
        generator: random generator to draw with.
        allowed: boolean, K entries, or K along `dim` for each element; other categories get exactly 0 and no gradient.

    Returns:
        Relaxed samples with K entries along `dim`.

    Raises:
        ValueError: if `tau`, `delta` or `scale` is not positive, no category is allowed to an element, or shapes do not
            fit. Values are looked at in eager mode and on the CPU alone: elsewhere, and under compilers, traces and
            `torch.func.vmap`, a scale below zero counts as its absolute value, and where no category is allowed the
            sample is NaN.

    >>> loc, scale = torch.zeros(8, 9), torch.ones(8, 9)
    >>> igr_softmax(loc, scale, tau=0.5).shape
    torch.Size([8, 10])
    """
    loc, scale, noise, dim = _noise(loc, scale, noise, generator, dim)
    tau, delta = _tau(tau, loc, dim), _delta(delta, loc, dim)
    if not hard and allowed is None:
        return sample_softmax_plus_plus(loc, scale, noise, tau, delta, dim)
    y = _affine(loc, scale, noise)
    if allowed is not None:
        allowed = _mask(allowed, y.shape[dim] + 1, dim, None)
    z = softmax_plus_plus(y, tau, delta, dim, allowed=allowed, validate_args=False)
    scores = _softmax_plus_plus_scores(y, 1.0, 1.0, allowed, dim, False) if hard else None
    return _finish(z, scores, dim, torch.promote_types(loc.dtype, scale.dtype))


def gaussian_kl(
    loc: Tensor,
    scale: Tensor,
    loc0: float | Tensor = 0.0,
    scale0: float | Tensor = 1.0,
    dim: int = -1,
) -> Tensor:
    r"""KL divergence of independent normals, summed over the categories: that of any two IGR with one map.

    .. math:: \mathrm{KL} = \sum_{k<K} \frac{\sigma_k^2 + (\mu_k - \mu_{0,k})^2}{2 \sigma_{0,k}^2}
              - \log\frac{\sigma_k}{\sigma_{0,k}} - \frac 1 2 \qquad (13)

    Args:
        loc, scale: of the first distribution, K-1 entries along `dim`.
        loc0, scale0: of the second, numbers or tensors that broadcast.
        dim: dimension of the categories.

    Returns:
        The divergence, without `dim`; in float32 for half precision.

    Raises:
        ValueError: if `scale` or `scale0` is not positive (values are looked at as in `igr_softmax`; elsewhere the
            result is NaN or infinite), or shapes do not fit.

    >>> gaussian_kl(torch.zeros(8, 9), torch.ones(8, 9), loc0=torch.ones(9)).shape
    torch.Size([8])
    """
    dim = _checks.categories("loc", loc, dim)
    scale0 = _checks.positive("scale0", scale0, _is_checked(scale0))
    loc, scale = _checks.broadcast(loc=loc, scale=scale)
    _fits("loc0", loc0, "loc", loc.shape)
    _fits("scale0", scale0, "loc", loc.shape)
    if _fused.applies(loc, scale, loc0, scale0):
        kl = _fused.gaussian_kl(loc, scale, loc0, scale0, dim)
    else:
        kl = gaussian_kl_terms(loc, scale, loc0, scale0).sum(dim)
    if _is_checked(kl) and not kl.detach().amax().item() < math.inf:
        # Only here is it worth while to look at all scales.
        _scale_is_positive(scale)
    return kl


def gaussian_kl_terms(
    loc: Tensor, scale: Tensor, loc0: float | Tensor, scale0: float | Tensor
) -> Tensor:
    """The summands of `gaussian_kl`."""
    loc, scale = full_precision(loc), full_precision(scale)
    loc0, scale0 = _full_precision(loc0), _full_precision(scale0)
    ratio = scale / scale0
    distance = (loc - loc0) / scale0
    return 0.5 * (ratio * ratio + distance * distance - 1) - ratio.log()


def gaussian_terms(noise: Tensor, scale: Tensor | None = None) -> Tensor:
    """Log-densities of loc + scale * noise under N(loc, scale); of the noise itself without a scale."""
    terms = -0.5 * noise * noise
    return (terms if scale is None else terms - scale.log()) - HALF_LOG_2PI


def gaussian_log_prob(
    y: Tensor,
    loc: float | Tensor = 0.0,
    scale: float | Tensor = 1.0,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Log-density of independent normals, summed over the categories.

    With the parameters detached, ``gaussian_log_prob(y, loc, scale) - gaussian_log_prob(y, loc0, scale0)`` at
    ``y = loc + scale * noise`` estimates `gaussian_kl` by the path alone (Roeder et al. 2017).

    Args:
        y: K-1 entries along `dim`.
        loc, scale: numbers or tensors that broadcast against `y`.
        dim, validate_args: as for `softmax_plus_plus`.

    Returns:
        The log-density, without `dim`; in float32 for half precision.

    >>> gaussian_log_prob(torch.zeros(8, 9), scale=torch.ones(9)).shape
    torch.Size([8])
    """
    dim = _checks.categories("y", y, dim)
    if validate_args is not False:
        scale = scale if isinstance(scale, Tensor) else _checks.positive("scale", scale)
        _fits("loc", loc, "y", y.shape)
        _fits("scale", scale, "y", y.shape)
    y, loc, scale = full_precision(y), _full_precision(loc), _full_precision(scale)
    z = (y - loc) / scale
    log_prob = (-0.5 * z * z - log(scale)).sum(dim) - HALF_LOG_2PI * z.shape[dim]
    if _is_checked(log_prob, validate_args) and math.isnan(log_prob.detach().amax().item()):
        # Of a scale that is not positive it is NaN: only then is it worth while to look at all of them.
        _scale_is_positive(torch.as_tensor(scale))
    return log_prob


def exp_concrete_log_prob(
    log_z: Tensor,
    logits: float | Tensor,
    temperature: float | Tensor,
    dim: int = -1,
    *,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Log-density of the logarithm of a Gumbel-Softmax sample.

    .. math:: \log (K-1)! + (K-1) \log \tau + \sum_{k=1}^K \log \operatorname{softmax}(\log \alpha - \tau \log z)_k

    Less :math:`\sum_k \log z_k` it is that of z itself (6). A constant added to `log_z` changes nothing, so that
    ``(logits + noise) / temperature`` serves in the place of its log-softmax.

    Args:
        log_z: :math:`\log z` up to a constant, K entries along `dim`.
        logits: :math:`\log \alpha` up to a constant; a number for equal ones.
        temperature: :math:`\tau > 0`.
        dim, validate_args: as for `softmax_plus_plus`.

    Returns:
        The log-density, without `dim`; in float32 for half precision.

    Source: Maddison et al. (2017), appendix C.3.

    >>> exp_concrete_log_prob(torch.zeros(8, 10), 0.0, 0.5).shape
    torch.Size([8])
    """
    dim = _checks.categories("log_z", log_z, dim, least=1)
    if validate_args is not False:
        _fits("logits", logits, "log_z", log_z.shape)
    temperature = _temperature(temperature, log_z, dim, validate_args)
    n = log_z.shape[dim]
    log_z = full_precision(log_z)
    terms = log_softmax(_full_precision(logits) - lift(temperature, dim) * log_z, dim)
    return terms.sum(dim) + (n - 1) * log(temperature) + log_z.new_full((), n).lgamma()


def stick_breaking_igr_softmax(
    loc: Tensor,
    scale: Tensor | None = None,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    dim: int = -1,
    *,
    delta: float | Tensor = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sample by stick-breaking and softmax++, equation (18); arguments as in `igr_softmax`.

    The last category is never chosen (erratum E5): `sharp_stick_breaking_igr_softmax` reaches all of them.

    >>> stick_breaking_igr_softmax(torch.zeros(8, 9), torch.ones(8, 9), tau=0.1).shape
    torch.Size([8, 10])
    """
    y, dim, dtype = _gaussian(loc, scale, noise, generator, dim)
    tau, delta = _tau(tau, y, dim), _delta(delta, y, dim)
    z = stick_breaking_softmax_plus_plus(y, tau, delta, dim, validate_args=False)
    scores = _append(_quick_log_weights(y, dim), -math.inf, dim) if hard else None
    return _finish(z, scores, dim, dtype)


def sharp_stick_breaking_igr_softmax(
    loc: Tensor,
    scale: Tensor | None = None,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    dim: int = -1,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Sample by stick-breaking and sharpening, :math:`z_k \propto w_k^{1/\tau}`; arguments as in `igr_softmax`.

    >>> sharp_stick_breaking_igr_softmax(torch.zeros(8, 9), torch.ones(8, 9), tau=0.1).shape
    torch.Size([8, 10])
    """
    y, dim, dtype = _gaussian(loc, scale, noise, generator, dim)
    tau = _tau(tau, y, dim)
    if allowed is not None:
        allowed = _mask(allowed, y.shape[dim] + 1, dim, None)
    z = sharp_stick_breaking(y, tau, dim, allowed=allowed, validate_args=False)
    return _finish(z, _stick_scores(y, dim, allowed) if hard else None, dim, dtype)


def planar_igr_softmax(
    loc: Tensor,
    scale: Tensor,
    flow: Callable[[Tensor], Tensor],
    tau: float | Tensor = 1.0,
    hard: bool = False,
    dim: int = -1,
    *,
    delta: float | Tensor = 1.0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Sample through a flow of R^(K-1) and softmax++ (section 3.1); other arguments as in `igr_softmax`.

    Args:
        flow: any invertible map of R^(K-1) to itself, such as `igr.nn.PlanarFlow`. Whatever `dim` is, it is given
            tensors with the categories last; `planar` and `softmax_plus_plus`, which take `dim`, do without that.

    >>> planar_igr_softmax(torch.zeros(8, 9), torch.ones(8, 9), lambda y: y, tau=0.1).shape
    torch.Size([8, 10])
    """
    y, dim, dtype = _gaussian(loc, scale, noise, generator, dim)
    tau, delta = _tau(tau, y, dim), _delta(delta, y, dim)
    y = flow(y.movedim(dim, -1)).movedim(-1, dim)
    z = softmax_plus_plus(y, tau, delta, dim, validate_args=False)
    return _finish(z, _append(y, 0.0, dim) if hard else None, dim, dtype)


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    dim: float = -1,
    torch_dim: int | None = None,
    *,
    eps: float | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    r"""Sample the Gumbel-Softmax, as `torch.nn.functional.gumbel_softmax`, with `noise`, `generator` and `allowed`.

    .. math:: z = \operatorname{softmax}((\epsilon + \log \alpha) / \tau), \qquad
              \epsilon_k \sim \mathrm{Gumbel}(0, 1) \qquad (5)

    Args:
        logits: :math:`\log \alpha`, K entries along `dim`; -inf rules a category out.
        tau, hard, generator, allowed: as for `igr_softmax`.
        dim: dimension of the categories.
        torch_dim, eps: for calls as torch has them, ``gumbel_softmax(logits, tau, hard, eps, dim)``; `eps` has no
            effect, and is warned of.
        noise: standard Gumbel noise of the shape of `logits` (`gumbel_noise` draws it).

    Raises:
        ValueError: if `tau` is not positive, shapes do not fit, or no category is left to an element.

    >>> gumbel_softmax(torch.zeros(8, 10), tau=0.5).shape
    torch.Size([8, 10])
    """
    if torch_dim is not None or isinstance(dim, float):
        dim, eps = -1 if torch_dim is None else torch_dim, dim
    if eps is not None:
        warnings.warn("eps: it has no effect, and may be left out", stacklevel=2)
    dim = _checks.categories("logits", logits, dim, least=1)
    if noise is not None:
        _noise_fits(noise, "logits", logits)
    tau = _tau(tau, logits, dim)
    x = full_precision(logits)
    x = x + (gumbel_noise(x, generator) if noise is None else noise)
    if allowed is not None:
        x = _rule_out(x, allowed, dim)
    if _is_checked(x) and x.detach().amin().item() == -math.inf:
        possible = x.detach().amax(dim) > -math.inf
        expected = "at least one possible category for each element"
        _checks.satisfies("logits", possible, possible, expected)
    z = tempered_softmax(x, tau, dim)
    return _finish(z, x if hard else None, dim, logits.dtype)
