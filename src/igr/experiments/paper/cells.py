"""Cells of tables: what is chosen among candidates, how the chosen runs came out, and their record.

::

    DIR/cells/NAME.json       a finished cell
    DIR/cells/NAME.again      from when it is begun anew by ``--again`` until all of that command is done
    DIR/cells.csv             one row for each cell
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from igr.experiments import data
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.files import inside, remove_temporary, write_csv, write_json
from igr.experiments.paper.specs import Column, Row, Scale, Table
from igr.experiments.runs.jobs import Steps, locked
from igr.experiments.runs.records import FORMAT, SCORES, read_record, versions
from igr.experiments.runs.sweep import Scoring, Sweep, digest, mean_and_spread, run_rows
from igr.experiments.training.config import SweepConfig

Best: TypeAlias = Callable[[Sweep, int], Sequence[float]]

CLOSE = 0.5
"""Nats on held-out images within which a candidate is not yet behind; about what one run differs from another."""


@dataclass(frozen=True)
class Cell:
    """A model on a data set by the protocol: candidates, the choice among them, and seeds trained anew.

    Candidates (temperatures x learning rates) are trained without the held-out images and chosen by the discrete
    model's bound on those: all to the end, or by successive halving (Jamieson and Talwalkar, 2016) at the scale's
    rungs. At each of them every learning rate keeps its share, since a high one is ahead at first, and whatever is
    less than `CLOSE` behind. Runs at the chosen ones are then trained on all training images, and scored on the test
    images, once. With one candidate there is nothing to choose and the first part is left out.
    """

    dataset: str
    settings: Mapping[str, Any]
    scale: Scale
    temperatures: tuple[float, ...]
    lrs: tuple[float, ...]
    curve: bool = False
    label: str = ""

    def identity(self) -> dict[str, Any]:
        """Everything that its numbers depend on, as JSON has it."""
        scale = dataclasses.asdict(self.scale)
        for name in ("description", "figure_steps", "figure_draws"):
            del scale[name]
        if not scale["rungs"]:
            del scale["rungs"]  # as it was before there were any
        return {
            "dataset": self.dataset,
            "settings": dict(self.settings),
            "scale": {**scale, "temperatures": self.temperatures, "lrs": self.lrs},
            "curve": self.curve,
        }

    @property
    def name(self) -> str:
        family = self.settings.get("family", "igr-i")
        architecture = self.settings.get("architecture", "linear")
        return f"{self.scale.name}-{self.dataset}-{architecture}-{family}-{digest(self.identity())}"

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def epochs(self) -> int:
        """Of training."""
        return trained_epochs(self.scale.epochs, self.settings)

    @property
    def datasets(self) -> tuple[str]:
        return (self.scale.stand_in or self.dataset,)

    def _shared(self) -> dict[str, Any]:
        settings = {k: v for k, v in self.settings.items() if k not in ("family", "times_epochs")}
        return {
            **settings,
            "dataset": self.scale.stand_in or self.dataset,
            "families": (self.settings.get("family", "igr-i"),),
            "epochs": self.epochs,
            "train_images": self.scale.train_images,
        }

    @property
    def _held_out(self) -> int:
        if self.scale.held_out is not None:
            return self.scale.held_out
        return data.source_of(self.scale.stand_in or self.dataset).held_out

    def problem(self) -> str | None:
        """Why it cannot be run, if it cannot: one of its settings is unknown."""
        try:
            for sweep in self._planned():
                sweep.config.runs()
        except (ConfigError, TypeError) as error:
            return str(error)
        return None

    def check(self) -> None:
        """Raise ConfigError for what the data set cannot give."""
        for sweep in self._planned():
            sweep.check()

    def rungs(self) -> list[tuple[int, int]]:
        """Epochs that candidates are trained for, and how many temperatures of each learning rate remain at least.

        The last are the whole of the epochs, after which one is chosen. Before, at least three candidates remain.
        """
        rungs: list[tuple[int, int]] = []
        for epochs, share in self.scale.rungs:
            least = math.ceil(3 / len(self.lrs))
            count = max(least, math.ceil(share * len(self.temperatures) - 1e-9))
            rungs.append((round(epochs * self.epochs), count))
        return [*((e, n) for e, n in rungs if 0 < e < self.epochs), (self.epochs, 1)]

    def _rungs_of(self, lr: float, best: Best) -> Iterator[Sweep]:
        """The sweeps of a learning rate, of which each rung is to be done before the next one is asked for."""
        temperatures: Sequence[float] = self.temperatures
        before: Sweep | None = None
        for epochs, count in self.rungs():
            config = SweepConfig(
                **{**self._shared(), "epochs": epochs},
                held_out=self._held_out,
                temperatures=tuple(temperatures),
                seeds=self.scale.choice_seeds,
                lr=lr,
            )
            scoring = Scoring(True, 0, self.scale.choice_samples)
            before = Sweep(config, (scoring,), "", before, epochs < self.epochs)
            yield before
            if before.leaves_states:
                temperatures = best(before, count)

    def candidates(
        self, best: Best = lambda s, count: s.config.temperatures[:count]
    ) -> list[Sweep]:
        """Sweeps to choose from, one for each learning rate and rung; none where there is nothing to choose.

        Args:
            best: is given each sweep and a count, and returns so many of its temperatures or more; by default the
                first.
        """
        if len(self.temperatures) * len(self.lrs) == 1:
            return []
        return [sweep for lr in self.lrs for sweep in self._rungs_of(lr, best)]

    def _planned(self) -> list[Sweep]:
        """What is to be expected: at a rung one temperature more goes on, as a rule, since it is close."""
        candidates = self.candidates(lambda s, count: s.config.temperatures[: count + 1])
        return [*candidates, self.final(self.lrs[0], self.temperatures[0])]

    def final(self, lr: float, temperature: float) -> Sweep:
        """The runs that are reported."""
        config = SweepConfig(
            **self._shared(),
            temperatures=(temperature,),
            seeds=self.scale.seeds,
            lr=lr,
            test_curve=self.curve,
        )
        return Sweep(config, (Scoring(False, self.scale.test_images, self.scale.samples),))

    @property
    def units(self) -> float:
        return sum(sweep.units for sweep in self._planned())

    def path(self, root: Path) -> Path:
        return root / "cells" / f"{self.name}.json"

    def is_done(self, root: Path) -> bool:
        return self.path(root).exists()

    def work(self, root: Path) -> Steps:
        path, best = self.path(root), functools.partial(_best, root)

        def choose(lr: float, root: Path) -> Steps:
            for sweep in self._rungs_of(lr, best):
                yield [sweep.work]

        with locked(root, self.name):
            remove_temporary(path.parent, path.name)
            if path.exists():
                return
            if self.candidates():
                yield [functools.partial(choose, lr) for lr in self.lrs]
            sweeps = self.candidates(best)
            scored = [
                _Scored(sweep.config.lr, temperature, sweep.config.epochs, bound)
                for sweep in sweeps
                for temperature, bound in _held_out_bounds(sweep, root).items()
            ]
            finalists = [each for each in scored if each.epochs == self.epochs]
            chosen = max(
                finalists,
                key=lambda each: each.held_out_bound,
                default=_Scored(self.lrs[0], self.temperatures[0], 0, math.nan),
            )
            final = self.final(chosen.lr, chosen.temperature)
            yield [final.work]
            for sweep in sweeps:
                sweep.folder(root).forget()
            write_json(path, self._record(root, [*sweeps, final], scored, chosen))

    def _record(
        self, root: Path, sweeps: Sequence[Sweep], scored: Sequence[_Scored], chosen: _Scored
    ) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            **self.identity(),
            "candidates": [dataclasses.asdict(each) for each in scored],
            "chosen": {"lr": chosen.lr, "temperature": chosen.temperature},
            "sweeps": [sweep.name for sweep in sweeps],
            "runs": [
                {
                    "seed": result.config.seed,
                    "run": result.run.path.relative_to(root).as_posix(),
                    **result.scores[0],
                    "seconds_per_epoch": result.seconds_per_epoch,
                    "side_by_side": result.side_by_side,
                }
                for result in sweeps[-1].results(root)
            ],
            "versions": versions(),
        }


@dataclass(frozen=True)
class _Scored:
    """A candidate after so many epochs."""

    lr: float
    temperature: float
    epochs: int
    held_out_bound: float


def ahead(bounds: Mapping[float, float], count: int) -> list[float]:
    """The so many temperatures of the highest bounds, and those less than `CLOSE` behind them, in their order."""
    best = sorted(bounds, key=lambda t: -bounds[t])[:count]
    last = bounds[best[-1]]
    return [t for t, bound in bounds.items() if t in best or bound > last - CLOSE]


def _best(root: Path, sweep: Sweep, count: int) -> list[float]:
    """The temperatures of a rung that has been scored which go on."""
    return ahead(_held_out_bounds(sweep, root), count)


def _held_out_bounds(sweep: Sweep, root: Path) -> dict[float, float]:
    """Temperatures of a sweep with their mean bound on held-out images."""
    bounds: dict[float, list[float]] = {}
    for result in sweep.results(root):
        bound = result.scores[0]["bound"]
        bound = bound if math.isfinite(bound) else -math.inf  # what diverged comes last
        bounds.setdefault(result.config.temperature, []).append(bound)
    return {t: statistics.fmean(values) for t, values in bounds.items()}


def trained_epochs(epochs: int, settings: Mapping[str, Any]) -> int:
    """Epochs that a cell of such settings trains at a scale of so many."""
    return epochs * settings.get("times_epochs", 1)


def settings_of(table: Table, row: Row, column: Column) -> dict[str, Any]:
    """What is special about the runs of a row on a data set; the row has the last word."""
    return {**table.settings, **column.settings, **row.settings}


def cell_of(table: Table, row: Row, column: Column, scale: Scale, *, curve: bool = False) -> Cell:
    """The cell of a row on a data set."""
    return Cell(
        dataset=column.dataset,
        settings=settings_of(table, row, column),
        scale=scale,
        temperatures=row.temperatures or scale.temperatures,
        lrs=row.lrs or table.lrs or scale.lrs,
        curve=curve,
        label=f"{table.name} {column.label} {row.label}",
    )


def read_cells(root: Path) -> list[dict[str, Any]]:
    """Every finished cell of a folder.

    Raises:
        RecordError: if one is damaged or was written by another version.
    """
    return [read_cell(path) for path in sorted((root / "cells").glob("*.json"))]


_SHAPE = {
    "name": str,
    "dataset": str,
    "settings": dict,
    "scale": {
        "name": str,
        "temperatures": [float],
        "lrs": [float],
        "epochs": int,
        "train_images": int,
        "test_images": int,
        "samples": int,
        "stand_in": (str, None),
    },
    "curve": bool,
    "candidates": [{"lr": float, "temperature": float, "held_out_bound": float}],
    "chosen": {"lr": float, "temperature": float},
    "sweeps": [inside],
    "runs": [
        {"seed": int, "run": inside, **SCORES, "seconds_per_epoch": float, "side_by_side": int}
    ],
    "versions": {"igr": str, "torch": str},
}


def read_cell(path: Path) -> dict[str, Any]:
    """The record of a finished cell."""
    record = read_record(path, _SHAPE)
    if record["name"] != path.stem or not record["runs"]:
        raise RecordError(f"{path} is damaged: it is that of {record['name']!r:.60}")
    return record


def write_tables(root: Path) -> None:
    """Replace ``results.csv`` and ``cells.csv``, which pandas reads as they are."""
    with locked(root, "tables", timeout=-1):
        tables = {"results.csv": run_rows(root), "cells.csv": [*map(cell_row, read_cells(root))]}
        for name, rows in tables.items():
            remove_temporary(root, name)
            if rows:
                write_csv(root / name, rows)


def cell_row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's row in ``cells.csv``."""
    scale = cell["scale"]
    return {
        "cell": cell["name"],
        "scale": scale["name"],
        "dataset": scale["stand_in"] or cell["dataset"],
        **{k: v for k, v in cell["settings"].items() if k != "times_epochs"},
        **cell["chosen"],
        "epochs": trained_epochs(scale["epochs"], cell["settings"]),
        "seeds": len(cell["runs"]),
        **measured(cell),
    }


def measured(cell: Mapping[str, Any]) -> dict[str, float]:
    """Everything that was measured of a cell, each with its standard deviation over the seeds."""
    numbers: dict[str, float] = {}
    for key in ("bound", "released_estimate", "elbo", "kl", "seconds_per_epoch"):
        mean, spread = mean_and_spread([run.get(key) for run in cell["runs"]])
        numbers |= {key: mean, f"{key}_sd": spread}
    return numbers
