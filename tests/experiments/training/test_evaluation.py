"""Bounds against exact likelihoods by enumeration, and the pieces that make them fast."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from igr.experiments.models import vae as models
from igr.experiments.models.likelihoods import Bernoulli, Likelihood
from igr.experiments.models.vae import StackedVAE
from igr.experiments.streams import stream
from igr.experiments.training.config import RunConfig
from igr.experiments.training.evaluation import draw_categories, evaluate, score_images
from igr.experiments.training.trainer import build

PIXELS = 5


def tiny(family: str, N: int = 2, K: int = 3, architecture: str = "linear") -> StackedVAE:
    """A model with weights large enough that codes matter."""
    run = RunConfig(family=family, num_variables=N, num_categories=K, architecture=architecture)
    model = build([run], PIXELS)
    for value in model.tensors.values():
        value.mul_(3)
    return model


def one_hot(codes: Tensor, K: int) -> Tensor:
    """Codes ``(M, N)`` as the decoder wants them, ``(1, M, K, N)``."""
    return torch.nn.functional.one_hot(codes.long(), K).mT.float().unsqueeze(0)


@dataclasses.dataclass
class Exact:
    """Everything about one image, by enumeration of the K^N codes."""

    log_likelihood: Tensor  # log p(x | z) of every code
    log_q: Tensor
    log_prior: float

    @property
    def log_p(self) -> float:
        return torch.logsumexp(self.log_likelihood + self.log_prior, 0).item()

    @property
    def kl(self) -> float:
        return (self.log_q.exp() * (self.log_q - self.log_prior)).sum().item()

    @property
    def elbo(self) -> float:
        return (self.log_q.exp() * self.log_likelihood).sum().item() - self.kl

    @property
    def spread(self) -> float:
        """Standard deviation of the weight p(x, z) / q(z), relative to its mean p(x)."""
        log_w = self.log_likelihood + self.log_prior - self.log_q
        second = torch.logsumexp(self.log_q + 2 * log_w, 0).item()
        return math.sqrt(max(math.exp(second - 2 * self.log_p) - 1, 0.0))


def exact(model: StackedVAE, x: Tensor) -> Exact:
    K, N = model.family.num_categories, model.num_variables
    codes = torch.tensor(list(itertools.product(range(K), repeat=N)))
    with torch.no_grad():
        outputs = model.decode(one_hot(codes, K)).squeeze(0)
        log_likelihood = torch.distributions.Bernoulli(logits=outputs).log_prob(x).sum(-1).double()
        parameters = model.encode(x.view(1, 1, -1))
        q = model.family.distribution(parameters, model.temperature[..., 0]).discrete()
        log_probs = q.logits.double()[0, 0]
    log_q = log_probs[torch.arange(N), codes].sum(-1)
    return Exact(log_likelihood, log_q, -N * math.log(K))


X = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])

# Each statistical check below has a probability of failing of at most 1e-4 by the normal approximation; the seeds are
# fixed, so what passes once passes always.


@pytest.mark.parametrize("family", ["gs", "igr-i"])
def test_the_bound_lies_below_log_p_and_converges_to_it(family: str) -> None:
    model = tiny(family)
    truth = exact(model, X)
    repeats = 2000
    means = []
    for m in (1, 10, 100):
        bounds = score_images(model, X.expand(repeats, -1), samples=m, kl_samples=1).bound.double()
        error = bounds.std().item() / math.sqrt(repeats)
        means.append(bounds.mean().item())
        assert means[-1] <= truth.log_p + 4 * error
        if m == 1:
            assert means[-1] == pytest.approx(truth.elbo, abs=4 * error)
    assert means[0] < means[1] < means[2]
    # Delta method: the log of a mean of m weights.
    m = 100_000
    bound = score_images(model, X.unsqueeze(0), samples=m, kl_samples=1).bound.item()
    assert bound == pytest.approx(truth.log_p, abs=4 * truth.spread / math.sqrt(m) + 1e-5)
    assert truth.log_p - truth.elbo > 0.01  # the two could be told apart


@pytest.mark.parametrize("family", ["gs", "igr-i"])
def test_elbo_and_kl_are_those_by_enumeration(family: str) -> None:
    model = tiny(family)
    truth = exact(model, X)
    scores = score_images(model, X.unsqueeze(0), samples=200_000, kl_samples=1)
    assert scores.kl.item() == pytest.approx(truth.kl, abs=1e-5)
    spread = (truth.log_q.exp() * (truth.log_likelihood - truth.elbo - truth.kl) ** 2).sum().sqrt()
    error = spread.item() / math.sqrt(200_000)
    assert scores.elbo.item() == pytest.approx(truth.elbo, abs=4 * error + 1e-4)


def test_the_released_estimate_is_no_bound() -> None:
    """Erratum E6, with a posterior that is exact: the bound is log p(x) for every m, the estimate lies above."""
    model = tiny("gs", N=1, K=4)
    truth = exact(model, X)
    posterior = truth.log_likelihood - truth.log_likelihood.logsumexp(0)
    model.tensors["encoder.0.weight"].zero_()
    model.tensors["encoder.0.bias"][0, 0] = posterior.float()
    truth = exact(model, X)
    assert truth.spread < 1e-2
    for m in (1, 10, 1000):
        scores = score_images(model, X.unsqueeze(0), samples=m)
        assert scores.bound.item() == pytest.approx(truth.log_p, abs=1e-5)
    # log E_q p(x|z) - KL, from which the estimate differs by sampling alone.
    limit = torch.logsumexp(truth.log_q + truth.log_likelihood, 0).item() - truth.kl
    likelihood = truth.log_likelihood.exp()
    mean = (truth.log_q.exp() * likelihood).sum()
    spread = (truth.log_q.exp() * (likelihood - mean) ** 2).sum().sqrt() / mean
    error = spread.item() / math.sqrt(1000)
    assert scores.released_estimate.item() == pytest.approx(limit, abs=4 * error)
    assert limit - 4 * error > truth.log_p


def test_the_bound_holds_when_q_is_far_off() -> None:
    model = tiny("gs")
    model.tensors["encoder.0.bias"][0, 0] = torch.tensor([3.0, 0.0, -3.0, -1.0, 2.0, 0.0])
    truth = exact(model, X)
    bounds = score_images(model, X.expand(4000, -1), samples=5, kl_samples=1).bound.double()
    assert bounds.mean() <= truth.log_p + 4 * bounds.std() / math.sqrt(4000)


def test_an_image_is_scored_alike_in_any_company() -> None:
    model = tiny("igr-i")
    images = (torch.rand(7, PIXELS) < 0.5).float()
    together = score_images(model, images, samples=50)
    later = score_images(model, images[4:], samples=50, first=4)
    # Probabilities are integrated for groups of variables, whose sizes may change the last bit.
    torch.testing.assert_close(together.bound[4:], later.bound)
    torch.testing.assert_close(together.released_estimate[4:], later.released_estimate)
    again = evaluate(model, images, samples=50)
    assert again.bound == pytest.approx(together.bound.double().mean().item(), abs=1e-6)
    assert (again.images, again.samples) == (7, 50)


@pytest.mark.parametrize(("rows", "drawn"), [(20, 1), (20, 150), (120, 10), (120, 150), (1000, 1)])
def test_what_is_drawn_or_decoded_at_once_changes_nothing(
    rows: int, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of an image's samples, all of them, or those of several images, the last group a smaller one."""
    model, images = tiny("igr-i"), (torch.rand(7, PIXELS) < 0.5).float()
    expected = score_images(model, images, samples=50)
    monkeypatch.setattr("igr.experiments.training.evaluation._ROWS", rows)
    monkeypatch.setattr("igr.experiments.training.evaluation._ROWS_DRAWN", drawn)
    got = score_images(model, images, samples=50)
    torch.testing.assert_close(got.bound, expected.bound)
    torch.testing.assert_close(got.released_estimate, expected.released_estimate)


