"""The samplers and the thresholds that make rows directly in CSR, and the lengths they use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch

from sparsevae_ext.data import CSRBatch, CSRDataset
from sparsevae_ext.models import LengthDistribution, MultVAE, row_totals_like
from sparsevae_ext.models.sampling import (
    blocks,
    matched_density_rows,
    sample_bernoulli_rows,
    sample_multinomial_rows,
    sample_poisson_rows,
    top_entries_rows,
)


def of(matrix):
    """The scores of a matrix, a block of rows at a time; notes the largest block asked for."""

    def rows(start, stop):
        rows.largest = max(rows.largest, (stop - start) * matrix.shape[1])
        return matrix[start:stop]

    rows.largest = 0
    return rows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def check_canonical(batch, shape):
    assert batch.shape == shape
    assert batch.dtype == torch.float32
    batch.to_torch()  # torch's own check: sorted and distinct columns
    assert bool((batch.values != 0).all())


def p_value(observed, expected, dof):
    """Of the chi-square statistic; the draws are fixed by their seeds."""
    chi2 = ((observed - expected) ** 2 / expected).sum()
    return float(scipy.stats.chi2.sf(float(chi2), dof))


# ---- Bernoulli -----------------------------------------------------------------------------


def test_bernoulli_cells_have_their_probabilities(device):
    p = torch.tensor([0.5, 0.01, 0.0, 1.0, 0.3, 0.97], dtype=torch.float64, device=device)
    n = 40_000
    source = torch.Generator(device=device).manual_seed(1)
    batch = sample_bernoulli_rows(
        lambda start, stop: p.logit().expand(stop - start, -1), n, 6, generator=source,
        device=device,
    )  # fmt: skip
    check_canonical(batch, (n, 6))
    assert bool((batch.values == 1).all())
    dense = batch.to_dense().double().cpu()
    observed, p = dense.sum(0), p.cpu()
    assert observed[2] == 0
    assert observed[3] == n
    used = [0, 1, 4, 5]
    z = (observed - n * p)[used] / (n * p * (1 - p))[used].sqrt()
    assert float(scipy.stats.chi2.sf(float(z.square().sum()), 4)) > 1e-3
    # Cells are independent: the four combinations of two columns have the product's frequencies.
    pair = (dense[:, 0] * 2 + dense[:, 4]).long().bincount(minlength=4).double()
    expected = n * torch.tensor([0.5 * 0.7, 0.5 * 0.3, 0.5 * 0.7, 0.5 * 0.3])
    assert p_value(pair, expected, 3) > 1e-3


def test_bernoulli_rows_keep_their_own_probabilities_in_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2 * 5)
    wanted = torch.eye(5).roll(2, 1)
    scores = of(torch.where(wanted > 0, 50.0, -50.0))
    batch = sample_bernoulli_rows(scores, 5, 5, generator=generator())
    check_canonical(batch, (5, 5))
    assert torch.equal(batch.to_dense(), wanted)
    assert scores.largest == 10


def test_bernoulli_temperature():
    logit = torch.full((1, 1), 2.0)
    batch = sample_bernoulli_rows(
        lambda start, stop: logit.expand(stop - start, 100), 200, 100, temperature=2.0,
        generator=generator(),
    )  # fmt: skip
    assert abs(batch.nnz / 20_000 - 1 / (1 + math.exp(-1))) < 0.015


# ---- Poisson -------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [None, 64])
def test_poisson_cells_have_their_distribution(monkeypatch, cells):
    """Both ways of drawing: totals shared out, and (in small blocks) every cell on its own."""
    if cells is not None:
        monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", cells)
    rate = torch.tensor([0.02, 1.5, 0.0, 6.0], dtype=torch.float64)
    n = 4_000 if cells else 20_000
    batch = sample_poisson_rows(
        lambda start, stop: rate.log().expand(stop - start, -1), n, 4, generator=generator(2)
    )
    check_canonical(batch, (n, 4))
    dense = batch.to_dense().double()
    assert dense[:, 2].sum() == 0
    for column in (0, 1, 3):
        top = int(rate[column] + 2 + 2 * rate[column].sqrt())
        observed = np.bincount(dense[:, column].long().clamp(max=top).numpy(), minlength=top + 1)
        law = scipy.stats.poisson(float(rate[column]))
        expected = np.append(law.pmf(np.arange(top)), law.sf(top - 1)) * n
        kept = expected > 4
        assert (
            scipy.stats.chi2.sf(
                ((observed - expected)[kept] ** 2 / expected[kept]).sum(), kept.sum() - 1
            )
            > 1e-3
        )
    # Sharing out a Poisson total makes independent cells, unlike a fixed total.
    correlation = np.corrcoef(dense[:, 1].numpy(), dense[:, 3].numpy())[0, 1]
    assert abs(correlation) < 4 / math.sqrt(n)


def test_poisson_of_huge_rates_stays_within_a_block():
    rate = torch.tensor([[1e9, 1.0]])
    batch = sample_poisson_rows(of(rate.log()), 1, 2, generator=generator())
    assert abs(float(batch.to_dense()[0, 0]) / 1e9 - 1) < 1e-3


# ---- multinomial ---------------------------------------------------------------------------


def test_long_rows_are_drawn_in_blocks_of_draws(monkeypatch):
    """No block of rows has more draws than cells allowed, and the totals are still exact."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 100)
    lengths = torch.tensor([90, 5, 5, 1, 300, 0, 0, 7])
    assert list(blocks.row_blocks(8, 2, lengths)) == [(0, 3), (3, 4), (4, 5), (5, 8)]
    batch = sample_multinomial_rows(of(torch.zeros(8, 2)), lengths, 2, generator=generator())
    assert torch.equal(batch.row_sums().long(), lengths)


