"""Active units, collapse, use of the code, and explained variance, against dense definitions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext.data import CSRBatch, CSRDataset
from sparsevae_ext.models import MultDAE, MultVAE
from sparsevae_ext.nn import FiringCounter
from sparsevae_ext.train.codes import (
    ActiveUnits,
    PosteriorCollapseWarning,
    active_units,
    code_summary,
    posterior_summary,
)
from sparsevae_ext.train.reconstruction import ExplainedVariance

N = 30


def rows(n=70, seed=0):
    return sp.csr_matrix(np.random.default_rng(seed).poisson(0.4, (n, N)).astype(np.float32))


def vae(spread, latent=6):
    """A model whose first units follow the row and whose others do not."""
    torch.manual_seed(0)
    model = MultVAE(N, hidden=12, latent=latent)
    with torch.no_grad():
        model.encoder.weight.mul_(4)
        model.posterior.weight[:latent].mul_(torch.tensor(spread)[:, None])
    return model


# ---- active units --------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(70,), (1, 0, 33, 36)])
def test_streamed_variances(sizes):
    means = torch.randn(70, 5, dtype=torch.float64) * torch.tensor([0.0, 0.05, 0.2, 1.0, 1.0])
    means = (means + torch.tensor([0.0, 0.0, 0.0, 0.0, 1e6])).float()
    units = ActiveUnits()
    for part in means.split(list(sizes)):
        units.update(part)
    expected = means.double().var(dim=0, correction=0)
    # A common mean of 1e6 would cost E x^2 - (E x)^2 twelve of its sixteen digits.
    assert torch.allclose(units.variances(), expected, rtol=1e-9, atol=0)
    assert units.count() == 3
    assert ActiveUnits(threshold=0.5).count() == 0


def test_units_of_a_model():
    model = vae([5.0, 5.0, 5.0, 0.0, 0.0, 0.0]).train()
    data = rows()
    with torch.no_grad():
        means = model.encode(CSRBatch.from_scipy(data)).double()
    expected = int((means.var(dim=0, correction=0) > 0.01).sum())
    assert expected == 3
    for form in (data, CSRDataset(data), CSRBatch.from_scipy(data)):
        assert active_units(model, form, batch_size=9) == expected
    assert model.training
    with pytest.raises(ValueError, match="a model with a posterior: MultDAE"):
        active_units(MultDAE(N, hidden=4), data)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        active_units(model, data, batch_size=0)


def test_posterior_summary():
    model = vae([5.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    batch = CSRBatch.from_scipy(rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = posterior_summary(model, rows(), batch_size=11)
    assert (summary.active, summary.latent, summary.collapsed) == (2, 6, False)
    with torch.no_grad():
        mu, logvar = model.posterior(model.hidden(batch, noisy=False)).double().chunk(2, dim=1)
    kl = (0.5 * (mu.square() + logvar.exp() - 1 - logvar)).sum(dim=1).mean()
    assert summary.kl == pytest.approx(float(kl), rel=1e-5)
    assert torch.allclose(summary.variances, mu.var(dim=0, correction=0), rtol=1e-4)


def test_collapse_is_said_once_and_can_be_kept_quiet():
    model = vae([0.0] * 6)
    with pytest.warns(PosteriorCollapseWarning, match="0 of 6 units are active") as seen:
        assert posterior_summary(model, rows()).collapsed
    assert len(seen) == 1
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior_summary(model, rows(), warn=False)
    with pytest.raises(ValueError, match="at least one row"):
        posterior_summary(model, rows(0))


# ---- the use of the code -------------------------------------------------------------------


def test_code_summary():
    torch.manual_seed(0)
    model = MultDAE(N, hidden=8)
    with torch.no_grad():
        model.encoder.bias[:3] = -50.0  # tanh below 0 for every row
        code = model.encode(CSRBatch.from_scipy(rows()))
    result = code_summary(model, rows(), batch_size=13)
    assert result["l0"] == pytest.approx(float((code > 0).sum(dim=1).double().mean()))
    assert result["dead_units"] == float((~(code > 0).any(dim=0)).sum()) >= 3
    assert result["units"] == 8
    assert math.isnan(code_summary(model, rows(0))["l0"])


def test_dead_units_of_the_training_rows():
    model = MultDAE(N, hidden=3)
    model.firing = FiringCounter(3)
    model.firing.update(torch.tensor([[1.0, 0.0, 0.0]]))
    model.firing.update(torch.tensor([[1.0, 1.0, 0.0]] * 4))
    model.firing.update(torch.tensor([[1.0, 0.0, 0.0]] * 5))
    assert code_summary(model, rows(), dead_after=5)["dead_units"] == 2
    assert code_summary(model, rows(), dead_after=6)["dead_units"] == 1


# ---- explained variance --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(70,), (1, 0, 33, 36)])
def test_explained_variance(sizes, dtype):
    data = rows()
    guess = torch.randn(70, N, dtype=dtype) * 0.1 + torch.from_numpy(data.toarray()).to(dtype) / 2
    explained = ExplainedVariance(N)
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        explained.update(CSRBatch.from_scipy(data[part]).to(dtype), guess[part])
        start += size
    x = torch.from_numpy(data.toarray()).double()
    error = (x - guess.double()).var(dim=0, correction=0)
    assert torch.allclose(explained.per_feature()[0], error, rtol=1e-9)
    assert torch.allclose(explained.per_feature()[1], x.var(dim=0, correction=0), rtol=1e-9)
    expected = 1 - error.sum() / x.var(dim=0, correction=0).sum()
    assert explained.value() == pytest.approx(float(expected), rel=1e-9)


def test_explained_variance_at_its_ends():
    data = rows()
    dense, batch = torch.from_numpy(data.toarray()), CSRBatch.from_scipy(data)
    perfect, mean, shifted = (ExplainedVariance(N) for _ in range(3))
    perfect.update(batch, dense)
    assert perfect.value() == pytest.approx(1.0, abs=1e-12)
    mean.update(batch, dense.double().mean(dim=0).expand_as(dense))
    assert mean.value() == pytest.approx(0.0, abs=1e-12)
    shifted.update(batch, dense + 3)  # a constant error has no variance
    assert shifted.value() == pytest.approx(1.0, abs=1e-12)
    assert math.isnan(ExplainedVariance(N).value())
    with pytest.raises(RuntimeError, match=r"shape \(70, 29\)"):
        ExplainedVariance(29).update(batch, dense)
    with pytest.raises(RuntimeError, match="but got"):
        ExplainedVariance(N).update(batch, dense[:5])
