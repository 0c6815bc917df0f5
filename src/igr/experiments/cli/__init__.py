"""The command ``igr``. Each command is a file beside this one, imported when it is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2."""
    try:
        # Within, so that Ctrl-C is one line from the first moment on.
        from igr.experiments.cli._missing import exit_if_missing

        exit_if_missing()
        from igr.experiments.cli.app import run

        run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print(
            "igr: stopped; the same command goes on from there (vae: with --resume)",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
