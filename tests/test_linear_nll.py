"""The losses with the decoder's layer inside equal those on stored logits, with less memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from linear_nll_cases import NAMES, Case

import sparsevae_ext as sv
from sparsevae_ext.ops._registry import use_kernel

F = sv.functional
EACH = pytest.mark.parametrize("name", NAMES)
#: rows, features, hidden: panels wait in the weight's gradient where rows <= hidden.
SIZES = [(1, 1, 1), (3, 31, 3), (37, 129, 8), (70, 333, 71)]
needs_kernel = pytest.mark.skipif(
    not use_kernel("linear_nll", torch.zeros(1)), reason="no compiled object"
)


def panel_memory(rows, columns, itemsize=8):
    return rows * columns * itemsize


def assert_equal_to_unfused(case, reduction, max_memory, **tolerance):
    nll, wanted = case.fused(reduction, max_memory), case.unfused(reduction)
    torch.testing.assert_close(nll, wanted, **tolerance)
    upstream = torch.linspace(0.5, 2, max(1, nll.numel()), dtype=nll.dtype).reshape(nll.shape)
    got = case.gradients(nll, upstream)
    expected = case.gradients(wanted, upstream)
    for key, a, b in zip(case.free, got, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, k=key: f"{k}: {text}", **tolerance)


@EACH
@pytest.mark.parametrize("sizes", SIZES)
def test_value_and_every_gradient_against_float64(name, sizes):
    case = Case(name, *sizes)
    # 16 columns at a time, which divide none of the widths.
    assert_equal_to_unfused(case, "mean", panel_memory(sizes[0], 16))
    assert_equal_to_unfused(case, "none", panel_memory(sizes[0], 16))


@EACH
@pytest.mark.parametrize("columns", [None, 48, pytest.param(80, marks=pytest.mark.isa), 400])
def test_any_memory_gives_the_same(name, columns):
    """By default, with one panel, with some of several panels kept, with all of them."""
    case = Case(name, 37, 333, 8, index=torch.int32)
    memory = None if columns is None else panel_memory(37, columns)
    assert_equal_to_unfused(case, "sum", memory)


@EACH
def test_without_biases(name):
    case = Case(name, 9, 70, 5, bias=False)
    assert_equal_to_unfused(case, "mean", panel_memory(9, 16))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.isa), torch.float16],
)
@EACH
def test_other_dtypes(name, dtype):
    case = Case(name, 40, 300, 33, dtype)
    nll = case.fused("none", panel_memory(40, 64, dtype.itemsize))
    assert nll.dtype == torch.float32
    # The 16-bit inputs are the numbers; the float64 result is exact for them.
    wanted = case.unfused("none", cast=lambda t: t.double())
    eps = torch.finfo(dtype).eps
    scale = wanted.abs().mean()
    assert (nll - wanted).abs().max() <= 10 * eps * scale
    got = case.gradients(nll)
    expected = case.gradients(wanted)
    for key, a, b in zip(case.free, got, expected, strict=True):
        assert a.dtype == case.free[key].dtype
        assert (a.double() - b.double()).norm() <= 15 * eps * b.double().norm(), key


@EACH
def test_each_gradient_alone(name):
    case = Case(name, 7, 65, 9)
    expected = case.gradients(case.unfused("none").sum())
    for key, wanted in zip(case.free, expected, strict=True):
        others = {k: t.detach() for k, t in case.free.items() if k != key}
        for reduction in ("sum", "none"):
            nll = case.fused(reduction, panel_memory(7, 16), **others).sum()
            (grad,) = torch.autograd.grad(nll, case.free[key])
            torch.testing.assert_close(grad, wanted, msg=lambda text, k=key: f"{k}: {text}")


@EACH
def test_reductions_and_no_grad(name):
    case = Case(name, 6, 50, 4)
    rows = case.fused("none")
    assert rows.shape == (6,)
    torch.testing.assert_close(case.fused("sum"), rows.sum())
    torch.testing.assert_close(case.fused("mean"), rows.mean())
    with torch.no_grad():
        quiet = case.fused("none")
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, rows.detach(), rtol=1e-12, atol=1e-12)


@EACH
@pytest.mark.parametrize("shape", [(0, 5, 3), (3, 0, 2), (0, 0, 1), (4, 20, 0)])
def test_empty_shapes(name, shape):
    case = Case(name, *shape)
    nll = case.fused("none")
    assert nll.shape == shape[:1]
    torch.testing.assert_close(nll, case.unfused("none"))
    for grad, tensor in zip(case.gradients(case.fused("sum")), case.free.values(), strict=True):
        assert grad.shape == tensor.shape and not grad.isnan().any()
    assert case.fused("mean").isnan() == (shape[0] == 0)


def test_extreme_logits():
    """Impossible items, an item that is certain, values that overflow nothing."""
    weight = torch.tensor([[80.0], [-80.0], [1.0], [0.0]], requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -torch.inf, 0.0])
    h = torch.tensor([[1.0], [-1.0], [0.0]])
    target = sv.CSRBatch.from_dense(
        torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 1.0], [0, 0, 1.0, 0]])
    )
    nll = F.linear_multinomial_nll(h, weight, bias, target, "none")
    torch.testing.assert_close(nll, torch.tensor([0.0, 240.0, torch.inf]))
    ok = F.linear_multinomial_nll(h[:2], weight, bias, target[:2], "sum")
    (grad,) = torch.autograd.grad(ok, weight)
    assert grad.isfinite().all()
    nan = torch.full((3, 1), torch.nan)
    for function in (F.linear_multinomial_nll, F.linear_bernoulli_nll, F.linear_poisson_nll):
        assert function(nan, weight, None, target, "none").isnan().all()
    steep = F.linear_bernoulli_nll(h, weight * 10, None, target, "none")
    torch.testing.assert_close(
        steep, F.bernoulli_nll(h @ weight.t() * 10, target, "none"), rtol=1e-6, atol=1e-6
    )


def test_strided_inputs_and_sliced_weights():
    case = Case("multinomial", 9, 70, 6)
    expected = case.gradients(case.unfused())
    for stride in (
        lambda t: t.t().contiguous().t(),
        lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    ):
        free = {k: (stride(t) if t.dim() == 2 else t).detach() for k, t in case.free.items()}
        for tensor in free.values():
            tensor.requires_grad_()
        grads = torch.autograd.grad(
            case.fused("mean", panel_memory(9, 16), **free), tuple(free.values())
        )
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_target_values_of_another_dtype(dtype):
    case = Case("multinomial", 5, 40, 3)
    wanted = case.fused()
    case.target = case.target.with_values(case.target.values.to(dtype))
    torch.testing.assert_close(case.fused(), wanted)


def test_backward_twice_gives_fresh_gradients():
    case = Case("multinomial", 8, 100, 6)
    for upstream in (1.0, 0.5):
        nll = case.fused("mean")
        first = case.gradients(nll * upstream, retain_graph=True)
        kept = [g.clone() for g in first]
        second = case.gradients(nll * upstream, retain_graph=True)
        third = case.gradients(nll * upstream)
        for a, b, c, old in zip(first, second, third, kept, strict=True):
            torch.testing.assert_close(b, old)
            torch.testing.assert_close(c, old)
            b.zero_()
            assert torch.equal(a, old)


@needs_kernel
def test_a_backward_pass_hands_its_gradient_over():
    case = Case("multinomial", 8, 100, 6, torch.float32)
    nll = case.fused("mean")
    address = nll.grad_fn.grads[1].data_ptr()
    nll.backward()
    assert case.free["weight"].grad.data_ptr() == address


def test_gradients_add_up():
    case = Case("nb", 8, 100, 6)
    case.fused().backward()
    once = [t.grad.clone() for t in case.free.values()]
    (case.fused() * 2).backward()
    for tensor, grad in zip(case.free.values(), once, strict=True):
        torch.testing.assert_close(tensor.grad, 3 * grad)


@EACH
def test_autocast(name):
    case = Case(name, 40, 300, 33, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll = case.fused("none", panel_memory(40, 64, 2))
    assert nll.dtype == torch.float32
    exact = case.unfused("none")
    assert (nll - exact).abs().max() <= 0.03 * exact.abs().mean()
    got, expected = case.gradients(nll), case.gradients(exact)
    for key, a, b in zip(case.free, got, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 0.03 * b.norm(), key


@needs_kernel
def test_autocast_keeps_the_log_sum_exp_in_float32():
    """Sums in bfloat16 would stop growing at 256 terms of equal size."""
    features = 20000
    h, weight = torch.ones(2, 4), torch.zeros(features, 4)
    target = sv.CSRBatch(
        torch.tensor([0, 1, 2]), torch.tensor([3, 5]), torch.ones(2), (2, features)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll = F.linear_multinomial_nll(h, weight, None, target)
    torch.testing.assert_close(nll, torch.tensor(float(features)).log())


@EACH
def test_same_bits_for_any_number_of_threads(name):
    # Small integers: the matrix products are exact, in whatever order the library adds them up.
    case = Case(name, 130, 700, 3, torch.float32)
    for key in ("h", "weight", "zero_weight"):
        if key in case.free:
            case.free[key].data = torch.randint(-2, 3, case.free[key].shape).float()
    results = []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        nll = case.fused("none", panel_memory(130, 300, 4))
        grads = dict(zip(case.free, case.gradients(nll), strict=True))
        # Those of h and the weights are products of what is not small integers any more.
        shared = [g for k, g in grads.items() if k not in ("h", "weight", "zero_weight")]
        results.append((nll.detach(), *shared))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@EACH
def test_gradcheck(name):
    case = Case(name, 3, 20, 2)
    names = tuple(case.free)

    def nll(*tensors):
        return case.fused("none", panel_memory(3, 16), **dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(nll, tuple(case.free.values()))


# ---- memory -------------------------------------------------------------------------------------

MEMORY = textwrap.dedent(
    """
    import sys, torch, sparsevae_ext as sv
    from torch.profiler import profile, ProfilerActivity
    rows, features, hidden = map(int, sys.argv[1:])
    F = sv.functional
    h = torch.randn(rows, hidden, requires_grad=True)
    weight = torch.randn(features, hidden, requires_grad=True)
    bias = torch.zeros(features, requires_grad=True)
    theta = torch.zeros(features, requires_grad=True)
    library = torch.full((rows,), 50.0, requires_grad=True)
    entries = torch.arange(rows + 1) * 3
    col = torch.tensor([1, 7, features - 1]).repeat(rows)
    target = sv.CSRBatch(entries, col, torch.ones(3 * rows), (rows, features))
    losses = dict(
        multinomial=lambda: F.linear_multinomial_nll(h, weight, bias, target),
        rows=lambda: F.linear_multinomial_nll(h, weight, bias, target, "none").sum(),
        bernoulli=lambda: F.linear_bernoulli_nll(h, weight, bias, target),
        nb=lambda: F.linear_negative_binomial_nll(h, weight, bias, target, theta, library),
        zinb=lambda: F.linear_zero_inflated_negative_binomial_nll(
            h, weight, bias, weight, bias, target, theta),
        unfused=lambda: F.multinomial_nll(torch.nn.functional.linear(h, weight, bias), target),
    )
    for name, loss in losses.items():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
            loss().backward()
        now = peak = 0
        for event in p.profiler.kineto_results.events():
            if event.name() == "[memory]":
                now += event.nbytes()
                peak = max(peak, now)
        print("peak", name, peak)
    """
)


@needs_kernel
def test_memory_no_quarter_of_the_logits_is_ever_there():
    """The peak of torch's allocator: more rows than hidden units, so that nothing can hide."""
    rows, features, hidden = 600, 10000, 8
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(rows), str(features), str(hidden)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("peak")]
    peaks = {name: int(peak) for _, name, peak in lines}
    logits = rows * features * 4
    assert peaks.pop("unfused") > logits  # the measure measures
    assert len(peaks) == 5
    for name, peak in peaks.items():
        assert 0 < peak < logits / 4, name
