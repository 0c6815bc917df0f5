"""Pictures of a run and of a sweep, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from igr.experiments.files import write_atomically
from igr.experiments.models.sop import StackedSOP
from igr.experiments.models.stacked import StackedModel
from igr.experiments.models.vae import StackedVAE
from igr.experiments.runs.records import RunFolder, SweepFolder
from igr.experiments.streams import stream
from igr.experiments.training.config import RunConfig
from igr.experiments.training.evaluation import draw_categories

_COLOURS = {
    "igr-i": "#2c6fbb",
    "gs": "#d9822b",
    "igr-planar": "#8e44ad",
    "igr-sb": "#2a9d63",
    "igr-sb-sharp": "#c0392b",
}


def colour_of(family: str, rank: int = 1, count: int = 1) -> tuple[float, float, float]:
    """The colour that a family has wherever it is drawn; of so many of it, the first one in the palest."""
    share = 0.35 + 0.65 * rank / count
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(_COLOURS.get(family, "#555555")))
    return red, green, blue


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """A figure as SVG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "igr"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def tiles(images: Tensor) -> Tensor:
    """Images ``(rows, columns, H, W)`` side by side in one, a light line between them."""
    rows, columns, height, width = images.shape
    padded = torch.full((rows, columns, height + 1, width + 1), 0.12)
    padded[:, :, :-1, :-1] = images
    return padded.permute(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]


