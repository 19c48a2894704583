"""linear_nll's CUDA epilogues, run on the CPU (see cuda_emu/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build
from cuda_emu.cases_linear_nll import CLOSE, check
from linear_nll_cases import NAMES, Case, op_arguments

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")
EACH = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@EACH
def test_dtypes(ops: Any, name: str) -> None:
    for dtype in CLOSE:
        check(ops, name, (5, 70, 6), dtype)


@EACH
def test_panels_that_do_not_divide_the_features(ops: Any, name: str) -> None:
    for columns in (16, 40, 1000):  # narrow, with some kept, all at once
        check(ops, name, (17, 133, 3), torch.float64, torch.int32, 17 * columns)
    check(ops, name, (5, 133, 20), torch.float64, bias=False)


@EACH
@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 0, 2)])
def test_empty(ops: Any, name: str, shape: tuple[int, int, int]) -> None:
    case = Case(name, *shape, torch.float32)
    with torch.no_grad():
        nll, *grads = ops.linear_nll(*op_arguments(case))
    assert nll.shape == shape[:1] and not nll.any()
    assert all(not g.any() for g in grads)
