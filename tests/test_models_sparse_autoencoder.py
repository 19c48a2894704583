"""SparseAutoencoder against a dense twin in plain torch, its options, and on the e-mail data."""

from __future__ import annotations

import copy

import pytest
import scipy.sparse as sp
import torch
from torch.nn import functional as F
from train_toys import spam

import sparsevae_ext as sv
from sparsevae_ext.data import CSRBatch, CSRDataset
from sparsevae_ext.models import SparseAutoencoder, build, parse_sparsity
from sparsevae_ext.train import CheckpointError, fit
from sparsevae_ext.train.runs import load_run

N, H = 37, 23
LOSSES = ("bernoulli", "gaussian", "multinomial")
SPARSITIES = (None, "l1:0.3", "l2:0.2", "kl:0.7:0.1", "topk:3", "batch_topk:3", "jumprelu:0.1")


def rows(n_rows=9, binary=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    dense = torch.poisson(torch.full((n_rows, N), 0.3), generator=generator)
    dense[n_rows // 2] = 0
    return (dense.clamp(max=1) if binary else dense).to(dtype)


def small(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return SparseAutoencoder(N, H, **options).to(dtype)


def dense_code(model, x):
    """Code and mean penalty by the formulas of the papers."""
    pre = x @ model.encoder.weight.t() + model.encoder.bias
    kind, *numbers = (model.config()["sparsity"] or "none").split(":")
    weight = float(numbers[0]) if numbers else 0.0
    if kind == "none":
        return torch.relu(pre), 0.0
    if kind in ("l1", "l2"):
        code = torch.relu(pre)
        cost = code.abs() if kind == "l1" else code.square()
        return code, weight * cost.sum(1).mean()
    if kind == "kl":
        code, rho = torch.sigmoid(pre), float(numbers[1])
        m = code.mean(0)
        kl = rho * (rho / m).log() + (1 - rho) * ((1 - rho) / (1 - m)).log()
        return code, weight * kl.sum()
    if kind == "topk":
        kept = torch.zeros_like(pre).scatter(1, pre.topk(int(numbers[0])).indices, 1.0)
        return torch.relu(pre) * kept, 0.0
    if kind == "batch_topk":
        code = torch.relu(pre)
        border = code.flatten().topk(int(numbers[0]) * len(x)).values[-1]
        return code * (code >= border), 0.0
    raise AssertionError(kind)


def dense_loss(model, logits, x):
    keras = model.reduction == "keras"
    if model.likelihood == "bernoulli":
        cost = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return cost.mean() if keras else cost.sum(1).mean()
    if model.likelihood == "multinomial":
        return -(x * torch.log_softmax(logits, 1)).sum(1).mean()
    if keras:
        return (x - logits).square().mean()
    return -torch.distributions.Normal(logits, 1.0).log_prob(x).sum(1).mean()


@pytest.mark.parametrize("reduction", ["elbo", "keras"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sparsity", SPARSITIES[:-1])
def test_loss_and_gradients_equal_the_dense_twin(sparsity, loss, reduction, device):
    model = small(sparsity=sparsity, loss=loss, reduction=reduction).train().to(device)
    x = rows(binary=loss == "bernoulli").to(device)
    out = model(CSRBatch.from_dense(x).prepare())
    code, penalty = dense_code(model, x)
    nll = dense_loss(model, code @ model.output.weight.t() + model.output.bias, x)
    torch.testing.assert_close(out.nll, nll)
    torch.testing.assert_close(out.loss, nll + penalty)
    torch.testing.assert_close(out.penalty.item(), float(penalty))
    assert out.kl == 0
    got = torch.autograd.grad(out.loss, list(model.parameters()))
    wanted = torch.autograd.grad(nll + penalty, list(model.parameters()))
    torch.testing.assert_close(got, wanted)


def test_jumprelu_counts_active_units_and_moves_its_thresholds():
    model = small(sparsity="jumprelu:0.5")
    model.sparsity.bandwidth = 1.0
    x = rows()
    out = model(x)
    pre = x @ model.encoder.weight.t() + model.encoder.bias
    active = (pre > model.sparsity.threshold).sum(1).double()
    torch.testing.assert_close(out.penalty, 0.5 * active.mean())
    out.loss.backward()
    assert model.sparsity.log_threshold.grad.abs().sum() > 0


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_all_kinds_of_input_and_targets_give_the_same(sparsity):
    model = small(sparsity=sparsity).eval()
    x = rows()
    expected = model(CSRBatch.from_dense(x))
    for given in (x, x.to_sparse_csr(), CSRBatch.from_dense(x).prepare()):
        torch.testing.assert_close(model(given), expected)
        torch.testing.assert_close(model(given, x), expected)
        assert torch.equal(model.encode(given), model.encode(x))


def test_a_topk_code_reaches_the_decoder_as_sparse_rows():
    model = small(sparsity="topk:3")
    seen = []
    model.output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(rows())
    assert isinstance(model.output, sv.nn.CSRLinear)
    assert isinstance(seen[0], CSRBatch)
    assert seen[0].shape == (9, H)
    assert seen[0].nnz == 27


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_encode_is_that_of_evaluation_and_leaves_no_trace(sparsity):
    model = small(sparsity=sparsity).train()
    model(rows())
    before = copy.deepcopy(model.state_dict())
    code = model.encode(rows())
    assert model.training
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(code, model.eval().encode(rows()))
    assert code.shape == (9, H)
    if sparsity == "topk:3":
        assert ((code != 0).sum(1) <= 3).all()


def test_encode_leaves_a_frozen_sparsity_frozen():
    model = small(sparsity="batch_topk:3").train()
    model.sparsity.eval()
    model.encode(rows())
    assert model.training and not model.sparsity.training


def test_firing_is_counted_in_training_only():
    for sparsity in (None, "topk:3"):
        model = small(sparsity=sparsity).eval()
        model(rows())
        assert model.firing.rows == 0
        model.train()(rows())
        assert model.firing.rows == 9
        code, _ = dense_code(model, rows())
        assert torch.equal(model.firing.fired, (code > 0).sum(0))


@pytest.mark.parametrize("sparsity", ["topk:3", "batch_topk:3"])
@pytest.mark.parametrize("reduction", ["elbo", "keras"])
def test_auxk_is_the_dense_formula(sparsity, reduction):
    options = {"loss": "gaussian", "sparsity": sparsity, "reduction": reduction}
    model = small(auxk=0.25, k_aux=4, dead_after=20, **options)
    # Three rows wake nine units at most: of the sixteen that were silent, seven stay dead.
    x = rows(n_rows=3, binary=False)
    model.firing.rows += 1
    model.firing.silent += 100
    model.firing.silent[: H // 3] = -100  # alive, whatever this batch does
    out = model(x)
    dead = model.firing.silent >= 20
    assert 4 < dead.sum() < H
    pre = x @ model.encoder.weight.t() + model.encoder.bias
    candidates = torch.where(dead, pre, -torch.inf)
    kept = torch.zeros_like(pre).scatter(1, candidates.topk(4).indices, 1.0)
    code, _ = dense_code(model, x)
    prediction = code @ model.output.weight.t() + model.output.bias
    error = (x - prediction).detach()
    guess = (torch.relu(pre) * kept) @ model.output.weight.t()
    cost = (error - guess).square()
    aux = 0.25 * (0.5 * cost.sum(1).mean() if reduction == "elbo" else cost.mean())
    torch.testing.assert_close(out.penalty, aux)
    nll = dense_loss(model, prediction, x)
    got = torch.autograd.grad(out.loss, list(model.parameters()))
    torch.testing.assert_close(got, torch.autograd.grad(nll + aux, list(model.parameters())))


def test_auxk_costs_nothing_without_dead_units_and_in_evaluation():
    model = small(loss="gaussian", sparsity="topk:3", auxk=1 / 32)
    out = model(rows(binary=False))
    assert out.penalty == 0
    assert torch.equal(out.loss, out.nll)
    model.firing.silent.fill_(10**6)
    assert model(rows(binary=False)).penalty > 0
    assert model.eval()(rows(binary=False)).penalty == 0


def test_auxk_revives_dead_units():
    def dead_units(auxk):
        model = small(torch.float32, loss="gaussian", sparsity="topk:2", auxk=auxk, dead_after=50)
        with torch.no_grad():
            model.encoder.bias[5:] = -0.05  # never among the two largest at the start
            model.encoder.weight[5:] *= 0.1
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x = rows(40, binary=False, dtype=torch.float32)
        for _ in range(150):
            optimizer.zero_grad()
            model(x).loss.backward()
            optimizer.step()
        return int(model.firing.dead(50).sum())

    assert dead_units(1 / 4) < dead_units(0.0) - 3


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_config_and_state_round_trip(sparsity):
    model = small(sparsity=sparsity, loss="bce", reduction="keras").train()
    model(rows())
    again = build(model.config()).double()
    assert again.config() == model.config()
    assert model.config()["loss"] == "bernoulli"
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(rows()).loss, model.eval()(rows()).loss)
    assert torch.equal(again.firing.fired, model.firing.fired)
    assert torch.equal(copy.deepcopy(model)(rows()).loss, model(rows()).loss)


def test_a_layer_in_place_of_a_text():
    layer = sv.nn.L1Activity(0.3)
    model = small(sparsity=layer)
    assert model.sparsity is layer
    assert torch.equal(model(rows()).loss, small(sparsity="l1:0.3")(rows()).loss)
    layer.weight = 0.0
    assert model(rows()).penalty == 0
    with pytest.raises(ValueError, match=r"config\(\): expected sparsity to be a text"):
        model.config()


def test_a_run_of_a_model_with_a_layer_goes_on_but_no_model_is_made_of_it(tmp_path):
    data = CSRDataset(sp.csr_matrix(rows(dtype=torch.float32).numpy()))
    options = dict(epochs=3, batch_size=4, out=tmp_path, progress=False)
    whole, parts = (small(torch.float32, sparsity=sv.nn.L1Activity(0.3)) for _ in range(2))
    fit(whole, data, **{**options, "out": tmp_path / "whole"})
    fit(parts, data, stop_after=1, **options)
    parts = small(torch.float32, sparsity=sv.nn.L1Activity(0.3))
    fit(parts, data, resume=True, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match=r"last\.pt does not say how its model was made"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "avg is not a valid value for reduction", {"reduction": "avg"}),
        (ValueError, "loss to be one of bernoulli, gaussian, multinomial", {"loss": "poisson"}),
        (ValueError, "activation", {"activation": "gelu"}),
        (ValueError, "sparsity to be one of l1:weight, l2:weight, kl:w", {"sparsity": "l3:1"}),
        (ValueError, "but got 'l1'", {"sparsity": "l1"}),
        (ValueError, "but got 'kl:0.1'", {"sparsity": "kl:0.1"}),
        (ValueError, "weight in sparsity 'l1:x' to be a number", {"sparsity": "l1:x"}),
        (ValueError, "k in sparsity 'topk:2.5' to be a whole number", {"sparsity": "topk:2.5"}),
        (ValueError, "at most 23, the width of the code", {"sparsity": "topk:24"}),
        (ValueError, "k >= 1", {"sparsity": "topk:0"}),
        (ValueError, "weight", {"sparsity": "l2:-1"}),
        (ValueError, "rho", {"sparsity": "kl:1:1.5"}),
        (ValueError, "'relu'", {"sparsity": "batch_topk:2", "activation": "tanh"}),
        (TypeError, "a str or a layer .* but got ReLU", {"sparsity": torch.nn.ReLU()}),
        (TypeError, "but got float", {"sparsity": 0.1}),
        (ValueError, "auxk with loss 'gaussian'", {"sparsity": "topk:2", "auxk": 0.1}),
        (ValueError, "auxk with a sparsity", {"loss": "mse", "auxk": 0.1}),
        (ValueError, "auxk >= 0", {"auxk": -1.0}),
        (ValueError, "k_aux <= 23", {"loss": "mse", "sparsity": "topk:2", "auxk": 1, "k_aux": 24}),
        (ValueError, "dead_after >= 1", {"dead_after": 0}),
    ],
)
def test_bad_options(error, text, options):
    with pytest.raises(error, match=text):
        SparseAutoencoder(N, H, **options)


def test_bad_sizes_and_input():
    with pytest.raises(TypeError, match="hidden to be an int"):
        SparseAutoencoder(N, 2.0)
    with pytest.raises(ValueError, match="n_features >= 1"):
        SparseAutoencoder(0, 2)
    with pytest.raises(RuntimeError, match="a batch with 37 columns, but got 5"):
        small()(torch.eye(5).double())
    with pytest.raises(TypeError, match="expected a CSRBatch"):
        small()([[0.0] * N])
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        small()(rows() * 2)


def test_parse_sparsity_makes_the_layers():
    kinds = {
        "l1:1e-4": sv.nn.L1Activity,
        "l2:1e-4": sv.nn.L2Activity,
        "kl:0.1:0.05": sv.nn.KLSparsity,
        "topk:5": sv.nn.TopK,
        "batch_topk:5": sv.nn.BatchTopK,
        "jumprelu:1e-3": sv.nn.JumpReLU,
    }
    for text, kind in kinds.items():
        layer = parse_sparsity(text, 10)
        assert type(layer) is kind
        assert getattr(layer, "weight", None) in (None, float(text.split(":")[1]))
    assert parse_sparsity("l1:1", 10, "tanh").activation == "tanh"


def test_row_nll_and_reconstruction():
    for loss in LOSSES:
        model = small(loss=loss).eval()
        x = rows(binary=loss == "bernoulli")
        nll = model.row_nll(x)
        assert nll.dtype == torch.float64
        torch.testing.assert_close(nll.mean(), model(x).nll)
        guess = model.reconstruct(x)
        assert guess.shape == x.shape
        if loss == "multinomial":
            torch.testing.assert_close(guess.sum(1), x.sum(1))
        if loss == "bernoulli":
            torch.testing.assert_close(F.binary_cross_entropy(guess, x) * N, nll.mean())


def test_sample_needs_rows_and_keeps_their_sparsity():
    x = rows(binary=False)
    with pytest.raises(ValueError, match="no prior to draw from"):
        small().sample(3)
    drawn = small(loss="gaussian").sample(9, given=x)
    assert drawn.crow.diff().tolist() == (x != 0).sum(1).tolist()
    assert small(loss="gaussian").sample(9, given=x, density=0.1).nnz == round(0.1 * 9 * N)
    assert small(loss="multinomial").sample(9, given=x).row_sums().tolist() == x.sum(1).tolist()
    ones = small().sample(9, given=x.clamp(max=1), seed=1)
    assert (ones.values == 1).all()


@pytest.mark.parametrize("sparsity", [None, "l1:0.1", "topk:3"])
def test_compile_fullgraph_equals_eager(sparsity):
    torch._dynamo.reset()
    model = small(torch.float32, sparsity=sparsity).eval()
    batch = CSRBatch.from_dense(rows(dtype=torch.float32)).prepare()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for call in (model, compiled):
        loss = call(batch).loss
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [None, "l1:0.1", "topk:3"])
def test_16_bit_models(sparsity, dtype):
    model = small(torch.float32, sparsity=sparsity)
    expected = model(rows(dtype=torch.float32)).loss
    out = copy.deepcopy(model).to(dtype)(rows(dtype=torch.float32))
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected, rtol=2e-2, atol=0)


def train(x, epochs=12, **options):
    torch.set_num_threads(1)  # too small to share; the fixture puts it back
    torch.manual_seed(0)
    model = SparseAutoencoder(x.shape[1], 64, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batches = [CSRBatch.from_dense(part) for part in x.split(100)]
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in batches:
            optimizer.zero_grad()
            loss = model(batch).loss
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
    return losses, (model.eval().encode(x) > 0).sum(1).double().mean().item()


def test_it_learns_e_mails_and_a_larger_penalty_makes_the_code_sparser():
    x = spam()
    l0 = []
    for weight in (0.0, 1.0, 3.0):
        losses, active = train(x, sparsity=f"l1:{weight}")
        assert losses[-1] < 0.9 * losses[0]
        l0.append(active)
    assert l0[0] > 1.15 * l0[1]
    assert l0[1] > 1.5 * l0[2]


def test_topk_learns_e_mails_too():
    options = {"sparsity": "topk:8", "loss": "mse", "auxk": 1 / 32, "k_aux": 16, "dead_after": 600}
    losses, active = train(spam(), epochs=6, **options)
    assert losses[-1] < losses[0]
    assert active <= 8
