"""What a decoder's outputs mean: binary pixels, or grey levels in a sound way and the paper's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from igr.functional import gaussian_log_prob


class Likelihood(ABC):
    """What the decoder's outputs mean: p(x | z)."""

    outputs_per_pixel: int
    needs_binary: bool = False
    """Whether pixels must be 0 or 1."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """``log p(x | z)`` of shape ``(...)`` from outputs ``(..., D * outputs_per_pixel)`` and x ``(..., D)``."""

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        """`log_prob` of many samples ``(B, M, ...)`` for each image ``(B, D)``; may destroy `outputs`.

        No output is larger than `largest`.
        """
        return self.log_prob(outputs, x.unsqueeze(1).expand(-1, outputs.shape[1], -1))

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """The expected image ``(..., D)``, for pictures."""


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary pixels, from logits.

    Args:
        needs_binary: whether grey levels are refused. If not, each counts as the expectation over a pixel that is 1
            with that probability, as in the paper's released code on Omniglot (erratum E13).
    """

    needs_binary: bool = True
    outputs_per_pixel = 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        # Beyond the threshold softplus is the identity: at torch's own, 20, that is seen in float64.
        return torch.linalg.vecdot(outputs, x) - F.softplus(outputs, threshold=40).sum(-1)

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        on = torch.bmm(outputs, x.unsqueeze(-1)).squeeze(-1)
        # Where exp, unlike softplus, would soon overflow.
        if largest > 80 and outputs.amax() > 80:
            return on - F.softplus(outputs).sum(-1)
        # log(1 + exp(l)) in place: a third of softplus's time, its error at most one rounding of 1.
        return on - outputs.exp_().add_(1).log_().sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    r"""Independent Gaussian pixels; the outputs are D numbers a for the means, then D numbers b for the scales.

    .. math:: \mathcal N\big(x_d \mid \sigma(a_d),\; \text{floor} + \log(1 + e^{b_d})\big)

    Grey levels lie in [0, 1] and so does the mean. They are multiples of 1/255: without a floor of about that size the
    density of a pixel that is the same in all images has no bound, and the test score says nothing.

    Args:
        floor: smallest scale.
        elu: apply elu to both outputs first, as the paper's released code does. Then no mean is below
            :math:`\sigma(-1) = 0.269` and no scale below :math:`\log(1 + e^{-1}) = 0.313`, so that no image has a
            log-density above 190 for 784 pixels, and black cannot be fitted (erratum E8).
    """

    floor: float = 1 / 255
    elu: bool = False
    outputs_per_pixel = 2

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        outputs = F.elu(outputs) if self.elu else outputs
        a, b = outputs.chunk(2, dim=-1)
        return gaussian_log_prob(
            x, torch.sigmoid(a), F.softplus(b) + self.floor, validate_args=False
        )

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        a, b = (F.elu_(outputs) if self.elu else outputs).chunk(2, dim=-1)
        scale = F.softplus(b).add_(self.floor)
        residual = a.sigmoid_().sub_(x.unsqueeze(1)).div_(scale).square_().sum(-1)
        return -0.5 * residual - scale.log_().sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]

    def mean(self, outputs: Tensor) -> Tensor:
        a = outputs.chunk(2, dim=-1)[0]
        return torch.sigmoid(F.elu(a) if self.elu else a)


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
    "gaussian-paper": Gaussian(floor=1e-6, elu=True),
    "bernoulli-grey": Bernoulli(needs_binary=False),
}
"""Every decoder by its name on the command line."""
