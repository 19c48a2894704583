"""topk, batch_topk and jumprelu among torch's own machinery: opcheck, compile, func, vmap, refusals."""

from __future__ import annotations

import pytest
import torch

from sparsevae_ext import _load, functional
from sparsevae_ext.ops.batch_topk import batch_topk_reference
from sparsevae_ext.ops.jumprelu import jumprelu_reference
from sparsevae_ext.ops.topk import topk_reference

needs_kernels = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
ops = torch.ops.sparsevae_ext


def threshold(like):
    return torch.full(like.shape[-1:], 0.3, dtype=like.dtype, device=like.device)


#: name -> (ours, its plain-torch twin), each a function of h alone with one differentiable output.
FUNCTIONS = {
    "topk": (lambda h: functional.topk(h, 3)[0], lambda h: topk_reference(h, 3)[0]),
    "batch_topk": (
        lambda h: functional.batch_topk(h, 3),
        lambda h: batch_topk_reference(h, 3)[0],
    ),
    "jumprelu": (
        lambda h: functional.jumprelu(h, threshold(h), 0.5),
        lambda h: jumprelu_reference(h, threshold(h), 0.5)[0],
    ),
}
BARE = {
    "topk": lambda h: ops.topk(h, 3, False)[0],
    "batch_topk": lambda h: ops.batch_topk(h, 3)[0],
    "jumprelu": lambda h: ops.jumprelu(h, threshold(h), 0.5)[0],
}
names = pytest.mark.parametrize("name", FUNCTIONS)


# ---- opcheck -----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(6, 11), (0, 4), (1, 3)])
@pytest.mark.parametrize("wanted", [False, True])
def test_opcheck_forward(device, dtype, shape, wanted):
    h = torch.randn(shape, dtype=dtype, device=device).requires_grad_(wanted)
    t = torch.rand(shape[1], device=device).requires_grad_(wanted)
    for by_index in (False, True):
        torch.library.opcheck(ops.topk.default, (h, 2, by_index))
    torch.library.opcheck(ops.batch_topk.default, (h, 2))
    torch.library.opcheck(ops.jumprelu.default, (h, t, 0.5))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_backward_ops(device, dtype):
    h, grad = torch.randn(2, 6, 11, dtype=dtype, device=device)
    indices = torch.topk(h, 2).indices
    torch.library.opcheck(ops.topk_backward.default, (grad[:, :2], indices, 11))
    kept = torch.tensor([0, 7, 40], device=device)
    torch.library.opcheck(ops.batch_topk_backward.default, (grad, kept))
    t, count = torch.rand(11, device=device), torch.rand(6, device=device)
    for out in (None, grad):
        for c in (None, count):
            for wants in ((True, True), (False, True), (True, False)):
                arguments = (out, c, h, t, 0.5, *wants)
                torch.library.opcheck(ops.jumprelu_backward.default, arguments)


@needs_kernels
@names
def test_the_bare_op_differentiates_like_the_function(name):
    h = torch.randn(5, 9, dtype=torch.float64)
    grads = []
    for f in (FUNCTIONS[name][0], BARE[name]):
        leaf = h.clone().requires_grad_()
        f(leaf).sin().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads) and grads[0].any()


# ---- compile -----------------------------------------------------------------------------------


@names
def test_compile_fullgraph_forward_and_backward(device, name):
    ours, reference = FUNCTIONS[name]
    h = torch.randn(5, 9, device=device)
    results = []
    for f in (
        torch.compile(lambda h: ours(h).tanh(), fullgraph=True),
        lambda h: reference(h).tanh(),
    ):
        leaf = h.clone().requires_grad_()
        y = f(leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@names
def test_compile_once_for_many_sizes(name):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    ours, reference = FUNCTIONS[name]
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((4, 7), (7, 5), (9, 30), (30, 11)):
        h = torch.randn(shape)
        torch.testing.assert_close(compiled(h), reference(h))
    assert counter.frame_count == 1


# ---- torch.func --------------------------------------------------------------------------------


@names
def test_func_grad_and_jacrev(name):
    ours, reference = FUNCTIONS[name]
    h = torch.randn(4, 6, dtype=torch.float64)
    got = torch.func.grad(lambda h: ours(h).sin().sum())(h)
    torch.testing.assert_close(got, torch.func.grad(lambda h: reference(h).sin().sum())(h))
    torch.testing.assert_close(torch.func.jacrev(ours)(h), torch.func.jacrev(reference)(h))


@names
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap(name, dim):
    ours, _ = FUNCTIONS[name]
    h = torch.randn(3, 4, 6, dtype=torch.float64)
    mapped = h.movedim(0, dim)
    got = torch.func.vmap(ours, dim)(mapped)
    torch.testing.assert_close(got, torch.stack([ours(x) for x in h]))
    gradient = torch.func.grad(lambda h: ours(h).sin().sum())
    got = torch.func.vmap(gradient, dim)(mapped)
    torch.testing.assert_close(got, torch.stack([gradient(x) for x in h]))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, 1)])
def test_vmap_of_jumprelu_over_thresholds(in_dims):
    h = torch.randn(3, 4, 6, dtype=torch.float64)
    t = torch.rand(3, 6, dtype=torch.float64)
    pick = [
        (h[i if in_dims[0] is not None else 0], t[i if in_dims[1] is not None else 0])
        for i in range(3)
    ]
    arguments = (
        h[0] if in_dims[0] is None else h.movedim(0, in_dims[0]),
        t[0] if in_dims[1] is None else t.movedim(0, in_dims[1]),
    )

    def loss(h, t):
        out, count = functional.l0_activity(h, t, 0.5)
        return out.sin().sum() + count.square().sum()

    for f in (loss, torch.func.grad(loss), torch.func.grad(loss, 1)):
        got = torch.func.vmap(f, in_dims)(*arguments)
        torch.testing.assert_close(got, torch.stack([f(*p) for p in pick]))


