"""docs/play.html in headless Chromium, against the library."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import chromium
import igr

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "play.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """The page, in a wide window."""
    with chromium.start(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(PAGE.as_uri(), 1280)
        yield browser


@pytest.fixture
def page(browser: chromium.Browser) -> Iterator[chromium.Browser]:
    """The same page at its start, which must not complain while a test uses it."""
    browser.run("$('compare').checked || $('compare').click(); $('reset').click()")
    browser.settle()
    yield browser
    assert browser.complaints() == []


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


RANGES = {
    "temperature": (0.05, 5.0),
    "loc1": (-5.0, 5.0),
    "loc2": (-5.0, 5.0),
    "scale1": (0.1, 10.0),
    "scale2": (0.1, 10.0),
    "delta": (0.05, 20.0),
    "strength": (-2.0, 4.0),
    "angle": (-180.0, 180.0),
    "logit1": (-5.0, 5.0),
    "logit2": (-5.0, 5.0),
    "logit3": (-5.0, 5.0),
}
START: dict[str, float] = dict.fromkeys(RANGES, 0) | {
    "temperature": 0.5,
    "scale1": 1,
    "scale2": 1,
    "delta": 1,
    "strength": 3,
    "angle": 135,
}
FORMS = (
    "SoftmaxIGR",
    "PlanarIGR",
    "GumbelSoftmax",
    "StickBreakingIGR",
    "SharpStickBreakingIGR",
    "VertexInterpolation",
)


def make_settings() -> list[dict[str, float]]:
    """Where the page starts, corners of the ranges, and settings between them."""
    between = torch.rand(7, len(RANGES), generator=torch.Generator().manual_seed(0)).tolist()
    corners: list[dict[str, float]] = [
        {"scale1": 0.1, "scale2": 10.0, "temperature": 0.05, "angle": 0},
        {"scale1": 10.0, "scale2": 0.1, "temperature": 5.0, "angle": 45},
        {"loc1": 5.0, "loc2": -5.0, "scale1": 0.1, "scale2": 0.1, "strength": -2.0},
    ]
    return [START, *(START | corner for corner in corners)] + [
        {
            name: round(low * (high / low) ** x if low > 0 else low + (high - low) * x, 2)
            for x, (name, (low, high)) in zip(row, RANGES.items(), strict=True)
        }
        for row in between
    ]


SETTINGS = make_settings()


def ask(page: chromium.Browser, function: str, *args: Any) -> Any:
    """What a function returns in the page."""
    # JSON has no -inf, so it comes as null.
    given = ", ".join(json.dumps(arg) for arg in args)
    return json.loads(page.run(f"JSON.stringify(({function})({given}))"))


def library(page: chromium.Browser, form: str, params: dict[str, float]) -> Any:
    """The distribution that the page's line of Python makes."""
    return eval(ask(page, "igr.python", form, params), {"igr": igr, "torch": torch})


def test_forms_and_ranges_are_those_tested(page: chromium.Browser) -> None:
    assert page.run("igr.names") == list(FORMS)
    assert page.run("igr.state.common") == START
    ends = "Object.entries(sliders).map(([name, s]) => [name, [s.value(0), s.value(s.count)]])"
    assert {name: tuple(pair) for name, pair in page.run(ends)} == RANGES


