"""CSRLoader against scipy's own row indexing: one epoch of shuffled batches."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import sparsevae_ext as sv
from sparsevae_ext.data.folder import write_folder

from .shapes import csr

#: rows, features, nominal non-zeros per row
DATA = {"full": (20_000, 20_108, 73), "small": (2_000, 4_000, 40)}
BATCH = 500


@pytest.fixture(scope="module")
def matrix(request):
    return csr(*DATA[request.config.getoption("--scale")])


@pytest.fixture(scope="module")
def folder(matrix, tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "data"
    write_folder(matrix, path)
    return path


def scipy_epoch(matrix, order, transpose):
    """X[idx] and wrapping into tensors, the loop that people write; with the CSC form if asked for."""
    seen = 0
    for start in range(0, len(order), BATCH):
        part = matrix[order[start : start + BATCH]]
        crow, col, values = map(torch.from_numpy, (part.indptr, part.indices, part.data))
        seen += sv.CSRBatch(crow, col, values, part.shape).nnz
        if transpose:
            part.tocsc()
    return seen


def rows_epoch(dataset, order, transpose):
    """CSRDataset.rows in the calling thread."""
    return sum(
        dataset.rows(order[start : start + BATCH], prepare=transpose).nnz
        for start in range(0, len(order), BATCH)
    )


def loader_epoch(loader):
    """CSRLoader, with a consumer that does nothing: the hand-over between threads shows."""
    return sum(batch.nnz for batch in loader)


@pytest.mark.parametrize("source", ["memory", "folder"])
@pytest.mark.parametrize("transpose", [False, True], ids=["rows", "rows and transposed index"])
@pytest.mark.parametrize(
    "provider", ["sparsevae_ext CSRDataset.rows", "sparsevae_ext CSRLoader", "scipy X[idx]"]
)
def test_epoch(timed, benchmark, matrix, folder, provider, source, transpose):
    what = "transposed" if transpose else "rows"
    benchmark.group = f"loader-{what}-cpu-{source}"
    order = np.random.default_rng(0).permutation(matrix.shape[0])
    dataset = sv.data.CSRDataset(matrix if source == "memory" else folder)
    if provider.startswith("scipy"):
        provider += " and tocsc()" if transpose else ""
        data = matrix
        if source == "folder":
            arrays = [
                np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("values", "col", "crow")
            ]
            data = sp.csr_matrix(tuple(arrays), shape=matrix.shape, copy=False)

        def step():
            return scipy_epoch(data, order, transpose)
    elif provider.endswith("rows"):

        def step():
            return rows_epoch(dataset, order, transpose)
    else:
        loader = sv.data.CSRLoader(dataset, batch_size=BATCH, prepare=transpose)

        def step():
            return loader_epoch(loader)

    shape = f"{source}, with transposed index" if transpose else source
    seen = timed(step, "cpu", shape=shape, provider=provider, rows=matrix.shape[0])
    assert seen == matrix.nnz
