"""The process between the driver and a Ray cluster, and what it sends to the cluster's machines.

Ray ends the process that it runs in when the cluster is gone, and may not let itself be interrupted before: so that
process is not the driver's. Tasks pass through as bytes, and nothing here needs torch. Functions with an underscore are
sent whole, since a machine without this package is to say so.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from igr.experiments.runs.stopping import ENDS, ignore_ctrl_c

_TOKEN = (
    "; if the head was started with a token, RAY_AUTH_MODE=token has to be set here and on every machine, and the"
    " token to be the head's"
)
_PROBE = 60.0  # seconds until a machine must have answered
_WAIT = 10.0  # seconds without a free place until that is said
_GONE = 10.0  # seconds for which the head refuses to answer until it counts as lost; it may be restarted
_SILENT = 120.0  # seconds without any answer: a network may be away for a minute


@dataclass(frozen=True)
class Wanted:
    """What tasks take of a machine, and what has to be there.

    Attributes:
        cpus, gpus: for each task.
        versions: of Python and packages.
        datasets: that are read.
        device: as torch names it.
    """

    cpus: float
    gpus: float
    versions: dict[str, str]
    datasets: tuple[str, ...]
    device: str

    def places(self, node: dict[str, Any]) -> int:
        """How many tasks a machine does at once."""
        has = node["Resources"] if node["Alive"] else {}
        places = [int(has.get("CPU", 0) // self.cpus)]
        if self.gpus:
            places.append(int(has.get("GPU", 0) / self.gpus + 1e-9))
        return min(places)


def _versions() -> dict[str, str]:
    """Of what has to be the same everywhere; those of what is not installed are left out."""
    import hashlib
    import importlib.metadata
    import importlib.util
    import pathlib
    import platform

    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("torch", "numpy", "safetensors"):
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(name).partition("+")[0]
    if (spec := importlib.util.find_spec("igr")) is not None and spec.origin is not None:
        import igr

        # Versions alike say little where people work on the code.
        folder = pathlib.Path(spec.origin).parent
        code = hashlib.blake2b(digest_size=4)
        for path in sorted(folder.rglob("*.py")):
            code.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        found["igr"] = f"{igr.__version__} ({code.hexdigest()})"
    return found


def _misfits(wanted: Any, versions: Any) -> list[str]:
    """Why the machine that this runs on cannot do tasks."""
    found = versions()
    misfits = []
    for name, version in wanted.versions.items():
        if name not in found:
            misfits.append(f"{name} is not installed, {version} is wanted")
        elif found[name] != version:
            misfits.append(f"{name} is {found[name]}, {version} is wanted as here")
    if misfits:
        return misfits
    from igr.experiments import data
    from igr.experiments.errors import UserError
    from igr.experiments.training.compute import Compute, check_compute

    try:
        check_compute(Compute(wanted.device))
        for name in wanted.datasets:
            len(data.load(name).test)
    except UserError as error:
        misfits.append(str(error))
    return misfits


_found: list[list[str]] = []  # in a worker: why its machine does not fit


def _stream(payload: bytes, wanted: Any) -> Iterator[tuple[Any, ...]]:
    """Do a task on a machine of the cluster, and yield what it tells."""
    import ray

    yield ("begin", ray.get_runtime_context().get_node_id())
    if not _found:
        _found.append(_misfits(wanted, _versions))
    if _found[0]:
        yield ("unfit", _found[0])
        return
    from igr.experiments.runs.engines import events

    yield from events(payload)


class _Refused(Exception):  # noqa: N818
    """The cluster cannot be used; one line."""


def connect(address: str | None, pipe: Connection) -> Any:
    """Ray, connected."""
    if address and "://" in address:
        raise _Refused(
            f"ray-address: expected HOST:PORT of the head, or auto, on a machine of the cluster, got {address!r}"
        )
    if address and ":" in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise _Refused(f"ray-address: nobody answers at {address} ({error})") from None
        pipe.send(("reached",))
    import ray

    try:
        # Without "local", Ray would take any cluster that it finds, running or not.
        ray.init(address or "local", log_to_driver=False, include_dashboard=False, logging_level=40)
    except Exception as error:  # ConnectionError, ValueError; RuntimeError where versions differ
        text = f"ray-address: {' '.join(str(error).split())}"
        if isinstance(error, ConnectionError):  # Ray says no more than that it failed
            text += _TOKEN
        raise _Refused(text) from None
    return ray


def serve(pipe: Connection, address: str | None, wanted: Wanted) -> None:
    """Do what comes through the pipe on a cluster; the function that the process runs."""
    parent = os.getppid()
    for stream in (1, 2):  # Ray's own words, some of them from beyond Python
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    ignore_ctrl_c()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the driver says when to end
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            ray = connect(address, pipe)
            pipe.send(("connected",))
            _Bridge(pipe, ray, wanted, parent).run()
            ray.shutdown()
        except _Refused as refused:
            pipe.send(("refused", str(refused)))
        except (BrokenPipeError, EOFError, ConnectionResetError):
            raise
        except Exception as error:  # whatever Ray raises when it is going down
            text = "the Ray cluster is lost to this machine; what was finished is kept, and the same command goes on"
            pipe.send(("refused", f"{text} from there ({_last_line(error)})"))


class _Bridge:
    def __init__(self, pipe: Connection, ray: Any, wanted: Wanted, parent: int) -> None:
        self.pipe, self.ray, self.wanted, self.parent = pipe, ray, wanted, parent
        self.head: str = ray.get_runtime_context().gcs_address
        self.orders: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.streams: dict[Any, int] = {}  # by generator: key
        self.nodes: dict[int, str] = {}  # by key: where it is done
        self.unfit: set[str] = set()  # machines that came later and do not fit
        self.names: dict[str, str] = {}
        self.answered = self.ran = time.monotonic()
        self.next_look = 0.0
        self.said, self.memory = False, 0
        this = __import__(__name__, fromlist=["_"])
        ray.cloudpickle.register_pickle_by_value(this)
        self.remote = ray.remote(
            num_returns="streaming", max_retries=0, _generator_backpressure_num_objects=16
        )(_stream)

    def run(self) -> None:
        self.probe()
        self.look()
        threading.Thread(target=self.hear, daemon=True).start()
        self.pipe.send(("ready",))
        while os.getppid() == self.parent:
            with contextlib.suppress(queue.Empty):
                while True:
                    order, *arguments = self.orders.get(timeout=0 if self.streams else 0.1)
                    if order == "close":
                        return
                    if order == "submit":
                        self.submit(*arguments)
                    else:
                        for stream in self.streams:
                            self.ray.cancel(stream, force=True)
            if self.streams:
                self.listen()
            self.look()

    def hear(self) -> None:
        """Take what the driver sends whatever else is done here.

        A pipe holds little: the driver, sending a state, and we, sending another, would else wait for each other.
        """
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self.orders.put(self.pipe.recv())
        self.orders.put(("close",))

    def probe(self) -> None:
        """Ask every machine whether it can do tasks."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ask = self.ray.remote(num_cpus=0, max_retries=0)(_misfits)
        asked = {}
        for node in self.ray.nodes():
            if self.wanted.places(node):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = ask.options(scheduling_strategy=there).remote(self.wanted, _versions)
                asked[task] = self.name(node["NodeID"])
        misfits = []
        waiting, end = list(asked), time.monotonic() + _PROBE
        while waiting and time.monotonic() < end:
            ready, waiting = self.ray.wait(waiting, timeout=1.0)
            for task in ready:
                try:
                    found = self.ray.get(task)
                except Exception as error:
                    found = [f"cannot run a task: {_last_line(error)}"]
                misfits += [f"{asked[task]}: {each}" for each in found]
        misfits += [f"{asked[task]}: has not answered for {_PROBE:.0f} s" for task in waiting]
        for misfit in misfits:
            self.pipe.send(("say", misfit))
        if misfits:
            raise _Refused("nothing was run: every machine of the cluster has to fit; see above")

    def name(self, node: str) -> str:
        """What people call a machine; those that share a name have part of their number besides."""
        if node not in self.names:
            hosts = {each["NodeID"]: each["NodeManagerHostname"] for each in self.ray.nodes()}
            for each, host in hosts.items():
                same = list(hosts.values()).count(host) > 1
                self.names.setdefault(each, f"{host}-{each[:6]}" if same else host)
        return self.names.get(node, node[:6])

    def submit(self, key: int, payload: bytes, memory: int) -> None:
        self.memory = max(self.memory, memory)
        resources: dict[str, Any] = {
            "num_cpus": self.wanted.cpus,
            "num_gpus": self.wanted.gpus,
            "memory": memory,
        }
        if self.unfit:
            resources["label_selector"] = {"ray.io/node-id": f"!in({','.join(self.unfit)})"}
        self.streams[self.remote.options(**resources).remote(payload, self.wanted)] = key

    def listen(self) -> None:
        """Pass on what tasks tell."""
        ready, _ = self.ray.wait(list(self.streams), num_returns=len(self.streams), timeout=0.05)
        for stream in ready:
            try:
                event = self.ray.get(next(stream))
            except StopIteration:
                self.ended(stream, "lost", "it ended without a word")
            except self.ray.exceptions.TaskCancelledError:
                self.ended(stream, "stopped", (0,))
            except self.ray.exceptions.RayTaskError as error:
                self.ended(stream, "failed", _last_line(error), str(error))
            except self.ray.exceptions.RayError as error:
                # Tasks that are killed while they start have not said where they are.
                if found := re.search(r"Memory on the node \(IP: [^,]*, ID: (\w+)\)", str(error)):
                    self.nodes[self.streams[stream]] = found[1]
                self.ended(stream, "lost", _why(error))
            else:
                key = self.streams[stream]
                if event[0] == "begin":
                    self.nodes[key] = event[1]
                    self.pipe.send((key, "begin", self.name(event[1])))
                elif event[0] == "unfit":
                    self.avoid(self.nodes[key], event[1])
                    self.ended(stream, "lost", "the machine does not fit")
                elif event[0] in ENDS:
                    self.ended(stream, *event)
                else:
                    self.pipe.send((key, *event))

    def avoid(self, node: str, misfits: list[str]) -> None:
        """Give a machine that joined after the probe no more tasks."""
        if node not in self.unfit:
            self.unfit.add(node)
            for misfit in misfits:
                self.pipe.send(("say", f"{self.name(node)}: {misfit}; nothing is done there"))

    def ended(self, stream: Any, how: str, *arguments: Any) -> None:
        key = self.streams.pop(stream)
        node = self.nodes.pop(key, None)
        if how in ("failed", "lost") and node:
            arguments = (f"on {self.name(node)}: {arguments[0]}", *arguments[1:])
        self.pipe.send((key, how, *arguments))

    def look(self) -> None:
        """See every other second how the cluster is."""
        now = time.monotonic()
        if self.nodes or not self.streams:
            self.ran, self.said = now, False
        if now < self.next_look:
            return
        self.next_look = now + 2.0
        host, _, port = self.head.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            if now - self.answered > (_GONE if refused else _SILENT):
                raise _Refused(
                    f"the head of the Ray cluster, {self.head}, is lost; what was finished is kept, and the same"
                    " command goes on from there"
                ) from None
            return
        self.answered = now
        nodes = self.ray.nodes()
        fit = [node for node in nodes if node["NodeID"] not in self.unfit]
        self.pipe.send(("slots", sum(map(self.wanted.places, fit))))
        if now - self.ran > _WAIT and not self.said:
            self.said = True
            free = self.ray.available_resources()
            wanted = {"CPU": self.wanted.cpus, "GPU": self.wanted.gpus, "GB": self.memory / 1e9}
            has = {**free, "GB": free.get("memory", 0) / 1e9}
            asked = ", ".join(f"{count:.3g} {kind}" for kind, count in wanted.items() if count)
            there = ", ".join(f"{has.get(k, 0):.3g} {k}" for k, count in wanted.items() if count)
            alive = sum(node["Alive"] for node in nodes)
            self.pipe.send(
                (
                    "say",
                    f"waiting for {asked} to be free on one of {alive} machines; all have {there}",
                )
            )


def _last_line(error: Exception) -> str:
    """What an error says in the end."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    name = type(cause).__name__
    return lines[-1] if name in lines[-1] else f"{name}: {lines[-1]}"


def _why(error: Exception) -> str:
    """What became of a task whose process or machine is gone."""
    known = {
        "WorkerCrashedError": "a worker process was killed",
        "OutOfMemoryError": "a worker process was killed, since the machine was out of memory",
        "NodeDiedError": "the machine is lost",
        "ObjectLostError": "the machine is lost",
        "OwnerDiedError": "the machine is lost",
    }
    return known.get(type(error).__name__, f"{type(error).__name__}")
