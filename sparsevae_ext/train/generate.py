"""Rows drawn from a run's model, written as CSR and compared with the data."""

from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data import CSRBatch, SparsityReport, sparsity_report
from ..models import LengthDistribution, Model
from .runs import load_run, read_data
from .validation import counts

__all__ = ["sample_run"]


def sample_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    n: int,
    data_path: str | None = None,
    *,
    length: int | None = None,
    density: float | None = None,
    imitate: bool = False,
    temperature: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[CSRBatch, SparsityReport, list[int]]:
    """Draw rows from a run's model into a scipy .npz file.

    A multinomial model, or one of counts, takes the totals of its rows from the data's rows, at
    random, and the latter the experimental batches of as many rows; a Gaussian one, whose own
    draws have no zeros, keeps as many entries of a row as such rows have.

    Args:
        run: a run's directory or checkpoint file.
        out: the .npz file to write, whole or not at all.
        n: how many rows.
        data_path: the data to compare with and to take lengths from; None is what the run was
            trained on.
        length: multinomial and counts only: the total of every row in place of the data's.
        density: share of the cells to keep; not for a multinomial. A Bernoulli model without it
            draws every cell.
        imitate: draw at the codes of n rows of the data picked at random, not from the prior; a
            model without a prior needs it.
        temperature: see the model's `sample`.
        seed: of every draw.
        device: where to compute.

    Returns:
        The rows, their comparison with the data, and the rows imitated (none without `imitate`).

    Raises:
        ValueError: an option that the model does not have, or one out of range.
        CheckpointError, DataFileError, OSError: a file cannot be read or written.
    """
    if n < 1:
        raise ValueError(f"sample_run(): expected n >= 1, but got {n}")
    out = _writable(Path(out))
    model, saved, checkpoint = load_run(run, device)
    if not imitate and type(model).prior_codes is Model.prior_codes:
        raise ValueError(
            f"{saved['config']['model']['name']} has no prior to draw from; give --imitate, to draw at "
            "the codes of rows of the data"
        )
    ds, _ = read_data(saved, checkpoint, data_path)
    options: dict[str, Any] = {"seed": seed}
    for name, value in (("length", length), ("density", density), ("temperature", temperature)):
        if value is None:
            continue
        if name not in inspect.signature(model.sample).parameters:
            kind = saved["config"]["model"]["name"]
            raise ValueError(f"{kind} does not take a {name} to sample with")
        options[name] = value
    picked: list[int] = []
    # A model without a choice of likelihood is multinomial.
    likelihood = getattr(model, "likelihood", "multinomial")
    if imitate:
        # With replacement: there may be more rows to draw than rows in the data.
        picked = np.random.default_rng(seed).integers(len(ds), size=n).tolist()
        options["given"] = ds.rows(picked).to(device)
    elif (likelihood == "multinomial" or counts(model)) and length is None:
        options["length"] = LengthDistribution.of(ds)
    elif likelihood == "gaussian" and density is None:
        options["density"] = LengthDistribution.of(ds, "entries").draw(n, seed=seed).to(device)
    if counts(model) and model.n_batch and not imitate:
        batches = ds.rows(np.random.default_rng(seed).integers(len(ds), size=n)).batch_index
        options["batch_index"] = batches
    rows = model.sample(n, **options).to("cpu")
    _write(out, rows)
    return rows, sparsity_report(rows, ds), picked


def _writable(path: Path) -> Path:
    """The path, if a file can be there: said before the draw, which may take long."""
    if path.suffix != ".npz":
        raise ValueError(f"expected a file name that ends in .npz, but got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its directory does not exist", str(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path


def _write(path: Path, rows: CSRBatch) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    try:
        sp.save_npz(temporary, rows.to_scipy())
        os.replace(temporary, path)
    except OSError as error:  # of which the temporary file's name says nothing to anybody
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
