"""What holds for every estimator: against enumeration, and where it must refuse."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from enumeration import (
    DOUBLE,
    EVERY,
    FAMILIES,
    SHAPES,
    UNBIASED,
    Objectives,
    assert_mean,
    exact,
    replicate,
)
from torch import Tensor, nn
from torch import distributions as td

import igr
from igr import GumbelSoftmax, Planar, PlanarIGR, SharpStickBreakingIGR, SoftmaxIGR
from igr import estimators as E
from igr.estimators import (
    ControlNetwork,
    LeaveOneOut,
    Pathwise,
    RaoBlackwellStraightThrough,
    Rebar,
    Reinforce,
    ReinMax,
    RunningMean,
    StickingTheLanding,
    UnorderedSet,
)

THREE = SoftmaxIGR(torch.zeros(2, 2), torch.ones(2, 2), 0.5)


def first(b: Tensor) -> Tensor:
    return b[..., 0]


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("N, K", SHAPES)
def test_mean_gradient_is_that_of_full_enumeration(
    N: int, K: int, family_name: str, name: str
) -> None:
    family, make = FAMILIES[family_name]
    parameters, objectives = make(N, K), Objectives(N, K)
    value, gradient = exact(family, parameters, objectives, N, K)
    estimator = UNBIASED[name](N, K)
    estimator.float()
    if name == "running mean":
        replicate(estimator, family, parameters, objectives, 50, torch.float32)
    values, gradients = replicate(estimator, family, parameters, objectives, 1500, torch.float32)
    # float32's own error, which is all there is where a loss is constant
    assert_mean(values, value, slack=2e-5)
    for found, expected in zip(gradients, gradient, strict=True):
        assert_mean(found, expected, slack=1e-4)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_the_loss_is_a_bound_and_training_moves_towards_it(family_name: str, name: str) -> None:
    """A model whose evidence is known: the loss is above -log p(x) on average, and falls towards it.

    With the KL term subtracted (erratum E7) it would be below: at the start by more than a nat.
    """
    torch.manual_seed(0)
    family, _ = FAMILIES[family_name]
    N, K, B = 1, 3, 100
    log_likelihood = torch.tensor([-1.0, -2.0, -3.0], dtype=DOUBLE)
    evidence = float(torch.logsumexp(log_likelihood - math.log(K), 0))
    if family_name == "igr":
        parameters = [torch.tensor([[-1.0, 2.5]], dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE)]
    else:
        parameters = [torch.tensor([[-2.0, 3.0, -2.0]], dtype=DOUBLE)]
    leaves = [p.expand(B, *p.shape).clone().requires_grad_() for p in parameters]
    estimator = EVERY[name](N, K).double()
    optimizer = torch.optim.Adam(leaves[:1], lr=0.5)

    def step() -> tuple[Tensor, Tensor]:
        q = family(leaves, 0.3)
        logits = q.discrete().logits
        kl = (logits.exp() * (logits + math.log(K))).sum((-1, -2))
        loss = estimator(q, lambda z: kl - (z * log_likelihood).sum((-1, -2)))
        exact_loss = kl - (logits.exp() * log_likelihood).sum((-1, -2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        return loss.detach(), exact_loss.detach()

    first, first_exact = step()
    for _ in range(10):
        last_exact = step()[1]
    assert float(first_exact[0]) > -evidence + 0.5
    assert float(first.mean()) > -evidence + 0.2
    assert float(last_exact.mean()) < float(first_exact.mean()) - 0.5
    assert float(last_exact.min()) >= -evidence - 1e-9


@pytest.mark.parametrize("name", EVERY)
def test_a_probability_of_one_and_of_zero(name: str) -> None:
    """Only one category can be drawn: the value is exact, the gradient finite."""
    inf = torch.inf
    logits = torch.tensor([[[0.0, -inf, -inf]], [[1.0, 1.0, -inf]]]).requires_grad_()
    weight = torch.tensor([2.0, 5.0, -7.0])
    estimator = EVERY[name](1, 3).float()
    loss = estimator(GumbelSoftmax(0.5, logits=logits), lambda z: (z * weight).sum((-1, -2)))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert loss[0] == 2.0
    assert (logits.grad[0] == 0).all()
    assert 2.0 <= float(loss[1].detach()) <= 5.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_an_igr_that_is_certain_and_one_with_a_category_not_allowed(name: str) -> None:
    loc = torch.tensor([[[-400.0, 300.0]], [[0.3, 0.2]]]).requires_grad_()
    scale = torch.ones(2, 1, 2).requires_grad_()
    weight = torch.tensor([2.0, 5.0, -7.0])
    estimator = EVERY[name](1, 3).float()

    def f(z: Tensor) -> Tensor:
        return (z * weight).sum((-1, -2))

    loss = estimator(SoftmaxIGR(loc, scale, 0.5), f)
    loss.sum().backward()
    assert float(loss[0].detach()) == pytest.approx(5.0, abs=1e-5)
    for leaf in (loc, scale):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad[0].abs().max() < 1e-4
    for allowed in ([True, False, True], [True, True, False]):
        leaf = torch.zeros(5, 1, 2, requires_grad=True)
        q = SoftmaxIGR(leaf, torch.ones(5, 1, 2), 0.5, allowed=torch.tensor(allowed))
        loss = estimator(q, f)
        loss.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        if not allowed[1]:
            assert (leaf.grad[..., 1] == 0).all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in estimator.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_of_the_wrong_kind_is_named(name: str) -> None:
    q = GumbelSoftmax(0.5, logits=torch.zeros(6, 2, 3))
    estimator = EVERY[name](2, 3).float()
    with pytest.raises(
        ValueError, match=r"^f: expected one value for each batch element.*\(6, 2\).*\(5,\)"
    ):
        estimator(q, lambda z: torch.zeros(5))
    with pytest.raises(ValueError, match=r"^f: expected a floating-point tensor.*float"):
        estimator(q, lambda z: 1.0)
    with pytest.raises(ValueError, match=r"^f: expected a floating-point tensor.*int64"):
        estimator(q, lambda z: torch.zeros(6, dtype=torch.long))
    estimator.sample_axis = True
    with pytest.raises(ValueError, match=r"^f: expected one value.*\(6, 2\).*\(5,\)"):
        estimator(q, lambda z: torch.zeros(len(z), 5))


def test_what_is_learned_begins_anew_whatever_became_of_what_was_given() -> None:
    eta = torch.tensor(0.5)
    estimator = Rebar(eta=eta)
    eta.fill_(7.0)
    estimator.reset_parameters()
    assert estimator.eta == 0.5


def test_a_loss_that_changes_its_shape_is_named() -> None:
    shapes = iter([(6, 2), (6,)])
    with pytest.raises(ValueError, match=r"^f: expected values of the same shape at each call$"):
        UnorderedSet(2, sample_axis=True)(
            GumbelSoftmax(0.5, logits=torch.zeros(6, 2, 3)),
            lambda z: torch.zeros(len(z), *next(shapes)),
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: UnorderedSet(1), "num_samples: expected at least 2"),
        (
            lambda: Reinforce(LeaveOneOut()),
            "num_samples: expected at least 2 for the baseline LeaveOneOut, got 1",
        ),
        (
            lambda: Reinforce(num_samples=0),
            "num_samples: expected a whole number of at least 1, got 0",
        ),
        (
            lambda: RaoBlackwellStraightThrough(0),
            "num_conditional: expected a whole number of at least 1, got 0",
        ),
        (lambda: Rebar(temperature=0.0), "temperature: expected a positive finite number"),
        (lambda: ReinMax(temperature=-1.0), "temperature: expected a positive finite number"),
        (lambda: RunningMean(1.0), "decay: expected a number in"),
        (lambda: RunningMean(shape=(3,))(torch.zeros(1, 4)), "shape: expected losses of shape"),
        (
            lambda: UnorderedSet(10)(
                GumbelSoftmax(0.5, logits=torch.zeros(4, 2, 3)), lambda b: b[..., 0].sum(-1)
            ),
            r"num_samples: expected at most the number of states, 3\*\*2 = 9, got 10",
        ),
        (
            lambda: Rebar()(
                SharpStickBreakingIGR(torch.zeros(2), torch.ones(2), 0.5), lambda b: b[..., 0]
            ),
            "q: expected a distribution with an exact conditional draw .* got SharpStickBreakingIGR",
        ),
        (
            lambda: Reinforce()(
                PlanarIGR(
                    torch.zeros(2),
                    torch.ones(2),
                    0.5,
                    Planar(torch.ones(2), torch.ones(2), torch.tensor(0.0)),
                ),
                lambda b: b[..., 0],
            ),
            "q: Reinforce needs the gradient of the categories' probabilities, and PlanarIGR",
        ),
        (
            lambda: Pathwise()(torch.distributions.Bernoulli(torch.tensor(0.5)), lambda b: b),
            "q: Pathwise needs a relaxation to sample from, got Bernoulli",
        ),
        (
            lambda: StickingTheLanding(GumbelSoftmax(0.5, logits=torch.zeros(3)))(
                GumbelSoftmax(0.5, logits=torch.zeros(4)), lambda b: b[..., 0]
            ),
            "prior: expected 4 categories as q has, got 3",
        ),
        (
            lambda: StickingTheLanding(igr.nn.Prior(SoftmaxIGR, 3, 0.5))(THREE, first),
            r"prior: expected a relaxation, got Prior; call the module for its distribution, prior\(\)",
        ),
        (
            lambda: E.sticking_the_landing_kl(THREE, td.Dirichlet(torch.ones(3))),
            "prior: expected a relaxation, got Dirichlet",
        ),
        (
            lambda: Rebar(temperature=torch.ones(7))(THREE, first),
            r"temperature: expected a number, or a shape that broadcasts to \(2,\), got \(7,\)",
        ),
        (
            lambda: E.Relax(ControlNetwork((3,)), temperature=torch.ones(2, 2))(THREE, first),
            r"temperature: expected a number, or a shape that broadcasts to \(2,\), got \(2, 2\)",
        ),
        (
            lambda: Rebar(eta=torch.ones(7))(THREE, first),
            r"eta: expected a number, or a shape that broadcasts to \(2,\), got \(7,\)",
        ),
        (
            lambda: E.DoubleControlVariate(weight=torch.ones(7))(THREE, first),
            r"weight: expected a number, or a shape that broadcasts to \(2,\), got \(7,\)",
        ),
        (
            lambda: Reinforce(4),
            r"baseline: expected a module such as LeaveOneOut\(\), or None, got 4",
        ),
        (
            lambda: E.Relax(0.5),
            "control_variate: expected a module such as ControlNetwork, got 0.5",
        ),
        (
            lambda: ControlNetwork((2, 3))(torch.zeros(5, 3, 2)),
            r"z: expected a shape that ends in \(2, 3\)",
        ),
    ],
)
def test_errors(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("generator", [0, [1, 2], "cpu"])
def test_a_seed_is_no_generator(generator: object, name: str) -> None:
    q = GumbelSoftmax(0.5, logits=torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match=r"^generator: expected a torch\.Generator, a sequence"):
        EVERY[name](2, 3)(q, lambda z: z[..., 0].sum(-1), generator=generator)


@pytest.mark.parametrize("name", EVERY)
def test_one_call_with_a_sample_axis_is_the_same_as_several(name: str) -> None:
    if not hasattr(EVERY[name](2, 3), "sample_axis"):
        pytest.skip("no such option")
    logits = torch.randn(6, 2, 3, dtype=DOUBLE)
    estimator = EVERY[name](2, 3).double()
    results = []
    for estimator.sample_axis in (False, True):
        leaf = logits.clone().requires_grad_()
        torch.manual_seed(4)
        loss = estimator(GumbelSoftmax(0.5, logits=leaf), lambda z: z[..., 0].sum(-1) ** 2)
        loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
        for module in estimator.modules():
            if isinstance(module, RunningMean):
                module.weight.zero_()
                module.mean.zero_()
    torch.testing.assert_close(*results)
    with pytest.raises(ValueError, match="leading axis"):
        estimator(GumbelSoftmax(0.5, logits=logits), lambda z: torch.zeros(99, dtype=DOUBLE))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_without_gradients_the_value_is_all(family_name: str, name: str) -> None:
    family, make = FAMILIES[family_name]
    estimator = EVERY[name](2, 3).double()
    parameters = [p.expand(4, *p.shape).clone() for p in make(2, 3)]
    with torch.no_grad():
        loss = estimator(family(parameters), lambda z: z[..., 0].sum(-1))
    assert loss.shape == (4,)
    assert not loss.requires_grad


@pytest.mark.parametrize(
    "name", ["reinforce", "leave one out", "relax, black box", "unordered set"]
)
def test_black_boxes_may_have_no_gradient(name: str) -> None:
    logits = torch.randn(6, 2, 3, dtype=DOUBLE, requires_grad=True)

    def f(b: Tensor) -> Tensor:
        return torch.from_numpy(b.detach().numpy()[..., 0].sum(-1))

    UNBIASED[name](2, 3)(GumbelSoftmax(0.5, logits=logits), f).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["reinforce", "unordered set of 2", "reinmax"])
def test_a_plain_categorical_will_do_where_nothing_is_relaxed(name: str) -> None:
    logits = torch.randn(6, 2, 3, dtype=DOUBLE, requires_grad=True)
    q = torch.distributions.OneHotCategorical(logits=logits)
    EVERY[name](2, 3)(q, lambda b: b[..., 0].sum(-1)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# what they declare


def of_the_documentation(name: str):
    """A module that writes parts of pages."""
    folder = str(Path(__file__).parents[2] / "docs")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def test_the_tables_in_the_documentation_are_what_they_declare_and_what_was_recorded() -> None:
    page, marks = of_the_documentation("_estimators"), of_the_documentation("_blocks")
    for name, parts in page.blocks().items():
        text = (marks.ROOT / name).read_text()
        assert marks.written(text, parts) == text
    classes = {type(estimator) for estimator in page.declared().values()}
    public = {getattr(E, name) for name in E.__all__}
    concrete = {
        c
        for c in public
        if isinstance(c, type) and issubclass(c, E.Estimator) and c is not E.Estimator
    }
    assert classes == concrete


@pytest.mark.parametrize("name", EVERY)
def test_evaluations_are_as_many_as_declared(name: str) -> None:
    estimator, calls = EVERY[name](2, 3).double(), []

    def f(z: Tensor) -> Tensor:
        calls.append(z)
        return z[..., 0].sum(-1)

    logits = torch.randn(4, 2, 3, dtype=DOUBLE, requires_grad=True)
    for _ in range(2):
        calls.clear()
        estimator(GumbelSoftmax(0.5, logits=logits), f)
    assert len(calls) == (estimator.evaluations or 3**2)


@pytest.mark.parametrize("name", EVERY)
def test_f_needs_a_gradient_only_where_declared(name: str) -> None:
    estimator, at_vertices, between = EVERY[name](2, 3).double(), [], []

    def f(z: Tensor) -> Tensor:
        hard = bool(((z == 0) | (z == 1)).all())
        value = z[..., 0].sum(-1).square()
        if value.requires_grad:
            value.register_hook(lambda g: (at_vertices if hard else between).append(g))
        return value

    logits = torch.randn(4, 2, 3, dtype=DOUBLE, requires_grad=True)
    estimator(GumbelSoftmax(0.5, logits=logits), f).sum().backward()
    assert bool(between) == (estimator.f_is is E.Differentiable.SIMPLEX)
    if estimator.f_is is E.Differentiable.NOWHERE:
        assert not at_vertices
    if estimator.f_is is E.Differentiable.VERTICES:
        assert at_vertices


# ---------------------------------------------------------------------------------------------------------------------
# random numbers, dtypes, empty batches


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_a_generator_is_all_that_is_random(family_name: str, name: str) -> None:
    family, make = FAMILIES[family_name]
    parameters = [p.expand(5, *p.shape) for p in make(2, 3)]

    def run(seed: int | list[int], rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        leaves = [p[rows].clone().requires_grad_() for p in parameters]
        torch.manual_seed(1)
        estimator = EVERY[name](2, 3).double()
        if isinstance(seed, int):
            generator = torch.Generator().manual_seed(seed)
        else:
            generator = [torch.Generator().manual_seed(s) for s in seed]
        state = torch.get_rng_state()
        loss = estimator(family(leaves), lambda z: z[..., 0].sum(-1) ** 2, generator=generator)
        assert torch.equal(torch.get_rng_state(), state)
        loss.sum().backward()
        return loss.detach(), leaves[0].grad  # type: ignore[return-value]

    torch.testing.assert_close(run(3), run(3), rtol=0, atol=0)
    together = run([7, 8, 9, 10, 11])
    for r in range(5):
        alone = run([7 + r], slice(r, r + 1))
        torch.testing.assert_close(tuple(t[r : r + 1] for t in together), alone, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"^generator: expected one, or one for each.*got 2"):
        run([1, 2])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_f_gets_samples_in_the_dtype_of_the_parameters(
    family_name: str, dtype: torch.dtype, name: str
) -> None:
    family, make = FAMILIES[family_name]
    leaves = [p.to(dtype).expand(4, *p.shape).clone().requires_grad_() for p in make(2, 3)]
    decoder = nn.Linear(6, 1).to(dtype)
    estimator = EVERY[name](2, 3).to(dtype)
    for _ in range(2):
        loss = estimator(family(leaves), lambda z: decoder(z.flatten(-2)).squeeze(-1))
        loss.sum().backward()
        assert loss.isfinite().all()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in leaves)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------------------
# stacks

LEARNING: dict[str, Callable[[int], E.Estimator]] = {
    "running mean": lambda R: E.Reinforce(RunningMean(0.5, shape=(R,))),
    "rebar": lambda R: E.Rebar(torch.full((R, 1, 1), 0.4), torch.full((R, 1), 0.8)),
    "relax": lambda R: E.Relax(ControlNetwork((2, 3), stack=(R,)), torch.full((R, 1, 1), 0.4)),
    "double control variate": lambda R: E.DoubleControlVariate(3, torch.full((R, 1), 0.7)),
    "rodeo": lambda R: E.Rodeo(3, 20, stack=(R,)),
}


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_a_run_in_a_stack_learns_what_it_learns_alone(family_name: str, name: str) -> None:
    """Two steps, the gradients of q's parameters and the estimator's own, its buffers."""
    family, make = FAMILIES[family_name]
    R, B = 3, 4
    parameters = [p.expand(R, B, *p.shape) + torch.randn(R, 1, 1, 1) * 0.2 for p in make(2, 3)]
    parameters = [parameters[0], *(p.abs() for p in parameters[1:])]
    torch.manual_seed(0)
    initial = LEARNING[name](R).double().state_dict()

    def learn(runs: list[int]) -> dict[str, Tensor]:
        estimator = LEARNING[name](len(runs)).double()
        estimator.load_state_dict({k: v[runs] if v.dim() else v for k, v in initial.items()})
        leaves = [p[runs].clone().requires_grad_() for p in parameters]
        generators = [torch.Generator().manual_seed(r) for r in runs]
        for _ in range(2):
            loss = estimator(family(leaves), lambda z: z[..., 0].sum(-1) ** 2, generator=generators)
            loss.mean(1).sum().backward()
        named = {n: p.grad for n, p in estimator.named_parameters()}
        return {
            **named,
            **dict(estimator.named_buffers()),
            **{str(i): p.grad for i, p in enumerate(leaves)},
        }  # type: ignore[dict-item]

    together = learn([0, 1, 2])
    for r in range(R):
        for key, value in learn([r]).items():
            expected = together[key][r : r + 1] if together[key].dim() else together[key]
            torch.testing.assert_close(value, expected, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_an_empty_batch_has_an_empty_loss(family_name: str, name: str) -> None:
    family, make = FAMILIES[family_name]
    leaves = [p.expand(0, *p.shape).clone().requires_grad_() for p in make(2, 3)]
    estimator = EVERY[name](2, 3).double()
    loss = estimator(family(leaves), lambda z: z[..., 0].sum(-1))
    assert loss.shape == (0,)
    loss.sum().backward()
    learned = [p.grad for p in estimator.parameters() if p.grad is not None]
    assert all((x == 0).all() for x in learned)
    assert all(x.isfinite().all() for x in estimator.state_dict().values()), "nothing is learned"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family_name", FAMILIES)
def test_a_call_in_inference_mode_leaves_nothing_behind(family_name: str, name: str) -> None:
    family, make = FAMILIES[family_name]
    parameters = [p.expand(5, *p.shape) for p in make(2, 3)]
    estimator = EVERY[name](2, 3).double()
    with torch.inference_mode():
        torch.manual_seed(1)
        value = estimator(family(parameters), lambda z: z[..., 0].sum(-1))
    fresh = EVERY[name](2, 3).double()
    with torch.no_grad():
        torch.manual_seed(1)
        torch.testing.assert_close(value, fresh(family(parameters), lambda z: z[..., 0].sum(-1)))
    for module in (estimator, *estimator.children()):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    estimator.load_state_dict(fresh.state_dict())
    leaves = [p.clone().requires_grad_() for p in parameters]
    estimator(family(leaves), lambda z: z[..., 0].sum(-1)).sum().backward()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, DOUBLE], ids=str)
def test_categories_in_half_precision(dtype: torch.dtype, name: str) -> None:
    estimator = EVERY[name](2, 3)
    logits = torch.randn(4, 2, 3).to(dtype).requires_grad_()
    if estimator.needs is not E.Needs.PROBABILITIES:
        pytest.skip("needs a relaxation")
    seen = []

    def f(b: Tensor) -> Tensor:
        seen.append(b.dtype)
        return b[..., 0].sum(-1)

    q = td.OneHotCategorical(logits=logits, validate_args=False)  # which would not bear float16
    estimator(q, f).sum().backward()
    assert set(seen) == {dtype}
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_torch_func_over_f_works_or_is_refused(transform: str, name: str) -> None:
    """Nothing of q is transformed then, and nothing may remain of the transform in the estimator."""
    estimator = EVERY[name](2, 3).double()
    q = GumbelSoftmax(0.5, logits=torch.randn(4, 2, 3, dtype=DOUBLE))
    weight = torch.randn(2, 3, dtype=DOUBLE)

    def loss(w: Tensor) -> Tensor:
        torch.manual_seed(1)
        return estimator(q, lambda z: (z * w).sum((-1, -2)) ** 2).sum()

    def call(f: Callable[[Tensor], Tensor]) -> Tensor:
        if transform == "grad":
            return torch.func.grad(f)(weight)
        return torch.func.vmap(f, randomness="different")(weight.expand(5, 2, 3))

    refused = isinstance(estimator, (E.Rebar, E.Relax, E.Rodeo, E.DoubleControlVariate))
    if refused or (name == "running mean" and transform == "vmap"):
        expected = (
            "takes derivatives on its way" if refused else "cannot learn under torch.func.vmap"
        )
        with pytest.raises(ValueError, match=expected):
            call(loss)
    else:
        found = call(loss)
        if transform == "grad":
            leaf = weight.clone().requires_grad_()
            expected = torch.autograd.grad(loss(leaf), leaf)[0]
            torch.testing.assert_close(found, expected)
    for value in estimator.state_dict().values():
        assert not torch._C._functorch.is_functorch_wrapped_tensor(value)
    assert loss(weight).isfinite()


@pytest.mark.parametrize("name", EVERY)
def test_torch_func_works_or_is_refused(name: str) -> None:
    estimator = EVERY[name](2, 3).double()
    logits = torch.randn(4, 2, 3, dtype=DOUBLE)

    def loss(logits: Tensor) -> Tensor:
        torch.manual_seed(1)
        return estimator(GumbelSoftmax(0.5, logits=logits), lambda z: z[..., 0].sum(-1) ** 2).sum()

    estimator.eval()  # a running mean, too, is the same at each call
    if isinstance(estimator, (E.Rebar, E.Relax, E.Rodeo, E.DoubleControlVariate)):
        with pytest.raises(ValueError, match=r"^q: \w+ takes derivatives on its way"):
            torch.func.grad(loss)(logits)
        return
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(
        torch.func.grad(loss)(logits), torch.autograd.grad(loss(leaf), leaf)[0]
    )


# ---------------------------------------------------------------------------------------------------------------------
# refusals follow from what is declared


PAGE = of_the_documentation("_estimators").declared()


@pytest.mark.parametrize("name", PAGE)
def test_what_cannot_work_is_refused_in_one_line(name: str) -> None:
    """Another distribution than is declared, more categories, fewer samples."""
    estimator = PAGE[name]
    kind = type(estimator).__name__
    loc, scale = torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
    flow = Planar(torch.ones(1), torch.ones(1), torch.tensor(0.0))
    plain = torch.distributions.OneHotCategorical(logits=torch.zeros(4, 1, 2))
    without = {
        E.Needs.SAMPLES: [plain],
        E.Needs.DENSITY: [plain],
        E.Needs.COUPLING: [plain, PlanarIGR(loc, scale, 0.5, flow)],
        E.Needs.PROBABILITIES: [
            PlanarIGR(loc, scale, 0.5, flow),
            torch.distributions.Normal(loc, scale),
        ],
    }[estimator.needs]
    cases = [(q, type(q).__name__) for q in without]
    if most := estimator.max_categories:
        more = GumbelSoftmax(0.5, logits=torch.zeros(4, 1, most + 1))
        cases.append((more, f"{kind} is for {most} categories, got {most + 1}"))
    for q, said in cases:
        with pytest.raises(ValueError, match=r"^q: ") as error:
            estimator(q, lambda z: z[..., 0].sum(-1))
        assert "\n" not in str(error.value)
        assert said in str(error.value)


LOC, ONE = torch.zeros(4, 1, 1), torch.ones(4, 1, 1)
EXACT = {
    "softmax": lambda: SoftmaxIGR(LOC, ONE, 0.5),
    "masked": lambda: SoftmaxIGR(LOC, ONE, 0.5, allowed=torch.tensor([True, True])),
    "gumbel": lambda: GumbelSoftmax(0.5, logits=torch.zeros(4, 1, 2)),
}
STICKS = {
    "sticks": lambda: igr.StickBreakingIGR(LOC, ONE, 0.5),
    "sharp sticks": lambda: SharpStickBreakingIGR(LOC, ONE, 0.5),
}
MAPS = {
    "map": lambda: igr.IGR(LOC, ONE, igr.SoftmaxPlusPlus(0.5)),
    "flow": lambda: PlanarIGR(LOC, ONE, 0.5, Planar(ONE[0, 0], ONE[0, 0], torch.tensor(0.0))),
}
OTHER_NOISE = {
    "laplace": lambda: igr.IGR.from_base(
        td.Independent(td.Laplace(LOC, ONE), 1), igr.SoftmaxPlusPlus(0.5)
    ),
}
CATEGORIES = {
    "categorical": lambda: td.OneHotCategorical(logits=torch.zeros(4, 1, 2)),
    "recovered": lambda: SoftmaxIGR(LOC, ONE, 0.5).discrete(),
}
OTHERS = {
    "indices": lambda: td.Categorical(logits=torch.zeros(4, 1, 2)),
    "torch's": lambda: td.RelaxedOneHotCategorical(torch.tensor(0.5), logits=torch.zeros(4, 1, 2)),
    "dirichlet": lambda: td.Dirichlet(torch.ones(4, 1, 2)),
    "normal": lambda: td.Normal(LOC, ONE),
    "nothing": lambda: None,
}
ALL = EXACT | STICKS | MAPS | OTHER_NOISE | CATEGORIES | OTHERS
TAKES = {
    E.Needs.SAMPLES: EXACT | STICKS | MAPS | OTHER_NOISE,
    E.Needs.DENSITY: EXACT | STICKS | MAPS,
    E.Needs.COUPLING: EXACT,
    E.Needs.PROBABILITIES: EXACT | STICKS | CATEGORIES,
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", PAGE)
def test_each_works_where_it_says_and_is_refused_in_one_line_elsewhere(
    name: str, kind: str
) -> None:
    estimator, q = PAGE[name], ALL[kind]()

    def call() -> Tensor:
        return estimator(q, lambda z: z[..., 0].sum(-1))

    if kind in TAKES[estimator.needs]:
        assert call().shape == (4,)
        return
    with pytest.raises(ValueError, match=r"^q: ") as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PAGE)
def test_too_few_samples_are_refused(name: str) -> None:
    """Of those that take a number of samples."""
    kind, least = type(PAGE[name]), PAGE[name].min_samples
    if kind is E.DisARM or kind is E.Enumerate:
        return
    given = {"prior": None} if kind is StickingTheLanding else {}
    if kind is Reinforce:
        given["baseline"] = PAGE[name].baseline
    if kind is E.Relax:
        given["control_variate"] = PAGE[name].control_variate
    with pytest.raises(ValueError, match=r"^num_samples: expected .*got \d+$"):
        kind(**given, num_samples=least - 1)
