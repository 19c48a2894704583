"""A diagonal Gaussian posterior over the code, with a standard normal prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..ops.reparameterize_kl import reparameterize_kl
from .base import Model

__all__ = ["GaussianPosterior"]


class GaussianPosterior(Model):
    """The part of a model from its hidden layer to a code drawn from the posterior.

    A subclass has ``posterior``, a linear layer onto mean and log-variance side by side, ``latent``
    and ``decoder``, and says how a batch becomes the hidden layer.
    """

    beta: float
    free_bits: float = 0.0
    latent: int
    posterior: nn.Linear
    decoder: nn.Module

    def moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gives mean and log-variance of the posterior, (B, latent) each."""
        mu, logvar = self.posterior(hidden).chunk(2, dim=1)
        return mu, logvar

    def draw_code(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the code, the posterior mean in evaluation mode, and the mean divergence."""
        mu, logvar = self.moments(hidden)
        eps = None if self.training else torch.zeros_like(mu)
        # An evaluation reports the divergence as it is.
        free_bits = self.free_bits if self.training else 0.0
        z, divergence = reparameterize_kl(mu, logvar, eps=eps, free_bits=free_bits)
        return z, divergence.mean()

    def posterior_mean(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives the posterior mean (B, latent); no dropout, whatever the mode."""
        return self.moments(self.hidden(self.rows(batch), noisy=False))[0]

    def encode(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives the posterior mean (B, latent); no dropout, whatever the mode."""
        return self.posterior_mean(batch)

    def decode_hidden(self, code: Tensor) -> Tensor:
        """Gives the decoder's hidden layer (B, hidden) for codes (B, latent)."""
        return torch.tanh(self.decoder(code))

    def prior_codes(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draws n codes from the standard normal prior."""
        weight = self.output.weight
        code = torch.randn(n, self.latent, device=weight.device, generator=generator)
        return code.to(weight.dtype)
