"""CountVAE against scVI's formulas in dense torch, its draws, and what it gives over data sets."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sparsevae_ext.data import CSRBatch, CSRDataset
from sparsevae_ext.models import CountVAE, LengthDistribution, build
from sparsevae_ext.models import expression as expression_module
from sparsevae_ext.ops._registry import use_kernel

N, B = 23, 9
KINDS = pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "nb"},
        {"likelihood": "nb", "n_batch": 3, "n_layers": 2},
        {"likelihood": "nb", "n_batch": 3, "dispersion": "gene-batch"},
        {"likelihood": "zinb"},
        {"likelihood": "zinb", "n_batch": 4, "dispersion": "gene-batch"},
        {"likelihood": "poisson", "n_batch": 3},
    ],
    ids=["nb", "nb-batch", "nb-gene-batch", "zinb", "zinb-gene-batch", "poisson"],
)
INDEX = torch.tensor([2, 0, 1, 1, 2, 0, 2, 2, 1])


def rows(dtype=torch.float64):
    """Counts with an empty cell, which is cell 4."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.poisson(3 * torch.rand(B, N, generator=generator) ** 3, generator=generator)
    dense[4] = 0
    dense[0, 0] = 700
    return dense.to(dtype)


def small(dtype=torch.float64, **options):
    """A model whose every parameter counts, the shifts of the batches and theta too."""
    torch.manual_seed(0)
    model = CountVAE(N, hidden=11, latent=4, **{"dropout": 0.0, **options}).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "shift" in name or name == "log_theta":
                parameter.normal_()
    return model


def index_of(model):
    return INDEX if model.n_batch else None


def twin_stack(x, linears, norms, index):
    for linear, norm in zip(linears, norms, strict=True):
        x = F.linear(x, linear.weight, linear.bias)
        if index is not None:
            x = x + F.one_hot(index, len(norm.shift)).to(x.dtype) @ norm.shift
        x = torch.relu(F.layer_norm(x, x.shape[1:], norm.norm.weight, norm.norm.bias))
    return x


def twin_moments(model, x, index):
    h = twin_stack(torch.log1p(x), [model.encoder], [model.encoder_norm], index)
    layers = model.encoder_layers
    h = twin_stack(h, layers.linears, layers.norms, index)
    return model.posterior(h).chunk(2, 1)


def twin_nll(model, z, x, index):
    """scVI's log_nb_positive and log_zinb_positive (Lopez et al. 2018) cell by cell, minus."""
    h = twin_stack(z, model.decoder.linears, model.decoder.norms, index)
    mu = x.sum(1, keepdim=True) * torch.softmax(model.output(h), 1)
    if model.likelihood == "poisson":
        log_mu = torch.where(x > 0, mu.clamp(min=1e-300).log(), 0.0)
        return (mu - x * log_mu + torch.lgamma(x + 1)).sum(1)
    theta = model.log_theta.exp()
    theta = theta[index] if theta.dim() == 2 else theta
    log_theta_mu = torch.log(theta + mu)
    # With mu = 0 scVI's x * log(mu + eps) is x * log(eps); here x is 0 too and the term is 0.
    log_nb = (
        theta * (torch.log(theta) - log_theta_mu)
        + torch.where(x > 0, x * (torch.log(mu.clamp(min=1e-300)) - log_theta_mu), 0.0)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    if model.likelihood == "nb":
        return -log_nb.sum(1)
    pi = model.zero_output(h)
    log_p0 = theta * (torch.log(theta) - log_theta_mu)
    zero = F.softplus(log_p0 - pi) - F.softplus(-pi)
    some = -F.softplus(-pi) - pi + log_nb
    return -torch.where(x > 0, some, zero).sum(1)


def twin_kl(mu, logvar):
    return 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)


# ---- the loss -------------------------------------------------------------------------------


@KINDS
def test_loss_and_every_gradient_against_dense_torch(options):
    model, x = small(**options).eval(), rows()
    index = index_of(model)
    out = model(CSRBatch.from_dense(x), batch_index=index)
    out.loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    twin.zero_grad()
    mu, logvar = twin_moments(twin, x, index)
    nll, kl = twin_nll(twin, mu, x, index).mean(), twin_kl(mu, logvar).mean()
    (nll + kl).backward()
    assert torch.allclose(out.nll, nll, rtol=1e-9)
    assert torch.allclose(out.kl, kl, rtol=1e-9)
    assert float(out.penalty) == 0.0 and torch.equal(out.loss, out.nll + out.kl)
    for name, parameter in twin.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = wanted.abs().max() + 1e-9
        assert (ours[name] - wanted).abs().max() < 1e-7 * scale, name


