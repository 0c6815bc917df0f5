r"""Gradient estimators for expectations under a categorical distribution, with one interface for all.

``loss = estimator(q, f)``: q is a relaxation (`igr.SoftmaxIGR`, `igr.GumbelSoftmax`, ...) that holds one variable for
each entry of its batch shape, f maps samples ``(*batch, K)``, one-hot or relaxed, to a loss for each batch element.
``loss.sum().backward()`` leaves the estimated gradient on q's parameters and ``loss.detach()`` is the estimate of
:math:`\mathbb E[f]`. All are `torch.nn.Module`; what they have to remember or learn lives in them.

**Which dimensions are variables.** The shape that f returns says so. It must be a prefix of ``q.batch_shape``; the
dimensions that are left are the variables of one element. With a batch shape (100, 20), an f that returns shape (100,)
has 20 variables for each of 100 elements, and log-probabilities are summed over the 20. Elements must not influence
each other's values.

**What f may depend on.** Anything: a decoder's parameters and q's own parameters (a KL term, say). Their direct
gradients come out right too. f is minimised, so a KL term is added: :math:`f = -\log p(x \mid z) + \mathrm{KL}`.

**Several samples.** ``num_samples=S`` averages S draws. f is then called S times, or, with ``sample_axis=True``, once
with samples ``(S, *batch, K)``, for values with a leading S.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from igr import functional
from igr.conditional import (
    conditional_gaussian_and_log_prob,
    conditional_gumbel,
    rounding_gap,
)
from igr.distributions import IGR, GumbelSoftmax, Relaxation, SoftmaxIGR

__all__ = [
    "ControlNetwork",
    "Coupling",
    "Estimator",
    "LeaveOneOut",
    "Pathwise",
    "RaoBlackwellStraightThrough",
    "Rebar",
    "ReinMax",
    "Reinforce",
    "Relax",
    "RunningMean",
    "StickingTheLanding",
    "StraightThrough",
    "UnorderedSet",
    "coupling",
    "sticking_the_landing_kl",
]

Objective = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# shared pieces


def _check_value(value: Any, batch_shape: torch.Size) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"f: expected a floating-point tensor of values, got {came}")
    if value.shape != batch_shape[: value.dim()]:
        raise ValueError(
            f"f: expected one value for each batch element, in a shape that q.batch_shape {tuple(batch_shape)} starts "
            f"with (the rest of it are the variables of an element), got shape {tuple(value.shape)}"
        )
    return value


def _sum_variables(x: Tensor, dims: int) -> Tensor:
    """Sum over all dimensions but the first `dims`."""
    return x if x.dim() == dims else x.sum(tuple(range(dims, x.dim())))


def _spread(x: Tensor, dims: int) -> Tensor:
    """Trailing dimensions of size 1, up to `dims` in all."""
    return x.reshape(*x.shape, *(1,) * (dims - x.dim()))


def _discrete(q: Distribution, name: str) -> OneHotCategorical:
    """The categorical distribution of q, with probabilities that can be differentiated."""
    if isinstance(q, OneHotCategorical):
        return q
    if not isinstance(q, Relaxation):
        raise ValueError(
            f"q: {name} needs the probabilities of the categories, from a relaxation with discrete() or a "
            f"OneHotCategorical; got {type(q).__name__}"
        )
    recovered = q.discrete()
    if recovered.standard_error is not None:
        raise ValueError(
            f"q: {name} needs the gradient of the categories' probabilities, and {type(q).__name__} has only a Monte "
            "Carlo estimate of them; use SoftmaxIGR or GumbelSoftmax, or a pathwise estimator"
        )
    return recovered


def _relaxation(q: Distribution, name: str) -> Relaxation:
    if not isinstance(q, Relaxation):
        raise ValueError(f"q: {name} needs a relaxation to sample from, got {type(q).__name__}")
    return q


def _log_prob(logits: Tensor, onehot: Tensor) -> Tensor:
    """Log-probability of one-hot vectors, elementwise over the batch; -inf has no part in the sum."""
    return torch.where(onehot > 0, logits, 0.0).sum(-1)


class _Attach(torch.autograd.Function):
    """A value that hands given gradients to given tensors.

    The first `count` tensors are q's parameters, with a gradient for each batch element, which the gradient that comes
    back to the value weights. The others belong to the estimator as a whole: their gradient is for the sum of the
    values, and is weighted by the mean of what comes back.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> Any:
        (weight,) = grad
        gradients = ctx.saved_tensors
        out = [_spread(weight, g.dim()) * g for g in gradients[: ctx.count]]
        out += [weight.mean() * g for g in gradients[ctx.count :]]
        return weight, None, *out, *(None for _ in gradients)


class Estimator(nn.Module):
    """What all estimators share: `num_samples` draws, and f evaluated at each.

    Args:
        num_samples: draws to average over.
        sample_axis: f takes all draws at once, with a leading axis, instead of one call for each.
    """

    def __init__(self, num_samples: int = 1, *, sample_axis: bool = False) -> None:
        super().__init__()
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples: expected a positive integer, got {num_samples!r}")
        self.num_samples = num_samples
        self.sample_axis = sample_axis

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"

    @abstractmethod
    def forward(self, q: Distribution, f: Objective) -> Tensor:
        """The loss, ``(*batch,)`` without the dimensions of the variables."""

    def _evaluate(self, f: Objective, samples: Tensor, batch_shape: torch.Size) -> Tensor:
        """Values ``(S, *elements)`` at samples ``(S, *batch, K)``."""
        if not self.sample_axis:
            return torch.stack([_check_value(f(sample), batch_shape) for sample in samples])
        values = f(samples)
        expected = samples.shape[:1]
        if not isinstance(values, Tensor) or values.shape[:1] != expected:
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"f: expected values with a leading axis of {expected[0]} samples (sample_axis=True), got {came}"
            )
        _check_value(values[0], batch_shape)
        return values


