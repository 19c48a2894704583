"""The training loop: what it computes, when it stops, and that it can go on where it stopped."""

from __future__ import annotations

import os
import random
import re
import signal
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext.data import CSRDataset, CSRLoader
from sparsevae_ext.models import MultDAE, MultVAE, TopicVAE
from sparsevae_ext.train import (
    CheckpointError,
    FitOptions,
    History,
    Interrupted,
    LinearAnnealing,
    NonFiniteLossError,
    fit,
    load_checkpoint,
    loop,
    seed_everything,
    split_rows,
)
from sparsevae_ext.train.memory import peak_memory_mib
from sparsevae_ext.train.non_finite import find_cause
from sparsevae_ext.train.optimizers import make_optimizer
from sparsevae_ext.train.seed import get_rng_state, set_rng_state

COLUMNS = 40
TIMES = {"seconds", "rows_per_s", "wait_share"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counts(rows: int = 60, seed: int = 0) -> sp.csr_matrix:
    """Rows of counts from four groups, each with ten columns of its own."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((rows, COLUMNS), dtype=np.float32)
    for row in range(rows):
        weight = np.full(COLUMNS, 0.1)
        weight[row % 4 * 10 : row % 4 * 10 + 10] = 3.0
        dense[row] = rng.multinomial(20, weight / weight.sum())
    return sp.csr_matrix(dense)


def dataset(rows: int = 60, seed: int = 0) -> CSRDataset:
    return CSRDataset(counts(rows, seed))


def vae(seed: int = 0) -> MultVAE:
    torch.manual_seed(seed)
    return MultVAE(COLUMNS, hidden=8, latent=4)


def dae(seed: int = 0) -> MultDAE:
    torch.manual_seed(seed)
    return MultDAE(COLUMNS, hidden=8)


def train(model, **options):
    options = {"epochs": 4, "batch_size": 16, "progress": False, **options}
    return fit(model, options.pop("data", None) or dataset(), **options)


def same(a, b, path: str = "") -> None:
    """Bit-equality of two checkpoints, except for what a clock says."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - TIMES - {"waited"}:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}/{index}")
    else:
        assert a == b, (path, a, b)


class Output(NamedTuple):
    loss: torch.Tensor
    nll: torch.Tensor
    kl: torch.Tensor
    penalty: torch.Tensor


class Scripted(torch.nn.Module):
    """A model whose loss the test decides; draws from all three generators."""

    def __init__(self, before_step=None, bad_nll_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.before_step = before_step
        self.bad_nll_at = bad_nll_at
        self.calls = 0
        self.betas: list[float] = []
        self.beta = 0.8

    def forward(self, batch):
        if self.before_step is not None:
            self.before_step(self.calls)
        noise = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
        nll = (self.weight - noise).square().sum() + 0 * batch.values.sum()
        if self.calls == self.bad_nll_at:
            nll = nll + float("inf")
        self.calls += 1
        self.betas.append(self.beta)
        zero = torch.zeros(())
        return Output(nll, nll, zero, zero)


# ---- what is computed ----------------------------------------------------------------------


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


# ---- schedules -----------------------------------------------------------------------------


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


# ---- early stopping ------------------------------------------------------------------------


def scripted_metrics(monkeypatch, values):
    remaining = iter(values)
    monkeypatch.setattr(
        loop, "measure", lambda *args, **kwargs: {"ndcg@100": next(remaining), "perplexity": 1.0}
    )


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


# ---- resume --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vae, dae])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(make, tmp_path):
    options = {"epochs": 4, "valid": dataset(20, seed=1), "patience": 3, "lr": 0.01}
    train(make(), out=tmp_path / "whole", **options)
    for seed, epochs in enumerate((1, 2, 1)):
        model = make(seed)  # other weights each time: they must come from the checkpoint
        torch.rand(seed)
        history = train(
            model, out=tmp_path / "parts", resume=seed > 0, stop_after=epochs, **options
        )
    assert history.stopped == "epochs" and len(history) == 4
    for name in ("last.pt", "best.pt"):
        same(load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name))


def test_resume_restores_the_generators_of_python_numpy_and_torch(tmp_path):
    whole, parts = Scripted(), Scripted()
    train(whole, out=tmp_path / "whole")
    train(parts, out=tmp_path / "parts", stop_after=1)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    parts = Scripted()
    train(parts, out=tmp_path / "parts", resume=True)
    same(whole.state_dict(), parts.state_dict())


