"""CSRBatch: structure, conversions, the transposed index, and its life as a pytree."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.utils._pytree as pytree

from sparsevae_ext import _load
from sparsevae_ext.data import CSRBatch, TransposedIndex
from sparsevae_ext.data.index import transpose_arrays, transpose_on_device

BACKENDS = ["compiled", "numpy"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Run with the compiled helper and with its numpy twin."""
    if request.param == "numpy":
        monkeypatch.setattr(_load, "C", None)
    elif _load.C is None:
        pytest.skip("the extension is not built")
    return request.param


def random_matrix(n_rows, n_cols, density=0.2, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_rows, n_cols)) * (rng.random((n_rows, n_cols)) < density)
    return sp.csr_matrix(dense.astype(dtype))


def batch(crow, col, values, shape, index_dtype=torch.int64):
    return CSRBatch(
        torch.tensor(crow, dtype=index_dtype),
        torch.tensor(col, dtype=index_dtype),
        torch.tensor(values),
        shape,
    )


# ---- from_scipy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (5, 33), (0, 4), (4, 0), (0, 0)])
def test_from_scipy_equals_dense(make, shape):
    x = make(random_matrix(*shape))
    b = CSRBatch.from_scipy(x)
    assert b.shape == shape
    assert len(b) == shape[0]
    assert b.nnz == x.nnz
    np.testing.assert_array_equal(b.to_dense().numpy(), x.toarray())
    assert (b.crow.dtype, b.col.dtype, b.values.dtype) == (torch.int32,) * 2 + (torch.float32,)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.bool_, torch.float32),
        (np.int8, torch.float32),
        (np.uint16, torch.float32),
        (np.int64, torch.float32),
        (np.float16, torch.float32),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
        (">f4", torch.float32),
        (">f8", torch.float64),
        (">i4", torch.float32),
    ],
)
def test_from_scipy_value_dtypes(dtype, expected):
    x = random_matrix(5, 6)
    want = x.toarray() if dtype is not np.bool_ else (x.toarray() != 0)
    x.data = x.data.astype(dtype)
    b = CSRBatch.from_scipy(x)
    assert b.dtype == expected
    np.testing.assert_array_equal(b.to_dense().numpy(), want)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int64, np.uint32, ">i4", ">i8"])
def test_from_scipy_index_dtypes(dtype):
    x = random_matrix(5, 6)
    want = x.toarray()
    x.indices, x.indptr = x.indices.astype(dtype), x.indptr.astype(dtype)
    b = CSRBatch.from_scipy(x)
    assert b.col.dtype == b.crow.dtype == torch.int32
    np.testing.assert_array_equal(b.to_dense().numpy(), want)


def test_from_scipy_wide_matrix_gets_int64():
    x = sp.csr_matrix((np.ones(1), np.array([2**33]), np.array([0, 1])), shape=(1, 2**33 + 1))
    b = CSRBatch.from_scipy(x)
    assert b.col.dtype == b.crow.dtype == torch.int64
    assert b.prepare().index.features.tolist() == [2**33]


def test_from_scipy_sums_duplicates_sorts_and_leaves_the_matrix_alone():
    data = np.array([1, 2, 4, 8, 16, 32], dtype=np.float32)
    indices = np.array([3, 0, 3, 2, 1, 1], dtype=np.int32)
    x = sp.csr_matrix((data, indices, np.array([0, 3, 3, 6])), shape=(3, 4))
    b = CSRBatch.from_scipy(x)
    assert b.crow.tolist() == [0, 2, 2, 4]
    assert b.col.tolist() == [0, 3, 1, 2]
    assert b.values.tolist() == [2.0, 5.0, 48.0, 8.0]
    np.testing.assert_array_equal(x.data, [1, 2, 4, 8, 16, 32])
    np.testing.assert_array_equal(x.indices, [3, 0, 3, 2, 1, 1])


def test_from_scipy_does_not_trust_the_stale_sorted_flag():
    x = sp.csr_matrix(np.array([[1.0, 2.0, 3.0]], dtype=np.float32))
    assert x.has_sorted_indices and x.has_canonical_format
    x.indices[:] = [2, 0, 2]
    assert x.has_sorted_indices and x.has_canonical_format  # stale
    b = CSRBatch.from_scipy(x)
    assert b.col.tolist() == [0, 2]
    assert b.values.tolist() == [2.0, 4.0]


