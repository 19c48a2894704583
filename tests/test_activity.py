"""l1_activity and l2_activity: numbers, gradients, bits. The bodies run on every device there is."""

from __future__ import annotations

import pytest
import torch

import sparsevae_ext as sv
from sparsevae_ext import _load, functional
from sparsevae_ext.ops.activity import (
    ACTIVATIONS,
    l1_activity_reference,
    l2_activity_reference,
)

needs_kernels = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
OPS = {"l1_activity": functional.l1_activity, "l2_activity": functional.l2_activity}
REFERENCES = {"l1_activity": l1_activity_reference, "l2_activity": l2_activity_reference}
SIZES = [1, 3, 17, 31, 33, 129, 1000]
# Largest error of a value relative to it: a rounding of the dtype, in float32 a few of them.
VALUE = {
    torch.float64: 1e-15,
    torch.float32: 5e-7,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
SUM = {torch.float64: 1e-14}


def matrix(rows, width, dtype=torch.float32, device="cpu", seed=0, scale=1.0):
    """Normal numbers, a few of them zero."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, width, generator=g, dtype=torch.float64) * scale
    h[::2, ::5] = 0
    return h.to(device, dtype)


def oracle(op, h, activation):
    """The op in float64 with autograd."""
    h64 = h.detach().cpu().double().requires_grad_()
    return h64, *REFERENCES[op](h64, activation)


def near(got, expected, magnitude, tolerance):
    assert got.shape == expected.shape
    floor = 2.0**-24 if got.dtype == torch.float16 else 1e-37
    error = (got.detach().cpu().double() - expected).abs()
    assert (error <= tolerance * magnitude + floor).all(), (error / magnitude).max()


def check_all(op, h, activation):
    """Values and penalties against float64, and the gradient of each output alone and of both."""
    dtype = h.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    h64, value64, penalty64 = oracle(op, h, activation)
    leaf = h.detach().requires_grad_()
    value, penalty = OPS[op](leaf, activation)
    assert value.dtype == dtype and penalty.dtype == wide
    near(value, value64.detach(), value64.detach().abs(), VALUE[dtype])
    near(penalty, penalty64.detach(), penalty64.detach(), SUM.get(dtype, 2e-6))

    g = matrix(*h.shape, dtype, seed=1).to(h.device)
    gp = matrix(h.shape[0], 1, wide, seed=2)[:, 0].to(h.device)
    for grads in ((g, gp), (g, None), (None, gp)):
        outputs, outputs64, given = [], [], []
        pairs = zip((value, penalty), (value64, penalty64), grads, strict=True)
        for out, out64, grad in pairs:
            if grad is not None:
                outputs, outputs64 = [*outputs, out], [*outputs64, out64]
                given.append(grad)
        (got,) = torch.autograd.grad(outputs, leaf, given, retain_graph=True)
        given64 = [t.cpu().double() for t in given]
        (expected,) = torch.autograd.grad(outputs64, h64, given64, retain_graph=True)
        assert got.dtype == dtype
        # The slope comes from the rounded value, as torch's own sigmoid_backward and tanh_backward do it.
        size = torch.zeros_like(expected)
        size += 0 if grads[0] is None else grads[0].cpu().double().abs()
        slope = 1.0 if op == "l1_activity" else 2 * value64.detach().abs()
        size += 0 if grads[1] is None else grads[1].cpu().double().abs()[:, None] * slope
        near(
            got,
            expected,
            size,
            {torch.float64: 1e-14, torch.float32: 2e-6}.get(dtype, 2.5 * VALUE[dtype]),
        )


@pytest.mark.isa
@pytest.mark.parametrize("dtype", list(VALUE), ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", OPS)
def test_against_float64(device, op, activation, dtype):
    for width in SIZES:
        check_all(op, matrix(5, width, dtype, device), activation)


@pytest.mark.parametrize("rows", [1, 2, 130])
@pytest.mark.parametrize("op", OPS)
def test_sizes_of_the_batch(device, op, rows):
    check_all(op, matrix(rows, 33, device=device), "relu")


@pytest.mark.parametrize("op", OPS)
def test_a_matrix_larger_than_the_caches(device, op):
    """Written past the caches: 32 MiB, with rows that begin on a cache line and with rows that do not."""
    for width in (8192, 8200 - 3):
        h = matrix(1024, width, device=device)
        leaf = h.clone().requires_grad_()
        value, penalty = OPS[op](leaf)
        assert torch.equal(value, torch.relu(h))
        expected = torch.relu(h).double()
        expected = expected.sum(1) if op == "l1_activity" else expected.square().sum(1)
        torch.testing.assert_close(penalty.double(), expected, rtol=2e-6, atol=0)
        (grad,) = torch.autograd.grad((value, penalty), leaf, (h, torch.ones_like(penalty)))
        positive = h + (1 if op == "l1_activity" else 2 * h)
        torch.testing.assert_close(grad, torch.where(h > 0, positive, 0.0))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
@pytest.mark.parametrize("op", OPS)
def test_empty(device, op, shape):
    h = torch.zeros(shape, device=device, requires_grad=True)
    value, penalty = OPS[op](h, "sigmoid")
    assert value.shape == shape and torch.equal(penalty, torch.zeros(shape[0], device=device))
    (grad,) = torch.autograd.grad((value, penalty), h, (value, penalty))
    assert grad.shape == shape


@pytest.mark.isa
@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_strided_and_misaligned_input(device, activation):
    h = matrix(9, 37, device=device)
    expected = functional.l1_activity(h, activation)
    room = torch.empty(h.numel() + 1, device=device)
    layouts = {
        "transposed": h.t().contiguous().t(),
        "every second": torch.stack([h, h], 2)[:, :, 0],
        "columns of a wider matrix": torch.cat([h, h], 1)[:, :37],
        "off by one element": room[1:].view(h.shape).copy_(h),
    }
    for name, layout in layouts.items():
        got = functional.l1_activity(layout, activation)
        assert torch.equal(got[0], expected[0]), name
        torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_any_layout(device, dtype):
    h = matrix(9, 37, dtype, device).requires_grad_()
    gp = torch.rand(9, 2, device=device)[:, 0]
    g = matrix(9, 37, dtype, device, seed=3)
    layouts = [
        g.t().contiguous().t(),
        torch.cat([g, g], 1)[:, :37],
        torch.ones((), dtype=dtype, device=device).expand(9, 37),
        g[:, :1].expand(9, 37),
        g[:1].expand(9, 37),
    ]
    for layout in layouts:
        for penalty in (gp, None):
            results = []
            for grad in (layout, layout.contiguous()):
                value, sums = functional.l1_activity(h, "tanh")
                pairs = [(value, grad)] + ([] if penalty is None else [(sums, penalty)])
                outputs, grads = zip(*pairs, strict=True)
                results.append(torch.autograd.grad(outputs, h, grads)[0])
            assert torch.equal(*results)


def test_one_column_with_an_expanded_gradient(device):
    h = torch.tensor([[1.0], [2.0]], device=device, requires_grad=True)
    g = torch.tensor([3.0, 4.0], device=device)
    for grad in (g[:, None], g.new_full((), 5.0).expand(2, 1)):
        value, _ = functional.l1_activity(h)
        assert torch.equal(torch.autograd.grad(value, h, grad)[0], grad)


@needs_kernels
@pytest.mark.parametrize("dtype", list(VALUE), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_for_any_number_of_threads(op, dtype):
    h = matrix(67, 1031, dtype).requires_grad_()
    results = []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        value, penalty = OPS[op](h, "softplus")
        (grad,) = torch.autograd.grad((value, penalty), h, (value, penalty))
        results.append((value, penalty, grad))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.isa
@needs_kernels
@pytest.mark.parametrize("dtype", list(VALUE), ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_bits_wherever_an_element_lies(activation, dtype):
    """In a vector or in what is left at a row's end."""
    h = matrix(1, 70, dtype)
    value, _ = functional.l1_activity(h, activation)
    for width in range(1, 70, 4):
        part = h[:, :width].clone().requires_grad_()
        got, _ = functional.l1_activity(part, activation)
        assert torch.equal(got, value[:, :width])
        (grad,) = torch.autograd.grad(got, part, torch.ones_like(got))
        full = h.clone().requires_grad_()
        whole = functional.l1_activity(full, activation)[0]
        (expected,) = torch.autograd.grad(whole, full, torch.ones_like(h))
        assert torch.equal(grad, expected[:, :width])


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_values(device, dtype):
    inf, nan = torch.inf, torch.nan
    h = torch.tensor([[nan, -1.0, 1.0], [inf, -inf, 0.0], [800.0, -800.0, -80.0]], dtype=dtype)
    h = h.to(device)
    for activation in ACTIVATIONS:
        value, penalty = functional.l1_activity(h, activation)
        expected = l1_activity_reference(h, activation)
        torch.testing.assert_close(value, expected[0], equal_nan=True, rtol=1e-6, atol=0)
        torch.testing.assert_close(penalty, expected[1], equal_nan=True, rtol=1e-6, atol=0)
    small = torch.tensor([[-80.0, -30.0]], dtype=dtype, device=device).requires_grad_()
    value, _ = functional.l1_activity(small, "softplus")
    (grad,) = torch.autograd.grad(value.sum(), small)
    torch.testing.assert_close(grad, torch.exp(small), rtol=1e-5, atol=0)


def test_relu_takes_its_gradient_by_selection(device):
    """Zero times an infinite gradient would be nan; nan passes, as through torch.relu."""
    h = torch.tensor([[-1.0, 0.0, 2.0, torch.nan]], device=device, requires_grad=True)
    g = torch.tensor([[torch.inf, torch.inf, 3.0, 4.0]], device=device)
    value, _ = functional.l1_activity(h)
    assert torch.equal(
        torch.autograd.grad(value, h, g)[0], torch.tensor([[0, 0, 3.0, 4]]).to(device)
    )


def test_the_penalty_has_no_slope_at_zero(device):
    h = torch.tensor([[0.0, -2.0, 3.0]], device=device, requires_grad=True)
    for activation, expected in (("identity", [0, -1, 1]), ("relu", [0, 0, 1])):
        _, penalty = functional.l1_activity(h, activation)
        assert torch.autograd.grad(penalty.sum(), h)[0].tolist() == [expected]


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_penalties_sum_unrounded_values(device, dtype):
    h = torch.full((1, 4096), 0.1, dtype=dtype, device=device)
    _, penalty = functional.l1_activity(h, "sigmoid")
    exact = 4096 * torch.sigmoid(h[0, 0].double()).item()
    assert penalty.dtype == torch.float32
    assert abs(penalty.item() - exact) < 1e-5 * exact


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(device, op, activation):
    h = torch.randn(5, 17, dtype=torch.float64, device=device).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: OPS[op](h, activation), h)
    assert torch.autograd.gradcheck(lambda h: OPS[op](h, activation)[0], h)
    assert torch.autograd.gradcheck(lambda h: OPS[op](h, activation)[1], h)


