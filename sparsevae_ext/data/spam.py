"""The embedded data set: word counts of the SpamAssassin public mail corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from .dataset import CSRDataset
from .errors import DataFileError

__all__ = ["load_spam"]

_FOLDER = Path(__file__).with_name("spam")


def load_spam() -> CSRDataset:
    """Word counts of 6,046 e-mails over 8,273 words, with vocabulary and labels.

    The data set's `labels` are 1 for spam and 0 for ham. The mails are the SpamAssassin public
    corpus; the data is in the public domain (see the licence note beside the files).

    Returns:
        The data set, in memory, float32, 693,111 entries.

    Raises:
        DataFileError: the package's data files are missing or damaged.

    Example:
        >>> ds = load_spam()
        >>> ds.shape, ds.vocab[:3], int(ds.labels.sum())
        ((6046, 8273), ['aaron', 'aaronsw', 'abacha'], 1896)
    """
    try:
        counts = sp.load_npz(_FOLDER / "bow.npz")
        with np.load(_FOLDER / "meta.npz", allow_pickle=False) as meta:
            return CSRDataset(counts, vocab=meta["vocab"].tolist(), labels=meta["y"])
    except Exception as error:
        raise DataFileError(_FOLDER, f"the embedded data set is damaged ({error})") from error
