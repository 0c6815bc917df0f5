"""Argument checks whose errors name the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

__all__ = [
    "allowed_categories",
    "at_most_one",
    "between",
    "broadcast",
    "categories",
    "count",
    "floating",
    "gaussians",
    "is_eager",
    "is_positive",
    "number",
    "positive",
    "real",
    "satisfies",
    "shape",
    "temperature",
    "tensor",
    "unexpected",
    "values_can_be_read",
]


_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


def is_eager() -> bool:
    """Whether plain eager mode is at work: no compiler, tracer or dispatch mode (fake tensors, `make_fx`)."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._len_torch_dispatch_stack() > 0
    )


def values_can_be_read(*values: object) -> bool:
    """Whether a check may look at values: in eager mode, not under `torch.func.vmap`, and not without data."""
    return is_eager() and all(_has_data(value) for value in values if isinstance(value, Tensor))


def is_transformed() -> bool:
    """Whether this is called within `torch.func.grad`, `vmap` or their like."""
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None
    )


def unwrapped(tensor: Tensor) -> Tensor | None:
    """The tensor without what `torch.func` wraps it in; None where `vmap` has made a batch of it."""
    functorch = torch._C._functorch
    while is_transformed() and functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return None
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def as_list(tensor: Tensor) -> list[Any]:
    """``tensor.tolist()``, which within `torch.func` not every version of torch has."""
    if not is_transformed():
        return tensor.tolist()
    return [as_list(part) if part.dim() else part.item() for part in tensor]


def _has_data(wrapped: Tensor) -> bool:
    tensor = unwrapped(wrapped)
    # Fake tensors and their like have a dispatch of their own.
    return (
        tensor is not None
        and not tensor.is_meta
        and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    )


def enabled(validate_args: bool | None) -> bool:
    """Whether to check: the argument, or torch's own default where it is None."""
    return Distribution._validate_args if validate_args is None else validate_args


def satisfies(name: str, value: Tensor, valid: Tensor, expected: str) -> None:
    """Raise ValueError unless every element of `valid` is true."""
    if not values_can_be_read(value, valid) or bool(valid.all()):
        return
    bad = value[~valid] if valid.shape == value.shape else value
    example = as_list(bad.flatten()[:3])
    raise ValueError(
        f"{name}: expected {expected}, got a tensor of shape {tuple(value.shape)} "
        f"with {int((~valid).sum())} invalid element(s), such as {example}"
    )


def between(name: str, value: Tensor, low: float, high: float, expected: str) -> None:
    """Raise ValueError unless every element lies strictly between `low` and `high`."""
    if not values_can_be_read(value) or value.numel() == 0:
        return
    # One pass and no mask, unless there is an error; and Python's numbers, which compare faster than tensors.
    least, greatest = torch.aminmax(value.detach()) if value.dim() else (value, value)
    if not (low < least.item() and greatest.item() < high):
        satisfies(name, value, (value > low) & (value < high), expected)


def count(name: str, value: Any, least: int = 1) -> int:
    """`value` as Python's number, or ValueError unless it is a whole number of at least `least`."""
    number = None if isinstance(value, bool) else value
    if not isinstance(value, (int, torch.SymInt)):
        try:
            number = value.__index__()
        except (AttributeError, TypeError):
            number = None
    if number is None or number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return number


def shape(name: str, value: Any) -> torch.Size:
    """A shape, or ValueError unless it is a sequence of whole numbers."""
    if isinstance(value, torch.Size):
        return value
    try:
        sizes = tuple(value)
    except TypeError:
        raise ValueError(
            f"{name}: expected a sequence of sizes, such as (5,) or (), got {value!r}"
        ) from None
    return torch.Size([count(name, size, 0) for size in sizes])


def number(name: str, value: Any, expected: str, valid: Callable[[float], bool]) -> float:
    """`value` as Python's number, or ValueError unless it is a valid one, not a tensor that is learned."""
    found = value
    if isinstance(value, bool) or getattr(value, "requires_grad", False):
        found = math.nan
    elif not isinstance(value, _NUMBERS):
        try:
            found = value.__float__()
        except (AttributeError, TypeError, ValueError, RuntimeError):
            found = math.nan
    if not valid(found):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return found


