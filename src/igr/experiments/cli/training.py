"""What ``igr demo``, ``igr vae`` and ``igr evaluate`` share: one sweep, trained, scored and shown."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from igr.experiments import data
from igr.experiments.cli import console
from igr.experiments.cli.console import say
from igr.experiments.errors import ConfigError
from igr.experiments.files import write_atomically
from igr.experiments.runs import plots
from igr.experiments.runs.records import RunFolder, SweepFolder
from igr.experiments.runs.stopping import StopRequest
from igr.experiments.runs.train import load_model, train_stack
from igr.experiments.training import evaluation
from igr.experiments.training.compute import CPU, Compute
from igr.experiments.training.config import RunConfig, SweepConfig, check_count, stacks

HELD_OUT = "held-out"


class Task:
    """Progress of one piece of work: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, total: int, unit: str, progress: Progress | None) -> None:
        self.title, self.total, self.unit, self.progress = title, total, unit, progress
        self.done = self.first = 0
        self.note = ""
        self.started = self.shown = time.monotonic()
        self.bar = None if progress is None else progress.add_task(title, total=total, note="")

    def skip(self, done: int) -> None:
        """Count `done` pieces as done before this began, so that the time left is right."""
        self.done = self.first = done
        if self.progress is not None and self.bar is not None:
            self.progress.reset(self.bar, total=self.total, completed=done)

    def advance(self, count: int = 1) -> None:
        """Count pieces done; cheap enough for every training step."""
        self.done += count
        now = time.monotonic()
        if now - self.shown > (0.2 if self.progress is not None else 10):
            self.shown = now
            self.show()

    def show(self) -> None:
        """Bring what is seen up to date."""
        if self.progress is not None and self.bar is not None:
            self.progress.update(self.bar, completed=self.done, note=self.note)
            return
        elapsed, done = time.monotonic() - self.started, self.done - self.first
        left = f", {elapsed / done * (self.total - self.done):.0f} s left" if done else ""
        say(
            console.notes,
            f"{self.title}: {100 * self.done // self.total}%{left}{self.note and ', ' + self.note}",
        )


@contextlib.contextmanager
def task(title: str, total: int, unit: str) -> Iterator[Task]:
    """A `Task`, shown in the way that suits where standard error goes."""
    if not console.notes.is_terminal:
        yield Task(title, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console.notes, transient=True) as progress:
        piece = Task(title, total, unit, progress)
        yield piece
        piece.show()


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

    def values(self, name: str) -> torch.Tensor:
        return torch.tensor([row.evaluation[name] for row in self.rows], dtype=torch.float64)

    def mean(self, name: str) -> float:
        return self.values(name).mean().item()

    def spread(self, name: str) -> float:
        """Standard deviation over the seeds."""
        return self.values(name).std().item() if len(self.rows) > 1 else math.nan

    @property
    def held_out(self) -> float:
        return sum(row.held_out["bound"] for row in self.rows if row.held_out) / len(self.rows)


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Rows by family and temperature, in their order."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.config.family, row.config.temperature), []).append(row)
    return [Group(members) for members in groups.values()]


def nats(mean: float, spread: float = math.nan) -> str:
    """A mean with its spread, if there is one."""
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.2f} ± {spread:.2f}"


def results_table(groups: Sequence[Group], title: str, chosen: Sequence[Group] = ()) -> Table:
    """What came out, a row for each family and temperature."""
    samples, images = (groups[0].rows[0].evaluation[name] for name in ("samples", "images"))
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("family")
    table.add_column("temperature", justify="right")
    table.add_column(f"bound\n(m = {samples})", justify="right")
    table.add_column("released code's\nestimate", justify="right")
    table.add_column("ELBO", justify="right")
    table.add_column("training time\nper run", justify="right")
    for group in groups:
        mark = " *" if group in chosen else ""
        table.add_row(
            group.family,
            f"{group.temperature:g}{mark}",
            nats(group.mean("bound"), group.spread("bound")),
            nats(group.mean("released_estimate")),
            nats(group.mean("elbo")),
            f"{group.rows[0].seconds:.1f} s",
        )
    seeds = len(groups[0].rows)
    spread = f", ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    table.caption = f"nats per image, {images} test images; higher is better{spread}"
    table.caption_justify = "left"
    return table


