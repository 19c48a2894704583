"""Chooses compilers and flags for sparsevae_ext._C and runs ninja. Called by setup.py.

torch.utils.cpp_extension is not used: it refuses to compile CUDA under a CPU build of torch, while on
LibTorch's stable ABI one object, built against either, loads under both.

Environment:
    SPARSEVAE_EXT_CUDA=auto|0|1   auto compiles the CUDA kernels when an nvcc is found (default)
    TORCH_CUDA_ARCH_LIST          e.g. "8.0 9.0+PTX"; default: what the toolkit and the kernels support
    CUDA_HOME                     the toolkit to use; default: CUDA_PATH, the nvcc on PATH, /usr/local/cuda
    MAX_JOBS                      compile jobs; default: from cores and free memory
    SPARSEVAE_EXT_CXXFLAGS        more flags for the C++ files (sanitizers)
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10, the first with a versioned stable ABI
ISA_FLAGS = {
    "avx2": "-mavx2 -mfma -mf16c",
    # -Wno: g++ 12 warns about its own header of intrinsics.
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c "
    "-Wno-maybe-uninitialized -Wno-uninitialized",
}
GIB_PER_JOB = 1.5


def find_nvcc() -> Path | None:
    """The nvcc of CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda, in this order."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if path.is_file()), None)


def cuda_wanted() -> Path | None:
    """The nvcc to use, or None for a CPU build; an error when CUDA is demanded and nvcc missing."""
    choice = os.environ.get("SPARSEVAE_EXT_CUDA", "auto").strip().lower()
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"SPARSEVAE_EXT_CUDA: expected auto, 0 or 1, but got {choice!r}")
    nvcc = None if choice == "0" else find_nvcc()
    if choice == "1" and nvcc is None:
        raise SystemExit(
            "SPARSEVAE_EXT_CUDA=1, but no nvcc was found: set CUDA_HOME to a CUDA toolkit (12.0 or "
            "newer) or set SPARSEVAE_EXT_CUDA=0 for a build without the CUDA kernels"
        )
    return nvcc


def cuda_version(nvcc: Path) -> tuple[int, int]:
    """(major, minor) of the toolkit."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if not match:
        raise SystemExit(f"cannot read the CUDA version from `{nvcc} --version`: {text.strip()!r}")
    return int(match[1]), int(match[2])


def cuda_paths(nvcc: Path) -> tuple[Path, Path]:
    """(include, lib) folders of the toolkit; nvcc may be a wrapper, so it is asked where it lives."""
    text = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
    ).stderr
    match = re.search(r"^#\$ TOP=(.+)$", text, re.MULTILINE)
    home = Path(match[1].strip()) if match else nvcc.resolve().parent.parent
    home = home if home.is_absolute() else (nvcc.resolve().parent / home)
    home = home.resolve()
    for include in (home / "include", home / "targets" / f"{platform.machine()}-linux" / "include"):
        if (include / "cuda_runtime.h").is_file():
            break
    else:
        raise SystemExit(f"no cuda_runtime.h under {home}: is the CUDA toolkit complete?")
    for lib in (home / "lib64", home / "lib", include.parent / "lib"):
        if (lib / "libcudart_static.a").is_file():
            return include, lib
    raise SystemExit(f"no libcudart_static.a under {home}: is the CUDA toolkit complete?")


def architectures(version: tuple[int, int]) -> list[str]:
    """TORCH_CUDA_ARCH_LIST's notation: ["8.0", "9.0", "12.0+PTX"]."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if wish:
        for arch in wish:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
                raise SystemExit(
                    f"TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0 or 9.0+PTX, but got {arch!r}"
                )
        return wish
    # One per generation, and PTX for what is newer; a release names more (see docs).
    return ["8.0", "9.0", "10.0+PTX"] if version >= (12, 8) else ["8.0", "9.0+PTX"]


def gencode_flags(archs: list[str]) -> list[str]:
    """Nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST's notation."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def jobs() -> int:
    """MAX_JOBS, or as many as cores and free memory allow."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        meminfo = Path("/proc/meminfo").read_text()
        gib = int(re.search(r"MemAvailable:\s+(\d+)", meminfo)[1]) / 2**20  # type: ignore[index]
    except (OSError, TypeError):
        gib = 4.0
    return max(1, min(cores, int(gib / GIB_PER_JOB)))


