"""CSRDataset and the folder of memory-mapped arrays."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.utils.data import DataLoader

from sparsevae_ext import _load
from sparsevae_ext.data import CSRBatch, CSRDataset, DataFileError, verify_folder, write_folder
from sparsevae_ext.data import folder as folder_module
from sparsevae_ext.data.store import CSRArrays, gather_batch


@pytest.fixture(params=["compiled", "numpy"])
def backend(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(_load, "C", None)
    elif _load.C is None:
        pytest.skip("the extension is not built")
    return request.param


@pytest.fixture(params=["memory", "folder"])
def where(request):
    return request.param


def random_matrix(n_rows, n_cols, density=0.1, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_rows, n_cols)) * (rng.random((n_rows, n_cols)) < density)
    return sp.csr_matrix(dense.astype(dtype))


def make(x, where, tmp_path, **kwargs):
    ds = CSRDataset(x, **kwargs)
    return ds if where == "memory" else write_folder(ds, tmp_path / "data")


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_equal_scipy(backend, where, tmp_path, dtype):
    x = random_matrix(40, 33, density=0.05, dtype=dtype)
    assert 0 in np.diff(x.indptr)
    ds = make(x, where, tmp_path)
    assert (len(ds), ds.shape, ds.nnz) == (40, (40, 33), x.nnz)
    assert ds.is_memory_mapped is (where == "folder")
    rng = np.random.default_rng(1)
    mask = rng.random(40) < 0.5
    for rows in (
        rng.permutation(40),
        rng.integers(0, 40, 100),  # repeats
        np.arange(7, 19),  # one piece
        np.array([3, 4, 5, 20, 21, 2, 2, 3]),
        np.array([], dtype=np.int64),
        [-1, 0, -40],
        slice(None),
        slice(30, 2, -3),
        mask,
        torch.tensor([5, 1], dtype=torch.int32),
    ):
        for prepare in (False, True):
            b = ds.rows(rows, prepare=prepare)
            want = x[np.asarray(rows) if not isinstance(rows, slice) else rows]
            want.sort_indices()
            np.testing.assert_array_equal(b.crow.numpy(), want.indptr)
            np.testing.assert_array_equal(b.col.numpy(), want.indices)
            np.testing.assert_array_equal(b.values.numpy(), want.data)
            assert b.shape == want.shape and b.values.numpy().dtype == dtype
            assert b.col.dtype == b.crow.dtype == torch.int32
            if prepare:
                fresh = CSRBatch.from_scipy(want).prepare().index
                assert all(torch.equal(p, q) for p, q in zip(b.index, fresh, strict=True))
            else:
                assert b.index is None


@pytest.mark.parametrize("ptr_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("col_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("n_cols", [50, 2**31 - 1, 2**33])
def test_gather_index_dtypes(backend, ptr_dtype, col_dtype, n_cols):
    x = random_matrix(20, 50, density=0.3)
    arrays = CSRArrays(x.indptr.astype(ptr_dtype), x.indices.astype(col_dtype), x.data, n_cols)
    rows = np.array([3, 3, 19, 0, 1, 2])
    b = gather_batch("t", arrays, rows, prepare=True)
    assert b.shape == (6, n_cols)
    expected = torch.int64 if n_cols >= 2**31 else torch.int32
    assert {t.dtype for t in (b.crow, b.col, *b.index)} == {expected}
    want = x[rows]
    np.testing.assert_array_equal(b.col.numpy(), want.indices)
    np.testing.assert_array_equal(b.values.numpy(), want.data)
    np.testing.assert_array_equal(b.index.features.numpy(), np.unique(want.indices))


def test_batches_own_their_memory(backend, where, tmp_path):
    x = random_matrix(10, 8, density=0.5)
    ds = make(x, where, tmp_path)
    for rows in (slice(None), [3, 1]):
        b = ds.rows(rows)
        b.values.fill_(-1)
        b.col.fill_(0)
    np.testing.assert_array_equal(ds.to_scipy().toarray(), x.toarray())


def test_bad_row_numbers(backend, where, tmp_path):
    ds = make(random_matrix(10, 8), where, tmp_path)
    for rows in ([10], [-11], [0, 2**62]):
        with pytest.raises(IndexError, match="out of bounds for a data set of 10 rows"):
            ds.rows(rows)
    with pytest.raises(IndexError, match="mask of 10 rows, but got 3"):
        ds.rows(np.array([True, False, True]))
    for rows in (3, [[1]], [0.5], ["a"]):
        with pytest.raises(TypeError, match="row numbers in one dimension"):
            ds.rows(rows)


def gather(crow, col, rows, n_cols=4, prepare=False):
    crow, col = np.array(crow), np.array(col)
    arrays = CSRArrays(crow, col, np.ones(len(col), np.float32), n_cols)
    return gather_batch("t", arrays, np.array(rows), prepare)


def test_gather_checks_everything_it_reads(backend):
    good = [0, 2, 3]
    for rows, text in (([0, 2], "row 2 at position 1"), ([-1, 9], "row -1 at position 0")):
        with pytest.raises(IndexError, match=text + " is out of bounds for rows=2"):
            gather(good, [0, 1, 2], rows)
    for crow in ([0, 4, 3], [0, -1, 3], [-2, 2, 3], [0, 2, 2**62]):
        with pytest.raises(RuntimeError, match="non-decreasing within"):
            gather(crow, [0, 1, 2], [1, 0])
    for col, text in (([0, 1, 4], "column index 4 at position 0"), ([0, 1, -1], "column index -1")):
        with pytest.raises(IndexError, match=text):
            gather(good, col, [1], prepare=True)
    # int64 columns are narrowed: one that only looks right after that must not pass.
    for bad in (2**32 + 1, -(2**32) + 1):
        with pytest.raises(IndexError, match=f"column index {bad} at position 2"):
            gather(good, [0, 1, bad], [0, 1])


@pytest.mark.skipif(_load.C is None, reason="the extension is not built")
def test_compiled_gather_refuses_odd_arrays():
    crow, col = np.array([0, 1]), np.array([0])
    data, rows = np.ones(1, np.float32), np.array([0])
    gather_rows = _load.C.gather_rows
    cases = [
        ((crow, col, data[:0], rows), RuntimeError, "same length"),
        ((crow[:0], col, data, rows), RuntimeError, r"number of rows \+ 1"),
        ((crow.astype(float), col, data, rows), RuntimeError, "must be Int or Long"),
        ((crow, col.astype(np.int16), data, rows), RuntimeError, "must be Int or Long"),
        ((crow, col, data.astype(np.float16), rows), RuntimeError, "must be Float or Double"),
        ((crow, col, data.astype(">f4"), rows), RuntimeError, "must be Float or Double"),
        ((crow, col, data, rows.astype(np.int32)), RuntimeError, "row numbers must be Long"),
        ((crow, col, data, np.zeros(4, np.int64)[::2]), ValueError, "contiguous"),
        ((crow, col, data, np.zeros((1, 1), np.int64)), ValueError, "contiguous"),
    ]
    for args, error, text in cases:
        with pytest.raises(error, match=text):
            gather_rows(*args, 4, False, "t")
    assert gather_rows(crow, col, data, rows, 4, False, "t")[3] is None


def test_a_slice_is_copied_in_one_piece_and_empty_rows_do_not_break_it(backend):
    x = random_matrix(200, 30, density=0.02)
    ds = CSRDataset(x)
    b = ds.rows(np.arange(50, 150), prepare=True)
    np.testing.assert_array_equal(b.to_dense().numpy(), x[50:150].toarray())


# ---- the data set ----------------------------------------------------------------------------------


def test_in_order_matrix_is_used_in_place_and_others_are_not_changed():
    x = random_matrix(10, 8, density=0.5)
    ds = CSRDataset(x)
    assert np.shares_memory(ds.to_scipy().data, x.data)
    y = sp.csr_matrix((np.ones(3), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    ds = CSRDataset(y)
    assert ds.to_scipy().toarray().tolist() == [[1.0, 0.0, 2.0]]
    assert y.indices.tolist() == [2, 0, 2]
    assert ds.dtype == torch.float64


def test_items_iteration_and_facts():
    x = random_matrix(6, 5, density=0.4)
    ds = CSRDataset(sp.csr_array(x), vocab=list("abcde"), labels=np.arange(6))
    np.testing.assert_array_equal(ds[-1].to_dense().numpy(), x[[5]].toarray())
    assert [b.nnz for b in ds] == np.diff(x.indptr).tolist() == ds.row_lengths().tolist()
    assert ds.__getitems__([1, 2]).shape == (2, 5)
    assert ds.vocab == list("abcde") and ds.labels.tolist() == list(range(6))
    assert "shape=(6, 5)" in repr(ds)
    with pytest.raises(IndexError):
        ds[6]
    with pytest.raises(RuntimeError, match="vocab of 5 words, but got 2"):
        CSRDataset(x, vocab=["a", "b"])
    with pytest.raises(RuntimeError, match="expected 6 labels, but got 1"):
        CSRDataset(x, labels=[0])
    with pytest.raises(TypeError, match=r"\.tocsr"):
        CSRDataset(x.tocsc())
    with pytest.raises(TypeError, match="expected a scipy CSR matrix, but got list"):
        CSRDataset([[1]])


def test_subset_is_a_view(backend, where, tmp_path):
    x = random_matrix(20, 9, density=0.3)
    ds = make(x, where, tmp_path, labels=np.arange(20) * 10)
    sub = ds.subset([7, 3, -1, 3]).subset(slice(1, None))
    assert sub._arrays is ds._arrays
    np.testing.assert_array_equal(sub.to_scipy().toarray(), x[[3, 19, 3]].toarray())
    assert sub.labels.tolist() == [30, 190, 30]
    assert sub.nnz == x[[3, 19, 3]].nnz and len(sub) == 3
    assert sub.row_lengths().tolist() == np.diff(x[[3, 19, 3]].indptr).tolist()
    np.testing.assert_array_equal(sub[1].to_dense().numpy(), x[[19]].toarray())
    with pytest.raises(IndexError):
        sub.rows([3])
    assert len(ds.subset([])) == 0 and ds.subset([]).rows([]).shape == (0, 9)


def test_collate_joins_single_rows():
    x = random_matrix(6, 5, density=0.4)
    ds = CSRDataset(x)
    b = CSRDataset.collate([ds[4], ds[0], ds[5]])
    np.testing.assert_array_equal(b.to_dense().numpy(), x[[4, 0, 5]].toarray())
    assert CSRDataset.collate(b) is b
    with pytest.raises(RuntimeError, match=r"same columns, but got \[5, 6\]"):
        CSRDataset.collate([ds[0], CSRDataset(random_matrix(1, 6))[0]])
    with pytest.raises(RuntimeError, match="same columns"):
        CSRDataset.collate([])


# ---- worker processes ----------------------------------------------------------------------------


class Probe(torch.utils.data.Dataset):
    """Tells, from inside a worker, where the arrays lie, along with the rows."""

    def __init__(self, ds):
        self.ds = ds

    def __len__(self):
        return len(self.ds)

    def __getitems__(self, indices):
        base = self.ds._arrays.col.base
        shared = isinstance(base, torch.Tensor) and base.is_shared()
        mapped = isinstance(base, np.memmap)
        return self.ds.__getitems__(indices), shared, mapped, os.getpid()


def identity(item):
    return item


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_share_the_matrix(where, context, tmp_path):
    x = random_matrix(41, 30, density=0.2)
    ds = make(x, where, tmp_path).subset(np.arange(40, -1, -1))
    loader = DataLoader(
        Probe(ds),
        batch_size=8,
        num_workers=2,
        collate_fn=identity,
        multiprocessing_context=context,
    )
    items = list(loader)
    got = np.concatenate([item[0].to_dense().numpy() for item in items])
    np.testing.assert_array_equal(got, x.toarray()[::-1])
    assert len({item[3] for item in items}) == 2
    if where == "folder":
        assert all(mapped for _, _, mapped, _ in items)
    elif context == "spawn":
        assert all(shared for _, shared, _, _ in items)
        # The parent reads the same shared memory, so there is one copy in all.
        assert ds._arrays.values.base.is_shared()
    # The parent's rows are still right after the arrays moved.
    np.testing.assert_array_equal(ds.to_scipy().toarray(), x.toarray()[::-1])


def test_dataloader_shuffles_and_collates(where, tmp_path):
    x = random_matrix(23, 30, density=0.2)
    ds = make(x, where, tmp_path)
    loader = DataLoader(ds, batch_size=5, shuffle=True, collate_fn=CSRDataset.collate)
    got = torch.cat([b.to_dense() for b in loader])
    assert got.shape == (23, 30)
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, x.toarray().tolist()))


def test_pickle_and_deepcopy(where, tmp_path):
    x = random_matrix(12, 9, density=0.3)
    ds = make(x, where, tmp_path, vocab=list("abcdefghi"))
    text = pickle.dumps(ds.subset([2, 5]))
    for other in (pickle.loads(text), copy.deepcopy(ds.subset([2, 5]))):
        np.testing.assert_array_equal(other.to_scipy().toarray(), x[[2, 5]].toarray())
        assert other.vocab == list("abcdefghi")
    if where == "folder":
        assert x.data.tobytes() not in text and str(tmp_path).encode() in text


# ---- the folder ----------------------------------------------------------------------------------


def test_folder_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_CHUNK_ENTRIES", 7)  # many pieces
    x = random_matrix(30, 9, density=0.3)
    x.data[3] = 0  # a stored zero stays stored
    ds = CSRDataset(x, vocab=[f"wörd{i}" for i in range(9)], labels=np.arange(30))
    out = write_folder(ds, tmp_path / "d")
    assert out.is_memory_mapped and out.nnz == x.nnz
    np.testing.assert_array_equal(out.to_scipy().toarray(), x.toarray())
    assert out.vocab == ds.vocab and out.labels.tolist() == ds.labels.tolist()
    again = CSRDataset(str(tmp_path / "d"))
    np.testing.assert_array_equal(again.rows([5, 1]).to_dense().numpy(), x[[5, 1]].toarray())
    verify_folder(tmp_path / "d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]
    sub = write_folder(ds.subset([4, 2]), tmp_path / "s")
    np.testing.assert_array_equal(sub.to_scipy().toarray(), x[[4, 2]].toarray())
    assert sub.labels.tolist() == [4, 2]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 3)])
def test_folder_of_nothing(tmp_path, shape):
    ds = write_folder(sp.csr_matrix(shape, dtype=np.float32), tmp_path / "d")
    assert ds.shape == shape and ds.nnz == 0
    assert ds.rows(slice(None), prepare=True).to_dense().shape == shape


def test_folder_arrays_are_read_only(tmp_path):
    ds = write_folder(random_matrix(5, 4, density=0.5), tmp_path / "d")
    with pytest.raises(ValueError, match="read-only"):
        ds._arrays.values[0] = 3


def test_write_folder_does_not_overwrite_by_accident(tmp_path):
    x, y = random_matrix(5, 4, seed=1), random_matrix(6, 4, seed=2)
    write_folder(x, tmp_path / "d")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_folder(y, tmp_path / "d")
    assert len(CSRDataset(tmp_path / "d")) == 5
    assert len(write_folder(y, tmp_path / "d", overwrite=True)) == 6
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="it is no data set"):
        write_folder(y, tmp_path / "other", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "other"]


def test_write_folder_can_replace_its_own_source(tmp_path):
    x = random_matrix(9, 4, density=0.5)
    ds = write_folder(x, tmp_path / "d")
    out = write_folder(ds.subset(slice(None, None, -1)), tmp_path / "d", overwrite=True)
    np.testing.assert_array_equal(out.to_scipy().toarray(), x.toarray()[::-1])


def test_write_folder_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_CHUNK_ENTRIES", 7)
    calls = []
    rows = CSRDataset.rows

    def failing(self, index, prepare=False):
        calls.append(index)
        if len(calls) == 3:
            raise OSError("disk full")
        return rows(self, index, prepare)

    monkeypatch.setattr(CSRDataset, "rows", failing)
    with pytest.raises(OSError, match="disk full"):
        write_folder(random_matrix(30, 9, density=0.3), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_write_folder_on_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    def full(self, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsevae_ext.data.folder._NpyWriter.append", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_folder(CSRDataset(sp.csr_matrix([[0, 2], [1, 0]])), tmp_path / "data")
    assert caught.value.filename == str(tmp_path / "data")
    assert not os.listdir(tmp_path)


def test_write_folder_killed_in_the_middle_shows_no_folder(tmp_path):
    code = (
        "import os, sys, scipy.sparse as sp\n"
        "from sparsevae_ext.data import folder, write_folder\n"
        "folder._CHUNK_ENTRIES = 7\n"
        "append, count = folder._NpyWriter.append, [0]\n"
        "def dying(self, block):\n"
        "    append(self, block)\n"
        "    count[0] += 1\n"
        "    if count[0] == 9: os._exit(9)\n"
        "folder._NpyWriter.append = dying\n"
        "write_folder(sp.random(40, 9, 0.5, format='csr'), sys.argv[1])\n"
    )
    place = tmp_path / "d"
    run = subprocess.run([sys.executable, "-c", code, str(place)], check=False)
    assert run.returncode == 9
    assert not place.exists()
    assert len(write_folder(random_matrix(3, 3), place)) == 3


def damage_meta(**changes):
    def apply(path):
        meta = json.loads((path / "meta.json").read_text())
        meta.update(changes)
        (path / "meta.json").write_text(json.dumps(meta))

    return apply


def truncate(name, size):
    return lambda path: os.truncate(path / name, size)


def replace(name, array):
    return lambda path: np.save(path / name, array)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: (p / "meta.json").unlink(), "holds no data set"),
        (lambda p: (p / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda p: (p / "meta.json").write_text("[]"), "meta.json is damaged"),
        (lambda p: (p / "meta.json").write_bytes(b"\xff\xfe"), "meta.json is damaged"),
        (damage_meta(format="other"), "does not describe"),
        (damage_meta(shape=[5]), "does not describe"),
        (damage_meta(shape=[-5, 4]), "does not describe"),
        (damage_meta(shape=["5", 4]), "does not describe"),
        (damage_meta(nnz=1.5), "does not describe"),
        (damage_meta(dtype=3), "meta.json is damaged"),
        (damage_meta(version=2), "format version 2 is not 1"),
        (damage_meta(shape=[6, 4]), "crow.npy has shape"),
        (damage_meta(nnz=3), "col.npy has shape"),
        (lambda p: (p / "values.npy").unlink(), "values.npy is missing or damaged"),
        (truncate("col.npy", 130), "col.npy is missing or damaged"),
        (truncate("crow.npy", 20), "crow.npy is missing or damaged"),
        (lambda p: (p / "values.npy").write_bytes(b"garbage"), "values.npy is missing or damaged"),
        (replace("crow.npy", np.array([0, 3, 1, 2, 4, 10], np.int32)), "non-decreasing"),
        (replace("crow.npy", np.array([1, 3, 4, 5, 6, 10], np.int32)), "crow_indices"),
        (replace("values.npy", np.zeros(10, np.int8)), "wrong dtype int8"),
        (replace("col.npy", np.zeros(10, np.float32)), "wrong dtype float32"),
        (replace("col.npy", np.zeros((5, 2), np.int32)), "col.npy has shape"),
        (replace("values.npy", np.array([None] * 10)), "values.npy is missing or damaged"),
        (lambda p: (p / "vocab.json").write_text('["a"]'), "no list of 4 words"),
        (lambda p: (p / "vocab.json").write_text("["), "damaged"),
        (replace("labels.npy", np.zeros(3)), "labels.npy has shape"),
    ],
)
def test_damaged_folder(tmp_path, damage, text):
    place = tmp_path / "five"
    triangle = sp.csr_matrix(np.tri(4, 4, dtype=np.float32))
    write_folder(triangle[[0, 0, 1, 2, 2]], place)
    assert CSRDataset(place).nnz == 10
    damage(place)
    with pytest.raises(DataFileError) as caught:
        CSRDataset(place)
    message = str(caught.value)
    assert message.startswith(str(place)) and text in message and "\n" not in message
    assert isinstance(caught.value, ValueError)
    pickled = pickle.loads(pickle.dumps(caught.value))
    assert str(pickled) == message


def test_verify_folder_sees_a_flipped_bit(tmp_path):
    place = tmp_path / "d"
    write_folder(random_matrix(5, 4, density=0.5), place)
    with open(place / "values.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DataFileError, match=r"values\.npy has changed"):
        verify_folder(place)


def test_bad_column_in_a_folder_is_found_where_it_is_used(backend, tmp_path):
    place = tmp_path / "d"
    write_folder(sp.csr_matrix(np.eye(3, dtype=np.float32)), place)
    np.save(place / "col.npy", np.array([0, 7, 2], np.int32))
    ds = CSRDataset(place)
    with pytest.raises(IndexError, match="column index 7 at position 1"):
        ds.rows([0, 1], prepare=True)
    assert ds.rows([0, 2], prepare=True).nnz == 2
