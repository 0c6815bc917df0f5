"""What users of torch distributions do with them: map over, compile, copy, mix dtypes, make mistakes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

import igr
from cases import Case, over, parameters
from igr import functional as fn

D = torch.float64

ours = over(lambda c: c.own_noise, lambda c: c.name not in ("pyro_spline", "zuko"))


# Determinism and copies


@over()
def test_deterministic_under_manual_seed(case: Case) -> None:
    q = case.some(5, (3,))
    for draw in (q.rsample, q.sample, q.rsample_log, q.straight_through):
        torch.manual_seed(5)
        a = draw((4,))
        torch.manual_seed(5)
        assert torch.equal(draw((4,)), a)
        assert not torch.equal(draw((4,)), a)


@over(lambda c: c.name != "zuko")  # zuko's lazy transforms hold local functions
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_behave_the_same(case: Case, how: str) -> None:
    q = case.some(5, (3,))
    other = copy.deepcopy(q) if how == "deepcopy" else pickle.loads(pickle.dumps(q))
    assert type(other) is type(q)
    assert (other.batch_shape, other.event_shape) == (q.batch_shape, q.event_shape)
    torch.manual_seed(5)
    log_z, log_prob = q.rsample_log_and_log_prob((4,))
    torch.manual_seed(5)
    a, b = other.rsample_log_and_log_prob((4,))
    torch.testing.assert_close(a, log_z)
    torch.testing.assert_close(b, log_prob)
    torch.testing.assert_close(other.log_prob(log_value=log_z), q.log_prob(log_value=log_z))
    assert torch.equal(other.hard(log_value=log_z), q.hard(log_value=log_z))
    assert other.expand((2, 3)).batch_shape == (2, 3)
    assert repr(other) == repr(q)


@over()
def test_repr_is_short_and_names_the_class(case: Case) -> None:
    text = repr(case.some(5, (300,)))
    assert text.startswith(type(case.some(5)).__name__)
    assert len(text) < 600


# Function transforms


@ours
def test_vmap_over_parameters(case: Case) -> None:
    """Each element of the map draws its own noise, with values and gradients as without the map."""
    loc, scale = parameters(4, (6,))
    t = torch.linspace(0.3, 0.9, 6, dtype=D)

    def draw(loc: Tensor, scale: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        q = case.build(loc, scale, t)
        log_z, log_prob = q.rsample_log_and_log_prob()
        return q.rsample(), log_z, log_prob, q.log_prob(log_value=log_z), q.hard(log_value=log_z)

    z, log_z, own, again, hard = torch.vmap(draw, randomness="different")(loc, scale, t)
    assert z.shape == log_z.shape == hard.shape == (6, 4)
    torch.testing.assert_close(own, again, rtol=1e-7, atol=1e-7)
    q = case.build(loc, scale, t)
    torch.testing.assert_close(q.log_prob(log_value=log_z), own, rtol=1e-7, atol=1e-7)
    assert torch.equal(q.hard(log_value=log_z), hard)
    same = torch.vmap(draw, randomness="different")(
        loc[:1].expand(6, -1), scale[:1].expand(6, -1), t[:1].expand(6)
    )
    assert len(set(same[2].tolist())) == 6


@ours
def test_gradient_of_each_example(case: Case) -> None:
    """vmap of grad, as for gradients of each example, agrees with a loop."""
    loc, scale = parameters(4, (6,))
    with torch.no_grad():
        log_z = case.build(loc, scale, 0.5).rsample_log()

    def loss(loc: Tensor, scale: Tensor, log_z: Tensor) -> Tensor:
        return case.build(loc, scale, 0.5).log_prob(log_value=log_z)

    grads = torch.vmap(torch.func.grad(loss, argnums=(0, 1)))(loc, scale, log_z)
    for i in range(6):
        m, s = loc[i].clone().requires_grad_(), scale[i].clone().requires_grad_()
        expected = torch.autograd.grad(loss(m, s, log_z[i]), [m, s], allow_unused=True)
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a[i], torch.zeros_like(a[i]) if b is None else b)

    def sampled(loc: Tensor, scale: Tensor) -> Tensor:
        z, log_prob = case.build(loc, scale, 0.5).rsample_and_log_prob()
        return z.square().sum() + log_prob

    grads = torch.vmap(torch.func.grad(sampled, argnums=(0, 1)), randomness="different")(loc, scale)
    assert all(g.isfinite().all() for g in grads)


def test_vmap_of_divergences() -> None:
    loc, scale = parameters(4, (6,))
    t = torch.linspace(0.3, 0.9, 6, dtype=D)
    prior = igr.SoftmaxIGR(torch.zeros(3, dtype=D), torch.ones(3, dtype=D), 0.5)

    def closed(loc: Tensor, scale: Tensor, t: Tensor) -> Tensor:
        return kl_divergence(igr.SoftmaxIGR(loc, scale, t), prior)

    def sampled(loc: Tensor, scale: Tensor, t: Tensor) -> Tensor:
        return igr.monte_carlo_kl(igr.SharpStickBreakingIGR(loc, scale, t), prior)

    expected = kl_divergence(igr.SoftmaxIGR(loc, scale, t), prior)
    torch.testing.assert_close(torch.vmap(closed)(loc, scale, t), expected)
    assert torch.vmap(sampled, randomness="different")(loc, scale, t).isfinite().all()


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's own
def test_vmap_of_the_functional_form() -> None:
    loc, scale, noise = torch.randn(3, 6, 4, dtype=D)
    scale = scale.exp()
    z = torch.vmap(lambda m, s, e: fn.igr_softmax(m, s, 0.5, noise=e))(loc, scale, noise)
    torch.testing.assert_close(z, fn.igr_softmax(loc, scale, 0.5, noise=noise))
    _, tangent = torch.func.jvp(
        lambda m: fn.igr_softmax(m, scale, 0.5, noise=noise), (loc,), (torch.ones_like(loc),)
    )
    h = 1e-6
    ahead, behind = (fn.igr_softmax(loc + d, scale, 0.5, noise=noise) for d in (h, -h))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-6)


# Compilation


def _step(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    def step(loc: Tensor, scale: Tensor, t: float | Tensor) -> tuple[Tensor, ...]:
        q = case.build(loc, scale, t)
        z, log_prob = q.rsample_and_log_prob()
        return z, log_prob, q.rsample((2,)), q.log_prob(z.detach()), q.straight_through()

    return step


def _compare_compiled(case: Case, backend: str) -> None:
    torch.compiler.reset()
    step = _step(case)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for t in (0.5, torch.tensor(0.5), torch.full((3,), 0.5)):
        results = []
        for f in (step, compiled):
            loc, scale = (x.requires_grad_() for x in parameters(4, (3,), torch.float32))
            torch.manual_seed(1)
            out = f(loc, scale, t)
            (out[0].square().sum() + out[1].sum() + out[3].sum()).backward()
            results.append((*out[:2], out[3], loc.grad))
        if backend == "aot_eager":  # the same random numbers: other back ends draw their own
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        for x in results[1]:
            assert x is not None
            assert x.isfinite().all()
    torch.compiler.reset()


COMPILED = [
    *("softmax", "stick_breaking", "sharp", "vertex", "planar", "gumbel"),
    *("softmax_last_out", "sharp_first_out", "gumbel_first_out"),
]


@over(lambda c: c.name in ("softmax", "sharp", "gumbel"))
def test_compiles_without_graph_breaks(case: Case) -> None:
    _compare_compiled(case, "aot_eager")


@pytest.mark.slow
@over(lambda c: c.name in COMPILED)
def test_all_forms_compile_without_graph_breaks(case: Case) -> None:
    _compare_compiled(case, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within inductor
@over(lambda c: c.name in ("softmax", "sharp"))
def test_compiles_to_machine_code(case: Case) -> None:
    _compare_compiled(case, "inductor")


def _divergences(loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    q = igr.SoftmaxIGR(loc, scale, 0.5)
    p = igr.SoftmaxIGR(torch.zeros_like(loc), torch.ones_like(scale), 0.7)
    return kl_divergence(q, p), igr.monte_carlo_kl(q, p)


def test_divergences_compile() -> None:
    torch.compiler.reset()
    loc, scale = parameters(4, (3,), torch.float32)
    torch.manual_seed(1)
    expected = _divergences(loc, scale)
    torch.manual_seed(1)
    found = torch.compile(_divergences, fullgraph=True, backend="aot_eager")(loc, scale)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within inductor
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_functional_form_compiles_and_agrees_by_its_noise(backend: str) -> None:
    torch.compiler.reset()
    loc, scale, noise = torch.randn(5, 4), torch.rand(5, 4) + 0.1, torch.randn(5, 4)
    for f in (fn.igr_softmax, fn.stick_breaking_igr_softmax, fn.sharp_stick_breaking_igr_softmax):
        for hard in (False, True):
            compiled = torch.compile(f, fullgraph=True, backend=backend)
            a = f(loc, scale, 0.3, hard, noise=noise)
            torch.testing.assert_close(compiled(loc, scale, 0.3, hard, noise=noise), a)
    torch.compiler.reset()


# Dtypes and devices


# Half precision is meant for |loc| <= 100, scale in [0.01, 10] and temperature in [0.05, 10].
HALF_RANGE = [
    (0.0, 1.0, 0.5),
    (100.0, 0.01, 0.05),
    (-100.0, 10.0, 10.0),
    (3.0, 0.01, 10.0),
    (10.0, 10.0, 0.05),
]


@ours
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    """Samples in half precision, logarithms and densities in float32, all finite with their gradients in the range."""
    if not case.log_space or case.foreign:
        pytest.skip("other libraries' maps compute in half precision")
    for size, spread, t in HALF_RANGE:
        if t > case.max_temperature:
            continue
        loc = (size * torch.linspace(-1, 1, 9)).expand(20, 9).to(dtype).requires_grad_()
        scale = torch.full((20, 9), spread, dtype=dtype, requires_grad=True)
        q = case.build(loc, scale, t)
        z, log_prob = q.rsample_and_log_prob()
        assert z.dtype == q.sample().dtype == q.straight_through().dtype == q.hard(z).dtype == dtype
        log_z = q.rsample_log()
        assert log_z.dtype == log_prob.dtype == q.log_prob(z).dtype == torch.float32
        assert bool(q.support.check(z).all())
        assert log_prob.isfinite().all()
        (z.square().sum() + log_prob.sum()).backward()
        for g in (loc.grad, scale.grad):
            if g is not None:  # a Gumbel-Softmax has no scale of its own
                assert g.dtype == dtype
                assert g.isfinite().all()
    probs = case.some(4, (3,), 0.5, dtype).probs
    assert probs.dtype == torch.float32  # in half precision they miss a sum of 1 by some 1%


@over(lambda c: not c.foreign and c.own_noise)
def test_scalar_temperature_of_another_dtype_leaves_the_dtype_alone(case: Case) -> None:
    q = case.some(4, (3,), torch.tensor(0.5, dtype=D), torch.float32)
    assert q.rsample().dtype == q.rsample_log().dtype == torch.float32
    assert q.rsample_and_log_prob()[1].dtype == torch.float32


@over(lambda c: not c.foreign and c.own_noise and c.allowed is None and c.name != "planar")
@pytest.mark.parametrize("validate", [True, False])
def test_device_is_that_of_the_parameters(case: Case, validate: bool) -> None:
    """On torch's meta device, which has shapes but no data, so that a stray CPU tensor is an error."""
    loc, scale = (x.to("meta") for x in parameters(4, (3,), torch.float32))
    torch.distributions.Distribution.set_default_validate_args(validate)
    try:
        for t in (0.5, torch.full((3,), 0.5, device="meta")):
            q = case.build(loc, scale, t)
            z, log_prob = q.rsample_and_log_prob((2,))
            for x in (z, log_prob, q.log_prob(z), q.hard(z), q.straight_through(), q.rsample_log()):
                assert x.device.type == "meta"
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


