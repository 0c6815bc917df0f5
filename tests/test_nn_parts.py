"""Heads at their start, priors, samples, codebooks, schedules: over shapes, dtypes and what programs do to modules."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Binomial,
    Categorical,
    Distribution,
    Geometric,
    OneHotCategorical,
    Poisson,
)
from torch.distributions import kl_divergence as torch_kl

import igr
from igr import nn

D = torch.float64
GAUSSIAN = [
    nn.SoftmaxIGRHead,
    nn.StickBreakingIGRHead,
    nn.SharpStickBreakingIGRHead,
    nn.PlanarIGRHead,
]
FIXED = [functools.partial(make, learn_scale=False) for make in GAUSSIAN]
HEADS: list[Any] = [*GAUSSIAN, nn.GumbelSoftmaxHead]
heads = pytest.mark.parametrize("make", HEADS)
heads_of_all_kinds = pytest.mark.parametrize("make", [*HEADS, *FIXED])


# --- heads ---------------------------------------------------------------------------------------------------------


@heads_of_all_kinds
@pytest.mark.parametrize("num_categories", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("in_features", [1, 16, 300])
def test_fresh_head_is_within_a_nat_of_its_prior(
    make: Any, num_categories: int, in_features: int
) -> None:
    """On unit-normal features, on average over 60 of them and 20 variables. The estimate for Gumbel-Softmax has a
    standard error of 0.02: it fails by chance less than once in a million."""
    torch.manual_seed(0)
    head = make(in_features, num_variables=20, num_categories=num_categories)
    q, p = head(torch.randn(60, in_features)), head.prior()()
    with torch.no_grad():
        kl = igr.kl_divergence(q, p, num_samples=2)
    assert kl.shape == (60, 20)
    assert -0.2 < kl.mean() < 0.5
    if make is nn.SoftmaxIGRHead:
        # Sum over K-1 of (E[loc^2] + E[s^2]) / 2 + E[s^2] / 2, with variances of gain^2 / (3 (K-1)).
        assert kl.mean().item() == pytest.approx(0.3**2 / 2, rel=0.35)
    if make is FIXED[0]:
        assert kl.mean().item() == pytest.approx(0.3**2 / 6, rel=0.35)


@pytest.mark.parametrize("make", FIXED)
def test_a_scale_that_is_not_learned_is_one(make: Any) -> None:
    head = make(6, num_variables=3, num_categories=4)
    assert head.affine.out_features == 3 * 3
    for q in (head(10 * torch.randn(5, 6)), head.prior()()):
        assert torch.equal(q.scale, torch.ones_like(q.loc))
    head(torch.randn(5, 6)).rsample()[..., 0].sum().backward()
    assert head.affine.weight.grad.any()


@heads_of_all_kinds
def test_gain_scales_the_weights(make: Any) -> None:
    torch.manual_seed(0)
    small = make(16, num_categories=10, gain=0.1)
    torch.manual_seed(0)
    large = make(16, num_categories=10, gain=1.0)
    torch.testing.assert_close(large.affine.weight, 10 * small.affine.weight)
    assert torch.equal(large.affine.bias, small.affine.bias)
    # sqrt(K-1) gives torch's own size of weights.
    like_torch = make(16, num_categories=10, gain=3.0).affine.weight
    assert 0.9 / 4 < like_torch.abs().max() <= 1 / 4


def test_weights_of_torchs_size_start_far_from_the_prior() -> None:
    """As the pages say: more than 100 nats for 20 variables of 10 categories, with the head's biases or torch's."""
    sizes = {"num_variables": 20, "num_categories": 10}
    large, drawn = nn.SoftmaxIGRHead(64, **sizes, gain=3.0), nn.SoftmaxIGRHead(64, **sizes)
    drawn.affine.reset_parameters()
    for head in (large, drawn):
        kl = igr.kl_divergence(head(torch.randn(200, 64)), head.prior()()).sum(-1)
        assert kl.mean() > 100


@heads_of_all_kinds
def test_a_single_variable_has_no_dimension(make: Any) -> None:
    head = make(6, num_categories=4)
    for batch in ((), (5,), (3, 2), (0,)):
        q = head(torch.randn(*batch, 6))
        assert q.batch_shape == batch
        assert q.rsample().shape == (*batch, 4)
        assert q.log_prob(q.rsample()).shape == batch
        assert igr.kl_divergence(q, head.prior()()).shape == batch


@heads_of_all_kinds
def test_sizes_go_by_name(make: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        make(6, 3, 4)
    shown = repr(make(6, num_variables=3, num_categories=4, temperature=0.25))
    for part in ("6", "num_variables=3", "num_categories=4", "temperature=0.25"):
        assert part in shown
    with pytest.raises(ValueError, match=r"features: expected shape \(\*, 6\), got \(2, 5\)"):
        make(6, num_categories=4)(torch.zeros(2, 5))


@heads
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D])
def test_device_and_dtype(make: Any, dtype: torch.dtype) -> None:
    head = make(6, num_variables=3, num_categories=4, dtype=dtype, device="cpu")
    assert {p.dtype for p in head.parameters()} == {dtype}
    assert head(torch.randn(5, 6).to(dtype)).rsample().dtype == dtype
    assert head.prior()().rsample().dtype == dtype
    meta = make(6, num_variables=3, num_categories=4, device="meta")
    assert meta(torch.zeros(5, 6, device="meta")).rsample().shape == (5, 3, 4)
    assert repr(meta)
    real = meta.to_empty(device="cpu")
    real.reset_parameters()
    assert torch.equal(real.affine.bias, make(6, num_variables=3, num_categories=4).affine.bias)
    skipped = torch.nn.utils.skip_init(make, 6, num_categories=4, dtype=dtype)
    assert skipped.affine.weight.dtype == dtype


@heads_of_all_kinds
def test_temperature_can_be_set(make: Any) -> None:
    head = make(6, num_variables=3, num_categories=4)
    prior = head.prior()
    for value in (0.25, torch.tensor([0.1, 0.2, 0.3])):
        head.temperature = value
        assert head.temperature is value
        assert prior.schedule.temperature is value
        head(torch.randn(2, 6)).rsample()
    with pytest.raises(ValueError, match="temperature: expected a positive"):
        head.temperature = -1.0
    head = make(6, num_categories=4, temperature=nn.LearnedTemperature(0.5))
    with pytest.raises(ValueError, match=r"follows a LearnedTemperature; set head\.schedule"):
        head.temperature = 0.1
    head.schedule = nn.ConstantTemperature(0.1)
    assert head.temperature == 0.1


@heads_of_all_kinds
@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor([0.5])])
def test_a_parameter_is_no_constant_temperature(make: Any, value: torch.Tensor) -> None:
    """It became one of the module's own, twice, under names that no state could be loaded into."""
    head, parameter = make(6, num_categories=4), torch.nn.Parameter(value)
    constant = head.schedule
    for attempt in (
        lambda: make(6, num_categories=4, temperature=parameter),
        lambda: nn.ConstantTemperature(parameter),
        lambda: setattr(head, "temperature", parameter),
        lambda: setattr(constant, "temperature", parameter),
        lambda: head.prior(temperature=parameter),
    ):
        with pytest.raises(ValueError, match=r"got a Parameter; igr\.nn\.LearnedTemperature"):
            attempt()
    assert head.temperature == 0.5
    learned = make(6, num_categories=4, temperature=nn.LearnedTemperature(parameter))
    head = make(6, num_categories=4, temperature=nn.LearnedTemperature(value))
    head.load_state_dict(learned.state_dict())


