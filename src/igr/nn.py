r"""Modules: heads that turn features into a distribution, a learnable planar flow, temperature schedules.

A head is one affine map, ``(*, in_features)`` to the parameters of `num_variables` relaxed categorical variables, and
hands back a distribution of batch shape ``(*, num_variables)`` and event shape ``(num_categories,)``. The scale is
:math:`\sigma = \exp(s)` of an output s of that map. Biases start such that, for features of zero, the variables are
close to uniform with scale 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from igr import _checks
from igr.countable import CountableParameters
from igr.distributions import (
    IGR,
    GumbelSoftmax,
    PlanarIGR,
    Relaxation,
    SharpStickBreakingIGR,
    SoftmaxIGR,
    StickBreakingIGR,
)
from igr.transforms import Planar

__all__ = [
    "ConstantTemperature",
    "CosineTemperature",
    "CountableParameters",
    "ExponentialTemperature",
    "GumbelSoftmaxHead",
    "Head",
    "LearnedTemperature",
    "LinearTemperature",
    "PlanarFlow",
    "PlanarIGRHead",
    "SharpStickBreakingIGRHead",
    "SoftmaxIGRHead",
    "StickBreakingIGRHead",
    "TemperatureSchedule",
]


class TemperatureSchedule(nn.Module):
    """What a temperature does over a training run. Abstract.

    Read ``schedule.temperature``, or call the schedule; call ``schedule.step()`` once for each step of the optimiser.
    Its place is kept in its ``state_dict``.
    """

    @property
    @abstractmethod
    def temperature(self) -> float | Tensor:
        """The temperature now."""

    def forward(self) -> float | Tensor:
        """The temperature now."""
        return self.temperature

    def step(self) -> None:
        """Move on by one step."""


class ConstantTemperature(TemperatureSchedule):
    """A temperature that stays as it is.

    Args:
        value: positive number or tensor.

    >>> ConstantTemperature(0.5).temperature
    0.5
    """

    def __init__(self, value: float | Tensor) -> None:
        super().__init__()
        _checks.positive("value", value)
        self.number = None if isinstance(value, Tensor) else value
        self.register_buffer("tensor", value if isinstance(value, Tensor) else None)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature."""
        return self.tensor if self.number is None else self.number  # type: ignore[return-value]


class _Annealed(TemperatureSchedule):
    """From `start` to `end` over `num_steps`, then `end`. Abstract.

    The temperature is a tensor, so that a compiled program is not compiled anew when it changes.
    """

    steps: Tensor
    start: Tensor
    end: Tensor

    def __init__(self, start: float | Tensor, end: float | Tensor, num_steps: int) -> None:
        super().__init__()
        _checks.positive("start", start)
        _checks.positive("end", end)
        if num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
        self.num_steps = num_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("start", torch.as_tensor(start))
        self.register_buffer("end", torch.as_tensor(end))

    @property
    def temperature(self) -> Tensor:
        """The temperature now."""
        return self._between((self.steps / self.num_steps).clamp(max=1.0))

    @abstractmethod
    def _between(self, fraction: Tensor) -> Tensor:
        """The temperature after this fraction of the way."""

    def step(self) -> None:
        self.steps += 1

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}"


class LinearTemperature(_Annealed):
    r"""A straight line, :math:`\tau_0 + (\tau_1 - \tau_0) f` with f the fraction of the steps done.

    Args:
        start, end: positive numbers, or tensors for a stack of runs.
        num_steps: steps from one to the other.

    >>> schedule = LinearTemperature(1.0, 0.5, num_steps=2)
    >>> schedule.step()
    >>> schedule.temperature
    tensor(0.7500)
    """

    def _between(self, fraction: Tensor) -> Tensor:
        return torch.lerp(self.start, self.end, fraction.to(self.start.dtype))


class ExponentialTemperature(_Annealed):
    r"""Falls by the same factor at each step, :math:`\tau_0^{1 - f} \tau_1^f` with f the fraction of the steps done.

    Args:
        start, end, num_steps: as for `LinearTemperature`.

    >>> schedule = ExponentialTemperature(1.0, 0.25, num_steps=2)
    >>> schedule.step()
    >>> schedule.temperature
    tensor(0.5000)
    """

    def _between(self, fraction: Tensor) -> Tensor:
        return self.start * (self.end / self.start) ** fraction