def check_out(path: Path) -> Path:
    """The folder to write to, as the user sees it."""
    return path.expanduser()


def set_threads(threads: int) -> None:
    """Use that many threads; 0 leaves torch's choice."""
    check_count("threads", threads, least=0)
    if threads:
        torch.set_num_threads(threads)


def train_sweep(folder: SweepFolder, dataset: data.Dataset, compute: Compute) -> None:
    """Train every stack of a sweep that is not finished."""
    config = folder.config
    images, _ = dataset.split(config.held_out)
    for runs in stacks(config.runs()):
        with folder.claim(runs) as stack, StopRequest() as stop:
            if stack.finished:
                continue
            steps = len(images) // config.batch_size
            title = f"{runs[0].family} ({len(runs)} run{'s' * (len(runs) > 1)} side by side)"
            with task(title, config.epochs * steps, "steps") as shown:

                def epoch_done(
                    epoch: int, metrics: torch.Tensor, shown: Task = shown, steps: int = steps
                ) -> None:
                    if not shown.done and epoch:
                        shown.skip(epoch * steps)
                    finite = metrics[metrics[:, 0].isfinite(), 0]
                    best = (
                        f"best training ELBO {finite.max():.1f}"
                        if len(finite)
                        else "every run diverged"
                    )
                    shown.note = f"epoch {epoch}/{config.epochs}, {best}"

                train_stack(
                    stack,
                    images,
                    compute=compute,
                    stop=stop,
                    advance=shown.advance,
                    epoch_done=epoch_done,
                )


def evaluate_run(
    run: RunFolder,
    images: torch.Tensor,
    name: str,
    samples: int,
    advance: Callable[[int], object],
    compute: Compute = CPU,
) -> dict:
    """The evaluation of that name, made now unless it is there already for as many samples and images."""
    there = run.evaluation(name)
    if there is not None and (there["samples"], there["images"]) == (samples, len(images)):
        advance(len(images))
        return there
    model = load_model(run, images.shape[-1], compute.device)
    result = evaluation.evaluate(
        model, images, samples=samples, seed=run.config.seed, advance=advance
    ).to_dict()
    run.write_evaluation(name, result)
    return result


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
    rows = []
    with task("evaluation", len(runs) * len(test), "images") as shown:
        for run in runs:
            config, held_out = run.config, None
            if config.held_out and limit is None:
                _, images = dataset.split(config.held_out)
                held_out = evaluate_run(run, images, HELD_OUT, 100, lambda _: None, compute)
            result = evaluate_run(run, test, name, samples, shown.advance, compute)
            seconds = run.metrics()[-1]["seconds"]
            rows.append(Row(run, config, result, held_out, seconds))
    return rows


def finish_sweep(
    folder: SweepFolder, dataset: data.Dataset, samples: int, compute: Compute = CPU
) -> list[Row]:
    """Evaluate a trained sweep, draw its pictures, write its results."""
    runs = [folder.run(config) for config in folder.config.runs()]
    rows = evaluate_runs(runs, dataset, samples, compute=compute)
    sizes = {config: len(stack) for stack in stacks(folder.config.runs()) for config in stack}
    rows = [
        Row(row.run, row.config, row.evaluation, row.held_out, row.seconds / sizes[row.config])
        for row in rows
    ]
    for run in runs:
        plots.draw_run(run, load_model(run, dataset.test.shape[-1]), dataset.test, dataset.shape)
    plots.draw_sweep(folder, runs)
    folder.write_results([row.record() for row in rows])
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
    return data.load(name, notify=lambda text: say(console.notes, text))


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
