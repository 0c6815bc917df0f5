r"""Heads: one affine map from features to the parameters of relaxed categorical variables.

A head takes ``(*, in_features)`` to a distribution of batch shape ``(*, num_variables)``, or ``(*)`` for a single
variable, and event shape ``(num_categories,)``. The scale is :math:`\sigma = \exp(s)` of an output s of that map.

For features of zero the variables are close to uniform with scale 1, which is where ``head.prior()`` is. The weights
are drawn such that features of unit variance move the K-1 coordinates of a variable by :math:`\mathrm{gain} /
\sqrt{3 (K-1)}` each: a divergence from the prior of about :math:`\mathrm{gain}^2 / 2` nats a variable, whatever K, or a
third of that with ``learn_scale=False``, where scales are 1.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from igr import _checks
from igr._quadrature import gauss_legendre
from igr.discrete import uniform_loc
from igr.distributions import (
    IGR,
    GumbelSoftmax,
    PlanarIGR,
    Relaxation,
    SharpStickBreakingIGR,
    SoftmaxIGR,
    StickBreakingIGR,
)
from igr.nn.flows import PlanarFlow
from igr.nn.priors import Prior
from igr.nn.schedules import (
    ConstantTemperature,
    TemperatureSchedule,
    describe,
    not_learned,
    scheduled,
)
from igr.priors import Target, is_infinite, match

__all__ = [
    "GumbelSoftmaxHead",
    "Head",
    "PlanarIGRHead",
    "SharpStickBreakingIGRHead",
    "SoftmaxIGRHead",
    "StickBreakingIGRHead",
]


class Head(nn.Module):
    """One affine map from features to the parameters of relaxed categorical variables. Abstract.

    Args:
        in_features: size of the features.
        num_categories: K.
        num_variables: number of categorical variables; None for a single one without a dimension of its own.
        temperature: number, tensor that broadcasts against ``(*, num_variables)``, or a `TemperatureSchedule`, which
            becomes a part of the module. ``head.temperature = value`` sets another.
        gain: size of the weights, see `igr.nn.heads`. ``head.affine.reset_parameters()`` draws them as torch does.
        device, dtype: of the parameters; torch's defaults where None.

    Raises:
        ValueError: if a size is too small, or `temperature` or `gain` not positive.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_categories: int,
        num_variables: int | None = None,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
        gain: float = 0.3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _checks.count("in_features", in_features)
        self.num_categories = _checks.count("num_categories", num_categories, 2)
        if num_variables is not None:
            num_variables = _checks.count("num_variables", num_variables)
        self.num_variables = num_variables
        self.schedule = scheduled(temperature)
        self.gain = _checks.number("gain", gain, "a positive finite number", _checks.is_positive)
        outputs = (num_variables or 1) * self._initial().shape[0]
        self.affine = nn.Linear(in_features, outputs, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, by the gain; biases give nearly uniform variables."""
        bound = self.gain / math.sqrt(self.in_features * (self.num_categories - 1))
        self.affine.weight.uniform_(-bound, bound)
        self.affine.bias.view(self.num_variables or 1, -1).copy_(self._initial())

    @abstractmethod
    def _initial(self) -> Tensor:
        """Parameters of one variable for features of zero, on the CPU, where values are at hand whatever the device."""

    @abstractmethod
    def _family(self) -> Callable[..., Relaxation]:
        """What makes the distribution of a temperature and named parameters."""

    @abstractmethod
    def _split(self, parameters: Tensor) -> dict[str, Tensor]:
        """Named parameters of the distribution, from the outputs of the map."""

    @property
    def temperature(self) -> float | Tensor:
        """The temperature now."""
        return self.schedule.temperature

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        if not isinstance(self.schedule, ConstantTemperature):
            raise ValueError(
                f"temperature: expected no other one, as this head follows a {type(self.schedule).__name__}; "
                "set head.schedule to another schedule, or make the head with a number"
            )
        self.schedule.temperature = value

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        # Where `head.temperature = parameter` leads.
        param = not_learned(name, param) if name == "temperature" else param
        super().register_parameter(name, param)

    def prior(
        self,
        target: Target | None = None,
        temperature: float | Tensor | TemperatureSchedule | None = None,
    ) -> Prior:
        """A prior of this head's family, in a module, with the flow and the delta of this head.

        Args:
            target: probabilities ``(K,)`` or ``(num_variables, K)``, or what else `igr.match` takes, for the Gaussian
                to be matched to; infinitely many counts are cut to K. None for where this head starts, which is
                uniform or nearly so.
            temperature: None for this head's own, whatever becomes of it: then the divergence from the prior is that
                of the Gaussians at any temperature. Or one of the prior's own.

        >>> head = SoftmaxIGRHead(64, num_variables=20, num_categories=10)
        >>> prior = head.prior()
        >>> torch.distributions.kl_divergence(head(torch.zeros(64)), prior()).sum()
        tensor(0., grad_fn=<SumBackward0>)
        """
        if target is None:
            parameters = self._split(self._initial())
        else:
            size = self.num_categories if is_infinite(target) else None
            q = match(target, self._matched_family(), 1.0, num_categories=size)
            parameters = {name: getattr(q, name) for name in self._split(self._initial())}
            variables = () if self.num_variables is None else (self.num_variables,)
            for name, value in self._split(self._initial()).items():
                *batch, size = parameters[name].shape
                if size != value.shape[-1] or tuple(batch) not in ((), variables):
                    came = (*batch, size + self.num_categories - value.shape[-1])
                    raise ValueError(
                        f"target: expected probabilities ({self.num_categories},) or, for each variable, "
                        f"{(*variables, self.num_categories)}, got {came}"
                    )
        return Prior._of(
            self._family(),
            parameters,
            self.schedule if temperature is None else temperature,
            self.affine.weight.device,
            self.affine.weight.dtype,
        )

    def _matched_family(self) -> Callable[..., Relaxation]:
        """The family whose parameters stand for a discrete distribution."""
        return self._family()

    def _parameters_of(self, features: Tensor) -> Tensor:
        if _checks.floating("features", features).shape[-1:] != (self.in_features,):
            raise ValueError(
                f"features: expected shape (*, {self.in_features}), got {tuple(features.shape)}"
            )
        outputs = self.affine(features)
        return (
            outputs
            if self.num_variables is None
            else outputs.unflatten(-1, (self.num_variables, -1))
        )

    @abstractmethod
    def forward(self, features: Tensor) -> Relaxation:
        """Turn features ``(*, in_features)`` into a distribution of batch shape ``(*, num_variables)``."""

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, num_variables={self.num_variables}, num_categories={self.num_categories}, "
            f"temperature={describe(self.temperature)}"
        )


class _GaussianHead(Head):
    """A head whose outputs are loc and, where it is learned, log scale. Abstract."""

    def __init__(
        self,
        in_features: int,
        *,
        num_categories: int,
        num_variables: int | None = None,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
        learn_scale: bool = True,
        gain: float = 0.3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.learn_scale = learn_scale  # the number of outputs depends on it
        super().__init__(
            in_features,
            num_categories=num_categories,
            num_variables=num_variables,
            temperature=temperature,
            gain=gain,
            device=device,
            dtype=dtype,
        )

    def _initial(self) -> Tensor:
        loc = self._initial_loc()
        return torch.cat([loc, torch.zeros_like(loc)]) if self.learn_scale else loc

    def _initial_loc(self) -> Tensor:
        """Where the categories are equal, or nearly so, at scale 1."""
        n = self.num_categories - 1
        return torch.full((n,), uniform_loc(n + 1), dtype=torch.float64, device="cpu")

    def _split(self, parameters: Tensor) -> dict[str, Tensor]:
        if not self.learn_scale:
            return {"loc": parameters, "scale": torch.ones_like(parameters)}
        loc, log_scale = parameters.chunk(2, -1)
        return {"loc": loc, "scale": log_scale.exp()}

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.learn_scale else ", learn_scale=False")

    def _loc_and_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        parameters = self._split(self._parameters_of(features))
        return parameters["loc"], parameters["scale"]

    @abstractmethod
    def _family(self) -> Callable[..., IGR]: ...

    @abstractmethod
    def forward(self, features: Tensor) -> IGR:
        """Turn features ``(*, in_features)`` into a distribution of batch shape ``(*, num_variables)``."""


class SoftmaxIGRHead(_GaussianHead):
    r"""From features to `igr.SoftmaxIGR`, with loc and log scale an affine map of them.

    Args:
        in_features: size of the features.
        num_categories: K.
        num_variables: number of categorical variables; None for a single one without a dimension of its own.
        temperature: number, tensor that broadcasts against ``(*, num_variables)``, or a `TemperatureSchedule`, which
            becomes a part of the module. ``head.temperature = value`` sets another.
        delta: as for `igr.SoftmaxIGR`.
        learn_scale: False for scales of 1. A loss without a divergence from a prior lets learned scales shrink: the
            samples lose their noise, and gates or choices become mixtures that a hard sample has little to do with.
        gain: size of the weights: a fresh head is about gain^2 / 2 nats a variable from its prior on features of unit
            variance, see `igr.nn.heads`. ``head.affine.reset_parameters()`` draws them as torch does.
        device, dtype: of the parameters; torch's defaults where None.

    Raises:
        ValueError: if a size is too small, or `temperature`, `delta` or `gain` not positive.

    >>> head = SoftmaxIGRHead(64, num_variables=20, num_categories=10)
    >>> q, prior = head(torch.randn(100, 64)), head.prior()
    >>> q.batch_shape, q.event_shape
    (torch.Size([100, 20]), torch.Size([10]))
    >>> bool(torch.distributions.kl_divergence(q, prior()).mean() < 1)
    True
    >>> SoftmaxIGRHead(64, num_categories=10)(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 10])
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_categories: int,
        num_variables: int | None = None,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
        delta: float = 1.0,
        learn_scale: bool = True,
        gain: float = 0.3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_categories=num_categories,
            num_variables=num_variables,
            temperature=temperature,
            learn_scale=learn_scale,
            gain=gain,
            device=device,
            dtype=dtype,
        )
        _checks.positive("delta", delta)
        self.delta = delta

    def _family(self) -> Callable[..., SoftmaxIGR]:
        return functools.partial(SoftmaxIGR, delta=self.delta)

    def forward(self, features: Tensor, allowed: Tensor | None = None) -> SoftmaxIGR:
        """Turn features into a distribution; `allowed` broadcasts against ``(*, num_variables, K)``."""
        loc, scale = self._loc_and_scale(features)
        return SoftmaxIGR(loc, scale, self.temperature, self.delta, allowed)


