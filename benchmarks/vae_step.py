"""A VAE's training step and its evaluation against their floor: the matrix products, and fused Adam, alone.

The floor of a step has the same shapes: the products of the forward and of the backward pass, each written as one
batched product, and one fused Adam over all parameters. The step is what `igr vae` runs, drawing batch and noise
included. The floor of the bound is the decoder's products on one-hot codes that are there already.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from harness import Row, compare, options, report
from igr.experiments.models.vae import StackedVAE
from igr.experiments.training.compute import flushed_denormals, keep_memory
from igr.experiments.training.config import RunConfig
from igr.experiments.training.evaluation import score_images
from igr.experiments.training.trainer import StackTrainer, build

PIXELS, IMAGES, BATCH = 784, 6000, 100
TEMPERATURES = (0.01, 0.03, 0.07, 0.1, 0.25, 0.4, 0.5, 0.67, 0.85, 1.0)


def grid(family: str, count: int) -> list[RunConfig]:
    """As many runs as a sweep stacks: temperatures first, then seeds."""
    settings = itertools.product(range(5), TEMPERATURES)
    return [
        RunConfig(dataset="mnist", family=family, temperature=t, seed=seed)
        for seed, t in itertools.islice(settings, count)
    ]


def training(
    runs: Sequence[RunConfig], images: Tensor, compiled: bool = False
) -> tuple[StackTrainer, Callable[[], None]]:
    """A trainer, and its next step."""
    trainer = StackTrainer(runs, images, compiled=compiled)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count(1):
            yield from trainer.batches(epoch)

    drawn = batches()
    return trainer, lambda: trainer.step(*next(drawn)) and None


def floor(model: StackedVAE) -> Callable[[], None]:
    """The products of one step and fused Adam, on tensors of the model's shapes."""
    parameters = [torch.rand_like(value).requires_grad_() for value in model.tensors.values()]
    for parameter in parameters:
        parameter.grad = torch.rand_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=1e-9, fused=True)
    weights = [(p, p.grad) for p in parameters if p.shape[1] > 1]
    layers = []
    for i, (weight, _) in enumerate(weights):
        runs, n_in, n_out = weight.shape
        # The images need no gradient: the first layer of the encoder has one product fewer.
        layers.append(
            (weight, torch.rand(runs, BATCH, n_in), torch.rand(runs, BATCH, n_out), i > 0)
        )

    def run() -> None:
        with torch.no_grad():
            for weight, x, grad, passes_on in layers:
                torch.bmm(x, weight)
                weight.grad = torch.bmm(x.mT, grad)
                if passes_on:
                    torch.bmm(grad, weight.mT)
        optimizer.step()

    return run


def step_row(
    family: str, count: int, images: Tensor, target: float, repeats: int, compiled: bool = False
) -> Row:
    trainer, step = training(grid(family, count), images, compiled)
    return compare(
        f"{family}: {'compiled ' * compiled}step of {count} run{'s' * (count > 1)}",
        step,
        "products and Adam",
        floor(trainer.model),
        target,
        repeats=repeats,
    )


def claim_row(family: str, images: Tensor, repeats: int) -> Row:
    """The paper's claim on time: I and SB about as fast as the Gumbel-Softmax, Planar some 30% slower."""
    return compare(
        f"{family}: step of 1 run",
        training(grid(family, 1), images)[1],
        "gs: step of 1 run",
        training(grid("gs", 1), images)[1],
        None,
        repeats=repeats,
    )


def stack_row(images: Tensor, repeats: int, count: int = 50) -> Row:
    _, together = training(grid("igr-i", count), images)
    alone = [training([run], images)[1] for run in grid("igr-i", count)]

    def one_after_another() -> None:
        for step in alone:
            step()

    return compare(
        f"igr-i: step of {count} runs",
        together,
        f"{count} runs one after another",
        one_after_another,
        1 / 1.2,
        repeats=repeats,
    )


def bound_row(architecture: str, images: Tensor, repeats: int, samples: int = 1000) -> Row:
    run = dataclasses.replace(grid("igr-i", 1)[0], architecture=architecture)
    model = build([run], PIXELS)
    some = images[:20]
    codes = torch.randint(0, 10, (samples, 20))
    one_hot = torch.nn.functional.one_hot(codes, 10).mT.flatten(1).float()
    layers = [weight.squeeze(0) for weight, _ in model.decoder]

    def products() -> None:
        for _ in some:
            x = one_hot
            for weight in layers:
                x = x @ weight

    return compare(
        f"bound, m = {samples}, {architecture}",
        lambda: score_images(model, some, samples=samples),
        "decoder's products",
        products,
        1.5,
        repeats=repeats,
        note=f"{len(some)} images a call",
    )


def main() -> None:
    chosen = options(__doc__)
    keep_memory()  # as the command does
    with flushed_denormals():
        report("Training and evaluating a VAE", measure(chosen), chosen.json)


def measure(chosen: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    images = (torch.rand(IMAGES, PIXELS) < 0.13).float()
    few = chosen.repeats or 11
    many = chosen.repeats or 201
    return [
        step_row("igr-i", 1, images, 1.5, many),
        step_row("igr-i", 1, images, 1.25, many, compiled=True),
        step_row("gs", 1, images, 1.5, many),
        step_row("gs", 1, images, 1.25, many, compiled=True),
        step_row("igr-i", 10, images, 1.4, 3 * few),
        step_row("igr-i", 10, images, 1.2, 3 * few, compiled=True),
        step_row("igr-i", 50, images, 1.4, few),
        step_row("igr-i", 50, images, 1.2, few, compiled=True),
        stack_row(images, few),
        *(claim_row(family, images, many) for family in ("igr-i", "igr-sb", "igr-planar")),
        bound_row("linear", images, few),
        bound_row("nonlinear", images, few),
    ]


if __name__ == "__main__":
    main()
