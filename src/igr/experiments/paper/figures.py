"""The paper's figures: what is fitted for them, and how they are drawn, as PNG and SVG."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import igr
from igr.distributions import Relaxation
from igr.experiments.errors import RecordError
from igr.experiments.files import misfit, remove_temporary, write_atomically, write_json
from igr.experiments.paper.specs import (
    Approximation,
    ApproximationFigure,
    Scale,
    TableFigure,
    TemperatureFigure,
)
from igr.experiments.runs.jobs import Context, Steps, locked
from igr.experiments.runs.plots import colour_of
from igr.experiments.runs.records import FORMAT, RunFolder, read_record, versions
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.streams import stream

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "svg.hashsalt": "igr",
}
_BROKEN = {"countable": "igr-sb-sharp", "countable-paper": "igr-sb"}  # what they are without end
_TARGET = "#111111"


SUFFIXES: Mapping[str, dict[str, Any]] = {
    ".png": {"dpi": 160},
    ".svg": {"metadata": {"Date": None}},
}
"""The formats in which figures are written, with how."""


def rendered(figure: Figure, suffix: str) -> bytes:
    """A figure in one of these formats."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=suffix[1:], **SUFFIXES[suffix])
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path.png`` and ``path.svg``."""
    paths = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    for each in paths:
        write_atomically(each, rendered(figure, each.suffix))
    return paths


@dataclass(frozen=True)
class Target:
    """A distribution over the counts 0, 1, ... that is to be approximated.

    Attributes:
        label: for people.
        log_prob: of counts ``(n,)``.
        size: number of categories; None where there are infinitely many.
        shown: how many counts the panels show.
    """

    label: str
    log_prob: Callable[[Tensor], Tensor]
    size: int | None
    shown: int

    def probs(self, count: int) -> Tensor:
        """Probabilities of the first `count` counts, ``(count,)`` in float64."""
        return self.log_prob(torch.arange(count, dtype=torch.float64)).exp()


def _categories(weights: Sequence[int]) -> Callable[[Tensor], Tensor]:
    table = torch.tensor(weights, dtype=torch.float64)
    return lambda k: (table / table.sum()).log()[k.long()]


TARGETS: Mapping[str, Target] = {
    "poisson-50": Target("Poisson(50)", torch.distributions.Poisson(50.0).log_prob, None, 101),
    "binomial-12-0.3": Target(
        "Binomial(12, 0.3)",
        torch.distributions.Binomial(12, torch.tensor(0.3, dtype=torch.float64)).log_prob,
        13,
        13,
    ),
    "ten-categories": Target(
        "p = (10, 1, 5, 1, 10, 10, 1, 6, 1, 1) / 46",
        _categories((10, 1, 5, 1, 10, 10, 1, 6, 1, 1)),
        10,
        10,
    ),
    # Number of failures before the 50th success of probability 0.6: mean 33, so that K = 40 cuts the right tail, as
    # the paper's text has it. torch's `probs` is that of a failure here.
    "negative-binomial-50-0.6": Target(
        "NegativeBinomial(50, 0.6)",
        torch.distributions.NegativeBinomial(50, torch.tensor(0.4, dtype=torch.float64)).log_prob,
        None,
        101,
    ),
}


class Fit(ABC):
    r"""A relaxation on its way to a target p, by Adam on one of the two clear meanings of (14).

    "hard" brings the recovered discrete distribution to p, "mean" brings E[z] to p. The squared distance is lessened,
    as (14) has it.

    Differs from the paper: (14) itself is minimised by a point mass (erratum E3).
    """

    lr = 0.01

    def __init__(self, target: Target, each: Approximation) -> None:
        self.target, self.each = target, each

    @property
    @abstractmethod
    def num_categories(self) -> int:
        """How many categories there are now."""

    @abstractmethod
    def learned(self) -> Iterable[Tensor]:
        """What Adam changes."""

    @abstractmethod
    def at(self, temperature: float) -> Relaxation | igr.CountableIGR:
        """The relaxation at a temperature."""

    def relaxed(self, count: int) -> Tensor:
        """Relaxed draws ``(count, n)``, with their gradient, of as many categories as they reach."""
        return self.at(self.each.temperature).rsample((count,))

    def hard_probs(self) -> Tensor:
        """The recovered distribution ``(K,)``."""
        return self.at(self.each.temperature).discrete().probs

    def objective(self) -> Tensor:
        """What Adam lessens."""
        p = self.hard_probs() if self.each.how == "hard" else self.relaxed(_DRAWS_PER_STEP).mean(0)
        return (p - self.target.probs(len(p)).to(p)).square().sum()

    def draw(self, count: int) -> Tensor:
        """Draws of the recovered distribution, ``(count,)``."""
        return self.relaxed(count).argmax(-1)

    def descend(self, steps: int, advance: Callable[[], object]) -> None:
        """Take so many steps."""
        optimizer = torch.optim.Adam(self.learned(), lr=self.lr)
        for _ in range(steps):
            optimizer.zero_grad()
            self.objective().backward()
            optimizer.step()
            advance()


class _FiniteFit(Fit):
    """K categories; locations (or logits) start at 0.1 times standard normals and scales stay at 1. Abstract."""

    redundant = 1
    """How many of K coordinates follow from the others."""

    def __init__(self, target: Target, each: Approximation) -> None:
        super().__init__(target, each)
        self.free = (0.1 * torch.randn(self.num_categories - self.redundant)).requires_grad_()
        self.scale = torch.ones_like(self.free)

    @property
    def num_categories(self) -> int:
        return self.each.num_categories or self.target.size or 0

    def learned(self) -> Iterable[Tensor]:
        return [self.free]


class GumbelSoftmaxFit(_FiniteFit):
    """Gumbel-Softmax: what is learned are its logits."""

    redundant = 0

    def at(self, temperature: float) -> igr.GumbelSoftmax:
        return igr.GumbelSoftmax(temperature, logits=self.free, validate_args=False)


class SoftmaxIGRFit(_FiniteFit):
    """IGR-I."""

    def at(self, temperature: float) -> igr.SoftmaxIGR:
        return igr.SoftmaxIGR(self.free, self.scale, temperature, validate_args=False)


class _CrossEntropy(Fit):
    r"""Lessens :math:`-\sum_k p_k \log \bar z_k`, with the mean of draws. Abstract.

    The squared distance of (14) has next to no gradient where either distribution has no mass, and from a flat start
    does not get there. For "hard" the draws are of the relaxation at temperature 0.2, which has a gradient where argmax
    has none.
    """

    lr = 0.02

    def objective(self) -> Tensor:
        temperature = _NEARLY_HARD if self.each.how == "hard" else self.each.temperature
        mean = self.at(temperature).rsample((_DRAWS_PER_STEP,)).mean(0)
        return -torch.xlogy(self.target.probs(len(mean)).to(mean), mean + 1e-12).sum()


class SharpStickBreakingFit(_CrossEntropy, _FiniteFit):
    """Sharpened IGR-SB."""

    def at(self, temperature: float) -> igr.SharpStickBreakingIGR:
        return igr.SharpStickBreakingIGR(self.free, self.scale, temperature, validate_args=False)


class CountableFit(_CrossEntropy):
    """`igr.CountableIGR`, sharpened: coordinates are added as its draws need them.

    Locations start at -2, that is, with short sticks: where a draw is cut nothing beyond has a gradient, so a start
    at 0 sees a dozen categories and never gets further.
    """

    closing: type[igr.Sharpen] | type[igr.SoftmaxPlusPlus] = igr.Sharpen

    def __init__(self, target: Target, each: Approximation) -> None:
        super().__init__(target, each)
        self.parameters = igr.nn.CountableParameters(loc=-2.0)

    @property
    def num_categories(self) -> int:
        return self.parameters.num_coordinates + 1

    def learned(self) -> Iterable[Tensor]:
        return self.parameters.parameters()

    def at(self, temperature: float) -> igr.CountableIGR:
        return igr.CountableIGR(self.parameters, temperature, self.closing, validate_args=False)


class PaperCountableFit(CountableFit):
    """`igr.CountableIGR` with the paper's map: cut, then softmax++ (18), (19)."""

    closing = igr.SoftmaxPlusPlus


