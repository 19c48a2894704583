"""The negative binomial losses, forward and backward, against scVI's formulas and torch.compile of them."""

from __future__ import annotations

from functools import partial

import pytest

from . import turns
from .setup_negative_binomial_nll import BOTH, case

pytestmark = pytest.mark.benchmark(timer=turns.clock)


@pytest.mark.parametrize("loss", ["negative_binomial_nll", "zero_inflated_negative_binomial_nll"])
@pytest.mark.parametrize("provider", BOTH)
def test_forward_and_backward(timed, scale, device, loss, provider):
    c = case(loss.startswith("zero"), scale, device)
    make = {name: partial(step, c) for name, step in BOTH.items()}
    group = f"{loss}-forward+backward-{device}-scrna"
    timed(group, provider, make, c.check, device, shape="scrna", **c.facts())
