"""What ``igr demo``, ``igr vae`` and ``igr evaluate`` share: one sweep, trained, scored and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from igr.experiments import data
from igr.experiments.cli import console
from igr.experiments.cli.console import Column, say
from igr.experiments.errors import ConfigError
from igr.experiments.files import write_atomically, write_csv
from igr.experiments.runs import driver, plots
from igr.experiments.runs.engines import Here
from igr.experiments.runs.jobs import Steps
from igr.experiments.runs.records import RunFolder, Stack, SweepFolder
from igr.experiments.runs.sweep import (
    Score,
    Scoring,
    Train,
    check_images,
    expected,
    mean_and_spread,
    nats,
)
from igr.experiments.runs.train import load_model
from igr.experiments.training.compute import CPU, Compute
from igr.experiments.training.config import RunConfig, SweepConfig, check_count, stacks
from igr.experiments.training.objectives import RELAXED

HELD_OUT = "held-out"


@dataclass(frozen=True)
class Row:
    """A run with its evaluation."""

    run: RunFolder
    config: RunConfig
    evaluation: dict
    held_out: dict | None
    seconds: float
    """Its share of the training of all that went side by side."""

    def record(self) -> dict:
        """The run's row in ``results.csv``."""
        held_out = {} if self.held_out is None else {"held_out_bound": self.held_out["bound"]}
        return {
            "run": self.config.name,
            **self.config.to_dict(),
            **self.evaluation,
            **held_out,
            "train_seconds": self.seconds,
        }


@dataclass(frozen=True)
class Group:
    """The seeds of one family and temperature."""

    rows: list[Row]

    @property
    def family(self) -> str:
        return self.rows[0].config.family

    @property
    def temperature(self) -> float:
        return self.rows[0].config.temperature

    def mean(self, name: str) -> float:
        return self._numbers(name)[0]

    def spread(self, name: str) -> float:
        """Standard deviation over the seeds; NaN for a single one."""
        return self._numbers(name)[1]

    def _numbers(self, name: str) -> tuple[float, float]:
        return mean_and_spread([row.evaluation[name] for row in self.rows])

    @property
    def held_out(self) -> float:
        return sum(row.held_out["bound"] for row in self.rows if row.held_out) / len(self.rows)


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Rows by family and temperature, in their order."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.config.family, row.config.temperature), []).append(row)
    return [Group(members) for members in groups.values()]


def results_table(groups: Sequence[Group], title: str, chosen: Sequence[Group] = ()) -> Table:
    """What came out, a row for each family and temperature."""
    samples, images = (groups[0].rows[0].evaluation[name] for name in ("samples", "images"))
    seeds = len(groups[0].rows)
    spread = f", ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    columns = [
        Column("family", left=True),
        Column("temperature"),
        Column(f"bound\n(m = {samples})"),
        Column("released code's\nestimate", rank=3),
        Column("ELBO", rank=1),
        Column("training time\nper run", rank=2),
    ]
    rows = [
        (
            group.family,
            f"{group.temperature:g}{' *' if group in chosen else ''}",
            nats(group.mean("bound"), group.spread("bound")),
            nats(group.mean("released_estimate")),
            nats(group.mean("elbo")),
            f"{group.rows[0].seconds:.1f} s",
        )
        for group in groups
    ]
    caption = f"nats per image, {images} test images; higher is better{spread}"
    return console.table(
        columns,
        rows,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
    )


def set_threads(threads: int) -> None:
    """Use that many threads; 0 leaves torch's choice."""
    check_count("threads", threads, least=0)
    if threads:
        torch.set_num_threads(threads)


def check_compiled(compiled: bool | None, configs: Sequence[SweepConfig]) -> None:
    """Refuse to compile where nothing would be."""
    if compiled and not any(config.estimator in RELAXED for config in configs):
        raise ConfigError(
            f"compile: steps by {configs[0].estimator} are not compiled, those by {' and '.join(RELAXED)} are"
        )


