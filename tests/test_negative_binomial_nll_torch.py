"""The negative binomial ops as torch sees them: opcheck, compile, func, refusals."""

from __future__ import annotations

import pytest
import torch
from cuda_emu.cases_negative_binomial_nll import Problem
from test_negative_binomial_nll import EACH, call

import sparsevae_ext as sv
from sparsevae_ext import _load
from sparsevae_ext.ops import _negative_binomial as shared

needs_kernel = pytest.mark.skipif(_load.C is None, reason="needs the compiled object")


@needs_kernel
@EACH
def test_opcheck(inflated, library):
    p = Problem(4, 20, inflated=inflated, library=library)
    leaves = [None if t is None else t.requires_grad_() for t in p.dense()]
    ops = torch.ops.sparsevae_ext
    names = "zero_inflated_negative_binomial_nll" if inflated else "negative_binomial_nll"
    given = [t for i, t in enumerate(leaves) if inflated or i != 2]
    torch.library.opcheck(getattr(ops, names).default, (*given, *p.target()))
    detached = [None if t is None else t.detach() for t in given]
    _, lse = getattr(ops, names)(*detached, *p.target())
    wants = [True] * (3 if inflated else 2) + [library]
    arguments = (p.grad, *detached, lse, *p.target(), *wants)
    torch.library.opcheck(getattr(ops, f"{names}_backward").default, arguments)


@needs_kernel
def test_bare_ops_differentiate():
    for inflated in (False, True):
        p = Problem(4, 20, inflated=inflated, library=True)
        leaves = [None if t is None else t.requires_grad_() for t in p.dense()]
        given = [t for t in leaves if t is not None]
        name = "zero_inflated_negative_binomial_nll" if inflated else "negative_binomial_nll"
        nll, lse = getattr(torch.ops.sparsevae_ext, name)(*given, *p.target())
        assert not lse.requires_grad
        got = torch.autograd.grad(nll.sum(), given)
        wanted = torch.autograd.grad(call(p, leaves).sum(), given)
        assert all(map(torch.equal, got, wanted))


@EACH
@pytest.mark.parametrize("per_cell", [False, True])
def test_gradcheck_and_reference(inflated, library, per_cell):
    p = Problem(3, 6, torch.float64, inflated=inflated, library=library, per_cell=per_cell)
    leaves = [None if t is None else t.requires_grad_() for t in p.dense()]
    given = [t for t in leaves if t is not None]

    def dense(tensors):
        each = iter(tensors)
        return [None if t is None else next(each) for t in leaves]

    assert torch.autograd.gradcheck(lambda *t: call(p, dense(t)), given)
    target = sv.CSRBatch(p.crow, p.col, p.values, p.log_mu.shape)
    wanted = shared.reference(leaves[0], target, *leaves[1:], "none")
    got = call(p, leaves)
    torch.testing.assert_close(got, wanted)
    for g, w in zip(
        torch.autograd.grad(got.sum(), given), torch.autograd.grad(wanted.sum(), given), strict=True
    ):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph_equals_eager(backend):
    torch._dynamo.reset()
    p = Problem(6, 37, inflated=True, library=True)
    target = sv.CSRBatch(p.crow, p.col, p.values, p.log_mu.shape)

    def function(log_mu, log_theta, z, library, target):
        plain = sv.functional.negative_binomial_nll(log_mu, target, log_theta, library)
        return plain + sv.functional.zero_inflated_negative_binomial_nll(
            log_mu, target, log_theta, z, library
        )

    found = []
    for run in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaves = [t.detach().requires_grad_() for t in p.dense()]
        loss = run(*leaves, target)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(found[1], found[0])


def test_torch_func_transforms():
    p = Problem(3, 5, torch.float64, library=True)
    stack = torch.stack([p.log_mu, p.log_mu * 2, -p.log_mu])

    def loss(log_mu):
        return call(p, [log_mu, *p.dense()[1:]], "sum")

    gradient = torch.func.grad(loss)
    for mapped, one in ((torch.func.vmap(loss), loss), (torch.func.vmap(gradient), gradient)):
        torch.testing.assert_close(mapped(stack), torch.stack([one(x) for x in stack]))
    theta = torch.stack([p.log_theta, p.log_theta + 1])
    per_theta = torch.func.vmap(lambda t: call(p, [p.log_mu, t, None, p.library]))(theta)
    torch.testing.assert_close(per_theta[1], call(p, [p.log_mu, theta[1], None, p.library]))