def test_links_lead_to_pages_and_names_that_exist(page: chromium.Browser) -> None:
    links = page.run("[...document.links].map((link) => link.getAttribute('href'))")
    assert len(links) == 1 + len(FORMS)
    for link in links[1:]:
        path, _, anchor = link.partition("/#")
        source = (DOCS / f"{path}.md").read_text(encoding="utf-8")
        module, _, name = anchor.rpartition(".")
        assert f"::: {module}" in source
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_log_densities_are_the_librarys(page: chromium.Browser, form: str) -> None:
    anywhere = torch.distributions.Dirichlet(torch.ones(3)).sample((50,)).log()
    function = """(form, p, points) => points.map((z) => igr.logProb(form, p, z))"""
    for params in SETTINGS:
        q = library(page, form, params)
        points = torch.cat([q.rsample_log((50,)), anywhere])
        want = q.log_prob(log_value=points)
        got = ask(page, function, form, params, points.tolist())
        got = torch.tensor([-math.inf if value is None else value for value in got])
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_samples_and_categories_are_the_librarys_for_the_same_noise(
    page: chromium.Browser, form: str
) -> None:
    kind = "gumbel" if form == "GumbelSoftmax" else "gaussian"
    noise = ask(page, "(kind) => igr.noise(3, 100)[kind]", kind)
    function = """(form, p, noise) => {
      const points = noise.map((e) => igr.sample(form, p, e));
      return [points, points.map((z) => igr.hard(form, p, z))];
    }"""
    for params in SETTINGS:
        q = library(page, form, params)
        log_z, category = map(torch.tensor, ask(page, function, form, params, noise))
        e = torch.tensor(noise)
        if kind == "gumbel":
            want = torch.log_softmax((q.logits + e) / q.temperature, -1)
        else:
            want = q.transform.forward_stable(q.loc + q.scale * e)
        torch.testing.assert_close(log_z, want, rtol=1e-9, atol=1e-9)
        assert torch.equal(category, q.hard(log_value=want).argmax(-1))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_probabilities_are_the_librarys(page: chromium.Browser, form: str) -> None:
    for params in SETTINGS:
        q = library(page, form, params)
        got = torch.tensor(ask(page, "igr.probs", form, params), dtype=torch.float64)
        assert got.min() > -1e-12
        torch.testing.assert_close(got.sum(), torch.ones(()), rtol=0, atol=1e-9)
        if form not in ("PlanarIGR", "VertexInterpolation"):
            want, tolerance = q.discrete().probs, 1e-6
        else:
            # The library draws here. A rule of n by n cells of equal mass errs only in the cells that the edge of a
            # category goes through: at most 2 n for each of two edges that rise or fall, of mass 1 / n^2.
            n = 400
            u = (torch.arange(n) + 0.5) / n
            e = torch.cartesian_prod(u, u).mul(2).sub(1).erfinv() * math.sqrt(2)
            log_z = q.transform.forward_stable(q.loc + q.scale * e)
            want, tolerance = q.hard(log_value=log_z).mean(0), 4 / n
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("double")
def test_probabilities_behind_a_flow_are_integrals_of_the_librarys_density(
    page: chromium.Browser,
) -> None:
    # Softmax++ at delta 1 and temperature 1: category k is where z_k is the largest, a wedge at the origin of
    # x = (log z_1 / z_3, log z_2 / z_3), whose density is q(z) z_1 z_2 z_3.
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(300))
    r, r_weights = 15 * (nodes + 1), 15 * weights
    wedges = [(-0.5, 0.25), (0.25, 1.0), (1.0, 1.5)]  # in multiples of pi
    for changed in ({}, {"angle": 20.0, "loc1": 1.0}, {"strength": -0.5, "scale2": 2.0}):
        params = START | {"temperature": 1} | changed
        q = library(page, "PlanarIGR", params)
        got = ask(page, "igr.probs", "PlanarIGR", params)
        for k, (low, high) in enumerate(wedges):
            phi = math.pi * (low + (high - low) * (nodes + 1) / 2)
            x = r[:, None, None] * torch.stack([phi.cos(), phi.sin()], -1)
            log_z = torch.nn.functional.pad(x, (0, 1)).log_softmax(-1)
            density = (q.log_prob(log_value=log_z) + log_z.sum(-1)).exp()
            mass = (r_weights * r) @ density @ weights * math.pi * (high - low) / 2
            assert got[k] == pytest.approx(float(mass), abs=1e-6)


