"""Builds the package's CUDA sources for the CPU: kernels, launchers and glue, unchanged, emulated.

The result is a shared library that registers the same ops, with the schemas of csrc/ops, for CPU tensors
in the namespace ``sparsevae_cuda_emu``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
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
FOLDER = ROOT / "build" / "cuda_emu"

# So few blocks that every kernel has to stride over its grid.
MAX_BLOCKS = 7
# Of UBSan, the checks that can find something in a kernel; all of them take three times as long to build.
UNDEFINED = "alignment,signed-integer-overflow,shift,integer-divide-by-zero"
SANITIZE = {
    "": [],
    "address": [
        *(f"-fsanitize=address,{UNDEFINED}", "-fsanitize=bounds-strict"),
        "-DCUDA_EMU_STATIC_SHARED",
    ],
    # -Wno: g++ says that it cannot see fences, of which the kernels under test have none.
    "thread": ["-fsanitize=thread", "-DCUDA_EMU_STATIC_SHARED", "-Wno-tsan"],
}
FLAGS = [
    *("-std=c++20", "-O0", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers"),
    f"-Dsparsevae_ext={NAMESPACE}",
    "-DSPARSEVAE_CUDA_KEY=CPU",
    "-DSPARSEVAE_CUDA_EMULATED",
    f"-DSPARSEVAE_MAX_BLOCKS=int64_t{{{MAX_BLOCKS}}}",
]
# What all files of csrc/cuda/*.cpp and csrc/ops include.
STABLE = "#include <torch/csrc/stable/library.h>\n#include <torch/csrc/stable/ops.h>\n"


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


def cuda_include() -> list[str]:
    """The flag for NVIDIA's headers."""
    tool = load_tool("extension_build")
    return tool.system_include(tool.cuda_paths(tool.find_nvcc())[0])


def _copy_rewritten(target: Path) -> list[Path]:
    """Copies the sources, launches replaced; returns those to compile."""
    for source in (f for d in ("common", "cuda", "ops") for f in (ROOT / "csrc" / d).iterdir()):
        copy = target / source.parent.name / source.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        if source.suffix in (".cu", ".cuh"):
            text = rewrite(text, str(source))
        copy.write_text(text)
    glue = sorted((target / "cuda").glob("*.cpp"))
    schemas = [target / "ops" / file.name for file in glue]
    return [*sorted((target / "cuda").glob("*.cu")), *glue, *schemas]


def _texts(source: Path, seen: dict[Path, bytes]) -> dict[Path, bytes]:
    """The file and every file of ours that it includes, directly or not."""
    source = source.resolve()
    if source not in seen:
        seen[source] = source.read_bytes()
        for name in re.findall(rb'^#include "([^"]+)"', seen[source], re.MULTILINE):
            _texts(source.parent / name.decode(), seen)
    return seen


def _fingerprint(command: list[str], texts: dict[Path, bytes]) -> str:
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    for file in sorted(texts, key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0" + texts[file] + b"\0")
    return digest.hexdigest()[:16]


def _make(command: list[str], target: Path) -> Path:
    """Runs a command that writes ``target``, unless it is there; never leaves half of it.

    Two processes that build the same library share the work: one waits for what the other makes.
    """
    if target.exists():
        return target
    with open(target.with_name(f"{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        partial = target.with_name(f"{os.getpid()}-{target.name}")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr[:4000]}")
        os.replace(partial, target)
    return target


def _compile(command: list[str], source: Path, first: Path | None, stem: str) -> Path:
    """The object of one source, from before where it, its includes and the command are the same."""
    texts = _texts(source, _texts(HERE / "cuda_emu.h", {}))
    target = FOLDER / f"{stem}-{_fingerprint(command, texts)}.o"
    start = ["-include", str(first)] if first else []
    return _make([*command, *start, "-x", "c++", "-c", str(source)], target)


def _precompiled(command: list[str], text: str, stem: str) -> Path:
    """A header with this text for ``-include``: most of a compile would be the parsing of it.

    g++ takes the compiled form beside it if the command is the one it was compiled with.
    """
    fingerprint = _fingerprint([*command, text], _texts(HERE / "cuda_emu.h", {}))
    header = FOLDER / f"{stem}-{fingerprint}.h"
    if not header.exists():
        partial = header.with_name(f"{os.getpid()}-{header.name}")
        partial.write_text(text)
        os.replace(partial, header)
    _make([*command, "-x", "c++-header", "-c", str(header)], header.with_name(f"{header.name}.gch"))
    return header


def build(sanitizer: str = "") -> Path:
    """The library, of which only those objects are built whose sources have changed.

    Args:
        sanitizer: a key of ``SANITIZE``.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    kind = sanitizer or "plain"
    torch_dir = Path(torch.__file__).resolve().parent
    system = [*cuda_include(), f"-isystem{torch_dir / 'include'}"]
    target_version = load_tool("extension_build").TORCH_TARGET_VERSION
    # The emulator itself switches stacks, which a sanitizer would take for an overflow.
    core = ["g++", "-std=c++20", "-O2", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", *system]
    kernel = ["g++", *FLAGS, *system, *SANITIZE[sanitizer]]
    glue = ["g++", *FLAGS, *system, "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={target_version}"]
    with (
        tempfile.TemporaryDirectory() as copies,
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
    ):
        sources = _copy_rewritten(Path(copies))
        emulator = f'#include "{HERE / "cuda_emu.h"}"\n'
        headers = [
            pool.submit(_precompiled, kernel, emulator, kind),
            pool.submit(_precompiled, glue, STABLE, "glue"),
        ]
        for_kernels, for_glue = (header.result() for header in headers)
        objects = [pool.submit(_compile, core, HERE / "cuda_emu.cpp", None, "core")]
        for source in sources:
            name = f"{source.parent.name}-{source.name}"
            if source.suffix == ".cu":
                work = (kernel, source, for_kernels, f"{kind}-{name}")
            else:
                work = (glue, source, for_glue, name)
            objects.append(pool.submit(_compile, *work))
        files = [str(o.result()) for o in objects]
    link = ["g++", "-shared", *SANITIZE[sanitizer], *files]
    link += [f"-L{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10", "-lpthread"]
    # An object's name says what is in it.
    return _make(link, FOLDER / f"{kind}-{_fingerprint(link, {})}.so")
