"""How tasks of jobs are handed out, on engines whose time the test turns."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from igr.experiments.paper.cells import Cell
from igr.experiments.paper.specs import CHOICES
from igr.experiments.runs import driver
from igr.experiments.runs.cluster import Cluster
from igr.experiments.runs.driver import Failed
from igr.experiments.runs.engines import Here, Processes, cores
from igr.experiments.runs.jobs import Context, Steps
from igr.experiments.runs.progress import Board
from left import records
from tiny import TINY

QUIET = Console(file=io.StringIO(), width=200)


class Simulated(Here):
    """Several workers, each of which takes as long for a task as is expected of it."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots, self.now = slots, 0.0
        self.at_work: list[tuple[float, tuple[Any, ...]]] = []

    @property
    def free(self) -> int:
        return self.slots - len(self.at_work)

    def submit(self, key: int, task: Any, given: bytes | None) -> None:
        self.at_work.append((self.now + task.units, (key, task, given)))

    def poll(self, seconds: float) -> None:
        first = min(self.at_work, key=lambda each: each[0])
        self.at_work.remove(first)
        self.now, self.next = first
        super().poll(seconds)


SCALE = dataclasses.replace(
    TINY,
    temperatures=tuple(k / 10 for k in range(1, 11)),
    lrs=(1e-4, 3e-4, 1e-3),
    seeds=5,
    epochs=10,
)


def test_two_workers_share_one_cell_of_thirty_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_PIECE", 0.0)  # its tasks take milliseconds
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of files
    scale = dataclasses.replace(SCALE, rungs=CHOICES["halving"])
    cell = Cell("mnist", {"family": "igr-i"}, scale, scale.temperatures, scale.lrs)
    one, two = Simulated(1), Simulated(2)
    for engine in (one, two):
        driver.run([cell], tmp_path / str(engine.slots), QUIET, engine)
    assert two.now <= 0.6 * one.now, two.now / one.now
    assert records(tmp_path / "1") == records(tmp_path / "2")


@dataclass(frozen=True)
class Nap:
    """A job of one task that takes so long, and fails or leaves a file."""

    name: str
    units: float = 0.0
    error: str = ""
    datasets: Sequence[str] = field(default=(), compare=False)
    memory: int = 0

    @property
    def title(self) -> str:
        return self.name

    def path(self, root: Path) -> Path:
        return root / self.name

    def is_done(self, root: Path) -> bool:
        return self.path(root).exists()

    finished = is_done

    def work(self, root: Path) -> Steps:
        yield [self]

    def given(self, root: Path) -> None:
        return None

    def split(self, count: int) -> list[Nap]:
        return [self]

    def run(self, given: bytes | None, context: Context) -> None:
        time.sleep(self.units)
        if self.error:
            raise ValueError(self.error)
        context.write(Path(self.name), "slept")


def test_a_job_that_fails_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    jobs = [Nap("a"), Nap("b", error="no luck\nand more"), Nap("c"), Nap("d", error="no luck")]
    printed = io.StringIO()
    with pytest.raises(Failed, match=r"^b, d: ValueError: no luck$"):
        driver.run(jobs, tmp_path, Console(file=printed, width=200))
    assert [job.is_done(tmp_path) for job in jobs] == [True, False, True, False]
    assert "b failed: ValueError: no luck" in printed.getvalue()
    assert "Traceback" in printed.getvalue()  # for whoever is to mend it


class Short(Here):
    """Has no memory at first: whatever is started is killed."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.until = time.monotonic() + seconds

    def poll(self, seconds: float) -> None:
        if self.next is not None and time.monotonic() < self.until:
            (key, *_), self.next = self.next, None
            self.tell(key, "lost", "it was killed")
        else:
            super().poll(min(seconds, 0.01))


def test_tasks_outlast_a_shortage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between six attempts are 0, 1, 2, 4 and 8 of the first one."""
    monkeypatch.setattr(driver, "_PAUSE", 0.05)
    driver.run([Nap("short")], tmp_path, QUIET, Short(0.5))
    with pytest.raises(Failed, match=r"its workers kept being lost.* because it was killed"):
        driver.run([Nap("long")], tmp_path, QUIET, Short(30))


class Losing(Here):
    """Loses a task so many times, always after it has got on and left a file."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def poll(self, seconds: float) -> None:
        if self.next is not None and self.times:
            (key, *_), self.next = self.next, None
            self.times -= 1
            self.tell(key, "advance", 1.0)
            self.tell(key, "file", Path("state"), "so far")
            self.tell(key, "lost", "it was killed")
        else:
            super().poll(seconds)


def test_a_task_that_gets_on_is_not_given_up_and_what_is_lost_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(Board, "advance", lambda board, title, units: told.append(units))
    driver.run([Nap("far")], tmp_path, QUIET, Losing(2 * driver._ATTEMPTS))
    assert Nap("far").is_done(tmp_path)
    assert told == [1.0, -1.0] * 2 * driver._ATTEMPTS


def test_a_job_whose_part_fails_holds_nothing_any_more(tmp_path: Path) -> None:
    held: list[str] = []

    class Outer(Nap):
        def work(self, root: Path) -> Steps:
            held.append(self.name)
            try:
                yield [Nap("inner", error="no luck"), Nap("other")]
                raise AssertionError("went on")
            finally:
                held.remove(self.name)

    with pytest.raises(Failed, match="outer: ValueError: no luck"):
        driver.run([Outer("outer")], tmp_path, QUIET)
    assert not held
    assert Nap("other").is_done(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: Processes(4), lambda: Cluster(cpus=cores() / 4)])
def test_jobs_of_a_second_cost_a_tenth_besides_at_most(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the time that processes take to start, which does not grow with the jobs."""
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    jobs = [Nap(f"job-{i}", 1.0) for i in range(200)]
    driver.run(jobs, tmp_path, QUIET, make())
    ends = sorted(job.path(tmp_path).stat().st_mtime for job in jobs)
    assert ends[-1] - ends[20] <= 1.1 * (len(jobs) - 20) / 4
