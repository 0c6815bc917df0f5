"""What Pyro asks of a distribution besides torch's own interface."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = ["PyroSite"]


def _mixin() -> Any:
    """What Pyro's own distributions inherit from; None until Pyro has been imported."""
    module = sys.modules.get("pyro.distributions.torch_distribution")
    return getattr(module, "TorchDistributionMixin", None)


class _Theirs:
    """An attribute of Pyro's own distributions, as they have it, once Pyro has been imported."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        mixin = _mixin()
        if mixin is None:
            raise AttributeError(f"{self.name}: distributions have it in Pyro; import pyro first")
        return getattr(mixin, self.name).__get__(instance, owner)


class _Shape(tuple[int, ...]):
    """The shape of a sample: a tuple, as `shape` is elsewhere, that can be called, as Pyro does."""

    __slots__ = ()

    def __call__(self, sample_shape: Sequence[int] = ()) -> torch.Size:
        return torch.Size((*sample_shape, *self))


class PyroSite(Distribution):
    """A distribution that Pyro takes for one of its own, wherever that has been imported. Abstract."""

    expand_by = _Theirs()
    to_event = _Theirs()
    mask = _Theirs()  # for categories that are ruled out, see `allowed`
    score_parts = _Theirs()
    has_rsample_ = _Theirs()
    conjugate_update = _Theirs()
    rv = _Theirs()
    independent = _Theirs()
    reshape = _Theirs()

    def __init__(
        self,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008  # torch's own
        event_shape: torch.Size = torch.Size(),  # noqa: B008
        validate_args: bool | None = None,
    ) -> None:
        if not torch.compiler.is_compiling():
            _register()
        Distribution.__init__(self, batch_shape, event_shape, validate_args=validate_args)

    def __call__(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a sample, as ``pyro.sample`` does."""
        if _register() and sys.modules["pyro.poutine.runtime"].am_i_wrapped():
            raise RuntimeError(
                f"{type(self).__name__}: this was made before Pyro was imported, so plates around it have not seen "
                "it; sample again, or import Pyro first"
            )
        draw = self.rsample if self.has_rsample else self.sample
        return draw(torch.Size(sample_shape))

    @property
    def event_dim(self) -> int:
        """Number of dimensions of an event."""
        return len(self.event_shape)

    @property
    def shape(self) -> _Shape:
        """Shape of a sample; called with a sample shape, that of several."""
        return _Shape((*self.batch_shape, *self.event_shape))

    @classmethod
    def infer_shapes(cls, **shapes: Sequence[int]) -> tuple[torch.Size, torch.Size]:
        """Batch shape and event shape that tensors of these shapes as arguments would give.

        >>> import igr
        >>> igr.SoftmaxIGR.infer_shapes(loc=(5, 2), scale=(2,), temperature=())
        (torch.Size([5]), torch.Size([3]))
        """
        # Ones are right for every parameter, and take no memory.
        ones: dict[str, Any] = {
            name: torch.ones((), dtype=torch.bool if name == "allowed" else None).expand(
                tuple(shape)
            )
            for name, shape in shapes.items()
        }
        q = cls(**ones)
        return q.batch_shape, q.event_shape


def _register() -> bool:
    """Have Pyro take `PyroSite` for its own, if it has been imported; whether it did not until now."""
    mixin = _mixin()
    if mixin is None or issubclass(PyroSite, mixin):
        return False
    mixin.register(PyroSite)
    return True