def test_from_scipy_read_only_without_warning_and_without_aliasing():
    x = random_matrix(4, 5)
    for array in (x.data, x.indices, x.indptr):
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        b = CSRBatch.from_scipy(x)
    before = x.toarray()
    b.values.mul_(100)
    np.testing.assert_array_equal(x.toarray(), before)


def test_from_scipy_ignores_spare_room():
    x = random_matrix(3, 4)
    want = x.toarray()
    x.data, x.indices = np.append(x.data, 7).astype(np.float32), np.append(x.indices, 99)
    np.testing.assert_array_equal(CSRBatch.from_scipy(x).to_dense().numpy(), want)


def test_from_scipy_keeps_stored_zeros():
    x = sp.csr_matrix((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert CSRBatch.from_scipy(x).nnz == 2


@pytest.mark.parametrize("make", [sp.csc_matrix, sp.coo_matrix, sp.lil_matrix, sp.csc_array])
def test_from_scipy_other_formats(make):
    with pytest.raises(TypeError, match=r"\.tocsr\(\)"):
        CSRBatch.from_scipy(make(np.eye(2)))


@pytest.mark.parametrize("thing", [np.eye(2), [[1, 2]], None, torch.eye(2)])
def test_from_scipy_not_a_matrix(thing):
    with pytest.raises(TypeError, match="expected a scipy CSR matrix"):
        CSRBatch.from_scipy(thing)


def test_from_scipy_complex():
    with pytest.raises(NotImplementedError, match="complex128"):
        CSRBatch.from_scipy(sp.csr_matrix(np.array([[1j]])))


def broken(indptr, indices, shape=(2, 3)):
    x = sp.csr_matrix(shape, dtype=np.float32)
    x.indptr, x.indices = np.array(indptr), np.array(indices)
    x.data = np.ones(len(indices), dtype=np.float32)
    return x


@pytest.mark.parametrize(
    ("indptr", "indices", "error", "match"),
    [
        ([0, 1, 2], [0, 3], IndexError, "column index 3 at position 1 is out of bounds"),
        ([0, 1, 2], [0, 10**12], IndexError, "column index 1000000000000 at position 1"),
        ([0, 1, 2], [-1, 5], IndexError, "column index -1 at position 0"),
        ([1, 1, 2], [0, 1], RuntimeError, r"crow_indices\[..., 0\] == 0"),
        ([0, 1, 3], [0, 1], RuntimeError, r"crow_indices\[..., -1\] == nnz"),
        ([0, 3, 2], [0, 1], RuntimeError, "non-decreasing, but row 1 has 2 after 3"),
        ([0, 2], [0, 1], RuntimeError, r"number of rows \+ 1 \(=3\), but got 2"),
        ([0.0, 1.0, 2.0], [0, 1], RuntimeError, "must be Int or Long, but got float64"),
    ],
)
def test_from_scipy_broken_structure(indptr, indices, error, match):
    with pytest.raises(error, match=match):
        CSRBatch.from_scipy(broken(indptr, indices))


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


# ---- torch and dense -----------------------------------------------------------------------------


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_torch_round_trip(index_dtype):
    x = random_matrix(6, 9)
    t = torch.sparse_csr_tensor(
        torch.from_numpy(x.indptr).to(index_dtype),
        torch.from_numpy(x.indices).to(index_dtype),
        torch.from_numpy(x.data),
        x.shape,
        check_invariants=True,
    )
    b = CSRBatch.from_torch(t)
    assert b.crow.dtype == index_dtype
    back = b.to_torch()
    assert back.layout == torch.sparse_csr
    np.testing.assert_array_equal(back.to_dense().numpy(), x.toarray())
    assert (b.to_scipy() != x).nnz == 0


def test_from_torch_passes_the_gradient_on():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    t = torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([2, 0]), values, (2, 3))
    (CSRBatch.from_torch(t).values * torch.tensor([1.0, 10.0])).sum().backward()
    assert values.grad.tolist() == [1.0, 10.0]


def test_from_torch_sums_duplicates_and_sorts():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    with torch.sparse.check_sparse_tensor_invariants(False):
        t = torch.sparse_csr_tensor(
            torch.tensor([0, 3, 3, 5]), torch.tensor([2, 0, 2, 1, 0]), values, (3, 3)
        )
    b = CSRBatch.from_torch(t)
    assert b.crow.tolist() == [0, 2, 2, 4]
    assert b.col.tolist() == [0, 2, 0, 1]
    assert b.values.tolist() == [2.0, 5.0, 16.0, 8.0]


def test_from_torch_refuses_other_things():
    eye = torch.eye(3)
    for t in (eye.to_sparse_coo(), eye.to_sparse_csc(), eye.to_sparse_bsr((1, 1)), eye):
        with pytest.raises(TypeError, match="expected a 2-D sparse_csr tensor, but got layout"):
            CSRBatch.from_torch(t)
    with pytest.raises(RuntimeError, match=r"2-D sparse_csr tensor, but got shape \(2, 3, 3\)"):
        CSRBatch.from_torch(torch.stack([eye, eye]).to_sparse_csr())
    with pytest.raises(TypeError, match="got ndarray"):
        CSRBatch.from_torch(np.eye(2))
    with torch.sparse.check_sparse_tensor_invariants(False):
        bad = torch.sparse_csr_tensor(
            torch.tensor([0, 1]), torch.tensor([9]), torch.ones(1), (1, 3)
        )
    with pytest.raises(IndexError, match="column index 9"):
        CSRBatch.from_torch(bad)


@pytest.mark.parametrize("shape", [(4, 7), (0, 3), (3, 0), (1, 1)])
def test_from_dense(shape):
    dense = torch.from_numpy(random_matrix(*shape).toarray()).requires_grad_()
    b = CSRBatch.from_dense(dense)
    assert torch.equal(b.to_dense(), dense)
    assert b.crow.dtype == torch.int32
    (b.to_dense() * 3).sum().backward()
    assert torch.equal(dense.grad, (dense != 0) * 3.0)


def test_from_dense_keeps_nan_and_casts_integers():
    assert CSRBatch.from_dense(torch.tensor([[float("nan"), 0.0]])).col.tolist() == [0]
    assert CSRBatch.from_dense(torch.tensor([[True, False]])).dtype == torch.float32
    with pytest.raises(TypeError, match="expected a dense 2-D tensor"):
        CSRBatch.from_dense([[1.0]])
    with pytest.raises(RuntimeError, match="but got shape"):
        CSRBatch.from_dense(torch.ones(3))


def test_to_dense_adds_duplicates_up():
    assert batch([0, 3], [1, 1, 0], [1.0, 2.0, 4.0], (1, 2)).to_dense().tolist() == [[4.0, 3.0]]


def test_to_scipy_of_bfloat16_says_what_to_do():
    b = CSRBatch.from_dense(torch.eye(2)).to(torch.bfloat16)
    with pytest.raises(NotImplementedError, match="BFloat16"):
        b.to_scipy()


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


# ---- the transposed index ------------------------------------------------------------------------


def reference_index(x):
    """Features, ptr, row, perm from first principles; x may hold duplicates in any order."""
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    perm = np.lexsort((np.arange(len(x.indices)), x.indices))
    features, counts = np.unique(x.indices, return_counts=True)
    return features, np.concatenate([[0], np.cumsum(counts)]), row[perm], perm


def ragged(n_rows, n_cols, mean, seed):
    """Rows of very different lengths, empty ones among them, unsorted, with duplicates."""
    rng = np.random.default_rng(seed)
    lengths = np.floor(rng.lognormal(np.log(mean), 1.5, n_rows)).astype(int)
    lengths[rng.random(n_rows) < 0.2] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = rng.integers(0, n_cols, indptr[-1])
    x = sp.csr_matrix((n_rows, n_cols), dtype=np.float32)
    x.indptr, x.indices, x.data = indptr, indices, np.ones(indptr[-1], np.float32)
    return x


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("n_rows", "n_cols", "mean"),
    [
        (1, 1, 1),
        (31, 33, 4),
        (127, 129, 20),
        (50, 20000, 30),
        (50, 10**6, 30),  # radix, two passes
        (20, 2**31 - 1, 30),  # radix, three passes; never a pass over the columns
        (3, 1271, 2000),
    ],
)
def test_transposed_index(backend, dtype, n_rows, n_cols, mean):
    x = ragged(n_rows, n_cols, mean, seed=n_rows)
    got = transpose_arrays("t", x.indptr.astype(dtype), x.indices.astype(dtype), n_cols)
    for part, want in zip(got, reference_index(x), strict=True):
        np.testing.assert_array_equal(part, want)
        assert part.dtype == dtype


