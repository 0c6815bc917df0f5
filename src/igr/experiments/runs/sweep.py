r"""Many sweeps and what is chosen from them, in one folder that any number of processes may work on at once.

::

    DIR/sweeps/NAME/          a sweep as `records` has it: runs that train side by side; the name ends in a digest
                              of its settings, so that whatever needs the same runs finds them
    DIR/cells/NAME.json       a finished cell: what was chosen, how its runs came out
    DIR/results.csv           one row for each run
    DIR/cells.csv             one row for each cell
    DIR/locks/                held by the processes at work

A job is a sweep or a cell. Whoever works on a folder takes the jobs in turn, passes over those that another process
holds and those that are done, and comes back to see that nothing is left. What was computed is therefore never
computed again, whichever process was killed and when.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock
from torch import Tensor

from igr.experiments import data
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.files import make_folder, read_json, write_csv, write_json
from igr.experiments.paper.specs import Column, Row, Scale, Table
from igr.experiments.runs.progress import Reporter
from igr.experiments.runs.records import FORMAT, RunFolder, Stack, SweepFolder, versions
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.runs.train import load_model, select_runs, train_stack
from igr.experiments.training import evaluation
from igr.experiments.training.compute import CPU, Compute
from igr.experiments.training.config import RunConfig, SweepConfig, check_count, stacks

__all__ = [
    "Busy",
    "Cell",
    "Context",
    "Job",
    "Scoring",
    "Sweep",
    "cell_of",
    "grid",
    "locked",
    "mean_and_spread",
    "read_cells",
    "tidy",
    "work",
    "write_tables",
]


class Busy(Exception):  # noqa: N818
    """Another process holds what is needed."""


@dataclass
class Context:
    """Where and how jobs run, and whom they tell.

    Attributes:
        root: the folder of everything.
        reporter: is told of the progress.
        stop: asks for an end at the next point where nothing is lost.
        compute: where and how torch computes.
    """

    root: Path
    reporter: Reporter
    stop: StopRequest
    compute: Compute = CPU


class Job(Protocol):
    """A piece of work that leaves records."""

    @property
    def name(self) -> str:
        """Unique within a folder, and the same for the same work."""

    @property
    def title(self) -> str:
        """What progress calls it."""

    @property
    def units(self) -> float:
        """Seconds it is expected to take."""

    def is_done(self, root: Path) -> bool:
        """Whether its records are complete."""

    def run(self, context: Context) -> None:
        """Do what is missing."""


@contextlib.contextmanager
def locked(root: Path, name: str, *, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold what `name` stands for.

    Raises:
        Busy: if another process holds it, unless `wait` is given: that is then called until it is free.
    """
    path = root / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except filelock.Timeout:
                if wait is None:
                    raise Busy(name) from None
                wait()
                time.sleep(0.2)
    except OSError as error:
        raise RecordError(f"cannot lock {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def tidy(path: Path) -> None:
    """Remove temporary files that a killed process left beside `path`, whose lock this process holds."""
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)


def _digest(value: Any) -> str:
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


