"""scVI's variational autoencoder for counts of genes in cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..nn import CSRLinear
from ..ops.csr_rows import segment_sum
from .base import DEFAULT_LENGTH, ModelOutput, check_count
from .count_layers import HiddenLayers, ShiftedNorm
from .count_likelihood import COUNT_LIKELIHOODS, DISPERSIONS, CountHead, count_nll
from .covariate import BatchIndex, covered_rows, index_of_rows
from .expression import ExpressionModel
from .importance import importance_bound, repeated_rows
from .posterior import GaussianPosterior
from .sampling import (
    LengthDistribution,
    make_generator,
    row_lengths,
    sample_negative_binomial_rows,
    sample_poisson_rows,
)

__all__ = ["CountVAE"]

# Rows that are decoded at a time for a bound: a hidden layer of them is all that is kept.
_ROWS_AT_A_TIME = 4096


class CountVAE(GaussianPosterior, ExpressionModel):
    r"""Variational autoencoder for counts: a code for every cell, a likelihood for every gene.

    .. math::
        z_i \sim q(z \mid x_i, b_i), \qquad
        \mu_i = s_i \operatorname{softmax}(f(z_i, b_i)), \qquad
        x_{ij} \sim \operatorname{NB}(\mu_{ij}, \theta_j), \qquad s_i = \sum_j x_{ij}

    .. math::
        \mathrm{loss} = \frac1B \sum_i \left( -\log p(x_i \mid z_i, s_i, b_i)
            + \beta \, \mathrm{KL}(q(z \mid x_i, b_i) \,\|\, N(0, I)) \right)

    The model of scVI (Lopez, Regier, Cole, Jordan and Yosef 2018) with the observed library size
    :math:`s_i`. The encoder reads :math:`\log(1 + x)`, which is 0 where x is, at the stored
    entries only; the softmax and the likelihood of the last layer are one operation that never
    stores a (B, N) tensor. Hidden layers are linear, LayerNorm, relu. :math:`b_i` is the
    experimental batch that cell i comes from (donor, run, chemistry): with ``n_batch`` every
    hidden layer of encoder and decoder adds a vector of its own for each batch, so that the code
    need not hold what the batch explains. In evaluation mode z is the posterior mean.

    A cell without a count is certain, given its library size 0: it has nll 0.

    Args:
        n_genes: number of columns N.
        hidden: width of the hidden layers of encoder and decoder.
        latent: width of the code.
        likelihood: "nb", negative binomial; "zinb", with a learned probability of an extra zero in
            every cell; "poisson".
        n_batch: number of experimental batches; 0 for a model that knows of none.
        dispersion: whether an inverse dispersion :math:`\theta` belongs to a "gene", or to a gene
            in a batch, "gene-batch". Poisson has none.
        n_layers: hidden layers of the encoder, and of the decoder.
        dropout: probability of dropping a hidden unit of the encoder in training.
        beta: weight of the divergence. ``model.beta`` is an ordinary attribute, for schedules.
        free_bits: nats of divergence per dimension that cost nothing in training, see
            :func:`~sparsevae_ext.functional.reparameterize_kl`.

    Shape:
        Input and target: (B, N), CSRBatch, torch.sparse_csr or dense.

    Raises:
        TypeError: if a width or a number is not an int.
        ValueError: if an option is out of range or unknown, or a dispersion per batch is asked for
            without batches or for Poisson.

    Example:
        >>> model = CountVAE(30, hidden=8, latent=4)
        >>> out = model(torch.eye(30)[:5])
        >>> out.loss.backward()
        >>> model.get_latent(torch.eye(30)[:5]).shape
        torch.Size([5, 4])
    """

    name: ClassVar[str] = "count-vae"
    columns: ClassVar[str] = "n_genes"

    def __init__(
        self,
        n_genes: int,
        hidden: int = 128,
        latent: int = 10,
        likelihood: str = "nb",
        n_batch: int = 0,
        dispersion: str = "gene",
        n_layers: int = 1,
        dropout: float = 0.1,
        beta: float = 1.0,
        free_bits: float = 0.0,
    ) -> None:
        _check_options(likelihood, n_batch, dispersion, n_layers)
        super().__init__(
            n_genes=n_genes,
            hidden=hidden,
            latent=latent,
            likelihood=likelihood,
            n_batch=n_batch,
            dispersion=dispersion,
            n_layers=n_layers,
            dropout=dropout,
            beta=beta,
            free_bits=free_bits,
        )
        self.likelihood = likelihood
        self.n_batch = n_batch
        self.dispersion = dispersion
        self.beta = beta
        self.dropout = dropout
        self.free_bits = free_bits
        self.latent = latent
        self.encoder = CSRLinear(n_genes, hidden)
        self.encoder_norm = ShiftedNorm(hidden, n_batch)
        self.encoder_layers = HiddenLayers(hidden, hidden, n_layers - 1, n_batch)
        self.posterior = nn.Linear(hidden, 2 * latent)
        self.decoder = HiddenLayers(latent, hidden, n_layers, n_batch)
        self.output = nn.Linear(hidden, n_genes)
        self.zero_output = nn.Linear(hidden, n_genes) if likelihood == "zinb" else None
        self.log_theta: nn.Parameter | None = None
        if likelihood != "poisson":
            shape = (n_batch, n_genes) if dispersion == "gene-batch" else (n_genes,)
            self.log_theta = nn.Parameter(torch.zeros(shape))

    # ---- from rows to the loss ----------------------------------------------------------------

    def covered(self, batch: CSRBatch | Tensor, batch_index: BatchIndex | None) -> CSRBatch:
        """Takes the input as a batch that carries the batch index that the model needs.

        Raises:
            TypeError: if the input or the index is of another type.
            RuntimeError: if the shapes do not fit.
            ValueError: if the model has batches and there is no index, or the other way round.
            IndexError: if an index is not in [0, n_batch) (checked on the CPU).
        """
        return covered_rows(type(self).__name__, self.rows(batch), batch_index, self.n_batch)

    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """Gives the encoder's last hidden layer (B, hidden)."""
        dropout = self.dropout if noisy else 0.0
        values = batch.values.to(self.encoder.weight.dtype).log1p()
        x = self.first_layer(batch.with_values(values))
        x = self.encoder_norm(x, batch.batch_index, dropout)
        return self.encoder_layers(x, batch.batch_index, dropout)

    def encode(self, batch: CSRBatch | Tensor, batch_index: BatchIndex | None = None) -> Tensor:
        """Gives the posterior mean (B, latent); no dropout, whatever the mode.

        Args:
            batch: (B, N) counts.
            batch_index: as in :meth:`forward`.
        """
        return self.moments(self.hidden(self.covered(batch, batch_index), noisy=False))[0]

    def decode_batch(self, code: Tensor, batch_index: Tensor | None) -> Tensor:
        """Gives the input (B, hidden) of the output layer for codes (B, latent)."""
        return self.decoder(code, batch_index)

    def forward(
        self,
        batch: CSRBatch | Tensor,
        target: CSRBatch | Tensor | None = None,
        batch_index: BatchIndex | None = None,
    ) -> ModelOutput:
        """Computes the loss of a batch.

        Args:
            batch: (B, N) counts to encode.
            target: (B, N) counts to reconstruct, whose totals are the library sizes; None takes
                ``batch``.
            batch_index: (B,) experimental batch of each row, or one number for all of them. None
                takes what ``batch`` carries (``CSRDataset(X, batch_index=...)``).

        Raises:
            ValueError: if the model has batches and there is no index, or a count is negative.
            IndexError: if an index is not in [0, n_batch) (checked on the CPU).
        """
        rows, wanted = self._pair(batch, target, batch_index)
        code, kl = self.draw_code(self.hidden(rows, noisy=self.training))
        nll = self._nll(code, wanted, "sum") / len(rows)
        return ModelOutput(nll + self.beta * kl, nll, kl, torch.zeros_like(nll))

    def _pair(
        self,
        batch: CSRBatch | Tensor,
        target: CSRBatch | Tensor | None,
        batch_index: BatchIndex | None,
    ) -> tuple[CSRBatch, CSRBatch]:
        rows = self.covered(batch, batch_index)
        if target is None:
            return rows, rows
        return rows, self.rows(target).with_batch_index(rows.batch_index)

    def _nll(self, code: Tensor, target: CSRBatch, reduction: str = "none") -> Tensor:
        head = CountHead(
            self.likelihood,
            self.output.weight,
            self.output.bias,
            self.log_theta,
            None if self.zero_output is None else self.zero_output.weight,
            None if self.zero_output is None else self.zero_output.bias,
        )
        hidden = self.decode_batch(code, target.batch_index)
        library = segment_sum(target.values, target.crow)
        return count_nll(hidden, head, target, library, reduction)

    # ---- evaluation ---------------------------------------------------------------------------

    @torch.no_grad()
    def row_nll(
        self,
        batch: CSRBatch | Tensor,
        target: CSRBatch | Tensor | None = None,
        batch_index: BatchIndex | None = None,
    ) -> Tensor:
        """Negative log-likelihood of every row of ``target`` given the code of ``batch``.

        For evaluation: without noise and without gradients. It is the reconstruction at the
        posterior mean, not a bound on the marginal likelihood, which :meth:`marginal_nll` gives.

        Args:
            batch: (B, N) counts to encode.
            target: (B, N) counts to score; None scores ``batch``.
            batch_index: as in :meth:`forward`.

        Returns:
            (B,) float64 nats.
        """
        rows, wanted = self._pair(batch, target, batch_index)
        return self._nll(self.encode(rows), wanted).double()

    def iwae(
        self,
        batch: CSRBatch | Tensor,
        n_samples: int,
        target: CSRBatch | Tensor | None = None,
        batch_index: BatchIndex | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-weighted bound on the negative log-likelihood of every row.

        The bound of :meth:`VAE.iwae`, with the library size given. Dropout is off, whatever the
        mode. It is differentiable; :meth:`marginal_nll` evaluates it over a data set.

        Args:
            batch: (B, N) counts to encode.
            n_samples: K; more samples make the bound tighter.
            target: (B, N) counts to score; None scores ``batch``.
            batch_index: as in :meth:`forward`.
            generator: source of the random numbers, on the model's device.

        Returns:
            (B,) nats.

        Raises:
            TypeError: if ``n_samples`` is not an int.
            ValueError: if it is not positive.

        Example:
            >>> CountVAE(30, hidden=8, latent=4).iwae(torch.eye(30)[:5], n_samples=3).shape
            torch.Size([5])
        """
        check_count("CountVAE.iwae", "n_samples", n_samples)
        rows, wanted = self._pair(batch, target, batch_index)
        mu, logvar = self.moments(self.hidden(rows, noisy=False))

        def nll(z: Tensor) -> Tensor:
            code = z.flatten(0, 1).to(self.output.weight.dtype)
            return self._nll(code, repeated_rows(wanted, len(z))).view(z.shape[:2])

        step = max(1, _ROWS_AT_A_TIME // max(1, len(rows)))
        return importance_bound(mu, logvar, n_samples, nll, at_a_time=step, generator=generator)

    # ---- drawing ------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        length: int | Tensor | LengthDistribution | None = None,
        *,
        given: CSRBatch | Tensor | None = None,
        batch_index: BatchIndex | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> CSRBatch:
        """Draws n rows of counts.

        Row i has the mean ``length[i] * softmax(...)`` at a code drawn from the prior, or at the
        code of row i of ``given``. The (n, N) result is made sparse from the start; a block of
        rows is dense at a time.

        Args:
            n: how many rows.
            length: library size of each row, which its total has as its mean (for "zinb" before
                the extra zeros): a number, (n,), or a :class:`LengthDistribution`. None takes the
                totals of ``given``, or 100.
            given: (n, N) rows whose codes to use in place of draws from the prior.
            batch_index: (n,) experimental batch of each row, or one number for all; None takes
                what ``given`` carries.
            generator: source of the random numbers, on the model's device.
            seed: in place of a generator; equal seeds give equal rows.

        Returns:
            (n, N) float32 batch with sorted columns, which carries its batch index.

        Raises:
            ValueError: if n or a length is negative, ``generator`` and ``seed`` are both given, or
                the model has batches and there is no index.
            RuntimeError: if ``length``, ``batch_index`` or ``given`` does not have n rows.
            IndexError: if an index is not in [0, n_batch).

        Example:
            >>> model = CountVAE(30, hidden=8, latent=4, n_batch=2)
            >>> model.sample(3, length=50, batch_index=1, seed=0).shape
            (3, 30)
        """
        source = make_generator(self.device, generator, seed)
        if given is not None:
            given = self.covered(given, batch_index)
        code, rows = self.sampling_codes(n, given, source)
        if rows is not None:
            index = rows.batch_index if self.n_batch else None
        else:
            index = index_of_rows(type(self).__name__, batch_index, n, self.n_batch, self.device)
        if length is None:
            length = DEFAULT_LENGTH if rows is None else rows.row_sums()
        library = row_lengths(length, n, self.device, source)
        drawn = self._draw(self.decode_batch(code, index), index, library.double().log(), source)
        return drawn.with_batch_index(index)

    def _draw(
        self,
        hidden: Tensor,
        index: Tensor | None,
        log_library: Tensor,
        generator: torch.Generator | None,
    ) -> CSRBatch:
        def log_mean(start: int, stop: int) -> Tensor:
            shares = torch.log_softmax(self.output(hidden[start:stop]).double(), dim=1)
            return shares + log_library[start:stop, None]

        shape, device = (len(hidden), self.n_features), self.device
        if self.log_theta is None:
            return sample_poisson_rows(log_mean, *shape, generator=generator, device=device)
        theta, zero_output = self.log_theta, self.zero_output

        def log_theta(start: int, stop: int) -> Tensor:
            if theta.dim() == 2 and index is not None:
                return theta[index[start:stop]]
            return theta.expand(stop - start, -1)

        def zero_logits(start: int, stop: int) -> Tensor:
            assert zero_output is not None
            return zero_output(hidden[start:stop])

        return sample_negative_binomial_rows(
            log_mean,
            log_theta,
            *shape,
            zero_logits=None if zero_output is None else zero_logits,
            generator=generator,
            device=device,
        )


def _check_options(likelihood: Any, n_batch: Any, dispersion: Any, n_layers: Any) -> None:
    for name, value, known in (
        ("likelihood", likelihood, COUNT_LIKELIHOODS),
        ("dispersion", dispersion, DISPERSIONS),
    ):
        _check_choice(name, value, known)
    check_count("CountVAE", "n_layers", n_layers)
    if isinstance(n_batch, bool) or not isinstance(n_batch, int):
        raise TypeError(
            f"CountVAE(): expected n_batch to be an int, but got {type(n_batch).__name__}"
        )
    if n_batch < 0:
        raise ValueError(f"CountVAE(): expected n_batch >= 0, but got {n_batch}")
    if dispersion == "gene-batch" and (n_batch == 0 or likelihood == "poisson"):
        raise ValueError(
            "CountVAE(): expected n_batch >= 1 and a likelihood with a dispersion for dispersion "
            f"'gene-batch', but got n_batch={n_batch} and likelihood={likelihood!r}"
        )


def _check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(
            f"CountVAE(): expected {name} to be one of {', '.join(known)}, but got {value!r}"
        )