def commit(root: Path) -> str:
    """The commit that is built, with "+dirty" when sources differ from it."""

    def git(*args: str) -> str:
        out = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return out.stdout.strip() if out.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        dirty = git("status", "--porcelain", "--", "csrc", "setup.py", "tools/extension_build.py")
    except OSError:
        return "unknown"
    return (head + ("+dirty" if dirty else "")) if head else "unknown"


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the time stamp of a file whose content stays, so that ninja sees nothing to do."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def ninja_path(path: Path | str) -> str:
    """A path in ninja's own escaping."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_command() -> list[str]:
    """The ninja on PATH, or the one of the Python package."""
    binary = shutil.which("ninja")
    return [binary] if binary else [sys.executable, "-m", "ninja"]


def build(root: Path, target: Path, build_root: Path) -> None:
    """Compiles csrc/ into `target`."""
    import pybind11
    import torch

    nvcc = cuda_wanted()
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not cxx:
        raise SystemExit("no C++ compiler was found: install g++ or set CXX")
    csrc = root / "csrc"
    torch_dir = Path(torch.__file__).resolve().parent
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    variant = f"{python}-{platform.machine()}-{'cuda' if nvcc else 'cpu'}"
    work = build_root / variant
    work.mkdir(parents=True, exist_ok=True)

    cxx_version = subprocess.run(
        [*cxx.split(), "--version"], capture_output=True, text=True, check=True
    )
    facts: dict[str, object] = {
        "torch": str(torch.__version__),
        "torch_target": "2.10",
        "python": platform.python_version(),
        "compiler": cxx_version.stdout.splitlines()[0],
        "commit": commit(root),
        "cuda": None,
        "cuda_archs": [],
    }
    includes = [
        torch_dir / "include",
        sysconfig.get_paths()["include"],
        pybind11.get_include(),
    ]
    cxx_flags = [
        "-O3 -g1 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off",
        "-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        *(f"-isystem {ninja_path(path)}" for path in includes),
        # Not a system folder: the build facts in it are a dependency that ninja must see.
        f"-I{ninja_path(work)}",
        os.environ.get("SPARSEVAE_EXT_CXXFLAGS", ""),
    ]
    libs = [f"-L{ninja_path(torch_dir / 'lib')}", "-ltorch_cpu", "-lc10"]
    sources = sorted(csrc.glob("*.cpp"))
    for folder in ("ops", "host", "cpu", "cpu/isa"):
        sources += sorted((csrc / folder).glob("*.cpp"))
    cuda_flags: list[str] = []
    if nvcc:
        version = cuda_version(nvcc)
        archs = architectures(version)
        include, lib = cuda_paths(nvcc)
        facts["cuda"] = "{}.{}".format(*version)
        facts["cuda_archs"] = archs
        sources += sorted((csrc / "cuda").glob("*.cpp")) + sorted((csrc / "cuda").glob("*.cu"))
        cxx_flags.append(f"-DUSE_CUDA -DSPARSEVAE_WITH_CUDA -isystem {ninja_path(include)}")
        cuda_flags = [
            "-O3 -lineinfo -std=c++20 -Xcompiler -fPIC,-fvisibility=hidden",
            *gencode_flags(archs),
        ]
        libs += [f"-L{ninja_path(lib)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]

    write_if_changed(
        work / "sparsevae_build_facts.h",
        '#pragma once\n#define SPARSEVAE_BUILD_FACTS R"json(' + json.dumps(facts) + ')json"\n',
    )
    lines = [
        "ninja_required_version = 1.3",
        f"cxx = {cxx}",
        f"nvcc = {nvcc or ''}",
        f"cxxflags = {' '.join(cxx_flags)}",
        f"cudaflags = {' '.join(cuda_flags)}",
        "isa =",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $cxxflags $isa -c $in -o $out",
        "  description = c++ $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule cuda",
        "  command = $nvcc -MMD -MF $out.d $cudaflags -c $in -o $out",
        "  description = nvcc $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        # Not stripped of symbols it uses, but none of its own are exported except the module's entry.
        f"  command = $cxx -shared {os.environ.get('SPARSEVAE_EXT_CXXFLAGS', '')} $in -o $out "
        + " ".join(libs),
        "  description = link $out",
        "",
    ]
    objects = []
    for source in sources:
        name = ninja_path(str(source.relative_to(csrc)).replace("/", "_") + ".o")
        objects.append(name)
        rule = "cuda" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {name}: {rule} {ninja_path(source)}")
        isa = next(
            (flag for key, flag in ISA_FLAGS.items() if source.stem.endswith("_" + key)), None
        )
        if isa and platform.machine() in ("x86_64", "AMD64"):
            lines.append(f"  isa = {isa}")
    lines += [f"build _C.so: link {' '.join(objects)}", "default _C.so", ""]
    write_if_changed(work / "build.ninja", "\n".join(lines))

    n_jobs = jobs()
    cuda_text = (
        f"CUDA {facts['cuda']} ({nvcc}) for {' '.join(facts['cuda_archs'])}" if nvcc else "no CUDA"
    )  # type: ignore[arg-type]
    print(
        f"sparsevae_ext: {len(sources)} files, {n_jobs} jobs, {facts['compiler']}, "
        f"headers of torch {facts['torch']} (runs with torch >= 2.10), {cuda_text}",
        flush=True,
    )
    if subprocess.run([*ninja_command(), "-C", str(work), f"-j{n_jobs}"]).returncode:
        raise SystemExit("sparsevae_ext: compiling the extension failed; the first error is above")
    target.parent.mkdir(parents=True, exist_ok=True)
    built = work / "_C.so"
    if not target.exists() or target.stat().st_mtime_ns != built.stat().st_mtime_ns:
        # Replace, never write into a file that a running process may have mapped.
        partial = target.with_name(target.name + ".partial")
        shutil.copy2(built, partial)
        os.replace(partial, target)