@KINDS
def test_rows_of_the_loss_and_an_empty_cell(options):
    model, x = small(**options), rows()
    index = index_of(model)
    z = torch.randn(B, 4, dtype=torch.float64)
    nll = model._nll(z, CSRBatch.from_dense(x).with_batch_index(index))
    wanted = twin_nll(model, z, x, index)
    assert torch.allclose(nll, wanted, rtol=1e-9, atol=1e-12)
    assert float(nll[4].detach()) < 1e-20
    grad = torch.autograd.grad(nll[4], list(model.output.parameters()), allow_unused=True)
    assert all(g is None or float(g.abs().max()) < 1e-20 for g in grad)
    assert float(model.row_nll(x, batch_index=index)[4]) < 1e-20


def test_only_empty_cells_and_no_cells():
    model = small(torch.float32)
    out = model(torch.zeros(3, N))
    out.loss.backward()
    assert float(out.nll.detach()) < 1e-20
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    nothing = torch.zeros(0, N)
    assert model.get_latent(nothing).shape == (0, 4)
    assert model.marginal_nll(nothing, 2).shape == (0,)
    assert model.get_normalized_expression(nothing, genes=[1]).shape == (0, 1)
    assert model.sample(0).shape == (0, N)
    assert model.row_nll(nothing).shape == (0,)


def test_the_library_is_that_of_the_target():
    model, x = small().eval(), rows()
    target = torch.poisson(torch.full((B, N), 2.0, dtype=torch.float64))
    code = model.encode(x)
    assert torch.allclose(model(x, target).nll, twin_nll(model, code, target, None).mean())
    assert torch.allclose(model.row_nll(x, target), twin_nll(model, code, target, None))


def test_the_code_is_drawn_in_training_and_dropout_acts_there():
    model, x = small(dropout=0.5), rows()
    torch.manual_seed(1)
    first, second = model(x).nll, model(x).nll
    assert first != second
    assert torch.equal(model.encode(x), model.eval().encode(x))
    assert torch.equal(model(x).nll, model(x).nll)


def test_one_row_trains():
    out = small(torch.float32)(rows(torch.float32)[:1])
    out.loss.backward()
    assert out.loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    """A total beyond float16 is no trouble: the library stays float32."""
    x = rows()
    x[0, 0] = 60000.0
    x[0, 1] = 40000.0
    wanted = small()(x).nll
    model = small(dtype).eval()
    nll = model.row_nll(CSRBatch.from_dense(x.to(dtype)))
    assert nll.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        out = small(torch.float32)(x.float())
    assert abs(float(out.nll.detach() / wanted.detach()) - 1) < 0.1
    out.loss.backward()


def test_it_compiles_with_the_batch_index():
    model = small(torch.float32, n_batch=3).eval()
    batch = CSRBatch.from_dense(rows(torch.float32)).with_batch_index(INDEX).prepare()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(batch).loss, model(batch).loss, rtol=1e-5)


@pytest.mark.skipif(not use_kernel("linear_nll", torch.zeros(1)), reason="no compiled object")
@pytest.mark.parametrize("options", [{}, {"n_batch": 3, "dispersion": "gene-batch"}])
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_no_tensor_of_rows_by_genes_is_made(likelihood, options):
    genes, cells = 4000, 96
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return made

    model = CountVAE(genes, hidden=8, latent=3, likelihood=likelihood, **options)
    matrix = sp.random(cells, genes, density=0.03, format="csr", random_state=0)
    matrix.data = np.ceil(3 * matrix.data).astype(np.float32)
    batch = CSRBatch.from_scipy(matrix).prepare()
    index = torch.arange(cells) % 3 if model.n_batch else None
    with Watch():
        model(batch, batch_index=index).loss.backward()
        model.eval().row_nll(batch, batch_index=index)
        model.iwae(batch, 2, batch_index=index)
    assert genes * 8 <= largest < genes * cells / 4


# ---- the experimental batch -----------------------------------------------------------------


