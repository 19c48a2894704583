"""CSRBatch: its constructor, its parts, its rows, and where it lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_batches import batch, random_matrix

from sparsevae_ext.data import CSRBatch

# ---- the constructor -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crow", "col", "values", "shape", "match"),
    [
        ([0, 2], [0, 1], [1.0, 2.0], (2, 3), r"rows \+ 1 \(=3\), but got 2"),
        ([], [], [], (0, 3), r"rows \+ 1 \(=1\), but got 0"),
        ([0, 1, 2], [0, 1], [1.0], (2, 3), "but got 2 and 1"),
        ([0, 1, 2], [0, 1], [1.0, 2.0], (2,), "expected shape"),
        ([0, 1, 2], [0, 1], [1.0, 2.0], (2, -3), "expected shape"),
        ([0, 1, 2], [[0], [1]], [1.0, 2.0], (2, 3), "col to be a dense 1-D tensor"),
    ],
)
def test_constructor_structure(crow, col, values, shape, match):
    with pytest.raises(RuntimeError, match=match):
        batch(crow, col, values, shape)


def test_constructor_dtypes():
    crow, col, values = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1)
    with pytest.raises(RuntimeError, match="must have the same dtype, but got Int and Long"):
        CSRBatch(crow.int(), col, values, (1, 1))
    with pytest.raises(RuntimeError, match="must be Int or Long, but got Short"):
        CSRBatch(crow.short(), col.short(), values, (1, 1))
    with pytest.raises(RuntimeError, match="must be Int or Long, but got Float"):
        CSRBatch(crow.float(), col.float(), values, (1, 1))
    with pytest.raises(RuntimeError, match="32-bit integer overflow in nnz"):
        CSRBatch(crow.int(), col.int(), values, (1, 2**31))
    with pytest.raises(TypeError, match="expected col to be a tensor, but got list"):
        CSRBatch(crow, [0], values, (1, 1))
    with pytest.raises(RuntimeError, match="crow on cpu and values on meta"):
        CSRBatch(crow, col, values.to("meta"), (1, 1))


def test_constructor_leaves_index_values_to_their_users():
    b = batch([0, 1], [7], [1.0], (1, 3))
    for use in (b.prepare, b.to_dense, b.to_scipy, b.to_torch):
        with pytest.raises(IndexError, match="column index 7 at position 0 is out of bounds"):
            use()
    b = batch([0, 5, 1], [0], [1.0], (2, 3))
    for use in (b.prepare, b.to_dense, b.to_scipy, b.to_torch, lambda: b[0]):
        with pytest.raises(RuntimeError, match="non-decreasing"):
            use()


# ---- parts ---------------------------------------------------------------------------------------


def test_rows_ids_and_sums():
    x = random_matrix(9, 11, density=0.1, seed=3)
    assert 0 in np.diff(x.indptr)
    b = CSRBatch.from_scipy(x)
    assert b.row_ids().tolist() == x.tocoo().row.tolist()
    np.testing.assert_allclose(b.row_sums().numpy(), np.asarray(x.sum(1)).ravel())
    values = b.values.clone().requires_grad_()
    (b.with_values(values).row_sums() * torch.arange(9.0)).sum().backward()
    assert torch.equal(values.grad, b.row_ids().float())


def test_with_values_shares_the_structure():
    b = CSRBatch.from_scipy(random_matrix(4, 5)).prepare()
    c = b.with_values(b.values * 2)
    assert c.crow is b.crow and c.col is b.col and c.index is b.index
    assert torch.equal(c.to_dense(), b.to_dense() * 2)
    with pytest.raises(RuntimeError, match="expected values of shape"):
        b.with_values(b.values[:-1])


@pytest.mark.parametrize(
    "rows",
    [
        [3, 0, 3, -1],
        slice(1, 7, 2),
        slice(None, None, -1),
        slice(5, 2),
        [],
        torch.tensor([2, 5]),
        np.array([1, -2], dtype=np.int32),
        np.arange(9) % 2 == 0,
        torch.arange(9) > 5,
    ],
)
def test_getitem(rows):
    x = random_matrix(9, 11, density=0.2, seed=3)
    b = CSRBatch.from_scipy(x).prepare()
    picked = b[rows]
    want = x.toarray()[np.asarray(rows) if not isinstance(rows, (slice, list)) else rows]
    if isinstance(rows, list) and not rows:
        want = want.reshape(0, 11)
    np.testing.assert_array_equal(picked.to_dense().numpy(), want)
    assert picked.index is None
    assert picked.crow.dtype == b.crow.dtype


def test_getitem_int_and_errors():
    b = CSRBatch.from_scipy(random_matrix(3, 4))
    assert b[1].shape == (1, 4)
    assert torch.equal(b[np.int64(2)].to_dense(), b.to_dense()[2:])
    for rows in (3, -4, [0, 3]):
        with pytest.raises(IndexError, match="out of range for a batch of 3 rows"):
            b[rows]
    with pytest.raises(IndexError, match="mask of shape"):
        b[torch.tensor([True])]
    with pytest.raises(TypeError, match="row numbers in one dimension"):
        b[[[0]]]
    with pytest.raises(TypeError, match="row numbers in one dimension"):
        b[[0.5]]
    for cell in ((1, 2), (slice(None), 0), (0,), None, ...):  # (1, 2) would be rows 1 and 2
        with pytest.raises(TypeError, match="only rows can be picked"):
            b[cell]


def test_to_moves_everything():
    b = CSRBatch.from_scipy(random_matrix(3, 4)).prepare()
    assert b.to("cpu") is b
    assert b.to(torch.float32) is b
    c = b.to(torch.float64)
    assert c.dtype == torch.float64 and c.index.row is b.index.row
    m = b.to("meta")
    tensors = (m.crow, m.col, m.values, *m.index)
    assert all(t.device.type == "meta" for t in tensors)
    assert b.to(device="cpu", dtype=torch.float16, non_blocking=True).dtype == torch.float16
    copied = b.to("cpu", copy=True)
    assert copied.col.data_ptr() != b.col.data_ptr()


# ---- a life as an argument -----------------------------------------------------------------------


def test_repr_names_the_facts():
    text = repr(CSRBatch.from_scipy(random_matrix(4, 5)).prepare())
    assert "shape=(4, 5)" in text and "prepared=True" in text


@pytest.mark.cuda
def test_cuda_pin_move_and_prepare():
    x = random_matrix(31, 129)
    b = CSRBatch.from_scipy(x).prepare()
    pinned = b.pin_memory()
    assert pinned.is_pinned() and pinned.index.row.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert moved.device.type == moved.index.perm.device.type == "cuda"
    on_device = CSRBatch.from_scipy(x).to("cuda").prepare().index
    assert all(torch.equal(p.cpu(), q) for p, q in zip(on_device, b.index, strict=True))