# ---------------------------------------------------------------------------------------------------------------------
# relaxed and straight-through


class Pathwise(Estimator):
    r"""The reparameterization gradient of the relaxed objective (3), (4).

    .. math:: \nabla_\theta f(\tilde z_\theta(\epsilon))

    Unbiased for the relaxed objective :math:`\mathbb E_{\tilde q}[f(\tilde z)]`, biased for the discrete one. f must
    be differentiable on the simplex. One evaluation of f per sample. Works for every relaxation.

    Source: Kingma and Welling (2014); Maddison et al. (2017); Jang et al. (2017).

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.zeros(8, 3, requires_grad=True)
        >>> loss = Pathwise()(GumbelSoftmax(0.5, logits=logits), lambda z: (z[..., 0] - 0.4).square())
        >>> loss.sum().backward()
        >>> loss.shape, logits.grad.shape
        (torch.Size([8]), torch.Size([8, 3]))
    """

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        q = _relaxation(q, "Pathwise")
        return self._evaluate(f, q.rsample((self.num_samples,)), q.batch_shape).mean(0)


class StraightThrough(Estimator):
    r"""One-hot samples with the gradient of the relaxed ones behind them.

    .. math:: \nabla_b f(b) \cdot \nabla_\theta \tilde z_\theta(\epsilon), \qquad b = h(\tilde z)

    Its value is that of the discrete objective; its gradient is biased. One evaluation of f per sample.

    Source: Bengio et al. (2013); Jang et al. (2017).
    """

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        q = _relaxation(q, "StraightThrough")
        return self._evaluate(f, q.straight_through((self.num_samples,)), q.batch_shape).mean(0)


