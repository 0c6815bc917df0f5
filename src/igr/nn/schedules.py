"""What a temperature, or the weight of a KL term, does over a training run."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from igr import _checks

__all__ = [
    "ConstantTemperature",
    "CosineTemperature",
    "ExponentialTemperature",
    "KLWarmup",
    "LearnedTemperature",
    "LinearTemperature",
    "TemperatureSchedule",
]


class TemperatureSchedule(nn.Module):
    """What a temperature does over a training run. Abstract.

    Give it to a head, or read ``schedule.temperature``; call ``schedule.step()`` once for each step of the optimiser.
    Its place is kept in its ``state_dict``, and so in that of the head.

    >>> import igr
    >>> temperature = igr.nn.ExponentialTemperature(1.0, 0.1, num_steps=100)
    >>> head = igr.nn.SoftmaxIGRHead(64, num_categories=10, temperature=temperature)
    >>> optimizer = torch.optim.Adam(head.parameters())
    >>> for step in range(100):
    ...     loss = head(torch.randn(8, 64)).rsample()[:, 0].sum()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     temperature.step()
    >>> head.temperature
    tensor(0.1000)
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

    def reset_parameters(self) -> None:
        """Begin anew with what it was made with, such as after ``to_empty``."""


class ConstantTemperature(TemperatureSchedule):
    """A temperature that stays as it is, until ``schedule.temperature = value`` sets another.

    It is what it was made with or set to: nothing of it is saved. A compiled program is compiled anew when a number
    changes, and not when a tensor of the same shape comes in its place.

    Args:
        value: positive number or tensor; `LearnedTemperature` has a parameter.

    >>> schedule = ConstantTemperature(1)
    >>> schedule.temperature
    1.0
    >>> schedule.temperature = 0.5
    >>> schedule
    ConstantTemperature(0.5)
    """

    number: float | None
    tensor: Tensor | None

    def __init__(self, value: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("tensor", None, persistent=False)
        self._set("value", value)

    def _set(self, name: str, value: float | Tensor) -> None:
        value = _number_or_tensor(name, _checks.temperature(name, not_learned(name, value)))
        is_tensor = isinstance(value, Tensor)
        self.number = None if is_tensor else value  # type: ignore[assignment]
        self.tensor = value if is_tensor else None  # type: ignore[assignment]
        self._value = value

    def reset_parameters(self) -> None:
        if self.tensor is not None:
            assign(self.tensor, self._value)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature."""
        return self.tensor if self.number is None else self.number  # type: ignore[return-value]

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        self._set("temperature", value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        # Where `schedule.temperature = parameter` leads.
        super().register_parameter(name, not_learned(name, param))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Version 0.1 saved a tensor, and no number.
        state_dict.pop(prefix + "tensor", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return describe(self.temperature)


class _Annealed(nn.Module):
    """From `start` to `end` over `num_steps`, then `end`. Abstract.

    The value is a tensor, so that a compiled program is not compiled anew when it changes.
    """

    steps: Tensor
    start: Tensor
    end: Tensor

    def __init__(self, start: float | Tensor, end: float | Tensor, num_steps: int) -> None:
        super().__init__()
        self.num_steps = _checks.count("num_steps", num_steps)
        self._ends = {"start": _own(start), "end": _own(end)}
        start, end = _as_floats(start=start, end=end)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=start.device))
        self.register_buffer("start", start)
        self.register_buffer("end", end)

    def reset_parameters(self) -> None:
        """Begin anew with what it was made with, such as after ``to_empty``."""
        self.steps.zero_()
        for name, value in self._ends.items():
            assign(getattr(self, name), value)

    def step(self) -> None:
        """Move on by one step."""
        self.steps += 1

    def _now(self) -> Tensor:
        dtype = torch.promote_types(self.start.dtype, torch.float32)
        fraction = (self.steps.to(dtype) / self.num_steps).clamp(max=1.0)
        return self._between(self.start.to(dtype), self.end.to(dtype), fraction).to(
            self.start.dtype
        )

    @abstractmethod
    def _between(self, start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
        """The value after this fraction of the way."""

    def extra_repr(self) -> str:
        return f"{describe(self.start)}, {describe(self.end)}, num_steps={self.num_steps}"


class _AnnealedTemperature(_Annealed, TemperatureSchedule):
    """A temperature that goes from `start` to `end`. Abstract."""

    def __init__(self, start: float | Tensor, end: float | Tensor, num_steps: int) -> None:
        start, end = _checks.temperature("start", start), _checks.temperature("end", end)
        super().__init__(start, end, num_steps)

    @property
    def temperature(self) -> Tensor:
        """The temperature now."""
        return self._now()


class LinearTemperature(_AnnealedTemperature):
    r"""A straight line, :math:`\tau_0 + (\tau_1 - \tau_0) f` with f the fraction of the steps done.

    Args:
        start, end: positive numbers, or tensors for a stack of runs. Numbers take the dtype of the other where that is
            a tensor, else torch's default.
        num_steps: steps from one to the other.

    Raises:
        ValueError: if an argument is out of its range.

    >>> schedule = LinearTemperature(1.0, 0.5, num_steps=2)
    >>> schedule.step()
    >>> schedule.temperature
    tensor(0.7500)
    """

    def _between(self, start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
        return torch.lerp(start, end, fraction)


class ExponentialTemperature(_AnnealedTemperature):
    r"""Falls by the same factor at each step, :math:`\tau_0^{1 - f} \tau_1^f` with f the fraction of the steps done.

    Args:
        start, end, num_steps: as for `LinearTemperature`.

    >>> schedule = ExponentialTemperature(1.0, 0.25, num_steps=2)
    >>> schedule.step()
    >>> schedule.temperature
    tensor(0.5000)
    """

    def _between(self, start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
        return start * (end / start) ** fraction


class CosineTemperature(_AnnealedTemperature):
    r"""Half a cosine, :math:`\tau_1 + (\tau_0 - \tau_1) (1 + \cos \pi f) / 2` with f the fraction of the steps done.

    Args:
        start, end, num_steps: as for `LinearTemperature`.

    >>> schedule = CosineTemperature(1.0, 0.5, num_steps=2)
    >>> schedule.step()
    >>> schedule.temperature
    tensor(0.7500)
    """

    def _between(self, start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
        return end + (start - end) * (0.5 + 0.5 * torch.cos(math.pi * fraction))


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
        self._value = _own(_checks.temperature("initial", initial))
        (value,) = _as_floats(initial=self._value)
        self.log_temperature = nn.Parameter(value.log())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        assign(self.log_temperature, self._value)
        self.log_temperature.log_()

    @property
    def temperature(self) -> Tensor:
        """The temperature now, with a gradient."""
        return self.log_temperature.exp()


class KLWarmup(_Annealed):
    r"""Weight of a KL term that grows over the first steps, :math:`\beta_0 + (\beta_1 - \beta_0) f`.

    A code that is not worth its KL yet is given up early in training; a small weight at first lets it become useful.
    What is then maximised is no bound before the weight is 1: report the plain ELBO.

    Args:
        num_steps: steps from `start` to `end`.
        start, end: non-negative numbers, or tensors for a stack of runs.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Bowman et al. (2016); Sonderby et al. (2016).

    >>> warmup = KLWarmup(num_steps=4)
    >>> log_likelihood, kl = torch.tensor(-90.0), torch.tensor(10.0)
    >>> warmup.step()
    >>> loss = -(log_likelihood - warmup.weight * kl)
    >>> warmup.weight, loss
    (tensor(0.2500), tensor(92.5000))
    """

    def __init__(
        self, num_steps: int, start: float | Tensor = 0.0, end: float | Tensor = 1.0
    ) -> None:
        super().__init__(start, end, num_steps)
        for name, value in (("start", self.start), ("end", self.end)):
            valid = (value >= 0) & value.isfinite()
            _checks.satisfies(name, value, valid, "non-negative finite values")

    @property
    def weight(self) -> Tensor:
        """The weight now."""
        return self._now()

    def forward(self) -> Tensor:
        """The weight now."""
        return self.weight

    def _between(self, start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
        return torch.lerp(start, end, fraction)


def scheduled(temperature: float | Tensor | TemperatureSchedule) -> TemperatureSchedule:
    """A schedule; of a number or a tensor, checked, one that stays there."""
    if isinstance(temperature, TemperatureSchedule):
        return temperature
    return ConstantTemperature(
        _checks.temperature("temperature", not_learned("temperature", temperature))
    )


def not_learned(name: str, value: Any) -> Any:
    """`value`, or ValueError where it is a parameter, which a module takes for one of its own, and saves."""
    if isinstance(value, nn.Parameter):
        raise ValueError(
            f"{name}: expected a number, a tensor or a schedule, got a Parameter; igr.nn.LearnedTemperature(initial) "
            "learns a temperature, keeps it positive and saves it"
        )
    return value


def assign(to: Tensor, value: float | Tensor) -> None:
    """Set a tensor to a number, or to another tensor."""
    if isinstance(value, Tensor):
        to.copy_(value.detach())
    else:
        to.fill_(value)


def _own(value: Any) -> Any:
    """The same number, or a copy of a tensor, which nobody else changes."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def describe(value: float | Tensor | None) -> str:
    """A number, or a tensor of one, shortly; other tensors by their shape."""
    if isinstance(value, Tensor):
        if value.dim() or value.is_meta:
            return f"tensor{tuple(value.shape)}"
        value = value.item()
    return f"{value:.4g}"


def _number_or_tensor(name: str, value: Any) -> float | Tensor:
    """Whole numbers as floating-point ones, in tensors too."""
    value = _checks.real(name, value)
    if not isinstance(value, Tensor):
        return float(value)
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def _as_floats(**values: float | Tensor) -> list[Tensor]:
    """Tensors of one floating-point dtype and device, which numbers take from tensors, else torch's default dtype."""
    given = [_number_or_tensor(name, value) for name, value in values.items()]
    tensors = [value for value in given if isinstance(value, Tensor)]
    dtype = torch.get_default_dtype()
    if tensors:
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    device = tensors[0].device if tensors else None
    return [torch.as_tensor(_own(value), dtype=dtype, device=device) for value in given]