@pytest.mark.parametrize("inflated", [False, True])
def test_double_backward_and_forward_mode_raise(inflated):
    p = Problem(3, 5, inflated=inflated)
    leaves = [None if t is None else t.requires_grad_() for t in p.dense()]
    loss = call(p, leaves, "mean") * torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    name = "zero_inflated_negative_binomial_nll" if inflated else "negative_binomial_nll"
    with pytest.raises(NotImplementedError, match=rf"^{name}\(\): double backward"):
        torch.autograd.grad(grad.sum(), leaves[1], allow_unused=True)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(
            lambda x: call(p, [x, *p.dense()[1:]]), (p.log_mu,), (torch.ones_like(p.log_mu),)
        )


def test_the_targets_values_have_no_gradient():
    p = Problem(3, 5)
    p.values.requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivative in the target's values"):
        call(p)
    with torch.no_grad():
        assert call(p).shape == (3,)


def parts(crow=(0, 2, 3), col=(0, 2, 1), values=(1.0, 2.0, 1.0), n_cols=3):
    shape = (len(crow) - 1, n_cols)
    return sv.CSRBatch(torch.tensor(crow), torch.tensor(col), torch.tensor(values), shape)


FUNCTIONS = [
    lambda x, t=None, **o: sv.functional.negative_binomial_nll(
        x, parts() if t is None else t, o.pop("theta", torch.zeros(3)), **o
    ),
    lambda x, t=None, **o: sv.functional.zero_inflated_negative_binomial_nll(
        x, parts() if t is None else t, o.pop("theta", torch.zeros(3)), torch.zeros(2, 3), **o
    ),
]
ERRORS = [
    (ValueError, "avg is not a valid value", lambda f, x: f(x, reduction="avg")),
    (RuntimeError, r"Target size .*\[2, 4\]", lambda f, x: f(x, parts(n_cols=4))),
    (RuntimeError, "Target size", lambda f, x: f(x[0])),
    (IndexError, "index 3 at position 1", lambda f, x: f(x, parts(col=(0, 3, 7)))),
    (
        RuntimeError,
        "sorted and distinct.*row 0.*from_scipy",
        lambda f, x: f(x, parts(col=(2, 0, 1))),
    ),
    (RuntimeError, "sorted and distinct", lambda f, x: f(x, parts(col=(1, 1, 1)))),
    (RuntimeError, r"\[..., 0\] == 0", lambda f, x: f(x, parts(crow=(1, 2, 3)))),
    (RuntimeError, r"-1\] == nnz", lambda f, x: f(x, parts(crow=(0, 2, 4)))),
    (
        ValueError,
        "not negative, but got -1.0 at position 1",
        lambda f, x: f(x, parts(values=(1.0, -1.0, 0.0))),
    ),
    (ValueError, "position 2", lambda f, x: f(x, parts(values=(1.0, 1.0, torch.nan)))),
    (ValueError, "library.*-1.0 at row 1", lambda f, x: f(x, library=torch.tensor([1.0, -1.0]))),
    (RuntimeError, r"library of shape \(2,\)", lambda f, x: f(x, library=torch.ones(3))),
    (NotImplementedError, "Long", lambda f, x: f(x, library=torch.ones(2).long())),
    (
        RuntimeError,
        r"log_theta of shape \(3,\) or \(2, 3\)",
        lambda f, x: f(x, theta=torch.zeros(2)),
    ),
    (
        RuntimeError,
        "log_mu and log_theta to have",
        lambda f, x: f(x, theta=torch.zeros(3).double()),
    ),
    (RuntimeError, "log_theta on cpu", lambda f, x: f(x, theta=torch.zeros(3, device="meta"))),
    (TypeError, "CSRBatch", lambda f, x: f(x, torch.zeros(2, 3))),
    (TypeError, "log_theta to be a torch.Tensor", lambda f, x: f(x, theta=[0.0] * 3)),
    (NotImplementedError, "not implemented for 'Long'", lambda f, x: f(x.long())),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=["plain", "inflated"])
@pytest.mark.parametrize(("error", "text", "run"), ERRORS)
def test_errors(function, error, text, run):
    with pytest.raises(error, match=text):
        run(function, torch.zeros(2, 3))


def test_zero_logits_are_checked():
    for bad, error in (
        (torch.zeros(3), RuntimeError),
        (torch.zeros(2, 3).double(), RuntimeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="zero_logits"):
            sv.functional.zero_inflated_negative_binomial_nll(
                torch.zeros(2, 3), parts(), torch.zeros(3), bad
            )


def test_unchecked_counts_give_nan():
    target = parts(values=(1.0, -1.0, 2.0))
    nll = sv.functional.negative_binomial_nll(
        torch.zeros(2, 3), target, torch.zeros(3), None, "none", validate_args=False
    )
    assert nll.isnan().tolist() == [True, False]
