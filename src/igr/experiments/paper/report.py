"""One self-contained HTML page of everything that a folder of records holds."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2

import igr
from igr.experiments import data
from igr.experiments.files import make_folder, write_atomically
from igr.experiments.paper import plan as reproduce
from igr.experiments.paper.figures import FigureJob
from igr.experiments.paper.plan import Entry
from igr.experiments.paper.specs import (
    ERRATA,
    FIGURES,
    SCALES,
    TABLES,
    ApproximationFigure,
    Table,
    TableFigure,
)
from igr.experiments.runs.sweep import nats


@dataclass(frozen=True)
class _Line:
    """A row of a table on one data set, as text."""

    label: str
    ours: str
    released: str
    paper: str
    difference: str
    better: bool | None
    temperature: str
    seconds: str
    setup: str
    errata: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    label: str
    lines: list[_Line]
    errata: tuple[str, ...]


@dataclass(frozen=True)
class _Section:
    name: str
    title: str
    measure: str
    has_released: bool
    groups: list[_Group]
    errata: tuple[str, ...]
    done: int
    count: int


@dataclass(frozen=True)
class _Picture:
    name: str
    title: str
    caption: str
    image: str | None
    lines: list[str]
    errata: tuple[str, ...]


class _Setups:
    """Numbers the different amounts of work that records stand for, so that each number on the page says which."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def letter(self, record: Mapping[str, Any]) -> str:
        """The letter of a record's set-up."""
        text = describe(record)
        if text not in self.texts:
            self.texts.append(text)
        index = self.texts.index(text)
        return chr(ord("a") + index) if index < 26 else f"z{index - 25}"


def describe(record: Mapping[str, Any]) -> str:
    """How much of the protocol a cell's record stands for."""
    scale, runs = record["scale"], record["runs"]
    images = f"the first {scale['train_images']:,}" if scale["train_images"] else "all"
    test = f"the first {scale['test_images']:,}" if scale["test_images"] else "all"
    temperatures, lrs = scale["temperatures"], scale["lrs"]
    candidates = f"{len(temperatures)} temperature{'s' * (len(temperatures) > 1)}"
    if len(lrs) > 1:
        candidates += f" x {len(lrs)} learning rates"
    if record["candidates"]:
        compared = sorted({each.get("epochs", scale["epochs"]) for each in record["candidates"]})
        after = f" after {', '.join(map(str, compared[:-1]))} and {compared[-1]} epochs"
        chosen = f"chosen among {candidates} on held-out images (m = {scale['choice_samples']})"
        chosen += after if len(compared) > 1 else ""
    else:
        chosen = f"temperature {temperatures[0]:g} given, nothing chosen"
    stand_in = f"; {scale['stand_in']} instead of the data set" if scale["stand_in"] else ""
    return (
        f"scale {scale['name']}: {scale['epochs']} epoch{'s' * (scale['epochs'] > 1)} on {images} training images,"
        f" {chosen}, {len(runs)} seed{'s' * (len(runs) > 1)}; scored on {test} test images with m ="
        f" {runs[0]['samples']}{stand_in}"
    )


def _line(entry: Entry, setups: _Setups) -> _Line:
    record = entry.record
    difference = entry.difference
    seconds = entry.numbers("seconds_per_epoch")[0]
    return _Line(
        label=entry.row.label,
        ours=nats(*entry.ours, missing="diverged") if record else "not run",
        released=nats(*entry.numbers("released_estimate"), missing=""),
        paper=nats(*entry.paper) if entry.paper else "",
        difference=f"{difference:+.2f}" if math.isfinite(difference) else "",
        better=difference > 0 if math.isfinite(difference) else None,
        temperature=f"{record['chosen']['temperature']:g}" if record else "",
        seconds=f"{seconds:.3g}" if math.isfinite(seconds) else "",
        setup=setups.letter(record) if record else "",
        errata=tuple(key for key in entry.row.errata if key not in entry.table.errata),
    )


