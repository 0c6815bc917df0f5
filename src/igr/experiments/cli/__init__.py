"""The command ``igr``. Each command is a file beside this one, imported when it is run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

__all__ = ["main"]

_STOPPED = "igr: stopped; the same command goes on from there (vae: with --resume)\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2."""
    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, _stop) if ours else None
    try:
        # Within, so that Ctrl-C is one line from the first moment on.
        from igr.experiments.cli._missing import exit_if_missing

        exit_if_missing()
        from igr.experiments.cli.app import run

        run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        sys.stderr.write(_STOPPED)
        raise SystemExit(130) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _stop(number: int, frame: object) -> None:
    # Not by an exception, which imports that are under way may swallow or turn into another. Nothing is lost: files are
    # written whole, and what trains asks for signals itself.
    os.write(2, _STOPPED.encode())
    os._exit(130)
