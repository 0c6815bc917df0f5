"""Priors that live in a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from igr import _checks
from igr.distributions import IGR, GumbelSoftmax, Relaxation
from igr.nn.schedules import TemperatureSchedule, describe, scheduled
from igr.priors import Target, match

__all__ = ["Prior"]


class Prior(nn.Module):
    """A relaxation that stands for a discrete distribution, as a module: ``prior()`` is the distribution.

    Its parameters are buffers, so that ``model.to(...)`` and ``state_dict`` take them along, and optimisers do not
    change them. ``head.prior()`` makes one that fits a head, tied to the head's temperature and flow.

    A prior of the head's temperature, whatever that does, leaves the divergence that of the two Gaussians. Against a
    prior of a fixed temperature, one that is annealed changes the divergence, too.

    Args:
        family: what to call with ``(loc, scale, temperature)``: `igr.SoftmaxIGR`, `igr.SharpStickBreakingIGR`, a
            ``functools.partial`` of one; or `igr.GumbelSoftmax`.
        target: number of categories K, for uniform ones; or what `igr.match` takes.
        temperature: number, tensor that broadcasts against the batch shape, or a `TemperatureSchedule`, which becomes
            a part of the module.
        device, dtype: of the buffers; torch's defaults where None.
        num_categories: K, for a target of infinitely many counts, as for `igr.match`.

    Shapes: a target ``(*batch, K)`` gives a distribution of that batch shape.

    Raises:
        ValueError: if an argument does not fit.

    >>> import igr
    >>> prior = Prior(igr.SoftmaxIGR, 10, temperature=0.1)
    >>> prior().discrete().probs[0]
    tensor(0.1000)
    >>> list(prior.state_dict())
    ['loc', 'scale']
    """

    def __init__(
        self,
        family: Callable[..., Relaxation],
        target: int | Target,
        temperature: float | Tensor | TemperatureSchedule,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_categories: int | None = None,
    ) -> None:
        if not isinstance(target, (Tensor, Distribution)):
            size = _checks.count("target", target, 2)
            target = torch.full((size,), 1 / size, device="cpu")
            device = torch.get_default_device() if device is None else device
        q = match(target, family, 1.0, num_categories=num_categories)
        if isinstance(q, GumbelSoftmax):
            parameters = {"logits": q.logits}
        elif isinstance(q, IGR):
            parameters = {"loc": q.loc, "scale": q.scale}
        else:
            raise ValueError(
                f"family: expected one with loc and scale or logits, got one that makes {type(q).__name__}; "
                "igr.nn.CountableParameters is such a module"
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self._set_up(family, parameters, temperature, device, dtype)

    @classmethod
    def _of(
        cls,
        family: Callable[..., Relaxation],
        parameters: dict[str, Tensor],
        temperature: float | Tensor | TemperatureSchedule,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Prior:
        """One of given parameters."""
        new = cls.__new__(cls)
        new._set_up(family, parameters, temperature, device, dtype)
        return new

    def _set_up(
        self,
        family: Callable[..., Relaxation],
        parameters: dict[str, Tensor],
        temperature: float | Tensor | TemperatureSchedule,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        nn.Module.__init__(self)
        self.family = family
        self.schedule = scheduled(temperature)
        self._initial = {name: value.detach() for name, value in parameters.items()}
        for name, value in self._initial.items():
            self.register_buffer(name, value.to(device, dtype, copy=True))

    def reset_parameters(self) -> None:
        """Set the parameters to what they were made with, such as after ``to_empty``."""
        for name, value in self._initial.items():
            getattr(self, name).copy_(value)

    def forward(self) -> Any:
        """The distribution, a `igr.Relaxation` of the family."""
        parameters = {name: getattr(self, name) for name in self._initial}
        return self.family(temperature=self.schedule.temperature, **parameters)

    def extra_repr(self) -> str:
        name = next(iter(self._initial))
        return f"{name}={tuple(getattr(self, name).shape)}, temperature={describe(self.schedule.temperature)}"
