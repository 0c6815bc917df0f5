"""The built documentation: as files, and in headless Chromium."""

from __future__ import annotations

import functools
import os
import posixpath
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import chromium

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built once by whichever process is the first to ask."""
    pytest.importorskip("mkdocs")
    filelock = pytest.importorskip("filelock")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with filelock.FileLock(folder / "site.lock"):
        if not (folder / "site").exists():
            env = {**os.environ, "IGR_RUN_EXAMPLES": "false", "NO_MKDOCS_2_WARNING": "1"}
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
            command += ["--site-dir", str(folder / "site")]
            done = subprocess.run(
                command, cwd=ROOT, env=env, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


class _Page(HTMLParser):
    """The anchors of a page, and the addresses it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors += [found[key] or "" for key in ("id", "name") if key in found]
        address = found.get("href") or found.get("src") or ""
        is_link = tag == "a" or found.get("rel") in ("next", "prev", "canonical")
        (self.links if is_link else self.loaded).append(address)
        self.loaded += [each.split()[0] for each in (found.get("srcset") or "").split(",") if each]


def test_every_link_and_every_anchor_is_there(site: Path) -> None:
    pages = {
        path.relative_to(site).as_posix(): _Page(path.read_text())
        for path in site.rglob("*.html")
        if path.name != "404.html"  # its links begin with the address it is served under
    }
    assert len(pages) > 20
    broken = []
    for name, page in pages.items():
        assert not [address for address in page.loaded if urlsplit(address).netloc], name
        for address in {*page.links, *page.loaded}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not address:
                continue
            target = name
            if parts.path:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), parts.path))
                target = unquote(target)
                if (site / target).is_dir():
                    target = posixpath.normpath(f"{target}/index.html")
            known = (site / target).exists()
            if known and parts.fragment and target in pages:
                known = unquote(parts.fragment) in pages[target].anchors
            if not known:
                broken.append((name, address))
    assert broken == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the documentation is served: search does not work from files."""
    handler = functools.partial(_Quiet, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.start(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


# How far the page scrolls sideways, and code that is cut.
TOO_WIDE = """[
  document.documentElement.scrollWidth - innerWidth,
  [...document.querySelectorAll(".highlight code:has(.n)")]
    .filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.textContent),
]"""


def test_pages_fit_phones_and_screens_and_load_nothing_from_elsewhere(
    site: Path, address: str, browser: chromium.Browser
) -> None:
    plots = sorted(site.glob("gallery/*/index.html"))[1:]  # one of them stands for all
    for path in sorted({*site.rglob("*.html")} - {*plots}):
        url = address + path.relative_to(site).as_posix()
        browser.open(url, 1280)
        assert browser.run(TOO_WIDE) == [0, []], url
        browser.resize(390)
        browser.settle()
        assert browser.run(TOO_WIDE) == [0, []], f"{url} on a phone"
        assert browser.complaints() == []
        sent = [e["params"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        urls = [params["request"]["url"] for params in sent]
        assert all(each.startswith((address, "data:", "blob:")) for each in urls)


@pytest.mark.parametrize(
    "words, found",
    [
        ("kl_divergence", "api/objectives/#igr.kl.kl_divergence"),
        ("igr.kl_divergence", "api/objectives/#igr.kl.kl_divergence"),
        ("SoftmaxIGR", "api/distributions/#igr.distributions.SoftmaxIGR"),
        ("SoftmaxIGRHead", "api/nn/#igr.nn.heads.SoftmaxIGRHead"),
        ("igr.nn", "api/nn/#igr.nn.heads"),
        ("straight_through", "api/distributions/#igr.distributions.Relaxation.straight_through"),
        ("gumbel_softmax", "api/functional/#igr.functional.gumbel_softmax"),
    ],
)
def test_names_are_found(address: str, browser: chromium.Browser, words: str, found: str) -> None:
    browser.open(address, 1280)
    browser.run("document.querySelector('.md-search__input').focus()")
    browser.call("Input.insertText", text=words)
    links = """[...document.querySelectorAll(".md-search-result__list a")].map(
      (link) => new URL(link.href)).map((url) => url.pathname.slice(1) + url.hash)"""
    end = time.monotonic() + 20
    while not (results := browser.run(links)) and time.monotonic() < end:
        time.sleep(0.05)
    assert found in results


def test_light_and_dark_are_the_readers_choice(address: str, browser: chromium.Browser) -> None:
    scheme = "document.body.dataset.mdColorScheme"
    toggle = """[...document.querySelectorAll("[data-md-component=palette] label")].find(
      (label) => !label.hidden).click()"""
    for system, shown in (("dark", "slate"), ("light", "default")):
        browser.open(address, 1280, scheme=system)
        assert browser.run(scheme) == shown
    seen = []
    for _ in range(3):
        browser.run(toggle)
        browser.settle()
        seen.append(browser.run(scheme))
    assert seen == ["default", "slate", "default"]  # light, dark, as the system has it


def test_methods_of_bases_stand_where_a_user_looks(site: Path) -> None:
    text = (site / "api/distributions/index.html").read_text()
    entry = text.partition('id="igr.distributions.SoftmaxIGR"')[2]
    entry = entry.partition('id="igr.distributions.StickBreakingIGR"')[0]
    for name in ("Relaxation.hard", "Relaxation.straight_through", "IGR.from_probs"):
        assert f'href="#igr.distributions.{name}"' in entry
    assert "-&gt;" in entry
    assert "docs/stable/tensors.html#torch.Tensor" in entry
    head = (site / "api/nn/index.html").read_text()
    head = head.partition('id="igr.nn.heads.SoftmaxIGRHead"')[2]
    assert 'href="#igr.nn.heads.Head.prior"' in head.partition('id="igr.nn.heads.StickB')[0]