def test_transposed_index_of_huge_column_numbers(backend):
    col = np.array([2**40, 5, 2**40, 2**62])
    features, ptr, row, perm = transpose_arrays("t", np.array([0, 2, 4]), col, 2**62 + 1)
    assert features.tolist() == [5, 2**40, 2**62]
    assert ptr.tolist() == [0, 1, 3, 4]
    assert row.tolist() == [0, 0, 1, 1]
    assert perm.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 4), (0, 0)])
def test_transposed_index_of_nothing(backend, shape):
    b = CSRBatch.from_scipy(sp.csr_matrix(shape, dtype=np.float32)).prepare()
    assert [len(t) for t in b.index] == [0, 1, 0, 0]
    assert b.index.ptr.tolist() == [0]


def test_prepare_is_idempotent_and_takes_strided_tensors(backend):
    x = random_matrix(5, 7)
    crow = torch.from_numpy(np.repeat(x.indptr, 2))[::2]
    col = torch.from_numpy(np.repeat(x.indices, 3))[::3]
    b = CSRBatch(crow, col, torch.from_numpy(x.data), x.shape)
    assert b.prepare() is b
    index = b.index
    assert b.prepare().index is index
    want = CSRBatch.from_scipy(x).prepare().index
    assert all(torch.equal(p, q) for p, q in zip(index, want, strict=True))


