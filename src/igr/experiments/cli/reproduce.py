"""The commands ``igr reproduce``, ``igr sweep`` and ``igr report``."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich import box
from rich.console import Console
from rich.table import Table as Grid

from igr.experiments.errors import ConfigError
from igr.experiments.paper import plan as reproduce
from igr.experiments.paper import report, results
from igr.experiments.paper.plan import Entry, Options, nats
from igr.experiments.paper.specs import ERRATA, SCALES, TABLES
from igr.experiments.runs import engines
from igr.experiments.runs.progress import duration
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.runs.sweep import (
    Result,
    Sweep,
    grid,
    mean_and_spread,
    read_cells,
    write_tables,
)
from igr.experiments.training.compute import Compute
from igr.experiments.training.config import RunConfig, check_choice, check_count

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("reproduce")(reproduce_command)
    app.command("sweep")(sweep_command)
    app.command("report")(report_command)
    app.command("collect")(collect_command)


_out = Console(highlight=False)
_notes = Console(stderr=True, highlight=False)


def _say(text: str) -> None:
    _out.print(text, soft_wrap=True, markup=False)


Engine = Annotated[
    str, typer.Option(help="local: this machine; ray: a Ray cluster (pip install 'igr\\[ray]').")
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of the Ray cluster; without it, one is started here.")
]
Workers = Annotated[
    int, typer.Option(help="Processes side by side, of one thread each; 0: one for each core.")
]
Device = Annotated[str, typer.Option(help="Where torch computes, such as cpu or cuda.")]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile training steps: worth it for long runs.")
]


def _run(
    jobs: Sequence[Any],
    root: Path,
    engine: str,
    ray_address: str | None,
    workers: int,
    compute: Compute,
) -> None:
    from igr.experiments.cli import check_compute, fail

    check_choice("engine", engine, engines.ENGINES)
    check_count("workers", workers, least=0)
    check_compute(compute)
    if not workers:
        workers = min(8, engines.cores()) if compute.device == "cpu" else 1
    try:
        engines.run(
            jobs,
            root,
            _notes,
            engine=engine,
            workers=workers,
            compute=compute,
            ray_address=ray_address,
        )
    except Interrupted:
        fail(
            f"stopped; what was finished is in {root}, and the same command goes on from there", 130
        )


def reproduce_command(
    what: Annotated[
        list[str],
        typer.Argument(help="table1 ... table5, figure1 ... figure8, temperatures, all; several."),
    ],
    scale: Annotated[
        str, typer.Option(help="smoke: seconds; short: half an hour for all; full: as published.")
    ] = "short",
    row: Annotated[list[str], typer.Option(help="Only this row; may be repeated.")] = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(help="Only this data set; may be repeated.")] = [],  # noqa: B006
    temperature: Annotated[
        list[float],
        typer.Option(help="To choose from, instead of the scale's; a single one is simply used."),
    ] = [],  # noqa: B006
    lr: Annotated[list[float], typer.Option(help="Learning rates, likewise.")] = [],  # noqa: B006
    seeds: Annotated[int | None, typer.Option(help="Runs at the chosen temperature.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs.")] = None,
    train_images: Annotated[
        int | None, typer.Option(help="The first so many training images; 0: all.")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(help="The first so many test images; 0: all.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples m of the reported bound.")] = None,
    choose: Annotated[
        str | None,
        typer.Option(
            help="halving (at full scale): compare candidates after a tenth and three tenths of the epochs, and go on"
            " with the better; all: train all to the end; both: the latter, scored as the former would."
        ),
    ] = None,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder of records; what is in it is not run again.")
    ] = Path("igr-reproduce"),
    again: Annotated[
        bool,
        typer.Option("--again", help="Run anew what is in the folder or comes with the package."),
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    workers: Workers = 0,
    device: Device = "cpu",
    compiled: Compiled = False,
) -> None:
    """Run the paper's tables and figures and print ours beside the paper's."""
    start = time.monotonic()
    options = Options(
        rows=tuple(row),
        datasets=tuple(dataset),
        temperatures=tuple(temperature),
        lrs=tuple(lr),
        seeds=seeds,
        epochs=epochs,
        train_images=train_images,
        test_images=test_images,
        samples=samples,
        choose=choose,
    )
    plan = reproduce.make_plan(what, scale, options)
    root = out_folder.expanduser()
    read_cells(root)  # records of another version are found now, not after the work
    if scale == "smoke" and not workers:
        workers = 1  # a process takes longer to start than all of the work
    jobs = plan.jobs()
    if again:
        results.discard(jobs, root)
    elif adopted := results.adopt(jobs, root):
        _notes.print(
            f"{len(adopted)} of {len(jobs)} are results that come with igr; --again runs them"
        )
    _run(jobs, root, engine, ray_address, workers, Compute(device, compiled))
    entries = plan.finished(root)
    write_tables(root)
    for table in TABLES.values():
        chosen = [entry for entry in entries if entry.table is table]
        for column in dict.fromkeys(entry.column.dataset for entry in chosen):
            _print_table([entry for entry in chosen if entry.column.dataset == column])
        if chosen:
            _footnotes(chosen)
    _timings(entries)
    pictures = reproduce.draw_figures(root, plan.figures, plan.scale, entries)
    for name, paths in pictures.items():
        _figure(name, paths, root, plan)
    _say(f"Scale {scale}: {SCALES[scale].description}.")
    _say(
        f"Records: {root} (cells.csv and results.csv open in pandas); one page of everything:"
        f" igr report {root}; {duration(time.monotonic() - start)} in all."
    )


def _print_table(entries: Sequence[Entry]) -> None:
    """Print the entries of one table on one data set, ours beside the paper's."""
    table, column = entries[0].table, entries[0].column
    stand_in = next((e.record["scale"]["stand_in"] for e in entries if e.record), None)
    title = f"{table.title}: {column.label}" + (f" ({stand_in} in its place)" if stand_in else "")
    released = table.has_released
    _out.print(f"[bold]{title}[/]", soft_wrap=True)
    shown = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("model")
    titles = ["t", f"ours:\n{table.measure_label}", *["released\nestimate"] * released]
    for name in (*titles, "paper", "ours -\npaper"):
        shown.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        if entry.problem is not None:
            ours, temperature = "not available", ""
        elif entry.record is None:
            ours, temperature = "not run", ""
        else:
            ours = nats(*entry.ours, missing="diverged")
            temperature = f"{entry.record['chosen']['temperature']:g}"
        cells = [entry.row.label, temperature, ours]
        if released:
            cells.append(nats(entry.numbers("released_estimate")[0], missing=""))
        difference = entry.difference
        cells.append(nats(*entry.paper) if entry.paper else "row of ours")
        cells.append(f"{difference:+.2f}" if math.isfinite(difference) else "")
        shown.add_row(*cells)
    _out.print(shown)


