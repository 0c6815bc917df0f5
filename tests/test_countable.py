"""Countably infinite support: samples of their own length, parameters that grow, errata E4 and E5."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Poisson, kl_divergence

import igr
from igr import CountableIGR, functional
from igr.countable import PrecisionWarning
from igr.nn import CountableParameters

D = torch.float64
CLOSINGS = {
    "sharpen": igr.Sharpen,
    "paper": igr.SoftmaxPlusPlus,
    "paper, delta": functools.partial(igr.SoftmaxPlusPlus, delta=0.5),
}
closings = pytest.mark.parametrize("closing", CLOSINGS.values(), ids=CLOSINGS.keys())


def some_parameters(n: int = 12, dtype: torch.dtype = D) -> CountableParameters:
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(n, dtype=dtype, generator=generator) - 0.5
    return CountableParameters(4, loc=loc, scale=0.7, dtype=dtype)


@closings
def test_samples_are_those_of_the_finite_form_with_their_own_number_of_breaks(closing: Any) -> None:
    parameters = some_parameters()
    parameters.grow(64)  # the noise of a draw comes in one piece where it need not grow
    q = CountableIGR(parameters, 0.3, closing)
    torch.manual_seed(4)
    z = q.rsample((200,))
    torch.manual_seed(4)
    noise = q._noise((200,))[0]
    assert q.num_used is not None
    assert z.shape == (200, int(q.num_used.max()) + 1)
    for i in range(200):
        k = int(q.num_used[i])
        loc, scale = parameters.values(k)
        y = loc + scale * noise[i, :k]
        # The rule of the cut, by the plain products of (16).
        u = torch.sigmoid(y)
        w = u * torch.cat([torch.ones(1, dtype=D), torch.cumprod(1 - u, 0)[:-1]])
        assert w[:-1].sum() <= parameters.precision < w.sum()
        finite = igr.Compose([igr.StickBreaking(), closing(0.3)])(y)
        assert torch.allclose(z[i, : k + 1], finite, rtol=1e-12, atol=1e-15)
        assert (z[i, k + 1 :] == 0).all()
    assert (z.sum(-1) - 1).abs().max() < 1e-12


@closings
def test_only_the_coordinates_used_get_a_gradient(closing: Any) -> None:
    parameters = some_parameters()
    parameters.grow(32)
    q = CountableIGR(parameters, 0.3, closing)
    z = q.rsample((5,))
    assert q.num_used is not None
    most = int(q.num_used.max())
    (z * torch.randn_like(z)).sum().backward()
    gradients = [p.grad for p in parameters.parameters()]
    held = 0
    for block in parameters.parameters():
        size = block.shape[0] // 2
        if held >= most:
            assert block.grad is None
        else:
            used = min(size, most - held)
            gradient = block.grad.view(2, size)
            assert (gradient[:, :used] != 0).all()
            assert (gradient[:, used:] == 0).all()
        held += size
    assert any(g is None for g in gradients)


def test_blocks_beyond_what_is_asked_for_stay_out_of_the_graph() -> None:
    parameters = CountableParameters(4)
    parameters.grow(16)
    parameters(4)[0].sum().backward()
    assert [p.grad is None for p in parameters._held()] == [False, True, True]


@closings
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1, 0.05])
def test_density_of_own_samples_agrees_with_that_of_points(
    closing: Any, temperature: float
) -> None:
    q = CountableIGR(some_parameters(), temperature, closing)
    log_z, log_prob = q.rsample_log_and_log_prob((500,))
    assert log_prob.isfinite().all()
    assert torch.allclose(q.log_prob(log_value=log_z), log_prob, rtol=1e-6, atol=1e-6)


def test_density_sums_and_integrates_to_one() -> None:
    """Importance sampling from another of the family: within 4.5 standard errors, 1 seed in 150,000 fails."""
    q = CountableIGR(some_parameters(), 0.5)
    loc = some_parameters().prior_loc + 0.1
    p = CountableIGR(CountableParameters(16, loc=loc, scale=0.85, dtype=D), 0.5)
    log_z, log_p = p.rsample_log_and_log_prob((20_000,))
    weights = (q.log_prob(log_value=log_z) - log_p).exp()
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / 20_000**0.5
    assert weights.std() / 20_000**0.5 < 0.05


def test_points_outside_the_image_have_no_density() -> None:
    q = CountableIGR(some_parameters(), 0.5)
    z = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.5, 0.0, 0.4, 0.1], [1.0, 0.0, 0.0, 0.0]], dtype=D)
    # Much is left of the stick; a zero in between; nothing is left.
    assert (q.log_prob(z) == -torch.inf).all()


def test_paper_sum_diverges_and_sharpen_needs_no_cut() -> None:
    """E4: the denominator of (18) grows with each coordinate; that of Sharpen has a limit."""
    sizes = (10, 1_000, 100_000)
    paper, sharp = [], []
    for n in sizes:
        log_w = functional.log_stick_breaking(torch.full((n,), -1.0, dtype=D))[:-1]
        paper.append(float((log_w.exp() / 0.3).exp().sum()))
        sharp.append(float((log_w / 0.3).exp().sum()))
    assert all(total >= n for total, n in zip(paper, sizes, strict=True))
    assert sharp[1] == pytest.approx(sharp[2], abs=1e-12)
    assert max(sharp) <= 1
    # What the cut leaves out is bounded by the entry for what is left.
    q = CountableIGR(some_parameters(), 0.5)
    log_z = q.rsample_log((100,))
    assert q.num_used is not None
    rest = log_z.gather(-1, q.num_used.unsqueeze(-1)).exp().squeeze(-1)
    torch.manual_seed(8)
    loc, scale = q.parameters.values(60)  # type: ignore[union-attr]
    for i in range(100):
        k = int(q.num_used[i])
        first = functional.log_sharpen_inverse(log_z[i, : k + 1], 0.5)
        y = loc + scale * torch.randn(60, dtype=D)
        y[:k] = functional.log_stick_breaking_inverse(first)
        whole = functional.log_sharpen(functional.log_stick_breaking(y), 0.5).exp()
        assert whole[k:].sum() <= rest[i] * (1 + 1e-9)


def test_paper_map_never_chooses_what_is_left() -> None:
    """E5: with a maximum of one break (18) always chooses the first; Sharpen chooses both."""
    pair = (torch.tensor([0.0]), torch.tensor([1.0]))
    paper = CountableIGR(pair, 0.05, igr.SoftmaxPlusPlus)
    sharp = CountableIGR(pair, 0.05)
    with pytest.warns(PrecisionWarning):
        log_z = paper.rsample_log((2000,))
    mistaken = paper.hard(log_value=log_z).mean(0)
    with pytest.warns(PrecisionWarning):
        log_z = sharp.rsample_log((2000,))
    mended = sharp.hard(log_value=log_z).mean(0)
    assert mistaken.tolist() == [1.0, 0.0]
    assert abs(mended[0] - 0.5) < 4.5 * 0.5 / 2000**0.5


@closings
def test_recovered_distribution(closing: Any) -> None:
    """Exact against counted, within 4.5 standard errors and what may win beyond the cut."""
    q = CountableIGR(some_parameters(), 0.2, closing)
    counted = q.discrete(num_samples=20_000)
    with torch.no_grad():
        exact = q.discrete()
    assert exact.standard_error is None
    assert counted.standard_error is not None
    assert exact.probs.sum() == pytest.approx(1)
    off = (counted.probs - exact.probs).abs()
    floor = (exact.probs.clamp_max(0.5) / 20_000).sqrt() + 1 / 20_000
    assert (off < 4.5 * torch.maximum(counted.standard_error, floor) + 1e-4).all()


def test_kl_is_that_of_the_gaussians_and_zero_where_not_visited() -> None:
    q, p = some_parameters(), some_parameters()
    with torch.no_grad():
        q.block0[:4] += torch.tensor([0.3, -0.2, 0.1, 0.5])
    kl = kl_divergence(CountableIGR(q, 0.3), CountableIGR(p, 0.3))
    by_hand = ((q.loc - p.loc) / 0.7).square().sum() / 2
    assert torch.allclose(kl, by_hand)
    q.grow(64)
    assert torch.allclose(kl_divergence(CountableIGR(q, 0.3), CountableIGR(p, 0.3)), by_hand)
    assert torch.allclose(kl_divergence(CountableIGR(p, 0.3), CountableIGR(q, 0.3)), by_hand)
    with pytest.raises(NotImplementedError, match="maps onto the simplex differ"):
        kl_divergence(CountableIGR(q, 0.3), CountableIGR(p, 0.3, igr.SoftmaxPlusPlus))
    other = CountableParameters(4, loc=1.0, dtype=D)
    with pytest.raises(ValueError, match="different priors"):
        kl_divergence(CountableIGR(q, 0.3), CountableIGR(other, 0.3))


def test_kl_agrees_with_monte_carlo_where_the_cut_is_late() -> None:
    """The cut sample has seen all coordinates that differ: within 4.5 standard errors."""
    q, p = some_parameters(), some_parameters()
    with torch.no_grad():
        q.block0[:2] += torch.tensor([0.4, -0.3])
        for parameters in (q, p):
            parameters.block0[:2] -= 3.0
    a, b = CountableIGR(q, 0.4), CountableIGR(p, 0.4)
    log_z, log_q = a.rsample_log_and_log_prob((20_000,))
    terms = log_q - b.log_prob(log_value=log_z)
    kl = kl_divergence(a, b)
    assert abs(terms.mean() - kl) < 4.5 * terms.std() / 20_000**0.5


@pytest.mark.parametrize("initial", [4, 7, 64])
def test_saved_with_any_number_of_blocks(initial: int) -> None:
    source = some_parameters()
    source.grow(40)
    with torch.no_grad():
        for p in source.parameters():
            p += torch.randn_like(p)
    target = CountableParameters(initial, dtype=D)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file))
    assert torch.equal(target.loc, source.loc)
    assert torch.equal(target.scale, source.scale)
    assert torch.equal(target.prior(50)[0], source.prior(50)[0])


def test_copies_are_separate() -> None:
    parameters = some_parameters()
    seen: list[int] = []
    parameters.on_grow(seen.append)
    for other in (copy.deepcopy(parameters), pickle.loads(pickle.dumps(parameters))):
        other.grow(32)
        assert torch.equal(other.loc[:4], parameters.loc)
        assert parameters.num_coordinates == 4
    assert seen == []
    parameters.grow(9)
    assert seen == [8, 16]
    frozen = copy.deepcopy(parameters.requires_grad_(False))
    frozen.grow(64)
    assert not any(p.requires_grad for p in frozen.parameters())
    q = pickle.loads(pickle.dumps(CountableIGR(parameters, 0.3)))
    assert q.rsample((3,)).shape[0] == 3


def test_batched_parameters_come_as_tensors() -> None:
    loc = torch.randn(6, 40, dtype=D).requires_grad_()
    scale = torch.ones(6, 40, dtype=D)
    temperature = torch.full((2, 1), 0.3, dtype=D)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = CountableIGR((loc, scale), temperature, precision=0.9)
        z, log_prob = q.rsample_and_log_prob((5,))
    assert q.batch_shape == (2, 6)
    assert z.shape[:-1] == log_prob.shape == (5, 2, 6)
    assert q.num_used is not None
    assert q.num_used.shape == (5, 2, 6)
    assert torch.allclose(z.sum(-1), torch.ones(5, 2, 6, dtype=D))
    (z[..., 0].sum() + log_prob.sum()).backward()
    assert loc.grad is not None
    assert loc.grad.isfinite().all()
    most = q.num_used.amax((0, 1))
    position = torch.arange(40)
    assert (loc.grad[position >= most.unsqueeze(-1)] == 0).all()
    p = CountableIGR(CountableParameters(4, dtype=D), temperature, precision=None)
    kl = kl_divergence(q, CountableIGR(p.parameters, temperature))
    assert torch.allclose(kl, 0.5 * loc.square().sum(-1).expand(2, 6))
    assert q.expand((3, 2, 6)).rsample().shape[:-1] == (3, 2, 6)


@pytest.mark.parametrize("learned", [True, False])
def test_running_past_a_maximum_says_by_how_much(learned: bool) -> None:
    loc, scale = torch.full((8,), -2.0), torch.ones(8)
    parameters: Any = (
        CountableParameters(4, maximum=8, loc=loc, scale=scale) if learned else (loc, scale)
    )
    q = CountableIGR(parameters, 0.5)
    with pytest.warns(
        PrecisionWarning,
        match=r"^at least 100% of the samples .* of 8 coordinates: more than 0\.1 of",
    ):
        z = q.rsample((50,))
    assert z.shape == (50, 9)
    assert q.num_coordinates == 8
    assert z.sum(-1).sub(1).abs().max() < 1e-6
    assert q.event_shape == (9,)


def test_running_past_a_maximum_is_not_said_at_every_step() -> None:
    torch.manual_seed(0)
    q = CountableIGR((torch.zeros(8), torch.ones(8)), 0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(30):
            q.rsample((1000,))
    # The share is some 10%, above or below from one step to the next, and what is left some 0.1.
    assert 1 <= len(caught) <= 4


def test_a_stick_that_is_never_used_up_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="do not reach the precision"):
        CountableIGR(CountableParameters(2**19, loc=-100.0), 0.5).rsample()


@closings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_low_temperatures_and_half_precision(
    closing: Any, dtype: torch.dtype, temperature: float
) -> None:
    parameters = some_parameters(dtype=dtype)
    q = CountableIGR(parameters, temperature, closing)
    z, log_prob = q.rsample_and_log_prob((500,))
    assert z.dtype == dtype
    assert z.isfinite().all()
    assert log_prob.isfinite().all()
    (z.float().square().mean() + log_prob.mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters.parameters())


def test_a_temperature_can_be_learned() -> None:
    temperature = torch.tensor(0.5, dtype=D, requires_grad=True)

    def total(temperature: Tensor) -> Tensor:
        torch.manual_seed(2)
        return CountableIGR(some_parameters(), temperature).rsample((20,)).square().sum()

    (found,) = torch.autograd.grad(total(temperature), temperature)
    with torch.no_grad():
        expected = (total(temperature + 1e-6) - total(temperature - 1e-6)) / 2e-6
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_straight_through_and_hard() -> None:
    q = CountableIGR(some_parameters(), 0.1)
    hard = q.straight_through((100,))
    assert torch.allclose(hard.sum(-1), torch.ones(100, dtype=D))
    assert set(hard.detach().round(decimals=9).unique().tolist()) == {0.0, 1.0}
    assert hard.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CountableParameters(0), "initial: expected"),
        (lambda: CountableParameters(4, maximum=2), "maximum: expected"),
        (lambda: CountableParameters(precision=1.0), "precision: expected"),
        (lambda: CountableParameters(scale=0.0), "scale: expected"),
        (lambda: CountableIGR(CountableParameters(), 0.0), "temperature: expected"),
        (lambda: CountableIGR(CountableParameters(), 1.5), "temperature: expected"),
        (lambda: CountableIGR(CountableParameters(), 0.5, precision=0.9), "precision: expected"),
        (lambda: CountableIGR((torch.zeros(3), torch.zeros(3)), 0.5), "scale: expected"),
        (lambda: CountableIGR((torch.zeros(3), torch.ones(2)), 0.5), "expected shapes"),
        (lambda: CountableIGR(CountableParameters(), 0.5).discrete(0), "num_samples: expected"),
        (lambda: CountableIGR(CountableParameters(), 0.5).log_prob(), "exactly one"),
        (
            lambda: CountableIGR((torch.zeros(3).int(), torch.ones(3)), 0.5),
            "loc: expected floating",
        ),
        (lambda: CountableIGR((torch.zeros(3), [1.0]), 0.5), "scale: expected a tensor"),  # type: ignore[arg-type]
        (
            lambda: CountableIGR((torch.zeros(2, 3), torch.ones(3)), torch.ones(3)),
            "temperature: expected a shape",
        ),
        (
            lambda: CountableIGR((torch.zeros(2, 3), torch.ones(3)), 0.5).expand((3,)),
            "batch_shape: expected",
        ),
        (
            lambda: CountableIGR((torch.zeros(2, 3), torch.ones(3)), 0.5).expand(()),
            "batch_shape: expected",
        ),
    ],
)
def test_errors_name_the_argument(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "bad",
    [[0.6, 0.9], [0.6, 0.2], [1.2, -0.2], [float("nan"), 0.5]],
    ids=["above", "below", "negative", "nan"],
)
def test_density_is_of_points_of_the_simplex(bad: list[float]) -> None:
    for q in (
        CountableIGR((torch.zeros(2), torch.ones(2)), 0.5),
        CountableIGR(some_parameters(), 0.5),
    ):
        z = torch.tensor(bad, dtype=q.loc.dtype)
        with pytest.raises(ValueError, match=r"^value: expected points of the simplex"):
            q.log_prob(z)
        with pytest.raises(ValueError, match="log_value: expected points of the simplex"):
            q.log_prob(log_value=z.log())
    with pytest.raises(ValueError, match="value: expected shape"):
        q.log_prob(torch.ones(1, dtype=D))
    unchecked = CountableIGR((torch.zeros(2), torch.ones(2)), 0.5, validate_args=False)
    unchecked.log_prob(torch.tensor(bad))


@closings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_density_takes_all_of_its_own_samples(
    closing: Any, dtype: torch.dtype, temperature: float
) -> None:
    """Rounding in any dtype is no fault of the caller's."""
    q = CountableIGR(some_parameters(dtype=dtype), temperature, closing)
    assert not q.log_prob(q.rsample((2000,))).isnan().any()
    log_z = q.rsample_log((2000,))
    assert not q.log_prob(log_value=log_z).isnan().any()
    assert not q.log_prob(log_value=log_z.to(dtype)).isnan().any()


