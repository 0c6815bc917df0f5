"""What all estimators share: the interface, what each declares about itself, and the checks made from that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from igr import _checks, functional
from igr.distributions import Relaxation
from igr.estimators.couplings import coupling
from igr.estimators.noise import Noise

__all__ = ["Differentiable", "Estimator", "Needs"]

Objective = Callable[[Tensor], Tensor]


class Needs(Enum):
    """What an estimator needs of q; the value says which distributions have it."""

    SAMPLES = "every relaxation"
    DENSITY = "Gumbel-Softmax, every Gaussian IGR"
    COUPLING = "Gumbel-Softmax, `SoftmaxIGR`"
    PROBABILITIES = "wherever `discrete()` is exact"


class Differentiable(Enum):
    """Where an estimator needs f to have a gradient."""

    NOWHERE = "anything"
    VERTICES = "differentiable at the vertices"
    SIMPLEX = "differentiable between the vertices"


class Estimator(nn.Module):
    """What all estimators share: `num_samples` draws, and f evaluated at each.

    What an estimator is, its class attributes say. Refusals, the table in the documentation and the choices of the
    command are made from them.

    Args:
        num_samples: S, draws to average over.
        sample_axis: f takes all draws at once, with a leading axis, instead of one call for each.
    """

    needs: ClassVar[Needs]
    """What it needs of q."""
    f_is: ClassVar[Differentiable]
    """What it needs of f."""
    bias: ClassVar[str] = "none"
    """Of its gradient."""
    target: ClassVar[str] = "discrete objective"
    """What its gradient is a gradient of."""
    evaluations_per_sample: ClassVar[int | None] = 1
    """Evaluations of f for each of the S samples; None for one at every state."""
    min_samples: ClassVar[int] = 1
    """Least S."""
    max_categories: ClassVar[int | None] = None
    """Largest K, where there is one."""

    def __init__(self, num_samples: int = 1, *, sample_axis: bool = False) -> None:
        super().__init__()
        num_samples = _checks.count("num_samples", num_samples)
        if num_samples < self.min_samples:
            raise ValueError(
                f"num_samples: expected at least {self.min_samples} for {type(self).__name__}, which takes each "
                f"sample's baseline from the others, got {num_samples}"
            )
        self.num_samples = num_samples
        self.sample_axis = sample_axis
        self._initial: dict[str, float | Tensor] = {}

    def _learn(self, name: str, value: float | Tensor) -> None:
        """Make a parameter of that name, of torch's default dtype, on the value's device if it is a tensor."""
        value = _checks.real(name, value)
        if isinstance(value, Tensor):
            value = value.detach().clone()
        self._initial[name] = value
        device = value.device if isinstance(value, Tensor) else None
        like = torch.as_tensor(value, dtype=torch.get_default_dtype(), device=device)
        self.register_parameter(name, nn.Parameter(like.clone()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set what it learns to what it began with, such as after ``to_empty``; not the modules that it was given."""
        for name, value in self._initial.items():
            parameter = self.get_parameter(name)
            parameter.copy_(value) if isinstance(value, Tensor) else parameter.fill_(value)

    @property
    def evaluations(self) -> int | None:
        """Evaluations of f in a call; None for as many as there are states."""
        each = self.evaluations_per_sample
        return None if each is None else each * self.num_samples

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}"

    def forward(
        self,
        q: Distribution,
        f: Objective,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """The loss, ``(*batch,)`` without the dimensions of the variables.

        Args:
            q: one categorical variable, or its relaxation, for each entry of its batch shape.
            f: samples ``(*batch, K)`` to a loss for each element.
            generator: where random numbers come from; torch's global generator by default. A sequence has one for each
                entry of q's first batch dimension: a stack of runs, each with the random numbers it has alone.

        Raises:
            ValueError: if q or f is not what the estimator needs.
        """
        return self._estimate(q, self._law(q), f, Noise(generator, q.batch_shape))

    @abstractmethod
    def _estimate(self, q: Distribution, law: Any, f: Objective, noise: Noise) -> Tensor:
        """The same, from what `needs` names: q itself, its `Coupling`, or its categorical distribution."""

    def _law(self, q: Distribution) -> Any:
        """What `needs` names, or an error."""
        name, limit = type(self).__name__, self.max_categories
        size = (*getattr(q, "event_shape", ()), 0)[0]
        if limit is not None and size > limit:
            raise ValueError(f"q: {name} is for {limit} categories, got {size}")
        if self.needs is Needs.COUPLING:
            return coupling(q)
        if self.needs is Needs.PROBABILITIES:
            return _probabilities(q, name)
        if not isinstance(q, Relaxation):
            raise ValueError(f"q: {name} needs a relaxation to sample from, got {type(q).__name__}")
        return q

    def _evaluate(self, f: Objective, samples: Tensor, q: Distribution) -> Tensor:
        """Values ``(S, *elements)`` at samples ``(S, *batch, K)``, which f gets in the dtype of q's parameters."""
        samples = cast(samples, q)
        if not self.sample_axis:
            return torch.stack([_check_value(f(sample), q.batch_shape) for sample in samples])
        values = f(samples)
        expected = samples.shape[:1]
        if not isinstance(values, Tensor) or values.shape[:1] != expected:
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"f: expected values with a leading axis of {expected[0]} samples (sample_axis=True), got {came}"
            )
        _check_value(values[0], q.batch_shape)
        return values


