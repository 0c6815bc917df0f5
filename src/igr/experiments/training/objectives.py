r"""What a training step minimises: the relaxed objective, or the discrete one through a gradient estimator.

Either way the loss is :math:`-\log p(x \mid z) + \mathrm{KL}`, the negative ELBO: the KL is *added* to the
reconstruction loss. The released code subtracts it where RELAX is used with IGR (erratum E7).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from igr import estimators
from igr.estimators import Estimator
from igr.experiments.models.vae import StackedVAE
from igr.experiments.streams import stream

RELAXED = ("pathwise", "sticking-the-landing")
"""Estimators of the relaxed objective, which every family has of its own."""


class Objective(ABC):
    """Turns a stack's model, images and noise into the loss of each run and image."""

    @abstractmethod
    def empty_noise(self, model: Any, shape: Sequence[int], batch_size: int) -> Tensor:
        """Room for the noise of `batch_size` images, for each element of `shape`."""

    @abstractmethod
    def fill_noise(self, model: Any, out: Tensor, generator: torch.Generator) -> None:
        """Draw it."""

    @abstractmethod
    def __call__(self, model: Any, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, log p(x | z) and KL of images ``(R, B, D)``, each ``(R, B)``."""

    def tensors(self) -> dict[str, Tensor]:
        """What it remembers or learns, by name."""
        return {}


@dataclass(frozen=True)
class Relaxed(Objective):
    """The ELBO of the relaxed model (4), pathwise, with the family's own KL, averaged over `num_samples`."""

    num_samples: int = 1

    def empty_noise(self, model: Any, shape: Sequence[int], batch_size: int) -> Tensor:
        like = model.temperatures
        size = (*shape, self.num_samples * batch_size, *model.noise_shape)
        return torch.empty(size, dtype=like.dtype, device=like.device)

    def fill_noise(self, model: Any, out: Tensor, generator: torch.Generator) -> None:
        model.family.fill_noise(out, generator)

    def __call__(self, model: Any, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.num_samples > 1:
            x = x.repeat(1, self.num_samples, 1)
        log_likelihood, kl = model.elbo_terms(x, noise)
        if self.num_samples > 1:
            log_likelihood, kl = (
                term.unflatten(1, (self.num_samples, -1)).mean(1) for term in (log_likelihood, kl)
            )
        return kl - log_likelihood, log_likelihood, kl


@dataclass(frozen=True)
class Setting:
    """What an estimator in the VAE is made for: one run."""

    temperature: float
    num_samples: int
    num_variables: int
    num_categories: int
    estimator_temperature: float | None = None
    """The estimator's own."""

    @property
    def own(self) -> float:
        """The estimator's own temperature, 1 by default."""
        return 1.0 if self.estimator_temperature is None else self.estimator_temperature


Make = Callable[[Setting], Estimator]


def _relax(s: Setting) -> Estimator:
    network = estimators.ControlNetwork((s.num_variables, s.num_categories))
    return estimators.Relax(network, s.temperature, s.num_samples, sample_axis=True)


ESTIMATORS: dict[str, Make] = {
    "enumerate": lambda s: estimators.Enumerate(sample_axis=True),
    "straight-through": lambda s: estimators.StraightThrough(s.num_samples, sample_axis=True),
    "relaxed-straight-through": lambda s: estimators.RelaxedStraightThrough(
        s.num_samples, sample_axis=True
    ),
    "rao-blackwell-straight-through": lambda s: estimators.RaoBlackwellStraightThrough(
        num_samples=s.num_samples, sample_axis=True
    ),
    "gapped-straight-through": lambda s: estimators.GappedStraightThrough(
        temperature=s.own, num_samples=s.num_samples, sample_axis=True
    ),
    "reinmax": lambda s: estimators.ReinMax(s.own, s.num_samples, sample_axis=True),
    "reinmax-rao": lambda s: estimators.ReinMaxRao(
        s.own, num_samples=s.num_samples, sample_axis=True
    ),
    "zgr": lambda s: estimators.ZGR(s.num_samples, sample_axis=True),
    "mve": lambda s: estimators.MVE(s.num_samples, sample_axis=True),
    "reinforce": lambda s: estimators.Reinforce(num_samples=s.num_samples, sample_axis=True),
    "reinforce-running-mean": lambda s: estimators.Reinforce(
        estimators.RunningMean(), s.num_samples, sample_axis=True
    ),
    "reinforce-leave-one-out": lambda s: estimators.Reinforce(
        estimators.LeaveOneOut(), s.num_samples, sample_axis=True
    ),
    "disarm": lambda s: estimators.DisARM(sample_axis=True),
    "carms": lambda s: estimators.CARMS(s.num_samples, sample_axis=True),
    "double-control-variate": lambda s: estimators.DoubleControlVariate(
        s.num_samples, sample_axis=True
    ),
    "rebar": lambda s: estimators.Rebar(s.temperature, 1.0, s.num_samples, sample_axis=True),
    "relax": _relax,
    "unordered-set": lambda s: estimators.UnorderedSet(s.num_samples, sample_axis=True),
}
"""Estimators of the gradient of the discrete model's ELBO, by their names on the command line."""

OWN_TEMPERATURE = ("gapped-straight-through", "reinmax", "reinmax-rao")
"""Those with a temperature of their own, which is not learned; that of the relaxation plays no part in them."""


@lru_cache
def declared(name: str) -> Estimator:
    """One of `ESTIMATORS`, to read from it what it needs."""
    with torch.random.fork_rng(devices=[]):
        return ESTIMATORS[name](Setting(1.0, 2, num_variables=1, num_categories=2))


class Estimated(Objective):
    r"""The ELBO of the recovered discrete model, its gradient by one of `igr.estimators`.

    .. math:: \mathrm{estimator}\big(q, z \mapsto -\log p(x \mid z)\big)
              + \sum_n \mathrm{KL}(\hat q_n \,\|\, \text{uniform})

    The KL of the recovered categorical is exact (Prop. 2 for IGR-I) and no part of what is estimated. Every
    run has an estimator of its own and is computed by itself, torch's global generator seeded from its own noise: a
    run in a stack is the same run as alone.

    `Relax` and `Rebar` learn the temperature of their control variate; the run's is where it starts.
    """

    def __init__(self, make: Make, settings: Sequence[Setting], seeds: Sequence[int]) -> None:
        self.estimators = []
        with torch.random.fork_rng(devices=[]):
            for setting, seed in zip(settings, seeds, strict=True):
                torch.manual_seed(stream(seed, "estimator").initial_seed())
                self.estimators.append(make(setting))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Estimated:
        """The same, where and in what the model computes."""
        for estimator in self.estimators:
            estimator.to(device=device, dtype=dtype)
        return self

    def empty_noise(self, model: Any, shape: Sequence[int], batch_size: int) -> Tensor:
        """The noise is a seed for each step."""
        return torch.empty((*shape, 1), dtype=torch.int64, device=model.temperatures.device)

    def fill_noise(self, model: Any, out: Tensor, generator: torch.Generator) -> None:
        out.random_(generator=generator)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{r}.{name}": tensor
            for r, estimator in enumerate(self.estimators)
            for name, tensor in estimator.state_dict(keep_vars=True).items()
        }

    def __call__(
        self, model: StackedVAE, x: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # One split of each tensor, and so one sum in the backward pass, rather than a slice for each run.
        parts = {name: value.split(1) for name, value in model.tensors.items()}
        terms = []
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            for r, estimator in enumerate(self.estimators):
                torch.manual_seed(int(noise[r]))
                tensors = {name: split[r] for name, split in parts.items()}
                single = model.with_tensors(tensors, model.temperatures[r : r + 1])
                terms.append(self._terms(single, estimator, x[r : r + 1]))
        log_likelihood, kl = (torch.cat(each) for each in zip(*terms, strict=True))
        return kl - log_likelihood, log_likelihood, kl

    def _terms(self, model: StackedVAE, estimator: Estimator, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood, with the estimated gradient behind it, and KL of a stack of one."""
        q = model.family.distribution(model.encode(x), model.temperature)
        discrete = q.discrete()

        def loss(z: Tensor) -> Tensor:
            samples = z.mT.transpose(0, 1).flatten(1, 2)  # (1, S * B, K, N)
            every = x.repeat(1, len(z), 1)
            values = -model.likelihood.log_prob(model.decode(samples), every)
            return values.unflatten(1, (len(z), -1)).transpose(0, 1)

        # The probabilities are at hand, for the KL.
        on_discrete = estimator.needs is estimators.Needs.PROBABILITIES
        value = estimator(discrete if on_discrete else q, loss)
        kl = math.log(model.family.num_categories) - discrete.entropy()  # to the uniform prior
        return -value, kl.sum(-1)
