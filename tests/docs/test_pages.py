"""What the README and the documentation print runs as printed."""

from __future__ import annotations

import importlib
import re
import socket
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
TEXTS = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    )
]
# Run in the tests of what they are about.
ELSEWHERE = {"docs/countable.md", "docs/modules.md", "docs/pyro.md", "docs/development.md"}
RESULT = re.compile(
    r"^(\S[^#=\n]*?)  # ((?:tensor|torch\.Size)\(.*?\)|True)(?=[:,;]|$)", re.MULTILINE
)


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page) and page not in ELSEWHERE])
def test_blocks_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="needs the extra `experiments`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # quick
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    for name, value in {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "RANK": "0",
        "WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(re.sub(r"range\(2000\)", "range(3)", block), names)
        for expression, result in RESULT.findall(block):
            assert repr(eval(expression, names)) == result, expression


@pytest.mark.parametrize("name", ["_reproduction", "_measured"])
def test_figures_are_those_of_the_records(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python docs/_reproduction.py` and `docs/_measured.py` write them."""
    pytest.importorskip("igr.experiments.paper.results")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pages, written = importlib.import_module(name), importlib.import_module("_blocks").written
    for page, parts in pages.blocks().items():
        text = (ROOT / page).read_text()
        assert written(text, parts) == text, page
    for page, sentences in pages.said().items():
        prose = " ".join((ROOT / page).read_text().split())
        for sentence in sentences:
            assert sentence in prose, page


@pytest.mark.slow
def test_the_readmes_autoencoder_learns() -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(blocks("README.md")[1], names)
    images, decoder, code = (names[name] for name in ("images", "decoder", "code"))
    outputs = decoder(code.flatten(-2))  # type: ignore[attr-defined, operator]
    p_x = torch.distributions.Bernoulli(logits=outputs)
    assert p_x.log_prob(images).sum(-1).mean() > -16  # -24.4 for the mean image, without a code


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