@pytest.mark.usefixtures("double")
def test_probabilities_of_interpolation_are_integrals_over_the_other_piece(
    page: chromium.Browser,
) -> None:
    # The second piece is over half where y_2 > 0 and y_1 < -2 artanh(exp(-y_2)).
    for params in SETTINGS:
        first, second = (stats.norm(params[f"loc{k}"], params[f"scale{k}"]) for k in (1, 2))

        def integrand(u: float, first=first, second=second) -> float:
            y = second.isf(u)
            return first.cdf(-2 * math.atanh(math.exp(-y))) if y > 0 else 0.0

        two, error = integrate.quad(integrand, 0, second.sf(0), epsabs=1e-9, limit=500)
        assert error < 1e-6
        got = ask(page, "igr.probs", "VertexInterpolation", params)
        assert got == pytest.approx([first.sf(0), two, first.cdf(0) - two], abs=1e-6)


def test_noise_is_gaussian_and_gumbel_and_repeats(page: chromium.Browser) -> None:
    # Kolmogorov and Smirnov's test four times over: wrong by chance in 4 of 100,000 seeds.
    draws = ask(page, "() => [igr.noise(1, 5000), igr.noise(1, 5000), igr.noise(2, 5000)]")
    assert draws[0] == draws[1]
    for noise in draws[1:]:
        for kind, distribution in (("gaussian", stats.norm), ("gumbel", stats.gumbel_r)):
            values = np.array(noise[kind])
            assert stats.kstest(values.ravel(), distribution.cdf).pvalue > 1e-5
            # Coordinates of one draw, and draws of one seed and the next, have nothing to do with each other.
            columns = np.concatenate([values[:, :2], np.array(draws[0][kind])[:, :1]], 1)
            if noise is draws[2]:
                correlation = np.corrcoef(columns.T)[np.triu_indices(3, 1)]
                assert np.abs(correlation).max() < 5 / math.sqrt(len(values))


PICTURES = """Object.fromEntries(igr.names.map((name) => {
  const { canvas } = panels[name], { width, height } = canvas;
  const pixels = new Int32Array(canvas.getContext("2d").getImageData(0, 0, width, height).data.buffer);
  return [name, pixels.reduce((hash, pixel) => Math.imul(hash, 31) + pixel | 0, 1)];
}))"""
NUMBERS = "[...document.querySelectorAll('.number')].map((node) => node.textContent)"
TAKES = "Object.fromEntries(igr.names.map((n) => [n, forms[n].sliders]))"


def move(page: chromium.Browser, slider: str, position: int) -> None:
    page.run(f"$('{slider}').value = {position}; $('{slider}').dispatchEvent(new Event('input'))")
    page.settle()


def test_one_slider_moves_every_picture_that_depends_on_it(page: chromium.Browser) -> None:
    takes = page.run(TAKES)
    before = page.run(PICTURES)
    for name in RANGES:
        old = page.run(f"$('all-{name}').value")
        move(page, f"all-{name}", int(old) - 9)
        after = page.run(PICTURES)
        assert {form for form in FORMS if before[form] != after[form]} == {
            form for form in FORMS if name in takes[form]
        }
        move(page, f"all-{name}", old)
    assert page.run(PICTURES) == before


def test_probabilities_are_shown_and_do_not_depend_on_the_temperature(
    page: chromium.Browser,
) -> None:
    def shown() -> list[str]:
        params = page.run("igr.state.common")
        return [f"{abs(p):.3f}" for form in FORMS for p in ask(page, "igr.probs", form, params)]

    before = page.run(NUMBERS)
    assert before == shown()
    move(page, "all-temperature", 20)
    assert page.run(NUMBERS) == before
    move(page, "all-loc1", 150)
    assert page.run(NUMBERS) == shown() != before


