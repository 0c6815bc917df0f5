"""``igr demo``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

from igr.experiments.cli import console
from igr.experiments.cli.console import fail, say
from igr.experiments.cli.options import Epochs, Folder, Samples, Threads, option
from igr.experiments.cli.training import (
    Group,
    grouped,
    results_table,
    run_sweep,
    set_threads,
)
from igr.experiments.runs.records import SweepFolder
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.training.config import SweepConfig

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
        lr=3e-3,
        held_out=200,
    )
    path = out_folder.expanduser()
    start = time.perf_counter()
    resume = is_unfinished_demo(path, config)
    if not resume and (path / DEMO_MARK).exists():
        SweepFolder(path).remove(DEMO_MARK)
    try:
        folder, rows = run_sweep(config, path, resume=resume, samples=samples, mark=DEMO_MARK)
    except Interrupted as stopped:
        fail(f"stopped after epoch {stopped}; the same command goes on from there", 130)
    groups = grouped(rows)
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
    say(verdict(*chosen))
    best = max(chosen, key=lambda g: g.mean("bound"))
    pictures = best.rows[0].run.path
    say("\nPictures:")
    say(
        f"  {pictures / 'reconstructions.png'}   test images and what the discrete code keeps of them"
    )
    say(f"  {pictures / 'samples.png'}   new digits, decoded from random codes")
    say(f"  {folder.path / 'curves.png'}   training curves of all {len(rows)} runs")
    say(
        f"All records: {folder.path} (results.csv opens in pandas); {time.perf_counter() - start:.0f} s in all."
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
    error = math.sqrt(sum(g.spread("bound") ** 2 / len(g.rows) for g in (better, worse)))
    if math.isnan(error):
        return text + f"{better.family} is ahead by {difference:.2f} nats, on one seed."
    if difference < 2 * error:
        return text + f"{difference:.2f} nats apart, too close to tell on {len(first.rows)} seeds."
    return (
        text + f"{better.family} is better by {difference:.2f} nats (standard error {error:.2f})."
    )