FITS: Mapping[str, type[Fit]] = {
    "igr-i": SoftmaxIGRFit,
    "igr-sb-sharp": SharpStickBreakingFit,
    "countable": CountableFit,
    "countable-paper": PaperCountableFit,
    "gs": GumbelSoftmaxFit,
}
"""How each family of an `Approximation` is fitted."""

_DRAWS_PER_STEP = 1000
_REPEATS = 100  # times the draws of the bars, for E[z]
_NEARLY_HARD = 0.2


_STATE = {"num_draws": int, "draws": [float], "probs": [float], "total_variation": float}
_SHAPE = {"rows": [[{"label": str, "initial": _STATE, "final": _STATE}]]}


@dataclass(frozen=True)
class FigureJob:
    """Fits everything that a figure of approximations shows and records it; a `igr.experiments.runs.jobs.Job`."""

    figure: ApproximationFigure
    scale: Scale

    @property
    def steps(self) -> int:
        """Optimiser steps of each fit."""
        return self.scale.figure_steps or self.figure.steps

    @property
    def draws(self) -> int:
        """Draws that the bars count."""
        return self.scale.figure_draws or self.figure.draws

    @property
    def name(self) -> str:
        return f"{self.scale.name}-{self.figure.name}"

    @property
    def title(self) -> str:
        return self.figure.title.split(":")[0].lower()

    @property
    def units(self) -> float:
        fits = sum(map(len, self.figure.rows))
        return fits * (8e-3 * self.steps + 5e-4 * self.draws)

    def identity(self) -> dict[str, Any]:
        """Everything that the figure's numbers depend on, as JSON has it."""
        rows = [[dataclasses.asdict(each) for each in row] for row in self.figure.rows]
        settings = {"rows": rows, "steps": self.steps, "draws": self.draws}
        return {"target": self.figure.target, **settings}

    def path(self, root: Path) -> Path:
        return root / "figures" / self.scale.name / f"{self.figure.name}.json"

    def record(self, root: Path) -> dict[str, Any] | None:
        """What was recorded, unless that is of other settings than today's.

        Raises:
            RecordError: if it is damaged or was written by another version.
        """
        path = self.path(root)
        if not path.exists():
            return None
        found = read_record(path, {"identity": dict})
        if found["identity"] != self.identity():
            return None
        if what := misfit(found, _SHAPE):
            raise RecordError(f"{path} is damaged: {what}")
        if list(map(len, found["rows"])) != list(map(len, self.figure.rows)):
            raise RecordError(f"{path} is damaged: expected as many fits as the figure shows")
        return found

    def is_done(self, root: Path) -> bool:
        return self.record(root) is not None

    def work(self, root: Path) -> Steps:
        with locked(root, self.name):
            path = self.path(root)
            remove_temporary(path.parent, path.name)
            yield [self]

    datasets = ()

    # The one task of it is the job itself.

    memory = 10**9

    def finished(self, root: Path) -> bool:
        return self.is_done(root)

    def given(self, root: Path) -> None:
        return None

    def split(self, count: int) -> list[FigureJob]:
        return [self]

    def run(self, given: bytes | None, context: Context) -> None:
        unit = self.units / (self.steps * sum(map(len, self.figure.rows)))

        def advance() -> None:
            if context.stop.requested:
                raise Interrupted(0)
            context.advance(unit)

        def fitted(each: Approximation) -> dict[str, Any]:
            context.note(each.label)
            return self._fitted(each, advance)

        rows = [[fitted(each) for each in row] for row in self.figure.rows]
        record = {"identity": self.identity(), "rows": rows, "versions": versions()}
        write_json(self.path(Path()), {"format": FORMAT, **record}, context.write)

    def _fitted(self, each: Approximation, advance: Callable[[], object]) -> dict[str, Any]:
        start = time.perf_counter()
        target = TARGETS[self.figure.target]
        seed = stream(0, self.figure.name, each.label).initial_seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fit = FITS[each.family](target, each)
            initial = self._state(fit, target)
            fit.descend(self.steps, advance)
            final = self._state(fit, target)
        return {
            "label": each.label,
            "how": each.how,
            "initial": initial,
            "final": final,
            "seconds": time.perf_counter() - start,
        }

    @torch.no_grad()
    def _state(self, fit: Fit, target: Target) -> dict[str, Any]:
        """What a panel shows: draws counted, probabilities, and how far those are from the target's.

        The probabilities are the recovered distribution's for "hard" and E[z] for "mean".
        """
        bars = torch.bincount(fit.draw(self.draws))
        if fit.each.how == "mean":
            means = [fit.relaxed(self.draws).mean(0).double() for _ in range(_REPEATS)]
            # Each has as many entries as its draws reach.
            probs = pad_sequence(means, batch_first=True).mean(0)
        else:
            probs = fit.hard_probs()
        K = fit.num_categories
        bars, probs = F.pad(bars, (0, K - len(bars))), F.pad(probs, (0, K - len(probs)))
        wanted = target.probs(K)
        beyond = max(0.0, 1 - float(wanted.sum()))
        distance = 0.5 * (float((probs.double() - wanted).abs().sum()) + beyond)
        return {
            "num_draws": self.draws,
            "draws": bars.tolist(),
            "probs": probs.tolist(),
            "total_variation": distance,
        }


