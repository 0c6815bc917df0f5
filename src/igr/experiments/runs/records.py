r"""What a sweep leaves on disk, and how: nothing is ever half-written under its final name.

::

    DIR/.lock                           held while the files below are written
    DIR/config.json                     the sweep's settings
    DIR/results.csv                     one row for each run: settings, bound, time
    DIR/curves.png                      training curves of all runs
    DIR/bounds.png                      their bounds against temperature, where there are several
    DIR/runs/NAME/config.json           the run's settings
                  versions.json         what it ran on
                  metrics.csv           one row for each epoch
                  weights.safetensors   once finished
                  evaluation*.json      once evaluated
                  *.png
    DIR/state/STACK.safetensors         while unfinished: all that training needs to go on, metrics included
    DIR/state/STACK.lock                held by the process that trains the stack

A stack's state is one file, so that all its runs are always at the same epoch; the metrics of the runs are written
from it, and so may lag behind while training goes on.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

import igr
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.files import (
    Busy,
    acquire,
    make_folder,
    read_json,
    reason,
    remove_temporary,
    write_atomically,
    write_csv,
    write_json,
)
from igr.experiments.training.config import RunConfig, SweepConfig

FORMAT = 1
"""Version of the layout above; a reader refuses any other."""

_LOCK = ".lock"


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that a file of records holds.

    Raises:
        RecordError: if it is damaged or was written by another version.
    """
    record = read_json(path)
    if (found := record.get("format")) != FORMAT:
        raise RecordError(
            f"{path}: expected records of format {FORMAT}, found {found}: written by another version of igr"
        )
    return record


def _read_settings(path: Path, kind: type[RunConfig] | type[SweepConfig]) -> Any:
    """The configuration that `path` holds, checked like any other."""
    settings = read_record(path)
    del settings["format"]
    try:
        return kind.from_dict(settings)
    except (ConfigError, TypeError) as error:
        raise RecordError(f"{path}: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {reason(error)}") from error
    except SafetensorError as error:
        raise RecordError(f"{path} is damaged ({error}); delete it to start again") from error


def versions() -> dict[str, Any]:
    """What a run ran on, and when."""
    return {
        "date": datetime.date.today().isoformat(),
        "igr": igr.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


class RunFolder:
    """The records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> RunConfig:
        return _read_settings(self.path / "config.json", RunConfig)

    def create(self, config: RunConfig) -> None:
        """Make the folder and write down what does not change while the run goes on."""
        make_folder(self.path)
        write_json(self.path / "config.json", {"format": FORMAT, **config.to_dict()})
        write_json(self.path / "versions.json", versions())

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        write_csv(self.path / "metrics.csv", rows)

    def metrics(self) -> list[dict[str, float]]:
        try:
            with (self.path / "metrics.csv").open(newline="") as file:
                return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        except OSError as error:
            raise RecordError(
                f"cannot read {self.path / 'metrics.csv'}: {reason(error)}"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return (self.path / "weights.safetensors").exists()

    def write_weights(self, tensors: dict[str, Tensor], config: RunConfig) -> None:
        """Save the trained parameters, which marks the run as finished."""
        metadata = {"format": "pt", "config": json.dumps(config.to_dict())}
        write_atomically(self.path / "weights.safetensors", to_safetensors(tensors, metadata))

    def weights(self) -> dict[str, Tensor]:
        if not self.finished:
            raise RecordError(f"{self.path} is not finished: go on with --resume first")
        return _read_tensors(self.path / "weights.safetensors")

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """The evaluation of that name, if there is one."""
        path = self.path / f"{name}.json"
        return read_json(path) if path.exists() else None


class SweepFolder:
    """The records of a sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, config: SweepConfig, *, resume: bool) -> SweepFolder:
        """A folder for the sweep `config`: a new one, or with `resume` the one that such a sweep was begun in.

        Raises:
            RecordError: if the folder holds anything and `resume` is false, or holds another sweep.
        """
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise RecordError(f"{path} is a file, not a folder")
        make_folder(path)
        with folder.writing():
            settings = path / "config.json"
            occupied = any(p.name != _LOCK for p in path.iterdir())
            if occupied and not resume:
                begun = settings.exists()
                what = "holds a sweep: go on with it by --resume" if begun else "is not empty"
                raise RecordError(f"folder {path} {what}, or choose another --out")
            if occupied and not settings.exists():
                raise RecordError(f"folder {path} holds no sweep to resume; choose another --out")
            if not occupied:
                write_json(settings, {"format": FORMAT, **config.to_dict()})
            elif different := folder.config.differences(config):
                raise RecordError(
                    f"{path} holds a sweep of another configuration: {'; '.join(different)}"
                )
        make_folder(path / "state")
        make_folder(path / "runs")
        return folder

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Take the files that all runs share for this process alone, if need be waiting until they are free."""
        try:
            lock = acquire(self.path / _LOCK, timeout=60)
        except Busy as error:
            raise RecordError(f"another process has held {error} for a minute") from None
        with lock:
            remove_temporary(self.path)
            yield

    @property
    def config(self) -> SweepConfig:
        return _read_settings(self.path / "config.json", SweepConfig)

    def run(self, config: RunConfig) -> RunFolder:
        """Where the records of one run are."""
        return RunFolder(self.path / "runs" / config.name)

    @contextlib.contextmanager
    def claim(self, runs: Sequence[RunConfig]) -> Iterator[Stack]:
        """Take a stack of runs for this process alone.

        Raises:
            RecordError: if another process has it.
        """
        stack = Stack(self, runs)
        try:
            lock = acquire(stack.path.with_suffix(".lock"))
        except Busy:
            raise RecordError(
                f"another process is training {stack.path.stem} in {self.path}"
            ) from None
        with lock:
            stack.tidy()
            yield stack

    def remove(self, *others: str) -> None:
        """Delete the sweep's records and the files named, and nothing else that may lie in the folder."""
        try:
            for part in ("state", "runs"):
                if (self.path / part).exists():
                    shutil.rmtree(self.path / part)
            for name in ("results.csv", "curves.png", "bounds.png", "config.json", *others, _LOCK):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot clear {self.path}: {reason(error)}") from error


