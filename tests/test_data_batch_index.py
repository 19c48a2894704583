"""The experimental batch of every row: on its way from a data set to a model."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.utils._pytree as pytree

from sparsevae_ext.data import (
    CSRBatch,
    CSRDataset,
    CSRLoader,
    DataFileError,
    read,
    write_folder,
)

NAMES = ["a", "b", "c"]
INDEX = np.array([2, 0, 1, 1, 2, 0, 2])


def matrix():
    return sp.random(7, 5, density=0.5, format="csr", dtype=np.float32, random_state=0)


def dataset(**options):
    return CSRDataset(matrix(), batch_index=INDEX, batch_names=NAMES, **options)


def carrying(prepare=False):
    batch = CSRBatch.from_scipy(matrix()).with_batch_index(torch.from_numpy(INDEX))
    return batch.prepare() if prepare else batch


# ---- the batch ------------------------------------------------------------------------------


def test_it_goes_where_the_rows_go():
    batch = carrying(prepare=True)
    wanted = torch.from_numpy(INDEX)
    assert torch.equal(batch[[4, 1]].batch_index, torch.tensor([2, 0]))
    assert torch.equal(batch[2:5].batch_index, wanted[2:5])
    assert torch.equal(batch.with_values(batch.values * 2).batch_index, wanted)
    assert torch.equal(batch.to(torch.float64).batch_index, wanted)
    assert torch.equal(pickle.loads(pickle.dumps(batch)).batch_index, wanted)
    assert batch.with_batch_index(None).batch_index is None
    assert batch.with_batch_index(None).index is batch.index
    assert batch.to(torch.float32) is batch
    assert carrying().with_batch_index(wanted.to(torch.uint8)).batch_index.dtype == torch.int64


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize("covered", [False, True])
def test_it_is_a_leaf_of_the_tree(prepare, covered):
    batch = carrying(prepare) if covered else carrying(prepare).with_batch_index(None)
    leaves, spec = pytree.tree_flatten(batch)
    assert len(leaves) == 3 + 4 * prepare + covered
    again = pytree.tree_unflatten(leaves, spec)
    assert (again.index is None, again.batch_index is None) == (not prepare, not covered)
    assert torch.equal(again.to_dense(), batch.to_dense())
    if covered:
        assert again.batch_index is batch.batch_index
    paths = [str(path[0]) for path, _ in pytree.tree_flatten_with_path(batch)[0]]
    assert (".batch_index" in paths) is covered


def test_a_compiled_function_reads_it():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def shifted(batch, table):
        return batch.row_sums() + table[batch.batch_index]

    table = torch.tensor([10.0, 20.0, 30.0])
    batch = carrying()
    assert torch.allclose(shifted(batch, table), batch.row_sums() + table[batch.batch_index])


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        ([0] * 7, TypeError, "expected batch_index to be a tensor, but got list"),
        (torch.zeros(7), RuntimeError, "of an integer dtype, but got torch.float32"),
        (torch.zeros(7, dtype=torch.bool), RuntimeError, "of an integer dtype, but got torch.bool"),
        (torch.zeros(6, dtype=torch.int64), RuntimeError, r"of shape \(7,\), but got \(6,\)"),
        (torch.zeros(7, 1, dtype=torch.int64), RuntimeError, r"but got \(7, 1\)"),
    ],
)
def test_a_bad_index_is_refused(index, error, text):
    with pytest.raises(error, match=text):
        CSRBatch.from_scipy(matrix()).with_batch_index(index)


# ---- the data set and the loader ------------------------------------------------------------


def test_a_data_set_hands_it_on():
    ds = dataset()
    assert (ds.n_batch, ds.batch_names, ds.batch_key) == (3, NAMES, None)
    assert ds.rows([6, 1]).batch_index.tolist() == [2, 0]
    part = ds.subset([5, 4, 3]).subset([2, 0])
    assert part.batch_index.tolist() == [1, 0] and part.n_batch == 3
    assert part.rows(slice(None)).batch_index.tolist() == [1, 0]
    joined = CSRDataset.collate([ds[0], ds[1], ds[2]])
    assert joined.batch_index.tolist() == [2, 0, 1]
    bare = CSRDataset(matrix())
    assert (bare.n_batch, bare.batch_names, bare.batch_index) == (0, None, None)
    assert bare.rows([0]).batch_index is None
    with pytest.raises(RuntimeError, match="all batches to carry a batch index or none"):
        CSRDataset.collate([ds[0], bare[1]])


@pytest.mark.parametrize("threads", [0, 2])
def test_the_loader_keeps_rows_and_batches_together(threads):
    loader = CSRLoader(dataset(), batch_size=3, seed=3, num_threads=threads)
    order = loader.row_order()
    assert order.tolist() != sorted(order)
    given = torch.cat([batch.batch_index for batch in loader])
    assert given.tolist() == INDEX[order].tolist()


def test_numbers_strings_and_categories():
    ds = CSRDataset(matrix(), batch_index=INDEX)
    assert ds.batch_names == ["0", "1", "2"] and ds.batch_index.tolist() == INDEX.tolist()
    words = np.array(["x", "y", "w"])[INDEX]
    for given in (words, words.astype(object), words.tolist()):
        ds = CSRDataset(matrix(), batch_index=given)
        assert ds.batch_names == ["w", "x", "y"]
        assert [ds.batch_names[i] for i in ds.batch_index] == words.tolist()
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(pandas.Categorical(words, categories=["y", "w", "x", "unused"]))
    ds = CSRDataset(matrix(), batch_index=column)
    assert ds.batch_names == ["y", "w", "x", "unused"]
    assert [ds.batch_names[i] for i in ds.batch_index] == words.tolist()
    column = pandas.Categorical(["a", None, "a", "b", "b", "b", "b"])
    with pytest.raises(ValueError, match="a batch for every row, but row 1 has none"):
        CSRDataset(matrix(), batch_index=column)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_index": INDEX[:6]}, RuntimeError, "batch_index of length 7, but got 6"),
        ({"batch_index": INDEX[None]}, RuntimeError, r"one dimension, but got shape \(1, 7\)"),
        ({"batch_index": INDEX * 0.5}, TypeError, "integers or strings, but got float64"),
        ({"batch_index": INDEX - 1}, ValueError, "from 0 on, but got -1"),
        (
            {"batch_index": INDEX, "batch_names": ["a", "b"]},
            ValueError,
            "a name for every batch, but got 2 names and the number 2",
        ),
    ],
)
def test_a_bad_column_is_refused(options, error, text):
    with pytest.raises(error, match=rf"^CSRDataset\(\): .*{text}"):
        CSRDataset(matrix(), **options)


def test_other_data_is_numbered_as_the_model_knows_it():
    ds = CSRDataset(matrix(), batch_index=["c", "a", "c", "c", "a", "c", "c"])
    assert ds.batch_index.tolist() == [1, 0, 1, 1, 0, 1, 1]
    renamed = ds.with_batch_names(NAMES)
    assert renamed.batch_index.tolist() == [2, 0, 2, 2, 0, 2, 2] and renamed.n_batch == 3
    assert ds.n_batch == 2
    assert renamed.subset([1, 2]).batch_index.tolist() == [0, 2]
    # A name that no row has does no harm.
    assert dataset().subset([1, 5]).n_batch == 3
    with pytest.raises(ValueError, match="batch 'c' is none of the 2 that are known: a, b"):
        ds.with_batch_names(["a", "b"])
    with pytest.raises(ValueError, match="with a batch index, but got one without"):
        CSRDataset(matrix()).with_batch_names(NAMES)


# ---- files ----------------------------------------------------------------------------------


def test_a_folder_keeps_it(tmp_path):
    written = write_folder(dataset().subset([0, 2, 5]), tmp_path / "d")
    for ds in (written, read(tmp_path / "d"), pickle.loads(pickle.dumps(written))):
        assert ds.batch_index.tolist() == [2, 1, 0] and ds.batch_names == NAMES
        assert ds.rows([1]).batch_index.tolist() == [1]
    assert CSRDataset(tmp_path / "d", batch_index=[0, 0, 1]).n_batch == 2
    with pytest.raises(DataFileError, match=r"no batch key 'donor' \(found none\)"):
        read(tmp_path / "d", batch_key="donor")
    write_folder(CSRDataset(matrix()), tmp_path / "d", overwrite=True)
    assert read(tmp_path / "d").n_batch == 0


@pytest.mark.parametrize("damage", ["missing", "short", "negative", "unnamed", "json"])
def test_a_damaged_index_of_a_folder(tmp_path, damage):
    write_folder(dataset(), tmp_path / "d")
    codes, said = tmp_path / "d" / "batch_index.npy", tmp_path / "d" / "batches.json"
    if damage == "missing":
        codes.unlink()
    elif damage == "json":
        said.write_text("{")
    elif damage == "unnamed":
        said.write_text(json.dumps({"key": None, "names": ["a"]}))
    else:
        np.save(codes, INDEX[:5] if damage == "short" else INDEX - 1)
    with pytest.raises(DataFileError, match="its batch index is missing or damaged"):
        read(tmp_path / "d")


def test_a_saved_batch_keeps_it(tmp_path):
    torch.save(carrying(), tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").batch_index.tolist() == INDEX.tolist()
    torch.save(carrying().with_batch_index(torch.full((7,), -1)), tmp_path / "y.pt")
    with pytest.raises(DataFileError, match="from 0 on, but got -1"):
        read(tmp_path / "y.pt")


def test_npz_arrays(tmp_path):
    path = tmp_path / "x.npz"
    sp.save_npz(path, matrix())
    parts = dict(np.load(path))
    np.savez(path, **parts, donor=np.array(NAMES)[INDEX], batch_index=INDEX, bad=INDEX * 0.5)
    assert read(path).batch_index.tolist() == INDEX.tolist()
    ds = read(path, batch_key="donor")
    assert (ds.batch_key, ds.batch_names) == ("donor", NAMES)
    assert ds.batch_index.tolist() == INDEX.tolist()
    folder = write_folder(ds, tmp_path / "d")
    assert read(tmp_path / "d", batch_key="donor").batch_names == folder.batch_names == NAMES
    with pytest.raises(DataFileError, match="it has no array 'run'"):
        read(path, batch_key="run")
    with pytest.raises(DataFileError, match="array bad.*integers or strings"):
        read(path, batch_key="bad")
    with pytest.raises(DataFileError, match="only .h5ad files have any"):
        read(path, layer="counts")
    with pytest.raises(DataFileError, match="no batch key 'donor'"):
        read("spam", batch_key="donor")
