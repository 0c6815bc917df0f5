"""The results that come with this package: records of the paper's tables and figures, run in full, without weights.

They lie in a folder such as ``igr reproduce --out`` writes, and hold of it what is small: each cell's record, the
metrics of the runs that a figure draws, each figure's record, and one table of everything, ``cells.csv``.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from igr.experiments.errors import RecordError
from igr.experiments.files import Busy, write_atomically, write_csv
from igr.experiments.paper.cells import Cell, measured, read_cell, read_cells, trained_epochs
from igr.experiments.paper.figures import FigureJob
from igr.experiments.paper.plan import Entry, best_entries
from igr.experiments.paper.specs import CHOICES, SCALES
from igr.experiments.runs.jobs import Job, locked
from igr.experiments.runs.records import read_bytes

Recorded: TypeAlias = Cell | FigureJob
"""Jobs that leave a record of their own."""


def folder() -> Path:
    """Where the results are: in the installed package, or at the top of a clone."""
    installed = Path(__file__).parent.parent / "results"
    return installed if installed.is_dir() else Path(__file__).parents[4] / "results"


def results(root: Path | None = None) -> Any:
    """The table of results, ours beside the paper's: a `pandas.DataFrame`, or a list of dicts without pandas.

    One row for each row of a table and data set that has been run. Columns ending in ``_sd`` are standard deviations
    over the seeds; all numbers are in nats per image, seconds aside.

    Args:
        root: a folder that ``igr reproduce`` wrote, instead of the results that come with the package.
    """
    rows = [row(entry) for entry in best_entries(root or folder()) if entry.record is not None]
    if importlib.util.find_spec("pandas") is None:
        return rows
    import pandas as pd

    return pd.DataFrame(rows)


def row(entry: Entry) -> dict[str, Any]:
    """One row of ``cells.csv``, from an entry that has a record."""
    record = entry.record
    if record is None:
        raise ValueError("entry: expected one that has been run")
    paper, paper_sd = entry.paper or (None, None)
    scale, versions = record["scale"], record["versions"]
    return {
        "table": entry.table.name,
        "dataset": entry.column.dataset,
        "row": entry.row.name,
        "model": entry.row.label,
        "measure": entry.table.measure,
        **measured(record),
        "paper": paper,
        "paper_sd": paper_sd,
        "seeds": len(record["runs"]),
        "epochs": trained_epochs(scale["epochs"], record["settings"]),
        **record["chosen"],
        "date": versions.get("date", ""),
        "igr": versions["igr"],
        "torch": versions["torch"],
        "cell": record["name"],
        "command": command(entry, record),
    }


def command(entry: Entry, record: Mapping[str, Any]) -> str:
    """What runs a record again: the part of the table, and whatever was wished otherwise than full scale has it."""
    scale, full = record["scale"], SCALES["full"]
    words = [f"igr reproduce {entry.table.name} --scale full --row {entry.row.name}"]
    words.append(f"--dataset {entry.column.dataset}")
    grids = {
        "temperature": (entry.row.temperatures or full.temperatures, scale["temperatures"]),
        "lr": (entry.row.lrs or entry.table.lrs or full.lrs, scale["lrs"]),
    }
    for name, (usual, had) in grids.items():
        if list(usual) != list(had):
            words += [f"--{name} {value:g}" for value in had]
    for name in ("seeds", "epochs", "train_images", "test_images", "samples"):
        if scale[name] != getattr(full, name):
            words.append(f"--{name.replace('_', '-')} {scale[name]}")
    if record["candidates"]:
        rungs = tuple(map(tuple, scale.get("rungs", ())))
        words += [f"--choose {n}" for n, r in CHOICES.items() if r == rungs != full.rungs]
    return " ".join([*words, "--again"])


def _files(root: Path) -> Iterator[Path]:
    """What is kept of a folder of records, relative to it; a cell's record after what it refers to."""
    for record in read_cells(root):
        if record["scale"]["name"] == "full" and not record["scale"]["stand_in"]:
            yield from _files_of(record)
    for path in sorted(root.glob("figures/full/*.json")):
        yield path.relative_to(root)


def _files_of(record: dict[str, Any]) -> Iterator[Path]:
    if record["curve"]:
        yield from (Path(run["run"]) / "metrics.csv" for run in record["runs"])
    yield Path("cells") / f"{record['name']}.json"


def _copy(file: Path, source: Path, target: Path) -> None:
    write_atomically(target / file, read_bytes(source / file))


def collect(root: Path, into: Path) -> list[Path]:
    """Copy what is small of the full-scale records in `root`, and write the table anew; returns what was copied.

    Raises:
        RecordError: if there are none, or it is one folder, whose ``cells.csv`` is another table.
    """
    if into.resolve() == root.resolve():
        raise RecordError(f"--into {into} is the folder of the records itself: expected another")
    files = list(_files(root))
    if not files:
        raise RecordError(f"{root} holds no records of scale full, which alone are collected")
    for file in files:
        _copy(file, root, into)
    if rows := [row(e) for e in best_entries(into) if e.record is not None]:
        write_csv(into / "cells.csv", rows)
    return files


def adopt(jobs: Sequence[Job], root: Path) -> list[str]:
    """Give a folder the results that come with the package for these jobs, where it has none; returns their titles."""
    here, adopted = folder(), []
    for job in jobs:
        if not isinstance(job, Recorded) or job.is_done(root) or not job.is_done(here):
            continue
        file = job.path(here).relative_to(here)
        for each in _files_of(read_cell(here / file)) if isinstance(job, Cell) else [file]:
            _copy(each, here, root)
        adopted.append(job.title)
    return adopted


def not_begun(jobs: Sequence[Job], root: Path) -> list[Recorded]:
    """Those of the jobs that are to be run again and that no unfinished such command has begun."""
    return [job for job in jobs if isinstance(job, Recorded) and not _mark(job, root).exists()]


def discard(jobs: Sequence[Recorded], root: Path) -> list[str]:
    """Remove the records of these jobs, so that they are run again, and mark them as begun.

    Returns:
        The sweeps of theirs that are kept, since records of other cells name them.
    """
    names = {job.name for job in jobs}
    others = [record for record in read_cells(root) if record["name"] not in names]
    needed = {sweep for record in others for sweep in record["sweeps"]}
    kept = []
    try:
        for job in jobs:
            path = job.path(root)
            with locked(root, job.name):
                if path.exists():
                    sweeps = read_cell(path)["sweeps"] if isinstance(job, Cell) else []
                    for sweep in sweeps:
                        if sweep not in needed:
                            _remove_sweep(root, sweep)
                        elif (root / "sweeps" / sweep / "config.json").exists():
                            kept.append(sweep)
                    path.unlink()
                write_atomically(_mark(job, root), "")
    except Busy as error:
        raise RecordError(f"another process is at work, and holds {error}") from None
    return sorted({*kept})


def settle(jobs: Sequence[Job], root: Path) -> None:
    """Forget which of these jobs were run again, now that all are done."""
    for job in jobs:
        if isinstance(job, Recorded):
            _mark(job, root).unlink(missing_ok=True)


def _mark(job: Recorded, root: Path) -> Path:
    """Lies beside a job's record from when it is begun anew until all of that command is done."""
    return job.path(root).with_suffix(".again")


def _remove_sweep(root: Path, name: str) -> None:
    with locked(root, name):
        if (folder := root / "sweeps" / name).exists():
            shutil.rmtree(folder)