def _seeds(entries: Sequence[Entry]) -> str:
    counts = sorted({len(entry.record["runs"]) for entry in entries if entry.record})
    return f"{' or '.join(map(str, counts)) or 'no'} seed{'s' * (counts != [1])}"


def _footnotes(entries: Sequence[Entry]) -> None:
    _say(
        f"  Nats per image, higher is better; t: temperature; ± standard deviation, {_seeds(entries)}."
    )
    keys = dict.fromkeys(key for entry in entries for key in (*entry.table.errata, *entry.errata))
    for entry in entries:
        if entry.problem is not None:
            _say(f"  {entry.row.label}, {entry.column.label}: not available: {entry.problem}")
    for key in sorted(keys, key=lambda key: int(key[1:])):
        _say(f"  {key}: {ERRATA[key]}")
    made = {
        (e.record["versions"].get("date"), e.record["versions"]["igr"]) for e in entries if e.record
    }
    for date, version in sorted(made, key=str):
        _say(f"  Run on {date or 'an unknown day'} with igr {version}.")
    _say("")


def _timings(entries: Sequence[Entry]) -> None:
    for timing in reproduce.timings(entries):
        times = ", ".join(
            f"{entry.row.label} {entry.numbers('seconds_per_epoch')[0]:.3g} s ({timing.ratio(entry):.2f} x GS)"
            for entry in timing.entries
        )
        _say(f"Seconds per epoch and run, {timing.table.name}, {timing.column.label}: {times}")


def _figure(name: str, paths: Sequence[Path], root: Path, plan: reproduce.Plan) -> None:
    files = ", ".join(map(str, paths)) or "nothing to draw: none of its runs is there"
    _say(f"{name}: {files}")
    for line in reproduce.figure_lines(name, root, plan.scale):
        _say(f"  {line}")


def sweep_command(
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
    _run(sweeps, root, engine, ray_address, workers, Compute(device, compiled))
    write_tables(root)
    _out.print(_grid_table(sweeps, root))
    _say(f"All runs: {root / 'results.csv'} (opens in pandas); their folders: {root / 'sweeps'}")


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


def collect_command(
    folder: Annotated[Path, typer.Argument(help="What `igr reproduce --scale full --out` wrote.")],
    into: Annotated[Path, typer.Option(help="Folder of results, such as results/ in a clone.")],
) -> None:
    """Copy what is small of full-scale records, weights not among it, into a folder of results."""
    root = folder.expanduser()
    reproduce.check_root(root)
    files = results.collect(root, into.expanduser())
    _say(f"{len(files)} files in {into}, and the table of all in {into / 'cells.csv'}")


def report_command(
    folder: Annotated[Path, typer.Argument(help="What `igr reproduce --out` wrote.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The page; by default report.html in the folder.")
    ] = None,
) -> None:
    """Build one self-contained HTML page of all tables and figures there are records of."""
    root = folder.expanduser()
    path = (out_file or root / "report.html").expanduser()
    size = report.write(root, path)
    _say(f"{path} ({size / 1e6:.1f} MB, needs no network)")
