"""The variational autoencoder with multinomial likelihood of Liang et al. 2018."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..nn import CSRLinear
from .multinomial import MultinomialModel
from .posterior import GaussianPosterior

__all__ = ["MultVAE"]


class MultVAE(GaussianPosterior, MultinomialModel):
    r"""Mult-VAE: a variational autoencoder for rows of counts.

    .. math::
        \mathrm{loss} = \frac1B \sum_i \left(
            -\sum_j x_{ij} \log \operatorname{softmax}(f(z_i))_j
            + \beta \, \mathrm{KL}(q(z \mid x_i) \,\|\, N(0, I)) \right)

    (Liang, Krishnan, Hoffman and Jebara 2018, eq. 6), with the layers
    N - hidden - 2 latent | latent - hidden - N, tanh between them, rows scaled to unit length,
    and dropout on the entries of the input. In evaluation mode z is the posterior mean.

    Args:
        n_items: number of columns N.
        hidden: width of the hidden layer of encoder and decoder.
        latent: width of the code.
        beta: weight of the divergence. ``model.beta`` is an ordinary attribute, for schedules.
        dropout: probability of dropping an entry of the input in training.

    Shape:
        Input and target: (B, N), CSRBatch, torch.sparse_csr or dense.

    Example:
        >>> model = MultVAE(30, hidden=8, latent=4)
        >>> out = model(torch.eye(30)[:5])
        >>> out.loss.backward()
        >>> out.kl.shape
        torch.Size([])
    """

    name: ClassVar[str] = "mult-vae"

    def __init__(
        self,
        n_items: int,
        hidden: int = 600,
        latent: int = 200,
        beta: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(n_items=n_items, hidden=hidden, latent=latent, beta=beta, dropout=dropout)
        self.beta = beta
        self.latent = latent
        self.encoder = CSRLinear(n_items, hidden)
        self.posterior = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Linear(latent, hidden)
        self.output = nn.Linear(hidden, n_items)
        self.reset_parameters()
