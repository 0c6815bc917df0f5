"""The command ``igr``."""

# ruff: noqa: E402
from __future__ import annotations

from igr.experiments._extra import exit_if_missing

exit_if_missing()

import contextlib
import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import igr
from igr.experiments import data
from igr.experiments.cli import reproduce as cli_reproduce
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.files import write_atomically
from igr.experiments.models.families import FAMILIES
from igr.experiments.models.likelihoods import LIKELIHOODS
from igr.experiments.runs import plots
from igr.experiments.runs.records import RunFolder, SweepFolder, open_runs
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.runs.train import load_model, train_stack
from igr.experiments.training import evaluation
from igr.experiments.training.compute import CPU, Compute, flushed_denormals, keep_memory
from igr.experiments.training.config import (
    ARCHITECTURES,
    RunConfig,
    SweepConfig,
    check_count,
    stacks,
)
from igr.experiments.training.objectives import ESTIMATORS, RELAXED

# Tables go to standard output; progress, notes and errors go to standard error.
out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

app = typer.Typer(
    name="igr",
    help="Discrete variational autoencoders trained with invertible Gaussian reparameterization.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What typer raises for a wrong command line; newer versions bring their own copy of click, so it is found by way of
# a class that both export.
_ClickException: Any = typer.BadParameter.__mro__[2]
HELD_OUT = "held-out"
DEMO_MARK = "made-by-igr-demo"


def say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, nothing in it read as markup."""
    console.print(text, soft_wrap=True, markup=False)


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
            notes,
            f"{self.title}: {100 * self.done // self.total}%{left}{self.note and ', ' + self.note}",
        )


@contextlib.contextmanager
def task(title: str, total: int, unit: str) -> Iterator[Task]:
    """A `Task`, shown in the way that suits where standard error goes."""
    if not notes.is_terminal:
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
    with Progress(*columns, console=notes, transient=True) as progress:
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


def check_compute(compute: Compute) -> Compute:
    """The same, if torch can compute like this here."""
    name = compute.device
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected one that torch can use, such as cpu, got {name!r} ({reason})"
        ) from None
    if compute.compiled and device.type == "cpu":
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(2))
        except Exception as error:  # whatever a missing or broken C++ compiler makes torch raise
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"compile: torch.compile does not work here, which needs a C++ compiler ({reason})"
            ) from None
    return compute


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
    is_demo: bool = False,
) -> tuple[SweepFolder, list[Row]]:
    """Train, evaluate and record a sweep."""
    check_count("samples", samples)
    dataset = load_data(config.dataset)
    check_data(config, dataset)
    folder = SweepFolder.open(path, config, resume=resume)
    if is_demo:
        write_atomically(path / DEMO_MARK, "written by `igr demo`, which may replace this folder\n")
    train_sweep(folder, dataset, compute)
    return folder, finish_sweep(folder, dataset, samples, compute)


def load_data(name: str) -> data.Dataset:
    """A data set; says so where that takes long."""
    return data.load(name, notify=lambda text: say(notes, text))


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


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        say(out, f"igr {igr.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(out, context.get_help())


Out = Annotated[Path, typer.Option(help="Folder for everything that comes out.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: as torch chooses.")]
Samples = Annotated[int, typer.Option(help="Samples m of the importance-weighted bound.")]


@app.command()
def demo(
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for everything that comes out.")
    ] = Path("igr-demo"),
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = 200,
    seeds: Annotated[int, typer.Option(help="Seeds of each family and temperature.")] = 3,
    samples: Samples = 1000,
    threads: Threads = 1,
) -> None:
    """Train discrete VAEs with IGR and with Gumbel-Softmax on scanned digits and compare them."""
    set_threads(threads)
    config = SweepConfig(
        dataset="digits",
        families=("igr-i", "gs"),
        temperatures=(0.1, 0.25, 0.5, 1.0, 1.5),
        seeds=seeds,
        epochs=epochs,
        lr=3e-3,
        held_out=200,
    )
    path = check_out(out_folder)
    start = time.perf_counter()
    resume = is_unfinished_demo(path, config)
    if not resume and (path / DEMO_MARK).exists():
        SweepFolder(path).remove(DEMO_MARK)
    try:
        folder, rows = run_sweep(config, path, resume=resume, samples=samples, is_demo=True)
    except Interrupted as stopped:
        fail(f"stopped after epoch {stopped}; the same command goes on from there", 130)
    groups = grouped(rows)
    chosen = [
        max((g for g in groups if g.family == family), key=lambda g: g.held_out)
        for family in config.families
    ]
    out.print(
        results_table(
            groups,
            "Discrete VAEs on handwritten digits (8 x 8, 20 variables of 10 categories)",
            chosen,
        )
    )
    say(out, "* the temperature with the best bound on held-out training images\n")
    say(out, verdict(*chosen))
    best = max(chosen, key=lambda g: g.mean("bound"))
    pictures = best.rows[0].run.path
    say(out, "\nPictures:")
    say(
        out,
        f"  {pictures / 'reconstructions.png'}   test images and what the discrete code keeps of them",
    )
    say(out, f"  {pictures / 'samples.png'}   new digits, decoded from random codes")
    say(out, f"  {folder.path / 'curves.png'}   training curves of all {len(rows)} runs")
    say(
        out,
        f"All records: {folder.path} (results.csv opens in pandas); {time.perf_counter() - start:.0f} s in all.",
    )


def is_unfinished_demo(path: Path, config: SweepConfig) -> bool:
    """Whether `path` holds this very demo, stopped on its way."""
    if not (path / "config.json").exists():
        return False
    folder = SweepFolder(path)
    return folder.config == config and not all(folder.run(r).finished for r in config.runs())


def verdict(first: Group, second: Group) -> str:
    """Which of two is better, read off their bounds and the spread of the seeds."""
    better, worse = sorted((first, second), key=lambda g: g.mean("bound"), reverse=True)
    difference = better.mean("bound") - worse.mean("bound")
    named = [
        f"{g.family} at temperature {g.temperature:g} reaches {g.mean('bound'):.2f}"
        for g in (better, worse)
    ]
    text = f"Bound on the test log-likelihood: {named[0]}, {named[1]}: "
    if not math.isfinite(difference):
        return text + "no comparison, a run diverged."
    error = math.sqrt(sum(g.spread("bound") ** 2 / len(g.rows) for g in (better, worse)))
    if math.isnan(error):
        return text + f"{better.family} is ahead by {difference:.2f} nats, on one seed."
    if difference < 2 * error:
        return text + f"{difference:.2f} nats apart, too close to tell on {len(first.rows)} seeds."
    return (
        text + f"{better.family} is better by {difference:.2f} nats (standard error {error:.2f})."
    )


@app.command()
def vae(
    dataset: Annotated[str, typer.Option(help=f"One of {', '.join(data.SOURCES)}.")] = "digits",
    family: Annotated[
        list[str], typer.Option(help=f"Of {', '.join(FAMILIES)}; may be repeated.")
    ] = ["igr-i"],  # noqa: B006
    temperature: Annotated[list[float], typer.Option(help="May be repeated.")] = [0.1],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...")] = 1,
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = 100,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 3e-4,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 100,
    architecture: Annotated[
        str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")
    ] = "linear",
    decoder: Annotated[str, typer.Option(help=f"One of {', '.join(LIKELIHOODS)}.")] = "bernoulli",
    estimator: Annotated[
        str,
        typer.Option(
            help=f"Of the gradient: {', '.join(RELAXED)} of the relaxed model, or of the discrete one"
            f" {', '.join(ESTIMATORS)}."
        ),
    ] = "pathwise",
    num_samples: Annotated[int, typer.Option(help="Samples S of each image in a step.")] = 1,
    lr_decay: Annotated[float, typer.Option(help="Divide lr by 1 + this x steps done.")] = 0.0,
    lr_min: Annotated[float, typer.Option(help="But never below this.")] = 0.0,
    variables: Annotated[int, typer.Option(help="Categorical variables of the code.")] = 20,
    categories: Annotated[int, typer.Option(help="Categories of each.")] = 10,
    prior_temperature: Annotated[float, typer.Option(help="Of the Gumbel-Softmax prior.")] = 0.5,
    unit_scale: Annotated[
        bool, typer.Option("--unit-scale", help="Hold the Gaussian's scales at 1.")
    ] = False,
    held_out: Annotated[
        int, typer.Option(help="Training images kept back and scored as well.")
    ] = 0,
    samples: Samples = 1000,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for everything that comes out.")
    ] = Path("igr-vae"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last finished epoch.")
    ] = False,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="Where torch computes, such as cpu or cuda.")] = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile training steps: worth it for long runs.")
    ] = False,
) -> None:
    """Train discrete VAEs, all temperatures and seeds of a family side by side, and evaluate them."""
    set_threads(threads)
    config = SweepConfig(
        dataset=dataset,
        families=tuple(family),
        temperatures=tuple(temperature),
        seeds=seeds,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        architecture=architecture,
        decoder=decoder,
        estimator=estimator,
        num_samples=num_samples,
        lr_decay=lr_decay,
        lr_min=lr_min,
        num_variables=variables,
        num_categories=categories,
        prior_temperature=prior_temperature,
        unit_scale=unit_scale,
        held_out=held_out,
    )
    compute = check_compute(Compute(device, compiled))
    folder, rows = run_sweep(
        config, check_out(out_folder), resume=resume, samples=samples, compute=compute
    )
    out.print(results_table(grouped(rows), f"Discrete VAEs on {dataset}"))
    say(
        out,
        f"Records and pictures: {folder.path / 'runs'}; all results: {folder.path / 'results.csv'}",
    )


@app.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="What `igr vae --out` wrote, or the folder of one run in it.")
    ],
    samples: Samples = 1000,
    limit: Annotated[int | None, typer.Option(help="Only the first so many test images.")] = None,
    threads: Threads = 0,
) -> None:
    """Evaluate trained runs as discrete models on the test set."""
    set_threads(threads)
    check_count("samples", samples)
    if limit is not None:
        check_count("limit", limit)
    runs = open_runs(check_out(folder))
    dataset = load_data(runs[0].config.dataset)
    rows = evaluate_runs(runs, dataset, samples, limit)
    out.print(results_table(grouped(rows), f"Discrete VAEs on {runs[0].config.dataset}"))


cli_reproduce.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2."""
    keep_memory()
    try:
        with flushed_denormals():  # here too, so that all threads are started so
            code = app(
                list(sys.argv[1:] if arguments is None else arguments),
                prog_name="igr",
                standalone_mode=False,
            )
        if code == 130:  # what newer versions of typer make of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
    except Interrupted as stopped:
        fail(f"stopped after epoch {stopped}; go on with the same command and --resume", 130)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped; go on with the same command and --resume", 130)
    except _ClickException as error:
        fail(error.format_message())
    except (ConfigError, RecordError, data.DataError) as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        fail(f"{error.strerror}: {error.filename or 'standard output'}")


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one line on standard error."""
    print(f"igr: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None
