"""csr_linear, forward and with its weight gradient, against torch's ways of doing the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from . import turns
from .setup_csr_linear import BOTH, FORWARD, case
from .shapes import SHAPES

pytestmark = pytest.mark.benchmark(timer=turns.clock)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", FORWARD)
def test_forward(timed, scale, device, shape, provider):
    c = case(shape, scale, device)
    make = {name: partial(step, c) for name, step in FORWARD.items()}
    group = f"csr_linear-forward-{device}-{shape}"
    with torch.no_grad():
        timed(group, provider, make, c.check_forward, device, shape=shape, **c.facts())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", BOTH)
def test_forward_and_weight_gradient(timed, scale, device, shape, provider):
    c = case(shape, scale, device)
    make = {name: partial(step, c) for name, step in BOTH.items()}
    group = f"csr_linear-forward+backward-{device}-{shape}"
    timed(group, provider, make, c.check_both, device, shape=shape, **c.facts(directions=2))