def _expected(config: SweepConfig, scorings: Sequence[Scoring]) -> tuple[float, float]:
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
        return f"{c.dataset}-{c.architecture}-{c.families[0]}-{_digest(c.to_dict())}"

    @property
    def title(self) -> str:
        c = self.config
        return self.label or f"{c.dataset} {c.architecture} {c.families[0]}"

    @property
    def units(self) -> float:
        return sum(_expected(self.config, self.scorings))

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
            tidy(folder.path / "config.json")
            images, _ = split_images(self.config)
            folder = SweepFolder.open(folder.path, self.config, resume=True)
            training, scoring = _expected(self.config, self.scorings)
            groups = stacks(self.config.runs())
            for runs in groups:
                self._train(folder, runs, images, context, part, training / len(groups))
            for s in self.scorings:
                self._score(folder, s, context, part, scoring / len(self.scorings))

    def _train(
        self,
        folder: SweepFolder,
        runs: list[RunConfig],
        images: Tensor,
        context: Context,
        part: str,
        units: float,
    ) -> None:
        reporter, config = context.reporter, self.config
        with folder.claim(runs) as stack:
            if stack.finished:
                if not self.leaves_states:
                    stack.forget()  # killed after the last weights, a process leaves one
                reporter.skip(part, units)
                return
            steps = len(images) // config.batch_size
            step = units / (config.epochs * steps)
            begun = False
            what = f"{len(runs)} run{'s' * (len(runs) > 1)}"

            def epoch_done(epoch: int, metrics: Tensor) -> None:
                nonlocal begun
                if not begun and epoch > 1:
                    reporter.skip(part, epoch * steps * step)
                begun = True
                reporter.note(part, f"{what}, epoch {epoch} of {config.epochs}")

            def advance() -> None:
                nonlocal begun
                begun = True
                reporter.advance(part, step)

            reporter.note(part, f"{what}, epoch 0 of {config.epochs}")
            train_stack(
                stack,
                images,
                compute=context.compute,
                stop=context.stop,
                advance=advance,
                epoch_done=epoch_done,
                test=_dataset(config.dataset).test if config.test_curve else None,
                begin=self.before._saved(context.root, runs) if self.before else None,
            )
            if not self.leaves_states:
                stack.forget()

    def _saved(self, root: Path, runs: Sequence[RunConfig]) -> dict[str, Tensor] | None:
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

    def _score(
        self, folder: SweepFolder, scoring: Scoring, context: Context, part: str, units: float
    ) -> None:
        images = scoring.pick(self.config)
        runs = self.config.runs()
        piece = units / (len(runs) * len(images))
        what = "held-out" if scoring.held_out else "test"

        def advance(count: int) -> None:
            if context.stop.requested:
                raise Interrupted(self.config.epochs)
            context.reporter.advance(part, count * piece)

        for i, config in enumerate(runs):
            run = folder.run(config)
            if run.evaluation(scoring.name) is not None:
                context.reporter.skip(part, len(images) * piece)
                continue
            context.reporter.note(part, f"scoring run {i + 1} of {len(runs)} on {what} images")
            result = evaluation.evaluate(
                load_model(run, images.shape[-1], context.compute.device),
                images,
                samples=scoring.samples,
                seed=config.seed,
                advance=advance,
            )
            run.write_evaluation(scoring.name, result.to_dict())

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


def _rank(bound: float) -> float:
    """A bound to be compared: a run that diverged comes last."""
    return bound if math.isfinite(bound) else -math.inf


