"""What a user of torch.distributions would try at the edges: a value comes of it, or an error that says why."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Exponential,
    Independent,
    Laplace,
    LogisticNormal,
    MixtureSameFamily,
    OneHotCategorical,
    Poisson,
    RelaxedOneHotCategorical,
    TransformedDistribution,
    Uniform,
    kl_divergence,
)
from torch.distributions import transforms as T
from torch.nn import functional as F

import igr
import igr.nn
from cases import Case, over, parameters

D = torch.float64
Z, ONE = torch.zeros(2), torch.ones(2)
MASK = torch.tensor([True, False, True])
NOT_LAST = torch.tensor([True, True, False])
FIRST = torch.tensor([1.0, 0.0, 0.0])
THIRDS = torch.full((3,), 1 / 3)
POINT = igr.SoftmaxPlusPlus(0.5)(torch.tensor([-1.5, 2.0]))
Q = igr.SoftmaxIGR(Z, ONE, 0.5)
G = igr.GumbelSoftmax(0.5, logits=torch.zeros(3))
P = RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.tensor([0.1, 0.2, -0.3]))


def _over(flow: Any) -> igr.PlanarIGR:
    return igr.PlanarIGR(Z, ONE, 0.5, flow)


def _base(base: Any, transform: Any = None) -> igr.IGR:
    return igr.IGR.from_base(Independent(base, 1), transform or igr.SoftmaxPlusPlus(0.5))


def _save(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# What does not fit is refused, by name

NARROW = igr.Planar(torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor(0.1))
WIDE = igr.Planar(torch.ones(3), torch.ones(3), torch.tensor(0.0))
NONE = torch.zeros(3, dtype=torch.bool)

REFUSED: list[tuple[Callable[[], object], str]] = [
    # maps
    (lambda: _over(NARROW), r"u: expected shape \(\*batch, 2\), .* got \(1,\)"),
    (lambda: _over(WIDE), r"u: expected shape \(\*batch, 2\), .* got \(3,\)"),
    (lambda: _over(T.AffineTransform(torch.zeros(3), 1.0)), "transform: .*does not fit 2 coordinates"),
    (lambda: igr.IGR(Z[:1], ONE[:1], igr.Compose([T.AffineTransform(torch.zeros(3), 1.0), igr.SoftmaxPlusPlus(1.0)])),
     "transform: expected a map from 1 coordinates to 2 categories, got one to 4"),
    (lambda: igr.IGR(Z, ONE, T.SoftmaxTransform()), "transform: expected an invertible map"),
    (lambda: _over(T.AbsTransform()), "transform: expected an invertible map"),
    (lambda: _over(T.ExpTransform().inv), r"transform: expected a map of R\^\(K-1\)"),
    (lambda: _over([T.AffineTransform(0.0, 2.0), T.ExpTransform().inv]), "parts: .* takes points of .* alone"),
    (lambda: igr.SoftmaxPlusPlus(1.0, allowed=NONE), "allowed: expected at least one allowed category"),
    (lambda: igr.Sharpen(1.0, NONE), "allowed: expected at least one allowed category"),
    (lambda: igr.StickBreaking(NONE), "allowed: expected at least one allowed category"),
    (lambda: igr.StickBreaking(MASK.float()), "allowed: expected a boolean tensor, got torch.float32"),
    (lambda: igr.IGR(Z, ONE, igr.SoftmaxPlusPlus(1.0, allowed=MASK[:2])), r"allowed: expected shape \(\*batch, 3\)"),
    (lambda: igr.IGR(Z, ONE, igr.Compose([igr.StickBreaking(MASK[:2]), igr.Sharpen(1.0, MASK[:2])])),
     r"allowed: expected shape \(\*batch, 3\)"),
    # forms
    (lambda: igr.GumbelSoftmax(0.5, torch.zeros(3)), r"logits, probs: expected by name.*torch and Pyro.* as probs"),
    (lambda: igr.GumbelSoftmax(0.5, logits=NONE.float().log()), "logits: expected at least one possible category"),
    (lambda: igr.GumbelSoftmax(0.5, logits=torch.zeros(3), allowed=NONE), "allowed: expected at least one"),
    (lambda: igr.SoftmaxIGR(Z, ONE, 0.5, allowed=NONE), "allowed: expected at least one allowed category"),
    (lambda: igr.StickBreakingIGR(Z, ONE, 0.5, allowed=MASK), "allowed: .*igr.SoftmaxIGR, igr.SharpStickBreakingIGR"),
    (lambda: igr.PlanarIGR(Z, ONE, 0.5, [], allowed=MASK), "allowed: .*igr.SoftmaxIGR, igr.SharpStickBreakingIGR"),
    (lambda: _over(lambda y: y), "flow: expected a torch transform .* got function"),
    (lambda: _over([lambda y: y]), "flow: expected a torch transform .* got list"),
    (lambda: _over(torch.nn.Linear(2, 2)), "flow: expected a torch transform .* got Linear"),
    (lambda: _over(Z), "flow: expected a torch transform .* got Tensor"),
    (lambda: igr.SoftmaxIGR.from_base(Independent(Laplace(Z, ONE), 1), igr.SoftmaxPlusPlus(0.5)),
     "base: SoftmaxIGR has a Gaussian base"),
    (lambda: igr.SoftmaxIGR(Z, ONE, np.float32(-1.0)), "temperature: expected a positive .*, got -1.0"),
    (lambda: igr.SoftmaxIGR(Z, ONE, np.ones(2)), "temperature: expected a positive number or a tensor, got ndarray"),
    (lambda: igr.SoftmaxIGR(Z, ONE, 1j), "temperature: expected a positive number or a tensor, got complex"),
    (lambda: igr.IGR(Z, ONE, 0.5), "^transform: expected a torch transform, got float"),
    (lambda: igr.SoftmaxIGR.from_logits(THIRDS, 0.5, torch.ones(7)), r"loc \(2,\), scale \(7,\)"),
    # values
    (lambda: Q.log_prob([0.2, 0.3, 0.5]), "value: expected a tensor of real numbers, got list"),
    (lambda: Q.log_prob(np.ones(3) / 3), "value: expected a tensor of real numbers, got ndarray"),
    (lambda: Q.log_prob(THIRDS + 0j), "value: expected a tensor of real numbers, got torch.complex64"),
    (lambda: Q.log_prob(torch.tensor([1, 1, 0])), "value: expected points of the simplex"),
    (lambda: Q.log_prob(log_value=torch.zeros(4)), r"log_value: expected shape .*3\), got \(4,\)"),
    (lambda: Q.discrete().log_prob(THIRDS), "value"),
    (lambda: igr.CountableIGR((Z, ONE), 0.5, precision=0.3).log_prob(torch.tensor([0.6, 0.9])), "value"),
    # recovered distributions
    (lambda: igr.RecoveredCategorical(probs=torch.tensor([-1.0, 2.0]), validate_args=True), "probs: expected weights"),
    (lambda: igr.RecoveredCategorical(probs=Z), "probs: expected weights"),
    (lambda: igr.RecoveredCategorical(logits=Z - torch.inf), "logits: expected weights"),
    (lambda: igr.RecoveredCategorical(logits=Z * torch.nan), "logits: expected weights"),
    # conditional draws
    *[
        (lambda q=q, onehot=onehot: q.conditional_rsample(onehot), "onehot: expected")
        for q in (Q, G, igr.SoftmaxIGR(Z, ONE, 0.5, allowed=NOT_LAST))
        for onehot in (THIRDS, torch.zeros(3), torch.ones(3), 1 - FIRST, torch.ones(2), [1.0, 0.0, 0.0])
    ],
    (lambda: igr.SoftmaxIGR(Z, ONE, 0.5, allowed=MASK).conditional_rsample(torch.eye(3)[1]), "onehot: .* allowed"),
    (lambda: igr.GumbelSoftmax(0.5, probs=FIRST + THIRDS, allowed=MASK).conditional_rsample(torch.eye(3)[1]),
     "onehot: .* allowed"),
    (lambda: Q.expand((2,)).conditional_rsample(torch.eye(3)), r"onehot: .* batch fits \(2,\), got .*\(3,\)"),
    # divergences and objectives
    (lambda: igr.monte_carlo_kl(Q, Categorical(logits=torch.zeros(3))), r"p: .*igr.plug_in_kl\(q, p\)"),
    (lambda: igr.monte_carlo_kl(Q, Dirichlet(torch.ones(4))), r"q, p: .* \(3,\) and \(4,\)"),
    (lambda: igr.monte_carlo_kl(P, Q), "q: expected a relaxation, got RelaxedOneHotCategorical"),
    (lambda: igr.plug_in_kl(Q, Dirichlet(torch.ones(3))), "p0: expected a torch Categorical .*monte_carlo_kl"),
    (lambda: igr.plug_in_kl(Q, Categorical(logits=torch.zeros(4))), "p0: expected 3 categories, as q has, got 4"),
    *[
        (lambda q=q: igr.kl_divergence(q, Categorical(logits=torch.zeros(4))), "^p: expected 3 categories, .* got 4")
        for q in (Q, Q.discrete(), Categorical(logits=torch.zeros(3)))
    ],
    (lambda: igr.elbo(torch.zeros(20), torch.zeros(20, 20)), r"kl: .*\(20,\) ends with, got \(20, 20\); sum"),
    (lambda: igr.elbo(torch.zeros(20), torch.zeros(5)), r"kl: .*\(20,\) ends with, got \(5,\)"),
    (lambda: igr.importance_weighted_bound(torch.zeros(0, 5), torch.zeros(5), torch.zeros(5)), "expected samples"),
    (lambda: igr.importance_weighted_bound(torch.zeros(5), torch.zeros(5), torch.zeros(5), dim=1), "expected samples"),
    (lambda: igr.importance_weighted_bound(torch.zeros(5), torch.zeros(4), torch.zeros(5)), "log_prior"),
    # priors
    (lambda: igr.match(THIRDS, Q, 0.5), "family: expected a class"),
    (lambda: igr.nn.Prior(igr.SoftmaxIGR, Poisson(3.0), 0.5), "^num_categories: expected a number"),
    *[
        (lambda bad=bad: igr.nn.Prior(igr.SoftmaxIGR, 3, bad), "^temperature: expected")
        for bad in (0.0, "0.5", None, torch.zeros(3))
    ],
    (lambda: igr.nn.SoftmaxIGRHead(5, num_categories=3).prior(temperature=-1.0), "^temperature: expected"),
    (lambda: igr.match(Poisson(ONE), igr.SoftmaxIGR, 0.5, num_categories=5), "target: .*match each by itself"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", REFUSED, ids=range(len(REFUSED)))
def test_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


NOT_IMPLEMENTED: list[tuple[Callable[[], object], str]] = [
    *[
        (lambda q=q, what=what: getattr(q, what), rf"{what}.*discrete\(\)")
        for q in (Q, G)
        for what in ("mean", "variance")
    ],
    (lambda: Q.stddev, r"variance.*discrete\(\)"),
    (lambda: G.perplexity(), r"perplexity\(\).*discrete\(\)"),
    (lambda: G.enumerate_support(), r"enumerate_support\(\).*discrete\(\)"),
    (lambda: Q.cdf(FIRST), r"cdf\(\).*discrete\(\)"),
    (lambda: G.cdf(FIRST), r"cdf\(\).*discrete\(\)"),
    (lambda: Q.icdf(FIRST), r"icdf\(\).*discrete\(\)"),
    (lambda: kl_divergence(G, G), r"from GumbelSoftmax to GumbelSoftmax: .*use igr.monte_carlo_kl"),
    (lambda: kl_divergence(Q, Categorical(logits=Z.new_zeros(3))), r"igr.kl_divergence\(q, p\)"),
    (lambda: kl_divergence(G, OneHotCategorical(logits=torch.zeros(3))), r"igr.kl_divergence\(q, p\)"),
    (lambda: kl_divergence(Q, igr.SoftmaxIGR(torch.zeros(3), torch.ones(3), 0.5)), r"\(3,\) and \(4,\) differ"),
    (lambda: kl_divergence(Q, G), r"from SoftmaxIGR to GumbelSoftmax; use igr.monte_carlo_kl"),
    *[
        (lambda q=q, p=p: kl_divergence(q, p), "use igr.monte_carlo_kl")
        for q in (Q, G)
        for p in (P, Dirichlet(torch.ones(3)), LogisticNormal(Z, ONE))
    ],
    (lambda: kl_divergence(P, Q), "from RelaxedOneHotCategorical to SoftmaxIGR; average"),
    (lambda: kl_divergence(Dirichlet(torch.ones(3)), G), "from Dirichlet to GumbelSoftmax; average"),
    (lambda: kl_divergence(Categorical(logits=torch.zeros(3)), Q),
     r"from Categorical to SoftmaxIGR: .*igr.kl_divergence\(q, p\)"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", NOT_IMPLEMENTED, ids=range(len(NOT_IMPLEMENTED)))
def test_not_implemented_says_what_there_is(call: Callable[[], object], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        call()


# What fits gives the right value


def _fit(**numbers: Any) -> object:
    loc = torch.zeros(2, requires_grad=True)
    return igr.priors.fit(lambda: igr.SoftmaxIGR(loc, ONE, 0.5), [loc], THIRDS, **numbers)


def _first(b: Tensor) -> Tensor:
    return b[..., 0]


COUNTS: dict[str, tuple[int, Callable[[Any], object]]] = {
    "entropy": (1, lambda n: Q.entropy(n)),
    "monte_carlo_kl": (1, lambda n: igr.monte_carlo_kl(Q, G, n)),
    "kl_divergence": (1, lambda n: igr.kl_divergence(Q, G, n)),
    "discrete": (1, lambda n: Q.discrete(n)),
    "uniform": (2, lambda n: igr.SoftmaxIGR.uniform(n, 0.5)),
    "uniform, gumbel": (2, lambda n: igr.GumbelSoftmax.uniform(n, 0.5)),
    "uniform_loc": (2, igr.discrete.uniform_loc),
    "num_nodes": (16, lambda n: igr.discrete.argmax_log_probs(Z, ONE, num_nodes=n)),
    "max_elements": (1, lambda n: igr.discrete.argmax_log_probs(Z, ONE, max_elements=n)),
    "match": (1, lambda n: igr.match(THIRDS, igr.SoftmaxIGR, 0.5, "mean", num_samples=n)),
    "match, categories": (
        2,
        lambda n: igr.match(Poisson(1.0), igr.SoftmaxIGR, 0.5, num_categories=n),
    ),
    "distance": (1, lambda n: igr.priors.distance(Q, THIRDS, "mean", num_samples=n)),
    "fit, steps": (1, lambda n: _fit(num_steps=n)),
    "fit, every": (1, lambda n: _fit(num_steps=2, every=n)),
    "fit, samples": (1, lambda n: _fit(num_steps=2, num_samples=n)),
    "countable": (1, lambda n: igr.nn.CountableParameters(n)),
    "countable, maximum": (1, lambda n: igr.nn.CountableParameters(1, maximum=n)),
    "head": (2, lambda n: igr.nn.SoftmaxIGRHead(4, num_categories=n)),
    "codebook": (1, lambda n: igr.nn.Codebook(n, 3, 4)),
    "flow": (1, lambda n: igr.nn.PlanarFlow(n)),
    "schedule": (1, lambda n: igr.nn.LinearTemperature(1.0, 0.5, n)),
    "prior": (2, lambda n: igr.nn.Prior(igr.SoftmaxIGR, n, 0.5)),
    "estimator": (1, lambda n: igr.estimators.Pathwise(n)(Q, _first)),
    "conditional draws": (1, lambda n: igr.estimators.ReinMaxRao(num_conditional=n)(Q, _first)),
    "states": (3, lambda n: igr.estimators.Enumerate(max_states=n)(Q, _first)),
}
MAY_BE_NONE = ("discrete", "num_nodes", "match, categories", "countable, maximum", "codebook")


@pytest.mark.filterwarnings("ignore::igr.priors.OutOfReachWarning")
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers_of_any_kind(name: str) -> None:
    least, call = COUNTS[name]
    call(least)
    call(np.int64(least))
    for wrong in (0, -1, 2.5, np.float64(least), "2", None, torch.tensor([1, 2])):
        if (wrong is None and name in MAY_BE_NONE) or (
            name == "prior" and isinstance(wrong, Tensor)
        ):
            continue
        with pytest.raises(
            ValueError, match=r"^\w+: expected a whole number of at least \d+, got "
        ):
            call(wrong)


@over()
def test_hard_of_another_number_of_categories(case: Case) -> None:
    q = case.some()
    z = q.sample((2,))
    assert q.hard(z).shape == z.shape
    for wrong in (z[..., :-1], torch.cat([z, z], -1), z[0, 0]):
        for name in ("value", "log_value"):
            with pytest.raises(
                ValueError, match=rf"^{name}: expected shape \(\*sample, \*batch, 5\), got"
            ):
                q.hard(**{name: wrong})
            with pytest.raises(ValueError, match=rf"^{name}: expected shape"):
                q.log_prob(**{name: wrong})


MASKED_PLACES = [
    lambda m: igr.SoftmaxIGR(Z, ONE, 0.5, m),
    lambda m: igr.SoftmaxIGR(Z, ONE, m),
    lambda m: igr.StickBreakingIGR(Z, ONE, 0.5, m),
    lambda m: igr.SharpStickBreakingIGR(Z, ONE, m),
    lambda m: igr.PlanarIGR(Z, ONE, 0.5, [], m),
    lambda m: igr.GumbelSoftmax(m, logits=torch.zeros(3)),
    lambda m: igr.SoftmaxPlusPlus(0.5, m),
    lambda m: igr.CountableIGR((Z, ONE), m),
    lambda m: igr.SoftmaxIGR.from_probs(THIRDS, 0.5, m),
]


@pytest.mark.parametrize("make", MASKED_PLACES, ids=range(len(MASKED_PLACES)))
@pytest.mark.parametrize("validate", [True, False])
def test_a_mask_is_no_number(make: Callable[[Tensor], object], validate: bool) -> None:
    torch.distributions.Distribution.set_default_validate_args(validate)
    try:
        for mask in (torch.ones(3) > 0, torch.tensor(True)):
            with pytest.raises(
                ValueError, match=r"^\w+: expected positive numbers, got a boolean tensor"
            ):
                make(mask)
    finally:
        torch.distributions.Distribution.set_default_validate_args(__debug__)


def _same(a: Any, b: Any) -> bool:
    torch.testing.assert_close(a, b, equal_nan=True)
    return True


def _density(flow: T.Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density by `igr.PlanarIGR` of what y leads to, and by torch's change of variables."""
    z = igr.SoftmaxPlusPlus(0.5)(flow(y))
    base = Independent(torch.distributions.Normal(Z.to(y), ONE.to(y)), 1)
    rival = TransformedDistribution(base, [flow, igr.SoftmaxPlusPlus(0.5)])
    return igr.PlanarIGR(Z.to(y), ONE.to(y), 0.5, flow).log_prob(z), rival.log_prob(z)


