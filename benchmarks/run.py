"""What is timed on a CPU against a target, each in a process of its own; one table, and one JSON file.

Others write their own records: how close matching comes (`matching.py`), what relaxations cost an estimate
(`relaxations.py`), how biased estimators are (`bias.py`), and what a GPU takes (`gpu.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Row, options, report

HERE = Path(__file__).parent
SCRIPTS = ("sampling", "vae_step", "recovery")


def main() -> None:
    """Run them one after the other: side by side they would disturb each other."""
    chosen = options(__doc__)
    rows: list[Row] = []
    for name in SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(path)]
            command += ["--threads", str(chosen.threads)]
            command += ["--cpu-time"] * chosen.cpu_time
            if chosen.repeats:
                command += ["--repeats", str(chosen.repeats)]
            subprocess.run(command, check=True)
            rows += [Row(**row) for row in json.loads(path.read_text())["rows"]]
    report("All benchmarks", rows, chosen.json)


if __name__ == "__main__":
    main()
