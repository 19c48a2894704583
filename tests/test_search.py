"""The search over a grid: its folds, its numbers, its results, and going on after a stop."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext.cli import main
from sparsevae_ext.data import CSRDataset
from sparsevae_ext.train import (
    CheckpointError,
    Interrupted,
    RunSettings,
    SearchSettings,
    k_folds,
    run_search,
    saved_search,
    search,
)

ROWS, COLUMNS = 60, 20


def counts(seed=0):
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(0.7, (ROWS, COLUMNS)).astype(np.float32))


def settings(model="vae", latent=(2, 3), beta=(0.1, 1.0), folds=2, **options):
    if model == "vae":
        options["likelihood"] = "multinomial"
    options = {"hidden": 4, "epochs": 2, "batch_size": 20} | options
    return SearchSettings(RunSettings("memory", model=model, **options), latent, beta, folds)


def searched(out, chosen=None, **options):
    torch.set_num_threads(1)
    options = {"dataset": CSRDataset(counts()), "progress": False} | options
    return run_search(chosen or settings(), out, **options)


def test_k_folds_are_all_rows_once():
    rows = np.array([3, 1, 8, 20, 5, 9, 11])
    parts = k_folds(rows, 3, seed=1)
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    assert sorted(np.concatenate(parts)) == sorted(rows)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert [p.tolist() for p in k_folds(rows, 3, seed=1)] == [p.tolist() for p in parts]
    assert [p.tolist() for p in k_folds(rows, 3, seed=2)] != [p.tolist() for p in parts]
    for folds in (1, 8):
        with pytest.raises(ValueError, match=f"got {folds}"):
            k_folds(rows, folds)


def test_every_point_meets_every_fold_and_the_table_is_their_mean(tmp_path):
    result = searched(tmp_path)
    assert json.loads((tmp_path / "search.json").read_text()) == json.loads(json.dumps(result))
    places = [(run["latent"], run["beta"], run["fold"]) for run in result["runs"]]
    # Fold by fold, so that a stopped search has tried the whole grid.
    assert places == [(z, b, f) for f in (0, 1) for z in (2, 3) for b in (0.1, 1.0)]
    # A bound on the likelihood, not the loss: that is smaller for a small beta by itself.
    assert result["objective"] == {"name": "nll + kl", "rises": False}
    for run in result["runs"]:
        parts = run["metrics"]
        assert run["objective"] == pytest.approx(parts["nll"] + parts["kl"])
        loss = parts["nll"] + run["beta"] * parts["kl"]
        assert parts["loss"] == pytest.approx(loss, rel=1e-5)
        assert run["epochs"] == 2 and run["seconds"] > 0
    means = [row["mean"] for row in result["table"]]
    assert means == sorted(means) and len(means) == 4
    assert result["best"] == result["table"][0]
    for row in result["table"]:
        own = [
            run["objective"]
            for run in result["runs"]
            if (run["latent"], run["beta"]) == (row["latent"], row["beta"])
        ]
        assert row["mean"] == pytest.approx(np.mean(own))
        assert row["std"] == pytest.approx(np.std(own, ddof=1))
        assert (row["folds"], row["failed"]) == (2, 0)


@pytest.mark.parametrize(
    ("model", "beta", "name", "rises", "option"),
    [
        ("mult-vae", (0.2,), "ndcg@100", True, "latent"),
        ("topic-vae", (0.5,), "perplexity", False, "topics"),
        ("mult-dae", (), "ndcg@100", True, "hidden"),
        ("sae", (), "nll", False, "hidden"),
        ("count-vae", (), "nll + kl", False, "latent"),
    ],
)
def test_what_a_model_is_compared_by(model, beta, name, rises, option, tmp_path):
    options = {"loss": "multinomial"} if model == "sae" else {}
    chosen = settings(model, (3, 5), beta, epochs=1, **options)
    point = chosen.points()[1]
    assert point["latent"] == 5 and getattr(chosen.settings(point), option) == 5
    result = searched(tmp_path, chosen)
    assert result["objective"] == {"name": name, "rises": rises}
    for run in result["runs"]:
        parts = [run["metrics"][part] for part in name.split(" + ")]
        assert run["objective"] == pytest.approx(sum(parts))
    means = [row["mean"] for row in result["table"]]
    assert means == sorted(means, reverse=rises)


def test_test_rows_stay_unseen(tmp_path, monkeypatch):
    seen = []

    def spy(model, train, *, valid, **options):
        seen.append((train, valid))
        return fit(model, train, valid=valid, **options)

    fit = search.fit
    monkeypatch.setattr(search, "fit", spy)
    matrix = counts()
    # A last column that tells the rows apart.
    matrix = sp.hstack([matrix, np.arange(1, ROWS + 1)[:, None]], format="csr").astype(np.float32)
    chosen = settings(latent=(2,), beta=(), folds=3, epochs=1, test_fraction=0.2)
    searched(tmp_path, chosen, dataset=CSRDataset(matrix))
    test = {row + 1 for row in chosen.run.split(ROWS).test}
    held = []
    for train, valid in seen:
        trained = set(train.to_scipy()[:, -1].toarray().ravel().astype(int))
        whole = valid[0].to_scipy()
        left_out = set(whole[:, -1].toarray().ravel().astype(int))
        assert not trained & left_out and not (trained | left_out) & test
        assert len(trained | left_out | test) == ROWS
        held += sorted(left_out)
    assert sorted(held) == sorted(set(range(1, ROWS + 1)) - test)


def test_a_stopped_search_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = searched(tmp_path / "whole")
    calls = []

    def stop_at(call):
        def spy(*args, **options):
            calls.append(1)
            if len(calls) == call:
                raise Interrupted(2)
            return fit(*args, **options)

        return spy

    fit = search.fit
    out = tmp_path / "stopped"
    monkeypatch.setattr(search, "fit", stop_at(4))
    with pytest.raises(Interrupted) as caught:
        searched(out)
    assert caught.value.saved == str(out / "search.json")
    assert len(json.loads((out / "search.json").read_text())["runs"]) == 3
    calls.clear()
    monkeypatch.setattr(search, "fit", stop_at(99))
    result = searched(out, resume=True)
    assert len(calls) == 5
    assert [r["objective"] for r in result["runs"]] == [r["objective"] for r in whole["runs"]]
    assert result["table"] == whole["table"] and result["best"] == whole["best"]
    # A wider grid keeps what is known; nothing is run twice.
    calls.clear()
    wider = replace(settings(), latent=(2, 3, 4))
    assert len(searched(out, wider, resume=True)["runs"]) == 12
    assert len(calls) == 4
    assert saved_search(out) == wider


def test_resume_refuses_what_differs(tmp_path):
    chosen = settings(latent=(2,), beta=(), epochs=1)
    searched(tmp_path, chosen)
    for text, other in (
        ("folds 2, but got 3", replace(chosen, folds=3)),
        ("patience None, but got 1", replace(chosen, patience=1)),
        ("lr 0.001, but got 0.5", replace(chosen, run=replace(chosen.run, lr=0.5))),
        ("seed 0, but got 1", replace(chosen, run=replace(chosen.run, seed=1))),
    ):
        with pytest.raises(ValueError, match=text):
            searched(tmp_path, other, resume=True)
    with pytest.raises(ValueError, match="is not the data of the search"):
        searched(tmp_path, chosen, resume=True, dataset=CSRDataset(counts(seed=1)))
    with pytest.raises(ValueError, match="already holds a search"):
        searched(tmp_path, chosen)
    searched(tmp_path, chosen, overwrite=True)
    with pytest.raises(CheckpointError, match="no search to resume"):
        searched(tmp_path / "none", chosen, resume=True)
    for text in ("{", "[]", '{"search": {}}'):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read|holds no search"):
            searched(tmp_path, chosen, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a search needs a directory"):
        searched(tmp_path / "file", chosen)


def test_a_run_that_breaks_down_is_counted_as_failed(tmp_path):
    chosen = settings("vae", (2,), (1.0,), epochs=1, lr=1e30)
    result = searched(tmp_path, chosen)
    assert [run["objective"] for run in result["runs"]] == [None, None]
    assert "step" in result["runs"][0]["failed"]
    (row,) = result["table"]
    assert row["mean"] is None and row["failed"] == 2 and result["best"] is None
    json.loads((tmp_path / "search.json").read_text(), parse_constant=lambda text: 1 / 0)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("folds >= 2", {"folds": 1}),
        ("each latent once", {"latent": (2, 2)}),
        ("values of --latent or --beta", {"latent": (), "beta": ()}),
        ("--beta is not for --model mult-dae", {"model": "mult-dae"}),
    ],
)
def test_settings_that_make_no_search(text, change):
    with pytest.raises(ValueError, match=text):
        settings(**change)


def test_command_line(tmp_path, capsys):
    path, out = tmp_path / "counts.npz", tmp_path / "search"
    sp.save_npz(path, counts())
    base = ["search", "--out", str(out), "--threads", "1"]
    first = [
        *("--data", str(path), "--model", "mult-vae", "--hidden", "4", "--batch-size", "20"),
        *("--latent", "2,4", "--beta", "0.1,0.2", "--folds", "2", "--epochs", "1", "--plot"),
    ]
    assert main([*base, *first]) == 0
    shown = capsys.readouterr()
    assert "run 8/8  latent 4  beta 0.2  fold 2/2  ndcg@100" in shown.err
    assert "4 settings, 2 folds, higher ndcg@100 is better" in shown.out
    result = json.loads((out / "search.json").read_text())
    best = result["best"]
    assert f"--model mult-vae --latent {best['latent']} --beta {best['beta']:g}" in shown.out
    assert f"{best['mean']:,.5g}" in shown.out
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    # The grid grows by one value; all else is remembered.
    assert main([*base, "--resume", "--latent", "2,4,6", "--beta", "0.2"]) == 0
    shown = capsys.readouterr()
    assert "4 of 6 runs were done before" in shown.err and "run 6/6" in shown.err
    for options, text in (
        (["--resume", "--lr", "0.5"], "lr 0.001, but got 0.5"),
        (["--resume", "--latent", "2,x"], "expected an integer, got 'x'"),
        (first, "already holds a search"),
        (["--latent", "2"], "--data is required"),
        (["--data", str(path), "--latent", "2", "--topics", "3"], "unrecognized|not for"),
    ):
        assert main([*base, *options]) == 2
        assert re.search(text, capsys.readouterr().err)
    assert math.isfinite(best["mean"])
