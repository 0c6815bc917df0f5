"""How good a trained model is as a *discrete* one: bounds on the test log-likelihood."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical

import igr
from igr.experiments.models.sop import StackedSOP
from igr.experiments.models.stacked import StackedModel
from igr.experiments.models.vae import StackedVAE
from igr.experiments.streams import stream

# Samples decoded at once: the outputs of so many stay in the caches of two cores; a card is to be kept busy.
_ROWS = 1024
_ROWS_ON_CUDA = 2**17
_ROWS_DRAWN = 8192  # samples drawn at once: with fewer, a second core has nothing to share
_IMAGES = 500  # scored at once: the quadratures of so many share their nodes, and a stop waits for seconds
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


@dataclass(frozen=True)
class ImageScores:
    """The same for each image, ``(n,)``."""

    bound: Tensor
    released_estimate: Tensor
    elbo: Tensor
    kl: Tensor
    relaxed_kl: Tensor


def cumulative(log_probs: Tensor) -> Tensor:
    """Cumulative probabilities ``(..., K)`` that end at exactly 1.

    Every uniform number lies below 1, so that a category of probability zero is never drawn, the last ones included.
    """
    cdf = log_probs.double().exp().cumsum(-1).float()
    return cdf / cdf[..., -1:]


def invert(cdf: Tensor, uniform: Tensor) -> Tensor:
    """Categories ``(B, M, N)``, int32, that uniform numbers ``(B, N, M)`` mean by `cumulative` ``(B, N, K)``.

    A category's index is the number of cumulative probabilities that its number reaches. Counting them one by one is
    several times faster than a search, for the few categories there are.
    """
    K = cdf.shape[-1]
    if K > 32:
        return torch.searchsorted(cdf, uniform, right=True, out_int32=True).mT.contiguous()
    count = torch.zeros(uniform.shape, dtype=torch.uint8, device=cdf.device)
    for k in range(K - 1):
        count += (uniform >= cdf[..., k : k + 1]).view(torch.uint8)
    return count.mT.to(torch.int32, memory_format=torch.contiguous_format)


def draw_categories(log_probs: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Independent draws ``(B, M, N)``, int32, from categoricals ``(B, N, K)``."""
    shape = (*log_probs.shape[:-1], num_samples)
    uniform = torch.rand(shape, generator=generator, device=log_probs.device)
    return invert(cumulative(log_probs), uniform)


@torch.no_grad()
def score_images(
    model: StackedModel,
    images: Tensor,
    *,
    samples: int = 1000,
    seed: int = 0,
    first: int = 0,
    kl_samples: int = 10,
) -> ImageScores:
    """Scores of images ``(n, D)`` by a stack of one; image i draws from ``seed`` and ``first + i`` alone."""
    if isinstance(model, StackedVAE):
        return _score_vae(model, images, samples, seed, first, kl_samples)
    if isinstance(model, StackedSOP):
        return _score_sop(model, images, samples, seed, first)
    raise TypeError(f"model: expected one that can be scored, got {type(model).__name__}")


