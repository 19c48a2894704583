"""Builds the package's CUDA sources for the CPU: kernels, launchers and glue, unchanged, emulated.

The result is a shared library that registers the same ops, with the schemas of csrc/ops, for CPU tensors
in the namespace ``sparsevae_cuda_emu``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch

from .rewrite import rewrite

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAMESPACE = "sparsevae_cuda_emu"

# So few blocks that every kernel has to stride over its grid.
MAX_BLOCKS = 7
# Of UBSan, the checks that can find something in a kernel; all of them take three times as long to build.
UNDEFINED = "alignment,signed-integer-overflow,shift,integer-divide-by-zero"
SANITIZE = {
    "": [],
    "address": [
        *(f"-fsanitize=address,{UNDEFINED}", "-fsanitize=bounds-strict"),
        *("-DCUDA_EMU_STATIC_SHARED", "-O0"),
    ],
    # -Wno: g++ says that it cannot see fences, of which the kernels under test have none.
    "thread": ["-fsanitize=thread", "-DCUDA_EMU_STATIC_SHARED", "-Wno-tsan", "-O0"],
}
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers"),
    f"-Dsparsevae_ext={NAMESPACE}",
    "-DSPARSEVAE_CUDA_KEY=CPU",
    "-DSPARSEVAE_CUDA_EMULATED",
    f"-DSPARSEVAE_MAX_BLOCKS=int64_t{{{MAX_BLOCKS}}}",
]


def load_tool(name: str) -> ModuleType:
    """A module of tools/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def why_not() -> str | None:
    """The reason why nothing can be built here, or None."""
    if shutil.which("g++") is None:
        return "the emulation needs g++"
    if os.uname().machine != "x86_64":
        return "the emulation switches stacks with x86-64 instructions"
    if load_tool("extension_build").find_nvcc() is None:
        return "no nvcc, so no CUDA headers to compile the kernels with"
    return None


def cuda_include() -> Path:
    """The folder of NVIDIA's headers."""
    tool = load_tool("extension_build")
    return tool.cuda_paths(tool.find_nvcc())[0]


def _sources() -> list[Path]:
    return [f for d in ("common", "cuda", "ops") for f in sorted((ROOT / "csrc" / d).iterdir())]


def _copy_rewritten(target: Path) -> list[Path]:
    """Copies the sources, launches replaced; returns those to compile."""
    for source in _sources():
        copy = target / source.parent.name / source.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        if source.suffix in (".cu", ".cuh"):
            text = rewrite(text, str(source))
        copy.write_text(text)
    glue = sorted((target / "cuda").glob("*.cpp"))
    schemas = [target / "ops" / file.name for file in glue]
    return [*sorted((target / "cuda").glob("*.cu")), *glue, *schemas]


def _fingerprint() -> str:
    facts = (FLAGS, SANITIZE, torch.__version__, str(cuda_include()))
    digest = hashlib.sha256(repr(facts).encode())
    for file in [*_sources(), *sorted(HERE.iterdir())]:
        if file.is_file():
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _make(command: list[str], target: Path) -> None:
    """Runs a command that writes ``target``, unless it is there; never leaves half of it."""
    if target.exists():
        return
    partial = target.with_name(f"{os.getpid()}-{target.name}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr[:4000]}")
    os.replace(partial, target)


def build(sanitizer: str = "") -> Path:
    """The library, built unless one of the same sources is there already.

    Args:
        sanitizer: a key of ``SANITIZE``.
    """
    folder = ROOT / "build" / "cuda_emu" / _fingerprint()
    library = folder / f"{sanitizer or 'plain'}.so"
    flags = SANITIZE[sanitizer]
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    torch_dir = Path(torch.__file__).resolve().parent
    system = [f"-isystem{cuda_include()}", f"-isystem{torch_dir / 'include'}"]
    target_version = load_tool("extension_build").TORCH_TARGET_VERSION
    # The emulator itself switches stacks, which a sanitizer would take for an overflow.
    core = ["g++", "-std=c++20", "-O2", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", *system]
    work = [([*core, "-c", str(HERE / "cuda_emu.cpp")], folder / "core.o")]
    with tempfile.TemporaryDirectory() as copies:
        for source in _copy_rewritten(Path(copies)):
            name = f"{source.parent.name}-{source.name}"
            if source.suffix == ".cu":
                line = ["g++", *FLAGS, *system, "-include", str(HERE / "cuda_emu.h")]
                line += flags
                name = f"{library.stem}-{name}"
            else:
                line = ["g++", *FLAGS, *system, "-DUSE_CUDA"]
                line += [f"-DTORCH_TARGET_VERSION={target_version}"]
            work.append(([*line, "-x", "c++", "-c", str(source)], folder / f"{name}.o"))
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda item: _make(*item), work))
    link = ["g++", "-shared", *flags, *(str(o) for _, o in work)]
    _make([*link, f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10", "-lpthread"], library)
    return library