Y = torch.tensor([0.3, -0.7], dtype=D)
CAT = T.CatTransform([T.ExpTransform(), T.identity_transform], dim=-1, lengths=[1, 1])
BOUNDED = [T.ExpTransform(), T.TanhTransform(), T.SoftplusTransform(), T.SigmoidTransform(), CAT]
INF = torch.tensor(-torch.inf)
NAN = torch.full((3,), torch.nan)

GIVES: list[Callable[[], bool]] = [
    # points outside the image of a map, or the support of a base, have no density
    *[lambda f=f: _same(_over(f).log_prob(POINT), INF) for f in BOUNDED],
    *[lambda f=f: _same(*_density(f, Y)) for f in BOUNDED],
    lambda: _same(_over(T.SigmoidTransform()).log_prob(torch.tensor([0.01, 0.9, 0.09], dtype=D)).float(), INF),
    lambda: _same(_base(Uniform(-ONE, ONE)).log_prob(POINT), INF),
    lambda: _same(_base(Uniform(-ONE, ONE, validate_args=False)).log_prob(POINT), INF),
    lambda: _same(igr.monte_carlo_kl(Q, _base(Uniform(-ONE, ONE)), 20), -INF),
    lambda: bool(_base(Uniform(-ONE, ONE)).rsample_and_log_prob((50,))[1].isfinite().all()),
    lambda: bool(_base(Exponential(ONE), igr.Compose([T.ExpTransform().inv, igr.SoftmaxPlusPlus(1.0)])).log_prob(
        THIRDS).isfinite()),
    # maps that fit, though they need the number of coordinates
    lambda: igr.PlanarIGR(torch.zeros(4), torch.ones(4), 0.5, T.ReshapeTransform((4,), (4,))).rsample().shape == (5,),
    lambda: igr.PlanarIGR(torch.zeros(4), torch.ones(4), 0.5, igr.nn.PlanarFlow(4)).rsample().shape == (5,),
    # values
    lambda: _same(Q.log_prob(torch.tensor([1, 0, 0])), INF),
    lambda: bool(igr.constraints.simplex.check(torch.tensor([0, 1]))),
    lambda: not bool(igr.constraints.simplex.check(torch.tensor([1, 1]))),
    lambda: Q.hard(torch.tensor([0, 1, 0])).tolist() == [0, 1, 0],
    lambda: _same(Q.log_prob(log_value=THIRDS.log()), Q.log_prob(THIRDS)),
    lambda: bool(igr.SoftmaxIGR(Z, ONE, 0.5, validate_args=False).log_prob(log_value=torch.zeros(3)).isfinite()),
    # parameters
    *[lambda t=t: _same(igr.SoftmaxIGR(Z, ONE, t).log_prob(POINT), Q.log_prob(POINT))
      for t in (np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor([0.5]), torch.tensor([[0.5]]))],
    lambda: _same(igr.SoftmaxIGR(Z, ONE, np.int64(1)).log_prob(POINT), igr.SoftmaxIGR(Z, ONE, 1).log_prob(POINT)),
    lambda: igr.SoftmaxIGR(Z, ONE.double(), 0.5).rsample().dtype == D,
    lambda: igr.SoftmaxIGR(Z.half(), ONE.bfloat16(), 0.5).rsample().dtype == torch.float32,
    lambda: igr.SoftmaxIGR(Z, ONE, torch.tensor(0.5, dtype=D)).rsample().dtype == torch.float32,
    lambda: igr.SoftmaxIGR(Z, ONE, torch.tensor([0.5, 1.0], dtype=D)).rsample().dtype == D,
    lambda: igr.GumbelSoftmax(torch.tensor([0.5, 1.0], dtype=D), logits=torch.zeros(3)).rsample().dtype == D,
    lambda: _base(Laplace(Z, ONE)).arg_constraints == {},
    lambda: type(_base(Laplace(Z, ONE)).expand((2,))).arg_constraints != {} and
            _base(Laplace(Z, ONE)).expand((2,)).arg_constraints == {},
    # what is recovered
    lambda: bool(igr.SoftmaxIGR(NAN, torch.ones(3), 0.5, validate_args=False).discrete().probs.isnan().all()),
    lambda: bool(igr.SoftmaxIGR(NAN, torch.ones(3), 0.5, validate_args=False).discrete(
        tolerance=1e-4).probs.isnan().all()),
    lambda: bool(igr.GumbelSoftmax(0.5, logits=NAN, validate_args=False).discrete().probs.isnan().all()),
    lambda: "estimated" in repr(_base(Laplace(Z, ONE)).discrete(10)),
    lambda: repr(Q.discrete()) == "RecoveredCategorical(probs: (3,))",
    lambda: _same(igr.RecoveredCategorical(probs=FIRST, validate_args=True).log_prob(FIRST), torch.tensor(0.0)),
    lambda: _same(igr.SoftmaxIGR(Z, ONE, 0.5, validate_args=False).discrete().log_prob(THIRDS),
                  Q.discrete().log_prob(FIRST)),
    # match
    lambda: _same(igr.match(Bernoulli(0.3), igr.SoftmaxIGR, 0.5).discrete().probs, torch.tensor([0.7, 0.3])),
    lambda: igr.match(Bernoulli(torch.tensor([0.3, 0.6])), igr.GumbelSoftmax, 0.5).batch_shape == (2,),
    lambda: igr.match(torch.zeros(0, 3), igr.SoftmaxIGR, 0.5).batch_shape == (0,),
    lambda: igr.match(torch.zeros(0, 3), igr.SharpStickBreakingIGR, 0.5, "mean").batch_shape == (0,),
    # objectives
    lambda: _same(igr.elbo(torch.ones(5, 20), torch.ones(20)), torch.zeros(5, 20)),
    lambda: _same(igr.released_estimate(torch.ones(5, 20), torch.ones(20)), torch.zeros(20)),
]  # fmt: skip


