"""The programs of `examples/`: they run, stay short, and their records are what the page about modules says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NAMES = ("mixture_of_experts", "discrete_vae")


def record(name: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads((ROOT / "examples" / f"{name}.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_program_is_short_and_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) < 60
    assert "squeeze" not in text.replace("unsqueeze", "squeeze")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = __import__(name)
    monkeypatch.delitem(sys.modules, name)
    found = module.run(module.igr.nn.SoftmaxIGRHead, 0, 5)
    assert found.keys() == record(name)["SoftmaxIGRHead"][0].keys()


@pytest.mark.parametrize("name", NAMES)
def test_page_has_what_is_in_the_records(name: str) -> None:
    page = (ROOT / "docs" / "modules.md").read_text()
    measure = "bound" if name == "discrete_vae" else "accuracy"
    for family, runs in record(name).items():
        assert [run["seed"] for run in runs] == list(range(5))
        values = [run[measure] for run in runs]
        row = re.search(rf"^\| `{name}` \| `{family}` \| (.*?) \|", page, flags=re.MULTILINE)
        assert row is not None, family
        digits = 1 if measure == "bound" else 3
        mean, low, high = sum(values) / 5, min(values), max(values)
        assert row[1] == f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
