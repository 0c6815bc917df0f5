r"""Relaxed categorical distributions: the IGR family and the Gumbel-Softmax.

Samples lie on the K-simplex, ``event_shape == (K,)``; densities are with respect to the first K-1 coordinates, as
torch's own simplex distributions have it. Parameters of an IGR are ``(*batch, K-1)``. With parameters in half
precision, samples are in half precision and logarithms and densities in float32.
"""

from __future__ import annotations

import functools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.distributions.transforms import ComposeTransform, Transform

from igr import _checks, conditional, functional
from igr._exp import exp_nonpositive
from igr._inverse import OutOfReachWarning, equal_sticks, loc_of
from igr._pyro import PyroSite
from igr.constraints import face, image, simplex
from igr.discrete import argmax_log_probs, monte_carlo_probs, uniform_loc
from igr.stick_breaking import leader_log_probs
from igr.transforms import (
    Compose,
    Sharpen,
    SoftmaxPlusPlus,
    StickBreaking,
    is_real,
    same_parameter,
    satisfied,
    some_point,
)

__all__ = [
    "IGR",
    "GumbelSoftmax",
    "PlanarIGR",
    "RecoveredCategorical",
    "Relaxation",
    "SharpStickBreakingIGR",
    "SoftmaxIGR",
    "StickBreakingIGR",
]

Q = TypeVar("Q", bound="IGR")