@pytest.mark.parametrize("call", GIVES, ids=range(len(GIVES)))
def test_gives(call: Callable[[], bool]) -> None:
    assert call()


# Every family


@over(lambda c: c.name != "zuko")  # importing it turns validation off
def test_logarithms_that_are_no_point_are_refused(case: Case) -> None:
    q = case.some(4)
    for log_value in (torch.zeros(4), torch.full((4,), torch.nan), torch.tensor([1.0, 1, 1, 1])):
        with pytest.raises(ValueError, match="log_value: expected points of the simplex, as log"):
            q.log_prob(log_value=log_value.double())
    for dtype in () if case.foreign else (torch.float16, torch.bfloat16):
        log_z = q.rsample_log((50,)).to(dtype)
        assert q.log_prob(log_value=log_z).shape == (50,)


@over()
def test_subclass_with_more_to_set_up_does_not_expand(case: Case) -> None:
    q = case.some(3)
    family = type(q)
    plain = type("Plain", (family,), {})
    more = type("More", (family,), {"__init__": lambda self: None})
    for child in (plain, more):
        copy = object.__new__(child)
        copy.__dict__.update(q.__dict__)
        if child is plain:
            assert type(copy.expand((2,))) is plain
        else:
            with pytest.raises(NotImplementedError, match="expand"):
                copy.expand((2,))


