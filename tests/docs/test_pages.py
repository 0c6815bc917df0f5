"""What the README and the documentation print runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", "docs/index.md", "docs/estimators.md", "docs/priors.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_one_after_the_other(page: str) -> None:
    pytest.importorskip("sklearn", reason="needs the extra `experiments`")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(re.sub(r"range\(2000\)", "range(3)", block), names)


def test_every_page_with_blocks_is_run() -> None:
    """Here, or in the tests of what the page is about."""
    elsewhere = {"docs/countable.md", "docs/modules.md", "docs/pyro.md", "docs/development.md"}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in (*pages, "README.md") if blocks(page)} == {*PAGES, *elsewhere}


@pytest.mark.slow
def test_the_readmes_autoencoder_learns() -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(blocks("README.md")[1], names)
    assert float(names["loss"].detach()) < 24  # type: ignore[attr-defined]  # 44 for independent coin flips
