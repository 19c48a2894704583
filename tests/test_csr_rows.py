"""The row operations on CSR values, against the same operation on the dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.ops.csr_rows import csr_dropout, csr_l2_normalize, segment_sum


def make(n_rows=6, n_cols=33, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(n_rows, n_cols, generator=generator, dtype=torch.float64)
    dense = dense * (torch.rand(n_rows, n_cols, generator=generator) < 0.3)
    dense[n_rows // 2] = 0
    return dense.to(dtype), CSRBatch.from_dense(dense.to(dtype)).prepare()


def test_segment_sum_equals_dense_row_sums(device):
    dense, batch = (x.to(device) for x in make())
    torch.testing.assert_close(segment_sum(batch.values, batch.crow), dense.sum(1))
    assert segment_sum(batch.values[:0], batch.crow[:1]).shape == (0,)
    no_entries = torch.zeros(4, dtype=torch.int32, device=device)
    assert segment_sum(batch.values[:0], no_entries).tolist() == [0.0] * 3


def test_segment_sum_of_16_bit_values_is_exact():
    ones = torch.ones(10_000, dtype=torch.float16)
    total = segment_sum(ones, torch.tensor([0, 10_000]))
    assert total.dtype == torch.float32
    assert total.item() == 10_000


def test_segment_sum_never_reads_outside_the_values():
    values = torch.ones(3)
    for crow, total in (([0, 10**9], 3.0), ([-5, 3], 3.0), ([2, 10**15], 1.0)):
        assert segment_sum(values, torch.tensor(crow)).item() == total
    with pytest.raises(RuntimeError):
        segment_sum(values, torch.tensor([3, 0]))


@pytest.mark.parametrize(
    ("error", "crow", "col"),
    [
        (RuntimeError, [1, 2, 3], [0, 1, 0]),
        (RuntimeError, [0, 2, 4], [0, 1, 0]),
        (RuntimeError, [0, 4, 3], [0, 1, 0]),
        (IndexError, [0, 2, 3], [0, 2, 0]),
        (IndexError, [0, 2, 3], [0, 1, -1]),
    ],
)
def test_l2_normalize_refuses_a_damaged_batch(error, crow, col):
    batch = CSRBatch(torch.tensor(crow), torch.tensor(col), torch.ones(3), (2, 2))
    with pytest.raises(error, match=r"csr_l2_normalize\(\)"):
        csr_l2_normalize(batch)


def test_l2_normalize_equals_dense_normalize(device):
    dense, batch = (x.to(device) for x in make())
    unit = csr_l2_normalize(batch)
    torch.testing.assert_close(unit.to_dense(), F.normalize(dense, dim=1))
    assert unit.crow is batch.crow
    assert unit.col is batch.col
    assert unit.index is batch.index


def test_l2_normalize_gradient():
    _, batch = make(4, 7)
    values = batch.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: csr_l2_normalize(batch.with_values(v)).values, (values,)
    )


def test_l2_normalize_of_stored_zeros_is_zero_with_zero_gradient():
    values = torch.tensor([0.0, 0.0, 2.0], requires_grad=True)
    batch = CSRBatch(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0]), values, (2, 2))
    unit = csr_l2_normalize(batch).values
    unit.sum().backward()
    assert unit.tolist() == [0.0, 0.0, 1.0]
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_l2_normalize_keeps_the_dtype_and_sums_in_float32(dtype):
    values = torch.full((5000,), 4.0, dtype=dtype)
    batch = CSRBatch(torch.tensor([0, 5000]), torch.arange(5000), values, (1, 5000))
    unit = csr_l2_normalize(batch).values
    assert unit.dtype == dtype
    torch.testing.assert_close(unit, torch.full_like(values, 5000**-0.5))


def test_l2_normalize_of_no_rows():
    assert csr_l2_normalize(CSRBatch.from_dense(torch.zeros(0, 3))).shape == (0, 3)


def test_dropout_with_a_mask():
    _, batch = make()
    mask = torch.arange(batch.nnz) % 3 != 0
    dropped = csr_dropout(batch, 0.25, mask=mask)
    torch.testing.assert_close(dropped.values, batch.values * mask / 0.75)
    assert dropped.index is batch.index
    everything = csr_dropout(batch, 1.0, mask=mask)
    assert everything.values.tolist() == [0.0] * batch.nnz


def test_dropout_drops_the_right_share_and_keeps_the_mean():
    values = torch.ones(100_000)
    batch = CSRBatch(torch.tensor([0, 100_000]), torch.arange(100_000), values, (1, 100_000))
    torch.manual_seed(0)
    dropped = csr_dropout(batch, 0.3).values
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / 0.7]))
    assert not torch.equal(dropped, csr_dropout(batch, 0.3).values)


def test_dropout_is_off_when_not_training():
    _, batch = make()
    assert csr_dropout(batch, 0.5, training=False) is batch
    assert csr_dropout(batch, 0.0) is batch


def test_dropout_gradient():
    _, batch = make(4, 7)
    mask = torch.arange(batch.nnz) % 2 == 0
    values = batch.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: csr_dropout(batch.with_values(v), 0.5, mask=mask).values, (values,)
    )


def test_dropout_errors():
    _, batch = make()
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"csr_dropout\(\): expected p in \[0, 1\]"):
            csr_dropout(batch, p)
    with pytest.raises(RuntimeError, match="mask"):
        csr_dropout(batch, 0.5, mask=torch.ones(batch.nnz))
    with pytest.raises(RuntimeError, match="mask"):
        csr_dropout(batch, 0.5, mask=torch.ones(batch.nnz + 1, dtype=torch.bool))


def test_compile_fullgraph_equals_eager():
    torch._dynamo.reset()
    _, batch = make()
    mask = torch.arange(batch.nnz) % 2 == 0

    def chain(batch, mask):
        return csr_dropout(csr_l2_normalize(batch), 0.5, mask=mask).values.square().sum()

    results = []
    for function in (chain, torch.compile(chain, fullgraph=True, backend="aot_eager")):
        values = batch.values.clone().requires_grad_()
        total = function(batch.with_values(values), mask)
        total.backward()
        results.append((total.detach(), values.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
