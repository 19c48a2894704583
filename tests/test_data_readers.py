"""read(): every kind of file, and every way a file can be bad."""

from __future__ import annotations

import gzip
import os
import warnings
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext.data import CSRBatch, CSRDataset, DataFileError, load_spam, read, write_folder


def random_matrix(n_rows=12, n_cols=9, density=0.3, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 9, (n_rows, n_cols)) * (rng.random((n_rows, n_cols)) < density)
    return sp.csr_matrix(dense.astype(dtype))


def as_tensor(x):
    return torch.sparse_csr_tensor(
        torch.from_numpy(x.indptr),
        torch.from_numpy(x.indices),
        torch.from_numpy(x.data),
        x.shape,
        check_invariants=True,
    )


def refuse(path, text, **options):
    """`read` must raise one line that names the path first and holds `text`."""
    with pytest.raises(DataFileError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    assert text in message, message
    assert "\n" not in message


# ---- good files ----------------------------------------------------------------------------------


def test_every_kind_gives_the_same_matrix(tmp_path):
    x = random_matrix()
    sp.save_npz(tmp_path / "x.npz", x)
    sp.save_npz(tmp_path / "array.npz", sp.csr_array(x), compressed=False)
    torch.save(as_tensor(x), tmp_path / "x.pt")
    torch.save(CSRBatch.from_scipy(x), tmp_path / "batch.pth")
    write_folder(x, tmp_path / "folder")
    text = "".join(
        f"{i % 3} "
        + " ".join(f"{c + 1}:{v}" for c, v in zip(row.indices, row.data, strict=True))
        + "\n"
        for i, row in enumerate(x)
    )
    (tmp_path / "x.svm").write_text(text)
    with gzip.open(tmp_path / "x.svmlight.gz", "wt") as file:
        file.write(text)
    names = ["x.npz", "array.npz", "x.pt", "batch.pth", "folder", "x.svm", "x.svmlight.gz"]
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ds = read(str(tmp_path / name), n_cols=9)
        assert isinstance(ds, CSRDataset) and ds.dtype == torch.float32
        np.testing.assert_array_equal(ds.to_scipy().toarray(), x.toarray(), err_msg=name)
    assert read(tmp_path / "folder").is_memory_mapped
    assert read(tmp_path / "x.svm").labels.tolist() == [i % 3 for i in range(12)]


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.uint8, np.float64, ">f4"])
def test_npz_dtypes(tmp_path, dtype):
    x = random_matrix()
    x.data = x.data.astype(dtype)
    np.savez(
        tmp_path / "x.npz",
        format=b"csr",
        shape=x.shape,
        data=x.data,
        indices=x.indices.astype(np.int64),
        indptr=x.indptr.astype(">i4"),
    )
    want = x.data.astype(np.float64)
    np.testing.assert_array_equal(read(tmp_path / "x.npz").to_scipy().data, want)


def test_npz_with_vocab_and_labels_sums_duplicates(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        format=np.array("csr"),
        shape=(1, 3),
        data=[1, 2, 4],
        indices=[2, 0, 2],
        indptr=[0, 3],
        vocab=np.array(["a", "b", "c"]),
        labels=[7],
    )
    ds = read(tmp_path / "x.npz")
    assert ds.to_scipy().toarray().tolist() == [[2.0, 0.0, 5.0]]
    assert ds.vocab == ["a", "b", "c"] and ds.labels.tolist() == [7]


def test_spam_is_what_it_says():
    ds = read("spam")
    assert ds.shape == load_spam().shape == (6046, 8273)
    assert ds.nnz == 693_111 and ds.dtype == torch.float32
    assert len(ds.vocab) == 8273 and ds.vocab[0] == "aaron"
    assert ds.labels.shape == (6046,) and int(ds.labels.sum()) == 1896
    counts = ds.to_scipy().data
    assert counts.min() >= 1 and (counts == np.round(counts)).all()
    # Spot check that words and columns belong together.
    spam, ham = ds.to_scipy()[ds.labels == 1], ds.to_scipy()[ds.labels == 0]
    viagra = ds.vocab.index("viagra")
    assert spam[:, viagra].sum() > 5 * ham[:, viagra].sum()


def test_svmlight_forms(tmp_path):
    place = tmp_path / "x.txt"
    place.write_text(
        "# a comment\n+1 qid:3 0:1.5 4:2e1  # trailing 9:9\n\n-1\t1:.5\t3:7.\r\n0\n2 4:1 4:2 0:3\n"
    )
    ds = read(place)
    assert ds.to_scipy().toarray().tolist() == [
        [1.5, 0, 0, 0, 20],
        [0, 0.5, 0, 7, 0],
        [0, 0, 0, 0, 0],
        [3, 0, 0, 0, 3],
    ]
    assert ds.labels.tolist() == [1, -1, 0, 2]
    assert read(place, n_cols=8).shape == (4, 8)
    place.write_text("1,2 1:1\n3 2:1\n")
    assert read(place).shape == (2, 2) and read(place).labels is None


