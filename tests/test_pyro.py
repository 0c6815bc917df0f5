"""Inside Pyro: every form is a site as Pyro's own distributions are, which are tried beside it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, kl_divergence, transform_to
from torch.distributions.transforms import SigmoidTransform

import igr
from cases import CASES, over, parameters
from igr.constraints import countable, face, image, simplex

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import (  # noqa: E402
    HMC,
    MCMC,
    NUTS,
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceTailAdaptive_ELBO,
    autoguide,
    config_enumerate,
)
from pyro.infer.reparam import AutoReparam, LocScaleReparam, TransformReparam  # noqa: E402

D = torch.float64
K = 4


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Starts with no parameters of other tests, and with Pyro's checks on."""
    pyro.clear_param_store()
    with pyro.validation_enabled():
        yield


def _control(seed: int = 0) -> Any:
    logits = torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=D)
    return dist.RelaxedOneHotCategorical(torch.tensor(0.7, dtype=D), logits=logits)


def _countable(seed: int = 0) -> igr.CountableIGR:
    return igr.CountableIGR(parameters(12, seed=seed), 0.7, precision=0.5)


def _into_a_cube(seed: int = 0, num_categories: int = K) -> igr.PlanarIGR:
    """A flow that fills a part of R^(K-1)."""
    return igr.PlanarIGR(*parameters(num_categories, seed=seed), 0.7, SigmoidTransform())


def _from_a_cube(seed: int = 0, num_categories: int = K) -> igr.IGR:
    """A base that fills a part of R^(K-1)."""
    loc, scale = parameters(num_categories, seed=seed)
    base = dist.Beta(1 + scale, 1 + loc.abs()).to_event(1)
    return igr.IGR.from_base(base, igr.SoftmaxPlusPlus(0.7))


def _ragged(seed: int = 0) -> igr.SoftmaxIGR:
    """Categories ruled out differently in each element of the batch."""
    loc, scale = parameters(K, (3,), seed=seed)
    allowed = torch.tensor([[True, False, True, True], [True, True, False, False], [True] * 4])
    return igr.SoftmaxIGR(loc, scale, 0.7, allowed=allowed)


def _of(case: Any) -> Callable[..., Any]:
    return lambda seed=0: case.some(K, seed=seed)


SITES: dict[str, Callable[..., Any]] = {case.name: _of(case) for case in CASES}
SITES |= {"into_a_cube": _into_a_cube, "from_a_cube": _from_a_cube, "control": _control}

every_site = pytest.mark.parametrize("make", SITES.values(), ids=SITES)
with_countable = pytest.mark.parametrize(
    "make", [*SITES.values(), _countable], ids=[*SITES, "countable"]
)
# Those whose samples fill a part of the simplex, each kind of it.
PARTS = [
    "stick_breaking",
    "vertex",
    "softmax_first_out",
    "softmax_last_out",
    "sharp_last_out",
    "gumbel_first_out",
    "into_a_cube",
    "from_a_cube",
]
parts = pytest.mark.parametrize("name", [*PARTS, "softmax", "control"])


def model_of(q: Any) -> Callable[[], None]:
    """A relaxed category that a few data points tell about."""

    def model() -> None:
        z = pyro.sample("z", q)
        value = torch.arange(z.shape[-1], dtype=z.dtype)
        with pyro.plate("data", 6):
            x = torch.full((6,), 1.5, dtype=z.dtype)
            pyro.sample("x", dist.Normal((z @ value).unsqueeze(-1), 0.5).to_event(0), obs=x)

    return model


# Plates, parallel prediction, vectorized particles


@with_countable
def test_plates_draw_for_each_of_their_elements(make: Callable[..., Any]) -> None:
    q = make()
    with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 5, dim=-1):
        z = pyro.sample("z", q)
    assert z.shape[:-1] == (3, 5)
    assert z.flatten(0, 1).unique(dim=0).shape[0] == 15
    trace = poutine.trace(lambda: [pyro.sample(f"z{i}", q) for i in pyro.plate("p", 2)]).get_trace()
    assert trace.nodes["z0"]["value"].dim() == 1


