"""Parameters that grow, in what a training run does: optimisers, schedulers, averages, checkpoints, processes."""

from __future__ import annotations

import copy
import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from igr import CountableIGR
from igr.nn import CountableParameters

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AMSGrad": lambda p, lr: torch.optim.Adam(p, lr, amsgrad=True),
    "AdamW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    "RMSprop": torch.optim.RMSprop,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
    "Adafactor": torch.optim.Adafactor,
}
optimisers = pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS.keys())


class Model(nn.Module):
    """Parameters that grow between others that do not, and two of them."""

    def __init__(self, initial: int = 4) -> None:
        super().__init__()
        self.before = nn.Linear(3, 1)
        self.q = CountableParameters(initial, loc=-2.0)
        self.between = nn.Parameter(torch.zeros(2))
        self.p = CountableParameters(initial, loc=-1.0)
        self.after = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        loss = self.before(x).mean() + self.after.sum() + self.between.square().sum()
        for parameters in (self.q, self.p):
            z = CountableIGR(parameters, 0.5).rsample((20,))
            position = torch.arange(z.shape[-1], dtype=z.dtype)
            loss = loss + ((z * position).sum(-1).mean() - 9).square()
        return loss


def train(
    model: Model, optimizer: torch.optim.Optimizer, steps: int, scheduler: Any = None
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(5, 3)).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def start(optimiser: Callable[..., torch.optim.Optimizer], initial: int = 4) -> Any:
    torch.manual_seed(0)
    model = Model(initial)
    return model, optimiser(model.parameters(), lr=0.05)


def saved(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**states, "random": torch.get_rng_state()}, file)
    file.seek(0)
    return torch.load(file)


@optimisers
def test_blocks_are_trained_without_being_registered(optimiser: Any) -> None:
    model, optimizer = start(optimiser)
    train(model, optimizer, 3)
    assert model.q.num_coordinates > 8
    assert len(optimizer.param_groups) == 1
    used = [p for p in model.q.parameters() if p.grad is not None]
    assert len(used) >= 3
    for p in used:
        assert (p[: p.shape[0] // 2] != -2).any()  # away from the prior
        for name, value in optimizer.state[p].items():
            assert name == "step" or value.dim() == 0 or value.shape == p.shape


@optimisers
@pytest.mark.parametrize("order", ["model first", "optimiser first", "optimiser made last"])
@pytest.mark.parametrize("initial", [4, 64])
def test_going_on_gives_the_same_numbers(optimiser: Any, order: str, initial: int) -> None:
    """The run that was saved went on; another, made with any `initial`, loads and gets there bit by bit."""
    model, optimizer = start(optimiser)
    train(model, optimizer, 2)
    states = saved(model, optimizer)
    sizes = [p.shape for p in model.parameters()]
    train(model, optimizer, 3)

    other = Model(initial)
    resumed = optimiser(other.parameters(), lr=0.3)
    if order == "optimiser first":
        resumed.load_state_dict(states["optimizer"])
        other.load_state_dict(states["model"])
    else:
        other.load_state_dict(states["model"])
        if order == "optimiser made last":
            resumed = optimiser(other.parameters(), lr=0.3)
        resumed.load_state_dict(states["optimizer"])
    assert [p.shape for p in other.parameters()] == sizes
    torch.set_rng_state(states["random"])
    train(other, resumed, 3)
    assert same(model, other)


@optimisers
def test_going_back_to_an_earlier_checkpoint(optimiser: Any) -> None:
    """In one process: blocks that came later are given up, and it all comes the same way again."""
    model, optimizer = start(optimiser)
    early = saved(model, optimizer)
    train(model, optimizer, 1)
    middle = saved(model, optimizer)
    train(model, optimizer, 3)
    late = saved(model, optimizer)
    assert late["model"]["q.block3"].numel() > early["model"]["q.block3"].numel() == 0
    for states, steps in ((middle, 3), (early, 4), (late, 0), (early, 4)):
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        torch.set_rng_state(states["random"])
        train(model, optimizer, steps)
        found = saved(model, optimizer)["model"]
        assert found.keys() == late["model"].keys()
        assert all(torch.equal(value, late["model"][name]) for name, value in found.items())


def chained(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


def in_turn(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    parts: list[lr_scheduler.LRScheduler] = [
        lr_scheduler.LinearLR(optimizer),
        lr_scheduler.CosineAnnealingLR(optimizer, 4),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 3]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 1 / (1 + step)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, [lambda step: 0.9]),
    "SequentialLR": in_turn,
    "ChainedScheduler": chained,
    "SWALR": lambda o: SWALR(o, 0.01, anneal_epochs=3),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_schedulers_made_before_a_block(make: Any) -> None:
    """Its rates are those of an optimiser whose parameters do not grow; and it is saved and goes on."""
    model, optimizer = start(torch.optim.AdamW)
    scheduler = make(optimizer)
    fixed = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.05)
    reference = make(fixed)
    for step in range(5):
        train(model, optimizer, 1, scheduler)
        fixed.step()
        reference.step()
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in fixed.param_groups]
        if step == 2:
            states = {**saved(model, optimizer), "scheduler": copy.deepcopy(scheduler.state_dict())}
    assert model.q.num_coordinates > 8
    other, resumed = start(torch.optim.AdamW, initial=32)
    going_on = make(resumed)
    for name, part in (("scheduler", going_on), ("optimizer", resumed), ("model", other)):
        part.load_state_dict(states[name])
    torch.set_rng_state(states["random"])
    train(other, resumed, 2, going_on)
    assert same(model, other)


def test_a_scheduler_of_the_loss() -> None:
    model, optimizer = start(torch.optim.Adam)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**2)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "exponential"])
