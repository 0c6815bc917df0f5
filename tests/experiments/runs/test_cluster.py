"""The engine on Ray: its records are those of a process alone, whatever is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
from rich.console import Console

from igr.experiments.errors import ConfigError
from igr.experiments.paper.cells import Cell
from igr.experiments.runs import bridge, cluster, driver
from igr.experiments.runs.cluster import Cluster
from igr.experiments.runs.stopping import Interrupted
from left import records
from tiny import TINY

exceptions = pytest.importorskip(
    "ray.exceptions", reason="Ray is not installed: pip install 'igr[ray]'"
)

SCALE = dataclasses.replace(TINY, temperatures=(0.1, 0.5, 1.0), epochs=4, rungs=((0.5, 1 / 2),))
CELL = Cell("mnist", {"family": "igr-i"}, SCALE, SCALE.temperatures, SCALE.lrs)


def done_here(root: Path, job: Any) -> dict[str, object]:
    driver.run([job], root, Console(file=io.StringIO()))
    return records(root)


def test_records_are_those_of_this_process(tmp_path: Path) -> None:
    printed = io.StringIO()
    driver.run([CELL], tmp_path / "ray", Console(file=printed, width=200), Cluster())
    assert records(tmp_path / "ray") == done_here(tmp_path / "here", CELL)


def test_driver_and_bridge_send_at_the_same_time() -> None:
    """States go both ways and are larger than what a pipe holds: neither may wait until the other one reads."""
    state = bytes(4_000_000)
    ours, theirs = multiprocessing.Pipe()
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        ray = MagicMock(exceptions=exceptions)
        ray.get_runtime_context().gcs_address = f"127.0.0.1:{head.getsockname()[1]}"
        ray.remote()().options().remote.side_effect = lambda *_: iter(
            [("file", Path("state"), state), ("done",)]
        )
        ray.wait.side_effect = lambda streams, **_: (streams, [])
        ray.get.side_effect = lambda event: event
        wanted = bridge.Wanted(1, 0, {}, (), "cpu")

        def drive() -> None:
            for key in range(3):
                ours.send(("submit", key, state, 0))

        bridging = bridge._Bridge(theirs, ray, wanted, os.getppid())
        threads = [threading.Thread(target=each, daemon=True) for each in (bridging.run, drive)]
        for thread in threads:
            thread.start()
        threads[1].join(30)
        assert not threads[1].is_alive()
        ended: list[int] = []
        while len(ended) < 3 and ours.poll(10):
            key, *event = ours.recv()
            if event == ["done"]:
                ended.append(key)
        assert ended == [0, 1, 2]
        ours.send(("close",))
        threads[0].join(10)
        assert not threads[0].is_alive()


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"ray-address: nobody answers at {address}"):
        driver.run([CELL], tmp_path, Console(file=io.StringIO()), Cluster(address))
    assert time.monotonic() - start < 20


def test_an_address_that_is_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_ANSWERING", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match="does not answer as a Ray cluster does"):
            driver.run([CELL], tmp_path, Console(file=io.StringIO()), Cluster(address))


def test_ctrl_c_ends_the_waiting_for_an_answer(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        engine = Cluster(f"127.0.0.1:{silent.getsockname()[1]}")
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(Interrupted):
            driver.run([CELL], tmp_path, Console(file=io.StringIO()), engine)
        timer.join()
    assert time.monotonic() - start < 10
    assert not engine.process.is_alive()


@pytest.mark.parametrize("address", ["ray://here:10001", "nonsense:port"])
def test_other_addresses_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ray-address"):
        driver.run([CELL], tmp_path, Console(file=io.StringIO()), Cluster(address))


def test_a_machine_that_does_not_fit_says_why() -> None:
    here = bridge._versions()
    assert {"Python", "torch", "igr"} <= here.keys()

    def misfits(found: dict[str, str], *datasets: str, device: str = "cpu") -> list[str]:
        return bridge._misfits(bridge.Wanted(1, 0, here, datasets, device), lambda: found)

    assert misfits(here, "digits") == []
    assert misfits({**here, "Python": "2.7"}) == [
        f"Python is 2.7, {here['Python']} is wanted as here"
    ]
    without = {k: v for k, v in here.items() if k != "igr"}
    assert misfits(without) == [f"igr is not installed, {here['igr']} is wanted"]
    assert re.match("dataset: expected", *misfits(here, "no-such-data"))
    assert re.match("device: expected", *misfits(here, device="quantum"))


def test_places_are_those_where_all_that_a_task_takes_is_there() -> None:
    def places(cpus: float, gpus: float, alive: bool = True, **has: float) -> int:
        node = {"Alive": alive, "Resources": has}
        return bridge.Wanted(cpus, gpus, {}, (), "cpu").places(node)

    assert places(1, 0, CPU=4) == 4
    assert places(2, 0, CPU=5) == 2
    assert places(1, 0.25, CPU=16, GPU=2) == 8
    assert places(1, 1, CPU=16) == 0
    assert places(1, 0, alive=False, CPU=4) == 0


# What follows has a cluster of two machines, each of them a raylet here.


def slow(test: Any) -> Any:
    """Takes minutes; Ray's own help for tests leaves files open."""
    return pytest.mark.slow(
        pytest.mark.filterwarnings("ignore::ResourceWarning")(
            pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)
        )
    )


LONG = ["sweep", "family=igr-i,gs", "temperature=0.1,0.5", "lr=1e-3,3e-3", "seeds=2", "epochs=60"]
SCORED = ["held_out=300", "--samples", "50"]


