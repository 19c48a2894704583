"""Training, evaluating and sampling the models that do not recommend, by library and command."""

from __future__ import annotations

import errno
import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext import models
from sparsevae_ext.cli import main
from sparsevae_ext.data import CSRDataset
from sparsevae_ext.train import (
    PosteriorCollapseWarning,
    RunSettings,
    fit,
    load_run,
    saved_settings,
    split_rows,
    train_run,
)
from sparsevae_ext.train.metrics import split_fold_in
from sparsevae_ext.train.validation import Monitor, measure, monitor_of

ROWS, COLUMNS = 90, 30
SMALL = ["--hidden", "8", "--batch-size", "16", "--threads", "1", "--lr", "0.02", "--no-progress"]


pytestmark = pytest.mark.usefixtures("one_thread")


def present() -> sp.csr_matrix:
    """Rows of zeros and ones, of three kinds."""
    rng = np.random.default_rng(0)
    p = np.full((ROWS, COLUMNS), 0.05)
    for row in range(ROWS):
        p[row, row % 3 * 10 : row % 3 * 10 + 10] = 0.6
    return sp.csr_matrix((rng.random(p.shape) < p).astype(np.float32))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "present.npz"
    sp.save_npz(path, present())
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


# ---- what is measured ----------------------------------------------------------------------


def test_models_that_do_not_recommend_are_measured_by_their_loss():
    model = models.VAE(COLUMNS, hidden=8, latent=3)
    assert monitor_of(model) == Monitor("loss", rises=False)
    assert monitor_of(models.MultVAE(COLUMNS, hidden=8, latent=3)) == Monitor("ndcg@100", True)
    fold_in, held_out = split_fold_in(present())
    result = measure(model, fold_in, held_out, batch_size=7)
    model.eval()
    with torch.no_grad():
        whole = model(CSRDataset(present()).rows(slice(None)))  # all rows, entries unsplit
    for name in ("loss", "nll", "kl", "penalty"):
        assert result[name] == pytest.approx(float(getattr(whole, name)), rel=1e-5)
    assert 0 <= result["active_units"] <= 3
    assert "l0" not in result


def test_monitor():
    assert Monitor("loss", False).better(1.0, None)
    assert Monitor("loss", False).better(1.0, 2.0)
    assert not Monitor("loss", False).better(2.0, 2.0)
    assert Monitor("ndcg", True).better(3.0, 2.0)
    for rises in (True, False):
        assert not Monitor("x", rises).better(math.nan, None)
        assert not Monitor("x", rises).better(math.nan, 1.0)


def test_fit_keeps_the_epoch_with_the_lowest_validation_loss():
    torch.manual_seed(0)
    model = models.SparseAutoencoder(COLUMNS, 8, sparsity="l1:0.05")
    ds = CSRDataset(present())
    options = {"epochs": 12, "batch_size": 15, "lr": 0.05, "progress": False}
    history = fit(model, ds.subset(range(60)), valid=ds.subset(range(60, 90)), **options)
    epochs, losses = history.column("valid_loss")
    assert len(epochs) == 12
    assert losses[-1] < losses[0] - 1
    assert history.best_metric == min(losses)
    assert history.best_epoch == epochs[int(np.argmin(losses))]
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    fold_in, held_out = split_fold_in(ds.subset(range(60, 90)))
    assert measure(model, fold_in, held_out, 15)["loss"] == pytest.approx(min(losses), rel=1e-5)
    assert 0 < history.rows[-1]["valid_l0"] <= 8
    assert history.rows[-1]["valid_dead_units"] == float(model.firing.dead(60).sum())


def test_the_validation_loss_has_the_full_weight_of_the_divergence():
    """Else the first epochs, where beta is near 0, would look best."""
    torch.manual_seed(0)
    model = models.VAE(COLUMNS, hidden=8, latent=3, beta=2.0)
    ds = CSRDataset(present())
    history = fit(model, ds, valid=ds, epochs=2, batch_size=30, progress=False)
    for row in history.rows:
        assert row["valid_loss"] == pytest.approx(row["valid_nll"] + 2.0 * row["valid_kl"])
    assert history.rows[0]["beta"] < 2.0
    assert model.beta == 2.0