# ---- thresholds ----------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1 << 22, 14])
def test_top_entries_of_every_row(monkeypatch, cells):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", cells)
    torch.manual_seed(0)
    matrix = torch.randint(0, 5, (9, 7)).float()  # many ties
    k = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 100])
    batch = top_entries_rows(of(matrix), k, 7)
    assert batch.shape == (9, 7)
    for row, dense in enumerate(batch.to_dense()):
        order = sorted(range(7), key=lambda item: (-float(matrix[row, item]), item))
        assert dense.nonzero()[:, 0].tolist() == sorted(order[: int(k[row])])
    kept = top_entries_rows(of(matrix), k, 7, keep_scores=True)
    kept.to_torch()
    assert torch.equal(kept.to_dense(), matrix * batch.to_dense())


@pytest.mark.parametrize("cells", [1 << 22, 60, 30])
@pytest.mark.parametrize("wanted", [0, 1, 17, 300, 899, 900])
def test_one_threshold_gives_the_density(monkeypatch, cells, wanted):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", cells)
    torch.manual_seed(0)
    matrix = torch.randint(0, 50, (30, 30)).double()
    scores = of(matrix)
    batch = matched_density_rows(scores, wanted / 900, 30, 30)
    assert batch.nnz == wanted
    order = sorted(range(900), key=lambda cell: (-float(matrix.view(-1)[cell]), cell))
    assert batch.to_dense().view(-1).nonzero()[:, 0].tolist() == sorted(order[:wanted])
    assert scores.largest <= max(cells, 30)
    kept = matched_density_rows(of(matrix), wanted / 900, 30, 30, keep_scores=True)
    assert torch.equal(kept.to_dense().double(), matrix * batch.to_dense())


def test_row_lengths_in_place_of_a_density():
    matrix = torch.rand(4, 10)
    lengths = torch.tensor([1, 0, 9, 3])
    batch = matched_density_rows(of(matrix), lengths, 4, 10)
    assert batch.crow.diff().tolist() == lengths.tolist()
    with pytest.raises(RuntimeError, match=r"shape \(3,\)"):
        matched_density_rows(of(matrix), lengths, 3, 10)


# ---- all of them ---------------------------------------------------------------------------

DRAW = {
    "bernoulli": lambda scores, n, source: sample_bernoulli_rows(scores, n, 6, generator=source),
    "poisson": lambda scores, n, source: sample_poisson_rows(scores, n, 6, generator=source),
    "multinomial": lambda scores, n, source: sample_multinomial_rows(
        scores, torch.full((n,), 4), 6, generator=source
    ),
    "top": lambda scores, n, source: top_entries_rows(scores, torch.full((n,), 2), 6),
    "density": lambda scores, n, source: matched_density_rows(scores, 0.5, n, 6),
}


