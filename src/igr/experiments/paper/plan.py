"""The paper's tables and figures: what to run for them, and what came out beside the paper's numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from igr.experiments.errors import ConfigError, RecordError, check_choice
from igr.experiments.paper import figures
from igr.experiments.paper.cells import Cell, cell_of, read_cells, settings_of
from igr.experiments.paper.figures import FigureJob
from igr.experiments.paper.specs import (
    CHOICES,
    COLUMNS,
    FIGURES,
    SCALES,
    TABLES,
    ApproximationFigure,
    Column,
    CurveFigure,
    Row,
    Scale,
    Table,
    TableFigure,
)
from igr.experiments.runs.jobs import Job
from igr.experiments.runs.sweep import mean_and_spread, nats
from igr.experiments.training.config import (
    check_count,
    check_distinct,
    check_positive,
    check_temperature,
)


def names() -> list[str]:
    """What ``igr reproduce`` can be asked for."""
    return [*TABLES, *FIGURES, "all"]


@dataclass(frozen=True)
class Options:
    """What the user wants otherwise than the scale has it; None or empty leaves that."""

    rows: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    seeds: int | None = None
    epochs: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    samples: int | None = None
    choose: str | None = None

    def check(self) -> None:
        """Raise ConfigError for what makes no sense, before anything runs."""
        for temperature in self.temperatures:
            check_temperature("temperature", temperature)
        for lr in self.lrs:
            check_positive("lr", lr)
        check_distinct("temperature", self.temperatures)
        check_distinct("lr", self.lrs)
        least = {"seeds": 1, "epochs": 1, "samples": 1, "train_images": 0, "test_images": 0}
        for name, count in least.items():
            if (value := getattr(self, name)) is not None:
                check_count(name.replace("_", "-"), value, count)
        for dataset in self.datasets:
            check_choice("dataset", dataset, COLUMNS)
        if self.choose is not None:
            check_choice("choose", self.choose, CHOICES)

    def scale(self, name: str) -> Scale:
        """The scale of that name with these wishes."""
        check_choice("scale", name, SCALES)
        wishes = {f.name: getattr(self, f.name, None) for f in dataclasses.fields(Scale)}
        given = {name: wish for name, wish in wishes.items() if wish not in (None, ())}
        if self.choose is not None:
            given["rungs"] = CHOICES[self.choose]
        return dataclasses.replace(SCALES[name], **given)


@dataclass(frozen=True)
class Entry:
    """A row of a table on one data set, with what came out.

    Attributes:
        record: of the finished cell; None while there is none.
        problem: why it cannot be run, if it cannot.
    """

    table: Table
    row: Row
    column: Column
    record: Mapping[str, Any] | None = None
    problem: str | None = None

    @property
    def paper(self) -> tuple[float, float] | None:
        """The paper's mean and standard deviation; None for a row of ours."""
        return self.row.paper.get(self.column.dataset)

    def numbers(self, key: str) -> tuple[float, float]:
        """Mean and standard deviation over the seeds; NaN where there are none."""
        if self.record is None:
            return math.nan, math.nan
        return mean_and_spread([run.get(key) for run in self.record["runs"]])

    @property
    def ours(self) -> tuple[float, float]:
        """What the table is about."""
        return self.numbers(self.table.measure)

    @property
    def difference(self) -> float:
        """Ours less the paper's; above 0 where ours is better. NaN where there is nothing to compare."""
        if self.paper is None or self.record is None or self.record["scale"]["stand_in"]:
            return math.nan
        return self.ours[0] - self.paper[0]

    def texts(self) -> dict[str, str]:
        """What tables say of it, for people."""
        record = self.record
        missing = "not available" if self.problem is not None else "not run"
        return {
            "label": self.row.label,
            "temperature": f"{record['chosen']['temperature']:g}" if record else "",
            "ours": nats(*self.ours) if record else missing,
            "released": nats(*self.numbers("released_estimate"), missing=""),
            "paper": nats(*self.paper) if self.paper else "",
            "difference": number(self.difference, "+.2f"),
        }


def number(value: float, form: str) -> str:
    """A number as text; nothing where there is none."""
    return f"{value:{form}}" if math.isfinite(value) else ""


