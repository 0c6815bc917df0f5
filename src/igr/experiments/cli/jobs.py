"""What ``igr reproduce`` and ``igr sweep`` share: jobs, on an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igr.experiments.cli import console
from igr.experiments.cli.console import fail
from igr.experiments.cli.training import say_whether_compiled
from igr.experiments.errors import check_choice
from igr.experiments.runs import engines
from igr.experiments.runs.jobs import Job
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.training.compute import Compute, check_compute
from igr.experiments.training.config import check_count


def run_jobs(
    jobs: Sequence[Job],
    root: Path,
    engine: str,
    ray_address: str | None,
    workers: int,
    compute: Compute,
) -> None:
    check_choice("engine", engine, engines.ENGINES)
    check_count("workers", workers, least=0)
    check_compute(compute)
    if not workers:
        workers = min(8, engines.cores()) if compute.device == "cpu" else 1
    longest = max((job.units for job in jobs if not job.is_done(root)), default=0.0)
    say_whether_compiled(compute, longest)
    try:
        engines.run(
            jobs,
            root,
            console.notes,
            engine=engine,
            workers=workers,
            compute=compute,
            ray_address=ray_address,
        )
    except Interrupted:
        fail(
            f"stopped; what was finished is in {root}, and the same command goes on from there", 130
        )
