"""The score function with control variates that have a gradient of their own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, OneHotCategorical

from igr import _checks, functional
from igr.estimators.base import (
    Attach,
    Differentiable,
    Estimator,
    Needs,
    Objective,
    cast,
    check_broadcasts,
    mean_of_others,
    refuse_transforms,
    spread,
    sum_variables,
)
from igr.estimators.couplings import Coupling, log_prob
from igr.estimators.noise import Noise

__all__ = ["ControlNetwork", "DoubleControlVariate", "Rebar", "Relax", "Rodeo"]


class _ControlVariate(Estimator):
    """What `Rebar` and `Relax` share: everything but the control variate c."""

    needs = Needs.COUPLING
    f_is = Differentiable.SIMPLEX
    evaluations_per_sample = 2

    def __init__(
        self, temperature: float | Tensor, num_samples: int, *, tied: bool, sample_axis: bool
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self.tied = tied
        if not tied:
            self.evaluations_per_sample = 3  # type: ignore[misc]
        _checks.temperature("temperature", temperature)  # a stack of one run keeps its shape
        self._learn("log_temperature", functional.log(temperature))

    log_temperature: nn.Parameter

    @property
    def temperature(self) -> Tensor:
        """The learned temperature of the control variate."""
        return self.log_temperature.exp()

    @abstractmethod
    def _control(self, f: Objective, z: Tensor, q: Distribution) -> Tensor:
        """c ``(S, *elements)`` at relaxed samples ``(S, *batch, K)``."""

    def _estimate(self, q: Distribution, law: Coupling, f: Objective, noise: Noise) -> Tensor:
        refuse_transforms(type(self).__name__)
        check_broadcasts("temperature", self.log_temperature, q.batch_shape)
        own = [p for p in self.parameters() if p.requires_grad] if self.training else []
        learn = bool(own) and torch.is_grad_enabled()
        # Leaves of their own, one for each sample: nothing here may reach what q's parameters come from, nor what f
        # depends on, except through the gradients that are attached in the end.
        parameters = [
            p.detach().expand(self.num_samples, *p.shape).clone().requires_grad_()
            for p in law.parameters
        ]
        with torch.enable_grad():
            scores = law.draw(parameters, noise)
            onehot = law.hard(scores.detach())
            scores_given, log_prob = law.draw_given(
                parameters, onehot, self.temperature.detach(), noise, scores if self.tied else None
            )
            z = law.relax(scores, self.temperature)
            z_given = law.relax(scores_given, self.temperature)
        values = self._evaluate(f, onehot, q)
        if not torch.is_grad_enabled():
            return values.mean(0)
        control = self._control(f, z, q)
        slope = _slope(control, z, learn)
        if self.tied:  # the two differ in how they depend on the parameters, and not in value
            control_given, slope_given = control, slope
        else:
            control_given = self._control(f, z_given, q)
            slope_given = _slope(control_given, z_given, learn)
        score = torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True)
        path = torch.autograd.grad(
            (z, z_given), parameters, (slope, -slope_given), create_graph=learn
        )
        coefficient = values.detach() - control_given
        gradients = [spread(coefficient, s.dim()) * s + p for s, p in zip(score, path, strict=True)]
        own_gradients: list[Tensor] = []
        if learn:
            # The mean does not depend on the control variate, so the mean square is the variance up to a constant.
            square = torch.stack([g.square().sum() for g in gradients]).sum() / self.num_samples
            found = torch.autograd.grad(square, own, allow_unused=True)
            own_gradients = [
                torch.zeros_like(p) if g is None else g for p, g in zip(own, found, strict=True)
            ]
        return Attach.apply(
            values.mean(0),
            len(parameters),
            *law.parameters,
            *own,
            *(g.detach().mean(0) for g in gradients),
            *own_gradients,
        )


class Rebar(_ControlVariate):
    r"""REINFORCE with the relaxed objective as control variate.

    .. math:: [f(b) - \eta f(\tilde z_b)]\, \nabla_\theta \log q_\theta(b)
              + \eta \nabla_\theta f(\tilde z) - \eta \nabla_\theta f(\tilde z_b) + \nabla_\theta f_\theta(b)

    with :math:`\tilde z` the relaxed sample that b is the category of and :math:`\tilde z_b` another one given that
    category. To :math:`\eta f` a constant baseline is added, 0 to begin with. Unbiased, whatever :math:`\eta`, the
    constant and the temperature of the control variate are. All three are parameters of this module; their gradient,
    that of the estimator's mean square, arrives with ``loss.backward()`` like all others, at the cost of one more
    backward pass. Give them to an optimiser of their own. f is evaluated twice per sample, and must be differentiable
    on the simplex.

    Args:
        temperature: of the control variate, to begin with; a number or a tensor that broadcasts against the batch
            shape of q, such as one for each run of a stack. The temperature of q itself plays no part.
        eta: to begin with; likewise, against the shape that f returns.
        tied: :math:`\tilde z_b` uses the conditional noise that leads to :math:`\tilde z` itself, so that the two
            differ in their derivatives only and what they share cancels; it is cheaper, too: f is evaluated once for
            both, and for IGR nothing has to be inverted. Otherwise it is a new draw. Both are exact.

    Source: Tucker et al. (2017); for IGR, the conditional draw and the probabilities are those of Proposition 2.

    Differs from the source: it has no constant baseline, without which nothing is gained where f is nearly the same
    at all one-hot vectors but not in between. Differs from the paper: see `Relax`.

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc, scale = torch.zeros(8, 2, requires_grad=True), torch.ones(8, 2)
        >>> estimator = Rebar(temperature=0.15)
        >>> estimator(SoftmaxIGR(loc, scale, 0.5), lambda b: (b[..., 0] - 0.4).square()).sum().backward()
        >>> loc.grad.shape, estimator.eta.grad.shape
        (torch.Size([8, 2]), torch.Size([]))
    """

    eta: nn.Parameter
    offset: nn.Parameter

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        eta: float | Tensor = 1.0,
        num_samples: int = 1,
        *,
        tied: bool = True,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(temperature, num_samples, tied=tied, sample_axis=sample_axis)
        self._learn("eta", eta)
        self._learn("offset", torch.zeros_like(eta) if isinstance(eta, Tensor) else 0.0)

    def _control(self, f: Objective, z: Tensor, q: Distribution) -> Tensor:
        values = self._evaluate(f, z, q)
        check_broadcasts("eta", self.eta, values.shape[1:])
        return self.eta * values + self.offset


class Relax(_ControlVariate):
    r"""REINFORCE with a learned function of the relaxed sample as control variate.

    .. math:: [f(b) - c_\phi(\tilde z_b)]\, \nabla_\theta \log q_\theta(b)
              + \nabla_\theta c_\phi(\tilde z) - \nabla_\theta c_\phi(\tilde z_b) + \nabla_\theta f_\theta(b)

    :math:`c_\phi` is ``f(z) + control_variate(z)``, or the module alone with ``with_loss=False``, at a learned
    temperature. Unbiased, whatever :math:`\phi` is. The gradient for :math:`\phi`, that of the estimator's mean
    square (its variance, but for a constant), arrives with ``loss.backward()`` on this module's parameters, at the
    cost of one more backward pass; it reaches nothing else. Give them to an optimiser of their own.

    f is evaluated twice per sample (once with ``with_loss=False``, and then it may be a black box).

    Args:
        control_variate: any module from relaxed samples ``(S, *batch, K)`` to values ``(S, *elements)``, or to
            something that broadcasts to them; `ControlNetwork` for one.
        temperature: of the control variate, to begin with; see `Rebar`.
        with_loss: f at the relaxed sample is part of the control variate.
        tied: see `Rebar`.

    Source: Grathwohl et al. (2018); for IGR, paper, appendix D.

    Differs from the paper: its released code subtracts the KL term where it has to be added (erratum E7) and draws
    :math:`\tilde z_b` without regard to b (erratum E10).

    Example:
        >>> from igr import GumbelSoftmax
        >>> logits = torch.zeros(8, 2, 3, requires_grad=True)
        >>> estimator = Relax(ControlNetwork((2, 3)), temperature=0.5)
        >>> loss = estimator(GumbelSoftmax(0.5, logits=logits), lambda b: b[..., 0].sum(-1))
        >>> loss.sum().backward()
        >>> loss.shape, estimator.log_temperature.grad.shape
        (torch.Size([8]), torch.Size([]))
    """

    def __init__(
        self,
        control_variate: nn.Module,
        temperature: float | Tensor = 0.5,
        num_samples: int = 1,
        *,
        with_loss: bool = True,
        tied: bool = True,
        sample_axis: bool = False,
    ) -> None:
        super().__init__(temperature, num_samples, tied=tied, sample_axis=sample_axis)
        if not callable(control_variate):
            raise ValueError(
                f"control_variate: expected a module such as ControlNetwork, got {control_variate!r}"
            )
        self.control_variate = control_variate
        self.with_loss = with_loss
        if not with_loss:
            self.f_is, self.evaluations_per_sample = Differentiable.NOWHERE, 1  # type: ignore[misc]

    def _control(self, f: Objective, z: Tensor, q: Distribution) -> Tensor:
        learned: Tensor = self.control_variate(cast(z, q))
        return learned + self._evaluate(f, z, q) if self.with_loss else learned


class _SlopesOfOthers(Estimator):
    """For several samples, each with a control variate made of f's values and slopes at the others."""

    needs = Needs.PROBABILITIES
    f_is = Differentiable.VERTICES
    min_samples = 2

    def _estimate(
        self, q: Distribution, law: OneHotCategorical, f: Objective, noise: Noise
    ) -> Tensor:
        refuse_transforms(type(self).__name__)
        onehot = noise.onehot(law.logits, self.num_samples)
        if not torch.is_grad_enabled():
            return self._evaluate(f, onehot, q).mean(0)
        onehot.requires_grad_()
        values = self._evaluate(f, onehot, q)
        return self._combine(law, values, _slope(values, onehot), onehot.detach())

    @abstractmethod
    def _combine(
        self, law: OneHotCategorical, values: Tensor, slope: Tensor, onehot: Tensor
    ) -> Tensor:
        """The loss, of f's values ``(S, *elements)`` and slopes at one-hot samples ``(S, *batch, K)``."""