class CosineTemperature(_Annealed):
    r"""Half a cosine, :math:`\tau_1 + (\tau_0 - \tau_1) (1 + \cos \pi f) / 2` with f the fraction of the steps done.

    Args:
        start, end, num_steps: as for `LinearTemperature`.

    >>> schedule = CosineTemperature(1.0, 0.5, num_steps=2)
    >>> schedule.step()
    >>> schedule.temperature
    tensor(0.7500)
    """

    def _between(self, fraction: Tensor) -> Tensor:
        return self.end + (self.start - self.end) * (0.5 + 0.5 * torch.cos(math.pi * fraction))


class LearnedTemperature(TemperatureSchedule):
    r"""A parameter, :math:`\tau = e^s`, positive by construction; ``step()`` does nothing.

    In `igr.SoftmaxIGR` with a closed-form KL a learned temperature is a common factor of loc and scale, seen against
    the prior's; elsewhere it is a parameter of its own.

    Args:
        initial: positive number, or tensor for a temperature of each element of the batch.

    >>> LearnedTemperature(1.0).temperature
    tensor(1., grad_fn=<ExpBackward0>)
    """

    def __init__(self, initial: float | Tensor = 1.0) -> None:
        super().__init__()
        _checks.positive("initial", initial)
        self.log_temperature = nn.Parameter(torch.as_tensor(initial).log())

    @property
    def temperature(self) -> Tensor:
        """The temperature now, with a gradient."""
        return self.log_temperature.exp()


