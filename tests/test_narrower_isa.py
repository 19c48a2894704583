"""What holds on this machine's best instruction set holds on the others: the tests marked `isa`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sparsevae_ext as sv
from sparsevae_ext import _load

HERE = Path(__file__).parent
MARK = "pytest.mark.isa"
ISAS = ["generic", "avx2"]
needs_object = pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")


@pytest.fixture(scope="module")
def runs():
    """One pytest for each instruction set, all at the same time."""
    files = [file for file in sorted(HERE.glob("test_*.py")) if MARK in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "isa and not cuda"]
    command += ["-p", "no:cacheprovider", *map(str, files)]
    started = {
        isa: subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "SPARSEVAE_EXT_ISA": isa},
        )
        for isa in ISAS
    }
    yield files, started
    for process in started.values():
        process.kill()
        process.wait()


@needs_object
@pytest.mark.parametrize("isa", ISAS)
def test_the_marked_tests_pass(runs, isa):
    files, started = runs
    output, _ = started[isa].communicate()
    assert started[isa].returncode == 0, output[-3000:]
    assert int(re.findall(r"(\d+) passed", output)[-1]) > len(files)
    assert "skipped" not in output, output[-3000:]


@needs_object
@pytest.mark.isa
def test_the_instruction_set_is_the_one_asked_for():
    asked = os.environ.get("SPARSEVAE_EXT_ISA")
    # A processor without avx2 falls back to the generic loops.
    used = _load.C.cpu_isa()
    assert asked is None or used in (asked, "generic")
    assert sv.info()["ops"]["csr_linear"]["cpu"] == f"kernel ({used})"


def test_every_kernel_on_the_cpu_takes_part():
    """Each op with loops per instruction set has a file with marked tests."""
    elsewhere = {
        "nll": "nll_kernels",
        "row_adam": "row_adam_ops",
        "row_adagrad": "row_adagrad_ops",
    }
    loops = (HERE.parent / "csrc" / "cpu" / "isa").glob("*_generic.cpp")
    ops = {file.name.removesuffix("_generic.cpp") for file in loops}
    assert len(ops) > 5
    for op in ops:
        assert MARK in (HERE / f"test_{elsewhere.get(op, op)}.py").read_text(), op


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_no_loop_is_shared_between_instruction_sets():
    """Of a weak symbol the linker keeps one copy for all files: with AVX-512 in it, on every machine."""
    sources = [file.name for file in (HERE.parent / "csrc" / "cpu" / "isa").glob("*.cpp")]
    build = Path(os.environ.get("SPARSEVAE_EXT_BUILD_DIR", HERE.parent / "build"))
    objects = [
        file
        for name in sources
        for file in build.glob(f"{platform.machine()}/common/*_isa_{name}.o")
    ]
    if not objects:
        pytest.skip("built elsewhere")
    weak = 0
    for file in objects:
        own = re.search(r"_(generic|avx2|avx512)\.cpp\.o$", file.name)[1]
        symbols = subprocess.run(["nm", file], capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"^[0-9a-f]+ [WVu] (\S+)$", symbols, re.MULTILINE):
            assert re.search(rf"\d+isa_{own}", name), (file.name, name)
            weak += 1
    assert weak > len(objects)