@with_countable
def test_subsampled_plates_scale(make: Callable[..., Any]) -> None:
    q = make()

    def model() -> None:
        with pyro.plate("data", 20, subsample_size=5):
            pyro.sample("z", q)

    trace = poutine.trace(model).get_trace()
    z = trace.nodes["z"]["value"]
    assert z.shape[0] == 5
    torch.testing.assert_close(trace.log_prob_sum(), 4 * q.log_prob(z).sum())


@every_site
@pytest.mark.parametrize("in_plate", [False, True])
def test_parallel_prediction(make: Callable[..., Any], in_plate: bool) -> None:
    """Each of the samples is another draw."""
    q = make()

    def model() -> None:
        if in_plate:
            with pyro.plate("data", 3):
                pyro.sample("z", q)
        else:
            pyro.sample("z", q)

    z = Predictive(model, num_samples=7, parallel=True)()["z"]
    assert z.shape[:-1] == ((7, 3) if in_plate else (7,))
    assert z.reshape(-1, z.shape[-1]).unique(dim=0).shape[0] == (21 if in_plate else 7)


@with_countable
@pytest.mark.parametrize("validation", [True, False])
def test_vectorized_particles(make: Callable[..., Any], validation: bool) -> None:
    """The loss with no data is the KL divergence: within five standard errors, one in a million by chance."""
    q, p, n = make(0), make(1), 4000
    with pyro.validation_enabled(validation):
        elbo = Trace_ELBO(num_particles=n, vectorize_particles=True, max_plate_nesting=0)
        loss = elbo.loss(lambda: pyro.sample("z", p), lambda: pyro.sample("z", q))
    z = q.sample((n,))
    terms = q.log_prob(z) - p.log_prob(z)
    error = terms.std() * math.sqrt(2 / n)
    assert abs(loss - terms.mean()) < 5 * error


@every_site
def test_lifted_parameters(make: Callable[..., Any]) -> None:
    q = make()

    def model() -> Tensor:
        return pyro.param("p", torch.full((K,), 1 / K, dtype=D), constraint=constraints.simplex)

    trace = poutine.trace(poutine.lift(model, prior={"p": q})).get_trace()
    site = trace.nodes["p"]
    assert (site["type"], site["fn"]) == ("sample", q)
    torch.testing.assert_close(trace.log_prob_sum(), q.log_prob(site["value"]))


@every_site
def test_tail_adaptive_bound(make: Callable[..., Any]) -> None:
    loc = torch.zeros(K, dtype=D, requires_grad=True)

    def guide() -> None:
        pyro.sample("z", make())
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1))

    def model() -> None:
        z = pyro.sample("z", make(1))
        pyro.sample("y", dist.Normal(3 * z, 1.0).to_event(1))

    elbo = TraceTailAdaptive_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=0)
    loss = elbo.differentiable_loss(model, guide)
    (gradient,) = torch.autograd.grad(loss, loc)
    assert bool(gradient.isfinite().all())


# What else Pyro's distributions have


@with_countable
def test_has_what_pyros_distributions_have(make: Callable[..., Any]) -> None:
    q = make()
    assert isinstance(q, pyro.distributions.torch_distribution.TorchDistributionMixin)
    assert (q.event_dim, q.to_event(0).event_dim) == (1, 1)
    assert q.expand_by((2, 3)).batch_shape == (2, 3)
    assert q.expand_by((2,)).to_event(1).event_dim == 2
    assert q.shape((5,)) == (5, *q.event_shape)
    assert q.rv.dist is q
    z = q.sample()
    with pytest.warns(DeprecationWarning, match="to_event"):
        torch.testing.assert_close(
            q.expand_by((1,)).independent(1).log_prob(z.unsqueeze(0)), q.log_prob(z)
        )
    assert q.mask(False).log_prob(z) == 0
    with pytest.raises(NotImplementedError):
        q.conjugate_update(q)
    with pytest.raises(Exception, match="was renamed"):
        q.reshape((2,), 0)


