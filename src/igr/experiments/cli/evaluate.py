"""``igr evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from igr.experiments.cli import console
from igr.experiments.cli.options import Samples, Threads, option
from igr.experiments.cli.training import (
    evaluate_runs,
    grouped,
    load_data,
    results_table,
    set_threads,
)
from igr.experiments.files import expanded
from igr.experiments.runs.records import open_runs
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
    dataset = load_data(runs[0].config.dataset)
    rows = evaluate_runs(runs, dataset, samples, limit)
    console.out.print(results_table(grouped(rows), f"Discrete VAEs on {runs[0].config.dataset}"))
