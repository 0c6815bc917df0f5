r"""Relaxations of distributions over 0, 1, 2, ... (section 3.2): parameters that grow with what is drawn.

A sample breaks the stick (16) until its weights add up to more than a precision :math:`\rho`,

.. math:: \sum_{k<K} w_k \le \rho < \sum_{k \le K} w_k,

and only those K coordinates enter it. What is then left of the stick, less than :math:`1 - \rho`, stands for all
categories beyond: the sample is that of a finite stick-breaking relaxation with K breaks and K + 1 categories.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.distributions.kl import register_kl
from torch.distributions.transforms import Transform

from igr import _checks, functional
from igr.constraints import countable
from igr.discrete import monte_carlo_probs
from igr.distributions import RecoveredCategorical, Relaxation
from igr.stick_breaking import leader_log_probs
from igr.transforms import Compose, Sharpen, StickBreaking

__all__ = ["CountableIGR", "CountableParameters", "PrecisionWarning"]

_CEILING = 2**20  # coordinates; where growth without a maximum gives up


class PrecisionWarning(UserWarning):
    """Samples whose weights do not add up to the precision within the maximum; says by how much."""


class CountableParameters(nn.Module):
    r"""Location and scale of infinitely many coordinates, of which those in use are held, in blocks.

    When a sample needs more coordinates, a block as large as all before it is filled. A block is one parameter, loc
    and then log scale, and all blocks there can ever be are parameters from the start, those that hold nothing yet
    without elements. So an optimiser, a scheduler, a checkpoint and an average of weights see the same number of
    parameters in the same order whatever has grown; nothing has to be told. An optimiser makes its state for a block
    at the first gradient, which is after it was filled. A coordinate that is not held sits at the prior.

    Args:
        initial: coordinates to begin with.
        precision: :math:`\rho`, what the weights of a sample must add up to.
        maximum: most coordinates there may be; None for as many as samples need. Where it equals `initial`, there is
            one parameter, which never changes its size.
        loc, scale: of the prior at every coordinate: a number, or a tensor whose last entry goes on for ever.
        dtype, device: of the parameters; torch's defaults where None.

    Raises:
        ValueError: if an argument is out of its range.

    Source: paper, section 3.2.

    >>> parameters = CountableParameters(initial=4)
    >>> optimizer = torch.optim.Adam(parameters.parameters(), lr=0.1)
    >>> parameters.grow(10)
    >>> parameters.num_coordinates, parameters.loc.shape
    (16, torch.Size([16]))
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        initial: int = 16,
        precision: float = 0.99,
        maximum: int | None = None,
        *,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        initial = _checks.count("initial", initial)
        if maximum is not None and (maximum := _checks.count("maximum", maximum)) < initial:
            raise ValueError(f"maximum: expected at least initial ({initial}), got {maximum}")
        self.precision = _check_precision(precision)
        self.maximum = maximum
        loc, scale = _checks.real("loc", loc), _checks.positive("scale", scale)
        if device is None:
            device = next((x.device for x in (loc, scale) if isinstance(x, Tensor)), None)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        # Blocks that double, from one coordinate to the most there may be, so that another `initial` fits too.
        most = _CEILING if maximum is None else max(_CEILING, maximum)
        self._num_blocks = 1 if maximum == initial else 1 + (most - 1).bit_length()
        self._initial = initial
        with _trainable():
            self._prior = {
                name: x.detach().clone() if isinstance(x, Tensor) else x
                for name, x in (("prior_loc", loc), ("prior_scale", scale))
            }
            for name in self._prior:
                self.register_buffer(name, torch.empty(0, dtype=dtype, device=device))
            for i in range(self._num_blocks):
                block = torch.empty(0, dtype=dtype, device=device)
                self.register_parameter(f"block{i}", nn.Parameter(block))
        self._on_grow: list[Callable[[int], object]] = []
        self.reset_parameters()
        _checks.satisfies("loc", self.prior_loc, self.prior_loc.isfinite(), "finite values")
        _checks.positive("scale", self.prior_scale)

    def reset_parameters(self) -> None:
        """Hold the first coordinates alone again, as many as to begin with, at the prior that was given."""
        with _trainable():
            for name, value in self._prior.items():
                old = getattr(self, name)
                prior = torch.as_tensor(value, dtype=old.dtype, device=old.device)
                setattr(self, name, prior.reshape(-1).clone())
            for i in range(self._num_blocks):
                self._resize(i, self.prior_loc.new_empty(0))
        self._fill(self._initial)

    def _held(self) -> list[nn.Parameter]:
        """The blocks that hold coordinates, ``(2 n,)`` each: loc, then log scale."""
        blocks = [getattr(self, f"block{i}") for i in range(self._num_blocks)]
        return [block for block in blocks if block.numel()]

    @property
    def num_coordinates(self) -> int:
        """How many coordinates are held."""
        return sum(block.shape[0] // 2 for block in self._held())

    @property
    def loc(self) -> Tensor:
        """Means of the coordinates held, ``(num_coordinates,)``."""
        return self.values(self.num_coordinates)[0]

    @property
    def scale(self) -> Tensor:
        """Standard deviations of the coordinates held, ``(num_coordinates,)``."""
        return self.values(self.num_coordinates)[1]

    def prior(self, num_coordinates: int) -> tuple[Tensor, Tensor]:
        """Loc and scale of the prior at the first coordinates, ``(num_coordinates,)``."""
        return _extend(self.prior_loc, num_coordinates), _extend(self.prior_scale, num_coordinates)

    def values(self, num_coordinates: int) -> tuple[Tensor, Tensor]:
        """Loc and scale at the first coordinates, those not held at the prior."""
        blocks: list[Tensor] = []
        held = 0
        for block in self._held():
            if held >= num_coordinates:
                # Later blocks stay out of the graph: their parameters get no gradient, rather than one of 0.
                break
            blocks.append(block.view(2, -1))
            held += blocks[-1].shape[1]
        loc, log_scale = torch.cat(blocks, 1)[:, :num_coordinates]
        scale = log_scale.exp()
        if num_coordinates <= held:
            return loc, scale
        prior_loc, prior_scale = self.prior(num_coordinates)
        return torch.cat([loc, prior_loc[held:]]), torch.cat([scale, prior_scale[held:]])

    def forward(self, num_coordinates: int | None = None) -> tuple[Tensor, Tensor]:
        """Loc and scale at the first coordinates; at those held where None."""
        return self.values(self.num_coordinates if num_coordinates is None else num_coordinates)

    def grow(self, num_coordinates: int) -> None:
        """Fill blocks, each as large as all before it, until so many coordinates are held, or the maximum."""
        if self.maximum is not None:
            num_coordinates = min(num_coordinates, self.maximum)
        while (held := self.num_coordinates) < num_coordinates:
            self._fill(held if self.maximum is None else min(held, self.maximum - held))
            for callback in self._on_grow:
                callback(self.num_coordinates)

    def on_grow(self, callback: Callable[[int], object]) -> None:
        """Call `callback` with the number of coordinates after each new block. Copies of the module do not keep it.

        An average of weights has to grow along: ``parameters.on_grow(averaged.module.grow)``.
        """
        self._on_grow.append(callback)

    def register_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that `optimizer` will train blocks to come. Not needed for that: it holds them from the start.

        Raises:
            ValueError: if it does not hold the parameters of this module, or makes state for parameters before they
                have a gradient, as LBFGS and Adagrad do, which cannot follow a block that is filled later.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held.issuperset(map(id, self.parameters())):
            raise ValueError("optimizer: expected one that holds the parameters of this module")
        if self._num_blocks > 1 and isinstance(optimizer, (torch.optim.LBFGS, torch.optim.Adagrad)):
            raise ValueError(
                f"optimizer: expected one that makes its state at a parameter's first gradient, such as Adam or SGD, "
                f"got {type(optimizer).__name__}, which cannot follow parameters that grow; or set initial = maximum"
            )

    def _fill(self, size: int) -> None:
        blocks = self._held()
        with _trainable():
            held = sum(block.shape[0] // 2 for block in blocks)
            loc, scale = (x[held:] for x in self.prior(held + size))
            self._resize(len(blocks), torch.cat([loc, scale.log()]))

    def _resize(self, index: int, values: Tensor) -> None:
        block = getattr(self, f"block{index}")
        block.data = values
        block.grad = None

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Blocks and prior take the sizes that were saved.
        saved: list[Tensor] = []
        while (block := state_dict.pop(f"{prefix}block{len(saved)}", None)) is not None:
            saved.append(block)
        # Version 0.1 had loc and log scale in two lists.
        while (loc := state_dict.pop(f"{prefix}_loc.{len(saved)}", None)) is not None:
            saved.append(torch.cat([loc, state_dict.pop(f"{prefix}_log_scale.{len(saved)}")]))
        saved = [block for block in saved if block.numel()]
        size = sum(block.shape[0] // 2 for block in saved)
        if len(saved) > self._num_blocks or size > (self.maximum or size):
            error_msgs.append(
                f"{prefix or type(self).__name__}: {size} coordinates in {len(saved)} blocks were saved, and this "
                f"module was made with maximum={self.maximum}, for {self._num_blocks}; make it as the saved one was"
            )
            return
        with _trainable():
            for i in range(self._num_blocks if saved else 0):
                block = saved[i] if i < len(saved) else self.prior_loc.new_empty(0)
                state_dict[f"{prefix}block{i}"] = block
                if getattr(self, f"block{i}").shape != block.shape:
                    self._resize(i, self.prior_loc.new_empty(block.shape))
            for name in ("prior_loc", "prior_scale"):
                prior = getattr(self, name)
                if prior.shape != (shape := state_dict.get(prefix + name, prior).shape):
                    setattr(self, name, prior.new_empty(shape))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_grow": []}

    def extra_repr(self) -> str:
        return (
            f"num_coordinates={self.num_coordinates}, precision={self.precision}, "
            f"maximum={self.maximum}"
        )


class CountableIGR(Relaxation):
    r"""Relaxation of a distribution over 0, 1, 2, ...: each sample breaks the stick as often as it has to.

    A sample with K breaks has its K weights in the first K entries and what is left of the stick, which stands for
    all categories beyond, in the next; then zeros, up to the longest sample of the draw. Only the first K coordinates
    get a gradient. After a draw, ``num_used`` holds each sample's K.

    Args:
        parameters: a `CountableParameters`, which grows as samples need; or a pair (loc, scale) of tensors
            ``(*batch, maximum)``, such as a network gives for each data point.
        temperature: positive number, or tensor that broadcasts against the batch shape.
        closing: the map that follows stick-breaking, made as ``closing(temperature, allowed=...)``. With
            `igr.Sharpen`, the default, :math:`z_k \propto w_k^{1/\tau}`, at a temperature of at most 1; with
            `igr.SoftmaxPlusPlus` it is the paper's (18), which never chooses what is left.
        precision: :math:`\rho`, for a pair of tensors; 0.99 where None. `CountableParameters` has its own.
        validate_args: check values; torch's default where None.

    Raises:
        ValueError: if an argument is out of its range or shapes do not fit.
        RuntimeError: if samples still fall short of the precision after a million coordinates without a maximum.

    Warns:
        PrecisionWarning: where samples need more than the maximum: how many, and how much of the stick is left.

    Differs from the paper: (19) has the sum over :math:`g = \operatorname{softmax}_{++}(w, \tau)`, but each of its
    infinitely many terms in the denominator is at least 1, so g is 0. The cut is on w (erratum E4). With `Sharpen` no
    cut is needed for the sum to exist, as :math:`\sum_j w_j^{1/\tau} \le 1`: all categories beyond the cut together
    get at most what the entry after the last weight holds. As in the paper, K depends on the noise, so pathwise
    gradients miss a term for the jumps at its boundaries (erratum E14), which is small where the precision is high.

    >>> q = CountableIGR(CountableParameters(), temperature=0.5)
    >>> z = q.rsample((100,))
    >>> q.num_used.shape, z.shape[-1] == q.num_used.max() + 1
    (torch.Size([100]), tensor(True))
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012
    support = countable

    def __init__(
        self,
        parameters: CountableParameters | tuple[Tensor, Tensor],
        temperature: float | Tensor,
        closing: Callable[..., Transform] = Sharpen,
        *,
        precision: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(parameters, CountableParameters):
            if precision is not None:
                raise ValueError("precision: expected None, as the parameters have their own")
            batch = torch.Size()
            self._precision = None
        else:
            if not isinstance(parameters, (tuple, list)) or len(parameters) != 2:
                raise ValueError(
                    "parameters: expected igr.nn.CountableParameters, or a pair of tensors (loc, scale), "
                    f"got {type(parameters).__name__}"
                )
            loc, scale = parameters
            loc, scale = _checks.broadcast(
                loc=_checks.floating("loc", loc), scale=_checks.floating("scale", scale)
            )
            if loc.dim() < 1 or loc.shape[-1] < 1:
                raise ValueError(f"loc: expected shape (*batch, maximum), got {tuple(loc.shape)}")
            if _checks.enabled(validate_args):
                _checks.satisfies("loc", loc, loc.isfinite(), "finite values")
                _checks.between("scale", scale, 0.0, torch.inf, "positive finite values")
            parameters, batch = (loc, scale), loc.shape[:-1]
            self._precision = _check_precision(0.99 if precision is None else precision)
        temperature = _checks.temperature("temperature", temperature, validate_args)
        if isinstance(temperature, Tensor):
            _checks.one_each("temperature", temperature, batch)
            batch = _checks.broadcast_batch("temperature", batch, temperature.shape)
        self.parameters = parameters
        self.temperature = temperature
        self.closing = closing
        self.num_used: Tensor | None = None
        if isinstance(closing(1.0), Sharpen):
            expected = "at most 1 with Sharpen, as sum w^(1/temperature) may diverge above"
            _checks.at_most_one("temperature", temperature, expected, validate_args)
        super().__init__(batch, torch.Size(), validate_args=False)
        self._validate_args = _checks.enabled(validate_args)

    @property
    def event_shape(self) -> torch.Size:
        """``(n + 1,)`` with the n coordinates that are held now; a sample may have fewer entries."""
        return torch.Size((self.num_coordinates + 1,))

    @property
    def num_coordinates(self) -> int:
        """How many coordinates are held now."""
        if isinstance(self.parameters, CountableParameters):
            return self.parameters.num_coordinates
        return self.parameters[0].shape[-1]

    @property
    def precision(self) -> float:
        """What the weights of a sample must add up to."""
        if isinstance(self.parameters, CountableParameters):
            return self.parameters.precision
        return self._precision  # type: ignore[return-value]

    @property
    def loc(self) -> Tensor:
        """Means of the coordinates held, ``(*batch, n)``."""
        return self._values(self.num_coordinates)[0].expand(*self.batch_shape, -1)

    @property
    def scale(self) -> Tensor:
        """Standard deviations of the coordinates held, ``(*batch, n)``."""
        return self._values(self.num_coordinates)[1].expand(*self.batch_shape, -1)

    def _values(self, num_coordinates: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.parameters, CountableParameters):
            return self.parameters.values(num_coordinates)
        loc, scale = self.parameters
        return loc[..., :num_coordinates], scale[..., :num_coordinates]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> CountableIGR:
        batch_shape = self._expanded(batch_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        for name in ("parameters", "temperature", "closing", "_precision"):
            setattr(new, name, getattr(self, name))
        new.num_used = None
        Relaxation.__init__(new, batch_shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _cast(self, z: Tensor) -> Tensor:
        return z.to(self._values(1)[0].dtype)

    @torch.no_grad()
    def _noise(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Noise of as many coordinates as the longest sample needs, and each sample's K."""
        limit = math.log1p(-self.precision)
        sample_shape = _checks.shape("sample_shape", sample_shape)
        noise: Tensor | None = None
        while True:
            loc, scale = (functional.full_precision(x) for x in self._values(self.num_coordinates))
            held = 0 if noise is None else noise.shape[-1]
            shape = (*sample_shape, *self.batch_shape, loc.shape[-1] - held)
            more = torch.randn(shape, dtype=loc.dtype, device=loc.device)
            noise = more if noise is None else torch.cat([noise, more], -1)
            log_left = nn.functional.logsigmoid(-(loc + scale * noise)).cumsum(-1)
            short = log_left >= limit
            if not _any(short[..., -1]) or not self._grow():
                break
        num_used = (short.sum(-1) + 1).clamp_max(short.shape[-1])
        if _any(short[..., -1]):
            self._fall_short(short[..., -1], log_left[..., -1])
        longest = int(num_used.max()) if num_used.numel() else 1
        return noise[..., :longest], num_used

    def _grow(self) -> bool:
        """Hold twice as many coordinates; whether that could be done."""
        parameters = self.parameters
        if not isinstance(parameters, CountableParameters):
            return False
        held = parameters.num_coordinates
        if parameters.maximum is None and 2 * held > _CEILING:
            raise RuntimeError(
                f"samples do not reach the precision {self.precision} in {held} coordinates; raise loc, lower the "
                "precision, or set a maximum"
            )
        parameters.grow(2 * held)
        return parameters.num_coordinates > held

    def _fall_short(self, short: Tensor, log_left: Tensor) -> None:
        # Rounded down to powers of ten: Python shows a text once, and training would have another one at every step.
        share, left = (
            10.0 ** math.floor(math.log10(x.item()))
            for x in (short.double().mean(), log_left[short].double().exp().max())
        )
        warnings.warn(
            f"at least {100 * share:g}% of the samples do not reach the precision {self.precision} in the maximum of "
            f"{self.num_coordinates} coordinates: more than {left:g} of a stick is left, and counted as the category "
            "after the last",
            PrecisionWarning,
            stacklevel=4,
        )

    def _draw(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Compose]:
        """Noise, y, the mask of the coordinates used, and the map."""
        noise, num_used = self._noise(sample_shape)
        self.num_used = num_used
        loc, scale = (functional.full_precision(x) for x in self._values(noise.shape[-1]))
        used = torch.arange(noise.shape[-1], device=noise.device) < num_used.unsqueeze(-1)
        allowed = nn.functional.pad(used, (0, 1), value=True)
        closing = self.closing(self.temperature, allowed=allowed)
        transform = Compose([StickBreaking(allowed), closing])
        return noise, torch.addcmul(loc, scale, noise), used, transform

    def rsample_log(self, sample_shape: Sequence[int] = ()) -> Tensor:
        _, y, _, transform = self._draw(sample_shape)
        return _rest_after_last(transform.forward_stable(y), self.num_used)

    def rsample_log_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        noise, y, used, transform = self._draw(sample_shape)
        log_z, log_det = transform.forward_and_log_det(y)
        scale = functional.full_precision(self._values(noise.shape[-1])[1])
        terms = functional.gaussian_terms(noise, scale)
        log_prob = torch.where(used, terms, 0.0).sum(-1) - log_det
        return _rest_after_last(log_z, self.num_used), log_prob

    def log_prob(self, value: Tensor | None = None, *, log_value: Tensor | None = None) -> Tensor:
        r"""Log-density of z, given as `value` or by its logarithm.

        K is read off z, whose last positive entry is what is left of the stick. The density is that of the finite
        relaxation with K breaks where y is cut after K breaks, and 0 elsewhere: with respect to the counting measure
        over K times Lebesgue's over the first K entries. So it sums and integrates to 1.

        Raises:
            ValueError: unless exactly one of `value` and `log_value` is given, is on the simplex, and has no more
                entries than a pair of tensors has coordinates for.
        """
        given = functional.full_precision(self._given(value, log_value))
        name, log_z = ("value", given.log()) if log_value is None else ("log_value", given)
        self._check_point(value, log_value)
        positive = log_z > -torch.inf
        position = torch.arange(log_z.shape[-1], device=log_z.device)
        num_used = torch.where(positive, position, 0).amax(-1)
        # Zeros before the last entry are outside the image.
        inside = positive.sum(-1) == num_used + 1
        held = self._values(log_z.shape[-1] - 1)[0].shape[-1]
        if held < log_z.shape[-1] - 1:
            raise ValueError(f"{name}: expected at most {held + 1} entries, got {log_z.shape[-1]}")
        limit = math.log1p(-self.precision)
        out = torch.full(
            torch.broadcast_shapes(inside.shape, self.batch_shape),
            -torch.inf,
            dtype=log_z.dtype,
            device=log_z.device,
        )
        transform = Compose([StickBreaking(), self.closing(self.temperature)])
        for k in num_used[inside & (num_used > 0)].unique().tolist():
            chosen = inside & (num_used == k)
            centre = torch.full_like(log_z[..., : k + 1], -math.log(k + 1))
            points = torch.where(chosen.unsqueeze(-1), log_z[..., : k + 1], centre)
            y, log_det, in_image = transform.inverse_and_log_det(points)
            loc, scale = (functional.full_precision(x) for x in self._values(k))
            terms = functional.gaussian_terms((y - loc) / scale, scale)
            log_left = nn.functional.logsigmoid(-y).cumsum(-1)
            cut_here = (log_left[..., -1] < limit) | (k == self._most())
            if k > 1:
                cut_here = cut_here & (log_left[..., -2] >= limit)
            out = torch.where(chosen & in_image & cut_here, terms.sum(-1) - log_det, out)
        return out

    def _misfit(self, num_entries: int) -> str:
        return "" if num_entries > 1 else "n), n of 2 or more"

    def _most(self) -> int | None:
        """The maximum of coordinates, where samples are cut whatever is left."""
        if isinstance(self.parameters, CountableParameters):
            return self.parameters.maximum
        return self.num_coordinates

    def hard_scores(self, log_value: Tensor) -> Tensor:
        position = torch.arange(log_value.shape[-1], device=log_value.device)
        num_used = torch.where(log_value > -torch.inf, position, 0).amax(-1)
        rest = log_value.gather(-1, num_used.unsqueeze(-1))
        first = log_value.scatter(-1, num_used.unsqueeze(-1), -torch.inf)[..., :-1]
        transform = Compose([StickBreaking(), self.closing(self.temperature)])
        return _rest_after_last(transform.hard_scores(torch.cat([first, rest], -1)), num_used)

    def discrete(self, num_samples: int | None = None) -> RecoveredCategorical:
        """The categorical distribution that is relaxed, over the coordinates held and, last, all beyond them.

        Args:
            num_samples: None for the exact probabilities of the infinite stick, see `igr.stick_breaking`, which are
                there for `Sharpen` and `SoftmaxPlusPlus`; or a number of draws, for frequencies of the cut samples
                with a ``standard_error``. The two differ where a category beyond the cut would have won, which has
                a share of less than 1 - precision.
        """
        if num_samples is None:
            rest = isinstance(self.closing(self.temperature), Sharpen)
            log_probs = leader_log_probs(self.loc, self.scale, rest=rest, validate_args=False)
            return self._recovered(logits=log_probs)

        def draw(n: int) -> Tensor:
            hard = functional.one_hot_argmax(self.hard_scores(self.rsample_log((n,))))
            return nn.functional.pad(hard, (0, self.event_shape[-1] - hard.shape[-1]))

        probs, standard_error = monte_carlo_probs(draw, num_samples)
        return self._recovered(probs=probs, standard_error=standard_error)

    def __repr__(self) -> str:
        return (
            f"CountableIGR(coordinates: {self.num_coordinates}, precision: {self.precision}, "
            f"closing: {self.closing(self.temperature)})"
        )


@register_kl(CountableIGR, CountableIGR)
def _kl_countable(q: CountableIGR, p: CountableIGR) -> Tensor:
    """(13) over all coordinates: those that neither holds sit at the same prior and add nothing."""
    if q.closing(q.temperature) != p.closing(p.temperature):
        raise NotImplementedError(
            f"no closed-form KL from {q} to {p}: their maps onto the simplex differ; use igr.monte_carlo_kl"
        )
    n = q.num_coordinates
    mine, theirs = q.parameters, p.parameters
    if isinstance(theirs, CountableParameters):
        if isinstance(mine, CountableParameters):
            n = max(n, theirs.num_coordinates)
    elif n != p.num_coordinates:
        raise ValueError(
            f"q, p: expected as many coordinates in q as p has a maximum, got {n} and "
            f"{p.num_coordinates}"
        )
    if isinstance(mine, CountableParameters) and isinstance(theirs, CountableParameters):
        longest = max(n, mine.prior_loc.shape[0], theirs.prior_loc.shape[0])
        same = all(
            torch.equal(a[n:], b[n:])
            for a, b in zip(mine.prior(longest + 1), theirs.prior(longest + 1), strict=True)
        )
        if not same:
            raise ValueError(
                "q, p: coordinates that neither holds sit at different priors, so the divergence is infinite; make "
                "the parameters of both with the same loc and scale"
            )
    batch = _checks.broadcast_batch("q, p", q.batch_shape, p.batch_shape)
    return functional.gaussian_kl_terms(*q._values(n), *p._values(n)).sum(-1).expand(batch)


@contextlib.contextmanager
def _trainable() -> Iterator[None]:
    """What is trained later may first be needed in inference mode, whose tensors cannot be."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _any(condition: Tensor) -> bool:
    try:
        return bool(condition.any())
    except RuntimeError as error:
        raise NotImplementedError(
            "CountableIGR: how many coordinates a sample needs depends on values, which cannot be read here "
            "(torch.func.vmap, or a meta tensor); give it a batch of parameters instead"
        ) from error


def _check_precision(precision: float) -> float:
    return _checks.number("precision", precision, "a number in (0, 1)", lambda x: 0 < x < 1)


def _extend(x: Tensor, num_coordinates: int) -> Tensor:
    """The first entries of a sequence whose last goes on for ever."""
    if num_coordinates <= x.shape[0]:
        return x[:num_coordinates]
    return torch.cat([x, x[-1:].expand(num_coordinates - x.shape[0])])


def _rest_after_last(log_z: Tensor, num_used: Tensor | None) -> Tensor:
    """The last entry moved to behind the entries in use, -inf after it."""
    position = torch.arange(log_z.shape[-1], device=log_z.device)
    n = num_used.unsqueeze(-1)  # type: ignore[union-attr]
    moved = torch.where(position == n, log_z[..., -1:], -torch.inf)
    return torch.where(position < n, log_z, moved)
