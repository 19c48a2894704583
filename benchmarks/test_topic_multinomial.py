"""topic_multinomial_nll, forward and backward, against plain torch at the entries and over all cells."""

from __future__ import annotations

from functools import partial

import pytest

from . import turns
from .setup_topic_multinomial import BOTH, SHAPES, case

pytestmark = pytest.mark.benchmark(timer=turns.clock)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", BOTH)
def test_forward_and_backward(timed, scale, device, shape, provider):
    c = case(shape, scale, device)
    make = {name: partial(step, c) for name, step in BOTH.items()}
    group = f"topic_multinomial-forward+backward-{device}-{shape}"
    timed(group, provider, make, c.check, device, shape=shape, **c.facts())
