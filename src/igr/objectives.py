r"""Objectives of latent-variable models: the ELBO, the importance-weighted bound, and an estimate to compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["elbo", "importance_weighted_bound", "released_estimate"]


def elbo(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    r"""Evidence lower bound of one data point.

    .. math:: \log p(x \mid z) - \mathrm{KL}(q \,\|\, p), \qquad z \sim q

    Args:
        log_likelihood: :math:`\log p(x \mid z)`, ``(*batch,)``.
        kl: divergence, closed form or a one-sample estimate, ``(*batch,)``.

    Source: Kingma and Welling (2014).

    >>> elbo(torch.tensor([-90.0]), torch.tensor([10.0]))
    tensor([-100.])
    """
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

    Source: Burda et al. (2016), equation (8).

    >>> importance_weighted_bound(torch.tensor([-1.0, -1.0]), torch.tensor(-2.0), torch.tensor(-2.0))
    tensor(-1.)
    """
    return _log_mean_exp(log_likelihood + log_prior - log_q, dim)


def released_estimate(log_likelihood: Tensor, kl: Tensor, dim: int = 0) -> Tensor:
    r"""What the paper's released code reports as test log-likelihood. It is not a bound.

    .. math:: \log \frac 1 m \sum_{i=1}^m p(x \mid z_i) - \mathrm{KL}(q \,\|\, p), \qquad z_i \sim q

    Where q is the exact posterior it is at least :math:`\log p(x)` (erratum E6). It is here to compare with
    the paper's numbers; report `importance_weighted_bound`.

    Args:
        log_likelihood: m samples along `dim`.
        kl: divergence of each data point.

    >>> released_estimate(torch.tensor([-1.0, -1.0]), torch.tensor(0.5))
    tensor(-1.5000)
    """
    return _log_mean_exp(log_likelihood, dim) - kl


def _log_mean_exp(x: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])
