"""RowAdam against dense torch.optim.AdamW, Adam and SparseAdam."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from row_adam_twins import OUT, N, assert_equal_models, backward, some_rows, train, twins
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsevae_ext as sv
from sparsevae_ext import _load
from sparsevae_ext.optim import RowAdam, clip_grad_norm_

# ---- exact mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight_decay,schedule,steps", [(0.0, False, 80), (0.05, False, 80), (0.05, True, 500)]
)
def test_exact_mode_is_adamw(device, weight_decay, schedule, steps):
    model, twin = twins(device=device)
    ours = RowAdam(model, lr=1e-2, weight_decay=weight_decay)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=weight_decay)
    start = model[0].weight.detach().clone()
    # Two of three batches are short, so that gaps of many lengths occur; columns below 10 never do.
    batches = [
        some_rows(touched=4 if i % 3 else 24, device=device, low=10 if i else 9)
        for i in range(steps)
    ]
    for m, o in ((model, ours), (twin, theirs)):
        s = torch.optim.lr_scheduler.CosineAnnealingLR(o, 400) if schedule else None
        train(m, o, batches, s)
    assert not model[0].weight.is_sparse and model[0].weight.grad.is_sparse
    ours.sync()
    assert_equal_models(model, twin)
    assert float((model[0].weight.detach() - start).abs().max()) > 0.1
    if weight_decay == 0:
        assert torch.equal(model[0].weight[:, :9], start[:, :9])
    state, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
    for i, entries in expected.items():
        for name, value in entries.items():
            torch.testing.assert_close(state[i][name].cpu(), value.cpu(), rtol=1e-4, atol=1e-7)


def test_exact_mode_in_float64_is_adamw_to_rounding():
    model, twin = twins(torch.float64)
    ours = RowAdam(model, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    batches = [some_rows(touched=4 if i % 5 else 24, dtype=torch.float64) for i in range(60)]
    train(model, ours, batches)
    train(twin, theirs, batches)
    ours.sync()
    assert_equal_models(model, twin, 1e-9)


def test_exact_mode_reads_current_rows():
    """Training, a forward without gradients, and state_dict see what a dense optimizer would have."""
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    for i in range(12):
        x, other = some_rows(), some_rows()
        torch.testing.assert_close(model(x), twin(x))
        train(model, ours, [x])
        train(twin, theirs, [x])
        with torch.no_grad():
            torch.testing.assert_close(model(other), twin(other))
        if i % 4 == 1:
            torch.testing.assert_close(model.state_dict()["0.weight"], twin[0].weight.detach())
        if i % 4 == 2:
            torch.testing.assert_close(copy.deepcopy(model)[0].weight, twin[0].weight)
        if i % 4 == 3:
            dense = other.to_dense()
            with torch.inference_mode():
                torch.testing.assert_close(model(dense), twin(dense))
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again[0].weight, twin[0].weight)
    assert again[0].row_source is None


def test_hyperparameters_may_change():
    model, twin = twins(torch.float64)
    ours = RowAdam(model, lr=1e-2, weight_decay=0.01)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.01)
    changes = [dict(betas=(0.8, 0.99)), dict(eps=1e-4), dict(weight_decay=0.3), dict(lr=0.1)]
    for change in [{}, *changes]:
        for o in (ours, theirs):
            o.param_groups[0].update(change)
        batches = [some_rows(dtype=torch.float64) for _ in range(8)]
        train(model, ours, batches)
        train(twin, theirs, batches)
    ours.sync()
    assert_equal_models(model, twin, 1e-6)


def test_a_decay_of_everything_is_a_dense_step():
    model, twin = twins()
    ours = RowAdam(model, lr=0.5, weight_decay=2.5)  # 1 - lr * weight_decay is negative
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.5, weight_decay=2.5)
    batches = [some_rows() for _ in range(4)]
    train(model, ours, batches)
    train(twin, theirs, batches)
    assert_equal_models(model, twin)


@pytest.mark.parametrize(
    "betas,eps",
    [
        ((0.9, 0.999), 1e-3),
        ((0.0, 0.9), 1e-8),
        ((0.9, 0.5), 1e-8),
        ((0.0, 0.0), 1e-3),
        ((0.99, 0.995), 1e-8),
        ((0.5, 0.5), 1e-8),
    ],
)
def test_unusual_betas_and_eps(betas, eps):
    """Gradients near eps, sums that hardly converge or do not, moments that vanish at once."""
    model, twin = twins(torch.float64)  # some of these amplify any rounding
    options = dict(lr=1e-2, betas=betas, eps=eps)
    ours, theirs = (
        RowAdam(model, **options),
        torch.optim.AdamW(twin.parameters(), weight_decay=0, **options),
    )
    scale = torch.logspace(-6, 0, N, dtype=torch.float64)
    batches = []
    for i in range(50):
        x = some_rows(touched=4 if i % 5 else 24, dtype=torch.float64)
        batches.append(x.with_values(x.values * scale[x.col]))
    train(model, ours, batches)
    train(twin, theirs, batches)
    ours.sync()
    assert_equal_models(model, twin)


# ---- lazy mode -----------------------------------------------------------------------------------


def test_lazy_mode_is_sparse_adam():
    torch.manual_seed(1)
    layer = sv.nn.CSRLinear(N, OUT, bias=False)
    table = nn.Parameter(layer.weight.detach().t().clone())
    ours = RowAdam(layer, lr=1e-2, mode="lazy")
    theirs = torch.optim.SparseAdam([table], lr=1e-2)
    for _ in range(40):
        x = some_rows()
        train(layer, ours, [x])
        y = nn.functional.embedding_bag(
            *(x.col, table, x.crow), mode="sum", per_sample_weights=x.values.detach(),
            include_last_offset=True, sparse=True,
        )  # fmt: skip
        theirs.zero_grad()
        y.square().sum().backward()
        theirs.step()
    torch.testing.assert_close(layer.weight.t(), table, rtol=1e-5, atol=1e-6)
    assert ours.state_dict()["state"][0]["step"] == 40


def test_lazy_mode_has_no_weight_decay_for_rows():
    layer = sv.nn.CSRLinear(N, OUT)
    with pytest.raises(ValueError, match="weight_decay needs mode='exact'"):
        RowAdam(layer, weight_decay=0.1, mode="lazy")
    groups = [{"params": [layer.bias]}, {"params": [layer.weight], "weight_decay": 0.0}]
    train(layer, RowAdam(groups, weight_decay=0.1, mode="lazy"), [some_rows()])


# ---- fused backward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "lazy"])
def test_fused_backward_is_the_same_step(mode):
    """Bit by bit, on every device and in plain torch; no gradient of the rows is ever made."""
    model, twin = twins()
    decay = 0.1 if mode == "exact" else 0.0
    ours = RowAdam(model, lr=1e-2, weight_decay=decay, mode=mode, fused_backward=True)
    theirs = RowAdam(twin, lr=1e-2, weight_decay=decay, mode=mode)
    for _ in range(10):
        a, b = some_rows(), some_rows()
        for m, o in ((model, ours), (twin, theirs)):
            o.zero_grad()
            with Called() as called:
                (m(a).square().sum()).backward()
            o.step()
            if m is model and _load.C is not None:
                assert "sparsevae_ext::csr_linear_row_adam" in called.names
                assert "sparsevae_ext::csr_linear_weight_grad_rows" not in called.names
            m(b).sum()  # without a backward
    assert model[0].weight.grad is None and len(ours.param_groups[0]["params"]) == 4
    ours.sync()
    theirs.sync()
    assert_equal_models(model, twin, 0)


class Called(TorchDispatchMode):
    """Records the names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_fused_backward_beside_gradients_of_values_and_after_the_optimizer():
    model, twin = twins()
    ours = RowAdam(model, lr=1e-2, fused_backward=True)
    theirs = RowAdam(twin, lr=1e-2)
    for _ in range(3):
        x, grads = some_rows(), []
        for m, o in ((model, ours), (twin, theirs)):
            values = x.values.clone().requires_grad_()
            o.zero_grad()
            loss = m(x.with_values(values)).square().sum()
            # of the values alone: no step
            (other,) = torch.autograd.grad(loss, values, retain_graph=True)
            loss.backward()
            o.step()
            torch.testing.assert_close(values.grad, other)
            grads.append(values.grad)
        assert torch.equal(*grads)
    x = some_rows()
    losses = [m(x).square().sum() for m in (model, twin)]
    del ours, theirs, o
    gc.collect()
    for loss in losses:
        loss.backward()
    assert_equal_models(model, twin, 0)
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)