@heads_of_all_kinds
def test_states_of_numbers_and_tensors_fit(make: Any) -> None:
    """A constant temperature is what the head was made with; version 0.1 saved it where it was a tensor."""
    number = make(6, num_categories=4, temperature=0.5)
    tensor = make(6, num_categories=4, temperature=torch.tensor(0.25))
    number.load_state_dict(tensor.state_dict())
    assert number.temperature == 0.5
    old = {**number.state_dict(), "schedule.tensor": torch.tensor(0.75)}
    tensor.load_state_dict(old)
    assert tensor.temperature == 0.25


# --- priors --------------------------------------------------------------------------------------------------------


@heads
@pytest.mark.parametrize("temperature", [0.3, "tensor", "annealed", "learned"])
def test_prior_is_tied_to_its_head(make: Any, temperature: Any) -> None:
    schedule: Any = {
        "tensor": torch.tensor([0.1, 0.2, 0.3]),
        "annealed": nn.CosineTemperature(1.0, 0.1, 4),
        "learned": nn.LearnedTemperature(0.5),
    }.get(temperature, temperature)
    head = make(6, num_variables=3, num_categories=4, temperature=schedule).double()
    if make is nn.PlanarIGRHead:
        torch.nn.init.normal_(head.flow.u)
    prior = head.prior()
    x = torch.randn(5, 6, dtype=D)
    for _ in range(2):
        q, p = head(x), prior()
        assert type(q) is type(p)
        if make is nn.GumbelSoftmaxHead:
            assert torch.equal(p.probs, torch.full((*p.batch_shape, 4), 0.25, dtype=D))
        else:
            # Tied: the divergence is that of the Gaussians, whatever temperature and flow.
            expected = igr.functional.gaussian_kl(q.loc, q.scale, p.loc, p.scale)
            torch.testing.assert_close(torch_kl(q, p), expected)
            torch.testing.assert_close(torch_kl(head(0 * x), p), torch.zeros(5, 3, dtype=D))
        if isinstance(schedule, nn.TemperatureSchedule):
            schedule.step()
    assert not [name for name, _ in prior.named_parameters() if name in ("loc", "scale", "logits")]


