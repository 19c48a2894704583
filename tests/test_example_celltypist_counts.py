"""The example on single-cell counts: on made-up cells, and on the real ones where they are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

PATH = Path(__file__).parents[1] / "examples" / "celltypist_counts.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("celltypist_counts", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up(example, cells=200):
    """Cells of two groups: markers of one of them, and forty genes that differ besides."""
    rng = np.random.default_rng(0)
    markers = [*example.MARKERS["T cells"], *example.MARKERS["B cells"]]
    genes = markers + [f"G{i}" for i in range(80)] + ["rare"]
    kind = rng.integers(2, size=cells)
    rate = rng.gamma(1.0, 1.0, len(genes))[None].repeat(cells, 0)
    rate[:, :4] = np.where(kind == 0, 4.0, 0.05)[:, None]
    rate[:, 4:8] = np.where(kind == 1, 4.0, 0.05)[:, None]
    rate[:, 8:48] *= np.where(kind == 0, 3.0, 0.3)[:, None]
    rate[:, -1] = 0
    counts = rng.poisson(rng.gamma(3.0, rate / 3.0))
    counts[0, -1] = 1
    return sp.csr_matrix(counts.astype(np.float32)), genes, kind


def test_a_table_is_read_as_it_is(example, tmp_path):
    matrix, genes, _ = made_up(example, 5)
    lines = ["," + ",".join(genes)]
    rows = matrix.toarray().astype(int)
    lines += [f"Cell_{i}," + ",".join(map(str, row)) for i, row in enumerate(rows)]
    path = tmp_path / "counts.csv"
    path.write_text("\n".join(lines) + "\n")
    read, names = example.read_csv(path)
    assert names == genes and (read != matrix).nnz == 0
    path.write_text("\n".join([*lines, "Cell_5,1,2"]) + "\n")
    with pytest.raises(SystemExit, match="a line of 2 counts for 89 genes"):
        example.read_csv(path)


def test_genes_and_groups(example):
    matrix, genes, kind = made_up(example)
    kept, names = example.frequent(matrix, genes, 2)
    assert "rare" not in names and kept.shape[1] == len(names)
    groups = example.marked(matrix, genes)
    wanted = np.where(kind == 0, "T cells", "B cells")
    assert set(groups) <= {"T cells", "B cells", "other"}
    assert (groups == wanted).mean() > 0.85


def test_it_beats_the_baseline_and_draws(example, tmp_path):
    torch.set_num_threads(1)
    matrix, genes, kind = made_up(example)
    outcome = example.run(
        matrix, genes, epochs=20, hidden=32, latent=3, batch_size=32, lr=1e-2, n_samples=20
    )
    results = outcome["results"]
    json.dumps(results, allow_nan=False)
    assert results["loss_last_epoch"] < results["loss_first_epoch"]
    assert results["nats_won_per_cell"] > 5
    assert f"{results['test']['marginal_nll']:,.1f}" in example.text(results)
    # The two groups lie apart along the main direction of the codes.
    codes = outcome["codes"] - outcome["codes"].mean(axis=0)
    line = codes @ np.linalg.svd(codes, full_matrices=False)[2][0]
    assert abs(((line > 0) == (kind == 1)).mean() - 0.5) > 0.4
    pytest.importorskip("matplotlib")
    example.draw(outcome, tmp_path / "latent.png")
    assert (tmp_path / "latent.png").read_bytes().startswith(b"\x89PNG")


def test_the_real_cells(example):
    if importlib.util.find_spec("celltypist") is None:
        pytest.skip("needs the counts in the package celltypist")
    torch.set_num_threads(1)
    matrix, genes = example.read_csv(example.sample_path())
    assert matrix.shape == (559, 32786) and matrix.nnz == 1_027_859
    results = example.run(matrix, genes, epochs=4, n_samples=10)["results"]
    assert results["loss_last_epoch"] < results["loss_first_epoch"]
    assert results["test"]["marginal_nll"] < 0.95 * results["poisson_mean_nll"]


def test_without_the_package(example, monkeypatch):
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps celltypist"):
        example.sample_path()
