"""What a family of relaxed categoricals is to a model, and what the families share.

Shapes: R runs, B images, N variables of K categories. Inside a model the categories come *before* the variables,
``(R, B, K, N)``, because a softmax along a last axis of ten is ten times slower than along the one before it. The
public distributions have the categories last; `Family.distribution` turns the axes round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from igr.distributions import Relaxation


@dataclass(frozen=True)
class Family(ABC):
    """A relaxed categorical posterior with its prior, over N variables of K categories.

    Source: paper, sections 2.2 and 3. ``parameters`` below are the posterior's, ``(R, B, P, N)`` with P =
    `outputs_per_variable`; ``temperature`` ``(R, 1, 1)`` broadcasts against the variables.
    """

    has_scale: ClassVar[bool]
    """Whether the network gives a location and a scale, rather than logits."""
    is_exact: ClassVar[bool]
    """Whether the recovered categorical is known exactly."""
    trains_exactly: ClassVar[bool]
    """Whether it comes with its gradient and quickly enough for training steps, which estimators need."""

    num_categories: int
    prior_temperature: float
    sticking_the_landing: bool = False
    """Whether the KL is that of one sample, the posterior's parameters detached inside log q."""
    unit_scale: bool = False
    """Whether the Gaussian's scales are held at 1, so that the network gives its locations alone."""

    @property
    @abstractmethod
    def noise_per_variable(self) -> int:
        """How many random numbers one sample of one variable takes."""

    @property
    def outputs_per_variable(self) -> int:
        """How many parameters each variable has."""
        return (2 if self.has_scale else 1) * self.noise_per_variable

    @property
    def network_outputs(self) -> int:
        """How many numbers of each variable the network gives."""
        return self.noise_per_variable if self.unit_scale else self.outputs_per_variable

    def complete(self, outputs: Tensor) -> Tensor:
        """The parameters ``(R, B, P, N)``, logarithms of scales held at 1 included, from the network's outputs."""
        return F.pad(outputs, (0, 0, 0, outputs.shape[-2])) if self.unit_scale else outputs

    @abstractmethod
    def fill_noise(self, out: Tensor, generator: torch.Generator) -> None:
        """Fill `out` with the base distribution's draws."""

    @abstractmethod
    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A relaxed sample ``(R, B, K, N)`` and KL(q || p), or its estimate, of each image ``(R, B)``."""

    @abstractmethod
    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> Relaxation:
        """The posterior as a public distribution, batch ``(R, B, N)``, events ``(K,)``."""

    def initial_tensors(self, num_variables: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Learned tensors of the family's own for one run, by name; most families have none."""
        return {}

    def bind(self, tensors: dict[str, Tensor]) -> Family:
        """The family with its own tensors, stacked, taken from among a model's."""
        return self

    def categories(self, parameters: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        """The category ``(R, B, N)`` that a sample becomes as the temperature goes to 0."""
        return winner(self.sample_and_kl(parameters, noise, temperature)[0])

    def discrete_log_probs(
        self, parameters: Tensor, temperature: Tensor | float, generator: torch.Generator
    ) -> Tensor:
        """Log-probabilities of the recovered categorical, ``(R, B, N, K)``.

        Where there is no closed form they are estimated by draws from `generator`.
        """
        return self.distribution(parameters, temperature).discrete().logits

    @abstractmethod
    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        """KL(q || p) of the relaxation for each image, ``(R, B)``: exact if there is a closed form."""


def winner(scores: Tensor) -> Tensor:
    """Index of the largest along the last axis but one; torch's argmax takes fifty times as long there."""
    if scores.shape[-2] == 2:
        return (scores[..., 1, :] > scores[..., 0, :]).long()
    return scores.max(-2).indices
