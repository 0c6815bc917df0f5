"""What the benchmarks share: alternating timings, peak memory, one table, and JSON.

A figure is a ratio of two medians taken in one run on one machine, the two sides alternating so that both see the same
weather. Absolute times are printed beside it for orientation alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

clock = time.perf_counter


@dataclass
class Row:
    """One line of the table: what was measured, against what, and what it should reach."""

    work: str
    against: str
    ratio: float
    target: float | None
    milliseconds: float
    spread: str
    memory_mib: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is reached; blank where there is none."""
        if self.target is None:
            return ""
        return "yes" if self.ratio <= self.target else "no"


def alternate(
    cases: dict[str, Callable[[], object]], repeats: int, *, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds of each call: the cases take turns, `repeats` times each."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, case in cases.items():
            gc.disable()
            start = clock()
            case()
            elapsed = clock() - start
            gc.enable()
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def compare(
    work: str,
    case: Callable[[], object],
    against: str,
    rival: Callable[[], object],
    target: float | None,
    *,
    repeats: int,
    note: str = "",
) -> Row:
    """Time `case` against `rival`: the median of the ratios of neighbouring turns."""
    seconds = alternate({"case": case, "rival": rival}, repeats)
    ratios = sorted(a / b for a, b in zip(seconds["case"], seconds["rival"], strict=True))
    low, high = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
    return Row(
        work=work,
        against=against,
        ratio=statistics.median(ratios),
        target=target,
        milliseconds=1e3 * statistics.median(seconds["case"]),
        spread=f"{low:.2f}-{high:.2f}",
        memory_mib=peak_memory(case),
        note=note,
    )


def peak_memory(case: Callable[[], object]) -> float | None:
    """The most memory that the process took up, above what it did before, in MiB; None where Linux does not say."""
    try:
        gc.collect()
        # What is free leaves the process's memory, and so is seen when it is used.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak afresh
        before = _resident("VmRSS")
        case()
        return max(0.0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def options(description: str | None) -> argparse.Namespace:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=None, help="turns of each comparison")
    parser.add_argument("--json", type=Path, default=None, help="write the rows here as well")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the process's time: on a busy machine"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.cpu_time:
        global clock
        clock = time.process_time
    return chosen


def report(title: str, rows: list[Row], path: Path | None) -> None:
    """Print the table and write it as JSON."""
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    print(f"\n{title} ({machine})\n")
    head = ("work", "against", "ratio", "quartiles", "target", "reached", "ms", "MiB", "note")
    cells = [
        (
            row.work,
            row.against,
            f"{row.ratio:.3g}",
            row.spread,
            "" if row.target is None else f"{row.target:g}",
            row.verdict,
            f"{row.milliseconds:.3g}",
            "" if row.memory_mib is None else f"{row.memory_mib:.3g}",
            row.note,
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    for line in (head, tuple("-" * width for width in widths), *cells):
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
    if path is not None:
        record = {"title": title, "machine": machine, "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(record, indent=2) + "\n")
