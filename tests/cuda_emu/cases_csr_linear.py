"""Inputs for the csr_linear ops and fp64 oracles in plain torch, for any ops namespace and device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What a sum of about 2,000 terms may lose, relative to the sum of their magnitudes.
ACCUMULATION_ERROR = {torch.float64: 2.0**-48, torch.float32: 2.0**-20}
SMALLEST = {torch.float16: 2.0**-24}


@dataclass
class Problem:
    """A CSR matrix (B, N), a weight (H, N) stored by features, a bias and an output gradient."""

    crow: Tensor
    col: Tensor
    values: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor

    @property
    def rows(self) -> Tensor:
        """The row of each entry."""
        lengths = (self.crow[1:] - self.crow[:-1]).long()
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    def dense(self, values: Tensor | None = None) -> Tensor:
        """X as a dense fp64 matrix, duplicates added."""
        shape = (len(self.crow) - 1, self.weight.shape[1])
        x = torch.zeros(shape, dtype=torch.float64, device=self.crow.device)
        entries = (self.values if values is None else values).double()
        return x.index_put((self.rows, self.col.long()), entries, accumulate=True)


class TransposedIndex(NamedTuple):
    """The entries by feature (see csrc/ops/csr_transpose.cpp)."""

    features: Tensor
    ptr: Tensor
    row: Tensor
    perm: Tensor


def problem(
    lengths: Sequence[int],
    n: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int32,
    bias: bool = True,
    misaligned: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """Rows of the given lengths over n columns, drawn with repetition and in no order."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        data = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
        if not misaligned:
            return data
        room = torch.empty(data.numel() + 1, dtype=dtype, device=device)
        return room[1:].view(shape).copy_(data)

    crow = torch.tensor([0, *lengths]).cumsum(0)
    nnz = int(crow[-1])
    col = torch.randint(max(n, 1), (nnz,), generator=generator)
    return Problem(
        crow=crow.to(index).to(device),
        col=col.to(index).to(device),
        values=tensor(nnz),
        weight=tensor(n, width).t(),
        bias=tensor(width) if bias else None,
        grad=tensor(len(lengths), width),
    )


def transposed(p: Problem, padded: bool) -> TransposedIndex:
    """The transposed index; padded to one slot per entry, as it is when made without a host count."""
    order = torch.sort(p.col.long(), stable=True).indices
    features, counts = torch.unique_consecutive(p.col.long()[order], return_counts=True)
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if padded:
        spare = len(p.col) - len(features)
        features = torch.cat([features, features.new_zeros(spare)])
        ptr = torch.cat([ptr, ptr.new_full((spare,), len(p.col))])
    parts = (features, ptr, p.rows[order], order)
    return TransposedIndex(*(part.to(p.crow.dtype) for part in parts))


def assert_near(actual: Tensor, expected: Tensor, magnitude: Tensor, what: str) -> None:
    """Compares with the exact result, allowing for one rounding of it and for the accumulation."""
    dtype = actual.dtype
    accumulated = ACCUMULATION_ERROR.get(dtype, ACCUMULATION_ERROR[torch.float32])
    allowed = torch.finfo(dtype).eps * expected.abs() + accumulated * magnitude
    allowed = allowed + SMALLEST.get(dtype, 0.0)
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    error = (actual.double() - expected).abs()
    bad = ~(error <= allowed)
    assert not bad.any(), (
        f"{what}: {int(bad.sum())} of {bad.numel()} wrong, first at {bad.nonzero()[0].tolist()}: "
        f"{actual[bad][0]} instead of {expected[bad][0]}"
    )


def run(ops: Any, p: Problem, padded: bool = False) -> dict[str, Tensor]:
    """All four ops."""
    index = transposed(p, padded)
    n = p.weight.shape[1]
    entries = (p.values, p.grad)
    return {
        "forward": ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias),
        "weight_grad": ops.csr_linear_weight_grad(*index, *entries, n),
        "weight_grad_rows": ops.csr_linear_weight_grad_rows(*index[1:], *entries),
        "values_grad": ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad),
    }


def check(ops: Any, p: Problem, padded: bool = False) -> dict[str, Tensor]:
    """Runs all four ops and compares them with dense fp64 matrix products."""
    results = run(ops, p, padded)
    x, magnitude = p.dense(), p.dense(p.values.abs())
    w, g = p.weight.double(), p.grad.double()
    y, y_magnitude = x @ w.t(), magnitude @ w.abs().t()
    if p.bias is not None:
        y, y_magnitude = y + p.bias.double(), y_magnitude + p.bias.double().abs()
    dw, dw_magnitude = x.t() @ g, magnitude.t() @ g.abs()
    features = transposed(p, padded=False).features.long()
    spare = len(results["weight_grad_rows"]) - len(features)
    rows, cols = p.rows, p.col.long()

    assert_near(results["forward"], y, y_magnitude, "forward")
    assert_near(results["weight_grad"], dw, dw_magnitude, "weight_grad")
    unused = dw.new_zeros(spare, dw.shape[1])
    assert_near(
        results["weight_grad_rows"],
        torch.cat([dw[features], unused]),
        torch.cat([dw_magnitude[features], unused]),
        "weight_grad_rows",
    )
    gathered, columns = g[rows], w.t()[cols]
    assert_near(
        results["values_grad"],
        (gathered * columns).sum(1),
        (gathered * columns).abs().sum(1),
        "values_grad",
    )
    for name, result in results.items():
        assert result.dtype == p.values.dtype, name
    return results


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        for width in (36, 129):
            check(ops, problem([0, 1, 70, 3, 0], 9, width, dtype=dtype))
        check(ops, problem([300, 130], 9, 33, dtype=dtype, index=torch.int64), padded=True)
    check(ops, problem([300, 130], 9, 128))
    check(ops, problem([0, 1, 70, 3, 0], 9, 36, misaligned=True))
    check(ops, problem([300, 130], 9, 36, misaligned=True))
    check(ops, problem([2] * 40, 9, 700))
    check(ops, problem([], 0, 4))
    check(ops, problem([0, 0], 3, 5))


def tiny_cases(ops: Any) -> None:
    """Every kernel with a block or two, for the thread sanitizer."""
    check(ops, problem([0, 1, 70], 9, 36))
    check(ops, problem([300, 1], 9, 33), padded=True)
