"""The CUDA kernels of topk and jumprelu, run on the CPU by the emulator in cuda_emu/ (see its README)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build, cases_jumprelu
from cuda_emu.cases_topk import DTYPES, check, small_cases, values

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")

SIZES = (1, 31, 33, 127, 129, 600, 1271)


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", SIZES)
def test_topk_of_odd_widths(ops: Any, width: int, dtype: torch.dtype) -> None:
    for k in sorted({1, min(5, width), width // 2 or 1, width}):
        check(ops, values("normal", 3, width, dtype), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("ties", "special", "ascending"))
def test_topk_of_hard_rows(ops: Any, kind: str, dtype: torch.dtype) -> None:
    for k in (1, 30, 257, 499, 500):
        check(ops, values(kind, 4, 500, dtype), k)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_topk_compares_sixteen_bits_exactly(ops: Any, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    check(ops, every[torch.randperm(2**16)][None, :6_000], 300)


def test_topk_of_more_rows_than_blocks_and_of_strides(ops: Any) -> None:
    assert build.MAX_BLOCKS < 31
    check(ops, values("normal", 31, 40, torch.float32), 4)
    check(ops, values("normal", 40, 31, torch.float32).t(), 4)
    check(ops, values("normal", 0, 9, torch.float32), 4)


@pytest.mark.parametrize("seed", ("1", "2"))
def test_topk_does_not_depend_on_the_order_of_threads(
    ops: Any, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_EMU_SEED", seed)
    small_cases(ops)
    cases_jumprelu.small_cases(ops)


def test_topk_refuses_what_the_cpu_refuses(ops: Any) -> None:
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        ops.topk(torch.zeros(2, 3), 4, False)
    with pytest.raises(RuntimeError, match="not implemented for 'Int'"):
        ops.topk(torch.zeros(2, 3).int(), 1, False)
    with pytest.raises(ValueError, match="positive, finite bandwidth"):
        ops.jumprelu(torch.zeros(2, 3), torch.ones(3), 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", SIZES)
def test_jumprelu_of_odd_widths(ops: Any, width: int, dtype: torch.dtype) -> None:
    cases_jumprelu.check(ops, 7, width, dtype)


@pytest.mark.parametrize("rows", (1, 63, 64, 65, 700))
def test_jumprelu_of_many_rows(ops: Any, rows: int) -> None:
    cases_jumprelu.check(ops, rows, 5)
