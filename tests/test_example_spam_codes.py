"""The example of codes and a linear probe, in a short version, and its regression."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

PATH = Path(__file__).parents[1] / "examples" / "spam_codes.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("spam_codes", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcome(example):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return example.run(epochs=5, hidden=32, latent=12, lambdas=(0.0, 0.05, 0.2), rows=1500)
    finally:
        torch.set_num_threads(threads)


def test_the_models_learn(outcome):
    results = outcome["results"]
    vae = results["vae"]
    assert vae["loss_last_epoch"] < 0.97 * vae["loss_first_epoch"]
    assert vae["kl"] > 1
    assert vae["active_units"] > 0
    for row in results["sparse_autoencoder"]:
        assert row["loss_last_epoch"] < 0.97 * row["loss_first_epoch"]


def test_l0_falls_with_lambda(outcome):
    l0 = [row["l0"] for row in outcome["results"]["sparse_autoencoder"]]
    assert l0 == sorted(l0, reverse=True)
    assert l0[-1] < 0.8 * l0[0]


def test_a_linear_probe_on_the_codes_tells_spam_from_ham(outcome):
    probes = outcome["results"]["probes"]
    majority = probes["majority class"]["accuracy"]
    assert 0.6 < majority < 0.75
    assert probes["word counts"]["accuracy"] > majority + 0.15
    assert probes["VAE code"]["accuracy"] > majority + 0.08
    accuracies = [row["probe_accuracy"] for row in outcome["results"]["sparse_autoencoder"]]
    assert accuracies[0] > majority + 0.12
    assert accuracies[1] > majority + 0.05


def test_text_numbers_and_figure(example, outcome, tmp_path):
    pytest.importorskip("matplotlib")
    json.dumps(outcome["results"], allow_nan=False)
    text = example.text(outcome["results"])
    assert f"{outcome['results']['probes']['VAE code']['accuracy']:.4f}" in text
    example.draw(outcome, tmp_path / "codes.png")
    assert (tmp_path / "codes.png").read_bytes().startswith(b"\x89PNG")


# ---- the regression ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix], ids=["dense", "sparse"])
def test_the_regression_is_at_its_minimum(example, make):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4))
    y = (rng.random(300) < 1 / (1 + np.exp(-(x @ [2.0, -1.0, 0.0, 0.5] + 0.3)))).astype(float)
    weights = example.fit_logistic(make(x), y, penalty=0.01)
    z = torch.tensor(weights, requires_grad=True)
    margin = torch.tensor(x) @ z[:-1] + z[-1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, torch.tensor(y))
    (loss + 0.005 * z[:-1].square().sum()).backward()
    assert z.grad.abs().max() < 1e-4
    assert abs(example.accuracy(x, y, weights) - ((margin > 0).numpy() == (y == 1)).mean()) == 0


def test_the_probe_looks_at_test_rows_only_to_count(example):
    """Changing the labels of the test rows changes the accuracy and nothing that is fitted."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    y = (x[:, 0] > 0).astype(float)
    parts = {"train": np.arange(100), "valid": np.arange(100, 150), "test": np.arange(150, 200)}
    result = example.probe(x, y, parts)
    assert result["accuracy"] > 0.9
    flipped = y.copy()
    flipped[150:] = 1 - flipped[150:]
    other = example.probe(x, flipped, parts)
    assert other["accuracy"] == pytest.approx(1 - result["accuracy"])
    assert other["valid_accuracy"] == result["valid_accuracy"]
    assert other["penalty"] == result["penalty"]