def test_samples_come_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gs")
    whole = score_images(model, X.unsqueeze(0), samples=1300)
    # A draw for 1,300 is one piece, and several give as good a bound.
    monkeypatch.setattr("igr.experiments.training.evaluation._DRAWS", 2 * 300)
    pieces = score_images(model, X.unsqueeze(0), samples=1300)
    error = exact(model, X).spread / math.sqrt(1300)
    assert pieces.bound.item() == pytest.approx(whole.bound.item(), abs=4 * math.sqrt(2) * error)


@pytest.mark.parametrize("K", [2, 3, 10, 40])
def test_draws_follow_their_probabilities(K: int) -> None:
    N, m = 2, 50_000
    log_probs = torch.randn(1, N, K).log_softmax(-1)
    log_probs[0, 0, -1] = -torch.inf
    log_probs[0, 0, 0] = -torch.inf if K > 2 else 0.0
    log_probs = log_probs.log_softmax(-1)
    drawn = draw_categories(log_probs, m, stream(0, "test"))
    assert drawn.shape == (1, m, N)
    for n in range(N):
        probs = log_probs[0, n].double().exp()
        counts = torch.bincount(drawn[0, :, n].long(), minlength=K).double()
        possible = probs > 0
        assert counts[~possible].sum() == 0
        statistic = ((counts - m * probs)[possible] ** 2 / (m * probs[possible])).sum().item()
        degrees = int(possible.sum()) - 1
        # Chi-square's tail, by Wilson and Hilferty's cube root: 4.5 standard deviations.
        if degrees:
            limit = degrees * (1 - 2 / (9 * degrees) + 4.5 * math.sqrt(2 / (9 * degrees))) ** 3
            assert statistic < limit