def test_a_collapsed_posterior_is_said_at_the_end():
    torch.manual_seed(0)
    ds = CSRDataset(present())
    options = {"epochs": 20, "batch_size": 30, "lr": 0.02, "progress": False}
    with pytest.warns(PosteriorCollapseWarning, match="no unit of the code is active"):
        model = models.VAE(COLUMNS, hidden=8, latent=3, beta=500.0)
        history = fit(model, ds, valid=ds, anneal_fraction=0.0, **options)
    assert history.rows[-1]["valid_active_units"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = models.VAE(COLUMNS, hidden=8, latent=3, beta=0.1)
        history = fit(model, ds, valid=ds, **options)
    assert history.rows[-1]["valid_active_units"] > 0


# ---- settings ------------------------------------------------------------------------------


def test_settings_make_every_model():
    for name, width in (
        ("mult-vae", "n_items"),
        ("mult-dae", "n_items"),
        ("vae", "n_features"),
        ("sparse-autoencoder", "n_features"),
        ("topic-vae", "n_words"),
    ):
        config = RunSettings("spam", model=name).model_config(40)
        assert config[width] == 40
        assert models.build(config | {"hidden": 4}).config()["name"] == name
    given = {"likelihood": "gaussian", "learn_logvar": True, "free_bits": 0.1, "latent": 5}
    config = RunSettings("spam", model="vae", hidden=4, **given).model_config(40)
    assert models.build(config).config().items() >= given.items()
    given = {"sparsity": "topk:3", "loss": "gaussian", "reduction": "keras", "auxk": 0.1}
    settings = RunSettings("spam", model="sae", hidden=16, **given)
    assert settings.model == "sparse-autoencoder"
    assert models.build(settings.model_config(40)).config().items() >= given.items()
    given = {"topics": 3, "decoder": "mixture", "alpha": 0.5, "beta": 0.5, "dropout": 0.1}
    config = RunSettings("spam", model="topic-vae", hidden=4, **given).model_config(40)
    assert models.build(config).config().items() >= given.items()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "mult-vae", "sparsity": "l1:1"}, "--sparsity is not for --model mult-vae"),
        ({"model": "mult-dae", "beta": 0.2}, "only for mult-vae, vae"),
        ({"model": "sparse-autoencoder", "latent": 3}, "--latent is not for"),
        ({"model": "topic-vae", "latent": 3}, "--latent is not for --model topic-vae"),
        ({"model": "vae", "topics": 3}, "only for topic-vae"),
        ({"model": "vae", "loss": "bernoulli"}, "only for sparse-autoencoder"),
        ({"model": "gan"}, "expected model to be one of"),
    ],
)
def test_options_of_other_models_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        RunSettings("spam", **options)


# ---- the command ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of each of the two models."""
    out = tmp_path_factory.mktemp("runs")
    settings = {"data": str(data), "hidden": 8, "batch_size": 16, "lr": 0.02, "epochs": 6}
    train_run(RunSettings(model="vae", latent=3, **settings), out / "vae", progress=False)
    options = {"sparsity": "topk:3", "loss": "gaussian"}
    train_run(
        RunSettings(model="sparse-autoencoder", **options, **settings),
        out / "sparse",
        progress=False,
    )
    return out


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (["--model", "vae", "--latent", "3"], ["loss", "nll", "kl", "active units"]),
        (
            ["--model", "sparse-autoencoder", "--sparsity", "l1:0.01"],
            ["loss", "nll", "penalty", "l0", "dead units"],
        ),
    ],
)
def test_train_and_evaluate(options, columns, data, tmp_path, capsys):
    out = tmp_path / "run"
    code, text, error = run(
        capsys, "train", "--data", data, "--out", out, "--epochs", 4, *SMALL, *options, "--plot"
    )
    assert code == 0, error
    header = next(line for line in text.splitlines() if "test rows" in line)
    assert [part.strip() for part in header.split("  ") if part.strip()][1:] == columns
    assert (out / "training.png").stat().st_size > 5000
    metrics = json.loads((out / "metrics.json").read_text())
    assert "baselines" not in metrics
    assert metrics["best_valid_loss"] > 0
    code, text, error = run(capsys, "evaluate", "--checkpoint", out, "--json")
    assert code == 0, error
    result = json.loads(text)
    for name, value in metrics["test"].items():
        assert result[name] == pytest.approx(value, rel=1e-6), name
    code, text, _ = run(capsys, "evaluate", "--checkpoint", out)
    assert code == 0
    assert all(column in text for column in columns)