@with_countable
def test_sampling_can_be_detached(make: Callable[..., Any]) -> None:
    """has_rsample_(False) makes it a site with a score function, in plates too."""
    q = make().has_rsample_(False)
    trace = poutine.trace(lambda: _in_plate(lambda: pyro.sample("z", q))).get_trace()
    trace.compute_score_parts()
    site = trace.nodes["z"]
    assert not site["fn"].has_rsample
    assert site["score_parts"].score_function is not 0  # noqa: F632
    assert make().has_rsample


def _in_plate(sample: Callable[[], Tensor]) -> Tensor:
    with pyro.plate("plate", 3):
        return sample()


@pytest.mark.parametrize(
    "family, shapes",
    [
        (igr.SoftmaxIGR, {"loc": (5, 2), "scale": (2,), "temperature": ()}),
        (igr.SoftmaxIGR, {"loc": (2,), "scale": (2,), "temperature": (4, 1), "allowed": (6, 3)}),
        (igr.StickBreakingIGR, {"loc": (2,), "scale": (7, 2), "temperature": (), "delta": (7,)}),
        (igr.SharpStickBreakingIGR, {"loc": (2,), "scale": (2,), "temperature": (3,)}),
        (igr.GumbelSoftmax, {"temperature": (), "logits": (2, 5)}),
        (igr.GumbelSoftmax, {"temperature": (4,), "probs": (5,)}),
        (igr.RecoveredCategorical, {"logits": (2, 5)}),
    ],
)
def test_shapes_are_inferred_from_the_class(family: Any, shapes: dict[str, Any]) -> None:
    made = family(
        **{
            name: torch.ones(shape, dtype=torch.bool if name == "allowed" else None)
            for name, shape in shapes.items()
        }
    )
    assert family.infer_shapes(**shapes) == (made.batch_shape, made.event_shape)