def test_buttons_and_keys(page: chromium.Browser) -> None:
    before = page.run(PICTURES)
    page.run("$('renew').click()")
    page.settle()
    after = page.run(PICTURES)
    assert all(before[form] != after[form] for form in FORMS)
    page.run("$('reset').click()")
    page.settle()
    assert page.run(PICTURES) == before

    page.run("$('all-temperature').focus()")
    key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, **key)
    page.settle()
    assert page.run("igr.state.common.temperature") > START["temperature"]
    assert page.run(PICTURES) != before

    page.run("$('match').click()")
    page.settle()
    params = page.run("igr.state.common")
    same = [ask(page, "igr.probs", form, params) for form in ("SoftmaxIGR", "GumbelSoftmax")]
    assert same[0] == pytest.approx(same[1], abs=0.005)


def test_each_form_on_its_own(page: chromium.Browser) -> None:
    move(page, "all-loc1", 120)
    before = page.run(PICTURES)
    page.run("$('compare').click()")
    page.settle()
    assert page.run("getComputedStyle($('common')).display") == "none"
    move(page, "SoftmaxIGR-temperature", 30)
    after = page.run(PICTURES)
    assert {form for form in FORMS if before[form] != after[form]} == {"SoftmaxIGR"}
    assert page.run("igr.state.own.SoftmaxIGR.loc1") == page.run("igr.state.common.loc1") == 1


def test_every_slider_has_a_name_a_value_and_a_place_in_the_order_of_keys(
    page: chromium.Browser,
) -> None:
    faults = page.run("""[...document.querySelectorAll("input[type=range]")].filter((input) =>
      !input.labels[0]?.textContent || !input.getAttribute("aria-valuetext") || input.tabIndex !== 0 ||
      !document.querySelector(`output[for="${input.id}"]`).textContent).map((input) => input.id)""")
    assert faults == []


# What sticks out of the window, or out of the box it is in without a way to scroll there.
OVERFLOW = """(() => {
  const wide = [...document.querySelectorAll("body *")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5 || (
      node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).display !== "inline" && node.clientWidth > 0));
  });
  return [document.documentElement.scrollWidth - innerWidth, ...wide.map((node) => node.outerHTML.slice(0, 120))];
})()"""


def test_the_choice_of_light_or_dark_in_the_documentation_holds(page: chromium.Browser) -> None:
    key = "new URL('.', location).pathname + '.__palette'"  # as the theme's scripts have it
    for media, scheme, shown in (
        ("(prefers-color-scheme: light)", "slate", "dark"),
        ("(prefers-color-scheme: dark)", "default", "light"),
        ("(prefers-color-scheme)", "slate", "light"),
    ):
        chosen = json.dumps({"index": 0, "color": {"media": media, "scheme": scheme}})
        page.run(f"localStorage.setItem({key}, {chosen!r})")
        page.open(PAGE.as_uri(), 1280)
        assert page.run("document.documentElement.dataset.theme") == shown
    page.run(f"localStorage.removeItem({key})")


# Of letters against what is behind them, as WCAG 2 defines it.
CONTRAST = """(() => {
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const behind = (node) => {
    const colour = numbers(getComputedStyle(node).backgroundColor);
    return colour[3] === 0 ? behind(node.parentElement) : colour;
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  for (let text; text = texts.nextNode();) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [numbers(getComputedStyle(node).color), behind(node)].map((c) => luminance(c.slice(0, 3)));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([text.data, ratio]);
  }
  return low;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everything_fits_and_can_be_read_and_nothing_is_loaded(
    page: chromium.Browser, width: int, scheme: str
) -> None:
    page.open(PAGE.as_uri(), width, scheme=scheme)
    assert page.run("document.documentElement.dataset.theme") == scheme
    page.run("for (const node of document.querySelectorAll('details')) node.open = true")
    for _ in range(2):
        page.settle()
        assert page.run(OVERFLOW) == [0]
        assert page.run(CONTRAST) == []
        page.run("$('compare').click()")
    sent = [e["params"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    urls = [params["request"]["url"] for params in sent]
    assert [url for url in urls if not url.startswith("data:")] == [PAGE.as_uri()]