def test_early_stopping_goes_on_counting_after_a_resume(monkeypatch, tmp_path):
    options = {"valid": dataset(8), "epochs": 9, "patience": 2, "out": tmp_path}
    scripted_metrics(monkeypatch, [0.5, 0.4])
    train(vae(), stop_after=2, **options)
    scripted_metrics(monkeypatch, [0.3])
    history = train(vae(1), resume=True, **options)
    assert history.stopped == "early" and len(history) == 3 and history.best_epoch == 1
    again = train(vae(2), resume=True, **options)  # stopped for good: nothing more is computed
    assert len(again) == 3 and again.stopped == "early"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 5, 7])
def test_a_signal_saves_within_the_epoch_and_resume_is_bit_equal(tmp_path, number, at):
    """60 rows in batches of 16: four steps per epoch; the signals come in steps 1, 6 and 8."""
    train(Scripted(), out=tmp_path / "whole")
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(call):
        if call == at:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        train(Scripted(interrupt), out=tmp_path / "parts")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert caught.value.exit_code == 128 + number
    assert caught.value.saved == str(tmp_path / "parts" / "last.pt")
    saved = load_checkpoint(tmp_path / "parts" / "last.pt")
    assert saved["step"] == at + 1  # the step under way was finished, and no more begun
    train(Scripted(), out=tmp_path / "parts", resume=True)
    same(
        load_checkpoint(tmp_path / "whole" / "last.pt"),
        load_checkpoint(tmp_path / "parts" / "last.pt"),
    )


def test_a_signal_during_validation_repeats_only_the_validation(monkeypatch, tmp_path):
    options = {"valid": dataset(20, seed=1), "epochs": 3}
    train(vae(), out=tmp_path / "whole", **options)
    measure, calls = loop.measure, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            torch.rand(7), os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the signal did not arrive")
        return measure(*args, **kwargs)

    monkeypatch.setattr(loop, "measure", interrupted)
    with pytest.raises(Interrupted):
        train(vae(), out=tmp_path / "parts", **options)
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["batch"] == 4
    train(vae(1), out=tmp_path / "parts", resume=True, **options)
    same(
        load_checkpoint(tmp_path / "whole" / "last.pt"),
        load_checkpoint(tmp_path / "parts" / "last.pt"),
    )


def test_a_second_signal_stops_at_once_and_saves_nothing(tmp_path):
    def interrupt(call):
        if call == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        train(Scripted(interrupt), out=tmp_path)
    assert caught.value.saved is None and not (tmp_path / "last.pt").exists()


def test_resume_refuses_another_run(tmp_path):
    train(vae(), out=tmp_path, epochs=2)
    for other in ({"batch_size": 8}, {"lr": 0.5}, {"seed": 1}, {"anneal_fraction": 0.1}):
        with pytest.raises(ValueError, match=next(iter(other))):
            train(vae(), out=tmp_path, resume=True, **{"epochs": 2, **other})
    with pytest.raises(ValueError, match="60 rows, but got 50"):
        train(vae(), data=dataset(50), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="already has 2 epochs"):
        train(vae(), out=tmp_path, resume=True, epochs=1)
    with pytest.raises(ValueError, match="does not fit this model"):
        train(MultVAE(COLUMNS, hidden=9, latent=4), out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="No such file"):
        train(vae(), out=tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="resume=True needs `out`"):
        train(vae(), resume=True)
    assert len(train(vae(), out=tmp_path, resume=True, epochs=3)) == 3


def test_best_pt_is_made_good_when_the_process_died_before_linking_it(tmp_path):
    options = {"epochs": 3, "valid": dataset(20, seed=1), "lr": 0.02, "out": tmp_path}
    history = train(vae(), stop_after=1, **options)
    assert history.best_epoch == 1 and history.stopped == "paused"
    (tmp_path / "best.pt").unlink()
    (tmp_path / ".last.pt.00112233445566aa.tmp").write_bytes(b"half")
    train(vae(), resume=True, **{**options, "epochs": 1})
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 1
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "history.csv", "last.pt"]


# ---- failures ------------------------------------------------------------------------------


def test_a_non_finite_part_of_the_loss_is_named_with_its_step(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"inf at step 7 \(epoch 2, batch 3\).*nll") as e:
        train(Scripted(bad_nll_at=6), out=tmp_path)
    assert "\n" not in str(e.value)
    assert bool(load_checkpoint(tmp_path / "last.pt")["model"]["weight"].isfinite().all())


@pytest.mark.parametrize("check_every", [2, 3, 50])
def test_the_step_is_named_also_when_losses_are_looked_at_later(check_every, monkeypatch, tmp_path):
    """As on a GPU, where reading every loss would make the host wait for the device."""
    monkeypatch.setitem(loop._CHECK_EVERY, "cpu", check_every)
    with pytest.raises(NonFiniteLossError, match=r"step 6 \(epoch 2, batch 2\)"):
        train(Scripted(bad_nll_at=5), out=tmp_path)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    history = train(Scripted(), epochs=2)
    monkeypatch.setitem(loop._CHECK_EVERY, "cpu", 1)
    assert history.column("loss") == train(Scripted(), epochs=2).column("loss")