def test_the_index_matters_and_comes_either_way():
    model, x = small(n_batch=3).eval(), rows()
    carrying = CSRBatch.from_dense(x).with_batch_index(INDEX)
    wanted = model(x, batch_index=INDEX)
    for given in (model(carrying), model(x, batch_index=INDEX.int())):
        assert torch.equal(given.loss, wanted.loss)
    # What is given wins over what the rows carry.
    ones = torch.ones_like(INDEX)
    assert torch.equal(model(carrying, batch_index=1).loss, model(x, batch_index=ones).loss)
    assert not torch.equal(model(carrying, batch_index=1).loss, wanted.loss)
    # A model without batches takes rows that carry some.
    bare = small().eval()
    assert torch.equal(bare(carrying).loss, bare(x).loss)


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (None, ValueError, r"expected batch_index, the batch of each row in \[0, 3\)"),
        (torch.tensor([0, 1, 3] * 3), IndexError, "batch index 3 at position 2 .* n_batch=3"),
        (torch.tensor([0, 1, -1] * 3), IndexError, "batch index -1 at position 2"),
        (3, IndexError, "batch index 3 at position 0"),
        (INDEX[:4], RuntimeError, r"batch_index of shape \(9,\), but got \(4,\)"),
        (INDEX.float(), RuntimeError, "of an integer dtype"),
        ([0] * 9, TypeError, "an integer tensor or an int, but got list"),
        (True, TypeError, "but got bool"),
    ],
)
def test_a_bad_index(index, error, text):
    model, x = small(n_batch=3), rows()
    calls = [
        lambda: model(x, batch_index=index),
        lambda: model.encode(x, index),
        lambda: model.iwae(x, 2, batch_index=index),
        lambda: model.sample(B, batch_index=index),
    ]
    for call in calls:
        with pytest.raises(error, match=rf"CountVAE\(\): .*{text}"):
            call()


def test_other_refusals():
    model, x = small(), rows()
    with pytest.raises(ValueError, match="to be None for a model with n_batch=0"):
        model(x, batch_index=INDEX)
    carrying = CSRBatch.from_dense(x).with_batch_index(INDEX + 2)
    with pytest.raises(IndexError, match="batch index 4 at position 0"):
        small(n_batch=3)(carrying)
    with pytest.raises(RuntimeError, match="expected a batch with 23 columns, but got 5"):
        model(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="non-negative counts"):
        model(CSRBatch.from_dense(x - 0.5))
    with pytest.raises(RuntimeError, match=r"batch_index of shape \(9,\)"):
        small(n_batch=3).get_latent(x, INDEX[:5], chunk_rows=2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"likelihood": "gaussian"}, ValueError, "likelihood to be one of nb, zinb, poisson"),
        ({"dispersion": "cell"}, ValueError, "dispersion to be one of gene, gene-batch"),
        ({"dispersion": "gene-batch"}, ValueError, "expected n_batch >= 1"),
        (
            {"dispersion": "gene-batch", "n_batch": 2, "likelihood": "poisson"},
            ValueError,
            "a likelihood with a dispersion",
        ),
        ({"n_batch": -1}, ValueError, "n_batch >= 0, but got -1"),
        ({"n_batch": 2.0}, TypeError, "n_batch to be an int, but got float"),
        ({"n_layers": 0}, ValueError, "n_layers >= 1"),
        ({"hidden": 0}, ValueError, "hidden >= 1"),
        ({"dropout": 1.5}, ValueError, "dropout in"),
        ({"beta": -1.0}, ValueError, "beta >= 0"),
    ],
)
def test_options_that_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        CountVAE(N, **options)


@KINDS
def test_config_and_state(options):
    model = small(torch.float32, **options).eval()
    again = build(model.config()).eval()
    again.load_state_dict(model.state_dict())
    x, index = rows(torch.float32), index_of(model)
    assert torch.equal(again(x, batch_index=index).loss, model(x, batch_index=index).loss)
    assert pickle.loads(pickle.dumps(model)).config() == model.config()
    assert "likelihood=" in repr(model)


# ---- whole data sets ------------------------------------------------------------------------


