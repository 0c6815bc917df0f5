"""Where random numbers come from: one generator, or one for each run of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from igr import functional

__all__ = ["Noise"]


class Noise:
    """A source of noise, of shape ``(*more, *batch, K)`` unless `run` says which dimension the runs of a stack are.

    Args:
        generator: None for torch's global one; a sequence has one for each entry of the first batch dimension.
        batch_shape: of q.
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        batch_shape: torch.Size,
    ) -> None:
        each = generator if isinstance(generator, Sequence) else (generator,)
        if generator is not None and not all(isinstance(g, torch.Generator) for g in each):
            raise ValueError(
                "generator: expected a torch.Generator, a sequence of them, or None, got "
                f"{generator!r}; torch.Generator().manual_seed(0) makes one"
            )
        self.generator = generator
        self.batch_dims = len(batch_shape)
        if isinstance(generator, Sequence) and len(generator) != (batch_shape or (-1,))[0]:
            raise ValueError(
                "generator: expected one, or one for each entry of the first batch dimension of q, whose batch shape "
                f"is {tuple(batch_shape)}, got {len(generator)}"
            )

    def _draw(
        self,
        one: Callable[[Sequence[int], torch.Generator | None], Tensor],
        shape: Sequence[int],
        run: int | None = None,
    ) -> Tensor:
        if not isinstance(self.generator, Sequence):
            return one(shape, self.generator)
        if run is None:
            run = len(shape) - 1 - self.batch_dims
        if shape[run] != len(self.generator):
            raise ValueError(
                "generator: expected one alone where f returns a single value for all of q's batch, "
                f"got {len(self.generator)}"
            )
        rest = [*shape[:run], *shape[run + 1 :]]
        return torch.stack([one(rest, g) for g in self.generator], run)

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise in the dtype of `like`."""

        def one(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
            # the overload for generators knows no symbolic sizes
            given: dict[str, Any] = {} if generator is None else {"generator": generator}
            return torch.randn(size, dtype=like.dtype, device=like.device, **given)

        return self._draw(one, shape)

    def uniform(
        self, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Uniform noise on [0, 1), in the dtype of `like` or the one given."""

        def one(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
            given: dict[str, Any] = {} if generator is None else {"generator": generator}
            return torch.rand(size, dtype=dtype or like.dtype, device=like.device, **given)

        return self._draw(one, shape)

    def gumbel(self, shape: Sequence[int], like: Tensor, run: int | None = None) -> Tensor:
        """Standard Gumbel noise."""

        def one(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
            return functional.gumbel_sample(tuple(size), like.dtype, like.device, generator)

        return self._draw(one, shape, run)

    def onehot(self, logits: Tensor, num_samples: int) -> Tensor:
        """One-hot draws ``(S, *batch, K)``, without gradient."""
        with torch.no_grad():
            shape = (num_samples, *logits.shape)
            return functional.one_hot_argmax(logits + self.gumbel(shape, logits))
