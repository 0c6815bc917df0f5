"""Discrete variational autoencoders, many at once; shapes as in `igr.experiments.models.family`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from igr.experiments.models.stacked import Design, StackedModel, draw_maps

_LARGEST_TABLE = 2**20  # numbers; a table to gather from may be this large


class StackedVAE(StackedModel):
    """R autoencoders of one design.

    Encoder: D -> hidden -> P * N; decoder: K * N -> hidden reversed -> D, ReLU between affine maps. With no hidden
    widths each is one affine map. Weights are ``(R, in, out)``, biases ``(R, 1, out)``; both start uniform in
    +-1/sqrt(in), as torch's ``Linear`` does, from the run's own seed.
    """

    def __init__(self, design: Design, tensors: dict[str, Tensor], temperatures: Tensor) -> None:
        super().__init__(design, tensors, temperatures)
        self.family = design.family.bind(tensors)
        self.encoder, self.decoder = (
            [
                (tensors[f"{part}.{i}.weight"], tensors[f"{part}.{i}.bias"])
                for i in range(len(design.hidden) + 1)
            ]
            for part in ("encoder", "decoder")
        )

    @staticmethod
    def draw(design: Design, generator: torch.Generator) -> dict[str, Tensor]:
        family, N, hidden = design.family, design.num_variables, design.hidden
        outputs = design.num_pixels * design.likelihood.outputs_per_pixel
        encoder = [design.num_pixels, *hidden, family.network_outputs * N]
        decoder = [family.num_categories * N, *reversed(hidden), outputs]
        return {
            **draw_maps("encoder", encoder, generator),
            **draw_maps("decoder", decoder, generator),
            **family.initial_tensors(N, generator),
        }

    @property
    def noise_shape(self) -> tuple[int, int]:
        return self.family.noise_per_variable, self.num_variables

    def encode(self, x: Tensor) -> Tensor:
        """Parameters of the posterior, ``(R, B, P, N)``, of images ``(R, B, D)``."""
        outputs = _affine_maps(x, self.encoder).unflatten(-1, (-1, self.num_variables))
        return self.family.complete(outputs)

    def decode(self, z: Tensor) -> Tensor:
        """Outputs for the likelihood from ``(R, B, K, N)``, relaxed or one-hot."""
        return _affine_maps(z.flatten(-2), self.decoder)

    def category_decoder(self) -> Callable[[Tensor], Tensor]:
        """What gives the likelihood's outputs from categories ``(M, N)``, whole numbers below K; of a stack of one.

        The first affine map of a one-hot input is a sum of N rows of its weight, gathered rather than multiplied. The
        rows of two variables are added up beforehand, for all K^2 pairs of categories, so that half as many are
        gathered; but not where that would make a table beyond a core's cache.
        """
        (weight, bias), *rest = self.decoder
        N, K = self.num_variables, self.family.num_categories
        rows = weight.view(K, N, -1).clone()
        rows[:, 0] += bias.view(-1)
        P = N // 2 if K * K * N // 2 * rows.shape[-1] <= _LARGEST_TABLE else 0
        pairs = rows[:, None, 0 : 2 * P : 2] + rows[None, :, 1 : 2 * P : 2]
        table = torch.cat([pairs.flatten(0, 2), rows[:, 2 * P :].flatten(0, 1)])
        pair = torch.arange(P, dtype=torch.int32, device=table.device)
        single = torch.arange(N - 2 * P, dtype=torch.int32, device=table.device) + K * K * P

        def decode(categories: Tensor) -> Tensor:
            index = (categories[:, 0 : 2 * P : 2] * K + categories[:, 1 : 2 * P : 2]) * P + pair
            if len(single):
                alone = categories[:, 2 * P :] * len(single) + single
                index = torch.cat([index, alone], 1)
            x = F.embedding_bag(index, table, mode="sum")
            return _affine_maps(x.relu_().unsqueeze(0), rest).squeeze(0) if rest else x

        return decode

    def largest_output(self) -> float:
        """No output for categories is larger; infinite where that is not easily told. Of a stack of one."""
        if self.design.hidden:
            return math.inf
        ((weight, bias),) = self.decoder
        rows = weight.view(self.family.num_categories, self.num_variables, -1)
        return (rows.amax(0).sum(0) + bias.view(-1)).amax().item()

    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = self.family.sample_and_kl(self.encode(x), noise, self.temperature)
        return self.likelihood.log_prob(self.decode(z), x), kl


def _affine_maps(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for i, (weight, bias) in enumerate(layers):
        x = torch.relu(x) if i else x
        if torch.compiler.is_compiling():  # the sum becomes part of what reads it
            x = torch.bmm(x, weight) + bias
        else:
            x = torch.baddbmm(bias, x, weight)
    return x
