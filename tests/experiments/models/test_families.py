"""Families, decoders and objectives of the experiments against public distributions, enumeration and autograd."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

import igr
from igr.experiments.errors import ConfigError
from igr.experiments.models import families, likelihoods
from igr.experiments.models.vae import StackedVAE
from igr.experiments.runs.records import select_runs
from igr.experiments.streams import stream
from igr.experiments.training import objectives as estimation
from igr.experiments.training.config import RunConfig, SweepConfig
from igr.experiments.training.evaluation import score_images
from igr.experiments.training.trainer import StackTrainer, build

K, N = 4, 3
TEMPERATURES = (0.3, 0.8)
TRAINS_EXACTLY = [name for name, family in families.FAMILIES.items() if family.trains_exactly]
SCALED = [name for name, family in families.FAMILIES.items() if family.has_scale]
CASES = [(name, sticking) for name in families.FAMILIES for sticking in (False, True)]


def make(name: str, sticking: bool = False, runs: int = 2, num_categories: int = K):
    """A family in float64 with tensors of its own, which require gradients, and those."""
    family = families.FAMILIES[name](num_categories, 0.5, sticking_the_landing=sticking)
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for key, value in family.initial_tensors(N, generator).items():
        # Far from the identity, and another flow for each run.
        moved = value.double() + 0.7 * torch.randn(runs, *value.shape, generator=generator).double()
        tensors[key] = moved.requires_grad_()
    return family.bind(tensors), tensors


def draw(family, runs: int = 2, images: int = 5):
    generator = torch.Generator().manual_seed(3)
    shape = (runs, images, family.outputs_per_variable, N)
    parameters = (0.7 * torch.randn(shape, generator=generator)).double().requires_grad_()
    noise = torch.empty(runs, images, family.noise_per_variable, N, dtype=torch.float64)
    family.fill_noise(noise, generator)
    temperature = torch.tensor(TEMPERATURES, dtype=torch.float64)[:runs].view(-1, 1, 1)
    return parameters, noise, temperature


def public(family, parameters, noise, temperature, fixed):
    """log z, q with constant parameters (`fixed` is the family with constant tensors) or not, and the prior."""
    t = temperature
    q = family.distribution(parameters, t)
    q_fixed = fixed.distribution(parameters.detach(), t)
    if isinstance(q, igr.GumbelSoftmax):
        prior = igr.GumbelSoftmax(0.5, logits=torch.zeros(K, dtype=torch.float64))
        log_z = torch.log_softmax((q.logits + noise.mT) / t[..., None], -1)
        return log_z, q, q_fixed, prior
    log_z = q.transform.forward_stable(q.loc + q.scale * noise.mT)
    loc = torch.tensor(family.prior_loc, dtype=torch.float64)
    one = torch.ones(K - 1, dtype=torch.float64)
    if isinstance(q, igr.PlanarIGR):
        prior = igr.SoftmaxIGR(loc, one, t)
    else:
        prior = igr.IGR(loc, one, q.transform)
    return log_z, q, q_fixed, prior


def reference(family, tensors, parameters, noise, temperature):
    """Sample and KL by the public distributions and plain autograd."""
    fixed = family.bind({key: value.detach() for key, value in tensors.items()})
    log_z, q, q_fixed, prior = public(family, parameters, noise, temperature, fixed)
    if family.sticking_the_landing:
        kl = q_fixed.log_prob(log_value=log_z) - prior.log_prob(log_value=log_z)
    elif isinstance(q, igr.GumbelSoftmax | igr.PlanarIGR):
        kl = q.log_prob(log_value=log_z) - prior.log_prob(log_value=log_z)
        if isinstance(q, igr.GumbelSoftmax):
            # Its log q depends on the noise alone, and the family has the mean of that.
            mean = -K * sum(1 / k for k in range(1, K))
            kl = kl - torch.log_softmax(-noise, -2).sum(-2) + mean
    else:
        kl = kl_divergence(q, prior)
    return log_z.exp().mT, kl.sum(-1)


@pytest.mark.parametrize(("name", "sticking"), CASES)
def test_sample_and_kl_agree_with_the_public_distributions(name, sticking):
    family, tensors = make(name, sticking)
    parameters, noise, temperature = draw(family)
    inputs = [parameters, *tensors.values()]
    weights = torch.randn(2, 5, K, N, dtype=torch.float64)
    found, gradients = [], []
    for z, kl in (
        family.sample_and_kl(parameters, noise, temperature),
        reference(family, tensors, parameters, noise, temperature),
    ):
        found.append((z.detach(), kl.detach()))
        scalar = (z * weights).sum() + (kl * weights[..., 0, 0]).sum()
        gradients.append(torch.autograd.grad(scalar, inputs))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_sticking_the_landing_has_the_gradient_of_the_kl_in_expectation(name):
    """Difference of the mean gradients within 5 standard errors: fails by chance about once in 20,000 runs of all."""
    replicates, images = 400, 50
    generator = torch.Generator().manual_seed(11)
    means = []
    for sticking in (False, True):
        family, tensors = make(name, sticking, runs=1)
        stacked = {
            k: v.detach().expand(replicates, *v.shape[1:]).clone() for k, v in tensors.items()
        }
        family = family.bind({k: v.requires_grad_() for k, v in stacked.items()})
        single, _, _ = draw(family, runs=1, images=1)
        parameters = single.detach().expand(replicates, images, -1, -1).clone().requires_grad_()
        noise = torch.empty(replicates, images, family.noise_per_variable, N, dtype=torch.float64)
        family.fill_noise(noise, generator)
        temperature = torch.tensor(0.5, dtype=torch.float64).view(1, 1, 1, 1)
        _, kl = family.sample_and_kl(parameters, noise, temperature)
        found = torch.autograd.grad(kl.mean(1).sum(), [parameters, *stacked.values()])
        means.append([found[0].sum(1), *found[1:]])
    for plain, stuck in zip(*means, strict=True):
        difference = (plain - stuck).flatten(1)
        error = difference.std(0) / math.sqrt(replicates)
        assert (difference.mean(0).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("name", ["igr-i", "igr-sb", "igr-sb-sharp"])
def test_sticking_the_landing_has_no_gradient_at_the_prior(name):
    family, _ = make(name, sticking=True)
    parameters, noise, temperature = draw(family)
    loc = torch.tensor(family.prior_loc, dtype=torch.float64)
    at_prior = torch.cat([loc, torch.zeros(K - 1)]).view(1, 1, -1, 1).expand_as(parameters)
    at_prior = at_prior.clone().requires_grad_()
    _, kl = family.sample_and_kl(at_prior, noise, temperature)
    (gradient,) = torch.autograd.grad(kl.sum(), at_prior)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", families.FAMILIES)
def test_kl_for_evaluation_is_that_of_the_relaxation(name):
    family, _ = make(name)
    parameters, _, temperature = draw(family)
    # Over many samples, the one-sample KL's mean.
    big = parameters.detach()[:, :1].expand(-1, 4000, -1, -1)
    noise = torch.empty(2, 4000, family.noise_per_variable, N, dtype=torch.float64)
    family.fill_noise(noise, torch.Generator().manual_seed(1))
    _, sampled = dataclasses.replace(family, sticking_the_landing=True).sample_and_kl(
        big, noise, temperature
    )
    with torch.no_grad():
        found = family.kl(parameters, temperature, 4000)[:, 0]
    error = sampled.std(1) / math.sqrt(4000)
    # Both are estimates for some families: the difference has at most sqrt(2) standard errors.
    assert ((found - sampled.mean(1)).abs() < 5 * math.sqrt(2) * error).all()


# --------------------------------------------------------------------------------------------- recovered distribution


@pytest.mark.parametrize(
    ("num_categories", "rest"), [(2, True), (3, False), (3, True), (10, False), (10, True)]
)
def test_hard_matched_prior_is_uniform(num_categories, rest):
    name = "igr-sb-sharp" if rest else "igr-sb"
    loc = torch.tensor(families.FAMILIES[name](num_categories, 0.5).prior_loc, dtype=torch.float64)
    n, reachable = 400_000, num_categories if rest else num_categories - 1
    u = torch.sigmoid(loc + torch.randn(n, num_categories - 1, dtype=torch.float64))
    left = torch.cat([torch.ones(n, 1, dtype=torch.float64), (1 - u).cumprod(1)], 1)
    w = torch.cat([u * left[:, :-1], left[:, -1:]], 1)[:, :reachable]
    frequencies = F.one_hot(w.argmax(1), reachable).double().mean(0)
    error = math.sqrt((1 / reachable) * (1 - 1 / reachable) / n)
    assert (frequencies - 1 / reachable).abs().max() < 5 * error + 1e-6


@pytest.mark.parametrize("name", families.FAMILIES)
def test_recovered_distribution_is_that_of_hard_samples(name):
    family, _ = make(name, runs=1)
    parameters, _, temperature = draw(family, runs=1, images=2)
    with torch.no_grad():
        log_q = family.discrete_log_probs(parameters, temperature, stream(0, "recovery"))
        n = 20_000
        noise = torch.empty(1, n, family.noise_per_variable, N, dtype=torch.float64)
        family.fill_noise(noise, torch.Generator().manual_seed(5))
        drawn = family.categories(parameters[:, :1].expand(-1, n, -1, -1), noise, temperature)
        z, _ = family.sample_and_kl(parameters[:, :1].expand(-1, n, -1, -1), noise, temperature)
        hard = family.distribution(parameters, temperature).hard(z.mT)
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(1, 2, N, dtype=torch.float64))
    assert torch.equal(
        F.one_hot(drawn, K).to(hard), hard
    )  # Proposition 1's limit of the same sample
    found = F.one_hot(drawn[0], K).double().mean(0)
    expected = log_q[0, 0].exp()
    draws = 1000 if not family.is_exact else math.inf
    error = (expected * (1 - expected) * (1 / n + 1 / draws)).sqrt()
    assert ((found - expected).abs() < 5 * error + 1e-3).all()
    if name == "igr-sb":  # erratum E5
        assert not (drawn == K - 1).any()
        assert (expected[:, -1] == 0).all()


@pytest.mark.parametrize("name", ["igr-sb", "igr-sb-sharp"])
@pytest.mark.parametrize("num_categories", [2, 5, 10])
def test_exact_probabilities_of_sticks_are_the_frequencies_of_draws(name, num_categories):
    """240 to 1,200 frequencies within 5 standard errors: by chance the test fails once in 1,000 times at most."""
    family, _ = make(name, runs=1, num_categories=num_categories)
    parameters, _, temperature = draw(family, runs=1, images=40)
    n = 20_000
    noise = torch.empty(n, 1, 1, family.noise_per_variable, N, dtype=torch.float64)
    family.fill_noise(noise, torch.Generator().manual_seed(5))
    with torch.no_grad():
        p = family.discrete_log_probs(parameters, temperature, stream(0, "recovery")).exp()
        counts = sum(
            F.one_hot(family.categories(parameters, some, temperature), num_categories).sum(0)
            for some in noise.split(1000)
        )
    # Half a draw, for the rare ones, whose counts are not normal.
    error = (p * (1 - p) / n).sqrt() + 2 / n
    assert ((counts / n - p).abs() < 5 * error).all()


@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name != "igr-planar"])
def test_a_run_that_diverged_leaves_the_probabilities_of_others_alone(name):
    family, _ = make(name)
    parameters, _, temperature = draw(family)
    alone = family.discrete_log_probs(parameters[1:], temperature[1:], stream(0, "recovery"))
    parameters = torch.cat([parameters[:1] * math.nan, parameters[1:]])
    found = family.discrete_log_probs(parameters, temperature, stream(0, "recovery"))
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], alone)


def test_recovered_distribution_does_not_depend_on_which_images_come_together():
    family, _ = make("igr-planar", runs=1)
    parameters, _, temperature = draw(family, runs=1, images=4)
    together = family.discrete_log_probs(parameters, temperature, stream(0, "recovery"))
    alone = family.discrete_log_probs(parameters[:, 2:3], temperature, stream(0, "recovery"))
    torch.testing.assert_close(together[:, 2:3], alone)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_bound_is_a_bound_though_a_recovered_distribution_may_be_estimated(name):
    """Of the mean weight, whose expectation is p(x) at most, within 5 standard errors."""
    trainer, x = tiny(name, num_categories=3, factor=1)
    with torch.no_grad():
        states = F.one_hot(torch.tensor(list(itertools.product(range(3), repeat=2))), 3).double()
        outputs = trainer.model.decode(states.mT.unsqueeze(0)).squeeze(0)
        log_p = -F.binary_cross_entropy_with_logits(
            outputs.expand(3, -1, -1), x[0].unsqueeze(1).expand(-1, 9, -1), reduction="none"
        ).sum(-1)
        log_evidence = (log_p - math.log(9)).logsumexp(-1)
        bounds = torch.stack(
            [score_images(trainer.model, x[0], samples=2000, seed=s).bound for s in range(10)]
        )
    ratio = (bounds - log_evidence).exp()
    error = ratio.std(0) / math.sqrt(10)
    assert (ratio.mean(0) <= 1 + 5 * error + 1e-9).all()
    if name == "igr-sb":  # states with the last category are ruled out
        assert (ratio.mean(0) < 0.95).all()
    else:
        assert (ratio.mean(0) > 0.9).all()


# -------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("name", ["gaussian", "gaussian-paper"])
def test_gaussian_decoder_agrees_with_torch(name):
    likelihood = likelihoods.LIKELIHOODS[name]
    outputs = (3 * torch.randn(4, 6, 2 * 5, dtype=torch.float64)).requires_grad_()
    x = torch.rand(4, 5, dtype=torch.float64)
    a, b = outputs.chunk(2, -1)
    if name == "gaussian-paper":
        mean, scale = torch.sigmoid(F.elu(a)), 1e-6 + F.softplus(F.elu(b))
        assert mean.min() > 0.268  # erratum E8: black cannot be fitted
        assert scale.min() > 0.313
    else:
        mean, scale = torch.sigmoid(a), 1 / 255 + F.softplus(b)
    expected = Normal(mean, scale).log_prob(x.unsqueeze(1)).sum(-1)
    found = likelihood.log_prob(outputs, x.unsqueeze(1).expand(-1, 6, -1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(likelihood.mean(outputs), mean)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), outputs),
        torch.autograd.grad((expected * weights).sum(), outputs),
    )
    overwritten = likelihood.log_prob_overwriting(outputs.detach().clone(), x)
    torch.testing.assert_close(overwritten, expected.detach())


# ------------------------------------------------------------------------------------------------------- objectives


def tiny(
    family: str = "gs", num_categories: int = 2, images: int = 3, factor: float = 3, **settings
):
    """A trainer in float64 of a VAE whose 2 variables have few enough states to enumerate."""
    run = RunConfig(
        family=family,
        num_variables=2,
        num_categories=num_categories,
        batch_size=images,
        temperature=settings.pop("temperature", 0.5),
        **settings,
    )
    data = (torch.rand(images, 6, generator=torch.Generator().manual_seed(2)) > 0.5).double()
    trainer = StackTrainer([run], data, dtype=torch.float64)
    for value in trainer.model.tensors.values():
        value.data.mul_(factor)  # far from uniform
    return trainer, data.unsqueeze(0)


def exact_elbo(model: StackedVAE, x: torch.Tensor) -> torch.Tensor:
    """ELBO of the recovered discrete model by enumeration of all states, ``(1, B)``."""
    number, variables = model.family.num_categories, model.num_variables
    q = model.family.distribution(model.encode(x), model.temperature).discrete()
    total = torch.zeros(x.shape[:2], dtype=x.dtype)
    for state in itertools.product(range(number), repeat=variables):
        one_hot = F.one_hot(torch.tensor(state), number).to(x)
        log_q = (q.logits * one_hot).sum((-2, -1))
        outputs = model.decode(one_hot.mT.expand(1, x.shape[1], -1, -1))
        log_p = -F.binary_cross_entropy_with_logits(outputs, x, reduction="none").sum(-1)
        log_joint = log_p - variables * math.log(number)
        total = total + log_q.exp() * (log_joint - log_q)
    return total


@pytest.mark.parametrize("family", TRAINS_EXACTLY)
def test_unordered_set_of_all_states_is_the_exact_negative_elbo(family):
    """Also catches erratum E7: a KL that is subtracted from the reconstruction loss."""
    trainer, x = tiny(family, estimator="unordered-set", num_samples=4)
    seeds = torch.zeros(1, 1, dtype=torch.int64)
    loss, log_likelihood, kl = trainer.objective(trainer.model, x, seeds)
    expected = -exact_elbo(trainer.model, x)
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_likelihood - kl, -expected, rtol=1e-8, atol=1e-8)
    assert (kl > 0).all()
    tensors = list(trainer.model.tensors.values())
    torch.testing.assert_close(
        torch.autograd.grad(loss.sum(), tensors),
        torch.autograd.grad(expected.sum(), tensors),
        rtol=1e-6,
        atol=1e-8,
    )


UNBIASED = (
    "enumerate",
    "reinforce",
    "reinforce-running-mean",
    "reinforce-leave-one-out",
    "disarm",
    "carms",
    "double-control-variate",
    "rodeo",
    "rebar",
    "relax",
)


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("gs", name) for name in UNBIASED), ("igr-i", "reinforce"), ("igr-i", "relax")],
)
def test_unbiased_estimators_have_the_gradient_of_the_elbo(family, name):
    """Mean loss and gradient within 5 standard errors of enumeration: about one false alarm in 10,000 runs of all."""
    trainer, x = tiny(family, estimator=name, num_samples=2)
    x = x[:, :1].expand(-1, 250, -1)  # many draws for one image
    tensors = [v for k, v in trainer.model.tensors.items() if k.startswith(("encoder", "decoder"))]
    losses, gradients = [], []
    for seed in range(30):
        loss = trainer.objective(trainer.model, x, torch.tensor([[seed]]))[0]
        losses.append(loss.mean().detach().reshape(1))
        found = torch.autograd.grad(loss.mean(), tensors, retain_graph=False)
        gradients.append(torch.cat([g.flatten() for g in found]))
    expected = -exact_elbo(trainer.model, x[:, :1]).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, tensors)])
    for samples, mean in ((losses, expected.detach().reshape(1)), (gradients, gradient)):
        stacked = torch.stack(samples)
        # 30 replicates: Student's t with 29 degrees of freedom, beyond 6.5 once in 2.5 million.
        error = stacked.std(0) / math.sqrt(len(samples))
        assert ((stacked.mean(0) - mean).abs() <= 6.5 * error + 1e-10).all()


@pytest.mark.parametrize("name", estimation.ESTIMATORS)
@pytest.mark.parametrize("family", TRAINS_EXACTLY)
def test_every_estimator_trains(family, name):
    categories = estimation.declared(name).max_categories or 3
    trainer, x = tiny(family, estimator=name, num_samples=2, lr=0.1, num_categories=categories)
    before = exact_elbo(trainer.model, x).mean()
    trainer.train_epoch()  # a single step: the batch is the data
    for seed in range(8):
        trainer.step(x, torch.tensor([[seed]]))
    assert exact_elbo(trainer.model, x).mean() > before + 1


def test_relaxed_objective_is_the_mean_over_samples():
    trainer, x = tiny("igr-i", num_samples=3)
    noise = trainer.objective.empty_noise(trainer.model, (1,), 3)
    assert noise.shape == (1, 9, 1, 2)
    trainer.objective.fill_noise(trainer.model, noise, stream(0))
    loss, log_likelihood, kl = trainer.objective(trainer.model, x, noise)
    singles = [trainer.model.elbo_terms(x, noise[:, 3 * s : 3 * s + 3]) for s in range(3)]
    torch.testing.assert_close(log_likelihood, sum(s[0] for s in singles) / 3)
    torch.testing.assert_close(kl, sum(s[1] for s in singles) / 3)
    torch.testing.assert_close(loss, kl - log_likelihood)


NEW = [
    {"family": "igr-planar"},
    {"family": "igr-sb"},
    {"family": "igr-sb-sharp", "estimator": "sticking-the-landing"},
    {"family": "igr-planar", "architecture": "sop", "num_categories": 2, "lr_decay": 0.1},
    {"family": "igr-planar", "unit_scale": True},
    {"family": "igr-i", "architecture": "sop", "num_categories": 2, "unit_scale": True},
]


def digits(count: int = 60) -> torch.Tensor:
    return (torch.rand(count, 16, generator=torch.Generator().manual_seed(4)) > 0.5).double()


def train(runs: list[RunConfig], epochs: int = 2) -> StackTrainer:
    trainer = StackTrainer(runs, digits(), dtype=torch.float64)
    for _ in range(epochs):
        trainer.train_epoch()
    return trainer


NEW += [
    pytest.param(
        {"family": family, "estimator": name, "num_samples": 2},
        # conditional draws of Gaussians are found by bisection
        marks=[pytest.mark.slow] * (name.startswith("rao-") and family == "igr-i"),
    )
    for family in TRAINS_EXACTLY
    for name in estimation.ESTIMATORS
]
SHARED = {"num_categories": 3, "num_variables": 4, "batch_size": 20, "lr": 1e-2}


def settled(settings: dict) -> dict:
    """The settings, with as many categories as there may be."""
    if settings.get("estimator") in estimation.ESTIMATORS:
        most = estimation.declared(settings["estimator"]).max_categories
        settings = {"num_categories": most or 3, **settings}
    return {**SHARED, **settings}


def named(settings: dict) -> str:
    return "-".join(map(str, settings.values()))


def assert_close_states(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("settings", NEW, ids=named)
def test_a_run_in_a_stack_is_the_same_run_as_alone(settings):
    """Its weights, its estimator and its optimiser's moments, after three epochs, the last of them in another stack."""
    runs = [
        RunConfig(temperature=t, seed=s, **settled(settings))
        for t, s in ((0.3, 0), (0.7, 1), (0.7, 0))
    ]
    whole = train(runs)
    begun = {name: value.clone() for name, value in whole.state().items()}
    whole.train_epoch()
    for chosen in ([1], [2, 0]):
        some = [runs[r] for r in chosen]
        expected = select_runs(whole.state(), chosen)
        trainer = StackTrainer(some, digits(), dtype=torch.float64)
        trainer.load_state(select_runs(begun, chosen))
        trainer.train_epoch()
        assert_close_states(trainer.state(), expected)
        if chosen == [1]:
            assert_close_states(train(some, epochs=3).state(), expected)


