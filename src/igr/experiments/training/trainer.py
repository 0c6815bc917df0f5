"""Training a stack of runs side by side: one forward pass, one backward pass, one fused Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from igr.experiments.errors import ConfigError
from igr.experiments.models import families, likelihoods
from igr.experiments.models.sop import StackedSOP
from igr.experiments.models.stacked import Design, StackedModel
from igr.experiments.models.vae import StackedVAE
from igr.experiments.streams import stream
from igr.experiments.training import config as config_module
from igr.experiments.training.compiled import compile_gradient
from igr.experiments.training.compute import flushed_denormals
from igr.experiments.training.config import RunConfig
from igr.experiments.training.graphs import GraphedStep, Step
from igr.experiments.training.objectives import ESTIMATORS, Estimated, Objective, Relaxed, Setting

METRICS = ("elbo", "log_likelihood", "kl")
"""What is recorded of each epoch: means over the training images, in nats per image."""

# Architectures that are no autoencoders.
_MODELS: dict[str, type[StackedVAE] | type[StackedSOP]] = {"sop": StackedSOP}

_BLOCK = 32  # steps whose noise is drawn at once; part of what a seed means


class EpochStopped(Exception):  # noqa: N818
    """Raised out of `StackTrainer.train_epoch` when its ``stop`` says so."""


def build(
    runs: Sequence[RunConfig],
    num_pixels: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> StackedModel:
    """The freshly initialised stack that `runs`, alike but for temperature and seed, describe."""
    first = runs[0]
    family = families.FAMILIES[first.family](
        first.num_categories,
        first.prior_temperature,
        sticking_the_landing=first.estimator == "sticking-the-landing",
        unit_scale=first.unit_scale,
    )
    design = Design(
        family,
        likelihoods.LIKELIHOODS[first.decoder],
        num_pixels,
        first.num_variables,
        config_module.ARCHITECTURES[first.architecture],
    )
    return _MODELS.get(first.architecture, StackedVAE).initialise(
        design,
        [run.temperature for run in runs],
        [run.seed for run in runs],
        dtype=dtype,
        device=device,
    )


def _objective(runs: Sequence[RunConfig], device: torch.device, dtype: torch.dtype) -> Objective:
    """What `runs` minimise."""
    first = runs[0]
    kl_weight = 1.0 if first.kl_weight is None else first.kl_weight
    if first.estimator not in ESTIMATORS:
        return Relaxed(first.num_samples, kl_weight)
    setting = Setting(
        tuple(run.temperature for run in runs),
        first.num_samples,
        first.num_variables,
        first.num_categories,
        first.estimator_temperature,
    )
    seeds = [run.seed for run in runs]
    return Estimated(ESTIMATORS[first.estimator], setting, seeds, kl_weight).to(device, dtype)


class StackTrainer:
    """Trains R runs that differ in temperature and seed alone.

    An epoch is ``len(data) // batch_size`` steps on a fresh random order; the remainder sits out, another one each
    epoch. Batches and noise of a run depend on its seed and the epoch alone, so a run in a stack is the same run as
    alone up to rounding, and a run that goes on from a saved epoch is the same run as one never interrupted.

    With `compiled`, the relaxed objective and its gradient go through ``torch.compile``; the same up to rounding.
    """

    def __init__(
        self,
        runs: Sequence[RunConfig],
        data: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> None:
        if not config_module.stacks(runs) == [list(runs)]:
            raise ConfigError("runs of one stack may differ in temperature and seed alone")
        self.runs = list(runs)
        self.device = torch.device(device)
        self.dtype = dtype
        data = data.to(self.device)
        # Binary images are kept as a byte a pixel: memory is what gathering a batch waits for.
        binary = bool(((data == 0) | (data == 1)).all())
        self.data = data.to(torch.uint8 if binary else dtype)
        self.batch_size = runs[0].batch_size
        self._weights = torch.full(
            (len(runs), self.batch_size), 1 / self.batch_size, dtype=dtype, device=self.device
        )
        if len(data) < self.batch_size:
            raise ConfigError(
                f"batch-size: expected at most the {len(data)} training images, got {self.batch_size}"
            )
        self.model = build(runs, data.shape[-1], dtype=dtype, device=device)
        self.objective = _objective(runs, self.device, dtype)
        relaxed = isinstance(self.objective, Relaxed)
        self.compiled = compiled and relaxed
        self._set_gradients = self._by_compiler() if self.compiled else self._by_autograd
        for value in self.model.tensors.values():
            value.requires_grad_()
        # Adam treats each number by itself: one for all is the same as one for encoder, decoder and control variate.
        self.parameters = [p for p in self._tensors().values() if p.requires_grad]
        graphed = self.device.type == "cuda" and relaxed
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=torch.tensor(runs[0].lr, device=self.device) if graphed else runs[0].lr,
            betas=(0.9, 0.999),
            fused=True,
            capturable=graphed,
        )
        self._take_step = (
            GraphedStep(self.step, self._learned, self._forget) if graphed else self.step
        )
        self.epoch = 0
        self.seeds = sorted({run.seed for run in runs})
        column = [self.seeds.index(run.seed) for run in runs]
        self._column = torch.tensor(column, device=self.device)
        self._one_to_one = column == list(range(len(self.seeds)))

    def _tensors(self) -> dict[str, Tensor]:
        """All that is learned or remembered, by name."""
        own = {f"estimator.{name}": value for name, value in self.objective.tensors().items()}
        return {**self.model.tensors, **own}

    def _learned(self) -> list[Tensor]:
        """All that a step changes, the optimiser's own last."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.parameters, *moments]

    def _forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return len(self.data) // self.batch_size

    def step(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every run on images ``(R, B, D)``; returns log p(x | z) and KL, each ``(R, B)``."""
        log_likelihood, kl = self._set_gradients(x, noise)
        self.optimizer.step()
        return log_likelihood, kl

    def _by_autograd(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        losses, log_likelihood, kl = self.objective(self.model, x, noise)
        for parameter in self.parameters:
            parameter.grad = None
        # The mean over a run's images; runs share no parameter, so the gradient of all is every run's own.
        losses.backward(self._weights)
        return log_likelihood.detach(), kl.detach()

    def _by_compiler(self) -> Step:
        tensors = self.model.tensors
        values = {name: value.detach() for name, value in tensors.items()}  # share their memory
        gradient = compile_gradient(self._loss)

        def set_gradients(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            for value in tensors.values():
                value.grad = None
            gradients, (log_likelihood, kl) = gradient(values, x, noise)
            for name, value in gradients.items():
                tensors[name].grad = value
            return log_likelihood, kl

        return set_gradients

    def _loss(
        self, tensors: dict[str, Tensor], x: Tensor, noise: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The mean over a run's images, summed over runs, with log p(x | z) and KL, as a function of the tensors."""
        model = self.model.with_tensors(tensors, self.model.temperatures)
        losses, log_likelihood, kl = self.objective(model, x, noise)
        return losses.sum() / self.batch_size, (log_likelihood, kl)

    def _set_learning_rate(self, step: int) -> None:
        """lr / (1 + lr_decay step), never below lr_min; `step` counts the optimiser's steps so far."""
        first = self.runs[0]
        if first.lr_decay:
            for group in self.optimizer.param_groups:
                lr = max(first.lr / (1 + first.lr_decay * step), first.lr_min)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images ``(R, B, D)`` and noise ``(R, ...)`` of each step of an epoch."""
        steps, B, S = self.steps_per_epoch, self.batch_size, len(self.seeds)
        order = torch.stack(
            [
                torch.randperm(len(self.data), generator=stream(s, "order", epoch))[: steps * B]
                for s in self.seeds
            ]
        ).to(self.device)
        rows = order.view(S, steps, B).unbind(1)
        generators = [stream(s, "noise", epoch, device=self.device) for s in self.seeds]
        block = self.objective.empty_noise(self.model, (S, _BLOCK), B)
        for step in range(steps):
            if step % _BLOCK == 0:
                for s, generator in enumerate(generators):
                    self.objective.fill_noise(self.model, block[s], generator)
            x = self.data.index_select(0, rows[step].reshape(-1)).to(self.dtype)
            noise = block.select(1, step % _BLOCK)
            yield self._for_runs(x.view(S, B, -1)), self._for_runs(noise)

    def _for_runs(self, drawn: Tensor) -> Tensor:
        """What was drawn for each seed, for the runs of that seed; without a copy if there is one seed alone."""
        if self._one_to_one:
            return drawn
        if len(self.seeds) == 1:
            return drawn.expand(len(self.runs), *drawn.shape[1:])
        return drawn.index_select(0, self._column)

    @flushed_denormals()
    def train_epoch(
        self,
        advance: Callable[[], object] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Train one epoch; returns the `METRICS` of each run, ``(R, 3)``.

        `advance` is called after each step; as soon as `stop` returns true the epoch is abandoned by EpochStopped, and
        the trainer must be loaded from a saved state before it can go on.
        """
        epoch = self.epoch + 1
        totals = torch.zeros(2, *self._weights.shape, dtype=self.dtype, device=self.device)
        for step, (x, noise) in enumerate(
            self.batches(epoch), start=self.epoch * self.steps_per_epoch
        ):
            if stop():
                raise EpochStopped
            self._set_learning_rate(step)
            log_likelihood, kl = self._take_step(x, noise)
            totals[0] += log_likelihood
            totals[1] += kl
            advance()
        self.epoch = epoch
        log_likelihood, kl = totals.sum(-1) / (self.steps_per_epoch * self.batch_size)
        return torch.stack([log_likelihood - kl, log_likelihood, kl], dim=1).cpu()

    @torch.no_grad()
    def relaxed_elbo(self, images: Tensor) -> Tensor:
        """ELBO of the relaxed models on other images ``(n, D)``, one sample of each, ``(R,)``."""
        family = self.model.family
        generators = [stream(s, "test", self.epoch, device=self.device) for s in self.seeds]
        total = torch.zeros(len(self.runs), dtype=torch.float64)
        for some in images.to(self.device, self.dtype).split(500):
            noise = some.new_empty(len(self.seeds), len(some), *self.model.noise_shape)
            for s, generator in enumerate(generators):
                family.fill_noise(noise[s], generator)
            x = some.expand(len(self.runs), -1, -1)
            log_likelihood, kl = self.model.elbo_terms(x, self._for_runs(noise))
            total += (log_likelihood - kl).double().sum(1).cpu()
        return total / len(images)

    def state(self) -> dict[str, Tensor]:
        """Everything that training needs to go on: parameters, Adam's moments, number of epochs."""
        state = {"epoch": torch.tensor(self.epoch)}
        for name, value in self._tensors().items():
            state[f"parameter.{name}"] = value.detach()
            for key, moment in self.optimizer.state.get(value, {}).items():
                state[f"{key}.{name}"] = moment
        return {name: value.cpu().contiguous() for name, value in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: if it is the state of another stack.
        """
        epoch, moments = int(state["epoch"]), ("exp_avg", "exp_avg_sq")
        tensors = self._tensors()
        for name, value in tensors.items():
            for key in ("parameter", *moments) if epoch and value.requires_grad else ("parameter",):
                came = state[f"{key}.{name}"]
                if (came.shape, came.dtype) != (value.shape, value.dtype):
                    raise ValueError(
                        f"{key}.{name}: expected {value.dtype} {tuple(value.shape)},"
                        f" got {came.dtype} {tuple(came.shape)}"
                    )
        self.epoch = epoch
        for name, value in tensors.items():
            with torch.no_grad():
                value.copy_(state[f"parameter.{name}"])
            if epoch and value.requires_grad:
                self.optimizer.state[value] = {
                    key: state[f"{key}.{name}"].to(self.device, copy=True)
                    for key in ("step", *moments)
                }