def test_resume_is_the_run_without_a_break(data, tmp_path, capsys):
    options = [
        "--data",
        data,
        "--model",
        "sparse-autoencoder",
        "--sparsity",
        "batch_topk:3",
        *SMALL,
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(capsys, "train", "--out", whole, "--epochs", 4, *options)[0] == 0
    assert run(capsys, "train", "--out", parts, "--epochs", 4, "--stop-after", 2, *options)[0] == 0
    code, _, error = run(
        capsys, "train", "--out", parts, "--resume", "--no-progress", "--threads", 1
    )
    assert code == 0, error
    ours, theirs = (load_run(path)[0].state_dict() for path in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(ours["firing.rows"]) > 0
    assert saved_settings(parts).sparsity == "batch_topk:3"


def test_recommending_with_another_kind_of_model_is_one_line(trained, capsys):
    code, _, error = run(capsys, "recommend", "--checkpoint", trained / "vae", "--rows", "0")
    assert (code, error.count("\n")) == (2, 1)
    assert "vae is no model that recommends" in error


# ---- sampling from a run -------------------------------------------------------------------


def test_sample_writes_rows_and_prints_the_comparison(trained, tmp_path, capsys):
    file = tmp_path / "rows.npz"
    command = ("sample", "--checkpoint", trained / "vae", "--out", file, "--n", 200)
    code, text, error = run(capsys, *command, "--plot", tmp_path / "rows.png")
    assert code == 0, error
    rows = sp.load_npz(file)
    assert rows.shape == (200, COLUMNS)
    assert rows.has_canonical_format
    assert set(rows.data.tolist()) == {1.0}
    assert "density" in text
    assert str(file) in text
    assert (tmp_path / "rows.png").stat().st_size > 5000
    # As dense as the data, by training and not by force.
    assert rows.nnz / (200 * COLUMNS) == pytest.approx(present().nnz / (ROWS * COLUMNS), rel=0.3)
    assert run(capsys, *command)[0] == 0
    assert (sp.load_npz(file) != rows).nnz == 0
    assert run(capsys, *command, "--seed", 1)[0] == 0
    assert (sp.load_npz(file) != rows).nnz > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.npz", "rows.png"]


def test_sample_imitates_rows_for_a_model_without_prior(trained, tmp_path, capsys):
    file = tmp_path / "rows.npz"
    command = ("sample", "--checkpoint", trained / "sparse", "--out", file, "--n", 50)
    code, _, error = run(capsys, *command)
    assert (code, error.count("\n")) == (2, 1)
    assert "no prior to draw from; give --imitate" in error
    code, text, error = run(capsys, *command, "--imitate", "--json")
    assert code == 0, error
    report = json.loads(text)
    # A Gaussian keeps as many entries as the rows that it imitates have.
    picked = np.random.default_rng(0).integers(ROWS, size=50)
    assert report["generated"]["nnz"] == int(np.diff(present().indptr)[picked].sum())


def test_sample_takes_row_totals_from_the_data(data, tmp_path, capsys):
    out, file = tmp_path / "run", tmp_path / "rows.npz"
    assert run(capsys, "train", "--data", data, "--out", out, "--epochs", 1, *SMALL)[0] == 0
    assert run(capsys, "sample", "--checkpoint", out, "--out", file, "--n", 60)[0] == 0
    totals = set(np.asarray(present().sum(axis=1)).ravel().tolist())
    assert set(np.asarray(sp.load_npz(file).sum(axis=1)).ravel().tolist()) <= totals
    command = ("sample", "--checkpoint", out, "--out", file, "--n", 5, "--length", 7)
    assert run(capsys, *command)[0] == 0
    assert np.asarray(sp.load_npz(file).sum(axis=1)).ravel().tolist() == [7.0] * 5


@pytest.mark.parametrize(
    "options",
    [
        ["--n", "0"],
        ["--density", "1.5"],
        ["--temperature", "0"],
        ["--length", "5"],  # a Bernoulli row has no total to ask for
    ],
)
def test_wrong_sampling_options_are_one_line(options, trained, tmp_path, capsys):
    file = tmp_path / "rows.npz"
    code, text, error = run(
        capsys, "sample", "--checkpoint", trained / "vae", "--out", file, *options
    )
    assert (code, text, error.count("\n")) == (2, "", 1)
    assert not file.exists()


def test_other_file_names_and_missing_folders(trained, tmp_path, capsys):
    command = ("sample", "--checkpoint", trained / "vae", "--n", 5, "--out")
    code, _, error = run(capsys, *command, tmp_path / "rows.csv")
    assert code == 2
    assert ".npz" in error
    missing = tmp_path / "none" / "rows.npz"
    code, _, error = run(capsys, *command, missing)
    assert (code, error.count("\n")) == (1, 1)
    assert f"{missing}: its directory does not exist" in error
    code, _, error = run(capsys, *command, tmp_path)
    assert (code, error.count("\n")) == (2, 1)


def test_a_sample_that_cannot_be_written_names_its_file(trained, tmp_path, capsys, monkeypatch):
    def full(file, *_):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(sp, "save_npz", full)
    file = tmp_path / "rows.npz"
    code, _, error = run(capsys, "sample", "--checkpoint", trained / "vae", "--n", 5, "--out", file)
    assert (code, error) == (1, f"sparsevae sample: error: {file}: No space left on device\n")
    assert not os.listdir(tmp_path)


def test_split_used_for_dead_units(trained, data):
    """A dead unit is one silent for as many rows as the run trained on in an epoch."""
    model, saved, _ = load_run(trained / "sparse")
    n_train = len(split_rows(ROWS, 0.1, 0.1, 0).train)
    metrics = json.loads((trained / "sparse" / "metrics.json").read_text())
    assert metrics["test"]["dead_units"] == float(model.firing.dead(n_train).sum())


def test_command_line_with_topics(tmp_path, capsys):
    out, options = tmp_path / "run", ["--hidden", "8", "--batch-size", "30", "--threads", "1"]
    data = tmp_path / "words.npz"
    sp.save_npz(data, present())
    base = ["train", "--data", str(data), "--model", "topic-vae", "--topics", "3", "--plot"]
    assert main([*base, *options, "--epochs", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "perplexity" in shown.err and "diversity" in shown.err
    assert "unigram" in shown.out and "3 topics: NPMI coherence" in shown.out
    result = json.loads((out / "metrics.json").read_text())
    assert result["best_valid_perplexity"] > 1 and result["test"]["perplexity"] > 1
    assert [len(topic["words"]) for topic in result["topics"]["topics"]] == [10, 10, 10]
    assert " ".join(map(str, result["topics"]["topics"][0]["words"])) in shown.out
    for name in ("training.png", "topics.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    # The best epoch is the one that predicts the held-out words best.
    history = (out / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("valid_perplexity")
    values = [float(line.split(",")[column]) for line in history[1:]]
    assert result["best_epoch"] == 1 + values.index(min(values))
    assert main(["evaluate", "--checkpoint", str(out), "--threads", "1"]) == 0
    assert "topic diversity" in capsys.readouterr().out
    drawn = str(tmp_path / "drawn.npz")
    assert main(["sample", "--checkpoint", str(out), "--out", drawn, "--n", "5"]) == 0
    assert sp.load_npz(drawn).shape == (5, COLUMNS)
    resumed = [*options, "--out", str(out), "--resume", "--epochs", "3"]
    assert main(["train", *resumed]) == 0
    assert json.loads((out / "metrics.json").read_text())["epochs"] == 3
