"""What the commands print, and where: tables to standard output; progress, notes and errors to standard error."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console

__all__ = ["fail", "notes", "out", "say"]

out = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


def say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, nothing in it read as markup."""
    console.print(text, soft_wrap=True, markup=False)


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one line on standard error."""
    print(f"igr: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code) from None