def test_pyro_is_not_imported_and_may_come_late() -> None:
    """A distribution made before Pyro was imported is an error in its first plate, never one draw for all of it."""
    program = """
        import sys, torch, igr
        q = igr.SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5)
        assert q.shape == (3,) and q.event_dim == 1 and q().shape == (3,)
        assert not hasattr(q, "mask") and not hasattr(q, "to_event")
        assert not [name for name in sys.modules if name.split(".")[0] == "pyro"]
        import pyro
        try:
            with pyro.plate("plate", 4):
                pyro.sample("z", q)
        except RuntimeError as error:
            assert "before Pyro was imported" in str(error)
        else:
            raise SystemExit("no error")
        with pyro.plate("plate", 4):
            assert pyro.sample("z", q).shape == (4, 3)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


# Supports


@over()
def test_support_is_a_constraint_of_the_class(case: Any) -> None:
    support = type(case.some(K)).support
    assert isinstance(support, constraints.Constraint)
    assert (support.event_dim, support.is_discrete) == (1, False)


def test_support_of_the_others() -> None:
    assert isinstance(igr.CountableIGR.support, constraints.Constraint)
    assert igr.RecoveredCategorical.support.is_discrete
    q = _countable()
    assert q.support is countable
    assert bool(q.support.check(q.sample((100,))).all())
    for registry in (biject_to, transform_to):
        with pytest.raises(NotImplementedError, match="SharpStickBreakingIGR"):
            registry(q.support)


@over()
@pytest.mark.parametrize("num_categories", [2, 5, 50])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_samples_are_in_the_support(
    case: Any, num_categories: int, temperature: float, dtype: torch.dtype
) -> None:
    if dtype is torch.float16 and (case.foreign or not case.own_noise):
        pytest.skip("others draw in float32 at least")
    q = case.some(num_categories, (3,), temperature, dtype)
    assert bool(q.support.check(q.sample((200,))).all())


@every_site
def test_support_is_where_there_is_a_density(make: Callable[..., Any]) -> None:
    q = make()
    z = dist.Dirichlet(torch.ones(K, dtype=D)).sample((500,))
    if (allowed := getattr(q, "allowed", None)) is not None:
        z[:250] *= allowed
        z /= z.sum(-1, keepdim=True)
    with pyro.validation_enabled(False):
        assert torch.equal(q.support.check(z), q.log_prob(z).isfinite())


@every_site
def test_the_transform_of_a_support_reaches_all_of_it(make: Callable[..., Any]) -> None:
    q = make()
    onto = biject_to(q.support)
    x = torch.randn(200, K - 1, dtype=D)
    z = onto(x)
    assert bool(q.log_prob(z).isfinite().all())
    z = q.sample((200,))
    torch.testing.assert_close(onto(onto.inv(z)), z)


@pytest.mark.parametrize("num_categories", [2, 3])
@pytest.mark.parametrize("name", [*PARTS, "softmax", "sharp_first_out"])
def test_densities_in_the_coordinates_of_a_support_integrate_to_one(
    name: str, num_categories: int
) -> None:
    """Coordinates that a face has no need of count as standard normal."""
    if name.endswith("a_cube"):
        q: Any = SITES[name](num_categories=num_categories)
    else:
        q = next(c for c in CASES if c.name == name).some(num_categories)
    onto = biject_to(q.support)
    grid = torch.linspace(-20, 20, 501, dtype=D)
    x = torch.cartesian_prod(*[grid] * (num_categories - 1)).reshape(-1, num_categories - 1)
    z = onto(x)
    density = (q.log_prob(z) + onto.log_abs_det_jacobian(x, z)).exp()
    total = density.sum() * float(grid[1] - grid[0]) ** (num_categories - 1)
    torch.testing.assert_close(float(total), 1.0, rtol=0, atol=2e-3)


def test_faces_and_images_are_themselves() -> None:
    allowed = torch.tensor([True, False, True])
    z = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0], [0.4, 0.1, 0.5], [0.5, 0.0, 0.4]])
    assert face(allowed).check(z).tolist() == [True, True, False, False]
    q = igr.SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5, allowed=allowed)
    assert type(q.support) is face
    assert biject_to(q.support) == biject_to(q.expand((2,)).support)
    assert igr.GumbelSoftmax(1.0, probs=torch.tensor([0.5, 0.0, 0.5])).support.check(z)[0]
    assert igr.GumbelSoftmax(1.0, probs=torch.ones(3)).support is simplex
    assert _ragged().support.check(_ragged().sample((10,))).all()
    q = igr.StickBreakingIGR(torch.zeros(2), torch.ones(2), 0.5)
    assert type(q.support) is image
    assert biject_to(q.support) is q.transform


# Inference


GUIDES = [
    autoguide.AutoNormal,
    autoguide.AutoDiagonalNormal,
    autoguide.AutoMultivariateNormal,
    autoguide.AutoLowRankMultivariateNormal,
    autoguide.AutoDelta,
    autoguide.AutoIAFNormal,
    autoguide.AutoLaplaceApproximation,
    autoguide.AutoStructured,
    autoguide.AutoGaussian,
    autoguide.AutoNormalMessenger,
]


@parts
@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: g.__name__)
def test_automatic_guides_start(name: str, guide: Any) -> None:
    model = model_of(SITES[name]())
    with torch.random.fork_rng():
        torch.set_default_dtype(D)
        try:
            svi = SVI(model, guide(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
            losses = [svi.step() for _ in range(5)]
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(math.isfinite(loss) for loss in losses)


INITS = ["feasible", "sample", "median", "mean", "uniform"]


@parts
@pytest.mark.parametrize("init", INITS)
def test_initial_values(name: str, init: str) -> None:
    model = model_of(SITES[name]())
    init_fn = getattr(autoguide, f"init_to_{init}")
    guide = autoguide.AutoNormal(model, init_loc_fn=init_fn)
    assert math.isfinite(Trace_ELBO().loss(model, guide))


def test_guides_in_a_plate_of_ragged_masks() -> None:
    q = _ragged()

    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", q)

    guide = autoguide.AutoNormal(model)
    assert math.isfinite(Trace_ELBO().loss(model, guide))
    z = guide()["z"]
    assert z.shape == (3, K)
    assert bool(q.support.check(z).all())


@parts
@pytest.mark.parametrize("kernel", [NUTS, HMC])
def test_chains_start(name: str, kernel: Any) -> None:
    kernel = kernel(model_of(SITES[name]()))
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=3, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"]
    assert bool(SITES[name]().support.check(z).all())


@pytest.mark.slow
@parts
def test_chains_have_the_right_mean(name: str) -> None:
    """Against importance sampling: within five standard errors, of which the chain's are by its effective size."""
    q = SITES[name]()
    mcmc = MCMC(NUTS(model_of(q)), num_samples=300, warmup_steps=150, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"]
    found = mcmc.diagnostics()["z"]["n_eff"]
    draws = q.sample((400_000,))
    x = draws @ torch.arange(K, dtype=D)
    weights = torch.softmax(6 * dist.Normal(x, 0.5).log_prob(torch.tensor(1.5, dtype=D)), 0)
    mean = weights @ draws
    error = ((weights**2) @ (draws - mean) ** 2).sqrt()
    theirs = z.std(0) / found.nan_to_num(1.0).clamp_min(1).sqrt()
    assert bool(((z.mean(0) - mean).abs() <= 5 * (error**2 + theirs**2).sqrt()).all())


# Reparameterization


NO_GAUSSIAN = ("laplace", "student_t", "from_a_cube", "gumbel", "gumbel_first_out", "control")
REPARAMETERIZED = [name for name in SITES if name not in NO_GAUSSIAN]


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_the_gaussian_becomes_the_latent(name: str) -> None:
    q = SITES[name]()

    def model() -> Tensor:
        return _in_plate(lambda: pyro.sample("z", q))

    trace = poutine.trace(poutine.reparam(model, {"z": TransformReparam()})).get_trace()
    y = trace.nodes["z_base"]["value"]
    assert y.shape == (3, K - 1)
    torch.testing.assert_close(trace.nodes["z"]["value"], q.transform(y))
    expected = dist.Normal(q.loc, q.scale).log_prob(y).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)

    both = {"z": TransformReparam(), "z_base": LocScaleReparam(0.0)}
    trace = poutine.trace(poutine.reparam(model, both)).get_trace()
    noise = trace.nodes["z_base_decentered"]["value"]
    torch.testing.assert_close(trace.nodes["z"]["value"], q.transform(q.loc + q.scale * noise))
    torch.testing.assert_close(trace.log_prob_sum(), dist.Normal(0.0, 1.0).log_prob(noise).sum())