def pixels(images: Tensor) -> bytes:
    """The same as PNG, a pixel for each of theirs: dark ink on white."""
    ink = (255 - 255 * tiles(images).clamp(0, 1)).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(ink).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _picture(images: Tensor, title: str, labels: Sequence[str] = ()) -> Figure:
    rows, columns = images.shape[:2]
    left = 1.05 if labels else 0.1
    width, height = 0.55 * columns + left + 0.1, 0.55 * rows + 0.5
    figure = Figure(figsize=(width, height))
    # Placed by hand: matplotlib's own layout draws everything twice.
    bounds = (left / width, 0.1 / height, 1 - (left + 0.1) / width, 1 - 0.45 / height)
    axes = figure.add_axes(bounds)
    axes.imshow(tiles(images).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xticks([])
    step = images.shape[2] + 1
    axes.set_yticks([(i + 0.5) * step for i in range(len(labels))], labels, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    left, bottom, rest = 0.75, 0.55, 0.12  # inches
    size = (width - left - rest) / width, (height - bottom - rest) / height
    axes = figure.add_axes((left / width, bottom / height, *size))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(runs: Sequence[RunFolder]) -> Figure:
    """Training ELBOs: a colour for each family, darker at higher temperatures; a line for each seed.

    They are of relaxed models, whose priors may have temperatures of their own: the scale of one temperature is not
    that of another.
    """
    figure, axes = _axes(6.5, 4.2)
    lines = [(run.config, [row["elbo"] for row in run.metrics()]) for run in runs]
    temperatures = sorted({config.temperature for config, _ in lines})
    labelled = set()
    for config, elbo in lines:
        setting = f"{config.family}, temperature {config.temperature:g}"
        rank = temperatures.index(config.temperature) + 1
        colour = colour_of(config.family, rank, len(temperatures))
        label = None if setting in labelled else setting
        labelled.add(setting)
        axes.plot(range(1, len(elbo) + 1), elbo, color=colour, label=label, linewidth=1.2)

    # What a run begins with is far below what it comes to, and a temperature far from the prior's is below all others:
    # the picture shows the last nine tenths of every run that is not far below the best.
    tails = [elbo[len(elbo) // 10 :] for _, elbo in lines if math.isfinite(elbo[-1])]
    axes.set_xlabel("epoch")
    axes.set_ylabel("ELBO of the relaxed model in training (nats)")
    if tails:
        top, lowest = max(map(max, tails)), min(map(min, tails))
        best = max(tails, key=lambda tail: tail[-1])
        bottom = max(lowest, top - max(2.5 * (top - min(best)), 1e-3))
        room = max(0.05 * (top - bottom), 1e-3, 1e-6 * abs(top))
        axes.set_ylim(bottom - room, top + room)
        below = sum(not elbo[-1] > bottom - room for _, elbo in lines)
        if below:
            axes.set_xlabel(f"epoch ({below} of {len(lines)} runs end below the picture)")
    if len(labelled) <= 12:
        axes.legend(fontsize=7, ncols=2 if len(labelled) > 6 else 1)
    return figure


def bounds(scores: Sequence[tuple[RunConfig, float]]) -> Figure:
    """Bounds of the discrete models against temperature: a dot for each seed, a line through a family's means."""
    figure, axes = _axes(5.2, 3.6)
    for family in dict.fromkeys(config.family for config, _ in scores):
        found: dict[float, list[float]] = {}
        for config, bound in scores:
            if config.family == family:
                found.setdefault(config.temperature, []).append(bound)
        found = dict(sorted(found.items()))
        means = [sum(values) / len(values) for values in found.values()]
        colour = colour_of(family)
        axes.plot(list(found), means, "-", color=colour, linewidth=1.8, label=family)
        for temperature, values in found.items():
            axes.plot([temperature] * len(values), values, "o", color=colour, markersize=4)
    axes.set_xscale("log")
    ticks = sorted({config.temperature for config, _ in scores})
    axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("temperature of the relaxation in training")
    axes.set_ylabel("bound on the log-likelihood (nats per image)")
    axes.legend(fontsize=9)
    return figure


@torch.no_grad()
def draw_run(
    folder: RunFolder, model: StackedModel, images: Tensor, shape: tuple[int, int]
) -> None:
    """Write a run's pictures: what the model makes of test images."""
    config = folder.config
    title = f"{config.family}, temperature {config.temperature:g}"
    if isinstance(model, StackedVAE):
        pictures = _vae_pictures(model, images, shape, title, config.seed)
    elif isinstance(model, StackedSOP):
        pictures = _sop_pictures(model, images, shape, title, config.seed)
    else:
        raise TypeError(f"model: expected one that can be drawn, got {type(model).__name__}")
    for name, figure in pictures.items():
        write_atomically(folder.path / name, _png(figure))


@torch.no_grad()
def reconstructions(model: StackedVAE, images: Tensor, seed: int) -> Tensor:
    """Two decoded draws of the discrete code of each image ``(n, D)``, ``(2, n, D)``."""
    parameters = model.encode(images.unsqueeze(0))
    generator = stream(seed, "recovery")
    log_q = model.family.discrete_log_probs(parameters, model.temperature, generator).squeeze(0)
    drawn = draw_categories(log_q, 2, stream(seed, "pictures"))
    decode = model.category_decoder()
    return torch.stack([model.likelihood.mean(decode(drawn[:, i])) for i in range(2)])


@torch.no_grad()
def samples(model: StackedVAE, count: int, seed: int) -> Tensor:
    """Images decoded from codes drawn from the prior, ``(count, D)``."""
    codes = torch.randint(
        0,
        model.family.num_categories,
        (count, model.num_variables),
        generator=stream(seed, "prior"),
        dtype=torch.int32,
    )
    return model.likelihood.mean(model.category_decoder()(codes))


def _vae_pictures(
    model: StackedVAE, images: Tensor, shape: tuple[int, int], title: str, seed: int
) -> dict[str, Figure]:
    """Reconstructions and samples from the prior."""
    shown = images[:12]
    rows = torch.cat([shown.unsqueeze(0), reconstructions(model, shown, seed)]).unflatten(-1, shape)
    prior = samples(model, 72, seed).unflatten(-1, shape).unflatten(0, (6, 12))
    return {
        "reconstructions.png": _picture(
            rows,
            f"{title}: test images and two discrete reconstructions",
            ["original", "reconstruction 1", "reconstruction 2"],
        ),
        "samples.png": _picture(prior, f"{title}: samples from the prior"),
    }


def _sop_pictures(
    model: StackedSOP, images: Tensor, shape: tuple[int, int], title: str, seed: int
) -> dict[str, Figure]:
    """Lower halves drawn for the upper ones."""
    shown, generator = images[:12], stream(seed, "pictures")
    lower = torch.stack(
        [model.likelihood.mean(model.outputs_of_draws(x, 3, generator)) for x in shown], dim=1
    )
    rows = torch.cat([model.halves(shown)[0].expand(3, -1, -1), lower], -1)
    rows = torch.cat([shown.unsqueeze(0), rows]).unflatten(-1, shape)
    labels = ["original", "draw 1", "draw 2", "draw 3"]
    return {"predictions.png": _picture(rows, f"{title}: test images, lower halves drawn", labels)}


def draw_sweep(folder: SweepFolder, scores: Sequence[tuple[RunFolder, float]]) -> None:
    """Write pictures of all runs: their training curves and, where temperatures differ, their bounds."""
    with folder.writing():
        write_atomically(folder.path / "curves.png", _png(curves([run for run, _ in scores])))
        by_config = [(run.config, bound) for run, bound in scores]
        if len({config.temperature for config, _ in by_config}) > 1:
            write_atomically(folder.path / "bounds.png", _png(bounds(by_config)))
