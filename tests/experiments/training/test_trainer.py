"""Stacked models, their objective, training, and going on after an interruption."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

import igr
from igr.experiments.errors import ConfigError, RecordError
from igr.experiments.models.families import FAMILIES
from igr.experiments.models.family import Family
from igr.experiments.models.gaussian import SoftmaxIGRFamily
from igr.experiments.models.likelihoods import Bernoulli
from igr.experiments.models.vae import StackedVAE
from igr.experiments.runs import train
from igr.experiments.runs.records import Stack, SweepFolder
from igr.experiments.runs.stopping import Interrupted, StopRequest
from igr.experiments.runs.train import load_model, train_stack
from igr.experiments.training import config
from igr.experiments.training.compute import flushed_denormals
from igr.experiments.training.config import RunConfig, SweepConfig, stacks
from igr.experiments.training.trainer import StackTrainer

TINY = {"num_variables": 3, "num_categories": 4, "batch_size": 10, "lr": 1e-2, "epochs": 3}
PIXELS = 12

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def images(count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, PIXELS, generator=generator) < 0.3).float()


def grid(family: str, **changes: object) -> list[RunConfig]:
    return [
        RunConfig(**{**TINY, "family": family, "temperature": t, "seed": s, **changes})
        for t in (0.1, 0.7)
        for s in (0, 1)
    ]


def trained(
    runs: list[RunConfig], dtype: torch.dtype, epochs: int = 2, nudge: float = 0.0
) -> dict[str, Tensor]:
    trainer = StackTrainer(runs, images(), dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in trainer.parameters:
            sign = torch.randint(0, 2, value.shape, generator=generator).to(dtype) * 2 - 1
            value.mul_(1 + nudge * sign)
    for _ in range(epochs):
        trainer.train_epoch()
    return {name: value.detach() for name, value in trainer.model.tensors.items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["gs", "igr-i"])
def test_a_run_in_a_stack_is_the_run_alone(family: str, dtype: torch.dtype) -> None:
    runs = grid(family)
    stack = trained(runs, dtype)
    eps = torch.finfo(dtype).eps
    for r, run in enumerate(runs):
        alone = trained([run], dtype)
        in_stack = {name: value[r : r + 1] for name, value in stack.items()}
        # How far training carries a relative error of 8 roundings made once, in the parameters it starts from;
        # a product of another shape rounds in every step, so ten times that.
        tolerance = 10 * largest_difference(alone, trained([run], dtype, nudge=8 * eps))
        assert largest_difference(in_stack, alone) <= tolerance
        other = {name: value[(r + 1) % 4 : (r + 1) % 4 + 1] for name, value in stack.items()}
        assert largest_difference(other, alone) > 100 * tolerance


def test_a_deep_run_in_a_stack_is_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.ARCHITECTURES, "nonlinear", (7, 5))
    runs = grid("igr-i", architecture="nonlinear")
    stack, alone = trained(runs, torch.float64), trained(runs[2:3], torch.float64)
    nudged = trained(runs[2:3], torch.float64, nudge=8 * torch.finfo(torch.float64).eps)
    in_stack = {name: value[2:3] for name, value in stack.items()}
    assert stack["encoder.1.weight"].shape == (4, 7, 5)
    assert stack["decoder.0.weight"].shape == (4, 12, 5)
    assert largest_difference(in_stack, alone) <= 10 * largest_difference(nudged, alone)


def test_batches_and_noise_do_not_depend_on_the_company() -> None:
    runs = grid("gs")
    together = StackTrainer(runs, images()).batches(epoch=2)
    alone = StackTrainer(runs[3:], images()).batches(epoch=2)
    for (x, noise), (x_alone, noise_alone) in zip(together, alone, strict=True):
        assert torch.equal(x[3:], x_alone)
        assert torch.equal(noise[3:], noise_alone)
        assert torch.equal(x[1], x[3])  # equal seeds
        assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("seeds", [(0, 0, 0), (3, 1, 2), (2, 0, 2), (5,)])
def test_runs_of_any_seeds_have_the_batches_that_they_have_alone(seeds: tuple[int, ...]) -> None:
    runs = [
        RunConfig(family="gs", temperature=0.1 * (i + 1), seed=seed, batch_size=20)
        for i, seed in enumerate(seeds)
    ]
    together = StackTrainer(runs, images()).batches(epoch=1)
    alone = [StackTrainer([run], images()).batches(epoch=1) for run in runs]
    for (x, noise), *each in zip(together, *alone, strict=True):
        assert torch.equal(x, torch.cat([x_alone for x_alone, _ in each]))
        assert torch.equal(noise, torch.cat([noise_alone for _, noise_alone in each]))


def test_an_epoch_shows_each_image_once_in_a_new_order() -> None:
    data = torch.arange(60.0).unsqueeze(1)
    trainer = StackTrainer(grid("igr-i")[:1], data)
    orders = [torch.cat([x.flatten() for x, _ in trainer.batches(epoch)]) for epoch in (1, 2)]
    assert all(torch.equal(order.sort().values, data.flatten()) for order in orders)
    assert not torch.equal(*orders)


def test_stacks_differ_in_temperature_and_seed_alone() -> None:
    runs = SweepConfig(families=("igr-i", "gs"), temperatures=(0.1, 0.5), seeds=2).runs()
    assert [len(stack) for stack in stacks(runs)] == [4, 4]
    with pytest.raises(ConfigError, match="temperature and seed"):
        StackTrainer(runs, images())


# The objective


def family_case(name: str) -> tuple[Family, Tensor, Tensor, Tensor]:
    family = FAMILIES[name](num_categories=5, prior_temperature=0.5)
    R, B, N = 2, 3, 4
    parameters = torch.randn(R, B, family.outputs_per_variable, N, dtype=torch.float64)
    noise = torch.empty(R, B, family.noise_per_variable, N, dtype=torch.float64)
    family.fill_noise(noise, torch.Generator().manual_seed(0))
    temperature = torch.tensor([0.1, 0.7], dtype=torch.float64).view(R, 1, 1)
    return family, parameters.requires_grad_(), noise, temperature


@pytest.mark.parametrize("name", ["gs", "igr-i"])
def test_gradient_of_sample_and_kl(name: str) -> None:
    family, parameters, noise, temperature = family_case(name)
    assert torch.autograd.gradcheck(
        lambda p: family.sample_and_kl(p, noise, temperature), parameters
    )


def test_igr_sample_and_kl_are_those_of_the_public_distribution() -> None:
    family, parameters, noise, temperature = family_case("igr-i")
    z, kl = family.sample_and_kl(parameters, noise, temperature)
    q = family.distribution(parameters, temperature)
    y = q.loc + q.scale * noise.mT
    expected = igr.functional.softmax_plus_plus(y, temperature)
    torch.testing.assert_close(z.mT, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kl, family.kl(parameters, temperature, 1), rtol=1e-12, atol=0)


def test_gumbel_sample_and_kl_are_those_of_the_public_distribution() -> None:
    family, parameters, noise, temperature = family_case("gs")
    z, kl = family.sample_and_kl(parameters, noise, temperature)
    log_z = torch.log_softmax((parameters + noise) / temperature[..., None], -2).mT
    q = family.distribution(parameters, temperature)
    p = igr.GumbelSoftmax(0.5, logits=torch.zeros(5, dtype=torch.float64))
    # log q at its own sample is a function of the noise alone, for which the family has its mean.
    own = torch.log_softmax(-noise, -2).sum(-2)
    mean = -5 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    torch.testing.assert_close(
        q.log_prob(log_value=log_z),
        own + math.lgamma(5) + 4 * temperature.log() - log_z.sum(-1),
        rtol=1e-10,
        atol=1e-10,
    )
    expected = q.log_prob(log_value=log_z) - p.log_prob(log_value=log_z) - own + mean
    torch.testing.assert_close(z.mT, log_z.exp(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kl, expected.sum(-1), rtol=1e-10, atol=1e-10)
    many = torch.empty(1, 200_000, 5, 1, dtype=torch.float64)
    family.fill_noise(many, torch.Generator().manual_seed(0))
    sums = torch.log_softmax(-many, -2).sum(-2)
    assert sums.mean().item() == pytest.approx(mean, abs=4 * sums.std().item() / 200_000**0.5)


@pytest.mark.parametrize("categories", [2, 3, 10])
def test_the_igr_prior_is_uniform_when_hard(categories: int) -> None:
    family = SoftmaxIGRFamily(categories, prior_temperature=0.5)
    loc = torch.tensor(family.prior_loc, dtype=torch.float64)
    probs = igr.SoftmaxIGR(loc, torch.ones_like(loc), 0.1).discrete().probs
    torch.testing.assert_close(probs, torch.full_like(probs, 1 / categories), rtol=1e-9, atol=0)
    if categories == 10:
        assert all(round(loc, 3) == -0.753 for loc in family.prior_loc)


def test_bernoulli_log_prob_and_its_gradients() -> None:
    likelihood = Bernoulli()
    x = (torch.rand(2, 3, 7) < 0.4).double()
    logits = (5 * torch.randn(2, 3, 7, dtype=torch.float64)).requires_grad_()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(logits, x), expected)
    assert torch.autograd.gradcheck(lambda l: likelihood.log_prob(l, x), logits)
    assert torch.autograd.gradgradcheck(lambda l: likelihood.log_prob(l, x), logits)


@pytest.mark.parametrize("name", ["gs", "igr-i"])
def test_training_pays_for_the_kl_and_is_not_paid(name: str) -> None:
    # Where the code says nothing of the image, the ELBO is best at posterior = prior. With the sign of erratum E7
    # the divergence would grow instead.
    run = RunConfig(**{**TINY, "family": name, "temperature": 0.5, "lr": 3e-2})
    trainer = StackTrainer([run], torch.zeros(60, PIXELS))
    encoder, decoder = (
        trainer.model.tensors["encoder.0.bias"],
        trainer.model.tensors["decoder.0.weight"],
    )
    with torch.no_grad():
        encoder.add_(2 * torch.randn_like(encoder))
        decoder.zero_()
    decoder.requires_grad_(False)
    history = torch.stack([trainer.train_epoch()[0] for _ in range(40)])
    elbo, log_likelihood, kl = history.unbind(1)
    assert kl[-1] < 0.2 * kl[0]
    assert torch.allclose(elbo, log_likelihood - kl, atol=1e-4)


def test_diverging_runs_leave_the_others_alone() -> None:
    runs = grid("igr-i")
    trainer = StackTrainer(runs, images())
    with torch.no_grad():
        trainer.model.tensors["encoder.0.bias"][1] = torch.nan
    metrics = trainer.train_epoch()
    assert metrics[1].isnan().all()
    assert metrics[[0, 2, 3]].isfinite().all()
    assert all(value[[0, 2, 3]].isfinite().all() for value in trainer.model.tensors.values())


# Interruptions


def sweep(path: Path) -> tuple[SweepFolder, list[RunConfig]]:
    config = SweepConfig(**TINY, families=("igr-i",), temperatures=(0.2, 0.5), seeds=1)
    return SweepFolder.open(path, config, resume=True), config.runs()


def outcome(folder: SweepFolder) -> list[tuple[dict[str, Tensor], list[dict[str, float]]]]:
    """Weights and metrics of every run, without what depends on the clock."""
    result = []
    for run in folder.config.runs():
        rows = folder.run(run).metrics()
        for row in rows:
            del row["seconds"]
        result.append((folder.run(run).weights(), rows))
    return result


def assert_same(a: SweepFolder, b: SweepFolder) -> None:
    for (weights, rows), (other_weights, other_rows) in zip(outcome(a), outcome(b), strict=True):
        assert rows == other_rows
        assert len(rows) == TINY["epochs"]
        assert weights.keys() == other_weights.keys()
        assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def train_all(path: Path) -> SweepFolder:
    folder, runs = sweep(path)
    stack = Stack(folder, runs)
    stack.tidy()
    train_stack(stack, images())
    return folder


@pytest.fixture
def save_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved when otherwise depends on how busy the machine is."""
    monkeypatch.setattr(train, "_SAVING_SHARE", math.inf)
    monkeypatch.setattr(train, "_METRICS_EVERY", -1.0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return train_all(tmp_path_factory.mktemp("whole") / "sweep")


def killed(action: object) -> int:
    """Run `action` in a child process; returns the signal that ended it, 0 if none did."""
    child = os.fork()
    if child == 0:
        try:
            action()  # type: ignore[operator]
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def count_writes(path: Path) -> int:
    calls = 0
    replace = Path.replace

    def counting(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counting)
        train_all(path)
    return calls


@fork
@pytest.mark.usefixtures("save_every_epoch")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_write_a_sweep_goes_on_to_the_same_end(
    tmp_path: Path, uninterrupted: SweepFolder
) -> None:
    total = count_writes(tmp_path / "counted")
    assert total >= 10
    for kill_at in range(total):
        path = tmp_path / str(kill_at)

        def run(path: Path = path, kill_at: int = kill_at) -> None:
            calls = 0
            replace = Path.replace

            def killing(source: Path, target: Path) -> None:
                nonlocal calls
                calls += 1
                if calls > kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            Path.replace = killing  # type: ignore[method-assign, assignment]
            train_all(path)

        assert killed(run) == signal.SIGKILL
        assert_same(train_all(path), uninterrupted)
        assert not list(path.rglob(".*.tmp"))


@fork
@pytest.mark.usefixtures("save_every_epoch")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("step", "first_told"), [(1, 1), (8, 1), (13, 2)])
def test_killed_amid_an_epoch_a_sweep_goes_on_to_the_same_end(
    tmp_path: Path, uninterrupted: SweepFolder, step: int, first_told: int
) -> None:
    def run() -> None:
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

        folder, runs = sweep(tmp_path)
        stack = Stack(folder, runs)
        train_stack(stack, images(), advance=advance)

    assert killed(run) == signal.SIGKILL
    resumed_from: list[int] = []
    folder, runs = sweep(tmp_path)
    stack = Stack(folder, runs)
    train_stack(stack, images(), epoch_done=lambda epoch, _: resumed_from.append(epoch))
    # The first call tells what was there, if anything was: an epoch has 6 steps.
    assert resumed_from[0] == first_told
    assert_same(folder, uninterrupted)


