r"""Invertible maps from R^(K-1) to the K-simplex as thin classes over `igr.functional`.

Inside a composition, maps stay on K-1 coordinates (R^(K-1), or the open corner); the last one closes to K. Each class
works in *stable form*: a point of R^(K-1) is itself, a point of the corner or of the simplex is carried as the
logarithms of all its K weights. The paper's forms are compositions:

    Compose([SoftmaxPlusPlus(t)])                              (15), IGR-I
    Compose([StickBreaking(), SoftmaxPlusPlus(t)])             (18), IGR-SB
    Compose([StickBreaking(), Sharpen(t)])                     the mend of (18)
    Compose([StickBreaking(), VertexInterpolation(t), Close()])  (17)
    Compose([Planar(...), Planar(...), SoftmaxPlusPlus(t)])    IGR-Planar
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ComposeTransform, Transform

from igr import _checks, functional
from igr.constraints import corner, face, simplex

__all__ = [
    "Close",
    "Compose",
    "Planar",
    "Sharpen",
    "SoftmaxPlusPlus",
    "StableTransform",
    "StickBreaking",
    "VertexInterpolation",
]

_REAL = constraints.real_vector
_NOTHING = -1e30  # the logarithm of no weight at all, finite so that gradients stay so


def _is_simplex(constraint: Constraint) -> bool:
    # By type: a copied or unpickled transform may carry a copy.
    return isinstance(constraint, (type(simplex), type(constraints.simplex), face))


def is_real(constraint: Constraint) -> bool:
    """Whether every vector of numbers satisfies it."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if hasattr(constraint, "cseq"):  # a CatTransform's or StackTransform's
        return all(is_real(part) for part in constraint.cseq)
    return isinstance(constraint, type(constraints.real))


def satisfied(constraint: Constraint, x: Tensor) -> Tensor:
    """Mask ``(*batch,)`` of the vectors that satisfy it."""
    inside = constraint.check(x)
    return inside if inside.dim() < x.dim() else inside.all(-1)


def some_point(constraint: Constraint, like: Tensor) -> Tensor:
    """A vector that satisfies it."""
    return transform_to(constraint)(torch.zeros_like(like))


def _to_stable(constraint: Constraint, x: Tensor) -> Tensor:
    """A point of `constraint`, given by its coordinates, in stable form."""
    if constraint is corner:
        x = functional.full_precision(x)
        return torch.cat([x.log(), torch.log1p(-x.sum(-1, keepdim=True))], -1)
    if _is_simplex(constraint):
        return functional.full_precision(x).log()
    return x


def _from_stable(constraint: Constraint, x: Tensor) -> Tensor:
    """The coordinates of a point given in stable form."""
    if constraint is corner:
        return x[..., :-1].exp()
    return x.exp() if _is_simplex(constraint) else x


