"""One self-contained HTML page of everything that a folder of records holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from igr.experiments import data, page
from igr.experiments.paper import plan as reproduce
from igr.experiments.paper.cells import trained_epochs
from igr.experiments.paper.figures import FigureJob, rendered
from igr.experiments.paper.plan import Entry, by_column, column_label, errata_of, number
from igr.experiments.paper.specs import (
    ERRATA,
    FIGURES,
    SCALES,
    TABLES,
    ApproximationFigure,
    Scale,
    Table,
    TableFigure,
)

GLOSSARY = {
    "IGR-I": "Gaussian noise through the softmax++: igr.SoftmaxIGR, --family igr-i",
    "IGR-Planar": "Gaussian noise through a planar flow, then the softmax++: igr.PlanarIGR, --family igr-planar",
    "IGR-SB": "Gaussian noise through stick-breaking, then the softmax++: igr.StickBreakingIGR, --family igr-sb",
    "IGR-SB sharpened": "the same with every weight raised to 1/temperature: igr.SharpStickBreakingIGR, --family"
    " igr-sb-sharp",
    "GS": "Gumbel-Softmax: igr.GumbelSoftmax, --family gs",
    "SL": "sticking the landing: no gradient through the density's parameters, igr.estimators.StickingTheLanding",
    "RELAX, USPGBL": "gradient estimators without bias: igr.estimators.Relax and UnorderedSet",
    "bound": "importance-weighted lower bound on the log-likelihood of the model with discrete codes, by m samples",
    "released estimate": "what the paper's released code reports in the bound's place; it is no bound (E6)",
    "ELBO": "the bound by a single sample",
}
"""What the page's abbreviations stand for."""


def describe(record: Mapping[str, Any]) -> str:
    """How much of the protocol a cell's record stands for."""
    scale, runs = record["scale"], record["runs"]
    images = f"the first {scale['train_images']:,}" if scale["train_images"] else "all"
    test = f"the first {scale['test_images']:,}" if scale["test_images"] else "all"
    temperatures, lrs = scale["temperatures"], scale["lrs"]
    epochs = trained_epochs(scale["epochs"], record["settings"])
    candidates = f"{len(temperatures)} temperature{'s' * (len(temperatures) > 1)}"
    if len(lrs) > 1:
        candidates += f" x {len(lrs)} learning rates"
    if record["candidates"]:
        compared = sorted({each.get("epochs", epochs) for each in record["candidates"]})
        after = f" after {', '.join(map(str, compared[:-1]))} and {compared[-1]} epochs"
        chosen = f"chosen among {candidates} on held-out images (m = {scale['choice_samples']})"
        chosen += after if len(compared) > 1 else ""
    else:
        chosen = f"temperature {temperatures[0]:g} given, nothing chosen"
    stand_in = f"; {scale['stand_in']} instead of the data set" if scale["stand_in"] else ""
    return (
        f"scale {scale['name']}: {epochs} epoch{'s' * (epochs > 1)} on {images} training images,"
        f" {chosen}, {len(runs)} seed{'s' * (len(runs) > 1)}; scored on {test} test images with m ="
        f" {runs[0]['samples']}{stand_in}"
    )


def _letter(record: Mapping[str, Any], setups: dict[str, str]) -> str:
    """The letter that stands for the amount of work behind a record, the next one where there is none yet."""
    count = len(setups)
    following = chr(ord("a") + count) if count < 26 else f"z{count - 25}"
    return setups.setdefault(describe(record), following)


def _line(entry: Entry, setups: dict[str, str]) -> dict[str, Any]:
    """What the page says of an entry."""
    return {
        **entry.texts(),
        "difference_is": entry.difference,
        "seconds": number(entry.numbers("seconds_per_epoch")[0], ".3g"),
        "setup": _letter(entry.record, setups) if entry.record else "",
        "errata": [key for key in entry.row.errata if key not in entry.table.errata],
    }


def _section(table: Table, entries: Sequence[Entry], setups: dict[str, str]) -> dict[str, Any]:
    """What the page says of a table."""
    groups = []
    for mine in by_column(entries):
        lines = [_line(entry, setups) for entry in mine]
        groups.append(
            {"label": column_label(mine), "lines": lines, "errata": mine[0].column.errata}
        )
    done = sum(entry.record is not None for entry in entries)
    errata = errata_of(entries)
    return {"table": table, "groups": groups, "errata": errata, "done": done, "count": len(entries)}


def _pictures(root: Path, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every figure from the most complete of its records, drawn anew."""
    pictures = []
    for name, figure in FIGURES.items():
        scale = _best_scale(root, figure)
        image, lines = None, []
        if scale is not None:
            drawn = reproduce.picture(figure, root, scale, entries)
            image = page.embedded(rendered(drawn, ".svg")) if drawn else None
            lines = reproduce.figure_lines(name, root, scale)
        shown = None if scale is None or isinstance(figure, TableFigure) else scale.name
        pictures.append({"figure": figure, "image": image, "lines": lines, "scale": shown})
    return pictures


def _best_scale(root: Path, figure: ApproximationFigure | TableFigure) -> Scale | None:
    """The largest scale at which there are records of a figure."""
    if isinstance(figure, TableFigure):
        return SCALES["full"]  # drawn from the best cells there are
    scales = reversed(tuple(SCALES.values()))
    return next((s for s in scales if FigureJob(figure, s).record(root) is not None), None)


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
    setups: dict[str, str] = {}
    sections = [
        _section(table, [entry for entry in entries if entry.table is table], setups)
        for table in TABLES.values()
    ]
    hours = sum(
        run["seconds_per_epoch"]
        * trained_epochs(entry.record["scale"]["epochs"], entry.record["settings"])
        for entry in entries
        if entry.record
        for run in entry.record["runs"]
    )
    pictures = _pictures(root, entries)
    scales = {entry.record["scale"]["name"] for entry in entries if entry.record}
    scales |= {picture["scale"] for picture in pictures}
    return page.render(
        "report.html.j2",
        trials=[name for name in ("smoke",) if name in scales],
        glossary=GLOSSARY,
        sections=sections,
        pictures=pictures,
        timings=_timings(entries),
        setups=setups,
        machines=_machines(entries),
        errata=ERRATA,
        citations=[data.SOURCES[name].citation for name in ("mnist", "fashion-mnist", "omniglot")],
        training_hours=hours / 3600,
    )


def write(root: Path, path: Path) -> int:
    """Write the page and return its size in bytes."""
    return page.write(path, render(root))
