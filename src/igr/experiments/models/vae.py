r"""Discrete variational autoencoders, many at once: every parameter has a leading axis of runs.

Shapes: R runs, B images, D pixels, N variables of K categories. Inside the model the categories come *before* the
variables, ``(R, B, K, N)``, because a softmax along a last axis of ten is ten times slower than along the one before
it. The public distributions have the categories last; `Family.distribution` turns the axes round.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import kl_divergence

import igr
from igr.distributions import Relaxation

__all__ = [
    "FAMILIES",
    "LIKELIHOODS",
    "Bernoulli",
    "Family",
    "GumbelSoftmaxFamily",
    "Likelihood",
    "SoftmaxIGRFamily",
    "StackedModel",
    "StackedVAE",
    "draw_maps",
    "draw_stack",
    "gaussian_sample",
    "hard_matched_loc",
    "stream",
    "tempered_softmax",
    "winner",
]


_CACHED = 2**18  # numbers; some tensors of so many fit into a core's cache
_LARGEST_TABLE = 2**20  # numbers; a table to gather from may be this large


def stream(seed: int, *labels: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that depends on the seed and the labels alone.

    What run r draws must not depend on which other runs share its stack, nor on where training was interrupted: so
    every (seed, purpose, epoch) has a stream of its own, and no generator's state is ever carried along.
    """
    text = "/".join(map(str, (seed, *labels)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    # CPU generators use the low 32 bits alone; the digest is uniform there too.
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def _run_by_run(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The runs of a stack that a core's cache does not hold one after the other, so that each stays in it."""
    first = tensors[0]
    if first.numel() <= _CACHED or first.is_cuda:
        return [tensors]
    if first.dim() < 3 or any(len(x) != len(first) for x in tensors):
        return [tensors]
    return zip(*(x.split(1) for x in tensors), strict=True)


class _BernoulliLogProb(torch.autograd.Function):
    """sum_d x_d l_d - softplus(l_d), with its gradient x - sigmoid(l) in three passes over l, not six."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        found = [
            torch.linalg.vecdot(some, l) - _softplus(l).sum(-1)
            for l, some in _run_by_run(logits, x)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (x - torch.sigmoid(logits)) * grad.unsqueeze(-1), None
        grad_logits = torch.empty_like(logits)
        for out, l, some, g in _run_by_run(grad_logits, logits, x, grad.unsqueeze(-1)):
            torch.sigmoid(l, out=out)
            torch.sub(some, out, out=out).mul_(g)
        return grad_logits, None


def _log_prob_for_compilers(logits: Tensor, x: Tensor) -> Tensor:
    """The same, with one exponential for value and gradient, and one logarithm for four pixels.

    Compiled exponentials and logarithms take several times as long as torch's own. In float32 and float64.
    """
    l = logits.detach()
    # Beyond this, log(1 + e^l) is l to the last digit, and products of four stay far from overflow.
    limit = 1 - math.log(torch.finfo(l.dtype).eps)
    power = l.clamp_max(limit).exp()
    one_more = product = 1 + power
    for _ in range(2):
        if product.shape[-1] % 2 == 0:
            first, second = product.chunk(2, dim=-1)
            product = first * second
    # What is added is zero, and has the gradient x - sigmoid(l).
    gradient = (x - power / one_more) * (logits - l)
    linear = x * l - (l - limit).clamp_min(0)
    return (linear + gradient).sum(-1) - product.log().sum(-1)


class _GaussianSample(torch.autograd.Function):
    """y = loc + scale * noise and KL(N(loc, scale) || N(prior_loc, 1)), see `gaussian_sample`."""

    @staticmethod
    def forward(
        ctx, parameters: Tensor, noise: Tensor, prior_loc: Tensor | float, sticking: bool
    ) -> tuple[Tensor, Tensor]:
        # At this size an operation takes as long as its work, and its kind as long again where it is the first.
        size = noise.shape[-2]
        loc, log_scale = parameters.narrow(-2, 0, size), parameters.narrow(-2, size, size)
        scale = log_scale.exp()
        y = torch.addcmul(loc, scale, noise)
        distance = (y if sticking else loc) - prior_loc
        minus_kl = torch.addcmul(log_scale, distance, distance, value=-0.5)
        if sticking:
            minus_kl = torch.addcmul(minus_kl, noise, noise, value=0.5)
            kl = -minus_kl.sum((-2, -1))
        else:
            minus_kl = torch.addcmul(minus_kl, scale, scale, value=-0.5)
            kl = -0.5 * noise[0, 0].numel() - minus_kl.sum((-2, -1))
        ctx.save_for_backward(noise, scale, distance)
        ctx.sticking = sticking
        return y, kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor, grad_kl: Tensor) -> tuple[Tensor, None, None, None]:
        noise, scale, distance = ctx.saved_tensors
        grad_kl = grad_kl[..., None, None]
        if ctx.sticking:
            grad_loc = torch.addcmul(grad_y, distance - noise / scale, grad_kl)
            grad_log_scale = grad_loc * noise * scale
        else:
            grad_loc = torch.addcmul(grad_y, distance, grad_kl)
            grad_scale = torch.addcmul(grad_y * noise, scale, grad_kl)
            grad_log_scale = grad_scale.mul_(scale).sub_(grad_kl)
        return torch.cat([grad_loc, grad_log_scale], -2), None, None, None


def gaussian_sample(
    parameters: Tensor, noise: Tensor, prior_loc: Tensor | float, sticking: bool
) -> tuple[Tensor, Tensor]:
    r"""Gaussian y ``(R, B, K-1, N)`` and its KL from :math:`\mathcal N(m, 1)` for each image, ``(R, B)``.

    With `sticking`, the KL is :math:`\log q(y) - \log p(y)` of this one y, the parameters inside log q detached, so
    that only the path through y carries a gradient (Roeder et al. 2017); else the closed form (13).
    """
    batch = noise.shape[:2]
    if parameters.shape[:2] != batch:
        parameters = parameters.expand(*batch, -1, -1)
    if not torch.compiler.is_compiling():
        return _GaussianSample.apply(parameters, noise, prior_loc, sticking)
    loc, log_scale = parameters.chunk(2, dim=-2)
    y = torch.addcmul(loc, log_scale.exp(), noise)
    if sticking:
        loc, log_scale = loc.detach(), log_scale.detach()
        log_q = -0.5 * ((y - loc) * (-log_scale).exp()).square() - log_scale
        kl = log_q + 0.5 * (y - prior_loc).square()
    else:
        kl = 0.5 * ((loc - prior_loc).square() + (2 * log_scale).exp() - 1) - log_scale
    return y, kl.sum((-2, -1))


def tempered_softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of logits / temperature along the categories, the last axis but one."""
    if not torch.compiler.is_compiling():
        return torch.softmax(logits / temperature, dim=-2)
    # This way round no code is made for temperatures below zero, which takes longer than the softmax.
    z = ((logits - logits.detach().amax(-2, keepdim=True)) / temperature).exp()
    return z / z.sum(-2, keepdim=True)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) in half the time of torch's; its error is at most a rounding of 1 or of x."""
    # Where e^x would overflow, x itself is log(1 + e^x) to the last digit; to look is quicker than to provide for it.
    limit = 0.9 * math.log(torch.finfo(x.dtype).max)
    if x.is_cpu and x.amax().item() <= limit:
        return x.exp().add_(1).log_()
    y = x.clamp_max(limit).exp_().add_(1).log_()
    return torch.maximum(y, x, out=y)


class Likelihood(ABC):
    """What the decoder's outputs mean: p(x | z)."""

    outputs_per_pixel: int

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


class Bernoulli(Likelihood):
    """Independent binary pixels, from logits."""

    outputs_per_pixel = 1

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return _BernoulliLogProb.apply(outputs, x)
        return _log_prob_for_compilers(outputs, x)

    def log_prob_overwriting(self, outputs: Tensor, x: Tensor, largest: float = math.inf) -> Tensor:
        on = torch.bmm(outputs, x.unsqueeze(-1)).squeeze(-1)
        # Where exp, unlike softplus, would soon overflow.
        if largest > 80 and outputs.amax() > 80:
            return on - F.softplus(outputs).sum(-1)
        # log(1 + exp(l)) in place: a third of softplus's time, its error at most one rounding of 1.
        return on - outputs.exp_().add_(1).log_().sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": Bernoulli()}


@dataclass(frozen=True)
class Family(ABC):
    """A relaxed categorical posterior with its prior, over N variables of K categories.

    Source: paper, sections 2.2 and 3. ``parameters`` below are the posterior's, ``(R, B, P, N)`` with P =
    `outputs_per_variable`; ``temperature`` broadcasts against them.
    """

    num_categories: int
    prior_temperature: float
    sticking_the_landing: bool = False
    """Whether the KL is that of one sample, the posterior's parameters detached inside log q."""
    unit_scale: bool = False
    """Whether the Gaussian's scales are held at 1, so that the network gives its locations alone."""

    @property
    @abstractmethod
    def outputs_per_variable(self) -> int:
        """How many parameters each variable has."""

    @property
    @abstractmethod
    def noise_per_variable(self) -> int:
        """How many random numbers one sample of one variable takes."""

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


@lru_cache(maxsize=32)
def hard_matched_loc(num_categories: int) -> float:
    """The location m, at scale 1, of `SoftmaxIGRFamily`'s prior."""
    p = torch.tensor(num_categories ** (-1 / (num_categories - 1)), dtype=torch.float64)
    return -torch.special.ndtri(p).item()


@dataclass(frozen=True)
class SoftmaxIGRFamily(Family):
    r"""IGR-I: the softmax++ of a Gaussian (15), with closed-form KL (13).

    The prior has scale 1 and the location m at which its hard samples are uniform (Prop. 2): with equal locations the
    last category has probability :math:`\Phi(-m)^{K-1}`, so :math:`m = -\Phi^{-1}(K^{-1/(K-1)})`. Prior and posterior
    share the temperature, which therefore drops out of their KL.
    """

    prior_loc: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior_loc", hard_matched_loc(self.num_categories))

    @property
    def outputs_per_variable(self) -> int:
        return 2 * (self.num_categories - 1)

    @property
    def noise_per_variable(self) -> int:
        return self.num_categories - 1

    def fill_noise(self, out: Tensor, generator: torch.Generator) -> None:
        out.normal_(generator=generator)

    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, kl = gaussian_sample(parameters, noise, self.prior_loc, self.sticking_the_landing)
        return tempered_softmax(F.pad(y, (0, 0, 0, 1)), temperature), kl

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.SoftmaxIGR:
        loc, log_scale = parameters.chunk(2, dim=-2)
        return igr.SoftmaxIGR(loc.mT, log_scale.mT.exp(), temperature, validate_args=False)

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        q = self.distribution(parameters, temperature)
        loc = torch.full_like(q.loc, self.prior_loc)
        p = igr.SoftmaxIGR(loc, torch.ones_like(loc), temperature, validate_args=False)
        return kl_divergence(q, p).sum(-1)


@dataclass(frozen=True)
class GumbelSoftmaxFamily(Family):
    r"""Gumbel-Softmax (5), with the Monte Carlo KL (9) to a uniform one of its own temperature.

    Both densities are taken of log z, where low temperatures stay finite. At z = softmax(u), u = (logits + g) / t,
    the density of temperature s and logits a is
    :math:`\log (K-1)! + (K-1) \log s + \sum_k \log softmax(a - s u)_k`. For the posterior a - t u is -g: a function
    of the noise alone, because logits only shift log z. So all of the KL's gradient comes through the prior.
    """

    @property
    def outputs_per_variable(self) -> int:
        return self.num_categories

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
        prior, N = self.prior_temperature, noise.shape[-1]
        scores = parameters + noise
        log_p = torch.log_softmax(scores * (-prior / temperature), dim=-2).sum((-2, -1))
        log_q: Tensor | float
        if self.sticking_the_landing:
            # Logits held constant less temperature times the sample: -noise, with the gradient of the path alone.
            log_q = torch.log_softmax(parameters.detach() - scores, dim=-2).sum((-2, -1))
        else:
            log_q = N * self._mean_log_q
        volume = N * (self.num_categories - 1) * torch.log(temperature[..., 0, 0] / prior)
        return tempered_softmax(scores, temperature), log_q - log_p + volume

    @property
    def _mean_log_q(self) -> float:
        r"""Mean of :math:`\sum_k \log softmax(-g)_k`: exp(-g) is exponential, the sum of K of them Gamma(K, 1)."""
        K = self.num_categories
        return -K * sum(1 / k for k in range(1, K))

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.GumbelSoftmax:
        return igr.GumbelSoftmax(temperature, logits=parameters.mT, validate_args=False)

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        q = self.distribution(parameters, temperature)
        p = igr.GumbelSoftmax(
            self.prior_temperature, logits=torch.zeros_like(parameters.mT), validate_args=False
        )
        return igr.monte_carlo_kl(q, p, num_samples=num_samples).sum(-1)


FAMILIES: dict[str, type[Family]] = {"igr-i": SoftmaxIGRFamily, "gs": GumbelSoftmaxFamily}


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
    """The same, ``(R, 1, 1, 1)``."""

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


class StackedVAE(StackedModel):
    """R autoencoders of one shape; every parameter is a tensor with a leading axis of runs.

    Encoder: D -> hidden -> P * N; decoder: K * N -> hidden reversed -> D, ReLU between affine maps. With no hidden
    widths each is one affine map. Weights are ``(R, in, out)``, biases ``(R, 1, out)``; both start uniform in
    +-1/sqrt(in), as torch's ``Linear`` does, from the run's own seed.
    """

    def __init__(
        self,
        family: Family,
        likelihood: Likelihood,
        num_pixels: int,
        num_variables: int,
        hidden: Sequence[int],
        tensors: dict[str, Tensor],
        temperatures: Tensor,
    ) -> None:
        self.family, self.likelihood = family.bind(tensors), likelihood
        self.num_pixels, self.num_variables, self.hidden = num_pixels, num_variables, tuple(hidden)
        self.tensors = tensors
        self.temperatures = temperatures
        self.temperature = temperatures.view(-1, 1, 1, 1)
        depth = len(self.hidden) + 1
        self.encoder, self.decoder = (
            [(tensors[f"{part}.{i}.weight"], tensors[f"{part}.{i}.bias"]) for i in range(depth)]
            for part in ("encoder", "decoder")
        )

    @classmethod
    def initialise(
        cls,
        family: Family,
        likelihood: Likelihood,
        num_pixels: int,
        num_variables: int,
        hidden: Sequence[int],
        temperatures: Sequence[float],
        seeds: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> StackedVAE:
        """Fresh parameters, those of run r drawn from ``seeds[r]`` alone."""
        code = family.num_categories * num_variables
        outputs = num_pixels * likelihood.outputs_per_pixel
        widths = {
            "encoder": [num_pixels, *hidden, family.network_outputs * num_variables],
            "decoder": [code, *reversed(hidden), outputs],
        }

        def draw(generator: torch.Generator) -> dict[str, Tensor]:
            drawn: dict[str, Tensor] = {}
            for part, sizes in widths.items():
                drawn |= draw_maps(part, sizes, generator)
            return drawn | family.initial_tensors(num_variables, generator)

        tensors = draw_stack(draw, seeds, dtype, device)
        taus = torch.tensor(temperatures, dtype=dtype, device=device)
        return cls(family, likelihood, num_pixels, num_variables, hidden, tensors, taus)

    @property
    def noise_shape(self) -> tuple[int, int]:
        return self.family.noise_per_variable, self.num_variables

    def with_tensors(self, tensors: dict[str, Tensor], temperatures: Tensor) -> StackedVAE:
        return StackedVAE(
            self.family,
            self.likelihood,
            self.num_pixels,
            self.num_variables,
            self.hidden,
            tensors,
            temperatures,
        )

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
        if self.hidden:
            return math.inf
        ((weight, bias),) = self.decoder
        rows = weight.view(self.family.num_categories, self.num_variables, -1)
        return (rows.amax(0).sum(0) + bias.view(-1)).amax().item()

    def elbo_terms(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = self.family.sample_and_kl(self.encode(x), noise, self.temperature)
        return self.likelihood.log_prob(self.decode(z), x), kl


def winner(scores: Tensor) -> Tensor:
    """Index of the largest along the last axis but one; torch's argmax takes fifty times as long there."""
    if scores.shape[-2] == 2:
        return (scores[..., 1, :] > scores[..., 0, :]).long()
    return scores.max(-2).indices


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


def _affine_maps(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for i, (weight, bias) in enumerate(layers):
        x = torch.relu(x) if i else x
        if torch.compiler.is_compiling():  # the sum becomes part of what reads it
            x = torch.bmm(x, weight) + bias
        else:
            x = torch.baddbmm(bias, x, weight)
    return x
