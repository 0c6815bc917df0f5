"""Pieces of work in one folder that any number of processes may work on at once.

Whoever works on a folder takes the jobs in turn, passes over those that another process holds and those that are done,
and comes back to see that nothing is left. What was computed is therefore never computed again, whichever process was
killed and when.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from igr.experiments.files import Busy, acquire, make_folder
from igr.experiments.runs.progress import Reporter
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.training.compute import CPU, Compute


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
    make_folder(path.parent)
    while True:
        try:
            lock = acquire(path)
            break
        except Busy:
            if wait is None:
                raise
            wait()
            time.sleep(0.2)
    with lock:
        yield


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
