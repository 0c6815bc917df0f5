"""``igr status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from igr.experiments.cli.console import say
from igr.experiments.errors import RecordError
from igr.experiments.files import expanded
from igr.experiments.runs import status as found
from igr.experiments.runs.progress import duration

EXAMPLES = (
    "igr status igr-reproduce",
    "watch -n 60 igr status runs/paper",
)


def status(
    folder: Annotated[
        Path, typer.Argument(help="What `igr reproduce --out` or `igr sweep --out` writes.")
    ],
) -> None:
    root = expanded(folder)
    if not any((root / part).is_dir() for part in ("sweeps", "cells", "figures", "progress")):
        raise RecordError(
            f"{root}: expected the folder that `igr reproduce` or `igr sweep` writes, and this is none"
        )
    cells, fits = (len(list(root.glob(f"{each}.json"))) for each in ("cells/*", "figures/*/*"))
    done = f"{cells} cells" + (f" and {fits} figures of fits" if fits else "")
    trained, begun = found.sweeps(root)
    say(f"{done} done; {trained} sweeps trained, {len(begun)} begun")
    for each in begun:
        how = "in work" if each.running else "waiting"
        say(
            f"  {each.name}: {how}, {each.trained} of {each.runs} runs trained, others saved at epoch"
            f" {each.epoch} of {each.epochs}"
        )
    for command in found.commands(root):
        how = f"last heard of {duration(command.told)} ago"
        if not command.running:
            how = f"stopped {duration(command.told)} ago; the same command goes on from there"
        board = command.board
        say(
            f"{command.name}: {100 * board['fraction']:.0f}%, {board['done']} of {board['jobs']} done,"
            f" {duration(board['seconds_left'])} left ({how})"
        )
        if command.running:
            for node, count in board["nodes"].items():
                say(f"  {node}: {count} tasks")
            for part in board["at_work"]:
                say(f"  {part}")