def test_kl_on_the_meta_device() -> None:
    loc, scale = (x.to("meta") for x in parameters(4, (3,), torch.float32))
    q, p = (
        igr.SoftmaxIGR(loc, scale, 0.5),
        igr.SoftmaxIGR(loc, scale, torch.full((3,), 0.5, device="meta")),
    )
    assert kl_divergence(q, p).shape == (3,)
    assert igr.monte_carlo_kl(q, p).shape == (3,)


def test_shared_map_is_compared_by_identity_first() -> None:
    """No value of a temperature on a device is read where both distributions hold the same map or the same tensor."""
    loc, scale = (x.to("meta") for x in parameters(4, (3,), torch.float32))
    t = torch.full((3,), 0.5, device="meta")
    g = igr.Compose([igr.StickBreaking(), igr.Sharpen(t)])
    assert kl_divergence(igr.IGR(loc, scale, g), igr.IGR(loc, scale, g)).shape == (3,)
    q, p = igr.SharpStickBreakingIGR(loc, scale, t), igr.SharpStickBreakingIGR(loc, scale, t)
    assert kl_divergence(q, p).shape == (3,)


# Pyro


def test_inside_pyro() -> None:
    """pyro.sample takes them as they are: under plates, conditioned, and in variational inference."""
    pyro = pytest.importorskip("pyro")
    target = torch.tensor([0.0, 1.0, 2.0])

    def model() -> None:
        with pyro.plate("data", 5):
            z = pyro.sample("z", igr.SoftmaxIGR(torch.zeros(2), torch.ones(2), 0.5))
            assert z.shape == (5, 3)
            pyro.sample("x", pyro.distributions.Normal(z @ target, 0.1), obs=torch.full((5,), 1.5))

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(5, 2))
        scale = pyro.param(
            "scale", torch.ones(5, 2), constraint=torch.distributions.constraints.positive
        )
        with pyro.plate("data", 5):
            pyro.sample("z", igr.SoftmaxIGR(loc, scale, 0.5))

    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])

    z = torch.full((5, 3), 1 / 3)
    q = igr.GumbelSoftmax(0.5, logits=torch.zeros(5, 3))
    conditioned = pyro.poutine.condition(lambda: pyro.sample("z", q.to_event(1)), {"z": z})
    trace = pyro.poutine.trace(conditioned).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), q.log_prob(z).sum())
    assert pyro.sample("z", q.mask(torch.tensor(True))).shape == (5, 3)
    assert q.expand_by((2,)).batch_shape == (2, 5)
    assert q.shape((2,)) == (2, 5, 3)
    assert q.event_dim == 1


