"""What only a GPU can show: streams, graph capture, device guards, device asserts, sizes beyond 2**31."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from cuda_emu import sanitized
from cuda_emu.cases_csr_linear import check, problem, run
from torch.utils._pytree import tree_map_only

import sparsevae_ext as sv
from sparsevae_ext import functional

pytestmark = pytest.mark.cuda

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LENGTHS = [0, 1, 5, 70, 0, 33, 3, 2, 300, 0]
LONG = [3, 0, 1500, 1]
ALL_LONG = [700, 64, 520, 1]
BUSY_CYCLES = 50_000_000  # tens of milliseconds: longer than any launch


@pytest.fixture
def ops() -> Any:
    if not torch._C._dispatch_has_kernel_for_dispatch_key("sparsevae_ext::csr_linear", "CUDA"):
        pytest.fail("there is a GPU, but the extension was built without its CUDA kernels")
    return torch.ops.sparsevae_ext


def make_batch(device: str = "cuda") -> tuple[sv.CSRBatch, torch.Tensor, torch.Tensor]:
    p = problem(LENGTHS, 40, 36)
    batch = sv.CSRBatch(p.crow.long(), p.col.long(), p.values, (len(LENGTHS), 40)).prepare()
    weight = p.weight.t().contiguous().to(device).t()
    assert p.bias is not None
    return batch.to(device), weight, p.bias.to(device)


class OnDevice:
    """The package's ops on a device, for cases that make and compare CPU tensors."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        op = getattr(torch.ops.sparsevae_ext, name)

        def call(*args: Any) -> Any:
            there = tree_map_only(torch.Tensor, lambda t: t.to(self.device), args)
            return tree_map_only(torch.Tensor, lambda t: t.cpu(), op(*there))

        return call


@pytest.mark.parametrize("module", sanitized.cases())
def test_small_cases_of_every_op(ops: Any, module: str) -> None:
    """What the emulated kernels go through under the sanitizers, on the device."""
    importlib.import_module(f"cuda_emu.{module}").small_cases(OnDevice("cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_cases(ops: Any, dtype: torch.dtype) -> None:
    """Every path of the kernels at small sizes; also what runs under compute-sanitizer."""
    for index in (torch.int32, torch.int64):
        for lengths in (LENGTHS, LONG, ALL_LONG):
            for width in (36, 129):
                p = problem(lengths, 40, width, dtype=dtype, index=index, device="cuda")
                check(ops, p)
                check(ops, p, padded=True)
    check(ops, problem(LENGTHS, 40, 136, dtype=dtype, misaligned=True, device="cuda"))
    check(ops, problem(ALL_LONG, 40, 136, dtype=dtype, misaligned=True, device="cuda"))


@pytest.mark.parametrize("width", (1, 31, 33, 127, 129, 600, 1271))
def test_odd_widths(ops: Any, width: int) -> None:
    check(ops, problem(LENGTHS, 200, width, device="cuda"))


@pytest.mark.parametrize(("lengths", "n", "width"), (([], 0, 4), ([0, 0], 0, 4), ([2, 1], 5, 0)))
def test_empty(ops: Any, lengths: list[int], n: int, width: int) -> None:
    check(ops, problem(lengths, n, width, device="cuda"))
    torch.cuda.synchronize()


def test_repeated_runs_give_the_same_bits(ops: Any) -> None:
    p = problem([300] * 200 + [5000], 50, 129, device="cuda")
    expected = run(ops, p)
    for _ in range(5):
        for name, result in run(ops, p).items():
            assert torch.equal(result, expected[name]), name


def test_empty_rows_are_written(ops: Any) -> None:
    p = problem([0, 0, 3, 0], 5, 7, device="cuda")
    torch.use_deterministic_algorithms(True)  # fills torch.empty's memory with NaN
    try:
        results = run(ops, p, padded=True)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, result in results.items():
        assert not result.isnan().any(), name


def test_more_rows_than_the_grid_holds(ops: Any) -> None:
    rows = 5_000_000
    crow = torch.arange(rows + 1, device="cuda")
    col = torch.arange(rows, device="cuda") % 3
    values = torch.ones(rows, device="cuda")
    weight = torch.tensor([[1.0, 2.0, 3.0]] * 4, device="cuda")
    y = ops.csr_linear(crow, col, values, weight, None)
    assert torch.equal(y, (col + 1.0)[:, None].expand(rows, 4))


def test_weight_of_more_than_2_to_31_numbers(ops: Any) -> None:
    n, width = 2**20 + 3, 2056
    if torch.cuda.mem_get_info()[0] < 3 * 2 * n * width:
        pytest.skip("needs 13 GB of free device memory")
    rows = torch.zeros(n, width, dtype=torch.bfloat16, device="cuda")
    rows[-1] = 1.0
    crow = torch.tensor([0, 1, 2], dtype=torch.int32, device="cuda")
    col = torch.tensor([n - 1, 0], dtype=torch.int32, device="cuda")
    values = torch.tensor([3.0, 5.0], dtype=torch.bfloat16, device="cuda")
    y = ops.csr_linear(crow, col, values, rows.t(), None)
    assert (y[0] == 3).all() and (y[1] == 0).all()
    at = torch.tensor([0, 1, 2], dtype=torch.int32, device="cuda")
    features = torch.tensor([0, n - 1], dtype=torch.int32, device="cuda")
    grad = torch.ones(2, width, dtype=torch.bfloat16, device="cuda")
    dw = ops.csr_linear_weight_grad(features, at, at[:2], at[:2].flip(0), values, grad, n)
    assert (dw[0] == 5).all() and (dw[-1] == 3).all() and not dw[1:-1].any()


def test_runs_on_the_current_stream(ops: Any) -> None:
    """The inputs are made on a side stream behind slow work, which another stream would not wait for."""
    p = problem(LENGTHS, 40, 36, device="cuda")
    expected = run(ops, p)
    weight, values, grad = p.weight.clone(), p.values.clone(), p.grad.clone()
    for made in (p.weight, p.values, p.grad):
        made.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(BUSY_CYCLES)
        p.weight.copy_(weight)
        p.values.copy_(values)
        p.grad.copy_(grad)
        y = ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias)
        dv = ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad)
    side.synchronize()
    assert torch.equal(y, expected["forward"])
    assert torch.equal(dv, expected["values_grad"])