@dataclass(frozen=True)
class Cell:
    """A model on a data set by the protocol: candidates, the choice among them, and seeds trained anew.

    Candidates (temperatures x learning rates) are trained without the held-out images and chosen by the discrete
    model's bound on those: all to the end, or by successive halving (Jamieson and Talwalkar, 2016) at the scale's
    rungs. At each of them every learning rate keeps its share, since a high one is ahead at first. Runs at the chosen
    ones are then trained on all training images, and scored on the test images, once. With one candidate there is
    nothing to choose and the first part is left out.
    """

    dataset: str
    settings: Mapping[str, Any]
    scale: Scale
    temperatures: tuple[float, ...]
    lrs: tuple[float, ...]
    curve: bool = False
    label: str = ""

    def identity(self) -> dict[str, Any]:
        """Everything that its numbers depend on, as JSON has it."""
        scale = {
            k: v
            for k, v in dataclasses.asdict(self.scale).items()
            if k not in ("description", "figure_steps", "figure_draws")
        }
        if not scale["rungs"]:
            del scale["rungs"]  # as it was before there were any
        identity = {
            "dataset": self.dataset,
            "settings": dict(self.settings),
            "scale": {**scale, "temperatures": self.temperatures, "lrs": self.lrs},
            "curve": self.curve,
        }
        return json.loads(json.dumps(identity))

    @property
    def name(self) -> str:
        family = self.settings.get("family", "igr-i")
        architecture = self.settings.get("architecture", "linear")
        return (
            f"{self.scale.name}-{self.dataset}-{architecture}-{family}-{_digest(self.identity())}"
        )

    @property
    def title(self) -> str:
        return self.label or self.name

    def _shared(self) -> dict[str, Any]:
        settings = {k: v for k, v in self.settings.items() if k != "family"}
        return {
            **settings,
            "dataset": self.scale.stand_in or self.dataset,
            "families": (self.settings.get("family", "igr-i"),),
            "epochs": self.scale.epochs,
            "train_images": self.scale.train_images,
        }

    @property
    def _held_out(self) -> int:
        if self.scale.held_out is not None:
            return self.scale.held_out
        return data.SOURCES[self.scale.stand_in or self.dataset].held_out

    def problem(self) -> str | None:
        """Why it cannot be run, if it cannot: one of its settings is unknown."""
        try:
            for sweep in self._planned():
                sweep.config.runs()
        except (ConfigError, TypeError) as error:
            return str(error)
        return None

    def rungs(self) -> list[tuple[int, int]]:
        """Epochs that candidates are trained for, and how many temperatures of each learning rate then remain.

        The last are the whole of the epochs, after which one is chosen. Before, at least three candidates remain.
        """
        rungs: list[tuple[int, int]] = []
        for epochs, share in self.scale.rungs:
            least = math.ceil(3 / len(self.lrs))
            count = max(least, math.ceil(share * len(self.temperatures) - 1e-9))
            rungs.append((round(epochs * self.scale.epochs), count))
        return [*((e, n) for e, n in rungs if 0 < e < self.scale.epochs), (self.scale.epochs, 1)]

    def candidates(
        self, best: Callable[[Sweep, int], Sequence[float]] | None = None
    ) -> list[Sweep]:
        """Sweeps to choose from, one for each learning rate and rung; none where there is nothing to choose.

        Args:
            best: is given each sweep and a count, and returns so many of its temperatures; by default the first.
        """
        if len(self.temperatures) * len(self.lrs) == 1:
            return []
        sweeps = []
        for lr in self.lrs:
            temperatures: Sequence[float] = self.temperatures
            before: Sweep | None = None
            for epochs, count in self.rungs():
                config = SweepConfig(
                    **{**self._shared(), "epochs": epochs},
                    held_out=self._held_out,
                    temperatures=tuple(temperatures),
                    seeds=self.scale.choice_seeds,
                    lr=lr,
                )
                scoring = Scoring(True, 0, self.scale.choice_samples)
                before = Sweep(config, (scoring,), "", before, epochs < self.scale.epochs)
                sweeps.append(before)
                if before.leaves_states:
                    temperatures = best(before, count) if best else temperatures[:count]
        return sweeps

    def _planned(self) -> list[Sweep]:
        return [*self.candidates(), self.final(self.lrs[0], self.temperatures[0])]

    def final(self, lr: float, temperature: float) -> Sweep:
        """The runs that are reported."""
        config = SweepConfig(
            **self._shared(),
            temperatures=(temperature,),
            seeds=self.scale.seeds,
            lr=lr,
            test_curve=self.curve,
        )
        return Sweep(config, (Scoring(False, self.scale.test_images, self.scale.samples),))

    @property
    def units(self) -> float:
        return sum(sweep.units for sweep in self._planned())

    def path(self, root: Path) -> Path:
        """Its record."""
        return root / "cells" / f"{self.name}.json"

    def is_done(self, root: Path) -> bool:
        return self.path(root).exists()

    def run(self, context: Context) -> None:
        root, path = context.root, self.path(context.root)
        with locked(root, self.name):
            tidy(path)
            if path.exists():
                return
            wait = functools.partial(_waiting, context, self.title)

            def best(sweep: Sweep, count: int) -> list[float]:
                """Train and score a rung; the temperatures that go on, in their order."""
                sweep.complete(context, self.title, wait)
                bounds = sorted(_held_out_bounds(sweep, root), key=lambda each: -each[1])
                ahead = [temperature for temperature, _ in bounds[:count]]
                return [
                    temperature for temperature in sweep.config.temperatures if temperature in ahead
                ]

            sweeps = self.candidates(best)
            for sweep in sweeps:
                sweep.complete(context, self.title, wait)
            scored = [
                _Scored(sweep.config.lr, temperature, sweep.config.epochs, bound)
                for sweep in sweeps
                for temperature, bound in _held_out_bounds(sweep, root)
            ]
            finalists = [each for each in scored if each.epochs == self.scale.epochs]
            chosen = max(
                finalists,
                key=lambda each: each.held_out_bound,
                default=_Scored(self.lrs[0], self.temperatures[0], 0, math.nan),
            )
            final = self.final(chosen.lr, chosen.temperature)
            final.complete(context, self.title, wait)
            _write(path, self._record(root, [*sweeps, final], scored, chosen))
            for sweep in sweeps:
                sweep.forget_states(root)

    def _record(
        self, root: Path, sweeps: Sequence[Sweep], scored: Sequence[_Scored], chosen: _Scored
    ) -> dict[str, Any]:
        final = sweeps[-1]
        results = final.results(root)
        name = final.scorings[0].name
        return {
            "format": FORMAT,
            "name": self.name,
            **self.identity(),
            "candidates": [dataclasses.asdict(each) for each in scored],
            "chosen": {"lr": chosen.lr, "temperature": chosen.temperature},
            "sweeps": [sweep.name for sweep in sweeps],
            "runs": [
                {
                    "seed": result.config.seed,
                    "run": result.run.path.relative_to(root).as_posix(),
                    **result.scores[name],
                    "seconds_per_epoch": result.seconds_per_epoch,
                    "side_by_side": result.side_by_side,
                }
                for result in results
            ],
            "versions": versions(),
        }