class Stack:
    """The records of runs that train side by side; from `SweepFolder.claim`."""

    def __init__(self, folder: SweepFolder, runs: Sequence[RunConfig]) -> None:
        self.runs = list(runs)
        self.folders = [folder.run(run) for run in runs]
        names = " ".join(sorted(run.name for run in runs))
        digest = hashlib.blake2b(names.encode(), digest_size=4).hexdigest()
        self.path = folder.path / "state" / f"{runs[0].family}-{digest}.safetensors"

    def tidy(self) -> None:
        """Remove temporary files that a killed process left."""
        for folder in self.folders:
            remove_temporary(folder.path)
        remove_temporary(self.path.parent, self.path.name)

    @property
    def finished(self) -> bool:
        """Whether every run was trained to its end."""
        return all(folder.finished for folder in self.folders)

    def create(self) -> None:
        for folder, run in zip(self.folders, self.runs, strict=True):
            folder.create(run)

    def load(self) -> dict[str, Tensor] | None:
        """The last saved state, if there is one."""
        if not self.path.exists():
            return None
        state = _read_tensors(self.path)
        if any(".estimator.0." in name for name in state):  # 0.1: an estimator for each run
            raise RecordError(
                f"{self.path}: written by another version of igr; delete it to start again"
            )
        return state

    def save(self, state: dict[str, Tensor]) -> None:
        write_atomically(self.path, to_safetensors(state))

    def write_metrics(self, rows: Sequence[Sequence[dict[str, Any]]]) -> None:
        for folder, each in zip(self.folders, rows, strict=True):
            folder.write_metrics(each)

    def finish(self, weights: Callable[[int], dict[str, Tensor]]) -> None:
        """Save every run's weights, after which the state is needed for training on alone."""
        for r, (folder, run) in enumerate(zip(self.folders, self.runs, strict=True)):
            folder.write_weights(weights(r), run)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def open_runs(path: Path) -> list[RunFolder]:
    """The runs in `path`, a sweep's folder or one run's."""
    if not path.is_dir():
        raise RecordError(f"there is no folder {path}")
    if (path / "runs").is_dir() and (path / "config.json").exists():
        sweep = SweepFolder(path)
        return [sweep.run(run) for run in sweep.config.runs()]
    if (path / "config.json").exists():
        return [RunFolder(path)]
    raise RecordError(f"{path} holds no runs: expected the folder that `igr vae --out` wrote")
