"""Has jobs done: runs their steps, gives their tasks to an engine, and writes the files that come of them."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from igr.experiments.errors import UserError
from igr.experiments.files import Busy, make_folder, write_atomically
from igr.experiments.runs.engines import Engine, Here
from igr.experiments.runs.jobs import Job, Steps, Task, described
from igr.experiments.runs.progress import Board, board
from igr.experiments.runs.stopping import Interrupted, StopRequest

_ATTEMPTS = 6  # of a task whose workers are killed before it has sent a state
_PAUSE = 2.0  # seconds before the third attempt, twice as many before each further one: memory may be short for a while
_PIECE = 2.0  # seconds that a part of a divided task should take at least


class Failed(UserError):  # noqa: N818
    """Jobs that failed for reasons of their own; all others are done."""


@dataclass
class _Node:
    """Steps that wait for what they asked for."""

    job: Job
    order: int
    make: Callable[[Path], Steps]
    parent: _Node | None = None
    steps: Steps | None = None
    waiting: int = 0
    failure: Failed | None = None


@dataclass(order=True)
class _Asked:
    """A task that is to be done, and how it goes."""

    rank: tuple[int, int]
    task: Task = field(compare=False)
    node: _Node = field(compare=False)
    lost: int = field(default=0, compare=False)
    where: str = field(default="", compare=False)
    told: dict[str, float] = field(default_factory=dict, compare=False)


def run(
    jobs: Sequence[Job],
    root: Path,
    console: Console,
    engine: Engine | None = None,
    on_file: Callable[[Path, bytes | str], object] = lambda path, content: None,
    progress: Path | None = None,
) -> None:
    """Do what is missing of the jobs, and show how far it is.

    Args:
        jobs: what is wanted.
        root: folder of the records.
        console: where progress is shown.
        engine: does the tasks; by default in this process.
        on_file: is told of every file that was written.
        progress: file that says how far it is, for others.

    Raises:
        Failed: if a job failed for a reason of its own; the others have been done.
        Interrupted: if a stop was asked for; what was finished is kept.
    """
    make_folder(root)
    missing = [job for job in jobs if not job.is_done(root)]
    if not missing:
        return
    engine = engine or Here()
    parts = {job.title: job.units for job in missing}
    with StopRequest() as stop, board(parts, console, progress) as shown:
        driver = _Driver(root, missing, engine, shown, stop, on_file)
        try:
            engine.start(driver.told, stop)
            driver.run()
        finally:
            engine.close()
            driver.close()


class _Driver:
    def __init__(
        self,
        root: Path,
        jobs: Sequence[Job],
        engine: Engine,
        shown: Board,
        stop: StopRequest,
        on_file: Callable[[Path, bytes | str], object],
    ) -> None:
        self.root, self.engine, self.shown, self.stop = root, engine, shown, stop
        self.on_file = on_file
        self.ahead = [_Node(job, i, job.work) for i, job in enumerate(jobs)]
        self.ahead.reverse()
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.open: dict[int, _Node] = {}  # by id: what has locks to give back
        self.queue: list[_Asked] = []
        self.at_work: dict[int, _Asked] = {}
        self.numbers = itertools.count()
        self.failures: dict[str, list[str]] = {}  # by reason
        self.said: set[str] = set()
        self.stopped: tuple[Any, ...] = (0,)
        self.broken: UserError | None = None

    def run(self) -> None:
        while self.ahead or self.later or self.queue or self.at_work:
            if self.stop.requested:
                self.engine.stop()
                if not self.at_work:
                    raise Interrupted(*self.stopped)
            else:
                self._try_again()
                self._hand_out()
            nodes = Counter(a.where for a in self.at_work.values() if a.where)
            self.shown.go_on(self.engine.slots, nodes)
            if self.at_work or self.later or not self.engine.free:
                self.engine.poll(0.2)
            if self.broken:
                raise self.broken
        if self.open:  # what was at work has stopped
            raise Interrupted(*self.stopped)
        if self.failures:
            raise Failed("; ".join(f"{_listed(t)}: {text}" for text, t in self.failures.items()))

    def close(self) -> None:
        """Give back what the jobs hold, the innermost first."""
        for node in reversed(self.open.values()):
            if node.steps is not None:
                node.steps.close()  # type: ignore[attr-defined]

    # Jobs

    def _try_again(self) -> None:
        """Try what another process was at, and what was lost."""
        now, waiting = time.monotonic(), self.later
        self.later = [each for each in waiting if each[0] > now]
        for since, again in waiting:
            if since <= now:
                again()

    def _wait(self, seconds: float, again: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + seconds, again))

    def _begin(self) -> None:
        node = self.ahead.pop()
        self.shown.begin(node.job.title, node.job.units)
        if node.job.is_done(self.root):
            self.shown.finish(node.job.title)
        else:
            self._resume(node)

    def _resume(self, node: _Node) -> None:
        """Have steps go on to what they ask for next."""
        if node.steps is None:
            node.steps = node.make(self.root)
            self.open[id(node)] = node
        try:
            # Through the steps, so that they give back what they hold.
            asked = node.steps.throw(node.failure) if node.failure else next(node.steps)  # type: ignore[attr-defined]
        except StopIteration:
            self._leave(node)
        except Busy:
            node.steps = None
            self._wait(0.3, lambda: self._resume(node))
            self.shown.wait(node.job.title)
        except Failed as failure:
            self._leave(node, failure)
        except Exception as error:
            self._leave(node, self._failed(*described(error)))
        else:
            node.waiting = len(asked) + 1
            for each in asked:
                if callable(each):
                    self._resume(_Node(node.job, node.order, each, node))
                else:
                    self._ask(each, node)
            self._done(node)

    def _leave(self, node: _Node, failure: Failed | None = None) -> None:
        """Steps have ended."""
        del self.open[id(node)]
        if node.parent is not None:
            self._done(node.parent, failure)
            return
        if failure:
            self.failures.setdefault(str(failure), []).append(node.job.title)
            if len(self.shown.parts) > 1:  # else it is the end, which says so
                self.shown.say(f"{node.job.title} failed: {failure}")
        self.shown.finish(node.job.title)

    def _done(self, node: _Node, failure: Failed | None = None) -> None:
        """Something that steps wait for has ended."""
        node.failure = node.failure or failure
        node.waiting -= 1
        if not node.waiting:
            self._resume(node)

    # Tasks

    def _ask(self, task: Task, node: _Node) -> None:
        if task.finished(self.root):
            self.shown.skip(node.job.title, task.units)
            self._done(node)
        else:
            asked = _Asked((node.order, next(self.numbers)), task, node)
            heapq.heappush(self.queue, asked)

    def _hand_out(self) -> None:
        """Give the engine as many tasks as it takes at once, dividing those that would be waited for."""
        while self.engine.free:
            while self.ahead and len(self.queue) < self.engine.free:
                self._begin()
            if not self.queue:
                return
            ahead = sum(node.job.units for node in self.ahead)
            share = (ahead + sum(a.task.units for a in self.queue)) / max(1, self.engine.slots)
            asked = heapq.heappop(self.queue)
            size = max(share, _PIECE)
            parts = asked.task.split(max(1, math.ceil(asked.task.units / size - 1e-6)))
            asked.node.waiting += len(parts) - 1
            for part in parts[1:]:
                number = next(self.numbers)
                heapq.heappush(
                    self.queue, dataclasses.replace(asked, rank=(asked.rank[0], number), task=part)
                )
            self._submit(dataclasses.replace(asked, task=parts[0]))

    def _failed(self, text: str, details: str) -> Failed:
        if details:
            self.shown.say(details)
        return Failed(text)

    def _submit(self, asked: _Asked) -> None:
        key = asked.rank[1]
        self.at_work[key] = asked
        try:
            given = asked.task.given(self.root)
        except UserError as error:
            self.told(key, "failed", *described(error))
        else:
            self.engine.submit(key, asked.task, given)

    def told(self, key: int, name: str, *arguments: Any) -> None:
        """Hear of an event."""
        if name == "say":
            if key < 0 or arguments[0] not in self.said:
                self.shown.say(arguments[0])
            self.said.add(arguments[0])
            return
        asked = self.at_work.get(key)
        if asked is None:
            return
        title = asked.node.job.title
        if name in ("advance", "skip"):
            (units,) = arguments
            asked.told[name] = asked.told.get(name, 0.0) + units
            getattr(self.shown, name)(title, units)
        elif name == "note":
            where = f"{asked.where}: " if asked.where else ""
            self.shown.note(title, f"{where}{arguments[0]}")
        elif name == "file":
            path, content = arguments
            try:
                write_atomically(self.root / path, content)
            except UserError as error:  # no other file can be written either
                self.broken = error
                raise
            asked.lost = 0
            self.on_file(self.root / path, content)
        elif name == "begin":
            asked.where = arguments[0]
        else:
            del self.at_work[key]
            self._ended(asked, name, *arguments)

    def _ended(self, asked: _Asked, how: str, *arguments: Any) -> None:
        title = asked.node.job.title
        if how == "done":
            self._done(asked.node)
        elif how == "failed":
            self._done(asked.node, self._failed(*arguments))
        elif self.stop.requested:
            self.stopped = arguments[0] if how == "stopped" else self.stopped
        else:
            asked.lost += 1
            for name, units in asked.told.items():
                getattr(self.shown, name)(title, -units)
            asked.told = {}
            reason = arguments[0] if how == "lost" else "a worker process was asked to end"
            if asked.lost < _ATTEMPTS:
                self.shown.say(f"{title}: {reason}; it goes on from what was saved")
                again = dataclasses.replace(asked, where="")
                pause = _PAUSE * 2.0 ** (asked.lost - 2) if asked.lost > 1 else 0.0
                self._wait(pause, lambda: heapq.heappush(self.queue, again))
            else:
                text = f"its workers kept being lost, the last one because {reason} (is there enough memory?)"
                self._done(asked.node, Failed(text))


def _listed(titles: Sequence[str]) -> str:
    """At most three of them, and how many others."""
    others = f" and {len(titles) - 3} others" if len(titles) > 3 else ""
    return ", ".join(titles[:3]) + others
