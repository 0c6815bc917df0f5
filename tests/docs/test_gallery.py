"""The scripts of the gallery run, are short, and draw one picture each, with names on its axes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "gallery"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_draws_one_picture_that_can_be_read(name: str) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    plt.close("all")
    text = (FOLDER / f"{name}.py").read_text()
    exec(compile(text, f"{name}.py", "exec"), {"__name__": name})
    (number,) = plt.get_fignums()
    figure = plt.figure(number)
    for axes in figure.axes:
        assert (axes.get_xlabel() and axes.get_ylabel()) or (axes.get_title() and not axes.axison)
        assert axes.has_data()
    figure.canvas.draw()
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_is_short_and_says_what_is_seen(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    tree = ast.parse(text)
    title, _, seen = (ast.get_docstring(tree) or "").partition("\n\n")
    assert title.startswith("# ")
    assert 0 < seen.count(". ") + 1 < 5
    after = text.splitlines()[tree.body[0].end_lineno :]
    assert len([line for line in after if line.strip()]) <= 25


def test_there_are_enough() -> None:
    assert 12 <= len(NAMES) <= 15