def _section(table: Table, entries: Sequence[Entry], setups: _Setups) -> _Section:
    groups = []
    for dataset in table.columns:
        mine = [entry for entry in entries if entry.column.dataset == dataset]
        column = mine[0].column
        stand_in = next((e.record["scale"]["stand_in"] for e in mine if e.record), None)
        label = column.label + (f" ({stand_in} in its place)" if stand_in else "")
        groups.append(_Group(label, [_line(entry, setups) for entry in mine], column.errata))
    used = dict.fromkeys(key for entry in entries for key in (*entry.table.errata, *entry.errata))
    return _Section(
        name=table.name,
        title=table.title,
        measure=table.measure_label,
        has_released=table.has_released,
        groups=groups,
        errata=tuple(sorted(used, key=_erratum_order)),
        done=sum(entry.record is not None for entry in entries),
        count=len(entries),
    )


def _erratum_order(key: str) -> tuple[int, str]:
    number = key[1:]
    return (int(number), "") if number.isdigit() else (99, key)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _pictures(root: Path, entries: Sequence[Entry]) -> list[_Picture]:
    """Every figure from the most complete of its records, drawn anew."""
    pictures = []
    for name, figure in FIGURES.items():
        scale = _best_scale(root, figure)
        image, lines = None, []
        if scale is not None:
            paths = reproduce.draw_figures(root, [name], SCALES[scale], entries)[name]
            image = next((_data_uri(path) for path in paths if path.suffix == ".png"), None)
            lines = reproduce.figure_lines(name, root, SCALES[scale])
        pictures.append(_Picture(name, figure.title, figure.caption, image, lines, figure.errata))
    return pictures


def _best_scale(root: Path, figure: ApproximationFigure | TableFigure) -> str | None:
    """The largest scale at which there are records of a figure."""
    if isinstance(figure, TableFigure):
        return "full"  # drawn from the best cells there are
    for name in reversed(tuple(SCALES)):
        if FigureJob(figure, SCALES[name]).record(root) is not None:
            return name
    return None


def _timings(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    found = []
    for timing in reproduce.timings(entries):
        rows = [
            {
                "label": entry.row.label,
                "seconds": f"{entry.numbers('seconds_per_epoch')[0]:.3g}",
                "ratio": f"{timing.ratio(entry):.2f}",
                "width": round(100 * timing.ratio(entry) / max(map(timing.ratio, timing.entries))),
            }
            for entry in timing.entries
        ]
        found.append(
            {"title": f"{timing.table.title.split(':')[0]}, {timing.column.label}", "rows": rows}
        )
    return found


def _machines(entries: Sequence[Entry]) -> list[str]:
    versions = [entry.record["versions"] for entry in entries if entry.record]
    texts = [
        f"igr {v['igr']}, torch {v['torch']}, Python {v['python']}, {v['system']} ({v['machine']}),"
        f" {v['threads']} thread{'s' * (v['threads'] > 1)} in each process"
        for v in versions
    ]
    return list(dict.fromkeys(texts))


def render(root: Path) -> str:
    """The page as text.

    Raises:
        RecordError: if the folder holds no records, or such as this version cannot read.
    """
    reproduce.check_root(root)
    entries = reproduce.best_entries(root)
    setups = _Setups()
    sections = [
        _section(table, [entry for entry in entries if entry.table is table], setups)
        for table in TABLES.values()
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("igr.experiments.paper"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hours = sum(
        run["seconds_per_epoch"] * run_epochs(entry.record)
        for entry in entries
        if entry.record
        for run in entry.record["runs"]
    )
    return environment.get_template("report.html.j2").render(
        version=igr.__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        sections=sections,
        pictures=_pictures(root, entries),
        timings=_timings(entries),
        setups=[(chr(ord("a") + i), text) for i, text in enumerate(setups.texts)],
        machines=_machines(entries),
        errata=ERRATA,
        citations=[data.SOURCES[name].citation for name in ("mnist", "fashion-mnist", "omniglot")],
        training_hours=hours / 3600,
        anchor=_anchor,
    )


def run_epochs(record: Mapping[str, Any]) -> int:
    """Epochs that each reported run of a cell was trained for."""
    return record["scale"]["epochs"]


def _anchor(key: str) -> str:
    return key.replace(" ", "-").lower()


def write(root: Path, path: Path) -> int:
    """Write the page and return its size in bytes."""
    page = render(root).encode()
    make_folder(path.parent)
    write_atomically(path, page)
    return len(page)
