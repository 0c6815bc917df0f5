"""Draws the pictures of the pages from the library: `python docs/_pictures.py`.

They are text, so that a test can compare them with what the library gives now; in light and in dark, whichever the page
around them is in; and 560 wide with letters that can still be read where a phone shows them at two thirds of that.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import igr

FOLDER = Path(__file__).parent / "images"
WIDTH, SIDE, HEIGHT, COLUMN = 560, 150, 130, 180

STYLE = """
svg { color-scheme: light dark; font: 17px system-ui, "Segoe UI", Roboto, sans-serif; }
.page { fill: #fff; } text { fill: #1d232b; } .quiet { fill: #59636f; } .line { fill: none; stroke: #8b95a1; }
.k1 { fill: #c2570c; } .k2 { fill: #00795a; } .k3 { fill: #9c3587; } .dim { opacity: 0.13; }
.curve { fill: none !important; stroke-width: 1.5; }
.k1.curve { stroke: #c2570c; } .k2.curve { stroke: #00795a; }
@media (prefers-color-scheme: dark) {
.page { fill: #14171c; } text { fill: #e6e9ed; } .quiet { fill: #a3adb8; } .line { stroke: #6d7783; }
.k1 { fill: #ff9e4a; } .k2 { fill: #3fd6a4; } .k3 { fill: #f08ad9; } .dim { opacity: 0.2; }
.k1.curve { stroke: #ff9e4a; } .k2.curve { stroke: #3fd6a4; } }
"""
SHADE = (61, 139, 205)  # seen on white and on black
LEVELS = 17  # quarters of a decade, from a hundredth of the uniform density to a hundred times it

Form = Callable[[Tensor, Tensor, float], igr.Relaxation]
FLOW = igr.Planar(torch.tensor([-2.1213, 2.1213]), torch.tensor([-1.4142, 1.4142]), torch.zeros(()))
FORMS: dict[str, Form] = {
    "SoftmaxIGR": igr.SoftmaxIGR,
    "SharpStickBreakingIGR": igr.SharpStickBreakingIGR,
    "StickBreakingIGR": igr.StickBreakingIGR,
    "PlanarIGR": lambda loc, scale, t: igr.PlanarIGR(loc, scale, t, FLOW),
    "VertexInterpolation": lambda loc, scale, t: igr.IGR(
        loc, scale, igr.Compose([igr.StickBreaking(), igr.VertexInterpolation(t), igr.Close()])
    ),
}


def number(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{number(x)}" y="{number(y)}" class="{kind}" text-anchor="{anchor}">{words}</text>\n'


def dots(points: Tensor, category: Tensor, radius: float = 2) -> str:
    marks = zip(points.tolist(), category.tolist(), strict=True)
    return "".join(
        f'<circle cx="{number(x)}" cy="{number(y)}" r="{radius}" class="k{k + 1}"/>\n'
        for (x, y), k in marks
    )


def on_page(z: Tensor) -> Tensor:
    """Where a point of the simplex is in a triangle: category 1 left, 2 right, 3 on top."""
    return z @ torch.tensor([[0.0, HEIGHT], [SIDE, HEIGHT], [SIDE / 2, 0]], dtype=z.dtype)


def noise(size: int, count: int) -> Tensor:
    """Uniform numbers that fill the cube evenly, the same everywhere."""
    sobol = torch.quasirandom.SobolEngine(size, scramble=True, seed=3)
    return sobol.draw(count, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)


def normal(size: int, count: int) -> Tensor:
    return torch.special.ndtri(noise(size, count))


def samples(q: igr.IGR | igr.GumbelSoftmax, count: int) -> tuple[Tensor, Tensor]:
    """Points and what they round to."""
    if isinstance(q, igr.GumbelSoftmax):
        log_z = ((q.logits - (-noise(3, count).log()).log()) / q.temperature).log_softmax(-1)
    else:
        log_z = q.transform.forward_stable(q.loc + q.scale * normal(2, count))
    return log_z.exp(), q.hard(log_value=log_z).argmax(-1)


def levels(q: igr.Relaxation) -> Tensor:
    """Of the density at the pixels of a triangle, from 0, at most a hundredth of the uniform, to 16."""
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (HEIGHT, SIDE))
    z3 = (1 - rows / HEIGHT)[:, None].expand(-1, SIDE)
    z2 = columns / SIDE - z3 / 2
    z = torch.stack([1 - z2 - z3, z2, z3], -1)
    inside = (z > 0).all(-1)
    z = torch.where(inside[..., None], z, 1 / 3)
    ratio = (q.log_prob(z / z.sum(-1, keepdim=True)) - torch.tensor(2.0).log()) / torch.tensor(
        10.0
    ).log()
    shade = (ratio.clamp(-2, 2).add(2).mul(4)).round()
    return torch.where(inside, shade, 0).to(torch.uint8)


def shade(level: Tensor) -> str:
    """A PNG whose opacity says the level, the number of its colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + bytes(row) for row in level.tolist())
    alpha = bytes(round(235 * i / (LEVELS - 1)) for i in range(LEVELS))
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", level.shape[1], level.shape[0], 8, 3, 0, 0, 0),
        b"PLTE": bytes(SHADE) * LEVELS,
        b"tRNS": alpha,
        b"IDAT": zlib.compress(rows, 9),
        b"IEND": b"",
    }
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts.items())
    return base64.b64encode(png).decode()


def at(x: float, y: float, *content: str) -> str:
    return f'<g transform="translate({number(x)} {number(y)})">\n{"".join(content)}</g>\n'


def outline() -> str:
    return f'<path class="line" d="M0 {HEIGHT}H{SIDE}L{SIDE / 2:g} 0z"/>\n'


def probabilities(q: igr.IGR | igr.GumbelSoftmax) -> Tensor:
    exact = isinstance(
        q, (igr.SoftmaxIGR, igr.SharpStickBreakingIGR, igr.StickBreakingIGR, igr.GumbelSoftmax)
    )
    if exact:
        return q.probs
    return torch.bincount(samples(q, 2**14)[1], minlength=3) / 2**14


def panel(q: igr.IGR | igr.GumbelSoftmax, count: int = 60) -> str:
    """Density, samples, and below them the recovered probabilities."""
    z, category = samples(q, count)
    parts = [
        f'<image width="{SIDE}" height="{HEIGHT}" href="data:image/png;base64,{shade(levels(q))}"/>\n'
    ]
    parts += [outline(), dots(on_page(z), category)]
    start = 0.0
    for k, p in enumerate(probabilities(q).tolist()):
        width = SIDE * p
        parts.append(
            f'<rect x="{number(start)}" y="{HEIGHT + 7}" width="{number(width)}" height="7" class="k{k + 1}"/>\n'
        )
        anchor = ("start", "middle", "end")[k]
        parts.append(text(SIDE * k / 2, HEIGHT + 32, f"{p:.2f}", f"k{k + 1}", anchor))
        start += width
    return "".join(parts)


def svg(height: float, title: str, *content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {number(height)}" '
        f'width="{WIDTH}" height="{number(height)}" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{number(height)}" rx="8"/>\n{"".join(content)}</svg>\n'
    )


def table(title: str, heads: list[str], rows: dict[str, list[igr.Relaxation] | str]) -> str:
    """One row for each form, one column for each value."""
    left = (WIDTH - 2 * COLUMN - SIDE) / 2
    content = [
        text(left + COLUMN * j + SIDE / 2, 30, head, "quiet", "middle")
        for j, head in enumerate(heads)
    ]
    top = 44.0
    for name, row in rows.items():
        content.append(text(left, top + 17, name))
        if isinstance(row, str):
            content.append(text(left, top + 42, row, "quiet"))
            top += 60
            continue
        content += [at(left + COLUMN * j, top + 26, panel(q)) for j, q in enumerate(row)]
        top += HEIGHT + 78
    return svg(top, title, *content)


def pair(x: float, y: float) -> Tensor:
    return torch.tensor([x, y], dtype=torch.float64)


def gumbel(loc: Tensor, temperature: float) -> igr.GumbelSoftmax:
    return igr.GumbelSoftmax(temperature, logits=torch.nn.functional.pad(loc, (0, 1)))


TEMPERATURES = [1.0, 0.5, 0.2]


def same_probabilities() -> str:
    probs = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return table(
        "Samples of SoftmaxIGR and of the Gumbel-Softmax at three temperatures, with the same probabilities",
        [f"temperature {t:g}" for t in TEMPERATURES],
        {
            "SoftmaxIGR": [igr.SoftmaxIGR.from_probs(probs, t) for t in TEMPERATURES],
            "GumbelSoftmax": [igr.GumbelSoftmax(t, probs=probs) for t in TEMPERATURES],
        },
    )


def by_temperature() -> str:
    rows: dict[str, list[igr.Relaxation] | str] = {}
    for name, form in FORMS.items():
        rows[name] = [form(pair(0, 0), pair(1, 1), t) for t in TEMPERATURES]
    rows["GumbelSoftmax"] = [gumbel(pair(0, 0), t) for t in TEMPERATURES]
    heads = [f"temperature {t:g}" for t in TEMPERATURES]
    return table("Densities by temperature, location 0, scale 1", heads, rows)


def by_loc() -> str:
    locs = [pair(-1, -1), pair(1, 0), pair(0, 1)]
    rows: dict[str, list[igr.Relaxation] | str] = {}
    for name, form in FORMS.items():
        rows[name] = [form(loc, pair(1, 1), 0.5) for loc in locs]
    rows["GumbelSoftmax, logits (loc, 0)"] = [gumbel(loc, 0.5) for loc in locs]
    heads = [f"loc ({x:g}, {y:g})" for x, y in torch.stack(locs).tolist()]
    return table("Densities by location, scale 1, temperature 0.5", heads, rows)


def by_scale() -> str:
    scales = [0.3, 1.0, 3.0]
    rows: dict[str, list[igr.Relaxation] | str] = {}
    for name, form in FORMS.items():
        rows[name] = [form(pair(0.5, 0), pair(s, s), 0.5) for s in scales]
    rows["GumbelSoftmax"] = "no scale: its noise is what it is"
    return table(
        "Densities by scale, location (0.5, 0), temperature 0.5",
        [f"scale {s:g}" for s in scales],
        rows,
    )


def noise_to_simplex() -> str:
    """Standard normal noise, the same moved and stretched, and on the simplex."""
    loc, scale = pair(0.5, -0.3), pair(1.2, 0.7)
    q = igr.SoftmaxIGR(loc, scale, 0.5)
    e = normal(2, 240)
    z, category = samples(q, 240)
    size, unit = SIDE, SIDE / 7

    def plane(points: Tensor) -> Tensor:
        return torch.stack([points[:, 0], -points[:, 1]], -1) * unit + size / 2

    def frame(*content: str) -> str:
        middle = number(size / 2)
        axes = f'<path class="line" d="M0 {middle}H{size}M{middle} 0V{size}"/>\n'
        return "".join(content) + axes

    half = number(size / 2)
    regions = (
        f'<path class="k1 dim" d="M{half} {half}L{size} 0V{size}H{half}z"/>\n'
        f'<path class="k2 dim" d="M{half} {half}L{size} 0H0V{half}z"/>\n'
        f'<path class="k3 dim" d="M{half} {half}V{size}H0V{half}z"/>\n'
    )
    left = (WIDTH - 2 * COLUMN - size) / 2
    near = (e.abs() < 3.5).all(-1) & ((loc + scale * e).abs() < 3.5).all(-1)
    grey = dots(plane(e[near]), category[near]).replace('class="k', 'class="quiet k0')
    moved = dots(plane(loc + scale * e[near]), category[near])
    heads = ["noise ε", "y = μ + σ ε", "z = map(y / τ)"]
    content = [text(left + COLUMN * j + size / 2, 30, h, "", "middle") for j, h in enumerate(heads)]
    content += [at(left, 44, frame(grey)), at(left + COLUMN, 44, frame(regions, moved))]
    content += [at(left + 2 * COLUMN, 54, outline(), dots(on_page(z[near]), category[near]))]
    for j in range(2):
        x = left + COLUMN * j + size + 7
        content.append(f'<path class="line" d="M{number(x)} 119h16m-6 -6l6 6l-6 6"/>\n')
    corners = ((0, "1"), (SIDE, "2"))
    content += [
        text(left + 2 * COLUMN + x, 54 + HEIGHT + 20, k, f"k{k}", "middle") for x, k in corners
    ]
    content.append(text(left + 2 * COLUMN + SIDE / 2 + 16, 62, "3", "k3", "middle"))
    return svg(220, "From noise to the simplex", *content)


def bias_and_noise() -> str:
    """Of pathwise gradients, from the record of benchmarks/relaxations.py."""
    record = Path(__file__).parent.parent / "benchmarks" / "relaxations.json"
    rows = json.loads(record.read_text())["gradients"]
    width, height, left, top = 220, 190, 46, 62
    colours = {"SoftmaxIGR": "k1", "GumbelSoftmax": "k2"}
    content = []
    for j, objective in enumerate(("network", "quadratic")):

        def place(row: dict[str, float]) -> tuple[float, float]:
            return row["bias"] * width / 0.9, height * (1 - math.log10(row["noise"] / 0.1) / 2)

        parts = [f'<path class="line" d="M0 0V{height}H{width}"/>\n']
        parts += [text(width / 2, -12, objective, "", "middle")]
        for i, tick in enumerate(("0.1", "1", "10")):
            parts.append(text(-6, height * (1 - i / 2) + 6, tick, "quiet", "end"))
        for tick in ("0", "0.4", "0.8"):
            parts.append(text(float(tick) * width / 0.9, height + 20, tick, "quiet", "middle"))
        parts.append(text(width / 2, height + 42, "bias", "quiet", "middle"))
        for family, colour in colours.items():
            of_family = [r for r in rows if (r["objective"], r["family"]) == (objective, family)]
            points = [place(row) for row in of_family]
            course = "L".join(f"{number(x)} {number(y)}" for x, y in points)
            parts.append(f'<path class="{colour} curve" d="M{course}"/>\n')
            for row, (x, y) in zip(of_family, points, strict=True):
                radius = 6 if row["temperature"] == 0.5 else 3
                parts.append(
                    f'<circle cx="{number(x)}" cy="{number(y)}" r="{radius}" class="{colour}"/>\n'
                )
        content.append(at(left + j * (width + left), top, *parts))
    for j, (family, colour) in enumerate(colours.items()):
        content.append(text(left + 150 * j, 26, family, colour))
    content.append(text(left + 8, top + 16, "noise", "quiet"))
    return svg(top + height + 58, "Bias and noise of pathwise gradients by temperature", *content)


PICTURES = {
    "same_probabilities": same_probabilities,
    "noise_to_simplex": noise_to_simplex,
    "by_temperature": by_temperature,
    "by_loc": by_loc,
    "by_scale": by_scale,
    "bias_and_noise": bias_and_noise,
}


def main() -> None:
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