class DoubleControlVariate(_SlopesOfOthers):
    r"""`Reinforce` with two control variates: f's slope at the other samples, and the mean of what that leaves.

    .. math:: \frac 1 S \sum_i \Big( r_i - \frac{1}{S - 1} \sum_{j \ne i} r_j \Big) \nabla_\theta \log q_\theta(b_i)
              + \alpha\, \bar g \cdot \nabla_\theta\, p_\theta, \qquad
              r_i = f(b_i) - \alpha\, \bar g_{-i} \cdot (b_i - p)

    with :math:`\bar g_{-i}` the mean of :math:`\nabla_b f(b_j)` over the other samples and :math:`\bar g` over all.
    Unbiased, whatever :math:`\alpha` is: :math:`r_j` is of mean 0 but for f where j is not i, and the last term is the
    expectation of what is subtracted. :math:`\alpha` is a parameter of this module; its gradient, that of the mean
    square of the estimate (for the logits), arrives with ``loss.backward()``: give it to an optimiser of its own. f is
    evaluated once per sample, at one-hot vectors, and its gradient is taken there.

    Args:
        num_samples: S, at least 2.
        weight: :math:`\alpha` to begin with; a number, or a tensor that broadcasts against the shape that f returns,
            such as one for each run of a stack.

    Source: Titsias and Shi (2022), "Double control variates for gradient estimation in discrete latent variable
    models".

    Differs from the source: for any number of categories; the sign of :math:`\alpha`, which begins at 1 here, where the
    first control variate is the first-order Taylor series of f, and at 0 there.

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(8, 4, 2, requires_grad=True)
        >>> q = SoftmaxIGR(loc, torch.ones_like(loc), 0.5)
        >>> estimator = DoubleControlVariate(4)
        >>> estimator(q, lambda b: b[..., 0].sum(-1).square()).sum().backward()
        >>> loc.grad.shape, estimator.weight.grad.shape
        (torch.Size([8, 4, 2]), torch.Size([]))
    """

    weight: nn.Parameter

    def __init__(
        self, num_samples: int = 2, weight: float | Tensor = 1.0, *, sample_axis: bool = False
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self._learn("weight", weight)

    def _combine(
        self, law: OneHotCategorical, values: Tensor, slope: Tensor, onehot: Tensor
    ) -> Tensor:
        dims = values.dim()
        probs = torch.softmax(law.logits, -1)
        p = probs.detach()
        with torch.no_grad():
            linear = sum_variables((mean_of_others(slope) * (onehot - p)).sum(-1), dims)
            plain, linear = (r - mean_of_others(r) for r in (values.detach().to(p.dtype), linear))
            slope = slope.mean(0)

        check_broadcasts("weight", self.weight, values.shape[1:])
        weight = self.weight.to(p.dtype).expand(values.shape[1:])
        residual = plain - weight * linear
        log_probs = sum_variables(log_prob(law.logits, onehot), dims)
        correction = sum_variables((slope * (probs - p)).sum(-1), dims - 1)
        loss = values + residual.detach() * (log_probs - log_probs.detach())
        loss = loss.mean(0) + weight.detach() * correction
        if not (self.training and self.weight.requires_grad):
            return loss
        score = (spread(residual, onehot.dim()) * (onehot - p)).mean(0)
        path = p * (slope - (slope * p).sum(-1, keepdim=True))
        square = (score + spread(weight, path.dim()) * path).square().sum()
        return Attach.apply(loss, 0, self.weight, *torch.autograd.grad(square, self.weight))


class Rodeo(_SlopesOfOthers):
    r"""RODEO: `Reinforce` with learned functions of the other samples, made control variates by a Stein operator.

    .. math:: \frac 1 S \sum_i \Big( f(b_i) - \frac{1}{S - 1} \sum_{j \ne i} \big(f(b_j) + A h_j(b_j)\big) \Big)
              s(b_i) + A[\tilde h_i s](b_i), \qquad s = \nabla_\theta \log q_\theta,

    .. math:: A h(b) = \frac 1 N \sum_{n=1}^N \sum_l p_{nl}\, h(b_{n \to l}) - h(b)

    with :math:`b_{n \to l}` that differs from b in variable n alone, which is l. :math:`A h` has expectation 0 for any
    h. Here :math:`h_i` and :math:`\tilde h_i` are two small networks (`ControlNetwork`) of :math:`\bar f_{-i}` and of
    the first-order :math:`\frac{1}{S - 1} \sum_{j \ne i} \nabla f(b_j) \cdot (b - b_j)`, at all NK neighbours.
    Unbiased, whatever they are. Their gradient, that of the mean square of the estimate (for the logits), arrives with
    ``loss.backward()``: give them to an optimiser of their own. They begin at 0, as `Reinforce` with `LeaveOneOut`.
    f is evaluated once per sample, at one-hot vectors, and its gradient is taken there.

    Args:
        num_samples: S, at least 2.
        hidden: width of the networks.
        stack: leading dimensions of the shape that f returns which have networks of their own: a stack of runs.

    Source: Shi et al. (2022), "Gradient estimation with discrete Stein operators", with the Gibbs operator, as in
    their code.

    Differs from the source: for any number of categories; two networks rather than one of two outputs; functions of the
    other samples' means, where theirs are means of functions of each if there are more than one.

    Example:
        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(8, 4, 2, requires_grad=True)
        >>> q = SoftmaxIGR(loc, torch.ones_like(loc), 0.5)
        >>> Rodeo(2)(q, lambda b: b[..., 0].sum(-1).square()).sum().backward()
        >>> loc.grad.shape
        torch.Size([8, 4, 2])
    """

    def __init__(
        self,
        num_samples: int = 2,
        hidden: int = 100,
        *,
        stack: Sequence[int] = (),
        sample_axis: bool = False,
    ) -> None:
        super().__init__(num_samples, sample_axis=sample_axis)
        self.stack_dims = len(_checks.shape("stack", stack))
        self.baseline, self.score = (
            ControlNetwork((2,), hidden, stack=stack, factor=0.0) for _ in range(2)
        )

    def _combine(
        self, law: OneHotCategorical, values: Tensor, slope: Tensor, onehot: Tensor
    ) -> Tensor:
        dims = values.dim()
        logits = law.logits.detach()
        p, plain = torch.softmax(logits, -1), values.detach().to(logits.dtype)
        own = onehot - p

        # the linear model of f by the other samples, at b and at its neighbours
        mean, level = mean_of_others(slope), mean_of_others(plain)
        here = sum_variables((mean * onehot).sum(-1), dims)
        here = here - mean_of_others(sum_variables((slope * onehot).sum(-1), dims))
        step = mean - (mean * onehot).sum(-1, keepdim=True)
        there = spread(here, step.dim()) + step

        count = math.prod(onehot.shape[dims:-1])
        h, at = (
            self._network(self.baseline, there, level),
            self._network(self.baseline, here, level),
        )
        stein = sum_variables((p * h).sum(-1), dims) / count - at
        gradient = spread(plain - mean_of_others(plain + stein), own.dim()) * own

        # the score of a neighbour is that of b but for the variable in which they differ
        h, at = self._network(self.score, there, level), self._network(self.score, here, level)
        average = (p * h).sum(-1, keepdim=True)
        change = average - spread(at, own.dim())
        total = spread(sum_variables(change.squeeze(-1), dims), own.dim())
        differing = p * (h - average) - spread(at, own.dim()) * own
        gradient = (gradient + ((total - change) * own + differing) / count).mean(0)

        moving = torch.where(p > 0, law.logits - logits, 0.0)
        loss = values.mean(0) + sum_variables((gradient.detach() * moving).sum(-1), dims - 1)
        learned = [x for x in self.parameters() if x.requires_grad] if self.training else []
        if not learned:
            return loss
        found = torch.autograd.grad(gradient.square().sum(), learned)
        return Attach.apply(loss, 0, *learned, *found)

    def _network(self, network: nn.Module, linear: Tensor, level: Tensor) -> Tensor:
        x = torch.stack([linear, spread(level, linear.dim()).expand_as(linear)], -1)
        rows: Tensor = network(x.unsqueeze(-2).flatten(1 + self.stack_dims, -2))
        return rows.reshape(linear.shape).to(linear.dtype)


def _slope(values: Tensor, samples: Tensor, create_graph: bool = False) -> Tensor:
    """Gradient of the values at the samples, 0 where there is none."""
    slope = None
    if values.requires_grad:
        (slope,) = torch.autograd.grad(
            values.sum(), samples, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    return torch.zeros_like(samples) if slope is None else slope


class ControlNetwork(nn.Module):
    r"""A small network of the relaxed sample, for `Relax`: 2z - 1, one hidden layer of ReLU, a learned factor.

    Args:
        shape: of the relaxed sample of one element: (variables, K), or (K,) for a single variable.
        hidden: width.
        stack: leading shape of a stack of such networks, each with parameters of its own; samples are then
            ``(S, *stack, batch, *shape)``.
        factor: what the output is multiplied by, to begin with.

    Returns:
        ``(*leading,)``: the leading dimensions of the sample, less `shape`.

    Source: Grathwohl et al. (2018), appendix.

    Example:
        >>> ControlNetwork((20, 10))(torch.rand(100, 20, 10)).shape
        torch.Size([100])
        >>> ControlNetwork((20, 10), stack=(5,))(torch.rand(5, 100, 20, 10)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int = 50,
        *,
        stack: Sequence[int] = (),
        factor: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape = _checks.shape("shape", shape)
        size, hidden = math.prod(self.shape), _checks.count("hidden", hidden)
        stack = _checks.shape("stack", stack)
        self._initial_factor = _checks.number("factor", factor, "a finite number", math.isfinite)

        def parameter(*dims: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*stack, *dims))

        self.weight_in, self.bias_in = parameter(size, hidden), parameter(1, hidden)
        self.weight_out, self.bias_out = parameter(hidden, 1), parameter(1, 1)
        self.factor = parameter(1, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights and biases anew, uniformly and the smaller the more inputs there are."""
        for weight, bias in ((self.weight_in, self.bias_in), (self.weight_out, self.bias_out)):
            bound = 1 / math.sqrt(weight.shape[-2])
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        self.factor.fill_(self._initial_factor)

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[z.dim() - len(self.shape) :] != self.shape:
            raise ValueError(
                f"z: expected a shape that ends in {tuple(self.shape)}, got {tuple(z.shape)}"
            )
        lead = z.shape[: z.dim() - len(self.shape)]
        flat = (2 * z - 1).reshape(*(lead or (1,)), math.prod(self.shape)).to(self.weight_in.dtype)
        hidden = torch.relu(flat @ self.weight_in + self.bias_in)
        return (self.factor * (hidden @ self.weight_out + self.bias_out)).reshape(lead)