@pytest.mark.parametrize("name", estimation.ESTIMATORS)
@pytest.mark.parametrize("family", TRAINS_EXACTLY)
def test_a_run_that_diverged_leaves_the_others_of_its_stack_alone(family, name):
    runs = [
        RunConfig(seed=s, **settled({"family": family, "estimator": name, "num_samples": 2}))
        for s in (0, 1)
    ]
    states = []
    for broken in (False, True):
        trainer = StackTrainer(runs, digits(), dtype=torch.float64)
        if broken:
            trainer.model.tensors["encoder.0.bias"].data[1] = math.nan
        trainer.train_epoch()
        states.append(select_runs(trainer.state(), [0]))
    assert_close_states(*states)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "relaxx"}, "did you mean 'relax'"),
        ({"estimator": "relax", "family": "igr-sb"}, "has not"),
        ({"estimator": "unordered-set"}, "num-samples: expected a whole number of at least 2"),
        ({"estimator": "disarm", "num_categories": 3}, "num-categories: disarm is for 2, got 3"),
        (
            {"estimator": "reinmax", "estimator_temperature": -1.0},
            "estimator-temperature: expected",
        ),
        ({"estimator": "mve", "estimator_temperature": 1.0}, "estimator-temperature: of gapped-"),
        ({"architecture": "sop"}, "binary units"),
        ({"architecture": "sop", "num_categories": 2, "estimator": "relax"}, "trained by pathwise"),
        ({"decoder": "gauss"}, "did you mean 'gaussian'"),
        ({"lr_decay": -1.0}, "lr-decay: expected a positive"),
        ({"unit_scale": True, "family": "gs"}, "unit-scale: gs has no scale"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**settings)


