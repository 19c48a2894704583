"""The comparison of generated rows with data, against plain numpy and scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch

import sparsevae_ext as sv
from sparsevae_ext.data import CSRBatch, CSRDataset, sparsity_report, sparsity_stats


def counts(rows=60, columns=25, rate=0.6, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(columns, 0.5)) * columns * rate
    return rng.poisson(weights * rng.gamma(2, 0.5, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize("rows_at_a_time", [65536, 7])
@pytest.mark.parametrize("kind", [sp.csr_matrix, CSRDataset, CSRBatch])
def test_statistics(monkeypatch, kind, rows_at_a_time):
    monkeypatch.setattr("sparsevae_ext.data.blocks.ROWS_AT_A_TIME", rows_at_a_time)
    dense = counts()
    matrix = sp.csr_matrix(dense)
    matrix.data[3] = 0.0  # stored, but no entry
    dense = matrix.toarray()
    data = CSRBatch.from_scipy(matrix) if kind is CSRBatch else kind(matrix)
    stats = sparsity_stats(data)
    assert stats.shape == (60, 25)
    assert stats.row_lengths.tolist() == (dense != 0).sum(1).tolist()
    assert stats.row_totals.tolist() == dense.sum(1).tolist()
    assert stats.column_counts.tolist() == (dense != 0).sum(0).tolist()
    assert stats.nnz == (dense != 0).sum()
    assert stats.density == pytest.approx((dense != 0).mean())
    assert stats.zero_fractions == pytest.approx((dense == 0).mean(0))
    values = dense[dense != 0]
    assert stats.value_mean == pytest.approx(values.mean())
    assert stats.value_std == pytest.approx(values.std())
    assert stats.value_max == values.max()
    assert stats.length_quantiles()[3] == np.median((dense != 0).sum(1))
    assert matrix.nnz == dense.astype(bool).sum() + 1  # the caller's matrix is as it was


def test_distances_agree_with_scipy():
    left, right = counts(seed=1, rate=0.4), counts(rows=43, seed=2)
    report = sparsity_report(sp.csr_matrix(left), sp.csr_matrix(right))
    lengths = [(m != 0).sum(1) for m in (left, right)]
    assert report.row_length_ks == pytest.approx(scipy.stats.ks_2samp(*lengths).statistic)
    totals = [m.sum(1) for m in (left, right)]
    assert report.row_total_ks == pytest.approx(scipy.stats.ks_2samp(*totals).statistic)
    shares = [(m != 0).mean(0) for m in (left, right)]
    expected = scipy.stats.pearsonr(*shares).statistic
    assert report.column_correlation == pytest.approx(expected)
    parts = [(m != 0).sum(0) / (m != 0).sum() for m in (left, right)]
    assert report.column_total_variation == pytest.approx(np.abs(parts[0] - parts[1]).sum() / 2)
    gap = np.abs(shares[0] - shares[1])
    assert report.zero_fraction_mean_error == pytest.approx(gap.mean())
    assert report.zero_fraction_max_error == pytest.approx(gap.max())
    assert report.row_length_ks > 0.1


def test_equal_data_is_at_distance_zero():
    matrix = sp.csr_matrix(counts())
    report = sparsity_report(CSRBatch.from_scipy(matrix), CSRDataset(matrix))
    assert report.row_length_ks == report.row_total_ks == report.column_total_variation == 0
    assert report.zero_fraction_max_error == 0
    assert report.column_correlation == pytest.approx(1.0)


def test_text_and_numbers():
    report = sv.sparsity_report(sp.csr_matrix(counts(seed=1)), sp.csr_matrix(counts()))
    text = str(report)
    assert "generated" in text.splitlines()[0]
    assert f"{report.data.density:.4%}" in text
    assert f"KS {report.row_length_ks:.4f}" in text
    assert len({len(line) for line in text.split("\n\n")[0].splitlines()}) == 1
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["generated"]["density"] == report.generated.density
    assert numbers["row_length_ks"] == report.row_length_ks
    assert len(numbers["data"]["row_length_quantiles"]) == 7


@pytest.mark.parametrize(
    "pair",
    [((0, 5), (4, 5)), ((3, 5), (4, 5)), ((3, 0), (4, 0))],
    ids=["rows", "entries", "columns"],
)
def test_nothing_to_compare_is_nan_not_an_error(pair):
    report = sparsity_report(*(sp.csr_matrix(shape) for shape in pair))
    assert math.isnan(report.column_correlation)
    assert math.isnan(report.column_total_variation)
    assert "nan" in str(report)


def test_bf16_batches_are_compared_too():
    batch = CSRBatch.from_scipy(sp.csr_matrix(counts()))
    assert sparsity_report(batch.to(torch.bfloat16), batch).row_length_ks == 0


def test_bad_input():
    matrix = sp.csr_matrix(counts())
    with pytest.raises(RuntimeError, match="expected generated rows with 25 columns, but got 24"):
        sparsity_report(matrix[:, :24].tocsr(), matrix)
    with pytest.raises(TypeError, match="but got ndarray"):
        sparsity_report(counts(), matrix)
    with pytest.raises(TypeError, match="format csc"):
        sparsity_stats(matrix.tocsc())


def test_figure(tmp_path):
    pytest.importorskip("matplotlib")
    from sparsevae_ext.train.plots import sparsity_figure

    data = sp.csr_matrix(counts())
    for name, generated in (("a", sp.csr_matrix(counts(seed=3))), ("b", sp.csr_matrix((0, 25)))):
        path = tmp_path / f"{name}.png"
        sparsity_figure(sparsity_report(generated, data), path, title="Rows")
        assert path.read_bytes().startswith(b"\x89PNG")