@closings
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("sample", [(), (3,), (0,)])
def test_empty_batches_and_draws(
    closing: Any, batch: tuple[int, ...], sample: tuple[int, ...]
) -> None:
    loc = torch.zeros(*batch, 5, requires_grad=True)
    batched = CountableIGR((loc, torch.ones(5)), 0.5, closing, precision=0.5)
    shared = CountableIGR(CountableParameters(4), 0.5, closing)
    for q, shape in ((batched, (*sample, *batch)), (shared, (0, *sample)), (shared, (*sample, 0))):
        drawn = sample if q is batched else shape
        z, log_prob = q.rsample_and_log_prob(drawn)
        assert z.shape[:-1] == log_prob.shape == q.log_prob(z).shape == shape
        assert q.sample(drawn).shape[:-1] == shape
        assert q.straight_through(drawn).shape[:-1] == shape
        assert q.num_used is not None
        assert q.num_used.shape == shape
        (z.sum() + log_prob.sum()).backward()
    assert loc.grad is not None
    assert kl_divergence(batched, CountableIGR(CountableParameters(4), 0.5, closing)).shape == batch


def test_under_vmap_and_on_meta_tensors_there_is_a_clear_refusal() -> None:
    def draw(loc: Tensor) -> Tensor:
        return CountableIGR((loc, torch.ones(3)), 0.5).rsample()

    with pytest.raises(NotImplementedError, match="give it a batch of parameters instead"):
        torch.func.vmap(draw, randomness="different")(torch.zeros(4, 3))
    parameters = CountableParameters(4, device="meta")
    parameters.grow(9)
    assert parameters.loc.shape == (16,)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        CountableIGR(parameters, 0.5).rsample()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's
