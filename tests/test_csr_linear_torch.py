"""csr_linear among torch's own machinery: compile, export, func, autocast, opcheck, refusals."""

from __future__ import annotations

import pytest
import torch
from conftest import dense64, random_csr

import sparsevae_ext as sv
from sparsevae_ext import _load, functional
from sparsevae_ext.ops.csr_transpose import csr_transpose, csr_transpose_reference

needs_kernels = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
ops = torch.ops.sparsevae_ext


def layer_and_batch(n_rows=6, n_features=11, width=5, dtype=torch.float32, device="cpu"):
    torch.manual_seed(3)
    layer = sv.nn.CSRLinear(n_features, width, dtype=dtype, device=device)
    return layer, random_csr(n_rows, n_features, dtype=dtype, device=device)


# ---- opcheck -----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grads", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(6, 11), (0, 4), (3, 0)])
def test_opcheck_forward(device, dtype, grads, shape):
    x = random_csr(*shape, dtype=dtype, device=device)
    weight = torch.randn(shape[1], 5, dtype=dtype, device=device).t().requires_grad_(grads[1])
    bias = torch.randn(5, dtype=dtype, device=device).requires_grad_(grads[1])
    values = x.values.clone().requires_grad_(grads[0])
    torch.library.opcheck(ops.csr_linear.default, (x.crow, x.col, values, weight, bias))


@needs_kernels
@pytest.mark.parametrize("prepared", [False, True])
def test_opcheck_backward_ops(device, prepared):
    x = random_csr(6, 11, device=device)
    index = x.prepare().index if prepared else csr_transpose(x.crow, x.col, 11)[:4]
    grad = torch.randn(5, 6, device=device).t()  # strided
    weight = torch.randn(11, 5, device=device).t()
    torch.library.opcheck(ops.csr_linear_weight_grad.default, (*index, x.values, grad, 11))
    torch.library.opcheck(ops.csr_linear_weight_grad_rows.default, (*index[1:], x.values, grad))
    torch.library.opcheck(ops.csr_linear_values_grad.default, (x.crow, x.col, weight, grad))


@needs_kernels
def test_opcheck_transpose():
    x = random_csr(6, 11)
    torch.library.opcheck(ops.csr_transpose.default, (x.crow, x.col, 11))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(6, 11), (200, 3), (40, 10_000), (0, 3), (3, 0)])
def test_transpose_and_its_reference_agree(shape, index_dtype):
    x = random_csr(*shape, index_dtype=index_dtype)
    for got, expected in zip(
        csr_transpose(x.crow, x.col, shape[1]),
        csr_transpose_reference(x.crow, x.col, shape[1]),
        strict=True,
    ):
        assert got.dtype == expected.dtype and torch.equal(got, expected)
    prepared = sv.CSRBatch(x.crow, x.col, x.values, shape).prepare().index
    count = int(csr_transpose(x.crow, x.col, shape[1])[4])
    assert torch.equal(prepared.features, csr_transpose(x.crow, x.col, shape[1])[0][:count])