def approximation_picture(figure: ApproximationFigure, record: Mapping[str, Any]) -> Figure:
    """Initial and final panels, a row of them for each row of the figure."""
    target = TARGETS[figure.target]
    shown = target.shown
    wanted = target.probs(shown).tolist()
    counts = range(shown)
    rows, steps = record["rows"], record["identity"]["steps"]
    with matplotlib.rc_context(_STYLE):
        picture = Figure(figsize=(7.2, 1.75 * len(rows) + 0.5), layout="constrained")
        panels = picture.subplots(len(rows), 2, squeeze=False, sharex=True)
        for row, fits, drawn in zip(panels, rows, figure.rows, strict=True):
            family = _BROKEN.get(drawn[0].family, drawn[0].family)
            for axes, moment in zip(row, ("initial", "final"), strict=True):
                _panel(axes, fits, family, moment, counts, wanted)
            label, _, what = fits[0]["label"].partition(":")
            label = label if len(fits) == 1 else label.partition(", K")[0]
            row[0].set_title(f"{label}:{what}, before")
            distances = ", ".join(f"{fit['final']['total_variation']:.3f}" for fit in fits)
            row[1].set_title(f"after {steps:,} steps: total variation {distances}")
        if len(rows[0]) == 1:
            handles, _ = panels[0, 1].get_legend_handles_labels()
            handles = [*panels[0, 1].containers, panels[0, 1].lines[0], handles[-1]]
            labels = [f"{record['identity']['draws']:,} draws", "fit", "target"]
            panels[0, 0].legend(handles, labels, loc="upper right", handlelength=1.5)
        for axes in panels[-1]:
            axes.set_xlabel(f"category, target {target.label}")
        for axes in panels[:, 0]:
            axes.set_ylabel("probability")
    return picture


