"""The families of the paper's tables; shapes as in `igr.experiments.models.family`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import kl_divergence

import igr
from igr import functional
from igr.experiments.models.family import Family, gaussian_sample, tempered_softmax, winner

__all__ = [
    "DIFFERENTIABLE",
    "FAMILIES",
    "GAUSSIAN",
    "GumbelSoftmaxFamily",
    "PlanarFamily",
    "SharpStickBreakingFamily",
    "SoftmaxIGRFamily",
    "StickBreakingFamily",
    "hard_matched_loc",
    "hard_matched_stick",
]

_DRAWS = 1000  # of each image's code, to estimate its recovered distribution
_ADDED = 1e-6  # to each frequency, so that no category is ruled out
_AT_ONCE = 2**22  # numbers drawn at once, which bounds the memory that takes


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


@lru_cache(maxsize=32)
def hard_matched_stick(num_categories: int, rest: bool) -> tuple[float, ...]:
    """Locations at scale 1 for which a broken stick's largest piece is each of the categories equally often.

    Args:
        num_categories: K.
        rest: whether what is left of the stick counts as the last category, as for the sharpened map. If not, as for
            (18), the uniform distribution is over the first K-1, and one location is free: the last break's is 0.
    """
    target = torch.ones(num_categories, dtype=torch.float64)
    if not rest:
        target[-1] = 0
    family = igr.SharpStickBreakingIGR if rest else igr.StickBreakingIGR
    prior = igr.match(target / target.sum(), family, temperature=1.0)
    return tuple(prior.loc.tolist())


def _stick_log_weights(y: Tensor) -> Tensor:
    """Logarithms of the K weights of the stick broken at sigmoid(y) (16), ``(..., K, N)`` from ``(..., K-1, N)``."""
    left = functional.log_stick_left(y, dim=-2)
    return torch.cat([y + left, left[..., -1:, :]], -2)


@dataclass(frozen=True)
class _MappedGaussian(Family):
    """Gaussian noise through a map onto the simplex. Abstract."""

    @property
    def outputs_per_variable(self) -> int:
        return 2 * (self.num_categories - 1)

    @property
    def noise_per_variable(self) -> int:
        return self.num_categories - 1

    def fill_noise(self, out: Tensor, generator: torch.Generator) -> None:
        out.normal_(generator=generator)

    @abstractmethod
    def categories_of(self, y: Tensor) -> Tensor:
        """The category ``(..., N)`` that Gaussian y ``(..., K-1, N)`` stands for."""

    def categories(self, parameters: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        loc, log_scale = parameters.chunk(2, dim=-2)
        return self.categories_of(torch.addcmul(loc, log_scale.exp(), noise))

    def discrete_log_probs(
        self, parameters: Tensor, temperature: Tensor | float, generator: torch.Generator
    ) -> Tensor:
        """By 1,000 draws, the same noise for every image, 1e-6 added to each frequency."""
        loc, log_scale = parameters.chunk(2, dim=-2)
        scale = log_scale.exp()
        noise = torch.empty(_DRAWS, 1, 1, *loc.shape[-2:], dtype=loc.dtype, device=loc.device)
        self.fill_noise(noise, generator)
        counts = torch.zeros_like(loc[..., 0, :, None].expand(-1, -1, -1, self.num_categories))
        one = torch.ones_like(counts[..., :1])
        for some in noise.split(max(1, _AT_ONCE // loc.numel())):
            drawn = self.categories_of(torch.addcmul(loc, scale, some)).movedim(0, -1)
            counts.scatter_add_(-1, drawn, one.expand(drawn.shape))
        weights = counts / _DRAWS + _ADDED
        return (weights / weights.sum(-1, keepdim=True)).log()


def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant ``(K-1, 1)``."""
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)


_kept_column = lru_cache(maxsize=32)(_column)