class RecoveredCategorical(OneHotCategorical, PyroSite):
    """A torch ``OneHotCategorical`` that says how well it is known; Pyro enumerates it as its own.

    Args:
        probs, logits: as for ``OneHotCategorical``.
        standard_error: of each probability, ``(*batch, K)``, where they were estimated; None where they were computed.
        validate_args: check these values, and those that are scored; torch's default where None.

    >>> RecoveredCategorical(probs=torch.tensor([0.2, 0.8])).log_prob(torch.tensor([0.0, 1.0])).exp()
    tensor(0.8000)
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        standard_error: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        for name, value in (("probs", probs), ("logits", logits)):
            if value is not None:
                _checks.floating(name, value)
        # OneHotCategorical would check the probabilities by torch's default, whatever it is asked.
        self._categorical = Categorical(probs, logits, validate_args=False)
        *batch, size = self._categorical.param_shape
        PyroSite.__init__(self, torch.Size(batch), torch.Size((size,)), validate_args=False)
        self._validate_args = _checks.enabled(validate_args)
        self.standard_error = standard_error
        if self._validate_args:
            # Once normalised they are NaN where the sum is 0 or infinite.
            name, values = ("logits", self.logits) if probs is None else ("probs", self.probs)
            valid = values == values if probs is None else values >= 0
            _checks.satisfies(name, values, valid.all(-1), "weights that can be normalised")

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        sample_shape = _checks.shape("sample_shape", sample_shape)
        if 0 in sample_shape:  # torch.multinomial draws one at least
            return self.probs.new_zeros(self._extended_shape(sample_shape))
        return super().sample(sample_shape)

    def _validate_sample(self, value: Tensor) -> None:
        if _checks.values_can_be_read(value):
            super()._validate_sample(value)

    @property
    def deterministic_sample(self) -> Tensor:
        """`mode`, under the name that TorchRL and tensordict ask for."""
        return self.mode

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> RecoveredCategorical:
        new = self._get_checked_instance(RecoveredCategorical, _instance)
        error = self.standard_error
        new.standard_error = None if error is None else error.expand(*batch_shape, -1)
        return super().expand(batch_shape, _instance=new)

    def __repr__(self) -> str:
        error = "" if self.standard_error is None else ", estimated"
        return f"RecoveredCategorical(probs: {tuple(self._categorical.param_shape)}{error})"


class Relaxation(PyroSite):
    """A continuous distribution on the K-simplex that relaxes a categorical one.

    Abstract: `IGR` and `GumbelSoftmax` say how a sample and its density are drawn in log space, this class what
    follows from that.
    """

    has_rsample = True

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return simplex

    @property
    def num_categories(self) -> int:
        """K."""
        return self.event_shape[-1]

    @abstractmethod
    def rsample_log(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw log z, ``(*sample_shape, *batch, K)``: finite where z itself underflows."""

    @abstractmethod
    def rsample_log_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw log z and its exact log-density (with respect to z), without inverting the map."""

    @abstractmethod
    def log_prob(self, value: Tensor | None = None, *, log_value: Tensor | None = None) -> Tensor:
        """Log-density of z, given as `value` or by its logarithm: ``(*sample_shape, *batch)``.

        It is -inf, with a gradient of zero, for a point outside the image of the map, an exact zero included.

        Raises:
            ValueError: unless exactly one of `value` and `log_value` is given, and lies on the simplex.
        """

    @abstractmethod
    def _cast(self, z: Tensor) -> Tensor:
        """z in the dtype of the parameters."""

    @abstractmethod
    def hard_scores(self, log_value: Tensor) -> Tensor:
        """Scores whose largest names the category that a sample relaxes."""

    @abstractmethod
    def discrete(self) -> RecoveredCategorical:
        """The categorical distribution that is relaxed."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw z, ``(*sample_shape, *batch, K)``, differentiably."""
        return self._cast(self.rsample_log(sample_shape).exp())

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw z without gradients."""
        with torch.no_grad():  # compilers take this, and not the decorator
            return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw z and its exact log-density, which is finite also where a coordinate of z underflows to 0."""
        log_z, log_prob = self.rsample_log_and_log_prob(sample_shape)
        return self._cast(log_z.exp()), log_prob

    def hard(self, value: Tensor | None = None, *, log_value: Tensor | None = None) -> Tensor:
        r"""One-hot vector of the category that a relaxed sample stands for (Proposition 1).

        .. math:: \lim_{\tau \to 0} g(g^{-1}(\tilde z, \tau), \tau)

        It is that of the largest entry, except for `igr.StickBreakingIGR`, where the limit is another. Its
        probabilities are `probs`.

        Args:
            value: samples ``(*sample_shape, *batch, K)``, or give their logarithms as `log_value`.

        >>> from igr import SoftmaxIGR
        >>> q = SoftmaxIGR(torch.zeros(2), torch.ones(2), temperature=0.5)
        >>> q.hard(torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]))
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
        """
        given = self._given(value, log_value)
        log_z = given.log() if log_value is None else given
        return functional.one_hot_argmax(self.hard_scores(log_z)).to(given.dtype)

    @overload
    def straight_through(
        self, sample_shape: Sequence[int] = (), *, return_relaxed: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def straight_through(
        self, sample_shape: Sequence[int] = (), *, return_relaxed: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def straight_through(
        self, sample_shape: Sequence[int] = (), *, return_relaxed: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""Draw one-hot vectors that carry the gradient of the relaxed sample.

        .. math:: b = \mathrm{hard}(\tilde z) \text{ forward}, \qquad
                  \nabla_\theta b := \nabla_\theta \tilde z_\theta(\epsilon) \text{ backward}

        The gradient is biased, the less the lower the temperature; see `igr.estimators` for others.

        Args:
            sample_shape: of the draw.
            return_relaxed: return the relaxed sample as well, ``(hard, relaxed)``.

        >>> from igr import SoftmaxIGR
        >>> loc = torch.zeros(2, requires_grad=True)
        >>> b, z = SoftmaxIGR(loc, torch.ones(2), temperature=0.5).straight_through(return_relaxed=True)
        >>> b.sort().values, bool(b[z.argmax()] == 1)
        (tensor([0., 0., 1.], grad_fn=<SortBackward0>), True)
        >>> torch.equal(*(torch.autograd.grad(x[0], loc, retain_graph=True)[0] for x in (b, z)))
        True
        """
        log_z = self.rsample_log(sample_shape)
        hard = functional.one_hot_argmax(self.hard_scores(log_z))
        z = log_z.exp()
        hard = self._cast(functional.straight_through(hard, z))
        return (hard, self._cast(z)) if return_relaxed else hard

    @property
    def probs(self) -> Tensor:
        """Probabilities of the categories, ``(*batch, K)``: those of ``discrete()``, at its cost."""
        return self.discrete().probs

    @property
    def mode(self) -> Tensor:
        """One-hot vector of the most probable category, ``(*batch, K)``: the mode of ``discrete()``, at its cost.

        It is what to take when deployed. The density of z itself has its highest point elsewhere, or none.

        >>> GumbelSoftmax(0.5, logits=torch.tensor([0.0, 1.0])).mode
        tensor([0., 1.])
        """
        return self._cast(functional.one_hot_argmax(self.discrete().logits.detach()))

    # TorchRL and tensordict take this, where there is one, for their deterministic interaction.
    @property
    def deterministic_sample(self) -> Tensor:
        """`mode`, under the name that TorchRL and tensordict ask for."""
        return self.mode

    @property
    def mean(self) -> Tensor:
        raise self._missing("mean")

    @property
    def variance(self) -> Tensor:
        raise self._missing("variance")

    def entropy(self, num_samples: int = 1) -> Tensor:
        r"""Entropy of the density of z, estimated by samples without bias; differentiable.

        .. math:: - \frac 1 n \sum_{i=1}^n \log q(\tilde z_i), \qquad \tilde z_i \sim q

        That of the categories is ``discrete().entropy()``, which is 0 or more; this one can be negative.

        Args:
            num_samples: n. There is no closed form; the default is what a loss that is averaged over a batch needs,
                and what callers that ask every distribution for its ``entropy()`` get.

        Returns:
            ``(*batch,)``.

        Raises:
            ValueError: if the number is not positive.
        """
        num_samples = _checks.count("num_samples", num_samples)
        return -self.rsample_log_and_log_prob((num_samples,))[1].mean(0)

    def perplexity(self) -> Tensor:
        raise self._missing("perplexity()")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        raise self._missing("enumerate_support()")

    def cdf(self, value: Tensor) -> Tensor:
        raise self._missing("cdf()")

    def icdf(self, value: Tensor) -> Tensor:
        raise self._missing("icdf()")

    def _missing(self, what: str) -> NotImplementedError:
        name = type(self).__name__
        if "cdf" in what:
            return NotImplementedError(
                f"{name} has no {what}, as its samples are vectors; log_prob has their density, and discrete() the "
                "probabilities of the categories"
            )
        instead = {
            "enumerate_support()": "its samples are a continuum",
        }.get(what, f"rsample((n,)).{what.replace('variance', 'var')}(0) estimates it")
        return NotImplementedError(
            f"{name} has no {what} in closed form: {instead}; discrete(), the categorical distribution that is "
            f"relaxed, has one, discrete().{what}"
        )

    def _new(self, instance: Any) -> Any:
        """An instance to expand into; NotImplementedError where a subclass has more to set up than its parent."""
        ours = next(c for c in type(self).__mro__ if c.__module__ == __name__)
        return self._get_checked_instance(ours, instance)

    def _expanded(self, batch_shape: Sequence[int]) -> torch.Size:
        """A batch shape that this one expands to, or ValueError."""
        batch_shape = _checks.shape("batch_shape", batch_shape)
        if _checks.broadcast_batch("batch_shape", self.batch_shape, batch_shape) != batch_shape:
            raise ValueError(
                f"batch_shape: expected one that {tuple(self.batch_shape)} expands to, got {tuple(batch_shape)}"
            )
        return batch_shape

    def _recovered(self, **values: Any) -> RecoveredCategorical:
        """What `discrete` returns: made of parameters that were checked."""
        found = RecoveredCategorical(**values, validate_args=False)
        found._validate_args = self._validate_args
        return found

    def _onehot(self, onehot: Tensor, allowed: Tensor | None) -> Tensor:
        """One-hot vectors of categories that are allowed, or ValueError."""
        if not isinstance(onehot, Tensor) or onehot.shape[-1:] != self.event_shape:
            came = tuple(onehot.shape) if isinstance(onehot, Tensor) else type(onehot).__name__
            raise ValueError(
                f"onehot: expected shape (*sample, *batch, {self.num_categories}), got {came}"
            )
        _checks.fits_batch("onehot", onehot.shape[:-1], self.batch_shape)
        if self._validate_args:
            valid = ((onehot == 0) | (onehot == 1)).all(-1) & (onehot.sum(-1) == 1)
            if allowed is not None:
                valid = valid & ((onehot == 0) | allowed).all(-1)
            _checks.satisfies("onehot", onehot, valid, "one-hot vectors of allowed categories")
        return onehot

    def _given(self, value: Tensor | None, log_value: Tensor | None) -> Tensor:
        """The one of both that is given."""
        if (value is None) == (log_value is None):
            raise ValueError("expected exactly one of value and log_value")
        name, given = ("value", value) if log_value is None else ("log_value", log_value)
        if not isinstance(given, Tensor) or given.is_complex():
            came = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{name}: expected a tensor of real numbers, got {came}")
        if wrong := self._misfit(given.shape[-1] if given.dim() else 0):
            raise ValueError(
                f"{name}: expected shape (*sample, *batch, {wrong}, got {tuple(given.shape)}"
            )
        if given.is_floating_point():
            return given
        return self._cast(given.to(torch.get_default_dtype()))

    def _misfit(self, num_entries: int) -> str:
        """How many entries a sample has, where it is not this number."""
        return "" if num_entries == self.num_categories else f"{self.num_categories})"

    def _check_point(self, value: Tensor | None, log_value: Tensor | None) -> None:
        """Raise ValueError unless it lies on the simplex, and fits the batch."""
        if not self._validate_args:
            return
        if log_value is None:
            name, given, point, expected = "value", value, value, "points of the simplex"
        else:
            # exp of what may underflow, or be no logarithm at all
            log_z = functional.full_precision(log_value).clamp_max(1.0)
            point = exp_nonpositive(log_z).to(log_value.dtype)
            name, given, expected = "log_value", log_value, "points of the simplex, as logarithms"
        _checks.fits_batch(name, given.shape[:-1], self.batch_shape)  # type: ignore[union-attr]
        _checks.satisfies(name, given, simplex.check(point), expected)  # type: ignore[arg-type]

    def _read(
        self, value: Tensor | None, log_value: Tensor | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """log z with stand-ins where it is infinite, and a mask of the points that may have a density.

        Categories that are not allowed are stood in for by 0.
        """
        given = self._given(value, log_value)
        self._check_point(value, log_value)
        given = functional.full_precision(given)
        zero = 0.0 if log_value is None else -torch.inf
        missing = given == zero
        if allowed is None:
            inside = ~missing.any(-1)
        else:
            inside = (missing != allowed).all(-1)
        centre = torch.full_like(given, 1.0 if log_value is None else 0.0)
        safe = torch.where(missing | ~inside.unsqueeze(-1), centre, given)
        if log_value is not None:
            return safe, inside
        # A subnormal weight has a value, but a gradient that overflows: it gets none.
        tiny = torch.finfo(safe.dtype).tiny
        return torch.where(safe < tiny, safe.detach(), safe).log(), inside


class _Normal(Normal, PyroSite):
    """torch's Normal, with noise that `torch.func.vmap` can draw."""

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.loc + self.scale * self.noise(sample_shape)

    def noise(self, sample_shape: Sequence[int]) -> Tensor:
        shape = _checks.shape("sample_shape", sample_shape) + self.loc.shape
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)


class _Independent(Independent, PyroSite):  # type: ignore[type-arg]
    """torch's Independent, which Pyro's reparameterizations take as the base of a site."""


class IGR(Relaxation, TransformedDistribution):
    r"""Gaussian noise pushed through an invertible map onto the simplex.

    .. math:: y = \mu + \operatorname{diag}(\sigma) \epsilon, \quad \tilde z = g(y, \tau), \quad
              q(\tilde z) = \mathcal N(y \mid \mu, \sigma) \, |\det J_g(y, \tau)|^{-1} \qquad (10)-(12)

    Args:
        loc, scale: ``(*batch, K-1)``; `scale` is positive. They broadcast against each other and against the
            parameters of the map, such as a temperature for each element of the batch.
        transform: invertible map from R^(K-1) to the K-simplex: `SoftmaxPlusPlus`, a `Compose`, or any torch
            transform that ends on the simplex.
        validate_args: check values; torch's default where None.
        num_categories: K, to be told where `loc` has K entries, such as logits, rather than K-1.

    Raises:
        ValueError: if a parameter is out of its range, shapes do not fit, the map does not end on the simplex, or rules
            categories out otherwise than `SoftmaxIGR` and `SharpStickBreakingIGR` do.

    Source: paper, section 3.

    >>> q = IGR(torch.zeros(5, 2), torch.ones(5, 2), SoftmaxPlusPlus(0.5))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([3]))
    >>> z, log_prob = q.rsample_and_log_prob()
    >>> torch.allclose(q.log_prob(z), log_prob, atol=1e-4)
    True
    """

    arg_constraints = {  # noqa: RUF012  # torch declares it on instances
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    transform: Compose
    # The base coordinates that matter where some categories are not allowed.
    _active: Tensor | None = None
    # Whether the recovered probabilities are those of a broken stick or of Proposition 2; None where of neither.
    _by_sticks: bool | None = None

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        transform: Transform,
        validate_args: bool | None = None,
        *,
        num_categories: int | None = None,
    ) -> None:
        loc, scale = _checks.floating("loc", loc), _checks.floating("scale", scale)
        dtype = _promoted(loc, scale, *_last_parameters(transform))
        loc, scale = _checks.broadcast(loc=loc.to(dtype), scale=scale.to(dtype))
        if loc.dim() < 1 or loc.shape[-1] < 1:
            raise ValueError(
                f"loc: expected shape (*batch, K-1) with K >= 2, got {tuple(loc.shape)}"
            )
        if num_categories is not None and loc.shape[-1] + 1 != _checks.count(
            "num_categories", num_categories
        ):
            raise ValueError(
                f"loc: expected {num_categories - 1} entries in the last dimension, one fewer than num_categories = "
                f"{num_categories}, got shape {tuple(loc.shape)}; the last category has none of its own. Of the logits "
                "of all categories igr.SoftmaxIGR.from_logits(logits, temperature) makes a distribution"
            )
        if _checks.enabled(validate_args):
            _checks.between("loc", loc, -torch.inf, torch.inf, "finite values")
            _checks.between("scale", scale, 0.0, torch.inf, "positive finite values")
        base = _Independent(_Normal(loc, scale, validate_args=False), 1, validate_args=False)
        self._set_up(base, transform, validate_args)

    @classmethod
    def from_base(
        cls, base: Distribution, transform: Transform, validate_args: bool | None = None
    ) -> IGR:
        r"""The same construction from another base with reparameterization (section 3 of the paper allows any).

        Args:
            base: distribution over R^(K-1) with ``rsample``; closed-form KL needs one registered with torch for it.
            transform: as for `IGR`.

        Raises:
            ValueError: as `IGR`, and where it is called of a form whose base and map are its own.

        >>> base = torch.distributions.Laplace(torch.zeros(2), torch.ones(2))
        >>> IGR.from_base(torch.distributions.Independent(base, 1), SoftmaxPlusPlus(0.5)).rsample().shape
        torch.Size([3])
        """
        if cls.__init__ is not IGR.__init__:
            raise ValueError(
                f"base: {cls.__name__} has a Gaussian base and a map of its own; use igr.IGR.from_base"
            )
        if not isinstance(base, Distribution):
            raise _checks.unexpected("base", base, "a distribution")
        if len(base.event_shape) != 1:
            raise ValueError(
                f"base: expected event_shape (K-1,), got {tuple(base.event_shape)}; "
                "wrap a distribution of single numbers in torch.distributions.Independent(base, 1)"
            )
        if not base.has_rsample:
            raise ValueError(f"base: expected a distribution with rsample, got {base}")
        new = cls.__new__(cls)
        new._set_up(base, transform, validate_args)
        return new

    @classmethod
    def from_probs(
        cls: type[Q],
        probs: Tensor,
        temperature: float | Tensor,
        scale: float | Tensor = 1.0,
        **options: Any,
    ) -> Q:
        r"""The member of a family whose recovered probabilities are given, differentiable: ``discrete()``, inverted.

        .. math:: \mu(p, \sigma): \quad P(k \mid \mu, \sigma) = p_k \qquad (21), \qquad
                  \frac{\partial P}{\partial \mu}\, d\mu = dp - \frac{\partial P}{\partial \sigma}\, d\sigma

        It is solved in float64, to 1e-12, for scales that differ by up to a factor of 100. First derivatives come from
        the implicit function theorem. `igr.match` does the same for targets of other kinds, and approximately for
        other families.

        Args:
            probs: ``(*batch, K)``, normalised here. A category of 0 is ruled out as by `allowed`.
            temperature: positive; it has no part in the probabilities.
            scale: positive, broadcasts against ``(*batch, K-1)``. Another scale is another distribution of the same
                probabilities: of less noise where it is small.
            options: what else the constructor takes by name, such as `delta` and `validate_args`.

        Raises:
            ValueError: if an argument does not fit, or the family is not `SoftmaxIGR` or `SharpStickBreakingIGR`.

        Warns:
            OutOfReachWarning: where the solver does not arrive, which many categories of next to no probability
                bring about for broken sticks; with the distance that is left.

        For `SoftmaxIGR` the cost grows as K. Gradients of `SharpStickBreakingIGR` cost K times those of ``discrete()``.

        >>> q = SoftmaxIGR.from_probs(torch.tensor([0.5, 0.3, 0.2, 0.0]), temperature=0.1)
        >>> q.discrete().probs
        tensor([0.5000, 0.3000, 0.2000, 0.0000])
        >>> q.allowed
        tensor([ True,  True,  True, False])
        """
        probs = _of_all_categories("probs", probs)
        if _checks.enabled(options.get("validate_args")):
            valid = ((probs >= 0) & (probs < torch.inf)).all(-1) & (probs > 0).any(-1)
            _checks.satisfies("probs", probs, valid, "non-negative values, not all of them 0")
        return cls._from_probs(probs.double(), probs.dtype, temperature, scale, options)

    @classmethod
    def from_logits(
        cls: type[Q],
        logits: Tensor,
        temperature: float | Tensor,
        scale: float | Tensor = 1.0,
        **options: Any,
    ) -> Q:
        r"""`from_probs` of :math:`\operatorname{softmax}(\text{logits})`: what takes the place of `GumbelSoftmax`.

        Args:
            logits: ``(*batch, K)``; -inf rules a category out.
            temperature, scale, options: as for `from_probs`.

        >>> logits = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
        >>> z = SoftmaxIGR.from_logits(logits, temperature=0.1).rsample()
        >>> z[0].backward()
        >>> logits.grad.shape
        torch.Size([3])
        """
        logits = _of_all_categories("logits", logits)
        if _checks.enabled(options.get("validate_args")):
            valid = (logits < torch.inf).all(-1) & (logits > -torch.inf).any(-1)
            _checks.satisfies("logits", logits, valid, "numbers below infinity, one of them finite")
        probs = torch.softmax(logits.double(), -1)
        return cls._from_probs(probs, logits.dtype, temperature, scale, options)

    @classmethod
    def _from_probs(
        cls: type[Q],
        probs: Tensor,
        dtype: torch.dtype,
        temperature: float | Tensor,
        scale: float | Tensor,
        options: dict[str, Any],
    ) -> Q:
        if cls._by_sticks is None:
            raise ValueError(
                f"{cls.__name__} has no exact way from probabilities; use igr.SoftmaxIGR.from_probs, "
                f"igr.SharpStickBreakingIGR.from_probs, or igr.match(probs, {cls.__name__}, temperature)"
            )
        if "allowed" in options:
            raise ValueError("allowed: expected none, as probabilities of 0 rule categories out")
        scale = _checks.positive("scale", scale, options.get("validate_args"))
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=torch.float64, device=probs.device)
        if scale.dim():
            dtype = torch.promote_types(dtype, scale.dtype)
        # What float32 rounds to 0 is ruled out as well: it would be infinitely far.
        allowed = probs.to(dtype) > 0
        probs = torch.where(allowed, probs, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
        first, scale = _checks.broadcast(loc=probs[..., :-1], scale=scale.double())
        if first.shape[-1] != probs.shape[-1] - 1:
            raise ValueError(
                f"scale: expected shape (*batch, {probs.shape[-1] - 1}), got (*batch, {first.shape[-1]})"
            )
        loc, left = loc_of(probs.expand(*first.shape[:-1], -1), scale, cls._by_sticks)
        if _checks.values_can_be_read(left) and bool((left > 1e-9).any()):
            warnings.warn(
                f"probs: the recovered probabilities are left at a total variation distance of {float(left.max()):.3g} "
                "from them; a larger scale is easier to reach",
                OutOfReachWarning,
                stacklevel=3,
            )
        if not (_checks.values_can_be_read(allowed) and bool(allowed.all())):
            options = {**options, "allowed": allowed}
        make: Callable[..., Q] = cls
        return make(loc.to(dtype), scale.to(dtype), temperature, **options)

    @classmethod
    def uniform(
        cls: type[Q],
        num_categories: int,
        temperature: float | Tensor,
        scale: float = 1.0,
        *,
        batch_shape: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Q:
        r"""The member of a family whose K recovered probabilities are equal, such as a prior.

        That of `SoftmaxIGR` has all loc at :math:`-\sigma \Phi^{-1}(K^{-1/(K-1)})`; of a broken stick they are solved
        for, once for each K and scale in a process. The last category of `StickBreakingIGR` is never chosen (erratum
        E5): there the first K-1 are equal.

        Args:
            num_categories: K.
            temperature, scale: positive numbers; temperature may be a tensor.
            batch_shape, device, dtype: of loc and scale.
            options: what else the constructor takes by name.

        Raises:
            ValueError: if an argument does not fit, or the family is another.

        >>> SoftmaxIGR.uniform(10, temperature=0.1).loc[0]
        tensor(-0.7530)
        >>> SharpStickBreakingIGR.uniform(4, temperature=0.1).discrete().probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        """
        num_categories = _checks.count("num_categories", num_categories, 2)
        scale = _checks.number(
            "scale",
            scale,
            "a positive finite number, the same for all (for several, "
            f"igr.match(torch.full((K,), 1 / K), igr.{cls.__name__}, temperature, scale=scale))",
            _checks.is_positive,
        )
        size = (*_checks.shape("batch_shape", batch_shape), num_categories - 1)
        loc = torch.tensor(cls._uniform_loc(num_categories, scale), device=device, dtype=dtype)
        make: Callable[..., Q] = cls
        return make(
            loc.expand(size), torch.full_like(loc, scale).expand(size), temperature, **options
        )

    @classmethod
    def _uniform_loc(cls, num_categories: int, scale: float) -> tuple[float, ...]:
        raise ValueError(
            f"{cls.__name__} has no uniform member in closed form; use igr.SoftmaxIGR.uniform, or match by samples: "
            "igr.match(torch.full((K,), 1 / K), family, temperature), where family makes one of (loc, scale, "
            "temperature), such as functools.partial(igr.PlanarIGR, flow=flow)"
        )

    def _set_up(self, base: Distribution, transform: Transform, validate_args: bool | None) -> None:
        if not isinstance(transform, Transform):
            raise _checks.unexpected("transform", transform, "a torch transform")
        self.transform = transform if isinstance(transform, Compose) else Compose([transform])
        n = base.event_shape[-1]
        for part in self.transform.parts:
            for name in ("temperature", "delta"):
                _checks.one_each(name, getattr(part, name, None), base.batch_shape)
        _check_masks(base, self.transform)
        closed, domain = self.transform.codomain, self.transform.domain
        if not isinstance(closed, (type(simplex), type(constraints.simplex))):
            raise ValueError(
                f"transform: expected a map that ends on the simplex, got one that ends on {closed}; "
                "append igr.SoftmaxPlusPlus, igr.Sharpen or igr.Close"
            )
        narrow = is_real(_support(base)) and not is_real(domain)
        if domain.event_dim != 1 or self.transform.takes_corner or narrow:
            raise ValueError(f"transform: expected a map of R^(K-1), got one of {domain}")
        if not self.transform.bijective:
            raise ValueError(
                f"transform: expected an invertible map, with bijective = True, got {transform}"
            )
        try:
            *batch, size = self.transform.forward_shape((*base.batch_shape, n))
        except RuntimeError as error:  # torch's, of a map that is not ours
            raise ValueError(
                f"transform: {transform} does not fit {n} coordinates and a batch of shape "
                f"{tuple(base.batch_shape)}: {error}"
            ) from None
        if size != n + 1:
            raise ValueError(
                f"transform: expected a map from {n} coordinates to {n + 1} categories, got one to {size}: {transform}"
            )
        batch = torch.Size(batch)
        if batch != base.batch_shape:
            base = base.expand(batch)
        self.base_dist = base
        self.transforms = [self.transform]
        self._active = self.transform.active
        if not self._is_gaussian:
            self.arg_constraints = {}
        # Values were checked above, with messages of our own.
        event = torch.Size((n + 1,))
        PyroSite.__init__(self, batch, event, validate_args=False)
        self._validate_args = _checks.enabled(validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """What the map reaches from the support of the base; the simplex where that is all of it."""
        if self.allowed is not None:
            return face(self.allowed)
        transform, base = self.transform, _support(self.base_dist)
        if not is_real(base):
            transform = Compose([biject_to(base), transform])
        return simplex if transform.onto else image(transform)

    @property
    def _gaussian(self) -> _Normal:
        base = self.base_dist
        if isinstance(base, Independent) and isinstance(base.base_dist, _Normal):
            return base.base_dist
        raise AttributeError(f"loc and scale: this distribution has another base, {base}")

    @property
    def loc(self) -> Tensor:
        """Mean of the Gaussian noise, ``(*batch, K-1)``."""
        return self._gaussian.loc

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the Gaussian noise, ``(*batch, K-1)``."""
        return self._gaussian.scale

    @property
    def _is_gaussian(self) -> bool:
        return _is_gaussian(self.base_dist)

    @property
    def allowed(self) -> Tensor | None:
        """Which categories are allowed, ``(*batch, K)``; None where all are."""
        return self.transform.allowed

    @property
    def temperature(self) -> float | Tensor:
        r""":math:`\tau` of the map; AttributeError where what closes the map has none."""
        return self.transform.parts[-1].temperature  # type: ignore[attr-defined]

    def _cast(self, z: Tensor) -> Tensor:
        return z.to(self.loc.dtype) if self._is_gaussian else z

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> IGR:
        new = self._new(_instance)
        base = self.base_dist.expand(self._expanded(batch_shape))
        new._set_up(base, self.transform, self._validate_args)
        return new

    def _affine(self, noise: Tensor) -> Tensor:
        loc, scale = functional.full_precision(self.loc), functional.full_precision(self.scale)
        return torch.addcmul(loc, scale, noise)

    def _noise(self, sample_shape: Sequence[int]) -> Tensor:
        return functional.full_precision(self._gaussian.noise(sample_shape))

    def _rsample_base(self, sample_shape: Sequence[int]) -> Tensor:
        """Draw y."""
        if not self._is_gaussian:
            return self.base_dist.rsample(_checks.shape("sample_shape", sample_shape))
        return self._affine(self._noise(sample_shape))

    def _rsample_base_and_log_prob(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Draw y and its log-density under the base."""
        if not self._is_gaussian:
            y = self.base_dist.rsample(_checks.shape("sample_shape", sample_shape))
            return y, self.base_dist.log_prob(y)
        noise = self._noise(sample_shape)
        # Scored by its noise: (y - loc) / scale would lose it where the scale is small.
        log_prob = self._gaussian_log_prob(noise, functional.full_precision(self.scale))
        return self._affine(noise), log_prob

    def _base_log_prob(self, y: Tensor) -> Tensor:
        if not self._is_gaussian:
            support = _support(self.base_dist)
            if is_real(support):
                return self.base_dist.log_prob(y)
            inside = satisfied(support, y)
            y = torch.where(inside.unsqueeze(-1), y, some_point(support, y))
            return torch.where(inside, self.base_dist.log_prob(y), -torch.inf)
        loc, scale = functional.full_precision(self.loc), functional.full_precision(self.scale)
        distance = y - loc
        if self._active is not None:
            # Before the division: what stands for y where it does not matter may be huge.
            distance = torch.where(self._active, distance, 0.0)
        return self._gaussian_log_prob(distance / scale, scale)

    def _gaussian_log_prob(self, noise: Tensor, scale: Tensor) -> Tensor:
        """Log-density of the base at loc + scale * noise, over the coordinates that matter."""
        more: float | Tensor = 0.0
        if self.allowed is not None and self.transform.softmax_plus_plus is not None:
            # Where the last category is not allowed, z fixes the allowed y up to a common shift c: the density is
            # the integral over c of prod_k N(y_k + c), a Gaussian in c around -shift with the summed precision.
            inverse = torch.where(self.allowed[..., :-1], scale.reciprocal(), 0.0)
            precision = (inverse * inverse).sum(-1).clamp_min(torch.finfo(scale.dtype).tiny)
            free = ~self.allowed[..., -1]
            shift = torch.where(free, (noise * inverse).sum(-1) / precision, 0.0)
            noise = noise - shift.unsqueeze(-1) * inverse
            more = torch.where(free, functional.HALF_LOG_2PI - 0.5 * precision.log(), 0.0)
        terms = functional.gaussian_terms(noise, scale)
        if self._active is not None:
            terms = torch.where(self._active, terms, 0.0)
        return terms.sum(-1) + more

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._cast(self.transform.forward(self._rsample_base(sample_shape)))

    def rsample_log(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.transform.forward_stable(self._rsample_base(sample_shape))

    def rsample_log_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        y, log_prob = self._rsample_base_and_log_prob(sample_shape)
        log_z, log_det = self.transform.forward_and_log_det(y)
        return log_z, log_prob - log_det

    def log_prob(self, value: Tensor | None = None, *, log_value: Tensor | None = None) -> Tensor:
        log_z, inside = self._read(value, log_value, self.allowed)
        y, log_det, in_image = self.transform.inverse_and_log_det(log_z)
        return torch.where(inside & in_image, self._base_log_prob(y) - log_det, -torch.inf)

    def hard_scores(self, log_value: Tensor) -> Tensor:
        return self.transform.hard_scores(log_value)

    def discrete(self, num_samples: int = 10_000) -> RecoveredCategorical:
        """The categorical distribution that is relaxed, E[h(z)] of section 3.3, by Monte Carlo.

        Args:
            num_samples: number of draws; the result's ``standard_error`` follows from it.
        """

        def draw(n: int) -> Tensor:
            y = self._rsample_base((n,))
            return functional.one_hot_argmax(self.hard_scores(self.transform.forward_stable(y)))

        probs, standard_error = monte_carlo_probs(draw, num_samples)
        return self._recovered(probs=probs, standard_error=standard_error)

    def __repr__(self) -> str:
        base = f"base: {self.base_dist}"
        if self._is_gaussian:
            base = f"loc: {tuple(self.loc.shape)}, scale: {tuple(self.scale.shape)}"
        return f"{type(self).__name__}({base}, transform: {self.transform})"


class SoftmaxIGR(IGR):
    r"""IGR-I: Gaussian noise through the softmax++ (15), the form to begin with.

    .. math:: y = \mu + \sigma \epsilon, \quad \epsilon \sim \mathcal N(0, I_{K-1}), \qquad
              \tilde z_k = \frac{\exp(y_k / \tau)}{\sum_{j<K} \exp(y_j / \tau) + \delta}, \quad
              \tilde z_K = 1 - \sum_{k<K} \tilde z_k \qquad (10, 15)

    The temperature says how close to one-hot samples are; the probabilities of the categories, `probs`, do not depend
    on it. Two of them always have a closed-form KL divergence, whatever their temperatures and deltas: the sample is a
    softmax++ at temperature and delta 1 of :math:`\mathcal N(\mu/\tau - \log\delta, \sigma/\tau)`, so (loc, scale,
    temperature) are identified only up to a common factor.

    Args:
        loc, scale: ``(*batch, K-1)``.
        temperature: positive number, or tensor that broadcasts against the batch shape.
        delta: likewise.
        allowed: boolean, broadcasts against ``(*batch, K)``. A category that is not allowed gets exactly 0 and no
            gradient. Where the last one is not allowed, z is the softmax of the allowed :math:`y_k / \tau`, and
            densities are those of the differences between the allowed y.

    Raises:
        ValueError: if a parameter is out of its range, shapes do not fit, or no category is allowed.

    Source: paper, equation (15).

    >>> q = SoftmaxIGR(torch.zeros(9), torch.ones(9), temperature=0.1)
    >>> q.probs
    tensor([0.1109, 0.1109, 0.1109, 0.1109, 0.1109, 0.1109, 0.1109, 0.1109, 0.1109,
            0.0020])
    >>> p = SoftmaxIGR.uniform(10, temperature=0.1)
    >>> p.probs.min(), p.probs.max()
    (tensor(0.1000), tensor(0.1000))
    >>> z = q.rsample((5,))  # on the simplex, with gradients to loc and scale
    >>> z.shape, torch.allclose(z.sum(-1), torch.ones(5))
    (torch.Size([5, 10]), True)
    >>> torch.distributions.kl_divergence(q, p)
    tensor(2.5513)
    """

    _by_sticks = False

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        temperature: float | Tensor,
        delta: float | Tensor = 1.0,
        allowed: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        num_categories: int | None = None,
    ) -> None:
        transform = SoftmaxPlusPlus(temperature, delta, allowed, validate_args)
        super().__init__(loc, scale, transform, validate_args, num_categories=num_categories)

    @classmethod
    def _uniform_loc(cls, num_categories: int, scale: float) -> tuple[float, ...]:
        return (scale * uniform_loc(num_categories),) * (num_categories - 1)

    @property
    def delta(self) -> float | Tensor:
        r""":math:`\delta` of (15)."""
        return self._softmax_plus_plus.delta

    @property
    def _softmax_plus_plus(self) -> SoftmaxPlusPlus:
        return self.transform.parts[-1]  # type: ignore[return-value]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        if _checks.shape("sample_shape", sample_shape) or self.allowed is not None:
            return super().rsample(sample_shape)
        noise = self._gaussian.noise(())
        return functional.sample_softmax_plus_plus(
            self.loc, self.scale, noise, self.temperature, self.delta
        )

    def discrete(
        self,
        num_samples: int | None = None,
        *,
        tolerance: float | None = None,
        num_nodes: int | None = None,
    ) -> RecoveredCategorical:
        r"""The categorical distribution that is relaxed, by the quadrature of Proposition 2; differentiable.

        Args:
            num_samples: None for the exact probabilities, or a number of draws to estimate them from.
            tolerance, num_nodes: see `igr.discrete.argmax_log_probs`.
        """
        if num_samples is not None:
            return super().discrete(num_samples)
        log_probs = argmax_log_probs(
            self.loc,
            self.scale,
            tolerance=tolerance,
            num_nodes=num_nodes,
            allowed=self.allowed,
            validate_args=False,  # checked when this was constructed
        )
        return self._recovered(logits=log_probs)

    def conditional_rsample(self, onehot: Tensor) -> Tensor:
        """Draw z given its category, exactly, with gradients by implicit reparameterization.

        Args:
            onehot: ``(*sample_shape, *batch, K)``.

        Raises:
            ValueError: if `onehot` is not one-hot, or of a category that is not allowed.
        """
        # Ahead by what the softmax may round away, so that hard(z) is the category that was given.
        gap = conditional.rounding_gap(self.temperature, self.loc.dtype)
        onehot = self._onehot(onehot, self.allowed)
        y = conditional.conditional_gaussian(
            self.loc, self.scale, onehot, allowed=self.allowed, gap=gap
        )
        return self._cast(self.transform.forward(y))


class _BrokenStick(IGR):
    """What the two forms of broken sticks share. Abstract."""

    _rest: ClassVar[bool]
    """Whether what is left of the stick is a category."""

    @classmethod
    def _uniform_loc(cls, num_categories: int, scale: float) -> tuple[float, ...]:
        return equal_sticks(num_categories, scale, cls._rest)

    def discrete(
        self, num_samples: int | None = None, *, smallest_scale: float | None = None
    ) -> RecoveredCategorical:
        """The categorical distribution that is relaxed, by recursion over the breaks; differentiable.

        For 2,000 variables of K = 10 and scales as a new head has them it takes some 35 times as long as
        `SoftmaxIGR.discrete`, gradients included, and 77 MiB. The cost grows in proportion to K and, for each variable
        alone, up to the cube of the inverse of its smallest scale where that is below 0.6. The last category of
        `StickBreakingIGR` has probability 0 (erratum E5); where all its breaks are small it takes longer.

        Args:
            num_samples: None for the exact probabilities, or a number of draws to estimate them from.
            smallest_scale: see `igr.stick_breaking.leader_log_probs`.
        """
        if num_samples is not None:
            return super().discrete(num_samples)
        return self._recovered(
            logits=leader_log_probs(
                self.loc,
                self.scale,
                rest=self._rest,
                allowed=self.allowed,
                smallest_scale=smallest_scale,
                validate_args=False,  # checked when this was constructed
            )
        )


class StickBreakingIGR(_BrokenStick):
    r"""IGR-SB: Gaussian noise through stick-breaking, then the softmax++ (18).

    Differs from the paper: nothing; but as the temperature falls its last category is never chosen (erratum E5), and
    its samples fill only a part of the simplex. `SharpStickBreakingIGR` mends both.

    That part is so thin that rounding takes samples out of it: in single precision ``log_prob`` of many of its own
    samples over 20 categories is -inf, and so it is of their logarithms. ``rsample_and_log_prob`` scores them as they
    are drawn, at any number of categories; double precision reaches 20 of them.

    Args:
        loc, scale: ``(*batch, K-1)``.
        temperature, delta: as for `SoftmaxIGR`.

    >>> StickBreakingIGR(torch.zeros(9), torch.ones(9), temperature=0.1).rsample().shape
    torch.Size([10])
    """

    _rest = False

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        temperature: float | Tensor,
        delta: float | Tensor = 1.0,
        validate_args: bool | None = None,
        *,
        allowed: None = None,
        num_categories: int | None = None,
    ) -> None:
        _no_mask(type(self), allowed)
        close = SoftmaxPlusPlus(temperature, delta, validate_args=validate_args)
        transform = Compose([StickBreaking(), close])
        super().__init__(loc, scale, transform, validate_args, num_categories=num_categories)


class SharpStickBreakingIGR(_BrokenStick):
    r"""IGR-SB sharpened: Gaussian noise through stick-breaking, then :math:`z_k \propto w_k^{1/\tau}`.

    Differs from the paper: `Sharpen` stands for the softmax++ of (18), which never chooses the last category
    (errata E4 and E5). At K = 2 it is `SoftmaxIGR` itself.

    Args:
        loc, scale: ``(*batch, K-1)``.
        temperature: positive number, or tensor that broadcasts against the batch shape.
        allowed: boolean, broadcasts against ``(*batch, K)``. A category that is not allowed breaks nothing off the
            stick and gets exactly 0 and no gradient; the last allowed one takes what is left.

    >>> SharpStickBreakingIGR(torch.zeros(9), torch.ones(9), temperature=0.1).rsample().shape
    torch.Size([10])
    """

    _by_sticks = True
    _rest = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        temperature: float | Tensor,
        allowed: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        num_categories: int | None = None,
    ) -> None:
        sharpen = Sharpen(temperature, allowed, validate_args)
        transform = Compose([StickBreaking(allowed, validate_args=False), sharpen])
        super().__init__(loc, scale, transform, validate_args, num_categories=num_categories)


class PlanarIGR(IGR):
    r"""IGR-Planar: Gaussian noise through a flow of R^(K-1), then the softmax++.

    Args:
        loc, scale: ``(*batch, K-1)``.
        temperature, delta: as for `SoftmaxIGR`.
        flow: transform of R^(K-1) to itself, or several in a row; the paper has two `igr.Planar`. Any torch, Pyro or
            zuko transform fits, and an `igr.nn.PlanarFlow`.

    It scores its own samples without an inverse; ``log_prob`` of other points inverts the flow, numerically where it
    is `igr.Planar`. Some of Pyro's maps (``Planar``, ``Radial``, ``Sylvester``, ...) have no inverse.

    >>> from igr import Planar
    >>> flow = [Planar(torch.ones(9), torch.ones(9), torch.tensor(0.0)) for _ in range(2)]
    >>> PlanarIGR(torch.zeros(9), torch.ones(9), 0.1, flow).rsample().shape
    torch.Size([10])
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        temperature: float | Tensor,
        flow: Transform | Iterable[Transform],
        delta: float | Tensor = 1.0,
        validate_args: bool | None = None,
        *,
        allowed: None = None,
        num_categories: int | None = None,
    ) -> None:
        _no_mask(type(self), allowed)
        given = flow
        if isinstance(flow, nn.Module) and hasattr(flow, "transforms"):
            given = flow.transforms()  # type: ignore[operator]
        flows = [given] if isinstance(given, Transform) else given
        flows = list(flows) if isinstance(flows, Iterable) else [flows]
        if not all(isinstance(part, Transform) for part in flows):
            raise ValueError(
                "flow: expected a torch transform of R^(K-1) or several in a row, or a module with transforms() such "
                f"as igr.nn.PlanarFlow, got {type(flow).__name__}"
            )
        close = SoftmaxPlusPlus(temperature, delta, validate_args=validate_args)
        transform = Compose([*flows, close])
        super().__init__(loc, scale, transform, validate_args, num_categories=num_categories)


class GumbelSoftmax(Relaxation):
    r"""The Gumbel-Softmax, or Concrete, distribution, computed in log space.

    .. math:: \tilde z = \operatorname{softmax}((\epsilon + \log \alpha) / \tau), \qquad
              q(\tilde z) = (K-1)! \, \tau^{K-1} \prod_{k=1}^K
              \frac{\alpha_k \tilde z_k^{-\tau-1}}{\sum_j \alpha_j \tilde z_j^{-\tau}} \qquad (5), (6)

    Args:
        temperature: positive number, or tensor that broadcasts against the batch shape.
        logits: :math:`\log \alpha`, ``(*batch, K)``, up to a constant; -inf rules a category out. By name.
        probs: :math:`\alpha`, in the place of `logits`. By name.
        allowed: boolean, broadcasts against ``(*batch, K)``; other categories get exactly 0 and no gradient.

    Raises:
        ValueError: unless exactly one of `logits` and `probs` is given, or if a parameter is out of its range.

    Source: Jang et al. (2017), Maddison et al. (2017, ExpConcrete).

    >>> q = GumbelSoftmax(0.01, logits=torch.zeros(4))
    >>> q.probs
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    >>> z, log_prob = q.rsample_and_log_prob((1000,))  # of most, torch's RelaxedOneHotCategorical says NaN
    >>> bool(log_prob.isfinite().all())
    True
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(
        self,
        temperature: float | Tensor,
        *unnamed: Any,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        allowed: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if unnamed:
            raise ValueError(
                "logits, probs: expected by name, GumbelSoftmax(temperature, logits=x) or "
                "GumbelSoftmax(temperature, probs=x): torch and Pyro read a second positional argument as probs"
            )
        if (logits is None) == (probs is None):
            raise ValueError("expected exactly one of logits and probs")
        temperature = _checks.temperature("temperature", temperature, validate_args)
        name = "logits" if probs is None else "probs"
        given = _of_all_categories(name, logits if probs is None else probs)
        given = given.to(_promoted(given, temperature))
        if _checks.enabled(validate_args):
            if probs is None:
                _checks.satisfies(name, given, given < torch.inf, "numbers below infinity")
            else:
                valid = (given >= 0) & (given < torch.inf)
                _checks.satisfies(name, given, valid, "non-negative finite values")
        if probs is not None:
            # A probability of 0 rules the category out, without a gradient.
            given = torch.where(
                given > 0, given.clamp_min(torch.finfo(given.dtype).tiny).log(), -torch.inf
            )
        allowed = _checks.allowed_categories(allowed, given.shape[-1], validate_args)
        if allowed is not None:
            _checks.broadcast_batch("allowed", given.shape[:-1], allowed.shape[:-1])
            given = torch.where(allowed, given, -torch.inf)
        if _checks.enabled(validate_args):
            possible = (given > -torch.inf).any(-1)
            _checks.satisfies(
                name, given, possible, "at least one possible category for each element"
            )
        _checks.one_each("temperature", temperature, given.shape[:-1])
        if isinstance(temperature, Tensor) and temperature.dim():
            batch = _checks.broadcast_batch("temperature", given.shape[:-1], temperature.shape)
            given = given.expand(*batch, -1)
        self.temperature = temperature
        self.logits = given
        super().__init__(given.shape[:-1], given.shape[-1:], validate_args=False)
        self._validate_args = _checks.enabled(validate_args)

    @classmethod
    def from_logits(
        cls, logits: Tensor, temperature: float | Tensor, **options: Any
    ) -> GumbelSoftmax:
        """``GumbelSoftmax(temperature, logits=logits, **options)``, in the order that `SoftmaxIGR.from_logits` has.

        >>> GumbelSoftmax.from_logits(torch.zeros(4), temperature=0.5).probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        """
        return cls(temperature, logits=logits, **options)

    @classmethod
    def from_probs(
        cls, probs: Tensor, temperature: float | Tensor, **options: Any
    ) -> GumbelSoftmax:
        """``GumbelSoftmax(temperature, probs=probs, **options)``, in the order that `SoftmaxIGR.from_probs` has.

        >>> GumbelSoftmax.from_probs(torch.tensor([0.2, 0.8]), temperature=0.5).probs
        tensor([0.2000, 0.8000])
        """
        return cls(temperature, probs=probs, **options)

    @classmethod
    def uniform(
        cls,
        num_categories: int,
        temperature: float | Tensor,
        *,
        batch_shape: Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> GumbelSoftmax:
        """The one whose K probabilities are equal; arguments as for `IGR.uniform`, without a scale.

        >>> GumbelSoftmax.uniform(4, temperature=0.5).probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        """
        num_categories = _checks.count("num_categories", num_categories, 2)
        size = (*_checks.shape("batch_shape", batch_shape), num_categories)
        logits = torch.zeros(size, device=device, dtype=dtype)
        return cls(temperature, logits=logits, **options)

    def _cast(self, z: Tensor) -> Tensor:
        return z.to(self.logits.dtype)

    @property
    def allowed(self) -> Tensor:
        """Which categories are allowed, ``(*batch, K)``."""
        return self.logits > -torch.inf

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The simplex, or the face of it where some categories are ruled out."""
        allowed = self.allowed
        if _checks.values_can_be_read(allowed) and bool(allowed.all()):
            return simplex
        return face(allowed)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> GumbelSoftmax:
        new = self._new(_instance)
        batch_shape = self._expanded(batch_shape)
        new.temperature = self.temperature
        new.logits = self.logits.expand(*batch_shape, -1)
        PyroSite.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _draw(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        logits = functional.full_precision(self.logits)
        shape = _checks.shape("sample_shape", sample_shape) + logits.shape
        noise = functional.gumbel_sample(shape, logits.dtype, logits.device)
        return functional.temper(logits + noise, self.temperature), noise

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._cast(functional.softmax(self._draw(sample_shape)[0]))

    def rsample_log(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return functional.log_softmax(self._draw(sample_shape)[0])

    def rsample_log_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        scaled, noise = self._draw(sample_shape)
        log_z = functional.log_softmax(scaled)
        # log alpha - temperature log z is -noise up to a constant, which cancels.
        return log_z, self._log_density(log_z.masked_fill(~self.allowed, 0.0), -noise)

    def log_prob(self, value: Tensor | None = None, *, log_value: Tensor | None = None) -> Tensor:
        log_z, inside = self._read(value, log_value, self.allowed)
        logits = functional.full_precision(self.logits)
        a = logits - functional.lift(self.temperature) * log_z
        return torch.where(inside, self._log_density(log_z, a), -torch.inf)

    def _log_density(self, log_z: Tensor, a: Tensor) -> Tensor:
        """(6) in logs, over the allowed categories, with a = log alpha - temperature log z up to a constant."""
        allowed = self.allowed
        n = allowed.sum(-1).to(a.dtype)
        total = torch.where(allowed, a, 0.0) - log_z
        constant = torch.lgamma(n) + (n - 1) * functional.log(self.temperature)
        spread = torch.logsumexp(torch.where(allowed, a, -torch.inf), -1)
        return constant + total.sum(-1) - n * spread

    def hard_scores(self, log_value: Tensor) -> Tensor:
        return log_value

    def discrete(self) -> RecoveredCategorical:
        """The categorical distribution that is relaxed: its parameter, exactly."""
        return self._recovered(logits=functional.full_precision(self.logits))

    def conditional_rsample(self, onehot: Tensor) -> Tensor:
        """Draw z given its category, exactly.

        Args:
            onehot: ``(*sample_shape, *batch, K)``.

        Raises:
            ValueError: if `onehot` is not one-hot, or of a category that is not allowed.
        """
        gap = conditional.rounding_gap(self.temperature, self.logits.dtype)
        scores = conditional.conditional_gumbel(
            functional.full_precision(self.logits), self._onehot(onehot, self.allowed), gap=gap
        )
        return self._cast(functional.tempered_softmax(scores, self.temperature))

    def __repr__(self) -> str:
        temperature = self.temperature
        if isinstance(temperature, Tensor) and temperature.dim():
            temperature = f"tensor{tuple(temperature.shape)}"  # type: ignore[assignment]
        return f"GumbelSoftmax(temperature: {temperature}, logits: {tuple(self.logits.shape)})"


def _of_all_categories(name: str, value: Any) -> Tensor:
    value = _checks.floating(name, value)
    if value.dim() < 1 or value.shape[-1] < 2:
        raise ValueError(
            f"{name}: expected shape (*batch, K) with K >= 2, got {tuple(value.shape)}"
        )
    return value


def _is_gaussian(base: Distribution) -> bool:
    return isinstance(getattr(base, "base_dist", None), _Normal)


def _check_masks(base: Distribution, transform: Compose) -> None:
    """Raise ValueError where a mask is such that the density on what is left of the simplex is not known.

    Behind another map, or in one part alone, a category that is ruled out still moves the others.
    """
    masks = [getattr(part, "allowed", None) for part in transform.parts]
    if all(mask is None for mask in masks):
        return
    known = transform.softmax_plus_plus is not None
    first, *others = transform.parts
    if type(first) is StickBreaking and len(others) == 1 and type(others[0]) is Sharpen:
        known = same_parameter(*masks) or not _checks.values_can_be_read(*masks)
    if not (known and _is_gaussian(base)):
        raise ValueError(
            "transform: a mask has a known density in SoftmaxPlusPlus(t, allowed=m) alone and in "
            f"Compose([StickBreaking(m), Sharpen(t, m)]), of Gaussian noise; got {transform} of {base}"
        )


def _promoted(first: Tensor, *others: float | Tensor) -> torch.dtype:
    """The dtype that torch computes with: a tensor without dimensions has no say."""
    dtypes = [x.dtype for x in others if isinstance(x, Tensor) and x.dim()]
    return functools.reduce(torch.promote_types, dtypes, first.dtype)


def _last_parameters(transform: Transform) -> list[Any]:
    """Temperature and delta of the map that ends on the simplex."""
    last = transform.parts[-1] if isinstance(transform, ComposeTransform) else transform
    return [getattr(last, name, None) for name in ("temperature", "delta")]


def _support(base: Distribution) -> constraints.Constraint:
    try:
        return base.support or constraints.real_vector
    except NotImplementedError:
        return constraints.real_vector


def _no_mask(form: type, allowed: None) -> None:
    if allowed is not None:
        raise ValueError(
            f"allowed: {form.__name__} cannot rule categories out; igr.SoftmaxIGR, igr.SharpStickBreakingIGR and "
            "igr.GumbelSoftmax can"
        )


# Their divergences are registered with torch, however this module came to be imported.
import igr.kl  # noqa: E402, F401