@pytest.mark.parametrize("initial", [1, 4])
def test_average_of_weights_grows_along(average: Any, initial: int) -> None:
    """Coordinate by coordinate the average of what was, with the prior where nothing was held."""
    model, optimizer = start(torch.optim.Adam, initial)
    averaged = AveragedModel(model, multi_avg_fn=average)
    model.q.on_grow(averaged.module.q.grow)
    model.p.on_grow(averaged.module.p.grow)
    history = []
    for _ in range(4):
        train(model, optimizer, 1)
        averaged.update_parameters(model)
        history.append((model.q(256)[0].detach(), model.q(256)[1].detach().log()))
    assert model.q.num_coordinates > 8
    found = averaged.module.q(256)
    for i, value in enumerate((found[0], found[1].log())):
        series = [entry[i] for entry in history]
        if average is None:
            expected = torch.stack(series).mean(0)
        else:
            expected = series[0]
            for entry in series[1:]:
                expected = 0.9 * expected + 0.1 * entry
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("initial", [1, 2, 4])
def test_average_of_weights_that_did_not_grow_is_an_error(initial: int) -> None:
    model = Model(initial)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)
    model.q.grow(2 * initial)
    with pytest.raises(RuntimeError, match="must match"):
        averaged.update_parameters(model)


def test_a_penalty_leaves_out_what_holds_nothing() -> None:
    """With empty blocks in it an optimiser would make state for no elements, and stop where they are filled."""
    for everything in (False, True):
        model, optimizer = start(torch.optim.Adam)

        def step(model: Model = model, optimizer: Any = optimizer, all_: bool = everything) -> None:
            optimizer.zero_grad()
            loss = model(torch.ones(5, 3))
            penalty = sum(p.square().sum() for p in model.parameters() if all_ or p.numel())
            (loss + penalty).backward()
            optimizer.step()

        step()
        if everything:
            model.q.grow(256)
            model.q(256)[0].sum().backward()
            with pytest.raises(RuntimeError, match="must match"):
                optimizer.step()
        else:
            for _ in range(3):
                step()
            assert model.q.num_coordinates > 8


def test_growth_in_inference_mode_can_be_trained() -> None:
    for made in (True, False):
        parameters = CountableParameters(2, loc=-2.0)
        optimizer = torch.optim.Adam(parameters.parameters())
        with torch.inference_mode():
            CountableIGR(parameters, 0.5).rsample((50,))
        assert parameters.num_coordinates > 2
        if not made:
            optimizer = torch.optim.Adam(parameters.parameters())
        CountableIGR(parameters, 0.5).rsample((500,)).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None and not p.is_inference() for p in parameters._held())
        with torch.inference_mode():
            parameters.load_state_dict(CountableParameters(8).state_dict())
        CountableIGR(parameters, 0.5).rsample((5,)).square().sum().backward()
        optimizer.state.clear()
        optimizer.step()


def test_growth_between_two_draws_of_one_graph() -> None:
    parameters = CountableParameters(2, loc=-2.0)
    first = CountableIGR(parameters, 0.5).rsample((5,))
    parameters.grow(256)
    second = CountableIGR(parameters, 0.5).rsample((50,))
    (first.square().sum() + second.square().sum()).backward()
    assert parameters.block0.grad is not None


