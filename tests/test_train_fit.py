"""The training loop: what it computes, when it stops, and what it writes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from train_toys import (
    COLUMNS,
    Output,
    Scripted,
    counts,
    dae,
    dataset,
    same,
    scripted_metrics,
    train,
    vae,
)

from sparsevae_ext.data import CSRDataset, CSRLoader
from sparsevae_ext.train import (
    FitOptions,
    History,
    LinearAnnealing,
    fit,
    load_checkpoint,
    seed_everything,
    split_rows,
)
from sparsevae_ext.train.memory import peak_memory_mib
from sparsevae_ext.train.optimizers import make_optimizer
from sparsevae_ext.train.seed import get_rng_state, set_rng_state

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- what is computed ----------------------------------------------------------------------------


def test_the_loop_is_the_one_a_person_would_write():
    model, twin = vae(), vae()
    train(model, epochs=3, lr=0.01, weight_decay=0.1, anneal_fraction=0.5, seed=5)

    loader = CSRLoader(dataset(), batch_size=16, shuffle=True, seed=5)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    seed_everything(5)
    twin.train()
    step, total = 0, 3 * len(loader)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            twin.beta = 0.2 * min(1.0, step / (0.5 * total))
            optimizer.zero_grad()
            twin(batch).loss.backward()
            optimizer.step()
            step += 1
    same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("make", [vae, dae])
def test_the_loss_falls_and_the_ranking_improves(make):
    history = train(make(), epochs=15, lr=0.02, valid=dataset(40, seed=1))
    _, nll = history.column("nll")
    assert nll[-1] < 0.95 * nll[0]
    _, ndcg = history.column("valid_ndcg@100")
    assert len(ndcg) == 15 and max(ndcg[5:]) > ndcg[0] + 0.05
    assert history.best_metric == max(ndcg) and history.best_epoch == 1 + ndcg.index(max(ndcg))


def test_epoch_means_are_over_rows_not_over_batches():
    """With 20 rows in batches of 16 the last batch has 4 rows and must weigh a quarter."""

    class PerBatch(Scripted):
        def forward(self, batch):
            loss = self.weight.sum() + float(len(batch))
            return Output(loss, loss, torch.zeros(()), torch.zeros(()))

    row = train(PerBatch(), data=dataset(20), epochs=1, lr=1e-30).rows[0]
    assert row["loss"] == pytest.approx((16 * 16 + 4 * 4) / 20)


def test_validation_does_not_change_what_is_trained():
    plain, validated = vae(), vae()
    train(plain)
    train(validated, valid=dataset(20, seed=1), restore_best=False)
    same(plain.state_dict(), validated.state_dict())


# ---- schedules -----------------------------------------------------------------------------------


def test_annealing_is_a_fraction_of_the_run():
    beta = LinearAnnealing(cap=0.2, total_steps=1000, fraction=0.25)
    assert [beta(step) for step in (0, 125, 250, 999)] == [0.0, 0.1, 0.2, 0.2]
    steps = [beta(step) for step in range(1000)]
    assert steps == sorted(steps)
    assert LinearAnnealing(0.2, 10, fraction=0)(0) == 0.2
    for bad in ({"cap": -1.0}, {"fraction": 1.5}, {"fraction": -0.1}, {"total_steps": 0}):
        with pytest.raises(ValueError, match="LinearAnnealing"):
            LinearAnnealing(**{"cap": 0.2, "total_steps": 10, "fraction": 0.5, **bad})


def test_the_cap_is_reached_in_a_run_of_any_length_and_given_back():
    for epochs in (1, 3):
        model = Scripted()
        train(model, epochs=epochs, batch_size=6, anneal_fraction=0.5)
        steps = 10 * epochs
        assert model.betas == [0.8 * min(1.0, t / (steps / 2)) for t in range(steps)]
        assert model.beta == 0.8


# ---- early stopping ------------------------------------------------------------------------------


def test_early_stopping_counts_validations_and_gives_the_best_weights(monkeypatch, tmp_path):
    values = [0.1, 0.3, 0.2, 0.31, 0.31, 0.3, 0.2, 0.9]
    scripted_metrics(monkeypatch, values)
    model = vae()
    history = train(model, valid=dataset(8), epochs=8, patience=3, out=tmp_path)
    assert history.stopped == "early" and len(history) == 7
    assert history.best_epoch == 4 and history.best_metric == 0.31
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == 4 and load_checkpoint(tmp_path / "last.pt")["epoch"] == 7
    same(best["model"], model.state_dict())


def test_the_best_weights_come_back_without_a_directory(monkeypatch):
    scripted_metrics(monkeypatch, [0.5, 0.4, 0.3])
    model, one_epoch = vae(), vae()
    train(model, valid=dataset(8), epochs=3, anneal_fraction=0)
    train(one_epoch, epochs=1, anneal_fraction=0)
    same(model.state_dict(), one_epoch.state_dict())


def test_validation_without_anything_to_rank_never_counts_as_better():
    single = CSRDataset(sp.csr_matrix(np.eye(5, COLUMNS, dtype=np.float32)))
    history = train(vae(), valid=single, epochs=3, patience=2)
    assert history.best_epoch == 0 and history.stopped == "early" and len(history) == 2


def test_valid_every(monkeypatch):
    scripted_metrics(monkeypatch, [0.1, 0.2, 0.3])
    history = train(vae(), valid=dataset(8), epochs=5, valid_every=2)
    assert history.column("valid_ndcg@100") == ([2, 4, 5], [0.1, 0.2, 0.3])


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"anneal_fraction": 2.0},
        {"valid_every": 0},
        {"optimizer": "sgd"},
        {"patience": 0},
        {"stop_after": 0},
        {"stop_after": -1},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_bad_options_are_value_errors(bad):
    with pytest.raises(ValueError):
        train(vae(), **bad)


def test_an_empty_data_set_is_a_value_error():
    with pytest.raises(ValueError, match="at least one training row"):
        fit(vae(), CSRDataset(counts()[:0]), progress=False)


@pytest.mark.parametrize("bad", [{"epochs": 2.5}, {"batch_size": "9"}, {"seed": True}])
def test_a_number_that_is_no_int_is_a_type_error(bad):
    with pytest.raises(TypeError, match=f"fit.*expected {next(iter(bad))} to be an int"):
        train(vae(), **bad)


def test_data_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="train_ds to be a CSRDataset, but got csr_matrix"):
        fit(vae(), counts(), progress=False)
    for valid in (counts(20), (dataset(20),)):
        with pytest.raises(TypeError, match=r"valid to be a CSRDataset, a pair"):
            train(vae(), valid=valid)


# ---- the small pieces ----------------------------------------------------------------------------


def test_history_as_a_file(tmp_path):
    train(vae(), epochs=2, out=tmp_path, valid=dataset(8))
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 3
    header = lines[0].split(",")
    assert {"epoch", "loss", "nll", "kl", "beta", "valid_ndcg@100"} <= set(header)
    assert lines[2].startswith("2,8,")
    history = History([{"epoch": 1, "x": 1.0}, {"epoch": 2, "y": 2.0}])
    history.to_csv(tmp_path / "gaps.csv")
    assert (tmp_path / "gaps.csv").read_text().split() == ["epoch,x,y", "1,1.0,", "2,,2.0"]
    assert history.column("y") == ([2], [2.0])


def test_progress_goes_to_stderr_and_only_when_asked(capsys):
    train(vae(), epochs=2, progress=None)
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.count("\n") == 2 and "rows/s" in seen.err
    assert "\r" not in seen.err  # no bar: this is no terminal
    train(vae(), epochs=1, progress=True)
    assert "epoch 1/1:" in capsys.readouterr().err
    train(vae(), epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_generator_states_survive_a_checkpoint(tmp_path):
    from sparsevae_ext.train import save_checkpoint

    seed_everything(3)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second draw back
    save_checkpoint(get_rng_state(), tmp_path / "rng.pt")

    def draw():
        return random.gauss(0, 1), np.random.standard_normal(), float(torch.randn(()))

    first = draw()
    draw()
    set_rng_state(load_checkpoint(tmp_path / "rng.pt"))
    assert draw() == first


def test_split_rows_is_a_partition_decided_by_the_seed():
    split = split_rows(103, 0.1, 0.2, seed=4)
    assert [len(part) for part in split] == [72, 10, 21]
    assert sorted(np.concatenate(split).tolist()) == list(range(103))
    assert all(np.all(np.diff(part) > 0) for part in split)
    again, other = split_rows(103, 0.1, 0.2, seed=4), split_rows(103, 0.1, 0.2, seed=5)
    assert np.array_equal(split.train, again.train) and not np.array_equal(split.test, other.test)
    assert [len(part) for part in split_rows(5, 0.01, 0.0)] == [4, 1, 0]
    for bad in ((2, 0.5, 0.5), (1, 0.1, 0.0), (9, -0.1, 0.0), (9, float("nan"), 0.0)):
        with pytest.raises(ValueError, match="split_rows"):
            split_rows(*bad)


def test_options_and_optimizer():
    assert FitOptions().optimizer == "adam"
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=0.25)
    assert optimizer.defaults["lr"] == 0.5 and optimizer.defaults["weight_decay"] == 0.25
    with pytest.raises(ValueError, match="make_optimizer"):
        make_optimizer([], "rmsprop")


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mib()
    if before is None:
        pytest.skip("not known on this platform")
    block = np.ones(64 << 17)  # 64 MiB
    assert peak_memory_mib() >= before > 10 and block[0] == 1
