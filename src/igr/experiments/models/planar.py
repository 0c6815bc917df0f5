"""Nested planar flows as a family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import igr
from igr import functional
from igr.experiments.models.family import Family
from igr.experiments.models.gaussian import SoftmaxIGRFamily

_DRAWS = 1000  # of each image's code, to estimate its recovered distribution
_ADDED = 1e-6  # to each frequency, so that no category is ruled out
_AT_ONCE = 2**19  # numbers drawn at once: those stay in the caches


@dataclass(frozen=True)
class PlanarFamily(SoftmaxIGRFamily):
    r"""IGR-Planar: two nested planar flows, one pair for each variable and shared by all images, then the softmax++.

    The flows are learned and the posterior's alone; the prior is IGR-I's, so the KL is estimated by one sample, in y:
    :math:`\log \mathcal N(y_0) - \sum \log |\det J_f| - \log p(f(y_0))`. They start near the identity.

    Differs from the released code: the constraint that keeps a flow invertible (erratum E12).
    """

    is_exact = False
    trains_exactly = False
    num_flows = 2

    flows: Sequence[tuple[Tensor, ...]] = field(default=(), compare=False, repr=False)
    """u, w ``(R, 1, K-1, N)`` and b ``(R, 1, 1, N)`` of `igr.functional.planar`, the same for all images."""

    def initial_tensors(self, num_variables: int, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = {}
        for i in range(self.num_flows):
            w = torch.randn(1, self.num_categories - 1, num_variables, generator=generator)
            w /= w.norm(dim=-2, keepdim=True)
            noise = torch.randn(w.shape, generator=generator)
            tensors[f"flow.{i}.w"] = w
            # With w'u = log(e - 1) and w'w = 1 the flow is the identity.
            tensors[f"flow.{i}.u"] = math.log(math.e - 1) * w + 0.01 * noise
            tensors[f"flow.{i}.b"] = torch.zeros(1, 1, num_variables)
        return tensors

    def bind(self, tensors: dict[str, Tensor]) -> Family:
        flows = [
            tuple(tensors[f"flow.{i}.{name}"] for name in "uwb") for i in range(self.num_flows)
        ]
        return replace(self, flows=flows)

    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, log_ratio = self._sample(parameters, noise)
        return self.relax(y, temperature), log_ratio

    def _sample(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """y and log q(y) - log p(y), summed over variables."""
        loc, scale = self.loc_and_scale(parameters)
        path = [torch.addcmul(loc, scale, noise)]
        log_q = functional.gaussian_log_prob(path[0], loc, scale, dim=-2, validate_args=False)
        for u, w, b in self.flows:
            y, log_det = functional.planar(
                path[-1], u, w, b.squeeze(-2), dim=-2, validate_args=False
            )
            path.append(y)
            log_q = log_q - log_det
        if self.sticking_the_landing:
            log_q = self._sticking_log_q(path, loc.detach(), scale.detach())
        log_p = functional.gaussian_log_prob(
            path[-1], self.prior_loc_like(loc), dim=-2, validate_args=False
        )
        return path[-1], (log_q - log_p).sum(-1)

    def _sticking_log_q(self, path: list[Tensor], loc: Tensor, scale: Tensor) -> Tensor:
        """log q at the end of a path through the flows, by that end alone: all parameters are detached."""
        y, total = path[-1], torch.zeros(())
        for flow, near in zip(reversed(self.flows), reversed(path[:-1]), strict=True):
            u, w, b = (parameter.detach() for parameter in flow)
            b = b.squeeze(-2)
            y = functional.planar_inverse(
                y, u, w, b, dim=-2, near=near.detach(), validate_args=False
            )
            total = total + functional.planar(y, u, w, b, dim=-2, validate_args=False)[1]
        return functional.gaussian_log_prob(y, loc, scale, dim=-2, validate_args=False) - total

    def categories_of(self, y: Tensor) -> Tensor:
        for u, w, b in self.flows:
            y, _ = functional.planar(y, u, w, b.squeeze(-2), dim=-2, validate_args=False)
        return super().categories_of(y)

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.PlanarIGR:
        loc, scale = self.loc_and_scale(parameters)
        flows = [igr.Planar(u.mT, w.mT, b.squeeze(-2)) for u, w, b in self.flows]
        return igr.PlanarIGR(loc.mT, scale.mT, temperature, flows, validate_args=False)

    def discrete_log_probs(
        self, parameters: Tensor, temperature: Tensor | float, generator: torch.Generator
    ) -> Tensor:
        """By 1,000 draws, the same noise for every image, 1e-6 added to each frequency."""
        loc, scale = self.loc_and_scale(parameters)
        noise = torch.empty(_DRAWS, 1, 1, *loc.shape[-2:], dtype=loc.dtype, device=loc.device)
        self.fill_noise(noise, generator)
        counts = torch.zeros_like(loc[..., 0, :, None].expand(-1, -1, -1, self.num_categories))
        one = torch.ones_like(counts[..., :1])
        for some in noise.split(max(1, _AT_ONCE // loc.numel())):
            drawn = self.categories_of(torch.addcmul(loc, scale, some)).movedim(0, -1)
            counts.scatter_add_(-1, drawn, one.expand(drawn.shape))
        weights = counts / _DRAWS + _ADDED
        return (weights / weights.sum(-1, keepdim=True)).log()

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        loc, _ = self.loc_and_scale(parameters)
        noise = torch.randn(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
        return self._sample(parameters, noise)[1].mean(0)
