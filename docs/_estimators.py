"""Writes the tables of estimators.md: what the estimators declare, and what was measured; the tests compare."""

from __future__ import annotations

import json
import runpy

import torch
from _blocks import ROOT, Blocks, table, write

from igr import GumbelSoftmax
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


def bias() -> str:
    """Bias of the estimators and its standard error, a table for each family, as `benchmarks/bias.py` measured it."""
    kinds = ("linear", "quadratic", "network")
    head = ("estimator", "temperature", *kinds)
    tables: dict[str, list[list[str]]] = {}
    for each in json.loads((ROOT / "benchmarks" / "bias.json").read_text()):
        temperature = each["temperature"] or "any"
        cells = [f"{bias:.2f} ({error:.2f})" for bias, error in (each[kind] for kind in kinds)]
        tables.setdefault(each["family"], []).append(
            [f"`{each['estimator']}`", f"{temperature}", *cells]
        )
    return "\n".join(f"{name}:\n\n{table(head, rows)}" for name, rows in tables.items())


def blocks() -> Blocks:
    """What belongs between the marks of the page."""
    return {PAGE: {"which one": which(), "polynomial toy": toy(), "bias": bias()}}


if __name__ == "__main__":
    write(blocks())
