"""One training step of Mult-VAE, whole: forward, backward and optimizer, ours and assembled from torch.

The peers are written to be as fast as torch's own parts allow: an embedding_bag reads only the weights of
the stored items (no dense batch), the log-likelihood gathers the logits at the stored items instead of
multiplying with a dense target, and the optimizer is the fused Adam. The dense one is what most
implementations do. Initial weights are the same, dropout is off so that losses can be compared, and the
posterior starts with a deviation of e^-10, so that the noise does not show in them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsevae_ext as sv
from sparsevae_ext.train.dense_twin import DenseMultVAE
from sparsevae_ext.train.optimizers import make_optimizer

from .shapes import SHAPES, SMALL, csr

Step = Callable[[], object]

LATENT = {"full": 200, "small": 32}
DTYPES = ("float32", "bfloat16")


class Case:
    """The batch, the initial model and its loss in float32."""

    def __init__(self, scale: str, device: str) -> None:
        rows, items, mean, hidden = (SHAPES if scale == "full" else SMALL)["ml20m"]
        matrix = csr(rows, items, mean)
        matrix.data[:] = 1
        self.batch = sv.CSRBatch.from_scipy(matrix).to(device).prepare()
        self.device = device
        self.scale = scale
        torch.manual_seed(0)
        self.model = sv.models.MultVAE(items, hidden=hidden, latent=LATENT[scale], dropout=0.0)
        with torch.no_grad():
            self.model.posterior.bias[LATENT[scale] :] = -20
        self.model.to(device)
        with torch.no_grad():
            self.loss = DenseMultVAE(self.model).eval()(self.batch.to_dense()).loss.item()

    def facts(self, dtype: str) -> dict[str, object]:
        """For extra_info, with the floor: three products with the output layer, and Adam's traffic.

        Adam reads weight, gradient and two moments and writes three of them, for the two large tables.
        """
        rows, items = self.batch.shape
        hidden = self.model.output.weight.shape[1]
        return {
            "rows": rows,
            "items": items,
            "hidden": hidden,
            "nnz": self.batch.nnz,
            "dtype": dtype,
            "floor_bytes": 2 * 7 * 4 * items * hidden,
            "floor_flops": 6 * rows * items * hidden,
        }

    def check(self, provider: str, loss: object) -> None:
        """AssertionError unless the first step's loss is that of the dense model."""
        expected = torch.tensor(self.loss)
        torch.testing.assert_close(torch.tensor(float(loss)), expected, rtol=5e-3, atol=0)  # type: ignore[arg-type]


@cache
def case(scale: str, device: str) -> Case:
    """The case, made once per run."""
    return Case(scale, device)


class Assembled(nn.Module):
    """Mult-VAE of torch's own parts, without a dense batch."""

    def __init__(self, twin: sv.models.MultVAE) -> None:
        super().__init__()
        dense = DenseMultVAE(twin)
        self.beta = twin.beta
        # embedding_bag reads rows of items
        self.table = nn.Parameter(twin.encoder.weight.detach().t().contiguous().clone())
        self.bias = dense.encoder.bias
        self.posterior, self.decoder, self.output = dense.posterior, dense.decoder, dense.output

    def forward(self, crow: Tensor, col: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        """Compute the loss; `rows` is the row of every entry."""
        norms = torch.zeros(len(crow) - 1, device=values.device)
        norms = norms.index_add(0, rows, values.square()).sqrt()
        x = F.embedding_bag(
            col,
            self.table,
            crow,
            mode="sum",
            per_sample_weights=values / norms[rows],
            include_last_offset=True,
        )
        mu, logvar = self.posterior(torch.tanh(x + self.bias)).float().chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        logits = self.output(torch.tanh(self.decoder(z)))
        at_entries = logits[rows, col].float()
        lse = torch.logsumexp(logits.float(), dim=1)
        nll = (values * (lse[rows] - at_entries)).sum() / len(lse)
        kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar).sum(dim=1).mean()
        return nll + self.beta * kl


def _autocast(c: Case, dtype: str):
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(c.device, dtype=getattr(torch, dtype))


def _our_step(c: Case, dtype: str, name: str) -> Step:
    model = copy.deepcopy(c.model).train()
    optimizer = make_optimizer(model.parameters(), name, lr=1e-3)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(c, dtype):
            loss = model(c.batch).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def step_row_adam(c: Case, dtype: str) -> Step:
    """This package, its optimizer too."""
    return _our_step(c, dtype, "row-adam")


def step_adam(c: Case, dtype: str) -> Step:
    """This package's model with torch's fused Adam."""
    return _our_step(c, dtype, "adam")


def _torch_step(c: Case, dtype: str, model: nn.Module, *inputs: Tensor) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(c, dtype):
            loss = model(*inputs)
            loss = getattr(loss, "loss", loss)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def step_assembled(c: Case, dtype: str) -> Step:
    """embedding_bag, logsumexp and gather, Adam(fused=True)."""
    batch = c.batch
    rows = torch.repeat_interleave(batch.crow.diff()).long()
    model = Assembled(c.model).to(c.device)
    return _torch_step(c, dtype, model, batch.crow.int(), batch.col.int(), batch.values, rows)


def step_compiled(c: Case, dtype: str) -> Step:
    """torch.compile of the assembled model."""
    batch = c.batch
    rows = torch.repeat_interleave(batch.crow.diff()).long()
    model = torch.compile(Assembled(c.model).to(c.device), dynamic=False)
    return _torch_step(c, dtype, model, batch.crow.int(), batch.col.int(), batch.values, rows)


def step_dense(c: Case, dtype: str) -> Step:
    """The usual way: a dense batch, log_softmax times the dense target."""
    return _torch_step(c, dtype, DenseMultVAE(c.model).to(c.device), c.batch.to_dense())


STEPS = {
    "sparsevae_ext": step_row_adam,
    "sparsevae_ext, torch's Adam": step_adam,
    "torch assembled": step_assembled,
    "torch assembled, compiled": step_compiled,
    "torch dense": step_dense,
}