def _panel(
    axes: Axes,
    fits: Sequence[Mapping[str, Any]],
    family: str,
    moment: str,
    counts: Sequence[int],
    wanted: Sequence[float],
) -> None:
    top = max(wanted)
    for i, fit in enumerate(fits, start=1):
        state, colour = fit[moment], colour_of(family, i, len(fits))
        share = [n / state["num_draws"] for n in state["draws"][: len(counts)]]
        probs = state["probs"][: len(counts)]
        label = fit["label"].split(":")[0] if len(fits) > 1 else None
        axes.bar(counts[: len(share)], share, width=0.9, color=colour, alpha=0.3, linewidth=0)
        axes.plot(counts[: len(probs)], probs, color=colour, linewidth=1.1, label=label)
        top = max(top, *share, *probs)
    axes.plot(counts, wanted, color=_TARGET, linewidth=0.8, linestyle=(0, (3, 2)), label="target")
    if len(counts) <= 20:
        axes.plot(counts, wanted, color=_TARGET, linestyle="none", marker="o", markersize=2.2)
        axes.set_xticks(counts)
    axes.set_xlim(-1, len(counts))
    axes.set_ylim(0, 1.08 * top)
    axes.locator_params(axis="y", nbins=4)
    if len(fits) > 1:
        axes.set_ylim(0, 1.4 * top)  # room for the legend
        axes.legend(loc="upper right", ncols=2, handlelength=1.5)


