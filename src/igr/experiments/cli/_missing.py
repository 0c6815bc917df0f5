"""Says in one line which packages are missing, where the extra was not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# What the extra `experiments` brings, as modules and as pip knows them where that is another name.
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
_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def exit_if_missing(modules: tuple[str, ...] = _MODULES) -> None:
    """End the program with one line and exit code 2 if any of the modules is not installed."""
    missing = [_PACKAGES.get(name, name) for name in modules if find_spec(name) is None]
    if missing:
        print(
            "igr: the command needs packages that are not installed; install them with:"
            f" pip install {' '.join(missing)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
