"""What ``igr demo``, ``igr vae`` and ``igr evaluate`` share: one sweep, trained, scored and shown."""

from __future__ import annotations

import dataclasses
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
from igr.experiments.runs import plots
from igr.experiments.runs.jobs import Context
from igr.experiments.runs.progress import board
from igr.experiments.runs.records import RunFolder, SweepFolder
from igr.experiments.runs.stopping import StopRequest
from igr.experiments.runs.sweep import expected, mean_and_spread, nats, score, train
from igr.experiments.runs.train import load_model
from igr.experiments.training.compute import CPU, Compute
from igr.experiments.training.config import RunConfig, SweepConfig, check_count, stacks

HELD_OUT = "held-out"


@dataclass(frozen=True)
class Row:
    """A run with its evaluation."""

    run: RunFolder
    config: RunConfig
    evaluation: dict
    held_out: dict | None
    seconds: float

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


def train_sweep(folder: SweepFolder, dataset: data.Dataset, compute: Compute) -> None:
    """Train every stack of a sweep that is not finished."""
    config = folder.config
    images, _ = dataset.split(config.held_out)
    groups = stacks(config.runs())
    seconds = expected(config, [])[0] / len(groups)
    say_whether_compiled(compute, seconds)
    with (
        StopRequest() as stop,
        board({runs[0].family: seconds for runs in groups}, console.notes) as shown,
    ):
        for runs in groups:
            with folder.claim(runs) as stack:
                part = runs[0].family
                shown.begin(part, seconds)
                train(stack, images, Context(folder.path, shown, stop, compute), part, seconds)
                stack.forget()
                shown.finish(part)


def say_whether_compiled(compute: Compute, seconds: float) -> None:
    """Say that steps will be compiled, where that was left to how long a training takes."""
    if compute.compiled is None and compute.compiles(seconds):
        text = "training steps are compiled, which takes a while at first (or: --no-compile)"
        say(f"igr: {text}", console.notes)


def evaluate_runs(
    runs: Sequence[RunFolder],
    dataset: data.Dataset,
    samples: int,
    limit: int | None = None,
    compute: Compute = CPU,
) -> list[Row]:
    """Evaluate every run on the test set, or its first `limit` images, and on what it held out."""
    test = dataset.test[:limit]
    name = "evaluation" if limit is None else f"evaluation-first-{len(test)}"
    part, rows, units = "evaluation", [], 1e-5 * len(test) * samples
    with StopRequest() as stop, board({part: units * len(runs)}, console.notes) as shown:
        context = Context(runs[0].path, shown, stop, compute)
        shown.begin(part, units * len(runs))
        for i, run in enumerate(runs):
            shown.note(part, f"run {i + 1} of {len(runs)}")
            config, held_out = run.config, None
            if config.held_out and limit is None:
                _, images = dataset.split(config.held_out)
                held_out = score(run, images, HELD_OUT, 100, context, part, 0.0)
            result = score(run, test, name, samples, context, part, units)
            rows.append(Row(run, config, result, held_out, run.metrics()[-1]["seconds"]))
    return rows


def finish_sweep(
    folder: SweepFolder, dataset: data.Dataset, samples: int, compute: Compute = CPU
) -> list[Row]:
    """Evaluate a trained sweep, draw its pictures, write its results."""
    runs = [folder.run(config) for config in folder.config.runs()]
    rows = evaluate_runs(runs, dataset, samples, compute=compute)
    sizes = {config: len(stack) for stack in stacks(folder.config.runs()) for config in stack}
    rows = [dataclasses.replace(row, seconds=row.seconds / sizes[row.config]) for row in rows]
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
    dataset = load_data(config.dataset)
    check_data(config, dataset)
    folder = SweepFolder.open(path, config, resume=resume)
    if mark:
        write_atomically(path / mark, "written by `igr demo`, which may replace this folder\n")
    train_sweep(folder, dataset, compute)
    return folder, finish_sweep(folder, dataset, samples, compute)


def load_data(name: str) -> data.Dataset:
    """A data set; says so where that takes long."""
    return data.load(name, notify=lambda text: say(text, console.notes))


def check_data(config: SweepConfig, dataset: data.Dataset) -> None:
    """Refuse settings or files that would stop the sweep later, before anything is written."""
    count = len(dataset.train)
    if not len(dataset.test):  # reads the file, so that a damaged one is found now
        raise ConfigError(f"dataset: {config.dataset} has no test images")
    if config.held_out >= count:
        raise ConfigError(
            f"held-out: expected fewer than the {count} training images, got {config.held_out}"
        )
    if config.batch_size > count - config.held_out:
        raise ConfigError(
            f"batch-size: expected at most the {count - config.held_out} images to train on, got {config.batch_size}"
        )
    if config.decoder == "bernoulli" and not dataset.binary:
        raise ConfigError(
            f"decoder: bernoulli needs a binary data set, and {config.dataset} is not"
        )
