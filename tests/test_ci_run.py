"""What .ci/run asks of make, with a make that only notes its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "run"
# One after the other; then two lanes side by side.
FIRST = ["lint", "build", "cuda-check", "cuda-targets", "test"]
LANES = [["test-sanitized"], ["test-filled", "bench-check", "wheel-check"]]
MAKE = """#!/bin/sh
echo "said by $1"
echo "$1 $SPARSEVAE_EXT_STRICT_CUDA ${PYTHONDONTWRITEBYTECODE-unset}" >> "$NOTES"
test "$1" != "$FAILS"
"""

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not SCRIPT.is_file(), reason="needs bash and a source tree"
)


def run(folder: Path, fails: str = "") -> tuple[int, str, list[str]]:
    """One run in which one target fails: (exit status, what was printed, the calls of make)."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    (folder / "make").write_text(MAKE)
    (folder / "make").chmod(0o755)
    notes = folder / "notes"
    done = subprocess.run(
        ["bash", folder / ".ci" / "run"],
        env={
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "NOTES": str(notes),
            "FAILS": fails,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder),
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, notes.read_text().splitlines()


def test_every_step_once_and_its_time(tmp_path: Path) -> None:
    status, said, calls = run(tmp_path)
    assert status == 0
    assert {call.partition(" ")[2] for call in calls} == {"1 unset"}
    targets = [call.split()[0] for call in calls]
    assert targets[: len(FIRST)] == FIRST
    assert sorted(targets) == sorted(FIRST + sum(LANES, []))
    for lane in LANES:
        assert [target for target in targets if target in lane] == lane
    assert all(said.count(f"said by {target}\n") == 1 for target in targets)
    table = said.partition("== done")[2]
    assert table.count(" s  ") == len(targets)
    assert not list(tmp_path.glob("tmp.*"))


@pytest.mark.parametrize("target", FIRST + sum(LANES, []))
def test_a_failing_step_fails_the_run_and_is_shown(tmp_path: Path, target: str) -> None:
    status, said, calls = run(tmp_path, fails=target)
    assert status != 0
    assert f"said by {target}\n" in said and "== done" not in said
    called = {call.split()[0] for call in calls}
    if target in FIRST:
        assert called == set(FIRST[: FIRST.index(target) + 1])
    else:
        (lane,) = (lane for lane in LANES if target in lane)
        after = lane[lane.index(target) + 1 :]
        assert f"FAILED: make {target}" in said
        assert called == set(FIRST + sum(LANES, [])) - set(after)
