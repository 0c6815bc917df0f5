"""The score-function estimator and its baselines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from igr import _checks, functional
from igr.estimators.base import (
    Differentiable,
    Estimator,
    Needs,
    Objective,
    mean_of_others,
    spread,
    sum_variables,
)
from igr.estimators.couplings import log_prob
from igr.estimators.noise import Noise

__all__ = ["LeaveOneOut", "Reinforce", "RunningMean"]


class RunningMean(nn.Module):
    """A baseline: the mean of the losses of earlier calls, with exponentially decaying weights.

    It never contains the samples that it is subtracted from, so that it adds no bias. It is 0 at the first call. What
    it remembers changes in training mode alone.

    Args:
        decay: weight of the past at each call.
        shape: leading dimensions of the losses that have a mean each, such as a stack of runs.

    Example:
        >>> baseline = RunningMean(0.9)
        >>> baseline(torch.tensor([[3.0, 5.0]])), baseline(torch.tensor([[0.0, 0.0]]))
        (tensor([[0.]]), tensor([[4.]]))
    """

    min_samples = 1
    mean: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.decay = _checks.number("decay", decay, "a number in [0, 1)", lambda x: 0 <= x < 1)
        self.register_buffer("mean", torch.zeros(_checks.shape("shape", shape)))
        self.register_buffer("weight", torch.zeros(()))

    def reset_parameters(self) -> None:
        """Forget, such as after ``to_empty``."""
        self.mean.zero_()
        self.weight.zero_()

    def forward(self, values: Tensor) -> Tensor:
        """What to subtract from values ``(S, *elements)``."""
        size = self.mean.shape
        if values.shape[1 : 1 + len(size)] != size:
            raise ValueError(
                f"shape: expected losses of shape {tuple(size)} followed by batch dimensions, "
                f"got {tuple(values.shape[1:])}"
            )
        # Adam's correction for the start at 0
        # In full precision: half precision loses small steps, and 1e-12 altogether.
        mean, weight = functional.full_precision(self.mean), functional.full_precision(self.weight)
        before = mean / weight.clamp(min=1e-12)
        if self.training and values.numel():
            rest = (0, *range(1 + len(size), values.dim()))
            # What is remembered belongs to no mode that ends before it.
            with torch.inference_mode(False), torch.no_grad():
                now = torch.lerp(values.mean(rest).to(mean.dtype), mean, self.decay)
                self.mean = self._plain(now)
                self.weight = self._plain(1 - (1 - weight) * self.decay)
        return spread(before.to(values.dtype).unsqueeze(0), values.dim())

    def _plain(self, x: Tensor) -> Tensor:
        plain = _checks.unwrapped(x)
        if plain is None:
            raise ValueError(
                "baseline: a RunningMean cannot learn under torch.func.vmap; call eval() on it, or give it the shape "
                "of a stack"
            )
        return plain


class LeaveOneOut(nn.Module):
    """A baseline for several samples: each one's is the mean loss of the others, so that it adds no bias.

    Source: Kool et al. (2019), "Buy 4 REINFORCE samples, get a baseline for free!".

    Example:
        >>> LeaveOneOut()(torch.tensor([[1.0], [2.0], [6.0]])).flatten()
        tensor([4.0000, 3.5000, 1.5000])
    """

    min_samples = 2

    def forward(self, values: Tensor) -> Tensor:
        """What to subtract from values ``(S, *elements)``."""
        return mean_of_others(values)


class Reinforce(Estimator):
    r"""The score-function estimator.

    .. math:: (f(b) - a)\, \nabla_\theta \log q_\theta(b) + \nabla_\theta f_\theta(b)

    Unbiased. f is a black box, evaluated once per sample at one-hot vectors.

    Args:
        baseline: gives a: `RunningMean`, `LeaveOneOut`, any module from losses ``(S, *elements)`` to what shall be
            subtracted from them (it must not look at the sample itself), or None for 0.

    Source: Williams (1992).

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc, scale = torch.zeros(8, 2, requires_grad=True), torch.ones(8, 2)
        >>> estimator = Reinforce(LeaveOneOut(), num_samples=4)
        >>> estimator(SoftmaxIGR(loc, scale, 0.5), lambda b: b[..., 0]).sum().backward()
        >>> loc.grad.shape
        torch.Size([8, 2])
    """

    needs = Needs.PROBABILITIES
    f_is = Differentiable.NOWHERE

    def __init__(
        self,
        baseline: nn.Module | None = None,
        num_samples: int = 1,
        *,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        if baseline is not None and not callable(baseline):
            raise ValueError(
                f"baseline: expected a module such as LeaveOneOut(), or None, got {baseline!r}; the number of samples "
                "goes by name, num_samples"
            )
        self.min_samples = getattr(baseline, "min_samples", 1)  # type: ignore[misc]
        if num_samples < self.min_samples:
            raise ValueError(
                f"num_samples: expected at least {self.min_samples} for the baseline {type(baseline).__name__}, "
                f"got {num_samples}"
            )
        self.baseline = baseline

    def _estimate(
        self, q: Distribution, law: OneHotCategorical, f: Objective, noise: Noise
    ) -> Tensor:
        onehot = noise.onehot(law.logits, self.num_samples)
        values = self._evaluate(f, onehot, q)
        coefficient = values.detach()
        if self.baseline is not None:
            coefficient = coefficient - self.baseline(coefficient)
        log_probs = sum_variables(log_prob(law.logits, onehot), values.dim())
        return (values + coefficient * (log_probs - log_probs.detach())).mean(0)
