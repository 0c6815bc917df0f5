"""How far a long piece of work is, in all and part by part, and how long it still takes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from igr.experiments.errors import UserError
from igr.experiments.files import write_json


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.4), duration(45), duration(150), duration(8000)
    ('1 s', '45 s', '2 min 30 s', '2 h 13 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def fit(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Texts in one line of that width; those of the highest rank are left out first, and none is cut.

    >>> parts = [(1, "table1 IGR-I"), (3, "|||   "), (2, "48%"), (0, "3 min 2 s left")]
    >>> fit(parts, 60), fit(parts, 30)
    ('table1 IGR-I  |||     48%  3 min 2 s left', 'table1 IGR-I  3 min 2 s left')
    """
    kept = [part for part in parts if part[1]]
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return "  ".join(text for _, text in kept)


class _Line(ProgressColumn):
    """A task's fields, as many as fit."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Text:
        return Text(fit(task.fields["parts"], self.console.width), no_wrap=True)


def _bar(fraction: float, width: int = 20) -> str:
    return f"{'━' * round(fraction * width):{width}}"


@dataclass
class _Part:
    total: float
    done: float = 0.0
    skipped: float = 0.0
    note: str = ""
    started: float = 0.0
    finished: bool = False
    bar: TaskID | None = None

    @property
    def left(self) -> float:
        return 0.0 if self.finished else max(0.0, self.total - self.done - self.skipped)

    @property
    def fraction(self) -> float:
        return 1 - self.left / self.total if self.total else 1.0


class Board:
    """Shows progress: bars in a terminal, elsewhere a line now and then.

    The time left is the units left by the time that a unit has taken so far; before anything is done, a unit takes
    what it was expected to.

    Attributes:
        parts: expected seconds of each part, by title.
        workers: how many tasks go on at once.
        nodes: how many of them on each machine, where there are several.
        path: of a file that says how far it is, for others.
    """

    def __init__(
        self,
        parts: dict[str, float],
        console: Console,
        *,
        workers: int = 1,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = 10.0,
        path: Path | None = None,
    ) -> None:
        self.path, self.saved = path, -math.inf
        self.nodes: dict[str, int] = {}
        self.console, self.progress, self.clock = console, progress, clock
        self.workers = workers
        self.every = 0.2 if progress else every
        self.parts = {title: _Part(units) for title, units in parts.items()}
        self.shown = clock()
        self.started: float | None = None
        # Seconds of work after which what was measured counts as much as what was expected.
        self.weight = 5.0 + 0.02 * sum(parts.values())
        self.bar = progress.add_task("", parts=[]) if progress else None

    def begin(self, part: str, units: float) -> None:
        mine = self.parts[part]
        mine.total, mine.done, mine.skipped, mine.note = units, 0.0, 0.0, ""
        mine.started, mine.finished = self.clock(), False
        self.started = self.started or mine.started
        if self.progress is not None and mine.bar is None:
            mine.bar = self.progress.add_task("", parts=[(0, part)])
        self._show()

    def note(self, part: str, text: str) -> None:
        self.parts[part].note = text
        self._show()

    def wait(self, part: str) -> None:
        """Another process is at it; until something is done here, no time has passed."""
        mine = self.parts[part]
        mine.note = "in another process"
        if not mine.done:
            mine.started = self.clock()
        if not any(each.done for each in self.parts.values()):
            self.started = self.clock()
        self._show()

    def advance(self, part: str, units: float) -> None:
        self.parts[part].done += units
        self._show()

    def skip(self, part: str, units: float) -> None:
        self.parts[part].skipped += units
        self._show()

    def finish(self, part: str) -> None:
        mine = self.parts[part]
        mine.finished = True
        if self.progress is not None and mine.bar is not None:
            self.progress.remove_task(mine.bar)
            mine.bar = None
        self._show()

    def go_on(self, workers: int, nodes: dict[str, int]) -> None:
        """Time has passed; so many tasks may go on at once, and go on on these machines."""
        self.workers, self.nodes = max(1, workers), nodes
        self._show()

    def say(self, text: str) -> None:
        """Print a line above what is shown."""
        self.console.print(f"igr: {text}", soft_wrap=True, markup=False)

    @property
    def left(self) -> float:
        """Seconds that all the work still takes."""
        done = sum(part.done for part in self.parts.values())
        left = sum(part.left for part in self.parts.values())
        elapsed = self.clock() - self.started if self.started else 0.0
        return left * (elapsed + self.weight / self.workers) / (done + self.weight)

    def left_of(self, title: str) -> float:
        """Seconds that one part still takes."""
        part = self.parts[title]
        elapsed, weight = self.clock() - part.started, 0.1 * part.total + 0.1
        return part.left * (elapsed + weight) / (part.done + weight)

    @property
    def fraction(self) -> float:
        """How much of the work is done, between 0 and 1."""
        total = sum(part.total for part in self.parts.values())
        left = sum(part.left for part in self.parts.values())
        return 1 - left / total if total else 1.0

    def line(self) -> str:
        """Everything in one line."""
        finished = sum(part.finished for part in self.parts.values())
        text = f"{100 * self.fraction:.0f}%, {finished} of {len(self.parts)} done, {duration(self.left)} left"
        return "; ".join([text, *self._on_nodes(), *self._going()])

    def _on_nodes(self) -> list[str]:
        counts = ", ".join(f"{count} on {node}" for node, count in self.nodes.items())
        return [f"tasks: {counts}"] if counts else []

    def _going(self) -> list[str]:
        return [
            f"{title}: {part.note or 'starting'}, {duration(self.left_of(title))} left"
            for title, part in self.parts.items()
            if part.started and not part.finished
        ]

    def _save(self) -> None:
        """Say in the file how far it is."""
        self.saved = self.clock()
        finished = sum(part.finished for part in self.parts.values())
        told: dict[str, Any] = {
            "fraction": self.fraction,
            "seconds_left": self.left,
            "done": finished,
            "jobs": len(self.parts),
            "at_work": self._going(),
            "nodes": self.nodes,
        }
        if self.path is not None:
            with contextlib.suppress(UserError):  # a full disk is told of by who writes records
                write_json(self.path, told)

    def _show(self) -> None:
        if self.path is not None and self.clock() - self.saved > 3.0:
            self._save()
        if self.clock() - self.shown < self.every:
            return
        self.shown = self.clock()
        if self.progress is None:
            self.console.print(self.line(), soft_wrap=True, markup=False)
            return
        if self.bar is not None and len(self.parts) > 1:
            finished = sum(part.finished for part in self.parts.values())
            count = ", ".join([f"{finished} of {len(self.parts)} done", *self._on_nodes()])
            self._update(self.bar, "in all", count, self.fraction, self.left)
        for title, part in self.parts.items():
            if part.bar is not None:
                self._update(part.bar, title, part.note, part.fraction, self.left_of(title))

    def _update(self, bar: TaskID, title: str, note: str, fraction: float, left: float) -> None:
        if self.progress is not None:
            parts = [(1, title), (3, _bar(fraction)), (2, f"{100 * fraction:3.0f}%"), (4, note)]
            self.progress.update(bar, parts=[*parts, (0, f"{duration(left)} left")])


@contextlib.contextmanager
def board(parts: dict[str, float], console: Console, path: Path | None = None) -> Iterator[Board]:
    """A `Board`, shown in the way that suits where the console writes."""
    if not console.is_terminal:
        yield Board(parts, console, path=path)
        return
    with Progress(_Line(console), console=console, transient=True) as progress:
        yield Board(parts, console, progress=progress, path=path)