@heads
def test_prior_of_a_target(make: Any) -> None:
    target = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    head = make(6, num_variables=3, num_categories=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", igr.priors.OutOfReachWarning)
        prior = head.prior(target, temperature=0.1)
    p = prior()
    assert p.batch_shape == (3,)
    if make in (nn.SoftmaxIGRHead, nn.SharpStickBreakingIGRHead, nn.GumbelSoftmaxHead):
        torch.testing.assert_close(p.discrete().probs, target, atol=1e-5, rtol=1e-4)
    if make is nn.PlanarIGRHead:
        without = igr.SoftmaxIGR(p.loc, p.scale, 0.1)
        torch.testing.assert_close(without.discrete().probs, target, atol=1e-5, rtol=1e-4)
    head.temperature = 0.7
    assert prior.schedule.temperature == 0.1
    assert igr.kl_divergence(head(torch.randn(5, 6)), p).shape == (5, 3)


@heads_of_all_kinds
@pytest.mark.filterwarnings("ignore::igr.priors.OutOfReachWarning")
@pytest.mark.parametrize("num_variables", [None, 3])
def test_prior_of_a_target_that_does_not_fit(num_variables: int | None, make: Any) -> None:
    head = make(6, num_variables=num_variables, num_categories=4)
    batches = [(), (num_variables,)] if num_variables else [()]
    for batch in batches:
        head.prior(torch.full((*batch, 4), 0.25))()
    for wrong in ((5,), (3,), (2, 4), (7, 3, 4)):
        with pytest.raises(
            ValueError, match=r"^target: expected probabilities \(4,\) or, for each"
        ):
            head.prior(torch.full(wrong, 1 / wrong[-1]))


@heads_of_all_kinds
@pytest.mark.parametrize("counts", [Poisson(3.0), Geometric(0.3), Binomial(3, torch.tensor(0.4))])
def test_prior_of_counts(counts: Distribution, make: Any) -> None:
    """Of infinitely many the first K, with a warning; as many as there are categories otherwise."""
    probs = counts.log_prob(torch.arange(4.0)).exp()
    head = make(6, num_variables=3, num_categories=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [head.prior(counts)]
        if make is nn.SoftmaxIGRHead:
            found.append(nn.Prior(igr.SoftmaxIGR, counts, 0.1, num_categories=4))
        expected = head.prior(probs / probs.sum())
    cut = ["lies beyond 4 categories" in str(warning.message) for warning in caught]
    assert sum(cut) == (0 if isinstance(counts, Binomial) else len(found))
    for prior in found:
        torch.testing.assert_close(dict(prior.named_buffers()), dict(expected.named_buffers()))


@pytest.mark.parametrize("make", [nn.StickBreakingIGRHead, nn.PlanarIGRHead])
def test_heads_that_rule_nothing_out_say_so(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^allowed: \w+IGR cannot rule categories out"):
        make(6, num_categories=4)(torch.zeros(6), allowed=torch.ones(4) > 0)


def test_a_prior_that_was_not_called() -> None:
    head = nn.SoftmaxIGRHead(6, num_categories=4)
    q = head(torch.zeros(6))
    for divergence in (igr.kl_divergence, igr.monte_carlo_kl):
        with pytest.raises(
            ValueError, match=r"^p: expected a distribution, got Prior; call the module"
        ):
            divergence(q, head.prior())
    with pytest.raises(ValueError, match=r"^q: expected a relaxation, got Prior; call the module"):
        igr.plug_in_kl(head.prior(), Categorical(torch.ones(4)))
    with pytest.raises(ValueError, match=r"^q: expected a relaxation, got Normal$"):
        igr.plug_in_kl(torch.distributions.Normal(0.0, 1.0), Categorical(torch.ones(4)))
    for name, call in (("p0", igr.plug_in_kl), ("p", igr.kl_divergence)):
        with pytest.raises(ValueError, match=rf"^{name}: expected a shape that broadcasts"):
            call(head(torch.zeros(2, 6)), Categorical(torch.ones(3, 4)))


def test_prior_of_a_family() -> None:
    for family in (igr.SoftmaxIGR, igr.SharpStickBreakingIGR, igr.GumbelSoftmax):
        prior = nn.Prior(family, 4, temperature=0.5, dtype=D)
        p = prior()
        assert type(p) is family
        assert prior.state_dict().keys() <= {"loc", "scale", "logits"}
        torch.testing.assert_close(
            p.discrete().probs, torch.full((4,), 0.25, dtype=D), atol=1e-5, rtol=0
        )
    target = Categorical(torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(
        nn.Prior(igr.SoftmaxIGR, target, nn.LinearTemperature(1, 0.5, 2))().discrete().probs,
        target.probs,
    )
    with pytest.raises(ValueError, match=r"target: expected a whole number of at least 2, got 1"):
        nn.Prior(igr.SoftmaxIGR, 1, temperature=0.5)
    with pytest.raises(ValueError, match=r"igr\.nn\.CountableParameters is such a module"):
        nn.Prior(igr.CountableIGR, 4, temperature=0.5)
    with pytest.raises(ValueError, match=r"^temperature: expected a positive"):
        nn.Prior(igr.SoftmaxIGR, 4, temperature=0.0)


@heads
def test_model_with_a_prior_is_copied_saved_and_moved(make: Any) -> None:
    """Copies share among themselves what head and prior share, and nothing with the original."""
    model = torch.nn.Module()
    model.head = make(6, num_variables=3, num_categories=4, temperature=nn.LearnedTemperature(0.5))
    model.prior = model.head.prior()
    x = torch.randn(5, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.prior.schedule is other.head.schedule
        assert other.prior.schedule is not model.head.schedule
        if make is nn.PlanarIGRHead:
            assert other.prior.family.flow is other.head.flow
        assert len(list(other.parameters())) == len(list(model.head.parameters()))
        other.to(D)
        q, p = other.head(x.to(D)), other.prior()
        assert q.rsample().dtype == p.rsample().dtype == D
    fresh = make(6, num_variables=3, num_categories=4, temperature=nn.LearnedTemperature(0.9))
    second = torch.nn.Module()
    second.head, second.prior = (
        fresh,
        fresh.prior(torch.tensor([0.1, 0.2, 0.3, 0.4]) if make is nn.SoftmaxIGRHead else None),
    )
    second.load_state_dict(model.state_dict())
    if make is nn.SoftmaxIGRHead:
        assert torch.equal(second.prior.loc, model.prior.loc)
    assert second.prior().temperature == 0.5 if make is nn.SoftmaxIGRHead else True
    meta = copy.deepcopy(model).to("meta")
    assert meta.prior().rsample().is_meta


def test_trained_prior_of_a_planar_head_moves_with_the_flow() -> None:
    head = nn.PlanarIGRHead(6, num_variables=3, num_categories=4)
    prior = head.prior()
    z = prior().rsample((20,)).square().sum()
    z.backward()
    assert head.flow.u.grad is not None
    assert head.flow.u.grad.abs().sum() > 0


# --- divergence ----------------------------------------------------------------------------------------------------


def test_divergence_picks_the_closed_form_or_an_estimate() -> None:
    torch.manual_seed(0)
    a = igr.SoftmaxIGR(torch.randn(5, 3), torch.ones(3), 0.5)
    b = igr.SoftmaxIGR(torch.zeros(3), torch.ones(3), 0.7)
    g = igr.GumbelSoftmax(0.5, logits=torch.randn(4))
    assert torch.equal(igr.kl_divergence(a, b), torch_kl(a, b))
    for q, p in ((a, g), (g, a), (g, g), (a, igr.SharpStickBreakingIGR(b.loc, b.scale, 0.5))):
        with pytest.raises(NotImplementedError):
            torch_kl(q, p)
        torch.manual_seed(1)
        found = igr.kl_divergence(q, p, num_samples=3)
        torch.manual_seed(1)
        assert torch.equal(found, igr.monte_carlo_kl(q, p, 3))
    with pytest.raises(ValueError, match="num_samples: expected a whole number of at least 1"):
        igr.kl_divergence(g, g, num_samples=0)
    normal = torch.distributions.Normal(0.0, 1.0)
    assert igr.kl_divergence(normal, normal) == 0


@pytest.mark.parametrize("kind", [Categorical, OneHotCategorical])
def test_divergence_from_categories_is_that_of_the_recovered_ones(kind: Any) -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    q = igr.SoftmaxIGR(torch.randn(5, 3, dtype=D), torch.ones(3, dtype=D), 0.5)
    p = kind(probs)
    alpha = q.discrete().probs
    forward = (alpha * (alpha / probs).log()).sum(-1)
    backward = (probs * (probs / alpha).log()).sum(-1)
    torch.testing.assert_close(igr.kl_divergence(q, p), forward)
    torch.testing.assert_close(igr.plug_in_kl(q, p), forward)
    torch.testing.assert_close(igr.kl_divergence(p, q), backward)
    for other in (Categorical(alpha), OneHotCategorical(alpha), q.discrete()):
        torch.testing.assert_close(igr.kl_divergence(other, p), forward)
    with pytest.raises(ValueError, match=r"^p: expected 4 categories, as q has, got 3"):
        igr.kl_divergence(q, kind(torch.ones(3)))


# --- samples -------------------------------------------------------------------------------------------------------


@heads
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D])
def test_sample_is_soft_in_training_and_hard_in_evaluation(make: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = make(6, num_variables=2, num_categories=3, dtype=dtype)(torch.randn(4, 6).to(dtype))
    layer = nn.Sample()
    torch.manual_seed(1)
    z = layer(q)
    torch.manual_seed(1)
    assert torch.equal(z, q.rsample())
    layer.eval()
    hard = layer(q)
    assert hard.dtype == dtype
    assert not hard.requires_grad
    assert torch.equal(hard.sum(-1), torch.ones(4, 2, dtype=dtype))
    if make is not nn.PlanarIGRHead:  # whose probabilities are estimated
        assert torch.equal(hard, layer(q))
        assert torch.equal(hard.argmax(-1), q.discrete().probs.argmax(-1))


def test_sample_in_its_other_forms() -> None:
    q = igr.SoftmaxIGR(torch.zeros(3, requires_grad=True), torch.ones(3), 0.5)
    layer = nn.Sample(straight_through=True, random=True)
    for training in (True, False):
        layer.train(training)
        drawn = torch.stack([layer(q) for _ in range(400)])
        assert drawn.unique().tolist() == [0.0, 1.0]
        assert drawn.requires_grad == training
        # Four binomial standard errors and a half: 1 in 30,000 for the four categories twice.
        p = q.discrete().probs.detach()
        assert ((drawn.mean(0) - p).abs() < 4.5 * (p * (1 - p) / 400).sqrt()).all()
    masked = igr.SoftmaxIGR(
        torch.tensor([5.0, 0.0]), torch.ones(2), 0.5, allowed=torch.tensor([False, True, True])
    )
    assert nn.Sample().eval()(masked)[0] == 0
    counted = igr.CountableIGR(nn.CountableParameters(4, loc=3.0), 0.5)
    assert nn.Sample().eval()(counted).argmax() == 0


@heads
def test_straight_through_returns_the_relaxed_sample_too(make: Any) -> None:
    q = make(6, num_variables=2, num_categories=3)(torch.randn(4, 6))
    torch.manual_seed(1)
    hard, relaxed = q.straight_through((5,), return_relaxed=True)
    torch.manual_seed(1)
    assert torch.equal(hard, q.straight_through((5,)))
    assert torch.equal(hard.detach(), q.hard(relaxed).detach())
    w = torch.randn_like(hard)
    grads = [
        torch.autograd.grad(
            (w * z).sum(),
            q.base_dist.base_dist.loc if hasattr(q, "base_dist") else q.logits,
            retain_graph=True,
        )[0]
        for z in (hard, relaxed)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("straight_through", [False, True])
def test_sample_of_what_is_no_relaxation(train: bool, straight_through: bool) -> None:
    q = igr.SoftmaxIGR(torch.zeros(5, 2), torch.ones(5, 2), 0.5)
    sample = nn.Sample(straight_through=straight_through).train(train)
    for given in (torch.zeros(3), q.discrete(), torch.distributions.Independent(q, 1)):
        with pytest.raises(ValueError, match=f"q: expected a relaxation.*{type(given).__name__}"):
            sample(given)


# --- codebooks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_variables", [None, 1, 3])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5), (0,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D])
def test_codebook_looks_up_hard_codes_and_mixes_relaxed_ones(
    num_variables: int | None, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    codebook = nn.Codebook(num_variables, 4, dim=6, dtype=dtype)
    variables = () if num_variables is None else (num_variables,)
    index = torch.randint(4, (*batch, *variables))
    hard = torch.nn.functional.one_hot(index, 4).to(dtype)
    assert torch.equal(codebook(hard), codebook.lookup(index))
    assert codebook.lookup(index).shape == (*batch, *variables, 6)
    for kind in (torch.uint8, torch.int32):
        assert torch.equal(codebook.lookup(index.to(kind)), codebook.lookup(index))
        assert torch.equal(codebook(hard.to(kind)), codebook(hard))
    z = torch.rand(*batch, *variables, 4, dtype=dtype)
    weight = codebook.weight if num_variables is not None else codebook.weight.unsqueeze(0)
    expected = (z.reshape(-1, num_variables or 1, 4, 1) * weight).sum(-2)
    torch.testing.assert_close(
        codebook(z).reshape(expected.shape),
        expected,
        rtol=2e-2 if dtype is torch.bfloat16 else 1e-5,
        atol=2e-2 if dtype is torch.bfloat16 else 1e-5,
    )
    assert codebook.usage(hard).shape == (*variables, 4)
    assert codebook.perplexity(hard).shape == variables


def test_codebook_counts_what_is_in_use() -> None:
    codebook = nn.Codebook(2, 4, dim=6)
    probs = torch.tensor([[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], [[0, 1.0, 0, 0], [0, 0, 0.5, 0.5]]])
    torch.testing.assert_close(
        codebook.usage(probs), torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    )
    torch.testing.assert_close(codebook.perplexity(probs), torch.tensor([2.0, 4.0]))
    # (N K - sum of perplexities) / (N K), as it is written in fairseq.
    assert codebook.diversity_loss(probs).item() == pytest.approx((8 - 6) / 8)
    p = probs.clone().requires_grad_()
    codebook.diversity_loss(p).backward()
    assert p.grad is not None
    assert p.grad.isfinite().all()
    logits = torch.randn(50, 2, 4, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: nn.Codebook(2, 4, 6, dtype=D).diversity_loss(x.softmax(-1)), (logits,)
    )


@pytest.mark.parametrize("num_variables", [None, 3])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32, D])
@pytest.mark.parametrize("codes", [torch.float16, torch.bfloat16, torch.float32, D, torch.int64])
def test_codes_of_another_dtype(
    codes: torch.dtype, weights: torch.dtype, num_variables: int | None
) -> None:
    book = nn.Codebook(num_variables, 4, 6, dtype=weights)
    index = torch.tensor([3, 0, 2])[: num_variables or 1].expand(5, -1)
    index = index if num_variables else index[..., 0]
    onehot = torch.nn.functional.one_hot(index, 4).to(codes)
    assert torch.equal(book(onehot), book.lookup(index))


@pytest.mark.parametrize("num_variables", [None, 3])
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D])
def test_no_codes_use_nothing(
    num_variables: int | None, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    book = nn.Codebook(num_variables, 4, 6)
    shape = book.weight.shape[:-1]
    codes = torch.zeros(*batch, *shape, dtype=dtype, requires_grad=True)
    assert torch.equal(book.usage(codes), torch.zeros(shape, dtype=book.usage(codes).dtype))
    loss = book.diversity_loss(codes)
    loss.backward()
    assert loss == 0.75


def test_diversity_loss_spreads_the_use() -> None:
    torch.manual_seed(0)
    head = nn.SoftmaxIGRHead(8, num_variables=2, num_categories=5)
    with torch.no_grad():
        head.affine.bias.view(2, 2, 4)[:, 0, 0] += 3
    codebook = nn.Codebook(2, 5, dim=3)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
    x = torch.randn(64, 8)
    before = codebook.perplexity(head(x).discrete().probs)
    for _ in range(60):
        optimiser.zero_grad()
        codebook.diversity_loss(head(x).discrete().probs).backward()
        optimiser.step()
    after = codebook.perplexity(head(x).discrete().probs)
    assert (before < 2).all()
    assert (after > 4.8).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Codebook(0, 4, 6), "num_variables: expected a whole number of at least 1"),
        (lambda: nn.Codebook(2, 1, 6), "num_categories: expected a whole number of at least 2"),
        (lambda: nn.Codebook(2, 4, 0), "dim: expected a whole number"),
        (lambda: nn.Codebook(2, 4, 6)(torch.ones(5, 4)), r"codes: expected shape \(\*, 2, 4\)"),
        (lambda: nn.Codebook(2, 4, 6).lookup(torch.ones(5, 2)), "indices: expected whole numbers"),
        (lambda: nn.Codebook(2, 4, 6).lookup(torch.ones(5).long()), r"indices: expected shape"),
        (lambda: nn.Codebook(2, 4, 6).lookup([0, 1]), "indices: expected a tensor .*got list"),
        (lambda: nn.Codebook(None, 2, 6)([0.5, 0.5]), r"codes: expected shape \(\*, 2\), got list"),
        (
            lambda: nn.Codebook(2, 4, 6).lookup(torch.tensor([0, -1])),
            "indices: expected from 0 to 3",
        ),
        (lambda: nn.Codebook(None, 4, 6).lookup(torch.tensor(4)), "indices: expected from 0 to 3"),
        (
            lambda: nn.Codebook(None, 4, 6).usage(torch.ones(5, 3)),
            r"codes: expected shape \(\*, 4\)",
        ),
    ],
)
def test_codebook_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- schedules -----------------------------------------------------------------------------------------------------

