"""Sampling with gradient against what torch offers, stick-breaking against IGR-I, other dimensions, and the import.

Forward and backward passes in float32, with an incoming gradient that is not constant.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import RelaxedOneHotCategorical, kl_divergence

import igr
from harness import Row, compare, options, report
from igr import functional as fn

SHAPES = {(100, 20, 10): 200, (1000, 20, 10): 60, (64, 50_000): 15}
LOGITS = {(100, 10): 50, (100, 20, 10): 20, (1000, 20, 10): 8}
TARGETS = {
    "sample": (0.6, 0.45, 0.35),
    "sample and KL": (0.8, 0.6, 0.6),
    "object": (0.4, 0.4, 0.4),
    "stick": {10: 2.0, 1000: 3.0, 50_000: 3.5},
}
TEMPERATURE = 0.5


def gaussian(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """loc and log scale, leaves with a gradient."""
    shape = (*shape[:-1], shape[-1] - 1)
    return torch.randn(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)


def backward(loss: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(loss, leaves)


def sampling(
    shape: tuple[int, ...], with_kl: bool, temperature: float = TEMPERATURE
) -> tuple[Callable[[], None], Callable[[], None]]:
    """igr_softmax from loc and scale, and gumbel_softmax from logits."""
    loc, scale = gaussian(shape)
    scale = scale.exp().detach().requires_grad_()
    logits = torch.randn(shape, requires_grad=True)
    weights = torch.randn(shape)

    def ours() -> None:
        loss = torch.vdot(fn.igr_softmax(loc, scale, temperature).flatten(), weights.flatten())
        if with_kl:
            loss = loss + fn.gaussian_kl(loc, scale).sum()
        backward(loss, loc, scale)

    def torchs() -> None:
        z = F.gumbel_softmax(logits, temperature)
        backward(torch.vdot(z.flatten(), weights.flatten()), logits)

    return ours, torchs


def from_logits(shape: tuple[int, ...]) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same logits on both sides, for ours solved for the location at each call."""
    logits = torch.randn(shape, requires_grad=True)
    weights = torch.randn(shape).flatten()

    def ours() -> None:
        q = igr.SoftmaxIGR.from_logits(logits, TEMPERATURE)
        backward(torch.vdot(q.rsample().flatten(), weights), logits)

    def torchs() -> None:
        backward(torch.vdot(F.gumbel_softmax(logits, TEMPERATURE).flatten(), weights), logits)

    return ours, torchs