# Wrong arguments: the message names the argument, what was expected and what came


L, S = torch.zeros(5, 2), torch.ones(5, 2)
MASK = torch.tensor([True, True, False])
THIRDS = torch.full((5, 3), 1 / 3)
SPP = igr.SoftmaxPlusPlus(1.0)
SCALAR = torch.zeros(())
Q, G = igr.SoftmaxIGR(L, S, 1.0), igr.GumbelSoftmax(1.0, logits=L)
POISSON = torch.distributions.Independent(torch.distributions.Poisson(S), 1)
LAPLACE = torch.distributions.Laplace(L, S)
AFTER = torch.tensor([0.5, -0.1, 1.0, 1.0, 1.0])

BAD = [
    # loc and scale
    (lambda: igr.SoftmaxIGR(SCALAR, SCALAR + 1, 1.0), r"loc: expected shape \(\*batch, K-1\) with K >= 2, got \(\)"),
    (lambda: igr.SoftmaxIGR(L[:, :0], S[:, :0], 1.0), r"loc: expected shape .* got \(5, 0\)"),
    (lambda: igr.SoftmaxIGR([0.0], S, 1.0), "loc: expected a tensor, got list"),
    (lambda: igr.SoftmaxIGR([0.0], S, 1.0, allowed=MASK), "loc: expected a tensor, got list"),
    (lambda: igr.SoftmaxIGR(L, 1.0, 1.0), "scale: expected a tensor, got float"),
    (lambda: igr.SoftmaxIGR(L.long(), S, 1.0), "loc: expected floating-point values, got torch.int64"),
    (lambda: igr.SoftmaxIGR(L * torch.nan, S, 1.0), "loc: expected finite values, .* such as .*nan"),
    (lambda: igr.SoftmaxIGR(L + torch.inf, S, 1.0), "loc: expected finite values"),
    (lambda: igr.SoftmaxIGR(L, 0 * S, 1.0), r"scale: expected positive .* shape \(5, 2\) with 10 invalid"),
    (lambda: igr.StickBreakingIGR(L, -S, 1.0), "scale: expected positive finite values"),
    (lambda: igr.StickBreakingIGR(L, S * torch.nan, 1.0), "scale: expected positive finite values"),
    (lambda: igr.SoftmaxIGR(L, S[:4], 1.0), r"that broadcast, got loc \(5, 2\), scale \(4, 2\)"),
    # temperature and delta
    (lambda: igr.SoftmaxIGR(L, S, 0.0), "temperature: expected a positive finite number above 1e-16, got 0.0"),
    (lambda: igr.SharpStickBreakingIGR(L, S, "cold"), "temperature: expected a positive number .* got str"),
    (lambda: igr.SoftmaxIGR(L, S, AFTER), r"temperature: expected positive finite values above 1e-16, .* \[-0.1"),
    (lambda: igr.SoftmaxIGR(L, S, S[:4, 0]), r"temperature .*the batch shape \(5,\), got \(4,\)"),
    (lambda: igr.StickBreakingIGR(L, S, 1.0, delta=-1.0), "delta: expected a positive finite number, got -1.0"),
    # allowed
    (lambda: igr.SoftmaxIGR(L, S, 1.0, allowed=S[0]), "allowed: expected a boolean tensor, got torch.float32"),
    (lambda: igr.SoftmaxIGR(L, S, 1.0, allowed=[True]), "allowed: expected a boolean tensor, got list"),
    (lambda: igr.SoftmaxIGR(L, S, 1.0, allowed=MASK[:2]), r"allowed: expected shape \(\*batch, 3\), .* got \(2,\)"),
    (lambda: igr.SharpStickBreakingIGR(L, S, 1.0, allowed=MASK & ~MASK), "allowed: expected at least one allowed"),
    # Gumbel-Softmax
    (lambda: igr.GumbelSoftmax(1.0, logits=L, probs=S), "expected exactly one of logits and probs"),
    (lambda: igr.GumbelSoftmax(1.0), "expected exactly one of logits and probs"),
    (lambda: igr.GumbelSoftmax(1.0, logits=L[:, :1]), r"logits: expected shape .* with K >= 2, got \(5, 1\)"),
    (lambda: igr.GumbelSoftmax(1.0, logits=L * torch.nan), "logits: expected numbers below infinity"),
    (lambda: igr.GumbelSoftmax(1.0, probs=-S), "probs: expected non-negative finite values"),
    (lambda: igr.GumbelSoftmax(-1.0, logits=L), "temperature: expected a positive finite number above 1e-16, got -1.0"),
    (lambda: igr.GumbelSoftmax(1.0, logits=L - torch.inf), "logits: expected at least one possible category"),
    (lambda: igr.GumbelSoftmax(1.0, probs=0 * S), "probs: expected at least one possible category"),
    (lambda: igr.GumbelSoftmax(S[:4, 0], logits=L), r"temperature: .*the batch shape \(5,\), got \(4,\)"),
    # other bases
    (lambda: igr.IGR.from_base(LAPLACE, SPP), r"base: expected event_shape \(K-1,\), got \(\); wrap"),
    (lambda: igr.IGR.from_base(POISSON, SPP), "base: expected a distribution with rsample"),
    # values
    (lambda: Q.log_prob(THIRDS, log_value=THIRDS), "expected exactly one of value and log_value"),
    (lambda: Q.log_prob(), "expected exactly one of value and log_value"),
    (lambda: Q.hard(), "expected exactly one of value and log_value"),
    (lambda: Q.log_prob(torch.ones(5, 4) / 4), r"value: expected shape \(\*sample, \*batch, 3\), got \(5, 4\)"),
    (lambda: Q.log_prob(THIRDS[:4]), r"value: expected .* batch fits \(5,\), got .*\(4,\)"),
    (lambda: Q.log_prob(3 * THIRDS), "value: expected points of the simplex"),
    (lambda: Q.log_prob(THIRDS * torch.nan), "value: expected points of the simplex"),
    (lambda: G.log_prob(torch.ones(5, 2)), "value: expected points of the simplex"),
]  # fmt: skip


@pytest.mark.parametrize("make, message", BAD, ids=range(len(BAD)))
def test_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_validation_can_be_turned_off() -> None:
    q = igr.SoftmaxIGR(L, -S, 1.0, validate_args=False)
    assert q.rsample().shape == (5, 3)
    q.log_prob(torch.ones(5, 3))
    igr.GumbelSoftmax(1.0, probs=-S, validate_args=False)
    with pytest.raises(ValueError, match="scale"):
        igr.SoftmaxIGR(L, -S, 1.0, validate_args=True)