@dataclass(frozen=True)
class _Training:
    """Training one stack of a sweep in a folder of its own; a `igr.experiments.runs.jobs.Job`."""

    runs: tuple[RunConfig, ...]
    units: float

    @property
    def title(self) -> str:
        return self.runs[0].family

    name = title
    datasets = ()

    def is_done(self, root: Path) -> bool:
        return Stack(SweepFolder(root), self.runs).finished

    def work(self, root: Path) -> Steps:
        folder = SweepFolder(root)
        with folder.claim(self.runs):
            yield [Train(".", tuple(g), self.units, self.units) for g in folder.groups(self.runs)]
            folder.forget()


@dataclass(frozen=True)
class _Evaluation:
    """Scoring runs that lie in one folder; a `igr.experiments.runs.jobs.Job`."""

    tasks: tuple[Score, ...]
    name = title = "evaluation"
    datasets = ()

    @property
    def units(self) -> float:
        return sum(task.units for task in self.tasks)

    def is_done(self, root: Path) -> bool:
        return all(task.finished(root) for task in self.tasks)

    def work(self, root: Path) -> Steps:
        yield self.tasks


def train_sweep(folder: SweepFolder, compute: Compute) -> None:
    """Train every stack of a sweep that is not finished."""
    config = folder.config
    groups = stacks(config.runs())
    seconds = expected(config, [])[0] / len(groups)
    jobs = [_Training(tuple(runs), seconds) for runs in groups]
    driver.run(jobs, folder.path, console.notes, Here(compute))


def evaluate_runs(
    runs: Sequence[RunFolder],
    dataset: data.Dataset,
    samples: int,
    limit: int | None = None,
    compute: Compute = CPU,
) -> list[Row]:
    """Evaluate every run on the test set, or its first `limit` images, and on what it held out."""
    count = min(limit or len(dataset.test), len(dataset.test))
    name = "evaluation" if limit is None else f"evaluation-first-{count}"
    test = Scoring(False, 0 if limit is None else count, samples, name)
    held_out = Scoring(True, 0, 100, HELD_OUT)
    tasks = []
    for run in runs:
        config = run.config
        if config.held_out and limit is None:
            tasks.append(Score(run.path.name, config, held_out, 0.01))
        tasks.append(Score(run.path.name, config, test, 1e-5 * count * samples))
    driver.run([_Evaluation(tuple(tasks))], runs[0].path.parent, console.notes, Here(compute))
    return [
        Row(
            run,
            run.config,
            run.evaluation(name) or {},
            run.evaluation(HELD_OUT) if limit is None else None,
            run.metrics()[-1]["seconds"]
            / SweepFolder(run.path.resolve().parents[1]).side_by_side(run.config),
        )
        for run in runs
    ]


def finish_sweep(
    folder: SweepFolder, dataset: data.Dataset, samples: int, compute: Compute = CPU
) -> list[Row]:
    """Evaluate a trained sweep, draw its pictures, write its results."""
    runs = [folder.run(config) for config in folder.config.runs()]
    rows = evaluate_runs(runs, dataset, samples, compute=compute)
    for run in runs:
        plots.draw_run(run, load_model(run, dataset.test.shape[-1]), dataset.test, dataset.shape)
    plots.draw_sweep(folder, [(row.run, row.evaluation["bound"]) for row in rows])
    with folder.writing():
        write_csv(folder.path / "results.csv", [row.record() for row in rows])
    return rows


def run_sweep(
    config: SweepConfig,
    path: Path,
    *,
    resume: bool = False,
    samples: int = 1000,
    compute: Compute = CPU,
    mark: str | None = None,
) -> tuple[SweepFolder, list[Row]]:
    """Train, evaluate and record a sweep."""
    check_count("samples", samples)
    check_images(config)
    dataset = load_data(config.dataset)
    folder = SweepFolder.open(path, config, resume=resume)
    if mark:
        write_atomically(path / mark, "written by `igr demo`, which may replace this folder\n")
    train_sweep(folder, compute)
    return folder, finish_sweep(folder, dataset, samples, compute)


def load_data(name: str) -> data.Dataset:
    """A data set, read whole; says so where that takes long."""
    dataset = data.load(name, notify=lambda text: say(text, console.notes))
    _ = dataset.test  # so that a damaged file is found now, not after the work
    return dataset
