"""One set-up for every provider of topk: inputs, the step to time, and a check of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

import sparsevae_ext as sv

Step = Callable[[], object]

#: name: (batch, hidden units, k)
SHAPES = {"sae": (1024, 16384, 32)}
SMALL = {"sae": (128, 2048, 16)}


class Case:
    """Pre-activations without ties, and the gradient that reaches the kept values."""

    def __init__(self, shape: str, scale: str, device: str) -> None:
        self.n_rows, self.width, self.k = (SHAPES if scale == "full" else SMALL)[shape]
        generator = torch.Generator().manual_seed(0)
        # In double, so that no two entries of a row are equal: torch.topk may break ties its own way.
        exact = torch.randn(self.n_rows, self.width, generator=generator, dtype=torch.float64)
        self.h = exact.float().to(device)
        self.grad = torch.randn(self.n_rows, self.k, generator=generator).to(device)
        order = torch.sort(self.h, dim=1, descending=True, stable=True)
        self.values, self.indices = order.values[:, : self.k], order.indices[:, : self.k]

    def facts(self, matrices: int) -> dict[str, object]:
        """For extra_info, with the floor: how many (B, H) matrices are read or written, at least."""
        return {
            "rows": self.n_rows,
            "hidden": self.width,
            "k": self.k,
            "dtype": "float32",
            "floor_bytes": matrices * self.h.nbytes,
        }

    def leaf(self) -> torch.Tensor:
        """The input as something that gets a gradient."""
        return self.h.clone().requires_grad_()

    def check_forward(self, _: str, out: tuple) -> None:
        """AssertionError unless the values are the k largest and the indices say where they are."""
        values, indices = out
        assert torch.equal(values, self.values)
        assert torch.equal(self.h.gather(1, indices), values)

    def check_both(self, provider: str, out: tuple) -> None:
        """AssertionError unless forward and gradient are right."""
        values, indices, grad_h = out
        self.check_forward(provider, (values, indices))
        expected = torch.zeros_like(self.h).scatter(1, indices, self.grad)
        assert torch.equal(grad_h, expected)

    def check_batch(self, _: str, code: torch.Tensor) -> None:
        """AssertionError unless the B*k largest of the batch are kept."""
        kept = torch.topk(self.h.flatten(), self.n_rows * self.k).values
        assert torch.equal(code, torch.where(self.h >= kept[-1], self.h, 0.0))


@cache
def case(shape: str, scale: str, device: str) -> Case:
    """The case, made once per run."""
    return Case(shape, scale, device)


# ---- forward: (case) -> step that returns (values, indices) ---------------------------------------


def forward_sparsevae(c: Case) -> Step:
    """This package."""
    return lambda: sv.functional.topk(c.h, c.k)


def forward_torch(c: Case) -> Step:
    """torch.topk."""
    return lambda: torch.topk(c.h, c.k)


FORWARD = {"sparsevae_ext": forward_sparsevae, "torch.topk": forward_torch}


# ---- forward and backward: (case) -> step that returns (values, indices, gradient) ----------------


def _autograd(c: Case, forward: Callable[[torch.Tensor], tuple]) -> Step:
    h = c.leaf()

    def step() -> object:
        h.grad = None
        values, indices = forward(h)
        values.backward(c.grad)
        return values.detach(), indices, h.grad

    return step


def both_sparsevae(c: Case) -> Step:
    """This package under autograd."""
    return _autograd(c, lambda h: sv.functional.topk(h, c.k))


def both_torch(c: Case) -> Step:
    """torch.topk under autograd."""
    return _autograd(c, lambda h: torch.topk(h, c.k))


def both_compiled(c: Case) -> Step:
    """torch.compile of torch.topk."""
    return _autograd(c, torch.compile(lambda h: torch.topk(h, c.k)))


def both_by_hand(c: Case) -> Step:
    """torch.topk without autograd and a scatter into zeros: the least that torch can do."""

    def step() -> object:
        values, indices = torch.topk(c.h, c.k)
        return values, indices, torch.zeros_like(c.h).scatter_(1, indices, c.grad)

    return step


BOTH = {
    "sparsevae_ext": both_sparsevae,
    "torch.topk": both_torch,
    "torch.topk compiled": both_compiled,
    "torch.topk and scatter_": both_by_hand,
}


# ---- batch_topk: (case) -> step that returns the code ---------------------------------------------


def batch_sparsevae(c: Case) -> Step:
    """This package."""
    return lambda: sv.functional.batch_topk(c.h, c.k)


def batch_torch(c: Case) -> Step:
    """torch.topk of the flattened batch, scattered into zeros."""

    def step() -> torch.Tensor:
        flat = c.h.flatten()
        kept = torch.topk(flat, c.n_rows * c.k, sorted=False)
        return torch.zeros_like(flat).scatter_(0, kept.indices, kept.values).view(c.h.shape)

    return step


BATCH = {"sparsevae_ext": batch_sparsevae, "torch.topk of the batch": batch_torch}