def objects(shape: tuple[int, ...]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Construct, rsample, divergence from the prior, backward; torch's class has log_prob alone, and needs it twice."""
    loc, scale = gaussian(shape)
    scale = scale.exp().detach().requires_grad_()
    prior = igr.SoftmaxIGR(torch.zeros(shape[-1] - 1), torch.ones(shape[-1] - 1), TEMPERATURE)
    logits = torch.randn(shape, requires_grad=True)
    weights = torch.randn(shape)
    temperature = torch.tensor(TEMPERATURE)
    # Its own check of the simplex fails at K = 50,000.
    validate = False if shape[-1] > 1000 else None

    def ours() -> None:
        q = igr.SoftmaxIGR(loc, scale, TEMPERATURE)
        loss = torch.vdot(q.rsample().flatten(), weights.flatten()) + kl_divergence(q, prior).sum()
        backward(loss, loc, scale)

    def torchs() -> None:
        q = RelaxedOneHotCategorical(temperature, logits=logits, validate_args=validate)
        z = q.rsample()
        backward(torch.vdot(z.flatten(), weights.flatten()) + q.log_prob(z).sum(), logits)

    return ours, torchs


def stick_breaking(
    form: Callable[..., Tensor], shape: tuple[int, ...]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A stick-breaking form, and IGR-I at the same shape."""
    loc, scale = gaussian(shape)
    scale = scale.exp().detach().requires_grad_()
    weights = torch.randn(shape)

    def run(sampler: Callable[..., Tensor]) -> None:
        z = sampler(loc, scale, TEMPERATURE)
        backward(torch.vdot(z.flatten(), weights.flatten()), loc, scale)

    return lambda: run(form), lambda: run(fn.igr_softmax)


def dimensions(form: Callable[..., Tensor]) -> tuple[Callable[[], None], Callable[[], None]]:
    """A sampler along the dimension before the last, and along the last, of as many numbers."""

    def run(shape: tuple[int, ...], dim: int) -> Callable[[], None]:
        loc = torch.randn(shape).narrow(dim, 1, shape[dim] - 1).clone().requires_grad_()
        scale = torch.ones_like(loc).requires_grad_()
        weights = torch.randn(shape).flatten()

        def step() -> None:
            z = form(loc, scale, TEMPERATURE, dim=dim)
            backward(torch.vdot(z.flatten(), weights), loc, scale)

        return step

    return run((100, 10, 20), -2), run((100, 20, 10), -1)


def import_time(repeats: int) -> Row:
    """A fresh interpreter that imports igr, against one that imports torch."""
    seconds: dict[str, list[float]] = {"igr": [], "torch": []}
    for turn in range(repeats + 1):
        for module, times in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            if turn:
                times.append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(seconds["igr"], seconds["torch"], strict=True))
    n = len(ratios)
    return Row(
        work="import igr",
        against="import torch",
        ratio=statistics.median(ratios),
        target=1.1,
        milliseconds=1e3 * statistics.median(seconds["igr"]),
        spread=f"{ratios[n // 4]:.2f}-{ratios[3 * n // 4]:.2f}",
    )


def main() -> None:
    chosen = options(__doc__)
    torch.manual_seed(0)
    rows = []
    for i, (shape, usual) in enumerate(SHAPES.items()):
        repeats = chosen.repeats or usual
        for work, with_kl in (("sample", False), ("sample and KL", True)):
            ours, torchs = sampling(shape, with_kl)
            name = f"igr_softmax, {work} {shape}"
            target = TARGETS[work][i]
            rows.append(compare(name, ours, "F.gumbel_softmax", torchs, target, repeats=repeats))
        ours, torchs = objects(shape)
        name = f"SoftmaxIGR, construct, rsample, KL {shape}"
        rows.append(
            compare(
                name,
                ours,
                "RelaxedOneHotCategorical",
                torchs,
                TARGETS["object"][i],
                repeats=repeats,
            )
        )
    for shape, usual in LOGITS.items():
        ours, torchs = from_logits(shape)
        name = f"SoftmaxIGR.from_logits, sample {shape}"
        repeats = chosen.repeats or usual
        rows.append(compare(name, ours, "F.gumbel_softmax", torchs, None, repeats=repeats))
    shape = (100, 10)
    ours, torchs = sampling(shape, False)
    name = f"igr_softmax, sample {shape}"
    rows.append(
        compare(name, ours, "F.gumbel_softmax", torchs, None, repeats=chosen.repeats or 200)
    )
    # Where most weights underflow: on a CPU torch's exp takes up to 150 times as long there.
    shape = (1000, 20, 10)
    ours, torchs = sampling(shape, False, temperature=0.01)
    name = f"igr_softmax, sample {shape} at temperature 0.01"
    repeats = chosen.repeats or SHAPES[shape]
    rows.append(compare(name, ours, "F.gumbel_softmax", torchs, None, repeats=repeats))
    forms = {
        "stick-breaking (18)": fn.stick_breaking_igr_softmax,
        "stick-breaking, sharpened": fn.sharp_stick_breaking_igr_softmax,
    }
    for shape, usual in (((2000, 10), 100), ((64, 1000), 100), ((64, 50_000), 15)):
        for name, form in forms.items():
            ours, plain = stick_breaking(form, shape)
            target = TARGETS["stick"][shape[-1]]
            repeats = chosen.repeats or usual
            rows.append(compare(f"{name} {shape}", ours, "IGR-I", plain, target, repeats=repeats))
    for name, form in {"IGR-I": fn.igr_softmax, **forms}.items():
        other, last = dimensions(form)
        repeats = chosen.repeats or 200
        name = f"{name} (100, 10, 20) along dim 1"
        rows.append(compare(name, other, "dim 2 of (100, 20, 10)", last, 1.1, repeats=repeats))
    rows.append(import_time(min(chosen.repeats or 7, 7)))
    report("Sampling with gradient", rows, chosen.json)


if __name__ == "__main__":
    main()