class _StickBreakingHead(_GaussianHead):
    """A head that starts where the stick is broken into pieces of equal means. Abstract."""

    def _initial_loc(self) -> Tensor:
        return _equal_pieces(self.num_categories - 1)


class StickBreakingIGRHead(_StickBreakingHead):
    """From features to `igr.StickBreakingIGR` (18); arguments as for `SoftmaxIGRHead`.

    >>> head = StickBreakingIGRHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_categories: int,
        num_variables: int | None = None,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
        delta: float = 1.0,
        learn_scale: bool = True,
        gain: float = 0.3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_categories=num_categories,
            num_variables=num_variables,
            temperature=temperature,
            learn_scale=learn_scale,
            gain=gain,
            device=device,
            dtype=dtype,
        )
        _checks.positive("delta", delta)
        self.delta = delta

    def _family(self) -> Callable[..., StickBreakingIGR]:
        return functools.partial(StickBreakingIGR, delta=self.delta)

    def forward(self, features: Tensor, *, allowed: None = None) -> StickBreakingIGR:
        """Turn features into a distribution; it cannot rule categories out."""
        loc, scale = self._loc_and_scale(features)
        return StickBreakingIGR(loc, scale, self.temperature, self.delta, allowed=allowed)


class SharpStickBreakingIGRHead(_StickBreakingHead):
    """From features to `igr.SharpStickBreakingIGR`; arguments as for `SoftmaxIGRHead`, but no delta.

    >>> head = SharpStickBreakingIGRHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def _family(self) -> Callable[..., SharpStickBreakingIGR]:
        return SharpStickBreakingIGR

    def forward(self, features: Tensor, allowed: Tensor | None = None) -> SharpStickBreakingIGR:
        """Turn features into a distribution; `allowed` broadcasts against ``(*, num_variables, K)``."""
        loc, scale = self._loc_and_scale(features)
        return SharpStickBreakingIGR(loc, scale, self.temperature, allowed)