def test_device_path_gives_the_same_index():
    x = ragged(31, 129, 8, seed=1)
    crow, col = torch.from_numpy(x.indptr), torch.from_numpy(x.indices)
    got = transpose_on_device("t", crow, col, 129)
    for part, want in zip(got, reference_index(x), strict=True):
        np.testing.assert_array_equal(part.numpy(), want)
    with pytest.raises(IndexError, match="column index"):
        transpose_on_device("t", crow, col + 129, 129)


BAD = [
    ([0, 1, 2], [0, 3], IndexError, "t(): column index 3 at position 1 is out of bounds"),
    ([0, 1, 2], [-1, 3], IndexError, "t(): column index -1 at position 0 is out of bounds"),
    ([0, 1, 2], [-(2**31), 3], IndexError, "t(): column index -2147483648 at position 0"),
    ([1, 1, 2], [0, 1], RuntimeError, "t(): `crow_indices[..., 0] == 0` is not satisfied"),
    ([0, 1, 3], [0, 1], RuntimeError, "t(): `crow_indices[..., -1] == nnz` is not satisfied"),
    ([0, 1, 1], [0, 1], RuntimeError, "t(): `crow_indices[..., -1] == nnz` is not satisfied"),
    ([0, 3, 2], [0, 1], RuntimeError, "t(): expected crow_indices to be non-decreasing, but row 1"),
    (
        [0, -5, 2],
        [0, 1],
        RuntimeError,
        "t(): expected crow_indices to be non-decreasing, but row 0",
    ),
    ([], [0, 1], RuntimeError, "t(): crow_indices.shape[-1] must be equal to"),
]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("crow", "col", "error", "text"), BAD)
def test_transposed_index_of_broken_input(backend, dtype, crow, col, error, text):
    with pytest.raises(error) as caught:
        transpose_arrays("t", np.array(crow, dtype=dtype), np.array(col, dtype=dtype), 3)
    assert str(caught.value).startswith(text)


def test_the_first_bad_column_is_named(backend):
    col = np.zeros(5000, dtype=np.int64)
    col[[4999, 3000, 4000]] = [7, 10**12, -1]
    with pytest.raises(IndexError, match="column index 1000000000000 at position 3000"):
        transpose_arrays("t", np.array([0, 5000]), col, 3)


@pytest.mark.skipif(_load.C is None, reason="the extension is not built")
def test_compiled_helper_refuses_odd_arrays():
    good = np.array([0, 1], dtype=np.int32)
    transpose = _load.C.transpose_index
    with pytest.raises(RuntimeError, match="same dtype"):
        transpose(good, np.zeros(1, dtype=np.int64), 3, "t")
    with pytest.raises(RuntimeError, match="must be Int or Long, but got float32"):
        transpose(good.astype(np.float32), good[:1], 3, "t")
    with pytest.raises(RuntimeError, match="must be Int or Long"):
        transpose(good.astype(">i4"), good[:1], 3, "t")
    with pytest.raises(ValueError, match="contiguous"):
        transpose(np.zeros(6, dtype=np.int32)[::2], np.zeros(0, dtype=np.int32), 3, "t")
    with pytest.raises(ValueError, match="contiguous"):
        transpose(np.zeros((1, 1), dtype=np.int32), np.zeros(0, dtype=np.int32), 3, "t")
    unaligned = np.frombuffer(b"\0" * 9, dtype=np.uint8)[1:].view(np.int32)
    with pytest.raises(ValueError, match="aligned"):
        transpose(unaligned, np.zeros(0, dtype=np.int32), 3, "t")
    with pytest.raises(RuntimeError, match="n_cols >= 0"):
        transpose(good, good[:1], -1, "t")


