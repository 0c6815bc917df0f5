"""How good a trained model is as a *discrete* one: bounds on the test log-likelihood."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import igr
from igr.experiments.models import StackedVAE, stream

__all__ = ["Evaluation", "ImageScores", "draw_categories", "evaluate", "score_images"]

_ROWS = (
    512  # samples decoded at once: the outputs of so many, and the decoder, stay in a core's cache
)
_DRAWS = 2**22  # categories drawn at once, which bounds the memory that drawing takes


@dataclass(frozen=True)
class Evaluation:
    """Means over the images, in nats per image."""

    bound: float
    """Importance-weighted bound of the recovered discrete model."""
    bound_error: float
    """Standard error of `bound` over the images."""
    released_estimate: float
    """What the paper's released code reports; not a bound (erratum E6)."""
    elbo: float
    """ELBO of the recovered discrete model."""
    kl: float
    """KL of the recovered categorical to the uniform prior, exact."""
    relaxed_kl: float
    """KL of the relaxation to its prior, which training pays; at least `kl` if it has the prior's temperature."""
    samples: int
    images: int
    seconds: float

    def to_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ImageScores:
    """The same for each image, ``(n,)``."""

    bound: Tensor
    released_estimate: Tensor
    elbo: Tensor
    kl: Tensor
    relaxed_kl: Tensor


def draw_categories(log_probs: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Independent draws ``(B, M, N)``, int32, from categoricals ``(B, N, K)``.

    By inversion: a category's index is the number of cumulative probabilities that a uniform number reaches. Counting
    them one by one is several times faster than a search, for the few categories there are.
    """
    cdf = log_probs.double().exp().cumsum(-1).float()
    # Ends at exactly 1, above every uniform number: a category of probability zero is never drawn.
    cdf = cdf / cdf[..., -1:].clone()
    B, N, K = cdf.shape
    uniform = torch.rand(B, N, num_samples, generator=generator, device=cdf.device)
    if K > 32:
        found = torch.searchsorted(cdf, uniform, right=True, out_int32=True)
        return found.mT.contiguous()
    count = torch.zeros(uniform.shape, dtype=torch.uint8, device=cdf.device)
    for k in range(K - 1):
        count += (uniform >= cdf[..., k : k + 1]).view(torch.uint8)
    return count.mT.to(torch.int32, memory_format=torch.contiguous_format)


@torch.no_grad()
def score_images(
    model: StackedVAE,
    images: Tensor,
    *,
    samples: int = 1000,
    seed: int = 0,
    first: int = 0,
    kl_samples: int = 100,
) -> ImageScores:
    r"""Bounds on log p(x) for images ``(n, D)`` by a stack of one, its latent variables discrete.

    The bound is that of Burda et al. with samples of the recovered categorical :math:`\hat q` and the uniform prior,
    :math:`\log \frac 1 m \sum_i p(x|z_i) K^{-N} / \hat q(z_i|x)`: a bound however far :math:`\hat q` is from the
    posterior that training saw. Image i draws from the stream of ``seed`` and ``first + i`` alone.

    Differs from the released code: see `igr.released_estimate` and erratum E6.
    """
    family, N = model.family, model.num_variables
    parameters = model.encode(images.unsqueeze(0))
    log_q = family.discrete_log_probs(parameters, model.temperature[..., 0]).squeeze(0)
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(stream(seed, "kl", first).initial_seed())
        relaxed_kl = family.kl(parameters, model.temperature[..., 0], kl_samples).squeeze(0)
    log_prior = torch.tensor(-N * math.log(family.num_categories), device=images.device)
    kl = (log_q.exp() * log_q).nan_to_num_(0.0).sum((-2, -1)) - log_prior

    log_likelihood = images.new_empty(len(images), samples)
    log_q_drawn = images.new_empty(len(images), samples)
    for i, x in enumerate(images):
        generator = stream(seed, "evaluation", first + i, device=images.device)
        for start in range(0, samples, _DRAWS // N):
            stop = min(samples, start + _DRAWS // N)
            z = draw_categories(log_q[i : i + 1], stop - start, generator).squeeze(0)
            log_q_drawn[i, start:stop] = log_q[i].gather(1, z.mT.long()).sum(0)
            for row in range(start, stop, _ROWS):
                end = min(stop, row + _ROWS)
                outputs = model.decode_categories(z[row - start : end - start])
                log_likelihood[i, row:end] = model.likelihood.log_prob_overwriting(
                    outputs.unsqueeze(0), x.unsqueeze(0)
                ).squeeze(0)
    return ImageScores(
        bound=igr.importance_weighted_bound(log_likelihood, log_prior, log_q_drawn, dim=1),
        released_estimate=igr.released_estimate(log_likelihood, kl, dim=1),
        elbo=igr.elbo(log_likelihood.mean(1), kl),
        kl=kl,
        relaxed_kl=relaxed_kl,
    )


def evaluate(
    model: StackedVAE,
    images: Tensor,
    *,
    samples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> Evaluation:
    """Mean scores of a stack of one over images ``(n, D)``; `advance` is told of every image done."""
    start = time.perf_counter()
    scores: list[Tensor] = []
    for first in range(0, len(images), 100):
        part = score_images(
            model, images[first : first + 100], samples=samples, seed=seed, first=first
        )
        names = ("bound", "released_estimate", "elbo", "kl", "relaxed_kl")
        scores.append(torch.stack([getattr(part, name) for name in names]).double().cpu())
        advance(scores[-1].shape[1])
    every = torch.cat(scores, dim=1)
    error = every[0].std().item() / math.sqrt(len(images)) if len(images) > 1 else math.nan
    return Evaluation(
        **dict(zip(names, every.mean(1).tolist(), strict=True)),
        bound_error=error,
        samples=samples,
        images=len(images),
        seconds=time.perf_counter() - start,
    )
