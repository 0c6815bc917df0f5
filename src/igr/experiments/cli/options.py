"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer


def option(text: str, choices: Iterable[str] = (), names: Iterable[str] = ()) -> Any:
    """An option with its help, which shows what it may be where there are choices; its argument's name is its own."""
    return typer.Option(*names, metavar=f"<{'|'.join(choices)}>" if choices else None, help=text)


def flag(name: str, text: str) -> Any:
    """An option without a value, shown as such."""
    return typer.Option(name, metavar="", help=text)


Folder = Annotated[Path, option("Folder for everything that comes out.", names=["--out"])]
Records = Annotated[
    Path, option("Folder of records; what is in it is not run again.", names=["--out"])
]
Epochs = Annotated[int, option("Training epochs.")]
Threads = Annotated[int, option("CPU threads; 0: as torch chooses.")]
Samples = Annotated[int, option("Samples m of the importance-weighted bound.")]
ENGINES = ("local", "ray")
Engine = Annotated[
    str, option("Processes on this machine, or a Ray cluster (pip install ray).", ENGINES)
]
RayAddress = Annotated[str | None, option("Of the Ray cluster; without it, one is started here.")]
Workers = Annotated[
    int,
    option(
        "Processes side by side, of one thread each; 1: this one, with torch's threads; 0: one for each core, eight at"
        " most, or 1 where there is little to do or a GPU does it."
    ),
]
CPUs = Annotated[
    float, option("Ray: cores for each task, and threads of torch.", names=["--cpus-per-task"])
]
GPUs = Annotated[
    float | None,
    option("Ray: GPUs for each task; 0.25: four tasks share one.", names=["--gpus-per-task"]),
]
Device = Annotated[str, option("Where torch computes, such as cpu or cuda.")]
Compiled = Annotated[
    bool | None,
    flag(
        "--compile/--no-compile",
        "Compile training steps, or not; by default where a training takes long enough to be worth it.",
    ),
]
TensorBoard = Annotated[
    bool, flag("--tensorboard", "Training curves for TensorBoard too, in its folder in --out.")
]
