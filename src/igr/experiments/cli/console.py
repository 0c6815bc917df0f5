"""What the commands print, and where: tables to standard output; progress, notes and errors to standard error."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

# For streams that cannot write everything that is printed here.
_PLAIN = {
    "±": "+-",
    "–": "-",
    "’": "'",
    "“": '"',
    "”": '"',
    "…": "...",
    "━": "-",
    "╸": "-",
    "•": "*",
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end


def prepare() -> None:
    """Have standard output and error take whatever is printed: in another encoding, or closed."""
    codecs.register_error("igr", _plainly)
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="igr")


def say(text: str, to: Console | None = None) -> None:
    """Print a line to `out`, or elsewhere, as it is: not wrapped, nothing in it read as markup."""
    (to or out).print(text, soft_wrap=True, markup=False)


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one line on standard error."""
    print(f"igr: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


@dataclass(frozen=True)
class Column:
    """A column of a table; those of the highest rank are left out first where all are too wide."""

    title: str
    rank: int = 0
    left: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], **options: Any) -> Table:
    """A table as wide as `out` at most: whole columns are left out, and no number is cut."""
    kept = list(range(len(columns)))
    while True:
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)
        for i in kept:
            shown.add_column(
                columns[i].title, justify="left" if columns[i].left else "right", no_wrap=True
            )
        for row in rows:
            shown.add_row(*(row[i] for i in kept))
        width = Measurement.get(out, out.options.update(width=10_000), shown).maximum
        droppable = [i for i in kept if columns[i].rank]
        if width <= out.width or not droppable:
            return shown
        kept.remove(max(droppable, key=lambda i: columns[i].rank))