ANNEALED = [nn.LinearTemperature, nn.ExponentialTemperature, nn.CosineTemperature]
KINDS: list[Any] = [
    5,
    0.05,
    torch.tensor(5),
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=D),
    torch.tensor(0.5, dtype=torch.float16),
    torch.tensor([0.5, 5.0]),
]


def numpy_kinds() -> list[Any]:
    numpy = pytest.importorskip("numpy")
    return [numpy.float32(0.5), numpy.float64(0.5), numpy.int64(5), numpy.array(0.5)]


@pytest.mark.parametrize("make", ANNEALED)
def test_schedules_take_all_kinds_of_numbers(make: Any) -> None:
    for start in KINDS + numpy_kinds():
        for end in KINDS + numpy_kinds():
            schedule = make(start, end, 4)
            values = []
            for _ in range(6):
                values.append(schedule.temperature)
                schedule.step()
            tensors = [x for x in (start, end) if isinstance(x, Tensor)]
            floats = [x.dtype if x.is_floating_point() else torch.float32 for x in tensors]
            dtype = torch.float32
            if floats:
                dtype = torch.promote_types(floats[0], floats[-1])
            assert {value.dtype for value in values} == {dtype}
            rtol = 2e-3 if dtype is torch.float16 else 1e-5
            for value, expected in ((values[0], start), (values[4], end), (values[5], end)):
                expected = torch.as_tensor(expected, dtype=D).expand(value.shape)
                torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
            igr.SoftmaxIGR(torch.zeros(2, 2), torch.ones(2), values[2]).rsample()


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    **{make.__name__: lambda value, make=make: make(value, value, 4) for make in ANNEALED},  # type: ignore[misc]
    "LearnedTemperature": nn.LearnedTemperature,
    "KLWarmup": lambda value: nn.KLWarmup(4, value, value),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, D])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_schedules_share_nothing_and_begin_anew(
    shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> None:
    given = torch.full(shape, 0.5, dtype=dtype)
    first, second = SCHEDULES[name](given), SCHEDULES[name](given)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    first.load_state_dict({key: value + 1 for key, value in before.items()})
    assert (given == 0.5).all()
    assert all(torch.equal(second.state_dict()[key], value) for key, value in before.items())
    given.fill_(7.0)
    first.reset_parameters()
    assert all(torch.equal(first.state_dict()[key], value) for key, value in before.items())


def test_other_schedules_take_all_kinds_of_numbers() -> None:
    for value in KINDS + numpy_kinds():
        for make in (nn.ConstantTemperature, nn.LearnedTemperature):
            found = torch.as_tensor(make(value).temperature, dtype=D)
            torch.testing.assert_close(found, torch.as_tensor(value, dtype=D), rtol=1e-3, atol=0)
            assert not isinstance(make(value).temperature, int)
        head = nn.SoftmaxIGRHead(3, num_variables=2, num_categories=3, temperature=value)
        head(torch.zeros(4, 3)).rsample()


def test_schedules_keep_their_precision_over_long_runs() -> None:
    for dtype, steps in ((D, 10**7), (torch.float16, 10**6)):
        start, end = torch.tensor(1.0, dtype=dtype), torch.tensor(0.5, dtype=dtype)
        schedule = nn.LinearTemperature(start, end, steps)
        schedule.steps += steps // 4
        assert schedule.temperature.item() == 0.875
        schedule.steps += steps
        assert schedule.temperature.item() == 0.5


def test_kl_warmup() -> None:
    warmup = nn.KLWarmup(4)
    found = []
    for _ in range(6):
        found.append(warmup().item())
        assert warmup.weight == warmup()
        warmup.step()
    assert found == [0, 0.25, 0.5, 0.75, 1, 1]
    second = nn.KLWarmup(4)
    second.load_state_dict(warmup.state_dict())
    assert second.weight == 1
    stack = nn.KLWarmup(2, torch.zeros(2), torch.tensor([1.0, 4.0]))
    stack.step()
    assert stack.weight.tolist() == [0.5, 2.0]
    assert repr(warmup) == "KLWarmup(0, 1, num_steps=4)"


# --- programs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [*HEADS[:1], *(pytest.param(h, marks=pytest.mark.slow) for h in HEADS[1:])]
)
def test_a_whole_step_compiles(make: Any) -> None:
    """Head, prior, divergence, sample and codebook in one program, at two batch sizes."""
    torch.manual_seed(0)
    head = make(6, num_variables=2, num_categories=3)
    prior, sample, codebook = head.prior(), nn.Sample(), nn.Codebook(2, 3, 4)
    warmup = nn.KLWarmup(4)

    def loss(x: Tensor) -> Tensor:
        q = head(x)
        kl = igr.kl_divergence(q, prior()).sum(-1)
        return (codebook(sample(q)).square().sum((-1, -2)) + warmup() * kl).mean()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for size in (5, 7):
        x = torch.randn(size, 6)
        torch.manual_seed(1)
        expected = loss(x)
        torch.manual_seed(1)
        found = compiled(x)
        torch.testing.assert_close(found, expected)
        warmup.step()