def is_positive(x: float) -> bool:
    """Whether a number is positive and finite."""
    return 0 < x < math.inf


def unexpected(name: str, value: Any, expected: str) -> ValueError:
    """What to raise where a distribution is expected and `value` is none, or not of the kind."""
    module = isinstance(value, torch.nn.Module)
    hint = f"; call the module for its distribution, {name}()" if module else ""
    return ValueError(f"{name}: expected {expected}, got {type(value).__name__}{hint}")


def real(name: str, value: Any, kind: str = "") -> Any:
    """`value`, NumPy's numbers as Python's; or ValueError unless it is a number, or a tensor of real ones."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            raise ValueError(
                f"{name}: expected {kind}numbers, got a boolean tensor; a mask of categories goes as `allowed`, "
                "where that is an argument"
            )
        if value.is_complex():
            raise ValueError(f"{name}: expected {kind}real numbers, got {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, _NUMBERS):
        other = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
        if isinstance(value, bool) or not other:
            schedule = isinstance(value, torch.nn.Module)
            hint = "; call the module for its value now" if schedule else ""
            raise ValueError(
                f"{name}: expected a {kind}number or a tensor, got {type(value).__name__}{hint}"
            )
        value = float(value)
    return value


def positive(name: str, value: Any, validate_args: bool | None = None, above: float = 0.0) -> Any:
    """`real`, or ValueError unless it is positive, finite and above what is given.

    Tensors of one element come out without dimensions: as in torch, they add none to a batch.
    """
    value = real(name, value, "positive ")
    if isinstance(value, Tensor):
        if enabled(validate_args):
            between(name, value, above, torch.inf, "positive finite values" + _above(above))
        return value.reshape(()) if value.dim() and value.numel() == 1 else value
    if not above < value < float("inf"):
        raise ValueError(f"{name}: expected a positive finite number{_above(above)}, got {value}")
    return value


def _above(least: float) -> str:
    return f" above {least:g}" if least else ""


def temperature(name: str, value: Any, validate_args: bool | None = None) -> Any:
    """`positive`, and above 1e-16.

    A sample's derivative divides by the square of it, which overflows in float32 from 1e-19 on, as scores divided by it
    do from 1e-38 on: NaN. At 1e-16 samples are vertices in any dtype, but for scores that are all but equal.
    """
    return positive(name, value, validate_args, 1e-16)


def at_most_one(
    name: str, value: float | Tensor, expected: str, validate_args: bool | None = None
) -> None:
    """Raise ValueError unless a number, or every element of a tensor, is at most 1."""
    if isinstance(value, Tensor):
        if enabled(validate_args):
            satisfies(name, value, value <= 1, expected)
    elif value > 1:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def allowed_categories(
    allowed: Tensor | None,
    num_categories: int | None = None,
    validate_args: bool | None = None,
    dim: int = -1,
) -> Tensor | None:
    """`allowed`, or ValueError unless it is a mask along `dim` that leaves a category to each element."""
    if allowed is None:
        return None
    if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
        came = allowed.dtype if isinstance(allowed, Tensor) else type(allowed).__name__
        raise ValueError(f"allowed: expected a boolean tensor, got {came}")
    wrong = allowed.dim() < -dim or num_categories not in (None, allowed.shape[dim])
    if wrong:
        expected = "K" if num_categories is None else num_categories
        where = f"(*batch, {expected})" if dim == -1 else f"with {expected} entries along {dim}"
        raise ValueError(
            f"allowed: expected shape {where}, one entry for each category, got {tuple(allowed.shape)}"
        )
    if enabled(validate_args):
        some = allowed.any(dim)
        satisfies("allowed", some, some, "at least one allowed category for each element")
    return allowed


def gaussians(
    loc: Tensor, scale: Tensor, allowed: Tensor | None, validate_args: bool | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loc and scale ``(*batch, K-1)`` of one dtype, and the mask ``(*batch, K)``; or ValueError.

    Where a category is not allowed, its values do not matter.
    """
    loc, scale = broadcast(loc=loc, scale=scale)
    dtype = torch.promote_types(loc.dtype, scale.dtype)
    if loc.ndim == 0 or loc.shape[-1] == 0 or not dtype.is_floating_point:
        raise ValueError(
            f"loc: expected floating-point values of shape (*batch, K-1) with K of 2 or more, "
            f"got {dtype} of shape {tuple(loc.shape)}"
        )
    allowed = allowed_categories(allowed, loc.shape[-1] + 1, validate_args)
    if allowed is not None:
        batch = broadcast_batch("allowed", loc.shape[:-1], allowed.shape[:-1])
        loc, scale, allowed = (x.expand(*batch, -1) for x in (loc, scale, allowed))
    if enabled(validate_args):
        finite, above = loc.abs() < torch.inf, (scale > 0) & (scale < torch.inf)
        if allowed is not None:
            finite, above = (x | ~allowed[..., :-1] for x in (finite, above))
        satisfies("loc", loc, finite, "finite values")
        satisfies("scale", scale, above, "positive finite values")
    return loc.to(dtype), scale.to(dtype), allowed