@pytest.mark.parametrize("name", DRAW)
def test_no_rows_and_equal_seeds(name):
    draw = DRAW[name]
    check_canonical(draw(of(torch.zeros(0, 6)), 0, generator()), (0, 6))
    matrix = torch.randn(50, 6)
    first = draw(of(matrix), 50, generator(3)).to_dense()
    assert torch.equal(first, draw(of(matrix), 50, generator(3)).to_dense())
    if name not in ("top", "density"):
        assert not torch.equal(first, draw(of(matrix), 50, generator(4)).to_dense())


@pytest.mark.parametrize("name", DRAW)
def test_nan_and_wrong_widths_are_errors(name):
    matrix = torch.zeros(3, 6)
    matrix[1, 2] = torch.nan
    with pytest.raises((ValueError, RuntimeError), match="nan"):
        DRAW[name](of(matrix), 3, generator())
    with pytest.raises(RuntimeError, match=r"expected scores of shape \(rows, 6\)"):
        DRAW[name](of(torch.zeros(3, 7)), 3, generator())


def test_wrong_options():
    zeros = of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="temperature"):
        sample_bernoulli_rows(zeros, 2, 3, temperature=0.0)
    with pytest.raises(ValueError, match="finite sum"):
        sample_poisson_rows(of(torch.full((2, 3), 1e4)), 2, 3)
    with pytest.raises(ValueError, match=r"k >= 0, but got -1"):
        top_entries_rows(zeros, torch.tensor([1, -1]), 3)
    for density in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"density in \[0, 1\]"):
            matched_density_rows(zeros, density, 2, 3)


# ---- lengths -------------------------------------------------------------------------------


def test_lengths_are_drawn_as_the_data_has_them():
    lengths = LengthDistribution([0] * 5 + [2] * 3 + [9.0] * 2)
    assert lengths.lengths.tolist() == [0, 2, 9]
    assert lengths.counts.tolist() == [5, 3, 2]
    assert repr(lengths) == "LengthDistribution(rows=10, min=0, mean=2.4, max=9)"
    drawn = lengths.draw(10_000, seed=0)
    observed = torch.stack([(drawn == length).sum() for length in (0, 2, 9)]).double()
    assert observed.sum() == 10_000
    assert p_value(observed, torch.tensor([5000.0, 3000.0, 2000.0]), 2) > 1e-3
    assert torch.equal(drawn, lengths.draw(10_000, seed=0))
    assert torch.equal(drawn, lengths.draw(10_000, generator=generator(0)))
    assert not torch.equal(drawn, lengths.draw(10_000, seed=1))
    assert lengths.draw(0).shape == (0,)


@pytest.mark.parametrize("kind", ["totals", "entries"])
def test_lengths_of_every_kind_of_data(monkeypatch, kind):
    monkeypatch.setattr("sparsevae_ext.data.blocks.ROWS_AT_A_TIME", 3)
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.5, (10, 8)).astype(np.float32)
    matrix = sp.csr_matrix(dense)
    matrix.data[0] = 0  # a stored zero is no entry
    dense = matrix.toarray()
    expected = np.unique(dense.sum(1) if kind == "totals" else (dense != 0).sum(1))
    for data in (matrix, CSRDataset(matrix), CSRBatch.from_scipy(matrix)):
        assert LengthDistribution.of(data, kind).lengths.tolist() == expected.tolist()
    assert set(row_totals_like(matrix, 100, kind=kind, seed=0).tolist()) <= set(expected.tolist())


def test_a_model_draws_its_lengths_from_a_distribution():
    torch.manual_seed(0)
    model = MultVAE(20, hidden=4, latent=2)
    lengths = LengthDistribution([3, 3, 3, 8])
    rows = model.sample(50, lengths, seed=0)
    assert set(rows.row_sums().tolist()) == {3.0, 8.0}
    assert torch.equal(rows.to_dense(), model.sample(50, lengths, seed=0).to_dense())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LengthDistribution([]),
        lambda: LengthDistribution([1, -1]),
        lambda: LengthDistribution([1.0, math.nan]),
        lambda: LengthDistribution.of(sp.csr_matrix((0, 3))),
        lambda: LengthDistribution.of(sp.csr_matrix((2, 3)), "columns"),
        lambda: LengthDistribution([1]).draw(-1),
        lambda: LengthDistribution([1]).draw(1, seed=0, generator=generator()),
    ],
)
def test_wrong_lengths(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_lengths_of_something_else():
    with pytest.raises(TypeError, match="but got list"):
        LengthDistribution.of([[1, 2]])
