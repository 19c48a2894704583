"""The input layer's whole training step, forward, backward and optimizer, against torch's ways."""

from __future__ import annotations

from functools import partial

import pytest

from . import turns
from .setup_row_adam import NOT_WIDE, PROVIDERS, case
from .shapes import SHAPES

pytestmark = pytest.mark.benchmark(timer=turns.clock)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_training_step(timed, scale, device, shape, provider):
    if shape == "wide" and provider in NOT_WIDE:
        pytest.skip("a dense batch takes a gigabyte")
    c = case(shape, scale, device)
    make = {name: partial(step, c) for name, step in PROVIDERS.items()}
    if shape == "wide":
        make = {name: step for name, step in make.items() if name not in NOT_WIDE}
    group = f"row_adam-forward+backward-{device}-{shape}"
    timed(group, provider, make, c.check, device, shape=shape, **c.facts())