def test_svmlight_over_many_blocks(tmp_path):
    place = tmp_path / "x.svm"
    place.write_text("".join(f"{i} {i % 7 + 1}:{i}\n" for i in range(10_000)))
    ds = read(place)
    want = sp.csr_matrix(
        (np.arange(10_000), (np.arange(10_000), np.arange(10_000) % 7)), shape=(10_000, 7)
    )
    assert (ds.to_scipy() != want).nnz == 0
    place.write_text("".join(f"{i} {i % 7 + 1}:{i}\n" for i in range(9_000)) + "1 x:2\n")
    refuse(place, "line 9001: 'x:2' is not index:value")


# ---- bad files -----------------------------------------------------------------------------------


def test_missing_and_unknown(tmp_path):
    refuse(tmp_path / "no.npz", "no such file")
    refuse(tmp_path / "no", "no such file")
    (tmp_path / "x.csv").write_text("1,2")
    refuse(tmp_path / "x.csv", "unknown kind of file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "it holds no data set")


@pytest.mark.parametrize("name", ["x.npz", "x.pt", "x.svm.gz"])
def test_truncated_everywhere(tmp_path, name):
    place = tmp_path / name
    x = random_matrix(200, 30)
    if name == "x.npz":
        sp.save_npz(place, x)
    elif name == "x.pt":
        torch.save(as_tensor(x), place)
    else:
        with gzip.open(place, "wt") as file:
            file.writelines(f"1 {i % 30 + 1}:{i}\n" for i in range(2000))
    read(place)
    size = place.stat().st_size
    for part in range(15, -1, -1):
        os.truncate(place, size * part // 16)
        refuse(place, "")


@pytest.mark.parametrize("name", ["x.npz", "x.pt", "x.svm", "x.svm.gz"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage\n", b"\x80\x04N.", b"PK\x03\x04junk", bytes(range(256)) * 9]
)
def test_garbage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, "")


def test_flipped_bytes_in_an_npz_are_found_by_its_checksums(tmp_path):
    place = tmp_path / "x.npz"
    sp.save_npz(place, random_matrix(50, 30))
    with zipfile.ZipFile(place) as archive:
        info = archive.getinfo("data.npy")
    content = bytearray(place.read_bytes())
    content[info.header_offset + 80] ^= 0xFF
    place.write_bytes(content)
    refuse(place, "damaged")


def npz(path, **changes):
    parts = {
        "format": b"csr",
        "shape": (2, 3),
        "data": np.array([1.0, 2.0, 3.0], np.float32),
        "indices": np.array([0, 2, 1]),
        "indptr": np.array([0, 2, 3]),
    }
    parts.update(changes)
    np.savez(path, **{k: v for k, v in parts.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": b"csc"}, "csc matrix, not CSR; save it after .tocsr()"),
        ({"format": None}, "it holds no sparse matrix"),
        ({"format": np.zeros(2)}, "not CSR"),
        ({"indptr": None}, "not CSR: it has no indptr"),
        ({"shape": (2, 3, 4)}, "its shape is [2, 3, 4]"),
        ({"shape": (2, -3)}, "its shape is"),
        ({"shape": (2.0, 3.0)}, "its shape is"),
        ({"shape": (3, 3)}, "number of rows + 1 (=4), but got 3"),
        ({"shape": (2, 2)}, "column index 2 at position 1"),
        ({"data": np.array([1, 2, 3j])}, "wrong dtype"),
        ({"data": np.array(["a", "b", "c"])}, "wrong dtype"),
        ({"data": np.ones((3, 1))}, "wrong dtype or shape"),
        ({"data": np.ones(2)}, "3 column indices but 2 values"),
        ({"indices": np.array([0.0, 2.0, 1.0])}, "indices has the wrong dtype"),
        ({"indices": np.array([0, -2, 1])}, "column index -2"),
        ({"indptr": np.array([0, 4, 3])}, "non-decreasing"),
        ({"indptr": np.array([1, 2, 3])}, "crow_indices[..., 0] == 0"),
        ({"indptr": np.array([0, 2, 9])}, "crow_indices[..., -1] == nnz"),
        ({"indptr": np.array([0, 2, -1])}, "crow_indices"),
        ({"data": np.array([1.0, np.nan, 3.0])}, "row 0 has a value that is NaN or infinite"),
        ({"data": np.array([1.0, 2.0, np.inf])}, "row 1 has a value that is NaN or infinite"),
        ({"data": np.array([1, 2, -3])}, "row 1 has a negative value"),
        ({"vocab": np.array(["a"])}, "vocab of 3 words, but got 1"),
        ({"labels": np.array([1])}, "2 labels, but got 1"),
    ],
)
def test_npz_content(tmp_path, changes, text):
    read(npz(tmp_path / "good.npz"))
    refuse(npz(tmp_path / "bad.npz", **changes), text)


def test_npz_with_pickled_objects_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    refuse(npz(tmp_path / "x.npz", data=np.array([Bomb(), 1, 2], dtype=object)), "damaged")
    torch.save(Bomb(), tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "damaged")
    assert not (tmp_path / "exploded").exists()


def test_negative_and_nan_are_up_to_the_caller(tmp_path):
    place = npz(tmp_path / "x.npz", data=np.array([1.0, -2.0, 3.0]))
    assert read(place, nonnegative=False).nnz == 3
    place = npz(tmp_path / "x.npz", data=np.array([1.0, np.nan, 3.0]))
    refuse(place, "NaN", nonnegative=False)
    assert read(place, check=False).nnz == 3


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (torch.eye(3), "2-D tensor of layout torch.strided"),
        (torch.eye(3).to_sparse_coo(), "layout torch.sparse_coo"),
        (torch.eye(3).to_sparse_csc(), "layout torch.sparse_csc"),
        (torch.ones(2, 3, 3).to_sparse_csr(), "3-D tensor"),
        ({"x": torch.eye(3)}, "it holds a dict, not a sparse_csr tensor"),
        (torch.eye(3, dtype=torch.complex64).to_sparse_csr(), "wrong dtype"),
        (-torch.eye(3).to_sparse_csr(), "row 0 has a negative value"),
        ((torch.eye(3) * float("nan")).to_sparse_csr(), "NaN"),
    ],
)
def test_pt_content(tmp_path, thing, text):
    torch.save(thing, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", text)


def test_pt_with_broken_indices(tmp_path):
    with torch.sparse.check_sparse_tensor_invariants(False):
        t = torch.sparse_csr_tensor(
            torch.tensor([0, 1, 2]), torch.tensor([0, 10**12]), torch.ones(2), (2, 3)
        )
    torch.save(t, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1:2 x\n", "line 1: 'x' is not index:value"),
        ("1 1:2\n0 2:abc\n", "line 2: '2:abc' is not index:value"),
        ("1 1:2:3 4\n", "line 1: '1:2:3' is not index:value"),
        ("1 1: 2\n", "line 1: '1:' is not index:value"),
        ("1 -1:2\n", "line 1: '-1:2' is not index:value"),
        ("1 1.5:2\n", "line 1: '1.5:2' is not index:value"),
        ("1 99999999999999999999:2\n", "is not index:value"),
        ("1:2 2:3\n", "line 1 begins with '1:2', not with a label"),
        ("\n# only a comment\n", "it holds no rows"),
        ("1 1:nan\n", "NaN"),
        ("1 1:-3\n", "row 0 has a negative value"),
        ("1 1:1e39\n", "NaN or infinite"),
    ],
)
def test_svmlight_content(tmp_path, text, message):
    (tmp_path / "x.svm").write_text(text)
    refuse(tmp_path / "x.svm", message)


def test_svmlight_columns_beyond_the_given_number(tmp_path):
    (tmp_path / "x.svm").write_text("1 1:1 5:1\n")
    refuse(tmp_path / "x.svm", "column 4 is outside [0, 3)", n_cols=3)


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("values", np.array([1, np.nan, 1], np.float32), "row 1 has a value that is NaN"),
        ("values", np.array([1, 1, -1], np.float32), "row 2 has a negative value"),
        ("col", np.array([0, 3, 1], np.int32), "row 1 has a column outside [0, 3)"),
        ("col", np.array([0, -1, 1], np.int32), "row 1 has a column outside [0, 3)"),
    ],
)
def test_folder_content(tmp_path, name, array, text):
    place = tmp_path / "d"
    write_folder(sp.csr_matrix(np.eye(3, dtype=np.float32)), place)
    np.save(place / f"{name}.npy", array)
    refuse(place, text)
    assert read(place, check=False).nnz == 3


def test_folder_with_unsorted_columns(tmp_path):
    place = tmp_path / "d"
    write_folder(sp.csr_matrix(np.ones((1, 3), np.float32)), place)
    np.save(place / "col.npy", np.array([0, 2, 1], np.int32))
    refuse(place, "unsorted columns")
