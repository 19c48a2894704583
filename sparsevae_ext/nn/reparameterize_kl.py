"""The draw of a variational autoencoder's code, with its divergence from the prior, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.reparameterize_kl import reparameterize_kl

__all__ = ["ReparameterizeKL"]


class ReparameterizeKL(nn.Module):
    r"""Draws a code from a diagonal Gaussian and gives its divergence from the prior.

    .. math::
        z = \mu + \epsilon \, e^{v/2}, \qquad
        \mathrm{KL}_i = \tfrac12 \textstyle\sum_k
            \left(\mu_{ik}^2 + \operatorname{expm1}(v_{ik}) - v_{ik}\right)

    (Kingma and Welling 2014). In evaluation mode nothing is drawn and :math:`z = \mu`; the divergence
    is the same in both modes. See :func:`sparsevae_ext.functional.reparameterize_kl` for the options.

    Args:
        n_samples: the number K of draws of each row; None gives one, without a dimension for it.
        prior_mean: (Z,) means of the prior; None means zeros. A buffer of the module.
        prior_logvar: (Z,) log-variances of the prior; None means zeros. A buffer of the module.
        free_bits: nats per dimension that cost nothing (Kingma et al. 2016).
        logvar_max: log-variances above it are taken as this value, and get no gradient.

    Shape:
        - Input: mu and logvar, (B, Z).
        - Output: z, (B, Z) or (K, B, Z); kl, (B,).

    Example:
        >>> layer = ReparameterizeKL(free_bits=0.1)
        >>> z, kl = layer(torch.zeros(2, 3), torch.zeros(2, 3), seed=1)
        >>> z.shape, kl
        (torch.Size([2, 3]), tensor([0.3000, 0.3000]))
    """

    prior_mean: Tensor | None
    prior_logvar: Tensor | None

    def __init__(
        self,
        *,
        n_samples: int | None = None,
        prior_mean: Tensor | None = None,
        prior_logvar: Tensor | None = None,
        free_bits: float = 0.0,
        logvar_max: float | None = None,
    ) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.free_bits = free_bits
        self.logvar_max = logvar_max
        for name, prior in (("prior_mean", prior_mean), ("prior_logvar", prior_logvar)):
            # A copy: the module's own, whatever becomes of the caller's tensor.
            self.register_buffer(name, None if prior is None else prior.detach().clone())

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        seed: int | Tensor | None = None,
        eps: Tensor | None = None,
        sample: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gives z and kl.

        Args:
            mu: (B, Z) means.
            logvar: (B, Z) log-variances.
            seed: an int or an int64 tensor (2,), as the functional takes it.
            eps: noise of the shape of z, in place of a draw.
            sample: True draws and False does not; None draws in training mode, or when a seed or
                noise is given.
        """
        if sample is None:
            sample = self.training or seed is not None or eps is not None
        if not sample:
            shape = mu.shape if self.n_samples is None else (self.n_samples, *mu.shape)
            seed, eps = None, torch.zeros((), dtype=mu.dtype, device=mu.device).expand(shape)
        return reparameterize_kl(
            mu,
            logvar,
            eps=eps,
            seed=seed,
            n_samples=self.n_samples,
            prior_mean=self.prior_mean,
            prior_logvar=self.prior_logvar,
            free_bits=self.free_bits,
            logvar_max=self.logvar_max,
        )

    def extra_repr(self) -> str:
        """The options that are not at their default."""
        parts = []
        if self.n_samples is not None:
            parts.append(f"n_samples={self.n_samples}")
        if self.prior_mean is not None or self.prior_logvar is not None:
            prior = self.prior_mean if self.prior_mean is not None else self.prior_logvar
            assert prior is not None
            parts.append(f"prior of {prior.shape[0]} dimensions")
        if self.free_bits:
            parts.append(f"free_bits={self.free_bits}")
        if self.logvar_max is not None:
            parts.append(f"logvar_max={self.logvar_max}")
        return ", ".join(parts)