def by_column(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries of a table, those of each data set together."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.column.dataset, []).append(entry)
    return list(groups.values())


def column_label(entries: Sequence[Entry]) -> str:
    """How the data set of these entries is called, with what was used in its place."""
    label = entries[0].column.label
    stand_in = next((e.record["scale"]["stand_in"] for e in entries if e.record), None)
    return f"{label} ({stand_in} in its place)" if stand_in else label


def errata_of(entries: Sequence[Entry]) -> list[str]:
    """What bears on a table's entries, by number."""
    keys = {key for e in entries for key in (*e.table.errata, *e.row.errata, *e.column.errata)}
    return sorted(keys, key=lambda key: int(key[1:]))


@dataclass(frozen=True)
class Plan:
    """What a command runs and shows."""

    scale: Scale
    entries: tuple[tuple[Entry, Cell], ...]
    figures: tuple[str, ...]

    def jobs(self) -> list[Job]:
        """Everything to be done, without repetition, cells of a data set one after another."""
        cells = {cell.name: cell for entry, cell in self.entries if entry.problem is None}
        order = list(COLUMNS)
        jobs: list[Job] = [*sorted(cells.values(), key=lambda cell: order.index(cell.dataset))]
        jobs += [
            FigureJob(figure, self.scale)
            for name in self.figures
            if isinstance(figure := FIGURES[name], ApproximationFigure)
        ]
        return jobs

    def finished(self, root: Path) -> list[Entry]:
        """The entries with their records."""
        by_name = {record["name"]: record for record in read_cells(root)}
        return [
            dataclasses.replace(entry, record=by_name.get(cell.name))
            for entry, cell in self.entries
        ]


def _columns(table: Table, row: Row) -> list[Column]:
    return [COLUMNS[name] for name in table.columns if name in (row.columns or table.columns)]


def _has_curve(table: Table, row: Row, column: Column) -> bool:
    """Whether it is kept how the test ELBO of this cell developed."""
    return row.has_curve or any(
        isinstance(figure, CurveFigure)
        and (figure.table, figure.column) == (table.name, column.dataset)
        and row.name in figure.rows
        for figure in FIGURES.values()
    )


def _places(name: str) -> list[tuple[Table, Row, Column]]:
    """The rows and data sets of a table, or of a figure that shows such."""
    if name in TABLES:
        table = TABLES[name]
        return [(table, row, column) for row in table.rows for column in _columns(table, row)]
    figure = FIGURES[name]
    if not isinstance(figure, TableFigure):
        return []
    table, column = TABLES[figure.table], COLUMNS[figure.column]
    return [(table, row, column) for row in table.rows if row.name in figure.rows]


def make_plan(wanted: Sequence[str], scale: str, options: Options) -> Plan:
    """What has to run for these tables and figures.

    Raises:
        ConfigError: for an unknown table, figure, row or scale, or a wish that makes no sense.
    """
    options.check()
    for name in wanted:
        check_choice("what to reproduce", name, names())
    if everything := "all" in wanted:
        wanted = [*TABLES, *FIGURES]
    chosen = options.scale(scale)
    places = {name: _places(name) for name in sorted(wanted, key=names().index)}
    known = {row.name for each in places.values() for _, row, _ in each}
    if not known and (options.rows or options.datasets):
        raise ConfigError(f"row, dataset: {', '.join(places)} has none to choose from")
    for name in options.rows:
        check_choice("row", name, sorted(known))
    selected = []
    for name, each in places.items():
        kept = [
            (table, row, column)
            for table, row, column in each
            if (not options.rows or row.name in options.rows)
            and (not options.datasets or column.dataset in options.datasets)
        ]
        if each and not kept and not everything:
            raise ConfigError(f"nothing to run of {name}, which has no such rows and data sets")
        selected += kept

    entries: dict[str, tuple[Entry, Cell]] = {}
    for table, row, column in selected:
        curve = _has_curve(table, row, column)
        cell = cell_of(table, row, column, chosen, curve=curve)
        cell = dataclasses.replace(
            cell,
            temperatures=options.temperatures or cell.temperatures,
            lrs=options.lrs or cell.lrs,
        )
        entry = Entry(table, row, column, problem=cell.problem())
        if entry.problem is None:
            cell.check()
        entries.setdefault(f"{table.name} {cell.title}", (entry, cell))
    shown = tuple(name for name in FIGURES if name in wanted)
    return Plan(chosen, tuple(entries.values()), shown)


def _worth(record: Mapping[str, Any]) -> tuple[float, ...]:
    """Records of the same cell, from the least to the most complete."""
    scale = record["scale"]
    images = [scale[part] or math.inf for part in ("train_images", "test_images")]
    names = list(SCALES)
    rank = names.index(scale["name"]) if scale["name"] in names else 0
    rank = -1 if scale["stand_in"] else rank
    candidates = len(scale["temperatures"]) * len(scale["lrs"])
    trained = [candidate.get("epochs") for candidate in record["candidates"]]
    to_the_end = trained.count(trained[-1]) if trained else 0
    chosen = candidates > 1
    return rank, scale["epochs"], *images, chosen, len(record["runs"]), candidates, to_the_end


def best_entries(root: Path) -> list[Entry]:
    """Every entry of every table with the most complete of the records there are of it."""
    records = read_cells(root)
    entries = []
    for table in TABLES.values():
        for row in table.rows:
            for column in _columns(table, row):
                wanted = column.dataset, settings_of(table, row, column)
                grids = {"temperatures": row.temperatures, "lrs": row.lrs}
                found = [
                    record
                    for record in records
                    if (record["dataset"], record["settings"]) == wanted
                    and all(g is None or {*record["scale"][n]} <= {*g} for n, g in grids.items())
                ]
                record = max(found, key=_worth, default=None)
                entries.append(Entry(table, row, column, record))
    return entries


def draw_figures(
    root: Path, wanted: Sequence[str], scale: Scale, entries: Sequence[Entry]
) -> dict[str, list[Path]]:
    """Draw these figures from their records; returns the files of each, none for a figure that has no records.

    A figure of approximations that was drawn after it was recorded is not drawn again.
    """
    drawn: dict[str, list[Path]] = {}
    for name in wanted:
        figure = FIGURES[name]
        folder = root / "figures" / scale.name
        there = [folder / f"{name}{suffix}" for suffix in figures.SUFFIXES]
        if isinstance(figure, ApproximationFigure):
            job = FigureJob(figure, scale)
            if job.is_done(root) and _are_newer(there, job.path(root)):
                drawn[name] = there
                continue
        shown = picture(figure, root, scale, entries)
        drawn[name] = [] if shown is None else figures.save(shown, folder / name)
    return drawn


def picture(
    figure: ApproximationFigure | TableFigure, root: Path, scale: Scale, entries: Sequence[Entry]
) -> Figure | None:
    """A figure of what is recorded in `root`, or of those of a table's entries that are; None where nothing is."""
    if isinstance(figure, ApproximationFigure):
        record = FigureJob(figure, scale).record(root)
        return figures.approximation_picture(figure, record) if record else None
    rows = {
        entry.row.label: entry.record
        for entry in entries
        if entry.record is not None
        and (entry.table.name, entry.column.dataset) == (figure.table, figure.column)
        and entry.row.name in figure.rows
    }
    return figures.table_picture(figure, rows, root)


def _are_newer(files: Sequence[Path], record: Path) -> bool:
    """Whether files are there that were written after the record, and after the code that draws."""
    time = max(file.stat().st_mtime for file in (record, Path(figures.__file__)))
    return all(file.exists() and file.stat().st_mtime > time for file in files)


def figure_lines(name: str, root: Path, scale: Scale) -> list[str]:
    """How close each fit of a figure came, from its record."""
    figure = FIGURES[name]
    if not isinstance(figure, ApproximationFigure):
        return []
    if (record := FigureJob(figure, scale).record(root)) is None:
        return []
    return [
        f"{fit['label']}: total variation {fit['initial']['total_variation']:.3f} before,"
        f" {fit['final']['total_variation']:.3f} after {record['identity']['steps']:,} steps"
        for row in record["rows"]
        for fit in row
    ]


@dataclass(frozen=True)
class Timing:
    """Seconds per epoch of the models of one table and data set, against Gumbel-Softmax's."""

    table: Table
    column: Column
    entries: tuple[Entry, ...]

    def ratio(self, entry: Entry) -> float:
        """Time of an epoch in units of Gumbel-Softmax's."""
        base = next(e for e in self.entries if e.row.is_baseline)
        return entry.numbers("seconds_per_epoch")[0] / base.numbers("seconds_per_epoch")[0]


def timings(entries: Sequence[Entry]) -> list[Timing]:
    """Where times can be compared: models without SL or other estimators, run alike, Gumbel-Softmax among them."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        if entry.record is None or not entry.row.plain:
            continue
        scale = entry.record["scale"]
        if scale["epochs"] == 1:
            continue  # the first epoch warms up
        setup = [scale["name"], scale["epochs"], scale["train_images"]]
        setup.append(entry.record["runs"][0]["side_by_side"])
        group = (entry.table.name, entry.column.dataset, str(setup))
        groups.setdefault(group, []).append(entry)
    return [
        Timing(TABLES[table], COLUMNS[dataset], tuple(group))
        for (table, dataset, _), group in groups.items()
        if len(group) > 1 and any(e.row.is_baseline for e in group)
    ]


def check_root(root: Path) -> None:
    """Raise RecordError unless it is a folder in which something was written by ``igr reproduce``."""
    if not root.is_dir():
        raise RecordError(f"there is no folder {root}")
    if not any(root.glob("cells/*.json")) and not any(root.glob("figures/*/*.json")):
        raise RecordError(
            f"{root} holds no records of tables or figures: expected the folder that `igr reproduce --out` wrote"
        )
