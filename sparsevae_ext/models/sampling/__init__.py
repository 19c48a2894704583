"""Drawing rows straight into CSR; a block of rows is dense at a time, never all of them."""

from __future__ import annotations

from .bernoulli import sample_bernoulli_rows
from .blocks import make_generator
from .lengths import LengthDistribution, row_lengths, row_totals_like
from .multinomial import sample_multinomial_rows
from .negative_binomial import sample_negative_binomial_rows
from .poisson import sample_poisson_rows
from .threshold import matched_density_rows, top_entries_rows

__all__ = [
    "LengthDistribution",
    "make_generator",
    "matched_density_rows",
    "row_lengths",
    "row_totals_like",
    "sample_bernoulli_rows",
    "sample_multinomial_rows",
    "sample_negative_binomial_rows",
    "sample_poisson_rows",
    "top_entries_rows",
]
