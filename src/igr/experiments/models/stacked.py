"""Models of one shape, many at once: every parameter has a leading axis of runs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from igr.experiments.models.family import Family
from igr.experiments.models.likelihoods import Likelihood
from igr.experiments.streams import stream

_Model = TypeVar("_Model", bound="StackedModel")


class StackedModel(ABC):
    """R models of one shape; every parameter is a tensor with a leading axis of runs. Abstract."""

    family: Family
    likelihood: Likelihood
    num_variables: int
    tensors: dict[str, Tensor]
    temperatures: Tensor
    """One for each run, ``(R,)``."""
    temperature: Tensor
    """The same, ``(R, 1, 1)``."""

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, int]:
        """Random numbers that one sample of one image takes."""

    @abstractmethod
    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) of one relaxed sample and the KL, each ``(R, B)``: the ELBO (7) is their difference."""

    @abstractmethod
    def with_tensors(self: _Model, tensors: dict[str, Tensor], temperatures: Tensor) -> _Model:
        """The same model with other parameters."""

    def run(self: _Model, r: int) -> _Model:
        """The r-th run alone, sharing its storage."""
        tensors = {name: value[r : r + 1] for name, value in self.tensors.items()}
        return self.with_tensors(tensors, self.temperatures[r : r + 1])


def draw_stack(
    draw: Callable[[torch.Generator], dict[str, Tensor]],
    seeds: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Fresh parameters of a stack: those of run r are what `draw` makes of ``seeds[r]`` alone."""
    drawn = {seed: draw(stream(seed, "parameters")) for seed in dict.fromkeys(seeds)}
    return {
        name: torch.stack([drawn[seed][name] for seed in seeds]).to(device, dtype)
        for name in drawn[seeds[0]]
    }


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
