"""The exact gradient by enumeration, the families and losses that estimators are compared on, and each estimator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor, nn

from igr import GumbelSoftmax, SoftmaxIGR
from igr import estimators as E
from igr.estimators import (
    ControlNetwork,
    LeaveOneOut,
    Pathwise,
    RaoBlackwellStraightThrough,
    Rebar,
    Reinforce,
    ReinMax,
    Relax,
    RelaxedStraightThrough,
    RunningMean,
    StraightThrough,
    UnorderedSet,
)

DOUBLE = torch.float64


def igr(parameters: list[Tensor], temperature: float = 0.5) -> SoftmaxIGR:
    return SoftmaxIGR(parameters[0], parameters[1], temperature)


def gumbel(parameters: list[Tensor], temperature: float = 0.5) -> GumbelSoftmax:
    return GumbelSoftmax(temperature, logits=parameters[0])


def common(draw: Callable[[], list[Tensor]], family: Callable) -> list[Tensor]:
    """Parameters under which no category is rare: a mean over rare events is far from normal."""
    while True:
        parameters = draw()
        if float(family(parameters).discrete().probs.min()) > 0.08:
            return parameters


def igr_parameters(N: int, K: int) -> list[Tensor]:
    def draw() -> list[Tensor]:
        scale = torch.empty(N, K - 1, dtype=DOUBLE).uniform_(-0.7, 0.7).exp()
        return [torch.randn(N, K - 1, dtype=DOUBLE) * 0.7, scale]

    return common(draw, igr)


def gumbel_parameters(N: int, K: int) -> list[Tensor]:
    return common(lambda: [torch.randn(N, K, dtype=DOUBLE)], gumbel)


FAMILIES = {"igr": (igr, igr_parameters), "gumbel": (gumbel, gumbel_parameters)}


class Objectives:
    """Four losses of (N, K) samples, each without and with a term in q's parameters: stacked along the first axis."""

    count = 8

    def __init__(self, N: int, K: int) -> None:
        self.w = torch.randn(N, K, dtype=DOUBLE)
        self.a = torch.randn(N * K, 6, dtype=DOUBLE)
        self.b = torch.randn(6, dtype=DOUBLE)

    def plain(self, z: Tensor) -> Tensor:
        """(..., N, K) -> (4, ...)."""
        linear = (z * self.w).sum((-1, -2))
        network = torch.tanh(z.flatten(-2) @ self.a) @ self.b
        return torch.stack([torch.full_like(linear, 1.7), linear, (linear - 0.4) ** 2, network])

    def extra(self, parameters: list[Tensor]) -> Tensor:
        return sum((p.sin() * 0.3).sum((-1, -2)) for p in parameters)  # type: ignore[return-value]

    def of_batch(self, parameters: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """Samples (8, B, N, K) -> (8, B)."""

        def f(z: Tensor) -> Tensor:
            pick = torch.arange(4)
            values = torch.cat([self.plain(z[:4])[pick, pick], self.plain(z[4:])[pick, pick]])
            term = self.extra(parameters)
            return values + torch.cat([torch.zeros_like(term[:4]), term[4:]])

        return f


def states(N: int, K: int) -> Tensor:
    index = torch.tensor(list(itertools.product(range(K), repeat=N)))
    return nn.functional.one_hot(index, K).to(DOUBLE)


def exact(
    family: Callable, parameters: list[Tensor], objectives: Objectives, N: int, K: int
) -> tuple[Tensor, list[Tensor]]:
    """Values (8,) and gradients (8, N, .) by enumeration."""
    leaves = [p.expand(8, *p.shape).clone().requires_grad_() for p in parameters]
    log_probs = family(leaves).discrete().logits
    every = states(N, K)
    log_p = (every * log_probs.unsqueeze(1)).sum((-1, -2))
    f = torch.cat([objectives.plain(every)] * 2)
    term = objectives.extra(leaves)
    value = (log_p.exp() * f).sum(1) + torch.cat([torch.zeros_like(term[:4]), term[4:]])
    return value.detach(), list(torch.autograd.grad(value.sum(), leaves))


def replicate(
    estimator: E.Estimator,
    family: Callable,
    parameters: list[Tensor],
    objectives: Objectives,
    B: int,
    dtype: torch.dtype = DOUBLE,
) -> tuple[Tensor, list[Tensor]]:
    """B independent estimates: values (8, B) and gradients (8, B, N, .)."""
    leaves = [p.to(dtype).expand(8, B, *p.shape).clone().requires_grad_() for p in parameters]
    wide = [leaf.to(DOUBLE) for leaf in leaves]
    f = objectives.of_batch(wide)
    loss = estimator(family(leaves), lambda z: f(z.to(DOUBLE)).to(dtype))
    loss.sum().backward()
    return loss.detach().double(), [leaf.grad.double() for leaf in leaves]  # type: ignore[union-attr]


# One run of all tests that compare a mean fails for a correct program with at most this probability (normal
# approximation, Bonferroni over fewer than 10,000 means); the seed is fixed, so that it fails always or never.
FAILURE_RATE = 1e-3
Z = float(stats.norm.isf(FAILURE_RATE / 2 / 10_000))


def assert_mean(samples: Tensor, expected: Tensor, slack: float = 1e-9) -> None:
    """Along the second dimension, the mean is what is expected within its standard error."""
    error = samples.std(1) / math.sqrt(samples.shape[1])
    excess = (samples.mean(1) - expected).abs() / (Z * error + slack)
    assert excess.max() < 1, f"{float(excess.max() * Z):.1f} standard errors off"


def relax(N: int, K: int) -> Relax:
    return Relax(ControlNetwork((N, K), factor=0.5).double(), temperature=0.4)


def black_box_relax(N: int, K: int) -> Relax:
    return Relax(ControlNetwork((N, K), factor=1.0).double(), temperature=0.4, with_loss=False)


def rodeo(N: int, K: int) -> E.Rodeo:
    estimator = E.Rodeo(3, 20).double()
    for network in (estimator.baseline, estimator.score):
        network.factor.data.fill_(0.7)
    return estimator


UNBIASED: dict[str, Callable[[int, int], E.Estimator]] = {
    "reinforce": lambda N, K: Reinforce(),
    "running mean": lambda N, K: Reinforce(RunningMean(0.5, shape=(8,))),
    "leave one out": lambda N, K: Reinforce(LeaveOneOut(), num_samples=3),
    "rebar": lambda N, K: Rebar(temperature=0.4, eta=0.8),
    "rebar, a new draw": lambda N, K: Rebar(temperature=0.4, eta=0.8, tied=False),
    "rebar twice": lambda N, K: Rebar(temperature=0.4, num_samples=2),
    "relax": relax,
    "relax, black box": black_box_relax,
    "enumerate": lambda N, K: E.Enumerate(chunk=7),
    "carms": lambda N, K: E.CARMS(2),
    "carms of 5": lambda N, K: E.CARMS(5),
    "double control variate": lambda N, K: E.DoubleControlVariate(3, weight=0.7),
    "rodeo": rodeo,
    "unordered set of 2": lambda N, K: UnorderedSet(2),
    "unordered set": lambda N, K: UnorderedSet(min(K**N, 5)),
}
SHAPES = [(1, 2), (1, 4), (2, 3), (3, 2)]

EVERY: dict[str, Callable[[int, int], E.Estimator]] = {
    **UNBIASED,
    "running mean": lambda N, K: Reinforce(RunningMean()),
    "pathwise": lambda N, K: Pathwise(),
    "straight-through": lambda N, K: StraightThrough(),
    "relaxed straight-through": lambda N, K: RelaxedStraightThrough(),
    "rao-blackwell": lambda N, K: RaoBlackwellStraightThrough(4),
    "gapped": lambda N, K: E.GappedStraightThrough(),
    "reinmax": lambda N, K: ReinMax(),
    "zgr": lambda N, K: E.ZGR(),
    "mve": lambda N, K: E.MVE(),
    "reinmax-rao": lambda N, K: E.ReinMaxRao(num_conditional=4),
}