@over(lambda c: c.own_noise and c.name != "zuko")  # torch's Independent and zuko cannot
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_empty_batches(case: Case, batch: tuple[int, ...]) -> None:
    q = case.some(4, batch)
    log_z, log_prob = q.rsample_log_and_log_prob((3,))
    assert log_z.shape == (3, *batch, 4)
    assert log_prob.shape == q.log_prob(log_value=log_z).shape == (3, *batch)
    assert q.straight_through().shape == q.hard(log_value=log_z[0]).shape == (*batch, 4)
    if not isinstance(q, igr.StickBreakingIGR | igr.SharpStickBreakingIGR):
        found = q.discrete()
        assert found.probs.shape == found.sample().shape == (*batch, 4)
        assert found.log_prob(found.sample((2,))).shape == (2, *batch)
        assert igr.plug_in_kl(q, Categorical(logits=torch.zeros(4))).shape == batch
    if hasattr(q, "conditional_rsample"):
        assert q.conditional_rsample(torch.zeros(*batch, 4)).shape == (*batch, 4)


@over(lambda c: c.own_noise and c.name != "zuko")
def test_empty_draws(case: Case) -> None:
    q = case.some(4)
    assert q.rsample((0,)).shape == (0, 4)
    assert q.rsample_and_log_prob((2, 0))[1].shape == (2, 0)
    if not isinstance(q, igr.StickBreakingIGR | igr.SharpStickBreakingIGR):
        assert q.discrete().sample((0,)).shape == (0, 4)


