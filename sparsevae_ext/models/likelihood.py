"""What the models with a choice of likelihood share: decoding, scoring, drawing rows."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..ops.bernoulli_nll import bernoulli_nll
from ..ops.gaussian_nll import gaussian_nll
from ..ops.linear_gaussian import linear_gaussian_nll
from ..ops.linear_nll import linear_bernoulli_nll, linear_multinomial_nll
from ..ops.multinomial_nll import multinomial_nll
from .base import Model
from .sampling import (
    LengthDistribution,
    make_generator,
    matched_density_rows,
    row_lengths,
    sample_bernoulli_rows,
)

__all__ = ["LIKELIHOODS", "LikelihoodModel", "likelihood_name"]

#: What the last layer can be the parameters of.
LIKELIHOODS = ("bernoulli", "gaussian", "multinomial")
_SYNONYMS = {"bce": "bernoulli", "mse": "gaussian"}


def likelihood_name(owner: str, argument: str, value: str) -> str:
    """Gives the likelihood's own name for a name or a synonym ("bce", "mse").

    Raises:
        ValueError: if it is unknown.
    """
    name = _SYNONYMS.get(value, value)
    if name not in LIKELIHOODS:
        raise ValueError(
            f"{owner}(): expected {argument} to be one of {', '.join(LIKELIHOODS)}, but got "
            f"{value!r}"
        )
    return name


class LikelihoodModel(Model):
    """Base of the models whose last layer parametrises a Bernoulli, Gaussian or multinomial.

    A subclass sets ``likelihood``, has ``output`` onto the features and says how a code becomes the
    input of it; ``output_logvar`` beside it makes a Gaussian's log-variance.

    Example:
        >>> from sparsevae_ext.models import VAE
        >>> VAE(30, hidden=8, latent=4).likelihood
        'bernoulli'
    """

    likelihood: str
    output_logvar: nn.Linear | None

    @abstractmethod
    def decode_hidden(self, code: Tensor) -> Tensor:
        """Gives the input of the output layer for a code."""

    def decode(self, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gives logits or mean (B, N) for codes, and the log-variance where it is learned."""
        hidden = self.decode_hidden(code)
        logvar = None if self.output_logvar is None else self.output_logvar(hidden)
        return self.output(hidden), logvar

    def nll_rows(self, prediction: Tensor, logvar: Tensor | None, target: CSRBatch) -> Tensor:
        """Gives the negative log-likelihood (B,) of what :meth:`decode` gave."""
        if self.likelihood == "gaussian":
            return gaussian_nll(prediction, target, logvar, "none")
        nll = bernoulli_nll if self.likelihood == "bernoulli" else multinomial_nll
        return nll(prediction, target, "none")

    def code_nll(self, code: Tensor, target: CSRBatch, reduction: str = "none") -> Tensor:
        """Gives the negative log-likelihood of ``target`` at the codes (B, latent).

        What :meth:`decode` gives is never stored, unless the decoder learns a variance for every
        cell: that loss needs two predictions side by side.

        Args:
            code: (B, latent).
            target: (B, N).
            reduction: "none" for (B,), "sum" or "mean" over the rows.
        """
        if self.output_logvar is not None:
            prediction, logvar = self.decode(code)
            return gaussian_nll(prediction, target, logvar, reduction)
        layer = (self.decode_hidden(code), self.output.weight, self.output.bias)
        if self.likelihood == "gaussian":
            return linear_gaussian_nll(*layer, target, reduction=reduction)
        nll = linear_bernoulli_nll if self.likelihood == "bernoulli" else linear_multinomial_nll
        return nll(*layer, target, reduction)

    @torch.no_grad()
    def row_nll(self, batch: CSRBatch | Tensor, target: CSRBatch | Tensor | None = None) -> Tensor:
        """Negative log-likelihood of every row of ``target`` given the code of ``batch``.

        For evaluation: without noise and without gradients. With a prior this is the
        reconstruction at the posterior mean, not a bound on the marginal likelihood.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) rows to score; None scores ``batch``.

        Returns:
            (B,) float64 nats.

        Raises:
            RuntimeError: if the shapes do not agree.
            ValueError: if a value is outside the support of the likelihood.
        """
        rows, wanted = self.rows_and_target(batch, target)
        return self.code_nll(self.encode(rows), wanted).double()

    @torch.no_grad()
    def reconstruct(self, batch: CSRBatch | Tensor) -> Tensor:
        """The expected rows (B, N), dense, at the codes of ``batch``.

        Probabilities for a Bernoulli, means for a Gaussian, and for a multinomial the totals of
        ``batch`` shared out.

        Args:
            batch: (B, N) rows to encode.
        """
        rows = self.rows(batch)
        prediction, _ = self.decode(self.encode(rows))
        if self.likelihood == "gaussian":
            return prediction
        if self.likelihood == "bernoulli":
            return torch.sigmoid(prediction)
        return torch.softmax(prediction, dim=1) * rows.row_sums()[:, None].to(prediction.dtype)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        length: int | Tensor | LengthDistribution | None = None,
        *,
        given: CSRBatch | Tensor | None = None,
        density: float | Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> CSRBatch:
        """Draws n sparse rows.

        At a code drawn from the prior, or at the code of row i of ``given``, row i is

        - for a Bernoulli, ones where independent draws of the cells come up;
        - for a multinomial, ``length[i]`` draws of a feature;
        - for a Gaussian, whose draws would have no zeros, the mean where it is largest;
        - with ``density``, for a Bernoulli too, the cells with the largest logits: no draw but
          that of the code.

        The (n, N) result is made sparse from the start; a block of rows is dense at a time.

        Args:
            n: how many rows.
            length: multinomial only: total of each row, a number, (n,), or a
                :class:`LengthDistribution`. None takes the totals of ``given``, or 100.
            given: (n, N) rows whose codes to use in place of draws from the prior. A model
                without a prior needs it.
            density: share of the cells to keep over all rows, or (n,) entries of each row. A
                Gaussian without it takes the entries of ``given``, row by row.
            temperature: divides the logits; below 1 sharpens. Not for a Gaussian.
            generator: source of the random numbers, on the model's device.
            seed: in place of a generator; equal seeds give equal rows.

        Returns:
            (n, N) float32 batch with sorted columns.

        Raises:
            ValueError: if n is negative, ``generator`` and ``seed`` are both given, there is
                neither prior nor ``given``, or an option does not go with the likelihood.
            RuntimeError: if ``length``, ``density`` or ``given`` does not have n rows.

        Example:
            >>> from sparsevae_ext.models import VAE
            >>> model = VAE(30, hidden=8, latent=4)
            >>> model.sample(3, seed=0).shape
            (3, 30)
            >>> model.sample(3, density=0.1, seed=0).nnz
            9
        """
        self._check_options(length, density, temperature)
        source = make_generator(self.device, generator, seed)
        code, rows = self.sampling_codes(n, given, source)
        hidden = self.decode_hidden(code)
        if self.likelihood == "multinomial":
            return self.draw_counts(hidden, rows, length, temperature, source)

        def scores(start: int, stop: int) -> Tensor:
            return self.output(hidden[start:stop])

        shape = (n, self.n_features)
        if self.likelihood == "bernoulli" and density is None:
            return sample_bernoulli_rows(
                scores, *shape, temperature=temperature, generator=source, device=self.device
            )
        if density is None:
            density = self._entries(rows)
        elif isinstance(density, Tensor) and density.dim() > 0:
            density = row_lengths(density, n, self.device)
        keep = self.likelihood == "gaussian"
        return matched_density_rows(scores, density, *shape, keep_scores=keep, device=self.device)

    def _check_options(self, length: object, density: object, temperature: float) -> None:
        owner = f"sample(): a {self.likelihood} likelihood"
        if length is not None and self.likelihood != "multinomial":
            raise ValueError(f"{owner} has no row totals; expected length to be None")
        if density is not None and self.likelihood == "multinomial":
            raise ValueError(f"{owner} has its density from `length`; expected density to be None")
        if temperature != 1.0 and self.likelihood == "gaussian":
            raise ValueError(f"{owner} has no temperature; expected 1, but got {temperature}")

    def _entries(self, rows: CSRBatch | None) -> Tensor:
        if rows is None:
            raise ValueError(
                "sample(): expected density, the share of the cells to keep, or `given`, rows "
                "whose numbers of entries to take: a Gaussian's own draws have no zeros"
            )
        return rows.crow.diff().long()