@heads
def test_stacked_heads_under_vmap(make: Any) -> None:
    models = [make(6, num_variables=2, num_categories=3) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(5, 6)

    def run(parameters: Any, buffers: Any) -> tuple[Tensor, Tensor]:
        q = torch.func.functional_call(models[0], (parameters, buffers), (x,))
        p = models[0].prior()()
        return nn.Sample()(q), igr.kl_divergence(q, p)

    z, kl = torch.func.vmap(run, randomness="different")(parameters, buffers)
    assert z.shape == (3, 5, 2, 3)
    assert kl.shape == (3, 5, 2)
    if make in (nn.SoftmaxIGRHead, nn.StickBreakingIGRHead, nn.SharpStickBreakingIGRHead):
        for i, model in enumerate(models):
            torch.testing.assert_close(kl[i], igr.kl_divergence(model(x), model.prior()()))


def test_every_example_of_the_documentation_runs() -> None:
    """One after the other, as printed; the autoencoder learns with the defaults."""
    text = (Path(__file__).parent.parent / "docs" / "modules.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["codes"].flatten(1).unique(dim=0).shape[0] >= 12
    assert (names["reconstructed"] == names["data"].bool()).float().mean() > 0.9
    torch.testing.assert_close(names["same"], names["codebook"](names["codes"]))
    assert names["vectors"].shape == (16, 4, 8)
