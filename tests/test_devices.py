"""The device of the arguments decides, not torch's default; modules made without data are made whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Poisson, kl_divergence

import igr
from cases import CASES, Case, parameters
from estimators.enumeration import EVERY, FAMILIES

PROBS = torch.softmax(parameters(6, (3,))[0], -1)
SCALE = parameters(5, (3,))[1]


def same_under_another_default(call: Callable[[], Any]) -> None:
    """Called once as it is and once where tensors without a device go to "meta", which has no values."""
    torch.manual_seed(0)
    expected = call()
    torch.manual_seed(0)
    with torch.device("meta"):
        found = call()
    assert tensors(found)
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    names = ("loc", "scale") if hasattr(value, "loc") else ("logits",)
    return [getattr(value, name) for name in names]


FORMS = [case for case in CASES if case.name not in ("pyro_spline", "zuko")]


@pytest.mark.parametrize("case", FORMS, ids=str)
def test_distributions(case: Case) -> None:
    q, p = case.some(batch=(3,)), case.some(batch=(3,), seed=1)
    z = q.rsample()
    same_under_another_default(lambda: q.expand((2, 3)).rsample())
    same_under_another_default(lambda: q.rsample_and_log_prob())
    same_under_another_default(lambda: [q.log_prob(z), q.hard(z), q.straight_through()])
    same_under_another_default(lambda: [q.mode, q.probs, q.entropy(num_samples=10)])
    same_under_another_default(lambda: igr.monte_carlo_kl(q, p, num_samples=10))
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return
    same_under_another_default(lambda: kl_divergence(q, p))


FAMILY = {
    "softmax": igr.SoftmaxIGR,
    "stick_breaking": igr.StickBreakingIGR,
    "sharp": igr.SharpStickBreakingIGR,
    "gumbel": igr.GumbelSoftmax,
}


@pytest.mark.filterwarnings("ignore::igr.priors.OutOfReachWarning")
@pytest.mark.parametrize("how", ["hard", "mean"])
@pytest.mark.parametrize("name", FAMILY)
def test_matching(name: str, how: Any) -> None:
    family = FAMILY[name]
    same_under_another_default(lambda: igr.match(PROBS[0], family, 2.0, how=how, num_samples=64))
    same_under_another_default(lambda: igr.nn.Prior(family, PROBS, 0.5)())
    if name != "gumbel":
        same_under_another_default(lambda: igr.match(PROBS, family, 0.5, scale=SCALE))
    if name in ("softmax", "sharp"):
        same_under_another_default(lambda: family.from_probs(PROBS, 0.5))


def test_matching_an_infinite_target() -> None:
    target = Poisson(torch.tensor(3.0))
    same_under_another_default(lambda: igr.match(target, igr.CountableIGR, 0.5))


HEADS = [
    igr.nn.SoftmaxIGRHead,
    igr.nn.StickBreakingIGRHead,
    igr.nn.SharpStickBreakingIGRHead,
    igr.nn.PlanarIGRHead,
    igr.nn.GumbelSoftmaxHead,
]


@pytest.mark.filterwarnings("ignore::igr.priors.OutOfReachWarning")
@pytest.mark.parametrize("make", HEADS)
def test_heads(make: type[igr.nn.Head]) -> None:
    x = torch.randn(2, 6)
    head = make(6, num_variables=3, num_categories=5)

    def drawn() -> Tensor:
        head.reset_parameters()
        return head.affine.weight

    same_under_another_default(drawn)
    same_under_another_default(lambda: make(6, num_categories=5, device="cpu").affine.bias)
    same_under_another_default(lambda: [head(x), head.prior()(), head.prior(PROBS[0])()])
    if make is not igr.nn.GumbelSoftmaxHead:
        same_under_another_default(lambda: kl_divergence(head(x), head.prior()()))


@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("name", [n for n in EVERY if n != "running mean"])
def test_estimators(name: str, family_name: str) -> None:
    family, make = FAMILIES[family_name]
    leaves = [p.expand(4, *p.shape).clone().requires_grad_() for p in make(2, 3)]
    estimator = EVERY[name](2, 3).double()

    def gradients() -> list[Tensor]:
        loss = estimator(family(leaves), lambda z: (z[..., 0].sum(-1) - 0.4) ** 2)
        return [loss, *torch.autograd.grad(loss.sum(), leaves)]

    same_under_another_default(gradients)


def test_estimators_stay_where_what_they_begin_with_is() -> None:
    start = torch.full((3, 1), 0.5)
    same_under_another_default(lambda: list(igr.estimators.Rebar(start, start).parameters()))
    same_under_another_default(
        lambda: list(igr.estimators.DoubleControlVariate(2, start).parameters())
    )


# ---------------------------------------------------------------------------------------------------------------------
# modules made without data

MODULES: dict[str, Callable[[], nn.Module]] = {
    **{
        make.__name__: lambda make=make: make(6, num_variables=3, num_categories=5)
        for make in HEADS
    },
    "prior": lambda: igr.nn.Prior(igr.SoftmaxIGR, 5, 0.5),
    "prior of a head": lambda: igr.nn.SharpStickBreakingIGRHead(6, num_categories=5).prior(),
    "constant": lambda: igr.nn.ConstantTemperature(0.5),
    "constants": lambda: igr.nn.ConstantTemperature(torch.ones(3, device="cpu")),
    "linear": lambda: igr.nn.LinearTemperature(1.0, 0.5, 10),
    "linear, a stack": lambda: igr.nn.LinearTemperature(torch.ones(3, device="cpu"), 0.5, 10),
    "exponential": lambda: igr.nn.ExponentialTemperature(1.0, 0.5, 10),
    "cosine": lambda: igr.nn.CosineTemperature(1.0, 0.5, 10),
    "learned": lambda: igr.nn.LearnedTemperature(0.5),
    "kl warmup": lambda: igr.nn.KLWarmup(10),
    "codebook": lambda: igr.nn.Codebook(3, 5, 4),
    "flow": lambda: igr.nn.PlanarFlow(4),
    "rebar": lambda: igr.estimators.Rebar(0.5, 0.7),
    "relax": lambda: igr.estimators.Relax(igr.estimators.ControlNetwork((2, 3)), 0.5),
    "double control variate": lambda: igr.estimators.DoubleControlVariate(2, 0.7),
    "rodeo": lambda: igr.estimators.Rodeo(2),
    "running mean": lambda: igr.estimators.RunningMean(shape=(3,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_made_without_data_is_made_whole(name: str) -> None:
    """As FSDP and others do: on "meta", then ``to_empty`` and ``reset_parameters`` of each part."""
    torch.manual_seed(0)
    expected = MODULES[name]()
    with torch.device("meta"):
        module = MODULES[name]()
    module.to_empty(device="cpu")
    for x in (*module.parameters(), *module.buffers()):
        x.data.fill_(77)
    # A head draws the weights of its map anew: those that it was made with are at another place in the random stream.
    for made in (module, expected) if isinstance(module, igr.nn.Head) else (module,):
        torch.manual_seed(0)
        for part in made.modules():
            if isinstance(part, igr.nn.Head) or [*part.parameters(False), *part.buffers(False)]:
                part.reset_parameters()
        if isinstance(made, igr.nn.Head):
            made.reset_parameters()
    found = [*module.named_parameters(), *module.named_buffers()]
    for (a, x), (b, y) in zip(
        found, [*expected.named_parameters(), *expected.named_buffers()], strict=True
    ):
        assert a == b
        assert torch.equal(x, y), a
