"""CSRBatch: rows of a sparse matrix as plain tensors, the currency of the whole package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.sparse as sp
import torch

from .convert import check_content, parts_of_dense, parts_of_scipy, parts_of_torch
from .index import INT32_LIMIT, TransposedIndex, transpose_on_cpu, transpose_on_device
from .parts import check_batch_index, check_parts, row_numbers, torch_name

__all__ = ["CSRBatch"]


class CSRBatch:
    """A batch of B sparse rows over N columns, in CSR form.

    Row `i` holds `values[crow[i]:crow[i + 1]]` in the columns `col[crow[i]:crow[i + 1]]`. What is
    not stored is zero and never multiplies; what is stored does, even when it is 0.

    The constructor looks at shapes, dtypes and devices only. The content of `crow` and `col` is
    checked where it is used, so it costs one pass, not two. `from_scipy`, `from_torch` and
    `from_dense` give sorted rows without duplicates.

    It is a pytree node: `torch.compile` and `torch.export` take it as an argument.

    Args:
        crow: (B + 1,) row pointers, int32 or int64.
        col: (nnz,) columns, of the dtype of `crow`.
        values: (nnz,) values.
        shape: (B, N).

    Attributes:
        crow, col, values: the tensors given.
        n_cols: N.
        index: the transposed index once `prepare()` was called, else None.
        batch_index: (B,) int64, the experimental batch of each row, or None; see
            `with_batch_index`.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: shapes, lengths, dtypes or devices do not fit together.

    Example:
        >>> b = CSRBatch(
        ...     torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]), torch.ones(3), shape=(2, 3)
        ... )
        >>> b.shape, b.nnz, b.to_dense().tolist()
        ((2, 3), 3, [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    """

    crow: torch.Tensor
    col: torch.Tensor
    values: torch.Tensor
    n_cols: int
    index: TransposedIndex | None
    # On the class, so that a batch pickled without one has it too.
    batch_index: torch.Tensor | None = None

    def __init__(
        self,
        crow: torch.Tensor,
        col: torch.Tensor,
        values: torch.Tensor,
        shape: Sequence[int],
    ) -> None:
        check_parts(crow, col, values, shape)
        self.crow = crow
        self.col = col
        self.values = values
        self.n_cols = shape[1]
        self.index = None

    @classmethod
    def _make(
        cls,
        crow: Any,
        col: Any,
        values: Any,
        n_cols: int,
        index: Any = None,
        batch_index: Any = None,
    ) -> CSRBatch:
        """Put together parts known to fit (or the stand-ins pytree uses), without any check."""
        batch = cls.__new__(cls)
        batch.crow = crow
        batch.col = col
        batch.values = values
        batch.n_cols = n_cols
        batch.index = index
        batch.batch_index = batch_index
        return batch

    # ---- from other forms ------------------------------------------------------------------

    @classmethod
    def from_scipy(cls, matrix: Any) -> CSRBatch:
        """Copy a scipy CSR matrix into a batch; duplicates are summed and columns sorted.

        Args:
            matrix: (B, N) `csr_matrix` or `csr_array`. float32 and float64 are kept, smaller
                floats, integers and bool become float32. The matrix itself is not changed.

        Returns:
            A batch that owns its memory, with int32 indices where nnz and N allow it.

        Raises:
            TypeError: not a scipy CSR matrix.
            NotImplementedError: complex or object values.
            RuntimeError: a broken row pointer array.
            IndexError: a column outside [0, N).

        Example:
            >>> import scipy.sparse as sp
            >>> CSRBatch.from_scipy(sp.csr_matrix([[0, 2], [1, 0]])).to_dense().tolist()
            [[0.0, 2.0], [1.0, 0.0]]
        """
        parts = parts_of_scipy("CSRBatch.from_scipy", matrix)
        return cls._make(*parts, int(matrix.shape[1]))

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> CSRBatch:
        """Take the parts of a `torch.sparse_csr` tensor; duplicates are summed, columns sorted.

        Parts that are already in order are shared with the tensor, not copied, and gradients
        flow to `tensor.values()` (torch itself has no gradient for a CSR tensor with duplicates).
        Looking at the order of the columns synchronises a CUDA device.

        Args:
            tensor: (B, N), layout `torch.sparse_csr`. Integer and bool values become float32.

        Returns:
            A batch on the same device with the same index dtype.

        Raises:
            TypeError: not a tensor, or another layout.
            RuntimeError: not two-dimensional, or a broken row pointer array.
            IndexError: a column outside [0, N).

        Example:
            >>> CSRBatch.from_torch(torch.eye(2).to_sparse_csr()).to_dense().tolist()
            [[1.0, 0.0], [0.0, 1.0]]
        """
        parts = parts_of_torch("CSRBatch.from_torch", tensor)
        return cls._make(*parts, tensor.shape[1])

    @classmethod
    def from_dense(cls, dense: torch.Tensor) -> CSRBatch:
        """Store the non-zeros of a dense matrix (NaN counts as a non-zero).

        Args:
            dense: (B, N) tensor. Integer and bool values become float32; gradients flow to it.

        Returns:
            A batch on the same device, int32 indices where they fit.

        Raises:
            TypeError: not a dense tensor.
            RuntimeError: not two-dimensional.

        Example:
            >>> CSRBatch.from_dense(torch.tensor([[0.0, 5.0]])).col.tolist()
            [1]
        """
        parts = parts_of_dense("CSRBatch.from_dense", dense)
        return cls._make(*parts, dense.shape[1])

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        return (self.crow.shape[0] - 1, self.n_cols)

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.col.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.values.device

    def __len__(self) -> int:
        return self.crow.shape[0] - 1

    def __repr__(self) -> str:
        return (
            f"CSRBatch(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype}, "
            f"index_dtype={self.crow.dtype}, device={self.device}, "
            f"prepared={self.index is not None})"
        )

    # ---- parts and row sums --------------------------------------------------------------------

    def with_values(self, values: torch.Tensor) -> CSRBatch:
        """The same structure and transposed index with other values.

        Args:
            values: (nnz,), any floating dtype, on the same device; may require grad.

        Returns:
            A batch that shares `crow`, `col` and `index` with this one.

        Raises:
            RuntimeError: `values` has another shape.

        Example:
            >>> b = CSRBatch.from_dense(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).prepare()
            >>> b.with_values(b.values * 3).to_dense().tolist()
            [[3.0, 0.0], [0.0, 6.0]]
        """
        if values.shape != self.col.shape:
            raise RuntimeError(
                f"CSRBatch.with_values(): expected values of shape {tuple(self.col.shape)}, "
                f"but got {tuple(values.shape)}"
            )
        return CSRBatch._make(
            self.crow, self.col, values, self.n_cols, self.index, self.batch_index
        )

    def with_batch_index(self, batch_index: torch.Tensor | None) -> CSRBatch:
        """The same rows with the experimental batch that each comes from.

        A covariate that goes wherever the rows go: through `to`, `pin_memory`, indexing, pickle,
        `torch.compile` and the loader. Models with `n_batch` read it.

        Args:
            batch_index: (B,) numbers from 0 on, of an integer dtype; None takes it away.

        Returns:
            A batch that shares everything else with this one.

        Raises:
            TypeError: it is no tensor.
            RuntimeError: it is no (B,) integer tensor.

        Example:
            >>> b = CSRBatch.from_dense(torch.eye(3)).with_batch_index(torch.tensor([0, 1, 0]))
            >>> b[1:].batch_index.tolist()
            [1, 0]
        """
        if batch_index is not None:
            batch_index = check_batch_index(
                "CSRBatch.with_batch_index", batch_index, len(self), self.device
            )
        return CSRBatch._make(
            self.crow, self.col, self.values, self.n_cols, self.index, batch_index
        )

    def row_ids(self) -> torch.Tensor:
        """The row of every entry, (nnz,), in the dtype of `crow`; no synchronisation.

        Example:
            >>> CSRBatch.from_dense(torch.tensor([[1.0, 1.0], [0.0, 2.0]])).row_ids().tolist()
            [0, 0, 1]
        """
        return torch.repeat_interleave(self.crow.diff(), output_size=self.nnz)

    def row_sums(self) -> torch.Tensor:
        """Sum of each row's values, (B,); an empty row gives 0. Differentiable.

        Example:
            >>> CSRBatch.from_dense(torch.tensor([[1.0, 1.0], [0.0, 0.0]])).row_sums().tolist()
            [2.0, 0.0]
        """
        sums = self.values.new_zeros(self.crow.shape[0] - 1)
        return sums.index_add(0, self.row_ids(), self.values)

    def __getitem__(self, rows: Any) -> CSRBatch:
        """Pick rows: an int, slice, sequence of ints, index tensor or bool mask (B,).

        Always gives a batch; an int gives one row. Negative numbers count from the end. The
        transposed index is not carried over. A tuple is refused: ``x[1, 2]`` is no cell here.
        """
        picked = row_numbers(rows, len(self), self.device)
        self._validate("CSRBatch.__getitem__", columns=False)
        crow = self.crow.long()
        starts = crow[picked]
        lengths = crow[picked + 1] - starts
        bounds = torch.zeros(len(picked) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(lengths, 0, out=bounds[1:])
        if int(bounds[-1]) >= INT32_LIMIT and self.crow.dtype == torch.int32:
            raise RuntimeError("CSRBatch.__getitem__(): 32-bit integer overflow in nnz")
        shift = torch.repeat_interleave(starts - bounds[:-1], lengths)
        entries = shift + torch.arange(len(shift), device=self.device)
        return CSRBatch._make(
            bounds.to(self.crow.dtype),
            self.col[entries],
            self.values[entries],
            self.n_cols,
            batch_index=None if self.batch_index is None else self.batch_index[picked],
        )

    # ---- moves ---------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> CSRBatch:
        """Move to a device and/or cast the values, with the arguments of `torch.Tensor.to`.

        The dtype concerns `values` only. The transposed index moves along.

        Args:
            *args: a device, a dtype, both, or another tensor whose device and dtype to take.
            **kwargs: `device`, `dtype`, `non_blocking`, `copy`.

        Returns:
            This batch if nothing changes, else a new one.

        Example:
            >>> CSRBatch.from_dense(torch.eye(2)).to(torch.float64).dtype
            torch.float64
        """
        values = self.values.to(*args, **kwargs)
        index_kwargs = {k: v for k, v in kwargs.items() if k in ("non_blocking", "copy")}

        def move(t: torch.Tensor) -> torch.Tensor:
            return t.to(values.device, **index_kwargs)

        return self._replace(move, values)

    def pin_memory(self) -> CSRBatch:
        """Copy into page-locked memory, so that `to("cuda", non_blocking=True)` overlaps."""
        return self._replace(lambda t: t.pin_memory(), self.values.pin_memory())

    def is_pinned(self) -> bool:
        """Whether the tensors lie in page-locked memory."""
        return self.values.is_pinned()

    def _replace(self, move: Any, values: torch.Tensor) -> CSRBatch:
        parts = [self.crow, self.col, *(self.index or ())]
        if self.batch_index is not None:
            parts.append(self.batch_index)
        moved = [move(t) for t in parts]
        if values is self.values and all(a is b for a, b in zip(parts, moved, strict=True)):
            return self
        covariate = moved.pop() if self.batch_index is not None else None
        index = TransposedIndex(*moved[2:]) if self.index is not None else None
        return CSRBatch._make(moved[0], moved[1], values, self.n_cols, index, covariate)

    # ---- to other forms ------------------------------------------------------------------------

    def to_torch(self) -> torch.Tensor:
        """The batch as a `torch.sparse_csr` tensor (B, N), sharing memory where torch does.

        Raises:
            RuntimeError: a broken row pointer array, unsorted or duplicate columns (torch's rule).
            IndexError: a column outside [0, N).

        Example:
            >>> CSRBatch.from_dense(torch.eye(2)).to_torch().layout
            torch.sparse_csr
        """
        self._validate("CSRBatch.to_torch")
        return torch.sparse_csr_tensor(
            self.crow, self.col, self.values, self.shape, check_invariants=True
        )

    def to_scipy(self) -> sp.csr_matrix:
        """The batch as a scipy `csr_matrix` (B, N) that owns its memory.

        Raises:
            NotImplementedError: values of a dtype numpy has not, such as bfloat16.
            RuntimeError: a broken row pointer array.
            IndexError: a column outside [0, N).

        Example:
            >>> CSRBatch.from_dense(torch.eye(2)).to_scipy().nnz
            2
        """
        if self.dtype not in (torch.float32, torch.float64):
            raise NotImplementedError(
                f"CSRBatch.to_scipy(): not implemented for '{torch_name(self.dtype)}', "
                f"cast with .to(torch.float32) first"
            )
        self._validate("CSRBatch.to_scipy")
        parts = [t.detach().cpu().numpy().copy() for t in (self.values, self.col, self.crow)]
        return sp.csr_matrix((parts[0], parts[1], parts[2]), shape=self.shape)

    def to_dense(self) -> torch.Tensor:
        """The batch as a dense tensor (B, N); duplicates add up. Differentiable in the values.

        Raises:
            RuntimeError: a broken row pointer array.
            IndexError: a column outside [0, N).

        Example:
            >>> CSRBatch.from_dense(torch.eye(2)).to_dense().tolist()
            [[1.0, 0.0], [0.0, 1.0]]
        """
        self._validate("CSRBatch.to_dense")
        flat = self.values.new_zeros(self.shape[0] * self.n_cols)
        position = self.row_ids().long() * self.n_cols + self.col
        return flat.index_add(0, position, self.values).view(self.shape)

    # ---- the transposed index ------------------------------------------------------------------

    def prepare(self) -> CSRBatch:
        """Build and keep the transposed index; does nothing when it is there.

        On the CPU this is a counting sort on all threads, or a radix sort when N is much larger
        than nnz. On CUDA it is a stable sort on the device, and counting the touched features
        synchronises.

        Returns:
            This batch.

        Raises:
            RuntimeError: a broken row pointer array.
            IndexError: a column outside [0, N).

        Example:
            >>> CSRBatch.from_dense(torch.eye(3)).prepare().index.features.tolist()
            [0, 1, 2]
        """
        if self.index is not None:
            return self
        op = "CSRBatch.prepare"
        if self.device.type != "cpu":
            self.index = transpose_on_device(op, self.crow, self.col, self.n_cols)
            return self
        self.index = transpose_on_cpu(op, self.crow, self.col, self.n_cols)
        return self

    def _validate(self, op: str, columns: bool = True) -> None:
        check_content(op, self.crow, self.col, self.n_cols if columns else None)
