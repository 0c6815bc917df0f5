"""Pictures of a run and of a sweep, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from torch import Tensor

from igr.experiments.files import write_atomically
from igr.experiments.models.sop import StackedSOP
from igr.experiments.models.stacked import StackedModel
from igr.experiments.models.vae import StackedVAE
from igr.experiments.runs.records import RunFolder, SweepFolder
from igr.experiments.streams import stream
from igr.experiments.training.evaluation import draw_categories

matplotlib.use("Agg")
from matplotlib import colormaps
from matplotlib.figure import Figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _grid(images: Tensor) -> Tensor:
    """Images ``(rows, columns, H, W)`` side by side, a grey line between them."""
    rows, columns, height, width = images.shape
    padded = torch.full((rows, columns, height + 2, width + 2), 0.3)
    padded[:, :, 1:-1, 1:-1] = images
    return padded.permute(0, 2, 1, 3).reshape(rows * (height + 2), columns * (width + 2))


def _picture(images: Tensor, title: str, labels: Sequence[str] = ()) -> Figure:
    rows, columns = images.shape[:2]
    width, height = 0.55 * columns + 0.9, 0.55 * rows + 0.5
    figure = Figure(figsize=(width, height))
    # Placed by hand: matplotlib's own layout draws everything twice.
    axes = figure.add_axes((0.75 / width, 0.1 / height, 1 - 0.9 / width, 1 - 0.45 / height))
    axes.imshow(_grid(images).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    step = images.shape[2] + 2
    axes.set_yticks([(i + 0.5) * step for i in range(len(labels))], labels, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _curves(runs: Sequence[RunFolder]) -> Figure:
    """Training curves: a colour for each family and temperature, a line for each seed."""
    figure = Figure(figsize=(6.5, 4))
    axes = figure.add_axes((0.12, 0.13, 0.85, 0.84))
    curves = [(run.config, [row["elbo"] for row in run.metrics()]) for run in runs]
    settings = list(dict.fromkeys((c.family, c.temperature) for c, _ in curves))
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(settings)))
    labelled = set()
    for config, elbo in curves:
        setting = config.family, config.temperature
        label = (
            None if setting in labelled else f"{config.family}, temperature {config.temperature:g}"
        )
        labelled.add(setting)
        colour = colours[settings.index(setting)]
        axes.plot(range(1, len(elbo) + 1), elbo, color=colour, label=label, linewidth=1.2)

    # A temperature far from the prior's has an ELBO far below all others, and what a run begins with is far below
    # what it comes to: the picture shows where the best run has been, and half as much below.
    best = max(
        (elbo for _, elbo in curves if math.isfinite(elbo[-1])), key=lambda e: e[-1], default=[0]
    )
    top, low = max(best), best[min(1, len(best) - 1)]
    if math.isfinite(low) and low < top:
        bottom = low - 0.5 * (top - low)
        axes.set_ylim(bottom, top + 0.05 * (top - bottom))
        below = sum(not elbo[-1] > bottom for _, elbo in curves)
        if below:
            text = f"{below} of {len(curves)} runs end below"
            axes.text(
                0.99, 0.01, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel("training ELBO (nats per image)")
    axes.grid(alpha=0.3)
    if len(settings) <= 12:
        axes.legend(fontsize=7, ncols=2 if len(settings) > 6 else 1)
    return figure


@torch.no_grad()
def draw_run(
    folder: RunFolder, model: StackedModel, images: Tensor, shape: tuple[int, int]
) -> None:
    """Write a run's pictures: what the model makes of test images, and its training curve."""
    config = folder.config
    title = f"{config.family}, temperature {config.temperature:g}"
    if isinstance(model, StackedVAE):
        pictures = _vae_pictures(model, images, shape, title, config.seed)
    elif isinstance(model, StackedSOP):
        pictures = _sop_pictures(model, images, shape, title, config.seed)
    else:
        raise TypeError(f"model: expected one that can be drawn, got {type(model).__name__}")
    pictures["curve.png"] = _curves([folder])
    for name, figure in pictures.items():
        write_atomically(folder.path / name, _png(figure))


def _vae_pictures(
    model: StackedVAE, images: Tensor, shape: tuple[int, int], title: str, seed: int
) -> dict[str, Figure]:
    """Reconstructions and samples from the prior."""
    family, N = model.family, model.num_variables
    shown = images[:12]
    parameters = model.encode(shown.unsqueeze(0))
    generator = stream(seed, "recovery")
    log_q = family.discrete_log_probs(parameters, model.temperature, generator).squeeze(0)
    drawn = draw_categories(log_q, 2, stream(seed, "pictures"))
    decode = model.category_decoder()
    rebuilt = [model.likelihood.mean(decode(drawn[:, i])) for i in range(2)]
    rows = torch.stack([shown, *rebuilt]).unflatten(-1, shape)
    codes = torch.randint(
        0, family.num_categories, (6 * 12, N), generator=stream(seed, "prior"), dtype=torch.int32
    )
    prior = model.likelihood.mean(decode(codes)).unflatten(-1, shape).unflatten(0, (6, 12))
    return {
        "reconstructions.png": _picture(
            rows,
            f"{title}: test images and two discrete reconstructions",
            ["image", "first", "second"],
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
    labels = ["image", "first", "second", "third"]
    return {"predictions.png": _picture(rows, f"{title}: test images, lower halves drawn", labels)}


def draw_sweep(folder: SweepFolder, runs: Sequence[RunFolder]) -> None:
    """Write the training curves of all runs into one picture."""
    with folder.writing():
        write_atomically(folder.path / "curves.png", _png(_curves(runs)))