@every_site
def test_automatic_reparameterization(make: Callable[..., Any]) -> None:
    q = make()
    if isinstance(q, igr.IGR) and not hasattr(q.base_dist, "event_dim"):
        pytest.skip("a base of torch's own is no site of Pyro's")
    model = AutoReparam()(model_of(q))
    guide = autoguide.AutoNormal(model)
    assert math.isfinite(Trace_ELBO().loss(model, guide))


# The recovered distribution


RECOVERED = {
    "softmax": lambda *p: igr.SoftmaxIGR(*p, 0.5),
    "stick_breaking": lambda *p: igr.StickBreakingIGR(*p, 0.5),
    "sharp": lambda *p: igr.SharpStickBreakingIGR(*p, 0.5),
    "first_out": lambda *p: igr.SoftmaxIGR(*p, 0.5, allowed=torch.tensor([False, True, True])),
}


@pytest.mark.parametrize("name", RECOVERED)
@pytest.mark.parametrize("in_plate", [False, True])
def test_the_recovered_distribution_is_enumerated(name: str, in_plate: bool) -> None:
    """The bound is the evidence, by hand and beside Pyro's own categorical; gradients are finite."""
    loc, scale = (x.requires_grad_() for x in parameters(3, (5,) if in_plate else ()))
    means, data = torch.tensor([-1.0, 0.5, 2.0], dtype=D), torch.linspace(-1, 2, 5, dtype=D)
    if not in_plate:
        data = data[0]

    def model(own: bool) -> None:
        found = RECOVERED[name](loc, scale).discrete()
        k_dist = found if own else dist.OneHotCategorical(probs=found.probs)
        if in_plate:
            with pyro.plate("data", 5):
                k = pyro.sample("k", k_dist, infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal((k * means).sum(-1), 1.0), obs=data)
        else:
            k = pyro.sample("k", k_dist)
            pyro.sample("x", dist.Normal((k * means).sum(-1), 1.0), obs=data)

    def guide(own: bool) -> None:
        pass

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    losses = [
        elbo.differentiable_loss(config_enumerate(model), guide, own) for own in (True, False)
    ]
    probs = RECOVERED[name](loc, scale).discrete().probs
    likelihood = dist.Normal(means, 1.0).log_prob(data.unsqueeze(-1)).exp()
    torch.testing.assert_close(losses[0], -(probs * likelihood).sum(-1).log().sum())
    torch.testing.assert_close(losses[0], losses[1])
    gradients = torch.autograd.grad(losses[0], (loc, scale))
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_the_recovered_distribution_is_a_site() -> None:
    k_dist = igr.SoftmaxIGR(*parameters(3), 0.5).discrete()
    with pyro.plate("data", 4):
        k = pyro.sample("k", k_dist)
    assert k.shape == (4, 3)
    assert k_dist.to_event(0).event_dim == 1
    assert k_dist.has_enumerate_support
    assert k_dist.mask(False).log_prob(k[0]) == 0
    expanded = k_dist.expand_by((2,))
    assert isinstance(expanded, igr.RecoveredCategorical)
    assert kl_divergence(k_dist, k_dist) == 0


