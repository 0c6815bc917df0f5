"""One table of named cases, over which tests of what every form must satisfy are parametrised.

A case builds its distribution from loc and scale ``(*batch, K-1)`` and a temperature, in their dtype. Its other fields
say what may be asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, StudentT, constraints
from torch.distributions.transforms import AffineTransform, StickBreakingTransform, Transform

import igr

Temperature = float | Tensor
Build = Callable[[Tensor, Tensor, Temperature], igr.Relaxation]


@dataclass(frozen=True)
class Case:
    """A named form.

    Attributes:
        build: from loc, scale and temperature.
        score: the scores of the K categories whose largest wins as the temperature goes to 0 (Proposition 1), from
            y ``(*, K-1)`` before the map; None for a form with no y.
        allowed: mask of the allowed categories for a number of categories; None where all are.
        max_temperature: largest that the form takes.
        fills_simplex: every interior point has a density.
        smooth: its density has no jump or kink, so that simple quadrature converges fast.
        own_noise: draws its noise itself, not by another library's sampler.
        log_space: keeps to log space throughout, so that nothing underflows.
        foreign: it has maps that are not ours.
    """

    name: str
    build: Build
    score: Callable[[Tensor], Tensor] | None = None
    allowed: Callable[[int], Tensor] | None = None
    max_temperature: float = 10.0
    fills_simplex: bool = True
    smooth: bool = True
    own_noise: bool = True
    log_space: bool = True
    foreign: bool = False

    def __str__(self) -> str:
        return self.name

    def num_allowed(self, num_categories: int) -> int:
        """How many categories may be chosen."""
        return num_categories if self.allowed is None else int(self.allowed(num_categories).sum())

    def some(
        self,
        num_categories: int = 5,
        batch: tuple[int, ...] = (),
        temperature: Temperature = 0.7,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> igr.Relaxation:
        """The form with arbitrary parameters."""
        return self.build(*parameters(num_categories, batch, dtype, seed), temperature)


def parameters(
    num_categories: int,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Arbitrary loc and scale."""
    g = torch.Generator().manual_seed(seed)
    shape = (*batch, num_categories - 1)
    loc = torch.randn(shape, generator=g, dtype=torch.float64)
    scale = (0.3 * torch.randn(shape, generator=g, dtype=torch.float64)).exp()
    return loc.to(dtype), scale.to(dtype)


def stick(y: Tensor) -> Tensor:
    """The K pieces of (16), broken off one after the other."""
    rest = torch.ones_like(y[..., 0])
    pieces = []
    for k in range(y.shape[-1]):
        pieces.append(rest * torch.sigmoid(y[..., k]))
        rest = rest * torch.sigmoid(-y[..., k])
    return torch.stack([*pieces, rest], -1)


def _with_zero(y: Tensor) -> Tensor:
    return torch.cat([y, torch.zeros_like(y[..., :1])], -1)


def _without_last(w: Tensor) -> Tensor:
    return torch.cat([w[..., :-1], torch.zeros_like(w[..., :1])], -1)


def _vertex_score(y: Tensor) -> Tensor:
    w = stick(y)
    return torch.cat([w[..., :-1], torch.full_like(w[..., :1], 0.5)], -1)


