"""kl_sparsity: numbers, gradients, bits. The bodies run on every device there is."""

from __future__ import annotations

import pytest
import torch

import sparsevae_ext as sv
from sparsevae_ext import _load, functional
from sparsevae_ext.ops.kl_sparsity import kl_sparsity_reference

needs_kernels = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [1, 3, 17, 31, 33, 129, 1000]


def code(rows, width, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, width, generator=g, dtype=torch.float64).sigmoid()
    return h.to(device, dtype)


def check(h, rho):
    """Value and gradient against float64."""
    h64 = h.detach().cpu().double().requires_grad_()
    expected = kl_sparsity_reference(h64, rho)
    (expected_grad,) = torch.autograd.grad(1.7 * expected, h64)
    leaf = h.detach().requires_grad_()
    kl = functional.kl_sparsity(leaf, rho)
    (grad,) = torch.autograd.grad(1.7 * kl, leaf)
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    assert kl.dtype == wide and kl.shape == () and grad.dtype == h.dtype and grad.shape == h.shape
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(h.dtype, 1e-5)
    torch.testing.assert_close(kl.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    loss = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}.get(h.dtype, tolerance)
    mean = h64.detach().mean(0)
    scale = 1.7 / h.shape[0] * (rho / mean + (1 - rho) / (1 - mean))
    floor = 2.0**-24 if h.dtype == torch.float16 else 0
    assert ((grad.cpu().double() - expected_grad).abs() <= loss * scale + floor).all()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 4, 31, 33, 129])
def test_against_float64(device, dtype, rows):
    for width in SIZES:
        check(code(rows, width, dtype, device), 0.1)


@pytest.mark.parametrize("rho", [1e-4, 0.05, 0.5, 0.999])
def test_wished_activities(device, rho):
    check(code(70, 40, device=device), rho)


def test_hand_computed(device):
    h = torch.tensor([[0.2, 0.5], [0.4, 0.3]], dtype=torch.float64, device=device)
    kl = functional.kl_sparsity(h, 0.25)
    means = torch.tensor([0.3, 0.4], dtype=torch.float64)
    rho = torch.full((2,), 0.25, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(rho), torch.distributions.Bernoulli(means)
    ).sum()
    torch.testing.assert_close(kl.cpu(), expected)


@needs_kernels
def test_small_where_the_means_are_right(device):
    """The divergence is then a small difference of larger numbers."""
    h = torch.full((8, 50), 0.0503, device=device)
    h[:, ::2] = 0.0497
    exact = kl_sparsity_reference(h.cpu().double(), 0.05).item()
    assert abs(functional.kl_sparsity(h, 0.05).item() - exact) < 1e-3 * exact


def test_not_clamped(device):
    h = torch.tensor([[0.0, 0.5], [0.0, 0.5]], device=device, requires_grad=True)
    kl = functional.kl_sparsity(h, 0.1)
    assert kl == torch.inf
    (grad,) = torch.autograd.grad(kl, h)
    assert (grad[:, 0] == -torch.inf).all() and grad[:, 1].isfinite().all()
    assert functional.kl_sparsity(1 - h, 0.1) == torch.inf
    assert functional.kl_sparsity(h + torch.nan, 0.1).isnan()


@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (0, 0)])
def test_empty(device, shape):
    h = torch.zeros(shape, device=device, requires_grad=True)
    kl = functional.kl_sparsity(h, 0.1)
    assert kl == 0 if shape[1] == 0 else kl.isnan()
    assert torch.autograd.grad(kl, h)[0].shape == shape


@needs_kernels
def test_strided_input(device):
    h = code(37, 19, device=device)
    expected = functional.kl_sparsity(h, 0.2)
    for layout in (
        h.t().contiguous().t(),
        torch.stack([h, h], 2)[:, :, 1],
        torch.cat([h, h], 1)[:, :19],
    ):
        assert torch.equal(functional.kl_sparsity(layout, 0.2), expected)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    h = code(333, 517, dtype).requires_grad_()
    results = []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        kl = functional.kl_sparsity(h, 0.1)
        results.append((kl, torch.autograd.grad(kl, h)[0]))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0]) and torch.equal(results[0][1], other[1])


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_means_are_exact(device, dtype):
    """A sum of 5,000 numbers in 16 bits would stop growing."""
    h = torch.full((5000, 3), 0.25, dtype=dtype, device=device)
    assert functional.kl_sparsity(h, 0.25).abs() < 1e-7


def test_many_rows_lose_no_digits(device):
    h = code(20_000, 3, device=device)
    exact = kl_sparsity_reference(h.cpu().double(), 0.01)
    torch.testing.assert_close(
        functional.kl_sparsity(h, 0.01).cpu().double(), exact, rtol=1e-6, atol=0
    )


def test_gradcheck(device):
    h = code(5, 7, torch.float64, device).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: functional.kl_sparsity(h, 0.1), h)


def test_the_gradient_of_a_leaf_has_memory_of_its_own(device):
    """The op hands down one row, expanded; an optimizer must not see that."""
    h = code(5, 7, device=device).requires_grad_()
    functional.kl_sparsity(h, 0.1).backward()
    assert h.grad.is_contiguous()
    h.grad[0, 0] = 99
    assert h.grad[1, 0] != 99


def test_a_mean_outside_the_unit_interval():
    h = torch.full((4, 3), 0.5)
    h[:, 2] = 1.5
    with pytest.raises(ValueError, match=r"column means in \[0, 1\], but got 1.5 in column 2"):
        functional.kl_sparsity(h, 0.1)
    with pytest.raises(ValueError, match=r"column means in \[0, 1\], but got -0.5 in column 2"):
        functional.kl_sparsity(1 - h, 0.1)
    h[:2, 2] = 0.25  # a value outside is not seen as long as the mean is inside: 0.875
    assert functional.kl_sparsity(h, 0.1).isfinite()


# ---- layer -------------------------------------------------------------------------------------


def test_layer():
    x = torch.randn(6, 5)
    layer = sv.nn.KLSparsity(2.0, rho=0.1)
    for result in (layer(x), layer.code_and_penalty(x)):
        assert torch.equal(result[0], torch.sigmoid(x))
        assert torch.equal(result[1], 2.0 * functional.kl_sparsity(torch.sigmoid(x), 0.1))
    layer.weight = 3.0
    assert torch.equal(layer(x)[1], 3.0 * functional.kl_sparsity(torch.sigmoid(x), 0.1))
    assert repr(layer) == "KLSparsity(weight=3.0, rho=0.1, activation='sigmoid')"
    raw = sv.nn.KLSparsity(1.0, 0.1, activation="identity")
    h = torch.sigmoid(x)
    assert torch.equal(raw(h)[0], h)
    with pytest.raises(ValueError, match="column means in"):
        raw(x * 10)


def test_layer_refuses_bad_options():
    for rho in (0.0, 1.0, -0.1, torch.nan):
        with pytest.raises(ValueError, match=r"KLSparsity\(\): expected rho in \(0, 1\)"):
            sv.nn.KLSparsity(1.0, rho)
    with pytest.raises(ValueError, match="weight to be finite and >= 0"):
        sv.nn.KLSparsity(-1.0, 0.1)
    with pytest.raises(ValueError, match="activation to be one of"):
        sv.nn.KLSparsity(1.0, 0.1, activation="gelu")


def test_training_moves_the_means_to_rho():
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 16)
    layer = sv.nn.KLSparsity(1.0, rho=0.2)
    x = torch.randn(200, 8)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        layer(linear(x))[1].backward()
        optimizer.step()
    assert (layer(linear(x))[0].mean(0) - 0.2).abs().max() < 0.01
