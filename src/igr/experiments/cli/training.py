"""What ``igr demo``, ``igr vae`` and ``igr evaluate`` share: a sweep in a folder of its own, and its table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from igr.experiments import data
from igr.experiments.cli import console
from igr.experiments.cli.console import Column, say
from igr.experiments.errors import ConfigError
from igr.experiments.files import write_atomically, write_csv
from igr.experiments.runs import driver, plots
from igr.experiments.runs.engines import Here
from igr.experiments.runs.records import SweepFolder
from igr.experiments.runs.sweep import Result, Sweep, mean_and_spread, nats, usual_scorings
from igr.experiments.runs.train import load_model
from igr.experiments.training.compute import CPU, Compute
from igr.experiments.training.config import SweepConfig, check_count
from igr.experiments.training.objectives import RELAXED


@dataclass(frozen=True)
class Group:
    """The seeds of one family and temperature."""

    results: list[Result]

    @property
    def family(self) -> str:
        return self.results[0].config.family

    @property
    def temperature(self) -> float:
        return self.results[0].config.temperature

    def mean(self, name: str) -> float:
        return self._numbers(name)[0]

    def spread(self, name: str) -> float:
        """Standard deviation over the seeds; NaN for a single one."""
        return self._numbers(name)[1]

    def _numbers(self, name: str) -> tuple[float, float]:
        return mean_and_spread([result.scores[0][name] for result in self.results])

    @property
    def held_out(self) -> float:
        """Mean bound on the images that training has held out; what diverged comes last."""
        mean, _ = mean_and_spread([result.scores[1]["bound"] for result in self.results])
        return mean if math.isfinite(mean) else -math.inf


def grouped(results: Sequence[Result]) -> list[Group]:
    """Runs by family and temperature, in their order."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.config.family, result.config.temperature), []).append(result)
    return [Group(members) for members in groups.values()]


def results_table(groups: Sequence[Group], title: str, chosen: Sequence[Group] = ()) -> Table:
    """What came out, a row for each family and temperature."""
    samples, images = (groups[0].results[0].scores[0][name] for name in ("samples", "images"))
    seeds = len(groups[0].results)
    spread = f", ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    columns = [
        Column("family", left=True),
        Column("temperature"),
        Column(f"bound\n(m = {samples})"),
        Column("released code's\nestimate", rank=3),
        Column("ELBO", rank=1),
        Column("training time\nper run", rank=2),
    ]
    rows = [
        (
            group.family,
            f"{group.temperature:g}{' *' if group in chosen else ''}",
            nats(group.mean("bound"), group.spread("bound")),
            nats(group.mean("released_estimate")),
            nats(group.mean("elbo")),
            f"{group.results[0].seconds:.1f} s",
        )
        for group in groups
    ]
    caption = f"nats per image, {images} test images; higher is better{spread}"
    return console.table(
        columns,
        rows,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
    )


def set_threads(threads: int) -> None:
    """Use that many threads; 0 leaves torch's choice."""
    check_count("threads", threads, least=0)
    if threads:
        torch.set_num_threads(threads)


def check_compiled(compiled: bool | None, configs: Sequence[SweepConfig]) -> None:
    """Refuse to compile where nothing would be."""
    if compiled and not any(config.estimator in RELAXED for config in configs):
        raise ConfigError(
            f"compile: steps by {configs[0].estimator} are not compiled, those by {' and '.join(RELAXED)} are"
        )


def run_sweep(
    config: SweepConfig,
    path: Path,
    *,
    resume: bool = False,
    samples: int = 1000,
    compute: Compute = CPU,
    mark: str | None = None,
) -> list[Result]:
    """Train a sweep in a folder of its own, score it, draw its pictures and write its results."""
    sweep = Sweep(config, usual_scorings(config.held_out, samples), alone=True)
    sweep.check()
    dataset = load_data(config.dataset)
    folder = SweepFolder.open(path, config, resume=resume)
    if mark:
        write_atomically(path / mark, "written by `igr demo`, which may replace this folder\n")
    driver.run([sweep], path, console.notes, Here(compute))
    return finish_sweep(sweep, folder, dataset)


def finish_sweep(sweep: Sweep, folder: SweepFolder, dataset: data.Dataset) -> list[Result]:
    """Draw the pictures of what was trained and scored, and write its results."""
    results = sweep.results(folder.path)
    for result in results:
        model = load_model(result.run, dataset.test.shape[-1])
        plots.draw_run(result.run, model, dataset.test, dataset.shape)
    plots.draw_sweep(folder, [(result.run, result.scores[0]["bound"]) for result in results])
    with folder.writing():
        write_csv(folder.path / "results.csv", [_record(result) for result in results])
    return results


def _record(result: Result) -> dict[str, Any]:
    """A run's row in ``results.csv``."""
    row = {"run": result.config.name, **result.config.to_dict(), **result.scores[0]}
    if len(result.scores) > 1:
        row["held_out_bound"] = result.scores[1]["bound"]
    return {**row, "train_seconds": result.seconds}


def load_data(name: str) -> data.Dataset:
    """A data set, read whole; says so where that takes long."""
    dataset = data.load(name, notify=lambda text: say(text, console.notes))
    _ = dataset.test  # so that a damaged file is found now, not after the work
    return dataset
