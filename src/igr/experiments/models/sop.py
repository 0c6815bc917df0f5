r"""Structured output prediction (section 4.3): the lower half of an image from its upper half, by binary units.

.. math:: x_{\text{upper}} \to h_1 \in \{-1, 1\}^N \to h_2 \in \{-1, 1\}^N \to x_{\text{lower}}

Each arrow is one affine map to the parameters of what it points at. In training the units are relaxed: a sample
(z, 1 - z) of the family with K = 2 stands for 2z - 1. There is no KL term.

Differs from the released code: the temperature is applied, the scale is learned unless it is asked to be held at 1, and
stick-breaking is applied once (erratum E9).
"""

from __future__ import annotations

import torch
from torch import Tensor

from igr.experiments.models.stacked import Design, StackedModel, draw_maps

_LAYERS = ("first", "second", "output")


class StackedSOP(StackedModel):
    """R networks of one design, whose hidden layers are the units alone."""

    def __init__(self, design: Design, tensors: dict[str, Tensor], temperatures: Tensor) -> None:
        super().__init__(design, tensors, temperatures)
        self.maps = [(tensors[f"{name}.0.weight"], tensors[f"{name}.0.bias"]) for name in _LAYERS]
        self.units = [
            design.family.bind(
                {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(name)}
            )
            for name in _LAYERS[:2]
        ]

    @staticmethod
    def draw(design: Design, generator: torch.Generator) -> dict[str, Tensor]:
        family, N = design.family, design.num_variables
        upper, P = design.num_pixels // 2, family.network_outputs
        outputs = (design.num_pixels - upper) * design.likelihood.outputs_per_pixel
        drawn: dict[str, Tensor] = {}
        for name, size in zip(_LAYERS, [(upper, P * N), (N, P * N), (N, outputs)], strict=True):
            drawn |= draw_maps(name, size, generator)
        for name in _LAYERS[:2]:
            own = family.initial_tensors(N, generator)
            drawn |= {f"{name}.{key}": value for key, value in own.items()}
        return drawn

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Random numbers that one image takes: both layers' side by side."""
        return self.family.noise_per_variable, 2 * self.num_variables

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Upper and lower half of images ``(..., D)``: rows are stored one after the other."""
        upper = self.design.num_pixels // 2
        return x[..., :upper], x[..., upper:]

    def parameters_of(self, layer: int, inputs: Tensor) -> Tensor:
        """Parameters of a layer's units, ``(R, B, P, N)``, from what comes before it, ``(R, B, n)``."""
        weight, bias = self.maps[layer]
        outputs = torch.baddbmm(bias, inputs, weight).unflatten(-1, (-1, self.num_variables))
        return self.family.complete(outputs)

    def decode(self, units: Tensor) -> Tensor:
        """Outputs for the likelihood from the second layer's units ``(R, B, N)``."""
        weight, bias = self.maps[-1]
        return torch.baddbmm(bias, units, weight)

    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log p(lower half | one relaxed sample) and a KL of zero, each ``(R, B)``."""
        inputs, lower = self.halves(x)
        for layer, (family, some) in enumerate(zip(self.units, noise.chunk(2, -1), strict=True)):
            parameters = self.parameters_of(layer, inputs)
            z, _ = family.sample_and_kl(parameters, some, self.temperature)
            inputs = 2 * z[..., 0, :] - 1
        log_likelihood = self.likelihood.log_prob(self.decode(inputs), lower)
        return log_likelihood, torch.zeros_like(log_likelihood)

    def hard_units(self, layer: int, parameters: Tensor, noise: Tensor) -> Tensor:
        """Units in {-1, 1}, ``(R, B, N)``: what relaxed samples become as the temperature goes to 0."""
        categories = self.units[layer].categories(parameters, noise, self.temperature)
        return 1 - 2 * categories.to(parameters.dtype)

    def outputs_of_draws(self, x: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Outputs for the likelihood of the lower half, ``(samples, ...)``, of one image ``(D,)`` by a stack of one."""
        first = self.parameters_of(0, self.halves(x)[0].view(1, 1, -1))
        Q, N = self.family.noise_per_variable, self.num_variables
        noise = torch.empty(2, 1, samples, Q, N, dtype=x.dtype, device=x.device)
        self.family.fill_noise(noise, generator)
        units = self.hard_units(0, first, noise[0])
        units = self.hard_units(1, self.parameters_of(1, units), noise[1])
        return self.decode(units).squeeze(0)
