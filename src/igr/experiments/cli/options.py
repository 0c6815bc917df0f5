"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Compiled", "Device", "Engine", "Folder", "RayAddress", "Samples", "Threads", "Workers"]

Folder = Annotated[Path, typer.Option("--out", help="Folder for everything that comes out.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: as torch chooses.")]
Samples = Annotated[int, typer.Option(help="Samples m of the importance-weighted bound.")]
Engine = Annotated[
    str, typer.Option(help="local: this machine; ray: a Ray cluster (pip install 'igr\\[ray]').")
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of the Ray cluster; without it, one is started here.")
]
Workers = Annotated[
    int, typer.Option(help="Processes side by side, of one thread each; 0: one for each core.")
]
Device = Annotated[str, typer.Option(help="Where torch computes, such as cpu or cuda.")]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile training steps: worth it for long runs.")
]
