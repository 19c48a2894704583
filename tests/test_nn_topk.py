"""The layers over topk, batch_topk and jumprelu, the firing counter and AuxK."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

import sparsevae_ext as sv
from sparsevae_ext import functional, nn

# ---- TopK --------------------------------------------------------------------------------------


def test_topk_keeps_k_and_applies_relu(device):
    x = torch.tensor([[3.0, -1.0, 2.0, 2.0], [-4.0, -3.0, -2.0, 5.0]], device=device)
    expected = [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 5.0]]
    assert nn.TopK(2)(x).tolist() == expected
    assert nn.TopK(2).sparse(x).to_dense().tolist() == expected
    identity = nn.TopK(2, activation="identity")
    assert identity(x).tolist() == [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, -2.0, 5.0]]


def test_topk_sparse_is_a_well_formed_batch(device):
    x = torch.randn(6, 40, device=device)
    code = nn.TopK(7).sparse(x)
    assert code.shape == (6, 40) and code.nnz == 42
    assert code.crow.tolist() == list(range(0, 49, 7)) and code.col.dtype == code.crow.dtype
    columns = code.col.view(6, 7)
    assert (columns.diff(dim=1) > 0).all()
    assert torch.equal(code.to_dense(), nn.TopK(7)(x))
    empty = nn.TopK(7).sparse(torch.zeros(0, 40, device=device))
    assert empty.shape == (0, 40) and empty.nnz == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_topk_code_through_a_sparse_decoder(device, compiled):
    """A decoder over the sparse code gives the dense product, and all gradients arrive."""
    layer = nn.TopK(5)
    x = torch.randn(8, 30, dtype=torch.float64, device=device)
    weight = torch.randn(11, 30, dtype=torch.float64, device=device)
    bias = torch.randn(11, dtype=torch.float64, device=device)

    def sparse(x, weight, bias):
        return functional.csr_linear(layer.sparse(x), weight, bias)

    def dense(x, weight, bias):
        kept = torch.zeros_like(x).scatter(1, torch.topk(x, 5).indices, 1.0)
        return torch.nn.functional.linear(torch.relu(x * kept), weight, bias)

    results = []
    for f in (torch.compile(sparse, fullgraph=True) if compiled else sparse, dense):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = f(*leaves)
        y.sin().sum().backward()
        results.append((y.detach(), *(leaf.grad for leaf in leaves)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    assert (results[0][1] != 0).any(1).all()


def test_topk_gradient_of_the_dense_form_is_that_of_the_sparse_form():
    x = torch.randn(5, 20)
    target = torch.randn(5, 20)
    grads = []
    for form in (nn.TopK(4).forward, lambda x: nn.TopK(4).sparse(x).to_dense()):
        leaf = x.clone().requires_grad_()
        (form(leaf) - target).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    assert ((grads[0] != 0).sum(1) <= 4).all() and grads[0].any()


def test_topk_code_and_penalty():
    x = torch.randn(3, 9)
    code, penalty = nn.TopK(2).code_and_penalty(x)
    assert isinstance(code, sv.CSRBatch) and penalty.shape == () and penalty.item() == 0


# ---- BatchTopK ---------------------------------------------------------------------------------


def test_batch_topk_training_and_running_threshold(device):
    layer = nn.BatchTopK(3, momentum=0.25).to(device)
    smallest = []
    for _ in range(8):
        x = torch.randn(10, 50, device=device)
        code = layer(x)
        assert (code != 0).sum() == 30
        assert torch.equal(code, functional.batch_topk(x.relu(), 3))
        smallest.append(code[code != 0].min().item())
    mean = 0.0
    for i, value in enumerate(smallest):
        mean += max(0.25, 1 / (i + 1)) * (value - mean)
    assert layer.threshold.item() == pytest.approx(mean, rel=1e-5)
    assert layer.batches.item() == 8


def test_batch_topk_evaluation_uses_the_threshold_and_changes_nothing():
    layer = nn.BatchTopK(2)
    layer(torch.randn(10, 50))
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 50, requires_grad=True)
    code = layer(x)
    kept = x > layer.threshold
    assert kept.any() and torch.equal(code, torch.where(kept, x, 0.0))
    assert torch.equal(layer(x[:1]), code[:1])  # independent of the other rows
    code.sum().backward()
    assert torch.equal(x.grad, kept.float())
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", ["empty", "nan"])
def test_batch_topk_threshold_survives_an_unusable_batch(kind):
    layer = nn.BatchTopK(2)
    layer(torch.rand(10, 50))
    before = layer.threshold.item()
    layer(torch.zeros(0, 50) if kind == "empty" else torch.full((3, 50), math.nan))
    assert layer.threshold.item() == before and layer.batches.item() == 1


def test_batch_topk_state_and_penalty():
    layer = nn.BatchTopK(2)
    code, penalty = layer.code_and_penalty(torch.randn(4, 9))
    assert code.shape == (4, 9) and penalty.shape == () and penalty.item() == 0
    other = nn.BatchTopK(2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.threshold, layer.threshold) and other.batches.item() == 1


# ---- JumpReLU ----------------------------------------------------------------------------------


def test_jumprelu_layer_and_its_penalty(device):
    layer = nn.JumpReLU(6, weight=0.3, threshold=0.5, bandwidth=2.0).to(device)
    x = torch.randn(20, 6, device=device)
    code, penalty = layer.code_and_penalty(x)
    assert torch.equal(code, torch.where(x > 0.5, x, 0.0)) and torch.equal(layer(x), code)
    torch.testing.assert_close(penalty, 0.3 * (x > 0.5).sum(1).float())
    penalty.sum().backward()
    # count falls as t rises; through t = exp(log t) the derivative gets a factor t.
    near = ((x - 0.5).abs() < 1.0).sum(0)
    torch.testing.assert_close(layer.log_threshold.grad, -0.3 * near / 2.0 * 0.5)


def test_jumprelu_layer_learns_to_be_sparser():
    layer = nn.JumpReLU(4, weight=1.0, threshold=0.1, bandwidth=0.5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    x = torch.randn(200, 4)
    before = (layer(x) != 0).sum()
    for _ in range(50):
        optimizer.zero_grad()
        layer.code_and_penalty(x)[1].mean().backward()
        optimizer.step()
    assert (layer(x) != 0).sum() < before and (layer.threshold > 0.1).all()


def test_jumprelu_without_weight_has_no_penalty():
    code, penalty = nn.JumpReLU(3).code_and_penalty(torch.randn(2, 3))
    assert penalty.shape == () and penalty.item() == 0 and code.shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_jumprelu_under_autocast(dtype):
    layer = nn.JumpReLU(5, weight=1.0, threshold=0.3, bandwidth=1.0)
    encoder = torch.nn.Linear(7, 5)
    with torch.autocast("cpu", dtype=dtype):
        code, penalty = layer.code_and_penalty(encoder(torch.randn(6, 7)))
    assert code.dtype == dtype and penalty.dtype == torch.float32
    (code.float().sum() + penalty.sum()).backward()
    assert layer.log_threshold.grad.dtype == torch.float32 and layer.log_threshold.grad.any()


# ---- FiringCounter and AuxTopK -------------------------------------------------------------------


def counted_by_hand(codes, n):
    silent, fired, rows = [0] * n, [0] * n, 0
    for code in codes:
        for row in code.tolist():
            rows += 1
            for j, value in enumerate(row):
                silent[j] = 0 if value > 0 else silent[j] + 1
                fired[j] += value > 0
    return silent, fired, rows


@pytest.mark.parametrize("sparse", [False, True])
def test_counter_against_a_loop(device, sparse):
    n = 30
    counter = nn.FiringCounter(n).to(device)
    codes = [nn.TopK(2)(torch.randn(b, n)) for b in (1, 7, 0, 12)]
    for code in codes:
        on_device = code.to(device)
        counter.update(sv.CSRBatch.from_dense(on_device) if sparse else on_device)
    silent, fired, rows = counted_by_hand(codes, n)
    assert counter.silent.tolist() == silent and counter.fired.tolist() == fired
    assert counter.rows.item() == rows == 20
    assert counter.l0().item() == pytest.approx(sum(fired) / rows)
    for after in (1, 5, 19):
        assert counter.dead(after).tolist() == [s >= after for s in silent]


def test_counter_ignores_stored_zeros_and_negatives():
    counter = nn.FiringCounter(4)
    x = torch.tensor([[-1.0, -2.0, 3.0, -5.0]])
    counter.update(nn.TopK(2).sparse(x))  # stores the zero that relu made of -1
    counter.update(torch.tensor([[-1.0, 0.0, 1.0, math.nan]]))
    assert counter.fired.tolist() == [0, 0, 2, 0] and counter.silent.tolist() == [2, 2, 0, 2]


def test_counter_in_a_sequential_saved_and_reset():
    counter = nn.FiringCounter(9)
    model = torch.nn.Sequential(torch.nn.Linear(4, 9), nn.TopK(3), counter)
    x = torch.randn(5, 4, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.any() and counter.rows.item() == 5
    model.eval()(x)
    assert counter.rows.item() == 5  # evaluation does not count
    other = nn.FiringCounter(9)
    other.load_state_dict(counter.state_dict())
    assert torch.equal(other.silent, counter.silent) and other.l0() == counter.l0()
    other.reset()
    assert not other.silent.any() and math.isnan(other.l0().item())


def test_aux_topk_takes_the_largest_dead_units(device):
    x = torch.randn(6, 25, device=device)
    dead = torch.zeros(25, dtype=torch.bool, device=device)
    dead[::2] = True
    code = nn.AuxTopK(4)(x, dead)
    masked = x.masked_fill(~dead, -math.inf)
    expected = torch.zeros_like(x)
    kept = torch.topk(masked, 4)
    expected.scatter_(1, kept.indices, kept.values.relu())
    assert code.nnz == 24 and torch.equal(code.to_dense(), expected)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_aux_topk_with_too_few_dead_units(activation):
    x = torch.randn(6, 10, requires_grad=True)
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[2, 7]] = True
    code = nn.AuxTopK(5, activation)(x, dead)
    wanted = torch.where(dead, x.relu() if activation == "relu" else x, 0.0).detach()
    assert code.nnz == 30 and torch.equal(code.to_dense(), wanted)
    (code.values * torch.randn(30)).sum().backward()
    assert x.grad.isfinite().all() and not x.grad[:, ~dead].any() and x.grad[:, dead].any()


# ---- all of them -------------------------------------------------------------------------------

LAYERS = {
    "TopK": lambda: nn.TopK(3),
    "BatchTopK": lambda: nn.BatchTopK(3),
    "JumpReLU": lambda: nn.JumpReLU(12, weight=0.1),
    "FiringCounter": lambda: nn.FiringCounter(12),
    "AuxTopK": lambda: nn.AuxTopK(3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_copied_and_pickled(name):
    layer = LAYERS[name]()
    x = torch.randn(4, 12)
    arguments = (x, torch.ones(12, dtype=torch.bool)) if name == "AuxTopK" else (x,)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    expected = layer(*arguments)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        got = other.eval()(*arguments) if name != "BatchTopK" else other.train()(*arguments)
        for t in (got, expected):
            assert t.shape == (4, 12)
        dense = [t if isinstance(t, torch.Tensor) else t.to_dense() for t in (got, expected)]
        assert torch.equal(*dense)
    assert name in repr(layer) and ("3" in repr(layer) or "12" in repr(layer))


@pytest.mark.parametrize("name", ["TopK", "BatchTopK", "JumpReLU"])
def test_layers_compile_without_a_break(name):
    layer = LAYERS[name]()
    x = torch.randn(5, 12)
    expected, _ = copy.deepcopy(layer).code_and_penalty(x)
    compiled = torch.compile(layer.code_and_penalty, fullgraph=True)
    code, _ = compiled(x)
    dense = [t if isinstance(t, torch.Tensor) else t.to_dense() for t in (code, expected)]
    torch.testing.assert_close(*dense)


BAD = [
    (lambda: nn.TopK(2.0), TypeError, "TopK.*expected k to be an int, but got float"),
    (lambda: nn.TopK(True), TypeError, "expected k to be an int, but got bool"),
    (lambda: nn.TopK(0), ValueError, "expected k >= 1, but got 0"),
    (lambda: nn.TopK(2, activation="tanh"), ValueError, "'relu' or 'identity', but got 'tanh'"),
    (lambda: nn.TopK(4)(torch.zeros(2, 3)), ValueError, r"1 <= k <= 3 .*, but got 4"),
    (lambda: nn.TopK(2)(torch.zeros(3)), RuntimeError, r"shape \(B, H\), but got \(3,\)"),
    (lambda: nn.BatchTopK("3"), TypeError, "expected k to be an int, but got str"),
    (lambda: nn.BatchTopK(-1), ValueError, "expected k >= 1, but got -1"),
    (lambda: nn.BatchTopK(3, momentum=0), ValueError, "0 < momentum <= 1, but got 0"),
    (lambda: nn.BatchTopK(4)(torch.zeros(2, 3)), ValueError, "but got 4"),
    (lambda: nn.JumpReLU(2.5), TypeError, "expected n to be an int, but got float"),
    (lambda: nn.JumpReLU(0), ValueError, "expected n >= 1"),
    (lambda: nn.JumpReLU(3, threshold=0.0), ValueError, "finite threshold, but got 0.0"),
    (lambda: nn.JumpReLU(3, bandwidth=-1.0), ValueError, "finite bandwidth, but got -1.0"),
    (lambda: nn.JumpReLU(3, weight=math.inf), ValueError, "finite weight, but got inf"),
    (lambda: nn.JumpReLU(3)(torch.zeros(2, 4)), RuntimeError, r"threshold of shape \(4,\)"),
    (lambda: nn.FiringCounter("3"), TypeError, "expected n to be an int, but got str"),
    (lambda: nn.FiringCounter(3).update([1]), TypeError, "code to be a torch.Tensor"),
    (lambda: nn.FiringCounter(3).update(torch.zeros(2, 4)), RuntimeError, r"\(B, 3\), but got"),
    (lambda: nn.FiringCounter(3).dead(0), ValueError, "after_rows >= 1, but got 0"),
    (lambda: nn.AuxTopK(None), TypeError, "expected k to be an int, but got NoneType"),
    (lambda: nn.AuxTopK(2)(torch.zeros(2, 4), torch.ones(4)), RuntimeError, "dtype bool, but got"),
    (lambda: nn.AuxTopK(5)(torch.zeros(2, 4), torch.ones(4).bool()), ValueError, "AuxTopK.*got 5"),
]


@pytest.mark.parametrize("call, error, text", BAD)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
