"""The CUDA kernels of the likelihoods, run on the CPU (see cuda_emu/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emu import build, cases_nll, sanitized
from cuda_emu.cases_nll import DTYPES, NAMES, check, inputs, run

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_and_dtypes(ops: Any, name: str) -> None:
    for cols in (1, 3, 31, 33, 129, 1025):
        check(ops, name, inputs(name, 4, cols, duplicates=cols > 1))
    for dtype in DTYPES:
        check(ops, name, inputs(name, 4, 72, dtype, torch.int32))
        check(ops, name, inputs(name, 2, 2051, dtype))


@pytest.mark.parametrize("name", NAMES)
def test_more_rows_and_runs_than_blocks(ops: Any, name: str) -> None:
    assert build.MAX_BLOCKS < 31
    check(ops, name, inputs(name, 31, 9))
    check(ops, name, inputs(name, 2, 8300))


@pytest.mark.parametrize("name", NAMES)
def test_unsorted_columns_give_the_sorted_gradient(ops: Any, name: str) -> None:
    """But for roundings: the entries of a tile are entered in another way."""
    check(ops, name, inputs(name, 7, 300, unsorted=True))
    check(ops, name, inputs(name, 7, 300, torch.bfloat16, unsorted=True))


@pytest.mark.parametrize("name", NAMES)
def test_strided_and_misaligned_predictions(ops: Any, name: str) -> None:
    plain = inputs(name, 3, 64)
    expected = run(ops, name, plain)
    shifted = inputs(name, 3, 64, misaligned=True)
    got = check(ops, name, shifted)
    assert torch.equal(got["grad"], expected["grad"])
    plain.x = plain.x.t().contiguous().t()
    for key, tensor in run(ops, name, plain).items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_thread_order_changes_no_bit(ops: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = inputs(name, 5, 700)
    expected = run(ops, name, case)
    for seed in ("1", "2"):
        monkeypatch.setenv("CUDA_EMU_SEED", seed)
        for key, tensor in run(ops, name, case).items():
            assert torch.equal(tensor, expected[key]), (key, seed)


def test_extremes(ops: Any) -> None:
    cases_nll.check_extremes(ops)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (0, 0)))
def test_empty(ops: Any, name: str, shape: tuple[int, int]) -> None:
    check(ops, name, inputs(name, *shape))


def test_bad_columns_are_not_followed() -> None:
    """A device assert ends the process, so each runs in one of its own."""
    for bad in (70, -1):
        done = sanitized.sanitized(
            "x = torch.zeros(1, 70)\n"
            f"target = torch.tensor([0, 1]), torch.tensor([{bad}]), torch.ones(1)\n"
            "ops.bernoulli_nll(x, *target)\n"
        )
        assert done.returncode != 0
        assert "column index is out of bounds" in done.stderr, done.stderr[-2000:]
