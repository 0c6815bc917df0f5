"""``igr evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from igr.experiments.cli import console
from igr.experiments.cli.options import Samples, Threads, option
from igr.experiments.cli.training import grouped, load_data, results_table, set_threads
from igr.experiments.files import expanded
from igr.experiments.runs import driver
from igr.experiments.runs.jobs import Steps
from igr.experiments.runs.records import RunFolder, SweepFolder, open_runs
from igr.experiments.runs.sweep import Result, Score, Scoring, result
from igr.experiments.training.config import check_count

EXAMPLES = (
    "igr evaluate igr-vae",
    "igr evaluate igr-vae/runs/igr-i-t0.1-s0 --samples 100 --limit 500",
)


def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="What `igr vae --out` wrote, or the folder of one run in it.")
    ],
    samples: Samples = 1000,
    limit: Annotated[int | None, option("Only the first so many test images.")] = None,
    threads: Threads = 0,
) -> None:
    set_threads(threads)
    check_count("samples", samples)
    if limit is not None:
        check_count("limit", limit)
    runs = open_runs(expanded(folder))
    dataset = runs[0].config.dataset
    images = len(load_data(dataset).test)
    scoring = Scoring(False, limit if limit is not None and limit < images else 0, samples)
    results = evaluate_runs(runs, scoring)
    console.out.print(results_table(grouped(results), f"Discrete VAEs on {dataset}"))


def evaluate_runs(runs: Sequence[RunFolder], scoring: Scoring) -> list[Result]:
    """Score trained runs, which lie in one folder."""
    seconds = 1e-5 * scoring.count(runs[0].config) * scoring.samples
    tasks = [Score(run.path.name, run.config, scoring, seconds) for run in runs]
    driver.run([_Evaluation(tasks)], runs[0].path.parent, console.notes)
    return [
        result(SweepFolder(run.path.resolve().parents[1]), run.config, [scoring]) for run in runs
    ]


@dataclass(frozen=True)
class _Evaluation:
    """A `igr.experiments.runs.jobs.Job`."""

    tasks: Sequence[Score]
    name = title = "evaluation"
    datasets = ()

    @property
    def units(self) -> float:
        return sum(task.units for task in self.tasks)

    def is_done(self, root: Path) -> bool:
        return all(task.finished(root) for task in self.tasks)

    def work(self, root: Path) -> Steps:
        yield self.tasks
