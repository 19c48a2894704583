"""AnnData files: read, converted a piece at a time, and refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal

from sparsevae_ext import cli
from sparsevae_ext.data import DataFileError, open_h5ad, read, write_folder
from sparsevae_ext.data import folder as folder_module

anndata = pytest.importorskip("anndata", reason="needs anndata, an optional dependency")
h5py = pytest.importorskip("h5py")
pandas = pytest.importorskip("pandas")

DONORS = ["d2", "d1", "d2", "d1", "d3", "d3", "d3"]


def counts(dtype=np.float32):
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.8, (7, 5)).astype(dtype)
    dense[3] = 0
    return sp.csr_matrix(dense)


def write(path, X=None, **more):
    obs = pandas.DataFrame(
        {"donor": pandas.Categorical(DONORS), "run": [10, 2, 2, 10, 7, 7, 7], "age": 0.5},
        index=[f"cell{i}" for i in range(7)],
    )
    obs["hole"] = pandas.Categorical(["x", None, "x", "x", "x", "x", "x"])
    X = counts() if X is None else X
    var = pandas.DataFrame(index=[f"gene{i}" for i in range(X.shape[1])])
    data = anndata.AnnData(X, obs=obs, var=var, **more)
    data.raw = anndata.AnnData(counts() * 2, obs=obs, var=var)
    data.layers["counts"] = counts() * 3
    data.write_h5ad(path)
    return path


def test_matrix_names_and_batches(tmp_path):
    path = write(tmp_path / "x.h5ad")
    ds = read(path)
    assert_array_equal(ds.to_scipy().toarray(), counts().toarray())
    assert ds.vocab == [f"gene{i}" for i in range(5)] and ds.n_batch == 0
    ds = read(path, batch_key="donor")
    assert (ds.batch_key, ds.batch_names) == ("donor", ["d1", "d2", "d3"])
    assert [ds.batch_names[i] for i in ds.batch_index] == DONORS
    # Numbers are names: a run 10 is not the last of eleven.
    ds = read(path, batch_key="run")
    assert ds.batch_names == ["10", "2", "7"]
    assert ds.batch_index.tolist() == [0, 1, 1, 0, 2, 2, 2]


@pytest.mark.parametrize(("layer", "factor"), [(None, 1), ("counts", 3), ("raw", 2)])
def test_layers(tmp_path, layer, factor):
    path = write(tmp_path / "x.h5ad")
    assert_array_equal(read(path, layer=layer).to_scipy().toarray(), counts().toarray() * factor)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint16])
def test_value_dtypes(tmp_path, dtype):
    ds = read(write(tmp_path / "x.h5ad", counts(dtype)))
    assert_array_equal(ds.to_scipy().toarray(), counts().toarray())
    assert str(ds.dtype) == ("torch.float64" if dtype == np.float64 else "torch.float32")


def test_convert_reads_a_piece_at_a_time(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "x.h5ad")
    monkeypatch.setattr(folder_module, "_CHUNK_ENTRIES", 6)
    sizes = []
    original = folder_module.H5adMatrix.entries

    def entries(self, start, stop):
        sizes.append(int(self.crow[stop] - self.crow[start]))
        return original(self, start, stop)

    monkeypatch.setattr(folder_module.H5adMatrix, "entries", entries)
    argv = ["convert", str(path), str(tmp_path / "d"), "--batch-key", "donor", "--layer", "counts"]
    assert cli.main(argv) == 0
    assert "7 rows x 5 columns" in capsys.readouterr().out
    assert len(sizes) > 2 and max(sizes) <= 6 and sum(sizes) == counts().nnz
    ds = read(tmp_path / "d", batch_key="donor")
    assert ds.is_memory_mapped and ds.vocab[0] == "gene0"
    assert_array_equal(ds.to_scipy().toarray(), 3 * counts().toarray())
    assert [ds.batch_names[i] for i in ds.batch_index] == DONORS


def test_unsorted_rows_are_sorted_and_doubled_columns_refused(tmp_path):
    X = sp.csr_matrix(np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]], dtype=np.float32))
    path = tmp_path / "x.h5ad"
    anndata.AnnData(X).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][:2] = [1, 0]
        file["X/data"][:2] = [2.0, 1.0]
    assert_array_equal(read(path).to_scipy().toarray(), X.toarray())
    with open_h5ad(path) as matrix:
        assert "shape=(2, 3), nnz=4" in repr(matrix)
        ds = write_folder(matrix, tmp_path / "d")
    assert_array_equal(ds.to_scipy().toarray(), X.toarray())
    with h5py.File(path, "r+") as file:
        file["X/indices"][:2] = [1, 1]
    with pytest.raises(DataFileError, match="hold a column twice"):
        read(path)


@pytest.mark.parametrize(
    ("X", "text"),
    [
        (sp.csc_matrix(counts()), "its X is csc_matrix, not CSR; save it after .tocsr()"),
        (counts().toarray(), "its X is dense; save it as CSR"),
        (counts() * -1.0, "row 0 has a negative value"),
        (counts() * np.float32(np.nan), "row 0 has a value that is NaN"),
    ],
    ids=["csc", "dense", "negative", "nan"],
)
def test_what_is_no_csr_of_counts(tmp_path, X, text):
    with pytest.raises(DataFileError, match=text):
        read(write(tmp_path / "x.h5ad", X))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layer": "spliced"}, "it has no layers/spliced .layers: counts, raw"),
        ({"batch_key": "site"}, "its obs has no column 'site' .found donor, run, age, hole"),
        ({"batch_key": "hole"}, "obs column hole.*row 1 has none"),
    ],
)
def test_what_is_not_there(tmp_path, options, text):
    with pytest.raises(DataFileError, match=text):
        read(write(tmp_path / "x.h5ad"), **options)


def test_damaged_and_foreign_files(tmp_path):
    path = write(tmp_path / "x.h5ad")
    with pytest.raises(DataFileError, match="there is no such file"):
        open_h5ad(tmp_path / "y.h5ad")
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(DataFileError, match="no HDF5 file"):
        read(tmp_path / "text.h5ad")
    (tmp_path / "short.h5ad").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataFileError, match="short.h5ad"):
        read(tmp_path / "short.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indices"][2] = 99
    with pytest.raises(DataFileError, match="column"):
        read(path)
    with h5py.File(path, "r+") as file:
        file["X/indptr"][2] = 1000
    with pytest.raises(DataFileError, match="damaged or of another kind"):
        read(path)


def test_without_anndata(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "x.h5ad")
    monkeypatch.setitem(sys.modules, "anndata", None)
    monkeypatch.setitem(sys.modules, "anndata.io", None)
    with pytest.raises(DataFileError, match=r"pip install 'sparsevae-ext\[anndata\]'"):
        read(path)
    assert cli.main(["convert", str(path), str(tmp_path / "d")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "d").exists()
