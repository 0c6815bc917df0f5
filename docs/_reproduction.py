"""Writes what reproduction.md and the README say of results, from the records in results/; the tests compare."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from _blocks import ROOT, Blocks, Said, count, table, write

from igr.experiments.paper import figures, results
from igr.experiments.paper.cells import Cell, ahead, cell_of, read_cells
from igr.experiments.paper.plan import (
    Entry,
    Options,
    best_entries,
    by_column,
    make_plan,
    picture,
)
from igr.experiments.paper.specs import FIGURES, SCALES, TABLES, ApproximationFigure
from igr.experiments.runs.records import RunFolder
from igr.experiments.runs.sweep import Sweep, mean_and_spread, nats

FULL = SCALES["full"]
LRS = tuple(f"learning rate {lr:g}" for lr in FULL.lrs)


def _verdict(entry: Entry) -> str:
    """How far the released estimate, or where there is none the measure, is from the paper's number."""
    if entry.paper is None:
        return ""
    ours = entry.numbers("released_estimate") if entry.table.has_released else entry.ours
    spread = math.hypot(*(0 if math.isnan(s) else s for s in (ours[1], entry.paper[1])))
    difference = ours[0] - entry.paper[0]
    return f"{difference:+.2f}" + (" (as the paper)" if abs(difference) <= 2 * spread else "")


def numbers(entries: Sequence[Entry]) -> str:
    """The finished rows of a table on one data set."""
    kind, rows = entries[0].table, []
    for entry in entries:
        if (record := entry.record) is None:
            continue
        texts = entry.texts()
        rows.append(
            [
                texts["label"],
                texts["ours"],
                *([texts["released"]] if kind.has_released else []),
                texts["paper"] or "none",
                _verdict(entry),
                f"{texts['temperature']}, {record['chosen']['lr']:g}",
                str(len(record["runs"])),
            ]
        )
    released = ["released estimate"] if kind.has_released else []
    head = ["model", kind.measure_label, *released, "the paper", "less the paper's"]
    return table([*head, "temperature, learning rate", "seeds"], rows)


def at_choice_of(entry: Entry, other: Entry) -> Entry:
    """A model at the temperature and the learning rate that were chosen for another."""
    wanted = entry.column.dataset, entry.record["settings"], other.record["chosen"]
    alone = next(
        record
        for record in read_cells(results.folder())
        if (record["dataset"], record["settings"], record["chosen"]) == wanted
    )
    return dataclasses.replace(entry, record=alone)


def gaps(entries: Sequence[Entry]) -> str:
    """How far each model is ahead of Gumbel-Softmax, by each number."""
    there = [entry for entry in entries if entry.record is not None and entry.row.plain]
    base, rows = next(entry for entry in there if entry.row.is_baseline), []
    for entry in there:
        if entry is base:
            continue
        row = [entry.row.label]
        for key in ("elbo", "bound", "released_estimate"):
            (ours, spread), (theirs, other) = entry.numbers(key), base.numbers(key)
            row.append(f"{ours - theirs:+.2f} ± {math.hypot(spread, other):.2f}")
        paper = entry.paper and base.paper
        row.append(f"{entry.paper[0] - base.paper[0]:+.2f}" if paper else "none")
        rows.append(row)
    head = ["model less GS", "ELBO (m = 1)", "bound (m = 1,000)", "released estimate", "the paper"]
    return table(head, rows)


def units(entries: Sequence[Entry]) -> str:
    """Structured output prediction with hard and with relaxed units, where both are known."""
    rows = []
    for entry in entries:
        record = entry.record
        if record is None or record["settings"].get("architecture") != "sop" or not entry.paper:
            continue
        folders = [RunFolder(results.folder() / run["run"]) for run in record["runs"]]
        relaxed = mean_and_spread([folder.metrics()[-1]["test_elbo"] for folder in folders])
        rows.append([entry.row.label, nats(*entry.ours), nats(*relaxed), nats(*entry.paper)])
    return table(
        ["model", "hard units, 1,000 samples", "relaxed units, one sample", "the paper"], rows
    )