def test_compiled_with_breaks() -> None:
    parameters = CountableParameters(4, loc=-1.0, dtype=D)
    parameters.grow(256)  # noise comes in one piece where it need not grow

    def draw(size: Tensor) -> Tensor:
        return CountableIGR(parameters, 0.5).rsample((size.shape[0],))

    compiled = torch.compile(draw, backend="eager")
    for size in (5, 7):
        torch.manual_seed(0)
        expected = draw(torch.zeros(size))
        torch.manual_seed(0)
        # compiled code has formulas of its own
        torch.testing.assert_close(compiled(torch.zeros(size)), expected, rtol=1e-12, atol=1e-14)


def test_fits_poisson_from_scratch_by_growing() -> None:
    """What is learned needs more coordinates than there were: blocks come, and a KL to a prior stays finite."""
    parameters = CountableParameters(4)
    prior = CountableParameters(4)
    target = Poisson(torch.tensor(6.0))
    igr.priors.fit(
        lambda: CountableIGR(parameters, 0.3), parameters, target, num_steps=60, every=60
    )
    assert parameters.num_coordinates > 4
    kl = kl_divergence(CountableIGR(parameters, 0.3), CountableIGR(prior, 0.3))
    assert 0 < kl < 1e3


@pytest.mark.parametrize("given", [torch.zeros(4), (torch.zeros(4),), None, 3])
def test_what_is_no_parameters_is_said_so(given: object) -> None:
    with pytest.raises(
        ValueError, match=r"parameters: expected igr.nn.CountableParameters, or a pair"
    ):
        igr.CountableIGR(given, 0.3)  # type: ignore[arg-type]


