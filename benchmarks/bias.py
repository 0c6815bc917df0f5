"""Bias of the gradient estimators against the exact gradient, by temperature and objective.

`python benchmarks/bias.py` writes `bias.json`, from which the documentation quotes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from igr import GumbelSoftmax, SoftmaxIGR
from igr import estimators as E

RECORD = Path(__file__).with_suffix(".json")
DRAWS, FEW = 20_000, 4_000  # few where there are conditional draws
OBJECTIVES = ("linear", "quadratic", "network")
ESTIMATORS: dict[str, tuple[Callable[[], E.Estimator], tuple[float, ...]]] = {
    "Pathwise": (E.Pathwise, (0.1, 0.5, 1.0)),
    "RelaxedStraightThrough": (E.RelaxedStraightThrough, (0.1, 0.5, 1.0)),
    "RaoBlackwellStraightThrough": (E.RaoBlackwellStraightThrough, (0.1, 0.5, 1.0)),
    "StraightThrough": (E.StraightThrough, ()),
    "GappedStraightThrough": (E.GappedStraightThrough, ()),
    "GappedStraightThrough(temperature=0.5)": (lambda: E.GappedStraightThrough(1.0, 0.5), ()),
    "ReinMax": (E.ReinMax, ()),
    "ReinMax(1.3)": (lambda: E.ReinMax(1.3), ()),
    "ZGR": (E.ZGR, ()),
    "MVE": (E.MVE, ()),
    "ReinMaxRao(0.5)": (lambda: E.ReinMaxRao(0.5), ()),
    "ReinMaxRao(1.0)": (lambda: E.ReinMaxRao(1.0), ()),
}


def objectives() -> tuple[Callable[[Tensor], Tensor], ...]:
    """Of z in (..., 2, 3): two variables of three categories."""
    w = torch.randn(2, 3, dtype=torch.float64)
    a, b = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    return (
        lambda z: (z * w).sum((-1, -2)),
        lambda z: ((z * w).sum((-1, -2)) - 0.4) ** 2,
        lambda z: torch.tanh(z.flatten(-2) @ a) @ b,
    )


def measure() -> list[dict[str, object]]:
    """Length of the bias over that of the exact gradient, and its standard error, for each objective."""
    families = {
        "IGR": (
            lambda p, t: SoftmaxIGR(p[..., :2], p[..., 2:].exp(), t),
            torch.randn(2, 4, dtype=torch.float64) * 0.5,
        ),
        "Gumbel-Softmax": (
            lambda p, t: GumbelSoftmax(t, logits=p),
            torch.randn(2, 3, dtype=torch.float64),
        ),
    }
    losses = {name: objectives() for name in families}

    def mean(
        name: str, estimator: E.Estimator, t: float, f: Callable, n: int
    ) -> tuple[Tensor, Tensor]:
        family, parameters = families[name]
        leaf = parameters.expand(n, *parameters.shape).clone().requires_grad_()
        estimator(family(leaf, t), f).sum().backward()
        assert leaf.grad is not None  # noqa: S101
        return leaf.grad.mean(0), leaf.grad.var(0, correction=0) / n

    rows: list[dict[str, object]] = []
    for label, (make, temperatures) in ESTIMATORS.items():
        estimator = make()
        few = estimator.needs is E.Needs.COUPLING or isinstance(estimator, E.ReinMaxRao)
        for t in temperatures or (0.5,):
            for name in families:
                row = {
                    "family": name,
                    "estimator": label,
                    "temperature": t if temperatures else None,
                }
                for kind, f in zip(OBJECTIVES, losses[name], strict=True):
                    exact, _ = mean(name, E.Enumerate(), t, f, 1)
                    found, error = mean(name, estimator, t, f, FEW if few else DRAWS)
                    size = exact.norm()
                    bias, deviation = (found - exact).norm() / size, error.sum().sqrt() / size
                    row[kind] = [round(bias.item(), 5), round(deviation.item(), 5)]
                rows.append(row)
    return rows


def main() -> None:
    """Measure and write the record."""
    torch.manual_seed(0)
    RECORD.write_text(json.dumps(measure(), indent=1) + "\n")


if __name__ == "__main__":
    main()