def sign(entries: Sequence[Entry]) -> str:
    """A model trained with the KL subtracted, and the sums that the released code may have reported of it."""
    rows = []
    for entry in entries:
        if entry.record is None or entry.row.settings.get("kl_weight") != -1.0 or not entry.paper:
            continue
        for run in entry.record["runs"]:
            log_p = run["released_estimate"] + run["kl"]
            kls = run["kl"], run["relaxed_kl"]
            cells = [log_p, *kls, *(log_p + kl for kl in kls)]
            rows.append([*(f"{cell:.2f}" for cell in cells), nats(*entry.paper)])
    head = ["log mean p", "KL of the categories", "KL of the relaxations", "sum with the former"]
    return table([*head, "sum with the latter", "the paper"], rows)


NEAR = 5.0  # nats


def forgiving(entries: Sequence[Entry]) -> str:
    """What a temperature that is not the best one costs each model, all after the same epochs."""
    records = {e.row.label: e.record for e in entries if e.record and e.row.plain}
    shown = figures.bounds_by_temperature(records)
    rows = []
    for label, (_, bounds) in shown.items():
        temperatures = list(bounds)
        best = max(bounds, key=lambda t: bounds[t])
        low = high = temperatures.index(best)
        while low > 0 and bounds[temperatures[low - 1]] > bounds[best] - NEAR:
            low -= 1
        while high + 1 < len(bounds) and bounds[temperatures[high + 1]] > bounds[best] - NEAR:
            high += 1
        near = f"{temperatures[low]:g} to {temperatures[high]:g}"
        if high + 1 == len(bounds):
            near += ", the highest tried"
        lost = bounds[best] - min(bounds.values())
        rows.append([label, f"{best:g}", near, f"{lost:.1f}"])
    head = ["model", "best temperature", f"within {NEAR:g} nats of it", "worst of all loses, nats"]
    return f"After {min(epochs for epochs, _ in shown.values())} epochs:\n\n{table(head, rows)}"


