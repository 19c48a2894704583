"""The likelihood ops themselves against float64: dtypes, sizes, strides, threads, instruction sets."""

from __future__ import annotations

import pytest
import torch
from cuda_emu.cases_nll import DTYPES, NAMES, check, check_extremes, inputs, run

from sparsevae_ext import CSRBatch, _load, functional
from sparsevae_ext.ops import bernoulli_nll, gaussian_nll, multinomial_nll, poisson_nll

pytestmark = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
ops = torch.ops.sparsevae_ext
each = pytest.mark.parametrize("name", NAMES)


@pytest.mark.isa
@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(name, dtype):
    for cols, index in zip((1, 3, 31, 33, 129, 1025), (torch.int32, torch.int64) * 3, strict=True):
        check(ops, name, inputs(name, 4, cols, dtype, index, duplicates=cols > 1))
    check(ops, name, inputs(name, 2, 1300, dtype, unsorted=True))


@each
def test_rows_in_pieces_against_float64(name):
    """Above 65,536 columns a row is cut."""
    check(ops, name, inputs(name, 1, 131_073))
    check(ops, name, inputs(name, 2, 65_537, torch.bfloat16, torch.int32, unsorted=True))


@each
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_empty(name, shape):
    check(ops, name, inputs(name, *shape))


@pytest.mark.isa
def test_extremes():
    check_extremes(ops)


@each
def test_same_bits_for_every_number_of_threads(name):
    for case in (inputs(name, 129, 503), inputs(name, 1, 200_000)):
        results = []
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            results.append(run(ops, name, case))
        for other in results[1:]:
            for key, tensor in other.items():
                assert torch.equal(tensor, results[0][key]), key


@pytest.mark.isa
@each
def test_strided_misaligned_and_unsorted_inputs_give_the_same_bits(name):
    plain = inputs(name, 5, 301)
    expected = run(ops, name, plain)
    shifted = inputs(name, 5, 301, misaligned=True)
    strided = inputs(name, 5, 301)
    strided.x = strided.x.t().contiguous().t()
    strided.grad = torch.stack([strided.grad, strided.grad], 1)[:, 0]
    strided.values = torch.stack([strided.values, strided.values], 1)[:, 0]
    mixed = inputs(name, 5, 301)
    order = torch.cat(
        [
            torch.arange(a, b).flip(0)
            for a, b in zip(mixed.crow[:-1].tolist(), mixed.crow[1:].tolist(), strict=True)
        ]
    )
    mixed.col, mixed.values = mixed.col[order], mixed.values[order]
    for case in (shifted, strided):
        for key, tensor in run(ops, name, case).items():
            assert torch.equal(tensor, expected[key]), key
    # Two entries of one column come in the other order here, so their sum may round differently.
    for key, tensor in run(ops, name, mixed).items():
        torch.testing.assert_close(tensor, expected[key])


@each
def test_gradients_written_past_the_caches_are_the_same(name):
    """From 8 MiB on; the first row of a pair, whose gradients are small enough not to be."""
    case = inputs(name, 2, 1_100_003)
    rows = run(ops, name, case)
    n = int(case.crow[1])
    case.x, case.grad, case.crow = case.x[:1], case.grad[:1], case.crow[:2]
    case.col, case.values = case.col[:n], case.values[:n]
    if name == "gaussian-rows":
        case.logvar = case.logvar[:1]
    alone = run(ops, name, case)
    assert torch.equal(alone["nll"], rows["nll"][:1])
    assert torch.equal(alone["grad"], rows["grad"][:1])
    if name == "gaussian-rows":
        assert torch.equal(alone["grad2"], rows["grad2"][:1])


MODULES = {
    "multinomial": multinomial_nll,
    "bernoulli": bernoulli_nll,
    "poisson": poisson_nll,
    "gaussian": gaussian_nll,
    "gaussian-shared": gaussian_nll,
    "gaussian-rows": gaussian_nll,
}


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_plain_torch_arithmetic_gives_the_same(name, dtype, monkeypatch):
    case = inputs(name, 9, 400, dtype)
    rows, cols = case.x.shape
    target = CSRBatch(case.crow, case.col, case.values, (rows, cols))
    function = getattr(functional, name.split("-")[0] + "_nll")
    results = []
    for kernel in (True, False):
        if not kernel:
            monkeypatch.setattr(MODULES[name], "use_kernel", lambda *_: False)
        free = [case.x.clone().requires_grad_()]
        free += [] if case.logvar is None else [case.logvar.clone().requires_grad_()]
        values = case.values.clone().requires_grad_()
        nll = function(*free[:1], target.with_values(values), *free[1:], reduction="none")
        results.append((nll, *torch.autograd.grad(nll, [*free, values], case.grad)))
    loose = {} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-2}
    for kernel, plain in zip(*results, strict=True):
        assert kernel.dtype == plain.dtype
        torch.testing.assert_close(kernel, plain, **loose)


