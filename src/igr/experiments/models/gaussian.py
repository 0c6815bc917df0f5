"""Families that map Gaussian noise onto the simplex: IGR-I, and both ways of breaking a stick."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import igr
from igr import functional
from igr.discrete import uniform_loc
from igr.experiments.models.family import Family, winner


@lru_cache(maxsize=32)
def _matched(form: Any, num_categories: int, reached: int) -> tuple[float, ...]:
    """Locations at scale 1 for which the first `reached` categories of hard samples are equally frequent."""
    target = torch.zeros(num_categories, dtype=torch.float64)
    target[:reached] = 1 / reached
    return tuple(igr.match(target, form, temperature=1.0).loc.tolist())


def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant ``(K-1, 1)``."""
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)


_kept_column = lru_cache(maxsize=32)(_column)


@dataclass(frozen=True)
class GaussianFamily(Family):
    r"""Gaussian noise through a map onto the simplex. Abstract.

    The prior has scale 1 and the locations at which its hard samples are uniform (Prop. 2, or its like). It shares map
    and temperature with the posterior, so that the KL is that of the Gaussians (13).
    """

    has_scale = True
    is_exact = True
    trains_exactly = False
    form: ClassVar[Any]
    """The public distribution, a subclass of `igr.IGR`."""
    last: ClassVar[bool] = True
    """Whether the last category can be recovered."""

    prior_loc: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior_loc", self._uniform())

    def _uniform(self) -> tuple[float, ...]:
        """Locations of the prior: those of a uniform distribution over what can be recovered."""
        K = self.num_categories
        return _matched(self.form, K, K if self.last else K - 1)

    @property
    def noise_per_variable(self) -> int:
        return self.num_categories - 1

    def fill_noise(self, out: Tensor, generator: torch.Generator) -> None:
        out.normal_(generator=generator)

    @abstractmethod
    def relax(self, y: Tensor, temperature: Tensor) -> Tensor:
        """The map: z ``(..., K, N)`` of Gaussian y ``(..., K-1, N)``."""

    @abstractmethod
    def categories_of(self, y: Tensor) -> Tensor:
        """The category ``(..., N)`` that y stands for as the temperature goes to 0."""

    def loc_and_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The Gaussian's parameters, ``(..., K-1, N)`` each."""
        loc, log_scale = parameters.chunk(2, dim=-2)
        return loc, log_scale.exp()

    def prior_loc_like(self, x: Tensor) -> Tensor:
        """Locations of the prior, ``(K-1, 1)``."""
        # Kept where it is used, so that no step copies it to a device; a compiler has constants of its own.
        column = _column if torch.compiler.is_compiling() else _kept_column
        return column(self.prior_loc, x.dtype, x.device)

    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        loc, scale = self.loc_and_scale(parameters)
        y, prior_loc = torch.addcmul(loc, scale, noise), self.prior_loc_like(loc)
        if self.sticking_the_landing:
            log_q = functional.gaussian_log_prob(
                y, loc.detach(), scale.detach(), dim=-2, validate_args=False
            )
            kl = (
                log_q - functional.gaussian_log_prob(y, prior_loc, dim=-2, validate_args=False)
            ).sum(-1)
        else:
            kl = self._kl(loc, scale)
        return self.relax(y, temperature), kl

    def _kl(self, loc: Tensor, scale: Tensor) -> Tensor:
        # Summand by summand: the whole is refused for scales that are no numbers, and a run that diverged has such,
        # which must leave the others of its stack alone.
        terms = functional.gaussian_kl_terms(loc, scale, self.prior_loc_like(loc), 1.0)
        return terms.sum((-2, -1))

    def categories(self, parameters: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        return self.categories_of(torch.addcmul(*self.loc_and_scale(parameters), noise))

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.IGR:
        loc, scale = self.loc_and_scale(parameters)
        return self.form(loc.mT, scale.mT, temperature, validate_args=False)

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        return self._kl(*self.loc_and_scale(parameters))


@dataclass(frozen=True)
class SoftmaxIGRFamily(GaussianFamily):
    """IGR-I: the softmax++ (15)."""

    form = igr.SoftmaxIGR
    trains_exactly = True

    def _uniform(self) -> tuple[float, ...]:
        n = self.num_categories - 1
        return (uniform_loc(n + 1),) * n

    def relax(self, y: Tensor, temperature: Tensor) -> Tensor:
        return functional.softmax_plus_plus(y, temperature, dim=-2, validate_args=False)

    def categories_of(self, y: Tensor) -> Tensor:
        if y.shape[-2] == 1:  # what `winner` gives, without the passes that padding takes
            return (y.squeeze(-2) < 0).long()
        return winner(F.pad(y, (0, 0, 0, 1)))


class _StickFamily(GaussianFamily):
    """A stick that is broken. Abstract."""

    def discrete_log_probs(
        self, parameters: Tensor, temperature: Tensor | float, generator: torch.Generator
    ) -> Tensor:
        """Exact but for scales below 0.1, which count as 0.1; NaN for a run that diverged."""
        finite = torch.cat(self.loc_and_scale(parameters), -2).isfinite().all(-2)
        # The time grows with the cube of the inverse of a stick's smallest scale.
        loc, log_scale = parameters.where(finite.unsqueeze(-2), 0.0).chunk(2, dim=-2)
        kept = torch.cat([loc, log_scale.clamp_min(math.log(0.1))], -2)
        log_probs = super().discrete_log_probs(kept, temperature, generator)
        return log_probs.where(finite.unsqueeze(-1), math.nan)


@dataclass(frozen=True)
class StickBreakingFamily(_StickFamily):
    """IGR-SB: stick-breaking, then the softmax++ (18).

    Every weight of the stick is positive, so the last category is never recovered (erratum E5): the prior's hard
    samples are uniform over the K-1 others.
    """

    form = igr.StickBreakingIGR
    last = False

    def relax(self, y: Tensor, temperature: Tensor) -> Tensor:
        return functional.stick_breaking_softmax_plus_plus(
            y, temperature, dim=-2, validate_args=False
        )

    def categories_of(self, y: Tensor) -> Tensor:
        return winner(functional.log_stick_breaking(y, dim=-2)[..., :-1, :])


@dataclass(frozen=True)
class SharpStickBreakingFamily(_StickFamily):
    """IGR-SB mended: stick-breaking, then all K weights sharpened; at K = 2 it is IGR-I."""

    form = igr.SharpStickBreakingIGR

    def relax(self, y: Tensor, temperature: Tensor) -> Tensor:
        return functional.sharp_stick_breaking(y, temperature, dim=-2, validate_args=False)

    def categories_of(self, y: Tensor) -> Tensor:
        return winner(functional.log_stick_breaking(y, dim=-2))
