"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path, typer.Option("--out", help="Folder for everything that comes out.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: as torch chooses.")]
Samples = Annotated[int, typer.Option(help="Samples m of the importance-weighted bound.")]
Engine = Annotated[
    str,
    typer.Option(
        metavar="<local|ray>", help="Processes on this machine, or a Ray cluster (pip install ray)."
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of the Ray cluster; without it, one is started here.")
]
Workers = Annotated[
    int, typer.Option(help="Processes side by side, of one thread each; 0: one for each core.")
]
Device = Annotated[str, typer.Option(help="Where torch computes, such as cpu or cuda.")]
Compiled = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        metavar="",
        help="Compile training steps, or not; by default where a training takes long enough to be worth it.",
    ),
]


def choices(names: Iterable[str]) -> str:
    """How help shows what an option may be."""
    return f"<{'|'.join(names)}>"


def flag(name: str, text: str) -> Any:
    """An option without a value, shown as such."""
    return typer.Option(name, metavar="", help=text)