@pytest.mark.parametrize("shape", [(700, 900), (3, 500), (20_000, 40), (50, 60_000)])
def test_transpose_is_the_same_on_any_number_of_threads(shape):
    n_rows, n_cols = shape
    x = random_csr(n_rows, n_cols, mean=max(2, 40_000 // n_rows), seed=n_rows)
    expected = csr_transpose_reference(x.crow, x.col, n_cols)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        for got, wanted in zip(csr_transpose(x.crow, x.col, n_cols), expected, strict=True):
            assert torch.equal(got, wanted)
        index = sv.CSRBatch(x.crow, x.col, x.values, shape).prepare().index
        used = int(expected[4])
        assert torch.equal(index.features, expected[0][:used])
        assert torch.equal(index.ptr, expected[1][: used + 1])
    bad = x.col.clone()
    bad[[17_000, 20_000]] = n_cols
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        with pytest.raises(IndexError, match=f"column index {n_cols} at position 17000 "):
            sv.CSRBatch(x.crow, bad, x.values, shape).prepare()


@needs_kernels
def test_the_bare_op_differentiates_like_the_function():
    layer, x = layer_and_batch(dtype=torch.float64)
    results = []
    for call in (
        lambda v, w, b: functional.csr_linear(x.with_values(v), w, b),
        lambda v, w, b: ops.csr_linear(x.crow, x.col, v, w, b),
    ):
        v = x.values.clone().requires_grad_()
        w, b = layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()
        call(v, w, b).sin().sum().backward()
        results.append((v.grad, w.grad, b.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


# ---- compile and export ------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True])
def test_compile_fullgraph_forward_and_backward(device, prepared):
    layer, x = layer_and_batch(device=device)
    if prepared:
        x.prepare()

    def step(batch, weight, bias):
        return functional.csr_linear(batch, weight, bias).tanh().sum()

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for f in (step, compiled):
        w, b = layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()
        v = x.values.clone().requires_grad_()
        loss = f(x.with_values(v), w, b)
        loss.backward()
        results.append((loss.detach(), w.grad, b.grad, v.grad))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(eager, graph)


def test_compile_once_for_many_sizes():
    from torch._dynamo.testing import CompileCounterWithBackend

    layer, _ = layer_and_batch()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for n_rows in (4, 7, 9, 30):
        x = random_csr(n_rows, 11, seed=n_rows).prepare()
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count == 1


def test_export_with_a_batch_as_argument():
    layer, x = layer_and_batch(n_rows=8)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


# ---- torch.func --------------------------------------------------------------------------------


def test_func_grad_and_jacrev():
    layer, x = layer_and_batch(dtype=torch.float64)
    dense = dense64(x)

    def ours(w, b):
        return functional.csr_linear(x, w, b)

    def theirs(w, b):
        return torch.nn.functional.linear(dense, w, b)

    w, b = layer.weight.detach(), layer.bias.detach()
    for argnums in (0, 1):
        got = torch.func.grad(lambda w, b: ours(w, b).sin().sum(), argnums)(w, b)
        expected = torch.func.grad(lambda w, b: theirs(w, b).sin().sum(), argnums)(w, b)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.func.jacrev(ours, argnums)(w, b), torch.func.jacrev(theirs, argnums)(w, b)
        )


@pytest.mark.parametrize("in_dims", [(0, 0), (2, 1), (0, None), (None, 0)])
def test_vmap_over_weight_and_bias(in_dims):
    layer, x = layer_and_batch(dtype=torch.float64)
    k = 4
    weight = torch.randn(k, 5, 11, dtype=torch.float64)
    bias = torch.randn(k, 5, dtype=torch.float64)
    w = weight.movedim(0, in_dims[0]) if in_dims[0] is not None else weight[0]
    b = bias.movedim(0, in_dims[1]) if in_dims[1] is not None else bias[0]

    def loss(w, b):
        return functional.csr_linear(x, w, b).sin()

    got = torch.func.vmap(loss, in_dims)(w, b)
    pick = [
        (weight[i] if in_dims[0] is not None else w, bias[i] if in_dims[1] is not None else b)
        for i in range(k)
    ]
    torch.testing.assert_close(got, torch.stack([loss(*p) for p in pick]))
    gradient = torch.func.grad(lambda w, b: loss(w, b).sum(), (0, 1))
    for one, many in enumerate(zip(*torch.func.vmap(gradient, in_dims)(w, b), strict=True)):
        for got_grad, expected in zip(many, gradient(*pick[one]), strict=True):
            torch.testing.assert_close(got_grad, expected)


def test_vmap_over_the_batch_is_refused():
    layer, x = layer_and_batch()
    many = torch.stack([x.values, x.values])
    with pytest.raises(NotImplementedError, match="vmap is over weight and bias"):
        torch.func.vmap(lambda v: functional.csr_linear(x.with_values(v), layer.weight))(many)


# ---- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_gives_the_dtype_of_linear(device, weight, autocast):
    layer, x = layer_and_batch(dtype=weight, device=device)
    linear = layer.to_linear()
    with torch.autocast(device, dtype=autocast):
        expected = linear(x.to_dense())
        y = layer(x)
    assert y.dtype == expected.dtype
    y.float().sin().sum().backward()
    assert layer.weight.grad.dtype == weight
    if weight == torch.float32:  # the weight is not cast: only the output is rounded
        assert torch.equal(y, functional.csr_linear(x, layer.weight, layer.bias).to(autocast))


def test_autocast_takes_values_of_another_dtype():
    layer, x = layer_and_batch(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.to(torch.float32))
    assert torch.equal(y, layer(x))


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["values", "weight"])
@pytest.mark.parametrize("through", ["function", "bare op"])
def test_double_backward_raises(wanted, through):
    if through == "bare op" and _load.C is None:
        pytest.skip("the compiled object is missing")
    layer, x = layer_and_batch(dtype=torch.float64)
    v = x.values.clone().requires_grad_(wanted == "values")
    w = layer.weight.detach().requires_grad_(wanted == "weight")
    y = (
        functional.csr_linear(x.with_values(v), w)
        if through == "function"
        else ops.csr_linear(x.crow, x.col, v, w, None)
    )
    (g,) = torch.autograd.grad(y.pow(3).sum(), v if wanted == "values" else w, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        g.sum().backward()
    with pytest.raises(NotImplementedError, match="double backward"):
        y = functional.csr_linear(x.with_values(v), w)
        leaf = v if wanted == "values" else w
        (g,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
        torch.autograd.grad(g.sum(), leaf, allow_unused=True)


def test_forward_mode_raises():
    layer, x = layer_and_batch()
    w = layer.weight.detach()
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda w: functional.csr_linear(x, w), (w,), (torch.ones_like(w),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        dual = torch.autograd.forward_ad.make_dual(w, torch.ones_like(w))
        functional.csr_linear(x, dual)


def test_values_edited_between_forward_and_backward():
    layer, x = layer_and_batch()
    y = layer(x)
    x.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradient_accumulates_over_batches():
    layer, x = layer_and_batch(dtype=torch.float64)
    other = random_csr(9, 11, seed=5, dtype=torch.float64)
    layer(x).sum().backward()
    layer(other).sum().backward()
    expected = torch.ones(6, 5, dtype=torch.float64).t() @ dense64(x)
    expected += torch.ones(9, 5, dtype=torch.float64).t() @ dense64(other)
    torch.testing.assert_close(layer.weight.grad, expected)
