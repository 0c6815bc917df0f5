"""Says in one line which packages are missing, where the extra was not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# Module names of what `pip install 'igr[experiments]'` brings.
_MODULES = (
    "filelock",
    "jinja2",
    "matplotlib",
    "numpy",
    "PIL",
    "platformdirs",
    "pooch",
    "rich",
    "safetensors",
    "sklearn",
    "typer",
)


def exit_if_missing(modules: tuple[str, ...] = _MODULES) -> None:
    """Ends the program with one line and exit code 2 if any of the modules is not installed.

    A command calls this before it imports anything outside of torch and the standard library.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        print(
            f"igr: the command needs packages that are not installed ({', '.join(missing)});"
            " install them with: pip install 'igr[experiments]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
