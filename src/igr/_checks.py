"""Argument checks whose errors name the argument, what was expected and what came."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "allowed_categories",
    "between",
    "broadcast",
    "positive",
    "satisfies",
    "values_can_be_read",
]


def values_can_be_read(*values: float | Tensor) -> bool:
    """Whether a check may look at values: not where code is traced, under `torch.func.vmap`, or without data."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return all(_has_data(value) for value in values if isinstance(value, Tensor))


def _has_data(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    # Fake tensors and their like have a dispatch of their own.
    return not tensor.is_meta and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def enabled(validate_args: bool | None) -> bool:
    """Whether to check: the argument, or torch's own default where it is None."""
    return Distribution._validate_args if validate_args is None else validate_args


def satisfies(name: str, value: Tensor, valid: Tensor, expected: str) -> None:
    """Raise ValueError unless every element of `valid` is true."""
    if not values_can_be_read(value, valid) or bool(valid.all()):
        return
    bad = value[~valid] if valid.shape == value.shape else value
    example = bad.detach().flatten()[:3].tolist()
    raise ValueError(
        f"{name}: expected {expected}, got a tensor of shape {tuple(value.shape)} "
        f"with {int((~valid).sum())} invalid element(s), such as {example}"
    )


def between(name: str, value: Tensor, low: float, high: float, expected: str) -> None:
    """Raise ValueError unless every element lies strictly between `low` and `high`."""
    if not values_can_be_read(value) or value.numel() == 0:
        return
    # One pass and no mask, unless there is an error; and Python's numbers, which compare faster than tensors.
    least, greatest = torch.aminmax(value.detach())
    if not (low < least.item() and greatest.item() < high):
        satisfies(name, value, (value > low) & (value < high), expected)


def positive(name: str, value: Any, validate_args: bool | None = None) -> Any:
    """`value`, or ValueError unless it is positive and finite.

    NumPy's numbers come out as Python's, and tensors of one element without dimensions: as in torch, they add none to
    a batch.
    """
    if isinstance(value, Tensor):
        if enabled(validate_args):
            between(name, value, 0.0, torch.inf, "positive finite values")
        return value.reshape(()) if value.dim() and value.numel() == 1 else value
    if not isinstance(value, (int, float)):
        if not isinstance(value, numbers.Real) and getattr(value, "shape", None) != ():
            raise ValueError(
                f"{name}: expected a positive number or a tensor, got {type(value).__name__}"
            )
        value = float(value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")
    return value


def allowed_categories(
    allowed: Tensor | None, num_categories: int | None = None, validate_args: bool | None = None
) -> Tensor | None:
    """`allowed`, or ValueError unless it is a mask that leaves a category to each element."""
    if allowed is None:
        return None
    if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
        came = allowed.dtype if isinstance(allowed, Tensor) else type(allowed).__name__
        raise ValueError(f"allowed: expected a boolean tensor, got {came}")
    wrong = num_categories is not None and allowed.shape[-1:] != (num_categories,)
    if allowed.dim() < 1 or wrong:
        expected = "K" if num_categories is None else num_categories
        raise ValueError(
            f"allowed: expected shape (*batch, {expected}), one entry for each category, "
            f"got {tuple(allowed.shape)}"
        )
    if enabled(validate_args):
        some = allowed.any(-1)
        satisfies("allowed", some, some, "at least one allowed category for each element")
    return allowed


def fits_batch(name: str, shape: torch.Size, batch_shape: torch.Size) -> None:
    """Raise ValueError unless a shape broadcasts against the batch shape."""
    for a, b in zip(reversed(shape), reversed(batch_shape), strict=False):
        if a != b and 1 not in (a, b):
            raise ValueError(
                f"{name}: expected a shape (*sample, *batch, K) whose batch fits {tuple(batch_shape)}, "
                f"got (*sample, *batch) = {tuple(shape)}"
            )


def broadcast_batch(name: str, batch_shape: torch.Size, shape: torch.Size) -> torch.Size:
    """Broadcast the shape of a parameter against the batch shape, or raise ValueError."""
    try:
        return torch.broadcast_shapes(batch_shape, shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts against the batch shape {tuple(batch_shape)}, "
            f"got {tuple(shape)}"
        ) from None


def broadcast(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Broadcast tensors against each other, or raise ValueError that names them."""
    first, *others = tensors.values()
    if all(t.shape == first.shape for t in others):
        return tuple(tensors.values())
    try:
        return tuple(torch.broadcast_tensors(*tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"expected shapes that broadcast, got {shapes}") from None