@pytest.mark.parametrize("architecture", ["linear", "nonlinear", "sop"])
@pytest.mark.parametrize("family", SCALED)
def test_a_scale_held_at_one_is_a_learned_one_whose_logarithm_is_zero(family, architecture):
    K = 2 if architecture == "sop" else 4
    settings = {"architecture": architecture, "num_categories": K, "num_variables": 3}
    held, learned = (
        build([RunConfig(family=family, unit_scale=u, **settings)], 16, dtype=torch.float64)
        for u in (True, False)
    )
    for name, value in learned.tensors.items():
        own = held.tensors[name]
        if own.shape == value.shape:
            value.copy_(own)
        else:  # the outputs are locations, then log-scales
            value.copy_(torch.cat([own, torch.zeros_like(own)], -1))
    x = digits(5).unsqueeze(0)
    noise = torch.randn(1, 5, *held.noise_shape, dtype=torch.float64)
    torch.testing.assert_close(held.elbo_terms(x, noise), learned.elbo_terms(x, noise))
    scores = [score_images(model, digits(5), samples=20) for model in (held, learned)]
    torch.testing.assert_close(scores[0].bound, scores[1].bound)


QUICK = [("igr-i", "linear", "pathwise")]
OTHERS = [
    (family, architecture, estimator)
    for family in families.FAMILIES
    for architecture, estimator in (
        ("linear", "pathwise"),
        ("nonlinear", "sticking-the-landing"),
        ("sop", "pathwise"),
    )
    if (family, architecture, estimator) not in QUICK
]


