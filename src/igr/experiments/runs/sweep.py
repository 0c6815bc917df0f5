"""Sweeps in a folder of many, whose runs train side by side and are then scored.

::

    DIR/sweeps/NAME/          a sweep as `records` has it; the name ends in a digest of its settings, so that whatever
                              needs the same runs finds them
    DIR/results.csv           one row for each run
    DIR/locks/                held by the processes at work

A sweep that is `alone` is in DIR itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from igr.experiments import data
from igr.experiments.errors import ConfigError
from igr.experiments.files import read_json
from igr.experiments.models.likelihoods import LIKELIHOODS
from igr.experiments.runs.jobs import Context, Steps, locked
from igr.experiments.runs.records import SCORES, RunFolder, Stack, SweepFolder, read_tensors
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.train import make_model, train_stack
from igr.experiments.training import evaluation
from igr.experiments.training.config import (
    ARCHITECTURES,
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


def check_images(config: SweepConfig | RunConfig, test_images: int = 0) -> tuple[int, int]:
    """How many images such runs train on, and how many there are with those they hold out; nothing is read.

    Raises:
        ConfigError: where the data set has not so many, or others than the decoder is for.
    """
    name, source = config.dataset, data.source_of(config.dataset)
    wanted = {"train": config.train_images, "test": test_images}
    for part, there in {"train": source.num_train, "test": source.num_test}.items():
        if wanted[part] > there:
            raise ConfigError(
                f"{part}-images: expected at most the {there} of {name}, got {wanted[part]}"
            )
    count = config.train_images or source.num_train
    if config.held_out >= count:
        if config.train_images:
            text = f"train-images: expected more than the {config.held_out} held out, got {count}"
        else:
            text = (
                f"held-out: expected fewer than the {count} training images, got {config.held_out}"
            )
        raise ConfigError(text)
    first = count - config.held_out
    if first < config.batch_size:
        how = f" ({count} less {config.held_out} held out)" if config.held_out else ""
        raise ConfigError(
            f"batch-size: expected at most the {first} images to train on{how}, got {config.batch_size}"
        )
    if LIKELIHOODS[config.decoder].needs_binary and not source.binary:
        others = [key for key, each in LIKELIHOODS.items() if not each.needs_binary]
        raise ConfigError(
            f"decoder: {config.decoder} needs a binary data set, and {name} is not; expected one of"
            f" {', '.join(others)}"
        )
    return first, count


def split_images(config: SweepConfig | RunConfig) -> tuple[Tensor, Tensor]:
    """The images that such runs train on, and those they hold out; raises what `check_images` does."""
    first, count = check_images(config)
    images = _dataset(config.dataset).train
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

    def pick(self, config: RunConfig) -> Tensor:
        """The images."""
        images = split_images(config)[1] if self.held_out else _dataset(config.dataset).test
        return images[: self.images or len(images)]

    def count(self, config: SweepConfig | RunConfig) -> int:
        """How many images, without reading any."""
        if self.held_out:
            return config.held_out
        return self.images or data.source_of(config.dataset).num_test


def usual_scorings(held_out: int, samples: int, test_images: int = 0) -> tuple[Scoring, ...]:
    """On test images, and with fewer samples on those held out, if any are."""
    check_count("samples", samples)
    test = Scoring(False, test_images, samples)
    return (test, Scoring(True, 0, min(100, samples))) if held_out else (test,)


# Rough seconds on one core, for the time left; what is measured soon counts for more.
_STEP = {"linear": 3e-3, "nonlinear": 8e-3, "sop": 5e-3}
_SAMPLE = {"linear": 5e-6, "nonlinear": 12e-6, "sop": 18e-6}
_RECOVERY = {
    "igr-planar": 1.7e-3,
    "igr-sb": 1.2e-3,
    "igr-sb-sharp": 0.8e-3,
}  # of 20 variables of 10 categories
_SLOWNESS = {"igr-planar": 1.2, "relax": 8.0, "unordered-set": 1.3}


def expected(config: SweepConfig, scorings: Sequence[Scoring]) -> tuple[float, float]:
    """Seconds that training and scoring are expected to take."""
    source = data.source_of(config.dataset)
    size = (100 + math.prod(source.shape)) / 884
    count = config.train_images or source.num_train
    steps = config.epochs * (count - config.held_out) / 100
    runs = len(config.runs())
    slowness = _SLOWNESS.get(config.families[0], 1.0) * _SLOWNESS.get(config.estimator, 1.0)
    slowness *= config.num_samples
    training = steps * runs * slowness * size * _STEP.get(config.architecture, 9e-3)
    per_sample = _SAMPLE.get(config.architecture, 6e-6) * size
    per_image = 0.0
    if config.architecture != "sop":  # which has no posterior
        codes = config.num_variables * config.num_categories
        per_image = _RECOVERY.get(config.families[0], 0.0) * codes / 200
    scoring = sum(s.count(config) * (per_image + s.samples * per_sample) for s in scorings)
    return training + 0.01, runs * scoring + 0.01


def memory(config: RunConfig, runs: int) -> int:
    """Bytes that a process takes which trains so many runs, roughly and rather more."""
    source = data.source_of(config.dataset)
    D, images = math.prod(source.shape), source.num_train + source.num_test
    codes = config.num_variables * config.num_categories
    widths = (D, *ARCHITECTURES[config.architecture], 2 * codes)
    weights = 2 * sum(a * b for a, b in itertools.pairwise(widths))
    batch = config.batch_size * config.num_samples * (20 * codes + 10 * D)
    return 500_000_000 + 12 * images * D + 4 * runs * (6 * weights + batch)


@dataclass(frozen=True)
class Result:
    """A finished run."""

    config: RunConfig
    run: RunFolder
    scores: Sequence[Mapping[str, Any]]
    """One for each of the sweep's scorings."""
    metrics: Sequence[Mapping[str, float]]
    side_by_side: int
    """How many runs trained in its stack."""

    @property
    def seconds(self) -> float:
        """Its share of the training of all that went side by side."""
        return self.metrics[-1]["seconds"] / self.side_by_side

    @property
    def seconds_per_epoch(self) -> float:
        """Median time of an epoch, for one of the runs trained side by side."""
        ends = [0.0, *(row["seconds"] for row in self.metrics)]
        epochs = [b - a for a, b in itertools.pairwise(ends)]
        # The first epoch warms up, where there are others.
        return statistics.median(epochs[1:] or epochs) / self.side_by_side


