"""The kernels of csrc/cuda, run on the CPU by the emulator in cuda_emu/ (see its README)."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from cuda_emu import build
from cuda_emu import cases_csr_linear as cases
from cuda_emu.cases_csr_linear import DTYPES, check, problem, run
from cuda_emu.sanitized import sanitized

REASON = build.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"CUDA emulation: {REASON}")

SIZES = (1, 31, 33, 127, 129, 600, 1271)
# Rows of every kind: empty, one entry, a little more than a warp's 64, more than a block's 256.
LENGTHS = [0, 1, 5, 70, 0, 33, 3, 2, 300, 0]
LONG = [3, 0, 1500, 1]
ALL_LONG = [700, 64, 520, 1]  # an average at which a block's warps share a row


@pytest.fixture(scope="module")
def ops() -> Any:
    torch.ops.load_library(build.build())
    return getattr(torch.ops, build.NAMESPACE)


@pytest.mark.parametrize("width", SIZES)
def test_odd_widths(ops: Any, width: int) -> None:
    check(ops, problem(LENGTHS, 40, width))


@pytest.mark.parametrize("n", SIZES)
def test_odd_feature_counts(ops: Any, n: int) -> None:
    check(ops, problem(LENGTHS, n, 36, seed=n), padded=True)


@pytest.mark.parametrize("rows", (1, 31, 33, 127, 129))
def test_more_rows_than_blocks(ops: Any, rows: int) -> None:
    assert build.MAX_BLOCKS * 4 < 31
    check(ops, problem([r % 4 for r in range(rows)], 50, 33, seed=rows))


@pytest.mark.parametrize("index", (torch.int32, torch.int64))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", (LENGTHS, LONG, ALL_LONG), ids=("mixed", "long", "all-long"))
@pytest.mark.parametrize("width", (64, 129))
def test_types(
    ops: Any, dtype: torch.dtype, index: torch.dtype, lengths: list[int], width: int
) -> None:
    check(ops, problem(lengths, 90, width, dtype=dtype, index=index))


@pytest.mark.parametrize("width", (128, 600))
def test_a_feature_in_every_row(ops: Any, width: int) -> None:
    p = problem([3] * 700, 50, width, seed=3)
    p.col[::3] = 7
    check(ops, p)
    check(ops, p, padded=True)


def test_many_slabs_per_warp_and_block_column(ops: Any) -> None:
    # More slabs than blocks in y, for short and for long segments.
    check(ops, problem([2, 300, 0, 1], 20, 128 * 9 + 4))
    check(ops, problem(ALL_LONG, 20, 128 * 8))


@pytest.mark.parametrize(
    ("lengths", "n", "width"),
    (
        ([], 5, 4),
        ([], 0, 4),
        ([0, 0, 0], 5, 4),
        ([0, 0, 0], 0, 4),
        ([0], 5, 0),
        ([2, 1], 5, 0),
        ([0, 0], 0, 0),
    ),
)
@pytest.mark.parametrize("bias", (True, False))
def test_empty(ops: Any, lengths: list[int], n: int, width: int, bias: bool) -> None:
    check(ops, problem(lengths, n, width, bias=bias))


@pytest.mark.parametrize("bias", (True, False))
def test_empty_rows_are_written(ops: Any, bias: bool) -> None:
    p = problem([0, 0, 3, 0], 5, 7, bias=bias)
    torch.use_deterministic_algorithms(True)  # fills torch.empty's memory with NaN
    try:
        check(ops, p, padded=True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", (LENGTHS, ALL_LONG), ids=("mixed", "all-long"))
def test_misaligned_equals_aligned(ops: Any, dtype: torch.dtype, lengths: list[int]) -> None:
    plain = check(ops, problem(lengths, 30, 136, dtype=dtype))
    shifted = problem(lengths, 30, 136, dtype=dtype, misaligned=True)
    assert shifted.weight.data_ptr() % 16 != 0
    for name, result in check(ops, shifted).items():
        if name != "values_grad":  # whose sums run over lanes, and lanes hold other elements here
            torch.testing.assert_close(result, plain[name], rtol=0, atol=0, msg=name)


def test_strided_inputs(ops: Any) -> None:
    p = problem(LENGTHS, 30, 33)
    expected = run(ops, p)
    p.crow, p.col, p.values = (torch.stack([t, t], 1)[:, 0] for t in (p.crow, p.col, p.values))
    p.weight = p.weight.contiguous()  # the layout of nn.Linear
    p.grad = torch.stack([p.grad, p.grad], 2)[:, :, 0]
    for name, result in check(ops, p).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)
    p.grad = torch.ones(()).expand_as(p.grad)
    check(ops, p)


# In the last, blocks use their shared memory for one row after the other.
@pytest.mark.parametrize(
    "lengths", (LENGTHS, LONG, ALL_LONG, [300] * 12), ids=("mixed", "long", "all-long", "many-long")
)
def test_thread_order_changes_no_bit(
    ops: Any, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(lengths, 40, 129)
    expected = run(ops, p)
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("CUDA_EMU_SEED", seed)
        for name, result in run(ops, p).items():
            assert torch.equal(result, expected[name]), (name, seed)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_sums_are_exact(ops: Any, dtype: torch.dtype) -> None:
    ones = torch.ones(10_000, dtype=dtype)
    crow = torch.tensor([0, 10_000])
    col = torch.zeros(10_000, dtype=torch.int64)
    every = torch.arange(10_000)
    eight = torch.ones(8, 1, dtype=dtype)
    total = torch.tensor(10_000.0).to(dtype)
    assert (ops.csr_linear(crow, col, ones, eight, None) == total).all()
    grad = torch.ones(1, 8, dtype=dtype)
    assert (ops.csr_linear_weight_grad(col[:1], crow, col, every, ones, grad, 1) == total).all()
    wide = torch.ones(10_000, 1, dtype=dtype)
    dot = ops.csr_linear_values_grad(crow[:2] // 10_000, col[:1], wide, wide.t())
    assert dot.item() == total


def test_stored_zeros_multiply_and_others_do_not(ops: Any) -> None:
    weight = torch.tensor([[float("inf"), 1.0, float("nan")]])
    crow, col = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0])
    y = ops.csr_linear(crow, col, torch.tensor([2.0, 0.0]), weight, None)
    assert y[0].item() == 2.0 and y[1].isnan() and y[2].item() == 0.0


def test_schemas_are_the_packages(ops: Any) -> None:
    import sparsevae_ext  # noqa: F401  (registers its ops)

    for name in ("csr_linear", "csr_linear_weight_grad", "csr_linear_values_grad"):
        emulated = str(getattr(ops, name).default._schema)
        real = str(getattr(torch.ops.sparsevae_ext, name).default._schema)
        assert emulated == real.replace("sparsevae_ext::", f"{build.NAMESPACE}::")


def test_host_visible_errors(ops: Any) -> None:
    p = problem(LENGTHS, 30, 33)
    with pytest.raises(
        RuntimeError, match=r"csr_linear\(\): .* same dtype, but got Double and Float"
    ):
        ops.csr_linear(p.crow, p.col, p.values.double(), p.weight, p.bias)
    with pytest.raises(RuntimeError, match=r"not implemented for 'ComplexFloat'"):
        ops.csr_linear(p.crow, p.col, p.values.cfloat(), p.weight.cfloat(), None)
    with pytest.raises(RuntimeError, match=r"csr_linear_values_grad\(\): expected grad_output"):
        ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad[:, 1:])
    with pytest.raises(RuntimeError, match=r"csr_linear\(\): .*== nnz` is not satisfied"):
        ops.csr_linear(p.crow[:1], p.col, p.values, p.weight, p.bias)


def test_sanitizers_see_the_kernels() -> None:
    """Without this test_cuda_emulated_sanitized.py could pass because nothing is instrumented."""
    done = sanitized(
        "import test_cuda_emulated as tests\n"
        "p = tests.problem([5, 70], 9, 36)\n"
        "p.values.untyped_storage().resize_(32)\n"
        "ops.csr_linear(p.crow, p.col, p.values, p.weight, None)\n"
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr and "gather_sum_kernel" in done.stderr


INDEX_ERROR = "is out of bounds"
STRUCTURE_ERROR = "do not rise from 0"
WITH_LONG_ROW, SHORT = [5, 0, 290, 6], [2, 1, 2]
# The lengths of the rows, what is broken and how, and the text of the device assert.
BAD_INPUTS: dict[str, tuple[list[int], str, int, int, str]] = {
    "column one past the end": (WITH_LONG_ROW, "col", 4, 9, INDEX_ERROR),
    "column far out": (WITH_LONG_ROW, "col", 4, 10**12, INDEX_ERROR),
    "negative column": (WITH_LONG_ROW, "col", 4, -1, INDEX_ERROR),
    "column in a later piece of a long row": (WITH_LONG_ROW, "col", 290, 9, INDEX_ERROR),
    "crow does not start at 0": (WITH_LONG_ROW, "crow", 0, 1, STRUCTURE_ERROR),
    "crow ends too early": (WITH_LONG_ROW, "crow", -1, 299, STRUCTURE_ERROR),
    "crow ends beyond nnz": (WITH_LONG_ROW, "crow", -1, 10**12, STRUCTURE_ERROR),
    "crow goes beyond nnz and back": (SHORT, "crow", 1, 10**12, STRUCTURE_ERROR),
    "crow falls": (WITH_LONG_ROW, "crow", 2, 2, STRUCTURE_ERROR),
    "crow negative": (WITH_LONG_ROW, "crow", 1, -5, STRUCTURE_ERROR),
    "row of the index one past the end": (WITH_LONG_ROW, "row", 3, 4, INDEX_ERROR),
    "row of the index negative": (WITH_LONG_ROW, "row", 3, -1, INDEX_ERROR),
    "position beyond nnz": (WITH_LONG_ROW, "perm", 3, 301, INDEX_ERROR),
    "feature one past the end": (WITH_LONG_ROW, "features", 2, 9, INDEX_ERROR),
    "ptr goes beyond nnz and back": (SHORT, "ptr", 1, 10**12, STRUCTURE_ERROR),
}


def bad_inputs(ops: Any) -> None:
    """Runs each bad input in a child process and prints how the children ended, as JSON."""
    torch.set_num_threads(1)
    endings = {}
    for name, (lengths, where, position, value, _) in BAD_INPUTS.items():
        for op in ("forward", "values_grad", "weight_grad", "weight_grad_rows"):
            of_index = where in cases.TransposedIndex._fields
            if of_index != op.startswith("weight_grad"):
                continue
            if where == "features" and op == "weight_grad_rows":
                continue
            p = problem(lengths, 9, 36, index=torch.int64)
            index = cases.transposed(p, padded=False)
            broken = getattr(index if of_index else p, where)
            broken[position] = value
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.dup2(write, 2)
                if op == "forward":
                    ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias)
                elif op == "values_grad":
                    ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad)
                elif op == "weight_grad":
                    ops.csr_linear_weight_grad(*index, p.values, p.grad, 9)
                else:
                    ops.csr_linear_weight_grad_rows(*index[1:], p.values, p.grad)
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as stream:
                text = stream.read()
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            endings[f"{op}: {name}"] = (status, text)
    print(json.dumps(endings))


def test_bad_indices_stop_before_memory_is_touched() -> None:
    done = sanitized("import test_cuda_emulated as tests\ntests.bad_inputs(ops)")
    assert done.returncode == 0, done.stderr[-4000:]
    endings = json.loads(done.stdout)
    assert len(endings) >= len(BAD_INPUTS)
    for name, (status, text) in endings.items():
        expected = BAD_INPUTS[name.split(": ")[1]][-1]
        assert status == -6, (name, status, text)
        assert "AddressSanitizer" not in text, (name, text)
        assert "Assertion" in text and "csr_linear" in text and expected in text, (name, text)