@over(lambda c: c.own_noise and c.name != "user_closing")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_temperature_of_one_element_adds_no_dimension(
    case: Case, learned: bool, shape: tuple[int, ...]
) -> None:
    """As in torch, whose documented example has ``torch.tensor([0.5])``."""
    loc, scale = parameters(4)
    t = torch.full(shape, 0.5, dtype=D, requires_grad=learned)
    q = case.build(loc, scale, t)
    assert (q.batch_shape, q.event_shape) == ((), (4,))
    torch.manual_seed(3)
    z = q.rsample()
    torch.manual_seed(3)
    torch.testing.assert_close(z, case.build(loc, scale, 0.5).rsample())
    if learned:
        (gradient,) = torch.autograd.grad(z[0], t)
        assert gradient.shape == shape


@over()
def test_values_of_integers(case: Case) -> None:
    q = case.some(4)
    onehot = F.one_hot(torch.arange(4), 4)
    torch.testing.assert_close(q.log_prob(onehot), q.log_prob(onehot.double()))


@over(lambda c: c.name in ("softmax", "sharp", "planar", "gumbel", "laplace", "softmax_last_out"))
def test_recovered_distribution_checks_what_it_scores(case: Case) -> None:
    with pytest.raises(ValueError, match="value"):
        case.some(3).discrete().log_prob(2 * torch.ones(3, dtype=D))


