"""csr_linear, forward and with its weight gradient, against torch's ways of doing the same."""

from __future__ import annotations

import pytest
import torch

from .setup_csr_linear import BOTH, FORWARD, case
from .shapes import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", FORWARD)
def test_forward(timed, benchmark, scale, device, shape, provider):
    benchmark.group = f"csr_linear-forward-{device}-{shape}"
    c = case(shape, scale, device)
    with torch.no_grad():
        step = FORWARD[provider](c)
        y = timed(step, device, shape=shape, provider=provider, **c.facts())
    c.check_output(y)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", BOTH)
def test_forward_and_weight_gradient(timed, benchmark, scale, device, shape, provider):
    benchmark.group = f"csr_linear-forward+backward-{device}-{shape}"
    c = case(shape, scale, device)
    step = BOTH[provider](c)
    y, grad = timed(step, device, shape=shape, provider=provider, **c.facts())
    c.check_output(y)
    if isinstance(grad, tuple):
        c.check_rows(*grad)
    else:
        c.check_gradient(grad)