def test_fused_backward_refuses_what_it_cannot_do():
    layer = sv.nn.CSRLinear(N, OUT)
    opt = RowAdam(layer, fused_backward=True)
    backward(layer, some_rows())
    with pytest.raises(RuntimeError, match="a second has arrived"):
        backward(layer, some_rows())
    opt.step()
    loss = layer(some_rows()).sum()
    layer.weight.sum().backward()
    loss.backward()
    with pytest.raises(RuntimeError, match="cannot get a dense gradient beside its rows"):
        opt.step()
    with pytest.raises(ValueError, match="no gradient to exchange"):
        RowAdam(layer, fused_backward=True, process_group=object())
    with pytest.raises(TypeError, match="process_group needs a module"):
        RowAdam(layer.parameters(), process_group=object())


# ---- memory and training -------------------------------------------------------------------------


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any op returns."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Views take no memory.
        if isinstance(out, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.most = max(self.most, out._nnz() if out.is_sparse else out.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    layer, twin = (sv.nn.CSRLinear(N, OUT, dtype=dtype) for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    ours = RowAdam(layer, lr=1e-2)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0, fused=True)
    batches = [some_rows(touched=40, dtype=dtype) for _ in range(10)]
    train(layer, ours, batches)
    train(twin, theirs, batches)
    ours.sync()
    assert_equal_models(layer, twin, 2e-2)
    model, other = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0),
    )
    with torch.autocast("cpu", dtype):
        assert model(some_rows()).dtype == dtype
        batches = [some_rows() for _ in range(10)]
        train(model, ours, batches)
        train(other, theirs, batches)
    ours.sync()
    assert_equal_models(model, other, 1e-3)


