"""Calls of the ops in eager mode without what only tracing and transforms need.

Small batches feel Python: of some 120 microseconds that a forward and a backward once took beside their
kernels, these two took most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _records_nothing() -> bool:
    """True in the backward of an ordinary training step: no create_graph, no tracing, no transform."""
    return not torch.is_grad_enabled() and not _is_traced()


class OpFunction(torch.autograd.Function):
    """An ``autograd.Function`` that costs less Python per call; the base of all that wrap an op.

    Its ``forward`` takes its arguments by position and all of them.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """``Function.apply`` without what finds out which defaults and keywords a call means.

        That puts the signature of ``forward`` together and binds the arguments to it, in every call.
        """
        if _is_traced():
            return super().apply(*args)
        args = unwrap_dead_wrappers(args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def in_backward(cls, *args: Any) -> Any:
        """``apply``, for the backward of another Function.

        Only who differentiates again, or transforms, needs the Function: to be refused, or mapped. To
        everybody else its ``forward`` is the same.
        """
        return cls.forward(*args) if _records_nothing() else cls.apply(*args)


def below_autograd(op: Any, *args: Any) -> Any:
    """An op's result without its autograd layer, which is Python; for where no derivative is recorded.

    That is inside an ``autograd.Function``, or where ``no_derivative_wanted`` says so. Under
    ``torch.compile`` and the transforms of ``torch.func`` it is a plain call.
    """
    if _is_traced():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)
