"""Models of one shape, many at once: every parameter has a leading axis of runs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from igr.experiments.models.family import Family
from igr.experiments.models.likelihoods import Likelihood
from igr.experiments.streams import stream

_Model = TypeVar("_Model", bound="StackedModel")


@dataclass(frozen=True)
class Design:
    """What all models of a stack have in common.

    Attributes:
        family: of the latent variables; their K is its own.
        likelihood: what the outputs mean.
        num_pixels: D.
        num_variables: N.
        hidden: widths of the encoder's hidden layers; the decoder's are the same in reverse.
    """

    family: Family
    likelihood: Likelihood
    num_pixels: int
    num_variables: int
    hidden: tuple[int, ...] = ()


class StackedModel(ABC):
    """R models of one design; every parameter is a tensor with a leading axis of runs. Abstract.

    Attributes:
        temperatures: one for each run, ``(R,)``; `temperature` is the same, ``(R, 1, 1)``.
    """

    def __init__(self, design: Design, tensors: dict[str, Tensor], temperatures: Tensor) -> None:
        self.design, self.tensors, self.temperatures = design, tensors, temperatures
        self.family, self.likelihood = design.family, design.likelihood
        self.num_variables = design.num_variables
        self.temperature = temperatures.view(-1, 1, 1)

    @staticmethod
    @abstractmethod
    def draw(design: Design, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh parameters of one run."""

    @classmethod
    def initialise(
        cls: type[_Model],
        design: Design,
        temperatures: Sequence[float],
        seeds: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> _Model:
        """Fresh parameters, those of run r drawn from ``seeds[r]`` alone."""
        drawn = {seed: cls.draw(design, stream(seed, "parameters")) for seed in {*seeds}}
        tensors = {
            name: torch.stack([drawn[seed][name] for seed in seeds]).to(device, dtype)
            for name in drawn[seeds[0]]
        }
        return cls(design, tensors, torch.tensor(temperatures, dtype=dtype, device=device))

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, int]:
        """Random numbers that one sample of one image takes."""

    @abstractmethod
    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) of one relaxed sample and the KL, each ``(R, B)``: the ELBO (7) is their difference."""

    def with_tensors(self: _Model, tensors: dict[str, Tensor], temperatures: Tensor) -> _Model:
        """The same model with other parameters."""
        return type(self)(self.design, tensors, temperatures)

    def run(self: _Model, r: int) -> _Model:
        """The r-th run alone, sharing its storage."""
        tensors = {name: value[r : r + 1] for name, value in self.tensors.items()}
        return self.with_tensors(tensors, self.temperatures[r : r + 1])


def draw_maps(part: str, sizes: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Fresh affine maps of one run through layers of these sizes.

    Always drawn in float32 on the CPU, so that other dtypes and devices start from the same numbers.
    """
    tensors = {}
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        for name, shape in (("weight", (n_in, n_out)), ("bias", (1, n_out))):
            value = torch.empty(shape, dtype=torch.float32)
            value.uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=generator)
            tensors[f"{part}.{i}.{name}"] = value
    return tensors
