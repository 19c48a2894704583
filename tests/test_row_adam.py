"""RowAdam against dense torch.optim.AdamW, Adam and SparseAdam."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn

import sparsevae_ext as sv
from sparsevae_ext.optim import RowAdam, clip_grad_norm_

N, OUT = 120, 5


def some_rows(n_cols=N, touched=12, rows=4, dtype=torch.float32, device="cpu", low=0):
    """A batch of `rows` rows over `touched` random columns, none below `low`."""
    per = touched // rows
    col = (low + torch.randperm(n_cols - low)[: per * rows]).view(rows, per).sort(1).values
    crow = torch.arange(rows + 1) * per
    values = torch.randn(per * rows, dtype=dtype)
    return sv.CSRBatch(crow, col.reshape(-1), values, (rows, n_cols)).to(device)


def twins(dtype=torch.float32, device="cpu", **kwargs):
    """Two models with equal parameters: a sparse layer and a dense one after it."""
    torch.manual_seed(1)
    first = sv.nn.CSRLinear(N, OUT, dtype=dtype, device=device, **kwargs)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(OUT, 3, dtype=dtype, device=device))
    return model, copy.deepcopy(model)


def backward(model, x, scale=1.0):
    (model(x).square().sum() * scale).backward()


def train(model, optimizer, batches, scheduler=None):
    for x in batches:
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_equal_models(model, twin, tolerance=1e-5):
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# ---- exact mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("schedule", [False, True])
def test_exact_mode_is_adamw(device, weight_decay, schedule):
    model, twin = twins(device=device)
    ours = RowAdam(model, lr=1e-2, weight_decay=weight_decay)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=weight_decay)
    start = model[0].weight.detach().clone()
    # Two of three batches are short, so that gaps of many lengths occur; columns below 10 never do.
    batches = [
        some_rows(touched=4 if i % 3 else 24, device=device, low=10 if i else 9) for i in range(300)
    ]
    for m, o in ((model, ours), (twin, theirs)):
        s = torch.optim.lr_scheduler.CosineAnnealingLR(o, 250) if schedule else None
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
    batches = [some_rows(touched=4 if i % 5 else 24, dtype=torch.float64) for i in range(200)]
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
    for i in range(150):
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
    for _ in range(100):
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
    assert ours.state_dict()["state"][0]["step"] == 100


def test_lazy_mode_has_no_weight_decay_for_rows():
    layer = sv.nn.CSRLinear(N, OUT)
    with pytest.raises(ValueError, match="weight_decay needs mode='exact'"):
        RowAdam(layer, weight_decay=0.1, mode="lazy")
    groups = [{"params": [layer.bias]}, {"params": [layer.weight], "weight_decay": 0.0}]
    train(layer, RowAdam(groups, weight_decay=0.1, mode="lazy"), [some_rows()])


# ---- gradients: where rows come from and go ----------------------------------------------------------


def test_no_dense_gradient_and_plain_optimizers_see_no_difference():
    layer = sv.nn.CSRLinear(N, OUT)
    x = some_rows()
    opt = RowAdam(layer)
    backward(layer, x)
    leaf = opt.param_groups[0]["params"][-1]
    assert leaf.shape == (12, OUT) and leaf.grad is not None
    assert layer.weight.grad._nnz() == 0 and layer.weight.grad.shape == (OUT, N)
    del opt, leaf
    gc.collect()
    layer.zero_grad()
    backward(layer, x)
    assert layer.weight.grad.layout == torch.strided  # the owner is gone


def test_the_optimizer_may_die_before_the_backward_and_owe_steps():
    model, twin = twins()
    opt, dense = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    batches = [some_rows() for _ in range(10)]
    train(model, opt, batches)
    train(twin, dense, batches)
    opt.zero_grad()
    dense.zero_grad()
    x = some_rows()
    losses = [m(x).sum() for m in (model, twin)]
    del opt
    gc.collect()
    assert_equal_models(model, twin)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)


@pytest.mark.parametrize("same_batch", [False, True])
def test_accumulation_over_batches(same_batch):
    model, twin = twins()
    ours = RowAdam(model, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        x = some_rows()
        micro = [x if same_batch else some_rows(touched=20) for _ in range(3)]
        for m, o in ((model, ours), (twin, theirs)):
            o.zero_grad()
            for x in micro:
                backward(m, x)
            o.step()
    ours.sync()
    assert_equal_models(model, twin)
    assert len(ours.param_groups[0]["params"]) == 5


def test_two_forwards_before_a_backward_and_values_that_need_a_gradient():
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    for _ in range(6):
        a, b = some_rows(touched=24), some_rows(touched=24)
        grads = []
        for m, o in ((model, ours), (twin, theirs)):
            values = a.values.clone().requires_grad_()
            o.zero_grad()
            (m(a.with_values(values)) * m(b)).sum().backward()
            o.step()
            grads.append(values.grad)
        torch.testing.assert_close(*grads)
    ours.sync()
    assert_equal_models(model, twin)


def test_a_step_invalidates_graphs_that_saved_the_weight():
    layer = sv.nn.CSRLinear(N, OUT)
    opt = RowAdam(layer)
    x = some_rows()
    values = x.values.clone().requires_grad_()
    backward(layer, x)
    loss = layer(x.with_values(values)).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = sv.nn.CSRLinear(N, OUT)
        self.always = True

    def forward(self, x):
        h = self.encoder(x)
        return nn.functional.linear(h, self.encoder.weight.t()) if self.always else h


def test_a_tied_decoder_is_stepped_densely():
    torch.manual_seed(0)
    model = Tied()
    twin = copy.deepcopy(model)
    ours = RowAdam(model, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    batches = [some_rows() for _ in range(10)]
    train(model, ours, batches)
    train(twin, theirs, batches)
    assert_equal_models(model, twin)  # without sync


def test_dense_use_that_begins_later():
    torch.manual_seed(0)
    model = Tied()
    model.always = False
    twin = copy.deepcopy(model)
    ours = RowAdam(model, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    for use in (False, True, False):
        model.always = twin.always = use
        ours.sync()
        batches = [some_rows() for _ in range(5)]
        train(model, ours, batches)
        train(twin, theirs, batches)
    assert_equal_models(model, twin)


def test_dense_batches_and_hooks_on_the_weight():
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    seen = []
    for i in range(9):
        if i == 6:
            for m in (model, twin):
                m[0].weight.register_hook(lambda g: seen.append(g.layout))
        x = some_rows() if i % 3 else some_rows().to_dense()
        train(model, ours, [x])
        train(twin, theirs, [x])
    assert_equal_models(model, twin)
    assert seen == [torch.strided] * 6


def test_two_layers_share_a_weight():
    def make():
        torch.manual_seed(2)
        a, b = sv.nn.CSRLinear(N, OUT), sv.nn.CSRLinear(N, OUT)
        b.weight = a.weight
        return nn.ModuleList([a, b])

    model, twin = make(), make()
    ours = RowAdam(model, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        x, y = some_rows(), some_rows(touched=20)
        for m, o in ((model, ours), (twin, theirs)):
            o.zero_grad()
            (m[0](x) * m[1](y)).sum().backward()
            o.step()
    ours.sync()
    assert_equal_models(model, twin)


def test_ways_of_zeroing():
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    for i in range(8):
        x = some_rows()
        for m, o in ((model, ours), (twin, theirs)):
            if i % 4 == 0:
                o.zero_grad()
            elif i % 4 == 1:
                m.zero_grad()
            elif i % 4 == 2:
                o.zero_grad(set_to_none=False)
            backward(m, x)  # at i % 4 == 3 the gradient before it is still there
            o.step()
        if i % 4 == 3:
            assert len(ours.param_groups[0]["params"]) == 5
    ours.sync()
    assert_equal_models(model, twin)
    model.zero_grad()
    before = copy.deepcopy(model)
    ours.step()
    assert_equal_models(model, before, 0)


def test_changing_the_stand_in_is_refused():
    layer = sv.nn.CSRLinear(N, OUT)
    opt = RowAdam(layer)
    backward(layer, some_rows())
    layer.weight.grad.mul_(0.5)
    with pytest.raises(RuntimeError, match="was changed in place"):
        opt.step()
    with pytest.raises(NotImplementedError):
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)


def test_frozen_weight_and_unused_parameters():
    model, twin = twins()
    for m in (model, twin):
        m[0].weight.requires_grad_(False)
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    batches = [some_rows() for _ in range(3)]
    train(model, ours, batches)
    train(twin, theirs, batches)
    assert_equal_models(model, twin)
    assert len(ours.state_dict()["state"]) == 3


def test_an_empty_batch_is_a_step_of_zeros():
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    empty = sv.CSRBatch(
        torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), (2, N)
    )
    batches = [some_rows(), empty, some_rows(), empty]
    train(model, ours, batches)
    train(twin, theirs, batches)
    ours.sync()
    assert_equal_models(model, twin)


def test_functional_call_and_double_backward():
    layer = sv.nn.CSRLinear(N, OUT)
    opt = RowAdam(layer)
    x = some_rows()
    other = {k: torch.zeros_like(p) for k, p in layer.named_parameters()}
    assert not torch.func.functional_call(layer, other, (x,)).any()
    out = layer(x).square().sum()
    (grad,) = torch.autograd.grad(out, layer.bias, create_graph=True)
    grad.sum().backward()
    out = layer(x).square().sum()
    out.backward(create_graph=True)
    rows = opt.param_groups[0]["params"][-1].grad
    with pytest.raises(NotImplementedError, match="double backward"):
        rows.sum().backward()


# ---- clipping, scaling, closures -----------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_clipping_counts_the_rows(norm_type):
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    for i in range(6):
        micro = [some_rows(), some_rows()]
        norms = []
        for m, o in ((model, ours), (twin, theirs)):
            o.zero_grad()
            for x in micro:
                backward(m, x, 10.0)
            clip = nn.utils.clip_grad_norm_ if o is theirs else clip_grad_norm_
            given = o if o is ours and i % 2 else m.parameters()
            norms.append(clip(given, 1.0, norm_type))
            o.step()
        torch.testing.assert_close(*norms)
        assert norms[0] > 1
    ours.sync()
    assert_equal_models(model, twin)


@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(unscale):
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2)]
    for i in range(6):
        x = some_rows()
        if i == 3:
            x.values[0] = 1e36  # overflows the scaled gradient of a feature, no other
        for m, o, scaler in ((model, ours, scalers[0]), (twin, theirs, scalers[1])):
            o.zero_grad()
            scaler.scale(m[0](x).square().sum()).backward()
            if unscale:
                scaler.unscale_(o)
                (clip_grad_norm_ if o is ours else nn.utils.clip_grad_norm_)(m.parameters(), 0.5)
            scaler.step(o)
            scaler.update()
    ours.sync()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**9
    assert_equal_models(model, twin)


def test_a_closure_is_evaluated_once_before_the_step():
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    for _ in range(3):
        x = some_rows()
        for m, o in ((model, ours), (twin, theirs)):

            def closure(m=m, o=o, x=x):
                o.zero_grad()
                loss = m(x).square().sum()
                loss.backward()
                return loss

            assert o.step(closure) > 0
    ours.sync()
    assert_equal_models(model, twin)


def test_nan_gradients_propagate_as_in_adam():
    layer = sv.nn.CSRLinear(N, OUT)
    opt = RowAdam(layer)
    x = some_rows()
    x.values[0] = torch.nan
    train(layer, opt, [x])
    opt.sync()
    bad = layer.weight.isnan().all(0).nonzero().flatten().tolist()
    assert set(bad) == set(x.col[:3].tolist())  # the features of the row


# ---- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [torch.optim.Adam, torch.optim.AdamW, RowAdam])
def test_state_moves_both_ways(there):
    """Train with one, go on with the other, and back; equal to AdamW all the way."""
    decay = 0.0 if there is torch.optim.Adam else 0.1
    model, twin = twins()
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=decay)
    opt = RowAdam(model, lr=1e-2, weight_decay=decay)
    for kind in (there, RowAdam, there):
        batches = [some_rows() for _ in range(7)]
        train(model, opt, batches)
        train(twin, theirs, batches)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model = twins()[0]
        model.load_state_dict(saved["model"])
        opt = kind(model.parameters(), lr=0.5)
        opt.load_state_dict(saved["opt"])
        assert opt.param_groups[0]["lr"] == 1e-2
    batches = [some_rows() for _ in range(7)]
    train(model, opt, batches)
    train(twin, theirs, batches)
    model.state_dict()
    assert_equal_models(model, twin)


def test_resume_is_bit_equal():
    batches = [some_rows() for _ in range(20)]
    model, twin = twins()
    opt = RowAdam(model, lr=1e-2, weight_decay=0.1)
    train(model, opt, batches[:10])
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    train(model, opt, batches[10:])
    twin.load_state_dict(saved[0])
    again = RowAdam(twin, lr=1.0)
    again.load_state_dict(saved[1])
    train(twin, again, batches[10:])
    opt.sync()
    again.sync()
    assert_equal_models(model, twin, 0)


def test_the_state_of_a_plain_linear_is_laid_out():
    layer, linear = sv.nn.CSRLinear(N, OUT), nn.Linear(N, OUT)
    linear.load_state_dict(layer.state_dict())
    adam = torch.optim.Adam(linear.parameters(), lr=1e-2)
    x = some_rows()
    train(linear, adam, [x.to_dense()])
    layer.load_state_dict(linear.state_dict())
    opt = RowAdam(layer, lr=1e-2)
    opt.load_state_dict(adam.state_dict())
    for _ in range(3):
        x = some_rows()
        train(linear, adam, [x.to_dense()])
        train(layer, opt, [x])
    opt.sync()
    assert_equal_models(layer, linear)


def test_loading_weights_ends_what_was_owed():
    model, twin = twins()
    opt = RowAdam(model, lr=1e-2, weight_decay=0.1)
    train(model, opt, [some_rows() for _ in range(5)])
    model.load_state_dict(twin.state_dict())
    opt.sync()
    assert_equal_models(model, twin, 0)


def test_state_is_not_disturbed_by_waiting_rows():
    layer = sv.nn.CSRLinear(N, OUT)
    opt = RowAdam(layer)
    backward(layer, some_rows())
    saved = opt.state_dict()
    assert saved["param_groups"][0]["params"] == [0, 1]
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert [len(g["params"]) for g in opt.param_groups] == [3, 1]
    opt.step()
    opt.load_state_dict({**saved, "param_groups": [*saved["param_groups"], {"params": [2]}]})
    assert [len(g["params"]) for g in opt.param_groups] == [2, 1]


def test_groups_have_their_own_options():
    model, twin = twins()

    def groups(m):
        return [
            {"params": [m[0].weight], "lr": 1e-2, "weight_decay": 0.2, "betas": (0.8, 0.99)},
            {"params": [m[0].bias, *m[2].parameters()], "eps": 1e-4},
        ]

    ours, theirs = RowAdam(groups(model)), torch.optim.AdamW(groups(twin), weight_decay=0.0)
    batches = [some_rows() for _ in range(20)]
    train(model, ours, batches)
    train(twin, theirs, batches)
    ours.sync()
    assert_equal_models(model, twin)


def test_copies_and_a_second_optimizer():
    model, twin = twins()
    opt = RowAdam(model, lr=1e-2)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0)
    batches = [some_rows() for _ in range(5)]
    train(model, opt, batches)
    train(twin, theirs, batches)
    again = pickle.loads(pickle.dumps(opt))
    assert again.mode == "exact" and again.param_groups[0]["lr"] == 1e-2
    fresh = RowAdam(model, lr=1e-2)  # takes the weight over
    fresh.load_state_dict(opt.state_dict())
    train(model, fresh, batches)
    train(twin, theirs, batches)
    opt.sync()
    fresh.sync()
    assert_equal_models(model, twin)


# ---- compile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
def test_compiled_forward(full):
    model, twin = twins()
    ours, theirs = (
        RowAdam(model, lr=1e-2),
        torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0),
    )
    compiled = torch.compile(model, backend="aot_eager", fullgraph=full)
    for i in range(6):
        x = some_rows(touched=12 + 4 * i).prepare()
        if full:
            ours.prepare(x)
        train(compiled, ours, [x])
        train(twin, theirs, [x])
        assert model[0].weight.grad is None or model[0].weight.grad.is_sparse
    ours.sync()
    assert_equal_models(model, twin)


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,text",
    [
        (dict(lr=-1.0), "Invalid learning rate: -1.0"),
        (dict(lr=float("nan")), "Invalid learning rate"),
        (dict(betas=(1.0, 0.9)), "Invalid beta parameter at index 0: 1.0"),
        (dict(betas=(0.9, -0.1)), "Invalid beta parameter at index 1: -0.1"),
        (dict(eps=-1e-9), "Invalid epsilon value"),
        (dict(weight_decay=-1.0), "Invalid weight_decay value"),
        (dict(mode="sparse"), "expected mode to be 'exact' or 'lazy'"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        RowAdam(sv.nn.CSRLinear(3, 2), **options)


def test_bad_parameters_and_states():
    layer = sv.nn.CSRLinear(3, 2)
    with pytest.raises(ValueError, match="empty parameter list"):
        RowAdam([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        RowAdam(layer.weight)
    with pytest.raises(ValueError, match="non-leaf"):
        RowAdam([layer.weight * 1])
    with pytest.raises(ValueError, match="more than one parameter group"):
        RowAdam([{"params": [layer.weight]}, {"params": [layer.weight]}])
    with pytest.raises(ValueError, match="dtype torch.complex64"):
        RowAdam([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    opt = RowAdam(layer)
    with pytest.raises(TypeError, match="expected a CSRBatch"):
        opt.prepare(torch.zeros(2, 3))
    saved = opt.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        opt.load_state_dict({**saved, "param_groups": []})
    other = sv.nn.CSRLinear(4, 2)
    adam = torch.optim.Adam(other.parameters(), weight_decay=0.1)
    train(other, adam, [torch.ones(1, 4)])
    with pytest.raises(ValueError, match="not decoupled"):
        opt.load_state_dict(adam.state_dict())
    adam = torch.optim.AdamW(other.parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        opt.load_state_dict(adam.state_dict())
    adam = torch.optim.AdamW(other.parameters())
    train(other, adam, [torch.ones(1, 4)])
    with pytest.raises(
        ValueError, match=r"exp_avg of shape \(2, 4\) for a parameter of shape \(2, 3\)"
    ):
        opt.load_state_dict(adam.state_dict())


def test_sparse_gradients_of_others_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    opt = RowAdam(table)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        opt.step()


# ---- fused backward ----------------------------------------------------------------------------------


def test_fused_backward_is_the_same_step():
    model, twin = twins()
    ours = RowAdam(model, lr=1e-2, weight_decay=0.1, fused_backward=True)
    theirs = RowAdam(twin, lr=1e-2, weight_decay=0.1)
    batches = [some_rows() for _ in range(10)]
    train(model, ours, batches)
    train(twin, theirs, batches)
    assert model[0].weight.grad is None and len(ours.param_groups[0]["params"]) == 4
    ours.sync()
    theirs.sync()
    assert_equal_models(model, twin, 0)


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