# ---- a life as an argument -----------------------------------------------------------------------


def tiny_model(b, weight):
    y = torch.zeros(b.shape[0], weight.shape[1]).index_add(
        0, b.row_ids(), b.values[:, None] * weight[b.col]
    )
    scaled = b.with_values(b.values / b.row_sums().clamp_min(1)[b.row_ids()])
    return y, scaled


@pytest.mark.parametrize("prepared", [False, True])
def test_pytree(prepared):
    b = CSRBatch.from_scipy(random_matrix(4, 5))
    if prepared:
        b.prepare()
    leaves, spec = pytree.tree_flatten(b)
    assert len(leaves) == (7 if prepared else 3)
    back = pytree.tree_unflatten(leaves, spec)
    assert isinstance(back, CSRBatch) and back.shape == b.shape
    assert back.crow is b.crow
    assert (back.index is None) is (not prepared)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(b)[0]]
    assert paths[:3] == [".crow", ".col", ".values"]
    if prepared:
        assert isinstance(back.index, TransposedIndex)
        assert paths[3:] == [".index.features", ".index.ptr", ".index.row", ".index.perm"]
    doubled = pytree.tree_map(lambda t: t * 2, b)
    assert torch.equal(doubled.values, b.values * 2)
    # Stand-ins that are no tensors must pass through, as compilers put them there.
    assert pytree.tree_map(lambda _: None, b).crow is None


@pytest.mark.parametrize("prepared", [False, True])
def test_compile_fullgraph_with_a_batch_as_argument(prepared):
    compiled = torch.compile(tiny_model, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed, rows in ((0, 6), (1, 9), (2, 5)):
        b = CSRBatch.from_scipy(random_matrix(rows, 7, density=0.5, seed=seed))
        if prepared:
            b.prepare()
        weight = torch.randn(7, 3, requires_grad=True)
        y, scaled = compiled(b, weight)
        want, want_scaled = tiny_model(b, weight)
        torch.testing.assert_close(y, want)
        assert isinstance(scaled, CSRBatch) and scaled.shape == (rows, 7)
        torch.testing.assert_close(scaled.to_dense(), want_scaled.to_dense())
        assert (scaled.index is not None) is prepared
        (grad,) = torch.autograd.grad(y.sum(), weight)
        torch.testing.assert_close(grad, b.to_dense().sum(0)[:, None].expand(7, 3))


class TinyModule(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(7, 3))

    def forward(self, b):
        return tiny_model(b, self.weight)[0]


@pytest.mark.parametrize("prepared", [False, True])
def test_export_with_a_batch_as_argument(prepared):
    module = TinyModule()
    b = CSRBatch.from_scipy(random_matrix(6, 7, density=0.5))
    auto = {0: torch.export.Dim.AUTO}
    dynamic = [auto] * 3
    if prepared:
        b.prepare()
        dynamic.append(TransposedIndex(auto, auto, auto, auto))
    program = torch.export.export(module, (b,), dynamic_shapes=(dynamic,))
    other = CSRBatch.from_scipy(random_matrix(11, 7, density=0.4, seed=5))
    if prepared:
        other.prepare()
    for x in (b, other):
        torch.testing.assert_close(program.module()(x), module(x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(other), module(other))


def assert_same(a, b):
    assert type(b) is CSRBatch and a.shape == b.shape
    assert torch.equal(a.to_dense(), b.to_dense())
    assert all(torch.equal(p, q) for p, q in zip(a.index, b.index, strict=True))


def test_pickle_and_deepcopy_and_torch_save():
    b = CSRBatch.from_scipy(random_matrix(4, 5)).prepare()
    assert_same(b, pickle.loads(pickle.dumps(b)))
    c = copy.deepcopy(b)
    assert_same(b, c)
    assert c.values.data_ptr() != b.values.data_ptr()
    assert c.index.row.data_ptr() != b.index.row.data_ptr()
    file = io.BytesIO()
    torch.save(b, file)
    file.seek(0)
    assert_same(b, torch.load(file, weights_only=True))


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
