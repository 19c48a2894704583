"""Checkpoints: atomic, checked, and never executed."""

from __future__ import annotations

import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsevae_ext
from sparsevae_ext.train.checkpoint import (
    CheckpointError,
    _append_checksum,
    clean_orphans,
    link_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_atomic,
)


def payload(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(64, 50, generator=generator),
        "strided": torch.randn(7, 5, generator=generator).t(),
        "plain": {"a": [1, 2.5, None, True, "text"], "pair": (1, 2)},
    }


def test_round_trip_keeps_values_types_and_strides(tmp_path):
    save_checkpoint(payload(), tmp_path / "last.pt")
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["weight"], payload()["weight"])
    assert torch.equal(loaded["strided"], payload()["strided"])
    assert loaded["strided"].stride() == payload()["strided"].stride()
    assert loaded["plain"] == payload()["plain"]
    assert os.listdir(tmp_path) == ["last.pt"]


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    state = torch.nn.Linear(2, 2).state_dict()
    given = {"lr": np.float64(0.25), "rows": [np.int32(3), (np.bool_(True), 2.0)], "state": state}
    save_checkpoint({**given, np.int64(7): np.str_("text")}, tmp_path / "last.pt")
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["lr"] == 0.25 and loaded["rows"] == [3, (True, 2.0)] and loaded[7] == "text"
    found = [loaded["lr"], *loaded["rows"][1], *loaded, loaded[7]]
    assert not any(isinstance(value, np.generic) for value in found)
    assert loaded["state"]._metadata == state._metadata
    assert type(given["lr"]) is np.float64  # the caller's own is left alone