@pytest.mark.parametrize("architecture", ["linear", "nonlinear"])
@pytest.mark.parametrize("N", [1, 2, 4, 5])
@pytest.mark.parametrize("largest", [0, 10**9])
def test_decoding_categories_is_decoding_one_hots(
    architecture: str, N: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_LARGEST_TABLE", largest)  # with and without pairs
    model = tiny("gs", N=N, K=5, architecture=architecture)
    codes = torch.randint(0, 5, (30, N), dtype=torch.int32)
    torch.testing.assert_close(
        model.category_decoder()(codes), model.decode(one_hot(codes, 5)).squeeze(0)
    )


def test_no_output_is_larger_than_the_largest_output() -> None:
    model = tiny("igr-i", N=3, K=4)
    every = torch.cartesian_prod(*[torch.arange(4, dtype=torch.int32)] * 3)
    reached = model.category_decoder()(every).amax()
    torch.testing.assert_close(torch.tensor(model.largest_output()), reached)
    assert tiny("igr-i", N=3, K=4, architecture="nonlinear").largest_output() == math.inf


@pytest.mark.parametrize("largest", [1.0, 30.0, 79.0, 500.0])
def test_the_overwriting_log_prob_is_the_plain_one(largest: float) -> None:
    x = (torch.rand(3, 50) < 0.5).float()
    logits = torch.randn(3, 7, 50)
    logits *= largest / logits.abs().max()
    expected = Bernoulli().log_prob(logits.double(), x.double().unsqueeze(1).expand(-1, 7, -1))
    got = Bernoulli().log_prob_overwriting(logits.clone(), x)
    promised = Bernoulli().log_prob_overwriting(logits.clone(), x, largest)
    assert torch.equal(promised, got)
    if largest > 80:  # what is promised is believed: here wrongly
        assert Bernoulli().log_prob_overwriting(logits.clone(), x, 80.0).isinf().any()
    # Each of 50 terms is rounded a few times, relative to itself or to 1.
    tolerance = 4 * 50 * torch.finfo(torch.float32).eps * max(1.0, largest)
    assert (got - expected).abs().max() < tolerance


def test_likelihoods_fall_back_on_the_plain_log_prob() -> None:
    class Plain(Bernoulli):
        log_prob_overwriting = Likelihood.log_prob_overwriting

    x, logits = (torch.rand(3, 5) < 0.5).float(), torch.randn(3, 7, 5)
    expected = Plain().log_prob_overwriting(logits, x)
    torch.testing.assert_close(Bernoulli().log_prob_overwriting(logits.clone(), x), expected)
