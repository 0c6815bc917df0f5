"""Embeddings of codes, relaxed or hard, and how well a codebook is used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from igr import _checks

__all__ = ["Codebook"]


class Codebook(nn.Module):
    r"""A table of vectors for each categorical variable, and how much of it is in use.

    .. math:: e_n = \sum_k z_{nk} E_{nk}

    Args:
        num_variables: number of categorical variables; None for a single one without a dimension of its own.
        num_categories: K.
        dim: size of a vector.
        device, dtype: of the vectors; torch's defaults where None.

    Shape: codes ``(*, num_variables, K)``, relaxed or one-hot, to ``(*, num_variables, dim)``.

    Raises:
        ValueError: if a size is too small, or codes of another shape come.

    Source: Baevski et al. (2020), wav2vec 2.0, section 2, with Gumbel-Softmax samples.

    >>> import igr
    >>> head = igr.nn.SoftmaxIGRHead(64, num_variables=2, num_categories=320)
    >>> codebook = Codebook(2, 320, dim=128)
    >>> q = head(torch.randn(100, 64))
    >>> codebook(q.straight_through()).flatten(-2).shape
    torch.Size([100, 256])
    >>> loss = 0.1 * codebook.diversity_loss(q.discrete().probs)
    >>> codebook.lookup(torch.tensor([3, 7])).shape
    torch.Size([2, 128])
    """

    def __init__(
        self,
        num_variables: int | None,
        num_categories: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_variables is not None:
            num_variables = _checks.count("num_variables", num_variables)
        self.num_variables = num_variables
        self.num_categories = _checks.count("num_categories", num_categories, 2)
        self.dim = _checks.count("dim", dim)
        batch = () if num_variables is None else (num_variables,)
        self.weight = nn.Parameter(
            torch.empty(*batch, self.num_categories, self.dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew from a standard normal, as ``torch.nn.Embedding`` does."""
        nn.init.normal_(self.weight)

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors of codes ``(*, num_variables, K)``, weighted where they are relaxed."""
        self._check(codes)
        codes = codes.to(self.weight.dtype)
        if self.num_variables is None:
            return codes @ self.weight
        return torch.einsum("...nk,nkd->...nd", codes, self.weight)

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of categories given by their numbers, ``(*, num_variables)`` of integers.

        Numbers out of range are an error on the CPU; on other devices that would wait for them.
        """
        if not isinstance(indices, Tensor):
            raise ValueError(
                f"indices: expected a tensor of whole numbers, got {type(indices).__name__}"
            )
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(
                f"indices: expected whole numbers, got {indices.dtype}; codes (*, K) go to the codebook itself"
            )
        # Index by int64: torch reads bytes as a mask.
        indices = indices.long()
        if indices.is_cpu and _checks.values_can_be_read(indices):
            valid = (indices >= 0) & (indices < self.num_categories)
            _checks.satisfies("indices", indices, valid, f"from 0 to {self.num_categories - 1}")
        if self.num_variables is None:
            return self.weight[indices]
        if indices.shape[-1:] != (self.num_variables,):
            raise ValueError(
                f"indices: expected shape (*, {self.num_variables}), got {tuple(indices.shape)}"
            )
        return self.weight[torch.arange(self.num_variables, device=indices.device), indices]

    def usage(self, codes: Tensor) -> Tensor:
        r"""How often each category is in use, :math:`\bar p_n`, the mean of codes or probabilities over all else.

        Args:
            codes: ``(*, num_variables, K)``: samples, or ``q.discrete().probs``.

        Returns:
            ``(num_variables, K)``; of no codes, zeros.

        >>> Codebook(None, 2, 8).usage(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
        tensor([0.7500, 0.2500])
        """
        self._check(codes)
        event = 1 if self.num_variables is None else 2
        wide = codes.to(torch.promote_types(codes.dtype, torch.float32))
        if codes.dim() == event:
            return wide
        rows = wide.flatten(0, -event - 1)
        return rows.mean(0) if len(rows) else rows.sum(0)

    def perplexity(self, codes: Tensor) -> Tensor:
        r"""How many categories are in use, in effect.

        .. math:: \exp \Big( - \sum_k \bar p_{nk} \log \bar p_{nk} \Big)

        Args:
            codes: as for `usage`.

        Returns:
            ``(num_variables,)``, from 1 to K.

        >>> Codebook(None, 4, 8).perplexity(torch.full((10, 4), 0.25))
        tensor(4.)
        """
        p = self.usage(codes)
        return (-torch.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum(-1)).exp()

    def diversity_loss(self, codes: Tensor) -> Tensor:
        r"""wav2vec 2's term against codebooks of which a part is in use: 0 where all of it is.

        .. math:: \frac{1}{N K} \sum_n \Big( K - \exp \Big( - \sum_k \bar p_{nk} \log \bar p_{nk} \Big) \Big)

        This is what fairseq computes; the article has the entropy itself in the place of its exponential. Give it
        probabilities, whose gradient says more than that of samples.

        Args:
            codes: as for `usage`.

        Returns:
            A number from 0 to 1 - 1/K.

        Source: Baevski et al. (2020), equation (4), and its code.

        >>> Codebook(None, 4, 8).diversity_loss(torch.eye(4)[:1])
        tensor(0.7500)
        """
        return 1 - self.perplexity(codes).mean() / self.num_categories

    def _check(self, codes: Tensor) -> None:
        expected = self.weight.shape[:-1]
        if not isinstance(codes, Tensor) or codes.shape[-len(expected) :] != expected:
            sizes = ", ".join(map(str, expected))
            came = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise ValueError(f"codes: expected shape (*, {sizes}), got {came}")

    def extra_repr(self) -> str:
        return f"{self.num_variables}, {self.num_categories}, dim={self.dim}"
