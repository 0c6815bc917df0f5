"""The engine whose tasks a Ray cluster does."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import time
from collections.abc import Sequence
from typing import Any

from igr.experiments.errors import ConfigError, UserError
from igr.experiments.runs import bridge
from igr.experiments.runs.engines import Tell
from igr.experiments.runs.jobs import Task
from igr.experiments.runs.stopping import ENDS, Interrupted, StopRequest, ctrl_c_held_back
from igr.experiments.training.compute import CPU, Compute

_CONNECTING = 20.0  # seconds until somebody answers at an address
_ANSWERING = 60.0  # more until it has proved to be a Ray cluster: a busy machine takes its time
_STARTING = 180.0  # a cluster on this machine


class Cluster:
    """Has tasks done by a Ray cluster, to which a process of its own speaks.

    The cluster's machines need this package and the data, and share no folder.

    Args:
        address: of the head, or ``"auto"``; by default what ``$RAY_ADDRESS`` says, else a cluster is started here.
        compute: where and how torch computes.
        datasets: that the machines must have.
        cpus, gpus: for each task; torch uses as many threads as CPUs.
    """

    def __init__(
        self,
        address: str | None = None,
        compute: Compute = CPU,
        datasets: Sequence[str] = (),
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("engine: ray is not installed: pip install ray")
        self.address = address or os.environ.get("RAY_ADDRESS")
        self.compute = compute
        versions = bridge._versions()
        self.wanted = bridge.Wanted(cpus, gpus, versions, tuple(datasets), compute.device)
        self.slots, self.at_work, self.ready, self.asked = 1, 0, False, False

    @property
    def free(self) -> int:
        # Some more than are done at once, so that no machine waits for us.
        return self.slots + (self.slots + 3) // 4 - self.at_work

    def start(self, tell: Tell, stop: StopRequest) -> None:
        self.tell = tell
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=bridge.serve, args=(theirs, self.address, self.wanted), daemon=True
        )
        with ctrl_c_held_back():
            self.process.start()
        theirs.close()
        self.end = time.monotonic() + (_CONNECTING if self.address else _STARTING)
        while not self.ready:
            self.poll(0.1)
            if stop.requested:
                raise Interrupted(0)
            if time.monotonic() > self.end and not self.connected:
                raise ConfigError(
                    f"ray-address: {self.address} does not answer as a Ray cluster does"
                )

    def submit(self, key: int, task: Task, given: bytes | None) -> None:
        self.at_work += 1
        threads = max(1, int(self.wanted.cpus))
        payload = pickle.dumps((task, given, self.compute, threads))
        with contextlib.suppress(BrokenPipeError):  # `poll` finds out
            self.pipe.send(("submit", key, payload, task.memory))

    def poll(self, seconds: float) -> None:
        try:
            while self.pipe.poll(seconds):
                seconds = 0.0
                self._hear(*self.pipe.recv())
        except (EOFError, ConnectionResetError):
            raise UserError(
                "the Ray cluster is lost to this machine; what was finished is kept, and the same command goes on"
                " from there"
            ) from None

    def _hear(self, first: Any, *others: Any) -> None:
        if first == "slots":
            self.slots = max(1, others[0])
        elif first == "say":
            self.tell(-1, "say", *others)
        elif first == "refused":
            raise ConfigError(others[0])
        elif first == "reached":
            self.end = time.monotonic() + _ANSWERING
        elif first in ("connected", "ready"):
            self.connected, self.ready = True, first == "ready"
        else:
            self.at_work -= others[0] in ENDS
            self.tell(first, *others)

    connected = False

    def stop(self) -> None:
        if not self.asked:
            self.asked = True
            self.pipe.send(("stop",))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(("close",))
        self.process.join(10.0 if self.ready else 0.0)
        self.process.kill()
        self.process.join()