# Batches


def _pair(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, 4, dtype=D), torch.rand(*batch, 4, dtype=D) + 0.5


@pytest.mark.parametrize(
    "parameters", [some_parameters, _pair, lambda: _pair(3), lambda: _pair(2, 1)]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
@pytest.mark.parametrize("expanded", [(), (3,), (5, 2, 3)])
@closings
def test_every_quantity_has_the_batch_shape(
    closing: Any, parameters: Any, shape: tuple[int, ...], expanded: tuple[int, ...]
) -> None:
    q = CountableIGR(parameters(), torch.full(shape, 0.5, dtype=D), closing)
    if expanded:
        if torch.broadcast_shapes(q.batch_shape, expanded) != expanded:
            pytest.skip("no batch that this one expands to")
        q = q.expand(expanded)
    batch = q.batch_shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        log_z, log_prob = q.rsample_log_and_log_prob((2,))
    n = q.num_coordinates
    assert q.loc.shape == q.scale.shape == (*batch, n)
    assert log_prob.shape == (2, *batch) == q.log_prob(log_value=log_z).shape
    assert q.probs.shape == q.mode.shape == (*batch, n + 1)
    p = CountableIGR(q.parameters, q.temperature, closing)
    for kl in (kl_divergence(q, q), kl_divergence(q, p), kl_divergence(p, q)):
        torch.testing.assert_close(kl, torch.zeros(batch, dtype=D))


def test_batches_that_do_not_fit_have_no_divergence() -> None:
    q, p = (CountableIGR(_pair(n), 0.5) for n in (2, 3))
    with pytest.raises(ValueError, match="q, p: expected a shape that broadcasts"):
        kl_divergence(q, p)


@closings
def test_divergence_between_maps_that_cut_elsewhere_is_infinite_at_every_call(closing: Any) -> None:
    """Whatever either has come to hold."""
    for makes in ((some_parameters, some_parameters), (_pair, some_parameters), (_pair, _pair)):
        q, p = (CountableIGR(make(), t, closing) for make, t in zip(makes, (0.5, 0.8), strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrecisionWarning)
            for _ in range(3):
                assert igr.kl_divergence(q, p, num_samples=200) == torch.inf


# Validation, recovery, parameters


@pytest.mark.parametrize("checked", [False, True])
def test_values_are_checked_where_that_is_asked_for(checked: bool) -> None:
    """Whatever torch's default is."""
    torch.distributions.Distribution.set_default_validate_args(not checked)
    zero, one, hot = torch.zeros(3), torch.ones(3), torch.tensor(1.5)
    for make in (
        lambda: CountableIGR((zero, -one), 0.5, validate_args=checked),
        lambda: CountableIGR((zero / 0, one), 0.5, validate_args=checked),
        lambda: CountableIGR((zero, one), hot, validate_args=checked),
        lambda: CountableIGR((zero, one), -hot, validate_args=checked),
        lambda: igr.VertexInterpolation(hot, validate_args=checked),
        lambda: igr.VertexInterpolation(-hot, validate_args=checked),
    ):
        if checked:
            with pytest.raises(ValueError, match="expected"):
                make()
        else:
            make()
    torch.distributions.Distribution.set_default_validate_args(checked)
    igr.VertexInterpolation(torch.tensor(0.5))
    if not checked:
        igr.VertexInterpolation(hot)
    with pytest.raises(ValueError, match="temperature: expected values in"):
        igr.VertexInterpolation(1.5)  # numbers cost nothing to check
    q = CountableIGR((zero + 9, one), 0.5, validate_args=checked)
    assert q.discrete()._validate_args is q.discrete(5)._validate_args is checked


@pytest.mark.parametrize("num_samples", [1, 2, 300])
def test_recovery_by_samples_is_never_certain_and_grows_on_the_way(num_samples: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        q = CountableIGR(CountableParameters(1, loc=-1.0, dtype=D), 0.5)
        found = q.discrete(num_samples)
        assert found.probs.shape == q.event_shape
        torch.testing.assert_close(found.probs.sum(), torch.ones((), dtype=D))
        assert (found.standard_error > 0).all()
        counts = found.probs * num_samples
        torch.testing.assert_close(counts, counts.round())


@pytest.mark.parametrize("prior", [{}, {"loc": torch.tensor([0.5, -0.5, 1.0]), "scale": 0.7}])
@pytest.mark.parametrize("maximum", [None, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, D])
def test_parameters_are_reset_to_what_they_were_made_with(
    prior: dict[str, Any], maximum: int | None, dtype: torch.dtype
) -> None:
    def make(**options: Any) -> CountableParameters:
        return CountableParameters(3, maximum=maximum, dtype=dtype, **prior, **options)

    fresh, grown = make(), make()
    grown.grow(20)
    for parameter in grown.parameters():
        parameter.data.add_(1)
    with torch.device("meta"):
        empty = make()
    other = CountableParameters(3, maximum=maximum, loc=torch.randn(7), dtype=dtype)
    loaded = make()
    loaded.load_state_dict(other.state_dict())
    for module in (grown, make(device="meta").to_empty(device="cpu"), loaded, copy.deepcopy(grown)):
        module.reset_parameters()
        for name, value in fresh.state_dict().items():
            assert torch.equal(module.state_dict()[name], value)
        assert len(module.state_dict()) == len(fresh.state_dict())
        module.grow(20)
    if not prior:  # tensors that are made on meta have no values
        empty.to_empty(device="cpu").reset_parameters()
        assert torch.equal(empty.loc, fresh.loc)


def test_parameters_made_in_inference_mode_can_be_used_and_trained() -> None:
    with torch.inference_mode():
        parameters = CountableParameters(1, loc=torch.full((2,), -1.0), scale=0.5)
        assert parameters.loc.shape == (1,)
        q = CountableIGR(parameters, 0.5)
        assert q.rsample((3,)).shape[0] == 3
        matched = igr.match(Poisson(3.0), CountableIGR, 0.5)
        assert matched.rsample((3,)).shape[0] == 3
    parameters.reset_parameters()
    for r in (q, matched):
        assert isinstance(r.parameters, CountableParameters)
        optimizer = torch.optim.SGD(r.parameters.parameters(), lr=0.1)
        r.parameters.requires_grad_()
        r.rsample((3,))[..., 0].sum().backward()
        optimizer.step()
