"""What the models with a multinomial over the items share: ranking, scoring, drawing."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..ops.csr_rows import csr_dropout, csr_l2_normalize
from ..ops.linear_nll import linear_multinomial_nll
from .base import Model, ModelOutput, xavier
from .ranking import linear_scores, top_items
from .sampling import LengthDistribution, make_generator

__all__ = ["MultinomialModel"]


class MultinomialModel(Model):
    """Base of the models that put a multinomial over N items on every row.

    A subclass has ``encoder`` (:class:`CSRLinear` from the items), ``output`` (``nn.Linear`` onto
    the items), and says how the hidden layer becomes a code, and a code the input of ``output``.

    Example:
        >>> from sparsevae_ext.models import MultDAE, MultinomialModel
        >>> isinstance(MultDAE(30, hidden=4), MultinomialModel)
        True
    """

    columns: ClassVar[str] = "n_items"
    beta: float
    dropout: float

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.n_items = self.n_features
        self.dropout = config["dropout"]

    def reset_parameters(self) -> None:
        """Initialises as the authors' code does: Xavier weights, biases of deviation 0.001."""
        xavier(self, bias_std=0.001)

    def forward(
        self, batch: CSRBatch | Tensor, target: CSRBatch | Tensor | None = None
    ) -> ModelOutput:
        """Computes the loss of a batch.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) counts to reconstruct; None takes ``batch``.
        """
        rows, counts = self.rows_and_target(batch, target)
        code, kl = self.draw_code(self.hidden(rows, noisy=self.training))
        nll = self.code_nll(code, counts, noisy=self.training)
        zero = torch.zeros_like(nll)
        if kl is None:
            return ModelOutput(nll, nll, zero, zero)
        return ModelOutput(nll + self.beta * kl, nll, kl, zero)

    def code_nll(
        self,
        code: Tensor,
        target: CSRBatch,
        reduction: str = "mean",
        *,
        noisy: bool = False,
        max_memory: int | None = None,
    ) -> Tensor:
        """Gives the negative log-likelihood of ``target`` at the codes, without storing the logits.

        Args:
            code: (B, latent).
            target: (B, N).
            reduction: "none" for (B,), "sum" or "mean" over the rows.
            noisy: as in training, where the decoder differs then.
            max_memory: bytes that the logits may take at a time.
        """
        hidden, output = self.decode_hidden(code), self.output
        return linear_multinomial_nll(
            hidden, output.weight, output.bias, target, reduction, max_memory
        )

    @abstractmethod
    def draw_code(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gives the code to decode and, where there is a prior, the mean divergence from it."""

    @abstractmethod
    def decode_hidden(self, code: Tensor) -> Tensor:
        """Gives the input of the output layer for a code."""

    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """First layer: l2-normalised rows, dropout on their stored values, linear, tanh."""
        x = csr_dropout(csr_l2_normalize(batch), self.dropout, training=noisy)
        return torch.tanh(self.first_layer(x))

    @torch.no_grad()
    def recommend(
        self,
        batch: CSRBatch | Tensor,
        k: int,
        exclude_seen: bool = True,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k items with the highest logits for every row, best first.

        Scores are computed for ``chunk_size`` items at a time: memory is O(B * chunk_size), and
        no (B, N) tensor is made. Dropout and sampling are off, whatever the mode of the model.

        Args:
            batch: (B, N) rows as in training.
            k: how many items, at most N.
            exclude_seen: leave out the items with a non-zero entry in ``batch``.
            chunk_size: items scored at a time; None takes about 4 million scores
                and at most a quarter of the items.

        Returns:
            ``scores`` (logits) and ``items`` (int64), both (B, k). Equal scores go to the lower
            item. A row with fewer than k items left ends in items -1 with score -inf.

        Raises:
            TypeError: if k is not an int.
            ValueError: if k is not in [1, N], or ``chunk_size`` is not positive.
            RuntimeError: if the batch has another number of columns, or a score is nan.

        Example:
            >>> from sparsevae_ext.models import MultVAE
            >>> model = MultVAE(30, hidden=8, latent=4)
            >>> scores, items = model.recommend(torch.eye(30)[:2], k=5)
            >>> items.shape
            torch.Size([2, 5])
        """
        rows = self.rows(batch)
        return top_items(
            self._scores(self.encode(rows)),
            rows.shape,
            k,
            seen=rows if exclude_seen else None,
            chunk_size=chunk_size,
        )

    @torch.no_grad()
    def row_nll(
        self,
        batch: CSRBatch | Tensor,
        target: CSRBatch | Tensor | None = None,
        max_memory: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood of every row of ``target`` given the code of ``batch``.

        For evaluation: without noise, without gradients, without a (B, N) tensor. With a prior
        this is the reconstruction at the posterior mean, not a bound on the marginal likelihood.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) counts to score; None scores ``batch``.
            max_memory: bytes that the logits may take at a time.

        Returns:
            (B,) float64 nats, without the multinomial coefficient.

        Raises:
            RuntimeError: if the shapes do not agree.
        """
        rows, counts = self.rows_and_target(batch, target)
        nll = self.code_nll(self.encode(rows), counts, "none", max_memory=max_memory)
        return nll.double()

    @torch.no_grad()
    def sample(
        self,
        n: int,
        length: int | Tensor | LengthDistribution | None = None,
        *,
        given: CSRBatch | Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> CSRBatch:
        """Draws n rows of counts.

        Row i is ``length[i]`` independent draws of an item from the decoder's softmax, at a code
        drawn from the prior, or at the code of row i of ``given``. The (n, N) result is made
        sparse from the start; a block of rows is dense at a time.

        Args:
            n: how many rows.
            length: total of each row, a number, (n,), or a :class:`LengthDistribution`, which
                draws totals as a data set has them. None takes the totals of ``given``, or 100.
            given: (n, N) rows whose codes to use in place of draws from the prior. A model
                without a prior needs it.
            temperature: divides the logits; below 1 sharpens.
            generator: source of the random numbers, on the model's device.
            seed: in place of a generator; equal seeds give equal rows.

        Returns:
            (n, N) batch of float32 counts with sorted columns.

        Raises:
            ValueError: if n is negative, a length is negative, ``temperature`` is not positive,
                ``generator`` and ``seed`` are both given, or there is neither prior nor ``given``.
            RuntimeError: if ``length`` or ``given`` does not have n rows.

        Example:
            >>> from sparsevae_ext.models import MultVAE
            >>> rows = MultVAE(30, hidden=8, latent=4).sample(3, length=12, seed=0)
            >>> rows.row_sums()
            tensor([12., 12., 12.])
        """
        source = make_generator(self.device, generator, seed)
        code, rows = self.sampling_codes(n, given, source)
        return self.draw_counts(self.decode_hidden(code), rows, length, temperature, source)

    def _scores(self, code: Tensor) -> Any:
        return linear_scores(self.decode_hidden(code), self.output.weight, self.output.bias)