@pytest.mark.parametrize(
    "setting", [*QUICK, *(pytest.param(o, marks=pytest.mark.slow) for o in OTHERS)], ids="-".join
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_compiled_steps_are_the_same_steps(setting):
    family, architecture, estimator = setting
    runs = [
        RunConfig(
            family=family,
            architecture=architecture,
            estimator=estimator,
            temperature=temperature,
            num_categories=2 if architecture == "sop" else 4,
            num_variables=3,
            batch_size=20,
        )
        for temperature in (0.3, 0.7)
    ]
    eager, compiled = (
        StackTrainer(runs, digits(), dtype=torch.float64, compiled=c) for c in (False, True)
    )
    for _ in range(2):
        torch.testing.assert_close(compiled.train_epoch(), eager.train_epoch(), rtol=1e-10, atol=0)
    for name, value in eager.model.tensors.items():
        torch.testing.assert_close(compiled.model.tensors[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_compiled_stacks_in_turns_are_not_taken_for_one_another():
    """Their tensors have the same shapes, and compiled steps check nothing before they run."""
    stacks = [
        [RunConfig(family=family, temperature=t, num_categories=4, num_variables=3, batch_size=50)]
        for family, t in (("igr-i", 0.3), ("igr-sb", 0.3), ("igr-i", 0.7))
    ]
    eager, compiled = (
        [StackTrainer(runs, digits(), dtype=torch.float64, compiled=c) for runs in stacks]
        for c in (False, True)
    )
    for _ in range(2):
        for one, other in zip(compiled, eager, strict=True):
            torch.testing.assert_close(one.train_epoch(), other.train_epoch(), rtol=1e-10, atol=0)
    state = {name: value.clone() for name, value in compiled[0].state().items()}
    compiled[0].train_epoch()
    compiled[0].load_state(state)  # and they see parameters that are loaded
    torch.testing.assert_close(compiled[0].train_epoch(), eager[0].train_epoch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixels", [1, 6, 7, 64])
def test_the_likelihood_of_binary_pixels_is_right_up_to_rounding(dtype, pixels):
    spread = torch.tensor([0.1, 1.0, 10.0, 30.0, 1000.0], dtype=dtype).view(-1, 1, 1)
    logits = (spread * torch.randn(5, 40, pixels, dtype=dtype)).requires_grad_()
    x, weights = torch.rand(5, 40, pixels, dtype=dtype), torch.randn(5, 40, dtype=dtype)
    got = likelihoods.Bernoulli().log_prob(logits, x)
    exact = logits.detach().double().requires_grad_()
    terms = -F.binary_cross_entropy_with_logits(exact, x.double(), reduction="none")
    # x l and log(1 + e^l) are rounded a few times, relative to l or to 1.
    size = (1 + exact.detach().abs()).sum(-1)
    error = (got.double() - terms.sum(-1)).abs() / size
    assert error.max() < 4 * torch.finfo(dtype).eps
    (grad,) = torch.autograd.grad((got * weights).sum(), logits)
    (expected,) = torch.autograd.grad((terms.sum(-1) * weights.double()).sum(), exact)
    eps = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(grad.double(), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_single_image_is_sampled_as_among_others(name):
    """Its parameters are contiguous where those of several are not."""
    family = families.FAMILIES[name](4, 0.5)
    model = build([RunConfig(family=name, num_categories=4, num_variables=3)], 16)
    x, noise = torch.rand(1, 5, 16), torch.empty(1, 5, *model.noise_shape)
    family.fill_noise(noise, torch.Generator().manual_seed(0))
    together = model.elbo_terms(x, noise)
    alone = [model.elbo_terms(x[:, i : i + 1], noise[:, i : i + 1]) for i in range(5)]
    for every, each in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(each, 1), every)


def test_making_a_stack_leaves_torchs_random_numbers_alone():
    before = torch.get_rng_state()
    tiny(estimator="relax")
    assert torch.equal(torch.get_rng_state(), before)


def test_reinmax_has_the_temperature_that_the_command_gives_it():
    trainer, _ = tiny(estimator="reinmax", estimator_temperature=1.3)
    assert trainer.objective.estimator.temperature == 1.3
    run = RunConfig(estimator="reinmax", estimator_temperature=1.3)
    assert RunConfig.from_dict(run.to_dict()) == run
    assert "estimator_temperature" not in RunConfig().to_dict(), (
        "or records of earlier runs were others"
    )


@pytest.mark.parametrize("estimator", ["pathwise", "sticking-the-landing", "relax"])
def test_the_kl_counts_as_much_as_its_weight(estimator):
    """The gradient is linear in it; what is told of a step is not weighed."""
    gradients, told = [], []
    for weight in (-1.0, 0.0, 1.0, None):
        trainer, x = tiny("igr-i", 3, estimator=estimator, kl_weight=weight)
        noise = trainer.objective.empty_noise(trainer.model, (1,), trainer.batch_size)
        trainer.objective.fill_noise(trainer.model, noise, torch.Generator().manual_seed(1))
        loss, log_likelihood, kl = trainer.objective(trainer.model, x, noise)
        encoder = trainer.model.tensors["encoder.0.weight"]
        gradients.append(torch.autograd.grad(loss.sum(), encoder)[0])
        told.append((log_likelihood.detach(), kl.detach()))
    against, without, with_kl, default = gradients
    assert not torch.allclose(with_kl, without)
    torch.testing.assert_close(with_kl + against, 2 * without)
    torch.testing.assert_close(default, with_kl, rtol=0, atol=0)
    for each in told:
        torch.testing.assert_close(each, told[0], rtol=0, atol=0)


def test_a_weight_of_the_kl_that_makes_no_sense_is_refused():
    for settings, message in [
        ({"kl_weight": float("nan")}, "kl-weight: expected a finite number"),
        ({"kl_weight": 1.0, "architecture": "sop", "num_categories": 2}, "no KL to weigh"),
    ]:
        with pytest.raises(ConfigError, match=message):
            RunConfig(**settings)


def test_a_setting_that_one_sweep_has_and_the_other_has_not_is_a_difference():
    plain, weighed = SweepConfig(), SweepConfig(kl_weight=0.5)
    assert plain.differences(weighed) == ["kl_weight None, not 0.5"]
    assert weighed.differences(plain) == ["kl_weight 0.5, not None"]


def test_images_that_all_runs_share_are_broadcast():
    logits, x = torch.randn(4, 5, 16, dtype=torch.float64), digits(20).view(4, 5, 16)[:1]
    likelihood = likelihoods.Bernoulli()
    expected = likelihood.log_prob(logits, x.expand(4, -1, -1))
    torch.testing.assert_close(likelihood.log_prob(logits, x), expected)
