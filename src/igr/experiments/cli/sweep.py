"""``igr sweep``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich import box
from rich.table import Table as Grid

from igr.experiments.cli import console
from igr.experiments.cli.console import say
from igr.experiments.cli.jobs import run_jobs
from igr.experiments.cli.options import Compiled, Device, Engine, RayAddress, Workers
from igr.experiments.errors import ConfigError
from igr.experiments.paper.cells import write_tables
from igr.experiments.paper.plan import nats
from igr.experiments.runs.sweep import Result, Sweep, grid, mean_and_spread
from igr.experiments.training.compute import Compute
from igr.experiments.training.config import RunConfig, check_choice


def sweep(
    settings: Annotated[
        list[str],
        typer.Argument(
            help="NAME=VALUE[,VALUE...]: values for any setting of a run, such as family=igr-i,gs"
            " temperature=0.1,0.5 dataset=digits lr=1e-3 epochs=50 seeds=3."
        ),
    ],
    samples: Annotated[int, typer.Option(help="Samples m of the bound.")] = 1000,
    test_images: Annotated[int, typer.Option(help="The first so many test images; 0: all.")] = 0,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder of records; what is in it is not run again.")
    ] = Path("igr-sweep"),
    engine: Engine = "local",
    ray_address: RayAddress = None,
    workers: Workers = 1,
    device: Device = "cpu",
    compiled: Compiled = False,
) -> None:
    """Run every combination of settings, temperatures and seeds side by side, and evaluate all of them."""
    sweeps = grid(_values(settings), samples=samples, test_images=test_images)
    root = out_folder.expanduser()
    run_jobs(sweeps, root, engine, ray_address, workers, Compute(device, compiled))
    write_tables(root)
    console.out.print(_grid_table(sweeps, root))
    say(
        console.out,
        f"All runs: {root / 'results.csv'} (opens in pandas); their folders: {root / 'sweeps'}",
    )


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


def _parse(name: str, text: str, kind: Any) -> Any:
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
    results = [(sweep, result) for sweep in sweeps for result in sweep.results(root)]
    rows = [dataclasses.asdict(result.config) for _, result in results]
    fixed = ("seed", "held_out")
    changing = [
        name for name in rows[0] if name not in fixed and len({row[name] for row in rows}) > 1
    ] or ["family", "temperature"]
    groups: dict[tuple[Any, ...], list[tuple[Sweep, Result]]] = {}
    for (sweep, result), row in zip(results, rows, strict=True):
        groups.setdefault(tuple(row[name] for name in changing), []).append((sweep, result))
    shown = Grid(box=box.SIMPLE_HEAD)
    for name in changing:
        shown.add_column(name.replace("_", " "), justify="right")
    held_out = any(len(sweep.scorings) > 1 for sweep in sweeps)
    titles = ["bound", "released code's\nestimate", "ELBO", *["held-out\nbound"] * held_out]
    for title in (*titles, "seconds\nper epoch"):
        shown.add_column(title, justify="right")
    for key, members in groups.items():
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in key]
        for measure in ("bound", "released_estimate", "elbo"):
            scores = [result.scores[sweep.scorings[0].name][measure] for sweep, result in members]
            cells.append(nats(*mean_and_spread(scores), missing="diverged"))
        if held_out:
            scores = [
                result.scores[sweep.scorings[1].name]["bound"]
                for sweep, result in members
                if len(sweep.scorings) > 1
            ]
            cells.append(nats(*mean_and_spread(scores)))
        seconds, _ = mean_and_spread([result.seconds_per_epoch for _, result in members])
        shown.add_row(*cells, f"{seconds:.3g}")
    return shown
