"""The likelihoods on given logits, forward and backward, against plain torch and torch.compile of it."""

from __future__ import annotations

from functools import partial

import pytest

from . import turns
from .setup_nll import BOTH, OURS, SHAPES, case

pytestmark = pytest.mark.benchmark(timer=turns.clock)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", OURS)
@pytest.mark.parametrize("provider", BOTH)
def test_forward_and_backward(timed, scale, device, shape, loss, provider):
    c = case(loss, shape, scale, device)
    make = {name: partial(step, c) for name, step in BOTH.items()}
    group = f"{loss}-forward+backward-{device}-{shape}"
    timed(group, provider, make, c.check, device, shape=shape, loss=loss, **c.facts())
