"""The three shapes at which ratios are quoted: log-normal row lengths, Zipf column popularity.

`csr(*SHAPES[name][:3])` gives the matrix; the last number is the hidden size. Duplicates within a row are
dropped, so rows hold about 64, 1,008 and 97 non-zeros, not the nominal 73, 1,500 and 100.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

#: name: (batch, features, nominal non-zeros per row, hidden)
SHAPES = {
    "ml20m": (500, 20108, 73, 600),
    "scrna": (128, 20000, 1500, 128),
    "wide": (256, 1000000, 100, 256),
}
#: The same three, small enough to run through in seconds.
SMALL = {
    "ml20m": (100, 4000, 40, 200),
    "scrna": (32, 4000, 300, 64),
    "wide": (64, 100000, 50, 64),
}


def csr(n_rows: int, n_features: int, mean: float, seed: int = 0) -> sp.csr_matrix:
    """A float32 CSR matrix of counts 1..5 with sorted, distinct columns."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, n_features + 1) ** 0.8
    popularity /= popularity.sum()
    lengths = rng.lognormal(np.log(mean) - 0.5, 1.0, n_rows).astype(int)
    lengths = np.clip(lengths, 1, n_features // 4)
    columns = [np.sort(np.unique(rng.choice(n_features, n, p=popularity))) for n in lengths]
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
    data = rng.integers(1, 6, indptr[-1]).astype(np.float32)
    return sp.csr_matrix((data, np.concatenate(columns), indptr), shape=(n_rows, n_features))