class JointEstimator(Estimator):
    """For draws that are made for all variables of an element at once.

    How many dimensions are variables is known after f has been called, and needed before: it is guessed (as last time,
    or all but the last of several), and the draw repeated where the guess was wrong.
    """

    _element_dims: int | None = None

    def _draw_and_evaluate(
        self, draw: Callable[[int], Tensor], f: Objective, q: Distribution
    ) -> tuple[Tensor, Tensor]:
        """Samples drawn for the number of an element's dimensions, and values at them."""
        size = len(q.batch_shape)
        dims = self._element_dims
        if dims is None or dims > size:
            dims = max(size - 1, min(size, 1))
        samples = draw(dims)
        values = self._evaluate(f, samples, q)
        if values.dim() - 1 != dims:
            dims = values.dim() - 1
            samples = draw(dims)
            values = self._evaluate(f, samples, q)
            if values.dim() - 1 != dims:
                raise ValueError("f: expected values of the same shape at each call")
        self._element_dims = dims
        return samples, values


def _check_value(value: Any, batch_shape: torch.Size) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"f: expected a floating-point tensor of values, got {came}")
    if value.shape != batch_shape[: value.dim()]:
        raise ValueError(
            f"f: expected one value for each batch element, in a shape that q.batch_shape {tuple(batch_shape)} starts "
            f"with (the rest of it are the variables of an element), got shape {tuple(value.shape)}"
        )
    return value


def _probabilities(q: Distribution, name: str) -> OneHotCategorical:
    """The categorical distribution of q, with probabilities that can be differentiated."""
    if isinstance(q, OneHotCategorical):
        logits = functional.full_precision(q.logits)
        return q if logits is q.logits else OneHotCategorical(logits=logits, validate_args=False)
    if not isinstance(q, Relaxation):
        raise ValueError(
            f"q: {name} needs the probabilities of the categories, from a relaxation with discrete() or a "
            f"OneHotCategorical; got {type(q).__name__}"
        )
    recovered = q.discrete()
    if recovered.standard_error is not None:
        raise ValueError(
            f"q: {name} needs the gradient of the categories' probabilities, and {type(q).__name__} has only a Monte "
            "Carlo estimate of them; use SoftmaxIGR or GumbelSoftmax, or a pathwise estimator"
        )
    return recovered


def refuse_transforms(name: str) -> None:
    """Raise ValueError under `torch.func` transforms, for those that call autograd themselves."""
    if _checks.is_transformed():
        raise ValueError(
            f"q: {name} takes derivatives on its way, which torch.func transforms do not allow; use loss.backward() or "
            "torch.autograd.grad"
        )


def check_broadcasts(name: str, parameter: Tensor, shape: torch.Size) -> None:
    """Raise ValueError unless a learned parameter broadcasts to a shape."""
    last = shape[max(0, len(shape) - parameter.dim()) :]
    if parameter.dim() > len(shape) or not all(
        n in (1, m) for n, m in zip(parameter.shape, last, strict=True)
    ):
        raise ValueError(
            f"{name}: expected a number, or a shape that broadcasts to {tuple(shape)}, got {tuple(parameter.shape)}"
        )


def cast(samples: Tensor, q: Distribution) -> Tensor:
    """Samples in the dtype of q's parameters."""
    if isinstance(q, OneHotCategorical):
        return samples.to(q.logits.dtype)
    return q._cast(samples) if isinstance(q, Relaxation) else samples


def mean_of_others(x: Tensor) -> Tensor:
    """Along the first dimension: the mean of all but the entry itself."""
    return (x.sum(0) - x) / (len(x) - 1)


def sum_variables(x: Tensor, dims: int) -> Tensor:
    """Sum over all dimensions but the first `dims`."""
    return x if x.dim() == dims else x.sum(tuple(range(dims, x.dim())))


def spread(x: Tensor, dims: int) -> Tensor:
    """Trailing dimensions of size 1, up to `dims` in all."""
    return x.reshape(*x.shape, *(1,) * (dims - x.dim()))


class Attach(torch.autograd.Function):
    """A value that hands given gradients to given tensors.

    The first `count` tensors are q's parameters, with a gradient for each batch element, which the gradient that comes
    back to the value weights. The others belong to the estimator as a whole: their gradient is for the sum of the
    values, and is weighted by the mean of what comes back.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> Any:
        (weight,) = grad
        gradients = ctx.saved_tensors
        out = [spread(weight, g.dim()) * g for g in gradients[: ctx.count]]
        # Of no values there is no mean.
        mean = weight.mean() if weight.numel() else weight.sum()
        out += [mean * g for g in gradients[ctx.count :]]
        return weight, None, *out, *(None for _ in gradients)