def test_a_non_finite_parameter_is_named():
    model = vae()
    with torch.no_grad():
        model.decoder.weight[1, 2] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*the parameter decoder\.weight"):
        train(model)


def test_non_finite_values_are_named():
    matrix = counts()
    matrix.data[matrix.indptr[30]] = np.nan
    data = CSRDataset(matrix)
    with pytest.raises(NonFiniteLossError, match=r"nan at step \d+ .*the values of the batch"):
        train(vae(), data=data)


def test_rows_with_non_finite_values_are_named_by_both_their_numbers():
    matrix = counts()
    for row in (30, 41):
        matrix.data[matrix.indptr[row]] = np.inf
    with pytest.raises(NonFiniteLossError) as error:
        train(vae(), data=CSRDataset(matrix), batch_size=60, epochs=1)
    # One batch of all rows, in the order of the seed.
    order = CSRLoader(CSRDataset(matrix), 60).row_order().tolist()
    places = sorted((order.index(row), row) for row in (30, 41))
    named = ", ".join(f"{place} (training row {row})" for place, row in places)
    assert f"the values of the batch, rows {named} of the batch" in str(error.value)


@pytest.mark.parametrize("check_every", [1, 50])
def test_the_rows_of_an_earlier_step_are_found_again(check_every, monkeypatch):
    monkeypatch.setitem(loop._CHECK_EVERY, "cpu", check_every)
    matrix = counts()
    matrix.data[matrix.indptr[30]] = np.nan
    with pytest.raises(NonFiniteLossError, match=r"row \d+ \(training row 30\) of the batch"):
        train(vae(), data=CSRDataset(matrix))


@pytest.mark.parametrize("name", ["nll", "kl", "penalty"])
def test_the_term_and_the_rows_that_give_it_are_named(name):
    class Touchy(Scripted):
        """A term overflows in rows whose first stored value is 77."""

        def forward(self, batch):
            output = super().forward(batch)
            first = batch.values[batch.crow[:-1].clamp(max=batch.nnz - 1)]
            full = batch.crow.diff() > 0
            term = torch.where(full & (first == 77), torch.inf, 1.0).mean() * self.weight.sum() ** 0
            parts = output._asdict() | {name: term}
            return type(output)(**parts | {"loss": output.loss + term})

    matrix = counts()
    rows = [3, 17, 44]
    for row in rows:
        matrix.data[matrix.indptr[row]] = 77
    model = Touchy()
    with pytest.raises(NonFiniteLossError) as error:
        train(model, data=CSRDataset(matrix), batch_size=60, epochs=1)
    text = str(error.value)
    assert f"{name} of the model's output, from finite values and parameters, rows " in text
    assert sorted(map(int, re.findall(r"training row (\d+)", text))) == rows
    # With more of them, only the first few are listed.
    matrix.data[matrix.indptr[:-1][np.diff(matrix.indptr) > 0]] = 77
    with pytest.raises(NonFiniteLossError, match="and more of the batch") as error:
        train(Touchy(), data=CSRDataset(matrix), batch_size=60, epochs=1)
    assert len(re.findall("training row", str(error.value))) == 5


def test_finding_the_rows_leaves_the_models_state_alone():
    class Touchy(TopicVAE):
        def forward(self, batch, target=None):
            output = super().forward(batch, target)
            bad = bool((batch.values == 77).any())
            return output._replace(loss=output.loss / (1 - bad), nll=output.nll / (1 - bad))

    matrix = counts()
    matrix.data[matrix.indptr[5]] = 77
    model, clean = Touchy(COLUMNS, 3, 4), Touchy(COLUMNS, 3, 4)
    batch = CSRDataset(matrix).rows(slice(0, 60))
    clean.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    output = model(batch)
    torch.manual_seed(0)
    clean(batch)
    text = find_cause(model, np.arange(60), CSRDataset(matrix), batch, output)
    assert "nll of the model's output" in text and "row 5 (training row 5)" in text
    torch.testing.assert_close(model.state_dict(), clean.state_dict(), rtol=0, atol=0)


def test_a_parameter_spoilt_by_an_epochs_last_step_is_not_saved(tmp_path):
    class Spoilt(Scripted):
        def forward(self, batch):
            output = super().forward(batch)
            if self.calls == 4:
                self.weight.register_hook(lambda g: g * float("nan"))
            return output

    with pytest.raises(NonFiniteLossError, match=r"step 4 \(the last of epoch 1\).*weight"):
        train(Spoilt(), out=tmp_path)
    assert not (tmp_path / "last.pt").exists()


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


# ---- the small pieces ----------------------------------------------------------------------


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