@dataclass(frozen=True)
class Train:
    """Training a stack to its end, from its last saved state.

    Attributes:
        folder: of the sweep, within the folder of everything.
        runs: of the stack.
        units: seconds that it is expected to take.
        expected: the same of the stack that it is a part of, all epochs, which decides about compiling: the runs of a
            divided stack are then those of the whole.
        first: epoch that it is expected to go on from.
        before: folder of a sweep of the same runs for fewer epochs, whose states are gone on from.
        config: of the sweep, where its folder is to be begun with it.
    """

    folder: str
    runs: tuple[RunConfig, ...]
    units: float
    expected: float
    first: int = 0
    before: str = ""
    config: SweepConfig | None = None

    @property
    def memory(self) -> int:
        """Bytes of its process."""
        return memory(self.runs[0], len(self.runs))

    def finished(self, root: Path) -> bool:
        """Whether every run was trained to its end."""
        return Stack(SweepFolder(root / self.folder), self.runs).finished

    def given(self, root: Path) -> bytes | None:
        """The last saved state."""
        content, _ = Stack(SweepFolder(root / self.folder), self.runs).saved()
        if content is None and self.before:
            content, _ = Stack(SweepFolder(root / self.before), self.runs).saved()
        return content

    def split(self, count: int) -> list[Train]:
        """As stacks of about as many runs."""
        parts, runs = min(count, len(self.runs)), self.runs
        ends = [round(i * len(runs) / parts) for i in range(parts + 1)]
        return [
            dataclasses.replace(self, runs=runs[a:b], units=self.units * (b - a) / len(runs))
            for a, b in itertools.pairwise(ends)
        ]

    def run(self, given: bytes | None, context: Context) -> None:
        config, count = self.runs[0], len(self.runs)
        images, _ = split_images(config)
        test = _dataset(config.dataset).test if config.test_curve else None
        folder = SweepFolder(Path(self.folder), context.write)
        if self.config is not None:
            folder.write_config(self.config)
        stack = Stack(folder, self.runs, given)
        epochs = config.epochs
        per_epoch = self.units / (epochs - self.first)
        step = per_epoch / max(1, len(images) // config.batch_size)
        what = f"{count} runs of {config.family} side by side" if count > 1 else config.family
        begun = False

        def epoch_done(epoch: int, metrics: Tensor) -> None:
            if not begun:
                context.skip(per_epoch * max(0, epoch - self.first))
            elbo = metrics[metrics[:, 0].isfinite(), 0]
            best = f"training ELBO {elbo.max():.1f}" if len(elbo) else "diverged"
            context.note(f"{what}, epoch {epoch} of {epochs}, {best}")

        def advance() -> None:
            nonlocal begun
            begun = True
            context.advance(step)

        context.note(f"{what}, epoch 0 of {epochs}")
        train_stack(
            stack,
            images,
            compute=context.compute,
            stop=context.stop,
            advance=advance,
            epoch_done=epoch_done,
            say=context.say,
            test=test,
            expected=self.expected,
            every=context.every,
        )


@dataclass(frozen=True)
class Score:
    """Scoring a trained run on some images.

    Attributes:
        folder: of the run, within the folder of everything.
        config: of the run.
        scoring: on which images.
        units: seconds that it is expected to take.
    """

    folder: str
    config: RunConfig
    scoring: Scoring
    units: float

    @property
    def memory(self) -> int:
        """Bytes of its process."""
        return memory(self.config, 1)

    def finished(self, root: Path) -> bool:
        """Whether there is such an evaluation."""
        return RunFolder(root / self.folder).evaluation(self.scoring.name) is not None

    def given(self, root: Path) -> bytes | None:
        """The weights."""
        return RunFolder(root / self.folder).weights_file()

    def split(self, count: int) -> list[Score]:
        """Itself alone."""
        return [self]

    def run(self, given: bytes | None, context: Context) -> None:
        run = RunFolder(Path(self.folder), context.write)
        images = self.scoring.pick(self.config)
        what = "held-out" if self.scoring.held_out else "test"
        context.note(f"scoring {self.config.name} on {what} images")
        path = run.path / "weights.safetensors"
        weights = read_tensors(given or b"", path)
        model = make_model(self.config, weights, path, images.shape[-1], context.compute.device)

        def advance(count: int) -> None:
            if context.stop.requested:
                raise Interrupted(self.config.epochs)
            context.advance(count * self.units / len(images))

        found = evaluation.evaluate(
            model,
            images,
            samples=self.scoring.samples,
            seed=self.config.seed,
            advance=advance,
        )
        run.write_evaluation(self.scoring.name, dataclasses.asdict(found))


@dataclass(frozen=True)
class Sweep:
    """Runs, trained side by side as far as they can be, and scored.

    Attributes:
        config: of the runs.
        scorings: on which images.
        label: what progress calls it.
        before: the same runs, others perhaps among them, for fewer epochs, which these go on from where it has left
            their states. That changes nothing but the time: they are the runs that they would be from the start.
        leaves_states: for other sweeps to go on from.
        alone: in a folder of its own.
    """

    config: SweepConfig
    scorings: tuple[Scoring, ...]
    label: str = ""
    before: Sweep | None = None
    leaves_states: bool = False
    alone: bool = False

    def check(self) -> None:
        """Raise ConfigError for what the data set cannot give."""
        check_images(self.config, max((s.images for s in self.scorings), default=0))

    @property
    def name(self) -> str:
        """Folder of the sweep: its settings in short, and a digest of all of them."""
        c = self.config
        return f"{c.dataset}-{c.architecture}-{c.families[0]}-{digest(c.to_dict())}"

    @property
    def title(self) -> str:
        c = self.config
        return self.label or f"{c.dataset} {c.architecture} {' '.join(c.families)}"

    @property
    def _first(self) -> int:
        """Epoch that it goes on from."""
        return self.before.config.epochs if self.before else 0

    @property
    def _units(self) -> tuple[float, float]:
        """Seconds that training and scoring are expected to take."""
        training, scoring = expected(self.config, self.scorings)
        return training * (1 - self._first / self.config.epochs), scoring

    @property
    def units(self) -> float:
        return sum(self._units)

    @property
    def datasets(self) -> tuple[str]:
        return (self.config.dataset,)

    @property
    def place(self) -> str:
        """Its folder within the folder of everything."""
        return "." if self.alone else f"sweeps/{self.name}"

    def folder(self, root: Path) -> SweepFolder:
        """Where its records are."""
        return SweepFolder(root / self.place)

    def is_done(self, root: Path) -> bool:
        """Whether every run is trained and scored."""
        folder = self.folder(root)
        runs = [folder.run(config) for config in self.config.runs()]
        return all(
            run.finished and (run.path / f"{s.name}.json").exists()
            for run in runs
            for s in self.scorings
        )

    def work(self, root: Path) -> Steps:
        with locked(root, self.name):
            folder = self.folder(root)
            if begun := (folder.path / "config.json").exists():
                folder.check(self.config)
            whole = stacks(self.config.runs())
            for runs in whole:
                Stack(folder, runs).tidy()
            groups = [(len(runs), group) for runs in whole for group in folder.groups(runs)]
            yield [functools.partial(self._stack, begun, *each) for each in groups]

    def _stack(self, begun: bool, whole: int, runs: Sequence[RunConfig], root: Path) -> Steps:
        """Train runs, of a stack of so many, then score them."""
        count = len(self.config.runs())
        training, scoring = self._units
        before = self.before.place if self.before else ""
        units = training * len(runs) / count
        of_all = expected(self.config, ())[0] * whole / count
        config = None if begun else self.config
        yield [Train(self.place, tuple(runs), units, of_all, self._first, before, config)]
        if not self.leaves_states:
            self.folder(root).forget()
        units_each = scoring / count / len(self.scorings)
        yield [
            Score(f"{self.place}/runs/{run.name}", run, s, units_each)
            for s in self.scorings
            for run in runs
        ]

    def results(self, root: Path) -> list[Result]:
        """What came out, once it is done."""
        folder = self.folder(root)
        folder.check(self.config)
        return [result(folder, config, self.scorings) for config in self.config.runs()]


def result(folder: SweepFolder, config: RunConfig, scorings: Sequence[Scoring]) -> Result:
    """A run of the sweep in `folder`, with those of its scores."""
    run = folder.run(config)
    scores = [run.evaluation(s.name) or {} for s in scorings]
    return Result(config, run, scores, run.metrics(), folder.side_by_side(config))


def grid(vary: Mapping[str, Sequence[Any]], *, samples: int, test_images: int = 0) -> list[Sweep]:
    """Every combination of settings, as sweeps whose runs differ in temperature and seed alone.

    Args:
        vary: values for each name among `RunConfig`'s fields; ``seeds`` gives the number of seeds. Without ``lr``, it
            is the data set's.
        samples: m of the bounds.
        test_images: how many to score; 0 stands for all.
    """
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
            source = data.source_of(chosen.get("dataset", RunConfig.dataset))
            chosen.setdefault("lr", source.lr)
            config = SweepConfig(**chosen, **side_by_side, families=(family,))
            scored = usual_scorings(config.held_out, samples, test_images)
            changing = " ".join(f"{k}={chosen[k]}" for k in others if len(vary[k]) > 1)
            label = f"{config.dataset} {family} {changing}".strip()
            sweeps.append(Sweep(config, scored, label))
            sweeps[-1].check()
    return sweeps


def run_rows(root: Path) -> list[dict[str, Any]]:
    """A row for each finished run: settings, and its scores on the most images and samples."""
    rows = []
    for path in sorted((root / "sweeps").glob("*/config.json")):
        folder = SweepFolder(path.parent)
        for config in folder.config.runs():
            run = folder.run(config)
            if not run.finished:
                continue
            scores: dict[str, Any] = {}
            for part, pattern in (("test", "test*.json"), ("held_out", "held-out*.json")):
                found = [read_json(file, SCORES) for file in run.path.glob(pattern)]
                best = max(found, key=lambda each: (each["images"], each["samples"]), default={})
                scores |= {f"{part}_{key}": value for key, value in best.items()}
            timed = result(folder, config, ())
            rows.append(
                {
                    "sweep": path.parent.name,
                    "run": run.path.relative_to(root).as_posix(),
                    **config.to_dict(),
                    **scores,
                    "seconds_per_epoch": timed.seconds_per_epoch,
                    "side_by_side": timed.side_by_side,
                }
            )
    return rows


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and standard deviation; NaN where there is none, or where one of the values is no finite number."""
    numbers = [value for value in values if value is not None]
    if not numbers or not all(map(math.isfinite, numbers)):
        return math.nan, math.nan
    spread = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return statistics.fmean(numbers), spread


def nats(mean: float, spread: float = math.nan, *, missing: str = "diverged") -> str:
    """A mean with its spread, if there is one."""
    if not math.isfinite(mean):
        return missing
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"