def table_picture(
    figure: TableFigure, rows: Mapping[str, Mapping[str, Any]], root: Path
) -> Figure | None:
    """A figure of some rows of a table; None where there is nothing to draw.

    Args:
        figure: what is drawn.
        rows: records of cells, by label.
        root: folder of the records.
    """
    draw = _draw_temperatures if isinstance(figure, TemperatureFigure) else _draw_curves
    with matplotlib.rc_context(_STYLE):
        picture = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = picture.subplots()
        if not draw(axes, rows, root):
            return None
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(loc="best")
        axes.set_title(figure.title)
    return picture


def _draw_curves(axes: Axes, rows: Mapping[str, Mapping[str, Any]], root: Path) -> bool:
    """Test ELBO over the epochs, mean and standard deviation over seeds; whether any was recorded."""
    lowest = []
    for label, record in rows.items():
        folders = [RunFolder(root / run["run"]) for run in record["runs"]]
        if not record["curve"] or not all(each.has_metrics for each in folders):
            continue
        metrics = [each.metrics() for each in folders]
        values = torch.tensor(
            [[row["test_elbo"] for row in each] for each in metrics], dtype=torch.float64
        )
        epochs = [row["epoch"] for row in metrics[0]]
        mean = values.mean(0).tolist()
        spread = (values.std(0) if len(values) > 1 else torch.zeros(len(epochs))).tolist()
        colour = colour_of(record["settings"].get("family", ""))
        axes.plot(epochs, mean, color=colour, linewidth=1.2, label=label)
        count = min(len(epochs), 10)
        marks = torch.linspace(0, len(epochs) - 1, count).round().long().tolist()
        axes.errorbar(
            [epochs[m] for m in marks],
            [mean[m] for m in marks],
            [spread[m] for m in marks],
            fmt="none",
            ecolor=colour,
            elinewidth=1.0,
            capsize=2.5,
        )
        lowest.append(mean[min(len(mean) - 1, max(1, len(mean) // 20))])
    finite = [value for value in lowest if math.isfinite(value)]
    if finite:
        top = axes.get_ylim()[1]
        axes.set_ylim(min(finite) - 0.05 * (top - min(finite)), top)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("test ELBO of the relaxed model (nats per image)")
    return bool(lowest)


def _draw_temperatures(axes: Axes, rows: Mapping[str, Mapping[str, Any]], root: Path) -> bool:
    """Held-out bound against temperature, after the same epochs; whether any row has more than one temperature."""
    for label, (epochs, bounds) in bounds_by_temperature(rows).items():
        colour = colour_of(rows[label]["settings"].get("family", ""))
        label = f"{label} ({epochs} epoch{'s' * (epochs > 1)})"
        values = [bound if math.isfinite(bound) else math.nan for bound in bounds.values()]
        axes.plot(list(bounds), values, "o-", color=colour, markersize=3, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("temperature")
    axes.set_ylabel("bound on held-out images (nats per image)")
    return bool(axes.lines)


def bounds_by_temperature(
    records: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[int, dict[float, float]]]:
    """Of cells with several temperatures: epochs that all of those were trained for, and each one's best bound then.

    The epochs are the same for all cells, as far as those were compared after the same ones; the best is that over
    learning rates.
    """
    compared = {label: _comparisons(record) for label, record in records.items()}
    compared = {label: found for label, found in compared.items() if len(found[max(found)]) > 1}
    common = min(map(max, compared.values()), default=0)
    shown = {}
    for label, found in compared.items():
        epochs = max((e for e in found if e <= common), default=min(found))
        shown[label] = epochs, dict(sorted(found[epochs].items()))
    return shown


def _comparisons(record: Mapping[str, Any]) -> dict[int, dict[float, float]]:
    """By epochs at which all of a cell's temperatures were compared: the best bound of each, over learning rates."""
    found: dict[int, dict[float, float]] = {0: {}}
    for each in record["candidates"]:
        rung = found.setdefault(each.get("epochs", record["scale"]["epochs"]), {})
        best = rung.get(each["temperature"], -math.inf)
        rung[each["temperature"]] = max(best, each["held_out_bound"])
    most = max(map(len, found.values()))
    return {epochs: rung for epochs, rung in found.items() if len(rung) == most}
