"""poisson_nll against torch's distribution in float64: values, gradients, digits, support."""

from __future__ import annotations

import math

import pytest
import torch

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.functional import poisson_nll
from sparsevae_ext.ops.poisson_nll import poisson_nll_reference

SIZES = [(1, 1), (3, 31), (2, 33), (5, 129), (17, 3), (3, 1271), (300, 1300)]


def make(n_rows, n_cols, dtype=torch.float64, density=0.3):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(n_rows, n_cols, generator=generator, dtype=torch.float64) < density
    x = kept * torch.randint(1, 300, (n_rows, n_cols), generator=generator).double()
    log_rate = torch.randn(n_rows, n_cols, generator=generator, dtype=torch.float64) * 3
    return log_rate.to(dtype), x


def dense_nll(log_rate, x):
    wide = log_rate.double()
    return (wide.exp() - x * wide + torch.lgamma(x + 1)).sum(dim=1)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("function", [poisson_nll, poisson_nll_reference])
def test_value_and_gradient_equal_the_dense_definition(function, shape, index_dtype, device):
    log_rate, x = (t.to(device) for t in make(*shape))
    x[shape[0] // 2] = 0
    x[0, 0] = 1
    batch = CSRBatch.from_dense(x)
    target = CSRBatch(
        batch.crow.to(index_dtype), batch.col.to(index_dtype), batch.values, batch.shape
    )
    log_rate.requires_grad_()
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)
    nll, expected = function(log_rate, target, "none"), dense_nll(log_rate, x)
    torch.testing.assert_close(nll, expected)
    (grad,) = torch.autograd.grad((nll * upstream).sum(), log_rate)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), log_rate)
    torch.testing.assert_close(grad, wanted)


def test_it_is_torchs_poisson():
    log_rate, x = make(4, 50)
    expected = -torch.distributions.Poisson(log_rate.exp()).log_prob(x).sum(1)
    torch.testing.assert_close(poisson_nll(log_rate, CSRBatch.from_dense(x), "none"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_log_rates_are_computed_in_float32(dtype, device):
    log_rate, x = (t.to(device) for t in make(40, 7001, density=0.02))
    log_rate = log_rate.to(dtype).requires_grad_()
    nll = poisson_nll(log_rate, CSRBatch.from_dense(x.float()), "none")
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), dense_nll(log_rate, x), rtol=1e-6, atol=0)
    nll.sum().backward()
    exact = torch.exp(log_rate.detach().double()) - x
    assert log_rate.grad.dtype == dtype
    # One rounding of the difference, not the difference of two rounded parts.
    torch.testing.assert_close(log_rate.grad, exact.to(dtype), rtol=1e-2, atol=1e-5)


def test_large_counts_keep_their_digits():
    # e^l, x l and lgamma(x + 1) are about 1e7 here, and what is left of them about 8.
    x = torch.tensor([[1e6, 0.0, 12345.0, 999999.5, 300.0]])
    log_rate = torch.where(x > 0, x.clamp(min=1).log() + 1e-3, -3.0)
    target = CSRBatch.from_dense(x)
    expected = dense_nll(log_rate, x.double())
    torch.testing.assert_close(
        poisson_nll(log_rate, target, "none").double(), expected, rtol=1e-2, atol=0
    )


def test_extreme_log_rates():
    inf = math.inf
    log_rate = torch.tensor([[-80.0, 80.0], [-inf, 0.0], [100.0, 0.0], [-inf, 0.0]])
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    log_rate.requires_grad_()
    nll = poisson_nll(log_rate, CSRBatch.from_dense(x), "none")
    expected = dense_nll(log_rate[0:1].detach(), x[0:1].double()).float()
    torch.testing.assert_close(nll[0:1], expected)
    assert nll[1] == 1  # a rate of 0 and nothing seen costs nothing
    assert nll[2] == inf  # exp(100) is beyond float32
    assert nll[3] == inf  # an impossible count
    nll.sum().backward()
    assert log_rate.grad[1].tolist() == [0.0, 0.0]
    assert log_rate.grad[2, 0] == inf and log_rate.grad[3, 0] == -1


def test_a_stored_zero_multiplies():
    target = CSRBatch(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([0.0]), (1, 2))
    torch.testing.assert_close(
        poisson_nll(torch.tensor([[1.0, 0.0]]), target), torch.tensor(math.e + 1)
    )
    assert poisson_nll(torch.tensor([[-math.inf, 0.0]]), target).isnan()


def test_unsorted_and_duplicate_columns():
    log_rate = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([3.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    target = CSRBatch(torch.tensor([0, 4]), torch.tensor([3, 1, 3, 0]), values, (1, 4))
    nll = poisson_nll(log_rate, target)
    x = target.to_dense()
    factorials = torch.lgamma(values + 1).sum() - torch.lgamma(x + 1).sum()
    torch.testing.assert_close(nll, dense_nll(log_rate, x).mean() + factorials)
    (grad,) = torch.autograd.grad(nll, log_rate)
    torch.testing.assert_close(grad, torch.exp(log_rate.detach()) - x)


@pytest.mark.parametrize("bad", [-0.5, -1.0, math.nan])
def test_values_outside_the_support(bad):
    target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, bad]]))
    log_rate = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"expected non-negative counts, but got .* at position 1"):
        poisson_nll(log_rate, target)
    nll = poisson_nll(log_rate, target, "none", validate_args=False)
    assert nll.shape == (1,)
