"""The CUDA kernels of l1_activity, l2_activity and kl_sparsity, run on the CPU (see cuda_emu/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build, cases_activity, cases_kl_sparsity
from cuda_emu.cases_activity import ACTIVATIONS, DTYPES, check, matrix
from cuda_emu.cases_kl_sparsity import code

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")

SIZES = (1, 3, 17, 31, 33, 127, 129, 600)
# From 2,048 columns on a block's warps share a row.
LONG = (2047, 2048, 2049, 4100)


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("width", (*SIZES, *LONG))
@pytest.mark.parametrize("order", (1, 2))
def test_odd_widths(ops: Any, order: int, width: int) -> None:
    check(ops, order, matrix(5, width, torch.float32), "relu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("order", (1, 2))
def test_types_and_activations(ops: Any, order: int, activation: str, dtype: torch.dtype) -> None:
    for width in (64, 129):
        check(ops, order, matrix(6, width, dtype), activation)


@pytest.mark.parametrize("rows", (1, 31, 33, 127, 129))
def test_more_rows_than_blocks(ops: Any, rows: int) -> None:
    assert build.MAX_BLOCKS * 4 < 31
    check(ops, 1, matrix(rows, 9, torch.float32), "sigmoid")
    check(ops, 1, matrix(rows, 2048, torch.float32), "relu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_activations_and_gradients_equal_aligned(ops: Any, dtype: torch.dtype) -> None:
    plain = check(ops, 1, matrix(3, 64, dtype), "tanh")
    shifted = check(ops, 1, matrix(3, 64, dtype, misaligned=True), "tanh")
    for name, result in shifted.items():
        if name != "penalty":  # whose lanes hold other elements here
            assert torch.equal(result, plain[name]), name


def test_strided_inputs(ops: Any) -> None:
    h = matrix(5, 40, torch.float32)
    plain = check(ops, 1, h, "relu")
    for layout in (h.t().contiguous().t(), torch.stack([h, h], 2)[:, :, 0]):
        assert not layout.is_contiguous()
        for name, result in check(ops, 1, layout, "relu").items():
            assert torch.equal(result, plain[name]), name
    one = torch.ones(()).expand_as(h)
    got = ops.l1_activity_backward(one, None, plain["activated"], "relu")
    assert torch.equal(got, (h > 0).float())


@pytest.mark.parametrize("width", (129, 2100))
def test_thread_order_changes_no_bit(ops: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    h = matrix(9, width, torch.float32)
    expected = check(ops, 1, h, "softplus")
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("CUDA_EMU_SEED", seed)
        for name, result in check(ops, 1, h, "softplus").items():
            assert torch.equal(result, expected[name]), (name, seed)


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (0, 0)))
def test_empty(ops: Any, shape: tuple[int, int]) -> None:
    torch.use_deterministic_algorithms(True)  # fills torch.empty's memory with NaN
    try:
        check(ops, 1, matrix(*shape, torch.float32), "sigmoid")
        cases_kl_sparsity.check(ops, code(*shape, torch.float32))
    finally:
        torch.use_deterministic_algorithms(False)


def test_not_a_number_and_infinity(ops: Any) -> None:
    inf, nan = torch.inf, torch.nan
    h = torch.tensor([[nan, 1.0], [inf, -inf]])
    relu, penalty = ops.l1_activity(h, "relu")
    assert relu[0, 0].isnan() and relu[1].tolist() == [inf, 0.0]
    assert penalty[0].isnan() and penalty[1] == inf
    for activation, expected in (("sigmoid", [1, 0]), ("tanh", [1, -1]), ("softplus", [inf, 0])):
        assert ops.l1_activity(h, activation)[0][1].tolist() == expected
    grad = torch.full((2, 2), inf)
    assert ops.l1_activity_backward(grad, None, torch.zeros(2, 2), "relu").abs().sum() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (1, 17, 33, 128, 600))
@pytest.mark.parametrize("rows", (1, 3, 63, 65, 200))
def test_kl_sparsity(ops: Any, rows: int, width: int, dtype: torch.dtype) -> None:
    cases_kl_sparsity.check(ops, code(rows, width, dtype))


def test_kl_sparsity_with_parts_of_more_than_64_rows(ops: Any) -> None:
    cases_kl_sparsity.check(ops, code(256 * 64 + 300, 3, torch.float32), rho=0.3)


def test_kl_sparsity_where_the_means_are_right(ops: Any) -> None:
    """The divergence is then a small difference of larger numbers."""
    h = torch.full((8, 50), 0.0503)
    h[:, ::2] = 0.0497
    kl, _, _ = cases_kl_sparsity.check(ops, h, rho=0.05)
    exact, _ = cases_kl_sparsity.oracle(h.double().mean(0), 0.05)
    assert abs(kl.item() - exact.item()) < 1e-3 * exact.item()


def test_kl_sparsity_is_not_clamped(ops: Any) -> None:
    h = torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    kl, mean = ops.kl_sparsity(h, 0.1)
    assert kl == torch.inf and mean.tolist() == [0.0, 0.5]
    assert ops.kl_sparsity(1 - h, 0.1)[0] == torch.inf
    assert ops.kl_sparsity(h + 1, 0.1)[0].isnan() and ops.kl_sparsity(h - 1, 0.1)[0].isnan()
    slope = ops.kl_sparsity_backward(torch.tensor(1.0), mean, 0.1, 2)
    assert slope[0] == -torch.inf


def test_kl_sparsity_thread_order_changes_no_bit(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    h = code(200, 150, torch.float32)
    expected = cases_kl_sparsity.check(ops, h)
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("CUDA_EMU_SEED", seed)
        for one, other in zip(cases_kl_sparsity.check(ops, h), expected, strict=True):
            assert torch.equal(one, other), seed


def test_the_cases_of_the_sanitizers(ops: Any) -> None:
    for cases in (cases_activity, cases_kl_sparsity):
        cases.small_cases(ops)
        cases.tiny_cases(ops)
