"""Two equal models to train with RowAdam and with torch, for the tests of RowAdam."""

from __future__ import annotations

import copy

import torch
from torch import nn

import sparsevae_ext as sv

N, OUT = 120, 5


def some_rows(n_cols=N, touched=12, rows=4, dtype=torch.float32, device="cpu", low=0):
    """A batch of `rows` rows over `touched` random columns, none below `low`."""
    per = touched // rows
    col = (low + torch.randperm(n_cols - low)[: per * rows]).view(rows, per).sort(1).values
    crow = torch.arange(rows + 1) * per
    values = torch.randn(per * rows, dtype=dtype)
    return sv.CSRBatch(crow, col.reshape(-1), values, (rows, n_cols)).to(device)


def twins(dtype=torch.float32, device="cpu", **kwargs):
    """Two models with equal parameters: a sparse layer and a dense one after it."""
    torch.manual_seed(1)
    first = sv.nn.CSRLinear(N, OUT, dtype=dtype, device=device, **kwargs)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(OUT, 3, dtype=dtype, device=device))
    return model, copy.deepcopy(model)


def backward(model, x, scale=1.0):
    (model(x).square().sum() * scale).backward()


def train(model, optimizer, batches, scheduler=None):
    for x in batches:
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_equal_models(model, twin, tolerance=1e-5):
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
