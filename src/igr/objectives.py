r"""Objectives of latent-variable models: the ELBO, the importance-weighted bound, and an estimate to compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from igr import _checks

__all__ = ["elbo", "importance_weighted_bound", "released_estimate"]


def elbo(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    r"""Evidence lower bound of one data point.

    .. math:: \log p(x \mid z) - \mathrm{KL}(q \,\|\, p), \qquad z \sim q

    Args:
        log_likelihood: :math:`\log p(x \mid z)`, ``(*batch,)``, or ``(*samples, *batch)`` for several z.
        kl: divergence, closed form or estimated, summed over the variables: ``(*batch,)``, the shape of
            `log_likelihood`, or a number.

    Raises:
        ValueError: if the shapes do not fit; to broadcast would hide a sum that was left out.

    Source: Kingma and Welling (2014).

    >>> elbo(torch.tensor([-90.0]), torch.tensor([10.0]))
    tensor([-100.])
    """
    _fits(kl, _checks.tensor("log_likelihood", log_likelihood).shape)
    return log_likelihood - kl


def importance_weighted_bound(
    log_likelihood: Tensor, log_prior: Tensor, log_q: Tensor, dim: int = 0
) -> Tensor:
    r"""Importance-weighted bound on the log-likelihood, by m samples of q.

    .. math:: \log \frac 1 m \sum_{i=1}^m \frac{p(x \mid z_i) \, p(z_i)}{q(z_i \mid x)}, \qquad z_i \sim q

    Its expectation is at most :math:`\log p(x)` whatever q is, as long as `log_q` is the log-probability under the
    distribution that the :math:`z_i` were drawn from.

    Args:
        log_likelihood, log_prior, log_q: they broadcast; m samples along `dim`.
        dim: dimension of the samples.

    Raises:
        ValueError: if the shapes do not broadcast, or there are no samples along `dim`.

    Source: Burda et al. (2016), equation (8).

    >>> from igr import SoftmaxIGR
    >>> from torch.distributions import Bernoulli
    >>> encoder, decoder = torch.nn.Linear(16, 6), torch.nn.Linear(4, 16)  # one variable of 4 categories
    >>> x = torch.rand(8, 16).round()
    >>> loc, log_scale = encoder(x).chunk(2, -1)
    >>> q = SoftmaxIGR(loc, log_scale.exp(), temperature=0.5).discrete()  # what is relaxed, of batch shape (8,)
    >>> z = q.sample((100,))
    >>> log_likelihood = Bernoulli(logits=decoder(z)).log_prob(x).sum(-1)
    >>> importance_weighted_bound(log_likelihood, -torch.tensor(4.0).log(), q.log_prob(z)).shape
    torch.Size([8])
    """
    terms = _checks.broadcast(log_likelihood=log_likelihood, log_prior=log_prior, log_q=log_q)
    return _log_mean_exp(terms[0] + terms[1] - terms[2], dim)


def released_estimate(log_likelihood: Tensor, kl: Tensor, dim: int = 0) -> Tensor:
    r"""What the paper's released code reports as test log-likelihood. It is not a bound.

    .. math:: \log \frac 1 m \sum_{i=1}^m p(x \mid z_i) - \mathrm{KL}(q \,\|\, p), \qquad z_i \sim q

    Where q is the exact posterior it is at least :math:`\log p(x)` (erratum E6). It is here to compare with
    the paper's numbers; report `importance_weighted_bound`.

    Args:
        log_likelihood: m samples along `dim`.
        kl: divergence of each data point, summed over the variables: the shape of `log_likelihood` without `dim`.

    Raises:
        ValueError: if the shapes do not fit, or there are no samples along `dim`.

    >>> released_estimate(torch.tensor([-1.0, -1.0]), torch.tensor(0.5))
    tensor(-1.5000)
    """
    mean = _log_mean_exp(log_likelihood, dim)
    _fits(kl, mean.shape)
    return mean - kl


def _fits(kl: Tensor, shape: torch.Size) -> None:
    kl = _checks.real("kl", kl)
    if isinstance(kl, Tensor) and kl.shape != shape[max(0, len(shape) - kl.dim()) :]:
        raise ValueError(
            f"kl: expected one for each data point, a shape that {tuple(shape)} ends with, got {tuple(kl.shape)}; sum "
            "over the variables first"
        )


def _log_mean_exp(x: Tensor, dim: int) -> Tensor:
    _checks.tensor("log_likelihood", x)
    if not isinstance(dim, int) or not -x.dim() <= dim < x.dim() or x.shape[dim] == 0:
        raise ValueError(
            f"log_likelihood: expected samples along dimension {dim}, got shape {tuple(x.shape)}"
        )
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])