def test_latent_of_every_kind_of_data():
    model, x = small(torch.float32, n_batch=3), rows(torch.float32)
    wanted = model.encode(x, INDEX).detach()
    matrix = sp.csr_matrix(x.numpy())
    ds = CSRDataset(matrix, batch_index=INDEX.numpy())
    batch = CSRBatch.from_dense(x)
    for chunk in (2, 100):
        found = [
            model.get_latent(ds, chunk_rows=chunk),
            model.get_latent(batch.with_batch_index(INDEX), chunk_rows=chunk),
            model.get_latent(batch.to_torch(), INDEX, chunk_rows=chunk),
            model.get_latent(matrix, INDEX, chunk_rows=chunk),
            model.get_latent(x, INDEX, chunk_rows=chunk),
        ]
        for latent in found:
            assert torch.allclose(latent, wanted, atol=1e-6) and not latent.requires_grad
    part = ds.subset([5, 1])
    assert torch.allclose(model.get_latent(part), wanted[[5, 1]], atol=1e-6)
    with pytest.raises(TypeError, match="CountVAE.*expected a CSRDataset"):
        model.get_latent([1, 2])


def test_expression():
    model, x = small(n_batch=3).eval(), rows()
    hidden = twin_stack(model.encode(x, INDEX), model.decoder.linears, model.decoder.norms, INDEX)
    shares = torch.softmax(model.output(hidden), 1).detach()
    whole = model.get_normalized_expression(x, INDEX)
    assert torch.allclose(whole, shares)
    assert torch.allclose(whole.sum(1), torch.ones(B, dtype=torch.float64))
    ten = model.get_normalized_expression(x, INDEX, library_size=1e4, genes=[7, 0, 7])
    assert torch.allclose(ten, 1e4 * shares[:, [7, 0, 7]])
    own = model.get_normalized_expression(x, INDEX, library_size="latent")
    assert torch.allclose(own, shares * x.sum(1, keepdim=True))
    chunks = list(model.expression_chunks(x, INDEX, chunk_rows=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 1]
    assert torch.allclose(torch.cat(chunks), shares)
    # Every row decoded in batch 1; its code keeps to its own batch.
    ones = torch.ones_like(INDEX)
    hidden = twin_stack(model.encode(x, INDEX), model.decoder.linears, model.decoder.norms, ones)
    moved = model.get_normalized_expression(x, INDEX, transform_batch=1)
    assert torch.allclose(moved, torch.softmax(model.output(hidden), 1))


def test_expression_is_never_a_giant(monkeypatch):
    model, x = small(), rows()
    monkeypatch.setattr(expression_module, "_MAX_ELEMENTS", B * N - 1)
    with pytest.raises(ValueError, match=r"9 rows of 23 genes are 207; name the genes"):
        model.get_normalized_expression(x)
    assert model.get_normalized_expression(x, genes=torch.tensor([1])).shape == (B, 1)
    assert model.get_normalized_expression(x[:8]).shape == (8, N)
    monkeypatch.setattr(expression_module, "_CHUNK_ELEMENTS", 2 * N)
    assert [len(chunk) for chunk in model.expression_chunks(x)] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"library_size": "observed"}, ValueError, "library_size > 0 or 'latent'"),
        ({"library_size": -1.0}, ValueError, "library_size > 0 or 'latent'"),
        ({"genes": [23]}, IndexError, r"genes in \[0, 23\), but got 23 to 23"),
        ({"genes": [-1, 2]}, IndexError, "but got -1 to 2"),
        ({"genes": [0.5]}, TypeError, "column numbers"),
        ({"transform_batch": 0}, ValueError, "n_batch=0"),
    ],
)
def test_expression_refusals(options, error, text):
    with pytest.raises(error, match=text):
        small().get_normalized_expression(rows(), **options)


# ---- the marginal likelihood ----------------------------------------------------------------