class Shear(Transform):
    """A user's own flow: ``x_k + tanh(x_{k-1})``, whose Jacobian is triangular with ones on the diagonal."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shear)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return x + torch.cat([torch.zeros_like(x[..., :1]), torch.tanh(x[..., :-1])], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        columns = [y[..., 0]]
        for k in range(1, y.shape[-1]):
            columns.append(y[..., k] - torch.tanh(columns[-1]))
        return torch.stack(columns, -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x[..., 0])


def planar_flow(num_coordinates: int, dtype: torch.dtype) -> list[igr.Planar]:
    """Two planar flows that bend visibly."""
    k = torch.arange(1.0, num_coordinates + 1, dtype=dtype)
    flows = []
    for phase in (0.3, 1.9):
        u, w = 0.5 * torch.cos(1.7 * k + phase), torch.sin(2.3 * k + phase)
        flows.append(igr.Planar(u, w / w.norm(), torch.tensor(phase - 1, dtype=dtype)))
    return flows


def _affine(num_coordinates: int, dtype: torch.dtype) -> AffineTransform:
    shift = torch.linspace(-0.5, 0.5, num_coordinates, dtype=dtype)
    return AffineTransform(shift, torch.linspace(0.5, 1.5, num_coordinates, dtype=dtype))


def _softmax_after(flow: Callable[[int, torch.dtype], Transform]) -> Build:
    def build(loc: Tensor, scale: Tensor, t: Temperature) -> igr.Relaxation:
        return igr.PlanarIGR(loc, scale, t, flow(loc.shape[-1], loc.dtype))

    return build


@cache
def _spline(num_coordinates: int, dtype: torch.dtype) -> Transform:
    from pyro.distributions.transforms import Spline

    with torch.random.fork_rng():  # the caller's stream stays what it is, whoever comes first
        torch.manual_seed(7)
        spline = Spline(num_coordinates, count_bins=4, bound=4.0).to(dtype).requires_grad_(False)
    for p in spline.parameters():
        p.mul_(0.3)
    return spline


@cache
def _zuko(num_coordinates: int, dtype: torch.dtype) -> Transform:
    import zuko

    with torch.random.fork_rng():
        torch.manual_seed(7)
        flow = zuko.flows.MaskedAutoregressiveTransform(num_coordinates, hidden_features=(8,))
    return flow.to(dtype).requires_grad_(False)()


def _user_closing(loc: Tensor, scale: Tensor, t: Temperature) -> igr.Relaxation:
    inverse = 1 / (t.unsqueeze(-1) if isinstance(t, Tensor) else t)
    parts = [AffineTransform(0.0, inverse), StickBreakingTransform()]
    return igr.IGR(loc, scale, igr.Compose(parts))


def _vertex(loc: Tensor, scale: Tensor, t: Temperature) -> igr.Relaxation:
    parts = [igr.StickBreaking(), igr.VertexInterpolation(t), igr.Close()]
    return igr.IGR(loc, scale, igr.Compose(parts))


def _all_but(index: int) -> Callable[[int], Tensor]:
    def allowed(num_categories: int) -> Tensor:
        mask = torch.ones(num_categories, dtype=torch.bool)
        mask[index] = False
        return mask

    return allowed


def _masked_scores(
    score: Callable[[Tensor], Tensor], allowed: Callable[[int], Tensor]
) -> Callable[[Tensor], Tensor]:
    def masked(y: Tensor) -> Tensor:
        return score(y).masked_fill(~allowed(y.shape[-1] + 1), -torch.inf)

    return masked


def _masked_stick(allowed: Callable[[int], Tensor]) -> Callable[[Tensor], Tensor]:
    """The stick broken for the allowed categories alone."""

    def score(y: Tensor) -> Tensor:
        mask = allowed(y.shape[-1] + 1)
        index = mask.nonzero().squeeze(-1)
        out = torch.full_like(_with_zero(y), -torch.inf)
        out[..., index] = stick(y[..., index[:-1]])
        return out

    return score


def _softmax_allowed(allowed: Callable[[int], Tensor]) -> Build:
    return lambda loc, scale, t: igr.SoftmaxIGR(loc, scale, t, allowed=allowed(loc.shape[-1] + 1))


def _sharp_allowed(allowed: Callable[[int], Tensor]) -> Build:
    return lambda loc, scale, t: igr.SharpStickBreakingIGR(
        loc, scale, t, allowed=allowed(loc.shape[-1] + 1)
    )


def _gumbel(allowed: Callable[[int], Tensor] | None = None) -> Build:
    def build(loc: Tensor, scale: Tensor, t: Temperature) -> igr.Relaxation:
        mask = None if allowed is None else allowed(loc.shape[-1] + 1)
        return igr.GumbelSoftmax(t, logits=_with_zero(loc * scale), allowed=mask)

    return build


FIRST_OUT, LAST_OUT = _all_but(0), _all_but(-1)

CASES = [
    Case("softmax", igr.SoftmaxIGR, _with_zero),
    Case("softmax_delta", lambda m, s, t: igr.SoftmaxIGR(m, s, t, delta=0.3), _with_zero),
    Case(
        "stick_breaking",
        igr.StickBreakingIGR,
        lambda y: _without_last(stick(y)),
        fills_simplex=False,
    ),
    Case("sharp", igr.SharpStickBreakingIGR, stick),
    Case("vertex", _vertex, _vertex_score, max_temperature=1.0, fills_simplex=False, smooth=False),
    Case(
        "planar",
        lambda m, s, t: igr.PlanarIGR(m, s, t, planar_flow(m.shape[-1], m.dtype)),
        lambda y: _with_zero(igr.Compose(planar_flow(y.shape[-1], y.dtype))(y)),
    ),
    Case(
        "shear",
        _softmax_after(lambda n, d: Shear()),
        lambda y: _with_zero(Shear()(y)),
        foreign=True,
    ),
    Case(
        "affine",
        _softmax_after(_affine),
        lambda y: _with_zero(_affine(y.shape[-1], y.dtype)(y)),
        foreign=True,
    ),
    Case("user_closing", _user_closing, log_space=False, foreign=True),
    Case(
        "laplace",
        lambda m, s, t: igr.IGR.from_base(Independent(Laplace(m, s), 1), igr.SoftmaxPlusPlus(t)),
        _with_zero,
        smooth=False,
        own_noise=False,
    ),
    Case(
        "student_t",
        lambda m, s, t: igr.IGR.from_base(
            Independent(StudentT(m.new_tensor(5.0), m, s), 1), igr.SoftmaxPlusPlus(t)
        ),
        _with_zero,
        own_noise=False,
    ),
    Case(
        "softmax_first_out",
        _softmax_allowed(FIRST_OUT),
        _masked_scores(_with_zero, FIRST_OUT),
        allowed=FIRST_OUT,
    ),
    Case(
        "softmax_last_out",
        _softmax_allowed(LAST_OUT),
        _masked_scores(_with_zero, LAST_OUT),
        allowed=LAST_OUT,
    ),
    Case("sharp_first_out", _sharp_allowed(FIRST_OUT), _masked_stick(FIRST_OUT), allowed=FIRST_OUT),
    Case("sharp_last_out", _sharp_allowed(LAST_OUT), _masked_stick(LAST_OUT), allowed=LAST_OUT),
    Case("gumbel", _gumbel()),
    Case("gumbel_first_out", _gumbel(FIRST_OUT), allowed=FIRST_OUT),
]

if find_spec("pyro"):
    CASES.append(
        Case(
            "pyro_spline",
            _softmax_after(_spline),
            lambda y: _with_zero(_spline(y.shape[-1], y.dtype)(y)),
            smooth=False,
            foreign=True,
        )
    )
if find_spec("zuko"):
    CASES.append(
        Case(
            "zuko",
            _softmax_after(_zuko),
            lambda y: _with_zero(_zuko(y.shape[-1], y.dtype)(y)),
            foreign=True,
        )
    )


def over(*conditions: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Parametrise a test's `case` over the cases that satisfy all conditions."""
    chosen = [c for c in CASES if all(condition(c) for condition in conditions)]
    return pytest.mark.parametrize("case", chosen, ids=str)
