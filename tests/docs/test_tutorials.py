"""The tutorials run, here at a smaller scale, and their pages say what their records say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent.parent / "examples" / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def script(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text()


def record(name: str) -> dict[str, list[dict[str, float]]]:
    return json.loads((FOLDER / f"{name}.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_records_what_was_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in {"sklearn", *re.findall(r"^import (pyro|zuko)$", script(name), re.MULTILINE)}:
        pytest.importorskip(needed)
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    plt.close("all")
    # zuko turns validation off as it is imported.
    validate = torch.distributions.Distribution._validate_args
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validate)
    text, count = re.subn(r"num_steps: int = \d+", "num_steps: int = 5", script(name))
    assert count
    state: dict[str, Any] = {"__name__": name}
    exec(compile(text, f"{name}.py", "exec"), state)
    assert len(plt.get_fignums()) == 1
    for axes in plt.gcf().axes:
        labels = (axes.get_xlabel(), axes.get_ylabel(), axes.get_title())
        assert any(labels) or not axes.axison
    plt.close("all")
    found = state["record"](0)
    assert {row: set(values) for row, values in found.items()} == {
        row: set(runs[0]) for row, runs in record(name).items()
    }
    assert {"Gumbel-Softmax", "IGR"} <= set(found)
    assert all(isinstance(value, (int, float)) for row in found.values() for value in row.values())


@pytest.mark.parametrize("name", NAMES)
def test_page_has_the_table_of_its_record(name: str) -> None:
    maker = runpy.run_path(str(FOLDER.parent / "record.py"))
    assert maker["MARK"] + maker["table"](record(name)) + "#" in script(name)
    assert {len(runs) for runs in record(name).values()} == {5}


@pytest.mark.parametrize("name", NAMES)
def test_is_short(name: str) -> None:
    lines = [line for line in script(name).splitlines() if line and not line.startswith("# |")]
    assert 60 <= len(lines) <= 130
