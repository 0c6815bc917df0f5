r"""What a training step minimises: the relaxed objective, or the discrete one through a gradient estimator.

Either way the loss is :math:`-\log p(x \mid z) + \mathrm{KL}`, the negative ELBO: the KL is *added* to the
reconstruction loss. The released code subtracts it where RELAX is used with IGR (erratum E7): that is a weight of -1.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from igr import estimators
from igr.distributions import RecoveredCategorical
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
    kl_weight: float = 1.0

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
        return self.kl_weight * kl - log_likelihood, log_likelihood, kl


@dataclass(frozen=True)
class Setting:
    """What an estimator in the VAE is made for: a stack of runs."""

    temperatures: tuple[float, ...]
    """One for each run."""
    num_samples: int
    num_variables: int
    num_categories: int
    estimator_temperature: float | None = None
    """The estimator's own."""

    @property
    def own(self) -> float:
        """The estimator's own temperature, 1 by default."""
        return 1.0 if self.estimator_temperature is None else self.estimator_temperature

    @property
    def runs(self) -> int:
        """R."""
        return len(self.temperatures)

    @property
    def initial(self) -> Tensor:
        """Where learned temperatures start, ``(R, 1, 1)``."""
        return torch.tensor(self.temperatures).view(-1, 1, 1)

    def constant(self, value: float) -> Tensor:
        """A number for each run, ``(R, 1)``."""
        return torch.full((self.runs, 1), value)


Make = Callable[[Setting], Estimator]


def _relax(s: Setting) -> Estimator:
    network = estimators.ControlNetwork((s.num_variables, s.num_categories), stack=(s.runs,))
    return estimators.Relax(network, s.initial, s.num_samples, sample_axis=True)


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
        estimators.RunningMean(shape=(s.runs,)), s.num_samples, sample_axis=True
    ),
    "reinforce-leave-one-out": lambda s: estimators.Reinforce(
        estimators.LeaveOneOut(), s.num_samples, sample_axis=True
    ),
    "disarm": lambda s: estimators.DisARM(sample_axis=True),
    "carms": lambda s: estimators.CARMS(s.num_samples, sample_axis=True),
    "double-control-variate": lambda s: estimators.DoubleControlVariate(
        s.num_samples, s.constant(1.0), sample_axis=True
    ),
    "rodeo": lambda s: estimators.Rodeo(s.num_samples, stack=(s.runs,), sample_axis=True),
    "rebar": lambda s: estimators.Rebar(
        s.initial, s.constant(1.0), s.num_samples, sample_axis=True
    ),
    "relax": _relax,
    "unordered-set": lambda s: estimators.UnorderedSet(s.num_samples, sample_axis=True),
}
"""Estimators of the gradient of the discrete model's ELBO, by their names on the command line.

What they learn or remember has a leading dimension of runs, or is the same for all.
"""

OWN_TEMPERATURE = ("gapped-straight-through", "reinmax", "reinmax-rao")
"""Those with a temperature of their own, which is not learned; that of the relaxation plays no part in them."""


@lru_cache
def declared(name: str) -> Estimator:
    """One of `ESTIMATORS`, to read from it what it needs."""
    with torch.random.fork_rng(devices=[]):
        return ESTIMATORS[name](Setting((1.0,), 2, num_variables=1, num_categories=2))


class Estimated(Objective):
    r"""The ELBO of the recovered discrete model, its gradient by one of `igr.estimators`.

    .. math:: \mathrm{estimator}\big(q, z \mapsto -\log p(x \mid z)\big)
              + \sum_n \mathrm{KL}(\hat q_n \,\|\, \text{uniform})

    The KL of the recovered categorical is exact (Prop. 2 for IGR-I) and no part of what is estimated. Each run draws
    from a generator of its own, and what its estimator learns starts from its own seed: a run in a stack is the same
    run as alone.

    `Relax` and `Rebar` learn the temperature of their control variate; the run's is where it starts.
    """

    def __init__(
        self, make: Make, setting: Setting, seeds: Sequence[int], kl_weight: float = 1.0
    ) -> None:
        self.kl_weight = kl_weight
        states = []
        with torch.random.fork_rng(devices=[]):
            for temperature, seed in zip(setting.temperatures, seeds, strict=True):
                torch.manual_seed(stream(seed, "estimator").initial_seed())
                alone = make(dataclasses.replace(setting, temperatures=(temperature,)))
                states.append(alone.state_dict())
            self.estimator = make(setting)
        self.estimator.load_state_dict(
            {
                name: torch.cat([state[name] for state in states]) if value.dim() else value
                for name, value in states[0].items()
            }
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Estimated:
        """The same, where and in what the model computes."""
        self.estimator.to(device=device, dtype=dtype)
        return self

    def empty_noise(self, model: Any, shape: Sequence[int], batch_size: int) -> Tensor:
        """The noise is a seed for each step."""
        return torch.empty((*shape, 1), dtype=torch.int64, device=model.temperatures.device)

    def fill_noise(self, model: Any, out: Tensor, generator: torch.Generator) -> None:
        out.random_(generator=generator)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.estimator.state_dict(keep_vars=True))

    def __call__(
        self, model: StackedVAE, x: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parameters = model.encode(x)
        # Run by run, as much as a core's cache holds: Proposition 2 of all of them at once takes half as long again.
        each = [
            model.family.distribution(p, t).discrete().logits
            for p, t in zip(parameters.split(1), model.temperature.split(1), strict=True)
        ]
        discrete = RecoveredCategorical(logits=torch.cat(each), validate_args=False)

        def loss(z: Tensor) -> Tensor:
            samples = z.mT.movedim(0, 1)  # (R, S, B, K, N)
            every = x.repeat(1, len(z), 1)
            values = -model.likelihood.log_prob(model.decode(samples.flatten(1, 2)), every)
            return values.unflatten(1, (len(z), -1)).movedim(1, 0)

        # The probabilities are at hand, for the KL.
        on_discrete = self.estimator.needs is estimators.Needs.PROBABILITIES
        generators = [torch.Generator(x.device).manual_seed(seed) for (seed,) in noise.tolist()]
        q = discrete if on_discrete else model.family.distribution(parameters, model.temperature)
        value = self.estimator(q, loss, generator=generators)
        # To the uniform prior.
        kl = (math.log(model.family.num_categories) - discrete.entropy()).sum(-1)
        return value + self.kl_weight * kl, -value, kl
