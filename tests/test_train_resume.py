"""A run that was stopped, by its user or by a signal, goes on as if it had not been."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import torch
from train_toys import COLUMNS, Scripted, dae, dataset, same, scripted_metrics, train, vae

from sparsevae_ext.models import MultVAE
from sparsevae_ext.train import (
    CheckpointError,
    Interrupted,
    evaluate_run,
    load_checkpoint,
    load_run,
    loop,
    recommend_run,
    sample_run,
    save_checkpoint,
    saved_settings,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_options_that_are_numpy_scalars_can_be_resumed(tmp_path):
    options = dict(out=tmp_path, lr=np.float64(0.02), seed=np.int64(3), batch_size=np.int32(16))
    model = MultVAE(COLUMNS, hidden=8, latent=4, beta=np.float32(0.25))
    train(model, epochs=np.int64(1), config={"model": model.config()}, **options)
    assert load_run(tmp_path)[0].config() == model.config()
    assert len(train(model, resume=True, epochs=2, **options)) == 2


def test_best_pt_is_made_good_when_the_process_died_before_linking_it(tmp_path):
    options = {"epochs": 3, "valid": dataset(20, seed=1), "lr": 0.02, "out": tmp_path}
    history = train(vae(), stop_after=1, **options)
    assert history.best_epoch == 1 and history.stopped == "paused"
    (tmp_path / "best.pt").unlink()
    (tmp_path / ".last.pt.00112233445566aa.tmp").write_bytes(b"half")
    train(vae(), resume=True, **{**options, "epochs": 1})
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 1
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "history.csv", "last.pt"]


def test_a_new_run_does_not_leave_the_best_of_the_one_before(tmp_path):
    train(vae(), valid=dataset(20, seed=1), out=tmp_path)
    assert (tmp_path / "best.pt").exists()
    new = dae()
    train(new, out=tmp_path, epochs=3, config={"model": new.config()})  # without validation
    loaded, saved, path = load_run(tmp_path)
    assert path.name == "last.pt" and saved["epoch"] == 3
    assert torch.equal(loaded.encoder.weight, new.encoder.weight)
    assert not (tmp_path / "best.pt").exists()


def test_a_checkpoint_that_is_no_run_is_refused_in_one_line(tmp_path):
    model = vae()
    train(model, out=tmp_path, config={"model": model.config()})
    for use in (
        evaluate_run,
        lambda run: recommend_run(run, [0]),
        lambda run: sample_run(run, tmp_path / "x.npz", 3),
    ):
        with pytest.raises(CheckpointError, match=r"last\.pt was not written by `sparsevae train`"):
            use(tmp_path)
    assert load_run(tmp_path)[0].config() == model.config()
    save_checkpoint({"weight": torch.ones(2)}, tmp_path / "last.pt")
    for use in (load_run, saved_settings):
        with pytest.raises(CheckpointError, match=r"last\.pt was not written by"):
            use(tmp_path)