def arguments(name, dtype=torch.float32):
    case = inputs(name, 6, 11, dtype)
    given = (case.x,) if not name.startswith("gaussian") else (case.x, case.logvar)
    return case, given


@each
def test_opcheck(name):
    case, given = arguments(name)
    for tensor in (*given, case.values):
        if tensor is not None:
            tensor.requires_grad_()
    op = getattr(ops, name.split("-")[0] + "_nll").default
    backward = getattr(ops, name.split("-")[0] + "_nll_backward").default
    torch.library.opcheck(op, (*given, *case.target))
    case, given = arguments(name)
    if name == "multinomial":
        _, lse, total = op(*given, *case.target)
        given += (lse, total)
    rest = case.target
    if name.startswith("gaussian"):
        for wants in ((True, False), (False, True), (True, True)):
            if case.logvar is not None or not wants[1]:
                torch.library.opcheck(backward, (case.grad, *given, *rest, *wants))
    else:
        torch.library.opcheck(backward, (case.grad, *given, *rest))


@each
def test_the_bare_op_differentiates_like_the_function(name):
    case, given = arguments(name, torch.float64)
    function = getattr(functional, name.split("-")[0] + "_nll")
    target = CSRBatch(case.crow, case.col, case.values, tuple(case.x.shape))
    free = [t.requires_grad_() for t in (*given, case.values) if t is not None]
    ours = function(given[0], target, *given[1:], reduction="none")
    bare = getattr(ops, name.split("-")[0] + "_nll")(*given, *case.target)
    bare = bare[0] if name == "multinomial" else bare
    grads = [torch.autograd.grad(nll, free, case.grad, create_graph=True) for nll in (ours, bare)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(grads[1][0].sum(), free, allow_unused=True)


@each
@pytest.mark.parametrize(
    ("error", "text", "change"),
    [
        (IndexError, "column index 11 at position 0", lambda c: c.col.__setitem__(0, 11)),
        (IndexError, "column index -1 at position 0", lambda c: c.col.__setitem__(0, -1)),
        (RuntimeError, r"\[..., 0\] == 0", lambda c: c.crow.__setitem__(0, 1)),
        (RuntimeError, "non-decreasing", lambda c: c.crow.__setitem__(1, 10**6)),
    ],
)
def test_damaged_targets_are_not_followed(name, error, text, change):
    """By the ops themselves, forward and backward: the functions check before them."""
    case, given = arguments(name)
    kind = name.split("-")[0] + "_nll"
    rows = torch.zeros(6)
    extra = (rows, rows) if name == "multinomial" else ()
    wants = (True, case.logvar is not None) if name.startswith("gaussian") else ()
    change(case)
    with pytest.raises(error, match=rf"{kind}\(\): .*{text}"):
        getattr(ops, kind)(*given, *case.target)
    with pytest.raises(error, match=rf"{kind}_backward\(\): .*{text}"):
        getattr(ops, f"{kind}_backward")(case.grad, *given, *extra, *case.target, *wants)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("values to be Float", lambda x, t: ops.bernoulli_nll(x, *t[:2], t[2].double())),
        ("values and|same length", lambda x, t: ops.bernoulli_nll(x, *t[:2], t[2][1:])),
        ("target of 3 rows", lambda x, t: ops.bernoulli_nll(x[:3], *t)),
        ("2 dimension", lambda x, t: ops.poisson_nll(x[0], *t)),
        ("grad of shape", lambda x, t: ops.poisson_nll_backward(torch.ones(2), x, *t)),
        ("logvar of shape", lambda x, t: ops.gaussian_nll(x, x[:, 1:], *t)),
        ("mean and logvar", lambda x, t: ops.gaussian_nll(x, x.double(), *t)),
        (
            "expected a logvar",
            lambda x, t: ops.gaussian_nll_backward(torch.ones(6), x, None, *t, True, True),
        ),
        (
            "lse of shape",
            lambda x, t: ops.multinomial_nll_backward(
                torch.ones(6), x, torch.ones(5), torch.ones(6), *t
            ),
        ),
    ],
)
def test_the_ops_refuse(text, call):
    case, _ = arguments("bernoulli")
    with pytest.raises(RuntimeError, match=text):
        call(case.x, case.target)