def test_the_page_about_pyro_runs() -> None:
    """Every block, one after the other; and what they end with is what the page says."""
    page = Path(__file__).parents[1] / "docs" / "pyro.md"
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(block, found)
    assert found["guide"]()["z"][1] == 0
    prior, values, x = found["prior"], found["values"], found["x"]
    probs = prior.discrete().probs
    likelihood = dist.Normal(values.abs(), 0.5).log_prob(x.unsqueeze(-1)).exp()
    torch.testing.assert_close(found["loss"], -(likelihood @ probs).log().sum())


@pytest.mark.slow
def test_a_guide_over_the_gaussian_has_several_categories() -> None:
    """Two categories explain the data, and the third lies between them: over y, one normal covers both."""
    values = torch.tensor([-1.0, 0.0, 1.0])
    prior = igr.SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.1)

    def on_z() -> Tensor:
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal((z @ values).abs(), 0.5), obs=torch.tensor(1.0))
        return z

    losses, shares = [], []
    for model in (on_z, poutine.reparam(on_z, {"z": TransformReparam()})):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = autoguide.AutoNormal(model)
        elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        losses.append(sum([svi.step() for _ in range(300)][-100:]) / 100)
        guide_trace = poutine.trace(guide)
        drawn = [poutine.replay(model, guide_trace.get_trace())().argmax() for _ in range(300)]
        shares.append(torch.bincount(torch.stack(drawn), minlength=3) / 300)
    assert losses[1] < losses[0] - 0.3
    # A share of 0.1 among 300 draws is six standard errors below the 0.22 that was seen.
    assert float(shares[1][[0, 2]].min()) > 0.1


def test_a_map_with_a_cache_has_an_inverse_of_its_own() -> None:
    """Once Pyro is imported, copies of torch's transforms keep the inverse of what they are copied from."""
    transform = igr.SoftmaxPlusPlus(0.5)
    inverse = transform.inv
    assert transform.with_cache().inv is not inverse
