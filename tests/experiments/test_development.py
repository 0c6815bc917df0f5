"""The skeletons of docs/development.md, each as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from igr.experiments import data
from igr.experiments.models import families
from igr.experiments.paper import specs
from igr.experiments.paper.plan import Options, make_plan
from igr.experiments.training import objectives
from igr.experiments.training.config import RunConfig
from igr.experiments.training.evaluation import evaluate
from igr.experiments.training.trainer import StackTrainer

PAGE = Path(__file__).parents[2] / "docs" / "development.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs a checkout")


def blocks(section: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").split(f"### {section}\n")[1].split("\n### ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def pasted(section: str) -> tuple[dict[str, Any], list[str]]:
    """What the first block of a section defines, and the other blocks."""
    first, *others = blocks(section)
    names: dict[str, Any] = {"__name__": "pasted"}
    exec(compile(first, section, "exec", dont_inherit=True), names)
    return names, others


def train(**settings: object) -> StackTrainer:
    run = RunConfig(num_variables=3, num_categories=4, batch_size=50, **settings)  # type: ignore[arg-type]
    trainer = StackTrainer([run], data.load("digits").train[:100])
    assert trainer.train_epoch().isfinite().all()
    return trainer


def test_an_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    names, (line,) = pasted("An estimator")
    ((name, make),) = eval(f"{{{line}}}", names).items()
    monkeypatch.setitem(objectives.ESTIMATORS, name, make)
    train(estimator=name)
    assert issubclass(names["Doubled"], torch.nn.Module)


def test_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    names, _ = pasted("A family")
    monkeypatch.setitem(families.FAMILIES, "cold", names["ColdFamily"])
    model = train(family="cold").model
    with torch.no_grad():
        assert evaluate(model, data.load("digits").test[:5], samples=5).bound < 0


def test_a_data_set() -> None:
    names, _ = pasted("A data set")
    stripes = data.load("stripes", sources={"stripes": names["Stripes"]()})
    assert stripes.train.shape == stripes.test.shape == (1000, 64)
    assert not torch.equal(stripes.train, stripes.test)


def test_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = blocks("A row of a table")
    (row,) = eval(f"[{line}]", {"Row": specs.Row})
    table = specs.TABLES["table1"]
    longer = {**specs.TABLES, "table1": type(table)(**{**vars(table), "rows": (*table.rows, row)})}
    monkeypatch.setattr("igr.experiments.paper.plan.TABLES", longer)
    plan = make_plan(["table1"], "smoke", Options(rows=(row.name,)))
    assert [entry.problem for entry, _ in plan.entries] == [None] * 3
    assert [cell.temperatures for _, cell in plan.entries] == [(0.03,)] * 3
