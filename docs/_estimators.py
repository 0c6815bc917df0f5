"""Writes the tables of estimators.md: what the estimators declare, and with --bias the bias measured anew."""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Callable

import torch
from _blocks import ROOT, Blocks, table, write
from torch import Tensor

from igr import GumbelSoftmax, SoftmaxIGR
from igr import estimators as E

PAGE = "docs/estimators.md"


def declared() -> dict[str, E.Estimator]:
    """Every estimator, by how it is written."""
    prior = GumbelSoftmax(0.5, logits=torch.zeros(2))
    network = E.ControlNetwork((1, 2))
    return {
        "`Enumerate()`": E.Enumerate(),
        "`Pathwise()`": E.Pathwise(),
        "`StickingTheLanding(prior)`": E.StickingTheLanding(prior),
        "`StraightThrough()`": E.StraightThrough(),
        "`RelaxedStraightThrough()`": E.RelaxedStraightThrough(),
        "`RaoBlackwellStraightThrough()`": E.RaoBlackwellStraightThrough(),
        "`GappedStraightThrough()`": E.GappedStraightThrough(),
        "`ReinMax()`": E.ReinMax(),
        "`ZGR()`": E.ZGR(),
        "`MVE()`": E.MVE(),
        "`ReinMaxRao()`": E.ReinMaxRao(),
        "`Reinforce()`": E.Reinforce(),
        "`Reinforce(RunningMean())`": E.Reinforce(E.RunningMean()),
        "`Reinforce(LeaveOneOut(), S)`": E.Reinforce(E.LeaveOneOut(), 2),
        "`DisARM()`": E.DisARM(),
        "`CARMS(S)`": E.CARMS(2),
        "`DoubleControlVariate(S)`": E.DoubleControlVariate(2),
        "`Rodeo(S)`": E.Rodeo(2),
        "`Rebar()`": E.Rebar(),
        "`Relax(network)`": E.Relax(network),
        "`Relax(network, with_loss=False)`": E.Relax(network, with_loss=False),
        "`UnorderedSet(S)`": E.UnorderedSet(2),
    }


def row(name: str, estimator: E.Estimator) -> list[str]:
    """Of the table of what is declared."""
    each = estimator.evaluations_per_sample
    evaluations = {None: "one at every state, K^N", 1: "S"}.get(each, f"{each} S")
    if estimator.min_samples > 1:
        evaluations += f", S at least {estimator.min_samples}"
    where = estimator.needs.value
    if estimator.max_categories is not None:
        where += f", K = {estimator.max_categories}"
    objective = estimator.target.replace(" objective", "")
    return [name, objective, estimator.bias, evaluations, estimator.f_is.value, where]


def which() -> str:
    """What every estimator declares."""
    head = ("estimator", "objective", "bias", "calls of f", "f must be", "works for")
    return table(head, [row(name, estimator) for name, estimator in declared().items()])


def toy() -> str:
    """The polynomial toy, as `examples/polynomial_toy.py` makes it of its record."""
    examples = ROOT / "examples"
    names = runpy.run_path(str(examples / "polynomial_toy.py"))
    made: str = names["table"](json.loads((examples / "polynomial_toy.json").read_text()))
    return made


def blocks() -> Blocks:
    """What belongs between the marks of the page, but for the bias."""
    return {PAGE: {"which one": which(), "polynomial toy": toy()}}


# ---------------------------------------------------------------------------------------------------------------------
# bias

BIASED: dict[str, tuple[Callable[[], E.Estimator], tuple[float, ...]]] = {
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


def _losses() -> tuple[Callable[[Tensor], Tensor], ...]:
    w = torch.randn(2, 3, dtype=torch.float64)
    a, b = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    return (
        lambda z: (z * w).sum((-1, -2)),
        lambda z: ((z * w).sum((-1, -2)) - 0.4) ** 2,
        lambda z: torch.tanh(z.flatten(-2) @ a) @ b,
    )


def bias_table(draws: int) -> str:
    """Length of the bias over that of the exact gradient, and its standard error: a table for each family."""
    torch.manual_seed(0)
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
    losses = {name: _losses() for name in families}

    def mean(
        name: str, estimator: E.Estimator, t: float, f: Callable, n: int
    ) -> tuple[Tensor, Tensor]:
        family, parameters = families[name]
        leaf = parameters.expand(n, *parameters.shape).clone().requires_grad_()
        estimator(family(leaf, t), f).sum().backward()
        assert leaf.grad is not None  # noqa: S101
        return leaf.grad.mean(0), leaf.grad.var(0, correction=0) / n

    kinds = ("linear", "quadratic", "network")
    out: dict[str, list[list[str]]] = {name: [] for name in families}
    for label, (make, temperatures) in BIASED.items():
        estimator = make()
        for t in temperatures or (0.5,):
            few = estimator.needs is E.Needs.COUPLING or isinstance(estimator, E.ReinMaxRao)
            for name in families:
                cells = [f"`{label}`", f"{t}" if temperatures else "any"]
                for f in losses[name]:
                    exact, _ = mean(name, E.Enumerate(), t, f, 1)
                    found, error = mean(name, estimator, t, f, draws // 5 if few else draws)
                    size = exact.norm()
                    cells.append(
                        f"{(found - exact).norm() / size:.2f} ({error.sum().sqrt() / size:.2f})"
                    )
                out[name].append(cells)
    head = ("estimator", "temperature", *kinds)
    return "\n".join(f"{name}:\n\n{table(head, rows)}" for name, rows in out.items())


def main() -> None:
    """Put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bias", action="store_true", help="measure the bias anew")
    parser.add_argument("--draws", type=int, default=20_000)
    arguments = parser.parse_args()
    write(blocks())
    if arguments.bias:
        write({PAGE: {"bias": bias_table(arguments.draws)}})


if __name__ == "__main__":
    main()
