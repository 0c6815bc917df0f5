"""Heads, the learnable planar flow, and temperature schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import igr
from igr import nn

HEADS = [
    nn.SoftmaxIGRHead,
    nn.StickBreakingIGRHead,
    nn.SharpStickBreakingIGRHead,
    nn.PlanarIGRHead,
    nn.GumbelSoftmaxHead,
]
MASKABLE = [nn.SoftmaxIGRHead, nn.SharpStickBreakingIGRHead, nn.GumbelSoftmaxHead]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("batch", [(), (5,), (3, 4)])
def test_head_shapes_and_gradients(make: type[nn.Head], batch: tuple[int, ...]) -> None:
    head = make(6, num_variables=3, num_categories=4)
    features = torch.randn(*batch, 6, requires_grad=True)
    q = head(features)
    assert q.batch_shape == (*batch, 3)
    assert q.event_shape == (4,)
    z = q.rsample()
    (z * torch.randn_like(z)).sum().backward()
    for name, p in [*head.named_parameters(), ("features", features)]:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", HEADS)
def test_head_is_one_affine_map(make: type[nn.Head]) -> None:
    """The parameters are affine in the features; scale is the exponential of an output."""
    head = make(6, num_variables=3, num_categories=4).double()
    a, b = torch.randn(2, 6, dtype=torch.float64)

    def outputs(x: Tensor) -> Tensor:
        q = head(x)
        return q.logits if isinstance(q, igr.GumbelSoftmax) else torch.cat([q.loc, q.scale.log()])

    middle = outputs(0.25 * a + 0.75 * b)
    torch.testing.assert_close(middle, 0.25 * outputs(a) + 0.75 * outputs(b))


@pytest.mark.parametrize(
    "make", [nn.SoftmaxIGRHead, nn.PlanarIGRHead, nn.SharpStickBreakingIGRHead]
)
def test_head_starts_near_uniform(make: type[nn.Head]) -> None:
    """At features of zero: softmax++ starts hard-uniform, stick-breaking with pieces of equal means."""
    q = make(6, num_variables=2, num_categories=10).double()(torch.zeros(6, dtype=torch.float64))
    assert torch.equal(q.scale, torch.ones_like(q.scale))
    if make is nn.SharpStickBreakingIGRHead:
        # E[w_k] = E[u_k] prod_j<k E[1 - u_j], over the quantiles of the noise.
        noise = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
        share = torch.sigmoid(q.loc[0].unsqueeze(-1) + noise).mean(-1)
        pieces = share * torch.cat([share.new_ones(1), torch.cumprod(1 - share, 0)[:-1]])
        torch.testing.assert_close(pieces, torch.full_like(pieces, 0.1), rtol=1e-6, atol=0)
    else:
        # P(last) = Phi(-loc)^9 and the others share the rest by symmetry.
        p_last = torch.special.ndtr(-q.loc).prod(-1)
        torch.testing.assert_close(p_last, torch.full_like(p_last, 0.1), rtol=1e-6, atol=0)
        torch.testing.assert_close(q.loc[0, 0].item(), -0.753, atol=1e-3, rtol=0)


@pytest.mark.parametrize("make", MASKABLE)
def test_head_takes_allowed(make: type[nn.Head]) -> None:
    head = make(6, num_variables=3, num_categories=4)
    allowed = torch.tensor([[True, True, False, True], [True, False, True, False], [True] * 4])
    z = head(torch.randn(50, 6), allowed=allowed).rsample()
    assert bool((z[:, ~allowed] == 0).all())
    assert bool((z[:, allowed] > 0).any())


@pytest.mark.parametrize("make", HEADS)
def test_head_temperature_may_be_number_tensor_or_schedule(make: type[nn.Head]) -> None:
    assert make(6, num_variables=3, num_categories=4, temperature=0.3).temperature == 0.3
    per_variable = make(
        6, num_variables=3, num_categories=4, temperature=torch.tensor([0.1, 0.5, 1.0])
    )
    assert per_variable(torch.randn(7, 6)).rsample().shape == (7, 3, 4)
    schedule = nn.LinearTemperature(1.0, 0.5, 2)
    head = make(6, num_variables=3, num_categories=4, temperature=schedule)
    schedule.step()
    assert head.temperature == 0.75
    assert "schedule.steps" in head.state_dict()


@pytest.mark.parametrize("make", HEADS)
def test_learned_temperature_gets_a_gradient(make: type[nn.Head]) -> None:
    head = make(6, num_variables=3, num_categories=4, temperature=nn.LearnedTemperature(0.7))
    z = head(torch.randn(8, 6)).rsample()
    (z * z).sum().backward()
    assert isinstance(head.schedule, nn.LearnedTemperature)
    grad = head.schedule.log_temperature.grad
    assert grad is not None
    assert grad.isfinite()
    assert grad != 0


@pytest.mark.parametrize("make", HEADS)
def test_state_dict_round_trip(make: type[nn.Head]) -> None:
    torch.manual_seed(1)
    first, second = (
        make(6, num_variables=3, num_categories=4),
        make(6, num_variables=3, num_categories=4),
    )
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 6)
    torch.manual_seed(2)
    a = first(x).rsample()
    torch.manual_seed(2)
    assert torch.equal(a, second(x).rsample())


BAD_HEADS = [
    ({"in_features": 0}, "in_features: expected a whole number of at least 1, got 0"),
    ({"num_variables": -1}, "num_variables: expected a whole number of at least 1, got -1"),
    ({"num_categories": 1}, "num_categories: expected a whole number of at least 2, got 1"),
    ({"gain": 0.0}, "gain: expected a positive finite number, got 0.0"),
    ({"temperature": 0.0}, "temperature: expected a positive finite number above 1e-16, got 0.0"),
]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("bad, message", BAD_HEADS)
def test_head_errors(make: type[nn.Head], bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"in_features": 6, "num_variables": 3, "num_categories": 4, **bad})


@pytest.mark.parametrize("num_coordinates", [1, 9])
def test_planar_flow_starts_near_the_identity(num_coordinates: int) -> None:
    flow = nn.PlanarFlow(num_coordinates, num_flows=2, batch_shape=(20,)).double()
    y = torch.randn(100, 20, num_coordinates, dtype=torch.float64)
    moved = (flow(y) - y).norm(dim=-1)
    # Each flow moves y by at most |u^|, which is of the order of the noise on u: 0.01 sqrt(K-1).
    assert moved.max() < 2 * 5 * 0.01 * math.sqrt(num_coordinates)
    assert moved.min() > 0


def test_planar_flow_is_invertible_whatever_its_parameters() -> None:
    flow = nn.PlanarFlow(4, num_flows=3, batch_shape=(6,)).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=3.0)
    y = 3 * torch.randn(200, 6, 4, dtype=torch.float64)
    x = y
    log_det = torch.zeros(200, 6, dtype=torch.float64)
    for t in flow.transforms():
        x, before = t(x), x
        log_det = log_det + t.log_abs_det_jacobian(before, x)
    assert torch.equal(x, flow(y))
    # A map whose Jacobian keeps its sign is one to one; its log agrees with the flows' own.
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow(v.expand(6, 4))[0]))(y[:, 0])
    sign, value = torch.linalg.slogdet(jacobian)
    assert bool((sign > 0).all())
    torch.testing.assert_close(value, log_det[:, 0], rtol=1e-6, atol=1e-8)


def test_planar_flow_fits_the_functional_form_and_the_distribution() -> None:
    flow = nn.PlanarFlow(4, batch_shape=(3,))
    loc, scale, noise = torch.randn(5, 3, 4), torch.rand(5, 3, 4) + 0.1, torch.randn(5, 3, 4)
    z = igr.functional.planar_igr_softmax(loc, scale, flow, 0.4, noise=noise)
    g = igr.PlanarIGR(loc, scale, 0.4, flow.transforms()).transform
    torch.testing.assert_close(z, g(loc + scale * noise))


def test_flows_of_a_module_are_the_same_maps_each_time() -> None:
    flow, other = nn.PlanarFlow(3), nn.PlanarFlow(3)
    first, second = flow.transforms()
    assert flow.transforms() == [first, second]
    assert first != second
    assert first != other.transforms()[0]
    other.load_state_dict(flow.state_dict())
    assert first == other.transforms()[0]  # by value


def test_planar_flow_learns() -> None:
    """A flow can be fitted: it makes a two-peaked target likelier than a normal can."""
    torch.manual_seed(3)
    flow = nn.PlanarFlow(1, num_flows=2)
    target = torch.cat([torch.randn(256, 1) * 0.3 - 1.5, torch.randn(256, 1) * 0.3 + 1.5])
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        x, log_det = target, torch.zeros(512)
        for t in flow.transforms():
            x, before = t(x), x
            log_det = log_det + t.log_abs_det_jacobian(before, x)
        loss = (0.5 * x.square().sum(-1) - log_det).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.2


SCHEDULES = {
    "linear": (nn.LinearTemperature, lambda f: 1.0 + (0.1 - 1.0) * f),
    "exponential": (nn.ExponentialTemperature, lambda f: 0.1**f),
    "cosine": (nn.CosineTemperature, lambda f: 0.1 + 0.45 * (1 + math.cos(math.pi * f))),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_annealed_schedules(name: str) -> None:
    make, formula = SCHEDULES[name]
    schedule = make(1.0, 0.1, num_steps=8)
    for i in range(12):
        expected = formula(min(i / 8, 1.0))
        torch.testing.assert_close(float(schedule.temperature), expected, rtol=1e-5, atol=0)
        assert schedule() == schedule.temperature
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_annealed_schedule_resumes_from_its_state(name: str) -> None:
    make, _ = SCHEDULES[name]
    first = make(1.0, 0.1, num_steps=8)
    for _ in range(3):
        first.step()
    second = make(2.0, 0.5, num_steps=8)
    second.load_state_dict(first.state_dict())
    assert second.temperature == first.temperature


@pytest.mark.parametrize("name", SCHEDULES)
def test_annealed_schedule_for_a_stack_of_runs(name: str) -> None:
    make, _ = SCHEDULES[name]
    start, end = torch.tensor([1.0, 0.5]).view(2, 1, 1), torch.tensor([0.1, 0.5]).view(2, 1, 1)
    stack = make(start, end, num_steps=4)
    single = make(1.0, 0.1, num_steps=4)
    for _ in range(2):
        stack.step()
        single.step()
    torch.testing.assert_close(
        stack.temperature.flatten(), torch.stack([single.temperature, torch.tensor(0.5)])
    )
    q = igr.SoftmaxIGR(torch.zeros(2, 5, 3, 4), torch.ones(4), stack.temperature)
    assert q.batch_shape == (2, 5, 3)


def test_constant_temperature() -> None:
    schedule = nn.ConstantTemperature(0.5)
    schedule.step()
    assert schedule() == 0.5
    tensor = torch.tensor([0.1, 0.2])
    assert torch.equal(nn.ConstantTemperature(tensor).temperature, tensor)


def test_learned_temperature_stays_positive_under_any_optimiser() -> None:
    schedule = nn.LearnedTemperature(1.0)
    optimiser = torch.optim.SGD(schedule.parameters(), lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        (10 * schedule.temperature).backward()
        optimiser.step()
        schedule.step()
    assert 0 < schedule.temperature.item() < 0.1


BAD_SCHEDULES = [
    (lambda: nn.LinearTemperature(0.0, 1.0, 5), "start: expected a positive"),
    (lambda: nn.CosineTemperature(1.0, -1.0, 5), "end: expected a positive"),
    (
        lambda: nn.ExponentialTemperature(1.0, 0.5, 0),
        "num_steps: expected a whole number of at least",
    ),
    (lambda: nn.LinearTemperature(1.0, 0.5, 2.5), "num_steps: expected a whole number of at least"),
    (
        lambda: nn.LinearTemperature("1", 0.5, 2),
        "start: expected a positive number or a tensor, got str",
    ),
    (lambda: nn.KLWarmup(5, start=-0.1), "start: expected non-negative"),
    (lambda: nn.KLWarmup(5, end="1"), "end: expected a number or a tensor, got str"),
    (lambda: nn.KLWarmup(0), "num_steps: expected a whole number"),
    (
        lambda: nn.ConstantTemperature([0.1]),
        "value: expected a positive number or a tensor, got list",
    ),
    (lambda: nn.ConstantTemperature(-1.0), "value: expected a positive"),
    (lambda: nn.LearnedTemperature(float("nan")), "initial: expected a positive"),
    (lambda: nn.PlanarFlow(0), "num_coordinates: expected a whole number of at least 1"),
    (lambda: nn.PlanarFlow(3, num_flows=0), "num_flows: expected a whole number of at least 1"),
]


@pytest.mark.parametrize("make, message", BAD_SCHEDULES)
def test_schedule_errors(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