def command(root: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "igr", *LONG, *SCORED, "--out", str(root), *more],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("undisturbed")
    code, _ = ended(command(root))
    assert code == 0
    return records(root)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without places for tasks, and two machines of one core."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster as Machines

    made = Machines(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    with contextlib.suppress(Exception):
        made.shutdown()


def saved(root: Path) -> int:
    """How many states and weights there are."""
    return len(list(root.rglob("*.safetensors")))


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ray::_stream" in " ".join(process.cmdline()[:1]):
                found.append(process)
    return found


def wait_until(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.1)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = process.communicate(timeout=900)
    assert "Traceback" not in errors
    assert process.stderr is not None
    process.stderr.close()
    return process.returncode, [line for line in errors.splitlines() if line.startswith("igr: ")]


@slow
def test_workers_are_killed_five_times(tmp_path: Path, nodes: Any, undisturbed: Any) -> None:
    moments = random.Random(0)
    process = command(tmp_path, "--engine", "ray", "--ray-address", nodes.address)
    for _ in range(5):
        wait_until(workers, process)
        time.sleep(moments.uniform(0.5, 5))
        with contextlib.suppress(psutil.Error, IndexError):
            moments.choice(workers()).kill()
    code, said = ended(process)
    assert code == 0
    assert (
        sum("a worker process was killed; it goes on from what was saved" in s for s in said) >= 3
    )
    assert records(tmp_path) == undisturbed


@slow
def test_machines_are_lost_twice(tmp_path: Path, nodes: Any, undisturbed: Any) -> None:
    process = command(tmp_path, "--engine", "ray", "--ray-address", nodes.address)
    for _ in range(2):
        before = saved(tmp_path)
        wait_until(lambda before=before: saved(tmp_path) > before, process)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        nodes.add_node(num_cpus=1)
    code, said = ended(process)
    assert code == 0
    assert any("goes on from what was saved" in line for line in said)
    assert records(tmp_path) == undisturbed


def frozen(node: Any) -> list[psutil.Process]:
    """All that runs on a machine."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


@slow
@pytest.mark.parametrize("patience", [10, 60])  # times 3 s: 10 is less than a minute, 60 is more
def test_a_machine_does_not_answer_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any, undisturbed: Any, patience: int
) -> None:
    monkeypatch.setenv("RAY_health_check_failure_threshold", str(patience))
    nodes = request.getfixturevalue("nodes")
    process = command(tmp_path, "--engine", "ray", "--ray-address", nodes.address)
    wait_until(lambda: saved(tmp_path), process)
    node = next(iter(nodes.worker_nodes))
    stopped = frozen(node)
    for each in stopped:
        each.suspend()
    time.sleep(60)
    for each in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.resume()
    code, _ = ended(process)
    assert code == 0
    assert records(tmp_path) == undisturbed


@slow
def test_the_command_is_killed(tmp_path: Path, nodes: Any, undisturbed: Any) -> None:
    for _ in range(2):
        process = command(tmp_path, "--engine", "ray", "--ray-address", nodes.address)
        before = saved(tmp_path)
        wait_until(lambda before=before: saved(tmp_path) > before, process)
        process.kill()
        process.communicate()
    code, _ = ended(command(tmp_path, "--engine", "ray", "--ray-address", nodes.address))
    assert code == 0
    assert records(tmp_path) == undisturbed


@slow
def test_ctrl_c_is_one_line(tmp_path: Path, nodes: Any) -> None:
    process = command(tmp_path, "--engine", "ray", "--ray-address", nodes.address)
    wait_until(lambda: saved(tmp_path), process)
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130
    assert said[-1].startswith("igr: stopped; what was finished is in")


@slow
def test_the_head_is_lost(tmp_path: Path, nodes: Any, undisturbed: Any) -> None:
    process = command(tmp_path, "--engine", "ray", "--ray-address", nodes.address)
    wait_until(lambda: saved(tmp_path), process)
    nodes.head_node.kill_gcs_server()
    code, said = ended(process)
    assert code == 2
    assert re.search("the Ray cluster.* lost.*the same command goes on from there", said[-1])
    code, said = ended(command(tmp_path, "--engine", "ray"))
    assert (code, said) == (0, [])
    assert records(tmp_path) == undisturbed


@slow
def test_no_free_place_is_said(tmp_path: Path, nodes: Any) -> None:
    process = command(
        tmp_path, "--engine", "ray", "--ray-address", nodes.address, "--cpus-per-task", "2"
    )
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(r"waiting for 2 CPU, .* free on one of 3 machines; all have 2 CPU", line):
            break
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


@slow
def test_a_machine_that_does_not_fit_is_named_before_anything_is_trained(
    tmp_path: Path, nodes: Any
) -> None:
    (tmp_path / "igr").mkdir()
    (tmp_path / "igr" / "__init__.py").write_text("__version__ = '0.0'")
    nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    process = command(tmp_path / "out", "--engine", "ray", "--ray-address", nodes.address)
    code, said = ended(process)
    assert code == 2
    assert re.match(rf"igr: {re.escape(os.uname().nodename)}-\w+: igr is 0\.0 \(\w+\), ", said[0])
    assert not (tmp_path / "out" / "sweeps").exists()


@slow
def test_a_machine_that_joins_later_and_does_not_fit_is_avoided(
    tmp_path: Path, nodes: Any, undisturbed: Any
) -> None:
    (tmp_path / "igr").mkdir()
    (tmp_path / "igr" / "__init__.py").write_text("__version__ = '0.0'")
    process = command(tmp_path / "out", "--engine", "ray", "--ray-address", nodes.address)
    wait_until(lambda: saved(tmp_path / "out"), process)
    nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    code, said = ended(process)
    assert code == 0
    assert any(re.search(r": igr is 0\.0 .*; nothing is done there", line) for line in said), said
    assert records(tmp_path / "out") == undisturbed