@pytest.mark.parametrize("family", [igr.SoftmaxIGR, igr.GumbelSoftmax])
@pytest.mark.parametrize("allowed", [MASK, NOT_LAST, None])
@pytest.mark.parametrize("per_element", [False, True])
def test_conditional_draw_has_a_finite_gradient_in_the_temperature(
    family: Any, allowed: Tensor | None, per_element: bool
) -> None:
    """That of finite differences, the noise being the same."""

    def draw(t: Tensor) -> Tensor:
        torch.manual_seed(5)
        if family is igr.SoftmaxIGR:
            q = family(Z.double(), ONE.double(), t, allowed=allowed)
        else:
            q = family(t, logits=torch.zeros(3, dtype=D), allowed=allowed)
        return q.conditional_rsample(FIRST.double().expand(*q.batch_shape, 3))

    t = torch.tensor([0.5, 0.9] if per_element else 0.5, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(draw, t)


@pytest.mark.parametrize("p", [
    P,
    Dirichlet(torch.tensor([1.5, 2.0, 0.7])),
    LogisticNormal(Z, ONE),
    TransformedDistribution(Independent(torch.distributions.Normal(Z, ONE), 1), T.StickBreakingTransform()),
], ids=lambda p: type(p).__name__)  # fmt: skip
@pytest.mark.parametrize("q", [Q, G, igr.SharpStickBreakingIGR(Z, ONE, 0.7)], ids=["q", "g", "s"])
def test_monte_carlo_kl_to_any_density_on_the_simplex(q: igr.Relaxation, p: Any) -> None:
    torch.manual_seed(0)
    found = igr.monte_carlo_kl(q, p, 100)
    torch.manual_seed(0)
    z, log_q = q.rsample_and_log_prob((100,))
    expected = (log_q - p.log_prob(z.clamp_min(1e-30))).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    both = igr.monte_carlo_kl(Independent(q.expand((4,)), 1), Independent(p.expand((4,)), 1), 50)
    assert both.shape == ()


def test_monte_carlo_kl_of_a_face_to_a_mixture() -> None:
    """A category that is ruled out is no small weight. Fails once in 30,000 (4 standard errors of 2,000 draws)."""
    loc, scale = torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, 0.0]]), torch.ones(2, 3)
    kept = torch.tensor([True, False, True, True])
    even = Categorical(torch.ones(2))
    torch.manual_seed(0)
    found = []
    for q in (
        igr.SoftmaxIGR(loc, scale, 0.5, allowed=kept),
        igr.SoftmaxIGR(loc[:, [0, 2]], scale[:, :2], 0.5),
    ):
        p = MixtureSameFamily(even, q)
        each = igr.monte_carlo_kl(q.expand((2000, 2)), p)
        found.append((each.mean(0), each.var(0) / len(each)))
    (a, va), (b, vb) = found
    assert ((a - b).abs() < 4 * (va + vb).sqrt()).all()
    masked = igr.SoftmaxIGR(loc, scale, 0.5, allowed=kept)
    for p in (
        LogisticNormal(torch.zeros(3), torch.ones(3)),
        Dirichlet(torch.ones(4)),
        Dirichlet(torch.full((4,), 0.5)),
        igr.SoftmaxIGR(loc, scale, 0.5),
    ):
        assert (igr.monte_carlo_kl(masked, p) == torch.inf).all()