class PlanarFlow(nn.Module):
    r"""Nested planar flows on R^(K-1) with learnable parameters, the identity to begin with, nearly.

    Each is :math:`f(y) = y + \hat u \tanh(w^\top y + b)`, see `igr.functional.planar`; it starts at
    :math:`u = \log(e - 1) w / (w^\top w)`, where :math:`\hat u = 0`, and a little noise.

    Args:
        num_coordinates: K-1.
        num_flows: how many are nested; the paper has 2.
        batch_shape: of the parameters, such as ``(num_variables,)``: one flow for each variable, shared by all inputs.

    Shape: ``(*, *batch_shape, K-1)`` to the same.

    Source: paper, section 3.1; Rezende and Mohamed (2015).

    >>> flow = PlanarFlow(9, batch_shape=(20,))
    >>> flow(torch.zeros(100, 20, 9)).shape
    torch.Size([100, 20, 9])
    >>> z = PlanarIGR(torch.zeros(100, 20, 9), torch.ones(9), 0.1, flow.transforms()).rsample()
    """

    def __init__(
        self, num_coordinates: int, num_flows: int = 2, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__()
        _at_least("num_coordinates", num_coordinates, 1)
        _at_least("num_flows", num_flows, 1)
        shape = (num_flows, *batch_shape, num_coordinates)
        self.u = nn.Parameter(torch.empty(shape))
        self.w = nn.Parameter(torch.empty(shape))
        self.b = nn.Parameter(torch.empty(shape[:-1]))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew: w of norm 1 in a random direction, a flow near the identity."""
        self.w.normal_()
        self.w.div_(self.w.norm(dim=-1, keepdim=True))
        self.u.normal_(std=0.01).add_(self.w, alpha=math.log(math.e - 1))
        self.b.zero_()

    def transforms(self) -> list[Planar]:
        """The flows, the first of them first, as transforms for `igr.PlanarIGR` or `igr.Compose`."""
        return [Planar(u, w, b) for u, w, b in zip(self.u, self.w, self.b, strict=True)]

    def forward(self, y: Tensor) -> Tensor:
        """Apply the flows to y."""
        for transform in self.transforms():
            y = transform(y)
        return y

    def extra_repr(self) -> str:
        num_flows, *batch_shape, num_coordinates = self.u.shape
        return f"{num_coordinates}, num_flows={num_flows}, batch_shape={tuple(batch_shape)}"


class Head(nn.Module):
    """One affine map from features to the parameters of relaxed categorical variables. Abstract.

    Args:
        in_features: size of the features.
        num_variables: number of categorical variables.
        num_categories: K.
        temperature: number, tensor that broadcasts against ``(*, num_variables)``, or a schedule, which becomes a part
            of the module.
        num_parameters: outputs for each variable.
    """

    def __init__(
        self,
        in_features: int,
        num_variables: int,
        num_categories: int,
        temperature: float | Tensor | TemperatureSchedule,
        num_parameters: int,
    ) -> None:
        super().__init__()
        _at_least("in_features", in_features, 1)
        _at_least("num_variables", num_variables, 1)
        _at_least("num_categories", num_categories, 2)
        if not isinstance(temperature, TemperatureSchedule):
            _checks.positive("temperature", temperature)
            temperature = ConstantTemperature(temperature)
        self.num_variables = num_variables
        self.num_categories = num_categories
        self.schedule = temperature
        self.affine = nn.Linear(in_features, num_variables * num_parameters)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as ``torch.nn.Linear`` does; biases give nearly uniform variables."""
        self.affine.reset_parameters()
        with torch.no_grad():
            self.affine.bias.view(self.num_variables, -1).copy_(self._initial())

    @abstractmethod
    def _initial(self) -> Tensor:
        """Parameters of one variable for features of zero."""

    @property
    def temperature(self) -> float | Tensor:
        """The temperature now."""
        return self.schedule.temperature

    def _parameters_of(self, features: Tensor) -> Tensor:
        return self.affine(features).unflatten(-1, (self.num_variables, -1))

    @abstractmethod
    def forward(self, features: Tensor) -> Relaxation:
        """Turn features ``(*, in_features)`` into a distribution of batch shape ``(*, num_variables)``."""


class _GaussianHead(Head):
    """A head whose outputs are loc and log scale. Abstract."""

    def __init__(
        self,
        in_features: int,
        num_variables: int,
        num_categories: int,
        temperature: float | Tensor | TemperatureSchedule = 0.1,
    ) -> None:
        super().__init__(
            in_features, num_variables, num_categories, temperature, 2 * (num_categories - 1)
        )

    def _initial(self) -> Tensor:
        # All K have the same probability of being the largest: P(K) = Phi(-loc)^(K-1) = 1/K.
        n = self.num_categories - 1
        loc = -torch.special.ndtri(torch.tensor((n + 1.0) ** (-1 / n), dtype=torch.float64))
        return torch.cat([loc.expand(n), torch.zeros(n)])

    def _loc_and_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self._parameters_of(features).chunk(2, -1)
        return loc, log_scale.exp()

    @abstractmethod
    def forward(self, features: Tensor) -> IGR:
        """Turn features ``(*, in_features)`` into a distribution of batch shape ``(*, num_variables)``."""


class SoftmaxIGRHead(_GaussianHead):
    r"""From features to `igr.SoftmaxIGR`, with loc and log scale an affine map of them.

    Args:
        in_features: size of the features.
        num_variables: number of categorical variables.
        num_categories: K.
        temperature: number, tensor that broadcasts against ``(*, num_variables)``, or a `TemperatureSchedule`, which
            becomes a part of the module.
        delta: as for `igr.SoftmaxIGR`.

    Raises:
        ValueError: if a size is too small, or `temperature` or `delta` not positive.

    >>> head = SoftmaxIGRHead(64, num_variables=20, num_categories=10)
    >>> q = head(torch.randn(100, 64))
    >>> q.batch_shape, q.event_shape
    (torch.Size([100, 20]), torch.Size([10]))
    """

    def __init__(
        self,
        in_features: int,
        num_variables: int,
        num_categories: int,
        temperature: float | Tensor | TemperatureSchedule = 0.1,
        delta: float = 1.0,
    ) -> None:
        super().__init__(in_features, num_variables, num_categories, temperature)
        _checks.positive("delta", delta)
        self.delta = delta

    def forward(self, features: Tensor, allowed: Tensor | None = None) -> SoftmaxIGR:
        """Turn features into a distribution; `allowed` broadcasts against ``(*, num_variables, K)``."""
        loc, scale = self._loc_and_scale(features)
        return SoftmaxIGR(loc, scale, self.temperature, self.delta, allowed)


class _StickBreakingHead(_GaussianHead):
    """A head whose loc starts where the stick is broken into equal pieces. Abstract."""

    def _initial(self) -> Tensor:
        n = self.num_categories - 1
        return torch.cat([-torch.arange(n, 0, -1.0).log(), torch.zeros(n)])


class StickBreakingIGRHead(_StickBreakingHead):
    """From features to `igr.StickBreakingIGR` (18); arguments as for `SoftmaxIGRHead`.

    >>> head = StickBreakingIGRHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_variables: int,
        num_categories: int,
        temperature: float | Tensor | TemperatureSchedule = 0.1,
        delta: float = 1.0,
    ) -> None:
        super().__init__(in_features, num_variables, num_categories, temperature)
        _checks.positive("delta", delta)
        self.delta = delta

    def forward(self, features: Tensor) -> StickBreakingIGR:
        """Turn features into a distribution."""
        loc, scale = self._loc_and_scale(features)
        return StickBreakingIGR(loc, scale, self.temperature, self.delta)


class SharpStickBreakingIGRHead(_StickBreakingHead):
    """From features to `igr.SharpStickBreakingIGR`; arguments as for `SoftmaxIGRHead`.

    >>> head = SharpStickBreakingIGRHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def forward(self, features: Tensor, allowed: Tensor | None = None) -> SharpStickBreakingIGR:
        """Turn features into a distribution; `allowed` broadcasts against ``(*, num_variables, K)``."""
        loc, scale = self._loc_and_scale(features)
        return SharpStickBreakingIGR(loc, scale, self.temperature, allowed)


class PlanarIGRHead(_GaussianHead):
    """From features to `igr.PlanarIGR`; the flow is shared by all inputs, one for each variable.

    Args:
        in_features, num_variables, num_categories, temperature, delta: as for `SoftmaxIGRHead`.
        num_flows: planar flows in a row.

    >>> head = PlanarIGRHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_variables: int,
        num_categories: int,
        temperature: float | Tensor | TemperatureSchedule = 0.1,
        delta: float = 1.0,
        num_flows: int = 2,
    ) -> None:
        super().__init__(in_features, num_variables, num_categories, temperature)
        _checks.positive("delta", delta)
        self.delta = delta
        self.flow = PlanarFlow(num_categories - 1, num_flows, (num_variables,))

    def forward(self, features: Tensor) -> PlanarIGR:
        """Turn features into a distribution."""
        loc, scale = self._loc_and_scale(features)
        return PlanarIGR(loc, scale, self.temperature, self.flow.transforms(), self.delta)


class GumbelSoftmaxHead(Head):
    """From features to `igr.GumbelSoftmax`, with logits an affine map of them.

    Args:
        in_features, num_variables, num_categories, temperature: as for `SoftmaxIGRHead`.

    >>> head = GumbelSoftmaxHead(64, num_variables=20, num_categories=10)
    >>> head(torch.randn(100, 64)).rsample().shape
    torch.Size([100, 20, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_variables: int,
        num_categories: int,
        temperature: float | Tensor | TemperatureSchedule = 0.5,
    ) -> None:
        super().__init__(in_features, num_variables, num_categories, temperature, num_categories)

    def _initial(self) -> Tensor:
        return torch.zeros(self.num_categories)

    def forward(self, features: Tensor, allowed: Tensor | None = None) -> GumbelSoftmax:
        """Turn features into a distribution; `allowed` broadcasts against ``(*, num_variables, K)``."""
        return GumbelSoftmax(
            self.temperature, logits=self._parameters_of(features), allowed=allowed
        )


def _at_least(name: str, value: int, smallest: int) -> None:
    if not isinstance(value, int) or value < smallest:
        raise ValueError(f"{name}: expected a whole number of at least {smallest}, got {value!r}")
