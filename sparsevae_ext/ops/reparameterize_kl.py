"""The Gaussian draw of a variational autoencoder together with its divergence, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.parts import torch_name
from ._checks import check_floating, check_tensor

__all__ = ["reparameterize_kl", "reparameterize_kl_reference"]

_OP = "reparameterize_kl"


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, *, eps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Draws from a diagonal Gaussian and gives its divergence from the standard normal.

    .. math::
        z = \mu + \epsilon \, e^{v/2}, \qquad
        \mathrm{KL}_i = \tfrac12 \textstyle\sum_k
            \left(\mu_{ik}^2 + \operatorname{expm1}(v_{ik}) - v_{ik}\right)

    with :math:`v` the log-variance (Kingma and Welling 2014, appendix B). ``expm1`` keeps the
    divergence accurate where the posterior is close to the prior. Nothing is clamped: a huge
    log-variance gives an infinite divergence.

    Args:
        mu: (B, Z) means.
        logvar: (B, Z) log-variances, of the dtype of ``mu``.
        eps: (B, Z) standard normal noise; drawn with ``torch.randn`` when None. Zeros give
            ``z = mu``.

    Returns:
        ``z``: (B, Z), of the dtype of ``mu``; ``kl``: (B,) in nats. 16-bit inputs are computed in
        float32, and their ``kl`` stays float32.

    Raises:
        TypeError: if an argument is not a tensor.
        NotImplementedError: if ``mu`` is not floating.
        RuntimeError: if shapes, dtypes or devices differ, or ``mu`` is not 2-D.

    Example:
        >>> mu, logvar = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
        >>> reparameterize_kl(mu, logvar, eps=torch.ones(1, 2))
        (tensor([[2., 3.]]), tensor([2.5000]))
    """
    _check(mu, logvar, eps)
    return reparameterize_kl_reference(mu, logvar, eps=eps)


def reparameterize_kl_reference(
    mu: Tensor, logvar: Tensor, *, eps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The plain-torch form of :func:`reparameterize_kl`, without its checks."""
    dtype = mu.dtype
    if dtype in (torch.float16, torch.bfloat16):
        mu, logvar = mu.float(), logvar.float()
    noise = torch.randn_like(mu) if eps is None else eps.to(mu.dtype)
    z = mu + noise * torch.exp(0.5 * logvar)
    kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(dim=1)
    return z.to(dtype), kl


def _check(mu: Tensor, logvar: Tensor, eps: Tensor | None) -> None:
    named = {"mu": mu, "logvar": logvar} | ({} if eps is None else {"eps": eps})
    for name, tensor in named.items():
        check_tensor(_OP, name, tensor)
    check_floating(_OP, mu)
    if mu.dim() != 2:
        raise RuntimeError(f"{_OP}(): expected mu of shape (B, Z), but got {tuple(mu.shape)}")
    for name, tensor in named.items():
        if tensor.shape != mu.shape:
            raise RuntimeError(
                f"{_OP}(): expected {name} of shape {tuple(mu.shape)}, but got "
                f"{tuple(tensor.shape)}"
            )
        if tensor.device != mu.device:
            raise RuntimeError(f"{_OP}(): expected {name} on {mu.device}, but got {tensor.device}")
    if logvar.dtype != mu.dtype:
        raise RuntimeError(
            f"{_OP}(): expected mu and logvar to have the same dtype, but got "
            f"{torch_name(mu.dtype)} and {torch_name(logvar.dtype)}"
        )