# ---- refusals ----------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("through", ["function", "bare op"])
def test_double_backward_raises(name, through):
    if through == "bare op" and _load.C is None:
        pytest.skip("the compiled object is missing")
    f = FUNCTIONS[name][0] if through == "function" else BARE[name]
    h = torch.randn(4, 6, requires_grad=True)
    (g,) = torch.autograd.grad(f(h).pow(3).sum(), h, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        g.sum().backward()


@names
def test_forward_mode_raises(name):
    h = torch.randn(4, 6)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(FUNCTIONS[name][0], (h,), (torch.ones_like(h),))


@names
def test_h_edited_between_forward_and_backward(name):
    """topk and batch_topk keep positions only; jumprelu needs h and notices."""
    h = torch.randn(4, 6)
    leaf = h.requires_grad_()
    x = leaf * 1.0
    y = FUNCTIONS[name][0](x)
    with torch.no_grad():
        x.mul_(2)
    if name == "jumprelu":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    else:
        y.sum().backward()
        assert leaf.grad.any()


H = torch.zeros(2, 3)
BAD = {
    "topk of a list": (lambda: functional.topk([1.0], 1), TypeError, "h to be a torch.Tensor"),
    "topk of sparse": (lambda: functional.topk(H.to_sparse(), 1), TypeError, "strided"),
    "topk of one row": (lambda: functional.topk(H[0], 1), RuntimeError, r"shape \(B, H\), but got"),
    "topk of ints": (lambda: functional.topk(H.long(), 1), NotImplementedError, "'Long'"),
    "topk k float": (lambda: functional.topk(H, 1.0), TypeError, "k to be an int, but got float"),
    "topk k bool": (lambda: functional.topk(H, True), TypeError, "but got bool"),
    "topk k zero": (lambda: functional.topk(H, 0), ValueError, "1 <= k <= 3 .*, but got 0"),
    "topk k large": (lambda: functional.topk(H, 4), ValueError, "1 <= k <= 3 .*, but got 4"),
    "topk no columns": (lambda: functional.topk(H[:, :0], 1), ValueError, "1 <= k <= 0"),
    "batch k large": (lambda: functional.batch_topk(H, 4), ValueError, "batch_topk.*but got 4"),
    "batch k float": (lambda: functional.batch_topk(H, 0.5), TypeError, "batch_topk.*float"),
    "batch 3-D": (lambda: functional.batch_topk(H[None], 1), RuntimeError, r"\(1, 2, 3\)"),
    "batch complex": (
        lambda: functional.batch_topk(H.to(torch.complex64), 1),
        NotImplementedError,
        '"batch_topk" not implemented',
    ),
    "jumprelu threshold too long": (
        lambda: functional.jumprelu(H, torch.ones(4), 0.1),
        RuntimeError,
        r"jumprelu\(\): expected threshold of shape \(3,\) or \(\), but got \(4,\)",
    ),
    "jumprelu threshold a number": (
        lambda: functional.jumprelu(H, 1.0, 0.1),
        TypeError,
        "threshold to be a torch.Tensor, but got float",
    ),
    "jumprelu dtypes": (
        lambda: functional.jumprelu(H, torch.ones(3).double(), 0.1),
        RuntimeError,
        "must have the same dtype, but got Float and Double",
    ),
    "jumprelu device": (
        lambda: functional.jumprelu(H, torch.ones(3, device="meta"), 0.1),
        RuntimeError,
        "on one device, but got cpu and meta",
    ),
    "jumprelu bandwidth zero": (
        lambda: functional.jumprelu(H, torch.ones(3), 0.0),
        ValueError,
        "positive, finite bandwidth, but got 0.0",
    ),
    "l0 bandwidth nan": (
        lambda: functional.l0_activity(H, torch.ones(3), float("nan")),
        ValueError,
        r"l0_activity\(\): expected a positive, finite bandwidth, but got nan",
    ),
    "l0 bandwidth tensor": (
        lambda: functional.l0_activity(H, torch.ones(3), torch.tensor(1.0)),
        TypeError,
        "bandwidth to be a number, but got Tensor",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=text):
        call()


@needs_kernels
def test_bad_input_to_the_bare_ops():
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        ops.topk(H, 4, False)
    with pytest.raises(RuntimeError, match="to have 2 dimension"):
        ops.batch_topk(H[0], 1)
    with pytest.raises(RuntimeError, match="indices to be Long, but got Int"):
        ops.topk_backward(H, H.int(), 5)
    with pytest.raises(RuntimeError, match="the same shape"):
        ops.topk_backward(H, H.long()[:1], 5)
    with pytest.raises(RuntimeError, match="threshold to be Float beside h of BFloat16"):
        ops.jumprelu(H.bfloat16(), torch.ones(3).bfloat16(), 1.0)
    with pytest.raises(ValueError, match="finite bandwidth, but got -1"):
        ops.jumprelu(H, torch.ones(3), -1.0)
    with pytest.raises(RuntimeError, match=r"grad_out of shape \(2, 3\), but got \(3, 2\)"):
        ops.jumprelu_backward(H.t(), None, H, torch.ones(3), 1.0, True, True)


def test_autocast_keeps_the_dtype_of_h():
    h = torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, _ in FUNCTIONS.values():
            assert ours(h).dtype == torch.float32
            assert ours(h.bfloat16()).dtype == torch.bfloat16
