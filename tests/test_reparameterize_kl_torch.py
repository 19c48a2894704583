"""reparameterize_kl under torch's machinery: opcheck, compile, func, vmap, refusals, the layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.func import grad, vmap

from sparsevae_ext import _load
from sparsevae_ext.nn import ReparameterizeKL
from sparsevae_ext.ops.reparameterize_kl import reparameterize_kl, reparameterize_kl_reference

needs_object = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
SEED = torch.tensor([11, 12])
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def make(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def loss(mu, logvar, **options):
    z, kl = reparameterize_kl(mu, logvar, **options)
    return (z * torch.linspace(0, 1, z.numel()).reshape(z.shape)).sum() + kl.sum()


@needs_object
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    mu, logvar = make(5, 7, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    prior = [torch.randn(7, dtype=wide) for _ in range(2)]
    counted = torch.arange(7) % 2 == 0
    ops = torch.ops.sparsevae_ext
    eps = torch.randn(2, 5, 7, dtype=wide)
    plain, full = (SEED, None, None, None, None), (None, eps, *prior, counted)
    torch.library.opcheck(ops.reparameterize_kl, (mu, logvar, *plain, 0.0, None, None, 5))
    torch.library.opcheck(ops.reparameterize_kl, (mu, logvar, *full, 0.1, 0.5, 2, 5))
    m, v = mu.detach(), logvar.detach()
    g, k = torch.randn(2, 5, 7).to(dtype), torch.randn(5, dtype=wide)
    torch.library.opcheck(
        ops.reparameterize_kl_backward, (g, k, m, v, *full, 0.5, 2, 5, True, False)
    )
    torch.library.opcheck(
        ops.reparameterize_kl_backward, (None, k, m, v, *plain, None, None, 5, True, True)
    )
    torch.library.opcheck(ops.reparameterize_kl_counted, (m, v, *prior, 0.1, None))


@needs_object
def test_the_bare_op_differentiates_like_the_function():
    mu, logvar = make(5, 7)
    z, kl = torch.ops.sparsevae_ext.reparameterize_kl.default(
        mu, logvar, SEED, None, None, None, None, 0.0, None, None, 5
    )
    bare = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))
    z, kl = reparameterize_kl(mu, logvar, seed=SEED)
    for a, b in zip(bare, torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend):
    torch._dynamo.reset()
    mu, logvar = make(6, 9)
    options = {"n_samples": 2, "free_bits": 0.3, "logvar_max": 0.5, "prior_mean": torch.randn(9)}

    def program(m, v):
        return loss(m, v, seed=SEED, **options)

    compiled = torch.compile(program, fullgraph=True, backend=backend)
    for f in (program, compiled):
        torch.testing.assert_close(f(mu, logvar), program(mu, logvar))
    got, wanted = (torch.autograd.grad(f(mu, logvar), (mu, logvar)) for f in (compiled, program))
    torch.testing.assert_close(got, wanted)


def test_two_compiled_draws_differ_and_the_gradient_uses_the_returned_one():
    torch._dynamo.reset()
    mu, logvar = make(6, 9)

    @torch.compile(fullgraph=True)
    def program(m, v):
        return reparameterize_kl(m, v)[0], reparameterize_kl(m, v)[0]

    first, second = program(mu, logvar)
    third, _ = program(mu, logvar)
    assert not torch.equal(first, second) and not torch.equal(first, third)
    for z, kept in ((first, True), (second, False)):
        slope = torch.autograd.grad(z.sum(), logvar, retain_graph=kept)[0]
        torch.testing.assert_close(slope, 0.5 * (z - mu))


def test_func_grad():
    mu, logvar = (t.detach() for t in make(4, 5))
    got = grad(lambda m, v: loss(m, v, seed=SEED), argnums=(0, 1))(mu, logvar)
    mu.requires_grad_(), logvar.requires_grad_()
    wanted = torch.autograd.grad(loss(mu, logvar, seed=SEED), (mu, logvar))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("options", [{}, {"n_samples": 2}, {"free_bits": 0.3}, {"n_samples": 1}])
@pytest.mark.parametrize("in_dims", [(0, 0), (2, 1), (0, None)])
def test_vmap_is_a_loop(options, in_dims):
    """Values and gradients, with a seed that is shared: every element gets the same draw."""
    torch.manual_seed(1)
    batched = [torch.randn(3, 4, 5), torch.randn(3, 4, 5)]
    if in_dims[1] is None:
        batched[1] = batched[1][0]

    def both(m, v):
        return reparameterize_kl(m, v, seed=SEED, **options)

    def slopes(m, v):
        return grad(lambda a, b: loss(a, b, seed=SEED, **options), argnums=(0, 1))(m, v)

    moved = [t if d is None else t.movedim(0, d) for t, d in zip(batched, in_dims, strict=True)]
    for f in (both, slopes):
        got = vmap(f, in_dims=in_dims)(*moved)
        one = [
            f(batched[0][i], batched[1] if in_dims[1] is None else batched[1][i]) for i in range(3)
        ]
        for g, w in zip(got, zip(*one, strict=True), strict=True):
            torch.testing.assert_close(g, torch.stack(w))


def test_vmap_over_noise_and_prior():
    mu, logvar = (t.detach() for t in make(4, 5))
    eps, mean = torch.randn(3, 4, 5), torch.randn(3, 5)
    got = vmap(lambda e: reparameterize_kl(mu, logvar, eps=e))(eps)
    torch.testing.assert_close(got[0][1], reparameterize_kl(mu, logvar, eps=eps[1])[0])
    got = vmap(lambda m: reparameterize_kl(mu, logvar, seed=SEED, prior_mean=m))(mean)
    for i in range(3):
        one = reparameterize_kl(mu, logvar, seed=SEED, prior_mean=mean[i])
        torch.testing.assert_close((got[0][i], got[1][i]), one)


def test_vmap_without_a_seed_follows_its_randomness():
    zeros = torch.zeros(3, 4, 5)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda m: reparameterize_kl(m, m)[0])(zeros)
    same = vmap(lambda m: reparameterize_kl(m, m)[0], randomness="same")(zeros)
    other = vmap(lambda m: reparameterize_kl(m, m)[0], randomness="different")(zeros)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(other[0], other[1])


def test_refusals():
    mu, logvar = make(4, 5)
    if _load.C is not None:
        slope = torch.autograd.grad(loss(mu, logvar, seed=SEED), mu, create_graph=True)[0]
        with pytest.raises(NotImplementedError, match=r"reparameterize_kl\(\): double backward"):
            slope.sum().backward()
        with pytest.raises(NotImplementedError):
            torch.func.jvp(
                lambda m: reparameterize_kl(m, logvar.detach(), seed=SEED),
                (mu.detach(),),
                (mu.detach(),),
            )


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        mu = torch.empty(4, 5, dtype=torch.bfloat16)
        z, kl = reparameterize_kl(mu, mu, n_samples=3)
    assert z.shape == (3, 4, 5) and z.dtype == torch.bfloat16
    assert kl.shape == (4,) and kl.dtype == torch.float32


def test_strided_inputs():
    mu, logvar = (t.detach() for t in make(5, 4))
    turned = [t.t().contiguous().t().requires_grad_() for t in (mu, logvar)]
    assert not turned[0].is_contiguous()
    plain = [t.requires_grad_() for t in (mu, logvar)]
    for a, b in zip(
        torch.autograd.grad(loss(*turned, seed=SEED), turned),
        torch.autograd.grad(loss(*plain, seed=SEED), plain),
        strict=True,
    ):
        assert torch.equal(a, b)
    z, _ = reparameterize_kl(*plain, seed=SEED)
    slope = torch.autograd.grad(z, plain[0], torch.ones(()).expand(5, 4))[0]
    assert (slope == 1).all()


def test_autocast_leaves_the_dtype_alone():
    mu, logvar = make(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, kl = reparameterize_kl(mu, logvar, seed=SEED)
    assert z.dtype == kl.dtype == torch.float32


# ---- the layer ----------------------------------------------------------------------------------


def test_the_layer_draws_in_training_only():
    mu, logvar = make(4, 5)
    layer = ReparameterizeKL(n_samples=2)
    z, kl = layer(mu, logvar)
    assert z.shape == (2, 4, 5) and not torch.equal(z, layer(mu, logvar)[0])
    layer.eval()
    mean, same = layer(mu, logvar)
    assert torch.equal(mean, mu.expand(2, 4, 5)) and torch.equal(kl, same)
    assert not torch.equal(layer(mu, logvar, sample=True)[0], mean)
    assert torch.equal(
        layer(mu, logvar, seed=3)[0], reparameterize_kl(mu, logvar, seed=3, n_samples=2)[0]
    )
    assert torch.equal(layer.train()(mu, logvar, sample=False)[0], mean)


def test_the_layer_passes_its_options_on():
    mu, logvar = make(4, 5)
    options = {
        "prior_mean": torch.randn(5),
        "prior_logvar": torch.randn(5),
        "free_bits": 0.3,
        "logvar_max": 0.5,
    }
    layer = ReparameterizeKL(**options)
    for got, wanted in zip(
        layer(mu, logvar, seed=1), reparameterize_kl(mu, logvar, seed=1, **options), strict=True
    ):
        assert torch.equal(got, wanted)
    assert set(layer.state_dict()) == {"prior_mean", "prior_logvar"} and not list(
        layer.parameters()
    )
    assert layer.to(torch.float64).prior_mean.dtype == torch.float64
    assert "free_bits=0.3" in repr(layer) and "prior of 5 dimensions" in repr(layer)
    assert repr(ReparameterizeKL()) == "ReparameterizeKL()"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.prior_mean, layer.prior_mean)


def test_the_reference_has_second_derivatives():
    mu, logvar = (t.detach().double().requires_grad_() for t in make(2, 3))
    assert torch.autograd.gradgradcheck(
        lambda m, v: reparameterize_kl_reference(m, v, seed=SEED), (mu, logvar)
    )