@pytest.mark.parametrize(("share", "epoch"), [(math.inf, 1), (-1.0, 2)])
def test_a_stop_request_loses_no_finished_epoch(
    share: float,
    epoch: int,
    tmp_path: Path,
    uninterrupted: SweepFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second of three epochs: at once where the first is saved, else at its end."""
    monkeypatch.setattr(train, "_SAVING_SHARE", share)
    folder, runs = sweep(tmp_path)
    stack = Stack(folder, runs)
    with StopRequest() as stop:
        calls = 0

        def advance() -> None:
            nonlocal calls
            calls += 1
            if calls == 8:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            train_stack(stack, images(), stop=stop, advance=advance)
        assert stop.requested
        state = stack.load()
    assert state is not None
    assert state["epoch"] == epoch
    assert_same(train_all(tmp_path), uninterrupted)


@pytest.mark.parametrize(
    ("share", "every", "saved"),
    [(math.inf, 0.0, [1, 2, 3]), (math.inf, math.inf, [3]), (-1.0, 0.0, [3])],
)
def test_states_are_saved_as_often_as_they_may(
    share: float, every: float, saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    monkeypatch.setattr(train, "_SAVING_SHARE", share)
    monkeypatch.setattr(Stack, "save", lambda stack, state: epochs.append(int(state["epoch"])))
    train_stack(Stack(*sweep(tmp_path)), images(), every=every)
    assert epochs == saved


def test_metrics_are_written_while_training_goes_on(
    tmp_path: Path, save_every_epoch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    monkeypatch.setattr(Stack, "write_metrics", lambda stack, each: rows.append(len(each[0])))
    train_stack(Stack(*sweep(tmp_path)), images())
    assert rows == [1, 2, 3, 3]


def test_denormals_are_flushed_to_the_end_of_the_outer_block() -> None:
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert torch.tensor(1e-40) * 0.5 == 0
    assert torch.tensor(1e-40) * 0.5 > 0


def test_a_second_signal_stops_at_once() -> None:
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    folder, runs = sweep(tmp_path)
    stack = Stack(folder, runs)
    stack.path.write_bytes(b"\x10\0\0\0\0\0\0\0 not a header")
    with pytest.raises(RecordError, match="damaged"):
        train_stack(stack, images())
    trainer = StackTrainer([runs[0]], images())
    trainer.train_epoch()
    stack.save({**trainer.state(), "metrics": torch.zeros(1, 2, 4)})
    with pytest.raises(RecordError, match="damaged"):
        train_stack(stack, images())


def test_a_loaded_model_is_the_trained_one(uninterrupted: SweepFolder) -> None:
    run = uninterrupted.config.runs()[1]
    model = load_model(uninterrupted.run(run), PIXELS)
    assert isinstance(model, StackedVAE)
    assert model.temperatures.tolist() == pytest.approx([run.temperature])
    with pytest.raises(RecordError, match="do not fit"):
        load_model(uninterrupted.run(run), PIXELS + 1)
