"""Record the tutorials: each over five seeds, as JSON beside its script, and as the table in its text.

    python examples/record.py feature_selection

A tutorial has a function ``record(seed)``, which returns a dictionary of numbers for each row of the table.
"""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path

import matplotlib as mpl
import torch

FOLDER = Path(__file__).parent / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
MARK = "# <!-- record -->\n"
Record = dict[str, list[dict[str, float]]]


def measure(name: str, num_seeds: int = 5) -> Record:
    """Run a tutorial, and what it records for each seed."""
    record = runpy.run_path(str(FOLDER / f"{name}.py"))["record"]
    found = [record(seed) for seed in range(num_seeds)]
    return {row: [each[row] for each in found] for row in found[0]}


def table(record: Record) -> str:
    """Mean, and the range over seeds, as the lines of a comment."""
    columns: dict[str, list[float]] = {}
    for runs in record.values():
        for key in runs[0]:
            columns.setdefault(key, []).extend(run[key] for run in runs)
    digits = {key: 3 if max(map(abs, values)) < 2 else 1 for key, values in columns.items()}
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row, runs in record.items():
        cells = [_cell([run[key] for run in runs if key in run], digits[key]) for key in columns]
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "".join(f"# {line}\n" for line in lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    mean, *ends = (f"{x:.{digits}f}" for x in (sum(values) / len(values), min(values), max(values)))
    return mean if ends[0] == ends[1] else f"{mean} ({ends[0]} to {ends[1]})"


def main() -> None:
    """Measure, write the record, put the table into the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=NAMES)
    torch.set_num_threads(1)
    mpl.use("agg")
    for name in parser.parse_args().names:
        record = measure(name)
        script, path = FOLDER / f"{name}.py", FOLDER / f"{name}.json"
        rounded = {
            row: [{key: round(value, 4) for key, value in run.items()} for run in runs]
            for row, runs in record.items()
        }
        path.write_text(json.dumps(rounded, indent=1) + "\n")
        before, mark, after = script.read_text().partition(MARK)
        rest = after.splitlines(keepends=True)
        while rest and rest[0].startswith("# |"):
            del rest[0]
        script.write_text(before + mark + table(rounded) + "".join(rest))


if __name__ == "__main__":
    main()
