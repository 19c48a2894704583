"""The negative binomial kernels of csrc/cuda, run on the CPU by the emulator in cuda_emu/."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build
from cuda_emu.cases_negative_binomial_nll import DTYPES, Problem, check, run, small_cases

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("cols", (1, 3, 31, 33, 129, 513, 2100))
def test_odd_widths(ops: Any, cols: int) -> None:
    check(ops, Problem(3, cols, inflated=True))
    check(ops, Problem(3, cols, library=True, index=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inflated", (False, True))
def test_types_and_dispersions_per_cell(ops: Any, dtype: torch.dtype, inflated: bool) -> None:
    check(ops, Problem(5, 65, dtype, inflated=inflated, per_cell=True, library=True))
    check(ops, Problem(5, 64, dtype, inflated=inflated))


def test_more_rows_than_blocks(ops: Any) -> None:
    assert build.MAX_BLOCKS < 16
    check(ops, Problem(250, 7, library=True))


def test_each_gradient_alone(ops: Any) -> None:
    p = Problem(5, 33, inflated=True, library=True)
    every = check(ops, p)
    for i in range(4):
        alone = run(ops, p, *(i == k for k in range(4)))
        for k in range(4):
            got, expected = alone[1 + k], every[1 + k]
            assert got is not None and expected is not None
            assert torch.equal(got, expected) if i == k else got.shape == (0,)


def test_strided_equal_plain(ops: Any) -> None:
    p = Problem(6, 40, inflated=True)
    plain = check(ops, p)
    p.log_mu, p.zero_logits = (
        p.log_mu.t().contiguous().t(),
        torch.stack([p.zero_logits] * 2, 2)[..., 0],
    )
    for got, expected in zip(run(ops, p), plain, strict=True):
        assert (got is None) == (expected is None)
        assert got is None or expected is None or torch.equal(got, expected)


def test_extreme_cells_in_float(ops: Any) -> None:
    """Against the kernels of the CPU, whose large counts are computed in double."""
    import sparsevae_ext  # noqa: F401  (registers its ops)

    mean, theta, count = (
        t.flatten()
        for t in torch.meshgrid(
            torch.tensor([1e-8, 0.3, 100.0, 1e6]).log(),
            torch.tensor([1e-4, 0.7, 50.0, 1e4, 1e8]).log(),
            torch.tensor([1.0, 16.0, 20.0, 2.5, 5000.0, 1e6]),
            indexing="ij",
        )
    )
    n = len(mean)
    target = torch.arange(n + 1), torch.zeros(n, dtype=torch.int64), count
    given = mean[:, None], theta[:, None], None
    got, _ = ops.negative_binomial_nll(*given, *target)
    wanted, _ = torch.ops.sparsevae_ext.negative_binomial_nll(*given, *target)
    torch.testing.assert_close(got, wanted, rtol=3e-5, atol=1e-5)
    arguments = torch.ones(n), *given, got[:0], *target, True, True, False
    for name, g, w in zip(
        ("log_mu", "log_theta"),
        ops.negative_binomial_nll_backward(*arguments),
        torch.ops.sparsevae_ext.negative_binomial_nll_backward(*arguments),
        strict=False,
    ):
        assert ((g - w).abs() <= 1e-6 * count[:, None] + 2e-5 * (1 + w.abs())).all(), name


@pytest.mark.parametrize("seed", ("1", "2"))
def test_thread_order_changes_no_bit(ops: Any, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(18, 520, inflated=True, library=True)
    expected = run(ops, p)
    monkeypatch.setenv("CUDA_EMU_SEED", seed)
    for got, wanted in zip(run(ops, p), expected, strict=True):
        assert torch.equal(got, wanted)
    small_cases(ops)


def test_schemas_are_the_packages(ops: Any) -> None:
    import sparsevae_ext  # noqa: F401  (registers its ops)

    for name in ("negative_binomial_nll", "zero_inflated_negative_binomial_nll"):
        for op in (name, f"{name}_backward"):
            emulated = str(getattr(ops, op).default._schema)
            real = str(getattr(torch.ops.sparsevae_ext, op).default._schema)
            assert emulated == real.replace("sparsevae_ext::", f"{build.NAMESPACE}::")


def test_host_visible_errors(ops: Any) -> None:
    p = Problem(5, 33, inflated=True)
    p.log_theta = p.log_theta[1:]
    with pytest.raises(RuntimeError, match=r"expected log_theta of shape \(33,\) or \(5, 33\)"):
        run(ops, p)
    p = Problem(5, 33, inflated=True)
    p.crow = p.crow[1:]
    with pytest.raises(RuntimeError, match="expected a target of 5 rows, but got 4"):
        run(ops, p)
