"""The `sparsevae` command, end to end on small files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from train_toys import COLUMNS, counts

from sparsevae_ext.cli import main
from sparsevae_ext.train import load_checkpoint

ROWS = 80
SMALL = ["--hidden", "8", "--latent", "4", "--batch-size", "16", "--threads", "1", "--lr", "0.01"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "counts.npz"
    sp.save_npz(path, counts(ROWS))
    return path


def sparsevae(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsevae_ext", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, sparsevae("train", "--data", data, "--out", out, "--epochs", 6, *SMALL)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text


# ---- the way through -----------------------------------------------------------------------


def test_train_writes_a_run_and_prints_its_result(trained):
    out, process = trained
    assert process.returncode == 0, process.stderr
    assert {"last.pt", "best.pt", "history.csv", "metrics.json"} == set(os.listdir(out))
    assert "Recall@20" in process.stdout and "popularity" in process.stdout
    assert process.stdout.count("\r") == process.stderr.count("\r") == 0
    assert [line.split()[1] for line in process.stderr.splitlines()] == [
        f"{epoch}/6" for epoch in range(1, 7)
    ]


def test_metrics_json_is_strict_and_sane(trained, data):
    out, _ = trained

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["data"] == {"rows": ROWS, "columns": COLUMNS, "nnz": counts(ROWS).nnz}
    assert metrics["settings"]["data"] == str(data)
    assert metrics["model"] == {
        "name": "mult-vae",
        "n_items": COLUMNS,
        "hidden": 8,
        "latent": 4,
        "beta": 0.2,
        "dropout": 0.5,
    }
    assert metrics["split"] == {"train": 64, "valid": 8, "test": 8}
    assert metrics["epochs"] == 6 and 1 <= metrics["best_epoch"] <= 6
    for name in ("recall@20", "recall@50", "ndcg@100"):
        assert 0 < metrics["test"][name] <= 1 and 0 < metrics["baselines"]["popularity"][name] <= 1
    for perplexity in (
        metrics["test"]["perplexity"],
        metrics["baselines"]["unigram"]["perplexity"],
    ):
        assert 10 < perplexity < 60  # 40 columns, each row in about ten of them
    assert metrics["train_rows_per_s"] > 0 and metrics["peak_memory_mib"] > 50


def test_evaluate_repeats_the_numbers_of_the_run(trained, capsys):
    out, _ = trained
    code, text, _ = run(capsys, "evaluate", "--checkpoint", out, "--json")
    result = json.loads(text)
    metrics = json.loads((out / "metrics.json").read_text())
    assert code == 0 and result["rows"] == "test" and result["n_rows"] == 8
    assert result["epoch"] == metrics["best_epoch"]
    for name, value in metrics["test"].items():
        assert result[name] == pytest.approx(value, rel=1e-6)
    code, text, _ = run(capsys, "evaluate", "--checkpoint", out / "last.pt", "--rows", "all")
    assert code == 0 and "80 all rows" in text and "(epoch 6)" in text


def test_evaluate_on_other_data_takes_all_rows(trained, tmp_path, capsys):
    out, _ = trained
    sp.save_npz(tmp_path / "other.npz", counts(30, seed=5))
    code, text, _ = run(
        capsys, "evaluate", "--checkpoint", out, "--data", tmp_path / "other.npz", "--json"
    )
    assert code == 0 and json.loads(text)["n_rows"] == 30
    code, _, error = run(
        capsys,
        *("evaluate", "--checkpoint", out, "--data", tmp_path / "other.npz", "--rows", "test"),
    )
    assert code == 2 and one_line(error)
    sp.save_npz(tmp_path / "narrow.npz", counts(ROWS)[:, :39])
    for command in (["evaluate"], ["recommend", "--rows", "0"]):
        code, _, error = run(
            capsys, *command, "--checkpoint", out, "--data", tmp_path / "narrow.npz"
        )
        assert code == 2 and one_line(error) and "39 columns" in error and "on 40" in error


def test_json_has_null_where_there_is_no_number(trained, tmp_path, capsys):
    out, _ = trained
    one = sp.csr_matrix((np.ones(9, np.float32), (range(9), range(9))), shape=(9, COLUMNS))
    sp.save_npz(tmp_path / "one.npz", one)  # nothing to hold out, so nothing to rank
    for command, name in (
        (["evaluate", "--data", tmp_path / "one.npz"], "recall@20"),
        (
            ["sample", "--out", tmp_path / "x.npz", "--n", 3, "--length", 0],
            "column_total_variation",
        ),
    ):
        code, text, error = run(capsys, *command, "--checkpoint", out, "--json")
        assert code == 0, error
        found = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
        assert found[name] is None


def test_recommend(trained, data, capsys):
    out, _ = trained
    arguments = ["recommend", "--checkpoint", out, "--data", data, "--rows", "0,3", "--k", "5"]
    code, text, error = run(capsys, *arguments, "--json")
    assert (code, error) == (0, "")
    result = json.loads(text)
    assert [entry["row"] for entry in result] == [0, 3]
    matrix = counts(ROWS)
    for entry in result:
        assert len(entry["items"]) == 5 and "names" not in entry
        assert entry["scores"] == sorted(entry["scores"], reverse=True)
        assert not set(entry["items"]) & set(matrix[entry["row"]].indices.tolist())
    code, text, _ = run(capsys, *arguments)
    assert code == 0 and "row 0\n" in text and f"column {result[0]['items'][0]} " in text
    code, text, _ = run(capsys, *arguments[:-1], COLUMNS, "--include-seen", "--json")
    assert sorted(json.loads(text)[0]["items"]) == list(range(COLUMNS))
    code, text, _ = run(capsys, *arguments[:-1], COLUMNS, "--json")
    assert len(json.loads(text)[0]["items"]) == COLUMNS - matrix[0].nnz
    for bad in (["--rows", "80"], ["--k", "41"], ["--rows", "x"], ["--rows=-1"], ["--k", "0"]):
        code, _, error = run(capsys, *arguments, *bad)
        assert code == 2 and one_line(error), (bad, error)


def test_the_vocabulary_of_the_embedded_data_is_printed(tmp_path, capsys):
    code, _, error = run(
        capsys,
        *("train", "--data", "spam", "--model", "mult-dae", "--hidden", "4", "--epochs", "1"),
        *("--out", tmp_path / "spam", "--no-progress", "--valid-fraction", "0.01"),
        *("--test-fraction", "0"),
    )
    assert (code, error) == (0, "")
    arguments = ["recommend", "--checkpoint", tmp_path / "spam", "--rows", "7", "--k", "3"]
    code, text, _ = run(capsys, *arguments, "--json")
    names = json.loads(text)[0]["names"]
    assert code == 0 and len(names) == 3 and all(name.isalpha() for name in names)
    code, text, _ = run(capsys, *arguments)
    assert names[0] in text


def test_convert_then_train_is_the_same_training(data, tmp_path, capsys):
    folder = tmp_path / "made" / "folder"
    code, text, _ = run(capsys, "convert", data, folder)
    assert code == 0 and "80 rows x 40 columns" in text
    code, _, error = run(capsys, "convert", data, folder)
    assert code == 2 and one_line(error) and "--overwrite" in error
    assert run(capsys, "convert", data, folder, "--overwrite")[0] == 0
    losses = []
    for source, out in ((data, tmp_path / "a"), (folder, tmp_path / "b")):
        code, _, _ = run(
            capsys, "train", "--data", source, "--out", out, "--epochs", 2, "--no-progress", *SMALL
        )
        assert code == 0
        losses.append([row["loss"] for row in load_checkpoint(out / "last.pt")["history"]])
    assert losses[0] == losses[1] and len(losses[0]) == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    code, _, error = run(capsys, "convert", data, mine, "--overwrite")
    assert code == 2 and one_line(error) and (mine / "thesis.txt").read_text() == "mine"


def test_plot(data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    code, _, _ = run(
        capsys,
        *("train", "--data", data, "--out", tmp_path / "r", "--epochs", 2, "--plot", *SMALL),
    )
    assert code == 0
    assert (tmp_path / "r" / "training.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_info_version_and_help(capsys):
    code, text, _ = run(capsys, "info", "--json")
    assert code == 0 and "torch" in json.dumps(json.loads(text))
    assert run(capsys, "--version")[1].startswith("sparsevae ")
    code, text, _ = run(capsys, "--help")
    assert code == 0 and "exit codes" in text
    for command in ("train", "evaluate", "recommend", "convert", "info", "demo"):
        code, text, error = run(capsys, command, "--help")
        assert code == 0 and "--debug" in text and error == ""


# ---- resume and interruption ---------------------------------------------------------------


def tensors(run_directory: Path, name: str) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(run_directory / name)
    adam = saved["optimizer"]["state"]
    moments = {f"{i}.{key}": value for i, part in adam.items() for key, value in part.items()}
    return {**saved["model"], **moments, "rng": saved["rng"]["torch"]}


def test_resume_is_bit_equal_to_an_unbroken_run(trained, data, tmp_path, capsys):
    whole, _ = trained  # made by another process
    common = ["train", "--out", tmp_path / "parts", "--threads", 1, "--no-progress"]
    code, _, _ = run(capsys, *common, "--data", data, "--epochs", 6, *SMALL, "--stop-after", 2)
    assert code == 0 and load_checkpoint(tmp_path / "parts" / "last.pt")["epoch"] == 2
    code, _, error = run(capsys, *common, "--resume")
    assert (code, error) == (0, "")
    for name in ("last.pt", "best.pt"):
        a, b = tensors(whole, name), tensors(tmp_path / "parts", name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    numbers = [json.loads((d / "metrics.json").read_text()) for d in (whole, tmp_path / "parts")]
    assert numbers[0]["test"] == numbers[1]["test"]


def test_resume_keeps_its_settings(trained, data, tmp_path, capsys):
    out, _ = trained
    for change in (["--batch-size", 8], ["--hidden", 9], ["--seed", 1], ["--model", "mult-dae"]):
        code, _, error = run(capsys, "train", "--out", out, "--resume", *change)
        assert code == 2 and one_line(error) and change[0] in error
    sp.save_npz(tmp_path / "other.npz", counts(ROWS, seed=9))
    code, _, error = run(
        capsys, "train", "--out", out, "--resume", "--data", tmp_path / "other.npz"
    )
    assert code == 2 and one_line(error) and "not the data" in error
    code, _, error = run(capsys, "train", "--out", tmp_path / "none", "--resume")
    assert code == 1 and one_line(error) and str(tmp_path / "none" / "last.pt") in error


def test_ctrl_c_saves_and_exits_130(data, tmp_path, capsys):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sparsevae_ext", "train", "--data", data, "--out", out]
    with subprocess.Popen(
        [*map(str, command), "--epochs", "100000", *SMALL], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        lines += process.stderr.readlines()
        assert process.wait(timeout=120) == 130, lines
    assert lines[-1].startswith("sparsevae train: interrupted; --resume goes on from")
    assert "Traceback" not in "".join(lines)
    step = load_checkpoint(out / "last.pt")["step"]
    code, _, _ = run(capsys, "train", "--out", out, "--resume", "--stop-after", 1)
    assert code == 0 and load_checkpoint(out / "last.pt")["step"] > step


# ---- errors --------------------------------------------------------------------------------


def test_an_existing_run_is_not_overwritten_by_accident(trained, data, tmp_path, capsys):
    out, _ = trained
    before = (out / "last.pt").read_bytes()
    code, _, error = run(capsys, "train", "--data", data, "--out", out)
    assert code == 2 and one_line(error) and "--resume" in error and "--overwrite" in error
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"")
    code, _, error = run(capsys, "train", "--data", broken, "--out", out, "--overwrite")
    assert code == 1 and one_line(error)
    assert (out / "last.pt").read_bytes() == before
    (tmp_path / "file").write_text("")
    code, _, error = run(capsys, "train", "--data", data, "--out", tmp_path / "file")
    assert code == 2 and one_line(error) and "is a file" in error
    # With --overwrite the run's files are replaced and the others stay.
    again = tmp_path / "again"
    again.mkdir()
    (again / "last.pt").write_bytes(b"old")
    (again / "notes.txt").write_text("mine")
    code, _, _ = run(
        capsys, "train", "--data", data, "--out", again, "--overwrite", "--epochs", 1, *SMALL
    )
    assert code == 0 and load_checkpoint(again / "last.pt")["epoch"] == 1
    assert (again / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "--out", "x"],
        ["train", "--out", "x", "--data", "d", "--model", "gan"],
        ["train", "--out", "x", "--data", "d", "--hidden", "0"],
        ["train", "--out", "x", "--data", "d", "--hidden", "six"],
        ["train", "--out", "x", "--data", "d", "--lr", "0"],
        ["train", "--out", "x", "--data", "d", "--lr", "nan"],
        ["train", "--out", "x", "--data", "d", "--dropout", "1.5"],
        ["train", "--out", "x", "--data", "d", "--beta=-1"],
        ["train", "--out", "x", "--data", "d", "--epochs", "-3"],
        ["train", "--out", "x", "--data", "d", "--seed", "4294967296"],
        ["train", "--out", "x", "--data", "d", "--resume", "--overwrite"],
        ["train", "--out", "x", "--data", "d", "--model", "mult-dae", "--latent", "3"],
        ["train", "--out", "x", "--data", "d", "--device", "tpu"],
        ["train", "--out", "x", "--data", "d", "--device", "cuda:99"],
        ["train", "--out", "x", "--data", "d", "--unknown"],
        ["evaluate"],
        ["recommend", "--checkpoint", "x"],
        ["convert", "x"],
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, error = run(capsys, *arguments)
    assert (code, text) == (2, "") and one_line(error), error
    assert os.listdir(tmp_path) == []


def test_fractions_that_leave_nothing_to_train_on(data, tmp_path, capsys):
    code, _, error = run(
        capsys,
        *("train", "--data", data, "--out", tmp_path / "r", "--valid-fraction", "0.6"),
        *("--test-fraction", "0.4"),
    )
    assert code == 2 and one_line(error) and "to train on" in error


def bad_file(kind: str, directory: Path) -> Path:
    path = directory / f"{kind}.npz"
    matrix = counts(ROWS)
    parts = {
        "format": np.array("csr"),
        "shape": np.array(matrix.shape),
        "data": matrix.data,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
    }
    if kind == "truncated":
        sp.save_npz(path, matrix)
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "not-csr":
        sp.save_npz(path, matrix.tocsc())
    elif kind == "wrong-dtype":
        np.savez(path, **{**parts, "data": matrix.data.astype(np.complex64)})
    elif kind == "negative":
        np.savez(path, **{**parts, "data": -matrix.data})
    elif kind == "nan":
        np.savez(path, **{**parts, "data": np.where(matrix.data > 1, np.nan, matrix.data)})
    elif kind == "column-out-of-range":
        np.savez(path, **{**parts, "indices": matrix.indices + 1})
    elif kind == "text":
        path.write_text("not a zip")
    return path  # "missing": never written


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "not-csr",
        "wrong-dtype",
        "negative",
        "nan",
        "column-out-of-range",
        "text",
        "missing",
    ],
)
def test_a_bad_file_is_one_line_with_its_path_and_exit_code_1(kind, tmp_path, capsys):
    path = bad_file(kind, tmp_path)
    before = sorted(os.listdir(tmp_path))
    for arguments in (
        ["train", "--data", path, "--out", tmp_path / "run"],
        ["convert", path, tmp_path / "folder"],
    ):
        code, text, error = run(capsys, *arguments)
        assert (code, text) == (1, "") and one_line(error) and str(path) in error, error
    assert sorted(os.listdir(tmp_path)) == before


def test_the_exit_code_of_the_real_process(tmp_path):
    path = bad_file("truncated", tmp_path)
    process = sparsevae("train", "--data", path, "--out", tmp_path / "run")
    assert process.returncode == 1 and one_line(process.stderr) and str(path) in process.stderr


def test_debug_shows_the_traceback(tmp_path, capsys):
    path = bad_file("missing", tmp_path)
    arguments = ["train", "--data", path, "--out", tmp_path / "run"]
    assert "Traceback" not in run(capsys, *arguments)[2]
    code, _, error = run(capsys, *arguments, "--debug")
    assert code == 1 and "Traceback" in error and str(path) in error.splitlines()[-1]


def test_damaged_checkpoints(trained, tmp_path, capsys):
    out, _ = trained
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    raw = bytearray((out / "best.pt").read_bytes())
    raw[len(raw) // 2] ^= 4
    (tmp_path / "best.pt").write_bytes(raw)
    for command in (["evaluate"], ["recommend", "--rows", "0"]):
        code, _, error = run(capsys, *command, "--checkpoint", tmp_path)
        assert code == 1 and one_line(error) and "sha256 mismatch" in error
        # The one beside it is offered.
        assert str(tmp_path / "best.pt") in error and "last.pt (epoch 6) is intact" in error
    (tmp_path / "last.pt").write_bytes(raw[:1000])
    code, _, error = run(capsys, "train", "--out", tmp_path, "--resume")
    assert code == 1 and one_line(error) and "truncated or corrupt" in error
    assert "intact" not in error
    (tmp_path / "last.pt").unlink(), (tmp_path / "best.pt").unlink()
    code, _, error = run(capsys, "evaluate", "--checkpoint", tmp_path)
    assert code == 1 and one_line(error) and str(tmp_path / "last.pt") in error


def test_a_run_that_diverges_is_one_line(tmp_path, capsys):
    matrix = counts(ROWS)
    matrix.data[:] = 3e38
    sp.save_npz(tmp_path / "huge.npz", matrix)
    code, _, error = run(
        capsys,
        *("train", "--data", tmp_path / "huge.npz", "--out", tmp_path / "run", "--no-progress"),
        *SMALL,
    )
    assert code == 1 and one_line(error) and "step 1" in error
