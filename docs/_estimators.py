"""Writes the table "Which one" of estimators.md from what the estimators declare: `python docs/_estimators.py`."""

from __future__ import annotations

from pathlib import Path

from igr import GumbelSoftmax
from igr import estimators as E

PAGE = Path(__file__).parent / "estimators.md"
BEGIN, END = "<!-- which one: begin -->\n", "<!-- which one: end -->\n"


def declared() -> dict[str, E.Estimator]:
    """Every estimator, by how it is written."""
    import torch

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
        "`Rebar()`": E.Rebar(),
        "`Relax(network)`": E.Relax(network),
        "`Relax(network, with_loss=False)`": E.Relax(network, with_loss=False),
        "`UnorderedSet(S)`": E.UnorderedSet(2),
    }


def row(name: str, estimator: E.Estimator) -> str:
    """One line of the table."""
    each = estimator.evaluations_per_sample
    evaluations = {None: "one at every state, K^N", 1: "S"}.get(each, f"{each} S")
    if estimator.min_samples > 1:
        evaluations += f", S at least {estimator.min_samples}"
    where = estimator.needs.value
    if estimator.max_categories is not None:
        where += f", K = {estimator.max_categories}"
    cells = (name, estimator.target, estimator.bias, evaluations, estimator.f_is.value, where)
    return f"| {' | '.join(cells)} |\n"


def table() -> str:
    """The table, in Markdown."""
    head = (
        "estimator",
        "target of its gradient",
        "bias",
        "evaluations of f",
        "f must be",
        "works for",
    )
    rows = [row(name, estimator) for name, estimator in declared().items()]
    return f"| {' | '.join(head)} |\n{'| --- ' * len(head)}|\n{''.join(rows)}"


def main() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
