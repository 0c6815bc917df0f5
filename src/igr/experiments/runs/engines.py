"""Where jobs run: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from igr.experiments.errors import ConfigError, UserError
from igr.experiments.files import make_folder, write_atomically
from igr.experiments.runs.jobs import Context, Job, work
from igr.experiments.runs.progress import Board, board
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.training.compute import CPU, Compute, keep_memory

ENGINES = ("local", "ray")

_RESTARTS = 3  # of worker processes that were killed


def cores() -> int:
    """How many cores this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    jobs: Sequence[Job],
    root: Path,
    console: Console,
    *,
    engine: str = "local",
    workers: int = 1,
    compute: Compute = CPU,
    ray_address: str | None = None,
) -> None:
    """Do what is missing of the jobs, and show how far it is.

    Args:
        jobs: what is wanted.
        root: folder of the records.
        console: where progress is shown.
        engine: one of `ENGINES`.
        workers: processes on this machine, each on one thread; 1 stays in this one.
        compute: where and how torch computes.
        ray_address: of the cluster; None starts one on this machine.

    Raises:
        Interrupted: if a stop was asked for; what was finished is kept.
    """
    make_folder(root)
    missing = [job for job in jobs if not job.is_done(root)]
    if not missing:
        return
    parts = {job.title: job.units for job in missing}
    workers = min(workers, len(missing))
    with StopRequest() as stop:
        if engine == "ray":
            _run_on_ray(missing, root, console, stop, compute, ray_address)
            return
        with board(parts, console, workers) as shown:
            if workers == 1:
                work(missing, Context(root, shown, stop, compute))
            else:
                _run_in_processes(missing, root, shown, stop, workers, compute)


@dataclasses.dataclass
class _Sender:
    """A reporter that passes everything on, steps not one by one."""

    put: Callable[[Any], object]
    every: float = 0.2
    _units: float = 0.0
    _sent: float = 0.0

    def _send(self, *event: Any) -> None:
        self._sent = time.monotonic()
        self.put(event)

    def _flush(self, part: str) -> None:
        if self._units:
            units, self._units = self._units, 0.0
            self._send("advance", part, units)

    def begin(self, part: str, units: float) -> None:
        self._units = 0.0
        self._send("begin", part, units)

    def note(self, part: str, text: str) -> None:
        self._flush(part)
        self._send("note", part, text)

    def advance(self, part: str, units: float) -> None:
        self._units += units
        if time.monotonic() - self._sent > self.every:
            self._flush(part)

    def skip(self, part: str, units: float) -> None:
        self._send("skip", part, units)

    def finish(self, part: str) -> None:
        self._units = 0.0
        self._send("finish", part)


def _show(shown: Board, event: tuple[Any, ...]) -> None:
    """Tell the board what a `_Sender` was told."""
    name, *arguments = event
    getattr(shown, name)(*arguments)


def _die_with(parent: int) -> None:
    """End this process as soon as its parent is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _worker(
    jobs: Sequence[Job], root: Path, compute: Compute, parent: int, events: Connection
) -> None:
    _die_with(parent)
    keep_memory()
    torch.set_num_threads(1)
    with StopRequest() as stop:
        # Ctrl-C reaches every process of a terminal; the parent alone passes it on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            work(jobs, Context(root, _Sender(events.send), stop, compute))
        except Interrupted:
            events.send(("interrupted",))
        except UserError as error:
            events.send(("error", type(error), str(error)))


def _run_in_processes(
    jobs: Sequence[Job],
    root: Path,
    shown: Board,
    stop: StopRequest,
    workers: int,
    compute: Compute,
) -> None:
    """In processes that each have a pipe of their own, so that one that is killed leaves the others alone."""
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}

    def start() -> None:
        events, sending = context.Pipe(duplex=False)
        arguments = (jobs, root, compute, os.getpid(), sending)
        running[events] = context.Process(target=_worker, args=arguments)
        running[events].start()
        sending.close()

    failure: Exception | None = None
    interrupted = asked = False
    restarts = 0
    for _ in range(workers):
        start()
    try:
        while running:
            if (stop.requested or failure) and not asked:
                asked = True
                for process in running.values():
                    process.terminate()
            for events in connection.wait(list(running), timeout=0.2):
                assert isinstance(events, Connection)  # noqa: S101  # for the type checker
                try:
                    event = events.recv()
                except (EOFError, OSError):  # it has ended
                    process = running.pop(events)
                    process.join()
                    code = process.exitcode or 0
                    if asked or not code:
                        continue
                    if code > 0:
                        failure = UserError("a worker process failed; its errors are above")
                    elif restarts == _RESTARTS:
                        failure = UserError(
                            f"worker processes kept being killed, the last by signal {-code} (is there"
                            " enough memory?); the same command goes on from there"
                        )
                    else:
                        restarts += 1
                        shown.say(
                            f"a worker process was killed by signal {-code}; another one goes on"
                        )
                        start()
                    continue
                if event[0] == "interrupted":
                    interrupted = True
                elif event[0] == "error":
                    failure = failure or event[1](event[2])
                else:
                    _show(shown, event)
    finally:
        for process in running.values():
            process.terminate()
            process.join()
    if failure:
        raise failure
    if interrupted or stop.requested:
        raise Interrupted(0)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".lock", ".tmp"))
    }


def run_elsewhere(job: Job, compute: Compute, events: Any) -> dict[str, bytes]:
    """Do a job in a folder of its own and return the files that it leaves, by their paths."""
    keep_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="igr-") as folder:
        context = Context(Path(folder), _Sender(events.put, every=2.0), StopRequest(), compute)
        work([job], context)
        return _files(Path(folder))


def receive(root: Path, files: dict[str, bytes]) -> None:
    """Put the files of a job where it would have left them; what marks it as done comes last."""

    def order(path: str) -> tuple[bool, bool, str]:
        return path.startswith(("cells/", "figures/")), path.endswith(".safetensors"), path

    for path in sorted(files, key=order):
        target = root / path
        if not target.exists():
            make_folder(target.parent)
            write_atomically(target, files[path])


def _run_on_ray(
    jobs: Sequence[Job],
    root: Path,
    console: Console,
    stop: StopRequest,
    compute: Compute,
    address: str | None,
) -> None:
    """One task for each job. The cluster's machines need this package and the data, but share no folder."""
    try:
        ray = importlib.import_module("ray")
        ray_queue = importlib.import_module("ray.util.queue")
    except ImportError:
        raise ConfigError("engine: ray is not installed: pip install ray") from None
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(
                address=address, log_to_driver=False, include_dashboard=False, logging_level=40
            )
        except (ConnectionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"ray-address: cannot reach {address!r} ({reason})") from None
    try:
        events = ray_queue.Queue(actor_options={"num_cpus": 0})
        gpus = 1 if torch.device(compute.device).type == "cuda" else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(run_elsewhere)
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        with board({job.title: job.units for job in jobs}, console, workers) as shown:
            waiting = {remote.remote(job, compute, events): job for job in jobs}
            while waiting:
                ready, _ = ray.wait(list(waiting), timeout=0.5)
                while not events.empty():
                    _show(shown, events.get())
                for task in ready:
                    job = waiting.pop(task)
                    try:
                        receive(root, ray.get(task))
                    except ray.exceptions.RayTaskError as error:
                        cause = error.cause
                        if isinstance(cause, UserError):
                            raise cause from None
                        raise
                    shown.finish(job.title)
                if stop.requested:
                    for task in waiting:
                        ray.cancel(task, force=True)
                    raise Interrupted(0)
    finally:
        if started:
            ray.shutdown()
