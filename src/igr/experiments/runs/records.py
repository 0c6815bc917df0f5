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
                  test*.json            once scored on test images, on so many and with so many samples as its name says
                  held-out*.json        likewise, on those that training has held out
                  *.png
    DIR/state/STACK.safetensors         while unfinished: all that training needs to go on, metrics included
    DIR/locks/                          held by the process that trains it (`igr vae`)

A stack's state is one file, so that all its runs are always at the same epoch; the metrics of the runs are written
from it, and so may lag behind while training goes on. It says which runs it is of: another stack that holds some of
these goes on from it too.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

import igr
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.files import (
    Busy,
    Write,
    acquire,
    check_name,
    is_held,
    make_folder,
    read_json,
    reason,
    remove_temporary,
    write_atomically,
    write_csv,
    write_json,
)
from igr.experiments.training.config import RunConfig, SweepConfig, stacks

FORMAT = 1
"""Version of the layout above; a reader refuses any other."""

_LOCK = ".lock"


SCORES = dict.fromkeys(("bound", "released_estimate", "elbo", "kl"), float) | {
    "samples": int,
    "images": int,
}
"""What every evaluation has, as `igr.experiments.files.misfit` takes it."""


def read_record(path: Path, shape: Any = {}) -> dict[str, Any]:  # noqa: B006
    """The JSON object that a file of records holds.

    Raises:
        RecordError: if it is damaged, was written by another version, or has not the form of `shape`.
    """
    record = read_json(path)
    if (found := record.get("format")) != FORMAT:
        raise RecordError(
            f"{path}: expected records of format {FORMAT}, found {found!r:.60}: written by another version of igr"
        )
    return read_json(path, shape)


def _read_settings(path: Path, kind: type[RunConfig] | type[SweepConfig]) -> Any:
    """The configuration that `path` holds, checked like any other."""
    settings = read_record(path)
    del settings["format"]
    try:
        return kind.from_dict(settings)
    except ConfigError as error:
        raise RecordError(f"{path}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """What a file of records holds."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {reason(error)}") from error


