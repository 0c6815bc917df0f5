"""What is going on in a folder of records, as others can see it.

::

    DIR/progress/HOST-PID.json    how far a command is, every few seconds; removed when it is done
    DIR/locks/                    held by whoever is at work
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igr.experiments.errors import UserError
from igr.experiments.files import is_held, make_folder, read_json
from igr.experiments.runs.jobs import locked
from igr.experiments.runs.records import SweepFolder


def _is_held(root: Path, name: str) -> bool:
    return is_held(root / "locks" / f"{name}.lock")


def _remove(root: Path, path: Path) -> None:
    path.unlink(missing_ok=True)
    (root / "locks" / f"{path.stem}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def published(root: Path) -> Iterator[Path]:
    """Where this process may write how far it is; it counts as at work until the end of the block."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    path = root / "progress" / f"{name}.json"
    make_folder(path.parent)
    for other in path.parent.glob("*.json"):
        if not _is_held(root, other.stem):
            _remove(root, other)
    with locked(root, name):
        yield path
    _remove(root, path)


_BOARD = {"fraction": float, "seconds_left": float, "done": int, "jobs": int} | {
    "at_work": [str],
    "nodes": dict,
}


@dataclass(frozen=True)
class Command:
    """A command that is at work, or was stopped or killed.

    Attributes:
        name: host and process.
        running: whether it is.
        told: seconds since it last told anything.
        board: what `igr.experiments.runs.progress.Board` says.
    """

    name: str
    running: bool
    told: float
    board: dict[str, Any]


def commands(root: Path) -> list[Command]:
    """The commands that have told of themselves in this folder; those that are done have left nothing."""
    found = []
    for path in sorted((root / "progress").glob("*.json")):
        with contextlib.suppress(UserError, OSError):  # it may end just now
            told = time.time() - path.stat().st_mtime
            found.append(
                Command(path.stem, _is_held(root, path.stem), told, read_json(path, _BOARD))
            )
    return found


@dataclass(frozen=True)
class Begun:
    """A sweep that is not finished: how many runs are trained, and the last epoch that is saved of others."""

    name: str
    running: bool
    runs: int
    trained: int
    epoch: int
    epochs: int


def sweeps(root: Path) -> tuple[int, list[Begun]]:
    """How many sweeps are trained, and those that are not."""
    trained, begun = 0, []
    for path in sorted((root / "sweeps").glob("*/config.json")):
        folder = SweepFolder(path.parent)
        runs = folder.config.runs()
        finished = sum(folder.run(run).finished for run in runs)
        if finished == len(runs):
            trained += 1
            continue
        name, epoch = path.parent.name, max((epoch for epoch, _, _ in folder.states()), default=0)
        held = _is_held(root, name)
        begun.append(Begun(name, held, len(runs), finished, epoch, folder.config.epochs))
    return trained, begun
