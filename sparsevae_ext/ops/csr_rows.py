"""Row operations on the stored values of a CSR batch, in plain torch.

These are the steps that Mult-VAE takes between the file and its first layer. Each one leaves the
structure of the batch alone and replaces only its values, so a transposed index that was built
before stays valid. All of them are differentiable through the values and trace under
``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.batch import CSRBatch

__all__ = ["check_structure", "csr_dropout", "csr_l2_normalize", "segment_sum"]


def check_structure(op: str, x: CSRBatch) -> None:
    """Checks the content of the row pointers and columns of a batch on the CPU.

    On other devices it would wait for the device, and inside ``torch.compile`` values are not
    known: there it does nothing.

    Args:
        op: name put before the text of an error.
        x: (B, N) batch.

    Raises:
        RuntimeError: if the row pointers do not start at 0, do not end at nnz, or decrease.
        IndexError: if a column is outside [0, N); names the first.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return
    # In torch alone: `Tensor.numpy` does not work inside torch.func.
    if int(x.crow[0]) != 0:
        raise RuntimeError(f"{op}(): `crow_indices[..., 0] == 0` is not satisfied.")
    if int(x.crow[-1]) != x.nnz:
        raise RuntimeError(f"{op}(): `crow_indices[..., -1] == nnz` is not satisfied.")
    falls = x.crow[1:] < x.crow[:-1]
    if bool(falls.any()):
        row = int(falls.to(torch.uint8).argmax())
        raise RuntimeError(
            f"{op}(): expected non-decreasing crow_indices, but they decrease at row {row}"
        )
    if x.nnz == 0:
        return
    low, high = torch.aminmax(x.col)
    if int(low) < 0 or int(high) >= x.n_cols:
        position = int(((x.col < 0) | (x.col >= x.n_cols)).to(torch.uint8).argmax())
        raise IndexError(
            f"{op}(): column index {int(x.col[position])} at position {position} is out of "
            f"bounds for n_features={x.n_cols}"
        )


def segment_sum(values: Tensor, crow: Tensor) -> Tensor:
    """Sums ``values`` over the rows of a CSR structure.

    ``out[i] = sum(values[crow[i]:crow[i + 1]])``; an empty row gives 0. The order of the sum is
    the order of storage, on every device and for every thread count.

    Args:
        values: (nnz,) floating; 16-bit values are summed, and returned, in float32.
        crow: (B + 1,) row pointers, int32 or int64.

    Returns:
        (B,) sums.

    Raises:
        RuntimeError: if ``crow`` decreases (checked on the CPU).

    Example:
        >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2, 3]))
        tensor([3., 0., 4.])
    """
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if crow.shape[0] == 1:
        return values.new_zeros(0)
    # segment_reduce does not check its offsets; clamped ones cannot leave the values, whatever
    # crow says, so a damaged batch costs a wrong sum and never a wrong read.
    offsets = crow.clamp(0, values.shape[0])
    return torch.segment_reduce(values, "sum", offsets=offsets, unsafe=True)


def csr_l2_normalize(x: CSRBatch) -> CSRBatch:
    r"""Scales every row to unit Euclidean length.

    .. math:: \tilde x_{ij} = x_{ij} / \sqrt{\textstyle\sum_j x_{ij}^2}

    as in the input of Mult-VAE (Liang et al. 2018, section 3). A row without a non-zero stays
    zero, with zero gradient. Duplicate columns, which only a hand-made batch has, count one by one.

    Args:
        x: (B, N) batch; 16-bit values are computed in float32 and rounded once.

    Returns:
        A batch with the structure (and transposed index) of ``x`` and new values.

    Raises:
        RuntimeError: if the row pointers are damaged (checked on the CPU).
        IndexError: if a column is out of range (checked on the CPU).

    Example:
        >>> b = CSRBatch.from_dense(torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]))
        >>> csr_l2_normalize(b).values
        tensor([0.6000, 0.8000])
    """
    check_structure("csr_l2_normalize", x)
    values = x.values
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    squares = segment_sum(wide * wide, x.crow)
    some = squares > 0
    # The inner `where` keeps 0 ** -0.5 out of the graph: its gradient would be nan.
    inverse = torch.where(some, torch.where(some, squares, 1.0).rsqrt(), 0.0)
    return x.with_values((wide * inverse[x.row_ids()]).to(values.dtype))


def csr_dropout(
    x: CSRBatch, p: float = 0.5, training: bool = True, mask: Tensor | None = None
) -> CSRBatch:
    """Drops stored values with probability ``p`` and scales the rest by ``1 / (1 - p)``.

    The same expectation as ``torch.nn.functional.dropout`` of the dense matrix, because dropping
    an implicit zero changes nothing; the work is one draw per stored value. A dropped value stays
    stored, as an explicit zero, so the structure is unchanged.

    Args:
        x: (B, N) batch.
        p: probability in [0, 1] of dropping a stored value.
        training: when false, ``x`` is returned as it is.
        mask: (nnz,) bool, true where a value is kept, instead of a random draw.

    Returns:
        A batch with the structure (and transposed index) of ``x`` and new values.

    Raises:
        ValueError: if ``p`` is not in [0, 1].
        RuntimeError: if ``mask`` is not a bool tensor of shape (nnz,).

    Example:
        >>> b = CSRBatch.from_dense(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        >>> csr_dropout(b, 0.5, mask=torch.tensor([True, False, True])).values
        tensor([2., 0., 6.])
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"csr_dropout(): expected p in [0, 1], but got {p}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.values.shape):
        raise RuntimeError(
            f"csr_dropout(): expected mask of dtype torch.bool and shape "
            f"{tuple(x.values.shape)}, but got {mask.dtype} and {tuple(mask.shape)}"
        )
    if not training or p == 0.0:
        return x
    if mask is None:
        return x.with_values(F.dropout(x.values, p, training=True))
    if p == 1.0:
        return x.with_values(torch.zeros_like(x.values))
    return x.with_values(torch.where(mask, x.values / (1.0 - p), 0.0))
