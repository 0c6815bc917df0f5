"""Nodes and weights of the Gauss-Legendre rule."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["gauss_legendre"]


@lru_cache(maxsize=16)
def gauss_legendre(num_nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1] in float64, by Golub and Welsch's eigenvalues.

    >>> nodes, weights = gauss_legendre(3)
    >>> (weights * nodes**5).sum()  # exact for polynomials of degree 5: 1/6
    tensor(0.1667, dtype=torch.float64)
    """
    n = torch.arange(1, num_nodes, dtype=torch.float64)
    beta = n / torch.sqrt(4 * n * n - 1)
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return (values + 1) / 2, vectors[0].square()