def test_launches_do_not_wait_for_the_device(ops: Any) -> None:
    p = problem(LENGTHS, 40, 36, device="cuda")
    ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias)
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias)
    ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad)
    pending = not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    assert pending


@pytest.mark.parametrize("lengths", (LENGTHS, LONG, ALL_LONG), ids=("mixed", "long", "all-long"))
def test_graph_capture(ops: Any, lengths: list[int]) -> None:
    p = problem(lengths, 40, 36, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up, as torch asks for before a capture
        ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias)
        ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.csr_linear(p.crow, p.col, p.values, p.weight, p.bias)
        dv = ops.csr_linear_values_grad(p.crow, p.col, p.weight, p.grad)
    for factor in (1.0, -2.0):
        p.weight.mul_(factor)
        expected = run(ops, p)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, expected["forward"])
        assert torch.equal(dv, expected["values_grad"])


@pytest.mark.parametrize("prepared", (True, False))
@pytest.mark.parametrize("mode", ("default", "reduce-overhead"))
def test_compiled_training_step(mode: str, prepared: bool) -> None:
    batch, weight, bias = make_batch()
    if not prepared:
        batch = sv.CSRBatch(batch.crow, batch.col, batch.values, batch.shape)

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.csr_linear(batch, weight, bias).tanh().sum()

    def gradients(function: Any) -> list[torch.Tensor]:
        leaves = [weight.detach().requires_grad_(), bias.detach().requires_grad_()]
        value = function(*leaves)
        value.backward()
        return [value.detach().clone(), *(leaf.grad.clone() for leaf in leaves)]  # type: ignore[union-attr]

    expected = gradients(loss)
    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for _ in range(4):  # a captured graph is replayed from the third call on
        torch.compiler.cudagraph_mark_step_begin()
        for actual, wanted in zip(gradients(compiled), expected, strict=True):
            torch.testing.assert_close(actual, wanted)


def test_gradients_agree_with_the_cpu() -> None:
    def gradients(device: str) -> list[torch.Tensor]:
        batch, weight, bias = make_batch(device)
        values = batch.values.clone().requires_grad_()
        leaves = [values, weight.detach().requires_grad_(), bias.detach().requires_grad_()]
        y = functional.csr_linear(batch.with_values(values), *leaves[1:])
        (y * torch.arange(y.numel(), device=device).view_as(y)).sum().backward()
        return [y.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]  # type: ignore[union-attr]

    for actual, wanted in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-3)


def test_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    batch, weight, bias = make_batch("cuda:1")
    assert torch.cuda.current_device() == 0
    y = functional.csr_linear(batch, weight, bias)
    assert y.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    cpu_batch, cpu_weight, cpu_bias = make_batch("cpu")
    expected = functional.csr_linear(cpu_batch, cpu_weight, cpu_bias)
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", (9, -1, 10**12))
def test_bad_column_is_a_device_assert(bad: int) -> None:
    """In a process of its own: after a device assert the CUDA context is lost."""
    code = f"""
import torch, sparsevae_ext
crow, col = torch.tensor([0, 2, 3]).cuda(), torch.tensor([1, {bad}, 2]).cuda()
values, weight = torch.ones(3).cuda(), torch.ones(4, 9).cuda()
try:
    torch.ops.sparsevae_ext.csr_linear(crow, col, values, weight, None)
    torch.cuda.synchronize()
except RuntimeError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "device-side assert" in done.stdout, (done.stdout, done.stderr)
    assert "is out of bounds" in done.stdout + done.stderr
