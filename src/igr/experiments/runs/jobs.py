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

import filelock

from igr.experiments.errors import RecordError
from igr.experiments.runs.progress import Reporter
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.training.compute import CPU, Compute


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
