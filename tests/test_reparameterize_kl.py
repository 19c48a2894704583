"""reparameterize_kl against the formula, torch.distributions and finite differences."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from sparsevae_ext import _load
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
        torch.testing.assert_close(got, wanted)


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


def test_extreme_logvar_is_as_in_torch():
    inf, nan = float("inf"), float("nan")
    logvar = torch.tensor([[-inf], [-200.0], [-104.0], [0.0], [89.0], [178.0], [200.0], [nan]])
    mu, eps = torch.ones_like(logvar), torch.ones_like(logvar)
    for got, wanted in zip(
        reparameterize_kl(mu, logvar, eps=eps),
        reparameterize_kl_reference(mu, logvar, eps=eps),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, equal_nan=True)
    assert reparameterize_kl(mu, logvar, eps=eps)[1][4:7].isinf().all()
    bounded = reparameterize_kl(mu, logvar, eps=eps, logvar_max=4.0)
    torch.testing.assert_close(bounded[1][4:7], 0.5 * (torch.tensor(4.0).exp() - 4.0).expand(3))
    assert bounded[1][-1].isnan() and bounded[0][-1].isnan()


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


# ---- the options --------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "samples": {"n_samples": 3},
    "one sample": {"n_samples": 1},
    "free bits": {"free_bits": 0.4},
    "bound": {"logvar_max": 0.3},
    "all": {"n_samples": 2, "free_bits": 0.4, "logvar_max": 0.3},
}
OPTION_CASES = [
    pytest.param(options, id=name, marks=[pytest.mark.isa] if name == "all" else [])
    for name, options in OPTIONS.items()
]
WIDTHS = (1, 3, 17, 31, 33, 129, 300)


def with_prior(options, width, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    prior = [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(2)]
    names = ("prior_mean", "prior_logvar")
    return options | {n: t.to(device, dtype) for n, t in zip(names, prior, strict=True)}


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("options", OPTION_CASES)
@pytest.mark.parametrize("width", WIDTHS)
def test_options_against_the_reference(width, options, prior, device):
    """Values and all gradients, against the plain-torch twin in float64 with the same draw."""
    options = dict(options)
    seed = torch.tensor([3, -4], device=device)
    for dtype in (torch.float32, torch.float64):
        results = []
        for wide in (False, True):
            use = torch.float64 if wide else dtype
            mu, logvar, _ = (t.to(device, use).requires_grad_() for t in make(6, width, dtype))
            extra = with_prior(options, width, dtype, device) if prior else options
            extra = {
                k: v.to(use).requires_grad_() if torch.is_tensor(v) else v for k, v in extra.items()
            }
            op = reparameterize_kl_reference if wide else reparameterize_kl
            z, kl = op(mu, logvar, seed=seed, **extra)
            inputs = [mu, logvar, *(v for v in extra.values() if torch.is_tensor(v))]
            weights = torch.linspace(-1, 2, z.numel(), device=device, dtype=use).reshape(z.shape)
            total = (z * weights).sum() + (kl * torch.arange(6.0, device=device).to(use)).sum()
            results.append([z, kl, *torch.autograd.grad(total, inputs)])
        for got, wanted in zip(*results, strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_prior_is_that_of_torch_distributions():
    mu, logvar, eps = make(4, 9)
    options = with_prior({}, 9, torch.float64)
    kl = reparameterize_kl(mu, logvar, eps=eps, **options)[1]
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(options["prior_mean"], (options["prior_logvar"] / 2).exp())
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, prior).sum(1))
    alone = reparameterize_kl(mu, logvar, eps=eps, prior_mean=options["prior_mean"])[1]
    shifted = reparameterize_kl(mu - options["prior_mean"], logvar, eps=eps)[1]
    torch.testing.assert_close(alone, shifted)


def test_free_bits_is_a_floor_under_each_dimensions_mean(device):
    mu, logvar, eps = (t.to(device).float() for t in make(40, 12))
    mu[:, ::2] *= 0.01
    logvar[:, ::2] *= 0.01
    terms = 0.5 * (mu.double() ** 2 + torch.expm1(logvar.double()) - logvar.double())
    mu.requires_grad_(), logvar.requires_grad_()
    kl = reparameterize_kl(mu, logvar, eps=eps, free_bits=0.1)[1]
    torch.testing.assert_close(kl.mean().double(), terms.mean(0).clamp(min=0.1).sum())
    grads = torch.autograd.grad(kl.sum(), (mu, logvar))
    assert all((g[:, ::2] == 0).all() and (g[:, 1::2] != 0).all() for g in grads)
    # A nan must not vanish behind the constant.
    broken = mu.detach().clone()
    broken[3, 0] = float("nan")
    assert reparameterize_kl(broken, logvar, eps=eps, free_bits=0.1)[1][3].isnan()


@pytest.mark.parametrize("options", [{}, {"n_samples": 2}, {"free_bits": 0.3, "logvar_max": 0.4}])
def test_gradcheck_of_every_input(options):
    mu, logvar, _ = (t.requires_grad_() for t in make(3, 5))
    shape = (2, 3, 5) if "n_samples" in options else (3, 5)
    eps = torch.randn(shape, dtype=torch.float64).requires_grad_()
    mean, logv = (t.requires_grad_() for t in with_prior({}, 5, torch.float64).values())

    def op(m, v, e, pm, pv):
        return reparameterize_kl(m, v, eps=e, prior_mean=pm, prior_logvar=pv, **options)

    inputs = (mu, logvar, eps, mean, logv)
    assert torch.autograd.gradcheck(op, inputs)
    for i, kept in enumerate(inputs):
        alone = [t if j == i else t.detach() for j, t in enumerate(inputs)]
        z, kl = op(*alone)
        together_z, together_kl = op(*inputs)
        torch.testing.assert_close(
            torch.autograd.grad(kl.sum() + 0.5 * z.sum(), kept)[0],
            torch.autograd.grad(together_kl.sum() + 0.5 * together_z.sum(), kept)[0],
        )


# ---- the draw -----------------------------------------------------------------------------------


def test_a_million_draws_are_standard_normal(device):
    zeros = torch.zeros(1000, 1000, device=device)
    z = reparameterize_kl(zeros, zeros, seed=12345)[0].cpu().double().flatten()
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(z[::4].numpy(), "norm").pvalue > 1e-3
    # Neighbours, which share a block or a radius, are independent, and so are their squares.
    for lag in (1, 2, 3, 4, 1000):
        assert abs((z[:-lag] * z[lag:]).mean()) < 4 / n**0.5
        assert abs(((z[:-lag] ** 2 - 1) * (z[lag:] ** 2 - 1)).mean()) < 4 * 2 / n**0.5
    assert z.unique().numel() > 0.9 * n


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_is_a_draw(dtype):
    zeros = torch.zeros(37, 53, dtype=dtype)

    def draw(seed, **options):
        return reparameterize_kl(zeros, zeros, seed=seed, **options)[0]

    first = draw(7)
    assert torch.equal(first, draw(torch.tensor([7, 0])))
    assert torch.equal(draw(-1), draw(2**64 - 1))
    others = [
        8,
        -7,
        7 + 2**32,
        torch.tensor([7, 1]),
        torch.tensor([7, 2**32]),
        torch.tensor([0, 7]),
    ]
    for other in others:
        assert abs((first * draw(other)).mean()) < 0.1
    assert torch.equal(first, draw(7, n_samples=3)[0])
    reference = reparameterize_kl_reference(zeros, zeros, seed=7)[0]
    torch.testing.assert_close(first, reference, rtol=1e-6, atol=1e-6)
    # An element's draw depends on its position alone, not on how much is drawn around it.
    assert torch.equal(first[:5], reparameterize_kl(zeros[:5], zeros[:5], seed=7)[0])


def test_the_gradient_uses_the_returned_draw():
    mu, logvar, _ = (t.requires_grad_() for t in make(50, 20))
    z, _ = reparameterize_kl(mu, logvar)
    grad = torch.autograd.grad(z.sum(), logvar)[0]
    torch.testing.assert_close(grad, 0.5 * (z - mu))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(500, 33), (64, 513), (7, 5000)])
def test_same_bits_with_any_number_of_threads(dtype, shape):
    mu, logvar, _ = make(*shape, dtype=dtype)
    mu.requires_grad_(), logvar.requires_grad_()
    results = []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        z, kl = reparameterize_kl(mu, logvar, seed=3, n_samples=2, free_bits=0.5)
        results.append((z, kl, *torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.isa
def test_equal_elements_give_equal_results_wherever_they_lie():
    """In a vector or in what is left of a row: nothing but the position's draw may differ."""
    for width in (1, 5, 16, 17, 47, 300):
        mu, logvar = torch.full((3, width), 0.3), torch.full((3, width), -0.7)
        mu.requires_grad_(), logvar.requires_grad_()
        z, kl = reparameterize_kl(mu, logvar, eps=torch.ones(3, width))
        grads = torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))
        for result in (z, *grads):
            assert (result == result[0, 0]).all(), width


