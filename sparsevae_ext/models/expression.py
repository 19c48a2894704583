"""What a model of counts says about whole data sets: codes, expression, likelihood."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..data.blocks import csr_batches
from ..data.dataset import CSRDataset
from .base import Model, check_count
from .covariate import BatchIndex, index_of_rows

__all__ = ["ExpressionModel"]

# Elements of a dense chunk of expression: 16 MiB of float32.
_CHUNK_ELEMENTS = 1 << 22
# The largest result that is handed over in one piece without being asked for by gene: 1 GiB.
_MAX_ELEMENTS = 1 << 28
# Rows encoded at a time.
_CHUNK_ROWS = 4096


class ExpressionModel(Model):
    """Base of the models that give every gene a share of a row's total.

    A subclass encodes a batch, decodes a code, and has ``output`` onto logits whose softmax are the
    shares. The methods here take a batch, a matrix or a whole data set, a chunk of rows at a time.

    Example:
        >>> from sparsevae_ext.models import CountVAE, ExpressionModel
        >>> isinstance(CountVAE(30, hidden=8, latent=4), ExpressionModel)
        True
    """

    n_batch: int
    latent: int
    output: nn.Linear

    @abstractmethod
    def covered(self, batch: CSRBatch | Tensor, batch_index: BatchIndex | None) -> CSRBatch:
        """Takes the input as a batch that carries the batch index that the model needs."""

    @abstractmethod
    def encode(self, batch: CSRBatch | Tensor, batch_index: BatchIndex | None = None) -> Tensor:
        """Gives the code of every row, without noise."""

    @abstractmethod
    def decode_batch(self, code: Tensor, batch_index: Tensor | None) -> Tensor:
        """Gives the input of the output layer for codes."""

    @abstractmethod
    def iwae(
        self,
        batch: CSRBatch | Tensor,
        n_samples: int,
        target: CSRBatch | Tensor | None = None,
        batch_index: BatchIndex | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-weighted bound on the negative log-likelihood of every row."""

    @torch.no_grad()
    def get_latent(
        self,
        data: Any,
        batch_index: BatchIndex | None = None,
        *,
        chunk_rows: int = _CHUNK_ROWS,
    ) -> Tensor:
        """The posterior mean of every row, of a batch or of a whole data set.

        Args:
            data: CSRBatch, torch.sparse_csr or dense tensor, CSRDataset or scipy CSR matrix.
            batch_index: (rows,) experimental batch of each row, or one number for all; None takes
                what ``data`` carries.
            chunk_rows: rows encoded at a time.

        Returns:
            (rows, latent) on the model's device.

        Raises:
            TypeError, RuntimeError, ValueError, IndexError: see the model's ``forward``.

        Example:
            >>> from sparsevae_ext.models import CountVAE
            >>> import scipy.sparse as sp
            >>> model = CountVAE(30, hidden=8, latent=4)
            >>> model.get_latent(sv.data.CSRDataset(sp.eye(30, format="csr"))).shape
            torch.Size([30, 4])
        """
        parts = [self.encode(rows) for rows in self._chunks(data, batch_index, chunk_rows)]
        return torch.cat(parts) if parts else self.output.weight.new_zeros(0, self.latent)

    @torch.no_grad()
    def marginal_nll(
        self,
        data: Any,
        n_samples: int = 100,
        batch_index: BatchIndex | None = None,
        *,
        chunk_rows: int = _CHUNK_ROWS,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Estimate of every row's marginal negative log-likelihood, by importance sampling.

        The bound of ``iwae``, which is from above in expectation, without gradients and over a
        whole data set. Compare models, and a model with a baseline, by its mean.

        Args:
            data: as in :meth:`get_latent`.
            n_samples: codes drawn for each row.
            batch_index: as in :meth:`get_latent`.
            chunk_rows: rows at a time.
            generator: source of the random numbers, on the model's device.

        Returns:
            (rows,) float64 nats on the model's device.

        Example:
            >>> from sparsevae_ext.models import CountVAE
            >>> CountVAE(30, hidden=8, latent=4).marginal_nll(torch.eye(30)[:5], n_samples=3).shape
            torch.Size([5])
        """
        parts = [
            self.iwae(rows, n_samples, generator=generator).double()
            for rows in self._chunks(data, batch_index, chunk_rows)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def get_normalized_expression(
        self,
        data: Any,
        batch_index: BatchIndex | None = None,
        *,
        genes: Sequence[int] | Tensor | None = None,
        library_size: float | str = 1.0,
        transform_batch: int | None = None,
    ) -> Tensor:
        """The decoded expression of every row, free of its library size: shares that sum to 1.

        At the posterior mean. Rows are decoded a chunk at a time; of a chunk only the ``genes``
        asked for are kept. All genes of many rows are a dense matrix much larger than the data:
        above 268 million numbers it is refused, and :meth:`expression_chunks` gives it in pieces.

        Args:
            data: as in :meth:`get_latent`.
            batch_index: as in :meth:`get_latent`.
            genes: columns to give, in this order; None gives all.
            library_size: what a row's expression sums to over all genes, or "latent" for the
                row's own total: the mean of its counts.
            transform_batch: decodes every row as if it came from this batch, to compare rows
                across batches; None leaves each where it is.

        Returns:
            (rows, genes), on the model's device.

        Raises:
            ValueError: if the result would be too large, ``library_size`` is not positive, or
                ``transform_batch`` is given to a model without batches.
            IndexError: if a gene or a batch is out of range.

        Example:
            >>> from sparsevae_ext.models import CountVAE
            >>> model = CountVAE(30, hidden=8, latent=4)
            >>> model.get_normalized_expression(torch.eye(30)[:5], genes=[3, 1]).shape
            torch.Size([5, 2])
            >>> round(float(model.get_normalized_expression(torch.eye(30)[:1]).sum()), 3)
            1.0
        """
        n_rows = _length(data)
        picked = None if genes is None else self._genes(genes)
        width = self.n_features if picked is None else len(picked)
        if picked is None and n_rows * width > _MAX_ELEMENTS:
            raise ValueError(
                f"get_normalized_expression(): expected at most {_MAX_ELEMENTS:,} numbers, but "
                f"{n_rows:,} rows of {width:,} genes are {n_rows * width:,}; name the genes, or go "
                "through expression_chunks()"
            )
        result = self.output.weight.new_empty(n_rows, width)
        start = 0
        for chunk in self.expression_chunks(
            data, batch_index, library_size=library_size, transform_batch=transform_batch
        ):
            result[start : start + len(chunk)] = chunk if picked is None else chunk[:, picked]
            start += len(chunk)
        return result

    @torch.no_grad()
    def expression_chunks(
        self,
        data: Any,
        batch_index: BatchIndex | None = None,
        *,
        library_size: float | str = 1.0,
        transform_batch: int | None = None,
        chunk_rows: int | None = None,
    ) -> Iterator[Tensor]:
        """The rows of :meth:`get_normalized_expression` in order, a dense chunk at a time.

        Args:
            data: as in :meth:`get_latent`.
            batch_index: as in :meth:`get_latent`.
            library_size: as in :meth:`get_normalized_expression`.
            transform_batch: as in :meth:`get_normalized_expression`.
            chunk_rows: rows of a chunk; None takes as many as make 4 million numbers.

        Yields:
            (at most chunk_rows, N), on the model's device.

        Example:
            >>> from sparsevae_ext.models import CountVAE
            >>> model = CountVAE(30, hidden=8, latent=4)
            >>> [len(c) for c in model.expression_chunks(torch.eye(30), chunk_rows=20)]
            [20, 10]
        """
        if library_size != "latent" and (isinstance(library_size, str) or not library_size > 0):
            raise ValueError(
                f"get_normalized_expression(): expected library_size > 0 or 'latent', but got "
                f"{library_size!r}"
            )
        if chunk_rows is None:
            chunk_rows = max(1, _CHUNK_ELEMENTS // self.n_features)
        for rows in self._chunks(data, batch_index, chunk_rows):
            index = rows.batch_index if self.n_batch else None
            if transform_batch is not None:
                owner = type(self).__name__
                index = index_of_rows(owner, transform_batch, len(rows), self.n_batch, self.device)
            shares = torch.softmax(self.output(self.decode_batch(self.encode(rows), index)), dim=1)
            if library_size == "latent":
                yield shares * rows.row_sums().to(shares.dtype)[:, None]
            else:
                yield shares * float(library_size)

    def _genes(self, genes: Sequence[int] | Tensor) -> Tensor:
        picked = torch.as_tensor(genes, device=self.device)
        if picked.dim() != 1 or (len(picked) and picked.is_floating_point()):
            raise TypeError(
                "get_normalized_expression(): expected genes to be column numbers in one "
                f"dimension, but got {picked.dtype} of shape {tuple(picked.shape)}"
            )
        picked = picked.long()
        if bool(((picked < 0) | (picked >= self.n_features)).any()):
            raise IndexError(
                f"get_normalized_expression(): expected genes in [0, {self.n_features}), but got "
                f"{int(picked.min())} to {int(picked.max())}"
            )
        return picked

    def _chunks(
        self, data: Any, batch_index: BatchIndex | None, chunk_rows: int
    ) -> Iterator[CSRBatch]:
        """The rows on the model's device, with their batch index."""
        check_count(type(self).__name__, "chunk_rows", chunk_rows)
        start = 0
        for rows in csr_batches(data, chunk_rows, type(self).__name__):
            index = batch_index
            if isinstance(index, Tensor):
                _check_rows(index, _length(data))
                index = index[start : start + len(rows)]
            start += len(rows)
            yield self.covered(rows.to(self.device), index)


def _length(data: Any) -> int:
    return len(data) if isinstance(data, CSRBatch | CSRDataset) else int(data.shape[0])


def _check_rows(batch_index: Tensor, n_rows: int) -> None:
    if batch_index.shape != (n_rows,):
        raise RuntimeError(
            f"expected batch_index of shape ({n_rows},), but got {tuple(batch_index.shape)}"
        )
