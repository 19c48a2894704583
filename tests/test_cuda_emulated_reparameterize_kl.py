"""The reparameterize_kl kernels of csrc/cuda, run on the CPU by the emulator in cuda_emu/."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build
from cuda_emu.cases_reparameterize_kl import DTYPES, Problem, check, check_counted, problem, run

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("width", (1, 3, 4, 17, 31, 33, 127, 128, 129, 600))
@pytest.mark.parametrize("n_samples", (None, 2))
def test_odd_widths(ops: Any, width: int, n_samples: int | None) -> None:
    check(ops, problem(3, width, n_samples=n_samples))
    check(ops, problem(3, width, n_samples=n_samples, options=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", (64, 129))
def test_types(ops: Any, dtype: torch.dtype, width: int) -> None:
    check(ops, problem(5, width, dtype=dtype))
    check(ops, problem(5, width, dtype=dtype, eps=True, options=True, n_samples=1))


@pytest.mark.parametrize("rows", (1, 27, 29, 127, 129))
def test_more_rows_than_blocks(ops: Any, rows: int) -> None:
    assert build.MAX_BLOCKS * 4 == 28
    check(ops, problem(rows, 5))


def test_rows_repeat_their_draws(ops: Any) -> None:
    p = problem(12, 7, draw_rows=3)
    p.mu.zero_(), p.logvar.zero_()
    z = check(ops, p)["z"].reshape(4, 3, 7)
    assert torch.equal(z, z[:1].expand_as(z)) and not torch.equal(z[:, 0], z[:, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", (1, 127, 129, 1000))
def test_which_dimensions_count(ops: Any, rows: int, dtype: torch.dtype) -> None:
    check_counted(ops, problem(rows, 130, dtype=dtype))
    check_counted(ops, problem(rows, 5, dtype=dtype, options=True))


def test_a_nan_counts(ops: Any) -> None:
    p = problem(4, 5)
    p.mu[2, 3] = torch.nan
    counted = ops.reparameterize_kl_counted(p.mu, p.logvar, None, None, 1e9, None)
    assert counted.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (0, 0)))
def test_empty(ops: Any, shape: tuple[int, int]) -> None:
    check(ops, problem(*shape))
    check(ops, problem(*shape, n_samples=2, options=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", (True, False))
def test_misaligned_and_strided_equal_plain(ops: Any, dtype: torch.dtype, eps: bool) -> None:
    plain = check(ops, problem(5, 64, dtype=dtype, eps=eps))
    shifted = problem(5, 64, dtype=dtype, eps=eps, misaligned=True)
    assert shifted.mu.data_ptr() % 16 != 0
    strided = problem(5, 64, dtype=dtype, eps=eps)
    strided.mu, strided.logvar = (
        torch.stack([t, t], 2)[..., 0] for t in (strided.mu, strided.logvar)
    )
    for p in (shifted, strided):
        for name, result in run(ops, p).items():
            assert torch.equal(result, plain[name]), name


def test_each_gradient_alone(ops: Any) -> None:
    p = problem(5, 33, options=True)
    both = check(ops, p)
    only_mu, only_logvar = run(ops, p, need_logvar=False), run(ops, p, need_mu=False)
    assert only_mu["grad_logvar"].shape == only_logvar["grad_mu"].shape == (0,)
    assert torch.equal(only_mu["grad_mu"], both["grad_mu"])
    assert torch.equal(only_logvar["grad_logvar"], both["grad_logvar"])
    for missing in ("grad_z", "grad_kl"):
        q = problem(5, 33, options=True)
        setattr(q, missing, None)
        check(ops, q)


def test_thread_order_changes_no_bit(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(9, 129, options=True)
    expected, counted = run(ops, p), check_counted(ops, p)
    for seed in ("1", "2"):
        monkeypatch.setenv("CUDA_EMU_SEED", seed)
        for name, result in run(ops, p).items():
            assert torch.equal(result, expected[name]), (name, seed)
        assert torch.equal(check_counted(ops, p), counted)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_the_draw_is_that_of_the_cpu(ops: Any, dtype: torch.dtype) -> None:
    import sparsevae_ext as sv

    zeros = torch.zeros(300, 101, dtype=dtype)
    for numbers in ((0, 0), (-1, 2**62 + 12345), (17, -3)):
        seed = torch.tensor(numbers)
        arguments = (zeros, zeros, seed, None, None, None, None, 0.0, None, None, 300)
        emulated = ops.reparameterize_kl(*arguments)[0]
        on_cpu = sv.functional.reparameterize_kl(zeros, zeros, seed=seed)[0]
        torch.testing.assert_close(emulated, on_cpu, rtol=1e-6, atol=1e-6)
        assert emulated.std() > 0.9


def test_schemas_are_the_packages(ops: Any) -> None:
    import sparsevae_ext  # noqa: F401  (registers its ops)

    for name in ("reparameterize_kl", "reparameterize_kl_backward", "reparameterize_kl_counted"):
        emulated = str(getattr(ops, name).default._schema)
        real = str(getattr(torch.ops.sparsevae_ext, name).default._schema)
        assert emulated == real.replace("sparsevae_ext::", f"{build.NAMESPACE}::")


def test_host_visible_errors(ops: Any) -> None:
    p = problem(5, 33)
    with pytest.raises(RuntimeError, match=r"expected seed or eps, but got neither"):
        run(ops, Problem(p.mu, p.logvar, None, None, None))
    with pytest.raises(RuntimeError, match=r"expected logvar of shape \(5, 33\)"):
        run(ops, Problem(p.mu, p.logvar[:4], None, None, p.seed))
    with pytest.raises(RuntimeError, match=r"expected seed of dtype Long, but got Float"):
        run(ops, Problem(p.mu, p.logvar, None, None, p.seed.float()))
    with pytest.raises(RuntimeError, match=r"backward\(\): expected grad_z of shape \(5, 33\)"):
        run(ops, Problem(p.mu, p.logvar, p.grad_z[1:], None, p.seed))
