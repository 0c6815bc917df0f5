"""Engines: what a killed worker process does to the work."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from igr.experiments.errors import UserError
from igr.experiments.runs import driver
from igr.experiments.runs.engines import Processes
from igr.experiments.runs.jobs import Context
from igr.experiments.runs.stopping import StopRequest
from igr.experiments.runs.sweep import Scoring, Sweep
from igr.experiments.training.config import SweepConfig


def sweeps(epochs: int) -> list[Sweep]:
    return [
        Sweep(
            SweepConfig(epochs=epochs, lr=lr, num_variables=4, train_images=200),
            (Scoring(False, 5, 5),),
            f"lr {lr}",
        )
        for lr in (1e-3, 2e-3)
    ]


class Nothing:
    """A task that does nothing."""

    def run(self, given: bytes | None, context: Context) -> None:
        pass


def run_and_kill(jobs: list[Sweep], root: Path, times: int) -> tuple[str, Exception | None]:
    """What is printed and raised where a worker is killed so many times, as soon as it has a run's folder."""
    printed, failed = io.StringIO(), []

    def run() -> None:
        console = Console(file=printed, width=200)
        try:
            driver.run(jobs, root, console, Processes(len(jobs)))
        except UserError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    killed: set[int | None] = set()
    while thread.is_alive() and len(killed) < times:
        at_work = [p for p in multiprocessing.active_children() if p.pid not in killed]
        if at_work and list(root.glob("sweeps/*/runs/*/versions.json")):
            killed.add(at_work[0].pid)
            os.kill(at_work[0].pid or 0, signal.SIGKILL)
        time.sleep(0.05)
    thread.join()
    return printed.getvalue(), failed[0] if failed else None


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signals")
def test_ctrl_c_never_reaches_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """A terminal sends it to every process, those too that have not yet begun to ignore it."""
    engine, ends = Processes(1), []
    engine.start(lambda key, name, *arguments: ends.append(name), StopRequest())
    try:
        pipe = engine._start_worker()
        process = engine.workers[pipe].process
        for _ in range(30):
            os.kill(process.pid or 0, signal.SIGINT)
            time.sleep(0.03)
        engine.submit(0, Nothing(), None)
        while "done" not in ends and process.is_alive():
            engine.poll(0.1)
        os.kill(process.pid or 0, signal.SIGINT)  # nor now
        engine.submit(1, Nothing(), None)
        while ends.count("done") < 2 and process.is_alive():
            engine.poll(0.1)
    finally:
        engine.close()
    assert ends == ["done", "done"]
    assert capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    job = sweeps(epochs=30)[0]
    printed, failed = run_and_kill([job], tmp_path, 1)
    assert failed is None
    assert printed.count("a worker process was killed by signal 9; it goes on from what was") == 1
    assert job.is_done(tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_workers_that_are_killed_again_and_again_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_ATTEMPTS", 1)
    first, second = sweeps(epochs=30)
    _, failed = run_and_kill([first, second], tmp_path, 1)
    assert (
        "its workers kept being lost, the last one because a worker process was killed by signal 9"
        in str(failed)
    )
    assert [first.is_done(tmp_path), second.is_done(tmp_path)].count(True) == 1  # the other one is
