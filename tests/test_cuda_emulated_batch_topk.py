"""The CUDA kernels of batch_topk, run on the CPU by the emulator in cuda_emu/ (see its README)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build
from cuda_emu.cases_batch_topk import check, small_cases
from cuda_emu.cases_topk import DTYPES, values

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((1, 1), (1, 31), (3, 33), (129, 5), (2, 1271), (3, 1800)))
def test_odd_sizes(ops: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    for k in sorted({1, min(3, shape[1]), shape[1]}):
        check(ops, values("normal", *shape, dtype), k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("ties", "special", "ascending"))
def test_hard_batches(ops: Any, kind: str, dtype: torch.dtype) -> None:
    for k in (1, 100):
        check(ops, values(kind, 12, 400, dtype), k)


def test_strides(ops: Any) -> None:
    check(ops, values("normal", 40, 31, torch.float32).t(), 4)


@pytest.mark.parametrize("seed", ("1", "2"))
def test_no_dependence_on_the_order_of_threads(
    ops: Any, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_EMU_SEED", seed)
    small_cases(ops)


def test_refusals(ops: Any) -> None:
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        ops.batch_topk(torch.zeros(2, 3), 4)
    with pytest.raises(RuntimeError, match="at most 6 kept entries"):
        ops.batch_topk_backward(torch.zeros(2, 3), torch.arange(7))