def ulps(got, exact):
    """Of float32 results, in units in the last place of the exact ones."""
    unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=2.0**-126))) - 23)
    return ((got.double() - exact).abs() / unit).max().item()


@pytest.mark.isa
def test_exponentials_are_accurate_over_their_range():
    """exp and expm1 alone: z = exp(v/2), and the gradient of kl is expm1(v)/2."""
    if _load.C is None:
        pytest.skip("autograd's own gradient of expm1 cancels near zero")
    for low, high in ((-88.0, 88.0), (-1.0, 1.0), (-1e-3, 1e-3), (-210.0, -170.0)):
        logvar = torch.linspace(low, high, 100_001).reshape(1, -1).requires_grad_()
        z, kl = reparameterize_kl(torch.zeros_like(logvar), logvar, eps=torch.ones_like(logvar))
        assert ulps(z.detach(), torch.exp(logvar.detach().double() / 2)) <= 2, (low, high)
        slope = torch.autograd.grad(kl.sum(), logvar)[0]
        # From exp(v/2) - 1, which costs it one rounding more than an expm1 of its own.
        assert ulps(slope, 0.5 * torch.expm1(logvar.detach().double())) <= 3, (low, high)


# ---- bad input ----------------------------------------------------------------------------------


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


Z = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "seed or eps, but got both", {"seed": 1, "eps": Z}),
        (TypeError, "seed to be an int or a torch.Tensor, but got str", {"seed": "1"}),
        (TypeError, "seed to be an int", {"seed": True}),
        (RuntimeError, r"seed .*shape \(2,\)", {"seed": torch.zeros(3, dtype=torch.int64)}),
        (RuntimeError, "int64", {"seed": torch.zeros(2)}),
        (
            RuntimeError,
            "expected seed on",
            {"seed": torch.zeros(2, dtype=torch.int64, device="meta")},
        ),
        (ValueError, "n_samples >= 1, but got 0", {"n_samples": 0}),
        (TypeError, "n_samples to be an int, but got float", {"n_samples": 2.0}),
        (RuntimeError, r"eps of shape \(4, 2, 3\), but got \(2, 3\)", {"n_samples": 4, "eps": Z}),
        (RuntimeError, r"prior_mean of shape \(3,\)", {"prior_mean": Z}),
        (TypeError, "prior_logvar to be a torch.Tensor", {"prior_logvar": [0.0] * 3}),
        (ValueError, "free_bits >= 0", {"free_bits": -0.1}),
        (ValueError, "free_bits >= 0 and finite", {"free_bits": float("inf")}),
        (TypeError, "free_bits to be a number", {"free_bits": "1"}),
        (ValueError, "logvar_max", {"logvar_max": float("nan")}),
        (TypeError, "logvar_max to be a number", {"logvar_max": Z}),
    ],
)
def test_bad_options(error, text, options):
    with pytest.raises(error, match=text):
        reparameterize_kl(Z, Z, **options)
