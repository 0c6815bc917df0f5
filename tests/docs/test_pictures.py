"""The committed pictures of the pages show what the library gives now."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
DOCS = Path(__file__).parent.parent.parent / "docs"
spec = importlib.util.spec_from_file_location("_pictures", DOCS / "_pictures.py")
assert spec is not None
assert spec.loader is not None
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)

SHADE = re.compile(r"data:image/png;base64,([^\"]+)")
NUMBER = re.compile(r"(?<![\w#])-?\d+(?:\.\d+)?")


PROBABILITY = re.compile(r">(\d\.\d\d)<")


def parts(svg: str) -> tuple[str, np.ndarray, np.ndarray, list[np.ndarray]]:
    """What it says, the numbers in it, those that are probabilities, and the levels of its densities."""
    levels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int)
        for png in SHADE.findall(svg)
    ]
    svg = SHADE.sub("", svg)
    numbers, probs = (
        np.array([float(x) for x in found.findall(svg)]) for found in (NUMBER, PROBABILITY)
    )
    return NUMBER.sub("#", svg), numbers, probs, levels


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture_is_what_the_library_gives(name: str) -> None:
    old, new = (
        parts(svg)
        for svg in (
            (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8"),
            pictures.PICTURES[name](),
        )
    )
    assert old[0] == new[0], "run python docs/_pictures.py"
    np.testing.assert_allclose(old[1], new[1], rtol=0, atol=0.11)  # tenths of a pixel
    np.testing.assert_allclose(old[2], new[2], rtol=0, atol=0.011)  # hundredths
    assert len(old[3]) == len(new[3])
    for before, now in zip(old[3], new[3], strict=True):
        assert np.abs(before - now).max() <= 1  # a value on the edge of a level
        assert (before != now).mean() < 0.001
