"""``igr collect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from igr.experiments.cli.console import say
from igr.experiments.cli.options import option
from igr.experiments.files import expanded
from igr.experiments.paper import results
from igr.experiments.paper.plan import check_root

EXAMPLES = (
    "igr collect runs/paper --into results",
    "igr collect igr-reproduce --into results",
)


def collect(
    folder: Annotated[Path, typer.Argument(help="What `igr reproduce --scale full --out` wrote.")],
    into: Annotated[Path, option("Folder of results, such as results/ in a clone.")],
) -> None:
    root = expanded(folder)
    check_root(root)
    files = results.collect(root, expanded(into))
    say(f"{len(files)} files in {into}; the table of all cells: {into / 'cells.csv'}")
