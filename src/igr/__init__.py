"""Invertible Gaussian Reparameterization: relaxed categorical variables from Gaussian noise."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igr._public import *  # noqa: F403

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    # At the first use, so that the command's help does not wait for torch.
    if name in {module.name for module in iter_modules(__path__)}:  # noqa: F405
        return import_module(f"igr.{name}")
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(f"module 'igr' has no attribute {name!r}")
    public = import_module("igr._public")
    globals().update({each: getattr(public, each) for each in ("__all__", *public.__all__)})
    if name not in globals():
        raise AttributeError(f"module 'igr' has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