def test_monte_carlo_kl_to_torchs_densities_stays_in_log_space() -> None:
    """Where most weights underflow, and torch's own densities are infinite."""
    cold = igr.SoftmaxIGR(torch.zeros(9), torch.ones(9), 0.005)
    concentration = torch.full((10,), 2.0)
    assert igr.monte_carlo_kl(cold, Dirichlet(concentration), 50).isfinite()
    assert igr.monte_carlo_kl(
        cold, RelaxedOneHotCategorical(torch.tensor(0.1), logits=torch.zeros(10)), 50
    ).isfinite()
    z = cold.sample((50,))
    assert not Dirichlet(concentration).log_prob(z).isfinite().all()


# Maps by themselves, in torch's own interface


COLD = [
    igr.SoftmaxPlusPlus(0.01),
    igr.Compose([igr.SoftmaxPlusPlus(0.01)]),
    igr.Compose([igr.StickBreaking(), igr.Sharpen(0.005)]),
    igr.Compose([igr.StickBreaking(), igr.SoftmaxPlusPlus(0.002)]),
    igr.StickBreaking(),
]


@pytest.mark.parametrize("transform", COLD, ids=range(len(COLD)))
def test_log_determinants_stay_in_log_space(transform: T.Transform) -> None:
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    if isinstance(transform, igr.StickBreaking):
        x = 40 * x
    exact = transform.log_abs_det_jacobian(x.double(), transform(x.double()))
    found = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(transform(x), x), -found)


def test_composition_caches_both_ways() -> None:
    t = igr.Compose([igr.StickBreaking(), igr.Sharpen(0.1)]).with_cache(1)
    x = torch.randn(4)
    y = t(x)
    assert t(x) is y
    assert t.inv(y) is x
    assert t.inv(t(x.clone())) is not x
    assert t.inv.inv is t
    assert t.with_cache(1) is t
    assert t.with_cache(0)(x) is not y


def test_inverse_of_a_composition_stays_in_log_space() -> None:
    t = igr.Compose([igr.StickBreaking(), igr.Sharpen(0.2)])
    x = torch.tensor([-3.0, 2.0, 14.0])
    torch.testing.assert_close(t.inv(t(x.double())), x.double(), rtol=1e-6, atol=1e-6)
    z = t(x)
    assert bool((z > 0).all())
    torch.testing.assert_close(t.inv(z), x, rtol=1e-3, atol=1e-3)
    outside = igr.Compose([igr.StickBreaking(), igr.SoftmaxPlusPlus(0.5)])
    assert bool(outside.inv(torch.tensor([0.1, 0.1, 0.8])).isnan().all())


@pytest.mark.parametrize("number", range(5))
def test_gradient_at_points_outside_is_zero(number: int) -> None:
    loc = torch.zeros(2, requires_grad=True)
    z = POINT.clone().requires_grad_()
    igr.PlanarIGR(loc, ONE, 0.5, BOUNDED[number]).log_prob(z).backward()
    for gradient in (loc.grad, z.grad):
        assert gradient is not None
        assert bool((gradient == 0).all())


@pytest.mark.skipif(not find_spec("pyro"), reason="Pyro is not installed")
@pytest.mark.parametrize(
    "name", ["planar", "radial", "sylvester", "polynomial", "block_autoregressive"]
)
def test_pyros_flows_without_an_inverse_say_so(name: str) -> None:
    """Loaded or not: they score their own samples, and say of other points that they cannot."""
    import pyro.distributions.transforms

    q = _over(getattr(pyro.distributions.transforms, name)(2))
    for form in (q, _save(q)):
        z, log_prob = form.rsample_and_log_prob((3,))
        assert log_prob.isfinite().all()
        assert igr.monte_carlo_kl(form, Q, 5).isfinite()
        for score in (lambda f=form, z=z: f.log_prob(z), lambda f=form: igr.monte_carlo_kl(Q, f)):
            with pytest.raises(NotImplementedError, match=r"has no inverse.*rsample_and_log_prob"):
                score()


# Compilers, exporters and tracers


def _form(name: str, x: Tensor, temperature: Any) -> igr.Relaxation:
    if name == "gumbel":
        return igr.GumbelSoftmax(temperature, logits=x)
    n = x.shape[-1] // 2
    allowed = torch.ones(n + 1, dtype=torch.bool)
    allowed[1] = False
    return igr.SoftmaxIGR(x[..., :n], x[..., n:].exp(), temperature, allowed=allowed)


