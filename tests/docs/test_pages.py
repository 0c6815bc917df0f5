"""What the README and the documentation print runs as printed."""

from __future__ import annotations

import importlib.util
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


def test_figures_of_results_are_those_of_the_records() -> None:
    """`python docs/_reproduction.py` writes them."""
    pytest.importorskip("igr.experiments.paper.results")
    spec = importlib.util.spec_from_file_location("_reproduction", ROOT / "docs/_reproduction.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(pages := importlib.util.module_from_spec(spec))
    for page, parts in pages.blocks().items():
        text = (ROOT / page).read_text()
        assert pages.written(text, parts) == text, page


@pytest.mark.slow
def test_the_readmes_autoencoder_learns() -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(blocks("README.md")[1], names)
    assert float(names["loss"].detach()) < 24  # type: ignore[attr-defined]  # 44 for independent coin flips


TEXTS = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    )
]
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What links within a page lead to on a code host: headings, and what is named by hand."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="(.*?)">', text))


@pytest.mark.parametrize("page", TEXTS)
def test_page_reads_on_a_code_host(page: str) -> None:
    text = (ROOT / page).read_text()
    prose = CODE.sub("", text)
    for ours in (r"\{#", r":math:", r"^!!! ", r"^\?\?\? ", r"^=== ", r"^:::", r"\{ *[.:]"):
        assert not re.search(ours, prose, re.MULTILINE), ours
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)", prose):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
