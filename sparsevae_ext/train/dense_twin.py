"""Mult-VAE written the usual way, with dense tensors: what the demo is compared with.

It is meant to be the best that plain torch does on a dense batch, not a straw man: the input
takes no gradient, one batch is dense at a time, the optimizer is the same fused Adam, and the
initial weights are copied from the sparse model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import MultVAE
from ..models.base import ModelOutput

__all__ = ["DenseMultVAE"]


class DenseMultVAE(nn.Module):
    """The same network and loss as `models.MultVAE`, over dense rows.

    Args:
        twin: the sparse model whose sizes, options and weights to take.

    Example:
        >>> import torch
        >>> from sparsevae_ext.models import MultVAE
        >>> from sparsevae_ext.train.dense_twin import DenseMultVAE
        >>> sparse = MultVAE(30, hidden=8, latent=4).eval()
        >>> rows = torch.eye(30)[:5]
        >>> torch.allclose(DenseMultVAE(sparse).eval()(rows).loss, sparse(rows).loss)
        True
    """

    def __init__(self, twin: MultVAE) -> None:
        super().__init__()
        hidden = twin.encoder.weight.shape[0]
        self.beta = twin.beta
        self.dropout = twin.dropout
        self.encoder = nn.Linear(twin.n_items, hidden)
        self.posterior = nn.Linear(hidden, 2 * twin.latent)
        self.decoder = nn.Linear(twin.latent, hidden)
        self.output = nn.Linear(hidden, twin.n_items)
        self.load_state_dict(twin.state_dict())

    def forward(self, rows: Tensor) -> ModelOutput:
        """Compute the loss of dense rows (B, N)."""
        x = F.dropout(F.normalize(rows, dim=1), self.dropout, training=self.training)
        hidden = torch.tanh(self.encoder(x))
        mu, logvar = self.posterior(hidden).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        logits = self.output(torch.tanh(self.decoder(z)))
        nll = -(F.log_softmax(logits, dim=1) * rows).sum(dim=1).mean()
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
        return ModelOutput(nll + self.beta * kl, nll, kl, torch.zeros_like(nll))
