"""The variational autoencoder with a Bernoulli, Gaussian or multinomial decoder."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..nn import CSRLinear
from ..ops.csr_rows import csr_dropout
from .base import ModelOutput, check_count, xavier
from .importance import importance_bound, repeated_rows
from .likelihood import LikelihoodModel, likelihood_name
from .posterior import GaussianPosterior

__all__ = ["VAE"]

# Logits of the importance samples that exist at a time.
_CHUNK_ELEMENTS = 1 << 22


class VAE(GaussianPosterior, LikelihoodModel):
    r"""Variational autoencoder over sparse rows.

    .. math::
        \mathrm{loss} = \frac1B \sum_i \left( -\log p(x_i \mid z_i)
            + \beta \, \mathrm{KL}(q(z \mid x_i) \,\|\, N(0, I)) \right), \qquad z_i \sim q(z \mid x_i)

    (Kingma and Welling 2014; beta of Higgins et al. 2017), with the layers
    N - hidden - 2 latent | latent - hidden - N, tanh between them, and dropout on the stored
    entries of the input. In evaluation mode z is the posterior mean.

    Args:
        n_features: number of columns N.
        hidden: width of the hidden layer of encoder and decoder.
        latent: width of the code.
        likelihood: "bernoulli" (values in [0, 1]), "gaussian" or "multinomial" (counts); "bce" and
            "mse" are taken as the first two.
        beta: weight of the divergence. ``model.beta`` is an ordinary attribute, for schedules.
        learn_logvar: a Gaussian decoder learns a log-variance for every cell, by a layer beside
            the mean's; otherwise the variance is 1.
        dropout: probability of dropping an entry of the input in training.
        free_bits: nats of divergence per dimension that cost nothing in training, see
            :func:`~sparsevae_ext.functional.reparameterize_kl`.

    Shape:
        Input and target: (B, N), CSRBatch, torch.sparse_csr or dense.

    Raises:
        TypeError: if a width is not an int.
        ValueError: if an option is out of range or unknown, or ``learn_logvar`` is set for another
            likelihood than the Gaussian.

    Example:
        >>> model = VAE(30, hidden=8, latent=4)
        >>> out = model(torch.eye(30)[:5])
        >>> out.loss.backward()
        >>> model.encode(torch.eye(30)[:5]).shape
        torch.Size([5, 4])
    """

    name: ClassVar[str] = "vae"

    def __init__(
        self,
        n_features: int,
        hidden: int = 600,
        latent: int = 200,
        likelihood: str = "bernoulli",
        beta: float = 1.0,
        learn_logvar: bool = False,
        dropout: float = 0.0,
        free_bits: float = 0.0,
    ) -> None:
        likelihood = likelihood_name("VAE", "likelihood", likelihood)
        if learn_logvar and likelihood != "gaussian":
            raise ValueError(
                f"VAE(): expected learn_logvar with likelihood 'gaussian', but got {likelihood!r}"
            )
        super().__init__(
            n_features=n_features,
            hidden=hidden,
            latent=latent,
            likelihood=likelihood,
            beta=beta,
            learn_logvar=learn_logvar,
            dropout=dropout,
            free_bits=free_bits,
        )
        self.likelihood = likelihood
        self.beta = beta
        self.dropout = dropout
        self.free_bits = free_bits
        self.latent = latent
        self.encoder = CSRLinear(n_features, hidden)
        self.posterior = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Linear(latent, hidden)
        self.output = nn.Linear(hidden, n_features)
        self.output_logvar = nn.Linear(hidden, n_features) if learn_logvar else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as Keras' Dense does: Xavier uniform weights, biases 0."""
        xavier(self)

    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """Gives the encoder's hidden layer (B, hidden)."""
        return torch.tanh(self.first_layer(csr_dropout(batch, self.dropout, training=noisy)))

    def forward(
        self, batch: CSRBatch | Tensor, target: CSRBatch | Tensor | None = None
    ) -> ModelOutput:
        """Computes the loss of a batch.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) rows to reconstruct; None takes ``batch``.
        """
        rows, wanted = self.rows_and_target(batch, target)
        code, kl = self.draw_code(self.hidden(rows, noisy=self.training))
        nll = self.code_nll(code, wanted, "mean")
        return ModelOutput(nll + self.beta * kl, nll, kl, torch.zeros_like(nll))

    def iwae(
        self,
        batch: CSRBatch | Tensor,
        n_samples: int,
        target: CSRBatch | Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Importance-weighted bound on the negative log-likelihood of every row.

        .. math::
            -\log \frac1K \sum_{k=1}^K \frac{p(x_i \mid z_k)\, p(z_k)}{q(z_k \mid x_i)},
            \qquad z_k \sim q(z \mid x_i)

        (Burda, Grosse and Salakhutdinov 2016). One sample is negative ELBO at beta 1; more samples
        make the bound tighter. Samples are taken a few at a time: their logits are at most
        4 million numbers, or those of one sample. Input dropout is off, whatever the mode. It is
        differentiable; wrap it in ``torch.no_grad()`` to evaluate.

        Args:
            batch: (B, N) rows to encode.
            n_samples: K.
            target: (B, N) rows to score; None scores ``batch``.
            generator: source of the random numbers, on the model's device.

        Returns:
            (B,) nats.

        Raises:
            TypeError: if ``n_samples`` is not an int.
            ValueError: if it is not positive.

        Example:
            >>> VAE(30, hidden=8, latent=4).iwae(torch.eye(30)[:5], n_samples=3).shape
            torch.Size([5])
        """
        check_count("VAE.iwae", "n_samples", n_samples)
        rows, wanted = self.rows_and_target(batch, target)
        mu, logvar = self.moments(self.hidden(rows, noisy=False))
        step = max(1, _CHUNK_ELEMENTS // max(1, len(rows) * self.n_features))

        def nll(z: Tensor) -> Tensor:
            code = z.flatten(0, 1).to(self.output.weight.dtype)
            return self.code_nll(code, repeated_rows(wanted, len(z))).view(z.shape[:2])

        return importance_bound(mu, logvar, n_samples, nll, at_a_time=step, generator=generator)
