"""``igr reproduce``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from igr.experiments.cli import console, options
from igr.experiments.cli.console import Column, say
from igr.experiments.cli.jobs import Where, run_jobs
from igr.experiments.cli.options import flag, option
from igr.experiments.files import expanded
from igr.experiments.paper import plan as plans
from igr.experiments.paper import results
from igr.experiments.paper.cells import read_cells, write_tables
from igr.experiments.paper.plan import Entry, Options, by_column, column_label, errata_of
from igr.experiments.paper.specs import CHOICES, COLUMNS, ERRATA, SCALES, TABLES
from igr.experiments.runs.progress import duration
from igr.experiments.runs.sweep import nats

EXAMPLES = (
    "igr reproduce table1 --row igr-i --row gs --dataset mnist",
    "igr reproduce all --scale full --workers 2 --out runs/paper",
)


def reproduce(
    what: Annotated[
        list[str],
        typer.Argument(
            help="table1 ... table5, figure1 ... figure8, released, temperatures, all; several."
        ),
    ],
    scale: Annotated[
        str,
        option(
            "smoke: a minute or two for all; short: half an hour; full: the paper's sizes.", SCALES
        ),
    ] = "short",
    row: Annotated[list[str], option("Only this row, such as igr-i; may be repeated.")] = [],  # noqa: B006
    dataset: Annotated[list[str], option("Only this data set; may be repeated.", COLUMNS)] = [],  # noqa: B006
    temperature: Annotated[
        list[float], option("To choose from, instead of the scale's; a single one is simply used.")
    ] = [],  # noqa: B006
    lr: Annotated[list[float], option("Learning rates, likewise.")] = [],  # noqa: B006
    seeds: Annotated[int | None, option("Runs at the chosen temperature.")] = None,
    epochs: Annotated[int | None, option("Training epochs.")] = None,
    train_images: Annotated[
        int | None, option("The first so many training images; 0: all.")
    ] = None,
    test_images: Annotated[int | None, option("The first so many test images; 0: all.")] = None,
    samples: Annotated[int | None, option("Samples m of the reported bound.")] = None,
    choose: Annotated[
        str | None,
        option(
            "halving (at full scale): compare candidates after a tenth and three tenths of the epochs, and go on"
            " with the better and what is close; all: train all to the end; both: the latter, scored as the"
            " former would.",
            CHOICES,
        ),
    ] = None,
    out_folder: options.Records = Path("igr-reproduce"),
    again: Annotated[
        bool,
        flag(
            "--again",
            "Run anew what is in the folder or comes with the package; stopped, the same command goes on.",
        ),
    ] = False,
    engine: options.Engine = "local",
    ray_address: options.RayAddress = None,
    workers: options.Workers = 0,
    cpus_per_task: options.CPUs = 1.0,
    gpus_per_task: options.GPUs = None,
    device: options.Device = "cpu",
    compiled: options.Compiled = None,
    tensorboard: options.TensorBoard = False,
) -> None:
    start = time.monotonic()
    wishes = Options(
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
    plan = plans.make_plan(what, scale, wishes)
    root = expanded(out_folder)
    read_cells(root)  # records of another version are found now, not after the work
    jobs = plan.jobs()
    if not again and (adopted := results.adopt(jobs, root)):
        console.notes.print(
            f"{len(adopted)} of {len(jobs)} are results that come with igr; --again runs them"
        )
    where = Where(
        engine, ray_address, workers, cpus_per_task, gpus_per_task, device, compiled, tensorboard
    )
    failed = run_jobs(jobs, root, where, results.not_begun(jobs, root) if again else [])
    if not failed:
        results.settle(jobs, root)
    entries = plan.finished(root)
    write_tables(root)
    for table in TABLES.values():
        chosen = [entry for entry in entries if entry.table is table]
        for group in by_column(chosen):
            _print_table(group)
        if chosen:
            _footnotes(chosen)
    _timings(entries)
    pictures = plans.draw_figures(root, plan.figures, plan.scale, entries)
    for name, paths in pictures.items():
        _figure(name, paths, root, plan)
    say(f"Scale {scale}: {SCALES[scale].description}.")
    tables = " (cells.csv and results.csv open in pandas)" if entries else ""
    say(
        f"Records: {root}{tables}; one page of everything: igr report {root};"
        f" {duration(time.monotonic() - start)} in all."
    )
    if failed:
        raise failed


def _print_table(entries: Sequence[Entry]) -> None:
    """Print the entries of one table on one data set, ours beside the paper's."""
    table = entries[0].table
    console.out.print(f"[bold]{table.title}: {column_label(entries)}[/]", soft_wrap=True)
    columns = {
        "label": Column("model", left=True),
        "temperature": Column("t", rank=3),
        "ours": Column(f"ours:\n{table.measure_label}"),
        "released": Column("released\nestimate", rank=4),
        "paper": Column("paper", rank=1),
        "difference": Column("ours -\npaper", rank=2),
    }
    if not table.has_released:
        del columns["released"]
    rows = []
    for entry in entries:
        texts = entry.texts()
        texts["paper"] = texts["paper"] or "row of ours"
        texts["released"] = nats(entry.numbers("released_estimate")[0], missing="")  # no room for ±
        rows.append([texts[name] for name in columns])
    console.out.print(console.table(list(columns.values()), rows))


def _seeds(entries: Sequence[Entry]) -> str:
    counts = sorted({len(entry.record["runs"]) for entry in entries if entry.record})
    return f"{' or '.join(map(str, counts)) or 'no'} seed{'s' * (counts != [1])}"


def _footnotes(entries: Sequence[Entry]) -> None:
    say(
        f"  Nats per image, higher is better; t: temperature; ± standard deviation, {_seeds(entries)}."
    )
    for entry in entries:
        if entry.problem is not None:
            say(f"  {entry.row.label}, {entry.column.label}: not available: {entry.problem}")
    for key in errata_of(entries):
        say(f"  {key}: {ERRATA[key]}")
    made = {
        (e.record["versions"].get("date"), e.record["versions"]["igr"]) for e in entries if e.record
    }
    for date, version in sorted(made, key=str):
        say(f"  Run on {date or 'an unknown day'} with igr {version}.")
    say("")


def _timings(entries: Sequence[Entry]) -> None:
    for timing in plans.timings(entries):
        times = ", ".join(
            f"{entry.row.label} {entry.numbers('seconds_per_epoch')[0]:.3g} s ({timing.ratio(entry):.2f} x GS)"
            for entry in timing.entries
        )
        say(f"Seconds per epoch and run, {timing.table.name}, {timing.column.label}: {times}")


def _figure(name: str, paths: Sequence[Path], root: Path, plan: plans.Plan) -> None:
    files = ", ".join(map(str, paths)) or "nothing to draw: none of its runs is there"
    say(f"{name}: {files}")
    for line in plans.figure_lines(name, root, plan.scale):
        say(f"  {line}")