def _everything(name: str, x: Tensor, temperature: Any) -> Tensor:
    """Samples, and in each a number that all of a distribution's methods have a part in, but for conditional draws."""
    q = _form(name, x, temperature)
    z, log_prob = q.rsample_and_log_prob()
    found = q.discrete()
    total = q.rsample().sum() + q.sample((2,)).sum() + z.sum() + log_prob.sum()
    total = total + q.log_prob(log_value=q.rsample_log()).sum() + found.probs.square().sum()
    total = total + found.log_prob(found.sample()).sum() + igr.monte_carlo_kl(q, q).sum()
    if name != "gumbel":
        total = total + kl_divergence(q, q.expand(q.batch_shape)).sum()
    return z + total


@pytest.mark.parametrize(
    "name, tensor", [pytest.param("softmax", True, marks=pytest.mark.slow), ("gumbel", False)]
)
def test_compiles_at_several_sizes(name: str, tensor: bool) -> None:
    """In one graph, with validation on, at two sizes of the batch and two numbers of categories."""
    t = torch.tensor(0.5, requires_grad=True) if tensor else 0.5
    kl_divergence(Q, Q)  # torch looks its rule up at the first call, which compilers cannot trace
    torch.compiler.reset()
    # What a back end makes of the graph is tested elsewhere; sizes are up to the tracing.
    f = torch.compile(lambda x, t: _everything(name, x, t), fullgraph=True, backend="eager")
    for shape in ((7, 4), (9, 4), (7, 6)):
        x = torch.zeros(shape, requires_grad=True)
        f(x, t).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "gumbel"])
def test_conditional_draws_compile_at_several_sizes(name: str) -> None:
    def f(x: Tensor, t: Tensor) -> Tensor:
        q = _form(name, x, t)
        onehot = F.pad(torch.ones_like(x[..., :1]), (0, q.num_categories - 1))
        return q.conditional_rsample(onehot)

    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for shape in ((7, 4), (9, 4), (7, 6)):
        x, t = torch.zeros(shape, requires_grad=True), torch.tensor(0.5, requires_grad=True)
        z = compiled(x, t)
        assert bool((z.argmax(-1) == 0).all())
        for gradient in torch.autograd.grad(z.square().sum(), (x, t)):
            assert gradient.isfinite().all()
    torch.compiler.reset()


class _Module(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.temperature = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return _everything(self.name, x, self.temperature)


@pytest.mark.parametrize("name, strict", [("softmax", False), ("gumbel", True)])
def test_exports_with_any_batch(name: str, strict: bool) -> None:
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(
        _Module(name), (torch.zeros(7, 4),), dynamic_shapes={"x": batch}, strict=strict
    )
    for size in (2, 20):
        assert exported.module()(torch.zeros(size, 4)).shape[0] == size


@over(lambda c: c.own_noise and not c.foreign)
def test_fake_tensors(case: Case) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for t in (0.5, torch.ones((), dtype=D)):
            q = case.build(torch.zeros(5, 3, dtype=D), torch.ones(5, 3, dtype=D), t)
            z, log_prob = q.rsample_and_log_prob((2,))
            assert q.log_prob(z).shape == log_prob.shape == (2, 5)
            assert q.straight_through().shape == (5, 4)
            if isinstance(q, igr.SoftmaxIGR | igr.GumbelSoftmax):
                found = q.discrete()
                assert found.log_prob(found.sample()).shape == (5,)
                assert q.conditional_rsample(found.sample()).shape == (5, 4)  # type: ignore[attr-defined]


@over(lambda c: not c.foreign)
@pytest.mark.parametrize("batch", [(3,), (3, 3), (1, 3)])
def test_a_temperature_in_torchs_shape_makes_no_square_of_the_batch(
    case: Case, batch: tuple[int, ...]
) -> None:
    """RelaxedOneHotCategorical takes (*batch, 1): of 3 elements that would come 3 times 3, without a word."""
    each = torch.full((*batch, 1), 0.5, dtype=D)
    with pytest.raises(ValueError, match=r"temperature: .*write temperature\.squeeze\(-1\)"):
        case.some(4, batch, each)
    assert case.some(4, batch, each.squeeze(-1)).batch_shape == batch
    one = torch.full((1,) * (len(batch) + 1), 0.5, dtype=D)
    assert case.some(4, batch, one).batch_shape == batch
    # Every element at every temperature of a list that is no longer or shorter than the batch, on purpose.
    assert case.some(4, (3,), torch.full((2, 1), 0.5, dtype=D)).batch_shape == (2, 3)
    assert case.some(4, (1, 3), torch.full((3, 1), 0.5, dtype=D)).batch_shape == (3, 3)


def test_other_parameters_in_torchs_shape() -> None:
    each, z = torch.full((3, 1), 0.5), torch.zeros(3, 4)
    for make in (
        lambda: igr.SoftmaxIGR(z, z + 1, 0.5, delta=each),
        lambda: igr.CountableIGR((z + 9, z + 1), each),
        lambda: igr.SoftmaxIGR.from_logits(z, each),
        lambda: igr.IGR.from_base(Independent(Laplace(z, z + 1), 1), igr.SoftmaxPlusPlus(each)),
    ):
        with pytest.raises(ValueError, match=r"squeeze\(-1\)"):
            make()
