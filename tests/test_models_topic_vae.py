"""TopicVAE against a dense twin in plain torch, its batch norm, its words, and on the e-mails."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sparsevae_ext.data import CSRBatch, load_spam
from sparsevae_ext.models import LinearNorm, TopicVAE, build
from sparsevae_ext.models.topic_vae import laplace_prior
from sparsevae_ext.ops.reparameterize_kl import reparameterize_kl
from sparsevae_ext.train import fit, split_rows, topic_summary
from sparsevae_ext.train.baselines import evaluate_baselines
from sparsevae_ext.train.metrics import evaluate, split_fold_in

N, K = 37, 5
BOTH = pytest.mark.parametrize("decoder", ["softmax", "mixture"])


def small(decoder="softmax", dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"topics": K, "hidden": 11, "dropout": 0.0} | options
    model = TopicVAE(N, decoder=decoder, **options)
    torch.nn.init.normal_(model.output.bias)
    torch.nn.init.normal_(model.posterior_norm.weight)
    torch.nn.init.normal_(model.posterior_norm.bias)
    return model.to(dtype)


def rows(n_rows=9, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.poisson(torch.full((n_rows, N), 0.6), generator=generator)
    dense[n_rows // 2] = 0
    return dense.to(dtype)


def dense_twin(model, x, target, eps):
    """nll and kl by the papers' formulas and torch's own layers, with (B, N) logits."""
    training = model.training
    h = F.softplus(F.linear(x, model.encoder.weight, model.encoder.bias))
    h = F.softplus(model.encoder2(h))
    norm = model.posterior_norm
    statistics = (norm.running_mean.clone(), norm.running_var.clone())
    moments = F.batch_norm(model.posterior(h), *statistics, norm.weight, norm.bias, training)
    mu, logvar = moments.chunk(2, 1)
    prior = torch.distributions.Normal(
        model.prior_mean.double(), (model.prior_logvar.double() / 2).exp()
    )
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, prior).sum(1)
    theta = torch.softmax(mu + eps * (logvar / 2).exp(), 1)
    if model.kind == "mixture":
        p = theta @ torch.softmax(model.output.weight.T + model.output.bias, 1)
        return -(target * p.log()).sum(1), kl
    logits = theta @ model.output.weight.T
    if training:
        logits = F.batch_norm(logits, None, None, training=True)
    else:
        mean = model.norm.running_mean @ model.output.weight.T
        cov = model.output.weight @ model.norm.running_cov @ model.output.weight.T
        logits = (logits - mean) / (cov.diagonal() + 1e-5).sqrt()
    return -(target * torch.log_softmax(logits + model.output.bias, 1)).sum(1), kl


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_loss_and_gradients_equal_the_dense_twin(decoder, training, monkeypatch, device):
    model = small(decoder, beta=0.7, alpha=0.3).train(training).to(device)
    x = rows().to(device)
    target = x.flip(0)
    eps = torch.zeros(len(x), K, dtype=torch.float64, device=device)
    if training:
        eps.normal_(generator=torch.Generator(device).manual_seed(0))
        monkeypatch.setattr(
            "sparsevae_ext.models.topic_vae.reparameterize_kl",
            lambda mu, logvar, **options: reparameterize_kl(mu, logvar, **options | {"eps": eps}),
        )
    nll, kl = (part.mean() for part in dense_twin(model, x, target, eps))
    out = model(CSRBatch.from_dense(x).prepare(), CSRBatch.from_dense(target))
    torch.testing.assert_close(out.nll, nll)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, nll + 0.7 * kl)
    parameters = list(model.parameters())
    got = torch.autograd.grad(out.loss, parameters)
    expected = torch.autograd.grad(nll + 0.7 * kl, parameters)
    # The first bias before a batch norm has a gradient of 0, made of rounding.
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    if not training:
        torch.testing.assert_close(model.row_nll(x).mean(), model(x).nll)


def test_folded_batch_norm_is_torchs_in_value_gradient_and_statistics(device):
    torch.manual_seed(0)
    norm = LinearNorm(4).to(device, torch.float64)
    twin = torch.nn.BatchNorm1d(N, affine=False).to(device, torch.float64)
    weight = torch.randn(N, 4, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(N, dtype=torch.float64, device=device, requires_grad=True)
    # The same beginning: statistics of no rows.
    with torch.no_grad():
        norm.running_cov.zero_()
        twin.running_var.zero_()
    for n_rows in (2, 3, 33):
        x = torch.rand(n_rows, 4, dtype=torch.float64, device=device, requires_grad=True)
        probe = torch.randn(n_rows, N, dtype=torch.float64, device=device)
        folded, shift = norm(x, weight, bias)
        got, expected = x @ folded.T + shift, twin(x @ weight.T) + bias
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
        inputs = (x, weight, bias)
        torch.testing.assert_close(
            torch.autograd.grad((got * probe).sum(), inputs),
            torch.autograd.grad((expected * probe).sum(), inputs),
            rtol=1e-5,
            atol=1e-6,
        )
    norm.eval(), twin.eval()
    x = torch.rand(1, 4, dtype=torch.float64, device=device)
    for given in (x, None):
        folded, shift = norm(given, weight, bias)
        torch.testing.assert_close(x @ folded.T + shift, twin(x @ weight.T) + bias)


def test_folded_batch_norm_in_half_precision_computes_in_float32():
    x, weight = torch.rand(50, 6), torch.randn(N, 6) * 1e-3
    bias = torch.zeros(N)
    expected = LinearNorm(6)(x, weight, bias)
    norm = LinearNorm(6)
    with torch.autocast("cpu", torch.bfloat16):
        got = norm(x, weight, bias)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got, expected)
    assert norm.running_cov.dtype == torch.float32
    # A dead input and equal rows have no variance: eps, and nothing that is not finite.
    folded, shift = LinearNorm(6)(torch.ones(5, 6), weight, bias)
    assert folded.isfinite().all() and shift.isfinite().all()


def test_laplace_prior_by_its_formula():
    alpha = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    mean, logvar = laplace_prior(alpha)
    for k in range(4):
        assert mean[k] == pytest.approx(math.log(alpha[k]) - alpha.log().mean().item(), abs=1e-6)
        variance = 1 / alpha[k] * (1 - 2 / 4) + (1 / alpha).sum() / 16
        assert logvar[k].exp().item() == pytest.approx(variance.item(), rel=1e-6)
    # The symmetric one at alpha 1: variance 1 - 1 / K (ProdLDA's and CTM's).
    torch.testing.assert_close(laplace_prior(torch.ones(8))[1].exp(), torch.full((8,), 7 / 8))


@BOTH
def test_noise_only_in_training_and_statistics_only_there(decoder):
    x, model = rows(), small(decoder, dropout=0.4)
    assert model.train()(x).loss != model(x).loss
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # Asking a model in training for codes or likelihoods must teach it nothing.
    theta, nll = model.encode(x), model.row_nll(x)
    model.eval()
    assert torch.equal(theta, model.encode(x)) and torch.equal(nll, model.row_nll(x))
    assert model(x).loss == model(x).loss
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    torch.testing.assert_close(theta.sum(1), torch.ones(9, dtype=torch.float64))
    assert (theta > 0).all()


@BOTH
def test_small_batches_and_empty_rows(decoder):
    model = small(decoder)
    for n_rows in (1, 2, 3):
        out = model.train()(rows(n_rows))
        out.loss.backward()
        assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    empty = torch.zeros(3, N, dtype=torch.float64)
    assert model.eval()(empty).nll == 0
    assert model.encode(empty[:0]).shape == (0, K)
    assert model.row_nll(empty[:0]).shape == (0,)
    assert math.isnan(model.perplexity(empty))


@BOTH
def test_dtypes_and_half_precision(decoder):
    x = rows(dtype=torch.float32)
    model = small(decoder, torch.float32).eval()
    expected = model(x)
    torch.testing.assert_close(small(decoder).eval()(x.double()).loss.float(), expected.loss)
    half = small(decoder, torch.bfloat16).eval()(x)
    assert half.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.train()(x)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@BOTH
def test_scores_topics_draws_and_perplexity_agree(decoder):
    model, x = small(decoder).eval(), rows()
    topics = model.topic_word_matrix()
    torch.testing.assert_close(topics.sum(1), torch.ones(K, dtype=torch.float64))
    # A row of the matrix is what a document of that topic alone is decoded to.
    one_hot = torch.eye(K, dtype=torch.float64)
    torch.testing.assert_close(torch.softmax(model.logits(one_hot), 1), topics)
    scores, items = model.recommend(x, N, exclude_seen=False, chunk_size=7)
    everything = torch.log_softmax(model.logits(model.encode(x)), 1)
    picked = everything.gather(1, items)
    torch.testing.assert_close(torch.log_softmax(scores, 1), picked)
    torch.testing.assert_close(model.row_nll(x), -(x * everything).sum(1))
    assert model.perplexity(x) == pytest.approx(
        math.exp(-(x * everything).sum().item() / x.sum().item())
    )
    drawn = model.sample(400, 50, given=x[:1].expand(400, N), seed=0)
    assert drawn.row_sums().tolist() == [50.0] * 400
    shares = drawn.to_dense().mean(0).double() / 50
    assert (shares - everything[0].exp()).abs().max() < 0.02
    prior = model.prior_codes(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(prior.sum(1), torch.ones(20_000, dtype=torch.float64))
    spread = prior.log() - prior.log().mean(1, keepdim=True)
    # A softmax keeps a normal's differences: the variance 1 - 1/K, less that of their mean.
    assert spread.var().item() == pytest.approx((1 - 1 / K) ** 2, rel=0.05)


def test_top_words_by_relevance():
    model = small("mixture")
    with torch.no_grad():
        model.output.bias.zero_()
        model.output.bias[7] = 5.0
        model.output.weight.zero_()
        for k in range(K):
            model.output.weight[10 + k, k] = 4.0
            model.output.weight[20 + k, k] = 2.0
    # By probability the word of all topics leads each; by lift it is gone.
    assert [words[0] for words in model.top_words(3, relevance=1.0)] == [7] * K
    expected = [[10 + k, 20 + k] for k in range(K)]
    assert model.top_words(2, relevance=0.0) == expected
    assert model.top_words(2) == [[10 + k, 7] for k in range(K)]
    vocab = [f"w{j}" for j in range(N)]
    assert model.top_words(1, vocab)[2] == ["w12"]
    # Ties go to the lower column.
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
    assert model.top_words(3) == [[0, 1, 2]] * K


def test_background_is_set_once_from_the_word_frequencies():
    model = TopicVAE(3, topics=2, hidden=4)
    documents = CSRBatch.from_dense(torch.tensor([[3.0, 0.0, 1.0], [0.5, 0.0, 2.0]]))
    model.start_from(documents)
    expected = torch.tensor([4.0, 0.5, 3.5]).log()
    torch.testing.assert_close(model.output.bias.detach(), expected - expected.mean())
    kept = model.output.bias.clone()
    model.start_from(CSRBatch.from_dense(torch.ones(1, 3)))
    assert torch.equal(model.output.bias, kept)
    with pytest.raises(RuntimeError, match="expected 3 columns, but got 4"):
        model.start_from(CSRBatch.from_dense(torch.ones(1, 4)))


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "topics >= 2", {"topics": 1}),
        (TypeError, "topics to be an int", {"topics": 2.0}),
        (ValueError, "hidden >= 1", {"hidden": 0}),
        (ValueError, "softmax or mixture", {"decoder": "lda"}),
        (ValueError, "alpha to be positive", {"alpha": 0.0}),
        (ValueError, "alpha to be positive", {"alpha": math.inf}),
        (ValueError, f"one number or {K}", {"alpha": [1.0] * (K + 1)}),
        (ValueError, "dropout in", {"dropout": 1.5}),
        (ValueError, "beta >= 0", {"beta": -1.0}),
    ],
)
def test_wrong_options(error, text, options):
    with pytest.raises(error, match=text):
        small(**options)


def test_wrong_arguments():
    model = small()
    for text, arguments in (
        ("k between 1 and 37", {"k": N + 1}),
        ("k between 1 and 37", {"k": 0}),
        ("a vocab of 37 words", {"vocab": ["a"]}),
        (r"relevance in \[0, 1\]", {"relevance": 1.1}),
    ):
        with pytest.raises(ValueError, match=text):
            model.top_words(**arguments)
    with pytest.raises(ValueError, match="non-negative"):
        model(-torch.ones(2, N))
    with pytest.raises(RuntimeError, match="Target size"):
        model(torch.ones(2, N), torch.ones(3, N))


@BOTH
def test_config_and_state_build_the_same_model(decoder):
    model = small(decoder, torch.float32, alpha=[0.1, 0.2, 0.3, 0.4, 0.5])
    other = build(model.config())
    other.load_state_dict(model.state_dict())
    x = rows(dtype=torch.float32)
    assert other.eval()(x).loss == model.eval()(x).loss
    torch.testing.assert_close(other.prior_mean, model.prior_mean)


def test_on_the_emails_it_beats_the_unigram_model():
    """Both decoders on a part of the mails, as long as a test may take."""
    torch.set_num_threads(1)
    mails = load_spam()
    parts = split_rows(len(mails), 0.0, 0.1, seed=0)
    train, test = mails.subset(parts.train[:1500]), mails.subset(parts.test[:300])
    fold_in, held_out = split_fold_in(test, seed=0)
    unigram = evaluate_baselines(train, fold_in, held_out, ks=(100,))["unigram"]["perplexity"]
    for decoder, epochs, lr in (("softmax", 4, 0.01), ("mixture", 7, 0.02)):
        torch.manual_seed(0)
        model = TopicVAE(mails.shape[1], topics=10, hidden=50, decoder=decoder)
        history = fit(model, train, epochs=epochs, batch_size=100, lr=lr, progress=False)
        _, loss = history.column("nll")
        assert loss[-1] < loss[0] - 25
        perplexity = evaluate(model, fold_in, held_out, ks=(100,))["perplexity"]
        assert perplexity < 0.96 * unigram
        summary = topic_summary(model, mails)
        # Words of a topic are together more often than by chance, and topics are not all alike.
        assert summary["npmi"] > 0.08
        assert summary["topic_diversity"] > 0.25
        assert len(summary["topics"]) == 10 and len(summary["topics"][0]["words"]) == 10