def read_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors that the content of the file `path` stands for."""
    try:
        return from_safetensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
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
    """The records of one run; `write` has its files written."""

    def __init__(self, path: Path, write: Write = write_atomically) -> None:
        self.path, self.write = path, write

    @property
    def config(self) -> RunConfig:
        return _read_settings(self.path / "config.json", RunConfig)

    def create(self, config: RunConfig, side_by_side: int) -> None:
        """Write down what does not change while the run goes on, in a stack of so many."""
        settings = {"format": FORMAT, **config.to_dict()}
        write_json(self.path / "config.json", settings, self.write)
        made = {**versions(), "side_by_side": side_by_side}
        write_json(self.path / "versions.json", made, self.write)

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        write_csv(self.path / "metrics.csv", rows, self.write)

    def metrics(self) -> list[dict[str, float]]:
        """A row for each epoch, at least one.

        Raises:
            RecordError: if the file is damaged.
        """
        path = self.path / "metrics.csv"
        content = read_bytes(path)
        try:
            rows = list(csv.DictReader(content.decode().splitlines(), strict=True))
            found = [{name: float(value) for name, value in row.items()} for row in rows]
            if not found or not {"epoch", "elbo", "seconds"} <= found[0].keys():
                raise ValueError("no row of metrics")
        except (ValueError, TypeError, csv.Error) as error:
            raise RecordError(
                f"{path} is damaged ({error}); delete {self.path}, and the run is trained again"
            ) from error
        return found

    @property
    def has_metrics(self) -> bool:
        return (self.path / "metrics.csv").exists()

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return (self.path / "weights.safetensors").exists()

    def write_weights(self, tensors: dict[str, Tensor], config: RunConfig) -> None:
        """Save the trained parameters, which marks the run as finished."""
        metadata = {"format": "pt", "config": json.dumps(config.to_dict())}
        self.write(self.path / "weights.safetensors", to_safetensors(tensors, metadata))

    def weights(self) -> dict[str, Tensor]:
        return read_tensors(self.weights_file(), self.path / "weights.safetensors")

    def weights_file(self) -> bytes:
        """The content of the file of weights."""
        if not self.finished:
            raise RecordError(f"{self.path} is not finished: go on with --resume first")
        return read_bytes(self.path / "weights.safetensors")

    def write_evaluation(self, name: str, found: dict[str, Any]) -> None:
        write_json(self.path / f"{name}.json", found, self.write)

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """The evaluation of that name, if there is one."""
        path = self.path / f"{name}.json"
        return read_json(path, SCORES) if path.exists() else None


class SweepFolder:
    """The records of a sweep; `write` has its runs' files written."""

    def __init__(self, path: Path, write: Write = write_atomically) -> None:
        self.path, self.write = path, write

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
                what = (
                    "holds a sweep: `igr vae --resume` goes on with it" if begun else "is not empty"
                )
                raise RecordError(f"folder {path} {what}; or choose another --out")
            if occupied and not settings.exists():
                raise RecordError(f"folder {path} holds no sweep to resume; choose another --out")
            if not occupied:
                folder.write_config(config)
            else:
                folder.check(config)
        make_folder(path / "state")
        make_folder(path / "runs")
        return folder

    def write_config(self, config: SweepConfig) -> None:
        """Begin the sweep."""
        write_json(self.path / "config.json", {"format": FORMAT, **config.to_dict()}, self.write)

    def check(self, config: SweepConfig) -> None:
        """Raise RecordError if it is a sweep of another configuration."""
        if different := self.config.differences(config):
            raise RecordError(
                f"{self.path} holds a sweep of another configuration: {'; '.join(different)}"
            )

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
        return RunFolder(self.path / "runs" / config.name, self.write)

    def side_by_side(self, config: RunConfig) -> int:
        """How many runs that one trained with."""
        path = self.run(config).path / "versions.json"
        record = read_json(path) if path.exists() else {}
        if "side_by_side" not in record:  # as it was when no stack was ever divided
            whole = next((r for r in stacks(self.config.runs()) if config in r), [config])
            record["side_by_side"] = len(whole)
        if (count := record["side_by_side"]) not in range(1, 10**6):
            raise RecordError(
                f"{path} is damaged: side_by_side: {count!r:.60} is no number of runs"
            )
        return int(count)

    def states(self) -> list[tuple[int, Path, list[str]]]:
        """The saved states, those of most epochs first: epoch, file, names of the runs."""
        found = []
        for path in (self.path / "state").glob("*.safetensors"):
            check_name(path)
            try:
                with safe_open(path, "pt") as file:
                    epoch, metadata = int(file.get_tensor("epoch")), file.metadata() or {}
            except (OSError, SafetensorError, ValueError) as error:
                raise RecordError(
                    f"{path} is damaged ({error}); delete it to start again"
                ) from error
            if "runs" in metadata:
                names = json.loads(metadata["runs"])
            else:  # as states were when no stack was ever divided
                whole = stacks(self.config.runs())
                names = [r.name for runs in whole if Stack(self, runs).path == path for r in runs]
            found.append((epoch, path, names))
        return sorted(found, key=lambda each: -each[0])

    def groups(self, runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
        """The runs of a stack in groups that can go on together: at the same epoch, or finished."""
        states = self.states()
        groups: dict[tuple[bool, int], list[RunConfig]] = {}
        for run in runs:
            epoch = next((epoch for epoch, _, names in states if run.name in names), 0)
            groups.setdefault((self.run(run).finished, epoch), []).append(run)
        return list(groups.values())

    def forget(self) -> None:
        """Remove the states that no run needs any more."""
        unfinished = {run.name for run in self.config.runs() if not self.run(run).finished}
        for _, path, names in self.states():
            if unfinished.isdisjoint(names):
                path.unlink(missing_ok=True)

    def remove(self, *others: str) -> None:
        """Delete the sweep's records and the files named, and nothing else that may lie in the folder.

        Raises:
            RecordError: if a process is at work on it.
        """
        if any(map(is_held, (self.path / "locks").glob("*.lock"))):
            raise RecordError(
                f"another process is at work in {self.path}: wait for it, or choose another --out"
            )
        try:
            for part in ("state", "runs", "locks"):
                if (self.path / part).exists():
                    shutil.rmtree(self.path / part)
            for name in ("results.csv", "curves.png", "bounds.png", "config.json", *others, _LOCK):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot clear {self.path}: {reason(error)}") from error


class Stack:
    """The records of runs that train side by side.

    Args:
        folder: of their sweep.
        runs: of the stack.
        sent: the last saved state, where the folder is elsewhere.
    """

    def __init__(
        self, folder: SweepFolder, runs: Sequence[RunConfig], sent: bytes | None = None
    ) -> None:
        self.folder, self.runs, self.sent = folder, list(runs), sent
        self.folders = [folder.run(run) for run in runs]
        names = " ".join(sorted(run.name for run in runs))
        digest = hashlib.blake2b(names.encode(), digest_size=4).hexdigest()
        self.path = folder.path / "state" / f"{runs[0].family}-{digest}.safetensors"

    def tidy(self) -> None:
        """Remove temporary files that a killed process left."""
        for folder in self.folders:
            remove_temporary(folder.path)
        remove_temporary(self.path.parent, self.path.name)
        remove_temporary(self.folder.path, "config.json")

    @property
    def finished(self) -> bool:
        """Whether every run was trained to its end."""
        return all(folder.finished for folder in self.folders)

    def create(self) -> None:
        for folder, run in zip(self.folders, self.runs, strict=True):
            folder.create(run, len(self.runs))

    def load(self) -> dict[str, Tensor] | None:
        """The last saved state, if there is one, whether it is of these runs alone or of others besides."""
        content, path = self.saved()
        if content is None:
            return None
        state = read_tensors(content, path)
        if any(".estimator.0." in name for name in state):  # 0.1: an estimator for each run
            raise RecordError(
                f"{path}: written by another version of igr; delete it to start again"
            )
        return state

    def saved(self) -> tuple[bytes | None, Path]:
        """The same as a file's content, and where it is from."""
        if self.sent is not None:
            return self.sent, self.path
        wanted = [run.name for run in self.runs]
        states = self.folder.states()
        for epoch in dict.fromkeys(epoch for epoch, _, _ in states):
            holders = {name: (p, names) for e, p, names in states if e == epoch for name in names}
            if not set(wanted) <= holders.keys():
                continue
            path, names = holders[wanted[0]]
            if names == wanted:
                return read_bytes(path), path
            return _to_bytes(_gather(wanted, holders), wanted), path
        return None, self.path

    def save(self, state: dict[str, Tensor]) -> None:
        self.folder.write(self.path, _to_bytes(state, [run.name for run in self.runs]))

    def write_metrics(self, rows: Sequence[Sequence[dict[str, Any]]]) -> None:
        for folder, each in zip(self.folders, rows, strict=True):
            folder.write_metrics(each)

    def finish(self, weights: Callable[[int], dict[str, Tensor]]) -> None:
        """Save every run's weights, after which the state is needed for training on alone."""
        for r, (folder, run) in enumerate(zip(self.folders, self.runs, strict=True)):
            folder.write_weights(weights(r), run)


def _to_bytes(state: dict[str, Tensor], names: Sequence[str]) -> bytes:
    return to_safetensors(state, {"runs": json.dumps(names)})


def _gather(wanted: list[str], holders: dict[str, tuple[Path, list[str]]]) -> dict[str, Tensor]:
    """The state of these runs from the files that hold it, of one epoch, with the names of all runs in each."""
    parts, order = [], []
    for path, names in {holders[name][0]: holders[name][1] for name in wanted}.items():
        here = [name for name in wanted if holders[name][0] == path]
        try:
            state = read_tensors(read_bytes(path), path)
            part = select_runs(state, [names.index(name) for name in here])
            part["metrics"][..., -1] *= len(wanted) / len(
                names
            )  # seconds of all that train at once
        except (IndexError, KeyError) as error:
            raise RecordError(f"{path} is damaged ({error}); delete it to start again") from error
        parts.append(part)
        order += here
    together = {
        name: torch.cat([part[name] for part in parts], dim=int(name == "metrics"))
        if value.dim()
        else value
        for name, value in parts[0].items()
    }
    return select_runs(together, [order.index(name) for name in wanted])


def select_runs(state: dict[str, Tensor], runs: Sequence[int]) -> dict[str, Tensor]:
    """The state of some of a stack's runs, as the state of a stack of these alone."""
    selected = {}
    for name, value in state.items():
        if value.dim() == 0:  # of all of them: numbers of epochs and steps
            selected[name] = value
        else:
            selected[name] = value[:, runs] if name == "metrics" else value[runs]
    return selected


def open_runs(path: Path) -> list[RunFolder]:
    """The runs in `path`, a sweep's folder or one run's."""
    if not path.is_dir():
        raise RecordError(f"there is no folder {path}")
    if (path / "runs").is_dir() and (path / "config.json").exists():
        sweep = SweepFolder(path)
        runs = {run: sweep.run(run) for run in sweep.config.runs()}
        for config, run in runs.items():
            if run.finished and run.config != config:
                raise RecordError(f"{run.path / 'config.json'} is that of another run")
        return list(runs.values())
    if (path / "config.json").exists():
        return [RunFolder(path)]
    raise RecordError(f"{path} holds no runs: expected the folder that `igr vae --out` wrote")
