"""Training a stack to its end with its records, from where it was left, and the models that came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from igr.experiments.errors import RecordError
from igr.experiments.models.stacked import StackedModel
from igr.experiments.runs.records import RunFolder, Stack
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.training.compute import CPU, Compute
from igr.experiments.training.config import RunConfig
from igr.experiments.training.trainer import METRICS, EpochStopped, StackTrainer, build

_METRICS_EVERY = 10.0  # seconds
_SAVING_SHARE = 0.25  # the most that saving may take of the time that training does


def load_model(
    folder: RunFolder, num_pixels: int, device: torch.device | str = "cpu"
) -> StackedModel:
    """The trained model of a run, a stack of one."""
    path = folder.path / "weights.safetensors"
    return make_model(folder.config, folder.weights(), path, num_pixels, device)


def make_model(
    config: RunConfig,
    weights: dict[str, Tensor],
    path: Path,
    num_pixels: int,
    device: torch.device | str = "cpu",
) -> StackedModel:
    """The model of such a run with these weights, which are from `path`."""
    model = build([config], num_pixels, device=device)
    expected = {name: (value.shape, value.dtype) for name, value in model.tensors.items()}
    if {name: (value.shape, value.dtype) for name, value in weights.items()} != expected:
        raise RecordError(f"{path}: the weights do not fit the run's configuration and data set")
    weights = {name: value.to(device) for name, value in weights.items()}
    return model.with_tensors(weights, model.temperatures)


def train_stack(
    stack: Stack,
    data: Tensor,
    *,
    compute: Compute = CPU,
    stop: StopRequest | None = None,
    advance: Callable[[], object] = lambda: None,
    epoch_done: Callable[[int, Tensor], object] = lambda epoch, metrics: None,
    say: Callable[[str], object] = lambda text: None,
    test: Tensor | None = None,
    expected: float = 0.0,
    every: float = 0.0,
) -> None:
    """Train a stack to its end, from its last saved epoch if there is one.

    The state is saved after every epoch; where that would take more than a quarter of the time, or come less than
    `every` seconds after the last one, less often. Metrics, which the state holds too, are written every
    `_METRICS_EVERY` seconds and at the end. With `test`, they have the relaxed models' ELBO on those images besides:
    that is for curves of it, and nothing is chosen by it.

    `expected` is how many seconds that should take: where it is left to that, steps of long trainings are compiled, and
    `say` is told so.

    Raises:
        Interrupted: if `stop` asks for it; what was finished has been saved.
    """
    if stack.finished:
        return
    stop = stop or StopRequest()
    trainer = StackTrainer(
        stack.runs, data, device=compute.device, compiled=compute.compiles(expected)
    )
    if trainer.compiled and compute.compiled is None:
        say("training steps are compiled, which takes a while at first (or: --no-compile)")
    history = torch.empty(0, len(stack.runs), len(METRICS) + (test is not None) + 1)
    state = stack.load()
    stack.create()
    if state is not None:
        try:
            epochs_saved = int(state["epoch"])
            if state["metrics"].shape != (epochs_saved, *history.shape[1:]):
                raise ValueError(f"metrics of {epochs_saved} epochs are not there")
            history = state.pop("metrics").float()
            trainer.load_state(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise RecordError(
                f"{stack.path} is damaged ({error}); delete it to start again"
            ) from error
        epoch_done(trainer.epoch, history[-1])
    saved, saving, training = trainer.epoch, 0.0, 0.0
    written = -math.inf
    last_saved = time.perf_counter()
    before = history[-1, 0, -1].item() if len(history) else 0.0
    epochs = stack.runs[0].epochs

    def nothing_to_lose() -> bool:
        return stop.requested and saved == trainer.epoch

    while trainer.epoch < epochs:
        start = time.perf_counter()
        try:
            metrics = trainer.train_epoch(advance, nothing_to_lose)
        except EpochStopped:
            raise Interrupted(trainer.epoch) from None
        training += time.perf_counter() - start
        seconds = torch.full((len(stack.runs), 1), before + training)
        columns = [metrics.float(), seconds]
        if test is not None:
            columns.insert(1, trainer.relaxed_elbo(test).float().unsqueeze(1))
        history = torch.cat([history, torch.cat(columns, 1).unsqueeze(0)])
        epoch_done(trainer.epoch, history[-1])
        start = time.perf_counter()
        last = stop.requested or trainer.epoch == epochs
        if last or (saving <= _SAVING_SHARE * training and start - last_saved >= every):
            stack.save({**trainer.state(), "metrics": history})
            saved, last_saved = trainer.epoch, start
            if last or start - written > _METRICS_EVERY:
                stack.write_metrics(_rows(history))
                written = start
            saving += time.perf_counter() - start
    stack.write_metrics(_rows(history))
    stack.finish(
        lambda r: {
            k: v.detach().cpu().contiguous() for k, v in trainer.model.run(r).tensors.items()
        }
    )


def _rows(history: Tensor) -> list[list[dict[str, float]]]:
    """The metrics of each run, one row for each epoch."""
    names = (*METRICS, *["test_elbo"] * (history.shape[-1] - len(METRICS) - 1), "seconds")
    return [
        [{"epoch": i + 1, **dict(zip(names, row, strict=True))} for i, row in enumerate(each)]
        for each in history.transpose(0, 1).tolist()
    ]