def approximations() -> str:
    """How close the fits of the figures of approximations came to their targets, after their steps."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, figure in FIGURES.items():
        if not isinstance(figure, ApproximationFigure):
            continue
        record = figures.FigureJob(figure, FULL).record(results.folder())
        for fit in itertools.chain.from_iterable(record["rows"] if record else []):
            label, _, what = fit["label"].partition(": ")
            number, temperature = name.removeprefix("figure"), what.rpartition(" ")[2]
            distance = f"{fit['final']['total_variation']:.3f}"
            if fit["how"] == "mean":
                distance += f", temperature {temperature}"
            found.setdefault((number, label), {})[fit["how"]] = distance
    head = ["figure", "model", "recovered distribution", "E[z]"]
    return table(head, [[*key, d.get("hard", ""), d["mean"]] for key, d in found.items()])


def missing(entries: Sequence[Entry]) -> str:
    """What has not been run, or not with the whole choice, by table and data set; and the hours on one core."""
    rows = []
    records = {_place(entry): entry.record for entry in entries if entry.record is not None}
    groups: dict[tuple[str, str], list[tuple[Entry, Cell]]] = {}
    for entry, cell in make_plan(list(TABLES), "full", Options()).entries:
        group = groups.setdefault(_place(entry)[:2], [])
        record = records.get(_place(entry))
        if record is None or _count(record) < len(cell.temperatures) * len(cell.lrs):
            group.append((entry, cell))
    for (name, dataset), group in groups.items():
        if not group:
            continue
        hours = sum(cell.units for _, cell in group) / 3600
        command = f"igr reproduce {name} --scale full --dataset {dataset}"
        if any(place[:2] == (name, dataset) for place in records):
            command += "".join(f" --row {entry.row.name}" for entry, _ in group)
        label = f"{name}, {group[0][0].column.label}"
        rows.append([label, str(len(group)), f"{hours:.1f}", f"`{command}`"])
    return table(["table", "rows", "core-hours", "command"], rows) if rows else "Nothing.\n"


def _place(entry: Entry) -> tuple[str, str, str]:
    return entry.table.name, entry.column.dataset, entry.row.name


def halving(entries: Sequence[Entry]) -> str:
    """Where all candidates were trained to the end: what halving would have chosen, and what that costs."""
    rows = []
    for entry in entries:
        if (record := entry.record) is None:
            continue
        candidates = record["candidates"]
        compared = sorted({each["epochs"] for each in candidates})
        if len(compared) < 2 or len(candidates) < len(compared) * _count(record):
            continue
        if _count(record) <= 3:  # of so few halving leaves none out
            continue
        everything = {
            (c["lr"], c["temperature"], c["epochs"]): c["held_out_bound"] for c in candidates
        }
        best = record["chosen"]["lr"], record["chosen"]["temperature"]
        row = [f"{entry.row.label}, {entry.column.label}", f"{best[1]:g}, {best[0]:g}"]
        for pick in (ahead, _counted):
            trained, chosen = _halved(entry, record, everything, pick)
            cost = everything[(*best, compared[-1])] - everything[(*chosen, compared[-1])]
            work = trained / (_count(record) * compared[-1])
            row += [f"{chosen[1]:g}, {chosen[0]:g}", f"{cost:.2f}", f"{work:.0%}"]
        rows.append(row)
    costs = ["costs, nats", "of the work"]
    head = ["cell", "best of all: temperature, learning rate", "halving chooses", *costs]
    head += ["without what is close", *costs]
    return table(head, rows) if rows else "No cell has been run both ways yet.\n"


def _count(record: Mapping[str, Any]) -> int:
    return len(record["scale"]["temperatures"]) * len(record["scale"]["lrs"])


def _counted(bounds: Mapping[float, float], count: int) -> list[float]:
    """The so many best, however close the next ones are: how it was done before what is close went on."""
    return sorted(bounds, key=lambda t: -bounds[t])[:count]


def _halved(
    entry: Entry,
    record: Mapping[str, Any],
    bounds: Mapping[tuple[float, float, int], float],
    pick: Callable[[Mapping[float, float], int], list[float]],
) -> tuple[int, tuple[float, float]]:
    """Epochs trained in all, and the learning rate and temperature chosen, by halving among what was scored."""
    grids = {name: tuple(record["scale"][name]) for name in ("temperatures", "lrs")}
    cell = dataclasses.replace(cell_of(entry.table, entry.row, entry.column, FULL), **grids)

    def best(sweep: Sweep, count: int) -> list[float]:
        c = sweep.config
        return pick({t: bounds[c.lr, t, c.epochs] for t in c.temperatures}, count)

    trained, finalists = 0, []
    for sweep in cell.candidates(best):
        c, before = sweep.config, sweep.before.config.epochs if sweep.before else 0
        trained += len(c.temperatures) * (c.epochs - before)
        if not sweep.leaves_states:
            finalists += [(c.lr, t, c.epochs) for t in c.temperatures]
    return trained, max(finalists, key=bounds.__getitem__)[:2]


def by_lr(entries: Sequence[Entry]) -> str:
    """The best held-out bound of each learning rate, among the temperatures that were trained to the end."""
    rows = []
    for entry in entries:
        found = _ends(entry)
        if len(found) < 2:
            continue
        cells = []
        for lr in FULL.lrs:
            best = max(((b, t) for t, b in found.get(lr, {}).items()), default=None)
            cells.append(f"{best[0]:.2f} at {best[1]:g}" if best else "")
        rows.append([entry.row.label, *cells, f"{max(map(len, found.values()))}"])
    return table(["model", *LRS, "temperatures of each"], rows)


def grid(entry: Entry) -> str:
    """Held-out bounds of all candidates that were trained to the end."""
    found = _ends(entry)
    rows = [
        [f"{t:g}", *(f"{found[lr][t]:.2f}" if t in found[lr] else "" for lr in FULL.lrs)]
        for t in sorted(set().union(*found.values()))
    ]
    return table(["temperature", *LRS], rows)


def _ends(entry: Entry) -> dict[float, dict[float, float]]:
    """Held-out bounds after the last epoch, by learning rate and temperature."""
    found: dict[float, dict[float, float]] = {}
    candidates = entry.record["candidates"] if entry.record else []
    last = max((c["epochs"] for c in candidates), default=0)
    for each in candidates:
        if each["epochs"] == last:
            found.setdefault(each["lr"], {})[each["temperature"]] = each["held_out_bound"]
    return found


def blocks() -> Blocks:
    """What belongs between the marks of each page."""
    entries = best_entries(results.folder())
    groups = {
        f"{group[0].table.name} {group[0].column.dataset}": group
        for name in TABLES
        for group in by_column([e for e in entries if e.table.name == name])
    }
    linear = [e for e in groups["released mnist"] if "architecture" not in e.row.settings]
    groups_shown = {**groups, "released mnist": linear}
    page = {
        name: numbers(group) for name, group in groups_shown.items() if any(e.record for e in group)
    }
    page["gaps"] = gaps(groups["table1 mnist"])
    mnist = {entry.row.name: entry for entry in groups["table1 mnist"]}
    landing = mnist["igr-planar+sl"]
    page["planar mnist"] = numbers([at_choice_of(mnist["igr-planar"], landing), landing])
    nonlinear = next(e for e in groups["table3 mnist"] if e.row.name == "igr-i")
    page["nonlinear mnist"] = numbers([at_choice_of(nonlinear, mnist["igr-i"])])
    page["units"] = units(groups["released mnist"])
    page["sign"] = sign(groups["released mnist"])
    page["forgiving"] = forgiving(groups["table1 mnist"])
    page["approximations"] = approximations()
    page["halving"] = halving(entries)
    page["learning rates"] = by_lr([*groups["table1 mnist"], *linear])
    page["grid"] = grid(next(e for e in groups["table1 mnist"] if e.row.is_baseline))
    page["missing"] = missing(entries)
    return {
        "docs/reproduction.md": page,
        "README.md": {"table1 mnist": page["table1 mnist"]},
    }


def said() -> Said:
    """Figures in prose."""
    found = {
        (e.table.name, e.column.dataset, e.row.name): e
        for e in best_entries(results.folder())
        if e.record is not None
    }

    def better(dataset: str, row: str, than: str, of: str = "table1") -> float:
        ours, theirs = (found[of, dataset, name].ours[0] for name in (row, than))
        return float(ours - theirs)

    def beyond_paper(of: str, dataset: str, row: str) -> float:
        entry = found[of, dataset, row]
        assert entry.paper is not None  # noqa: S101
        return float(entry.numbers("released_estimate")[0] - entry.paper[0])

    higher = [
        entry.numbers("released_estimate")[0] - entry.numbers("bound")[0]
        for (of, dataset, _), entry in found.items()
        if (of, dataset) == ("table1", "mnist")
    ]
    rivals = ("igr-i", "igr-planar", "igr-sb-sharp")
    losses = [better("mnist", "gs", row, of="table2") for row in rivals]
    behind, most = count(losses[0]), count(max(losses))
    units = [better("mnist", row, "gs", of="table2") for row in ("igr-i+unit", "igr-planar+unit")]
    nonlinear = count(better("mnist", "gs", "igr-i", of="table3"))
    grey, ours = found["released", "omniglot-grey", "gs+grey"], found["table1", "omniglot", "gs"]
    images = ours.numbers("released_estimate")[0] - grey.numbers("released_estimate")[0]
    rate = better("omniglot-grey", "igr-i+grey", "igr-i+slow", of="released")
    ends = _ends(found["table1", "mnist", "gs"])
    bounds = {t: max(of[t] for of in ends.values() if t in of) for t in FULL.temperatures}
    near = [t for t, bound in bounds.items() if bound > max(bounds.values()) - NEAR]
    return {
        "README.md": [
            f"it is {count(beyond_paper('table1', 'mnist', 'gs'))} nats better",
            f"IGR-I stays ahead by {count(better('mnist', 'igr-i', 'gs'))}, IGR-SB not at all",
            f"on Omniglot it is ahead by {count(better('omniglot', 'igr-i', 'gs'))} nats",
            f"were run, behind by {nonlinear};",
        ],
        "docs/errata.md": [f"[{behind} nats behind]"],
        "docs/reproduction.md": [
            f"better than the paper's by {count(beyond_paper('released', 'mnist', 'gs+lrs'))} nats",
            f"{count(min(higher))} to {count(max(higher))} nats higher than the bound",
            f"lose here, by {count(min(losses))} to {most} nats",
            f"images account for {count(images)} nats of the Gumbel-Softmax's difference",
            f"the learning rate is about {count(rate)}, by the bound",
            f"left with {count(beyond_paper('released', 'omniglot-grey', 'gs+grey'))} nats",
            f"{nonlinear} nats ahead of IGR-I",
            f"by {units[0]:.1f} nats and IGR-Planar by {units[1]:.1f},",
            f"There its range is {min(near):g} to {max(near):g}.",
        ],
    }


def main() -> None:
    """Write the pages and draw the pictures."""
    write(blocks())
    entries = best_entries(results.folder())
    for name, figure in FIGURES.items():
        shown = picture(figure, results.folder(), FULL, entries)
        if shown is not None:
            with matplotlib.rc_context({"svg.hashsalt": name}):  # the same picture, the same file
                path = ROOT / "docs" / "images" / f"{name}.svg"
                shown.savefig(path, **figures.SUFFIXES[".svg"])


if __name__ == "__main__":
    main()
