"""The CUDA kernels of row_adam, run on the CPU by the emulator in cuda_emu/ (see its README)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build
from cuda_emu.cases_row_adam import DTYPES, check_catch_up, check_step, small_cases

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", (1, 31, 128, 264))
def test_widths(ops: Any, width: int, dtype: torch.dtype) -> None:
    check_step(ops, 10, width, dtype, torch.int64, True)
    check_catch_up(ops, 10, width, dtype, torch.int64, tiny=dtype.itemsize > 2)
    check_catch_up(ops, 9, width, dtype, None, wd=0.0)


@pytest.mark.parametrize("seed", ("1", "2"))
def test_order_of_threads(ops: Any, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_EMU_SEED", seed)
    small_cases(ops)


def test_refusals(ops: Any) -> None:
    p = torch.zeros(4, 2)
    with pytest.raises(RuntimeError, match=r"expected grad of shape \(1, 2\)"):
        ops.row_adam(p, p, p, None, torch.tensor([0]), torch.zeros(2, 2), 1, 0.9, 0.9, 0, 1, 1, 1)