@pytest.mark.parametrize("value", [object(), np.zeros(3), Path("x")])
def test_what_could_not_be_read_back_is_not_written(tmp_path, value):
    save_checkpoint(payload(), tmp_path / "last.pt")
    with pytest.raises(TypeError, match="the payload holds .*, which would not be read back"):
        save_checkpoint({"config": {"a": value}}, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["plain"] == payload()["plain"]
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_file_is_a_plain_torch_file_and_a_valid_zip(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(payload(), path)
    document = torch.load(path, weights_only=True)
    assert document["payload"]["plain"] == payload()["plain"]
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"sparsevae-sha256:")
        assert archive.testzip() is None


def test_the_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(payload(), tmp_path / "last.pt")
    finally:
        os.umask(before)
    assert (tmp_path / "last.pt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("sixteenth", range(16))
def test_truncation_is_reported_in_one_line(tmp_path, sixteenth):
    path = tmp_path / "last.pt"
    save_checkpoint(payload(), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * sixteenth // 16])
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + ".*truncated or corrupt") as e:
        load_checkpoint(path)
    assert "\n" not in str(e.value)


def test_one_byte_less_or_more_is_reported(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(payload(), path)
    raw = path.read_bytes()
    for damaged in (raw[:-1], raw + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="truncated or corrupt"):
            load_checkpoint(path)


def test_any_flipped_bit_is_reported(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(payload(), path)
    raw = path.read_bytes()
    load_checkpoint(path)
    step = max(1, len(raw) // 97)
    # Everywhere in the payload, and every byte of the end record and the checksum itself.
    for position in [*range(4, len(raw) - 120, step), *range(len(raw) - 120, len(raw))]:
        damaged = bytearray(raw)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="truncated or corrupt"):
            load_checkpoint(path)


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pt is not a sparsevae checkpoint"):
        load_checkpoint(text)
    foreign = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(CheckpointError, match=r"foreign\.pt"):
        load_checkpoint(foreign)
    with pytest.raises(CheckpointError, match=r"nothing\.pt: No such file"):
        load_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_checkpoint(tmp_path)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_malicious_pickle_is_not_executed(tmp_path, with_checksum):
    proof, path = tmp_path / "executed", tmp_path / "bomb.pt"
    with open(path, "w+b") as file:
        torch.save({"payload": _Bomb(proof)}, file)
        if with_checksum:
            _append_checksum(file)
    with pytest.raises(CheckpointError, match=r"bomb\.pt"):
        load_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the bomb does go off where it is let
    assert proof.exists()


def test_a_bare_pickle_is_not_executed(tmp_path):
    proof, path = tmp_path / "executed", tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps(_Bomb(proof)))
    with pytest.raises(CheckpointError, match="not a sparsevae checkpoint"):
        load_checkpoint(path)
    assert not proof.exists()


def test_every_torch_load_of_the_package_reads_weights_only():
    calls = []
    for path in Path(sparsevae_ext.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for match in re.finditer(r"\btorch\.load\(", text):
            depth, end = 1, match.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                end += 1
            calls.append((path.name, text[match.start() : end]))
    calls = [
        call for call in calls if not call[1].startswith("torch.load(path, weights_only=True)`")
    ]
    assert any(name == "checkpoint.py" for name, _ in calls)
    assert [call for call in calls if "weights_only=True" not in call[1]] == []


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(payload(0), path)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, size // 2, size - 200, size - 40):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(CheckpointError) as caught:
                save_checkpoint(payload(1), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        message = str(caught.value)
        assert str(path) in message and "File too large" in message and "\n" not in message
        assert "the checkpoint before it is intact" in message
        assert os.listdir(tmp_path) == ["last.pt"]
        assert torch.equal(load_checkpoint(path)["weight"], payload(0)["weight"])


def test_a_missing_directory_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"last\.pt could not be written: No such file"):
        save_checkpoint(payload(), tmp_path / "none" / "last.pt")


_KILLED = """
import os, signal, sys, time
import torch
from sparsevae_ext.train.checkpoint import save_checkpoint, load_checkpoint, clean_orphans

torch.set_num_threads(1)
directory = sys.argv[1]
path = os.path.join(directory, "last.pt")
save_checkpoint({"n": -1, "weight": torch.full((100_000,), -1.0)}, path)
interrupted = orphans = 0
for trial in range(10):
    child = os.fork()
    if child == 0:
        try:
            n = 0
            while True:
                save_checkpoint({"n": n, "weight": torch.full((100_000,), float(n))}, path)
                n += 1
        finally:
            os._exit(1)
    time.sleep(0.02 + 0.007 * trial)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    saved = load_checkpoint(path)
    assert bool((saved["weight"] == saved["n"]).all())
    orphans += len(clean_orphans(directory))
    assert os.listdir(directory) == ["last.pt"], os.listdir(directory)
print("orphans", orphans, "last", saved["n"])
"""


def test_kill_9_during_a_loop_of_saves_always_leaves_a_loadable_file(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    # The loop was really under way: more than the first save happened.
    assert int(run.stdout.split()[-1]) >= 0, run.stdout


def test_a_link_is_the_same_file_until_the_source_is_replaced(tmp_path):
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    for seed in (0, 1):
        save_checkpoint(payload(seed), last)
        link_checkpoint(last, best)
        link_checkpoint(last, best)  # again: nothing to do, nothing left behind
        assert sorted(os.listdir(tmp_path)) == ["best.pt", "last.pt"]
        assert torch.equal(load_checkpoint(best)["weight"], payload(seed)["weight"])
    save_checkpoint(payload(2), last)
    assert torch.equal(load_checkpoint(best)["weight"], payload(1)["weight"])


def test_a_link_is_copied_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(payload(), tmp_path / "last.pt")
    link_checkpoint(tmp_path / "last.pt", tmp_path / "best.pt")
    assert (tmp_path / "best.pt").stat().st_nlink == 1
    assert torch.equal(load_checkpoint(tmp_path / "best.pt")["weight"], payload()["weight"])
    with pytest.raises(CheckpointError, match="could not be written"):
        link_checkpoint(tmp_path / "gone.pt", tmp_path / "best.pt")


def test_only_our_orphans_are_cleaned(tmp_path):
    (tmp_path / ".last.pt.0123456789abcdef.tmp").write_bytes(b"half")
    for name in ("notes.tmp", ".hidden.tmp", ".x.zz23456789abcdef.tmp", "last.pt"):
        (tmp_path / name).write_bytes(b"mine")
    removed = clean_orphans(tmp_path)
    assert [path.name for path in removed] == [".last.pt.0123456789abcdef.tmp"]
    assert len(os.listdir(tmp_path)) == 4


def test_write_atomic_replaces_small_files(tmp_path):
    path = tmp_path / "metrics.json"
    write_atomic(path, "old")
    write_atomic(path, "{}")
    assert path.read_text() == "{}" and os.listdir(tmp_path) == ["metrics.json"]
