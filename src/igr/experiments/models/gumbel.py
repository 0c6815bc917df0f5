"""The Gumbel-Softmax as a family."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import igr
from igr import functional
from igr.experiments.models.family import Family, winner


@dataclass(frozen=True)
class GumbelSoftmaxFamily(Family):
    r"""Gumbel-Softmax (5), with the Monte Carlo KL (9) to a uniform one of its own temperature.

    Both densities are taken of log z, where low temperatures stay finite. The posterior's, at its own sample, is a
    function of the noise alone, because logits only shift log z: its mean stands for it, and all of the KL's gradient
    comes through the prior.
    """

    has_scale = False
    is_exact = True
    trains_exactly = True

    @property
    def noise_per_variable(self) -> int:
        return self.num_categories

    def fill_noise(self, out: Tensor, generator: torch.Generator) -> None:
        # Gumbel draws from uniforms; torch's exponential_ is several times slower. Zero can be drawn, one cannot.
        tiny = torch.finfo(out.dtype).tiny
        out.uniform_(generator=generator).clamp_min_(tiny).log_().neg_().log_().neg_()

    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = parameters + noise
        z = functional.tempered_softmax(scores, temperature, dim=-2)
        # Up to a constant, which is all that is needed.
        log_z = functional.temper(scores, temperature, dim=-2)
        log_p = functional.exp_concrete_log_prob(
            log_z, 0.0, self.prior_temperature, dim=-2, validate_args=False
        )
        if self.sticking_the_landing:
            logits = parameters.detach()
            log_q = functional.exp_concrete_log_prob(
                log_z, logits, temperature, dim=-2, validate_args=False
            )
        else:
            log_q = self._mean_log_q(temperature)
        return z, (log_q - log_p).sum(-1)

    def categories(self, parameters: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        return winner(parameters + noise)

    def _mean_log_q(self, temperature: Tensor) -> Tensor:
        r"""Mean of the log-density of log z: exp(-noise) is exponential, and the sum of K of them Gamma(K, 1)."""
        K = self.num_categories
        harmonic = sum(1 / k for k in range(1, K))
        return (K - 1) * temperature.log() + (math.lgamma(K) - K * harmonic)

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.GumbelSoftmax:
        return igr.GumbelSoftmax(temperature, logits=parameters.mT, validate_args=False)

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        q = self.distribution(parameters, temperature)
        p = igr.GumbelSoftmax(
            self.prior_temperature, logits=torch.zeros_like(parameters.mT), validate_args=False
        )
        return igr.monte_carlo_kl(q, p, num_samples=num_samples).sum(-1)