def _score_vae(
    model: StackedVAE, images: Tensor, samples: int, seed: int, first: int, kl_samples: int
) -> ImageScores:
    r"""Bounds on log p(x), the latent variables discrete.

    The bound is that of Burda et al. with samples of the recovered categorical :math:`\hat q` and the uniform prior,
    :math:`\log \frac 1 m \sum_i p(x|z_i) K^{-N} / \hat q(z_i|x)`: a bound however far :math:`\hat q` is from the
    posterior that training saw.

    Differs from the released code: see `igr.released_estimate` and erratum E6.
    """
    family, N = model.family, model.num_variables
    parameters = model.encode(images.unsqueeze(0))
    generator = stream(seed, "recovery", device=images.device)
    log_q = family.discrete_log_probs(parameters, model.temperature, generator).squeeze(0)
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(stream(seed, "kl", first).initial_seed())
        relaxed_kl = family.kl(parameters, model.temperature, kl_samples).squeeze(0)
    log_prior = torch.tensor(-N * math.log(family.num_categories), device=images.device)
    kl = -Categorical(logits=log_q, validate_args=False).entropy().sum(-1) - log_prior

    cdf = cumulative(log_q)
    decode, largest = model.category_decoder(), model.largest_output()
    log_likelihood = images.new_empty(len(images), samples)
    log_q_drawn = images.new_empty(len(images), samples)
    at_once = _ROWS_ON_CUDA if images.is_cuda else _ROWS
    together = max(1, at_once // samples)  # images
    drawn = max(together, min(_ROWS_DRAWN, _DRAWS // N) // samples)
    for i in range(0, len(images), drawn):
        some = slice(i, i + drawn)
        generators = [
            stream(seed, "evaluation", first + j, device=images.device)
            for j in range(i, min(i + drawn, len(images)))
        ]
        for start in range(0, samples, _DRAWS // N):
            stop = min(samples, start + _DRAWS // N)
            uniform = images.new_empty(len(generators), N, stop - start)
            for numbers, generator in zip(uniform, generators, strict=True):
                numbers.uniform_(generator=generator)
            z = invert(cdf[some], uniform)
            log_q_drawn[some, start:stop] = log_q[some].gather(2, z.mT.long()).sum(1)
            found = log_likelihood[some, start:stop]
            parts = (tensor.split(together) for tensor in (z, images[some], found))
            for codes, x, values in zip(*parts, strict=True):
                for row in range(0, stop - start, at_once):
                    rows = slice(row, row + at_once)
                    outputs = decode(codes[:, rows].flatten(0, 1)).unflatten(0, (len(x), -1))
                    values[:, rows] = model.likelihood.log_prob_overwriting(outputs, x, largest)
    return ImageScores(
        bound=igr.importance_weighted_bound(log_likelihood, log_prior, log_q_drawn, dim=1),
        released_estimate=igr.released_estimate(log_likelihood, kl, dim=1),
        elbo=igr.elbo(log_likelihood.mean(1), kl),
        kl=kl,
        relaxed_kl=relaxed_kl,
    )


def _score_sop(
    model: StackedSOP, images: Tensor, samples: int, seed: int, first: int
) -> ImageScores:
    r""":math:`\log \frac 1 m \sum_i p(x_{\text{lower}} \mid h^{(i)})`, both layers drawn hard.

    There is no posterior, so bound and released estimate are the same, and the mean of log p stands for the ELBO.
    """
    log_likelihood = images.new_empty(len(images), samples)
    for i, x in enumerate(images):
        generator = stream(seed, "evaluation", first + i, device=images.device)
        lower = model.halves(x)[1].unsqueeze(0)
        for start in range(0, samples, _ROWS):
            count = min(_ROWS, samples - start)
            outputs = model.outputs_of_draws(x, count, generator).unsqueeze(0)
            found = model.likelihood.log_prob_overwriting(outputs, lower)
            log_likelihood[i, start : start + count] = found.squeeze(0)
    bound = log_likelihood.logsumexp(1) - math.log(samples)
    zero = torch.zeros_like(bound)
    return ImageScores(bound, bound, log_likelihood.mean(1), kl=zero, relaxed_kl=zero)


def evaluate(
    model: StackedModel,
    images: Tensor,
    *,
    samples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> Evaluation:
    """Mean scores of a stack of one over images ``(n, D)``; `advance` is told of every image done."""
    start = time.perf_counter()
    scores: list[Tensor] = []
    for first in range(0, len(images), _IMAGES):
        some = images[first : first + _IMAGES].to(model.temperatures.device)
        part = vars(score_images(model, some, samples=samples, seed=seed, first=first))
        scores.append(torch.stack(list(part.values())).double().cpu())
        advance(scores[-1].shape[1])
    every = torch.cat(scores, dim=1)
    error = every[0].std().item() / math.sqrt(len(images)) if len(images) > 1 else math.nan
    return Evaluation(
        **dict(zip(part, every.mean(1).tolist(), strict=True)),
        bound_error=error,
        samples=samples,
        images=len(images),
        seconds=time.perf_counter() - start,
    )
