"""Sweeps in a folder of many, whose runs train side by side and are then scored.

::

    DIR/sweeps/NAME/          a sweep as `records` has it; the name ends in a digest of its settings, so that whatever
                              needs the same runs finds them
    DIR/results.csv           one row for each run
    DIR/locks/                held by the processes at work
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from igr.experiments import data
from igr.experiments.errors import ConfigError
from igr.experiments.files import read_json, write_json
from igr.experiments.runs.jobs import Context, locked
from igr.experiments.runs.records import RunFolder, Stack, SweepFolder
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.train import load_model, select_runs, train_stack
from igr.experiments.training import evaluation
from igr.experiments.training.config import (
    RunConfig,
    SweepConfig,
    check_count,
    check_distinct,
    stacks,
)


def digest(value: Any) -> str:
    """A short name for what JSON can hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


@functools.lru_cache(maxsize=1)
def _dataset(name: str) -> data.Dataset:
    return data.load(name)


def split_images(config: SweepConfig | RunConfig) -> tuple[Tensor, Tensor]:
    """The images that such runs train on, and those they hold out.

    Raises:
        ConfigError: where there are not enough.
    """
    images = _dataset(config.dataset).train
    if config.train_images > len(images):
        raise ConfigError(
            f"train-images: expected at most the {len(images)} of {config.dataset}, got {config.train_images}"
        )
    count = config.train_images or len(images)
    first = count - config.held_out
    if first < config.batch_size:
        raise ConfigError(
            f"batch-size: expected at most the {max(first, 0)} images to train on, got {config.batch_size}"
        )
    return images[:first], images[first:count]


@dataclass(frozen=True)
class Scoring:
    """Which images a trained run is scored on, and with how many samples m; 0 images are all of them."""

    held_out: bool
    images: int
    samples: int

    @property
    def name(self) -> str:
        """Name of the evaluation within the run's folder."""
        images = f"-first-{self.images}" if self.images else ""
        return f"{'held-out' if self.held_out else 'test'}{images}-m{self.samples}"

    def pick(self, config: SweepConfig) -> Tensor:
        """The images."""
        images = split_images(config)[1] if self.held_out else _dataset(config.dataset).test
        if self.images > len(images):
            raise ConfigError(
                f"test-images: expected at most the {len(images)} of {config.dataset}, got {self.images}"
            )
        return images[: self.images or len(images)]

    def count(self, config: SweepConfig) -> int:
        """How many images, without reading any."""
        if self.held_out:
            return config.held_out
        return self.images or {"digits": 297, "omniglot": 8115}.get(config.dataset, 10_000)


# Rough seconds on one core, for the time left; what is measured soon counts for more.
_STEP = {"linear": 3e-3, "nonlinear": 8e-3, "sop": 5e-3}
_SAMPLE = {"linear": 5e-6, "nonlinear": 12e-6, "sop": 18e-6}
_SLOWNESS = {"igr-planar": 1.2, "relax": 8.0, "unordered-set": 1.3}


def expected(config: SweepConfig, scorings: Sequence[Scoring]) -> tuple[float, float]:
    """Seconds that training and scoring are expected to take."""
    source = data.SOURCES.get(config.dataset)
    D = math.prod(source.shape) if source else 784
    size = (100 + D) / 884
    count = config.train_images or {"digits": 1500, "omniglot": 24_345}.get(config.dataset, 60_000)
    steps = config.epochs * (count - config.held_out) / 100
    runs = len(config.runs())
    slowness = _SLOWNESS.get(config.families[0], 1.0) * _SLOWNESS.get(config.estimator, 1.0)
    slowness *= config.num_samples
    training = steps * runs * slowness * size * _STEP.get(config.architecture, 9e-3)
    per_sample = _SAMPLE.get(config.architecture, 6e-6) * size
    scoring = runs * per_sample * sum(s.count(config) * s.samples for s in scorings)
    return training + 0.01, scoring + 0.01


@dataclass(frozen=True)
class Result:
    """A finished run."""

    config: RunConfig
    run: RunFolder
    scores: Mapping[str, Mapping[str, float]]
    """By `Scoring.name`."""
    metrics: Sequence[Mapping[str, float]]
    side_by_side: int
    """How many runs trained in its stack."""

    @property
    def seconds_per_epoch(self) -> float:
        """Median time of an epoch, for one of the runs trained side by side."""
        ends = [0.0, *(row["seconds"] for row in self.metrics)]
        epochs = [b - a for a, b in itertools.pairwise(ends)]
        # The first epoch warms up, where there are others.
        return statistics.median(epochs[1:] or epochs) / self.side_by_side


