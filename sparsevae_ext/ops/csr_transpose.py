"""csr_transpose: the transposed index of a batch that comes without one.

The contract is in csrc/ops/csr_transpose.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _load
from ._registry import use_kernel


def csr_transpose_reference(
    crow: Tensor, col: Tensor, n_features: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op in plain torch, without a synchronisation: one stable sort and two prefix sums."""
    nnz = col.shape[0]
    perm = torch.sort(col, stable=True).indices
    sorted_col = col[perm]
    rows = torch.arange(crow.shape[0] - 1, device=crow.device, dtype=crow.dtype)
    row = torch.repeat_interleave(rows, (crow[1:] - crow[:-1]).long(), output_size=nnz)[perm]
    first = torch.ones(nnz, dtype=torch.bool, device=col.device)
    first[1:] = sorted_col[1:] != sorted_col[:-1]
    slot = torch.cumsum(first, 0) - 1
    features = torch.zeros_like(col).scatter_(0, slot, sorted_col)
    counts = torch.zeros(nnz, dtype=torch.int64, device=col.device)
    counts.scatter_add_(0, slot, torch.ones_like(counts))
    ptr = torch.zeros(nnz + 1, dtype=col.dtype, device=col.device)
    ptr[1:] = torch.cumsum(counts, 0)
    return features, ptr, row, perm.to(col.dtype), first.sum().reshape(1)


def csr_transpose(
    crow: Tensor, col: Tensor, n_features: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """features, ptr, row, perm (padded to nnz slots) and the number of used slots, on the device."""
    if use_kernel("csr_transpose", col):
        return torch.ops.sparsevae_ext.csr_transpose.default(crow, col, n_features)
    return csr_transpose_reference(crow, col, n_features)


if _load.C is not None:

    @torch.library.register_fake("sparsevae_ext::csr_transpose")
    def _(crow: Tensor, col: Tensor, n_features: int) -> tuple[Tensor, ...]:
        nnz = col.shape[0]
        slots = [col.new_empty(nnz), col.new_empty(nnz + 1), col.new_empty(nnz), col.new_empty(nnz)]
        return (*slots, col.new_empty(1, dtype=torch.int64))