class RaoBlackwellStraightThrough(Estimator):
    r"""`StraightThrough` with the relaxed gradient averaged over what the category leaves open.

    .. math:: \nabla_b f(b) \cdot \mathbb E\big[\nabla_\theta \tilde z_\theta(\epsilon) \,\big|\, b\big]

    The expectation is over the noise given the category, by `num_conditional` exact conditional draws. Same
    expectation as `StraightThrough`, hence the same bias, at a lower variance; f is still evaluated once per sample.

    Args:
        num_conditional: conditional draws for each sample.

    Source: Paulus et al. (2021), "Rao-Blackwellizing the straight-through Gumbel-Softmax gradient estimator"; for IGR,
    the same with the conditional draw of `igr.conditional`.
    """

    def __init__(
        self, num_conditional: int = 10, num_samples: int = 1, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        if num_conditional < 1:
            raise ValueError(
                f"num_conditional: expected a positive integer, got {num_conditional!r}"
            )
        self.num_conditional = num_conditional

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        law = coupling(q)
        q = _relaxation(q, "RaoBlackwellStraightThrough")
        with torch.no_grad():
            parameters = [p.expand(self.num_samples, *p.shape) for p in law.parameters]
            onehot = law.hard(law.draw(parameters))
            onehot_m = onehot.expand(self.num_conditional, *onehot.shape)
            scores, _ = law.draw_given(parameters, onehot_m, q.temperature)  # type: ignore[attr-defined]
        relaxed = law.relax(law.hold_noise(scores), q.temperature).mean(0)  # type: ignore[attr-defined]
        samples = functional.straight_through(onehot, relaxed)
        return self._evaluate(f, samples, q.batch_shape).mean(0)


class ReinMax(Estimator):
    r"""A straight-through estimator that is exact to second order.

    .. math:: \pi_0 = \operatorname{softmax}(\theta), \quad
              \pi_1 = \tfrac12 (b + \operatorname{softmax}(\theta/\tau)), \quad
              \nabla_\theta \approx \nabla_b f(b) \cdot
              \big(2\, \nabla_\theta \operatorname{softmax}(\log \pi_1) - \tfrac12 \nabla_\theta \pi_0\big)

    where :math:`\log \pi_1` has the derivative of :math:`\theta`, the log-probabilities of the categories (Proposition
    2 for `SoftmaxIGR`). Unbiased for a quadratic f of one variable at temperature 1, biased else. One evaluation of f
    per sample, at one-hot vectors; its gradient is needed.

    Args:
        temperature: :math:`\tau` of the estimator, at least 1; that of q plays no part.

    Source: Liu et al. (2023), "Bridging discrete and backpropagation: straight-through and beyond", algorithm 2.
    """

    def __init__(
        self, temperature: float = 1.0, num_samples: int = 1, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.temperature = temperature

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        discrete = _discrete(q, "ReinMax")
        theta = discrete.logits
        onehot = discrete.sample((self.num_samples,))
        possible = theta > -torch.inf
        with torch.no_grad():
            log_mean = torch.log(0.5 * (onehot + torch.softmax(theta / self.temperature, -1)))
            shift = torch.where(possible, log_mean - theta, 0.0)
        pi = 2 * torch.softmax(shift + theta, -1) - 0.5 * torch.softmax(theta, -1)
        return self._evaluate(f, onehot + pi - pi.detach(), q.batch_shape).mean(0)


# ---------------------------------------------------------------------------------------------------------------------
# score function


class RunningMean(nn.Module):
    """A baseline: the mean of the losses of earlier calls, with exponentially decaying weights.

    It never contains the samples that it is subtracted from, so that it adds no bias. It is 0 at the first call.

    Args:
        decay: weight of the past at each call.
        shape: leading dimensions of the losses that have a mean each, such as a stack of runs.

    Example:
        >>> baseline = RunningMean(0.9)
        >>> baseline(torch.tensor([[3.0, 5.0]])), baseline(torch.tensor([[0.0, 0.0]]))
        (tensor([[0.]]), tensor([[4.]]))
    """

    min_samples = 1
    mean: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99, shape: Sequence[int] = ()) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """What to subtract from values ``(S, *elements)``."""
        size = self.mean.shape
        if values.shape[1 : 1 + len(size)] != size:
            raise ValueError(
                f"shape: expected losses of shape {tuple(size)} followed by batch dimensions, "
                f"got {tuple(values.shape[1:])}"
            )
        # Adam's correction for the start at 0
        before = self.mean / self.weight.clamp(min=1e-12)
        if self.training:
            rest = (0, *range(1 + len(size), values.dim()))
            self.mean = torch.lerp(values.mean(rest).to(self.mean.dtype), self.mean, self.decay)
            self.weight = 1 - (1 - self.weight) * self.decay
        return _spread(before.to(values.dtype).unsqueeze(0), values.dim())


class LeaveOneOut(nn.Module):
    """A baseline for several samples: each one's is the mean loss of the others, so that it adds no bias.

    Source: Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!".

    Example:
        >>> LeaveOneOut()(torch.tensor([[1.0], [2.0], [6.0]])).flatten()
        tensor([4.0000, 3.5000, 1.5000])
    """

    min_samples = 2

    def forward(self, values: Tensor) -> Tensor:
        """What to subtract from values ``(S, *elements)``."""
        return (values.sum(0) - values) / (len(values) - 1)


class Reinforce(Estimator):
    r"""The score-function estimator.

    .. math:: (f(b) - a)\, \nabla_\theta \log q_\theta(b) + \nabla_\theta f_\theta(b)

    Unbiased. f is a black box, evaluated once per sample at one-hot vectors.

    Args:
        baseline: gives a: `RunningMean`, `LeaveOneOut`, any module from losses ``(S, *elements)`` to what shall be
            subtracted from them (it must not look at the sample itself), or None for 0.

    Source: Williams (1992).

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc, scale = torch.zeros(8, 2, requires_grad=True), torch.ones(8, 2)
        >>> estimator = Reinforce(LeaveOneOut(), num_samples=4)
        >>> estimator(SoftmaxIGR(loc, scale, 0.5), lambda b: b[..., 0]).sum().backward()
        >>> loc.grad.shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        baseline: nn.Module | None = None,
        num_samples: int = 1,
        *,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        needed = getattr(baseline, "min_samples", 1)
        if num_samples < needed:
            raise ValueError(
                f"num_samples: expected at least {needed} for the baseline {type(baseline).__name__}, "
                f"got {num_samples}"
            )
        self.baseline = baseline

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        discrete = _discrete(q, "Reinforce")
        onehot = discrete.sample((self.num_samples,))
        values = self._evaluate(f, onehot, q.batch_shape)
        coefficient = values.detach()
        if self.baseline is not None:
            coefficient = coefficient - self.baseline(coefficient)
        log_prob = _sum_variables(_log_prob(discrete.logits, onehot), values.dim())
        return (values + coefficient * (log_prob - log_prob.detach())).mean(0)


# ---------------------------------------------------------------------------------------------------------------------
# control variates through the relaxation


class Coupling:
    """What `Rebar`, `Relax` and `RaoBlackwellStraightThrough` must know of a family; see `coupling`.

    Scores y are what the noise and the parameters yield before the temperature comes in: the largest names the
    category.
    """

    parameters: tuple[Tensor, ...]

    @abstractmethod
    def draw(self, parameters: Sequence[Tensor]) -> Tensor:
        """Scores, differentiable in the parameters."""

    @abstractmethod
    def hard(self, scores: Tensor) -> Tensor:
        """One-hot vectors of the largest."""

    @abstractmethod
    def relax(self, scores: Tensor, temperature: float | Tensor) -> Tensor:
        """Relaxed samples."""

    @abstractmethod
    def draw_given(
        self,
        parameters: Sequence[Tensor],
        onehot: Tensor,
        temperature: float | Tensor,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores given the category, and its log-probability, both differentiable in the parameters.

        With `scores` that the category was read from, these very scores, but with the conditional draw's derivatives.
        """

    @abstractmethod
    def hold_noise(self, scores: Tensor) -> Tensor:
        """The same scores as a function of q's parameters, the noise that they come from held constant."""


class _GaussianCoupling(Coupling):
    def __init__(self, q: SoftmaxIGR) -> None:
        self.parameters = (functional.full_precision(q.loc), functional.full_precision(q.scale))
        self.delta, self.allowed = q.delta, q.allowed

    def draw(self, parameters: Sequence[Tensor]) -> Tensor:
        loc, scale = parameters
        return torch.addcmul(loc, scale, torch.randn_like(loc))

    def hard(self, scores: Tensor) -> Tensor:
        padded = nn.functional.pad(scores, (0, 1))
        if self.allowed is not None:
            padded = padded.masked_fill(~self.allowed, -torch.inf)
        return functional.one_hot_argmax(padded).to(scores.dtype)

    def relax(self, scores: Tensor, temperature: float | Tensor) -> Tensor:
        return functional.softmax_plus_plus(scores, temperature, self.delta, allowed=self.allowed)

    def draw_given(
        self,
        parameters: Sequence[Tensor],
        onehot: Tensor,
        temperature: float | Tensor,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        loc, scale = parameters
        gap = rounding_gap(temperature, loc.dtype)
        y, log_prob = conditional_gaussian_and_log_prob(
            loc, scale, onehot, allowed=self.allowed, gap=gap, value=scores
        )
        if self.allowed is not None:
            # masked again in a moment; until then -inf would only turn gradients into NaN
            y = torch.where(self.allowed[..., :-1], y, 0.0)
        return y, log_prob

    def hold_noise(self, scores: Tensor) -> Tensor:
        loc, scale = self.parameters
        return torch.addcmul(loc, scale, ((scores - loc) / scale).detach())


class _GumbelCoupling(Coupling):
    def __init__(self, q: GumbelSoftmax) -> None:
        self.parameters = (functional.full_precision(q.logits),)

    def draw(self, parameters: Sequence[Tensor]) -> Tensor:
        (logits,) = parameters
        return logits + functional.gumbel_sample(logits.shape, logits.dtype, logits.device)

    def hard(self, scores: Tensor) -> Tensor:
        return functional.one_hot_argmax(scores).to(scores.dtype)

    def relax(self, scores: Tensor, temperature: float | Tensor) -> Tensor:
        possible = scores > -torch.inf
        # -inf over a temperature that is learned would turn its gradient into NaN
        scaled = torch.where(possible, scores, 0.0) / functional.lift(temperature)
        return torch.softmax(scaled.masked_fill(~possible, -torch.inf), -1)

    def draw_given(
        self,
        parameters: Sequence[Tensor],
        onehot: Tensor,
        temperature: float | Tensor,
        scores: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        (logits,) = parameters
        gap = rounding_gap(temperature, logits.dtype)
        y = conditional_gumbel(logits, onehot, gap=gap, value=scores)
        return y, _log_prob(torch.log_softmax(logits, -1), onehot)

    def hold_noise(self, scores: Tensor) -> Tensor:
        (logits,) = self.parameters
        possible = logits > -torch.inf
        return torch.where(possible, logits + (scores - logits).detach(), -torch.inf)


@singledispatch
def coupling(q: Distribution) -> Coupling:
    """How relaxed samples of q depend on its parameters, with and without a given category.

    Registered for `SoftmaxIGR` and `GumbelSoftmax`; ``@coupling.register`` adds a family.

    Raises:
        ValueError: for any other distribution.
    """
    raise ValueError(
        f"q: expected a distribution with an exact conditional draw (SoftmaxIGR or GumbelSoftmax), "
        f"got {type(q).__name__}"
    )


@coupling.register
def _(q: SoftmaxIGR) -> Coupling:
    return _GaussianCoupling(q)


@coupling.register
def _(q: GumbelSoftmax) -> Coupling:
    return _GumbelCoupling(q)


class _ControlVariate(Estimator):
    """What `Rebar` and `Relax` share: everything but the control variate c."""

    def __init__(
        self, temperature: float | Tensor, num_samples: int, *, tied: bool, sample_axis: bool
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self.tied = tied
        initial = torch.as_tensor(temperature, dtype=torch.get_default_dtype())
        if not bool((initial > 0).all()):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.log_temperature = nn.Parameter(initial.detach().log().clone())

    @property
    def temperature(self) -> Tensor:
        """The learned temperature of the control variate."""
        return self.log_temperature.exp()

    @abstractmethod
    def _control(self, f: Objective, z: Tensor, batch_shape: torch.Size) -> Tensor:
        """c ``(S, *elements)`` at relaxed samples ``(S, *batch, K)``."""

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        law = coupling(q)
        own = [p for p in self.parameters() if p.requires_grad] if self.training else []
        learn = bool(own) and torch.is_grad_enabled()
        # Leaves of their own, one for each sample: nothing here may reach what q's parameters come from, nor what f
        # depends on, except through the gradients that are attached in the end.
        parameters = [
            p.detach().expand(self.num_samples, *p.shape).clone().requires_grad_()
            for p in law.parameters
        ]
        with torch.enable_grad():
            scores = law.draw(parameters)
            onehot = law.hard(scores.detach())
            scores_given, log_prob = law.draw_given(
                parameters, onehot, self.temperature.detach(), scores if self.tied else None
            )
            z = law.relax(scores, self.temperature)
            z_given = law.relax(scores_given, self.temperature)
        values = self._evaluate(f, onehot, q.batch_shape)
        if not torch.is_grad_enabled():
            return values.mean(0)
        control = self._control(f, z, q.batch_shape)
        control_given = self._control(f, z_given, q.batch_shape)
        score = torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True)
        path = _path_gradient(control, z, parameters, learn)
        path_given = _path_gradient(control_given, z_given, parameters, learn)
        coefficient = values.detach() - control_given
        gradients = [
            _spread(coefficient, s.dim()) * s + a - b
            for s, a, b in zip(score, path, path_given, strict=True)
        ]
        own_gradients: list[Tensor] = []
        if learn:
            # The mean does not depend on the control variate, so the mean square is the variance up to a constant.
            square = torch.stack([g.square().sum() for g in gradients]).sum() / self.num_samples
            found = torch.autograd.grad(square, own, allow_unused=True)
            own_gradients = [
                torch.zeros_like(p) if g is None else g for p, g in zip(own, found, strict=True)
            ]
        return _Attach.apply(
            values.mean(0),
            len(parameters),
            *law.parameters,
            *own,
            *(g.detach().mean(0) for g in gradients),
            *own_gradients,
        )


def _path_gradient(
    control: Tensor, z: Tensor, parameters: Sequence[Tensor], create_graph: bool
) -> Sequence[Tensor]:
    """Gradient of the control variate by way of the relaxed sample, and by no other."""
    slope = None
    if control.requires_grad:
        (slope,) = torch.autograd.grad(
            control.sum(), z, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    if slope is None:
        return [torch.zeros_like(p) for p in parameters]
    return torch.autograd.grad(z, parameters, slope, create_graph=create_graph, retain_graph=True)


class Rebar(_ControlVariate):
    r"""REINFORCE with the relaxed objective as control variate.

    .. math:: [f(b) - \eta f(\tilde z_b)]\, \nabla_\theta \log q_\theta(b)
              + \eta \nabla_\theta f(\tilde z) - \eta \nabla_\theta f(\tilde z_b) + \nabla_\theta f_\theta(b)

    with :math:`\tilde z` the relaxed sample that b is the category of and :math:`\tilde z_b` another one given that
    category. To :math:`\eta f` a constant baseline is added, 0 to begin with. Unbiased, whatever :math:`\eta`, the
    constant and the temperature of the control variate are. All three are parameters of this module; their gradient,
    that of the estimator's mean square, arrives with ``loss.backward()`` like all others, at the cost of one more
    backward pass. Give them to an optimiser of their own. f is evaluated three times per sample, and must be
    differentiable on the simplex.

    Args:
        temperature: of the control variate, to begin with; a number or a tensor that broadcasts against the batch
            shape of q, such as one for each run of a stack. The temperature of q itself plays no part.
        eta: to begin with; likewise, against the shape that f returns.
        tied: :math:`\tilde z_b` uses the conditional noise that leads to :math:`\tilde z` itself, so that the two
            differ in their derivatives only and what they share cancels; for IGR it is cheaper, too, for nothing has
            to be inverted. Otherwise it is a new draw. Both are exact.

    Source: Tucker et al. (2017); for IGR, the conditional draw and the probabilities are those of Proposition 2.

    Differs from the source: it has no constant baseline, without which nothing is gained where f is nearly the same
    at all one-hot vectors but not in between. Differs from the paper: see `Relax`.

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc, scale = torch.zeros(8, 2, requires_grad=True), torch.ones(8, 2)
        >>> estimator = Rebar(temperature=0.15)
        >>> estimator(SoftmaxIGR(loc, scale, 0.5), lambda b: (b[..., 0] - 0.4).square()).sum().backward()
        >>> loc.grad.shape, estimator.eta.grad.shape
        (torch.Size([8, 2]), torch.Size([]))
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        eta: float | Tensor = 1.0,
        num_samples: int = 1,
        *,
        tied: bool = True,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(temperature, num_samples, tied=tied, sample_axis=sample_axis)
        self.eta = nn.Parameter(torch.as_tensor(eta, dtype=torch.get_default_dtype()).clone())
        self.offset = nn.Parameter(torch.zeros_like(self.eta))

    def _control(self, f: Objective, z: Tensor, batch_shape: torch.Size) -> Tensor:
        return self.eta * self._evaluate(f, z, batch_shape) + self.offset


class Relax(_ControlVariate):
    r"""REINFORCE with a learned function of the relaxed sample as control variate.

    .. math:: [f(b) - c_\phi(\tilde z_b)]\, \nabla_\theta \log q_\theta(b)
              + \nabla_\theta c_\phi(\tilde z) - \nabla_\theta c_\phi(\tilde z_b) + \nabla_\theta f_\theta(b)

    :math:`c_\phi` is ``f(z) + control_variate(z)``, or the module alone with ``with_loss=False``, at a learned
    temperature. Unbiased, whatever :math:`\phi` is. The gradient for :math:`\phi`, that of the estimator's mean
    square (its variance, but for a constant), arrives with ``loss.backward()`` on this module's parameters, at the
    cost of one more backward pass; it reaches nothing else. Give them to an optimiser of their own.

    f is evaluated three times per sample (once with ``with_loss=False``, and then it may be a black box).

    Args:
        control_variate: any module from relaxed samples ``(S, *batch, K)`` to values ``(S, *elements)``, or to
            something that broadcasts to them; `ControlNetwork` for one.
        temperature: of the control variate, to begin with; see `Rebar`.
        with_loss: f at the relaxed sample is part of the control variate.
        tied: see `Rebar`.

    Source: Grathwohl et al. (2018); for IGR, paper, appendix D.

    Differs from the paper: its released code subtracts the KL term where it has to be added (erratum E7) and draws
    :math:`\tilde z_b` without regard to b (erratum E10).

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.zeros(8, 2, 3, requires_grad=True)
        >>> estimator = Relax(ControlNetwork((2, 3)), temperature=0.5)
        >>> loss = estimator(GumbelSoftmax(0.5, logits=logits), lambda b: b[..., 0].sum(-1))
        >>> loss.sum().backward()
        >>> loss.shape, estimator.log_temperature.grad.shape
        (torch.Size([8]), torch.Size([]))
    """

    def __init__(
        self,
        control_variate: nn.Module,
        temperature: float | Tensor = 0.5,
        num_samples: int = 1,
        *,
        with_loss: bool = True,
        tied: bool = True,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(temperature, num_samples, tied=tied, sample_axis=sample_axis)
        self.control_variate = control_variate
        self.with_loss = with_loss

    def _control(self, f: Objective, z: Tensor, batch_shape: torch.Size) -> Tensor:
        learned: Tensor = self.control_variate(z)
        return learned + self._evaluate(f, z, batch_shape) if self.with_loss else learned


class ControlNetwork(nn.Module):
    r"""A small network of the relaxed sample, for `Relax`: 2z - 1, one hidden layer of ReLU, a learned factor.

    Args:
        shape: of the relaxed sample of one element: (variables, K), or (K,) for a single variable.
        hidden: width.
        stack: leading shape of a stack of such networks, each with parameters of its own; samples are then
            ``(S, *stack, batch, *shape)``.
        factor: what the output is multiplied by, to begin with.

    Returns:
        ``(*leading,)``: the leading dimensions of the sample, less `shape`.

    Source: Grathwohl et al. (2018), appendix.

    Example:
        >>> ControlNetwork((20, 10))(torch.rand(100, 20, 10)).shape
        torch.Size([100])
        >>> ControlNetwork((20, 10), stack=(5,))(torch.rand(5, 100, 20, 10)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int = 50,
        *,
        stack: Sequence[int] = (),
        factor: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        stack = tuple(stack)

        def uniform(fan_in: int, *dims: int) -> nn.Parameter:
            bound = 1 / math.sqrt(fan_in)
            return nn.Parameter(torch.empty(*stack, *dims).uniform_(-bound, bound))

        self.weight_in, self.bias_in = uniform(size, size, hidden), uniform(size, 1, hidden)
        self.weight_out, self.bias_out = uniform(hidden, hidden, 1), uniform(hidden, 1, 1)
        self.factor = nn.Parameter(torch.full((*stack, 1, 1), factor))

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[z.dim() - len(self.shape) :] != self.shape:
            raise ValueError(f"z: expected a shape that ends in {self.shape}, got {tuple(z.shape)}")
        lead = z.shape[: z.dim() - len(self.shape)]
        flat = (2 * z - 1).reshape(*(lead or (1,)), -1)
        hidden = torch.relu(flat @ self.weight_in + self.bias_in)
        return (self.factor * (hidden @ self.weight_out + self.bias_out)).reshape(lead)


# ---------------------------------------------------------------------------------------------------------------------
# the KL term


def _constant(value: Any) -> Any:
    """The same map or tensor, its parameters held constant."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list):
        return [_constant(v) for v in value]
    if isinstance(value, torch.distributions.Transform):
        new = copy.copy(value)
        for name, attribute in vars(value).items():
            setattr(new, name, _constant(attribute))
        return new
    return value


@singledispatch
def _detached(q: Distribution) -> Relaxation:
    """q with its parameters held constant."""
    raise ValueError(
        f"q: expected an IGR with a Gaussian base, or a GumbelSoftmax, got {type(q).__name__}"
    )


@_detached.register
def _(q: IGR) -> Relaxation:
    if not q._is_gaussian:
        raise ValueError(f"q: expected an IGR with a Gaussian base, got {q.base_dist}")
    if any(isinstance(part, nn.Module) for part in q.transform.parts):
        raise ValueError(
            "q: its map has parameters that cannot be held constant; use igr.monte_carlo_kl"
        )
    return IGR(q.loc.detach(), q.scale.detach(), _constant(q.transform), validate_args=False)


@_detached.register
def _(q: GumbelSoftmax) -> Relaxation:
    return GumbelSoftmax(_constant(q.temperature), logits=q.logits.detach(), validate_args=False)


def _draw_and_kl(q: Relaxation, prior: Relaxation, num_samples: int) -> tuple[Tensor, Tensor]:
    """z ``(S, *batch, K)`` and log q(z) - log p(z) ``(S, *batch)``, q's parameters held constant in the former."""
    if q.event_shape != prior.event_shape:
        raise ValueError(
            f"prior: expected {q.num_categories} categories as q has, got {prior.num_categories}"
        )
    fixed = _detached(q)
    if (
        isinstance(q, IGR)
        and isinstance(fixed, IGR)
        and isinstance(prior, IGR)
        and q.allowed is None
        and prior.allowed is None
        and q.transform == prior.transform
    ):
        # the maps cancel
        y = q._rsample_base((num_samples,))
        return q._cast(q.transform.forward(y)), fixed._base_log_prob(y) - prior._base_log_prob(y)
    log_z = q.rsample_log((num_samples,))
    log_ratio = fixed.log_prob(log_value=log_z) - prior.log_prob(log_value=log_z)
    return q._cast(log_z.exp()), log_ratio


def sticking_the_landing_kl(q: Relaxation, prior: Relaxation, num_samples: int = 1) -> Tensor:
    r"""KL(q || prior) by samples, q's parameters held constant inside log q.

    .. math:: \frac 1 S \sum_i \log q_{\operatorname{stop}(\theta)}(\tilde z_i) - \log p(\tilde z_i), \qquad
              \tilde z_i \sim q_\theta

    Value and gradient are unbiased: what is left out, the score of q, has expectation 0. The gradient vanishes, sample
    by sample, where q equals the prior.

    Returns:
        ``(*batch,)``.

    Source: Roeder et al. (2017).

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(5, 2, requires_grad=True)
        >>> q, prior = SoftmaxIGR(loc, torch.ones(5, 2), 0.5), SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5)
        >>> sticking_the_landing_kl(q, prior).sum().backward()
        >>> loc.grad.abs().max()
        tensor(0.)
    """
    return _draw_and_kl(q, prior, num_samples)[1].mean(0)


class StickingTheLanding(Estimator):
    r"""The pathwise estimator of :math:`\mathbb E[f(\tilde z)] + \mathrm{KL}(\tilde q \,\|\, \tilde p)`, the KL
    estimated from the same samples with q's parameters held constant inside log q.

    f is the loss *without* the KL term: the loss that comes back has it added, summed over an element's variables. As
    for bias it is `Pathwise`: unbiased for the relaxed objective. One evaluation of f per sample. Works for
    `GumbelSoftmax` and every IGR with a Gaussian base whose map can be inverted.

    Args:
        prior: a relaxation of the same number of categories, whose batch shape broadcasts with that of q.

    Source: Roeder et al. (2017), "Sticking the landing"; the paper's SL rows.

    Example:
        >>> from igr import GumbelSoftmax
        >>> q = GumbelSoftmax(0.5, logits=torch.randn(8, 2, 3, requires_grad=True))
        >>> estimator = StickingTheLanding(GumbelSoftmax(0.5, logits=torch.zeros(3)))
        >>> estimator(q, lambda z: z[..., 0].sum(-1)).shape
        torch.Size([8])
    """

    def __init__(
        self, prior: Relaxation, num_samples: int = 1, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self.prior = prior

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        q = _relaxation(q, "StickingTheLanding")
        z, log_ratio = _draw_and_kl(q, self.prior, self.num_samples)
        values = self._evaluate(f, z, q.batch_shape)
        return (values + _sum_variables(log_ratio, values.dim())).mean(0)


# ---------------------------------------------------------------------------------------------------------------------
# sampling without replacement


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0."""
    small = torch.log(-torch.expm1(x.clamp(min=-1.0)))
    return torch.where(x > -1.0, small, torch.log1p(-torch.exp(x.clamp(max=-1.0))))


@torch.no_grad()
def _sample_without_replacement(log_probs: Tensor, count: int) -> Tensor:
    """Different states of N independent variables, by stochastic beam search.

    Of all K**N states those with the `count` largest log-probabilities plus Gumbel noise are found variable by
    variable: the perturbed log-probability of a prefix is the largest of those of its completions, so that the best
    prefixes contain the best states.

    Args:
        log_probs: ``(*elements, N, K)``, normalised.

    Returns:
        Category of each variable, ``(*elements, count, N)``.
    """
    lead, size = log_probs.shape[:-2], log_probs.shape[-1]
    phi = log_probs.new_zeros(*lead, 1)
    perturbed = torch.zeros_like(phi)
    states = torch.empty(*lead, 1, 0, dtype=torch.long, device=log_probs.device)
    for column in log_probs.unbind(-2):
        child = phi.unsqueeze(-1) + column.unsqueeze(-2)
        possible = child > -torch.inf
        noisy = child + functional.gumbel_sample(child.shape, child.dtype, child.device)
        noisy = torch.where(possible, noisy, -torch.inf)
        top = noisy.amax(-1, keepdim=True).clamp(min=torch.finfo(child.dtype).min)
        parent = perturbed.unsqueeze(-1)
        # the children's noise given that the largest of them has what the parent has
        v = parent - noisy + _log1mexp(noisy - top)
        shifted = parent - v.clamp(min=0.0) - torch.log1p(torch.exp(-v.abs()))
        shifted = torch.where(possible, shifted, -torch.inf).flatten(-2)
        perturbed, index = shifted.topk(min(count, shifted.shape[-1]), dim=-1)
        phi = child.flatten(-2).gather(-1, index)
        beam, category = index // size, index % size
        previous = states.gather(-2, beam.unsqueeze(-1).expand(*beam.shape, states.shape[-1]))
        states = torch.cat([previous, category.unsqueeze(-1)], -1)
    return states


@lru_cache(maxsize=16)
def _subsets(count: int) -> list[tuple[list[int], list[list[int]], list[list[int]]]]:
    """By falling size: the subsets of that size, as bit masks; the elements each lacks; it with each of those added."""
    levels = []
    for size in range(count - 1, -1, -1):
        masks = [m for m in range(2**count) if bin(m).count("1") == size]
        missing = [[i for i in range(count) if not m >> i & 1] for m in masks]
        added = [[m | 1 << i for i in lacks] for m, lacks in zip(masks, missing, strict=True)]
        levels.append((masks, missing, added))
    return levels


def _log_set_probs_by_subsets(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Log-probability that the set is drawn, as a set, from what is left after some of it have been drawn.

    With U(C) that probability for a subset C of the set S, drawn already,

    .. math:: U(S) = 1, \qquad U(C) = \sum_{s \in S \setminus C} \frac{p(s)}{1 - p(C)} U(C \cup \{s\}).

    Args:
        log_p: ``(*elements, S)``; -inf for what is not in the set after all.

    Returns:
        log U of the empty set (*elements,), of each {s} (*elements, S) and of each {s, t} (*elements, S, S).
    """
    count = log_p.shape[-1]
    device = log_p.device
    bits = torch.arange(2**count, device=device)
    inside = (bits.unsqueeze(-1) >> torch.arange(count, device=device) & 1).bool()
    mass = log_p.exp() @ inside.to(log_p.dtype).T
    # what is left is at least what is left of the set, which rounding of 1 - p(C) must not undo
    left = torch.where(inside, -torch.inf, log_p.unsqueeze(-2)).logsumexp(-1)
    log_rest = torch.maximum(torch.log1p(-mass.clamp(max=1.0)), left)
    log_u = torch.zeros_like(log_rest)
    for masks, missing, added in _subsets(count):
        rest = log_rest[..., masks].unsqueeze(-1)
        own = log_p[..., missing]
        terms = torch.where(own > -torch.inf, own - rest + log_u[..., added], -torch.inf)
        # nothing of the set is left: it has been drawn
        done = (own == -torch.inf).all(-1)
        log_u[..., masks] = torch.where(done, 0.0, terms.logsumexp(-1))
    one = [1 << i for i in range(count)]
    two = [[a | b for a in one] for b in one]
    return log_u[..., 0], log_u[..., one], log_u[..., two]


def _log_set_probs_by_quadrature(log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The same for sets of any size, by an integral.

    Let every state arrive after an exponential time with rate p(s). U(C) is the probability that all of S \ C arrive
    before anything outside of S does, which has rate r = 1 - p(S); with x the logarithm of the time in units of 1/r,

    .. math:: U(C) = \int e^{x - e^x} \prod_{s \in S \setminus C} \big(1 - e^{-e^x p(s) / r}\big)\, dx.

    The integrand falls at least like exp(x) to the left of 0 and like exp(-exp(x)) to the right of log(1 + S), so that
    the trapezoidal rule is exact to rounding.
    """
    count = log_p.shape[-1]
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=1e-300)
    end = math.log(count + 60.0)
    x = torch.arange(-40.0, end, 0.15, dtype=log_p.dtype, device=log_p.device)
    rate = (log_p - torch.log(rest)).clamp(max=600.0)
    arrived = _log1mexp(-torch.exp(rate.unsqueeze(-1) + x).clamp(max=1e300))
    arrived = torch.where(log_p.unsqueeze(-1) > -torch.inf, arrived, 0.0)
    total = x - torch.exp(x) + math.log(0.15) + arrived.sum(-2)
    without = total.unsqueeze(-2) - arrived
    other = ~torch.eye(count, dtype=torch.bool, device=log_p.device).unsqueeze(-1)
    pairs = without.unsqueeze(-2) - torch.where(other, arrived.unsqueeze(-3), 0.0)
    return total.logsumexp(-1), without.logsumexp(-1), pairs.logsumexp(-1)


class UnorderedSet(Estimator):
    r"""The unordered set estimator with its built-in control variate: S different states, weighted.

    .. math:: \sum_{s \in S} \nabla_\theta p_\theta(s)\, R(S, s)
              \Big( f(s) - \sum_{t \in S} p_\theta(t)\, R^{D \setminus \{s\}}(S, t)\, f(t) \Big), \qquad
              R(S, s) = \frac{p^{D \setminus \{s\}}(S \setminus \{s\})}{p(S)}

    The states are drawn without replacement from the *joint* distribution of all variables of an element, by
    stochastic beam search over its K^N states. It is REINFORCE with a leave-one-out baseline, Rao-Blackwellised over
    the order of the draws. Unbiased; exact, with no variance at all, where `num_samples` is the number of states.
    f is a black box, evaluated `num_samples` times at one-hot vectors.

    Args:
        num_samples: S, at least 2 and at most K^N. With S up to 9 the ratios are summed over all subsets exactly,
            beyond that they come from a quadrature exact to rounding.

    Raises:
        ValueError: when called, if there are fewer states than samples.

    Source: Kool et al. (2020), "Estimating gradients for discrete random variables by sampling without replacement",
    equations (9) and (17), the paper's USPGBL; Kool et al. (2019), "Stochastic beams and where to find them".

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
        >>> UnorderedSet(3)(GumbelSoftmax(0.5, logits=logits), lambda b: b[..., 0]).backward()
        >>> p = torch.softmax(logits, -1)
        >>> torch.allclose(logits.grad, p[0] * (torch.tensor([1.0, 0.0, 0.0]) - p))
        True
    """

    max_enumerated = 9

    def __init__(self, num_samples: int, *, sample_axis: bool = False) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        if num_samples < 2:
            raise ValueError(
                "num_samples: expected at least 2, for the control variate of each sample comes from the others, "
                f"got {num_samples}; use Reinforce for one sample"
            )
        self._element_dims: int | None = None

    def forward(self, q: Distribution, f: Objective) -> Tensor:
        logits = _discrete(q, "UnorderedSet").logits
        batch = q.batch_shape
        # How many dimensions are variables is known after f has been called, and needed before: it is guessed (as last
        # time, or all but the last of several), and the draw repeated where the guess was wrong.
        dims = self._element_dims
        if dims is None or dims > len(batch):
            dims = max(len(batch) - 1, min(len(batch), 1))
        samples = self._draw(logits, dims)
        values = self._evaluate(f, samples, batch)
        if values.dim() - 1 != dims:
            dims = values.dim() - 1
            samples = self._draw(logits, dims)
            values = self._evaluate(f, samples, batch)
            if values.dim() - 1 != dims:
                raise ValueError("f: expected values of the same shape at each call")
        self._element_dims = dims

        log_prob = _sum_variables(_log_prob(logits, samples), values.dim())
        with torch.no_grad():
            weight, control = self._weights(logits, samples, dims)
            possible = weight > 0
            plain = torch.where(possible, values, 0.0).to(weight.dtype)
            # a row of the control variate's weights sums to 1, so that it can be taken from the differences
            difference = plain.unsqueeze(1) - plain.unsqueeze(0)
            coefficient = (weight * (control * difference).sum(1)).to(values.dtype)
        direct = torch.where(possible, weight.to(values.dtype) * values, 0.0)
        moving = torch.where(possible, log_prob, 0.0)
        return (direct + coefficient * (moving - moving.detach())).sum(0)

    def _draw(self, logits: Tensor, dims: int) -> Tensor:
        """One-hot states ``(S, *batch, K)``."""
        batch, size = logits.shape[:-1], logits.shape[-1]
        variables = math.prod(batch[dims:])
        if size**variables < self.num_samples:
            raise ValueError(
                f"num_samples: expected at most the number of states, {size}**{variables} = {size**variables}, "
                f"got {self.num_samples}"
            )
        log_probs = torch.log_softmax(_wide(logits.detach()), -1)
        states = _sample_without_replacement(
            log_probs.reshape(*batch[:dims], variables, size), self.num_samples
        )
        onehot = nn.functional.one_hot(states.movedim(-2, 0), size)
        return onehot.reshape(self.num_samples, *batch, size).to(logits.dtype)

    def _weights(self, logits: Tensor, samples: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        """p R ``(S, *elements)``, and p R of the control variate ``(S, S, *elements)``, rows by sample."""
        log_probs = torch.log_softmax(_wide(logits), -1)
        log_p = _sum_variables(_log_prob(log_probs, samples), dims + 1).movedim(0, -1)
        if self.num_samples <= self.max_enumerated:
            none, one, two = _log_set_probs_by_subsets(log_p)
        else:
            none, one, two = _log_set_probs_by_quadrature(log_p)
        possible = log_p > -torch.inf
        weight = torch.where(possible, (log_p + one - none.unsqueeze(-1)).exp(), 0.0)
        control = (log_p.unsqueeze(-2) + two - one.unsqueeze(-1)).exp()
        # its own sample has been drawn for certain
        eye = torch.eye(self.num_samples, dtype=torch.bool, device=log_p.device)
        control = torch.where(eye, log_p.exp().unsqueeze(-2), control)
        control = torch.where(possible.unsqueeze(-1) & possible.unsqueeze(-2), control, 0.0)
        return weight.movedim(-1, 0), control.movedim((-2, -1), (0, 1))
