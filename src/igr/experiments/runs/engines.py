"""Where tasks are done: in this process, or in several on this machine; `igr.experiments.runs.cluster` has Ray's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

from igr.experiments.runs.jobs import Context, Task, perform
from igr.experiments.runs.stopping import ENDS, StopRequest, ctrl_c_held_back, ignore_ctrl_c
from igr.experiments.training.compute import CPU, Compute, keep_memory

_STATES = 10.0  # seconds between states that are sent from other machines

Tell = Callable[..., object]
"""Is given a task's key, the name of an event and what belongs to it; see `igr.experiments.runs.jobs.Context`.

A task ends with ``"done"``, ``"stopped", (epoch,)``, ``"failed", reason, details`` or ``"lost", reason``, where its
process was killed and another one may have more luck.
"""


def cores() -> int:
    """How many cores this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine(Protocol):
    """Does tasks."""

    @property
    def slots(self) -> int:
        """How many tasks it does at once."""

    @property
    def free(self) -> int:
        """How many more it takes now."""

    def start(self, tell: Tell, stop: StopRequest) -> None:
        """Make ready; `tell` is to hear of everything."""

    def submit(self, key: int, task: Task, given: bytes | None) -> None:
        """Have a task done, soon."""

    def poll(self, seconds: float) -> None:
        """Tell of what has happened, waiting for so long at most if nothing has."""

    def stop(self) -> None:
        """Ask for an end where nothing is lost; may be called again."""

    def close(self) -> None:
        """End everything."""


class Here:
    """This process does one task after another."""

    slots = 1

    def __init__(self, compute: Compute = CPU) -> None:
        self.compute = compute
        self.next: tuple[int, Task, bytes | None] | None = None

    @property
    def free(self) -> int:
        return int(self.next is None)

    def start(self, tell: Tell, stop: StopRequest) -> None:
        self.tell, self.stopping = tell, stop

    def submit(self, key: int, task: Task, given: bytes | None) -> None:
        self.next = key, task, given

    def poll(self, seconds: float) -> None:
        if self.next is None:
            time.sleep(seconds)
            return
        key, task, given = self.next
        self.next = None
        context = Context(lambda event: self.tell(key, *event), self.stopping, self.compute)
        perform(task, given, context)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def die_with(parent: int) -> None:
    """End this process as soon as its parent is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(compute: Compute, parent: int, pipe: Connection) -> None:
    """Do the tasks that come through a pipe, until it is closed."""
    die_with(parent)
    keep_memory()
    torch.set_num_threads(1)
    with StopRequest() as stop, contextlib.suppress(EOFError, OSError):
        ignore_ctrl_c()
        while not stop.requested:
            task, given = pickle.loads(pipe.recv_bytes())  # from our parent
            perform(task, given, Context(pipe.send, stop, compute))


@dataclass
class _Worker:
    process: BaseProcess
    key: int | None = None


class Processes:
    """Processes on this machine, of one thread each, with a pipe each: one that is killed leaves the others alone."""

    def __init__(self, workers: int, compute: Compute = CPU) -> None:
        self.slots, self.compute = workers, compute
        self.workers: dict[Connection, _Worker] = {}
        self.asked = False

    @property
    def free(self) -> int:
        return self.slots - sum(worker.key is not None for worker in self.workers.values())

    def start(self, tell: Tell, stop: StopRequest) -> None:
        self.tell = tell

    def _start_worker(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.compute, os.getpid(), theirs))
        with ctrl_c_held_back():
            process.start()
        theirs.close()
        self.workers[ours] = _Worker(process)
        return ours

    def submit(self, key: int, task: Task, given: bytes | None) -> None:
        idle = [pipe for pipe, worker in self.workers.items() if worker.key is None]
        pipe = idle[0] if idle else self._start_worker()
        self.workers[pipe].key = key
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `poll` finds out
            pipe.send_bytes(pickle.dumps((task, given)))

    def poll(self, seconds: float) -> None:
        ready = connection.wait(list(self.workers), timeout=seconds)
        for pipe in [each for each in self.workers if each in ready]:
            worker = self.workers[pipe]
            try:
                event = pipe.recv()
            except (EOFError, OSError):
                del self.workers[pipe]
                worker.process.join()
                if worker.key is not None:
                    self.tell(worker.key, "lost", _why(worker.process.exitcode or 0))
                continue
            key = worker.key
            if event[0] in ENDS:
                worker.key = None
            self.tell(key, *event)

    def stop(self) -> None:
        if not self.asked:
            self.asked = True
            for worker in self.workers.values():
                worker.process.terminate()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.process.kill()
            worker.process.join()


def _why(code: int) -> str:
    """What became of a process that ended so."""
    if code < 0:
        return f"a worker process was killed by signal {-code}"
    return f"a worker process ended with exit code {code}"


def events(payload: bytes) -> Iterator[tuple[Any, ...]]:
    """Do a task in another thread, and yield what it tells; for an engine that is elsewhere."""
    keep_memory()
    task, given, compute, threads = pickle.loads(payload)  # from our driver
    told: queue.Queue[tuple[Any, ...]] = queue.Queue(maxsize=4)
    context = Context(told.put, StopRequest(), compute, every=_STATES, quiet=1.0)

    def work() -> None:
        torch.set_num_threads(threads)
        perform(task, given, context)

    threading.Thread(target=work, daemon=True).start()
    while True:
        event = told.get()
        yield event
        if event[0] in ENDS:
            return
