"""What ``igr reproduce`` and ``igr sweep`` share: jobs, on an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from igr.experiments.cli import console
from igr.experiments.cli.console import fail, say
from igr.experiments.cli.options import ENGINES
from igr.experiments.cli.training import load_data
from igr.experiments.errors import ConfigError, check_choice
from igr.experiments.paper import results
from igr.experiments.runs import driver, engines
from igr.experiments.runs.cluster import Cluster
from igr.experiments.runs.jobs import Job
from igr.experiments.runs.status import published
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.tensorboard import Curves
from igr.experiments.training.compute import Compute, check_compute
from igr.experiments.training.config import check_count, check_positive

_WORTH_PROCESSES = 15.0  # seconds of work: it takes some to start them


@dataclass(frozen=True)
class Where:
    """What the user says of where jobs run, as the options have it."""

    engine: str = "local"
    ray_address: str | None = None
    workers: int = 1
    cpus: float = 1.0
    gpus: float | None = None
    device: str = "cpu"
    compiled: bool | None = None
    tensorboard: bool = False

    def make(self, missing: Sequence[Job]) -> engines.Engine:
        """The engine for these jobs."""
        compute = Compute(self.device, self.compiled)
        check_choice("engine", self.engine, ENGINES)
        check_count("workers", self.workers, least=0)
        check_positive("cpus-per-task", self.cpus)
        if self.gpus:
            check_positive("gpus-per-task", self.gpus)
        datasets = sorted({name for job in missing for name in job.datasets})
        if self.engine == "ray":
            gpus = float(self.device.startswith("cuda")) if self.gpus is None else self.gpus
            return Cluster(self.ray_address, compute, datasets, self.cpus, gpus)
        of_ray = {"ray-address": self.ray_address, "gpus-per-task": self.gpus}
        of_ray["cpus-per-task"] = None if self.cpus == 1 else self.cpus
        for name, value in of_ray.items():
            if value is not None:
                raise ConfigError(f"{name}: expected with --engine ray alone, got {value}")
        check_compute(compute)
        for name in datasets:  # found or downloaded here, once; every worker reads the files
            load_data(name)
        workers = self.workers
        if not workers:
            worth_it = sum(job.units for job in missing) > _WORTH_PROCESSES
            workers = min(8, engines.cores()) if self.device == "cpu" and worth_it else 1
        return engines.Here(compute) if workers == 1 else engines.Processes(workers, compute)


def run_jobs(
    jobs: Sequence[Job], root: Path, where: Where, again: Sequence[results.Recorded] = ()
) -> driver.Failed | None:
    """Do what is missing of the jobs, and anew those of `again`, whose records are removed once all is checked.

    Returns:
        What is to be raised once that is shown which has not failed.
    """
    anew = {job.name for job in again}
    engine = where.make([job for job in jobs if job.name in anew or not job.is_done(root)])
    if kept := results.discard(again, root):
        text = "sweeps that are not run again, since records of other cells name them"
        say(f"igr: {text}: {', '.join(kept)}", console.notes)
    curves = {"on_file": Curves(root)} if where.tensorboard else {}
    try:
        with published(root) as progress:
            driver.run(jobs, root, console.notes, engine, progress=progress, **curves)
    except driver.Failed as failed:
        return failed
    except Interrupted:
        fail(
            f"stopped; what was finished is in {root}, and the same command goes on from there", 130
        )
    return None
