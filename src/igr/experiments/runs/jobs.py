"""What is done in a folder of records: jobs, which ask for tasks, and tasks, which any process can do.

A *task* needs nothing but what is sent with it, and writes nothing: it tells of its progress and of the files that it
leaves. A *job* is a generator beside the folder. It yields tasks, or generators of the same kind, goes on when all of
these are done, and so may choose by what came out. `igr.experiments.runs.driver` runs the generators, has tasks done
and writes their files. Whatever is killed, and when, nothing is lost but what a task did since it last sent its state.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, Union

from igr.experiments.errors import UserError
from igr.experiments.files import acquire, make_folder
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.training.compute import CPU, Compute, flushed_denormals

Steps: TypeAlias = Iterator[Sequence[Union["Task", Callable[[Path], "Steps"]]]]


class Task(Protocol):
    """A piece of work that can be pickled."""

    @property
    def units(self) -> float:
        """Seconds it is expected to take."""

    @property
    def memory(self) -> int:
        """Bytes that a process takes for it."""

    def finished(self, root: Path) -> bool:
        """Whether its files are complete."""

    def given(self, root: Path) -> bytes | None:
        """What it needs of the folder, where something is there to go on from."""

    def run(self, given: bytes | None, context: Context) -> None:
        """Do it, anywhere."""

    def split(self, count: int) -> Sequence[Task]:
        """The same work as so many tasks, or fewer where it cannot be divided so far."""


@dataclass
class Context:
    """Where a task is done, and whom it tells.

    Attributes:
        tell: is given events: ``("advance", units)``, ``("skip", units)`` of what had been done before,
            ``("note", text)``, ``("say", text)`` and ``("file", path within the folder, content)``.
        stop: asks for an end at the next point where nothing is lost.
        compute: where and how torch computes.
        every: seconds between states, at least.
        quiet: seconds between two words on how far it is, at least.
    """

    tell: Callable[[tuple[Any, ...]], object]
    stop: StopRequest
    compute: Compute = CPU
    every: float = 0.0
    quiet: float = 0.2
    _units: float = 0.0
    _told: float = 0.0

    def advance(self, units: float) -> None:
        """So much has been done."""
        self._units += units
        if time.monotonic() - self._told > self.quiet:
            self.flush()

    def flush(self) -> None:
        """Pass on what has been done."""
        self._told = time.monotonic()
        if self._units:
            units, self._units = self._units, 0.0
            self.tell(("advance", units))

    def skip(self, units: float) -> None:
        """So much had been done before."""
        self.tell(("skip", units))

    def note(self, text: str) -> None:
        """What is being done."""
        self.flush()
        self.tell(("note", text))

    def say(self, text: str) -> None:
        """Tell the user, who is told the same thing once."""
        self.tell(("say", text))

    def write(self, path: Path, content: bytes | str) -> None:
        """Leave a file."""
        self.flush()
        self.tell(("file", path.as_posix(), content))


def perform(task: Task, given: bytes | None, context: Context) -> None:
    """Do a task, and tell at last how it ended: done, stopped, or failed for a reason of its own."""
    try:
        with flushed_denormals():
            task.run(given, context)
        context.flush()
        context.tell(("done",))
    except Interrupted as stopped:
        context.tell(("stopped", stopped.args))
    except Exception as error:
        context.tell(("failed", *described(error)))


def described(error: Exception) -> tuple[str, str]:
    """An error in one line, and its traceback unless it is something that the user can mend."""
    if isinstance(error, UserError):
        return str(error), ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}", traceback.format_exc()


class Job(Protocol):
    """Tasks that belong together and leave records."""

    @property
    def name(self) -> str:
        """Unique within a folder, and the same for the same work."""

    @property
    def title(self) -> str:
        """What progress calls it."""

    @property
    def units(self) -> float:
        """Seconds it is expected to take."""

    @property
    def datasets(self) -> Sequence[str]:
        """The data sets that its tasks read."""

    def is_done(self, root: Path) -> bool:
        """Whether its records are complete."""

    def work(self, root: Path) -> Steps:
        """Ask for what is missing, and record what came out.

        Raises:
            Busy: before anything is asked for, if another process is at it.
        """


@contextlib.contextmanager
def locked(root: Path, name: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold what `name` stands for.

    Raises:
        Busy: if another process still holds it after so many seconds.
    """
    path = root / "locks" / f"{name}.lock"
    make_folder(path.parent)
    with acquire(path, timeout):
        yield
