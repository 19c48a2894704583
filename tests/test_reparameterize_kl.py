"""reparameterize_kl against the formula, torch.distributions and finite differences."""

from __future__ import annotations

import pytest
import torch

from sparsevae_ext.ops.reparameterize_kl import reparameterize_kl, reparameterize_kl_reference


def make(n_rows=5, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(n_rows, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    return tuple(t.to(dtype) for t in draw)


@pytest.mark.parametrize("width", [1, 31, 33, 200])
def test_equals_torch_distributions(width, device):
    mu, logvar, eps = (t.to(device) for t in make(width=width))
    z, kl = reparameterize_kl(mu, logvar, eps=eps)
    std = torch.exp(0.5 * logvar)
    posterior = torch.distributions.Normal(mu, std)
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(z, mu + eps * std)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, prior).sum(1))
    for got, wanted in zip(reparameterize_kl_reference(mu, logvar, eps=eps), (z, kl), strict=True):
        assert torch.equal(got, wanted)


def test_gradcheck():
    mu, logvar, eps = (t.requires_grad_() for t in make(3, 4))
    assert torch.autograd.gradcheck(lambda m: reparameterize_kl(m, logvar, eps=eps), (mu,))
    assert torch.autograd.gradcheck(lambda v: reparameterize_kl(mu, v, eps=eps), (logvar,))
    assert torch.autograd.gradcheck(
        lambda m, v, e: reparameterize_kl(m, v, eps=e), (mu, logvar, eps)
    )


def test_the_noise_is_standard_normal_and_new_each_time():
    mu = torch.full((400, 100), 3.0)
    logvar = torch.full((400, 100), 2 * torch.tensor(0.5).log().item())
    torch.manual_seed(0)
    first, _ = reparameterize_kl(mu, logvar)
    second, _ = reparameterize_kl(mu, logvar)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, reparameterize_kl(mu, logvar)[0])
    noise = (first - 3.0) / 0.5
    assert abs(noise.mean()) < 5 / 200  # 40,000 draws: five standard errors
    assert abs(noise.std() - 1) < 0.02


def test_divergence_is_accurate_next_to_the_prior():
    logvar = torch.full((1, 1), 1e-3)
    kl = reparameterize_kl(torch.zeros(1, 1), logvar, eps=torch.zeros(1, 1))[1]
    exact = 0.5 * (torch.expm1(logvar.double()) - logvar.double()).sum(1)
    torch.testing.assert_close(kl.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_is_computed_in_float32(dtype):
    mu, logvar, eps = make(dtype=dtype)
    z, kl = reparameterize_kl(mu, logvar, eps=eps)
    wide_z, wide_kl = reparameterize_kl(mu.float(), logvar.float(), eps=eps.float())
    assert z.dtype == dtype
    assert torch.equal(z, wide_z.to(dtype))
    assert kl.dtype == torch.float32
    assert torch.equal(kl, wide_kl)


def test_huge_logvar_gives_infinity():
    kl = reparameterize_kl(torch.zeros(1, 1), torch.full((1, 1), 200.0))[1]
    assert kl.item() == float("inf")


def test_empty_batch():
    z, kl = reparameterize_kl(torch.zeros(0, 4), torch.zeros(0, 4))
    assert z.shape == (0, 4)
    assert kl.shape == (0,)


def test_compile_fullgraph_equals_eager():
    torch._dynamo.reset()
    mu, logvar, eps = make(dtype=torch.float32)
    compiled = torch.compile(reparameterize_kl, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(
        compiled(mu, logvar, eps=eps), reparameterize_kl(mu, logvar, eps=eps), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (RuntimeError, r"shape \(2, 3\), but got \(2, 4\)", ((2, 3), (2, 4), None)),
        (RuntimeError, r"eps of shape \(2, 3\), but got \(3,\)", ((2, 3), (2, 3), (3,))),
        (RuntimeError, r"\(B, Z\)", ((3,), (3,), None)),
    ],
)
def test_shape_errors(error, text, arguments):
    mu, logvar, eps = (None if shape is None else torch.zeros(shape) for shape in arguments)
    with pytest.raises(error, match=text):
        reparameterize_kl(mu, logvar, eps=eps)


def test_type_errors():
    zeros = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="expected logvar"):
        reparameterize_kl(zeros, [[0.0] * 3] * 2)
    with pytest.raises(NotImplementedError, match="reparameterize_kl"):
        reparameterize_kl(zeros.long(), zeros.long())
    with pytest.raises(RuntimeError, match="Float and Double"):
        reparameterize_kl(zeros, zeros.double())
    with pytest.raises(RuntimeError, match="meta"):
        reparameterize_kl(zeros, zeros.to("meta"))
