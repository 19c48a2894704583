"""One set-up for every provider of jumprelu: inputs, the step to time, and a check of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

import sparsevae_ext as sv
from sparsevae_ext.ops.jumprelu import jumprelu_reference

Step = Callable[[], object]

#: name: (batch, hidden units)
SHAPES = {"sae": (1024, 16384)}
SMALL = {"sae": (128, 1024)}
BANDWIDTH = 0.1


class Case:
    """Pre-activations, thresholds, and the gradients that reach activations and counts."""

    def __init__(self, shape: str, scale: str, device: str) -> None:
        self.n_rows, self.width = (SHAPES if scale == "full" else SMALL)[shape]
        generator = torch.Generator().manual_seed(0)
        h = torch.randn(self.n_rows, self.width, generator=generator)
        threshold = torch.rand(self.width, generator=generator) + 0.5
        grad = torch.randn(self.n_rows, self.width, generator=generator)
        self.h, self.threshold, self.grad = (t.to(device) for t in (h, threshold, grad))
        self.grad_count = torch.full((self.n_rows,), 0.1, device=device)
        near = (self.h.double() - self.threshold.double()).abs() < BANDWIDTH / 2
        inner = self.threshold.double() * self.grad.double() + 0.1
        self.expected = torch.where(near, inner, 0.0).sum(0) / -BANDWIDTH

    def facts(self) -> dict[str, object]:
        """For extra_info, with the floor of a forward and a backward pass."""
        return {
            "rows": self.n_rows,
            "hidden": self.width,
            "dtype": "float32",
            "floor_bytes": 5 * self.h.nbytes,  # h, activated; h, its gradient, the result
        }

    def check(self, _: str, out: tuple) -> None:
        """AssertionError unless outputs and gradients are right."""
        code, count, grad_h, grad_threshold = out
        active = self.h > self.threshold
        assert torch.equal(code, torch.where(active, self.h, 0.0))
        assert torch.equal(count, active.sum(1).float())
        assert torch.equal(grad_h, torch.where(active, self.grad, 0.0))
        error = (grad_threshold.double() - self.expected).abs().max()
        # An entry within rounding of the kernel's edge may fall on either side of it.
        assert error <= 0.02 * self.expected.abs().max()


@cache
def case(shape: str, scale: str, device: str) -> Case:
    """The case, made once per run."""
    return Case(shape, scale, device)


def _autograd(c: Case, forward: Callable[..., tuple]) -> Step:
    h, threshold = c.h.clone().requires_grad_(), c.threshold.clone().requires_grad_()

    def step() -> object:
        h.grad = threshold.grad = None
        code, count = forward(h, threshold, BANDWIDTH)
        torch.autograd.backward([code, count], [c.grad, c.grad_count])
        return code.detach(), count.detach(), h.grad, threshold.grad

    return step


#: (case) -> step that returns (code, count, gradient of h, gradient of the threshold)
BOTH = {
    "sparsevae_ext": lambda c: _autograd(c, sv.functional.l0_activity),
    "torch": lambda c: _autograd(c, jumprelu_reference),
    "torch compiled": lambda c: _autograd(c, torch.compile(jumprelu_reference)),
}