def train(
    stack: Stack,
    images: Tensor,
    context: Context,
    part: str,
    units: float,
    *,
    test: Tensor | None = None,
    before: Sweep | None = None,
) -> None:
    """Train a stack to its end, and tell of it as so many units of `part`."""
    reporter, config, count = context.reporter, stack.runs[0], len(stack.runs)
    if stack.finished:
        reporter.skip(part, units)
        return
    steps = len(images) // config.batch_size
    step = units / (config.epochs * steps)
    what = f"{count} runs side by side, " if count > 1 else ""
    begun = False

    def epoch_done(epoch: int, metrics: Tensor) -> None:
        nonlocal begun
        if not begun:
            reporter.skip(part, epoch * steps * step)
        begun = True
        elbo = metrics[metrics[:, 0].isfinite(), 0]
        best = f"training ELBO {elbo.max():.1f}" if len(elbo) else "diverged"
        reporter.note(part, f"{what}epoch {epoch} of {config.epochs}, {best}")

    def advance() -> None:
        nonlocal begun
        begun = True
        reporter.advance(part, step)

    reporter.note(part, f"{what}epoch 0 of {config.epochs}")
    train_stack(
        stack,
        images,
        compute=context.compute,
        stop=context.stop,
        advance=advance,
        epoch_done=epoch_done,
        test=test,
        begin=before.saved(context.root, stack.runs) if before else None,
        expected=units,
    )


def score(
    run: RunFolder,
    images: Tensor,
    name: str,
    samples: int,
    context: Context,
    part: str,
    units: float,
) -> dict[str, Any]:
    """The evaluation of that name, made now unless it is there already, for as many samples and images."""
    there = run.evaluation(name)
    if there is not None and (there["samples"], there["images"]) == (samples, len(images)):
        context.reporter.skip(part, units)
        return there

    def advance(count: int) -> None:
        if context.stop.requested:
            raise Interrupted(run.config.epochs)
        context.reporter.advance(part, count * units / len(images))

    model = load_model(run, images.shape[-1], context.compute.device)
    seed = run.config.seed
    found = dataclasses.asdict(
        evaluation.evaluate(model, images, samples=samples, seed=seed, advance=advance)
    )
    write_json(run.path / f"{name}.json", found)
    return found


@dataclass(frozen=True)
class Sweep:
    """Runs of one family, trained side by side and scored.

    Attributes:
        config: of the runs.
        scorings: on which images.
        label: what progress calls it.
        before: the same runs, others perhaps among them, for fewer epochs, which these go on from where it has left
            their states. That changes nothing but the time: they are the runs that they would be from the start.
        leaves_states: for other sweeps to go on from.
    """

    config: SweepConfig
    scorings: tuple[Scoring, ...]
    label: str = ""
    before: Sweep | None = None
    leaves_states: bool = False

    @property
    def name(self) -> str:
        """Folder of the sweep: its settings in short, and a digest of all of them."""
        c = self.config
        return f"{c.dataset}-{c.architecture}-{c.families[0]}-{digest(c.to_dict())}"

    @property
    def title(self) -> str:
        c = self.config
        return self.label or f"{c.dataset} {c.architecture} {c.families[0]}"

    @property
    def units(self) -> float:
        return sum(expected(self.config, self.scorings))

    def folder(self, root: Path) -> SweepFolder:
        """Where its records are."""
        return SweepFolder(root / "sweeps" / self.name)

    def is_done(self, root: Path) -> bool:
        """Whether every run is trained and scored."""
        folder = self.folder(root)
        runs = [folder.run(config) for config in self.config.runs()]
        return all(
            run.finished and (run.path / f"{s.name}.json").exists()
            for run in runs
            for s in self.scorings
        )

    def run(self, context: Context) -> None:
        self.complete(context, self.title)

    def complete(
        self, context: Context, part: str, wait: Callable[[], object] | None = None
    ) -> None:
        """Train and score what is missing, and tell of it as part of the job `part`.

        Raises:
            Busy: if another process is at it, unless `wait` is given.
            Interrupted: if a stop was asked for; what was finished is kept.
        """
        if self.is_done(context.root):
            context.reporter.skip(part, self.units)
            return
        with locked(context.root, self.name, wait=wait):
            folder = self.folder(context.root)
            images, _ = split_images(self.config)
            folder = SweepFolder.open(folder.path, self.config, resume=True)
            training, scoring = expected(self.config, self.scorings)
            test = _dataset(self.config.dataset).test if self.config.test_curve else None
            groups = stacks(self.config.runs())
            for group in groups:
                with folder.claim(group) as stack:
                    units = training / len(groups)
                    train(stack, images, context, part, units, test=test, before=self.before)
                    if not self.leaves_states:
                        stack.forget()  # killed after the last weights, a process leaves one
            runs = [folder.run(config) for config in self.config.runs()]
            units = scoring / len(self.scorings) / len(runs)
            for s in self.scorings:
                some, what = s.pick(self.config), "held-out" if s.held_out else "test"
                for i, run in enumerate(runs):
                    text = f"scoring run {i + 1} of {len(runs)} on {what} images"
                    context.reporter.note(part, text)
                    score(run, some, s.name, s.samples, context, part, units)

    def saved(self, root: Path, runs: Sequence[RunConfig]) -> dict[str, Tensor] | None:
        """The states that it has left of runs that are like `runs` but for their epochs; None if it has not."""
        wanted = [dataclasses.replace(run, epochs=self.config.epochs) for run in runs]
        for stack in self._stacks(root):
            if set(wanted) <= set(stack.runs) and (state := stack.load()) is not None:
                return select_runs(state, [stack.runs.index(run) for run in wanted])
        return None

    def _stacks(self, root: Path) -> list[Stack]:
        return [Stack(self.folder(root), runs) for runs in stacks(self.config.runs())]

    def forget_states(self, root: Path) -> None:
        """Remove what it has left for others."""
        for stack in self._stacks(root):
            stack.forget()

    def results(self, root: Path) -> list[Result]:
        """What came out, once it is done."""
        folder = self.folder(root)
        sizes = {run: len(stack) for stack in stacks(self.config.runs()) for run in stack}
        results = []
        for config in self.config.runs():
            run = folder.run(config)
            scores = {s.name: run.evaluation(s.name) or {} for s in self.scorings}
            results.append(Result(config, run, scores, run.metrics(), sizes[config]))
        return results


