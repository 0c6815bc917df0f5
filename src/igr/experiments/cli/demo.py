"""``igr demo``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import torch
from torch import Tensor

from igr.experiments import data, page
from igr.experiments.cli import console
from igr.experiments.cli.console import say
from igr.experiments.cli.options import Epochs, Folder, Samples, Threads, option
from igr.experiments.cli.training import (
    Group,
    grouped,
    load_data,
    results_table,
    run_sweep,
    set_threads,
)
from igr.experiments.files import expanded
from igr.experiments.runs import plots
from igr.experiments.runs.records import SweepFolder
from igr.experiments.runs.sweep import nats
from igr.experiments.runs.train import load_model
from igr.experiments.training.config import SweepConfig

if TYPE_CHECKING:
    from igr.experiments.models.vae import StackedVAE

DEMO_MARK = "made-by-igr-demo"


EXAMPLES = (
    "igr demo",
    "igr demo --epochs 50 --seeds 1 --out runs/demo",
)


def demo(
    out_folder: Folder = Path("igr-demo"),
    epochs: Epochs = 200,
    seeds: Annotated[int, option("Seeds of each family and temperature.")] = 3,
    samples: Samples = 1000,
    threads: Threads = 1,
) -> None:
    set_threads(threads)
    config = SweepConfig(
        dataset="digits",
        families=("igr-i", "gs"),
        temperatures=(0.1, 0.25, 0.5, 1.0, 1.5),
        seeds=seeds,
        epochs=epochs,
        lr=data.source_of("digits").lr,
        held_out=200,
    )
    path = expanded(out_folder)
    start = time.perf_counter()
    resume = is_unfinished_demo(path, config)
    if not resume and (path / DEMO_MARK).exists():
        SweepFolder(path).remove(DEMO_MARK, "index.html")
    results = run_sweep(config, path, resume=resume, samples=samples, mark=DEMO_MARK)
    groups = grouped(results)
    chosen = [
        max((g for g in groups if g.family == family), key=lambda g: g.held_out)
        for family in config.families
    ]
    console.out.print(
        results_table(
            groups,
            "Discrete VAEs on handwritten digits (8 x 8, 20 variables of 10 categories)",
            chosen,
        )
    )
    say("* the temperature with the best bound on held-out training images\n")
    said = [verdict(*chosen), tolerance(groups)]
    for text in said:
        say(f"{text}\n")
    picture = path / "index.html"
    with SweepFolder(path).writing():
        page.write(picture, render(config, groups, chosen, said))
    say(f"Look at {picture}: this as a plot, and what both make of digits (needs no network).")
    say(
        f"All records: {path} (results.csv opens in pandas); {time.perf_counter() - start:.0f} s in all."
    )


def is_unfinished_demo(path: Path, config: SweepConfig) -> bool:
    """Whether `path` holds this very demo, stopped on its way."""
    if not (path / "config.json").exists():
        return False
    folder = SweepFolder(path)
    return folder.config == config and not all(folder.run(r).finished for r in config.runs())


def verdict(first: Group, second: Group) -> str:
    """Which of two is better, read off their bounds and the spread of the seeds."""
    better, worse = sorted((first, second), key=lambda g: g.mean("bound"), reverse=True)
    difference = better.mean("bound") - worse.mean("bound")
    named = [
        f"{g.family} at temperature {g.temperature:g} reaches {g.mean('bound'):.2f}"
        for g in (better, worse)
    ]
    text = f"Bound on the test log-likelihood: {named[0]}, {named[1]}: "
    if not math.isfinite(difference):
        return text + "no comparison, a run diverged."
    error = standard_error((better, worse))
    if math.isnan(error):
        return text + f"{better.family} is ahead by {difference:.2f} nats, on one seed."
    if difference < 2 * error:
        return (
            text + f"{difference:.2f} nats apart, too close to tell on {len(first.results)} seeds."
        )
    return (
        text + f"{better.family} is better by {difference:.2f} nats (standard error {error:.2f})."
    )


def tolerance(groups: Sequence[Group]) -> str:
    """How far the bound of each family falls over the temperatures, and for which it falls less."""
    temperatures = sorted({g.temperature for g in groups})
    parts: list[str] = []
    falls: dict[str, float] = {}
    ends: list[Group] = []
    for family in dict.fromkeys(g.family for g in groups):
        mine = sorted((g for g in groups if g.family == family), key=lambda g: g.mean("bound"))
        if not all(math.isfinite(g.mean("bound")) for g in mine):
            return f"What a wrong temperature costs cannot be told: a run of {family} diverged."
        worst, best = mine[0], mine[-1]
        ends += worst, best
        falls[family] = best.mean("bound") - worst.mean("bound")
        parts.append(f"{family} up to {falls[family]:.2f} nats (at {worst.temperature:g})")
    text = f"A wrong temperature, from {temperatures[0]:g} to {temperatures[-1]:g}, costs {' and '.join(parts)}: "
    first, second = sorted(falls, key=falls.__getitem__)
    less = falls[second] - falls[first]
    error = standard_error(ends)
    if less < 2 * error:
        return f"{text}too close to tell which is the more forgiving."
    seeds = ", on one seed" if math.isnan(error) else f" (standard error {error:.2f})"
    return f"{text}{less:.2f} less with {first}{seeds}."


def standard_error(groups: Sequence[Group]) -> float:
    """Of a sum or difference of the means of these; NaN where there is one seed."""
    return math.sqrt(sum(g.spread("bound") ** 2 / len(g.results) for g in groups))


def render(
    config: SweepConfig, groups: Sequence[Group], chosen: Sequence[Group], said: Sequence[str]
) -> str:
    """The page of all this."""
    dataset = load_data(config.dataset)
    shown = dataset.test[:12]
    lowest = min(config.temperatures)
    rows = {}
    for group in (*chosen, *(g for g in groups if g.temperature == lowest and g not in chosen)):
        run = group.results[0].run
        model = cast("StackedVAE", load_model(run, dataset.test.shape[-1]))
        decoded = plots.reconstructions(model, shown, run.config.seed)[0]
        drawn = plots.samples(model, 36, run.config.seed)
        rows[f"{group.family}, temperature {group.temperature:g}"] = decoded, drawn

    def picture(*images: Tensor) -> str:
        stacked = torch.cat(images).unflatten(-1, dataset.shape)
        return page.embedded(plots.pixels(stacked.unflatten(0, (-1, 12))))

    scores = [(each.config, each.scores[0]["bound"]) for group in groups for each in group.results]
    table = {
        temperature: {
            g.family: (nats(g.mean("bound"), g.spread("bound")), g in chosen)
            for g in groups
            if g.temperature == temperature
        }
        for temperature in config.temperatures
    }
    evaluation = groups[0].results[0].scores[0]
    return page.render(
        "demo.html.j2",
        config=config,
        said=said,
        families=config.families,
        table=table,
        samples=evaluation["samples"],
        images=evaluation["images"],
        plot=page.embedded(plots.svg(plots.bounds(scores))),
        originals=picture(shown),
        rows={name: (picture(decoded), picture(drawn)) for name, (decoded, drawn) in rows.items()},
    )