class PlanarIGRHead(_GaussianHead):
    """From features to `igr.PlanarIGR`; the flow, ``head.flow``, is shared by all inputs, one for each variable.

    Its ``prior()`` shares the flow: the divergence from it is that of the Gaussians, in closed form, and where the
    flow moves the prior moves along. `target` then says what the Gaussian stands for without the flow. The paper's
    prior has no flow: ``igr.nn.Prior(igr.SoftmaxIGR, K, temperature)``, with a divergence by Monte Carlo.

    Args:
        in_features, num_categories, num_variables, temperature, delta, learn_scale, gain, device, dtype: as for
            `SoftmaxIGRHead`.
        num_flows: planar flows in a row.

    >>> head = PlanarIGRHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_categories: int,
        num_variables: int | None = None,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
        delta: float = 1.0,
        num_flows: int = 2,
        learn_scale: bool = True,
        gain: float = 0.3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_categories=num_categories,
            num_variables=num_variables,
            temperature=temperature,
            learn_scale=learn_scale,
            gain=gain,
            device=device,
            dtype=dtype,
        )
        _checks.positive("delta", delta)
        self.delta = delta
        batch = () if num_variables is None else (num_variables,)
        self.flow = PlanarFlow(num_categories - 1, num_flows, batch, device=device, dtype=dtype)

    def _family(self) -> Callable[..., PlanarIGR]:
        return _PlanarFamily(self.flow, self.delta)

    def _matched_family(self) -> Callable[..., SoftmaxIGR]:
        return functools.partial(SoftmaxIGR, delta=self.delta)

    def forward(self, features: Tensor, *, allowed: None = None) -> PlanarIGR:
        """Turn features into a distribution; it cannot rule categories out."""
        loc, scale = self._loc_and_scale(features)
        flow = self.flow.transforms()
        return PlanarIGR(loc, scale, self.temperature, flow, self.delta, allowed=allowed)


class _PlanarFamily(nn.Module):
    """Makes `igr.PlanarIGR` of one flow, which is thereby a part of a prior."""

    def __init__(self, flow: PlanarFlow, delta: float) -> None:
        super().__init__()
        self.flow = flow
        self.delta = delta

    def forward(self, loc: Tensor, scale: Tensor, temperature: float | Tensor) -> PlanarIGR:
        return PlanarIGR(loc, scale, temperature, self.flow.transforms(), self.delta)


class GumbelSoftmaxHead(Head):
    """From features to `igr.GumbelSoftmax`, with logits an affine map of them.

    Args:
        in_features, num_categories, num_variables, temperature, gain, device, dtype: as for `SoftmaxIGRHead`.

    >>> head = GumbelSoftmaxHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_categories: int,
        num_variables: int | None = None,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
        gain: float = 0.3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_categories=num_categories,
            num_variables=num_variables,
            temperature=temperature,
            gain=gain,
            device=device,
            dtype=dtype,
        )

    def _initial(self) -> Tensor:
        return torch.zeros(self.num_categories, device="cpu")

    def _split(self, parameters: Tensor) -> dict[str, Tensor]:
        return {"logits": parameters}

    def _family(self) -> Callable[..., GumbelSoftmax]:
        return GumbelSoftmax

    def forward(self, features: Tensor, allowed: Tensor | None = None) -> GumbelSoftmax:
        """Turn features into a distribution; `allowed` broadcasts against ``(*, num_variables, K)``."""
        logits = self._parameters_of(features)
        return GumbelSoftmax(self.temperature, logits=logits, allowed=allowed)


def _equal_pieces(n: int) -> Tensor:
    """Loc at scale 1 where the n breaks of a stick take 1/(n+1), 1/n, ..., 1/2 of what is left, on average."""
    nodes, weights = (
        torch.tensor(values, dtype=torch.float64, device="cpu") for values in gauss_legendre(32)
    )
    noise = 16 * nodes - 8
    weights = weights * (-0.5 * noise * noise).exp()
    weights = weights / weights.sum()
    log_share = -torch.arange(n + 1, 1, -1, dtype=torch.float64, device="cpu").log()
    loc = log_share - 0.5
    # Newton's method on the logarithm of E sigmoid(loc + noise), which is concave in loc.
    for _ in range(5):
        share = torch.sigmoid(loc.unsqueeze(-1) + noise)
        mean = (share * weights).sum(-1)
        slope = (share * (1 - share) * weights).sum(-1) / mean
        loc = loc - (mean.log() - log_share) / slope
    return loc