# ---- layers ------------------------------------------------------------------------------------


def test_layers_weigh_the_penalty_and_follow_a_schedule():
    h = matrix(4, 6)
    for layer, op in (
        (sv.nn.L1Activity(0.5), "l1_activity"),
        (sv.nn.L2Activity(0.5), "l2_activity"),
    ):
        expected = OPS[op](h)
        for result in (layer(h), layer.code_and_penalty(h)):
            assert torch.equal(result[0], expected[0])
            assert torch.equal(result[1], 0.5 * expected[1])
        layer.weight = 2.0
        assert torch.equal(layer(h)[1], 2.0 * expected[1])
        assert repr(layer) == f"{type(layer).__name__}(weight=2.0, activation='relu')"
        assert not list(layer.parameters()) and not layer.state_dict()


@pytest.mark.parametrize("kind", ["L1Activity", "L2Activity"])
def test_layers_refuse_bad_options(kind):
    make = getattr(sv.nn, kind)
    for weight in (-1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match=rf"{kind}\(\): expected weight to be finite and >= 0"):
            make(weight)
    with pytest.raises(TypeError, match="expected weight to be a float, but got str"):
        make("1")
    with pytest.raises(ValueError, match="one of identity, relu, sigmoid, tanh, softplus, but got"):
        make(1.0, "gelu")
