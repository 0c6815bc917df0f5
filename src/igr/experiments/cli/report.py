"""``igr report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from igr.experiments.cli.console import say
from igr.experiments.cli.options import option
from igr.experiments.files import expanded
from igr.experiments.paper import report as page

EXAMPLES = (
    "igr report igr-reproduce",
    "igr report runs/paper --out paper.html",
)


def report(
    folder: Annotated[Path, typer.Argument(help="What `igr reproduce --out` wrote.")],
    out_file: Annotated[
        Path | None, option("The page; by default report.html in the folder.", names=["--out"])
    ] = None,
) -> None:
    root = expanded(folder)
    path = expanded(out_file or root / "report.html")
    size = page.write(root, path)
    say(f"{path} ({size / 1e6:.1f} MB, needs no network)")
