"""The polynomial toy of the field, by every estimator: a code of 128 variables of 4 categories, for a target of 0.45.

Minimises E[mean_n |w . b_n - 0.45|^p] for p = 1.5, 2 and 3 at once, as three runs side by side. w maps a category to a
number: four normal draws (seed 0), scaled to [0, 1], as in the code of Hooper and Shekhovtsov (2026). 8 samples a step,
10,000 steps of Adam at 1e-3; the loss is the mean over the samples of the last 200 steps, as there.

    python examples/polynomial_toy.py --out examples/polynomial_toy.json

trains, writes the record and prints the table; with `--steps 0` it makes the table from the record alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from igr import GumbelSoftmax, SoftmaxIGR
from igr import estimators as E

POWERS = (1.5, 2.0, 3.0)
RUNS, VARIABLES, CATEGORIES, SAMPLES, TARGET = len(POWERS), 128, 4, 8, 0.45

Make = Callable[[], E.Estimator]
ESTIMATORS: dict[str, Make] = {
    "StraightThrough": lambda: E.StraightThrough(SAMPLES, sample_axis=True),
    "RelaxedStraightThrough": lambda: E.RelaxedStraightThrough(SAMPLES, sample_axis=True),
    "RaoBlackwellStraightThrough(20)": lambda: E.RaoBlackwellStraightThrough(
        20, SAMPLES, sample_axis=True
    ),
    "GappedStraightThrough": lambda: E.GappedStraightThrough(num_samples=SAMPLES, sample_axis=True),
    "ReinMax, ZGR": lambda: E.ReinMax(1.0, SAMPLES, sample_axis=True),
    "ReinMax(1.3)": lambda: E.ReinMax(1.3, SAMPLES, sample_axis=True),
    "ReinMaxRao": lambda: E.ReinMaxRao(num_samples=SAMPLES, sample_axis=True),
    "MVE": lambda: E.MVE(SAMPLES, sample_axis=True),
    "Pathwise": lambda: E.Pathwise(SAMPLES, sample_axis=True),
    "Reinforce(LeaveOneOut())": lambda: E.Reinforce(E.LeaveOneOut(), SAMPLES, sample_axis=True),
    "CARMS": lambda: E.CARMS(SAMPLES, sample_axis=True),
    "DoubleControlVariate": lambda: E.DoubleControlVariate(
        SAMPLES, torch.ones(RUNS), sample_axis=True
    ),
    "Rodeo": lambda: E.Rodeo(SAMPLES, stack=(RUNS,), sample_axis=True),
}
FAMILIES = {"Gumbel-Softmax": CATEGORIES, "IGR": 2 * (CATEGORIES - 1)}
TOO_SLOW = {("IGR", "RaoBlackwellStraightThrough(20)")}
PUBLISHED = {
    "StraightThrough": (0.2272, 0.1480, 0.0688),
    "RelaxedStraightThrough": (0.0203, 0.0075, 0.0025),
    "RaoBlackwellStraightThrough(20)": (0.0156, 0.0045, 0.0008),
    "ReinMax, ZGR": (0.0152, 0.0043, 0.0007),
    "MVE": (0.0152, 0.0043, 0.0007),
}


def weights() -> Tensor:
    """The number of each category."""
    w = torch.randn(CATEGORIES, generator=torch.Generator().manual_seed(0))
    return (w - w.min()) / (w.max() - w.min())


def distribution(family: str, parameters: Tensor) -> GumbelSoftmax | SoftmaxIGR:
    """At temperature 0.1, which only the estimators of the relaxed sample see."""
    if family == "Gumbel-Softmax":
        return GumbelSoftmax(0.1, logits=parameters, validate_args=False)
    loc, log_scale = parameters.chunk(2, -1)
    return SoftmaxIGR(loc, log_scale.exp(), 0.1, validate_args=False)


def losses(z: Tensor) -> Tensor:
    """Samples (S, runs, variables, K) to losses (S, runs)."""
    power = torch.tensor(POWERS).unsqueeze(-1)
    return (z @ weights() - TARGET).abs().pow(power).mean(-1)


def train(family: str, make: Make, steps: int, seed: int = 1) -> tuple[list[float], float]:
    """Final loss for each p, and seconds."""
    torch.manual_seed(seed)
    parameters = torch.empty(RUNS, VARIABLES, FAMILIES[family]).uniform_(-0.01, 0.01)
    parameters.requires_grad_()
    estimator = make()
    optimizer = torch.optim.Adam([parameters, *estimator.parameters()], lr=1e-3, fused=True)
    start, last = time.perf_counter(), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = estimator(distribution(family, parameters), losses)
        loss.sum().backward()
        optimizer.step()
        if step >= steps - 200:
            # Pathwise's own loss is of the relaxed objective
            with torch.no_grad():
                hard = E.StraightThrough(SAMPLES, sample_axis=True)
                last.append(hard(distribution(family, parameters), losses))
    seconds = time.perf_counter() - start
    return torch.stack(last).mean(0).tolist(), seconds


def _written(losses: Sequence[float]) -> str:
    return " / ".join(f"{loss:.4f}" for loss in losses)


def table(record: dict) -> str:
    """Markdown, of what there is a record of."""
    families = [family for family in FAMILIES if family in record]
    head = ["estimator", "evaluations", *families, "published"]
    out = f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|\n"
    for name, make in ESTIMATORS.items():
        found = [record[family].get(name) for family in families]
        if any(found):
            cells = [f"`{name}`", str(make().evaluations)]
            cells += [_written(entry["loss"]) if entry else "" for entry in found]
            cells.append(_written(PUBLISHED.get(name, ())))
            out += f"| {' | '.join(cells)} |\n"
    best = float((weights() - TARGET).abs().min())
    floor = [
        "the best category alone",
        "",
        *[_written([best**p for p in POWERS])] * len(families),
        "",
    ]
    return out + f"| {' | '.join(floor)} |\n"


def main() -> None:
    """Run everything, write the record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", help="names of estimators")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=Path("polynomial_toy.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for family in arguments.families if arguments.steps else ():
        for name, make in ESTIMATORS.items():
            if (family, name) in TOO_SLOW or name not in (arguments.only or ESTIMATORS):
                continue
            loss, seconds = train(family, make, arguments.steps)
            entry = {"loss": [round(x, 5) for x in loss], "seconds": round(seconds, 1)}
            record.setdefault(family, {})[name] = entry
            print(
                f"{family:<15} {name:<32}",
                *(f"{x:.4f}" for x in loss),
                f"{seconds:6.1f} s",
                flush=True,
            )
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{table(record)}")


if __name__ == "__main__":
    main()