@pytest.mark.parametrize("mode", ["exact", "lazy"])
def test_nothing_of_the_size_of_the_weight_is_made(mode):
    n, out = 1_000_000, 8
    layer = sv.nn.CSRLinear(n, out)
    opt = RowAdam(layer, mode=mode)
    train(layer, opt, [some_rows(n)])  # makes the moments
    with Largest() as largest:
        train(layer, opt, [some_rows(n, device="cpu", touched=40).prepare() for _ in range(2)])
        clip_grad_norm_(opt, 1.0)
    # randperm of the test's own batches has n elements; a gradient or temporary would have 8 n.
    assert 0 < largest.most <= n


def test_the_trainer_trains_the_same_with_it(tmp_path):
    from sparsevae_ext.train import fit

    x = (torch.rand(60, 40) < 0.1).float()
    data = sv.data.CSRDataset(sv.CSRBatch.from_dense(x).to_scipy())
    options = dict(epochs=4, batch_size=15, progress=False, seed=3)

    def model():
        torch.manual_seed(0)
        return sv.models.MultVAE(40, hidden=8, latent=4)

    losses = {}
    for name in ("adam", "row-adam"):
        history = fit(model(), data, optimizer=name, **options)
        losses[name] = [row["loss"] for row in history.rows]
    torch.testing.assert_close(losses["adam"], losses["row-adam"], rtol=1e-4, atol=1e-4)
    whole, parts = model(), model()
    fit(whole, data, optimizer="row-adam", **options)
    fit(parts, data, optimizer="row-adam", out=tmp_path, stop_after=2, **options)
    again = model()
    fit(again, data, optimizer="row-adam", out=tmp_path, resume=True, **options)
    assert_equal_models(whole, again, 0)
