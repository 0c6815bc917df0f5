"""Proposition 2 and RELAX against a pathwise step, broken sticks against Proposition 2, and its growth with K."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

import igr
from harness import Row, alternate, compare, options, report
from igr.discrete import argmax_log_probs
from igr.experiments.training.compute import keep_memory
from igr.stick_breaking import leader_log_probs
from vae_step import IMAGES, PIXELS, grid, training

VARIABLES = 2000


def recovery(
    K: int, variables: int, at: Tensor | None = None
) -> tuple[Callable[[], None], Tensor, Tensor]:
    """Probabilities of all categories, forward and backward, with scales of 1 where loc is given."""
    loc = torch.randn(variables, K - 1) if at is None else at.clone()
    scale = torch.exp(0.5 * torch.randn(variables, K - 1)) if at is None else torch.ones_like(at)
    loc, scale = loc.requires_grad_(), scale.requires_grad_()
    weights = torch.randn(variables, K)

    def run() -> None:
        loc.grad = scale.grad = None
        torch.vdot(argmax_log_probs(loc, scale).exp().flatten(), weights.flatten()).backward()

    return run, loc, scale


def recovery_row(repeats: int, images: Tensor) -> Row:
    """2,000 variables of 10 categories, those of a batch of the VAE, with the error that is reached."""
    run, loc, scale = recovery(10, VARIABLES)
    _, step = training(grid("igr-i", 1), images)
    with torch.no_grad():
        exact = argmax_log_probs(loc.double(), scale.double(), tolerance=1e-12).exp()
        error = (argmax_log_probs(loc, scale).exp() - exact).abs().max().item()
    return compare(
        f"Proposition 2, {VARIABLES} variables of K = 10",
        run,
        "igr-i: pathwise step",
        step,
        2.0,
        repeats=repeats,
        note=f"largest error {error:.1e}",
    )


def stick_row(smallest: float | None, repeats: int) -> Row:
    """The recovered distribution of a sharpened broken stick, forward and backward, against that of the softmax++."""
    run, loc, scale = recovery(10, VARIABLES)
    with torch.no_grad():
        loc.div_(math.sqrt(3))
        scale.copy_(torch.exp(0.6 * torch.randn_like(scale)))
        if smallest is not None:
            scale[7, 3] = smallest
    weights = torch.randn(VARIABLES, 10)

    def stick() -> None:
        loc.grad = scale.grad = None
        torch.vdot(leader_log_probs(loc, scale).exp().flatten(), weights.flatten()).backward()

    which = "as new heads have them" if smallest is None else f"the same, but for one of {smallest}"
    return compare(
        f"broken stick, {VARIABLES} variables of K = 10, scales {which}",
        stick,
        "Proposition 2",
        run,
        20.0,
        repeats=repeats,
    )


def growth_row(repeats: int) -> Row:
    """Exponent e of cost ~ K^e between K = 10 and K = 1,000, at as many nodes."""
    ks, variables = (10, 1000), 200
    cases = {str(K): recovery(K, variables)[0] for K in ks}
    seconds = alternate(cases, repeats)
    factor = math.log(ks[1] / ks[0])
    few, many = (seconds[str(K)] for K in ks)
    exponents = sorted(math.log(b / a) / factor for a, b in zip(few, many, strict=True))
    n = len(exponents)
    return Row(
        work=f"Proposition 2, {variables} variables, K = 10 to 1,000",
        against="exponent of K",
        ratio=exponents[n // 2],
        target=1.1,
        milliseconds=1e3 * sorted(many)[n // 2],
        spread=f"{exponents[n // 4]:.2f}-{exponents[3 * n // 4]:.2f}",
    )


def inverse_row(variables: int, K: int, repeats: int) -> Row:
    """`from_logits`, forward and backward, against the probabilities at what it finds."""
    logits = torch.randn(variables, K, requires_grad=True)
    weights = torch.randn(variables, K - 1)
    with torch.no_grad():
        loc = igr.SoftmaxIGR.from_logits(logits, 0.5).loc

    def run() -> None:
        logits.grad = None
        found = igr.SoftmaxIGR.from_logits(logits, 0.5).loc
        torch.vdot(found.flatten(), weights.flatten()).backward()

    return compare(
        f"from_logits, {variables} variables of K = {K:,}",
        run,
        "Proposition 2",
        recovery(K, variables, loc)[0],
        None,
        repeats=repeats,
    )


def relax_row(family: str, target: float, repeats: int, images: Tensor) -> Row:
    """A step of the linear VAE by RELAX against one by pathwise gradients."""
    run = grid(family, 1)[0]
    _, pathwise = training([run], images)
    _, relax = training([dataclasses.replace(run, estimator="relax")], images)
    return compare(
        f"{family}: step by RELAX",
        relax,
        f"{family}: pathwise step",
        pathwise,
        target,
        repeats=repeats,
    )


def main() -> None:
    """Print the table."""
    chosen = options(__doc__)
    keep_memory()  # as the command does
    torch.manual_seed(0)
    images = (torch.rand(IMAGES, PIXELS) < 0.13).float()
    repeats = chosen.repeats or 31
    rows = [
        recovery_row(repeats, images),
        stick_row(None, min(repeats, 5)),
        stick_row(0.05, min(repeats, 5)),
        growth_row(min(repeats, 11)),
        inverse_row(64, 1000, min(repeats, 11)),
        inverse_row(8, 8192, min(repeats, 11)),
        relax_row("gs", 5.0, repeats, images),
        relax_row("igr-i", 6.0, repeats, images),
    ]
    report("Recovery and RELAX", rows, chosen.json)


if __name__ == "__main__":
    main()
