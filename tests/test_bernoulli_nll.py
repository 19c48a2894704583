"""bernoulli_nll against torch's dense loss in float64: values, gradients, digits, support."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.ops.bernoulli_nll import bernoulli_nll, bernoulli_nll_reference

SIZES = [(1, 1), (3, 31), (2, 33), (5, 129), (17, 3), (3, 1271), (300, 1300)]


def make(n_rows, n_cols, dtype=torch.float64, density=0.3, binary=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n_rows, n_cols, generator=generator, dtype=torch.float64)
    x = (x < density) * (1.0 if binary else x / density)
    logits = torch.randn(n_rows, n_cols, generator=generator, dtype=torch.float64) * 3
    return logits.to(dtype), x.double()


def dense_nll(logits, x):
    return F.binary_cross_entropy_with_logits(logits.double(), x, reduction="none").sum(dim=1)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("function", [bernoulli_nll, bernoulli_nll_reference])
def test_value_and_gradient_equal_the_dense_definition(function, shape, index_dtype, device):
    logits, x = (t.to(device) for t in make(*shape))
    x[shape[0] // 2] = 0
    x[0, 0] = 1
    batch = CSRBatch.from_dense(x)
    target = CSRBatch(
        batch.crow.to(index_dtype), batch.col.to(index_dtype), batch.values, batch.shape
    )
    logits.requires_grad_()
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)
    nll, expected = function(logits, target, "none"), dense_nll(logits, x)
    torch.testing.assert_close(nll, expected)
    (grad,) = torch.autograd.grad((nll * upstream).sum(), logits)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), logits)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_logits_are_computed_in_float32(dtype, device):
    logits, x = (t.to(device) for t in make(40, 7001, density=0.02))
    logits = logits.to(dtype).requires_grad_()
    nll = bernoulli_nll(logits, CSRBatch.from_dense(x.float()), "none")
    assert nll.dtype == torch.float32
    torch.testing.assert_close(
        nll.double(), dense_nll(logits, x.float().double()), rtol=1e-6, atol=0
    )
    nll.sum().backward()
    exact = torch.sigmoid(logits.detach().double()) - x
    assert logits.grad.dtype == dtype
    # One rounding of the difference, not the difference of two rounded parts.
    torch.testing.assert_close(logits.grad, exact.to(dtype), rtol=1e-2, atol=1e-6)


def test_confident_logits_keep_their_digits():
    # softplus(l) - l would leave nothing of e^-l here.
    logits = torch.tensor([[25.0, -30.0, 90.0, -1000.0]])
    target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    nll = bernoulli_nll(logits, target)
    expected = math.exp(-25.0) + math.exp(-30.0)
    assert abs(nll.item() - expected) < 1e-2 * expected


def test_wrong_and_certain_costs_the_logit():
    logits = torch.tensor([[1000.0, -1000.0, 0.0]])
    target = CSRBatch.from_dense(torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(bernoulli_nll(logits, target), torch.tensor(2000 + math.log(2)))


def test_gradient_at_zero_is_a_half():
    for function in (bernoulli_nll, bernoulli_nll_reference):
        logits = torch.zeros(1, 2, requires_grad=True)
        function(logits, CSRBatch.from_dense(torch.tensor([[1.0, 0.0]]))).backward()
        assert logits.grad.tolist() == [[-0.5, 0.5]]


def test_unsorted_and_duplicate_columns_add_up():
    logits = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([0.25, 0.5, 0.5, 1.0], dtype=torch.float64)
    target = CSRBatch(torch.tensor([0, 4]), torch.tensor([3, 1, 3, 0]), values, (1, 4))
    nll = bernoulli_nll(logits, target)
    torch.testing.assert_close(nll, dense_nll(logits, target.to_dense()).mean())
    (grad,) = torch.autograd.grad(nll, logits)
    torch.testing.assert_close(grad, torch.sigmoid(logits.detach()) - target.to_dense())


@pytest.mark.parametrize("bad", [-0.5, 1.5, 3.0, math.nan, math.inf])
def test_values_outside_the_unit_interval(bad):
    target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, bad]]))
    logits = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], but got .* at position 1"):
        bernoulli_nll(logits, target)
    with pytest.raises(ValueError, match="position 1"):
        bernoulli_nll(logits, target, validate_args=True)
    # At logit 0 every value costs log 2, whatever it is; nan and inf stay themselves.
    nll = bernoulli_nll(logits, target, validate_args=False)
    assert nll.isnan() if not math.isfinite(bad) else abs(nll.item() - 3 * math.log(2)) < 1e-6
