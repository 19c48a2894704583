"""One set-up for every provider of reparameterize_kl: inputs, the step to time, a check of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

import sparsevae_ext as sv

Step = Callable[[], object]
Op = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: name: (rows, dimensions of the code)
SHAPES = {"4096x256": (4096, 256), "500x200": (500, 200)}
#: The same, small enough to run through in a second.
SMALL = {"4096x256": (256, 64), "500x200": (100, 40)}


class Case:
    """The tensors of one shape."""

    def __init__(self, shape: str, scale: str, device: str) -> None:
        rows, width = (SHAPES if scale == "full" else SMALL)[shape]
        generator = torch.Generator().manual_seed(0)
        mu, logvar, grad = (torch.randn(rows, width, generator=generator) for _ in range(3))
        self.mu = mu.to(device).requires_grad_()
        self.logvar = logvar.to(device).requires_grad_()
        self.grad_z = grad.to(device)
        self.grad_kl = torch.ones(rows, device=device)

    def facts(self) -> dict[str, object]:
        """For extra_info, with the floor of a forward and a backward pass.

        Bytes: mu, logvar, z; mu, logvar, grad_z and two gradients. The arithmetic is no matrix product and
        has no floor here.
        """
        return {
            "rows": self.mu.shape[0],
            "width": self.mu.shape[1],
            "dtype": "float32",
            "floor_bytes": 8 * self.mu.nbytes,
        }

    def check(self, provider: str, out: object) -> None:
        """AssertionError unless kl is right, z a draw, and the gradients those of that draw."""
        z, kl, grad_mu, grad_logvar = (t.detach().double() for t in out)  # type: ignore[attr-defined]
        mu, logvar, grad = (t.detach().double() for t in (self.mu, self.logvar, self.grad_z))
        eps = (z - mu) / torch.exp(logvar / 2)
        n = eps.numel()
        assert abs(eps.mean()) < 5 / n**0.5 and abs(eps.var() - 1) < 5 * (2 / n) ** 0.5, provider
        exact = 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(1)
        torch.testing.assert_close(kl, exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad_mu, grad + mu, rtol=1e-4, atol=1e-4)
        slope = 0.5 * ((z - mu) * grad + torch.expm1(logvar))
        torch.testing.assert_close(grad_logvar, slope, rtol=1e-4, atol=1e-4)


@cache
def case(shape: str, scale: str, device: str) -> Case:
    """The case, made once per run."""
    return Case(shape, scale, device)


def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """What users write."""
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z, 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(dim=1)


def _both(c: Case, op: Op) -> Step:
    def step() -> object:
        z, kl = op(c.mu, c.logvar)
        grads = torch.autograd.grad((z, kl), (c.mu, c.logvar), (c.grad_z, c.grad_kl))
        return z, kl, *grads

    return step


def both_sparsevae(c: Case) -> Step:
    """This package."""
    return _both(c, sv.functional.reparameterize_kl)


def both_eager(c: Case) -> Step:
    """Plain torch."""
    return _both(c, eager)


def both_compiled(c: Case) -> Step:
    """torch.compile of plain torch."""
    return _both(c, torch.compile(eager, fullgraph=True, dynamic=False))


BOTH = {
    "sparsevae_ext": both_sparsevae,
    "eager": both_eager,
    "torch.compile": both_compiled,
}