def tensor(name: str, value: Any) -> Tensor:
    """`value`, or ValueError unless it is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a tensor, got {type(value).__name__}; "
            "torch.as_tensor makes one of an array, a list or a number"
        )
    return value


def floating(name: str, value: Any) -> Tensor:
    """`value`, or ValueError unless it is a floating-point tensor."""
    if not tensor(name, value).is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {value.dtype}")
    return value


def categories(name: str, value: Any, dim: Any = -1, least: int = 0) -> int:
    """`dim` counted from the end, or ValueError unless it is a dimension of a floating-point tensor.

    K entries are along it where there is at least one, or else K-1.
    """
    floating(name, value)
    if value.dim() == 0:
        shape = "(*batch, K)" if least else "(*batch, K-1)"
        raise ValueError(f"{name}: expected shape {shape}, got a scalar")
    if not isinstance(dim, int) or not -value.dim() <= dim < value.dim():
        raise ValueError(
            f"dim: expected a dimension of {name}, whose shape is {tuple(value.shape)}, got {dim}"
        )
    if value.shape[dim] < least:
        raise ValueError(f"{name}: expected at least one category, got shape {tuple(value.shape)}")
    return dim if dim < 0 else dim - value.dim()


def broadcasts(shape: torch.Size, other: torch.Size) -> bool:
    """Whether two shapes broadcast."""
    if shape == other:
        return True
    n = min(len(shape), len(other))
    pairs = zip(shape[len(shape) - n :], other[len(other) - n :], strict=True)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def fits_batch(name: str, shape: torch.Size, batch_shape: torch.Size) -> None:
    """Raise ValueError unless a shape broadcasts against the batch shape."""
    if not broadcasts(shape, batch_shape):
        raise ValueError(
            f"{name}: expected a shape (*sample, *batch, K) whose batch fits {tuple(batch_shape)}, "
            f"got (*sample, *batch) = {tuple(shape)}"
        )


def broadcast_batch(name: str, batch_shape: Sequence[int], shape: torch.Size) -> torch.Size:
    """Broadcast the shape of a parameter against the batch shape, or raise ValueError."""
    try:
        return torch.broadcast_shapes(batch_shape, shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts against the batch shape {tuple(batch_shape)}, "
            f"got {tuple(shape)}"
        ) from None


def one_each(name: str, value: Any, batch_shape: torch.Size) -> None:
    """Raise ValueError where a tensor has the shape ``(*batch, 1)``, torch's for one value of each element.

    Here it would broadcast to a batch of every element with every value of the last dimension.
    """
    if isinstance(value, Tensor) and value.shape == (*batch_shape, 1) and value.numel() != 1:
        raise ValueError(
            f"{name}: expected one value for each element, of shape {tuple(batch_shape)}, got {tuple(value.shape)}, "
            f"which is how torch has it; write {name}.squeeze(-1), or expand the other parameters where a batch of "
            f"shape {tuple(torch.broadcast_shapes(batch_shape, value.shape))} is meant"
        )


def broadcast(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Broadcast tensors against each other, or raise ValueError that names them."""
    for name, value in tensors.items():
        tensor(name, value)
    first, *others = tensors.values()
    if all(t.shape == first.shape for t in others):
        return tuple(tensors.values())
    try:
        return tuple(torch.broadcast_tensors(*tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"expected shapes that broadcast, got {shapes}") from None
