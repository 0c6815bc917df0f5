"""How close `igr.match` comes: total variation distance for each family, target and meaning of (14).

    python benchmarks/matching.py [--temperature 0.1] [--quick] [--json FILE]

"hard" is exact, or Monte Carlo with a standard error for IGR-Planar; "mean" is over 65,536 quasi-random points, or as
many random ones for Gumbel-Softmax and CountableIGR, and has a standard error.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributions import Binomial, NegativeBinomial, Poisson

import igr
from igr.priors import OutOfReachWarning, distance, match

TARGETS: dict[str, tuple[Any, int | None]] = {
    "ten categories": (torch.tensor([10, 1, 5, 1, 10, 10, 1, 6, 1, 1]) / 46, None),
    "Binomial(12, 0.3)": (Binomial(12, torch.tensor(0.3)), None),
    "Poisson(50)": (Poisson(torch.tensor(50.0)), 100),
    # The paper's, whose pictures have the mean at 33; torch counts what has probability `probs`.
    "NegativeBinomial(50, 0.6), mean 33.3": (NegativeBinomial(50, probs=torch.tensor(0.4)), 100),
    "NegativeBinomial(50, 0.6), mean 75": (NegativeBinomial(50, probs=torch.tensor(0.6)), 160),
}


def planar(num_categories: int) -> Callable[..., igr.PlanarIGR]:
    """IGR-Planar with two random flows, held fixed."""
    generator = torch.Generator().manual_seed(0)
    size = num_categories - 1
    flow = [
        igr.Planar(
            torch.randn(size, generator=generator) / size**0.5,
            torch.randn(size, generator=generator) / size**0.5,
            torch.randn((), generator=generator),
        )
        for _ in range(2)
    ]
    return functools.partial(igr.PlanarIGR, flow=flow)


def measure(temperature: float, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for name, (target, categories) in TARGETS.items():
        if quick and categories is not None:
            continue
        size = categories or (13 if isinstance(target, Binomial) else 10)
        families: dict[str, tuple[Any, int | None]] = {
            "SoftmaxIGR": (igr.SoftmaxIGR, categories),
            "SharpStickBreakingIGR": (igr.SharpStickBreakingIGR, categories),
            "StickBreakingIGR (18)": (igr.StickBreakingIGR, categories),
            "PlanarIGR": (planar(size), categories),
            "GumbelSoftmax": (igr.GumbelSoftmax, categories),
            "CountableIGR": (igr.CountableIGR, None),
        }
        for family, (make, num_categories) in families.items():
            for how in ("hard", "mean"):
                start = time.perf_counter()
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", OutOfReachWarning)
                    q = match(target, make, temperature, how, num_categories=num_categories)
                seconds = time.perf_counter() - start
                found = distance(q, target, how)
                error = found.standard_error
                rows.append(
                    {
                        "target": name,
                        "family": family,
                        "how": how,
                        "total_variation": float(found.total_variation),
                        "standard_error": None if error is None else float(error),
                        "categories": q.num_categories,
                        "seconds": round(seconds, 2),
                        "out_of_reach": any("out of reach" in str(w.message) for w in caught),
                    }
                )
                show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    error = row["standard_error"]
    value = f"{row['total_variation']:.1e}" + ("" if error is None else f" (se {error:.0e})")
    note = "out of reach" if row["out_of_reach"] else ""
    print(
        f"{row['target']:38}{row['family']:24}{row['how']:6}{value:22}{row['categories']:>5}"
        f"{row['seconds']:>8.1f} s  {note}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--quick", action="store_true", help="finite targets only")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = measure(arguments.temperature, arguments.quick)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
