"""Drawing rows of counts from a model."""

from __future__ import annotations

import pytest
import torch

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.models import MultDAE, MultVAE
from sparsevae_ext.models.sampling import blocks, sample_multinomial_rows

N = 41


def vae(seed=0):
    torch.manual_seed(seed)
    return MultVAE(N, hidden=8, latent=3)


def draw(probs, lengths, seed=0, **options):
    logits = torch.as_tensor(probs, dtype=torch.float64).log()
    return sample_multinomial_rows(
        lambda start, stop: logits[start:stop],
        torch.as_tensor(lengths),
        logits.shape[1],
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def check_canonical(batch):
    assert batch.crow[0] == 0
    assert batch.crow[-1] == batch.nnz
    batch.to_torch()  # torch's own check: sorted and distinct columns
    assert (batch.values > 0).all()
    assert (batch.values == batch.values.round()).all()


def test_frequencies_follow_the_probabilities():
    probs = torch.tensor([[0.5, 0.25, 0.0, 0.2, 0.05], [0.01, 0.0, 0.9, 0.0, 0.09]])
    length = 200_000
    batch = draw(probs, [length, length])
    check_canonical(batch)
    observed = batch.to_dense().double()
    assert observed[probs == 0].sum() == 0
    expected = probs.double() * length
    used = expected > 0
    chi2 = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert chi2 < 25  # 5 degrees of freedom: the chance of more is 1e-4, and the seed is fixed


def test_rows_have_the_wanted_totals(device):
    model = vae().to(device)
    lengths = torch.tensor([3, 0, 50, 1])
    batch = model.sample(4, lengths, seed=0)
    check_canonical(batch)
    assert batch.shape == (4, N)
    assert batch.dtype == torch.float32
    assert batch.row_sums().tolist() == [3, 0, 50, 1]
    assert model.sample(2, 7).row_sums().tolist() == [7, 7]
    assert model.sample(2).row_sums().tolist() == [100, 100]
    assert model.sample(2, torch.tensor([1.9, 4.0])).row_sums().tolist() == [2, 4]
    assert model.sample(0, 5).shape == (0, N)
    assert model.sample(3, 0).nnz == 0


def test_seeds_and_generators():
    model = vae()
    first = model.sample(5, 20, seed=3).to_dense()
    assert torch.equal(first, model.sample(5, 20, seed=3).to_dense())
    assert not torch.equal(first, model.sample(5, 20, seed=4).to_dense())
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first, model.sample(5, 20, generator=generator).to_dense())
    assert not torch.equal(first, model.sample(5, 20, generator=generator).to_dense())
    torch.manual_seed(9)
    state = torch.get_rng_state()
    model.sample(5, 20, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="both"):
        model.sample(5, 20, seed=3, generator=generator)


def test_prior_draws_follow_the_model():
    """The mean row is the mean softmax over codes from the prior."""
    model = vae()
    with torch.no_grad():
        model.output.weight.mul_(4)
        code = torch.randn(40_000, 3)
        expected = torch.softmax(model.output(model.decode_hidden(code)), 1).mean(0)
    observed = model.sample(40_000, 10, seed=0).to_dense().mean(0) / 10
    assert (observed - expected).abs().max() < 0.002
    assert expected.max() - expected.min() > 0.01


def test_temperature():
    probs = torch.tensor([[0.6, 0.3, 0.1]])
    flat = draw(probs, [100_000], temperature=2.0).to_dense() / 100_000
    expected = probs.sqrt() / probs.sqrt().sum()
    assert (flat - expected).abs().max() < 0.01
    assert draw(probs, [1000], temperature=1e-3).to_dense()[0, 0] == 1000


def test_given_rows_are_imitated():
    torch.manual_seed(0)
    model = MultDAE(N, hidden=8)
    rows = CSRBatch.from_dense((torch.rand(3, N) < 0.3).float())
    with torch.no_grad():
        model.output.weight.mul_(5)
        probs = torch.softmax(model.output(model.encode(rows)), 1)
    batch = model.sample(3, given=rows, seed=0)
    assert batch.row_sums().tolist() == rows.row_sums().tolist()
    many = model.sample(3, 100_000, given=rows, seed=0).to_dense() / 100_000
    assert (many - probs).abs().max() < 0.01
    with pytest.raises(ValueError, match="no prior"):
        model.sample(3)
    with pytest.raises(RuntimeError, match="3 rows|2 rows"):
        model.sample(2, given=rows)


def test_blocks_do_not_disturb_rows(monkeypatch):
    """Every row keeps its own probabilities when rows are drawn a few at a time."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 2 * 5)
    probs = torch.eye(5).roll(2, 1)
    batch = draw(probs, [4, 3, 0, 2, 1])
    check_canonical(batch)
    expected = probs * torch.tensor([4.0, 3.0, 0.0, 2.0, 1.0])[:, None]
    assert torch.equal(batch.to_dense(), expected)


def test_a_uniform_number_next_to_one_stays_in_its_row(monkeypatch):
    def ones(*shape, dtype, device, generator):
        return torch.full(shape, 1 - 2.0**-53, dtype=dtype)

    monkeypatch.setattr(torch, "rand", ones)
    n = blocks.MAX_BLOCK_ROWS
    probs = torch.tensor([[0.5, 0.5]]).repeat(n, 1)
    assert torch.equal(draw(probs, [1] * n).to_dense(), torch.tensor([[0.0, 1.0]]).repeat(n, 1))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"n": -1}),
        (ValueError, {"n": 2, "length": -1}),
        (ValueError, {"n": 2, "length": torch.tensor([1.0, torch.nan])}),
        (RuntimeError, {"n": 2, "length": torch.tensor([1, 2, 3])}),
        (ValueError, {"n": 2, "temperature": 0.0}),
        (ValueError, {"n": 2, "temperature": float("nan")}),
    ],
)
def test_wrong_options(error, options):
    with pytest.raises(error, match=r"sample\(\): expected"):
        vae().sample(**options)


def test_nan_weights_are_an_error():
    model = vae()
    with torch.no_grad():
        model.output.bias[0] = torch.nan
    with pytest.raises(ValueError, match="nan"):
        model.sample(2)


def test_a_uniform_number_of_zero_skips_items_of_probability_zero(monkeypatch):
    monkeypatch.setattr(
        torch, "rand", lambda *shape, dtype, device, generator: torch.zeros(*shape, dtype=dtype)
    )
    batch = draw([[0.0, 0.0, 1.0], [0.0, 0.5, 0.5]], [1, 1])
    assert batch.to_dense().tolist() == [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
