"""The command ``igr``."""

# ruff: noqa: E402
from __future__ import annotations

from igr.experiments._extra import exit_if_missing

exit_if_missing()


def main() -> None:
    """Runs the command line."""
    raise SystemExit("igr: no commands yet")
