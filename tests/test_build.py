"""The build's choices, the facts it leaves in the object, and what `info` says of them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import sparsevae_ext as sv
from sparsevae_ext import _load
from sparsevae_ext._cuda import runs_on

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
extension_build = pytest.importorskip("extension_build", reason="not a source tree")


@pytest.fixture
def no_cuda(monkeypatch, tmp_path):
    """A machine without any nvcc."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(extension_build, "find_nvcc", lambda: None)


def test_cuda_is_a_choice(monkeypatch, no_cuda):
    monkeypatch.setenv("SPARSEVAE_EXT_CUDA", "auto")
    assert extension_build.cuda_wanted() is None
    monkeypatch.setenv("SPARSEVAE_EXT_CUDA", "0")
    assert extension_build.cuda_wanted() is None
    monkeypatch.setenv("SPARSEVAE_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match="no nvcc was found: set CUDA_HOME") as error:
        extension_build.cuda_wanted()
    assert "\n" not in str(error.value)
    monkeypatch.setenv("SPARSEVAE_EXT_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected auto, 0 or 1, but got 'yes'"):
        extension_build.cuda_wanted()


@pytest.mark.parametrize("says_top", [True, False])
@pytest.mark.parametrize("lib", ["lib64", "lib", f"lib/{platform.machine()}-linux-gnu"])
def test_a_toolkit_is_found_in_the_layouts_of_nvidia_and_of_debian(tmp_path, lib, says_top):
    home = tmp_path / "toolkit"
    for name in ("bin/nvcc", "include/cuda_runtime.h", f"{lib}/libcudart_static.a"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch(mode=0o755)
    says = f"echo '#$ TOP={home}' >&2" if says_top else "echo '#$ _HERE_=elsewhere' >&2"
    (home / "bin" / "nvcc").write_text(f"#!/bin/sh\n{says}\n")
    found = extension_build.cuda_paths(home / "bin" / "nvcc")
    assert found == (home / "include", home / lib)


def test_the_compilers_own_headers_are_not_named_again():
    assert extension_build.system_include(Path("/usr/include")) == []
    assert extension_build.system_include(Path("/cuda/include")) == ["-isystem/cuda/include"]


def test_zero_means_zero_even_with_nvcc(monkeypatch, tmp_path):
    monkeypatch.setattr(extension_build, "find_nvcc", lambda: tmp_path / "nvcc")
    monkeypatch.setenv("SPARSEVAE_EXT_CUDA", "0")
    assert extension_build.cuda_wanted() is None
    monkeypatch.setenv("SPARSEVAE_EXT_CUDA", "1")
    assert extension_build.cuda_wanted() == tmp_path / "nvcc"


def test_nvcc_is_looked_for_in_this_order(monkeypatch, tmp_path):
    for name in ("home", "path"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "nvcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert extension_build.find_nvcc() == tmp_path / "home" / "bin" / "nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert extension_build.find_nvcc() == tmp_path / "path" / "bin" / "nvcc"


def test_architectures(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert extension_build.architectures((12, 6)) == ["8.0", "9.0+PTX"]
    assert extension_build.architectures((13, 0)) == ["8.0", "9.0", "10.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0a 12.0+PTX")
    archs = extension_build.architectures((13, 0))
    assert archs == ["7.5", "9.0a", "12.0+PTX"]
    assert extension_build.gencode_flags(archs) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="expected numbers such as 8.0 or 9.0"):
        extension_build.architectures((13, 0))


def test_strict_cuda_is_a_choice(monkeypatch):
    strict_cuda = extension_build.strict_cuda
    monkeypatch.delenv("SPARSEVAE_EXT_STRICT_CUDA", raising=False)
    assert not strict_cuda.wanted()
    for value, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv("SPARSEVAE_EXT_STRICT_CUDA", value)
        assert strict_cuda.wanted() is wanted
    assert strict_cuda.cuda_folder((13, 0), True) != strict_cuda.cuda_folder((13, 0), False)
    monkeypatch.setenv("SPARSEVAE_EXT_STRICT_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected 0 or 1, but got 'yes'"):
        strict_cuda.wanted()


def test_flags_for_one_instruction_set(monkeypatch):
    monkeypatch.setattr(extension_build.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("SPARSEVAE_EXT_CXXFLAGS_AVX512", raising=False)
    monkeypatch.setenv("SPARSEVAE_EXT_CXXFLAGS_AVX2", "-g0")
    avx2 = extension_build.ISA_FLAGS["avx2"]
    assert extension_build.isa_flags(Path("nll_avx2.cpp")) == f"{avx2} -g0"
    assert extension_build.isa_flags(Path("nll_avx512.cpp")) == extension_build.ISA_FLAGS["avx512"]
    assert extension_build.isa_flags(Path("nll_generic.cpp")) == ""


def test_jobs(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    assert extension_build.jobs() == 3
    monkeypatch.delenv("MAX_JOBS")
    assert extension_build.jobs() >= 1


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((9, 0), ["8.0", "9.0"], True),
        ((8, 6), ["8.0"], True),
        ((8, 0), ["8.6"], False),
        ((10, 0), ["8.0", "9.0"], False),
        ((10, 0), ["8.0", "9.0+PTX"], True),
        ((9, 0), ["9.0a"], True),
        ((9, 1), ["9.0a"], False),
        ((7, 5), ["8.0+PTX"], False),
        ((12, 0), ["8.0", "9.0", "10.0+PTX"], True),
    ],
)
def test_which_devices_an_arch_list_serves(capability, archs, runs):
    assert runs_on(capability, archs) is runs


@pytest.mark.skipif(_load.C is None, reason="the compiled object is missing")
def test_facts_are_in_the_object():
    facts = _load.build_facts()
    assert set(facts) == {
        "torch",
        "torch_target",
        "python",
        "compiler",
        "commit",
        "cuda",
        "cuda_archs",
    }
    assert facts["torch_target"] == "2.10" and facts["torch"][0] == "2"
    assert bool(facts["cuda"]) == bool(facts["cuda_archs"])


def test_info_command():
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning:runpy", "-m", "sparsevae_ext.info", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["torch"] == sv.info()["torch"] and facts["ops"] == sv.info()["ops"]
    plain = subprocess.run(
        [sys.executable, "-m", "sparsevae_ext.info"], capture_output=True, text=True, check=True
    ).stdout
    for op in facts["ops"]:
        assert op in plain


def test_import_is_quiet_and_starts_nothing():
    code = (
        "import sys, threading, torch; before = threading.active_count(); import sparsevae_ext;"
        "assert threading.active_count() == before; assert not torch.cuda.is_initialized();"
        "assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_one_openmp_runtime():
    code = (
        "import torch, sparsevae_ext as sv; x = sv.CSRBatch.from_dense(torch.ones(300, 300));"
        "sv.functional.csr_linear(x, torch.ones(64, 300));"
        "maps = open('/proc/self/maps').read();"
        "print(len({l.split()[-1] for l in maps.splitlines()"
        " if any(n in l for n in ('libgomp', 'libomp', 'libiomp'))}))"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc/self/maps")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1


def test_the_function_outlives_an_import_of_the_module_of_its_name():
    import sparsevae_ext as sv

    before = sv.info()
    import sparsevae_ext.info

    assert sparsevae_ext.info() == sv.info() == before