@dataclass(frozen=True)
class _StickFamily(_MappedGaussian):
    """A Gaussian stick-breaking family; the prior has scale 1 and the same map, so the KL has closed form. Abstract."""

    rest = True
    """Whether what is left of the stick can be chosen."""

    prior_loc: tuple[float, ...] = field(init=False)
    """Locations of the prior, K-1 of them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior_loc", hard_matched_stick(self.num_categories, self.rest))

    def _prior_loc_like(self, x: Tensor) -> Tensor:
        # Kept where it is used, so that no step copies it to a device; a compiler has constants of its own.
        column = _column if torch.compiler.is_compiling() else _kept_column
        return column(self.prior_loc, x.dtype, x.device)

    @abstractmethod
    def logits(self, y: Tensor) -> Tensor:
        """What the softmax over K is taken of, at temperature 1."""

    def categories_of(self, y: Tensor) -> Tensor:
        log_w = _stick_log_weights(y)
        return winner(log_w if self.rest else log_w[..., :-1, :])

    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        prior_loc = self._prior_loc_like(parameters)
        y, kl = gaussian_sample(parameters, noise, prior_loc, self.sticking_the_landing)
        return tempered_softmax(self.logits(y), temperature), kl

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        loc, log_scale = parameters.chunk(2, dim=-2)
        q = torch.distributions.Normal(loc, log_scale.exp(), validate_args=False)
        prior_loc = self._prior_loc_like(loc).expand_as(loc)
        p = torch.distributions.Normal(prior_loc, torch.ones_like(loc), validate_args=False)
        return kl_divergence(q, p).sum((-2, -1))


@dataclass(frozen=True)
class StickBreakingFamily(_StickFamily):
    r"""IGR-SB: stick-breaking, then the softmax++ (18).

    Every weight of the stick is positive, so the last category is never recovered (erratum E5). The prior's hard
    samples are uniform over the K-1 others.
    """

    rest = False

    def logits(self, y: Tensor) -> Tensor:
        return F.pad((y + functional.log_stick_left(y, dim=-2)).exp(), (0, 0, 0, 1))

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.StickBreakingIGR:
        loc, log_scale = parameters.mT.chunk(2, dim=-1)
        return igr.StickBreakingIGR(loc, log_scale.exp(), temperature, validate_args=False)


@dataclass(frozen=True)
class SharpStickBreakingFamily(_StickFamily):
    r"""IGR-SB mended: stick-breaking, then :math:`z_k \propto w_k^{1/\tau}` over all K; at K = 2 it is IGR-I."""

    def logits(self, y: Tensor) -> Tensor:
        return _stick_log_weights(y)

    def distribution(
        self, parameters: Tensor, temperature: Tensor | float
    ) -> igr.SharpStickBreakingIGR:
        loc, log_scale = parameters.mT.chunk(2, dim=-1)
        return igr.SharpStickBreakingIGR(loc, log_scale.exp(), temperature, validate_args=False)


@dataclass(frozen=True)
class _PlanarFlow:
    """One planar flow for each run and variable, shared by all images: u, w ``(R, 1, K-1, N)``, b ``(R, 1, 1, N)``."""

    u: Tensor
    w: Tensor
    b: Tensor

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""f(y), its log-determinant ``(..., N)``, and tanh(w'y + b); formula in `igr.functional.planar`."""
        h = torch.tanh((self.w * y).sum(-2, keepdim=True) + self.b)
        softplus = F.softplus(self._wu)
        # 1 + m (1 - h^2) with m = softplus - 1, rearranged so that nothing cancels as m tends to -1.
        return y + self._direction * h, torch.log(softplus * (1 - h * h) + h * h).squeeze(-2), h

    @property
    def _wu(self) -> Tensor:
        return (self.w * self.u).sum(-2, keepdim=True)

    @property
    def _direction(self) -> Tensor:
        norm2 = (self.w * self.w).sum(-2, keepdim=True)
        return self.u + (F.softplus(self._wu) - 1 - self._wu) * self.w / norm2.clamp_min(1e-30)

    def pull_back(self, step: Tensor, h: Tensor) -> Tensor:
        r"""The step in y that a small step in f(y) is: :math:`(I + s \hat u w^\top)^{-1}` of it, s = 1 - h^2."""
        slope = 1 - h * h
        stretch = F.softplus(self._wu) * slope + h * h
        along = (self.w * step).sum(-2, keepdim=True)
        return step - self._direction * (slope * along / stretch)

    def detach(self) -> _PlanarFlow:
        return _PlanarFlow(self.u.detach(), self.w.detach(), self.b.detach())

    def transform(self) -> igr.Planar:
        return igr.Planar(self.u.mT, self.w.mT, self.b.squeeze(-2))


