"""``igr vae``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from igr.experiments import data
from igr.experiments.cli import console
from igr.experiments.cli.console import fail, say
from igr.experiments.cli.options import (
    Compiled,
    Device,
    Epochs,
    Folder,
    Samples,
    Threads,
    flag,
    option,
)
from igr.experiments.cli.training import (
    check_compiled,
    grouped,
    results_table,
    run_sweep,
    set_threads,
)
from igr.experiments.files import expanded
from igr.experiments.models.families import FAMILIES
from igr.experiments.models.likelihoods import LIKELIHOODS
from igr.experiments.runs.stopping import Interrupted
from igr.experiments.training.compute import Compute, check_compute
from igr.experiments.training.config import ARCHITECTURES, SweepConfig
from igr.experiments.training.objectives import ESTIMATORS, OWN_TEMPERATURE, RELAXED

_FAMILIES = (
    "May be repeated. gs: Gumbel-Softmax; igr-i: Gaussian noise and softmax++; igr-planar: with planar flows; igr-sb:"
    " stick-breaking; igr-sb-sharp: the same, mended."
)
Families = Annotated[list[str], option(_FAMILIES, FAMILIES)]
USED = 0.02  # a code that carries less of what it could is not used: every reconstruction is about the same
EXAMPLES = (
    "igr vae --dataset mnist --family igr-i --family gs --temperature 0.1 --temperature 0.5 --out runs/mnist",
    "igr vae --dataset mnist --epochs 200 --out runs/longer --resume",
)


def vae(
    dataset: Annotated[str, option("What to train on.", data.SOURCES)] = "digits",
    family: Families = ["igr-i"],  # noqa: B006
    temperature: Annotated[list[float], option("May be repeated.")] = [0.1],  # noqa: B006
    seeds: Annotated[int, option("Number of seeds: 0, 1, ...")] = 1,
    epochs: Epochs = 100,
    lr: Annotated[
        float | None,
        option("Adam's learning rate; by default 3e-3 on digits, which are few, else 3e-4."),
    ] = None,
    batch_size: Annotated[int, option("Images in a step.")] = 100,
    architecture: Annotated[
        str,
        option("Affine maps, two hidden layers, or structured output prediction.", ARCHITECTURES),
    ] = "linear",
    decoder: Annotated[str, option("What its outputs mean.", LIKELIHOODS)] = "bernoulli",
    estimator: Annotated[
        str,
        option(
            f"Of the gradient: {', '.join(RELAXED)} of the relaxed model, or of the discrete one"
            f" {', '.join(ESTIMATORS)}."
        ),
    ] = "pathwise",
    estimator_temperature: Annotated[
        float | None, option(f"Its own, of {', '.join(OWN_TEMPERATURE)}; 1 by default.")
    ] = None,
    kl_weight: Annotated[
        float | None, option("Of the KL in what is minimised; 1, the ELBO's, by default.")
    ] = None,
    num_samples: Annotated[int, option("Samples S of each image in a step.")] = 1,
    lr_decay: Annotated[float, option("Divide lr by 1 + this x steps done.")] = 0.0,
    lr_min: Annotated[float, option("But never below this.")] = 0.0,
    variables: Annotated[
        int, option("Categorical variables of the code.", names=["--variables", "--num-variables"])
    ] = 20,
    categories: Annotated[
        int, option("Categories of each.", names=["--categories", "--num-categories"])
    ] = 10,
    prior_temperature: Annotated[float, option("Of the Gumbel-Softmax prior.")] = 0.5,
    unit_scale: Annotated[bool, flag("--unit-scale", "Hold the Gaussian's scales at 1.")] = False,
    held_out: Annotated[int, option("Training images kept back and scored as well.")] = 0,
    samples: Samples = 1000,
    out_folder: Folder = Path("igr-vae"),
    resume: Annotated[bool, flag("--resume", "Go on from the last finished epoch.")] = False,
    threads: Threads = 0,
    device: Device = "cpu",
    compiled: Compiled = None,
) -> None:
    set_threads(threads)
    config = SweepConfig(
        dataset=dataset,
        families=tuple(family),
        temperatures=tuple(temperature),
        seeds=seeds,
        epochs=epochs,
        lr=data.source_of(dataset).lr if lr is None else lr,
        batch_size=batch_size,
        architecture=architecture,
        decoder=decoder,
        estimator=estimator,
        estimator_temperature=estimator_temperature,
        kl_weight=kl_weight,
        num_samples=num_samples,
        lr_decay=lr_decay,
        lr_min=lr_min,
        num_variables=variables,
        num_categories=categories,
        prior_temperature=prior_temperature,
        unit_scale=unit_scale,
        held_out=held_out,
    )
    check_compiled(compiled, [config])
    compute = check_compute(Compute(device, compiled))
    root = expanded(out_folder)
    try:
        results = run_sweep(config, root, resume=resume, samples=samples, compute=compute)
    except Interrupted as stopped:
        fail(f"stopped after epoch {stopped}; go on with the same command and --resume", 130)
    groups = grouped(results)
    console.out.print(results_table(groups, f"Discrete VAEs on {dataset}"))
    for group in groups if architecture != "sop" else []:  # whose units carry no KL
        carried, most = group.mean("kl"), variables * math.log(categories)
        if carried < USED * most:
            say(
                f"{group.family} at temperature {group.temperature:g}: the code carries {carried:.2g} of {most:.2g} "
                "nats, so it is not used; try a larger --lr, more --epochs or another --temperature",
            )
    say(
        f"Records and pictures: {root / 'runs'}; all results: {root / 'results.csv'}",
    )