@dataclass(frozen=True)
class _Scored:
    """A candidate after so many epochs."""

    lr: float
    temperature: float
    epochs: int
    held_out_bound: float


def _waiting(context: Context, part: str) -> None:
    if context.stop.requested:
        raise Interrupted(0)
    context.reporter.note(part, "waiting for another process")


def _held_out_bounds(sweep: Sweep, root: Path) -> list[tuple[float, float]]:
    """Temperatures of a sweep with their mean bound on held-out images."""
    bounds: dict[float, list[float]] = {}
    for result in sweep.results(root):
        bound = result.scores[sweep.scorings[0].name]["bound"]
        bounds.setdefault(result.config.temperature, []).append(_rank(bound))
    return [(t, statistics.fmean(values)) for t, values in bounds.items()]


def _write(path: Path, value: dict[str, Any]) -> None:
    make_folder(path.parent)
    write_json(path, value)


def cell_of(table: Table, row: Row, column: Column, scale: Scale, *, curve: bool = False) -> Cell:
    """The cell of a table, by what the table, the column and the row say; the row has the last word."""
    settings = {**table.settings, **column.settings, **row.settings}
    return Cell(
        dataset=column.dataset,
        settings=settings,
        scale=scale,
        temperatures=row.temperatures or scale.temperatures,
        lrs=table.lrs or scale.lrs,
        curve=curve,
        label=f"{table.name} {column.label} {row.label}",
    )


def read_cells(root: Path) -> list[dict[str, Any]]:
    """Every finished cell of a folder.

    Raises:
        RecordError: if one is damaged or was written by another version.
    """
    cells = []
    for path in sorted((root / "cells").glob("*.json")):
        cell = read_json(path)
        if cell.get("format") != FORMAT:
            raise RecordError(
                f"{path}: expected records of format {FORMAT}, found {cell.get('format')}: written by another"
                " version of igr"
            )
        cells.append(cell)
    return cells


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
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: given twice among {', '.join(map(str, values))}")
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


def work(jobs: Sequence[Job], context: Context, *, pause: float = 0.5) -> None:
    """Do every job that is not done, passing over those that other processes are at, until all are done.

    Raises:
        Interrupted: if a stop was asked for.
    """
    left = list(jobs)
    while left:
        busy = []
        for job in left:
            if context.stop.requested:
                raise Interrupted(0)
            context.reporter.begin(job.title, job.units)
            try:
                if not job.is_done(context.root):
                    job.run(context)
            except Busy:
                context.reporter.note(job.title, "in another process")
                busy.append(job)
            else:
                context.reporter.finish(job.title)
        if len(busy) == len(left):
            time.sleep(pause)
        left = busy


def write_tables(root: Path) -> None:
    """Replace ``results.csv`` and ``cells.csv``, which pandas reads as they are."""
    with locked(root, "tables", wait=lambda: None):
        tables = {"results.csv": run_rows(root), "cells.csv": [*map(cell_row, read_cells(root))]}
        for name, rows in tables.items():
            tidy(root / name)
            if rows:
                write_csv(root / name, rows)


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


def cell_row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's row in ``cells.csv``."""
    scale = cell["scale"]
    numbers: dict[str, float] = {}
    for key in ("bound", "released_estimate", "elbo", "seconds_per_epoch"):
        mean, spread = mean_and_spread([run[key] for run in cell["runs"]])
        numbers |= {key: mean, f"{key}_sd": spread}
    return {
        "cell": cell["name"],
        "scale": scale["name"],
        "dataset": scale["stand_in"] or cell["dataset"],
        **cell["settings"],
        **cell["chosen"],
        "epochs": scale["epochs"],
        "seeds": len(cell["runs"]),
        **numbers,
    }


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and standard deviation; NaN where there is none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return math.nan, math.nan
    spread = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return statistics.fmean(numbers), spread
