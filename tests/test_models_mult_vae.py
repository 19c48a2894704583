"""Mult-VAE and Mult-DAE against a dense twin in plain torch, and as nn.Modules."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.models import REGISTRY, MultDAE, MultVAE, build
from sparsevae_ext.ops.csr_rows import csr_dropout
from sparsevae_ext.ops.reparameterize_kl import reparameterize_kl

N = 57


def counts(n_rows=9, n_cols=N, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rates = torch.full((n_rows, n_cols), 0.2)
    dense = torch.poisson(rates, generator=generator)
    dense[n_rows // 2] = 0
    return dense.to(dtype)


def small(kind, dtype=torch.float64, **options):
    torch.manual_seed(0)
    if kind == "vae":
        return MultVAE(N, hidden=11, latent=5, **options).to(dtype)
    return MultDAE(N, hidden=11, **options).to(dtype)


BOTH = pytest.mark.parametrize("kind", ["vae", "dae"])


def dense_twin(model, x, target, keep=None, eps=None):
    """The papers' formulas over dense matrices, from a model's parameters."""
    h = x / x.norm(dim=1, keepdim=True).clamp(min=1e-30)
    if keep is not None:
        h = h * keep / (1 - model.dropout)
    h = torch.tanh(h @ model.encoder.weight.t() + model.encoder.bias)
    kl = torch.zeros_like(x[:, 0])
    if isinstance(model, MultVAE):
        mu, logvar = (h @ model.posterior.weight.t() + model.posterior.bias).chunk(2, 1)
        kl = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)
        z = mu if eps is None else mu + eps * (logvar / 2).exp()
        h = torch.tanh(z @ model.decoder.weight.t() + model.decoder.bias)
    logits = h @ model.output.weight.t() + model.output.bias
    nll = -(target * torch.log_softmax(logits, 1)).sum(1)
    return nll.mean() + getattr(model, "beta", 0.0) * kl.mean(), nll.mean(), kl.mean()


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


@BOTH
@pytest.mark.parametrize("other_target", [False, True])
def test_evaluation_loss_and_gradients_equal_the_dense_twin(kind, other_target, device):
    model = small(kind).eval().to(device)
    dense = counts().to(device)
    target = counts(seed=1).to(device) if other_target else dense
    batch = CSRBatch.from_dense(dense).prepare()
    out = model(batch, CSRBatch.from_dense(target)) if other_target else model(batch)
    loss, nll, kl = dense_twin(model, dense, target)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.nll, nll)
    torch.testing.assert_close(out.kl, kl)
    assert out.penalty == 0
    for got, wanted in zip(gradients(out.loss, model), gradients(loss, model), strict=True):
        torch.testing.assert_close(got, wanted)


@BOTH
def test_training_loss_and_gradients_equal_the_dense_twin(kind, monkeypatch):
    model = small(kind, dropout=0.4).train()
    dense = counts()
    batch = CSRBatch.from_dense(dense).prepare()
    mask = torch.rand(batch.nnz, generator=torch.Generator().manual_seed(3)) > 0.4
    noise = torch.randn(len(dense), 5, dtype=torch.float64)
    seen = []

    def masked(x, p, training):
        seen.append((p, training, x.index is batch.index))
        return csr_dropout(x, p, training, mask)

    monkeypatch.setattr("sparsevae_ext.models.multinomial.csr_dropout", masked)
    monkeypatch.setattr(
        "sparsevae_ext.models.posterior.reparameterize_kl",
        lambda mu, logvar, eps, free_bits: reparameterize_kl(mu, logvar, eps=noise),
    )
    out = model(batch)
    assert seen == [(0.4, True, True)]
    keep = batch.with_values(mask.double()).to_dense()
    loss, nll, kl = dense_twin(model, dense, dense, keep, noise)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.nll, nll)
    torch.testing.assert_close(out.kl, kl)
    for got, wanted in zip(gradients(out.loss, model), gradients(loss, model), strict=True):
        torch.testing.assert_close(got, wanted)


@BOTH
def test_training_is_noisy_and_evaluation_is_not(kind):
    model = small(kind)
    batch = CSRBatch.from_dense(counts())
    assert model.train()(batch).loss != model(batch).loss
    assert model.eval()(batch).loss == model(batch).loss
    code = model.train().encode(batch)
    assert torch.equal(code, model.eval().encode(batch))


@BOTH
def test_all_kinds_of_input_give_the_same(kind):
    model = small(kind).eval()
    dense = counts()
    expected = model(CSRBatch.from_dense(dense)).loss
    for x in (dense, dense.to_sparse_csr(), CSRBatch.from_scipy(_scipy(dense)).prepare()):
        torch.testing.assert_close(model(x).loss, expected)
        torch.testing.assert_close(model(x, dense).loss, expected)
        torch.testing.assert_close(model.encode(x), model.encode(dense))
        assert model.recommend(x, 3)[1].tolist() == model.recommend(dense, 3)[1].tolist()


def _scipy(dense):
    import scipy.sparse as sp

    return sp.csr_matrix(dense.numpy())


def test_beta_is_a_plain_attribute():
    model = small("vae").eval()
    batch = CSRBatch.from_dense(counts())
    for beta in (0.0, 0.5, 2):
        model.beta = beta
        out = model(batch)
        torch.testing.assert_close(out.loss, out.nll + beta * out.kl)
    assert model.config()["beta"] == 0.2  # what it was made with, not where the schedule is
    assert not hasattr(small("dae"), "beta")


@BOTH
def test_initialisation_is_that_of_the_paper(kind):
    torch.manual_seed(1)
    model = MultVAE(800, hidden=90, latent=40) if kind == "vae" else MultDAE(800, hidden=90)
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert parameter.abs().max() <= bound
            assert abs(parameter.std() / bound - 3**-0.5) < 0.02
        else:
            assert parameter.abs().max() <= 0.002
            assert 0.0005 < parameter.std() < 0.0012


@BOTH
def test_equal_seeds_give_equal_weights(kind):
    for left, right in zip(small(kind).parameters(), small(kind).parameters(), strict=True):
        assert torch.equal(left, right)


@BOTH
def test_config_and_build(kind):
    model = small(kind, dropout=0.25)
    config = model.config()
    again = build(config)
    assert type(again) is type(model) is REGISTRY[config["name"]]
    assert again.config() == config
    again.load_state_dict(model.state_dict())
    assert set(REGISTRY) >= {"mult-vae", "mult-dae"}


@pytest.mark.parametrize("config", [{"n_items": 5}, {"name": "mult-xyz", "n_items": 5}])
def test_build_of_an_unknown_name(config):
    with pytest.raises(ValueError, match="mult-vae"):
        build(config)


@BOTH
def test_copies_compute_the_same(kind):
    model = small(kind).eval()
    batch = CSRBatch.from_dense(counts())
    expected = model(batch).loss
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = build(model.config()).double().eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other(batch).loss, expected)
        other(batch).loss.backward()


def test_state_dict_exchange_with_a_dense_model():
    model = small("vae").eval()
    dense = nn.ModuleDict(
        {
            "encoder": nn.Linear(N, 11),
            "posterior": nn.Linear(11, 10),
            "decoder": nn.Linear(5, 11),
            "output": nn.Linear(11, N),
        }
    ).double()
    dense.load_state_dict(model.state_dict())
    other = MultVAE(N, hidden=11, latent=5).double().eval()
    other.load_state_dict(dense.state_dict())
    assert torch.equal(model(counts()).loss, other(counts()).loss)


@pytest.mark.parametrize(
    ("kind", "backend"), [("vae", "aot_eager"), ("dae", "aot_eager"), ("vae", "inductor")]
)
def test_compile_fullgraph_equals_eager(kind, backend):
    torch._dynamo.reset()
    model = small(kind, torch.float32).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    batch = CSRBatch.from_dense(counts(dtype=torch.float32)).prepare()
    results = [(f(batch).loss, gradients(f(batch).loss, model)) for f in (model, compiled)]
    torch.testing.assert_close(results[1], results[0])


def test_compile_does_not_start_over_for_every_batch_and_beta():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = small("vae", torch.float32).train()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for step in range(8):
        model.beta = 0.1 * step
        batch = CSRBatch.from_dense(counts(5 + step, dtype=torch.float32, seed=step)).prepare()
        compiled(batch).loss.backward()
    assert counter.frame_count <= 3


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models(kind, dtype):
    model = small(kind, torch.float32).eval()
    batch = CSRBatch.from_dense(counts(dtype=torch.float32))
    expected = model(batch).loss
    narrow = copy.deepcopy(model).to(dtype)
    out = narrow(batch)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected, rtol=2e-2, atol=0)
    assert all(p.grad.dtype == dtype for p in narrow.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(batch).loss, expected, rtol=2e-2, atol=0)


@BOTH
def test_a_few_steps_lower_the_loss(kind):
    model = small(kind, torch.float32, dropout=0.1)
    batch = CSRBatch.from_dense(counts(60, dtype=torch.float32)).prepare()
    before = model.eval()(batch).loss.item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
    assert model.eval()(batch).loss.item() < 0.9 * before


@BOTH
def test_empty_rows_and_empty_batches(kind):
    model = small(kind).eval()
    out = model(torch.zeros(3, N, dtype=torch.float64))
    assert out.nll == 0
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.encode(torch.zeros(0, N, dtype=torch.float64)).shape[0] == 0
    assert model.row_nll(torch.zeros(0, N, dtype=torch.float64)).shape == (0,)


@BOTH
def test_wrong_input(kind):
    model = small(kind)
    with pytest.raises(RuntimeError, match=f"{N} columns, but got 4"):
        model(torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="Target size"):
        model(torch.zeros(2, N), torch.zeros(3, N))
    with pytest.raises(RuntimeError, match="Target size"):
        model.row_nll(torch.zeros(2, N), torch.zeros(3, N))
    with pytest.raises(TypeError, match="list"):
        model([[0.0] * N])
    with pytest.raises(ValueError, match="non-negative"):
        model(-torch.ones(2, N))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"n_items": 0}),
        (ValueError, {"hidden": -1}),
        (ValueError, {"latent": 0}),
        (TypeError, {"hidden": 1.5}),
        (ValueError, {"dropout": 1.5}),
        (ValueError, {"beta": -0.1}),
        (ValueError, {"beta": float("nan")}),
    ],
)
def test_wrong_options(error, options):
    with pytest.raises(error, match=r"MultVAE\(\): expected"):
        MultVAE(**{"n_items": 5, **options})
