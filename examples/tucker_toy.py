"""The toy problem of Tucker et al. (2017), by every estimator: minimise E[(b - t)^2] over the law of one bit b.

With t = 0.499 the two values of b differ by 0.002 in their loss: b = 0 is the better one, and an estimator has to see
that through its own noise. Runs 20 seeds side by side, for Gumbel-Softmax and for IGR, and draws two pictures: the
expected loss over training, and the variance of the gradient over training.

    python examples/tucker_toy.py --out docs/images
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

from igr import GumbelSoftmax, SoftmaxIGR
from igr import estimators as E

mpl.use("Agg")
import matplotlib.pyplot as plt

FAMILIES = {
    "Gumbel-Softmax": (lambda p: GumbelSoftmax(0.5, logits=p), 2, 0.5),
    "IGR": (lambda p: SoftmaxIGR(p, torch.ones_like(p), 0.5), 1, 0.5),
}
COLOURS = dict(
    zip(
        (
            "Reinforce",
            "Reinforce, running mean",
            "Reinforce, leave one out (2)",
            "Rebar",
            "Relax",
            "UnorderedSet (2)",
            "Pathwise",
            "RelaxedStraightThrough",
            "RaoBlackwellStraightThrough",
            "ReinMax",
        ),
        (
            "#888888",
            "#c49a6c",
            "#8c564b",
            "#1f77b4",
            "#d62728",
            "#000000",
            "#2ca02c",
            "#98df8a",
            "#17becf",
            "#e377c2",
        ),
        strict=True,
    )
)


def build(name: str, seeds: int, temperature: float) -> E.Estimator:
    """An estimator for all seeds at once; what it learns, it learns for each of them."""
    each = torch.full((seeds, 1), temperature)
    makers: dict[str, Callable[[], E.Estimator]] = {
        "Reinforce": E.Reinforce,
        "Reinforce, running mean": lambda: E.Reinforce(E.RunningMean(0.95, shape=(seeds,))),
        "Reinforce, leave one out (2)": lambda: E.Reinforce(E.LeaveOneOut(), 2),
        "Rebar": lambda: E.Rebar(each, torch.ones(seeds, 1)),
        "Relax": lambda: E.Relax(E.ControlNetwork((2,), 10, stack=(seeds,)), each, with_loss=False),
        "UnorderedSet (2)": lambda: E.UnorderedSet(2),
        "Pathwise": E.Pathwise,
        "RelaxedStraightThrough": E.RelaxedStraightThrough,
        "RaoBlackwellStraightThrough": E.RaoBlackwellStraightThrough,
        "ReinMax": E.ReinMax,
    }
    return makers[name]()


def run(
    family: Callable, size: int, temperature: float, name: str, t: float, seeds: int, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, expected loss (points, seeds) and variance of the gradient (points, seeds)."""

    def f(z: Tensor) -> Tensor:
        return (z[..., 0] - t).square()

    parameters = torch.zeros(seeds, 1, size, requires_grad=True)
    estimator = build(name, seeds, temperature)
    groups: list[dict] = [{"params": [parameters], "lr": 0.02}]
    if own := list(estimator.parameters()):
        groups.append({"params": own, "lr": 0.03})
    # a shorter memory than Adam's default, which would dwell on the noise of the first steps
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    every = max(1, steps // 25)
    at, losses, variances = [], [], []
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                p = family(parameters).discrete().probs[..., 0]
                losses.append((p * (1 - t) ** 2 + (1 - p) * t**2).squeeze(-1))
            estimator.eval()
            copies = parameters.detach().expand(seeds, 100, size).clone().requires_grad_()
            estimator(family(copies), f).sum().backward()
            estimator.train()
            variances.append(copies.grad.var(1).sum(-1))  # type: ignore[union-attr]
            at.append(step)
        optimizer.zero_grad()
        estimator(family(parameters), f).sum().backward()
        optimizer.step()
    return torch.tensor(at), torch.stack(losses), torch.stack(variances)


def band(axis: plt.Axes, x: Tensor, y: Tensor, **style: object) -> None:
    """Median over seeds, and the middle half of them."""
    low, middle, high = y.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=1)
    axis.plot(x, middle, linewidth=1.5, **style)
    axis.fill_between(x, low, high, alpha=0.12, linewidth=0, color=style["color"])


def save(figure: plt.Figure, folder: Path, name: str) -> None:
    """As SVG."""
    figure.savefig(folder / f"{name}.svg")
    plt.close(figure)


def main() -> None:
    """Run everything, print a table, draw two pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    targets = (0.499, 0.49)
    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "none",
        }
    )
    curves, curve_axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row")
    spread, spread_axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, sharey="row")
    print(
        f"{'t':>6}  {'family':<15} {'estimator':<29} {'P(best)':>8} {'variance':>10} {'seconds':>8}"
    )
    for row, t in enumerate(targets):
        for column, (family_name, (family, size, temperature)) in enumerate(FAMILIES.items()):
            for name, colour in COLOURS.items():
                torch.manual_seed(0)
                start = time.perf_counter()
                x, loss, variance = run(
                    family, size, temperature, name, t, arguments.seeds, arguments.steps
                )
                best = ((1 - t) ** 2 - loss[-1]) / ((1 - t) ** 2 - t**2)
                print(
                    f"{t:>6}  {family_name:<15} {name:<29} {best.median():8.3f} "
                    f"{variance.mean():10.2e} {time.perf_counter() - start:8.1f}"
                )
                dashed = (
                    "--"
                    if name
                    in (
                        "Pathwise",
                        "RelaxedStraightThrough",
                        "RaoBlackwellStraightThrough",
                        "ReinMax",
                    )
                    else "-"
                )
                style = {"color": colour, "linestyle": dashed, "label": name}
                band(curve_axes[row, column], x, loss, **style)
                if name != "UnorderedSet (2)":
                    band(spread_axes[row, column], x, variance.clamp(min=1e-12), **style)
            for axes in (curve_axes, spread_axes):
                axes[row, column].set_title(f"{family_name}, t = {t}")
            curve_axes[row, column].axhline(t**2, color="black", linewidth=0.6, linestyle=":")
            spread_axes[row, column].set_yscale("log")
            spread_axes[row, column].set_ylim(1e-9, 1)
        curve_axes[row, 0].set_ylabel("expected loss")
        spread_axes[row, 0].set_ylabel("variance of the gradient")
    for figure, axes in ((curves, curve_axes), (spread, spread_axes)):
        for axis in axes[1]:
            axis.set_xlabel("step")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0.1, 1, 1))
    save(curves, arguments.out, "tucker_toy_loss")
    save(spread, arguments.out, "tucker_toy_variance")


if __name__ == "__main__":
    main()