def _through(flows: Sequence[_PlanarFlow], y: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y after all flows, the sum of their log-determinants ``(R, B)``, and the height of each."""
    total, heights = torch.zeros_like(y[..., 0, 0]), []
    for flow in flows:
        y, log_det, h = flow(y)
        total = total + log_det.sum(-1)
        heights.append(h)
    return y, total, heights


@dataclass(frozen=True)
class PlanarFamily(_MappedGaussian):
    r"""IGR-Planar: two nested planar flows, one pair for each variable and shared by all images, then the softmax++.

    The flows are learned and the posterior's alone; the prior is IGR-I's, so the KL is estimated by one sample, in y:
    :math:`\log \mathcal N(y_0) - \sum \log |\det J_f| - \log p(f(y_0))`. They start near the identity.

    Differs from the released code: the constraint that keeps a flow invertible (erratum E12).
    """

    flows: tuple[_PlanarFlow, ...] = field(default=(), compare=False, repr=False)
    prior_loc: float = field(default=math.nan, repr=False)
    """That of `SoftmaxIGRFamily`, unless given."""
    num_flows = 2

    def __post_init__(self) -> None:
        if math.isnan(self.prior_loc):
            object.__setattr__(self, "prior_loc", hard_matched_loc(self.num_categories))

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

    def bind(self, tensors: dict[str, Tensor]) -> PlanarFamily:
        parts = ([tensors[f"flow.{i}.{name}"] for name in "uwb"] for i in range(self.num_flows))
        return replace(self, flows=tuple(_PlanarFlow(*part) for part in parts))

    def sample_and_kl(
        self, parameters: Tensor, noise: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        y, kl = self._log_ratio(parameters, noise)
        return tempered_softmax(F.pad(y, (0, 0, 0, 1)), temperature), kl

    def _log_ratio(self, parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """y and log q(y) - log p(y), summed over variables."""
        loc, log_scale = parameters.chunk(2, dim=-2)
        start = torch.addcmul(loc, log_scale.exp(), noise)
        y, log_det, heights = _through(self.flows, start)
        if self.sticking_the_landing:
            log_q = self._sticking_log_q(start, y, heights, loc.detach(), log_scale.detach())
        else:
            log_q = -0.5 * noise.square().sum((-2, -1)) - log_scale.sum((-2, -1)) - log_det
        log_p = -0.5 * (y - self.prior_loc).square().sum((-2, -1))
        return y, log_q - log_p

    def _sticking_log_q(
        self, start: Tensor, y: Tensor, heights: list[Tensor], loc: Tensor, log_scale: Tensor
    ) -> Tensor:
        """log q at y, as a function of y alone: its own parameters, the flows' too, detached.

        The inverse of the flows at y is known: it is `start`. Only its derivative is needed, which is linear.
        """
        fixed = [flow.detach() for flow in self.flows]
        step = y - y.detach()  # zero, with the gradient of y
        for flow, h in zip(reversed(fixed), reversed(heights), strict=True):
            step = flow.pull_back(step, h.detach())
        found = start.detach() + step
        noise = (found - loc) * (-log_scale).exp()
        _, log_det, _ = _through(fixed, found)
        return -0.5 * noise.square().sum((-2, -1)) - log_scale.sum((-2, -1)) - log_det

    def categories_of(self, y: Tensor) -> Tensor:
        return winner(F.pad(_through(self.flows, y)[0], (0, 0, 0, 1)))

    def distribution(self, parameters: Tensor, temperature: Tensor | float) -> igr.PlanarIGR:
        loc, log_scale = parameters.mT.chunk(2, dim=-1)
        flows = [flow.transform() for flow in self.flows]
        return igr.PlanarIGR(loc, log_scale.exp(), temperature, flows, validate_args=False)

    def kl(self, parameters: Tensor, temperature: Tensor | float, num_samples: int) -> Tensor:
        loc = parameters.chunk(2, dim=-2)[0]
        noise = torch.randn(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
        return self._log_ratio(parameters, noise)[1].mean(0)


FAMILIES: dict[str, type[Family]] = {
    "igr-i": SoftmaxIGRFamily,
    "gs": GumbelSoftmaxFamily,
    "igr-planar": PlanarFamily,
    "igr-sb": StickBreakingFamily,
    "igr-sb-sharp": SharpStickBreakingFamily,
}
"""Every family by its name on the command line."""

GAUSSIAN = tuple(name for name in FAMILIES if name != "gs")
"""Those that start from Gaussian noise, with a location and a scale."""

DIFFERENTIABLE = ("igr-i", "gs")
"""Those whose recovered distribution is known exactly, and with a gradient."""
