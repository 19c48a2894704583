"""linear_gaussian_nll, forward and backward, against chunks of dense means."""

from __future__ import annotations

from functools import partial

import pytest

from . import turns
from .setup_linear_gaussian import BOTH, SHAPES, case

pytestmark = pytest.mark.benchmark(timer=turns.clock)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", BOTH)
def test_forward_and_backward(timed, scale, device, shape, provider):
    c = case(shape, scale, device)
    make = {name: partial(step, c) for name, step in BOTH.items()}
    group = f"linear_gaussian-forward+backward-{device}-{shape}"
    timed(group, provider, make, c.check, device, shape=shape, **c.facts())
