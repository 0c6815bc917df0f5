"""``igr sweep``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.table import Table as Grid

from igr.experiments.cli import console
from igr.experiments.cli.console import Column, say
from igr.experiments.cli.jobs import Where, run_jobs
from igr.experiments.cli.options import (
    Compiled,
    CPUs,
    Device,
    Engine,
    GPUs,
    RayAddress,
    Records,
    TensorBoard,
    Workers,
    option,
)
from igr.experiments.cli.training import check_compiled
from igr.experiments.errors import ConfigError, check_choice
from igr.experiments.files import expanded
from igr.experiments.paper.cells import write_tables
from igr.experiments.runs.sweep import Result, Sweep, grid, mean_and_spread, nats
from igr.experiments.training.config import RunConfig

EXAMPLES = (
    "igr sweep family=igr-i,gs temperature=0.1,0.5 epochs=50 seeds=3",
    "igr sweep lr=1e-3,3e-3 dataset=mnist held_out=10000 --workers 2 --out runs/lr",
)


def sweep(
    settings: Annotated[
        list[str],
        typer.Argument(
            help="NAME=VALUE[,VALUE...]: values for any setting of a run, such as family=igr-i,gs"
            " temperature=0.1,0.5 dataset=digits lr=1e-3 epochs=50 seeds=3."
        ),
    ],
    samples: Annotated[int, option("Samples m of the bound.")] = 1000,
    test_images: Annotated[int, option("The first so many test images; 0: all.")] = 0,
    out_folder: Records = Path("igr-sweep"),
    engine: Engine = "local",
    ray_address: RayAddress = None,
    workers: Workers = 1,
    cpus_per_task: CPUs = 1.0,
    gpus_per_task: GPUs = None,
    device: Device = "cpu",
    compiled: Compiled = None,
    tensorboard: TensorBoard = False,
) -> None:
    sweeps = grid(_values(settings), samples=samples, test_images=test_images)
    check_compiled(compiled, [each.config for each in sweeps])
    root = expanded(out_folder)
    where = Where(
        engine, ray_address, workers, cpus_per_task, gpus_per_task, device, compiled, tensorboard
    )
    failed = run_jobs(sweeps, root, where)
    write_tables(root)
    if done := [sweep for sweep in sweeps if sweep.is_done(root)]:
        console.out.print(_grid_table(done, root))
        say(f"All runs: {root / 'results.csv'} (opens in pandas); their folders: {root / 'sweeps'}")
    if failed:
        raise failed


def _values(settings: Sequence[str]) -> dict[str, list[Any]]:
    """``NAME=VALUE,VALUE`` as values of the types that the settings have."""
    types = {**get_type_hints(RunConfig), "seeds": int}
    values: dict[str, list[Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"expected NAME=VALUE[,VALUE...], got {setting!r}")
        if name in values:
            raise ConfigError(f"{name}: given twice")
        values[name] = [_parse(name, part.strip(), types.get(name)) for part in text.split(",")]
    if len(values.get("seeds", [1])) > 1:
        raise ConfigError("seeds: expected one number of seeds, got several")
    return values


def _parse(name: str, text: str, hint: Any) -> Any:
    kind = next(iter(get_args(hint)), hint)  # of `float | None`, float
    if kind is bool:
        check_choice(name, text, ["true", "false"])
        return text == "true"
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name}: expected {what}, got {text!r}") from None


def _grid_table(sweeps: Sequence[Sweep], root: Path) -> Grid:
    """One row for each combination, the mean over its seeds."""
    results = [result for sweep in sweeps for result in sweep.results(root)]
    settings = [dataclasses.asdict(result.config) for result in results]
    changing = [
        name for name in settings[0] if name != "seed" and len({row[name] for row in settings}) > 1
    ] or ["family", "temperature"]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result, row in zip(results, settings, strict=True):
        groups.setdefault(tuple(row[name] for name in changing), []).append(result)
    held_out = any(len(result.scores) > 1 for result in results)
    columns = [
        *(Column(name.replace("_", " ")) for name in changing),
        Column("bound"),
        Column("released code's\nestimate", rank=4),
        Column("ELBO", rank=2),
        *[Column("held-out\nbound", rank=1)] * held_out,
        Column("seconds\nper epoch", rank=3),
    ]
    rows = []
    for key, members in groups.items():
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in key]
        for measure in ("bound", "released_estimate", "elbo"):
            cells.append(nats(*mean_and_spread([each.scores[0][measure] for each in members])))
        if held_out:
            scores = [each.scores[1]["bound"] for each in members if len(each.scores) > 1]
            cells.append(nats(*mean_and_spread(scores)) if scores else "–")
        seconds, _ = mean_and_spread([each.seconds_per_epoch for each in members])
        rows.append([*cells, f"{seconds:.3g}"])
    return console.table(columns, rows)