@pytest.mark.parametrize("optimiser", [torch.optim.LBFGS, torch.optim.Adagrad])
def test_optimisers_that_cannot_follow_are_refused(optimiser: Any) -> None:
    parameters = CountableParameters(4)
    with pytest.raises(
        ValueError, match=rf"optimizer: expected one that makes.*{optimiser.__name__}"
    ):
        parameters.register_optimizer(optimiser(parameters.parameters()))
    fixed = CountableParameters(64, maximum=64, loc=-1.0)
    optimizer = optimiser(fixed.parameters(), lr=0.1)
    fixed.register_optimizer(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = CountableIGR(fixed, 0.5).rsample((20,))[:, 0].mean()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            optimizer.step(closure)  # type: ignore[arg-type]
    assert (fixed.loc[:2] != -1).all()


def test_an_optimiser_without_the_parameters_is_refused() -> None:
    parameters = CountableParameters(4)
    parameters.register_optimizer(torch.optim.Adam(parameters.parameters()))
    for others in ([nn.Parameter(torch.zeros(1))], [parameters.block0]):
        with pytest.raises(ValueError, match="optimizer: expected one that holds"):
            parameters.register_optimizer(torch.optim.Adam(others))


def test_reads_what_version_0_1_saved() -> None:
    state = {
        "prior_loc": torch.zeros(1),
        "prior_scale": torch.ones(1),
        "_loc.0": torch.arange(4.0),
        "_loc.1": torch.arange(4.0, 8.0),
        "_log_scale.0": torch.full((4,), -1.0),
        "_log_scale.1": torch.full((4,), 1.0),
    }
    for prefix in ("", "inner."):
        parameters = CountableParameters(16)
        module: nn.Module = nn.ModuleDict({"inner": parameters}) if prefix else parameters
        module.load_state_dict({prefix + name: value for name, value in state.items()})
        assert torch.equal(parameters.loc, torch.arange(8.0))
        assert torch.equal(parameters.scale, torch.tensor([-1.0] * 4 + [1.0] * 4).exp())
        assert len(state) == 6


def test_a_maximum_that_does_not_fit_what_was_saved() -> None:
    grown = CountableParameters(4)
    grown.grow(32)
    for other in (CountableParameters(4, maximum=16), CountableParameters(16, maximum=16)):
        with pytest.raises(RuntimeError, match=r"32 coordinates in .* were saved.*maximum=16"):
            other.load_state_dict(grown.state_dict())
    exact = CountableParameters(32, maximum=32)
    exact.load_state_dict(CountableParameters(32, loc=2.0).state_dict())
    assert torch.equal(exact.loc, torch.full((32,), 2.0))
    with pytest.raises(RuntimeError, match="for 1; make it as the saved one was"):
        CountableParameters(32, maximum=32).load_state_dict(grown.state_dict())
    grown.load_state_dict(CountableParameters(32, maximum=32, loc=1.0).state_dict())
    assert torch.equal(grown.loc, torch.ones(32))


def test_names_and_order_of_parameters_do_not_depend_on_growth() -> None:
    model = Model()
    names = [name for name, _ in model.named_parameters()]
    model.q.grow(100)
    assert [name for name, _ in model.named_parameters()] == names
    assert [name for name, _ in Model(64).named_parameters()] == names
    assert len(list(CountableParameters(8, maximum=8).parameters())) == 1
    big = CountableParameters(1, maximum=2**21)
    assert len(list(big.parameters())) == 22
    loc, scale = torch.func.functional_call(
        big, {"block0": torch.tensor([5.0, 0.0])}, (3,), strict=False
    )
    assert loc.tolist() == [5.0, 0.0, 0.0]
    assert scale.tolist() == [1.0, 1.0, 1.0]


def _worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    found: dict[str, Any] = {}
    for name, parameters in {
        "fixed": CountableParameters(32, maximum=32),
        "grows": CountableParameters(4, loc=-2.0),
    }.items():
        torch.manual_seed(0)
        model = Loss(parameters)
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.Adam(parallel.parameters(), lr=0.05)
        torch.manual_seed(rank)
        try:
            for _ in range(3):
                optimizer.zero_grad()
                parallel(rank + 1.0).backward()
                optimizer.step()
            found[name] = parameters.loc.detach()
        except RuntimeError as error:
            found[name] = str(error)
    torch.save(found, f"{folder}/{rank}")
    os._exit(0)  # the process group is left in the middle of a step


class Loss(nn.Module):
    def __init__(self, parameters: CountableParameters) -> None:
        super().__init__()
        self.parameters_ = parameters

    def forward(self, factor: float) -> Tensor:
        return factor * CountableIGR(self.parameters_, 0.5).rsample((20,))[:, 0].mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes(tmp_path: Path) -> None:
    """What does not grow is kept in step; a block filled after wrapping is an error, not a silent difference."""
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert torch.equal(first["fixed"], second["fixed"])
    assert (first["fixed"] != 0).any()
    for found in (first, second):
        assert re.search("invalid gradient|finished reduction", found["grows"])


def test_every_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, as printed."""
    text = (Path(__file__).parent.parent / "docs" / "countable.md").read_text()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["averaged"].module.num_coordinates == names["parameters"].num_coordinates
    assert 70 < names["q"].num_coordinates < 100
