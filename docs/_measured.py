"""Writes the tables of the pages that quote `benchmarks/` and `examples/`; the tests compare."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from _reproduction import _table, written

ROOT = Path(__file__).parent.parent
RECORDS = json.loads((ROOT / "benchmarks" / "relaxations.json").read_text())


def gradients() -> str:
    """Bias and noise of pathwise gradients, of the network."""
    found = {
        (row["temperature"], row["family"]): (f"{row['bias']:.2f}", f"{row['noise']:.1f}")
        for row in RECORDS["gradients"]
        if row["objective"] == "network"
    }
    families = ("SoftmaxIGR", "GumbelSoftmax")
    head = [
        "temperature",
        *(f"`{name}`: {what}" for name in families for what in ("bias", "noise")),
    ]
    rows = [
        [f"{t:g}", *(cell for name in families for cell in found[t, name])]
        for t in (0.1, 0.2, 0.5, 1.0)
    ]
    return _table(head, rows)


def percent(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share > 0.01 else f"{share:.2%}"


def finite() -> str:
    """Samples without a finite log-density."""
    names = {
        "torch": "torch's `RelaxedOneHotCategorical`",
        "GumbelSoftmax": "`igr.GumbelSoftmax`",
        "SoftmaxIGR": "`SoftmaxIGR`",
    }
    rows = [
        [f"{row['temperature']:g}", *(percent(row[name]) for name in names)]
        for row in RECORDS["finite"]
        if row["temperature"] <= 0.2
    ]
    return _table(["temperature", *names.values()], rows)


def temperatures() -> str:
    """The demonstration: bounds by family and temperature."""
    with (ROOT / "benchmarks" / "temperatures.csv").open() as file:
        runs = list(csv.DictReader(file))
    columns = sorted({float(run["temperature"]) for run in runs})
    rows: list[Sequence[str]] = []
    for family, name in (("igr-i", "`SoftmaxIGR`"), ("gs", "`GumbelSoftmax`")):
        cells = []
        for t in columns:
            bounds = [
                float(run["bound"])
                for run in runs
                if (run["family"], float(run["temperature"])) == (family, t)
            ]
            cells.append(f"{statistics.mean(bounds):.1f} ± {statistics.stdev(bounds):.1f}")
        rows.append([name, *cells])
    return _table(["temperature", *(f"{t:g}" for t in columns)], rows)


def toy() -> str:
    """The polynomial toy at p = 2."""
    record = json.loads((ROOT / "examples" / "polynomial_toy.json").read_text())["Gumbel-Softmax"]
    names = {
        "ReinMax, ZGR": "`ReinMax`",
        "MVE": "`MVE`",
        "Pathwise": "`Pathwise`",
        "RelaxedStraightThrough": "`RelaxedStraightThrough`",
        "Reinforce(LeaveOneOut())": "`Reinforce(LeaveOneOut())`",
        "StraightThrough": "`StraightThrough`",
    }
    return _table(
        ["estimator", "loss"],
        [[name, f"{record[key]['loss'][1]:.4f}"] for key, name in names.items()],
    )


def blocks() -> dict[str, dict[str, str]]:
    """What belongs between the marks of each page."""
    return {
        "docs/choosing.md": {
            "gradients": gradients(),
            "finite": finite(),
            "temperatures": temperatures(),
            "toy": toy(),
        },
    }


if __name__ == "__main__":
    for page, parts in blocks().items():
        path = ROOT / page
        path.write_text(written(path.read_text(), parts))