def same_parameter(a: Any, b: Any) -> bool:
    """Equal parameters: by identity first, so that a shared object costs no device synchronisation."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if a is None or b is None or not _checks.values_can_be_read(a, b):
            return False
        try:
            return bool((a == b).all())
        except RuntimeError:
            return False
    return bool(a == b)


class StableTransform(Transform):
    """A map with three methods in stable form, from which torch's own interface follows.

    A subclass names its parameters (what makes two of them the same map), and defines `forward_stable`,
    `inverse_stable` and `log_det`.
    """

    bijective = True
    # Whether it reaches all of its codomain.
    onto = True
    parameter_names: tuple[str, ...] = ()
    vector_names: tuple[str, ...] = (
        "allowed",
        "u",
        "w",
    )  # those with a dimension besides the batch

    @abstractmethod
    def forward_stable(self, x: Tensor) -> Tensor:
        """Map a point in stable form to a point in stable form."""

    @abstractmethod
    def inverse_stable(self, y: Tensor) -> Tensor:
        """Inverse of `forward_stable`."""

    @abstractmethod
    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant of the Jacobian with respect to K-1 coordinates, ``(*batch,)``."""

    @property
    def active(self) -> Tensor | None:
        """The coordinates of R^(K-1) that the result depends on; None where it depends on all."""
        return None

    def image(self, y: Tensor) -> Tensor | None:
        """Mask of the points in stable form that the map can reach; None where it reaches them all."""
        return None

    def stand_in(self, y: Tensor) -> Tensor:
        """Points that the map reaches, in the place of those that it does not: the last vertex, nearly."""
        tiny = math.log(torch.finfo(y.dtype).tiny)
        return F.pad(torch.full_like(y[..., :-1], tiny), (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map a point in stable form to coordinates."""
        return _from_stable(self.codomain, self.forward_stable(x))

    def hard_scores(self, y: Tensor) -> Tensor:
        """Scores whose largest names the category that a point in stable form relaxes."""
        return y

    def _call(self, x: Tensor) -> Tensor:
        return self.forward(_to_stable(self.domain, x)).to(x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        return _from_stable(self.domain, self.inverse_stable(_to_stable(self.codomain, y))).to(
            y.dtype
        )

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # From x: coordinates of y may have underflowed.
        x = _to_stable(self.domain, x)
        return self.log_det(x, self.forward_stable(x))

    def batch_shape(self) -> torch.Size:
        """Shape that the parameters of the map add to a batch."""
        shapes = []
        for name, value in zip(self.parameter_names, self._parameters(), strict=True):
            if isinstance(value, Tensor):
                shapes.append(value.shape[: value.dim() - (name in self.vector_names)])
        return torch.broadcast_shapes(*shapes) if any(shapes) else torch.Size()

    def _parameters(self) -> list[Any]:
        return [getattr(self, name) for name in self.parameter_names]

    def _resize(self, shape: Iterable[int], by: int) -> torch.Size:
        *batch, last = shape
        n = min(last, last + by)
        for name, value in zip(self.parameter_names, self._parameters(), strict=True):
            expected = n + 1 if name == "allowed" else n
            if name in self.vector_names and value is not None and value.shape[-1] != expected:
                raise ValueError(
                    f"{name}: expected shape (*batch, {expected}), for a map of {n} coordinates, "
                    f"got {tuple(value.shape)}"
                )
        # Broadcasting is slow, and most maps have numbers for parameters.
        if added := self.batch_shape():
            name = "temperature and other parameters of the map"
            batch = list(_checks.broadcast_batch(name, batch, added))
        return torch.Size((*batch, last + by))

    def forward_shape(self, shape: Iterable[int]) -> torch.Size:
        return self._resize(shape, int(_is_simplex(self.codomain)))

    def inverse_shape(self, shape: Iterable[int]) -> torch.Size:
        return self._resize(shape, -int(_is_simplex(self.codomain)))

    def with_cache(self, cache_size: int = 1) -> Transform:
        if self._cache_size == cache_size:
            return self
        other = copy.copy(self)
        other._cache_size = cache_size
        other._cached_x_y = None, None
        other._inv = None  # which torch leaves out of a copy, unless Pyro is imported
        return other

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return False
        return all(
            same_parameter(a, b)
            for a, b in zip(self._parameters(), other._parameters(), strict=True)
        )

    __hash__ = Transform.__hash__

    def __repr__(self) -> str:
        arguments = (
            f"{n}={'tensor' + str(tuple(p.shape)) if isinstance(p, Tensor) else p}"
            for n, p in zip(self.parameter_names, self._parameters(), strict=True)
            if p is not None
        )
        return f"{type(self).__name__}({', '.join(arguments)})"


class _ToSimplex(StableTransform):
    """What softmax++ and sharpening share: K weights that sum to one, some of which may be ruled out."""

    codomain = simplex

    def __init__(
        self,
        temperature: float | Tensor,
        allowed: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__()
        self.temperature = _checks.temperature("temperature", temperature, validate_args)
        self.allowed = _checks.allowed_categories(allowed, validate_args=validate_args)

    def _log_volume(self, log_z: Tensor) -> Tensor:
        """sum log z - (number of categories - 1) log temperature."""
        if self.allowed is None:
            total, free = log_z.sum(-1), log_z.shape[-1] - 1
            return total - free * functional.log(self.temperature)
        total = log_z.masked_fill(~self.allowed, 0.0).sum(-1)
        return total - (self.allowed.sum(-1) - 1) * functional.log(self.temperature)


class SoftmaxPlusPlus(_ToSimplex):
    r"""The softmax++ of (15), from R^(K-1) to the simplex; formula in `igr.functional.softmax_plus_plus`.

    Args:
        temperature: positive number or tensor that broadcasts against the batch.
        delta: likewise.
        allowed: boolean ``(*batch, K)``; categories that are not allowed get exactly 0.
        validate_args: check the values of tensors, which waits for a GPU; torch's default where None.

    Raises:
        ValueError: if `temperature` or `delta` is not positive, or no category is allowed.

    >>> SoftmaxPlusPlus(0.5)(torch.zeros(2))
    tensor([0.3333, 0.3333, 0.3333])
    """

    domain = _REAL
    parameter_names = ("temperature", "delta", "allowed")

    def __init__(
        self,
        temperature: float | Tensor,
        delta: float | Tensor = 1.0,
        allowed: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(temperature, allowed, validate_args)
        self.delta = _checks.positive("delta", delta, validate_args)

    def forward_stable(self, x: Tensor) -> Tensor:
        return functional.log_softmax_plus_plus(
            x, self.temperature, self.delta, allowed=self.allowed, validate_args=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax_plus_plus(
            x, self.temperature, self.delta, allowed=self.allowed, validate_args=False
        )

    @property
    def active(self) -> Tensor | None:
        return None if self.allowed is None else self.allowed[..., :-1]

    def inverse_stable(self, y: Tensor) -> Tensor:
        if self.allowed is not None:
            # Without the last category, y is known up to a common shift: the one with log z_K = 0 stands for it.
            y = y.masked_fill(~self.allowed, 0.0)
        return functional.log_softmax_plus_plus_inverse(
            y, self.temperature, self.delta, validate_args=False
        )

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        return self._log_volume(y)

    def hard_scores(self, y: Tensor) -> Tensor:
        # Proposition 1 compares y_k with 0, that is z_k with z_K / delta.
        last = y[..., -1:] - functional.lift(functional.log(self.delta))
        return torch.cat([y[..., :-1].expand(*last.shape[:-1], -1), last], -1)


class StickBreaking(StableTransform):
    """Stick-breaking of sigmoid(y) (16), from R^(K-1) to the corner; see `igr.functional.log_stick_breaking`.

    Torch's own ``StickBreakingTransform`` adds an offset to y and closes to the simplex: it is another map.

    >>> StickBreaking()(torch.zeros(2))
    tensor([0.5000, 0.2500])
    """

    domain = _REAL
    codomain = corner
    parameter_names = ("allowed",)

    def __init__(self, allowed: Tensor | None = None, validate_args: bool | None = None) -> None:
        super().__init__()
        self.allowed = _checks.allowed_categories(allowed, validate_args=validate_args)

    def forward_stable(self, x: Tensor) -> Tensor:
        return functional.log_stick_breaking(x, allowed=self.allowed, validate_args=False)

    @property
    def active(self) -> Tensor | None:
        return None if self.allowed is None else functional.stick_breaking_active(self.allowed)

    def inverse_stable(self, y: Tensor) -> Tensor:
        x = functional.log_stick_breaking_inverse(y)
        # What stands where nothing is broken off is arbitrary, but finite.
        return x if self.active is None else torch.where(self.active, x, 0.0)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        if self.allowed is not None:
            y = y.masked_fill(~self.allowed, 0.0)
        return y.sum(-1)


class Sharpen(_ToSimplex):
    r"""Sharpen all K weights, :math:`z_k \propto w_k^{1/\tau}`, from the corner to the simplex.

    After `StickBreaking` it takes the place of the softmax++ in (18): it reaches every category and fills the whole
    simplex (errata E4 and E5). See `igr.functional.log_sharpen`.

    >>> Sharpen(0.5)(torch.tensor([0.5, 0.25]))
    tensor([0.6667, 0.1667, 0.1667])
    """

    domain = corner
    parameter_names = ("temperature", "allowed")

    def forward_stable(self, x: Tensor) -> Tensor:
        return functional.log_sharpen(
            x, self.temperature, allowed=self.allowed, validate_args=False
        )

    def inverse_stable(self, y: Tensor) -> Tensor:
        if self.allowed is not None:
            y = y.masked_fill(~self.allowed, _NOTHING)
        return functional.log_sharpen_inverse(y, self.temperature, validate_args=False)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        if self.allowed is not None:
            x = x.masked_fill(~self.allowed, 0.0)
        return self._log_volume(y) - x.sum(-1)


class VertexInterpolation(StableTransform):
    r"""Interpolate towards the nearest vertex (17), from the corner to itself; temperature at most 1.

    Its pathwise gradient is biased (erratum E14); see `igr.functional.log_vertex_interpolation`.

    Args:
        temperature: number in (0, 1], or tensor that broadcasts against the batch.
        validate_args: as for `SoftmaxPlusPlus`.

    >>> VertexInterpolation(0.5)(torch.tensor([0.6, 0.3]))
    tensor([0.8000, 0.1500])
    """

    domain = corner
    codomain = corner
    onto = False
    parameter_names = ("temperature",)

    def __init__(self, temperature: float | Tensor, validate_args: bool | None = None) -> None:
        super().__init__()
        self.temperature = _checks.temperature("temperature", temperature, validate_args)
        _checks.at_most_one("temperature", self.temperature, "values in (0, 1]", validate_args)

    def forward_stable(self, x: Tensor) -> Tensor:
        return functional.log_vertex_interpolation(x, self.temperature, validate_args=False)

    def inverse_stable(self, y: Tensor) -> Tensor:
        return functional.log_vertex_interpolation_inverse(y, self.temperature, validate_args=False)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        volume = (x.shape[-1] - 1) * functional.log(self.temperature)
        return torch.as_tensor(volume, dtype=y.dtype, device=y.device).expand(y.shape[:-1])

    def image(self, y: Tensor) -> Tensor:
        # What it comes from must lie in the corner, and have this vertex as its nearest.
        at_vertex = functional.nearest_vertex(y)[..., :-1]
        w = self.inverse_stable(y).exp()
        first, slack = w[..., :-1], 8 * torch.finfo(y.dtype).eps
        nearest = torch.where(at_vertex, first > 0.5 - slack, first < 0.5 + slack)
        return nearest.all(-1) & (w.sum(-1) < 1 + slack * (1 + w.shape[-1] / 8))

    def stand_in(self, y: Tensor) -> Tensor:
        # What comes near them: the vertex keeps its half at least, and the others share the rest.
        at_vertex = functional.nearest_vertex(y)[..., :-1]
        w = self.inverse_stable(y.detach())[..., :-1].exp()
        own = torch.where(at_vertex, w.clamp_min(0.5 + torch.finfo(w.dtype).eps), 0.0)
        others = torch.where(at_vertex, 0.0, w.clamp_max(0.5))
        w = own + _within(others, 1 - own.sum(-1, keepdim=True))
        return self.forward_stable(_to_stable(corner, w))

    def hard_scores(self, y: Tensor) -> Tensor:
        return F.pad(y[..., :-1], (0, 1), value=math.log(0.5))


class Close(StableTransform):
    """Append the remainder: the corner, seen as the simplex.

    >>> Close()(torch.tensor([0.5, 0.25]))
    tensor([0.5000, 0.2500, 0.2500])
    """

    domain = corner
    codomain = simplex

    def forward_stable(self, x: Tensor) -> Tensor:
        return x

    def inverse_stable(self, y: Tensor) -> Tensor:
        return y

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y[..., 0])


class Planar(StableTransform):
    r"""One planar flow on R^(K-1); formula in `igr.functional.planar`, learnable in `igr.nn.PlanarFlow`.

    Args:
        u, w: ``(*batch, K-1)``; u is bent so that the flow stays invertible.
        b: ``(*batch,)``.

    Its inverse is numerical. Source: Rezende and Mohamed (2015).

    >>> Planar(torch.ones(2), torch.ones(2), torch.tensor(0.0))(torch.zeros(2))
    tensor([0., 0.])
    """

    domain = _REAL
    codomain = _REAL
    parameter_names = ("u", "w", "b")

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        for name, value in (("u", u), ("w", w), ("b", b)):
            _checks.floating(name, value)
        if u.shape != w.shape or u.shape[:-1] != b.shape:
            raise ValueError(
                "u, w, b: expected shapes (*batch, K-1), (*batch, K-1), (*batch,), got "
                f"{tuple(u.shape)}, {tuple(w.shape)}, {tuple(b.shape)}"
            )
        self.u, self.w, self.b = u, w, b

    def forward_stable(self, x: Tensor) -> Tensor:
        return functional.planar(x, self.u, self.w, self.b, validate_args=False)[0]

    def inverse_stable(self, y: Tensor) -> Tensor:
        return functional.planar_inverse(y, self.u, self.w, self.b, validate_args=False)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.planar(x, self.u, self.w, self.b, validate_args=False)[1]


class _Plain(StableTransform):
    """Someone else's transform, in stable form."""

    parameter_names = ("transform",)

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    domain = _REAL

    @property
    def codomain(self) -> Constraint:  # type: ignore[override]
        return simplex if _is_simplex(self.transform.codomain) else _REAL

    @property
    def onto(self) -> bool:  # type: ignore[override]
        return _is_simplex(self.transform.codomain) or is_real(self.transform.codomain)

    def image(self, y: Tensor) -> Tensor | None:
        if self.onto:
            return None
        inside = satisfied(self.transform.codomain, y)
        # The ends of an interval, say, which rounding may bring about, come from no number.
        with torch.no_grad():
            x = self.transform.inv(torch.where(inside.unsqueeze(-1), y, self.stand_in(y)))
        return inside & x.isfinite().all(-1)

    def stand_in(self, y: Tensor) -> Tensor:
        return self.transform(some_point(self.transform.domain, y))

    def forward_stable(self, x: Tensor) -> Tensor:
        return _to_stable(self.codomain, self.transform(x))

    def inverse_stable(self, y: Tensor) -> Tensor:
        try:
            return self.transform.inv(_from_stable(self.codomain, y))
        except (NotImplementedError, KeyError) as error:  # Pyro's look for y in a cache
            raise NotImplementedError(
                f"{type(self.transform).__name__} has no inverse, so that given points cannot be scored: draw and "
                "score by rsample_and_log_prob, or take a map that has one, such as igr.Planar"
            ) from error

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        value = self.transform.log_abs_det_jacobian(x, _from_stable(self.codomain, y))
        return value if self.transform.domain.event_dim == 1 else value.sum(-1)


class Compose(ComposeTransform):
    """Maps applied one after the other, the first of them first, as one map in stable form.

    Nested compositions are flattened, so that two of them are equal when they are the same map. Any torch, Pyro or
    zuko transform of R^(K-1) to itself may stand before the last.

    Args:
        parts: the maps. Each must take what the one before it gives.

    It works in stable form, its inverse included, and keeps its last point where it is made ``with_cache``.

    Raises:
        ValueError: if two neighbours do not fit.

    >>> Compose([StickBreaking(), Sharpen(0.5)])(torch.zeros(2))
    tensor([0.6667, 0.1667, 0.1667])
    """

    def __init__(self, parts: Iterable[Transform], cache_size: int = 0) -> None:
        flat: list[Transform] = []
        for part in parts if isinstance(parts, Iterable) else [parts]:
            if not isinstance(part, Transform):
                raise ValueError(f"parts: expected transforms, got {type(part).__name__}")
            flat.extend(part.parts if isinstance(part, ComposeTransform) else [part])
        if not flat:
            raise ValueError("parts: expected at least one transform, got none")
        for first, second in itertools.pairwise(flat):
            if _is_simplex(first.codomain) or (
                second.domain is corner and first.codomain is not corner
            ):
                raise ValueError(
                    f"parts: {second} takes points of {second.domain}, "
                    f"but {first} before it gives points of {first.codomain}"
                )
            if is_real(first.codomain) and not (is_real(second.domain) or second.domain is corner):
                raise ValueError(
                    f"parts: {second} takes points of {second.domain} alone, "
                    f"but {first} before it gives any numbers"
                )
        Transform.__init__(self, cache_size)  # the whole has the cache, and not its parts
        self.parts = flat
        self._stable = [p if isinstance(p, StableTransform) else _Plain(p) for p in flat]

    @property
    def takes_corner(self) -> bool:
        """Whether the composition starts from the corner rather than from R^(K-1)."""
        return self._stable[0].domain is corner

    @property
    def active(self) -> Tensor | None:
        """The coordinates of R^(K-1) that the result depends on; None where it depends on all."""
        return self._stable[0].active

    @property
    def allowed(self) -> Tensor | None:
        """Which categories the last part allows; None where all are."""
        return getattr(self._stable[-1], "allowed", None)

    @property
    def softmax_plus_plus(self) -> SoftmaxPlusPlus | None:
        """The map, where it is the softmax++ and nothing else."""
        first = self.parts[0]
        return first if len(self.parts) == 1 and isinstance(first, SoftmaxPlusPlus) else None

    @property
    def onto(self) -> bool:
        """Whether the composition reaches all of its codomain, for all that is known of its parts."""
        parts = self._stable
        # What takes the corner for a part of R^(K-1) never sees the rest.
        kept = (a.codomain is b.domain for a, b in itertools.pairwise(parts))
        return all(kept) and all(part.onto for part in parts)

    def _enter(self, i: int, x: Tensor) -> Tensor:
        """What part i - 1 gives, in the stable form that part i takes."""
        given, taken = self._stable[i - 1].codomain, self._stable[i].domain
        return x if i == 0 or given is taken else _from_stable(given, x)

    def forward(self, x: Tensor) -> Tensor:
        """Map a point in stable form to coordinates."""
        for i, part in enumerate(self._stable[:-1]):
            x = part.forward_stable(self._enter(i, x))
        return self._stable[-1].forward(self._enter(len(self._stable) - 1, x))

    def forward_stable(self, x: Tensor) -> Tensor:
        """Map a point in stable form to a point in stable form."""
        for i, part in enumerate(self._stable):
            x = part.forward_stable(self._enter(i, x))
        return x

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward_stable` and the log-determinant of its Jacobian with respect to K-1 coordinates."""
        total: Tensor | None = None
        for i, part in enumerate(self._stable):
            x = self._enter(i, x)
            y = part.forward_stable(x)
            term = part.log_det(x, y)
            total = term if total is None else total + term
            x = y
        return x, total  # type: ignore[return-value]  # there is at least one part

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inverse of `forward_and_log_det`, and a mask of the points that it applies to.

        Outside the image of the map the results are finite and mean nothing.
        """
        inside = torch.ones_like(y[..., 0], dtype=torch.bool)
        total = torch.zeros_like(y[..., 0])
        for i in reversed(range(len(self._stable))):
            part = self._stable[i]
            mask = part.image(y)
            if mask is not None:
                inside, y = inside & mask, torch.where(mask.unsqueeze(-1), y, part.stand_in(y))
            x = part.inverse_stable(y)
            total = total + part.log_det(x, y)
            if i and self._stable[i - 1].codomain is corner and part.domain is not corner:
                mask = corner.check(x)
                inside, x = inside & mask, torch.where(mask.unsqueeze(-1), x, _within(x))
                y = _to_stable(corner, x)
            else:
                y = x
        return y, total, inside

    def source(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What points of the simplex come from, and a mask of those that do, up to rounding."""
        wide = functional.full_precision(z)
        log_z = wide.clamp_min(torch.finfo(wide.dtype).tiny).log()
        x = self.inverse_and_log_det(log_z)[0]
        # A point is reached where this leads back to it, as exactly as K sums of logarithms allow.
        slack = torch.finfo(z.dtype).eps * (8 + z.shape[-1]) * (1 - log_z.amin(-1))
        return x, (self.forward_stable(x).exp() - wide).abs().amax(-1) <= slack

    def hard_scores(self, y: Tensor) -> Tensor:
        """Scores whose largest names the category that a point in stable form relaxes."""
        last = self._stable[-1]
        if isinstance(last, Close) and len(self._stable) > 1:
            last = self._stable[-2]
        return last.hard_scores(y)

    # torch's Transform caches, and inverts as a whole; its ComposeTransform does either part by part.
    __call__ = Transform.__call__
    inv = Transform.inv

    def _call(self, x: Tensor) -> Tensor:
        return self.forward(_to_stable(self._stable[0].domain, x)).to(x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        if _is_simplex(self.codomain) and not self.onto:
            x, inside = self.source(y)
        else:
            x, _, inside = self.inverse_and_log_det(_to_stable(self._stable[-1].codomain, y))
        x = _from_stable(self._stable[0].domain, x)
        return torch.where(inside.unsqueeze(-1), x, torch.nan).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.forward_and_log_det(_to_stable(self._stable[0].domain, x))[1]

    def with_cache(self, cache_size: int = 1) -> Compose:
        return self if self._cache_size == cache_size else Compose(self.parts, cache_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComposeTransform) and list(self.parts) == list(other.parts)

    __hash__ = ComposeTransform.__hash__

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.parts))}])"


class _OntoFace(StableTransform):
    """Stick-breaking over the allowed categories; coordinates that break nothing count as standard normal."""

    domain = _REAL
    parameter_names = ("allowed",)

    def __init__(self, constraint: Any) -> None:
        super().__init__()
        self.codomain = constraint
        self.allowed = constraint.allowed

    @property
    def active(self) -> Tensor:
        return functional.stick_breaking_active(self.allowed)

    def forward_stable(self, x: Tensor) -> Tensor:
        return functional.log_stick_breaking(x, allowed=self.allowed, validate_args=False)

    def inverse_stable(self, y: Tensor) -> Tensor:
        y = y.clamp_min(math.log(torch.finfo(y.dtype).tiny)).masked_fill(~self.allowed, _NOTHING)
        return torch.where(self.active, functional.log_stick_breaking_inverse(y), 0.0)

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        unused = torch.where(self.active, 0.0, functional.gaussian_terms(x))
        return y.masked_fill(~self.allowed, 0.0).sum(-1) + unused.sum(-1)


biject_to.register(face, _OntoFace)
transform_to.register(face, _OntoFace)


@biject_to.register(corner)
@transform_to.register(corner)
def _onto_corner(constraint: Constraint) -> Transform:
    return StickBreaking()


def _within(w: Tensor, total: float | Tensor = 1.0) -> Tensor:
    """Positive weights near w, whose sum is below a total; constants."""
    info = torch.finfo(w.dtype)
    w = w.detach().clamp_min(info.tiny)
    most = total - (8 + w.shape[-1]) * info.eps
    return w * (most / w.sum(-1, keepdim=True)).clamp_max(1.0)