def grid(vary: Mapping[str, Sequence[Any]], *, samples: int, test_images: int = 0) -> list[Sweep]:
    """Every combination of settings, as sweeps whose runs differ in temperature and seed alone.

    Args:
        vary: values for each name among `RunConfig`'s fields; ``seeds`` gives the number of seeds.
        samples: m of the bounds.
        test_images: how many to score; 0 stands for all.
    """
    check_count("samples", samples)
    known = {field.name for field in dataclasses.fields(RunConfig)} | {"seeds"}
    for name, values in vary.items():
        if name not in known - {"seed"}:
            raise ConfigError(
                f"{name}: no such setting; expected one of {', '.join(sorted(known - {'seed'}))}"
            )
        check_distinct(name, values)
    side_by_side = {
        "temperatures": tuple(vary.get("temperature", (0.1,))),
        "seeds": vary.get("seeds", (1,))[-1],
    }
    others = {k: v for k, v in vary.items() if k not in ("temperature", "seeds", "family")}
    sweeps = []
    for family in vary.get("family", ("igr-i",)):
        for values in itertools.product(*others.values()):
            chosen = dict(zip(others, values, strict=True))
            config = SweepConfig(**chosen, **side_by_side, families=(family,))
            scorings = [Scoring(False, test_images, samples)]
            if config.held_out:
                scorings.append(Scoring(True, 0, min(100, samples)))
            changing = " ".join(f"{k}={v}" for k, v in chosen.items() if len(vary[k]) > 1)
            label = f"{config.dataset} {family} {changing}".strip()
            sweeps.append(Sweep(config, tuple(scorings), label))
    return sweeps


def run_rows(root: Path) -> list[dict[str, Any]]:
    """A row for each finished run: settings, and its scores on the most images and samples."""
    rows = []
    for path in sorted((root / "sweeps").glob("*/config.json")):
        folder = SweepFolder(path.parent)
        configs = folder.config.runs()
        sizes = {run: len(stack) for stack in stacks(configs) for run in stack}
        for config in configs:
            run = folder.run(config)
            if not run.finished:
                continue
            scores: dict[str, Any] = {}
            for part, pattern in (("test", "test*.json"), ("held_out", "held-out*.json")):
                found = [read_json(file) for file in run.path.glob(pattern)]
                best = max(found, key=lambda each: (each["images"], each["samples"]), default={})
                scores |= {f"{part}_{key}": value for key, value in best.items()}
            result = Result(config, run, {}, run.metrics(), sizes[config])
            rows.append(
                {
                    "sweep": path.parent.name,
                    "run": run.path.relative_to(root).as_posix(),
                    **config.to_dict(),
                    **scores,
                    "seconds_per_epoch": result.seconds_per_epoch,
                    "side_by_side": result.side_by_side,
                }
            )
    return rows


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and standard deviation; NaN where there is none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return math.nan, math.nan
    spread = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return statistics.fmean(numbers), spread


def nats(mean: float, spread: float = math.nan, *, missing: str = "diverged") -> str:
    """A mean with its spread, if there is one."""
    if not math.isfinite(mean):
        return missing
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"