@KINDS
def test_iwae_is_its_formula(options):
    model, x = small(**options), rows()
    index = index_of(model)
    generator = torch.Generator().manual_seed(3)
    bound = model.iwae(x, 5, batch_index=index, generator=generator)
    mu, logvar = twin_moments(model, x, index)
    eps = torch.randn(5, B, 4, dtype=torch.float64, generator=generator.manual_seed(3))
    weights = []
    for e in eps:
        z = mu + e * (logvar / 2).exp()
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        posterior = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z).sum(1)
        weights.append(-twin_nll(model, z, x, index) + prior - posterior)
    wanted = math.log(5) - torch.logsumexp(torch.stack(weights), 0)
    assert torch.allclose(bound, wanted, rtol=1e-9)
    bound.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_marginal_nll_over_a_data_set_tightens_with_samples():
    model, x = small(torch.float32, n_batch=3), rows(torch.float32)
    ds = CSRDataset(sp.csr_matrix(x.numpy()), batch_index=INDEX.numpy())
    torch.manual_seed(0)
    few = torch.stack([model.marginal_nll(ds, 1) for _ in range(200)]).mean(0)
    many = model.marginal_nll(ds, 2000, chunk_rows=4)
    assert many.dtype == torch.float64 and not many.requires_grad
    busy = x.sum(1) > 0
    assert (many[busy] < few[busy]).all()
    # One sample is the negative ELBO in expectation.
    mu, logvar = model.moments(model.hidden(ds.rows(slice(None)), noisy=False))
    assert (few - many <= twin_kl(mu, logvar).detach() + 0.05 * few + 1).all()
    with pytest.raises(ValueError, match="n_samples >= 1"):
        model.marginal_nll(ds, 0)


# ---- draws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_draws_have_the_moments_of_the_model(likelihood):
    model = small(torch.float32, likelihood=likelihood)
    n = 4000
    cell = rows(torch.float32)[1:2]
    given = cell.expand(n, -1)
    drawn = model.sample(n, 400, given=given, seed=0).to_dense().double()
    hidden = model.decoder(model.encode(cell), None)
    mu = 400 * torch.softmax(model.output(hidden).double(), 1)[0].detach()
    variance = mu.clone()
    zero = torch.zeros_like(mu)
    if likelihood != "poisson":
        variance = mu + mu**2 / model.log_theta.detach().double().exp()
    if likelihood == "zinb":
        zero = torch.sigmoid(model.zero_output(hidden).double())[0].detach()
    second = (1 - zero) * (variance + mu**2)
    mean = (1 - zero) * mu
    error = (drawn.mean(0) - mean).abs() / ((second - mean**2) / n).sqrt()
    assert float(error.max()) < 4.5
    found = drawn.var(0)
    assert torch.allclose(found, second - mean**2, rtol=0.35, atol=0.05)
    if likelihood == "zinb":
        theta = model.log_theta.detach().double().exp()
        p0 = zero + (1 - zero) * (theta / (theta + mu)) ** theta
        share = (drawn == 0).double().mean(0)
        assert float(((share - p0).abs() / (p0 * (1 - p0) / n).sqrt().clamp(min=1e-3)).max()) < 4.5


def test_draws_by_batch_and_seed():
    model = small(torch.float32, n_batch=3, dispersion="gene-batch")
    with torch.no_grad():
        model.log_theta[0], model.log_theta[1] = 12.0, -6.0
    index = torch.tensor([0, 1]).repeat(300)
    a = model.sample(600, 100, batch_index=index, seed=5)
    b = model.sample(600, 100, batch_index=index, seed=5)
    assert torch.equal(a.to_dense(), b.to_dense()) and torch.equal(a.batch_index, index)
    assert not torch.equal(
        a.to_dense(), model.sample(600, 100, batch_index=index, seed=6).to_dense()
    )
    # A small theta leaves most cells empty, at the same mean.
    filled = (a.to_dense() > 0).float().mean(1)
    assert float(filled[index == 0].mean()) > 5 * float(filled[index == 1].mean())
    assert bool((a.crow.diff() >= 0).all()) and float(a.values.min()) >= 1
    given = CSRBatch.from_dense(rows(torch.float32)).with_batch_index(INDEX)
    like = model.sample(B, given=given, seed=0)
    assert torch.equal(like.batch_index, INDEX)
    assert like.crow.diff()[4] == 0
    lengths = LengthDistribution.of(given)
    assert model.sample(5, lengths, batch_index=2, seed=0).batch_index.tolist() == [2] * 5


def test_sample_refusals():
    model = small()
    with pytest.raises(ValueError, match="n >= 0"):
        model.sample(-1)
    with pytest.raises(ValueError, match="finite, non-negative lengths"):
        model.sample(2, -3)
    with pytest.raises(ValueError, match="generator or seed"):
        model.sample(2, seed=0, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="given to have 3 rows, but got 9"):
        model.sample(3, given=rows())
    with torch.no_grad():
        model.log_theta[3] = math.nan
    with pytest.raises(ValueError, match="finite means and dispersions"):
        model.sample(2, seed=0)
