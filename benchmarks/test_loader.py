"""CSRLoader against scipy's own row indexing: one epoch of shuffled batches."""

from __future__ import annotations

import numpy as np
import pytest
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


def scipy_epoch(matrix, order):
    """X[idx] and wrapping into tensors, the loop that people write."""
    seen = 0
    for start in range(0, len(order), BATCH):
        part = matrix[order[start : start + BATCH]]
        crow, col, values = map(torch.from_numpy, (part.indptr, part.indices, part.data))
        seen += sv.CSRBatch(crow, col, values, part.shape).nnz
    return seen


def loader_epoch(loader):
    return sum(batch.nnz for batch in loader)


@pytest.mark.parametrize("source", ["memory", "folder"])
@pytest.mark.parametrize(
    "provider",
    ["sparsevae_ext rows only", "sparsevae_ext with transposed index", "scipy X[idx]"],
)
def test_epoch(timed, benchmark, matrix, folder, provider, source):
    benchmark.group = f"loader-epoch-cpu-{source}"
    if provider.startswith("scipy"):
        data = matrix
        if source == "folder":
            import scipy.sparse as sp

            arrays = [
                np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("values", "col", "crow")
            ]
            data = sp.csr_matrix(tuple(arrays), shape=matrix.shape, copy=False)
        order = np.random.default_rng(0).permutation(matrix.shape[0])

        def step():
            return scipy_epoch(data, order)
    else:
        loader = sv.data.CSRLoader(
            sv.data.CSRDataset(matrix if source == "memory" else folder),
            batch_size=BATCH,
            prepare=provider.endswith("index"),
        )

        def step():
            return loader_epoch(loader)

    seen = timed(step, "cpu", shape=source, provider=provider, rows=matrix.shape[0])
    assert seen == matrix.nnz
