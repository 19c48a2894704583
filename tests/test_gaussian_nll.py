"""gaussian_nll and squared_error against dense float64: values, gradients, digits."""

from __future__ import annotations

import math

import pytest
import torch

from sparsevae_ext.data import CSRBatch
from sparsevae_ext.ops.gaussian_nll import gaussian_nll, gaussian_nll_reference, squared_error

SIZES = [(1, 1), (3, 31), (2, 33), (5, 129), (17, 3), (3, 1271), (300, 1300)]
LOGVARS = ["none", "shared", "rows"]


def make(n_rows, n_cols, kind="none", density=0.3, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    kept = torch.rand(n_rows, n_cols, generator=generator).to(device) < density
    x = draw(n_rows, n_cols) * 2 * kept
    logvar = {"none": None, "shared": draw(n_cols), "rows": draw(n_rows, n_cols)}[kind]
    return draw(n_rows, n_cols), x, logvar


def dense_nll(mean, x, logvar):
    v = torch.zeros_like(mean) if logvar is None else logvar
    spread = torch.distributions.Normal(mean.double(), torch.exp(0.5 * v.double()))
    return -spread.log_prob(x.double()).sum(dim=1)


@pytest.mark.parametrize("kind", LOGVARS)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("function", [gaussian_nll, gaussian_nll_reference])
def test_value_and_gradients_equal_the_dense_definition(function, shape, kind, device):
    mean, x, logvar = make(*shape, kind, device=device)
    x[shape[0] // 2] = 0
    free = [mean] if logvar is None else [mean, logvar]
    for tensor in free:
        tensor.requires_grad_()
    upstream = torch.randn(shape[0], dtype=torch.float64, device=device)
    nll = function(mean, CSRBatch.from_dense(x), logvar, "none")
    expected = dense_nll(mean, x, logvar)
    torch.testing.assert_close(nll, expected)
    grads = torch.autograd.grad((nll * upstream).sum(), free, retain_graph=True)
    wanted = torch.autograd.grad((expected * upstream).sum(), free)
    torch.testing.assert_close(grads, wanted)
    # Each alone.
    for tensor, grad in zip(free, grads, strict=True):
        (alone,) = torch.autograd.grad((nll * upstream).sum(), tensor, retain_graph=True)
        assert torch.equal(alone, grad)


@pytest.mark.parametrize("shape", SIZES)
def test_squared_error_is_the_dense_one(shape, device):
    mean, x, _ = make(*shape, device=device)
    mean.requires_grad_()
    error = squared_error(mean, CSRBatch.from_dense(x), "none")
    expected = (x - mean).square().sum(dim=1)
    torch.testing.assert_close(error, expected)
    (grad,) = torch.autograd.grad(error.sum(), mean)
    torch.testing.assert_close(grad, 2 * (mean - x).detach())
    torch.testing.assert_close(squared_error(mean, CSRBatch.from_dense(x)), expected.mean())


@pytest.mark.parametrize("kind", LOGVARS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_means_are_computed_in_float32(dtype, kind, device):
    mean, x, logvar = make(40, 7001, kind, density=0.02, device=device)
    mean = mean.to(dtype).requires_grad_()
    logvar = None if logvar is None else logvar.to(dtype).requires_grad_()
    x = x.float()
    nll = gaussian_nll(mean, CSRBatch.from_dense(x), logvar, "none")
    assert nll.dtype == torch.float32
    exact = [mean.detach().double().requires_grad_()]
    exact += [] if logvar is None else [logvar.detach().double().requires_grad_()]
    wanted = dense_nll(exact[0], x, exact[1] if exact[1:] else None)
    torch.testing.assert_close(nll.double(), wanted, rtol=2e-6, atol=0)
    nll.sum().backward()
    wanted.sum().backward()
    for narrow, wide in zip([mean, logvar], exact, strict=False):
        assert narrow.grad.dtype == dtype
        torch.testing.assert_close(narrow.grad, wide.grad.to(dtype), rtol=1e-2, atol=1e-5)


def test_a_perfect_fit_of_large_values_costs_nothing():
    # sum m^2 - 2 sum x m + sum x^2 in float32 would be off by thousands here.
    x = torch.zeros(3, 2000)
    x[:, ::7] = 1000.0 + torch.arange(286) * 0.37
    target = CSRBatch.from_dense(x)
    assert squared_error(x.clone(), target, "none").tolist() == [0.0, 0.0, 0.0]
    near = x + 0.01 * (x != 0)
    expected = (x.double() - near.double()).square().sum(dim=1)
    torch.testing.assert_close(
        squared_error(near, target, "none").double(), expected, rtol=1e-5, atol=0
    )


def test_constant_and_variance_terms():
    target = CSRBatch.from_dense(torch.zeros(2, 5))
    mean = torch.zeros(2, 5)
    at_zero = 2.5 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_nll(mean, target), torch.tensor(at_zero))
    wide = gaussian_nll(mean, target, torch.full((5,), 80.0))
    torch.testing.assert_close(wide, torch.tensor(at_zero + 200.0))


def test_extreme_log_variances_are_not_clamped():
    x = torch.tensor([[1.0, 0.0]])
    target = CSRBatch.from_dense(x)
    mean = torch.tensor([[0.0, 0.5]])
    for v in (-80.0, 80.0, 200.0):
        logvar = torch.tensor([v, 0.5])
        expected = dense_nll(mean.double(), x, logvar.double()).mean().float()
        torch.testing.assert_close(gaussian_nll(mean, target, logvar), expected)
    assert gaussian_nll(mean + 3, target, torch.tensor([-200.0, 0.0])).isfinite().logical_not()


def test_unsorted_columns_and_int_values():
    mean = torch.randn(1, 4, dtype=torch.float64)
    target = CSRBatch(
        torch.tensor([0, 3]), torch.tensor([3, 1, 0]), torch.tensor([1, 2, 3]), (1, 4)
    )
    x = torch.tensor([[3.0, 2.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(gaussian_nll(mean, target), dense_nll(mean, x, None).mean())


def test_nan_values():
    target = CSRBatch.from_dense(torch.tensor([[1.0, math.nan]]))
    for function in (gaussian_nll, squared_error):
        with pytest.raises(ValueError, match=r"that are numbers, but got nan at position 1"):
            function(torch.zeros(1, 2), target)
        assert function(torch.zeros(1, 2), target, validate_args=False).isnan()


@pytest.mark.parametrize(
    ("error", "text", "logvar"),
    [
        (RuntimeError, r"logvar of shape \(2, 3\) or \(3,\), but got \(2,\)", torch.zeros(2)),
        (RuntimeError, r"but got \(3, 2\)", torch.zeros(3, 2)),
        (RuntimeError, r"but got \(\)", torch.zeros(())),
        (RuntimeError, "Float and Double", torch.zeros(3).double()),
        (RuntimeError, "logvar on cpu, but got meta", torch.zeros(3, device="meta")),
        (TypeError, "logvar to be a torch.Tensor, but got float", 0.5),
    ],
)
def test_bad_logvar(error, text, logvar):
    target = CSRBatch.from_dense(torch.eye(2, 3))
    with pytest.raises(error, match=text):
        gaussian_nll(torch.zeros(2, 3), target, logvar)
